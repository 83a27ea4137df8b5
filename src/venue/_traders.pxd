"""Simulated traders who keep a live, two-sided book per instrument.

Per instrument a fundamental value walks; a slowly varying *lean* pushes it.  Makers quote
around the value and make the side that the lean favours bigger, informed takers lift what
is priced through it, other takers follow lean and imbalance, a few chase momentum.  So the
imbalance of the book says something about the next move of the mid, as in real books.

Everything is a function of the seed, the instruments and the orders that came from outside.
Time is virtual: each message an event made costs an exponentially distributed share of
1 / rate seconds, so `rate` messages per second come out, in any chunks.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from hftpipe._match cimport match_fill_t, match_level_t, match_out_t, match_t

cdef enum:
    SLOTS = 128                 # orders the traders keep per instrument; even = bids
    MAKERS = 64                 # the first of them quote close to the value
    ORDER_ROOM = 16384          # resting orders per book, those from outside included
    LEVEL_ROOM = 4096
    FILL_ROOM = 256             # per step of the engine
    LOG_ROOM = 65536            # messages; above ORDER_ROOM + 3 * LEVEL_ROOM

cdef enum:                      # message kinds
    MESSAGE_QUOTE = 1           # a, b = bid and its quantity; c, d = ask
    MESSAGE_TRADE = 2           # a, b = price, quantity; c, d = left of maker, taker
    MESSAGE_LEVEL = 3           # a, b = price, total quantity; one group per number

cdef struct message_t:
    uint64_t number             # trade id, or which change of the book
    uint64_t maker
    uint64_t taker
    int64_t a
    int64_t b
    int64_t c
    int64_t d
    uint16_t instrument
    uint8_t kind
    int8_t side

cdef struct crowd_t:            # the traders of one instrument
    match_t *m
    uint64_t slots[SLOTS]       # order ids; 0 = none
    double value                # ticks
    double base                 # ticks; the value is pulled here, very weakly
    double lean
    double trend                # EMA of the mid's changes, ticks
    double mid                  # ticks
    int64_t tick                # nanoprice
    int64_t unit                # nanoqty; sizes are multiples of it
    int64_t bid, bid_qty, ask, ask_qty      # as last published
    int64_t last_price, last_qty
    bint deep                   # publish levels


cdef class Traders:
    cdef crowd_t *_crowds
    cdef message_t *_log
    cdef match_fill_t _fills[FILL_ROOM]
    cdef match_level_t _levels[FILL_ROOM + 3]
    cdef match_out_t _out
    cdef uint32_t _count        # instruments
    cdef uint32_t _logged       # messages waiting
    cdef uint64_t _random
    cdef uint64_t _order        # last id given to a trader's order
    cdef uint64_t _trade        # last trade id
    cdef uint64_t _change       # last change of a book
    cdef double _pace           # ns per message; 0 = the traders are still
    cdef double _next           # virtual time of the next event, ns
    cdef readonly uint64_t events
    cdef readonly uint64_t messages

    cdef double _uniform(self) noexcept nogil
    cdef double _normal(self) noexcept nogil
    cdef int64_t _geometric(self, double mean) noexcept nogil
    cdef void _publish(self, crowd_t *c, int status) noexcept nogil
    cdef void _quote(self, crowd_t *c) noexcept nogil
    cdef void _refresh(self, crowd_t *c, uint32_t slot) noexcept nogil
    cdef void _take(self, crowd_t *c, int8_t side, int64_t qty) noexcept nogil
    cdef void _act(self, crowd_t *c) noexcept nogil
    cdef crowd_t *_crowd(self, uint32_t instrument) except NULL
    cdef int _after(self, uint32_t instrument, int status, uint64_t order) noexcept
    cdef crowd_t *_idle(self, uint32_t instrument) except NULL
