"""Trading days of a zone; see ``_day.pxd``."""
cimport cython
from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.stdlib cimport calloc, free

cdef int64_t DAY = 86_400_000_000_000


cdef uint32_t days_find(days_t *d, int64_t utc) noexcept nogil:
    cdef uint32_t low = 0, high = d.count, middle, i
    cdef int64_t local, start, end, offset
    if utc < 0:
        utc = 0
    while high - low > 1:                       # steps[low].at <= utc < steps[high].at
        middle = (low + high) // 2
        if d.steps[middle].at <= utc:
            low = middle
        else:
            high = middle
    offset = d.steps[low].offset
    local = utc + offset
    d.day = <uint32_t>(local // DAY) if local > 0 else 0
    # Midnight before and after, each by the clocks that are right then.
    start = d.day * DAY
    end = start + DAY
    i = low
    while i > 0 and start - d.steps[i].offset < d.steps[i].at:
        i -= 1
    d.since = start - d.steps[i].offset
    i = low
    while i + 1 < d.count and end - d.steps[i].offset > d.steps[i + 1].at:
        i += 1
    d.until = end - d.steps[i].offset
    return d.day


@cython.final
cdef class Days:
    """The trading days of a zone.

    Parameters
    ----------
    steps : sequence of (UTC ns, offset ns)
        From when on the zone's clocks stand how far before UTC, ascending; what comes before the
        first is as after it.  Default: UTC.
    """

    def __cinit__(self, steps=((0, 0),)):
        rows = list(steps)
        if not rows or any(b <= a for (a, _), (b, _) in zip(rows, rows[1:])):
            raise ValueError(f"steps must ascend and be at least one, were {len(rows)}")
        if any(abs(offset) >= DAY for _, offset in rows):
            raise ValueError("an offset must be less than a day")
        self.d.steps = <step_t *>calloc(len(rows), sizeof(step_t))
        if self.d.steps == NULL:
            raise MemoryError
        self.d.count = <uint32_t>len(rows)
        for i, (at, offset) in enumerate(rows):
            self.d.steps[i].at, self.d.steps[i].offset = at, offset
        self.d.steps[0].at = INT64_MIN
        self.d.since, self.d.until = INT64_MAX, INT64_MIN       # no day yet

    def __dealloc__(self):
        free(self.d.steps)

    def of(self, int64_t utc):
        """``(day, since, until)`` of *utc*: days since 1970, and its bounds in UTC ns."""
        day = days_of(&self.d, utc)
        return day, self.d.since, self.d.until
