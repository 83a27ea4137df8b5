"""How much of each limit is in use; see ``_usage.pxd``."""
from libc.stdint cimport INT64_MAX, INT64_MIN
from libc.string cimport memcpy

from ._risk cimport (
    exposure_t, hp_add_saturate, hp_share_floor, hp_spread_bps, hp_sub_saturate, hp_wide_ceil,
    hp_wide_mul, hp_wide_ratio, hp_wide_t, hp_wide_times)
from ._schema cimport (
    HP_FIGURE_EQUITY, HP_FIGURE_VAR_95, HP_FIGURE_VAR_99, HP_LIMIT_ALLOW_SHORT,
    HP_LIMIT_BREAKER_DAILY_LOSS, HP_LIMIT_BREAKER_DRAWDOWN_BPS,
    HP_LIMIT_BREAKER_FAILURES, HP_LIMIT_BREAKER_LOSSES, HP_LIMIT_BREAKER_REJECTS,
    HP_LIMIT_DRAWDOWN_ACT_BPS, HP_LIMIT_DRAWDOWN_HALT_BPS, HP_LIMIT_DRAWDOWN_WARN_BPS,
    HP_LIMIT_MAX_CORRELATION, HP_LIMIT_MAX_DAILY_LOSS, HP_LIMIT_MAX_LEVERAGE,
    HP_LIMIT_MAX_MONTHLY_LOSS, HP_LIMIT_MAX_OPEN_ORDERS, HP_LIMIT_MAX_OPEN_POSITIONS,
    HP_LIMIT_MAX_ORDERS_PER_DAY, HP_LIMIT_MAX_ORDERS_PER_MINUTE, HP_LIMIT_MAX_POSITION_NOTIONAL,
    HP_LIMIT_MAX_POSITION_SHARES, HP_LIMIT_MAX_POSITION_VOLUME_BPS,
    HP_LIMIT_MAX_SECTOR_SHARE_BPS, HP_LIMIT_MAX_SPREAD_BPS, HP_LIMIT_MAX_STRATEGY_ORDERS,
    HP_LIMIT_MAX_SYMBOL_SHARE_BPS, HP_LIMIT_MAX_TOTAL_NOTIONAL, HP_LIMIT_MAX_TRADE_LOSS,
    HP_LIMIT_MAX_VAR_95, HP_LIMIT_MAX_VAR_99, HP_LIMIT_MAX_VOLATILITY_BPS,
    HP_LIMIT_MAX_WEEKLY_LOSS, HP_LIMIT_STOP_DISTANCE_BPS)

cdef enum:
    NANO = 1000000000
    BPS = 10000
    LIMITS = 64

cdef int64_t MINUTE = 60000000000


cdef inline int64_t share(hp_wide_t value, int64_t equity, int64_t unit) noexcept nogil:
    """*value* (1e-18) over *equity*, in 1 / *unit*, rounded up."""
    if equity <= 0:
        return INT64_MAX
    return hp_wide_ratio(value, hp_wide_mul(equity, NANO // unit))


cdef inline void most(int64_t *use, int number, int64_t value) noexcept nogil:
    use[number] = max(use[number], value)


cdef void instrument(usage_t *u, const risk_t *r, const exposure_t *x) noexcept nogil:
    cdef int64_t *m = u.most
    cdef int64_t long_, short
    cdef uint64_t i, j, at
    if x.unrealised < 0:
        most(m, HP_LIMIT_MAX_TRADE_LOSS, hp_sub_saturate(0, x.unrealised))
    if x.flags == 0 and x.bid > 0 and x.ask > 0:
        most(m, HP_LIMIT_MAX_SPREAD_BPS, hp_spread_bps(x.bid, x.ask))
    most(m, HP_LIMIT_MAX_VOLATILITY_BPS, x.volatility // (NANO // BPS))
    if not x.held:
        return
    long_ = hp_add_saturate(x.qty, x.open_qty[0])
    short = hp_sub_saturate(x.open_qty[1], x.qty)
    most(m, HP_LIMIT_MAX_POSITION_SHARES, max(long_, short))
    most(m, HP_LIMIT_MAX_POSITION_NOTIONAL, hp_wide_ceil(x.worst, NANO))
    most(m, HP_LIMIT_MAX_OPEN_ORDERS, x.open_orders)
    if x.qty < 0:
        m[HP_LIMIT_ALLOW_SHORT] += 1
    most(m, HP_LIMIT_MAX_TRADE_LOSS, hp_wide_ceil(hp_wide_times(
        x.worst, r.limit[HP_LIMIT_STOP_DISTANCE_BPS]), <int64_t>NANO * BPS))
    if r.expires[HP_FIGURE_EQUITY] != INT64_MIN:
        most(m, HP_LIMIT_MAX_SYMBOL_SHARE_BPS, share(x.worst, r.equity, BPS))
    if x.volume > 0:
        most(m, HP_LIMIT_MAX_POSITION_VOLUME_BPS,
             hp_share_floor(max(long_, short), BPS, x.volume))
    if r.paired:
        i = <uint64_t>(x - r.table)
        for j in range(i):
            if r.table[j].held:
                at = i * (i - 1) // 2 + j
                most(m, HP_LIMIT_MAX_CORRELATION, max(r.pairs.value[at], -r.pairs.value[at]))


cdef void account(usage_t *u, const risk_t *r, int64_t now) noexcept nogil:
    """What needs no walk."""
    cdef int64_t *m = u.most
    cdef int64_t recent = 0
    cdef uint64_t i = r.approved
    cdef int k
    m[HP_LIMIT_MAX_TOTAL_NOTIONAL] = hp_wide_ceil(r.total, NANO)
    m[HP_LIMIT_MAX_OPEN_POSITIONS] = r.held
    m[HP_LIMIT_MAX_DAILY_LOSS] = max(hp_sub_saturate(0, hp_add_saturate(
        r.day_pnl, r.day_base)), 0)
    m[HP_LIMIT_BREAKER_DAILY_LOSS] = m[HP_LIMIT_MAX_DAILY_LOSS]
    m[HP_LIMIT_MAX_WEEKLY_LOSS] = max(r.week_loss, 0)
    m[HP_LIMIT_MAX_MONTHLY_LOSS] = max(r.month_loss, 0)
    while i and recent < r.limit[HP_LIMIT_MAX_ORDERS_PER_MINUTE] and hp_sub_saturate(
            now, r.approvals[(i - 1) & r.approval_mask].at) < MINUTE:
        i -= 1
        recent += 1
    m[HP_LIMIT_MAX_ORDERS_PER_MINUTE] = recent
    m[HP_LIMIT_MAX_ORDERS_PER_DAY] = r.day_orders
    for k in range(256):
        most(m, HP_LIMIT_MAX_STRATEGY_ORDERS, r.executions[k])
    if r.at_risk:
        m[HP_LIMIT_MAX_VAR_95] = hp_add_saturate(
            r.figure[HP_FIGURE_VAR_95], hp_wide_ceil(r.moving[0], NANO))
        m[HP_LIMIT_MAX_VAR_99] = hp_add_saturate(
            r.figure[HP_FIGURE_VAR_99], hp_wide_ceil(r.moving[1], NANO))
    m[HP_LIMIT_DRAWDOWN_WARN_BPS] = m[HP_LIMIT_DRAWDOWN_ACT_BPS] = r.drawdown
    m[HP_LIMIT_DRAWDOWN_HALT_BPS] = m[HP_LIMIT_BREAKER_DRAWDOWN_BPS] = r.drawdown
    if r.expires[HP_FIGURE_EQUITY] != INT64_MIN:
        m[HP_LIMIT_MAX_LEVERAGE] = share(r.total, r.equity, NANO)
        for k in range(1, 256):
            most(m, HP_LIMIT_MAX_SECTOR_SHARE_BPS, share(r.sectors[k], r.equity, BPS))
    m[HP_LIMIT_BREAKER_LOSSES] = r.breaker.losses
    m[HP_LIMIT_BREAKER_FAILURES] = r.breaker.failures
    m[HP_LIMIT_BREAKER_REJECTS] = r.breaker.rejects


cdef bint usage_step(usage_t *u, const risk_t *r, int64_t now, uint64_t budget) noexcept nogil:
    cdef int k
    if u.at == 0:
        for k in range(LIMITS):
            u.most[k] = USAGE_NONE
        u.most[HP_LIMIT_MAX_POSITION_SHARES] = u.most[HP_LIMIT_MAX_POSITION_NOTIONAL] = 0
        u.most[HP_LIMIT_MAX_OPEN_ORDERS] = u.most[HP_LIMIT_ALLOW_SHORT] = 0
        u.most[HP_LIMIT_MAX_TRADE_LOSS] = u.most[HP_LIMIT_MAX_STRATEGY_ORDERS] = 0
        u.most[HP_LIMIT_MAX_SYMBOL_SHARE_BPS] = u.most[HP_LIMIT_MAX_SECTOR_SHARE_BPS] = 0
        u.most[HP_LIMIT_MAX_CORRELATION] = 0
    while budget and u.at < r.count:
        instrument(u, r, &r.table[u.at])
        u.at += 1
        budget -= 1
    if u.at < r.count:
        return False
    account(u, r, now)
    memcpy(u.use, u.most, sizeof(u.use))
    for k in range(LIMITS):
        u.limit[k] = INT64_MIN if r.off >> k & 1 else r.limit[k]
    u.at = 0
    u.passes += 1
    return True
