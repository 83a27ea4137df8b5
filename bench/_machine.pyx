# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Time stamps for benches, and what the machine itself does to a busy loop.

``rdtscp`` then ``lfence`` begins an interval and ``rdtscp`` ends it: plain ``rdtsc`` is hoisted
out of a spin loop by speculation and reads half the truth.
"""
from libc.stdint cimport uint64_t

import time

cdef extern from *:
    """
    #include <stdint.h>
    #include <x86intrin.h>
    static inline uint64_t tsc_begin(void) {
      unsigned x; uint64_t t = __rdtscp(&x); _mm_lfence(); return t;
    }
    static inline uint64_t tsc_end(void) { unsigned x; return __rdtscp(&x); }
    """
    uint64_t tsc_begin() noexcept nogil
    uint64_t tsc_end() noexcept nogil


def ns_per_tick(double seconds=0.05) -> float:
    """Length of one tick of the time-stamp counter."""
    cdef uint64_t t0 = tsc_begin()
    n0 = time.perf_counter_ns()
    while time.perf_counter_ns() - n0 < seconds * 1e9:
        pass
    n1 = time.perf_counter_ns()
    return (n1 - n0) / <double>(tsc_end() - t0)


def stamp_ns(double tick) -> float:
    """What a pair of stamps with nothing between them costs a loop."""
    cdef uint64_t _i, begin = tsc_begin(), t = 0
    for _i in range(100_000):
        t += tsc_begin()
        t -= tsc_end()
    return (tsc_end() - begin + (t & 0)) * tick / 100_000


def gaps(double seconds, double tick) -> list:
    """Gaps a busy loop sees: counts above 1, 10, 100 us, 1 ms, 10 ms; the largest in ns."""
    cdef uint64_t[6] counts
    cdef uint64_t[5] limit
    cdef uint64_t t, last, end, d
    cdef int i
    for i in range(5):
        counts[i] = 0
        limit[i] = <uint64_t>(10 ** (3 + i) / tick)
    counts[5] = 0
    with nogil:
        last = tsc_end()
        end = last + <uint64_t>(seconds * 1e9 / tick)
        while last < end:
            t = tsc_end()
            d = t - last
            if d > limit[0]:
                for i in range(5):
                    counts[i] += d > limit[i]
                if d > counts[5]:
                    counts[5] = d
            last = t
    return [counts[0], counts[1], counts[2], counts[3], counts[4], round(counts[5] * tick)]
