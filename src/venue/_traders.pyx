"""The traders; who they are and why they move the market is in ``_traders.pxd``."""
cimport cython
from libc.math cimport ceil, exp, floor, log
from libc.stdlib cimport calloc, free, malloc

from hftpipe._match cimport (
    MATCH_MORE, match_best_ask, match_best_bid, match_cancel, match_continue, match_depth,
    match_free, match_left, match_level, match_new, match_queue_t, match_replace, match_sound,
    match_submit)
from hftpipe._schema cimport HP_ORDER_TYPE_LIMIT, HP_TIF_GTC, HP_TIF_IOC

QUOTE, TRADE, LEVEL = MESSAGE_QUOTE, MESSAGE_TRADE, MESSAGE_LEVEL
EXTERNAL = 1 << 63              # bit of order ids that come from outside

cdef int64_t PRICE_MAX = <int64_t>1 << 61


@cython.final
cdef class Traders:
    """Books of several instruments with a crowd of seeded traders in each.

    Parameters
    ----------
    instruments : sequence with .price, .tick (nanoprice), .unit (nanoqty), .deep
        ``deep`` ones publish price levels as well as quotes and trades.
    seed : int
    rate : float
        Messages per second over all instruments; 0 keeps the books still.
    now : int, ns
        Where virtual time begins.
    first_trade : int
        Trade ids begin after it.
    """

    def __cinit__(self, instruments, uint64_t seed, double rate, int64_t now,
                  uint64_t first_trade=0):
        cdef crowd_t *c
        cdef uint32_t i, slot
        if not 0 <= rate <= 1e7:
            raise ValueError(f"rate must be 0 to 1e7 messages per second, was {rate}")
        if not 0 < len(instruments) <= 4096:
            raise ValueError(f"instruments must be 1 to 4096, were {len(instruments)}")
        self._count = len(instruments)
        self._crowds = <crowd_t *>calloc(self._count, sizeof(crowd_t))
        self._log = <message_t *>malloc(LOG_ROOM * sizeof(message_t))
        if self._crowds == NULL or self._log == NULL:
            raise MemoryError("no memory for the books")
        self._out.fills, self._out.fill_room = self._fills, FILL_ROOM
        self._out.levels, self._out.level_room = self._levels, FILL_ROOM + 3
        self._random = seed
        self._trade = first_trade
        self._pace = 1e9 / rate if rate else 0.0
        self._next = <double>now
        for i in range(self._count):
            c = &self._crowds[i]
            row = instruments[i]
            if not (row.tick > 0 and row.unit > 0 and row.price >= 100 * row.tick
                    and row.price < PRICE_MAX):
                raise ValueError(f"instrument {i}: tick and unit must be positive and the price "
                                 f"at least 100 ticks, were {row.tick}, {row.unit}, {row.price}")
            c.tick, c.unit, c.deep = row.tick, row.unit, row.deep
            c.value = c.base = c.mid = <double>(row.price // row.tick)
            c.m = match_new(ORDER_ROOM, LEVEL_ROOM)
            if c.m == NULL:
                raise MemoryError("no memory for the books")
            for slot in range(<uint32_t>SLOTS):
                self._refresh(c, slot)
            self._logged = 0                # nobody listens yet
            c.mid = <double>(match_best_bid(c.m) + match_best_ask(c.m)) / (2.0 * c.tick)
        self.messages = 0

    def __dealloc__(self):
        cdef uint32_t i
        if self._crowds != NULL:
            for i in range(self._count):
                match_free(self._crowds[i].m)
        free(self._crowds)
        free(self._log)

    # ------------------------------------------------------------ chance

    cdef double _uniform(self) noexcept nogil:
        """In (0, 1); splitmix64."""
        self._random += 0x9e3779b97f4a7c15ULL
        cdef uint64_t z = self._random
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL
        z = z ^ (z >> 31)
        return (<double>(z >> 11) + 0.5) * (1.0 / 9007199254740992.0)

    cdef double _normal(self) noexcept nogil:
        """Nearly: four uniforms, unit variance, bounded by 3.5."""
        return (self._uniform() + self._uniform() + self._uniform() + self._uniform()
                - 2.0) * 1.7320508075688772

    cdef int64_t _geometric(self, double mean) noexcept nogil:
        """0, 1, 2, ... with about this mean; at most 60 means."""
        return <int64_t>(-log(self._uniform()) * mean)

    # ------------------------------------------------------------ what others see

    cdef void _publish(self, crowd_t *c, int status) noexcept nogil:
        """Log what the engine just did, and go on while it says MORE; ends with the quote."""
        cdef message_t *row
        cdef match_fill_t *f
        cdef match_level_t *v
        cdef uint32_t i
        cdef uint16_t instrument = <uint16_t>(c - self._crowds)
        self._change += 1
        while True:
            for i in range(self._out.fill_count):
                f = &self._fills[i]
                row = &self._log[self._logged]
                self._logged += 1
                self.messages += 1
                self._trade += 1
                row.number, row.maker, row.taker = self._trade, f.maker, f.taker
                row.a, row.b, row.c, row.d = f.price, f.qty, f.maker_left, f.taker_left
                row.instrument, row.kind, row.side = instrument, MESSAGE_TRADE, f.side
                c.last_price, c.last_qty = f.price, f.qty
            if c.deep:
                self.messages += self._out.level_count > 0
                for i in range(self._out.level_count):
                    v = &self._levels[i]
                    row = &self._log[self._logged]
                    self._logged += 1
                    row.number, row.maker, row.taker = self._change, 0, 0
                    row.a, row.b, row.c, row.d = v.price, v.qty, 0, 0
                    row.instrument, row.kind, row.side = instrument, MESSAGE_LEVEL, v.side
            if status != MATCH_MORE:
                break
            status = match_continue(c.m, &self._out)
        self._quote(c)

    cdef void _quote(self, crowd_t *c) noexcept nogil:
        """Log the best prices when they are not what was published last."""
        cdef const match_queue_t *bid = match_level(c.m, 1, 0)
        cdef const match_queue_t *ask = match_level(c.m, -1, 0)
        cdef int64_t bid_price = bid.price if bid != NULL else 0
        cdef int64_t ask_price = ask.price if ask != NULL else 0
        cdef int64_t bid_qty = bid.qty if bid != NULL else 0
        cdef int64_t ask_qty = ask.qty if ask != NULL else 0
        if (bid_price == c.bid and ask_price == c.ask
                and bid_qty == c.bid_qty and ask_qty == c.ask_qty):
            return
        c.bid, c.bid_qty, c.ask, c.ask_qty = bid_price, bid_qty, ask_price, ask_qty
        cdef message_t *row = &self._log[self._logged]
        self._logged += 1
        self.messages += 1
        row.number, row.maker, row.taker = self._change, 0, 0
        row.a, row.b, row.c, row.d = bid_price, bid_qty, ask_price, ask_qty
        row.instrument, row.kind = <uint16_t>(c - self._crowds), MESSAGE_QUOTE
        row.side = 0

    # ------------------------------------------------------------ what they do

    cdef void _refresh(self, crowd_t *c, uint32_t slot) noexcept nogil:
        """Withdraw the slot's order and quote anew; never through the other side."""
        cdef int8_t side = 1 if slot % 2 == 0 else -1
        cdef double away, skew
        cdef int64_t price, other, qty
        if c.slots[slot]:
            if match_left(c.m, c.slots[slot]):
                self._publish(c, match_cancel(c.m, c.slots[slot], &self._out))
            c.slots[slot] = 0
        away = 0.6 + <double>self._geometric(3.0 if slot < MAKERS else 12.0)
        if side > 0:
            price = <int64_t>floor(c.value - away) * c.tick
            other = match_best_ask(c.m)
            if other and price >= other:
                price = other - c.tick
        else:
            price = <int64_t>ceil(c.value + away) * c.tick
            other = match_best_bid(c.m)
            if price <= other:
                price = other + c.tick
        if price < c.tick:
            return
        skew = exp(0.5 * side * max(-2.0, min(2.0, c.lean)))
        qty = 1 + <int64_t>(skew * (1 + self._geometric(3.0)))
        self._order += 1
        c.slots[slot] = self._order
        self._publish(c, match_submit(c.m, self._order, 1, side, HP_ORDER_TYPE_LIMIT, HP_TIF_GTC,
                                      price, qty * c.unit, &self._out))

    cdef void _take(self, crowd_t *c, int8_t side, int64_t qty) noexcept nogil:
        """Hit the other side, one tick deep at most."""
        cdef int64_t best = match_best_ask(c.m) if side > 0 else match_best_bid(c.m)
        cdef int64_t limit = best + side * c.tick
        if best == 0 or limit <= 0:
            return
        self._order += 1
        self._publish(c, match_submit(c.m, self._order, 2, side, HP_ORDER_TYPE_LIMIT, HP_TIF_IOC,
                                      limit, qty * c.unit, &self._out))

    cdef void _act(self, crowd_t *c) noexcept nogil:
        """One event: the value moves a little, then somebody does something."""
        cdef const match_queue_t *bid
        cdef const match_queue_t *ask
        cdef double u, imbalance, mid
        cdef int8_t side
        self.events += 1
        c.lean += -0.005 * c.lean + 0.1 * self._normal()
        c.value += 0.02 * c.lean + 0.04 * self._normal() + 2e-5 * (c.base - c.value)
        if c.value < 50.0:
            c.value = 50.0
        bid, ask = match_level(c.m, 1, 0), match_level(c.m, -1, 0)
        if bid == NULL or ask == NULL:      # somebody swept a side: makers come back first
            self._refresh(c, 2 * <uint32_t>(self._uniform() * (MAKERS // 2)) + (bid != NULL))
            return
        mid = <double>(bid.price + ask.price) / (2.0 * c.tick)
        c.trend += 0.05 * (mid - c.mid - c.trend)
        c.mid = mid
        u = self._uniform()
        if u < 0.62:
            self._refresh(c, <uint32_t>(self._uniform() * MAKERS))
        elif u < 0.82:
            self._refresh(c, MAKERS + <uint32_t>(self._uniform() * (SLOTS - MAKERS)))
        elif u < 0.95:
            if c.value * c.tick > ask.price:
                side = 1
            elif c.value * c.tick < bid.price:
                side = -1
            else:
                imbalance = <double>(bid.qty - ask.qty) / <double>(bid.qty + ask.qty)
                side = 1 if self._uniform() < 1.0 / (
                    1.0 + exp(-1.2 * c.lean - 0.7 * imbalance)) else -1
            self._take(c, side, 1 + self._geometric(2.0))
        elif c.trend != 0.0:
            self._take(c, 1 if c.trend > 0.0 else -1, 1)

    def step(self, int64_t until) -> int:
        """Run all events up to *until* (virtual ns), or until the log is full.

        Returns
        -------
        int
            Messages waiting for :meth:`take`.
        """
        cdef uint64_t before
        cdef double cost
        with nogil:
            while (self._pace > 0.0 and self._next <= <double>until
                   and self._logged + ORDER_ROOM + 3 * LEVEL_ROOM < LOG_ROOM):
                before = self.messages
                self._act(&self._crowds[<uint32_t>(self._uniform() * self._count)])
                cost = <double>(self.messages - before)
                self._next += self._pace * (cost * -log(self._uniform()) + 0.001)
        return self._logged

    def skip(self, int64_t now) -> int:
        """Forget events that are due before *now*; the ns that were skipped."""
        cdef int64_t late = now - <int64_t>self._next
        if late > 0:
            self._next = <double>now
        return max(late, 0)

    def take(self) -> list:
        """All waiting messages: ``(kind, instrument, side, a, b, c, d, number, maker, taker)``."""
        cdef message_t *row
        cdef uint32_t i
        out = []
        for i in range(self._logged):
            row = &self._log[i]
            out.append((row.kind, row.instrument, row.side, row.a, row.b, row.c, row.d,
                        row.number, row.maker, row.taker))
        self._logged = 0
        return out

    # ------------------------------------------------------------ orders from outside

    cdef crowd_t *_crowd(self, uint32_t instrument) except NULL:
        if instrument >= self._count:
            raise IndexError(f"instrument must be below {self._count}, was {instrument}")
        return &self._crowds[instrument]

    cdef crowd_t *_idle(self, uint32_t instrument) except NULL:
        """The crowd, with room in the log for whatever one order may do."""
        if self._logged + ORDER_ROOM + 3 * LEVEL_ROOM >= LOG_ROOM:
            raise BufferError("take() the messages first")
        return self._crowd(instrument)

    def submit(self, uint32_t instrument, uint64_t order, int8_t side, uint8_t type, uint8_t tif,
               int64_t price, int64_t qty) -> int:
        """Send an order from outside into the book; what it did waits in :meth:`take`.

        *order* must have the bit ``EXTERNAL``.  Returns a status of :mod:`hftpipe._match`.
        """
        cdef crowd_t *c = self._idle(instrument)
        if not order >> 63:
            raise ValueError("an order from outside needs the bit EXTERNAL")
        cdef int status = match_submit(c.m, order, 0, side, type, tif, price, qty, &self._out)
        return self._after(instrument, status, order)

    def cancel(self, uint32_t instrument, uint64_t order) -> int:
        """Take an order out; the quantity that was open, 0 when it does not rest."""
        cdef crowd_t *c = self._idle(instrument)
        cdef int status = match_cancel(c.m, order, &self._out)
        cdef int64_t left = self._out.left
        self._publish(c, status)
        return left

    def replace(self, uint32_t instrument, uint64_t order, int64_t price, int64_t qty) -> int:
        """Change an order's price and open quantity; a status of :mod:`hftpipe._match`."""
        cdef crowd_t *c = self._idle(instrument)
        cdef int status = match_replace(c.m, order, price, qty, &self._out)
        return self._after(instrument, status, order)

    cdef int _after(self, uint32_t instrument, int status, uint64_t order) noexcept:
        """Publish; what a MORE turned into is seen from the book."""
        cdef crowd_t *c = &self._crowds[instrument]
        self._publish(c, status)
        if status == MATCH_MORE:
            status = 1 if match_left(c.m, order) else 2 if self._out.left == 0 else 3
        return status

    # ------------------------------------------------------------ reading

    def levels(self, uint32_t instrument, int8_t side, uint32_t count=0xffffffff) -> list:
        """``[(price, qty)]`` of *side*, best first."""
        cdef crowd_t *c = self._crowd(instrument)
        cdef const match_queue_t *q
        out = []
        for i in range(min(count, match_depth(c.m, side))):
            q = match_level(c.m, side, i)
            out.append((q.price, q.qty))
        return out

    def top(self, uint32_t instrument) -> tuple:
        """``(bid, bid_qty, ask, ask_qty, last_price)``; 0 = none."""
        cdef crowd_t *c = self._crowd(instrument)
        return c.bid, c.bid_qty, c.ask, c.ask_qty, c.last_price

    @property
    def sound(self) -> bool:
        """Whether every book's invariants hold."""
        return all(match_sound(self._crowds[i].m) for i in range(self._count))
