from collections.abc import Sequence
from typing import Any, final

from numpy.typing import NDArray

from hftpipe._strategy import Strategy

@final
class Only(Strategy):
    def __init__(
        self, inner: Strategy, symbols: Sequence[str], instruments: NDArray[Any]
    ) -> None: ...
    @property
    def inner(self) -> Strategy: ...
