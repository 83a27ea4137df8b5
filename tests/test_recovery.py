"""A run goes on with the books of the one before, and begins only when the venue agrees."""
import itertools
import json
import uuid
from dataclasses import replace
from decimal import Decimal as D

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._gate import Risk
from hftpipe._ledger import Ledger
from hftpipe._ring import pair
from hftpipe._stage_ledger import LedgerStage
from hftpipe.alpaca import messages, session
from hftpipe.errors import DataError, DeadlineError
from hftpipe.limits import default_limits
from hftpipe.recovery import books as recovery
from hftpipe.recovery.books import Books, Pending, Row
from hftpipe.recovery.settle import settle
from hftpipe.store.writer import Run, StoreWriter
from hftpipe.strategies._exits import DEFAULTS, Exits

from .models import store as naive
from .models.database import fresh, server
from .models.ledger import NaiveLedger

KIND, STATE, STREAM, EXIT = (schema.ORDER_EVENT_KIND, schema.ORDER_STATE, schema.STREAM,
                             schema.EXIT)
N = 10**9
ACCOUNT = "904837e3-3b76-47ec-b432-046db621571b"
OFFSET = 1_700_000_000 * N              # UTC less monotonic
FEES = {"per_order": 35 * N // 100, "rate": 30_000, "sell_rate": 27_800}


# ---------------------------------------------------------------- the ledger goes on

quantities = st.tuples(st.integers(1, 10**13), st.sampled_from((1, -1)))
prices = st.integers(1, 10**13)
steps = st.lists(st.one_of(
    st.tuples(st.just("fill"), st.integers(0, 2), quantities, prices),
    st.tuples(st.just("mark"), st.integers(0, 2), st.none(), prices),
    st.tuples(st.just("roll"), st.just(0), st.none(), st.none())), max_size=60)


def take(ledger, step, day):
    what, i, qty, price = step
    if what == "fill":
        row = np.zeros((), schema.dtype(schema.ORDER_EVENT))
        row["kind"], row["instrument"], row["price"] = KIND.FILL, i, price
        row["qty"], row["side"], row["cum_qty"] = *qty, qty[0]
        ledger.order_event(row)
    elif what == "mark":
        ledger.mark(i, price)
    else:
        ledger.roll(day)


@settings(max_examples=300, deadline=None)
@given(steps, steps, st.integers(0, 10**15))
def test_a_ledger_taken_over_is_the_one_that_went_on(before, after, equity):
    one = Ledger(3, equity, FEES)
    for day, step in enumerate(before, 1):
        take(one, step, day)
    two = Ledger(3, equity, FEES)
    for i in range(3):
        x = one.exact(i)
        two.restore(i, qty=x["qty"], cost=x["cost"], realised=x["realised"], fees=x["fees"] // N,
                    mark=x["mark"], fills=x["fills"])
    two.restore_account(**one.account_state())
    for day, step in enumerate(after, 100):
        for ledger in (one, two):
            take(ledger, step, day)
    for i in range(3):
        assert one.exact(i) == two.exact(i)
        a, b = one.view(i), two.view(i)
        # The peak is handed on in nanocash: what is below it may turn the last digit.
        assert abs(int(a["peak"]) - int(b["peak"])) <= 1
        for name in a.dtype.names:
            assert name in ("peak", "drawdown_bps") or a[name] == b[name], name
    assert {k: v for k, v in one.totals().items() if k not in ("peak", "deepest")} == {
        k: v for k, v in two.totals().items() if k not in ("peak", "deepest")}


@pytest.mark.parametrize(("given", "error"), [
    ({"qty": 1, "cost": -1}, ValueError), ({"qty": -1, "cost": 1}, ValueError),
    ({"qty": 0, "cost": 5}, ValueError), ({"qty": 1, "cost": 1, "mark": -1}, ValueError),
    ({"qty": 1, "cost": 1 << 100}, OverflowError), ({"qty": 1, "cost": 1 << 70}, None)])
def test_books_that_contradict_themselves_are_refused(given, error):
    ledger = Ledger(1)
    if error is None:
        ledger.restore(0, realised=0, **given)
        with pytest.raises(ValueError, match="fresh"):
            ledger.restore(0, realised=0, **given)
        return
    with pytest.raises(error):
        ledger.restore(0, realised=0, **given)
    assert ledger.exact(0)["qty"] == 0 and ledger.totals()["cash"] == 0


# ---------------------------------------------------------------- from and to the database

def of(*words):
    return {"account": words[0], "account_low": words[1]}


def store(conninfo, run, events):
    """Write a run: (stream, record, monotonic ts, values) in order."""
    by_stream, counts = {}, {}
    for stream, record, ts, values in events:
        seq = counts[stream] = counts.get(stream, 0) + 1
        number = next(n for n, r in schema.BODIES.items() if r.name == record)
        cause = values.get("cause", 0)
        body = naive.pack(schema.BY_NAME[record],
                          {"event": schema.event_id(stream, seq), **values})
        by_stream.setdefault(stream, []).append(naive.slot(
            number, stream, seq, body, inside=naive.slot_record(stream), ts=ts, cause=cause,
            instrument=values.get("instrument", 0)))
    links = {}
    for stream, slots in by_stream.items():
        producer, links[stream] = pair(naive.slot_record(stream), 4096)
        assert all(producer.push(slot) for slot in slots)
    with StoreWriter(links, conninfo, run) as writer:
        writer.drain(30)


def order(seq):
    return schema.event_id(STREAM.SIGNAL, seq)


class Script:
    """Events of one run, made with the least that recovery reads."""

    def __init__(self, number, symbols=("ACME", "BOLT")):
        self.run = Run(number, OFFSET, "demo", tuple((s, N // 100, N) for s in symbols))
        self.events, self.now, self.intents, self.gateway = [], number - OFFSET, 0, 0

    def put(self, stream, record, **values):
        self.now += 1000
        self.events.append((stream, record, self.now, values))

    def begin(self, books):
        account, openings, resolved = books.records([s for s, _, _ in self.run.instruments])
        for name, rows in (("resolved", resolved), ("opening", openings)):
            for row in rows:
                self.put(STREAM.LEDGER, name, **{
                    k: int(row[k]) for k in row.dtype.names if k not in ("link_seq", "event")})
        self.put(STREAM.LEDGER, "account", **{
            **{k: int(account[k]) for k in account.dtype.names if k not in ("link_seq", "event")},
            "kind": schema.ACCOUNT_KIND.BEGIN})
        return self

    def wish(self, instrument, side, qty, price, reason=0, tag=0):
        self.intents += 1
        number = order(self.intents)
        self.put(STREAM.SIGNAL, "intent", instrument=instrument, side=side, qty=qty, price=price,
                 action=schema.ACTION.NEW, type=schema.ORDER_TYPE.LIMIT, tag=tag)
        self.put(STREAM.RISK, "verdict", order=number, reason=reason, action=schema.ACTION.NEW,
                 instrument=instrument)
        return number

    def step(self, number, kind, state, instrument=0, side=1, qty=0, price=0, cum=0):
        self.gateway += 1
        self.put(STREAM.GATEWAY, "order_event", order=number, kind=kind, state=state, qty=qty,
                 price=price, cum_qty=cum, instrument=instrument, side=side)
        return schema.event_id(STREAM.GATEWAY, self.gateway)

    def booked(self, cause, instrument, fee, mark=0, **values):
        self.put(STREAM.LEDGER, "position", cause=cause, instrument=instrument, fee=fee,
                 mark=mark, **values)


@pytest.fixture(scope="module")
def postgres():
    with server() as p:
        yield p


@pytest.fixture
def db(postgres):
    return fresh(postgres)


def decimals(row):
    return D(row.qty) / N, D(row.cost) / 10**18, D(row.realised) / 10**18, D(row.fees) / N


@pytest.mark.db
def test_books_are_those_of_every_execution_over_three_runs(db):
    """Against Decimal books that saw one long run; the fee of what no ledger booked is computed."""
    rng = np.random.default_rng(5)
    twin = NaiveLedger(D(1000), {"per_order": D("0.35"), "rate": D("0.00003"),
                                 "sell_rate": D("0.0000278")})
    books = recovery.load(db, ACCOUNT, 10**18, 1000 * N, FEES)
    assert books.from_run == 0 and not books.rows and books.opening == 1000 * N
    for k in range(3):
        number = OFFSET + (k + 1) * 10**15
        books = recovery.load(db, ACCOUNT, number, 1000 * N, FEES)
        script = Script(number).begin(books)
        for i in range(40):
            which, side = int(rng.integers(2)), int(rng.choice((1, -1)))
            qty, price = int(rng.integers(1, 10**11)), int(rng.integers(1, 10**12))
            number = script.wish(which, side, qty, price)
            part = qty // 3 if i % 3 == 0 else 0
            if part:
                cause = script.step(number, KIND.PARTIAL_FILL, STATE.PARTIAL, which, side, part,
                                    price, part)
                fee = twin.fee(D(part * side) / N, D(price) / N, True)
                twin.fill(which, D(part * side) / N, D(price) / N, True)
                script.booked(cause, which, int(fee * N))
            cause = script.step(number, KIND.FILL, STATE.FILLED, which, side, qty - part, price,
                                qty)
            fee = twin.fee(D((qty - part) * side) / N, D(price) / N, not part)
            twin.fill(which, D((qty - part) * side) / N, D(price) / N, not part)
            if i < 37:                  # the ledger lagged when it was killed
                script.booked(cause, which, int(fee * N), mark=price)
        store(db, script.run, script.events)
    books = recovery.load(db, ACCOUNT, 10**18 * 3, 1000 * N, FEES)
    assert books.from_run == OFFSET + 3 * 10**15 and not books.pending
    for i, symbol in enumerate(("ACME", "BOLT")):
        qty, cost, realised, fees = decimals(books.rows[symbol])
        assert qty == twin.qty[i] and fees == twin.charged(i)
        assert abs(cost - twin.average[i] * qty) < D("1e-15")       # one division per reduction
        assert abs(realised - twin.realised[i]) < D("1e-15")
        assert books.rows[symbol].fills == sum(1 for f in twin.fills if f[0] == i)


@pytest.mark.db
def test_a_start_that_died_before_its_books_were_open_did_not_happen(db):
    """Its RESOLVED rows are no trades: the next start looks again."""
    first = Script(OFFSET + 10**15).begin(Books(ACCOUNT, opening=N, peak=N))
    number = first.wish(0, 1, 5 * N, 7 * N)
    store(db, first.run, first.events)
    died = Script(OFFSET + 2 * 10**15)
    died.put(STREAM.LEDGER, "resolved", order=number, of_run=first.run.run, kind=KIND.FILL,
             side=1, qty=5 * N, price=7 * N, cum_qty=5 * N, state=STATE.FILLED)
    store(db, died.run, died.events)
    books = recovery.load(db, ACCOUNT, OFFSET + 3 * 10**15, N, {})
    assert books.from_run == first.run.run and [p.order for p in books.pending] == [number]
    import psycopg
    with psycopg.connect(db) as c:
        assert c.execute("SELECT count(*) FROM hftpipe.trades").fetchone() == (0,)
        books.resolved = [{"order": number, "of_run": first.run.run, "symbol": "ACME", "side": 1,
                           "kind": KIND.FILL, "state": STATE.FILLED, "reason": 0, "price": 7 * N,
                           "qty": 5 * N, "cum_qty": 5 * N, "execution": 1 << 63,
                           "execution_low": 2, "venue_id": 3, "venue_id_low": 4, "ts_venue": OFFSET,
                           "fee": 9}]
        third = Script(OFFSET + 3 * 10**15).begin(books)
        store(db, third.run, third.events)
        row = c.execute("SELECT run, order_id, symbol, side, quantity, price, commission "
                        "FROM hftpipe.trades").fetchall()
        assert row == [(first.run.run, number, "ACME", "buy", D(5), D(7), D("0.000000009"))]
        assert c.execute("SELECT status, filled_quantity, filled_avg_price FROM hftpipe.orders"
                         ).fetchall() == [("filled", D(5), D(7))]
        assert c.execute("SELECT count(*) FROM hftpipe.order_audit_trail WHERE event_type = "
                         "'recovery.fill' AND order_id = %s", (number,)).fetchone() == (1,)


@pytest.mark.db
def test_day_peak_and_stops_are_taken_over(db):
    script = Script(OFFSET + 10**15).begin(Books(ACCOUNT, opening=100 * N, peak=101 * N))
    script.put(STREAM.LEDGER, "account", account=recovery.words(ACCOUNT)[0],
               account_low=recovery.words(ACCOUNT)[1], kind=schema.ACCOUNT_KIND.DAY, day=20_000,
               opening=100 * N, peak=102 * N, profit_then=-3, profit_rest=999_999_999,
               realised_then=4, realised_rest=1, fees_then=6)
    bought = script.wish(0, 1, 4 * N, 10 * N)
    cause = script.step(bought, KIND.FILL, STATE.FILLED, 0, 1, 4 * N, 10 * N, 4 * N)
    since = script.now + OFFSET
    script.booked(cause, 0, 0, mark=10 * N, peak=103 * N)
    script.booked(0, 0, 0, mark=14 * N, peak=115 * N)
    script.booked(0, 0, 0, mark=13 * N, peak=115 * N)
    exits = script.wish(0, -1, 2 * N, 13 * N, tag=EXIT.FIRST)
    cause = script.step(exits, KIND.FILL, STATE.FILLED, 0, -1, 2 * N, 13 * N, 2 * N)
    script.booked(cause, 0, 0, mark=13 * N)
    script.wish(0, -1, 2 * N, 9 * N, tag=EXIT.STOP)
    denied = script.wish(0, -1, 2 * N, 9 * N, reason=schema.REASON.HALTED)
    store(db, script.run, script.events)
    books = recovery.load(db, ACCOUNT, 10**19 // 2, 150 * N, {})
    assert (books.day, books.profit_then, books.realised_then, books.fees_then) == (
        20_000, -3 * N + 999_999_999, 4 * N + 1, 6)
    # account.equity was changed by 50: so was everything that counts from it
    assert (books.opening, books.peak) == (150 * N, 165 * N)
    row = books.rows["ACME"]
    assert (row.qty, row.since, row.best, row.first, row.closing) == (
        2 * N, since, 14 * N, True, EXIT.STOP)
    assert [p.order for p in books.pending] == [denied - 1]
    again = Books.parse(json.loads(json.dumps(books.dump())))
    assert again == books


# ---------------------------------------------------------------- the venue's word

class Venue:
    """A broker of orders by client id, with what it filled of them."""

    def __init__(self):
        self.book, self.activities, self.held, self.asked = {}, [], {}, []
        self.stuck = False

    def add(self, name, symbol="ACME", side="buy", qty=10, status="new", fills=()):
        filled = sum(q for q, _ in fills)
        self.book[name] = messages.Order(
            str(uuid.uuid5(uuid.NAMESPACE_DNS, name)), name, symbol, status, side, "limit",
            qty=str(qty), filled_qty=str(filled), submitted_at="2023-11-15T00:00:00Z")
        for n, (q, p) in enumerate(fills):
            self.activities.append(messages.Fill(
                f"20231115000000000::{uuid.uuid5(uuid.NAMESPACE_DNS, f'{name}{n}')}",
                self.book[name].id, symbol, side, str(q), str(p), f"2023-11-15T00:00:0{n}Z"))
        self.held[symbol] = self.held.get(symbol, 0) + (filled if side == "buy" else -filled)
        return self

    def positions(self):
        return [messages.Position(s, str(q), avg_entry_price="8.5") for s, q in self.held.items()
                if q]

    def orders(self, status="open", after=None):
        return [o for o in self.book.values() if status == "all" or o.status in (
            "new", "partially_filled")]

    def order(self, venue_id):
        return next((o for o in self.book.values() if o.id == venue_id), None)

    def order_by_client_id(self, client_order_id):
        self.asked.append(client_order_id)
        return self.book.get(client_order_id)

    def fills(self, after=None):
        return list(self.activities)

    def cancel(self, venue_id):
        found = self.order(venue_id)
        if not self.stuck:
            found.status = "canceled"
        return True


RUN = 0x1234


def name(seq, run=RUN):
    return session.client_order_id(run, seq)


def pending(seq, cum=0, fills=(), side=1, qty=10, symbol="ACME", at=OFFSET):
    return Pending(RUN, order(seq), symbol, side, schema.ORDER_TYPE.LIMIT, 9 * N, qty * N, cum * N,
                   at, tuple((q * N, p * N) for q, p in fills))


def settled(books, venue, **options):
    return settle(books, venue, ["ACME", "BOLT"], FEES, **{
        "absent": 35 * N, "lookup": lambda run, which: [], "now": lambda: OFFSET + 100 * N,
        "pause": lambda s: None, **options})


def fills_of(books, symbol="ACME"):
    return [(r["qty"] // N, r["price"] // N, r["cum_qty"] // N) for r in books.resolved
            if r["kind"] in (KIND.FILL, KIND.PARTIAL_FILL) and r["symbol"] == symbol]


def test_nothing_left_and_nothing_held_is_equal():
    report = settled(Books(ACCOUNT), Venue())
    assert report.differences == report.cancelled == report.resolved == []


def test_an_open_order_is_cancelled_and_what_it_filled_is_booked():
    books = Books(ACCOUNT, RUN, pending=[pending(1, cum=2, fills=[(2, 9)])])
    books.rows["ACME"] = Row(qty=2 * N, cost=18 * N * N, fills=1)
    venue = Venue().add(name(1), status="partially_filled", fills=[(2, 9), (3, 8)])
    report = settled(books, venue)
    assert report.cancelled == [name(1)] and not report.orphans and not report.differences
    assert fills_of(books) == [(3, 8, 5)] and report.recovered == 1
    assert books.rows["ACME"].qty == 5 * N and books.rows["ACME"].cost == 42 * N * N
    last = books.resolved[-1]
    assert (last["kind"], last["state"], last["cum_qty"]) == (
        KIND.CANCELED, STATE.CANCELED, 5 * N)
    account, openings, resolved = books.records(["BOLT", "ACME"])
    assert (account["resolved"], account["recovered"]) == (1, 1)
    assert openings["instrument"].tolist() == [1] and resolved["instrument"].tolist() == [1, 1]
    assert resolved["execution"][0] and resolved["fee"][0] == 24 * 30_000


def test_an_order_that_filled_while_nobody_listened_is_filled():
    books = Books(ACCOUNT, RUN, pending=[pending(1)])
    report = settled(books, Venue().add(name(1), status="filled", fills=[(4, 9), (6, 9)]))
    assert fills_of(books) == [(4, 9, 4), (6, 9, 10)] and not report.differences
    assert [r["kind"] for r in books.resolved] == [KIND.PARTIAL_FILL, KIND.FILL]
    assert [r["fee"] for r in books.resolved] == [FEES["per_order"] + 36 * 30_000, 54 * 30_000]
    assert books.rows["ACME"].since == 1_700_006_400 * N


def test_two_executions_alike_of_which_one_is_known():
    books = Books(ACCOUNT, RUN, pending=[pending(1, cum=5, fills=[(5, 9)])])
    books.rows["ACME"] = Row(qty=5 * N, cost=45 * N * N, fills=1)
    report = settled(books, Venue().add(name(1), status="filled", fills=[(5, 9), (5, 9)]))
    assert fills_of(books) == [(5, 9, 10)] and not report.differences


def test_an_order_that_never_arrived_is_absent_when_nothing_can_be_under_way():
    books = Books(ACCOUNT, RUN, pending=[pending(1)])
    report = settled(books, Venue())
    assert [(r["kind"], r["reason"]) for r in books.resolved] == [
        (KIND.REJECTED, schema.REASON.ABSENT)]
    assert not report.differences and "never reached" in report.resolved[0]


def test_an_order_that_may_be_under_way_is_waited_for():
    """It comes at the third look: asked until `absent` after it was sent, not once."""
    clock, venue = itertools.count(OFFSET + N, 10 * N), Venue()
    books = Books(ACCOUNT, RUN, pending=[pending(1)])

    def pause(seconds):
        if len(venue.asked) == 2:
            venue.add(name(1), status="filled", fills=[(10, 9)])

    settled(books, venue, now=lambda: next(clock), pause=pause)
    assert len(venue.asked) == 3 and fills_of(books) == [(10, 9, 10)]
    books, venue = Books(ACCOUNT, RUN, pending=[pending(1)]), Venue()
    settled(books, venue, now=lambda: next(clock))
    assert books.resolved[0]["reason"] == schema.REASON.ABSENT
    books, venue = Books(ACCOUNT, RUN, pending=[pending(1, at=OFFSET + 10**15)]), Venue()
    settled(books, venue, alone=True)           # the local venue died with the run
    assert books.resolved[0]["reason"] == schema.REASON.ABSENT


def test_an_order_that_comes_while_it_is_waited_for_is_cancelled_too():
    clock, venue = itertools.count(OFFSET + N, 10 * N), Venue()
    books = Books(ACCOUNT, RUN, pending=[pending(1)])

    def pause(seconds):
        if len(venue.asked) == 1:
            venue.add(name(1), status="partially_filled", fills=[(4, 9)])

    report = settled(books, venue, now=lambda: next(clock), pause=pause)
    assert report.cancelled == [name(1)] and venue.book[name(1)].status == "canceled"
    assert fills_of(books) == [(4, 9, 4)] and not report.differences
    assert books.resolved[-1]["kind"] == KIND.CANCELED


@pytest.mark.parametrize(("there", "said"), [
    ({"symbol": "BOLT"}, "symbol BOLT and not ACME"), ({"side": "sell"}, "side sell and not buy"),
    ({"qty": 11}, "qty 11 and not 10")])
def test_another_order_by_our_name_is_a_difference(there, said):
    books = Books(ACCOUNT, RUN, pending=[pending(1)])
    report = settled(books, Venue().add(name(1), status="canceled", **there))
    assert len(report.differences) == 1 and said in report.differences[0]
    assert not books.resolved


def test_fills_that_do_not_add_up_are_a_difference():
    books = Books(ACCOUNT, RUN, pending=[pending(1)])
    venue = Venue().add(name(1), status="filled", fills=[(4, 9), (6, 9)])
    del venue.activities[1]
    report = settled(books, venue)
    assert "no executions that explain it" in report.differences[0]
    books = Books(ACCOUNT, RUN, pending=[pending(1, cum=5, fills=[(5, 9)])])
    books.rows["ACME"] = Row(qty=5 * N, cost=45 * N * N, fills=1)
    report = settled(books, Venue().add(name(1), status="canceled", fills=[(2, 9)]))
    assert "2 filled at the venue, 5 here" in report.differences[0]
    books.pending = [pending(1, cum=5, fills=[(5, 9)])]
    assert "does not know order" in settled(books, Venue()).differences[0]


def test_executions_are_asked_for_anew_for_each_order_that_has_some():
    """The second order arrives while its absence is waited for: it is in no earlier answer."""
    venue = Venue().add(name(1), status="filled", fills=[(10, 9)])
    books, looked = Books(ACCOUNT, RUN, pending=[pending(1), pending(2)]), []

    def arrive(seconds):
        looked.append(seconds)
        if len(looked) == 1:
            venue.add(name(2), status="canceled", fills=[(3, 9)])

    report = settled(books, venue, now=lambda: pending(2).at + len(looked), pause=arrive)
    assert looked and not report.differences and report.recovered == 2
    assert books.rows["ACME"].qty == 13 * N


def test_an_orphan_is_cancelled_and_an_order_of_others_is_left():
    venue = Venue().add(name(7, run=0x99)).add("somebody-else")
    report = settled(Books(ACCOUNT), venue)
    assert report.cancelled == report.orphans == [name(7, run=0x99)]
    assert report.foreign_orders == 1 and venue.book["somebody-else"].status == "new"


def test_an_order_that_does_not_end_is_no_start():
    venue = Venue().add(name(1))
    venue.stuck = True
    import hftpipe.recovery.settle as module
    ending, module.ENDING = module.ENDING, 0.0
    try:
        with pytest.raises(DeadlineError, match="still new"):
            settled(Books(ACCOUNT), venue)
    finally:
        module.ENDING = ending


def test_a_fill_behind_the_last_word_is_found_by_the_position():
    known = pending(3, cum=4, fills=[(4, 9)])
    books = Books(ACCOUNT, RUN)
    books.rows["ACME"] = Row(qty=4 * N, cost=36 * N * N, fills=1)
    venue = Venue().add(name(3), status="canceled", fills=[(4, 9), (2, 9)])
    asked = []

    def lookup(run, which):
        asked.append((run, which))
        return [known]

    report = settled(books, venue, lookup=lookup)
    assert asked == [(RUN, [order(3)])] and not report.differences
    assert fills_of(books) == [(2, 9, 6)] and books.rows["ACME"].qty == 6 * N


def test_a_position_that_nothing_explains_is_a_difference_or_adopted():
    def make():
        books = Books(ACCOUNT, RUN)
        books.rows["ACME"] = Row(qty=4 * N, cost=36 * N * N, realised=77, fees=5, fills=3, since=1,
                                 best=9 * N, first=True, closing=EXIT.STOP)
        return books

    venue = Venue()
    venue.held = {"ACME": 6, "BOLT": -1, "ELSE": 3}
    report = settled(make(), venue)
    assert report.differences == ["ACME: 6 at the venue, 4 here", "BOLT: -1 at the venue, 0 here"]
    assert report.foreign == ["ELSE: 3"]
    books = make()
    report = settled(books, venue, adopt=True)
    assert not report.differences and len(report.adopted) == 2
    row = books.rows["ACME"]
    assert (row.qty, row.cost, row.realised, row.fees) == (6 * N, 51 * N * N, 77, 5)
    assert (row.since, row.best, row.first, row.closing) == (OFFSET + 100 * N, 0, False, 0)
    assert books.rows["BOLT"].cost == -85 * N * N // 10
    venue.positions = lambda: [messages.Position("ACME", "6")]
    with pytest.raises(DataError, match="ACME must have a price"):
        settled(make(), venue, adopt=True)
    del venue.positions
    venue.held = {}
    settled(books, venue, adopt=True)
    assert books.rows["ACME"].qty == books.rows["ACME"].cost == 0


def test_looking_only_changes_nothing_at_the_venue():
    books = Books(ACCOUNT, RUN, pending=[pending(1), pending(2, at=OFFSET + 10**15)])
    venue = Venue().add(name(1), status="partially_filled", fills=[(2, 9)])
    report = settled(books, venue, act=False)
    assert venue.book[name(1)].status == "partially_filled" and report.cancelled == [name(1)]
    assert fills_of(books) == [(2, 9, 2)] and books.resolved[1]["kind"] == KIND.CANCELED


def test_what_is_not_traded_any_more_still_counts():
    books = Books(ACCOUNT, RUN, opening=100 * N, peak=100 * N)
    books.rows = {"ACME": Row(realised=5 * N * N, fees=N, fills=2), "BOLT": Row(
        qty=N, cost=10 * N * N, fees=2, mark=10 * N, fills=1)}
    with pytest.raises(ValueError, match="the books hold 1 BOLT"):
        replace(books, rows=dict(books.rows)).keep(["ACME"])
    books.keep(["BOLT"])
    assert list(books.rows) == ["BOLT"]
    ledger = books.ledger(["BOLT"], FEES)
    assert ledger.totals()["realised"] == 5 * N * N
    assert ledger.totals()["equity"] == (105 * N - N - 2) * N
    books.drop([])
    books.keep([])
    assert not books.rows and books.elsewhere_fees == N + 2


# ---------------------------------------------------------------- who goes on with it

def test_the_ledger_stage_begins_its_stream_with_the_books():
    books = Books(ACCOUNT, RUN, opening=100 * N, peak=100 * N, day=0)
    books.rows = {"BOLT": Row(qty=-3 * N, cost=-30 * N * N - 1, realised=7, fees=9, mark=11 * N,
                              fills=4, since=5)}
    books.resolved = [{"order": order(1), "of_run": RUN, "symbol": "GONE", "side": 1,
                       "kind": KIND.REJECTED, "state": STATE.REJECTED, "reason": 63,
                       "price": 1, "qty": 2, "cum_qty": 0, "execution": 0, "execution_low": 0,
                       "venue_id": 0, "venue_id_low": 0, "ts_venue": 0, "fee": 0}]
    symbols = ["ACME", "BOLT"]
    events, marks = pair(schema.ORDER_EVENT, 64), pair(schema.BOOK, 64)
    risk, kept = pair(schema.POSITION, 64), pair(schema.STORED_WIDE, 128)
    stage = LedgerStage(events[1], marks[1], risk[0], books.ledger(symbols, FEES), 2,
                        store=kept[0])
    for _ in stage.begin(*books.records(symbols)):
        pytest.fail("there is room")
    found = kept[1].peek(64)
    names = [schema.BODIES[int(n)].name for n in found["record"]]
    assert names == ["resolved", "opening", "account", "position"]
    (position,) = risk[1].peek(8)
    assert (position["instrument"], position["qty"], position["fees"]) == (1, -3 * N, 9)
    assert position["unrealised"] == -3 * N and position["day_pnl"] == -3 * N - 9
    assert stage.totals["pnl"] == -3 * N - 9


def test_the_ledger_stage_waits_for_room_and_goes_on():
    symbols = [f"S{i}" for i in range(300)]
    books = Books(ACCOUNT, RUN, rows={s: Row(qty=N, cost=N * N, fills=1, mark=N) for s in symbols})
    events, marks = pair(schema.ORDER_EVENT, 64), pair(schema.BOOK, 64)
    risk, kept = pair(schema.POSITION, 64), pair(schema.STORED_WIDE, 128)
    stage = LedgerStage(events[1], marks[1], risk[0], books.ledger(symbols, {}), 300,
                        store=kept[0])
    seen, held, waits = [], [], 0

    def drain(ring, column, out):
        while len(rows := ring.peek(128)):
            out += rows[column].tolist()
            ring.release(len(rows))

    for _ in stage.begin(*books.records(symbols)):
        waits += 1
        assert waits < 10_000
        drain(kept[1], "record", seen)
        drain(risk[1], "instrument", held)
    drain(kept[1], "record", seen)
    drain(risk[1], "instrument", held)
    names = [schema.BODIES[n].name for n in seen]
    assert names == ["opening"] * 300 + ["account"] + ["position"] * 300
    assert held == list(range(300)) and waits


def test_risk_counts_what_is_held():
    table = np.zeros(2, schema.dtype(schema.INSTRUMENT))
    table["tick"], table["lot"] = N // 100, N
    gate = Risk(default_limits(), table)
    gate.seed(1, 4 * N, 10 * N)
    assert gate.exposure(1)["qty"] == 4 * N and gate.exposure(1)["worst"] == 40 * N


def exits(**rules):
    table = np.zeros(1, schema.dtype(schema.INSTRUMENT))
    table["symbol"], table["tick"], table["lot"] = b"ACME", N // 100, N
    off = {k: 0 for k in DEFAULTS if k not in ("atr_bars", "atr_bar")}
    return Exits.from_config({**off, "break_even": False, "market": True, **rules}, table)


@pytest.mark.parametrize("side", [1, -1])
def test_stops_are_those_of_the_position_not_of_the_restart(side):
    held = {"qty": side * 4 * N, "cost": side * 40 * N * N, "fills": 2, "since": 123,
            "best": (10 + 2 * side) * N, "first": True, "closing": 0}
    made = exits(trailing=1000, trailing_from=500, first=100, first_share=5000)
    made.restore(0, held)
    state = made.state(0)
    assert (state["qty"], state["since"], state["first_left"]) == (side * 4 * N, 123, 0)
    assert state["best"] == side * held["best"] and state["trailing"]
    # 10 % from the best price
    assert state["trail"] == (108 * N // 10 if side > 0 else -(88 * N // 10))
    made = exits(trailing=1000, trailing_from=9000, stop=200)
    made.restore(0, {**held, "closing": EXIT.STOP, "first": False})
    state = made.state(0)
    assert not state["trailing"] and state["closing"] == EXIT.STOP and state["first_left"] == -1
