"""Everything the database holds in a directory, and back, proved by the heads of the chains.

A backup is a directory with one file for each table, its rows as ``COPY BINARY`` has them,
compressed, and ``manifest.json``: the migrations that made the tables, of every file its rows and
SHA-256, and of every stream how far it had come with the head of its chain, all of one snapshot.
A restore makes the tables by the same migrations, fills them, and audits every run against those
heads.

Not ``pg_dump``: what it writes is text, and text does not keep every bit of a float.  Not a number
is one text with 2**53 values, and the chain is over the bits.
"""
from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from hftpipe.errors import AccessError, ConfigError, DataError, DiskError, MismatchError
from hftpipe.store import chain, migrate

FORMAT = 1
MANIFEST = "manifest.json"
MADE = ("migration", "label")           # filled by the migrations themselves
PART = 1 << 20                          # bytes read at a time
LEVEL = 1                               # of gzip: most of the gain, a third of the time


@dataclass(frozen=True, slots=True)
class Table:
    """One table's file, ``NAME.copy.gz``.

    Attributes
    ----------
    name : str
    columns : list of str
    rows : int
    size : int, bytes
        Of the file.
    sha256 : str
        Of the file.
    """

    name: str
    columns: list[str]
    rows: int
    size: int
    sha256: str

    def file(self, place: Path) -> Path:
        return place / f"{self.name}.copy.gz"


@dataclass(frozen=True, slots=True)
class Backup:
    """What a backup's manifest says.

    Attributes
    ----------
    path : Path
    made : str
        UTC, ISO 8601.
    migrations : list of (version, name, sha256)
        What had made the tables.
    tables : list of Table
        In an order in which they can be filled.
    heads : list of Anchor
        Of every stream of every run.
    """

    path: Path
    made: str
    migrations: list[tuple[int, str, str]]
    tables: list[Table]
    heads: list[chain.Anchor]

    @property
    def runs(self) -> list[int]:
        return sorted({a.run for a in self.heads})

    @property
    def size(self) -> int:
        return sum(t.size for t in self.tables)

    @property
    def events(self) -> int:
        return sum(a.seq for a in self.heads)


# ---------------------------------------------------------------- the two ways

def backup(conninfo: str, path: Path, say: Callable[[int], None] = lambda size: None) -> Backup:
    """Write a backup of the database to the new directory *path*.

    The database may be in use: it is one snapshot, and takes no lock that a writer waits for.

    Parameters
    ----------
    conninfo : str
        Of a user who may read every table.
    path : Path
        Must not exist.  It appears when it is whole and on disk.
    say : callable
        Told now and then how many bytes there are.

    Raises
    ------
    ConfigError
        If *path* exists, there is nothing to back up, or a table may not be read.
    AccessError, DiskError
        If the directory cannot be made, or not be written.
    """
    if path.exists() or path.is_symlink():
        raise ConfigError(f"a backup wants a new directory, {path} exists")
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.mkdir(mode=0o700)
    except OSError as e:
        raise AccessError(f"backup {path}: {e.strerror}") from None
    try:
        with migrate.connect(conninfo) as c, c.transaction():
            c.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            runs = chain.runs(c, every=True)
            made = [(int(v), str(n), str(s)) for v, n, s in c.execute(
                "SELECT version, name, sha256 FROM hftpipe.migration ORDER BY version")]
            heads = [a for run in runs for a in chain.heads(c, run) if a.seq]
            tables: list[Table] = []
            for name, columns in _order(c):
                done = sum(t.size for t in tables)
                tables.append(_save(c, name, columns, part,
                                    lambda size, done=done: say(done + size)))  # type: ignore[misc]
        found = Backup(path, dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), made, tables,
                       heads)
        _write(part / MANIFEST, json.dumps(_document(found), indent=1).encode())
        _sync(part)
        part.rename(path)
        _sync(path.parent)
        return found
    except psycopg.Error as e:
        raise ConfigError(f"the database cannot be backed up: {str(e).splitlines()[0]}") from None
    except OSError as e:
        raise DiskError(f"backup {path}: {e.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)     # what was renamed is not there any more


def read(path: Path) -> Backup:
    """The manifest of a backup whose files are as they were written.

    Raises
    ------
    DataError
        If it is no backup.
    MismatchError
        If a file is not the one of its manifest.
    AccessError
        If it cannot be read.
    """
    try:
        found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        if found.get("format") != FORMAT:
            raise DataError(f"backup {path}: format must be {FORMAT}, was {found.get('format')!r}")
        made = Backup(
            path, str(found["made"]),
            [(int(v), str(n), str(s)) for v, n, s in found["migrations"]],
            [Table(str(t["name"]), list(map(str, t["columns"])), int(t["rows"]), int(t["bytes"]),
                   str(t["sha256"])) for t in found["tables"]],
            [chain.Anchor(int(run, 16), int(stream), int(seq), bytes.fromhex(head))
             for run, stream, seq, head in found["heads"]])
        for t in made.tables:
            size, digest = _digest(t.file(path))
            if (size, digest) != (t.size, t.sha256):
                raise MismatchError(f"{t.file(path)} must have {t.size} bytes and SHA-256 "
                                    f"{t.sha256}, found {size} bytes and {digest}")
    except FileNotFoundError as e:
        raise DataError(f"{path} is no backup: {Path(e.filename).name} is missing") from None
    except NotADirectoryError:
        raise DataError(f"{path} is no backup: it is no directory") from None
    except OSError as e:
        raise AccessError(f"backup {path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"backup {path}: {MANIFEST} cannot be read: {e}") from None
    return made


def restore(conninfo: str, path: Path, say: Callable[[str], None] = lambda text: None) -> Backup:
    """Fill the empty database *conninfo* with a backup and prove that it is all there.

    The tables are made by this program's migrations, as far as the backup's went; the rest is
    applied afterwards.

    Parameters
    ----------
    conninfo : str
        Of a user who may create a schema there.
    path : Path
    say : callable
        Told one line about every step.

    Raises
    ------
    DataError, AccessError
        As :func:`read`.
    ConfigError
        If the database holds runs already, or the backup is of a newer program.
    MismatchError
        If a migration is another one, or a row is not as it was backed up.
    """
    found = read(path)
    say(f"backup    of {found.made}: {len(found.runs)} runs, {found.events:,} events, "
        f"{found.size / 1e6:.1f} MB as it was written")
    known = migrate.sql_files()
    for (version, name, sha256), mine in zip(found.migrations, known, strict=False):
        if (version, sha256) != (mine.version, mine.sha256):
            raise MismatchError(f"backup {path}: its migration {version:04}_{name} has sha256 "
                                f"{sha256[:12]}, this program's has {mine.sha256[:12]}")
    if len(found.migrations) > len(known):
        raise ConfigError(f"backup {path} is of version {len(found.migrations)}, this program only "
                          f"knows {len(known)}")
    with migrate.connect(conninfo) as c:
        row = c.execute("SELECT to_regclass('hftpipe.run') IS NOT NULL").fetchone()
        assert row is not None
        if row[0]:
            row = c.execute("SELECT count(*) FROM hftpipe.run").fetchone()
            assert row is not None
            if row[0]:
                raise ConfigError(f"a restore wants an empty database, this one has {row[0]} runs")
            have = len(migrate.status(conninfo).applied)
            if have > len(found.migrations):
                raise ConfigError(f"a restore wants tables of version {len(found.migrations)} or "
                                  f"none, this database has those of version {have}")
    migrate.migrate(conninfo, known[:len(found.migrations)])
    say(f"migrate   version {len(found.migrations)}")
    with migrate.connect(conninfo) as c, c.transaction():
        migrate.become_owner(c)
        for t in found.tables:
            _fill(c, t, path)
    say(f"filled    {sum(t.rows for t in found.tables):,} rows of {len(found.tables)} tables")
    for run in found.runs:
        audited = chain.audit(conninfo, run, found.heads)
        if audited.fault is not None:
            raise MismatchError(f"run {run:x} is not as it was backed up: {audited.fault}")
        say(f"audited   run {run:x}: {sum(s.rows for s in audited.streams):,} rows as they were "
            "written")
    applied = migrate.migrate(conninfo)
    if applied:
        say(f"migrate   version {len(known)}")
    return found


# ---------------------------------------------------------------- tables

def _order(c: psycopg.Connection) -> list[tuple[str, list[str]]]:
    """Tables with their columns; what a foreign key names comes first."""
    columns: dict[str, list[str]] = {}
    for name, column in c.execute(
            "SELECT r.relname, a.attname FROM pg_class r JOIN pg_attribute a ON a.attrelid = r.oid "
            "WHERE r.relnamespace = 'hftpipe'::regnamespace AND r.relkind = 'r' AND a.attnum > 0 "
            "AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY r.relname, a.attnum"):
        columns.setdefault(str(name), []).append(str(column))
    needs: dict[str, set[str]] = {}
    for name, other in c.execute(
            "SELECT r.relname, f.relname FROM pg_constraint k "
            "JOIN pg_class r ON r.oid = k.conrelid "
            "JOIN pg_class f ON f.oid = k.confrelid WHERE k.contype = 'f' "
            "AND r.relnamespace = 'hftpipe'::regnamespace AND r.oid <> f.oid"):
        needs.setdefault(str(name), set()).add(str(other))
    out: list[tuple[str, list[str]]] = []
    there: set[str] = set(MADE)
    left = [name for name in columns if name not in MADE]
    while left:
        ready = [name for name in left if needs.get(name, set()) <= there]
        if not ready:
            raise DataError(f"tables {', '.join(left)} need one another")
        out += [(name, columns[name]) for name in ready]
        there.update(ready)
        left = [name for name in left if name not in there]
    return out


def _copy(name: str, columns: list[str], way: str) -> sql.Composed:
    return sql.SQL("COPY {} ({}) {} (FORMAT binary)").format(
        sql.Identifier("hftpipe", name), sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL("TO STDOUT" if way == "out" else "FROM STDIN"))


def _save(c: psycopg.Connection, name: str, columns: list[str], place: Path,
          say: Callable[[int], None]) -> Table:
    """Write a table's file; on disk when this returns."""
    path = Table(name, columns, 0, 0, "").file(place)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        cursor = c.cursor()
        with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed, \
                cursor.copy(_copy(name, columns, "out")) as copy:
            for block in copy:
                packed.write(block)
                say(file.tell())
        rows = cursor.rowcount
        file.flush()
        os.fsync(file.fileno())
    size, digest = _digest(path)
    return Table(name, columns, rows, size, digest)


def _fill(c: psycopg.Connection, table: Table, place: Path) -> None:
    """Fill an empty table; numbers that it gives itself go on."""
    path = table.file(place)
    try:
        cursor = c.cursor()
        with gzip.open(path, "rb") as packed, \
                cursor.copy(_copy(table.name, table.columns, "in")) as copy:
            while block := packed.read(PART):
                copy.write(block)
    except (psycopg.Error, EOFError, gzip.BadGzipFile) as e:
        raise DataError(f"{path} does not fit its table: {str(e).splitlines()[0]}") from None
    if cursor.rowcount != table.rows:
        raise MismatchError(f"{path} must hold {table.rows} rows, held {cursor.rowcount}")
    for (column,) in c.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attidentity <> ''",
            (f"hftpipe.{table.name}",)).fetchall():
        c.execute(sql.SQL("SELECT setval(pg_get_serial_sequence({name}, {text}), max({column})) "
                          "FROM {table} HAVING max({column}) IS NOT NULL").format(
            name=f"hftpipe.{table.name}", text=str(column), column=sql.Identifier(column),
            table=sql.Identifier("hftpipe", table.name)))


# ---------------------------------------------------------------- files

def _document(b: Backup) -> dict[str, Any]:
    return {"format": FORMAT, "made": b.made, "migrations": [list(m) for m in b.migrations],
            "tables": [{"name": t.name, "columns": t.columns, "rows": t.rows, "bytes": t.size,
                        "sha256": t.sha256} for t in b.tables],
            "heads": [[f"{a.run:x}", a.stream, a.seq, a.head.hex()] for a in b.heads]}


def _digest(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
