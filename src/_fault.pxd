"""Fault points of compiled stages; nothing at all unless built with HFTPIPE_BUILD=faults."""
cdef extern from "_fault.h" nogil:
    void hp_fault(const char *name) noexcept
