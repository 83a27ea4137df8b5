"""The signal stage: features, strategies, intents."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._feature cimport feature_t
from ._ring cimport ring_t
from ._schema cimport hp_book_t, hp_features_t, hp_instrument_t, hp_intent_t, hp_order_event_t
from ._stage cimport Stage
from ._strategy cimport hp_holding_t
from ._study cimport study_t


cdef enum:
    INTENTS_MAX = 16            # of one strategy at one event


cdef class SignalStage(Stage):
    cdef ring_t *books
    cdef ring_t *order_events
    cdef ring_t *intents
    cdef list strategies
    cdef void **strategy_pointers
    cdef int strategy_count
    cdef uint64_t instruments
    cdef hp_instrument_t *specs
    cdef feature_t *features
    cdef study_t *studies       # NULL when no bars are kept
    cdef hp_features_t *vectors
    cdef uint8_t *warm
    cdef hp_book_t *newest
    cdef hp_holding_t *holdings
    cdef hp_intent_t *scratch
    cdef uint64_t taken         # book records taken
    cdef uint64_t room_max      # for intents at an order event; a replay sets what the run had

    cdef int _ask(self, int event, uint16_t instrument, const hp_order_event_t *order_event,
                  uint64_t cause, int64_t ts_recv, int64_t ts_in, uint32_t room) noexcept nogil
