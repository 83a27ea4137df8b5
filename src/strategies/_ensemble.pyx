"""Several strategies, one decision by a declared rule; see ``_ensemble.pxd``."""
cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from .._memory cimport hp_lines
from .._schema cimport HP_SIGNAL_FLAG_UNUSED
from .._strategy cimport (
    STRATEGY_BOOK, STRATEGY_HALT, STRATEGY_IDLE, STRATEGY_TRADE, STRATEGY_VERSION)
from ._taker cimport TAKER_UNTRADABLE, taker_ready, taker_take

from hftpipe.errors import ConfigError
from hftpipe.strategies import sizes
from hftpipe.strategies.params import read, within

RULES = ("majority", "unanimous", "mean", "first")
DEFAULTS = {"rule": "majority", "weights": (), "threshold": 0.5, "leave": 0.45, **sizes.DEFAULTS}


@cython.final
cdef class Ensemble(Strategy):
    """Trade on what several strategies say together.

    Parameters
    ----------
    params : mapping
        ``rule`` (one of RULES; E2 of ``_ensemble.pxd``), ``weights`` (one above 0 for each member;
        empty = 1 each), ``threshold`` (0 to 1, 0.5; of mean), ``leave`` (0 to 1, 0.45: mean
        probability of the other direction that ends a position), and those of
        `hftpipe.strategies.sizes`.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``
    members : sequence of Strategy
        Two or more, none of them an ensemble.

    Raises
    ------
    ConfigError
    """

    def __cinit__(self, *args):
        self.version = STRATEGY_VERSION

    def __init__(self, params, instruments, members):
        cdef Strategy member
        if self.takers != NULL:
            raise ValueError("a strategy is configured once")
        p = read("ensemble", {**params, "weights": tuple(params.get("weights", ()))}, DEFAULTS)
        within("ensemble", "threshold", p["threshold"], 0, 1)
        within("ensemble", "leave", p["leave"], 0, 1)
        if p["rule"] not in RULES:
            raise ConfigError(f"strategy ensemble: rule must be one of {', '.join(RULES)}, was "
                              f"{p['rule']!r}")
        self.members = list(members)
        self.size = len(self.members)
        weights = p["weights"] or (1.0,) * self.size
        if self.size < 2 or any(isinstance(m, Ensemble) for m in self.members):
            raise ConfigError("strategy ensemble: wanted two or more members that are no "
                              f"ensembles, found {self.size}")
        if len(weights) != self.size:
            raise ConfigError(f"strategy ensemble: wanted {self.size} weights, one for each "
                              f"member, found {len(weights)}")
        for weight in weights:
            if not isinstance(weight, (int, float)) or not 0 < weight < 1e9:
                raise ConfigError(f"strategy ensemble: weights must be above 0, was {weight!r}")
        rows = sizes.table("ensemble", p, instruments)
        self.params, self.threshold, self.leave = p, p["threshold"], p["leave"]
        self.rule, self.count = RULES.index(p["rule"]), len(rows)
        self.takers = <taker_t *>calloc(self.count or 1, sizeof(taker_t))
        self.pointers = <void **>calloc(self.size, sizeof(void *))
        self.weights = <double *>calloc(self.size, sizeof(double))
        self.scratch = <hp_intent_t *>hp_lines(MEMBER_INTENTS, sizeof(hp_intent_t))
        if self.takers == NULL or self.pointers == NULL or self.weights == NULL \
                or self.scratch == NULL:
            raise MemoryError
        for i, row in enumerate(rows):
            self.takers[i] = row
        for i, member in enumerate(self.members):
            self.pointers[i], self.weights[i] = <void *>member, weights[i]
            self.all_weights += self.weights[i]

    def __dealloc__(self):
        free(self.takers)
        free(self.pointers)
        free(self.weights)
        free(self.scratch)

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        cdef hp_out_t theirs
        cdef void *m
        cdef double mean[3]
        cdef double counted = 0
        cdef int n, code, result = 0, decision
        cdef bint asked = False
        mean[0] = mean[1] = mean[2] = 0
        self.signal.elapsed = 0
        for n in range(self.size):
            m = self.pointers[n]
            (<Strategy>m).asked = False
            theirs.intents, theirs.room, theirs.count = self.scratch, MEMBER_INTENTS, 0
            if c.event == STRATEGY_IDLE:
                theirs.room = 0
            code = (<Strategy>m).on_event(c, &theirs)
            if code < 0:
                return self._failed(n)
            if theirs.count:
                memset(self.scratch, 0, MEMBER_INTENTS * sizeof(hp_intent_t))
            if code == STRATEGY_HALT:
                result = STRATEGY_HALT
            if not (<Strategy>m).asked:
                continue
            asked = True
            self.signal.elapsed += (<Strategy>m).signal.elapsed
            if (<Strategy>m).signal.flags & HP_SIGNAL_FLAG_UNUSED:
                continue
            counted += self.weights[n]
            mean[0] += self.weights[n] * (<Strategy>m).signal.p_down
            mean[1] += self.weights[n] * (<Strategy>m).signal.p_flat
            mean[2] += self.weights[n] * (<Strategy>m).signal.p_up
        if not asked or (c.event != STRATEGY_BOOK and c.event != STRATEGY_TRADE):
            return result
        self.asked = True
        self.signal.model, self.signal.flags = 0, 0
        if counted > 0:
            for n in range(3):
                mean[n] /= counted
        decision = self._decide(mean) if counted > 0 else 0
        self.signal.p_down, self.signal.p_flat = <float>mean[0], <float>mean[1]
        self.signal.p_up = <float>mean[2]
        self.signal.confidence = <float>max(mean[0], max(mean[1], mean[2]))
        self.signal.decision = decision
        if result == STRATEGY_HALT or c.instrument >= self.count or (
                c.book.flags & TAKER_UNTRADABLE):
            return result
        cdef taker_t *t = &self.takers[c.instrument]
        if not taker_ready(t, c):
            return 0
        if decision:
            taker_take(t, c, out, decision, False)
        elif c.holding.qty > 0 and mean[0] > self.leave:
            taker_take(t, c, out, -1, True)
        elif c.holding.qty < 0 and mean[2] > self.leave:
            taker_take(t, c, out, 1, True)
        return 0

    cdef int _decide(self, const double *mean) noexcept nogil:
        """The rule's direction, of what the members said at this event."""
        cdef double up = 0, down = 0
        cdef int n, said
        if self.rule == RULE_MEAN:
            if mean[2] > mean[0] and mean[2] > mean[1] and mean[2] > self.threshold:
                return 1
            if mean[0] > mean[2] and mean[0] > mean[1] and mean[0] > self.threshold:
                return -1
            return 0
        for n in range(self.size):
            said = 0
            if (<Strategy>self.pointers[n]).asked and not (
                    (<Strategy>self.pointers[n]).signal.flags & HP_SIGNAL_FLAG_UNUSED):
                said = (<Strategy>self.pointers[n]).signal.decision
            if said and self.rule == RULE_FIRST:
                return said
            if said > 0:
                up += self.weights[n]
            elif said < 0:
                down += self.weights[n]
        if self.rule == RULE_MAJORITY:
            return (2 * up > self.all_weights) - (2 * down > self.all_weights)
        if self.rule == RULE_UNANIMOUS:
            return (up >= self.all_weights) - (down >= self.all_weights)
        return 0

    cdef void *member(self, int n) noexcept nogil:
        return self.pointers[n] if n < self.size else NULL

    cdef int _failed(self, int n) noexcept nogil:
        with gil:
            self.error = self.members[n].error
        return -1

    cdef object maintain(self):
        pass                    # the stage looks after the members itself
