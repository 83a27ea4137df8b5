"""No order passes that breaks a limit, each limit holds to the unit, and Decimal agrees."""
import itertools
import mmap
import os
import subprocess
import sys
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import _control, build, config, schema
from hftpipe._control import Control
from hftpipe._gate import Risk, token
from hftpipe.errors import ConfigError
from hftpipe.limits import LIMITS
from hftpipe.venue.orders import Refused, on_tick
from hftpipe.venue.traders import Instrument
from tests.models.risk_oracle import REASON, TIGHT, Oracle

A, B, E, R, T = (schema.ACTION, schema.BOOK_FLAG, schema.ORDER_EVENT_KIND, schema.REASON,
                 schema.ORDER_TYPE)
NANO = 10**9
SECOND = 10**9
NOW = 1000 * SECOND
STAGES = [f"stage{i}" for i in range(11)]
# What a test does not set is off, or so wide that it is not met.
WIDE = {**{x.name: x.default if x.off is None else "off: not in this test" for x in LIMITS},
        "max_order_shares": 10**6, "max_order_notional": 10**8, "max_position_shares": 10**6,
        "max_position_notional": 10**8, "max_total_notional": 10**9, "max_open_positions": 1000,
        "max_daily_loss": 10**6, "price_collar_bps": 1000, "max_orders_per_minute": 10000,
        "max_open_orders": 1000, "max_data_age_ms": 10000, "allow_short": True}


def row(record, **fields):
    out = np.zeros((), schema.dtype(record))
    for key, value in fields.items():
        out[key] = value
    return out


def instruments(count=3, tick=NANO // 100, lot=NANO, min_qty=NANO, flags=2):
    out = np.zeros(count, schema.dtype(schema.INSTRUMENT))
    out["tick"], out["lot"], out["min_qty"], out["flags"] = tick, lot, min_qty, flags
    return out


def identity(seq):
    return schema.event_id(schema.STREAM.SIGNAL, seq)


def book(instrument=0, bid="99.99", ask="100.01", ts=NOW, flags=0, last="0"):
    return row(schema.BOOK, instrument=instrument, bid=nano(bid), ask=nano(ask), ts_recv=ts,
               flags=flags, last_price=nano(last))


def nano(text):
    return int(Decimal(text) * NANO)


class Desk:
    """A gate with numbered intents and events."""

    def __init__(self, control=None, stage_count=0, capacity=64, count=3, flags=2, marked=True,
                 **limits):
        self.risk = Risk({**WIDE, **limits}, instruments(count, flags=flags), control, stage_count,
                         capacity)
        self.seq = self.events = 0
        if marked:
            for i in range(count):
                self.risk.mark(book(i))

    def intent(self, side=1, qty="1", price="100", instrument=0, seq=None, **more):
        self.seq = seq or self.seq + 1
        return row(schema.INTENT, **{
            "event": identity(self.seq), "cause": 9, "ts_recv": NOW - 5, "side": side,
            "qty": nano(qty), "price": nano(price), "instrument": instrument, "tif": 1,
            "type": T.MARKET if nano(price) == 0 else T.LIMIT, "action": A.NEW, **more})

    def check(self, *args, now=NOW, **more):
        reason, self.verdict, self.order = self.risk.check(self.intent(*args, **more), now)
        assert reason == self.verdict["reason"] == self.order["reason"]
        if reason and more.get("action") != A.CANCEL:
            assert self.order["action"] == A.DENIED and self.order["token"] == 0
        return R.label(reason).upper()

    def cancel(self, target, **more):
        return self.check(qty="0", action=A.CANCEL, target=target, **more)

    def event(self, seq, kind, cum="0", event=None, **more):
        self.events = event or self.events + 1
        self.risk.order_event(row(
            schema.ORDER_EVENT, order=identity(seq), kind=kind, cum_qty=nano(cum),
            event=schema.event_id(schema.STREAM.GATEWAY, self.events), **more))

    def hold(self, signed, instrument=0, price="100"):
        self.risk.seed(instrument, nano(signed), nano(price))


def page(key=0x1234567, version=3, halt=1, file=-1):
    """A control page that is armed."""
    memory = mmap.mmap(file, _control.SIZE)
    _control.format(memory, run=1, token_key=key, limits_version=version, halt_epoch=halt,
                    stages=STAGES)
    control = Control(memory)
    assert control.resume(halt)
    return control


# ---------------------------------------------------------------- each check, at and beyond

def test_halt_and_arming():
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=1, stages=STAGES)
    control = Control(memory)
    desk = Desk(control, 10)
    assert desk.check() == "HALTED", "never armed"
    assert control.resume(1) and desk.check() == "NONE"
    assert control.halt() == 2 and desk.check() == "HALTED"
    assert (desk.verdict["halt_epoch"], desk.verdict["limit"], desk.verdict["value"]) == (2, 1, 2)
    assert desk.cancel(2) == "NONE", "cancels pass while halted"
    assert control.halt() == 3 and not control.resume(2) and desk.check() == "HALTED"
    assert control.resume(3) and desk.check() == "NONE"
    assert Desk(None).check() == "NONE", "no page: always armed"


@pytest.mark.parametrize("stage", [0, 6, 9])
def test_a_full_store_link_closes_the_gate(stage):
    control = page()
    desk = Desk(control, 10)
    assert desk.check() == "NONE"
    control.stage(stage).store_full = True
    assert desk.check() == "STORE_FULL" and desk.verdict["value"] == stage
    control.halt()
    assert desk.check() == "HALTED", "the kill switch comes first"
    control.resume(2)
    control.stage(stage).store_full = False
    control.stage(10).store_full = True
    assert desk.check() == "NONE", "a block beyond stage_count is nobody's"


def test_unknown_instrument():
    desk = Desk()
    assert desk.check(instrument=2) == "NONE"
    assert desk.check(instrument=3) == "UNKNOWN_INSTRUMENT"
    assert desk.check(instrument=65535) == "UNKNOWN_INSTRUMENT"


@pytest.mark.parametrize("fields", [
    {"side": 0}, {"side": 2}, {"side": -128}, {"type": 0}, {"type": 6}, {"tif": 0}, {"tif": 7},
    {"type": T.STOP}, {"type": T.STOP_LIMIT}, {"type": T.TRAILING_STOP},
    {"qty": "0"}, {"qty": "-1"}, {"qty": "0.999999999"}, {"price": "-0.01"},
    {"price": "0", "type": T.LIMIT}, {"price": "100", "type": T.MARKET}, {"action": 0},
    {"action": A.DENIED}, {"action": 255}], ids=str)
def test_invalid_orders(fields):
    assert Desk().check(**fields) == "INVALID_ORDER"


@pytest.mark.parametrize(("fields", "limit"), [
    ({"qty": "1.5"}, NANO), ({"qty": "2.000000001"}, NANO),
    ({"price": "100.001"}, NANO // 100), ({"price": "100.000000001"}, NANO // 100)], ids=str)
def test_between_two_increments(fields, limit):
    desk = Desk()
    assert desk.check(**fields) == "INCREMENT"
    (asked,) = fields.values()
    assert (desk.verdict["limit"], desk.verdict["value"]) == (limit, nano(asked))
    assert desk.risk.exposure(0)["open_orders"] == 0 == len(desk.risk)


@pytest.mark.parametrize("symbol", ["AAPL", "BTC/USD"])
def test_the_gate_takes_the_prices_that_the_exchange_takes(symbol):
    """No 422 for a price: what passes here the exchange takes, what it would refuse stays here."""
    tick = 1000                                             # ours is finer than the exchange's
    flags = int(build.instruments(config.loads(
        f'[[instruments]]\nsymbol = "{symbol}"\nshortable = true', env={}))["flags"][0])
    venue = Instrument(symbol, 0, tick, NANO, deep="/" in symbol)
    steps = [0, *(s * n for s in (-1, 1) for n in (tick, NANO // 10**4, NANO // 200, NANO // 100))]
    seen = set()
    for price in (middle + step for middle in (NANO // 2, NANO, 20 * NANO) for step in steps):
        for name, fields in (
                ("limit_price", {"price": price, "type": T.LIMIT}),
                ("stop_price", {"stop": price, "type": T.STOP}),
                ("stop_price", {"stop": price, "price": price, "type": T.STOP_LIMIT}),
                ("trail_price", {"trail": price, "type": T.TRAILING_STOP})):
            try:
                taken = bool(on_tick(venue, price, name))
            except Refused as refused:
                assert "sub-penny" in str(refused)
                taken = False
            risk = Risk(WIDE, instruments(1, tick=tick, flags=flags))
            near = price if "price" in fields else 30 * NANO
            touch = near if fields["type"] != T.STOP and "stop" not in fields else NANO // 4
            risk.mark(row(schema.BOOK, bid=touch, ask=touch + NANO // 100, ts_recv=NOW))
            reason, verdict, _ = risk.check(row(
                schema.INTENT, event=identity(1), ts_recv=NOW - 5, side=1, qty=NANO, tif=1,
                action=A.NEW, **fields), NOW)
            assert R.label(reason) == ("none" if taken else "increment"), (fields, verdict)
            seen.add(taken)
    assert seen == ({True} if "/" in symbol else {True, False})


def test_every_valid_type_and_time_in_force_passes():
    desk = Desk()
    for tif in (1, 2, 3, 4, 5, 6):
        assert desk.check(tif=tif) == "NONE" and desk.check(price="0", tif=tif) == "NONE"


def test_smallest_quantity_may_be_above_the_lot():
    risk = Risk(WIDE, instruments(1, lot=NANO // 4, min_qty=NANO))
    desk = Desk()
    desk.risk = risk
    risk.mark(book())
    assert [desk.check(qty=q) for q in ("0.75", "1", "1.25", "1.1")] == [
        "INVALID_ORDER", "NONE", "NONE", "INCREMENT"]


def test_an_intent_is_used_once_whatever_became_of_it():
    desk = Desk()
    assert desk.check(seq=5) == "NONE"
    assert desk.check(seq=5) == "DUPLICATE"
    assert desk.check(seq=4) == "DUPLICATE"
    assert desk.check(seq=6, qty="1.5") == "INCREMENT"
    assert desk.check(seq=6) == "DUPLICATE"
    assert desk.check(seq=7) == "NONE"
    other = desk.intent(seq=1, event=schema.event_id(77, 1))
    assert desk.risk.check(other, NOW)[0] == R.NONE, "another stream counts for itself"
    assert desk.risk.check(desk.intent(seq=1, event=schema.event_id(78, 0)), NOW)[0] == R.DUPLICATE


def test_stale_data():
    desk = Desk(marked=False, max_data_age_ms=10)
    assert desk.check() == "STALE_DATA"
    desk.risk.mark(book())
    age = 10_000_000
    assert desk.check(now=NOW + age) == "NONE"
    assert desk.check(now=NOW + age + 1) == "STALE_DATA"
    assert (desk.verdict["limit"], desk.verdict["value"]) == (age, age + 1)
    for flag, wanted in ((B.STALE, "STALE_DATA"), (B.CROSSED, "STALE_DATA"),
                         (B.HALTED, "TRADING_HALT"), (B.EMPTY, "STALE_DATA"),
                         (B.LIMITED, "PRICE_BAND"), (B.HALTED | B.STALE, "TRADING_HALT"),
                         (B.HALTED | B.LIMITED, "TRADING_HALT"),
                         (B.LOCKED, "NONE"), (B.TRADE, "NONE")):
        desk.risk.mark(book(flags=flag))
        assert desk.check() == wanted
    desk.risk.mark(book(bid="0", ask="0", last="100"))
    assert desk.check() == "NONE", "without sides the last trade is the reference"
    assert desk.verdict["reference"] == nano("100")
    assert desk.check(price="0") == "STALE_DATA", "but a market order needs a touch"


def test_order_rate_is_an_exact_sliding_window():
    desk = Desk(max_orders_per_minute=3, max_data_age_ms=86400000)
    minute = 60 * SECOND
    for at in (0, 10, 20):
        assert desk.check(now=NOW + at) == "NONE"
    assert desk.check(now=NOW + minute - 1) == "ORDER_RATE"
    assert (desk.verdict["limit"], desk.verdict["value"]) == (3, 4)
    assert desk.check(now=NOW + minute) == "NONE", "the first is a minute old"
    assert desk.check(now=NOW + minute + 9) == "ORDER_RATE"
    assert desk.check(now=NOW + minute + 10) == "NONE"
    assert desk.check(now=NOW) == "ORDER_RATE", "a clock that steps back opens nothing"
    desk = Desk(max_orders_per_minute=1)
    assert [desk.check(), desk.check(qty="1.5"), desk.check()] == [
        "NONE", "INCREMENT", "ORDER_RATE"]
    assert desk.cancel(1) == "NONE", "a cancel is no order"


def beyond(reason, limit, value, at, *args, **more):
    """The desk accepts *at* and refuses one unit more, saying by how much."""
    make, accepted, refused = at
    desk = make()
    assert desk.check(**accepted) == "NONE", desk.verdict
    desk = make()
    assert desk.check(**refused) == reason, desk.verdict
    assert (desk.verdict["limit"], desk.verdict["value"]) == (nano(limit), nano(value))


def test_order_size():
    beyond("ORDER_SIZE", "50", "51", (lambda: Desk(max_order_shares=50), {"qty": "50"},
                                      {"qty": "51"}))


def test_order_notional():
    def make():
        return Desk(max_order_notional="5000")
    beyond("ORDER_NOTIONAL", "5000", "5000.5", (make, {"qty": "50"},
                                                {"qty": "50", "price": "100.01"}))
    # A sell far below the market trades at the bid; it is valued there.
    desk = make()
    assert desk.check(-1, "50", "95") == "NONE"
    assert desk.check(-1, "51", "95") == "ORDER_NOTIONAL"
    assert desk.verdict["value"] == nano("5099.49")


def test_order_notional_to_the_last_nanocash_and_less():
    limits = {"max_order_shares": 10**6, "max_order_notional": "1.000000001"}
    risk = Risk({**WIDE, **limits}, instruments(1, tick=1, lot=1, min_qty=1))
    desk = Desk()
    desk.risk = risk
    risk.mark(book(bid="1", ask="1.000000002"))
    assert desk.check(qty="1", price="1.000000001") == "NONE"
    assert desk.check(qty="1", price="1.000000002") == "ORDER_NOTIONAL"
    # 1.000000002 * 0.999999999 exceeds the limit by less than one nanocash
    assert desk.check(qty="0.999999999", price="1.000000002") == "NONE"
    assert desk.check(qty="1.000000001", price="1.000000001") == "ORDER_NOTIONAL"
    assert desk.verdict["value"] == 1_000_000_003, "1.000000002000000001, rounded up"


def test_market_orders_are_valued_above_the_touch():
    # The earlier code valued them at zero, so any size passed.
    desk = Desk(max_order_notional="10000", price_collar_bps=50)
    assert desk.check(qty="99", price="0") == "NONE"                # 99 * 100.51005
    assert desk.check(qty="100", price="0") == "ORDER_NOTIONAL"
    assert desk.verdict["value"] == nano("10051.005")
    assert desk.check(-1, "100", "0") == "ORDER_NOTIONAL"
    assert desk.verdict["value"] == nano("10048.995")               # 99.99 * 1.005


@pytest.mark.parametrize("side", [1, -1])
def test_price_collar(side):
    for price, wanted in (("100.5", "NONE"), ("99.5", "NONE"), ("100.51", "PRICE_COLLAR"),
                          ("99.49", "PRICE_COLLAR")):
        desk = Desk(price_collar_bps=50)
        assert desk.check(side, price=price) == wanted
        if wanted != "NONE":
            assert (desk.verdict["limit"], desk.verdict["value"]) == (50, 51)
            assert desk.verdict["reference"] == nano("100")


def test_a_market_order_into_a_wide_spread_is_refused():
    for half, wanted in (("0.5", "NONE"), ("0.51", "PRICE_COLLAR")):
        for side in (1, -1):
            desk = Desk(price_collar_bps=50)
            desk.risk.mark(book(bid=100 - Decimal(half), ask=100 + Decimal(half)))
            assert desk.check(side, price="0") == wanted


def test_an_order_may_flatten_but_not_turn_a_position():
    for held, side in (("10", -1), ("-10", 1)):
        desk = Desk()
        desk.hold(held)
        assert desk.check(side, "11") == "CROSSES_ZERO"
        assert desk.check(side, "6") == "NONE"
        assert desk.check(side, "5") == "CROSSES_ZERO", "with what is open already"
        assert desk.check(side, "4") == "NONE"
        assert desk.check(side, "1") == "CROSSES_ZERO"


def test_short_selling():
    desk = Desk(allow_short=False)
    assert desk.check(-1) == "SHORT_NOT_ALLOWED"
    assert Desk(flags=0).check(-1) == "SHORT_NOT_ALLOWED", "not shortable"
    assert Desk().check(-1) == "NONE"
    desk.hold("5")
    assert desk.check(-1, "5") == "NONE"
    assert desk.check(1, "5", "99") == "NONE"
    desk.event(2, E.FILL, "5")
    assert desk.check(-1, "1") == "SHORT_NOT_ALLOWED", "flat, whatever buy is still open"


@pytest.mark.parametrize("side", [1, -1])
def test_position_size_counts_what_is_open(side):
    desk = Desk(max_position_shares=100, max_order_shares=100)
    desk.hold(str(30 * side))
    assert desk.check(side, "50") == "NONE"
    assert desk.check(side, "21") == "POSITION_SIZE"
    assert (desk.verdict["limit"], desk.verdict["value"]) == (nano("100"), nano("101"))
    assert desk.check(side, "20") == "NONE"


def test_concurrent_orders_cannot_pass_each_alone():
    # The earlier code reserved nothing: N orders in flight each saw an empty portfolio.
    desk = Desk(max_position_shares=10, max_order_shares=10)
    assert [desk.check(qty="4") for _ in range(4)] == ["NONE", "NONE"] + ["POSITION_SIZE"] * 2


@pytest.mark.parametrize("side", [1, -1])
def test_position_notional(side):
    desk = Desk(max_position_notional="10000", max_order_notional="10000")
    desk.hold(str(30 * side))
    assert desk.check(side, "70") == "NONE"
    desk = Desk(max_position_notional="10000", max_order_notional="10000")
    desk.hold(str(30 * side))
    assert desk.check(side, "70", "100.01") == "POSITION_NOTIONAL"
    assert (desk.verdict["limit"], desk.verdict["value"]) == (nano("10000"), nano("10000.7"))


def test_total_notional():
    def make():
        desk = Desk(max_total_notional="20000", max_position_notional="10000",
                    max_order_notional="10000")
        desk.hold("-50", 1)
        assert desk.check(1, "50", instrument=2) == "NONE"
        return desk
    assert make().check(qty="100") == "NONE"
    desk = make()
    assert desk.check(-1, "50") == "NONE"
    assert desk.check(1, "50", "99.99") == "NONE", "the other side of one instrument is no sum"
    assert desk.check(1, "50", "99.99") == "NONE"
    assert desk.check(1, "1", "100.01", instrument=2) == "TOTAL_NOTIONAL"
    assert (desk.verdict["limit"], desk.verdict["value"]) == (nano("20000"), nano("20099.01"))


def test_total_notional_keeps_the_larger_side_of_each_instrument():
    desk = Desk(max_total_notional="20000", max_position_notional="10000",
                max_order_notional="10000")
    desk.hold("100", 1)
    assert desk.check(1, "100") == "NONE"
    assert desk.check(-1, "1", "100.01") == "NONE", "covered by the larger side"
    desk.risk.mark(book(1, bid="109.99", ask="110.01"))
    assert desk.check(-1, "1", "100.01") == "TOTAL_NOTIONAL", "the market has moved"
    assert desk.verdict["value"] == nano("21000")


def test_open_positions():
    desk = Desk(max_open_positions=2)
    desk.hold("1", 0)
    assert desk.check(instrument=1) == "NONE"
    assert desk.check(instrument=2) == "OPEN_POSITIONS"
    assert (desk.verdict["limit"], desk.verdict["value"]) == (2, 3)
    assert desk.check(instrument=0) == desk.check(instrument=1) == "NONE", "held already"
    desk.event(1, E.CANCELED)
    assert desk.check(instrument=2) == "OPEN_POSITIONS", "one more is open there"
    desk.event(4, E.REJECTED)
    assert desk.check(instrument=2) == "NONE"


def test_pending():
    desk = Desk(max_open_orders=2)
    assert [desk.check() for _ in range(3)] == ["NONE", "NONE", "PENDING"]
    assert (desk.verdict["limit"], desk.verdict["value"]) == (2, 3)
    assert desk.check(instrument=1) == "NONE"
    desk.event(1, E.PARTIAL_FILL, "0.5")
    assert desk.check() == "PENDING"
    desk.event(1, E.FILL, "1")
    assert desk.check() == "NONE"


def test_daily_loss_refuses_at_its_limit():
    desk = Desk(max_daily_loss=100)
    for pnl, wanted in (("-99.999999999", "NONE"), ("-100", "DAILY_LOSS"), ("-101", "DAILY_LOSS"),
                        ("5", "NONE")):
        desk.risk.position(row(schema.POSITION, day_pnl=nano(pnl)))
        assert desk.check() == wanted
    desk.risk.position(row(schema.POSITION, day_pnl=-2**63))
    assert desk.check() == "DAILY_LOSS" and desk.verdict["value"] == 2**63 - 1


def test_wash_trades():
    desk = Desk()
    assert desk.check(-1, price="100.05") == "NONE"
    assert desk.check(1, price="100.05") == "WASH_TRADE"
    assert desk.verdict["limit"] == nano("100.05")
    assert desk.check(1, price="100.04") == "NONE"
    assert desk.check(1, price="0") == "WASH_TRADE"
    assert desk.check(-1, price="100.04") == "WASH_TRADE"
    assert desk.check(-1, price="0") == "WASH_TRADE"
    assert desk.check(1, price="100.05", instrument=1) == "NONE"
    desk.event(1, E.CANCELED)
    assert desk.check(1, price="0") == "NONE"
    assert desk.check(-1, price="105") == "WASH_TRADE", "an open market buy meets any price"


def test_the_best_of_our_prices_is_found_again_when_it_goes():
    desk = Desk()
    for price in ("100.03", "100.01", "100.02"):
        assert desk.check(-1, price=price) == "NONE"
    for seq, best in ((2, "100.02"), (1, "100.02"), (3, None)):
        desk.event(seq, E.EXPIRED)
        assert desk.risk.exposure(0)["best_sell"] == (nano(best) if best else 0)


def test_table_full():
    desk = Desk(capacity=4)
    assert [desk.check(instrument=i % 3) for i in range(5)] == ["NONE"] * 4 + ["TABLE_FULL"]
    assert (desk.verdict["limit"], desk.verdict["value"]) == (4, 5)
    desk.event(2, E.DROPPED)
    assert [desk.check(), desk.check()] == ["NONE", "TABLE_FULL"]


def test_overflow_is_a_reject():
    top = str(Decimal(2**63 - 1) / NANO)
    huge = {"max_order_shares": top, "max_position_shares": top, "max_order_notional": top,
            "max_position_notional": top, "max_total_notional": top}
    risk = Risk({**WIDE, **huge}, instruments(2, tick=1, lot=1, min_qty=1))
    desk = Desk()
    desk.risk = risk
    for i in range(2):
        risk.mark(book(i, bid="1", ask="1"))
    assert desk.check(qty=top, price="1") == "NONE", "worth exactly what nanocash holds"
    desk.event(1, E.CANCELED)
    risk.mark(book(bid="1.000000001", ask="1.000000001"))
    assert desk.check(qty=top, price="1.000000001") == "OVERFLOW", "the order's value"
    desk.event(1, E.CANCELED)
    risk.mark(book(bid="0.5", ask="0.5"))
    assert desk.check(qty=top, price="0.5") == "NONE"
    assert desk.check(qty="0.000000001", price="0.5") == "OVERFLOW", "the quantity"
    assert desk.check(qty=top, price="1", instrument=1) == "OVERFLOW", "the total"
    risk.mark(book(1, bid=top, ask=top))
    assert desk.check(qty="0.000000001", price="0", instrument=1) == "OVERFLOW", "touch + collar"
    assert desk.risk.counters()["overflow"] == 4


# ---------------------------------------------------------------- reducing, cancels, orders

@pytest.mark.parametrize("side", [1, -1])
def test_an_order_that_reduces_passes_though_limits_are_exceeded(side):
    # The earlier code added the order's value whatever its side, so nothing could be closed.
    limits = {"max_position_shares": 10, "max_order_shares": 10, "max_order_notional": 1000,
              "max_position_notional": 1000, "max_total_notional": 1000, "max_open_positions": 1}
    desk = Desk(**limits)
    desk.hold(str(-50 * side), 0)
    desk.hold(str(-50 * side), 1)
    desk.risk.position(row(schema.POSITION, day_pnl=nano("-2000000")))
    assert desk.check(-side, "1") == "POSITION_SIZE"
    assert desk.check(side, "9") == "NONE"
    assert desk.check(side, "11") == "ORDER_SIZE", "limits of one order hold for all"
    assert desk.check(side, "1", instrument=2) == "TOTAL_NOTIONAL"


def test_cancel():
    desk = Desk()
    assert desk.cancel(1) == "NOT_OPEN"
    assert desk.order["action"] == A.DENIED and desk.order["order"] == identity(1)
    assert desk.check(-1, "7", "100.5", instrument=2) == "NONE"
    assert desk.cancel(2, instrument=99, side=0) == "NONE"
    assert (desk.order["action"], desk.order["order"], desk.order["qty"], desk.order["price"],
            desk.order["side"], desk.order["instrument"]) == (
        A.CANCEL, identity(2), nano("7"), nano("100.5"), -1, 2)
    assert desk.verdict["order"] == identity(3) and desk.verdict["instrument"] == 2
    desk.event(2, E.PARTIAL_FILL, "3")
    assert desk.cancel(2) == "NONE"
    desk.event(2, E.CANCELED, "3")
    assert desk.cancel(2) == "NOT_OPEN" and desk.order["order"] == identity(5)
    assert desk.cancel(0) == "NOT_OPEN"
    assert desk.risk.counters()["cancels"] == 2 and desk.risk.counters()["not_open"] == 3


def test_the_order_is_the_intent_with_a_token():
    desk = Desk(page(halt=7), 10)
    intent = desk.intent(-1, "3", "100.5", 1, strategy=4, tif=3)
    reason, verdict, order = desk.risk.check(intent, NOW)
    assert reason == 0 and order["hop"] == 5 and order["action"] == A.NEW
    for field in ("cause", "ts_recv", "price", "qty", "instrument", "side", "type", "tif",
                  "strategy"):
        assert order[field] == intent[field]
    assert order["order"] == verdict["order"] == intent["event"]
    assert order["token"] == verdict["token"] == token(0x1234567, order, 7, 3) != 0
    assert verdict["halt_epoch"] == 7 and desk.risk.limits_version == 3
    assert desk.risk.check(desk.intent(ts_recv=0), 2**62)[2]["hop"] == 2**32 - 1
    assert desk.risk.check(desk.intent(ts_recv=NOW + 1), NOW)[2]["hop"] == 0


def test_a_token_is_bound_to_every_field_the_epoch_and_the_version():
    order = row(schema.ORDER, order=5, price=6, qty=7, instrument=8, side=1, type=2, tif=1,
                action=A.NEW)
    tokens = [token(1, order, 2, 3), token(9, order, 2, 3), token(1, order, 9, 3),
              token(1, order, 2, 9)]
    for field in ("order", "price", "qty", "instrument", "side", "type", "tif", "action"):
        changed = order.copy()
        changed[field] = -1 if field == "side" else 3 if field == "action" else 99
        tokens.append(token(1, changed, 2, 3))
    assert len(set(tokens)) == len(tokens)
    free = order.copy()
    free["ts_recv"], free["hop"], free["token"], free["link_seq"] = 1, 2, 3, 4
    assert token(1, free, 2, 3) == tokens[0], "what is not sent is not bound"
    order["action"] = A.CANCEL
    assert token(1, order, 2, 3) == token(1, order, 9, 9), "a cancel outlives a halt"
    assert token(1, order, 2, 3) != token(2, order, 2, 3)


def test_tokens_are_spread_and_never_zero():
    order = row(schema.ORDER, order=1, price=1, qty=1, side=1, type=2, tif=1, action=1)
    seen, ones = set(), np.zeros(32)
    for n in range(20000):
        order["price"] = n
        t = token(1, order, 1, 1)
        assert t
        seen.add(t)
        ones += [t >> k & 1 for k in range(32)]
    assert len(seen) >= 19998               # of 2**32: 0.05 collisions are expected
    assert abs(ones / 20000 - 0.5).max() < 0.02


# ---------------------------------------------------------------- reservations

def test_a_fill_moves_position_and_reservation_together():
    desk = Desk()
    assert desk.check(1, "10", "99") == "NONE"
    for kind, cum, wanted in ((E.SENT, "0", ("0", "10")), (E.ACKED, "0", ("0", "10")),
                              (E.PARTIAL_FILL, "4", ("4", "6")), (E.UNKNOWN, "4", ("4", "6")),
                              (E.CANCEL_SENT, "4", ("4", "6")),
                              (E.CANCEL_REJECTED, "4", ("4", "6")),
                              (E.CANCELED, "4", ("4", "0")), (E.PARTIAL_FILL, "5", ("5", "0"))):
        desk.event(1, kind, cum)
        exposure = desk.risk.exposure(0)
        assert (exposure["qty"], exposure["open_buy"]) == tuple(map(nano, wanted))
    assert desk.risk.exposure(0)["worst"] == nano("500")
    assert len(desk.risk) == 0


@pytest.mark.parametrize("kind", [E.FILL, E.CANCELED, E.REJECTED, E.EXPIRED, E.DROPPED, E.DENIED,
                                  E.REPLACED])
def test_every_end_releases_and_comes_twice_without_harm(kind):
    desk = Desk()
    desk.check(-1, "10")
    cum = "10" if kind == E.FILL else "0"
    for _ in range(3):
        desk.event(1, kind, cum)
    exposure = desk.risk.exposure(0)
    assert exposure["open_sell"] == exposure["open_orders"] == exposure["best_sell"] == 0
    assert exposure["qty"] == -nano(cum) and len(desk.risk) == 0


def test_events_in_any_order_move_the_position_once():
    events = [(E.ACKED, "0"), (E.PARTIAL_FILL, "4"), (E.PARTIAL_FILL, "7"), (E.CANCELED, "7"),
              (E.PARTIAL_FILL, "4")]
    for permutation in itertools.permutations(events):
        desk = Desk()
        desk.check(1, "10")
        for kind, cum in permutation:
            desk.event(1, kind, cum)
            exposure = desk.risk.exposure(0)
            assert exposure["qty"] + exposure["open_buy"] in (nano("10"), exposure["qty"])
        exposure = desk.risk.exposure(0)
        assert (exposure["qty"], exposure["open_buy"], len(desk.risk)) == (nano("7"), 0, 0)


def test_a_fill_of_a_forgotten_order_counts_when_it_is_new():
    desk = Desk()
    more = {"qty": NANO, "side": -1, "instrument": 1, "price": nano("100")}
    desk.event(500, E.PARTIAL_FILL, "1", **more)
    desk.event(500, E.PARTIAL_FILL, "1", event=1, **more)
    desk.event(500, E.CANCELED, "1", **more)
    assert desk.risk.exposure(1)["qty"] == -NANO and desk.risk.counters()["orphans"] == 1
    desk.event(500, E.FILL, "1", **{**more, "instrument": 9})
    assert desk.risk.counters()["unknown"] == 1


def test_a_seeded_position_without_a_mark_is_valued_but_not_traded():
    desk = Desk(marked=False)
    desk.hold("5", price="80")
    assert desk.risk.exposure(0)["worst"] == nano("400")
    assert desk.check(now=0) == "STALE_DATA"


def test_limits_use():
    desk = Desk()
    desk.hold("-5", 1)
    desk.check(1, "7", "99")
    desk.check(1, "2", "99")
    desk.risk.position(row(schema.POSITION, day_pnl=nano("-12.5")))
    use = {u.name: u for u in desk.risk.limits_use(NOW)}
    assert list(use) == [limit.name for limit in LIMITS]
    assert use["max_position_shares"].use == nano("9")
    assert use["max_position_notional"].use == nano("891")
    assert use["max_total_notional"].use == nano("1391")
    assert use["max_open_positions"][2:] == (1000, 2)
    assert use["max_daily_loss"].use == nano("12.5")
    assert use["max_orders_per_minute"].use == use["max_open_orders"].use == 2
    assert use["max_order_shares"].use == -1
    assert {u.name: u.use for u in desk.risk.limits_use(NOW + 60 * SECOND)}[
        "max_orders_per_minute"] == 0


# ---------------------------------------------------------------- the twin

@given(st.integers(0, 2**32), st.integers(1, 250))
@settings(max_examples=30, deadline=None)
def test_agrees_with_the_twin(seed, orders):
    Oracle(seed, control=page()).run(orders, every=3)


# Of the gateway, of tables that nothing fills here, and of numbers that no market makes.
ELSEWHERE = {"TOKEN", "EXPIRED", "BUSY", "DISCONNECTED", "VENUE", "LIMITS", "OVERFLOW",
             "NOT_OPEN", "ABSENT"} | {name for name in REASON.values() if name.startswith("VENUE_")}


def test_agrees_with_the_twin_for_longer_and_meets_every_reason():
    seen = Counter()
    for seed in range(len(TIGHT)):                  # each limit is tight once
        seen += Oracle(seed, control=page()).run(900, every=100)
    wanted = set(REASON.values()) - ELSEWHERE | {"CANCEL NONE", "CANCEL NOT_OPEN"}
    assert set(seen) >= wanted, wanted - set(seen)


# 100144: a check without a limit refused; 102503: looking for an order that is not there for ever.
@pytest.mark.parametrize("seed", [100144, 102503])
def test_agrees_with_the_twin_where_it_once_did_not(seed):
    Oracle(seed).run(2000, every=500)


# ---------------------------------------------------------------- another process halts

HALTER = """
import mmap, sys
from hftpipe._control import Control
with open(sys.argv[1], "r+b") as file:
    control = Control(mmap.mmap(file.fileno(), 0))
sys.stdin.read(1)
print(control.halt(), flush=True)
"""


def test_a_halt_by_another_process_refuses_the_next_check(tmp_path):
    path = tmp_path / "control"
    path.write_bytes(bytes(_control.SIZE))
    with path.open("r+b") as file:
        control = page(halt=4, file=file.fileno())
    desk = Desk(control, 10, capacity=1 << 16, max_orders_per_minute=1000000)
    halter = subprocess.Popen(
        [sys.executable, "-c", HALTER, os.fspath(path)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.fspath(Path(schema.__file__).parent.parent)})
    try:
        assert [desk.check() for _ in range(100)] == ["NONE"] * 100
        halter.stdin.write(b"x")
        halter.stdin.flush()
        answers, deadline = ["NONE"], time.monotonic() + 60
        while answers[-1] == "NONE" and time.monotonic() < deadline:
            answers.append(desk.check())            # while it happens
            desk.event(desk.seq, E.CANCELED)
        assert answers[-1] == "HALTED" and set(answers[:-1]) == {"NONE"}
        assert halter.stdout.readline() == b"5\n"
        assert {desk.check() for _ in range(100)} == {"HALTED"}, "once halted, for ever"
        assert desk.verdict["halt_epoch"] == 5
        assert not control.resume(4) and desk.check() == "HALTED", "cannot erase a later halt"
        assert control.resume(5) and desk.check() == "NONE"
    finally:
        halter.communicate(timeout=60)


# ---------------------------------------------------------------- arguments

def test_instruments_and_sizes_are_checked():
    with pytest.raises(ConfigError, match="wanted a vector of INSTRUMENT"):
        Risk(WIDE, np.zeros(3))
    with pytest.raises(ConfigError, match="wanted 1 to 65536, found 0"):
        Risk(WIDE, instruments(0))
    for bad in ({"tick": 0}, {"lot": 0}, {"min_qty": -1}):
        with pytest.raises(ConfigError, match="instrument 0: wanted tick and lot above 0"):
            Risk(WIDE, instruments(1, **bad))
    with pytest.raises(ValueError, match=r"capacity must be a power of two.*was 3"):
        Risk(WIDE, instruments(1), None, 0, 3)
    with pytest.raises(ValueError, match="stage_count must be 0 to 16, was 17"):
        Risk(WIDE, instruments(1), None, 17)
    risk = Risk(WIDE, instruments(1))
    with pytest.raises(IndexError, match="below 1, was 1"):
        risk.exposure(1)
    with pytest.raises(ValueError, match="record is 128 bytes, was 1"):
        risk.check(b"x", 0)
    risk.seed(0, NANO, NANO)
    with pytest.raises(ValueError, match="without position"):
        risk.seed(0, NANO, NANO)
    risk.mark(book(9))
    assert risk.counters()["unknown"] == 1
