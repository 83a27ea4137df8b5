"""The feed stage: records get their identity; and the source of a feed received in the loop."""
from libc.stdint cimport int64_t, uint16_t, uint32_t
from libc.stdlib cimport free

from ._clock cimport clock_now
from ._control cimport Control, control_count, control_set, histogram_record
from ._fault cimport hp_fault
from ._memory cimport hp_lines
from ._ring cimport ring_claim, ring_credit, ring_publish
from ._schema cimport (
    HP_HISTOGRAM_FEED, HP_MARKET_FLAG_BACKFILLED, HP_MARKET_GAP, HP_METRIC_BACKFILLED,
    HP_METRIC_CREDIT_STALLS, HP_METRIC_FRAMES, HP_METRIC_GAPS,
    HP_METRIC_LAST_DATA, HP_METRIC_RECORDS_OUT, HP_RECORD_MARKET)
from ._stage cimport hp_copy_words, hp_saturate, stage_end, store_credit, store_next, store_put

from hftpipe import schema

_METRIC = {m.name: i for i, m in enumerate(schema.METRICS)}


cdef class Source:
    """Where records come from when a feed is received in the loop; derive from it."""

    cdef int read(self, hp_market_t *out, int room) noexcept nogil:
        return 0

    cdef object maintain(self):
        return None

    def figures(self):
        """Values of metrics of the feed stage by name, read every few milliseconds."""
        return {}


cdef class FeedStage(Stage):
    """Gives market records their identity and puts them on the book's and the store link."""

    def __init__(self, book, store=None, Control control=None, int index=0, Source source=None):
        self._setup("feed", control, index, store, schema.STREAM.FEED, schema.STORED)
        self.book = stage_end(self._keep, book, schema.MARKET, True)
        self.source = source
        self.scratch_size = 2048
        self.scratch = <hp_market_t *>hp_lines(self.scratch_size, sizeof(hp_market_t))
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)

    cdef uint64_t room(self) noexcept nogil:
        """Records there is credit for; a frame's worth is looked for before it is denied."""
        cdef uint64_t store = store_credit(&self.store)
        cdef uint64_t book = ring_credit(self.book, self.scratch_size)
        if store and self.store.ring != NULL:
            store = ring_credit(self.store.ring, self.scratch_size)
        return store if store < book else book

    cdef void put(self, const hp_market_t *records, uint64_t count) noexcept nogil:
        """Publish *count* records of whole messages; the caller has room for them."""
        cdef uint64_t i
        cdef hp_market_t *slot
        cdef int64_t now = clock_now()
        cdef uint32_t hop
        for i in range(count):
            slot = <hp_market_t *>ring_claim(self.book)
            if slot == NULL:
                self.failed = 1
                return
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>&records[i], 2, 8)
            hop = hp_saturate(now - slot.ts_recv)
            slot.event = store_next(&self.store)
            slot.hop = <uint16_t>(hop if hop < 65535 else 65535)
            store_put(&self.store, HP_RECORD_MARKET, slot, 1, 1, 0, now, slot.ts_recv,
                      slot.instrument, 0)
            hp_fault("feed.recorded")
            ring_publish(self.book)
            hp_fault("feed.passed")
            if slot.kind == HP_MARKET_GAP:
                control_count(self.block, HP_METRIC_GAPS, 1)
        if count and records[0].flags & HP_MARKET_FLAG_BACKFILLED:
            control_count(self.block, HP_METRIC_BACKFILLED, count)
            control_count(self.block, HP_METRIC_RECORDS_OUT, count)
        elif count:
            histogram_record(&self.block.histograms[HP_HISTOGRAM_FEED],
                             now - records[0].ts_recv)
            control_count(self.block, HP_METRIC_RECORDS_OUT, count)
            control_set(self.block, HP_METRIC_LAST_DATA, <uint64_t>now)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        if self.source is None or self.draining:
            return 0
        cdef uint64_t room = self.room()
        if room < self.scratch_size:            # R1: a frame may need all of it
            control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
            return 0
        cdef int n = self.source.read(self.scratch, <int>self.scratch_size)
        if n < 0:
            self.failed = 1
            return 0
        if n:
            control_count(self.block, HP_METRIC_FRAMES, 1)
            self.put(self.scratch, n)
        return n

    cdef object maintain(self):
        if self.source is not None:
            self.source.maintain()
            for name, value in self.source.figures().items():
                control_set(self.block, _METRIC[name], value)
            if self.failed and self.source.error is not None:
                self.error = self.source.error

    def put_many(self, records) -> int:
        """Publish records of whole messages.

        Parameters
        ----------
        records : (n,) structured array, dtype of MARKET, contiguous

        Returns
        -------
        int
            How many were taken: all, or 0 when there is no credit for all of them.
        """
        cdef const unsigned char[::1] raw
        if not len(records):
            return 0
        raw = records.view("u1")
        cdef uint64_t count = raw.shape[0] // sizeof(hp_market_t)
        if self.room() < count:
            control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
            return 0
        with nogil:
            self.put(<const hp_market_t *>&raw[0], count)
        self.check()
        return count
