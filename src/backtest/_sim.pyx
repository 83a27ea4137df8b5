"""Our orders against a recorded book; the model is written down in ``_sim.pxd``."""
from libc.stdlib cimport calloc, free
from posix.stdlib cimport posix_memalign
from libc.string cimport memset

from .._book cimport Book, book_best_ask, book_best_bid, book_level_t, book_levels
from .._schema cimport *
from .._wire cimport WIRE_BUSY, WIRE_SENT

cdef extern from "_wide.h" nogil:
    ctypedef struct hp_wide_t:
        pass
    hp_wide_t hp_wide_mul(int64_t a, int64_t b) noexcept
    int64_t hp_wide_ceil(hp_wide_t a, int64_t b) noexcept

cdef int64_t NEVER = 0x7fffffffffffffff
cdef int64_t FAR = 0x7fffffffffffffff


cdef class SimWire(Wire):
    """The venue of a backtest.

    Parameters
    ----------
    books : sequence of Book
        By instrument; the books that the market records are applied to.
    latency : int, ns
        One way, to the venue and back each.
    """

    def __init__(self, books, int64_t latency=100_000):
        cdef Book book
        if latency < 0:
            raise ValueError(f"latency must not be negative, was {latency} ns")
        self._books = list(books)
        self.instruments = len(self._books)
        self.latency = latency
        self.books = <book_t **>calloc(self.instruments or 1, sizeof(book_t *))
        if posix_memalign(<void **>&self.answers, 64, SIM_ANSWERS * sizeof(hp_update_t)):
            raise MemoryError
        self.answer_due = <int64_t *>calloc(SIM_ANSWERS, sizeof(int64_t))
        if self.books == NULL or self.answers == NULL or self.answer_due == NULL:
            raise MemoryError
        for i, book in enumerate(self._books):
            self.books[i] = book.b

    def __dealloc__(self):
        free(self.books)
        free(self.answers)
        free(self.answer_due)

    @property
    def open_orders(self) -> int:
        """Orders on their way to the venue or resting there."""
        return sum(1 for i in range(self.alive) if self.orders[i].order)

    # ---- the gateway's side

    cdef int submit(self, const hp_order_t *order, int64_t now) noexcept nogil:
        cdef uint32_t i
        cdef sim_order_t *s = NULL
        if order.instrument >= self.instruments or self.tail - self.head > SIM_ANSWERS // 2:
            return WIRE_BUSY
        for i in range(self.alive):
            if self.orders[i].order == 0:
                s = &self.orders[i]
                break
        if s == NULL:
            if self.alive == SIM_ORDERS:
                return WIRE_BUSY
            s = &self.orders[self.alive]
            self.alive += 1
        memset(s, 0, sizeof(sim_order_t))
        s.order, s.due = order.order, now + self.latency
        s.price, s.qty = order.price, order.qty
        s.instrument, s.side, s.type, s.tif = order.instrument, order.side, order.type, order.tif
        s.stop, s.trail, s.trail_share = order.stop, order.trail, order.trail_share
        if s.due == 0:
            s.due = 1
        self.submitted += 1
        return WIRE_SENT

    cdef int cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now) noexcept nogil:
        cdef uint32_t i
        for i in range(self.alive):
            if self.orders[i].order == order:
                self.orders[i].cancel = 1
                self.orders[i].cancel_due = now + self.latency
                break
        return WIRE_SENT

    cdef int poll(self, hp_update_t *out, int64_t now) noexcept nogil:
        if self.head == self.tail or self.answer_due[self.head & (SIM_ANSWERS - 1)] > now:
            return 0
        out[0] = self.answers[self.head & (SIM_ANSWERS - 1)]
        out.ts_recv = now
        self.head += 1
        return 1

    # ---- the venue's side

    cdef int64_t next_due(self) noexcept nogil:
        cdef int64_t due = NEVER
        cdef uint32_t i
        if self.head != self.tail:
            due = self.answer_due[self.head & (SIM_ANSWERS - 1)]
        for i in range(self.alive):
            if self.orders[i].order == 0:
                continue
            if self.orders[i].due and self.orders[i].due < due:
                due = self.orders[i].due
            if self.orders[i].cancel and self.orders[i].cancel_due < due:
                due = self.orders[i].cancel_due
        return due

    cdef void _answer(self, const sim_order_t *s, uint8_t kind, int64_t price, int64_t qty,
                      int64_t now) noexcept nogil:
        cdef hp_update_t *u = &self.answers[self.tail & (SIM_ANSWERS - 1)]
        memset(u, 0, sizeof(hp_update_t))
        u.order, u.kind, u.side, u.instrument = s.order, kind, s.side, s.instrument
        u.price, u.qty, u.cum_qty = price, qty, s.filled
        u.ts_venue = now
        u.venue_id, u.venue_id_low = s.order, 1
        if kind == HP_ORDER_EVENT_FILL or kind == HP_ORDER_EVENT_PARTIAL_FILL:
            self.executions += 1
            u.execution, u.execution_low = self.executions, 1
        self.answer_due[self.tail & (SIM_ANSWERS - 1)] = now + self.latency
        self.tail += 1

    cdef int64_t _taken(self, uint16_t instrument, int8_t side, int64_t price) noexcept nogil:
        cdef uint32_t i
        for i in range(self.taken_count):
            if (self.taken[i].qty and self.taken[i].price == price
                    and self.taken[i].instrument == instrument and self.taken[i].side == side):
                return self.taken[i].qty
        return 0

    cdef void _take(self, uint16_t instrument, int8_t side, int64_t price,
                    int64_t qty) noexcept nogil:
        cdef uint32_t i
        cdef sim_taken_t *slot = NULL
        for i in range(self.taken_count):
            if self.taken[i].qty == 0:
                slot = &self.taken[i]
            elif (self.taken[i].price == price and self.taken[i].instrument == instrument
                    and self.taken[i].side == side):
                self.taken[i].qty += qty
                return
        if slot == NULL and self.taken_count < SIM_TAKEN:
            slot = &self.taken[self.taken_count]
            self.taken_count += 1
        if slot == NULL:                # the oldest entry gives way
            slot = &self.taken[0]
        slot.price, slot.qty, slot.instrument, slot.side = price, qty, instrument, side

    cdef void _fill(self, sim_order_t *s, int64_t price, int64_t qty, int64_t now) noexcept nogil:
        s.filled += qty
        if s.filled == s.qty:
            self.filled_orders += 1
        self._answer(s, HP_ORDER_EVENT_FILL if s.filled == s.qty else HP_ORDER_EVENT_PARTIAL_FILL,
                     price, qty, now)

    cdef void _trail(self, sim_order_t *s, int64_t price) noexcept nogil:
        """Let the trigger of a trailing stop follow a trade."""
        cdef int64_t distance
        if s.best and s.side * (price - s.best) >= 0:   # a purchase follows it down
            return
        s.best = price
        distance = s.trail
        if s.trail_share:
            distance = hp_wide_ceil(hp_wide_mul(price, s.trail_share), 1000000000)
        s.stop = price + s.side * distance

    cdef void _arrive(self, sim_order_t *s, int64_t now) noexcept nogil:
        """An order reaches the venue: it meets the book, or waits."""
        cdef book_t *b = self.books[s.instrument]
        cdef int64_t price
        s.due = 0
        self._answer(s, HP_ORDER_EVENT_ACKED, 0, 0, now)
        if s.type == HP_ORDER_TYPE_TRAILING_STOP:
            price = b.last_price
            if price <= 0:
                price = book_best_ask(b) if s.side > 0 else book_best_bid(b)
            if price > 0:
                self._trail(s, price)
        if s.type < HP_ORDER_TYPE_STOP:
            self._meet(s, now)

    cdef void _meet(self, sim_order_t *s, int64_t now) noexcept nogil:
        """An order meets the displayed book."""
        cdef book_level_t levels[SIM_LEVELS]
        cdef int64_t count, i, free_, available = 0, part, limit
        cdef uint32_t side = 1 if s.side > 0 else 0     # of the book it takes from
        cdef int8_t other = -s.side
        limit = s.price
        if limit == 0:
            limit = FAR if s.side > 0 else 0
        count = book_levels(self.books[s.instrument], side, levels, SIM_LEVELS)
        if s.tif == HP_TIF_FOK:
            for i in range(count):
                if s.side * (levels[i].price - limit) > 0:
                    break
                free_ = levels[i].qty - self._taken(s.instrument, other, levels[i].price)
                if free_ > 0:
                    available += free_
                if available >= s.qty:
                    break
            if available < s.qty:
                self._answer(s, HP_ORDER_EVENT_CANCELED, 0, 0, now)
                s.order = 0
                return
        for i in range(count):
            if s.filled == s.qty or s.side * (levels[i].price - limit) > 0:
                break
            free_ = levels[i].qty - self._taken(s.instrument, other, levels[i].price)
            if free_ <= 0:
                continue
            part = s.qty - s.filled
            if part > free_:
                part = free_
            self._take(s.instrument, other, levels[i].price, part)
            self._fill(s, levels[i].price, part, now)
        if s.filled == s.qty:
            s.order = 0
            return
        if s.price == 0 or s.tif == HP_TIF_IOC or s.tif == HP_TIF_FOK:
            self._answer(s, HP_ORDER_EVENT_CANCELED, 0, 0, now)
            s.order = 0
            return
        count = book_levels(self.books[s.instrument], 0 if s.side > 0 else 1, levels, SIM_LEVELS)
        for i in range(count):
            if levels[i].price == s.price:
                s.ahead = levels[i].qty
                break

    cdef void advance(self, int64_t now) noexcept nogil:
        cdef uint32_t i
        cdef sim_order_t *s
        for i in range(self.alive):
            s = &self.orders[i]
            if s.order and s.due and s.due <= now and self.tail - self.head < SIM_ANSWERS - 80:
                self._arrive(s, s.due)
            if s.order and s.cancel and s.cancel_due <= now and s.due == 0:
                self._answer(s, HP_ORDER_EVENT_CANCELED, 0, 0, s.cancel_due)
                s.order = 0
        while self.alive and self.orders[self.alive - 1].order == 0:
            self.alive -= 1

    cdef void on_market(self, const hp_market_t *m) noexcept nogil:
        cdef uint32_t i
        cdef sim_order_t *s
        cdef int64_t best, part, through, price = m.price
        cdef bint trade = m.kind == HP_MARKET_TRADE or m.kind == HP_MARKET_EXECUTE
        if not trade:
            for i in range(self.taken_count):   # news about a price, or about a whole side
                if (self.taken[i].qty and self.taken[i].instrument == m.instrument
                        and (self.taken[i].price == m.price or m.kind == HP_MARKET_CLEAR)):
                    self.taken[i].qty = 0
            while self.taken_count and self.taken[self.taken_count - 1].qty == 0:
                self.taken_count -= 1
        if not self.alive or not m.flags & HP_MARKET_FLAG_LAST or m.instrument >= self.instruments:
            return
        if trade and price == 0:                # at the price of the order it names (L3)
            price = self.books[m.instrument].last_price
        for i in range(self.alive):
            s = &self.orders[i]
            if s.order == 0 or s.due or s.instrument != m.instrument or s.filled == s.qty:
                continue
            if self.tail - self.head >= SIM_ANSWERS - 80:
                return
            part = 0
            if s.type >= HP_ORDER_TYPE_STOP:    # it waits
                if not trade or price <= 0:
                    continue
                if s.stop and s.side * (price - s.stop) >= 0:
                    s.type = HP_ORDER_TYPE_LIMIT if s.price else HP_ORDER_TYPE_MARKET
                    self._meet(s, m.ts_recv)
                elif s.type == HP_ORDER_TYPE_TRAILING_STOP:
                    self._trail(s, price)
                continue
            if trade and price > 0:
                through = s.side * (s.price - price)
                if through > 0:
                    part = m.qty
                elif through == 0:
                    part = m.qty - s.ahead
                    s.ahead = s.ahead - m.qty if s.ahead > m.qty else 0
            else:
                best = (book_best_ask(self.books[s.instrument]) if s.side > 0
                        else book_best_bid(self.books[s.instrument]))
                if best > 0 and s.side * (s.price - best) >= 0:
                    part = s.qty - s.filled     # the market came to us
            if part > s.qty - s.filled:
                part = s.qty - s.filled
            if part > 0:
                self._fill(s, s.price, part, m.ts_recv)
                if s.filled == s.qty:
                    s.order = 0
