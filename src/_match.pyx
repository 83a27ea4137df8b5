"""Price-time priority matching engine; structures and promises are in ``_match.pxd``."""
cimport cython
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memmove, memset

from ._schema cimport (
    HP_ORDER_TYPE_LIMIT, HP_ORDER_TYPE_MARKET, HP_TIF_DAY, HP_TIF_FOK, HP_TIF_GTC)

cdef int64_t MATCH_QTY_MAX = <int64_t>1 << 60
cdef int64_t INT64_TOP = 0x7fffffffffffffff
cdef enum:
    NIL = 0xffffffff            # end of a list
    ROOM_MAX = 1 << 30


# ---------------------------------------------------------------- index of order ids

cdef inline uint64_t _home(const match_t *m, uint64_t order) noexcept nogil:
    cdef uint64_t h = order * 0x9e3779b97f4a7c15ULL
    return (h ^ (h >> 32)) & m.index_mask

cdef inline uint32_t _find(const match_t *m, uint64_t order) noexcept nogil:
    cdef uint64_t at = _home(m, order)
    while m.index[at]:
        if m.orders[m.index[at] - 1].id == order:
            return m.index[at] - 1
        at = (at + 1) & m.index_mask
    return NIL

cdef inline void _index_add(match_t *m, uint32_t i) noexcept nogil:
    cdef uint64_t at = _home(m, m.orders[i].id)
    while m.index[at]:                      # ends: the table is at most half full
        at = (at + 1) & m.index_mask
    m.index[at] = i + 1

cdef inline void _index_remove(match_t *m, uint64_t order) noexcept nogil:
    """Close the hole by moving back what belongs before it; no tombstones pile up."""
    cdef uint64_t hole = _home(m, order), at, home
    while m.orders[m.index[hole] - 1].id != order:
        hole = (hole + 1) & m.index_mask
    at = hole
    while True:
        at = (at + 1) & m.index_mask
        if not m.index[at]:
            break
        home = _home(m, m.orders[m.index[at] - 1].id)
        if ((at - home) & m.index_mask) >= ((at - hole) & m.index_mask):
            m.index[hole] = m.index[at]
            hole = at
    m.index[hole] = 0


# ---------------------------------------------------------------- ladder and queues

cdef inline bint _worse(int s, int64_t price, int64_t other) noexcept nogil:
    """Whether *price* stands before *other* in the ladder of side *s*."""
    return price < other if s else price > other

cdef inline uint32_t _rung(const match_t *m, int s, int64_t price) noexcept nogil:
    """Where *price* is in the ladder, or belongs: the first rung not worse than it."""
    cdef const match_rung_t *ladder = m.ladder[s]
    cdef uint32_t low = 0, high = m.rungs[s], mid
    for _ in range(8):                      # most of life is near the best price
        if low == high or _worse(s, ladder[high - 1].price, price):
            return high
        high -= 1
    while low < high:
        mid = (low + high) >> 1
        if _worse(s, ladder[mid].price, price):
            low = mid + 1
        else:
            high = mid
    return low

cdef inline bint _has(const match_t *m, int s, uint32_t at, int64_t price) noexcept nogil:
    return at < m.rungs[s] and m.ladder[s][at].price == price

cdef inline void _report(const match_t *m, uint32_t level, match_out_t *out) noexcept nogil:
    cdef match_level_t *row = &out.levels[out.level_count]
    row.price, row.qty = m.levels[level].price, m.levels[level].qty
    row.orders, row.side = m.levels[level].orders, m.levels[level].side
    out.level_count += 1

cdef inline void _drop_level(match_t *m, uint32_t level) noexcept nogil:
    """Take an empty level out of its ladder."""
    cdef int s = m.levels[level].side > 0
    cdef uint32_t at = _rung(m, s, m.levels[level].price)
    m.rungs[s] -= 1
    memmove(&m.ladder[s][at], &m.ladder[s][at + 1],
            (m.rungs[s] - at) * sizeof(match_rung_t))
    m.levels[level].head = m.level_free
    m.level_free = level

cdef inline void _unlink(match_t *m, uint32_t i) noexcept nogil:
    """Take order *i* out of queue and index; the level may be left empty."""
    cdef match_order_t *o = &m.orders[i]
    cdef match_queue_t *q = &m.levels[o.level]
    if o.prev == NIL:
        q.head = o.next
    else:
        m.orders[o.prev].next = o.next
    if o.next == NIL:
        q.tail = o.prev
    else:
        m.orders[o.next].prev = o.prev
    q.orders -= 1
    _index_remove(m, o.id)
    o.id = 0
    o.next = m.order_free
    m.order_free = i
    m.order_count -= 1

cdef void _rest(match_t *m, match_out_t *out) noexcept nogil:
    """Put what is left of the taker at the back of its level; room was checked before."""
    cdef match_taker_t *t = &m.taker
    cdef int s = t.side > 0
    cdef uint32_t at = _rung(m, s, t.limit), level, i = m.order_free
    if _has(m, s, at, t.limit):
        level = m.ladder[s][at].level
    else:
        level = m.level_free
        m.level_free = m.levels[level].head
        memmove(&m.ladder[s][at + 1], &m.ladder[s][at],
                (m.rungs[s] - at) * sizeof(match_rung_t))
        m.ladder[s][at].price, m.ladder[s][at].level = t.limit, level
        m.rungs[s] += 1
        memset(&m.levels[level], 0, sizeof(match_queue_t))
        m.levels[level].price, m.levels[level].side = t.limit, t.side
        m.levels[level].head = m.levels[level].tail = NIL
    cdef match_queue_t *q = &m.levels[level]
    cdef match_order_t *o = &m.orders[i]
    m.order_free = o.next
    m.order_count += 1
    o.id, o.left, o.level, o.owner, o.next, o.prev = t.id, t.left, level, t.owner, NIL, q.tail
    if q.tail == NIL:
        q.head = i
    else:
        m.orders[q.tail].next = i
    q.tail = i
    q.qty += t.left
    q.orders += 1
    _index_add(m, i)
    _report(m, level, out)


# ---------------------------------------------------------------- matching

cdef int _run(match_t *m, match_out_t *out) noexcept nogil:
    """Trade the pending taker as far as price and room allow, then finish it."""
    cdef match_taker_t *t = &m.taker
    cdef int s = t.side < 0                 # the ladder it takes from: bids for a seller
    cdef match_fill_t *fill
    cdef match_queue_t *q
    cdef match_order_t *o
    cdef uint32_t level, i
    cdef int64_t price, qty
    cdef int status
    while t.left and m.rungs[s]:
        price = m.ladder[s][m.rungs[s] - 1].price
        if t.limit and _worse(s, price, t.limit):
            break
        if out.fill_count == out.fill_room or out.level_count + MATCH_LEVEL_ROOM > out.level_room:
            out.filled, out.left = t.qty - t.left, t.left
            return MATCH_MORE
        level = m.ladder[s][m.rungs[s] - 1].level
        q = &m.levels[level]
        while t.left and q.head != NIL and out.fill_count < out.fill_room:
            i = q.head
            o = &m.orders[i]
            qty = o.left if o.left < t.left else t.left
            o.left -= qty
            t.left -= qty
            q.qty -= qty
            fill = &out.fills[out.fill_count]
            out.fill_count += 1
            fill.maker, fill.taker, fill.price, fill.qty = o.id, t.id, price, qty
            fill.maker_left, fill.taker_left = o.left, t.left
            fill.maker_owner, fill.taker_owner, fill.side = o.owner, t.owner, t.side
            if o.left == 0:
                _unlink(m, i)
        _report(m, level, out)
        if q.head == NIL:
            _drop_level(m, level)
    if t.left == 0:
        status = MATCH_FILLED
    elif t.rests:
        _rest(m, out)
        status = MATCH_RESTED
    else:
        status = MATCH_CANCELED
    out.filled, out.left = t.qty - t.left, t.left
    t.id = 0
    return status

cdef inline bint _open(match_out_t *out) noexcept nogil:
    """Start a call's results; whether there is room for one step."""
    out.fill_count = out.level_count = 0
    out.filled = out.left = 0
    return out.fill_room >= MATCH_FILL_ROOM and out.level_room >= MATCH_LEVEL_ROOM

cdef inline bint _fits(const match_t *m, int s, int64_t price, int64_t qty) noexcept nogil:
    """Whether an order could rest at *price* (I5)."""
    cdef uint32_t at = _rung(m, s, price)
    if m.order_free == NIL:
        return False
    if _has(m, s, at, price):
        return m.levels[m.ladder[s][at].level].qty <= INT64_TOP - qty
    return m.level_free != NIL

cdef int match_submit(match_t *m, uint64_t order, uint32_t owner, int8_t side, uint8_t type,
                      uint8_t tif, int64_t price, int64_t qty, match_out_t *out) noexcept nogil:
    cdef match_taker_t *t = &m.taker
    cdef bint limit = type == HP_ORDER_TYPE_LIMIT
    if not _open(out):
        return MATCH_INVALID
    if t.id:
        return MATCH_BUSY
    if (order == 0 or (side != 1 and side != -1) or qty <= 0 or qty > MATCH_QTY_MAX
            or tif < HP_TIF_DAY or tif > HP_TIF_FOK or (limit and price <= 0)
            or (type != HP_ORDER_TYPE_MARKET and not limit)):
        return MATCH_INVALID
    out.left = qty
    if _find(m, order) != NIL:
        return MATCH_DUPLICATE
    cdef bint rests = limit and (tif == HP_TIF_DAY or tif == HP_TIF_GTC)
    if not limit:
        price = 0
    if rests and not _fits(m, side > 0, price, qty):
        return MATCH_FULL
    if tif == HP_TIF_FOK and match_available(m, side, price) < qty:
        return MATCH_CANCELED
    t.id, t.owner, t.side, t.rests = order, owner, side, rests
    t.limit, t.qty, t.left = price, qty, qty
    return _run(m, out)

cdef int match_continue(match_t *m, match_out_t *out) noexcept nogil:
    if not _open(out):
        return MATCH_INVALID
    if m.taker.id == 0:
        return MATCH_UNKNOWN
    return _run(m, out)

cdef int match_cancel(match_t *m, uint64_t order, match_out_t *out) noexcept nogil:
    cdef uint32_t i, level
    if not _open(out):
        return MATCH_INVALID
    if m.taker.id:
        return MATCH_BUSY
    i = _find(m, order)
    if i == NIL:
        return MATCH_UNKNOWN
    level = m.orders[i].level
    out.left = m.orders[i].left
    m.levels[level].qty -= out.left
    _unlink(m, i)
    _report(m, level, out)
    if m.levels[level].head == NIL:
        _drop_level(m, level)
    return MATCH_CANCELED

cdef int match_replace(match_t *m, uint64_t order, int64_t price, int64_t qty,
                       match_out_t *out) noexcept nogil:
    cdef match_taker_t *t = &m.taker
    cdef uint32_t i, level, owner
    cdef int8_t side
    if not _open(out):
        return MATCH_INVALID
    if t.id:
        return MATCH_BUSY
    if price <= 0 or qty <= 0 or qty > MATCH_QTY_MAX:
        return MATCH_INVALID
    i = _find(m, order)
    if i == NIL:
        return MATCH_UNKNOWN
    level = m.orders[i].level
    side, owner = m.levels[level].side, m.orders[i].owner
    if price == m.levels[level].price and qty <= m.orders[i].left:
        m.levels[level].qty -= m.orders[i].left - qty
        m.orders[i].left = qty
        out.left = qty
        _report(m, level, out)
        return MATCH_RESTED
    if out.level_room < MATCH_LEVEL_ROOM + 1:       # its old level, one taken from, its new one
        return MATCH_INVALID
    cdef uint32_t at = _rung(m, side > 0, price)
    cdef int64_t present                    # its own order and perhaps level become free first
    if _has(m, side > 0, at, price):
        present = m.levels[m.ladder[side > 0][at].level].qty
        if price == m.levels[level].price:
            present -= m.orders[i].left
        if present > INT64_TOP - qty:
            return MATCH_FULL
    elif m.level_free == NIL and m.levels[level].orders > 1:
        return MATCH_FULL
    m.levels[level].qty -= m.orders[i].left
    _unlink(m, i)
    _report(m, level, out)
    if m.levels[level].head == NIL:
        _drop_level(m, level)
    t.id, t.owner, t.side, t.rests = order, owner, side, True
    t.limit, t.qty, t.left = price, qty, qty
    return _run(m, out)


# ---------------------------------------------------------------- reading

cdef int64_t match_left(const match_t *m, uint64_t order) noexcept nogil:
    cdef uint32_t i = _find(m, order) if order else NIL
    return 0 if i == NIL else m.orders[i].left

cdef int64_t match_available(const match_t *m, int8_t side, int64_t limit) noexcept nogil:
    cdef int s = side < 0
    cdef uint32_t i = m.rungs[s]
    cdef int64_t total = 0, qty
    while i:
        i -= 1
        if limit and _worse(s, m.ladder[s][i].price, limit):
            break
        qty = m.levels[m.ladder[s][i].level].qty
        if qty > INT64_TOP - total:
            return INT64_TOP
        total += qty
    return total

cdef bint match_sound(const match_t *m) noexcept nogil:
    cdef int s
    cdef uint32_t r, i, prev, count, total = 0
    cdef int64_t qty
    cdef const match_queue_t *q
    if m.taker.id == 0 and m.rungs[0] and m.rungs[1] and match_best_bid(m) >= match_best_ask(m):
        return False
    for s in range(2):
        for r in range(m.rungs[s]):
            q = &m.levels[m.ladder[s][r].level]
            if q.price != m.ladder[s][r].price or (q.side > 0) != s:
                return False
            if r and not _worse(s, m.ladder[s][r - 1].price, q.price):
                return False
            qty, count, prev, i = 0, 0, NIL, q.head
            while i != NIL:
                if (m.orders[i].prev != prev or m.orders[i].left <= 0
                        or m.orders[i].level != m.ladder[s][r].level
                        or _find(m, m.orders[i].id) != i):
                    return False
                qty += m.orders[i].left
                count += 1
                prev, i = i, m.orders[i].next
            if count == 0 or prev != q.tail or count != q.orders or qty != q.qty:
                return False
            total += count
    return total == m.order_count


# ---------------------------------------------------------------- memory

cdef match_t *match_new(uint32_t orders, uint32_t levels) noexcept nogil:
    cdef match_t *m
    cdef uint64_t size = 2
    cdef uint32_t i
    if not 0 < orders <= ROOM_MAX or not 0 < levels <= ROOM_MAX:
        return NULL
    m = <match_t *>calloc(1, sizeof(match_t))
    if m == NULL:
        return NULL
    while size < 2 * <uint64_t>orders:
        size *= 2
    m.orders = <match_order_t *>calloc(orders, sizeof(match_order_t))
    m.levels = <match_queue_t *>calloc(levels, sizeof(match_queue_t))
    m.ladder[0] = <match_rung_t *>calloc(levels, sizeof(match_rung_t))
    m.ladder[1] = <match_rung_t *>calloc(levels, sizeof(match_rung_t))
    m.index = <uint32_t *>calloc(size, sizeof(uint32_t))
    m.index_mask = size - 1
    m.order_room, m.level_room = orders, levels
    if (m.orders == NULL or m.levels == NULL or m.ladder[0] == NULL or m.ladder[1] == NULL
            or m.index == NULL):
        match_free(m)
        return NULL
    for i in range(orders):
        m.orders[i].next = i + 1 if i + 1 < orders else NIL
    for i in range(levels):
        m.levels[i].head = i + 1 if i + 1 < levels else NIL
    return m

cdef void match_free(match_t *m) noexcept nogil:
    if m == NULL:
        return
    free(m.orders)
    free(m.levels)
    free(m.ladder[0])
    free(m.ladder[1])
    free(m.index)
    free(m)


# ---------------------------------------------------------------- Python's handle

RESTED, FILLED, CANCELED, MORE = MATCH_RESTED, MATCH_FILLED, MATCH_CANCELED, MATCH_MORE
INVALID, DUPLICATE, FULL = MATCH_INVALID, MATCH_DUPLICATE, MATCH_FULL
UNKNOWN, BUSY = MATCH_UNKNOWN, MATCH_BUSY


@cython.final
cdef class Match:
    """One instrument's matching engine.

    Parameters
    ----------
    orders, levels : int
        Room for resting orders, and for price levels of both sides together.
    room : int, default 64
        Fills that one step of the engine may report; longer results are collected in
        several steps (``_match.pxd``), which a caller of this class does not see.

    Notes
    -----
    Every changing method returns ``(status, filled, left, fills, levels)``: *fills* is a
    list of ``(maker, taker, price, qty, maker_left, taker_left, maker_owner, taker_owner,
    side)`` in order, *levels* one of ``(side, price, qty, orders)``.
    """

    def __cinit__(self, uint32_t orders=65536, uint32_t levels=4096, uint32_t room=64):
        if not 0 < orders <= ROOM_MAX or not 0 < levels <= ROOM_MAX or not 0 < room <= ROOM_MAX:
            raise ValueError(f"orders, levels and room must be 1 to {ROOM_MAX}, "
                             f"were {orders}, {levels} and {room}")
        self.m = match_new(orders, levels)
        self._fills = <match_fill_t *>malloc(room * sizeof(match_fill_t))
        self._levels = <match_level_t *>malloc((room + 2) * sizeof(match_level_t))
        if self.m == NULL or self._fills == NULL or self._levels == NULL:
            raise MemoryError(f"no memory to match {orders} orders")
        self._out.fills, self._out.fill_room = self._fills, room
        self._out.levels, self._out.level_room = self._levels, room + 2

    def __dealloc__(self):
        match_free(self.m)
        free(self._fills)
        free(self._levels)

    cdef tuple _finish(self, int status):
        cdef match_fill_t *f
        cdef match_level_t *v
        cdef uint32_t i
        fills, levels = [], []
        while True:
            for i in range(self._out.fill_count):
                f = &self._fills[i]
                fills.append((f.maker, f.taker, f.price, f.qty, f.maker_left, f.taker_left,
                              f.maker_owner, f.taker_owner, f.side))
            for i in range(self._out.level_count):
                v = &self._levels[i]
                levels.append((v.side, v.price, v.qty, v.orders))
            if status != MATCH_MORE:
                return status, self._out.filled, self._out.left, fills, levels
            status = match_continue(self.m, &self._out)

    def submit(self, uint64_t order, int8_t side, int64_t qty, int64_t price=0, *,
               uint8_t type=HP_ORDER_TYPE_LIMIT, uint8_t tif=HP_TIF_DAY, uint32_t owner=0):
        """Trade what crosses, rest what may rest; see :class:`Match` for the result."""
        return self._finish(match_submit(
            self.m, order, owner, side, type, tif, price, qty, &self._out))

    def cancel(self, uint64_t order):
        """Take a resting order out; ``left`` of the result is what it had left."""
        return self._finish(match_cancel(self.m, order, &self._out))

    def replace(self, uint64_t order, int64_t price, int64_t qty):
        """Change price and open quantity; keeps its place only when it does not grow or move."""
        return self._finish(match_replace(self.m, order, price, qty, &self._out))

    def levels(self, int8_t side):
        """``[(price, qty, orders)]`` of *side*, best first."""
        cdef const match_queue_t *q
        out = []
        for i in range(match_depth(self.m, side)):
            q = match_level(self.m, side, i)
            out.append((q.price, q.qty, q.orders))
        return out

    def left(self, uint64_t order) -> int:
        """Open quantity of a resting order, else 0."""
        return match_left(self.m, order)

    def available(self, int8_t side, int64_t limit=0) -> int:
        """Quantity a taker of *side* finds at *limit* or better; 0 = any price."""
        return match_available(self.m, side, limit)

    @property
    def bid(self) -> int:
        """Best bid, 0 = none."""
        return match_best_bid(self.m)

    @property
    def ask(self) -> int:
        """Best ask, 0 = none."""
        return match_best_ask(self.m)

    @property
    def sound(self) -> bool:
        """Whether the engine's invariants hold; walks everything."""
        return match_sound(self.m)

    def __len__(self):
        return self.m.order_count
