"""Orders of every type and class: who triggers, what ends with what, and what survives a kill."""
from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import aiohttp
import msgspec
import pytest

from hftpipe._clock import utc_ns
from hftpipe.errors import UsageError
from hftpipe.venue import Config, Venue, read_log, spawn
from hftpipe.venue._traders import EXTERNAL
from hftpipe.venue.session import Hours, closes, rows, trades_on
from hftpipe.venue.state import NANO, nano, text
from tests.test_venue import STILL, Client, top, venue_test

RICH = replace(STILL, cash="1000000")


def print_trade(venue, price, symbol="ACME", qty=NANO):
    """Make strangers trade once at *price* (text), whatever the book says; plenty stays there."""
    n = venue.exchange.index[symbol]
    number = max(venue.exchange.state.by_number, default=0) + 10**6
    price = nano(price)
    traders = venue.exchange.traders
    real = venue.exchange._fill
    venue.exchange._fill = lambda id_, m: None if id_ >= 10**6 else real(id_, m)
    try:
        for side in (1, -1):            # out of the way: everything that would trade first
            for p, q in traders.levels(n, -side):
                if (price - p) * side >= 0 and p != price:
                    number += 1
                    traders.submit(n, EXTERNAL | number, side, 2, 3, p, q)
        venue.exchange.pump()
        bid, _, ask, _, _ = traders.top(n)
        side = -1 if ask and bid and price >= (bid + ask) // 2 else 1
        for s, tif, size in ((side, 2, 1000 * qty), (-side, 3, qty)):   # the rest stays there
            number += 1
            traders.submit(n, EXTERNAL | number, s, 2, tif, price, size)
        venue.exchange.pump()
    finally:
        venue.exchange._fill = real


async def bought(client, venue, qty="10", symbol="ACME"):
    _, order, _ = await client.order(symbol=symbol, qty=qty, type="market", tif="day")
    return await client.until(order["id"], "filled")


def off(venue, ticks, side="ask"):
    """A price so many cents away from the best one."""
    bid, _, ask, _ = top(venue)
    return text(nano(ask if side == "ask" else bid) + ticks * NANO // 100)


async def status_of(client, order):
    return (await client.ask("GET", f"/v2/orders/{order['id']}"))[1]["status"]


# ---------------------------------------------------------------- stops

@pytest.mark.parametrize(("body", "words"), [
    ({"type": "stop"}, "stop orders require a stop price"),
    ({"type": "stop", "stop_price": "9", "limit_price": "9"}, "require no limit price"),
    ({"type": "stop_limit", "stop_price": "9"}, "require both stop and limit price"),
    ({"type": "limit", "limit_price": "9", "stop_price": "9"}, "require no stop price"),
    ({"type": "trailing_stop"}, "one of trail_price or trail_percent"),
    ({"type": "trailing_stop", "trail_price": "1", "trail_percent": "1"}, "one of trail_price"),
    ({"type": "trailing_stop", "trail_percent": "100"}, "trail_percent must be < 100"),
    ({"type": "trailing_stop", "trail_price": "1", "stop_price": "9"}, "no stop or limit"),
    ({"type": "market", "trail_price": "1"}, "only trailing stop orders"),
    ({"type": "stop", "stop_price": "9", "time_in_force": "ioc"}, "must be DAY or GTC"),
    ({"type": "stop", "stop_price": "9", "time_in_force": "opg"}, "market or limit orders"),
    ({"type": "stop", "stop_price": "9.001"}, "sub-penny")])
def test_prices_that_do_not_fit_the_type_are_refused(body, words):
    async def test(venue, client):
        status, error, _ = await client.ask("POST", "/v2/orders", {
            "symbol": "ACME", "side": "buy", "qty": "1", "time_in_force": "day", **body})
        assert status == 422 and words in error["message"]
        assert venue.state.orders == {}
    venue_test(test)


@pytest.mark.parametrize(("type_", "more"), [("stop", {}), ("stop_limit", {"price": None})])
def test_a_stop_waits_for_a_trade_at_its_price_and_then_trades(type_, more):
    async def test(venue, client):
        await bought(client, venue)
        stop = off(venue, -20, "bid")
        limit = {"price": off(venue, -40, "bid")} if more else {}
        _, order, _ = await client.order(side="sell", type=type_, tif="gtc", stop_price=stop,
                                         **limit)
        await client.until(order["id"], "new")
        print_trade(venue, text(nano(stop) + NANO // 100))
        assert await status_of(client, order) == "new"      # a cent above is not there yet
        print_trade(venue, stop)
        view = await client.until(order["id"], "filled")
        assert (view["stop_price"], view["type"]) == (stop, type_)
        if more:
            assert nano(view["filled_avg_price"]) >= nano(limit["price"])
    venue_test(test, RICH)


def test_a_buy_stop_is_collared():
    """It becomes a limit order 2.5 % above its price (4 % below $50)."""
    async def test(venue, client):
        stop = off(venue, 50)
        n = venue.exchange.index["ACME"]
        _, order, _ = await client.order(type="stop", tif="gtc", stop_price=stop)
        made = venue.state.orders[order["id"]]
        share = 1040 if made.stop < 50 * NANO else 1025
        assert venue.exchange._terms(made) == (2, made.stop * share // 1000 // (NANO // 100)
                                               * (NANO // 100))
        await client.until(order["id"], "new")
        assert venue.exchange.traders.levels(n, 1)[0][1] > 0
        print_trade(venue, stop)
        await client.until(order["id"], "filled", "new")
    venue_test(test, RICH)


def test_a_trailing_stop_follows_the_market_and_never_back():
    async def test(venue, client):
        await bought(client, venue)
        _, order, _ = await client.order(side="sell", type="trailing_stop", tif="gtc",
                                         trail_price="1.00")
        view = await client.until(order["id"], "new")
        assert nano(view["hwm"]) - nano(view["stop_price"]) == NANO and view["trail_price"] == "1"
        high = text(nano(view["hwm"]) + 3 * NANO)
        print_trade(venue, high)
        view = await client.until(order["id"], "new")
        assert (view["hwm"], view["stop_price"]) == (high, text(nano(high) - NANO))
        print_trade(venue, text(nano(high) - NANO // 2))    # back, but not far enough
        assert (await client.until(order["id"], "new"))["hwm"] == high
        print_trade(venue, text(nano(high) - NANO))
        await client.until(order["id"], "filled")
    venue_test(test, RICH)


# ---------------------------------------------------------------- brackets, oco, oto

def exits(venue, profit=300, stop=-300):
    return {"take_profit": {"limit_price": off(venue, profit)},
            "stop_loss": {"stop_price": off(venue, stop, "bid")}}


@pytest.mark.parametrize(("body", "words"), [
    ({"order_class": "bracket", "take_profit": {"limit_price": "500"}}, "stop_loss.stop_price"),
    ({"order_class": "bracket", "stop_loss": {"stop_price": "1"}}, "take_profit.limit_price"),
    ({"order_class": "bracket", "take_profit": {"limit_price": "1"},
      "stop_loss": {"stop_price": "2"}}, "take_profit.limit_price must be >"),
    ({"order_class": "bracket", "take_profit": {"limit_price": "999"},
      "stop_loss": {"stop_price": "998"}}, "base_price - 0.01"),
    ({"order_class": "oto"}, "either take_profit or stop_loss"),
    ({"order_class": "oco", "type": "market", "limit_price": None,
      "take_profit": {"limit_price": "500"}, "stop_loss": {"stop_price": "1"}},
     "oco orders must be limit"),
    ({"take_profit": {"limit_price": "500"}}, "advanced order_class"),
    ({"order_class": "bracket", "time_in_force": "ioc", "take_profit": {"limit_price": "500"},
      "stop_loss": {"stop_price": "1"}}, "bracket orders must be DAY or GTC"),
    ({"order_class": "bracket", "qty": "1.5", "take_profit": {"limit_price": "500"},
      "stop_loss": {"stop_price": "1"}}, "fractional orders are not allowed"),
    ({"order_class": "bracket", "take_profit": 7}, "take_profit must be an object")])
def test_legs_that_do_not_fit_are_refused(body, words):
    async def test(venue, client):
        base = {"symbol": "ACME", "side": "buy", "qty": "1", "time_in_force": "day",
                "type": "limit", "limit_price": "50"} | body
        status, error, _ = await client.ask(
            "POST", "/v2/orders", {k: v for k, v in base.items() if v is not None})
        assert status == 422 and words in error["message"], error
        assert venue.state.orders == {}
    venue_test(test)


async def bracket(client, venue, **more):
    _, entry, _ = await client.order(type="market", tif="gtc", order_class="bracket",
                                     **exits(venue), **more)
    assert [leg["status"] for leg in entry["legs"]] == ["held", "held"]
    await client.until(entry["id"], "filled")
    profit, stop = entry["legs"]
    await client.until(profit["id"], "new")
    return entry, profit, stop


def test_a_bracket_take_profit_ends_its_stop():
    async def test(venue, client):
        entry, profit, stop = await bracket(client, venue)
        assert await status_of(client, stop) == "held"      # the shares are held once
        _, (held,), _ = await client.ask("GET", "/v2/positions")
        assert held["qty_available"] == "0"
        async with client.updates() as updates:
            print_trade(venue, text(nano(profit["limit_price"]) + NANO // 100))
            events = [(u["event"], u["order"]["id"]) for u in
                      await updates.take("fill", "canceled")]
        assert events == [("fill", profit["id"]), ("canceled", stop["id"])]
        _, view, _ = await client.ask("GET", f"/v2/orders/{entry['id']}?nested=True")
        assert [leg["status"] for leg in view["legs"]] == ["filled", "canceled"]
        _, rows_, _ = await client.ask("GET", "/v2/orders?status=all&nested=true")
        assert [o["id"] for o in rows_] == [entry["id"]]    # legs are inside
        assert len((await client.ask("GET", "/v2/orders?status=all"))[1]) == 3
        assert (await client.ask("GET", "/v2/positions"))[1] == []
    venue_test(test, RICH)


def test_a_bracket_stop_ends_its_take_profit_first():
    async def test(venue, client):
        _, profit, stop = await bracket(client, venue)
        async with client.updates() as updates:
            print_trade(venue, stop["stop_price"])
            found = [(await updates.next()) for _ in range(3)]
        assert [(u["event"], u["order"]["id"]) for u in found] == [
            ("new", stop["id"]), ("canceled", profit["id"]), ("fill", stop["id"])]
        assert (await client.ask("GET", "/v2/positions"))[1] == []
    venue_test(test, RICH)


def test_a_partly_filled_take_profit_leaves_the_stop_the_rest():
    async def test(venue, client):
        _, profit, stop = await bracket(client, venue)
        n = venue.exchange.index["ACME"]
        real, traders = venue.exchange._fill, venue.exchange.traders
        venue.exchange._fill = lambda id_, m: None if id_ >= 10**6 else real(id_, m)
        for p, q in traders.levels(n, -1):
            if p < nano(profit["limit_price"]):
                traders.submit(n, EXTERNAL | 10**6 | p, 1, 2, 3, p, q)
        venue.exchange.pump()
        ahead = dict(traders.levels(n, -1))[nano(profit["limit_price"])] - 10 * NANO
        traders.submit(n, EXTERNAL | 10**6, 1, 2, 3, nano(profit["limit_price"]),
                       ahead + 4 * NANO)
        venue.exchange.pump()
        assert (await client.until(profit["id"], "partially_filled"))["filled_qty"] == "4"
        assert (await client.ask("GET", f"/v2/orders/{stop['id']}"))[1]["qty"] == "6"
        venue.exchange._fill = real
        print_trade(venue, stop["stop_price"])
        view = await client.until(stop["id"], "filled")
        assert view["filled_qty"] == "6" and await status_of(client, profit) == "canceled"
        assert (await client.ask("GET", "/v2/positions"))[1] == []
    venue_test(test, RICH)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_cancelling_any_part_ends_what_belongs_to_it(which):
    async def test(venue, client):
        if which == 0:                  # the entry, before it filled
            _, entry, _ = await client.order(tif="gtc", price=off(venue, -200, "bid"),
                                             order_class="bracket",
                                             take_profit={"limit_price": off(venue, 300)},
                                             stop_loss={"stop_price": "1.00"})
            parts = [entry, *entry["legs"]]
        else:
            _, profit, stop = await bracket(client, venue)
            parts = [profit, stop]
        await client.until(parts[0]["id"], "new")
        target = parts[0] if which < 2 else parts[1]
        assert (await client.ask("DELETE", f"/v2/orders/{target['id']}"))[0] == 204
        for part in parts:
            await client.until(part["id"], "canceled")
        assert (await client.ask("GET", "/v2/orders"))[1] == []
    venue_test(test, RICH)


def test_an_oco_closes_a_position_once():
    async def test(venue, client):
        pair = exits(venue)
        status, error, _ = await client.order(side="sell", tif="gtc", order_class="oco", **pair)
        assert (status, error["code"]) == (403, 40310000)   # nothing is held yet
        await bought(client, venue)
        _, order, _ = await client.order(side="sell", tif="gtc", order_class="oco", **pair)
        stop, = order["legs"]
        assert order["limit_price"] == pair["take_profit"]["limit_price"]
        await client.until(order["id"], "new")
        assert await status_of(client, stop) == "held"
        print_trade(venue, stop["stop_price"])
        await client.until(stop["id"], "filled")
        assert await status_of(client, order) == "canceled"
        assert (await client.ask("GET", "/v2/positions"))[1] == []
    venue_test(test, RICH)


def test_an_oto_sends_its_one_exit_after_the_entry():
    async def test(venue, client):
        _, entry, _ = await client.order(type="market", tif="day", order_class="oto",
                                         stop_loss={"stop_price": off(venue, -100, "bid"),
                                                    "limit_price": off(venue, -300, "bid")})
        stop, = entry["legs"]
        assert stop["type"] == "stop_limit"
        await client.until(entry["id"], "filled")
        await client.until(stop["id"], "new")
        print_trade(venue, stop["stop_price"])
        await client.until(stop["id"], "filled")
    venue_test(test, RICH)


def test_a_bracket_opens_a_position_and_its_exits_never_do():
    async def test(venue, client):
        await bought(client, venue)
        status, error, _ = await client.order(
            side="sell", type="market", tif="day", order_class="bracket", qty="5",
            take_profit={"limit_price": "1.00"}, stop_loss={"stop_price": "900"})
        assert (status, error["code"], error["message"]) == (
            422, 42210000, "bracket orders must be entry orders")
        # a sale of everything between the entry's two fills leaves its exits nothing to close
        size = top(venue)[3]
        _, entry, _ = await client.order(tif="day", price=top(venue)[2], qty=size + 5,
                                         order_class="bracket", **exits(venue))
        await client.until(entry["id"], "partially_filled")
        await client.order(side="sell", qty=size + 10, tif="day", price="900")
        venue.exchange.traders.submit(0, EXTERNAL | 10**6, -1, 2, 3, nano(entry["limit_price"]),
                                      5 * NANO)
        real = venue.exchange._fill
        venue.exchange._fill = lambda id_, m: None if id_ >= 10**6 else real(id_, m)
        venue.exchange.pump()
        await client.until(entry["id"], "filled")
        profit, stop = entry["legs"]
        assert {await status_of(client, profit), await status_of(client, stop)} == {
            "rejected", "canceled"}
    venue_test(test, RICH)


# ---------------------------------------------------------------- replacement

def test_a_replacement_is_a_new_order_in_the_old_ones_place():
    async def test(venue, client):
        async with client.updates() as updates:
            _, old, _ = await client.order(tif="day", price="1.00", qty="10")
            await updates.take("pending_new", "new")
            status, new, _ = await client.ask("PATCH", f"/v2/orders/{old['id']}", {
                "qty": "7", "limit_price": "1.01", "client_order_id": "second"})
            assert (status, new["status"], new["replaces"]) == (200, "pending_new", old["id"])
            gone, come = await updates.take("replaced", "new")
            assert gone["order"]["replaced_by"] == new["id"] and gone["order"]["replaced_at"]
            assert (come["order"]["id"], come["order"]["qty"], come["order"]["limit_price"],
                    come["order"]["client_order_id"]) == (new["id"], "7", "1.01", "second")
            assert dict(venue.exchange.traders.levels(0, 1))[nano("1.01")] == 7 * NANO
            assert [o["id"] for o in (await client.ask("GET", "/v2/orders"))[1]] == [new["id"]]
            await client.ask("DELETE", f"/v2/orders/{new['id']}")
            await updates.take("canceled")
    venue_test(test)


def test_quantity_of_a_replacement_counts_from_the_first_order_on():
    async def test(venue, client):
        _, _, ask, size = top(venue)
        _, old, _ = await client.order(tif="day", price=ask, qty=size + 50)
        await client.until(old["id"], "partially_filled")
        status, error, _ = await client.ask("PATCH", f"/v2/orders/{old['id']}", {"qty": size})
        assert status == 422 and "filled_qty" in error["message"]
        _, new, _ = await client.ask("PATCH", f"/v2/orders/{old['id']}",
                                     {"qty": size + 20, "limit_price": "1.00"})
        view = await client.until(new["id"], "new")
        assert (view["qty"], view["filled_qty"]) == (str(size + 20), str(size))
        assert dict(venue.exchange.traders.levels(0, 1))[NANO] == 20 * NANO
    venue_test(test, RICH)


def test_what_cannot_be_replaced_says_why():
    async def test(venue, client):
        async def refused(order, body, status, code, words):
            got, error, _ = await client.ask("PATCH", f"/v2/orders/{order}", body)
            assert (got, error["code"]) == (status, code) and words in error["message"], error

        _, order, _ = await client.order(tif="day", price="1.00", client_order_id="a")
        await client.until(order["id"], "new")
        id_ = order["id"]
        await refused(id_, {}, 403, 40310000, "order parameters are not changed")
        await refused(id_, {"limit_price": "1.00", "qty": 10}, 403, 40310000, "not changed")
        await refused(id_, b"[", 400, 40010000, "format")
        await refused(id_, {"limit_price": "1.001"}, 422, 42210000, "sub-penny")
        await refused(id_, {"stop_price": "1"}, 422, 40010001, "stop price")
        await refused(id_, {"trail": "1"}, 422, 40010001, "only trailing stop")
        await refused(id_, {"qty": "x"}, 422, 40010001, "decimal")
        await refused(id_, {"qty": "1.5"}, 422, 40010001, "fractional")
        await refused(id_, {"time_in_force": "ioc"}, 422, 40010001, "time_in_force")
        await refused(id_, {"limit_price": "2", "client_order_id": "a"}, 422, 40010001, "unique")
        await refused(id_, {"qty": "9000000"}, 403, 40310000, "insufficient buying power")
        await refused("nope", {"qty": "1"}, 404, 40410000, "order not found")
        await client.ask("DELETE", f"/v2/orders/{id_}")
        await client.until(id_, "canceled")
        await refused(id_, {"qty": "1"}, 422, 42210000, 'already in "canceled"')
        _, order, _ = await client.ask("POST", "/v2/orders", {
            "symbol": "ACME", "side": "buy", "type": "limit", "limit_price": "1.00",
            "time_in_force": "day", "notional": "50"})
        assert order["qty"] is None and order["notional"] == "50"
        await client.until(order["id"], "new")
        await refused(order["id"], {"limit_price": "2"}, 422, 40010001, "notional")
    venue_test(test)


def test_an_order_that_fills_before_its_replacement_stays_filled():
    async def test(venue, client):
        async with client.updates() as updates:
            _, old, _ = await client.order(tif="day", price="1.00", qty="1")
            await updates.take("pending_new", "new")
            made = venue.state.orders[old["id"]]
            new = venue.exchange.replace(made, {"limit_price": "1.01"}, 0)
            n = venue.exchange.index["ACME"]
            venue.exchange._event(made, "fill", price="1", qty="1", cum_qty="1",
                                  position_qty="1", trade=1)
            venue.exchange.traders.cancel(n, EXTERNAL | made.book)
            venue.exchange.finish_replace(new)
            fill, rejected = await updates.take("fill", "rejected")
            assert (fill["order"]["id"], rejected["order"]["id"]) == (old["id"], new.id)
    venue_test(test)


def test_a_stop_and_a_leg_are_replaced_where_they_wait():
    async def test(venue, client):
        entry, profit, stop = await bracket(client, venue)
        lower = text(nano(stop["stop_price"]) - NANO)
        status, new, _ = await client.ask("PATCH", f"/v2/orders/{stop['id']}",
                                          {"stop_price": lower})
        assert (status, new["status"]) == (200, "held")
        await client.until(stop["id"], "replaced")
        print_trade(venue, stop["stop_price"])
        assert await status_of(client, new) == "held"       # the old price is no longer one
        _, view, _ = await client.ask("GET", f"/v2/orders/{entry['id']}?nested=true")
        assert [leg["id"] for leg in view["legs"]] == [profit["id"], new["id"]]
        print_trade(venue, lower)
        await client.until(new["id"], "filled")
        assert await status_of(client, profit) == "canceled"
    venue_test(test, RICH)


# ---------------------------------------------------------------- sessions

def at(when):
    return replace(RICH, hours="nyse", now=when)


def move(venue, when):
    """Set the sessions' clock."""
    from hftpipe.venue.rest import time_of
    venue.exchange.hours.shift = time_of(when, "now") - utc_ns()
    venue.exchange.tick(utc_ns())


def test_orders_wait_for_their_session():
    async def test(venue, client):
        assert (await client.ask("GET", "/v2/clock"))[1]["is_open"] is False
        _, day, _ = await client.order(type="market", tif="day", qty="5")
        _, opening, _ = await client.order(type="market", tif="opg", qty="5")
        _, early, _ = await client.order(price=top(venue)[2], tif="day", qty="5",
                                         extended_hours=True)
        assert (day["status"], opening["status"], early["status"]) == (
            "accepted", "accepted", "pending_new")
        await client.until(early["id"], "filled")           # it is the hour before the open
        got, error, _ = await client.ask("PATCH", f"/v2/orders/{day['id']}", {"qty": "6"})
        assert (got, error["code"]) == (422, 40010001) and "sent to exchange" in error["message"]
        assert await status_of(client, day) == "accepted"
        move(venue, "2026-03-02T09:28:30-05:00")
        got, error, _ = await client.order(type="market", tif="opg")
        assert got == 422 and "opg orders are not accepted" in error["message"]
        move(venue, "2026-03-02T09:30:00-05:00")
        await client.until(day["id"], "filled")
        await client.until(opening["id"], "filled")
        _, rest, _ = await client.order(price="1.00", tif="day")
        _, good, _ = await client.order(price="1.00", tif="gtc")
        _, closing, _ = await client.order(type="market", tif="cls", qty="2")
        await client.until(good["id"], "new")
        assert closing["status"] == "accepted" and good["expires_at"]
        move(venue, "2026-03-02T15:55:00-05:00")
        got, error, _ = await client.order(type="market", tif="cls")
        assert got == 422 and "cls orders are not accepted" in error["message"]
        move(venue, "2026-03-02T16:00:00-05:00")
        await client.until(rest["id"], "expired")
        await client.until(closing["id"], "filled")
        assert await status_of(client, good) == "new"
        assert NANO not in dict(venue.exchange.traders.levels(0, 1))    # out of the book
        move(venue, "2026-03-03T09:30:00-05:00")
        assert dict(venue.exchange.traders.levels(0, 1))[NANO] == 10 * NANO
    venue_test(test, at("2026-03-02T08:00:00-05:00"))


def test_crypto_has_no_session():
    async def test(venue, client):
        _, order, _ = await client.order(symbol="BTC/USD", type="market", tif="gtc", qty="0.5")
        await client.until(order["id"], "filled")
    venue_test(test, replace(at("2026-03-01T08:00:00-05:00"), symbols=("ACME", "BTC/USD")))


@pytest.mark.parametrize(("when", "phase"), [
    ("2026-03-02T03:59:59-05:00", "closed"), ("2026-03-02T04:00:00-05:00", "pre"),
    ("2026-03-02T09:29:59-05:00", "pre"), ("2026-03-02T09:30:00-05:00", "open"),
    ("2026-03-02T15:59:59-05:00", "open"), ("2026-03-02T16:00:00-05:00", "after"),
    ("2026-03-02T20:00:00-05:00", "closed"), ("2026-03-01T12:00:00-05:00", "closed"),
    ("2026-07-03T12:00:00-04:00", "closed"), ("2026-11-27T13:00:00-05:00", "after"),
    ("2026-07-06T13:30:00Z", "open")])
def test_phases_of_new_york(when, phase):
    from hftpipe.venue.rest import time_of
    assert Hours(False).phase(time_of(when, "x")) == phase
    assert Hours(True).phase(time_of(when, "x")) == "open"


def test_the_calendar_has_half_days_and_settlement():
    import datetime as dt
    days = rows(dt.date(2026, 11, 25), dt.date(2026, 11, 30))
    assert [(d["date"], d["close"], d["settlement_date"]) for d in days] == [
        ("2026-11-25", "16:00", "2026-11-27"), ("2026-11-27", "13:00", "2026-11-30"),
        ("2026-11-30", "16:00", "2026-12-01")]
    assert not trades_on(dt.date(2026, 12, 25)) and closes(dt.date(2026, 11, 27)).hour == 13

    async def test(venue, client):
        assert (await client.ask("GET", "/v2/calendar?start=2026-11-25&end=2026-11-30"))[1] == days
        for bad in ("start=x", "start=2026-01-02&end=2026-01-01"):
            assert (await client.ask("GET", f"/v2/calendar?{bad}"))[0] == 422
    venue_test(test)


def test_hours_and_now_must_be_some():
    for bad in ({"hours": "lunch"}, {"now": "soon"}):
        with pytest.raises(UsageError):
            Config(**bad)


# ---------------------------------------------------------------- the account

def test_configurations_bind_orders():
    async def test(venue, client):
        async def set_(**values):
            return await client.ask("PATCH", "/v2/account/configurations", values)

        _, before, _ = await client.ask("GET", "/v2/account/configurations")
        status, after, _ = await set_(suspend_trade=True, pdt_check="both")
        assert status == 200 and after == before | {"suspend_trade": True}
        status, error, _ = await client.order(price="1.00")
        assert (status, error["message"]) == (403, "new orders are rejected by user request")
        await set_(suspend_trade=False, no_shorting=True, fractional_trading=False,
                   max_margin_multiplier="1")
        status, error, _ = await client.order(side="sell", price="500")
        assert (status, error["message"]) == (403, "account is not allowed to short")
        status, error, _ = await client.order(price="1.00", qty="1.5", tif="day")
        assert (status, error["message"]) == (
            403, "fractional trading is disabled for this account")
        _, account, _ = await client.ask("GET", "/v2/account")
        assert (account["multiplier"], account["buying_power"], account["shorting_enabled"]) == (
            "1", "100000", False)
        for bad in ({"suspend_trade": "yes"}, {"max_margin_multiplier": "3"}, {"what": 1},
                    {"max_options_trading_level": True}, {"trade_confirm_email": ["all"]}):
            assert (await set_(**bad))[0] == 422
        assert (await client.ask("PATCH", "/v2/account/configurations", b"[]"))[0] == 400
    venue_test(test)


def test_below_two_thousand_there_is_no_margin_and_no_short():
    async def test(venue, client):
        _, account, _ = await client.ask("GET", "/v2/account")
        assert (account["multiplier"], account["buying_power"]) == ("1", "1999")
        status, error, _ = await client.order(side="sell", price="500", qty="1")
        assert (status, error["message"]) == (403, "account is not allowed to short")
    venue_test(test, replace(STILL, cash="1999"))


def test_crypto_is_not_bought_on_margin():
    async def test(venue, client):
        status, error, _ = await client.order(symbol="BTC/USD", qty="1", tif="gtc",
                                              price="1500.00")
        assert (status, error["message"], error["buying_power"]) == (
            403, "insufficient buying power", "10")
    venue_test(test, replace(STILL, cash="10", symbols=("ACME", "BTC/USD")))


def test_activities_are_the_executions_in_pages():
    async def test(venue, client):
        size = top(venue)[3]
        first = await bought(client, venue, qty=str(size + 5))      # more than one execution
        _, order, _ = await client.order(side="sell", type="market", tif="day", qty="5")
        await client.until(order["id"], "filled")
        _, rows_, _ = await client.ask("GET", "/v2/account/activities/FILL")
        assert rows_[0]["order_id"] == order["id"] and len(rows_) >= 3
        mine = [r for r in reversed(rows_) if r["order_id"] == first["id"]]
        assert [r["type"] for r in mine] == ["partial_fill"] * (len(mine) - 1) + ["fill"]
        assert sum(int(r["qty"]) for r in mine) == size + 5
        assert (mine[-1]["cum_qty"], mine[-1]["leaves_qty"]) == (str(size + 5), "0")
        log = {e["execution_id"] for e in read_log(venue.config.state)
               if e["kind"] == "event" and "price" in e}
        assert {r["id"].partition("::")[2] for r in rows_} == log
        paged, token = [], ""
        while page := (await client.ask(
                "GET", f"/v2/account/activities?page_size=2&direction=asc{token}"))[1]:
            paged += page
            token = f"&page_token={page[-1]['id']}"
        assert paged == rows_[::-1]
        path = "/v2/account/activities"
        _, some, _ = await client.ask("GET", f"{path}?order_id={order['id']}")
        assert [r["order_id"] for r in some] == [order["id"]]
        since = rows_[1]["transaction_time"]
        assert (await client.ask("GET", f"{path}?after={since}"))[1] == rows_[:1]
        assert (await client.ask("GET", f"{path}?until={since}"))[1] == rows_[2:]
        for empty in ("/DIV", "?category=non_trade_activity", "?date=2020-01-02"):
            assert (await client.ask("GET", path + empty))[1] == []
        for bad in ("page_size=0", "page_size=101", "direction=x", "category=x", "page_token=x",
                    "date=2020-01-02&after=2020-01-01", "after=x"):
            assert (await client.ask("GET", f"{path}?{bad}"))[0] == 422
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as directory:
        venue_test(test, replace(RICH, state=Path(directory)))


def test_portfolio_history_follows_the_equity():
    async def test(venue, client):
        await bought(client, venue)
        venue.exchange.write_mark()
        _, account, _ = await client.ask("GET", "/v2/account")
        for frame in ("1Min", "5Min", "15Min", "1H", "1D"):
            status, body, _ = await client.ask(
                "GET", f"/v2/account/portfolio/history?period=1D&timeframe={frame}")
            assert status == 200 and body["timeframe"] == frame
            assert len(body["timestamp"]) == len(body["equity"]) == len(body["profit_loss"])
            assert body["equity"][-1] == pytest.approx(float(account["equity"]))
            assert body["profit_loss"][-1] == pytest.approx(
                float(account["equity"]) - body["base_value"])
        for bad in ("period=1X", "period=D", "timeframe=2Min", "period=2M&timeframe=1Min",
                    "period=1D&start=2026-01-01&end=2026-01-02", "start=x",
                    "start=2026-01-02&end=2026-01-01", "intraday_reporting=x"):
            assert (await client.ask("GET", f"/v2/account/portfolio/history?{bad}"))[0] == 422
    venue_test(test, RICH)


def test_a_position_is_closed_by_quantity_or_percentage():
    async def test(venue, client):
        await bought(client, venue)
        _, order, _ = await client.ask("DELETE", "/v2/positions/ACME?percentage=35")
        assert (order["qty"], order["side"], order["position_intent"]) == (
            "3.5", "sell", "sell_to_close")
        await client.until(order["id"], "filled")
        _, order, _ = await client.ask("DELETE", "/v2/positions/ACME?qty=2")
        await client.until(order["id"], "filled")
        assert (await client.ask("GET", "/v2/positions/ACME"))[1]["qty"] == "4.5"
        for bad in ("percentage=0", "percentage=101", "percentage=x", "percentage=NaN",
                    "qty=1&percentage=1", "qty=x"):
            assert (await client.ask("DELETE", f"/v2/positions/ACME?{bad}"))[0] == 422
        assert (await client.ask("DELETE", "/v2/positions/ACME?qty=50"))[0] == 403
    venue_test(test, RICH)


# ---------------------------------------------------------------- what survives

def test_legs_stops_replacements_and_settings_survive_a_kill(tmp_path):
    """The log alone brings everything back: nothing else is written when it dies."""
    config = replace(RICH, state=tmp_path)

    async def first():
        venue = Venue(config)
        await venue.__aenter__()
        async with aiohttp.ClientSession() as session:
            client = Client(venue.address, session)
            _, profit, stop = await bracket(client, venue)
            _, trail, _ = await client.order(symbol="BOLT", type="trailing_stop", tif="gtc",
                                             trail_percent="1")
            _, old, _ = await client.order(symbol="CRUX", tif="gtc", price="1.00")
            await client.until(old["id"], "new")
            _, new, _ = await client.ask("PATCH", f"/v2/orders/{old['id']}", {"qty": "4"})
            await client.until(new["id"], "new")
            await client.ask("PATCH", "/v2/account/configurations", {"no_shorting": True})
            _, orders, _ = await client.ask("GET", "/v2/orders?status=all")
            _, fills, _ = await client.ask("GET", "/v2/account/activities")
        venue._stop.set()
        await venue._task                       # as if killed: no mark, no farewell
        venue._server.close()
        await venue._runner.cleanup()
        venue.state.close()
        return orders, fills, profit, stop, new, trail

    async def second(before):
        orders, fills, profit, stop, new, trail = before
        async with Venue(config) as venue, aiohttp.ClientSession() as session:
            client = Client(venue.address, session)
            assert (await client.ask("GET", "/v2/orders?status=all"))[1] == orders
            assert (await client.ask("GET", "/v2/account/activities"))[1] == fills
            settings = (await client.ask("GET", "/v2/account/configurations"))[1]
            assert settings["no_shorting"] is True
            n = venue.exchange.index["CRUX"]
            assert dict(venue.exchange.traders.levels(n, 1))[NANO] == 4 * NANO
            assert trail["id"] in venue.exchange.stops
            print_trade(venue, stop["stop_price"])
            await client.until(stop["id"], "filled")
            assert await status_of(client, profit) == "canceled"
            assert (await client.ask("DELETE", f"/v2/orders/{new['id']}"))[0] == 204
            await client.until(new["id"], "canceled")
    asyncio.run(second(asyncio.run(first())))


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_death_between_any_two_lines_leaves_no_leg_behind(tmp_path, cut):
    """The log of a bracket that was stopped out and of a replacement, cut after each line."""
    config = replace(RICH, state=tmp_path)

    async def full():
        async with Venue(config) as venue, aiohttp.ClientSession() as session:
            client = Client(venue.address, session)
            _, _, stop = await bracket(client, venue)
            print_trade(venue, stop["stop_price"])
            await client.until(stop["id"], "filled")
            _, old, _ = await client.order(symbol="CRUX", tif="gtc", price="1.00")
            await client.until(old["id"], "new")
            _, new, _ = await client.ask("PATCH", f"/v2/orders/{old['id']}", {"qty": "4"})
            await client.until(new["id"], "new")

    asyncio.run(full())
    lines = (tmp_path / "orders.jsonl").read_bytes().splitlines(keepends=True)
    steps = [i for i, line in enumerate(lines) if b'"kind":"mark"' not in line[:16]]
    for end in steps[cut::8]:
        (tmp_path / "orders.jsonl").write_bytes(b"".join(lines[:end]))

        async def again():
            async with Venue(config) as venue, aiohttp.ClientSession() as session:
                client = Client(venue.address, session)
                deadline = time.monotonic() + 10
                while any(o.status in ("pending_new", "pending_replace", "pending_cancel")
                          for o in venue.state.open_orders()):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.005)
                state = venue.state
                for order in state.open_orders():
                    if order.parent is not None:
                        parent = state.orders[order.parent]
                        assert parent.open or parent.status == "filled"
                held = state.held("ACME")
                exits_ = [o for o in state.open_orders("ACME") if o.parent and o.status != "held"]
                assert sum(o.left for o in exits_) <= max(held, 0)
                await client.ask("DELETE", "/v2/positions?cancel_orders=true")
                while state.open_orders() or state.held("ACME"):
                    assert time.monotonic() < deadline
                    await asyncio.sleep(0.005)
        asyncio.run(again())


@pytest.mark.venue
def test_kill_nine_leaves_legs_stops_and_replacements_as_they_were_told(tmp_path):
    arguments = ("--state", str(tmp_path), "--rate", "0", "--rate-limit", "0")

    async def trade(address):
        async with aiohttp.ClientSession() as session:
            client = Client(address, session)
            _, entry, _ = await client.order(type="market", tif="gtc", order_class="bracket",
                                             take_profit={"limit_price": "900"},
                                             stop_loss={"stop_price": "1"})
            await client.until(entry["id"], "filled")
            await client.until(entry["legs"][0]["id"], "new")
            _, trail, _ = await client.order(symbol="BOLT", type="trailing_stop", tif="gtc",
                                             trail_percent="5")
            await client.until(trail["id"], "new")
            _, old, _ = await client.order(symbol="CRUX", tif="gtc", price="1.00")
            await client.until(old["id"], "new")
            _, new, _ = await client.ask("PATCH", f"/v2/orders/{old['id']}", {"qty": "4"})
            await client.until(new["id"], "new")
            return await seen(client)

    async def seen(client):
        return [(await client.ask("GET", path))[1] for path in (
            "/v2/orders?status=all", "/v2/orders?status=all&nested=true",
            "/v2/account/activities", "/v2/account/configurations")]

    async def look(address):
        async with aiohttp.ClientSession() as session:
            return await seen(Client(address, session))

    with spawn(*arguments, key="PKTEST", secret="s3cret") as (process, address):
        before = asyncio.run(trade(address))
        process.kill()
        process.wait()
    with spawn(*arguments, key="PKTEST", secret="s3cret") as (_, address):
        assert asyncio.run(look(address)) == before
    assert {o["status"] for o in before[0]} == {"filled", "new", "held", "replaced"}


def test_trade_updates_in_messagepack_when_asked():
    async def test(venue, client):
        async with client.session.ws_connect(
                client.address["updates_stream"],
                headers={"Content-Type": "application/msgpack"}) as ws:
            async def say(**body):
                await ws.send_bytes(msgspec.msgpack.encode(body))
                message = await ws.receive(10)
                assert message.type is aiohttp.WSMsgType.BINARY
                return msgspec.msgpack.decode(message.data)
            reply = await say(action="auth", key=client.address["key"],
                              secret=client.address["secret"])
            assert reply["data"]["status"] == "authorized"
            await say(action="listen", data={"streams": ["trade_updates"]})
            await client.order(tif="day", price="1.00")
            update = msgspec.msgpack.decode((await ws.receive(10)).data)
            assert update["data"]["event"] == "pending_new"
    venue_test(test)


def test_cancel_all_tells_of_each_order():
    async def test(venue, client):
        made = [(await client.order(tif="day", price="1.00", symbol=s))[1]["id"]
                for s in ("ACME", "BOLT")]
        for id_ in made:
            await client.until(id_, "new")
        order = venue.state.orders[made[1]]
        venue.exchange.replace(order, {"qty": "3"}, 0)      # being replaced: not cancelable
        status, rows_, _ = await client.ask("DELETE", "/v2/orders")
        assert status == 207
        found = {r["id"]: r["status"] for r in rows_}
        assert (found[made[0]], found[made[1]]) == (200, 500)
    venue_test(test)
