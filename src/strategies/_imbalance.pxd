"""Follow the imbalance of the book's best levels; the smallest strategy that trades."""
from .._strategy cimport Strategy, hp_context_t, hp_out_t
from ._taker cimport taker_t


cdef class Imbalance(Strategy):
    cdef readonly double threshold      # of imbalance_depth, enter beyond it
    cdef readonly double leave          # enough on the other side to leave a position
    cdef readonly dict params
    cdef int count                      # instruments
    cdef taker_t *takers

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
