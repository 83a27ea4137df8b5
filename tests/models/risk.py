"""The gate as one reads it in the description: whole numbers without end, every sum made anew.

Prices, quantities and money are Python integers in 1e-9 and their products in 1e-18, so nothing
rounds and nothing wraps.  Exposure is summed over all open orders at each question; positions
are the sum of the fills that were told.  Nothing here is shared with the compiled gate: it was
written from ``_risk.pxd``'s description and section by section from the requirements.
"""
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

NANO = 10**9
TOP = 2**63 - 1                         # what 63 bits of 1e-9 hold
BOTTOM = -2**63
MS = 10**6
MINUTE = 60 * 10**9
HALTED, LIMITED = 8, 64
UNUSABLE = 1 | 2 | 32                   # stale, crossed, empty
ENDS = {"FILL", "CANCELED", "REJECTED", "EXPIRED", "DROPPED", "DENIED", "REPLACED"}
SILENT = {"SENT", "CANCEL_SENT", "UNKNOWN", "DROPPED", "DENIED"}    # no word of the venue
DECIMAL = {"max_order_shares", "max_order_notional", "max_position_shares",
           "max_position_notional", "max_total_notional", "max_daily_loss", "min_order_notional",
           "min_price", "max_price", "max_weekly_loss", "max_monthly_loss", "max_trade_loss",
           "max_var_95", "max_var_99", "max_correlation", "max_leverage", "min_volume_ratio",
           "breaker_daily_loss"}
KINDS = ["var_95", "var_99", "unit_var_95", "unit_var_99", "volatility", "volume",
         "volume_ratio", "equity", "week_pnl", "month_pnl", "peak", "sector"]
NUMBER = {"session": 1, "var_95": 2, "var_99": 3, "unit_var_95": 4, "unit_var_99": 5,
          "volatility": 6, "correlation": 7, "volume": 8, "volume_ratio": 9, "equity": 10,
          "week_pnl": 11, "month_pnl": 12, "peak": 13, "sector": 14}
OWN = {"unit_var_95", "unit_var_99", "volatility", "volume", "volume_ratio", "sector"}
NEEDS = {"max_var_95": ["var_95", "unit_var_95"], "max_var_99": ["var_99", "unit_var_99"],
         "max_volatility_bps": ["volatility"], "base_volatility_bps": ["volatility"],
         "max_order_volume_bps": ["volume"], "max_position_volume_bps": ["volume"],
         "min_volume_ratio": ["volume_ratio"], "max_symbol_share_bps": ["equity"],
         "max_leverage": ["equity"], "max_sector_share_bps": ["equity", "sector"],
         "drawdown_act_bps": ["equity", "peak"], "drawdown_halt_bps": ["equity", "peak"],
         "breaker_drawdown_bps": ["equity", "peak"], "max_weekly_loss": ["week_pnl"],
         "max_monthly_loss": ["month_pnl"]}


def limit_of(name, value):
    """A limit as it stands in the file, as the number that is compared; None = off."""
    if isinstance(value, str) and value.startswith("off"):
        return None
    return int(Decimal(str(value)) * NANO) if name in DECIMAL else int(value)


class Breaker:
    """CLOSED, OPEN, HALF_OPEN, told as a story: what has happened since."""

    LOSS = frozenset({"hand", "daily_loss", "losses", "drawdown", "unreadable"})

    def __init__(self, limits):
        self.limits = limits
        self.state, self.cause, self.since = "closed", "none", 0
        self.test = self.answered = None
        self.losses = self.failures = self.rejects = 0
        self.slow = None
        self.story = []

    def become(self, state, cause, now):
        self.story.append((self.state, state, cause))
        self.state, self.cause, self.since = state, cause, now
        self.test = self.answered = None
        if state != "open":
            self.failures, self.rejects, self.slow = 0, 0, None
        if state == "closed":
            self.losses = 0

    def trip(self, cause, now):
        if self.state == "open" and (self.cause in self.LOSS or cause not in self.LOSS):
            return
        self.become("open", cause, now)

    def time(self, now):
        waited = max(now - self.since, 0)
        if self.state == "open" and self.cause not in self.LOSS:
            if waited >= self.limits["breaker_cooldown_ms"] * MS:
                self.become("half_open", self.cause, now)
        elif self.state == "half_open" and self.answered is not None:
            if max(now - self.answered, 0) >= self.limits["breaker_quiet_ms"] * MS:
                self.become("closed", "none", now)

    def passes(self):
        return self.state == "closed" or (self.state == "half_open" and self.test is None)

    def above(self, name, value):
        return self.limits[name] is not None and value >= self.limits[name]

    def step(self, order, kind, reason, now):
        good = kind in ("ACKED", "PARTIAL_FILL", "FILL", "CANCELED", "EXPIRED", "REPLACED")
        lost = kind == "UNKNOWN" or (kind == "DROPPED" and reason in ("DISCONNECTED", "BUSY"))
        test = self.state == "half_open" and self.test is not None and order == self.test
        if lost:
            self.failures += 1
        elif kind == "REJECTED":
            self.rejects += 1
            self.failures = 0
        elif good:
            self.failures = self.rejects = 0
            if test and self.answered is None:
                self.answered = now
        if test and (lost or kind in ("REJECTED", "DROPPED")):
            self.trip("test" if self.cause not in self.LOSS else self.cause, now)
        elif lost or kind == "REJECTED":
            if self.answered is not None:
                self.answered = max(self.answered, now)
            if self.above("breaker_failures", self.failures):
                self.trip("failures", now)
            elif self.above("breaker_rejects", self.rejects):
                self.trip("rejects", now)

    def answer(self, latency, now):
        most = self.limits["breaker_latency_ms"]
        if most is None or latency <= most * MS:
            self.slow = None
        elif self.slow is None:
            self.slow = now
        elif max(now - self.slow, 0) >= self.limits["breaker_slow_ms"] * MS:
            self.trip("latency", now)

    def trade(self, earned, now):
        if earned > 0:
            self.losses = 0
        elif earned < 0:
            self.losses += 1
            if self.above("breaker_losses", self.losses):
                self.trip("losses", now)

    def word(self, state, now):
        if state == "closed":
            if self.state != "closed":
                self.become("closed", "none", now)
            self.losses = self.failures = self.rejects = 0
        elif self.state != state or (state == "open" and self.cause not in self.LOSS):
            self.become(state, "hand", now)


class Order:
    __slots__ = ("answered", "at", "cum", "instrument", "open", "price", "qty", "reduces", "side",
                 "unresolved", "worth")

    @property
    def left(self):
        return max(self.qty - self.cum, 0) if self.open else 0


class NaiveRisk:
    """limits as in the file; instruments ``[{tick, lot, min_qty, shortable, cents}]`` in 1e-9."""

    def __init__(self, limits, instruments, capacity):
        self.limits = {name: limit_of(name, value) for name, value in limits.items()}
        self.instruments = instruments
        self.count = len(instruments)
        self.capacity = capacity
        self.unused = 2 * capacity      # remembered: those never reused, then the newest ended
        self.orders = {}                # remembered orders
        self.live = {}                  # of them the open ones
        self.ended = []
        self.books = {}
        self.qty = [0] * self.count
        self.reference = [0] * self.count
        self.approvals = []             # [at, key]
        self.newest = {}                # key -> when it was last approved
        self.day_orders = 0
        self.executions = defaultdict(int)
        self.latched = set()
        self.last_seq = defaultdict(int)
        self.last_event = 0
        self.armed, self.full, self.unsettled = True, False, False
        self.breaker = Breaker(self.limits)
        self.paused, self.restricted = set(), set()
        self.figures = {}               # (kind, instrument or None) -> (value, until)
        self.pairs = {}                 # frozenset of two -> (value, until)
        self.units = defaultdict(lambda: NANO)      # (kind, instrument): last one known
        self.sessions = {}              # instrument -> (session, until)
        self.fills = []                 # (event, instrument, value) not in the value at risk
        self.basis = {"var_95": 0, "var_99": 0}
        self.basis_least = 0
        self.day = self.day_base = self.day_pnl = 0
        self.highest = 0
        self.deep = 0
        self.level, self.halts = 0, 0
        self.unrealised = [0] * self.count
        self.earned = [0] * self.count

    # ---- sums

    def on(self, name):
        return self.limits[name] is not None

    def sums(self):
        """Per instrument and side: quantity and value of what is open, and orders."""
        out = [[0, 0, 0, 0, 0] for _ in range(self.count)]
        for o in self.live.values():
            cell, left = out[o.instrument], max(o.qty - o.cum, 0)
            if o.side > 0:
                cell[0] += left
                cell[2] += left * o.worth
            else:
                cell[1] += left
                cell[3] += left * o.worth
            cell[4] += 1
        return out

    def worst(self, sums, i):
        value = self.qty[i] * self.reference[i]
        return max(sums[i][2] + value, sums[i][3] - value)

    def held(self, sums):
        return [i for i in range(self.count) if self.qty[i] or sums[i][4]]

    def moving(self, sums, i, extra=0):
        """Nanocash at risk besides what is held: open orders and fills too new, rounded up."""
        value = sums[i][2] + sums[i][3] + extra
        for _, j, v in self.fills:
            if i == j:
                value += v
        return min(-(-value // NANO), TOP)

    def day_loss(self):
        return max(min(-(self.day_pnl + self.day_base), TOP), BOTTOM)

    # ---- inputs

    def mark(self, i, bid, ask, last, ts, flags):
        self.books[i] = (bid, ask, max(last, 0), ts, flags)
        if bid > 0 and ask > 0:
            self.reference[i] = (bid + ask) // 2
        elif last > 0:
            self.reference[i] = last

    def note(self, event, i, value):
        if not (self.on("max_var_95") or self.on("max_var_99")):
            return
        if len(self.fills) == 4096:
            self.basis_least = max(self.basis_least, self.fills.pop(0)[0])
            self.figures.pop(("var_95", None), None)
            self.figures.pop(("var_99", None), None)
        self.fills.append((event, i, min(value, TOP * NANO + 1)))

    def order_event(self, order, event, kind, cum, qty=0, side=0, instrument=0, price=0,
                    reason="", now=0):
        newer = event == 0 or event > self.last_event
        self.last_event = max(self.last_event, event)
        o = self.orders.get(order)
        if newer:
            if o is not None and not o.answered and kind not in SILENT:
                o.answered = True
                self.breaker.answer(now - o.at, now)
            self.breaker.step(order, kind, reason, now)
            if o is not None and o.open and kind not in (
                    "SENT", "CANCEL_SENT", "CANCEL_REJECTED"):
                o.unresolved = kind == "UNKNOWN"
        if o is None:
            if newer and kind in ("FILL", "PARTIAL_FILL") and instrument < self.count and qty > 0:
                self.reference[instrument] = self.reference[instrument] or price
                self.qty[instrument] += side * qty
                self.note(event, instrument, qty * max(price, self.reference[instrument]))
            return
        moved = max(cum - o.cum, 0)
        if moved:
            self.qty[o.instrument] += o.side * moved
            o.cum = cum
            self.note(event, o.instrument, moved * o.worth)
        if o.open and (o.cum >= o.qty or kind in ENDS):
            o.open = False
            del self.live[order]
            self.ended.append(order)

    def position(self, i, qty, realised, unrealised, day_pnl, now):
        self.day_pnl = day_pnl
        self.market(now)
        self.unrealised[i] = unrealised
        if qty == 0 and realised != self.earned[i]:
            earned, self.earned[i] = realised - self.earned[i], realised
            self.breaker.trade(earned, now)

    def equity(self):
        """None = not known."""
        found = self.figures.get(("equity", None))
        return None if found is None else found[0] + self.day_pnl + self.day_base

    def drawdown(self):
        equity = self.equity()
        if equity is None:
            return 0
        if self.highest <= 0:
            return TOP - 1
        return max((self.highest - equity) * 10000 // self.highest, 0)

    def market(self, now):
        """After the P&L or a figure has changed."""
        equity = self.equity()
        if equity is not None:
            peak = self.figures.get(("peak", None), (0,))[0]
            self.highest = max(self.highest, equity, self.figures["equity", None][0], peak)
        down = self.drawdown()
        limits = self.limits
        if self.on("breaker_daily_loss") and self.day_loss() >= limits["breaker_daily_loss"]:
            self.breaker.trip("daily_loss", now)

        def at(name):
            return limits[name] is not None and down >= limits[name]
        if at("breaker_drawdown_bps"):
            self.breaker.trip("drawdown", now)
        self.deep = self.deep + 1 if at("drawdown_halt_bps") else 0
        level = (3 if self.deep >= limits["drawdown_confirm"] else 2 if at("drawdown_act_bps")
                 else 1 if at("drawdown_warn_bps") else 0)
        if level == 3 and self.level < 3:
            self.halts += 1
        self.level = max(level, self.level) if level else 0

    def figure(self, kind, instrument, other, value, ts, until, basis, now):
        """Whether it was understood."""
        until = until or ts + self.limits["max_figure_age_ms"] * MS
        inside = instrument < self.count
        if kind in ("pause", "restrict"):
            if not inside or value not in (0, 1):
                return False
            where = self.paused if kind == "pause" else self.restricted
            where.discard(instrument)
            if value:
                where.add(instrument)
        elif kind == "breaker":
            if value not in (0, 1, 2):
                return False
            self.breaker.word(("closed", "open", "half_open")[value], now)
        elif kind == "rearm":
            if other > 255:
                return False
            self.latched.discard(other)
            self.executions[other] = 0
        elif kind in ("var_95", "var_99", "equity", "week_pnl", "month_pnl", "peak"):
            known = value >= 0 if kind.startswith("var") else value != BOTTOM
            self.figures.pop((kind, None), None)
            if kind.startswith("var"):
                self.basis[kind] = basis
            if known and not (kind.startswith("var") and basis < self.basis_least):
                self.figures[kind, None] = (value, until)
            self.forget()
            self.market(now)
            return known
        elif not inside:
            return False
        elif kind == "session":
            self.sessions.pop(instrument, None)
            if not 0 <= value <= 4:
                return False
            self.sessions[instrument] = (value, until)
            if other > self.day:
                if self.day:
                    self.day_orders = 0
                    self.executions.clear()
                    self.day_base = self.day_pnl = 0
                self.day = other
        elif kind == "correlation":
            if other >= self.count or other == instrument:
                return False
            self.pairs.pop(frozenset((instrument, other)), None)
            if abs(value) > NANO:
                return False
            self.pairs[frozenset((instrument, other))] = (value, until)
        elif kind in OWN:
            known = 0 < value < 256 if kind == "sector" else value >= 0
            if kind.startswith("unit"):
                known = known and value <= 10 * NANO
            self.figures.pop((kind, instrument), None)
            if not known:
                return False
            self.figures[kind, instrument] = (value, until)
            self.units[kind, instrument] = value
        else:
            return False
        return True

    def set_limit(self, name, number, now):
        """*number* as it is compared; None = off."""
        at_risk = self.on("max_var_95") or self.on("max_var_99")
        self.limits[name] = number
        if not at_risk and (self.on("max_var_95") or self.on("max_var_99")):
            self.basis_least = self.last_event
            self.figures.pop(("var_95", None), None)
            self.figures.pop(("var_99", None), None)
        self.forget()

    def forget(self):
        """Fills that all values at risk in use know of."""
        known = [self.basis[kind] for kind in ("var_95", "var_99") if self.on("max_" + kind)]
        while known and self.fills and self.fills[0][0] <= min(known):
            self.fills.pop(0)

    # ---- the question

    def check(self, intent, now):
        """``(reason, limit, value, detail)``; None where it is not compared."""
        self.breaker.time(now)
        stream, seq = intent["stream"], intent["seq"]
        fresh = seq > self.last_seq[stream]
        self.last_seq[stream] = max(self.last_seq[stream], seq)
        if intent["action"] == "CANCEL":
            target = self.orders.get((stream, intent["target"]))
            return "NONE" if target and target.open else "NOT_OPEN", None, None, None
        found = self.judge(intent, now, fresh)
        if found[0] != "NONE":
            if found[0] == "REPEATED":
                self.latched.add(intent["strategy"])
            return found
        _, worth, price, reduces = found
        if self.unused:
            self.unused -= 1
        else:
            del self.orders[self.ended.pop(0)]
        o = Order()
        o.unresolved = False
        o.instrument, o.side, o.price, o.worth = (intent["instrument"], intent["side"], price,
                                                  worth)
        o.qty, o.cum, o.open, o.at, o.answered, o.reduces = (intent["qty"], 0, True, now, False,
                                                             reduces)
        self.orders[stream, seq] = self.live[stream, seq] = o
        at = max(now, self.approvals[-1]) if self.approvals else now
        self.approvals.append(at)
        self.newest[self.key(intent)] = at
        self.day_orders += 1
        strategy = intent["strategy"]
        self.executions[strategy] += 1
        most = self.limits["max_strategy_orders"]
        if most is not None and self.executions[strategy] >= most:
            self.latched.add(strategy)
        if not reduces and self.breaker.state == "half_open":
            self.breaker.test = (stream, seq)
        return "NONE", 0, 0, 0

    @staticmethod
    def key(intent):
        return (intent["instrument"], intent["side"], intent["price"], intent["qty"],
                *(intent.get(name, 0) for name in ("stop", "trail", "trail_share")))

    def missing(self, i, now):
        """The first figure that is needed and not there, or too old."""
        needed = {k for name, kinds in NEEDS.items() if self.on(name) for k in kinds}
        for kind in sorted(needed, key=NUMBER.get):
            found = self.figures.get((kind, i if kind in OWN else None))
            if found is None:
                return "NO_FIGURE", 0, 0, NUMBER[kind]
            if now > found[1]:
                return "OLD_FIGURE", found[1], now, NUMBER[kind]
        return None

    def shrunk(self, name, i):
        """A position limit under the instrument's volatility; None = off."""
        limit, base = self.limits[name], self.limits["base_volatility_bps"]
        found = self.figures.get(("volatility", i))
        if limit is None or base is None or found is None or found[0] <= base * 10**5:
            return limit
        return floor(Fraction(limit * base * 10**5, found[0]))

    def judge(self, intent, now, fresh):
        L = self.limits
        i, side, qty, price = (intent["instrument"], intent["side"], intent["qty"],
                               intent["price"])
        if not self.armed:
            return "HALTED", None, None, 0
        if self.full:
            return "STORE_FULL", None, None, 0
        if self.unsettled:
            return "UNSETTLED", 0, 1, 0
        if i >= self.count:
            return "UNKNOWN_INSTRUMENT", None, None, 0
        spec, kind = self.instruments[i], intent["type"]
        limited = kind in ("LIMIT", "STOP_LIMIT")
        stop, trail, share = (intent.get(n, 0) for n in ("stop", "trail", "trail_share"))
        position = self.qty[i] if side > 0 else -self.qty[i]
        reducing = position < 0

        # what an order that reduces is let out of comes after `more`
        more = not reducing
        if more and not self.breaker.passes():
            return "BREAKER", None, None, None
        if i in self.paused:
            return "PAUSED", 0, 1, 0
        if i in self.restricted:
            return "RESTRICTED", 0, 1, 0
        silent = sum(o.unresolved for o in self.live.values() if o.instrument == i)
        if silent:
            return "UNRESOLVED", 0, silent, 0
        book = self.books.get(i)
        if book is not None and book[4] & HALTED:
            return "TRADING_HALT", None, None, 0
        if book is not None and book[4] & LIMITED:
            return "PRICE_BAND", None, None, 0
        if book is None or not self.reference[i] or book[4] & UNUSABLE:
            return "STALE_DATA", None, None, 0
        bid, ask, last, ts, _ = book
        touch = ask if side > 0 else bid
        if kind != "LIMIT" and touch <= 0:
            return "STALE_DATA", None, None, 0
        if now - ts > L["max_data_age_ms"] * MS:
            return "STALE_DATA", L["max_data_age_ms"] * MS, now - ts, 0
        if more and (gone := self.missing(i, now)):
            return gone
        waits = kind in ("STOP", "STOP_LIMIT", "TRAILING_STOP")
        if (side not in (1, -1) or kind not in (
                "MARKET", "LIMIT", "STOP", "STOP_LIMIT", "TRAILING_STOP")
                or intent["tif"] not in ((1, 2) if waits else (1, 2, 3, 4, 5, 6))
                or qty <= 0 or qty < spec["min_qty"]
                or (not limited and price != 0) or (limited and price <= 0)):
            return "INVALID_ORDER", None, None, 0
        if kind in ("STOP", "STOP_LIMIT"):
            good = (stop > 0 and trail == share == 0
                    and (stop > touch if side > 0 else stop < touch))
        elif kind == "TRAILING_STOP":
            good = stop == 0 and (
                0 < share < NANO and trail == 0 if share else 0 < trail < touch)
        else:
            good = stop == trail == share == 0
        if not good:
            return "INVALID_ORDER", None, None, 0
        if qty % spec["lot"]:
            return "INCREMENT", spec["lot"], qty, 0
        for asked in (price, stop, trail):
            for least in (spec["tick"], 10**7 if asked >= NANO else 10**5):
                if asked % least and (least == spec["tick"] or spec["cents"]):
                    return "INCREMENT", least, asked, 0
        if not fresh:
            return "DUPLICATE", None, None, 0
        same = self.newest.get(self.key(intent))
        if same is not None and self.on("duplicate_window_ms") \
                and now - same < L["duplicate_window_ms"] * MS:
            return "DUPLICATE_ORDER", L["duplicate_window_ms"] * MS, max(now - same, 0), 0

        collar = Fraction(L["price_collar_bps"], 10000)
        if limited:
            worth, at, meets = price if side > 0 else max(price, bid), price, price
            near = at if kind == "LIMIT" else self.reference[i] + price - stop
        else:
            begin, most = touch, collar
            if side > 0 and kind != "MARKET":
                begin = max(touch, stop or touch + trail + ceil(Fraction(touch * share, NANO)))
                most = max(collar, Fraction(4, 100))
            worth, meets = ceil(begin * (1 + most)), side * 2**100
            at, near = stop or touch, touch
            if worth >= TOP:
                return "OVERFLOW", None, None, 0
        if more and self.on("min_price") and at < L["min_price"]:
            return "PRICE_RANGE", L["min_price"], at, 0
        if more and self.on("max_price") and at > L["max_price"]:
            return "PRICE_RANGE", L["max_price"], at, 0
        if self.on("max_order_shares") and qty > L["max_order_shares"]:
            return "ORDER_SIZE", L["max_order_shares"], qty, 0
        value = worth * qty
        if value > TOP * NANO:
            return "OVERFLOW", None, None, 0
        if self.on("max_order_notional") and value > L["max_order_notional"] * NANO:
            return "ORDER_NOTIONAL", L["max_order_notional"], -(-value // NANO), 0
        if more and self.on("min_order_notional") and value < L["min_order_notional"] * NANO:
            return "ORDER_SMALL", L["min_order_notional"], value // NANO, 0
        most = L["max_orders_per_minute"]
        if len(self.approvals) >= most and now - self.approvals[-most] < MINUTE:
            return "ORDER_RATE", most, most + 1, 0
        strategy = intent["strategy"]
        if more and self.on("max_orders_per_day") and self.day_orders >= L["max_orders_per_day"]:
            return "ORDERS_PER_DAY", L["max_orders_per_day"], self.day_orders + 1, 0
        if more and (strategy in self.latched or (
                self.on("max_strategy_orders")
                and self.executions[strategy] >= L["max_strategy_orders"])):
            return "REPEATED", None, self.executions[strategy] + 1, strategy

        sums = self.sums()
        mine = 0 if side > 0 else 1
        after = position + sums[i][mine] + qty
        if abs(after) > TOP:
            return "OVERFLOW", None, None, 0
        if reducing and after > 0:
            return "CROSSES_ZERO", 0, side * after, 0
        if more:
            if side < 0 and not (L["allow_short"] and spec["shortable"]):
                return "SHORT_NOT_ALLOWED", None, None, 0
            most = self.shrunk("max_position_shares", i)
            if most is not None and after > most:
                return "POSITION_SIZE", most, after, 0
            exposed = side * self.qty[i] * self.reference[i] + sums[i][2 + mine] + value
            if exposed > TOP * NANO:
                return "OVERFLOW", None, None, 0
            most = self.shrunk("max_position_notional", i)
            if most is not None and exposed > most * NANO:
                return "POSITION_NOTIONAL", most, -(-exposed // NANO), 0
            worst = [min(self.worst(sums, k), TOP * NANO + 1) for k in range(self.count)]
            now_worst = max(worst[i], exposed)
            total = sum(worst) - worst[i] + now_worst
            if total > TOP * NANO:
                return "OVERFLOW", None, None, 0
            if self.on("max_total_notional") and total > L["max_total_notional"] * NANO:
                return "TOTAL_NOTIONAL", L["max_total_notional"], -(-total // NANO), 0
            held = self.held(sums)
            if self.on("max_open_positions") and i not in held \
                    and len(held) >= L["max_open_positions"]:
                return "OPEN_POSITIONS", L["max_open_positions"], len(held) + 1, 0
        if self.on("max_open_orders") and sums[i][4] >= L["max_open_orders"]:
            return "PENDING", L["max_open_orders"], sums[i][4] + 1, 0
        if more:
            for reason, name, base in (("DAILY_LOSS", "max_daily_loss", None),
                                       ("WEEKLY_LOSS", "max_weekly_loss", "week_pnl"),
                                       ("MONTHLY_LOSS", "max_monthly_loss", "month_pnl")):
                if self.on(name):
                    before = self.figures[base, None][0] if base else 0
                    loss = self.day_loss() - before
                    if loss >= L[name]:
                        return reason, L[name], loss, 0
            if self.on("max_trade_loss"):
                if -self.unrealised[i] > L["max_trade_loss"]:
                    return "TRADE_LOSS", L["max_trade_loss"], -self.unrealised[i], 0
                loss = Fraction(exposed * L["stop_distance_bps"], 10000)
                if loss > L["max_trade_loss"] * NANO:
                    return "TRADE_LOSS", L["max_trade_loss"], ceil(loss / NANO), 0
            equity = self.equity()
            if self.on("max_symbol_share_bps"):
                cap = Fraction(equity * L["max_symbol_share_bps"], 10000)
                if exposed > cap * NANO:
                    return "CONCENTRATION", floor(cap), -(-exposed // NANO), 0
            if self.on("max_sector_share_bps"):
                cap = Fraction(equity * L["max_sector_share_bps"], 10000)
                sector = self.figures["sector", i][0]
                inside = now_worst + sum(
                    worst[k] for k in range(self.count) if k != i
                    and self.figures.get(("sector", k), (0,))[0] == sector)
                if inside > cap * NANO:
                    return "SECTOR", floor(cap), -(-inside // NANO), sector
            for reason, kind in (("VAR_95", "var_95"), ("VAR_99", "var_99")):
                if self.on("max_" + kind):
                    known = self.figures[kind, None][0]
                    atto = sum(self.moving(sums, k, value if k == i else 0)
                               * self.units["unit_" + kind, k] for k in range(self.count))
                    if known * NANO + atto > L["max_" + kind] * NANO:
                        return reason, L["max_" + kind], known - (-atto // NANO), 0
            if self.on("drawdown_act_bps") and self.drawdown() >= L["drawdown_act_bps"]:
                return "DRAWDOWN", L["drawdown_act_bps"], self.drawdown(), 0
            if self.on("max_correlation"):
                for k in held:
                    if k == i:
                        continue
                    found = self.pairs.get(frozenset((i, k)))
                    if found is None:
                        return "NO_FIGURE", 0, 0, NUMBER["correlation"] | k << 16
                    if now > found[1]:
                        return "OLD_FIGURE", found[1], now, NUMBER["correlation"] | k << 16
                    if abs(found[0]) > L["max_correlation"]:
                        return "CORRELATION", L["max_correlation"], found[0], k
            if self.on("max_volatility_bps"):
                found = self.figures["volatility", i][0]
                if found > L["max_volatility_bps"] * 10**5:
                    return "VOLATILITY", L["max_volatility_bps"] * 10**5, found, 0
            if self.on("max_leverage"):
                cap = Fraction(equity * L["max_leverage"], NANO)
                if total > cap * NANO:
                    return "LEVERAGE", floor(cap), -(-total // NANO), 0
        if self.on("market_hours"):
            found = self.sessions.get(i)
            if found is None:
                return "NO_FIGURE", 0, 0, NUMBER["session"]
            if now > found[1]:
                return "OLD_FIGURE", found[1], now, NUMBER["session"]
            allowed = [1] + [2] * L["allow_premarket"] + [3] * L["allow_afterhours"]
            if found[0] not in allowed:
                return "HOURS", None, found[0], 0
        off = abs(near - self.reference[i])
        if off > self.reference[i] * collar:
            return ("PRICE_COLLAR", L["price_collar_bps"],
                    -(-off * 10000 // self.reference[i]), 0)
        if self.on("last_collar_bps"):
            off = abs(near - last)
            if off * 10000 > last * L["last_collar_bps"]:
                return ("LAST_COLLAR", L["last_collar_bps"],
                        -(-off * 10000 // last) if last else TOP, 0)
        if more:
            for reason, name, asked in (("ORDER_VOLUME", "max_order_volume_bps", qty),
                                        ("POSITION_VOLUME", "max_position_volume_bps", after)):
                if self.on(name):
                    most = floor(Fraction(self.figures["volume", i][0] * L[name], 10000))
                    if asked > most:
                        return reason, most, asked, 0
            if self.on("max_spread_bps"):
                if bid <= 0 or ask <= 0:
                    return "SPREAD", L["max_spread_bps"], TOP, 0
                spread = Fraction(20000 * (ask - bid), ask + bid)
                if spread > L["max_spread_bps"]:
                    return "SPREAD", L["max_spread_bps"], max(ceil(spread), 0), 0
            if self.on("min_volume_ratio"):
                found = self.figures["volume_ratio", i][0]
                if found < L["min_volume_ratio"]:
                    return "VOLUME_RATIO", L["min_volume_ratio"], found, 0
        for o in self.live.values():
            if o.instrument == i and o.side == -side and side * o.price <= side * meets:
                return "WASH_TRADE", None, None, 0
        if len(self.live) >= self.capacity:
            return "TABLE_FULL", self.capacity, len(self.live) + 1, 0
        return "NONE", worth, meets, reducing
