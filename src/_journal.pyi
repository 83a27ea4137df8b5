from typing import Any

import numpy

HARDWARE: bool
EXTRA: int
ZERO: int
WHOLE: int
TORN: int
CORRUPT: int

_Array = numpy.ndarray[Any, Any]

def crc32c(data: Any, value: int = 0, *, hardware: bool = ...) -> int: ...
def frame(slots: _Array, run: int, number: int, group: int, out: Any, at: int = 0) -> int: ...
def scan(memory: Any, run: int, number: int, at: int = 0, *, most: int = ...,
         durable: int = 0) -> tuple[_Array, int, int]: ...
def gather(memory: Any, offsets: _Array, size: int) -> _Array: ...
def heads(memory: Any, offsets: _Array) -> tuple[_Array, _Array]: ...
