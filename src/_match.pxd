"""Price-time priority matching of one instrument.

    side 0 (asks)  ladder: price falls  ->  best last     level -> order -> order -> order
    side 1 (bids)  ladder: price rises  ->  best last       |       oldest           newest
                                                            qty, orders: sums over its queue

Invariants
    I1  A ladder holds exactly the levels that have orders, sorted, the best at its end;
        so the best price is read from one word and most changes move a few entries.
    I2  A level's qty and orders are the sums over its queue; no order of quantity 0 rests.
    I3  Best bid < best ask, or a side is empty, whenever no taker is pending.
    I4  Quantity is conserved: what a taker asked = filled + left, and each fill takes the
        same quantity from its maker.
    I5  Nothing allocates after match_new(): orders, levels and the index of order ids come
        from pools of fixed size.  A resting order needs a free order, and a free level unless
        its price already is one; both are checked before anything trades (MATCH_FULL).

Results go into the caller's arrays.  When they have no more room the engine stops between
two fills and answers MATCH_MORE: read the arrays, then call match_continue() until it
answers something else.  Meanwhile every other change is refused with MATCH_BUSY.  A level
is reported once per call, after the last change that the call made to it.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:                      # what the calls below return
    MATCH_RESTED = 1            # the rest is in the book (or: the order was made smaller)
    MATCH_FILLED = 2            # nothing is left
    MATCH_CANCELED = 3          # the rest is gone: ioc, fok, market, or cancelled
    MATCH_MORE = 4              # out of room: call match_continue()
    MATCH_INVALID = -1          # a field out of range, or no room for even one step
    MATCH_DUPLICATE = -2        # an order of this id rests
    MATCH_FULL = -3             # no free order or level, or a level's quantity would overflow
    MATCH_UNKNOWN = -4          # no such order
    MATCH_BUSY = -5             # a taker is pending: call match_continue()

cdef enum:
    MATCH_FILL_ROOM = 1         # smallest fill_room
    MATCH_LEVEL_ROOM = 2        # smallest level_room: the level taken from, the level rested on

cdef int64_t MATCH_QTY_MAX      # 1 << 60: of one order

cdef struct match_fill_t:
    uint64_t maker              # order that rested
    uint64_t taker              # order that came
    int64_t price               # the maker's
    int64_t qty
    int64_t maker_left          # after this fill
    int64_t taker_left
    uint32_t maker_owner
    uint32_t taker_owner
    int8_t side                 # of the taker: +1 buy, -1 sell

cdef struct match_level_t:
    int64_t price
    int64_t qty                 # total after the change; 0 = the level is gone
    uint32_t orders
    int8_t side                 # +1 bid, -1 ask

cdef struct match_out_t:        # the caller's; rooms and pointers are set by the caller
    match_fill_t *fills
    match_level_t *levels
    uint32_t fill_room
    uint32_t level_room
    uint32_t fill_count         # of this call
    uint32_t level_count        # of this call
    int64_t filled              # of this order, over all calls
    int64_t left                # of this order, now

cdef struct match_order_t:
    uint64_t id
    int64_t left
    uint32_t next               # towards the newest, or the free list
    uint32_t prev               # towards the oldest
    uint32_t level
    uint32_t owner

cdef struct match_queue_t:      # one price level
    int64_t price
    int64_t qty
    uint32_t head               # oldest
    uint32_t tail               # newest
    uint32_t orders
    int8_t side

cdef struct match_rung_t:
    int64_t price
    uint32_t level

cdef struct match_taker_t:
    uint64_t id                 # 0 = none pending
    int64_t limit               # worst price; 0 = any
    int64_t qty
    int64_t left
    uint32_t owner
    int8_t side
    bint rests                  # what is left goes into the book

cdef struct match_t:
    match_order_t *orders
    match_queue_t *levels
    match_rung_t *ladder[2]     # asks, bids; see I1
    uint32_t rungs[2]           # levels of each
    uint32_t *index             # open addressing: order + 1, 0 = empty
    uint64_t index_mask
    uint32_t order_room
    uint32_t level_room
    uint32_t order_free         # heads of the free lists
    uint32_t level_free
    uint32_t order_count
    match_taker_t taker


# NULL when memory is short or a size is 0 or above 1 << 30.
cdef match_t *match_new(uint32_t orders, uint32_t levels) noexcept nogil
cdef void match_free(match_t *m) noexcept nogil

# Trade what crosses, rest what may rest.  *type* and *tif* are HP_ORDER_TYPE_* and HP_TIF_*;
# *price* is ignored for a market order, whose rest is always cancelled.  *order* is the
# caller's name of it, not 0, unique among the resting ones.
cdef int match_submit(match_t *m, uint64_t order, uint32_t owner, int8_t side, uint8_t type,
                      uint8_t tif, int64_t price, int64_t qty, match_out_t *out) noexcept nogil

# Go on after MATCH_MORE.
cdef int match_continue(match_t *m, match_out_t *out) noexcept nogil

# Take a resting order out; out.left is what it had left.
cdef int match_cancel(match_t *m, uint64_t order, match_out_t *out) noexcept nogil

# Change price and open quantity of a resting order.  Same price and not more quantity keeps
# its place in the queue; anything else leaves and comes again as a taker of the same id.
cdef int match_replace(match_t *m, uint64_t order, int64_t price, int64_t qty,
                       match_out_t *out) noexcept nogil

# Open quantity of a resting order; 0 = it does not rest.
cdef int64_t match_left(const match_t *m, uint64_t order) noexcept nogil

# Quantity a taker of *side* would find at *limit* or better (0 = any price); saturates.
cdef int64_t match_available(const match_t *m, int8_t side, int64_t limit) noexcept nogil

# Whether I1, I2 and I3 hold; for tests, walks everything.
cdef bint match_sound(const match_t *m) noexcept nogil


cdef inline int64_t match_best_bid(const match_t *m) noexcept nogil:
    """Best bid, 0 = none."""
    return m.ladder[1][m.rungs[1] - 1].price if m.rungs[1] else 0

cdef inline int64_t match_best_ask(const match_t *m) noexcept nogil:
    """Best ask, 0 = none."""
    return m.ladder[0][m.rungs[0] - 1].price if m.rungs[0] else 0

cdef inline uint32_t match_depth(const match_t *m, int8_t side) noexcept nogil:
    """How many levels *side* has."""
    return m.rungs[side > 0]

cdef inline const match_queue_t *match_level(const match_t *m, int8_t side,
                                             uint32_t i) noexcept nogil:
    """The i-th best level of *side*, 0 = best; NULL beyond the last."""
    if i >= m.rungs[side > 0]:
        return NULL
    return &m.levels[m.ladder[side > 0][m.rungs[side > 0] - 1 - i].level]


cdef class Match:
    cdef match_t *m
    cdef match_out_t _out
    cdef match_fill_t *_fills
    cdef match_level_t *_levels

    cdef tuple _finish(self, int status)
