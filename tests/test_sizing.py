"""Sizes are what the formulas give, rounded down to lots, within the most, and 0 when in doubt."""
from decimal import ROUND_FLOOR, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import strategies
from hftpipe.errors import ConfigError
from hftpipe.strategies._probe import Probe
from hftpipe.strategies._sizing import RULES, Sizing
from tests.test_strategies import book, instruments, vector

NANO = 10**9
BASE = {"size": "fixed", "equity": 100_000 * NANO, "size_share": NANO // 50,
        "size_stop": NANO // 50,
        "size_win": 55 * 10**7, "size_payoff": 15 * 10**8, "size_kelly": NANO // 4,
        "size_cap": NANO // 5, "size_base": NANO // 50}
MAX = 2**61


def floor(value):
    return int(value.to_integral_value(ROUND_FLOOR))


def wanted(p, qty, most, lot, count, price, volatility):
    """The formulas in Decimal; every step that is a sum of money or a quantity rounds down."""
    with localcontext() as context:
        context.prec = 120
        share = {"kelly": max(min(
            floor(Decimal(p["size_kelly"]) * (Decimal(p["size_win"]) - (NANO - Decimal(
                p["size_win"])) * NANO / p["size_payoff"]) / NANO), p["size_cap"]), 0),
            "equal": NANO // count}.get(p["size"], p["size_share"])
        cash = floor(Decimal(p["equity"]) * share / NANO)
        if p["size"] == "fixed":
            out = qty
        elif p["size"] in ("fraction", "volatility"):
            out = floor(Decimal(cash) * NANO * NANO / (Decimal(price) * p["size_stop"]))
            if p["size"] == "volatility":
                now = int(volatility * 1e9)
                if now <= 0:
                    return 0
                out = floor(Decimal(min(out, 2**63 - 1)) * p["size_base"] / now)
        else:
            out = floor(Decimal(cash) * NANO / price)
        return min(out, most) // lot * lot


shares = st.integers(1, NANO)


@given(st.sampled_from(RULES), st.integers(1, MAX), shares, shares, shares,
       st.integers(1, 100 * NANO), shares, shares, shares, st.integers(1, MAX),
       st.integers(1, MAX), st.integers(1, 10**10), st.integers(1, 50), st.integers(1, 2**62),
       st.floats(1e-9, 1e8))
def test_agrees_with_decimal(rule, equity, share, stop, win, payoff, kelly, cap, base, qty, most,
                             lot, count, price, volatility):
    p = {"size": rule, "equity": equity, "size_share": share, "size_stop": stop, "size_win": win,
         "size_payoff": payoff, "size_kelly": kelly, "size_cap": cap, "size_base": base}
    found = Sizing(p, qty, most, lot, count).qty(price, volatility)
    assert found == wanted(p, qty, most, lot, count, price, volatility)
    assert 0 <= found <= most and found % lot == 0


def test_by_hand():
    def size(rule, price=100, volatility=0.0, **more):
        return Sizing(BASE | {"size": rule} | more, 7 * NANO, 10**6 * NANO, NANO, 4).qty(
            price * NANO, volatility) / NANO
    assert size("fixed") == 7
    assert size("equity") == 20                 # 2 % of 100000 at 100
    assert size("fraction") == 1000             # lose 2000 when it falls by 2
    assert size("kelly") == 62                  # 0.25 * (0.55 - 0.45 / 1.5) = 6.25 %
    assert size("kelly", size_kelly=NANO) == 200                # 25 %, capped at 20
    assert size("kelly", size_win=NANO // 4) == 0               # no edge
    assert size("volatility", volatility=0.04) == 500           # twice as wild, half as much
    assert size("equal", price=3) == 8333


@pytest.mark.parametrize("price, volatility, more", [
    (0, 0.01, {}), (-5, 0.01, {}), (NANO, float("nan"), {}), (NANO, 0.0, {}), (NANO, -0.1, {}),
    (NANO, float("inf"), {}), (NANO, 1e-10, {}), (NANO, 0.01, {"equity": 0}),
    (NANO, 0.01, {"equity": -1})])
def test_what_is_no_good_is_no_order_and_counted(price, volatility, more):
    s = Sizing(BASE | {"size": "volatility"} | more, NANO, MAX, NANO)
    assert s.qty(price, volatility) == 0 and s.bad == 1


def test_bad_parameters_are_refused():
    for more, words in (({"size": "all"}, "size must be one of fixed, .* was 'all'"),
                        ({"size_share": NANO + 1}, "size_share must be 0 to 100 %"),
                        ({"size": "fraction", "size_stop": 0}, "needs size_stop"),
                        ({"size": "kelly", "size_payoff": 0}, "needs size_payoff")):
        with pytest.raises(ConfigError, match=words):
            Sizing(BASE | more, NANO, MAX, NANO)


def test_what_is_held_is_left_whole_when_no_size_can_be_told():
    table = instruments(NANO)
    p = Probe(strategies.load("imbalance", {"size": "volatility", "equity": 100_000 * NANO},
                              table), table)
    assert not len(p.ask(book(now=7), vector(0.9))[0])          # its volatility is 0: no size
    (intent,) = p.ask(book(now=8), vector(-0.9), qty=4 * NANO)[0]
    assert (intent["side"], intent["qty"]) == (-1, 4 * NANO)


def test_a_shipped_strategy_orders_what_the_rule_gives():
    table = instruments(NANO)
    for rule, most, qty in (("fixed", 0, 3), ("equity", 100, 19), ("equity", 5, 5)):
        p = Probe(strategies.load("imbalance", {
            "size": rule, "qty": 3 * NANO, "max_qty": most * NANO, "equity": 100_000 * NANO},
            table), table)
        (intent,) = p.ask(book(now=7), vector(0.9))[0]
        assert intent["qty"] == qty * NANO      # 2000 at the ask of 100.01 buys 19
