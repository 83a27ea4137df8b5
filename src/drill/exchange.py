"""A venue and the network before it, in virtual time, for the simulation.

Everything that happens there is a line of :attr:`Exchange.log`, as the local exchange writes them,
so that the same judges read it.  Orders and answers travel; either may be late, lost or come twice.
"""
from __future__ import annotations

import heapq
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy

from hftpipe import schema
from hftpipe._clock import utc_ns
from hftpipe.alpaca import messages, session
from hftpipe.venue.state import text

KIND, TIF = schema.ORDER_EVENT_KIND, schema.TIF
MS, SECOND = 10**6, 10**9
TIMEOUT = 30 * MS              # without an answer so long, the wire says UNKNOWN
LATE = 4 * SECOND               # an order that is under way arrives before that
OPEN = ("new", "partially_filled")
KINDS = {"new": KIND.ACKED, "partial_fill": KIND.PARTIAL_FILL, "fill": KIND.FILL,
         "canceled": KIND.CANCELED, "rejected": KIND.REJECTED}


@dataclass
class There:
    """An order at the venue."""

    id: str
    name: str
    symbol: str
    side: int
    type: int
    tif: int
    qty: int
    price: int
    at: int                     # UTC ns
    filled: int = 0
    status: str = "new"


def stamp(utc: int) -> str:
    """RFC 3339 of *utc* ns."""
    seconds, nanos = divmod(utc, SECOND)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"


class Exchange:
    """What the broker has; answers as :class:`hftpipe.recovery.settle.Venue`.

    Parameters
    ----------
    chance : random.Random
    symbols : list of str

    Attributes
    ----------
    log : list of dict
        Lines ``order`` and ``event``.
    hits : Counter
        Faults of the network by name.
    """

    def __init__(self, chance: random.Random, symbols: list[str]) -> None:
        self.chance, self.symbols = chance, symbols
        self.now = 0                            # monotonic ns
        self.orders_by_name: dict[str, There] = {}
        self.executions: list[messages.Fill] = []
        self.held: Counter[str] = Counter()
        self.log: list[dict[str, Any]] = []
        self.hits: Counter[str] = Counter()
        self.tell: Callable[[Any, bool], None] | None = None   # UPDATE record, by the stream
        self.up = False                         # the stream of updates
        self.rough = False                      # three times as much is lost on the way
        self._count = self._number = 0
        self._ways: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._here: set[int] = set()            # journeys that end with the process

    # ---------------------------------------------------------------- the network

    def later(self, delay: int, what: Callable[..., None], *words: Any, here: bool = False) -> None:
        """Have *what* happen in *delay* ns; *here*: on our side, which may be gone by then."""
        self._number += 1
        if here:
            self._here.add(self._number)
        heapq.heappush(self._ways, (self.now + delay, self._number, what, words))

    def advance(self, now: int) -> None:
        """Let everything happen that is due by *now*."""
        while self._ways and self._ways[0][0] <= now:
            due, number, what, words = heapq.heappop(self._ways)
            self.now = max(self.now, due)
            self._here.discard(number)
            what(*words)
        self.now = max(self.now, now)

    def cut(self) -> None:
        """The process that was talked with is gone, and what was on its way to it."""
        self._ways = [w for w in self._ways if w[1] not in self._here]
        heapq.heapify(self._ways)
        self._here.clear()
        self.tell, self.up = None, False

    def _says(self, row: Any, stream: bool) -> None:
        if self.tell is not None and (self.up or not stream):
            self.tell(row, stream)
        elif stream:
            self.hits["update lost"] += 1

    def _row(self, order: There, run: int, kind: int) -> Any:
        row = numpy.zeros(1, session.UPDATE)
        row["order"], row["instrument"] = (session.order_of(order.name, run),
                                           self.symbols.index(order.symbol))
        row["kind"], row["side"], row["cum_qty"] = kind, order.side, order.filled
        row["venue_id"], row["venue_id_low"] = session.words(order.id)
        row["ts_venue"] = utc_ns()
        return row

    # ---------------------------------------------------------------- orders

    def send(self, record: Any, run: int) -> None:
        """An ORDER record has left the gateway's socket."""
        name = session.client_order_id(run, int(record["order"]) & (1 << 56) - 1)
        way = self.chance.randint(MS // 5, 5 * MS)
        if record["action"] == schema.ACTION.CANCEL:
            self.later(way, self._cancel_asked, name, run, int(record["order"]))
            return
        symbol = self.symbols[int(record["instrument"])]
        order = There(self._uuid(), name, symbol, int(record["side"]), int(record["type"]),
                      int(record["tif"]), int(record["qty"]), int(record["price"]), 0)
        fate, answer = self.chance.random() / (3 if self.rough else 1), True
        if fate < 0.04:
            self.hits["order late"] += 1
            way = self.chance.randint(10 * MS, LATE if self.chance.random() < 0.5 else SECOND // 4)
            answer = False
        elif fate < 0.07:
            self.hits["order lost"] += 1
            self._silent(order, run)
            return
        elif fate < 0.11:
            self.hits["answer lost"] += 1
            answer = False
        if not answer:
            self._silent(order, run)
        self.later(way, self._accept, order, run, answer)

    def _silent(self, order: There, run: int) -> None:
        """No answer: the wire gives up after a while."""
        self.later(TIMEOUT, self._says, self._row(order, run, KIND.UNKNOWN), False, here=True)

    def _accept(self, order: There, run: int, answer: bool) -> None:
        if order.name in self.orders_by_name:           # a broker refuses a name that it knows
            self.hits["name known"] += 1
            order = self.orders_by_name[order.name]
            self.later(MS, self._says, self._row(order, run, KIND.REJECTED), False, here=True)
            return
        order.at = utc_ns()
        if self.chance.random() < 0.02:
            self.hits["refused"] += 1
            self.later(MS, self._says, self._row(order, run, KIND.REJECTED), False, here=True)
            return
        self.orders_by_name[order.name] = order
        self.log.append({"kind": "order", "id": order.id, "client_order_id": order.name,
                         "symbol": order.symbol, "side": "buy" if order.side > 0 else "sell",
                         "qty": text(order.qty)})
        if answer:
            self.later(self.chance.randint(MS // 5, 5 * MS), self._says,
                       self._row(order, run, KIND.ACKED), False, here=True)
        self._event(order, run, "new")
        if order.tif == TIF.IOC:
            if (share := self.chance.random()) < 0.85:
                self._fill(order, run, order.qty if share < 0.6 else max(
                    order.qty // 2 // SECOND * SECOND, SECOND))
            if order.status in OPEN:
                self._end(order, run, "canceled")
        elif self.chance.random() < 0.6:
            self.later(self.chance.randint(MS, 60 * MS), self._trade, order, run)

    def _trade(self, order: There, run: int) -> None:
        """Somebody takes a part of an order that rests."""
        if order.status not in OPEN:
            return
        left = (order.qty - order.filled) // SECOND
        self._fill(order, run, min(self.chance.randint(1, max(left, 1)) * SECOND,
                                   order.qty - order.filled))
        if order.status in OPEN and self.chance.random() < 0.7:
            self.later(self.chance.randint(MS, 80 * MS), self._trade, order, run)

    def _fill(self, order: There, run: int, qty: int) -> None:
        order.filled += qty
        self.held[order.symbol] += order.side * qty
        whole = order.filled == order.qty
        order.status = "filled" if whole else "partially_filled"
        name = self._uuid()
        self.executions.append(messages.Fill(
            id=f"20261127093000000::{name}", order_id=order.id, symbol=order.symbol,
            side="buy" if order.side > 0 else "sell", qty=text(qty), price=text(order.price),
            transaction_time=stamp(utc_ns()), cum_qty=text(order.filled)))
        self._event(order, run, "fill" if whole else "partial_fill", qty, name)

    def _end(self, order: There, run: int, status: str) -> None:
        order.status = status
        self._event(order, run, status)

    def _cancel_asked(self, name: str, run: int, identity: int) -> None:
        order = self.orders_by_name.get(name)
        if order is not None and order.status in OPEN:
            self._end(order, run, "canceled")
            return
        row = numpy.zeros(1, session.UPDATE)
        row["order"], row["kind"] = identity, KIND.CANCEL_REJECTED
        self.later(MS, self._says, row, False, here=True)

    def _event(self, order: There, run: int, event: str, qty: int = 0, execution: str = "") -> None:
        """A step of an order, for the log and on the stream."""
        line = {"kind": "event", "id": order.id, "client_order_id": order.name, "event": event}
        row = self._row(order, run, KINDS[event])
        row["position_qty"] = self.held[order.symbol]
        if qty:
            line |= {"qty": text(qty), "price": text(order.price)}
            row["qty"], row["price"] = qty, order.price
            row["execution"], row["execution_low"] = session.words(execution)
        self.log.append(line)
        fate = self.chance.random()
        way = self.chance.randint(MS // 5, 5 * MS)
        if fate < 0.05:
            self.hits["update late"] += 1
            way = self.chance.randint(10 * MS, 300 * MS)
        if 0.05 <= fate < 0.10:
            self.hits["update doubled"] += 1
            self.later(way + self.chance.randint(0, 50 * MS), self._says, row.copy(), True,
                       here=True)
        self.later(way, self._says, row, True, here=True)

    def drift(self) -> None:
        """Somebody else trades in the account."""
        self.hits["drift"] += 1
        self.held[self.chance.choice(self.symbols)] += SECOND

    def _uuid(self) -> str:
        self._count += 1
        return str(uuid.UUID(int=(7 << 100) + self._count))

    # ---------------------------------------------------------------- what REST answers

    def _shown(self, order: There) -> messages.Order:
        return messages.Order(
            id=order.id, client_order_id=order.name, symbol=order.symbol, status=order.status,
            side="buy" if order.side > 0 else "sell", type="limit", qty=text(order.qty),
            filled_qty=text(order.filled), limit_price=text(order.price),
            submitted_at=stamp(order.at), updated_at=stamp(order.at))

    def _all(self) -> Iterator[There]:
        yield from self.orders_by_name.values()

    def positions(self) -> list[messages.Position]:
        """What is held."""
        return [messages.Position(symbol=s, qty=text(q), avg_entry_price="100")
                for s, q in sorted(self.held.items()) if q]

    def orders(self, status: str = "open", after: str | None = None) -> list[messages.Order]:
        """Orders, open ones or all."""
        return [self._shown(o) for o in self._all() if status != "open" or o.status in OPEN]

    def order(self, venue_id: str) -> messages.Order | None:
        """One order by the venue's id."""
        return next((self._shown(o) for o in self._all() if o.id == venue_id), None)

    def order_by_client_id(self, client_order_id: str) -> messages.Order | None:
        """One order by our own id."""
        found = self.orders_by_name.get(client_order_id)
        return self._shown(found) if found is not None else None

    def fills(self, after: str | None = None) -> list[messages.Fill]:
        """Every execution."""
        return list(self.executions)

    def cancel(self, venue_id: str) -> bool:
        """Cancel an order at once; whether it was open."""
        order = next((o for o in self._all() if o.id == venue_id), None)
        if order is None or order.status not in OPEN:
            return False
        self._end(order, int(order.name.split("-")[1], 16), "canceled")
        return True
