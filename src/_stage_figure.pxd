"""The source of figures: what risk takes from outside, recorded before risk sees it."""
from ._ring cimport ring_t
from ._stage cimport Stage


cdef class FigureStage(Stage):
    cdef ring_t *risk
