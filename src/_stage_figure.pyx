"""The source of figures: what risk takes from outside, recorded before risk sees it.

Two of them: the analyst, a cold process that may die and is started again, and the supervisor, for
what people ask.  Neither ever makes a hot stage wait: without room nothing is published, and the
caller keeps the newest figure of each kind until there is some.
"""
from libc.stdint cimport int64_t, uint64_t

from ._clock cimport clock_now
from ._control cimport Control, control_count, control_set
from ._ring cimport ring_claim, ring_credit, ring_publish, ring_slot
from ._schema cimport (
    HP_METRIC_CREDIT_STALLS, HP_METRIC_EVENTS_CHECKSUM, HP_METRIC_EVENTS_STORED,
    HP_METRIC_LAST_DATA, HP_METRIC_RECORDS_OUT, HP_RECORD_FIGURE, HP_SEQ_BITS, hp_envelope_t,
    hp_figure_t)
from ._stage cimport hp_copy_words, stage_end, store_credit, store_next, store_put

from hftpipe import schema


cdef class FigureStage(Stage):
    """Puts figures on the risk link and the store link.

    Parameters
    ----------
    name : str
        Of the stage.
    stream : int
        STREAM_ANALYST or STREAM_OPERATOR.
    risk : Ring
        Producer end, FIGURE.
    store, control, index
        As of every stage.

    Notes
    -----
    A process that was killed is followed by another on the same links.  It goes on counting where
    the store link ends: the number of records there is the number of events, and each envelope
    carries in ``aux`` the sum of the checksums before it.  So count and checksum stay exact however
    little the dead one had written to the control page.
    """

    def __init__(self, name, int stream, risk, store=None, Control control=None, int index=10):
        cdef const hp_envelope_t *last
        self._setup(name, control, index, store, stream, schema.STORED)
        self.risk = stage_end(self._keep, risk, schema.FIGURE, True)
        if self.store.ring != NULL and self.store.ring.own:
            last = <const hp_envelope_t *>ring_slot(self.store.ring, self.store.ring.own - 1)
            self.store.seq = last.event & ((1ULL << HP_SEQ_BITS) - 1)
            self.store.checksum = last.aux + last.checksum
            control_set(self.block, HP_METRIC_EVENTS_STORED, self.store.seq)
            control_set(self.block, HP_METRIC_EVENTS_CHECKSUM, self.store.checksum)

    def put_many(self, figures) -> int:
        """Publish figures; how many were taken (fewer when a link is full).

        Parameters
        ----------
        figures : (n,) structured array, dtype of FIGURE, contiguous
            Their identities are given here.
        """
        if not len(figures):
            return 0
        cdef const unsigned char[::1] raw = figures.view("u1")
        cdef uint64_t count = raw.shape[0] // sizeof(hp_figure_t), i
        cdef const hp_figure_t *f = <const hp_figure_t *>&raw[0]
        cdef hp_figure_t *slot
        cdef int64_t now
        for i in range(count):
            if store_credit(&self.store) == 0 or ring_credit(self.risk, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                return i
            now = clock_now()
            slot = <hp_figure_t *>ring_claim(self.risk)
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>&f[i], 2, 8)
            slot.event = store_next(&self.store)
            store_put(&self.store, HP_RECORD_FIGURE, slot, 1, 1, 0, now, slot.ts_computed,
                      slot.instrument, self.store.checksum)
            ring_publish(self.risk)
            control_count(self.block, HP_METRIC_RECORDS_OUT, 1)
            control_set(self.block, HP_METRIC_LAST_DATA, <uint64_t>now)
        return count
