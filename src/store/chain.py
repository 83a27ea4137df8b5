"""A SHA-256 chain over the rows of each stream, anchored outside of the database.

A batch of a stream, rows *first* to *last*, is one link::

    digest = SHA-256 of, for each kind of record by number: number (u16), count (u32),
             its rows in order, as COPY BINARY has them
    leaves = of each row by seq: ``verify.checksum`` of the row without its identity, as
             COPY BINARY has it, padded with zeros to whole words
    head   = SHA-256 of the previous head (nothing at first), run (i64), stream (i16),
             first (i64), last (i64), digest, leaves

all numbers big-endian.  The head commits to every bit of every row up to *last*.  The leaves
convict nobody, they find the row: one SHA-256 per row would cost a fifth of the writer's rate.
Whoever can rewrite all of it in the database cannot rewrite the heads in the anchors:
``anchors.jsonl`` of the run directory, and wherever else it is copied.
"""
from __future__ import annotations

import datetime as dt
import errno
import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from hftpipe import schema
from hftpipe.errors import AccessError, ConfigError, MismatchError
from hftpipe.store.encode import HEADER, IDENTITY, TRAILER, Encoder
from hftpipe.store.layout import TABLES, copy_range, table
from hftpipe.store.verify import checksum

Array = np.ndarray[Any, np.dtype[Any]]
Part = tuple[int, Array]                # record number, (n, width) bytes of its encoded rows

BLOCK = 32768                           # rows read back at a time, at least
FILE = "anchors.jsonl"


def leaves(rows: Array) -> Array:
    """The leaf of each row; *rows* as in a part."""
    content = rows[:, IDENTITY:]
    padded = np.zeros((len(rows), -(-content.shape[1] // 8) * 8), np.uint8)
    padded[:, :content.shape[1]] = content
    return checksum(padded.view(">u8")).astype(">u8")


def digest(parts: Iterable[Part]) -> bytes:
    """What a batch contains; *parts* by record number."""
    h = hashlib.sha256()
    for number, rows in parts:
        h.update(struct.pack(">HI", number, len(rows)))
        h.update(np.ascontiguousarray(rows).data)
    return h.digest()


def head(previous: bytes, run: int, stream: int, first: int, last: int, content: bytes,
         found: bytes) -> bytes:
    """Head of the chain after one more link."""
    h = hashlib.sha256(previous)
    h.update(struct.pack(">qhqq", run, stream, first, last))
    h.update(content)
    h.update(found)
    return h.digest()


# ---------------------------------------------------------------- outside of the database

@dataclass(frozen=True, slots=True)
class Anchor:
    """The head that a stream's chain had at *seq*."""

    run: int
    stream: int
    seq: int
    head: bytes

    def line(self) -> str:
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        return json.dumps({"at": now, "run": f"{self.run:x}",
                           "stream": schema.STREAM.label(self.stream), "seq": self.seq,
                           "head": self.head.hex()}) + "\n"


class Anchors:
    """Appends to the file of anchors.

    Parameters
    ----------
    path : Path
        Made with mode 0600; a line that a host's death tore is cut off.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def add(self, found: Sequence[Anchor]) -> None:
        """Append *found*; on disk when this returns, or not there at all.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        fresh = not self.path.exists()
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            size = os.fstat(fd).st_size
            tail = os.pread(fd, 4096, max(size - 4096, 0))
            size -= len(tail) - (tail.rfind(b"\n") + 1)
            os.ftruncate(fd, size)
            data = "".join(a.line() for a in found).encode()
            try:
                if os.pwrite(fd, data, size) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)
        if fresh:                               # its name is on disk too
            fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def read(path: Path | str) -> list[Anchor]:
    """All anchors of a file; the last line may be torn.

    Raises
    ------
    ConfigError
        If there is no such file, or a line of it is none.
    """
    streams = {schema.STREAM.label(v): v for _, v, _ in schema.STREAM.members}
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except PermissionError as e:
        raise AccessError(f"anchors {path}: {e.strerror}") from None
    except OSError as e:
        raise ConfigError(f"anchors {path}: {e.strerror}") from None
    out = []
    for n, line in enumerate(lines, 1):
        try:
            d = json.loads(line)
            out.append(Anchor(int(d["run"], 16), streams[d["stream"]], int(d["seq"]),
                              bytes.fromhex(d["head"])))
        except (ValueError, KeyError, TypeError) as e:
            raise ConfigError(f"anchors {path}: line {n} is none: {type(e).__name__}") from None
    return out


# ---------------------------------------------------------------- proof

@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is not as it was written."""

    kind: str                   # altered, missing, added or reordered
    table: str
    seq: int
    what: str

    def __str__(self) -> str:
        return f"{self.table} row seq {self.seq} {self.kind}: {self.what}"


@dataclass(frozen=True, slots=True)
class StreamAudit:
    """One stream of one run."""

    stream: int
    rows: int                   # that the chain covers
    links: int
    anchored: int               # seq of the newest anchor; 0 = there is none
    head: bytes
    fault: Fault | None

    def __str__(self) -> str:
        name = schema.STREAM.label(self.stream)
        if self.fault:
            return f"{name}: {self.fault}"
        return (f"{name}: {self.rows} rows in {self.links} links, anchored to "
                f"{self.anchored}, head {self.head.hex()}")


@dataclass(frozen=True, slots=True)
class Audit:
    """All streams of one run."""

    run: int
    streams: tuple[StreamAudit, ...]

    @property
    def fault(self) -> StreamAudit | None:
        """The first stream that is wrong."""
        return next((s for s in self.streams if s.fault), None)


def runs(c: psycopg.Connection, run: int | None = None, *, every: bool = False) -> list[int]:
    """The runs that are asked for: *run*, or *every* one, or the newest.

    Raises
    ------
    ConfigError
        If there is none.
    """
    try:
        found = [r for (r,) in c.execute("SELECT run FROM hftpipe.run ORDER BY run DESC")]
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise ConfigError("the database has no tables of hftpipe; `hftpipe db migrate` makes them"
                          ) from None
    if run is not None:
        if run not in found:
            raise ConfigError(f"the database has no run {run:x}" + (
                f", the newest is {found[0]:x}" if found else ", it has none"))
        return [run]
    if not found:
        raise ConfigError("the database has no run")
    return found if every else found[:1]


def heads(c: psycopg.Connection, run: int) -> list[Anchor]:
    """Where each stream's chain is now."""
    return [Anchor(run, stream, seq, found) for stream, seq, found in c.execute(
        "SELECT stream, seq, head FROM hftpipe.mark WHERE run = %s AND seq > 0 ORDER BY stream",
        (run,), binary=True)]


def audit(conninfo: str, run: int, anchors: Iterable[Anchor] = ()) -> Audit:
    """Read every row of *run* and compare with chain and anchors.

    Parameters
    ----------
    conninfo : str
        Of a user who may read the event tables.
    run : int
        Run id.
    anchors : iterable of Anchor
        Those of other runs are passed over.

    Returns
    -------
    Audit
        With the first fault of each stream.
    """
    own: dict[int, list[Anchor]] = {}
    for a in anchors:
        if a.run == run:
            own.setdefault(a.stream, []).append(a)
    with psycopg.connect(conninfo) as c:
        c.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        marks: dict[int, tuple[int, bytes]] = {a.stream: (a.seq, a.head) for a in heads(c, run)}
        layouts = _layouts(c, run)
        kinds: dict[int, list[int]] = {}                # stream -> records it has rows of
        for number, record in layouts.items():
            for (stream,) in c.execute(f"SELECT DISTINCT stream FROM {table(record)} "
                                       "WHERE run = %s".encode(), (run,)):
                kinds.setdefault(stream, []).append(number)
        linked = {s for (s,) in c.execute(
            "SELECT DISTINCT stream FROM hftpipe.chain WHERE run = %s", (run,))}
        return Audit(run, tuple(
            _Stream(c, run, stream, {n: layouts[n] for n in sorted(kinds.get(stream, []))}).audit(
                marks.get(stream, (0, b"")), own.get(stream, []))
            for stream in sorted({*marks, *kinds, *linked, *own})))


def _layouts(c: psycopg.Connection, run: int) -> dict[int, schema.Record]:
    """The stored records by number as *run* wrote them, which may be an older version's."""
    told: dict[str, Any] = dict(c.execute(
        "SELECT record, descriptor FROM hftpipe.descriptor WHERE run = %s", (run,)).fetchall())
    out = {}
    for number, record in schema.BODIES.items():
        d = told.get(record.name)
        out[number] = record if d is None else schema.Record(
            d["name"], d["size"], record.doc, tuple(
                schema.Field(f["name"], f["type"], f["unit"], "", "" if f["stored"] else None)
                for f in d["fields"]))
    return out


class _Stream:
    """The audit of one stream."""

    def __init__(self, c: psycopg.Connection, run: int, stream: int,
                 kinds: Mapping[int, schema.Record]) -> None:
        self.c, self.run, self.stream, self.kinds = c, run, stream, kinds
        self.links: list[tuple[int, int, bytes, bytes, bytes]] = c.execute(
            "SELECT first, last, digest, leaves, head FROM hftpipe.chain "
            "WHERE run = %s AND stream = %s ORDER BY last", (run, stream), binary=True).fetchall()
        self.last = self.links[-1][1] if self.links else 0
        self.fault: Fault | None = None

    def blame(self, kind: str, where: str, seq: int, what: str) -> None:
        if self.fault is None or seq < self.fault.seq:
            self.fault = Fault(kind, where, seq, what)

    def audit(self, mark: tuple[int, bytes], anchors: list[Anchor]) -> StreamAudit:
        whole = self._chain()
        end = self.links[-1][4] if self.links else b""
        if mark != (self.last, end):
            self.blame("altered" if mark[0] == self.last else
                       "missing" if mark[0] > self.last else "added", "mark",
                       min(self.last, mark[0]) + 1,
                       f"the mark is at {mark[0]}, the chain at {self.last}")
        self._anchors(anchors)
        if whole:
            self._rows()
        return StreamAudit(self.stream, self.last, len(self.links),
                           max((a.seq for a in anchors), default=0), end, self.fault)

    def _chain(self) -> bool:
        """Whether the links follow one another; else the rows cannot be told."""
        previous, at = b"", 0
        for first, last, content, found, end in self.links:
            if first != at + 1:
                self.blame("missing" if first > at + 1 else "added", "chain", min(first, at + 1),
                           f"the link of rows {first} to {last} follows row {at}")
                return False
            if head(previous, self.run, self.stream, first, last, content, found) != end:
                self.blame("altered", "chain", first,
                           f"the link of rows {first} to {last} has another head")
            previous, at = end, last
        return True

    def _anchors(self, anchors: list[Anchor]) -> None:
        ends = {last: end for _, last, _, _, end in self.links}
        good = 0
        for a in sorted(anchors, key=lambda a: a.seq):
            if a.seq > self.last:
                self.blame("missing", "chain", self.last + 1,
                           f"it was anchored up to row {a.seq}, the chain ends at {self.last}")
            elif ends.get(a.seq) != a.head:
                self.blame("altered", "chain", good + 1,
                           f"rows {good + 1} to {a.seq} are not those that were anchored")
                return
            good = a.seq

    def _rows(self) -> None:
        told = np.frombuffer(b"".join(found for _, _, _, found, _ in self.links), ">u8")
        got = np.zeros(self.last, ">u8")
        times = np.zeros(self.last, np.uint8)           # how often each seq is there
        where: dict[int, str] = {}                      # table of a row that is wrong
        contents = []                                   # links whose digest is another
        for part in self._windows():
            read = {n: self._read(r, part[0][0], part[-1][1]) for n, r in self.kinds.items()}
            for first, last, content, found, _ in part:
                batch: list[Part] = []
                good = np.frombuffer(found, ">u8")
                for number, (seqs, rows, made) in read.items():
                    lo, hi = np.searchsorted(seqs, [first, last + 1])
                    if lo == hi:
                        continue
                    batch.append((number, rows[lo:hi]))
                    at = seqs[lo:hi] - 1
                    got[at] = made[lo:hi]
                    np.add.at(times, at, 1)
                    for i in np.flatnonzero((got[at] != good[at - first + 1])
                                            | (times[at] > 1))[:1]:
                        where.setdefault(int(at[i]) + 1, TABLES[schema.BODIES[number].name])
                if digest(batch) != content:
                    contents.append((first, last))
        self._outside()
        wrong = np.flatnonzero((times != 1) | (got != told))
        if len(wrong):
            seq = int(wrong[0]) + 1
            self.blame(*self._kind(seq, told, got, times, where))
        for first, last in contents:
            if not ((wrong >= first - 1) & (wrong < last)).any():
                self.blame("altered", "chain", first,
                           f"rows {first} to {last} are not those that were hashed")

    def _kind(self, seq: int, told: Array, got: Array, times: Array, where: Mapping[int, str]
              ) -> tuple[str, str, int, str]:
        """What happened to the first wrong row."""
        i = seq - 1
        name = where.get(seq, "chain")
        if times[i] == 0:
            return "missing", name, seq, "it is in no table"
        if times[i] > 1:
            return "added", name, seq, "another table has this seq too"
        came = np.flatnonzero(told == got[i])           # where the contents found were written
        went = np.flatnonzero((got == told[i]) & (times == 1))  # where those written are now
        if len(came) and len(went):
            return "reordered", name, seq, f"it holds what was written as seq {came[0] + 1}"
        if len(came):
            return ("missing", name, seq,
                    f"what was written is nowhere; what was seq {came[0] + 1} took its place")
        if len(went):
            return ("added", name, seq,
                    f"it was never written; what was seq {seq} is seq {went[0] + 1}")
        return ("altered", name, seq,
                f"its leaf is {int(got[i]):016x}, {int(told[i]):016x} was written")

    def _outside(self) -> None:
        """Rows that the chain never had."""
        for record in self.kinds.values():
            row = self.c.execute(
                f"SELECT min(seq) FROM {table(record)} WHERE run = %s AND stream = %s "
                "AND (seq < 1 OR seq > %s)".encode(), (self.run, self.stream, self.last)
            ).fetchone()
            if row is not None and row[0] is not None:
                self.blame("added", TABLES[record.name], row[0],
                           f"the chain has rows 1 to {self.last}")

    def _windows(self) -> Iterator[list[Any]]:
        """The links in pieces of about ``BLOCK`` rows."""
        part: list[Any] = []
        for link in self.links:
            part.append(link)
            if link[1] - part[0][0] + 1 >= BLOCK:
                yield part
                part = []
        if part:
            yield part

    def _read(self, record: schema.Record, first: int, last: int) -> tuple[Array, Array, Array]:
        """seq of each row of a range, the rows as ``COPY`` has them, their leaves."""
        with self.c.cursor().copy(copy_range(record, self.run, self.stream, first, last)) as copy:
            data = b"".join(copy)
        width = Encoder(record, schema.slot_of(record)).width
        if (not data.startswith(HEADER) or not data.endswith(TRAILER)
                or (len(data) - len(HEADER) - len(TRAILER)) % width):
            raise MismatchError(f"{TABLES[record.name]}: COPY returned {len(data)} bytes, expected "
                                f"rows of {width}")
        rows = np.frombuffer(data[len(HEADER):-len(TRAILER)], np.uint8).reshape(-1, width)
        seqs = rows[:, IDENTITY - 8:IDENTITY].copy().view(">i8")[:, 0]
        return seqs.astype(np.int64), rows, leaves(rows)
