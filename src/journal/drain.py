"""Store links into the journal: the only consumer of the store links of a run.

One pass takes what is ready on each link, has it on disk as one group, says so on the control
page, and only then gives the slots back.  Killed anywhere, it leaves the slots in the links; the
next one skips those that are on disk.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy

from hftpipe import _clock, _fault, recording, schema
from hftpipe.errors import MismatchError
from hftpipe.journal.write import SEQ_MASK, Journal

BATCH = 1024                    # slots of one link in a group


class Page(Protocol):
    """What is told of the control page's durable sequences."""

    def set_durable(self, stream: int, seq: int) -> None: ...


class Drain:
    """Moves the events of *links* into *journal*.

    Parameters
    ----------
    journal : Journal
    links : mapping of stream to consumer Ring
        In the order they are served.
    page : Control, optional
        Told how far each stream is on disk, the number of all records first.

    Attributes
    ----------
    skipped : int
        Slots that were on disk already when they were found.
    took : int, ns
        How long the last group needed to be on disk.
    full : bool
        Whether there is no segment to write to; tried again at every pass.
    """

    def __init__(self, journal: Journal, links: Mapping[int, Any],
                 page: Page | None = None) -> None:
        self.journal, self.links, self._page = journal, dict(links), page
        self.skipped = self.took = 0
        self.full = False
        self._publish(journal.last)

    @property
    def lag(self) -> int:
        """Events in the links."""
        return sum(len(link) for link in self.links.values())

    def step(self) -> int:
        """Write one group; how many events are on disk that were not before.

        Raises
        ------
        MismatchError
            If a link has a gap or a double.
        DiskError
            If the disk refuses; nothing more is taken.
        """
        if not self.journal.room:
            self.full = not self.journal.roll()
            if self.full:
                return 0
        taken: list[tuple[Any, int]] = []
        for stream, link in self.links.items():
            slots = link.peek(BATCH)
            if not len(slots):
                continue
            old = self._known(stream, slots)
            self.skipped += old
            count = old
            if old < len(slots):
                count += self.journal.put(stream, recording.raw(slots[old:], link.record))
            if count:
                taken.append((link, count))
        began = _clock.now_ns()
        _fault.point("journal.writing")
        done = self.journal.commit()
        if done:
            _fault.point("journal.written")
            self.took = _clock.now_ns() - began
            self._publish(self.journal.last)
            _fault.point("journal.durable")
        for link, count in taken:
            link.release(count)
            link.flush()
        return done

    def _known(self, stream: int, slots: Any) -> int:
        """How many of *slots* are on disk already; all of them are as they must be."""
        last = self.journal.last[stream]
        event = slots["event"]
        first = int(event[0]) & SEQ_MASK
        expected = numpy.arange(first, first + len(slots), dtype=numpy.uint64) | numpy.uint64(
            stream << schema.SEQ_BITS)
        wrong = numpy.flatnonzero(event != expected)
        name = schema.STREAM.label(stream)
        if len(wrong):
            i = wrong[0]
            raise MismatchError(f"store link of {name}: event {int(event[i]):#x} stands where "
                                f"{int(expected[i]):#x} must")
        if first > last + 1:
            raise MismatchError(f"store link of {name}: events {last + 1} to {first - 1} are "
                                "neither in the link nor in the journal")
        return min(last + 1 - first, len(slots))

    def _publish(self, last: list[int]) -> None:
        if self._page is not None:
            self._page.set_durable(0, self.journal.number)
            for stream in self.links:
                self._page.set_durable(stream, last[stream])
