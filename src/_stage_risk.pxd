"""The risk stage: intents in, orders with a token, or refused ones, out."""
from libc.stdint cimport int64_t, uint64_t

from ._board cimport Board
from ._control cimport stage_block_t
from ._ring cimport ring_t
from ._risk cimport Risk
from ._stage cimport Stage


cdef class RiskStage(Stage):
    cdef ring_t *intents
    cdef ring_t *marks
    cdef ring_t *order_events
    cdef ring_t *positions
    cdef ring_t *orders
    cdef Risk risk
    cdef Board board            # for whoever looks, or None
    cdef int64_t shown          # ns, when it was last written
    cdef stage_block_t *blocks
    cdef uint64_t halt_seen
    cdef bint armed_seen
    cdef bint store_full_seen

    cdef bint _watch(self) noexcept nogil
