from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._ring import Ring
from hftpipe._stage import Stage
from hftpipe._strategy import Strategy

@disjoint_base
class SignalStage(Stage):
    def __init__(
        self, books: Ring, order_events: Ring | None, intents: Ring,
        strategies: Sequence[Strategy], instruments: Any, store: Ring | None = None,
        control: Control | None = None, index: int = 2, bar: str = "1min",
    ) -> None: ...
    def restore(self, holdings: Mapping[int, Mapping[str, Any]]) -> None: ...
    def holding(self, instrument: int) -> dict[str, int]: ...
    def exchange(self, strategy: int, member: int, prepared: Any) -> int: ...
    def notices(self) -> list[tuple[str, str, str]]: ...
    @property
    def figures(self) -> dict[str, dict[str, int | None]]: ...
