"""Each fault of the local venue, seen at the wire; what the venue itself knows stays right."""
from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import msgspec
import numpy
import pytest

from hftpipe._clock import utc_ns
from hftpipe.errors import ConfigError, UsageError
from hftpipe.venue import Config, Venue, read_log
from hftpipe.venue.chaos import GROUPS, KINDS, PROFILES, Moments, hits, load, parse
from hftpipe.venue.state import NANO
from tests.test_venue import STILL, Client, top

pytestmark = pytest.mark.venue
ALWAYS = {"share": 1.0}
LONG = {"every": "100ms", "for": "1h"}          # once it has begun it does not end


def chaos_test(tmp_path, test, config=STILL, **faults):
    """Run ``test(venue, client)`` against a venue with *faults*; its log afterwards."""
    profile = parse("test", faults)

    async def main():
        async with Venue(replace(config, state=tmp_path, chaos=profile)) as venue, \
                aiohttp.ClientSession() as session:
            client = Client(venue.address, session)
            await test(venue, client)
    asyncio.run(main())
    log = read_log(tmp_path)
    sound(log)
    return log


def sound(log):
    """The log of truth: each order once, each execution once, quantities that add up."""
    orders = {line["id"]: line for line in log if line["kind"] == "order"}
    names = [line["client_order_id"] for line in orders.values()]
    assert len(set(names)) == len(names)
    fills = [line for line in log if line["kind"] == "event" and "price" in line]
    assert len({f["execution_id"] for f in fills}) == len(fills)
    for f in fills:
        mine = [g for g in fills if g["id"] == f["id"]]
        assert float(mine[-1]["cum_qty"]) == sum(float(g["qty"]) for g in mine)


async def until(condition, what):
    end = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(0.005)
    return found


async def began(venue, kind):
    """Wait until *kind*, which lasts, is on."""
    await until(lambda: venue.chaos.window(kind), f"{kind} is on")


async def buy(client, venue, name, qty="1", **more):
    return await client.order(price=top(venue)[2], qty=qty, client_order_id=name, **more)


def filled(venue, name):
    order = venue.exchange.state.by_client.get(name)
    return order is not None and order.status == "filled"


def of(log, kind):
    return [line for line in log if line["kind"] == "chaos" and line["fault"] == kind]


# ---------------------------------------------------------------- connections

def test_a_mute_stream_is_open_answers_pings_and_says_nothing(tmp_path):
    async def test(venue, client):
        async with client.login(quotes=["ACME"]) as stream, client.updates() as updates:
            await until(lambda: venue.chaos.counts["mute"] >= 2, "both are mute")
            assert (await buy(client, venue, "a"))[0] == 200
            await until(lambda: filled(venue, "a"), "it is filled")
            for ws in (stream.ws, updates.ws):
                ws._autoping = False                    # show us the answer
                await ws.ping(b"there?")
                assert (await ws.receive(20)).type is aiohttp.WSMsgType.PONG
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(ws.receive(), 0.3)
            assert venue.chaos.counts["mute"] > 2       # what was not said
    log = chaos_test(tmp_path, test, mute={"every": "100ms", "for": "1h"})
    assert {line["hit"] for line in of(log, "mute")} == {"/v2/iex", "/stream"}


def test_a_broken_connection_has_no_close_and_can_be_made_again(tmp_path):
    async def test(venue, client):
        for connect in (lambda: client.login(quotes=["ACME"]), client.updates):
            for _ in range(2):
                async with connect() as stream:
                    message = await stream.ws.receive(20)
                    assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
                    assert stream.ws.close_code in (None, 1006)
    log = chaos_test(tmp_path, test, disconnect={"every": "300ms"})
    assert len(of(log, "disconnect")) >= 4


def test_who_comes_back_too_early_is_told_406(tmp_path):
    async def test(venue, client):
        async with client.login() as stream:
            assert (await stream.ws.receive(20)).type in (
                aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        async with client.data() as stream:
            await stream.one()
            await stream.say(action="auth", key=client.address["key"],
                             secret=client.address["secret"])
            assert await stream.error() == 406
        await until(lambda: not venue.chaos.window("refuse_406"), "it is over")
        async with client.login():
            pass
    log = chaos_test(tmp_path, test, refuse_406={"every": "4s", "for": "2s"},
                     chaos={"stop": "3500ms"})
    assert len(of(log, "refuse_406")) == 1


@pytest.mark.parametrize("path", ["/v2/iex", "/stream"])
def test_who_comes_back_too_early_gets_429_at_the_handshake(tmp_path, path):
    async def test(venue, client):
        async with client.updates() as updates, client.login() as stream:
            for ws in (updates.ws, stream.ws):
                assert (await ws.receive(20)).type in (
                    aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with client.data(path):
                pass
        assert refused.value.status == 429
        await until(lambda: not venue.chaos.window("refuse_429"), "it is over")
        async with client.data(path):
            pass
    log = chaos_test(tmp_path, test, refuse_429={"every": "4s", "for": "2s"},
                     chaos={"stop": "3500ms"})
    assert [line["hit"] for line in of(log, "refuse_429")] == [path]


def test_a_client_is_called_slow_and_dropped(tmp_path):
    async def test(venue, client):
        async with client.login() as stream:
            assert await stream.error() == 407
            assert (await stream.ws.receive(20)).type in (
                aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        async with client.login():
            pass
    log = chaos_test(tmp_path, test, slow_client={"every": "300ms"})
    assert of(log, "slow_client")


@pytest.mark.parametrize("packed", [True, False])
def test_a_malformed_frame_cannot_be_read_and_the_next_one_can(tmp_path, packed):
    decode = msgspec.msgpack.decode if packed else msgspec.json.decode

    async def test(venue, client):
        good = bad = 0
        async with client.login(packed=packed, quotes=["*"]) as stream:
            while good < 20 or bad < 3 or len({
                    x["form"] for x in of(read_log(tmp_path), "malformed")}) < 2:
                message = await stream.ws.receive(20)
                try:
                    assert decode(message.data)[0]["T"] == "q"
                    good += 1
                except msgspec.DecodeError:
                    bad += 1
            assert bad <= venue.chaos.counts["malformed"]       # some are on their way
    log = chaos_test(tmp_path, test, replace(STILL, rate=500.0), malformed={"every": "100ms"})
    assert {line["form"] for line in of(log, "malformed")} == {"cut", "noise"}


def test_a_malformed_update_is_lost_and_the_venue_knows_better(tmp_path):
    async def test(venue, client):
        async with client.updates() as updates:
            await until(lambda: all(line.spoil for line in venue.chaos.lines), "the next is bad")
            await buy(client, venue, "a")
            message = await updates.ws.receive(20)
            with pytest.raises(ValueError, match=r"."):
                json.loads(message.data.decode())
            await until(lambda: filled(venue, "a"), "it is filled")
    log = chaos_test(tmp_path, test, malformed={"every": "200ms", "on": ["updates"]})
    assert of(log, "malformed")[0]["about"] == "pending_new a"


def test_a_frame_that_is_too_large(tmp_path):
    async def test(venue, client):
        url = client.address["rest"].replace("http", "ws")
        for path, login in (("/stream", None), ("/v2/iex", client.address)):
            async with client.session.ws_connect(
                    url + path, max_msg_size=0,
                    headers={"Content-Type": "application/msgpack"} if login else {}) as ws:
                while len((message := await ws.receive(20)).data) < 1 << 20:
                    pass
                body = (msgspec.msgpack if login else msgspec.json).decode(message.data)
                assert len(message.data) > 3 << 20 and body
    log = chaos_test(tmp_path, test, oversized={"every": "200ms", "size": 3 << 20})
    assert {line["hit"] for line in of(log, "oversized")} == {"/v2/iex", "/stream"}


# ---------------------------------------------------------------- updates

def test_updates_come_twice_and_count_once(tmp_path):
    async def test(venue, client):
        async with client.updates() as updates:
            await buy(client, venue, "a", "7")
            got = await updates.take("pending_new", "pending_new", "new", "new", "fill", "fill")
            assert got[4] == got[5]
            _, position, _ = await client.ask("GET", "/v2/positions/ACME")
            assert position["qty"] == "7" == got[5]["position_qty"]
    log = chaos_test(tmp_path, test, duplicate=ALWAYS)
    assert [line["about"] for line in of(log, "duplicate")] == ["pending_new a", "new a", "fill a"]


def test_updates_come_late_and_none_is_lost(tmp_path):
    async def test(venue, client):
        async with client.updates() as updates:
            for n in range(4):
                await buy(client, venue, f"o{n}")
            got = [await updates.next() for _ in range(12)]
            times = [g["event_id"] for g in got]
            assert len(set(times)) == 12 and times != sorted(times)
            truth = [e["event_id"] for e in read_log(tmp_path) if e["kind"] == "event"]
            assert sorted(times) == sorted(truth)
    log = chaos_test(tmp_path, test, late={"share": 1.0, "within": "400ms"})
    assert len(of(log, "late")) == 12


def test_updates_are_missing_and_the_order_is_filled(tmp_path):
    async def test(venue, client):
        async with client.updates() as updates:
            await buy(client, venue, "a")
            await until(lambda: filled(venue, "a"), "it is filled")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(updates.ws.receive(), 0.3)
            _, view, _ = await client.ask(
                "GET", "/v2/orders:by_client_order_id?client_order_id=a")
            assert view["status"] == "filled"
    log = chaos_test(tmp_path, test, missing=ALWAYS)
    assert len(of(log, "missing")) == 3


def test_updates_come_the_wrong_way_round(tmp_path):
    async def test(venue, client):
        async with client.updates() as updates:
            await buy(client, venue, "a")
            await updates.take("new", "pending_new", "fill")    # the last found none to swap with
    log = chaos_test(tmp_path, test, reorder=ALWAYS)
    assert len(of(log, "reorder")) == 1


def test_a_fill_comes_before_the_acknowledgement(tmp_path):
    async def test(venue, client):
        async with client.updates() as updates:
            task = asyncio.create_task(buy(client, venue, "a"))
            seen = await updates.take("pending_new", "new", "fill")
            assert not task.done()                      # the answer takes a second
            status, view, _ = await task
            assert (status, view["status"]) == (200, "pending_new")
            assert view["id"] == seen[2]["order"]["id"]
    log = chaos_test(tmp_path, test, fill_first={"share": 1.0, "delay": "1s"})
    assert of(log, "fill_first")[0]["hit"] == "a"


# ---------------------------------------------------------------- answers

LOST = (aiohttp.ClientConnectionError, ConnectionResetError, TimeoutError)


async def attempt(client, venue, name, seconds=20.0):
    """Status of an order's answer; None when none came."""
    body = {"symbol": "ACME", "side": "buy", "qty": "1", "type": "limit", "time_in_force": "ioc",
            "limit_price": top(venue)[2], "client_order_id": name}
    try:
        async with asyncio.timeout(seconds), client.session.post(
                client.address["rest"] + "/v2/orders", headers=client.headers,
                data=io.BytesIO(json.dumps(body).encode())) as reply:   # aiohttp repeats no stream
            await reply.read()
            return reply.status
    except LOST:
        return None


@pytest.mark.parametrize("how", ["close", "reset", "silence"])
def test_the_answer_is_lost_and_the_order_accepted(tmp_path, how):
    async def test(venue, client):
        assert await attempt(client, venue, "a", 0.5 if how == "silence" else 20) is None
        await until(lambda: filled(venue, "a"), "it is filled")
        assert (await client.ask("GET", "/v2/positions/ACME"))[1]["qty"] == "1"
    log = chaos_test(tmp_path, test, lost_now={"share": 1.0, "how": [how]})
    assert [(x["hit"], x["accepted"]) for x in of(log, "lost_now")] == [("a", True)]


def test_the_answer_is_lost_and_the_order_accepted_later(tmp_path):
    async def test(venue, client):
        for n in range(8):
            assert await attempt(client, venue, f"o{n}") is None
        await until(lambda: all(filled(venue, f"o{n}") for n in range(8)), "all are filled")
    log = chaos_test(tmp_path, test,
                     lost_late={"share": 1.0, "within": "2s", "how": ["close", "reset"]})
    made = {line["client_order_id"]: line["ts"] for line in log if line["kind"] == "order"}
    lost = of(log, "lost_late")
    assert len(lost) == len(made) == 8 and len({line["delay"] for line in lost}) == 8
    for line in lost:                       # not there when it was asked for, there afterwards
        assert made[line["hit"]] - line["ts"] >= (line["delay"] - 0.002) * NANO


def test_an_order_accepted_late_is_not_accepted_again(tmp_path):
    async def test(venue, client):
        venue.chaos._chance["lost_late"].random = iter((0.0, 0.5, 1.0, 1.0)).__next__
        assert await attempt(client, venue, "a") is None
        assert await attempt(client, venue, "a") == 200         # asked for again, too soon
        await until(lambda: any(x["kind"] == "refused" for x in read_log(tmp_path)), "refused")
    log = chaos_test(tmp_path, test,
                     lost_late={"share": 0.9, "within": "1s", "how": ["close"]})
    assert [x["client_order_id"] for x in log if x["kind"] == "order"] == ["a"]
    assert [x["message"] for x in log if x["kind"] == "refused"] == [
        "client_order_id must be unique"]


def test_the_request_is_lost_and_the_order_never_accepted(tmp_path):
    async def test(venue, client):
        for n in range(5):
            assert await attempt(client, venue, f"o{n}") is None
        assert not venue.exchange.state.orders
        assert (await client.ask("GET", "/v2/positions"))[1] == []
    log = chaos_test(tmp_path, test, lost_never={"share": 1.0, "how": ["close", "reset"]})
    assert [x["hit"] for x in of(log, "lost_never")] == [f"o{n}" for n in range(5)]
    assert not [x for x in log if x["kind"] == "order"]


@pytest.mark.parametrize(("kind", "status"), [
    ("error_500", 500), ("error_502", 502), ("error_504", 504), ("reset", None)])
def test_an_error_leaves_open_whether_the_order_was_accepted(tmp_path, kind, status):
    async def test(venue, client):
        for n in range(20):
            try:
                async with client.session.post(
                        client.address["rest"] + "/v2/orders", headers=client.headers, json={
                            "symbol": "ACME", "side": "buy", "qty": "1", "type": "market",
                            "time_in_force": "day", "client_order_id": f"o{n}"}) as reply:
                    assert reply.status == status
                    if kind == "error_500":
                        assert (await reply.json())["code"] == 50010000
                    else:
                        assert (await reply.text()).startswith("<html>")
            except LOST:
                assert status is None
        try:
            async with client.session.get(client.address["rest"] + "/v2/orders",
                                          headers=client.headers) as reply:
                assert reply.status == status
        except LOST:
            assert status is None
    log = chaos_test(tmp_path, test, **{kind: ALWAYS})
    made = {line["client_order_id"] for line in log if line["kind"] == "order"}
    told = {line["hit"]: line["accepted"] for line in of(log, kind)}
    assert made == {name for name, accepted in told.items() if accepted}
    assert 0 < len(made) < 20 and told["GET /v2/orders"] is False


def test_a_cancel_may_be_done_and_not_told(tmp_path):
    async def test(venue, client):
        _, order, _ = await client.order(price="1", qty="1", tif="day")
        await client.until(order["id"], "new")
        venue.chaos._chance["error_500"].random = lambda: 0.0
        assert (await client.ask("DELETE", f"/v2/orders/{order['id']}"))[0] == 500
        assert not venue.exchange.state.open_orders()
    chaos_test(tmp_path, test, error_500={"share": 1e-12})


def test_a_storm_refuses_everything_and_says_how_long(tmp_path):
    async def test(venue, client):
        await began(venue, "storm_429")
        for method, path in (("POST", "/v2/orders"), ("GET", "/v2/positions"),
                             ("DELETE", "/v2/orders")):
            status, body, headers = await client.ask(method, path, {} if method == "POST" else None)
            assert (status, body["code"]) == (429, 42910000)
            assert 1 <= int(headers["Retry-After"]) <= 4
        await until(lambda: not venue.chaos.window("storm_429"), "it is over")
        assert (await buy(client, venue, "a"))[0] == 200
    log = chaos_test(tmp_path, test, storm_429={"every": "4s", "for": "3s"},
                     chaos={"stop": "3500ms"})
    assert [line["hit"] for line in of(log, "storm_429")] == [
        "POST /v2/orders", "GET /v2/positions", "DELETE /v2/orders"]
    assert [x["client_order_id"] for x in log if x["kind"] == "order"] == ["a"]


# ---------------------------------------------------------------- conditions

def test_everything_takes_a_tenth_of_a_second_longer(tmp_path):
    async def test(venue, client):
        clock = asyncio.get_running_loop().time
        await began(venue, "latency")
        async with client.updates() as updates:
            before = clock()
            await buy(client, venue, "a")
            assert clock() - before >= 0.099
            await updates.take("pending_new", "new", "fill")
            now = utc_ns()
        made = {e["event"]: e["ts"] for e in read_log(tmp_path) if e["kind"] == "event"}
        assert now - made["fill"] >= 0.099 * NANO
    log = chaos_test(tmp_path, test, latency=LONG)
    counted = hits(log)["latency"]
    assert counted >= 4 and {"/stream", "POST /v2/orders"} <= {
        line["hit"] for line in of(log, "latency")}


def test_lost_segments_delay_what_is_behind_them_and_lose_nothing(tmp_path):
    async def test(venue, client):
        await began(venue, "loss")
        async with client.updates() as updates:
            for n in range(10):
                await buy(client, venue, f"o{n}")
            got = [await updates.next() for _ in range(30)]
        assert [g["event_id"] for g in got] == [
            e["event_id"] for e in read_log(tmp_path) if e["kind"] == "event"]
    log = chaos_test(tmp_path, test, loss={**LONG, "share": 0.1})
    assert 0 < hits(log)["loss"] < 42


def test_the_market_moves_twice_as_fast(tmp_path):
    """Its time does: n seconds have the messages of 2 n."""
    async def test(venue, client):
        await began(venue, "load")
        traders, chaos = venue.exchange.traders, venue.chaos
        async with client.login(quotes=["*"], trades=["*"]) as stream:
            # Both as of the venue's last look at the clock: a busy machine looks late.
            real, ahead, messages = chaos._looked, chaos._ahead, traders.messages
            seen = 0
            while seen < 1000:
                seen += len(await stream.some())
            real, ahead = chaos._looked - real, chaos._ahead - ahead
            virtual = real + ahead - venue.skipped
            assert ahead == real > 0
            assert 0.5 < (traders.messages - messages) / (500 * virtual / NANO) < 1.5
    log = chaos_test(tmp_path, test, replace(STILL, rate=500.0), load={**LONG, "factor": 2})
    assert hits(log)["load"] >= 1000


def test_a_wrong_clock_is_told_and_not_written_down(tmp_path):
    async def test(venue, client):
        await until(lambda: venue.chaos.shift, "the clock is wrong")
        hour = 3600 * NANO

        def wrong(text):
            return abs(numpy.datetime64(text[:-1], "ns").astype("int64") + hour - utc_ns()
                       ) < 20 * NANO
        async with client.login(packed=False, quotes=["*"]) as stream, client.updates() as updates:
            await buy(client, venue, "a")
            assert all(wrong(m["t"]) for m in await stream.some())
            for update in await updates.take("pending_new", "new", "fill"):
                assert wrong(update["timestamp"]) and wrong(update["at"])
                assert not wrong(update["order"]["created_at"])
            _, clock, _ = await client.ask("GET", "/v2/clock")
            at = numpy.datetime64(clock["timestamp"][:19]).astype("int64")
            offset = int(clock["timestamp"][-6:-3]) * 3600
            assert abs((at - offset + 3600) * NANO - utc_ns()) < 20 * NANO
    log = chaos_test(tmp_path, test, clock={**LONG, "offset": "-1h"})
    times = [line["ts"] for line in log]
    assert times == sorted(times) and hits(log)["clock"] >= 4


def test_a_position_moves_and_nobody_is_told(tmp_path):
    async def test(venue, client):
        async with client.updates() as updates:
            await until(lambda: venue.chaos.counts["drift"] >= 3, "the position drifted")
            held = venue.exchange.state.held
            _, rows, _ = await client.ask("GET", "/v2/positions")
            assert {r["symbol"]: float(r["qty"]) for r in rows} == {
                s: held(s) / NANO for s in venue.config.symbols if held(s)}
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(updates.ws.receive(), 0.1)
    log = chaos_test(tmp_path, test, replace(STILL, rate=500.0), drift={"every": "100ms", "qty": 3})
    foreign = {x["id"] for x in log if x["kind"] == "order"}
    assert foreign >= {x["id"] for x in of(log, "drift")}
    assert all(x["client_order_id"].startswith("chaos-") for x in log if x["kind"] == "order")


# ---------------------------------------------------------------- chance

def test_the_same_seed_gives_the_same_faults(tmp_path):
    found = []
    for n, seed in enumerate((5, 5, 6)):
        async def test(venue, client):
            async with client.updates():
                for k in range(40):
                    await attempt(client, venue, f"o{k}")
                await until(lambda: not venue.exchange.waiting, "all are done")
        profile = {k: {"share": 0.2} for k in (
            "fill_first", "error_500", "error_502", "reset", "duplicate", "missing")}
        profile |= {k: {"share": 0.2, "how": ["close", "reset"]} for k in ("lost_now",
                                                                          "lost_never")}
        log = chaos_test(tmp_path / str(n), test, replace(STILL, seed=seed), **profile)
        found.append([{k: v for k, v in line.items() if k != "ts"}
                      for line in log if line["kind"] == "chaos"])
    assert found[0] == found[1] != found[2]
    assert {line["fault"] for line in found[0]} >= {
        "fill_first", "error_500", "lost_now", "lost_never", "duplicate", "missing"}


def test_moments_follow_from_the_seed_whenever_they_are_looked_for():
    import random

    def moments(seed, step):
        m, out, now = Moments(10.0, random.Random(seed)), [], 0.0
        while now < 1000:
            if (due := m.due(now)) is not None:
                out.append(due)
            now += step
        return out
    fine, coarse = moments("7/mute", 0.01), moments("7/mute", 0.5)
    assert fine == coarse and 70 < len(fine) < 130
    assert fine != moments("8/mute", 0.01)
    assert 0 < fine[0] < 10 and all(5 <= b - a <= 15 for a, b in itertools.pairwise(fine))


def test_faults_begin_with_the_first_order_and_end(tmp_path):
    async def test(venue, client):
        assert (await client.ask("GET", "/v2/orders"))[0] == 200        # not begun
        assert await attempt(client, venue, "a") == 500
        await until(lambda: not venue.chaos.active, "they have ended")
        assert await attempt(client, venue, "b") == 200
    chaos_test(tmp_path, test, error_500=ALWAYS, chaos={"begin": "order", "stop": "500ms"})


# ---------------------------------------------------------------- the tape

async def until_seen(stream, *wanted):
    """Messages by kind, until each of *wanted* is there."""
    seen = {}
    while not set(wanted) <= seen.keys():
        for message in await stream.some():
            seen.setdefault(message["T"], []).append(message)
    return seen


def test_an_instrument_is_halted_and_trades_again(tmp_path):
    async def test(venue, client):
        async with client.login(packed=False, statuses=["*"]) as stream:
            codes = []
            while codes.count("T") < 2:
                codes += [m["sc"] for m in await stream.some()]
            first = next(i for i, c in enumerate(codes) if c != "T")
            pairs = codes[first:first + 4]
            assert pairs[1::2] == ["T", "T"] and set(pairs[::2]) <= {"H", "P"}
    log = chaos_test(tmp_path, test, halt={"every": "100ms", "for": "20ms"})
    assert {line["hit"] for line in of(log, "halt")} <= {"ACME", "BOLT", "CRUX"}


def test_an_instrument_is_at_its_band_and_not_any_more(tmp_path):
    async def test(venue, client):
        async with client.login(packed=False, lulds=["*"]) as stream:
            narrow, wide = None, None
            while wide is None:
                for message in await stream.some():
                    bid = float(top(venue, message["S"])[0])
                    if message["u"] < bid:
                        narrow = message
                    elif narrow is not None and narrow["S"] == message["S"]:
                        wide = message
            assert wide["u"] > bid and wide["d"] < bid and wide["i"] == "B"
    log = chaos_test(tmp_path, test, band={"every": "100ms", "for": "20ms"})
    assert of(log, "band")


def test_trades_are_corrected_or_cancelled(tmp_path):
    async def test(venue, client):
        async with client.login(packed=False, trades=["*"]) as stream:
            seen = await until_seen(stream, "c", "x", "t")
            traded = {(m["S"], m["i"]): m for m in seen["t"]}
            for message in seen["x"]:
                trade = traded.get((message["S"], message["i"]))
                assert message["a"] in "CE" and (trade is None or (
                    trade["p"], trade["s"]) == (message["p"], message["s"]))
            for message in seen["c"]:
                assert message["oi"] == message["ci"] and message["cp"] > message["op"]
    log = chaos_test(tmp_path, test, config=replace(STILL, rate=2000.0),
                     correct={"every": "50ms"})
    assert len(of(log, "correct")) >= 2


def test_a_bar_is_told_again_with_a_trade_more(tmp_path):
    async def test(venue, client):
        await until(lambda: venue.exchange.step(utc_ns()) or venue.tape.trade(0), "a trade")
        async with client.login(packed=False, bars=["*"], updatedBars=["*"]) as stream:
            venue.iex.close_minute(utc_ns() + 60 * NANO)
            venue.sip.close_minute(utc_ns() + 60 * NANO)
            seen = await until_seen(stream, "b", "u")
            bars = {m["S"]: m for m in seen["b"]}
            for message in seen["u"]:
                before = bars[message["S"]]
                assert message["t"] == before["t"] and message["n"] > before["n"]
                bars[message["S"]] = message
    log = chaos_test(tmp_path, test, config=replace(STILL, rate=2000.0),
                     restate={"every": "50ms"})
    assert of(log, "restate")


# ---------------------------------------------------------------- profiles

@pytest.mark.parametrize("name", PROFILES)
def test_every_built_in_profile_is_one(name):
    profile = load(name)
    assert profile.faults and set(profile.faults) <= set(KINDS)


def test_the_groups_hold_every_kind_once():
    names = [k for kinds in GROUPS.values() for k in kinds]
    assert sorted(names) == sorted(KINDS) and set(load("all").faults) == set(KINDS)


def test_the_table_of_the_documents_has_every_kind_with_its_options():
    page = (Path(__file__).parent.parent / "docs/venues.md").read_text()
    section = re.split(r"\n##+ ", page.partition("### Chaos")[2])[0]
    rows = [line.split("|")[1:5] for line in section.splitlines() if line.startswith("| `")]
    shown = {}
    for kinds, _, options, test in rows:
        assert "test_" in test
        shown |= {kind: options for kind in re.findall(r"`(\w+)`", kinds)}
    assert sorted(shown) == sorted(KINDS)
    for kind, text in shown.items():
        for option in KINDS[kind].options:
            assert re.search(rf"\b{option}\b", text), (kind, option)


@pytest.mark.parametrize(("text", "wrong"), [
    ("[nothing]\nshare = 1", "faults are mute.*was 'nothing'"),
    ("[mute]\nshare = 1", r"keys of \[mute\] are every, on, for; was 'share'"),
    ("[missing]\nshare = 2", r"share of \[missing\] must be a number from 0 to 1, was 2"),
    ("[missing]\nshare = true", "must be a number"), ("[missing]\nshare = nan", "must be a number"),
    ('[mute]\nevery = "10"', 'must be a time such as "20s", was \'10\''),
    ("[mute]\nevery = 10", "must be a time"), ('[mute]\nevery = "0s"', "must be a time"),
    ('[mute]\non = ["rest"]', 'must be a list of "data" and "updates"'),
    ("[mute]\non = []", "must be a list"), ('[lost_now]\nhow = "close"', "must be a list"),
    ('[chaos]\nbegin = "now"', 'begin must be "start" or "order"'),
    ('[chaos]\nend = "5s"', r"keys of \[chaos\] are begin, after, stop"),
    ("mute = 5", "mute must be a table"), ("", "no fault in it"), ("[mute", "not a chaos profile"),
    ("[oversized]\nsize = 5", "bytes from 1024")])
def test_a_bad_profile_says_what_is_wrong(tmp_path, text, wrong):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wrong):
        load(str(path))


def test_a_name_that_is_none_is_refused_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"a file or one of stream, .*was 'storm'"):
        load("storm")
    path = tmp_path / "bad.toml"
    path.write_text("[storm]\n")
    for given, code in (("storm", 2), (str(path), 4)):
        done = subprocess.run([sys.executable, "-m", "hftpipe", "venue", "--chaos", given],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == code and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_profile_in_a_file_is_used_by_the_command(tmp_path):
    from hftpipe.venue import spawn
    path = tmp_path / "mine.toml"
    path.write_text('[error_502]\nshare = 1.0\n')
    with spawn("--chaos", str(path), "--rate", "0") as (_, address):
        assert address["chaos"] == str(path)

        async def main():
            async with aiohttp.ClientSession() as session:
                client = Client(address, session)
                async with session.get(address["rest"] + "/v2/account",
                                       headers=client.headers) as reply:
                    assert reply.status == 502
        asyncio.run(main())


def test_without_chaos_there_is_none():
    async def main():
        async with Venue(Config(rate=0.0)) as venue:
            assert venue.chaos is None and "chaos" not in venue.address
    asyncio.run(main())
