"""What the gateway has told of its orders, as the cold path keeps it: one entry an order.

The gateway's table is its own; this is a copy made from its ORDER_EVENT records, for comparing
with what the venue says.  It lags by the time a record takes over the link.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hftpipe import schema

KIND, STATE = schema.ORDER_EVENT_KIND, schema.ORDER_STATE
FILLS = (KIND.FILL, KIND.PARTIAL_FILL)
NAMES = ("order", "kind", "instrument", "side", "type", "price", "qty", "cum_qty", "state",
         "reason")
PAST = 10 * 10**9               # ns
EARLY = 256
REMEMBERED = 8192               # ended orders; as many as the gateway's table, twice


@dataclass(slots=True)
class Known:
    """An order as the gateway has it.

    Attributes
    ----------
    order, instrument, side, type : int
        As of ORDER_EVENT.
    price, qty, cum : int
        Limit price, quantity and what was filled, in 1e-9.
    state, reason : int
    since, last : int, ns
        Without an answer since; last told of.  This host's monotonic clock.
    executions : list of (high, low, qty, price)
        What the stream, or the reconciliation, told of its fills.
    covered : int, nanoqty
        Executions up to this sum are in there, whatever the stream calls them.
    """

    order: int
    instrument: int
    side: int
    type: int
    price: int
    qty: int
    since: int = 0
    cum: int = 0
    state: int = STATE.CREATED
    reason: int = 0
    last: int = 0
    executions: list[tuple[int, int, int, int]] = field(default_factory=list)
    covered: int = 0

    @property
    def ended(self) -> bool:
        return self.state >= STATE.FILLED

    @property
    def unknown(self) -> bool:
        return self.state == STATE.UNKNOWN

    @property
    def heard(self) -> int:
        """Nanoqty of the executions that the stream has told of."""
        return sum(qty for _, _, qty, _ in self.executions)


class Mirror:
    """Orders and what their fills came to.

    Parameters
    ----------
    instruments : int
    """

    def __init__(self, instruments: int) -> None:
        self.orders: dict[int, Known] = {}
        self.live: dict[int, Known] = {}
        self.moved = [0] * instruments      # nanoqty of all fills, signed
        self.fills = 0
        self._early: dict[int, list[Any]] = {}      # rows of orders that were not told of yet
        self._past: deque[tuple[int, int, int]] = deque()      # ns, instrument, what it was before
        self._ended: deque[int] = deque()

    def take(self, events: Any, now: int) -> list[Known]:
        """Take ORDER_EVENT records; the orders they say something new of."""
        columns = (events[name].tolist() for name in NAMES)
        found = (self._one(now, *row) for row in zip(*columns, strict=True))
        return [known for known in found if known is not None]

    def _one(self, now: int, order: int, kind: int, instrument: int, side: int, type_: int,
             price: int, qty: int, cum: int, state: int, reason: int) -> Known | None:
        known = self.orders.get(order)
        if known is None:
            if kind in (KIND.DENIED, KIND.DROPPED) or kind in FILLS:
                # Never in the table; a fill of an order that was forgotten has no quantity.
                if kind in FILLS:
                    self._moves(instrument, side * qty, now)
                return None
            known = self.orders[order] = self.live[order] = Known(
                order, instrument, side, type_, price, qty)
            for row in self._early.pop(order, ()):
                self._execution(known, row)
        if kind in FILLS:
            self._moves(instrument, side * qty, now)
        ended = known.ended
        if state == STATE.UNKNOWN and not known.unknown:
            known.since = now
        known.cum, known.state = max(known.cum, cum), state
        if kind not in (KIND.CANCEL_SENT, KIND.CANCEL_REJECTED):
            known.last = now
        known.reason = reason or known.reason
        if known.ended and not ended:
            self.live.pop(order, None)
            self._ended.append(order)
            if len(self._ended) > REMEMBERED:
                self.orders.pop(self._ended.popleft(), None)
        return known

    def _moves(self, instrument: int, qty: int, now: int) -> None:
        self.fills += 1
        if instrument < len(self.moved):
            self._past.append((now, instrument, self.moved[instrument]))
            self.moved[instrument] += qty
            while self._past[0][0] < now - PAST:
                self._past.popleft()

    def moved_since(self, instrument: int, then: int) -> set[int]:
        """What `moved` of an instrument was at any time since *then*, at most 10 s ago."""
        return {self.moved[instrument]} | {
            was for at, i, was in self._past if i == instrument and at >= then}

    def heard(self, rows: Any) -> list[Known]:
        """Take UPDATE records of the stream; orders whose fills do not add up to what it says."""
        out = []
        for row in rows:
            order = int(row["order"])
            known = self.orders.get(order)
            if known is not None:
                self._execution(known, row)
                if int(row["cum_qty"]) > known.heard:
                    out.append(known)
            elif order and int(row["kind"]) in FILLS:
                self._early.setdefault(order, []).append(row)
                while len(self._early) > EARLY:     # never told of: not in the gateway's table
                    del self._early[next(iter(self._early))]
        return out

    @staticmethod
    def _execution(known: Known, row: Any) -> None:
        if int(row["kind"]) not in FILLS or 0 < int(row["cum_qty"]) <= known.covered:
            return
        name = int(row["execution"]), int(row["execution_low"])
        if not any(name) or name not in {e[:2] for e in known.executions}:
            known.executions.append((*name, int(row["qty"]), int(row["price"])))

    def unknown(self) -> Iterator[Known]:
        """Orders without an answer."""
        return (known for known in self.live.values() if known.unknown)
