"""What every bench shares: the machine's own line, pinned processes, percentiles, JSON.

Run small by default, so that a bench can not rot; ``HFTPIPE_BENCH=full`` for figures worth
quoting.  Figures are ratios within one run, taken per repeat and then the median: absolute
times move by a quarter between runs of the same machine.
"""
from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import sysconfig
import time
import timeit
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
FULL = os.environ.get("HFTPIPE_BENCH") == "full"
FLAGS = {"release": ["-O3", "-fno-plt"], "generic": ["-O2"]}

COMPILE = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
source, where, view, src, *flags = sys.argv[1:]
sys.argv = ["bench", "-q", "build_ext", "--build-lib", where, "--build-temp", where + "/temp"]
name = source.rsplit("/", 1)[1][:-4]
setup(ext_modules=cythonize(
    [Extension(name, [source], include_dirs=[src], extra_compile_args=flags)],
    include_path=[view], build_dir=where, language_level=3, quiet=True))
"""


def compiled(name: str, build: str | None = None) -> ModuleType:
    """The module ``bench/<name>.pyx``, built on demand under ``build/bench``.

    *build* is ``release`` or ``generic``, by default what ``HFTPIPE_BUILD`` says.  What was
    built is kept until the source, a header or the flags change.
    """
    build = build or os.environ.get("HFTPIPE_BUILD", "release")
    if build not in FLAGS:
        raise ValueError(f"build must be one of {', '.join(FLAGS)}, was {build!r}")
    source = Path(__file__).with_name(f"{name}.pyx")
    text = hashlib.sha256(repr((sys.version, FLAGS[build])).encode())
    for path in sorted([source, *(ROOT / "src").glob("*.pxd"), *(ROOT / "src").glob("*.h")]):
        text.update(path.read_bytes())
    where = ROOT / "build/bench" / text.hexdigest()[:16]
    module = where / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        where.mkdir(parents=True, exist_ok=True)
        # In a process of its own: setuptools changes the one it runs in.
        done = subprocess.run(
            [sys.executable, "-c", COMPILE, str(source), str(where), str(ROOT / "build/view"),
             str(ROOT / "src"), *FLAGS[build]], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"cannot build {source.name}:\n{done.stdout}{done.stderr}")
    spec = importlib.util.spec_from_file_location(name, module)
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


# ---------------------------------------------------------------- the machine

def machine() -> dict[str, Any]:
    """What a figure must be read beside."""
    def first(path: str, default: str = "unknown") -> str:
        try:
            return Path(path).read_text().strip()
        except OSError:
            return default

    cpu = next((line.split(":", 1)[1].strip() for line in first("/proc/cpuinfo").splitlines()
                if line.startswith("model name")), platform.machine())
    git = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
                         capture_output=True, text=True, check=False)
    return {
        "cpu": cpu, "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(), "python": platform.python_version(),
        "governor": first("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "none"),
        "clocksource": first("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "load": os.getloadavg()[0], "commit": git.stdout.strip() or "unknown",
        "build": os.environ.get("HFTPIPE_BUILD", "release"),
    }


def machine_line() -> str:
    """The same in one line, for the head of a table."""
    m = machine()
    return (f"{m['cpu']}, {m['cores']} cores, Linux {m['kernel']}, governor {m['governor']}, "
            f"Python {m['python']}, {m['build']} build of {m['commit']}, load {m['load']:.1f}")


def gaps(core: int, seconds: float) -> dict[str, int]:
    """How often the machine takes *core* away from a busy loop, and for how long at most."""
    m = compiled("_machine")
    counts, = pinned([(core, m.gaps, (seconds, m.ns_per_tick()))])
    names = ("above_1us", "above_10us", "above_100us", "above_1ms", "above_10ms", "max_ns")
    return dict(zip(names, counts, strict=True))


def two_cores() -> tuple[int, int]:
    """The two cores to measure between: the last two this process may use.

    Core 0 takes most interrupts.  With one core there is nothing to measure: ``OSError``.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise OSError(f"two cores are needed, this process may use {len(cores)}")
    return cores[-2], cores[-1]


# ---------------------------------------------------------------- processes

def _child(core: int | None, function: Callable[..., Any], args: Sequence[Any], ready: Any,
           pipe: Any) -> None:
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)      # PR_SET_PDEATHSIG: never outlive the bench
        if core is not None:
            os.sched_setaffinity(0, {core})
        ready.wait(30)
        pipe.send((True, function(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise


def pinned(jobs: Sequence[tuple[int | None, Callable[..., Any], Sequence[Any]]],
           timeout: float = 120) -> list[Any]:
    """Run each ``(core, function, args)`` in a forked process on its core, all started at once.

    What they return, in order; ``RuntimeError`` with the traceback when one fails.
    """
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(len(jobs))
    running = []
    for core, function, args in jobs:
        ours, theirs = context.Pipe(duplex=False)
        p = context.Process(target=_child, args=(core, function, args, ready, theirs))
        with warnings.catch_warnings():
            # From 3.12 on: numpy's idle threads count as threads that a fork could catch.
            warnings.simplefilter("ignore", DeprecationWarning)
            p.start()
        theirs.close()
        running.append((p, ours))
    out: list[Any] = []
    deadline = time.monotonic() + timeout
    try:
        for p, pipe in running:
            if not pipe.poll(max(deadline - time.monotonic(), 0)):
                raise RuntimeError(f"no result after {timeout} s")
            try:
                good, value = pipe.recv()
            except EOFError:
                p.join()
                raise RuntimeError(f"a process ended with {p.exitcode} and no result") from None
            if not good:
                raise RuntimeError(value)
            out.append(value)
    finally:
        for p, pipe in running:
            p.join(5 if len(out) == len(running) else 0)
            if p.is_alive():
                p.kill()
                p.join()
            pipe.close()
    return out


# ---------------------------------------------------------------- figures

def percentiles(values: Any) -> dict[str, float]:
    """min, mean, p50, p99, p99.9 and max of an array."""
    v = numpy.asarray(values, dtype=float)
    p50, p99, p999 = numpy.percentile(v, [50, 99, 99.9])
    return {"count": int(v.size), "min": float(v.min()), "mean": float(v.mean()),
            "p50": float(p50), "p99": float(p99), "p999": float(p999), "max": float(v.max())}


def call_ns(statement: str, names: dict[str, Any], loops: int) -> float:
    """Nanoseconds of *statement*, run *loops* times in a loop over *names*; the loop included."""
    return timeit.timeit(statement, globals=names, number=loops) / loops * 1e9


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the repeats of ours to theirs, pair by pair."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def target(value: float, limit: float) -> dict[str, Any]:
    """A figure beside what it must reach."""
    return {"value": value, "limit": limit, "met": value <= limit}


def save(name: str, result: dict[str, Any]) -> Path:
    """Write ``bench/results/<name>.json`` (``<name>.small.json`` unless full) and say where."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / (f"{name}.json" if FULL else f"{name}.small.json")
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1, sort_keys=True) + "\n")
    return path
