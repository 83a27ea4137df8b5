"""The book stage: market records in, the state of a book out."""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from ._book cimport book_t
from ._ring cimport ring_t
from ._stage cimport STAGE_OUTPUTS, Stage


cdef class BookStage(Stage):
    cdef ring_t *market
    cdef ring_t *outputs[STAGE_OUTPUTS]
    cdef int output_count
    cdef list books             # the Book handles, one per instrument
    cdef book_t **tables        # and their structs
    cdef uint8_t *flags         # BOOK_FLAG_* last published, per instrument
    cdef int64_t *seen          # ts_recv of the newest record that showed the market
    cdef double *means          # of the mid over about MEAN_NS, per instrument; 0 = none yet
    cdef uint64_t instruments
    cdef int64_t surveyed       # ns, when survey() last ran

    cdef void survey(self, int64_t now) noexcept nogil
