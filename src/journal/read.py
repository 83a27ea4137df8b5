"""The journal as store links: each stream's events in order, from where PostgreSQL is.

:class:`Reader` follows a journal while it is written.  It reads no further than what is known to
be on disk, and what it meets there must be whole: anything else stops it, naming file, offset
and what was found.  Nothing is ever skipped.
"""
from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy

from hftpipe import _journal, schema
from hftpipe.errors import DataError, MismatchError
from hftpipe.journal import segment
from hftpipe.journal.write import SEQ_MASK, damaged, last_of

Array = numpy.ndarray[Any, Any]

CHUNK = 16384                   # records taken from a segment at once
HELD = 262144                   # records held for streams that nobody takes


def _payload(record: schema.Record) -> numpy.dtype[Any]:
    """A slot of *record* without its first word, as ``Ring.peek`` gives it."""
    whole = schema.dtype(record)
    names = [n for n in whole.names or () if n != "link_seq"]
    fields = whole.fields
    assert fields is not None
    return numpy.dtype({"names": names, "formats": [fields[n][0] for n in names],
                        "offsets": [fields[n][1] - 8 for n in names],
                        "itemsize": record.size - 8})


class StreamLink:
    """One stream of a :class:`Reader`; what a store writer needs of a consumer ``Ring``."""

    def __init__(self, reader: Reader, stream: int, record: schema.Record) -> None:
        self.record = record
        self._reader, self._stream = reader, stream
        self._kind = _payload(record)
        self._queue: deque[Array] = deque()     # (n, size) uint8, oldest first
        self._held = 0                          # records in it
        self.done = 0                           # sequence number of the last event released

    def __len__(self) -> int:
        """Events on disk that were not released."""
        return max(0, self._reader.durable(self._stream) - self.done)

    def peek(self, count: int = 1) -> Array:
        """The next events, at most *count*, in place: a structured array without ``link_seq``."""
        if self._held < count:
            self._reader.fill()
        if not self._queue:
            return self._view(numpy.empty((0, self.record.size), numpy.uint8))
        if len(self._queue[0]) < count and len(self._queue) > 1:
            whole = numpy.concatenate(self._queue)
            self._queue.clear()
            self._queue.append(whole)
        return self._view(self._queue[0][:count])

    def release(self, count: int = 1) -> None:
        """Let go of the first *count* of them."""
        if count > self._held:
            raise ValueError(f"{self._held} events are here, can not release {count}")
        self._held -= count
        self.done += count
        while count:
            first = self._queue.popleft()
            if len(first) > count:
                self._queue.appendleft(first[count:])
            count -= min(count, len(first))
        self._reader.released()

    def flush(self) -> None:
        """For a ring's sake."""

    def add(self, rows: Array) -> None:
        """Hold (n, size) *rows* too."""
        if len(rows):
            self._queue.append(rows)
            self._held += len(rows)

    def _view(self, rows: Array) -> Array:
        return numpy.ndarray((len(rows),), self._kind, rows, 8 if len(rows) else 0,
                             (self.record.size,))


class Reader:
    """Reads a journal from where its user is.

    Parameters
    ----------
    directory : Path
    run : int
    records : mapping of stream to schema.Record
        Slot of each stream's store link.
    durable : callable
        ``durable(stream)``: sequence number up to which a stream is on disk, of 0 the number of
        records of all.
    start : callable
        Sequence number of each stream behind which reading begins; asked at the first peek.

    Attributes
    ----------
    links : dict of stream to StreamLink
    stored : int
        Every record up to this number was released.
    """

    def __init__(self, directory: Path, run: int, records: Mapping[int, schema.Record],
                 durable: Callable[[int], int], start: Callable[[], Mapping[int, int]]) -> None:
        self.directory, self.run, self.durable, self._start = directory, run, durable, start
        self.links = {stream: StreamLink(self, stream, r) for stream, r in records.items()}
        self.stored = 0
        self._from: dict[int, int] = {}         # behind which events are wanted
        self._fills: deque[tuple[int, dict[int, int]]] = deque()    # number, last of each stream
        self._number = 0                        # of the next record; 0 = not begun
        self._memory: mmap.mmap | None = None
        self._path = Path()
        self._first = self._at = 0

    # ------------------------------------------------------------ where to begin

    def _begin(self) -> bool:
        """Open the segment in which reading starts; False while there is none."""
        paths = segment.listing(self.directory) if self.directory.is_dir() else []
        if not paths:
            return False
        start = self._start()
        self._from = {s: start.get(s, 0) for s in self.links}
        for path in reversed(paths):
            head = segment.read_head(path, self.run)
            if all(head.base[s] <= at for s, at in self._from.items()):
                break
        else:
            lost = next(s for s, at in self._from.items() if head.base[s] > at)
            raise MismatchError(
                f"journal {paths[0]}: events {self._from[lost] + 1} to {head.base[lost]} of "
                f"{schema.STREAM.label(lost)} must be stored or in the journal, and are in neither")
        self._open(path, head.first)
        self.stored = head.first - 1
        for stream, link in self.links.items():
            link.done = self._from[stream]
        return True

    def _open(self, path: Path, first: int) -> None:
        segment.read_head(path, self.run)
        try:
            with path.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as e:
            raise DataError(f"journal {path}: {e}") from None
        self.close()
        self._memory, self._path = memory, path
        self._number = self._first = first
        self._at = segment.BLOCK

    def close(self) -> None:
        """Let the segment go."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    # ------------------------------------------------------------ what is there

    def fill(self) -> int:
        """Take more records from the journal into the links; how many.

        Raises
        ------
        MismatchError
            If a record is not there that is known to be on disk, or is damaged.
        """
        limit = self.durable(0)
        if not limit or sum(link._held for link in self.links.values()) > HELD:
            return 0
        if not self._number and not self._begin():
            return 0
        most = min(limit - self._number + 1, CHUNK)
        if most <= 0:
            return 0
        if self._number != self._first:         # the next segment begins with the next record
            after = self.directory / segment.name(self._number)
            if after.exists():
                self._open(after, self._number)
        assert self._memory is not None
        offsets, end, _ = _journal.scan(self._memory, self.run, self._number, self._at, most=most,
                                        durable=limit)
        if not len(offsets):
            raise damaged(self._path, end, self._number, self._memory)
        self._deal(offsets)
        self._number += len(offsets)
        self._at = end
        self._fills.append((self._number - 1, last_of(self._memory, offsets)))  # type: ignore[arg-type]
        self.released()
        return len(offsets)

    def _deal(self, offsets: Array) -> None:
        """Give each record at *offsets* to its stream's link."""
        sizes, events = _journal.heads(self._memory, offsets)
        streams = events >> numpy.uint64(schema.SEQ_BITS)
        for number in numpy.unique(streams):
            stream = int(number)
            mine = streams == number
            where = offsets[mine]
            link = self.links.get(stream)
            if link is None or (sizes[mine] != link.record.size).any():
                raise MismatchError(
                    f"journal {self._path} at {int(where[0])}: wanted an event of a stream of this "
                    f"run in its slot, found event {int(events[mine][0]):#x} in "
                    f"{int(sizes[mine][0])} bytes")
            rows = _journal.gather(self._memory, where, link.record.size)
            old = int(((events[mine] & numpy.uint64(SEQ_MASK))
                       <= numpy.uint64(self._from[stream])).sum())
            link.add(rows[old:])

    def released(self) -> None:
        """See how far every stream was released."""
        while self._fills:
            number, last = self._fills[0]
            if any(self.links[stream].done < seq for stream, seq in last.items()):
                break
            self.stored = number
            self._fills.popleft()
