"""What a gap cost is asked for, marked, recorded once, and nothing is traded on it."""
from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import msgspec
import numpy
import pytest

from hftpipe import schema
from hftpipe.alpaca import backfill
from hftpipe.alpaca.backfill import Backfill, Missed, rest_of, source_of, stamp
from hftpipe.data.download import Client
from hftpipe.errors import ConfigError, DataError, DeadlineError
from hftpipe.venue._traders import TRADE
from tests.livefeed import LiveFeed
from tests.test_venue import STILL, venue_test

K, F = schema.MARKET_KIND, schema.MARKET_FLAG
IEX = "wss://stream.data.alpaca.markets/v2/iex"
NOON = 1_772_470_800_000_000_000            # 2026-03-02T17:00:00Z
SECOND, MINUTE = 10**9, 60 * 10**9


class Service:
    """Pages by kind, each asked for once and in order."""

    def __init__(self, **pages):
        self.pages = {kind: list(found) for kind, found in pages.items()}
        self.asked = []

    def __call__(self, path, query):
        kind = path.rpartition("/")[2]
        self.asked.append((path, dict(query)))
        page = self.pages[kind].pop(0) if self.pages.get(kind) else {kind: {}}
        if isinstance(page, Exception):
            raise page
        return page if isinstance(page, bytes) else msgspec.json.encode(page)


def trade(ns, p=10.03, s=100, i=1, **more):
    return {"t": stamp(ns), "x": "V", "p": p, "s": s, "c": ["@"], "i": i, "z": "C", **more}


def rows(records):
    return [tuple(int(r[f]) for f in ("ts_venue", "instrument", "kind", "side", "price", "qty",
                                      "ref", "flags")) for r in records]


LATE = F.BACKFILLED


def test_trades_quotes_and_bars_become_marked_records_in_the_venues_order():
    service = Service(
        trades=[{"trades": {"MSFT": [trade(NOON + 3, i=7)], "AAPL": [trade(NOON + 1, p=9.5)]}}],
        quotes=[{"quotes": {"AAPL": [{"t": stamp(NOON + 2), "bp": 9.49, "bs": 3, "ap": 0, "as": 0,
                                      "bx": "V", "ax": "V", "c": ["R"], "z": "C"}]}}],
        bars=[{"bars": {"AAPL": [{"t": stamp(NOON - MINUTE), "o": 9, "h": 10, "l": 8.5, "c": 9.5,
                                  "v": 12, "n": 3, "vw": 9.25}]}}])
    made = Backfill(service, IEX, ["AAPL", "MSFT"])
    found = rows(made.fetch(NOON - 1, NOON + 4))
    assert found == [
        (NOON - MINUTE, 0, K.BAR_OPEN, 0, 9 * 10**9, 12 * 10**9, 3, LATE),
        (NOON - MINUTE, 0, K.BAR_HIGH, 0, 10 * 10**9, 0, ord("b"), LATE),
        (NOON - MINUTE, 0, K.BAR_LOW, 0, 8_500_000_000, 0, 0, LATE),
        (NOON - MINUTE, 0, K.BAR_CLOSE, 0, 9_500_000_000, 0, 9_250_000_000, LATE | F.LAST),
        (NOON + 1, 0, K.TRADE, 0, 9_500_000_000, 100 * 10**9, 1, LATE | F.LAST),
        (NOON + 2, 0, K.QUOTE, 1, 9_490_000_000, 3 * 10**9, 0, LATE),
        (NOON + 2, 0, K.QUOTE, -1, 0, 0, 0, LATE | F.LAST),
        (NOON + 3, 1, K.TRADE, 0, 10_030_000_000, 100 * 10**9, 7, LATE | F.LAST)]
    assert (made.gaps, made.records, made.cut, made.refused) == (1, 8, 0, {})
    (path, query), _, (_, bars) = service.asked
    assert path == "/v2/stocks/trades" and query == {
        "symbols": "AAPL,MSFT", "feed": "iex", "limit": backfill.PAGE,
        "start": "2026-03-02T17:00:00.000000000Z", "end": "2026-03-02T17:00:00.000000003Z"}
    assert (bars["start"], bars["timeframe"]) == ("2026-03-02T16:59:00.000000000Z", "1Min")


def test_crypto_has_its_own_path_and_taker_sides():
    service = Service(trades=[{"trades": {"BTC/USD": [
        {"t": stamp(NOON), "p": 1.5, "s": 0.25, "i": 3_400_000_000_000_000_001, "tks": "S"}]}}])
    made = Backfill(service, "ws://h/v1beta3/crypto/us", ["BTC/USD"], ["trades"])
    assert rows(made.fetch(NOON - 1, NOON + 2)) == [
        (NOON, 0, K.TRADE, -1, 1_500_000_000, 250_000_000, 3_400_000_000_000_000_001,
         LATE | F.LAST)]
    assert service.asked[0][0] == "/v1beta3/crypto/us/trades"
    assert service.asked[0][1]["feed"] == ""


def test_pages_are_followed_and_a_large_gap_is_cut():
    def page(n, token):
        return {"trades": {"AAPL": [trade(NOON + n, i=n)]}, "next_page_token": token}
    service = Service(trades=[page(1, "b"), page(2, "c"), page(3, None)])
    made = Backfill(service, IEX, ["AAPL"], ["trades"])
    assert [r[6] for r in rows(made.fetch(NOON, NOON + 9))] == [1, 2, 3] and made.cut == 0
    assert [q.get("page_token") for _, q in service.asked] == [None, "b", "c"]
    service = Service(trades=[page(1, "b"), page(2, "c"), page(3, None)])
    made = Backfill(service, IEX, ["AAPL"], ["trades"], rows=2)
    assert [r[6] for r in rows(made.fetch(NOON, NOON + 9))] == [1, 2] and made.cut == 1


def test_of_a_long_gap_only_the_end_is_asked_for():
    service = Service()
    made = Backfill(service, IEX, ["AAPL"], ["trades"], longest=15 * MINUTE)
    made.fetch(NOON - 60 * MINUTE, NOON)
    assert service.asked[0][1]["start"] == stamp(NOON - 15 * MINUTE + 1)


@pytest.mark.parametrize("update, stands", [
    ("", True), ("corrected", True), ("canceled", False), ("incorrect", False)])
def test_a_trade_that_does_not_stand_is_left_out(update, stands):
    service = Service(trades=[{"trades": {"AAPL": [trade(NOON, u=update)]}}])
    made = Backfill(service, IEX, ["AAPL"], ["trades"])
    assert len(made.fetch(NOON - 1, NOON + 2)) == stands


def test_a_bar_that_is_not_over_is_left_to_the_stream():
    bar = {"t": stamp(NOON), "o": 1, "h": 1, "l": 1, "c": 1, "v": 1}
    for end, wanted in ((NOON + MINUTE - 1, 0), (NOON + MINUTE, 4)):
        service = Service(bars=[{"bars": {"AAPL": [bar]}}])
        assert len(Backfill(service, IEX, ["AAPL"], ["bars"]).fetch(NOON - 1, end)) == wanted


def test_what_is_refused_for_good_is_not_asked_for_again_and_the_rest_is():
    service = Service(
        trades=[ConfigError("HTTP 403, subscription does not permit querying recent SIP data")],
        quotes=[{"quotes": {}}, {"quotes": {}}])
    made = Backfill(service, IEX, ["AAPL"], ["trades", "quotes"])
    for _ in range(2):
        assert len(made.fetch(NOON, NOON + 9)) == 0
    assert [p.rpartition("/")[2] for p, _ in service.asked] == ["trades", "quotes", "quotes"]
    assert "recent SIP" in made.refused["trades"] and made.useful


@pytest.mark.parametrize("body", [
    b"", b"[]", b'{"trades": {"AAPL": [{"t": "noon", "p": 1, "s": 1}]}}',
    b'{"trades": {"AAPL": [{"t": "2026-03-02T17:00:00Z", "p": -1, "s": 1}]}}',
    b'{"trades": {"AAPL": [{"t": "2026-03-02T17:00:00Z", "p": "x", "s": 1}]}}'])
def test_what_is_no_page_is_said(body):
    made = Backfill(Service(trades=[body]), IEX, ["AAPL"], ["trades"])
    with pytest.raises(DataError, match="wanted a page of trades"):
        made.fetch(NOON, NOON + 9)


@pytest.mark.parametrize("stream, wanted", [
    (IEX, ("/v2/stocks", "iex")), ("ws://h/v2/sip/", ("/v2/stocks", "sip")),
    ("ws://h/v1beta3/crypto/us-1", ("/v1beta3/crypto/us-1", "")), ("ws://h/v2/test", None),
    ("ws://h/v2/delayed_sip", None), ("ws://h/", None)])
def test_the_history_of_a_stream(stream, wanted):
    assert source_of(stream) == wanted
    made = Backfill(Service(), stream, ["AAPL"])
    assert made.useful is (wanted is not None)
    if wanted is None:
        assert len(made.fetch(NOON, NOON + 9)) == 0 and made.gaps == 0


def test_the_service_is_found_by_the_stream():
    assert rest_of(IEX) == "https://data.alpaca.markets"
    assert rest_of("wss://stream.data.sandbox.alpaca.markets/v2/sip") == (
        "https://data.sandbox.alpaca.markets")
    assert rest_of("ws://127.0.0.1:5/v2/iex") == "http://127.0.0.1:5"


def test_a_kind_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="knows trades, quotes, bars, was 'news'"):
        Backfill(Service(), IEX, ["AAPL"], ["news"])


def test_missed_is_from_the_last_data_before_to_the_first_after():
    missed = Missed()
    missed.lost()                               # nothing was ever heard: nothing to ask for
    assert missed.data(5, 9) is None and missed.data(10, 12) is None
    missed.lost()
    missed.lost()                               # and the next attempt failed as well
    assert missed.data(40, 41) == (12, 40) and missed.data(42, 43) is None
    missed.lost()
    assert missed.data(30, 31) is None          # a clock that was set back
    missed.lost()
    assert missed.data(0, 0) is None            # without a time


# ---------------------------------------------------------------- through real sockets

@pytest.mark.venue
@pytest.mark.parametrize("path, symbol", [("/v2/iex", "ACME"), ("/v1beta3/crypto/us", "BTC/USD")])
def test_a_gap_is_filled_from_the_venue_and_is_not_fresh(path, symbol):
    """Everything the venue traded while the connection was down comes, once, and marked."""
    async def test(venue, client):
        address = venue.address
        index = venue.exchange.index[symbol]
        history = Client(address["rest"], address["key"], address["secret"], per_minute=0)
        made = Backfill(history.page, address["data_stream"].replace("/v2/iex", path), [symbol],
                        ["trades", "quotes"])
        threads = []

        def fetch(start, end):
            threads.append(threading.current_thread().name)
            return made.fetch(start, end)

        down = threading.Event()
        live = LiveFeed(address["data_stream"].replace("/v2/iex", path), address["key"],
                        address["secret"], [symbol], first=0.3, longest=0.3, backfill=fetch)
        loop = asyncio.get_running_loop()

        def cut():
            down.set()
            for session in tuple(venue.sockets.open):
                session.transport.abort()

        def run():
            live.open().until(lambda f: f.usable(symbol) and f.of(K.TRADE), "trades")
            real = live.source
            loop.call_soon_threadsafe(cut)
            live.until(lambda f: down.is_set() and not real.connected, "it is lost")
            live.until(lambda f: any(int(m["flags"]) & LATE and m["kind"] == K.TRADE
                                     for m in f.market), "it is filled")
            live.until(lambda f: made.records <= sum(
                bool(int(m["flags"]) & LATE) for m in f.market), "all of it is there")
            late = max(int(m["ref"]) for m in live.market if int(m["flags"]) & LATE)
            live.until(lambda f: any(int(m["ref"]) > late for m in f.of(K.TRADE)), "and more")

        try:
            await asyncio.to_thread(run)
        finally:
            live.close()
            history.close()
        assert threads == ["feed-backfill"]
        late = [m for m in live.market if int(m["flags"]) & LATE]
        heard = [m for m in live.market if not int(m["flags"]) & LATE and m["kind"] == K.TRADE]
        ids = [int(m["ref"]) for m in late if m["kind"] == K.TRADE]
        known = {int(m["ref"]) for m in heard}
        assert len(set(ids)) == len(ids) and not known & set(ids)
        first, last = min(known), max(known)
        traded = [m[7] for _, m in venue.history._rows[TRADE][index] if first <= m[7] <= last]
        assert sorted(known | set(ids)) == traded           # nothing is missing
        events = {int(m["event"]) for m in late}
        assert not events & {int(b["event"]) for b in live.books}   # no state came of it
        marks = [int(b["ts_recv"]) for b in live.books]
        assert marks == sorted(marks)
    venue_test(test, replace(STILL, rate=3000.0, symbols=("ACME", "BTC/USD"), ghost=0.0))


@pytest.mark.venue
def test_a_service_that_does_not_answer_is_said_and_the_stream_goes_on():
    async def test(venue, client):
        def fetch(start, end):
            raise DeadlineError("no page of /v2/stocks/trades in 8 tries")

        live = LiveFeed(venue.address["data_stream"], venue.address["key"],
                        venue.address["secret"], ["ACME"], first=0.001, longest=0.002,
                        backfill=fetch)
        loop = asyncio.get_running_loop()

        def run():
            live.open().until(lambda f: f.usable("ACME"), "a book")
            loop.call_soon_threadsafe(
                lambda: [s.transport.abort() for s in tuple(venue.sockets.open)])
            live.until(lambda f: f.source.connections == 2 and f.source.trouble, "trouble")
            live.until(lambda f: f.usable("ACME"), "a book again")
            assert "no page" in live.source.trouble and live.ask("ACME") == "NONE"

        try:
            await asyncio.to_thread(run)
        finally:
            live.close()
    venue_test(test, replace(STILL, rate=2000.0, symbols=("ACME",), ghost=0.0))


def test_a_stamp_is_read_back_to_the_nanosecond():
    assert stamp(NOON + 1) == "2026-03-02T17:00:00.000000001Z"
    assert numpy.datetime64(stamp(NOON)[:-1], "ns").astype(int) == NOON
