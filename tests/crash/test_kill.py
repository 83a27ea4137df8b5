"""kill -9 of anything at any time: no process, no shared memory, and rows equal to the events."""
import os
import random
import signal

import pytest

from hftpipe import _control, shm, topology
from tests.models.live import (
    STREAMS,
    check_rows,
    check_venue,
    comm,
    database,
    living,
    runs,
    until,
)

pytestmark = [pytest.mark.venue, pytest.mark.db]


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


def stored(live, exact=STREAMS):
    """Check the rows of a run that has ended against its own counts and the venue's log."""
    with database(live.path) as c:
        rows = check_rows(c, live.run, live.recorded(), exact)
        assert check_venue(c, live.run, live.venue_log()) > 0
    return rows


def killed(live, name):
    """Kill process *name* and check what must follow when its death is fatal."""
    stages = next((p["stages"] for p in live.record.processes if p["name"] == name), ())
    os.kill(live.pid(name), signal.SIGKILL)
    assert live.end() == 1
    assert live.control.trading == "halted"
    latch = live.directory.latch()
    assert latch.halted and f"{name} died (signal SIGKILL)" in latch.halt["reason"]
    assert live.run not in shm.runs(), "everything is stored: nothing stays"
    for stage in stages:
        assert live.control.stage(topology.INDEX[stage]).state == _control.FAILED
    assert live.control.stage(topology.INDEX["store"]).state == _control.STOPPED
    assert live.document["verified"] and live.document["trading"] == "halted"
    rows = stored(live, [s for s in STREAMS if s not in stages])
    assert live.document["rows_stored"] == live.document["events_recorded"] == sum(rows.values())


def moves(live, what, stage, name, by=1):
    """Wait until a counter has grown by *by*."""
    begin = live.counter(stage, name)
    until(lambda: live.counter(stage, name) >= begin + by, what, live.popen)


# ---------------------------------------------------------------- what makes events

@pytest.mark.parametrize(("name", "fused"), [
    ("hot", "auto"), ("venue", "auto"), pytest.param("feed", "no", marks=pytest.mark.slow),
    pytest.param("hot", "no", marks=pytest.mark.slow),
    pytest.param("updates", "auto", marks=pytest.mark.slow)])
def test_a_death_that_matters_halts_stores_everything_and_exits_1(run, name, fused):
    killed(run("--set", f"layout.fuse_feed={fused}").up().trades(), name)


@pytest.mark.parametrize("name", [
    "gateway", *(pytest.param(n, marks=pytest.mark.slow)
                 for n in ("feed", "book", "signal", "risk", "ledger", "updates"))])
def test_the_same_with_a_process_for_each_stage(run, name):
    killed(run("--oversubscribe").up().trades(), name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_again_and_again_at_another_moment(run, seed):
    """One death, then the next run in the same directory: it starts halted, on intact ground."""
    chance = random.Random(seed)
    live = run().up()
    names = [p["name"] for p in live.record.processes if p["name"] in ("feed", "hot", "updates")]
    moves(live, "some events", "feed", "events_stored", chance.randrange(1, 3000))
    name = chance.choice(names)
    stages = next(p["stages"] for p in live.record.processes if p["name"] == name)
    os.kill(live.pid(name), signal.SIGKILL)
    assert live.end() == 1 and live.document["verified"]
    with database(live.path) as c:
        check_rows(c, live.run, live.recorded(), [s for s in STREAMS if s not in stages])
    assert live.run not in shm.runs()
    again = run().up("halted")
    code, _, err = again.hp("resume", "--reason", "next round")
    assert code == 0, err
    again.trades()
    again.popen.terminate()
    assert again.end() == 0 and again.document["verified"]


# ---------------------------------------------------------------- what only looks on

def test_store_monitor_and_database_are_restarted_in_place(run):
    live = run().up().trades()
    for name in ("store", "monitor"):
        block = live.control.stage(topology.INDEX[name])
        old = block.pid
        os.kill(old, signal.SIGKILL)
        until(lambda block=block, old=old: block.pid != old and block.state == _control.RUNNING,
              f"{name} runs again", live.popen)
    moves(live, "rows are stored again", "store", "rows_stored")
    old = live.pid("postgres")
    os.kill(old, signal.SIGKILL)
    until(lambda: (live.path / "pg/data/postmaster.pid").exists()
          and live.pid("postgres") not in (None, old),
          "the database runs again", live.popen)
    moves(live, "rows are stored again", "store", "rows_stored", 100)
    moves(live, "it trades", "signal", "intents")
    assert live.control.trading == "armed"
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    assert live.run not in shm.runs()
    stored(live)


def test_a_guardian_is_replaced_and_nothing_trades_for_long_without_one(run):
    live = run().up().trades()
    block = live.control.stage(topology.INDEX["guardian"])
    old = block.pid
    os.kill(old, signal.SIGKILL)
    until(lambda: block.pid != old and block.state == _control.RUNNING
          and block.counter("connected"), "another one runs", live.popen)
    if live.control.trading == "halted":        # the new one took longer than a second
        latch = live.directory.latch()
        assert latch.halt["reason"].startswith("no guardian for ")
        until(lambda: block.counter("settled_epoch") >= latch.halt_epoch, "swept", live.popen)
        assert live.hp("resume", "--reason", "there is one again")[0] == 0
    moves(live, "it trades", "gateway", "orders_sent")
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    stored(live)


def test_a_database_that_stands_still_loses_nothing_and_stops_nobody(run):
    live = run().up().trades()
    servers = [pid for pid in living(live.env, live.path)
               if comm(pid) == "postgres"]
    assert live.pid("postgres") in servers and len(servers) > 1
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        moves(live, "events pile up", "feed", "events_stored", 2000)
        before = live.counter("store", "rows_stored")
        sent = live.counter("gateway", "orders_sent")
        moves(live, "events pile up", "feed", "events_stored", 2000)
        until(lambda: live.counter("gateway", "orders_sent") > sent
              or live.counter("risk", "denied") > 0, "it decides on", live.popen)
        assert live.counter("store", "rows_stored") == before, "who stored that?"
        assert live.control.trading == "armed"
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
    until(lambda: live.counter("store", "rows_stored") > before + 2000, "it catches up",
          live.popen)
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    stored(live)


def test_the_analyst_is_restarted_in_place_and_goes_on_counting(run):
    live = run().up().trades()
    block = live.control.stage(topology.INDEX["analyst"])
    for _ in range(3):
        moves(live, "figures", "analyst", "events_stored", 2)
        old = block.pid
        os.kill(old, signal.SIGKILL)
        until(lambda old=old: block.pid != old and block.state == _control.RUNNING,
              "the analyst runs again", live.popen)
    moves(live, "figures again", "analyst", "events_stored", 2)
    # The fourth time it is left out: what needs its figures is refused, the run goes on.
    os.kill(block.pid, signal.SIGKILL)
    until(lambda: block.state == _control.FAILED, "it is left out", live.popen)
    until(lambda: any(line["event"] == "left out" and line["child"] == "analyst"
                      for line in live.log()), "and said so", live.popen)
    moves(live, "the others go on", "feed", "events_stored", 200)
    assert live.control.trading == "armed"
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    rows = stored(live, [s for s in STREAMS if s != "analyst"])
    assert rows["analyst"] >= 8


# ---------------------------------------------------------------- the supervisor

@pytest.mark.parametrize("options", [
    (), pytest.param(("--oversubscribe",), marks=pytest.mark.slow)], ids=["fused", "eight"])
def test_kill_9_of_the_supervisor_and_the_next_start_stores_what_the_rings_hold(run, options):
    first = run(*options).up().trades()
    # The database stops first, so that the rings hold something for certain.
    servers = [pid for pid in living(first.env, first.path) if comm(pid) == "postgres"]
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    moves(first, "events that are not stored", "feed", "events_stored", 500)
    first.popen.kill()
    first.popen.wait()
    for pid in servers:
        os.kill(pid, signal.SIGCONT)
    assert first.end() == -signal.SIGKILL            # and no child has outlived it for long
    left = shm.runs()[first.run]
    assert {"control", *(f"{s}.store" for s in topology.recorded())} <= set(left)
    recorded = first.recorded()
    assert sum(recorded.values()) > first.counter("store", "rows_stored")

    latch = first.directory.latch()
    assert latch.halted and latch.halt["reason"] == f"supervisor {first.popen.pid} is gone", \
        "the guardian, which alone outlived it, said so"
    again = run(*options).up("halted")
    assert first.run not in shm.runs(), "drained and removed before the new run began"
    assert again.hp("resume", "--reason", "it is up again")[0] == 0
    again.trades()
    again.popen.terminate()
    assert again.end() == 0 and again.document["verified"]
    assert f"recover   run {first.run:x} was killed" in again.err
    with database(again.path) as c:
        rows = check_rows(c, first.run, recorded, exact=())
        assert sum(rows.values()) >= sum(recorded.values())
        assert check_venue(c, first.run, again.venue_log()) > 0
        check_rows(c, again.run, again.recorded())
        assert check_venue(c, again.run, again.venue_log()) > 0


@pytest.mark.slow
def test_a_second_signal_kills_and_the_next_start_stores_the_rest(run):
    live = run().up().trades()
    live.popen.send_signal(signal.SIGQUIT)
    assert live.end() == 130
    recorded = live.recorded()
    again = run().up()
    again.popen.terminate()
    assert again.end() == 0
    with database(again.path) as c:
        check_rows(c, live.run, recorded, exact=())
