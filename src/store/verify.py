"""Proof that what PostgreSQL holds is what the stages recorded, byte for byte.

The checksum of a body, with all arithmetic on 64-bit words modulo 2**64::

    h = 0x9E3779B97F4A7C15
    for each 64-bit little-endian word w of the body (8, or 16 for two lines):
        h = (h ^ w) * 0xff51afd7ed558ccd
        h ^= h >> 32

``link_seq`` and padding are zero in a stored body.  A stage puts it into the envelope and
adds it to its counter ``events_checksum``; a stream's content is that sum modulo 2**64.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg

from hftpipe import schema
from hftpipe.store.encode import Encoder, encoder
from hftpipe.store.layout import TABLES, copy_out, table

Array = np.ndarray[Any, np.dtype[Any]]

SEED = np.uint64(0x9E3779B97F4A7C15)
FACTOR = np.uint64(0xFF51AFD7ED558CCD)
HALF = np.uint64(32)
MASK = (1 << 64) - 1
BLOCK = 32768                           # rows read back at a time
# Records whose body repeats its own identity; in the others `event` is the cause's or absent.
IDENTIFIED = frozenset({"market", "intent", "update", "order_event", "position", "risk_event",
                        "figure", "opening", "account", "resolved"})


def checksum(bodies: Array) -> Array:
    """Checksum of each body; the definition is at the top of this module.

    Parameters
    ----------
    bodies : (n, 8) or (n, 16) uint64 array
        The words of each body; any strides.

    Returns
    -------
    (n,) uint64 array
    """
    h = np.full(len(bodies), SEED, np.uint64)
    shifted = np.empty_like(h)
    for i in range(bodies.shape[1]):
        np.bitwise_xor(h, bodies[:, i], out=h)
        np.multiply(h, FACTOR, out=h)
        np.right_shift(h, HALF, out=shifted)
        np.bitwise_xor(h, shifted, out=h)
    return h


def total(checksums: Array) -> int:
    """Sum modulo 2**64."""
    return int(np.add.reduce(checksums, dtype=np.uint64)) if len(checksums) else 0


@dataclass(frozen=True, slots=True)
class StreamReport:
    """One stream: what was recorded and what is stored."""

    stream: int
    recorded: int | None                # events, as the stage counted; None = not told
    rows: int                           # SELECT count(*)
    recorded_sum: int | None
    stored_sum: int                     # recomputed from the columns
    mark: int
    wrong: tuple[str, int, str] | None  # first wrong row: (table, seq, what)

    @property
    def ok(self) -> bool:
        return (self.wrong is None and self.mark == self.rows
                and self.recorded in (None, self.rows)
                and self.recorded_sum in (None, self.stored_sum))

    def __str__(self) -> str:
        name = schema.STREAM.label(self.stream)
        if self.ok:
            return f"{name}: {self.rows} rows, checksum {self.stored_sum:016x}"
        if self.wrong:
            return f"{name}: {self.wrong[0]} row seq {self.wrong[1]}: {self.wrong[2]}"
        if self.recorded not in (None, self.rows):
            return f"{name}: {self.recorded} events recorded, {self.rows} rows stored"
        if self.mark != self.rows:
            return f"{name}: mark is at {self.mark}, {self.rows} rows stored"
        return (f"{name}: checksum of the rows is {self.stored_sum:016x}, "
                f"of the events recorded {self.recorded_sum:016x}")


@dataclass(frozen=True, slots=True)
class Report:
    """All streams of one run."""

    run: int
    streams: tuple[StreamReport, ...]

    @property
    def ok(self) -> bool:
        return all(s.ok for s in self.streams)

    @property
    def rows_stored(self) -> int:
        return sum(s.rows for s in self.streams)

    def __str__(self) -> str:
        return "\n".join(map(str, self.streams))


def _rows(c: psycopg.Connection, e: Encoder, run: int, stream: int) -> Iterator[Array]:
    """All rows of one table and stream in order, as the slots they were made from."""
    last = 0
    while True:
        with c.cursor().copy(copy_out(e.record, run, stream, last, BLOCK)) as copy:
            slots = e.decode(b"".join(copy))
        if len(slots):
            yield slots
        if len(slots) < BLOCK:
            return
        last = int(slots["event_seq"][-1])


def verify(conninfo: str, run: int,
           recorded: Mapping[int, tuple[int, int]] | None = None) -> Report:
    """Compare a run's rows with the envelopes' checksums and with what the stages counted.

    Parameters
    ----------
    conninfo : str
        Of a user who may read the event tables.
    run : int
        Run id.
    recorded : mapping of stream to (count, checksum sum modulo 2**64), optional
        The stages' own counters ``events_stored`` and ``events_checksum``.

    Returns
    -------
    Report
        With, per stream, the first row that is not as it was recorded.
    """
    recorded = recorded or {}
    with psycopg.connect(conninfo) as c:
        c.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        marks: dict[int, int] = dict(c.execute(
            "SELECT stream, seq FROM hftpipe.mark WHERE run = %s", (run,)).fetchall())
        present: dict[int, dict[int, int]] = {}         # stream -> record -> rows
        for number, record in schema.BODIES.items():
            for stream, count in c.execute(
                    f"SELECT stream, count(*) FROM {table(record)} WHERE run = %s "
                    "GROUP BY stream".encode(), (run,)):
                present.setdefault(stream, {})[number] = count
        return Report(run, tuple(
            _stream(c, run, stream, present.get(stream, {}), marks.get(stream, 0),
                    recorded.get(stream))
            for stream in sorted({*present, *marks, *recorded})))


def _stream(c: psycopg.Connection, run: int, stream: int, counts: dict[int, int], mark: int,
            recorded: tuple[int, int] | None) -> StreamReport:
    rows, sums = sum(counts.values()), 0
    wrong: tuple[str, int, str] | None = None
    seen = np.zeros(max(mark, 0), bool)                 # which of 1 .. mark are there

    def blame(found: tuple[str, int, str]) -> None:
        nonlocal wrong
        if wrong is None or found[1] < wrong[1]:
            wrong = found

    for number in counts:
        record = schema.BODIES[number]
        e, name = encoder(number, schema.slot_of(record)), TABLES[record.name]
        for slots in _rows(c, e, run, stream):
            made = checksum(e.words(slots))
            sums = (sums + total(made)) & MASK
            at = slots["event_seq"].astype(np.int64) - 1
            beyond = np.flatnonzero((at < 0) | (at >= len(seen)))
            if len(beyond):
                blame((name, int(at[beyond[0]]) + 1, f"is not within the mark {mark}"))
                at = at[(at >= 0) & (at < len(seen))]
            bad = np.flatnonzero(made != slots["checksum"])
            if len(bad):
                i = bad[0]
                blame((name, int(slots["event_seq"][i]),
                       f"contents have checksum {int(made[i]):016x}, recorded was "
                       f"{int(slots['checksum'][i]):016x}"))
            if record.name in IDENTIFIED:
                own = (slots["event_stream"] << np.uint64(schema.SEQ_BITS)) | slots["event_seq"]
                told = e.words(slots)[:, record.offsets["event"] // 8]
                bad = np.flatnonzero(told != own)
                if len(bad):
                    i = bad[0]
                    blame((name, int(slots["event_seq"][i]),
                           f"its own event is {int(told[i]):#x}, expected {int(own[i]):#x}"))
            again = np.flatnonzero(seen[at])
            if len(again):
                blame((name, int(at[again[0]]) + 1, "is also in another table"))
            seen[at] = True
    missing = np.flatnonzero(~seen)
    if len(missing):
        blame(("mark", int(missing[0]) + 1, "is missing in every table"))
    return StreamReport(stream, recorded[0] if recorded else None, rows,
                        recorded[1] & MASK if recorded else None, sums, mark, wrong)
