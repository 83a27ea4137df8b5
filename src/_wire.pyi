from typing_extensions import disjoint_base

@disjoint_base
class Wire:
    @property
    def error(self) -> BaseException | None: ...
