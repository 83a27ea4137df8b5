"""What was traded and quoted, kept bounded: the source of historical data.

Trades and quotes live in memory only, the last :data:`ROWS` of each instrument; minute bars
are in the venue's log as well and survive it.  Times are those the streams gave out, so a
row of history and the message of the stream are the same event.
"""
from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ._traders import QUOTE, TRADE
from .session import NEW_YORK
from .state import NANO, stamp
from .traders import Instrument

if TYPE_CHECKING:
    from .exchange import Message

ROWS = 20_000                   # trades, and quotes, of each instrument
BARS = 31 * 24 * 60             # minute bars of each instrument
MINUTE = 60 * NANO
TIMEFRAME = re.compile(r"(\d{1,2})(Min|T|Hour|H|Day|D|Week|W|Month|M)")
LIMITS = {"Min": range(1, 60), "Hour": range(1, 24), "Day": (1,), "Week": (1,),
          "Month": (1, 2, 3, 4, 6, 12)}
SHORT = {"T": "Min", "H": "Hour", "D": "Day", "W": "Week", "M": "Month"}


class Bar:
    """One span of trades; prices in nano."""

    __slots__ = ("close", "count", "high", "low", "minute", "open", "value", "volume")

    def __init__(self, minute: int, price: int) -> None:
        self.minute = minute
        self.open = self.high = self.low = self.close = price
        self.volume = self.value = self.count = 0

    def add(self, price: int, qty: int) -> None:
        self.high, self.low = max(self.high, price), min(self.low, price)
        self.close = price
        self.volume += qty
        self.value += price * qty
        self.count += 1

    def join(self, other: Bar) -> None:
        """Take in a later one."""
        self.high, self.low = max(self.high, other.high), min(self.low, other.low)
        self.close = other.close
        self.volume += other.volume
        self.value += other.value
        self.count += other.count

    def copy(self) -> Bar:
        new = Bar(self.minute, self.open)
        new.high, new.low, new.close = self.high, self.low, self.close
        new.volume, new.value, new.count = self.volume, self.value, self.count
        return new

    def row(self, crypto: bool) -> dict[str, Any]:
        """As historical data writes it."""
        return {"t": stamp(self.minute * MINUTE), "o": self.open / NANO, "h": self.high / NANO,
                "l": self.low / NANO, "c": self.close / NANO,
                "v": self.volume / NANO if crypto else self.volume // NANO, "n": self.count,
                "vw": self.value / self.volume / NANO if self.volume else 0.0}


def timeframe(text: str) -> tuple[int, str] | None:
    """Count and unit of a timeframe such as 5Min; ``None`` when it is none."""
    found = TIMEFRAME.fullmatch(text)
    if found is None:
        return None
    count, unit = int(found[1]), SHORT.get(found[2], found[2])
    return (count, unit) if count in LIMITS[unit] else None


def bucket(minute: int, count: int, unit: str) -> int:
    """First minute of the bar that *minute* is in; days and longer begin in New York."""
    if unit == "Min":
        return minute // count * count
    if unit == "Hour":
        return minute // (60 * count) * (60 * count)
    day = datetime.fromtimestamp(minute * 60, UTC).astimezone(NEW_YORK).replace(
        hour=0, minute=0, second=0)
    if unit == "Week":
        day -= timedelta(days=day.weekday())
    elif unit == "Month":
        day = day.replace(day=1, month=(day.month - 1) // count * count + 1)
    return int(day.timestamp()) // 60


class History:
    """Trades, quotes and bars of every instrument.

    Parameters
    ----------
    instruments : sequence of Instrument
    bars : dict
        Minute bars of the log: by symbol, tuples of minute, open, high, low, close, volume,
        count and value.
    record : callable
        ``record(symbol, bar)`` writes a finished minute down.
    """

    def __init__(self, instruments: tuple[Instrument, ...],
                 bars: dict[str, list[tuple[int, ...]]],
                 record: Callable[[str, Bar], None]) -> None:
        self.instruments = instruments
        self.record = record
        count = len(instruments)
        self._rows: dict[int, list[deque[tuple[int, Message]]]] = {
            kind: [deque(maxlen=ROWS) for _ in range(count)] for kind in (TRADE, QUOTE)}
        self._bars: list[deque[Bar]] = [deque(maxlen=BARS) for _ in range(count)]
        self._now: list[Bar | None] = [None] * count
        # trades that do not stand any more: why, and the price and quantity that do instead
        self._void: dict[tuple[int, int], tuple[str, tuple[int, int] | None]] = {}
        for i, instrument in enumerate(instruments):
            for row in bars.get(instrument.symbol, ()):
                bar = Bar(row[0], row[1])
                bar.high, bar.low, bar.close, bar.volume, bar.count, bar.value = row[2:]
                self._bars[i].append(bar)

    def add(self, stamped: Iterable[tuple[int, Message]]) -> None:
        """Take in what happened, with the time each message was given."""
        for row in stamped:
            t, m = row
            kept = self._rows.get(m[0])
            if kept is None:                # a level of a book
                continue
            kept[m[1]].append(row)
            if m[0] == TRADE:
                bar = self._now[m[1]]
                if bar is None or bar.minute != t // MINUTE:
                    if bar is not None:
                        self._close(m[1], bar)
                    bar = self._now[m[1]] = Bar(t // MINUTE, m[3])
                bar.add(m[3], m[4])

    def _close(self, index: int, bar: Bar) -> None:
        self._bars[index].append(bar)
        self.record(self.instruments[index].symbol, bar)

    def close_minute(self, now: int) -> None:
        """Write down the minutes that are over."""
        for i, bar in enumerate(self._now):
            if bar is not None and bar.minute < now // MINUTE:
                self._now[i] = None
                self._close(i, bar)

    # ------------------------------------------------------------ reading

    def rows(self, kind: int, index: int, start: int, end: int) -> list[tuple[int, Message]]:
        """Trades or quotes from *start* to *end* (UTC ns, both included), oldest first."""
        return [row for row in self._rows[kind][index] if start <= row[0] <= end]

    def void(self, index: int, number: int, update: str,
             instead: tuple[int, int] | None = None) -> None:
        """Note that a trade is ``canceled`` or ``incorrect``, and what it was in truth."""
        self._void[index, number] = update, instead

    def updates(self, m: Message) -> list[tuple[str, Message]]:
        """A trade as history shows it: with an update of it, and the corrected one behind it."""
        found = self._void.get((m[1], m[7]))
        if found is None:
            return [("", m)]
        update, instead = found
        if instead is None:
            return [(update, m)]
        return [(update, m), ("corrected", (*m[:3], *instead, *m[5:]))]

    def last(self, kind: int, index: int) -> tuple[int, Message] | None:
        kept = self._rows[kind][index]
        return kept[-1] if kept else None

    def bars(self, index: int, count: int, unit: str) -> list[Bar]:
        """All bars of a timeframe, oldest first; the last one may not be over."""
        out: list[Bar] = []
        now = self._now[index]
        for bar in (*self._bars[index], *((now,) if now else ())):
            first = bucket(bar.minute, count, unit)
            if out and out[-1].minute == first:
                out[-1].join(bar)
            else:
                out.append(bar.copy())
                out[-1].minute = first
        return out


def trade_row(t: int, m: Message, crypto: bool, exchange: str) -> dict[str, Any]:
    """A trade as historical data writes it."""
    if crypto:
        return {"t": stamp(t), "p": m[3] / NANO, "s": m[4] / NANO, "tks": "B" if m[2] > 0 else "S",
                "i": m[7]}
    return {"t": stamp(t), "x": exchange, "p": m[3] / NANO, "s": m[4] // NANO,
            "c": ["@"] if m[4] % (100 * NANO) == 0 else ["@", "I"], "i": m[7], "z": "C"}


def quote_row(t: int, m: Message, crypto: bool, exchange: str) -> dict[str, Any]:
    """A quote as historical data writes it."""
    if crypto:
        return {"t": stamp(t), "bp": m[3] / NANO, "bs": m[4] / NANO, "ap": m[5] / NANO,
                "as": m[6] / NANO}
    return {"t": stamp(t), "ax": exchange, "ap": m[5] / NANO, "as": m[6] // NANO, "bx": exchange,
            "bp": m[3] / NANO, "bs": m[4] // NANO, "c": ["R"], "z": "C"}
