"""Indicators equal TA-Lib, their definitions in fractions, and a reference in extended precision;
a value at a time and a column at a time are the same bits.

Tolerance throughout: 1e-9 relative plus 1e-12 of the price; of 100 for percentages, of the
largest volume for OBV.
"""
import gzip
from fractions import Fraction

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from hftpipe import indicators as I
from hftpipe import schema
from tests.data import recording
from tests.models import indicator as twin

NAN = float("nan")


def close_to(found, wanted, scale, what=""):
    """Same rows undefined; the others within the tolerance of *scale*'s prices."""
    found, wanted = numpy.asarray(found), numpy.asarray(wanted)
    assert found.shape == wanted.shape, what
    numpy.testing.assert_array_equal(numpy.isnan(found), numpy.isnan(wanted), err_msg=what)
    error = numpy.abs(found - wanted)
    limit = 1e-9 * numpy.abs(wanted) + 1e-12 * scale
    bad = numpy.flatnonzero(~(error <= limit) & ~numpy.isnan(error))
    assert not len(bad), f"{what} row {bad[0]}: {found[bad[0]]} for {wanted[bad[0]]}"


# ---------------------------------------------------------------- TA-Lib

def walk(n, seed, price=100.0, step=1e-3, spread=1.0):
    """Bars of a random walk: high, low, close, volume (its logarithm spreads by *spread*)."""
    random = numpy.random.default_rng(seed)
    close = price * numpy.exp(numpy.cumsum(random.normal(0, step, n)))
    high = close * (1 + numpy.abs(random.normal(0, step, n)))
    low = close * (1 - numpy.abs(random.normal(0, step, n)))
    return high, low, close, random.lognormal(3, spread, n)


def btc():
    path = recording("bars", "btc-perp-20211231-20220201_1m.csv.gz")
    with gzip.open(path, "rt") as file:
        names = file.readline().strip().lower().split(",")
    table = numpy.genfromtxt(path, delimiter=",", skip_header=1)
    return tuple(numpy.ascontiguousarray(table[:, names.index(n)])
                 for n in ("high", "low", "close", "volume"))


def spy():
    path = recording("bars", "zipline_SPY_benchmark.csv.gz")
    with gzip.open(path, "rt") as file:
        rows = [line.strip().split(",")[1] for line in file][1:]
    close = 44.0 * numpy.cumprod(1 + numpy.array([float(r) for r in rows if r]))
    return close * 1.003, close * 0.997, close, 1e6 * numpy.abs(numpy.sin(numpy.arange(len(close))))


SERIES = {
    "btc": btc, "spy": spy, "walk": lambda: walk(100_000, 1),
    "cheap": lambda: walk(100_000, 2, 3e-5), "dear": lambda: walk(100_000, 3, 61_500.0, 1e-5),
    "wild": lambda: walk(100_000, 4, 50.0, 0.02),
    "ticks": lambda: tuple(numpy.round(a, 2) for a in walk(100_000, 5, 20.0, 2e-4))}


@pytest.mark.parametrize("series", SERIES)
def test_equals_ta_lib(series):
    talib = pytest.importorskip("talib")
    high, low, close, volume = SERIES[series]()
    for n in (2, 3, 10, 14, 20, 50, 200):
        close_to(I.sma(close, n), talib.SMA(close, n), close, f"sma {n}")
        close_to(I.ema(close, n), talib.EMA(close, n), close, f"ema {n}")
        close_to(I.wma(close, n), talib.WMA(close, n), close, f"wma {n}")
        close_to(I.rsi(close, n), talib.RSI(close, n), 100, f"rsi {n}")
        close_to(I.atr(high, low, close, n), talib.ATR(high, low, close, n), close, f"atr {n}")
        if n >= 10:             # the sums that TA-Lib keeps for a shorter window drift too far
            close_to(I.mfi(high, low, close, volume, n), talib.MFI(high, low, close, volume, n),
                     100, f"mfi {n}")
        close_to(I.momentum(close, n), talib.ROC(close, n), 100, f"momentum {n}")
        upper, middle, lower = talib.BBANDS(close, n, 2.5, 2.5)
        bands = I.bollinger(close, n, 2.5)
        close_to(bands.middle, middle, close, f"middle {n}")
        close_to(bands.lower, lower, close, f"lower {n}")
        close_to(bands.upper, upper, close, f"upper {n}")
    for spans in ((12, 26, 9), (3, 10, 4), (5, 6, 1)):
        for name, a, b in zip("lsh", I.macd(close, *spans), talib.MACD(close, *spans), strict=True):
            close_to(a, b, close, f"macd {spans} {name}")
    for n, k, d in ((5, 3, 3), (14, 3, 3), (14, 1, 5), (1, 1, 1)):
        found, wanted = I.stochastic(high, low, close, n, k, d), talib.STOCH(
            high, low, close, n, k, 0, d, 0)
        close_to(found.k, wanted[0], 100, f"stochastic {n} {k} {d} %K")
        close_to(found.d, wanted[1], 100, f"stochastic {n} {k} {d} %D")
    close_to(I.obv(close, volume), talib.OBV(close, volume), volume.max(), "obv")


@pytest.mark.parametrize("flat", [100.0, 61_500.37, 1e-5])
def test_a_price_that_does_not_move_is_as_in_ta_lib(flat):
    talib = pytest.importorskip("talib")
    x, v = numpy.full(60, flat), numpy.full(60, 3.0)
    for name, found, wanted in (
            ("rsi", I.rsi(x), talib.RSI(x)), ("mfi", I.mfi(x, x, x, v), talib.MFI(x, x, x, v)),
            ("atr", I.atr(x, x, x), talib.ATR(x, x, x)), ("obv", I.obv(x, v), talib.OBV(x, v)),
            ("stochastic", I.stochastic(x, x, x).k, talib.STOCH(x, x, x)[0])):
        numpy.testing.assert_array_equal(found, wanted, err_msg=name)
    bands, width = I.bollinger(x), I.bollinger_width(x)
    assert (bands.lower[19:] == x[19:]).all() and (bands.upper[19:] == x[19:]).all()
    assert (width.percent_b[19:] == 0.5).all() and (width.bandwidth[19:] == 0).all()


# ---------------------------------------------------------------- definitions

PRICE = st.one_of(st.integers(1, 40).map(float), st.floats(1e-3, 1e6))
VOLUME = st.one_of(st.sampled_from([0.0, 0.0, 1.0]), st.floats(1e-3, 1e9))
BAR = st.tuples(PRICE, PRICE, PRICE, VOLUME).map(
    lambda b: (max(b[:3]), min(b[:3]), b[0], b[3]))
BARS = st.lists(BAR, max_size=40)
WINDOW = st.integers(1, 9)


def fractions(column):
    return [Fraction(float(v)) for v in column]


def same(found, wanted, scale):
    close_to(found, [NAN if w is None else float(w) for w in wanted], scale)


@settings(max_examples=200, deadline=None)
@given(BARS, WINDOW, st.integers(1, 4), st.integers(1, 4))
def test_equals_the_definition(bars, n, k, d):
    high, low, close, volume = (numpy.array([b[i] for b in bars]) for i in range(4))
    h, lo, c, v = (fractions(a) for a in (high, low, close, volume))
    scale = max(high, default=0)
    same(I.sma(close, n), twin.sma(c, n), scale)
    same(I.ema(close, n), twin.ema(c, n), scale)
    same(I.wma(close, n), twin.wma(c, n), scale)
    for found, wanted in zip(I.macd(close, n, n + k, d), twin.macd(c, n, n + k, d), strict=True):
        same(found, wanted, scale)
    same(I.atr(high, low, close, n), twin.atr(h, lo, c, n), scale)
    same(I.obv(close, volume), twin.obv(c, v), max(volume, default=0))
    same(I.vwap(close, volume), twin.vwap(c, v), scale)
    same(I.momentum(close, n), twin.momentum(c, n), 1)
    same(I.log_return(close), twin.log_return(c), 1)
    same(I.realised_volatility(close, n), twin.realised(c, n), 1)
    same(I.parkinson(high, low, n), twin.parkinson(h, lo, n), 1)
    same(I.volume_ratio(volume, n), twin.volume_ratio(v, n), 1)
    bands = twin.bollinger(c, n, Fraction(2))
    for found, wanted in zip(I.bollinger(close, n), bands, strict=False):
        same(found, wanted, scale)
    same(I.bollinger_width(close, n).bandwidth, bands[4], 1)
    # Quotients of differences: as exact as the differences, which lose what rounding took.
    for found, wanted in ((I.rsi(close, n), twin.rsi(c, n)),
                          (I.mfi(high, low, close, volume, n), twin.mfi(h, lo, c, v, n)),
                          *zip(I.stochastic(high, low, close, n, k, d),
                               twin.stochastic(h, lo, c, n, k, d), strict=True)):
        same(found, wanted, 1000)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), VOLUME, st.integers(5, 8), VOLUME,
                          st.sampled_from([-1, 0, 1]), st.floats(1, 1e6)), max_size=30), WINDOW)
def test_books_equal_the_definition(states, n):
    bid, bid_qty, ask, ask_qty, side, qty = (
        numpy.array([float(s[i]) for s in states]) for i in range(6))
    columns = bid, bid_qty, ask, ask_qty
    scale = max([*bid_qty, *ask_qty, 0])
    same(I.order_flow(*columns), twin.order_flow(*map(fractions, columns)), scale)
    same(I.queue_change(bid, bid_qty), twin.queue_change(fractions(bid), fractions(bid_qty)), 1)
    same(I.trade_flow(side, qty, n), twin.trade_flow(fractions(side), fractions(qty), n), 1)
    top = bid_qty + ask_qty
    with numpy.errstate(invalid="ignore"):
        balance = numpy.where(top > 0, (bid_qty - ask_qty) / top, 0)
        micro = numpy.where(top > 0, (bid * ask_qty + ask * bid_qty) / top, (bid + ask) / 2)
    close_to(I.imbalance(bid_qty, ask_qty), balance, 1)
    close_to(I.microprice(bid, ask, bid_qty, ask_qty), micro, 8)
    close_to(I.spread(bid, ask), ask - bid, 1)
    close_to(I.spread_bps(bid, ask), (ask - bid) / ((bid + ask) / 2) * 1e4, 1)


def test_imbalance_and_depth_by_level():
    path = recording("lobster", "AAPL_2012-06-21_34200000_57600000_orderbook_10_first1k.csv.gz")
    table = numpy.loadtxt(path, delimiter=",")
    ask, bid = table[:, 1::4], table[:, 3::4]
    by_level = I.imbalance(bid, ask)
    assert by_level.shape == bid.shape == (999, 10)
    numpy.testing.assert_allclose(by_level, (bid - ask) / (bid + ask), rtol=1e-15)
    numpy.testing.assert_array_equal(I.depth(bid), bid[:, :5].sum(axis=1))
    numpy.testing.assert_array_equal(I.depth(ask, 10), ask.sum(axis=1))


# ---------------------------------------------------------------- streaming is batch

ONE = {"SMA": "n", "EMA": "n", "WMA": "n", "RSI": "n", "Bollinger": "n", "Realised": "n",
       "Momentum": "n", "LogReturn": "", "MACD": "macd"}
OTHER = {"ATR": (3, "n"), "Stochastic": (3, "nkd"), "Parkinson": (2, "n"), "OBV": ("cv", ""),
         "VWAP": ("cv", ""), "MFI": (4, "n"), "VolumeRatio": ("v", "n")}


def make(name, n, k, d):
    kind = ONE[name] if name in ONE else OTHER[name][1]
    arguments = {"": (), "n": (n,), "macd": (n, n + k, d), "nkd": (n, k, d)}[kind]
    return getattr(I, name)(*arguments)


def inputs(name, high, low, close, volume):
    take = 1 if name in ONE else OTHER[name][0]
    return {1: (close,), 2: (high, low), 3: (high, low, close), 4: (high, low, close, volume),
            "cv": (close, volume), "v": (volume,)}[take]


def table(result):
    return numpy.column_stack(result) if isinstance(result, tuple) else result[:, None]


@settings(max_examples=60, deadline=None)
@given(BARS.filter(len), WINDOW, st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_one_at_a_time_in_pieces_and_at_once_are_the_same_bits(bars, n, k, d, cut):
    columns = [numpy.array([b[i] for b in bars]) for i in range(4)]
    for name in [*ONE, *OTHER]:
        x = inputs(name, *columns)
        whole = table(make(name, n, k, d).update_many(*x))
        parts = make(name, n, k, d)
        pieces = numpy.vstack([table(parts.update_many(*(a[:cut] for a in x))),
                               table(parts.update_many(*(a[cut:] for a in x)))])
        assert pieces.tobytes() == whole.tobytes(), name
        single = make(name, n, k, d)
        rows = [single.update(*row) for row in zip(*x, strict=True)]
        width = whole.shape[1]
        singles = numpy.array([r[:width] if isinstance(r, tuple) else [r] for r in rows])
        assert singles.tobytes() == whole.tobytes(), name


def test_a_bollinger_value_at_a_time_has_all_five():
    _, _, close, _ = walk(300, 8)
    ours = I.Bollinger(20, 2.0)
    rows = numpy.array([ours.update(v) for v in close])
    wanted = numpy.column_stack([*I.bollinger(close), *I.bollinger_width(close)])
    assert rows.tobytes() == wanted.tobytes()


def test_vwap_can_be_reset():
    ours = I.VWAP()
    assert numpy.isnan(ours.update(5, 0))
    ours.update_many([10, 20], [1, 3])
    assert ours.update(17.5, 0) == 17.5
    ours.reset()
    assert ours.update(3, 7) == 3


# ---------------------------------------------------------------- a long run

def recursion(x, start, weight):
    """The seeded exponential mean in extended precision; NaN before its seed."""
    out = numpy.full(len(x), numpy.longdouble(NAN))
    weight = numpy.longdouble(weight)
    value = x[:start].sum() / start
    out[start - 1] = value
    for i in range(start, len(x)):
        value = value + weight * (x[i] - value)
        out[i] = value
    return out


def windows(x, n, f):
    out = numpy.full(len(x), numpy.longdouble(NAN))
    view = sliding_window_view(x, n)
    for at in range(0, len(view), 50_000):
        out[n - 1 + at:n - 1 + at + 50_000] = f(view[at:at + 50_000])
    return out


@pytest.mark.parametrize("count", [
    50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_nothing_drifts(count):
    """Against two passes in extended precision; TA-Lib itself drifts by more than 1e-9."""
    if numpy.finfo(numpy.longdouble).eps > 1e-18:
        pytest.skip("no extended precision here")
    high, low, close, volume = walk(count, 11, 61_500.0, 1e-4, spread=2.0)
    x, v = close.astype(numpy.longdouble), volume.astype(numpy.longdouble)
    h, lo = high.astype(numpy.longdouble), low.astype(numpy.longdouble)
    one = numpy.longdouble(1)
    close_to(I.sma(close, 50), windows(x, 50, lambda w: w.mean(axis=1)), close, "sma")
    ranks = numpy.arange(1, 21, dtype=numpy.longdouble)
    close_to(I.wma(close, 20), windows(x, 20, lambda w: (w * ranks).sum(axis=1) / ranks.sum()),
             close, "wma")
    middle = windows(x, 20, lambda w: w.mean(axis=1))
    deviation = windows(x, 20, lambda w: numpy.sqrt(
        ((w - w.mean(axis=1, keepdims=True)) ** 2).mean(axis=1)))
    bands, width = I.bollinger(close, 20), I.bollinger_width(close, 20)
    close_to(bands.middle, middle, close, "middle")
    close_to(bands.lower, middle - 2 * deviation, close, "lower")
    close_to(bands.upper, middle + 2 * deviation, close, "upper")
    close_to(width.percent_b, (x - middle) / (4 * deviation) + one / 2, 1000, "%B")
    close_to(width.bandwidth, 4 * deviation / middle, 1, "bandwidth")
    close_to(I.ema(close, 21), recursion(x, 21, 2 * one / 22), close, "ema")
    step = x[1:] - x[:-1]
    gain = recursion(numpy.maximum(step, 0), 14, one / 14)
    loss = recursion(numpy.maximum(-step, 0), 14, one / 14)
    close_to(I.rsi(close, 14)[1:], 100 * gain / (gain + loss), 1, "rsi")
    ranges = numpy.maximum(h[1:], x[:-1]) - numpy.minimum(lo[1:], x[:-1])
    close_to(I.atr(high, low, close, 14)[1:], recursion(ranges, 14, one / 14),
             close[1:], "atr")
    slow = recursion(x, 26, 2 * one / 27)
    fast = numpy.concatenate([x[:14] * NAN, recursion(x[14:], 12, 2 * one / 13)])
    line = fast - slow
    signal = numpy.concatenate([x[:25] * NAN, recursion(line[25:], 9, one / 5)])
    found = I.macd(close)
    close_to(found.line[33:], line[33:], close[33:], "macd line")
    close_to(found.signal, signal, close, "macd signal")
    close_to(found.histogram, line - signal, close, "macd histogram")
    typical = (h + lo + x) / 3
    sign = numpy.sign(numpy.diff((high + low + close) / 3))
    flow = (typical * v)[1:]
    up = windows(numpy.where(sign > 0, flow, 0), 14, lambda w: w.sum(axis=1))
    down = windows(numpy.where(sign < 0, flow, 0), 14, lambda w: w.sum(axis=1))
    close_to(I.mfi(high, low, close, volume, 14)[1:], 100 * up / (up + down), 1, "mfi")
    signs = numpy.concatenate([[one], numpy.sign(numpy.diff(close))])
    close_to(I.obv(close, volume), numpy.cumsum(signs * v), volume.max(), "obv")
    close_to(I.vwap(close, volume), numpy.cumsum(x * v) / numpy.cumsum(v), close, "vwap")
    change = numpy.log1p(step / x[:-1])
    close_to(I.log_return(close)[1:], change, 1, "log return")
    close_to(I.realised_volatility(close, 20)[1:], windows(
        change, 20, lambda w: numpy.sqrt((w ** 2).mean(axis=1))), 1, "realised")
    close_to(I.parkinson(high, low, 20), windows(numpy.log(h / lo), 20, lambda w: numpy.sqrt(
        (w ** 2).mean(axis=1) / (4 * numpy.log(2 * one)))), 1, "parkinson")


def test_what_left_the_window_leaves_no_trace():
    """A sum that subtracts would keep the rounding of the spike for ever."""
    x = numpy.full(400, 0.1)
    x[30] = 1e15
    after = slice(30 + 50, None)
    assert (I.sma(x, 50)[after] == pytest.approx(0.1, rel=1e-14))
    assert (I.wma(x, 50)[after] == pytest.approx(0.1, rel=1e-14))
    bands = I.bollinger(x, 50)
    assert (bands.upper[after] == bands.lower[after]).all()
    assert (I.volume_ratio(x, 50)[after] == pytest.approx(1, rel=1e-14))


@pytest.mark.parametrize("jump", [1e-3, 1.0, 100.0, 1e6])
def test_the_deviation_survives_a_jump(jump):
    """Tiny noise, then the same noise elsewhere: the mean of squares would cancel it away."""
    noise = numpy.random.default_rng(5).normal(0, 1e-6, 200)
    x = 100 + noise
    x[100:] += jump
    width = I.bollinger_width(x, 20).bandwidth
    exact = [4 * numpy.std(x[i - 19:i + 1] - x[i]) / x[i - 19:i + 1].mean() for i in range(19, 200)]
    numpy.testing.assert_allclose(width[19:], exact, rtol=1e-9)


# ---------------------------------------------------------------- what is refused

@pytest.mark.parametrize("bad", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [*ONE, *OTHER])
def test_what_is_not_finite_is_refused_and_changes_nothing(name, bad):
    columns = walk(60, 3)
    x = inputs(name, *columns)
    ours, clean = make(name, 5, 2, 3), make(name, 5, 2, 3)
    for a in (ours, clean):
        a.update_many(*(c[:40] for c in x))
    for which in range(len(x)):
        dirty = [c[40:].copy() for c in x]
        dirty[which][7] = bad
        with pytest.raises(ValueError, match=r"wanted finite numbers, found -?(nan|inf) at row 7"):
            ours.update_many(*dirty)
        row = [float(c[40]) for c in x]
        row[which] = bad
        with pytest.raises(ValueError, match="finite"):
            ours.update(*row)
    rest = [c[40:] for c in x]
    assert table(ours.update_many(*rest)).tobytes() == table(clean.update_many(*rest)).tobytes()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: I.sma([1.0], 0), "n: wanted a whole number from 1 to 16777216, found 0"),
    (lambda: I.ema([1.0], 2.5), "n: wanted a whole number from 1 to 16777216, found 2.5"),
    (lambda: I.rsi([1.0], True), "n: wanted a whole number from 1 to 16777216, found True"),
    (lambda: I.macd([1.0], 26, 12), "wanted fast < slow, found 26 and 12"),
    (lambda: I.bollinger([1.0], 20, NAN), "wanted a finite number above 0, found nan"),
    (lambda: I.sma([[1.0]]), "x: wanted one column, found shape (1, 1)"),
    (lambda: I.atr([2.0, 3], [1.0], [1.5, 2]),
     "low: wanted one column of 2 values, found shape (1,)"),
    (lambda: I.atr([2.0, 1], [1.0, 3], [1.5, 2]),
     "wanted high >= low, found 1.0 and 3.0 at row 1"),
    (lambda: I.log_return([1.0, 0]), "x: wanted numbers above 0, found 0.0 at row 1"),
    (lambda: I.parkinson([1.0], [-1]), "low: wanted numbers above 0, found -1.0 at row 0"),
    (lambda: I.obv([1.0], [-2]), "volume: wanted numbers from 0, found -2.0 at row 0"),
    (lambda: I.trade_flow([0.5], [1]), "side: wanted -1, 0 or 1, found others"),
    (lambda: I.trade_flow([1], [0]), "qty: wanted numbers above 0, found 0.0 at row 0"),
    (lambda: I.imbalance([1.0, 2], [1.0]), "wanted arrays of one shape, found (2,) and (1,)"),
    (lambda: I.imbalance([-1.0], [1.0]), "bid_qty: wanted numbers from 0, found -1.0 at row 0"),
    (lambda: I.spread_bps([0.0], [1.0]), "bid: wanted numbers above 0"),
    (lambda: I.spread([0.0], [NAN]), "ask: wanted finite numbers"),
    (lambda: I.depth([[1.0]], 5), "qty: wanted (n, at least 5), found shape (1, 1)")])
def test_nonsense_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


def test_a_sum_that_overflows_is_not_taken_for_bad_input():
    """Suspicion is a sum of columns times 0; numbers near the largest must not be refused."""
    big = numpy.full(5, 1.7e308)
    assert (I.momentum(big, 1)[1:] == 0).all()
    assert (I.obv(big, numpy.zeros(5)) == 0).all()
    assert not numpy.isfinite(I.sma(big, 2)[1:]).any()          # documented: it overflows


def test_no_rows_are_no_rows():
    for name in [*ONE, *OTHER]:
        x = inputs(name, *(numpy.zeros(0),) * 4)
        assert table(make(name, 3, 1, 1).update_many(*x)).shape[0] == 0


def test_every_name_of_the_door_is_there():
    assert all(hasattr(I, name) for name in I.__all__)
    assert schema.DEPTH == 5        # indicators.depth's default is the book's


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("blocks", [3, 4, 5, 8, 9, 13])
def test_blocks_of_a_weighted_mean_side_by_side_are_one_after_another_to_the_last_bit(n, blocks):
    x = numpy.random.default_rng(n).standard_normal(blocks * n + n // 2 + 1) * 10.0 ** numpy.arange(
        -6, 6)[numpy.arange(blocks * n + n // 2 + 1) % 12]
    one, many = I.WMA(n), I.WMA(n)
    start = n // 2                                  # the column begins in the middle of a block
    expected = numpy.array([one.update(v) for v in x])
    found = numpy.concatenate([[many.update(v) for v in x[:start]], many.update_many(x[start:])])
    assert found.tobytes() == expected.tobytes()
    assert many.update(1.5) == one.update(1.5), "and they go on alike"


def test_a_column_with_one_value_that_is_no_number_is_refused_wherever_it_stands():
    for at in range(0, 130):
        x = numpy.ones(130)
        x[at] = (numpy.nan, numpy.inf, -numpy.inf)[at % 3]
        with pytest.raises(ValueError, match=rf"\b{at}\b"):
            I.WMA(5).update_many(x)
