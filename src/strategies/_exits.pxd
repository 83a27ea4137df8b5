"""Stops and targets of every position, whoever opened it; the last strategy in the list.

The price is what closing would bring: the best bid for a long position, the best ask for a short
one, on a book that can be traded.  Written for a long position; a short one is its mirror.

    stop        price <= entry - stop_bps
    trailing    once price >= entry + trail_from_bps: price <= best - trail_bps, best being the
                highest price since the position opened; the level only rises
    absolute    price <= the price given for the instrument
    atr         price <= entry - atr_times * ATR, the ATR of when the position opened, or of the
                first moment after at which there is one
    break-even  price <= entry, once the first target was filled in part or whole
    loss        what closing would lose, fees apart, >= loss
    time        held since it was opened for `hold` or longer
    first       price >= entry + first_bps closes first_share of what is held then
    target      price >= entry + target_bps closes the rest

Entry is the exact average cost of the fills (`_ledger`), compared without rounding.  A price that
jumps beyond a level fires at the first state of the book beyond it.

Rules
    E1  At most one exit order of an instrument is alive: from the intent until an order event ends
        it, nothing fires.  Ended unfilled or in part, nothing fires for `pause`.
    E2  An order closes at most what is held and not offered already by other open orders.
    E3  A stop, loss or time exit that fired goes on until the position is flat, whatever the price
        does meanwhile.  A target needs its price each time.
    E4  State is forgotten when the position is flat or turns around.
    E5  Only events move it: book states, order events, their times.  So a backtest and a replay do
        what the live run does.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from .._ledger cimport Ledger
from .._schema cimport hp_book_t
from .._strategy cimport Strategy, hp_context_t, hp_out_t

cdef struct rules_t:            # 0 = that rule is off
    int64_t stop_bps
    int64_t trail_bps
    int64_t trail_from_bps
    int64_t atr_times           # 1e-9
    int64_t atr_bars
    int64_t atr_bar             # ns
    int64_t hold                # ns
    int64_t loss                # nanocash
    int64_t target_bps
    int64_t first_bps
    int64_t first_share_bps
    int64_t tolerance_bps       # of a limit order; market orders when `market`
    int64_t pause               # ns
    bint break_even
    bint market

cdef struct exit_t:             # one instrument
    int64_t absolute            # nanoprice; 0 = none
    int64_t lot
    int64_t tick
    bint cents                  # INSTRUMENT.flags 4: from 1.00 on, whole cents
    # the position
    int64_t qty                 # nanoqty, signed
    int64_t since               # ns
    int64_t best                # side * price
    int64_t trail               # side * level; valid when `trailing`
    int64_t atr_distance        # nanoprice; 0 = not known yet
    int64_t first_left          # nanoqty the first target has still to close; -1 = not fired
    int64_t next                # ns; nothing fires before
    bint trailing
    bint first_filled
    uint8_t closing             # EXIT_* that goes on until flat; 0 = none (E3)
    uint8_t alive               # EXIT_* whose order is alive; 0 = none (E1)
    uint64_t ended              # identity of the newest order of ours that ended
    # bars for the ATR, of the mid
    int64_t bar                 # number of the running bar
    int64_t high
    int64_t low
    int64_t last                # newest
    int64_t close               # of the bar before; 0 = none
    int64_t ranges              # bars that went into the ATR
    int64_t atr                 # nanoprice; a sum until `atr_bars` went in


cdef class Exits(Strategy):
    cdef rules_t rules
    cdef exit_t *exits
    cdef int count              # instruments
    cdef Ledger ledger          # of all our fills: exact entries
    cdef readonly dict params

    cdef void _bar(self, exit_t *x, const hp_book_t *book, int64_t now) noexcept nogil
    cdef void _fill(self, exit_t *x, const hp_context_t *c) noexcept nogil
    cdef uint8_t _fires(self, exit_t *x, const hp_context_t *c, int64_t price) noexcept nogil
    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
