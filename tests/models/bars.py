"""Bars as their definition reads: from the list of all events, with fractions, nothing carried.

Which trades count is decided first, for each by what was seen before it; bars are then made
by grouping.
"""
from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple

UNPRINTABLE = 8
LIMIT = 2**63 - 1


class Event(NamedTuple):
    ts: int
    price: int = 0              # 0 with qty 0: only time passes
    qty: int = 0
    flags: int = 0
    trade: bool = True


class Twin:
    """What must be so after *events*; a bar is a dict."""

    def __init__(self, window: int, events: Sequence[Event]) -> None:
        self.late = self.skipped = 0
        counted: list[tuple[int, Event]] = []
        complete: set[int] = set()          # starts of the bars that are complete
        for e in events:
            running = counted and counted[-1][0] not in complete
            if running and e.ts >= 0 and e.ts // window > counted[-1][0]:
                complete.add(counted[-1][0])
                running = False
            if not e.trade:
                continue
            if e.flags & UNPRINTABLE or e.price <= 0 or e.qty <= 0 or e.ts < 0:
                self.skipped += 1
            elif counted and (e.ts // window < counted[-1][0] if running
                              else e.ts // window <= counted[-1][0]):
                self.late += 1
            elif running and sum(x.qty for w, x in counted if w == counted[-1][0]) + e.qty > LIMIT:
                self.skipped += 1
            else:
                counted.append((e.ts // window, e))
        bars = []
        for start, group in groupby(counted, key=lambda pair: pair[0]):
            trades = [e for _, e in group]
            prices, volume = [t.price for t in trades], sum(t.qty for t in trades)
            vwap = Fraction(sum(t.price * t.qty for t in trades), volume)
            bars.append({
                "start": start * window, "open": prices[0], "high": max(prices),
                "low": min(prices), "close": prices[-1], "volume": volume, "vwap": round(vwap),
                "count": len(trades)})
        self.complete = [b for b in bars if b["start"] // window in complete]
        rest = [b for b in bars if b["start"] // window not in complete]
        self.running = rest[0] if rest else None
