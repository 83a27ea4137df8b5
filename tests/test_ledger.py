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
from hftpipe._order import Orders
from tests.models.ledger import PRECISION, NaiveLedger

E = schema.ORDER_EVENT_KIND
NANO = 10**9
ATTO = 10**18
MAX = 2**63 - 1


def fill(instrument, signed, price, event=0, kind=E.PARTIAL_FILL, first=False):
    row = np.zeros((), schema.dtype(schema.ORDER_EVENT))
    row["cum_qty"] = abs(signed) if first else 0
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
    assert totals["fees"] == sum(r["fees"] for r in rows)
    assert totals["cash"] == totals["realised"] - sum(r["cost"] for r in rows) - totals["fees"]


quantities = st.one_of(st.integers(1, 30).map(lambda n: n * NANO), st.integers(1, 10**13))
prices = st.one_of(st.integers(1, 400).map(lambda n: n * NANO // 4), st.integers(1, 10**13))
steps = st.lists(st.one_of(
    st.tuples(st.just("fill"), st.integers(0, 2), st.tuples(quantities, st.sampled_from((1, -1))),
              prices),
    st.tuples(st.just("flat"), st.integers(0, 2), st.none(), prices),
    st.tuples(st.just("mark"), st.integers(0, 2), st.none(), prices),
    st.tuples(st.just("roll"), st.integers(0, 2), st.none(), st.just(1))), max_size=80)
cash = st.one_of(st.just(0), st.integers(0, 10**10))
schedules = st.one_of(st.just({}), st.fixed_dictionaries({
    "per_order": cash, "per_share": cash, "rate": st.integers(0, NANO),
    "sell_per_share": cash, "sell_rate": st.integers(0, NANO)}))


def run(script, equity=0, fees=None):
    with localcontext() as context:
        context.prec = PRECISION
        compare(script, equity, fees or {})


def compare(script, opening, fees):
    ledger = Ledger(3, opening, fees)
    naive = NaiveLedger(Decimal(opening) / NANO, {k: Decimal(v) / NANO for k, v in fees.items()})
    reductions, day = [0, 0, 0], 0
    for n, (what, i, amount, price) in enumerate(script):
        held = ledger.exact(i)["qty"]
        if what == "mark":
            before = ledger.exact(i)["unrealised"]
            assert ledger.mark(i, price) == (ledger.exact(i)["unrealised"] != before)
            naive.mark(i, Decimal(price) / NANO)
            assert ledger.exact(i)["unrealised"] == price * held - ledger.exact(i)["cost"]
        elif what == "roll":
            day += 1
            ledger.roll(day)
            naive.roll()
            assert (ledger.view(i)["day_pnl"], ledger.view(i)["day_realised"],
                    ledger.view(i)["day_fees"]) == (0, 0, 0)
        else:
            signed = -held if what == "flat" else amount[0] * amount[1]
            if signed == 0:
                continue
            reductions[i] += held * signed < 0
            assert ledger.order_event(fill(i, signed, price, first=n % 2 == 0))
            naive.fill(i, Decimal(signed) / NANO, Decimal(price) / NANO, n % 2 == 0)
        balanced(ledger)
        exact, view, totals = ledger.exact(i), ledger.view(i), ledger.totals()
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
        # Exactly, whatever the split: equity is cash plus what is held at the marks.
        assert totals["cash"] == int(naive.cash * ATTO)
        assert totals["equity"] == int(naive.equity * ATTO)
        assert totals["peak"] == int(max(naive.equities) * ATTO)
        assert totals["deepest"] == int(naive.deepest * ATTO)
        assert view["fees"] == int(naive.charged(i) * NANO)
        assert view["mark"] == int(naive.marks.get(i, 0) * NANO)
        assert view["day"] == day
        equity, realised, charged = naive.then
        assert view["day_pnl"] == half_even(Fraction((naive.equity - equity) * NANO))
        assert view["day_fees"] == int((naive.charged() - charged) * NANO)
        whole = sum(naive.realised.values(), Decimal(0)) - realised
        assert abs(view["day_realised"] - whole * NANO) <= Decimal(
            sum(reductions)) / NANO + Decimal("0.5") + Decimal("1e-50")
        for name, value in (("cash", naive.opening + naive.cash), ("equity", naive.equity),
                            ("peak", max(naive.equities))):
            assert view[name] == half_even(Fraction(value * NANO))
        fall, peak = int(view["peak"]) - int(view["equity"]), int(view["peak"])
        assert view["drawdown_bps"] == (
            0 if fall <= 0 else 65535 if peak <= 0 else min(-(-fall * 10_000 // peak), 65535))


@given(steps, st.integers(0, 10**15), schedules)
@settings(max_examples=150, deadline=None)
def test_agrees_with_decimal_and_conserves_cash(script, equity, fees):
    run(script, equity, fees)


@pytest.mark.slow
@given(st.lists(steps, min_size=4, max_size=12).map(lambda parts: list(chain(*parts))),
       st.integers(0, 10**15), schedules)
@settings(max_examples=400, deadline=None)
def test_agrees_with_decimal_over_long_runs(script, equity, fees):
    run(script, equity, fees)


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
    assert ledger.exact(0) == {"qty": 0, "cost": 0, "realised": 1, "unrealised": 0, "fees": 0,
                               "mark": 1, "fills": 5}


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


def test_fees_by_hand():
    # 0.35 cents a share and 2.78 bp of sales, a dollar an order.
    ledger = Ledger(1, 1000 * NANO, {"per_order": NANO, "per_share": 3_500_000,
                                     "sell_rate": 278_000})
    assert ledger.order_event(fill(0, 10 * NANO, 20 * NANO, first=True))
    assert ledger.view(0)["fees"] == NANO + 35_000_000
    assert ledger.order_event(fill(0, -4 * NANO, 20_333_333_333))
    # 0.014 and 81.333333332 * 0.000278 = 0.022610666666296, up to 0.022610667
    assert ledger.view(0)["fees"] == NANO + 35_000_000 + 14_000_000 + 22_610_667
    row = ledger.view(0)
    assert row["realised"] == row["day_realised"] == 1_333_333_332
    assert row["cash"] == 1000 * NANO - 200 * NANO + 81_333_333_332 - row["fees"]
    assert row["equity"] == row["cash"] + 6 * 20 * NANO     # marked at the first fill
    assert row["day_pnl"] == row["equity"] - 1000 * NANO


def test_a_new_day_begins_at_the_marks():
    ledger = Ledger(2, 1000 * NANO)
    ledger.roll(20_000)
    ledger.order_event(fill(0, 10 * NANO, 20 * NANO))
    ledger.mark(0, 25 * NANO)
    assert ledger.view(1)["day_pnl"] == 50 * NANO
    ledger.roll(20_001)
    row = ledger.view(0)
    assert (row["day"], row["day_pnl"], row["unrealised"], row["average"]) == (
        20_001, 0, 50 * NANO, 20 * NANO)
    ledger.mark(0, 24 * NANO)                               # a losing day with a winning position
    ledger.order_event(fill(0, -10 * NANO, 24 * NANO))
    row = ledger.view(0)
    assert (row["day_pnl"], row["day_realised"], row["realised"]) == (
        -10 * NANO, 40 * NANO, 40 * NANO)
    assert (row["peak"], row["equity"], row["drawdown_bps"]) == (
        1050 * NANO, 1040 * NANO, 96)                       # 10 / 1050 = 95.2 bp


def test_a_bad_schedule_is_refused():
    for fees, words in (({"per_order": -1}, "per_order must be 0 to"),
                        ({"rate": NANO + 1}, "rate must be 0 to 1000000000, was 1000000001"),
                        ({"per_trade": 1}, "fees must be of per_order, .*was per_trade")):
        with pytest.raises(ValueError, match=words):
            Ledger(1, 0, fees)
    with pytest.raises(ValueError, match="equity must not be negative, was -1"):
        Ledger(1, -1)


@given(st.sampled_from((0, NANO, MAX)), st.sampled_from((0, NANO, MAX)),
       st.sampled_from((0, 1, NANO)), st.lists(st.tuples(
           st.sampled_from((1, -1)), st.sampled_from((1, NANO, 2**40, 2**62)),
           st.sampled_from((1, NANO, 2**40, 2**62)), st.booleans()), max_size=20))
def test_fees_that_do_not_fit_are_refused_whole(per_order, per_share, rate, script):
    ledger = Ledger(1, MAX, {"per_order": per_order, "per_share": per_share, "rate": rate,
                             "sell_per_share": per_share, "sell_rate": rate})
    for side, qty, price, first in script:
        before, broken = ledger.totals(), ledger.counters()["broken"]
        fee = -(-(qty * price * rate * (1 if side > 0 else 2)
                  + qty * per_share * (1 if side > 0 else 2) * NANO) // ATTO)
        moved = ledger.order_event(fill(0, side * qty, price, first=first))
        balanced(ledger)
        if moved:
            assert ledger.totals()["fees"] - before["fees"] == NANO * (
                fee + (per_order if first else 0))
        else:
            assert ledger.totals() == before and ledger.counters()["broken"] == broken + 1
        assert abs(ledger.totals()["cash"]) <= MAX * NANO and ledger.totals()["fees"] <= MAX * NANO


# ---------------------------------------------------------------- whatever order things come in

ORDERS = 3


@st.composite
def stories(draw):
    """Executions of some orders and other words of the venue, shuffled and partly repeated."""
    sides = [draw(st.sampled_from((1, -1))) for _ in range(ORDERS)]
    updates = []
    for n, side in enumerate(sides):
        cum = 0
        for part in draw(st.lists(st.integers(1, 10**10), max_size=4)):
            cum += part
            updates.append((n, side, E.PARTIAL_FILL, part, cum, draw(prices), len(updates) + 1))
        if draw(st.booleans()):
            updates.append((n, side, E.CANCELED, 0, cum, 0, 0))
        if draw(st.booleans()):
            updates.append((n, side, E.ACKED, 0, 0, 0, 0))
    again = draw(st.lists(st.sampled_from(updates), max_size=6)) if updates else []
    return sides, draw(st.permutations(updates + again)), draw(schedules)


@given(stories())
@settings(max_examples=200, deadline=None)
def test_books_balance_whatever_order_the_venue_tells_it_in(story):
    """Venue messages through the order table into the ledger, twice, late or after the cancel."""
    sides, updates, fees = story
    orders, ledger = Orders(8), Ledger(ORDERS, 10**15, fees)
    for n, side in enumerate(sides):
        row = np.zeros((), schema.dtype(schema.ORDER))
        row["order"], row["qty"], row["side"] = n + 1, 4 * 10**10, side
        row["instrument"], row["price"], row["action"] = n % 2, NANO, 1
        assert orders.new(row)
        orders.step(n + 1, E.SENT)
    seen, event, charged = set(), 0, 0
    for n, side, kind, qty, cum, price, execution in updates:
        row = np.zeros((), schema.dtype(schema.UPDATE))
        row["order"], row["kind"], row["qty"], row["cum_qty"] = n + 1, kind, qty, cum
        row["price"], row["execution"], row["side"] = price, execution, side
        steps = orders.apply(row)
        if not len(steps):
            continue
        event, step = event + 1, steps[0].copy()
        step["event"] = schema.event_id(schema.STREAM.GATEWAY, event)
        for _ in range(1 + event % 2):                      # the link gives some twice
            ledger.order_event(step)
        if execution:
            first = n not in {m for m, _ in seen}
            seen.add((n, execution))
            charged += fees.get("per_order", 0) if first else 0
    parts = {u[6]: u for u in updates if u[6]}
    assert len(seen) == len(parts)                          # each execution once
    qty, paid = [0, 0, 0], 0
    for n, side, _, part, _, price, _ in parts.values():
        qty[n % 2] += side * part
        paid += side * part * price
        charged += -(-(part * price * (fees.get("rate", 0) + (
            fees.get("sell_rate", 0) if side < 0 else 0)) + NANO * part * (
            fees.get("per_share", 0) + (fees.get("sell_per_share", 0) if side < 0 else 0)))
            // ATTO)
    balanced(ledger)
    for i in range(ORDERS):
        assert ledger.exact(i)["qty"] == qty[i]
        ledger.mark(i, 7 * NANO)
    totals = ledger.totals()
    assert totals["cash"] == -paid - charged * NANO
    assert totals["equity"] == 10**24 + totals["cash"] + sum(qty) * 7 * NANO
    assert ledger.counters()["broken"] == 0


def test_count_is_checked():
    for count in (0, -1, 65537):
        with pytest.raises(ValueError, match=f"was {count}"):
            Ledger(count)
    with pytest.raises(ValueError, match="record is 64 bytes, was 3"):
        Ledger(1).order_event(b"abc")
