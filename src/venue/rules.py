"""Account rules that a well-formed order must pass: shorts, wash trades, buying power."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .orders import Refused, forbidden
from .state import NANO, Order, nano, text
from .traders import Instrument

if TYPE_CHECKING:
    from .exchange import Exchange

MARGIN_LEAST = 2000 * NANO          # below this equity there is no margin and no short


def multiplier(exchange: Exchange) -> int:
    """1, 2 or 4: the account's, what its owner allows at most, and 1 below $2000 of equity."""
    asked = int(exchange.state.configurations["max_margin_multiplier"])
    return 1 if equity(exchange) < MARGIN_LEAST else min(exchange.multiplier, asked)


def equity(exchange: Exchange) -> int:
    """Cash plus positions at their marks, nano."""
    state = exchange.state
    return state.cash // NANO + sum(
        exchange.mark(s) * p.qty // NANO for s, p in state.positions.items() if p.qty)


def value(exchange: Exchange, instrument: Instrument, side: int, limit: int, qty: int) -> int:
    """What an opening order reserves, nano: a short at the ask plus 3 % at least."""
    price = limit or exchange.far(instrument, 1)
    if side < 0:
        price = max(limit, exchange.far(instrument, 1) * 103 // 100)
    return price * qty // NANO


def reserved(exchange: Exchange, but: Order | None = None, crypto: bool = False) -> int:
    """What open opening orders hold of the buying power, nano."""
    used = 0
    for o in exchange.state.open_orders():
        instrument = exchange.names[o.symbol]
        if (o is not but and o.status != "held" and exchange.state.held(o.symbol) * o.side >= 0
                and not o.parent and o.group != "oco"           # exits open nothing
                and (instrument.crypto or not crypto)):
            used += value(exchange, instrument, o.side, o.limit or o.stop, o.left)
    return used


def buying_power(exchange: Exchange, but: Order | None = None, times: int = 0) -> int:
    """Multiplier times equity, less what positions and opening orders take, nano.

    With an initial margin of 50 % this is the broker's rule for the multipliers 1 and 2; for 4
    it takes the equity of now where the broker takes last night's.
    """
    state = exchange.state
    used = sum(abs(exchange.mark(s) * p.qty) // NANO for s, p in state.positions.items())
    used += reserved(exchange, but)
    return max(0, (times or multiplier(exchange)) * equity(exchange) - used)


def maintenance(exchange: Exchange) -> int:
    """Maintenance margin of all positions, nano: 30 % of a long, more of cheap and short ones."""
    total = 0
    for symbol, p in exchange.state.positions.items():
        price = exchange.mark(symbol)
        amount = abs(price * p.qty) // NANO
        shares = abs(p.qty)
        if exchange.names[symbol].crypto:
            total += amount
        elif p.qty > 0:
            total += amount if price < 5 * NANO // 2 else amount * 3 // 10
        elif price >= 5 * NANO:
            total += max(5 * shares, amount * 3 // 10)
        else:
            total += max(5 * shares // 2, amount)
    return total


def closable(exchange: Exchange, leg: Order) -> int:
    """What is held on the other side of an exit and not held for other orders, nano."""
    state = exchange.state
    held = state.held(leg.symbol)
    if held * leg.side >= 0:
        return 0
    mine = (leg, state.twin(leg))
    busy = sum(o.left for o in state.open_orders(leg.symbol)
               if o.side == leg.side and o.status != "held" and o not in mine)
    return max(0, abs(held) - busy)


def check(exchange: Exchange, order: dict[str, Any], but: Order | None = None) -> None:
    """Refuse what the account must not do; *but* is the order that it replaces.

    Raises
    ------
    Refused
        403, as the broker would.
    """
    state = exchange.state
    if state.configurations["suspend_trade"]:
        raise forbidden("new orders are rejected by user request")
    symbol, side = order["symbol"], 1 if order["side"] == "buy" else -1
    instrument = exchange.names[symbol]
    qty = nano(order["qty"]) - (but.filled if but else 0)
    limit = nano(order["limit_price"]) if order["limit_price"] is not None else 0
    mine = (but, state.twin(but)) if but else ()    # two exits of a pair close once
    working = [o for o in state.open_orders(symbol) if o not in mine and o.status != "held"]
    if order["order_class"] in ("", "simple") and order["type"] != "trailing_stop":
        _wash(order, side, limit, working)
    held = state.held(symbol)
    if held * side < 0 and order["order_class"] in ("bracket", "oto") and not (but and but.parent):
        raise Refused(422, 42210000, f"{order['order_class']} orders must be entry orders")
    if held * side < 0:
        _available(symbol, side, qty, held, working)
        return
    if order["order_class"] == "oco":
        raise forbidden(f"insufficient qty available for order (requested: {text(qty)}, "
                        "available: 0)", symbol=symbol, existing_qty="0", available="0",
                        held_for_orders="0", related_orders=[])
    if side < 0:
        if instrument.crypto:
            raise forbidden(f"insufficient balance for {symbol.split('/')[0]} "
                            f"(requested: {text(qty)}, available: 0)", symbol=symbol)
        if multiplier(exchange) < 2 or state.configurations["no_shorting"]:
            raise forbidden("account is not allowed to short")
        if qty % NANO:
            raise forbidden("fractional orders cannot be sold short")
    if held == 0 and any(o.side == -side and not o.parent for o in working):
        raise forbidden("cannot open a long buy while a short sell order is open"
                        if side > 0 else
                        "cannot open a short sell while a long buy order is open")
    stop = nano(order["stop_price"]) if order.get("stop_price") is not None else 0
    cost = value(exchange, instrument, side, limit or stop, qty)
    power = buying_power(exchange, but)
    if instrument.crypto:                   # is not bought on margin
        power = min(power, max(0, state.cash // NANO - reserved(exchange, but, crypto=True)))
    if cost > power:
        raise forbidden("insufficient buying power", buying_power=text(power),
                        cost_basis=text(cost))


def _wash(order: dict[str, Any], side: int, limit: int, working: list[Order]) -> None:
    """Refuse an order that could trade with another one of the account."""
    plain = order["type"] == "limit"
    for other in working:
        if other.side != -side or other.complex:
            continue
        if plain and other.type == "limit" and (limit - other.limit) * side < 0:
            continue
        raise forbidden("potential wash trade detected. use complex orders",
                        existing_order_id=other.id,
                        reject_reason="opposite side market/stop order exists"
                        if other.type != "limit" else "opposite side limit order exists")


def _available(symbol: str, side: int, qty: int, held: int, working: list[Order]) -> None:
    """Refuse to close more than is held and not held for other orders."""
    mine = [o for o in working if o.side == side]
    busy = sum(o.left for o in mine)
    available = max(0, abs(held) - busy)
    if qty > available:
        raise forbidden("insufficient qty available for order (requested: "
                        f"{text(qty)}, available: {text(available)})", symbol=symbol,
                        existing_qty=text(abs(held)), available=text(available),
                        held_for_orders=text(busy), related_orders=[o.id for o in mine])
