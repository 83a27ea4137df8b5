"""What the tape says beside trades and quotes comes over the socket and has its effect."""
from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hftpipe import schema
from hftpipe._clock import utc_ns
from hftpipe.venue.state import NANO
from tests.livefeed import LiveFeed
from tests.test_venue import STILL, venue_test

pytestmark = pytest.mark.venue
B = schema.BOOK_FLAG
BUSY = replace(STILL, rate=2000.0, symbols=("ACME", "BOLT", "BTC/USD"), ghost=0.0)
CHANNELS = ("trades", "quotes", "statuses", "lulds", "bars", "updatedBars", "dailyBars")


def live_test(drive, config=BUSY, symbols=("ACME", "BOLT")):
    """Run ``drive(live, call, venue)`` in a thread against a venue; *call* does a thing in the
    venue's own thread."""
    async def test(venue, client):
        loop = asyncio.get_running_loop()
        live = LiveFeed(venue.address["data_stream"], venue.address["key"],
                        venue.address["secret"], list(symbols), channels=CHANNELS,
                        first=0.01, longest=0.02)

        def call(action, *args):
            async def do():
                return action(*args)
            return asyncio.run_coroutine_threadsafe(do(), loop).result(20)

        try:
            await asyncio.to_thread(
                lambda: drive(live.open(), call, venue))
        finally:
            live.close()
    venue_test(test, config)


@pytest.mark.parametrize("code", ["H", "P"])
def test_a_halted_instrument_takes_no_orders_until_it_trades_again(code):
    def drive(live, call, venue):
        live.until(lambda f: f.usable("ACME") and f.usable("BOLT"), "books")
        assert (live.ask("ACME"), live.ask("BOLT")) == ("NONE", "NONE")
        call(venue.tape.status, 0, code)
        live.until(lambda f: f.flags("ACME") & B.HALTED, "it is halted")
        for side in (1, -1):
            assert live.ask("ACME", side) == "TRADING_HALT" and live.ask("BOLT", side) == "NONE"
        quotes = len(live.books)                    # quotes go on, and change nothing
        live.until(lambda f: len(f.books) > quotes + 50, "more states")
        assert live.ask("ACME") == "TRADING_HALT"
        call(venue.tape.status, 0, "Q")             # quotes resume, trading does not
        live.until(lambda f: len(f.of(schema.MARKET_KIND.STATUS)) == 2, "quotes resume")
        assert live.ask("ACME") == "TRADING_HALT"
        call(venue.tape.status, 0, "T")
        live.until(lambda f: not f.flags("ACME") & B.HALTED, "it trades")
        live.until(lambda f: f.usable("ACME"), "a book")
        assert live.ask("ACME") == "NONE"
    live_test(drive)


def test_an_instrument_at_its_band_takes_no_orders():
    def drive(live, call, venue):
        live.until(lambda f: f.usable("ACME") and f.usable("BOLT"), "books")
        bid = int(live.last["ACME"]["bid"])
        call(venue.tape.bands, 0, 2 * bid, bid // 2)
        live.until(lambda f: len(f.of(schema.MARKET_KIND.BAND)) == 2, "wide bands")
        live.until(lambda f: f.usable("ACME"), "a book")
        assert live.ask("ACME") == "NONE" and not live.flags("ACME") & B.LIMITED
        for upper, lower in ((bid // 2, bid // 4), (4 * bid, 3 * bid)):
            call(venue.tape.bands, 0, upper, lower)
            live.until(lambda f: f.flags("ACME") & B.LIMITED, "limit up, or limit down")
            assert live.ask("ACME") == "PRICE_BAND" and live.ask("BOLT") == "NONE"
        call(venue.tape.bands, 0, 4 * bid, 3 * bid, "D")        # suspended: they do not bind
        live.until(lambda f: not f.flags("ACME") & B.LIMITED and f.usable("ACME"), "no bands")
        assert live.ask("ACME") == "NONE"
    live_test(drive)


def newest(live, call, venue):
    """The venue's newest trade of ACME, once the book knows it, and the books stand still."""
    def stop():
        venue.exchange.step = lambda now: None
        return venue.tape.trade(0)
    live.until(lambda f: any(m["instrument"] == 0 for m in f.of(schema.MARKET_KIND.TRADE)),
               "a trade")
    number, price, qty = call(stop)
    live.until(lambda f: f.of(schema.MARKET_KIND.TRADE)
               and any(m["instrument"] == 0 and int(m["ref"]) == number
                       for m in f.of(schema.MARKET_KIND.TRADE)), "the newest trade")
    live.until(lambda f: (int(f.last["ACME"]["last_price"]), int(f.last["ACME"]["last_qty"]))
               == (price, qty), "it is the last one")
    return number, price, qty


@pytest.mark.parametrize("action", ["C", "E"])
def test_a_cancelled_trade_is_no_reference_any_more(action):
    def drive(live, call, venue):
        trade = newest(live, call, venue)
        trades = [(int(m["price"]), int(m["qty"])) for m in live.of(schema.MARKET_KIND.TRADE)
                  if m["instrument"] == 0]
        volume = int(live.last["ACME"]["volume"])
        call(venue.tape.cancel, 0, trade, action)
        (bust,) = live.until(lambda f: f.of(schema.MARKET_KIND.BUST), "it is void")
        assert (int(bust["ref"]), int(bust["price"]), int(bust["qty"])) == trade
        before = trades[-2] if len(trades) > 1 else (0, 0)
        live.until(lambda f: int(f.last["ACME"]["volume"]) == volume - trade[2], "less volume")
        assert (int(live.last["ACME"]["last_price"]),
                int(live.last["ACME"]["last_qty"])) == before
    live_test(drive)


def test_a_corrected_trade_is_the_reference_as_it_was_in_truth():
    def drive(live, call, venue):
        trade = _, price, qty = newest(live, call, venue)
        volume = int(live.last["ACME"]["volume"])
        call(venue.tape.correct, 0, trade, price - 10_000_000, 2 * qty)
        live.until(lambda f: f.of(schema.MARKET_KIND.FIX), "it is corrected")
        live.until(lambda f: int(f.last["ACME"]["volume"]) == volume + qty, "more volume")
        assert int(live.last["ACME"]["last_price"]) == price - 10_000_000
        assert int(live.last["ACME"]["last_qty"]) == 2 * qty
        assert not live.flags("ACME") & B.TRADE         # nobody traded now
    live_test(drive)


def test_what_the_tape_says_makes_no_old_price_fresh():
    def drive(live, call, venue):
        trade = newest(live, call, venue)
        age = int(live.last["ACME"]["ts_recv"])
        states = len(live.books)
        call(venue.tape.status, 0, "T")
        call(venue.tape.bands, 0, 10**15, 1)
        call(venue.tape.cancel, 0, trade)
        live.until(lambda f: f.of(schema.MARKET_KIND.BUST) and len(f.books) == states + 3,
                   "three states")
        assert int(live.last["ACME"]["ts_recv"]) == age
    live_test(drive)


def test_bars_are_recorded_and_told_again_after_a_late_trade_and_move_nothing():
    K = schema.MARKET_KIND

    def drive(live, call, venue):
        _, price, qty = newest(live, call, venue)
        states = len(live.books)
        assert not call(venue.tape.late, 0, price, qty)         # no minute was told yet
        later = utc_ns() + 60 * NANO
        for feed in (venue.iex, venue.sip):
            call(feed.close_minute, later)
        assert call(venue.tape.late, 0, price + 10_000_000, 3 * NANO)
        wanted = [K.BAR_OPEN, K.BAR_HIGH, K.BAR_LOW, K.BAR_CLOSE]

        def bars(f):
            found = [m for m in f.market if m["instrument"] == 0 and int(m["kind"]) in wanted]
            return [found[i:i + 4] for i in range(0, len(found), 4)]

        live.until(lambda f: len(bars(f)) == 3, "b, d and u")
        minute, day, again = bars(live)
        assert [[int(m["kind"]) for m in one] for one in (minute, day, again)] == [wanted] * 3
        assert [chr(int(one[1]["ref"])) for one in (minute, day, again)] == ["b", "d", "u"]
        assert int(again[0]["ref"]) == int(minute[0]["ref"]) + 1
        assert int(again[0]["qty"]) == int(minute[0]["qty"]) + 3 * NANO
        assert int(again[3]["price"]) == price + 10_000_000
        assert int(minute[3]["price"]) == price
        assert int(again[0]["ts_venue"]) == int(minute[0]["ts_venue"])
        assert len(live.books) == states
    live_test(drive)


def test_news_and_imbalances_are_counted_and_nothing_else():
    def drive(live, call, venue):
        live.until(lambda f: f.usable("ACME"), "a book")
        errors = live.decoder.counters()["errors"]
        for kind, fields in (("i", {"p": 10.5}),
                             ("n", {"id": 7, "headline": "x", "symbols": ["ACME"]})):
            call(venue.iex.say, "trades", kind, 0, fields)
        live.until(lambda f: f.decoder.counters()["ignored"] == 2, "both are counted")
        assert live.decoder.counters()["errors"] == errors
        live.turn()
        assert live.source.figures()["ignored"] == 2 and live.source.connections == 1
    live_test(drive)


def test_the_messages_are_the_brokers_in_both_encodings():
    async def test(venue, client):
        for packed in (False, True):
            async with client.login(packed=packed, trades=["ACME"], statuses=["ACME"],
                                    lulds=["*"]) as stream:
                _, order, _ = await client.order(qty="7", type="market", tif="day")
                await client.until(order["id"], "filled")
                trade = venue.tape.trade(0)
                venue.tape.status(0, "H")
                venue.tape.bands(0, 3_240_000_000, 2_650_000_000, "A")
                venue.tape.correct(0, trade, trade[1] + 10_000_000, trade[2])
                venue.tape.cancel(0, trade, "E")
                seen = {}
                while len(seen) < 5:
                    for message in await stream.some():
                        assert list(message)[:2] == ["T", "S"]
                        assert message.pop("t")
                        seen[message.pop("T")] = message
                p = trade[1] / NANO
                assert seen["s"] == {"S": "ACME", "sc": "H", "sm": "Trading Halt", "rc": "T1",
                                     "rm": "Halt News Pending", "z": "C"}
                assert seen["l"] == {"S": "ACME", "u": 3.24, "d": 2.65, "i": "A", "z": "C"}
                assert seen["c"] == {"S": "ACME", "x": "V", "oi": trade[0], "op": p, "os": 7,
                                     "oc": ["@"], "ci": trade[0], "cp": (trade[1] + 10**7) / NANO,
                                     "cs": 7, "cc": ["@"], "z": "C"}
                assert seen["x"] == {"S": "ACME", "i": trade[0], "x": "V", "p": p, "s": 7, "a": "E",
                                     "z": "C"}
        _, body, _ = await client.ask("GET", "/v2/stocks/trades?symbols=ACME&feed=iex")
        updates = [(t["i"], t.get("u")) for t in body["trades"]["ACME"]]
        assert updates.count((trade[0], "incorrect")) == 1
    venue_test(test, replace(STILL, symbols=("ACME",), ghost=0.0))
