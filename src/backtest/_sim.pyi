from collections.abc import Sequence
from typing import Any

from typing_extensions import disjoint_base

from hftpipe._wire import Wire

@disjoint_base
class SimWire(Wire):
    def __init__(self, books: Sequence[Any], latency: int = 100_000) -> None: ...
    @property
    def open_orders(self) -> int: ...
    @property
    def submitted(self) -> int: ...
    @property
    def filled_orders(self) -> int: ...
