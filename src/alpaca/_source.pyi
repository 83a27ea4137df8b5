from collections.abc import Callable

from typing_extensions import disjoint_base

from hftpipe._stage import Source
from hftpipe.alpaca._codec import Decoder
from hftpipe.alpaca._socket import Receiver

@disjoint_base
class SocketSource(Source):
    def __init__(
        self, connect: Callable[[], Receiver], decoder: Decoder, first: float = 0.25,
        longest: float = 30.0,
    ) -> None: ...
    def open(self) -> None: ...
    def close(self) -> None: ...
    @property
    def connected(self) -> bool: ...
    @property
    def connections(self) -> int: ...
    @property
    def closed(self) -> str | None: ...
