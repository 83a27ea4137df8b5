"""The compiled gate beside its twin: random orders, fills, marks, figures, limits and clock.

    python tests/models/risk_oracle.py --orders 100000 --seed 1

Every answer is compared: reason, limit, value and what it is about; every so often all of the
exposure, the breaker's story and the counts too.  The first difference ends it with the seed and
the step that lead there.  Each run of some thousand orders has other limits, few of them tight,
so that the late checks are reached as well.
"""
import argparse
import random
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hftpipe import limits as catalogue
from hftpipe import schema
from hftpipe._gate import Risk
from tests.models.risk import BOTTOM, NaiveRisk

NANO = 10**9
START = 10**12
R, A, T = schema.REASON, schema.ACTION, schema.ORDER_TYPE
REASON = {value: name for name, value, _ in R.members}
EVENT = {name: value for name, value, _ in schema.ORDER_EVENT_KIND.members}
FIGURE = {name.lower(): value for name, value, _ in schema.FIGURE_KIND.members}
REASONS = {name: value for name, value, _ in R.members}
SIGNAL = schema.STREAM.SIGNAL << schema.SEQ_BITS
CODES = {"u8": "B", "i8": "b", "u16": "H", "u32": "I", "i64": "q", "u64": "Q"}


def packer(record, *names):
    """Bytes of a record with these fields, the others zero."""
    form = struct.Struct("<" + "".join(CODES[f.type] for f in record.fields))
    places = [[f.name for f in record.fields].index(n) for n in names]
    blank = [0] * len(record.fields)

    def pack(*values):
        row = blank.copy()
        for place, value in zip(places, values, strict=True):
            row[place] = value
        return form.pack(*row)
    return pack


INTENT = packer(schema.INTENT, "event", "instrument", "side", "qty", "price", "type", "tif",
                "action", "target", "strategy", "stop", "trail", "trail_share")
BOOK = packer(schema.BOOK, "instrument", "bid", "ask", "last_price", "ts_recv", "flags")
ORDER_EVENT = packer(schema.ORDER_EVENT, "order", "event", "kind", "cum_qty", "qty", "side",
                     "instrument", "price", "reason")
POSITION = packer(schema.POSITION, "instrument", "qty", "realised", "unrealised", "day_pnl")
FIG = packer(schema.FIGURE, "kind", "instrument", "other", "value", "ts_computed", "until",
             "basis")

#: Loose: never the reason unless everything goes wrong; tight: met all the time.
LOOSE = {
    "max_order_shares": 1000, "max_order_notional": 100_000, "max_position_shares": 10_000,
    "max_position_notional": 1_000_000, "max_total_notional": 10_000_000,
    "max_open_positions": 100, "max_daily_loss": 100_000, "price_collar_bps": 500,
    "max_orders_per_minute": 1000, "max_open_orders": 100, "max_data_age_ms": 60_000,
    "allow_short": True, "min_order_notional": "0.01", "min_price": "0.01", "max_price": 1000,
    "last_collar_bps": 5000, "max_orders_per_day": 1_000_000, "max_strategy_orders": 1_000_000,
    "duplicate_window_ms": 1, "max_weekly_loss": 1_000_000, "max_monthly_loss": 10_000_000,
    "max_trade_loss": 100_000, "stop_distance_bps": 200, "max_symbol_share_bps": 10_000,
    "max_sector_share_bps": 10_000, "max_var_95": 1_000_000, "max_var_99": 2_000_000,
    "drawdown_warn_bps": 6000, "drawdown_act_bps": 7000, "drawdown_halt_bps": 8000,
    "drawdown_confirm": 3, "max_correlation": 1, "max_volatility_bps": 10_000,
    "base_volatility_bps": 9000, "max_leverage": 50, "market_hours": True,
    "allow_premarket": False, "allow_afterhours": True, "max_order_volume_bps": 10_000,
    "max_position_volume_bps": 10_000, "max_spread_bps": 10_000, "min_volume_ratio": "0.01",
    "max_figure_age_ms": 600_000, "breaker_losses": 1000, "breaker_failures": 1000,
    "breaker_rejects": 1000, "breaker_latency_ms": 86_400_000, "breaker_slow_ms": 30_000,
    "breaker_cooldown_ms": 5000, "breaker_quiet_ms": 2000, "breaker_daily_loss": 1_000_000,
    "breaker_drawdown_bps": 9000,
}
TIGHT = {
    "max_order_shares": 40, "max_order_notional": 3500, "max_position_shares": 60,
    "max_position_notional": 5000, "max_total_notional": 11_000, "max_open_positions": 2,
    "max_daily_loss": "50.5", "price_collar_bps": 100, "max_orders_per_minute": 12,
    "max_open_orders": 3, "max_data_age_ms": 3000, "allow_short": False,
    "min_order_notional": 1000, "min_price": 60, "max_price": 110, "last_collar_bps": 150,
    "max_orders_per_day": 20, "max_strategy_orders": 10, "duplicate_window_ms": 5000,
    "max_weekly_loss": 150, "max_monthly_loss": 500, "max_trade_loss": 60,
    "stop_distance_bps": 150, "max_symbol_share_bps": 500, "max_sector_share_bps": 800,
    "max_var_95": 400, "max_var_99": 600, "drawdown_warn_bps": 3, "drawdown_act_bps": 5,
    "drawdown_halt_bps": 10, "max_correlation": "0.7", "max_volatility_bps": 500,
    "base_volatility_bps": 200, "max_leverage": "0.1", "max_order_volume_bps": 500,
    "max_position_volume_bps": 1000, "max_spread_bps": 5, "min_volume_ratio": "1.05",
    "max_figure_age_ms": 4000, "breaker_losses": 2, "breaker_failures": 2, "breaker_rejects": 2,
    "breaker_latency_ms": 200, "breaker_slow_ms": 3000, "breaker_daily_loss": 50,
    "breaker_drawdown_bps": 7, "allow_afterhours": False,
}


# As in _risk.pxd.
ORDERED = """
    HALTED  STORE_FULL  UNSETTLED  UNKNOWN_INSTRUMENT  BREAKER  PAUSED  RESTRICTED  UNRESOLVED
    TRADING_HALT  PRICE_BAND  STALE_DATA
    NO_FIGURE  OLD_FIGURE  INVALID_ORDER  INCREMENT  DUPLICATE  DUPLICATE_ORDER  PRICE_RANGE
    ORDER_SIZE  OVERFLOW  ORDER_NOTIONAL  ORDER_SMALL  ORDER_RATE  ORDERS_PER_DAY  REPEATED
    CROSSES_ZERO  SHORT_NOT_ALLOWED
    POSITION_SIZE  POSITION_NOTIONAL  TOTAL_NOTIONAL  OPEN_POSITIONS  PENDING
    DAILY_LOSS  WEEKLY_LOSS  MONTHLY_LOSS  TRADE_LOSS  CONCENTRATION  SECTOR
    VAR_95  VAR_99  DRAWDOWN  CORRELATION  VOLATILITY  LEVERAGE
    HOURS  PRICE_COLLAR  LAST_COLLAR  ORDER_VOLUME  POSITION_VOLUME  SPREAD
    VOLUME_RATIO  WASH_TRADE  TABLE_FULL""".split()
# Figures are asked for in several places, so what lies behind them may have been looked at.
FIXED = set(ORDERED) - {"NO_FIGURE", "OLD_FIGURE"}
# Value and limit of the verdict are what the cell compares.
PLAIN = {"ORDER_SIZE", "POSITION_SIZE", "ORDERS_PER_DAY", "OPEN_POSITIONS", "PENDING", "DAILY_LOSS",
         "WEEKLY_LOSS", "MONTHLY_LOSS", "DRAWDOWN", "ORDER_VOLUME",
         "POSITION_VOLUME", "SPREAD", "VOLATILITY", "TABLE_FULL"}


class Oracle:
    """One run: a gate, its twin, and a market that is made up as it goes."""

    def __init__(self, seed, capacity=None, control=None):
        self.seed, self.step = seed, 0
        rng = self.rng = random.Random(seed)
        self.count = rng.choice((1, 3, 5))
        self.control = control
        limits = dict(LOOSE)
        for name in LOOSE:
            if catalogue.BY_NAME[name].off is not None and rng.random() < 0.25:
                limits[name] = "off: not today"
        names = sorted(TIGHT)                           # each has its turn
        for name in (names[seed % len(names)], *rng.sample(names, rng.choice((0, 1, 2, 4)))):
            limits[name] = TIGHT[name]
        self.alarming = {kind for name in TIGHT if limits[name] == TIGHT[name]
                         for kind in catalogue.BY_NAME[name].needs}
        self._agree(limits)
        specs = np.zeros(self.count, schema.dtype(schema.INSTRUMENT))
        specs["tick"], specs["lot"], specs["min_qty"], specs["flags"] = 10**7, NANO, NANO, 2
        if self.count > 3:
            specs["flags"][4], specs["tick"][2] = 0, 1
            specs["lot"][3] = specs["min_qty"][3] = NANO // 1000
            specs["flags"][2] |= 4                      # any tick, so that only cents are refused
        self.lots = [int(s["lot"]) for s in specs]
        capacity = capacity or rng.choice((4, 16, 32))
        self.risk = Risk(limits, specs, control, 10 if control else 0, capacity)
        self.naive = NaiveRisk(limits, [
            {"tick": int(s["tick"]), "lot": int(s["lot"]), "min_qty": int(s["min_qty"]),
             "shortable": bool(s["flags"] & 2),
             "cents": bool(s["flags"] & 4)} for s in specs], capacity)
        self.now, self.seq, self.event, self.log = START, 0, 0, []
        self.prices = [100.0, 50.0, 75.0, 120.0, 90.0][:self.count]
        self.busy = rng.choice((0.5, 0.7, 0.9))         # how fast orders are answered
        self.calm = rng.choice((0.5, 0.9, 0.97))        # how seldom figures are alarming
        self.seen = Counter()
        self.realised = [0] * self.count
        self.orders = 0
        for i in range(self.count):
            self.mark(i)
        for kind in FIGURE:
            for i in range(self.count if kind in ("session", "correlation") or FIGURE[kind] < 10
                           or kind == "sector" else 1):
                if FIGURE[kind] < 20:
                    for other in range(i) if kind == "correlation" else (20_000,):
                        self.figure(kind, i, other, calm=True)

    def _agree(self, limits):
        """Undo what contradicts: the second of a pair gives way."""
        number = {k: catalogue.BY_NAME[k].parse(v) for k, v in limits.items()}
        for small, large in (*catalogue.NOT_ABOVE, *catalogue.NOT_ABOVE):
            a, b = number[small], number[large]
            if catalogue.OFF not in (a, b) and a > b:
                looser = large if limits[small] == LOOSE.get(small) else small
                other = small if looser == large else large
                limits[other] = limits[looser]
                number[other] = number[looser]

    # ---- what happens

    def mark(self, i):
        rng = self.rng
        self.prices[i] *= 1 + rng.uniform(-0.004, 0.004)
        mid, half = round(self.prices[i], 2), rng.choice((1, 1, 2, 2, 100))
        mid = round(mid * 100) * 10**7
        bid, ask = mid - half * 10**7, mid + half * 10**7
        if rng.random() < 0.02:
            bid = 0
        if rng.random() < 0.3:
            ask += 1
        last = 0 if rng.random() < 0.01 else mid + rng.choice((0, 0, 10**7, 2 * NANO, -2 * NANO))
        flags = rng.choice((0,) * 120 + (1, 2, 4, 8, 16, 32, 64))
        ts = self.now - (rng.random() < 0.05) * 5000 * 10**6
        self.naive.mark(i, bid, ask, last, ts, flags)
        self.risk.mark(BOOK(i, bid, ask, last, ts, flags))

    def figure(self, kind=None, i=None, other=None, calm=False):
        rng = self.rng
        if kind is None:
            kind = rng.choice(sorted(self.alarming) if self.alarming and rng.random() < 0.4
                              else list(FIGURE))
            if kind in ("pause", "restrict", "breaker") and rng.random() < 0.5:
                kind = "correlation"
        if kind == "limit":
            return self.limit()
        if i is None:
            i = rng.randrange(self.count + (rng.random() < 0.02))
            other = rng.randrange(self.count)
            if kind == "session":
                other = max(self.naive.day, 20_000) + (rng.random() < 0.1)
            elif kind == "rearm":
                other = rng.choice((0, 1, 1, 300))
        calm = calm or (rng.random() < self.calm and kind not in self.alarming)
        until = 2**62 if calm else self.now + rng.choice((10**4,) * 9 + (10,)) * 10**9
        if not calm and rng.random() < 0.1:
            until = 0
        basis = max(self.event - (0 if calm else rng.choice((0, 0, 1, 5))), 0)
        value = {
            "session": (1,) * (60 if calm else 10) + (0, 2, 3, 4),
            "var_95": (10, 100, 250), "var_99": (20, 200, 390),
            "unit_var_95": (0.02, 0.05, 0.011), "unit_var_99": (0.03, 0.07, 0.015),
            "volatility": (0.01, 0.02, 0.02, 0.05, 0.050000001, 0.03),
            "correlation": (0.1, -0.3, 0.7, 0.7, -0.7, 0.700000001, 0.9, -0.9),
            "volume": (1000, 700, 400, 399.999999999), "volume_ratio": (1.05, 1.05, 1.2, 1.04),
            "equity": (100_000,), "week_pnl": (0, -99.5, -100, 10), "month_pnl": (0, -450, 7, -500),
            "peak": (100_000, 100_010, 99_000), "sector": (1, 2, 3),
            "pause": (0, 0, 0, 1), "restrict": (0, 0, 0, 1), "breaker": (0, 0, 0, 0, 1, 2),
            "rearm": (0,)}[kind]
        value = value[0] if calm else rng.choice(value)
        if kind not in ("session", "sector", "pause", "restrict", "breaker", "rearm"):
            value = round(value * NANO)
        if not calm and rng.random() < 0.02:
            value = rng.choice((-1, BOTTOM, 2 * 10**10, 300))
            if kind in ("equity", "week_pnl", "month_pnl", "peak") and value != BOTTOM:
                value = 0
        understood = self.naive.figure(kind, i, other, value, self.now, until, basis, self.now)
        told = self.risk.figure(FIG(FIGURE[kind], i, other, value, self.now, until, basis),
                                self.now)
        refused = told is not None and told["kind"] == schema.RISK_EVENT_KIND.FIGURE_REFUSED
        self.same("figure " + kind, understood, not refused)

    def limit(self):
        """A person changes a limit."""
        rng = self.rng
        name = rng.choice(sorted(TIGHT))
        limit = catalogue.BY_NAME[name]
        if limit.off is not None and rng.random() < 0.2:
            number = catalogue.OFF
        elif rng.random() < 0.02:
            number = limit.low - 1
        else:
            number = limit.parse(rng.choice((TIGHT, LOOSE, LOOSE))[name])
        if limit.low <= number <= limit.high or number == catalogue.OFF:
            self.naive.set_limit(name, None if number == catalogue.OFF else number, self.now)
            wanted = schema.RISK_EVENT_KIND.LIMIT_SET
        else:
            wanted = schema.RISK_EVENT_KIND.FIGURE_REFUSED
        told = self.risk.figure(FIG(FIGURE["limit"], 0, limit.number, number, self.now, 0, 0),
                                self.now)
        self.same("limit " + name, wanted, int(told["kind"]))

    def position(self):
        rng, i = self.rng, self.rng.randrange(self.count)
        day = rng.choice((0, 0, 5, -10, -50, -50.499999999, -50.5, -60, -70, -100, 20))
        loss = rng.choice((0, 3, -59.999999999, -60, -60.000000001, -1))
        qty = rng.choice((0, 1))
        if qty == 0:
            self.realised[i] += rng.choice((-3, -1, 0, 2)) * NANO
        values = (i, qty, self.realised[i], round(loss * NANO), round(day * NANO))
        self.naive.position(*values, self.now)
        self.risk.position(POSITION(*values), self.now)

    def order(self):
        rng, naive = self.rng, self.naive
        i = rng.randrange(self.count)
        if rng.random() < 0.5:
            self.mark(i)
        self.seq += rng.random() > 0.01
        side = rng.choice((1, -1) * 30 + (0,))
        market = rng.random() < 0.25
        qty = rng.choice((1, 1, 2, 5, 10, 15, 20, 29, 35, 40, 41)) * NANO
        if rng.random() < 0.1:
            qty = qty * self.lots[i] // NANO
        held = naive.qty[i]
        if held and rng.random() < 0.6:
            side = 1 if held > 0 else -1                        # more
        elif held and rng.random() < 0.5:
            side = -1 if held > 0 else 1                        # close
            qty = abs(held)
        price = 0
        if not market:
            offset = rng.choice((-0.006, -0.001, -0.0005, 0.0005, 0.001, 0.011, 0.016))
            price = round(naive.reference[i] * (1 + offset)) // 10**7 * 10**7
            price += (rng.random() < 0.03) * rng.choice((1, 10**5, 5 * 10**6))
        elif rng.random() < 0.02:
            price = NANO
        kind = "MARKET" if market else "LIMIT"
        tif = rng.choice((1, 2, 3, 4, 5, 6) * 10 + (0, 7))
        stop = trail = share = 0
        if rng.random() < 0.2:
            kind = rng.choice(("STOP", "STOP_LIMIT", "TRAILING_STOP", "TRAILING_STOP"))
            tif = rng.choice((1, 2) * 10 + (3,))
            price = 0
            if kind == "TRAILING_STOP":
                trail, share = rng.choice((
                    (10**7, 0), (10**7, 0), (5 * NANO, 0), (0, 10**7), (0, 5 * 10**7), (0, 1),
                    (0, 0), (1, 0), (10**12, 0), (0, NANO), (0, -1), (NANO, NANO // 2)))
                stop = NANO * (rng.random() < 0.02)
            else:
                away = rng.choice((0.0005, 0.001, 0.02, 0.1, -0.001)) * (side or 1)
                stop = round(naive.reference[i] * (1 + away)) // 10**7 * 10**7
                stop = rng.choice((stop,) * 40 + (0, -10**7, stop + 1, 2**63 - 1))
                trail = NANO * (rng.random() < 0.02)
                if kind == "STOP_LIMIT":
                    price = stop + rng.choice((-1, 0, 1, 2, 300)) * 10**7
                    price = rng.choice((min(max(price, -1), 2**63 - 1),) * 40 + (0, 1))
        elif rng.random() < 0.01:
            stop, trail, share = rng.choice(((NANO, 0, 0), (0, NANO, 0), (0, 0, 1)))
        strategy = rng.choice((0, 0, 0, 1, 200))
        where = i if rng.random() < 0.995 else self.count
        wanted = naive.check({"stream": 3, "seq": self.seq, "action": "NEW", "instrument": where,
                              "side": side, "qty": qty, "price": price, "tif": tif,
                              "type": kind, "strategy": strategy, "stop": stop, "trail": trail,
                              "trail_share": share}, self.now)
        intent = INTENT(SIGNAL | self.seq, where, side, qty, price, getattr(T, kind), tif, A.NEW,
                        0, strategy, stop, trail, share)
        if self.orders % 8:
            reason, limit, value, detail, token = self.risk.judge(intent, self.now)
        else:                                           # records cost more: now and then
            reason, verdict, order = self.risk.check(intent, self.now)
            limit, value, detail = (int(verdict[k]) for k in ("limit", "value", "detail"))
            token = int(order["token"])
            self.margins(self.risk.margins(intent, verdict, self.now), REASON[reason], limit,
                         value)
        self.same("reason", wanted[0], REASON[reason])
        if wanted[1] is not None:
            self.same("limit", wanted[1], limit)
        if wanted[2] is not None:
            self.same("value", wanted[2], value)
        if wanted[3] is not None:
            self.same("detail", wanted[3], detail)
        self.same("token", reason == 0, token != 0)
        self.seen[wanted[0]] += 1
        self.orders += 1

    def margins(self, checks, reason, limit, value):
        """What _margin.pxd promises, against the verdict that the twin agreed to."""
        cells = {name: int(checks[name.lower()]) for name in ORDERED}
        if reason == "NONE":
            self.same("margins", [], [n for n, c in cells.items() if c > 1000])
            return
        if reason in PLAIN and limit > 0:
            self.same("margin", min(max(-(-1000 * value // limit), 1001), 65535), cells[reason])
        self.same("margin beyond", True, cells.pop(reason) > 1000)
        self.same("margins of others", [], [n for n, c in cells.items() if c > 1000])
        if reason in FIXED:
            after = ORDERED[ORDERED.index(reason) + 1:]
            self.same("margins after", [], [n for n in after if cells[n]])

    def cancel(self):
        rng, naive = self.rng, self.naive
        known = [k for k, o in naive.live.items()]
        target = rng.choice(known)[1] if known and rng.random() < 0.5 else rng.randrange(
            1, self.seq + 2)
        self.seq += 1
        wanted = naive.check({"stream": 3, "seq": self.seq, "action": "CANCEL", "target": target},
                             self.now)
        reason, *_ = self.risk.judge(
            INTENT(SIGNAL | self.seq, 0, 0, 0, 0, 0, 0, A.CANCEL, target, 0, 0, 0, 0), self.now)
        self.same("cancel", wanted[0], REASON[reason])
        self.seen["CANCEL " + wanted[0]] += 1

    def answer(self):
        """Something about an order: a fill, an end, a duplicate, out of order, not ours."""
        rng, naive = self.rng, self.naive
        self.event += 1
        pick, reason = rng.random(), ""
        if self.log and pick < 0.1:
            told = list(rng.choice(self.log))
            if rng.random() < 0.5:
                told[1] = self.event
        elif pick < 0.11:
            told = [(3, 10**6 + self.event), self.event, "PARTIAL_FILL", NANO, NANO, 1,
                    rng.randrange(self.count), 100 * NANO, ""]
        elif naive.live:
            order = rng.choice(list(naive.live))
            o = naive.live[order]
            left = o.qty - o.cum
            cum = o.cum + min(rng.choice((left, left, self.lots[o.instrument], NANO)), left)
            kind = rng.choice(("PARTIAL_FILL", "PARTIAL_FILL", "FILL", "FILL", "FILL", "CANCELED",
                               "CANCELED", "REJECTED", "UNKNOWN", "ACKED", "ACKED", "EXPIRED",
                               "DROPPED", "SENT", "CANCEL_REJECTED"))
            if kind == "FILL":
                cum = o.cum + left
            elif kind != "PARTIAL_FILL":
                cum = o.cum
            if kind == "DROPPED":
                reason = rng.choice(("BUSY", "DISCONNECTED", "EXPIRED", "TOKEN"))
            told = [order, self.event, kind, cum, cum - o.cum, o.side, o.instrument, 0, reason]
        else:
            return
        if len(self.log) < 50 or rng.random() < 0.1:
            self.log = [*self.log[-50:], told]
        naive.order_event(*told, now=self.now)
        order, event, kind, cum, qty, side, instrument, price, reason = told
        self.risk.order_event(ORDER_EVENT(
            order[0] << 56 | order[1], event, EVENT[kind], cum, qty, side, instrument, price,
            REASONS.get(reason, 0)), self.now)

    def gate(self):
        """Somebody halts, resumes; a store link fills up."""
        rng, naive, control = self.rng, self.naive, self.control
        if control is None:
            return
        naive.armed, naive.full = rng.random() < 0.9, rng.random() < 0.05
        if naive.armed:
            control.resume(control.halt_epoch)
        else:
            control.halt()
        control.stage(3).store_full = naive.full
        naive.unsettled = rng.random() < 0.03
        self.risk.unsettle(naive.unsettled)

    # ---- comparing

    def same(self, what, wanted, found):
        if wanted != found:
            raise AssertionError(f"seed {self.seed} step {self.step}: {what}: the twin says "
                                 f"{wanted}, the gate {found}")

    def compare(self):
        """Everything that can be seen."""
        naive, risk = self.naive, self.risk
        sums = naive.sums()
        at_risk = naive.on("max_var_95") or naive.on("max_var_99")
        for k in range(self.count):
            found = risk.exposure(k)
            self.same(f"qty {k}", naive.qty[k], found["qty"])
            self.same(f"open {k}", (sums[k][0], sums[k][1], sums[k][4]),
                      (found["open_buy"], found["open_sell"], found["open_orders"]))
            self.same(f"worst {k}", -(-naive.worst(sums, k) // NANO), found["worst"])
            if at_risk:
                self.same(f"moving {k}", naive.moving(sums, k), found["moving"])
        state = risk.state()
        self.same("breaker", naive.breaker.story[-60:], risk.changes()[-60:])
        self.same("losses", naive.breaker.losses, state["losses"])
        self.same("latched", sorted(naive.latched), state["latched"])
        self.same("executions", {k: v for k, v in naive.executions.items() if v},
                  state["executions"])
        self.same("day", (naive.day, naive.day_orders, naive.day_pnl + naive.day_base),
                  (state["day"], state["day_orders"], state["day_pnl"]))
        self.same("drawdown", (naive.drawdown(), naive.level, naive.halts > 0),
                  (state["drawdown"], state["level"], state["halting"]))
        self.same("live", len(naive.live), len(risk))

    def run(self, orders, every=50):
        """Until so many orders were judged."""
        rng = self.rng
        ends = self.orders + orders
        while self.orders < ends:
            self.step += 1
            act = rng.random()
            if self.naive.breaker.state == "open" and act < 0.02:
                self.figure("breaker", 0, 0, calm=True)         # a person looks after it
            if act < 0.55:
                self.order()
                if rng.random() < self.busy:
                    self.answer()
            elif act < 0.70:
                self.now += rng.choice((0, 10**6, 10**8, 15 * 10**8, 7 * 10**9))
                self.answer()
            elif act < 0.85:
                self.mark(rng.randrange(self.count))
            elif act < 0.93:
                self.figure()
            elif act < 0.96:
                self.position()
            elif act < 0.985:
                self.cancel()
            elif act < 0.99:
                self.gate()
            if self.step % every == 0:
                self.compare()
        self.compare()
        return self.seen


def main(argv=None):
    parser = argparse.ArgumentParser(description="the gate beside its twin")
    parser.add_argument("--orders", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=int, default=2000, help="orders of one set of limits")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so long")
    options = parser.parse_args(argv)
    seen, done, seed, began = Counter(), 0, options.seed, time.monotonic()
    while done < options.orders:
        if options.seconds and time.monotonic() - began > options.seconds:
            break
        oracle = Oracle(seed)
        seen += oracle.run(min(options.run, options.orders - done), every=500)
        done += oracle.orders
        seed += 1
    took = time.monotonic() - began
    print(f"{done} orders, {seed - options.seed} sets of limits, no disagreement, "
          f"{took:.1f} s, {done / took:.0f} orders/s")
    for reason, n in seen.most_common():
        print(f"  {reason.lower():<20} {n}")
    missing = sorted(set(REASON.values()) - set(seen))
    print("never met: " + (", ".join(m.lower() for m in missing) or "none"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

