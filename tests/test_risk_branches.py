"""Corners of the gate that no usual order comes to; ``make branches`` says which there are."""
import itertools
from collections import defaultdict
from decimal import Decimal

import numpy as np
import pytest

from hftpipe import schema
from hftpipe._gate import Risk
from tests.test_risk import NANO, NOW, WIDE, Desk, book, identity, instruments, nano, row

E, KIND = schema.ORDER_EVENT_KIND, schema.FIGURE_KIND
MOST = 2**63 - 1
TOP = str(Decimal(MOST) / NANO)
#: Limits on sizes that no number exceeds.
HUGE = {k: TOP for k in ("max_order_shares", "max_position_shares", "max_order_notional",
                         "max_position_notional", "max_total_notional")}
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def tags(keys):
    """What ``hp_index_tag`` makes of them."""
    with np.errstate(over="ignore"):
        return (keys * GOLDEN >> np.uint64(32)).astype(np.uint32)


def scattered(below):
    """A million numbers; neighbours never share a tag, these do now and then."""
    return np.unique(np.random.default_rng(7).integers(1, below, 1_000_000, dtype=np.uint64))


def alike(keys):
    """Two places of *keys* with one tag."""
    found = tags(keys)
    order = np.argsort(found, kind="stable")
    same = np.flatnonzero(found[order][1:] == found[order][:-1])
    assert len(same), "as good as certain among so many"
    return sorted(int(order[same[0] + k]) for k in (0, 1))


def desk_of(count=1, tick=1, **limits):
    """A desk whose instruments are as fine as the numbers are."""
    desk = Desk(count=count, marked=False, **limits)
    desk.risk = Risk({**WIDE, **limits}, instruments(count, tick=tick, lot=1, min_qty=1),
                     capacity=1 << 12)
    return desk


def figure(desk, kind, value, instrument=0, other=0, until=NOW + 10**12, basis=0):
    desk.risk.figure(row(schema.FIGURE, kind=kind, value=value, instrument=instrument, other=other,
                         ts_computed=NOW, until=until, basis=basis), NOW)


def test_orders_whose_identities_have_one_tag_are_told_apart():
    seqs = scattered(2**40)
    a, b = (int(seqs[k]) for k in alike(seqs + np.uint64(identity(0))))
    desk = Desk()
    assert desk.check(seq=a, price="100") == "NONE"
    assert desk.check(seq=b, price="100", qty="2") == "NONE"
    for seq, left in ((b, "1"), (a, "0")):
        desk.event(seq, E.CANCELED)
        assert desk.risk.exposure(0)["open_buy"] == nano(left)


@pytest.mark.parametrize("field", ["price", "qty"])
def test_different_orders_of_one_tag_are_no_duplicates(field):
    many = scattered(10**11)
    with np.errstate(over="ignore"):
        factor = np.uint64(0xC2B2AE3D27D4EB4F)
        keys = many * factor ^ np.uint64(NANO) if field == "price" else \
            np.uint64(NANO) * factor ^ many
    desk = desk_of(duplicate_window_ms=1000, price_collar_bps=1000)
    fixed = {"price": "1", "qty": "1"}
    a, b = (int(many[k]) for k in alike(keys))
    for value, wanted in ((a, "NONE"), (b, "NONE"), (b, "DUPLICATE_ORDER"), (a, "DUPLICATE_ORDER")):
        order = {**fixed, field: str(Decimal(value) / NANO)}
        desk.risk.mark(book(bid=order["price"], ask=order["price"]))
        assert desk.check(**order) == wanted


def test_more_approvals_than_are_remembered():
    """The oldest is forgotten; its like is no duplicate of it any more."""
    desk = desk_of(duplicate_window_ms=60000, max_orders_per_minute=2000)
    desk.risk.mark(book())
    for k in range(2048):
        assert desk.check(qty=str(k + 1), price="100", now=NOW + k * 30_000_000) == "NONE"
        desk.risk.mark(book(ts=NOW + k * 30_000_000))
        desk.event(k + 1, E.CANCELED)
    late = NOW + 2048 * 30_000_000
    assert desk.check(qty="2048", price="100", now=late) == "DUPLICATE_ORDER"
    assert desk.check(qty="5", price="100", now=late) == "NONE"
    assert desk.check(qty="5", price="100", now=late) == "DUPLICATE_ORDER"


def test_figures_are_missed_in_the_order_of_their_kinds():
    desk = desk_of(max_var_95=1000, max_volatility_bps=100, max_weekly_loss=10**7)
    desk.risk.mark(book())
    for kind in sorted((KIND.VAR_95, KIND.UNIT_VAR_95, KIND.VOLATILITY, KIND.WEEK_PNL)):
        assert desk.check() == "NO_FIGURE" and desk.verdict["detail"] == kind
        figure(desk, kind, 1)
    assert desk.check() == "NONE"


@pytest.mark.parametrize("count", [130, 600, 2049])
def test_correlation_among_many_instruments(count):
    """A pair is found in any word of the instruments held; beyond 2,048 the check must be off."""
    if count > 2048:
        desk = desk_of(count)
        desk.risk.mark(book(count - 1))
        assert desk.check(instrument=count - 1) == "NONE"
        return
    desk = desk_of(count, max_correlation="0.5")
    held, asked = count - 1, count - 2
    for i in (held, asked, 0):
        desk.risk.mark(book(i))
    desk.hold("1", held)
    figure(desk, KIND.CORRELATION, nano("0.1"), 0, held)
    assert desk.check(instrument=0) == "NONE"
    desk.event(1, E.CANCELED)
    assert desk.check(instrument=asked) == "NO_FIGURE"
    assert desk.verdict["detail"] == KIND.CORRELATION | held << 16
    figure(desk, KIND.CORRELATION, nano("0.6"), asked, held)
    assert desk.check(instrument=asked) == "CORRELATION" and desk.verdict["detail"] == held


def test_position_and_what_is_open_beyond_the_numbers():
    desk = desk_of(**HUGE)
    desk.risk.mark(book(bid="0.00000001", ask="0.00000001"))
    assert desk.check(qty="1", price="0.00000001") == "NONE"
    desk.risk.order_event(row(schema.ORDER_EVENT, order=identity(9), kind=E.FILL, qty=MOST, side=1,
                              price=10, event=schema.event_id(schema.STREAM.GATEWAY, 1)))
    assert desk.risk.exposure(0)["qty"] == MOST
    assert desk.check(qty="1", price="0.00000001") == "OVERFLOW", "position and what is open"


def test_a_position_worth_more_than_the_numbers_hold():
    desk = desk_of(**HUGE)
    desk.risk.mark(book(bid="100", ask="100"))
    desk.hold("1000000000")
    assert desk.check(qty="1", price="100") == "OVERFLOW"
    assert desk.verdict["limit"] == MOST


@pytest.mark.parametrize("side", [1, -1])
def test_positions_saturate(side):
    desk = desk_of(**HUGE, allow_short=True)
    desk.risk.mark(book(bid="0.000001", ask="0.000001"))
    far = MOST - nano("1")
    desk.risk.seed(0, side * far, 1)
    fills = itertools.count(1)

    def orphan(qty):
        desk.risk.order_event(row(
            schema.ORDER_EVENT, order=identity(900), kind=E.FILL, qty=qty, side=side, price=1000,
            event=schema.event_id(schema.STREAM.GATEWAY, next(fills))))
        return desk.risk.exposure(0)["qty"]

    assert orphan(nano("5")) == side * MOST
    assert orphan(nano("5")) == side * MOST


@pytest.mark.parametrize("side", [1, -1])
def test_a_fill_of_our_own_saturates_too(side):
    desk = desk_of(**HUGE, allow_short=True)
    desk.risk.mark(book(bid="0.000001", ask="0.000001"))
    assert desk.check(side, qty="5", price="0.000001") == "NONE"
    desk.risk.order_event(row(
        schema.ORDER_EVENT, order=identity(900), kind=E.FILL, qty=MOST - 1, side=side, price=1000,
        event=schema.event_id(schema.STREAM.GATEWAY, 1)))
    desk.event(1, E.FILL, cum="5", event=2)
    assert desk.risk.exposure(0)["qty"] == side * MOST
    assert desk.risk.exposure(0)["open_buy"] == desk.risk.exposure(0)["open_sell"] == 0


def test_an_execution_beyond_the_order_gives_back_no_more_than_was_reserved():
    desk = Desk()
    assert desk.check(qty="3") == desk.check(qty="4") == "NONE"
    desk.event(1, E.PARTIAL_FILL, cum="5")
    assert desk.risk.exposure(0)["qty"] == nano("5")
    assert desk.risk.exposure(0)["open_buy"] == nano("4")


def test_a_last_trade_below_nothing_is_none():
    desk = Desk(last_collar_bps=100, marked=False)
    desk.risk.mark(book(last="-1"))
    assert desk.check() == "LAST_COLLAR"
    desk.risk.mark(book(last="100"))
    assert desk.check() == "NONE"


def test_events_without_an_identity_or_an_order():
    desk = Desk()
    assert desk.check(qty="2") == "NONE"
    desk.risk.order_event(row(schema.ORDER_EVENT, order=identity(1), kind=E.PARTIAL_FILL,
                              cum_qty=nano("1"), event=0))
    assert desk.risk.exposure(0)["qty"] == nano("1")
    desk.event(0, E.CANCELED)
    desk.risk.order_event(row(schema.ORDER_EVENT, order=0, kind=E.FILL, qty=nano("3"), side=1,
                              price=nano("100"), event=0))
    assert desk.risk.exposure(0)["qty"] == nano("4"), "an execution of nobody moves the position"
    assert desk.risk.counters()["orphans"] == 1


@pytest.mark.parametrize("wrong", [{"qty": 0}, {"qty": -5}, {"side": 0}, {"side": 2}, {"side": -2},
                                   {"instrument": 3}])
def test_an_execution_of_nobody_that_makes_no_sense_is_counted(wrong):
    desk = Desk()
    desk.event(900, E.FILL, **{"qty": 5, "side": 1, "price": 7, **wrong})
    assert desk.risk.counters()["unknown"] == 1 and desk.risk.counters()["orphans"] == 1
    assert all(desk.risk.exposure(i)["qty"] == 0 for i in range(3))


@pytest.mark.parametrize("price, reference", [(7, 7), (-7, 0), (0, 0)])
def test_an_execution_of_nobody_prices_what_had_no_price(price, reference):
    desk = Desk(marked=False)
    desk.event(900, E.FILL, qty=5, side=-1, price=price)
    assert desk.risk.exposure(0)["qty"] == -5
    assert desk.risk.exposure(0)["reference"] == reference


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("basis", [0, MOST])
def test_more_fills_than_the_value_at_risk_can_be_told_of(same, basis):
    """What is older than the oldest remembered cannot be judged by a figure that misses it."""
    desk = desk_of(2, max_var_95=10**6)
    for i in range(2):
        desk.risk.mark(book(i))
        figure(desk, KIND.UNIT_VAR_95, nano("0.01"), i)
    figure(desk, KIND.VAR_95, nano("1"))
    assert desk.check() == "NONE"
    for k in range(4097):
        desk.risk.order_event(row(
            schema.ORDER_EVENT, order=identity(9000 + k), kind=E.FILL, qty=nano("1"),
            side=1 - 2 * (k % 2), price=nano("100"), instrument=0 if same or k < 4096 else 1,
            event=schema.event_id(schema.STREAM.GATEWAY, 1 + k) if not basis else 0))
    assert desk.check() in ("NO_FIGURE", "OLD_FIGURE") and desk.verdict["detail"] == KIND.VAR_95
    oldest = schema.event_id(schema.STREAM.GATEWAY, 1)
    figure(desk, KIND.VAR_95, nano("1"), basis=oldest - 1)
    found = desk.check()
    figure(desk, KIND.VAR_95, nano("1"), basis=schema.event_id(schema.STREAM.GATEWAY, 4097))
    assert (found, desk.check()) == ("NONE" if basis else found, "NONE")
    assert found != "NONE" or basis


def test_tags_here_are_those_of_the_index():
    groups = defaultdict(list)
    for key in range(1, 200_000):
        groups[key * int(GOLDEN) % 2**64 >> 32].append(key)
    twice = [g for g in groups.values() if len(g) > 1][:3]
    for a, b in (g[:2] for g in twice):
        assert tags(np.array([a, b], dtype=np.uint64))[0] == tags(
            np.array([a, b], dtype=np.uint64))[1]
