cdef extern from "_memory.h" nogil:
    void *hp_lines(size_t count, size_t size) noexcept
