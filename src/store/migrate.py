"""Numbered, forward-only migrations: ``sql/NNNN_name.sql``, each once, each in a transaction."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import psycopg

from hftpipe.errors import BusyError, ConfigError, MismatchError

NAME = re.compile(r"(\d{4})_(\w+)\.sql")
LOCK = 0x686674_70697065                # b"hftpipe": one migration at a time per database
LOCK_TIMEOUT = "30s"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of ``sql/``."""

    version: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Status:
    """What a database has and what this program would add."""

    applied: tuple[tuple[int, str], ...]        # (version, name)
    pending: tuple[Migration, ...]


def _places() -> Iterable[Traversable]:
    try:
        yield files("hftpipe.sql")              # installed: the files travel as package data
    except ModuleNotFoundError:
        pass
    yield Path(__file__).resolve().parents[2] / "sql"       # a checkout, built in place


def sql_files() -> list[Migration]:
    """Every migration this program knows, oldest first.

    Raises
    ------
    ConfigError
        If there are none, or their numbers are not 1, 2, 3 and so on.
    """
    for place in _places():
        found = []
        if place.is_dir():
            for entry in place.iterdir():
                if m := NAME.fullmatch(entry.name):
                    found.append(Migration(int(m[1]), m[2], entry.read_text(encoding="utf-8")))
        if found:
            found.sort(key=lambda m: m.version)
            if [m.version for m in found] != list(range(1, len(found) + 1)):
                raise ConfigError("migrations must be numbered 0001, 0002, ... without gap or "
                                  f"double, found {[m.version for m in found]}")
            return found
    raise ConfigError("no migrations found: neither package data hftpipe.sql nor sql/ beside src/")


def connect(conninfo: str, timeout: int = 10) -> psycopg.Connection:
    """An autocommitting connection, or a one-line :class:`ConfigError` why not."""
    try:
        return psycopg.connect(conninfo, autocommit=True, connect_timeout=timeout,
                               application_name="hftpipe")
    except psycopg.Error as e:
        raise ConfigError(f"cannot connect to the database: {' '.join(str(e).split())}") from None


def _status(c: psycopg.Connection, known: list[Migration]) -> Status:
    row = c.execute("SELECT to_regclass('hftpipe.migration') IS NOT NULL").fetchone()
    assert row is not None
    have = c.execute("SELECT version, name, sha256 FROM hftpipe.migration ORDER BY version"
                     ).fetchall() if row[0] else []
    for (version, name, sha256), mine in zip(have, known, strict=False):
        if (version, sha256) != (mine.version, mine.sha256):
            raise MismatchError(
                f"migration {version:04}_{name} was applied with sha256 {sha256[:12]}, this "
                f"program's {mine.version:04}_{mine.name} has {mine.sha256[:12]}: "
                "applied files must never change")
    if len(have) > len(known):
        raise ConfigError(f"the database is at version {len(have)}, this program only knows "
                          f"{len(known)}: a newer one migrated it")
    return Status(tuple((v, n) for v, n, _ in have), tuple(known[len(have):]))


def status(conninfo: str) -> Status:
    """Compare the database with :func:`sql_files`; changes nothing."""
    with connect(conninfo) as c:
        return _status(c, sql_files())


def migrate(conninfo: str, known: list[Migration] | None = None) -> list[Migration]:
    """Apply what is missing and return it; safe to call at the same time from anywhere.

    Parameters
    ----------
    conninfo : str
        libpq conninfo or URL of a user who may create a schema in that database.
    known : list of Migration, optional
        Instead of :func:`sql_files`.

    Raises
    ------
    MismatchError
        If a file changed after it was applied.
    BusyError
        If another migration holds the lock for longer than 30 s.
    ConfigError
        If the database is newer than this program, or refuses.
    """
    known = sql_files() if known is None else known
    done = []
    with connect(conninfo) as c:
        try:
            c.execute(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
            c.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        except psycopg.errors.LockNotAvailable:
            raise BusyError("another migration of this database is at work") from None
        for m in _status(c, known).pending:
            try:
                with c.transaction():
                    if m.version > 1:
                        become_owner(c)
                    c.execute(m.text.encode())      # bytes: several statements, no parameters
                    c.execute("INSERT INTO hftpipe.migration (version, name, sha256) "
                              "VALUES (%s, %s, %s)", (m.version, m.name, m.sha256))
            except psycopg.errors.LockNotAvailable:
                raise BusyError(f"migration {m.version:04}_{m.name}: a table it changes is "
                                "in use") from None
            except psycopg.Error as e:
                raise ConfigError(f"migration {m.version:04}_{m.name} failed and was undone: "
                                  f"{' '.join(str(e).split())}") from e
            done.append(m)
    return done


def become_owner(c: psycopg.Connection) -> None:
    """Within a transaction: act as ``hftpipe_owner`` where that role exists and is ours."""
    row = c.execute("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_owner' "
                    "AND pg_has_role(current_user, oid, 'MEMBER'))").fetchone()
    if row is not None and row[0]:
        c.execute("SET LOCAL ROLE hftpipe_owner")
