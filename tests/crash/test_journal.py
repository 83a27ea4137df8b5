"""The journal of a real run: killed, stalled, without room, and left behind by a host that died."""
import os
import signal
import time
from pathlib import Path

import pytest

from hftpipe import _control, schema, shm, topology
from hftpipe.journal import check, runs, segment
from tests.models.disk import small_disk
from tests.models.live import check_rows, check_venue, comm, database, living, until
from tests.models.live import runs as live_runs

pytestmark = [pytest.mark.venue, pytest.mark.db]
STREAM = {schema.STREAM.label(n): n for n in topology.stored()}


@pytest.fixture
def run(tmp_path):
    with live_runs(tmp_path / "run") as go:
        yield go


def place(live, base=None):
    return runs.place(base or live.path / "journal", live.run)


def journaled(live, base=None):
    """Events of each stream in the journal, all of it read and checked."""
    seen = check.Walk()
    for _ in check.walk(place(live, base).directory, live.run, seen):
        pass
    return {name: seen.seqs.get(n, 0) for name, n in STREAM.items()}


def agree(live, rows, base=None):
    """Journal and database have the same events."""
    assert journaled(live, base) == rows


def block(live, stage):
    return live.control.stage(topology.INDEX[stage])


def reborn(live, stage):
    """Kill the process of *stage* and wait for the next one."""
    mine = block(live, stage)
    old = mine.pid
    os.kill(old, signal.SIGKILL)
    until(lambda: mine.pid != old and mine.state == _control.RUNNING, f"{stage} runs again",
          live.popen)


def grows(live, what, get, by=1):
    begin = get()
    until(lambda: get() >= begin + by, what, live.popen)


def test_kills_of_journal_and_store_lose_and_double_nothing(run):
    live = run().up().trades()
    for n in range(3):
        reborn(live, "journal")
        grows(live, "records are on disk again", live.control.durable, 200)
        if n < 2:
            reborn(live, "store")
        grows(live, "rows are stored again", lambda: live.counter("store", "rows_stored"), 200)
        grows(live, "it trades", lambda: live.counter("signal", "intents"))
    assert live.control.trading == "armed"
    assert [live.control.durable(n) for n in STREAM.values()] != [0] * len(STREAM)
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    assert live.run not in shm.runs() and place(live).stored
    with database(live.path) as c:
        rows = check_rows(c, live.run, live.recorded())
        assert check_venue(c, live.run, live.venue_log()) > 0
    agree(live, rows)


def sent(live):
    """Sequence numbers of the intents of every order that the venue knows."""
    return {int(line["client_order_id"].split("-")[2], 16) for line in live.venue_log()
            if line["kind"] == "order"}


def stopped(pid):
    """Stop a process; when it is seen to have stopped, it does nothing more."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T",
          "it stands still")


def test_no_order_leaves_before_the_disk_has_what_led_to_it(run):
    """The journal stands still, and what is approved meanwhile does not reach the venue."""
    live = run("--set", "journal.durability=host").up().trades()
    proved = 0
    for _ in range(20):
        pid, approved = live.pid("journal"), live.counter("risk", "approved")
        stopped(pid)
        intent = live.control.durable(STREAM["signal"])
        end = time.monotonic() + 1.2            # the supervisor halts after two
        while live.counter("risk", "approved") == approved and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.05)                        # an order that does not wait is out by then
        assert live.control.durable(STREAM["signal"]) == intent
        seen = sent(live)
        assert seen and max(seen) <= intent, "the venue knows of an intent that is not on disk"
        proved += live.counter("risk", "approved") > approved
        os.kill(pid, signal.SIGCONT)
        if proved == 3 or live.control.trading == "halted":
            break
        until(lambda intent=intent: live.control.durable(STREAM["signal"]) > intent, "it goes on",
              live.popen)
    assert proved, "no order was approved while the journal stood still"
    if live.control.trading == "armed":
        grows(live, "orders leave again", lambda: live.counter("gateway", "orders_sent"))
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]


def test_an_absent_database_fills_the_journal_and_no_link(run):
    live = run("--set", "layout.capacity.feed.store=8192").up().trades()
    servers = [pid for pid in living(live.env, live.path) if comm(pid) == "postgres"]
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        before = live.counter("store", "rows_stored")
        grows(live, "more events than the link holds",
              lambda: live.control.durable(STREAM["feed"]), 12000)
        assert live.counter("store", "rows_stored") == before
        assert not any(b.store_full for b in live.control.stages)
        assert live.control.trading == "armed"
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
    until(lambda: live.counter("store", "rows_stored") > before + 12000, "it catches up",
          live.popen)
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]
    with database(live.path) as c:
        rows = check_rows(c, live.run, live.recorded())
    agree(live, rows)


def test_after_the_hosts_death_the_journal_alone_gives_everything_back(run):
    """No process, no shared memory: what was on disk is stored by the next start."""
    first = run().up().trades()
    servers = [pid for pid in living(first.env, first.path) if comm(pid) == "postgres"]
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    grows(first, "events that are not stored", first.control.durable, 1000)
    first.popen.kill()
    first.popen.wait()
    for pid in servers:
        os.kill(pid, signal.SIGCONT)
    assert first.end() == -signal.SIGKILL
    told = {name: first.control.durable(n) for name, n in STREAM.items()}
    stored = first.counter("store", "rows_stored")
    assert sum(told.values()) > stored + 900
    shm.remove(first.run)
    again = run().up("halted")
    assert again.hp("resume", "--reason", "the host is back")[0] == 0
    again.trades()
    again.popen.terminate()
    assert again.end() == 0 and again.document["verified"]
    assert f"recover   run {first.run:x} was killed" in again.err
    with database(again.path) as c:
        rows = check_rows(c, first.run, journaled(first))
        assert all(rows[name] >= n for name, n in told.items())
    agree(first, rows)
    assert place(first).stored


def test_a_disk_that_fills_up_halts_before_the_last_segment_and_loses_nothing(run, tmp_path):
    with small_disk(tmp_path / "disk", 16) as disk:
        options = ("--set", f"journal.directory={disk}", "--set", "journal.segment=1MiB",
                   "--set", "layout.capacity.feed.store=8192")
        live = run(*options).up().trades()
        hog = disk / "hog"
        with pytest.raises(OSError, match="No space left"), hog.open("wb") as file:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        until(lambda: live.control.trading == "halted", "halted", live.popen)
        assert "the journal has 1 segment left and no room for more" in \
            live.directory.latch().halt["reason"]
        until(lambda: live.counter("journal", "journal_spares") == 0
              and live.counter("journal", "journal_lag") > 1000, "there is no room at all",
              live.popen)
        hog.unlink()
        number = live.control.durable()
        until(lambda: live.control.durable() > number + 1000, "room again", live.popen)
        live.popen.terminate()
        assert live.end() == 0 and live.document["verified"]
        with database(live.path) as c:
            rows = check_rows(c, live.run, live.recorded())
        agree(live, rows, disk)


def test_damage_stops_the_run_and_the_start_and_is_named(run):
    """A byte of the journal changes under a killed one: the next says where, and takes no more."""
    live = run().up().trades()
    (path,) = segment.listing(place(live).directory)
    mine = block(live, "journal")
    old = mine.pid
    os.kill(old, signal.SIGSTOP)
    with path.open("r+b") as file:
        file.seek(segment.BLOCK + 60)
        byte = file.read(1)
        file.seek(segment.BLOCK + 60)
        file.write(bytes([byte[0] ^ 1]))
    os.kill(old, signal.SIGKILL)
    assert live.end() == 1
    assert live.control.trading == "halted"
    said = f"journal {path} at {segment.BLOCK}: wanted record 1, found bytes that are none"
    assert any(said in str(line) for line in live.log())
    assert live.run in shm.runs(), "the rings stay"
    again = run()
    assert again.end() == 9
    assert said in again.err
    shm.remove(live.run)
