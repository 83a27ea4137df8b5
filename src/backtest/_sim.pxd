"""The simulated venue of a backtest: our orders against the recorded book.

Model (every figure of it in event time)
    * An order reaches the venue `latency` ns after it was sent, an answer comes back
      `latency` ns after the venue made it.
    * On arrival it takes displayed quantity at its limit or better, best first.  What it
      took stays taken until the recording says something new about that price: the same
      liquidity never fills two orders.
    * What remains of an IOC or market order is cancelled; FOK is all or nothing.
    * What remains of a day or gtc limit order rests behind the quantity displayed at its
      price then.  Trades at its price use up that queue first; a trade through its price
      fills up to the quantity traded, the other side reaching it the rest.
    * A stop waits for a trade at its price or beyond it, a trailing stop for one that far from the
      best trade since it arrived (at first the last trade, or the side it sells to or buys from);
      then it meets the book as a market or limit order.
    * Our orders do not change the recorded market.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .._book cimport book_t
from .._schema cimport hp_market_t, hp_order_t, hp_update_t
from .._wire cimport Wire

cdef enum:
    SIM_ORDERS = 1024           # alive or on their way
    SIM_ANSWERS = 8192          # a power of two
    SIM_TAKEN = 256             # prices with taken quantity, over all instruments
    SIM_LEVELS = 64             # of one side an order can walk through

cdef struct sim_order_t:
    uint64_t order              # 0 = slot free
    int64_t due                 # ns: reaches the venue, while it travels; 0 = it is there
    int64_t price
    int64_t qty
    int64_t filled
    int64_t ahead               # nanoqty displayed before us at our price
    int64_t stop                # trade that it waits for; 0 = it waits for none
    int64_t trail               # TRAILING_STOP: distance, or
    int64_t trail_share         # in 1e-9 of the price
    int64_t best                # best trade since; 0 = none
    uint16_t instrument
    int8_t side
    uint8_t type
    uint8_t tif
    uint8_t cancel              # a cancel is on its way
    int64_t cancel_due

cdef struct sim_taken_t:
    int64_t price
    int64_t qty                 # 0 = slot free
    uint16_t instrument
    int8_t side                 # of the book: +1 bid, -1 ask


cdef class SimWire(Wire):
    cdef list _books
    cdef book_t **books
    cdef uint64_t instruments
    cdef int64_t latency
    cdef sim_order_t orders[SIM_ORDERS]
    cdef uint32_t alive         # slots [0, alive) may be in use
    cdef sim_taken_t taken[SIM_TAKEN]
    cdef uint32_t taken_count
    cdef hp_update_t *answers
    cdef int64_t *answer_due
    cdef uint64_t head, tail
    cdef uint64_t executions
    cdef readonly uint64_t submitted, filled_orders

    # When the next order or cancel reaches the venue, or answer comes back; max = never.
    cdef int64_t next_due(self) noexcept nogil
    # Orders and cancels that have arrived by *now* meet the book.
    cdef void advance(self, int64_t now) noexcept nogil
    # The book has just applied *m*: quantities are new, resting orders may fill.
    cdef void on_market(self, const hp_market_t *m) noexcept nogil

    cdef void _answer(self, const sim_order_t *s, uint8_t kind, int64_t price, int64_t qty,
                      int64_t now) noexcept nogil
    cdef void _arrive(self, sim_order_t *s, int64_t now) noexcept nogil
    cdef void _meet(self, sim_order_t *s, int64_t now) noexcept nogil
    cdef void _trail(self, sim_order_t *s, int64_t price) noexcept nogil
    cdef void _fill(self, sim_order_t *s, int64_t price, int64_t qty, int64_t now) noexcept nogil
    cdef int64_t _taken(self, uint16_t instrument, int8_t side, int64_t price) noexcept nogil
    cdef void _take(self, uint16_t instrument, int8_t side, int64_t price,
                    int64_t qty) noexcept nogil
