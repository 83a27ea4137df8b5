from collections.abc import Callable
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
    @property
    def error(self) -> BaseException | None: ...
    @property
    def version(self) -> int: ...

@disjoint_base
class PyStrategy(Strategy):
    def __init__(self, on_event: Callable[[Context, Callable[..., bool]], None]) -> None: ...
