"""Strategy base class, and the adapter that lets a plain Python one run."""
from libc.string cimport memcpy, memset

from ._control cimport HP_UNKNOWN
from ._schema cimport (
    HP_PER_STRATEGY_ACCURACY, HP_PER_STRATEGY_SHIFT, HP_PER_STRATEGY_SHIFT_FEATURE,
    HP_PER_STRATEGY_STABILITY)

import math

import numpy

from hftpipe import schema


cdef class Strategy:
    """Base class of every strategy; see ``_strategy.pxd`` for how to write one."""

    def __cinit__(self):
        self.version, self.name, self.notices = STRATEGY_VERSION, "", []
        for i in (HP_PER_STRATEGY_ACCURACY, HP_PER_STRATEGY_SHIFT, HP_PER_STRATEGY_SHIFT_FEATURE,
                  HP_PER_STRATEGY_STABILITY):
            self.figures[i] = HP_UNKNOWN

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil:
        return STRATEGY_OK

    cdef void *member(self, int n) noexcept nogil:
        return NULL

    cdef void *core(self) noexcept nogil:
        return <void *>self

    cdef object maintain(self):
        return None

    @property
    def parts(self):
        """The strategy without what only wraps it, and its members."""
        cdef void *member
        found = [<object>self.core()]
        while True:
            member = self.member(len(found) - 1)
            if member == NULL:
                return found
            found.append(<object>member)

    def restore(self, instrument, holding):
        """Told before the first event what is held from an earlier run.

        ``context.holding`` knows it too; whoever keeps books of its own overrides this.

        Parameters
        ----------
        instrument : int
        holding : mapping
            qty (nanoqty, signed), cost (1e-18, sign of qty), fills, since (monotonic ns), best
            (best mark since then, nanoprice), first (whether the first target was taken) and
            closing (EXIT_* under way, or 0).
        """

    def replay(self, events, flags):
        """Told by a replay which answers of the run were late, instead of a clock.

        Parameters
        ----------
        events : sequence of int, ascending
            Market events whose answer was late.
        flags : sequence of int
            SIGNAL_FLAG_* of each.
        """

    @property
    def counts(self):
        """Its figures by name, as the control page tells them; None: not known yet."""
        return {m.name: None if self.figures[i] == HP_UNKNOWN else self.figures[i]
                for i, m in enumerate(schema.STRATEGY_METRICS)}


cdef enum:
    PY_INTENTS = 16             # one call of a Python strategy adds at most so many


cdef void *_data(array) except NULL:
    return <void *><size_t>array.ctypes.data


class Context:
    """What a Python strategy sees of one event; valid during the call only.

    Attributes
    ----------
    event : int
        1 book, 2 trade, 3 order, 4 timer.
    instrument, strategy : int
    now : int
        ns, monotonic; when the event was received.
    book, features, order_event : numpy records (``features`` and ``order_event`` may be None)
    qty, open_buy, open_sell : int, nanoqty
    tick, lot : int
    """

    __slots__ = ("book", "event", "features", "instrument", "lot", "now", "open_buy",
                 "open_sell", "order_event", "qty", "strategy", "tick")


class _Adder:
    """``add(**fields)`` of one call of a Python strategy."""

    __slots__ = ("_instrument", "_intents", "_room", "count")

    def __init__(self, intents, room, instrument):
        self._intents, self._room, self._instrument, self.count = intents, room, instrument, 0

    def __call__(self, **fields):
        if self.count >= self._room:
            return False
        row = self._intents[self.count]
        row["instrument"] = self._instrument
        for name, value in fields.items():
            row[name] = value
        self.count += 1
        return True


cdef class PyStrategy(Strategy):
    """Run ``on_event(context, add)`` written in Python.

    *context* is a :class:`Context`; ``add(**fields)`` adds an intent with the given
    INTENT fields and returns False when there is no room.  It returns None, or its answer:
    the probabilities of down, flat and up, which an ensemble can count.  For research and
    tests: each event takes the GIL.
    """

    def __init__(self, on_event):
        self._on_event = on_event
        book, features, order_event = (numpy.zeros(1, schema.dtype(r)) for r in (
            schema.BOOK, schema.FEATURES, schema.ORDER_EVENT))
        intents = numpy.zeros(PY_INTENTS, schema.dtype(schema.INTENT))
        self._book, self._features = _data(book), _data(features)
        self._order_event, self._intents = _data(order_event), <char *>_data(intents)
        self._views = (book, features, order_event, intents, Context())

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil:
        if context.event == STRATEGY_IDLE:
            return 0
        with gil:
            try:
                self._call(context, out)
                return 0
            except BaseException as error:      # noexcept: nothing may escape from here
                self.error = error
                return -1

    cdef int _call(self, const hp_context_t *context, hp_out_t *out) except -1:
        book, features, order_event, intents, c = self._views
        memcpy(self._book, context.book, sizeof(hp_book_t))
        if context.features != NULL:
            memcpy(self._features, context.features, sizeof(hp_features_t))
        if context.order_event != NULL:
            memcpy(self._order_event, context.order_event, sizeof(hp_order_event_t))
        c.event, c.instrument, c.strategy = context.event, context.instrument, context.strategy
        c.now, c.book = context.now, book[0]
        c.features = features[0] if context.features != NULL else None
        c.order_event = order_event[0] if context.order_event != NULL else None
        c.qty, c.open_buy = context.holding.qty, context.holding.open_buy
        c.open_sell, c.tick, c.lot = context.holding.open_sell, context.spec.tick, context.spec.lot
        room = min(out.room - out.count, PY_INTENTS)
        memset(self._intents, 0, PY_INTENTS * sizeof(hp_intent_t))
        adder = _Adder(intents, room, c.instrument)
        said = self._on_event(c, adder)
        if said is not None:
            self._answer(said)
        cdef hp_intent_t *intent
        cdef int i
        for i in range(adder.count):
            intent = strategy_add(out)
            if intent == NULL:
                raise ValueError(f"{adder.count} intents were added, there was room for {i}")
            memcpy(intent, self._intents + i * sizeof(hp_intent_t), sizeof(hp_intent_t))
        return 0

    cdef int _answer(self, said) except -1:
        try:
            down, flat, up = map(float, said)
            good = math.isfinite(down + flat + up)
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError("on_event must return None or the probabilities of down, flat and "
                             f"up, was {said!r}")
        self.signal.model, self.signal.elapsed, self.signal.flags = 0, 0, 0
        strategy_answer(self, down, flat, up)
        return 0
