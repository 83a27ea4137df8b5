"""What the shipped strategies have in common: a direction becomes an immediate order.

T1  At most what `size` gives per order, and never more than `most` of one instrument, counting
    what is held and every open order of ours as filled.  Where it gives 0, nothing is entered,
    and what is held is left whole.
T2  An order never turns a position around: it ends at flat at the furthest, counting open
    orders of the same side.
T3  No order while one of the other side is open: it could trade against ourselves.
T4  Between two orders of an instrument at least `quiet` ns of event time pass.
T5  Without `short`, a sale is of what is held.
"""
from libc.stdint cimport int64_t

from .._schema cimport (
    HP_ACTION_NEW, HP_BOOK_FLAG_CROSSED, HP_BOOK_FLAG_EMPTY, HP_BOOK_FLAG_HALTED,
    HP_BOOK_FLAG_LIMITED, HP_BOOK_FLAG_STALE, HP_ORDER_TYPE_LIMIT, HP_TIF_IOC, hp_intent_t)
from .._strategy cimport hp_context_t, hp_out_t, strategy_add
from ._sizing cimport sizing_qty, sizing_t

cdef enum:
    TAKER_UNTRADABLE = (
        HP_BOOK_FLAG_STALE | HP_BOOK_FLAG_CROSSED | HP_BOOK_FLAG_EMPTY | HP_BOOK_FLAG_HALTED
        | HP_BOOK_FLAG_LIMITED)

cdef struct taker_t:            # of one instrument
    sizing_t size               # what an order is
    int64_t most                # nanoqty held at most, long or short
    int64_t lot                 # nanoqty
    int64_t minimum             # nanoqty of the smallest order
    int64_t quiet               # ns
    int64_t next                # event time before which nothing is sent; 0 at first
    bint short                  # may hold less than nothing


cdef inline bint taker_ready(const taker_t *t, const hp_context_t *c) noexcept nogil:
    """Whether an order could be sent at all on this book now."""
    return (c.book.flags & TAKER_UNTRADABLE) == 0 and c.now >= t.next


cdef inline bint taker_take(taker_t *t, const hp_context_t *c, hp_out_t *out, int side,
                            bint only_reduce) noexcept nogil:
    """Buy (+1) or sell (-1) at the touch, immediate or cancel; 1 when an order was added.

    *only_reduce*: leave what is held, enter nothing.
    """
    # Seen from the side of the order: own = held in its direction, open and against likewise.
    cdef int64_t own = c.holding.qty * side
    cdef int64_t open = c.holding.open_buy if side > 0 else c.holding.open_sell
    cdef int64_t against = c.holding.open_sell if side > 0 else c.holding.open_buy
    cdef int64_t qty, room
    cdef hp_intent_t *intent
    if against > 0:                                                             # T3
        return 0
    qty = sizing_qty(&t.size, c.book.ask if side > 0 else c.book.bid,
                     c.features.volatility if c.features != NULL else 0)
    if own < 0:
        room = -own - open                                                      # T2
        if room <= 0:
            return 0
        if qty == 0:
            qty = room
    else:
        if only_reduce or (side < 0 and not t.short):                           # T5
            return 0
        room = t.most - own - open                                              # T1
    if room < qty:
        qty = room
    qty -= qty % t.lot
    if qty <= 0 or qty < t.minimum:
        return 0
    intent = strategy_add(out)
    if intent == NULL:
        return 0
    intent.side, intent.qty = side, qty
    intent.price = c.book.ask if side > 0 else c.book.bid
    intent.type, intent.tif, intent.action = HP_ORDER_TYPE_LIMIT, HP_TIF_IOC, HP_ACTION_NEW
    intent.target, intent.instrument = 0, c.instrument
    t.next = c.now + t.quiet                                                    # T4
    return 1
