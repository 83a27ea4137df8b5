"""Who may import whom.  A layer may use lower layers, never a higher one; peers are strangers.

The table is the documentation; this test keeps it true.
"""
import ast
import re
from pathlib import Path

SRC = Path(__file__).resolve().parent.parent / "src"

LAYERS = [
    # 0 words: the layouts, the memory order, the clock, the errors
    {"schema", "_schema", "_atomic", "_memory", "_clock", "errors", "_token", "models",
     "_fault"},
    # the arithmetic and the index that parts share
    {"_indicator", "_index"},
    # 1 parts: one job each, ignorant of one another
    {"_bars", "_board", "_book", "_breaker", "_control", "_flow", "_journal", "_ledger", "_order",
     "_ring", "_wire", "card", "limits", "secret"},
    {"_day", "_study"},
    # 2 judgement: may read parts
    {"_drift", "_feature", "_model", "_risk", "_match"}, {"_figure", "_margin", "_usage"},
    {"_gate"},
    # 3 joints: the socket of a strategy, parts joined into duty cycles
    {"_strategy"}, {"_stage"},
    {"_stage_feed", "_stage_book", "_stage_signal", "_stage_risk", "_stage_gateway",
     "_stage_updates", "_stage_ledger", "_stage_figure", "_host"},
    # 4 shell: files, environment, processes
    {"config", "shm", "log", "recording", "indicators"},
    {"topology", "metrics", "rundir", "alerts", "triggers", "journal"},
    {"registry"},
    {"desk", "process", "health", "build"},
    # 5 outside: talks to the world, strangers to one another
    {"alpaca", "venue", "store", "backtest", "strategies", "analyst"},
    {"reloader", "data", "recovery"},
    # 6 the program
    {"worker", "guardian", "officer", "consent"}, {"takeover"}, {"pipeline"}, {"drill"}, {"cli"},
    {"__main__"},
]
OWN = {"__version__", "get_include"}   # of the package itself, which imports nothing
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Top-level hftpipe names that *path* imports or cimports."""
    text = path.read_text()
    if path.suffix == ".py":
        found = set()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hftpipe"):
                top = node.module.split(".")[1:2]
                found |= set(top) or {a.name for a in node.names}
            elif isinstance(node, ast.Import):
                found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("hftpipe.")}
        return found - OWN
    names = re.findall(r"^\s*from\s+\.\.(\w+)[\w.]*\s+c?import", text, re.M)
    if path.parent == SRC:
        names += re.findall(r"^\s*from\s+\.(\w+)[\w.]*\s+c?import", text, re.M)
    names += re.findall(r"^\s*from\s+hftpipe\.(\w+)[\w.]*\s+c?import", text, re.M)
    for group in re.findall(r"^\s*from hftpipe import (.+)$", text, re.M):
        names += [n.strip() for n in group.split(",")]
    return set(names) - OWN


def test_no_module_reaches_up():
    wrong = []
    for path in sorted(p for s in ("*.py", "*.pyx", "*.pxd") for p in SRC.rglob(s)):
        unit = path.relative_to(SRC).parts[0].split(".")[0]
        if unit == "__init__":
            continue
        assert unit in LAYER, f"{path.name}: give {unit} a layer"
        wrong += [f"{path.relative_to(SRC)} imports {name}"
                  for name in imports(path) if name != unit
                  and LAYER.get(name, 99) >= LAYER[unit]]
    assert not wrong, "\n".join(wrong)
