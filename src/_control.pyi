from typing_extensions import Buffer, disjoint_base

SIZE: int

@disjoint_base
class Control:
    def __init__(self, memory: Buffer) -> None: ...
