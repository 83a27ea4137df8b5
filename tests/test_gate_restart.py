"""What the gate knew survives a restart, also after SIGKILL: breaker, strategies, the day."""
import json
import os
import signal
from decimal import Decimal

import pytest

from hftpipe import schema
from hftpipe.store import queries
from tests.models.live import database, runs, until

pytestmark = [pytest.mark.venue, pytest.mark.db]
SIGN = {"buy": 1, "sell": -1}


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


def shown(live):
    code, out, err = live.hp("risk", "show", "-o", "json")
    assert code == 0, err
    return json.loads(out)


def killed(live):
    """SIGKILL of the supervisor: everything dies with it, the rings stay for the next start."""
    os.kill(live.popen.pid, signal.SIGKILL)
    live.popen.wait()


def resumed(live):
    """A killed run halts the next one; let it trade."""
    live.up("halted")
    code, _, err = live.hp("resume", "--reason", "test")
    assert code == 0, err
    return live


def refused(live, count=5):
    """Wait for *count* more refusals; nothing that opens a position may be sent meanwhile."""
    before, denied = len(openings(live)[0]), live.counter("risk", "denied")
    until(lambda: live.counter("risk", "denied") >= denied + count, "refusals", live.popen)
    assert len(openings(live)[0]) == before


def test_an_open_breaker_stays_open_until_a_person_closes_it(run):
    live = run().up().trades(1)
    code, _, err = live.hp("risk", "breaker", "open")
    assert code == 0, err
    until(lambda: shown(live)["breaker"] == "open", "it is open", live.popen)
    until(lambda: live.counter("gateway", "orders_open") == 0, "what was open is cancelled",
          live.popen)
    killed(live)

    again = resumed(run())
    assert (shown(again)["breaker"], shown(again)["breaker_cause"]) == ("open", "a person")
    refused(again)
    assert not openings(again)[0]           # what reduces the position that is held may pass
    code, _, err = again.hp("risk", "breaker", "close")
    assert code == 10 and "--reason" in err
    code, _, err = again.hp("risk", "breaker", "close", "--reason", "looked at it")
    assert code == 0, err
    again.trades(1)
    again.popen.terminate()
    assert again.end() == 0 and again.document["denied"]["breaker"] >= 5

    third = run().up()
    assert shown(third)["breaker"] == "closed"
    third.trades(1)


def test_a_half_open_breaker_comes_back_open_for_what_became_of_its_test_is_not_known(run):
    """And goes its way again: half open after the cooldown, then exactly one test order."""
    live = run().up().trades(1)
    live.popen.terminate()
    assert live.end() == 0
    with database(live.path) as c:
        c.execute(
            "INSERT INTO hftpipe.risk_event SELECT run, stream, seq + 1, ts, ts_in, aux, checksum, "
            'event + 1, cause, halt_epoch, armed_epoch, %s, %s, instrument, %s, %s, %s '
            "FROM hftpipe.risk_event WHERE run = %s ORDER BY seq DESC LIMIT 1",
            (schema.BREAKER.OPEN, schema.BREAKER.HALF_OPEN, schema.RISK_EVENT_KIND.BREAKER,
             schema.REASON.BREAKER, schema.BREAKER_CAUSE.FAILURES, live.run))
    # Long enough to be seen open, and a quiet period in which only the test order passes.
    again = run("--set", "risk.breaker_cooldown_ms=5000",
                "--set", "risk.breaker_quiet_ms=600000").up()
    found = shown(again)
    assert (found["breaker"], found["breaker_cause"]) in (
        ("open", "a failed test order"), ("half open", "a failed test order"))
    until(lambda: shown(again)["breaker"] == "half open", "the cooldown is over", again.popen)
    # Not "== 1": what reduces what it bought may follow before anybody looks.
    until(lambda: again.counter("gateway", "orders_sent") >= 1, "the test order", again.popen)
    denied = again.counter("risk", "denied")
    until(lambda: again.counter("risk", "denied") >= denied + 5, "refusals", again.popen)
    again.popen.terminate()
    assert again.end() == 0 and again.document["denied"]["breaker"] >= 5
    opening, orders = openings(again)
    assert len(opening) == 1, (opening, orders)


def openings(live):
    """Of the run's orders as the venue logged them: those that did not reduce what it held."""
    held, orders, opening = {}, {}, []
    for line in live.venue_log():
        if line["kind"] == "order":
            orders[line["id"]] = line
            side, qty = SIGN[line["side"]], Decimal(line["qty"])
            position = held.get(line["symbol"], 0)
            if line["client_order_id"].startswith(f"hp-{live.run:x}-") \
                    and not (position * side < 0 and qty <= abs(position)):
                opening.append(line)
        elif line["kind"] == "event" and line["id"] in orders \
                and line["event"] in ("fill", "partial_fill"):
            order = orders[line["id"]]
            held[order["symbol"]] = held.get(order["symbol"], 0) \
                + SIGN[order["side"]] * Decimal(line["qty"])
    return opening, list(orders.values())


def test_a_disabled_strategy_stays_disabled(run):
    few = ("--set", "risk.max_strategy_orders=2")
    live = run(*few).up()
    until(lambda: shown(live)["disabled_strategies"], "a strategy is disabled", live.popen)
    disabled = shown(live)["disabled_strategies"]
    killed(live)
    again = resumed(run())                  # without the limit: it is not what keeps it out
    assert set(disabled) <= set(shown(again)["disabled_strategies"])
    name = ("imbalance", "model")[disabled[0]]
    code, _, err = again.hp("risk", "rearm", name, "--reason", "looked at its fills")
    assert code == 0, err
    until(lambda: disabled[0] not in shown(again)["disabled_strategies"], "it is enabled again",
          again.popen)
    again.trades(1)                         # the ledger has told risk which day it is
    again.popen.terminate()
    assert again.end() == 0
    with database(live.path) as c:
        left = queries.gate_state(c.info.dsn, again.run + 1, "demo", day=True)
        assert disabled[0] not in left["latched"] and left["state"] == schema.BREAKER.CLOSED
        # From the first order on, where the day before is not known.
        began = c.execute("SELECT run, CASE \"limit\" WHEN 0 THEN 0 ELSE seq END "
                          "FROM hftpipe.risk_event WHERE kind = %s "
                          "ORDER BY run DESC, seq DESC LIMIT 1",
                          (schema.RISK_EVENT_KIND.DAY,)).fetchone()
        approved = dict(c.execute(
            'SELECT i.strategy, count(*) FROM hftpipe.verdict v JOIN hftpipe.intent i '
            'ON i.run = v.run AND i.event = v."order" WHERE v.reason = 0 AND v.action = 1 '
            "AND (v.run, v.seq) > (%s, %s) GROUP BY 1", began).fetchall())
        assert left["executions"] == approved and left["orders"] == sum(approved.values())
        assert left["day"] > 20_000


def test_a_database_that_cannot_tell_is_no_start(run, tmp_path):
    live = run().up().trades(1)
    live.popen.terminate()
    assert live.end() == 0
    with database(live.path) as c:
        c.execute("ALTER TABLE hftpipe.risk_event RENAME COLUMN detail TO elsewhere")
    failed = run()
    failed.popen.wait(120)
    out, err = failed.popen.communicate()
    assert failed.popen.returncode != 0
    assert "cannot be read" in err and "Traceback" not in err, (out, err)
