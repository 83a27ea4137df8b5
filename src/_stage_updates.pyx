"""The updates stage: what the venue's stream says about orders."""
from libc.stdint cimport int64_t, uint64_t

from ._clock cimport clock_now
from ._control cimport Control, control_count, control_set
from ._ring cimport ring_claim, ring_credit, ring_publish
from ._schema cimport (
    HP_METRIC_CREDIT_STALLS, HP_METRIC_LAST_DATA, HP_METRIC_RECORDS_OUT, HP_RECORD_UPDATE,
    hp_update_t)
from ._stage cimport hp_copy_words, stage_end, store_credit, store_next, store_put

from hftpipe import schema


cdef class UpdatesStage(Stage):
    """Puts what the venue says about orders on the gateway's and the store link."""

    def __init__(self, gateway, store=None, Control control=None, int index=5):
        self._setup("updates", control, index, store, schema.STREAM.UPDATES, schema.STORED_WIDE)
        self.gateway = stage_end(self._keep, gateway, schema.UPDATE, True)

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
            ring_publish(self.gateway)
            control_count(self.block, HP_METRIC_RECORDS_OUT, 1)
            control_set(self.block, HP_METRIC_LAST_DATA, <uint64_t>now)
        return count
