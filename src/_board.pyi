from collections.abc import Sequence
from typing import Any, NamedTuple, final

from typing_extensions import Buffer

LIMITS: int
OFF: int
PAUSED: int
RESTRICTED: int

class Row(NamedTuple):
    qty: int
    average: int
    mark: int
    pnl: int
    realised: int
    volume: int
    ts: int

class Limit(NamedTuple):
    name: str
    unit: str
    scale: int
    limit: int
    use: int

def size(instruments: int) -> int: ...
def format(
    memory: Buffer, *, run: int, boot: int = 0, instruments: int,
    limits: Sequence[tuple[str, str, int]] = (),
) -> None: ...
@final
class Board:
    def __init__(
        self, memory: Buffer, *, run: int | None = None, boot: int | None = None
    ) -> None: ...
    @property
    def run(self) -> int: ...
    @property
    def instruments(self) -> int: ...
    @property
    def basis(self) -> int: ...
    def row(self, instrument: int) -> Row | None: ...
    def rows(self) -> list[Row | None]: ...
    def flags(self, instrument: int) -> int: ...
    def gate(self) -> tuple[dict[str, Any], list[Limit]] | None: ...
    def put_mark(self, instrument: int, price: int, volume: int, ts: int) -> None: ...
    def put_position(
        self, instrument: int, qty: int, average: int, realised: int, unrealised: int
    ) -> None: ...
    def put_basis(self, event: int) -> None: ...
    def put_flags(self, instrument: int, flags: int) -> None: ...
    def put_gate(
        self, ts: int, limits: Sequence[tuple[int, int]], *, breaker: int = 0, cause: int = 0,
        losses: int = 0, day: int = 0, day_orders: int = 0, day_pnl: int = 0, equity: int = 0,
        peak: int = 0, drawdown: int = 0, latched: Sequence[int] = (),
    ) -> None: ...
