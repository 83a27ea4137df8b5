"""The journal process: drain, say how it is, make room, until everybody else has ended."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hftpipe import _clock, _control
from hftpipe.errors import DiskError
from hftpipe.journal.drain import Drain
from hftpipe.journal.write import Journal

if TYPE_CHECKING:
    from hftpipe._control import Control, StageBlock

PAUSE = {"process": 0.0005, "host": 0.0001}     # s between two looks at empty links
RETRY = 1.0                     # s between two tries to make a spare
TELL = 0.02                     # s between two updates of what costs a look at the directory


def realtime(priority: int) -> str:
    """Ask for real-time *priority* for this thread; why it has none, empty when it has.

    For a thread that sleeps between its writes: one that spins so starves the kernel's own.
    """
    if not priority:
        return "not asked for"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as e:
        return f"not permitted: {e.strerror}"
    return ""


class Keeper:
    """One journal and what is told of it.

    Parameters
    ----------
    drain : Drain
    control : Control
    block : StageBlock
        Of the journal.
    stored : callable
        Number up to which PostgreSQL has every record.
    halt : callable
        ``halt(reason)`` stops trading.
    log : Logger
    retain : float, seconds
        How long a segment is kept that PostgreSQL has.
    """

    def __init__(self, drain: Drain, control: Control, block: StageBlock,
                 stored: Callable[[], int], halt: Callable[[str], object], log: Any, *,
                 retain: float) -> None:
        self.drain, self.journal = drain, drain.journal
        self._control, self._block = control, block
        self._stored, self._halt, self._log, self._retain = stored, halt, log, retain
        self._retry = self._told = 0.0
        self._said = ""
        self._bytes = self._commits = 0

    def step(self) -> int:
        """One pass: a group, a sign of life, and room for the next one; the events of the group."""
        done = self.drain.step()
        block, now = self._block, time.monotonic()
        block.heartbeat = _clock.now_ns()
        if done:
            block.record("journal_commit", self.drain.took)
        if self.journal.spares < self.journal.target and (not self._said or now >= self._retry):
            self._replenish(now)
        if now - self._told >= TELL:
            self._told = now
            self.tell()
            if self.journal.remove(self._stored(), self._retain):
                self._log.info("segments removed", left=self.journal.segments)
        return done

    def _replenish(self, now: float) -> None:
        """Make a spare; without one ahead there is no trading."""
        if self.journal.replenish():
            if self._said:
                self._log.info("room again", spares=self.journal.spares)
            self._said = ""
            return
        self._retry = now + RETRY
        self._block.count("errors")
        if self.journal.trouble != self._said:
            self._said = self.journal.trouble
            self._log.error("no room for another segment", error=self._said,
                            spares=self.journal.spares)
        # Checked while it lasts, so that nobody's resume undoes it.
        if self.journal.spares <= 1 and self._control.armed:
            self._halt(f"the journal has {self.journal.spares} segment left and no room for more: "
                       f"{self._said}")

    def _orderly(self) -> bool:
        """Whether every stage that stored something ended by itself."""
        return all(block.state == _control.STOPPED for block in self._control.stages
                   if block.counter("events_stored") and block.name != "supervisor")

    def tell(self) -> None:
        """Bring the figures on the control page up to date."""
        journal, block = self.journal, self._block
        block.set("journal_records", journal.number)
        block.count("journal_bytes", journal.bytes - self._bytes)
        block.count("journal_commits", journal.commits - self._commits)
        self._bytes, self._commits = journal.bytes, journal.commits
        block.set("journal_lag", self.drain.lag)
        block.set("journal_spares", journal.spares)
        block.set("journal_segments", journal.segments)

    def serve(self, ended: Callable[[], bool], pause: float) -> None:
        """Work until *ended* says that nobody makes events any more, and nothing is left.

        Raises
        ------
        MismatchError, DiskError
            See :class:`Drain`; trading is halted before.
        """
        block = self._block
        block.state = _control.RUNNING
        try:
            while True:
                over = ended()                  # what comes before it has come when we look
                if over:
                    block.state = _control.DRAINING
                if not self.step():
                    if self._control.stop == _control.QUIT or (over and not self.drain.lag):
                        break
                    time.sleep(pause if not self.drain.full else RETRY / 10)
            self.tell()
            self.journal.finish(orderly=self._orderly())
        except DiskError as e:
            self._halt(str(e))
            raise
        block.state = _control.STOPPED


def serve(journal: Journal, links: Any, control: Control, block: StageBlock, **options: Any,
          ) -> Keeper:
    """A keeper of *journal*, its figures on the page."""
    made = Keeper(Drain(journal, links, control), control, block, **options)
    made.tell()
    return made
