"""The gateway stage: orders to the venue, its answers to everybody."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from ._control cimport stage_block_t
from ._order cimport Orders
from ._ring cimport ring_t
from ._schema cimport hp_order_event_t, hp_order_t, hp_update_t
from ._stage cimport STAGE_OUTPUTS, Stage, turns_t
from ._wire cimport Wire


cdef class GatewayStage(Stage):
    cdef ring_t *orders
    cdef ring_t *updates
    cdef ring_t *outputs[STAGE_OUTPUTS]
    cdef int output_count
    cdef Orders table
    cdef Wire wire
    cdef int64_t max_age        # ns from ts_recv to the send
    cdef uint64_t max_unknown   # orders without an answer that are borne; 0 = any number
    cdef stage_block_t *risk    # whose verdicts must be on disk first; NULL = need not
    cdef uint64_t waiting       # order that waits for the disk
    cdef uint64_t verdict       # events that risk had stored when it was first seen

    cdef turns_t turns
    # Of the order that was looked at last, for its turn: when, under which epoch and limits,
    # whether armed, whether it had waited, and what the wire said (-2 = was not asked).
    cdef int64_t at
    cdef uint64_t halt
    cdef uint64_t version
    cdef bint armed
    cdef bint waited
    cdef int said

    cdef void _ordered(self, uint64_t seq) noexcept nogil
    cdef uint64_t _credit(self) noexcept nogil
    cdef void _emit(self, hp_order_event_t *e, int64_t ts, int64_t ts_in) noexcept nogil
    cdef void _answer(self, const hp_update_t *u) noexcept nogil
    cdef uint8_t _token(self, const hp_order_t *o) noexcept nogil
    cdef bint _durable(self, const hp_order_t *o) noexcept nogil
    cdef int _order(self, const hp_order_t *o) noexcept nogil
    cdef void _refuse(self, const hp_order_t *o, uint8_t kind, uint8_t reason) noexcept nogil
