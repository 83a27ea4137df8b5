from typing import final

from hftpipe._ring import Ring
from hftpipe._wire import Wire

@final
class DoorWire(Wire):
    def __init__(self, orders: Ring, answers: Ring) -> None: ...
