"""A strategy's test bench; see ``_probe.pxd``."""
cimport cython
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

import numpy

from .._schema cimport (
    HP_BOOK_FLAG_TRADE, hp_book_t, hp_features_t, hp_instrument_t, hp_order_event_t, hp_signal_t)
from .._strategy cimport (
    STRATEGY_BOOK, STRATEGY_ORDER, STRATEGY_TIMER, STRATEGY_TRADE, STRATEGY_VERSION, hp_context_t,
    hp_holding_t, hp_out_t)

from hftpipe import schema

BOOK, TRADE, ORDER, TIMER = STRATEGY_BOOK, STRATEGY_TRADE, STRATEGY_ORDER, STRATEGY_TIMER


cdef int _fill(void *target, record, value) except -1:
    """Copy one record of *value* into a C struct; it must have the record's dtype."""
    array = numpy.atleast_1d(numpy.asarray(value))
    if array.dtype != schema.dtype(record) or array.shape != (1,):
        raise ValueError(f"wanted one {record.name} record, found {array.dtype} {array.shape}")
    cdef const unsigned char[::1] raw = numpy.ascontiguousarray(array).view(numpy.uint8)
    memcpy(target, &raw[0], raw.shape[0])
    return 0


@cython.final
cdef class Probe:
    """Call ``on_event`` of *strategy* as a stage would, and see what it wants.

    Parameters
    ----------
    strategy : Strategy
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``
    """

    def __cinit__(self):
        if posix_memalign(<void **>&self._intents, 64, PROBE_ROOM * sizeof(hp_intent_t)):
            raise MemoryError

    def __init__(self, Strategy strategy not None, instruments):
        self.strategy, self._instruments = strategy, instruments

    def __dealloc__(self):
        free(self._intents)

    def ask(self, book, features=None, *, qty=0, open_buy=0, open_sell=0, event=None,
            order_event=None, now=None, room=PROBE_ROOM):
        """What the strategy wants after one event.

        Parameters
        ----------
        book : BOOK record
            Newest state; names the instrument.
        features : (n,) array of the first n features, the others 0, or FEATURES record, optional
            None: not warm.
        qty, open_buy, open_sell : int, nanoqty
            What is held, and what of our orders is open.
        event : int, optional
            1 book, 2 trade, 3 order, 4 timer; by default 2 or 1 by the book's TRADE flag, or 3
            when there is an *order_event*.
        order_event : ORDER_EVENT record, optional
        now : int, ns
            By default the book's ``ts_recv``.
        room : int
            How many intents may be added.

        Returns
        -------
        (intents, signal)
            Array of INTENT; SIGNAL record, or None when the strategy asked no model.

        Raises
        ------
        Whatever stopped the strategy.
        """
        cdef hp_book_t state
        cdef hp_features_t vector
        cdef hp_order_event_t step
        cdef hp_instrument_t spec
        cdef hp_holding_t holding
        cdef hp_context_t context
        cdef hp_out_t out
        if not 0 <= room <= PROBE_ROOM:
            raise ValueError(f"room must be 0 to {PROBE_ROOM}, was {room}")
        _fill(&state, schema.BOOK, book)
        _fill(&spec, schema.INSTRUMENT, self._instruments[state.instrument])
        memset(&context, 0, sizeof(context))
        if features is not None:
            array = numpy.asarray(features)
            if (array.dtype == numpy.float32 and array.ndim == 1
                    and len(array) <= len(schema.FEATURES.fields)):
                array = numpy.pad(array, (0, len(schema.FEATURES.fields) - len(array))).view(
                    schema.dtype(schema.FEATURES))
            _fill(&vector, schema.FEATURES, array)
            context.features = &vector
        if order_event is not None:
            _fill(&step, schema.ORDER_EVENT, order_event)
            context.order_event = &step
        holding.qty, holding.open_buy, holding.open_sell, holding.cost = qty, open_buy, open_sell, 0
        context.version, context.instrument = STRATEGY_VERSION, state.instrument
        context.book, context.holding, context.spec = &state, &holding, &spec
        context.now = state.ts_recv if now is None else now
        if event is not None:
            context.event = event
        elif order_event is not None:
            context.event = STRATEGY_ORDER
        else:
            context.event = STRATEGY_TRADE if state.flags & HP_BOOK_FLAG_TRADE else STRATEGY_BOOK
        memset(self._intents, 0, PROBE_ROOM * sizeof(hp_intent_t))
        out.intents, out.room, out.count = self._intents, room, 0
        self.strategy.asked = False
        cdef int code
        with nogil:
            code = self.strategy.on_event(&context, &out)
        if code < 0:
            raise self.strategy.error
        cdef unsigned char[:] raw
        intents = numpy.zeros(out.count, schema.dtype(schema.INTENT))
        if out.count:
            raw = <unsigned char[:out.count * sizeof(hp_intent_t)]><unsigned char *>self._intents
            intents.view(numpy.uint8)[:] = raw
        if not self.strategy.asked:
            return intents, None
        raw = <unsigned char[:sizeof(hp_signal_t)]><unsigned char *>&self.strategy.signal
        return intents, numpy.array(raw).view(schema.dtype(schema.SIGNAL))[0]
