"""The gateway stage: orders to the venue, its answers to everybody."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ._atomic cimport hp_load_acquire, hp_load_relaxed, hp_store_release
from ._clock cimport clock_now
from ._control cimport (
    CONTROL_STREAMS, Control, control_armed, control_count, control_set, histogram_record)
from ._fault cimport hp_fault
from ._order cimport (
    order_apply, order_ended, order_find, order_left, order_new, order_step, order_t)
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._schema cimport (
    HP_ACTION_CANCEL, HP_ACTION_DENIED, HP_ACTION_NEW, HP_HISTOGRAM_GATEWAY,
    HP_HISTOGRAM_ORDER_TO_ACK, HP_HISTOGRAM_ORDER_TO_FILL, HP_HISTOGRAM_SEND,
    HP_HISTOGRAM_TICK_TO_ORDER, HP_METRIC_ACK_EPOCH, HP_METRIC_CREDIT_STALLS, HP_METRIC_DROPS,
    HP_METRIC_EVENTS_STORED, HP_METRIC_FILLS, HP_METRIC_ORDERS_DROPPED, HP_METRIC_ORDERS_OPEN,
    HP_METRIC_ORDERS_REJECTED, HP_METRIC_ORDERS_SENT, HP_METRIC_ORDERS_UNKNOWN,
    HP_METRIC_RECORDS_IN, HP_ORDER_EVENT_CANCEL_REJECTED, HP_ORDER_EVENT_CANCEL_SENT,
    HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_PARTIAL_FILL,
    HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_SENT, HP_ORDER_EVENT_UNKNOWN, HP_ORDER_STATE_DROPPED,
    HP_ORDER_STATE_FREE, HP_ORDER_STATE_SENT, HP_REASON_BUSY, HP_REASON_DISCONNECTED,
    HP_REASON_EXPIRED, HP_REASON_HALTED, HP_REASON_LIMITS, HP_REASON_NONE, HP_REASON_TABLE_FULL,
    HP_REASON_TOKEN, HP_REASON_VENUE_ACCOUNT, HP_RECORD_ORDER_EVENT, HP_RECORD_UPDATE, HP_SEQ_BITS,
    HP_STREAM_RISK, HP_TURN_ANSWER, HP_TURN_FLAG_ARMED, HP_TURN_FLAG_WAITED, HP_TURN_ORDER,
    HP_TURN_UPDATE)
from ._stage cimport (
    hp_copy_words, stage_end, store_credit, store_next, store_put, turn_new, turn_t, turns_end,
    turns_flush, turns_rest)
from ._token cimport token_of
from ._wire cimport WIRE_BUSY, WIRE_SENT

from hftpipe import schema

cdef enum:
    LIMITS_BACK = 16            # versions of the limits whose orders are told from foreign ones


cdef class GatewayStage(Stage):
    """Sole owner of order state; tells signal, risk and ledger every step.

    Parameters
    ----------
    orders, updates : Ring
        Consumer ends, ORDER and UPDATE.
    outputs : sequence of Ring
        Producer ends, ORDER_EVENT.
    table : Orders
    wire : Wire
        The venue.
    max_age : int, ns
        An order older than this, counted from its tick, is dropped.
    max_unknown : int
        With more orders without an answer than this, trading halts; 0 = no limit.
    durable : int, default -1
        Block of the risk stage: an order is sent when the journal has its intent and its verdict
        on disk (``durability = "host"``).  -1: as soon as they are in the store links.
    """

    def __init__(self, orders, updates, outputs, Orders table not None, Wire wire not None,
                 store=None, Control control=None, int index=4, int64_t max_age=1_000_000_000,
                 uint64_t max_unknown=0, int durable=-1):
        self._setup("gateway", control, index, store, schema.STREAM.GATEWAY, schema.STORED_WIDE)
        self.orders = stage_end(self._keep, orders, schema.ORDER, False)
        self.updates = stage_end(self._keep, updates, schema.UPDATE, False)
        if len(outputs) > STAGE_OUTPUTS:
            raise ValueError(f"at most {STAGE_OUTPUTS} readers, were {len(outputs)}")
        self.output_count = len(outputs)
        for i, ring in enumerate(outputs):
            self.outputs[i] = stage_end(self._keep, ring, schema.ORDER_EVENT, True)
        self.table, self.wire, self.max_age = table, wire, max_age
        self.max_unknown = max_unknown
        if durable >= 0:
            if control is None:
                raise ValueError("an order can wait for the disk only with a control page")
            self.risk = control.block(durable)

    cdef uint64_t _credit(self) noexcept nogil:
        """Order events there is room for on every output."""
        cdef uint64_t least = store_credit(&self.store), room
        cdef int i
        for i in range(self.output_count):
            room = ring_credit(self.outputs[i], 4)
            if room < least:
                least = room
        return least

    cdef void _emit(self, hp_order_event_t *e, int64_t ts, int64_t ts_in) noexcept nogil:
        """Record one step and tell everybody."""
        cdef int i
        cdef hp_order_event_t *slot
        e.event = store_next(&self.store)
        store_put(&self.store, HP_RECORD_ORDER_EVENT, e, 1, 1, e.order, ts, ts_in,
                  e.instrument, 0)
        for i in range(self.output_count):
            slot = <hp_order_event_t *>ring_claim(self.outputs[i])
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>e, 1, 8)
            ring_publish(self.outputs[i])
        if e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL:
            control_count(self.block, HP_METRIC_FILLS, 1)
        elif e.kind == HP_ORDER_EVENT_REJECTED:
            control_count(self.block, HP_METRIC_ORDERS_REJECTED, 1)
        elif e.kind == HP_ORDER_EVENT_DROPPED:
            control_count(self.block, HP_METRIC_ORDERS_DROPPED, 1)
        elif e.kind == HP_ORDER_EVENT_SENT:
            control_count(self.block, HP_METRIC_ORDERS_SENT, 1)
        control_set(self.block, HP_METRIC_ORDERS_OPEN, self.table.o.live)
        control_set(self.block, HP_METRIC_ORDERS_UNKNOWN, self.table.o.unknown)

    cdef void _answer(self, const hp_update_t *u) noexcept nogil:
        """One word of the venue about an order; the caller has credit for two events."""
        cdef hp_order_event_t steps[2]
        cdef hp_order_event_t *e = &steps[0]
        cdef int count
        cdef order_t *order = order_find(&self.table.o, u.order)
        cdef int64_t now
        cdef uint8_t before
        cdef uint64_t over = self.table.o.overfills, orphans = self.table.o.orphan_fills
        before = order.state if order != NULL else <uint8_t>HP_ORDER_STATE_FREE
        hp_fault("gateway.heard")
        count = order_apply(&self.table.o, u, steps)
        if not count:
            # Fills of orders that are not this run's (order 0) are the reconciliation's; one of
            # an order of ours that we do not know, or beyond its quantity, is a broken position.
            if order == NULL:
                control_count(self.block, HP_METRIC_DROPS, 1)
            if self.table.o.overfills > over or (
                    u.order and self.table.o.orphan_fills > orphans):
                self._halt()
            return
        now = clock_now()
        if before == HP_ORDER_STATE_SENT and order.ts_sent:
            histogram_record(&self.block.histograms[HP_HISTOGRAM_ORDER_TO_ACK],
                             now - order.ts_sent)
        if ((e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL)
                and e.cum_qty == e.qty and order.ts_sent):
            histogram_record(&self.block.histograms[HP_HISTOGRAM_ORDER_TO_FILL],
                             now - order.ts_sent)
        hp_fault("gateway.applied")
        self._emit(e, now, u.ts_recv)
        if count == 2:
            self._emit(e + 1, now, u.ts_recv)
        hp_fault("gateway.told")
        if (self.max_unknown and e.kind == HP_ORDER_EVENT_UNKNOWN
                and self.table.o.unknown > self.max_unknown):
            self._halt()
        elif e.kind == HP_ORDER_EVENT_REJECTED and e.reason == HP_REASON_VENUE_ACCOUNT:
            self._halt()                        # every other order would be refused as well

    cdef void _refuse(self, const hp_order_t *o, uint8_t kind, uint8_t reason) noexcept nogil:
        """Tell everybody that *o* does not leave; it never was in the table."""
        cdef hp_order_event_t e
        memset(&e, 0, sizeof(e))
        e.order, e.cause, e.price, e.qty = o.order, o.cause, o.price, o.qty
        e.instrument, e.side, e.strategy, e.type = o.instrument, o.side, o.strategy, o.type
        e.kind, e.reason, e.state = kind, reason, HP_ORDER_STATE_DROPPED
        self._emit(&e, clock_now(), o.ts_recv + o.hop)

    cdef uint8_t _token(self, const hp_order_t *o) noexcept nogil:
        """Whether risk approved just this order, under the halt epoch and limits of now."""
        cdef uint64_t halt = self.halt, version = hp_load_acquire(&self.header.limits_version)
        cdef uint64_t old
        self.version = version
        if o.token == token_of(
                self.header.token_key, o.order, o.price, o.qty, o.instrument, o.side, o.type,
                o.tif, o.action, halt, version, o.stop, o.trail, o.trail_share):
            return HP_REASON_NONE
        for old in range(version - min(version, <uint64_t>LIMITS_BACK), version):
            if o.token == token_of(
                    self.header.token_key, o.order, o.price, o.qty, o.instrument, o.side, o.type,
                    o.tif, o.action, halt, old, o.stop, o.trail, o.trail_share):
                return HP_REASON_LIMITS         # approved, but somebody changed a limit since
        # A halt and its resume between verdict and send change the epoch: refused too.
        return HP_REASON_TOKEN

    cdef bint _durable(self, const hp_order_t *o) noexcept nogil:
        """Whether what led to *o* is on disk, as far as it must be."""
        cdef uint64_t stream = o.order >> HP_SEQ_BITS
        if self.risk == NULL:
            return True
        if self.waiting != o.order:     # risk counts what it stores before it passes it on
            self.waiting = o.order
            self.verdict = hp_load_relaxed(&self.risk.counters[HP_METRIC_EVENTS_STORED])
        return (stream < CONTROL_STREAMS
                and hp_load_acquire(&self.header.durable[stream])
                >= o.order & (((<uint64_t>1) << HP_SEQ_BITS) - 1)
                and hp_load_acquire(&self.header.durable[HP_STREAM_RISK]) >= self.verdict)

    cdef int _order(self, const hp_order_t *o) noexcept nogil:
        """Send or refuse one order; 0 = not now."""
        cdef order_t *order
        cdef hp_order_event_t e
        cdef int64_t now = clock_now(), after
        cdef int rc
        cdef uint8_t reason = HP_REASON_NONE
        cdef uint8_t kind
        self.at, self.halt, self.version = now, 0, 0
        self.armed = self.waited = False
        self.said = -2
        if o.action == HP_ACTION_DENIED:
            self._refuse(o, HP_ORDER_EVENT_DENIED, o.reason)
            return 1
        if self.header != NULL:
            self.halt = hp_load_acquire(&self.header.halt_epoch)
            self.armed = control_armed(self.header)
            if o.action == HP_ACTION_NEW and not self.armed:
                reason = HP_REASON_HALTED
            else:
                reason = self._token(o)
        if now - o.ts_recv > self.max_age and o.action == HP_ACTION_NEW:
            reason = HP_REASON_EXPIRED if reason == HP_REASON_NONE else reason
        memset(&e, 0, sizeof(e))
        order = order_find(&self.table.o, o.order)
        if o.action == HP_ACTION_CANCEL:
            if order == NULL or order_ended(order):
                return 1
            if reason == HP_REASON_TOKEN or reason == HP_REASON_LIMITS:
                if order_step(&self.table.o, o.order, HP_ORDER_EVENT_CANCEL_REJECTED, reason, &e):
                    self._emit(&e, clock_now(), o.ts_recv + o.hop)
                return 1
            self.said = rc = self.wire.cancel(o.order, order.venue_id, order.venue_id_low, now)
            if rc == WIRE_BUSY and now - o.ts_recv <= self.max_age:
                return 0
            kind = (HP_ORDER_EVENT_CANCEL_SENT if rc == WIRE_SENT
                    else HP_ORDER_EVENT_CANCEL_REJECTED)
            if order_step(&self.table.o, o.order, kind, HP_REASON_NONE, &e):
                self._emit(&e, clock_now(), o.ts_recv + o.hop)
            return 1
        if reason == HP_REASON_NONE and not self._durable(o):
            return 0
        if order == NULL:
            if reason == HP_REASON_NONE:
                order = order_new(&self.table.o, o)
                if order == NULL:
                    reason = HP_REASON_TABLE_FULL
            if order == NULL:
                self._refuse(o, HP_ORDER_EVENT_DROPPED, reason)
                return 1
        else:
            self.waited = True
        if order_left(order):                           # a second time
            control_count(self.block, HP_METRIC_DROPS, 1)
            return 1
        if reason == HP_REASON_NONE:
            hp_fault("gateway.created")
            self.said = rc = self.wire.submit(o, now)
            if rc == WIRE_SENT:
                hp_fault("gateway.sent")
                after = clock_now()
                now = self.wire.handed if self.wire.handed else after
                order.ts_sent = now
                if order_step(&self.table.o, o.order, HP_ORDER_EVENT_SENT, 0, &e):
                    self._emit(&e, now, o.ts_recv + o.hop)
                hp_fault("gateway.recorded")
                histogram_record(&self.block.histograms[HP_HISTOGRAM_GATEWAY],
                                 now - o.ts_recv - o.hop)
                histogram_record(&self.block.histograms[HP_HISTOGRAM_TICK_TO_ORDER],
                                 now - o.ts_recv)
                histogram_record(&self.block.histograms[HP_HISTOGRAM_SEND], after - now)
                return 1
            if rc == WIRE_BUSY:
                # One that will be too old when the wire takes orders again must not keep the
                # cancels behind it waiting.
                if self.wire.held <= o.ts_recv + self.max_age:
                    return 0
                reason = HP_REASON_BUSY
            else:
                reason = HP_REASON_DISCONNECTED
        elif reason == HP_REASON_EXPIRED:
            reason = HP_REASON_BUSY                     # it grew old waiting for the wire
        if order_step(&self.table.o, o.order, HP_ORDER_EVENT_DROPPED, reason, &e):
            self._emit(&e, clock_now(), o.ts_recv + o.hop)
        return 1

    cdef void _ordered(self, uint64_t seq) noexcept nogil:
        """Note that an order was taken, and all that decided about it (R5)."""
        cdef bint stored = self.store.seq != seq
        cdef turn_t *turn = turn_new(&self.turns, &self.store, HP_TURN_ORDER, self.at)
        turn.many = <uint32_t>self.halt
        turn.took[0], turn.took[1] = <uint8_t>self.version, <uint8_t>(self.version >> 8)
        turn.took[2], turn.took[3] = <uint8_t>(self.version >> 16), <uint8_t>(self.version >> 24)
        turn.rest = <uint16_t>(self.said + 2)
        turn.flags = ((HP_TURN_FLAG_ARMED if self.armed else 0)
                      | (HP_TURN_FLAG_WAITED if self.waited else 0))
        if stored:
            turns_flush(&self.turns, &self.store)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0, halt, seq
        cdef const hp_update_t *u
        cdef const hp_order_t *o
        cdef hp_update_t answer
        cdef int rc
        cdef bint stored
        if self.header != NULL:
            halt = hp_load_acquire(&self.header.halt_epoch)
            if halt != self.block.ack_epoch:
                hp_store_release(&self.block.ack_epoch, halt)
                control_set(self.block, HP_METRIC_ACK_EPOCH, halt)
        while done < limit:                     # orders first: they are what is waited for
            o = <const hp_order_t *>ring_peek(self.orders)
            if o == NULL:
                self.failed |= self.orders.broken != 0
                break
            if self._credit() < 2:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            seq = self.store.seq
            if not self._order(o):
                break
            self._ordered(seq)
            ring_release(self.orders)
            done += 1
        while done < limit and self._credit() >= 2:
            rc = self.wire.poll(&answer, clock_now())
            if rc < 0:
                self.failed = 1
            if rc <= 0:
                break
            answer.event = store_next(&self.store)
            store_put(&self.store, HP_RECORD_UPDATE, &answer, 2, 1, answer.order, clock_now(),
                      answer.ts_recv, answer.instrument, 0)
            self._answer(&answer)
            turn_new(&self.turns, &self.store, HP_TURN_ANSWER, clock_now())
            turns_flush(&self.turns, &self.store)
            done += 1
        while done < limit:
            u = <const hp_update_t *>ring_peek(self.updates)
            if u == NULL:
                self.failed |= self.updates.broken != 0
                break
            if self._credit() < 2:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            seq = self.store.seq
            self._answer(u)
            stored = self.store.seq != seq
            turn_new(&self.turns, &self.store, HP_TURN_UPDATE, max(self.turns.last, u.ts_recv))
            if stored:
                turns_flush(&self.turns, &self.store)
            ring_release(self.updates)
            done += 1
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.orders)
        ring_flush(self.updates)
        turns_rest(&self.turns, &self.store, clock_now())

    cdef bint finish(self) noexcept nogil:
        return turns_end(&self.turns, &self.store)

    cdef bint pending(self) noexcept nogil:
        return self.table.o.live > self.table.o.unknown

    cdef object maintain(self):
        maintain = getattr(self.wire, "maintain", None)
        if maintain is not None:
            maintain()
        if self.failed and self.wire.error is not None:
            self.error = self.wire.error
