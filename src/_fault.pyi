BUILT: bool
POINTS: dict[str, tuple[str, ...]]

BUGS: dict[str, str]

def bug(name: str) -> bool: ...
def point(name: str) -> None: ...
