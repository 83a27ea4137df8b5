"""The analyst: collects what figures are made from, makes them, hands them to risk with their age.

One loop that sleeps, and threads for what may take long (the venue, the database).  It never makes
anybody wait: a figure for which a link has no room waits here, until it goes or a newer one of its
kind takes its place.
"""
from __future__ import annotations

import datetime as dt
import math
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import numpy as np

from hftpipe import schema
from hftpipe.analyst import figures
from hftpipe.analyst.history import Bar, Panel, Sampler, daily
from hftpipe.analyst.session import HOLD, SECOND, VenueClock, Watch

KIND = schema.FIGURE_KIND
FIGURE = schema.dtype(schema.FIGURE)
EPOCH = dt.date(1970, 1, 1)
DAY = 24 * 3600 * SECOND
SESSION_LENGTH = 23_400 * SECOND        # of one day, for figures made from shorter bars
SAMPLE = SECOND // 5            # between two looks at the board
SLOW = 10 * SECOND              # between two rounds of figures that change slowly
RATIO_BAR = 60 * SECOND         # bars of the volume ratio, and how many before the newest
RATIO_OVER = 20
FOREVER = 2**62
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
        self._waiting: dict[Key, tuple[int, int, int, int, int]] = {}

    def add(self, kind: int, value: int, computed: int, *, until: int = 0, instrument: int = 0,
            other: int = 0, basis: int = 0) -> None:
        """Have a figure sent with the next :meth:`send`."""
        key = kind, instrument, other if kind == KIND.CORRELATION else 0
        if self._waiting.pop(key, None) is not None:
            self._dropped()
        # At the end: the oldest goes first.
        self._waiting[key] = computed, until, value, other, basis

    def send(self) -> int:
        """Send what there is room for; how many went."""
        if not self._waiting:
            return 0
        rows = np.zeros(len(self._waiting), FIGURE)
        for row, ((kind, instrument, _), (computed, until, value, other, basis)) in zip(
                rows, self._waiting.items(), strict=True):
            row["kind"], row["instrument"], row["other"] = kind, instrument, other
            row["ts_computed"], row["until"], row["value"] = computed, until, value
            row["basis"] = basis
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
    # P&L of each day up to the day before the given one, nanocash; what the database knows
    record: Callable[[dt.date], Mapping[dt.date, int]] | None = None
    history: Callable[[dt.date], Mapping[dt.date, Mapping[int, Bar]]] | None = None


@dataclass(frozen=True)
class Estimate:
    """How figures are made from returns."""

    method: str = "historical"
    bar: int = DAY              # ns, of one return
    lookback: int = 30
    least: int = 20

    @property
    def scale(self) -> float:
        """From one bar to one day."""
        return 1.0 if self.bar >= DAY else math.sqrt(SESSION_LENGTH / self.bar)


class Row(Protocol):
    """What the analyst reads of an instrument's line of the board."""

    @property
    def qty(self) -> int: ...
    @property
    def mark(self) -> int: ...
    @property
    def volume(self) -> int: ...


class Board(Protocol):
    """What is held, at which prices; see ``hftpipe._board``."""

    @property
    def basis(self) -> int: ...
    def rows(self) -> Sequence[Row | None]: ...


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
    gap : callable
        Says why the session is not known.
    instruments : int
    board : Board, optional
        Without one there are only figures of the day.
    estimate : Estimate
    sectors : sequence of int
        Number of each instrument's sector, 0 = it has none.
    """

    def __init__(self, outbox: Outbox, watch: Watch, sources: Sources, log: Logger, *,
                 interval: int = SECOND, venue: VenueClock | None = None,
                 gap: Callable[[], str] = lambda: "", instruments: int = 1,
                 board: Board | None = None, estimate: Estimate | None = None,
                 sectors: Sequence[int] = ()) -> None:
        self.outbox, self.watch, self.sources, self.log = outbox, watch, sources, log
        self.interval, self.venue = interval, venue
        self._gap = gap
        self.instruments, self.board, self.sectors = instruments, board, sectors
        self.estimate = estimate or Estimate()
        self._zone = ZoneInfo("America/New_York")
        self._venue_errands, self._store_errands = Errands("venue"), Errands("database")
        self._equity: int | None = None
        self._record: Mapping[dt.date, int] | None = None
        self._history: Mapping[dt.date, Mapping[int, Bar]] | None = None
        self._sampler = Sampler(instruments, self.estimate.bar, self.estimate.lookback + 1)
        self._minutes = Sampler(instruments, RATIO_BAR, RATIO_OVER + 1)
        self._sampled = self._slow = 0
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
            self._equity = self._record = None
            self._due |= {"equity": now, "record": now, "history": now}
        self._errands(now)
        self._answers(now, utc)
        rows: Sequence[Row | None] | None = None
        basis = 0
        if self.board is not None and (now >= self._sampled or now >= self._next):
            self._sampled = now + SAMPLE
            basis = self.board.basis            # before the rows: they know at least its fills
            rows = self.board.rows()
            self._sample(utc, rows)
        if now >= self._next:
            self._next = now + self.interval
            self._session(now, utc)
            if rows is not None:
                self._at_risk(now, rows, basis)
                if now >= self._slow:
                    self._slow = now + SLOW
                    self._slowly(now)
        self.outbox.send()

    def close(self) -> None:
        """Begin nothing new."""
        self._venue_errands.close()
        self._store_errands.close()

    # ------------------------------------------------------------ errands

    def _errands(self, now: int) -> None:
        day = self._day
        assert day is not None

        def dated(ask: Callable[[dt.date], Any] | None) -> Callable[[], Any] | None:
            return None if ask is None else lambda: (day, ask(day))

        for name, errands, do in (
                ("clock", self._venue_errands, self.sources.clock),
                ("equity", self._venue_errands, self.sources.equity),
                ("record", self._store_errands, dated(self.sources.record)),
                ("history", self._store_errands, dated(self.sources.history))):
            if do is not None and self._due.get(name, 0) <= now:
                errands.ask(name, do)
                self._due[name] = FOREVER               # until it is answered

    def _answers(self, now: int, utc: int) -> None:
        for name, answer, error in (*self._venue_errands.answers(),
                                    *self._store_errands.answers()):
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
                self._equity = answer
                self.outbox.add(KIND.EQUITY, answer, now, until=self.day_ends(now, utc))
                self.log.info("equity", nanocash=answer, day=str(self._day))
                self._of_the_day(now, utc)
            elif answer[0] == self._day:
                if name == "record":
                    self._record = answer[1]
                    self._of_the_day(now, utc)
                else:
                    self._history = answer[1]
                    self.log.info("history", days=len(answer[1]), day=str(self._day))
            else:
                self._due[name] = now                   # asked yesterday, answered today

    def _of_the_day(self, now: int, utc: int) -> None:
        """P&L before this day, and the peak, once equity and record are both there."""
        day = self._day
        assert day is not None
        if self._record is None:
            return
        past = {d: pnl for d, pnl in self._record.items() if d < day}
        until = self.day_ends(now, utc)
        monday = day - dt.timedelta(days=day.weekday())
        for kind, first in ((KIND.WEEK_PNL, monday), (KIND.MONTH_PNL, day.replace(day=1))):
            self.outbox.add(kind, sum(pnl for d, pnl in past.items() if d >= first), now,
                            until=until)
        if self._equity is not None:
            peak = equity = self._equity
            for d in sorted(past, reverse=True):        # what it was before that day, and so on
                equity -= past[d]
                peak = max(peak, equity)
            self.outbox.add(KIND.PEAK, peak, now, until=until)

    # ------------------------------------------------------------ figures

    def _session(self, now: int, utc: int) -> None:
        found = self.watch.figure(now, utc)
        if found is not None:
            value, self._lapses = found
            day = self._day
            assert day is not None
            for i in range(self.instruments):
                self.outbox.add(KIND.SESSION, value, now, until=self._lapses, instrument=i,
                                other=(day - EPOCH).days)
            self._say("session", "")
        elif self._lapses == 0:
            self._lapses = now + HOLD           # time for the first answer
        elif now >= self._lapses:
            self._say("session", self._gap() or "the clock was set, it has to settle")

    def _sample(self, utc: int, rows: Sequence[Row | None]) -> None:
        """Take prices and volumes into the bars of this run."""
        prices = [row.mark / 1e9 if row is not None else math.nan for row in rows]
        volumes = [row.volume / 1e9 if row is not None else math.nan for row in rows]
        self._minutes.add(utc, prices, volumes)
        if self.estimate.bar < DAY:
            self._sampler.add(utc, prices, volumes)

    def _panel(self) -> Panel | None:
        """The bars that returns are taken from; None when there is no source of any."""
        if self.estimate.bar < DAY:
            return self._sampler.panel()
        if self._history is None or self._day is None:
            return None
        return daily(self._history, self.instruments, self._day, self.estimate.lookback)

    def _at_risk(self, now: int, rows: Sequence[Row | None], basis: int) -> None:
        """Value at risk of what is held."""
        panel = self._panel()
        if panel is None:
            return
        if any(row is None or (row.qty and row.mark <= 0) for row in rows):
            self._say("value at risk", "a position without a price, or a torn line of the board")
            return
        value = np.array([row.qty / 1e9 * (row.mark / 1e9) for row in rows if row is not None])
        how = self.estimate
        pair = figures.value_at_risk(value, panel.returns(), how.method, how.least, how.scale)
        for kind, found in zip((KIND.VAR_95, KIND.VAR_99), pair, strict=True):
            if found is not None:
                self.outbox.add(kind, found, now, basis=basis)
        self._say("value at risk", "" if None not in pair else
                  f"what is held has fewer than {how.least} common returns")

    def _slowly(self, now: int) -> None:
        """Figures of single instruments and of pairs."""
        how = self.estimate
        for i, sector in enumerate(self.sectors):
            if sector:
                self.outbox.add(KIND.SECTOR, sector, now, until=FOREVER, instrument=i)
        minutes = self._minutes.panel()
        panel = self._panel()
        for i in range(self.instruments):
            self._send(KIND.VOLUME_RATIO, figures.volume_ratio(minutes.volume[:, i], RATIO_OVER),
                       now, i)
            if panel is not None and how.bar >= DAY:
                self._send(KIND.VOLUME, figures.average_volume(panel.volume[1:, i], how.least),
                           now, i)
        if panel is None:
            return
        returns = panel.returns()
        for i, pair in enumerate(figures.unit_value_at_risk(returns, how.method, how.least,
                                                            how.scale)):
            self._send(KIND.UNIT_VAR_95, pair[0], now, i)
            self._send(KIND.UNIT_VAR_99, pair[1], now, i)
            found = figures.volatility(panel.high[:, i], panel.low[:, i], panel.close[:, i])
            if found is not None:
                self._send(KIND.VOLATILITY, figures.nano_up(found * how.scale / 1e9), now, i)
        for (i, j), value in figures.correlations(returns, how.least).items():
            self.outbox.add(KIND.CORRELATION, value, now, instrument=i, other=j)

    def _send(self, kind: int, value: int | None, now: int, instrument: int) -> None:
        if value is not None:
            self.outbox.add(kind, value, now, instrument=instrument)

    def _say(self, about: str, why: str) -> None:
        """Log why there is no figure, when it is news."""
        if why != self._said.get(about, ""):
            self._said[about] = why
            if why:
                self.log.warning("no figure", about=about, why=why)
