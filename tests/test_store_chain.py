"""The chain names the first row that was altered, missing, added or moved, and what was anchored
cannot be rewritten."""
import json
import os
import random

import psycopg
import pytest

from hftpipe import cli, schema
from hftpipe._ring import pair
from hftpipe.errors import ConfigError
from hftpipe.store import chain, layout
from hftpipe.store.layout import TABLES
from hftpipe.store.writer import Run, StoreWriter

from .models import store as naive
from .models.database import fresh, server

pytestmark = pytest.mark.db
RUN = Run(1_700_000_000_000_000_000, 5, "test")
SIGNAL, UPDATES = schema.STREAM.SIGNAL, schema.STREAM.UPDATES
COUNT = 60
PARTS = (7, 1, 20, 12, 20)      # rows of each link


class Stored:
    """A database with 60 events of two streams in five links each, and its anchors."""

    def __init__(self, pg, place, run=RUN, parts=PARTS):
        self.conninfo, self.path, self.run = fresh(pg), place / chain.FILE, run
        producers, links = {}, {}
        for stream in (SIGNAL, UPDATES):
            producers[stream], links[stream] = pair(naive.slot_record(stream), 64)
        with StoreWriter(links, self.conninfo, run, anchors=chain.Anchors(self.path)) as w:
            done = 0
            for count in parts:
                for seq in range(done + 1, done + count + 1):
                    for stream in producers:
                        assert producers[stream].push(naive.random_slot(stream, seq))
                done += count
                assert w.step() == 2 * count
                w._anchor(now=True)

    def tamper(self, *statements):
        """As nobody but a superuser can."""
        with psycopg.connect(self.conninfo) as c:
            c.execute("SET session_replication_role = replica")
            for (table,) in c.execute("SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger "
                                      "WHERE tgname = 'append_only'").fetchall():
                c.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
            for s in statements:
                assert c.execute(s).rowcount > 0, s

    def audit(self, anchored=True):
        return chain.audit(self.conninfo, self.run.run,
                           chain.read(self.path) if anchored else ())

    def fault(self, stream=UPDATES, anchored=True):
        """What is found in the one stream that was tampered with."""
        found = self.audit(anchored)
        assert [s.stream for s in found.streams if s.fault] == [stream], str(found)
        return next(s.fault for s in found.streams if s.fault)

    def table_of(self, stream, seq):
        with psycopg.connect(self.conninfo) as c:
            for number in naive.KINDS[stream]:
                name = TABLES[schema.BODIES[number].name]
                if c.execute(f"SELECT 1 FROM hftpipe.{name} WHERE stream = %s AND seq = %s",
                             (stream, seq)).fetchone():
                    return name
        raise AssertionError(seq)


@pytest.fixture(scope="module")
def pg():
    with server() as p:
        yield p


@pytest.fixture
def stored(pg, tmp_path):
    return Stored(pg, tmp_path)


def move(table, stream, *pairs):
    """Give rows other numbers, over numbers that nobody has."""
    return [f"UPDATE hftpipe.{table} SET seq = seq + 1000 WHERE stream = {stream} "
            f"AND seq IN ({', '.join(str(a) for a, _ in pairs)})",
            *(f"UPDATE hftpipe.{table} SET seq = {b} WHERE stream = {stream} AND seq = {a + 1000}"
              for a, b in pairs)]


# ------------------------------------------------------------ as it was written

def test_untouched(stored):
    found = stored.audit()
    assert found.fault is None
    for s in found.streams:
        assert (s.rows, s.links, s.anchored) == (COUNT, len(PARTS), COUNT)
        assert len(s.head) == 32 and "60 rows in 5 links" in str(s)
    assert len(chain.read(stored.path)) == 2 * len(PARTS)
    assert stored.path.stat().st_mode & 0o777 == 0o600


def test_the_head_is_what_the_documentation_says(stored):
    """By the definition at the top of chain.py, from what COPY gives, with nothing of ours."""
    import hashlib
    import struct
    record, previous, at = schema.UPDATE, b"", 0
    for count in PARTS:
        first, last = at + 1, at + count
        with psycopg.connect(stored.conninfo) as c, c.cursor().copy(
                layout.copy_range(record, RUN.run, UPDATES, first, last)) as copy:
            data = b"".join(copy)[19:-2]
        rows = [data[i:i + len(data) // count] for i in range(0, len(data), len(data) // count)]
        content = hashlib.sha256(struct.pack(">HI", schema.RECORD.UPDATE, count) + data).digest()
        leaves = b""
        for row in rows:
            h = 0x9E3779B97F4A7C15
            row = row[32:]
            for i in range(0, len(row), 8):
                word, = struct.unpack(">Q", row[i:i + 8].ljust(8, b"\0"))
                h = (h ^ word) * 0xFF51AFD7ED558CCD % 2**64
                h ^= h >> 32
            leaves += struct.pack(">Q", h)
        previous = hashlib.sha256(previous + struct.pack(
            ">qhqq", RUN.run, UPDATES, first, last) + content + leaves).digest()
        at = last
    (anchor,) = (a for a in chain.read(stored.path) if a.stream == UPDATES and a.seq == COUNT)
    assert anchor.head == previous


def test_it_goes_on_after_a_restart_of_the_writer(stored):
    producer, link = pair(naive.slot_record(UPDATES), 64)
    for seq in range(COUNT - 3, COUNT + 6):
        assert producer.push(naive.random_slot(UPDATES, seq))
    with StoreWriter({UPDATES: link}, stored.conninfo, RUN,
                     anchors=chain.Anchors(stored.path)) as w:
        assert w.drain(10) == 5
    found = stored.audit()
    assert found.fault is None
    assert [(s.rows, s.anchored) for s in found.streams] == [(60, 60), (65, 65)]


# ------------------------------------------------------------ the four ways

@pytest.mark.parametrize("column", [c.name for c in layout.columns(schema.UPDATE)[3:]])
def test_an_altered_column(stored, column):
    stored.tamper(f'UPDATE hftpipe.update_event SET "{column}" = '
                  f'CASE "{column}" WHEN 1 THEN 2 ELSE 1 END WHERE seq IN (23, 11)')
    fault = stored.fault()
    assert (fault.kind, fault.table, fault.seq) == ("altered", "update_event", 11)


@pytest.mark.parametrize("seq", [1, 8, 23, COUNT])
def test_a_missing_row(stored, seq):
    stored.tamper(f"DELETE FROM hftpipe.update_event WHERE seq = {seq}")
    fault = stored.fault()
    assert (fault.kind, fault.seq) == ("missing", seq)


def test_a_missing_row_whose_gap_was_closed(stored):
    stored.tamper("DELETE FROM hftpipe.update_event WHERE seq = 30",
                  *move("update_event", UPDATES, *((n, n - 1) for n in range(31, COUNT + 1))))
    fault = stored.fault()
    assert (fault.kind, fault.table, fault.seq) == ("missing", "update_event", 30)


def copy_of(table, seq, new):
    columns = ", ".join(c.quoted for c in layout.columns(schema.UPDATE))
    return (f"INSERT INTO hftpipe.{table} ({columns}) SELECT "
            f"{columns.replace('seq', str(new), 1)} FROM hftpipe.{table} WHERE seq = {seq}")


def test_an_added_row_at_the_end(stored):
    stored.tamper(copy_of("update_event", 12, COUNT + 1))
    fault = stored.fault()
    assert (fault.kind, fault.table, fault.seq) == ("added", "update_event", COUNT + 1)


def test_an_added_row_among_the_others(stored):
    stored.tamper(*move("update_event", UPDATES, *((n, n + 1) for n in range(40, COUNT + 1))),
                  copy_of("update_event", 5, 40),
                  "UPDATE hftpipe.update_event SET price = 7 WHERE seq = 40")
    fault = stored.fault()
    assert (fault.kind, fault.table, fault.seq) == ("added", "update_event", 40)


def test_an_added_row_of_another_kind(stored):
    """The same number in a second table."""
    seq = next(n for n in range(1, COUNT) if stored.table_of(SIGNAL, n) == "intent")
    stored.tamper(f"INSERT INTO hftpipe.take_event SELECT run, stream, {seq}, ts, ts_in, aux, "
                  "checksum, event, cause, instrument, taken, after, room FROM hftpipe.take_event "
                  "LIMIT 1")
    fault = stored.fault(SIGNAL)
    assert (fault.kind, fault.seq) == ("added", seq)


@pytest.mark.parametrize("a, b", [(2, 3), (7, 8), (5, 50)])
def test_rows_that_changed_places(stored, a, b):
    stored.tamper(*move("update_event", UPDATES, (a, b), (b, a)))
    fault = stored.fault()
    assert (fault.kind, fault.table, fault.seq) == ("reordered", "update_event", a)
    assert f"written as seq {b}" in fault.what


@pytest.mark.parametrize("seed", range(12))
def test_the_first_of_many(stored, seed):
    """Random changes in random places of a stream of several kinds: the first one is named."""
    rng, first = random.Random(seed), COUNT + 1
    statements = []
    for seq in rng.sample(range(1, COUNT + 1), 5):
        table = stored.table_of(SIGNAL, seq)
        if rng.random() < 0.5:
            statements.append(f"DELETE FROM hftpipe.{table} WHERE stream = {SIGNAL} "
                              f"AND seq = {seq}")
            kind = "missing"
        else:
            statements.append(f"UPDATE hftpipe.{table} SET ts_in = ts_in # (1::bigint << "
                              f"{rng.randrange(63)}) WHERE stream = {SIGNAL} AND seq = {seq}")
            kind = "altered"
        if seq < first:
            first, expected = seq, kind
    stored.tamper(*statements)
    fault = stored.fault(SIGNAL)
    assert (fault.kind, fault.seq) == (expected, first)


# ------------------------------------------------------------ the chain and the anchors

def test_a_cut_tail_with_its_links_and_mark(stored):
    """Everything in the database is as it was ten rows ago; the anchor knows better."""
    with psycopg.connect(stored.conninfo) as c:
        (head,) = c.execute("SELECT head FROM hftpipe.chain WHERE stream = %s AND last = 40",
                            (UPDATES,)).fetchone()
    stored.tamper("DELETE FROM hftpipe.update_event WHERE seq > 40",
                  f"DELETE FROM hftpipe.chain WHERE stream = {UPDATES} AND last > 40",
                  f"UPDATE hftpipe.mark SET seq = 40, head = '\\x{head.hex()}' "
                  f"WHERE stream = {UPDATES}")
    assert stored.audit(anchored=False).fault is None
    fault = stored.fault()
    assert (fault.kind, fault.seq) == ("missing", 41)
    assert "anchored up to row 60, the chain ends at 40" in fault.what


def rewrite(stored, seq):
    """Alter a row and make the whole chain anew, as whoever has this file can."""
    stored.tamper(f"UPDATE hftpipe.update_event SET price = 99 WHERE seq = {seq}")
    with psycopg.connect(stored.conninfo) as c:
        links = c.execute("SELECT first, last FROM hftpipe.chain WHERE stream = %s ORDER BY last",
                          (UPDATES,)).fetchall()
        reader = chain._Stream(c, RUN.run, UPDATES, {schema.RECORD.UPDATE: schema.UPDATE})
        previous, statements = b"", []
        for first, last in links:
            _, rows, leaves = reader._read(schema.UPDATE, first, last)
            content = chain.digest([(schema.RECORD.UPDATE, rows)])
            previous = chain.head(previous, RUN.run, UPDATES, first, last, content,
                                  leaves.tobytes())
            statements.append(
                f"UPDATE hftpipe.chain SET digest = '\\x{content.hex()}', "
                f"leaves = '\\x{leaves.tobytes().hex()}', head = '\\x{previous.hex()}' "
                f"WHERE stream = {UPDATES} AND last = {last}")
    stored.tamper(*statements, f"UPDATE hftpipe.mark SET head = '\\x{previous.hex()}' "
                               f"WHERE stream = {UPDATES}")


def test_a_chain_that_was_made_anew(stored):
    rewrite(stored, 25)
    assert stored.audit(anchored=False).fault is None
    fault = stored.fault()
    assert (fault.kind, fault.table, fault.seq) == ("altered", "chain", 9)
    assert "rows 9 to 28 are not those that were anchored" in fault.what


@pytest.mark.parametrize("statement, kind, seq", [
    ("UPDATE hftpipe.chain SET leaves = set_byte(leaves, 17, get_byte(leaves, 17) # 1) "
     "WHERE stream = 6 AND first = 9", "altered", 9),
    ("UPDATE hftpipe.chain SET digest = set_byte(digest, 0, get_byte(digest, 0) # 1) "
     "WHERE stream = 6 AND first = 9", "altered", 9),
    ("UPDATE hftpipe.chain SET head = set_byte(head, 31, get_byte(head, 31) # 128) "
     "WHERE stream = 6 AND first = 9", "altered", 9),
    ("DELETE FROM hftpipe.chain WHERE stream = 6 AND first = 9", "missing", 9),
    ("DELETE FROM hftpipe.chain WHERE stream = 6", "missing", 1),
    ("UPDATE hftpipe.mark SET seq = 50 WHERE stream = 6", "added", 51),
    ("UPDATE hftpipe.mark SET head = '' WHERE stream = 6", "altered", 61),
    ("DELETE FROM hftpipe.mark WHERE stream = 6", "added", 1),
])
def test_a_chain_that_was_changed(stored, statement, kind, seq):
    stored.tamper(statement)
    fault = stored.fault()
    assert (fault.kind, fault.seq) == (kind, seq)


def test_an_anchor_that_was_changed(stored):
    lines = [json.loads(line) for line in stored.path.read_text().splitlines()]
    mine = [d for d in lines if d["stream"] == "updates"]
    mine[2]["head"] = "00" + mine[2]["head"][2:]
    stored.path.write_text("".join(json.dumps(d) + "\n" for d in lines))
    fault = stored.fault()
    assert (fault.kind, fault.seq) == ("altered", 9)
    mine[2]["head"] = "zz"
    stored.path.write_text("".join(json.dumps(d) + "\n" for d in lines))
    with pytest.raises(ConfigError, match=r"anchors .*: line \d+ is none"):
        stored.audit()


def test_a_copy_of_the_anchors_convicts_who_changed_the_file_too(stored, tmp_path):
    copy = tmp_path / "elsewhere"
    copy.write_bytes(stored.path.read_bytes())
    rewrite(stored, 25)
    with psycopg.connect(stored.conninfo) as c:
        heads = chain.heads(c, RUN.run)
    stored.path.write_text("".join(a.line() for a in heads))
    assert stored.audit().fault is None
    stored.path = copy
    assert stored.fault().seq == 9


def test_a_torn_line_is_cut_off_and_written_again(stored):
    whole = chain.read(stored.path)
    with open(stored.path, "ab") as f:
        f.write(b'{"at": "2026-01-')
    assert chain.read(stored.path) == whole
    more = chain.Anchor(RUN.run, UPDATES, 61, b"\1" * 32)
    chain.Anchors(stored.path).add([more])
    assert chain.read(stored.path) == [*whole, more]


def test_anchors_that_cannot_be_written_hold_up_nothing(pg, tmp_path):
    """The path is a directory; what is stored is stored, and the reason is told."""
    (tmp_path / chain.FILE).mkdir()
    producer, link = pair(naive.slot_record(UPDATES), 64)
    conninfo = fresh(pg)
    with StoreWriter({UPDATES: link}, conninfo, RUN,
                     anchors=chain.Anchors(tmp_path / chain.FILE)) as w:
        assert producer.push(naive.random_slot(UPDATES, 1))
        assert w.step() == 1
        assert chain.FILE in w.totals.last_error
        (tmp_path / chain.FILE).rmdir()
    assert [a.seq for a in chain.read(tmp_path / chain.FILE)] == [1]


def test_a_symbolic_link_is_not_followed(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    with pytest.raises(OSError, match="symbolic link"):
        chain.Anchors(tmp_path / "a").add([chain.Anchor(1, 1, 1, b"")])
    assert not os.path.exists(tmp_path / "b")


def test_rows_of_an_older_layout_are_read_as_they_were_written(stored):
    """A column that a later version added, with its default, is no fault of an old run."""
    with psycopg.connect(stored.conninfo) as c:
        (told,) = c.execute("SELECT descriptor FROM hftpipe.descriptor WHERE record = 'update'"
                            ).fetchone()
        assert chain._layouts(c, RUN.run)[schema.RECORD.UPDATE].offsets == schema.UPDATE.offsets
    last = next(f for f in reversed(told["fields"]) if f["stored"])
    last["stored"] = False
    stored.tamper(f"UPDATE hftpipe.descriptor SET descriptor = '{json.dumps(told)}'::jsonb "
                  "WHERE record = 'update'")
    assert stored.fault().seq == 1, "the rows were written with that column"


# ------------------------------------------------------------ the command

@pytest.fixture
def hp(capsys, stored, monkeypatch):
    def go(*args):
        capsys.readouterr()
        monkeypatch.setattr("hftpipe.store.postgres.database", _given(stored.conninfo))
        code = cli.run(["--run-dir", str(stored.path.parent), "audit", "verify", *args])
        return code, *capsys.readouterr()
    return go


def _given(conninfo):
    import contextlib

    @contextlib.contextmanager
    def database(url, run_dir, **_):
        yield conninfo
    return database


def test_verify_says_that_all_is_as_it_was_written(hp):
    code, out, err = hp("-o", "json")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["ok"]
    assert [(s["stream"], s["rows"], s["anchored"]) for s in found["runs"][0]["streams"]] == [
        ("signal", COUNT, COUNT), ("updates", COUNT, COUNT)]
    code, out, _ = hp(f"{RUN.run:x}")
    assert code == 0 and "as it was written" in out.splitlines()[0]
    assert hp("--all")[0] == 0


def test_verify_names_the_row_and_ends_with_9(hp, stored):
    stored.tamper("UPDATE hftpipe.update_event SET price = 99 WHERE seq = 25")
    code, out, err = hp("-o", "json")
    found = json.loads(out)
    assert (code, err, found["ok"]) == (9, "", False)
    fault = found["runs"][0]["streams"][1]["fault"]
    assert (fault["kind"], fault["table"], fault["seq"]) == ("altered", "update_event", 25)
    code, out, _ = hp()
    assert code == 9 and "FIRST FAULT update_event row seq 25 altered" in out
    assert "NOT as it was written" in out


def test_verify_wants_anchors_or_to_be_told_that_there_are_none(hp, stored, tmp_path):
    stored.path.unlink()
    code, _, err = hp()
    assert code == 4 and "anchors.jsonl: No such file" in err
    assert hp("--no-anchors")[0] == 0
    assert hp("--no-anchors", "--anchors", "x")[0] == 2
    assert hp("zz")[0] == 2 and hp("aa", "--all")[0] == 2
    code, _, err = hp("--no-anchors", "aa")
    assert code == 4 and f"no run aa, the newest is {RUN.run:x}" in err
