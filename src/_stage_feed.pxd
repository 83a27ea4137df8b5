"""The feed stage: records get their identity; and the source of a feed received in the loop."""
from libc.stdint cimport uint64_t

from ._ring cimport ring_t
from ._schema cimport hp_market_t
from ._stage cimport Stage


cdef class Source:
    """Where a feed's records come from when the feed is received in the loop."""
    cdef readonly object error
    # Fill at most *room* records of whole venue messages; how many, 0 = none, -1 = broken.
    cdef int read(self, hp_market_t *out, int room) noexcept nogil
    cdef object maintain(self)


cdef class FeedStage(Stage):
    cdef ring_t *book
    cdef Source source
    cdef hp_market_t *scratch
    cdef uint64_t scratch_size

    cdef uint64_t room(self) noexcept nogil
    cdef void put(self, const hp_market_t *records, uint64_t count) noexcept nogil
