BUILT: bool
POINTS: dict[str, tuple[str, ...]]

def point(name: str) -> None: ...
