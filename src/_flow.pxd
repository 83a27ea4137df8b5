"""Indicators of volume and of books; written and used as those of ``_indicator.pxd``."""
from libc.math cimport NAN, fabs
from libc.stdint cimport int64_t

from ._indicator cimport sma_t, sma_update, sum_init, sum_t, sum_update

# ---------------------------------------------------------------- volume

cdef struct total_t:            # a sum that keeps what rounding took (Neumaier)
    double sum
    double rest


cdef inline void total_add(total_t *t, double x) noexcept nogil:
    cdef double sum = t.sum + x
    cdef double part = sum - t.sum
    t.rest += (t.sum - (sum - part)) + (x - part)       # Knuth's two-sum: exact
    t.sum = sum


cdef struct obv_t:
    total_t total
    double close
    bint begun


cdef inline void obv_init(obv_t *s) noexcept nogil:
    s.total.sum = s.total.rest = s.close = 0
    s.begun = False


cdef inline double obv_update(obv_t *s, double close, double volume) noexcept nogil:
    """Volume, added when the close rises, taken when it falls; the first is added."""
    if not s.begun:
        s.close, s.begun = close, True
        total_add(&s.total, volume)
    else:
        total_add(&s.total, volume * <double>((close > s.close) - (close < s.close)))
        s.close = close
    return s.total.sum + s.total.rest


cdef struct vwap_t:
    total_t notional
    total_t volume


cdef inline void vwap_init(vwap_t *s) noexcept nogil:
    s.notional.sum = s.notional.rest = s.volume.sum = s.volume.rest = 0


cdef inline double vwap_update(vwap_t *s, double price, double volume) noexcept nogil:
    """Mean price weighed by volume since the beginning or reset; NaN while that is 0."""
    total_add(&s.notional, price * volume)
    total_add(&s.volume, volume)
    cdef double traded = s.volume.sum + s.volume.rest
    return (s.notional.sum + s.notional.rest) / traded if traded > 0 else NAN


cdef struct mfi_t:
    sum_t rising
    sum_t falling
    double typical              # of the bar before
    bint begun


cdef inline void mfi_init(mfi_t *s, int64_t n, double *memory) noexcept nogil:
    """*memory* is 2 n doubles."""
    sum_init(&s.rising, n, memory)
    sum_init(&s.falling, n, memory + n)
    s.typical, s.begun = 0, False


cdef inline double mfi_update(mfi_t *s, double high, double low, double close,
                              double volume) noexcept nogil:
    """Share of the money flow of bars whose typical price rose, of the newest n, in percent.

    A change that rounding may have made is none, as in TA-Lib.
    """
    cdef double typical = (high + low + close) / 3.0
    cdef double flow = typical * volume, rising, falling, change = typical - s.typical
    cdef double least = 1e-14 * (fabs(typical) + fabs(s.typical))
    s.typical = typical
    if not s.begun:
        s.begun = True
        return NAN
    rising = sum_update(&s.rising, flow if change > least else 0.0)
    falling = sum_update(&s.falling, flow if change < -least else 0.0)
    if not s.rising.full:
        return NAN
    return 100.0 * rising / (rising + falling) if rising + falling > 0 else 0.0         # 0 / 0 is 0


cdef inline double ratio_update(sma_t *s, double volume) noexcept nogil:
    """Volume over its mean of the newest n bars, this one included."""
    cdef double mean = sma_update(s, volume)
    return volume / mean if mean > 0 else (NAN if mean != mean else 0.0)                # 0 / 0 is 0


# ---------------------------------------------------------------- books

cdef inline double balance(double own, double other) noexcept nogil:
    """(own - other) / (own + other) of two numbers >= 0; 0 when both are."""
    cdef double total = own + other
    return (own - other) / total if total > 0 else 0.0


cdef inline double queue_change(double before, double after) noexcept nogil:
    """(after - before) over the larger of two numbers >= 0; 0 when both are."""
    cdef double larger = after if after > before else before
    return (after - before) / larger if larger > 0 else 0.0


cdef inline double order_flow(int bid_move, double bid_before, double bid_qty,
                              int ask_move, double ask_before, double ask_qty) noexcept nogil:
    """Order-flow imbalance of one step: quantity that came to the bid less what came to the ask.

    A move is the sign of the change of that price.  Cont, Kukanov, Stoikov (2014),
    J. Financial Econometrics 12:47, eq. 3.
    """
    cdef double flow = 0
    if bid_move >= 0:
        flow += bid_qty
    if bid_move <= 0:
        flow -= bid_before
    if ask_move <= 0:
        flow -= ask_qty
    if ask_move >= 0:
        flow += ask_before
    return flow


cdef struct order_flow_t:      # the state before
    double bid
    double bid_qty
    double ask
    double ask_qty
    bint begun


cdef inline void order_flow_init(order_flow_t *s) noexcept nogil:
    s.bid = s.bid_qty = s.ask = s.ask_qty = 0
    s.begun = False


cdef inline double order_flow_update(order_flow_t *s, double bid, double bid_qty, double ask,
                                     double ask_qty) noexcept nogil:
    """order_flow against the state before; 0 at the first."""
    cdef double flow = 0
    if s.begun:
        flow = order_flow((bid > s.bid) - (bid < s.bid), s.bid_qty, bid_qty,
                          (ask > s.ask) - (ask < s.ask), s.ask_qty, ask_qty)
    s.bid, s.bid_qty, s.ask, s.ask_qty, s.begun = bid, bid_qty, ask, ask_qty, True
    return flow


cdef struct queue_t:            # the state before
    double price
    double qty
    bint begun


cdef inline void queue_init(queue_t *s) noexcept nogil:
    s.price, s.qty, s.begun = 0, 0, False


cdef inline double queue_update(queue_t *s, double price, double qty) noexcept nogil:
    """queue_change against the state before; 0 when the price moved, and at the first."""
    cdef double change = queue_change(s.qty, qty) if s.begun and price == s.price else 0.0
    s.price, s.qty, s.begun = price, qty, True
    return change


cdef struct trade_flow_t:
    double signed_qty           # EMA of side * qty
    double qty                  # EMA of qty
    double weight               # 2 / (n + 1)
    bint begun


cdef inline void trade_flow_init(trade_flow_t *s, int64_t n) noexcept nogil:
    s.signed_qty, s.qty, s.weight, s.begun = 0, 0, 2.0 / (<double>n + 1), False


cdef inline double trade_flow_update(trade_flow_t *s, double side, double qty) noexcept nogil:
    """EMA of side * qty over the EMA of qty, both from the first trade; in [-1, 1].  qty > 0."""
    if s.begun:
        s.qty += s.weight * (qty - s.qty)
        s.signed_qty += s.weight * (qty * side - s.signed_qty)
    else:
        s.qty, s.signed_qty, s.begun = qty, qty * side, True
    return s.signed_qty / s.qty
