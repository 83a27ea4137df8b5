"""The ring between two pinned processes, beside the bare cache line and beside its peers.

Hot path: claim, write 56 bytes in place, publish; poll, read 56 bytes, release.  Every record
is verified while it is timed.  One-way time is half a round trip, stamped on one core.

Baselines
    single      one line bounced: each side polls the line it then writes
    pair        one line per direction
    walk        the same on a new pair of lines for each message, as many as the ring has slots
    stream      64-byte slots with a sequence, hand-written C, cursors in registers

each at 0 to 8 PAUSE with PREFETCHW before the store, the best one counts.  `single` and `pair`
move to another of 64 lines after every 1,000 bounces: how far a line's home is from the two
cores differs twofold between lines of one machine, and a ring uses all of them.

    python bench/bench_ring.py                    small: a few seconds, may be noise
    HFTPIPE_BENCH=full python bench/bench_ring.py    the figures of docs/performance.md
"""
from __future__ import annotations

import importlib
import mmap
import os
import queue
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context, shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness as h

from hftpipe import _ring, schema

R = schema.MARKET
CAPACITIES = (1024, 16384)
PAUSES = (0, 1, 2, 3, 4, 6, 8)
REPEATS = 9 if h.FULL else 2
PINGS = 60_000 if h.FULL else 8_000
STREAM = 4_000_000 if h.FULL else 400_000
BURST = 64
PYTHON_LOOPS = 400_000 if h.FULL else 20_000
PEER_PINGS = 20_000 if h.FULL else 1_000
PEER_STREAM = 200_000 if h.FULL else 10_000
fork = get_context("fork")


# ---------------------------------------------------------------- pieces

class Bench:
    """What all measurements share: compiled loops, the length of a tick, the two cores."""

    def __init__(self) -> None:
        self.c = h.compiled("_ringbench")
        machine = h.compiled("_machine")
        self.tick = machine.ns_per_tick()
        self.stamp = min(machine.stamp_ns(self.tick) for _ in range(9))
        self.near, self.far = h.two_cores()

    def one_way(self, fresh: Callable[[], None], ping: Callable[[Any], int],
                pong: Callable[[], Any]) -> dict[str, float]:
        """Half round trips in ns; the first tenth is warm-up."""
        def timed() -> tuple[int, Any]:
            out = np.zeros(PINGS, "u8")
            return ping(out), out

        for _ in range(5):
            fresh()
            (elapsed, out), _ = h.pinned([(self.near, timed, ()), (self.far, pong, ())])
            ns = out * (self.tick / 2)
            # The loop is the stamped work and the stamps.  Less means that work was missed, or
            # that the process was off its core between two stamps: then take it again.
            whole = (elapsed * self.tick / PINGS - self.stamp) / 2
            if ns.mean() > 0.9 * whole:
                break
        else:
            if h.FULL:
                raise RuntimeError(f"stamps saw {ns.mean():.0f} of {whole:.0f} ns, five times: "
                                   "the machine is too busy to measure")
        return {**h.percentiles(ns[PINGS // 10:]), "agreement": float(ns.mean() / whole)}

    def bare(self, both: int, pause: int, stay: int, apart: int) -> dict[str, float]:
        memory = np.frombuffer(mmap.mmap(-1, 256 * apart), "u8")

        def fresh() -> None:
            memory[:] = 0

        return self.one_way(
            fresh, lambda out: self.c.bare_ping(touched(memory), both, 1, pause, stay, apart, out),
            lambda: self.c.bare_pong(touched(memory), both, 1, pause, stay, apart, PINGS))

    def ring(self, capacity: int, pause: int) -> dict[str, float]:
        there, back = region(capacity), region(capacity)

        def fresh() -> None:
            _ring.format(there, R)
            _ring.format(back, R)

        def ping(out: Any) -> int:
            elapsed, total = self.c.ping(end(there, True), end(back, False), out, pause)
            assert total == 7 * PINGS * (PINGS - 1) // 2, "records were torn or lost"
            return int(elapsed)

        return self.one_way(fresh, ping, lambda: self.c.pong(
            end(there, False), end(back, True), PINGS, pause))

    def streamed(self, produce: Callable[[], Any], consume: Callable[[], Any]) -> float:
        """ns per record, every word of every record summed."""
        (elapsed, total), _ = h.pinned([(self.near, consume, ()), (self.far, produce, ())])
        assert total == 7 * STREAM * (STREAM + 1) // 2, "records were torn or lost"
        return float(elapsed * self.tick / STREAM)

    def bare_stream(self, capacity: int, behind: bool, pause: int) -> float:
        memory = np.frombuffer(mmap.mmap(-1, 256 + 64 * capacity), "u8")
        memory[:] = 0
        return self.streamed(
            lambda: self.c.bare_produce(touched(memory), capacity, STREAM),
            lambda: self.c.bare_consume(touched(memory), capacity, STREAM, behind, pause))

    def ring_stream(self, capacity: int, behind: bool, burst: int, pause: int) -> float:
        memory = region(capacity)
        return self.streamed(
            lambda: self.c.produce(end(memory, True), STREAM, burst),
            lambda: self.c.consume(end(memory, False), STREAM, burst, behind, pause))


def region(capacity: int) -> mmap.mmap:
    memory = mmap.mmap(-1, _ring.footprint(R, capacity))
    _ring.format(memory, R)
    return memory


def end(memory: mmap.mmap, producer: bool) -> _ring.Ring:
    """One end, taken in the process that uses it; pages mapped before anything is timed."""
    touched(memory)
    return _ring.Ring(memory, R, producer)


def touched(memory: Any) -> Any:
    """*memory*, every page of it mapped in this process as ``shm.Segment`` does it."""
    view = np.frombuffer(memory, "u8")
    assert view[::512].sum() >= 0
    return memory


def best(runs: list[dict[str, Any]], key: str) -> Any:
    """The setting whose median of *key* over the repeats is least, and its figures."""
    return min(runs[0], key=lambda s: statistics.median(run[s][key] for run in runs))


# ---------------------------------------------------------------- the ring and the hardware

def measure_latency(b: Bench) -> dict[str, Any]:
    """Repeats are interleaved: whatever the machine does meanwhile hits all of them."""
    runs: list[dict[str, dict[str, float]]] = []
    ours = PAUSES[:5]
    for _ in range(REPEATS):
        run: dict[str, dict[str, float]] = {}
        for p in PAUSES:
            run[f"single {p}"] = b.bare(0, p, 1000, 64)
            run[f"pair {p}"] = b.bare(1, p, 1000, 64)
            for capacity in CAPACITIES:
                run[f"walk {capacity} {p}"] = b.bare(1, p, 1, capacity)
        for capacity in CAPACITIES:
            for p in ours:
                run[f"ring {capacity} {p}"] = b.ring(capacity, p)
        runs.append(run)

    def pick(prefix: str) -> str:
        chosen = [{k: v for k, v in run.items() if k.startswith(prefix + " ")} for run in runs]
        return str(best(chosen, "mean"))

    def figures(name: str) -> dict[str, Any]:
        return {"setting": name, **{k: statistics.median(run[name][k] for run in runs)
                                    for k in ("mean", "p50", "p99", "p999", "agreement")}}

    out: dict[str, Any] = {"single": figures(pick("single")), "pair": figures(pick("pair"))}
    for capacity in CAPACITIES:
        name = pick(f"ring {capacity}")
        out[f"ring {capacity}"] = figures(name)
        out[f"walk {capacity}"] = figures(pick(f"walk {capacity}"))
        for base in ("single", "pair", f"walk {capacity}"):
            beside = out[base]["setting"]
            for key, limit in (("mean", 1.0), ("p99", 1.15)):
                ratio = h.median_ratio([run[name][key] for run in runs],
                                       [run[beside][key] for run in runs])
                out[f"ring {capacity}"][f"{key} over {base.split()[0]}"] = h.target(ratio, limit)
    return out


def measure_streaming(b: Bench) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for capacity in CAPACITIES:
        for behind in (False, True):
            runs: dict[str, list[float]] = {}
            for _ in range(REPEATS):
                for p in (0, 2, 4):
                    runs.setdefault(f"bare {p}", []).append(b.bare_stream(capacity, behind, p))
                    runs.setdefault(f"ring {p}", []).append(b.ring_stream(capacity, behind, 1, p))
                    runs.setdefault(f"batch {p}", []).append(
                        b.ring_stream(capacity, behind, BURST, p))
            least = {kind: min((k for k in runs if k.startswith(kind)),
                               key=lambda k: statistics.median(runs[k]))
                     for kind in ("bare", "ring", "batch")}
            bare = runs[least["bare"]]
            out[f"{capacity} {'half full' if behind else 'at heels'}"] = {
                **{f"{kind} ns": statistics.median(runs[k]) for kind, k in least.items()},
                "ring over bare": h.target(h.median_ratio(runs[least["ring"]], bare), 1.3),
                "batch over bare": h.target(h.median_ratio(runs[least["batch"]], bare), 1.1)}
    return out


# ---------------------------------------------------------------- from Python

def measure_python(b: Bench) -> dict[str, Any]:
    """push and pop in turn, so that neither ever finds the ring full or empty."""
    record, n = bytes(64), 256
    array, out = np.zeros(n, schema.dtype(R)), np.zeros(n, schema.dtype(R))
    array["event"] = np.arange(n)

    def costs() -> dict[str, float]:
        p, c = _ring.pair(R, 1024)
        nop = b.c.Nop()
        names = {"p": p, "c": c, "nop": nop, "r": record}
        half, loops = 512, PYTHON_LOOPS // 512
        # Medians over chunks of some 10 us: what the machine takes away does not count.
        spent: dict[str, list[float]] = {
            k: [] for k in ("push", "one", "pop", "none", "push_many", "pop_many")}
        for _ in range(loops):
            spent["push"].append(h.call_ns("p.push(r)", names, half))
            spent["pop"].append(h.call_ns("c.pop()", names, half))
            spent["one"].append(h.call_ns("nop.one(r)", names, half))
            spent["none"].append(h.call_ns("nop.none()", names, half))
            c.flush()
        assert p.full == 0 and len(c) == 0
        for _ in range(loops):
            t0 = time.perf_counter_ns()
            pushed = p.push_many(array)
            t1 = time.perf_counter_ns()
            popped = c.pop_many(out)
            t2 = time.perf_counter_ns()
            assert pushed == popped == n
            spent["push_many"].append((t1 - t0) / n)
            spent["pop_many"].append((t2 - t1) / n)
        assert (out["event"] == array["event"]).all()
        return {k: statistics.median(v) for k, v in spent.items()}

    runs = [h.pinned([(b.near, costs, ())])[0] for _ in range(REPEATS)]
    out_: dict[str, Any] = {k: statistics.median(r[k] for r in runs) for k in runs[0]}
    for verb, empty in (("push", "one"), ("pop", "none")):
        out_[f"{verb} over empty"] = h.target(h.median_ratio(
            [r[verb] for r in runs], [r[empty] for r in runs]), 1.7)
    for verb in ("push_many", "pop_many"):
        out_[f"{verb} per record"] = h.target(out_[verb], 5.0)
    return out_


# ---------------------------------------------------------------- peers, as a Python user has them

class Channel:
    """One direction of a peer: made before the fork, opened in each process that uses it."""

    name = "?"

    def open(self, producer: bool) -> None:
        """Take one end in this process."""

    def send(self, data: bytes) -> None:
        raise NotImplementedError

    def receive(self) -> bytes:
        raise NotImplementedError

    def finish(self) -> None:
        """Give back what this process opened; both sides have everything by now."""

    def close(self) -> None:
        """Give everything back, in the process that made it."""


class Ours(Channel):
    name = "hftpipe"

    def __init__(self) -> None:
        self.memory = region(1024)

    def open(self, producer: bool) -> None:
        ring = end(self.memory, producer)
        self.push, self.pop = ring.push, ring.pop

    def send(self, data: bytes) -> None:
        while not self.push(data):
            pass

    def receive(self) -> bytes:
        while (data := self.pop()) is None:
            pass
        return data


class PythonRing(Channel):
    """The same idea in plain Python: struct and multiprocessing.shared_memory."""

    name = "pure-Python ring on shared_memory"
    capacity = 1024

    def __init__(self) -> None:
        self.shared = shared_memory.SharedMemory(create=True, size=128 + 64 * self.capacity)
        self.own = 0
        self.word = struct.Struct("<Q")

    def open(self, producer: bool) -> None:
        self.view = self.shared.buf

    def send(self, data: bytes) -> None:
        view, word = self.view, self.word
        while self.own - word.unpack_from(view, 0)[0] >= self.capacity:
            pass
        at = 128 + self.own % self.capacity * 64
        view[at + 8:at + 64] = data[8:]
        self.own += 1
        word.pack_into(view, at, self.own)

    def receive(self) -> bytes:
        view, word = self.view, self.word
        at = 128 + self.own % self.capacity * 64
        while word.unpack_from(view, at)[0] != self.own + 1:
            pass
        data = bytes(view[at:at + 64])
        self.own += 1
        word.pack_into(view, 0, self.own)
        return data

    def close(self) -> None:
        if hasattr(self, "view"):
            del self.view
        self.shared.close()
        self.shared.unlink()


class Queue(Channel):
    name = "multiprocessing.Queue"

    def __init__(self) -> None:
        self.queue: Any = fork.Queue()

    def send(self, data: bytes) -> None:
        self.queue.put(data)

    def receive(self) -> bytes:
        return bytes(self.queue.get())

    def close(self) -> None:
        self.queue.close()
        self.queue.join_thread()


class Pipe(Channel):
    name = "multiprocessing.Pipe"

    def __init__(self) -> None:
        self.reader, self.writer = fork.Pipe(duplex=False)

    def send(self, data: bytes) -> None:
        self.writer.send_bytes(data)

    def receive(self) -> bytes:
        return self.reader.recv_bytes()

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


class FasterFifo(Channel):
    name = "faster-fifo"

    def __init__(self) -> None:
        self.queue: Any = importlib.import_module("faster_fifo").Queue(1024 * 256)
        self.ready: list[bytes] = []

    def send(self, data: bytes) -> None:
        while True:
            try:
                return self.queue.put(data)
            except queue.Full:
                pass

    def receive(self) -> bytes:
        while not self.ready:
            try:
                self.ready = self.queue.get_many()[::-1]
            except queue.Empty:
                pass
        return self.ready.pop()

    def close(self) -> None:
        self.queue.close()


class Zmq(Channel):
    name = "pyzmq ipc"

    def __init__(self) -> None:
        self.zmq: Any = importlib.import_module("zmq")
        self.directory = tempfile.TemporaryDirectory(prefix="hftpipe-bench-")
        self.address = f"ipc://{self.directory.name}/socket"

    def open(self, producer: bool) -> None:
        self.context = self.zmq.Context()
        self.socket = self.context.socket(self.zmq.PUSH if producer else self.zmq.PULL)
        (self.socket.bind if producer else self.socket.connect)(self.address)

    def send(self, data: bytes) -> None:
        self.socket.send(data)

    def receive(self) -> bytes:
        return bytes(self.socket.recv())

    def finish(self) -> None:
        self.socket.close(linger=0)
        self.context.term()

    def close(self) -> None:
        self.directory.cleanup()


class Iceoryx(Channel):
    name = "iceoryx2"

    def __init__(self) -> None:
        self.iox: Any = importlib.import_module("iceoryx2")
        self.service = f"hftpipe-bench-{os.getpid()}-{time.monotonic_ns()}"

    def open(self, producer: bool) -> None:
        import ctypes
        iox = self.iox
        iox.set_log_level(iox.LogLevel.Error)
        self.type = ctypes.c_uint8 * 64
        self.node = iox.NodeBuilder.new().create(iox.ServiceType.Ipc)
        service = (self.node.service_builder(iox.ServiceName.new(self.service))
                   .publish_subscribe(self.type).enable_safe_overflow(False)
                   .subscriber_max_buffer_size(1024).open_or_create())
        if producer:
            self.end = (service.publisher_builder()
                        .backpressure_strategy(iox.BackpressureStrategy.RetryUntilDelivered).create())
            deadline = time.monotonic() + 10
            while service.dynamic_config.number_of_subscribers == 0:
                assert time.monotonic() < deadline, "nobody subscribed"
        else:
            self.end = service.subscriber_builder().buffer_size(1024).create()

    def send(self, data: bytes) -> None:
        self.end.send_copy(self.type.from_buffer_copy(data))

    def receive(self) -> bytes:
        while (sample := self.end.receive()) is None:
            pass
        data = bytes(sample.payload().contents)
        sample.delete()
        return data


PEERS: tuple[type[Channel], ...] = (Ours, PythonRing, Queue, Pipe, FasterFifo, Zmq, Iceoryx)


def records(count: int) -> list[bytes]:
    return [struct.pack("<8Q", *(i,) * 8) for i in range(count)]


def peer(b: Bench, kind: type[Channel]) -> dict[str, float]:
    """One-way ns and streaming ns per record of one peer, contents verified."""
    there, back = kind(), kind()
    data, both_done = records(256), fork.Barrier(2)

    def ping() -> Any:
        there.open(True)
        back.open(False)
        out = np.zeros(PEER_PINGS)
        for i in range(PEER_PINGS):
            r = data[i & 255]
            t = time.perf_counter_ns()
            there.send(r)
            got = back.receive()
            out[i] = time.perf_counter_ns() - t
            assert got[8:] == r[8:]
        both_done.wait(30)
        there.finish()
        back.finish()
        return out

    def pong() -> None:
        there.open(False)
        back.open(True)
        for _ in range(PEER_PINGS):
            back.send(there.receive())
        both_done.wait(30)
        there.finish()
        back.finish()

    def produce() -> None:
        line.open(True)
        for i in range(PEER_STREAM):
            line.send(data[i & 255])
        both_done.wait(60)
        line.finish()

    def consume() -> float:
        line.open(False)
        line.receive()
        t = time.perf_counter_ns()
        for i in range(1, PEER_STREAM):
            assert line.receive()[8:] == data[i & 255][8:]
        spent = (time.perf_counter_ns() - t) / (PEER_STREAM - 1)
        both_done.wait(60)
        line.finish()
        return spent

    try:
        out, _ = h.pinned([(b.near, ping, ()), (b.far, pong, ())])
    finally:
        there.close()
        back.close()
    line = kind()
    try:
        streaming, _ = h.pinned([(b.near, consume, ()), (b.far, produce, ())])
    finally:
        line.close()
    figures = h.percentiles(out[PEER_PINGS // 10:] / 2)
    return {"p50": figures["p50"], "p99": figures["p99"], "streaming": streaming}


def measure_peers(b: Bench) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for kind in PEERS:
        try:
            out[kind.name] = peer(b, kind)
        except ModuleNotFoundError as e:
            out[kind.name] = {"skipped": f"{e.name} is not installed"}
    base = out["hftpipe"]
    for name, figures in out.items():
        if "skipped" not in figures:
            figures["ours faster, one-way p50"] = figures["p50"] / base["p50"]
            figures["ours faster, streaming"] = figures["streaming"] / base["streaming"]
        print(f"{name:36}", figures)
    return out


# ---------------------------------------------------------------- as tests, and as a program

PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "latency": measure_latency, "streaming": measure_streaming,
    "python": measure_python, "peers": measure_peers}


def missed(result: Any, path: str = "") -> list[str]:
    """Targets of *result* that were not met."""
    if not isinstance(result, dict):
        return []
    if result.keys() == {"value", "limit", "met"}:
        return [] if result["met"] else [f"{path} {result['value']:.3g} > {result['limit']}"]
    return [m for k, v in result.items() for m in missed(v, f"{path} / {k}" if path else k)]


@pytest.fixture(scope="module")
def b() -> Bench:
    try:
        return Bench()
    except OSError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("part", PARTS)
def test_ring(part: str, b: Bench, benchmark: Any) -> None:
    """Records the figures; in a small run they are too noisy to judge."""
    result = benchmark.pedantic(PARTS[part], args=(b,), rounds=1, iterations=1)
    benchmark.extra_info.update(result)
    h.save(f"ring-{part}", result)
    if h.FULL:
        assert not missed(result), "\n".join(missed(result))


def main(names: list[str]) -> None:
    b = Bench()
    print(h.machine_line())
    print("gaps of a busy loop in 1 s:", h.gaps(b.far, 1.0))
    for name in names or list(PARTS):
        result = PARTS[name](b)
        print(f"\n{name}: {h.save(f'ring-{name}', result)}")
        for key, value in result.items():
            print(f"  {key:24}", {k: (f"{v['value']:.3g} (<= {v['limit']}: "
                                      f"{'met' if v['met'] else 'MISSED'})"
                                      if isinstance(v, dict) else
                                      f"{v:.4g}" if isinstance(v, float) else v)
                                  for k, v in value.items()}
                  if isinstance(value, dict) else value)


if __name__ == "__main__":
    main(sys.argv[1:])
