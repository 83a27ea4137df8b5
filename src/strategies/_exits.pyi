from collections.abc import Mapping
from typing import Any, Self, final

from hftpipe._strategy import Strategy

DEFAULTS: dict[str, Any]

@final
class Exits(Strategy):
    params: dict[str, Any]
    def __init__(self, params: Mapping[str, Any], instruments: Any) -> None: ...
    @classmethod
    def from_config(cls, params: Mapping[str, Any], instruments: Any) -> Self: ...
    def state(self, instrument: int) -> dict[str, int]: ...
