"""However the venue's messages arrive, each execution counts once and the end is the same."""
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._order import Orders
from tests.models.order import NaiveOrder

E, S, R = schema.ORDER_EVENT_KIND, schema.ORDER_STATE, schema.REASON
FLAG = schema.UPDATE_FLAG
NANO = 10**9


def name(seq):
    return schema.event_id(schema.STREAM.SIGNAL, seq)


def order(seq=1, qty=100 * NANO, **more):
    row = np.zeros((), schema.dtype(schema.ORDER))
    fields = {"order": name(seq), "cause": 77, "ts_recv": 5, "price": 10 * NANO, "qty": qty,
              "instrument": 3, "side": -1, "type": 2, "tif": 1, "action": 1, "strategy": 4, **more}
    for key, value in fields.items():
        row[key] = value
    return row


def update(kind, seq=1, qty=0, cum=0, execution=0, price=9 * NANO, low=0, flags=0, reason=0):
    row = np.zeros((), schema.dtype(schema.UPDATE))
    row["order"], row["kind"], row["qty"], row["cum_qty"] = name(seq), kind, qty, cum
    row["execution"], row["execution_low"] = execution, low
    row["price"] = price if qty else 0
    row["venue_id"], row["venue_id_low"] = 11, 12
    row["flags"], row["reason"] = flags, reason
    return row


def sent(capacity=4):
    orders = Orders(capacity)
    assert orders.new(order())
    assert orders.step(name(1), E.SENT)["state"] == S.SENT
    return orders


def one(orders, u):
    """The event that *u* brings, or None; never two."""
    found = orders.apply(u)
    assert len(found) < 2
    return found[0] if len(found) else None


def test_the_ordinary_life_of_an_order():
    orders = sent()
    event = one(orders, update(E.ACKED))
    assert (event["kind"], event["state"], event["qty"]) == (E.ACKED, S.OPEN, 100 * NANO)
    event = one(orders, update(E.PARTIAL_FILL, qty=40 * NANO, cum=40 * NANO, execution=1))
    assert {k: int(event[k]) for k in event.dtype.names} == {
        "link_seq": 0, "event": 0, "order": name(1), "cause": 77, "price": 9 * NANO,
        "qty": 40 * NANO, "cum_qty": 40 * NANO, "instrument": 3, "kind": E.PARTIAL_FILL,
        "side": -1, "reason": 0, "state": S.PARTIAL, "strategy": 4, "type": 2}
    event = one(orders, update(E.FILL, qty=60 * NANO, cum=100 * NANO, execution=2))
    assert (event["kind"], event["state"], event["cum_qty"]) == (E.FILL, S.FILLED, 100 * NANO)
    assert len(orders) == 0
    found = orders.find(name(1))
    assert (found["venue_id"], found["venue_id_low"]) == (11, 12)


def fills(*parts):
    """Executions of these quantities as the venue would number and sum them."""
    out, cum = [], 0
    for i, qty in enumerate(parts):
        cum += qty * NANO
        out.append(update(E.PARTIAL_FILL, qty=qty * NANO, cum=cum, execution=50, low=i))
    return out


ACK, CANCELED = update(E.ACKED), update(E.CANCELED)
CANCELED_AT_70 = update(E.CANCELED, cum=70 * NANO)      # the venue says what it filled by then
EXPIRED_AT_70 = update(E.EXPIRED, cum=70 * NANO)
FIVE = {
    "complete": [ACK, *fills(40, 30, 30), update(E.FILL, qty=30 * NANO, cum=100 * NANO,
                                                 execution=50, low=2)],
    "cancelled": [ACK, *fills(40, 30), CANCELED, CANCELED],
    "filled and cancelled": [ACK, *fills(40, 30, 30), CANCELED],
    "duplicated": [*fills(40, 30), *fills(40, 30), ACK],
    "expired": [ACK, *fills(10), update(E.EXPIRED), update(E.CANCEL_REJECTED), CANCELED],
    "cancelled before its fills": [ACK, *fills(40, 30), CANCELED_AT_70, CANCELED_AT_70],
    "expired before its fill": [*fills(40, 20, 10), EXPIRED_AT_70, CANCELED_AT_70],
    "without ids": [ACK] + [update(E.PARTIAL_FILL, qty=q * NANO, cum=c * NANO)
                            for q, c in ((40, 40), (30, 70), (30, 100), (30, 70))],
}


@pytest.mark.parametrize("events", FIVE.values(), ids=FIVE)
def test_every_order_of_arrival_ends_the_same(events):
    executions = {(int(u["execution"]), int(u["execution_low"]) or int(u["cum_qty"])): int(u["qty"])
                  for u in events if u["qty"]}
    total = sum(executions.values())
    assert len(events) == 5
    for permutation in itertools.permutations(events):
        orders, published, ended, kinds = sent(), [], False, []
        for event in (e for u in permutation for e in orders.apply(u)):
            kinds.append(int(event["kind"]))
            state = int(event["state"])
            assert not ended or (state >= S.FILLED and kinds[-1] in (E.PARTIAL_FILL, E.FILL))
            ended = state >= S.FILLED
            if kinds[-1] in (E.PARTIAL_FILL, E.FILL):
                published.append(int(event["qty"]))
                assert event["cum_qty"] == sum(published)
                assert (kinds[-1] == E.FILL) == (sum(published) == 100 * NANO)
            elif ended and any(u["cum_qty"] == 70 * NANO and not u["qty"] for u in events):
                assert event["cum_qty"] == 70 * NANO, "its end waits for all that was filled"
        assert not ended or orders.find(name(1))["state"] >= S.FILLED
        assert sorted(published) == sorted(executions.values())
        found = orders.find(name(1))
        assert found["cum_qty"] == total
        last = [k for k in kinds if k in (E.CANCELED, E.EXPIRED)]
        if total == 100 * NANO:
            assert found["state"] == S.FILLED
        elif last:
            assert len(last) == 1 and found["state"] == {
                E.CANCELED: S.CANCELED, E.EXPIRED: S.EXPIRED}[last[0]]
        else:
            assert found["state"] == S.PARTIAL
        assert len(orders) == (found["state"] < S.FILLED)
        assert kinds.count(E.ACKED) <= 1


KINDS = ("sent", "dropped", "cancel_sent", "unknown", "acked", "cancel_rejected", "canceled",
         "replaced", "expired", "rejected")
OWN = {"sent", "dropped", "cancel_sent"}
moves = st.lists(st.one_of(
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 6), st.integers(1, 60)),
    st.tuples(st.sampled_from(("canceled", "replaced", "expired", "rejected", "acked")),
              st.integers(0, 110)),
    st.tuples(st.just("rest"), st.integers(0, 60), st.integers(1, 60))), max_size=40)
# What can be said of an order, each once: with five of them in every order of time.
WORDS = ("unknown", "acked", "cancel_sent", "cancel_rejected", "canceled", "expired", "rejected",
         ("canceled", 60), (1, 40), (2, 60), (3, 100), ("rest", 0, 40), ("rest", 40, 60))


def drive(script):
    orders, naive = Orders(2), NaiveOrder(100 * NANO)
    assert orders.new(order())
    quantities = {}
    for move in script:
        if isinstance(move, tuple) and move[0] == "rest":
            known, qty = move[1] * NANO, move[2] * NANO
            wanted = naive.reconciled(known, qty)
            events = orders.apply(update(E.PARTIAL_FILL, qty=qty, cum=known + qty, execution=77,
                                         low=known + qty, flags=FLAG.RECONCILED))
        elif isinstance(move, tuple) and isinstance(move[0], int):
            execution, qty = move[0], quantities.setdefault(move[0], move[1]) * NANO
            wanted = naive.fill(execution, qty, qty)
            events = orders.apply(update(E.PARTIAL_FILL, qty=qty, cum=qty, execution=execution))
        else:
            word, cum = move if isinstance(move, tuple) else (move, 0)
            kind, qty = getattr(E, word.upper()), 0
            wanted = naive.say(word, cum * NANO)
            if word in OWN:
                event = orders.step(name(1), kind, R.EXPIRED if word == "dropped" else 0)
                events = [] if event is None else [event]
            else:
                events = orders.apply(update(kind, cum=cum * NANO))
        assert [E.label(e["kind"]) for e in events] == wanted, (move, naive.state)
        for event in events:
            if event["kind"] in (E.PARTIAL_FILL, E.FILL):
                assert event["qty"] == qty
            else:
                assert event["reason"] == {E.DROPPED: R.EXPIRED, E.REJECTED: R.VENUE,
                                           E.CANCEL_REJECTED: R.VENUE}.get(int(event["kind"]), 0)
        found = orders.find(name(1))
        assert S.label(found["state"]).upper() == naive.state
        assert found["cum_qty"] == naive.cum
        counters = orders.counters()
        assert counters["live"] == (not naive.ended)
        assert counters["unknown"] == (naive.state == "UNKNOWN")
        assert counters["fills"] == len(naive.executions)


@given(moves)
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_naive_order(script):
    drive(script)


@pytest.mark.parametrize("script", [
    [("canceled", 1), "dropped"], [("acked", 1), "dropped"], [("cancel_rejected", 1), "dropped"],
    [("canceled", 1), "sent", "dropped"], ["dropped", ("canceled", 1)],
    [("canceled", 0), "dropped"]])
def test_what_the_venue_has_told_of_is_not_dropped(script):
    drive(script)


@pytest.mark.parametrize("words", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_every_way_in_which_words_can_come(words):
    for script in itertools.product(WORDS, repeat=words):
        drive(("sent", *script))


def test_what_rest_tells_counts_only_if_it_goes_on_from_what_is_known():
    orders = sent()
    one(orders, fills(40)[0])
    rest = {"execution": 8, "flags": FLAG.RECONCILED}
    assert one(orders, update(E.PARTIAL_FILL, qty=30 * NANO, cum=30 * NANO, **rest)) is None
    assert one(orders, update(E.PARTIAL_FILL, qty=30 * NANO, cum=100 * NANO, **rest)) is None
    event = one(orders, update(E.PARTIAL_FILL, qty=30 * NANO, cum=70 * NANO, **rest))
    assert (event["qty"], event["cum_qty"]) == (30 * NANO, 70 * NANO)
    # By the stream's name it comes late, and is known; what comes after it is new.
    assert one(orders, update(E.PARTIAL_FILL, qty=30 * NANO, cum=70 * NANO, execution=3)) is None
    assert one(orders, update(E.FILL, qty=30 * NANO, cum=100 * NANO, execution=4))[
        "state"] == S.FILLED
    found = orders.counters()
    assert (found["fills"], found["reconciled"], found["overfills"]) == (3, 1, 0)


def test_an_order_that_never_was_is_rejected_for_that_reason():
    orders = sent()
    one(orders, update(E.UNKNOWN))
    event = one(orders, update(E.REJECTED, reason=R.ABSENT))
    assert (event["kind"], event["reason"], event["state"]) == (E.REJECTED, R.ABSENT, S.REJECTED)


@pytest.mark.slow
@given(st.lists(moves, min_size=3, max_size=8).map(
    lambda parts: list(itertools.chain(*parts))))
@settings(max_examples=2000, deadline=None)
def test_agrees_with_the_naive_order_for_longer(script):
    drive(script)


def test_a_fill_after_the_cancel_is_published_and_the_order_stays_ended():
    orders = sent()
    one(orders, CANCELED)
    event = one(orders, fills(40)[0])
    assert (event["kind"], event["state"], event["cum_qty"]) == (
        E.PARTIAL_FILL, S.CANCELED, 40 * NANO)
    assert orders.counters()["late_fills"] == 1 and len(orders) == 0


def test_more_than_the_order_is_refused_and_counted():
    orders = sent()
    assert one(orders, fills(101)[0]) is None
    assert one(orders, fills(100)[0])["kind"] == E.FILL
    assert one(orders, update(E.PARTIAL_FILL, qty=1, cum=1, execution=9)) is None
    assert orders.counters()["overfills"] == 2


def test_malformed_and_foreign_messages_are_counted():
    orders = sent()
    bad = [update(E.FILL, qty=5, execution=1, price=0), update(E.FILL, execution=1),
           update(E.FILL, qty=5), update(E.SENT), update(E.DENIED), update(99)]
    assert [one(orders, u) for u in bad] == [None] * len(bad)
    assert orders.counters()["malformed"] == len(bad)
    assert one(orders, update(E.FILL, seq=9, qty=1, cum=1, execution=1)) is None
    assert one(orders, update(E.ACKED, seq=9)) is None
    assert orders.counters()["orphans"] == 2 and orders.counters()["orphan_fills"] == 1


def test_the_same_execution_id_on_two_orders_is_two_executions():
    orders = sent()
    orders.new(order(2))
    for seq in (1, 2):
        assert one(orders, update(E.PARTIAL_FILL, seq, NANO, NANO, 7))["qty"] == NANO
        assert one(orders, update(E.PARTIAL_FILL, seq, NANO, NANO, 7)) is None


def test_the_venues_sum_shows_what_is_missing():
    orders = sent()
    one(orders, update(E.PARTIAL_FILL, qty=30 * NANO, cum=70 * NANO, execution=2))
    found = orders.find(name(1))
    assert (found["cum_qty"], found["venue_cum"]) == (30 * NANO, 70 * NANO)


def test_denied_and_dropped_without_a_place_in_the_table():
    orders = Orders(1)
    event = orders.step(name(5), E.DENIED, R.HALTED)
    assert (event["order"], event["kind"], event["reason"], event["state"]) == (
        name(5), E.DENIED, R.HALTED, S.DROPPED)
    event = orders.refuse(order(6), E.DROPPED, R.TABLE_FULL)
    assert (event["order"], event["kind"], event["instrument"], event["side"], event["qty"]) == (
        name(6), E.DROPPED, 3, -1, 100 * NANO)
    assert orders.step(name(5), E.SENT) is None and len(orders) == 0


def test_a_cancel_that_never_left_is_told_and_changes_nothing():
    orders = sent()
    event = orders.step(name(1), E.CANCEL_REJECTED, R.DISCONNECTED)
    assert (event["kind"], event["reason"], event["state"]) == (
        E.CANCEL_REJECTED, R.DISCONNECTED, S.SENT)
    orders.step(name(1), E.CANCEL_SENT)
    assert orders.step(name(1), E.CANCEL_REJECTED)["state"] == S.PENDING_CANCEL
    assert one(orders, update(E.CANCEL_REJECTED))["state"] == S.SENT
    one(orders, CANCELED)
    assert orders.step(name(1), E.CANCEL_REJECTED) is None


def test_full_and_duplicate_orders_are_refused_and_nothing_is_lost():
    orders = Orders(4)
    assert [orders.new(order(n)) for n in (1, 2, 3, 3, 4, 5)] == [1, 1, 1, 0, 1, 0]
    assert not Orders(1).new(order(0, order=0))
    orders.step(name(2), E.DROPPED, R.EXPIRED)
    assert not orders.new(order(2)), "remembered: an identity is used once"
    assert orders.new(order(5)) and not orders.new(order(6))


def test_at_least_capacity_ended_orders_are_remembered_oldest_forgotten_first():
    capacity, total = 8, 400
    orders = Orders(capacity, executions=64)
    for seq in range(1, total):
        assert orders.new(order(seq))
        event = one(orders, update(E.FILL, seq, 100 * NANO, 100 * NANO, seq))
        assert event["kind"] == E.FILL
        assert len(orders) == 0
        known = [s for s in range(1, seq + 1) if orders.find(name(s))]
        assert known == list(range(seq - len(known) + 1, seq + 1))
        assert len(known) >= min(seq, capacity)
        for s in known:                         # late duplicates find their order
            assert one(orders, update(E.FILL, s, 100 * NANO, 100 * NANO, s)) is None
    assert orders.counters()["orphans"] == 0 and orders.counters()["overfills"] == 0


def test_a_forgotten_execution_still_cannot_overfill():
    orders = Orders(1, executions=1)
    orders.new(order())
    for u in (*fills(60, 40), *fills(60)):      # the first is forgotten when it comes again
        one(orders, u)
    assert orders.find(name(1))["cum_qty"] == 100 * NANO
    assert orders.counters()["overfills"] == 1


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_many_orders_at_once_stay_apart(seed):
    rng = np.random.default_rng(seed)
    orders, live, seq = Orders(64), {}, 0
    for _ in range(600):
        if len(live) < 64 and rng.random() < 0.55:
            seq += int(rng.integers(1, 1000))
            assert orders.new(order(seq, qty=seq))
            live[seq] = 0
        elif live:
            pick = int(rng.choice(list(live)))
            if rng.random() < 0.5 and live[pick] < pick - 1:
                live[pick] += 1
                event = one(orders, update(E.PARTIAL_FILL, pick, 1, live[pick], live[pick]))
                assert (event["order"], event["cum_qty"]) == (name(pick), live[pick])
            else:
                assert one(orders, update(E.CANCELED, pick))["cum_qty"] == live.pop(pick)
        assert len(orders) == len(live)
    for pick, cum in live.items():
        found = orders.find(name(pick))
        assert (found["qty"], found["cum_qty"]) == (pick, cum)


@pytest.mark.parametrize("arguments", [(3,), (0,), (8, 3), (8, 0)])
def test_sizes_must_be_powers_of_two(arguments):
    with pytest.raises(ValueError, match=f"power of two.*was {arguments[-1]}"):
        Orders(*arguments)
