"""NASDAQ ITCH 5.0 to MARKET records; the code is in ``_itch.h``."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .._book cimport book_t
from .._schema cimport hp_market_t


cdef extern from "backtest/_itch.h" nogil:
    enum:
        ITCH_NONE
        ITCH_PRICE
        ITCH_QTY
        ITCH_MOST
        ITCH_OK
        ITCH_LENGTH
        ITCH_VALUE

    ctypedef struct itch_t:
        uint16_t instrument[65536]
        int64_t midnight
        int64_t now
        uint64_t event
        uint64_t messages
        uint64_t unknown
        uint64_t broken
        uint64_t ignored
        int error
        int wanted
        int found
        int type

    ctypedef hp_market_t itch_row_t

    ctypedef struct itch_stock_t:
        char symbol[8]
        uint32_t tick
        uint32_t first

    int64_t itch_parse(itch_t *t, const uint8_t *data, int64_t size, itch_row_t *out,
                       int64_t room, int64_t *count) noexcept
    int64_t itch_replay(itch_t *t, const uint8_t *data, int64_t size, book_t **books) noexcept
    int64_t itch_scan(itch_t *t, const uint8_t *data, int64_t size, itch_stock_t *stocks) noexcept


cdef class Parser:
    cdef itch_t *t
    cdef itch_stock_t *stocks
    cdef int64_t offset             # bytes used since reset()
    cdef int _used(self, int64_t used) except -1
