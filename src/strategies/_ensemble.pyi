from collections.abc import Mapping, Sequence
from typing import Any, final

from numpy.typing import NDArray

from hftpipe._strategy import Strategy

DEFAULTS: dict[str, Any]
RULES: tuple[str, ...]

@final
class Ensemble(Strategy):
    def __init__(
        self, params: Mapping[str, Any], instruments: NDArray[Any], members: Sequence[Strategy]
    ) -> None: ...
    @property
    def members(self) -> list[Strategy]: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def threshold(self) -> float: ...
    @property
    def leave(self) -> float: ...
