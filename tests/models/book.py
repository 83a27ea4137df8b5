"""The order book as plain Python: dicts of levels, a dict of orders, sorted on demand.

Written from the rules alone (schema.py, the header of src/_book.h), not from the C.
"""
from hftpipe import schema

K, F, B = schema.MARKET_KIND, schema.MARKET_FLAG, schema.BOOK_FLAG
NAME = {value: name for name, value, _ in K.members}
TOP = 2**63 - 1


class Book:
    """Levels by price, orders by reference; nothing is cached."""

    def __init__(self, tick, orders=1 << 30):
        self.tick, self.room = tick, orders
        self.levels = {1: {}, -1: {}}           # side -> price -> quantity
        self.orders = {}                        # ref -> [side, price, qty], oldest first
        self.known = set()
        self.touched = self.loading = self.halted = self.traded = False
        self.ended = True
        self.replacing = 0
        self.last_price = self.last_qty = self.last_side = self.volume = 0
        self.counters = dict.fromkeys(
            ("applied", "unknown_order", "absent_level", "off_tick", "invalid", "duplicate",
             "exhausted", "clipped", "gaps", "unknown_trade"), 0)
        self.prints = []                        # [ref, price, qty, side], oldest first; qty 0: void
        self.fixing = None
        self.bands = {1: 0, -1: 0}

    # -- one record

    def apply(self, m):
        if self.ended:
            self.traded = False
        self.ended = bool(m["flags"] & F.LAST)
        side = self.replacing
        self.replacing = 0
        fixing, self.fixing = self.fixing, None
        name = NAME.get(m["kind"])
        if m["qty"] < 0:
            cause = "invalid"
        elif m["flags"] & F.BACKFILLED:
            cause = self._late(m, name)
        elif name is None:
            cause = "invalid"
        else:
            cause = getattr(self, "_" + name.lower())(m, fixing if name == "FIX" else side)
        self.counters["applied" if cause is None else cause] += 1
        if (self.loading and self.ended and not m["flags"] & F.BACKFILLED
                and (name is None or not name.startswith("BAR_"))
                and name not in ("TRADE", "STATUS", "TIMER", "BUST", "FIX", "BAND")):
            self.loading = False
            self.known = {1, -1}
        return cause is None

    def _off(self, price):
        return price <= 0 or price % self.tick

    def _drop_level(self, side, price):
        del self.levels[side][price]
        self.orders = {r: o for r, o in self.orders.items() if o[:2] != [side, price]}

    def _drop_side(self, side):
        self.levels[side] = {}
        self.orders = {r: o for r, o in self.orders.items() if o[0] != side}

    def _quote(self, m, _):
        self.touched = True
        if m["side"] not in (1, -1):
            return "invalid"
        if m["qty"] and self._off(m["price"]):
            return "off_tick"
        self._drop_side(m["side"])
        if m["qty"]:
            self.levels[m["side"]][m["price"]] = m["qty"]
        self.known.add(m["side"])

    def _level(self, m, _):
        self.touched = True
        side, price = m["side"], m["price"]
        if side not in (1, -1):
            return "invalid"
        if self._off(price):
            return "off_tick"
        if m["qty"]:
            self.levels[side][price] = m["qty"]
        elif price in self.levels[side]:
            self._drop_level(side, price)
        else:
            return "absent_level"

    def _place(self, side, m):
        if self._off(m["price"]):
            return "off_tick"
        if not m["qty"] or not m["ref"]:
            return "invalid"
        if m["ref"] in self.orders:
            return "duplicate"
        if len(self.orders) == self.room:
            self.known, self.loading = set(), False
            return "exhausted"
        total = self.levels[side].get(m["price"], 0) + m["qty"]
        if total > TOP:
            return "invalid"
        self.levels[side][m["price"]] = total
        self.orders[m["ref"]] = [side, m["price"], m["qty"]]

    def _add(self, m, _):
        if m["side"] not in (1, -1):
            return "invalid"
        cause = self._place(m["side"], m)
        if cause is None and not self.touched:
            self.touched, self.known = True, {1, -1}
        return cause

    def _take(self, ref, qty):
        side, price, have = order = self.orders[ref]
        if qty > have:
            self.counters["clipped"] += 1
            qty = have
        order[2] -= qty
        if not order[2]:
            del self.orders[ref]
        left = self.levels[side][price] - qty
        if left < 0:
            self.counters["clipped"] += 1
        if left > 0:
            self.levels[side][price] = left
        else:
            self._drop_level(side, price)

    def _execute(self, m, _):
        self.touched = True
        if not m["ref"] or not m["qty"]:
            return "invalid"
        if m["ref"] not in self.orders:
            return "unknown_order"
        side, price, _ = self.orders[m["ref"]]
        self._print(m["ref"], m["price"] if m["price"] > 0 else price, m["qty"], -side, m["flags"])
        self._take(m["ref"], m["qty"])

    def _cancel(self, m, _):
        self.touched = True
        if not m["ref"] or not m["qty"]:
            return "invalid"
        if m["ref"] not in self.orders:
            return "unknown_order"
        self._take(m["ref"], m["qty"])

    def _delete(self, m, _):
        self.touched = True
        if not m["ref"]:
            return "invalid"
        if m["ref"] not in self.orders:
            return "unknown_order"
        self._take(m["ref"], self.orders[m["ref"]][2])

    def _replace_from(self, m, _):
        self.touched = True
        if not m["ref"]:
            return "invalid"
        if m["ref"] not in self.orders:
            return "unknown_order"
        self.replacing = self.orders[m["ref"]][0]
        self._take(m["ref"], self.orders[m["ref"]][2])

    def _replace_to(self, m, side):
        self.touched = True
        return self._place(side, m) if side else "unknown_order"

    def _clear(self, m, _):
        self.touched = self.loading = True
        self.known = set()
        self._drop_side(1)
        self._drop_side(-1)

    def _gap(self, m, _):
        self.touched, self.loading, self.known = True, False, set()
        self.counters["gaps"] += 1
        self.bands = {1: 0, -1: 0}
        if self.halted:
            self.halted = "before a gap"

    def _print(self, ref, price, qty, side, flags):
        if flags & F.UNPRINTABLE:
            return
        self.last_price, self.last_qty, self.last_side = price, qty, side
        self.volume = min(self.volume + qty, TOP)
        self.traded = True
        if self.halted == "before a gap":
            self.halted = False
        self.prints = [*self.prints, [ref, price, qty, side]][-64:]

    def _printed(self, m):
        return next((p for p in reversed(self.prints)
                     if p[2] and p[:3] == [m["ref"], m["price"], m["qty"]]), None)

    def _last(self):
        standing = [p for p in self.prints if p[2]] or [[0, 0, 0, 0]]
        _, self.last_price, self.last_qty, self.last_side = standing[-1]

    def _late(self, m, name):
        if name != "TRADE":
            return None
        if m["price"] <= 0 or not m["qty"]:
            return "invalid"
        if self._printed(m):
            return "unknown_trade"
        self.volume = min(self.volume + m["qty"], TOP)

    def _bust(self, m, _):
        found = self._printed(m) if m["qty"] else None
        if found is None:
            return "unknown_trade"
        self.volume = max(self.volume - m["qty"], 0)
        found[2] = 0
        self.fixing = found
        self._last()

    def _fix(self, m, fixing):
        if m["price"] <= 0 or not m["qty"]:
            return "invalid"
        if fixing is None:
            return "unknown_trade"
        fixing[:3] = m["ref"], m["price"], m["qty"]
        self.volume = min(self.volume + m["qty"], TOP)
        self._last()

    def _band(self, m, _):
        if m["side"] not in (1, -1) or m["price"] < 0:
            return "invalid"
        self.bands[m["side"]] = m["price"]

    def _bar_open(self, m, _):
        pass

    _bar_high = _bar_low = _bar_close = _bar_open

    def _trade(self, m, _):
        if m["price"] <= 0 or not m["qty"]:
            return "invalid"
        self._print(m["ref"], m["price"], m["qty"], m["side"], m["flags"])

    def _status(self, m, _):
        self.halted = not m["ref"]

    def _timer(self, m, _):
        pass

    # -- questions

    def side(self, side):
        """(price, qty, orders) of a side, best first."""
        return [(p, self.levels[side][p], sum(o[:2] == [side, p] for o in self.orders.values()))
                for p in sorted(self.levels[side], reverse=side > 0)]

    def best_bid(self):
        return max(self.levels[1], default=0)

    def best_ask(self):
        return min(self.levels[-1], default=0)

    def top(self):
        """(bid, ask, bid_qty, ask_qty)."""
        bid, ask = self.best_bid(), self.best_ask()
        return bid, ask, self.levels[1].get(bid, 0), self.levels[-1].get(ask, 0)

    def order(self, ref):
        if ref not in self.orders:
            return None
        side, price, qty = self.orders[ref]
        ahead = 0
        for other, o in self.orders.items():
            if other == ref:
                break
            if o[:2] == [side, price]:
                ahead += o[2]
        return side, price, qty, ahead

    def walk(self, side, qty):
        cost = filled = worst = 0
        for price, have, _ in self.side(-side):
            take = min(have, qty - filled)
            if not take:
                break
            cost, filled, worst = cost + price * take, filled + take, price
        return cost, filled, qty - filled, worst

    def flags(self):
        bid, ask = self.best_bid(), self.best_ask()
        return ((self.known != {1, -1}) * B.STALE | (not bid or not ask) * B.EMPTY
                | (bool(bid and ask) and bid > ask) * B.CROSSED
                | (bool(bid) and bid == ask) * B.LOCKED
                | bool(self.halted) * B.HALTED | bool(self.traded) * B.TRADE
                | (self.known == {1, -1} and bool(
                    (self.bands[1] and bid >= self.bands[1])
                    or (self.bands[-1] and ask and ask <= self.bands[-1]))) * B.LIMITED)

    def view(self):
        bid, ask, bid_qty, ask_qty = self.top()
        depth = [min(sum(q for _, q, _ in self.side(s)[:schema.DEPTH]), TOP) for s in (1, -1)]
        return {"bid": bid, "ask": ask, "bid_qty": bid_qty, "ask_qty": ask_qty,
                "bid_depth": depth[0], "ask_depth": depth[1], "last_price": self.last_price,
                "last_qty": self.last_qty, "last_side": self.last_side, "volume": self.volume,
                "flags": self.flags()}
