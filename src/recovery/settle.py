"""Bring books and venue together: what is open, what became of it, and what is held."""
from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hftpipe import _clock, _fault, schema
from hftpipe.alpaca import messages, session
from hftpipe.alpaca._codec import parse_time
from hftpipe.errors import DataError, DeadlineError
from hftpipe.recovery.books import NANO, Books, Pending, Row

KIND, STATE, REASON = schema.ORDER_EVENT_KIND, schema.ORDER_STATE, schema.REASON
STATES = {KIND.FILL: STATE.FILLED, KIND.CANCELED: STATE.CANCELED, KIND.REJECTED: STATE.REJECTED,
          KIND.EXPIRED: STATE.EXPIRED, KIND.REPLACED: STATE.CANCELED}
OURS = re.compile(r"hp-([0-9a-f]{1,16})-([0-9a-f]{1,14})")
ENDING = 30.0                   # s that an order may take to end after its cancel
POLL = 0.05                     # s between two looks at it
SLACK = 60 * NANO               # ns before a run's first order from which its executions are asked


Lookup = Callable[[int, Sequence[int]], list[Pending]]


class Venue(Protocol):
    """What is asked of the venue; :class:`hftpipe.alpaca.rest.Rest` answers."""

    def positions(self) -> list[messages.Position]: ...
    def orders(self, status: str = "open", after: str | None = None) -> list[messages.Order]: ...
    def order(self, venue_id: str) -> messages.Order | None: ...
    def order_by_client_id(self, client_order_id: str) -> messages.Order | None: ...
    def fills(self, after: str | None = None) -> list[messages.Fill]: ...
    def cancel(self, venue_id: str) -> bool: ...


@dataclass
class Report:
    """What a start found at the venue and did about it.

    Attributes
    ----------
    cancelled : list of str
        Client order ids that were open and ours.
    orphans : list of str
        Of them, those of which our books know nothing.
    resolved : list of str
        One line for each order whose last word was found out.
    recovered : int
        Executions that only the venue knew of.
    foreign_orders : int
        Open orders that are not ours.
    foreign : list of str
        One line for each position in what this run does not trade.
    differences : list of str
        What is still not equal: trading must not begin.
    adopted : list of str
        One line for each position that was taken from the venue because a person said so.
    positions : int
        Instruments held.
    """

    cancelled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    resolved: list[str] = field(default_factory=list)
    recovered: int = 0
    foreign_orders: int = 0
    foreign: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    positions: int = 0


def settle(books: Books, venue: Venue, symbols: Sequence[str], fees: Mapping[str, int], *,
           absent: int, lookup: Lookup, alone: bool = False, adopt: bool = False, act: bool = True,
           say: Callable[[str], None] = lambda text: None,
           now: Callable[[], int] = _clock.utc_ns,
           pause: Callable[[float], None] = time.sleep) -> Report:
    """Make *books* say what the venue says, or say where they do not.

    Parameters
    ----------
    books : Books
        Changed in place: executions that were missing are booked.
    venue : Venue
    symbols : sequence of str
        What this run trades.
    fees : mapping
        As the ledger wants them.
    absent : int, ns
        An order that the venue does not know so long after it was sent never got there.
    lookup : callable(run, orders)
        What is recorded of them; :func:`hftpipe.recovery.books.orders`.
    alone : bool
        Nothing sent by the last run can be under way any more.
    adopt : bool
        Take the venue's positions where ours are others.
    act : bool
        False: nothing is cancelled and nobody is waited for; what would be done is reported.
    say, now, pause : callables
        Progress; UTC ns; sleep.

    Raises
    ------
    HftpipeError
        If the venue cannot be asked, or does not say what a position that is adopted cost.
    DeadlineError
        If an order does not end after its cancel.
    """
    out = Report()
    _cancel(books, venue, out, act, say, pause)
    unknown = list(books.pending)
    while unknown:
        late = []
        for order in unknown:
            name = session.client_order_id(order.run, order.order & (1 << 56) - 1)
            found = venue.order_by_client_id(name)
            if found is None and act and not alone and now() - order.at < absent:
                late.append(order)
                continue
            if found is not None and act and not _ended(found.status) and not _wrong(order, found):
                out.cancelled.append(name)      # it came after we had looked at what is open
                found = _end(venue, found, pause)
            fills: list[messages.Fill] = []
            if found is not None and session.nano(found.filled_qty) > order.cum:
                # Asked anew each time: an earlier answer lacks what traded while others were
                # waited for.
                fills = venue.fills(_after(books.pending))
            _resolve(books, order, name, found, fills, fees, out)
        if late:
            say(f"{len(late)} orders without an answer: the venue is asked until "
                f"{absent / NANO:.0f} s have passed")
            pause(min(2.0, absent / NANO / 4))
        unknown = late
    there = {p.symbol: p for p in venue.positions() if session.nano(p.qty)}
    if _unequal(books, there, symbols) and books.from_run:
        _search(books, venue, fees, lookup, out)
        there = {p.symbol: p for p in venue.positions() if session.nano(p.qty)}
    for symbol in _unequal(books, there, symbols):
        row = books.rows.setdefault(symbol, Row())
        held = there.get(symbol)
        qty = session.nano(held.qty) if held is not None else 0
        line = f"{symbol}: {qty / NANO:.9g} at the venue, {row.qty / NANO:.9g} here"
        if adopt:
            out.adopted.append(line)
            _adopt(row, held, now())
        else:
            out.differences.append(line)
    out.foreign = [f"{p.symbol}: {session.nano(p.qty) / NANO:.9g}"
                   for symbol, p in sorted(there.items()) if symbol not in symbols
                   and not books.rows.get(symbol, Row()).qty]
    out.positions = sum(1 for row in books.rows.values() if row.qty)
    return out


def _after(pending: Iterable[Pending]) -> str:
    return session.rfc3339(min((order.at for order in pending), default=_clock.utc_ns()) - SLACK)


# ---------------------------------------------------------------- what is open

def _cancel(books: Books, venue: Venue, out: Report, act: bool, say: Callable[[str], None],
            pause: Callable[[float], None]) -> None:
    """Cancel every open order of ours and wait until each has ended."""
    known = {session.client_order_id(o.run, o.order & (1 << 56) - 1) for o in books.pending}
    for order in venue.orders("open"):
        if not OURS.fullmatch(order.client_order_id):
            out.foreign_orders += 1
            continue
        out.cancelled.append(order.client_order_id)
        if order.client_order_id not in known:
            out.orphans.append(order.client_order_id)
        if not act or _fault.bug("settle.no_cancel"):
            continue
        if len(out.cancelled) == 1:
            say("open orders of earlier runs are cancelled")
        _end(venue, order, pause)


def _end(venue: Venue, order: messages.Order, pause: Callable[[float], None]
         ) -> messages.Order | None:
    """Cancel *order* and wait until it has ended; as it is then."""
    venue.cancel(order.id)
    end = time.monotonic() + ENDING
    while True:
        found = venue.order(order.id)
        if found is None or _ended(found.status):
            return found
        if time.monotonic() >= end:
            raise DeadlineError(f"order {order.client_order_id} is still {found.status} "
                                f"{ENDING:g} s after it was cancelled")
        pause(POLL)


def _ended(status: str) -> bool:
    return status == "filled" or session.STATUS_KINDS.get(status, KIND.ACKED) != KIND.ACKED


# ---------------------------------------------------------------- orders without a last word

def _resolve(books: Books, order: Pending, name: str, found: messages.Order | None,
             fills: Sequence[messages.Fill], fees: Mapping[str, int], out: Report) -> None:
    """Find out what became of *order*."""
    if found is None:
        if order.cum:
            out.differences.append(f"the venue does not know order {name}, of which "
                                   f"{order.cum / NANO:.9g} were filled")
            return
        _note(books, order, KIND.REJECTED, order.price, order.qty, 0, reason=REASON.ABSENT)
        out.resolved.append(f"{name}: never reached the venue")
        return
    wrong = _wrong(order, found)
    if wrong:
        out.differences.append(f"order {name} at the venue is another one: {', '.join(wrong)}")
        return
    filled = session.nano(found.filled_qty)
    if filled > order.cum and not _missing(books, order, found, filled, fills, fees, out):
        out.differences.append(
            f"order {name}: {filled / NANO:.9g} filled at the venue, {order.cum / NANO:.9g} here, "
            "and no executions that explain it")
        return
    if filled < order.cum:
        out.differences.append(f"order {name}: {filled / NANO:.9g} filled at the venue, "
                               f"{order.cum / NANO:.9g} here")
        return
    if filled < order.qty:
        kind = session.STATUS_KINDS.get(found.status, KIND.ACKED)
        if kind == KIND.ACKED:          # only asked what would be done
            kind = KIND.CANCELED
        _note(books, order, kind, order.price, order.qty, filled, found.id,
              REASON.VENUE if kind == KIND.REJECTED else 0)
    out.resolved.append(f"{name}: {found.status}, {filled / NANO:.9g} of "
                        f"{order.qty / NANO:.9g} filled")


def _wrong(order: Pending, found: messages.Order) -> list[str]:
    return session.unlike(found, order.symbol, order.side, order.qty, order.price)


def _missing(books: Books, order: Pending, found: messages.Order, filled: int,
             fills: Sequence[messages.Fill], fees: Mapping[str, int], out: Report) -> bool:
    """Book the executions of *order* that are not in the books; False when they do not add up."""
    missing = session.not_among(order.fills, sorted(
        (f for f in fills if f.order_id == found.id), key=lambda f: parse_time(f.transaction_time)))
    if order.cum + sum(qty for qty, _, _ in missing) != filled:
        return False
    cum = order.cum
    if _fault.bug("settle.no_fills"):
        missing = []
    executions = []
    for qty, price, one in missing:
        cum += qty
        at = parse_time(one.transaction_time)
        executions.append({"symbol": order.symbol, "side": order.side, "qty": qty, "price": price,
                           "cum_qty": cum, "at": at, "fee": None})
        before = books.rows.get(order.symbol, Row()).fees
        books.book(executions[-1:], fees)
        _note(books, order, KIND.FILL if cum == order.qty else KIND.PARTIAL_FILL, price, qty, cum,
              found.id, ts_venue=at, fee=books.rows[order.symbol].fees - before,
              execution=session.execution_of(one))
        out.recovered += 1
    return True


def _note(books: Books, order: Pending, kind: int, price: int, qty: int, cum: int,
          venue_id: str | None = None, reason: int = 0, *, ts_venue: int = 0, fee: int = 0,
          execution: tuple[int, int] = (0, 0)) -> None:
    """One RESOLVED record."""
    high, low = session.words(venue_id)
    state = STATES.get(kind, STATE.PARTIAL)
    books.resolved.append({
        "order": order.order, "of_run": order.run, "symbol": order.symbol, "side": order.side,
        "kind": kind, "state": state, "reason": reason, "price": price, "qty": qty,
        "cum_qty": cum, "execution": execution[0], "execution_low": execution[1],
        "venue_id": high, "venue_id_low": low, "ts_venue": ts_venue, "fee": fee})


# ---------------------------------------------------------------- positions

def _unequal(books: Books, there: Mapping[str, messages.Position],
             symbols: Sequence[str]) -> list[str]:
    """Symbols in which the venue holds another quantity than the books."""
    return [s for s in sorted({*symbols, *books.rows})
            if (session.nano(there[s].qty) if s in there else 0)
            != books.rows.get(s, Row()).qty]


def _search(books: Books, venue: Venue, fees: Mapping[str, int], lookup: Lookup,
            out: Report) -> None:
    """Positions differ: look for executions of orders that had their last word too early."""
    after = session.rfc3339(books.from_run - SLACK)
    done = {r["order"] for r in books.resolved if r["of_run"] == books.from_run}
    there = {}
    for found in venue.orders("all", after):
        order = session.order_of(found.client_order_id, books.from_run)
        if order and order not in done and session.nano(found.filled_qty):
            there[order] = found
    fills: list[messages.Fill] | None = None
    for known in lookup(books.from_run, list(there)):
        found = there[known.order]
        if session.nano(found.filled_qty) <= known.cum:
            continue
        if fills is None:
            fills = venue.fills(after)
        if _missing(books, known, found, session.nano(found.filled_qty), fills, fees, out):
            out.resolved.append(f"{found.client_order_id}: filled on after its last word")


def _adopt(row: Row, held: messages.Position | None, at: int) -> None:
    """Take the venue's position at its average price; what was realised stays."""
    qty = average = 0
    if held is not None:
        qty = session.nano(held.qty)
        average = session.nano(held.avg_entry_price or held.current_price)
        if qty and average <= 0:
            raise DataError(f"the venue's position in {held.symbol} must have a price to be taken "
                            "over, found none")
    row.qty, row.cost = qty, qty * average
    row.since, row.best, row.first, row.closing = at if qty else 0, 0, False, 0
    row.mark = row.mark or average
    row.fills = max(row.fills, 1)
