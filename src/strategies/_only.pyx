"""Hide instruments from a strategy; see ``_only.pxd``."""
cimport cython
from libc.stdlib cimport calloc, free

from .._strategy cimport STRATEGY_IDLE


@cython.final
cdef class Only(Strategy):
    """Ask *inner* about the instruments in *symbols*, and about no other.

    Parameters
    ----------
    inner : Strategy
    symbols : sequence of str
        Each must be in *instruments*.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``
    """

    def __init__(self, Strategy inner not None, symbols, instruments):
        if self.seen != NULL:
            raise ValueError("it is made once")
        names = [row["symbol"].decode("ascii", "replace") for row in instruments]
        for symbol in symbols:
            if symbol not in names:
                raise ValueError(f"{symbol} is none of the instruments {', '.join(names)}")
        self.inner, self.version, self.count = inner, inner.version, len(names)
        self.name, self.shadow = inner.name, inner.shadow
        self.seen = <uint8_t *>calloc(len(names) or 1, 1)
        if self.seen == NULL:
            raise MemoryError
        for i, name in enumerate(names):
            self.seen[i] = name in symbols

    def __dealloc__(self):
        free(self.seen)

    def restore(self, instrument, holding):
        """Handed on, for the instruments that *inner* is asked about."""
        if 0 <= instrument < self.count and self.seen[<int>instrument]:
            self.inner.restore(instrument, holding)

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        if c.event != STRATEGY_IDLE and (
                c.instrument >= self.count or not self.seen[c.instrument]):
            return 0
        self.inner.asked = False
        cdef int code = self.inner.on_event(c, out)
        if code < 0:
            return self._failed()
        if self.inner.asked:
            self.signal, self.asked = self.inner.signal, True
        return code

    cdef void *member(self, int n) noexcept nogil:
        return self.inner.member(n)

    cdef void *core(self) noexcept nogil:
        return self.inner.core()

    cdef int _failed(self) noexcept nogil:
        with gil:
            self.error = self.inner.error
        return -1
