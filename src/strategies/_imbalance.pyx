"""Order-book imbalance strategy; see ``_imbalance.pxd``."""
cimport cython
from libc.stdlib cimport calloc, free

from .._strategy cimport STRATEGY_BOOK, STRATEGY_TRADE, STRATEGY_VERSION
from ._taker cimport taker_ready, taker_take

from hftpipe.strategies import sizes
from hftpipe.strategies.params import read, within

DEFAULTS = {"threshold": 0.6, "leave": 0.0, **sizes.DEFAULTS}


@cython.final
cdef class Imbalance(Strategy):
    """Buy what more is bid for, sell what more is offered, at the touch, immediate or cancel.

    On each state of a book with warm features: `imbalance_depth` at or above `threshold`
    buys, at or below minus `threshold` sells; what is held is left as soon as the imbalance
    is beyond `leave` on the other side.

    Parameters
    ----------
    params : mapping
        ``threshold`` (0 to 1, 0.6), ``leave`` (0 to 1, 0.0), and those of
        `hftpipe.strategies.sizes`: ``qty``, ``max_qty``, ``cooldown``, ``allow_short``.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``

    Raises
    ------
    ConfigError
    """

    def __cinit__(self):
        self.version = STRATEGY_VERSION         # what this file was compiled for

    def __init__(self, params, instruments):
        if self.takers != NULL:
            raise ValueError("a strategy is configured once")
        p = read("imbalance", params, DEFAULTS)
        within("imbalance", "threshold", p["threshold"], 0, 1)
        within("imbalance", "leave", p["leave"], 0, 1)
        rows = sizes.table("imbalance", p, instruments)
        self.params, self.threshold, self.leave = p, p["threshold"], p["leave"]
        self.count = len(rows)
        self.takers = <taker_t *>calloc(self.count or 1, sizeof(taker_t))
        if self.takers == NULL:
            raise MemoryError
        for i, row in enumerate(rows):
            self.takers[i] = row

    @classmethod
    def from_config(cls, params, instruments):
        """The strategy that *params* describe, for *instruments*."""
        return cls(params, instruments)

    def __dealloc__(self):
        free(self.takers)

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        if c.event != STRATEGY_BOOK and c.event != STRATEGY_TRADE:
            return 0
        if c.features == NULL or c.instrument >= self.count:
            return 0
        cdef taker_t *t = &self.takers[c.instrument]
        if not taker_ready(t, c):
            return 0
        cdef double imbalance = c.features.imbalance_depth
        if imbalance >= self.threshold:
            taker_take(t, c, out, 1, False)
        elif imbalance <= -self.threshold:
            taker_take(t, c, out, -1, False)
        elif c.holding.qty > 0 and imbalance < -self.leave:
            taker_take(t, c, out, -1, True)
        elif c.holding.qty < 0 and imbalance > self.leave:
            taker_take(t, c, out, 1, True)
        return 0
