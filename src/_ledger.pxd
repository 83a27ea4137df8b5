"""Positions and P&L, exact: average cost in 128-bit integers of 1e-18.

A price and a quantity are in 1e-9, so what a fill costs is an exact integer in 1e-18 of the
quote currency ("attocash" below).  Per instrument the ledger keeps

    qty         nanoqty, signed
    cost        attocash paid for qty; sign of qty; the average is cost / qty
    realised    attocash
    unrealised  attocash: mark * qty - cost

A fill that increases adds price * qty to cost.  A fill that reduces takes cost * part / qty out
of it and realises the difference to its proceeds; what is larger than the position first
flattens it, the rest opens the other side at the fill's price.

Invariants
    L1  cash == sum(realised) - sum(cost), to the last unit, after any fills: the one division
        (at a reduction, toward zero) moves less than 1 attocash between realised and
        unrealised, never in or out of the books.
    L2  day == sum(realised) + sum(unrealised); kept by differences, so a mark costs O(1).
    L3  Rounding happens in ledger_view only: half to even, to nanoprice and nanocash, saturating.
    L4  |cost| and |mark * qty| of an instrument fit nanocash in 63 bits, so sums over all
        instruments cannot overflow.  A fill or mark that would break this is refused and
        counted in `broken`.

Positions are marked at the last price given; until one was, at that of the first fill.
"""
from libc.stdint cimport int64_t, uint16_t, uint64_t

from ._schema cimport hp_order_event_t, hp_position_t

cdef extern from "_wide.h" nogil:
    ctypedef struct hp_wide_t:              # __int128, attocash
        pass
    hp_wide_t hp_wide_of(int64_t v) noexcept
    hp_wide_t hp_wide_mul(int64_t a, int64_t b) noexcept
    hp_wide_t hp_wide_add(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_sub(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_abs(hp_wide_t a) noexcept
    hp_wide_t hp_wide_share(hp_wide_t whole, int64_t part, int64_t count) noexcept
    bint hp_wide_fits(hp_wide_t a) noexcept
    bint hp_wide_equal(hp_wide_t a, hp_wide_t b) noexcept
    bint hp_wide_add_overflow(hp_wide_t *sum, hp_wide_t a) noexcept
    bint hp_add_overflow(int64_t a, int64_t b, int64_t *out) noexcept
    int64_t hp_wide_even(hp_wide_t a, int64_t b) noexcept
    int64_t hp_wide_high(hp_wide_t a) noexcept
    uint64_t hp_wide_low(hp_wide_t a) noexcept

cdef struct account_t:                      # one instrument
    hp_wide_t cost
    hp_wide_t realised
    hp_wide_t unrealised
    hp_wide_t gross                         # |mark * qty|
    int64_t qty
    int64_t mark                            # nanoprice; 0 = none yet
    int64_t average                         # nanoprice, rounded; for the view
    int64_t fills

cdef struct ledger_t:
    account_t *accounts
    uint64_t count
    hp_wide_t cash                          # of all fills; starts at 0
    hp_wide_t realised                      # over all instruments
    hp_wide_t unrealised
    hp_wide_t gross
    uint64_t last_event                     # newest ORDER_EVENT applied
    uint64_t fills
    uint64_t duplicates                     # events not newer than last_event
    uint64_t unknown                        # instrument not in the table
    uint64_t broken                         # refused for want of range, or malformed: halt

# Apply one step of an order.  Fills move the position, others nothing.  Events of a stream are
# numbered, so one that is not newer than the last is a duplicate; event 0 = not numbered.
cdef void ledger_order_event(ledger_t *l, const hp_order_event_t *e) noexcept nogil

# Mark at *price* (nanoprice, > 0, else ignored); 1 when the unrealised P&L changed.
cdef bint ledger_mark(ledger_t *l, uint16_t instrument, int64_t price) noexcept nogil

# Fill *out* but for link_seq and event.
cdef void ledger_view(const ledger_t *l, uint16_t instrument, hp_position_t *out) noexcept nogil

# Nanocash over all instruments, rounded half to even, saturating: for counters and people.
cdef int64_t ledger_day_pnl(const ledger_t *l) noexcept nogil
cdef int64_t ledger_realised(const ledger_t *l) noexcept nogil
cdef int64_t ledger_gross(const ledger_t *l) noexcept nogil


cdef class Ledger:
    cdef ledger_t l

    cdef account_t *account(self, int64_t instrument) except NULL
