"""The risk stage: intents in, orders with a token, or refused ones, out."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from ._board cimport Board
from ._control cimport stage_block_t
from ._gate cimport Risk
from ._ring cimport ring_t
from ._schema cimport hp_intent_t, hp_risk_event_t
from ._stage cimport Stage, turn_t, turns_t

cdef enum:
    RISK_FIGURES = 2            # links of figures: a turn has room for two


cdef class RiskStage(Stage):
    cdef ring_t *intents
    cdef ring_t *marks
    cdef ring_t *order_events
    cdef ring_t *positions
    cdef ring_t *orders
    cdef readonly Risk risk
    cdef Board board            # for whoever looks, or None
    cdef int64_t shown          # ns, when it was last written
    cdef stage_block_t *blocks
    cdef int updates            # block whose HP_METRIC_UNSETTLED counts; -1 = none
    cdef uint64_t halt_seen
    cdef bint armed_seen
    cdef bint store_full_seen
    cdef ring_t *figures[RISK_FIGURES]
    cdef int figure_links
    cdef uint64_t changes_seen  # of the breaker
    cdef uint8_t level_seen     # of the drawdown
    cdef int64_t day_seen       # trading day on record
    cdef uint64_t latched_seen[4]
    cdef int64_t withdraw_at    # next slot of orders to cancel; -1 = nothing to do

    cdef turns_t turns
    cdef uint64_t halt_read     # the epochs as `_watch` read them last
    cdef uint64_t armed_read
    cdef bint unsettled_told    # as in the newest turn

    cdef bint _watch(self) noexcept nogil
    cdef void _tell(self, hp_risk_event_t *e, uint64_t cause, int64_t now) noexcept nogil
    cdef void _changes(self, int64_t now) noexcept nogil
    cdef uint16_t _withdraw(self, int64_t now, uint16_t most) noexcept nogil
    cdef uint8_t _outside(self, int i, int64_t now) noexcept nogil
    cdef void _turned(self, const turn_t *turn, int64_t now, uint64_t seq) noexcept nogil
    # One turn: everything that waits, then at most one intent; what was taken, and whether that
    # was an intent.  *withdrawn*: open orders to look at for a withdrawal, at most.
    cdef uint64_t turn(self, uint16_t withdrawn, bint *judged) noexcept nogil
    cdef void _judge(self, const hp_intent_t *i, int64_t now) noexcept nogil
