"""L1, L2 and L3 order book of one instrument; structure, invariants and code are in ``_book.h``.

Every function is `static inline`, needs no GIL, allocates nothing and cannot fail; only
book_new() takes memory.  Sides are +1 bid, -1 ask in records and 0 bid, 1 ask as arguments.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint32_t, uint64_t

from ._schema cimport hp_book_t, hp_market_t


cdef extern from "_book.h" nogil:
    ctypedef struct book_level_t:
        int64_t price           # nanoprice
        int64_t qty             # nanoqty
        uint64_t orders         # listed orders (L3); 0 when the feed has none

    ctypedef struct book_order_t:
        uint64_t ref
        int64_t qty             # nanoqty left

    ctypedef struct book_counters_t:
        uint64_t applied
        uint64_t unknown_order
        uint64_t absent_level
        uint64_t off_tick
        uint64_t invalid
        uint64_t duplicate
        uint64_t exhausted
        uint64_t clipped
        uint64_t gaps
        uint64_t unknown_trade

    ctypedef struct book_walk_t:
        int64_t filled          # nanoqty
        int64_t unfilled        # nanoqty
        int64_t worst           # nanoprice of the last level taken; 0 = none

    ctypedef struct book_side_t:
        uint32_t levels

    ctypedef struct book_t:
        book_side_t side[2]
        int64_t tick
        uint32_t order_live
        int64_t last_price
        int64_t last_qty
        int64_t volume
        int8_t last_side
        book_counters_t counters

    const uint64_t BOOK_BARS        # kinds that are no state of a book: a bit each
    const uint64_t BOOK_WORDS       # kinds that say nothing new of the market

    book_t *book_new(int64_t tick, uint32_t orders, uint32_t pages) noexcept     # NULL: no memory
    void book_free(book_t *b) noexcept

    int book_apply(book_t *b, const hp_market_t *m) noexcept    # 1 taken, 0 counted no-op
    void book_view(const book_t *b, hp_book_t *out) noexcept    # all but identity and times
    uint8_t book_flags(const book_t *b) noexcept                # BOOK_FLAG_*
    int64_t book_best_bid(const book_t *b) noexcept             # nanoprice; 0 = none
    int64_t book_best_ask(const book_t *b) noexcept
    int64_t book_best_qty(const book_t *b, uint32_t side) noexcept
    int64_t book_mid2(const book_t *b) noexcept                 # bid + ask; 0 = a side is empty
    int64_t book_spread(const book_t *b) noexcept               # negative when crossed
    double book_spread_bps(const book_t *b) noexcept
    double book_imbalance(const book_t *b, int64_t levels) noexcept
    int64_t book_depth(const book_t *b, uint32_t side, int64_t levels) noexcept
    int64_t book_levels(const book_t *b, uint32_t side, book_level_t *out, int64_t count) noexcept
    book_walk_t book_walk(const book_t *b, uint32_t side, int64_t qty) noexcept
    int64_t book_ticks(const book_t *b, int64_t price) noexcept     # 0: no positive multiple
    const book_order_t *book_order(const book_t *b, uint64_t ref) noexcept      # NULL: not live
    int64_t book_order_price(const book_t *b, const book_order_t *o) noexcept
    int8_t book_order_side(const book_t *b, const book_order_t *o) noexcept
    int64_t book_order_ahead(const book_t *b, const book_order_t *o) noexcept
    uint64_t book_dropped(const book_t *b) noexcept


cdef class Book:
    cdef book_t *b
