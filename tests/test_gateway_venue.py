"""The gateway against the local venue: refusals by their text, duplicates, the rate limit."""
import json
import urllib.request
from contextlib import contextmanager

import numpy
import pytest

from hftpipe import build, config, schema
from hftpipe._clock import now_ns, utc_ns
from hftpipe.alpaca._http import AlpacaWire
from hftpipe.alpaca.rest import SPARE, Rest, VenueError
from hftpipe.errors import Exit
from hftpipe.venue import read_log, server
from tests.chain import table
from tests.models.live import DEADLINE, database, runs, until

pytestmark = pytest.mark.venue
NANO = 10**9
MINUTE = 60 * NANO
PAUSE = NANO / 4                # of cancels, after a 429 to one
K, R, T = schema.ORDER_EVENT_KIND, schema.REASON, schema.ORDER_TYPE
RUN = 7


def order(seq, instrument=0, side=1, qty=1, price=0, ts=0, **more):
    row = numpy.zeros(1, schema.dtype(schema.ORDER))[0]
    for name, value in {
            "order": schema.event_id(schema.STREAM.SIGNAL, seq), "instrument": instrument,
            "side": side, "qty": int(qty * NANO), "tif": schema.TIF.DAY,
            "action": schema.ACTION.NEW, "price": int(price * NANO),
            "type": T.LIMIT if price else T.MARKET, "ts_recv": ts, **more}.items():
        row[name] = value
    return row


class Side:
    """A venue, a wire to it, and what asks it behind the wire's back."""

    def __init__(self, venue, symbols, **wire):
        self.venue = venue
        self.wire = AlpacaWire(venue["rest"], venue["key"], venue["secret"], RUN, symbols,
                               **{"rate_per_minute": 0, **wire})
        self.wire.open()

    def ask(self, method, path, body=None):
        request = urllib.request.Request(
            self.venue["rest"] + path, json.dumps(body).encode() if body is not None else None,
            {"APCA-API-KEY-ID": self.venue["key"], "APCA-API-SECRET-KEY": self.venue["secret"]},
            method=method)
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return json.loads(answer.read() or b"null")

    def answer(self, *args, **more):
        """Send one order; what became of it."""
        assert self.wire.send(order(*args, **more)) == 1
        found = until(self.wire.answer, "an answer")
        return found["kind"], found["reason"]


@contextmanager
def side(*options, symbols=("ACME", "BTC/USD"), **wire):
    with server.spawn("--symbols", ",".join(symbols), "--rate", "0", *options) as (_, venue):
        made = Side(venue, list(symbols), **wire)
        try:
            yield made
        finally:
            made.wire.close()


# ---------------------------------------------------------------- what is refused, and why

def test_the_venues_refusals_are_told_apart(tmp_path):
    with side("--rate-limit", "0") as s:
        assert s.answer(1, qty=10**6, price=1) == (K.REJECTED, R.VENUE_FUNDS)
        assert s.answer(2, side=-1, qty=1.5, price=900) == (K.REJECTED, R.VENUE_SHORT)
        assert s.answer(3, instrument=1, side=-1, price=900, tif=schema.TIF.GTC) == (
            K.REJECTED, R.VENUE_FUNDS)
        assert s.answer(4, price=1) == (K.ACKED, 0)
        assert s.answer(5, side=-1, price=1) == (K.REJECTED, R.VENUE_WASH)
        assert s.answer(6, side=-1, price=900) == (K.REJECTED, R.VENUE_WASH), "a short beside a buy"
        assert s.answer(7, price=1.001) == (K.REJECTED, 0), "sub-penny: the venue's own word"
        s.ask("DELETE", "/v2/orders")
        assert s.answer(8, qty=5) == (K.ACKED, 0)
        until(lambda: s.ask("GET", "/v2/positions"), "a position")
        assert s.answer(9, side=-1, qty=9, price=900) == (K.REJECTED, R.VENUE_QUANTITY)
        s.ask("PATCH", "/v2/account/configurations", {"no_shorting": True})
        s.ask("DELETE", "/v2/positions")
        until(lambda: not s.ask("GET", "/v2/positions"), "no position")
        assert s.answer(10, side=-1, price=900) == (K.REJECTED, R.VENUE_SHORT)
        s.ask("PATCH", "/v2/account/configurations", {"suspend_trade": True})
        assert s.answer(11, price=1) == (K.REJECTED, R.VENUE_ACCOUNT)


def test_a_duplicate_is_unknown_and_the_venue_has_one(tmp_path):
    """The answer to the first may be lost: that it is a duplicate says that it is there."""
    with side("--rate-limit", "0", "--state", str(tmp_path)) as s:
        assert s.answer(1, price=1) == (K.ACKED, 0)
        assert s.answer(1, price=1) == (K.UNKNOWN, 0)
        assert len(s.ask("GET", "/v2/orders")) == 1
        found = s.ask("GET", f"/v2/orders:by_client_order_id?client_order_id=hp-{RUN:x}-1")
        s.ask("DELETE", f"/v2/orders/{found['id']}")
        until(lambda: not s.ask("GET", "/v2/orders"), "it has ended")
        assert s.answer(1, price=1) == (K.UNKNOWN, 0), "an id is used up for ever"
    assert sum(line["kind"] == "order" for line in read_log(tmp_path)) == 1


@pytest.mark.db
@pytest.mark.slow
def test_an_account_that_may_not_trade_halts_the_run(tmp_path):
    with runs(tmp_path / "run") as run:
        live = run().up().trades(2)
        venue = json.loads((live.path / "private.json").read_text())["venue"]
        request = urllib.request.Request(
            venue["rest"] + "/v2/account/configurations", b'{"suspend_trade": true}',
            {"APCA-API-KEY-ID": venue["key"], "APCA-API-SECRET-KEY": venue["secret"]},
            method="PATCH")
        urllib.request.urlopen(request, timeout=DEADLINE).close()
        until(lambda: live.control.trading == "halted", "it halts", live.popen)
        assert live.hp("status")[0] == Exit.HALTED
        live.popen.terminate()
        live.end()
        with database(live.path) as c:
            ((count,),) = c.execute("SELECT count(*) FROM hftpipe.order_event WHERE reason = %s",
                                    (R.VENUE_ACCOUNT,)).fetchall()
        assert count


# ---------------------------------------------------------------- the rate limit

LIMIT = 40


def in_one_minute(scenario):
    """What *scenario* gives; done anew when the minute, which the venue counts by, ended in it."""
    for _ in range(5):
        minute = utc_ns() // MINUTE
        found = scenario()
        if utc_ns() // MINUTE == minute:
            return found
    raise AssertionError("this machine is too slow: no scenario came to its end in one minute")



def test_the_venues_limit_is_never_met_and_leaves_a_reserve_for_cancels():
    """Our own limit is far above the venue's: its headers are what is kept to."""
    def scenario():
        with side("--rate-limit", str(LIMIT), rate_per_minute=60000, burst=1000, reserve=6,
                  connections=1) as s:
            ids = []
            for seq in range(1, 3 * LIMIT):
                if s.wire.send(order(seq, price=1)) != 1:
                    break
                found = until(s.wire.answer, "an answer")
                ids.append((int(found["venue_id"]), int(found["venue_id_low"])))
            again = s.wire.send(order(500, price=1))
            for seq, pair in enumerate(ids[:6], 1):
                s.wire.send_cancel(schema.event_id(schema.STREAM.SIGNAL, seq), *pair)
                until(lambda: s.wire.answer() is None and not s.wire.outstanding, "its answer")
            return again, s.wire.counters()
    again, counters = in_one_minute(scenario)
    assert again == 0
    assert (counters["sent"], counters["cancels"]) == (LIMIT - 6, 6)
    assert counters["limited"] == counters["rejected"] == counters["cancels_rejected"] == 0


def test_what_others_send_for_the_account_counts():
    """The venue's count is the one that all senders share."""
    def scenario():
        with side("--rate-limit", str(LIMIT), rate_per_minute=60000, burst=1000, reserve=2,
                  connections=1) as s:
            for _ in range(LIMIT - 10):
                s.ask("GET", "/v2/clock")
            sent = 0
            while s.wire.send(order(sent + 1, price=1)) == 1:
                sent += 1
                until(s.wire.answer, "an answer")
            return sent, s.wire.counters()["limited"]
    assert in_one_minute(scenario) == (8, 0)


def test_slow_senders_leave_the_rest_of_the_minute_to_orders_and_cancels():
    def scenario():
        with side("--rate-limit", str(LIMIT)) as s:
            rest = Rest(s.venue["rest"], s.venue["key"], s.venue["secret"])
            asked = 0
            with pytest.raises(VenueError, match="waits for the venue's rate limit") as e:
                while True:
                    rest.clock()
                    asked += 1
            assert e.value.status == 429
            assert rest.cancel_all() == 0, "what takes risk away goes all the same"
            rest.close()
            guard = Rest(s.venue["rest"], s.venue["key"], s.venue["secret"], urgent=True)
            guard.clock()
            assert guard.orders() == [], "who guards may use the rest"
            guard.close()
            return asked
    assert in_one_minute(scenario) == LIMIT - SPARE


def test_cancels_go_on_through_a_storm_of_429(tmp_path):
    """Orders are held; a cancel that the storm refused is asked again until it is done."""
    (tmp_path / "chaos.toml").write_text(
        '[chaos]\nbegin = "order"\nafter = "1s"\nstop = "3s"\n'
        '[storm_429]\nevery = "1ms"\nfor = "2s"\n')
    with side("--rate-limit", "0", "--chaos", str(tmp_path / "chaos.toml"), "--state",
              str(tmp_path / "venue"), rate_per_minute=600, burst=20, reserve=4) as s:
        assert s.wire.send(order(1, price=1)) == 1
        first = until(s.wire.answer, "an answer")
        assert first["kind"] == K.ACKED
        seq = 1

        def stormy():
            nonlocal seq
            if s.wire.send(order(seq + 1, price=1)) == 1:
                seq += 1
                until(s.wire.answer, "an answer")
            return s.wire.counters()["limited"]
        until(stormy, "the storm")
        assert s.wire.send(order(900, price=1)) == 0, "orders are held"
        mine = schema.event_id(schema.STREAM.SIGNAL, 1)
        pair = int(first["venue_id"]), int(first["venue_id_low"])
        tries = 0

        def cancelled():
            nonlocal tries
            if s.wire.outstanding == 0 and s.wire.send_cancel(mine, *pair) == 1:
                tries += 1
            found = s.wire.answer()
            return s.wire.outstanding == 0 and tries and (
                found is None and s.wire.counters()["cancels_rejected"] < tries)
        began = now_ns()
        until(cancelled, "the cancel is done")
        assert 2 <= tries <= 2 + (now_ns() - began) / PAUSE, "again and again, with a pause between"
    log = read_log(tmp_path / "venue")
    ended = [line for line in log if line["kind"] == "event" and line["event"] == "canceled"]
    assert len(ended) == 1


def test_a_held_order_does_not_keep_the_cancel_behind_it_waiting():
    """It would be too old when the back-off ends: it is dropped at once, and the cancel goes."""
    def scenario():
        with side("--rate-limit", "12", symbols=("ACME",), rate_per_minute=60000, burst=100,
                  reserve=4, connections=1) as s:
            links = build.PrivateLinks()
            (stage,) = build.stages(("gateway",), links, config.loads("", env={}), table(),
                                    wire=lambda _: s.wire)
            orders, steps = links.producer("risk.gateway"), links.consumer("gateway.signal")
            seen = []

            def work():
                """One pass; the steps that were told by now."""
                stage.do_work()
                while (slot := steps.pop()) is not None:
                    e = numpy.frombuffer(slot, schema.dtype(schema.ORDER_EVENT))[0]
                    seen.append((schema.split_event(int(e["order"]))[1], e["kind"], e["reason"]))
                steps.flush()
                return seen

            for seq in range(1, 9):
                assert orders.push(order(seq, price=1, ts=now_ns()).tobytes())
                until(lambda seq=seq: (seq, K.ACKED, 0) in work(), "it is there")
            seen.clear()
            late = order(20, price=1, ts=now_ns())
            cancel = order(1, price=1, ts=now_ns(), action=schema.ACTION.CANCEL)
            assert orders.push(late.tobytes()) and orders.push(cancel.tobytes())
            told = list(work())                     # in one pass
            until(lambda: work() and not s.wire.outstanding, "the answer")
            return told, s.wire.counters()
    told, counters = in_one_minute(scenario)
    assert told == [(20, K.DROPPED, R.BUSY), (1, K.CANCEL_SENT, 0)]
    assert counters["cancels_rejected"] == counters["limited"] == 0
    assert (counters["sent"], counters["cancels"]) == (8, 1)
