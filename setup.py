"""Build the compiled half of hftpipe; everything else is in pyproject.toml.

``src/`` is the package.  Cython, setuptools' editable installs, mypy and
pyright all find a package by the name of its folder, so a link
``build/view/hftpipe -> src`` is made here and they are all pointed at it.
``sql/`` and ``conf/`` travel as the data of ``hftpipe.sql`` and ``hftpipe.conf``; ``src/halt.c``
becomes the program ``hftpipe-halt``, in ``build/bin`` and beside ``hftpipe`` where it is installed.

    HFTPIPE_BUILD=release    -O3, no checks                       (default)
    HFTPIPE_BUILD=generic    -O2, as a distribution would
    HFTPIPE_BUILD=debug      bounds checks, -O0 -g, assertions
    HFTPIPE_BUILD=trace      line tracing for coverage
    HFTPIPE_BUILD=asan       address + undefined sanitizers
    HFTPIPE_BUILD=faults     -O1 with the fault points of src/_fault.h; `make faults` puts it beside
"""
import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Distribution, Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

os.chdir(Path(__file__).resolve().parent)
BUILD = os.environ.get("HFTPIPE_BUILD", "release")
VIEW = Path("build/view")

VIEW.mkdir(parents=True, exist_ok=True)
if not (VIEW / "hftpipe").exists():
    (VIEW / "hftpipe").symlink_to("../../src", target_is_directory=True)

CHECKED = BUILD in ("debug", "trace", "asan")
DIRECTIVES = {
    "language_level": "3",
    "auto_pickle": False,               # a ring handle is not a value
    "boundscheck": CHECKED,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": CHECKED,
    "linetrace": BUILD == "trace",
}
WARN = ["-Wall", "-Wno-unused-function", "-Wno-unreachable-code"]
CFLAGS = {
    "release": ["-O3", "-g1", "-fno-plt", *WARN],
    "generic": ["-O2", "-g1", *WARN],
    "debug": ["-O0", "-g", "-UNDEBUG", "-DHP_DEBUG=1", *WARN],
    "trace": ["-O0", "-g"],
    "faults": ["-O1", "-g1", "-DHP_FAULTS=1", *WARN],
    "asan": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
}
if BUILD not in CFLAGS:
    sys.exit(f"HFTPIPE_BUILD must be one of {', '.join(CFLAGS)}, was {BUILD!r}")
MACROS = [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]


def units() -> list[Extension]:
    """Every ``src/**/_name.pyx`` is the extension ``hftpipe.**._name``."""
    return [Extension(
        ".".join(("hftpipe", *p.relative_to("src").with_suffix("").parts)), [str(p)],
        include_dirs=["src"], extra_compile_args=CFLAGS[BUILD],
        extra_link_args=["-fsanitize=address,undefined"] if BUILD == "asan" else [],
        define_macros=MACROS if BUILD == "trace" else [],
        depends=sorted(map(str, Path("src").rglob("*.h"))),
        libraries=["rt"] if sys.platform == "linux" else [],
    ) for p in sorted(Path("src").rglob("*.pyx"))]


HELPER = Path("build/bin/hftpipe-halt")
SANITIZE = ["-fsanitize=address,undefined"] if BUILD == "asan" else []


class BuildExt(build_ext):
    """The extensions, and the program that needs no Python."""

    def build_extensions(self) -> None:
        """Build both with the one compiler that was found."""
        super().build_extensions()
        newest = max(p.stat().st_mtime for p in (
            Path("src/halt.c"), Path("src/_control.h"), Path("src/_atomic.h")))
        if HELPER.exists() and HELPER.stat().st_mtime > newest and not self.force:
            return
        objects = self.compiler.compile(
            ["src/halt.c"], output_dir=self.build_temp, include_dirs=["src"],
            extra_postargs=["-std=gnu11", *CFLAGS[BUILD]])
        self.compiler.link_executable(objects, HELPER.name, output_dir=str(HELPER.parent),
                                      extra_postargs=SANITIZE)


class BuildScripts(Distribution().get_command_class("build_scripts")):  # type: ignore[misc]
    """Copies what BuildExt made: the base class would look for a first line of Python."""

    def run(self) -> None:
        """Put the program where it is installed from."""
        self.run_command("build_ext")
        self.mkpath(self.build_dir)
        target = Path(self.build_dir, HELPER.name)
        shutil.copyfile(HELPER, target)
        target.chmod(0o755)


setup(
    cmdclass={"build_ext": BuildExt, "build_scripts": BuildScripts},
    scripts=[str(HELPER)],
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    package_dir={"": str(VIEW), "hftpipe.sql": "sql", "hftpipe.conf": "conf"},
    packages=[*find_packages(str(VIEW)), "hftpipe.sql", "hftpipe.conf"],
    package_data={"": ["*.pxd", "*.pyx", "*.pyi", "*.h", "py.typed", "*.onnx", "*.json"],
                  "hftpipe.sql": ["*.sql"], "hftpipe.conf": ["*.toml"]},
    ext_modules=cythonize(
        units(), include_path=[str(VIEW)], compiler_directives=DIRECTIVES,
        force=CHECKED, nthreads=0 if sys.platform != "linux" else (os.cpu_count() or 1),
        show_all_warnings=True),
)
