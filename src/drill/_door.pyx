"""A wire of two rings: what the gateway sends lies there until somebody takes it.

For the simulation, whose venue is Python: the gateway is the one that trades, its door is not.
"""
cimport cython
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from .._ring cimport (
    ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release, ring_t)
from .._schema cimport HP_ACTION_CANCEL, hp_order_t, hp_update_t
from .._stage cimport stage_end
from .._wire cimport WIRE_BUSY, WIRE_SENT, Wire

from hftpipe import schema


@cython.final
cdef class DoorWire(Wire):
    """Hands orders and cancels over as ORDER records and takes answers as UPDATE records.

    Parameters
    ----------
    orders : Ring
        Producer end, ORDER; a cancel has ACTION_CANCEL, the order's identity and nothing else.
    answers : Ring
        Consumer end, UPDATE.
    """
    cdef list _keep
    cdef ring_t *orders
    cdef ring_t *answers

    def __init__(self, orders, answers):
        self._keep = []
        self.orders = stage_end(self._keep, orders, schema.ORDER, True)
        self.answers = stage_end(self._keep, answers, schema.UPDATE, False)

    cdef int submit(self, const hp_order_t *order, int64_t now) noexcept nogil:
        cdef char *slot
        if not ring_credit(self.orders, 1):
            return WIRE_BUSY
        slot = <char *>ring_claim(self.orders)
        memcpy(slot + 8, <const char *>order + 8, sizeof(hp_order_t) - 8)   # link_seq: the ring's
        ring_publish(self.orders)
        return WIRE_SENT

    cdef int cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now) noexcept nogil:
        cdef hp_order_t record
        memset(&record, 0, sizeof(record))
        record.order, record.action = order, HP_ACTION_CANCEL
        return self.submit(&record, now)

    cdef int poll(self, hp_update_t *out, int64_t now) noexcept nogil:
        cdef const void *found = ring_peek(self.answers)
        if found == NULL:
            return 0
        memcpy(out, found, sizeof(hp_update_t))
        out.link_seq = 0
        ring_release(self.answers)
        ring_flush(self.answers)
        return 1
