"""Positions, fees and P&L, exact: average cost in 128-bit integers of 1e-18.

A price and a quantity are in 1e-9, so what a fill costs is an exact integer in 1e-18 of the
quote currency ("attocash" below).  Per instrument the ledger keeps

    qty         nanoqty, signed
    cost        attocash paid for qty; sign of qty; the average is cost / qty
    realised    attocash, before fees
    unrealised  attocash: mark * qty - cost

A fill that increases adds price * qty to cost.  A fill that reduces takes cost * part / qty out
of it and realises the difference to its proceeds; what is larger than the position first
flattens it, the rest opens the other side at the fill's price.

A fill is charged per_share * qty + rate * value, of both sides or of sales only, and its order's
first fill per_order too: computed exactly, then rounded up to whole nanocash, once.  The equity is
what was there at first, plus realised, plus unrealised, less fees.

A day begins where ledger_roll is called.  Averages, marks, realised and unrealised go on as they
are; the day's numbers are differences to what stood then, at the marks of that moment.

Invariants
    L1  cash == sum(realised) - sum(cost) - fees, to the last unit, after any fills: the one
        division (at a reduction, toward zero) moves less than 1 attocash between realised and
        unrealised, never in or out of the books.
    L2  profit == sum(realised) + sum(unrealised) - fees; kept by differences, so a mark costs O(1).
    L3  Rounding happens in ledger_view only: half to even, to nanoprice and nanocash.
    L4  |cost|, |mark * qty| and the sum of realised of an instrument and of all, cash and fees
        fit nanocash in 63 bits, so sums over all instruments cannot overflow 128.  A fill or
        mark that would break this is refused whole and counted in `broken`.

Positions are marked at the last price given; until one was, at that of the first fill.
"""
from libc.stdint cimport int64_t, uint16_t, uint32_t, uint64_t

from ._schema cimport hp_order_event_t, hp_position_t

cdef extern from "_wide.h" nogil:
    const int64_t HP_NANO
    const int64_t HP_ATTO
    ctypedef struct hp_wide_t:              # __int128, attocash
        pass
    hp_wide_t hp_wide_of(int64_t v) noexcept
    hp_wide_t hp_wide_cash(int64_t cash) noexcept
    hp_wide_t hp_wide_mul(int64_t a, int64_t b) noexcept
    hp_wide_t hp_wide_times(hp_wide_t a, int64_t b) noexcept
    hp_wide_t hp_wide_add(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_sub(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_max(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_abs(hp_wide_t a) noexcept
    hp_wide_t hp_wide_share(hp_wide_t whole, int64_t part, int64_t count) noexcept
    bint hp_wide_less(hp_wide_t a, hp_wide_t b) noexcept
    bint hp_wide_fits(hp_wide_t a) noexcept
    bint hp_wide_equal(hp_wide_t a, hp_wide_t b) noexcept
    bint hp_add_overflow(int64_t a, int64_t b, int64_t *out) noexcept
    int64_t hp_sub_saturate(int64_t a, int64_t b) noexcept
    int64_t hp_wide_ceil(hp_wide_t a, int64_t b) noexcept
    int64_t hp_wide_even(hp_wide_t a, int64_t b) noexcept
    int64_t hp_wide_floor(hp_wide_t a, int64_t b) noexcept
    uint32_t hp_wide_rest(hp_wide_t a) noexcept
    int64_t hp_wide_high(hp_wide_t a) noexcept
    uint64_t hp_wide_low(hp_wide_t a) noexcept

cdef enum:
    FEE_RATE_MOST = 1000000000              # all of the value

cdef struct fees_t:                         # each 0 or more; rates at most FEE_RATE_MOST
    int64_t per_order                       # nanocash, with an order's first fill
    int64_t per_share                       # nanocash for 1e9 nanoqty
    int64_t rate                            # of the value, in 1e-9
    int64_t sell_per_share                  # the same two, of sales only, on top
    int64_t sell_rate

cdef struct account_t:                      # one instrument
    hp_wide_t cost
    hp_wide_t realised
    hp_wide_t unrealised
    hp_wide_t gross                         # |mark * qty|
    int64_t qty
    int64_t mark                            # nanoprice; 0 = none yet
    int64_t average                         # nanoprice, rounded; for the view
    int64_t paid                            # nanocash, fees
    int64_t fills

cdef struct ledger_t:
    account_t *accounts
    uint64_t count
    fees_t fees
    int64_t opening                         # nanocash, equity at first
    hp_wide_t cash                          # of all fills and fees; starts at 0
    hp_wide_t realised                      # over all instruments
    hp_wide_t unrealised
    hp_wide_t gross
    hp_wide_t peak                          # highest equity, in attocash; starts at the opening
    hp_wide_t deepest                       # largest drawdown so far
    hp_wide_t profit_then                   # profit, realised and fees when the day began
    hp_wide_t realised_then
    int64_t paid_then
    int64_t paid                            # nanocash, fees over all instruments
    int64_t fee                             # nanocash, of the newest fill
    uint32_t day                            # days since 1970; 0 = ledger_roll was never called
    uint64_t last_event                     # newest ORDER_EVENT applied
    uint64_t fills
    uint64_t duplicates                     # events not newer than last_event
    uint64_t unknown                        # instrument not in the table
    uint64_t broken                         # refused for want of range, or malformed: halt

# Apply one step of an order; 1 when it moved the books.  Fills move the position, others nothing.
# Events of a stream are numbered, so one that is not newer than the last is a duplicate; event 0 =
# not numbered.
cdef bint ledger_order_event(ledger_t *l, const hp_order_event_t *e) noexcept nogil

# Mark at *price* (nanoprice, > 0, else ignored); 1 when the unrealised P&L changed.
cdef bint ledger_mark(ledger_t *l, uint16_t instrument, int64_t price) noexcept nogil

# Begin the trading day *day* (days since 1970).
cdef void ledger_roll(ledger_t *l, uint32_t day) noexcept nogil

# Fill *out* but for link_seq, event and fee.
cdef void ledger_view(const ledger_t *l, uint16_t instrument, hp_position_t *out) noexcept nogil

# Nanocash over all instruments, rounded half to even: for counters and people.
cdef int64_t ledger_profit(const ledger_t *l) noexcept nogil        # of the run, after fees
cdef int64_t ledger_day_pnl(const ledger_t *l) noexcept nogil
cdef int64_t ledger_realised(const ledger_t *l) noexcept nogil
cdef int64_t ledger_gross(const ledger_t *l) noexcept nogil
cdef int64_t ledger_equity(const ledger_t *l) noexcept nogil
cdef int64_t ledger_drawdown(const ledger_t *l) noexcept nogil


cdef class Ledger:
    cdef ledger_t l

    cdef account_t *account(self, int64_t instrument) except NULL
