"""Every pre-trade check passes at its limit and refuses one unit beyond, through the risk stage.

Records go in by the rings and orders come out of them, as in a run; the clock is virtual, so that
also ages and windows are met to the nanosecond.  `CASES` has every reason of the gate: a new one
without a case fails.
"""
import mmap

import numpy as np
import pytest

from hftpipe import _clock, _control, build, config, schema, topology
from hftpipe.backtest._sim import SimWire
from tests.chain import table
from tests.models.risk_oracle import LOOSE

NANO, MS, T0 = 10**9, 10**6, 10**15
MINUTE = 60 * NANO
REASON, KIND = schema.REASON, schema.FIGURE_KIND
LIMIT, MARKET, IOC = schema.ORDER_TYPE.LIMIT, schema.ORDER_TYPE.MARKET, schema.TIF.IOC
STOP, STOP_LIMIT, TRAILING = (schema.ORDER_TYPE.STOP, schema.ORDER_TYPE.STOP_LIMIT,
                              schema.ORDER_TYPE.TRAILING_STOP)
#: Given by the gateway or the venue: what these see is below, and in the tests of wire and orders.
LATER = {"absent", "token", "expired", "limits", "busy", "disconnected", "venue",
         *(name.lower() for name, _, _ in REASON.members if name.startswith("VENUE_"))}


def nano(x):
    return round(x * NANO)


class Gate:
    """A risk stage between its rings; every figure is there and harmless."""

    def __init__(self, count=3, equity=10_000_000, peak=None, **limits):
        self.links = build.PrivateLinks()
        cfg = config.loads("", env={})
        object.__setattr__(cfg, "risk", {**LOOSE, **limits})
        self.table = table(count)
        self.table["flags"] = 2                         # may be sold short
        memory = mmap.mmap(-1, _control.SIZE)
        _control.format(memory, run=1, token_key=7, limits_version=1,
                        stages=[s.name for s in topology.STAGES])
        self.control = _control.Control(memory)
        self.control.resume(self.control.halt_epoch)
        (self.stage,) = build.stages(("risk",), self.links, cfg, self.table, control=self.control)
        self.intents, self.marks, self.events, self.positions, self.outside = (
            self.links.producer(n) for n in ("signal.risk", "book.risk", "gateway.risk",
                                             "ledger.risk", "analyst.risk"))
        self.out, self.store = self.links.consumer("risk.gateway"), self.links.consumer(
            "risk.store")
        self.seq = self.event = 0
        self.passed = None
        self.at(T0)
        for kind, value in (("equity", nano(equity)), ("peak", nano(peak or equity)),
                            ("week_pnl", 0), ("month_pnl", 0), ("var_95", 0), ("var_99", 0)):
            self.figure(kind, value)
        for i in range(count):
            for kind, value in (("session", schema.SESSION.OPEN), ("sector", 1 + i),
                                ("unit_var_95", nano(0.02)), ("unit_var_99", nano(0.03)),
                                ("volatility", nano(0.01)), ("volume", nano(10**6)),
                                ("volume_ratio", nano(2))):
                self.figure(kind, value, i)
            for other in range(i):
                self.figure("correlation", nano(0.1), i, other)
            self.book(i)

    def at(self, now):
        self.now = now
        _clock.set_virtual(now, now)

    def push(self, ring, record, **fields):
        row = np.zeros(1, schema.dtype(record))[0]
        for name, value in fields.items():
            row[name] = value
        assert ring.push(row.tobytes())
        self.work()

    def work(self):
        while self.stage.do_work(64):
            pass

    def figure(self, kind, value, instrument=0, other=0, until=0, basis=0):
        self.push(self.outside, schema.FIGURE, kind=getattr(KIND, kind.upper()), value=value,
                  instrument=instrument, other=other, ts_computed=self.now,
                  until=until or self.now + 3600 * NANO, basis=basis)

    def book(self, i=0, bid=100.0, ask=100.02, last=100.01, flags=0):
        self.push(self.marks, schema.BOOK, instrument=i, bid=nano(bid), ask=nano(ask),
                  last_price=nano(last), ts_recv=self.now, flags=flags)

    def position(self, i=0, **fields):
        self.push(self.positions, schema.POSITION, instrument=i, **fields)

    def ask(self, side=1, qty=1, price=100.01, i=0, kind=LIMIT, step=MS, **fields):
        """Send an intent; the reason by name.  Verdict and order must agree."""
        self.at(self.now + step)
        self.seq += 1
        event = fields.pop("event", schema.event_id(schema.STREAM.SIGNAL, self.seq))
        self.push(self.intents, schema.INTENT, **{
            "event": event, "ts_recv": self.now, "instrument": i, "side": side, "qty": nano(qty),
            "price": nano(price) if kind == LIMIT else 0, "type": kind, "tif": IOC,
            "action": schema.ACTION.NEW, **fields})
        # Ours is the last: an open breaker takes back what is open before it looks at it.
        while (data := self.out.pop()) is not None:
            order = np.frombuffer(data, schema.dtype(schema.ORDER))[0]
        self.out.flush()
        verdict = None
        while (slot := self.store.pop()) is not None:
            head = np.frombuffer(slot[:64], schema.dtype(schema.ENVELOPE))[0]
            if schema.BODIES[int(head["record"])] is schema.VERDICT:
                verdict = np.frombuffer(slot[64:128], schema.dtype(schema.VERDICT))[0]
        self.store.flush()
        assert verdict["reason"] == order["reason"] and verdict["order"] == event
        if verdict["reason"]:
            assert order["action"] == schema.ACTION.DENIED and order["token"] == 0
        else:
            assert order["action"] == fields.get("action", schema.ACTION.NEW)
            assert order["token"] == verdict["token"] != 0
        self.verdict, self.order = verdict, order
        self.passed = self.passed if verdict["reason"] else order
        return REASON.label(int(verdict["reason"]))

    def step(self, kind, order=None):
        """A step in the life of *order*, or of the last one that passed."""
        self.event += 1
        self.last = self.passed if order is None else order
        self.push(self.events, schema.ORDER_EVENT,
                  event=schema.event_id(schema.STREAM.GATEWAY, self.event),
                  order=self.last["order"], kind=getattr(schema.ORDER_EVENT_KIND, kind.upper()),
                  instrument=self.last["instrument"])

    def fill(self, qty=None):
        """The order asked for last fills, or a part of it does."""
        self.event += 1
        full = int(self.order["qty"])
        qty = full if qty is None else nano(qty)
        kind = schema.ORDER_EVENT_KIND
        self.push(self.events, schema.ORDER_EVENT,
                  event=schema.event_id(schema.STREAM.GATEWAY, self.event),
                  order=self.order["order"], kind=kind.FILL if qty == full else kind.PARTIAL_FILL,
                  cum_qty=qty, qty=qty, side=self.order["side"], price=self.order["price"],
                  instrument=self.order["instrument"])


@pytest.fixture(autouse=True)
def real_clock():
    yield
    _clock.unset_virtual()


# Each case yields (what was asked, the answer) for what must pass, then for what must not; an
# answer "none" is an order that may leave.

def halted():
    g = Gate()
    yield g.ask()
    g.control.halt()
    yield g.ask()


def store_full():
    g = Gate()
    yield g.ask()
    g.control.stage(0).store_full = True
    yield g.ask(qty=2)


def unsettled():
    """Updates are down: nothing passes, whatever it does to the position."""
    g = Gate()
    yield g.ask()
    g.control.stage(topology.INDEX["updates"]).set("unsettled", 1)
    yield g.ask(qty=2)
    g.position(qty=nano(5))
    g.control.stage(topology.INDEX["updates"]).set("unsettled", 0)
    yield g.ask(side=-1, qty=2, price=100.02)
    g.control.stage(topology.INDEX["updates"]).set("unsettled", 1)
    yield g.ask(side=-1, qty=1, price=100.02)


def unresolved():
    """As long as an order of the instrument has no answer; others go on."""
    g = Gate()
    yield g.ask()
    first = g.order
    g.step("unknown")
    yield g.ask(qty=2)
    yield g.ask(qty=3, i=1)
    g.step("cancel_sent", first)
    yield g.ask(qty=4)
    g.step("unknown", first)            # said twice is one
    g.step("acked", first)
    yield g.ask(qty=5)
    g.step("unknown")
    yield g.ask(qty=6)
    g.step("rejected", g.last)
    yield g.ask(qty=7)
    g.step("unknown")
    yield g.ask(qty=8)
    g.event -= 2                        # what is not newer and ends it, ends this too
    g.step("canceled", g.last)
    yield g.ask(qty=9)
    g.event += 2
    g.step("unknown")
    yield g.ask(qty=10)


def unknown_instrument():
    g = Gate(3)
    yield g.ask(i=2)
    yield g.ask(i=3)


def breaker():
    g = Gate()
    yield g.ask()
    g.figure("breaker", schema.BREAKER.OPEN)
    yield g.ask(qty=2)


def breaker_half_open():
    """Exactly one test order."""
    g = Gate()
    g.figure("breaker", schema.BREAKER.HALF_OPEN)
    yield g.ask()
    yield g.ask(qty=2)


def paused():
    g = Gate()
    g.figure("pause", 1, 1)
    yield g.ask(i=0)
    yield g.ask(i=1)


def restricted():
    g = Gate()
    g.figure("restrict", 1, 1)
    yield g.ask(i=0)
    yield g.ask(i=1)


def stale_data():
    g = Gate(max_data_age_ms=500)
    yield g.ask(step=500 * MS)
    yield g.ask(step=1)


def flagged(*flags):
    def case():
        for flag in flags:
            g = Gate()
            yield g.ask()
            g.book(flags=getattr(schema.BOOK_FLAG, flag))
            yield g.ask(qty=2)
    return case


def duplicate():
    """The same intent a second time."""
    g = Gate()
    first = schema.event_id(schema.STREAM.SIGNAL, 10)
    yield g.ask(event=first)
    yield g.ask(qty=2, event=first)


def duplicate_order():
    g = Gate(duplicate_window_ms=500)
    assert g.ask() == "none"
    yield g.ask(step=500 * MS)
    yield g.ask(step=500 * MS - 1)


def price_low():
    g = Gate(min_price=100)
    yield g.ask(side=1, price=100)
    yield g.ask(side=1, price=99.99)


def price_high():
    g = Gate(max_price="100.02")
    yield g.ask(price=100.02)
    yield g.ask(price=100.03)


def order_size():
    g = Gate(max_order_shares=40)
    yield g.ask(qty=40)
    yield g.ask(qty=41)


def order_notional():
    g = Gate(max_order_notional=4000)
    yield g.ask(qty=40, price=100)
    yield g.ask(qty=40, price=100.01)


def order_small():
    g = Gate(min_order_notional=1000)
    yield g.ask(qty=10, price=100)
    yield g.ask(qty=10, price=99.99)


def order_rate():
    """Any sixty seconds, exactly: the tenth of a minute ago no longer counts, to the ns."""
    g = Gate(max_orders_per_minute=10, max_data_age_ms=600_000)
    for n in range(10):
        assert g.ask(qty=1 + n, step=NANO) == "none"
    yield g.ask(qty=20, step=MINUTE - 9 * NANO)
    yield g.ask(qty=21, step=NANO - 1)


def orders_per_day():
    g = Gate(max_orders_per_day=3)
    assert [g.ask(qty=1), g.ask(qty=2)] == ["none", "none"]
    yield g.ask(qty=3)
    yield g.ask(qty=4)


def repeated():
    g = Gate(max_strategy_orders=3)
    assert [g.ask(qty=1), g.ask(qty=2)] == ["none", "none"]
    yield g.ask(qty=3)
    yield g.ask(qty=4)


def crosses_zero():
    g = Gate()
    assert g.ask(qty=10) == "none"
    g.fill()
    yield g.ask(side=-1, qty=10)
    g = Gate()
    assert g.ask(qty=10) == "none"
    g.fill()
    yield g.ask(side=-1, qty=11)


def short_not_allowed():
    g = Gate(allow_short=False)
    yield g.ask(side=1)
    yield g.ask(side=-1, i=1)


def position_size():
    g = Gate(max_position_shares=60, max_order_shares=60)
    assert g.ask(qty=30) == "none"
    yield g.ask(qty=30, price=100)
    yield g.ask(qty=1, price=99.99)


def position_notional():
    g = Gate(max_position_notional=5000, max_order_notional=5000)
    yield g.ask(qty=50, price=100)
    yield g.ask(qty=1, price=95.01)


def total_notional():
    g = Gate(max_total_notional=9000, max_position_notional=9000, max_order_notional=9000)
    assert g.ask(qty=50, price=100) == "none"
    yield g.ask(qty=40, price=100, i=1)
    yield g.ask(qty=1, price=95.01, i=2)


def open_positions():
    g = Gate(max_open_positions=2)
    assert g.ask(i=0) == "none"
    yield g.ask(i=1)
    yield g.ask(i=2)


def pending():
    g = Gate(max_open_orders=2)
    assert g.ask(qty=1) == "none"
    yield g.ask(qty=2)
    yield g.ask(qty=3)


def losses(name):
    """A loss refuses when it reaches its limit: a unit less passes."""
    def case():
        g = Gate(breaker_daily_loss=10_000, **{
            "day": {"max_daily_loss": 50},
            "week_pnl": {"max_daily_loss": 40, "max_weekly_loss": 50},
            "month_pnl": {"max_daily_loss": 40, "max_weekly_loss": 45, "max_monthly_loss": 50},
        }[name])
        for loss in (50 * NANO - 1, 50 * NANO):
            if name == "day":
                g.position(day_pnl=-loss)
            else:
                g.figure(name, -loss)
            yield g.ask(qty=1 + loss % 2)
    return case


def trade_loss():
    """What the position has lost."""
    g = Gate(max_trade_loss=60)
    g.position(unrealised=-nano(60))
    yield g.ask()
    g.position(unrealised=-nano(60) - 1)
    yield g.ask(qty=2)


def trade_loss_at_the_stop():
    """What it would lose at its stop: 150 bps of 4,000 are 60."""
    g = Gate(max_trade_loss=60, stop_distance_bps=150)
    yield g.ask(qty=40, price=100)
    yield g.ask(qty=1, price=95.01)


def concentration():
    g = Gate(equity=80_000, max_symbol_share_bps=500)
    yield g.ask(qty=40, price=100)
    yield g.ask(qty=1, price=95.01)


def sector():
    g = Gate(equity=80_000, max_sector_share_bps=1000, max_symbol_share_bps=1000)
    g.figure("sector", 1, 1)
    assert g.ask(qty=40, price=100, i=0) == "none"
    yield g.ask(qty=40, price=100, i=1)
    yield g.ask(qty=1, price=95.01, i=1)


def var(number, share):
    def case():
        limit = {f"max_var_{number}": 400}
        g = Gate(**({"max_var_95": 400, "max_var_99": 400} if number == 99 else limit))
        if number == 99:                                # so that the other one does not come first
            for i in range(3):
                g.figure("unit_var_95", nano(0.001), i)
                g.figure("unit_var_99", nano(share), i)
        g.figure(f"var_{number}", nano(200))
        yield g.ask(qty=200 / share / 100, price=100)
        yield g.ask(qty=1, price=95.01)
    return case


def drawdown():
    g = Gate(equity=95_010, peak=100_000, drawdown_warn_bps=300, drawdown_act_bps=500)
    yield g.ask()
    g.figure("equity", nano(95_000))
    yield g.ask(qty=2)


def correlation():
    g = Gate(max_correlation="0.7")
    g.figure("correlation", nano(0.7), 1, 0)
    g.figure("correlation", nano(0.7) + 1, 2, 0)
    assert g.ask(i=0) == "none"
    yield g.ask(i=1)
    yield g.ask(i=2)


def volatility():
    g = Gate(max_volatility_bps=500, base_volatility_bps=500)
    g.figure("volatility", nano(0.05))
    yield g.ask()
    g.figure("volatility", nano(0.05) + 1)
    yield g.ask(qty=2)


def leverage():
    g = Gate(equity=40_000, max_leverage="0.1")
    yield g.ask(qty=40, price=100)
    yield g.ask(qty=1, price=95.01, i=1)


def hours():
    for session in ("CLOSED", "PRE", "AFTER", "BLACKOUT"):
        g = Gate(allow_afterhours=False)
        yield g.ask()
        g.figure("session", getattr(schema.SESSION, session))
        yield g.ask(qty=2)


def price_collar():
    """Half a cent is 0.5 bps here: the reference is 100.01."""
    g = Gate(price_collar_bps=50)
    yield g.ask(price=100.51)                           # 49.995 bps
    yield g.ask(price=100.52)


def last_collar():
    g = Gate(last_collar_bps=100)
    g.book(last=100.0)
    yield g.ask(price=101)
    yield g.ask(price=101.01)


def order_volume():
    g = Gate(max_order_volume_bps=500)
    g.figure("volume", nano(800))
    yield g.ask(qty=40)
    yield g.ask(qty=41)


def position_volume():
    g = Gate(max_position_volume_bps=1000)
    g.figure("volume", nano(800))
    assert g.ask(qty=40) == "none"
    yield g.ask(qty=40, price=100)
    yield g.ask(qty=1, price=99.99)


def spread():
    g = Gate(max_spread_bps=20, price_collar_bps=500)
    g.book(bid=99.90, ask=100.10)                       # 20 bps of 100
    yield g.ask(price=100)
    g.book(bid=99.90, ask=100.11)
    yield g.ask(qty=2, price=100)


def volume_ratio():
    g = Gate(min_volume_ratio="1.05")
    g.figure("volume_ratio", nano(1.05))
    yield g.ask()
    g.figure("volume_ratio", nano(1.05) - 1)
    yield g.ask(qty=2)


def wash_trade():
    """A sell one tick above our own bid rests; one at it would trade with us."""
    g = Gate()
    assert g.ask(side=1, price=100.00) == "none"
    yield g.ask(side=-1, price=100.01)
    yield g.ask(side=-1, price=100.00)


def no_figure():
    """Every figure in turn: there it passes, never come or out of range it refuses."""
    for kind, wrong in (("var_95", -1), ("unit_var_95", -1), ("volatility", -1),
                        ("volume", -1), ("volume_ratio", -1), ("correlation", nano(1.5)),
                        ("sector", 300)):
        g = Gate()
        assert g.ask(i=1) == "none"
        yield g.ask(i=2)
        g.figure(kind, wrong, 2, 1 if kind == "correlation" else 0)
        yield g.ask(i=2, qty=2)


def old_figure():
    """Past its end by one nanosecond."""
    for kind in ("equity", "var_99", "unit_var_99", "volatility", "volume", "session"):
        g = Gate()
        end = g.now + 5 * NANO
        g.figure(kind, {"session": schema.SESSION.OPEN, "equity": nano(1e7), "volume": nano(10**6)
                        }.get(kind, nano(0.01)),
                 until=end)
        yield g.ask(step=end - g.now)
        yield g.ask(qty=2, step=1)


def overflow():
    """The largest value that nanocash holds is 9.2e9: a share more cannot be summed up."""
    off = "off: the sum is what this is about"
    g = Gate(**dict.fromkeys((
        "max_order_shares", "max_order_notional", "max_position_shares", "max_position_notional",
        "max_total_notional", "max_trade_loss", "max_symbol_share_bps", "max_sector_share_bps",
        "max_var_95", "max_var_99", "max_leverage", "max_order_volume_bps",
        "max_position_volume_bps", "max_price", "base_volatility_bps"), off))
    g.book(bid=100, ask=100)
    most = (2**63 - 1) // (100 * NANO)                  # shares at 100
    yield g.ask(qty=most, price=100)
    yield g.ask(qty=most + 1, price=100, i=1)


def table_full():
    """As many open orders as the gate has room for."""
    g = Gate(max_open_orders=10_000, max_orders_per_minute=100_000, max_position_shares=100_000,
             duplicate_window_ms="off: the same again and again")
    for _ in range(4095):
        assert g.ask(step=1) == "none"
    yield g.ask(step=1)
    yield g.ask(step=1)


def increment():
    """Whole shares at whole cents, whatever the type of the order."""
    g = Gate()
    yield g.ask()
    yield g.ask(qty=1 + 1 / NANO)
    yield g.ask()
    yield g.ask(price=100.01 + 1 / NANO)
    for fields in ({"type": STOP, "stop": nano(101)}, {"type": TRAILING, "trail": nano(1)}):
        (name,) = fields.keys() - {"type"}
        yield g.ask(**fields, price=0, tif=1)
        yield g.ask(**{**fields, name: fields[name] + 1}, price=0, tif=1)
    for stop, price in ((101, 101), (101 + 1 / NANO, 101), (101, 101), (101, 101 + 1 / NANO)):
        yield g.ask(type=STOP_LIMIT, stop=nano(stop), price=price, tif=1)


CASES = {
    "halted": [halted], "store_full": [store_full], "unknown_instrument": [unknown_instrument],
    "unsettled": [unsettled], "unresolved": [unresolved],
    "breaker": [breaker, breaker_half_open], "paused": [paused], "restricted": [restricted],
    "stale_data": [stale_data, flagged("STALE", "CROSSED", "EMPTY")],
    "trading_halt": [flagged("HALTED")], "price_band": [flagged("LIMITED")],
    "duplicate": [duplicate],
    "duplicate_order": [duplicate_order], "price_range": [price_low, price_high],
    "order_size": [order_size], "order_notional": [order_notional], "order_small": [order_small],
    "order_rate": [order_rate], "orders_per_day": [orders_per_day], "repeated": [repeated],
    "crosses_zero": [crosses_zero], "short_not_allowed": [short_not_allowed],
    "position_size": [position_size], "position_notional": [position_notional],
    "total_notional": [total_notional], "open_positions": [open_positions], "pending": [pending],
    "daily_loss": [losses("day")], "weekly_loss": [losses("week_pnl")],
    "monthly_loss": [losses("month_pnl")],
    "trade_loss": [trade_loss, trade_loss_at_the_stop], "concentration": [concentration],
    "sector": [sector], "var_95": [var(95, 0.02)], "var_99": [var(99, 0.04)],
    "drawdown": [drawdown], "correlation": [correlation], "volatility": [volatility],
    "leverage": [leverage], "hours": [hours], "price_collar": [price_collar],
    "last_collar": [last_collar], "order_volume": [order_volume],
    "position_volume": [position_volume], "spread": [spread], "volume_ratio": [volume_ratio],
    "wash_trade": [wash_trade], "no_figure": [no_figure], "old_figure": [old_figure],
    "increment": [increment], "overflow": [overflow], "table_full": [table_full],
}


@pytest.mark.parametrize(("reason", "case"), [
    pytest.param(reason, case, id=f"{reason}-{n}")
    for reason, cases in CASES.items() for n, case in enumerate(cases)])
def test_at_the_limit_it_passes_and_one_unit_beyond_it_refuses(reason, case):
    answers = list(case())
    assert len(answers) >= 2 and len(answers) % 2 == 0
    assert answers == ["none", reason] * (len(answers) // 2)


@pytest.mark.parametrize("beyond", [
    {"qty": 0}, {"qty": 1 / NANO}, {"qty": -1},
    {"price": 0}, {"price": -100.01}, {"side": 0}, {"side": 2}, {"side": -2}, {"type": 6},
    {"type": 0}, {"tif": 0}, {"tif": 7}, {"action": 3}, {"action": 0}, {"type": MARKET}, *(
        {"type": kind, "tif": 1, **fields} for kind, fields in (
            (STOP, {}), (STOP, {"stop": nano(101), "price": 101}),
            (STOP, {"stop": nano(100.02), "price": 0}), (STOP, {"stop": nano(90), "price": 0}),
            (STOP, {"stop": -nano(101), "price": 0}),
            (STOP, {"stop": nano(101), "price": 0, "tif": IOC}),
            (STOP, {"stop": nano(101), "price": 0, "trail": 1}),
            (STOP, {"stop": nano(99.99), "price": 0, "side": -1, "trail_share": 1}),
            (STOP, {"stop": nano(100), "price": 0, "side": -1}),
            (STOP_LIMIT, {"stop": nano(101), "price": 0}),
            (STOP_LIMIT, {"stop": 0, "price": 101}),
            (TRAILING, {"price": 0}), (TRAILING, {"price": 0, "trail": -nano(1)}),
            (TRAILING, {"price": 0, "trail": nano(101)}),
            (TRAILING, {"price": 0, "trail": nano(1), "stop": nano(101)}),
            (TRAILING, {"price": 0, "trail": nano(1), "trail_share": 1}),
            (TRAILING, {"price": 0, "trail_share": NANO}),
            (TRAILING, {"price": 0, "trail_share": -1}),
            (TRAILING, {"price": 1, "trail": nano(1)}))),
    {"type": 0, "price": 0}, {"type": 6, "price": 0},
    {"stop": nano(101)}, {"trail": nano(1)}, {"trail_share": 1}], ids=str)
def test_an_order_with_a_field_out_of_range_is_refused(beyond):
    g = Gate()
    assert g.ask() == "none"
    assert g.ask(**beyond) == "invalid_order"


def test_every_reason_of_the_gate_has_a_case():
    reasons = {name.lower() for name, value, _ in REASON.members if value}
    assert reasons - set(CASES) - LATER == {"invalid_order", "not_open"}
    assert not set(CASES) & LATER


def test_what_only_reduces_a_position_passes_where_more_would_not():
    """Beyond every limit that concerns what is held: closing it passes, adding to it does not."""
    g = Gate(max_daily_loss=50, breaker_daily_loss=10_000)
    assert g.ask(qty=10) == "none"
    g.fill()
    g.position(day_pnl=-nano(1000), unrealised=-nano(1000))
    for kind in ("equity", "var_95", "volatility"):
        g.figure(kind, -1)
    g.figure("breaker", schema.BREAKER.OPEN)
    assert g.ask(qty=1) == "breaker"
    assert g.ask(side=-1, qty=10) == "none"


def test_a_cancel_passes_for_what_is_open_and_for_nothing_else():
    g = Gate()
    assert g.ask(price=99) == "none"
    target = g.seq
    cancel = {"action": schema.ACTION.CANCEL, "qty": 0, "price": 0}
    assert g.ask(**cancel, target=target + 100) == "not_open"
    g.control.halt()
    assert g.ask(**cancel, target=target) == "none"     # also while halted
    assert g.order["order"] == schema.event_id(schema.STREAM.SIGNAL, target)


def test_a_lower_limit_refuses_the_next_order():
    from hftpipe.limits import LIMITS
    number = next(x.number for x in LIMITS if x.name == "max_order_shares")
    g = Gate()
    assert g.ask(qty=50) == "none"
    g.figure("limit", nano(40), other=number)
    assert g.ask(qty=41) == "order_size" and g.verdict["limit"] == nano(40)
    assert g.ask(qty=40) == "none"


# ---------------------------------------------------------------- the gateway looks again

def between(gate, order, what):
    gate.control.halt()


def changed(gate, order, what):
    order[what] += 1


def limits(gate, order, version):
    gate.control.limits_version = version


def late(gate, order, ns):
    gate.at(gate.now + ns)


@pytest.mark.parametrize(("happens", "what", "outcome"), [
    (late, 0, "none"), (late, NANO, "none"), (late, NANO + 1, "expired"),
    (between, None, "halted"), (limits, 2, "limits"), (limits, 3, "limits"),
    (changed, "price", "token"), (changed, "qty", "token"), (changed, "instrument", "token"),
    (changed, "order", "token"), (changed, "token", "token"), (changed, "stop", "token"),
    (changed, "trail", "token"), (changed, "trail_share", "token")])
def test_what_was_approved_leaves_only_as_it_was_and_in_time(happens, what, outcome):
    g = Gate()
    assert g.ask(price=99) == "none"
    order = g.order.copy()
    links = build.PrivateLinks()
    cfg = config.loads("", env={})
    _, gateway = build.stages(("book", "gateway"), links, cfg, g.table, control=g.control,
                              wire=lambda made: SimWire(made[0].handles))
    happens(g, order, what)
    assert links.producer("risk.gateway").push(order.tobytes())
    while gateway.do_work(64):
        pass
    told = np.frombuffer(links.consumer("gateway.risk").pop(), schema.dtype(schema.ORDER_EVENT))[0]
    kind = schema.ORDER_EVENT_KIND
    assert REASON.label(int(told["reason"])) == outcome
    assert told["kind"] == (kind.SENT if outcome == "none" else kind.DROPPED)
    block = g.control.stage(topology.INDEX["gateway"])
    assert block.counter("orders_sent") == (outcome == "none")
    assert block.counter("orders_dropped") == (outcome != "none")
