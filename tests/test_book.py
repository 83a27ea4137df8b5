"""The book equals a naive Python book after every record, whatever the records are."""
import struct
from fractions import Fraction

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._book import Book, Walk

from .models import book as naive

K, F, B = schema.MARKET_KIND, schema.MARKET_FLAG, schema.BOOK_FLAG
MARKET = schema.dtype(schema.MARKET)
TICK = 10_000_000
BID, ASK = 1, -1
LAST = F.LAST


def record(kind, side=0, price=0, qty=0, ref=0, flags=LAST, instrument=0):
    return {"kind": kind, "side": side, "price": price, "qty": qty, "ref": ref, "flags": flags,
            "instrument": instrument}


def pack(m):
    return struct.pack("<QQqqqqQHBbBBH", 0, 0, 0, 0, m["price"], m["qty"], m["ref"],
                       m["instrument"], m["kind"], m["side"], m["flags"], 0, 0)


def assert_same(book, twin):
    assert book.view() == twin.view()
    assert book.counters == twin.counters
    for side in (BID, ASK):
        assert book.levels(side).tolist() == twin.side(side)
    assert len(book) == sum(map(len, twin.levels.values()))
    assert book.orders == len(twin.orders)
    for ref in twin.orders:
        assert book.order(ref) == twin.order(ref)


class Pair:
    """The book and its twin, fed the same records."""

    def __init__(self, tick=TICK, **sizes):
        self.book = Book(tick, **sizes)
        self.twin = naive.Book(tick, **{k: v for k, v in sizes.items() if k == "orders"})

    def __call__(self, *args, **fields):
        m = args[0] if isinstance(args[0], dict) else record(*args, **fields)
        assert self.book.apply(pack(m)) is self.twin.apply(m)
        assert_same(self.book, self.twin)
        return self.book


# -- random sequences

near = st.integers(3200, 3330).map(lambda t: t * TICK)
far = st.one_of(st.integers(1, 900_000_000_000).map(lambda t: t * TICK),
                st.sampled_from([TICK, 64 * TICK, 4096 * TICK, (2**63 - 1) // TICK * TICK]))
bad = st.one_of(st.integers(-5, 5), st.integers(1, 2**62))
price = st.one_of(near, near, near, far, bad)
quantity = st.one_of(st.integers(0, 5), st.integers(1, 10**12), st.integers(-3, -1),
                     st.integers(2**61, 2**63 - 1))
records = st.builds(
    record, kind=st.one_of(st.sampled_from([v for _, v, _ in K.members]), st.integers(0, 255)),
    side=st.sampled_from([1, 1, 1, -1, -1, -1, 0, 5]), price=price, qty=quantity,
    ref=st.integers(0, 12), flags=st.sampled_from([0, LAST, LAST, LAST | F.UNPRINTABLE, 255]))
orders = st.builds(
    record, kind=st.sampled_from([K.ADD, K.ADD, K.ADD, K.EXECUTE, K.CANCEL, K.DELETE,
                                  K.REPLACE_FROM, K.REPLACE_TO]),
    side=st.sampled_from([1, -1]), price=st.one_of(near, near, far), qty=st.integers(1, 9),
    ref=st.integers(1, 40))
prints = st.builds(
    record, kind=st.sampled_from([K.TRADE, K.TRADE, K.BUST, K.BUST, K.FIX, K.STATUS, K.GAP, K.BAND,
                                  K.QUOTE]),
    side=st.sampled_from([1, -1]), price=st.integers(3, 5).map(lambda t: t * TICK),
    qty=st.integers(0, 2), ref=st.integers(0, 3),
    flags=st.sampled_from([0, LAST, LAST, LAST, LAST | F.BACKFILLED]))
levels = st.builds(record, kind=st.just(K.LEVEL), side=st.sampled_from([1, -1]),
                   price=st.one_of(near, far), qty=st.integers(0, 3))


@given(st.lists(records, max_size=60))
def test_any_records(sequence):
    pair = Pair()
    for m in sequence:
        pair(m)


@given(st.lists(orders, max_size=120))
def test_order_feed(sequence):
    pair = Pair()
    for m in sequence:
        pair(m)


@given(st.lists(prints, max_size=150))
def test_trades_taken_back_halts_and_bands(sequence):
    pair = Pair()
    for m in sequence:
        pair(m)


@given(st.lists(levels, max_size=120))
def test_level_feed_with_far_prices(sequence):
    pair = Pair(tick=1, orders=0)
    for m in sequence:
        pair(m)
    for m in sequence:                      # and empty it again, in another order
        pair(m | {"qty": 0})


@given(st.lists(st.one_of(orders, orders, levels), max_size=120), st.integers(1, 6))
def test_order_pool_runs_out(sequence, room):
    pair = Pair(orders=room)
    for m in sequence:
        pair(m)
    assert not pair.twin.counters["exhausted"] or pair.book.counters["exhausted"]


@given(st.lists(st.one_of(orders, levels), min_size=1, max_size=80), st.integers(2, 6))
def test_page_pool_runs_out(sequence, pages):
    """Nothing that was taken is lost, the refused is counted, and the book says it is stale."""
    book, twin = Book(TICK, pages=pages), naive.Book(TICK)
    for m in sequence:
        exhausted = book.counters["exhausted"]
        taken = book.apply(pack(m))
        if book.counters["exhausted"] > exhausted:
            assert not taken and book.flags & B.STALE
        else:
            assert taken is twin.apply(m)
        assert [book.levels(s).tolist() for s in (BID, ASK)] == [twin.side(s) for s in (BID, ASK)]
        assert (book.best_bid(), book.best_ask()) == twin.top()[:2]
        used = {(s, p // TICK // 64) for s in (BID, ASK) for p in twin.levels[s]}
        assert len(used) <= pages
    book.apply(pack(record(K.CLEAR)))       # a snapshot makes it whole again
    assert not book.flags & B.STALE and len(book) == 0 and book.orders == 0


@given(st.lists(st.one_of(orders, levels), max_size=100))
def test_bulk_equals_one_by_one(sequence):
    one, bulk, odd = Book(TICK), Book(TICK), Book(TICK)
    raw = b"".join(map(pack, sequence))
    taken = sum(one.apply(pack(m)) for m in sequence)
    assert bulk.apply_many(numpy.frombuffer(raw, MARKET)) == taken
    shifted = numpy.frombuffer(b"12345678" + raw, "u1")[8:].view(MARKET)
    assert odd.apply_many(shifted) == taken
    for other in (bulk, odd):
        assert other.view() == one.view() and other.counters == one.counters
        for side in (BID, ASK):
            assert other.levels(side).tolist() == one.levels(side).tolist()


@given(st.lists(levels, max_size=40), st.sampled_from([1, -1]), st.integers(0, 100))
def test_walk_imbalance_depth(sequence, side, qty):
    pair = Pair()
    for m in sequence:
        pair(m)
    book, twin = pair.book, pair.twin
    walk = book.walk(side, qty)
    assert walk == twin.walk(side, qty)
    if walk.filled:
        assert walk.average == round(Fraction(walk.cost, walk.filled))
    bid, ask, _, _ = twin.top()
    assert book.mid2() == (min(bid + ask, 2**63 - 1) if bid and ask else 0)
    assert book.spread() == (ask - bid if bid and ask else 0)
    for n in (0, 1, 3, 1000):
        b, a = (sum(q for _, q, _ in twin.side(s)[:n]) for s in (BID, ASK))
        assert book.depth(n) == (b, a)
        assert book.imbalance(n) == pytest.approx((b - a) / (b + a) if a + b else 0)
        assert book.levels(BID, n).tolist() == twin.side(BID)[:n]


# -- what a book is told

def test_new_book_is_stale_and_empty():
    book = Book(TICK)
    assert book.view() == dict.fromkeys(book.view(), 0) | {"flags": B.STALE | B.EMPTY}
    assert book.walk(BID, 5) == Walk(0, 0, 5, 0) and book.walk(BID, 5).average == 0
    assert book.mid2() == book.spread() == book.imbalance() == book.spread_bps() == 0
    assert book.order(1) is None and book.order(0) is None


def test_quotes_of_both_sides_make_it_fresh():
    apply = Pair()
    assert apply(K.QUOTE, BID, 100 * TICK, 5).flags == B.STALE | B.EMPTY
    assert apply(K.QUOTE, ASK, 101 * TICK, 5).flags == 0
    assert apply(K.GAP).flags == B.STALE
    apply(K.QUOTE, BID, 100 * TICK, 6)
    assert apply(K.QUOTE, ASK, 0, 0).flags == B.EMPTY       # no ask: known to be none


def test_levels_need_a_snapshot():
    apply = Pair()
    assert apply(K.LEVEL, BID, 100 * TICK, 5).flags & B.STALE
    assert apply(K.CLEAR, flags=F.SNAPSHOT).flags & B.STALE
    assert apply(K.LEVEL, BID, 100 * TICK, 5, flags=F.SNAPSHOT).flags & B.STALE
    assert apply(K.TRADE, BID, 100 * TICK, 5).flags & B.STALE      # its LAST is not the snapshot's
    assert not apply(K.LEVEL, ASK, 102 * TICK, 5, flags=F.SNAPSHOT | LAST).flags & B.STALE
    assert apply(K.GAP).flags & B.STALE
    assert apply(K.LEVEL, BID, 100 * TICK, 6).flags & B.STALE
    assert not apply(K.CLEAR).flags & B.STALE               # an empty snapshot


def test_gap_inside_a_snapshot_spoils_it():
    apply = Pair()
    apply(K.CLEAR, flags=0)
    apply(K.GAP, flags=0)
    assert apply(K.LEVEL, BID, 100 * TICK, 5).flags & B.STALE


def test_orders_from_the_start_of_the_day_are_fresh():
    apply = Pair()
    apply(K.STATUS, ref=1)
    apply(K.TRADE, 0, 99 * TICK, 3)
    assert not apply(K.ADD, BID, 100 * TICK, 5, 1).flags & B.STALE
    assert apply(K.GAP).flags & B.STALE
    assert apply(K.ADD, BID, 100 * TICK, 5, 2).flags & B.STALE


def test_orders_from_the_middle_are_stale():
    apply = Pair()
    apply(K.DELETE, ref=7)
    assert apply(K.ADD, BID, 100 * TICK, 5, 1).flags & B.STALE


def test_crossed_and_locked_are_flagged_not_repaired():
    apply = Pair()
    apply(K.ADD, BID, 100 * TICK, 5, 1)
    assert apply(K.ADD, ASK, 100 * TICK, 5, 2).flags == B.LOCKED
    book = apply(K.ADD, ASK, 99 * TICK, 5, 3)
    assert book.flags == B.CROSSED and book.spread() == -TICK and book.spread_bps() < 0
    assert apply(K.DELETE, ref=3).flags == B.LOCKED
    assert apply(K.DELETE, ref=1).flags == B.EMPTY


def test_trades():
    apply = Pair()
    apply(K.ADD, BID, 100 * TICK, 50, 1)
    book = apply(K.EXECUTE, 0, 0, 20, 1)
    assert book.view()["last_price"] == 100 * TICK and book.view()["last_side"] == -1
    assert book.flags & B.TRADE
    apply(K.EXECUTE, 0, 99 * TICK, 10, 1, flags=LAST | F.UNPRINTABLE)
    assert book.view()["volume"] == 20 and not book.flags & B.TRADE and book.depth() == (20, 0)
    apply(K.TRADE, 1, 100 * TICK + 1, 5)            # between two ticks: prints may be anywhere
    assert (book.view()["volume"], book.view()["last_price"]) == (25, 100 * TICK + 1)
    apply(K.TRADE, 1, 100 * TICK, 5, flags=0)
    assert apply(K.CANCEL, 0, 0, 1, 1).flags & B.TRADE      # same message as the trade
    assert not apply(K.CANCEL, 0, 0, 1, 1).flags & B.TRADE


def test_replacement_inherits_its_side_and_loses_its_place():
    apply = Pair()
    apply(K.ADD, ASK, 100 * TICK, 5, 1)
    apply(K.ADD, ASK, 100 * TICK, 6, 2)
    apply(K.REPLACE_FROM, 0, ref=1, flags=0)
    book = apply(K.REPLACE_TO, BID, 100 * TICK, 4, 3)
    assert book.order(3) == (ASK, 100 * TICK, 4, 6) and book.order(1) is None
    apply(K.REPLACE_FROM, 0, ref=99, flags=0)       # unknown: nothing to inherit from
    apply(K.REPLACE_TO, ASK, 100 * TICK, 4, 4)
    apply(K.REPLACE_FROM, 0, ref=3, flags=0)
    apply(K.STATUS, ref=1)
    assert not apply(K.REPLACE_TO, ASK, 100 * TICK, 4, 5).order(5)  # not the next record any more
    assert book.counters["unknown_order"] == 3


def test_halt_and_resume():
    apply = Pair()
    assert apply(K.STATUS, ref=0).flags & B.HALTED
    assert not apply(K.STATUS, ref=1).flags & B.HALTED


def test_a_halt_that_a_gap_left_open_ends_with_a_print_or_a_word():
    apply = Pair()
    apply(K.STATUS, ref=0)
    apply(K.TRADE, 1, 100 * TICK, 5)
    assert apply.book.flags & B.HALTED              # late prints come in a halt
    apply(K.GAP)
    assert apply.book.flags & B.HALTED              # who knows: closed
    apply(K.TRADE, 1, 100 * TICK, 5, flags=LAST | F.BACKFILLED)
    assert apply.book.flags & B.HALTED              # that was before
    apply(K.TRADE, 1, 100 * TICK, 5)
    assert not apply.book.flags & B.HALTED
    apply(K.STATUS, ref=0)
    apply(K.GAP)
    assert not apply(K.STATUS, ref=1).flags & B.HALTED
    apply(K.GAP)
    assert not apply.book.flags & B.HALTED


def test_a_book_at_its_band_is_limited():
    apply = Pair()
    apply(K.QUOTE, BID, 100 * TICK, 5)
    apply(K.BAND, 1, 105 * TICK, flags=0)
    assert not apply(K.BAND, -1, 95 * TICK).flags & B.LIMITED   # one side is not known yet
    assert not apply(K.QUOTE, ASK, 101 * TICK, 5).flags & B.LIMITED
    assert apply(K.QUOTE, BID, 105 * TICK, 5).flags & B.LIMITED
    assert not apply(K.QUOTE, BID, 105 * TICK - TICK, 5).flags & B.LIMITED
    assert apply(K.QUOTE, ASK, 95 * TICK, 5).flags & B.LIMITED
    assert not apply(K.QUOTE, ASK, 0, 0).flags & B.LIMITED      # nobody sells: empty, not at it
    apply(K.QUOTE, ASK, 94 * TICK, 5)
    assert apply.book.flags & B.LIMITED
    assert not apply(K.BAND, -1, 0).flags & B.LIMITED           # no band any more
    apply(K.BAND, 1, 99 * TICK)
    assert apply.book.flags & B.LIMITED
    apply(K.GAP)
    apply(K.QUOTE, BID, 105 * TICK, 5)
    assert not apply(K.QUOTE, ASK, 106 * TICK, 5).flags & B.LIMITED     # not told since the gap
    apply(K.BAND, 0, 105 * TICK)
    apply(K.BAND, 1, -TICK)
    assert apply.book.counters["invalid"] == 2


def last(book):
    view = book.view()
    return view["last_price"], view["last_qty"], view["last_side"], view["volume"]


def test_a_trade_taken_back_is_no_last_trade_and_no_volume():
    apply = Pair()
    apply(K.TRADE, 1, 100 * TICK, 5, 1)
    apply(K.TRADE, -1, 101 * TICK, 7, 2)
    apply(K.TRADE, 1, 102 * TICK, 9, 3)
    assert last(apply(K.BUST, 0, 101 * TICK, 7, 2)) == (102 * TICK, 9, 1, 14)
    assert last(apply(K.BUST, 0, 102 * TICK, 9, 3)) == (100 * TICK, 5, 1, 5)
    assert not apply.book.flags & B.TRADE
    assert last(apply(K.BUST, 0, 102 * TICK, 9, 3)) == (100 * TICK, 5, 1, 5)    # told twice
    assert last(apply(K.BUST, 0, 100 * TICK, 6, 1)) == (100 * TICK, 5, 1, 5)    # another one's id
    assert last(apply(K.BUST, 0, 100 * TICK, 5, 1)) == (0, 0, 0, 0)
    assert apply.book.counters["unknown_trade"] == 2


def test_a_correction_puts_another_trade_in_the_place_of_the_one_taken_back():
    apply = Pair()
    apply(K.TRADE, 1, 100 * TICK, 5, 1)
    apply(K.TRADE, -1, 101 * TICK, 7, 2)
    apply(K.BUST, 0, 100 * TICK, 5, 1, flags=0)
    assert last(apply(K.FIX, 0, 99 * TICK, 4, 9)) == (101 * TICK, 7, -1, 11)    # not the newest
    apply(K.BUST, 0, 101 * TICK, 7, 2, flags=0)
    assert last(apply(K.FIX, 0, 98 * TICK, 7, 2)) == (98 * TICK, 7, -1, 11)
    apply(K.BUST, 0, 98 * TICK, 7, 2, flags=0)                                  # corrected again
    assert last(apply(K.FIX, 0, 97 * TICK, 1, 2)) == (97 * TICK, 1, -1, 5)
    assert last(apply(K.FIX, 0, 96 * TICK, 1, 3)) == (97 * TICK, 1, -1, 5)      # of nothing
    apply(K.BUST, 0, 97 * TICK, 1, 2)
    apply(K.STATUS, ref=1)
    assert last(apply(K.FIX, 0, 96 * TICK, 1, 2)) == (99 * TICK, 4, 1, 4)       # not the next one
    assert apply.book.counters["unknown_trade"] == 2


def test_a_trade_is_remembered_for_64_more():
    apply = Pair()
    for n in range(65):
        apply(K.TRADE, 1, (100 + n) * TICK, 1, n)
    assert last(apply(K.BUST, 0, 100 * TICK, 1, 0)) == (164 * TICK, 1, 1, 65)
    assert last(apply(K.BUST, 0, 101 * TICK, 1, 1)) == (164 * TICK, 1, 1, 64)
    assert apply.book.counters["unknown_trade"] == 1


def test_what_was_backfilled_is_counted_and_moves_nothing():
    apply = Pair()
    apply(K.QUOTE, BID, 100 * TICK, 5)
    apply(K.QUOTE, ASK, 101 * TICK, 5)
    apply(K.TRADE, 1, 101 * TICK, 2, 7)
    before = apply.book.view()
    late = LAST | F.BACKFILLED
    apply(K.TRADE, 1, 90 * TICK, 3, 5, flags=late)
    assert apply.book.view() == before | {"volume": 5, "flags": before["flags"] & ~B.TRADE}
    apply(K.TRADE, 1, 101 * TICK, 2, 7, flags=late)         # the stream had said it
    for kind in (K.QUOTE, K.LEVEL, K.CLEAR, K.STATUS, K.BAND, K.BUST, K.GAP, K.BAR_OPEN):
        apply(kind, 1, 100 * TICK, 1, flags=late)
    assert apply.book.view() == before | {"volume": 5, "flags": before["flags"] & ~B.TRADE}
    assert apply.book.counters["unknown_trade"] == 1


def test_level_total_below_its_orders():
    apply = Pair()
    apply(K.ADD, BID, 100 * TICK, 50, 1)
    apply(K.ADD, BID, 100 * TICK, 50, 2)
    apply(K.LEVEL, BID, 100 * TICK, 30)
    book = apply(K.DELETE, ref=1)
    assert len(book) == 0 and book.orders == 0 and book.counters["clipped"] == 1


def test_price_between_two_ticks_is_refused_not_rounded():
    apply = Pair(tick=3)
    for off in (1, 2, 4, 2**62, -3, 0):
        if off % 3 or off <= 0:
            assert len(apply(K.LEVEL, BID, off, 5)) == 0
    assert apply.book.counters["off_tick"] == 6 - (2**62 % 3 == 0)


@given(st.integers(1, 2**40), st.integers(1, 2**63 - 1))
def test_only_multiples_of_the_tick(tick, value):
    for price in (value, value // tick * tick):
        book = Book(tick, orders=0, pages=2)
        taken = book.apply(pack(record(K.QUOTE, BID, price, 1)))
        assert taken is (price > 0 and price % tick == 0)
        assert book.best_bid() == (price if taken else 0)


def test_empty_pages_are_used_again():
    """A market that wanders over a million pages fits in a pool of four."""
    book = Book(1, pages=4, orders=0)
    for i in range(1, 3000):
        assert book.apply(pack(record(K.LEVEL, BID, i * 64 * 4099, 1)))
        assert book.apply(pack(record(K.LEVEL, BID, i * 64 * 4099, 0)))
    assert book.counters["exhausted"] == 0 and len(book) == 0


def test_one_instrument_of_many():
    rows = numpy.zeros(2, MARKET)
    rows["kind"], rows["side"], rows["price"], rows["qty"] = K.QUOTE, BID, (TICK, 2 * TICK), 1
    rows["instrument"] = 3, 4
    book = Book(TICK)
    assert book.apply_many(rows, instrument=3) == 1 and book.best_bid() == TICK
    assert book.apply(rows[1]) and book.best_bid() == 2 * TICK


@pytest.mark.parametrize("arguments, words", [
    (dict(tick=0), "tick must be positive"), (dict(tick=-1), "tick must be positive"),
    (dict(tick=1, base_price=-1), "base_price must not be negative"),
    (dict(tick=1, orders=-1), "orders must be between"),
    (dict(tick=1, orders=1 << 26), "orders must be between"),
    (dict(tick=1, pages=1), "pages must be between")])
def test_sizes_are_checked(arguments, words):
    with pytest.raises(ValueError, match=words):
        Book(**arguments)


def test_arguments_are_checked():
    book = Book(TICK)
    for wrong in (b"", bytes(63), bytes(128), bytearray(65), numpy.zeros(2, MARKET)):
        with pytest.raises(ValueError, match="a record is 64 bytes, was"):
            book.apply(wrong)
    with pytest.raises(ValueError, match="must be MARKET records"):
        book.apply_many(numpy.zeros(8, "u8"))
    with pytest.raises(ValueError, match="contiguous"):
        book.apply_many(numpy.zeros(8, MARKET)[::2])
    for side in (0, 2, None):
        with pytest.raises(ValueError, match="side is"):
            book.levels(side)
    with pytest.raises(ValueError, match="count must not"):
        book.levels(BID, -1)
    for qty in (-1, 1 << 63):
        with pytest.raises(ValueError, match="qty must be"):
            book.walk(BID, qty)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_long_random_day(seed):
    """Thousands of orders over two hundred pages: hash deletions, page reuse, long queues."""
    rng = numpy.random.default_rng(seed)
    book, twin = Book(TICK, orders=600, pages=400), naive.Book(TICK, orders=600)
    live: list[int] = []
    for ref in range(1, 4000):
        if live and rng.random() < 0.5:
            m = record(rng.choice([K.EXECUTE, K.CANCEL, K.DELETE]).item(),
                       qty=int(rng.integers(1, 9)), ref=live[rng.integers(len(live))])
        else:
            t = int(rng.normal(10_000, 40) if rng.random() < 0.9 else rng.integers(1, 1 << 39))
            m = record(K.ADD, int(rng.choice([1, -1])), t * TICK, int(rng.integers(1, 9)),
                       ref * 2654435761 % 2**61 + 1)
            live.append(m["ref"])
        assert book.apply(pack(m)) is twin.apply(m)
        if m["kind"] != K.ADD and m["ref"] not in twin.orders:
            live = [r for r in live if r != m["ref"]]
        assert (book.best_bid(), book.best_ask()) == twin.top()[:2]
        if ref % 200 == 0:
            assert_same(book, twin)
    assert_same(book, twin)
