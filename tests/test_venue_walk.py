"""Whatever is asked of the venue in whatever order: its account adds up, its log is the whole."""
from __future__ import annotations

import random

import pytest

from hftpipe._clock import utc_ns
from hftpipe.venue import read_log
from hftpipe.venue._traders import EXTERNAL, Traders
from hftpipe.venue.exchange import Exchange, Refused
from hftpipe.venue.state import NANO, State, nano, text
from hftpipe.venue.traders import instruments

SYMBOLS = ("ACME", "BOLT", "BTC/USD")
CASH = 10**6 * NANO * NANO


def price(exchange, symbol, cents):
    """A price so many cents (of a dollar for crypto: dollars) from the market."""
    step = NANO if "/" in symbol else NANO // 100
    return text(max(NANO, exchange.mark(symbol) // (NANO // 100) * (NANO // 100) + cents * step))


def request(chance, exchange):
    """An order of any kind, often one that is refused."""
    symbol, side = chance.choice(SYMBOLS), chance.choice(("buy", "sell"))
    up = 1 if side == "buy" else -1
    kind = chance.choice(("market", "limit", "stop", "stop_limit", "trailing_stop"))
    body = {"symbol": symbol, "side": side, "type": kind, "qty": str(chance.randint(1, 300)),
            "time_in_force": chance.choice(("day", "gtc", "gtc", "ioc", "fok", "opg", "cls"))}
    if kind in ("limit", "stop_limit"):
        body["limit_price"] = price(exchange, symbol, chance.randint(-30, 30))
    if kind in ("stop", "stop_limit"):
        body["stop_price"] = price(exchange, symbol, up * chance.randint(-5, 30))
    if kind == "trailing_stop":
        body[chance.choice(("trail_price", "trail_percent"))] = f"0.{chance.randint(1, 99):02}"
    class_ = chance.choice(("", "", "bracket", "oco", "oto"))
    if class_:
        turn = -up if class_ == "oco" else up
        body["order_class"] = class_
        if class_ != "oto" or chance.random() < 0.5:
            body["take_profit"] = {
                "limit_price": price(exchange, symbol, turn * chance.randint(1, 40))}
        if class_ != "oto" or "take_profit" not in body:
            body["stop_loss"] = {
                "stop_price": price(exchange, symbol, -turn * chance.randint(1, 40))}
    return body


def sound(exchange):
    """What must hold between any two requests."""
    state = exchange.state
    for order in state.orders.values():
        assert 0 <= order.filled <= order.qty, order.view
        assert (order.status == "filled") == (order.filled == order.qty), order.view
        assert order.open == (order.id in state.live)
    for order in state.open_orders():
        assert state.by_number[order.book] is order or order.status in (
            "pending_new", "pending_replace")
        if order.parent is not None:
            parent = state.orders[order.parent]
            assert parent.open or parent.status == "filled", (parent.status, order.view)
            twin = state.twin(order)
            if twin is not None and order.status == "held" and parent.status == "filled":
                assert twin.open and order.qty == twin.left
    for symbol in SYMBOLS:
        held = state.held(symbol)
        closing = [o for o in state.open_orders(symbol)
                   if o.status != "held" and o.parent is not None]
        for order in closing:           # an exit never opens a position of its own
            assert order.left <= abs(held) and order.side * held < 0, (held, order.view)
    cash = CASH + sum(-state.orders[id_].side * p * q for _, id_, _, p, q, _ in state.fills)
    assert cash == state.cash
    for symbol in SYMBOLS:
        assert state.held(symbol) == sum(
            state.orders[id_].side * q for _, id_, _, _, q, _ in state.fills
            if state.orders[id_].symbol == symbol)
    assert exchange.traders.sound


def picture(state):
    return ([o.view for o in state.orders.values()], state.cash, state.fills,
            {s: (p.qty, p.cost) for s, p in state.positions.items()}, list(state.live))


@pytest.mark.parametrize("seed", range(12))
def test_a_walk_through_everything_the_venue_can_do(tmp_path, seed):
    chance = random.Random(seed)
    table = instruments(SYMBOLS, {})
    kinds, refused = set(), 0

    def born():
        state = State(tmp_path, CASH)
        traders = Traders(table, seed + state.runs, 5000.0, 0, max(state.runs << 40, state.trade))
        exchange = Exchange(table, traders, state, 4)
        state.record("start", utc_ns(), account="a")
        exchange.resume()
        return exchange, 0

    exchange, now = born()
    for _ in range(400):
        draw = chance.random()
        live = exchange.state.open_orders()
        try:
            if draw < 0.45:
                fields = exchange.parse(request(chance, exchange))
                exchange.check(fields)
                exchange.execute(exchange.accept(fields, 0))
            elif draw < 0.6 and live:
                order = chance.choice(live)
                body = {"qty": str(chance.randint(1, 300))} if chance.random() < 0.5 else {}
                if order.limit:
                    body["limit_price"] = price(exchange, order.symbol, chance.randint(-30, 30))
                if order.stop and order.type != "trailing_stop":
                    body["stop_price"] = price(exchange, order.symbol, chance.randint(-30, 30))
                new = exchange.replace(order, body, 0)
                exchange.finish_replace(new)
                kinds.add("replaced " + new.status)
            elif draw < 0.68 and live:
                order = chance.choice(live)
                exchange.cancel(order, 0)
                exchange.finish_cancel(order)
            elif draw < 0.7:
                exchange.end_session()
            elif draw < 0.73:
                before = picture(exchange.state)
                exchange.state.close()
                again = State(tmp_path, CASH)
                assert picture(again) == before         # the log is all there is
                again.close()
                exchange, now = born()
            else:
                now += chance.randint(1, 60) * NANO // 50
                exchange.step(now)
        except Refused:
            refused += 1
        sound(exchange)
    kinds |= {(e["event"]) for e in read_log(tmp_path) if e["kind"] == "event"}
    assert {"pending_new", "new", "fill", "canceled"} <= kinds and refused > 10
    books = {EXTERNAL | o.book for o in exchange.state.open_orders()}
    assert len(books) == len(exchange.state.open_orders())
    exchange.state.close()
    assert nano(text(exchange.state.cash // NANO)) == exchange.state.cash // NANO
