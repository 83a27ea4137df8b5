"""What the local venue can serve from one core: so that it never is what a benchmark measures.

The venue is a process on one core; one client of its data stream and one of its orders are on the
other.  ``asked`` is 20,000 messages per second to one client and 500 orders per second, alone and
together; ``most`` asks for more than there can be.  ``cpu`` is the venue's own share of its core,
user and kernel.

    HFTPIPE_BENCH=full python bench/bench_venue.py
    python -m pytest bench/bench_venue.py -s
"""
from __future__ import annotations

import os
import time
from typing import Any

import numpy

from bench import harness
from hftpipe import schema
from hftpipe.venue import spawn

SECONDS = 20.0 if harness.FULL else 3.0
MESSAGES, ORDERS = 20_000, 500
SYMBOLS = ("ACME", "BOLT", "CRUX", "DYNE")
CASES = {                       # messages per second, orders per second
    "messages": (MESSAGES, 0), "orders": (0, ORDERS), "both": (MESSAGES, ORDERS),
    "most messages": (1_000_000, 0), "most orders": (0, 1_000_000)}


def messages(address: dict[str, Any], seconds: float) -> int:
    """Messages that came in *seconds* to a client which takes them all."""
    from hftpipe.alpaca import session
    receiver = session.open_data_stream(address["data_stream"], address["key"],
                                        address["secret"], SYMBOLS, message_max=1 << 22)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = receiver.receive(5.0)
        head = data[0]
        count += head & 15 if head < 0xa0 else int.from_bytes(data[1:3], "big")
    receiver.close()
    return count


def orders(address: dict[str, Any], seconds: float, rate: int) -> tuple[int, list[int]]:
    """Orders acknowledged in *seconds* at *rate*, and ns from each send to its answer."""
    from hftpipe._clock import now_ns
    from hftpipe.alpaca._http import AlpacaWire
    wire = AlpacaWire(address["rest"], address["key"], address["secret"], time.time_ns(), SYMBOLS,
                      connections=8, rate_per_minute=0)
    wire.open()
    row = numpy.zeros(1, schema.dtype(schema.ORDER))[0]
    row["type"], row["tif"] = schema.ORDER_TYPE.MARKET, schema.TIF.IOC
    row["action"], row["qty"] = schema.ACTION.NEW, 10**9
    sent: dict[int, int] = {}
    taken: list[int] = []
    begin = now_ns()
    number, end = 0, begin + int(seconds * 1e9)
    while (now := now_ns()) < end or (len(taken) < number and now < end + 2 * 10**9):
        while now < end and number < rate * (now - begin) / 1e9:
            row["order"] = schema.event_id(schema.STREAM.SIGNAL, number + 1)
            row["instrument"], row["side"] = number % 4, 1
            if wire.send(row) != 1:
                break
            number += 1
            sent[int(row["order"])] = now_ns()
        found = first = wire.answer()
        while found is not None:
            if found["kind"] != schema.ORDER_EVENT_KIND.ACKED:
                raise RuntimeError(f"order {number} came to "
                                   f"{schema.ORDER_EVENT_KIND.label(int(found['kind']))}")
            taken.append(now_ns() - sent.pop(int(found["order"])))
            found = wire.answer()
        if first is None:
            time.sleep(0.0001)          # the messages' client has the same core
    wire.close()
    return len(taken), taken


def cpu(pid: int) -> float:
    """Seconds of processor that *pid* has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def case(rate: int, order_rate: int, seconds: float) -> dict[str, Any]:
    """One venue process, and what its clients got."""
    house, hot = harness.two_cores()
    with spawn("--rate", str(rate or 200), "--rate-limit", "0", "--cash", "100000000",
               "--symbols", ",".join(SYMBOLS)) as (_, address):
        os.sched_setaffinity(address["pid"], {hot})
        jobs: list[Any] = []
        if rate:
            jobs.append((house, messages, (address, seconds)))
        if order_rate:
            jobs.append((house, orders, (address, seconds, order_rate)))
        before, began = cpu(address["pid"]), time.monotonic()
        found = harness.pinned(jobs)
        used = (cpu(address["pid"]) - before) / (time.monotonic() - began)
    out: dict[str, Any] = {"cpu": used}
    if rate:
        out["messages_per_second"] = found.pop(0) / seconds
    if order_rate:
        count, taken = found.pop(0)
        out["orders_per_second"] = count / seconds
        out["answer_us"] = {k: v / 1e3 for k, v in harness.percentiles(taken).items()
                            if k in ("p50", "p99", "max")}
    return out


def measure(seconds: float) -> dict[str, dict[str, Any]]:
    """All cases."""
    return {name: case(*asked, seconds) for name, asked in CASES.items()}


def show(found: dict[str, dict[str, Any]]) -> str:
    """A table for people."""
    rows = [f"{'':<15}{'messages/s':>12}{'orders/s':>10}{'cpu':>7}{'answer p50':>13}{'p99':>11}"]
    for name, f in found.items():
        shown = f.get("answer_us")
        rows.append(f"{name:<15}{f.get('messages_per_second', 0):>12,.0f}"
                    f"{f.get('orders_per_second', 0):>10,.0f}{f['cpu']:>7.0%}"
                    + (f"{shown['p50']:>10,.0f} us{shown['p99']:>8,.0f} us" if shown else ""))
    return "\n".join(rows)


def test_capacity(benchmark: Any) -> None:
    """Every case runs, and what was asked for is what came."""
    found: dict[str, dict[str, Any]] = {}
    benchmark.pedantic(lambda: found.update(measure(SECONDS)), rounds=1, iterations=1)
    print("\n" + harness.machine_line() + "\n" + show(found))
    benchmark.extra_info.update(found)
    assert all(f["cpu"] > 0 for f in found.values())


if __name__ == "__main__":
    import json
    result = {"machine": harness.machine(), "cases": measure(SECONDS)}
    print(harness.machine_line())
    print(show(result["cases"]))
    if harness.FULL:
        harness.RESULTS.mkdir(exist_ok=True)
        (harness.RESULTS / "venue.json").write_text(json.dumps(result, indent=1) + "\n")
