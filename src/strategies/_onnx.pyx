"""ONNX strategy; see ``_onnx.pxd``."""
cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from .._clock cimport clock_now
from .._model cimport MODEL_OK
from .._strategy cimport STRATEGY_BOOK, STRATEGY_IDLE, STRATEGY_TRADE, STRATEGY_VERSION
from ._taker cimport TAKER_UNTRADABLE, taker_ready, taker_take

from hftpipe._model import Model as _Model
from hftpipe.errors import ConfigError, HftpipeError
from hftpipe.models import DEMO
from hftpipe.strategies import sizes
from hftpipe.strategies.params import read, within

DEFAULTS = {"model": "demo", "sha256": None, "threshold": 0.6, "leave": 0.45, **sizes.DEFAULTS}


@cython.final
cdef class Onnx(Strategy):
    """Buy when the model says up, sell when it says down, at the touch, immediate or cancel.

    On each state of a book with warm features the model is asked.  A class wins if it is the
    likeliest and its probability exceeds `threshold`; what is held is left as soon as the
    probability of the other direction exceeds `leave`.  The answer stands in the SIGNAL record
    of the event, whether or not an order follows.  A model that fails stops the stage.

    Parameters
    ----------
    params : mapping
        ``model`` ("demo", the one that ships, or a path), ``sha256`` (refuse any other file),
        ``threshold`` (0 to 1, 0.6), ``leave`` (0 to 1, 0.45), and those of
        `hftpipe.strategies.sizes`: ``qty``, ``max_qty``, ``cooldown``, ``allow_short``.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``

    Raises
    ------
    ConfigError
        Also everything that :class:`hftpipe._model.Model` refuses.
    """

    def __cinit__(self):
        self.version = STRATEGY_VERSION         # what this file was compiled for

    def __init__(self, params, instruments):
        if self.takers != NULL:
            raise ValueError("a strategy is configured once")
        p = read("onnx", params, DEFAULTS)
        within("onnx", "threshold", p["threshold"], 0, 1)
        within("onnx", "leave", p["leave"], 0, 1)
        rows = sizes.table("onnx", p, instruments)
        self.params, self.threshold, self.leave = p, p["threshold"], p["leave"]
        if p["model"] == "":
            raise ConfigError("strategy onnx: model must be \"demo\" or a path, was empty")
        self.model = _Model(DEMO if p["model"] == "demo" else p["model"], sha256=p["sha256"])
        self.model.warm(1000)
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

    @property
    def last(self):
        """What the model said last: p_down, p_flat, p_up, confidence, decision, elapsed ns."""
        s = self.signal
        return {"p_down": s.p_down, "p_flat": s.p_flat, "p_up": s.p_up,
                "confidence": s.confidence, "decision": s.decision, "elapsed": s.elapsed}

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        if c.event == STRATEGY_IDLE:
            return self._failed() if self.model.touch(1) != MODEL_OK else 0
        if c.event != STRATEGY_BOOK and c.event != STRATEGY_TRADE:
            return 0
        if c.features == NULL or c.instrument >= self.count:
            return 0
        if c.book.flags & TAKER_UNTRADABLE:
            return 0
        cdef float p[3]
        cdef int64_t before = clock_now()
        if self.model.infer(&c.features.mid_return, p) != MODEL_OK:
            return self._failed()
        self.signal.elapsed = clock_now() - before
        self.signal.p_down, self.signal.p_flat, self.signal.p_up = p[0], p[1], p[2]
        cdef int decision = 0
        cdef float top = p[1]
        if p[0] > top:
            decision, top = -1, p[0]
        if p[2] > top:
            decision, top = 1, p[2]
        if top <= self.threshold:
            decision = 0
        self.signal.confidence, self.signal.decision = top, decision
        self.signal.model = self.model.id
        self.asked = True

        cdef taker_t *t = &self.takers[c.instrument]
        if not taker_ready(t, c):
            return 0
        if decision:
            taker_take(t, c, out, decision, False)
        elif c.holding.qty > 0 and p[0] > self.leave:
            taker_take(t, c, out, -1, True)
        elif c.holding.qty < 0 and p[2] > self.leave:
            taker_take(t, c, out, 1, True)
        return 0

    cdef int _failed(self) noexcept nogil:
        with gil:
            try:
                raise HftpipeError(
                    f"model {self.model.path}: {self.model.error or 'its output is not finite'}")
            except BaseException as error:      # noexcept: nothing may escape from here
                self.error = error
        return -1
