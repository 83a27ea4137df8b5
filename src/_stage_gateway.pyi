from collections.abc import Sequence

from typing_extensions import disjoint_base

from hftpipe._control import Control
from hftpipe._order import Orders
from hftpipe._ring import Ring
from hftpipe._stage import Stage
from hftpipe._wire import Wire

@disjoint_base
class GatewayStage(Stage):
    def __init__(
        self, orders: Ring, updates: Ring, outputs: Sequence[Ring], table: Orders, wire: Wire,
        store: Ring | None = None, control: Control | None = None, index: int = 4,
        max_age: int = 1_000_000_000, max_unknown: int = 0, durable: int = -1,
    ) -> None: ...
