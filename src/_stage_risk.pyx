"""The risk stage: intents in, orders with a token, or refused ones, out."""
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ._atomic cimport hp_load_acquire, hp_load_relaxed, hp_store_release
from ._board cimport Board
from ._breaker cimport BREAKER_LOG, breaker_change_t, breaker_tick
from ._clock cimport clock_now
from ._control cimport CONTROL_STAGES, Control, control_count, control_set, histogram_record
from ._fault cimport hp_fault
from ._figure cimport risk_figure, risk_position
from ._margin cimport risk_margins
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._risk cimport risk_check, risk_mark, risk_order_event, risk_t, risk_withdraw
from ._schema cimport (
    HP_ACTION_CANCEL, HP_BREAKER_CLOSED, HP_BREAKER_OPEN, HP_HISTOGRAM_RISK,
    HP_LIMIT_DRAWDOWN_ACT_BPS, HP_LIMIT_DRAWDOWN_HALT_BPS, HP_LIMIT_DRAWDOWN_WARN_BPS,
    HP_METRIC_ACK_EPOCH, HP_METRIC_APPROVED, HP_METRIC_CREDIT_STALLS, HP_METRIC_DENIED,
    HP_METRIC_RECORDS_IN, HP_METRIC_UNSETTLED, HP_REASON_BREAKER, HP_REASON_DRAWDOWN,
    HP_REASON_HALTED, HP_REASON_NONE, HP_REASON_REPEATED, HP_REASON_STORE_FULL, HP_RECORD_CHECKS,
    HP_RECORD_RISK_EVENT, HP_RECORD_VERDICT, HP_RISK_EVENT_BREAKER, HP_RISK_EVENT_CANCEL,
    HP_RISK_EVENT_DAY, HP_RISK_EVENT_DRAWDOWN, HP_RISK_EVENT_HALT_SEEN, HP_RISK_EVENT_LATCHED,
    HP_RISK_EVENT_RESUME_SEEN, HP_RISK_EVENT_STORE_FULL, HP_RISK_EVENT_STORE_OK,
    HP_TURN_FLAG_INTENT, HP_TURN_FLAG_STORED, HP_TURN_FLAG_UNSETTLED, HP_TURN_GATE, hp_book_t,
    hp_checks_t, hp_figure_t, hp_intent_t, hp_order_event_t, hp_order_t, hp_position_t,
    hp_risk_event_t, hp_verdict_t)
from ._stage cimport (
    hp_copy_words, hp_saturate, stage_end, store_credit, store_next, store_put, turn_at, turn_new,
    turn_t, turns_end, turns_flush, turns_rest)

from hftpipe import schema

cdef extern from *:
    """
    static inline unsigned hp_lowest(unsigned long long v) { return __builtin_ctzll(v); }
    """
    unsigned int hp_lowest(uint64_t v) noexcept nogil

cdef enum:
    MOST = 255                  # of each link in one turn, marks aside
    MOST_MARKS = 4096

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
    figures : sequence of Ring, optional
        Consumer ends, FIGURE: the analyst's and the operator's.
    updates : int
        Stage whose metric `unsettled` lets only cancels pass; -1 = none.
    """

    def __init__(self, intents, marks, order_events, positions, orders, Risk risk not None,
                 store=None, Control control=None, int index=3, figures=(), int updates=-1):
        self._setup("risk", control, index, store, schema.STREAM.RISK, schema.STORED_WIDE)
        self.intents = stage_end(self._keep, intents, schema.INTENT, False)
        self.marks = stage_end(self._keep, marks, schema.BOOK, False)
        self.order_events = stage_end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.positions = stage_end(self._keep, positions, schema.POSITION, False)
        self.orders = stage_end(self._keep, orders, schema.ORDER, True)
        if len(figures) > RISK_FIGURES:
            raise ValueError(f"at most {RISK_FIGURES} links of figures, were {len(figures)}")
        for ring in figures:
            self.figures[self.figure_links] = stage_end(self._keep, ring, schema.FIGURE, False)
            self.figure_links += 1
        self.risk = risk
        self.withdraw_at = -1
        self.day_seen = risk.r.day
        if control is not None:
            self.blocks = control.blocks
        self.updates = updates if control is not None else -1

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
        self.halt_read, self.armed_read = halt, armed
        is_armed = armed != 0 and armed == halt
        for i in range(CONTROL_STAGES):
            full |= hp_load_relaxed(&self.blocks[i].store_full) != 0
        if self.updates >= 0:
            self.risk.r.unsettled = hp_load_acquire(
                &self.blocks[self.updates].counters[HP_METRIC_UNSETTLED]) != 0
        if halt != self.block.ack_epoch:
            hp_store_release(&self.block.ack_epoch, halt)
            control_set(self.block, HP_METRIC_ACK_EPOCH, halt)
        if halt == self.halt_seen and is_armed == self.armed_seen and full == self.store_full_seen:
            return False
        if store_credit(&self.store) == 0:
            return False
        memset(&e, 0, sizeof(e))
        if full != self.store_full_seen:
            e.kind = HP_RISK_EVENT_STORE_FULL if full else HP_RISK_EVENT_STORE_OK
            e.reason = HP_REASON_STORE_FULL if full else HP_REASON_NONE
            self.store_full_seen = full
        else:
            e.kind = HP_RISK_EVENT_RESUME_SEEN if is_armed else HP_RISK_EVENT_HALT_SEEN
            e.reason = HP_REASON_NONE if is_armed else HP_REASON_HALTED
            self.halt_seen, self.armed_seen = halt, is_armed
        self._tell(&e, 0, clock_now())
        return True

    cdef void _tell(self, hp_risk_event_t *e, uint64_t cause, int64_t now) noexcept nogil:
        """Record something that happened to the gate; the caller has credit."""
        e.halt_epoch, e.armed_epoch = self.halt_read, self.armed_read
        e.cause, e.event = cause, store_next(&self.store)
        store_put(&self.store, HP_RECORD_RISK_EVENT, e, 1, 1, cause, now, 0, e.instrument, 0)

    cdef void _changes(self, int64_t now) noexcept nogil:
        """Record what the breaker, the drawdown and the strategies' counts came to."""
        cdef risk_t *r = &self.risk.r
        cdef const breaker_change_t *c
        cdef hp_risk_event_t e
        cdef uint64_t fresh
        cdef int i
        while self.changes_seen < r.breaker.changes and store_credit(&self.store):
            # More than the log holds at once cannot be; the oldest would be missing.
            self.changes_seen = max(self.changes_seen, r.breaker.changes - min(
                r.breaker.changes, <uint64_t>BREAKER_LOG))
            c = &r.breaker.log[self.changes_seen % BREAKER_LOG]
            self.changes_seen += 1
            memset(&e, 0, sizeof(e))
            e.kind, e.reason = HP_RISK_EVENT_BREAKER, HP_REASON_BREAKER
            e.limit, e.value, e.detail = c.before, c.after, c.cause
            if c.after == HP_BREAKER_CLOSED:
                e.reason = HP_REASON_NONE
            elif c.after == HP_BREAKER_OPEN:
                self.withdraw_at = 0            # and what is on its way is taken back
            self._tell(&e, 0, c.at)
        if r.day != self.day_seen and store_credit(&self.store):
            memset(&e, 0, sizeof(e))
            e.kind, e.value, e.limit = HP_RISK_EVENT_DAY, r.day, self.day_seen
            self._tell(&e, 0, now)
            self.day_seen = r.day
        if r.level != self.level_seen and store_credit(&self.store):
            if r.level > self.level_seen:
                memset(&e, 0, sizeof(e))
                e.kind, e.reason = HP_RISK_EVENT_DRAWDOWN, HP_REASON_DRAWDOWN
                e.detail, e.value = r.level, r.drawdown
                e.limit = r.limit[HP_LIMIT_DRAWDOWN_HALT_BPS if r.level == 3 else
                                  HP_LIMIT_DRAWDOWN_ACT_BPS if r.level == 2 else
                                  HP_LIMIT_DRAWDOWN_WARN_BPS]
                self._tell(&e, 0, now)
            self.level_seen = r.level
        for i in range(4):
            fresh = r.latched[i] & ~self.latched_seen[i]
            self.latched_seen[i] &= r.latched[i]
            while fresh and store_credit(&self.store):
                memset(&e, 0, sizeof(e))
                e.kind, e.reason = HP_RISK_EVENT_LATCHED, HP_REASON_REPEATED
                e.detail = 64 * i + hp_lowest(fresh)
                e.value = r.executions[e.detail]
                self._tell(&e, 0, now)
                self.latched_seen[i] |= fresh & -fresh
                fresh &= fresh - 1

    cdef uint16_t _withdraw(self, int64_t now, uint16_t most) noexcept nogil:
        """Cancel open orders, but for those that reduce a position: the breaker has opened.

        Looks at *most* orders; at how many it did.
        """
        cdef uint16_t looked = 0
        cdef hp_risk_event_t e
        cdef hp_order_t *slot
        cdef hp_order_t order
        while self.withdraw_at >= 0 and looked < most and store_credit(
                &self.store) > 1 and ring_credit(self.orders, 1):
            if <uint64_t>self.withdraw_at > self.risk.r.mask:
                self.withdraw_at = -1
                break
            memset(&order, 0, sizeof(order))
            if risk_withdraw(&self.risk.r, <uint64_t>self.withdraw_at, &order):
                memset(&e, 0, sizeof(e))
                e.kind, e.reason = HP_RISK_EVENT_CANCEL, HP_REASON_BREAKER
                e.instrument, e.value = order.instrument, order.qty
                self._tell(&e, order.order, now)
                order.cause, order.ts_recv = e.event, now
                slot = <hp_order_t *>ring_claim(self.orders)
                hp_copy_words(<uint64_t *>slot, <const uint64_t *>&order, 1, 16)
                ring_publish(self.orders)
            self.withdraw_at += 1
            looked += 1
        return looked

    cdef uint8_t _outside(self, int i, int64_t now) noexcept nogil:
        """Take figures of one link; each may have to be recorded."""
        cdef uint8_t done = 0
        cdef const hp_figure_t *f
        cdef hp_risk_event_t e
        cdef uint64_t cause
        while done < MOST and store_credit(&self.store):
            f = <const hp_figure_t *>ring_peek(self.figures[i])
            if f == NULL:
                break
            cause = f.event
            if risk_figure(&self.risk.r, f, now, &e):
                self._tell(&e, cause, now)
            ring_release(self.figures[i])
            done += 1
        self.failed |= self.figures[i].broken != 0
        return done

    cdef void _judge(self, const hp_intent_t *i, int64_t now) noexcept nogil:
        """Judge one intent and pass on what came of it; the caller has credit."""
        cdef hp_order_t order
        cdef hp_verdict_t verdict
        cdef hp_checks_t checks
        cdef hp_order_t *slot
        cdef risk_t *r = &self.risk.r
        cdef int reason
        cdef int64_t after
        memset(&verdict, 0, sizeof(verdict))
        memset(&order, 0, sizeof(order))
        reason = risk_check(r, i, now, &verdict, &order)
        hp_fault("risk.reserved")
        after = clock_now()
        order.hop = hp_saturate(after - i.ts_recv)
        store_put(&self.store, HP_RECORD_VERDICT, &verdict, 1, 1, i.event, after,
                  i.ts_recv + i.hop, i.instrument, 0)
        hp_fault("risk.recorded")
        slot = <hp_order_t *>ring_claim(self.orders)
        hp_copy_words(<uint64_t *>slot, <const uint64_t *>&order, 1, 16)
        ring_publish(self.orders)
        hp_fault("risk.passed")
        histogram_record(&self.block.histograms[HP_HISTOGRAM_RISK], after - i.ts_recv - i.hop)
        control_count(self.block, HP_METRIC_DENIED if reason else HP_METRIC_APPROVED, 1)
        if verdict.action != HP_ACTION_CANCEL:      # the order is on its way: there is time
            risk_margins(r, i, &verdict, now, &checks)
            store_put(&self.store, HP_RECORD_CHECKS, &checks, 2, 1, i.event, after, 0,
                      i.instrument, 0)

    cdef void _turned(self, const turn_t *turn, int64_t now, uint64_t seq) noexcept nogil:
        """Note a turn (R5); *seq* is what was stored before it."""
        cdef turn_t *t = turn_at(&self.turns, max(self.turns.count, 1) - 1)
        cdef bint stored = self.store.seq != seq
        cdef bint plain = (<const uint32_t *>turn.took)[0] == 0 and not (
            turn.rest | turn.flags & HP_TURN_FLAG_INTENT) and not stored
        cdef bint unsettled = turn.flags & HP_TURN_FLAG_UNSETTLED
        if plain and unsettled == self.unsettled_told:
            if turn.many == 0:
                return
            # Marks alone do not ask for the time: turns of nothing else are one.
            if (self.turns.count and (<uint32_t *>t.took)[0] == 0 and t.rest == 0
                    and t.flags == turn.flags and t.many <= UINT32_MAX - turn.many):
                t.many += turn.many
                return
        t = turn_new(&self.turns, &self.store, HP_TURN_GATE, now)
        (<uint32_t *>t.took)[0] = (<const uint32_t *>turn.took)[0]
        t.many, t.flags, t.rest = turn.many, turn.flags, turn.rest
        self.unsettled_told = unsettled
        if stored:
            t.flags |= HP_TURN_FLAG_STORED
            turns_flush(&self.turns, &self.store)

    cdef uint64_t turn(self, uint16_t withdrawn, bint *judged) noexcept nogil:
        cdef uint64_t done, seq = self.store.seq
        cdef const hp_order_event_t *e
        cdef const hp_position_t *p
        cdef const hp_book_t *b
        cdef const hp_intent_t *i
        cdef turn_t turn
        cdef int64_t now
        cdef int k
        cdef risk_t *r = &self.risk.r
        judged[0] = False
        memset(&turn, 0, sizeof(turn))
        if store_credit(&self.store) == 0:      # R1: that something was taken is an event, too
            self._watch()
            control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
            return 0
        self._watch()
        now = clock_now()                       # the one reading that decides in this turn
        while turn.took[0] < MOST:
            e = <const hp_order_event_t *>ring_peek(self.order_events)
            if e == NULL:
                break
            risk_order_event(r, e, now)
            ring_release(self.order_events)
            turn.took[0] += 1
        while turn.took[1] < MOST:
            p = <const hp_position_t *>ring_peek(self.positions)
            if p == NULL:
                break
            risk_position(r, p, now)
            ring_release(self.positions)
            turn.took[1] += 1
        while turn.many < MOST_MARKS:
            b = <const hp_book_t *>ring_peek(self.marks)
            if b == NULL:
                break
            risk_mark(r, b)
            ring_release(self.marks)
            turn.many += 1
        for k in range(self.figure_links):
            turn.took[2 + k] = self._outside(k, now)
        breaker_tick(&r.breaker, now)
        if r.halting:                           # a drawdown: the level is told below
            r.halting = 0
            self._halt()
            self._watch()
        self._changes(now)
        if self.withdraw_at >= 0:
            turn.rest = self._withdraw(now, withdrawn)
        self.failed |= (self.order_events.broken | self.positions.broken | self.marks.broken
                        | self.intents.broken) != 0
        i = <const hp_intent_t *>ring_peek(self.intents)
        if i != NULL and not self.failed:
            if store_credit(&self.store) == 0 or ring_credit(self.orders, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
            else:
                self._judge(i, now)
                ring_release(self.intents)
                judged[0] = True
                turn.flags = HP_TURN_FLAG_INTENT
        if r.unsettled:
            turn.flags |= HP_TURN_FLAG_UNSETTLED
        self._turned(&turn, now, seq)
        done = <uint64_t>turn.many + judged[0]
        for k in range(4):
            done += turn.took[k]
        return done

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0
        cdef bint more = True
        while more and done < limit:
            done += self.turn(<uint16_t>0xffff, &more)
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        cdef int i
        ring_flush(self.intents)
        ring_flush(self.marks)
        ring_flush(self.order_events)
        ring_flush(self.positions)
        for i in range(self.figure_links):
            ring_flush(self.figures[i])
        turns_rest(&self.turns, &self.store, clock_now())

    cdef bint finish(self) noexcept nogil:
        return turns_end(&self.turns, &self.store)

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
        state = self.risk.state()
        self.board.put_gate(now, [(use.limit, use.use) for use in self.risk.limits_use(now)],
                            **{name: state[name] for name in SHOWN})
        for i in range(self.board.instruments):
            self.board.put_flags(i, self.risk.standing(i))
