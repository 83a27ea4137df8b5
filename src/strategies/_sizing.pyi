from collections.abc import Mapping
from typing import Any, Self, final

RULES: tuple[str, ...]

def row(params: Mapping[str, Any], qty: int, most: int, lot: int,
        instruments: int) -> dict[str, int]: ...

@final
class Sizing:
    def __new__(cls, params: Mapping[str, Any], qty: int, most: int, lot: int,
                instruments: int = ...) -> Self: ...
    def qty(self, price: int, volatility: float = ...) -> int: ...
    @property
    def bad(self) -> int: ...
