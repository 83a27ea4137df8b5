"""Verification finds every change to what is stored and names the first wrong row."""
import psycopg
import pytest

from hftpipe import schema
from hftpipe._ring import pair
from hftpipe.store.verify import verify
from hftpipe.store.writer import Run, StoreWriter

from .models import store as naive
from .models.database import fresh, server

pytestmark = pytest.mark.db
RUN = Run(1_700_000_000_000_000_000, 5, "test")
COUNT = 40


@pytest.fixture(scope="module")
def pg():
    with server() as p:
        yield p


@pytest.fixture
def stored(pg):
    """``(conninfo, recorded)`` with 40 events in streams SIGNAL (four kinds) and UPDATES."""
    conninfo, links, recorded = fresh(pg), {}, {}
    for stream in (schema.STREAM.SIGNAL, schema.STREAM.UPDATES):
        record = naive.slot_record(stream)
        producer, links[stream] = pair(record, 64)
        raws = [naive.random_slot(stream, n) for n in range(1, COUNT + 1)]
        for raw in raws:
            assert producer.push(raw)
        recorded[stream] = COUNT, sum(naive.checksum(naive.body_of(r)) for r in raws) % 2**64
    with StoreWriter(links, conninfo, RUN) as w:
        w.drain(10)
    return conninfo, recorded


def tamper(conninfo, *statements):
    """As nobody but a superuser can."""
    with psycopg.connect(conninfo) as c:
        for (table,) in c.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'hftpipe' "
                                  "AND tablename ~ '_event|intent|signal|feature'").fetchall():
            c.execute(f"ALTER TABLE hftpipe.{table} DISABLE TRIGGER ALL")
        for s in statements:
            assert c.execute(s).rowcount > 0, s


def wrong(stored, stream, recorded=None):
    conninfo, told = stored
    report = verify(conninfo, RUN.run, told if recorded is None else recorded)
    assert not report.ok
    (bad,) = (s for s in report.streams if not s.ok)
    assert bad.stream == stream
    return str(bad)


def seqs(stored, table):
    with psycopg.connect(stored[0]) as c:
        return [s for (s,) in c.execute(f"SELECT seq FROM hftpipe.{table} ORDER BY seq")]


def test_untouched(stored):
    report = verify(stored[0], RUN.run, stored[1])
    assert report.ok and report.rows_stored == 2 * COUNT
    assert verify(stored[0], RUN.run).ok
    assert "signal: 40 rows, checksum " in str(report)


@pytest.mark.parametrize("column", [
    c.name for c in naive.schema.UPDATE.fields if c.column is not None])
def test_any_column_of_a_body(stored, column):
    tamper(stored[0], f'UPDATE hftpipe.update_event SET "{column}" = '
                      f'CASE "{column}" WHEN 1 THEN 2 ELSE 1 END WHERE seq IN (23, 7)')
    assert wrong(stored, 6).startswith("updates: update_event row seq 7: contents have checksum")


def test_a_changed_checksum(stored):
    tamper(stored[0], "UPDATE hftpipe.update_event SET checksum = checksum + 1 WHERE seq = 9")
    assert "update_event row seq 9: contents have checksum" in wrong(stored, 6)


def test_body_and_checksum_changed_together(stored):
    """Only what the stage counted can tell."""
    row = naive.random_slot(6, 9)
    body = bytearray(naive.body_of(row))
    at = schema.UPDATE.offsets["price"]
    price = int.from_bytes(body[at:at + 8], "little", signed=True) ^ 1
    body[at:at + 8] = price.to_bytes(8, "little", signed=True)
    word = naive.checksum(bytes(body))
    tamper(stored[0], f"UPDATE hftpipe.update_event SET price = {price}, checksum = "
                      f"{word - 2**64 if word >> 63 else word} WHERE seq = 9")
    assert "checksum of the rows is" in wrong(stored, 6)


def test_a_missing_row(stored):
    tamper(stored[0], "DELETE FROM hftpipe.update_event WHERE seq = 31")
    assert "mark row seq 31: is missing in every table" in wrong(stored, 6)


def test_a_cut_tail(stored):
    tamper(stored[0], "DELETE FROM hftpipe.update_event WHERE seq > 30",
           "UPDATE hftpipe.mark SET seq = 30 WHERE stream = 6")
    assert "40 events recorded, 30 rows stored" in wrong(stored, 6)


def test_an_added_row(stored):
    tamper(stored[0], "CREATE TEMP TABLE t AS SELECT * FROM hftpipe.update_event WHERE seq = 3",
           "UPDATE t SET seq = 41", "INSERT INTO hftpipe.update_event SELECT * FROM t")
    assert "update_event row seq 41: is not within the mark 40" in wrong(stored, 6)


def test_rows_that_changed_places(stored):
    tamper(stored[0], "UPDATE hftpipe.update_event SET seq = 1000 WHERE seq = 4",
           "UPDATE hftpipe.update_event SET seq = 4 WHERE seq = 5",
           "UPDATE hftpipe.update_event SET seq = 5 WHERE seq = 1000")
    assert "update_event row seq 4: its own event is" in wrong(stored, 6)


def test_one_number_in_two_tables(stored):
    first = seqs(stored, "intent")[0]
    other = seqs(stored, "signal")[0]
    tamper(stored[0], f"UPDATE hftpipe.signal SET seq = {first} WHERE seq = {other}")
    assert f"row seq {min(first, other)}: is " in wrong(stored, 3)


def test_what_a_stage_counted(stored):
    conninfo, told = stored
    n, word = told[6]
    assert "41 events recorded, 40 rows stored" in wrong(stored, 6, told | {6: (n + 1, word)})
    assert "of the events recorded" in wrong(stored, 6, told | {6: (n, word ^ 1)})
    assert "3 events recorded, 0 rows stored" in wrong(stored, 2, told | {2: (3, 9)})
    assert verify(conninfo, RUN.run, told | {2: (0, 0)}).ok


def test_another_run_is_empty(stored):
    report = verify(stored[0], RUN.run + 1)
    assert report.ok and report.streams == ()
