# Compiled by bench_risk.py as a user's own module would be: it sees public names only.
"""Time risk_check with reserve, release and counters, one order at a time."""
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from hftpipe._clock cimport hp_read_monotonic
from hftpipe._figure cimport risk_figure
from hftpipe._gate cimport Risk
from hftpipe._risk cimport risk_check, risk_mark, risk_order_event, risk_t
from hftpipe._schema cimport (
    HP_FIGURE_VAR_95, HP_FIGURE_VAR_99, HP_ORDER_EVENT_CANCELED, HP_ORDER_EVENT_FILL, hp_book_t,
    hp_figure_t, hp_intent_t, hp_order_event_t, hp_order_t, hp_risk_event_t, hp_verdict_t)

cdef enum:
    WINDOW = 1024               # orders between approval and answer; a power of two

cdef int64_t HOUR = 3600000000000   # ns


cdef struct window_t:
    hp_order_t orders[WINDOW]
    uint64_t approved
    uint64_t ended
    int reason                  # of the last check


cdef inline void step(risk_t *r, window_t *w, const hp_intent_t *i, int64_t now,
                      hp_verdict_t *v) noexcept nogil:
    """One check, after the last word on the order approved WINDOW approvals before.

    Every other order fills, the rest are cancelled; as many answers as approvals.
    """
    cdef hp_order_t *o = &w.orders[w.approved & (WINDOW - 1)]
    cdef hp_order_event_t e
    if w.reason == 0 and w.approved >= WINDOW:
        w.ended += 1
        memset(&e, 0, sizeof(e))
        e.event = <uint64_t>5 << 56 | w.ended
        e.order, e.instrument, e.side = o.order, o.instrument, o.side
        e.qty, e.price, e.kind = o.qty, o.price, HP_ORDER_EVENT_CANCELED
        if w.ended & 1:
            e.kind, e.cum_qty = HP_ORDER_EVENT_FILL, o.qty
        risk_order_event(r, &e, now)
    w.reason = risk_check(r, i, now, v, o)
    w.approved += w.reason == 0


cdef void renew(risk_t *r, const window_t *w, int64_t now, int64_t n) noexcept nogil:
    """Each 1,024 steps values at risk that know all fills so far, as the analyst sends them."""
    cdef hp_figure_t f
    cdef hp_risk_event_t event
    cdef int k
    if n & 1023 or not r.at_risk:
        return
    memset(&f, 0, sizeof(f))
    f.ts_computed, f.until, f.basis = now, now + HOUR, <uint64_t>5 << 56 | w.ended
    for k in range(2):
        f.kind, f.value = HP_FIGURE_VAR_99 if k else HP_FIGURE_VAR_95, 1000000000000000
        risk_figure(r, &f, now, &event)


def run(Risk risk, const unsigned char[::1] intents, int64_t now, int64_t[::1] elapsed,
        unsigned char[::1] reasons, int64_t pace):
    """Time each step by itself; two clock reads apart, so one read is included.

    The intent is read before: the stage has its line from the look whether it is there.
    """
    cdef const hp_intent_t *i = <const hp_intent_t *>&intents[0]
    cdef hp_intent_t asked
    cdef int64_t n, count = elapsed.shape[0], start
    cdef hp_verdict_t v
    cdef window_t w
    memset(&w, 0, sizeof(w))
    w.reason = -1
    memset(&v, 0, sizeof(v))
    with nogil:
        for n in range(count):
            renew(&risk.r, &w, now + n * pace, n)
            asked = i[n]
            start = hp_read_monotonic()
            step(&risk.r, &w, &asked, now + n * pace, &v)
            elapsed[n] = hp_read_monotonic() - start
            reasons[n] = <unsigned char>w.reason


def empty(int64_t[::1] elapsed):
    """The same loop around nothing: what the clock itself costs."""
    cdef int64_t n, count = elapsed.shape[0], start
    with nogil:
        for n in range(count):
            start = hp_read_monotonic()
            elapsed[n] = hp_read_monotonic() - start


def bulk(Risk risk, const unsigned char[::1] intents, int64_t now, int64_t pace):
    """Total ns of the same steps without a clock in between."""
    cdef const hp_intent_t *i = <const hp_intent_t *>&intents[0]
    cdef int64_t n, count = intents.shape[0] // <int64_t>sizeof(hp_intent_t), start
    cdef hp_verdict_t v
    cdef window_t w
    memset(&w, 0, sizeof(w))
    w.reason = -1
    memset(&v, 0, sizeof(v))
    with nogil:
        start = hp_read_monotonic()
        for n in range(count):
            renew(&risk.r, &w, now + n * pace, n)
            step(&risk.r, &w, &i[n], now + n * pace, &v)
        start = hp_read_monotonic() - start
    return start


def marks(Risk risk, const unsigned char[::1] books):
    """Total ns of risk_mark over these books."""
    cdef const hp_book_t *b = <const hp_book_t *>&books[0]
    cdef int64_t n, count = books.shape[0] // <int64_t>sizeof(hp_book_t), start
    with nogil:
        start = hp_read_monotonic()
        for n in range(count):
            risk_mark(&risk.r, &b[n])
        start = hp_read_monotonic() - start
    return start
