"""Build an sdist and a wheel, install them into empty environments, and use them from outside.

    make dist                            every Python 3.11 to 3.13 that is found
    python tests/dist.py PYTHON ...      these

The wheel is made from the sdist, as an installer makes it, and installed for the first Python;
the others compile the sdist for themselves.  Nothing runs inside the checkout, so what works here
works from the package alone: migrations, configuration, model, declarations to cimport.
"""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = ("3.11", "3.12", "3.13")
# The wheel must carry these beside the compiled modules.
FILES = ("py.typed", "_ring.pxd", "_ring.pyi", "_ring.pyx", "_schema.h", "_strategy.pxd",
         "sql/0001_init.sql", "conf/hftpipe.toml", "models/demo.onnx")
AUTHOR = """
from hftpipe._strategy cimport Strategy, hp_context_t, hp_out_t, STRATEGY_VERSION

cdef class Quiet(Strategy):
    def __cinit__(self, *args):
        self.version = STRATEGY_VERSION

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil:
        return 0
"""
BUILD_AUTHOR = """
import hftpipe
from Cython.Build import cythonize
from setuptools import Extension, setup
setup(name="quiet", ext_modules=cythonize(
    [Extension("quiet", ["quiet.pyx"], include_dirs=[hftpipe.get_include()])],
    language_level=3))
"""


def say(text: str) -> None:
    print(f"dist  {text}", flush=True)


def run(*args: object, cwd: Path) -> str:
    """Output of a command that must succeed, without any variable of ours or of the caller."""
    env = {k: v for k, v in os.environ.items()
           if not k.startswith(("HFTPIPE", "PYTHON", "VIRTUAL_ENV", "ALPACA_", "APCA_"))}
    done = subprocess.run([str(a) for a in args], cwd=cwd, env=env, capture_output=True, text=True,
                          check=False, timeout=1200)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, args))} ended with {done.returncode}\n"
                 f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def pythons() -> list[str]:
    """One interpreter per wanted version: on the path, or among pyenv's."""
    versions = []
    if shutil.which("pyenv"):
        root = Path(subprocess.run(["pyenv", "root"], capture_output=True, text=True,
                                   check=True).stdout.strip())
        versions = sorted(root.glob("versions/*/bin/python3"))
    out = []
    for version in WANTED:
        for candidate in (f"python{version}", *map(str, versions), sys.executable):
            found = shutil.which(candidate)
            if found and subprocess.run(
                    [found, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
                    capture_output=True, text=True, check=False).stdout.strip() == version:
                out.append(found)
                break
        else:
            say(f"no Python {version} found: not tried")
    return out


def environment(python: str, where: Path) -> Path:
    """An empty virtual environment; its ``bin``."""
    run(python, "-m", "venv", where, cwd=where.parent)
    return where / "bin"


def use(bin_: Path, where: Path) -> None:
    """What a user does first, in an empty folder."""
    package = Path(run(bin_ / "python", "-c", "import hftpipe; print(hftpipe.get_include())",
                       cwd=where).strip())
    missing = [name for name in FILES if not (package / name).exists()]
    assert not missing, f"the installed package lacks {', '.join(missing)}"
    assert package.is_relative_to(bin_.parent), f"hftpipe was found at {package}"
    command = bin_ / "hftpipe"
    run(command, "--run-dir", where / "run", "start", "--dry-run", cwd=where)
    found = json.loads(run(command, "--run-dir", where / "run", "demo", "--for", "4s",
                           "--record", "own.rec", "-o", "json", cwd=where))
    assert found["orders"] > 0 and found["rows_stored"] == found["events_recorded"], found
    again = json.loads(run(command, "backtest", "--data", "own.rec", "-o", "json", cwd=where))
    assert again["events"] > 0, again
    say(f"  demo: {found['events']} events, {found['orders']} orders, {found['rows_stored']} rows "
        f"equal those recorded; backtest of it: {again['orders']} orders")


def author(bin_: Path, where: Path) -> None:
    """A strategy in somebody else's package compiles against the installed one and loads."""
    run(bin_ / "python", "-m", "pip", "install", "-q", "setuptools>=80", "Cython>=3.2,<4",
        cwd=where)
    (where / "quiet.pyx").write_text(AUTHOR)
    (where / "setup.py").write_text(BUILD_AUTHOR)
    run(bin_ / "python", "setup.py", "-q", "build_ext", "--inplace", cwd=where)
    run(bin_ / "python", "-c", "import quiet; assert quiet.Quiet().version == 1", cwd=where)
    copy = shutil.copytree(ROOT / "examples/momentum", where / "momentum",
                           ignore=shutil.ignore_patterns("*.so", "*.c", "build", "*.egg-info"))
    run(bin_ / "python", "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", copy,
        cwd=where)
    run(bin_ / "python", "-c",
        "from hftpipe import strategies; assert 'momentum' in strategies.names()", cwd=where)
    found = json.loads(run(bin_ / "hftpipe", "-C", copy / "momentum.toml", "backtest", "--data",
                           "own.rec", "-o", "json", cwd=where))
    assert found["events"] > 0 and found["intents"] > 0, found
    say(f"  momentum, built there: {found['intents']} intents in a backtest")


def main(argv: list[str]) -> int:
    found = argv or pythons()
    if not found:
        sys.exit(f"no Python of {', '.join(WANTED)} found")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hftpipe-dist-") as name:
        top = Path(name)
        bin_ = environment(found[0], top / "tools")
        run(bin_ / "python", "-m", "pip", "install", "-q", "build", cwd=top)
        run(bin_ / "python", "-m", "build", "--outdir", top / "dist", ROOT, cwd=top)
        (sdist,), (wheel,) = top.glob("dist/*.tar.gz"), top.glob("dist/*.whl")
        say(f"built {sdist.name}, {sdist.stat().st_size // 1024} KiB, and {wheel.name}, "
            f"{wheel.stat().st_size // 1024} KiB ({time.monotonic() - began:.0f} s)")
        for i, python in enumerate(found):
            where = top / f"use{i}"
            where.mkdir()
            bin_ = environment(python, top / f"env{i}")
            run(bin_ / "python", "-m", "pip", "install", "-q", sdist if i else wheel, cwd=where)
            version = run(bin_ / "python", "-V", cwd=where).strip()
            say(f"{version}: installed from the {'sdist' if i else 'wheel'} "
                f"({time.monotonic() - began:.0f} s)")
            use(bin_, where)
            author(bin_, where)
    say(f"all well, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
