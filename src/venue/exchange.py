"""The broker behind the protocol: checks, order life, fills, the account; knows no sockets."""
from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from decimal import ROUND_DOWN, Decimal
from typing import Any

from hftpipe import schema
from hftpipe._clock import utc_ns
from hftpipe._match import CANCELED, FILLED, RESTED

from ._traders import EXTERNAL, TRADE, Traders
from .state import NANO, QTY_MAX, Order, State, nano, stamp, text
from .traders import Instrument

TYPES = {"market": schema.ORDER_TYPE.MARKET, "limit": schema.ORDER_TYPE.LIMIT}
TIFS = {"day": schema.TIF.DAY, "gtc": schema.TIF.GTC, "ioc": schema.TIF.IOC, "fok": schema.TIF.FOK}
Message = tuple[int, int, int, int, int, int, int, int, int, int]


class Refused(Exception):
    """A request the broker answers with an error."""

    def __init__(self, status: int, code: int, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, **extra}


def invalid(message: str) -> Refused:
    return Refused(422, 40010001, message)


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

    Notes
    -----
    ``on_messages(messages)`` gets everything the books did, ``on_update(data)`` each
    ``trade_updates`` message, in the order in which they happened.
    """

    def __init__(self, instruments: tuple[Instrument, ...], traders: Traders, state: State,
                 multiplier: int) -> None:
        self.instruments = instruments
        self.traders = traders
        self.state = state
        self.multiplier = multiplier
        self.index = {i.symbol: n for n, i in enumerate(instruments)}
        self.names = {**{i.plain: i for i in instruments}, **{i.symbol: i for i in instruments},
                      **{i.asset_id: i for i in instruments}}
        self.on_messages: Callable[[list[Message]], None] = lambda messages: None
        self.on_update: Callable[[dict[str, Any]], None] = lambda data: None
        self.waiting: deque[Order] = deque()        # market orders that found nobody
        self.last = [i.price for i in instruments]
        self._number = max((o.number for o in state.orders.values()), default=0)
        self._fresh = True                          # prices moved since the last mark
        busy = {o.symbol for o in state.open_orders()}
        busy |= {s for s, p in state.positions.items() if p.qty}
        if not busy <= self.index.keys():
            raise LookupError("the state holds orders or positions in "
                              f"{', '.join(sorted(busy - self.index.keys()))}, "
                              f"the symbols are {', '.join(self.index)}")

    def resume(self) -> None:
        """Bring the orders that were open when the venue died back into the books."""
        for order in sorted(self.state.open_orders(), key=lambda o: o.number):
            if order.status == "pending_cancel":
                self._event(order, "canceled")
            else:
                self.execute(order)

    # ------------------------------------------------------------ checks

    def find(self, name: object) -> Instrument:
        """The instrument a request calls *name*: symbol, pair with or without slash, asset id."""
        found = self.names.get(name) if isinstance(name, str) else None
        if found is None:
            raise invalid(f'asset "{name}" not found')
        return found

    def parse(self, body: Any) -> dict[str, Any]:
        """The order a request asks for, every field checked.

        Raises
        ------
        Refused
            As the broker would, 400 or 422.
        """
        if not isinstance(body, dict):
            raise Refused(400, 40010000, "request body format is invalid")
        instrument = self.find(body.get("symbol"))
        side, type_ = body.get("side"), body.get("type")
        tif, class_ = body.get("time_in_force"), body.get("order_class") or ""
        if side not in ("buy", "sell"):
            raise invalid("side must be buy or sell")
        if not isinstance(type_, str) or type_ not in TYPES:
            raise invalid("invalid order type")
        if not isinstance(tif, str) or tif not in TIFS:
            raise invalid("invalid time_in_force")
        if class_ not in ("", "simple"):
            raise invalid(f"order_class {class_!r} is not supported here")
        if instrument.crypto and tif not in ("gtc", "ioc"):
            raise invalid("invalid crypto time_in_force")
        extended = body.get("extended_hours") or False
        if not isinstance(extended, bool):
            raise invalid("extended_hours must be a boolean")
        if extended and (type_ != "limit" or tif not in ("day", "gtc")):
            raise invalid("extended hours order must be DAY or GTC limit orders")
        limit = self._price(body, "limit_price")
        if type_ == "market" and (limit is not None or body.get("stop_price") is not None):
            raise invalid("market orders require no stop or limit price")
        if type_ == "limit":
            if limit is None:
                raise invalid("limit orders require a limit price")
            places = NANO // 100 if limit >= NANO else NANO // 10_000
            if limit % (instrument.tick if instrument.crypto else places):
                raise Refused(422, 42210000, f"invalid limit_price {text(limit)}. sub-penny "
                              "increment does not fulfill minimum pricing criteria")
        client = body.get("client_order_id")
        if client is None or client == "":
            client = str(uuid.uuid4())
        if not isinstance(client, str) or len(client) > 128:
            raise invalid("client_order_id must be no more than 128 characters")
        if client in self.state.by_client:
            raise invalid("client_order_id must be unique")
        qty, notional = self._quantity(body, instrument, side, type_, tif, limit)
        intent = body.get("position_intent")
        if intent not in (None, "buy_to_open", "buy_to_close", "sell_to_open", "sell_to_close"):
            raise invalid("invalid position_intent")
        return {"client_order_id": client, "symbol": instrument.symbol,
                "asset_id": instrument.asset_id,
                "asset_class": "crypto" if instrument.crypto else "us_equity",
                "side": side, "type": type_, "time_in_force": tif, "qty": text(qty),
                "notional": notional, "limit_price": None if limit is None else text(limit),
                "extended_hours": extended, "order_class": class_, "position_intent": intent}

    @staticmethod
    def _price(body: dict[str, Any], name: str) -> int | None:
        if body.get(name) is None:
            return None
        try:
            price = nano(body[name])
        except ValueError:
            raise invalid(f"{name} is not a valid decimal") from None
        if not 0 < price < 1 << 60:
            raise invalid(f"{name} must be > 0")
        return price

    def _quantity(self, body: dict[str, Any], instrument: Instrument, side: str, type_: str,
                  tif: str, limit: int | None) -> tuple[int, str | None]:
        """Quantity in nano, and the notional it was asked as, if so."""
        asked = {name: body[name] for name in ("qty", "notional") if body.get(name) is not None}
        if not asked:
            raise invalid("qty or notional is required")
        if len(asked) == 2:
            raise invalid("only one of qty or notional is accepted")
        (name, raw), = asked.items()
        try:
            value = nano(raw)
        except ValueError:
            raise invalid(f"{name} is not a valid decimal") from None
        if value <= 0:
            raise invalid(f"{name} must be > 0")
        notional = None
        if name == "notional":
            if value % (NANO // 100):
                raise invalid("notional amounts must be limited to two decimal places")
            if value < NANO:
                raise invalid("notional must be >= 1.00")
            if tif != "day" and not instrument.crypto:
                raise invalid("fractional orders must be DAY orders")
            price = limit or self.far(instrument, 1 if side == "buy" else -1)
            notional, value = text(value), value * NANO // price
            if value == 0:
                raise invalid("notional is too small")
        if value > QTY_MAX:
            raise invalid(f"qty must be <= {QTY_MAX // NANO}")
        if value % NANO and not instrument.crypto:
            if tif != "day":
                raise invalid("fractional orders must be DAY orders")
            if side == "sell" and self.state.held(instrument.symbol) <= 0:
                raise Refused(403, 40310000, "fractional orders cannot be sold short")
        return value, notional

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

    def check(self, order: dict[str, Any]) -> None:
        """Account rules that a well-formed order must pass.

        Raises
        ------
        Refused
            403, as the broker would.
        """
        symbol, side = order["symbol"], 1 if order["side"] == "buy" else -1
        instrument = self.names[symbol]
        qty = nano(order["qty"])
        limit = nano(order["limit_price"]) if order["limit_price"] is not None else 0
        open_orders = self.state.open_orders(symbol)
        for other in open_orders:
            if other.side == -side and (
                    not limit or not other.limit or (limit - other.limit) * side >= 0):
                raise Refused(403, 40310000, "potential wash trade detected. use complex orders",
                              existing_order_id=other.id,
                              reject_reason="opposite side market/stop order exists"
                              if not other.limit else "opposite side limit order exists")
        held = self.state.held(symbol)
        if held * side < 0:
            reserved = sum(o.left for o in open_orders if o.side == side)
            available = max(0, abs(held) - reserved)
            if qty > available:
                raise Refused(
                    403, 40310000, "insufficient qty available for order (requested: "
                    f"{text(qty)}, available: {text(available)})", symbol=symbol,
                    existing_qty=text(abs(held)), available=text(available),
                    held_for_orders=text(reserved),
                    related_orders=[o.id for o in open_orders if o.side == side])
            return
        if side < 0:
            if instrument.crypto:
                raise Refused(403, 40310000, f"insufficient balance for {symbol.split('/')[0]} "
                              f"(requested: {text(qty)}, available: 0)", symbol=symbol)
            if self.multiplier < 2 or self.equity() < 2000 * NANO:
                raise Refused(403, 40310000, "account is not allowed to short")
            if qty % NANO:
                raise Refused(403, 40310000, "fractional orders cannot be sold short")
        if held == 0 and any(o.side == -side for o in open_orders):
            raise Refused(403, 40310000, "cannot open a long buy while a short sell order is open"
                          if side > 0 else
                          "cannot open a short sell while a long buy order is open")
        cost = self._value(instrument, side, limit, qty)
        power = self.buying_power()
        if cost > power:
            raise Refused(403, 40310000, "insufficient buying power",
                          buying_power=text(power), cost_basis=text(cost))

    def _value(self, instrument: Instrument, side: int, limit: int, qty: int) -> int:
        """What an opening order reserves, nano: a short at the ask plus 3 % at least."""
        price = limit or self.far(instrument, 1)
        if side < 0:
            price = max(limit, self.far(instrument, 1) * 103 // 100)
        return price * qty // NANO

    # ------------------------------------------------------------ the account

    def equity(self) -> int:
        """Cash plus positions at their marks, nano."""
        return self.state.cash // NANO + sum(
            self.mark(s) * p.qty // NANO for s, p in self.state.positions.items() if p.qty)

    def buying_power(self) -> int:
        """Multiplier times equity, less what positions and opening orders take, nano.

        Simpler than the broker's: marks of now instead of last night's, no margin tables.
        """
        used = sum(abs(self.mark(s) * p.qty) // NANO for s, p in self.state.positions.items())
        for o in self.state.open_orders():
            if self.state.held(o.symbol) * o.side >= 0:
                used += self._value(self.names[o.symbol], o.side, o.limit, o.left)
        return max(0, self.multiplier * self.equity() - used)

    # ------------------------------------------------------------ the life of an order

    def accept(self, order: dict[str, Any], recv: int) -> Order:
        """Write the order down as pending_new; :meth:`execute` brings it to the book."""
        ts = utc_ns()
        self._number += 1
        held = self.state.held(order["symbol"])
        if order["position_intent"] is None:
            buy = order["side"] == "buy"
            order["position_intent"] = ("buy" if buy else "sell") + (
                "_to_close" if (held < 0 if buy else held > 0) else "_to_open")
        body = self.state.record("order", ts, id=str(uuid.uuid4()), number=self._number,
                                 recv=recv, **order)
        made = self.state.orders[body["id"]]
        self._event(made, "pending_new")
        return made

    def execute(self, order: Order) -> None:
        """Bring an accepted order to its book; everything that follows is published."""
        if not order.open:
            return
        if order.status in ("accepted", "pending_new"):
            self._event(order, "new")
        n = self.index[order.symbol]
        status = self.traders.submit(
            n, EXTERNAL | order.number, order.side, TYPES[order.type], TIFS[order.tif],
            order.limit, order.left)
        self.pump()
        if status in (RESTED, FILLED):
            return
        if status == CANCELED:
            if order.type == "market" and order.tif in ("day", "gtc"):
                self.waiting.append(order)
            else:
                self._event(order, "canceled")
        else:                               # the book has no room for it
            self._event(order, "rejected", code=status)

    def cancel(self, order: Order, recv: int) -> None:
        """Accept the request; :meth:`finish_cancel` does it.

        Raises
        ------
        Refused
            422 when the order has ended.
        """
        if not order.open:
            raise Refused(422, 42210000, f'order is already in "{order.status}" state')
        if order.status != "pending_cancel":
            self.state.record("cancel", utc_ns(), id=order.id, recv=recv,
                              client_order_id=order.client_order_id)

    def finish_cancel(self, order: Order) -> None:
        if order.open:                      # else it filled in between
            self._end(order, "canceled")

    def end_session(self) -> None:
        """Let every day order expire."""
        for order in self.state.open_orders():
            if order.tif == "day":
                self._end(order, "expired")

    def _end(self, order: Order, event: str) -> None:
        self.traders.cancel(self.index[order.symbol], EXTERNAL | order.number)
        if order in self.waiting:
            self.waiting.remove(order)
        self.pump()
        self._event(order, event)

    # ------------------------------------------------------------ what the books did

    def step(self, now: int) -> None:
        """Let the traders act up to *now*, UTC ns."""
        self.traders.step(now)
        self.pump()
        for _ in range(len(self.waiting)):
            self.execute(self.waiting.popleft())

    def pump(self) -> None:
        """Publish what happened in the books since the last call, our fills first."""
        messages = self.traders.take()
        if not messages:
            return
        for m in messages:
            if m[0] == TRADE:
                self.last[m[1]] = m[3]
                self._fresh = True
                if m[8] >= EXTERNAL:
                    self._fill(m[8] - EXTERNAL, m)
                if m[9] >= EXTERNAL:
                    self._fill(m[9] - EXTERNAL, m)
        self.on_messages(messages)

    def _fill(self, number: int, message: Message) -> None:
        order = self.state.by_number[number]
        _, _, _, price, qty, _, _, trade, _, _ = message
        after = self.state.held(order.symbol) + order.side * qty
        self._event(order, "fill" if order.left == qty else "partial_fill", price=text(price),
                    qty=text(qty), cum_qty=text(order.filled + qty), position_qty=text(after),
                    trade=trade)

    def _event(self, order: Order, event: str, **fields: Any) -> None:
        """Write one step of an order down, then tell the stream."""
        ts = utc_ns()
        execution = None if event == "pending_new" else str(uuid.uuid4())
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
        """Note the last prices, if they moved."""
        if self._fresh:
            self._fresh = False
            self.state.record("mark", utc_ns(), prices={
                i.symbol: text(p) for i, p in zip(self.instruments, self.last, strict=True)})

    # ------------------------------------------------------------ views

    def account(self) -> dict[str, Any]:
        long = sum(self.mark(s) * p.qty // NANO
                   for s, p in self.state.positions.items() if p.qty > 0)
        short = sum(self.mark(s) * p.qty // NANO
                    for s, p in self.state.positions.items() if p.qty < 0)
        equity, power = text(self.equity()), text(self.buying_power())
        margin = text((long - short) // 2)
        start = text(self.state.start_cash // NANO)
        return {
            "id": self.state.account, "admin_configurations": {}, "user_configurations": None,
            "account_number": "PA" + self.state.account[:8].upper(), "status": "ACTIVE",
            "crypto_status": "ACTIVE", "options_approved_level": 0, "options_trading_level": 0,
            "currency": "USD", "buying_power": power, "regt_buying_power": power,
            "effective_buying_power": power, "options_buying_power": "0",
            "non_marginable_buying_power": text(max(0, self.state.cash // NANO)),
            "cash": text(self.state.cash // NANO), "accrued_fees": "0",
            "pending_transfer_in": "0", "pending_transfer_out": "0", "portfolio_value": equity,
            "trading_blocked": False, "transfers_blocked": False, "account_blocked": False,
            "created_at": stamp(self.state.created), "trade_suspended_by_user": False,
            "multiplier": str(self.multiplier), "shorting_enabled": self.multiplier > 1,
            "equity": equity, "last_equity": start, "long_market_value": text(long),
            "short_market_value": text(short), "position_market_value": text(long - short),
            "initial_margin": margin, "maintenance_margin": text((long - short) * 3 // 10),
            "last_maintenance_margin": "0", "sma": "0", "intraday_adjustments": "0",
            "pending_reg_taf_fees": "0", "crypto_tier": 0,
            "balance_asof": stamp(utc_ns())[:10]}

    def position(self, symbol: str) -> dict[str, Any]:
        """The position in *symbol*, which is not flat."""
        instrument, position = self.names[symbol], self.state.positions[symbol]
        price, cost = self.mark(symbol), position.cost // NANO
        value = price * position.qty // NANO
        gain = value - cost
        held = sum(o.left for o in self.state.open_orders(symbol) if o.side * position.qty < 0)
        share = str((Decimal(gain) / abs(cost)).quantize(Decimal("1e-9"), ROUND_DOWN)
                    if cost else 0)
        return {
            "asset_id": instrument.asset_id, "symbol": instrument.plain,
            "exchange": "CRYPTO" if instrument.crypto else "NASDAQ",
            "asset_class": "crypto" if instrument.crypto else "us_equity",
            "asset_marginable": not instrument.crypto, "qty": text(position.qty),
            "qty_available": text(max(0, abs(position.qty) - held)
                                  * (1 if position.qty > 0 else -1)),
            "avg_entry_price": text(position.average),
            "side": "long" if position.qty > 0 else "short", "market_value": text(value),
            "cost_basis": text(cost), "unrealized_pl": text(gain), "unrealized_plpc": share,
            "unrealized_intraday_pl": text(gain), "unrealized_intraday_plpc": share,
            "current_price": text(price), "lastday_price": text(instrument.price),
            "change_today": str((Decimal(price - instrument.price) / instrument.price)
                                .quantize(Decimal("1e-9"), ROUND_DOWN))}

    def asset(self, instrument: Instrument) -> dict[str, Any]:
        crypto = instrument.crypto
        view: dict[str, Any] = {
            "id": instrument.asset_id, "class": "crypto" if crypto else "us_equity",
            "exchange": "CRYPTO" if crypto else "NASDAQ", "symbol": instrument.symbol,
            "name": f"{instrument.symbol} (simulated)", "cusip": None, "status": "active",
            "tradable": True, "marginable": not crypto,
            "shortable": not crypto and self.multiplier > 1, "fractionable": True,
            "easy_to_borrow": not crypto,
            "borrow_status": "not_borrowable" if crypto else "easy_to_borrow",
            "margin_requirement_long": "100" if crypto else "30",
            "margin_requirement_short": "100" if crypto else "30",
            "maintenance_margin_requirement": 100 if crypto else 30, "attributes": []}
        if crypto:
            view |= {"min_order_size": "0.000000001", "min_trade_increment": "0.000000001",
                     "price_increment": text(instrument.tick)}
        return view
