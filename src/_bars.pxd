"""Bars of one instrument from its trades, in integers.

A window is [start, start + window), start a multiple of the window's length since
1970-01-01T00:00 UTC; so a day begins at UTC midnight, and four hours at 0, 4, 8 ... UTC.

B1  A bar is complete when an event of a later window is seen: a trade, or any other time.
    A window without a trade has no bar.
B2  A complete bar never changes: a trade of its window or before it is `late`, counted and
    otherwise ignored.
B3  A trade counts with HIDDEN (it was printed), and not with UNPRINTABLE.  One whose price or
    quantity is not positive, whose time is before 1970, or that would not fit the sums, is
    `skipped`.
B4  The volume-weighted price is exact: products and their sum in 128 bits, one rounding.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t

from ._schema cimport HP_MARKET_FLAG_UNPRINTABLE, hp_bar_t

cdef extern from "_wide.h" nogil:
    ctypedef struct hp_wide_t:              # __int128
        pass
    hp_wide_t hp_wide_of(int64_t v) noexcept
    hp_wide_t hp_wide_mul(int64_t a, int64_t b) noexcept
    bint hp_wide_add_overflow(hp_wide_t *sum, hp_wide_t a) noexcept
    bint hp_add_overflow(int64_t a, int64_t b, int64_t *out) noexcept
    int64_t hp_wide_even(hp_wide_t a, int64_t b) noexcept

cdef struct bars_t:
    int64_t window              # ns
    int64_t start               # of the running bar
    int64_t open
    int64_t high
    int64_t low
    int64_t close
    int64_t volume
    uint64_t count              # trades of the running bar; 0 = there is none
    hp_wide_t notional          # its price * qty, 1e-18
    int64_t floor               # trades before this are late
    uint64_t closed             # bars completed
    uint64_t late
    uint64_t skipped


cdef inline void bars_init(bars_t *b, int64_t window) noexcept nogil:
    b.window = window
    b.start = b.open = b.high = b.low = b.close = b.volume = b.floor = 0
    b.count = b.closed = b.late = b.skipped = 0
    b.notional = hp_wide_of(0)


cdef inline void bars_view(const bars_t *b, hp_bar_t *out) noexcept nogil:
    """The running bar; all zero when there is none."""
    out.start, out.count = b.start if b.count else 0, b.count
    out.open, out.high, out.low, out.close = b.open, b.high, b.low, b.close
    out.volume = b.volume
    out.vwap = hp_wide_even(b.notional, b.volume) if b.count else 0        # B4


cdef inline void bars_flush(bars_t *b, hp_bar_t *out) noexcept nogil:
    """Complete the running bar, which there must be."""
    bars_view(b, out)
    # 2262 is the end of int64: what would be behind it is nobody's window
    b.floor = b.start + b.window if b.start <= INT64_MAX - b.window else INT64_MAX
    b.open = b.high = b.low = b.close = b.volume = 0
    b.count = 0
    b.notional = hp_wide_of(0)
    b.closed += 1


cdef inline bint bars_time(bars_t *b, int64_t ts, hp_bar_t *out) noexcept nogil:
    """It is *ts* (UTC).  1: the running bar is complete and in *out*."""
    if b.count == 0 or ts < 0 or ts - b.start < b.window:                   # B1
        return False
    bars_flush(b, out)
    return True


cdef inline bint bars_trade(bars_t *b, int64_t ts, int64_t price, int64_t qty, uint8_t flags,
                            hp_bar_t *out) noexcept nogil:
    """A trade; *flags* are MARKET_FLAG_*.  1: a bar before it is complete and in *out*."""
    cdef bint done = bars_time(b, ts, out)
    cdef int64_t volume
    cdef hp_wide_t notional
    if flags & HP_MARKET_FLAG_UNPRINTABLE or price <= 0 or qty <= 0 or ts < 0:      # B3
        b.skipped += 1
        return done
    if ts < b.floor or (b.count and ts < b.start):                          # B2
        b.late += 1
        return done
    notional = b.notional
    if (hp_add_overflow(b.volume, qty, &volume)
            or hp_wide_add_overflow(&notional, hp_wide_mul(price, qty))):
        b.skipped += 1
        return done
    if b.count == 0:
        b.start = ts - ts % b.window
        b.open = b.high = b.low = price
    b.high = price if price > b.high else b.high
    b.low = price if price < b.low else b.low
    b.close, b.volume, b.notional = price, volume, notional
    b.count += 1
    return done


cdef class Bars:
    cdef bars_t b
