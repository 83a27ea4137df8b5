"""ONNX strategy; see ``_onnx.pxd``."""
cimport cython
from libc.stdlib cimport calloc, free, realloc

from .._clock cimport clock_now
from .._control cimport HP_UNKNOWN
from .._drift cimport Drift
from .._model cimport MODEL_OK, Model
from .._schema cimport (
    HP_PER_STRATEGY_ACCURACY, HP_PER_STRATEGY_LATE, HP_PER_STRATEGY_MODEL,
    HP_PER_STRATEGY_PREDICTIONS, HP_PER_STRATEGY_SHIFT, HP_PER_STRATEGY_SHIFT_FEATURE,
    HP_PER_STRATEGY_STABILITY, HP_SIGNAL_FLAG_LATE, HP_SIGNAL_FLAG_UNUSED)
from .._strategy cimport (
    STRATEGY_BOOK, STRATEGY_HALT, STRATEGY_IDLE, STRATEGY_TRADE, STRATEGY_VERSION)
from ._taker cimport TAKER_UNTRADABLE, taker_ready, taker_take

from hftpipe._drift import Drift as _Drift
from hftpipe._model import Model as _Model
from hftpipe.errors import ConfigError, HftpipeError
from hftpipe.models import DEMO
from hftpipe.strategies import sizes
from hftpipe.strategies.params import read, within

ON_MISS = ("skip", "stale", "halt")
DEFAULTS = {"model": "demo", "sha256": None, "threshold": 0.6, "leave": 0.45, "budget": 0,
            "on_miss": "skip", "stale_age": 5_000_000, "warn_accuracy": 0.52, "warn_shift": 0.25,
            **sizes.DEFAULTS}
PPB = 10**9


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
        ``threshold`` (0 to 1, 0.6), ``leave`` (0 to 1, 0.45), ``budget`` (ns of one inference;
        0 = the card's), ``on_miss`` ("skip", "stale" or "halt") and ``stale_age`` (ns, 5 ms): O1
        of ``_onnx.pxd``; ``warn_accuracy`` (0.52; 0 = never) and ``warn_shift`` (0.25; 1 = never):
        when the log is told of drift; and those of `hftpipe.strategies.sizes`: ``qty``,
        ``max_qty``, ``cooldown``, ``allow_short``.
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
        within("onnx", "warn_accuracy", p["warn_accuracy"], 0, 1)
        within("onnx", "warn_shift", p["warn_shift"], 0, 1)
        within("onnx", "budget", p["budget"], 0, 10 * 10**9)
        within("onnx", "stale_age", p["stale_age"], 0, 3600 * 10**9)
        if p["on_miss"] not in ON_MISS:
            raise ConfigError(f"strategy onnx: on_miss must be one of {', '.join(ON_MISS)}, was "
                              f"{p['on_miss']!r}")
        rows = sizes.table("onnx", p, instruments)
        self.params, self.threshold, self.leave = p, p["threshold"], p["leave"]
        if p["model"] == "":
            raise ConfigError("strategy onnx: model must be \"demo\" or a path, was empty")
        self.warn_accuracy, self.warn_shift = p["warn_accuracy"], p["warn_shift"]
        self.complain = self.tell[0] = self.tell[1] = 1
        self.on_miss, self.stale_age = ON_MISS.index(p["on_miss"]), p["stale_age"]
        self.count = len(rows)
        self.exchange(self.prepare(p["model"], p["sha256"]))
        self.takers = <taker_t *>calloc(self.count or 1, sizeof(taker_t))
        if self.takers == NULL:
            raise MemoryError
        for i, row in enumerate(rows):
            self.takers[i] = row

    @classmethod
    def from_config(cls, params, instruments):
        """The strategy that *params* describe, for *instruments*."""
        return cls(params, instruments)

    def prepare(self, path, sha256=None, bar=None):
        """Load and check another model; what :meth:`exchange` takes.

        Raises
        ------
        ConfigError
            Everything that :class:`hftpipe._model.Model` refuses.
        """
        model = _Model(DEMO if path == "demo" else path, sha256=sha256, bar=bar)
        model.warm(1000)
        return (model, _Drift(model.card, self.count),
                self.params["budget"] or round(model.card["budget"]["p99_us"] * 1_000))

    def exchange(self, prepared):
        """Ask another model from the next event on; what was there before, for the caller to free.

        The caller is the stage, between two events, or nothing runs yet.
        """
        cdef Model model
        cdef Drift drift
        before = self.model, self.drift, self.budget
        model, drift, budget = prepared
        if self.drift is not None:
            self.matured += self.drift.matured
        self.model, self.drift, self.budget = model, drift, budget
        self.figures[HP_PER_STRATEGY_MODEL] = model.id
        self.wrong = self.moved = False
        return before

    def __dealloc__(self):
        free(self.takers)
        free(self.late_events)
        free(self.late_flags)

    def replay(self, events, flags):
        cdef Py_ssize_t i, n = len(events)
        if n != len(flags) or list(events) != sorted(events):
            raise ValueError("wanted ascending events and as many flags")
        cdef void *more = realloc(self.late_events, (n or 1) * sizeof(uint64_t))
        if more == NULL:
            raise MemoryError
        self.late_events = <uint64_t *>more
        more = realloc(self.late_flags, n or 1)
        if more == NULL:
            raise MemoryError
        self.late_flags = <uint8_t *>more
        for i in range(n):
            self.late_events[i], self.late_flags[i] = events[i], flags[i]
        self.late_count, self.replayed = n, True

    @property
    def last(self):
        """What the model said last: p_down, p_flat, p_up, confidence, decision, elapsed ns."""
        s = self.signal
        return {"p_down": s.p_down, "p_flat": s.p_flat, "p_up": s.p_up,
                "confidence": s.confidence, "decision": s.decision, "elapsed": s.elapsed,
                "flags": s.flags}

    cdef uint8_t _late(self, const hp_context_t *c, int64_t elapsed) noexcept nogil:
        """SIGNAL_FLAG_* of an answer that took *elapsed* ns."""
        cdef Py_ssize_t low = 0, high = self.late_count, middle
        if self.replayed:
            while low < high:
                middle = (low + high) >> 1
                if self.late_events[middle] < c.book.event:
                    low = middle + 1
                else:
                    high = middle
            if low == self.late_count or self.late_events[low] != c.book.event:
                return 0
            return self.late_flags[low] & (HP_SIGNAL_FLAG_LATE | HP_SIGNAL_FLAG_UNUSED)
        if elapsed <= self.budget:
            return 0
        if self.on_miss == MISS_STALE and clock_now() - c.now < self.stale_age:
            return HP_SIGNAL_FLAG_LATE
        return HP_SIGNAL_FLAG_LATE | HP_SIGNAL_FLAG_UNUSED

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        if c.event == STRATEGY_IDLE:
            return self._failed() if self.model.touch(1) != MODEL_OK else 0
        if c.event != STRATEGY_BOOK and c.event != STRATEGY_TRADE:
            return 0
        if c.features == NULL or c.instrument >= self.count:
            return 0
        self.drift.state(c.instrument, c.book)
        if c.book.flags & TAKER_UNTRADABLE:
            return 0
        cdef float p[3]
        cdef int64_t before = clock_now()
        if self.model.infer(&c.features.mid_return, p) != MODEL_OK:
            return self._failed()
        self.signal.elapsed = clock_now() - before
        self.drift.answer(c.instrument, c.book, &c.features.mid_return, p)
        self.signal.p_down, self.signal.p_flat, self.signal.p_up = p[0], p[1], p[2]
        cdef int decision = 0
        cdef float top = p[1]
        if p[0] > top:
            decision, top = -1, p[0]
        if p[2] > top:
            decision, top = 1, p[2]
        if top <= self.threshold:
            decision = 0
        self.signal.flags = self._late(c, self.signal.elapsed)
        if self.signal.flags & HP_SIGNAL_FLAG_UNUSED:
            decision = 0
        self.signal.confidence, self.signal.decision = top, decision
        self.signal.model = self.model.id
        self.asked = True
        if self.signal.flags & HP_SIGNAL_FLAG_UNUSED:
            return STRATEGY_HALT if self.on_miss == MISS_HALT else 0

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

    cdef object maintain(self):
        cdef uint64_t late = self.figures[HP_PER_STRATEGY_LATE]
        if late >= self.complain:       # at 1, 2, 4, ...: a slow model does not fill the disk
            self.notices.append(("warning", f"{late} answers took longer than "
                                            f"{self.budget / 1000:g} us: "
                                            f"{ON_MISS[self.on_miss]}"))
            self.complain = 2 * late
        self.drift.step()
        self.figures[HP_PER_STRATEGY_PREDICTIONS] = self.matured + self.drift.matured
        accuracy, shift = self.drift.accuracy, self.drift.shift
        self.figures[HP_PER_STRATEGY_ACCURACY] = (
            HP_UNKNOWN if accuracy is None else round(accuracy * PPB))
        wrong = accuracy is not None and accuracy < self.warn_accuracy
        if wrong and not self.wrong:
            self._warn(0, f"accuracy of the last 100 predictions is {accuracy:.2f}, wanted "
                          f"{self.warn_accuracy:g}")
        self.wrong, moved = wrong, False
        if shift is None:
            self.figures[HP_PER_STRATEGY_SHIFT] = HP_UNKNOWN
            self.figures[HP_PER_STRATEGY_SHIFT_FEATURE] = HP_UNKNOWN
            self.figures[HP_PER_STRATEGY_STABILITY] = HP_UNKNOWN
        else:
            distance, feature, index = shift
            self.figures[HP_PER_STRATEGY_SHIFT] = round(distance * PPB)
            self.figures[HP_PER_STRATEGY_SHIFT_FEATURE] = feature
            self.figures[HP_PER_STRATEGY_STABILITY] = round(index * PPB)
            moved = distance > self.warn_shift
            if moved and not self.moved:
                self._warn(1, f"{self.model.card['features'][feature]} is {distance:.2f} away from "
                              f"training (Kolmogorov-Smirnov), wanted at most {self.warn_shift:g}")
        self.moved = moved

    def _warn(self, int which, words):
        """Tell the log at the 1st, 2nd, 4th, ... time."""
        self.bad[which] += 1
        if self.bad[which] >= self.tell[which]:
            self.notices.append(("warning", words))
            self.tell[which] = 2 * self.bad[which]

    cdef int _failed(self) noexcept nogil:
        with gil:
            try:
                raise HftpipeError(
                    f"model {self.model.path}: {self.model.error or 'its output is not finite'}")
            except BaseException as error:      # noexcept: nothing may escape from here
                self.error = error
        return -1
