from collections.abc import Sequence

from typing_extensions import disjoint_base

from hftpipe._board import Board
from hftpipe._control import Control
from hftpipe._gate import Risk
from hftpipe._ring import Ring
from hftpipe._stage import Stage

@disjoint_base
class RiskStage(Stage):
    def __init__(
        self, intents: Ring, marks: Ring, order_events: Ring, positions: Ring, orders: Ring,
        risk: Risk, store: Ring | None = None, control: Control | None = None, index: int = 3,
        figures: Sequence[Ring] = (), updates: int = -1,
    ) -> None: ...
    @property
    def risk(self) -> Risk: ...
    def show_on(self, board: Board) -> None: ...
    @property
    def refusals(self) -> dict[str, int]: ...
