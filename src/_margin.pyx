"""How near an order came to every limit; what is promised stands in ``_margin.pxd``."""
from libc.stdint cimport INT64_MAX, uint16_t, uint64_t
from libc.string cimport memset

from ._risk cimport (
    exposure_t, hp_add_saturate, hp_spread_bps, hp_sub_saturate, hp_wide_add, hp_wide_cash,
    hp_wide_less, hp_wide_max, hp_wide_mul, hp_wide_of, hp_wide_ratio, hp_wide_side, hp_wide_sub,
    hp_wide_t, hp_wide_times, risk_market_worth, risk_way)
from ._schema cimport (
    HP_FIGURE_CORRELATION, HP_FIGURE_SESSION, HP_FIGURE_VAR_95, HP_FIGURE_VAR_99,
    HP_LIMIT_DRAWDOWN_ACT_BPS, HP_LIMIT_DUPLICATE_WINDOW_MS, HP_LIMIT_LAST_COLLAR_BPS,
    HP_LIMIT_MAX_DAILY_LOSS, HP_LIMIT_MAX_DATA_AGE_MS, HP_LIMIT_MAX_LEVERAGE,
    HP_LIMIT_MAX_MONTHLY_LOSS, HP_LIMIT_MAX_OPEN_ORDERS, HP_LIMIT_MAX_OPEN_POSITIONS,
    HP_LIMIT_MAX_ORDER_NOTIONAL, HP_LIMIT_MAX_ORDER_SHARES, HP_LIMIT_MAX_ORDER_VOLUME_BPS,
    HP_LIMIT_MAX_ORDERS_PER_DAY, HP_LIMIT_MAX_ORDERS_PER_MINUTE, HP_LIMIT_MAX_POSITION_NOTIONAL,
    HP_LIMIT_MAX_POSITION_SHARES, HP_LIMIT_MAX_POSITION_VOLUME_BPS, HP_LIMIT_MAX_PRICE,
    HP_LIMIT_MAX_SECTOR_SHARE_BPS, HP_LIMIT_MAX_SPREAD_BPS, HP_LIMIT_MAX_STRATEGY_ORDERS,
    HP_LIMIT_MAX_SYMBOL_SHARE_BPS, HP_LIMIT_MAX_TOTAL_NOTIONAL, HP_LIMIT_MAX_TRADE_LOSS,
    HP_LIMIT_MAX_VAR_95, HP_LIMIT_MAX_VAR_99, HP_LIMIT_MAX_VOLATILITY_BPS,
    HP_LIMIT_MAX_WEEKLY_LOSS, HP_LIMIT_MIN_ORDER_NOTIONAL, HP_LIMIT_MIN_PRICE,
    HP_LIMIT_MIN_VOLUME_RATIO, HP_LIMIT_PRICE_COLLAR_BPS, HP_ORDER_TYPE_LIMIT,
    HP_ORDER_TYPE_STOP_LIMIT, HP_REASON_BREAKER, HP_REASON_CONCENTRATION, HP_REASON_CORRELATION,
    HP_REASON_CROSSES_ZERO, HP_REASON_DAILY_LOSS, HP_REASON_DRAWDOWN, HP_REASON_DUPLICATE,
    HP_REASON_DUPLICATE_ORDER, HP_REASON_HALTED, HP_REASON_HOURS, HP_REASON_INCREMENT,
    HP_REASON_INVALID_ORDER,
    HP_REASON_LAST_COLLAR, HP_REASON_LEVERAGE, HP_REASON_MONTHLY_LOSS, HP_REASON_NONE,
    HP_REASON_NO_FIGURE, HP_REASON_OLD_FIGURE, HP_REASON_OPEN_POSITIONS, HP_REASON_ORDER_NOTIONAL,
    HP_REASON_ORDER_RATE, HP_REASON_ORDER_SIZE, HP_REASON_ORDER_SMALL, HP_REASON_ORDER_VOLUME,
    HP_REASON_ORDERS_PER_DAY, HP_REASON_OVERFLOW, HP_REASON_PAUSED, HP_REASON_PENDING,
    HP_REASON_POSITION_NOTIONAL, HP_REASON_POSITION_SIZE, HP_REASON_POSITION_VOLUME,
    HP_REASON_PRICE_BAND, HP_REASON_PRICE_COLLAR, HP_REASON_PRICE_RANGE, HP_REASON_REPEATED,
    HP_REASON_RESTRICTED, HP_REASON_SECTOR, HP_REASON_SHORT_NOT_ALLOWED, HP_REASON_SPREAD,
    HP_REASON_STALE_DATA, HP_REASON_STORE_FULL, HP_REASON_TABLE_FULL, HP_REASON_TOTAL_NOTIONAL,
    HP_REASON_TRADE_LOSS, HP_REASON_TRADING_HALT, HP_REASON_UNKNOWN_INSTRUMENT,
    HP_REASON_UNRESOLVED, HP_REASON_UNSETTLED, HP_REASON_VAR_95, HP_REASON_VAR_99,
    HP_REASON_VOLATILITY, HP_REASON_VOLUME_RATIO, HP_REASON_WASH_TRADE, HP_REASON_WEEKLY_LOSS)

cdef enum:
    MET = 1                     # a check that is met or not
    LIMIT = 1000
    BEYOND = 1001
    MOST = 65535
    NANO = 1000000000
    MS = 1000000
    BPS = 10000

cdef int64_t MINUTE = 60000000000


cdef inline int64_t use_wide(hp_wide_t value, hp_wide_t limit) noexcept nogil:
    """1/1000 of *limit* that *value* is, rounded up; nothing of it when negative."""
    if not hp_wide_less(hp_wide_of(0), value):
        return MET
    if not hp_wide_less(hp_wide_of(0), limit):
        return BEYOND
    return hp_wide_ratio(hp_wide_times(value, 1000), limit)


cdef inline int64_t use(int64_t value, int64_t limit) noexcept nogil:
    return use_wide(hp_wide_of(value), hp_wide_of(limit))


cdef inline bint cell(hp_checks_t *out, const hp_verdict_t *v, int reason,
                      int64_t used) noexcept nogil:
    """Write the cell of a check; whether this one refused, so that nothing comes after it."""
    cdef bint refused = v.reason == reason
    # Rounding, and what moved between the check and this, never contradict the verdict.
    used = max(used, BEYOND) if refused else min(max(used, MET), LIMIT)
    (<uint16_t *>out)[3 + reason] = <uint16_t>min(used, <int64_t>MOST)
    return refused


cdef inline bint on(const risk_t *r, int limit) noexcept nogil:
    return not r.off >> limit & 1


cdef inline bint asked(const risk_t *r, const hp_verdict_t *v, int limit,
                       int reason) noexcept nogil:
    """Whether the check has a limit, or refused without one: a latch outlives its limit."""
    return on(r, limit) or v.reason == reason


cdef int64_t last_minute(const risk_t *r, int64_t now) noexcept nogil:
    """Approvals of the last minute that are remembered; by bisection, their times ascend."""
    cdef uint64_t low = r.approved - min(r.approved, r.approval_mask + 1), high = r.approved, mid
    while low < high:
        mid = low + (high - low) // 2
        if hp_sub_saturate(now, r.approvals[mid & r.approval_mask].at) < MINUTE:
            high = mid
        else:
            low = mid + 1
    return <int64_t>(r.approved - low)


cdef void risk_margins(const risk_t *r, const hp_intent_t *i, const hp_verdict_t *v, int64_t now,
                       hp_checks_t *out) noexcept nogil:
    cdef const int64_t *limit = r.limit
    cdef const exposure_t *x
    cdef int64_t sell = -<int64_t>(i.side <= 0)
    cdef int way = risk_way(i.side)
    cdef int64_t own, held, at, near, after, worth, k, touch
    cdef bint reducing, figure
    cdef hp_wide_t value, side, more, total, sector
    memset(out, 0, sizeof(out[0]))
    if r.header != NULL:
        if cell(out, v, HP_REASON_HALTED, MET) or cell(out, v, HP_REASON_STORE_FULL, MET):
            return
    if cell(out, v, HP_REASON_UNSETTLED, MET):
        return
    if cell(out, v, HP_REASON_UNKNOWN_INSTRUMENT, MET) or i.instrument >= r.count:
        return
    x = &r.table[i.instrument]
    held = (x.qty ^ sell) - sell
    reducing = held < 0
    if not reducing and cell(out, v, HP_REASON_BREAKER, MET):
        return
    if (cell(out, v, HP_REASON_PAUSED, MET) or cell(out, v, HP_REASON_RESTRICTED, MET)
            or cell(out, v, HP_REASON_UNRESOLVED, MET)):
        return
    if cell(out, v, HP_REASON_TRADING_HALT, MET) or cell(out, v, HP_REASON_PRICE_BAND, MET):
        return
    if cell(out, v, HP_REASON_STALE_DATA, use(
            hp_sub_saturate(now, x.mark_ts), limit[HP_LIMIT_MAX_DATA_AGE_MS] * MS)):
        return
    figure = v.reason == HP_REASON_NO_FIGURE or v.reason == HP_REASON_OLD_FIGURE
    # Those of pairs and of sessions are asked for further down.
    if figure and v.detail & 0xffff != HP_FIGURE_CORRELATION and v.detail != HP_FIGURE_SESSION:
        cell(out, v, v.reason, BEYOND)
        return
    if (cell(out, v, HP_REASON_INVALID_ORDER, MET) or cell(out, v, HP_REASON_INCREMENT, MET)
            or cell(out, v, HP_REASON_DUPLICATE, MET)):
        return
    if asked(r, v, HP_LIMIT_DUPLICATE_WINDOW_MS, HP_REASON_DUPLICATE_ORDER) and cell(
            out, v, HP_REASON_DUPLICATE_ORDER, MET):
        return

    # Approved, it is in the sums already; refused, it is not.
    own = 0 if v.reason == HP_REASON_NONE else 1
    touch = (&x.bid)[1 + sell]
    if i.type == HP_ORDER_TYPE_LIMIT or i.type == HP_ORDER_TYPE_STOP_LIMIT:
        at = near = i.price
        if i.stop:
            near = hp_add_saturate(x.reference, at - i.stop)
        worth = max(at, x.bid & sell)
    else:
        at, near = i.stop if i.stop else touch, touch
        worth = risk_market_worth(i, touch, limit[HP_LIMIT_PRICE_COLLAR_BPS])
    if not reducing and (on(r, HP_LIMIT_MIN_PRICE) or on(r, HP_LIMIT_MAX_PRICE)):
        k = MET
        if on(r, HP_LIMIT_MAX_PRICE):
            k = use(at, limit[HP_LIMIT_MAX_PRICE])
        if on(r, HP_LIMIT_MIN_PRICE):
            k = max(k, use(limit[HP_LIMIT_MIN_PRICE], at))
        if cell(out, v, HP_REASON_PRICE_RANGE, k):
            return
    if asked(r, v, HP_LIMIT_MAX_ORDER_SHARES, HP_REASON_ORDER_SIZE) and cell(
            out, v, HP_REASON_ORDER_SIZE, use(i.qty, limit[HP_LIMIT_MAX_ORDER_SHARES])):
        return
    if v.reason == HP_REASON_OVERFLOW:          # nothing that is summed up can be told
        cell(out, v, HP_REASON_OVERFLOW, BEYOND)
        return
    value = hp_wide_mul(worth, i.qty)
    if asked(r, v, HP_LIMIT_MAX_ORDER_NOTIONAL, HP_REASON_ORDER_NOTIONAL) and cell(
            out, v, HP_REASON_ORDER_NOTIONAL,
            use_wide(value, hp_wide_cash(limit[HP_LIMIT_MAX_ORDER_NOTIONAL]))):
        return
    if not reducing and asked(r, v, HP_LIMIT_MIN_ORDER_NOTIONAL, HP_REASON_ORDER_SMALL) and cell(
            out, v, HP_REASON_ORDER_SMALL,
            use_wide(hp_wide_cash(limit[HP_LIMIT_MIN_ORDER_NOTIONAL]), value)):
        return
    if cell(out, v, HP_REASON_ORDER_RATE, use(
            last_minute(r, now) + own, limit[HP_LIMIT_MAX_ORDERS_PER_MINUTE])):
        return
    if not reducing:
        if asked(r, v, HP_LIMIT_MAX_ORDERS_PER_DAY, HP_REASON_ORDERS_PER_DAY) and cell(
                out, v, HP_REASON_ORDERS_PER_DAY,
                use(r.day_orders + own, limit[HP_LIMIT_MAX_ORDERS_PER_DAY])):
            return
        if asked(r, v, HP_LIMIT_MAX_STRATEGY_ORDERS, HP_REASON_REPEATED) and cell(
                out, v, HP_REASON_REPEATED, use(
                    r.executions[i.strategy] + own, limit[HP_LIMIT_MAX_STRATEGY_ORDERS])):
            return

    after = hp_add_saturate(hp_add_saturate(held, x.open_qty[way]), i.qty * own)
    side = hp_wide_add(hp_wide_side(x.value, 1 if sell == 0 else -1), x.open_value[way])
    if own:
        side = hp_wide_add(side, value)
    more = hp_wide_of(0)
    if own:
        more = hp_wide_sub(hp_wide_max(x.worst, side), x.worst)
    total = hp_wide_add(r.total, more)
    sector = hp_wide_add(r.sectors[x.sector], more)
    if reducing:
        if cell(out, v, HP_REASON_CROSSES_ZERO, MET):
            return
    else:
        if sell and cell(out, v, HP_REASON_SHORT_NOT_ALLOWED, MET):
            return
        if asked(r, v, HP_LIMIT_MAX_POSITION_SHARES, HP_REASON_POSITION_SIZE) and cell(
                out, v, HP_REASON_POSITION_SIZE, use(after, x.position_qty)):
            return
        if asked(r, v, HP_LIMIT_MAX_POSITION_NOTIONAL, HP_REASON_POSITION_NOTIONAL) and cell(
                out, v, HP_REASON_POSITION_NOTIONAL,
                use_wide(side, hp_wide_cash(x.position_notional))):
            return
        if asked(r, v, HP_LIMIT_MAX_TOTAL_NOTIONAL, HP_REASON_TOTAL_NOTIONAL) and cell(
                out, v, HP_REASON_TOTAL_NOTIONAL,
                use_wide(total, hp_wide_cash(limit[HP_LIMIT_MAX_TOTAL_NOTIONAL]))):
            return
        if asked(r, v, HP_LIMIT_MAX_OPEN_POSITIONS, HP_REASON_OPEN_POSITIONS) and cell(
                out, v, HP_REASON_OPEN_POSITIONS,
                use(r.held + (0 if x.held else own), limit[HP_LIMIT_MAX_OPEN_POSITIONS])):
            return
    if asked(r, v, HP_LIMIT_MAX_OPEN_ORDERS, HP_REASON_PENDING) and cell(
            out, v, HP_REASON_PENDING,
            use(x.open_orders + own, limit[HP_LIMIT_MAX_OPEN_ORDERS])):
        return
    if not reducing and _money(r, x, v, out, side, total, sector):
        return
    if r.hours:
        if figure and v.detail == HP_FIGURE_SESSION:
            cell(out, v, v.reason, BEYOND)
            return
        if cell(out, v, HP_REASON_HOURS, MET):
            return

    k = hp_sub_saturate(near, x.reference)
    k = -k if k < 0 else k
    if cell(out, v, HP_REASON_PRICE_COLLAR, use_wide(
            hp_wide_mul(k, BPS), hp_wide_mul(x.reference, limit[HP_LIMIT_PRICE_COLLAR_BPS]))):
        return
    if on(r, HP_LIMIT_LAST_COLLAR_BPS):
        k = hp_sub_saturate(near, x.last)
        k = -k if k < 0 else k
        if cell(out, v, HP_REASON_LAST_COLLAR, use_wide(
                hp_wide_mul(k, BPS), hp_wide_mul(x.last, limit[HP_LIMIT_LAST_COLLAR_BPS]))):
            return
    if not reducing:
        if asked(r, v, HP_LIMIT_MAX_ORDER_VOLUME_BPS, HP_REASON_ORDER_VOLUME) and cell(
                out, v, HP_REASON_ORDER_VOLUME, use(i.qty, x.order_volume)):
            return
        if asked(r, v, HP_LIMIT_MAX_POSITION_VOLUME_BPS, HP_REASON_POSITION_VOLUME) and cell(
                out, v, HP_REASON_POSITION_VOLUME, use(after, x.position_volume)):
            return
        if asked(r, v, HP_LIMIT_MAX_SPREAD_BPS, HP_REASON_SPREAD) and cell(
                out, v, HP_REASON_SPREAD, use(
                    hp_spread_bps(x.bid, x.ask) if x.bid > 0 and x.ask > 0 else INT64_MAX,
                    limit[HP_LIMIT_MAX_SPREAD_BPS])):
            return
        if asked(r, v, HP_LIMIT_MIN_VOLUME_RATIO, HP_REASON_VOLUME_RATIO) and cell(
                out, v, HP_REASON_VOLUME_RATIO, use(limit[HP_LIMIT_MIN_VOLUME_RATIO], x.ratio)):
            return
    if cell(out, v, HP_REASON_WASH_TRADE, MET):
        return
    cell(out, v, HP_REASON_TABLE_FULL, use(<int64_t>r.live + own, <int64_t>r.capacity))


cdef bint _money(const risk_t *r, const exposure_t *x, const hp_verdict_t *v, hp_checks_t *out,
                 hp_wide_t side, hp_wide_t total, hp_wide_t sector) noexcept nogil:
    """Losses, shares of the equity, what comes from the analyst; whether one of them refused."""
    cdef const int64_t *limit = r.limit
    cdef int k, reason, number
    cdef int64_t figure
    if asked(r, v, HP_LIMIT_MAX_DAILY_LOSS, HP_REASON_DAILY_LOSS) and cell(
            out, v, HP_REASON_DAILY_LOSS, use(r.day_loss, limit[HP_LIMIT_MAX_DAILY_LOSS])):
        return True
    if asked(r, v, HP_LIMIT_MAX_WEEKLY_LOSS, HP_REASON_WEEKLY_LOSS) and cell(
            out, v, HP_REASON_WEEKLY_LOSS, use(r.week_loss, limit[HP_LIMIT_MAX_WEEKLY_LOSS])):
        return True
    if asked(r, v, HP_LIMIT_MAX_MONTHLY_LOSS, HP_REASON_MONTHLY_LOSS) and cell(
            out, v, HP_REASON_MONTHLY_LOSS, use(r.month_loss, limit[HP_LIMIT_MAX_MONTHLY_LOSS])):
        return True
    if asked(r, v, HP_LIMIT_MAX_TRADE_LOSS, HP_REASON_TRADE_LOSS) and cell(
            out, v, HP_REASON_TRADE_LOSS, max(
                use(hp_sub_saturate(0, x.unrealised), limit[HP_LIMIT_MAX_TRADE_LOSS]),
                use_wide(side, r.trade_cap))):
        return True
    if asked(r, v, HP_LIMIT_MAX_SYMBOL_SHARE_BPS, HP_REASON_CONCENTRATION) and cell(
            out, v, HP_REASON_CONCENTRATION, use_wide(side, r.symbol_cap)):
        return True
    if asked(r, v, HP_LIMIT_MAX_SECTOR_SHARE_BPS, HP_REASON_SECTOR) and cell(
            out, v, HP_REASON_SECTOR, use_wide(sector, r.sector_cap)):
        return True
    for k in range(2):
        reason = HP_REASON_VAR_99 if k else HP_REASON_VAR_95
        number = HP_LIMIT_MAX_VAR_99 if k else HP_LIMIT_MAX_VAR_95
        figure = r.figure[HP_FIGURE_VAR_99 if k else HP_FIGURE_VAR_95]
        if asked(r, v, number, reason) and cell(out, v, reason, use_wide(
                hp_wide_add(hp_wide_cash(figure), r.moving[k]), hp_wide_cash(limit[number]))):
            return True
    if asked(r, v, HP_LIMIT_DRAWDOWN_ACT_BPS, HP_REASON_DRAWDOWN) and cell(
            out, v, HP_REASON_DRAWDOWN, use(r.drawdown, limit[HP_LIMIT_DRAWDOWN_ACT_BPS])):
        return True
    if r.paired:
        if (v.reason == HP_REASON_NO_FIGURE or v.reason == HP_REASON_OLD_FIGURE) \
                and v.detail & 0xffff == HP_FIGURE_CORRELATION:
            return cell(out, v, v.reason, BEYOND)
        if cell(out, v, HP_REASON_CORRELATION, MET):
            return True
    if asked(r, v, HP_LIMIT_MAX_VOLATILITY_BPS, HP_REASON_VOLATILITY) and cell(
            out, v, HP_REASON_VOLATILITY, use(
                x.volatility, limit[HP_LIMIT_MAX_VOLATILITY_BPS] * (NANO // BPS))):
        return True
    return asked(r, v, HP_LIMIT_MAX_LEVERAGE, HP_REASON_LEVERAGE) and cell(
        out, v, HP_REASON_LEVERAGE, use_wide(total, r.gross_cap))
