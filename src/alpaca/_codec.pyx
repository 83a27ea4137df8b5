"""Decode Alpaca's data stream into MARKET records; the rules stand in ``_codec.pxd``."""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from .._schema cimport *

import msgspec
import numpy

from hftpipe import schema
from hftpipe.alpaca import messages
from hftpipe.errors import ConfigError, DataError

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Nearest 1e-9 of a double, in integers; exact on both sides of 2**23.

       value = m / 2**s with 53-bit m.  Below 2**23 two doubles lie closer together than
       1e-9, so the nearest nano of the exact binary value (half to even) is the decimal
       with at most nine digits that was meant.  From 2**23 on they lie further apart:
       several nanos share one double, and the one meant is the decimal with the fewest
       digits that reads back as this double, which is what repr() prints.  */
    static inline int hp_nano_of(double value, int64_t *out) {
      uint64_t bits, m;
      memcpy(&bits, &value, 8);
      if (!(value >= 0.0 && value < 9223372036.0)) return 0;      /* NaN fails both */
      int exponent = (int)(bits >> 52 & 0x7ff), s = 1075 - exponent;
      m = (bits & 0xfffffffffffffULL) | 0x10000000000000ULL;
      if (exponent == 0 || s > 100) { *out = 0; return 1; }       /* below 2**-47 */
      unsigned __int128 p = (unsigned __int128)m * 1000000000u;
      unsigned __int128 half = (unsigned __int128)1 << (s - 1);
      if (value < 8388608.0) {
        uint64_t n = (uint64_t)(p >> s);
        unsigned __int128 rest = p & ((half << 1) - 1);
        *out = (int64_t)(n + (rest > half || (rest == half && (n & 1))));
        return 1;
      }
      int64_t unit = 1000000000, scale = 1;
      for (int digits = 0; digits <= 9; digits++, unit /= 10, scale *= 10) {
        __int128 exact = (__int128)m * scale;                     /* value * 10**digits * 2**s */
        int64_t n = (int64_t)((exact + (__int128)half) >> s);
        __int128 off = ((__int128)n << s) - exact;                /* nearest, so |off| <= half */
        __int128 reach = m == 0x10000000000000ULL && off < 0 ? scale / 2 : scale;
        if (off < 0) off = -off;
        if (2 * off < reach || (2 * off == reach && !(m & 1))) { *out = n * unit; return 1; }
      }
      return 0;                                                   /* not reached: see above */
    }
    static inline uint16_t hp_be16(const uint8_t *p) {
      uint16_t v; memcpy(&v, p, 2); return __builtin_bswap16(v);
    }
    static inline uint32_t hp_be32(const uint8_t *p) {
      uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v);
    }
    static inline uint64_t hp_be64(const uint8_t *p) {
      uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v);
    }
    static inline double hp_double(uint64_t bits) { double v; memcpy(&v, &bits, 8); return v; }
    static inline float hp_float(uint32_t bits) { float v; memcpy(&v, &bits, 4); return v; }

    /* Bytes of a scalar by its first byte, head and body; 0 = look closer. */
    static uint8_t hp_scalar[256];
    static void hp_scalar_init(void) {
      for (int b = 0; b < 256; b++)
        hp_scalar[b] = b < 0x80 || b >= 0xe0 ? 1 : b >= 0xa0 && b < 0xc0 ? 1 + (b & 31) : 0;
      static const uint8_t size[] = {1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 5, 9, 2, 3, 5, 9,   /* c0.. */
                                     2, 3, 5, 9, 3, 4, 6, 10, 18, 0, 0, 0, 0, 0, 0, 0};
      memcpy(hp_scalar + 0xc0, size, sizeof size);
    }

    /* Key of a message to its place in `value`; 0 = none of ours. */
    enum { K_NONE, K_T, K_S, K_t, K_p, K_s, K_i, K_b, K_a, K_r, K_u, K_d, K_o, K_h, K_l, K_c,
           K_v, K_n, K_bp, K_bs, K_ap, K_as, K_sc, K_oi, K_op, K_os, K_ci, K_cp, K_cs, K_vw,
           K_tks, K_code, K_COUNT };
    static uint8_t hp_key1[256];
    static void hp_key1_init(void) {
      hp_key1['T'] = K_T; hp_key1['S'] = K_S; hp_key1['t'] = K_t; hp_key1['p'] = K_p;
      hp_key1['s'] = K_s; hp_key1['i'] = K_i; hp_key1['b'] = K_b; hp_key1['a'] = K_a;
      hp_key1['r'] = K_r; hp_key1['u'] = K_u; hp_key1['d'] = K_d; hp_key1['o'] = K_o;
      hp_key1['h'] = K_h; hp_key1['l'] = K_l; hp_key1['c'] = K_c; hp_key1['v'] = K_v;
      hp_key1['n'] = K_n;
    }
    static inline int hp_key2(const uint8_t *p) {
      switch (p[0] << 8 | p[1]) {
        case 'b' << 8 | 'p': return K_bp;  case 'b' << 8 | 's': return K_bs;
        case 'a' << 8 | 'p': return K_ap;  case 'a' << 8 | 's': return K_as;
        case 's' << 8 | 'c': return K_sc;  case 'v' << 8 | 'w': return K_vw;
        case 'o' << 8 | 'i': return K_oi;  case 'c' << 8 | 'i': return K_ci;
        case 'o' << 8 | 'p': return K_op;  case 'c' << 8 | 'p': return K_cp;
        case 'o' << 8 | 's': return K_os;  case 'c' << 8 | 's': return K_cs;
      }
      return K_NONE;
    }
    """
    bint hp_nano_of(double value, int64_t *out) noexcept nogil
    uint16_t hp_be16(const uint8_t *p) noexcept nogil
    uint32_t hp_be32(const uint8_t *p) noexcept nogil
    uint64_t hp_be64(const uint8_t *p) noexcept nogil
    double hp_double(uint64_t bits) noexcept nogil
    float hp_float(uint32_t bits) noexcept nogil
    uint8_t hp_scalar[256]
    uint8_t hp_key1[256]
    void hp_scalar_init()
    void hp_key1_init()
    int hp_key2(const uint8_t *p) noexcept nogil
    enum:
        K_NONE
        K_T
        K_S
        K_t
        K_p
        K_s
        K_i
        K_b
        K_a
        K_r
        K_u
        K_d
        K_o
        K_h
        K_l
        K_c
        K_v
        K_n
        K_bp
        K_bs
        K_ap
        K_as
        K_sc
        K_oi
        K_op
        K_os
        K_ci
        K_cp
        K_cs
        K_vw
        K_tks
        K_code
        K_COUNT

hp_scalar_init()
hp_key1_init()

cdef enum:
    RECORD_BYTES_MIN = 6        # of input per record: a bar of 24 bytes is four of them
    NANO = 1000000000

cdef enum:                      # messages there are records for, by the low five bits of T
    KNOWN = (1 << (c"t" & 31) | 1 << (c"q" & 31) | 1 << (c"o" & 31) | 1 << (c"s" & 31)
             | 1 << (c"l" & 31) | 1 << (c"c" & 31) | 1 << (c"x" & 31) | 1 << (c"b" & 31)
             | 1 << (c"u" & 31) | 1 << (c"d" & 31))

cdef enum:                      # outcome of one message
    DONE = 0
    IGNORED = 1
    DROPPED = 2
    BAD = 3
    CONTROL = 4

cdef struct out_t:              # where records go
    hp_market_t *base
    uint64_t start
    uint64_t mask
    int64_t ts_recv
    int64_t ts_venue
    uint32_t room
    uint32_t count
    uint32_t instrument
    bint dry                    # count only, write nothing and change no state
    bint full
    int64_t control             # code of the frame's last error message; -1 = none


# ---------------------------------------------------------------- numbers and times

cdef bint nano_of(double value, int64_t *out) noexcept nogil:
    return hp_nano_of(value, out)


cdef bint nano_parse(const uint8_t *text, size_t size, int64_t *out) noexcept nogil:
    cdef const uint8_t *end = text + size
    cdef bint negative = size > 0 and text[0] == c"-"
    cdef uint64_t n = 0
    cdef int digits = 0, fraction = -1, rest = 0     # rest: 0 none, 1 < half, 2 half, 3 > half
    if negative:
        text += 1
    while text < end:
        if text[0] == c"." and fraction < 0:
            fraction = 0
        elif c"0" <= text[0] <= c"9":
            digits += 1
            if fraction < 9:
                if n > (9223372036854775807ULL - (text[0] - c"0")) // 10:
                    return 0
                n = n * 10 + (text[0] - c"0")
                if fraction >= 0:
                    fraction += 1
            elif fraction == 9:                      # first digit beyond the ninth
                fraction = 10
                rest = 0 if text[0] == c"0" else 1 if text[0] < c"5" else (
                    2 if text[0] == c"5" else 3)
            elif text[0] != c"0":
                rest = 1 if rest == 0 else 3 if rest == 2 else rest
        else:
            return 0
        text += 1
    if digits == 0:
        return 0
    if fraction < 0:
        fraction = 0
    while fraction < 9:
        if n > 922337203685477580ULL:
            return 0
        n *= 10
        fraction += 1
    if rest == 3 or (rest == 2 and n & 1):
        n += 1
        if n > 9223372036854775807ULL:
            return 0
    out[0] = -<int64_t>n if negative else <int64_t>n
    return 1


cdef inline int _two(const uint8_t *p) noexcept nogil:
    if c"0" <= p[0] <= c"9" and c"0" <= p[1] <= c"9":
        return (p[0] - c"0") * 10 + (p[1] - c"0")
    return -1000000


cdef int64_t _days(int64_t year, int month, int day) noexcept nogil:
    """Days since 1970 of a date of the Gregorian calendar (Hinnant, days_from_civil)."""
    if month <= 2:
        year -= 1
    cdef int64_t era = year // 400, of_era = year - era * 400
    cdef int64_t of_year = (153 * (month - 3 if month > 2 else month + 9) + 2) // 5 + day - 1
    return era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468


cdef bint time_parse(const uint8_t *text, size_t size, int64_t *out) noexcept nogil:
    # 2026-03-02T14:30:00[.123456789](Z|+hh:mm|-hh:mm); digits beyond the ninth are cut
    if size < 20 or text[4] != c"-" or text[7] != c"-" or text[13] != c":" or text[16] != c":":
        return 0
    if text[10] != c"T" and text[10] != c"t" and text[10] != c" ":
        return 0
    cdef int year = _two(text) * 100 + _two(text + 2)
    cdef int month = _two(text + 5), day = _two(text + 8)
    cdef int hour = _two(text + 11), minute = _two(text + 14), second = _two(text + 17)
    if not (1970 <= year <= 2261 and 1 <= month <= 12 and 0 <= hour <= 23
            and 0 <= minute <= 59 and 0 <= second <= 59):
        return 0
    cdef int length = 31
    if month == 4 or month == 6 or month == 9 or month == 11:
        length = 30
    elif month == 2:
        length = 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    if not 1 <= day <= length:
        return 0
    cdef size_t at = 19
    cdef int64_t fraction = 0, unit = NANO
    if text[at] == c".":
        at += 1
        if at >= size or not c"0" <= text[at] <= c"9":
            return 0
        while at < size and c"0" <= text[at] <= c"9":
            unit //= 10
            fraction += (text[at] - c"0") * unit
            at += 1
    if at >= size:
        return 0
    cdef int64_t offset = 0
    cdef int hour_off, minute_off
    if text[at] == c"Z" or text[at] == c"z":
        at += 1
    elif (text[at] == c"+" or text[at] == c"-") and at + 6 <= size and text[at + 3] == c":":
        hour_off, minute_off = _two(text + at + 1), _two(text + at + 4)
        if not (0 <= hour_off <= 23 and 0 <= minute_off <= 59):
            return 0
        offset = (hour_off * 60 + minute_off) * 60
        if text[at] == c"-":
            offset = -offset
        at += 6
    else:
        return 0
    if at != size:
        return 0
    cdef int64_t seconds = _days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second
    seconds -= offset
    if seconds < 0:
        return 0
    out[0] = seconds * NANO + fraction
    return 1


# ---------------------------------------------------------------- MessagePack

cdef const uint8_t *_skip_container(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Past a value of any kind that starts at *p*; NULL when it does not end in time."""
    cdef uint64_t left[CODEC_DEPTH]
    cdef uint64_t size, count
    cdef int depth = 0
    cdef uint8_t b
    left[0] = 1
    while True:
        if p >= end:
            return NULL
        b = p[0]
        size, count = hp_scalar[b], 0
        if size == 0:
            if b < 0x90:                            # fixmap
                size, count = 1, 2 * (b & 15)
            elif b < 0xa0:                          # fixarray
                size, count = 1, b & 15
            elif b == 0xc4 or b == 0xd9:            # bin 8, str 8
                if end - p < 2:
                    return NULL
                size = 2 + <uint64_t>p[1]
            elif b == 0xc5 or b == 0xda:            # bin 16, str 16
                if end - p < 3:
                    return NULL
                size = 3 + <uint64_t>hp_be16(p + 1)
            elif b == 0xc6 or b == 0xdb:            # bin 32, str 32
                if end - p < 5:
                    return NULL
                size = 5 + <uint64_t>hp_be32(p + 1)
            elif b == 0xc7:                         # ext 8
                if end - p < 2:
                    return NULL
                size = 3 + <uint64_t>p[1]
            elif b == 0xc8:                         # ext 16
                if end - p < 3:
                    return NULL
                size = 4 + <uint64_t>hp_be16(p + 1)
            elif b == 0xc9:                         # ext 32
                if end - p < 5:
                    return NULL
                size = 6 + <uint64_t>hp_be32(p + 1)
            elif b == 0xdc or b == 0xde:            # array 16, map 16
                if end - p < 3:
                    return NULL
                size, count = 3, <uint64_t>hp_be16(p + 1) << (b == 0xde)
            elif b == 0xdd or b == 0xdf:            # array 32, map 32
                if end - p < 5:
                    return NULL
                size, count = 5, <uint64_t>hp_be32(p + 1) << (b == 0xdf)
            else:                                   # 0xc1 is never used
                return NULL
        if size > <uint64_t>(end - p):
            return NULL
        p += size
        left[depth] -= 1
        if count:
            depth += 1
            if count > <uint64_t>(end - p) or depth == CODEC_DEPTH:
                return NULL
            left[depth] = count
        while left[depth] == 0:
            if depth == 0:
                return p
            depth -= 1


cdef inline const uint8_t *_skip(const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef size_t size
    if p >= end:
        return NULL
    size = hp_scalar[p[0]]
    if size == 0:
        return _skip_container(p, end)
    return p + size if size <= <size_t>(end - p) else NULL


cdef inline const uint8_t *_open(const uint8_t *p, const uint8_t *end, uint8_t fix, uint8_t wide,
                                 uint64_t *count) noexcept nogil:
    """Past the head of an array (fix 0x90, wide 0xdc) or map (0x80, 0xde); NULL: it is none."""
    if p >= end:
        return NULL
    if p[0] & 0xf0 == fix:
        count[0] = p[0] & 15
        return p + 1
    if p[0] == wide and end - p >= 3:
        count[0] = hp_be16(p + 1)
        return p + 3
    if p[0] == wide + 1 and end - p >= 5:
        count[0] = hp_be32(p + 1)
        return p + 5
    return NULL


cdef inline const uint8_t *_text(const uint8_t *p, uint32_t *size) noexcept nogil:
    """Bytes of the string at *p*, which was skipped already; NULL when it is none."""
    if p[0] & 0xe0 == 0xa0:
        size[0] = p[0] & 31
        return p + 1
    if p[0] == 0xd9:
        size[0] = p[1]
        return p + 2
    if p[0] == 0xda:
        size[0] = hp_be16(p + 1)
        return p + 3
    if p[0] == 0xdb:
        size[0] = hp_be32(p + 1)
        return p + 5
    return NULL


cdef inline bint _unsigned(const uint8_t *p, uint64_t *out) noexcept nogil:
    """The integer at *p*; 0 when it is none or negative."""
    cdef uint8_t b = p[0]
    if b < 0x80:
        out[0] = b
    elif b == 0xcc:
        out[0] = p[1]
    elif b == 0xcd:
        out[0] = hp_be16(p + 1)
    elif b == 0xce:
        out[0] = hp_be32(p + 1)
    elif b == 0xcf:
        out[0] = hp_be64(p + 1)
    elif b == 0xd0 and p[1] < 0x80:
        out[0] = p[1]
    elif b == 0xd1 and p[1] < 0x80:
        out[0] = hp_be16(p + 1)
    elif b == 0xd2 and p[1] < 0x80:
        out[0] = hp_be32(p + 1)
    elif b == 0xd3 and p[1] < 0x80:
        out[0] = hp_be64(p + 1)
    else:
        return 0
    return 1


cdef inline bint _nano(const uint8_t *p, int64_t *out) noexcept nogil:
    """The number at *p* in nanos; 0 when it is none, negative, not finite or too large."""
    cdef uint64_t n
    if p == NULL:
        return 0
    if p[0] == 0xcb:
        return hp_nano_of(hp_double(hp_be64(p + 1)), out)
    if p[0] == 0xca:
        return hp_nano_of(hp_float(hp_be32(p + 1)), out)
    if not _unsigned(p, &n) or n > 9223372035ULL:
        return 0
    out[0] = <int64_t>n * NANO
    return 1


cdef bint _time(const uint8_t *p, int64_t *out) noexcept nogil:
    """The time at *p* in ns since 1970 (none or nil: 0); 0 when it is something else."""
    cdef uint64_t seconds, nanos = 0
    cdef uint32_t size
    out[0] = 0
    if p == NULL or p[0] == 0xc0:
        return 1
    if p[0] == 0xd7 and p[1] == 0xff:               # ext 8 bytes: 30 bits ns, 34 bits s
        seconds = hp_be64(p + 2)
        nanos = seconds >> 34
        seconds &= 0x3ffffffffULL
    elif p[0] == 0xd6 and p[1] == 0xff:             # ext 4 bytes: s
        seconds = hp_be32(p + 2)
    elif p[0] == 0xc7 and p[1] == 12 and p[2] == 0xff:      # ext 12 bytes: u32 ns, i64 s
        nanos = hp_be32(p + 3)
        seconds = hp_be64(p + 7)
    else:
        p = _text(p, &size)
        return p != NULL and time_parse(p, size, out)
    if nanos >= NANO or seconds > 9223372035ULL:
        return 0
    out[0] = <int64_t>(seconds * NANO + nanos)
    return 1


# ---------------------------------------------------------------- symbols

cdef inline void _symbol_words(const uint8_t *text, uint32_t size, uint64_t *low,
                               uint64_t *high) noexcept nogil:
    low[0] = high[0] = 0
    if size <= 8:
        memcpy(low, text, size)
    else:
        memcpy(low, text, 8)
        memcpy(high, text + 8, size - 8)


cdef inline uint64_t _symbol_hash(uint64_t low, uint64_t high) noexcept nogil:
    low ^= high * 0x9e3779b97f4a7c15ULL
    low *= 0xd6e8feb86659fd93ULL
    return low ^ (low >> 32)


cdef inline int64_t _symbol_find(const codec_t *c, const uint8_t *text,
                                 uint32_t size) noexcept nogil:
    """Instrument of a symbol, or -1."""
    cdef uint64_t low, high, at
    if size == 0 or size > 16:
        return -1
    _symbol_words(text, size, &low, &high)
    at = _symbol_hash(low, high) & c.mask
    while c.table[at].size:
        if c.table[at].low == low and c.table[at].high == high and c.table[at].size == size:
            return c.table[at].instrument
        at = (at + 1) & c.mask
    return -1


# ---------------------------------------------------------------- records

cdef inline hp_market_t *_emit(out_t *o, uint8_t kind, int8_t side, int64_t price, int64_t qty,
                               uint64_t ref, uint8_t flags) noexcept nogil:
    """The next record, all but its first word; NULL when dry or full."""
    cdef hp_market_t *m
    if o.dry:
        o.count += 1
        return NULL
    if o.count >= o.room:
        o.full = 1
        return NULL
    m = &o.base[(o.start + o.count) & o.mask]
    m.event = 0
    m.ts_recv = o.ts_recv
    m.ts_venue = o.ts_venue
    m.price = price
    m.qty = qty
    m.ref = ref
    m.instrument = <uint16_t>o.instrument
    m.kind = kind
    m.side = side
    m.flags = flags
    m.pad0 = 0
    m.hop = 0
    o.count += 1
    return m


cdef inline int _emit_quote(codec_t *c, out_t *o, int64_t bid, int64_t bid_qty, int64_t ask,
                            int64_t ask_qty) noexcept nogil:
    cdef uint8_t flags = 0
    if c.state[o.instrument] & CODEC_BOOK:
        return IGNORED
    if bid == 0 or bid_qty == 0:
        bid = bid_qty = 0
    if ask == 0 or ask_qty == 0:
        ask = ask_qty = 0
    if c.state[o.instrument] & CODEC_STALE:
        flags = HP_MARKET_FLAG_SNAPSHOT
        _emit(o, HP_MARKET_CLEAR, HP_SIDE_NONE, 0, 0, 0, flags)
        if not o.dry:
            c.state[o.instrument] &= <uint8_t>~CODEC_STALE
    _emit(o, HP_MARKET_QUOTE, HP_SIDE_BUY, bid, bid_qty, 0, flags)
    _emit(o, HP_MARKET_QUOTE, HP_SIDE_SELL, ask, ask_qty, 0, flags | HP_MARKET_FLAG_LAST)
    return DONE


cdef inline int _emit_status(out_t *o, const uint8_t *code, uint32_t size) noexcept nogil:
    # CTA: 2 halt, 3 resume.  UTP: H halt, P volatility pause, Q quotes resume (trading does
    # not), T trading resumes.  The others (price indications, imbalances) change nothing.
    if size != 1:
        return IGNORED
    if code[0] == c"T" or code[0] == c"3":
        _emit(o, HP_MARKET_STATUS, HP_SIDE_NONE, 0, 0, 1, HP_MARKET_FLAG_LAST)
        return DONE
    if code[0] == c"H" or code[0] == c"2" or code[0] == c"P" or code[0] == c"Q":
        _emit(o, HP_MARKET_STATUS, HP_SIDE_NONE, 0, 0, 0, HP_MARKET_FLAG_LAST)
        return DONE
    return IGNORED


cdef inline int _emit_bust(out_t *o, uint64_t ref, int64_t price, int64_t qty,
                           bint fixed, uint64_t fix_ref, int64_t fix_price,
                           int64_t fix_qty) noexcept nogil:
    """A trade taken back, and what stands in its place."""
    if price == 0 or qty == 0 or (fixed and (fix_price == 0 or fix_qty == 0)):
        return BAD
    _emit(o, HP_MARKET_BUST, HP_SIDE_NONE, price, qty, ref, 0 if fixed else HP_MARKET_FLAG_LAST)
    if fixed:
        _emit(o, HP_MARKET_FIX, HP_SIDE_NONE, fix_price, fix_qty, fix_ref, HP_MARKET_FLAG_LAST)
    return DONE


cdef inline int _emit_band(out_t *o, int64_t upper, int64_t lower,
                           uint8_t indicator) noexcept nogil:
    # SIP: A opening, B intra-day, C restated, E re-opening; D suspended while trading is halted
    # and F outside the hours of the rule, when the prices of the message do not bind.
    if indicator == c"D" or indicator == c"F":
        upper = lower = 0
    _emit(o, HP_MARKET_BAND, HP_SIDE_BUY, upper, 0, indicator, 0)
    _emit(o, HP_MARKET_BAND, HP_SIDE_SELL, lower, 0, indicator, HP_MARKET_FLAG_LAST)
    return DONE


cdef inline int _emit_bar(out_t *o, uint8_t kind, int64_t first, int64_t high, int64_t low,
                          int64_t close, int64_t volume, uint64_t trades,
                          int64_t average) noexcept nogil:
    if first == 0 or low == 0 or close == 0 or high < low:
        return BAD
    _emit(o, HP_MARKET_BAR_OPEN, HP_SIDE_NONE, first, volume, trades, 0)
    _emit(o, HP_MARKET_BAR_HIGH, HP_SIDE_NONE, high, 0, kind, 0)
    _emit(o, HP_MARKET_BAR_LOW, HP_SIDE_NONE, low, 0, 0, 0)
    _emit(o, HP_MARKET_BAR_CLOSE, HP_SIDE_NONE, close, 0, <uint64_t>average, HP_MARKET_FLAG_LAST)
    return DONE


cdef inline int _taker(const uint8_t *text, uint32_t size) noexcept nogil:
    """Side of a crypto taker: 1, -1, or 0 when it is neither B nor S."""
    if size != 1:
        return 0
    return 1 if text[0] == c"B" else -1 if text[0] == c"S" else 0


# ---------------------------------------------------------------- messages

cdef int _levels(out_t *o, const uint8_t *p, const uint8_t *end, int8_t side,
                 uint8_t flags, hp_market_t **last) noexcept nogil:
    """One side of an order book; BAD when an entry is malformed."""
    cdef uint64_t entries = 0, fields = 0
    cdef const uint8_t *key
    cdef const uint8_t *price_at
    cdef const uint8_t *qty_at
    cdef int64_t price = 0, qty = 0
    cdef hp_market_t *m
    if p == NULL:
        return BAD
    p = _open(p, end, 0x90, 0xdc, &entries)
    if p == NULL:
        return BAD
    while entries:
        entries -= 1
        p = _open(p, end, 0x80, 0xde, &fields)
        if p == NULL:
            return BAD
        price_at = qty_at = NULL
        while fields:
            fields -= 1
            key = p
            p = _skip(p, end)
            if key[0] == 0xa1 and key[1] == c"p":
                price_at = p
            elif key[0] == 0xa1 and key[1] == c"s":
                qty_at = p
            p = _skip(p, end)
        if not _nano(price_at, &price) or not _nano(qty_at, &qty) or price == 0:
            return BAD
        m = _emit(o, HP_MARKET_LEVEL, side, price, qty, 0, flags)
        if m != NULL:
            last[0] = m
    return DONE


cdef int _orderbook(codec_t *c, out_t *o, const uint8_t **value,
                    const uint8_t *end) noexcept nogil:
    cdef bint reset = value[K_r] != NULL and value[K_r][0] == 0xc3
    cdef uint8_t flags = HP_MARKET_FLAG_SNAPSHOT if reset else 0
    cdef hp_market_t *last = NULL
    if value[K_r] != NULL and not 0xc2 <= value[K_r][0] <= 0xc3 and value[K_r][0] != 0xc0:
        return BAD
    if reset:
        last = _emit(o, HP_MARKET_CLEAR, HP_SIDE_NONE, 0, 0, 0, flags)
    if _levels(o, value[K_b], end, HP_SIDE_BUY, flags, &last) == BAD:
        return BAD
    if _levels(o, value[K_a], end, HP_SIDE_SELL, flags, &last) == BAD:
        return BAD
    if last != NULL:
        last.flags |= HP_MARKET_FLAG_LAST
    if not o.dry:
        c.state[o.instrument] |= CODEC_BOOK
        if reset:
            c.state[o.instrument] &= <uint8_t>~CODEC_STALE
    return DONE


cdef int _bar(out_t *o, uint8_t kind, const uint8_t **value) noexcept nogil:
    cdef int64_t first = 0, high = 0, low = 0, close = 0, volume = 0, average = 0
    cdef uint64_t trades = 0
    if not (_nano(value[K_o], &first) and _nano(value[K_h], &high) and _nano(value[K_l], &low)
            and _nano(value[K_c], &close) and _nano(value[K_v], &volume)):
        return BAD
    if value[K_n] != NULL and not _unsigned(value[K_n], &trades):
        return BAD
    if value[K_vw] != NULL and not _nano(value[K_vw], &average):
        return BAD
    return _emit_bar(o, kind, first, high, low, close, volume, trades, average)


cdef int _message(codec_t *c, out_t *o, const uint8_t **value,
                  const uint8_t *end) noexcept nogil:
    """Records of one message, by its values (NULL = absent); all of them or none."""
    cdef const uint8_t *text
    cdef uint32_t size = 0
    cdef uint8_t kind
    cdef int64_t instrument, price = 0, qty = 0, ask = 0, ask_qty = 0
    cdef uint64_t number = 0, fixed = 0
    if value[K_T] == NULL:
        return BAD
    text = _text(value[K_T], &size)
    if text == NULL or size == 0:
        return BAD
    if size > 1:
        if size == 5 and memcmp(text, b"error", 5) == 0:
            if value[K_code] != NULL and _unsigned(value[K_code], &number):
                o.control = <int64_t>(number & 0x7fffffff)      # if the frame is whole
            return CONTROL
        if size == 7 and memcmp(text, b"success", 7) == 0:
            return CONTROL
        if size == 12 and memcmp(text, b"subscription", 12) == 0:
            return CONTROL
        return IGNORED
    kind = text[0]
    if not KNOWN >> (kind & 31) & 1 or kind >> 5 != 3:      # `a` to `z` are 0x61 to 0x7a
        return IGNORED
    if value[K_S] == NULL:
        return BAD
    text = _text(value[K_S], &size)
    if text == NULL:
        return BAD
    instrument = _symbol_find(c, text, size)
    if instrument < 0:
        return DROPPED
    if not _time(value[K_t], &o.ts_venue):
        return BAD
    o.instrument = <uint32_t>instrument
    if kind == c"q":
        if not (_nano(value[K_bp], &price) and _nano(value[K_bs], &qty)
                and _nano(value[K_ap], &ask) and _nano(value[K_as], &ask_qty)):
            return BAD
        return _emit_quote(c, o, price, qty, ask, ask_qty)
    if kind == c"t":
        if not _nano(value[K_p], &price) or not _nano(value[K_s], &qty) or price == 0:
            return BAD
        if value[K_i] != NULL and not _unsigned(value[K_i], &number):
            return BAD
        text = NULL
        if value[K_tks] != NULL:
            text = _text(value[K_tks], &size)
            if text == NULL:
                return BAD
        _emit(o, HP_MARKET_TRADE, <int8_t>(_taker(text, size) if text != NULL else 0), price, qty,
              number, HP_MARKET_FLAG_LAST)
        return DONE
    if kind == c"o":
        return _orderbook(c, o, value, end)
    if kind == c"b" or kind == c"u" or kind == c"d":
        return _bar(o, kind, value)
    if kind == c"s":
        if value[K_sc] == NULL:
            return BAD
        text = _text(value[K_sc], &size)
        return BAD if text == NULL else _emit_status(o, text, size)
    if kind == c"l":
        text = _text(value[K_i], &size) if value[K_i] != NULL else NULL
        if value[K_i] != NULL and (text == NULL or size > 1):
            return BAD
        if not _nano(value[K_u], &price) or not _nano(value[K_d], &ask):
            return BAD
        return _emit_band(o, price, ask, text[0] if text != NULL and size else 0)
    if kind == c"x":
        if not (_nano(value[K_p], &price) and _nano(value[K_s], &qty) and value[K_i] != NULL
                and _unsigned(value[K_i], &number)):
            return BAD
        return _emit_bust(o, number, price, qty, False, 0, 0, 0)
    if not (_nano(value[K_op], &price) and _nano(value[K_os], &qty) and _nano(value[K_cp], &ask)
            and _nano(value[K_cs], &ask_qty) and value[K_oi] != NULL
            and _unsigned(value[K_oi], &number) and value[K_ci] != NULL
            and _unsigned(value[K_ci], &fixed)):
        return BAD
    return _emit_bust(o, number, price, qty, True, fixed, ask, ask_qty)


cdef int _frame(codec_t *c, out_t *o, const uint8_t *data, size_t size) noexcept nogil:
    """All messages of a frame: DONE, or CODEC_*; counters are the caller's."""
    cdef const uint8_t *end = data + size
    cdef const uint8_t *p
    cdef const uint8_t *key
    cdef const uint8_t *value[K_COUNT]
    cdef uint64_t left = 0, fields = 0, ignored = 0, drops = 0, errors = 0, controls = 0, total
    cdef uint32_t before
    cdef int place, outcome, i
    if size > c.frame_max:
        return CODEC_SIZE
    p = _open(data, end, 0x90, 0xdc, &left)
    if p == NULL:
        return CODEC_FORMAT
    if left > c.messages_max:
        return CODEC_SIZE
    total = left
    o.control = -1
    while left:
        left -= 1
        key = p
        p = _open(p, end, 0x80, 0xde, &fields)
        if p == NULL:                               # no map: skip whatever it is
            p = _skip(key, end)
            if p == NULL:
                return CODEC_FORMAT
            errors += 1
            continue
        for i in range(K_COUNT):
            value[i] = NULL
        while fields:
            fields -= 1
            if end - p < 3:                         # shortest: empty key, value; and key[2] below
                if end - p < 2:
                    return CODEC_FORMAT
                place = K_NONE
                p = _skip(p, end)
            elif p[0] == 0xa1:
                place = hp_key1[p[1]]
                p += 2
            elif p[0] == 0xa2:
                place = hp_key2(p + 1)
                p += 3
            else:
                key = p
                place = K_NONE
                p = _skip(p, end)
                if p == NULL:
                    return CODEC_FORMAT
                if key[0] == 0xa3 and memcmp(key + 1, b"tks", 3) == 0:
                    place = K_tks
                elif key[0] == 0xa4 and memcmp(key + 1, b"code", 4) == 0:
                    place = K_code
            if p == NULL:
                return CODEC_FORMAT
            value[place] = p
            p = _skip(p, end)
            if p == NULL:
                return CODEC_FORMAT
        before = o.count
        outcome = _message(c, o, value, p)
        if o.full:
            return CODEC_ROOM
        if outcome == DONE:
            continue
        o.count = before                            # C2
        if outcome == IGNORED:
            ignored += 1
        elif outcome == DROPPED:
            drops += 1
        elif outcome == CONTROL:
            controls += 1
        else:
            errors += 1
    if p != end:
        return CODEC_FORMAT
    if not o.dry:
        c.messages += total
        c.ignored += ignored
        c.drops += drops
        c.errors += errors
        c.controls += controls
        if o.control >= 0:
            c.control = o.control
    return DONE


cdef int codec_decode_at(codec_t *c, const uint8_t *data, size_t size, int64_t ts_recv,
                         hp_market_t *base, uint64_t start, uint64_t mask,
                         uint32_t room) noexcept nogil:
    cdef out_t o
    cdef int outcome
    cdef uint32_t i
    o.base, o.start, o.mask, o.room, o.ts_recv = base, start, mask, room, ts_recv
    o.ts_venue, o.count, o.instrument, o.full, o.dry = 0, 0, 0, 0, 0
    if size > c.frame_max:
        c.errors += 1
        return CODEC_SIZE
    if room < size // RECORD_BYTES_MIN + 1:         # may not fit: count first
        o.dry = 1
        outcome = _frame(c, &o, data, size)
        if outcome == DONE and o.count > room:
            c.needed = o.count
            return CODEC_ROOM
        o.dry, o.count = 0, 0
    outcome = _frame(c, &o, data, size)
    if outcome != DONE:
        c.errors += 1
        for i in range(c.instruments):              # a CLEAR may be among what is given up
            c.state[i] |= CODEC_STALE
        return outcome
    c.frames += 1
    c.records += o.count
    return <int>o.count


cdef int codec_decode(codec_t *c, const uint8_t *data, size_t size, int64_t ts_recv,
                      hp_market_t *out, uint32_t room) noexcept nogil:
    return codec_decode_at(c, data, size, ts_recv, out, 0, <uint64_t>-1, room)


cdef int codec_gap(codec_t *c, int64_t ts_recv, hp_market_t *base, uint64_t start,
                   uint64_t mask, uint32_t room) noexcept nogil:
    cdef out_t o
    cdef uint32_t i
    if room < c.instruments:
        c.needed = c.instruments
        return CODEC_ROOM
    o.base, o.start, o.mask, o.room, o.ts_recv = base, start, mask, room, ts_recv
    o.ts_venue, o.count, o.full, o.dry = 0, 0, 0, 0
    for i in range(c.instruments):
        o.instrument = i
        _emit(&o, HP_MARKET_GAP, HP_SIDE_NONE, 0, 0, 0, HP_MARKET_FLAG_LAST)
        c.state[i] |= CODEC_STALE
    return <int>o.count


# ---------------------------------------------------------------- Python's handle

def to_nano(double value) -> int:
    """Nearest nano of a float, as the decoder takes it.

    Below 2**23 it is the exact binary value rounded half to even, which gives back every
    decimal of at most nine fraction digits; from there on it is the shortest decimal that
    reads back as *value*.

    Raises
    ------
    ValueError
        If *value* is negative, not finite, or 9223372036 or more.
    """
    cdef int64_t out = 0
    if not hp_nano_of(value, &out):
        raise ValueError(f"wanted a finite number in [0, 9223372036), was {value!r}")
    return out


def parse_nano(text: str) -> int:
    """Nanos of a decimal such as ``"-10.03"``; digits beyond the ninth round half to even.

    Raises
    ------
    ValueError
        If it is no plain decimal, or does not fit 64 bits.
    """
    cdef bytes raw = text.encode()
    cdef int64_t out = 0
    if not nano_parse(<const uint8_t *><char *>raw, len(raw), &out):
        raise ValueError(f"wanted a decimal that fits 64 bits in 1e-9, was {text!r}")
    return out


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time from 1970 to 2261.

    Raises
    ------
    ValueError
        If it is none.
    """
    cdef bytes raw = text.encode()
    cdef int64_t out = 0
    if not time_parse(<const uint8_t *><char *>raw, len(raw), &out):
        raise ValueError(f"wanted an RFC 3339 time, was {text!r}")
    return out


cdef object MARKET = schema.dtype(schema.MARKET)

cdef dict FRAME_ERRORS = {
    CODEC_FORMAT: "frame is not a whole MessagePack array of messages",
    CODEC_SIZE: "frame is larger than allowed",
    CODEC_ROOM: "frame has more records than there is room for",
}


cdef list _one_by_one(codec_t *c, data):
    """Messages of a frame in which one has a field of another type; None for a bad one."""
    try:
        raw = messages.RAW.decode(data)
    except msgspec.DecodeError as error:
        c.errors += 1
        raise DataError(f"frame is not a JSON array of messages: {error}") from None
    found = []
    for one in raw:
        try:
            kind = messages.KIND.decode(one)
            decoder = messages.ONE.get(kind.T)
            found.append(kind if decoder is None else decoder.decode(one))
        except msgspec.DecodeError:
            found.append(None)
    return found


cdef bint _number(value, int64_t *out) except -1:
    return value is not msgspec.UNSET and hp_nano_of(value, out)


cdef bint _whole(value, uint64_t *out) except -1:
    if not isinstance(value, int) or not 0 <= value < 1 << 64:
        return 0
    out[0] = value
    return 1


cdef int _json_bar(out_t *o, message) except -1:
    cdef int64_t first = 0, high = 0, low = 0, close = 0, volume = 0, average = 0
    cdef uint64_t trades = 0
    try:
        last = messages.NUMBER.decode(message.c)
    except msgspec.DecodeError:
        return BAD
    if not (_number(message.o, &first) and _number(message.h, &high) and _number(message.l, &low)
            and _number(last, &close) and _number(message.v, &volume)):
        return BAD
    if message.n is not msgspec.UNSET and not _whole(message.n, &trades):
        return BAD
    if message.vw is not msgspec.UNSET and not _number(message.vw, &average):
        return BAD
    return _emit_bar(o, <uint8_t>ord(message.T), first, high, low, close, volume, trades, average)


cdef int _json(Decoder self, out_t *o, message) except -1:
    """What `_message` does, of an object of ``messages``."""
    cdef codec_t *c = &self.c
    cdef int64_t price = 0, qty = 0, ask = 0, ask_qty = 0
    cdef uint64_t number = 0, fixed = 0
    cdef hp_market_t *last = NULL
    cdef bytes text
    cdef uint8_t flags
    cdef int8_t side
    kind = message.T
    if kind in ("error", "success", "subscription"):
        if kind == "error" and message.code is not msgspec.UNSET and message.code >= 0:
            c.control = message.code & 0x7fffffff
        return CONTROL
    if kind == "":
        return BAD
    if kind not in messages.KNOWN:
        return IGNORED
    if message.S is msgspec.UNSET:
        return BAD
    instrument = self._index.get(message.S)
    if instrument is None:
        return DROPPED
    o.instrument, o.ts_venue = instrument, 0
    if message.t is not None:
        text = message.t.encode()
        if not time_parse(<const uint8_t *><char *>text, len(text), &o.ts_venue):
            return BAD
    if kind == "q":
        if not (_number(message.bp, &price) and _number(message.bs, &qty)
                and _number(message.ap, &ask) and _number(message.as_, &ask_qty)):
            return BAD
        return _emit_quote(c, o, price, qty, ask, ask_qty)
    if kind == "t":
        if not _number(message.p, &price) or not _number(message.s, &qty):
            return BAD
        if price == 0:
            return BAD
        if message.i is not msgspec.UNSET and not _whole(message.i, &number):
            return BAD
        side = {"B": 1, "S": -1}.get(message.tks, 0) if message.tks is not msgspec.UNSET else 0
        _emit(o, HP_MARKET_TRADE, side, price, qty, number, HP_MARKET_FLAG_LAST)
        return DONE
    if kind == "s":
        if message.sc is msgspec.UNSET:
            return BAD
        text = message.sc.encode()
        return _emit_status(o, <const uint8_t *><char *>text, len(text))
    if kind == "l":
        if not _number(message.u, &price) or not _number(message.d, &ask):
            return BAD
        text = b"" if message.i is msgspec.UNSET else (
            message.i.encode() if isinstance(message.i, str) else b"??")
        return BAD if len(text) > 1 else _emit_band(o, price, ask, text[0] if text else 0)
    if kind == "x":
        if not (_number(message.p, &price) and _number(message.s, &qty)
                and _whole(message.i, &number)):
            return BAD
        return _emit_bust(o, number, price, qty, False, 0, 0, 0)
    if kind == "c":
        if not (_number(message.op, &price) and _number(message.os, &qty)
                and _number(message.cp, &ask) and _number(message.cs, &ask_qty)
                and _whole(message.oi, &number) and _whole(message.ci, &fixed)):
            return BAD
        return _emit_bust(o, number, price, qty, True, fixed, ask, ask_qty)
    if kind in ("b", "u", "d"):
        return _json_bar(o, message)
    if message.r is not None and not isinstance(message.r, bool):
        return BAD
    try:
        bids, asks = messages.LEVELS.decode(message.b), messages.LEVELS.decode(message.a)
    except msgspec.DecodeError:
        return BAD
    flags = HP_MARKET_FLAG_SNAPSHOT if message.r else 0
    if message.r:
        last = _emit(o, HP_MARKET_CLEAR, HP_SIDE_NONE, 0, 0, 0, flags)
    for side, levels in ((1, bids), (-1, asks)):
        for level in levels:
            if not _number(level.p, &price) or not _number(level.s, &qty):
                return BAD
            if price == 0:
                return BAD
            last = _emit(o, HP_MARKET_LEVEL, side, price, qty, 0, flags)
            if last == NULL:
                return DONE                     # full: the caller sees it
    if last != NULL:
        last.flags |= HP_MARKET_FLAG_LAST
    c.state[o.instrument] |= CODEC_BOOK
    if message.r:
        c.state[o.instrument] &= <uint8_t>~CODEC_STALE
    return DONE


cdef str _why(codec_t *c, int code, uint32_t room):
    text = FRAME_ERRORS[code]
    return f"{text}: {c.needed} records, room for {room}" if code == CODEC_ROOM else text


cdef object _take(Decoder self, int count):
    cdef char *raw = <char *>self._scratch
    if count < 0:
        raise DataError(_why(&self.c, count, self._room))
    data = bytearray(raw[:count * sizeof(hp_market_t)])
    return numpy.frombuffer(data, MARKET)


@cython.final
cdef class Decoder:
    """Decoder of one data stream.

    Parameters
    ----------
    symbols : sequence of str, or array of schema.INSTRUMENT
        Venue's symbols, each at the index its records carry.
    room : int, default 4096
        Records one call of :meth:`records` can return.
    frame_max : int, default 1 MiB
        Bytes; a larger frame is refused.
    messages_max : int, default 65536
        Messages of one frame; more are refused.

    Raises
    ------
    ConfigError
        If a symbol is empty, longer than 16 bytes, or stands twice.
    """

    def __init__(self, symbols, uint32_t room=4096, uint32_t frame_max=1 << 20,
                 uint32_t messages_max=65536):
        cdef uint64_t low, high, at
        cdef uint32_t length
        cdef bytes raw
        names = symbols["symbol"].tolist() if hasattr(symbols, "dtype") else list(symbols)
        names = [n if isinstance(n, bytes) else n.encode() for n in names]
        if self.c.table != NULL:
            raise RuntimeError("a decoder is initialised once")
        if not 0 < len(names) <= 65536:
            raise ConfigError(f"wanted 1 to 65536 symbols, found {len(names)}")
        size = 16
        while size < 4 * len(names):
            size *= 2
        self.c.table = <symbol_t *>calloc(size, sizeof(symbol_t))
        self.c.state = <uint8_t *>calloc(len(names), 1)
        self._scratch = <hp_market_t *>calloc(room, sizeof(hp_market_t))
        if self.c.table == NULL or self.c.state == NULL or self._scratch == NULL:
            raise MemoryError
        self.c.mask = size - 1
        self.c.instruments = len(names)
        self.c.frame_max, self.c.messages_max, self._room = frame_max, messages_max, room
        self._index = {}
        for i, raw in enumerate(names):
            length = <uint32_t>len(raw)
            if not 0 < length <= 16:
                raise ConfigError(f"symbol must have 1 to 16 bytes, was {raw.decode()!r}")
            if _symbol_find(&self.c, <const uint8_t *><char *>raw, length) >= 0:
                raise ConfigError(f"symbol {raw.decode()!r} stands twice")
            _symbol_words(<const uint8_t *><char *>raw, length, &low, &high)
            at = _symbol_hash(low, high) & self.c.mask
            while self.c.table[at].size:
                at = (at + 1) & self.c.mask
            self.c.table[at].low, self.c.table[at].high = low, high
            self.c.table[at].size, self.c.table[at].instrument = length, i
            self.c.state[i] = CODEC_STALE
            self._index[raw.decode()] = i

    def __dealloc__(self):
        free(self.c.table)
        free(self.c.state)
        free(self._scratch)

    cdef int decode(self, const uint8_t *data, size_t size, int64_t ts_recv,
                    hp_market_t *out, int room) noexcept nogil:
        return codec_decode_at(&self.c, data, size, ts_recv, out, 0, <uint64_t>-1,
                               <uint32_t>room if room > 0 else 0)

    cdef int decode_at(self, const uint8_t *data, size_t size, int64_t ts_recv,
                       hp_market_t *base, uint64_t start, uint64_t mask,
                       int room) noexcept nogil:
        return codec_decode_at(&self.c, data, size, ts_recv, base, start, mask,
                               <uint32_t>room if room > 0 else 0)

    cdef int gap_at(self, int64_t ts_recv, hp_market_t *base, uint64_t start, uint64_t mask,
                    int room) noexcept nogil:
        return codec_gap(&self.c, ts_recv, base, start, mask, <uint32_t>room if room > 0 else 0)

    def records(self, data, int64_t ts_recv=0):
        """MARKET records of one MessagePack frame.

        Raises
        ------
        DataError
            If the frame is malformed, too large, or has more records than `room`.
        """
        cdef Py_buffer view
        cdef int count
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        with nogil:
            count = codec_decode(&self.c, <const uint8_t *>view.buf, view.len, ts_recv,
                                 self._scratch, self._room)
        PyBuffer_Release(&view)
        return _take(self, count)

    def records_into(self, data, out, int64_t ts_recv=0) -> int:
        """Decode one MessagePack frame into *out*, an array of schema.MARKET; how many.

        As :meth:`records`, without a new array for each frame; link_seq is left as it is.
        """
        cdef Py_buffer view, target
        cdef int count
        if out.dtype != MARKET:
            raise TypeError(f"wanted an array of MARKET records, was {out.dtype}")
        PyObject_GetBuffer(out, &target, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except BaseException:
            PyBuffer_Release(&target)
            raise
        with nogil:
            count = codec_decode(&self.c, <const uint8_t *>view.buf, view.len, ts_recv,
                                 <hp_market_t *>target.buf,
                                 <uint32_t>(target.len // sizeof(hp_market_t)))
        PyBuffer_Release(&view)
        PyBuffer_Release(&target)
        if count < 0:
            raise DataError(_why(&self.c, count, <uint32_t>len(out)))
        return count

    def gap(self, int64_t ts_recv=0):
        """A GAP record for every instrument; until its next snapshot each book is stale."""
        return _take(self, codec_gap(&self.c, ts_recv, self._scratch, 0, <uint64_t>-1, self._room))

    def records_json(self, data, int64_t ts_recv=0):
        """MARKET records of one JSON frame; the same ones :meth:`records` gives.

        Raises
        ------
        DataError
            As for :meth:`records`.
        """
        cdef out_t o
        cdef uint32_t before, i
        cdef int outcome
        if len(data) > self.c.frame_max:
            self.c.errors += 1
            raise DataError(f"frame of {len(data)} bytes is larger than {self.c.frame_max}")
        try:
            found = messages.MESSAGES.decode(data)
        except msgspec.DecodeError:
            found = _one_by_one(&self.c, data)
        if len(found) > self.c.messages_max:
            self.c.errors += 1
            raise DataError(f"frame of {len(found)} messages, allowed are {self.c.messages_max}")
        o.base, o.start, o.mask, o.room, o.ts_recv = (
            self._scratch, 0, <uint64_t>-1, self._room, ts_recv)
        o.ts_venue, o.count, o.instrument, o.full, o.dry = 0, 0, 0, 0, 0
        for message in found:
            before = o.count
            outcome = BAD if message is None else _json(self, &o, message)
            if o.full:
                self.c.errors += 1
                for i in range(self.c.instruments):
                    self.c.state[i] |= CODEC_STALE
                self.c.needed = <uint32_t>(len(data) // RECORD_BYTES_MIN)
                return _take(self, CODEC_ROOM)
            self.c.messages += 1
            if outcome != DONE:
                o.count = before
            if outcome == IGNORED:
                self.c.ignored += 1
            elif outcome == DROPPED:
                self.c.drops += 1
            elif outcome == CONTROL:
                self.c.controls += 1
            elif outcome == BAD:
                self.c.errors += 1
        self.c.frames += 1
        self.c.records += o.count
        return _take(self, <int>o.count)

    def counters(self) -> dict[str, int]:
        """What was seen so far, by the names of ``codec_t``."""
        return {"frames": self.c.frames, "messages": self.c.messages, "records": self.c.records,
                "ignored": self.c.ignored, "drops": self.c.drops, "errors": self.c.errors,
                "controls": self.c.controls}

    @property
    def control(self) -> int:
        """Code of the venue's last error message; 0 when there was none."""
        return self.c.control
