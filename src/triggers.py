"""What halts trading by itself: judged from the control page by a cold process, once a second.

Each trigger must hold over several samples in a row, so that one bad tick does not halt.  Off is 0.

=============  ====================================================================
daily_loss     loss of the day above this share of ``risk.max_daily_loss``
position       value of all positions above so many times what is normal: the larger of its mean
               over about an hour and the largest value of one order
error_rate     orders that were rejected or went without an answer, as a share of those sent within
               ``window``; from 10 orders on
latency        99th percentile of tick to order within ``window``; from 100 orders on
crossed        share of books that are crossed or locked
stale          share of books that were fresh once and are stale
jump           distance of any instrument's mid from its mean of about a minute
=============  ====================================================================
"""
from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hftpipe._control import Control, Histogram

SECOND = 10**9
LEAST_ORDERS = 10               # sent within the window, for a rate of errors to mean something
LEAST_LATENCIES = 100           # for a 99th percentile to mean something
MEMORY = 3600.0                 # s over which the normal position is averaged


@dataclass(frozen=True)
class Limits:
    """Of ``[halt]``: shares in basis points, times in ns, money in 1e-9; 0 = off."""

    daily_loss: int = 9000
    position: int = 10
    error_rate: int = 1000
    latency: int = 100_000_000
    crossed: int = 5000
    stale: int = 5000
    jump: int = 1000
    window: int = 60 * SECOND
    confirm: int = 3
    max_daily_loss: int = 0         # of [risk]; 0 = off there, so it cannot be judged here
    max_order_notional: int = 0     # of [risk]; 0 = off: only the mean is normal

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Limits:
        """What the supervisor handed on."""
        return cls(**{k: int(found[k]) for k in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Sample:
    """What one look at the page counts for a window."""

    at: int
    sent: int
    failed: int
    latency: Histogram


class Triggers:
    """Judges one run.

    Parameters
    ----------
    control : Control
    limits : Limits
    """

    def __init__(self, control: Control, limits: Limits) -> None:
        self.control, self.limits = control, limits
        blocks = {b.name: b for b in control.stages}
        self._book, self._gateway, self._ledger = (
            blocks["book"], blocks["gateway"], blocks["ledger"])
        self._window: deque[Sample] = deque()
        self._normal = 0.0              # mean value of all positions
        self._first = 0                 # time of the first look
        self._last = 0
        self._seen: dict[str, int] = {}     # trigger -> samples in a row

    def sample(self, now: int) -> str:
        """Look once; why trading must halt, empty when it need not."""
        found = self._look(now)
        self._seen = {name: self._seen.get(name, 0) + 1 for name in found}
        for name, count in self._seen.items():
            if count >= self.limits.confirm:
                return found[name]
        return ""

    def forget(self) -> None:
        """Begin anew: what happened before a halt does not halt again after the resume."""
        self._window.clear()
        self._seen = {}

    def _look(self, now: int) -> dict[str, str]:
        limits, found = self.limits, {}
        self._first = self._first or now
        loss = -self._ledger.counter("day_pnl")
        most = limits.max_daily_loss * limits.daily_loss
        if most and loss * 10_000 > most:
            found["daily_loss"] = (
                f"daily loss {_money(loss)} is above {limits.daily_loss / 100:g} % of the limit "
                f"{_money(limits.max_daily_loss)}")
        gross = self._ledger.counter("gross_notional")
        normal = max(int(self._normal), limits.max_order_notional)
        if not limits.max_order_notional and now - self._first < MEMORY * SECOND:
            normal = 0                  # nobody knows yet
        if limits.position and normal and gross > normal * limits.position:
            found["position"] = (f"positions of {_money(gross)} are above {limits.position} times "
                                 f"the normal {_money(normal)}")
        elif self._last:                # what is not normal does not become it
            share = min((now - self._last) / SECOND / MEMORY, 1.0)
            self._normal += (gross - self._normal) * share
        self._last = now
        found.update(self._rates(now))
        found.update(self._market())
        return found

    def _rates(self, now: int) -> dict[str, str]:
        limits, found = self.limits, {}
        gateway = self._gateway
        latest = Sample(now, gateway.counter("orders_sent"),
                        gateway.counter("orders_rejected") + gateway.counter("orders_unknown"),
                        gateway.histogram("tick_to_order"))
        while len(self._window) > 1 and self._window[1].at <= now - limits.window:
            self._window.popleft()
        if self._window:
            before = self._window[0]
            sent, failed = latest.sent - before.sent, latest.failed - before.failed
            if (limits.error_rate and sent >= LEAST_ORDERS
                    and failed * 10_000 > sent * limits.error_rate):
                found["error_rate"] = (f"{failed} of {sent} orders failed, above "
                                       f"{limits.error_rate / 100:g} %")
            passed = latest.latency.since(before.latency)
            if limits.latency and passed.count >= LEAST_LATENCIES:
                p99 = passed.percentile(99)
                if p99 > limits.latency:
                    found["latency"] = (f"tick to order p99 {p99 / 1e6:.1f} ms is above "
                                        f"{limits.latency / 1e6:g} ms")
        self._window.append(latest)
        return found

    def _market(self) -> dict[str, str]:
        limits, found = self.limits, {}
        books = self._book.counter("books")
        for name, words in (("crossed", "crossed or locked"), ("stale", "stale")):
            count, limit = self._book.counter(f"books_{name}"), getattr(limits, name)
            if limit and books and count * 10_000 > books * limit:
                found[name] = f"{count} of {books} books are {words}, above {limit / 100:g} %"
        jump = self._book.counter("jump_bps")
        if limits.jump and jump > limits.jump:
            found["jump"] = (f"a price is {jump / 100:g} % off its mean of a minute, above "
                             f"{limits.jump / 100:g} %")
        return found


def _money(nano: int) -> str:
    return f"{nano / 1e9:,.2f}"
