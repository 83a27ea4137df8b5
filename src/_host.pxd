"""The loop that hosts stages: spinning, yielding or sleeping when idle."""
from libc.stdint cimport uint64_t

from ._control cimport control_header_t, stage_block_t


cdef class Host:
    cdef list stages
    cdef control_header_t *header
    cdef object _control
    cdef int wait               # WAIT_*
    cdef stage_block_t *after[16]       # stages that must have ended before a drain is done
    cdef int after_count
    cdef object every           # called with the GIL every few milliseconds, or None
    cdef readonly uint64_t passes
