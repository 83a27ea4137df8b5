"""Tick to order: our fused pipeline beside the chain a user would write today, interleaved.

One core has the generator and order sink (``peer.py``), the other the pipeline under test.
``R`` is frame read to request handed to the socket; ``E`` is the peer's own: frame handed to
its socket to first byte of the order read from its socket.  One quote, one order; the next quote
waits for its pace and for the order.  The machine's own gaps stand beside the latencies.  ``tls``
is ours with both ends encrypted and certificates verified.

    HFTPIPE_BENCH=full python -m pytest bench/bench_pipe.py -s      # at least 100,000 orders
"""
from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench import harness

HERE = Path(__file__).resolve().parent
ROUNDS, OURS, USERS = (5, 20_100, 800) if harness.FULL else (1, 1_500, 200)
RATE = {"ours": 1000, "tls": 1000, "user": 500}
WARM_UP = 500 if harness.FULL else 100
WANTED = {"p50_us": 10, "p99_us": 40, "ratio_p50": 60, "ratio_p99": 20}


def once(which: str, count: int) -> dict[str, Any]:
    """One round of one chain against a fresh peer; "tls" is ours over wss:// and https://."""
    house, hot = harness.two_cores()
    environment, certificate, extra = dict(os.environ), [], []
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "peer.json"
        if which == "tls":
            from tests.tls import Authority
            authority = Authority(Path(place))
            environment["SSL_CERT_FILE"] = str(authority.file)
            certificate, extra = [str(authority.issue())], ["tls"]
        peer = subprocess.Popen(
            [sys.executable, str(HERE / "peer.py"), str(count + 50), str(RATE[which]), str(house),
             str(out), *certificate], stdout=subprocess.PIPE, text=True)
        try:
            assert peer.stdout is not None
            port = json.loads(peer.stdout.readline())["port"]
            done = subprocess.run(
                [sys.executable, str(HERE / f"pipe_{'user' if which == 'user' else 'ours'}.py"),
                 str(hot), str(port), str(count), str(min(WARM_UP, count // 4)), *extra],
                env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
            peer.wait(60)
        finally:
            peer.kill()
            peer.wait()
        found = json.loads(done.stdout.splitlines()[-1])
        stamps = json.loads(out.read_text())
    ends = [b - a for a, b in zip(stamps["sent"], stamps["received"], strict=False) if b]
    found["end_to_end"] = harness.percentiles(ends[min(WARM_UP, count // 4):])
    return found


@pytest.mark.filterwarnings("ignore")
def test_tick_to_order(benchmark: Any) -> None:
    """Ours, and the user's chain where its packages are installed."""
    packages = ("alpaca", "talib")
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    chains = {"ours": OURS, "tls": OURS // 4} | ({} if missing else {"user": USERS})
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in chains}

    def run() -> None:
        for _ in range(ROUNDS):
            for name, count in chains.items():
                rounds[name].append(once(name, count))

    benchmark.pedantic(run, rounds=1, iterations=1)
    _, hot = harness.two_cores()
    result: dict[str, Any] = {"gaps": harness.gaps(hot, 10.0 if harness.FULL else 1.0),
                              "rounds": rounds, "orders": sum(r["sent"] for r in rounds["ours"])}

    def median(name: str, q: str) -> float:
        return statistics.median(r["hops"]["tick_to_order"][q] for r in rounds[name]) / 1000

    print("\n" + harness.machine_line())
    for name in chains:
        ends = {q: statistics.median(r["end_to_end"][q] for r in rounds[name]) / 1000
                for q in ("p50", "p99")}
        print(f"{name:<6} R p50 {median(name, 'p50'):8.2f} us   p99 {median(name, 'p99'):8.2f} us"
              f"   E p50 {ends['p50']:8.2f} us   p99 {ends['p99']:8.2f} us")
    for hop in ("feed", "book", "signal", "model", "risk", "gateway", "send"):
        values = [r["hops"][hop] for r in rounds["ours"] if hop in r["hops"]]
        print(f"  {hop:<8} p50 {statistics.median(v['p50'] for v in values) / 1000:8.2f} us   "
              f"p99 {statistics.median(v['p99'] for v in values) / 1000:8.2f} us")
    result["p50_us"] = harness.target(median("ours", "p50"), WANTED["p50_us"])
    result["p99_us"] = harness.target(median("ours", "p99"), WANTED["p99_us"])
    if missing:
        print(f"the user's chain is left out: {', '.join(missing)} not installed")
    else:
        for q in ("p50", "p99"):
            ratio = statistics.median(
                u["hops"]["tick_to_order"][q] / o["hops"]["tick_to_order"][q]
                for o, u in zip(rounds["ours"], rounds["user"], strict=True))
            result[f"ratio_{q}"] = {"value": ratio, "wanted_at_least": WANTED[f"ratio_{q}"]}
            print(f"user / ours at {q}: {ratio:.0f}   wanted at least {WANTED[f'ratio_{q}']}")
    print("gaps of the core, by least length:", result["gaps"])
    benchmark.extra_info.update(result)
    harness.save("pipe", result)
