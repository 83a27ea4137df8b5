"""MARKET records made from text, many at a time."""
from libc.stdint cimport int64_t, uint16_t, uint64_t

from .._schema cimport hp_market_t

cdef extern from *:
    """
    /* malloc aligns to 16 bytes, a record on a ring to 64 */
    typedef hp_market_t row_t __attribute__((aligned(8)));
    """
    ctypedef hp_market_t row_t

cdef int64_t nano(object text) except -1
cdef int64_t scan(object text) except -1


cdef class Rows:
    cdef row_t *rows
    cdef Py_ssize_t count, room, first          # first: of the message begun last
    cdef uint64_t event, far                    # far: levels left out, price beyond 63 bits
    cdef int64_t now, ts_venue
    cdef uint16_t instrument
    cdef int64_t *ticks                         # by instrument: common divisor, 0 = none yet
    cdef int64_t *lots
    cdef int64_t *bases
    cdef row_t *_row(self, int kind, int side, int64_t price, int64_t qty) except NULL
