"""The ledger loses nothing: cash and positions balance to the last 1e-18 and Decimal agrees."""
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._ledger import Ledger
from tests.models.ledger import PRECISION, NaiveLedger

E = schema.ORDER_EVENT_KIND
NANO = 10**9
ATTO = 10**18
MAX = 2**63 - 1


def fill(instrument, signed, price, event=0, kind=E.PARTIAL_FILL):
    row = np.zeros((), schema.dtype(schema.ORDER_EVENT))
    row["event"], row["order"], row["price"], row["qty"] = event, 1, price, abs(signed)
    row["instrument"], row["kind"], row["side"] = instrument, kind, 1 if signed > 0 else -1
    return row


def half_even(value: Fraction) -> int:
    return round(value)             # Python rounds a Fraction half to even


def balanced(ledger):
    """L1 and L2, from the exact numbers of every instrument."""
    rows = [ledger.exact(i) for i in range(len(ledger))]
    totals = ledger.totals()
    assert totals["realised"] == sum(r["realised"] for r in rows)
    assert totals["unrealised"] == sum(r["unrealised"] for r in rows)
    assert totals["cash"] == totals["realised"] - sum(r["cost"] for r in rows)


quantities = st.one_of(st.integers(1, 30).map(lambda n: n * NANO), st.integers(1, 10**13))
prices = st.one_of(st.integers(1, 400).map(lambda n: n * NANO // 4), st.integers(1, 10**13))
steps = st.lists(st.one_of(
    st.tuples(st.just("fill"), st.integers(0, 2), st.tuples(quantities, st.sampled_from((1, -1))),
              prices),
    st.tuples(st.just("flat"), st.integers(0, 2), st.none(), prices),
    st.tuples(st.just("mark"), st.integers(0, 2), st.none(), prices)), max_size=80)


def run(script):
    with localcontext() as context:
        context.prec = PRECISION
        compare(script)


def compare(script):
    ledger, naive, reductions = Ledger(3), NaiveLedger(), [0, 0, 0]
    for what, i, amount, price in script:
        held = ledger.exact(i)["qty"]
        if what == "mark":
            before = ledger.exact(i)["unrealised"]
            assert ledger.mark(i, price) == (ledger.exact(i)["unrealised"] != before)
            naive.marks[i] = Decimal(price) / NANO
            assert ledger.exact(i)["unrealised"] == price * held - ledger.exact(i)["cost"]
        else:
            signed = -held if what == "flat" else amount[0] * amount[1]
            if signed == 0:
                continue
            reductions[i] += held * signed < 0
            ledger.order_event(fill(i, signed, price))
            naive.fill(i, Decimal(signed) / NANO, Decimal(price) / NANO)
        balanced(ledger)
        exact, view = ledger.exact(i), ledger.view(i)
        qty = int(naive.qty.get(i, 0) * NANO)
        assert exact["qty"] == view["qty"] == qty
        # Ours: the one division, per reduction.  The twin's: the last digits of its average.
        slack = Decimal(reductions[i]) / ATTO + Decimal("1e-70")
        assert abs(Decimal(exact["realised"]) / ATTO - naive.realised.get(i, 0)) <= slack
        assert abs(Decimal(exact["unrealised"]) / ATTO - naive.unrealised(i)) <= slack
        if qty == 0:
            assert exact["cost"] == exact["unrealised"] == view["average"] == 0
        else:
            assert (exact["cost"] > 0) == (qty > 0) or exact["cost"] == 0
            assert view["average"] == half_even(Fraction(abs(exact["cost"]), abs(qty)))
        for name in ("realised", "unrealised"):
            assert view[name] == half_even(Fraction(exact[name], NANO))
        totals = ledger.totals()
        assert view["day_pnl"] == half_even(
            Fraction(totals["realised"] + totals["unrealised"], NANO))
        # Exactly, whatever the split: P&L is cash plus what is held at the marks.
        assert totals["cash"] == int(naive.cash * ATTO)
        assert totals["realised"] + totals["unrealised"] == int((naive.cash + naive.worth) * ATTO)


@given(steps)
@settings(max_examples=150, deadline=None)
def test_agrees_with_decimal_and_conserves_cash(script):
    run(script)


@pytest.mark.slow
@given(st.lists(steps, min_size=4, max_size=12).map(lambda parts: list(chain(*parts))))
@settings(max_examples=400, deadline=None)
def test_agrees_with_decimal_over_long_runs(script):
    run(script)


def test_average_cost_by_hand():
    ledger = Ledger(1)
    ledger.order_event(fill(0, 100 * NANO, 10 * NANO))
    ledger.order_event(fill(0, 100 * NANO, 11 * NANO))
    assert ledger.view(0)["average"] == 10_500_000_000
    ledger.order_event(fill(0, -50 * NANO, 12 * NANO))          # +75
    assert ledger.view(0)["realised"] == 75 * NANO
    assert ledger.view(0)["average"] == 10_500_000_000
    ledger.order_event(fill(0, -200 * NANO, 10 * NANO))         # closes 150 at -75, opens -50
    row = ledger.view(0)
    assert (row["qty"], row["average"], row["realised"]) == (-50 * NANO, 10 * NANO, 0)
    assert ledger.mark(0, 9 * NANO) is True
    assert ledger.mark(0, 9 * NANO) is False
    assert ledger.view(0)["unrealised"] == ledger.view(0)["day_pnl"] == 50 * NANO


def test_the_earlier_tracker_averaged_down_a_short_by_buying():
    # It added a covering buy to the short's quantity and average; a cover must realise.
    ledger = Ledger(1)
    ledger.order_event(fill(0, -10 * NANO, 20 * NANO))
    ledger.order_event(fill(0, 4 * NANO, 15 * NANO))
    row = ledger.view(0)
    assert (row["qty"], row["average"], row["realised"]) == (-6 * NANO, 20 * NANO, 20 * NANO)


def test_an_indivisible_average_loses_nothing():
    ledger = Ledger(1)
    ledger.order_event(fill(0, 1, 1))
    ledger.order_event(fill(0, 2, 2))                           # cost 5 for 3: no finite average
    for _ in range(3):
        ledger.order_event(fill(0, -1, 2))
        balanced(ledger)
    assert ledger.exact(0) == {"qty": 0, "cost": 0, "realised": 1, "unrealised": 0}


def test_half_way_rounds_to_even_in_the_view_only():
    ledger = Ledger(1)
    for price, even in ((1, 2), (2, 2)):                        # averages 1.5 and 2.5
        ledger = Ledger(1)
        ledger.order_event(fill(0, 1, price))
        ledger.order_event(fill(0, 1, price + 1))
        assert ledger.exact(0)["cost"] == 2 * price + 1
        assert ledger.view(0)["average"] == even


def test_only_fills_of_known_instruments_move_it():
    ledger = Ledger(1)
    for _, kind, _ in E.members:
        ledger.order_event(fill(0, NANO, NANO, kind=kind))
    assert ledger.exact(0)["qty"] == 2 * NANO                   # PARTIAL_FILL and FILL
    ledger.order_event(fill(1, NANO, NANO))
    ledger.order_event(fill(0, NANO, 0))
    assert ledger.counters() == {"fills": 2, "duplicates": 0, "unknown": 1, "broken": 1}
    assert not ledger.mark(1, NANO) and not ledger.mark(0, 0) and not ledger.mark(0, -5)


def test_an_event_counts_once():
    ledger = Ledger(1)
    first, second = (schema.event_id(schema.STREAM.GATEWAY, n) for n in (1, 2))
    for event in (first, second, second, first):
        ledger.order_event(fill(0, NANO, NANO, event))
    assert ledger.exact(0)["qty"] == 2 * NANO
    assert ledger.counters()["duplicates"] == 2


@given(st.lists(st.tuples(st.sampled_from((1, -1)), st.sampled_from((1, 10**9, 2**62, MAX)),
                          st.sampled_from((1, 10**9, 2**62, MAX)), st.booleans()), max_size=30))
def test_what_does_not_fit_is_refused_whole(script):
    ledger = Ledger(2)
    for side, qty, price, mark in script:
        before, counters = ledger.exact(0), ledger.counters()
        if mark:
            ledger.mark(0, price)
        else:
            ledger.order_event(fill(0, side * qty, price))
        if ledger.counters()["broken"] > counters["broken"]:
            assert ledger.exact(0) == before
        elif not mark:
            assert ledger.exact(0)["qty"] == before["qty"] + side * qty
        balanced(ledger)
        assert abs(ledger.exact(0)["cost"]) <= MAX * NANO


def test_refuses_at_one_beyond_nanocash():
    fits = Ledger(1)
    fits.order_event(fill(0, NANO, MAX))
    assert fits.counters()["broken"] == 0 and fits.view(0)["average"] == MAX
    beyond = Ledger(1)
    beyond.order_event(fill(0, NANO + 1, MAX))
    assert beyond.counters()["broken"] == 1 and beyond.exact(0)["qty"] == 0


def test_seed_opens_at_the_average_and_only_before_trading():
    ledger = Ledger(2)
    ledger.seed(0, -3 * NANO, 7 * NANO)
    balanced(ledger)
    assert ledger.view(0)["unrealised"] == 0
    ledger.mark(0, 8 * NANO)
    assert ledger.view(1)["day_pnl"] == -3 * NANO
    with pytest.raises(ValueError, match="fresh instrument"):
        ledger.seed(0, NANO, NANO)
    with pytest.raises(IndexError, match="below 2, was 2"):
        ledger.seed(2, NANO, NANO)
    with pytest.raises(OverflowError, match="does not fit"):
        ledger.seed(1, MAX, MAX)


def test_count_is_checked():
    for count in (0, -1, 65537):
        with pytest.raises(ValueError, match=f"was {count}"):
            Ledger(count)
    with pytest.raises(ValueError, match="record is 64 bytes, was 3"):
        Ledger(1).order_event(b"abc")
