"""A real run is asked things while it trades: figures, board, desk and record agree."""
import json
import os
import signal

import pytest

from hftpipe import schema, shm
from tests.models.live import check_rows, database, runs, until

pytestmark = [pytest.mark.venue, pytest.mark.db]
KIND = schema.FIGURE_KIND


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


def figures(c, run):
    """``{(stream, kind): rows}`` of a run."""
    return {(stream, kind): count for stream, kind, count in c.execute(
        "SELECT stream, kind, count(*) FROM hftpipe.figure WHERE run = %s GROUP BY 1, 2", (run,))}


def test_what_people_ask_reaches_the_gate_the_record_and_the_next_run(run):
    live = run("--set", "analyst.bar=1s", "--set", "analyst.least=3").up().trades(2)
    code, out, _ = live.hp("risk", "show", "-o", "json")
    found = json.loads(out)
    assert code == 0 and found["breaker"] == "closed" and found["paused"] == []
    def limits():
        code, out, err = live.hp("risk", "show", "-o", "json")
        assert code == 0, err
        return {x["name"]: x for x in json.loads(out)["limits"]}

    assert limits()["max_daily_loss"]["limit"] == 5000 * 10**9
    # Two executions may have left nothing open.
    use = until(lambda: (x := limits()["max_open_positions"])["use"] > 0 and x, "a position",
                live.popen)
    assert use["percent"] > 0
    code, out, _ = live.hp("risk", "show")
    assert code == 0 and "max_total_notional" in out and " %" in out

    # The board shows what the ledger has, and the analyst makes figures of it.
    board = shm.board(live.run)
    until(lambda: any(r.qty for r in board.rows()) and all(r.mark > 0 for r in board.rows()),
          "positions and marks on the board", live.popen)
    assert board.basis >> schema.SEQ_BITS == schema.STREAM.GATEWAY

    asked = [("pause", "AAPL"), ("set", "max_daily_loss=900")]
    for what in asked:
        code, _, err = live.hp("risk", *what)
        assert code == 0, err
    assert json.loads(live.hp("risk", "show", "-o", "json")[1])["paused"] == ["AAPL"]
    refused = live.counter("risk", "denied")
    until(lambda: live.counter("risk", "denied") > refused, "orders are refused", live.popen)
    sent = live.counter("gateway", "orders_sent")
    until(lambda: live.counter("gateway", "orders_sent") > sent, "MSFT trades on", live.popen)
    for what, expected in ((("resume", "AAPL"), 10), (("set", "max_daily_loss=901"), 10),
                           (("pause", "NONE"), 2), (("set", "max_daily_loss=x"), 4)):
        code, _, err = live.hp("risk", *what)
        assert code == expected and err.startswith("error: "), (what, err)
    begin = live.counter("analyst", "events_stored")
    until(lambda: live.counter("analyst", "events_stored") > begin + 40, "figures", live.popen)
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    assert live.document["denied"]["paused"] > 0
    with database(live.path) as c:
        assert check_rows(c, live.run, live.recorded())["operator"] == 2
        made = figures(c, live.run)
        assert made[schema.STREAM.OPERATOR, KIND.PAUSE] == 1
        assert made[schema.STREAM.OPERATOR, KIND.LIMIT] == 1
        for kind in (KIND.SESSION, KIND.EQUITY, KIND.WEEK_PNL, KIND.MONTH_PNL, KIND.PEAK,
                     KIND.VAR_95, KIND.VAR_99):
            assert made.get((schema.STREAM.ANALYST, kind)), schema.FIGURE_KIND.label(kind)
        done = c.execute("SELECT command, outcome, who FROM hftpipe.operator_event "
                         "WHERE run = %s ORDER BY id", (live.run,)).fetchall()
    assert [(command, outcome) for command, outcome, _ in done] == [
        ("pause", "done"), ("limit", "done"), ("resume-symbol", "refused"), ("limit", "refused")]
    assert all("(pid " in who for *_, who in done)

    # Why: every check that was looked at with its margin, down to the one that refused.
    for which, refused in (("--last", False), ("--last-denied", True)):
        code, out, err = live.hp("why", which, "-o", "json")
        assert code == 0, err
        told = json.loads(out)
        used = {k["check"]: k["used_permille"] for k in told["checks"]}
        beyond = [name for name, permille in used.items() if permille > 1000]
        reason = told["verdict"]["reason"]
        assert (reason != "none") == refused or not refused
        assert beyond == ([] if reason == "none" else [reason]) and len(used) > 3
        assert all(k["margin_permille"] in (None, 1000 - k["used_permille"])
                   for k in told["checks"])
        code, out, err = live.hp("why", which)
        assert code == 0 and "looked at, nearest to its limit first" in out, err

    # What was tightened begins the next run, before anything may be ordered.
    again = run().up()
    code, _, err = again.hp("risk", "set", "max_daily_loss=901")
    assert code == 10, err
    os.kill(again.popen.pid, signal.SIGKILL)
    assert again.end() == -signal.SIGKILL
    assert "risk      kept: pause AAPL" in again.err
    assert "risk      kept: limit max_daily_loss = 900" in again.err
    code, out, err = again.hp("risk", "pause", "MSFT")
    assert code == 3, "nobody listens"
    until(lambda: again.hp("risk", "show")[0] == 7, "what is on the board is old")


def test_a_silent_analyst_closes_the_gate_until_it_speaks_again(run):
    live = run("--set", "risk.market_hours=true",
               "--set", "risk.max_orders_per_minute=100000").up().trades(1)
    analyst = live.pid("analyst")

    def closed():
        """Ten refusals in a row, and nothing sent meanwhile."""
        sent, refused = live.counter("gateway", "orders_sent"), live.counter("risk", "denied")
        until(lambda: live.counter("risk", "denied") >= refused + 10
              or live.counter("gateway", "orders_sent") > sent, "orders", live.popen)
        return live.counter("gateway", "orders_sent") == sent

    os.kill(analyst, signal.SIGSTOP)
    try:
        until(closed, "the session has lapsed", live.popen)
        sent = live.counter("gateway", "orders_sent")
    finally:
        os.kill(analyst, signal.SIGCONT)
    until(lambda: live.counter("gateway", "orders_sent") > sent + 20, "it trades again",
          live.popen)
    # Killed, it is started again in place, and nobody notices but the log.
    os.kill(analyst, signal.SIGKILL)
    until(lambda: live.pid("analyst") != analyst, "another analyst", live.popen)
    begin = live.counter("analyst", "events_stored")
    until(lambda: live.counter("analyst", "events_stored") > begin + 4, "figures", live.popen)
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    assert live.document["denied"]["old_figure"] > 0        # that of the session
    assert live.control.trading == "armed"


def test_a_run_starts_and_trades_with_every_check_off_that_may_be(run, tmp_path):
    """And with each of the others at its default."""
    from hftpipe.limits import LIMITS
    off = [limit.name for limit in LIMITS if limit.off is not None]
    path = tmp_path / "off.toml"
    path.write_text("[risk]\n" + "".join(f'{name} = "off: a test of it"\n' for name in off))
    live = run("-C", path).up().trades(1)
    code, out, _ = live.hp("risk", "show", "-o", "json")
    assert code == 0
    assert {x["name"] for x in json.loads(out)["limits"] if x["limit"] is None} == set(off)
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
