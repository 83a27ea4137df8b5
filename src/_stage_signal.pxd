"""The signal stage: features, strategies, intents."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._control cimport Control
from ._feature cimport feature_t
from ._ring cimport ring_t
from ._schema cimport hp_book_t, hp_features_t, hp_instrument_t, hp_intent_t, hp_order_event_t
from ._stage cimport Stage
from ._strategy cimport hp_context_t, hp_holding_t, hp_out_t, hp_signal_held_t
from ._study cimport study_t


cdef enum:
    INTENTS_MAX = 16            # of one strategy at one event

cdef enum:
    ROLE_TRADES = 0
    ROLE_SHADOW = 1             # asked after those that trade; its intents go nowhere
    ROLE_ASLEEP = 2             # a shadow that gave up: asked no more


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
    cdef uint64_t orders_taken  # order events taken
    cdef uint8_t *role          # of each strategy: ROLE_*
    cdef void **cores           # of each strategy: whose figures count
    cdef int *members           # of each strategy: how many have answers of their own
    cdef bint shadows           # whether there is any
    cdef list parts             # [(name, strategy)]: strategies and members, as the page has them
    cdef Control page           # None without one
    cdef bint named             # the page has the names

    cdef int _call(self, int k, hp_context_t *context, hp_out_t *out,
                   uint32_t room) noexcept nogil
    cdef void _member(self, void *part) noexcept nogil
    cdef void _count(self, const hp_signal_held_t *said, uint64_t *figures,
                     bint measured) noexcept nogil
    cdef bint _any_late(self, int k) noexcept nogil
    cdef void _signals(self, int k, int flags, int64_t wanted, uint64_t cause, int64_t now,
                       int64_t ts_in, uint16_t instrument) noexcept nogil
    cdef void _shadow(self, int k, hp_context_t *context, uint64_t cause,
                      int64_t ts_in) noexcept nogil
    cdef int _ask(self, int event, uint16_t instrument, const hp_order_event_t *order_event,
                  uint64_t cause, int64_t ts_recv, int64_t ts_in, uint32_t room) noexcept nogil
