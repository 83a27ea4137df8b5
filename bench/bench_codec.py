"""Decoding market data, and the CPU of one order: against msgspec, msgpack and aiohttp.

Hot paths: `codec_decode` of src/alpaca/_codec.pyx, `AlpacaWire.submit` and `poll` of
src/alpaca/_http.pyx.  Input: frames of stock quotes and trades as Alpaca sends them; a server
in another process that answers every order.  Rounds are interleaved and ratios taken per round.

    python -m pytest bench/bench_codec.py -s                       a few rounds, no thresholds
    HFTPIPE_BENCH=full python -m pytest bench/bench_codec.py -s    many rounds, ratios asserted

Decoding is counted per message of a frame of one and of a frame of a hundred; ours runs in a
compiled loop (_alpaca_loop.pyx), as in a stage, the peers as Python calls them.
An order is counted in CPU time of the sending thread (user and system), from making the
request to the parsed answer; every client sleeps in poll() while it waits.
"""
import asyncio
import json
import os
import socket
import statistics
import struct
import threading
import time
import timeit

import msgspec
import pytest

from bench import harness
from hftpipe.alpaca import messages
from hftpipe.alpaca._codec import Decoder
from hftpipe.alpaca._http import AlpacaWire

FULL = harness.FULL
ROUNDS = 31 if FULL else 5
LOOPS = 2000 if FULL else 300
ORDERS = 300 if FULL else 60
RUN = 0x18AF3C
WHEN = struct.pack(">Q", 123456789 << 34 | 1772461800)


def frame(count: int, encoding: str) -> bytes:
    """*count* messages, quotes and trades in turn."""
    msgpack = encoding == "msgpack"
    t = msgspec.msgpack.Ext(-1, WHEN) if msgpack else "2026-03-02T14:30:00.123456789Z"
    quote = {"T": "q", "S": "AAPL", "bx": "V", "bp": 177.94, "bs": 300, "ax": "V", "ap": 178.01,
             "as": 100, "c": ["R"], "z": "C", "t": t}
    trade = {"T": "t", "S": "MSFT", "i": 52983525029461, "x": "V", "p": 410.355, "s": 90,
             "c": ["@", "I"], "z": "C", "t": t}
    encode = (msgspec.msgpack if msgpack else msgspec.json).encode
    return encode([(quote, trade)[i % 2] for i in range(count)])


class Trade(msgspec.Struct, tag_field="T", tag="t"):
    """As fast as msgspec can: tagged, and the timestamp left as it is (its own cuts to us)."""

    S: str
    i: int
    p: float
    s: float
    t: msgspec.Raw


class Quote(msgspec.Struct, tag_field="T", tag="q"):
    """The same of a quote."""

    S: str
    bp: float
    bs: float
    ap: float
    as_: float = msgspec.field(name="as")
    t: msgspec.Raw = msgspec.Raw()


def peers(count: int):
    """Name to a call (loops) that gives ns per frame of *count* messages."""
    decoder = Decoder([f"S{i}" for i in range(98)] + ["AAPL", "MSFT"])
    other = Decoder([f"S{i}" for i in range(98)] + ["AAPL", "MSFT"])
    packed, text = frame(count, "msgpack"), frame(count, "json")
    typed = msgspec.msgpack.Decoder(list[Trade | Quote])
    loop = harness.compiled("_alpaca_loop")

    def python(call):
        return lambda loops: timeit.timeit(call, number=loops) / loops * 1e9

    calls = {
        "ours": lambda loops: loop.decode(decoder, packed, loops)[0],
        "ours, JSON": python(lambda: other.records_json(text)),
        "msgspec typed": python(lambda: typed.decode(packed)),
        "msgspec typed, JSON": python(lambda: messages.MESSAGES.decode(text)),
        "json": python(lambda: json.loads(text)),
    }
    try:
        import msgpack
        calls["msgpack"] = python(lambda: msgpack.unpackb(packed, timestamp=0))
    except ImportError:
        pass
    decoder.records(frame(2, "msgpack"))        # the first quote is a snapshot: one record more
    assert loop.decode(decoder, packed, 1)[1] == count + (count + 1) // 2
    found = decoder.records(packed)
    assert found["price"][0] == 177_940_000_000 and found["ts_venue"][0] == 1772461800123456789
    assert len(typed.decode(packed)) == count == len(json.loads(text))
    return calls


def decode_rounds(count: int) -> dict[str, list[float]]:
    """ns per message of each peer, round by round."""
    calls = peers(count)
    found: dict[str, list[float]] = {name: [] for name in calls}
    loops = max(LOOPS // count, 10)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            found[name].append(call(loops) / count)
    return found


def report(title: str, unit: str, found: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Print a table and give it as data: minimum, median, and ours to it per round."""
    print(f"\n{title}\n{harness.machine_line()}")
    out = {}
    for name, values in sorted(found.items(), key=lambda i: statistics.median(i[1])):
        ratio = statistics.median(a / b for a, b in zip(found["ours"], values, strict=True))
        out[name] = {"min": min(values), "p50": statistics.median(values), "ours_to_it": ratio}
        print(f"  {name:24} {out[name]['p50']:9.1f} {unit} (min {out[name]['min']:.1f})"
              f"   ours {ratio:.3f}x of it")
    return out


def test_decode():
    one = report("decode, frame of one message", "ns", decode_rounds(1))
    many = report("decode, per message of a frame of 100", "ns", decode_rounds(100))
    harness.save("codec", {"decode_ns": {"frame_of_1": one, "frame_of_100": many}})
    if FULL:
        assert one["msgspec typed"]["ours_to_it"] < 0.5
        assert many["msgspec typed"]["ours_to_it"] < 0.5


# ---------------------------------------------------------------- orders

def serve(listener: socket.socket) -> None:
    """Answer every order on every connection, until the parent is gone."""
    def connection(s: socket.socket) -> None:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = json.dumps({
            "id": "61e69015-8549-4bfd-b9c3-01e75843f47d", "client_order_id": "NAME",
            "created_at": "2026-03-02T14:30:00.123456789Z", "asset_id": "x" * 36,
            "symbol": "AAPL", "asset_class": "us_equity", "notional": None, "qty": "100",
            "filled_qty": "0", "filled_avg_price": None, "order_class": "", "type": "limit",
            "side": "buy", "time_in_force": "day", "limit_price": "10.03", "stop_price": None,
            "status": "pending_new", "extended_hours": False, "legs": None}).encode()
        while raw := s.recv(65536):
            while not raw.endswith(b"}"):
                raw += s.recv(65536)
            name = raw.split(b'"client_order_id":', 1)[1].split(b'"', 2)[1]
            answer = body.replace(b"NAME", name)
            s.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
                      b"%d\r\n\r\n%s" % (len(answer), answer))

    while True:
        s, _ = listener.accept()
        threading.Thread(target=connection, args=(s,), daemon=True).start()


@pytest.fixture
def port():
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:                      # never returns into pytest
        try:
            serve(listener)
        finally:
            os._exit(0)
    port = listener.getsockname()[1]
    listener.close()
    yield port
    os.kill(child, 9)
    os.waitpid(child, 0)


BODY = {"symbol": "AAPL", "side": "buy", "type": "limit", "time_in_force": "day", "qty": "100",
        "limit_price": "10.03"}


def order_ours(port: int):
    wire = AlpacaWire(f"http://127.0.0.1:{port}", "k" * 20, "s" * 40, RUN, ["AAPL"],
                      connections=1, rate_per_minute=0)
    wire.open()
    loop = harness.compiled("_alpaca_loop")

    def run(count: int) -> None:
        assert loop.orders(wire, count) == count
    return run, wire.close


def order_bare(port: int):
    s = socket.create_connection(("127.0.0.1", port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    body = json.dumps({**BODY, "client_order_id": "hp-18af3c-1"}).encode()
    raw = (b"POST /v2/orders HTTP/1.1\r\nHost: 127.0.0.1\r\nAPCA-API-KEY-ID: " + b"k" * 20
           + b"\r\nAPCA-API-SECRET-KEY: " + b"s" * 40 + b"\r\nContent-Length: %d\r\n\r\n%s"
           % (len(body), body))
    loop = harness.compiled("_alpaca_loop")

    def run(count: int) -> None:
        assert loop.bare(s.fileno(), raw, count) == count
    return run, s.close


def order_aiohttp(port: int):
    import aiohttp
    loop = asyncio.new_event_loop()

    async def connect() -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers={"APCA-API-KEY-ID": "k" * 20,
                                              "APCA-API-SECRET-KEY": "s" * 40})
    session = loop.run_until_complete(connect())

    async def orders(count: int) -> None:
        for i in range(count):
            async with session.post(f"http://127.0.0.1:{port}/v2/orders",
                                    json={**BODY, "client_order_id": f"hp-18af3c-{i:x}"}) as r:
                assert (await r.json())["status"] == "pending_new"

    def close() -> None:
        loop.run_until_complete(session.close())
        loop.close()
    return lambda count: loop.run_until_complete(orders(count)), close


def test_cpu_per_order(port):
    clients = {"ours": order_ours(port), "bare socket": order_bare(port),
               "aiohttp": order_aiohttp(port)}
    found: dict[str, list[float]] = {name: [] for name in clients}
    for run, _ in clients.values():
        run(ORDERS)                     # warm
    for _ in range(ROUNDS):
        for name, (run, _) in clients.items():
            begun = time.thread_time_ns()
            run(ORDERS)
            found[name].append((time.thread_time_ns() - begun) / ORDERS / 1000)
    for _, close in clients.values():
        close()
    result = report("CPU per order, request to parsed answer", "us", found)
    harness.save("order-cpu", {"order_us": result})
    if FULL:
        assert result["bare socket"]["ours_to_it"] < 1.3
        assert result["aiohttp"]["ours_to_it"] < 0.25
