"""Indicators beside TA-Lib: a whole column, one value at a time, and TA-Lib's streaming functions.

Column: our function and TA-Lib's over the same 100,000 rows, interleaved, ns per row; the streaming
object fed one value a time in C *is* our column, so its price is the same.  Update: one call from
Python against ``talib.stream``, which looks at the whole column again.

    HFTPIPE_BENCH=full python -m pytest bench/bench_indicator.py -s
    python bench/bench_indicator.py
"""
from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build/view"))
import harness as h
import numpy
import pytest

from hftpipe import indicators as I

COLUMN, STREAMING, STREAM = 1.3, 3.0, 40.0      # at most, at most, at least
ROWS, REPEATS = 100_000, 25 if h.FULL else 7


def series() -> dict[str, Any]:
    random = numpy.random.default_rng(1)
    close = 100 * numpy.exp(numpy.cumsum(random.standard_normal(ROWS) * 1e-3))
    spread = abs(random.standard_normal(ROWS)) * 0.05 + 0.01
    return {"c": close, "h": close + spread, "l": close - spread,
            "v": random.integers(1, 1000, ROWS).astype(float)}


def pairs() -> dict[str, tuple[Callable[..., Any], Callable[..., Any], Any, Any, str]]:
    """By name: our column, TA-Lib's, our object, TA-Lib's for streams, columns they take."""
    import talib
    from talib import stream
    return {
        "sma 20": (I.sma, lambda c: talib.SMA(c, 20), I.SMA, lambda c: stream.SMA(c, 20), "c"),
        "ema 9": (I.ema, lambda c: talib.EMA(c, 9), I.EMA, lambda c: stream.EMA(c, 9), "c"),
        "wma 20": (I.wma, lambda c: talib.WMA(c, 20), I.WMA, lambda c: stream.WMA(c, 20), "c"),
        "rsi 14": (I.rsi, talib.RSI, I.RSI, stream.RSI, "c"),
        "macd": (I.macd, talib.MACD, I.MACD, stream.MACD, "c"),
        "bollinger": (I.bollinger, lambda c: talib.BBANDS(c, 20), I.Bollinger,
                      lambda c: stream.BBANDS(c, 20), "c"),
        "atr 14": (I.atr, talib.ATR, I.ATR, stream.ATR, "hlc"),
        "stochastic": (I.stochastic, lambda a, b, c: talib.STOCH(a, b, c, 14, 3, 0, 3, 0),
                       I.Stochastic, lambda a, b, c: stream.STOCH(a, b, c, 14, 3, 0, 3, 0), "hlc"),
        "obv": (I.obv, talib.OBV, I.OBV, stream.OBV, "cv"),
        "mfi 14": (I.mfi, talib.MFI, I.MFI, stream.MFI, "hlcv"),
        "momentum 10": (I.momentum, talib.ROC, I.Momentum, stream.ROC, "c"),
    }


def work(repeats: int) -> dict[str, Any]:
    data, result = series(), {}
    clock = __import__("time").perf_counter_ns
    for name, (ours, theirs, made, stream, takes) in pairs().items():
        columns = [data[k] for k in takes]
        # The defaults of both are what the name says; equality is the tests' business.
        times: dict[str, list[float]] = {"ours": [], "talib": []}
        for _ in range(repeats):
            for key, function in (("ours", ours), ("talib", theirs)):
                began = clock()
                function(*columns)
                times[key].append((clock() - began) / ROWS)
        one = made()
        one.update_many(*columns)
        values = [float(c[-1]) for c in columns]
        calls = {"update": h.call_ns("f(*v)", {"f": one.update, "v": values}, 2_000),
                 "stream": h.call_ns("f(*v)", {"f": stream, "v": columns}, 20)}
        result[name] = {
            "column, ns per row": statistics.median(times["ours"]),
            "TA-Lib": statistics.median(times["talib"]),
            "ratio": h.target(h.median_ratio(times["ours"], times["talib"]), COLUMN),
            "update from Python, ns": calls["update"], "talib.stream, ns": calls["stream"],
            "below talib.stream": calls["stream"] / calls["update"]}
    return result


def measure() -> dict[str, Any]:
    core = max(h.os.sched_getaffinity(0))
    result: dict[str, Any] = h.pinned([(core, work, (REPEATS,))])[0]
    return result


def show(result: dict[str, Any]) -> list[str]:
    """Print the table; what misses."""
    print(f"{'':12} {'ours':>8} {'TA-Lib':>8}  {'ratio':>6}   {'update':>8} {'stream':>10} times")
    missed = []
    for name, r in result.items():
        print(f"{name:12} {r['column, ns per row']:5.2f} ns {r['TA-Lib']:5.2f} ns  "
              f"{r['ratio']['value']:6.2f}   {r['update from Python, ns']:5.0f} ns "
              f"{r['talib.stream, ns'] / 1000:7.1f} us {r['below talib.stream']:5.0f}")
        if not r["ratio"]["met"]:
            missed.append(f"{name}: {r['ratio']['value']:.2f} of TA-Lib, wanted {COLUMN}")
        if r["ratio"]["value"] > STREAMING:
            missed.append(f"{name}: {r['ratio']['value']:.2f} of TA-Lib, wanted {STREAMING} of one "
                          "value at a time")
        if r["below talib.stream"] < STREAM:
            missed.append(f"{name}: {r['below talib.stream']:.0f} times below talib.stream, "
                          f"wanted {STREAM:g}")
    return missed


def test_indicator(benchmark: Any) -> None:
    pytest.importorskip("talib", reason="TA-Lib is what it is compared with")
    result = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info.update(result)
    h.save("indicator", result)
    print("\n" + h.machine_line())
    missed = show(result)
    if h.FULL:
        assert not missed, missed


if __name__ == "__main__":
    figures = measure()
    print(h.machine_line())
    missed = show(figures)
    print(h.save("indicator", figures))
    sys.exit("\n".join(missed) or None)
