from typing import Any

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._ring import Ring
from hftpipe._stage import Stage

@disjoint_base
class UpdatesStage(Stage):
    def __init__(
        self, gateway: Ring, events: Ring | None = None, store: Ring | None = None,
        control: Control | None = None, index: int = 5,
    ) -> None: ...
    def take(self, most: int = 1024) -> Any: ...
    def put_many(self, updates: Any) -> int: ...
