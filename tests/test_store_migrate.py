"""Migrations apply once and whole; tables are what the schema says; rows only grow."""
import threading
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from hftpipe import schema
from hftpipe.errors import BusyError, ConfigError, MismatchError
from hftpipe.store import layout
from hftpipe.store import migrate as m
from hftpipe.store.migrate import Migration, migrate, sql_files, status
from hftpipe.store.writer import become_writer

from .models.database import fresh, server

pytestmark = pytest.mark.db
ROOT = Path(__file__).resolve().parent.parent
EVENTS = sorted(layout.TABLES.values())


@pytest.fixture(scope="module")
def pg():
    with server() as p:
        yield p


@pytest.fixture
def empty(pg):
    return fresh(pg, "template1")


@pytest.fixture
def db(pg):
    return fresh(pg)


def all_of(conninfo, query, values=()):
    with psycopg.connect(conninfo) as c:
        return c.execute(query, values).fetchall()


# ------------------------------------------------------------ the files

def test_generated_part_is_fresh():
    text = (ROOT / "sql/0001_init.sql").read_text()
    assert layout.generated() in text, "run `python -m hftpipe.store.layout --write`"
    for record in schema.BODIES.values():
        assert layout.ddl(record) in text


def test_installed_files_come_before_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "0001_other.sql").write_text("SELECT 1")
    monkeypatch.setattr(m, "files", lambda package: tmp_path)
    assert [f.name for f in sql_files()] == ["other"]

    def missing(package):
        raise ModuleNotFoundError(package)
    monkeypatch.setattr(m, "files", missing)
    assert [f"{f.version:04}_{f.name}.sql" for f in sql_files()] == sorted(
        p.name for p in (ROOT / "sql").glob("*.sql"))


@pytest.mark.parametrize("names", [["0002_a"], ["0001_a", "0003_b"], ["0001_a", "0001_b"]])
def test_numbers_have_no_gap_and_no_double(tmp_path, monkeypatch, names):
    for n in names:
        (tmp_path / f"{n}.sql").write_text("SELECT 1")
    monkeypatch.setattr(m, "files", lambda package: tmp_path)
    with pytest.raises(ConfigError, match="numbered"):
        sql_files()


# ------------------------------------------------------------ applying them

def test_fresh_then_again(empty):
    assert [v.version for v in status(empty).pending] == [f.version for f in sql_files()]
    assert migrate(empty) == sql_files()
    assert migrate(empty) == []
    assert status(empty) == m.Status(tuple((f.version, f.name) for f in sql_files()), ())


def test_eight_at_the_same_time(empty):
    done, start = [], threading.Barrier(8)

    def work():
        start.wait()
        done.append(migrate(empty))
    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(map(len, done)) == [0] * 7 + [len(sql_files())]


def test_a_failing_migration_leaves_no_trace(empty):
    bad = [Migration(1, "first", sql_files()[0].text),
           Migration(2, "bad", "CREATE TABLE hftpipe.half (i int); SELECT 1 / 0;")]
    with pytest.raises(ConfigError, match="0002_bad failed and was undone: division by zero") as e:
        migrate(empty, bad)
    assert "\n" not in str(e.value)
    assert all_of(empty, "SELECT to_regclass('hftpipe.half')") == [(None,)]
    assert len(all_of(empty, "SELECT FROM hftpipe.migration")) == 1
    good = [bad[0], Migration(2, "good", "CREATE TABLE hftpipe.half (i int)")]
    assert [v.name for v in migrate(empty, good)] == ["good"]


def test_an_applied_file_must_not_change(empty):
    files = sql_files()
    migrate(empty, files)
    changed = [Migration(1, "init", files[0].text + " "), *files[1:]]
    with pytest.raises(MismatchError, match="applied files must never change"):
        migrate(empty, changed)


def test_a_newer_database_is_refused(empty):
    files = sql_files()
    migrate(empty, files)
    with pytest.raises(ConfigError, match="a newer one migrated it"):
        migrate(empty, files[:-1])


def test_a_held_lock_is_named_busy(empty, monkeypatch):
    monkeypatch.setattr(m, "LOCK_TIMEOUT", "50ms")
    with psycopg.connect(empty) as c:
        c.execute("SELECT pg_advisory_lock(%s)", (m.LOCK,))
        with pytest.raises(BusyError, match="another migration"):
            migrate(empty)
    migrate(empty)


def test_no_server_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="cannot connect to the database") as e:
        migrate(f"host={tmp_path} user=x dbname=y")
    assert "\n" not in str(e.value)


def test_a_user_who_may_not_make_roles(pg):
    """As on somebody else's server: only a database of one's own."""
    conninfo = fresh(pg, "template1")
    name = psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"]
    with psycopg.connect(pg.conninfo, autocommit=True) as c:
        c.execute("CREATE ROLE plain LOGIN PASSWORD 'p'")
        c.execute(sql.SQL("ALTER DATABASE {} OWNER TO plain").format(sql.Identifier(name)))
    plain = make_conninfo(conninfo, user="plain", password="p")
    assert migrate(plain) == sql_files()
    assert all_of(plain, "SELECT DISTINCT tableowner FROM pg_tables "
                         "WHERE schemaname = 'hftpipe'") == [("plain",)]
    with psycopg.connect(plain) as c:
        become_writer(c)
        assert c.execute("SELECT current_user").fetchone() == ("plain",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            c.execute("DELETE FROM hftpipe.market_event")


# ------------------------------------------------------------ what they make

@pytest.mark.parametrize("record", schema.BODIES.values(), ids=lambda r: r.name)
def test_columns_are_the_schema(db, record):
    found = all_of(db, "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
                       "WHERE table_schema = 'hftpipe' AND table_name = %s "
                       "ORDER BY ordinal_position", (layout.TABLES[record.name],))
    assert found == [(c.name, c.sql, "NO") for c in layout.columns(record)]
    body = schema.columns(record)
    assert [name for name, _, _ in found][-len(body):] == body
    envelope = [name for name, _, _ in found][:-len(body)]
    assert envelope[:7] == ["run", "stream", "seq", "ts", "ts_in", "aux", "checksum"]
    assert {"event", "cause", "instrument"} <= {*envelope, *body}
    key = all_of(db, "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
                     "WHERE conrelid = %s::regclass AND contype = 'p'", (layout.table(record),))
    assert key == [("PRIMARY KEY (run, stream, seq)",)]
    comments = all_of(db, "SELECT col_description(%s::regclass, ordinal_position) "
                          "FROM information_schema.columns WHERE table_schema = 'hftpipe' "
                          "AND table_name = %s", (layout.table(record),
                                                  layout.TABLES[record.name]))
    assert all(text for (text,) in comments)


def test_every_stored_field_can_come_back():
    """What no column holds is link_seq and padding, so a body's bytes follow from its row."""
    for record in schema.BODIES.values():
        left_out = {f.name for f in record.fields if f.column is None}
        assert all(n == "link_seq" or n.startswith("pad") for n in left_out), record.name


def test_labels_are_the_enumerations(db):
    found = all_of(db, "SELECT enum, value, name, doc FROM hftpipe.label")
    assert set(found) == {(e.name, v, n.lower(), d) for e in schema.ENUMS for n, v, d in e.members}


def test_named_tables_and_views_exist_and_answer(db):
    for name in ("orders", "trades", "order_audit_trail", "positions", "position_snapshots",
                 "risk_events", "daily_pnl", "order_latency", "latency_by_hop", "best_execution",
                 *EVENTS, "run",
                 "instrument", "mark", "descriptor", "migration"):
        with psycopg.connect(db) as c:
            c.execute("SET ROLE hftpipe_reader")
            c.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier("hftpipe", name)))


# ------------------------------------------------------------ who may do what

def refused(conninfo, role, statement, error=psycopg.errors.InsufficientPrivilege, **settings):
    with psycopg.connect(conninfo) as c:
        for key, value in settings.items():
            c.execute(f"SET {key} = {value}")
        if role:
            c.execute(f"SET ROLE {role}")
        with pytest.raises(error):
            c.execute(statement)


@pytest.mark.parametrize("table", EVENTS)
def test_event_tables_only_grow(db, table):
    for verb in (f"UPDATE hftpipe.{table} SET seq = 1", f"DELETE FROM hftpipe.{table}",
                 f"TRUNCATE hftpipe.{table}"):
        refused(db, "hftpipe_writer", verb)
        refused(db, "hftpipe_reader", verb)
        refused(db, "hftpipe_owner", verb)                          # the trigger
        refused(db, None, verb, session_replication_role="replica")     # also a superuser
    for verb in (f"SELECT * FROM hftpipe.{table}", f"DROP TABLE hftpipe.{table}",
                 f"ALTER TABLE hftpipe.{table} DISABLE TRIGGER ALL",
                 "SET session_replication_role = replica"):
        refused(db, "hftpipe_writer", verb)
    refused(db, "hftpipe_reader", f"INSERT INTO hftpipe.{table} DEFAULT VALUES")


def test_the_writer_only_moves_its_mark(db):
    for statement in ("UPDATE hftpipe.mark SET stream = 2", "UPDATE hftpipe.mark SET run = 2",
                      "DELETE FROM hftpipe.mark", "DELETE FROM hftpipe.run",
                      "UPDATE hftpipe.run SET profile = 'x'", "UPDATE hftpipe.label SET name = 'x'",
                      "INSERT INTO hftpipe.migration VALUES (9, 'x', 'x')",
                      "CREATE TABLE hftpipe.mine (i int)"):
        refused(db, "hftpipe_writer", statement)
    with psycopg.connect(db) as c:
        c.execute("SET ROLE hftpipe_writer")
        c.execute("UPDATE hftpipe.mark SET seq = 2, checksum = 3 WHERE seq = 1")
        c.execute("UPDATE hftpipe.run SET ended = now()")
