"""Order state machine; what it guarantees is in ``_order.pxd``."""
cimport cython
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ._index cimport (
    hp_entries_t, hp_index_free, hp_index_init, hp_index_next, hp_index_put, hp_index_remove,
    hp_index_tag, hp_index_walk)
from ._memory cimport hp_lines
from ._schema cimport (
    HP_ORDER_EVENT_ACKED, HP_ORDER_EVENT_CANCEL_REJECTED, HP_ORDER_EVENT_CANCEL_SENT,
    HP_ORDER_EVENT_CANCELED, HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED,
    HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_FILL,
    HP_ORDER_EVENT_PARTIAL_FILL, HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_REPLACED,
    HP_ORDER_EVENT_SENT, HP_ORDER_EVENT_UNKNOWN, HP_ORDER_STATE_CANCELED,
    HP_ORDER_STATE_CREATED, HP_ORDER_STATE_DROPPED, HP_ORDER_STATE_EXPIRED,
    HP_ORDER_STATE_FILLED, HP_ORDER_STATE_OPEN,
    HP_ORDER_STATE_PARTIAL, HP_ORDER_STATE_PENDING_CANCEL, HP_ORDER_STATE_REJECTED,
    HP_ORDER_STATE_SENT, HP_ORDER_STATE_UNKNOWN, HP_REASON_VENUE, HP_UPDATE_FLAG_RECONCILED)

import numpy

from hftpipe import schema


# ---------------------------------------------------------------- executions seen

cdef inline uint32_t execution_tag(uint64_t order, uint64_t high, uint64_t low) noexcept nogil:
    return hp_index_tag(order ^ (high << 23 | high >> 41) ^ (low * 0xC2B2AE3D27D4EB4FULL))


cdef inline bint execution_seen(const orders_t *o, uint64_t order, uint64_t high,
                                uint64_t low) noexcept nogil:
    cdef uint32_t tag = execution_tag(order, high, low)
    cdef hp_entries_t same = hp_index_walk(&o.seen, tag)
    cdef int64_t slot = hp_index_next(&o.seen, &same, tag)
    cdef const execution_t *e
    while slot >= 0:
        e = &o.executions[slot]
        if e.order == order and e.high == high and e.low == low:
            return True
        slot = hp_index_next(&o.seen, &same, tag)
    return False


cdef inline void execution_add(orders_t *o, uint64_t order, uint64_t high,
                               uint64_t low) noexcept nogil:
    cdef uint32_t slot = <uint32_t>(o.execution_head & o.execution_mask)
    cdef execution_t *e = &o.executions[slot]
    if e.order:                                     # the oldest makes room
        hp_index_remove(&o.seen, execution_tag(e.order, e.high, e.low), slot)
    e.order, e.high, e.low = order, high, low
    hp_index_put(&o.seen, execution_tag(order, high, low), slot)
    o.execution_head += 1


# ---------------------------------------------------------------- orders

cdef order_t *order_find(orders_t *o, uint64_t order) noexcept nogil:
    cdef uint32_t tag = hp_index_tag(order)
    cdef hp_entries_t same = hp_index_walk(&o.index, tag)
    cdef int64_t slot = hp_index_next(&o.index, &same, tag)
    while slot >= 0:
        if o.table[slot].order == order:
            return &o.table[slot]
        slot = hp_index_next(&o.index, &same, tag)
    return NULL


cdef order_t *order_new(orders_t *o, const hp_order_t *order) noexcept nogil:
    if o.live >= o.capacity or order.order == 0 or order_find(o, order.order) != NULL:
        return NULL
    # O5: live < capacity, so at least capacity slots wait in the ring.
    cdef uint32_t slot = o.ring[o.head & o.mask]
    cdef order_t *t = &o.table[slot]
    o.head += 1
    if t.order:                                     # ended long ago: forgotten now
        hp_index_remove(&o.index, hp_index_tag(t.order), slot)
    memset(t, 0, sizeof(order_t))
    t.order, t.cause, t.ts_recv = order.order, order.cause, order.ts_recv
    t.price, t.qty = order.price, order.qty
    t.instrument, t.side, t.type, t.tif = order.instrument, order.side, order.type, order.tif
    t.strategy = order.strategy
    t.state = HP_ORDER_STATE_CREATED
    hp_index_put(&o.index, hp_index_tag(t.order), slot)
    o.live += 1
    return t


cdef inline void order_state(orders_t *o, order_t *t, uint8_t state) noexcept nogil:
    """The only writer of order_t.state after order_new."""
    cdef bint ended = order_ended(t)
    if t.state == HP_ORDER_STATE_UNKNOWN and state != HP_ORDER_STATE_UNKNOWN:
        o.unknown -= 1
    elif t.state != HP_ORDER_STATE_UNKNOWN and state == HP_ORDER_STATE_UNKNOWN:
        o.unknown += 1
    t.state = state
    if order_ended(t) and not ended:
        o.live -= 1
        o.ring[o.tail & o.mask] = <uint32_t>(t - o.table)
        o.tail += 1


cdef inline uint8_t order_live_state(const order_t *t) noexcept nogil:
    """Where an order stands when no cancel is on the wire and the venue has spoken."""
    if t.cum_qty:
        return HP_ORDER_STATE_PARTIAL
    return HP_ORDER_STATE_OPEN if t.acked else HP_ORDER_STATE_SENT


cdef inline int order_tell(const order_t *t, uint8_t kind, uint8_t reason, int64_t price,
                           int64_t qty, hp_order_event_t *out) noexcept nogil:
    memset(out, 0, sizeof(hp_order_event_t))
    out.order, out.cause = t.order, t.cause
    out.price, out.qty, out.cum_qty = price, qty, t.cum_qty
    out.instrument, out.side, out.strategy, out.type = t.instrument, t.side, t.strategy, t.type
    out.kind, out.reason, out.state = kind, reason, t.state
    return 1


cdef void order_refuse(const hp_order_t *order, uint8_t kind, uint8_t reason,
                       hp_order_event_t *out) noexcept nogil:
    memset(out, 0, sizeof(hp_order_event_t))
    out.order, out.cause, out.price, out.qty = order.order, order.cause, order.price, order.qty
    out.instrument, out.side, out.strategy = order.instrument, order.side, order.strategy
    out.type = order.type
    out.kind, out.reason, out.state = kind, reason, HP_ORDER_STATE_DROPPED


cdef inline bint order_waits(const order_t *t) noexcept nogil:
    """Whether the venue has told of executions that we have not seen."""
    return t.cum_qty < min(t.venue_cum, t.qty)


cdef inline int order_end(orders_t *o, order_t *t, uint8_t kind,
                          hp_order_event_t *out) noexcept nogil:
    order_state(o, t, HP_ORDER_STATE_EXPIRED if kind == HP_ORDER_EVENT_EXPIRED
                else HP_ORDER_STATE_REJECTED if kind == HP_ORDER_EVENT_REJECTED
                else HP_ORDER_STATE_CANCELED)
    return order_tell(t, kind, t.reason, t.price, t.qty, out)


cdef int order_fill(orders_t *o, order_t *t, const hp_update_t *u,
                    hp_order_event_t *out) noexcept nogil:
    """Book one execution, unless it was seen; it may be what the order's end waited for."""
    cdef uint64_t high = u.execution
    cdef uint64_t low = u.execution_low
    cdef bint ended = order_ended(t)
    cdef uint8_t kind
    if u.qty <= 0 or u.price <= 0:
        o.malformed += 1
        return 0
    if high == 0 and low == 0:
        if u.cum_qty <= 0:                          # nothing to tell it from another one
            o.malformed += 1
            return 0
        low = <uint64_t>u.cum_qty
    if u.flags & HP_UPDATE_FLAG_RECONCILED:
        if u.cum_qty - u.qty != t.cum_qty:          # O6: something came in between
            o.duplicates += 1
            return 0
    elif 0 < u.cum_qty <= t.covered:
        o.duplicates += 1
        return 0
    if execution_seen(o, t.order, high, low):
        o.duplicates += 1
        return 0
    if u.qty > t.qty - t.cum_qty:                   # O4
        o.overfills += 1
        return 0
    execution_add(o, t.order, high, low)
    t.cum_qty += u.qty
    if u.flags & HP_UPDATE_FLAG_RECONCILED:
        t.covered = t.cum_qty
        o.reconciled += 1
    t.venue_cum = max(t.venue_cum, max(u.cum_qty, t.cum_qty))
    t.acked = 1
    o.fills += 1
    o.late_fills += ended
    kind = HP_ORDER_EVENT_PARTIAL_FILL
    if t.cum_qty == t.qty:
        kind = HP_ORDER_EVENT_FILL
        order_state(o, t, HP_ORDER_STATE_FILLED)
    elif not ended:
        order_state(o, t, HP_ORDER_STATE_PENDING_CANCEL if t.cancelling
                    else HP_ORDER_STATE_PARTIAL)
    order_tell(t, kind, 0, u.price, u.qty, out)
    if t.ending and not order_ended(t) and not order_waits(t):
        return 1 + order_end(o, t, t.ending, out + 1)
    return 1


cdef int order_apply(orders_t *o, const hp_update_t *u, hp_order_event_t *out) noexcept nogil:
    cdef bint fill = u.kind == HP_ORDER_EVENT_PARTIAL_FILL or u.kind == HP_ORDER_EVENT_FILL
    cdef order_t *t = order_find(o, u.order) if u.order else NULL
    if t == NULL:
        o.orphans += 1
        o.orphan_fills += fill
        return 0
    if t.venue_id == 0 and t.venue_id_low == 0:
        t.venue_id, t.venue_id_low = u.venue_id, u.venue_id_low
    if fill:
        return order_fill(o, t, u, out)
    t.venue_cum = max(t.venue_cum, u.cum_qty)
    if order_ended(t):
        o.duplicates += 1
        return 0
    if u.kind == HP_ORDER_EVENT_ACKED:
        if t.acked and t.state != HP_ORDER_STATE_UNKNOWN:
            # A fill before the acknowledgement has said as much.
            o.duplicates += 1
            return 0
        t.acked = 1
        order_state(o, t, HP_ORDER_STATE_PENDING_CANCEL if t.cancelling else order_live_state(t))
        return order_tell(t, u.kind, 0, t.price, t.qty, out)
    if u.kind == HP_ORDER_EVENT_UNKNOWN:
        return order_step(o, t.order, u.kind, 0, out)
    if u.kind == HP_ORDER_EVENT_CANCEL_REJECTED:
        if not t.cancelling:
            o.duplicates += 1
            return 0
        t.cancelling = 0
        if t.state != HP_ORDER_STATE_UNKNOWN:       # the refusal may mean: never heard of it
            order_state(o, t, order_live_state(t))
        return order_tell(t, u.kind, HP_REASON_VENUE, t.price, t.qty, out)
    if (u.kind != HP_ORDER_EVENT_CANCELED and u.kind != HP_ORDER_EVENT_REPLACED
            and u.kind != HP_ORDER_EVENT_EXPIRED and u.kind != HP_ORDER_EVENT_REJECTED):
        o.malformed += 1                            # our own steps are not the venue's to say
        return 0
    if t.ending:                                    # it has been said, and still waits
        o.duplicates += 1
        return 0
    if u.kind == HP_ORDER_EVENT_REJECTED:
        t.reason = u.reason if u.reason else <uint8_t>HP_REASON_VENUE
    if order_waits(t):                              # O7
        t.ending = u.kind
        return 0
    return order_end(o, t, u.kind, out)


cdef int order_step(orders_t *o, uint64_t order, uint8_t kind, uint8_t reason,
                    hp_order_event_t *out) noexcept nogil:
    cdef order_t *t = order_find(o, order) if order else NULL
    if t == NULL:
        if kind == HP_ORDER_EVENT_DENIED or kind == HP_ORDER_EVENT_DROPPED:
            memset(out, 0, sizeof(hp_order_event_t))
            out.order, out.kind, out.reason = order, kind, reason
            out.state = HP_ORDER_STATE_DROPPED
            return 1
        o.orphans += 1
        return 0
    if kind == HP_ORDER_EVENT_SENT:
        if t.state != HP_ORDER_STATE_CREATED:
            return 0
        order_state(o, t, HP_ORDER_STATE_SENT)
    elif kind == HP_ORDER_EVENT_DROPPED:
        if order_left(t):                           # only the venue can end it
            return 0
        t.reason = reason
        order_state(o, t, HP_ORDER_STATE_DROPPED)
    elif kind == HP_ORDER_EVENT_CANCEL_SENT:
        if order_ended(t) or t.state == HP_ORDER_STATE_CREATED:
            return 0
        t.cancelling = 1
        if t.state != HP_ORDER_STATE_UNKNOWN:       # still no answer to the order itself
            order_state(o, t, HP_ORDER_STATE_PENDING_CANCEL)
    elif kind == HP_ORDER_EVENT_CANCEL_REJECTED:    # it could not be handed to the socket
        if order_ended(t):
            return 0
    elif kind == HP_ORDER_EVENT_UNKNOWN:
        if t.state not in (HP_ORDER_STATE_CREATED, HP_ORDER_STATE_SENT,
                           HP_ORDER_STATE_PENDING_CANCEL):
            return 0
        order_state(o, t, HP_ORDER_STATE_UNKNOWN)
    else:
        return 0
    return order_tell(t, kind, reason, t.price, t.qty, out)


# ---------------------------------------------------------------- Python

cdef int load(object data, void *to, size_t size) except -1:
    """Copy a record given as bytes, a buffer or a numpy record."""
    raw = data.tobytes() if hasattr(data, "tobytes") else bytes(data)
    if len(raw) != <Py_ssize_t>size:
        raise ValueError(f"record is {size} bytes, was {len(raw)}")
    memcpy(to, <const char *>raw, size)
    return 0


@cython.final
cdef class Orders:
    """A table of orders.

    Parameters
    ----------
    capacity : int, default 4096
        Orders that may live at once, a power of two; as many ended ones are remembered.
    executions : int, default 65536
        Executions remembered to find duplicates, a power of two.
    """

    def __cinit__(self, int64_t capacity=4096, int64_t executions=65536):
        cdef int64_t i
        for name, value, top in (("capacity", capacity, 1 << 24),
                                 ("executions", executions, 1 << 28)):
            if value < 1 or value > top or value & (value - 1):
                raise ValueError(f"{name} must be a power of two up to {top}, was {value}")
        self.o.capacity = capacity
        self.o.mask = 2 * capacity - 1
        self.o.tail = 2 * capacity
        self.o.execution_mask = executions - 1
        self.o.table = <order_t *>hp_lines(2 * capacity, sizeof(order_t))
        self.o.ring = <uint32_t *>hp_lines(2 * capacity, sizeof(uint32_t))
        self.o.executions = <execution_t *>hp_lines(executions, sizeof(execution_t))
        if self.o.table == NULL or self.o.ring == NULL or self.o.executions == NULL:
            raise MemoryError(f"no memory for {capacity} orders and {executions} executions")
        if hp_index_init(&self.o.index, 2 * capacity) or hp_index_init(&self.o.seen, executions):
            raise MemoryError(f"no memory for {capacity} orders and {executions} executions")
        for i in range(2 * capacity):
            self.o.ring[i] = <uint32_t>i

    def __dealloc__(self):
        free(self.o.table)
        free(self.o.ring)
        free(self.o.executions)
        hp_index_free(&self.o.index)
        hp_index_free(&self.o.seen)

    def new(self, order) -> bool:
        """Add an ORDER record in state CREATED; ``False`` when full or already known."""
        cdef hp_order_t record
        load(order, &record, sizeof(record))
        return order_new(&self.o, &record) != NULL

    def apply(self, update):
        """Apply an UPDATE record; (n,) ORDER_EVENTs to publish, none, one or two."""
        cdef hp_update_t record
        cdef hp_order_event_t out[2]
        cdef int count
        load(update, &record, sizeof(record))
        count = order_apply(&self.o, &record, out)
        return numpy.frombuffer((<const char *>out)[:count * sizeof(hp_order_event_t)],
                                schema.dtype(schema.ORDER_EVENT))

    def step(self, uint64_t order, uint8_t kind, uint8_t reason=0):
        """Take one step of our own; the ORDER_EVENT to publish, or None when it has no effect."""
        cdef hp_order_event_t out
        if not order_step(&self.o, order, kind, reason, &out):
            return None
        return numpy.frombuffer((<const char *>&out)[:sizeof(out)],
                                schema.dtype(schema.ORDER_EVENT))[0]

    def refuse(self, order, uint8_t kind, uint8_t reason):
        """The ORDER_EVENT of an ORDER record that does not get into the table."""
        cdef hp_order_t record
        cdef hp_order_event_t out
        load(order, &record, sizeof(record))
        order_refuse(&record, kind, reason, &out)
        return numpy.frombuffer((<const char *>&out)[:sizeof(out)],
                                schema.dtype(schema.ORDER_EVENT))[0]

    def find(self, uint64_t order) -> dict[str, int] | None:
        """What is known of *order*, or None."""
        cdef order_t *t = order_find(&self.o, order) if order else NULL
        if t == NULL:
            return None
        return {"order": t.order, "cause": t.cause, "ts_recv": t.ts_recv, "ts_sent": t.ts_sent,
                "price": t.price, "qty": t.qty, "cum_qty": t.cum_qty, "venue_cum": t.venue_cum,
                "venue_id": t.venue_id, "venue_id_low": t.venue_id_low,
                "instrument": t.instrument, "side": t.side, "type": t.type, "tif": t.tif,
                "strategy": t.strategy, "state": t.state, "reason": t.reason,
                "ending": t.ending}

    def counters(self) -> dict[str, int]:
        """Live and unknown orders, and what was refused so far."""
        return {"live": self.o.live, "unknown": self.o.unknown, "fills": self.o.fills,
                "late_fills": self.o.late_fills, "duplicates": self.o.duplicates,
                "orphans": self.o.orphans, "orphan_fills": self.o.orphan_fills,
                "overfills": self.o.overfills, "reconciled": self.o.reconciled,
                "malformed": self.o.malformed}

    def __len__(self):
        return self.o.live
