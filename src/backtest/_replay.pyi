from collections.abc import Iterator, Sequence
from typing import Any

from typing_extensions import disjoint_base

from hftpipe._ring import Ring
from hftpipe._stage_book import BookStage
from hftpipe._stage_feed import FeedStage
from hftpipe._stage_gateway import GatewayStage
from hftpipe._stage_ledger import LedgerStage
from hftpipe._stage_risk import RiskStage
from hftpipe._stage_signal import SignalStage
from hftpipe.backtest._sim import SimWire

@disjoint_base
class Inline:
    def __init__(
        self, feed: FeedStage, book: BookStage, signal: SignalStage, risk: RiskStage,
        gateway: GatewayStage, ledger: LedgerStage, wire: SimWire, utc_offset: int = 0,
    ) -> None: ...
    @property
    def now(self) -> int: ...
    def run(self, records: Any) -> int: ...
    def finish(self) -> bool: ...
    def check(self) -> None: ...
    def close(self) -> None: ...

def replay_intents(
    feed: FeedStage, book: BookStage, signal: SignalStage, order_events: Ring, intents: Ring,
    markets: Any, events: Any, takes: Any, others: Sequence[Ring] = (),
    reloads: Sequence[tuple[int, int, int, int, Any]] = (),
) -> Iterator[bytes]: ...
