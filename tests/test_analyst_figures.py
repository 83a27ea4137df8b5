"""Value at risk, range, correlation and volumes against exact twins, scipy, TA-Lib and print."""
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hftpipe.analyst import figures as f
from tests.models import tail

try:
    from scipy import stats as scipy
except ImportError:
    scipy = None

NANO = 10**9
METHODS = tuple(f.METHODS)
P95, P99 = f.CONFIDENCES

returns = st.floats(-0.5, 0.5, allow_subnormal=False).map(lambda x: round(x, 9))
series = st.lists(returns, min_size=2, max_size=60)
values = st.integers(-10**6, 10**6).map(float)
confidences = st.fractions(Fraction(1, 2), Fraction(999, 1000), max_denominator=1000)


def near(found, exact, floor=1e-9):
    assert abs(found - float(exact)) <= 1e-9 * abs(float(exact)) + floor, (found, float(exact))


# ---------------------------------------------------------------- exact twins

@settings(deadline=None)
@given(series, confidences)
def test_historical_is_the_loss_at_its_rank(pnl, confidence):
    exact = tail.ordered([-Fraction(x) for x in pnl], confidence)
    assert f.historical(np.array(pnl), confidence) == float(exact)


@pytest.mark.parametrize(("count", "worst95", "worst99"), [
    (20, 2, 1), (30, 2, 1), (100, 6, 2), (250, 13, 3), (1000, 51, 11)])
def test_the_rank_by_hand(count, worst95, worst99):
    """Of 100 losses 1 .. 100, 95 % do not exceed 95: the sixth worst."""
    pnl = -np.arange(1.0, count + 1)
    assert f.historical(pnl, P95) == count + 1 - worst95
    assert f.historical(pnl, P99) == count + 1 - worst99


@settings(deadline=None)
@given(st.lists(values, min_size=3, max_size=3),
       st.lists(st.tuples(*[st.one_of(returns, st.just(math.nan))] * 3), min_size=1, max_size=30))
def test_scenarios_are_the_rows_that_everything_held_has(held, rows):
    exact = tail.scenarios(held, rows)
    found = f.scenarios(np.array(held), np.array(rows))
    if not any(held):
        assert found is None
        return
    assert len(found) == len(exact)
    for a, b in zip(found, exact, strict=True):
        near(a, b, 1e-6)


@pytest.mark.skipif(scipy is None, reason="needs scipy")
@settings(deadline=None)
@given(series)
def test_parametric_against_exact_moments(pnl):
    mean, second, _, _ = tail.moments([Fraction(x) for x in pnl])
    spread = math.sqrt(second * len(pnl) / (len(pnl) - 1))
    for c in f.CONFIDENCES:
        near(f.parametric(np.array(pnl), c),
             max(scipy.norm.ppf(float(c)) * spread - float(mean), 0))


@pytest.mark.skipif(scipy is None, reason="needs scipy")
@settings(deadline=None)
@given(series)
def test_cornish_fisher_against_exact_moments_where_it_is_monotone(pnl):
    mean, second, third, fourth = tail.moments([Fraction(x) for x in pnl])
    assume(second > Fraction(1, 10**12))
    spread = math.sqrt(second)
    skew, excess = float(third) / spread ** 3, float(fourth) / spread ** 4 - 3
    # scipy has the same moments
    assert scipy.skew(pnl) == pytest.approx(skew, rel=1e-6, abs=1e-6)
    assert scipy.kurtosis(pnl) == pytest.approx(excess, rel=1e-6, abs=1e-6)
    for c in f.CONFIDENCES:
        z = scipy.norm.ppf(1 - float(c))        # as the textbooks have it: from the lower tail
        grid = [z * k / 400 for k in range(401)]
        lower = [y + (y * y - 1) * skew / 6 + (y ** 3 - 3 * y) * excess / 24
                 - (2 * y ** 3 - 5 * y) * skew ** 2 / 36 for y in grid]
        found = f.cornish_fisher(np.array(pnl), c)
        want = -(float(mean) + spread * min(lower))
        assert found >= max(want, 0) - 1e-9 - 1e-9 * abs(want)
        assert found <= max(want, 0) + spread * 2e-3 + 1e-9
        if min(lower) == lower[-1]:             # the peak is at the end: the formula itself
            near(found, max(want, 0), 1e-9)


def test_the_expansion_as_printed():
    """Wikipedia, Cornish-Fisher: mean 10, variance 25, skew 5, excess 2; 95 % = 22.781."""
    assert f.expansion(1.644854, 5, 2) == pytest.approx(2.55621, abs=5e-6)
    assert 10 + 5 * f.expansion(1.644854, 5, 2) == pytest.approx(22.781, abs=5e-4)


def test_parametric_as_printed():
    """Jorion: a normal portfolio of 100 million with 20 % volatility a year, one day at 95 %.

    z = 1.645, one day of 252: 2.07 million.
    """
    daily = 0.20 / math.sqrt(252)
    pnl = np.array([-daily, daily] * 500) * math.sqrt(999 / 1000) * 100e6
    assert f.parametric(pnl, P95) == pytest.approx(2.072e6, rel=2e-4)


# ---------------------------------------------------------------- what must hold

@settings(deadline=None)
@given(st.sampled_from(METHODS), series, confidences, confidences)
def test_a_higher_confidence_is_never_a_smaller_figure(method, pnl, a, b):
    low, high = sorted((a, b))
    made = f.METHODS[method]
    assert made(np.array(pnl), low) <= made(np.array(pnl), high) * (1 + 1e-12) + 1e-12


@settings(deadline=None)
@given(st.sampled_from(METHODS), series, st.integers(1, 1000), st.sampled_from(f.CONFIDENCES))
def test_a_figure_scales_with_the_position(method, pnl, factor, c):
    one, many = (f.METHODS[method](np.array(pnl) * k, c) for k in (1, factor))
    assert many == pytest.approx(factor * one, rel=1e-9, abs=1e-9 * factor)


matrix = st.integers(1, 4).flatmap(lambda m: st.tuples(
    st.lists(values, min_size=m, max_size=m), st.integers(0, m - 1), values,
    st.lists(st.lists(returns, min_size=m, max_size=m), min_size=2, max_size=40)))


@settings(deadline=None)
@given(matrix)
def test_the_bound_of_the_gate_holds_for_the_parametric_one(case):
    """What is held plus an order: at most the figure of what is held plus the order's own."""
    held, instrument, order, rows = case
    held, rows = np.array(held), np.array(rows)
    after = held.copy()
    after[instrument] += order
    before = f.value_at_risk(held, rows, "parametric", 2)
    then = f.value_at_risk(after, rows, "parametric", 2)
    unit = f.unit_value_at_risk(rows, "parametric", 2)[instrument]
    for k in range(2):
        bound = before[k] + math.ceil(abs(order) * unit[k])
        assert then[k] <= bound + 2 + bound * 1e-9


@settings(deadline=None)
@given(st.sampled_from(METHODS), st.lists(returns, min_size=2, max_size=40), values)
def test_the_unit_figure_covers_either_side(method, column, value):
    rows = np.array([column]).T
    (unit,) = f.unit_value_at_risk(rows, method, 2)
    for side in (value, -value):
        found = f.value_at_risk(np.array([side]), rows, method, 2)
        for k in range(2):
            assert found[k] <= abs(value) * unit[k] * (1 + 1e-9) + 2


# ---------------------------------------------------------------- absent figures

def test_too_few_scenarios_give_no_figure_and_flat_is_no_risk():
    rows = np.array([[0.01, math.nan], [-0.02, 0.01], [0.03, 0.02]])
    assert f.value_at_risk(np.zeros(2), rows, "historical", 20) == (0, 0)
    assert f.value_at_risk(np.array([5.0, 0]), rows, "historical", 4) == (None, None)
    assert f.value_at_risk(np.array([5.0, 0]), rows, "historical", 3) == pytest.approx(
        (10**8, 10**8), abs=1)
    assert f.value_at_risk(np.array([5.0, 1]), rows, "historical", 3) == (None, None)
    assert f.value_at_risk(np.array([5.0, 0]), rows[:1], "parametric", 1) == (None, None)
    units = f.unit_value_at_risk(rows, "historical", 3)
    assert units[1] == (None, None)
    assert units[0] == pytest.approx((30_000_000, 30_000_000), abs=1)


def test_what_does_not_fit_or_is_no_number_is_no_figure():
    rows = np.array([[-0.5]] * 20)
    assert f.value_at_risk(np.array([1e11]), rows, "historical", 2) == (None, None)
    assert f.nano_up(math.nan) is None and f.nano_up(math.inf) is None
    assert f.nano_up(0.1) == 100_000_001        # the double is a little above 0.1
    assert f.nano_up(-0.1) == -100_000_001 and f.nano_up(0.0) == 0
    assert f.nano_up(0.5) == NANO // 2


def test_a_day_is_the_square_root_of_its_periods():
    rows = np.array([[x] for x in (0.01, -0.01, 0.02, -0.02)])
    one = f.value_at_risk(np.array([100.0]), rows, "parametric", 2)
    day = f.value_at_risk(np.array([100.0]), rows, "parametric", 2, scale=2.0)
    assert day[0] == pytest.approx(2 * one[0], abs=2)


def test_returns_that_never_move_have_no_risk():
    rows = np.zeros((30, 1))
    for method in METHODS:
        assert f.value_at_risk(np.array([100.0]), rows, method, 20) == (0, 0)
        assert f.unit_value_at_risk(rows, method, 20) == [(0, 0)]


# ---------------------------------------------------------------- correlation

@settings(deadline=None)
@given(st.lists(st.tuples(returns, returns), min_size=2, max_size=50))
def test_correlation_against_exact_sums(rows):
    xs, ys = ([Fraction(v) for v in column] for column in zip(*rows, strict=True))
    found = f.correlations(np.array(rows), 2)
    vx, vy = tail.covariance(xs, xs), tail.covariance(ys, ys)
    if vx == 0 or vy == 0:
        assert found == {}
        return
    exact = float(tail.covariance(xs, ys)) / math.sqrt(vx) / math.sqrt(vy)
    assert abs(found[0, 1] - exact * NANO) <= 100
    assert -NANO <= found[0, 1] <= NANO


def test_correlation_of_common_rows_only():
    rows = np.array([[0.01, 0.02, math.nan], [-0.03, -0.06, 0.01], [0.02, 0.04, 0.03],
                     [0.0, 0.0, 0.02]])
    found = f.correlations(rows, 3)
    assert found[0, 1] == NANO and set(found) == {(0, 1), (0, 2), (1, 2)}
    assert set(f.correlations(rows, 4)) == {(0, 1)}
    assert f.correlations(-rows * [1, -1, 1], 4)[0, 1] == -NANO


# ---------------------------------------------------------------- range

bars = st.lists(st.tuples(*[st.integers(1, 10**6)] * 3).map(sorted), min_size=1, max_size=60)


@settings(deadline=None)
@given(bars)
def test_average_true_range_against_the_exact_recursion(rows):
    low, close, high = (np.array(c, float) for c in zip(*rows, strict=True))
    exact = tail.true_range_average(*([Fraction(int(v)) for v in a] for a in (high, low, close)))
    found = f.atr(high, low, close)
    if exact is None:
        assert found is None and f.volatility(high, low, close) is None
        return
    near(found, exact)
    assert abs(f.volatility(high, low, close) - exact / Fraction(int(close[-1])) * NANO) <= (
        2 + float(exact) / close[-1])


def test_average_true_range_is_talibs():
    talib = pytest.importorskip("talib")
    walk = 100 * np.exp(np.cumsum(np.random.default_rng(5).normal(0, 0.01, 500)))
    high, low = walk * 1.01, walk * 0.985
    for n in (15, 16, 40, 500):
        assert f.atr(high[:n], low[:n], walk[:n]) == pytest.approx(
            talib.ATR(high[:n], low[:n], walk[:n], 14)[-1], rel=1e-12)
    assert f.atr(high[:14], low[:14], walk[:14]) is None


def test_bars_without_range_are_left_out_of_the_volatility():
    close = np.full(20, 100.0)
    high, low = close + 1, close - 1
    high[3] = math.nan
    assert f.volatility(high, low, close) in (20_000_000, 20_000_001)
    assert f.volatility(high[:15], low[:15], close[:15]) is None


# ---------------------------------------------------------------- volumes

def test_average_volume_is_rounded_down_and_wants_days():
    days = np.array([1.0, 2.0, 2.0, math.nan])
    assert f.average_volume(days, 3) == 1_666_666_666
    assert f.average_volume(days, 4) is None and f.average_volume(days[3:], 1) is None


def test_volume_of_late_over_what_was_usual():
    usual = [10.0] * 20
    assert f.volume_ratio(np.array([*usual, 15.0])) == 1_500_000_000
    assert f.volume_ratio(np.array([999.0, *usual, 0.0])) == 0
    assert f.volume_ratio(np.array([*usual])) is None
    assert f.volume_ratio(np.array([0.0] * 20 + [1.0])) is None
    assert f.volume_ratio(np.array([math.nan, *usual, 5.0])) == NANO // 2
