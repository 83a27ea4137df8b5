"""Stages joined by rings: a tick becomes an order, a fill, a position; no link loses anything."""
import ctypes
import mmap
import threading
import time

import numpy
import pytest

from hftpipe import _clock, _control, schema, topology
from hftpipe._host import WAIT_SLEEP, Host
from hftpipe._stage import checksum
from hftpipe.errors import SchemaError
from tests.chain import NANO, Chain, quote

BUY = {"side": 1, "type": schema.ORDER_TYPE.LIMIT, "tif": schema.TIF.IOC,
       "action": schema.ACTION.NEW}
KIND = schema.ORDER_EVENT_KIND


def buy_at_ask(qty=10):
    def on_event(c, add):
        if c.event == 1 and c.book["ask"]:
            add(**BUY, price=int(c.book["ask"]), qty=qty * NANO)
    return on_event


def once(f):
    """*f* at the first book only."""
    done = []

    def on_event(c, add):
        if c.event == 1 and not done:
            done.append(1)
            f(c, add)
    return on_event


@pytest.fixture(autouse=True)
def real_clock():
    yield
    _clock.unset_virtual()


def test_one_tick_becomes_an_order_a_fill_and_a_position():
    chain = Chain(once(buy_at_ask()))
    chain.inline.run(quote(1000, 10000, 10001))
    chain.inline.finish()
    (intent,) = chain.bodies("signal", schema.INTENT)
    (verdict,) = chain.bodies("risk", schema.VERDICT)
    events = chain.bodies("gateway", schema.ORDER_EVENT)
    positions = chain.bodies("ledger", schema.POSITION)
    assert verdict["reason"] == 0 and verdict["order"] == intent["event"]
    assert [int(e["kind"]) for e in events] == [KIND.SENT, KIND.ACKED, KIND.FILL]
    assert {int(e["order"]) for e in events} == {int(intent["event"])}
    # The order names the record that completed the quote.
    assert schema.split_event(int(intent["cause"])) == (schema.STREAM.FEED, 2)
    assert all(int(e["cause"]) == int(intent["cause"]) for e in events)
    assert int(events[-1]["price"]) == 10001 * NANO // 100
    assert int(positions[-1]["qty"]) == 10 * NANO
    assert chain.signal.holding(0)["qty"] == 10 * NANO
    assert chain.signal.holding(0)["open_buy"] == 0
    assert chain.risk.counters["approved"] == 1 and chain.gateway.counters["fills"] == 1


def test_every_stream_is_numbered_without_holes_and_its_checksums_are_right():
    chain = Chain(buy_at_ask(1))
    for i in range(200):
        chain.inline.run(quote(1000 + i * 20_000_000, 10000 + i % 3, 10001 + i % 3))
    chain.inline.finish()
    for stage in chain.stages:
        stored = chain.stored(stage.name)
        seqs = [int(h["event"]) & ((1 << schema.SEQ_BITS) - 1) for h, _ in stored]
        assert seqs == list(range(1, len(seqs) + 1)), stage.name
        total = 0
        for head, body in stored:
            assert checksum(body.tobytes()) == int(head["checksum"])
            total += int(head["checksum"])
        assert stage.stored == (len(stored), total % 2**64)
        assert stage.counters["events_stored"] == len(stored)


def test_refused_intents_are_told_to_the_strategy():
    seen = []

    def on_event(c, add):
        if c.event == 1 and not seen:
            add(**BUY, price=int(c.book["ask"]), qty=5000 * NANO)
            seen.append(None)
        if c.event == 3:
            seen.append((int(c.order_event["kind"]), int(c.order_event["reason"]), c.open_buy))

    chain = Chain(on_event)
    chain.inline.run(quote(1000, 10000, 10001))
    assert seen[1:] == [(KIND.DENIED, schema.REASON.ORDER_SIZE, 0)]
    assert chain.risk.counters["denied"] == 1
    assert chain.wire.submitted == 0


def test_an_exception_in_a_python_strategy_stops_the_stage():
    def boom(c, add):
        raise RuntimeError("no model loaded")

    chain = Chain(boom)
    with pytest.raises(RuntimeError, match="no model loaded"):
        chain.inline.run(quote(1000, 10000, 10001))
    assert chain.wire.submitted == 0


@pytest.mark.parametrize("link", [
    "feed.book", "book.signal", "book.risk", "book.ledger", "signal.risk", "risk.gateway",
    "gateway.signal", "gateway.risk", "gateway.ledger", "ledger.risk"])
def test_each_link_filled_in_turn_loses_nothing(link):
    """The reader of one link stands still until everything upstream stands still too."""
    reader = link.split(".")[1]
    chain = Chain(buy_at_ask(1), capacity={link: 4096 if link == "feed.book" else 32})
    frozen = [s for s in chain.stages if s.name != reader]
    sent = 0
    idle = 0
    quotes = 600
    i = 0
    while idle < 50 and i < quotes:
        taken = chain.feed.put_many(quote(10**9 + i, 10000 + i % 5, 10001 + i % 5))
        if taken:
            sent += taken
            i += 1
        moved = sum(s.do_work(8) for s in frozen)
        idle = 0 if taken or moved else idle + 1
    for _ in range(20_000):                         # now the reader wakes up
        moved = sum(s.do_work(8) for s in chain.stages)
        if not moved:
            for s in chain.stages:
                s.flush()                       # what the loop's host does when idle
            if not sum(s.do_work(8) for s in chain.stages):
                break
    assert chain.book.counters["records_in"] == sent
    intents = chain.signal.counters["intents"]
    risk = chain.risk.counters
    assert risk["approved"] + risk["denied"] == intents > 0
    events = chain.bodies("gateway", schema.ORDER_EVENT)
    firsts = [int(e["order"]) for e in events
              if int(e["kind"]) in (KIND.SENT, KIND.DENIED, KIND.DROPPED)]
    assert sorted(firsts) == sorted(set(firsts)) and len(firsts) == intents


def test_a_full_store_link_stops_the_stage_and_says_so():
    chain = Chain(buy_at_ask(1), capacity={"book.store": 64, "feed.store": 128})
    for i in range(100):
        chain.feed.put_many(quote(1000 + i, 10000, 10001))
    taken = chain.feed.counters["records_out"]
    assert 0 < taken < 200 and chain.feed.counters["credit_stalls"] > 0
    chain.stored("feed")
    assert chain.feed.put_many(quote(5000, 10000, 10001)) == 2


def test_a_link_of_another_record_is_refused():
    from hftpipe import build, config
    from tests.chain import table
    links = build.PrivateLinks()
    links._ends["feed.book"] = links._ends["signal.risk"]
    with pytest.raises(SchemaError, match="must be the producer end of market"):
        build.stages(("feed",), links, config.loads("", env={}), table())


def test_a_corrupt_sequence_number_stops_the_stage():
    chain = Chain(lambda c, add: None)
    chain.feed.put_many(quote(1000, 10000, 10001))
    view = chain.links.producer("feed.book").claim(1)
    # The array leaves out the slot's first word, the ring's own: find it from a field's place.
    at = view["event"].__array_interface__["data"][0] - schema.MARKET.offsets["event"]
    assert ctypes.c_uint64.from_address(at - 64).value == 2     # the record before it
    ctypes.c_uint64.from_address(at).value = 1 << 40
    with pytest.raises(SchemaError, match="corrupt"):
        chain.book.do_work(64)


# ---------------------------------------------------------------- what a strategy may ask for

def test_an_instrument_that_is_not_in_the_table_is_refused_not_replaced():
    told = []

    def ask(c, add):
        if c.event == 1 and not told:
            told.append(None)
            add(**BUY, price=int(c.book["ask"]), qty=NANO, instrument=7)

    chain = Chain(ask)
    chain.inline.run(quote(1000, 10000, 10001))
    (intent,) = chain.bodies("signal", schema.INTENT)
    (verdict,) = chain.bodies("risk", schema.VERDICT)
    assert intent["instrument"] == verdict["instrument"] == 7
    assert verdict["reason"] == schema.REASON.UNKNOWN_INSTRUMENT
    assert chain.wire.submitted == 0 and chain.signal.holding(0)["open_buy"] == 0


def test_a_refused_cancel_takes_nothing_back():
    """Its denial carried the cancel's quantity, which the strategy's open quantity lost."""
    done = []

    def ask(c, add):
        if c.event == 1 and not done:
            done.append(1)
            add(**BUY, price=int(c.book["ask"]) - NANO // 10, qty=5 * NANO)
            add(side=1, type=schema.ORDER_TYPE.LIMIT, tif=schema.TIF.DAY, qty=5 * NANO,
                price=NANO, action=schema.ACTION.CANCEL, target=99)

    chain = Chain(ask, latency=10**12)              # the order stays open
    chain.inline.run(quote(1000, 10000, 10001))
    events = chain.bodies("gateway", schema.ORDER_EVENT)
    kinds = [(int(e["kind"]), int(e["reason"])) for e in events]
    assert kinds == [(KIND.SENT, 0), (KIND.DENIED, schema.REASON.NOT_OPEN)]
    assert chain.signal.holding(0)["open_buy"] == 5 * NANO


# ---------------------------------------------------------------- durability = "host"

def waiting(on_event=None, age=1_000_000):
    """A chain with an approved order, of which nothing is on disk yet."""
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, stages=[s.name for s in topology.STAGES], token_key=5)
    control = _control.Control(memory)
    assert control.resume(control.halt_epoch)
    chain = Chain(on_event or once(buy_at_ask()), latency=10**12, control=control, durable=True)
    _clock.set_virtual(age, age)
    chain.feed.put_many(quote(age, 10000, 10001))
    passes(chain)
    assert chain.risk.counters["approved"] == 1
    return chain, control


def passes(chain, count=5):
    for _ in range(count):
        for stage in chain.stages:
            stage.do_work(64)


def seqs(chain):
    """Sequence numbers of the intent and of risk's last event."""
    (intent,) = (h for h, _ in chain.stored("signal") if h["record"] == schema.RECORD.INTENT)
    verdict = max(int(h["event"]) for h, _ in chain.stored("risk"))
    return [schema.split_event(int(e))[1] for e in (intent["event"], verdict)]


def test_an_order_is_not_sent_before_intent_and_verdict_are_on_disk():
    chain, control = waiting()
    intent, verdict = seqs(chain)
    assert intent >= 1 and verdict >= 1
    for signal, risk in ((0, 0), (10**9, 0), (0, 10**9), (intent - 1, verdict),
                         (intent, verdict - 1)):
        control.set_durable(schema.STREAM.SIGNAL, signal)
        control.set_durable(schema.STREAM.RISK, risk)
        passes(chain, 50)
        assert chain.gateway.counters["orders_sent"] == 0, (signal, risk)
        assert chain.bodies("gateway", schema.ORDER_EVENT) == []
    control.set_durable(schema.STREAM.SIGNAL, intent)
    control.set_durable(schema.STREAM.RISK, verdict)
    passes(chain)
    assert [int(e["kind"]) for e in chain.bodies("gateway", schema.ORDER_EVENT)] == [KIND.SENT]
    assert chain.gateway.counters["orders_sent"] == 1


def test_what_risk_stores_later_is_not_waited_for():
    chain, control = waiting()
    intent, verdict = seqs(chain)
    control.set_durable(schema.STREAM.SIGNAL, intent)
    control.stage(topology.INDEX["risk"]).set("events_stored", verdict + 100)
    passes(chain)
    assert chain.gateway.counters["orders_sent"] == 0
    control.set_durable(schema.STREAM.RISK, verdict)
    passes(chain)
    assert chain.gateway.counters["orders_sent"] == 1


def test_an_order_that_waited_too_long_for_the_disk_is_dropped():
    chain, control = waiting()
    _clock.set_virtual(2 * 10**9, 2 * 10**9)
    passes(chain)
    (event,) = chain.bodies("gateway", schema.ORDER_EVENT)
    assert (event["kind"], event["reason"]) == (KIND.DROPPED, schema.REASON.EXPIRED)
    for stream in (schema.STREAM.SIGNAL, schema.STREAM.RISK):
        control.set_durable(stream, 10**9)
    passes(chain)
    assert chain.gateway.counters["orders_sent"] == 0


def test_a_halt_while_an_order_waits_for_the_disk_wins():
    chain, control = waiting()
    control.halt()
    for stream in (schema.STREAM.SIGNAL, schema.STREAM.RISK):
        control.set_durable(stream, 10**9)
    passes(chain)
    (event,) = chain.bodies("gateway", schema.ORDER_EVENT)
    assert (event["kind"], event["reason"]) == (KIND.DROPPED, schema.REASON.HALTED)
    assert chain.gateway.counters["orders_sent"] == 0


# ---------------------------------------------------------------- the end of a run

def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_drain_waits_for_open_orders_however_long_the_run_was():
    """Time without work counted from the start of the run: a drain took no fill any more."""
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, stages=("gateway",))
    control = _control.Control(memory)
    chain = Chain(once(buy_at_ask()), latency=10**12)
    _clock.set_virtual(1000, 1000)
    chain.feed.put_many(quote(1000, 10000, 10001))
    for stage in chain.stages:
        stage.do_work(64)
    assert chain.gateway.counters["orders_open"] == 1
    (intent,) = chain.bodies("signal", schema.INTENT)

    host = Host([chain.gateway], control, WAIT_SLEEP)
    thread = threading.Thread(target=host.run, daemon=True)
    thread.start()

    def passes(count):
        seen = host.passes
        eventually(lambda: host.passes >= seen + count or not thread.is_alive())

    second = 10**9
    passes(2)
    _clock.set_virtual(60 * second, 60 * second)    # nothing to do for a minute
    passes(2)
    control.request_stop(_control.DRAIN)
    passes(2)
    _clock.set_virtual(61 * second, 61 * second)
    passes(2)
    assert thread.is_alive()
    fill = numpy.zeros(1, schema.dtype(schema.UPDATE))
    fill["order"], fill["kind"], fill["side"] = intent["event"], KIND.FILL, 1
    fill["price"], fill["qty"], fill["cum_qty"] = intent["price"], intent["qty"], intent["qty"]
    fill["execution"] = 1
    assert chain.links.producer("updates.gateway").push(fill.tobytes())
    eventually(lambda: chain.gateway.counters["fills"] == 1)
    passes(2)
    _clock.set_virtual(62 * second, 62 * second)
    thread.join(20)
    assert not thread.is_alive()


def test_a_drain_does_not_wait_for_ever_for_an_order():
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, stages=("gateway",))
    control = _control.Control(memory)
    chain = Chain(once(buy_at_ask()), latency=10**12)
    _clock.set_virtual(1000, 1000)
    chain.feed.put_many(quote(1000, 10000, 10001))
    for stage in chain.stages:
        stage.do_work(64)
    control.request_stop(_control.DRAIN)
    host = Host([chain.gateway], control, WAIT_SLEEP)
    thread = threading.Thread(target=host.run, daemon=True)
    thread.start()
    eventually(lambda: host.passes > 2)
    assert thread.is_alive()
    _clock.set_virtual(10**10, 10**10)
    thread.join(20)
    assert not thread.is_alive() and chain.gateway.counters["orders_open"] == 1


# ---------------------------------------------------------------- the simulated venue

def l3(ts, kind, ref, qty=0, price=0, side=1):
    """One record of an order-by-order feed; price in cents."""
    out = numpy.zeros(1, schema.dtype(schema.MARKET))
    out["ts_recv"], out["ts_venue"], out["kind"], out["ref"] = ts, ts, kind, ref
    out["qty"], out["price"], out["side"] = qty * NANO, price * NANO // 100, side
    out["flags"] = schema.MARKET_FLAG.LAST
    return out


def test_executions_without_a_price_use_up_the_queue_before_us():
    """ITCH names the order that traded, not its price: a resting order never moved up."""
    kinds = schema.MARKET_KIND

    def ask(c, add):
        if c.event == 1 and c.book["ask"] and c.book["bid"] and not c.open_buy and not c.qty:
            add(side=1, type=schema.ORDER_TYPE.LIMIT, tif=schema.TIF.DAY,
                action=schema.ACTION.NEW, price=int(c.book["bid"]), qty=10 * NANO)

    chain = Chain(ask, latency=1)
    for records in (l3(1000, kinds.ADD, 1, 30, 9999), l3(2000, kinds.ADD, 2, 30, 10001, -1),
                    l3(3000, kinds.ADD, 3, 50, 9999)):      # behind us
        assert chain.inline.run(records) == 1
    assert chain.wire.open_orders == 1
    chain.inline.run(l3(4000, kinds.EXECUTE, 1, 30))        # all that stood before us
    chain.inline.finish()
    assert chain.gateway.counters["fills"] == 0
    chain.inline.run(l3(5000, kinds.EXECUTE, 3, 10))        # and now it would have been us
    chain.inline.finish()
    (fill,) = [e for e in chain.bodies("gateway", schema.ORDER_EVENT)
               if e["kind"] == KIND.FILL]
    assert (int(fill["qty"]), int(fill["price"])) == (10 * NANO, 9999 * NANO // 100)
