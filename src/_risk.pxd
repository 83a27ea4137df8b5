"""The gate: the only place that can make an order sendable.

Each intent passes all checks or is refused with the first reason that applies, in this order::

    HALTED  STORE_FULL  UNKNOWN_INSTRUMENT  INVALID_ORDER  DUPLICATE  STALE_DATA  ORDER_RATE
    ORDER_SIZE  ORDER_NOTIONAL  PRICE_COLLAR  CROSSES_ZERO  SHORT_NOT_ALLOWED
    POSITION_SIZE  POSITION_NOTIONAL  TOTAL_NOTIONAL  OPEN_POSITIONS  PENDING  DAILY_LOSS
    WASH_TRADE  TABLE_FULL

and OVERFLOW from whichever of them would need more than nanocash or nanoqty can hold.  A limit
is inclusive (daily loss apart: reaching it refuses).  Products are compared in 128 bits without
division; they are rounded up only to be reported.

Values
    reference   mid (floor), or the last trade when a side was never seen
    worth       price at which an order is valued: a limit buy at its price; a limit sell at its
                price or the bid, whichever is higher; a market order at the far touch plus the
                collar, rounded up.  Never less than what it can trade at within the collar.
    collar      distance of the limit price, or of a market order's far touch, to reference
    worst case  of an instrument, per side: position plus all that is open on that side and the
                order; in cash: position at reference, open orders at their worth.  The value of
                an instrument is the larger of its two sides, the total is their sum.
    reducing    an order against the position that cannot turn it around, whatever fills first.
                It passes POSITION_*, TOTAL_NOTIONAL, OPEN_POSITIONS and DAILY_LOSS unchecked.

A cancel passes when its target is open here (NOT_OPEN otherwise), also while halted.

Reservations
    R1  risk_check returns 0 for a new order iff it has reserved it: quantity, worth, one order.
    R2  Every ORDER_EVENT is reduced to its cum_qty: what is above the highest seen so far moves
        the position, and the reservation by the same amount, in one call.  So events may come
        twice, or in any order.
    R3  A terminal event releases what is left; UNKNOWN releases nothing.
    R4  Ended orders are remembered (at least `capacity` of them), so late fills and duplicates
        are told apart.  A fill of an order not remembered moves the position, if its event is
        newer than all before.
    R5  At most `capacity` orders are open.

One writer, one process; only the control page is shared.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._control cimport control_header_t, stage_block_t
from ._order cimport index_t
from ._schema cimport (
    hp_book_t, hp_intent_t, hp_order_event_t, hp_order_t, hp_position_t, hp_verdict_t)

cdef extern from "_wide.h" nogil:
    ctypedef struct hp_wide_t:              # __int128, 1e-18 of the quote currency
        pass
    hp_wide_t hp_wide_of(int64_t v) noexcept
    hp_wide_t hp_wide_cash(int64_t cash) noexcept
    hp_wide_t hp_wide_mul(int64_t a, int64_t b) noexcept
    hp_wide_t hp_wide_add(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_sub(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_side(hp_wide_t a, int side) noexcept
    hp_wide_t hp_wide_max(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_abs(hp_wide_t a) noexcept
    hp_wide_t hp_wide_clamp(hp_wide_t a) noexcept
    bint hp_wide_less(hp_wide_t a, hp_wide_t b) noexcept
    bint hp_wide_fits(hp_wide_t a) noexcept
    int64_t hp_wide_ceil(hp_wide_t a, int64_t b) noexcept
    int64_t hp_bps_ceil(int64_t price, int64_t bps) noexcept
    bint hp_add_overflow(int64_t a, int64_t b, int64_t *out) noexcept
    int64_t hp_add_saturate(int64_t a, int64_t b) noexcept
    int64_t hp_sub_saturate(int64_t a, int64_t b) noexcept

cdef enum:
    RISK_REASONS = 64                       # counters; REASON_* are below it

cdef struct limits_t:                       # each inclusive; see LIMITS in _risk.pyx
    int64_t order_qty                       # nanoqty
    int64_t order_notional                  # nanocash
    int64_t position_qty                    # nanoqty
    int64_t position_notional               # nanocash
    int64_t total_notional                  # nanocash
    int64_t open_positions
    int64_t daily_loss                      # nanocash; reaching it refuses
    int64_t collar_bps
    int64_t rate                            # orders per 60 s
    int64_t open_orders                     # per instrument
    int64_t data_age                        # ns
    int64_t allow_short                     # 0 or 1

cdef struct exposure_t:                     # one instrument; three lines
    int64_t tick                            # nanoprice
    int64_t lot                             # nanoqty
    int64_t min_qty                         # nanoqty
    int64_t reference                       # nanoprice; 0 = never marked
    int64_t bid                             # nanoprice; 0 = none
    int64_t ask
    int64_t mark_ts                         # ns, ts_recv of the newest state of the book
    uint8_t flags                           # BOOK_FLAG_* of it
    uint8_t shortable
    uint8_t held                            # has a position or open orders
    uint8_t pad[5]
    # Pairs are indexed by risk_way(side), and signed by side, so that the code has no branch on
    # it: orders to both sides alternate, and a branch guessed wrong costs as much as a check.
    int64_t qty                             # nanoqty, signed
    int64_t open_qty[2]                     # nanoqty reserved
    int64_t best[2]                         # highest side * price of what is open
    uint32_t first[2]                       # list of open orders: slot + 1; 0 = none
    int64_t open_orders
    int64_t pad1
    hp_wide_t value                         # qty at reference, signed
    hp_wide_t open_value[2]                 # open orders at their worth
    hp_wide_t worst                         # this instrument's share of the total

cdef struct reservation_t:                  # one order; one line
    uint64_t order                          # 0 = slot never used
    int64_t qty                             # nanoqty
    int64_t cum_qty                         # highest seen
    int64_t remaining                       # nanoqty still reserved
    int64_t price                           # side * price; a market buy INT64_MAX, sell 0
    int64_t worth                           # nanoprice
    uint32_t next                           # of the same instrument and side: slot + 1
    uint32_t previous
    uint16_t instrument
    int8_t side
    uint8_t type
    uint8_t open
    uint8_t pad[3]

cdef struct risk_t:
    const control_header_t *header          # NULL: always armed
    const stage_block_t *blocks
    int64_t stages                          # blocks whose store_full counts
    uint64_t token_key
    uint64_t limits_version
    limits_t limits
    exposure_t *table
    uint64_t count                          # instruments
    reservation_t *orders
    uint32_t *ring                          # slots to use next: unused, then ended, oldest first
    uint64_t head
    uint64_t tail
    uint64_t mask                           # slots - 1; slots = 2 * capacity
    uint64_t capacity
    uint64_t live
    index_t index
    int64_t *times                          # ring of when orders were approved
    uint64_t times_head
    uint64_t times_mask
    hp_wide_t total                         # sum of worst
    int64_t held                            # instruments held
    int64_t day_pnl                         # nanocash, the ledger's word
    uint64_t last_event                     # newest ORDER_EVENT seen
    uint64_t orphans                        # fills of orders not remembered
    uint64_t unknown                        # records of instruments not in the table
    uint64_t cancels                        # cancels passed (also in reasons[0])
    uint64_t reasons[64]                    # verdicts by REASON_*; [0] = approved
    uint64_t seen[256]                      # per stream: highest seq of an intent

cdef inline int risk_way(int8_t side) noexcept nogil:
    """Index of a side: 0 buy, 1 sell."""
    return side < 0

# Judge one intent at *now* (ns, monotonic).  Returns REASON_*; fills the verdict but for
# link_seq, and the order: on 0 ready to send, token included, else action DENIED.  The order of
# a cancel is its target's identity; of a denied cancel its own, so that nobody ends the target.
cdef int risk_check(risk_t *r, const hp_intent_t *i, int64_t now, hp_verdict_t *v,
                    hp_order_t *o) noexcept nogil
cdef void risk_mark(risk_t *r, const hp_book_t *b) noexcept nogil
cdef void risk_order_event(risk_t *r, const hp_order_event_t *e) noexcept nogil
cdef void risk_position(risk_t *r, const hp_position_t *p) noexcept nogil


cdef class Risk:
    cdef risk_t r
    cdef object _control                    # keeps the page mapped

    cdef exposure_t *exposure_at(self, int64_t instrument) except NULL
