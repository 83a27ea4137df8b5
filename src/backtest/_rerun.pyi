from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy

from hftpipe._control import Control
from hftpipe._ring import Ring
from hftpipe._stage import Stage
from hftpipe._wire import Wire

Array = numpy.ndarray[Any, Any]

class Queue:
    def __init__(
        self, source: Ring | None, target: Ring, rows: Array | None = None, between: bool = False,
    ) -> None: ...

class Stored:
    def __init__(self, rows: Array, ring: Ring, masks: Array, stage: Stage) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def same(self) -> int: ...
    @property
    def beyond(self) -> int: ...
    @property
    def differs(self) -> bool: ...
    def shown(self) -> tuple[bytes, bytes]: ...

class Turns:
    def __init__(
        self, at: Array, many: Array, took: Array, kind: Array, flags: Array, rest: Array,
        last: Array,
    ) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def next(self) -> int: ...

class Tape(Wire):
    def __init__(self) -> None: ...

class Rerun:
    def __init__(
        self, stages: tuple[Any, ...], tape: Tape, queues: Mapping[str, Queue],
        stored: Mapping[str, Stored], turns: Mapping[str, Turns], after: Array, room: Array,
        reloads: Sequence[tuple[int, int, int, int, Any]], gate: Control, check: Control,
        wire: Control, unsettled: int, utc_offset: int,
    ) -> None: ...
    def think(self) -> int: ...
    def run(self, pool: Executor) -> bool: ...
    def opened(self) -> None: ...
    def close(self) -> None: ...
