"""A strategy that sees some instruments only."""
from libc.stdint cimport uint8_t

from .._strategy cimport Strategy, hp_context_t, hp_out_t


cdef class Only(Strategy):
    cdef readonly Strategy inner
    cdef Py_ssize_t count       # instruments
    cdef uint8_t *seen          # of each instrument: 1 when inner is asked about it

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
    cdef void *member(self, int n) noexcept nogil
    cdef void *core(self) noexcept nogil
    cdef int _failed(self) noexcept nogil
