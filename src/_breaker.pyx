"""The circuit breaker; states and promises are in ``_breaker.pxd``."""
cimport cython
from libc.stdint cimport INT64_MAX
from libc.string cimport memset

from ._schema cimport (
    HP_BREAKER_CAUSE_FAILURES, HP_BREAKER_CAUSE_HAND, HP_BREAKER_CAUSE_LATENCY,
    HP_BREAKER_CAUSE_LOSSES,
    HP_BREAKER_CAUSE_NONE, HP_BREAKER_CAUSE_REJECTS, HP_BREAKER_CAUSE_TEST,
    HP_BREAKER_CAUSE_UNREADABLE, HP_ORDER_EVENT_ACKED, HP_ORDER_EVENT_CANCELED,
    HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_FILL,
    HP_ORDER_EVENT_PARTIAL_FILL, HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_REPLACED,
    HP_ORDER_EVENT_UNKNOWN, HP_REASON_BUSY, HP_REASON_DISCONNECTED)

from hftpipe import schema


cdef inline bint fault(uint8_t cause) noexcept nogil:
    """Whether a cause releases itself."""
    return (cause == HP_BREAKER_CAUSE_FAILURES or cause == HP_BREAKER_CAUSE_REJECTS
            or cause == HP_BREAKER_CAUSE_LATENCY or cause == HP_BREAKER_CAUSE_TEST)


cdef inline int64_t since(int64_t now, int64_t then) noexcept nogil:
    """ns from *then* to *now*; 0 when the clock stepped back."""
    return now - then if now > then else 0


cdef void change(breaker_t *b, uint8_t state, uint8_t cause, int64_t now) noexcept nogil:
    cdef breaker_change_t *c = &b.log[b.changes % BREAKER_LOG]
    c.before, c.after, c.cause, c.at = b.state, state, cause, now
    b.changes += 1
    b.state, b.cause, b.since = state, cause, now
    b.test, b.quiet_from = 0, INT64_MAX
    if state != HP_BREAKER_OPEN:        # what it was opened for does not count a second time
        b.failures = b.rejects = 0
        b.slow_since = INT64_MAX
    if state == HP_BREAKER_CLOSED:
        b.losses = 0


cdef void breaker_init(breaker_t *b) noexcept nogil:
    memset(b, 0, sizeof(breaker_t))
    b.quiet_from = b.slow_since = INT64_MAX
    b.max_losses = b.max_failures = b.max_rejects = b.max_latency = INT64_MAX


cdef void breaker_trip(breaker_t *b, uint8_t cause, int64_t now) noexcept nogil:
    if b.state == HP_BREAKER_OPEN and (not fault(b.cause) or fault(cause)):
        return                          # open already, and for no weaker a cause
    change(b, HP_BREAKER_OPEN, cause, now)


cdef void breaker_tick(breaker_t *b, int64_t now) noexcept nogil:
    if b.state == HP_BREAKER_OPEN:
        if fault(b.cause) and since(now, b.since) >= b.cooldown:
            change(b, HP_BREAKER_HALF_OPEN, b.cause, now)
    elif b.state == HP_BREAKER_HALF_OPEN:
        if b.quiet_from != INT64_MAX and since(now, b.quiet_from) >= b.quiet:
            change(b, HP_BREAKER_CLOSED, HP_BREAKER_CAUSE_NONE, now)


cdef void breaker_step(breaker_t *b, uint64_t order, uint8_t kind, uint8_t reason,
                       int64_t now) noexcept nogil:
    cdef bint test = b.state == HP_BREAKER_HALF_OPEN and order == b.test and order != 0
    cdef bint failed = False
    if kind == HP_ORDER_EVENT_UNKNOWN or (kind == HP_ORDER_EVENT_DROPPED and (
            reason == HP_REASON_DISCONNECTED or reason == HP_REASON_BUSY)):
        b.failures += 1
        failed = True
    elif kind == HP_ORDER_EVENT_REJECTED:
        b.rejects += 1
        b.failures = 0                  # it was an answer
        failed = True
    elif (kind == HP_ORDER_EVENT_ACKED or kind == HP_ORDER_EVENT_PARTIAL_FILL
            or kind == HP_ORDER_EVENT_FILL or kind == HP_ORDER_EVENT_CANCELED
            or kind == HP_ORDER_EVENT_EXPIRED or kind == HP_ORDER_EVENT_REPLACED):
        b.failures = b.rejects = 0
        if test and b.quiet_from == INT64_MAX:
            b.quiet_from = now          # K3
    elif kind != HP_ORDER_EVENT_DROPPED:
        return                          # SENT, CANCEL_SENT and the like say nothing yet
    if test and (failed or kind == HP_ORDER_EVENT_DROPPED):
        # Half-open by a person's word, it is the person's again.
        breaker_trip(b, HP_BREAKER_CAUSE_TEST if fault(b.cause) else b.cause, now)
    elif failed:
        if b.quiet_from != INT64_MAX:
            b.quiet_from = max(b.quiet_from, now)       # K4
        if b.failures >= b.max_failures:
            breaker_trip(b, HP_BREAKER_CAUSE_FAILURES, now)
        elif b.rejects >= b.max_rejects:
            breaker_trip(b, HP_BREAKER_CAUSE_REJECTS, now)


cdef void breaker_answer(breaker_t *b, int64_t latency, int64_t now) noexcept nogil:
    if latency <= b.max_latency:
        b.slow_since = INT64_MAX
    elif b.slow_since == INT64_MAX:
        b.slow_since = now
    elif since(now, b.slow_since) >= b.slow:
        breaker_trip(b, HP_BREAKER_CAUSE_LATENCY, now)


cdef void breaker_trade(breaker_t *b, int64_t earned, int64_t now) noexcept nogil:
    if earned > 0:
        b.losses = 0
    elif earned < 0:
        b.losses += 1
        if b.losses >= b.max_losses:
            breaker_trip(b, HP_BREAKER_CAUSE_LOSSES, now)


cdef bint breaker_set(breaker_t *b, int64_t state, int64_t now) noexcept nogil:
    if state != HP_BREAKER_CLOSED and state != HP_BREAKER_OPEN and state != HP_BREAKER_HALF_OPEN:
        return False
    if state == HP_BREAKER_CLOSED:
        if b.state != HP_BREAKER_CLOSED:
            change(b, HP_BREAKER_CLOSED, HP_BREAKER_CAUSE_NONE, now)
        b.losses = b.failures = b.rejects = 0
    elif b.state != state or (state == HP_BREAKER_OPEN and fault(b.cause)):
        change(b, <uint8_t>state, HP_BREAKER_CAUSE_HAND, now)
    return True


cdef void breaker_restore(breaker_t *b, int64_t state, int64_t cause, int64_t losses,
                          int64_t now) noexcept nogil:
    b.losses = max(losses, 0)
    if state == HP_BREAKER_CLOSED:
        return
    if state == HP_BREAKER_HALF_OPEN and fault(<uint8_t>cause):
        cause = HP_BREAKER_CAUSE_TEST
    elif cause <= HP_BREAKER_CAUSE_NONE or cause > HP_BREAKER_CAUSE_UNREADABLE:
        cause = HP_BREAKER_CAUSE_UNREADABLE
    change(b, HP_BREAKER_OPEN, <uint8_t>cause, now)


@cython.final
cdef class Breaker:
    """The breaker alone, for tests and people; the gate holds one of its own.

    Parameters
    ----------
    losses, failures, rejects : int, optional
        In a row, at which it opens; None = off.
    latency, slow : int, ns
        Only answers slower than *latency* for *slow* open it; *latency* None = off.
    cooldown, quiet : int, ns
    """

    def __cinit__(self, losses=None, failures=None, rejects=None, latency=None,
                  int64_t slow=0, int64_t cooldown=0, int64_t quiet=0):
        breaker_init(&self.b)
        self.b.max_losses = INT64_MAX if losses is None else losses
        self.b.max_failures = INT64_MAX if failures is None else failures
        self.b.max_rejects = INT64_MAX if rejects is None else rejects
        self.b.max_latency = INT64_MAX if latency is None else latency
        self.b.slow, self.b.cooldown, self.b.quiet = slow, cooldown, quiet

    def passes(self, int64_t now):
        """Whether an order that does not reduce may pass at *now*."""
        breaker_tick(&self.b, now)
        return breaker_passes(&self.b)

    def approved(self, uint64_t order):
        """Such an order passed."""
        breaker_approved(&self.b, order)

    def trip(self, uint8_t cause, int64_t now):
        """Open it."""
        breaker_trip(&self.b, cause, now)

    def step(self, uint64_t order, uint8_t kind, int64_t now, uint8_t reason=0):
        """A step of an order."""
        breaker_step(&self.b, order, kind, reason, now)

    def answer(self, int64_t latency, int64_t now):
        """The venue's first answer to an order."""
        breaker_answer(&self.b, latency, now)

    def trade(self, int64_t earned, int64_t now):
        """A trade has ended."""
        breaker_trade(&self.b, earned, now)

    def set(self, int64_t state, int64_t now):
        """A person's word."""
        if not breaker_set(&self.b, state, now):
            raise ValueError(f"state must be one of BREAKER, was {state}")

    def restore(self, int64_t state, int64_t cause, int64_t losses, int64_t now):
        """What a run before left."""
        breaker_restore(&self.b, state, cause, losses, now)

    @property
    def state(self) -> int:
        """BREAKER_*."""
        return self.b.state

    @property
    def cause(self) -> int:
        """BREAKER_CAUSE_*."""
        return self.b.cause

    @property
    def losses(self) -> int:
        """Losing trades in a row."""
        return self.b.losses

    @property
    def test(self) -> int:
        """Identity of the test order; 0 = none."""
        return self.b.test

    def changes(self) -> list[tuple[str, str, str]]:
        """``(before, after, cause)`` of the last changes, oldest first."""
        cdef uint64_t i = self.b.changes - min(self.b.changes, <uint64_t>BREAKER_LOG)
        out = []
        while i < self.b.changes:
            c = self.b.log[i % BREAKER_LOG]
            out.append((schema.BREAKER.label(c.before), schema.BREAKER.label(c.after),
                        schema.BREAKER_CAUSE.label(c.cause)))
            i += 1
        return out
