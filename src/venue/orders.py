"""What an order request says: every field checked as the broker checks it."""
from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from .state import NANO, QTY_MAX, Order, nano, text
from .traders import Instrument

if TYPE_CHECKING:
    from .exchange import Exchange

TYPES = ("market", "limit", "stop", "stop_limit", "trailing_stop")
TIFS = ("day", "gtc", "opg", "cls", "ioc", "fok")
CLASSES = ("", "simple", "bracket", "oco", "oto")
INTENTS = ("buy_to_open", "buy_to_close", "sell_to_open", "sell_to_close")


class Refused(Exception):
    """A request the broker answers with an error."""

    def __init__(self, status: int, code: int, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message, **extra}


def invalid(message: str) -> Refused:
    return Refused(422, 40010001, message)


def forbidden(message: str, **extra: Any) -> Refused:
    return Refused(403, 40310000, message, **extra)


def price_of(body: dict[str, Any], name: str, label: str = "") -> int | None:
    """A price of the request in nano, ``None`` when it is not given."""
    label = label or name
    if body.get(name) is None:
        return None
    try:
        price = nano(body[name])
    except ValueError:
        raise invalid(f"{label} is not a valid decimal") from None
    if not 0 < price < 1 << 60:
        raise invalid(f"{label} must be > 0")
    return price


def on_tick(instrument: Instrument, price: int | None, label: str) -> str | None:
    """*price* as it is written, if it is a multiple of the smallest increment."""
    if price is None:
        return None
    places = NANO // 100 if price >= NANO else NANO // 10_000
    if price % (instrument.tick if instrument.crypto else places):
        raise Refused(422, 42210000, f"invalid {label} {text(price)}. sub-penny "
                      "increment does not fulfill minimum pricing criteria")
    return text(price)


def parse(exchange: Exchange, body: Any) -> dict[str, Any]:
    """The order a request asks for.

    Raises
    ------
    Refused
        As the broker would, 400, 403 or 422.
    """
    if not isinstance(body, dict):
        raise Refused(400, 40010000, "request body format is invalid")
    instrument = exchange.find(body.get("symbol"))
    side, type_ = body.get("side"), body.get("type")
    tif, class_ = body.get("time_in_force"), body.get("order_class") or ""
    if side not in ("buy", "sell"):
        raise invalid("side must be buy or sell")
    if not isinstance(type_, str) or type_ not in TYPES:
        raise invalid("invalid order type")
    if not isinstance(tif, str) or tif not in TIFS:
        raise invalid("invalid time_in_force")
    if class_ not in CLASSES:
        raise invalid("invalid order_class")
    if instrument.crypto:
        if tif not in ("gtc", "ioc"):
            raise invalid("invalid crypto time_in_force")
        if type_ not in ("market", "limit", "stop_limit"):
            raise invalid("invalid order type for crypto order")
        if class_ not in ("", "simple"):
            raise invalid("crypto orders not allowed for advanced order_class: " + class_)
    extended = body.get("extended_hours") or False
    if not isinstance(extended, bool):
        raise invalid("extended_hours must be a boolean")
    if extended and (type_ != "limit" or tif not in ("day", "gtc")):
        raise invalid("extended hours order must be DAY or GTC limit orders")
    exits = _exits(body, class_, type_, tif, extended)
    prices = _prices(body, instrument, type_, exits if class_ == "oco" else {})
    if tif in ("opg", "cls") and type_ not in ("market", "limit"):
        raise invalid(f"{tif} orders must be market or limit orders")
    if tif in ("ioc", "fok") and type_ not in ("market", "limit"):
        raise invalid(f"{type_} orders must be DAY or GTC orders")
    client = client_id(exchange, body)
    limit = price_of(prices, "limit_price")
    qty, notional = _quantity(exchange, body, instrument, side, type_, tif, limit)
    if class_ not in ("", "simple") and (notional is not None or qty % NANO):
        raise invalid("fractional orders are not allowed for advanced order_class")
    intent = body.get("position_intent")
    if intent not in (None, *INTENTS):
        raise invalid("invalid position_intent")
    order = {"client_order_id": client, "symbol": instrument.symbol,
             "asset_id": instrument.asset_id,
             "asset_class": "crypto" if instrument.crypto else "us_equity",
             "side": side, "type": type_, "time_in_force": tif, "qty": text(qty),
             "notional": notional, "extended_hours": extended, "order_class": class_,
             "position_intent": intent, **prices}
    if type_ == "trailing_stop":
        n = exchange.index[instrument.symbol]
        hwm = exchange.traders.top(n)[4] or exchange.last[n]
        stop = trailed(instrument, 1 if side == "buy" else -1, hwm,
                       price_of(prices, "trail_price") or 0,
                       price_of(prices, "trail_percent") or 0)
        order |= {"hwm": text(hwm), "stop_price": text(stop)}
    order["legs"] = _legs(exchange, order, instrument, exits)
    return order


def trailed(instrument: Instrument, side: int, hwm: int, trail: int, percent: int) -> int:
    """Stop price of a trailing stop that saw *hwm*; at least a tick."""
    away = trail or hwm * percent // (100 * NANO)
    stop = hwm + side * away
    tick = instrument.tick
    stop = -(-stop // tick) * tick if side > 0 else stop // tick * tick
    return max(tick, stop)


def client_id(exchange: Exchange, body: dict[str, Any]) -> str:
    client = body.get("client_order_id")
    if client is None or client == "":
        client = str(uuid.uuid4())
    if not isinstance(client, str) or len(client) > 128:
        raise invalid("client_order_id must be no more than 128 characters")
    if client in exchange.state.by_client:
        raise invalid("client_order_id must be unique")
    return client


def _prices(body: dict[str, Any], instrument: Instrument, type_: str,
            exits: dict[str, dict[str, Any]]) -> dict[str, str | None]:
    """Prices that *type_* has, those it must not have refused."""
    limit, stop = price_of(body, "limit_price"), price_of(body, "stop_price")
    trail, percent = price_of(body, "trail_price"), price_of(body, "trail_percent")
    if exits:                               # an oco's own price is that of its take profit
        limit = price_of(exits["take_profit"], "limit_price", "take_profit.limit_price")
    if type_ == "market" and (limit is not None or stop is not None):
        raise invalid("market orders require no stop or limit price")
    if type_ == "limit":
        if limit is None:
            raise invalid("limit orders require a limit price")
        if stop is not None:
            raise invalid("limit orders require no stop price")
    if type_ == "stop":
        if stop is None:
            raise invalid("stop orders require a stop price")
        if limit is not None:
            raise invalid("stop orders require no limit price")
    if type_ == "stop_limit" and (stop is None or limit is None):
        raise invalid("stop limit orders require both stop and limit price")
    if type_ == "trailing_stop":
        if (trail is None) == (percent is None):
            raise invalid("trailing stop orders must specify one of trail_price or "
                          "trail_percent")
        if limit is not None or stop is not None:
            raise invalid("trailing stop orders require no stop or limit price")
        if percent is not None and percent >= 100 * NANO:
            raise invalid("trail_percent must be < 100")
    elif trail is not None or percent is not None:
        raise invalid("only trailing stop orders may specify trail_price or trail_percent")
    return {"limit_price": on_tick(instrument, limit, "limit_price"),
            "stop_price": on_tick(instrument, stop, "stop_price"),
            "trail_price": on_tick(instrument, trail, "trail_price"),
            "trail_percent": None if percent is None else text(percent)}


def _exits(body: dict[str, Any], class_: str, type_: str, tif: str,
           extended: bool) -> dict[str, dict[str, Any]]:
    """The exits a bracket, oco or oto asks for, by their names."""
    exits: dict[str, dict[str, Any]] = {}
    for name, wanted in (("take_profit", "limit_price"), ("stop_loss", "stop_price")):
        given = body.get(name)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise invalid(f"{name} must be an object")
        if given.get(wanted) is None:
            raise invalid(f"{class_ or 'simple'} orders require {name}.{wanted}")
        exits[name] = given
    if class_ in ("", "simple"):
        if exits:
            raise invalid("take_profit and stop_loss require an advanced order_class")
        return {}
    if class_ in ("bracket", "oco"):
        for name, wanted in (("take_profit", "limit_price"), ("stop_loss", "stop_price")):
            if name not in exits:
                raise invalid(f"{class_} orders require {name}.{wanted}")
    elif len(exits) != 1:
        raise invalid("oto orders require either take_profit or stop_loss")
    if class_ == "oco" and type_ != "limit":
        raise invalid("oco orders must be limit orders")
    if type_ == "trailing_stop":
        raise invalid("trailing stop orders are not allowed for advanced order_class")
    if tif not in ("day", "gtc"):
        raise invalid(f"{class_} orders must be DAY or GTC orders")
    if extended:
        raise invalid(f"{class_} orders do not support extended hours")
    return exits


def _legs(exchange: Exchange, order: dict[str, Any], instrument: Instrument,
          exits: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The requests of the legs, their prices on the right sides of each other."""
    if not exits:
        return []
    class_, buy = order["order_class"], order["side"] == "buy"
    up = not buy if class_ == "oco" else buy        # whether the take profit lies above
    profit = price_of(exits.get("take_profit", {}), "limit_price", "take_profit.limit_price")
    stop = price_of(exits.get("stop_loss", {}), "stop_price", "stop_loss.stop_price")
    limit = price_of(exits.get("stop_loss", {}), "limit_price", "stop_loss.limit_price")
    if profit is not None and stop is not None and (profit <= stop if up else profit >= stop):
        raise Refused(422, 42210000, "take_profit.limit_price must be "
                      f"{'>' if up else '<'} stop_loss.stop_price")
    if class_ != "oco" and stop is not None:
        base = price_of(order, "limit_price") or exchange.far(instrument, 1 if buy else -1)
        if (base - stop if up else stop - base) < NANO // 100:
            raise Refused(422, 42210000, "stop_loss.stop_price must be "
                          f"{'<= base_price - 0.01' if up else '>= base_price + 0.01'}",
                          base_price=text(base))
    side = order["side"] if class_ == "oco" else "sell" if buy else "buy"
    common = {"symbol": order["symbol"], "asset_id": order["asset_id"],
              "asset_class": order["asset_class"], "side": side, "qty": order["qty"],
              "time_in_force": order["time_in_force"], "notional": None,
              "extended_hours": False, "order_class": class_,
              "position_intent": f"{side}_to_close", "status": "held"}
    legs = []
    if profit is not None and class_ != "oco":
        legs.append({**common, "role": "take_profit", "type": "limit", "stop_price": None,
                     "limit_price": on_tick(instrument, profit, "take_profit.limit_price")})
    if stop is not None:
        legs.append({**common, "role": "stop_loss",
                     "type": "stop" if limit is None else "stop_limit",
                     "stop_price": on_tick(instrument, stop, "stop_loss.stop_price"),
                     "limit_price": on_tick(instrument, limit, "stop_loss.limit_price")})
    return legs


def _quantity(exchange: Exchange, body: dict[str, Any], instrument: Instrument, side: str,
              type_: str, tif: str, limit: int | None) -> tuple[int, str | None]:
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
        price = limit or exchange.far(instrument, 1 if side == "buy" else -1)
        notional, value = text(value), value * NANO // price
        if value == 0:
            raise invalid("notional is too small")
    if value > QTY_MAX:
        raise invalid(f"qty must be <= {QTY_MAX // NANO}")
    if (notional is not None or value % NANO) and not instrument.crypto:
        if not exchange.state.configurations["fractional_trading"]:
            raise forbidden("fractional trading is disabled for this account")
        if tif != "day":
            raise invalid("fractional orders must be DAY orders")
        if side == "sell" and exchange.state.held(instrument.symbol) <= 0:
            raise forbidden("fractional orders cannot be sold short")
    return value, notional


def parse_replace(exchange: Exchange, order: Order, body: Any) -> dict[str, Any]:
    """The order that is to take the place of *order*: its fields with what *body* changes.

    Raises
    ------
    Refused
        400, 403 or 422; the order stays as it is.
    """
    if not isinstance(body, dict):
        raise Refused(400, 40010000, "request body format is invalid")
    if not order.open:
        raise Refused(422, 42210000, f'order is already in "{order.status}" state')
    if order.status in ("pending_cancel", "pending_replace"):
        raise Refused(422, 42210000, f'order is in "{order.status}" state')
    if order.status in ("accepted", "pending_new"):
        raise invalid("unable to replace order, order isn't sent to exchange yet")
    view, instrument = order.view, exchange.find(order.symbol)
    if view["notional"] is not None:
        raise invalid("unable to replace order: notional orders cannot be replaced")
    new: dict[str, Any] = {k: view[k] for k in (
        "symbol", "asset_id", "asset_class", "side", "type", "time_in_force", "qty", "notional",
        "limit_price", "stop_price", "trail_price", "trail_percent", "hwm", "extended_hours",
        "order_class", "position_intent")}
    if body.get("qty") is not None:
        try:
            qty = nano(body["qty"])
        except ValueError:
            raise invalid("qty is not a valid decimal") from None
        if not 0 < qty <= QTY_MAX:
            raise invalid("qty must be > 0")
        if qty != order.qty and (qty % NANO or order.qty % NANO) and not instrument.crypto:
            raise invalid("qty of a fractional order cannot be changed")
        if qty <= order.filled:
            raise invalid(f"qty must be > filled_qty {text(order.filled)}")
        if qty != order.qty and order.parent is not None:
            raise invalid("qty of a leg cannot be changed")
        new["qty"] = text(qty)
    if body.get("time_in_force") is not None:
        tif = body["time_in_force"]
        if tif not in (("gtc", "ioc") if instrument.crypto else ("day", "gtc")):
            raise invalid("invalid time_in_force")
        new["time_in_force"] = tif
    for name, has in (("limit_price", ("limit", "stop_limit")),
                      ("stop_price", ("stop", "stop_limit"))):
        price = price_of(body, name)
        if price is not None:
            if order.type not in has:
                raise invalid(f"{order.type} orders require no {name.replace('_', ' ')}")
            if name == "stop_price" and order.armed and price != order.stop:
                raise invalid("stop_price of a triggered order cannot be changed")
            new[name] = on_tick(instrument, price, name)
    trail = price_of(body, "trail")
    if trail is not None:
        if order.type != "trailing_stop":
            raise invalid("only trailing stop orders may specify trail")
        name = "trail_price" if order.trail else "trail_percent"
        if name == "trail_percent" and trail >= 100 * NANO:
            raise invalid("trail_percent must be < 100")
        new[name] = on_tick(instrument, trail, name) if order.trail else text(trail)
        new["stop_price"] = text(trailed(instrument, order.side, order.hwm,
                                         trail if order.trail else 0,
                                         0 if order.trail else trail))
    if all(new[k] == view[k] for k in new):
        raise forbidden("order parameters are not changed")
    new["client_order_id"] = client_id(exchange, body)
    return new
