"""Indicators as Python objects over the C of ``_indicator.pxd``; ``indicators.py`` is the door.

Every class takes one value (or one bar) at a time by ``update`` and whole columns by
``update_many``; both advance the same state by the same function.  What is not finite is
refused before anything moves.
"""
cimport cython
from libc.math cimport isfinite
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from collections import namedtuple

import numpy

cdef enum:
    WINDOW_MAX = 1 << 24        # values; a window costs up to 24 bytes each

Macd = namedtuple("Macd", "line signal histogram")
Bands = namedtuple("Bands", "lower middle upper")
Width = namedtuple("Width", "percent_b bandwidth")
Stoch = namedtuple("Stoch", "k d")


cdef double bollinger_again(const bollinger_t *s, double *mean) noexcept nogil:
    cdef double newest = s.values[s.at - 1]     # distances from here are exact where it matters
    cdef double distance, near, total = 0, square = 0
    cdef int64_t i
    for i in range(s.n):
        total += s.values[i] - newest
    near = total * s.share
    for i in range(s.n):
        distance = (s.values[i] - newest) - near
        square += distance * distance
    mean[0] = (newest - s.shift) + near
    return square * s.share


# ---------------------------------------------------------------- what comes in

cdef int64_t window_of(str name, n) except -1:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= WINDOW_MAX:
        raise ValueError(f"{name}: wanted a whole number from 1 to {WINDOW_MAX}, found {n!r}")
    return n


cdef double finite(double x) except? -1:
    if not isfinite(x):
        raise ValueError(f"wanted a finite number, found {x}")
    return x


cdef double positive(double x) except? -1:
    if not (isfinite(x) and x > 0):
        raise ValueError(f"wanted a finite number above 0, found {x}")
    return x


cdef double size_of(double x) except? -1:
    if not (isfinite(x) and x >= 0):
        raise ValueError(f"wanted a finite number from 0, found {x}")
    return x


def column(str name, values, int64_t length=-1):
    """*values* as one column of float64, contiguous, of *length* values (-1: any)."""
    array = numpy.ascontiguousarray(values, numpy.float64)
    if array.ndim != 1 or (length >= 0 and len(array) != length):
        raise ValueError(f"{name}: wanted one column" + (
            f" of {length} values" if length >= 0 else "") + f", found shape {array.shape}")
    return array


def refuse(above=(), least=(), **columns):
    """Raise the ValueError for the first value of *columns* that may not be there, if any.

    *above* and *least* name the columns whose values must be above 0, or 0 and more; with
    *high* and *low*, the one may not be below the other.  The loops only suspect: a sum of
    columns times 0 is not 0 when a value is not finite, but also when finite ones overflow.
    """
    for name, values in columns.items():
        bad = ~numpy.isfinite(values)
        what = "finite numbers"
        if not bad.any() and name in (*above, *least):
            bad = values <= 0 if name in above else values < 0
            what = f"numbers {'above' if name in above else 'from'} 0"
        if bad.any():
            at = int(numpy.flatnonzero(bad)[0])
            raise ValueError(f"{name}: wanted {what}, found {values[at]} at row {at}")
    if "high" in columns and "low" in columns:
        high, low = columns["high"], columns["low"]
        for at in numpy.flatnonzero(high < low):
            raise ValueError(f"wanted high >= low, found {high[at]} and {low[at]} at row {at}")


cdef int check_bar(double high, double low) except -1:
    if not (isfinite(high) and isfinite(low) and high >= low):
        raise ValueError(f"wanted finite high >= low, found {high} and {low}")
    return 0


cdef const double *values_of(array) except? NULL:
    """Where the values of a column are; NULL when there are none."""
    cdef const double[::1] view = array
    return &view[0] if view.shape[0] else NULL


cdef double *room_of(array) except? NULL:
    cdef double[::1] view = array
    return &view[0] if view.shape[0] else NULL


cdef class Indicator:
    """Base of the indicators with a window: holds its memory."""

    def __dealloc__(self):
        free(self.memory)

    cdef double *take(self, int64_t size) except NULL:
        self.memory = <double *>calloc(2 * size, sizeof(double))
        if self.memory == NULL:
            raise MemoryError
        self.size = size
        return self.memory

    cdef void keep(self) noexcept nogil:
        """Remember the windows: what follows may turn out to be refused."""
        memcpy(self.memory + self.size, self.memory, self.size * sizeof(double))

    cdef void undo(self) noexcept nogil:
        memcpy(self.memory, self.memory + self.size, self.size * sizeof(double))

    def refuse(self, **columns):
        """As :func:`refuse`; what was taken of the columns is forgotten first."""
        try:
            refuse(**columns)
        except ValueError:
            self.undo()
            raise


# ---------------------------------------------------------------- averages

@cython.final
cdef class SMA(Indicator):
    """Mean of the newest *n* values.

    Parameters
    ----------
    n : int
        Window; the first value that is defined has index n - 1.
    """
    cdef sma_t s

    def __cinit__(self, n=20):
        sum_init(&self.s, window_of("n", n), self.take(n))

    def update(self, double x):
        """Take one value; the mean, NaN before there are n."""
        return sma_update(&self.s, finite(x))

    def update_many(self, x):
        """Take a column; the means, one per row."""
        x = column("x", x)
        out = numpy.empty(len(x))
        cdef const double *a = values_of(x)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef sma_t s = self.s
        self.keep()
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                r[i] = sma_update(&s, a[i])
        if poison != 0:
            self.refuse(x=x)
        self.s = s
        return out


@cython.final
cdef class EMA:
    """Exponential mean with weight 2 / (n + 1), seeded with the mean of the first *n* values.

    Parameters
    ----------
    n : int
        Span; the first value that is defined has index n - 1.
    """
    cdef ema_t s

    def __cinit__(self, n=9):
        ema_init(&self.s, window_of("n", n))

    def update(self, double x):
        """Take one value; the mean, NaN before there are n."""
        return ema_update(&self.s, finite(x))

    def update_many(self, x):
        """Take a column; the means, one per row."""
        x = column("x", x)
        out = numpy.empty(len(x))
        cdef const double *a = values_of(x)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef ema_t s = self.s
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                r[i] = ema_update(&s, a[i])
        if poison != 0:
            refuse(x=x)
        self.s = s
        return out


@cython.final
cdef class WMA(Indicator):
    """Mean of the newest *n* values, the newest weighed n, the oldest 1.

    Parameters
    ----------
    n : int
        Window; the first value that is defined has index n - 1.
    """
    cdef wma_t s

    def __cinit__(self, n=20):
        wma_init(&self.s, window_of("n", n), self.take(2 * n))

    def update(self, double x):
        """Take one value; the mean, NaN before there are n."""
        return wma_update(&self.s, finite(x))

    def update_many(self, x):
        """Take a column; the means, one per row."""
        x = column("x", x)
        out = numpy.empty(len(x))
        cdef const double *a = values_of(x)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef wma_t s = self.s
        scratch = numpy.empty(5 * s.n)
        cdef double *room = room_of(scratch)
        self.keep()
        with nogil:
            i = 0
            while i < n:
                if s.full and s.at == 0 and n - i >= 4 * s.n:
                    hp_wma_blocks(a + i, r + i, s.weighted, room, s.n, s.length, s.share)
                    i += 4 * s.n
                    continue
                r[i] = wma_update(&s, a[i])
                i += 1
            poison = hp_poison(a, n)
        if poison != 0:
            self.refuse(x=x)
        self.s = s
        return out


# ---------------------------------------------------------------- oscillators

@cython.final
cdef class RSI:
    """Wilder's relative strength index: mean gain over mean gain plus mean loss, percent.

    Parameters
    ----------
    n : int
        Changes in the seed, and the smoothing; the first value that is defined has index n.
        0 when the price never moved.
    """
    cdef rsi_t s

    def __cinit__(self, n=14):
        rsi_init(&self.s, window_of("n", n))

    def update(self, double x):
        """Take one price; the index, NaN before there are n + 1."""
        return rsi_update(&self.s, finite(x))

    def update_many(self, x):
        """Take a column of prices; the indices, one per row."""
        x = column("x", x)
        out = numpy.empty(len(x))
        cdef const double *a = values_of(x)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef rsi_t s = self.s
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                r[i] = rsi_update(&s, a[i])
        if poison != 0:
            refuse(x=x)
        self.s = s
        return out


@cython.final
cdef class MACD:
    """Difference of two exponential means (line), its mean (signal), their difference.

    Parameters
    ----------
    fast, slow, signal : int
        Spans, fast < slow.  All three are defined from index slow + signal - 2.
    """
    cdef macd_t s

    def __cinit__(self, fast=12, slow=26, signal=9):
        if window_of("fast", fast) >= window_of("slow", slow):
            raise ValueError(f"wanted fast < slow, found {fast} and {slow}")
        macd_init(&self.s, fast, slow, window_of("signal", signal))

    def update(self, double x):
        """Take one price; (line, signal, histogram)."""
        cdef macd_out_t out = macd_update(&self.s, finite(x))
        return out.line, out.signal, out.histogram

    def update_many(self, x):
        """Take a column of prices; three columns."""
        x = column("x", x)
        out = Macd(*(numpy.empty(len(x)) for _ in range(3)))
        cdef const double *a = values_of(x)
        cdef double *line = room_of(out.line)
        cdef double *signal = room_of(out.signal)
        cdef double *histogram = room_of(out.histogram)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef macd_t s = self.s
        cdef macd_out_t o
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                o = macd_update(&s, a[i])
                line[i], signal[i], histogram[i] = o.line, o.signal, o.histogram
        if poison != 0:
            refuse(x=x)
        self.s = s
        return out


@cython.final
cdef class Stochastic(Indicator):
    """Where the close stands in the range of the newest *n* bars (%K, smoothed) and its mean (%D).

    Parameters
    ----------
    n : int
        Bars of the range.
    k, d : int
        Windows of the two means; 0 stands for a range of nothing.
        Both are defined from index n + k + d - 3.
    """
    cdef stochastic_t s

    def __cinit__(self, n=5, k=3, d=3):
        cdef int64_t size = 2 * window_of("n", n) + window_of("k", k) + window_of("d", d)
        stochastic_init(&self.s, n, k, d, self.take(size))

    def update(self, double high, double low, double close):
        """Take one bar; (%K, %D)."""
        check_bar(high, low)
        cdef stochastic_out_t out = stochastic_update(&self.s, high, low, finite(close))
        return out.k, out.d

    def update_many(self, high, low, close):
        """Take columns of bars; two columns."""
        high = column("high", high)
        low = column("low", low, len(high))
        close = column("close", close, len(high))
        out = Stoch(*(numpy.empty(len(high)) for _ in range(2)))
        cdef const double *a = values_of(high)
        cdef const double *b = values_of(low)
        cdef const double *c = values_of(close)
        cdef double *k = room_of(out.k)
        cdef double *d = room_of(out.d)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(high)
        cdef stochastic_t s = self.s
        cdef stochastic_out_t o
        self.keep()
        with nogil:
            for i in range(n):
                poison += ((a[i] - b[i]) + c[i]) * 0.0
                bad |= a[i] < b[i]
                o = stochastic_update(&s, a[i], b[i], c[i])
                k[i], d[i] = o.k, o.d
        if poison != 0 or bad:
            self.refuse(high=high, low=low, close=close)
        self.s = s
        return out


# ---------------------------------------------------------------- bands, ranges

@cython.final
cdef class Bollinger(Indicator):
    """Mean of the newest *n* values and *width* population standard deviations around it.

    Parameters
    ----------
    n : int
        Window; the first value that is defined has index n - 1.
    width : float
        Standard deviations from the middle to each band.
    """
    cdef bollinger_t s

    def __cinit__(self, n=20, double width=2.0):
        bollinger_init(&self.s, window_of("n", n), positive(width), self.take(3 * n))

    def update(self, double x):
        """Take one price; (lower, middle, upper, %B, bandwidth)."""
        cdef bollinger_out_t o = bollinger_update(&self.s, finite(x))
        return o.lower, o.middle, o.upper, bollinger_place(&o), bollinger_bandwidth(&o)

    def update_many(self, x):
        """Take a column of prices; the three bands."""
        x = column("x", x)
        out = Bands(*(numpy.empty(len(x)) for _ in range(3)))
        cdef const double *a = values_of(x)
        cdef double *lower = room_of(out.lower)
        cdef double *middle = room_of(out.middle)
        cdef double *upper = room_of(out.upper)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef bollinger_t s = self.s
        cdef bollinger_out_t o
        self.keep()
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                o = bollinger_update(&s, a[i])
                lower[i], middle[i], upper[i] = o.lower, o.middle, o.upper
        if poison != 0:
            self.refuse(x=x)
        self.s = s
        return out

    def width_many(self, x):
        """Take a column of prices; %B (0.5 when the bands meet) and bandwidth."""
        x = column("x", x)
        out = Width(*(numpy.empty(len(x)) for _ in range(2)))
        cdef const double *a = values_of(x)
        cdef double *place = room_of(out.percent_b)
        cdef double *bandwidth = room_of(out.bandwidth)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef bollinger_t s = self.s
        cdef bollinger_out_t o
        self.keep()
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                o = bollinger_update(&s, a[i])
                place[i], bandwidth[i] = bollinger_place(&o), bollinger_bandwidth(&o)
        if poison != 0:
            self.refuse(x=x)
        self.s = s
        return out


@cython.final
cdef class ATR:
    """Wilder's mean of the true range.

    Parameters
    ----------
    n : int
        Ranges in the seed, and the smoothing; the first value that is defined has index n.
    """
    cdef atr_t s

    def __cinit__(self, n=14):
        atr_init(&self.s, window_of("n", n))

    def update(self, double high, double low, double close):
        """Take one bar; the mean range, NaN before there are n + 1."""
        check_bar(high, low)
        return atr_update(&self.s, high, low, finite(close))

    def update_many(self, high, low, close):
        """Take columns of bars; one column."""
        high = column("high", high)
        low = column("low", low, len(high))
        close = column("close", close, len(high))
        out = numpy.empty(len(high))
        cdef const double *a = values_of(high)
        cdef const double *b = values_of(low)
        cdef const double *c = values_of(close)
        cdef double *r = room_of(out)
        cdef double poison = 0, worst = 0
        cdef Py_ssize_t i, n = len(high)
        cdef atr_t s = self.s
        with nogil:
            for i in range(n):
                poison += ((a[i] - b[i]) + c[i]) * 0.0
                worst = a[i] - b[i] if a[i] - b[i] < worst else worst
                r[i] = atr_update(&s, a[i], b[i], c[i])
        if poison != 0 or worst < 0:
            refuse(high=high, low=low, close=close)
        self.s = s
        return out


@cython.final
cdef class Parkinson(Indicator):
    """Volatility per bar from the ranges of the newest *n* bars; prices above 0.

    Parameters
    ----------
    n : int
        Window; the first value that is defined has index n - 1.

    References
    ----------
    Parkinson (1980), J. Business 53:61.
    """
    cdef parkinson_t s

    def __cinit__(self, n=20):
        parkinson_init(&self.s, window_of("n", n), self.take(n))

    def update(self, double high, double low):
        """Take one bar; the volatility, NaN before there are n."""
        check_bar(high, positive(low))
        return parkinson_update(&self.s, high, low)

    def update_many(self, high, low):
        """Take columns of bars; one column."""
        high = column("high", high)
        low = column("low", low, len(high))
        out = numpy.empty(len(high))
        cdef const double *a = values_of(high)
        cdef const double *b = values_of(low)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(high)
        cdef parkinson_t s = self.s
        self.keep()
        with nogil:
            for i in range(n):
                poison += (a[i] + b[i]) * 0.0
                bad |= a[i] < b[i]
                bad |= b[i] <= 0
                r[i] = parkinson_update(&s, a[i], b[i])
        if poison != 0 or bad:
            self.refuse(high=high, low=low, above=("low",))
        self.s = s
        return out


# ---------------------------------------------------------------- changes

@cython.final
cdef class LogReturn:
    """log(price / the price before); prices above 0.  Defined from index 1."""
    cdef change_t s

    def __cinit__(self):
        change_init(&self.s, 0, NULL)

    def update(self, double x):
        """Take one price; the return, NaN at the first."""
        return change_update(&self.s, positive(x))

    def update_many(self, x):
        """Take a column of prices; one column."""
        x = column("x", x)
        out = numpy.empty(len(x))
        cdef const double *a = values_of(x)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(x)
        cdef change_t s = self.s
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                bad |= a[i] <= 0
                r[i] = change_update(&s, a[i])
        if poison != 0 or bad:
            refuse(x=x, above=("x",))
        self.s = s
        return out


@cython.final
cdef class Realised(Indicator):
    """Root mean square of the newest *n* log returns: volatility per bar; prices above 0.

    Parameters
    ----------
    n : int
        Returns in the window; the first value that is defined has index n.
    """
    cdef change_t s

    def __cinit__(self, n=20):
        change_init(&self.s, window_of("n", n), self.take(n))

    def update(self, double x):
        """Take one price; the volatility, NaN before there are n + 1."""
        cdef double change
        return realised_update(&self.s, positive(x), &change)

    def update_many(self, x):
        """Take a column of prices; one column."""
        x = column("x", x)
        out = numpy.empty(len(x))
        cdef const double *a = values_of(x)
        cdef double *r = room_of(out)
        cdef double poison = 0, change
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(x)
        cdef change_t s = self.s
        self.keep()
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                bad |= a[i] <= 0
                r[i] = realised_update(&s, a[i], &change)
        if poison != 0 or bad:
            self.refuse(x=x, above=("x",))
        self.s = s
        return out


@cython.final
cdef class Momentum(Indicator):
    """Change against the value *n* before, in percent (TA-Lib's ROC); 0 against 0.

    Parameters
    ----------
    n : int
        Distance; the first value that is defined has index n.
    """
    cdef momentum_t s

    def __cinit__(self, n=10):
        momentum_init(&self.s, window_of("n", n), self.take(n))

    def update(self, double x):
        """Take one price; the change, NaN before there are n + 1."""
        return momentum_update(&self.s, finite(x))

    def update_many(self, x):
        """Take a column of prices; one column."""
        x = column("x", x)
        out = numpy.empty(len(x))
        cdef const double *a = values_of(x)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef Py_ssize_t i, n = len(x)
        cdef momentum_t s = self.s
        cdef Py_ssize_t first = min(n, <Py_ssize_t>s.n)
        self.keep()
        with nogil:
            for i in range(first):
                poison += a[i] * 0.0
                r[i] = momentum_update(&s, a[i])
            for i in range(first, n):           # the value before stands in the column itself
                poison += a[i] * 0.0
                r[i] = momentum_of(a[i], a[i - first])
            for i in range(max(first, n - first), n):
                momentum_update(&s, a[i])       # and the window is that of the last values
        if poison != 0:
            self.refuse(x=x)
        self.s = s
        return out
