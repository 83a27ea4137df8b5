"""The broker behind the protocol: order life, fills, sessions; knows no sockets."""
from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from hftpipe import schema
from hftpipe._clock import utc_ns
from hftpipe._match import CANCELED, FILLED, RESTED
from hftpipe._match import UNKNOWN as NOT_THERE

from . import orders, rules
from ._traders import EXTERNAL, TRADE, Traders
from .orders import Refused, invalid, trailed
from .session import Hours
from .state import NANO, Order, State, stamp, text
from .traders import Instrument

TIFS = {"day": schema.TIF.DAY, "gtc": schema.TIF.GTC, "ioc": schema.TIF.IOC, "fok": schema.TIF.FOK,
        "opg": schema.TIF.IOC, "cls": schema.TIF.IOC}
AUCTIONS = ("opg", "cls")
Message = tuple[int, int, int, int, int, int, int, int, int, int]

__all__ = ["Exchange", "Message", "Refused", "invalid"]


class Exchange:
    """One account's orders against the traders' books.

    Parameters
    ----------
    instruments : sequence of Instrument
    traders : Traders
        Of the same instruments, in the same order.
    state : State
    multiplier : int
        1 cash account, 2 or 4 margin; only 2 and 4 may sell short.
    hours : Hours, optional
        When stocks trade; round the clock by default.

    Notes
    -----
    ``on_messages(messages)`` gets everything the books did, ``on_update(data)`` each
    ``trade_updates`` message, in the order in which they happened.
    """

    def __init__(self, instruments: tuple[Instrument, ...], traders: Traders, state: State,
                 multiplier: int, hours: Hours | None = None) -> None:
        self.instruments = instruments
        self.traders = traders
        self.state = state
        self.multiplier = multiplier
        self.hours = hours or Hours()
        self.phase = self.hours.phase(utc_ns())
        self.index = {i.symbol: n for n, i in enumerate(instruments)}
        self.names = {**{i.plain: i for i in instruments}, **{i.symbol: i for i in instruments},
                      **{i.asset_id: i for i in instruments}}
        self.on_messages: Callable[[list[Message]], None] = lambda messages: None
        self.on_update: Callable[[dict[str, Any]], None] = lambda data: None
        self.waiting: deque[Order] = deque()        # market orders that found nobody
        self.queued: list[Order] = []               # until their session or auction begins
        self.stops: dict[str, Order] = {}           # that wait for a price, by id
        self.last = [i.price for i in instruments]
        self._traded: set[int] = set()              # instruments with a price to look at
        self._number = max((o.number for o in state.orders.values()), default=0)
        self._fresh = True                          # prices moved since the last mark
        busy = {o.symbol for o in state.open_orders()}
        busy |= {s for s, p in state.positions.items() if p.qty}
        if not busy <= self.index.keys():
            raise LookupError("the state holds orders or positions in "
                              f"{', '.join(sorted(busy - self.index.keys()))}, "
                              f"the symbols are {', '.join(self.index)}")

    def resume(self) -> None:
        """Bring the orders that were open when the venue died back to where they were."""
        for order in sorted(self.state.open_orders(), key=lambda o: o.number):
            if not order.open:
                continue                    # went with one before it
            if order.status == "pending_cancel":
                self._ended(order, "canceled")
            elif order.status == "pending_replace":
                new = next(o for o in self.state.live.values()
                           if o.view["replaces"] == order.id)
                self._event(order, "replaced", replaced_by=new.id)
                self.execute(new)
            elif order.status == "held":
                self._settle_leg(order)
            elif order.view["replaces"] is None or order.status != "pending_new":
                self.execute(order)
            else:                           # what it was to replace ended, or was not told
                self._event(order, "rejected")

    def _settle_leg(self, leg: Order) -> None:
        """A leg after a restart: the death may have come between two lines."""
        parent = self.state.orders[str(leg.parent)]
        twin = self.state.twin(leg)
        if twin is not None and twin.open and twin.filled and leg.qty != twin.left:
            self.state.record("resize", utc_ns(), id=leg.id, qty=text(twin.left))
        if parent.group == "oco":
            if parent.open:
                self._watch(leg)
            else:
                self._ended(leg, "canceled")
        elif parent.status == "filled":
            if twin is not None and not twin.open:
                self._ended(leg, "canceled")
            else:
                self._activate(leg)
        elif not parent.open:
            self._ended(leg, "canceled")

    # ------------------------------------------------------------ questions

    def find(self, name: object) -> Instrument:
        """The instrument a request calls *name*: symbol, pair with or without slash, asset id."""
        found = self.names.get(name) if isinstance(name, str) else None
        if found is None:
            raise invalid(f'asset "{name}" not found')
        return found

    def parse(self, body: Any) -> dict[str, Any]:
        """The order a request asks for; see :func:`hftpipe.venue.orders.parse`."""
        order = orders.parse(self, body)
        if self.hours.refuses(order["time_in_force"], utc_ns()):
            raise Refused(422, 42210000, f"{order['time_in_force']} orders are not accepted "
                          "at this time")
        return order

    def check(self, order: dict[str, Any]) -> None:
        """Account rules; see :func:`hftpipe.venue.rules.check`."""
        rules.check(self, order)

    def equity(self) -> int:
        return rules.equity(self)

    def buying_power(self) -> int:
        return rules.buying_power(self)

    def far(self, instrument: Instrument, side: int) -> int:
        """Best price a taker of *side* would get; the last one when nobody is there."""
        n = self.index[instrument.symbol]
        bid, _, ask, _, _ = self.traders.top(n)
        return (ask if side > 0 else bid) or self.last[n]

    def mark(self, symbol: str) -> int:
        """Middle of the book, or the last trade's price without one."""
        n = self.index[symbol]
        bid, _, ask, _, last = self.traders.top(n)
        return (bid + ask) // 2 if bid and ask else last or self.last[n]

    def trades(self, order: Order) -> bool:
        """Whether *order*'s session is now."""
        if self.names[order.symbol].crypto or self.phase == "open":
            return True
        return order.extended and self.phase in ("pre", "after")

    def nested(self, order: Order) -> dict[str, Any]:
        """The order object with its legs in it."""
        legs = self.state.legs.get(order.id)
        legs = [o for o in legs or () if o.status not in ("replaced", "rejected")]
        return {**order.view, "legs": [o.view for o in legs]} if legs else order.view

    # ------------------------------------------------------------ the life of an order

    def accept(self, order: dict[str, Any], recv: int) -> Order:
        """Write the order down as pending_new (accepted when its session is not now);
        :meth:`execute` brings it to the book."""
        fields = {k: v for k, v in order.items() if k != "legs"}
        held = self.state.held(order["symbol"])
        if order["position_intent"] is None:
            buy = order["side"] == "buy"
            fields["position_intent"] = ("buy" if buy else "sell") + (
                "_to_close" if (held < 0 if buy else held > 0) else "_to_open")
        made = self._write(fields, recv)
        for leg in order.get("legs", ()):
            self._write({**leg, "client_order_id": str(uuid.uuid4()), "parent": made.id}, recv)
        now = self.trades(made) and made.tif not in AUCTIONS
        self._event(made, "pending_new" if now else "accepted")
        return made

    def _write(self, fields: dict[str, Any], recv: int, **more: Any) -> Order:
        self._number += 1
        body = self.state.record("order", utc_ns(), id=str(uuid.uuid4()), number=self._number,
                                 recv=recv, **fields, **more)
        return self.state.orders[body["id"]]

    def execute(self, order: Order) -> None:
        """Bring an accepted order to its book; everything that follows is published."""
        if not order.open or order.status == "held":
            return
        if not self.trades(order) or (order.tif in AUCTIONS and order.status == "accepted"):
            if order not in self.queued:
                self.queued.append(order)
            return
        if order.status in ("accepted", "pending_new"):
            self._event(order, "new")
        if order.group == "oco" and not order.parent:
            for leg in self.state.legs.get(order.id, ()):
                self._watch(leg)
        if order.waits:
            self._watch(order)
            self._trigger()
        else:
            self._work(order)

    def _terms(self, order: Order) -> tuple[int, int]:
        """How it goes into the book.  A buy stop is collared: 4 % below $50, else 2.5 %."""
        if order.limit:
            return schema.ORDER_TYPE.LIMIT, order.limit
        if order.type == "stop" and order.side > 0:
            tick = self.names[order.symbol].tick
            collar = order.stop * (1040 if order.stop < 50 * NANO else 1025) // 1000
            return schema.ORDER_TYPE.LIMIT, collar // tick * tick
        return schema.ORDER_TYPE.MARKET, 0

    def _work(self, order: Order) -> None:
        """Match now, rest what may rest."""
        type_, price = self._terms(order)
        status = self.traders.submit(
            self.index[order.symbol], EXTERNAL | order.book, order.side, type_,
            TIFS[order.tif], price, order.left)
        self._after(order, status, type_ == schema.ORDER_TYPE.MARKET)

    def _after(self, order: Order, status: int, market: bool) -> None:
        self.pump()
        if status in (RESTED, FILLED) or not order.open:
            return
        if status == CANCELED:
            if market and order.tif in ("day", "gtc"):
                self.waiting.append(order)
            else:
                self._ended(order, "canceled")
        else:                               # the book has no room for it
            self._ended(order, "rejected", code=status)

    def cancel(self, order: Order, recv: int) -> None:
        """Accept the request; :meth:`finish_cancel` does it.

        Raises
        ------
        Refused
            422 when the order has ended.
        """
        if not order.open or order.status == "pending_replace":
            raise Refused(422, 42210000, f'order is already in "{order.status}" state')
        if order.status != "pending_cancel":
            self.state.record("cancel", utc_ns(), id=order.id, recv=recv,
                              client_order_id=order.client_order_id)

    def finish_cancel(self, order: Order) -> None:
        if order.open:                      # else it filled in between
            self._end(order, "canceled")

    def replace(self, order: Order, body: Any, recv: int) -> Order:
        """Accept a replacement; :meth:`finish_replace` puts it in the old one's place.

        Raises
        ------
        Refused
            400, 403 or 422; nothing has changed.
        """
        fields = orders.parse_replace(self, order, body)
        rules.check(self, fields, order)
        new = self._write(fields, recv, replaces=order.id, book=order.book, parent=order.parent,
                          role=order.role, hwm=fields.pop("hwm"),
                          status="held" if order.status == "held" else "pending_new",
                          filled_qty=text(order.filled), cost=order.cost)
        self.state.record("replace", utc_ns(), id=order.id, recv=recv)
        return new

    def finish_replace(self, new: Order) -> None:
        """The new order takes the old one's place; it is rejected if that has ended."""
        old = self.state.orders[new.view["replaces"]]
        if not new.open:
            return
        if not old.open or new.qty <= old.filled:
            self._event(new, "rejected")
            if old.open:
                self._event(old, "order_replace_rejected")
            return
        n, resting = self.index[old.symbol], not (old.waits or old in self.waiting)
        watched = old.id in self.stops
        self._forget(old)
        self._event(old, "replaced", replaced_by=new.id)
        if new.status == "held":            # a leg goes on waiting for its entry or its price
            if watched:
                self._watch(new)
                self._trigger()
            return
        self._event(new, "new")
        if watched or new.group == "oco":
            for leg in self.state.legs.get(new.id, ()):
                if leg.open:
                    self._watch(leg)
        if new.waits or not resting:
            if not new.waits:
                self._work(new)
            else:
                self._watch(new)
                self._trigger()
            return
        if old.tif != new.tif:              # the book must know when it ends
            self.traders.cancel(n, EXTERNAL | new.book)
            self.pump()
            self._work(new)
            return
        status = self.traders.replace(n, EXTERNAL | new.book, self._terms(new)[1], new.left)
        if status == NOT_THERE:             # out of its session
            self.execute(new)
        else:
            self._after(new, status, False)

    def _forget(self, order: Order) -> None:
        """Out of every list but the book."""
        self.stops.pop(order.id, None)
        if order in self.waiting:
            self.waiting.remove(order)
        if order in self.queued:
            self.queued.remove(order)

    def _end(self, order: Order, event: str) -> None:
        """Take an order out of the book and end it."""
        self._forget(order)
        if order.status != "held":
            self.traders.cancel(self.index[order.symbol], EXTERNAL | order.book)
            self.pump()
        if order.open:
            self._ended(order, event)

    def _ended(self, order: Order, event: str, **fields: Any) -> None:
        """It ends without a trade; what depends on it ends, too."""
        self._forget(order)
        self._event(order, event, **fields)
        twin = self.state.twin(order)
        for other in (*self.state.legs.get(order.id, ()), *((twin,) if twin else ())):
            if other.open:
                self._end(other, event if event == "expired" else "canceled")

    # ------------------------------------------------------------ stops and legs

    def _watch(self, order: Order) -> None:
        self.stops[order.id] = order
        self._traded.add(self.index[order.symbol])

    def _activate(self, leg: Order) -> None:
        """The entry is filled: the take profit goes to work, the stop waits for its price."""
        twin = self.state.twin(leg)
        if leg.left > rules.closable(self, leg):
            self._ended(leg, "rejected")    # something else took the position away
        elif leg.role == "take_profit":
            self.execute_leg(leg)
        elif twin is not None:
            self._watch(leg)                # stays held: the two never hold the shares twice
        else:
            self.execute_leg(leg)

    def execute_leg(self, leg: Order) -> None:
        self._event(leg, "new")
        self.execute(leg)

    def _follow(self, order: Order, price: int) -> None:
        """A trailing stop's best price; its stop follows."""
        if (price - order.hwm) * order.side < 0:
            stop = trailed(self.names[order.symbol], order.side, price, order.trail,
                           order.percent)
            self.state.record("trail", utc_ns(), id=order.id, hwm=text(price),
                              stop_price=text(stop))

    def _trigger(self) -> None:
        """Send the stops whose price was traded to work."""
        while self._traded:
            n = self._traded.pop()
            symbol, price = self.instruments[n].symbol, self.last[n]
            due = []
            for order in self.stops.values():
                if order.symbol == symbol and self.trades(order):
                    if order.trail or order.percent:
                        self._follow(order, price)
                    if (price - order.stop) * order.side >= 0:
                        due.append(order)
            for order in due:
                if self.stops.pop(order.id, None) is not None and order.open:
                    self._fire(order)

    def _fire(self, order: Order) -> None:
        self.state.record("arm", utc_ns(), id=order.id, stop_price=text(order.stop))
        if order.status == "held":          # its twin must let go of the shares first
            twin = self.state.twin(order)
            self._event(order, "new")
            if twin is not None and twin.open:
                self._forget(twin)
                self.traders.cancel(self.index[twin.symbol], EXTERNAL | twin.book)
                self.pump()
                if twin.open:
                    self._event(twin, "canceled")
            if not order.open:              # the twin was filled after all
                return
            if order.left > rules.closable(self, order):
                self._ended(order, "rejected")
                return
        self.execute(order)

    def _filled(self, order: Order, qty: int) -> None:
        """What a fill of one order does to those that belong to it."""
        twin = self.state.twin(order)
        if twin is not None and twin.open:
            if order.left == 0:
                self._end(twin, "canceled")
            elif twin.status == "held":
                self.state.record("resize", utc_ns(), id=twin.id, qty=text(twin.qty - qty))
        if order.status == "filled" and order.group in ("bracket", "oto") and not order.parent:
            for leg in tuple(self.state.legs.get(order.id, ())):
                if leg.open and leg.status == "held":
                    self._activate(leg)

    # ------------------------------------------------------------ sessions

    def tick(self, now: int) -> None:
        """Open and close sessions as the clock says; UTC ns."""
        phase = self.hours.phase(now)
        if phase == self.phase:
            return
        before, self.phase = self.phase, phase
        if before == "open":
            self.phase = before             # the closing auction is its last moment
            self._auction("cls")
            self.phase = phase
            self._close()
        if before == "after" or phase == "closed":
            self._expire(True)
        self._release()
        if phase == "open":
            self._auction("opg")

    def _close(self) -> None:
        """Regular hours end: day orders expire, others wait outside of the book."""
        self._expire(False)
        for order in self.state.open_orders():
            if (not self.trades(order) and not order.waits and order.status != "held"
                    and order not in self.queued):
                self._forget(order)
                self.traders.cancel(self.index[order.symbol], EXTERNAL | order.book)
                self.pump()
                if order.open:
                    self.queued.append(order)

    def _expire(self, extended: bool) -> None:
        now = utc_ns()
        for order in self.state.open_orders():
            entry = self.state.orders[order.parent] if order.parent else None
            if entry is not None and entry.open:
                continue                    # ends with it
            if order.open and order.status != "accepted" and (
                    (order.tif == "day" and (extended or not order.extended))
                    or 0 < order.expires <= now):
                self._end(order, "expired")

    def _release(self) -> None:
        """Bring to the book what waited for this session."""
        queued, self.queued = self.queued, []
        for order in queued:
            self.execute(order)

    def _auction(self, tif: str) -> None:
        for order in [o for o in self.queued if o.tif == tif]:
            self.queued.remove(order)
            if order.open:
                self._event(order, "new")
                self._work(order)

    def end_session(self) -> None:
        """A session ends and the next begins: closing orders trade, day orders expire, then
        those for the open trade."""
        self._auction("cls")
        self._expire(True)
        self._auction("opg")

    # ------------------------------------------------------------ what the books did

    def step(self, now: int) -> None:
        """Let the traders act up to *now*, UTC ns."""
        self.traders.step(now)
        self.pump()
        for _ in range(len(self.waiting)):
            if not self.waiting:            # went with one before it
                break
            self._work(self.waiting.popleft())

    def pump(self) -> None:
        """Publish what happened in the books since the last call, our fills first."""
        messages = self.traders.take()
        if not messages:
            return
        done: list[tuple[Order, int]] = []
        for m in messages:
            if m[0] == TRADE:
                self.last[m[1]] = m[3]
                self._fresh = True
                if self.stops:
                    self._traded.add(m[1])
                for id_ in (m[8], m[9]):
                    if id_ >= EXTERNAL:
                        order = self._fill(id_ - EXTERNAL, m)
                        if order is not None:
                            done.append((order, m[4]))
        self.on_messages(messages)
        for order, qty in done:
            self._filled(order, qty)
        if self._traded:
            self._trigger()

    def _fill(self, number: int, message: Message) -> Order | None:
        order = self.state.by_number[number]
        _, _, _, price, qty, _, _, trade, _, _ = message
        after = self.state.held(order.symbol) + order.side * qty
        self._event(order, "fill" if order.left == qty else "partial_fill", price=text(price),
                    qty=text(qty), cum_qty=text(order.filled + qty), position_qty=text(after),
                    trade=trade)
        return order

    def _event(self, order: Order, event: str, **fields: Any) -> None:
        """Write one step of an order down, then tell the stream."""
        ts = utc_ns()
        execution = None if event in ("pending_new", "accepted") else str(uuid.uuid4())
        body = self.state.record("event", ts, id=order.id, client_order_id=order.client_order_id,
                                 event=event, execution_id=execution,
                                 event_id=self.state.event_id(ts), **fields)
        at = stamp(ts)
        data = {"event": event, "event_id": body["event_id"], "at": at, "timestamp": at,
                "execution_id": execution}
        if "price" in fields:
            data |= {"price": fields["price"], "qty": fields["qty"],
                     "position_qty": fields["position_qty"]}
        data["order"] = order.view
        self.on_update(data)
        if not order.open:
            order.pack()

    def write_mark(self) -> None:
        """Note the last prices and the equity, if prices moved."""
        if self._fresh:
            self._fresh = False
            self.state.record("mark", utc_ns(), equity=text(self.equity()), prices={
                i.symbol: text(p) for i, p in zip(self.instruments, self.last, strict=True)})
