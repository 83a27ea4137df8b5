from collections.abc import Callable, Sequence

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._stage import Stage

WAIT_SPIN: int
WAIT_YIELD: int
WAIT_SLEEP: int

@disjoint_base
class Host:
    def __init__(
        self, stages: Sequence[Stage], control: Control, wait: int = 0,
        after: Sequence[int] = (), every: Callable[[], object] | None = None,
    ) -> None: ...
    @property
    def passes(self) -> int: ...
    def run(self) -> None: ...
