from collections.abc import Iterator
from typing import Any

from typing_extensions import disjoint_base

from hftpipe._board import Board
from hftpipe._control import Control
from hftpipe._day import Days
from hftpipe._ledger import Ledger
from hftpipe._ring import Ring
from hftpipe._stage import Stage

@disjoint_base
class LedgerStage(Stage):
    def __init__(
        self, order_events: Ring, marks: Ring, risk: Ring, ledger: Ledger, instruments: int,
        store: Ring | None = None, control: Control | None = None, index: int = 6,
        interval: int = 1_000_000_000, days: Days | None = None, board: Board | None = None,
    ) -> None: ...
    def begin(self, account: Any, openings: Any = ..., resolved: Any = ...) -> Iterator[None]: ...
    @property
    def totals(self) -> dict[str, int]: ...
    def position(self, instrument: int) -> dict[str, int]: ...
