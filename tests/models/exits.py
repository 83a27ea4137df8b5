"""Stops and targets in plain words: every fill and price is kept, entries are fractions."""
from fractions import Fraction


class NaiveExits:
    """One instrument; rules as `hftpipe.strategies._exits.DEFAULTS` has them."""

    def __init__(self, rules, lot, absolute=0):
        self.rules, self.lot, self.absolute = rules, lot, absolute
        self.mids = []                          # (now, mid) of every tradable state
        self.order = None                       # why, while an exit order is alive
        self.ended = self.pause_until = 0
        self.position = None

    # ---- what happened

    def fill(self, now, signed, price):
        """An execution of anybody's."""
        p = self.position
        if p is None:
            self.position = {"qty": signed, "entry": Fraction(price), "since": now, "prices": [],
                             "first": None, "first_filled": False, "closing": "", "trails": [],
                             "range": None}
            return
        after = p["qty"] + signed
        if p["qty"] * signed > 0:
            p["entry"] = (p["entry"] * p["qty"] + price * signed) / after
            p["qty"] = after
        elif after == 0:
            self.position = None
        elif after * p["qty"] < 0:
            self.position = None
            self.fill(now, after, price)
        else:
            p["qty"] = after

    def exit_fill(self, now, number, signed, price):
        alive = self.order and number > self.ended
        p = self.position
        if alive and self.order == "first" and p:
            p["first_filled"] = True
            p["first"] = max(p["first"] - abs(signed), 0)
        self.fill(now, signed, price)

    def exit_end(self, now, number, filled):
        if self.order and number > self.ended:
            self.order, self.ended = None, number
            if not filled:
                self.pause_until = now + self.rules["pause"]

    # ---- what to do

    def average_range(self):
        """Wilder's, of the bars that are complete; None before there are enough."""
        size, bars = self.rules["atr_bar"], {}
        for now, mid in self.mids:
            bars.setdefault(now // size, []).append(mid)
        complete = [bars[k] for k in sorted(bars)][:-1]
        spans, before = [], None
        for mids in complete:
            high, low = max(mids), min(mids)
            if before is not None:
                high, low = max(high, before), min(low, before)
            spans.append(high - low)
            before = mids[-1]
        count = self.rules["atr_bars"]
        if len(spans) < count:
            return None
        out = sum(spans[:count]) // count
        for span in spans[count:]:
            out = round(Fraction(out * (count - 1) + span, count))
        return out

    def tick(self, now, bid, ask, offered):
        """``(why, side, qty)`` of the order to send, or None; *offered* is open on that side."""
        r, p = self.rules, self.position
        self.mids.append((now, bid + (ask - bid) // 2))
        if p is None:
            return None
        side = 1 if p["qty"] > 0 else -1
        price, held = (bid if side > 0 else ask), abs(p["qty"])
        p["prices"].append(price)
        gain = (price - p["entry"]) * side                      # per unit
        share = gain / p["entry"] * 10_000                      # bp
        best = max(p["prices"], key=lambda v: v * side)
        if r["trailing"] and (p["trails"] or share >= r["trailing_from"]):
            p["trails"].append(best * (1 - Fraction(side * r["trailing"], 10_000)))
        if r["atr_times"] and p["range"] is None:
            average = self.average_range()
            if average is not None:
                p["range"] = max(round(Fraction(average * r["atr_times"], 10**9)), 1)
        why = p["closing"] or self.due(p, now, price, side, held, gain, share)
        if not why or self.order or now < self.pause_until:
            return None
        qty = held
        if why == "first":
            if p["first"] is None:
                p["first"] = held * r["first_share"] // 10_000 // self.lot * self.lot
            qty = min(held, p["first"])
        qty = min(qty, held - offered)
        if qty <= 0:
            return None
        self.order = why
        if why not in ("target", "first"):
            p["closing"] = why
        return why, -side, qty

    def due(self, p, now, price, side, held, gain, share):
        r = self.rules
        rules = (
            ("stop", r["stop"] and share <= -r["stop"]),
            ("trailing", p["trails"] and any(price * side <= t * side for t in p["trails"])),
            ("absolute", self.absolute and price * side <= self.absolute * side),
            ("atr", p["range"] is not None and gain <= -p["range"]),
            ("break_even", r["break_even"] and p["first_filled"] and gain <= 0),
            ("loss", r["loss"] and -gain * held >= r["loss"] * 10**9),
            ("time", r["hold"] and now - p["since"] >= r["hold"]),
            ("target", r["target"] and share >= r["target"]),
            ("first", r["first"] and p["first"] != 0 and share >= r["first"]))
        return next((name for name, fires in rules if fires), "")
