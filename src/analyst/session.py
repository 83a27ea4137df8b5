"""Which part of the trading day it is, and until when: calendars, blackouts, a clock that jumps.

A calendar answers for an instant of UTC; :class:`Watch` turns the answer into a figure that
holds for a few seconds of the monotonic clock.  Whatever is not known (a day beyond the calendar,
a venue that does not answer, a clock that was set) gives no figure: the last one lapses and the
gate closes.
"""
from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from hftpipe.errors import ConfigError
from hftpipe.schema import SESSION

SECOND = 10**9
HOLD = 3 * SECOND               # how long a figure holds at most; it is renewed each second
JUMP = SECOND // 2              # change of UTC against the monotonic clock that is no drift
SETTLE = 10 * SECOND            # how long nothing is said after one

Answer = tuple[int, int]        # SESSION_*, and UTC ns at which it may change


class Calendar(Protocol):
    """Answers which session it is."""

    def at(self, utc: int) -> Answer | None:
        """The session at *utc* ns and when it may change; None when that is not known."""

    @property
    def gap(self) -> str:
        """Why the last answer was None."""


class Always:
    """Open around the clock."""

    gap = ""

    def at(self, utc: int) -> Answer | None:
        return SESSION.OPEN, utc + 24 * 3600 * SECOND


# ---------------------------------------------------------------- the exchange

def clock_time(text: str) -> dt.time:
    """``"09:30"``; ValueError without words."""
    if not re.fullmatch(r"\d\d:\d\d", text):
        raise ValueError
    return dt.time.fromisoformat(text)


def spans(texts: Sequence[str]) -> tuple[tuple[dt.time, dt.time], ...]:
    """Blackouts ``"09:30-09:45"`` as times; ValueError without words."""
    out = []
    for text in texts:
        begin, _, end = text.partition("-")
        pair = clock_time(begin.strip()), clock_time(end.strip())
        if pair[0] >= pair[1]:
            raise ValueError
        out.append(pair)
    return tuple(out)


@dataclass(frozen=True)
class Day:
    """One day of an exchange: wall-clock edges of its sessions, ascending, from midnight on."""

    edges: tuple[tuple[dt.datetime, int], ...]


class NewYork:
    """The New York Stock Exchange: regular hours, half days, holidays, hours before and after.

    Holidays and half days are those of the package ``holidays``.  It computes any year by rule;
    what the exchange has announced ends with *known_until*, and nothing is said of later days.

    Parameters
    ----------
    blackouts : sequence of (time, time)
        Wall clock of New York, within regular hours.  One that reaches the regular close moves with
        an early close.
    premarket : time
        Begin of the session before the open.
    aftermarket : timedelta
        Length of the session after the close.
    known_until : date
        Last day of which anything is said.
    """

    OPEN, CLOSE, EARLY = dt.time(9, 30), dt.time(16), dt.time(13)
    FIRST = dt.date(2000, 1, 1)     # compared with another library from here on

    def __init__(self, blackouts: Sequence[tuple[dt.time, dt.time]] = (), *,
                 premarket: dt.time = dt.time(4), aftermarket: dt.timedelta = dt.timedelta(hours=4),
                 known_until: dt.date = dt.date(2028, 12, 31)) -> None:
        from holidays.constants import HALF_DAY
        from holidays.financial.ny_stock_exchange import NewYorkStockExchange
        try:
            self.zone = ZoneInfo("America/New_York")
        except ZoneInfoNotFoundError:
            raise ConfigError("no time zone America/New_York on this machine: install tzdata, or "
                              'set session.calendar = "always"') from None
        exchange: Any = NewYorkStockExchange            # its types are not complete
        self._closed, self._half = exchange(), exchange(categories=HALF_DAY)
        self.blackouts, self.premarket, self.aftermarket = blackouts, premarket, aftermarket
        self.known_until = known_until
        self.gap = ""
        self.day = lru_cache(8)(self._day)

    def trades_on(self, day: dt.date) -> bool:
        """Whether the exchange opens on *day*."""
        return day.weekday() < 5 and day not in self._closed

    def closes(self, day: dt.date) -> dt.time:
        """When regular hours end on a trading *day*."""
        return self.EARLY if day in self._half else self.CLOSE

    def _day(self, day: dt.date) -> Day:
        def wall(time: dt.time) -> dt.datetime:
            return dt.datetime.combine(day, time, self.zone)

        edges = [(wall(dt.time(0)), SESSION.CLOSED)]
        if self.trades_on(day):
            begin, end = wall(self.OPEN), wall(self.closes(day))
            moved = wall(self.CLOSE) - end
            dark = []
            for first, last in self.blackouts:
                shift = moved if last >= self.CLOSE else dt.timedelta()
                a, b = max(wall(first) - shift, begin), min(wall(last) - shift, end)
                if a < b:
                    dark.append((a, b))
            if self.premarket < self.OPEN:
                edges.append((wall(self.premarket), SESSION.PRE))
            for at in sorted({begin, *(t for pair in dark for t in pair if t < end)}):
                black = any(a <= at < b for a, b in dark)
                edges.append((at, SESSION.BLACKOUT if black else SESSION.OPEN))
            if self.aftermarket:
                edges.append((end, SESSION.AFTER))
            edges.append((end + self.aftermarket, SESSION.CLOSED))
        return Day(tuple(edges))

    def at(self, utc: int) -> Answer | None:
        now = dt.datetime.fromtimestamp(utc // SECOND, dt.UTC).astimezone(self.zone)
        today = now.date()
        if not self.FIRST <= today <= self.known_until:
            self.gap = (f"the calendar knows {self.FIRST} to {self.known_until}, today is {today}")
            return None
        self.gap = ""
        midnight = dt.datetime.combine(today + dt.timedelta(days=1), dt.time(0), self.zone)
        # Compared as instants: wall clocks of one zone would compare without their offset.
        edges = [(round(at.timestamp()) * SECOND, state) for at, state in self.day(today).edges]
        edges.append((round(midnight.timestamp()) * SECOND, SESSION.CLOSED))
        for (begin, state), (end, _) in pairwise(edges):
            if begin <= utc < end:
                return state, end
        raise AssertionError(f"{now} lies outside its own day")


# ---------------------------------------------------------------- the venue

class VenueClock:
    """What the venue's own clock said last; unknown once that is older than *hold*.

    Parameters
    ----------
    hold : int, ns
        Monotonic time that an answer counts.
    """

    def __init__(self, hold: int = HOLD) -> None:
        self.hold = hold
        self.gap = "the venue's clock was not heard yet"
        self._answer: tuple[int, int, int | None] | None = None     # heard, SESSION_*, change

    def heard(self, now: int, is_open: bool, change: int | None) -> None:
        """Note an answer at monotonic *now*: open or not, and the UTC ns of the next change."""
        self._answer = now, SESSION.OPEN if is_open else SESSION.CLOSED, change

    def read(self, now: int, utc: int) -> Answer | None:
        """As :meth:`Calendar.at`, at both clocks."""
        if self._answer is None:
            return None
        heard, value, change = self._answer
        left = heard + self.hold - now
        if left <= 0:
            self.gap = f"the venue's clock was last heard {(now - heard) / SECOND:.0f} s ago"
            return None
        until = utc + left
        if change is not None:
            if change <= utc:                   # it has changed since; the next answer will tell
                self.gap = "the venue's session has just changed"
                return None
            until = min(until, change)
        self.gap = ""
        return value, until


# ---------------------------------------------------------------- the figure

class Watch:
    """Makes SESSION figures: the session, and the monotonic time until which it holds.

    Parameters
    ----------
    answer : callable
        ``answer(now, utc)`` gives the session and the UTC ns of its end, or None.
    offset : int, ns
        UTC minus monotonic when the run began.
    hold, jump, settle : int, ns
        At most how long a figure holds; what change of the offset is a jump of the clock; how long
        nothing is said after one.
    """

    def __init__(self, answer: Callable[[int, int], Answer | None], offset: int, *,
                 hold: int = HOLD, jump: int = JUMP, settle: int = SETTLE) -> None:
        self._answer, self._offset = answer, offset
        self._hold, self._jump, self._settle = hold, jump, settle
        self._quiet = 0                         # monotonic time until which nothing is said
        self.jumps = 0

    def figure(self, now: int, utc: int) -> tuple[int, int] | None:
        """``(SESSION_*, until)`` at monotonic *now* and *utc*; None when it is not known."""
        offset = utc - now
        if abs(offset - self._offset) > self._jump:
            self.jumps += 1
            self._quiet = now + self._settle
        self._offset = offset                   # drift is followed
        if now < self._quiet:
            return None
        found = self._answer(now, utc)
        if found is None:
            return None
        value, until = found
        return value, min(now + max(until - utc, 0), now + self._hold)
