"""Stops and targets; the rules are in ``_exits.pxd``."""
cimport cython
from libc.stdint cimport INT64_MIN
from libc.stdlib cimport calloc, free

from .._ledger cimport (
    HP_NANO, account_t, hp_wide_abs, hp_wide_add, hp_wide_cash, hp_wide_even, hp_wide_fits,
    hp_wide_less, hp_wide_mul, hp_wide_of, hp_wide_sub, hp_wide_t, hp_wide_times,
    ledger_order_event)
from .._schema cimport (
    HP_ACTION_NEW, HP_EXIT_ABSOLUTE, HP_EXIT_ATR, HP_EXIT_BREAK_EVEN, HP_EXIT_FIRST, HP_EXIT_LOSS,
    HP_EXIT_STOP, HP_EXIT_TARGET, HP_EXIT_TIME, HP_EXIT_TRAILING, HP_ORDER_EVENT_CANCELED,
    HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_FILL,
    HP_ORDER_EVENT_PARTIAL_FILL, HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_REPLACED,
    HP_ORDER_TYPE_LIMIT, HP_ORDER_TYPE_MARKET, HP_TIF_DAY, HP_TIF_IOC, hp_intent_t)
from .._strategy cimport (
    STRATEGY_BOOK, STRATEGY_ORDER, STRATEGY_TRADE, STRATEGY_VERSION, strategy_add)
from ._taker cimport TAKER_UNTRADABLE

from hftpipe.errors import ConfigError
from hftpipe.strategies.params import read

cdef extern from "_wide.h" nogil:
    int64_t hp_bps_ceil(int64_t price, int64_t bps) noexcept
    int64_t hp_add_saturate(int64_t a, int64_t b) noexcept

# As `hftpipe.config` gives them: basis points, ns, nanocash, 1e-9.
DEFAULTS = {
    "stop": 200, "trailing": 150, "trailing_from": 200, "atr_times": 0, "atr_bars": 14,
    "atr_bar": 60 * 10**9, "hold": 86_400 * 10**9, "loss": 0, "target": 500, "first": 300,
    "first_share": 5000, "break_even": True, "market": True, "tolerance": 50, "pause": 10**9,
}


cdef inline int64_t share_of(int64_t whole, int64_t bps) noexcept nogil:
    """whole * bps / 10000, rounded down; whole >= 0, bps at most 10000."""
    return whole // 10_000 * bps + whole % 10_000 * bps // 10_000


cdef int64_t on_grid(const exit_t *x, int64_t touch, int64_t price, int64_t side) noexcept nogil:
    """*price* moved to one that the venue takes: towards the *touch*, never beyond it.

    A touch between two of them (dark orders trade there) would leave nothing to sell to: then
    the price lies on the other side, less than an increment off.
    """
    cdef int64_t step = x.tick
    cdef int64_t rest
    if x.cents:
        step = max(step, <int64_t>(HP_NANO // 100 if price >= HP_NANO else HP_NANO // 10_000))
    rest = price % step
    if rest == 0:
        return price
    if side > 0:                                    # a sale: up to the bid at most
        return price - rest + (step if price - rest + step <= touch else 0)
    return price - rest + (0 if price - rest >= touch else step)


cdef inline bint reached(hp_wide_t value, hp_wide_t cost, int64_t side, int64_t bps) noexcept nogil:
    """Whether the price is *bps* better than the entry, exactly."""
    return not hp_wide_less(hp_wide_times(value, side * 10_000),
                            hp_wide_times(cost, side * (10_000 + side * bps)))


cdef inline bint fallen(hp_wide_t value, hp_wide_t cost, int64_t side, int64_t bps) noexcept nogil:
    """Whether the price is *bps* worse than the entry, exactly."""
    return not hp_wide_less(hp_wide_times(cost, side * (10_000 - side * bps)),
                            hp_wide_times(value, side * 10_000))


@cython.final
cdef class Exits(Strategy):
    """Close every position at its stops and targets, at once, no more than is held.

    Parameters
    ----------
    params : mapping
        Of `DEFAULTS`, and ``price``: a mapping of symbol to absolute stop in nanoprice.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``

    Raises
    ------
    ConfigError
    """

    def __cinit__(self):
        self.version = STRATEGY_VERSION

    def __init__(self, params, instruments):
        if self.exits != NULL:
            raise ValueError("a strategy is configured once")
        given = dict(params)
        prices = dict(given.pop("price", {}))
        p = read("exits", given, DEFAULTS)
        self.params = p
        self.rules.stop_bps, self.rules.trail_bps = p["stop"], p["trailing"]
        self.rules.trail_from_bps, self.rules.atr_times = p["trailing_from"], p["atr_times"]
        self.rules.atr_bars, self.rules.atr_bar = p["atr_bars"], p["atr_bar"]
        self.rules.hold, self.rules.loss = p["hold"], p["loss"]
        self.rules.target_bps, self.rules.first_bps = p["target"], p["first"]
        self.rules.first_share_bps, self.rules.break_even = p["first_share"], p["break_even"]
        self.rules.tolerance_bps, self.rules.market = p["tolerance"], p["market"]
        self.rules.pause = p["pause"]
        for name in DEFAULTS:
            if p[name] < 0 or (name in ("atr_bars", "atr_bar") and p[name] < 1):
                raise ConfigError(f"exits: {name} must not be negative, was {p[name]}")
        for name in ("stop", "trailing", "first_share", "tolerance"):
            if p[name] > 10_000:
                raise ConfigError(f"exits: {name} must be at most 100 %, was {p[name]} bp")
        self.count = len(instruments)
        self.ledger = Ledger(max(self.count, 1))
        self.exits = <exit_t *>calloc(self.count or 1, sizeof(exit_t))
        if self.exits == NULL:
            raise MemoryError
        for i, row in enumerate(instruments):
            self.exits[i].lot = max(int(row["lot"]), 1)
            self.exits[i].tick = max(int(row["tick"]), 1)
            self.exits[i].cents = int(row["flags"]) & 4 != 0
            self.exits[i].absolute = prices.pop(row["symbol"].decode("ascii", "replace"), 0)
            self.exits[i].first_left = -1
        if prices:
            raise ConfigError(f"exits: price names {min(prices)}, which is no instrument")

    @classmethod
    def from_config(cls, params, instruments):
        """The exits that *params* describe, for *instruments*."""
        return cls(params, instruments)

    def __dealloc__(self):
        free(self.exits)

    def state(self, int instrument):
        """What is known of one instrument's position: for looking at, in tests and debuggers."""
        if not 0 <= instrument < self.count:
            raise IndexError(f"instrument must be below {self.count}, was {instrument}")
        cdef exit_t *x = &self.exits[instrument]
        return {"qty": x.qty, "best": x.best, "trailing": x.trailing, "trail": x.trail,
                "atr": x.atr if x.ranges >= self.rules.atr_bars else 0,
                "atr_distance": x.atr_distance, "first_left": x.first_left,
                "closing": x.closing, "alive": x.alive, "next": x.next,
                "since": x.since}

    def restore(self, instrument, holding):
        """Go on with the stops of a position that an earlier run opened.

        The ATR is measured anew; what is left of a first target that was taken in part is not
        closed at that price again.
        """
        if not 0 <= instrument < self.count:
            raise IndexError(f"instrument must be below {self.count}, was {instrument}")
        cdef exit_t *x = &self.exits[instrument]
        cdef const account_t *a = &self.ledger.l.accounts[instrument]
        cdef int64_t side, best
        cdef hp_wide_t value, cost
        self.ledger.restore(instrument, qty=holding["qty"], cost=holding["cost"], realised=0,
                            fills=holding["fills"])
        if a.qty == 0:
            return
        side = 1 if a.qty > 0 else -1
        best = holding["best"]
        x.qty, x.since, x.closing = a.qty, holding["since"], holding["closing"]
        x.best = best * side if best else INT64_MIN
        x.first_filled, x.first_left = bool(holding["first"]), 0 if holding["first"] else -1
        if best and self.rules.trail_bps:
            value, cost = hp_wide_mul(best, a.qty * side), hp_wide_abs(a.cost)
            if hp_wide_fits(value) and reached(value, cost, side, self.rules.trail_from_bps):
                x.trailing = True
                x.trail = x.best - hp_bps_ceil(best, self.rules.trail_bps)

    cdef void _bar(self, exit_t *x, const hp_book_t *book, int64_t now) noexcept nogil:
        """Advance the ATR (Wilder's, over bars of the mid) by one state of the book."""
        cdef int64_t mid = book.bid + (book.ask - book.bid) // 2
        cdef int64_t bar = now // self.rules.atr_bar, count = self.rules.atr_bars, span
        if x.high and bar != x.bar:
            span = max(x.high, x.close) - (min(x.low, x.close) if x.close else x.low)
            if x.ranges < count:                        # a plain mean first
                x.atr = hp_add_saturate(x.atr, span)
                x.ranges += 1
                if x.ranges == count:
                    x.atr //= count
            else:
                x.atr = hp_wide_even(hp_wide_add(hp_wide_mul(x.atr, count - 1),
                                                 hp_wide_of(span)), count)
            x.close, x.high = x.last, 0
        if not x.high:
            x.bar, x.high, x.low = bar, mid, mid
        x.high, x.low, x.last = max(x.high, mid), min(x.low, mid), mid

    cdef void _fill(self, exit_t *x, const hp_context_t *c) noexcept nogil:
        """One step of an order of anybody's on this instrument."""
        cdef int64_t before = x.qty
        cdef uint8_t kind = c.order_event.kind
        # Identities ascend: one that is not beyond the newest ended order is late news of it.
        cdef bint ours = (x.alive and c.order_event.strategy == c.strategy
                          and c.order_event.order > x.ended)
        if kind == HP_ORDER_EVENT_FILL or kind == HP_ORDER_EVENT_PARTIAL_FILL:
            ledger_order_event(&self.ledger.l, c.order_event)
            x.qty = self.ledger.l.accounts[c.instrument].qty
            if ours and x.alive == HP_EXIT_FIRST:
                x.first_filled = True
                x.first_left = max(x.first_left - c.order_event.qty, 0)
            if x.qty == 0 or (before < 0) != (x.qty < 0) or before == 0:        # E4
                x.since, x.trailing, x.first_filled, x.closing = c.now, False, False, 0
                x.atr_distance, x.first_left, x.best = 0, -1, INT64_MIN
        if ours and kind in (
                HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED,
                HP_ORDER_EVENT_CANCELED, HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_EXPIRED,
                HP_ORDER_EVENT_REPLACED):
            x.alive, x.ended = 0, c.order_event.order                           # E1
            if kind != HP_ORDER_EVENT_FILL:
                x.next = c.now + self.rules.pause

    cdef uint8_t _fires(self, exit_t *x, const hp_context_t *c, int64_t price) noexcept nogil:
        """The exit that is due at *price*, in the order of the list; 0 = none.

        Everything is in side * price, so that more is better; cost and qty are positive.
        """
        cdef const account_t *a = &self.ledger.l.accounts[c.instrument]
        cdef const rules_t *r = &self.rules
        cdef int64_t side = 1 if a.qty > 0 else -1, now = price * side, best
        cdef hp_wide_t cost = hp_wide_abs(a.cost)
        cdef hp_wide_t value = hp_wide_mul(price, a.qty * side)
        if not hp_wide_fits(value):             # beyond what the ledger holds: it halts, not we
            return 0
        x.best = max(x.best, now)
        if r.trail_bps:
            if not x.trailing and reached(value, cost, side, r.trail_from_bps):
                x.trailing, x.trail = True, INT64_MIN
            if x.trailing:                      # fires exactly when price <= best - trail_bps
                best = x.best * side
                x.trail = max(x.trail, x.best - hp_bps_ceil(best, r.trail_bps))
        if r.atr_times and not x.atr_distance and x.ranges >= r.atr_bars:
            x.atr_distance = max(hp_wide_even(hp_wide_mul(x.atr, r.atr_times), HP_NANO), 1)
        if x.closing:
            return x.closing                                                    # E3
        if r.stop_bps and fallen(value, cost, side, r.stop_bps):
            return HP_EXIT_STOP
        if x.trailing and now <= x.trail:
            return HP_EXIT_TRAILING
        if x.absolute and now <= x.absolute * side:
            return HP_EXIT_ABSOLUTE
        if x.atr_distance and not hp_wide_less(
                hp_wide_times(hp_wide_sub(cost, value), side),
                hp_wide_mul(x.atr_distance, a.qty * side)):
            return HP_EXIT_ATR
        if r.break_even and x.first_filled and fallen(value, cost, side, 0):
            return HP_EXIT_BREAK_EVEN
        if r.loss and not hp_wide_less(hp_wide_times(hp_wide_sub(cost, value), side),
                                       hp_wide_cash(r.loss)):
            return HP_EXIT_LOSS
        if r.hold and c.now - x.since >= r.hold:
            return HP_EXIT_TIME
        if r.target_bps and reached(value, cost, side, r.target_bps):
            return HP_EXIT_TARGET
        if r.first_bps and x.first_left and reached(value, cost, side, r.first_bps):
            return HP_EXIT_FIRST
        return 0

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        cdef exit_t *x
        cdef int64_t price, side, qty, limit
        cdef uint8_t why
        cdef hp_intent_t *intent
        if c.instrument >= self.count:
            return 0
        x = &self.exits[c.instrument]
        if c.event == STRATEGY_ORDER:
            self._fill(x, c)
            return 0
        if (c.event != STRATEGY_BOOK and c.event != STRATEGY_TRADE) \
                or c.book.flags & TAKER_UNTRADABLE or c.book.bid <= 0 or c.book.ask <= 0:
            return 0
        if self.rules.atr_times:
            self._bar(x, c.book, c.now)
        if x.qty == 0:
            return 0
        side = 1 if x.qty > 0 else -1
        price = c.book.bid if side > 0 else c.book.ask
        why = self._fires(x, c, price)
        if not why or x.alive or c.now < x.next:                                # E1
            return 0
        qty = x.qty * side
        if why == HP_EXIT_FIRST:
            if x.first_left < 0:
                x.first_left = share_of(qty, self.rules.first_share_bps)
                x.first_left -= x.first_left % x.lot
            qty = min(qty, x.first_left)
        # E2: what other orders offer already is theirs to sell
        qty = min(qty, x.qty * side - (c.holding.open_sell if side > 0 else c.holding.open_buy))
        if qty <= 0:
            return 0
        intent = strategy_add(out)
        if intent == NULL:
            return 0
        intent.side, intent.qty, intent.action = -side, qty, HP_ACTION_NEW
        intent.instrument, intent.target, intent.tag = c.instrument, 0, why
        if self.rules.market:
            intent.type, intent.tif, intent.price = HP_ORDER_TYPE_MARKET, HP_TIF_DAY, 0
        else:
            limit = share_of(price, self.rules.tolerance_bps)
            limit = on_grid(x, price, price - side * limit, side)
            intent.type, intent.tif = HP_ORDER_TYPE_LIMIT, HP_TIF_IOC
            intent.price = max(limit, x.tick)
        x.alive = why
        if why not in (HP_EXIT_TARGET, HP_EXIT_FIRST):
            x.closing = why                                                     # E3
        return 0
