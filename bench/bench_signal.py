"""The signal stage as it runs: at least 10,000 signals a second sustained, and how long each takes.

BOOK records of one instrument of the local venue go into the stage's ring; features, a strategy,
and what it decides come out, with everything that is stored about them.  Twice: the order-book
imbalance alone, and with the ONNX demo model beside it.  Sustained: records per second of the
stage while its ring never is empty, filling and draining left out of the time.  Latency: one record
in an empty ring, one call of the stage from Python, some 100 ns of it the call's.

    python -m pytest bench/bench_signal.py --benchmark-only
    python bench/bench_signal.py
"""
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build/view"))
import harness as h
import numpy
from bench_feature import trainer

from hftpipe import build, config, schema, worker

SUSTAINED = 10_000              # signals per second, at least
WITHOUT, WITH = 30_000, 80_000  # ns at p99: without the model, and with an inference's 50 us
BATCH = 512


def table() -> Any:
    out = numpy.zeros(1, schema.dtype(schema.INSTRUMENT))
    out["symbol"], out["tick"], out["lot"], out["min_qty"] = b"SYM", 10**7, 10**9, 10**9
    out["base_price"] = 100 * 10**9
    return out


def run(books: Any, kind: str) -> dict[str, Any]:
    """Figures of a stage with the demo's strategies of *kind* (a name, or both)."""
    settings = config.load()
    chosen = tuple(s.name for s in settings.strategy if kind == "both" or s.kind == kind)
    instruments = table()
    links = build.PrivateLinks()
    (stage,) = build.stages(
        ("signal",), links, settings, instruments,
        strategies=lambda: worker.strategies(settings, instruments, names=chosen))
    into = links.producer("book.signal")
    outs = [links.consumer(name) for name in ("signal.risk", "signal.store")]

    def drain() -> int:
        found = 0
        for ring in outs:
            n = len(ring.peek(ring.capacity))
            ring.release(n)
            ring.flush()
            found = found or n
        return found

    clock = time.perf_counter_ns
    spent = events = intents = 0
    for at in range(0, len(books) - BATCH, BATCH):
        assert into.push_many(books[at:at + BATCH]) == BATCH
        began = clock()
        while done := stage.do_work(BATCH):
            events += done
        spent += clock() - began
        intents += drain()
    each = []
    for at in range(min(len(books), 50_000)):
        into.push_many(books[at:at + 1])
        began = clock()
        stage.do_work(1)
        each.append(clock() - began)
        drain()
    return {"strategies": list(chosen), "events": events, "intents": intents,
            "signals per second": events / spent * 1e9, "ns per signal": spent / events,
            "latency, call included": h.percentiles(each)}


def work(count: int) -> dict[str, Any]:
    books = trainer().market(77, 8_000, "quotes")
    books = numpy.concatenate([books] * (count // len(books) + 1))[:count]
    books["instrument"] = 0
    out = {"imbalance": run(books, "imbalance"), "both": run(books, "both")}
    for name, limit in (("imbalance", WITHOUT), ("both", WITH)):
        figures = out[name]
        assert figures["intents"] > 0, "a stage that decides nothing measures nothing"
        figures["p99"] = h.target(figures["latency, call included"]["p99"], limit)
        figures["sustained"] = h.target(SUSTAINED / figures["signals per second"], 1.0)
    return out


def measure() -> dict[str, Any]:
    core = max(h.os.sched_getaffinity(0))
    return h.pinned([(core, work, (400_000 if h.FULL else 40_000,))])[0]


def test_signal(benchmark: Any) -> None:
    result = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info.update(result)
    h.save("signal", result)
    if h.FULL:
        assert all(r[k]["met"] for r in result.values() for k in ("p99", "sustained")), result


if __name__ == "__main__":
    figures = measure()
    print(h.machine_line())
    print(h.save("signal", figures))
    for name, values in figures.items():
        print(name)
        for key, value in values.items():
            print(f"  {key:30}", value)
