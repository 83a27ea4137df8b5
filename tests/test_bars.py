"""Bars equal their naive twin on any events, and a grouping of the recorded trades."""
import datetime
import itertools

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import indicators, schema
from hftpipe._bars import BAR, Bars
from hftpipe.backtest import readers
from tests.data import recording
from tests.models.bars import Event, Twin

S = 10**9
FLAG = schema.MARKET_FLAG


def plain(bar):
    return None if bar is None else {name: int(bar[name]) for name in BAR.names}


def feed(bars, events):
    done = []
    for e in events:
        bar = bars.trade(e.ts, e.price, e.qty, e.flags) if e.trade else bars.time(e.ts)
        if bar is not None:
            done.append(plain(bar))
    return done


def check(window, events):
    ours, twin = Bars(window), Twin(schema.BARS[window], events)
    assert feed(ours, events) == twin.complete
    assert plain(ours.running) == twin.running
    assert (ours.closed, ours.late, ours.skipped) == (
        len(twin.complete), twin.late, twin.skipped)
    return ours


START = 1_723_161_255 * S
NEAR = st.integers(-5, 3_000).map(lambda t: START + t * S // 10)
ANY = st.one_of(st.sampled_from([-2**63, -1, 0, 1, 2**63 - 1]), st.integers(-2**63, 2**63 - 1))
SIZE = st.one_of(st.integers(1, 5), st.integers(1, 10**12),
                 st.sampled_from([-1, 0, 2**62, 2**63 - 1]))
FLAGS = st.sampled_from([0, 0, 0, FLAG.LAST, FLAG.HIDDEN, FLAG.UNPRINTABLE,
                         FLAG.HIDDEN | FLAG.UNPRINTABLE])
EVENTS = st.lists(st.one_of(
    st.builds(Event, NEAR, SIZE, SIZE, FLAGS), st.builds(Event, NEAR, SIZE, SIZE, FLAGS),
    st.builds(Event, ANY, SIZE, SIZE, FLAGS),
    st.builds(lambda ts: Event(ts, trade=False), st.one_of(NEAR, ANY))), max_size=40)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(schema.BARS)), EVENTS)
def test_equals_the_twin_on_any_events(window, events):
    check(window, events)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(schema.BARS)), EVENTS.map(lambda e: sorted(x for x in e if x.trade)))
def test_a_column_is_the_same_as_one_at_a_time(window, events):
    many, single = Bars(window), Bars(window)
    columns = [numpy.array([e[i] for e in events], numpy.int64) for i in range(4)]
    done = many.trade_many(*columns[:3], columns[3])
    assert [plain(b) for b in done] == feed(single, events)
    assert plain(many.running) == plain(single.running)
    assert (many.late, many.skipped) == (single.late, single.skipped)


@pytest.fixture(scope="module")
def trades():
    """Recorded trades of Binance: time, price, quantity."""
    path = recording("binance", "binance_usdm_btcusdt_20240808.gz")
    rows = numpy.concatenate(list(readers.BinanceReader(path)))
    return rows[rows["kind"] == schema.MARKET_KIND.TRADE]


@pytest.mark.parametrize("window", schema.BARS)
def test_recorded_trades_are_grouped(trades, window):
    length = schema.BARS[window]
    order = numpy.argsort(trades["ts_venue"], kind="stable")        # as a chart would have them
    t = trades[order]
    bars = indicators.bars(t["ts_venue"], t["price"], t["qty"], window)
    starts, first = numpy.unique(t["ts_venue"] // length * length, return_index=True)
    assert bars["start"].tolist() == starts.tolist()
    edges = [*first.tolist(), len(t)]
    for bar, (a, b) in zip(bars, itertools.pairwise(edges), strict=True):
        part = t[a:b]
        assert plain(bar) | {"vwap": 0} == {
            "start": int(part["ts_venue"][0]) // length * length, "open": int(part["price"][0]),
            "high": int(part["price"].max()), "low": int(part["price"].min()),
            "close": int(part["price"][-1]), "volume": int(part["qty"].sum()),
            "count": b - a, "vwap": 0}
        exact = sum(int(p) * int(q) for p, q in zip(part["price"], part["qty"], strict=True))
        assert abs(int(bar["vwap"]) - exact / int(bar["volume"])) <= 1e-6 * bar["close"]
    assert bars["volume"].sum() == t["qty"].sum() and bars["count"].sum() == len(t)
    assert len(bars) > 1 or length >= 900 * S


@pytest.mark.parametrize(("window", "at", "start"), [
    ("1d", "2024-08-08T23:59:59.999", "2024-08-08T00:00"),
    ("4h", "2024-08-08T15:59", "2024-08-08T12:00"),
    ("1h", "2024-08-08T13:30", "2024-08-08T13:00"),
    ("5s", "2024-08-08T00:00:04.9", "2024-08-08T00:00")])
def test_windows_begin_on_the_clock_of_utc(window, at, start):
    def ns(text):
        return int(datetime.datetime.fromisoformat(text + "+00:00").timestamp() * 1000) * 10**6
    bars = Bars(window)
    bars.trade(ns(at), 5, 7)
    assert bars.running["start"] == ns(start)


def test_a_late_trade_is_counted_and_changes_nothing():
    bars = Bars("1s")
    bars.trade(10 * S, 100, 1)
    assert bars.trade(9 * S, 50, 1) is None and bars.late == 1      # before the running bar
    bar = bars.time(11 * S)
    assert plain(bar)["low"] == 100 and bar["count"] == 1
    assert bars.trade(10 * S + 5, 50, 1) is None and bars.late == 2     # its bar is complete
    assert bars.running is None
    bars.trade(11 * S, 50, 1)
    assert bars.running["count"] == 1


def test_hidden_counts_and_unprintable_does_not():
    bars = Bars("1s")
    bars.trade(S, 100, 1)
    bars.trade(S, 110, 2, FLAG.HIDDEN)
    bars.trade(S, 120, 4, FLAG.UNPRINTABLE)
    bars.trade(S, 130, 8, FLAG.HIDDEN | FLAG.UNPRINTABLE)
    assert plain(bars.running) == {"start": S, "open": 100, "high": 110, "low": 100, "close": 110,
                                   "volume": 3, "vwap": 107, "count": 2}
    assert bars.skipped == 2


def test_an_unprintable_trade_still_shows_the_time():
    bars = Bars("1s")
    bars.trade(S, 100, 1)
    assert bars.trade(3 * S, 1, 1, FLAG.UNPRINTABLE)["close"] == 100
    assert bars.flush() is None


def test_flush_completes():
    bars = Bars("1min")
    bars.trade(61 * S, 100, 1)
    assert plain(bars.flush())["start"] == 60 * S and bars.running is None and bars.closed == 1
    bars.trade(62 * S, 100, 1)
    assert bars.late == 1


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="wanted a window of bars, found '1m': did you mean '1"):
        Bars("1m")
    with pytest.raises(ValueError, match="price: wanted one column of whole numbers, 1 of"):
        indicators.bars([1], [1.5], [1])
    with pytest.raises(ValueError, match="qty: wanted one column of whole numbers, 1 of them"):
        indicators.bars([1], [1], [1, 2])
    with pytest.raises(ValueError, match="flags: wanted 1 of them"):
        indicators.bars([1], [1], [1], flags=[0, 0])
    assert len(indicators.bars([], [], [])) == 0
