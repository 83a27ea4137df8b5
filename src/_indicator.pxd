"""Indicators, one value at a time: the code of the pipeline and of research.

Each is a plain struct with ``x_init`` and ``x_update``; windows live in memory that the
caller gives.  ``x_update`` takes the next value and returns the indicator, NaN before its
first defined value, which stands at the same index as in TA-Lib.  Streaming and batch are
the same function, so they agree bit for bit.

I1  Nothing is ever taken out of a sum: a running sum that subtracts what leaves the window
    drifts.  A window of n is cut into blocks of n: the sum of the part that belongs to the
    block before was computed when that block ended, from its end backwards, the sum of the
    part that belongs to this block grows with it, and the window is the two together.  Hence
    at most n roundings, at any age, and n extra additions once in n values.

        block before              this block
        ... a  b  c  d  e  f  g | h  i  j                   n = 7
                     [e  f  g  |  h  i  j]  k  next: tail[3] + head

    The same holds for maxima (van Herk) and for weighted sums.
I2  A deviation is the mean square of distances from a shift near the window (the last value
    of the block before) less the square of their mean; when that would cancel, the window
    is gone through twice instead.
I3  Inputs are finite, prices of logarithms are positive: whoever calls has checked it.
I4  0 / 0 is 0 (as TA-Lib's RSI, MFI and Stochastic of a price that does not move).
"""
from libc.math cimport INFINITY, NAN, log, log1p, sqrt
from libc.stdint cimport int64_t

cdef enum:
    BOLLINGER_CANCEL = 10_000   # I2: go through the window when square / variance is above this


# ---------------------------------------------------------------- sum of a window

cdef struct sum_t:
    double *tail                # n: before `at` this block's values, from it on sums of the last's
    double head                 # sum of this block's values
    int64_t n
    int64_t at                  # values in this block
    bint full                   # a block ended


cdef inline void sum_init(sum_t *w, int64_t n, double *memory) noexcept nogil:
    """*memory* is n doubles, zeroed here."""
    cdef int64_t i
    w.tail, w.head, w.n, w.at, w.full = memory, 0, n, 0, False
    for i in range(n):
        memory[i] = 0


cdef inline void sums_behind(double *values, int64_t n) noexcept nogil:
    """Replace each value by the sum of those behind it; two a step, as additions wait."""
    cdef double a, b, after = 0
    cdef int64_t i = n - 1
    while i > 0:
        a, b = values[i], values[i - 1]
        values[i], values[i - 1] = after, after + a
        after += a + b
        i -= 2
    if i == 0:
        values[0] = after


cdef inline double sum_update(sum_t *w, double x) noexcept nogil:
    """Sum of the newest n values; of all of them while there are fewer."""
    cdef int64_t i = w.at
    cdef double total
    w.head += x
    total = w.head + w.tail[i]
    w.tail[i] = x
    w.at = i + 1
    if w.at == w.n:
        sums_behind(w.tail, w.n)
        w.head, w.at, w.full = 0, 0, True
    return total


# ---------------------------------------------------------------- averages

ctypedef sum_t sma_t            # *memory* is n doubles


cdef inline double sma_update(sma_t *s, double x) noexcept nogil:
    """Mean of the newest n values."""
    cdef double total = sum_update(s, x)
    return total / <double>s.n if s.full else NAN


cdef struct ema_t:
    double value                # before n values: their sum
    double weight               # 2 / (n + 1)
    double keep                 # 1 - weight
    int64_t n
    int64_t count               # values seen, up to n


cdef inline void ema_init(ema_t *s, int64_t n) noexcept nogil:
    s.value, s.weight, s.n, s.count = 0, 2.0 / (<double>n + 1), n, 0
    s.keep = 1.0 - s.weight


cdef inline double ema_update(ema_t *s, double x) noexcept nogil:
    """Seeded with the mean of the first n; then value = keep * value + weight * x."""
    if s.count == s.n:
        s.value = s.keep * s.value + s.weight * x
        return s.value
    s.value += x
    s.count += 1
    if s.count < s.n:
        return NAN
    s.value /= <double>s.n
    return s.value


cdef extern from "_blocks.h" nogil:
    # Four whole blocks of *n* rows of a column, as wma_update takes them one by one; *weighted* is
    # of the block before them and then of the last; *scratch* is 5 n doubles.
    void hp_wma_blocks(const double *a, double *r, double *weighted, double *scratch, int64_t n,
                       double length, double share) noexcept
    double hp_poison(const double *a, int64_t n) noexcept       # 0 = all are finite, else NaN


cdef struct wma_t:
    double *sums                # n: this block's values
    double *weighted            # n: sums of the last block's, weighed 1, 2, ... from the oldest
    double head                 # sum of this block's values
    double leading              # sum of this block's values weighed n, n - 1, ... from its newest
    double length               # n
    double share                # 1 / (n (n + 1) / 2)
    int64_t n
    int64_t at
    bint full


cdef inline void wma_init(wma_t *s, int64_t n, double *memory) noexcept nogil:
    """*memory* is 2 n doubles."""
    cdef int64_t i
    s.sums, s.weighted, s.head, s.leading = memory, memory + n, 0, 0
    s.n, s.at, s.full, s.share = n, 0, False, 2.0 / (<double>n * <double>(n + 1))
    s.length = <double>n
    for i in range(2 * n):
        memory[i] = 0


cdef inline double wma_update(wma_t *s, double x) noexcept nogil:
    """Mean of the newest n values, the newest weighed n, the oldest 1."""
    cdef int64_t i = s.at
    cdef double after, weighed, total
    s.leading += s.length * x - s.head          # every older one weighs one less than before
    s.head += x
    total = s.weighted[i] + s.leading
    s.sums[i] = x
    s.at = i + 1
    if s.at == s.n:
        after = weighed = 0
        i = s.n - 1
        while i >= 0:
            s.weighted[i] = weighed
            after += s.sums[i]
            weighed += after
            i -= 1
        s.head = s.leading = 0
        s.at, s.full = 0, True
        return total * s.share
    return total * s.share if s.full else NAN


# ---------------------------------------------------------------- oscillators

cdef struct rsi_t:
    double last
    double gain                 # mean gain; before n changes: their sum
    double loss
    double share                # 1 / n
    double keep                 # 1 - share
    int64_t n
    int64_t count               # values seen, up to n + 1


cdef inline void rsi_init(rsi_t *s, int64_t n) noexcept nogil:
    s.last, s.gain, s.loss, s.share, s.n, s.count = 0, 0, 0, 1.0 / <double>n, n, 0
    s.keep = 1.0 - s.share


cdef inline double rsi_update(rsi_t *s, double x) noexcept nogil:
    """Wilder's: mean gain over mean gain plus mean loss, in percent."""
    cdef double change = x - s.last
    cdef double gain = change if change > 0 else 0.0
    cdef double loss = gain - change            # exact: one of the two is zero
    cdef double total
    s.last = x
    if s.count > s.n:
        s.gain = s.keep * s.gain + s.share * gain
        s.loss = s.keep * s.loss + s.share * loss
    else:
        s.count += 1
        if s.count == 1:
            return NAN
        s.gain += gain
        s.loss += loss
        if s.count <= s.n:
            return NAN
        s.gain *= s.share
        s.loss *= s.share
    total = s.gain + s.loss
    return 100.0 * s.gain / total if total > 0 else 0.0         # I4


cdef struct macd_t:
    double fast                 # before `slow_n` values: sum of the newest fast_n of them
    double slow                 # before: their sum
    double signal               # before signal_n lines: their sum
    double fast_weight
    double fast_keep            # 1 - fast_weight
    double slow_weight
    double slow_keep            # 1 - slow_weight
    double signal_weight
    double signal_keep            # 1 - signal_weight
    int64_t fast_n
    int64_t slow_n
    int64_t signal_n
    int64_t count               # values seen, up to slow_n + signal_n - 1

cdef struct macd_out_t:
    double line
    double signal
    double histogram


cdef inline void macd_init(macd_t *s, int64_t fast, int64_t slow, int64_t signal) noexcept nogil:
    """fast < slow."""
    s.fast = s.slow = s.signal = 0
    s.fast_n, s.slow_n, s.signal_n, s.count = fast, slow, signal, 0
    s.fast_weight = 2.0 / (<double>fast + 1)
    s.fast_keep = 1.0 - s.fast_weight
    s.slow_weight = 2.0 / (<double>slow + 1)
    s.slow_keep = 1.0 - s.slow_weight
    s.signal_weight = 2.0 / (<double>signal + 1)
    s.signal_keep = 1.0 - s.signal_weight


cdef inline macd_out_t macd_update(macd_t *s, double x) noexcept nogil:
    """Difference of two EMAs, its EMA, and the difference of those.

    Both EMAs begin with the slow one's first value, seeded with the means of the newest fast
    and slow values there, the signal with the mean of the first lines: TA-Lib's.
    """
    cdef macd_out_t out
    cdef int64_t warm = s.slow_n + s.signal_n - 1
    if s.count == warm:
        s.fast = s.fast_keep * s.fast + s.fast_weight * x
        s.slow = s.slow_keep * s.slow + s.slow_weight * x
        out.line = s.fast - s.slow
        s.signal = s.signal_keep * s.signal + s.signal_weight * out.line
        out.signal = s.signal
        out.histogram = out.line - s.signal
        return out
    out.line = out.signal = out.histogram = NAN
    s.count += 1
    if s.count <= s.slow_n:
        s.slow += x
        if s.count > s.slow_n - s.fast_n:
            s.fast += x
        if s.count < s.slow_n:
            return out
        s.slow /= <double>s.slow_n
        s.fast /= <double>s.fast_n
    else:
        s.fast = s.fast_keep * s.fast + s.fast_weight * x
        s.slow = s.slow_keep * s.slow + s.slow_weight * x
    s.signal += s.fast - s.slow
    if s.count == warm:
        s.signal /= <double>s.signal_n
        out.line = s.fast - s.slow
        out.signal = s.signal
        out.histogram = out.line - s.signal
    return out


cdef struct stochastic_t:
    double *highs               # as sum_t.tail, with maxima
    double *lows
    double high                 # highest of this block
    double low
    sma_t k
    sma_t d
    int64_t n
    int64_t at
    bint full

cdef struct stochastic_out_t:
    double k
    double d


cdef inline void stochastic_init(stochastic_t *s, int64_t n, int64_t k, int64_t d,
                                 double *memory) noexcept nogil:
    """*memory* is 2 n + k + d doubles."""
    cdef int64_t i
    s.highs, s.lows, s.n, s.at, s.full = memory, memory + n, n, 0, False
    sum_init(&s.k, k, memory + 2 * n)
    sum_init(&s.d, d, memory + 2 * n + k)
    for i in range(n):
        s.highs[i], s.lows[i] = -INFINITY, INFINITY
    s.high, s.low = -INFINITY, INFINITY


cdef inline stochastic_out_t stochastic_update(stochastic_t *s, double high, double low,
                                               double close) noexcept nogil:
    """Where the close stands in the range of the newest n bars, in percent, smoothed twice."""
    cdef stochastic_out_t out
    cdef int64_t i = s.at
    cdef double top, bottom, value, after_high, after_low
    out.k = out.d = NAN
    s.high = high if high > s.high else s.high
    s.low = low if low < s.low else s.low
    top = s.highs[i] if s.highs[i] > s.high else s.high
    bottom = s.lows[i] if s.lows[i] < s.low else s.low
    s.highs[i], s.lows[i] = high, low
    s.at = i + 1
    if s.at == s.n:
        after_high, after_low = -INFINITY, INFINITY
        for i in range(s.n - 1, -1, -1):
            value = s.highs[i]
            s.highs[i] = after_high
            after_high = value if value > after_high else after_high
            value = s.lows[i]
            s.lows[i] = after_low
            after_low = value if value < after_low else after_low
        s.high, s.low, s.at, s.full = -INFINITY, INFINITY, 0, True
    if not s.full:
        return out
    cdef double k = sma_update(
        &s.k, 100.0 * (close - bottom) / (top - bottom) if top > bottom else 0.0)       # I4
    if not s.k.full:
        return out
    out.d = sma_update(&s.d, k)
    if s.d.full:
        out.k = k
    return out


# ---------------------------------------------------------------- bands, ranges

cdef struct bollinger_t:
    double *values              # the newest n
    double *sums                # sums of distances of the last block's values, behind each
    double *squares             # sums of their squares
    double shift                # distances are from here; I2
    double head_sum
    double head_square
    double width                # standard deviations
    double share                # 1 / n
    int64_t n
    int64_t at
    bint full

cdef struct bollinger_out_t:
    double lower
    double middle
    double upper
    double reach                # from the middle to a band
    double offset               # of the value from the middle


cdef inline void bollinger_init(bollinger_t *s, int64_t n, double width,
                                double *memory) noexcept nogil:
    """*memory* is 3 n doubles."""
    cdef int64_t i
    s.values, s.sums, s.squares = memory, memory + n, memory + 2 * n
    s.shift = s.head_sum = s.head_square = 0
    s.width, s.share, s.n, s.at, s.full = width, 1.0 / <double>n, n, 0, False
    for i in range(3 * n):
        memory[i] = 0


# Mean distance from `shift` and variance, from the values themselves; I2.
cdef double bollinger_again(const bollinger_t *s, double *mean) noexcept nogil


cdef inline bollinger_out_t bollinger_update(bollinger_t *s, double x) noexcept nogil:
    """Mean of the newest n values and *width* population standard deviations around it."""
    cdef bollinger_out_t out
    cdef int64_t i = s.at
    cdef double distance, mean, square, variance, after_sum, after_square
    if not s.full and i == 0:
        s.shift = x
    distance = x - s.shift
    s.values[i] = x
    s.head_sum += distance
    s.head_square += distance * distance
    mean = (s.head_sum + s.sums[i]) * s.share
    square = (s.head_square + s.squares[i]) * s.share
    s.at = i + 1
    if not s.full and s.at < s.n:
        out.lower = out.middle = out.upper = out.reach = out.offset = NAN
        return out
    variance = square - mean * mean
    if variance * BOLLINGER_CANCEL < square:
        variance = bollinger_again(s, &mean)
    out.middle = s.shift + mean
    out.reach = s.width * sqrt(variance)
    out.lower = out.middle - out.reach
    out.upper = out.middle + out.reach
    out.offset = distance - mean
    if s.at == s.n:
        s.shift = x
        after_sum = after_square = 0
        for i in range(s.n - 1, -1, -1):
            distance = s.values[i] - x
            s.sums[i], s.squares[i] = after_sum, after_square
            after_sum += distance
            after_square += distance * distance
        s.head_sum, s.head_square, s.at, s.full = 0, 0, 0, True
    return out


cdef inline double bollinger_place(const bollinger_out_t *b) noexcept nogil:
    """%B: 0 at the lower band, 1 at the upper; 0.5 when they meet."""
    return 0.5 + 0.5 * b.offset / b.reach if b.reach != 0 else 0.5


cdef inline double bollinger_bandwidth(const bollinger_out_t *b) noexcept nogil:
    """Distance of the bands over the middle; 0 when that is 0."""
    return 2.0 * b.reach / b.middle if b.middle != 0 else 0.0


cdef struct atr_t:
    double close                # of the bar before
    double value                # before n ranges: their sum
    double before               # value of the bar before
    double range_               # of the bar before
    double share                # 1 / n
    double keep                 # 1 - share
    double keep_share           # keep * share
    double keep_twice           # keep * keep
    int64_t n
    int64_t count               # bars seen, up to n + 2


cdef inline void atr_init(atr_t *s, int64_t n) noexcept nogil:
    s.close = s.value = s.before = s.range_ = 0
    s.share, s.n, s.count = 1.0 / <double>n, n, 0
    s.keep = 1.0 - s.share
    s.keep_share, s.keep_twice = s.keep * s.share, s.keep * s.keep


cdef inline double atr_update(atr_t *s, double high, double low, double close) noexcept nogil:
    """Wilder's mean of the true range: the bar's, from the close before it.

    value = keep * value + share * range, written from the value two bars before: then one
    bar need not wait for the one before it.
    """
    cdef double top = high if high > s.close else s.close
    cdef double bottom = low if low < s.close else s.close
    cdef double range_ = top - bottom, value
    s.close = close
    if s.count > s.n + 1:
        value = s.keep_twice * s.before + (s.share * range_ + s.keep_share * s.range_)
        s.before, s.value, s.range_ = s.value, value, range_
        return value
    s.count += 1
    if s.count == 1:
        return NAN
    s.before, s.range_ = s.value, range_
    if s.count > s.n + 1:
        s.value = s.keep * s.value + s.share * range_
        return s.value
    s.value += range_
    if s.count <= s.n:
        return NAN
    s.value *= s.share
    return s.value


cdef struct parkinson_t:
    sum_t window
    double share                # 1 / (4 n log 2)


cdef inline double log_ratio(double a, double b) noexcept nogil:
    """log(a / b) of two positive numbers, exact to the last bits where they are near."""
    cdef double ratio = a / b
    return log1p((a - b) / b) if 0.5 < ratio < 2.0 else log(ratio)


cdef inline void parkinson_init(parkinson_t *s, int64_t n, double *memory) noexcept nogil:
    """*memory* is n doubles."""
    sum_init(&s.window, n, memory)
    s.share = 1.0 / (4.0 * <double>n * log(2.0))


cdef inline double parkinson_update(parkinson_t *s, double high, double low) noexcept nogil:
    """Volatility per bar from the ranges of the newest n bars.

    Parkinson (1980), J. Business 53:61.
    """
    cdef double range_ = log_ratio(high, low)
    cdef double total = sum_update(&s.window, range_ * range_)
    return sqrt(total * s.share) if s.window.full else NAN


# ---------------------------------------------------------------- changes

cdef struct change_t:           # log return and realised volatility
    sum_t window
    double last
    double share                # 1 / n
    bint begun


cdef inline void change_init(change_t *s, int64_t n, double *memory) noexcept nogil:
    """*memory* is n doubles; n = 0 and no memory when only log returns are asked for."""
    if n:
        sum_init(&s.window, n, memory)
    s.last, s.share, s.begun = 0, 1.0 / <double>(n or 1), False


cdef inline double change_update(change_t *s, double x) noexcept nogil:
    """Log return: log(x / the value before)."""
    cdef double found = log_ratio(x, s.last) if s.begun else NAN
    s.last, s.begun = x, True
    return found


cdef inline double realised_update(change_t *s, double x, double *change) noexcept nogil:
    """Root mean square of the newest n log returns; *change*: the newest."""
    cdef double found = change_update(s, x), total
    change[0] = found
    if found != found:
        return NAN
    total = sum_update(&s.window, found * found)
    return sqrt(total * s.share) if s.window.full else NAN


cdef struct momentum_t:
    double *values              # the newest n, in a circle
    int64_t n
    int64_t at
    bint full


cdef inline void momentum_init(momentum_t *s, int64_t n, double *memory) noexcept nogil:
    """*memory* is n doubles."""
    s.values, s.n, s.at, s.full = memory, n, 0, False


cdef inline double momentum_of(double x, double before) noexcept nogil:
    """Change in percent; TA-Lib's ROC."""
    return (x / before - 1.0) * 100.0 if before != 0 else 0.0


cdef inline double momentum_update(momentum_t *s, double x) noexcept nogil:
    """Change against the value n before."""
    cdef double before = s.values[s.at] if s.full else NAN
    s.values[s.at] = x
    s.at += 1
    if s.at == s.n:
        s.at, s.full = 0, True
    return momentum_of(x, before)


# ---------------------------------------------------------------- for the Python objects

# Raise ValueError unless the argument is what the name says.
cdef int64_t window_of(str name, n) except -1
cdef double finite(double x) except? -1
cdef double positive(double x) except? -1
cdef double size_of(double x) except? -1                # from 0
cdef int check_bar(double high, double low) except -1
# Where the values of a column (float64, contiguous) are; NULL when there are none.
cdef const double *values_of(array) except? NULL
cdef double *room_of(array) except? NULL


cdef class Indicator:
    cdef double *memory         # `size` doubles of the windows, and as many to go back to
    cdef int64_t size

    cdef double *take(self, int64_t size) except NULL
    cdef void keep(self) noexcept nogil
    cdef void undo(self) noexcept nogil
