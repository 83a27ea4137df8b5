"""The gate as one reads it in the description: Decimal, every sum made anew, no tables.

Amounts are Decimal in shares and in the quote currency; prices too.  Nothing is kept
incrementally: exposure is summed over all orders at each question.
"""
from decimal import ROUND_CEILING, Decimal, localcontext

N = Decimal(10) ** -9
TOP = Decimal(2**63 - 1) * N            # what 63 bits of 1e-9 hold
UNUSABLE = 1 | 2 | 8 | 32               # stale, crossed, halted, empty
ENDS = {"FILL", "CANCELED", "REJECTED", "EXPIRED", "DROPPED", "DENIED", "REPLACED"}


def up(value, step):
    return (value / step).to_integral_value(ROUND_CEILING) * step


class Stop(Exception):
    def __init__(self, reason, limit=None, value=None):
        self.reason, self.limit, self.value = reason, limit, value


class NaiveRisk:
    def __init__(self, limits, instruments, capacity):
        self.limits = limits            # name -> Decimal or int, as the configuration has them
        self.instruments = instruments  # [{tick, lot, min_qty, shortable}], Decimal
        self.capacity = capacity
        self.unused = 2 * capacity      # remembered: those never reused, then the newest ended
        self.orders = {}                # remembered orders
        self.ended = []
        self.books = {}
        self.qty = [Decimal(0)] * len(instruments)
        self.reference = [Decimal(0)] * len(instruments)
        self.day_pnl = Decimal(0)
        self.times = []
        self.last_seq = 0
        self.last_event = 0
        self.armed = True
        self.full = False

    # ---- sums

    def open(self, instrument, side=None):
        return [o for o in self.orders.values() if o["open"] and o["instrument"] == instrument
                and side in (None, o["side"])]

    def worst(self, instrument, extra_side=0, extra=Decimal(0)):
        value = self.qty[instrument] * self.reference[instrument]
        sides = []
        for side in (1, -1):
            total = side * value + sum(o["remaining"] * o["worth"]
                                       for o in self.open(instrument, side))
            sides.append(total + (extra if side == extra_side else 0))
        return max(sides), sides[0 if extra_side >= 0 else 1]

    def total(self):
        return sum(self.worst(i)[0] for i in range(len(self.instruments)))

    def held(self):
        return [i for i in range(len(self.instruments)) if self.qty[i] or self.open(i)]

    # ---- inputs

    def mark(self, instrument, book):
        self.books[instrument] = book
        if book["bid"] > 0 and book["ask"] > 0:
            mid = (book["bid"] + book["ask"]) / 2
            self.reference[instrument] = mid // N * N
        elif book["last"] > 0:
            self.reference[instrument] = book["last"]

    def order_event(self, event):
        newer = event["event"] > self.last_event
        self.last_event = max(self.last_event, event["event"])
        known = self.orders.get(event["order"])
        if known is None:
            if newer and event["kind"] in ("FILL", "PARTIAL_FILL"):
                i = event["instrument"]
                self.qty[i] += event["side"] * event["qty"]
                self.reference[i] = self.reference[i] or event.get("price", Decimal(100))
            return
        moved = max(event["cum"] - known["cum"], Decimal(0))
        known["cum"] += moved
        self.qty[known["instrument"]] += known["side"] * moved
        if known["open"]:
            known["remaining"] = max(known["remaining"] - moved, Decimal(0))
            if known["remaining"] == 0 or event["kind"] in ENDS:
                known["open"], known["remaining"] = False, Decimal(0)
                self.ended.append(event["order"])

    # ---- the question

    def check(self, intent, now):
        """(reason name, limit, value); limit and value None where they are not amounts."""
        with localcontext() as context:
            context.prec = 100
            fresh = intent["seq"] > self.last_seq
            self.last_seq = max(self.last_seq, intent["seq"])
            if intent["action"] == "CANCEL":
                target = self.orders.get(intent["target"])
                return ("NONE" if target and target["open"] else "NOT_OPEN"), None, None
            try:
                worth, price = self.judge(intent, now, fresh)
            except Stop as stop:
                return stop.reason, stop.limit, stop.value
            if self.unused:
                self.unused -= 1
            else:
                del self.orders[self.ended.pop(0)]
            self.orders[intent["seq"]] = {
                "instrument": intent["instrument"], "side": intent["side"], "price": price,
                "worth": worth, "remaining": intent["qty"], "cum": Decimal(0), "open": True}
            self.times.append(max([now, *self.times[-1:]]))
            return "NONE", None, None

    def judge(self, intent, now, fresh):
        limits = self.limits

        def stop(reason, value, name):
            raise Stop(reason, limits[name], value)

        if not self.armed:
            raise Stop("HALTED")
        if self.full:
            raise Stop("STORE_FULL")
        i = intent["instrument"]
        if i >= len(self.instruments):
            raise Stop("UNKNOWN_INSTRUMENT")
        spec, side, qty = self.instruments[i], intent["side"], intent["qty"]
        if (side not in (1, -1) or intent["type"] not in ("MARKET", "LIMIT")
                or intent["tif"] not in (1, 2, 3, 4) or qty <= 0 or qty < spec["min_qty"]
                or qty % spec["lot"]
                or (intent["type"] == "LIMIT"
                    and (intent["price"] <= 0 or intent["price"] % spec["tick"]))
                or (intent["type"] == "MARKET" and intent["price"] != 0)):
            raise Stop("INVALID_ORDER")
        if not fresh:
            raise Stop("DUPLICATE")
        book = self.books.get(i)
        if book is None or not self.reference[i] or book["flags"] & UNUSABLE:
            raise Stop("STALE_DATA")
        touch = book["ask"] if side > 0 else book["bid"]
        if intent["type"] == "MARKET" and touch <= 0:
            raise Stop("STALE_DATA")
        if now - book["ts"] > limits["max_data_age_ms"] * 10**6:
            raise Stop("STALE_DATA")
        recent = [t for t in self.times if now - t < 60 * 10**9]
        if len(recent) + 1 > limits["max_orders_per_minute"]:
            stop("ORDER_RATE", len(recent) + 1, "max_orders_per_minute")
        if qty > limits["max_order_shares"]:
            stop("ORDER_SIZE", qty, "max_order_shares")
        collar = Decimal(limits["price_collar_bps"]) / 10000
        if intent["type"] == "LIMIT":
            price = intent["price"]
            worth = price if side > 0 else max(price, book["bid"])
            at = price
        else:
            price = Decimal("Infinity") if side > 0 else Decimal(0)
            worth = up(touch * (1 + collar), N)
            at = touch
        if worth > TOP or worth * qty > TOP:
            raise Stop("OVERFLOW")
        if worth * qty > limits["max_order_notional"]:
            stop("ORDER_NOTIONAL", up(worth * qty, N), "max_order_notional")
        off = abs(at - self.reference[i]) / self.reference[i]
        if off > collar:
            stop("PRICE_COLLAR", int(up(off * 10000, 1)), "price_collar_bps")
        position = self.qty[i]
        after = position + side * (sum(o["remaining"] for o in self.open(i, side)) + qty)
        if abs(after) > TOP:
            raise Stop("OVERFLOW")
        reducing = position * side < 0
        if reducing and after * position < 0:
            raise Stop("CROSSES_ZERO")
        if not reducing:
            if side < 0 and not (limits["allow_short"] and spec["shortable"]):
                raise Stop("SHORT_NOT_ALLOWED")
            if abs(after) > limits["max_position_shares"]:
                stop("POSITION_SIZE", abs(after), "max_position_shares")
            worst, mine = self.worst(i, side, worth * qty)
            total = self.total() - self.worst(i)[0] + worst
            if mine > TOP:
                raise Stop("OVERFLOW")
            if mine > limits["max_position_notional"]:
                stop("POSITION_NOTIONAL", up(mine, N), "max_position_notional")
            if total > TOP:
                raise Stop("OVERFLOW")
            if total > limits["max_total_notional"]:
                stop("TOTAL_NOTIONAL", up(total, N), "max_total_notional")
            held = self.held()
            if i not in held and len(held) + 1 > limits["max_open_positions"]:
                stop("OPEN_POSITIONS", len(held) + 1, "max_open_positions")
        if len(self.open(i)) + 1 > limits["max_open_orders"]:
            stop("PENDING", len(self.open(i)) + 1, "max_open_orders")
        if not reducing and -self.day_pnl >= limits["max_daily_loss"]:
            stop("DAILY_LOSS", -self.day_pnl, "max_daily_loss")
        for other in self.open(i, -side):
            if other["price"] * side <= price * side:
                raise Stop("WASH_TRADE")
        if sum(o["open"] for o in self.orders.values()) >= self.capacity:
            raise Stop("TABLE_FULL")
        return worth, price
