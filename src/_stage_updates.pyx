"""The updates stage: what the venue's stream says about orders."""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

from ._clock cimport clock_now
from ._control cimport Control, control_count, control_set
from ._fault cimport hp_fault
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._schema cimport (
    HP_METRIC_CREDIT_STALLS, HP_METRIC_LAST_DATA, HP_METRIC_RECORDS_OUT, HP_RECORD_UPDATE,
    hp_order_event_t, hp_update_t)
from ._stage cimport hp_copy_words, stage_end, store_credit, store_next, store_put

import numpy

from hftpipe import schema
from hftpipe.errors import DataError

cdef object ORDER_EVENT = schema.dtype(schema.ORDER_EVENT)
cdef object NOTHING = numpy.zeros(0, ORDER_EVENT)


cdef class UpdatesStage(Stage):
    """Puts what the venue says about orders on the gateway's and the store link.

    Parameters
    ----------
    gateway : Ring
        Producer end, UPDATE.
    events : Ring, optional
        Consumer end, ORDER_EVENT: what the gateway makes of it, for the reconciliation.
    """

    def __init__(self, gateway, events=None, store=None, Control control=None, int index=5):
        self._setup("updates", control, index, store, schema.STREAM.UPDATES, schema.STORED_WIDE)
        self.gateway = stage_end(self._keep, gateway, schema.UPDATE, True)
        self.events = NULL
        if events is not None:
            self.events = stage_end(self._keep, events, schema.ORDER_EVENT, False)

    def take(self, uint64_t most=1024):
        """What the gateway has told since the last call, at most *most* records.

        Returns
        -------
        (n,) array, dtype of ORDER_EVENT
        """
        cdef const hp_order_event_t *e
        cdef uint64_t count = 0
        cdef unsigned char[::1] raw
        if self.events == NULL or most == 0 or (
                ring_peek(self.events) == NULL and not self.events.broken):
            return NOTHING
        out = numpy.empty(most, ORDER_EVENT)
        raw = out.view("u1")
        while count < most:
            e = <const hp_order_event_t *>ring_peek(self.events)
            if e == NULL:
                break
            memcpy(&raw[count * sizeof(hp_order_event_t)], e, sizeof(hp_order_event_t))
            ring_release(self.events)
            count += 1
        ring_flush(self.events)
        if self.events.broken:
            raise DataError("the link gateway.updates is broken")
        return out[:count]

    def put_many(self, updates) -> int:
        """Publish updates; how many were taken (fewer when a link is full).

        Parameters
        ----------
        updates : (n,) structured array, dtype of UPDATE, contiguous
        """
        if not len(updates):
            return 0
        cdef const unsigned char[::1] raw = updates.view("u1")
        cdef uint64_t count = raw.shape[0] // sizeof(hp_update_t), i
        cdef const hp_update_t *u = <const hp_update_t *>&raw[0]
        cdef hp_update_t *slot
        cdef int64_t now
        for i in range(count):
            if store_credit(&self.store) == 0 or ring_credit(self.gateway, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                return i
            now = clock_now()
            slot = <hp_update_t *>ring_claim(self.gateway)
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>&u[i], 2, 16)
            slot.event = store_next(&self.store)
            store_put(&self.store, HP_RECORD_UPDATE, slot, 2, 1, slot.order, now, slot.ts_recv,
                      slot.instrument, 0)
            hp_fault("updates.recorded")
            ring_publish(self.gateway)
            hp_fault("updates.passed")
            control_count(self.block, HP_METRIC_RECORDS_OUT, 1)
            control_set(self.block, HP_METRIC_LAST_DATA, <uint64_t>now)
        return count
