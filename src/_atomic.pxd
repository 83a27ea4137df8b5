from libc.stdint cimport uint64_t

cdef extern from "_atomic.h" nogil:
    uint64_t hp_load_acquire(const uint64_t *p) noexcept
    uint64_t hp_load_relaxed(const uint64_t *p) noexcept
    void hp_store_release(uint64_t *p, uint64_t v) noexcept
    void hp_store_relaxed(uint64_t *p, uint64_t v) noexcept
    void hp_fence_release() noexcept
    void hp_fence_acquire() noexcept
    uint64_t hp_fetch_add(uint64_t *p, uint64_t n) noexcept
    bint hp_compare_swap(uint64_t *p, uint64_t expected, uint64_t desired) noexcept
    void hp_pause() noexcept
    void hp_prefetch_write(const void *p) noexcept
    uint64_t hp_raise(uint64_t *p, uint64_t v) noexcept
