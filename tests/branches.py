"""Branch coverage of compiled modules, by the C compiler's own counters: ``make branches``.

Cython's tracing knows lines only, and would not see the two ways of an ``and``.  So the module is
compiled once more with ``--coverage`` and with the lines of its sources in the C, the tests that
are about it run, and gcov says for each branch of each source line whether it was ever taken.
What Cython adds of its own (module set-up, its utilities) belongs to no source line.

    python tests/branches.py [_risk ...] [-- what pytest is to run]
"""
from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["_risk"]
TESTS = ["tests/test_risk.py", "tests/test_checks.py", "tests/test_risk_branches.py"]
DIRECTIVES = ("auto_pickle=False", "boundscheck=False", "wraparound=False", "cdivision=True",
              "initializedcheck=False")
SECTION = re.compile(r"^/\* #### Code section: (\w+) ### \*/$", re.MULTILINE)


def compile_counted(tree: Path, module: str) -> None:
    """The extension *module* of *tree*, with counters."""
    view, made = tree / "build/view", tree / f"build/{module}.c"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "--line-directives",
         *(a for d in DIRECTIVES for a in ("-X", d)), f"hftpipe/{module}.pyx", "-o", made],
        cwd=view, check=True)
    # A directive reaches to the next one: what follows the module's code is not its last line.
    made.write_text(SECTION.sub('#line 1 "generated"', made.read_text()))
    out = tree / "src" / (module + sysconfig.get_config_var("EXT_SUFFIX"))
    out.unlink(missing_ok=True)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O0", "-g", "--coverage", f"-I{tree / 'src'}",
         f"-I{sysconfig.get_paths()['include']}", "-w", made, "-o", out, "-lrt"],
        check=True, cwd=tree / "src")


def untaken(tree: Path, modules: list[str]) -> tuple[int, list[str]]:
    """Branches in the sources of *modules*: how many, and a line about each never taken."""
    wanted = {f"{m}{suffix}" for m in modules for suffix in (".pyx", ".pxd")}
    total, missing = 0, []
    with tempfile.TemporaryDirectory() as where:
        counts = sorted((tree / "src").glob("*.gcda"))
        subprocess.run(["gcov", "-b", "-c", "--json-format", *counts], cwd=where, check=True,
                       capture_output=True)
        for name in Path(where).glob("*.gcov.json.gz"):
            for file in json.loads(gzip.open(name).read())["files"]:
                source = Path(file["file"]).name
                if source not in wanted:
                    continue
                text = (tree / "src" / source).read_text().splitlines()
                for line in file["lines"]:
                    if line["line_number"] == 1:        # the module's set-up stands there
                        continue
                    for k, branch in enumerate(line["branches"]):
                        total += 1
                        if not branch["count"]:
                            number, ways = line["line_number"], len(line["branches"])
                            missing.append(f"{source}:{number}: way {k + 1} of {ways} never taken "
                                           f"(line ran {line['count']} times): "
                                           f"{text[number - 1].strip()}")
    return total, missing


def main(argv: list[str]) -> int:
    cut = argv.index("--") if "--" in argv else len(argv)
    modules, tests = argv[:cut] or MODULES, argv[cut + 1:] or TESTS
    with tempfile.TemporaryDirectory() as where:
        tree = Path(where) / "tree"
        shutil.copytree(ROOT, tree, symlinks=True,
                        ignore=shutil.ignore_patterns(".git", ".venv", "*.c.new", "results"))
        for module in modules:
            compile_counted(tree, module)
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", *tests], cwd=tree,
                              env={**os.environ, "PYTHONPATH": str(tree / "build/view")})
        if done.returncode:
            return done.returncode
        total, missing = untaken(tree, modules)
    for line in missing:
        print(line)
    print(f"{', '.join(modules)}: {total - len(missing)} of {total} branches taken, "
          f"{len(missing)} never")
    return 1 if missing or not total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
