"""Past bars: from a file of daily bars, from stored trades, and from the board of this run.

A :class:`Panel` has one row per period and one column per instrument; NaN where an instrument has
no bar.  Returns are between neighbouring rows only, so a gap never makes one long return.
"""
from __future__ import annotations

import csv
import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from hftpipe.errors import ConfigError

Array = np.ndarray[Any, np.dtype[np.float64]]

REQUIRED = ("date", "symbol", "close")
OPTIONAL = ("high", "low", "volume")


@dataclass(frozen=True)
class Bar:
    """One instrument's bar; NaN for what is not known."""

    close: float
    high: float = math.nan
    low: float = math.nan
    volume: float = math.nan


@dataclass(frozen=True)
class Panel:
    """Bars of all instruments: (n, m) arrays, oldest row first; *at* says when each row was."""

    at: tuple[Any, ...]
    close: Array
    high: Array
    low: Array
    volume: Array

    @classmethod
    def of(cls, rows: Mapping[Any, Mapping[int, Bar]], count: int) -> Panel:
        """From ``{when: {instrument: bar}}`` for *count* instruments."""
        at = tuple(sorted(rows))
        made = {name: np.full((len(at), count), np.nan)
                for name in ("close", "high", "low", "volume")}
        for n, when in enumerate(at):
            for i, bar in rows[when].items():
                for name, array in made.items():
                    array[n, i] = getattr(bar, name)
        return cls(at, **made)

    def tail(self, count: int) -> Panel:
        """The last *count* rows."""
        return Panel(self.at[-count:] if count else (), *(
            a[len(a) - min(count, len(a)):] for a in
            (self.close, self.high, self.low, self.volume)))

    def returns(self) -> Array:
        """(n - 1, m) simple returns between neighbouring rows; NaN where one of the two is."""
        before, after = self.close[:-1], self.close[1:]
        out = np.full(before.shape, np.nan) if len(self.at) else np.empty((0, self.close.shape[1]))
        np.divide(after, before, out=out, where=before > 0)
        return out - 1


# ---------------------------------------------------------------- a file of daily bars

def read_csv(path: Path, symbols: Sequence[str]) -> dict[dt.date, dict[int, Bar]]:
    """Daily bars of *symbols* from a CSV file; other symbols in it are passed over.

    The first line names the columns: ``date`` (ISO 8601), ``symbol`` and ``close`` at least;
    ``high``, ``low`` and ``volume`` where volatility and volumes are wanted.  Adjusted for splits:
    a split looks like a crash.

    Raises
    ------
    ConfigError
        Naming the line: what was wanted, what was found.
    """
    index = {symbol: i for i, symbol in enumerate(symbols)}
    out: dict[dt.date, dict[int, Bar]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            head = [name.strip().lower() for name in next(lines, [])]
            missing = [name for name in REQUIRED if name not in head]
            if missing or len(set(head)) != len(head):
                raise ConfigError(f"{path}:1: must name the columns {', '.join(REQUIRED)} and may "
                                  f"name {', '.join(OPTIONAL)}, once each; found "
                                  f"{', '.join(head) or 'nothing'}")
            for row in lines:
                if row:
                    _take(out, index, dict(zip(head, row, strict=False)), len(row) == len(head),
                          f"{path}:{lines.line_num}")
    except OSError as e:
        raise ConfigError(f"history {path}: {e.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as e:
        raise ConfigError(f"history {path}: not a CSV file in UTF-8: {e}") from None
    return out


def _take(out: dict[dt.date, dict[int, Bar]], index: Mapping[str, int], row: Mapping[str, str],
          whole: bool, where: str) -> None:
    if not whole:
        raise ConfigError(f"{where}: must have as many fields as the first line")
    instrument = index.get(row["symbol"].strip())
    if instrument is None:
        return
    try:
        day = dt.date.fromisoformat(row["date"].strip())
    except ValueError:
        raise ConfigError(f"{where}: date must be YYYY-MM-DD, was {row['date']!r}") from None
    close = _number(row["close"], "close", where)
    high, low = (_number(row[n], n, where) if row.get(n, "").strip() else math.nan
                 for n in ("high", "low"))
    volume = (_number(row["volume"], "volume", where, zero=True)
              if row.get("volume", "").strip() else math.nan)
    if low > close or high < close:             # false where one of them is not known
        raise ConfigError(f"{where}: wanted low <= close <= high, found {low:g}, {close:g}, "
                          f"{high:g}")
    if instrument in out.setdefault(day, {}):
        raise ConfigError(f"{where}: {row['symbol'].strip()} has a second bar of {day}")
    out[day][instrument] = Bar(close, high, low, volume)


def _number(text: str, name: str, where: str, zero: bool = False) -> float:
    try:
        found = Decimal(text.strip())
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite() or found < 0 or (found == 0 and not zero) or found > 10**12:
        raise ConfigError(f"{where}: {name} must be a number {'from' if zero else 'above'} 0, "
                          f"was {text!r}")
    return float(found)


def daily(rows: Mapping[dt.date, Mapping[int, Bar]], count: int, today: dt.date,
          lookback: int) -> Panel:
    """The panel of the last *lookback* returns before *today*; none from an old file.

    Only days of the last ``2 * lookback + 10`` calendar days count: a file that nobody keeps up
    must not pass for the present.
    """
    oldest = today - dt.timedelta(days=2 * lookback + 10)
    recent = {day: bars for day, bars in rows.items() if oldest <= day < today and bars}
    return Panel.of(recent, count).tail(lookback + 1)


# ---------------------------------------------------------------- bars of this run

class Sampler:
    """Bars made from samples of prices and of the volume traded since the run began.

    A bar is the samples of one period of the UTC clock.  A period without a sample has no bar, and
    the first and the current one are never handed out: they are not whole.

    Parameters
    ----------
    count : int
        Instruments.
    period : int, ns
    keep : int
        Bars kept.
    """

    def __init__(self, count: int, period: int, keep: int) -> None:
        self.count, self.period, self.keep = count, period, keep
        self._bars: dict[int, dict[int, Bar]] = {}      # whole ones by number of the period
        self._now = -1                                  # number of the current period
        self._first = -1                                # of the first one seen: it began before us
        self._open: dict[int, list[float]] = {}         # instrument -> [high, low, close]
        self._volume: dict[int, float] = {}             # at the end of the period before
        self._seen: dict[int, float] = {}               # newest

    def add(self, utc: int, prices: Iterable[float], volumes: Iterable[float]) -> None:
        """Take the prices at *utc* ns (0 or NaN: none yet) and the volumes so far."""
        number = utc // self.period
        if number < self._now:                          # the clock was set back: begin anew
            self._bars.clear()
            self._now = -1
        if number != self._now:
            self._close(number)
        for i, (price, volume) in enumerate(zip(prices, volumes, strict=True)):
            if not price > 0:
                continue
            bar = self._open.setdefault(i, [price, price, price])
            bar[0], bar[1], bar[2] = max(bar[0], price), min(bar[1], price), price
            self._seen[i] = volume

    def _close(self, number: int) -> None:
        """End the current period; *number* is the next."""
        if self._now < 0:
            self._first = number
        elif self._now != self._first:
            self._bars[self._now] = {
                i: Bar(close, high, low,
                       self._seen[i] - self._volume[i] if i in self._volume else math.nan)
                for i, (high, low, close) in self._open.items()}
            for old in sorted(self._bars)[:-self.keep]:
                del self._bars[old]
        # A volume that grew over a gap belongs to no single bar.
        self._volume = dict(self._seen) if number == self._now + 1 else {}
        self._now, self._open, self._seen = number, {}, {}

    def panel(self) -> Panel:
        """The whole bars; periods without any are rows of NaN, so that no return spans them."""
        if not self._bars:
            return Panel.of({}, self.count)
        rows = range(max(min(self._bars), max(self._bars) - self.keep + 1), max(self._bars) + 1)
        return Panel.of({n: self._bars.get(n, {}) for n in rows}, self.count)
