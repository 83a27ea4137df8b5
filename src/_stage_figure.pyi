from typing import Any

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._ring import Ring
from hftpipe._stage import Stage

@disjoint_base
class FigureStage(Stage):
    def __init__(
        self, name: str, stream: int, risk: Ring, store: Ring | None = None,
        control: Control | None = None, index: int = 10,
    ) -> None: ...
    def put_many(self, figures: Any) -> int: ...
