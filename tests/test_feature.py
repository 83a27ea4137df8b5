"""Features equal their naive twin on any book, are finite on every int64, and never see bad states.

Tolerance: both compute in float64 and round to float32 once, so 1e-6 relative (16 float32
ulps) plus 1e-9 absolute, for logarithms and differences that cancel to nothing.
"""
import math
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._feature import BOOK, WARM, Features
from tests.data import recording
from tests.models.feature import CROSSED, EMPTY, STALE, TRADE, Twin, usable

NAMES = [f.name for f in schema.FEATURES.fields]
LOCKED, HALTED = schema.BOOK_FLAG.LOCKED, schema.BOOK_FLAG.HALTED
GOOD = {"bid": 100_000_000_000, "ask": 100_010_000_000, "bid_qty": 5 * 10**9, "ask_qty": 3 * 10**9,
        "bid_depth": 20 * 10**9, "ask_depth": 30 * 10**9, "ts_recv": 1}


def books(rows) -> numpy.ndarray:
    out = numpy.zeros(len(rows), BOOK)
    for target, row in zip(out, rows, strict=True):
        for name, value in row.items():
            target[name] = value
    return out


def check(rows, bar="1min") -> Features:
    """Feed *rows* to both and compare each vector."""
    array = books(rows)
    ours, twin = Features("all", bar), Twin(bar)
    vectors, warm = ours.update_many(array)
    seen = 0
    for i, row in enumerate(array):
        wanted = twin.update(row)
        if wanted is None:
            assert not warm[i] and not vectors[i].any()
            continue
        seen += 1
        assert warm[i] == (seen >= WARM)
        numpy.testing.assert_allclose(
            vectors[i], numpy.array([wanted[n] for n in NAMES], numpy.float32),
            rtol=1e-6, atol=1e-9, err_msg=f"state {i}")
    assert (ours.count, ours.skipped) == (seen, len(rows) - seen)
    return ours


def walk(n, seed, price=61_500 * 10**9, tick=10**8, quantum=10**6):
    """BOOK rows like Binance's bookTicker of BTCUSDT: most move a quantity, few the price."""
    random = numpy.random.default_rng(seed)
    bid, spread, ts, volume = price, tick, 10**15, 0
    bid_qty, ask_qty = (int(q) for q in random.integers(1, 9_000, 2) * quantum)
    for _ in range(n):
        ts += int(random.exponential(3e6))
        flags, last = 0, {}
        what = random.random()
        if what < 0.08:
            bid += tick * int(random.integers(-5, 6))
            spread = tick * int(random.choice([1, 1, 1, 2, 7]))
            bid_qty, ask_qty = (int(q) for q in random.integers(1, 9_000, 2) * quantum)
        elif what < 0.30:
            side, qty = int(random.choice([-1, 1])), int(random.integers(1, 500)) * quantum
            volume += qty
            flags = TRADE
            last = {"last_price": bid if side < 0 else bid + spread, "last_qty": qty,
                    "last_side": side}
        elif what < 0.65:
            bid_qty = int(random.integers(1, 9_000)) * quantum
        else:
            ask_qty = int(random.integers(1, 9_000)) * quantum
        yield {"ts_recv": ts, "bid": bid, "ask": bid + spread, "bid_qty": bid_qty,
               "ask_qty": ask_qty, "bid_depth": 4 * bid_qty, "ask_depth": 3 * ask_qty,
               "volume": volume, "flags": flags, **last}


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_twin_on_a_random_walk(seed):
    assert check(list(walk(400, seed))).warm


UTC = 1_723_161_255 * 10**9


def test_equals_the_twin_through_every_window_of_bars():
    """Two hundred and more bars: the longest average is defined, and a midnight is passed."""
    random = numpy.random.default_rng(7)
    rows, ts, volume = [], UTC // (86_400 * 10**9) * 86_400 * 10**9 + 86_290 * 10**9, 0
    for row in walk(470, 4):
        ts += int(random.exponential(1.2e9)) * bool(row["flags"])
        volume += row.get("last_qty", 0)
        rows.append(row | {"ts_venue": ts, "volume": volume, "flags": TRADE, "last_side": 1,
                           "last_price": row["bid"], "last_qty": 10**6})
        volume += 10**6
    rows = [r | {"ts_venue": rows[0]["ts_venue"] + i * 700_000_000} for i, r in enumerate(rows)]
    ours = check(rows, "1s")
    assert ours.bars > 250 and ours.late == 0
    days = {r["ts_venue"] // (86_400 * 10**9) for r in rows}
    assert len(days) == 2


def test_before_the_first_bar_prices_are_the_mid():
    vector = Features("all").update_many(books([GOOD]))[0][0]
    v = dict(zip(NAMES, vector.tolist(), strict=True))
    mid = numpy.float32(100.005)
    for name in ("close", "open", "high", "low", "ema9", "ema21", "ema12", "ema26", "sma50",
                 "sma200", "wma20", "bollinger_lower", "bollinger_middle", "bollinger_upper", "vwap", "mid",
                 "bar_vwap"):
        assert v[name] == mid, name
    for name in ("rsi14", "rsi28", "mfi14", "stochastic_k", "stochastic_d"):
        assert v[name] == 50
    assert (v["bollinger_b"], v["volume_ratio20"]) == (0.5, 1)
    for name in ("macd_line", "macd_signal", "macd_histogram", "ema_difference", "volume",
                 "sma50_distance", "volume_change", "log_return", "momentum10", "bollinger_width",
                 "atr14", "atr14_percent", "obv", "vwap_distance", "realised20", "parkinson20",
                 "bar_range", "bar_trades", "bars"):
        assert v[name] == 0, name


def trade(ts, price, qty, volume, **more):
    return GOOD | {"ts_venue": ts, "flags": TRADE, "last_price": price, "last_qty": qty,
                   "last_side": 1, "volume": volume} | more


def test_a_bar_is_complete_with_the_venues_time_even_without_a_trade():
    names = ("close", "volume", "bars", "bar_trades")
    rows = [trade(UTC, 101 * 10**9, 2 * 10**9, 2 * 10**9),
            GOOD | {"ts_venue": UTC + 44 * 10**9}, GOOD | {"ts_venue": UTC + 45 * 10**9}]
    assert (UTC // 10**9) % 60 == 15
    vectors = Features(names).update_many(books(rows))[0]
    assert vectors[:, 2].tolist() == [0, 0, 1]
    assert vectors[2].tolist() == [101, 2, 1, 1]


def test_without_the_venues_time_the_offset_last_known_stands_in():
    rows = [trade(UTC, 101 * 10**9, 10**9, 10**9, ts_recv=5), GOOD | {"ts_recv": 44 * 10**9 + 5},
            GOOD | {"ts_recv": 45 * 10**9 + 5}]
    assert Features(("bars",)).update_many(books(rows))[0][:, 0].tolist() == [0, 0, 1]


def test_trades_of_one_message_are_counted_by_the_volume():
    """A message may hold several trades; the state shows the last price and all of the volume."""
    rows = [trade(UTC, 100 * 10**9, 10**9, 50 * 10**9), trade(UTC, 102 * 10**9, 10**9, 53 * 10**9),
            GOOD | {"ts_venue": UTC + 60 * 10**9, "volume": 53 * 10**9}]
    v = Features(("volume", "bar_vwap", "bar_trades")).update_many(books(rows))[0][-1]
    assert v.tolist() == [4, 101.5, 2]              # what was traded before we looked is not ours


def test_a_print_is_a_print_whatever_the_book():
    """Bars take trades of states that the vector may not use, and the vector has them later."""
    rows = [trade(UTC, 100 * 10**9, 10**9, 10**9, flags=TRADE | STALE),
            GOOD | {"ts_venue": UTC + 60 * 10**9, "flags": CROSSED},
            GOOD | {"ts_venue": UTC + 60 * 10**9}]
    vectors, _ = Features(("close", "bars")).update_many(books(rows))
    assert vectors.tolist() == [[0, 0], [0, 0], [100, 1]]


def test_late_trades_are_counted():
    rows = [trade(UTC, 100 * 10**9, 10**9, 10**9), trade(UTC + 60 * 10**9, 100 * 10**9, 10**9, 2),
            trade(UTC, 90 * 10**9, 10**9, 3)]
    ours = Features("classic")
    ours.update_many(books(rows))
    assert (ours.bars, ours.late) == (1, 1)


def test_a_choice_of_features_is_columns_of_all():
    rows = books(list(walk(200, 3)))
    whole, _ = Features("all", "5s").update_many(rows)
    for choice in (*schema.FEATURE_SETS, ["rsi14", "arrival", "close"]):
        ours = Features(choice, "5s")
        vectors, _ = ours.update_many(rows)
        columns = [NAMES.index(n) for n in ours.names]
        assert vectors.tobytes() == numpy.ascontiguousarray(whole[:, columns]).tobytes()
        assert ours.hash == schema.feature_hash(ours.names, "5s")
        assert ours.bar == ("" if choice == "book" else "5s")


@pytest.mark.parametrize(("arguments", "message"), [
    (("defualt",), "wanted a set of features, found 'defualt': did you mean 'default'?"),
    ((["rsi15"],), "wanted a feature, found 'rsi15': did you mean 'rsi14'?"),
    ((["rsi14", "rsi14"],), "wanted each feature once, found 'rsi14' twice"),
    (("classic", "1mn"), "wanted a window of bars, found '1mn': did you mean '1min'?")])
def test_unknown_features_and_windows_are_refused(arguments, message):
    with pytest.raises(ValueError) as caught:
        Features(*arguments)
    assert str(caught.value) == message


def test_equals_the_twin_on_a_recording():
    path = recording("lobster", "AAPL_2012-06-21_34200000_57600000_orderbook_10_first1k.csv.gz")
    table = numpy.loadtxt(path, delimiter=",", dtype=numpy.int64)   # ask, qty, bid, qty, ...
    check([{"ts_recv": 10**15 + i * 12_345_678, "ask": int(r[0]) * 10**5, "bid": int(r[2]) * 10**5,
            "ask_qty": int(r[1]) * 10**9, "bid_qty": int(r[3]) * 10**9,
            "ask_depth": int(r[1:20:4].sum()) * 10**9, "bid_depth": int(r[3:20:4].sum()) * 10**9}
           for i, r in enumerate(table)])


QTY = st.one_of(st.integers(0, 9), st.integers(0, 10**13), st.integers(0, 2**62))
STATE = st.fixed_dictionaries({
    "bid": st.one_of(st.integers(10**10, 10**10 + 5), st.integers(1, 2**62)),
    "spread": st.one_of(st.integers(0, 3), st.integers(0, 2**61)),
    "bid_qty": QTY, "ask_qty": QTY, "bid_depth": QTY, "ask_depth": QTY,
    "last_price": st.integers(0, 2**62), "last_qty": QTY, "last_side": st.integers(-1, 1),
    "flags": st.sampled_from([0, 0, 0, TRADE, TRADE, LOCKED, HALTED, STALE, CROSSED, EMPTY,
                              TRADE | STALE]),
    "ts_recv": st.integers(0, 2**62), "volume": st.integers(0, 2**62),
    "ts_venue": st.one_of(st.just(0), st.integers(UTC, UTC + 10**12), st.integers(0, 2**62))})


@settings(max_examples=150, deadline=None)
@given(st.lists(STATE, max_size=12))
def test_equals_the_twin_on_any_book(states):
    for s in states:
        s["ask"] = s["bid"] + s.pop("spread")
    check(states)


INT64 = st.one_of(st.sampled_from([-2**63, -1, 0, 1, 2**63 - 1]), st.integers(-2**63, 2**63 - 1))
ANYTHING = st.fixed_dictionaries(
    {name: INT64 for name in ("ts_recv", "ts_venue", "bid", "ask", "bid_qty", "ask_qty",
                              "bid_depth", "ask_depth", "last_price", "last_qty", "volume")}
    | {"flags": st.integers(0, 255), "last_side": st.integers(-128, 127)})
POSITIVE = st.fixed_dictionaries(
    {name: st.one_of(st.sampled_from([1, 2**63 - 1]), st.integers(1, 2**63 - 1))
     for name in ("bid", "ask", "bid_qty", "ask_qty", "bid_depth", "ask_depth", "last_price",
                  "last_qty", "ts_recv", "ts_venue")} | {"flags": st.sampled_from([0, TRADE]),
                                             "last_side": st.sampled_from([-1, 0, 1])})


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(ANYTHING, POSITIVE), max_size=40))
def test_nothing_that_is_not_finite_leaves(states):
    vectors, _ = Features("all", "1s").update_many(books(states))
    assert numpy.isfinite(vectors).all()


def test_averages_that_fade_stay_finite_and_end_at_zero():
    """A quiet instrument for 100,000 states: no denormal is left behind to slow each update."""
    rows = books([*walk(200, 1), *[GOOD] * 100_000])
    vectors, warm = Features("all").update_many(rows)
    assert warm[-1] and numpy.isfinite(vectors).all()
    last = dict(zip(NAMES, vectors[-1].tolist(), strict=True))
    assert last["volatility"] == last["trade_rate"] == last["order_flow"] == 0
    tiny = numpy.finfo(numpy.float32).tiny
    assert not ((vectors != 0) & (abs(vectors) < tiny)).any()


@pytest.mark.parametrize("bad", [
    {"flags": STALE}, {"flags": CROSSED}, {"flags": EMPTY}, {"flags": STALE | TRADE},
    {"bid": 0}, {"ask": 0}, {"bid": -1}, {"bid": GOOD["ask"] + 1}, {"bid_qty": -1},
    {"ask_qty": -1}, {"bid_depth": -1}, {"ask_depth": -2**63}])
def test_a_bad_state_changes_nothing(bad):
    clean = books([GOOD, GOOD | {"bid_qty": 10**9}])
    dirty = books([GOOD, GOOD | {"ts_recv": 5} | bad, GOOD | {"bid_qty": 10**9}])
    assert not usable(dirty[1])
    a, b = Features(), Features()
    numpy.testing.assert_array_equal(a.update_many(clean)[0], b.update_many(dirty)[0][[0, 2]])
    assert (b.count, b.skipped) == (2, 1)


def test_warm_after_the_slowest_average_has_its_span():
    ours = Features()
    for _ in range(WARM - 1):
        assert ours.update(books([GOOD])) is None and not ours.warm
    assert ours.update(books([GOOD])[0]) is not None
    assert ours.warm and ours.count == WARM == 128
    assert ours.update(books([GOOD | {"flags": STALE}])) is None    # warm, but this state is not
    assert ours.update(books([GOOD])).shape == (16,)


def test_one_at_a_time_is_the_same_as_many():
    array = books(list(walk(300, 9)))
    many, warm = Features().update_many(array)
    single = Features()
    for i, row in enumerate(array):
        vector = single.update(row)
        assert (vector is not None) == warm[i]
        if vector is not None:
            assert vector.tobytes() == many[i].tobytes()


def test_time_is_the_records_and_not_a_clock():
    late = GOOD | {"ts_recv": GOOD["ts_recv"] + 7_000_000}
    vectors, _ = Features("all").update_many(books([GOOD, late, GOOD, GOOD | {"ts_recv": 2**62}]))
    arrival = vectors[:, NAMES.index("arrival")]
    assert arrival[0] == arrival[2] == 0            # nothing before; earlier than before
    assert arrival[1] == pytest.approx(math.log1p(7))
    assert arrival[3] == pytest.approx(math.log1p(3_600_000))


def test_worked_example():
    """One step by hand: the bid queue grows from 5 to 8 and a buyer takes 2 at the ask."""
    step = GOOD | {"bid_qty": 8 * 10**9, "flags": TRADE, "last_price": GOOD["ask"],
                   "last_qty": 2 * 10**9, "last_side": 1, "ts_recv": 1_000_001}
    v = dict(zip(NAMES, Features("all").update_many(books([GOOD, step]))[0][1].tolist(),
                 strict=True))
    mid = 100.005
    assert v["mid_return"] == v["mid_momentum_fast"] == v["volatility"] == 0
    assert v["spread_bps"] == pytest.approx(0.01 / mid * 1e4, rel=1e-6)
    assert v["imbalance_top"] == pytest.approx(5 / 11, rel=1e-6)
    assert v["imbalance_depth"] == pytest.approx(-10 / 50, rel=1e-6)
    assert v["microprice_bps"] == pytest.approx(
        ((100.0 * 3 + 100.01 * 8) / 11 - mid) / mid * 1e4, rel=1e-5)
    assert v["order_flow"] == pytest.approx(2 / 17 * 3 / (4 + 2 / 17 * 1.5), rel=1e-6)
    assert v["trade_flow"] == 1
    assert v["last_offset_bps"] == pytest.approx(0.005 / mid * 1e4, rel=1e-6)
    assert v["bid_queue_change"] == pytest.approx(3 / 8) and v["ask_queue_change"] == 0
    assert v["depth_ratio"] == pytest.approx(math.log(21 / 31), rel=1e-6)
    assert v["trade_rate"] == pytest.approx(2 / 65, rel=1e-6)
    assert v["arrival"] == pytest.approx(math.log1p(1), rel=1e-6)


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="wanted a row of BOOK records"):
        Features().update_many(numpy.zeros(3, schema.dtype(schema.INTENT)))
    two = books([GOOD, GOOD | {"instrument": 1}])
    with pytest.raises(ValueError, match="one instrument, found several"):
        Features().update_many(two)
    with pytest.raises(ValueError, match="one state of the book, found 2"):
        Features().update(books([GOOD, GOOD]))
    vectors, warm = Features().update_many(books([]))
    assert vectors.shape == (0, 16) and warm.shape == (0,)


def catalogue() -> str:
    """The tables of docs/features.md."""
    out = []
    for title, bars in (("From the book", False), ("From bars", True)):
        out += [f"### {title}", "", "| Feature | Definition | In the sets |", "|---|---|---|"]
        for f in schema.CATALOGUE:
            if f.bars == bars:
                sets = ", ".join(n for n, names in schema.FEATURE_SETS.items() if f.name in names)
                out.append(f"| `{f.name}` | {f.doc} | {sets} |")
        out.append("")
    return "\n".join(out)


def test_the_document_lists_the_catalogue():
    text = (Path(__file__).resolve().parent.parent / "docs/features.md").read_text()
    _, mark, found = text.partition("## Catalogue\n\n")
    assert mark and found == catalogue(), "paste catalogue() after '## Catalogue'"


def test_the_classic_vector_is_in_its_order():
    """Thirty values in the order that models of old were made for."""
    assert schema.FEATURE_SETS["classic"] == (
        "close", "open", "high", "low", "rsi14", "macd_line", "macd_signal", "macd_histogram",
        "ema9", "ema21", "ema_difference", "sma50", "sma50_distance", "sma200", "bollinger_lower",
        "bollinger_middle", "bollinger_upper", "bollinger_b", "volume", "volume_change",
        "best_bid", "best_ask", "mid", "spread", "spread_bps", "bid_depth", "ask_depth",
        "imbalance_depth", "log_return", "momentum10")
    default = schema.FEATURE_SETS["default"]
    assert default[:30] == schema.FEATURE_SETS["classic"]
    assert set(default) == {*schema.FEATURE_SETS["classic"], *schema.FEATURE_SETS["book"]}
