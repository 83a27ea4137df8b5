"""Appending to the journal: one group of records at a time, each on disk before the next.

A failed write is never tried again.  The kernel may have thrown the data away and marked the
pages clean, so that a second try succeeds and a look at the file shows what the disk does not
have.  What fails raises :class:`DiskError`; the records stay where they came from, and whoever
opens the journal again is told how far it was known to be on disk: everything beyond is
overwritten with zeros and written anew.
"""
from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy

from hftpipe import _journal, schema
from hftpipe.errors import DataError, DiskError, MismatchError
from hftpipe.journal import segment
from hftpipe.journal.segment import BLOCK, LARGEST, STREAMS, Disk, Head

Array = numpy.ndarray[Any, Any]

GROUP = 2 << 20                 # bytes of the largest group
SEQ_MASK = (1 << schema.SEQ_BITS) - 1


class Journal:
    """The writing end of one run's journal; there is one.

    Parameters
    ----------
    directory : Path
        Of this run; made if it is not there.
    run : int
    size : int, bytes
        Of a new segment, at least ``segment.LEAST``.
    spares : int
        Segments to have ahead.
    durable : int, optional
        Number of the last record that anybody was told is on disk, as the control page has it.
        What follows it is cut off: whoever wrote it still has it.  None, after the host went
        down: whole records count, a torn tail is cut.
    disk : Disk, optional

    Attributes
    ----------
    number : int
        Of the last record on disk; they count from 1.
    last : list of int
        Sequence number of each stream's last event on disk.
    cut : int
        Bytes of the tail that were cut off on opening.
    spares : int
        Segments ahead.
    trouble : str
        Why the last one could not be made; empty = it could.

    Raises
    ------
    MismatchError
        If the journal is damaged, or ends before *durable*.
    DiskError
        If the disk refuses.
    """

    def __init__(self, directory: Path, run: int, *, size: int = 64 << 20, spares: int = 2,
                 durable: int | None = None, disk: Disk | None = None) -> None:
        if size < segment.LEAST:
            raise ValueError(f"segments must have at least {segment.LEAST} bytes, were {size}")
        self.directory, self.run, self.size, self.target = directory, run, size, spares
        self.disk = disk or Disk()
        self.number, self.last = 0, [0] * STREAMS
        self.bytes = self.commits = self.cut = 0
        self.trouble = ""
        self._index = -1
        self._fd = -1
        self._at = self._end = 0        # where the next record goes, and the segment's end
        self._buffer = bytearray(GROUP)
        self._view = memoryview(self._buffer)
        self._filled = 0                # bytes of the group that is being made
        self._next = 0                  # number of its next record
        self._ahead: dict[int, int] = {}        # stream -> sequence number when it is on disk
        self._failed = ""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.disk.sync(directory.parent)
            self._spares = [p for p in segment.spares(directory) if self._usable(p)]
        except OSError as e:
            raise DiskError(f"journal {directory}: {e.strerror}") from None
        try:
            self._resume(durable)
            while self.spares < spares and self._make():
                pass
            if self._fd < 0:
                if not self.roll():
                    raise DiskError(f"journal {self.trouble}")
                self.replenish()
        except BaseException:
            self._close()
            raise

    # ------------------------------------------------------------ segments

    def _usable(self, path: Path) -> bool:
        """Whether a spare that was found is one; if not, it is removed."""
        if path.name.endswith(".new") or path.stat().st_size != self.size:
            self.disk.unlink(path)
            return False
        return True

    @property
    def spares(self) -> int:
        return len(self._spares)

    @property
    def segments(self) -> int:
        """Segments that hold records, or may."""
        return len(segment.listing(self.directory))

    def replenish(self) -> bool:
        """Make one more spare if there are too few; whether there are enough or one was made."""
        return self.spares >= self.target or self._make()

    def _make(self) -> bool:
        known = {p.name for p in self._spares}
        path = self.directory / next(n for i in range(self.target + 1)
                                     if (n := f"spare-{i}") not in known)
        part = path.with_name(path.name + ".new")
        try:
            self.disk.create(part, self.size)
            self.disk.rename(part, path)
        except OSError as e:
            self.trouble = f"{path}: {e.strerror}"
            with contextlib.suppress(OSError):          # half of it would only use up space
                self.disk.unlink(part)
            return False
        self._spares.append(path)
        self.trouble = ""
        return True

    @property
    def room(self) -> bool:
        """Whether any record fits into the segment."""
        return self._end - self._at - self._filled >= LARGEST

    def roll(self) -> bool:
        """Begin the next segment; False when there is no spare and none can be made.

        Raises
        ------
        DiskError
            If the spare cannot be made a segment.
        """
        self._alive()
        assert not self._filled, "a group lies in one segment"
        if not self._spares and not self._make():
            return False
        spare = self._spares[0]
        path = self.directory / segment.name(self.number + 1)
        head = Head(self.run, self._index + 1, self.number + 1, self.size,
                    segment.base_of(self.last))
        try:
            fd = self.disk.open(spare)
            try:
                self.disk.write(fd, head.pack(), 0)
                self.disk.rename(spare, path)
            except OSError:
                os.close(fd)
                raise
        except OSError as e:
            self._fail(path, e)
        self._close()
        self._spares.pop(0)
        self._fd, self._at, self._end = fd, BLOCK, self.size
        self._index += 1
        return True

    def _resume(self, durable: int | None) -> None:
        """Find the end of the last segment and cut off what is behind it."""
        paths = segment.listing(self.directory)
        if not paths:
            if durable:
                raise MismatchError(f"journal {self.directory}: {durable} records are known to be "
                                    "on disk, found no segment")
            return
        path = paths[-1]
        head = segment.read_head(path, self.run)
        if durable is not None and durable < head.first - 1:
            raise MismatchError(f"journal {path}: its first record must be at most "
                                f"{durable + 1}, the next to be written, found {head.first}")
        self._index, self._end = head.index, head.size
        try:
            memory = path.read_bytes()
        except OSError as e:
            raise DataError(f"journal {path}: {e.strerror}") from None
        wanted = {} if durable is None else {"most": durable - head.first + 1, "durable": durable}
        offsets, end, state = _journal.scan(memory, self.run, head.first, BLOCK, **wanted)
        self.number = head.first - 1 + len(offsets)
        if state == _journal.CORRUPT or (durable is not None and self.number < durable):
            raise damaged(path, end, self.number + 1, memory)
        self.last = list(head.base)
        for stream, seq in last_of(memory, offsets).items():
            self.last[stream] = seq
        self._at = end
        try:
            self._fd = self.disk.open(path)
            rest = numpy.flatnonzero(numpy.frombuffer(memory, numpy.uint8)[end:])
            if len(rest):
                self.cut = int(rest[-1]) + 1
                self.disk.write(self._fd, bytes(self.cut), end)
        except OSError as e:
            self._fail(path, e)

    # ------------------------------------------------------------ records

    def put(self, stream: int, slots: Array) -> int:
        """Add events to the group; how many found room in it and in the segment.

        Parameters
        ----------
        stream : int
        slots : (n, size) uint8 array
            Slots of its store link; events in order, the next to be written first.
        """
        size = slots.shape[1] + _journal.EXTRA
        room = min(len(self._buffer), self._end - self._at) - self._filled
        count = int(min(len(slots), max(room, 0) // size))
        if not count:
            return 0
        if not self._filled:
            self._next = self.number + 1
        self._filled = _journal.frame(slots[:count], self.run, self._next, self.number + 1,
                                      self._buffer, self._filled)
        self._next += count
        self._ahead[stream] = self._ahead.get(stream, self.last[stream]) + count
        return count

    def commit(self) -> int:
        """Have the group on disk; how many records it has.

        Raises
        ------
        DiskError
            If the disk refuses; then this journal takes no more.
        """
        self._alive()
        if not self._filled:
            return 0
        try:
            self.disk.write(self._fd, self._view[:self._filled], self._at)
        except OSError as e:
            self._fail(self.directory / f"at {self._at} of segment {self._index}", e)
        count = self._next - 1 - self.number
        self.number += count
        for stream, seq in self._ahead.items():
            self.last[stream] = seq
        self._at += self._filled
        self.bytes += self._filled
        self.commits += 1
        self._filled = 0
        self._ahead.clear()
        return count

    def _alive(self) -> None:
        if self._failed:
            raise DiskError(self._failed)

    def _fail(self, path: Path, e: OSError) -> None:
        self._failed = (f"journal {path}: {e.strerror}; what is not known to be on disk is "
                        "still in the store links, and is not tried again here")
        raise DiskError(self._failed) from None

    # ------------------------------------------------------------ the end

    def remove(self, stored: int, retain: float) -> int:
        """Remove segments that nobody needs; how many.

        Parameters
        ----------
        stored : int
            PostgreSQL has every record up to this one.
        retain : float, seconds
            How long a segment is kept after its last record.
        """
        paths = segment.listing(self.directory)
        gone, now = 0, time.time()
        for path, after in itertools.pairwise(paths):
            if segment.number_of(after) - 1 > stored or path.stat().st_mtime > now - retain:
                break
            self.disk.unlink(path)
            gone += 1
        if gone:
            self.disk.sync(self.directory)
        return gone

    def finish(self, orderly: bool = False) -> None:
        """Say that nothing follows, and give the space back that is not used.

        Parameters
        ----------
        orderly : bool
            Every stage of the run ended in good order, and stored all it had.
        """
        self._alive()
        segment.write_file(self.disk, self.directory / "end.json", json.dumps(
            {"records": self.number, "orderly": orderly,
             "streams": {str(i): n for i, n in enumerate(self.last) if n}}))
        try:
            for path in self._spares:
                self.disk.unlink(path)
            self._spares.clear()
            tail = -(-self._at // BLOCK) * BLOCK
            if tail < self._end:
                self.disk.free(self._fd, tail, self._end - tail)
        except OSError as e:
            self._fail(self.directory, e)
        self._close()

    def close(self) -> None:
        """Let go, as if killed: what is not committed was never here."""
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def last_of(memory: bytes, offsets: Array) -> dict[int, int]:
    """Sequence number of each stream's last event among the records at *offsets*."""
    _, events = _journal.heads(memory, offsets)
    streams = events >> numpy.uint64(schema.SEQ_BITS)
    return {int(s): int((events[streams == s] & numpy.uint64(SEQ_MASK)).max())
            for s in numpy.unique(streams)}


def damaged(path: Path, at: int, number: int, memory: Any) -> MismatchError:
    """The error of finding no whole record *number* at *at*."""
    found = bytes(memory[at:at + 24])
    return MismatchError(
        f"journal {path} at {at}: wanted record {number}, found "
        + ("the end of the file" if not found else "zeros" if not any(found) else
           f"bytes that are none: {found.hex(' ', 4)}"))
