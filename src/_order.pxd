"""Order state: what the gateway knows of every order, and how each step changes it.

States (a late fill may complete an order that ended; nothing else leaves a terminal state)::

    CREATED --SENT--> SENT --ACKED--> OPEN --fill--> PARTIAL --fill--> FILLED
       |                |               |               |
       |                +---------------+---------------+--CANCEL_SENT--> PENDING_CANCEL
       |                                                      <--CANCEL_REJECTED--
       +--DROPPED    any live one --no answer--> UNKNOWN --any answer--> what it says
    any live one --CANCELED, EXPIRED, REJECTED, REPLACED--> terminal

What holds, whatever order the venue's messages come in and however often
    O1  An execution counts once: (order, execution id) is remembered for the last
        `executions` of them.  Without an id, (order, cum_qty) is its name; a venue must
        give ids for all executions of an order or for none.
    O2  cum_qty is the sum of the executions seen, never the venue's word, so the events
        published add up.  The venue's word is kept in venue_cum: larger means that an
        execution is still to come.
    O3  The final state does not depend on when fills arrive: FILLED when cum_qty reaches
        qty, else the way it first ended.
    O7  An order does not end before its executions are counted: while the venue says that more
        was filled than we have seen, its end waits (`ending`), and what risk holds for it with
        it.  The last execution brings two events then: itself, and the end.
    O4  Fills move positions even after the end of an order.  An execution beyond the
        order's quantity is refused and counted (`overfills`): the gateway must halt on it.
    O6  What REST tells of executions (UPDATE_FLAG_RECONCILED) counts only if it goes on from
        cum_qty; from then on executions up to its cum_qty are known, whatever their names.
    O5  At most `capacity` orders live; at least `capacity` ended ones are remembered, the
        oldest is forgotten first.  An order_t does not move while it is remembered.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._index cimport hp_index_t
from ._schema cimport (
    HP_ORDER_STATE_CREATED, HP_ORDER_STATE_FILLED, hp_order_event_t, hp_order_t, hp_update_t)

# ---- orders

cdef struct order_t:
    uint64_t order              # identity of the intent; 0 = slot never used
    uint64_t cause
    int64_t ts_recv             # ns, of the market event that caused it
    int64_t ts_sent             # ns, set by the gateway when the bytes left; 0 = not yet
    int64_t price               # nanoprice; 0 for a market order
    int64_t qty                 # nanoqty
    int64_t cum_qty             # sum of the executions seen
    int64_t venue_cum           # filled so far as the venue says; > cum_qty: one is missing
    uint64_t venue_id           # first 8 bytes of the venue's order id; 0 = not known yet
    uint64_t venue_id_low       # last 8 bytes
    uint16_t instrument
    int8_t side
    uint8_t type
    uint8_t tif
    uint8_t strategy
    uint8_t state               # HP_ORDER_STATE_*
    uint8_t acked               # the venue has shown that it has the order
    uint8_t cancelling          # a cancel is on the wire
    uint8_t reason              # why it was dropped or refused
    uint8_t ending              # HP_ORDER_EVENT_* that ends it once cum_qty is venue_cum; 0 = none
    uint8_t pad[5]
    int64_t covered             # executions up to this cum_qty are counted, by REST's word

cdef struct execution_t:
    uint64_t order              # 0 = slot never used
    uint64_t high
    uint64_t low

cdef struct orders_t:
    order_t *table
    uint32_t *ring              # slots to use next: unused ones, then ended ones, oldest first
    uint64_t head               # next slot to use is ring[head & mask]
    uint64_t tail               # an order that ends puts its slot here
    uint64_t mask               # slots - 1
    uint64_t capacity           # live orders at most; slots = 2 * capacity
    hp_index_t index
    execution_t *executions     # ring of the last ones
    uint64_t execution_head     # executions ever accepted
    uint64_t execution_mask
    hp_index_t seen
    uint64_t live               # orders not in a terminal state
    uint64_t unknown            # of them in state UNKNOWN
    uint64_t fills              # executions accepted
    uint64_t late_fills         # of them after the order had ended
    uint64_t duplicates         # messages that said nothing new
    uint64_t orphans            # messages about orders not in the table
    uint64_t orphan_fills       # of them executions: a position moved that we did not book
    uint64_t overfills          # executions beyond the order's quantity, refused
    uint64_t reconciled         # executions that only REST told of
    uint64_t malformed          # executions without quantity, price or name; unknown kinds


cdef inline bint order_ended(const order_t *t) noexcept nogil:
    return t.state >= HP_ORDER_STATE_FILLED

cdef inline bint order_left(const order_t *t) noexcept nogil:
    """Whether it may be at the venue: we sent it, or the venue has told what was filled of it."""
    return t.state != HP_ORDER_STATE_CREATED or t.venue_cum > 0

cdef inline order_t *order_at(orders_t *o, uint64_t slot) noexcept nogil:
    """Slot 0 .. 2 * capacity - 1, for walks; NULL when it was never used."""
    return &o.table[slot] if o.table[slot].order else NULL

# A new order in state CREATED; NULL when `capacity` are live or its identity is known.
cdef order_t *order_new(orders_t *o, const hp_order_t *order) noexcept nogil

# The order, live or ended; NULL when it was never seen or is forgotten.
cdef order_t *order_find(orders_t *o, uint64_t order) noexcept nogil

# One message of the venue: how many new steps it is, 0 to 2, in *out*, which has room for two.
cdef int order_apply(orders_t *o, const hp_update_t *u, hp_order_event_t *out) noexcept nogil

# One step of our own: DROPPED, SENT, CANCEL_SENT, UNKNOWN; CANCEL_REJECTED of a cancel that
# never left (the state stays, one sent earlier may still be answered); DENIED (and DROPPED)
# also of an order that is not in the table, then *out* has order, kind, reason and state only.
# *out* is untouched when it returns 0.
cdef int order_step(orders_t *o, uint64_t order, uint8_t kind, uint8_t reason,
                    hp_order_event_t *out) noexcept nogil

# The event of an order that never gets into the table: DENIED, or DROPPED for want of room.
cdef void order_refuse(const hp_order_t *order, uint8_t kind, uint8_t reason,
                       hp_order_event_t *out) noexcept nogil


cdef class Orders:
    cdef orders_t o
