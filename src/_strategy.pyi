from collections.abc import Callable, Mapping, Sequence
from typing import Any

from typing_extensions import disjoint_base

class Context:
    book: Any
    event: int
    features: Any
    instrument: int
    lot: int
    now: int
    open_buy: int
    open_sell: int
    order_event: Any
    qty: int
    strategy: int
    tick: int

@disjoint_base
class Strategy:
    name: str
    shadow: bool
    def restore(self, instrument: int, holding: Mapping[str, Any]) -> None: ...
    def replay(self, events: Sequence[int], flags: Sequence[int]) -> None: ...
    @property
    def parts(self) -> list[Strategy]: ...
    @property
    def counts(self) -> dict[str, int | None]: ...
    @property
    def error(self) -> BaseException | None: ...
    @property
    def version(self) -> int: ...

@disjoint_base
class PyStrategy(Strategy):
    def __init__(
        self, on_event: Callable[[Context, Callable[..., bool]], Sequence[float] | None]
    ) -> None: ...
