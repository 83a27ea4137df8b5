"""Memory of every process of a run over time: after warm-up it must not grow.

    HFTPIPE_BENCH=full python -m pytest bench/bench_memory.py -s     # 10 minutes

Samples the resident set of each process of a demo run every few seconds.  Growth is the median of
the last fifth of the samples less the median of the fifth behind the warm-up.
"""
from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import harness

SECONDS, WARM_UP = (600, 60) if harness.FULL else (12, 4)
ALLOWED_KIB = {"hot": 256, "store": 8192}       # the rest: half a mebibyte
DEFAULT_KIB = 512


def resident(pid: int) -> int | None:
    """KiB of anonymous and file pages resident, shared memory aside."""
    try:
        fields = dict(line.split(":", 1) for line in
                      Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    except OSError:
        return None
    if "RssAnon" not in fields:
        return None
    return int(fields["RssAnon"].split()[0])


def children(pid: int) -> dict[str, int]:
    """Processes that the supervisor started, by name."""
    out = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        args = Path(f"/proc/{child}/cmdline").read_bytes().decode().split("\0")
        if "--process" in args:
            out[args[args.index("--process") + 1]] = int(child)
    return out


def test_memory_does_not_grow(benchmark: Any) -> None:
    """Ten minutes of the demo at its usual rate."""
    samples: dict[str, list[int]] = {}

    def run() -> None:
        with tempfile.TemporaryDirectory() as place:
            started = subprocess.Popen(
                [sys.executable, "-m", "hftpipe", "--run-dir", f"{place}/run", "start"],
                stderr=subprocess.PIPE, text=True)
            try:
                assert started.stderr is not None
                for line in started.stderr:
                    if line.startswith("RUNNING"):
                        break
                names = {**children(started.pid), "supervisor": started.pid}
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    time.sleep(SECONDS / 120)           # the clock is what is measured against
                    for name, pid in names.items():
                        if (size := resident(pid)) is not None:
                            samples.setdefault(name, []).append(size)
            finally:
                started.send_signal(signal.SIGTERM)
                started.communicate(timeout=30)

    benchmark.pedantic(run, rounds=1, iterations=1)
    result: dict[str, Any] = {"seconds": SECONDS, "processes": {}}
    print("\n" + harness.machine_line())
    for name, sizes in samples.items():
        behind = sizes[len(sizes) * WARM_UP // SECONDS:]
        part = max(len(behind) // 5, 1)
        first, last = statistics.median(behind[:part]), statistics.median(behind[-part:])
        limit = ALLOWED_KIB.get(name, DEFAULT_KIB)
        result["processes"][name] = {"first_kib": first, "last_kib": last,
                                     "growth_kib": harness.target(last - first, limit)}
        print(f"{name:<12} {first / 1024:8.1f} MiB -> {last / 1024:8.1f} MiB   "
              f"growth {last - first:+.0f} KiB, wanted at most {limit}")
    benchmark.extra_info.update(result)
    harness.save("memory", result)
    assert samples, "no process was seen"
