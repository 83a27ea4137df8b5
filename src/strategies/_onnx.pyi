from collections.abc import Mapping
from typing import Any, Self, final

from numpy.typing import NDArray

from hftpipe._model import Model
from hftpipe._strategy import Strategy

DEFAULTS: dict[str, Any]
ON_MISS: tuple[str, ...]

@final
class Onnx(Strategy):
    def __init__(self, params: Mapping[str, Any], instruments: NDArray[Any]) -> None: ...
    @classmethod
    def from_config(cls, params: Mapping[str, Any], instruments: NDArray[Any]) -> Self: ...
    @property
    def model(self) -> Model: ...
    @property
    def threshold(self) -> float: ...
    @property
    def leave(self) -> float: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def budget(self) -> int: ...
    @property
    def stale_age(self) -> int: ...
    @property
    def last(self) -> dict[str, Any]: ...
