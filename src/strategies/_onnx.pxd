"""Follow an ONNX model: the class that is likeliest, when it is likely enough."""
from .._model cimport Model
from .._strategy cimport Strategy, hp_context_t, hp_out_t
from ._taker cimport taker_t


cdef class Onnx(Strategy):
    cdef readonly Model model
    cdef readonly double threshold      # probability above which a class wins
    cdef readonly double leave          # probability of the other direction that ends a position
    cdef readonly dict params
    cdef int count                      # instruments
    cdef taker_t *takers

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
    cdef int _failed(self) noexcept nogil
