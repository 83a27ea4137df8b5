"""MARKET records made from text, many at a time: exact decimals, no floats, no numpy per row."""
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

import numpy

from hftpipe import schema

from .._schema cimport (
    HP_MARKET_ADD, HP_MARKET_FLAG_LAST, HP_MARKET_LEVEL, HP_MARKET_QUOTE, HP_SEQ_BITS,
    HP_SIDE_BUY, HP_SIDE_SELL, HP_STREAM_FEED)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef int64_t TOO_LARGE = INT64_MAX
cdef object MARKET = schema.dtype(schema.MARKET)


cdef int64_t nano(object text) except -1:
    cdef int64_t value = scan(text)
    if value == TOO_LARGE:
        raise ValueError(f"wanted a number below 9223372036, found {text!r}")
    return value


cdef int64_t scan(object text) except -1:
    """The same, and TOO_LARGE for what 63 bits can not hold."""
    cdef Py_ssize_t size, i = 0
    cdef uint64_t value = 0, limit = INT64_MAX - 1
    cdef bint large = False
    cdef int decimals = -1, digits = 0, c
    if not PyUnicode_CheckExact(text):
        raise ValueError(f"wanted a decimal number as text, found {text!r}")
    cdef const char *s = PyUnicode_AsUTF8AndSize(text, &size)
    for i in range(size):
        c = s[i] - 48
        if c == -2 and decimals < 0:            # "."
            decimals = 0
        elif not 0 <= c <= 9:
            raise ValueError(f"wanted a decimal number without sign, found {text!r}")
        elif decimals < 9:
            digits += 1
            decimals += decimals >= 0
            if value > (limit - c) // 10:
                large = True
            else:
                value = value * 10 + c
        elif c:
            raise ValueError(f"wanted at most nine decimals, found {text!r}")
    if not digits:
        raise ValueError(f"wanted a decimal number without sign, found {text!r}")
    for _ in range(9 - max(decimals, 0)):
        if value > limit // 10:
            large = True
        else:
            value *= 10
    return TOO_LARGE if large else <int64_t>value


def parse_nano(text) -> int:
    """An unsigned decimal number in 1e-9, exact.

    Raises
    ------
    ValueError
        If *text* is no such number: a sign, an exponent, NaN, a tenth decimal that is not zero,
        or more than 63 bits.
    """
    return nano(text)


cdef int64_t divisor(int64_t a, int64_t b) noexcept nogil:
    while b:
        a, b = b, a % b
    return a


@cython.final
cdef class Rows:
    """A growing array of MARKET records, filled message by message.

    Parameters
    ----------
    room : int, default 8192
        Records it has room for at first.

    Notes
    -----
    Events are numbered from ``FEED << 56 | 1``; ``ts_recv`` never goes back.
    """

    def __cinit__(self, room=8192):
        self.room = max(room, 16)
        self.rows = <row_t *>calloc(self.room, sizeof(row_t))
        self.ticks = <int64_t *>calloc(3 * 65536, sizeof(int64_t))
        if self.rows == NULL or self.ticks == NULL:
            raise MemoryError(f"no memory for {room} records")
        self.lots = self.ticks + 65536
        self.bases = self.lots + 65536
        self.event = <uint64_t>HP_STREAM_FEED << HP_SEQ_BITS

    def __dealloc__(self):
        free(self.rows)
        free(self.ticks)

    def __len__(self):
        return self.count

    def begin(self, ts_recv: int, ts_venue: int, instrument: int):
        """Start a venue message of an instrument."""
        self.now = max(self.now, ts_recv)
        self.ts_venue = ts_venue
        self.instrument = instrument
        self.first = self.count

    cdef row_t *_row(self, int kind, int side, int64_t price, int64_t qty) except NULL:
        cdef row_t *m
        if self.count == self.room:
            m = <row_t *>realloc(self.rows, 2 * self.room * sizeof(row_t))
            if m == NULL:
                raise MemoryError(f"no memory for {2 * self.room} records")
            self.rows = m
            self.room *= 2
        m = &self.rows[self.count]
        memset(m, 0, sizeof(row_t))
        self.count += 1
        self.event += 1
        m.event = self.event
        m.ts_recv = self.now
        m.ts_venue = self.ts_venue
        m.price = price
        m.qty = qty
        m.instrument = self.instrument
        m.kind = kind
        m.side = side
        if price and (kind == HP_MARKET_LEVEL or kind == HP_MARKET_QUOTE or kind == HP_MARKET_ADD):
            if not self.bases[self.instrument]:
                self.bases[self.instrument] = price
            if not self.ticks[self.instrument] or price % self.ticks[self.instrument]:
                self.ticks[self.instrument] = divisor(price, self.ticks[self.instrument])
            if qty and (not self.lots[self.instrument] or qty % self.lots[self.instrument]):
                self.lots[self.instrument] = divisor(qty, self.lots[self.instrument])
        return m

    def add(self, kind: int, side: int = 0, price: int = 0, qty: int = 0, ref: int = 0,
            flags: int = 0):
        """Add one record to the message begun last."""
        cdef row_t *m = self._row(kind, side, price, qty)
        m.ref = ref
        m.flags = flags

    def levels(self, pairs, side: int, flags: int = 0):
        """Add a LEVEL for each ``[price, quantity, ...]``, both decimal numbers as text.

        A price of 9223372036 or more has no nanoprice: the level is left out and counted.

        Raises
        ------
        ValueError
            If an element is anything else.
        """
        cdef row_t *m
        cdef int64_t price, qty
        cdef int own = side
        for pair in pairs:
            if len(pair) < 2:
                raise ValueError(f"wanted a price and a quantity, found {pair!r}")
            price = scan(pair[0])
            if price == 0:
                raise ValueError(f"wanted a positive price, found {pair[0]!r}")
            if price == TOO_LARGE:
                self.far += 1
                continue
            qty = nano(pair[1])
            m = self._row(HP_MARKET_LEVEL, own, price, qty)
            m.flags = flags

    def changes(self, triples, flags: int = 0):
        """Add a LEVEL for each ``["buy" | "sell", price, quantity]``."""
        cdef row_t *m
        cdef int64_t price, qty
        cdef int side
        for triple in triples:
            if len(triple) != 3 or triple[0] not in ("buy", "sell"):
                raise ValueError(f"wanted side, price and quantity, found {triple!r}")
            side = HP_SIDE_BUY if triple[0] == "buy" else HP_SIDE_SELL
            price = scan(triple[1])
            if price == 0:
                raise ValueError(f"wanted a positive price, found {triple[1]!r}")
            if price == TOO_LARGE:
                self.far += 1
                continue
            qty = nano(triple[2])
            m = self._row(HP_MARKET_LEVEL, side, price, qty)
            m.flags = flags

    def end(self):
        """Mark the last record of the message begun last, if it has any."""
        if self.count > self.first:
            self.rows[self.count - 1].flags |= HP_MARKET_FLAG_LAST
        self.first = self.count

    def drop(self):
        """Forget all records, but not their numbers."""
        self.count = self.first = 0

    def take(self):
        """All whole messages as a MARKET array; the rows start afresh."""
        data = PyBytes_FromStringAndSize(
            <const char *>self.rows, self.count * <Py_ssize_t>sizeof(row_t))
        self.drop()
        return numpy.frombuffer(data, MARKET)

    @property
    def out_of_range(self) -> int:
        """Levels left out because their price has no nanoprice."""
        return self.far

    def increments(self, instrument: int) -> tuple[int, int, int]:
        """``(tick, lot, first price)`` of an instrument: common divisors of all it had."""
        return self.ticks[instrument], self.lots[instrument], self.bases[instrument]
