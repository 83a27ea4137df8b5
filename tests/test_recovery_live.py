"""Real runs that are killed with -9 and started again: same positions, same P&L, exactly."""
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections import defaultdict
from contextlib import suppress
from fractions import Fraction as F

import pytest

from hftpipe import shm
from tests.models.live import DEADLINE, database, environment, living, marked, runs, until

pytestmark = [pytest.mark.venue, pytest.mark.db]
N = 10**9
SIGN = {"buy": 1, "sell": -1}


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


def twin(lines):
    """Books from the venue's own log, in fractions: {symbol: (qty, cost, realised)}."""
    orders, books = {}, defaultdict(lambda: [F(0), F(0), F(0)])
    for line in lines:
        if line["kind"] == "order":
            orders[line["id"]] = line
        elif line["kind"] == "event" and line["event"] in ("fill", "partial_fill"):
            order = orders[line["id"]]
            book, side = books[order["symbol"]], SIGN[order["side"]]
            qty, price = F(line["qty"]), F(line["price"])
            held, closed = book[0], F(0)
            if held * side < 0:
                closed = min(qty, abs(held))
                part = book[1] * closed / abs(held)
                book[2] += -side * price * closed - part
                book[1] -= part
            book[1] += side * price * (qty - closed)
            book[0] += side * qty
    return {symbol: tuple(book) for symbol, book in books.items()}


def sent(lines):
    return [line["client_order_id"] for line in lines if line["kind"] == "order"]


def opening(live):
    """What the run began with, from the database: {symbol: (qty, cost, realised)}."""
    with database(live.path) as c:
        def found():
            return c.execute("SELECT count(*) FROM hftpipe.account_event WHERE run = %s",
                             (live.run,)).fetchone() != (0,)
        until(found, "the books are stored", live.popen)
        return {symbol: (F(qty, N), F(cost * N + rest, N * N), F(gain * N + more, N * N))
                for symbol, qty, cost, rest, gain, more in c.execute(
                    "SELECT s.symbol, qty, cost, cost_rest, realised, realised_rest "
                    "FROM hftpipe.opening o JOIN hftpipe.instrument s ON s.run = o.run "
                    "AND s.index = o.instrument WHERE o.run = %s", (live.run,))}


def watched(live):
    """Wait until it has begun: from then on SIGTERM ends it in good order."""
    opening(live)
    until(lambda: live.hp("risk", "show")[0] == 0, "the desk is open", live.popen)
    return live


def close(a, b):
    """Equal but for the divisions at reductions: less than 1e-18 each."""
    return len(a) == len(b) and all(
        abs(x - y) < F(1, 10**14) for s in a for x, y in zip(a[s], b[s], strict=True))


def kill(live, everybody):
    """SIGKILL of the supervisor, or of everything at once as a host that goes down would."""
    victims = sorted(marked(live.env)) if everybody else [live.popen.pid]
    # All stand still before the first dies: no one sees another's death and halts for it.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    live.popen.wait()
    until(lambda: not marked(live.env), "everything is dead")


@pytest.mark.parametrize("everybody", [False, True])
def test_a_killed_run_is_started_again_and_goes_on_with_what_it_had(run, everybody):
    live = run().up().trades(5)
    kill(live, everybody)
    assert twin(live.venue_log())
    code, out, err = live.hp("recover", "--dry-run", "-o", "json")
    assert code == 0, err
    first = json.loads(out)
    assert first["events"] and not first["stored"] and first["differences"] is None
    assert shm.runs().get(live.run)
    code, out, err = live.hp("recover", "-o", "json")
    assert code == 0, err
    second = json.loads(out)
    assert not shm.runs().get(live.run)
    assert second["from_run"] == f"{live.run:x}" and second["events"] == first["events"]
    code, out, _ = live.hp("recover", "--dry-run")
    assert code == 0 and "events" not in out and f"of run {live.run:x}" in out

    again = run("--halted").up("disarmed" if everybody else "halted")
    known = opening(again)
    expected = twin(again.venue_log())      # what filled while the venue came up included
    assert close(known, expected)
    code, out, err = again.hp("resume", "--reason", "test")
    assert code == 0, err
    again.trades(again.counter("gateway", "fills") + 3)
    again.popen.terminate()
    assert again.end() == 0
    end = twin(again.venue_log())
    realised = sum(book[2] for book in end.values())
    assert abs(F(again.document["realised"]) - realised) < F(1, 10**7)
    names = sent(again.venue_log())
    assert len(set(names)) == len(names)

    # After an end in good order too; the first equity is that at the last marks.
    third = watched(run("--halted").up("disarmed"))
    assert close(opening(third), end)
    with database(third.path) as c:
        first = c.execute("SELECT equity FROM hftpipe.position_event WHERE run = %s AND cause = 0 "
                          "ORDER BY seq LIMIT 1", (third.run,)).fetchone()
        (at_marks,) = c.execute(
            "SELECT sum(o.realised - o.fees - o.cost + o.qty::numeric * o.mark / 1e9) "
            "FROM hftpipe.opening o WHERE run = %s", (third.run,)).fetchone()
        assert abs(first[0] - 100_000 * N - at_marks) < 10
    third.popen.terminate()
    assert third.end() == 0


def test_executions_that_nobody_heard_of_are_found(run):
    """The process that listens is stopped while orders fill; then the host goes down."""
    live = run().up().trades(3)
    os.kill(live.pid("updates"), signal.SIGSTOP)
    heard = live.counter("updates", "events_stored")
    filled = sum(1 for line in live.venue_log() if line.get("event") in ("fill", "partial_fill"))
    until(lambda: sum(1 for line in live.venue_log()
                      if line.get("event") in ("fill", "partial_fill")) >= filled + 2,
          "fills that nobody hears of", live.popen)
    assert live.counter("updates", "events_stored") == heard
    kill(live, True)
    with database_of(run, live) as again:
        known, expected = opening(again), twin(again.venue_log())
        assert close(known, expected)
        with database(again.path) as c:
            (found,) = c.execute("SELECT recovered FROM hftpipe.account_event WHERE run = %s "
                                 "ORDER BY seq LIMIT 1", (again.run,)).fetchone()
            assert found >= 2
            rows = c.execute("SELECT client_order_id, execution_id, quantity, price "
                             "FROM hftpipe.trades").fetchall()
            truth = {(line["execution_id"]) for line in again.venue_log()
                     if line.get("event") in ("fill", "partial_fill")}
            assert {str(row[1]) for row in rows} == truth and len(rows) == len(truth)
            assert c.execute("SELECT count(*) FROM hftpipe.orders WHERE status IN "
                             "('created', 'sent', 'open', 'partial', 'unknown', "
                             "'pending_cancel') AND run = %s", (live.run,)).fetchone() == (0,)


def database_of(run, live):
    """The run after *live*, halted, and ended in good order."""
    from contextlib import contextmanager

    @contextmanager
    def again():
        # halted: updates had been silent for 2 s before the host went down
        found = watched(run("--halted").up("disarmed", "halted"))
        assert "books and venue differ" not in str(found.directory.latch().halt)
        yield found
        found.popen.terminate()
        assert found.end() == 0
    return again()


def test_a_position_that_changed_behind_our_back_halts_and_is_adopted(run):
    live = run().up().trades(3)
    live.popen.terminate()
    assert live.end() == 0
    log = next((live.path / "venue").glob("*/orders.jsonl"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # Somebody trades by hand: the last order that was filled, once more.
    filled = [line["id"] for line in lines if line.get("event") == "fill"][-1]
    renamed = {"id": str(uuid.uuid4()), "client_order_id": "by-hand", "number": 10**6}
    with log.open("a") as out:
        for line in [line for line in lines if line.get("id") == filled]:
            line |= {k: v for k, v in renamed.items() if k in line}
            if line.get("execution_id"):
                line["execution_id"] = str(uuid.uuid4())
            out.write(json.dumps(line) + "\n")

    again = watched(run().up("halted"))
    code, out, _ = again.hp("status", "-o", "json")
    assert code == 6 and "books and venue differ" in json.dumps(json.loads(out))
    sent_then = again.counter("gateway", "orders_sent")
    again.popen.terminate()
    assert again.end() == 0 and sent_then == 0

    third = watched(run("--adopt", "traded by hand").up("halted"))
    audit = [json.loads(line) for line in (third.path / "audit.jsonl").read_text().splitlines()]
    (adopted,) = [line for line in audit if line["action"] == "adopt"]
    assert adopted["reason"] == "traded by hand" and len(adopted["positions"]) == 1
    held = {symbol: book[0] for symbol, book in twin(third.venue_log()).items()}
    assert {s: b[0] for s, b in opening(third).items() if b[0]} == {
        s: q for s, q in held.items() if q}
    code, _, err = third.hp("resume", "--reason", "adopted")
    assert code == 0, err
    third.trades(2).popen.terminate()
    assert third.end() == 0


def test_a_killed_demo_goes_on_by_itself(run, tmp_path):
    """Again and again, at whatever moment: armed, with the positions of the venue."""
    for k in range(3):
        live = run("--for", "600s", name="demo").up()
        if k:
            assert close(opening(live), twin_until(live))
        live.trades(live.counter("gateway", "fills") + 2 + k)
        kill(live, k == 1)
    live = run("--for", "1s", name="demo")
    assert live.end() == 0 and live.document["verified"]
    end = twin(live.venue_log())
    assert abs(F(live.document["realised"]) - sum(b[2] for b in end.values())) < F(1, 10**7)
    assert not shm.runs().get(live.last_run()) and not living(live.env, live.path)


def test_the_demo_of_a_directory_goes_on_and_leaves_nothing(tmp_path):
    """Without --run-dir; twice from the same directory, the first one killed."""
    env = environment(XDG_STATE_HOME=str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    args = [sys.executable, "-m", "hftpipe", "--set", "observe.prometheus=127.0.0.1:0", "demo"]
    first = subprocess.Popen([*args, "--for", "600s"], env=env, cwd=tmp_path / "here",
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        (place,) = until(lambda: list(tmp_path.glob("state/hftpipe-demo-*")), "its directory",
                         first)
        log = until(lambda: next(place.glob("venue/*/orders.jsonl"), None), "the venue", first)
        until(lambda: log.read_text().count('"event":"fill"') >= 3, "fills", first)
    finally:
        first.kill()
        first.communicate()
    until(lambda: not marked(env), "everything is dead")
    held = sum(1 for book in twin(map(json.loads, log.read_text().splitlines())).values()
               if book[0])
    done = subprocess.run([*args, "--for", "1s"], env=env, cwd=tmp_path / "here",
                          capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    # What was open when it was killed may have filled while the exchange came up again.
    said = re.search(r"recover   books of run \w+: (\d) positions", done.stderr)
    assert said and (int(said[1]) == held or "orders resolved" in done.stderr)
    assert "trading ARMED" in done.stderr and not place.exists()
    until(lambda: not marked(env), "no process is left")


def twin_until(live):
    """The twin's books of everything before the run's own orders."""
    mine = f"hp-{live.run:x}-"
    ids = {line["id"] for line in live.venue_log()
           if line["kind"] == "order" and line["client_order_id"].startswith(mine)}
    return twin([line for line in live.venue_log() if line.get("id") not in ids])
