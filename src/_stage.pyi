from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._ledger import Ledger
from hftpipe._order import Orders
from hftpipe._ring import Ring
from hftpipe._risk import Risk
from hftpipe._strategy import Strategy
from hftpipe._wire import Wire

WAIT_SPIN: int
WAIT_YIELD: int
WAIT_SLEEP: int

def checksum(body: bytes) -> int: ...
@disjoint_base
class Stage:
    @property
    def name(self) -> str: ...
    @property
    def error(self) -> BaseException | None: ...
    def do_work(self, limit: int = 64) -> int: ...
    def flush(self) -> None: ...
    def check(self) -> None: ...
    @property
    def counters(self) -> dict[str, int]: ...
    @property
    def stored(self) -> tuple[int, int]: ...

@disjoint_base
class Source:
    @property
    def error(self) -> BaseException | None: ...
    def figures(self) -> dict[str, int]: ...

@disjoint_base
class FeedStage(Stage):
    def __init__(
        self, book: Ring, store: Ring | None = None, control: Control | None = None,
        index: int = 0, source: Source | None = None,
    ) -> None: ...
    def put_many(self, records: Any) -> int: ...

@disjoint_base
class BookStage(Stage):
    def __init__(
        self, market: Ring, outputs: Sequence[Ring], instruments: Any, store: Ring | None = None,
        control: Control | None = None, index: int = 1, orders: int = 65536,
    ) -> None: ...
    @property
    def handles(self) -> list[Any]: ...

@disjoint_base
class SignalStage(Stage):
    def __init__(
        self, books: Ring, order_events: Ring | None, intents: Ring,
        strategies: Sequence[Strategy], instruments: Any, store: Ring | None = None,
        control: Control | None = None, index: int = 2,
    ) -> None: ...
    def holding(self, instrument: int) -> dict[str, int]: ...

@disjoint_base
class RiskStage(Stage):
    def __init__(
        self, intents: Ring, marks: Ring, order_events: Ring, positions: Ring, orders: Ring,
        risk: Risk, store: Ring | None = None, control: Control | None = None, index: int = 3,
    ) -> None: ...
    @property
    def refusals(self) -> dict[str, int]: ...

@disjoint_base
class GatewayStage(Stage):
    def __init__(
        self, orders: Ring, updates: Ring, outputs: Sequence[Ring], table: Orders, wire: Wire,
        store: Ring | None = None, control: Control | None = None, index: int = 4,
        max_age: int = 1_000_000_000,
    ) -> None: ...

@disjoint_base
class UpdatesStage(Stage):
    def __init__(
        self, gateway: Ring, store: Ring | None = None, control: Control | None = None,
        index: int = 5,
    ) -> None: ...
    def put_many(self, updates: Any) -> int: ...

@disjoint_base
class LedgerStage(Stage):
    def __init__(
        self, order_events: Ring, marks: Ring, risk: Ring, ledger: Ledger, instruments: int,
        store: Ring | None = None, control: Control | None = None, index: int = 6,
        interval: int = 1_000_000_000,
    ) -> None: ...
    @property
    def totals(self) -> dict[str, int]: ...
    def position(self, instrument: int) -> dict[str, int]: ...

@disjoint_base
class Host:
    def __init__(
        self, stages: Sequence[Stage], control: Control, wait: int = 0,
        after: Sequence[int] = (), every: Callable[[], object] | None = None,
    ) -> None: ...
    @property
    def passes(self) -> int: ...
    def run(self) -> None: ...
