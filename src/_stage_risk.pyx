"""The risk stage: intents in, orders with a token, or refused ones, out."""
from libc.stdint cimport int64_t
from libc.string cimport memset

from ._atomic cimport hp_load_acquire, hp_load_relaxed, hp_store_release
from ._board cimport Board
from ._clock cimport clock_now
from ._control cimport CONTROL_STAGES, Control, control_count, control_set, histogram_record
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._risk cimport risk_check, risk_mark, risk_order_event, risk_position
from ._schema cimport (
    HP_HISTOGRAM_RISK, HP_METRIC_ACK_EPOCH, HP_METRIC_APPROVED, HP_METRIC_CREDIT_STALLS,
    HP_METRIC_DENIED, HP_METRIC_RECORDS_IN, HP_REASON_HALTED, HP_REASON_NONE, HP_REASON_STORE_FULL,
    HP_RECORD_RISK_EVENT, HP_RECORD_VERDICT, HP_RISK_EVENT_HALT_SEEN, HP_RISK_EVENT_RESUME_SEEN,
    HP_RISK_EVENT_STORE_FULL, HP_RISK_EVENT_STORE_OK, hp_book_t, hp_intent_t, hp_order_event_t,
    hp_order_t, hp_position_t, hp_risk_event_t, hp_verdict_t)
from ._stage cimport hp_copy_words, hp_saturate, stage_end, store_credit, store_next, store_put

from hftpipe import schema

cdef int64_t SHOW_NS = 100_000_000      # between two writes to the board: they take the GIL
SHOWN = ("breaker", "cause", "losses", "day", "day_orders", "day_pnl", "equity", "peak", "drawdown",
         "latched")


cdef class RiskStage(Stage):
    """Every check on every intent; the only place that can make an order sendable.

    Parameters
    ----------
    intents, marks, order_events, positions : Ring
        Consumer ends, INTENT, BOOK, ORDER_EVENT, POSITION.
    orders : Ring
        Producer end, ORDER.
    risk : Risk
    """

    def __init__(self, intents, marks, order_events, positions, orders, Risk risk not None,
                 store=None, Control control=None, int index=3):
        self._setup("risk", control, index, store, schema.STREAM.RISK, schema.STORED_WIDE)
        self.intents = stage_end(self._keep, intents, schema.INTENT, False)
        self.marks = stage_end(self._keep, marks, schema.BOOK, False)
        self.order_events = stage_end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.positions = stage_end(self._keep, positions, schema.POSITION, False)
        self.orders = stage_end(self._keep, orders, schema.ORDER, True)
        self.risk = risk
        if control is not None:
            self.blocks = control.blocks

    @property
    def refusals(self):
        """Refused intents by reason."""
        counted = self.risk.counters()
        return {name.lower(): counted[name.lower()] for name, value, _ in schema.REASON.members
                if value}

    cdef bint _watch(self) noexcept nogil:
        """Acknowledge the halt epoch and record changes of the gate."""
        cdef uint64_t halt, armed
        cdef int i
        cdef hp_risk_event_t e
        cdef bint full = False
        cdef bint is_armed
        if self.header == NULL:
            return False
        armed = hp_load_acquire(&self.header.armed_epoch)
        halt = hp_load_acquire(&self.header.halt_epoch)
        is_armed = armed != 0 and armed == halt
        for i in range(CONTROL_STAGES):
            full |= hp_load_relaxed(&self.blocks[i].store_full) != 0
        if halt != self.block.ack_epoch:
            hp_store_release(&self.block.ack_epoch, halt)
            control_set(self.block, HP_METRIC_ACK_EPOCH, halt)
        if halt == self.halt_seen and is_armed == self.armed_seen and full == self.store_full_seen:
            return False
        if store_credit(&self.store) == 0:
            return False
        memset(&e, 0, sizeof(e))
        e.halt_epoch, e.armed_epoch = halt, armed
        if full != self.store_full_seen:
            e.kind = HP_RISK_EVENT_STORE_FULL if full else HP_RISK_EVENT_STORE_OK
            e.reason = HP_REASON_STORE_FULL if full else HP_REASON_NONE
            self.store_full_seen = full
        else:
            e.kind = HP_RISK_EVENT_RESUME_SEEN if is_armed else HP_RISK_EVENT_HALT_SEEN
            e.reason = HP_REASON_NONE if is_armed else HP_REASON_HALTED
            self.halt_seen, self.armed_seen = halt, is_armed
        e.event = store_next(&self.store)
        store_put(&self.store, HP_RECORD_RISK_EVENT, &e, 1, 1, 0, clock_now(), 0, 0, 0)
        return True

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0
        cdef const hp_order_event_t *e
        cdef const hp_position_t *p
        cdef const hp_book_t *b
        cdef const hp_intent_t *i
        cdef hp_order_t order
        cdef hp_verdict_t verdict
        cdef hp_order_t *slot
        cdef int64_t now
        cdef int reason
        self._watch()
        while True:                             # these need no credit: drain them first
            e = <const hp_order_event_t *>ring_peek(self.order_events)
            if e == NULL:
                break
            risk_order_event(&self.risk.r, e)
            ring_release(self.order_events)
            done += 1
        while True:
            p = <const hp_position_t *>ring_peek(self.positions)
            if p == NULL:
                break
            risk_position(&self.risk.r, p)
            ring_release(self.positions)
            done += 1
        while True:
            b = <const hp_book_t *>ring_peek(self.marks)
            if b == NULL:
                break
            risk_mark(&self.risk.r, b)
            ring_release(self.marks)
            done += 1
        self.failed |= (self.order_events.broken | self.positions.broken | self.marks.broken
                        | self.intents.broken) != 0
        while done < limit and not self.failed:
            i = <const hp_intent_t *>ring_peek(self.intents)
            if i == NULL:
                break
            if store_credit(&self.store) == 0 or ring_credit(self.orders, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            now = clock_now()
            memset(&verdict, 0, sizeof(verdict))
            memset(&order, 0, sizeof(order))
            reason = risk_check(&self.risk.r, i, now, &verdict, &order)
            now = clock_now()
            order.hop = hp_saturate(now - i.ts_recv)
            store_put(&self.store, HP_RECORD_VERDICT, &verdict, 1, 1, i.event, now,
                      i.ts_recv + i.hop, i.instrument, 0)
            slot = <hp_order_t *>ring_claim(self.orders)
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>&order, 1, 8)
            ring_publish(self.orders)
            histogram_record(&self.block.histograms[HP_HISTOGRAM_RISK],
                             now - i.ts_recv - i.hop)
            control_count(self.block, HP_METRIC_DENIED if reason else HP_METRIC_APPROVED, 1)
            ring_release(self.intents)
            done += 1
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.intents)
        ring_flush(self.marks)
        ring_flush(self.order_events)
        ring_flush(self.positions)

    def show_on(self, Board board not None):
        """Write limits, their use and the state of the gate on *board* from now on."""
        self.board = board

    cdef object maintain(self):
        cdef int64_t now
        if self.board is None:
            return
        now = clock_now()
        if now - self.shown < SHOW_NS:
            return
        self.shown = now
        state = self.risk.state() if hasattr(self.risk, "state") else {}
        self.board.put_gate(now, [(use.limit, use.use) for use in self.risk.limits_use(now)],
                            **{name: state[name] for name in SHOWN if name in state})
        if hasattr(self.risk, "standing"):
            for i in range(self.board.instruments):
                self.board.put_flags(i, self.risk.standing(i))
