from typing import Any, final

from numpy.typing import NDArray

from hftpipe._strategy import Strategy

BOOK: int
TRADE: int
ORDER: int
TIMER: int

@final
class Probe:
    def __init__(self, strategy: Strategy, instruments: NDArray[Any]) -> None: ...
    @property
    def strategy(self) -> Strategy: ...
    def ask(
        self,
        book: Any,
        features: Any = None,
        *,
        qty: int = 0,
        open_buy: int = 0,
        open_sell: int = 0,
        event: int | None = None,
        order_event: Any = None,
        now: int | None = None,
        room: int = 64,
    ) -> tuple[NDArray[Any], Any]: ...
