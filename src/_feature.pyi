from typing import Any, final

import numpy
from numpy.typing import NDArray

BOOK: numpy.dtype[Any]
WARM: int

@final
class Features:
    def __init__(self) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def warm(self) -> bool: ...
    def update(self, book: Any) -> NDArray[numpy.float32] | None: ...
    def update_many(
        self, books: NDArray[Any]
    ) -> tuple[NDArray[numpy.float32], NDArray[numpy.bool_]]: ...
