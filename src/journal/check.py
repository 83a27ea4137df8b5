"""All of a journal, read from its first segment on: what it holds and what is wrong with it."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from hftpipe import _journal, schema
from hftpipe.errors import DataError, MismatchError
from hftpipe.journal import segment
from hftpipe.journal.write import SEQ_MASK, damaged, last_of

Array = numpy.ndarray[Any, Any]

CHUNK = 65536                   # records looked at together


@dataclass(slots=True)
class Block:
    """Records that follow one another in a segment."""

    path: Path
    memory: bytes
    number: int                 # of the first
    offsets: Array
    sizes: Array                # of the slots
    streams: Array
    seqs: Array

    def slots(self, mask: Array, size: int) -> Array:
        """(n, size) slots of those that *mask* chooses, all of that size."""
        return _journal.gather(self.memory, self.offsets[mask], size)


@dataclass(slots=True)
class Walk:
    """What :func:`walk` has seen so far."""

    records: int = 0            # read
    bytes: int = 0              # of them
    segments: int = 0
    first: int = 0              # number of the first record
    last: int = 0               # number of the last; first - 1 when there is none
    base: tuple[int, ...] = ()  # sequence number of each stream before the first
    seqs: dict[int, int] = field(default_factory=dict)      # and after the last
    torn: int = 0               # bytes of a write that was cut off, at the end
    torn_at: str = ""           # file and offset of it


def end_of(directory: Path) -> dict[str, Any] | None:
    """What the journal says of its end; None: it was not ended in good order."""
    try:
        found = json.loads((directory / "end.json").read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found["records"], int):
            raise ValueError
    except FileNotFoundError:
        return None
    except OSError as e:
        raise DataError(f"journal {directory / 'end.json'}: {e.strerror}") from None
    except (ValueError, KeyError):
        raise MismatchError(f"journal {directory / 'end.json'}: wanted the number of records, "
                            "found something else") from None
    return found


def walk(directory: Path, run: int, seen: Walk | None = None, *, durable: int | None = None,
         ) -> Iterator[Block]:
    """Read every record of *directory*, checking all that can be checked.

    Parameters
    ----------
    directory : Path
    run : int
    seen : Walk, optional
        Is kept up to date.
    durable : int, optional
        Read to this record, which is known to be on disk, and no further: of a run that goes on.

    Raises
    ------
    MismatchError
        If a record is damaged, missing or out of order; names file, offset and what was found.
    DataError
        If the journal cannot be read.
    """
    seen = seen if seen is not None else Walk()
    paths = segment.listing(directory)
    if not paths:
        raise DataError(f"journal {directory}: wanted segments, found none")
    if durable is None:
        end = end_of(directory)
        durable = None if end is None else int(end["records"])
    number, last, index = 0, [0] * segment.STREAMS, -1
    for i, path in enumerate(paths):
        head = segment.read_head(path, run)
        if i == 0:
            number, last, index = head.first, list(head.base), head.index
            seen.first, seen.last, seen.base = number, number - 1, head.base
        if durable is not None and head.first > durable + 1 and i:
            break                               # begun since we were told
        if (head.first, head.index, list(head.base)) != (number, index, last):
            raise MismatchError(
                f"journal {path} at 24: wanted segment {index}, record {number} behind streams at "
                f"{last}, found segment {head.index}, record {head.first} behind {list(head.base)}")
        index += 1
        try:
            memory = path.read_bytes()
        except OSError as e:
            raise DataError(f"journal {path}: {e.strerror}") from None
        seen.segments += 1
        known = segment.number_of(paths[i + 1]) - 1 if i + 1 < len(paths) else None
        if durable is not None:
            known = durable if known is None else min(known, durable)
        at = segment.BLOCK
        while known is None or number <= known:
            most = CHUNK if known is None else min(CHUNK, known - number + 1)
            offsets, end_at, state = _journal.scan(memory, run, number, at, most=most,
                                                   durable=known or 0)
            if state == _journal.CORRUPT or (known is not None and len(offsets) < most):
                _keep(seen, path, memory, number, offsets, last)
                raise damaged(path, end_at, number + len(offsets), memory)
            if len(offsets):
                block = _keep(seen, path, memory, number, offsets, last)
                seen.bytes += end_at - at
                number += len(offsets)
                at = end_at
                yield block
            if state == _journal.TORN:
                rest = numpy.flatnonzero(numpy.frombuffer(memory, numpy.uint8)[end_at:])
                seen.torn, seen.torn_at = int(rest[-1]) + 1, f"{path} at {end_at}"
            if state in (_journal.TORN, _journal.ZERO) or len(offsets) < most:
                break


def _keep(seen: Walk, path: Path, memory: bytes, number: int, offsets: Array,
          last: list[int]) -> Block:
    """Count records and see that each stream goes on by one."""
    sizes, events = _journal.heads(memory, offsets)
    streams = (events >> numpy.uint64(schema.SEQ_BITS)).astype(numpy.int64)
    seqs = events & numpy.uint64(SEQ_MASK)
    for stream in numpy.unique(streams):
        mine = numpy.flatnonzero(streams == stream)
        if not 0 < stream < segment.STREAMS:
            raise MismatchError(f"journal {path} at {int(offsets[mine[0]])}: wanted an event, "
                                f"found {int(events[mine[0]]):#x}")
        begin = last[stream]
        want = numpy.arange(begin + 1, begin + 1 + len(mine), dtype=numpy.uint64)
        wrong = numpy.flatnonzero(seqs[mine] != want)
        if len(wrong):
            i = mine[wrong[0]]
            raise MismatchError(
                f"journal {path} at {int(offsets[i])}: record {number + int(i)} must be event "
                f"{int(want[wrong[0]])} of {schema.STREAM.label(int(stream))}, is event "
                f"{int(seqs[i])}")
    for stream, seq in last_of(memory, offsets).items():
        last[stream] = seq
    seen.records += len(offsets)
    seen.last = number + len(offsets) - 1
    seen.seqs = {i: n for i, n in enumerate(last) if n}
    return Block(path, memory, number, offsets, sizes, streams, seqs)
