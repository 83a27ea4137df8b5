"""When the venue trades: round the clock, or in the hours of the New York Stock Exchange."""
from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from datetime import time as clock_time
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .state import NANO

try:
    NEW_YORK: tzinfo = ZoneInfo("America/New_York")
except ZoneInfoNotFoundError:           # a machine without tzdata
    NEW_YORK = timezone(timedelta(hours=-5))

OPEN, CLOSE, EARLY = clock_time(9, 30), clock_time(16), clock_time(13)
PRE, AFTER = clock_time(4), clock_time(20)
FIRST, LAST = date(1990, 1, 1), date(2029, 12, 31)      # days of the calendar, as the broker's


@lru_cache(1)
def _holidays() -> tuple[Any, Any]:
    from holidays.constants import HALF_DAY
    from holidays.financial.ny_stock_exchange import NewYorkStockExchange
    exchange: Any = NewYorkStockExchange                # its types are not complete
    return exchange(), exchange(categories=HALF_DAY)


def trades_on(day: date) -> bool:
    return day.weekday() < 5 and day not in _holidays()[0]


def closes(day: date) -> clock_time:
    """When regular hours end on a trading *day*."""
    return EARLY if day in _holidays()[1] else CLOSE


def local(ns: int) -> datetime:
    """UTC ns as the wall clock of New York, cut to microseconds."""
    return datetime.fromtimestamp(ns // NANO, UTC).astimezone(NEW_YORK).replace(
        microsecond=ns % NANO // 1000)


def rows(first: date, last: date) -> list[dict[str, str]]:
    """The calendar's rows from *first* to *last*; a trade settles on the next trading day."""
    out = []
    day, last = max(first, FIRST), min(last, LAST)
    while day <= last:
        if trades_on(day):
            settles = day + timedelta(1)
            while not trades_on(settles):
                settles += timedelta(1)
            out.append({"date": day.isoformat(), "open": f"{OPEN:%H:%M}",
                        "close": f"{closes(day):%H:%M}", "session_open": f"{PRE:%H%M}",
                        "session_close": f"{AFTER:%H%M}", "settlement_date": settles.isoformat()})
        day += timedelta(1)
    return out


class Hours:
    """The session a moment lies in.

    Parameters
    ----------
    always : bool
        Stocks trade round the clock; the calendar is still that of New York.
    shift : int, ns
        Added to the host's clock: a venue can stand at any hour it likes.
    """

    def __init__(self, always: bool = True, shift: int = 0) -> None:
        self.always = always
        self.shift = shift

    def now(self, ns: int) -> datetime:
        """Wall clock of New York at the host's *ns*."""
        return local(ns + self.shift)

    def phase(self, ns: int) -> str:
        """``open``, ``pre``, ``after`` or ``closed``."""
        if self.always:
            return "open"
        now = self.now(ns)
        if not trades_on(now.date()):
            return "closed"
        at = now.time()
        if OPEN <= at < closes(now.date()):
            return "open"
        if PRE <= at < OPEN:
            return "pre"
        return "after" if closes(now.date()) <= at < AFTER else "closed"

    def refuses(self, tif: str, ns: int) -> bool:
        """Whether *tif* is an auction's that takes no more orders: 09:28 or 15:50 to 19:00."""
        if self.always or tif not in ("opg", "cls"):
            return False
        at = self.now(ns).time()
        begin = clock_time(9, 28) if tif == "opg" else clock_time(15, 50)
        return trades_on(self.now(ns).date()) and begin <= at < clock_time(19)

    def _next(self, now: datetime, opening: bool) -> datetime:
        day = now.date()
        while True:
            if trades_on(day):
                when = datetime.combine(day, OPEN if opening else closes(day), NEW_YORK)
                if when > now:
                    return when
            day += timedelta(1)

    def clock(self, ns: int) -> dict[str, Any]:
        """The clock object; round the clock it is always open, the next times are regular."""
        now = self.now(ns)
        return {"timestamp": now.isoformat(), "is_open": self.phase(ns) == "open",
                "next_open": self._next(now, True).isoformat(),
                "next_close": self._next(now, False).isoformat()}
