"""How much of each limit is in use, worked out a few instruments at a time.

A pass over the table is spread over many calls, so that a loop that has orders to judge is
never held up; the figures of one pass are a few milliseconds apart.
"""
from libc.stdint cimport int64_t, uint64_t

from ._risk cimport risk_t

cdef enum:
    USAGE_NONE = -1             # of a limit of one order: nothing is in use

cdef struct usage_t:
    int64_t limit[64]           # by LIMIT_*: what is compared; INT64_MIN = off
    int64_t use[64]             # of the last whole pass, in the limit's unit; USAGE_NONE
    int64_t most[64]            # of the pass under way
    uint64_t at                 # next instrument
    uint64_t passes

# Look at *budget* instruments; 1 when that completed a pass.
cdef bint usage_step(usage_t *u, const risk_t *r, int64_t now, uint64_t budget) noexcept nogil
