"""A data stream may be silent as long as its session allows, and a mute one leaves stale books."""
from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from hftpipe import config, schema
from hftpipe.alpaca.watch import Limits, Watch, round_the_clock
from hftpipe.analyst.session import Always
from hftpipe.worker import exchange_hours, feed_watch
from tests.livefeed import LiveFeed
from tests.test_venue import STILL, venue_test

S = schema.SESSION
NEW_YORK = ZoneInfo("America/New_York")
LIMITS = Limits(regular=5.0, extended=60.0, closed=0.0, crypto=30.0)


def at(text):
    """UTC ns of a New York wall clock."""
    return int(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).timestamp()) * 10**9


@pytest.mark.parametrize("wall, wanted", [
    ("2026-03-02T03:59:59", None),          # Monday, night
    ("2026-03-02T04:00:00", 60.0),          # before the open
    ("2026-03-02T09:29:59", 60.0),
    ("2026-03-02T09:30:00", 5.0),           # the open, in a blackout of ours: data are due
    ("2026-03-02T12:00:00", 5.0),
    ("2026-03-02T15:59:59", 5.0),
    ("2026-03-02T16:00:00", 60.0),          # after the close
    ("2026-03-02T20:00:00", None),
    ("2026-03-07T12:00:00", None),          # Saturday
    ("2026-11-26T12:00:00", None),          # Thanksgiving
    ("2026-11-27T12:59:59", 5.0),           # a half day
    ("2026-11-27T13:00:00", 60.0),
    ("2029-03-05T12:00:00", 60.0),          # nobody knows
])
def test_stocks_are_due_by_the_session_of_new_york(wall, wanted):
    now = at(wall)
    watch = Watch(LIMITS, exchange_hours(config.loads("", "test", env={})), lambda: now)
    assert watch() == wanted


def test_a_session_is_looked_up_at_its_edges_only_and_when_the_clock_is_set_back():
    asked = []

    class Calendar:
        def at(self, utc):
            asked.append(utc)
            return (S.OPEN, 100) if utc < 100 else (S.AFTER, 200)

    now = 10
    watch = Watch(LIMITS, Calendar(), lambda: now)
    for now, wanted in ((10, 5.0), (50, 5.0), (99, 5.0), (100, 60.0), (150, 60.0), (20, 5.0)):
        assert watch() == wanted, now
    assert asked == [10, 100, 20]


def test_an_unknown_session_counts_as_extended_and_is_asked_again():
    answers = [None, (S.OPEN, 10**18)]

    class Calendar:
        def at(self, utc):
            return answers.pop(0)

    now = 0
    watch = Watch(LIMITS, Calendar(), lambda: now)
    assert watch() == 60.0
    now = 999_999_999
    assert watch() == 60.0
    now = 1_000_000_000
    assert watch() == 5.0


def test_crypto_is_due_round_the_clock_and_zero_is_never():
    assert Watch(LIMITS, None)() == 30.0
    assert Watch(replace(LIMITS, crypto=0.0), None)() is None
    assert Watch(replace(LIMITS, regular=0.0), Always())() is None


@pytest.mark.parametrize("url, wanted", [
    ("wss://stream.data.alpaca.markets/v2/iex", False), ("ws://h/v2/sip", False),
    ("ws://h/v2/test", True), ("ws://h/v1beta3/crypto/us", True), ("ws://h/v2/delayed_sip", False)])
def test_what_trades_round_the_clock_is_told_by_the_address(url, wanted):
    assert round_the_clock(url) is wanted


@pytest.mark.parametrize("text, url, wanted", [
    ("", "ws://h/v2/iex", 5.0),                                         # the local exchange
    ('profile = "paper"', "wss://h/v2/iex", None),                      # New York, at night
    ('profile = "paper"\n[session]\ncalendar = "always"', "wss://h/v2/iex", 5.0),
    ('profile = "paper"\n[session]\ncalendar = "venue"', "wss://h/v2/iex", None),
    ('profile = "paper"\n[feed]\nsilence_closed = "2min"', "wss://h/v2/iex", 120.0),
    ('profile = "paper"\n[feed]\nsilence_crypto = "7s"', "wss://h/v1beta3/crypto/us", 7.0)])
def test_the_configuration_says_who_is_watched_how(monkeypatch, text, url, wanted):
    watch = feed_watch(config.loads(text, "test", env={}), url)
    monkeypatch.setattr(watch, "_utc", lambda: at("2026-03-02T02:00:00"))
    assert watch() == wanted


@pytest.mark.venue
@pytest.mark.parametrize("path, symbol", [("/v2/iex", "ACME"), ("/v1beta3/crypto/us", "BTC/USD")])
def test_a_mute_stream_leaves_stale_books_no_orders_and_a_new_connection(path, symbol):
    """The local venue stays open and answers pings, but says nothing."""
    async def test(venue, client):
        address = venue.address
        live = LiveFeed(address["data_stream"].replace("/v2/iex", path), address["key"],
                        address["secret"], [symbol], first=0.01, longest=0.02, ping=0.2,
                        silence=lambda: 0.3)
        publish = venue._publish

        def run():
            live.open().until(lambda f: f.usable(symbol), "a book")
            assert live.ask(symbol) == "NONE"
            venue.exchange.on_messages = lambda messages: None          # mute from here on
            live.until(lambda f: "GAP" in f.kinds(), "the silence was noticed")
            live.until(lambda f: f.flags(symbol) & schema.BOOK_FLAG.STALE, "the book is stale")
            assert live.ask(symbol) == "STALE_DATA"
            assert live.source.closed.startswith("no data for")
            live.until(lambda f: f.source.connections > 1, "a new connection")
            venue.exchange.on_messages = publish
            live.until(lambda f: f.usable(symbol), "a book again")
            assert live.ask(symbol) == "NONE"

        try:
            await asyncio.to_thread(run)
        finally:
            live.close()
    venue_test(test, replace(STILL, rate=2000.0, symbols=("ACME", "BTC/USD"), ghost=0.0))
