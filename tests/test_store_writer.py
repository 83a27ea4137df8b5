"""Each event is stored exactly once, whatever is killed, stopped or cut off, and whenever."""
import contextlib
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from hftpipe import schema
from hftpipe._ring import Ring, footprint, pair
from hftpipe.errors import BusyError, DeadlineError, MismatchError
from hftpipe.store import queries, writer
from hftpipe.store.postgres import Postgres
from hftpipe.store.verify import verify
from hftpipe.store.writer import Run, StoreWriter, recover, register

from .models import store as naive
from .models.database import QUICK, fresh, run_directory, server, until

pytestmark = pytest.mark.db
ROOT = Path(__file__).resolve().parent.parent
RUN = Run(1_700_000_000_123_456_789, 5, "test", (("ACME", 10**7, 10**9), ("BOLT", 10**7, 10**9)))
STREAMS = range(1, 8)


@pytest.fixture(scope="module")
def pg():
    with server() as p:
        yield p


@pytest.fixture
def db(pg):
    return fresh(pg)


def record_of(stream):
    return naive.slot_record(stream)


class Feed:
    """The stages' side: pushes the events of every stream and keeps count and checksum."""

    def __init__(self, capacity=64, streams=STREAMS, memory=None):
        self.memory = memory or {}
        self.producers, self.links = {}, {}
        for s in streams:
            if memory is None:
                self.producers[s], self.links[s] = pair(record_of(s), capacity)
            else:
                self.producers[s] = Ring(memory[s], record_of(s), producer=True, create=True)
        self.recorded = dict.fromkeys(streams, (0, 0))

    def push(self, stream, count=1):
        """Events that found room."""
        n, total = self.recorded[stream]
        for done in range(count):
            raw = naive.random_slot(stream, n + 1)
            if not self.producers[stream].push(raw):
                return done
            n, total = n + 1, (total + naive.checksum(naive.body_of(raw))) % 2**64
            self.recorded[stream] = n, total
        return count

    def consumers(self):
        return {s: Ring(m, record_of(s), producer=False) for s, m in self.memory.items()}


def proved(conninfo, recorded):
    report = verify(conninfo, RUN.run, recorded)
    assert report.ok, str(report)
    assert report.rows_stored == sum(n for n, _ in recorded.values())
    with psycopg.connect(conninfo) as c:
        assert queries.marks(c, RUN.run) == recorded
        assert queries.rows_stored(c, RUN.run) == {s: n for s, (n, _) in recorded.items() if n}


# ------------------------------------------------------------ in good order

def test_all_streams_through_small_rings(db):
    feed, rng = Feed(capacity=16), random.Random(1)
    with StoreWriter(feed.links, db, RUN) as w:
        for _ in range(150):
            for s in STREAMS:
                feed.push(s, rng.randrange(24))
            w.step()
        w.drain(10)
        w.finish()
        assert w.totals.rows == sum(n for n, _ in feed.recorded.values())
        assert w.totals.lag == w.totals.errors == w.totals.skipped == 0
        assert w.totals.by_stream == {s: n for s, (n, _) in feed.recorded.items()}
    proved(db, feed.recorded)
    assert all(p.room == 16 for p in feed.producers.values()), "all slots were given back"
    with psycopg.connect(db) as c:
        (row,) = queries.runs(c)
        assert row["profile"] == "test" and row["ended"] and row["run"] == RUN.run
        assert row["started"].isoformat() == "2023-11-14T22:13:20.123456+00:00"
        assert c.execute("SELECT index, symbol FROM hftpipe.instrument").fetchall() == [
            (0, "ACME"), (1, "BOLT")]
        assert c.execute("SELECT count(*) FROM hftpipe.descriptor").fetchone() == (
            len(schema.BODIES) + 1,)


def test_it_acts_as_the_writer_role(db):
    feed = Feed()
    with StoreWriter(feed.links, db, RUN) as w:
        w.step()
        c = w._session()
        assert c.execute("SELECT current_user").fetchone() == ("hftpipe_writer",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            c.execute("SELECT * FROM hftpipe.market_event")


def test_nothing_to_do_costs_no_transaction(db):
    feed, seen = Feed(), []
    with StoreWriter(feed.links, db, RUN, lambda t: seen.append((t.rows, t.lag))) as w:
        assert w.step() == 0
        feed.push(1, 3)
        feed.push(2, 2)
        assert w.step() == 5 and w.step() == 0
        assert w.totals.batches == 1
    assert seen == [(0, 0), (5, 0), (5, 0)]


def test_serve_until_stopped(db):
    feed, todo = Feed(), [(s, 5) for s in STREAMS] * 20
    slept = []

    def stopped():
        if todo:
            feed.push(*todo.pop())
        return not todo
    with StoreWriter(feed.links, db, RUN) as w:
        w.serve(stopped, slept.append)
        w.drain(10)
    proved(db, feed.recorded)
    assert set(slept) <= {writer.LINGER, writer.IDLE}


# ------------------------------------------------------------ what must stop it for good

def damaged(stream, seq, **change):
    raw = bytearray(naive.random_slot(stream, seq))
    for name, value in change.items():
        f = next(f for f in schema.ENVELOPE.fields if f.name == name)
        at = schema.ENVELOPE.offsets[name]
        raw[at:at + f.size] = value.to_bytes(f.size, "little")
    return bytes(raw)


@pytest.mark.parametrize("bad, said", [
    (naive.random_slot(1, 5), "event 0x100000000000005 stands where 0x100000000000004 must"),
    (naive.random_slot(1, 3), "event 0x100000000000003 stands where 0x100000000000004 must"),
    (naive.random_slot(2, 4), "event 0x200000000000004 stands where 0x100000000000004 must"),
    (damaged(1, 4, checksum=7), "its envelope says 0x7"),
    (damaged(1, 4, lines=2), "is a market of 2 lines, expected 1"),
    (damaged(1, 4, record=99), "envelope names record 99"),
    (damaged(1, 4, record=8, lines=2), "update of 128 B does not fit into stored"),
], ids=["gap", "double", "foreign", "body", "lines", "record", "wide"])
def test_a_bad_event_stops_it_and_nothing_is_skipped(db, bad, said):
    feed = Feed()
    feed.push(1, 3)
    assert feed.producers[1].push(bad)
    feed.push(2, 3)
    with StoreWriter(feed.links, db, RUN) as w:
        for _ in range(2):                                      # and again, not only once
            with pytest.raises(MismatchError) as e:
                w.step()
            assert said in str(e.value) and "\n" not in str(e.value)
    with psycopg.connect(db) as c:
        assert queries.rows_stored(c, RUN.run) == {}
    assert len(feed.links[1]) == 4


def test_a_body_that_changes_between_stage_and_writer_is_seen(db):
    raw = bytearray(naive.random_slot(5, 1))
    raw[schema.ENVELOPE.size + 20] ^= 1
    feed = Feed()
    feed.producers[5].push(bytes(raw))
    with StoreWriter(feed.links, db, RUN) as w, pytest.raises(
            MismatchError, match="body of event 0x500000000000001 has checksum"):
        w.step()


def test_events_lost_before_the_link_are_named(db):
    feed = Feed()
    feed.producers[3].push(naive.random_slot(3, 4))
    with StoreWriter(feed.links, db, RUN) as w, pytest.raises(
            MismatchError, match="signal: events 1 to 3 are neither in the link nor in"):
        w.step()


def test_links_of_something_else_are_refused():
    _, link = pair(schema.MARKET, 4)
    with pytest.raises(ValueError, match="must carry stored records, carries market"):
        StoreWriter({1: link}, "", RUN)


def test_a_run_of_another_layout_is_refused(db):
    with psycopg.connect(db, autocommit=True) as c:
        register(c, RUN, STREAMS)
        c.execute("UPDATE hftpipe.descriptor SET fingerprint = 1 WHERE record = 'intent'")
        with pytest.raises(MismatchError, match="begun with other layouts of intent"):
            register(c, RUN, STREAMS)


# ------------------------------------------------------------ another writer

def test_a_second_writer_is_fenced_off(db):
    """Both have the same events in hand, as after a takeover that the first one slept through."""
    mine, theirs = Feed(), Feed()
    for f in (mine, theirs):
        for s in STREAMS:
            f.push(s, 20)
    with StoreWriter(mine.links, db, RUN) as a, StoreWriter(theirs.links, db, RUN) as b:
        b._session()                                    # b knows the marks from before
        assert a.step() == 140
        with pytest.raises(BusyError, match="another writer stores run"):
            b.step()
        mine.push(1, 1)
        a.step()
    proved(db, mine.recorded)


def test_a_fenced_writer_does_not_come_back_by_reconnecting(db):
    mine, theirs = Feed(), Feed()
    for f in (mine, theirs):
        f.push(1, 20)
    with StoreWriter(mine.links, db, RUN) as a, StoreWriter(theirs.links, db, RUN) as b:
        b._session()
        a.step()
        b._connection.close()
        with pytest.raises(BusyError, match="the mark of stream 1 is at 20, this one left it at 0"):
            b.step()
    proved(db, mine.recorded)


def test_two_transactions_at_the_same_time(db):
    """The second waits for the first one's row lock, then sees that the mark has moved."""
    mine, theirs = Feed(), Feed()
    for f in (mine, theirs):
        f.push(1, 20)
    with StoreWriter(theirs.links, db, RUN) as b, psycopg.connect(db) as c:
        b._session()
        c.execute("UPDATE hftpipe.mark SET seq = 7 WHERE stream = 1")       # open transaction
        pid = b._connection.info.backend_pid
        said = []

        def work():
            try:
                b.step()
            except BusyError as e:
                said.append(e)
        t = threading.Thread(target=work)
        t.start()
        with psycopg.connect(db, autocommit=True) as k:
            until(lambda: k.execute("SELECT wait_event_type = 'Lock' FROM pg_stat_activity "
                                    "WHERE pid = %s", (pid,)).fetchone()[0])
        c.commit()
        t.join()
        assert len(said) == 1


# ------------------------------------------------------------ the database misbehaves

def test_a_commit_whose_answer_is_lost(db, monkeypatch):
    """The server committed, we do not know: the mark knows."""
    feed = Feed()
    feed.push(1, 20)
    feed.push(6, 5)
    with StoreWriter(feed.links, db, RUN) as w:
        c = w._session()
        real = c.transaction

        @contextlib.contextmanager
        def lost():
            with real():
                yield
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        monkeypatch.setattr(c, "transaction", lost)
        assert w.step() == 0 and w.totals.errors == 1
        assert len(feed.links[1]) == 20, "not given back before it is known"
        feed.push(1, 3)
        w.drain(10)
        assert w.totals.skipped == 25 and w.totals.rows == 3
    proved(db, feed.recorded)


def test_backend_killed_between_and_within_batches(db, pg):
    feed, rng = Feed(capacity=256), random.Random(3)
    with StoreWriter(feed.links, db, RUN) as w, psycopg.connect(
            make_conninfo(db, dbname="postgres"), autocommit=True) as k:
        for n in range(40):
            for s in STREAMS:
                feed.push(s, rng.randrange(40))
            w._retry_at = 0.0
            w.step()
            if n % 3 == 0 and w._connection is not None:
                k.execute("SELECT pg_terminate_backend(%s)", (w._connection.info.backend_pid,))
        w.drain(20)
        assert w.totals.errors >= 10
    proved(db, feed.recorded)


def test_server_absent_then_killed_again_and_again(monkeypatch):
    monkeypatch.setattr(writer, "BACKOFF", (0.01, 0.05))
    from hftpipe.store.migrate import migrate
    feed, rng = Feed(capacity=256), random.Random(4)
    with run_directory() as place:
        p = Postgres(place, QUICK)
        migrate(p.start())
        conninfo = p.conninfo
        p.stop()
        try:
            with StoreWriter(feed.links, conninfo, RUN) as w:
                feed.push(1, 10)
                assert w.step() == 0 and not w.totals.connected and w.totals.lag == 10
                assert "\n" not in w.totals.last_error and w.totals.last_error
                with pytest.raises(DeadlineError, match="10 events are still in the store links"):
                    w.drain(0.2)
                for n in range(12):
                    p.start()
                    for _ in range(rng.randrange(1, 8)):
                        for s in STREAMS:
                            feed.push(s, rng.randrange(30))
                        w._retry_at = 0.0
                        w.step()
                    if n % 2:
                        os.kill(p.pid, signal.SIGKILL)
                        until(lambda: not p.alive)
                    else:
                        os.kill(p.pid, signal.SIGQUIT)              # immediate: no checkpoint
                        until(lambda: not p.alive)
                    assert w.totals.rows > 0
                    w.step()
                p.start()
                w.drain(20)
                assert w.totals.errors >= 6
            proved(conninfo, feed.recorded)
        finally:
            p.stop()


def test_a_locked_table_is_waited_for_in_steps(db, monkeypatch):
    monkeypatch.setattr(writer, "STATEMENT_TIMEOUT", "100ms")
    monkeypatch.setattr(writer, "BACKOFF", (0.01, 0.02))
    feed = Feed()
    feed.push(1, 20)
    with StoreWriter(feed.links, db, RUN) as w, psycopg.connect(db) as c:
        c.execute("LOCK TABLE hftpipe.market_event IN SHARE MODE")
        assert w.step() == 0
        assert w.totals.errors == 1 and "timeout" in w.totals.last_error
        c.rollback()
        w.drain(10)
    proved(db, feed.recorded)


def test_a_stopped_server_is_given_up(monkeypatch):
    """SIGSTOP: the sockets are open and nobody answers, so no timeout of the server's helps."""
    monkeypatch.setattr(writer, "BACKOFF", (0.01, 0.02))
    feed = Feed()
    with server() as p, StoreWriter(feed.links, p.conninfo, RUN, silence=0.6) as w:
        feed.push(1, 5)
        w.step()
        backend = w._connection.info.backend_pid
        feed.push(1, 5)
        os.kill(backend, signal.SIGSTOP)
        assert w.step() == 0 and w.totals.errors == 1
        os.kill(backend, signal.SIGCONT)
        w.drain(20)
        proved(p.conninfo, feed.recorded)


# ------------------------------------------------------------ the writer is killed

NURSERY = """
# Forks a writer for each line it reads, so that a life costs no start of an interpreter.
import os, sys, mmap
from hftpipe import schema, topology
from hftpipe._ring import Ring
from hftpipe.store.writer import Run, StoreWriter
path, conninfo, run = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.write(1, b"ready\\n")
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        links = {}
        for s in range(1, 8):
            record = next(schema.BY_NAME[link.record] for link in topology.LINKS
                          if link.consumer == "store" and topology.stream(link.producer) == s)
            with open(f"{path}/{s}", "r+b") as f:
                links[s] = Ring(mmap.mmap(f.fileno(), 0), record, producer=False)
        writer = StoreWriter(links, conninfo, Run(run, 5, "test"))
        os.write(1, b"up\\n")
        try:
            writer.serve(lambda: False)
        except BaseException as e:
            os.write(1, f"{type(e).__name__}: {e}\\n".encode())
        os._exit(1)
    os.write(1, b"%d\\n" % pid)
    os.waitpid(pid, 0)
    os.write(1, b"gone\\n")
"""


def shared(path, capacity):
    memory = {}
    for s in STREAMS:
        with open(path / str(s), "w+b") as f:
            f.truncate(footprint(record_of(s), capacity))
            memory[s] = mmap.mmap(f.fileno(), 0)
    return memory


def kill_at_random(db, tmp_path, rounds, seed):
    feed, rng = Feed(memory=shared(tmp_path, 512)), random.Random(seed)
    advanced = 0
    with subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(tmp_path), db, str(RUN.run)], text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "build/view")}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nursery:
        try:
            assert nursery.stdout.readline() == "ready\n"
            for _ in range(rounds):
                before = sum(m.taken for m in feed.producers.values())
                print("go", file=nursery.stdin, flush=True)
                said = {nursery.stdout.readline().strip(), nursery.stdout.readline().strip()}
                assert "up" in said, said
                (pid,) = (int(line) for line in said - {"up"})
                # Some die before their first batch, some in the midst of a later one.
                batches, last, end = rng.randrange(4), before, time.monotonic() + 20
                while batches and time.monotonic() < end:
                    feed.push(rng.randrange(1, 8), rng.randrange(1, 30))
                    os.sched_yield()
                    taken = sum(m.taken for m in feed.producers.values())
                    batches -= taken > last
                    last = taken
                end = time.monotonic() + rng.uniform(0, 0.02)
                while time.monotonic() < end:                       # the stages never pause
                    feed.push(rng.randrange(1, 8), rng.randrange(1, 30))
                os.kill(pid, signal.SIGKILL)
                assert nursery.stdout.readline() == "gone\n"
                advanced += sum(m.taken for m in feed.producers.values()) > before
        finally:
            os.killpg(nursery.pid, signal.SIGKILL)
    with StoreWriter(feed.consumers(), db, RUN) as w:
        w.drain(20)
        skipped = w.totals.skipped
    proved(db, feed.recorded)
    return advanced, skipped


def test_writer_killed_at_random_moments(db, tmp_path):
    advanced, _ = kill_at_random(db, tmp_path, 40, 5)
    assert advanced >= 20, "the kills must hit writers at work"


@pytest.mark.slow
def test_writer_killed_a_thousand_times(db, tmp_path):
    advanced, _ = kill_at_random(db, tmp_path, 1000, 6)
    assert advanced >= 500


def test_killed_between_commit_and_release(db):
    """The rows are in, the slots are not given back: the next life skips them."""
    feed = Feed(memory={s: mmap.mmap(-1, footprint(record_of(s), 64)) for s in STREAMS})
    feed.push(1, 20)
    first = StoreWriter(feed.consumers(), db, RUN)
    first._give_back = None                             # dies there
    with pytest.raises(TypeError):
        first.step()
    first.close()
    feed.push(1, 7)
    with StoreWriter(feed.consumers(), db, RUN) as w:
        assert w.step() == 7
        assert w.totals.skipped == 20
    proved(db, feed.recorded)


def test_recover_stores_what_a_dead_run_left(db):
    feed = Feed(memory={s: mmap.mmap(-1, footprint(record_of(s), 64)) for s in STREAMS})
    for s in STREAMS:
        feed.push(s, 40)
    with StoreWriter(feed.consumers(), db, RUN) as w:
        w.step()
    for s in STREAMS:
        feed.push(s, 11 + s)
    totals = recover(feed.consumers(), db, RUN)
    assert totals.rows == sum(11 + s for s in STREAMS) and totals.lag == 0
    proved(db, feed.recorded)
    assert recover(feed.consumers(), db, RUN).rows == 0
