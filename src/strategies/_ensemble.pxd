"""Several strategies, one decision.

E1  Every member hears of every event.  What it would order goes nowhere; its answer counts when
    it gave one at this event and did not say UNUSED (a late model's): else it abstains.
E2  Rules, with weights w (default 1) and W their sum over all members:
    majority    the direction whose members' w is more than W / 2
    unanimous   the direction all members said; one that abstains or says flat is against it
    mean        the likeliest class of the mean of the probabilities, by w, of those that count;
                up or down only above `threshold`
    first       the direction of the first member, in their order, that said one
E3  Its answer is the mean of the probabilities of those that count, its decision the rule's.  The
    members' answers are stored beside it.
E4  A member that fails, fails it; one that wants trading halted, halts it.
"""
from .._schema cimport hp_intent_t
from .._strategy cimport Strategy, hp_context_t, hp_out_t
from ._taker cimport taker_t

cdef enum:
    RULE_MAJORITY = 0
    RULE_UNANIMOUS = 1
    RULE_MEAN = 2
    RULE_FIRST = 3
    MEMBER_INTENTS = 16         # room of a member; they go nowhere


cdef class Ensemble(Strategy):
    cdef readonly dict params
    cdef readonly list members
    cdef void **pointers
    cdef double *weights
    cdef double all_weights
    cdef int size               # members
    cdef readonly double threshold
    cdef readonly double leave
    cdef int rule               # RULE_*
    cdef int count              # instruments
    cdef taker_t *takers
    cdef hp_intent_t *scratch

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
    cdef int _decide(self, const double *mean) noexcept nogil
    cdef void *member(self, int n) noexcept nogil
    cdef int _failed(self, int n) noexcept nogil
    cdef object maintain(self)
