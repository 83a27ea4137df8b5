from libc.stdint cimport int64_t

from ._risk cimport exposure_t, risk_t
from ._usage cimport usage_t


cdef class Risk:
    cdef risk_t r
    cdef usage_t usage
    cdef object _control                    # keeps the page mapped

    cdef exposure_t *exposure_at(self, int64_t instrument) except NULL
