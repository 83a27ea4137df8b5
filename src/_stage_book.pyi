from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._ring import Ring
from hftpipe._stage import Stage

@disjoint_base
class BookStage(Stage):
    def __init__(
        self, market: Ring, outputs: Sequence[Ring], instruments: Any, store: Ring | None = None,
        control: Control | None = None, index: int = 1, orders: int = 65536,
    ) -> None: ...
    @property
    def handles(self) -> list[Any]: ...
