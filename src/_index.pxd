"""An index of slots by the tag of a 64-bit key; see ``_index.h``."""
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "_index.h" nogil:
    ctypedef struct hp_bucket_t:
        pass
    ctypedef struct hp_index_t:
        pass
    ctypedef struct hp_entries_t:
        pass
    uint32_t hp_index_tag(uint64_t key) noexcept
    hp_bucket_t *hp_index_home(const hp_index_t *x, uint32_t tag) noexcept
    int hp_index_init(hp_index_t *x, uint64_t slots) noexcept
    void hp_index_free(hp_index_t *x) noexcept
    hp_entries_t hp_index_walk(const hp_index_t *x, uint32_t tag) noexcept
    int64_t hp_index_next(const hp_index_t *x, hp_entries_t *e, uint32_t tag) noexcept
    void hp_index_put(hp_index_t *x, uint32_t tag, uint32_t slot) noexcept
    void hp_index_remove(hp_index_t *x, uint32_t tag, uint32_t slot) noexcept


cdef class Index:
    cdef hp_index_t x
    cdef uint64_t slots
    cdef set entries
