"""Pre-trade risk; order of the checks, units and promises are in ``_risk.pxd``."""
cimport cython
from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ._atomic cimport hp_load_acquire, hp_load_relaxed, hp_prefetch_write
from ._control cimport CONTROL_STAGES, Control
from ._memory cimport hp_lines
from ._order cimport index_free, index_home, index_init, index_put, index_remove, index_tag
from ._schema cimport (
    HP_ACTION_CANCEL, HP_ACTION_DENIED, HP_ACTION_NEW, HP_BOOK_FLAG_CROSSED,
    HP_BOOK_FLAG_EMPTY, HP_BOOK_FLAG_HALTED, HP_BOOK_FLAG_STALE, HP_ORDER_EVENT_CANCELED,
    HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_FILL,
    HP_ORDER_EVENT_PARTIAL_FILL, HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_REPLACED,
    HP_ORDER_TYPE_LIMIT, HP_ORDER_TYPE_MARKET, HP_REASON_CROSSES_ZERO, HP_REASON_DAILY_LOSS,
    HP_REASON_DUPLICATE, HP_REASON_HALTED, HP_REASON_INVALID_ORDER, HP_REASON_NONE,
    HP_REASON_NOT_OPEN, HP_REASON_OPEN_POSITIONS, HP_REASON_ORDER_NOTIONAL,
    HP_REASON_ORDER_RATE, HP_REASON_ORDER_SIZE, HP_REASON_OVERFLOW, HP_REASON_PENDING,
    HP_REASON_POSITION_NOTIONAL, HP_REASON_POSITION_SIZE, HP_REASON_PRICE_COLLAR,
    HP_REASON_SHORT_NOT_ALLOWED, HP_REASON_STALE_DATA, HP_REASON_STORE_FULL,
    HP_REASON_TABLE_FULL, HP_REASON_TOTAL_NOTIONAL, HP_REASON_UNKNOWN_INSTRUMENT,
    HP_REASON_WASH_TRADE, HP_SEQ_BITS, HP_SIDE_BUY, HP_SIDE_SELL, HP_TIF_DAY, HP_TIF_FOK,
    hp_instrument_t)
from ._token cimport token_of

import difflib
import re
from collections import namedtuple

import numpy

from hftpipe import schema
from hftpipe.errors import ConfigError


cdef extern from "<stdlib.h>" nogil:
    void *aligned_alloc(size_t alignment, size_t size) noexcept

cdef enum:
    NANO = 1000000000
    BPS = 10000
    RATE_MAX = 1000000                  # orders per minute; one timestamp is kept for each
    SHORTABLE = 2                       # INSTRUMENT.flags

cdef int64_t MINUTE = 60000000000
cdef uint64_t SEQ_MASK = (1ULL << HP_SEQ_BITS) - 1
cdef uint8_t UNUSABLE = (HP_BOOK_FLAG_STALE | HP_BOOK_FLAG_CROSSED | HP_BOOK_FLAG_HALTED
                         | HP_BOOK_FLAG_EMPTY)


# ---------------------------------------------------------------- exposure

cdef inline void exposure_refresh(risk_t *r, exposure_t *x) noexcept nogil:
    """After any change of qty, reference or reservations: the instrument's share of the total."""
    cdef hp_wide_t worst
    cdef uint8_t held = x.qty != 0 or x.open_orders != 0
    x.value = hp_wide_mul(x.qty, x.reference)
    # Clamped just above what nanocash holds: later checks see OVERFLOW, sums cannot wrap.
    worst = hp_wide_clamp(hp_wide_max(hp_wide_add(x.open_value[0], x.value),
                                      hp_wide_sub(x.open_value[1], x.value)))
    r.total = hp_wide_add(r.total, hp_wide_sub(worst, x.worst))
    x.worst = worst
    r.held += held - x.held
    x.held = held


cdef inline reservation_t *order_find(const risk_t *r, uint64_t order) noexcept nogil:
    cdef uint32_t tag = index_tag(order)
    cdef uint64_t i = index_home(&r.index, tag)
    cdef uint64_t cell = r.index.cells[i]
    while cell:
        if cell >> 32 == tag and r.orders[<uint32_t>cell - 1].order == order:
            return &r.orders[<uint32_t>cell - 1]
        i = (i + 1) & r.index.mask
        cell = r.index.cells[i]
    return NULL


cdef inline void reserve(risk_t *r, exposure_t *x, const hp_intent_t *i, int64_t price,
                         int64_t worth) noexcept nogil:
    """Take a slot for an approved order.  The caller has checked that live < capacity."""
    cdef uint32_t slot = r.ring[r.head & r.mask]
    cdef reservation_t *t = &r.orders[slot]
    cdef int way = risk_way(i.side)
    r.head += 1
    if t.order:                                 # ended long ago: forgotten now (R4)
        index_remove(&r.index, index_tag(t.order), slot)
    t.order, t.qty, t.cum_qty, t.remaining = i.event, i.qty, 0, i.qty
    t.price, t.worth = price, worth
    t.instrument, t.side, t.type, t.open = i.instrument, i.side, i.type, 1
    index_put(&r.index, index_tag(t.order), slot)
    r.live += 1
    x.open_qty[way] += i.qty
    x.open_value[way] = hp_wide_add(x.open_value[way], hp_wide_mul(worth, i.qty))
    x.best[way] = max(x.best[way], price)
    t.next, t.previous = x.first[way], 0
    if t.next:
        r.orders[t.next - 1].previous = slot + 1
    x.first[way] = slot + 1
    x.open_orders += 1
    hp_prefetch_write(&r.orders[r.ring[r.head & r.mask]])       # the next order's
    exposure_refresh(r, x)


cdef inline void unreserve(exposure_t *x, reservation_t *t, int64_t qty) noexcept nogil:
    """Give back *qty* <= remaining of one order."""
    cdef int way = risk_way(t.side)
    t.remaining -= qty
    x.open_qty[way] -= qty
    x.open_value[way] = hp_wide_sub(x.open_value[way], hp_wide_mul(t.worth, qty))


cdef void release(risk_t *r, exposure_t *x, reservation_t *t) noexcept nogil:
    """The order has ended: give back the rest, leave the lists, be remembered."""
    cdef uint32_t at
    cdef int way = risk_way(t.side)
    unreserve(x, t, t.remaining)
    t.open = 0
    if t.next:
        r.orders[t.next - 1].previous = t.previous
    if t.previous:
        r.orders[t.previous - 1].next = t.next
    else:
        x.first[way] = t.next
    if t.price == x.best[way]:                  # looked for anew only when the best one went
        x.best[way] = INT64_MIN
        at = x.first[way]
        while at:
            x.best[way] = max(x.best[way], r.orders[at - 1].price)
            at = r.orders[at - 1].next
    x.open_orders -= 1
    r.live -= 1
    r.ring[r.tail & r.mask] = <uint32_t>(t - r.orders)
    r.tail += 1


# ---------------------------------------------------------------- checks

cdef inline uint8_t refuse(hp_verdict_t *v, uint8_t reason, int64_t limit,
                           int64_t value) noexcept nogil:
    v.limit, v.value = limit, value
    return reason


cdef inline uint8_t refuse_cash(hp_verdict_t *v, uint8_t reason, int64_t limit,
                                hp_wide_t value) noexcept nogil:
    return refuse(v, reason, limit, hp_wide_ceil(value, NANO))


cdef inline uint8_t judge(risk_t *r, const hp_intent_t *i, int64_t now, uint64_t halt,
                          uint64_t armed, bint fresh, hp_verdict_t *v, int64_t *price,
                          int64_t *worth) noexcept nogil:
    """All checks of a new order; fills limit, value and reference of *v*, changes nothing else.

    *price* becomes side * the price it can trade at (for the wash check), *worth* its value
    per unit.
    """
    cdef const limits_t *limits = &r.limits
    cdef const exposure_t *x
    cdef int64_t k, touch, held, after, distance
    cdef bint buy = i.side > 0
    cdef int way = risk_way(i.side)
    cdef bint reducing
    cdef hp_wide_t value, side, total
    if r.header != NULL:
        if armed == 0 or armed != halt:
            return refuse(v, HP_REASON_HALTED, <int64_t>armed, <int64_t>halt)
        for k in range(r.stages):
            if hp_load_relaxed(&r.blocks[k].store_full):
                return refuse(v, HP_REASON_STORE_FULL, 0, k)
    if i.instrument >= r.count:
        return refuse(v, HP_REASON_UNKNOWN_INSTRUMENT, <int64_t>r.count - 1, i.instrument)
    x = &r.table[i.instrument]
    v.reference = x.reference

    if i.action != HP_ACTION_NEW:
        return refuse(v, HP_REASON_INVALID_ORDER, HP_ACTION_NEW, i.action)
    if i.side != HP_SIDE_BUY and i.side != HP_SIDE_SELL:
        return refuse(v, HP_REASON_INVALID_ORDER, HP_SIDE_BUY, i.side)
    if i.tif < HP_TIF_DAY or i.tif > HP_TIF_FOK:
        return refuse(v, HP_REASON_INVALID_ORDER, HP_TIF_FOK, i.tif)
    if i.qty <= 0 or i.qty < x.min_qty:
        return refuse(v, HP_REASON_INVALID_ORDER, x.min_qty, i.qty)
    if i.qty % x.lot:
        return refuse(v, HP_REASON_INVALID_ORDER, x.lot, i.qty)
    if i.type == HP_ORDER_TYPE_LIMIT:
        if i.price <= 0 or i.price % x.tick:
            return refuse(v, HP_REASON_INVALID_ORDER, x.tick, i.price)
    elif i.type == HP_ORDER_TYPE_MARKET:
        if i.price != 0:
            return refuse(v, HP_REASON_INVALID_ORDER, 0, i.price)
    else:
        return refuse(v, HP_REASON_INVALID_ORDER, HP_ORDER_TYPE_LIMIT, i.type)

    if not fresh:
        return refuse(v, HP_REASON_DUPLICATE, <int64_t>r.seen[i.event >> HP_SEQ_BITS],
                      <int64_t>(i.event & SEQ_MASK))

    touch = x.ask if buy else x.bid
    if x.reference <= 0 or x.flags & UNUSABLE \
            or (i.type == HP_ORDER_TYPE_MARKET and touch <= 0):
        return refuse(v, HP_REASON_STALE_DATA, 0, x.flags)
    if hp_sub_saturate(now, x.mark_ts) > limits.data_age:
        return refuse(v, HP_REASON_STALE_DATA, limits.data_age, hp_sub_saturate(now, x.mark_ts))

    if r.times_head >= <uint64_t>limits.rate and hp_sub_saturate(
            now, r.times[(r.times_head - limits.rate) & r.times_mask]) < MINUTE:
        return refuse(v, HP_REASON_ORDER_RATE, limits.rate, limits.rate + 1)

    if i.qty > limits.order_qty:
        return refuse(v, HP_REASON_ORDER_SIZE, limits.order_qty, i.qty)

    if i.type == HP_ORDER_TYPE_LIMIT:
        price[0] = i.price * i.side
        worth[0] = max(i.price, 0 if buy else x.bid)
        distance = i.price - x.reference
    else:
        price[0] = INT64_MAX if buy else 0
        k = hp_bps_ceil(touch, limits.collar_bps)
        if hp_add_overflow(touch, k, worth):
            return refuse(v, HP_REASON_OVERFLOW, 0, touch)
        distance = touch - x.reference
    value = hp_wide_mul(worth[0], i.qty)
    if not hp_wide_fits(value):
        return refuse(v, HP_REASON_OVERFLOW, limits.order_notional, INT64_MAX)
    if hp_wide_less(hp_wide_cash(limits.order_notional), value):
        return refuse_cash(v, HP_REASON_ORDER_NOTIONAL, limits.order_notional, value)

    if distance < 0:
        distance = -distance
    if hp_wide_less(hp_wide_mul(x.reference, limits.collar_bps), hp_wide_mul(distance, BPS)):
        return refuse(v, HP_REASON_PRICE_COLLAR, limits.collar_bps,
                      hp_wide_ceil(hp_wide_mul(distance, BPS), x.reference))

    # The position when everything open on this side fills, and this order too; positive is
    # the side of the order.
    held = x.qty * i.side
    if hp_add_overflow(held, x.open_qty[way], &after) or hp_add_overflow(after, i.qty, &after):
        return refuse(v, HP_REASON_OVERFLOW, limits.position_qty, INT64_MAX)
    reducing = held < 0
    if reducing:
        if after > 0:
            return refuse(v, HP_REASON_CROSSES_ZERO, 0, after * i.side)
    else:
        if not buy and not (limits.allow_short and x.shortable):
            return refuse(v, HP_REASON_SHORT_NOT_ALLOWED, 0, -after)
        if after > limits.position_qty:
            return refuse(v, HP_REASON_POSITION_SIZE, limits.position_qty, after)
        side = hp_wide_add(hp_wide_side(x.value, i.side), hp_wide_add(x.open_value[way], value))
        if not hp_wide_fits(side):
            return refuse(v, HP_REASON_OVERFLOW, limits.position_notional, INT64_MAX)
        if hp_wide_less(hp_wide_cash(limits.position_notional), side):
            return refuse_cash(v, HP_REASON_POSITION_NOTIONAL, limits.position_notional, side)
        total = hp_wide_add(hp_wide_sub(r.total, x.worst), hp_wide_max(x.worst, side))
        if not hp_wide_fits(total):
            return refuse(v, HP_REASON_OVERFLOW, limits.total_notional, INT64_MAX)
        if hp_wide_less(hp_wide_cash(limits.total_notional), total):
            return refuse_cash(v, HP_REASON_TOTAL_NOTIONAL, limits.total_notional, total)
        if not x.held and r.held >= limits.open_positions:
            return refuse(v, HP_REASON_OPEN_POSITIONS, limits.open_positions, r.held + 1)
    if x.open_orders >= limits.open_orders:
        return refuse(v, HP_REASON_PENDING, limits.open_orders, x.open_orders + 1)
    if not reducing and hp_sub_saturate(0, r.day_pnl) >= limits.daily_loss:
        return refuse(v, HP_REASON_DAILY_LOSS, limits.daily_loss, hp_sub_saturate(0, r.day_pnl))

    # Best of the other side, seen from this one: an ask to a buy, minus a bid to a sell.
    if x.first[1 - way] and price[0] >= -x.best[1 - way]:
        return refuse(v, HP_REASON_WASH_TRADE, i.side * -x.best[1 - way], price[0] * i.side)

    if r.live >= r.capacity:
        return refuse(v, HP_REASON_TABLE_FULL, <int64_t>r.capacity, <int64_t>r.live + 1)
    return HP_REASON_NONE


cdef inline uint32_t order_token(uint64_t key, const hp_order_t *o, uint64_t halt,
                                 uint64_t version) noexcept nogil:
    return token_of(key, o.order, o.price, o.qty, o.instrument, o.side, o.type, o.tif, o.action,
                    halt, version)


cdef int risk_check(risk_t *r, const hp_intent_t *i, int64_t now, hp_verdict_t *v,
                    hp_order_t *o) noexcept nogil:
    cdef uint64_t stream = i.event >> HP_SEQ_BITS
    cdef uint64_t seq = i.event & SEQ_MASK
    cdef bint fresh = seq > r.seen[stream]
    cdef uint64_t armed = 0, halt = 0
    cdef int64_t price = 0, worth = 0, hop
    cdef const reservation_t *target = NULL
    cdef uint8_t reason
    cdef exposure_t *x
    if i.instrument < r.count:
        # Of a thousand symbols these lines are seldom near; they come while the page is read.
        x = &r.table[i.instrument]
        hp_prefetch_write(x)
        hp_prefetch_write(&x.qty)
        hp_prefetch_write(&x.value)
        hp_prefetch_write(&r.index.cells[index_home(&r.index, index_tag(i.event))])
    if r.header != NULL:
        # Armed first: a halt between the two loads is seen (control_armed, with the values).
        armed = hp_load_acquire(&r.header.armed_epoch)
        halt = hp_load_acquire(&r.header.halt_epoch)
    v.order, v.cause, v.instrument, v.action = i.event, i.cause, i.instrument, i.action
    v.halt_epoch = <uint32_t>halt
    v.reference = v.limit = v.value = 0
    v.detail = 0
    o.order, o.cause, o.ts_recv = i.event, i.cause, i.ts_recv
    o.price, o.qty, o.instrument, o.side = i.price, i.qty, i.instrument, i.side
    o.type, o.tif, o.strategy = i.type, i.tif, i.strategy
    hop = hp_sub_saturate(now, i.ts_recv)
    o.hop = <uint32_t>min(max(hop, 0), <int64_t>0xffffffff)
    if i.action == HP_ACTION_CANCEL:
        reason = HP_REASON_NOT_OPEN
        target = order_find(r, stream << HP_SEQ_BITS | i.target) if i.target else NULL
        if target != NULL and target.open:
            reason = HP_REASON_NONE
        else:
            v.value = i.target
    else:
        reason = judge(r, i, now, halt, armed, fresh, v, &price, &worth)
    if fresh:
        r.seen[stream] = seq
    r.reasons[reason] += 1
    v.reason = o.reason = reason
    if reason != HP_REASON_NONE:
        v.token = o.token = 0
        o.action = HP_ACTION_DENIED
        if i.action == HP_ACTION_CANCEL:
            o.qty = 0                           # it never was open: nobody takes it back
        return reason
    o.action = i.action
    if target != NULL:
        r.cancels += 1
        o.order, o.qty, o.instrument, o.side = (
            target.order, target.qty, target.instrument, target.side)
        o.type = target.type
        o.price = target.price * target.side if target.type == HP_ORDER_TYPE_LIMIT else 0
        v.instrument = target.instrument
        v.reference = r.table[target.instrument].reference
    else:
        reserve(r, &r.table[i.instrument], i, price, worth)
        if r.times_head:                        # a clock that stands still or steps back
            now = max(now, r.times[(r.times_head - 1) & r.times_mask])
        r.times[r.times_head & r.times_mask] = now
        r.times_head += 1
    v.token = o.token = order_token(r.token_key, o, halt, r.limits_version)
    return HP_REASON_NONE


cdef void risk_mark(risk_t *r, const hp_book_t *b) noexcept nogil:
    cdef exposure_t *x
    cdef int64_t reference
    if b.instrument >= r.count:
        r.unknown += 1
        return
    x = &r.table[b.instrument]
    x.bid, x.ask, x.flags, x.mark_ts = b.bid, b.ask, b.flags, b.ts_recv
    reference = x.reference                     # positions keep their last value
    if b.bid > 0 and b.ask > 0:
        reference = <int64_t>((<uint64_t>b.bid + <uint64_t>b.ask) >> 1)
    elif b.last_price > 0:
        reference = b.last_price
    if reference != x.reference:
        x.reference = reference
        if x.qty:
            exposure_refresh(r, x)


cdef void risk_order_event(risk_t *r, const hp_order_event_t *e) noexcept nogil:
    cdef bint newer = e.event == 0 or e.event > r.last_event
    cdef reservation_t *t = order_find(r, e.order) if e.order else NULL
    cdef exposure_t *x
    cdef int64_t moved
    r.last_event = max(r.last_event, e.event)
    if t == NULL:
        if not newer or (e.kind != HP_ORDER_EVENT_PARTIAL_FILL and e.kind != HP_ORDER_EVENT_FILL):
            return
        r.orphans += 1                          # R4
        if e.instrument >= r.count or e.qty <= 0 or (e.side != 1 and e.side != -1):
            r.unknown += 1
            return
        x = &r.table[e.instrument]
        if x.reference == 0:
            x.reference = max(e.price, 0)
        x.qty = max(hp_add_saturate(x.qty, e.qty * e.side), -INT64_MAX)
        exposure_refresh(r, x)
        return
    x = &r.table[t.instrument]
    if e.cum_qty > t.cum_qty:                   # R2
        moved = hp_sub_saturate(e.cum_qty, t.cum_qty)
        t.cum_qty = e.cum_qty
        x.qty = max(hp_add_saturate(x.qty, moved * t.side), -INT64_MAX)
        if t.open:
            unreserve(x, t, min(moved, t.remaining))
    elif not t.open:
        return
    if t.open and (t.remaining == 0 or e.kind in (
            HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_CANCELED, HP_ORDER_EVENT_REJECTED,
            HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_DENIED,
            HP_ORDER_EVENT_REPLACED)):
        release(r, x, t)
    exposure_refresh(r, x)


cdef void risk_position(risk_t *r, const hp_position_t *p) noexcept nogil:
    r.day_pnl = p.day_pnl


# ---------------------------------------------------------------- limits

Limit = namedtuple("Limit", "name unit default doc")
Use = namedtuple("Use", "name unit limit use")

#: Every limit: the one source for the configuration file, its documentation and `risk show`.
#: Units: shares and quote (units of the instrument and of its currency, up to nine decimals,
#: as integers or decimal strings, never floats), orders, bps, ms, flag.
LIMITS = [
    Limit("max_order_shares", "shares", 1000, "Quantity of one order."),
    Limit("max_order_notional", "quote", 10000, "Value of one order."),
    Limit("max_position_shares", "shares", 1000,
          "Worst-case position of one instrument: what is held plus all open orders of a side."),
    Limit("max_position_notional", "quote", 10000, "Worst-case value of one instrument."),
    Limit("max_total_notional", "quote", 50000, "Worst-case value of all instruments."),
    Limit("max_open_positions", "instruments", 5,
          "Instruments with a position or an open order."),
    Limit("max_daily_loss", "quote", 5000,
          "Loss of the day, realised plus unrealised, at which only reducing orders pass."),
    Limit("price_collar_bps", "bps", 50,
          "Distance of a limit price, or of the far touch for a market order, to the mid."),
    Limit("max_orders_per_minute", "orders", 60, "Orders approved within any 60 seconds."),
    Limit("max_open_orders", "orders", 10, "Open orders of one instrument."),
    Limit("max_data_age_ms", "ms", 30000, "Age of the newest state of the book."),
    Limit("allow_short", "flag", False,
          "Whether more may be sold than is held (and the instrument is shortable)."),
]

# name -> (smallest, largest) in the unit's integer; what the C struct and its memory can hold
RANGES = {
    "shares": (1, INT64_MAX), "quote": (1, INT64_MAX), "instruments": (1, 65536),
    "bps": (1, BPS), "orders": (1, RATE_MAX), "ms": (1, 86400000), "flag": (0, 1),
}
NOT_ABOVE = (("max_order_shares", "max_position_shares"),
             ("max_order_notional", "max_position_notional"),
             ("max_position_notional", "max_total_notional"))


def default_limits() -> dict[str, object]:
    """A mapping with every limit at its default."""
    return {limit.name: limit.default for limit in LIMITS}


def _convert(limit, value) -> int:
    """*value* as the integer that is compared: nanoqty, nanocash or the unit itself."""
    low, high = RANGES[limit.unit]
    fixed = limit.unit in ("shares", "quote")
    wanted = f"{limit.name}: wanted " + (
        "true or false" if limit.unit == "flag" else
        f"{limit.unit} above 0 as an integer or a decimal string of at most nine decimals"
        if fixed else f"an integer number of {limit.unit} from {low} to {high}")
    if limit.unit == "flag":
        if not isinstance(value, bool):
            raise ConfigError(f"{wanted}, found {value!r}")
        return int(value)
    if fixed and isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?", value, re.ASCII)
        if match is None:
            raise ConfigError(f"{wanted}, found {value!r}")
        number = int(match[1]) * NANO + int((match[2] or "").ljust(9, "0"))
    elif isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{wanted}, found {value!r}")
    else:
        number = value * NANO if fixed else value
    if not low <= number <= high:
        raise ConfigError(f"{wanted}, found {value!r}")
    return number


def parse_limits(mapping) -> dict[str, int]:
    """Check a mapping of all LIMITS and convert it, exactly.

    Parameters
    ----------
    mapping : Mapping[str, int | str | bool]
        Each name of LIMITS, nothing else.

    Returns
    -------
    dict of int
        Shares in nanoqty, quote in nanocash, the others as they are.

    Raises
    ------
    ConfigError
        A key is unknown (the nearest is named) or missing, a value is of another type,
        not positive, too large or finer than nine decimals, or two limits contradict.
    """
    by_name = {limit.name: limit for limit in LIMITS}
    for key in mapping:
        if key not in by_name:
            near = difflib.get_close_matches(str(key), by_name, 1, 0)
            raise ConfigError(f"{key}: wanted a known limit, found {key!r}; nearest is {near[0]}")
    out = {}
    for name, limit in by_name.items():
        if name not in mapping:
            raise ConfigError(f"{name}: wanted a value, found none (default {limit.default!r})")
        out[name] = _convert(limit, mapping[name])
    for small, large in NOT_ABOVE:
        if out[small] > out[large]:
            raise ConfigError(f"{small}: wanted at most {large} = {mapping[large]!r}, "
                              f"found {mapping[small]!r}")
    return out


# ---------------------------------------------------------------- Python

cdef int load(object data, void *to, size_t size) except -1:
    """Copy a record given as bytes, a buffer or a numpy record."""
    raw = data.tobytes() if hasattr(data, "tobytes") else bytes(data)
    if len(raw) != <Py_ssize_t>size:
        raise ValueError(f"record is {size} bytes, was {len(raw)}")
    memcpy(to, <const char *>raw, size)
    return 0


def token(uint64_t key, order, uint64_t halt_epoch, uint64_t limits_version) -> int:
    """The token of an ORDER record, as the gateway computes it; see ``_token.pxd``."""
    cdef hp_order_t record
    load(order, &record, sizeof(record))
    return order_token(key, &record, halt_epoch, limits_version)


@cython.final
cdef class Risk:
    """The gate of one run.

    Parameters
    ----------
    limits : Mapping[str, int | str | bool]
        As :func:`parse_limits` wants it.
    instruments : (n,) array of INSTRUMENT
        Tick, lot, smallest quantity and flags, by index.
    control : Control or None
        The control page: halt epochs, token key, limits version, store_full words.
        None: always armed (unit tests, backtest).
    stage_count : int, default 0
        Stage blocks of the page whose store_full word closes the gate.
    capacity : int, default 4096
        Open orders at most, a power of two.

    Raises
    ------
    ConfigError
        If a limit or an instrument is not as it must be.
    """

    def __cinit__(self, limits, instruments, Control control=None, int64_t stage_count=0,
                  int64_t capacity=4096):
        cdef hp_instrument_t spec
        cdef exposure_t *x
        cdef int64_t i, size = 1
        number = parse_limits(limits)
        array = numpy.ascontiguousarray(instruments)
        if array.dtype != schema.dtype(schema.INSTRUMENT) or array.ndim != 1:
            raise ConfigError(f"instruments: wanted a vector of INSTRUMENT records, "
                              f"found {array.dtype} of shape {array.shape}")
        if not 1 <= len(array) <= 65536:
            raise ConfigError(f"instruments: wanted 1 to 65536, found {len(array)}")
        if not 0 <= stage_count <= CONTROL_STAGES:
            raise ValueError(f"stage_count must be 0 to {CONTROL_STAGES}, was {stage_count}")
        if capacity < 1 or capacity > 1 << 24 or capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two up to {1 << 24}, was {capacity}")
        self.r.limits.order_qty = number["max_order_shares"]
        self.r.limits.order_notional = number["max_order_notional"]
        self.r.limits.position_qty = number["max_position_shares"]
        self.r.limits.position_notional = number["max_position_notional"]
        self.r.limits.total_notional = number["max_total_notional"]
        self.r.limits.open_positions = number["max_open_positions"]
        self.r.limits.daily_loss = number["max_daily_loss"]
        self.r.limits.collar_bps = number["price_collar_bps"]
        self.r.limits.rate = number["max_orders_per_minute"]
        self.r.limits.open_orders = number["max_open_orders"]
        self.r.limits.data_age = number["max_data_age_ms"] * 1000000
        self.r.limits.allow_short = number["allow_short"]
        if control is not None:
            self._control = control
            self.r.header = control.header
            self.r.blocks = control.blocks
            self.r.stages = stage_count
            self.r.token_key = control.header.token_key
            self.r.limits_version = control.header.limits_version
        while size < self.r.limits.rate:
            size *= 2
        self.r.times_mask = size - 1
        self.r.capacity = capacity
        self.r.mask = 2 * capacity - 1
        self.r.tail = 2 * capacity
        self.r.count = len(array)
        # Whole cache lines, so that one order and one instrument touch as few as they can.
        self.r.times = <int64_t *>hp_lines(size, sizeof(int64_t))
        self.r.ring = <uint32_t *>hp_lines(2 * capacity, sizeof(uint32_t))
        self.r.table = <exposure_t *>aligned_alloc(64, self.r.count * sizeof(exposure_t))
        self.r.orders = <reservation_t *>aligned_alloc(64, 2 * capacity * sizeof(reservation_t))
        if self.r.times == NULL or self.r.ring == NULL or self.r.table == NULL \
                or self.r.orders == NULL:
            raise MemoryError(f"no memory for {self.r.count} instruments, {capacity} orders")
        memset(self.r.table, 0, self.r.count * sizeof(exposure_t))
        memset(self.r.orders, 0, 2 * capacity * sizeof(reservation_t))
        index_init(&self.r.index, 2 * capacity)
        for i in range(2 * capacity):
            self.r.ring[i] = <uint32_t>i
        for i in range(<int64_t>self.r.count):
            load(array[i], &spec, sizeof(spec))
            if spec.tick <= 0 or spec.lot <= 0 or spec.min_qty < 0:
                raise ConfigError(
                    f"instrument {i}: wanted tick and lot above 0 and min_qty not below it, "
                    f"found {spec.tick}, {spec.lot}, {spec.min_qty}")
            x = &self.r.table[i]
            x.tick, x.lot, x.min_qty = spec.tick, spec.lot, spec.min_qty
            x.shortable = spec.flags & SHORTABLE != 0
            x.best[0] = x.best[1] = INT64_MIN
            x.flags = HP_BOOK_FLAG_STALE        # until the first mark

    def __dealloc__(self):
        free(self.r.times)
        free(self.r.ring)
        free(self.r.table)
        free(self.r.orders)
        index_free(&self.r.index)

    cdef exposure_t *exposure_at(self, int64_t instrument) except NULL:
        if not 0 <= instrument < <int64_t>self.r.count:
            raise IndexError(f"instrument must be below {self.r.count}, was {instrument}")
        return &self.r.table[instrument]

    def seed(self, int64_t instrument, int64_t qty, int64_t price):
        """Set a position held before the run, valued at *price* until the first mark."""
        cdef exposure_t *x = self.exposure_at(instrument)
        if x.held or price <= 0 or qty == INT64_MIN:
            raise ValueError(f"seed wants an instrument without position or orders and a price "
                             f"above 0, found qty {x.qty} -> {qty}, {x.open_orders} orders, "
                             f"price {price}")
        x.qty = qty
        if x.reference == 0:
            x.reference = price
        exposure_refresh(&self.r, x)

    def check(self, intent, int64_t now):
        """Judge an INTENT record at *now* ns; ``(reason, VERDICT, ORDER)``."""
        cdef hp_intent_t i
        cdef hp_verdict_t v
        cdef hp_order_t o
        load(intent, &i, sizeof(i))
        memset(&v, 0, sizeof(v))
        memset(&o, 0, sizeof(o))
        cdef int reason = risk_check(&self.r, &i, now, &v, &o)
        return (reason,
                numpy.frombuffer((<const char *>&v)[:sizeof(v)], schema.dtype(schema.VERDICT))[0],
                numpy.frombuffer((<const char *>&o)[:sizeof(o)], schema.dtype(schema.ORDER))[0])

    def mark(self, book):
        """Take a BOOK record: reference price, touch, age and flags."""
        cdef hp_book_t record
        load(book, &record, sizeof(record))
        risk_mark(&self.r, &record)

    def order_event(self, event):
        """Take an ORDER_EVENT record: position and reservation move together."""
        cdef hp_order_event_t record
        load(event, &record, sizeof(record))
        risk_order_event(&self.r, &record)

    def position(self, position):
        """Take a POSITION record: the ledger's P&L of the day."""
        cdef hp_position_t record
        load(position, &record, sizeof(record))
        risk_position(&self.r, &record)

    def exposure(self, int64_t instrument) -> dict[str, int]:
        """What one instrument holds: nanoqty, orders, and its worst-case nanocash, rounded up."""
        cdef exposure_t *x = self.exposure_at(instrument)
        return {"qty": x.qty, "open_buy": x.open_qty[0], "open_sell": x.open_qty[1],
                "open_orders": x.open_orders, "reference": x.reference,
                "best_buy": x.best[0] if x.first[0] else 0,
                "best_sell": -x.best[1] if x.first[1] else 0,
                "worst": hp_wide_ceil(x.worst, NANO)}

    def limits_use(self, int64_t now) -> list[object]:
        """Each limit and its present use, in the integers that are compared; -1 = per order.

        Of limits per instrument, the use is the largest of any instrument.
        """
        cdef limits_t *limits = &self.r.limits
        cdef exposure_t *x
        cdef uint64_t i
        cdef int64_t shares = 0, orders = 0, recent = 0, shorts = 0
        cdef hp_wide_t worst = hp_wide_of(0)
        for i in range(self.r.count):
            x = &self.r.table[i]
            shares = max(shares, hp_add_saturate(x.qty, x.open_qty[0]),
                         hp_sub_saturate(x.open_qty[1], x.qty))
            orders = max(orders, x.open_orders)
            worst = hp_wide_max(worst, x.worst)
            shorts += x.qty < 0
        i = self.r.times_head
        while i and recent < limits.rate \
                and hp_sub_saturate(now, self.r.times[(i - 1) & self.r.times_mask]) < MINUTE:
            i -= 1
            recent += 1
        rows = (
            (limits.order_qty, -1), (limits.order_notional, -1), (limits.position_qty, shares),
            (limits.position_notional, hp_wide_ceil(worst, NANO)),
            (limits.total_notional, hp_wide_ceil(self.r.total, NANO)),
            (limits.open_positions, self.r.held),
            (limits.daily_loss, max(hp_sub_saturate(0, self.r.day_pnl), 0)),
            (limits.collar_bps, -1), (limits.rate, recent), (limits.open_orders, orders),
            (limits.data_age // 1000000, -1), (limits.allow_short, shorts))
        return [Use(limit.name, limit.unit, top, use)
                for limit, (top, use) in zip(LIMITS, rows, strict=True)]

    def counters(self) -> dict[str, int]:
        """Verdicts by reason (``none`` = approved, cancels included), and what else was seen."""
        out = {name.lower(): self.r.reasons[value] for name, value, _ in schema.REASON.members}
        out.update(cancels=self.r.cancels, orphans=self.r.orphans, unknown=self.r.unknown,
                   live=self.r.live)
        return out

    @property
    def limits_version(self) -> int:
        """Version of the limits in use; part of every token."""
        return self.r.limits_version

    def __len__(self):
        return self.r.live
