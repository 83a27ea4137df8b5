"""The venue speaks the broker's protocol: bytes, codes and order life, and forgets nothing."""
from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction

import aiohttp
import msgspec
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picows import WSListener, WSMsgType, ws_connect

from hftpipe._clock import now_ns, utc_ns
from hftpipe.errors import BusyError, ConfigError, DataError, HftpipeError, UsageError
from hftpipe.venue import Config, Venue, read_log, spawn
from hftpipe.venue._traders import LEVEL, QUOTE, TRADE, Traders
from hftpipe.venue.state import NANO, Position, State, nano, stamp, text
from hftpipe.venue.traders import instruments

STILL = Config(rate=0.0, rate_limit=0, linger=0.05)
pack = msgspec.msgpack.encode


def unpack(data):
    """MessagePack as written: an extension is (code, bytes), for msgspec cuts times to us."""
    at = 0

    def take(size):
        nonlocal at
        at += size
        assert at <= len(data)
        return data[at - size:at]

    def number(size):
        return int.from_bytes(take(size), "big")

    def value():
        b = number(1)
        if b < 0x80:
            return b
        if b < 0x90:
            return {value(): value() for _ in range(b & 15)}
        if b < 0xa0:
            return [value() for _ in range(b & 15)]
        if b < 0xc0:
            return take(b & 31).decode()
        if b in (0xc0, 0xc2, 0xc3):
            return {0xc0: None, 0xc2: False, 0xc3: True}[b]
        if b == 0xcb:
            return struct.unpack(">d", take(8))[0]
        if 0xcc <= b <= 0xcf:
            return number(1 << (b - 0xcc))
        if b in (0xd9, 0xda):
            return take(number(b - 0xd8)).decode()
        if b in (0xdc, 0xde):
            count = number(2)
            return ([value() for _ in range(count)] if b == 0xdc
                    else {value(): value() for _ in range(count)})
        if 0xd4 <= b <= 0xd8:
            code = int.from_bytes(take(1), "big", signed=True)
            return code, take(1 << (b - 0xd4))
        raise AssertionError(f"unexpected byte {b:#x}")

    found = value()
    assert at == len(data)
    return found


# ---------------------------------------------------------------- a client

class Client:
    """What the tests say to a venue, over real sockets."""

    def __init__(self, address, session):
        self.address, self.session = address, session
        self.headers = {"APCA-API-KEY-ID": address["key"],
                        "APCA-API-SECRET-KEY": address["secret"]}

    async def ask(self, method, path, body=None, headers=None, **kwargs):
        """(status, decoded body, headers)."""
        if body is not None:
            kwargs["data"] = io.BytesIO(body if isinstance(body, bytes)
                                        else json.dumps(body).encode())
        async with self.session.request(
                method, self.address["rest"] + path, **kwargs,
                headers=self.headers if headers is None else headers) as reply:
            raw = await reply.read()
            return reply.status, json.loads(raw) if raw else None, reply.headers

    async def order(self, symbol="ACME", side="buy", qty="10", type="limit", tif="ioc",
                    price=None, **more):
        body = {"symbol": symbol, "side": side, "qty": qty, "type": type, "time_in_force": tif,
                **({"limit_price": price} if price is not None else {}), **more}
        return await self.ask("POST", "/v2/orders", body)

    async def until(self, order, *statuses):
        """The order's view once its status is one of *statuses*."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            _, view, _ = await self.ask("GET", f"/v2/orders/{order}")
            if view["status"] in statuses:
                return view
            await asyncio.sleep(0.005)
        raise AssertionError(f"{view['status']} did not become {statuses}")

    @asynccontextmanager
    async def data(self, path="/v2/iex", packed=True, headers=None):
        url = self.address["rest"].replace("http", "ws") + path
        kind = {"Content-Type": "application/msgpack"} if packed else {}
        async with self.session.ws_connect(url, headers={**kind, **(headers or {})}) as ws:
            yield Stream(ws, packed)

    @asynccontextmanager
    async def login(self, path="/v2/iex", packed=True, **channels):
        async with self.data(path, packed) as stream:
            assert await stream.one() == {"T": "success", "msg": "connected"}
            await stream.say(action="auth", key=self.address["key"],
                             secret=self.address["secret"])
            assert await stream.one() == {"T": "success", "msg": "authenticated"}
            if channels:
                await stream.say(action="subscribe", **channels)
                assert (await stream.one())["T"] == "subscription"
            yield stream

    @asynccontextmanager
    async def updates(self):
        async with self.session.ws_connect(self.address["updates_stream"]) as ws:
            await ws.send_str(json.dumps({"action": "authenticate", "data": {
                "key_id": self.address["key"], "secret_key": self.address["secret"]}}))
            await ws.receive(10)
            await ws.send_str(json.dumps(
                {"action": "listen", "data": {"streams": ["trade_updates"]}}))
            await ws.receive(10)
            yield Updates(ws)


class Stream:
    def __init__(self, ws, packed):
        self.ws, self.packed = ws, packed

    async def say(self, **body):
        if self.packed:
            await self.ws.send_bytes(pack(body))
        else:
            await self.ws.send_str(json.dumps(body))

    async def some(self):
        """The messages of the next frame."""
        message = await self.ws.receive(10)
        kind = aiohttp.WSMsgType.BINARY if self.packed else aiohttp.WSMsgType.TEXT
        assert message.type is kind, message
        return unpack(message.data) if self.packed else json.loads(message.data)

    async def one(self):
        """The next frame's only message: control messages are always alone."""
        messages = await self.some()
        assert len(messages) == 1
        return messages[0]

    async def error(self):
        message = await self.one()
        assert message["T"] == "error" and message["msg"]
        return message["code"]


class Updates:
    def __init__(self, ws):
        self.ws = ws

    async def next(self):
        message = await self.ws.receive(10)
        assert message.type is aiohttp.WSMsgType.BINARY      # the paper broker's way
        body = json.loads(message.data)
        assert body["stream"] == "trade_updates"
        return body["data"]

    async def take(self, *events):
        """The next updates, which must be just these events."""
        found = [await self.next() for _ in events]
        assert tuple(f["event"] for f in found) == events
        return found


def venue_test(test, config=STILL):
    """Run ``test(venue, client)`` against a venue in this process."""
    async def main():
        async with Venue(config) as venue, aiohttp.ClientSession() as session:
            await test(venue, Client(venue.address, session))
    asyncio.run(main())


def top(venue, symbol="ACME"):
    bid, bid_qty, ask, ask_qty, _ = venue.exchange.traders.top(venue.exchange.index[symbol])
    return text(bid), bid_qty // NANO, text(ask), ask_qty // NANO


# ---------------------------------------------------------------- traders

def crowd(seed=7, rate=2000.0, symbols=("ACME", "BOLT")):
    return Traders(instruments(symbols, {}), seed, rate, 0)


def test_traders_are_a_function_of_the_seed_in_any_chunks():
    def stream(seed, chunk):
        traders, out = crowd(seed), []
        for until in range(chunk, 3 * NANO + 1, chunk):
            traders.step(until)
            out += traders.take()
        assert traders.sound
        return out
    whole = stream(7, 3 * NANO)
    assert whole == stream(7, NANO // 500) and len(whole) > 5000
    assert whole != stream(8, 3 * NANO)


def test_traders_keep_the_rate_and_a_two_sided_book_whose_imbalance_foretells_the_mid():
    traders = crowd(rate=2000.0, symbols=("ACME",))
    quotes, trades = [], 0
    for until in range(NANO // 10, 30 * NANO + 1, NANO // 10):
        traders.step(until)
        for m in traders.take():
            if m[0] == QUOTE:
                quotes.append(m[3:7])
            else:
                assert m[0] == TRADE and m[4] > 0
                trades += 1
    assert 0.95 < (len(quotes) + trades) / 60_000 < 1.05
    assert trades > 5_000
    q = numpy.array(quotes, dtype=float)
    assert (q[:, 0] < q[:, 2]).all()
    assert (q > 0).all(axis=1).mean() > 0.999
    mid, imbalance = (q[:, 0] + q[:, 2]) / 2, (q[:, 1] - q[:, 3]) / (q[:, 1] + q[:, 3])
    for ahead, least in ((10, 0.3), (50, 0.2)):
        assert numpy.corrcoef(imbalance[:-ahead], mid[ahead:] - mid[:-ahead])[0, 1] > least


def test_published_levels_rebuild_the_book():
    traders = crowd(symbols=("BTC/USD",))
    book = {1: dict(traders.levels(0, 1)), -1: dict(traders.levels(0, -1))}
    for until in range(NANO // 100, 5 * NANO, NANO // 100):
        traders.step(until)
        for m in traders.take():
            if m[0] == LEVEL and m[4]:
                book[m[2]][m[3]] = m[4]
            elif m[0] == LEVEL:
                del book[m[2]][m[3]]
        for side in (1, -1):
            assert sorted(book[side].items(), reverse=side > 0) == traders.levels(0, side)


def test_a_swept_book_comes_back():
    traders = crowd(symbols=("ACME",))
    status = traders.submit(0, 1 << 63 | 1, 1, 1, 3, 0, 10**15)
    assert status == 3 and traders.levels(0, -1) == []          # market order: all was taken
    assert sum(m[0] == TRADE for m in traders.take()) > 60      # above one step's room as well
    traders.step(NANO // 10)
    assert traders.levels(0, -1) and traders.sound


# ---------------------------------------------------------------- words

@given(st.integers(-10**23, 10**23))
def test_decimals_go_there_and_back(value):
    assert nano(text(value)) == value


@pytest.mark.parametrize("bad", ["", "x", "NaN", "Infinity", "1e40", "0.0000000001", True, None,
                                 [], 1.5, "1_0x"])
def test_what_is_no_decimal_is_refused(bad):
    with pytest.raises(ValueError):
        nano(bad)


@given(st.integers(0, 4 * 10**18))
def test_times_are_rfc3339_with_nanoseconds(ns):
    head, _, tail = stamp(ns)[:-1].partition(".")
    assert not tail.endswith("0") and stamp(ns).endswith("Z")
    back = int(numpy.datetime64(head, "s").astype("int64")) * NANO + int(tail.ljust(9, "0") or 0)
    assert back == ns


@given(st.lists(st.tuples(st.sampled_from((1, -1)), st.integers(1, 10**12), st.integers(1, 10**12)),
                max_size=30))
def test_position_is_what_the_fills_add_up_to(fills):
    """The cost moves as the average-price rule says, within a rounding per reduction."""
    ours, qty, cost = Position(), 0, Fraction(0)
    for side, price, size in fills:
        before, after = qty, qty + side * size
        if before * side >= 0:
            cost += side * price * size
        elif before * after > 0:
            cost = cost * after / before
        else:
            cost = Fraction(price * after)
        qty = after
        ours.fill(side, price, size)
        assert ours.qty == qty
        assert abs(ours.cost - cost) <= len(fills)


# ---------------------------------------------------------------- market data

def test_data_stream_in_messagepack_as_the_broker_writes_it():
    async def test(venue, client):
        async with client.login() as stream:
            await stream.say(trades=["ACME"], quotes=["ACME", "BOLT"], action="subscribe")
            assert await stream.one() == {
                "T": "subscription", "trades": ["ACME"], "quotes": ["ACME", "BOLT"], "bars": [],
                "updatedBars": [], "dailyBars": [], "statuses": [], "lulds": [],
                "corrections": ["ACME"], "cancelErrors": ["ACME"]}
            before = utc_ns()
            _, order, _ = await client.order(price=top(venue)[2], qty="7")
            messages = await stream.some()
            assert [m["T"] for m in messages] == ["t", "q"]
            for m in messages:
                assert next(iter(m)) == "T" and list(m)[1] == "S" and m["S"] == "ACME"
                code, data = m["t"]
                word = int.from_bytes(data, "big")
                assert code == -1 and len(data) == 8
                assert before < (word & (1 << 34) - 1) * NANO + (word >> 34) < utc_ns()
            trade, quote = messages
            assert set(trade) == {"T", "S", "i", "x", "p", "s", "c", "z", "t"}
            assert (trade["s"], trade["x"], type(trade["p"])) == (7, "V", float)
            assert set(quote) == {"T", "S", "bx", "bp", "bs", "ax", "ap", "as", "c", "z", "t"}
            bid, bid_size, ask, ask_size = top(venue)
            assert (quote["bp"], quote["bs"]) == (float(bid), bid_size)
            assert (quote["ap"], quote["as"]) == (float(ask), ask_size)
            fills = (await client.until(order["id"], "filled"))["filled_avg_price"]
            assert trade["p"] == float(fills)
    venue_test(test)


def test_data_stream_in_json():
    async def test(venue, client):
        async with client.login("/v2/sip", packed=False, quotes=["*"]) as stream:
            await client.order(price=top(venue)[2], qty="7")
            quote, = await stream.some()        # no trades were subscribed to
            assert quote["T"] == "q" and quote["ap"] == float(top(venue)[2])
            assert abs(numpy.datetime64(quote["t"][:-1], "ns").astype("int64")
                       - utc_ns()) < 10 * NANO
    venue_test(test)


def test_subscriptions_add_and_remove_and_always_answer_the_whole_state():
    async def test(venue, client):
        async with client.login(trades=["ACME"], quotes=["ACME", "BOLT"], bars=["*"]) as stream:
            await stream.say(action="unsubscribe", quotes=["ACME", "CRUX"], trades=["ACME"])
            state = await stream.one()
            assert state["quotes"] == ["BOLT"] and state["bars"] == ["*"]
            assert state["trades"] == state["corrections"] == state["cancelErrors"] == []
            await stream.say(action="subscribe", quotes=["BOLT"])
            assert (await stream.one())["quotes"] == ["BOLT"]
            await client.order(price=top(venue)[2], qty="1")             # ACME: not ours
            await client.order(symbol="BOLT", price=top(venue, "BOLT")[2], qty="1")
            assert {m["S"] for m in await stream.some()} == {"BOLT"}
    venue_test(test)


def test_login_by_upgrade_headers():
    async def test(venue, client):
        async with client.data(headers=client.headers) as stream:
            assert (await stream.one())["msg"] == "connected"
            assert (await stream.one())["msg"] == "authenticated"
            await stream.say(action="auth", key="x", secret="y")
            assert await stream.error() == 403
    venue_test(test)


@pytest.mark.parametrize(("message", "code"), [
    ({"action": "subscribe", "quotes": "ACME"}, 400), ({"action": "subscribe"}, 400),
    ({"action": "subscribe", "quotes": [7]}, 400), ({"action": "subscribe", "what": ["A"]}, 400),
    ({"action": "subscribe", "quotes": ["NO SUCH\x00"]}, 400), ({"action": "sing"}, 400),
    ({"quotes": ["ACME"]}, 400), ({"action": "subscribe", "orderbooks": ["ACME"]}, 410),
    ({"action": "subscribe", "corrections": ["ACME"]}, 410),
    ({"action": "auth", "key": "a", "secret": "b"}, 403)])
def test_a_bad_request_is_answered_with_its_code_and_changes_nothing(message, code):
    async def test(venue, client):
        async with client.login(quotes=["BOLT"]) as stream:
            await stream.say(**message)
            assert await stream.error() == code
            await stream.say(action="subscribe", trades=["ACME"])        # still there, unchanged
            state = await stream.one()
            assert (state["quotes"], state["trades"]) == (["BOLT"], ["ACME"])
    venue_test(test)


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\xff\xff", b"[1,2", b"\x93\x01\x02\x03",
                                 b"\x81\xa6action"])
@pytest.mark.parametrize("packed", [True, False])
def test_bytes_that_are_no_message_are_400(raw, packed):
    async def test(venue, client):
        async with client.login(packed=packed) as stream:
            await stream.ws.send_bytes(raw)
            assert await stream.error() == 400
    venue_test(test)


def test_wrong_keys_are_402_and_the_connection_ends():
    async def test(venue, client):
        for key, secret in ((client.address["key"], "wrong"), ("wrong", client.address["secret"]),
                            (None, None), (7, ["x"]), ("\udce4".encode("utf-8", "replace").decode(),
                                                       "ä")):
            async with client.data() as stream:
                await stream.one()
                await stream.say(action="subscribe", quotes=["*"])
                assert await stream.error() == 401
                await stream.say(action="auth", key=key, secret=secret)
                assert await stream.error() == 402
                assert (await stream.ws.receive(10)).type is aiohttp.WSMsgType.CLOSE
    venue_test(test)


def test_no_login_in_time_is_404():
    async def test(venue, client):
        async with client.data() as stream:
            await stream.one()
            assert await stream.error() == 404
            assert (await stream.ws.receive(10)).type is aiohttp.WSMsgType.CLOSE
    venue_test(test, replace(STILL, auth_timeout=0.05))


def test_the_basic_plan_limits_symbols_and_has_no_sip():
    async def test(venue, client):
        async with client.login(quotes=["A", "B"]) as stream:
            for names in (["C", "D"], ["*"]):
                await stream.say(action="subscribe", trades=names)
                assert await stream.error() == 405
            await stream.say(action="subscribe", trades=["C"], bars=["*"])
            state = await stream.one()
            assert (state["quotes"], state["trades"]) == (["A", "B"], ["C"])
        async with client.data("/v2/sip", headers=client.headers) as stream:
            await stream.one()
            assert await stream.error() == 409
    venue_test(test, replace(STILL, symbol_limit=3))


def test_one_connection_per_endpoint():
    async def test(venue, client):
        async with client.login():
            async with client.data(headers=client.headers) as second:
                await second.one()
                assert await second.error() == 406
            async with client.login("/v1beta3/crypto/us"):       # other endpoints are free
                pass
        deadline = time.monotonic() + 10
        while venue.iex.slots and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        async with client.login():                               # and so is this one again
            pass
    venue_test(test)


def test_a_broken_connection_keeps_its_slot_for_a_while():
    async def test(venue, client):
        async with client.login() as stream:
            stream.ws._response.connection.transport.abort()
        deadline = time.monotonic() + 10
        while venue.iex.sessions and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        async with client.data(headers=client.headers) as second:
            await second.one()
            assert await second.error() == 406
        while venue.iex.slots and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        async with client.login():
            pass
    venue_test(test, replace(STILL, ghost=0.3))


def test_a_client_that_does_not_read_is_dropped_and_costs_bounded_memory():
    async def test(venue, client):
        async with client.login(quotes=["*"], trades=["*"]) as slow:
            wire = slow.ws._response.connection.transport
            wire.pause_reading()
            deadline = time.monotonic() + 30
            worst = 0
            while venue.iex.sessions and time.monotonic() < deadline:
                if not venue.iex.sessions[0].dropped:
                    worst = max(worst, venue.iex.sessions[0].transport.get_write_buffer_size())
                await asyncio.sleep(0.001)
            assert not venue.iex.sessions
            assert worst <= 65536
            wire.resume_reading()
        async with client.login(quotes=["*"]) as stream:         # nobody else suffers
            assert await stream.some()
    venue_test(test, replace(STILL, rate=200_000.0, buffer=65536))


def test_a_message_in_fragments_is_put_together():
    """As alpaca-py subscribes: pieces without FIN, then an empty last one."""
    class Listener(WSListener):
        def __init__(self):
            self.frames = asyncio.Queue()

        def on_ws_frame(self, transport, frame):
            self.frames.put_nowait(unpack(frame.get_payload_as_bytes()))

    async def test(venue, client):
        transport, listener = await ws_connect(
            Listener, client.address["data_stream"],
            extra_headers={"Content-Type": "application/msgpack"})
        await listener.frames.get()
        transport.send(WSMsgType.BINARY, pack({"action": "auth", "key": client.address["key"],
                                               "secret": client.address["secret"]}))
        await listener.frames.get()
        body = pack({"trades": ["ACME"], "quotes": ["S" * 30] * 2000, "action": "subscribe"})
        transport.send(WSMsgType.BINARY, body[:32768], fin=False)
        for at in range(32768, len(body), 32768):
            transport.send(WSMsgType.CONTINUATION, body[at:at + 32768], fin=False)
        transport.send(WSMsgType.CONTINUATION, b"", fin=True)
        async with asyncio.timeout(10):
            (state,) = await listener.frames.get()
        assert (state["trades"], state["quotes"]) == (["ACME"], ["S" * 30])
        transport.disconnect()
        await transport.wait_disconnected()
    venue_test(test)


@pytest.mark.parametrize(("raw", "code"), [
    (b"\x82\xff\x00\x00\x00\x00\x7f\x00\x00\x00\x00\x00\x00\x00", 1009),    # 2 GiB announced
    (b"\xf2\x80\x00\x00\x00\x00", 1002),                # reserved bits
    (b"\x83\x80\x00\x00\x00\x00", 1002)])               # unknown opcode
def test_a_malformed_or_oversized_frame_ends_that_connection_only(raw, code):
    async def test(venue, client):
        async with client.login() as stream:
            stream.ws._response.connection.transport.write(raw)
            message = await stream.ws.receive(10)
            assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, code)
        async with client.login():
            pass
    venue_test(test)


def test_the_test_feed_runs_round_the_clock():
    async def test(venue, client):
        async with client.login("/v2/test", quotes=["FAKEPACA"], trades=["FAKEPACA"]) as stream:
            assert {m["S"] for m in await stream.some()} == {"FAKEPACA"}
    venue_test(test)


def test_crypto_books_are_a_snapshot_and_then_deltas():
    async def test(venue, client):
        traders, index = venue.exchange.traders, venue.exchange.index["BTC/USD"]
        venue.exchange.step = lambda now: None          # by hand: what was sent is then known
        async with client.login("/v1beta3/crypto/us") as stream:
            await stream.say(action="subscribe", orderbooks=["BTC/USD"])
            assert (await stream.one())["orderbooks"] == ["BTC/USD"]
            for ahead in range(1, 6):
                traders.step(utc_ns() + ahead * NANO)
                venue.exchange.pump()
            await client.order(symbol="BTC/USD", qty="1.5", price="99999", tif="ioc")
            await stream.say(action="unsubscribe", orderbooks=["BTC/USD"])
            messages, last = [], {}
            while last.get("T") != "subscription":
                messages += await stream.some()
                last = messages[-1]
            messages.pop()
            assert [bool(m.get("r")) for m in messages] == [True] + [False] * (len(messages) - 1)
            assert len(messages) > 1000
            book = {"b": {}, "a": {}}
            for m in messages:
                assert m["T"] == "o" and list(m)[:2] == ["T", "S"] and m["t"][0] == -1
                for side in ("b", "a"):
                    for level in m[side]:
                        if level["s"]:
                            book[side][level["p"]] = level["s"]
                        else:
                            del book[side][level["p"]]
                assert not book["a"] or max(book["b"]) < min(book["a"])
            for name, side in (("b", 1), ("a", -1)):
                assert book[name] == {p / NANO: q / NANO for p, q in traders.levels(index, side)}
            await stream.say(action="subscribe", orderbooks=["*"])
            await stream.one()
            assert (await stream.one())["r"] is True    # a new subscription, a new snapshot
            await stream.say(action="subscribe", lulds=["BTC/USD"])
            assert await stream.error() == 410
    venue_test(test, replace(STILL, symbols=("ACME", "BTC/USD"), rate=1000.0))


def test_minute_bars_hold_the_trades_of_the_minute():
    async def test(venue, client):
        async with client.login(bars=["ACME"]) as stream:
            ask = top(venue)[2]
            await client.order(price=ask, qty="3")
            await client.order(price=ask, qty="5")
            _, order, _ = await client.order(price=ask, qty="1")
            await client.until(order["id"], "filled")
            venue.iex.close_minute(utc_ns() + 60 * NANO)
            bar = await stream.one()
            assert (bar["T"], bar["S"], bar["v"], bar["n"]) == ("b", "ACME", 9, 3)
            assert {bar["o"], bar["h"], bar["l"], bar["c"], bar["vw"]} == {float(ask)}
    venue_test(test)


# ---------------------------------------------------------------- trade updates

@pytest.mark.parametrize("path", ["/stream", "/stream/"])
@pytest.mark.parametrize("form", ["auth", "authenticate"])
def test_stream_takes_both_forms_of_login(path, form):
    async def test(venue, client):
        url = client.address["rest"].replace("http", "ws") + path

        def login(secret):
            key = client.address["key"]
            return json.dumps({"action": "auth", "key": key, "secret": secret} if form == "auth"
                              else {"action": "authenticate",
                                    "data": {"key_id": key, "secret_key": secret}})
        async with client.session.ws_connect(url) as ws:
            await ws.send_str(login(client.address["secret"]))       # no welcome comes before
            reply = await ws.receive(10)
            assert reply.type is aiohttp.WSMsgType.BINARY
            assert json.loads(reply.data) == {"stream": "authorization", "data": {
                "status": "authorized", "action": "authenticate"}}
            for asked, got in ((["trade_updates", "nonsense"], ["trade_updates"]), ([], [])):
                await ws.send_bytes(json.dumps(
                    {"action": "listen", "data": {"streams": asked}}).encode())
                assert json.loads((await ws.receive(10)).data) == {
                    "stream": "listening", "data": {"streams": got}}
        for first, action in ((login("wrong"), "authenticate"),
                              (json.dumps({"action": "listen", "data": {}}), "listen")):
            async with client.session.ws_connect(url) as ws:
                await ws.send_str(first)
                assert json.loads((await ws.receive(10)).data)["data"] == {
                    "status": "unauthorized", "action": action}
                assert (await ws.receive(10)).type is aiohttp.WSMsgType.CLOSE
        async with client.session.ws_connect(url) as ws:
            await ws.send_str("{nonsense")
            assert json.loads((await ws.receive(10)).data)["action"] == "error"
    venue_test(test)


def test_a_further_stream_connection_can_be_refused_at_the_handshake():
    async def test(venue, client):
        async with client.updates():
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.session.ws_connect(client.address["updates_stream"])
            assert refused.value.status == 429
    venue_test(test, replace(STILL, updates_limit=1))


def test_the_life_of_orders_on_the_stream():
    async def test(venue, client):
        async with client.updates() as updates:
            _, _, ask, ask_size = top(venue)
            # filled at once; the reply still says pending_new
            status, reply, _ = await client.order(qty=10, price=ask, client_order_id="hp-1")
            assert (status, reply["status"], reply["filled_qty"]) == (200, "pending_new", "0")
            first, new, fill = await updates.take("pending_new", "new", "fill")
            assert first["execution_id"] is None
            assert new["order"]["status"] == "new" and "price" not in new
            assert (fill["price"], fill["qty"], fill["position_qty"]) == (ask, "10", "10")
            assert fill["order"]["client_order_id"] == "hp-1"
            assert fill["order"]["filled_avg_price"] == ask and fill["order"]["filled_at"]
            assert first["event_id"] < new["event_id"] < fill["event_id"]
            assert len({first["event_id"], fill["execution_id"], new["execution_id"]}) == 3
            assert fill["timestamp"].endswith("Z")
            # ioc: the part that is there, the rest is cancelled
            left = ask_size - 10
            await client.order(qty=left + 90, price=ask)
            *parts, end = await rest_of(updates)
            assert end["event"] == "canceled"
            assert {p["event"] for p in parts} == {"pending_new", "new", "partial_fill"}
            assert sum(int(p["qty"]) for p in parts if "qty" in p) == left
            assert end["order"]["filled_qty"] == str(left) and end["order"]["canceled_at"]
            # resting, then cancelled
            _, order, _ = await client.order(tif="gtc", price="1.00")
            await updates.take("pending_new", "new")
            status, body, _ = await client.ask("DELETE", f"/v2/orders/{order['id']}")
            assert (status, body) == (204, None)
            end, = await updates.take("canceled")
            assert end["order"]["id"] == order["id"]
            # fok that cannot be filled
            await client.order(tif="fok", qty="1000000", price=top(venue)[2])
            await updates.take("pending_new", "new", "canceled")

    async def rest_of(updates):
        found = []
        while not found or found[-1]["event"] != "canceled":
            found.append(await updates.next())
        return found
    venue_test(test, replace(STILL, cash="100000000"))


def test_a_resting_order_is_filled_by_whoever_comes_in_time_priority():
    async def test(venue, client):
        traders, (bid, _, ask, _) = venue.exchange.traders, top(venue)
        async with client.updates() as updates:
            price = text(nano(bid) + NANO // 100)           # alone at a new best bid
            if price == ask:
                price = bid
            await client.order(qty="100", tif="day", price=price)
            await updates.take("pending_new", "new")
            ahead = dict(traders.levels(0, 1))[nano(price)] - 100 * NANO
            traders.submit(0, 1 << 63 | 999, -1, 2, 3, nano(price), ahead + 30 * NANO)
            venue.exchange.state.by_number.setdefault(999, STRANGER)
            venue.exchange._fill = stranger_ignored(venue.exchange)
            venue.exchange.pump()
            part, = await updates.take("partial_fill")
            assert (part["qty"], part["position_qty"], part["order"]["filled_qty"]) == (
                "30", "30", "30")
            assert part["order"]["status"] == "partially_filled"
            traders.submit(0, 1 << 63 | 999, -1, 2, 3, nano(price), 70 * NANO)
            venue.exchange.pump()
            fill, = await updates.take("fill")
            assert (fill["qty"], fill["position_qty"], fill["order"]["status"]) == (
                "70", "100", "filled")

    STRANGER = object()

    def stranger_ignored(exchange):
        real = type(exchange)._fill
        return lambda number, m: None if number == 999 else real(exchange, number, m)
    venue_test(test)


def test_day_orders_expire_and_a_book_without_room_rejects():
    async def test(venue, client):
        async with client.updates() as updates:
            await client.order(tif="day", price="1.00", qty="5")
            await client.order(tif="gtc", price="1.00", qty="5")
            await updates.take("pending_new", "new", "pending_new", "new")
            venue.exchange.end_session()
            end, = await updates.take("expired")
            assert end["order"]["time_in_force"] == "day" and end["order"]["expired_at"]
            for _ in range(9):
                await client.order(tif="gtc", price="0.01", qty=10**9)
                await updates.take("pending_new", "new")
            await client.order(tif="gtc", price="0.01", qty=10**9)
            *_, end = await updates.take("pending_new", "new", "rejected")
            assert end["order"]["status"] == "rejected" and end["order"]["failed_at"]
    venue_test(test, replace(STILL, cash="1000000000"))


def test_the_session_ends_by_itself_when_it_has_a_length():
    async def test(venue, client):
        _, order, _ = await client.order(tif="day", price="1.00")
        await client.until(order["id"], "expired")
    venue_test(test, replace(STILL, session=0.05))


def test_a_market_order_waits_for_somebody_to_trade_with():
    async def test(venue, client):
        async with client.updates() as updates:
            rest = sum(q for _, q in venue.exchange.traders.levels(0, -1)) // NANO
            _, order, _ = await client.order(type="market", tif="day", qty=rest + 5)
            events = []
            while sum(int(e.get("qty", 0)) for e in events) < rest:
                events.append(await updates.next())
            assert (await client.until(order["id"], "partially_filled"))["filled_qty"] == str(rest)
            venue.exchange.traders.submit(0, 1 << 63 | 999, -1, 2, 2, 60 * NANO, 5 * NANO)
            venue.exchange._fill = lambda number, m, real=venue.exchange._fill: (
                None if number == 999 else real(number, m))
            end = await updates.next()
            assert (end["event"], end["qty"]) == ("fill", "5")
    venue_test(test, replace(STILL, cash="1000000000"))


# ---------------------------------------------------------------- REST

GOOD = {"symbol": "ACME", "side": "buy", "qty": "10", "type": "limit", "time_in_force": "day",
        "limit_price": "10.01"}


@pytest.mark.parametrize(("change", "status", "code", "words"), [
    ({"symbol": "NOPE"}, 422, 40010001, 'asset "NOPE" not found'),
    ({"symbol": None}, 422, 40010001, "not found"),
    ({"side": "short"}, 422, 40010001, "side"), ({"type": "iceberg"}, 422, 40010001, "order type"),
    ({"type": ["x"]}, 422, 40010001, "order type"),
    ({"time_in_force": "gtx"}, 422, 40010001, "time_in_force"),
    ({"qty": None}, 422, 40010001, "qty or notional is required"),
    ({"notional": "5"}, 422, 40010001, "only one of"),
    ({"qty": "0"}, 422, 40010001, "qty must be > 0"), ({"qty": -5}, 422, 40010001, "qty must"),
    ({"qty": "NaN"}, 422, 40010001, "qty is not a valid decimal"),
    ({"qty": "1e30"}, 422, 40010001, "decimal"), ({"qty": [1]}, 422, 40010001, "decimal"),
    ({"qty": "0.0000000001"}, 422, 40010001, "decimal"),
    ({"qty": 10**9 + 1}, 422, 40010001, "qty must be <="),
    ({"qty": "1.5", "time_in_force": "gtc"}, 422, 40010001, "fractional orders must be DAY"),
    ({"qty": "1.5", "side": "sell"}, 403, 40310000, "cannot be sold short"),
    ({"qty": None, "notional": "0.5"}, 422, 40010001, "notional must be >= 1.00"),
    ({"qty": None, "notional": "5.001"}, 422, 40010001, "two decimal places"),
    ({"limit_price": None}, 422, 40010001, "limit orders require a limit price"),
    ({"type": "market"}, 422, 40010001, "market orders require no"),
    ({"limit_price": "10.001"}, 422, 42210000, "invalid limit_price 10.001. sub-penny"),
    ({"limit_price": "0.12345"}, 422, 42210000, "sub-penny"),
    ({"limit_price": "-1"}, 422, 40010001, "limit_price must be > 0"),
    ({"limit_price": "x"}, 422, 40010001, "limit_price is not"),
    ({"extended_hours": True, "time_in_force": "ioc"}, 422, 40010001, "extended hours"),
    ({"extended_hours": "yes"}, 422, 40010001, "boolean"),
    ({"order_class": "ladder"}, 422, 40010001, "order_class"),
    ({"position_intent": "maybe"}, 422, 40010001, "position_intent"),
    ({"client_order_id": "x" * 129}, 422, 40010001, "128 characters"),
    ({"client_order_id": 7}, 422, 40010001, "128 characters"),
    ({"qty": "100000"}, 403, 40310000, "insufficient buying power"),
])
def test_a_bad_order_is_refused_as_by_the_broker_and_leaves_nothing(change, status, code, words):
    async def test(venue, client):
        body = {k: v for k, v in (GOOD | change).items() if v is not None}
        got, error, _ = await client.ask("POST", "/v2/orders", body)
        assert (got, error["code"]) == (status, code) and words in error["message"]
        if status == 403 and "power" in words:
            assert (error["buying_power"], error["cost_basis"]) == ("400000", "1001000")
        assert (await client.ask("GET", "/v2/orders?status=all"))[1] == []
    venue_test(test)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"qty":1e999}'
                                 b"x", b'{"symbol":"ACME","qty":NaN}', b"[" * 5000])
def test_a_body_that_is_no_order_is_400(raw):
    async def test(venue, client):
        status, error, _ = await client.ask("POST", "/v2/orders", raw)
        assert (status, error["code"]) == (400, 40010000)
    venue_test(test)


def test_a_body_too_large_is_413_and_the_venue_goes_on():
    async def test(venue, client):
        status, _, _ = await client.ask("POST", "/v2/orders", b"[" + b" " * (2 << 20))
        assert status == 413
        assert (await client.ask("GET", "/v2/clock"))[0] == 200
    venue_test(test)


def test_numbers_may_be_strings_or_numbers_exactly():
    async def test(venue, client):
        for qty, price in (("10", "10.01"), (10, 10.01), (10.0, "10.010")):
            _, order, _ = await client.order(tif="day", qty=qty, price=price)
            assert (order["qty"], order["limit_price"]) == ("10", "10.01")
            assert order["type"] == order["order_type"] == "limit"
            assert order["legs"] is None and order["order_class"] == ""
    venue_test(test)


def test_a_client_order_id_is_unique_for_ever():
    async def test(venue, client):
        _, order, _ = await client.order(tif="day", price="1.00", client_order_id="once")
        await client.ask("DELETE", f"/v2/orders/{order['id']}")
        await client.until(order["id"], "canceled")
        status, error, _ = await client.order(tif="day", price="1.00", client_order_id="once")
        assert (status, error["code"]) == (422, 40010001)
        assert error["message"] == "client_order_id must be unique"
        _, found, _ = await client.ask(
            "GET", "/v2/orders:by_client_order_id?client_order_id=once")
        assert found["id"] == order["id"] and found["status"] == "canceled"
        status, error, _ = await client.ask(
            "GET", "/v2/orders:by_client_order_id?client_order_id=other")
        assert (status, error["code"]) == (404, 40410000)
        status, error, _ = await client.ask("DELETE", f"/v2/orders/{order['id']}")
        assert (status, error["code"]) == (422, 42210000)
        assert error["message"] == 'order is already in "canceled" state'
        assert (await client.ask("DELETE", "/v2/orders/nope"))[0] == 404
    venue_test(test)


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/v2/account"), ("POST", "/v2/orders"), ("GET", "/v2/orders"), ("GET", "/nowhere"),
    ("DELETE", "/v2/orders/x"), ("GET", "/v2/positions"), ("GET", "/v2/clock")])
def test_without_the_keys_nothing_is_told(method, path):
    async def test(venue, client):
        key = client.address["key"]
        for headers in ({}, {"APCA-API-KEY-ID": key}, {"Authorization": "Basic x!"},
                        {"APCA-API-KEY-ID": key, "APCA-API-SECRET-KEY": "wrong"},
                        {"Authorization": "Bearer abc"}):
            status, body, _ = await client.ask(method, path, headers=headers)
            assert (status, body) == (401, {"message": "unauthorized."})
        pair = "Basic " + base64.b64encode(f"{key}:{client.address['secret']}".encode()).decode()
        assert (await client.ask("GET", "/v2/account", headers={"Authorization": pair}))[0] == 200
    venue_test(test)


def test_the_rate_limit_is_told_and_enforced():
    async def test(venue, client):
        seen = []
        for _ in range(7):
            status, body, headers = await client.ask("GET", "/v2/clock")
            seen.append((status, int(headers["X-RateLimit-Remaining"])))
            assert headers["X-RateLimit-Limit"] == "5"
            assert 0 <= int(headers["X-RateLimit-Reset"]) - time.time() <= 60
            if status == 429:
                assert body["code"] == 42910000
        if len({r for _, r in seen}) == 6:          # no new minute began meanwhile
            assert seen == [(200, 4), (200, 3), (200, 2), (200, 1), (200, 0), (429, 0), (429, 0)]
        else:
            assert sum(s == 200 for s, _ in seen) <= 7
    venue_test(test, replace(STILL, rate_limit=5))


def test_short_wash_and_closing_rules():
    async def test(venue, client):
        async def refused(words, **order):
            status, error, _ = await client.order(**order)
            assert (status, error["code"]) == (403, 40310000)
            assert error["message"].startswith(words), error
            return error

        bid, _, ask, _ = top(venue)
        # resting buy: a sell that would meet it, or any market sell, is a wash trade
        _, rest, _ = await client.order(tif="day", price="1.00")
        error = await refused("potential wash trade", side="sell", price="1.00")
        assert error["existing_order_id"] == rest["id"]
        await refused("potential wash trade", side="sell", type="market", tif="day")
        await refused("cannot open a short sell while a long buy", side="sell", tif="day",
                      price="500")
        await client.ask("DELETE", f"/v2/orders/{rest['id']}")
        await client.until(rest["id"], "canceled")
        # long 10: no more than that can be sold, open sells count
        _, order, _ = await client.order(price=ask)
        await client.until(order["id"], "filled")
        error = await refused("insufficient qty available for order (requested: 11, available: 10)",
                              side="sell", qty="11", price=bid)
        assert (error["existing_qty"], error["held_for_orders"]) == ("10", "0")
        _, sell, _ = await client.order(side="sell", qty="6", tif="day", price="500")
        error = await refused("insufficient qty", side="sell", qty="5", tif="day", price="500")
        assert (error["available"], error["related_orders"]) == ("4", [sell["id"]])
        _, held, _ = await client.ask("GET", "/v2/positions/ACME")
        assert (held["qty"], held["qty_available"], held["side"]) == ("10", "4", "long")
        # flat again, then short, then not through zero
        status, _, _ = await client.ask("DELETE", "/v2/positions?cancel_orders=true")
        assert status == 207
        assert (await client.until(sell["id"], "canceled"))
        deadline = time.monotonic() + 10
        while (await client.ask("GET", "/v2/positions"))[1] and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        assert (await client.ask("GET", "/v2/positions/ACME"))[0] == 404
        _, order, _ = await client.order(side="sell", qty="3", price=top(venue)[0])
        view = await client.until(order["id"], "filled")
        assert view["position_intent"] == "sell_to_open"
        _, (held,), _ = await client.ask("GET", "/v2/positions")
        assert (held["qty"], held["side"], held["avg_entry_price"]) == (
            "-3", "short", view["filled_avg_price"])
        await refused("insufficient qty available", side="buy", qty="4", price=ask)
    venue_test(test)


def test_a_cash_account_cannot_short():
    async def test(venue, client):
        status, error, _ = await client.order(side="sell", price="500")
        assert (status, error["message"]) == (403, "account is not allowed to short")
    venue_test(test, replace(STILL, multiplier=1))


def test_buying_power_is_reserved_by_open_orders_and_freed_by_their_end():
    async def test(venue, client):
        async def power():
            return (await client.ask("GET", "/v2/account"))[1]["buying_power"]

        assert await power() == "400000"
        _, order, _ = await client.order(tif="day", qty="100", price="10.00")
        assert await power() == "399000"
        await client.ask("DELETE", f"/v2/orders/{order['id']}")
        await client.until(order["id"], "canceled")
        assert await power() == "400000"
    venue_test(test)


def test_cash_positions_and_equity_agree_with_the_fills():
    async def test(venue, client):
        spent = Fraction(0)
        for side, qty in (("buy", 30), ("buy", 7), ("sell", 20)):
            _, order, _ = await client.order(side=side, qty=qty, type="market", tif="day")
            view = await client.until(order["id"], "filled")
            spent += Fraction(view["filled_avg_price"]) * qty * (1 if side == "buy" else -1)
        _, account, _ = await client.ask("GET", "/v2/account")
        assert Fraction(account["cash"]) == 100_000 - spent
        _, (held,), _ = await client.ask("GET", "/v2/positions")
        assert held["qty"] == "17"
        assert Fraction(account["equity"]) == (
            Fraction(account["cash"]) + Fraction(held["market_value"]))
        assert Fraction(held["market_value"]) == 17 * Fraction(held["current_price"])
        assert Fraction(held["unrealized_pl"]) == (
            Fraction(held["market_value"]) - Fraction(held["cost_basis"]))
    venue_test(test)


def test_crypto_orders_by_notional_and_fractions():
    async def test(venue, client):
        status, error, _ = await client.order(symbol="BTC/USD", tif="day", price="100.00")
        assert (status, error["message"]) == (422, "invalid crypto time_in_force")
        status, error, _ = await client.order(symbol="BTC/USD", side="sell", price="100.00")
        assert status == 403 and error["message"].startswith("insufficient balance for BTC")
        status, order, _ = await client.ask("POST", "/v2/orders", {
            "symbol": "BTCUSD", "side": "buy", "type": "market", "time_in_force": "gtc",
            "notional": 250.5})
        assert (status, order["notional"], order["symbol"]) == (200, "250.5", "BTC/USD")
        view = await client.until(order["id"], "filled")
        assert 0 < 250.5 - float(view["filled_qty"]) * float(view["filled_avg_price"]) < 1
        for name in ("BTCUSD", "BTC%2FUSD", "BTC/USD", order["asset_id"]):
            assert (await client.ask("GET", f"/v2/positions/{name}"))[1]["symbol"] == "BTCUSD"
            assert (await client.ask("GET", f"/v2/assets/{name}"))[1]["symbol"] == "BTC/USD"
    venue_test(test, replace(STILL, symbols=("ACME", "BTC/USD")))


def test_lists_of_orders_filter_and_sort():
    async def test(venue, client):
        made = [(await client.order(tif="day", price="1.00", symbol=s))[1]["id"]
                for s in ("ACME", "BOLT", "ACME", "CRUX")]
        await client.ask("DELETE", f"/v2/orders/{made[2]}")
        await client.until(made[2], "canceled")

        async def ids(query):
            status, body, _ = await client.ask("GET", f"/v2/orders?{query}")
            return [made.index(o["id"]) for o in body] if status == 200 else status
        assert await ids("") == [3, 1, 0]
        assert await ids("status=all&direction=asc") == [0, 1, 2, 3]
        assert await ids("status=closed") == [2]
        assert await ids("status=all&symbols=ACME,CRUX&limit=2&nested=True") == [3, 2]
        assert await ids("side=sell") == [] and await ids("side=buy&limit=1") == [3]
        assert await ids(f"status=all&after_order_id={made[1]}") == [3, 2]
        assert await ids(f"status=all&before_order_id={made[1]}") == [0]
        _, order, _ = await client.ask("GET", f"/v2/orders/{made[1]}")
        assert await ids(f"status=all&after={order['submitted_at']}") == [3, 2]
        assert await ids(f"status=all&until={order['submitted_at']}") == [0]
        for bad in ("status=x", "limit=0", "limit=501", "limit=x", "direction=x", "after=x",
                    "symbols=NOPE"):
            assert await ids(bad) == 422
        status, rows, _ = await client.ask("DELETE", "/v2/orders")
        assert status == 207 and {r["status"] for r in rows} == {200} and len(rows) == 3
        await client.until(made[3], "canceled")
        assert await ids("") == []
    venue_test(test)


def test_assets_clock_and_unknown_paths():
    async def test(venue, client):
        _, assets, _ = await client.ask("GET", "/v2/assets?status=active&asset_class=us_equity")
        assert [a["symbol"] for a in assets] == ["ACME", "BOLT", "CRUX", "DYNE"]
        assert {"easy_to_borrow", "borrow_status", "fractionable"} <= set(assets[0])
        status, error, _ = await client.ask("GET", "/v2/assets/NOPE")
        assert (status, error["code"]) == (404, 40410000)
        _, clock, _ = await client.ask("GET", "/v2/clock")
        assert clock["is_open"] is True and set(clock) == {
            "timestamp", "is_open", "next_open", "next_close"}
        assert (await client.ask("GET", "/v2/nope"))[0] == 404
        assert (await client.ask("PUT", "/v2/orders"))[0] == 405
    venue_test(test)


# ---------------------------------------------------------------- what it remembers

def test_the_log_is_what_happened(tmp_path):
    """Receive stamps lie between the client's own, fills add up, frames hold their messages."""
    config = replace(STILL, state=tmp_path, stamps=True, rate=500.0)

    async def test(venue, client):
        async with client.login(quotes=["*"], trades=["*"]) as stream:
            sent = {}
            for i in range(20):
                before = now_ns()
                status, _, _ = await client.order(
                    side="buy" if i % 2 == 0 else "sell", price="500" if i % 2 == 0 else "1.00",
                    qty="3", client_order_id=f"hp-{i}")
                sent[f"hp-{i}"] = (before, now_ns(), status)
            seen = []
            while len(seen) < 300:
                seen += [(m["t"], now_ns()) for m in await stream.some()]
        held = venue.exchange.state.held("ACME")
        log = read_log(tmp_path)
        received = {r["client_order_id"]: r["recv"] for r in log
                    if r["kind"] in ("order", "refused")}
        assert received.keys() == sent.keys()
        for name, (before, after, _) in sent.items():
            assert before < received[name] < after
        fills = [r for r in log if r["kind"] == "event" and r["event"] in ("fill", "partial_fill")]
        sides = {r["id"]: 1 if r["side"] == "buy" else -1 for r in log if r["kind"] == "order"}
        assert sum(nano(f["qty"]) * sides[f["id"]] for f in fills) == held
        assert len({f["execution_id"] for f in fills}) == len(fills) >= 20
        venue.stamps.flush()
        frames = [json.loads(line)
                  for line in (tmp_path / "frames.jsonl").read_text().splitlines()]
        for (_, data), got in seen:
            word = int.from_bytes(data, "big")
            t = (word & (1 << 34) - 1) * NANO + (word >> 34)
            (frame,) = [f for f in frames if f["t"][0] <= t <= f["t"][1]]
            assert frame["at"][0] <= frame["at"][1] and frame["at"][0] < got
    venue_test(test, config)


def test_the_receive_stamp_is_of_the_first_byte_also_when_a_body_comes_late(tmp_path):
    async def test(venue, client):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(client.address["rest"].rpartition(":")[2]))
        spans = {}
        for name in ("a", "b", "c"):
            body = json.dumps({**GOOD, "client_order_id": name, "limit_price": "1.00"}).encode()
            head = "".join(f"{k}: {v}\r\n" for k, v in client.headers.items())
            head = f"POST /v2/orders HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n"
            before = now_ns()
            writer.write(head.encode())
            await asyncio.sleep(0.02)
            between = now_ns()
            for part in (b"\r\n", body[:5], body[5:]):
                writer.write(part)
                await asyncio.sleep(0.02)
            spans[name] = (before, between)
            answer = await reader.readuntil(b"\r\n\r\n")
            size = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(size))["client_order_id"] == name
        writer.close()
        await writer.wait_closed()
        received = {r["client_order_id"]: r["recv"] for r in read_log(tmp_path)
                    if r["kind"] == "order"}
        for name, (before, between) in spans.items():
            assert before < received[name] < between
    venue_test(test, replace(STILL, state=tmp_path))


def view_of(client_address):
    """Everything the account shows, from outside."""
    async def main():
        async with aiohttp.ClientSession() as session:
            client = Client(client_address, session)
            _, orders, _ = await client.ask("GET", "/v2/orders?status=all&limit=500")
            _, positions, _ = await client.ask("GET", "/v2/positions")
            _, account, _ = await client.ask("GET", "/v2/account")
            return (orders, {p["symbol"]: (p["qty"], p["avg_entry_price"]) for p in positions},
                    account["cash"], account["id"])
    return asyncio.run(main())


@pytest.mark.venue
def test_kill_nine_loses_nothing_that_was_said(tmp_path):
    """Killed in the middle of its work, three times; each life goes on from the last."""
    arguments = ("--state", str(tmp_path), "--rate", "300", "--rate-limit", "0")
    known, resting, before = {}, None, ()
    for life in range(3):
        with spawn(*arguments, key="PKTEST", secret="s3cret") as (process, address):
            if life:
                orders, positions, cash, account = view_of(address)
                assert {o["id"]: o for o in orders} == {o["id"]: o for o in before[0]}
                assert (positions, cash, account) == before[1:]

            async def trade(address=address, life=life, resting=resting):
                async with aiohttp.ClientSession() as session:
                    client = Client(address, session)
                    async with client.updates() as updates:
                        if life:            # what rested is in the book again: cancel it
                            status, _, _ = await client.ask("DELETE", f"/v2/orders/{resting}")
                            assert status == 204
                            end = await updates.next()
                            assert (end["event"], end["order"]["id"]) == ("canceled", resting)
                        for i in range(25):
                            name = f"hp-{life}-{i}"
                            status, order, _ = await client.order(
                                qty="2", price="900", client_order_id=name,
                                side="buy", symbol=("ACME", "BOLT")[i % 2])
                            assert status == 200
                            while (await updates.next())["event"] not in ("fill", "canceled"):
                                pass
                        status, again, _ = await client.order(price="900",
                                                              client_order_id="hp-0-0")
                        assert (status, again["message"]) == (422, "client_order_id must be unique")
                        _, order, _ = await client.order(tif="gtc", price="1.00", symbol="CRUX")
                        while (await updates.next())["event"] != "new":
                            pass
                        return order["id"]
            resting = asyncio.run(trade())
            before = view_of(address)
            process.kill()
            process.wait()
        known[life] = len(before[0])
    assert known == {0: 26, 1: 52, 2: 78}
    state = State(tmp_path, 100_000 * NANO * NANO)
    try:
        assert state.runs == 3 and len(state.orders) == 78
        assert text(state.cash // NANO) == before[2]
    finally:
        state.close()


def test_a_torn_last_line_is_dropped_and_a_broken_one_refused(tmp_path):
    async def one():
        async with Venue(replace(STILL, state=tmp_path)) as venue:
            async with aiohttp.ClientSession() as session:
                await Client(venue.address, session).order(tif="gtc", price="1.00")
            return len(venue.exchange.state.orders)
    assert asyncio.run(one()) == 1
    path = tmp_path / "orders.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"order","ts":12')
    assert asyncio.run(one()) == 2
    lines = path.read_bytes().splitlines()
    assert lines[:whole.count(b"\n")] == whole.splitlines()     # and nothing stuck to the torn one
    assert all(json.loads(line)["kind"] for line in lines)
    for bad in (b"nonsense\n", b'{"ts":1}\n'):
        path.write_bytes(whole + bad + whole)
        with pytest.raises(DataError, match=rf"orders\.jsonl:{whole.count(bytes([10])) + 1}: "):
            asyncio.run(one())


def test_a_state_directory_has_one_venue(tmp_path):
    async def test(venue, client):
        with pytest.raises(BusyError, match="another venue"):
            async with Venue(replace(STILL, state=tmp_path)):
                pass
    venue_test(test, replace(STILL, state=tmp_path))


def test_a_state_with_an_open_order_in_another_symbol_is_refused(tmp_path):
    async def first(venue, client):
        await client.order(tif="gtc", price="1.00", symbol="DYNE")
    venue_test(first, replace(STILL, state=tmp_path))
    with pytest.raises(ConfigError, match="in DYNE, the symbols are ACME"):
        venue_test(first, replace(STILL, state=tmp_path, symbols=("ACME",)))


def test_a_log_that_cannot_be_written_stops_the_venue(tmp_path):
    async def main():
        async with Venue(replace(STILL, state=tmp_path)) as venue:
            async with aiohttp.ClientSession() as session:
                client = Client(venue.address, session)
                os.close(venue.state._file)
                venue.state._file = os.open("/dev/full", os.O_WRONLY)
                status, error, _ = await client.order(price="500")
                assert (status, error["code"]) == (500, 50010000)
                assert venue.exchange.state.orders == {}
                await venue.wait(10)
                venue.state._file, broken = None, venue.state._file
                os.close(broken)
    with pytest.raises(OSError, match="No space left"):
        asyncio.run(main())


# ---------------------------------------------------------------- as a command

def run_command(*arguments, timeout=30, env=None):
    command = [sys.executable, "-m", "hftpipe", "venue", *arguments]
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, "PYTHONPATH": path, **(env or {})})


@pytest.mark.venue
def test_the_first_line_names_everything_and_sigterm_ends_it():
    with spawn() as (process, address):
        assert {"rest", "data_stream", "updates_stream", "key", "secret", "symbols",
                "data_stream_crypto", "pid", "seed"} <= set(address)
        assert address["pid"] == process.pid and address["rest"].startswith("http://127.0.0.1:")
        assert address["symbols"] == ["ACME", "BOLT", "CRUX", "DYNE"]
        with open(f"/proc/{process.pid}/cmdline") as file:
            line = file.read()
        assert address["secret"] not in line and address["key"] not in line
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - begin < 10


@pytest.mark.venue
def test_clients_are_told_that_it_goes_away():
    with spawn() as (process, address):
        async def main():
            async with aiohttp.ClientSession() as session:
                client = Client(address, session)
                async with client.login(quotes=["*"]) as stream, client.updates() as updates:
                    process.send_signal(signal.SIGINT)
                    while (message := await stream.ws.receive(10)).type is (
                            aiohttp.WSMsgType.BINARY):
                        pass
                    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
                    message = await updates.ws.receive(10)
                    assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1001)
        asyncio.run(main())
        assert process.wait(10) == 0


@pytest.mark.venue
def test_keys_come_from_the_environment_and_it_stops_by_itself():
    done = run_command("-o", "json", "--for", "100ms", "--rate", "0", env={
        "HFTPIPE_VENUE_KEY": "PKENV", "HFTPIPE_VENUE_SECRET": "fromenv"})
    assert done.returncode == 0 and done.stderr == ""
    address = json.loads(done.stdout)
    assert (address["key"], address["secret"]) == ("PKENV", "fromenv")


@pytest.mark.venue
@pytest.mark.parametrize(("arguments", "status", "words"), [
    (("--symbols", "acme"), 2, "symbol must be like"), (("--symbols", ""), 2, "symbols must be"),
    (("--symbols", "ACME,ACME"), 2, "each once"), (("--rate", "-1"), 2, "rate must be"),
    (("--rate", "nan"), 2, "rate must be"), (("--seed", "-1"), 2, "seed must be"),
    (("--port", "70000"), 2, "port must be"), (("--stamps",), 2, "stamps must be"),
    (("--cash", "much"), 2, "cash must be"),
    (("--now", "soon"), 2, "now must be a time"),
    (("--multiplier", "3"), 2, "multiplier must be"),
    (("--for", "soon"), 2, "must be a time"),
    (("--state", "/dev/null/x"), 4, "cannot keep the venue's state"),
    (("--host", "203.0.113.1"), 75, "cannot listen on 203.0.113.1")])
def test_what_cannot_be_is_one_line_and_an_exit_code(arguments, status, words):
    done = run_command(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.venue
def test_a_port_in_use_is_try_again():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_command("--port", str(port))
        assert (done.returncode, len(done.stderr.splitlines())) == (75, 1)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr
        with pytest.raises(HftpipeError, match="ended with 75"):
            with spawn("--port", str(port)):
                pass


@pytest.mark.venue
def test_it_dies_with_its_parent(tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom hftpipe.venue import spawn\n"
         "with spawn('--rate', '0') as (p, a):\n    print(p.pid, flush=True)\n    time.sleep(60)"],
        stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)})
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{child}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    break
        except FileNotFoundError:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the venue outlived its parent")


def test_a_host_or_cash_that_cannot_be_is_a_usage_error():
    async def go(**fields):
        async with Venue(replace(STILL, **fields)):
            pass

    for fields, wanted in (({"host": "no.such.host.invalid"}, "host must be an address of this"),
                           ({"cash": "-5"}, "cash must be 0 or more, was -5")):
        with pytest.raises(UsageError, match=wanted):
            asyncio.run(go(**fields))


def test_a_config_that_cannot_be_is_refused():
    for bad in ({"rate": -1.0}, {"tick": 0.0}, {"multiplier": 3}, {"port": -1}, {"buffer": 1},
                {"stamps": True}):
        with pytest.raises(UsageError):
            Config(**bad)
    assert STILL.secret not in repr(STILL)
