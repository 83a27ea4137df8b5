"""Features from bars; see ``_study.pxd``."""
from libc.string cimport memset

from ._bars cimport bars_init, bars_time, bars_trade
from ._flow cimport mfi_init, mfi_update, obv_init, obv_update, ratio_update, vwap_init, vwap_update
from ._indicator cimport (
    atr_init, atr_update, bollinger_bandwidth, bollinger_init, bollinger_out_t, bollinger_place,
    bollinger_update, change_init, ema_init, ema_update, macd_init, macd_out_t, macd_update,
    momentum_init, momentum_update, parkinson_init, parkinson_update, realised_update, rsi_init,
    rsi_update, sma_update, stochastic_init, stochastic_out_t, stochastic_update, sum_init,
    wma_init, wma_update)
from ._schema cimport HP_BOOK_FLAG_TRADE

cdef enum:
    DAY_NS = 86_400_000_000_000

cdef double NANO = 1e-9
cdef double FADED = 1e-30


cdef void study_init(study_t *s, int64_t window) noexcept nogil:
    cdef double *memory = s.memory
    memset(s, 0, sizeof(study_t))
    bars_init(&s.bars, window)
    s.day = -1
    ema_init(&s.ema9, 9)
    ema_init(&s.ema12, 12)
    ema_init(&s.ema21, 21)
    ema_init(&s.ema26, 26)
    macd_init(&s.macd, 12, 26, 9)
    rsi_init(&s.rsi14, 14)
    rsi_init(&s.rsi28, 28)
    atr_init(&s.atr, 14)
    obv_init(&s.obv)
    vwap_init(&s.vwap)
    sum_init(&s.sma50, 50, memory)
    sum_init(&s.sma200, 200, memory + 50)
    sum_init(&s.ratio, 20, memory + 250)
    wma_init(&s.wma, 20, memory + 270)
    bollinger_init(&s.bollinger, 20, 2.0, memory + 310)
    stochastic_init(&s.stochastic, 14, 3, 3, memory + 370)
    mfi_init(&s.mfi, 14, memory + 404)
    change_init(&s.change, 20, memory + 432)
    parkinson_init(&s.parkinson, 20, memory + 452)
    momentum_init(&s.momentum, 10, memory + 472)                # ends at 482


cdef void study_before(hp_features_t *out, double mid) noexcept nogil:
    cdef float price = <float>mid
    out.close = out.open = out.high = out.low = price
    out.ema9 = out.ema12 = out.ema21 = out.ema26 = price
    out.sma50 = out.sma200 = out.wma20 = price
    out.bollinger_lower = out.bollinger_middle = out.bollinger_upper = price
    out.vwap = out.bar_vwap = price
    out.rsi14 = out.rsi28 = out.mfi14 = out.stochastic_k = out.stochastic_d = 50
    out.bollinger_b = 0.5
    out.volume_ratio20 = 1


cdef inline float _or(double value, double neutral) noexcept nogil:
    """*value*, or *neutral* before it is defined; 0 for what has faded (G5 of _feature.pxd)."""
    return <float>(neutral if value != value else 0.0 if -FADED < value < FADED else value)


cdef void study_bar(study_t *s, const hp_bar_t *bar, hp_features_t *out) noexcept nogil:
    cdef double open = <double>bar.open * NANO, high = <double>bar.high * NANO
    cdef double low = <double>bar.low * NANO, close = <double>bar.close * NANO
    cdef double volume = <double>bar.volume * NANO, price = <double>bar.vwap * NANO
    cdef double fast, slow, mean, range_, change
    cdef int64_t day = bar.start // DAY_NS
    cdef macd_out_t macd = macd_update(&s.macd, close)
    cdef bollinger_out_t bands = bollinger_update(&s.bollinger, close)
    cdef stochastic_out_t stochastic = stochastic_update(&s.stochastic, high, low, close)

    out.close, out.open, out.high, out.low = <float>close, <float>open, <float>high, <float>low
    out.rsi14 = _or(rsi_update(&s.rsi14, close), 50)
    out.rsi28 = _or(rsi_update(&s.rsi28, close), 50)
    out.macd_line, out.macd_signal = _or(macd.line, 0), _or(macd.signal, 0)
    out.macd_histogram = _or(macd.histogram, 0)
    fast, slow = ema_update(&s.ema9, close), ema_update(&s.ema21, close)
    fast, slow = close if fast != fast else fast, close if slow != slow else slow
    out.ema9, out.ema21, out.ema_difference = <float>fast, <float>slow, <float>(fast - slow)
    out.ema12 = _or(ema_update(&s.ema12, close), close)
    out.ema26 = _or(ema_update(&s.ema26, close), close)
    mean = sma_update(&s.sma50, close)
    out.sma50 = _or(mean, close)
    out.sma50_distance = _or((close / mean - 1) * 100, 0)
    out.sma200 = _or(sma_update(&s.sma200, close), close)
    out.wma20 = _or(wma_update(&s.wma, close), close)
    out.bollinger_lower, out.bollinger_upper = _or(bands.lower, close), _or(bands.upper, close)
    out.bollinger_middle = _or(bands.middle, close)
    out.bollinger_b = _or(bollinger_place(&bands), 0.5)
    out.bollinger_width = _or(bollinger_bandwidth(&bands), 0)
    out.stochastic_k, out.stochastic_d = _or(stochastic.k, 50), _or(stochastic.d, 50)
    range_ = atr_update(&s.atr, high, low, close)
    out.atr14 = _or(range_, 0)
    out.atr14_percent = _or(range_ / close * 100, 0)

    out.volume = <float>volume
    out.volume_change = <float>(volume / s.volume - 1) if s.volume > 0 else 0.0
    s.volume = volume
    out.volume_ratio20 = _or(ratio_update(&s.ratio, volume), 1)
    out.obv = <float>obv_update(&s.obv, close, volume)
    out.mfi14 = _or(mfi_update(&s.mfi, high, low, close, volume), 50)
    if day != s.day:
        vwap_init(&s.vwap)
        s.day = day
    mean = vwap_update(&s.vwap, price, volume)
    out.vwap, out.vwap_distance = <float>mean, <float>((close / mean - 1) * 100)
    out.bar_vwap, out.bar_trades = <float>price, <float>bar.count

    out.realised20 = _or(realised_update(&s.change, close, &change), 0)
    out.log_return = _or(change, 0)
    out.momentum10 = _or(momentum_update(&s.momentum, close), 0)
    out.parkinson20 = _or(parkinson_update(&s.parkinson, high, low), 0)
    out.bar_range = <float>((high - low) / close * 100)
    out.bars = <float>(s.bars.closed if s.bars.closed < STUDY_BARS else STUDY_BARS)


cdef void study_book(study_t *s, const hp_book_t *book, hp_features_t *out) noexcept nogil:
    cdef hp_bar_t bar
    cdef int64_t ts = book.ts_venue, qty
    cdef bint done
    if ts > 0:
        s.offset = <int64_t>(<uint64_t>ts - <uint64_t>book.ts_recv)     # wraps where it must
    else:
        ts = <int64_t>(<uint64_t>book.ts_recv + <uint64_t>s.offset)
    if book.flags & HP_BOOK_FLAG_TRADE:
        # One message may report several trades: their quantity is what the volume grew by, and
        # the state knows the last price only.
        qty = book.last_qty
        if s.begun and book.volume > s.quantity >= 0:
            qty = book.volume - s.quantity
        done = bars_trade(&s.bars, ts, book.last_price, qty, 0, &bar)
    else:
        done = bars_time(&s.bars, ts, &bar)
    s.quantity, s.begun = book.volume, True
    if done:
        study_bar(s, &bar, out)
