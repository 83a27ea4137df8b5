"""The circuit breaker: CLOSED passes orders, OPEN does not, HALF_OPEN lets one test order through.

::

    CLOSED --a loss or fault-----------------------------------> OPEN
    OPEN --fault only: cooldown over---------------------------> HALF_OPEN
    HALF_OPEN --the test order failed, or a loss or fault------> OPEN
    HALF_OPEN --the test order went well, then a quiet period--> CLOSED
    any --a person---------------------------------------------> CLOSED, OPEN, HALF_OPEN

Causes: a *loss* (of the day, losing trades in a row, drawdown) and a person's word are released
by a person only.  A *fault* (orders without an answer, refused ones, slow answers) releases
itself by way of HALF_OPEN.

Promises
    K1  While OPEN nothing passes but what reduces a position; the gate decides what does.
    K2  In HALF_OPEN exactly one order passes besides: the test.  It is taken when it is
        approved; an order refused by another check was none.
    K3  The test went well when the venue answered it (acknowledged, filled, cancelled or
        expired); it failed when it was refused, dropped or got no answer.
    K4  It closes when `quiet` ns have passed since the test's answer, or since a later failure.
    K5  A loss while open for a fault makes it a loss: the stricter cause stays.
    K6  Every change of state or cause is in the log, in order, until the reader takes it.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from ._schema cimport HP_BREAKER_CLOSED, HP_BREAKER_HALF_OPEN, HP_BREAKER_OPEN

cdef enum:
    BREAKER_LOG = 64

cdef struct breaker_change_t:
    uint8_t before              # BREAKER_*
    uint8_t after
    uint8_t cause               # BREAKER_CAUSE_*
    uint8_t pad[5]
    int64_t at                  # ns

cdef struct breaker_t:
    uint8_t state               # BREAKER_*
    uint8_t cause               # BREAKER_CAUSE_*; NONE while closed
    uint8_t pad[6]
    int64_t since               # ns, when it came into this state
    uint64_t test               # HALF_OPEN: identity of the test order; 0 = not chosen yet
    int64_t quiet_from          # HALF_OPEN: ns, of the test's answer; INT64_MAX = none yet
    int64_t losses              # losing trades in a row
    int64_t failures            # orders in a row without an answer
    int64_t rejects             # orders in a row that the venue refused
    int64_t slow_since          # ns of the first of only slow answers; INT64_MAX = none
    # limits; INT64_MAX = off
    int64_t max_losses
    int64_t max_failures
    int64_t max_rejects
    int64_t max_latency         # ns
    int64_t slow                # ns
    int64_t cooldown            # ns
    int64_t quiet               # ns
    uint64_t changes            # ever made; the newest is log[(changes - 1) % BREAKER_LOG]
    breaker_change_t log[64]

cdef inline bint breaker_passes(const breaker_t *b) noexcept nogil:
    """Whether an order may pass that does not reduce a position."""
    return b.state == HP_BREAKER_CLOSED or (b.state == HP_BREAKER_HALF_OPEN and b.test == 0)

cdef inline void breaker_approved(breaker_t *b, uint64_t order) noexcept nogil:
    """An order passed that does not reduce: in HALF_OPEN it is the test (K2)."""
    if b.state == HP_BREAKER_HALF_OPEN:
        b.test = order

cdef void breaker_init(breaker_t *b) noexcept nogil
# Time has passed.
cdef void breaker_tick(breaker_t *b, int64_t now) noexcept nogil
# Open it for *cause*, BREAKER_CAUSE_*.
cdef void breaker_trip(breaker_t *b, uint8_t cause, int64_t now) noexcept nogil
# A step of an order, ORDER_EVENT_*; *reason* of a DROPPED one.
cdef void breaker_step(breaker_t *b, uint64_t order, uint8_t kind, uint8_t reason,
                       int64_t now) noexcept nogil
# The venue's first answer to an order came *latency* ns after it was approved.
cdef void breaker_answer(breaker_t *b, int64_t latency, int64_t now) noexcept nogil
# A trade has ended: what it earned.
cdef void breaker_trade(breaker_t *b, int64_t earned, int64_t now) noexcept nogil
# A person's word, BREAKER_*; 0 when it is none.
cdef bint breaker_set(breaker_t *b, int64_t state, int64_t now) noexcept nogil
# What a run before left.  HALF_OPEN comes back as OPEN: what became of its test is not known.
cdef void breaker_restore(breaker_t *b, int64_t state, int64_t cause, int64_t losses,
                          int64_t now) noexcept nogil


cdef class Breaker:
    cdef breaker_t b
