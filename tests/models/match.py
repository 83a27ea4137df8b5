"""Price-time priority matching the plain way: lists, sorted when needed."""
from __future__ import annotations

from hftpipe import schema
from hftpipe._match import CANCELED, DUPLICATE, FILLED, FULL, INVALID, RESTED, UNKNOWN

LIMIT, MARKET = schema.ORDER_TYPE.LIMIT, schema.ORDER_TYPE.MARKET
DAY, GTC, IOC, FOK = (schema.TIF.DAY, schema.TIF.GTC, schema.TIF.IOC, schema.TIF.FOK)


class NaiveMatch:
    """Resting orders in arrival order; every question scans them all."""

    def __init__(self, orders, levels):
        self.orders, self.levels_room = orders, levels
        self.book = []                      # [id, side, price, left, owner], oldest first

    def levels(self, side):
        prices = {o[2] for o in self.book if o[1] == side}
        return [(p, sum(o[3] for o in self.book if (o[1], o[2]) == (side, p)),
                 sum((o[1], o[2]) == (side, p) for o in self.book))
                for p in sorted(prices, reverse=side > 0)]

    def _crossing(self, side, limit):
        """Resting orders that a taker meets, in the order it meets them."""
        found = [o for o in self.book if o[1] == -side
                 and (not limit or (o[2] <= limit if side > 0 else o[2] >= limit))]
        return sorted(found, key=lambda o: side * o[2])      # stable: time within price

    def submit(self, order, side, qty, price=0, *, type=LIMIT, tif=DAY, owner=0):
        limit = type == LIMIT
        if (order == 0 or side not in (1, -1) or not 0 < qty <= 1 << 60 or not DAY <= tif <= FOK
                or (limit and price <= 0) or type not in (LIMIT, MARKET)):
            return INVALID, 0, 0, []
        if any(o[0] == order for o in self.book):
            return DUPLICATE, 0, qty, []
        price = price if limit else 0
        rests = limit and tif in (DAY, GTC)
        if rests:
            here = [o for o in self.book if (o[1], o[2]) == (side, price)]
            used = len({(o[1], o[2]) for o in self.book})
            if (len(self.book) == self.orders or (not here and used == self.levels_room)
                    or sum(o[3] for o in here) + qty >= 1 << 63):
                return FULL, 0, qty, []
        crossing = self._crossing(side, price)
        if tif == FOK and sum(o[3] for o in crossing) < qty:
            return CANCELED, 0, qty, []
        left, fills = qty, []
        for maker in crossing:
            if left == 0:
                break
            n = min(left, maker[3])
            left -= n
            maker[3] -= n
            fills.append((maker[0], order, maker[2], n, maker[3], left, maker[4], owner, side))
        self.book = [o for o in self.book if o[3]]
        if left and rests:
            self.book.append([order, side, price, left, owner])
        status = FILLED if not left else RESTED if rests else CANCELED
        return status, qty - left, left, fills

    def cancel(self, order):
        for o in self.book:
            if o[0] == order:
                self.book.remove(o)
                return CANCELED, 0, o[3], []
        return UNKNOWN, 0, 0, []

    def replace(self, order, price, qty):
        if price <= 0 or not 0 < qty <= 1 << 60:
            return INVALID, 0, 0, []
        old = next((o for o in self.book if o[0] == order), None)
        if old is None:
            return UNKNOWN, 0, 0, []
        if price == old[2] and qty <= old[3]:
            old[3] = qty
            return RESTED, 0, qty, []
        before = list(self.book)
        self.book.remove(old)
        result = self.submit(order, old[1], qty, price, owner=old[4])
        if result[0] == FULL:
            self.book = before
            return FULL, 0, 0, []
        return result
