"""A feature update: below 200 ns, deterministic, the same from Python in bulk.

Hot path: feature_update, the whole catalogue with bars of a minute, on the BOOK records of one
instrument of the local venue (quotes, trades and their arrivals), copied from an array into an
aligned record first.  One thread, pinned to the last core; the figure of the bare loop is the
target's, the percentiles include
one clock read each, whose cost stands beside them.

    python -m pytest bench/bench_feature.py --benchmark-only
    python bench/bench_feature.py
"""
from __future__ import annotations

import importlib.util
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build/view"))
import harness as h
import numpy

from hftpipe import schema
from hftpipe._feature import Features

LIMIT = 200                     # ns per update
REPEATS = 9


def trainer() -> Any:
    """``research/train_demo.py``: its markets are the input."""
    spec = importlib.util.spec_from_file_location(
        "train_demo", h.ROOT / "research/train_demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def naive(books: Any) -> float:
    """ns per state of eight of the numbers as a loop in numpy scalars would be written."""
    import math
    import time
    count = len(books)
    begin = time.perf_counter_ns()
    before = None
    fast = slow = variance = flow = size = rate = 0.0
    for row in books:
        bid, ask = int(row["bid"]), int(row["ask"])
        bid_qty, ask_qty = int(row["bid_qty"]), int(row["ask_qty"])
        mid, spread, top = (bid + ask) / 2, ask - bid, bid_qty + ask_qty
        if before is None:
            fast = slow = mid
            size = top / 2
        else:
            change = math.log(mid / before[4])
            fast += (mid - fast) * 2 / 17
            slow += (mid - slow) * 2 / 129
            variance += (change * change - variance) * 2 / 65
            e = (bid_qty * (bid >= before[0]) - before[2] * (bid <= before[0])
                 - ask_qty * (ask <= before[1]) + before[3] * (ask >= before[1]))
            flow += (e - flow) * 2 / 17
            size += (top / 2 - size) * 2 / 17
        rate += (bool(int(row["flags"]) & 16) - rate) * 2 / 65
        depth = int(row["bid_depth"]), int(row["ask_depth"])
        before = (bid, ask, bid_qty, ask_qty, mid)
        numpy.array([math.log(mid / fast), math.log(mid / slow), math.sqrt(variance),
                     spread / mid, (bid_qty - ask_qty) / top, flow / size, rate,
                     math.log((1 + depth[0] / 1e9) / (1 + depth[1] / 1e9))], numpy.float32)
    return (time.perf_counter_ns() - begin) / count


def work(count: int) -> dict[str, Any]:
    m = h.compiled("_signal_loop")
    books = trainer().market(77, 8_000, "quotes")
    books = numpy.concatenate([books] * (count // len(books) + 1))[:count]
    names = [f.name for f in schema.CATALOGUE]
    wanted, warm = Features(names).update_many(books)
    bare, times, bulk, plain = [], [], [], []
    for _ in range(REPEATS):
        each, whole, last = m.features(books)
        assert last.tobytes() == wanted[-1].tobytes()       # what was timed is what is right
        times.append(each)
        bare.append(whole)
        bulk.append(h.call_ns("f(b)", {"f": Features(names).update_many, "b": books}, 1) / count)
        plain.append(naive(books[:2_000]))
    row = books[-1:]
    return {
        "states": count, "features": len(names),
        "usable": int((warm | (wanted != 0).any(axis=1)).sum()),
        "ns per update": h.target(statistics.median(bare), LIMIT),
        "percentiles, clock included": h.percentiles(numpy.concatenate(times)),
        "clock": m.clock(100_000),
        "Python: update_many, per state": statistics.median(bulk),
        "Python: update, per call": h.call_ns(
            "f(r)", {"f": Features(names).update, "r": row}, 2_000),
        "Python scalars, eight of the features": statistics.median(plain),
        "ratio to those": 1 / h.median_ratio(plain, bare),
    }


def measure() -> dict[str, Any]:
    core = max(h.os.sched_getaffinity(0))
    result: dict[str, Any] = h.pinned([(core, work, (400_000 if h.FULL else 40_000,))])[0]
    return result | {"fingerprint": f"0x{schema.FEATURES.fingerprint:016x}"}


def test_feature(benchmark: Any) -> None:
    result = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info.update(result)
    h.save("feature", result)
    if h.FULL:
        assert result["ns per update"]["met"], result


if __name__ == "__main__":
    figures = measure()
    print(h.machine_line())
    print(h.save("feature", figures))
    for key, value in figures.items():
        print(f"  {key:40}", value)
    if not figures["ns per update"]["met"]:
        sys.exit("target missed")
