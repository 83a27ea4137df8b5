"""The matching engine trades exactly as a plain list of orders would, and loses no quantity."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe._match import CANCELED, DUPLICATE, FILLED, FULL, INVALID, RESTED, UNKNOWN, Match
from tests.models.match import DAY, FOK, GTC, IOC, LIMIT, MARKET, NaiveMatch

SIDE = st.sampled_from((1, -1))
NEW = st.tuples(
    st.just("submit"), st.integers(1, 40), SIDE, st.integers(1, 9), st.integers(95, 105),
    st.sampled_from((LIMIT, LIMIT, LIMIT, MARKET)),
    st.sampled_from((DAY, DAY, DAY, GTC, IOC, FOK)), st.integers(0, 3))
CANCEL = st.tuples(st.just("cancel"), st.integers(1, 40))
REPLACE = st.tuples(st.just("replace"), st.integers(1, 40), st.integers(95, 105),
                    st.integers(1, 9))


def apply(engine, step):
    if step[0] == "submit":
        _, order, side, qty, price, type_, tif, owner = step
        return engine.submit(order, side, qty, price, type=type_, tif=tif, owner=owner)
    return getattr(engine, step[0])(*step[1:])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(NEW, NEW, CANCEL, REPLACE), max_size=80),
       st.sampled_from((1, 2, 64)), st.sampled_from(((64, 64), (6, 64), (64, 4))))
def test_trades_as_the_naive_twin(steps, room, sizes):
    """Same answers, fills and book; the reported levels alone rebuild the book."""
    ours, naive = Match(*sizes, room=room), NaiveMatch(*sizes)
    asked = filled = gone = 0
    seen = {1: {}, -1: {}}                   # a subscriber's book, from the deltas
    for step in steps:
        status, done, left, fills, levels = apply(ours, step)
        assert (status, done, left, fills) == apply(naive, step)
        assert ours.sound
        for side, price, qty, orders in levels:
            if qty:
                seen[side][price] = (qty, orders)
            else:
                del seen[side][price]
        for side in (1, -1):
            assert ours.levels(side) == naive.levels(side)
            best_first = sorted(seen[side].items(), reverse=side > 0)
            assert [(p, *q) for p, q in best_first] == ours.levels(side)
        # conservation: asked = traded on both sides + cancelled + resting
        if status > 0:
            if step[0] == "submit":
                asked += step[3]
                gone += left if status == CANCELED else 0
            elif step[0] == "cancel":
                gone += left
        filled += sum(f[3] for f in fills)
        if step[0] == "replace" and status > 0:
            asked = 2 * filled + gone + sum(q for s in (1, -1) for _, q, _ in ours.levels(s))
        assert asked == 2 * filled + gone + sum(q for s in (1, -1) for _, q, _ in ours.levels(s))
    assert len(ours) == len(naive.book)


def test_best_price_then_oldest_first():
    m = Match()
    for order, price in ((1, 101), (2, 100), (3, 100)):
        assert m.submit(order, -1, 10, price)[0] == RESTED
    status, filled, left, fills, levels = m.submit(9, 1, 25, 101, tif=IOC, owner=7)
    assert (status, filled, left) == (FILLED, 25, 0)
    assert [(f[0], f[2], f[3]) for f in fills] == [(2, 100, 10), (3, 100, 10), (1, 101, 5)]
    assert levels == [(-1, 100, 0, 0), (-1, 101, 5, 1)]
    assert (m.bid, m.ask, m.left(1), m.left(2)) == (0, 101, 5, 0)


def test_the_rest_of_ioc_and_market_is_cancelled_and_fok_is_all_or_nothing():
    m = Match()
    m.submit(1, -1, 10, 100)
    assert m.submit(2, 1, 11, 100, tif=FOK)[:3] == (CANCELED, 0, 11)
    assert m.left(1) == 10
    assert m.submit(3, 1, 4, 100, tif=FOK)[:3] == (FILLED, 4, 0)
    assert m.submit(4, 1, 8, 100, tif=IOC)[:3] == (CANCELED, 6, 2)
    assert m.submit(5, 1, 8, type=MARKET)[:3] == (CANCELED, 0, 8)
    assert len(m) == 0


def test_making_an_order_smaller_keeps_its_place_and_anything_else_loses_it():
    m = Match()
    m.submit(1, 1, 10, 100)
    m.submit(2, 1, 10, 100)
    assert m.replace(1, 100, 4)[:3] == (RESTED, 0, 4)
    assert [f[0] for f in m.submit(3, -1, 5, 100)[3]] == [1, 2]
    m.submit(4, 1, 3, 100)
    assert m.replace(2, 100, 20)[0] == RESTED
    assert [f[0] for f in m.submit(5, -1, 5, 100)[3]] == [4, 2]


def test_a_replaced_order_may_trade():
    m = Match()
    m.submit(1, -1, 5, 102)
    m.submit(2, 1, 5, 100)
    status, filled, left, fills, levels = m.replace(2, 103, 7)
    assert (status, filled, left) == (RESTED, 5, 2)
    assert fills == [(1, 2, 102, 5, 0, 2, 0, 0, 1)]
    assert levels == [(1, 100, 0, 0), (-1, 102, 0, 0), (1, 103, 2, 1)]


@pytest.mark.parametrize("bad", [
    {"order": 0}, {"side": 0}, {"side": 2}, {"qty": 0}, {"qty": -5}, {"qty": (1 << 60) + 1},
    {"price": 0}, {"price": -1}, {"type": 0}, {"type": 3}, {"tif": 0}, {"tif": 5}])
def test_a_field_out_of_range_is_refused_and_changes_nothing(bad):
    m = Match()
    m.submit(1, -1, 10, 100)
    order = {"order": 2, "side": 1, "qty": 5, "price": 100, "type": LIMIT, "tif": DAY} | bad
    assert m.submit(**order)[0] == INVALID
    assert (len(m), m.levels(-1)) == (1, [(100, 10, 1)])


def test_refusals_leave_the_book_alone():
    m = Match(2, 2)
    m.submit(1, 1, 5, 100)
    assert m.submit(1, 1, 5, 99)[0] == DUPLICATE
    assert m.cancel(7)[0] == m.replace(7, 100, 1)[0] == UNKNOWN
    m.submit(2, 1, 5, 99)
    assert m.submit(3, 1, 5, 100)[0] == FULL                  # no order left
    assert m.submit(3, -1, 4, 100, tif=IOC)[0] == FILLED      # but it may still trade
    assert m.levels(1) == [(100, 1, 1), (99, 5, 1)]
    m = Match(9, 1)
    m.submit(1, 1, 5, 100)
    assert m.submit(2, 1, 5, 99)[0] == FULL                   # no level left
    assert m.submit(2, 1, 5, 100)[0] == RESTED
    assert m.replace(1, 99, 5)[0] == FULL
    assert m.levels(1) == [(100, 10, 2)]


def test_a_level_never_overflows():
    m = Match()
    big = 1 << 60
    for order in range(1, 8):
        assert m.submit(order, 1, big, 100)[0] == RESTED
    assert m.submit(8, 1, big, 100)[0] == FULL
    assert m.submit(8, 1, big - 1, 100)[0] == RESTED
    m.submit(9, 1, big, 99)
    assert m.available(-1) == (1 << 63) - 1                   # saturates


def test_a_long_walk_continues_over_many_steps():
    """More fills than one step may report: nothing is lost between the steps."""
    m = Match(room=1)
    for i in range(500):
        m.submit(i + 1, -1, 3, 100 + i // 10)
    status, filled, left, fills, levels = m.submit(1000, 1, 1400, 200)
    assert (status, filled, left, len(fills)) == (FILLED, 1400, 0, 467)
    assert [f[0] for f in fills] == list(range(1, 468))
    assert levels[-1] == (-1, 146, 10, 4) and m.sound


def test_ids_are_found_after_many_removals():
    """The index closes its holes: a table that is always nearly full keeps every id findable."""
    m = Match(orders=64, levels=64)
    live = []
    for i in range(1, 20_000):
        order = i * 0x9E3779B1 & 0xFFFFFFFFFFFF or 1
        if len(live) == 64:
            assert m.cancel(live.pop((i * 7) % 64))[0] == CANCELED
        assert m.submit(order, 1, 1, 1 + i % 50)[0] == RESTED
        live.append(order)
    assert m.sound and all(m.left(o) == 1 for o in live)


def test_sizes_are_checked():
    for sizes in ((0, 1), (1, 0), (2**30 + 1, 1)):
        with pytest.raises(ValueError, match="must be 1 to"):
            Match(*sizes)
