"""A strategy that is a C function: numba's, or of any compiled language."""
from libc.stdint cimport int32_t, int64_t, uint32_t

from .._schema cimport hp_features_t
from .._strategy cimport Strategy, hp_context_t, hp_out_t

# How many intents it wrote; -1 = trading shall halt.  *features* and *order_event* are never NULL:
# zeros stand there, and *warm* is 0 before the vector may be used.  *answer*: probabilities of
# down, flat and up; left alone, it gave none.
ctypedef int32_t (*cfunc_t)(
    int64_t event, int64_t instrument, int64_t now, const void *book, const void *features,
    int64_t warm, const void *order_event, const void *holding, const void *spec, void *intents,
    int64_t room, float *answer) noexcept nogil


cdef class CFunc(Strategy):
    cdef object keep            # what owns the function
    cdef cfunc_t function
    cdef hp_features_t *zeros   # long enough for an ORDER_EVENT too

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
    cdef int _refuse(self, int32_t count, uint32_t room) noexcept nogil
