from collections.abc import Sequence
from typing import Self, final

@final
class Days:
    def __new__(cls, steps: Sequence[tuple[int, int]] = ...) -> Self: ...
    def of(self, utc: int) -> tuple[int, int, int]: ...
