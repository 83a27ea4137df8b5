"""The only reader of clocks.

Latency, deadlines and timers use the monotonic clock; UTC is for stamps that people
read.  A backtest sets the time with :func:`hftpipe._clock.set_virtual`; then both
clocks stand still at what it says until it says something else.
"""
from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    typedef struct { int64_t on; int64_t monotonic; int64_t utc; } hp_virtual_clock_t;
    static inline int64_t hp_read_clock(clockid_t id) {
      struct timespec t;
      clock_gettime(id, &t);                      /* vDSO: no system call */
      return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static inline int64_t hp_read_monotonic(void) { return hp_read_clock(CLOCK_MONOTONIC); }
    static inline int64_t hp_read_utc(void) { return hp_read_clock(CLOCK_REALTIME); }
    """
    ctypedef struct hp_virtual_clock_t:
        int64_t on
        int64_t monotonic
        int64_t utc
    int64_t hp_read_monotonic() noexcept nogil
    int64_t hp_read_utc() noexcept nogil

cdef hp_virtual_clock_t clock_virtual      # of this process; off unless a backtest runs

cdef int64_t clock_now() noexcept nogil            # ns, monotonic
cdef int64_t clock_utc() noexcept nogil            # ns since 1970
