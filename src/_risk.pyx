"""Pre-trade risk: the checks, and what orders do to the exposure.

Order of the checks, units and promises are in ``_risk.pxd``; what comes from outside is taken
in ``_figure.pyx``; the handle for Python is in ``_gate.pyx``.
"""
from libc.stdint cimport INT32_MIN, INT64_MAX, INT64_MIN
from libc.string cimport memset

from ._atomic cimport hp_load_acquire, hp_load_relaxed, hp_prefetch_write
from ._breaker cimport (
    breaker_answer, breaker_approved, breaker_passes, breaker_step, breaker_tick)
from ._index cimport (
    hp_entries_t, hp_index_home, hp_index_next, hp_index_put, hp_index_remove, hp_index_tag,
    hp_index_walk)
from ._schema cimport (
    HP_ACTION_CANCEL, HP_ACTION_DENIED, HP_ACTION_NEW, HP_BOOK_FLAG_CROSSED, HP_BOOK_FLAG_EMPTY,
    HP_BOOK_FLAG_HALTED, HP_BOOK_FLAG_LIMITED, HP_BOOK_FLAG_STALE, HP_BREAKER_CLOSED,
    HP_FIGURE_CORRELATION, HP_FIGURE_SECTOR, HP_FIGURE_SESSION, HP_FIGURE_UNIT_VAR_95,
    HP_FIGURE_VAR_95, HP_FIGURE_VAR_99, HP_FIGURE_VOLUME_RATIO, HP_LIMIT_ALLOW_SHORT,
    HP_LIMIT_DRAWDOWN_ACT_BPS, HP_LIMIT_DUPLICATE_WINDOW_MS, HP_LIMIT_LAST_COLLAR_BPS,
    HP_LIMIT_MAX_CORRELATION, HP_LIMIT_MAX_DAILY_LOSS, HP_LIMIT_MAX_DATA_AGE_MS,
    HP_LIMIT_MAX_MONTHLY_LOSS, HP_LIMIT_MAX_OPEN_ORDERS, HP_LIMIT_MAX_OPEN_POSITIONS,
    HP_LIMIT_MAX_ORDERS_PER_DAY, HP_LIMIT_MAX_ORDERS_PER_MINUTE, HP_LIMIT_MAX_ORDER_NOTIONAL,
    HP_LIMIT_MAX_ORDER_SHARES, HP_LIMIT_MAX_PRICE, HP_LIMIT_MAX_SPREAD_BPS,
    HP_LIMIT_MAX_STRATEGY_ORDERS, HP_LIMIT_MAX_TOTAL_NOTIONAL, HP_LIMIT_MAX_TRADE_LOSS,
    HP_LIMIT_MAX_VAR_95, HP_LIMIT_MAX_VAR_99, HP_LIMIT_MAX_VOLATILITY_BPS,
    HP_LIMIT_MAX_WEEKLY_LOSS, HP_LIMIT_MIN_ORDER_NOTIONAL, HP_LIMIT_MIN_PRICE,
    HP_LIMIT_MIN_VOLUME_RATIO, HP_LIMIT_PRICE_COLLAR_BPS, HP_LIMIT_STOP_DISTANCE_BPS,
    HP_ORDER_EVENT_CANCELED, HP_ORDER_EVENT_CANCEL_REJECTED, HP_ORDER_EVENT_CANCEL_SENT,
    HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_FILL,
    HP_ORDER_EVENT_PARTIAL_FILL, HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_REPLACED,
    HP_ORDER_EVENT_SENT, HP_ORDER_EVENT_UNKNOWN, HP_ORDER_TYPE_LIMIT, HP_ORDER_TYPE_MARKET,
    HP_ORDER_TYPE_STOP_LIMIT, HP_ORDER_TYPE_TRAILING_STOP, HP_REASON_BREAKER,
    HP_REASON_CONCENTRATION, HP_REASON_CORRELATION, HP_REASON_CROSSES_ZERO, HP_REASON_DAILY_LOSS,
    HP_REASON_DRAWDOWN, HP_REASON_DUPLICATE, HP_REASON_DUPLICATE_ORDER, HP_REASON_HALTED,
    HP_REASON_HOURS, HP_REASON_INCREMENT, HP_REASON_INVALID_ORDER, HP_REASON_LAST_COLLAR,
    HP_REASON_LEVERAGE, HP_REASON_MONTHLY_LOSS, HP_REASON_NONE, HP_REASON_NOT_OPEN,
    HP_REASON_NO_FIGURE, HP_REASON_OLD_FIGURE, HP_REASON_OPEN_POSITIONS, HP_REASON_ORDERS_PER_DAY,
    HP_REASON_ORDER_NOTIONAL, HP_REASON_ORDER_RATE, HP_REASON_ORDER_SIZE, HP_REASON_ORDER_SMALL,
    HP_REASON_ORDER_VOLUME, HP_REASON_OVERFLOW, HP_REASON_PAUSED, HP_REASON_PENDING,
    HP_REASON_POSITION_NOTIONAL, HP_REASON_POSITION_SIZE, HP_REASON_POSITION_VOLUME,
    HP_REASON_PRICE_BAND, HP_REASON_PRICE_COLLAR, HP_REASON_PRICE_RANGE, HP_REASON_REPEATED,
    HP_REASON_RESTRICTED, HP_REASON_SECTOR, HP_REASON_SHORT_NOT_ALLOWED, HP_REASON_SPREAD,
    HP_REASON_STALE_DATA, HP_REASON_STORE_FULL, HP_REASON_TABLE_FULL, HP_REASON_TOTAL_NOTIONAL,
    HP_REASON_TRADE_LOSS, HP_REASON_TRADING_HALT, HP_REASON_UNKNOWN_INSTRUMENT,
    HP_REASON_UNRESOLVED, HP_REASON_UNSETTLED, HP_REASON_VAR_95, HP_REASON_VAR_99,
    HP_REASON_VOLATILITY, HP_REASON_VOLUME_RATIO, HP_REASON_WASH_TRADE, HP_REASON_WEEKLY_LOSS,
    HP_SEQ_BITS, HP_SIDE_BUY, HP_SIDE_SELL, HP_TIF_CLS, HP_TIF_DAY, HP_TIF_GTC)
from ._token cimport token_of

cdef enum:
    NANO = 1000000000
    MS = 1000000
    BPS = 10000
    CENT = NANO // 100
    STOP_COLLAR_BPS = 400
    UNUSABLE = (HP_BOOK_FLAG_STALE | HP_BOOK_FLAG_CROSSED | HP_BOOK_FLAG_HALTED
                | HP_BOOK_FLAG_EMPTY | HP_BOOK_FLAG_LIMITED)

cdef extern from *:                         # constants in the code, not words to be loaded
    """
    #define MINUTE INT64_C(60000000000)
    #define SEQ_MASK ((UINT64_C(1) << HP_SEQ_BITS) - 1)
    """
    const int64_t MINUTE
    const uint64_t SEQ_MASK

cdef struct quote_t:                        # what the checks found out about an order
    int64_t price                           # side * price it can trade at (for the wash check)
    int64_t worth                           # nanoprice
    uint32_t tag                            # of its instrument, side, price and quantity
    bint reduces
    bint moved                              # the value at risk was asked, so `moving` is known:
    int64_t moving                          # nanocash at risk of its instrument with it
    approval_t *twin                        # newest approval of the same; NULL = none


# ---------------------------------------------------------------- reservations

cdef inline reservation_t *order_find(const risk_t *r, uint64_t order) noexcept nogil:
    cdef uint32_t tag = hp_index_tag(order)
    cdef hp_entries_t same = hp_index_walk(&r.index, tag)
    cdef int64_t slot = hp_index_next(&r.index, &same, tag)
    while slot >= 0:
        if r.orders[slot].order == order:
            return &r.orders[slot]
        slot = hp_index_next(&r.index, &same, tag)
    return NULL


cdef inline int64_t asked_price(const hp_intent_t *i) noexcept nogil:
    """The prices of an order in one word; its limit price when that is all."""
    if not (i.stop | i.trail | i.trail_share):
        return i.price
    return <int64_t>(<uint64_t>i.price ^ <uint64_t>i.stop * 0x9E3779B185EBCA87ULL
                     ^ <uint64_t>i.trail * 0x165667B19E3779F9ULL
                     ^ <uint64_t>i.trail_share * 0x27D4EB2F165667C5ULL)


cdef inline uint32_t order_key(const hp_intent_t *i) noexcept nogil:
    """Tag of what makes two orders the same."""
    return hp_index_tag(<uint64_t>asked_price(i) * 0xC2B2AE3D27D4EB4FULL ^ <uint64_t>i.qty
                        ^ <uint64_t>i.instrument << 48 ^ <uint64_t>(i.side < 0) << 47)


cdef inline approval_t *same_find(const risk_t *r, const hp_intent_t *i,
                                  uint32_t tag) noexcept nogil:
    """The newest approval of an order like this one."""
    cdef hp_entries_t same = hp_index_walk(&r.recent, tag)
    cdef int64_t slot = hp_index_next(&r.recent, &same, tag)
    cdef int64_t price = asked_price(i)
    cdef approval_t *a
    while slot >= 0:
        a = &r.approvals[slot]
        # One question: tags are equal by chance so seldom that nothing of it is worth a guess.
        if not ((a.price ^ price) | (a.qty ^ i.qty)
                | (<int64_t>a.instrument ^ <int64_t>i.instrument)
                | (<int64_t>a.side ^ <int64_t>i.side)):
            return a
        slot = hp_index_next(&r.recent, &same, tag)
    return NULL


cdef inline void remember(risk_t *r, const hp_intent_t *i, const quote_t *q,
                          int64_t now) noexcept nogil:
    """Note an approval, for the rates and for orders like it."""
    cdef uint64_t slot = r.approved & r.approval_mask
    cdef approval_t *a = &r.approvals[slot]
    if r.approved:                              # a clock that stands still or steps back
        now = max(now, r.approvals[(r.approved - 1) & r.approval_mask].at)
    if a.indexed:
        hp_index_remove(&r.recent, a.tag, <uint32_t>slot)
        a.indexed = 0
    if q.twin != NULL and q.twin.indexed:
        hp_index_remove(&r.recent, q.twin.tag, <uint32_t>(q.twin - r.approvals))
        q.twin.indexed = 0
    a.at, a.price, a.qty, a.instrument, a.side = now, asked_price(i), i.qty, i.instrument, i.side
    a.tag, a.indexed = q.tag, 1
    hp_index_put(&r.recent, q.tag, <uint32_t>slot)
    r.approved += 1
    r.day_orders += 1
    r.executions[i.strategy] += 1
    if r.executions[i.strategy] >= r.limit[HP_LIMIT_MAX_STRATEGY_ORDERS]:
        r.latched[i.strategy >> 6] |= 1ULL << (i.strategy & 63)
    hp_prefetch_write(&r.approvals[r.approved & r.approval_mask])


cdef inline void reserve(risk_t *r, exposure_t *x, const hp_intent_t *i, const quote_t *q,
                         int64_t now) noexcept nogil:
    """Take a slot for an approved order.  The caller has checked that live < capacity."""
    cdef uint32_t slot = r.ring[r.head & r.mask]
    cdef reservation_t *t = &r.orders[slot]
    cdef int way = risk_way(i.side)
    r.head += 1
    if t.order:                                 # ended long ago: forgotten now (R4)
        hp_index_remove(&r.index, hp_index_tag(t.order), slot)
    t.order, t.qty, t.cum_qty, t.at = i.event, i.qty, 0, now
    t.price, t.worth = q.price, q.worth
    t.instrument, t.side, t.type, t.open = i.instrument, i.side, i.type, 1
    t.answered, t.reduces, t.unresolved = 0, q.reduces, 0
    hp_index_put(&r.index, hp_index_tag(t.order), slot)
    r.live += 1
    x.open_qty[way] += i.qty
    x.open_value[way] = hp_wide_add(x.open_value[way], hp_wide_mul(q.worth, i.qty))
    x.best[way] = max(x.best[way], q.price)
    t.next, t.previous = x.first[way], 0
    r.orders[<int64_t>t.next - 1].previous = slot + 1
    x.first[way] = slot + 1
    x.open_orders += 1
    hp_prefetch_write(&r.orders[r.ring[r.head & r.mask]])       # the next order's
    if q.moved:
        risk_moved(r, x, q.moving)
    elif r.at_risk:
        risk_move(r, x)
    risk_refresh(r, x)


cdef inline void unreserve(exposure_t *x, const reservation_t *t, int64_t qty) noexcept nogil:
    """Give back *qty* of one order."""
    cdef int way = risk_way(t.side)
    x.open_qty[way] -= qty
    x.open_value[way] = hp_wide_sub(x.open_value[way], hp_wide_mul(t.worth, qty))


cdef void resolved(exposure_t *x, reservation_t *t) noexcept nogil:
    """The venue has told what became of an order without an answer."""
    t.unresolved = 0
    x.unresolved -= 1
    if x.unresolved == 0:
        x.standing &= <uint8_t>~STANDING_UNRESOLVED


cdef void release(risk_t *r, exposure_t *x, reservation_t *t) noexcept nogil:
    """The order has ended: give back the rest, leave the lists, be remembered."""
    cdef uint32_t at
    cdef int way = risk_way(t.side)
    cdef uint32_t *before = &r.orders[<int64_t>t.previous - 1].next
    unreserve(x, t, risk_remaining(t))
    if t.unresolved:
        resolved(x, t)
    t.open = 0
    r.orders[<int64_t>t.next - 1].previous = t.previous
    if t.previous == 0:
        before = &x.first[way]
    before[0] = t.next
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


cdef uint8_t no_figure(hp_verdict_t *v, int kind, int64_t until, int64_t now) noexcept nogil:
    """A figure of *kind* that a check needs never came, or ended *until* then."""
    v.detail = <uint32_t>kind
    if until == INT64_MIN:
        return refuse(v, HP_REASON_NO_FIGURE, 0, 0)
    return refuse(v, HP_REASON_OLD_FIGURE, until, now)


cdef uint8_t missing(const risk_t *r, const exposure_t *x, int64_t now,
                     hp_verdict_t *v) noexcept nogil:
    """Which figure it is: the one of the smallest kind.  `needs` has no sessions or pairs."""
    cdef int kind, found = 0
    cdef int64_t until, ended = INT64_MIN
    for kind in range(RISK_KINDS - 1, 0, -1):
        if r.needs >> kind & 1:
            if kind == HP_FIGURE_SECTOR or HP_FIGURE_UNIT_VAR_95 <= kind <= HP_FIGURE_VOLUME_RATIO:
                until = x.expires[risk_kind_slot(kind)]
            else:
                until = r.expires[kind]
            if now > until:
                found, ended = kind, until
    return no_figure(v, found, ended, now)


cdef inline uint64_t pair_at(uint64_t a, uint64_t b) noexcept nogil:
    """Place of a pair of two instruments."""
    return a * (a - 1) // 2 + b if a > b else b * (b - 1) // 2 + a


cdef void pairs_end(risk_t *r, uint64_t i, int64_t now) noexcept nogil:
    """Pairs of *i* that have come to their end refuse from now on."""
    cdef pairs_t *p = &r.pairs
    cdef int64_t until = INT64_MAX
    cdef uint64_t j, at
    for j in range(r.count):
        if j != i and not p.bad[i * p.words + (j >> 6)] >> (j & 63) & 1:
            at = pair_at(i, j)
            if now > p.expires[at]:
                p.bad[i * p.words + (j >> 6)] |= 1ULL << (j & 63)
                p.bad[j * p.words + (i >> 6)] |= 1ULL << (i & 63)
            else:
                until = min(until, p.expires[at])
    p.until[i] = until


cdef uint8_t pair_refuses(const risk_t *r, uint64_t i, uint64_t word, uint64_t bits, int64_t now,
                          hp_verdict_t *v) noexcept nogil:
    """The first pair of *i* with an instrument held, of *bits*, that is not good."""
    cdef uint64_t j = word * 64, at
    cdef uint8_t reason
    while not bits & 1:
        bits >>= 1
        j += 1
    at = pair_at(i, j)
    if r.pairs.value[at] == INT32_MIN:
        reason = no_figure(v, HP_FIGURE_CORRELATION, INT64_MIN, now)
    elif now > r.pairs.expires[at]:
        reason = no_figure(v, HP_FIGURE_CORRELATION, r.pairs.expires[at], now)
    else:
        reason = refuse(v, HP_REASON_CORRELATION, r.limit[HP_LIMIT_MAX_CORRELATION],
                        r.pairs.value[at])
        v.detail = <uint32_t>j
        return reason
    v.detail |= <uint32_t>j << 16
    return reason


cdef inline uint8_t correlated(risk_t *r, uint64_t i, int64_t now, hp_verdict_t *v) noexcept nogil:
    """Whether *i* moves too much, or nobody knows how much, with another instrument held."""
    cdef pairs_t *p = &r.pairs
    cdef uint64_t k, any_bad = 0
    cdef const uint64_t *bad = &p.bad[i * p.words]
    if now > p.until[i]:
        pairs_end(r, i, now)
    for k in range(p.words):                    # no way out of it: then it is done in vectors
        any_bad |= bad[k] & p.held[k]
    if any_bad == 0:
        return HP_REASON_NONE
    k = 0
    while not bad[k] & p.held[k]:
        k += 1
    return pair_refuses(r, i, k, bad[k] & p.held[k], now, v)


cdef inline bint between(const exposure_t *x, int64_t price, hp_verdict_t *v) noexcept nogil:
    """Whether *price*, 0 = none, lies between two that the venue takes; then fills *v*."""
    cdef int64_t least = x.tick
    if price % least == 0:
        if not x.traits & TRAIT_CENTS:
            return False
        least = CENT if price >= NANO else CENT // 100      # Alpaca: 422 sub-penny, docs 2026-05
        if price % least == 0:
            return False
    v.limit, v.value = least, price
    return True


cdef bint triggers(const exposure_t *x, const hp_intent_t *i, int64_t touch, int64_t sell,
                   hp_verdict_t *v) noexcept nogil:
    """Whether what an order waits for is malformed; fills limit and value of *v*."""
    v.limit, v.value = HP_ORDER_TYPE_TRAILING_STOP, i.type
    if i.type < HP_ORDER_TYPE_MARKET or i.type > HP_ORDER_TYPE_TRAILING_STOP:
        return True
    v.limit, v.value = HP_TIF_GTC, i.tif
    if i.tif > HP_TIF_GTC:                      # the broker takes stops for the day or longer only
        return True
    if i.type == HP_ORDER_TYPE_TRAILING_STOP:
        v.limit, v.value = 0, i.stop
        if i.stop:
            return True
        if i.trail_share:
            v.limit, v.value = NANO, i.trail_share
            return i.trail != 0 or i.trail_share < 0 or i.trail_share >= NANO
        v.limit, v.value = touch, i.trail
        return i.trail <= 0 or i.trail >= touch
    v.limit, v.value = 0, i.trail | i.trail_share
    if v.value:
        return True
    v.limit, v.value = 0, i.stop
    if i.stop <= 0:
        return True
    v.limit = touch                             # on the other side it would be a market order
    return ((i.stop ^ sell) - sell) <= ((touch ^ sell) - sell)


cdef int64_t risk_market_worth(const hp_intent_t *i, int64_t touch, int64_t collar) noexcept nogil:
    """What an order without a limit price is valued at; INT64_MAX = no number.

    Sales at the bid plus the collar, whatever they wait for.  What buys at a trigger begins there,
    and the broker stops at 4 % above it.
    """
    cdef int64_t worth
    if i.side > 0 and i.type != HP_ORDER_TYPE_MARKET:
        collar = max(collar, <int64_t>STOP_COLLAR_BPS)
        touch = i.stop if i.stop else hp_add_saturate(
            touch, i.trail + hp_wide_ceil(hp_wide_mul(touch, i.trail_share), NANO))
    if hp_add_overflow(touch, hp_bps_ceil(touch, collar), &worth):
        return INT64_MAX
    return worth


cdef inline uint8_t judge(risk_t *r, const hp_intent_t *i, int64_t now, uint64_t halt,
                          uint64_t armed, bint fresh, hp_verdict_t *v,
                          quote_t *q) noexcept nogil:
    """All checks of a new order; fills limit, value, detail and reference of *v* and *q*."""
    cdef const int64_t *limit = r.limit
    cdef const exposure_t *x
    cdef int64_t k, touch, at, near, held, after, distance
    cdef bint limited = i.type == HP_ORDER_TYPE_LIMIT
    cdef int way = risk_way(i.side)
    cdef int64_t sell = -<int64_t>(i.side <= 0)     # all bits of a sell, none of a buy
    cdef bint reducing
    cdef uint8_t reason
    cdef hp_wide_t value, side, total, more
    if r.header != NULL:
        if armed == 0 or armed != halt:
            return refuse(v, HP_REASON_HALTED, <int64_t>armed, <int64_t>halt)
        for k in range(r.stages):
            if hp_load_relaxed(&r.blocks[k].store_full):
                return refuse(v, HP_REASON_STORE_FULL, 0, k)
    if r.unsettled:
        return refuse(v, HP_REASON_UNSETTLED, 0, 1)
    if i.instrument >= r.count:
        return refuse(v, HP_REASON_UNKNOWN_INSTRUMENT, <int64_t>r.count - 1, i.instrument)
    x = &r.table[i.instrument]
    v.reference = x.reference
    # Positive is the side of the order from here on.
    held = (x.qty ^ sell) - sell
    q.reduces = reducing = held < 0

    if not reducing and not breaker_passes(&r.breaker):
        v.detail = r.breaker.cause
        return refuse(v, HP_REASON_BREAKER, HP_BREAKER_CLOSED, r.breaker.state)
    if x.standing & (STANDING_PAUSED | STANDING_RESTRICTED | STANDING_UNRESOLVED):
        if x.standing & STANDING_PAUSED:
            return refuse(v, HP_REASON_PAUSED, 0, 1)
        if x.standing & STANDING_RESTRICTED:
            return refuse(v, HP_REASON_RESTRICTED, 0, 1)
        return refuse(v, HP_REASON_UNRESOLVED, 0, x.unresolved)

    touch = (&x.bid)[1 + sell]
    if x.reference <= 0 or x.flags & UNUSABLE or (not limited and touch <= 0):
        return refuse(v, HP_REASON_TRADING_HALT if x.flags & HP_BOOK_FLAG_HALTED else
                      HP_REASON_PRICE_BAND if x.flags & HP_BOOK_FLAG_LIMITED else
                      HP_REASON_STALE_DATA, 0, x.flags)
    if hp_sub_saturate(now, x.mark_ts) > limit[HP_LIMIT_MAX_DATA_AGE_MS] * MS:
        return refuse(v, HP_REASON_STALE_DATA, limit[HP_LIMIT_MAX_DATA_AGE_MS] * MS,
                      hp_sub_saturate(now, x.mark_ts))
    if not reducing and (now > x.until or now > r.until):
        return missing(r, x, now, v)

    if i.action != HP_ACTION_NEW:
        return refuse(v, HP_REASON_INVALID_ORDER, HP_ACTION_NEW, i.action)
    if i.side != HP_SIDE_BUY and i.side != HP_SIDE_SELL:
        return refuse(v, HP_REASON_INVALID_ORDER, HP_SIDE_BUY, i.side)
    if i.tif < HP_TIF_DAY or i.tif > HP_TIF_CLS:
        return refuse(v, HP_REASON_INVALID_ORDER, HP_TIF_CLS, i.tif)
    if i.qty <= 0 or i.qty < x.min_qty:
        return refuse(v, HP_REASON_INVALID_ORDER, x.min_qty, i.qty)
    if limited or i.type == HP_ORDER_TYPE_STOP_LIMIT:
        if i.price <= 0:
            return refuse(v, HP_REASON_INVALID_ORDER, 0, i.price)
    elif i.price != 0:
        return refuse(v, HP_REASON_INVALID_ORDER, 0, i.price)
    if limited or i.type == HP_ORDER_TYPE_MARKET:
        if i.stop | i.trail | i.trail_share:
            return refuse(v, HP_REASON_INVALID_ORDER, 0, i.stop | i.trail | i.trail_share)
    elif triggers(x, i, touch, sell, v):
        return HP_REASON_INVALID_ORDER
    else:
        v.limit = v.value = 0
    if i.qty % x.lot:
        return refuse(v, HP_REASON_INCREMENT, x.lot, i.qty)
    if between(x, i.price, v) or between(x, i.stop, v) or between(x, i.trail, v):
        return HP_REASON_INCREMENT

    if not fresh:
        return refuse(v, HP_REASON_DUPLICATE, <int64_t>r.seen[i.event >> HP_SEQ_BITS],
                      <int64_t>(i.event & SEQ_MASK))
    q.tag = order_key(i)
    q.twin = same_find(r, i, q.tag)
    if q.twin != NULL:
        k = max(hp_sub_saturate(now, q.twin.at), 0)
        if k < limit[HP_LIMIT_DUPLICATE_WINDOW_MS] * MS:
            return refuse(v, HP_REASON_DUPLICATE_ORDER, limit[HP_LIMIT_DUPLICATE_WINDOW_MS] * MS,
                          k)

    if limited:
        at = near = i.price
        q.price = (at ^ sell) - sell
        q.worth = max(at, x.bid & sell)
    elif i.type == HP_ORDER_TYPE_STOP_LIMIT:
        at = i.price
        near = hp_add_saturate(x.reference, at - i.stop)    # as far as it is from its trigger
        q.price = (at ^ sell) - sell
        q.worth = max(at, x.bid & sell)
    else:
        at = i.stop if i.stop else touch
        near = touch
        q.price = INT64_MAX & ~sell
        q.worth = risk_market_worth(i, touch, limit[HP_LIMIT_PRICE_COLLAR_BPS])
        if q.worth == INT64_MAX:
            return refuse(v, HP_REASON_OVERFLOW, 0, touch)
    if not reducing:
        if at < limit[HP_LIMIT_MIN_PRICE]:
            return refuse(v, HP_REASON_PRICE_RANGE, limit[HP_LIMIT_MIN_PRICE], at)
        if at > limit[HP_LIMIT_MAX_PRICE]:
            return refuse(v, HP_REASON_PRICE_RANGE, limit[HP_LIMIT_MAX_PRICE], at)
    if i.qty > limit[HP_LIMIT_MAX_ORDER_SHARES]:
        return refuse(v, HP_REASON_ORDER_SIZE, limit[HP_LIMIT_MAX_ORDER_SHARES], i.qty)
    value = hp_wide_mul(q.worth, i.qty)
    if not hp_wide_fits(value):
        return refuse(v, HP_REASON_OVERFLOW, limit[HP_LIMIT_MAX_ORDER_NOTIONAL], INT64_MAX)
    if hp_wide_less(hp_wide_cash(limit[HP_LIMIT_MAX_ORDER_NOTIONAL]), value):
        return refuse_cash(v, HP_REASON_ORDER_NOTIONAL, limit[HP_LIMIT_MAX_ORDER_NOTIONAL], value)
    if not reducing and hp_wide_less(value, hp_wide_cash(limit[HP_LIMIT_MIN_ORDER_NOTIONAL])):
        return refuse(v, HP_REASON_ORDER_SMALL, limit[HP_LIMIT_MIN_ORDER_NOTIONAL],
                      hp_wide_floor(value, NANO))

    k = limit[HP_LIMIT_MAX_ORDERS_PER_MINUTE]
    if r.approved >= <uint64_t>k and hp_sub_saturate(
            now, r.approvals[(r.approved - k) & r.approval_mask].at) < MINUTE:
        return refuse(v, HP_REASON_ORDER_RATE, k, k + 1)
    if not reducing:
        if r.day_orders >= limit[HP_LIMIT_MAX_ORDERS_PER_DAY]:
            return refuse(v, HP_REASON_ORDERS_PER_DAY, limit[HP_LIMIT_MAX_ORDERS_PER_DAY],
                          r.day_orders + 1)
        if r.latched[i.strategy >> 6] >> (i.strategy & 63) & 1 \
                or r.executions[i.strategy] >= limit[HP_LIMIT_MAX_STRATEGY_ORDERS]:
            v.detail = i.strategy
            return refuse(v, HP_REASON_REPEATED, limit[HP_LIMIT_MAX_STRATEGY_ORDERS],
                          r.executions[i.strategy] + 1)

    # The position when everything open on this side fills, and this order too.
    if hp_add_overflow(held, x.open_qty[way], &after) or hp_add_overflow(after, i.qty, &after):
        return refuse(v, HP_REASON_OVERFLOW, x.position_qty, INT64_MAX)
    if reducing:
        if after > 0:
            return refuse(v, HP_REASON_CROSSES_ZERO, 0, (after ^ sell) - sell)
    else:
        if way > ((limit[HP_LIMIT_ALLOW_SHORT] != 0) & (x.traits & TRAIT_SHORTABLE != 0)):
            return refuse(v, HP_REASON_SHORT_NOT_ALLOWED, 0, -after)
        if after > x.position_qty:
            return refuse(v, HP_REASON_POSITION_SIZE, x.position_qty, after)
        side = hp_wide_add(hp_wide_side(x.value, i.side), hp_wide_add(x.open_value[way], value))
        if not hp_wide_fits(side):
            return refuse(v, HP_REASON_OVERFLOW, x.position_notional, INT64_MAX)
        if hp_wide_less(hp_wide_cash(x.position_notional), side):
            return refuse_cash(v, HP_REASON_POSITION_NOTIONAL, x.position_notional, side)
        more = hp_wide_sub(hp_wide_max(x.worst, side), x.worst)
        total = hp_wide_add(r.total, more)
        if not hp_wide_fits(total):
            return refuse(v, HP_REASON_OVERFLOW, limit[HP_LIMIT_MAX_TOTAL_NOTIONAL], INT64_MAX)
        if hp_wide_less(hp_wide_cash(limit[HP_LIMIT_MAX_TOTAL_NOTIONAL]), total):
            return refuse_cash(v, HP_REASON_TOTAL_NOTIONAL, limit[HP_LIMIT_MAX_TOTAL_NOTIONAL],
                               total)
        if not x.held and r.held >= limit[HP_LIMIT_MAX_OPEN_POSITIONS]:
            return refuse(v, HP_REASON_OPEN_POSITIONS, limit[HP_LIMIT_MAX_OPEN_POSITIONS],
                          r.held + 1)
    if x.open_orders >= limit[HP_LIMIT_MAX_OPEN_ORDERS]:
        return refuse(v, HP_REASON_PENDING, limit[HP_LIMIT_MAX_OPEN_ORDERS], x.open_orders + 1)
    if not reducing:
        if r.day_loss >= limit[HP_LIMIT_MAX_DAILY_LOSS]:
            return refuse(v, HP_REASON_DAILY_LOSS, limit[HP_LIMIT_MAX_DAILY_LOSS], r.day_loss)
        if r.week_loss >= limit[HP_LIMIT_MAX_WEEKLY_LOSS]:
            return refuse(v, HP_REASON_WEEKLY_LOSS, limit[HP_LIMIT_MAX_WEEKLY_LOSS], r.week_loss)
        if r.month_loss >= limit[HP_LIMIT_MAX_MONTHLY_LOSS]:
            return refuse(v, HP_REASON_MONTHLY_LOSS, limit[HP_LIMIT_MAX_MONTHLY_LOSS],
                          r.month_loss)
        if x.standing & STANDING_TRADE_LOSS:
            return refuse(v, HP_REASON_TRADE_LOSS, limit[HP_LIMIT_MAX_TRADE_LOSS],
                          hp_sub_saturate(0, x.unrealised))
        if hp_wide_less(r.trade_cap, side):
            return refuse(v, HP_REASON_TRADE_LOSS, limit[HP_LIMIT_MAX_TRADE_LOSS], hp_wide_ceil(
                hp_wide_times(side, limit[HP_LIMIT_STOP_DISTANCE_BPS]), <int64_t>NANO * BPS))
        if hp_wide_less(r.symbol_cap, side):
            return refuse_cash(v, HP_REASON_CONCENTRATION, hp_wide_floor(r.symbol_cap, NANO), side)
        if hp_wide_less(r.sector_cap, hp_wide_add(r.sectors[x.sector], more)):
            v.detail = x.sector
            return refuse_cash(v, HP_REASON_SECTOR, hp_wide_floor(r.sector_cap, NANO),
                               hp_wide_add(r.sectors[x.sector], more))
        if r.at_risk:
            q.moving = hp_wide_nanocash(hp_wide_add(
                value, hp_wide_add(x.since, hp_wide_add(x.open_value[0], x.open_value[1]))))
            q.moved = True
            k = q.moving - x.moving
            side = hp_wide_add(r.moving[0], hp_wide_mul(k, x.unit_var[0]))
            if hp_wide_less(r.var_cap[0], side):
                return refuse(v, HP_REASON_VAR_95, limit[HP_LIMIT_MAX_VAR_95], hp_add_saturate(
                    r.figure[HP_FIGURE_VAR_95], hp_wide_ceil(side, NANO)))
            side = hp_wide_add(r.moving[1], hp_wide_mul(k, x.unit_var[1]))
            if hp_wide_less(r.var_cap[1], side):
                return refuse(v, HP_REASON_VAR_99, limit[HP_LIMIT_MAX_VAR_99], hp_add_saturate(
                    r.figure[HP_FIGURE_VAR_99], hp_wide_ceil(side, NANO)))
        if r.drawdown >= limit[HP_LIMIT_DRAWDOWN_ACT_BPS]:
            return refuse(v, HP_REASON_DRAWDOWN, limit[HP_LIMIT_DRAWDOWN_ACT_BPS], r.drawdown)
        if r.paired:
            reason = correlated(r, i.instrument, now, v)
            if reason:
                return reason
        if x.standing & STANDING_VOLATILITY:
            return refuse(v, HP_REASON_VOLATILITY,
                          limit[HP_LIMIT_MAX_VOLATILITY_BPS] * (NANO // BPS), x.volatility)
        if hp_wide_less(r.gross_cap, total):
            return refuse_cash(v, HP_REASON_LEVERAGE, hp_wide_floor(r.gross_cap, NANO), total)

    if r.hours:
        if now > x.session_until:
            return no_figure(v, HP_FIGURE_SESSION, x.session_until, now)
        if not r.sessions >> x.session & 1:
            return refuse(v, HP_REASON_HOURS, <int64_t>r.sessions, x.session)

    distance = near - x.reference
    if distance < 0:
        distance = -distance
    if hp_wide_less(hp_wide_mul(x.reference, limit[HP_LIMIT_PRICE_COLLAR_BPS]),
                    hp_wide_mul(distance, BPS)):
        return refuse(v, HP_REASON_PRICE_COLLAR, limit[HP_LIMIT_PRICE_COLLAR_BPS],
                      hp_wide_ceil(hp_wide_mul(distance, BPS), x.reference))
    k = limit[HP_LIMIT_LAST_COLLAR_BPS]
    distance = near - x.last
    if distance < 0:
        distance = -distance
    if k != INT64_MAX and hp_wide_less(hp_wide_mul(x.last, k), hp_wide_mul(distance, BPS)):
        return refuse(v, HP_REASON_LAST_COLLAR, k, hp_wide_ceil(
            hp_wide_mul(distance, BPS), x.last) if x.last else INT64_MAX)

    if not reducing:
        if i.qty > x.order_volume:
            return refuse(v, HP_REASON_ORDER_VOLUME, x.order_volume, i.qty)
        if after > x.position_volume:
            return refuse(v, HP_REASON_POSITION_VOLUME, x.position_volume, after)
        if x.standing & STANDING_SPREAD:
            return refuse(v, HP_REASON_SPREAD, limit[HP_LIMIT_MAX_SPREAD_BPS],
                          hp_spread_bps(x.bid, x.ask) if x.bid > 0 and x.ask > 0 else INT64_MAX)
        if x.standing & STANDING_VOLUME_RATIO:
            return refuse(v, HP_REASON_VOLUME_RATIO, limit[HP_LIMIT_MIN_VOLUME_RATIO], x.ratio)

    # Best of the other side, seen from this one: an ask to a buy, minus a bid to a sell.
    if x.first[1 - way] and q.price >= -x.best[1 - way]:
        return refuse(v, HP_REASON_WASH_TRADE, i.side * -x.best[1 - way], q.price * i.side)

    if r.live >= r.capacity:
        return refuse(v, HP_REASON_TABLE_FULL, <int64_t>r.capacity, <int64_t>r.live + 1)
    return HP_REASON_NONE


cdef uint32_t risk_token(uint64_t key, const hp_order_t *o, uint64_t halt,
                         uint64_t version) noexcept nogil:
    return token_of(key, o.order, o.price, o.qty, o.instrument, o.side, o.type, o.tif, o.action,
                    halt, version, o.stop, o.trail, o.trail_share)


cdef inline void cancel_of(const reservation_t *t, hp_order_t *o) noexcept nogil:
    """The fields of an order that name its target."""
    o.order, o.qty, o.instrument, o.side, o.type = t.order, t.qty, t.instrument, t.side, t.type
    o.price = 0
    if t.type == HP_ORDER_TYPE_LIMIT or t.type == HP_ORDER_TYPE_STOP_LIMIT:
        o.price = t.price * t.side


cdef int risk_check(risk_t *r, const hp_intent_t *i, int64_t now, hp_verdict_t *v,
                    hp_order_t *o) noexcept nogil:
    cdef uint64_t stream = i.event >> HP_SEQ_BITS
    cdef uint64_t seq = i.event & SEQ_MASK
    cdef bint fresh = seq > r.seen[stream]
    cdef uint64_t armed = 0, halt = 0
    cdef int64_t hop
    cdef const reservation_t *target = NULL
    cdef uint8_t reason
    cdef exposure_t *x
    cdef quote_t q
    memset(&q, 0, sizeof(q))
    if i.instrument < r.count:
        # Of a thousand symbols these lines are seldom near; they come while the page is read.
        x = &r.table[i.instrument]
        hp_prefetch_write(x)
        hp_prefetch_write(&x.qty)
        hp_prefetch_write(&x.value)
        hp_prefetch_write(&x.until)
        hp_prefetch_write(&x.unit_var)
        hp_prefetch_write(hp_index_home(&r.index, hp_index_tag(i.event)))
        hp_prefetch_write(hp_index_home(&r.recent, order_key(i)))
        if r.paired:
            hp_prefetch_write(&r.pairs.until[i.instrument])
            hp_prefetch_write(&r.pairs.bad[i.instrument * r.pairs.words])
            if r.pairs.words > 8:
                hp_prefetch_write(&r.pairs.bad[i.instrument * r.pairs.words + 8])
        # And what an approval forgets to make room.
        hp_prefetch_write(hp_index_home(
            &r.recent, r.approvals[r.approved & r.approval_mask].tag))
        hp_prefetch_write(hp_index_home(
            &r.index, hp_index_tag(r.orders[r.ring[r.head & r.mask]].order)))
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
    if r.breaker.state != HP_BREAKER_CLOSED:
        breaker_tick(&r.breaker, now)
    if i.action == HP_ACTION_CANCEL:
        reason = HP_REASON_NOT_OPEN
        target = order_find(r, stream << HP_SEQ_BITS | i.target) if i.target else NULL
        if target != NULL and target.open:
            reason = HP_REASON_NONE
        else:
            v.value = i.target
    else:
        reason = judge(r, i, now, halt, armed, fresh, v, &q)
    if fresh:
        r.seen[stream] = seq
    r.reasons[reason] += 1
    v.reason = o.reason = reason
    if reason != HP_REASON_NONE:
        v.token = o.token = 0
        o.action = HP_ACTION_DENIED
        if i.action == HP_ACTION_CANCEL:
            o.qty = 0                           # it never was open: nobody takes it back
        elif reason == HP_REASON_REPEATED:
            r.latched[i.strategy >> 6] |= 1ULL << (i.strategy & 63)
        return reason
    o.action = i.action
    if target != NULL:
        r.cancels += 1
        cancel_of(target, o)
        v.instrument = target.instrument
        v.reference = r.table[target.instrument].reference
    else:
        if i.stop | i.trail | i.trail_share:    # most orders wait for nothing: one line less
            o.stop, o.trail, o.trail_share = i.stop, i.trail, i.trail_share
        reserve(r, &r.table[i.instrument], i, &q, now)
        remember(r, i, &q, now)
        if not q.reduces:
            breaker_approved(&r.breaker, i.event)
        v.token = o.token = token_of(
            r.token_key, o.order, o.price, o.qty, o.instrument, o.side, o.type, o.tif, o.action,
            halt, r.limits_version, i.stop, i.trail, i.trail_share)
        return HP_REASON_NONE
    v.token = o.token = token_of(
        r.token_key, o.order, o.price, o.qty, o.instrument, o.side, o.type, o.tif, o.action,
        halt, r.limits_version, 0, 0, 0)
    return HP_REASON_NONE


cdef bint risk_withdraw(risk_t *r, uint64_t slot, hp_order_t *o) noexcept nogil:
    cdef const reservation_t *t = &r.orders[slot]
    if not t.open or t.reduces:
        return False
    cancel_of(t, o)
    o.cause, o.ts_recv, o.hop, o.tif, o.strategy, o.reason = 0, 0, 0, HP_TIF_DAY, 0, 0
    o.action = HP_ACTION_CANCEL
    o.token = risk_token(r.token_key, o, 0, 0)
    return True


# ---------------------------------------------------------------- what happens

cdef void risk_mark(risk_t *r, const hp_book_t *b) noexcept nogil:
    cdef exposure_t *x
    cdef int64_t reference
    cdef int64_t widest = r.limit[HP_LIMIT_MAX_SPREAD_BPS]
    cdef bint wide = widest != INT64_MAX        # with a side missing it cannot be told
    if b.instrument >= r.count:
        r.unknown += 1
        return
    x = &r.table[b.instrument]
    x.bid, x.ask, x.flags, x.mark_ts = b.bid, b.ask, b.flags, b.ts_recv
    x.last = max(b.last_price, 0)
    reference = x.reference                     # positions keep their last value
    if b.bid > 0 and b.ask > 0:
        reference = <int64_t>((<uint64_t>b.bid + <uint64_t>b.ask) >> 1)
        wide = wide and risk_spread_wide(x, widest)
    elif b.last_price > 0:
        reference = b.last_price
    x.standing = x.standing & ~STANDING_SPREAD | (STANDING_SPREAD if wide else 0)
    if reference != x.reference:
        x.reference = reference
        if x.qty:
            risk_refresh(r, x)


cdef void fill_note(risk_t *r, exposure_t *x, uint64_t event, hp_wide_t value) noexcept nogil:
    """A fill that no value at risk knows yet."""
    cdef fill_t *f = &r.fills[r.fill_head & (RISK_FILLS - 1)]
    cdef exposure_t *lost
    if r.fill_head - r.fill_tail == RISK_FILLS:         # no room: figures older than it miss it
        lost = &r.table[f.instrument]
        lost.since = hp_wide_sub(lost.since, f.value)
        r.basis_least = max(r.basis_least, f.event)
        r.expires[HP_FIGURE_VAR_95] = r.expires[HP_FIGURE_VAR_99] = r.until = INT64_MIN
        r.fill_tail += 1
        if lost != x:
            risk_move(r, lost)
    value = hp_wide_clamp(value)
    f.value, f.event, f.instrument = value, event, <uint64_t>(x - r.table)
    r.fill_head += 1
    x.since = hp_wide_add(x.since, value)


cdef void risk_order_event(risk_t *r, const hp_order_event_t *e, int64_t now) noexcept nogil:
    cdef bint newer = e.event == 0 or e.event > r.last_event
    cdef reservation_t *t = order_find(r, e.order) if e.order else NULL
    cdef exposure_t *x
    cdef int64_t moved
    r.last_event = max(r.last_event, e.event)
    if newer:
        if t != NULL and not t.answered and e.kind not in (
                HP_ORDER_EVENT_SENT, HP_ORDER_EVENT_CANCEL_SENT, HP_ORDER_EVENT_UNKNOWN,
                HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_DENIED):
            t.answered = 1
            breaker_answer(&r.breaker, hp_sub_saturate(now, t.at), now)
        breaker_step(&r.breaker, e.order, e.kind, e.reason, now)
        if t != NULL and t.open:
            x = &r.table[t.instrument]
            if e.kind == HP_ORDER_EVENT_UNKNOWN:
                x.unresolved += 1 - t.unresolved
                t.unresolved = 1
                x.standing |= STANDING_UNRESOLVED
            elif t.unresolved and e.kind not in (
                    HP_ORDER_EVENT_SENT, HP_ORDER_EVENT_CANCEL_SENT,
                    HP_ORDER_EVENT_CANCEL_REJECTED):
                resolved(x, t)
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
        if r.at_risk:
            fill_note(r, x, e.event, hp_wide_mul(e.qty, max(e.price, x.reference)))
            risk_move(r, x)
        risk_refresh(r, x)
        return
    x = &r.table[t.instrument]
    if e.cum_qty > t.cum_qty:                   # R2
        moved = hp_sub_saturate(e.cum_qty, t.cum_qty)
        x.qty = max(hp_add_saturate(x.qty, moved * t.side), -INT64_MAX)
        if t.open:
            unreserve(x, t, min(moved, risk_remaining(t)))
        t.cum_qty = e.cum_qty
        if r.at_risk:
            fill_note(r, x, e.event, hp_wide_mul(moved, t.worth))
    elif not t.open:
        return
    if t.open and (t.cum_qty >= t.qty or e.kind in (
            HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_CANCELED, HP_ORDER_EVENT_REJECTED,
            HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_DENIED,
            HP_ORDER_EVENT_REPLACED)):
        release(r, x, t)
    if r.at_risk:
        risk_move(r, x)
    risk_refresh(r, x)
