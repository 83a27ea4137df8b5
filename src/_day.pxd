"""Which trading day a UTC time belongs to, where the clocks of the day's zone change.

A zone is a list of steps: from `at` on (UTC ns) its clocks stand `offset` ns before UTC.  Days are
calendar days there, counted from 1970.  The steps come from the host's time zone database, read
once (`hftpipe.build.zone`); nothing is looked up while records flow.
"""
from libc.stdint cimport int64_t, uint32_t

cdef struct step_t:
    int64_t at                  # UTC ns; of the first step INT64_MIN
    int64_t offset              # ns, local time minus UTC, less than a day

cdef struct days_t:
    step_t *steps               # ascending
    uint32_t count
    uint32_t day                # days since 1970 of the newest time asked about
    int64_t since               # UTC ns; that day is [since, until)
    int64_t until


# The day of *utc* >= 0, which becomes the current one.
cdef uint32_t days_find(days_t *d, int64_t utc) noexcept nogil

cdef inline uint32_t days_of(days_t *d, int64_t utc) noexcept nogil:
    """The same, quickly while it is the current one."""
    if d.since <= utc < d.until:
        return d.day
    return days_find(d, utc)


cdef class Days:
    cdef days_t d
