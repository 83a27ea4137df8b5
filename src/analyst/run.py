"""The analyst: collects what figures are made from, makes them, hands them to risk with their age.

One loop that sleeps, and threads for what may take long (the venue, the database).  It never makes
anybody wait: a figure for which a link has no room waits here, until it goes or a newer one of its
kind takes its place.
"""
from __future__ import annotations

import datetime as dt
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import numpy as np

from hftpipe import schema
from hftpipe.analyst.session import HOLD, SECOND, VenueClock, Watch

KIND = schema.FIGURE_KIND
FIGURE = schema.dtype(schema.FIGURE)
GRACE = 300 * SECOND            # a figure of the day holds so long into the next, while it is made
RETRY = 2 * SECOND              # between two tries of an errand that failed
Key = tuple[int, int, int]      # kind, instrument, other


class Logger(Protocol):
    """What the analyst says it to."""

    def info(self, event: str, **values: Any) -> Any: ...
    def warning(self, event: str, **values: Any) -> Any: ...


# ---------------------------------------------------------------- the way out

class Outbox:
    """Figures on their way: at most one of each kind, instrument and partner, the newest.

    Parameters
    ----------
    put : callable
        Takes an array of FIGURE, returns how many there was room for.
    dropped : callable
        Told when a figure is replaced that never went.
    """

    def __init__(self, put: Callable[[Any], int], dropped: Callable[[], object]) -> None:
        self._put, self._dropped = put, dropped
        self._waiting: dict[Key, tuple[int, int, int]] = {}

    def add(self, kind: int, value: int, computed: int, *, until: int = 0, instrument: int = 0,
            other: int = 0) -> None:
        """Have a figure sent with the next :meth:`send`."""
        key = kind, instrument, other
        if self._waiting.pop(key, None) is not None:
            self._dropped()
        self._waiting[key] = computed, until, value     # at the end: the oldest goes first

    def send(self) -> int:
        """Send what there is room for; how many went."""
        if not self._waiting:
            return 0
        rows = np.zeros(len(self._waiting), FIGURE)
        for row, ((kind, instrument, other), (computed, until, value)) in zip(
                rows, self._waiting.items(), strict=True):
            row["kind"], row["instrument"], row["other"] = kind, instrument, other
            row["ts_computed"], row["until"], row["value"] = computed, until, value
        done = self._put(rows)
        for key in list(self._waiting)[:done]:
            del self._waiting[key]
        return done

    def __len__(self) -> int:
        return len(self._waiting)


# ---------------------------------------------------------------- what may take long

class Errands:
    """A thread that does one thing after the other and keeps the answers until they are fetched."""

    def __init__(self, name: str) -> None:
        self._asked: queue.SimpleQueue[tuple[str, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._done: deque[tuple[str, Any, BaseException | None]] = deque()
        self._out: set[str] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def ask(self, name: str, do: Callable[[], Any]) -> None:
        """Have *do* done, unless the errand *name* is under way."""
        if name not in self._out:
            self._out.add(name)
            self._asked.put((name, do))

    def answers(self) -> Iterable[tuple[str, Any, BaseException | None]]:
        """What was done since the last call: name, answer, what went wrong."""
        while self._done:
            name, answer, error = self._done.popleft()
            self._out.discard(name)
            yield name, answer, error

    def close(self) -> None:
        """Begin nothing new; what is under way ends with the process."""
        self._asked.put(None)

    def _run(self) -> None:
        while (item := self._asked.get()) is not None:
            name, do = item
            try:
                self._done.append((name, do(), None))
            except BaseException as error:
                self._done.append((name, None, error))


# ---------------------------------------------------------------- the sources

@dataclass(frozen=True)
class VenueTime:
    """What the venue's clock says."""

    is_open: bool
    change: int | None          # UTC ns of the next change


@dataclass(frozen=True)
class Sources:
    """Where things come from; None: from nowhere.  Called in threads, each in one only."""

    clock: Callable[[], VenueTime] | None = None
    equity: Callable[[], int] | None = None         # when the day began, nanocash


class Analyst:
    """What one pass of the loop does.

    Parameters
    ----------
    outbox : Outbox
    watch : Watch
        Of the session.
    sources : Sources
    log : Logger
    interval : int, ns
        Between two rounds of figures.
    venue : VenueClock, optional
        Told what ``sources.clock`` says.
    """

    def __init__(self, outbox: Outbox, watch: Watch, sources: Sources, log: Logger, *,
                 interval: int = SECOND, venue: VenueClock | None = None,
                 gap: Callable[[], str] = lambda: "") -> None:
        self.outbox, self.watch, self.sources, self.log = outbox, watch, sources, log
        self.interval, self.venue = interval, venue
        self._gap = gap
        self._zone = ZoneInfo("America/New_York")
        self._venue_errands = Errands("venue")
        self._day: dt.date | None = None
        self._due: dict[str, int] = {}          # when to begin an errand, monotonic
        self._next = 0                          # round of figures
        self._lapses = 0                        # when the newest session figure does
        self._said: dict[str, str] = {}         # by what it is about
        self.errors = 0

    def day(self, utc: int) -> dt.date:
        """The day in New York: what P&L and equity are counted by."""
        return dt.datetime.fromtimestamp(utc // SECOND, dt.UTC).astimezone(self._zone).date()

    def day_ends(self, now: int, utc: int) -> int:
        """Monotonic ns at which figures of the day lapse."""
        day = self.day(utc) + dt.timedelta(days=1)
        midnight = dt.datetime.combine(day, dt.time(0), self._zone)
        return now + round(midnight.timestamp()) * SECOND - utc + GRACE

    def step(self, now: int, utc: int) -> None:
        """One pass at monotonic *now* and *utc*, ns."""
        today = self.day(utc)
        if today != self._day:
            self._day = today
            self._due["equity"] = now
        self._errands(now)
        self._answers(now, utc)
        if now >= self._next:
            self._next = now + self.interval
            self._session(now, utc)
        self.outbox.send()

    def close(self) -> None:
        """Begin nothing new."""
        self._venue_errands.close()

    # ------------------------------------------------------------ errands

    def _errands(self, now: int) -> None:
        for name, do in (("clock", self.sources.clock), ("equity", self.sources.equity)):
            if do is not None and self._due.get(name, 0) <= now:
                self._venue_errands.ask(name, do)
                self._due[name] = now + 2**62           # until it is answered

    def _answers(self, now: int, utc: int) -> None:
        for name, answer, error in self._venue_errands.answers():
            if error is not None:
                self.errors += 1
                self._due[name] = now + RETRY
                self._say(name, f"{type(error).__name__}: {error}")
                continue
            self._say(name, "")
            if name == "clock":
                self._due[name] = now + SECOND
                assert self.venue is not None
                self.venue.heard(now, answer.is_open, answer.change)
            elif name == "equity":
                self.outbox.add(KIND.EQUITY, answer, now, until=self.day_ends(now, utc))
                self.log.info("equity", nanocash=answer, day=str(self._day))

    # ------------------------------------------------------------ figures

    def _session(self, now: int, utc: int) -> None:
        found = self.watch.figure(now, utc)
        if found is not None:
            value, self._lapses = found
            self.outbox.add(KIND.SESSION, value, now, until=self._lapses)
            self._say("session", "")
        elif self._lapses == 0:
            self._lapses = now + HOLD           # time for the first answer
        elif now >= self._lapses:
            self._say("session", self._gap() or "the clock was set, it has to settle")

    def _say(self, about: str, why: str) -> None:
        """Log why there is no figure, when it is news."""
        if why != self._said.get(about, ""):
            self._said[about] = why
            if why:
                self.log.warning("no figure", about=about, why=why)
