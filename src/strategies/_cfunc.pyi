from typing import Any, final

from hftpipe._strategy import Strategy

@final
class CFunc(Strategy):
    def __init__(self, function: Any) -> None: ...
