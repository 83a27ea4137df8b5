"""Orders and positions are made to equal the venue's, or trading halts: never a guess."""
import heapq
import json
import random
import uuid

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._order import Orders
from hftpipe.alpaca import messages, session
from hftpipe.alpaca.reconcile import Answer, Reconciler, Task
from hftpipe.alpaca.updates import Reader

E, S, R = schema.ORDER_EVENT_KIND, schema.ORDER_STATE, schema.REASON
NANO = SECOND = 10**9
RUN = 0xabc
SYMBOLS = ("ACME", "BOLT")
START = 1_800_000_000 * SECOND
MS = 10**6


def text(nanos):
    return f"{nanos // NANO}" if nanos % NANO == 0 else f"{nanos / NANO:.9f}"


class Venue:
    """What a broker keeps, in dictionaries."""

    def __init__(self):
        self.orders, self.fills, self.position = {}, [], dict.fromkeys(SYMBOLS, 0)
        self.count = 0

    def stamp(self, now):
        seconds, nanos = divmod(START + now, SECOND)
        import time
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"

    def uuid(self):
        self.count += 1
        return str(uuid.UUID(int=(7 << 100) + self.count))

    def accept(self, name, symbol, side, qty, price, now):
        self.orders[name] = {
            "id": self.uuid(), "client_order_id": name, "symbol": symbol, "status": "new",
            "side": side, "type": "limit", "qty": text(qty), "filled_qty": "0",
            "limit_price": text(price), "submitted_at": self.stamp(now),
            "updated_at": self.stamp(now)}
        return self.event(name, "new", now)

    def event(self, name, event, now, **more):
        order = self.orders[name]
        return {"event": event, "order": dict(order), "timestamp": self.stamp(now), **more}

    def fill(self, name, qty, price, now):
        order = self.orders[name]
        done = session.nano(order["filled_qty"]) + qty
        order["filled_qty"] = text(done)
        whole = done == session.nano(order["qty"])
        order["status"] = "filled" if whole else "partially_filled"
        execution = self.uuid()
        way = 1 if order["side"] == "buy" else -1
        self.position[order["symbol"]] += way * qty
        self.fills.append({
            "id": f"20261127093000000::{execution}", "order_id": order["id"],
            "symbol": order["symbol"], "side": order["side"], "qty": text(qty),
            "price": text(price), "transaction_time": self.stamp(now), "cum_qty": text(done)})
        return self.event(name, "fill" if whole else "partial_fill", now,
                          execution_id=execution, qty=text(qty), price=text(price),
                          position_qty=text(self.position[order["symbol"]]))

    def end(self, name, status, now):
        self.orders[name]["status"] = status
        return self.event(name, status, now)

    def is_open(self, name):
        return name in self.orders and self.orders[name]["status"] in ("new", "partially_filled")

    def answer(self, task):
        def of(value, kind):
            return msgspec.json.decode(json.dumps(value).encode(), type=kind)

        if task.what == "order":
            found = self.orders.get(task.name)
            return of(found, messages.Order) if found else None
        if task.what == "orders":
            return of([o for n, o in self.orders.items()
                       if task.name == "all" or self.is_open(n)], list[messages.Order])
        if task.what == "positions":
            return of([{"symbol": s, "qty": text(q)} for s, q in self.position.items() if q],
                      list[messages.Position])
        if task.what == "fills":
            return of(self.fills, list[messages.Fill])
        if task.what == "cancel":
            name = next((n for n, o in self.orders.items() if o["id"] == task.name), None)
            if name is None or not self.is_open(name):
                return False
            self.end(name, "canceled", 0)
            return True
        return None


class World:
    """A gateway's table, a venue, a stream between them that loses what it likes, and a clock."""

    def __init__(self, seed=0, **more):
        self.rng = random.Random(seed)
        self.now, self.seq = SECOND, 0
        self.venue, self.table = Venue(), Orders(64)
        self.later = []                 # (time, number, function)
        self.number = 0
        self.halts, self.said, self.paused = [], [], []
        self.up = False
        self.books = Reconciler(
            RUN, SYMBOLS, self.halts.append,
            lambda level, event, **fields: self.said.append((level, event, fields)),
            start=START, **more)
        self.reader = Reader(RUN, {s: i for i, s in enumerate(SYMBOLS)})
        self.tasks = []

    # ---- time

    def at(self, delay, function, *args):
        self.number += 1
        heapq.heappush(self.later, (self.now + delay, self.number, function, args))

    def run(self, until):
        """Let time pass, with a look at what is due every 20 ms."""
        end = self.now + until
        while self.now < end:
            self.now += 20 * MS
            while self.later and self.later[0][0] <= self.now:
                _, _, function, args = heapq.heappop(self.later)
                function(*args)
            task = self.books.due(self.now)
            if task is not None:
                self.tasks.append(task)
                self.at(self.rng.randrange(1, 40) * MS, self.ask, task)
        return self

    def ask(self, task):
        if task.what == "pause":
            self.paused.append(task.name)
        # The venue looks now; its answer is read a little later.
        answer = Answer(task, self.venue.answer(task))
        self.at(self.rng.randrange(1, 40) * MS, self.answered, answer)

    def answered(self, answer):
        for rows in self.books.answer(answer, self.now):
            self.apply(rows)

    # ---- what our side does

    def event(self, row):
        if row is not None:
            self.at(20 * MS, self.tell, np.array([row]))    # a link keeps the order

    def tell(self, rows):
        self.books.events(rows, self.now)

    def apply(self, rows):
        for row in rows:
            for event in self.table.apply(row):
                self.event(event)

    def send(self, symbol="ACME", side="buy", qty=100 * NANO, price=10 * NANO):
        self.seq += 1
        order = schema.event_id(schema.STREAM.SIGNAL, self.seq)
        row = np.zeros((), schema.dtype(schema.ORDER))
        row["order"], row["price"], row["qty"] = order, price, qty
        row["instrument"] = SYMBOLS.index(symbol)
        row["side"], row["type"], row["tif"] = (1 if side == "buy" else -1), 2, 2
        assert self.table.new(row)
        self.event(self.table.step(order, E.SENT))
        return order, session.client_order_id(RUN, self.seq), (symbol, side, qty, price)

    def update(self, kind, order, **fields):
        row = np.zeros(1, session.UPDATE)
        row["order"], row["kind"] = order, kind
        for name, value in fields.items():
            row[name] = value
        self.apply(row)

    def accept(self, name, what):
        self.stream(self.venue.accept(name, *what, self.now))

    def stream(self, message, delay=None):
        if self.up:
            self.at(self.rng.randrange(1, 50) * MS if delay is None else delay, self.hear, message)

    def hear(self, message):
        if not self.up:
            return
        rows = self.reader.records(json.dumps(
            {"stream": "trade_updates", "data": message}).encode(), self.now)
        if rows is not None:
            self.apply(rows)
            self.books.heard(rows, self.now)

    def connect(self):
        if not self.up:
            self.up = True
            self.books.went_live(self.now)

    def drop(self):
        if self.up:
            self.up = False
            self.books.went_down(self.now)

    # ---- the truth

    def same(self):
        """Whether every order here stands as at the venue."""
        for seq in range(1, self.seq + 1):
            ours = self.table.find(schema.event_id(schema.STREAM.SIGNAL, seq))
            there = self.venue.orders.get(session.client_order_id(RUN, seq))
            if there is None:
                if ours["state"] not in (S.REJECTED, S.DROPPED):
                    return False
                continue
            if ours["cum_qty"] != session.nano(there["filled_qty"]):
                return False
            if (ours["state"] >= S.FILLED) != (there["status"] in (
                    "filled", "canceled", "expired", "rejected")):
                return False
        return self.books.mirror.moved == list(self.venue.position.values())


@pytest.fixture
def world():
    w = World()
    w.connect()
    w.run(2 * SECOND)
    assert w.books.settled
    return w


def whats(world, what):
    return [t for t in world.tasks if t.what == what]


def said(world, level):
    return [event for found, event, _ in world.said if found == level]


def test_it_begins_unsettled_and_asks_for_orders_and_positions_first():
    w = World()
    w.run(2 * SECOND)
    assert not w.books.settled and not w.tasks          # the stream is not even up
    w.connect()
    w.run(SECOND)
    assert w.books.settled and {t.what for t in w.tasks} == {"orders", "positions"}


def test_intervals(world):
    world.tasks.clear()
    world.run(121 * SECOND)
    assert [len(whats(world, what)) for what in ("orders", "positions")] == [4, 2]
    assert world.books.looks >= 8 and not world.books.breaks


def test_no_answer_and_the_venue_has_it(world):
    order, name, what = world.send()
    world.update(E.UNKNOWN, order)
    world.venue.accept(name, *what, world.now)          # the stream loses it too
    world.run(SECOND)
    assert world.table.find(order)["state"] == S.OPEN and world.books.resolved == 1
    assert not world.halts


def test_no_answer_is_asked_for_soon_and_ever_later_and_then_never_was(world):
    order, name, _ = world.send()
    world.update(E.UNKNOWN, order)
    began = world.now
    world.run(34 * SECOND)
    assert world.table.find(order)["state"] == S.UNKNOWN    # exposure is held all this time
    asked = [(t.began - began) / SECOND for t in world.tasks if t.name == name]
    assert len(asked) == 11 and asked == sorted(asked)
    for found, wanted in zip(asked, (0, .1, .5, 1, 2, 5, 10, 15, 20, 25, 30), strict=True):
        assert wanted <= found < wanted + 1
    world.run(10 * SECOND)
    found = world.table.find(order)
    assert found["state"] == S.REJECTED and found["reason"] == R.ABSENT
    world.run(60 * SECOND)
    assert not world.halts and not world.books.breaks


@pytest.mark.parametrize("late", [3, 20, 33])
def test_no_answer_and_it_comes_late(world, late):
    order, name, what = world.send()
    world.update(E.UNKNOWN, order)
    world.run(late * SECOND)
    world.venue.accept(name, *what, world.now)
    world.run(7 * SECOND)
    assert world.table.find(order)["state"] == S.OPEN and not world.halts


@pytest.mark.parametrize("late", [45, 60, 300])
def test_given_up_and_then_it_comes_cancels_it_halts_and_counts_its_fills(world, late):
    order, name, what = world.send()
    world.update(E.UNKNOWN, order)
    world.run(late * SECOND)
    assert world.table.find(order)["reason"] == R.ABSENT
    world.venue.accept(name, *what, world.now)
    world.venue.fill(name, 30 * NANO, 10 * NANO, world.now)     # nothing of it on the stream
    world.run(40 * SECOND)
    assert world.halts and not world.venue.is_open(name)
    assert world.table.find(order)["cum_qty"] == 30 * NANO
    assert world.books.mirror.moved == [30 * NANO, 0]


@pytest.mark.parametrize(("field", "value"), [
    ("symbol", "BOLT"), ("side", "sell"), ("qty", "101"), ("limit_price", "10.01")])
def test_an_order_of_our_name_that_is_not_ours_is_not_adopted(world, field, value):
    order, name, what = world.send()
    world.update(E.UNKNOWN, order)
    world.venue.accept(name, *what, world.now)
    world.venue.orders[name][field] = value
    world.run(5 * SECOND)
    assert world.table.find(order)["state"] == S.UNKNOWN
    assert len(world.halts) == 1 and value in world.halts[0]


def test_a_fill_that_was_never_sent_is_found_at_the_next_one(world):
    order, name, what = world.send()
    world.accept(name, what)
    world.run(SECOND)
    world.venue.fill(name, 10 * NANO, 9 * NANO, world.now)      # lost
    world.stream(world.venue.fill(name, 20 * NANO, 8 * NANO, world.now))
    world.run(5 * SECOND)
    assert world.table.find(order)["cum_qty"] == 30 * NANO
    assert sorted(e[2:] for e in world.books.mirror.orders[order].executions) == [
        (10 * NANO, 9 * NANO), (20 * NANO, 8 * NANO)]
    assert world.same() and not world.halts and "executions that were never sent to us" in said(
        world, "error")


def test_a_fill_that_comes_after_it_was_reconciled_counts_once(world):
    order, name, what = world.send()
    world.accept(name, what)
    world.run(SECOND)
    late = world.venue.fill(name, 10 * NANO, 9 * NANO, world.now)
    world.books.doubt(world.now)
    world.run(5 * SECOND)
    assert world.table.find(order)["cum_qty"] == 10 * NANO
    renamed = {**late, "execution_id": str(uuid.uuid4())}       # activities have other names
    for message in (late, renamed):
        world.stream(message)
    world.run(3 * SECOND)
    assert world.table.find(order)["cum_qty"] == 10 * NANO
    world.stream(world.venue.fill(name, 90 * NANO, 9 * NANO, world.now))
    world.run(3 * SECOND)
    assert world.table.find(order)["state"] == S.FILLED and world.same() and not world.halts


def test_an_order_that_ended_while_the_stream_was_down(world):
    orders = [world.send() for _ in range(3)]
    for _, name, what in orders:
        world.accept(name, what)
    world.run(SECOND)
    world.drop()
    assert not world.books.settled
    names = [name for _, name, _ in orders]
    world.venue.fill(names[0], 100 * NANO, 9 * NANO, world.now)
    world.venue.fill(names[1], 40 * NANO, 9 * NANO, world.now)
    world.venue.end(names[1], "canceled", world.now)
    world.run(5 * SECOND)
    assert not world.books.settled
    world.connect()
    world.run(5 * SECOND)
    assert world.books.settled and world.same() and not world.halts
    assert [world.table.find(o)["state"] for o, _, _ in orders] == [S.FILLED, S.CANCELED, S.OPEN]


def test_an_order_that_is_gone_is_a_break(world):
    order, name, what = world.send()
    world.accept(name, what)
    world.run(SECOND)
    del world.venue.orders[name]
    world.run(40 * SECOND)
    assert world.paused == ["ACME"] and world.halts and "does not know" in world.halts[0]
    assert world.table.find(order)["state"] == S.OPEN           # and nothing is made up


def test_an_order_of_another_run_is_cancelled_and_one_of_a_person_is_left(world):
    world.venue.accept("hp-99-1", "ACME", "buy", NANO, NANO, world.now)
    world.venue.accept("by hand", "ACME", "buy", NANO, NANO, world.now)
    world.run(35 * SECOND)
    assert not world.venue.is_open("hp-99-1") and world.venue.is_open("by hand")
    assert "an order of another run is open" in said(world, "error") and not world.halts


@pytest.mark.parametrize("ours", [True, False])
def test_an_order_that_a_person_replaced_pauses_its_symbol(world, ours):
    if ours:
        order, name, what = world.send()
        world.accept(name, what)
    else:
        name, what = "by hand", ("ACME", "buy", NANO, NANO)
        world.venue.accept(name, *what, world.now)
    world.run(SECOND)
    heard = world.venue.accept("in its place", *what, world.now)
    world.venue.orders["in its place"]["replaces"] = world.venue.orders[name]["id"]
    world.venue.orders[name]["replaced_by"] = heard["order"]["id"]
    world.stream(world.venue.end(name, "replaced", world.now))
    world.run(40 * SECOND)
    assert world.venue.is_open("in its place") and not world.halts
    assert world.paused == (["ACME"] if ours else [])
    if ours:
        assert world.table.find(order)["state"] == S.CANCELED
        (text,) = [more["what"] for _, event, more in world.said if event == "break"]
        assert text == f"somebody replaced order {name} by in its place, which is open"
    world.run(40 * SECOND)
    assert len(world.paused) == ours, "it is told once"


def test_an_order_of_this_run_that_nobody_sent_is_cancelled_and_halts(world):
    name = session.client_order_id(RUN, 77)
    world.venue.accept(name, "BOLT", "sell", NANO, NANO, world.now)
    world.run(40 * SECOND)
    assert not world.venue.is_open(name) and not world.table.find(77)


def test_a_position_that_drifts_pauses_the_symbol_and_then_halts(world):
    world.venue.position["BOLT"] += 5 * NANO
    world.run(70 * SECOND)
    assert world.paused == ["BOLT"] and len(world.halts) == 1
    assert "BOLT: 5 at the venue, 0 here" in world.halts[0] and world.books.open_breaks == 1
    world.venue.position["BOLT"] -= 5 * NANO
    world.run(5 * SECOND)
    assert world.books.open_breaks == 0


def test_a_position_at_the_start_is_what_it_begins_with():
    w = World()
    w.venue.position["ACME"] = -7 * NANO
    w.connect()
    w.run(2 * SECOND)
    _, name, what = w.send()
    w.accept(name, what)
    w.run(SECOND)
    w.stream(w.venue.fill(name, 100 * NANO, NANO, w.now))
    w.run(70 * SECOND)
    assert w.books.settled and not w.halts and not w.books.breaks


def test_a_fill_whose_position_is_not_ours_is_looked_at_at_once(world):
    _, name, what = world.send()
    world.accept(name, what)
    world.run(SECOND)
    world.tasks.clear()
    world.venue.position["ACME"] += 3 * NANO
    world.stream(world.venue.fill(name, 10 * NANO, NANO, world.now))
    world.run(5 * SECOND)
    assert len(whats(world, "positions")) > 2 and world.halts     # not at the next full minute


def test_errors_are_tried_again_and_later_each_time(world):
    world.tasks.clear()
    world.venue.answer = None                           # never reached

    def refuse(task):
        world.at(MS, world.answered, Answer(task, error="VenueError: HTTP 500", status=500))
    world.ask = refuse
    world.run(100 * SECOND)
    assert 4 <= len(world.tasks) <= 12 and not world.halts
    gaps = np.diff([t.began for t in world.tasks])
    assert (np.diff(gaps[:4]) > 0).all()
    assert said(world, "warning").count("the venue could not be asked") <= 5


def test_a_rate_limit_holds_it_back():
    w = World(absent=10**15)
    w.connect()
    w.run(SECOND)
    for _ in range(40):
        order, _, _ = w.send()
        w.update(E.UNKNOWN, order)
    w.tasks.clear()
    w.run(60 * SECOND)
    assert 20 <= len(w.tasks) <= 41
    w = World(unlimited=True)
    w.connect()
    w.run(SECOND)
    for _ in range(40):
        order, _, _ = w.send()
        w.update(E.UNKNOWN, order)
    w.tasks.clear()
    w.run(10 * SECOND)
    assert len(w.tasks) > 60


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10**9))
def test_whatever_the_stream_loses_it_ends_as_at_the_venue_or_halted(seed):
    """Answers lost, orders late, updates lost, doubled, out of order, the stream down."""
    w = World(seed, unlimited=True)
    rng = w.rng
    w.connect()
    w.run(SECOND)
    names = []

    def unsure(message):
        what = rng.random()
        if what < 0.25:
            return                                      # lost
        w.stream(message, rng.randrange(1, 400) * MS)
        if what > 0.85:
            w.stream(message, rng.randrange(1, 900) * MS)

    def trade(name):
        if not w.venue.is_open(name):
            return
        order = w.venue.orders[name]
        left = session.nano(order["qty"]) - session.nano(order["filled_qty"])
        if rng.random() < 0.6:
            part = rng.choice((left, max(left // 2 // NANO, 1) * NANO))
            unsure(w.venue.fill(name, min(part, left), 10 * NANO, w.now))
        elif rng.random() < 0.5:
            unsure(w.venue.end(name, rng.choice(("canceled", "expired")), w.now))

    for _ in range(rng.randrange(3, 25)):
        if rng.random() < 0.6 and w.books.settled:
            order, name, what = w.send(rng.choice(SYMBOLS), rng.choice(("buy", "sell")))
            names.append(name)
            fate = rng.random()
            if fate < 0.6:
                unsure(w.venue.accept(name, *what, w.now))
                w.update(E.ACKED, order)
            elif fate < 0.9:
                w.update(E.UNKNOWN, order)
                if fate < 0.8:
                    w.at(rng.randrange(30 * SECOND), lambda n=name, x=what: unsure(
                        w.venue.accept(n, *x, w.now)))
            else:
                w.update(E.REJECTED, order)
        for name in names:
            if rng.random() < 0.4:
                trade(name)
        if rng.random() < 0.15:
            w.drop() if w.up else w.connect()
        w.run(rng.randrange(1, 3000) * MS)
    w.connect()
    w.run(150 * SECOND)
    found = w.table.counters()
    assert found["overfills"] == 0
    assert w.same() and w.books.settled
    assert not w.halts


def test_a_task_is_asked_once_at_a_time(world):
    for _ in range(5):
        world.books.doubt(world.now)
    assert isinstance(world.books.due(world.now), Task)
    assert world.books.due(world.now) is None


def test_an_order_whose_end_was_lost_is_compared_while_its_cancel_is_refused_again_and_again():
    world = World(orders=SECOND)
    world.connect()
    world.run(2 * SECOND)
    order, name, what = world.send()
    world.accept(name, what)
    world.run(2 * SECOND)
    world.venue.end(name, "canceled", world.now)        # and nobody is told
    for _ in range(60):
        if world.table.find(order)["state"] >= S.FILLED:
            break
        world.event(world.table.step(order, E.CANCEL_SENT))
        world.run(60 * MS)
        world.update(E.CANCEL_REJECTED, order)
        world.run(60 * MS)
    assert world.table.find(order)["state"] == S.CANCELED and not world.halts
    assert world.same()
