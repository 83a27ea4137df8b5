"""A database that keeps transactions, for the simulation: the store writer's other end.

It understands what :class:`hftpipe.store.writer.StoreWriter` says to PostgreSQL and nothing else:
marks that are read and advanced, and rows by ``COPY BINARY``, decoded with the encoder's own
inverse.  What a transaction does is there when it was committed, or not at all; a primary key
refuses a row a second time.
"""
from __future__ import annotations

import contextlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import psycopg

from hftpipe import schema
from hftpipe.alpaca.session import words
from hftpipe.drill.disk import Crash
from hftpipe.recovery.books import FILLS, NANO, Books, Pending, Row
from hftpipe.store.encode import Encoder, encoder
from hftpipe.store.layout import copy_in
from hftpipe.store.writer import Run, StoreWriter

COPIES: dict[bytes, tuple[schema.Record, Encoder]] = {}
for _number, _record in schema.BODIES.items():
    _slot = next(s for s in schema.SLOTS if schema.ENVELOPE.size + _record.size <= s.size)
    COPIES[copy_in(_record)] = _record, encoder(_number, _slot)
TYPES = {r.name: schema.dtype(r) for r in schema.BODIES.values()}
ENVELOPE_TYPE = schema.dtype(schema.ENVELOPE)
MASK = (1 << 64) - 1
STATE, ACTION = schema.ORDER_STATE, schema.ACTION
Mark = tuple[int, int, bytes]


@dataclass(frozen=True, slots=True)
class Stored:
    """One row of an event table."""

    seq: int
    record: str
    ts: int
    cause: int
    checksum: int
    body: bytes

    @property
    def fields(self) -> Any:
        """The body as a structured record."""
        return numpy.frombuffer(self.body, TYPES[self.record])[0]


class SimDatabase:
    """Committed rows and marks.

    Attributes
    ----------
    rows : dict of (run, stream) to dict of seq to Stored
    marks : dict of (run, stream) to (seq, checksum, head of the chain)
    offsets : dict of run to int
        UTC less monotonic ns.
    crash_in, fail_in : int
        Statements until the writer is killed, or until its connection breaks; 0 = never.
    """

    def __init__(self, chance: random.Random, bug: str = "") -> None:
        self.chance, self.bug = chance, bug
        self.rows: dict[tuple[int, int], dict[int, Stored]] = defaultdict(dict)
        self.marks: dict[tuple[int, int], Mark] = {}
        self.offsets: dict[int, int] = {}
        self.crash_in = self.fail_in = 0

    def passes(self) -> None:
        """One statement: it may be the last of its process or its connection."""
        if self.crash_in:
            self.crash_in -= 1
            if not self.crash_in:
                raise Crash
        if self.fail_in:
            self.fail_in -= 1
            if not self.fail_in:
                raise psycopg.OperationalError("the connection was lost")

    def events(self, run: int, record: schema.Record) -> Iterator[Stored]:
        """Rows of one table and run, stream by stream, in order."""
        for (of, _), rows in sorted(self.rows.items()):
            if of == run:
                for seq in sorted(rows):
                    if rows[seq].record == record.name:
                        yield rows[seq]


class _Result(list[tuple[Any, ...]]):
    """Rows of a statement and how many there were."""

    def __init__(self, rows: Iterable[tuple[Any, ...]] = (), count: int = 0) -> None:
        super().__init__(rows)
        self.rowcount = count


class Session:
    """One connection; what :class:`StoreWriter` uses of ``psycopg.Connection``."""

    def __init__(self, database: SimDatabase) -> None:
        self._database = database
        self.closed = False
        self._rows: list[tuple[int, int, Stored]] = []
        self._marks: dict[tuple[int, int], Mark] = {}

    def close(self) -> None:
        self.closed = True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside, or nothing."""
        self._rows, self._marks = [], {}
        yield
        self._commit()

    def _commit(self) -> None:
        database, bug = self._database, self._database.bug
        database.passes()                       # before: nothing is there
        if bug == "store.mark_after":           # in a transaction of its own
            self._put_rows()
            database.passes()
            database.marks |= self._marks
        else:
            self._put_rows()
            database.marks |= self._marks
        database.passes()                       # after: all is there, and nobody was told

    def _put_rows(self) -> None:
        for run, stream, row in self._rows:
            if row.seq in self._database.rows[run, stream]:
                raise psycopg.errors.UniqueViolation(
                    f"run {run:x} has event {row.seq} of stream {stream} already")
        for run, stream, row in self._rows:
            self._database.rows[run, stream][row.seq] = row

    def execute(self, query: str, parameters: Any, binary: bool = False) -> _Result:
        """A statement of the writer.

        Raises
        ------
        ValueError
            If it is one that this database does not know.
        """
        database = self._database
        database.passes()
        if query.startswith("SELECT stream, seq, checksum, head FROM hftpipe.mark"):
            return _Result((stream, *mark) for (run, stream), mark in database.marks.items()
                           if run == parameters[0])
        if not query.startswith("WITH moved AS (UPDATE hftpipe.mark"):
            raise ValueError(f"a statement that the simulated database does not know: {query}")
        of = parameters["run"], parameters["stream"]
        seq, _, head = database.marks[of]
        if (seq, head) != (parameters["old"], parameters["before"]):
            return _Result()
        moved = parameters["new"], parameters["content"] & MASK, parameters["head"]
        if database.bug == "store.mark_first":
            database.marks[of] = moved
        self._marks[of] = moved
        return _Result(count=1)

    def cursor(self) -> Session:
        return self

    @contextlib.contextmanager
    def copy(self, statement: bytes) -> Iterator[_Copy]:
        """Rows in PostgreSQL's binary format."""
        self._database.passes()
        into = _Copy()
        yield into
        record, code = COPIES[statement]
        found = code.decode(b"".join(into.parts))
        if self._database.bug == "store.drop_row" and len(found) > 1:
            found = found[:-1]
        at, size = schema.ENVELOPE.size, record.size
        run = int.from_bytes(into.parts[1][6:14], "big")    # first column of the first row
        for row in found:
            slot = row["slot"].tobytes()
            head = numpy.frombuffer(slot[:at], ENVELOPE_TYPE)[0]
            self._rows.append((run, int(row["event_stream"]), Stored(
                int(row["event_seq"]), record.name, int(head["ts"]), int(head["cause"]),
                int(row["checksum"]),
                slot[at:at + size])))


class _Copy:
    """What is written into a COPY."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: memoryview | bytes) -> None:
        self.parts.append(bytes(data))


class _Unwatched:
    """A session here never goes silent."""

    def __call__(self, c: object) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing is held."""


class SimWriter(StoreWriter):
    """The real writer, connected to a :class:`SimDatabase`."""

    def __init__(self, links: Mapping[int, Any], database: SimDatabase, run: Run) -> None:
        super().__init__(links, "", run)
        self._database = database
        self._watch = _Unwatched()      # type: ignore[assignment]

    def _session(self) -> Any:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        database = self._database
        database.passes()
        database.offsets[self.run.run] = self.run.utc_offset
        for stream in self.links:
            database.marks.setdefault((self.run.run, stream), (0, 0, b""))
        made: Any = Session(database)
        if database.bug != "store.no_recall" or not self._known:
            self._recall(made)
        self._connection = made
        self.totals.connected = True
        return made

    def _commit(self) -> int:
        if self._database.bug != "store.release_early":
            return super()._commit()
        taken = {s: len(link.peek(4096)) for s, link in self.links.items()}
        try:
            return super()._commit()
        except psycopg.Error:
            for stream, count in taken.items():
                self.links[stream].release(count)
            raise

    def _failed(self, e: psycopg.Error) -> None:
        super()._failed(e)
        self._retry_at = 0.0            # virtual time: the next turn is the next try


# ---------------------------------------------------------------- what recovery reads

def load(database: SimDatabase, account: str, before: int, equity: int,
         fees: Mapping[str, int], symbols: list[str]) -> Books:
    """What :func:`hftpipe.recovery.books.load` asks PostgreSQL for, of a simulated database.

    The exits' marks are left out: the simulation trades without exits.
    """
    key = words(account)
    began: tuple[int, Stored] | None = None
    for run in sorted({run for run, _ in database.rows if run < before}):
        for row in database.events(run, schema.ACCOUNT):
            f = row.fields
            if (int(f["account"]), int(f["account_low"])) == key \
                    and f["kind"] == schema.ACCOUNT_KIND.BEGIN:
                began = run, row
    if began is None:
        return Books(account, opening=equity, peak=equity)
    run, first = began
    last = list(database.events(run, schema.ACCOUNT))[-1].fields
    fields: dict[str, Any] = {name: int(last[name]) for name in (
        "opening", "peak", "day", "fees_then", "elsewhere_fees")}
    fields |= {name: int(last[name]) * NANO + int(last[rest]) for name, rest in (
        ("profit_then", "profit_rest"), ("realised_then", "realised_rest"),
        ("elsewhere", "elsewhere_rest"))}
    out = Books(account, run, **fields)
    for row in database.events(run, schema.OPENING):
        f = row.fields
        if row.seq < first.seq and database.bug != "books.no_opening":
            out.rows[symbols[int(f["instrument"])]] = Row(
                **{name: int(f[name]) for name in ("qty", "fees", "mark", "fills", "since",
                                                   "best", "closing")},
                first=bool(f["first"]), **{name: int(f[name]) * NANO + int(f[f"{name}_rest"])
                                           for name in ("cost", "realised")})
    charged: dict[int, int] = {}
    for row in database.events(run, schema.POSITION):
        f = row.fields
        charged.setdefault(row.cause, int(f["fee"]))
        out.peak = max(out.peak, int(f["peak"]))
    offset, executions = database.offsets[run], []
    for row in database.events(run, schema.ORDER_EVENT):
        f = row.fields
        if f["kind"] in FILLS:
            executions.append({
                "symbol": symbols[int(f["instrument"])], "at": row.ts + offset,
                "fee": charged.get(int(f["event"])),
                **{name: int(f[name]) for name in ("side", "qty", "price", "cum_qty")}})
    out.book(executions, fees)
    out.pending = [p for p, state in orders(database, run, symbols) if state < STATE.FILLED]
    if database.bug == "books.no_pending":
        out.pending = []
    if database.bug == "books.no_realised":
        for held in out.rows.values():
            held.realised = 0
    return out


def orders(database: SimDatabase, run: int, symbols: list[str]) -> list[tuple[Pending, int]]:
    """Every order of *run* that passed the gate, and the last state that was recorded of it."""
    passed = {int(f["order"]) for row in database.events(run, schema.VERDICT)
              if (f := row.fields)["reason"] == 0 and f["action"] == ACTION.NEW}
    told: dict[int, list[Any]] = defaultdict(list)
    for row in database.events(run, schema.ORDER_EVENT):
        told[int(row.fields["order"])].append(row.fields)
    out = []
    for row in database.events(run, schema.INTENT):
        f = row.fields
        if f["action"] != ACTION.NEW or int(f["event"]) not in passed:
            continue
        steps = told[int(f["event"])]
        out.append((Pending(
            run, int(f["event"]), symbols[int(f["instrument"])], int(f["side"]), int(f["type"]),
            int(f["price"]), int(f["qty"]), max((int(s["cum_qty"]) for s in steps), default=0),
            row.ts + database.offsets[run],
            tuple((int(s["qty"]), int(s["price"])) for s in steps if s["kind"] in FILLS)),
            max((int(s["state"]) for s in steps), default=0)))
    return out
