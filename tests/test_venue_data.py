"""Historical data are what the streams said: pages, latest values, bars that survive."""
from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe._clock import utc_ns
from hftpipe.venue import read_log
from hftpipe.venue.history import MINUTE, Bar, bucket, timeframe
from hftpipe.venue.state import NANO
from tests.test_venue import STILL, top, venue_test

LIVE = replace(STILL, rate=2000.0, symbols=("ACME", "BOLT", "BTC/USD"))


def ns(text):
    return int(numpy.datetime64(text[:-1], "ns").astype("int64"))


async def rows_of(client, path, kind, headers=None):
    """All pages of *path*: rows by symbol, and how many pages there were."""
    out, pages, token = {}, 0, ""
    while True:
        status, body, _ = await client.ask("GET", path + token, headers=headers)
        assert status == 200, body
        for symbol, rows in body[kind].items():
            out.setdefault(symbol, []).extend(rows)
        pages += 1
        if body["next_page_token"] is None:
            return out, pages
        token = f"&page_token={body['next_page_token'].replace('=', '%3D').replace('+', '%2B')}"


def test_history_is_what_the_stream_said():
    async def test(venue, client):
        async with client.login(packed=False, trades=["ACME"], quotes=["ACME"]) as stream:
            seen = []
            while len(seen) < 500:
                seen += await stream.some()
        wanted = [{k: v for k, v in m.items() if k not in "TS"} for m in seen]
        first, last = seen[0]["t"], seen[-1]["t"]
        for kind, letter in (("trades", "t"), ("quotes", "q")):
            mine = [w for w, m in zip(wanted, seen, strict=True) if m["T"] == letter]
            got, _ = await rows_of(
                client, f"/v2/stocks/{kind}?symbols=ACME&feed=iex&start={first}&end={last}", kind)
            assert got["ACME"] == mine
            single = (await client.ask("GET", f"/v2/stocks/ACME/{kind}?feed=iex&limit=10000"
                                       f"&start={first}&end={last}"))[1]
            assert (single[kind], single["symbol"]) == (mine, "ACME")
    venue_test(test, LIVE)


@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_pages_are_the_whole_by_symbol_then_time(sort):
    async def test(venue, client):
        while len(venue.history.rows(1, 1, 0, 1 << 62)) < 60:
            await asyncio.sleep(0.01)
        venue.exchange.step = lambda now: None          # still, so that two readings agree
        path = f"/v2/stocks/quotes?symbols=BOLT,ACME,NOPE&sort={sort}"
        whole, one = await rows_of(client, path + "&limit=10000", "quotes")
        parts, many = await rows_of(client, path + "&limit=17", "quotes")
        assert parts == whole and one == 1
        total = sum(map(len, whole.values()))
        assert many == -(-total // 17) and list(whole) == ["ACME", "BOLT"]
        for rows in whole.values():
            times = [ns(r["t"]) for r in rows]
            assert times == sorted(times, reverse=sort == "desc")
        crypto, _ = await rows_of(client, "/v1beta3/crypto/us/trades?symbols=BTC/USD", "trades",
                                  headers={})
        assert all(t["tks"] in "BS" for t in crypto.get("BTC/USD", ()))
    venue_test(test, LIVE)


def test_latest_and_snapshots():
    async def test(venue, client):
        _, order, _ = await client.order(price=top(venue)[2], qty="7")
        await client.until(order["id"], "filled")
        _, body, _ = await client.ask("GET", "/v2/stocks/trades/latest?symbols=ACME,NOPE&feed=iex")
        assert list(body["trades"]) == ["ACME"] and body["trades"]["ACME"]["s"] == 7
        _, body, _ = await client.ask("GET", "/v2/stocks/ACME/quotes/latest")
        assert body["quote"]["ap"] == float(top(venue)[2]) and body["quote"]["ax"] == "Q"
        _, body, _ = await client.ask("GET", "/v2/stocks/ACME/bars/latest")
        assert (body["bar"]["v"], body["bar"]["n"]) == (7, 1)
        _, body, _ = await client.ask("GET", "/v2/stocks/snapshots?symbols=ACME,BOLT")
        assert set(body["ACME"]) == {"latestTrade", "latestQuote", "minuteBar", "dailyBar"}
        _, body, _ = await client.ask("GET", "/v2/stocks/ACME/snapshot")
        assert body["symbol"] == "ACME" and body["dailyBar"]["v"] == 7
        _, body, _ = await client.ask(
            "GET", "/v1beta3/crypto/us/latest/orderbooks?symbols=BTC/USD")
        levels = venue.exchange.traders.levels(2, 1)
        assert body["orderbooks"]["BTC/USD"]["b"][0] == {
            "p": levels[0][0] / NANO, "s": levels[0][1] / NANO}
        _, body, _ = await client.ask("GET", "/v2/stocks/meta/exchanges")
        assert body["V"] == "IEX"
        assert (await client.ask("GET", "/v2/stocks/meta/conditions/trade?tape=C"))[1]["I"]
        assert (await client.ask("GET", "/v2/stocks/NOPE/trades/latest"))[0] == 404
        assert (await client.ask("GET", "/v2/stocks/NOPE/snapshot"))[0] == 404
    venue_test(test, replace(LIVE, rate=0.0))


def test_what_cannot_be_read_is_400_and_recent_sip_needs_the_plan():
    async def test(venue, client):
        base = "/v2/stocks/trades?symbols=ACME"
        for bad in ("&limit=0", "&limit=10001", "&limit=x", "&sort=up", "&feed=moon", "&start=x",
                    "&page_token=!!", "&page_token=QUFB", "&start=2026-01-02&end=2026-01-01"):
            status, body, headers = await client.ask("GET", base + bad)
            assert status == 400 and set(body) == {"message"}, bad
            assert headers["X-RateLimit-Limit"] == "1000"
        assert (await client.ask("GET", "/v2/stocks/trades"))[0] == 400
        for frame in ("", "60Min", "0Min", "2Day", "5Month", "Min"):
            assert (await client.ask(
                "GET", f"/v2/stocks/bars?symbols=ACME&timeframe={frame}"))[0] == 400
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        status, body, _ = await client.ask("GET", f"{base}&end={now}")
        assert (status, body["message"]) == (
            403, "subscription does not permit querying recent SIP data")
        assert (await client.ask("GET", f"{base}&end={now}&feed=iex"))[0] == 200
        assert (await client.ask("GET", base, headers={}))[0] == 401
    venue_test(test, replace(STILL, symbol_limit=30, rate_limit=1000))


def test_the_data_service_has_a_rate_limit_of_its_own():
    async def test(venue, client):
        seen = [(await client.ask("GET", "/v2/stocks/trades/latest?symbols=ACME"))[0]
                for _ in range(8)]
        assert 429 in seen
        assert (await client.ask("GET", "/v2/clock"))[0] == 200
    venue_test(test, replace(STILL, rate_limit=3))


# ---------------------------------------------------------------- bars

@given(st.integers(0, 60_000_000), st.sampled_from(
    [(1, "Min"), (5, "Min"), (59, "Min"), (1, "Hour"), (23, "Hour"), (1, "Day"), (1, "Week"),
     (1, "Month"), (3, "Month"), (12, "Month")]))
def test_a_bucket_holds_its_minute_and_begins_itself(minute, frame):
    first = bucket(minute, *frame)
    assert first <= minute and bucket(first, *frame) == first
    longest = {"Min": frame[0], "Hour": 60 * frame[0], "Day": 1500, "Week": 7 * 1440 + 60,
               "Month": frame[0] * 31 * 1440 + 60}[frame[1]]
    assert minute - first < longest


def test_timeframes_have_short_forms():
    assert timeframe("15T") == timeframe("15Min") == (15, "Min")
    assert timeframe("1D") == (1, "Day") and timeframe("6M") == (6, "Month")
    assert [timeframe(t) for t in ("60Min", "24Hour", "2Week", "x", "")] == [None] * 5


@given(st.lists(st.lists(st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)), min_size=1),
                min_size=1))
def test_joined_bars_are_the_bar_of_all_trades(minutes):
    def bar_of(trades):
        bar = Bar(0, trades[0][0])
        for trade in trades:
            bar.add(*trade)
        return bar
    joined = bar_of(minutes[0])
    for trades in minutes[1:]:
        joined.join(bar_of(trades))
    whole = bar_of([t for trades in minutes for t in trades])
    assert all(getattr(joined, n) == getattr(whole, n) for n in Bar.__slots__)


def test_minute_bars_survive_in_the_log(tmp_path):
    async def first(venue, client):
        _, order, _ = await client.order(price=top(venue)[2], qty="7")
        await client.until(order["id"], "filled")
        venue.history.close_minute(utc_ns() + MINUTE)
        assert [r["n"] for r in read_log(tmp_path) if r["kind"] == "bar"] == [1]
        kept.append((await client.ask(
            "GET", "/v2/stocks/bars?symbols=ACME&timeframe=1Min&start=2020-01-01"))[1])

    async def second(venue, client):
        assert (await client.ask(
            "GET", "/v2/stocks/bars?symbols=ACME&timeframe=1Min&start=2020-01-01"))[1] == kept[0]
        assert kept[0]["bars"]["ACME"][0]["v"] == 7
    kept = []
    for test in (first, second):
        venue_test(test, replace(STILL, state=tmp_path))


def test_daily_bars_follow_each_minute_on_the_stream():
    async def test(venue, client):
        async with client.login(dailyBars=["ACME"], bars=["ACME"]) as stream:
            seen = []
            for n in (1, 2):
                _, order, _ = await client.order(price=top(venue)[2], qty="3")
                await client.until(order["id"], "filled")
                venue.iex.close_minute(utc_ns() + 60 * NANO)
                while len(seen) < 2 * n:
                    seen += await stream.some()
            assert [m["T"] for m in seen] == ["b", "d", "b", "d"]
            assert [m["v"] for m in seen] == [3, 3, 3, 6]
    venue_test(test)
