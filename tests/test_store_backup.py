"""A backup is one snapshot, whole or not there, and a restore proves that every row came back."""
import json
import os
import threading

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hftpipe import cli
from hftpipe._ring import pair
from hftpipe.errors import ConfigError, DataError, MismatchError
from hftpipe.store import backup, chain, migrate
from hftpipe.store.writer import Run, StoreWriter

from .models import store as naive
from .models.database import fresh, run_directory, server, until
from .test_store_chain import COUNT, RUN, SIGNAL, Stored

pytestmark = pytest.mark.db


@pytest.fixture(scope="module")
def pg():
    with server() as p:
        yield p


@pytest.fixture
def stored(pg, tmp_path):
    return Stored(pg, tmp_path)


@pytest.fixture
def made(stored, tmp_path):
    return backup.backup(stored.conninfo, tmp_path / "backup")


def contents(conninfo):
    """Of every table: its rows as text, in order, without the times of migrations."""
    with psycopg.connect(conninfo) as c:
        names = [n for (n,) in c.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'hftpipe' ORDER BY 1")]
        assert {"run", "mark", "chain", "update_event"} <= set(names)
        return {n: sorted(t for (t,) in c.execute(f"SELECT t::text FROM hftpipe.{n} t"))
                for n in names if n != "migration"}


def test_everything_comes_back_and_goes_on(pg, stored, made, tmp_path):
    empty, said = fresh(pg, "template1"), []
    found = backup.restore(empty, made.path, said.append)
    assert contents(empty) == contents(stored.conninfo)
    assert found == made and made.runs == [RUN.run] and made.events == 2 * COUNT
    assert {a.seq for a in made.heads} == {COUNT}
    assert said[-1] == f"audited   run {RUN.run:x}: {2 * COUNT} rows as they were written"
    assert migrate.status(empty) == migrate.status(stored.conninfo)
    # a writer goes on with streams and chains
    producer, link = pair(naive.slot_record(SIGNAL), 64)
    for seq in range(COUNT + 1, COUNT + 11):
        assert producer.push(naive.random_slot(SIGNAL, seq))
    with StoreWriter({SIGNAL: link}, empty, RUN) as w:
        assert w.step() == 10
    assert chain.audit(empty, RUN.run, made.heads).fault is None
    with psycopg.connect(empty) as c, pytest.raises(psycopg.errors.InsufficientPrivilege):
        c.execute("DELETE FROM hftpipe.chain")


def test_a_backup_is_one_snapshot_while_a_writer_writes(pg, tmp_path):
    conninfo, run = fresh(pg), Run(RUN.run + 1, 5, "test")
    producer, link = pair(naive.slot_record(SIGNAL), 64)
    stop, stored = threading.Event(), 0

    def write():
        nonlocal stored
        with StoreWriter({SIGNAL: link}, conninfo, run) as w:
            while not stop.is_set():
                for _ in range(16):
                    assert producer.push(naive.random_slot(SIGNAL, stored + 1))
                    stored += 1
                w.step()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: stored > 100, what="rows are stored")
        began = stored
        made = backup.backup(conninfo, tmp_path / "backup")
        until(lambda: stored > began + 64, what="the writer went on")
    finally:
        stop.set()
        writer.join()
    empty = fresh(pg, "template1")
    backup.restore(empty, made.path)
    with psycopg.connect(empty) as c:
        assert chain.heads(c, run.run) == made.heads
    assert began - 32 <= made.events <= stored


def test_a_row_that_is_not_as_it_was_written_does_not_pass(pg, stored, tmp_path):
    stored.tamper("UPDATE hftpipe.update_event SET price = price + 1 WHERE seq = 25")
    made = backup.backup(stored.conninfo, tmp_path / "backup")
    with pytest.raises(MismatchError, match=r"not as it was backed up.*update_event.*25"):
        backup.restore(fresh(pg, "template1"), made.path)


@pytest.mark.parametrize("at", [0, 1000, -1])
def test_a_changed_byte_is_found(pg, made, at):
    path = made.path / "update_event.copy.gz"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(MismatchError, match=r"update_event\.copy\.gz must have .* SHA-256"):
        backup.read(made.path)
    empty = fresh(pg, "template1")
    with pytest.raises(MismatchError):
        backup.restore(empty, made.path)
    with psycopg.connect(empty) as c:
        assert c.execute("SELECT to_regclass('hftpipe.run')").fetchone() == (None,)


@pytest.mark.parametrize(("spoil", "error", "text"), [
    (lambda p: (p / backup.MANIFEST).unlink(), DataError, r"manifest\.json is missing"),
    (lambda p: (p / "run.copy.gz").unlink(), DataError, r"run\.copy\.gz is missing"),
    (lambda p: (p / backup.MANIFEST).write_text("{"), DataError, "cannot be read"),
    (lambda p: (p / backup.MANIFEST).write_text("[]"), DataError, "cannot be read"),
    (lambda p: (p / backup.MANIFEST).write_text('{"format": 9}'), DataError,
     "format must be 1, was 9"),
    (lambda p: (p / backup.MANIFEST).write_text('{"format": 1}'), DataError, "cannot be read"),
    (lambda p: (p / "run.copy.gz").write_bytes(b""), MismatchError, "found 0 bytes")])
def test_what_is_no_backup_is_refused(made, spoil, error, text):
    spoil(made.path)
    with pytest.raises(error, match=text):
        backup.read(made.path)


def test_a_file_is_no_backup(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(DataError, match="is no backup"):
        backup.read(tmp_path / "f")
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        backup.read(tmp_path)


def test_nothing_is_written_over(pg, stored, made, tmp_path):
    with pytest.raises(ConfigError, match="wants a new directory"):
        backup.backup(stored.conninfo, made.path)
    with pytest.raises(ConfigError, match="wants an empty database, this one has 1 runs"):
        backup.restore(stored.conninfo, made.path)
    assert sorted(os.listdir(tmp_path)) == ["anchors.jsonl", "backup"]


def test_what_fails_leaves_nothing(pg, stored, tmp_path):
    with pytest.raises(ConfigError, match="no run"):
        backup.backup(fresh(pg), tmp_path / "a")
    with pytest.raises(ConfigError, match="no tables of hftpipe"):
        backup.backup(fresh(pg, "template1"), tmp_path / "b")
    with psycopg.connect(stored.conninfo, autocommit=True) as c:
        c.execute("DROP ROLE IF EXISTS nothing")
        c.execute("CREATE ROLE nothing LOGIN PASSWORD 'it:is\\a secret'")
        c.execute("GRANT hftpipe_reader TO nothing")
        c.execute("REVOKE SELECT ON hftpipe.chain FROM hftpipe_reader")
    parts = conninfo_to_dict(stored.conninfo)
    parts.pop("passfile")
    theirs = make_conninfo("", **{**parts, "user": "nothing", "password": "it:is\\a secret"})
    try:
        with pytest.raises(ConfigError, match=r"cannot be backed up: .*chain") as caught:
            backup.backup(theirs, tmp_path / "c")
        assert "secret" not in str(caught.value)
    finally:
        with psycopg.connect(stored.conninfo, autocommit=True) as c:
            c.execute("GRANT SELECT ON hftpipe.chain TO hftpipe_reader")
    assert os.listdir(tmp_path) == ["anchors.jsonl"]
    assert backup.backup(theirs, tmp_path / "c").events == 2 * COUNT, "who may read may back up"


def test_a_backup_of_another_program(pg, made):
    path = made.path / backup.MANIFEST
    document = json.loads(path.read_text())
    document["migrations"][1][2] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(MismatchError, match="migration 0002_views has sha256 000000000000"):
        backup.restore(fresh(pg, "template1"), made.path)
    document["migrations"] = [[m.version, m.name, m.sha256] for m in migrate.sql_files()]
    document["migrations"].append([len(document["migrations"]) + 1, "later", "0" * 64])
    path.write_text(json.dumps(document))
    with pytest.raises(ConfigError, match="this program only knows"):
        backup.restore(fresh(pg, "template1"), made.path)


def test_the_commands(stored, tmp_path, capsys):
    def hp(*args):
        capsys.readouterr()
        code = cli.run(["db", *args])
        return code, *capsys.readouterr()

    place = str(tmp_path / "b")
    code, out, err = hp("backup", place, "--url", url(stored.conninfo), "-o", "json",
                        "--set", f"store.password=file:{secret(stored, tmp_path)}")
    assert code == 0, err
    document = json.loads(out)
    assert (document["runs"], document["events"]) == ([f"{RUN.run:x}"], 2 * COUNT)
    code, out, _ = hp("verify", place, "-o", "json")
    assert code == 0 and json.loads(out) == document
    with run_directory() as run_dir:
        code, out, err = hp("restore", place, "--run-dir", str(run_dir), "-o", "json")
        assert code == 0 and json.loads(out) == document, err
        assert "rows as they were written" in err
        assert cli.run(["audit", "verify", "--all", "--run-dir", str(run_dir)]) == 0
        code, _, err = hp("restore", place, "--run-dir", str(run_dir))
        assert code == 4 and "wants an empty database" in err
    with open(tmp_path / "b/run.copy.gz", "ab") as file:
        file.write(b"x")
    code, _, err = hp("verify", place)
    assert code == 9 and "must have" in err
    assert hp("verify", str(tmp_path / "none"))[0] == 4


def url(conninfo):
    from urllib.parse import quote
    parts = conninfo_to_dict(conninfo)
    return f"postgresql://{parts['user']}@/{parts['dbname']}?host={quote(parts['host'], safe='')}"


def secret(stored, tmp_path):
    with open(conninfo_to_dict(stored.conninfo)["passfile"]) as file:
        password = file.read().strip().rsplit(":", 1)[1]
    path = tmp_path / "password"
    path.write_text(password)
    path.chmod(0o600)
    return path
