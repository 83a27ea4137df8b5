from typing import Any

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._ring import Ring
from hftpipe._stage import Stage

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
