"""The updates stage: what the venue's stream says about orders."""
from ._ring cimport ring_t
from ._stage cimport Stage


cdef class UpdatesStage(Stage):
    cdef ring_t *gateway
    cdef ring_t *events         # NULL = nobody tells
