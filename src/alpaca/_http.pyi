from collections.abc import Sequence
from typing import Any, final

import numpy

from hftpipe._wire import Wire
from hftpipe.alpaca._tls import Trust
from hftpipe.alpaca.rest import SecretLike

def format_nano(value: int) -> str: ...
@final
class AlpacaWire(Wire):
    def __init__(
        self,
        rest_url: str,
        key: SecretLike,
        secret: SecretLike,
        run: int,
        instruments: Sequence[str] | numpy.ndarray[Any, Any],
        connections: int = 4,
        rate_per_minute: int = 180,
        burst: int = 20,
        reserve: int = 4,
        timeout_ms: int = 2000,
        trust: Trust | None = None,
    ) -> None: ...
    def open(self, timeout: float = 3.0) -> None: ...
    def maintain(self) -> bool: ...
    def close(self) -> None: ...
    def send(self, order: numpy.ndarray[Any, Any], now: int = 0) -> int: ...
    def send_cancel(
        self, order: int, venue_id: int, venue_id_low: int, now: int = 0
    ) -> int: ...
    def answer(self, now: int = 0) -> numpy.ndarray[Any, Any] | None: ...
    def fileno(self) -> int: ...
    def counters(self) -> dict[str, int]: ...
    @property
    def connected(self) -> int: ...
    @property
    def outstanding(self) -> int: ...
