"""The cold end of every store link: whole blocks into PostgreSQL, each event exactly once.

One pass takes what is ready on each link, checks it, and in **one transaction** advances the
stream's mark from the value it had and copies the rows; only after the commit are the slots
given back.  So, whatever is killed and whenever:

* the writer: slots not given back are read again; those at or below the mark are skipped,
  for their rows were committed;
* the server: the transaction is whole or absent, and on reconnecting the mark says which;
* a second writer: the mark is not where it left it, so it is fenced off.

Where PostgreSQL is slow or absent the links fill, nothing is dropped here, and the stages
close the gate by themselves.  A gap, a double or a damaged body stops the writer for good:
nothing after it is stored, nothing is skipped.
"""
from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from hftpipe import _fault, schema
from hftpipe.errors import BusyError, DeadlineError, MismatchError
from hftpipe.store import chain
from hftpipe.store.encode import HEADER, SEQ_MASK, TRAILER, body_words, encoder
from hftpipe.store.layout import copy_in, signed
from hftpipe.store.verify import MASK, checksum, total

Array = np.ndarray[Any, np.dtype[Any]]

BATCH = 4096                    # slots per link and transaction
LINGER = 0.005                  # s to wait for a batch to grow before it is committed anyway
ENOUGH = 512                    # slots at which it is not waited for
IDLE = 0.002                    # s between two looks at empty links
BACKOFF = (0.05, 2.0)           # s: first and longest pause before PostgreSQL is tried again
STATEMENT_TIMEOUT = "10s"       # a commit that takes longer is tried again, not waited for
CONNECT_TIMEOUT = 5             # s
ANCHOR = 10.0                   # s between two lines of a stream in the file of anchors
SILENCE = 12.0                  # s after which a connection without an answer is given up


class Link(Protocol):
    """What the writer needs of a consumer ``Ring`` of one of schema.SLOTS."""

    @property
    def record(self) -> schema.Record: ...
    def peek(self, count: int = 1) -> Array: ...
    def release(self, count: int = 1) -> None: ...
    def flush(self) -> None: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Run:
    """What the database should know of a run before its first event."""

    run: int                                    # id: UTC ns of the start
    utc_offset: int                             # UTC minus monotonic clock, ns
    profile: str
    instruments: tuple[tuple[str, int, int], ...] = ()      # (symbol, tick, lot) by index


@dataclass(slots=True)
class Totals:
    """What the writer did so far; handed to the observer after every pass."""

    rows: int = 0               # committed
    batches: int = 0            # transactions committed
    skipped: int = 0            # slots whose rows an earlier writer had committed
    errors: int = 0             # failed transactions and connections
    lag: int = 0                # events waiting in the links
    connected: bool = False
    last_error: str = ""
    by_stream: dict[int, int] = field(default_factory=dict)     # mark of each stream


class _Watch:
    """Ends a connection on which nothing came back in time.

    The server's own timeouts do not help when the server itself is stopped, and a Unix
    socket has none: a thread looks twice a second and shuts the socket down, so that
    the wait for it fails.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._guarded: tuple[socket.socket, float] | None = None    # and its deadline
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def __call__(self, c: psycopg.Connection) -> Iterator[None]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="store-watch", daemon=True)
            self._thread.start()
        with socket.socket(fileno=os.dup(c.fileno())) as own:
            with self._lock:
                self._guarded = own, time.monotonic() + self._limit
            try:
                yield
            finally:
                with self._lock:
                    self._guarded = None

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stop.clear()

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            with self._lock:
                if self._guarded is not None and time.monotonic() >= self._guarded[1]:
                    with contextlib.suppress(OSError):
                        self._guarded[0].shutdown(socket.SHUT_RDWR)


class _Fenced(Exception):
    """The mark is not where we left it."""


class StoreWriter:
    """Drain store links into PostgreSQL.

    Parameters
    ----------
    links : mapping of stream (``schema.STREAM``) to consumer Ring
        Each ring carries the events of one stream.
    conninfo : str
        libpq conninfo or URL.  The session acts as ``hftpipe_writer`` where that role exists
        and is granted to the user.
    run : Run
        Registered, with the layouts of all records, on the first connection.
    observe : callable, optional
        Called with :class:`Totals` after every pass; must not keep it.
    silence : float, default 12 s
        A server that says nothing for so long is given up and connected to again.
    anchors : chain.Anchors, optional
        Told every ten seconds, and at the end, how far each stream's chain has come.

    Notes
    -----
    One thread.  Nothing is raised for a database that is slow or away; see :attr:`totals`.
    """

    def __init__(self, links: Mapping[int, Link], conninfo: str, run: Run,
                 observe: Callable[[Totals], None] | None = None, *,
                 silence: float = SILENCE, anchors: chain.Anchors | None = None) -> None:
        for stream, link in links.items():
            if link.record not in schema.SLOTS:
                raise ValueError(f"link of {schema.STREAM.label(stream)} must carry stored "
                                 f"records, carries {link.record.name}")
        self.links = dict(links)
        self.conninfo, self.run, self._observe = conninfo, run, observe
        self.totals = Totals()
        # stream -> (seq, checksum sum, head of the chain)
        self._marks: dict[int, tuple[int, int, bytes]] = {}
        self._anchors, self._anchored = anchors, dict.fromkeys(self.links, 0)
        self._anchor_at = 0.0
        self._flight: dict[int, int] = {}       # seq of each mark a lost commit may have set
        self._known = False                     # the marks were read at least once
        self._connection: psycopg.Connection | None = None
        self._pause = BACKOFF[0]
        self._retry_at = 0.0
        self._watch = _Watch(silence)

    # ------------------------------------------------------------ one pass

    def step(self) -> int:
        """Commit one batch of what is ready; the number of rows.  Never waits when idle.

        0 means there was nothing, or the database is away and it is not yet time to try again.

        Raises
        ------
        MismatchError
            If a link's events have a gap, a double or a damaged body.
        BusyError
            If another writer works on this run.
        """
        rows = 0
        try:
            if time.monotonic() >= self._retry_at:
                rows = self._commit()
            self._anchor()
        except psycopg.Error as e:
            self._failed(e)
        finally:
            self.totals.lag = sum(len(link) for link in self.links.values())
            if self._observe is not None:
                self._observe(self.totals)
        return rows

    def serve(self, stopped: Callable[[], object], idle: Callable[[float], object] = time.sleep
              ) -> None:
        """Work until *stopped* says so; small batches are let grow for a few milliseconds.

        Parameters
        ----------
        stopped : callable
            Asked between passes.
        idle : callable, default time.sleep
            Told how many seconds there is nothing to do.
        """
        while not stopped():
            waiting = sum(len(link) for link in self.links.values())
            if 0 < waiting < ENOUGH:
                idle(LINGER)
            if not self.step():
                wait = self._retry_at - time.monotonic()
                idle(min(max(wait, IDLE), 0.1))

    def drain(self, timeout: float) -> int:
        """Commit everything that the links hold; their producers are quiet now.

        Returns
        -------
        int
            Rows committed.

        Raises
        ------
        DeadlineError
            If something is left after *timeout* seconds; it stays in the links.
        MismatchError, BusyError
            As :meth:`step`.
        """
        rows, end = 0, time.monotonic() + timeout
        while True:
            done = self.step()
            rows += done
            if not self.totals.lag and self._known:
                return rows
            left = end - time.monotonic()
            if left <= 0:
                raise DeadlineError(
                    f"{self.totals.lag} events are still in the store links after {timeout:g} s: "
                    f"{self.totals.last_error or 'the database is slow'}")
            if not done:
                time.sleep(min(max(self._retry_at - time.monotonic(), IDLE), left))

    def finish(self) -> None:
        """Say in ``run`` that everything of this run is stored."""
        self._session().execute("UPDATE hftpipe.run SET ended = now() WHERE run = %s",
                                (self.run.run,))

    def heads(self) -> list[chain.Anchor]:
        """How far each stream's chain has come."""
        return [chain.Anchor(self.run.run, stream, seq, head)
                for stream, (seq, _, head) in self._marks.items() if seq]

    def close(self) -> None:
        """Let the connection go; the links keep what was not committed."""
        self._anchor(now=True)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.totals.connected = False
        self._watch.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------ the transaction

    def _commit(self) -> int:
        c = self._session()
        taken: list[tuple[int, Array, int]] = []            # (stream, new slots, slots to release)
        for stream, link in self.links.items():
            slots = link.peek(BATCH)
            if not len(slots):
                continue
            fresh = self._fresh(stream, link.record, slots)
            if len(fresh):
                taken.append((stream, fresh, len(slots)))
            else:
                self._give_back(link, len(slots), len(slots))
        if not taken:
            return 0
        marks = {}
        try:
            with self._watch(c), c.transaction():
                _fault.point("store.begun")
                for stream, slots, _ in taken:
                    parts = self._encoded(self.links[stream].record, slots)
                    marks[stream] = self._advance(c, stream, slots, parts)
                    _fault.point("store.marked")
                    if _fault.bug("store.mark_first"):
                        c.execute("COMMIT; BEGIN")
                    self._copy(c, parts)
                _fault.point("store.copied")
                self._flight = {stream: mark[0] for stream, mark in marks.items()}
        except _Fenced:
            raise BusyError(
                f"another writer stores run {self.run.run:x}: a mark is not where this one "
                "left it") from None
        _fault.point("store.committed")
        self._flight = {}
        self._marks |= marks
        rows = 0
        for stream, slots, count in taken:
            self._give_back(self.links[stream], count, count - len(slots))
            rows += len(slots)
            self.totals.by_stream[stream] = marks[stream][0]
        self.totals.rows += rows
        self.totals.batches += 1
        self._pause = BACKOFF[0]
        return rows

    def _give_back(self, link: Link, count: int, skipped: int) -> None:
        link.release(count)
        link.flush()
        self.totals.skipped += skipped

    def _fresh(self, stream: int, slot: schema.Record, slots: Array) -> Array:
        """*slots* without those an earlier writer committed, checked."""
        mark = self._marks[stream][0]
        name = schema.STREAM.label(stream)
        event = slots["event"]
        seq = event & np.uint64(SEQ_MASK)
        first = int(seq[0])
        expected = np.arange(first, first + len(slots), dtype=np.uint64) | np.uint64(
            stream << schema.SEQ_BITS)
        wrong = np.flatnonzero(event != expected)
        if len(wrong):
            i = wrong[0]
            raise MismatchError(
                f"store link of {name}: event {int(event[i]):#x} stands where "
                f"{int(expected[i]):#x} must")
        if first > mark + 1:
            raise MismatchError(f"store link of {name}: events {mark + 1} to {first - 1} are "
                                "neither in the link nor in the database")
        fresh = slots[mark + 1 - first:]
        if len(fresh):
            self._check(name, slot, fresh)
        return fresh

    def _check(self, name: str, slot: schema.Record, slots: Array) -> None:
        """Every body is of the length its record has, and as its checksum says."""
        for number, part in _kinds(slots):
            record = encoder(number, slot).record
            lines = record.size // schema.LINE
            short = np.flatnonzero(part["lines"] != lines)
            if len(short):
                i = short[0]
                raise MismatchError(
                    f"store link of {name}: event {int(part['event'][i]):#x} is a {record.name} "
                    f"of {int(part['lines'][i])} lines, expected {lines}")
            made = checksum(body_words(part, slot, record.size // 8))
            bad = np.flatnonzero(made != part["checksum"])
            if len(bad):
                i = bad[0]
                raise MismatchError(
                    f"store link of {name}: body of event {int(part['event'][i]):#x} has "
                    f"checksum {int(made[i]):#x}, its envelope says {int(part['checksum'][i]):#x}")

    def _encoded(self, slot: schema.Record, slots: Array) -> list[chain.Part]:
        """Rows by kind; valid until the next stream's."""
        return [(number, np.frombuffer(e.encode(part, self.run.run), np.uint8).reshape(
                    len(part), e.width))
                for number, part in _kinds(slots) for e in (encoder(number, slot),)]

    def _advance(self, c: psycopg.Connection, stream: int, slots: Array,
                 parts: list[chain.Part]) -> tuple[int, int, bytes]:
        """Move the mark first: its row lock is what serialises writers."""
        old, added, before = self._marks[stream]
        new = old + len(slots)
        content = (added + total(slots["checksum"])) & MASK
        found = np.concatenate([chain.leaves(rows) for _, rows in parts])
        if len(parts) > 1:                              # by kind; they must be by seq
            kinds = slots["record"]
            order = np.concatenate([np.flatnonzero(kinds == number) for number, _ in parts])
            by_seq = np.empty_like(found)
            by_seq[order] = found
            found = by_seq
        leaves, digest = found.astype(">u8").tobytes(), chain.digest(parts)
        head = chain.head(before, self.run.run, stream, old + 1, new, digest, leaves)
        done = c.execute(
            "WITH moved AS (UPDATE hftpipe.mark SET seq = %(new)s, checksum = %(content)s, "
            "head = %(head)b WHERE run = %(run)s AND stream = %(stream)s AND seq = %(old)s "
            "AND head = %(before)b RETURNING run, stream) "
            "INSERT INTO hftpipe.chain (run, stream, first, last, digest, leaves, head) "
            "SELECT run, stream, %(old)s::bigint + 1, %(new)s::bigint, %(digest)b, %(leaves)b, "
            "%(head)b FROM moved",
            {"new": new, "content": signed(content), "head": head, "run": self.run.run,
             "stream": stream, "old": old, "before": before, "digest": digest,
             "leaves": leaves})
        if done.rowcount != 1:
            raise _Fenced
        return new, content, head

    def _copy(self, c: psycopg.Connection, parts: list[chain.Part]) -> None:
        for number, rows in parts:
            with c.cursor().copy(copy_in(schema.BODIES[number])) as copy:
                copy.write(HEADER)
                copy.write(rows.reshape(-1).data)
                copy.write(TRAILER)

    def _anchor(self, now: bool = False) -> None:
        """Write down outside of the database what is committed, at most every ten seconds.

        What cannot be written is tried again: events are never held up for it.
        """
        if self._anchors is None or not (now or time.monotonic() >= self._anchor_at):
            return
        self._anchor_at = time.monotonic() + ANCHOR
        fresh = [a for a in self.heads() if a.seq != self._anchored[a.stream]]
        if fresh:
            try:
                self._anchors.add(fresh)
            except OSError as e:
                self.totals.last_error = f"anchors {self._anchors.path}: {e.strerror}"
                return
            self._anchored.update({a.stream: a.seq for a in fresh})

    # ------------------------------------------------------------ the connection

    def _session(self) -> psycopg.Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        c = psycopg.connect(self.conninfo, autocommit=True, connect_timeout=CONNECT_TIMEOUT,
                            application_name=f"hftpipe store {self.run.run:x}")
        try:
            become_writer(c)
            c.execute(f"SET statement_timeout = '{STATEMENT_TIMEOUT}'")
            c.execute(f"SET idle_in_transaction_session_timeout = '{STATEMENT_TIMEOUT}'")
            if not self._known:
                register(c, self.run, self.links)
            with self._watch(c):
                self._recall(c)
        except BaseException:
            c.close()
            raise
        self._connection = c
        self.totals.connected = True
        return c

    def _recall(self, c: psycopg.Connection) -> None:
        """Read the marks, after whatever transaction of a dead writer still holds them.

        Between two connections of one writer a mark may only stay, or have become what a
        commit without an answer would have made of it.
        """
        with c.transaction():
            found = {s: (seq, content & MASK, head) for s, seq, content, head in c.execute(
                "SELECT stream, seq, checksum, head FROM hftpipe.mark WHERE run = %s FOR UPDATE",
                (self.run.run,), binary=True)}
        for stream in self.links:
            if stream not in found:
                raise MismatchError(f"the database has no mark for stream {stream} of run "
                                    f"{self.run.run:x}")
            seq, had = found[stream][0], self._marks.get(stream)
            if self._known and had is not None and seq not in (
                    had[0], self._flight.get(stream, had[0])):
                raise BusyError(f"another writer stores run {self.run.run:x}: the mark of stream "
                                f"{stream} is at {seq}, this one left it at {had[0]}")
            self.totals.by_stream[stream] = seq
        self._marks = {stream: found[stream] for stream in self.links}
        self._flight, self._known = {}, True

    def _failed(self, e: psycopg.Error) -> None:
        """Note a failed try and when to try again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.totals.connected = False
        self.totals.errors += 1
        self.totals.last_error = " ".join(str(e).split()) or type(e).__name__
        self._retry_at = time.monotonic() + self._pause * random.uniform(0.5, 1.0)
        self._pause = min(self._pause * 2, BACKOFF[1])


def _kinds(slots: Array) -> Iterable[tuple[int, Array]]:
    """(record number, its slots in order); no copy while all are of one kind."""
    kinds = slots["record"]
    first = int(kinds[0])
    if (kinds == first).all():
        yield first, slots
        return
    for number in np.unique(kinds):
        yield int(number), slots[kinds == number]


def become_writer(c: psycopg.Connection) -> None:
    """Act as ``hftpipe_writer`` from here on, where that role exists and is ours."""
    row = c.execute("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hftpipe_writer' "
                    "AND pg_has_role(current_user, oid, 'MEMBER'))").fetchone()
    if row is not None and row[0]:
        c.execute("SET ROLE hftpipe_writer")


def program_version() -> str:
    try:
        return version("hftpipe")
    except PackageNotFoundError:            # a checkout that was never installed
        return "unknown"


def register(c: psycopg.Connection, run: Run, streams: Iterable[int]) -> None:
    """Make the rows of ``run``, ``instrument``, ``descriptor`` and ``mark``; idempotent.

    Raises
    ------
    MismatchError
        If the run is known with records of another layout.
    """
    with c.transaction():
        c.execute(
            "INSERT INTO hftpipe.run (run, started, profile, utc_offset, host, version) VALUES "
            "(%(run)s, timestamptz 'epoch' + %(run)s / 1000 * interval '1 microsecond', "
            "%(profile)s, %(utc_offset)s, %(host)s, %(version)s) ON CONFLICT DO NOTHING",
            {"run": run.run, "profile": run.profile, "utc_offset": run.utc_offset,
             "host": socket.gethostname(), "version": program_version()})
        cursor = c.cursor()
        cursor.executemany(
            "INSERT INTO hftpipe.instrument (run, index, symbol, tick, lot) "
            "VALUES (%s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(run.run, i, *row) for i, row in enumerate(run.instruments)])
        cursor.executemany(
            "INSERT INTO hftpipe.descriptor (run, record, fingerprint, descriptor) "
            "VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [(run.run, r.name, signed(r.fingerprint), Jsonb(schema.descriptor(r)))
             for r in (schema.ENVELOPE, *schema.BODIES.values())])
        cursor.executemany(
            "INSERT INTO hftpipe.mark (run, stream, seq, checksum) VALUES (%s, %s, 0, 0) "
            "ON CONFLICT DO NOTHING", [(run.run, stream) for stream in streams])
        other = [name for name, fingerprint in c.execute(
            "SELECT record, fingerprint FROM hftpipe.descriptor WHERE run = %s", (run.run,))
            if name in schema.BY_NAME
            and fingerprint != signed(schema.BY_NAME[name].fingerprint)]
    if other:
        raise MismatchError(f"run {run.run:x} was begun with other layouts of "
                            f"{', '.join(sorted(other))}")


def recover(links: Mapping[int, Link], conninfo: str, run: Run, timeout: float = 30.0,
            begun: Callable[[Totals], None] | None = None,
            anchors: chain.Anchors | None = None) -> Totals:
    """Store what a run that was killed left in its links; the caller then unlinks them.

    Parameters
    ----------
    links : mapping of stream to consumer Ring
        The stale segments, attached as consumer; their producers are dead.
    conninfo, run
        As :class:`StoreWriter`; *run* is the dead run's.
    timeout : float, seconds
        Without progress.
    begun : callable, optional
        Given the totals before anything is done; they name the marks once those are known.
    anchors : chain.Anchors, optional
        As :class:`StoreWriter`.

    Raises
    ------
    DeadlineError
        If the database did not take everything in time: keep the segments.
    MismatchError
        If a link contradicts the database: keep the segments.
    """
    with StoreWriter(links, conninfo, run, anchors=anchors) as writer:
        if begun is not None:
            begun(writer.totals)
        rows = -1
        while True:
            try:
                writer.drain(timeout)
                return writer.totals
            except DeadlineError:
                if writer.totals.rows == max(rows, 0):
                    raise
                rows = writer.totals.rows
