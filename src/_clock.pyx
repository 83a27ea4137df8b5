"""Host clocks in nanoseconds, or the virtual one of a backtest; see ``_clock.pxd``."""

cdef int64_t clock_now() noexcept nogil:
    if clock_virtual.on:
        return clock_virtual.monotonic
    return hp_read_monotonic()


cdef int64_t clock_utc() noexcept nogil:
    if clock_virtual.on:
        return clock_virtual.utc
    return hp_read_utc()


def now_ns() -> int:
    """Monotonic nanoseconds; the zero point is the host's."""
    return clock_now()


def utc_ns() -> int:
    """Nanoseconds since 1970, UTC."""
    return clock_utc()


def set_virtual(monotonic: int, utc: int) -> None:
    """Stop both clocks of this process at *monotonic* and *utc* nanoseconds."""
    clock_virtual.on, clock_virtual.monotonic, clock_virtual.utc = 1, monotonic, utc


def unset_virtual() -> None:
    """Let this process read the host's clocks again."""
    clock_virtual.on = 0
