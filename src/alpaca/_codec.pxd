"""Alpaca's market data, bytes to MARKET records: one pass, no Python object, no allocation.

A frame is a MessagePack array of maps; each map is one message.  What comes out of one:

    t  trade         TRADE                                          1 record
    q  quote         QUOTE bid, QUOTE ask                           2; 3 when the book is stale
    o  order book    CLEAR when r is true, a LEVEL for each entry   0..n
    s  status        STATUS when trading stops or resumes           0 or 1
    l  price bands   BAND upper, BAND lower                         2
    c  correction    BUST of the original, FIX                      2
    x  cancel/error  BUST                                           1
    b  bar, u, d     BAR_OPEN, BAR_HIGH, BAR_LOW, BAR_CLOSE         4
    error            nothing; its code is kept in `control`
    all else         nothing, counted in `ignored`: news (n), imbalances (i), what is new

Invariants
    C1  The last record of a message, and only it, has LAST.
    C2  All or nothing for each message: one that is malformed, out of range, or of an
        instrument that is not ours leaves no record and does not disturb the others.
    C3  All or nothing for each frame as well: when it is no MessagePack, too large, or
        larger than `room`, nothing is written that counts, and only `errors` changes.
    C4  No byte outside data[0 : size] is read: each message is skipped structurally, and so
        bounded, before any value in it is looked at.
    C5  The first word of a record (link_seq, the ring's) is never written: `out` may be
        claimed slots.  `event` and `hop` are 0: both belong to whoever publishes.

A quote states both sides, so the first one after a gap is a snapshot: it is sent as CLEAR
and two QUOTEs.  Where an order book was seen, quotes of that instrument are ignored: they
say less than the book and would replace its sides.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from .._schema cimport hp_market_t

cdef enum:                      # what codec_decode returns when it is negative
    CODEC_FORMAT = -1           # not MessagePack, truncated, nested too deep, or no array
    CODEC_SIZE = -2             # frame_max or messages_max exceeded
    CODEC_ROOM = -3             # needs `needed` records of room: try again with more credit

cdef enum:
    CODEC_DEPTH = 16            # containers inside one another
    CODEC_STALE = 1             # state bit: no snapshot since the gap
    CODEC_BOOK = 2              # state bit: the venue sends an order book

cdef struct symbol_t:           # 24 bytes
    uint64_t low                # bytes 0..7 of the symbol, zero-padded
    uint64_t high               # bytes 8..15
    uint32_t size               # bytes; 0 = slot unused
    uint32_t instrument

cdef struct codec_t:
    symbol_t *table             # open addressing, at most a quarter full
    uint64_t mask               # slots - 1
    uint8_t *state              # CODEC_* bits of each instrument
    uint32_t instruments
    uint32_t frame_max          # bytes
    uint32_t messages_max       # of one frame
    uint32_t needed             # after CODEC_ROOM: records this frame needs at most
    int64_t control             # code of the venue's last error message; 0 = none yet
    uint64_t frames
    uint64_t messages
    uint64_t records
    uint64_t ignored            # messages of a type or status we have no record for
    uint64_t drops              # messages of instruments that are not ours
    uint64_t errors             # malformed messages and frames
    uint64_t controls           # success, error and subscription messages

# Nearest nano of *value* into *out*; 0 when it is NaN, infinite, negative or too large.
cdef bint nano_of(double value, int64_t *out) noexcept nogil

# The same of a decimal text such as "-10.03"; 0 when it is none or does not fit.
cdef bint nano_parse(const uint8_t *text, size_t size, int64_t *out) noexcept nogil

# RFC 3339 text to ns since 1970; 0 when it is none.
cdef bint time_parse(const uint8_t *text, size_t size, int64_t *out) noexcept nogil

# Decode one frame into out[0 : room]; records written, or CODEC_*.
cdef int codec_decode(codec_t *c, const uint8_t *data, size_t size, int64_t ts_recv,
                      hp_market_t *out, uint32_t room) noexcept nogil

# The same into the slots base[(start + i) & mask] of a ring.
cdef int codec_decode_at(codec_t *c, const uint8_t *data, size_t size, int64_t ts_recv,
                         hp_market_t *base, uint64_t start, uint64_t mask,
                         uint32_t room) noexcept nogil

# A GAP for every instrument: each book is stale until its next snapshot.
cdef int codec_gap(codec_t *c, int64_t ts_recv, hp_market_t *base, uint64_t start,
                   uint64_t mask, uint32_t room) noexcept nogil


cdef class Decoder:
    cdef codec_t c
    cdef hp_market_t *_scratch
    cdef uint32_t _room
    cdef dict _index            # symbol -> instrument, for the JSON half

    cdef int decode(self, const uint8_t *data, size_t size, int64_t ts_recv,
                    hp_market_t *out, int room) noexcept nogil
    cdef int decode_at(self, const uint8_t *data, size_t size, int64_t ts_recv,
                       hp_market_t *base, uint64_t start, uint64_t mask,
                       int room) noexcept nogil
    cdef int gap_at(self, int64_t ts_recv, hp_market_t *base, uint64_t start, uint64_t mask,
                    int room) noexcept nogil
