"""What the gate takes from outside; promises are in ``_figure.pxd``."""
from libc.stdint cimport INT32_MIN, INT64_MAX, INT64_MIN, int32_t, uint8_t
from libc.string cimport memset

from ._atomic cimport hp_store_release
from ._breaker cimport breaker_set, breaker_trade, breaker_trip
from ._risk cimport (
    RISK_FILLS, RISK_KINDS, STANDING_PAUSED, STANDING_RESTRICTED, STANDING_SPREAD,
    STANDING_UNRESOLVED, STANDING_TRADE_LOSS, STANDING_VOLATILITY, STANDING_VOLUME_RATIO,
    exposure_t, fill_t, hp_add_saturate, hp_share_floor, hp_sub_saturate, hp_wide_add, hp_wide_cash,
    hp_wide_mul, hp_wide_over, hp_wide_sub, hp_wide_t, hp_wide_times, pairs_t, risk_kind_slot,
    risk_move, risk_spread_wide)
from ._schema cimport (
    HP_BREAKER_CAUSE_DAILY_LOSS, HP_BREAKER_CAUSE_DRAWDOWN, HP_FIGURE_BREAKER,
    HP_FIGURE_CORRELATION, HP_FIGURE_EQUITY, HP_FIGURE_LIMIT, HP_FIGURE_MONTH_PNL, HP_FIGURE_PAUSE,
    HP_FIGURE_PEAK, HP_FIGURE_REARM, HP_FIGURE_RESTRICT, HP_FIGURE_SECTOR, HP_FIGURE_SESSION,
    HP_FIGURE_UNIT_VAR_95, HP_FIGURE_UNIT_VAR_99, HP_FIGURE_VAR_95, HP_FIGURE_VAR_99,
    HP_FIGURE_VOLATILITY, HP_FIGURE_VOLUME, HP_FIGURE_VOLUME_RATIO, HP_FIGURE_WEEK_PNL,
    HP_LIMIT_ALLOW_AFTERHOURS, HP_LIMIT_ALLOW_PREMARKET, HP_LIMIT_BASE_VOLATILITY_BPS,
    HP_LIMIT_BREAKER_COOLDOWN_MS, HP_LIMIT_BREAKER_DAILY_LOSS, HP_LIMIT_BREAKER_DRAWDOWN_BPS,
    HP_LIMIT_BREAKER_FAILURES, HP_LIMIT_BREAKER_LATENCY_MS, HP_LIMIT_BREAKER_LOSSES,
    HP_LIMIT_BREAKER_QUIET_MS, HP_LIMIT_BREAKER_REJECTS, HP_LIMIT_BREAKER_SLOW_MS,
    HP_LIMIT_DRAWDOWN_ACT_BPS, HP_LIMIT_DRAWDOWN_CONFIRM, HP_LIMIT_DRAWDOWN_HALT_BPS,
    HP_LIMIT_DRAWDOWN_WARN_BPS, HP_LIMIT_MARKET_HOURS, HP_LIMIT_MAX_CORRELATION,
    HP_LIMIT_MAX_DAILY_LOSS, HP_LIMIT_MAX_FIGURE_AGE_MS, HP_LIMIT_MAX_LEVERAGE,
    HP_LIMIT_MAX_MONTHLY_LOSS, HP_LIMIT_MAX_ORDERS_PER_MINUTE, HP_LIMIT_MAX_ORDER_VOLUME_BPS,
    HP_LIMIT_MAX_POSITION_NOTIONAL, HP_LIMIT_MAX_POSITION_SHARES, HP_LIMIT_MAX_POSITION_VOLUME_BPS,
    HP_LIMIT_MAX_SECTOR_SHARE_BPS, HP_LIMIT_MAX_SPREAD_BPS, HP_LIMIT_MAX_SYMBOL_SHARE_BPS,
    HP_LIMIT_MAX_TRADE_LOSS, HP_LIMIT_MAX_VAR_95, HP_LIMIT_MAX_VAR_99, HP_LIMIT_MAX_VOLATILITY_BPS,
    HP_LIMIT_MAX_WEEKLY_LOSS, HP_LIMIT_MIN_VOLUME_RATIO, HP_LIMIT_STOP_DISTANCE_BPS,
    HP_RISK_EVENT_FIGURE_REFUSED, HP_RISK_EVENT_LIMIT_SET, HP_RISK_EVENT_PAUSE, HP_RISK_EVENT_REARM,
    HP_RISK_EVENT_RESTRICT, HP_SESSION_AFTER, HP_SESSION_BLACKOUT, HP_SESSION_OPEN, HP_SESSION_PRE)

cdef enum:
    NANO = 1000000000
    MS = 1000000
    BPS = 10000
    STRATEGIES = 256
    SECTOR_MOST = 255

cdef int64_t UNIT_MOST = 10000000000        # 1e-9: ten times the value


cdef inline bint off(const risk_t *r, int number) noexcept nogil:
    return r.off >> number & 1


cdef inline hp_wide_t no_cap() noexcept nogil:
    """More than anything that is compared with a cap."""
    return hp_wide_mul(INT64_MAX, INT64_MAX)


# ---------------------------------------------------------------- what a check compares

cdef void expire(risk_t *r) noexcept nogil:
    """Until when all global figures that are needed are fresh."""
    cdef int kind
    r.until = INT64_MAX
    for kind in range(RISK_KINDS):
        if r.needs >> kind & 1 and not (
                kind == HP_FIGURE_SESSION or kind == HP_FIGURE_SECTOR
                or HP_FIGURE_UNIT_VAR_95 <= kind <= HP_FIGURE_VOLUME_RATIO):
            r.until = min(r.until, r.expires[kind])


cdef void settle(risk_t *r, exposure_t *x) noexcept nogil:
    """What limits and its own figures mean for one instrument."""
    cdef int kind
    cdef int64_t base = r.limit[HP_LIMIT_BASE_VOLATILITY_BPS]
    cdef int64_t widest = r.limit[HP_LIMIT_MAX_SPREAD_BPS]
    x.until = INT64_MAX
    for kind in range(RISK_KINDS):
        if r.needs >> kind & 1 and kind != HP_FIGURE_CORRELATION and (
                kind == HP_FIGURE_SECTOR
                or HP_FIGURE_UNIT_VAR_95 <= kind <= HP_FIGURE_VOLUME_RATIO):
            x.until = min(x.until, x.expires[risk_kind_slot(kind)])
    x.position_qty = r.limit[HP_LIMIT_MAX_POSITION_SHARES]
    x.position_notional = r.limit[HP_LIMIT_MAX_POSITION_NOTIONAL]
    if not off(r, HP_LIMIT_BASE_VOLATILITY_BPS):
        base *= NANO // BPS
        if x.volatility > base:
            if not off(r, HP_LIMIT_MAX_POSITION_SHARES):
                x.position_qty = hp_share_floor(x.position_qty, base, x.volatility)
            if not off(r, HP_LIMIT_MAX_POSITION_NOTIONAL):
                x.position_notional = hp_share_floor(x.position_notional, base, x.volatility)
    x.order_volume = x.position_volume = INT64_MAX
    if not off(r, HP_LIMIT_MAX_ORDER_VOLUME_BPS):
        x.order_volume = hp_share_floor(x.volume, r.limit[HP_LIMIT_MAX_ORDER_VOLUME_BPS], BPS)
    if not off(r, HP_LIMIT_MAX_POSITION_VOLUME_BPS):
        x.position_volume = hp_share_floor(x.volume, r.limit[HP_LIMIT_MAX_POSITION_VOLUME_BPS],
                                           BPS)
    x.standing &= STANDING_PAUSED | STANDING_RESTRICTED | STANDING_UNRESOLVED
    if hp_sub_saturate(0, x.unrealised) > r.limit[HP_LIMIT_MAX_TRADE_LOSS]:
        x.standing |= STANDING_TRADE_LOSS
    if not off(r, HP_LIMIT_MAX_VOLATILITY_BPS) \
            and x.volatility > r.limit[HP_LIMIT_MAX_VOLATILITY_BPS] * (NANO // BPS):
        x.standing |= STANDING_VOLATILITY
    if not off(r, HP_LIMIT_MAX_SPREAD_BPS) \
            and (x.bid <= 0 or x.ask <= 0 or risk_spread_wide(x, widest)):
        x.standing |= STANDING_SPREAD
    if x.ratio < r.limit[HP_LIMIT_MIN_VOLUME_RATIO]:
        x.standing |= STANDING_VOLUME_RATIO


cdef inline uint64_t pair_at(uint64_t a, uint64_t b) noexcept nogil:
    return a * (a - 1) // 2 + b if a > b else b * (b - 1) // 2 + a


cdef void pair_settle(risk_t *r, uint64_t a, uint64_t b) noexcept nogil:
    """Whether a pair refuses, by its value; its end is looked at when it is asked."""
    cdef pairs_t *p = &r.pairs
    cdef int64_t value = p.value[pair_at(a, b)], until = p.expires[pair_at(a, b)]
    cdef int64_t most = r.limit[HP_LIMIT_MAX_CORRELATION]
    if value == INT32_MIN or value > most or value < -most:
        p.bad[a * p.words + (b >> 6)] |= 1ULL << (b & 63)
        p.bad[b * p.words + (a >> 6)] |= 1ULL << (a & 63)
    else:
        p.bad[a * p.words + (b >> 6)] &= ~(1ULL << (b & 63))
        p.bad[b * p.words + (a >> 6)] &= ~(1ULL << (a & 63))
        p.until[a], p.until[b] = min(p.until[a], until), min(p.until[b], until)


cdef void forget_fills(risk_t *r) noexcept nogil:
    """Fills that every value at risk in use knows of no longer count beside it."""
    cdef uint64_t basis = <uint64_t>-1
    cdef fill_t *f
    cdef exposure_t *x
    if not off(r, HP_LIMIT_MAX_VAR_95):
        basis = min(basis, r.basis[0])
    if not off(r, HP_LIMIT_MAX_VAR_99):
        basis = min(basis, r.basis[1])
    while r.fill_tail != r.fill_head:
        f = &r.fills[r.fill_tail & (RISK_FILLS - 1)]
        if f.event > basis:
            return
        x = &r.table[f.instrument]
        x.since = hp_wide_sub(x.since, f.value)
        risk_move(r, x)
        r.fill_tail += 1


cdef hp_wide_t var_cap(const risk_t *r, int number, int kind) noexcept nogil:
    if off(r, number):
        return no_cap()
    return hp_wide_sub(hp_wide_cash(r.limit[number]), hp_wide_cash(r.figure[kind]))


cdef void risk_equity(risk_t *r) noexcept nogil:
    cdef const int64_t *limit = r.limit
    cdef int64_t day = hp_add_saturate(r.day_pnl, r.day_base)
    cdef hp_wide_t none = no_cap()
    r.day_loss = r.week_loss = r.month_loss = INT64_MIN
    if not off(r, HP_LIMIT_MAX_DAILY_LOSS):
        r.day_loss = hp_sub_saturate(0, day)
    if not off(r, HP_LIMIT_MAX_WEEKLY_LOSS):
        r.week_loss = hp_sub_saturate(0, hp_add_saturate(r.figure[HP_FIGURE_WEEK_PNL], day))
    if not off(r, HP_LIMIT_MAX_MONTHLY_LOSS):
        r.month_loss = hp_sub_saturate(0, hp_add_saturate(r.figure[HP_FIGURE_MONTH_PNL], day))
    r.equity = hp_add_saturate(r.figure[HP_FIGURE_EQUITY], day)
    r.gross_cap = r.symbol_cap = r.sector_cap = none
    if not off(r, HP_LIMIT_MAX_LEVERAGE):
        r.gross_cap = hp_wide_mul(r.equity, limit[HP_LIMIT_MAX_LEVERAGE])
    if not off(r, HP_LIMIT_MAX_SYMBOL_SHARE_BPS):
        r.symbol_cap = hp_wide_mul(r.equity,
                                   limit[HP_LIMIT_MAX_SYMBOL_SHARE_BPS] * (NANO // BPS))
    if not off(r, HP_LIMIT_MAX_SECTOR_SHARE_BPS):
        r.sector_cap = hp_wide_mul(r.equity,
                                   limit[HP_LIMIT_MAX_SECTOR_SHARE_BPS] * (NANO // BPS))
    r.drawdown = 0
    if r.expires[HP_FIGURE_EQUITY] != INT64_MIN:
        r.peak = max(max(r.peak, r.equity),
                     max(r.figure[HP_FIGURE_EQUITY], r.figure[HP_FIGURE_PEAK]))
        if r.peak <= 0:
            r.drawdown = INT64_MAX - 1
        elif r.equity < r.peak:
            r.drawdown = hp_share_floor(hp_sub_saturate(r.peak, r.equity), BPS, r.peak)


cdef void losses(risk_t *r, int64_t now) noexcept nogil:
    """What the market alone can bring about: the breaker, a halt, a warning."""
    cdef const int64_t *limit = r.limit
    cdef uint8_t level
    if not off(r, HP_LIMIT_BREAKER_DAILY_LOSS) and hp_sub_saturate(
            0, hp_add_saturate(r.day_pnl, r.day_base)) >= limit[HP_LIMIT_BREAKER_DAILY_LOSS]:
        breaker_trip(&r.breaker, HP_BREAKER_CAUSE_DAILY_LOSS, now)
    if r.drawdown >= limit[HP_LIMIT_BREAKER_DRAWDOWN_BPS]:
        breaker_trip(&r.breaker, HP_BREAKER_CAUSE_DRAWDOWN, now)
    r.deep = r.deep + 1 if r.drawdown >= limit[HP_LIMIT_DRAWDOWN_HALT_BPS] else 0
    level = 0
    if r.deep >= limit[HP_LIMIT_DRAWDOWN_CONFIRM]:
        level = 3
    elif r.drawdown >= limit[HP_LIMIT_DRAWDOWN_ACT_BPS]:
        level = 2
    elif r.drawdown >= limit[HP_LIMIT_DRAWDOWN_WARN_BPS]:
        level = 1
    if level == 3 and r.level < 3:
        r.halting = 1
    # Told once on the way down, until it is back above the warning.
    r.level = max(level, r.level if level else 0)


cdef void risk_settle(risk_t *r) noexcept nogil:
    cdef const int64_t *limit = r.limit
    cdef uint64_t i, k
    cdef bint was_at_risk = r.at_risk
    r.hours = not off(r, HP_LIMIT_MARKET_HOURS)
    r.sessions = 1 << HP_SESSION_OPEN
    if limit[HP_LIMIT_ALLOW_PREMARKET]:
        r.sessions |= 1 << HP_SESSION_PRE
    if limit[HP_LIMIT_ALLOW_AFTERHOURS]:
        r.sessions |= 1 << HP_SESSION_AFTER
    r.at_risk = not (off(r, HP_LIMIT_MAX_VAR_95) and off(r, HP_LIMIT_MAX_VAR_99))
    r.paired = not off(r, HP_LIMIT_MAX_CORRELATION)
    r.needs = 0
    if not off(r, HP_LIMIT_MAX_VAR_95):
        r.needs |= 1 << HP_FIGURE_VAR_95 | 1 << HP_FIGURE_UNIT_VAR_95
    if not off(r, HP_LIMIT_MAX_VAR_99):
        r.needs |= 1 << HP_FIGURE_VAR_99 | 1 << HP_FIGURE_UNIT_VAR_99
    if not (off(r, HP_LIMIT_MAX_VOLATILITY_BPS) and off(r, HP_LIMIT_BASE_VOLATILITY_BPS)):
        r.needs |= 1 << HP_FIGURE_VOLATILITY
    if not (off(r, HP_LIMIT_MAX_ORDER_VOLUME_BPS) and off(r, HP_LIMIT_MAX_POSITION_VOLUME_BPS)):
        r.needs |= 1 << HP_FIGURE_VOLUME
    if not off(r, HP_LIMIT_MIN_VOLUME_RATIO):
        r.needs |= 1 << HP_FIGURE_VOLUME_RATIO
    if not (off(r, HP_LIMIT_MAX_SYMBOL_SHARE_BPS) and off(r, HP_LIMIT_MAX_LEVERAGE)):
        r.needs |= 1 << HP_FIGURE_EQUITY
    if not off(r, HP_LIMIT_MAX_SECTOR_SHARE_BPS):
        r.needs |= 1 << HP_FIGURE_EQUITY | 1 << HP_FIGURE_SECTOR
    if not (off(r, HP_LIMIT_DRAWDOWN_ACT_BPS) and off(r, HP_LIMIT_DRAWDOWN_HALT_BPS)
            and off(r, HP_LIMIT_BREAKER_DRAWDOWN_BPS)):
        r.needs |= 1 << HP_FIGURE_EQUITY | 1 << HP_FIGURE_PEAK
    if not off(r, HP_LIMIT_MAX_WEEKLY_LOSS):
        r.needs |= 1 << HP_FIGURE_WEEK_PNL
    if not off(r, HP_LIMIT_MAX_MONTHLY_LOSS):
        r.needs |= 1 << HP_FIGURE_MONTH_PNL
    r.trade_cap = no_cap()
    if not off(r, HP_LIMIT_MAX_TRADE_LOSS):
        r.trade_cap = hp_wide_over(hp_wide_times(hp_wide_cash(limit[HP_LIMIT_MAX_TRADE_LOSS]), BPS),
                                   limit[HP_LIMIT_STOP_DISTANCE_BPS])
    if r.at_risk and not was_at_risk:           # fills were not noted: G3
        r.basis_least = r.last_event
        r.expires[HP_FIGURE_VAR_95] = r.expires[HP_FIGURE_VAR_99] = INT64_MIN
        for i in range(r.count):
            risk_move(r, &r.table[i])
    if r.at_risk:
        forget_fills(r)
    r.var_cap[0] = var_cap(r, HP_LIMIT_MAX_VAR_95, HP_FIGURE_VAR_95)
    r.var_cap[1] = var_cap(r, HP_LIMIT_MAX_VAR_99, HP_FIGURE_VAR_99)
    r.breaker.max_losses = limit[HP_LIMIT_BREAKER_LOSSES]
    r.breaker.max_failures = limit[HP_LIMIT_BREAKER_FAILURES]
    r.breaker.max_rejects = limit[HP_LIMIT_BREAKER_REJECTS]
    r.breaker.max_latency = INT64_MAX
    if not off(r, HP_LIMIT_BREAKER_LATENCY_MS):
        r.breaker.max_latency = limit[HP_LIMIT_BREAKER_LATENCY_MS] * MS
    r.breaker.slow = limit[HP_LIMIT_BREAKER_SLOW_MS] * MS
    r.breaker.cooldown = limit[HP_LIMIT_BREAKER_COOLDOWN_MS] * MS
    r.breaker.quiet = limit[HP_LIMIT_BREAKER_QUIET_MS] * MS
    expire(r)
    for i in range(r.count):
        settle(r, &r.table[i])
    if r.paired:
        for i in range(r.count):
            r.pairs.until[i] = INT64_MAX
        for i in range(r.count):
            for k in range(i):
                pair_settle(r, i, k)
    risk_equity(r)


cdef bint risk_limit(risk_t *r, uint64_t number, int64_t value) noexcept nogil:
    cdef bint idle = value == INT64_MIN
    if idle:
        if r.idle[number] == INT64_MIN:
            return False
        value = r.idle[number]
    elif value < r.low[number] or value > r.high[number]:
        return False
    if number == HP_LIMIT_MAX_ORDERS_PER_MINUTE and value > <int64_t>r.approval_mask + 1:
        return False                            # there is no memory for so many
    if number == HP_LIMIT_MAX_CORRELATION and not idle and r.pairs.bad == NULL:
        return False
    r.limit[number] = value
    r.off = r.off & ~(1ULL << number) | <uint64_t>idle << number
    risk_settle(r)
    r.limits_version += 1
    if r.header != NULL:
        hp_store_release(&r.header.limits_version, r.limits_version)        # F3
    return True


# ---------------------------------------------------------------- figures

cdef bint of_instrument(risk_t *r, exposure_t *x, const hp_figure_t *f,
                        int64_t until) noexcept nogil:
    """A figure of one instrument that the checks need; 0 when it is out of range."""
    cdef int64_t value = f.value
    cdef int kind = f.kind, which
    cdef bint known = value >= 0
    if kind == HP_FIGURE_UNIT_VAR_95 or kind == HP_FIGURE_UNIT_VAR_99:
        which = kind == HP_FIGURE_UNIT_VAR_99
        known = known and value <= UNIT_MOST
        if known:
            r.moving[which] = hp_wide_add(r.moving[which], hp_wide_mul(
                x.moving, value - x.unit_var[which]))
            x.unit_var[which] = value
    elif kind == HP_FIGURE_VOLATILITY:
        x.volatility = value if known else 0
    elif kind == HP_FIGURE_VOLUME:
        x.volume = value if known else 0
    elif kind == HP_FIGURE_VOLUME_RATIO:
        x.ratio = value if known else 0
    else:
        known = 0 < value <= SECTOR_MOST
        r.sectors[x.sector] = hp_wide_sub(r.sectors[x.sector], x.worst)
        x.sector = <uint8_t>value if known else 0
        r.sectors[x.sector] = hp_wide_add(r.sectors[x.sector], x.worst)
    x.expires[risk_kind_slot(kind)] = until if known else INT64_MIN
    settle(r, x)
    return known


cdef bint of_all(risk_t *r, const hp_figure_t *f, int64_t until) noexcept nogil:
    """A figure of the account; 0 when it is out of range."""
    cdef int kind = f.kind, which
    cdef bint known = f.value != INT64_MIN
    if kind == HP_FIGURE_VAR_95 or kind == HP_FIGURE_VAR_99:
        which = kind == HP_FIGURE_VAR_99
        known = f.value >= 0
        r.basis[which] = f.basis
        if known and f.basis < r.basis_least:
            until = INT64_MIN                   # G3
    r.figure[kind] = f.value if known else 0
    r.expires[kind] = until if known else INT64_MIN
    if r.at_risk:
        forget_fills(r)
        r.var_cap[0] = var_cap(r, HP_LIMIT_MAX_VAR_95, HP_FIGURE_VAR_95)
        r.var_cap[1] = var_cap(r, HP_LIMIT_MAX_VAR_99, HP_FIGURE_VAR_99)
    expire(r)
    risk_equity(r)
    return known


cdef bint of_pair(risk_t *r, const hp_figure_t *f, int64_t until) noexcept nogil:
    cdef uint64_t at
    cdef bint known = -NANO <= f.value <= NANO
    if f.other >= r.count or f.other == f.instrument:
        return False
    if r.pairs.bad == NULL:
        return known                            # nothing asks for it
    at = pair_at(f.instrument, f.other)
    r.pairs.value[at] = <int32_t>f.value if known else INT32_MIN
    r.pairs.expires[at] = until if known else INT64_MIN
    pair_settle(r, f.instrument, f.other)
    return known


cdef void begin_day(risk_t *r, int64_t day) noexcept nogil:
    """What counts per day begins anew (G4); the ledger's P&L of the day does so by itself."""
    if r.day:
        r.day_orders = 0
        memset(r.executions, 0, sizeof(r.executions))
        r.day_base = r.day_pnl = 0
    r.day = day
    risk_equity(r)


cdef void session(risk_t *r, exposure_t *x, const hp_figure_t *f, int64_t until) noexcept nogil:
    """Trading hours of one instrument; a new day may begin (G4)."""
    x.session, x.session_until = <uint8_t>f.value, until
    if f.other > r.day:
        begin_day(r, f.other)


cdef bint word(risk_t *r, exposure_t *x, const hp_figure_t *f, int64_t now,
               hp_risk_event_t *e) noexcept nogil:
    """What a person says; 0 when it is not understood."""
    cdef uint8_t bit
    if f.kind == HP_FIGURE_PAUSE or f.kind == HP_FIGURE_RESTRICT:
        if x == NULL or f.value < 0 or f.value > 1:
            return False
        bit = STANDING_PAUSED if f.kind == HP_FIGURE_PAUSE else STANDING_RESTRICTED
        x.standing = x.standing | bit if f.value else x.standing & ~bit
        e.kind = HP_RISK_EVENT_PAUSE if f.kind == HP_FIGURE_PAUSE else HP_RISK_EVENT_RESTRICT
    elif f.kind == HP_FIGURE_LIMIT:
        if f.other >= 64:
            return False
        e.kind, e.detail = HP_RISK_EVENT_LIMIT_SET, f.other
        e.limit = INT64_MIN if off(r, f.other) else r.limit[f.other]
        if not risk_limit(r, f.other, f.value):
            return False
    elif f.kind == HP_FIGURE_REARM:
        if f.other >= STRATEGIES:
            return False
        r.latched[f.other >> 6] &= ~(1ULL << (f.other & 63))
        r.executions[f.other] = 0
        e.kind, e.detail = HP_RISK_EVENT_REARM, f.other
    else:                                       # its log tells of changes
        return breaker_set(&r.breaker, f.value, now) if f.kind == HP_FIGURE_BREAKER else False
    e.value = f.value
    return True


cdef bint risk_figure(risk_t *r, const hp_figure_t *f, int64_t now,
                      hp_risk_event_t *e) noexcept nogil:
    cdef exposure_t *x = &r.table[f.instrument] if f.instrument < r.count else NULL
    cdef int64_t until = f.until
    cdef bint known
    memset(e, 0, sizeof(hp_risk_event_t))
    e.instrument, e.cause = f.instrument, f.event
    if until == 0:
        until = hp_add_saturate(f.ts_computed, r.limit[HP_LIMIT_MAX_FIGURE_AGE_MS] * MS)
    if f.kind >= HP_FIGURE_PAUSE:
        known = word(r, x, f, now, e)
        if known:
            return e.kind != 0
    elif f.kind in (HP_FIGURE_VAR_95, HP_FIGURE_VAR_99, HP_FIGURE_EQUITY, HP_FIGURE_WEEK_PNL,
                    HP_FIGURE_MONTH_PNL, HP_FIGURE_PEAK):
        known = of_all(r, f, until)
        losses(r, now)
    elif x == NULL:
        r.unknown += 1
        known = False
    elif f.kind == HP_FIGURE_SESSION:
        known = 0 <= f.value <= HP_SESSION_BLACKOUT
        if known:
            session(r, x, f, until)
            return False
        x.session_until = INT64_MIN
    elif f.kind == HP_FIGURE_CORRELATION:
        known = of_pair(r, f, until)
    elif f.kind == HP_FIGURE_SECTOR or HP_FIGURE_UNIT_VAR_95 <= f.kind <= HP_FIGURE_VOLUME_RATIO:
        known = of_instrument(r, x, f, until)
    else:
        known = False
    if known:
        return False
    r.refused += 1
    e.kind, e.value, e.limit, e.detail = HP_RISK_EVENT_FIGURE_REFUSED, f.value, 0, f.kind
    return True


cdef void risk_position(risk_t *r, const hp_position_t *p, int64_t now) noexcept nogil:
    cdef exposure_t *x
    if p.day > r.day:
        begin_day(r, p.day)
    if p.day == 0 or p.day == r.day:            # else it still tells of the day before
        r.day_pnl = p.day_pnl
    risk_equity(r)
    losses(r, now)
    if p.instrument >= r.count:
        r.unknown += 1
        return
    x = &r.table[p.instrument]
    x.unrealised = p.unrealised
    if hp_sub_saturate(0, p.unrealised) > r.limit[HP_LIMIT_MAX_TRADE_LOSS]:
        x.standing |= STANDING_TRADE_LOSS
    else:
        x.standing &= ~STANDING_TRADE_LOSS
    if p.qty == 0 and p.realised != x.earned:   # a trade: from flat to flat
        breaker_trade(&r.breaker, hp_sub_saturate(p.realised, x.earned), now)
        x.earned = p.realised
