"""Indicators of volume and of books as Python objects; see ``_indicator.pyx``."""
cimport cython

from ._indicator cimport (
    Indicator, check_bar, finite, positive, room_of, size_of, values_of, window_of)

import numpy

from hftpipe._indicator import column, refuse


# ---------------------------------------------------------------- volume

@cython.final
cdef class OBV:
    """On-balance volume: added when the close rises, taken when it falls; the first is added."""
    cdef obv_t s

    def __cinit__(self):
        obv_init(&self.s)

    def update(self, double close, double volume):
        """Take one bar; the balance."""
        return obv_update(&self.s, finite(close), size_of(volume))

    def update_many(self, close, volume):
        """Take columns of bars; one column."""
        close = column("close", close)
        volume = column("volume", volume, len(close))
        out = numpy.empty(len(close))
        cdef const double *a = values_of(close)
        cdef const double *b = values_of(volume)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(close)
        cdef obv_t s = self.s
        with nogil:
            for i in range(n):
                poison += (a[i] + b[i]) * 0.0
                bad |= b[i] < 0
                r[i] = obv_update(&s, a[i], b[i])
        if poison != 0 or bad:
            refuse(close=close, volume=volume, least=("volume",))
        self.s = s
        return out


@cython.final
cdef class VWAP:
    """Mean price weighed by volume since the beginning or :meth:`reset`; NaN while that is 0."""
    cdef vwap_t s

    def __cinit__(self):
        vwap_init(&self.s)

    def reset(self):
        """Begin anew, as at the start of a session."""
        vwap_init(&self.s)

    def update(self, double price, double volume):
        """Take one trade or bar; the mean price so far."""
        return vwap_update(&self.s, finite(price), size_of(volume))

    def update_many(self, price, volume):
        """Take columns of trades or bars; one column."""
        price = column("price", price)
        volume = column("volume", volume, len(price))
        out = numpy.empty(len(price))
        cdef const double *a = values_of(price)
        cdef const double *b = values_of(volume)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(price)
        cdef vwap_t s = self.s
        with nogil:
            for i in range(n):
                poison += (a[i] + b[i]) * 0.0
                bad |= b[i] < 0
                r[i] = vwap_update(&s, a[i], b[i])
        if poison != 0 or bad:
            refuse(price=price, volume=volume, least=("volume",))
        self.s = s
        return out


@cython.final
cdef class MFI(Indicator):
    """Money flow index: share of price * volume that came with a rising typical price, percent.

    Parameters
    ----------
    n : int
        Window of changes; the first value that is defined has index n.  0 without any flow.
    """
    cdef mfi_t s

    def __cinit__(self, n=14):
        mfi_init(&self.s, window_of("n", n), self.take(2 * n))

    def update(self, double high, double low, double close, double volume):
        """Take one bar; the index, NaN before there are n + 1."""
        check_bar(high, low)
        return mfi_update(&self.s, high, low, finite(close), size_of(volume))

    def update_many(self, high, low, close, volume):
        """Take columns of bars; one column."""
        high = column("high", high)
        low = column("low", low, len(high))
        close = column("close", close, len(high))
        volume = column("volume", volume, len(high))
        out = numpy.empty(len(high))
        cdef const double *a = values_of(high)
        cdef const double *b = values_of(low)
        cdef const double *c = values_of(close)
        cdef const double *v = values_of(volume)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(high)
        cdef mfi_t s = self.s
        self.keep()
        with nogil:
            for i in range(n):
                poison += ((a[i] - b[i]) + c[i] + v[i]) * 0.0
                bad |= a[i] < b[i]
                bad |= v[i] < 0
                r[i] = mfi_update(&s, a[i], b[i], c[i], v[i])
        if poison != 0 or bad:
            self.refuse(high=high, low=low, close=close, volume=volume, least=("volume",))
        self.s = s
        return out


@cython.final
cdef class VolumeRatio(Indicator):
    """Volume over its mean of the newest *n* bars, this one included; 0 over 0.

    Parameters
    ----------
    n : int
        Window; the first value that is defined has index n - 1.
    """
    cdef sma_t s

    def __cinit__(self, n=20):
        sum_init(&self.s, window_of("n", n), self.take(n))

    def update(self, double volume):
        """Take one bar's volume; the ratio, NaN before there are n."""
        return ratio_update(&self.s, size_of(volume))

    def update_many(self, volume):
        """Take a column of volumes; one column."""
        volume = column("volume", volume)
        out = numpy.empty(len(volume))
        cdef const double *a = values_of(volume)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(volume)
        cdef sma_t s = self.s
        self.keep()
        with nogil:
            for i in range(n):
                poison += a[i] * 0.0
                bad |= a[i] < 0
                r[i] = ratio_update(&s, a[i])
        if poison != 0 or bad:
            self.refuse(volume=volume, least=("volume",))
        self.s = s
        return out


# ---------------------------------------------------------------- books

@cython.final
cdef class OrderFlow:
    """Order-flow imbalance: quantity that came to the bid less what came to the ask, per state.

    0 at the first state.  See ``_flow.pxd`` for the formula.

    References
    ----------
    Cont, Kukanov, Stoikov (2014), J. Financial Econometrics 12:47, eq. 3.
    """
    cdef order_flow_t s

    def __cinit__(self):
        order_flow_init(&self.s)

    def update(self, double bid, double bid_qty, double ask, double ask_qty):
        """Take one state of the best prices; the imbalance against the state before."""
        return order_flow_update(&self.s, finite(bid), size_of(bid_qty), finite(ask),
                                 size_of(ask_qty))

    def update_many(self, bid, bid_qty, ask, ask_qty):
        """Take columns of states; one column."""
        bid = column("bid", bid)
        bid_qty = column("bid_qty", bid_qty, len(bid))
        ask = column("ask", ask, len(bid))
        ask_qty = column("ask_qty", ask_qty, len(bid))
        out = numpy.empty(len(bid))
        cdef const double *a = values_of(bid)
        cdef const double *b = values_of(bid_qty)
        cdef const double *c = values_of(ask)
        cdef const double *d = values_of(ask_qty)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(bid)
        cdef order_flow_t s = self.s
        with nogil:
            for i in range(n):
                poison += ((a[i] - b[i]) + c[i] + d[i]) * 0.0
                bad |= b[i] < 0
                bad |= d[i] < 0
                r[i] = order_flow_update(&s, a[i], b[i], c[i], d[i])
        if poison != 0 or bad:
            refuse(bid=bid, bid_qty=bid_qty, ask=ask, ask_qty=ask_qty,
                   least=("bid_qty", "ask_qty"))
        self.s = s
        return out


@cython.final
cdef class QueueChange:
    """Change of the quantity at one side's best price over the larger of before and after.

    0 when the price moved, and at the first state.
    """
    cdef queue_t s

    def __cinit__(self):
        queue_init(&self.s)

    def update(self, double price, double qty):
        """Take one state of a side; in [-1, 1]."""
        return queue_update(&self.s, finite(price), size_of(qty))

    def update_many(self, price, qty):
        """Take columns of states; one column."""
        price = column("price", price)
        qty = column("qty", qty, len(price))
        out = numpy.empty(len(price))
        cdef const double *a = values_of(price)
        cdef const double *b = values_of(qty)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False
        cdef Py_ssize_t i, n = len(price)
        cdef queue_t s = self.s
        with nogil:
            for i in range(n):
                poison += (a[i] + b[i]) * 0.0
                bad |= b[i] < 0
                r[i] = queue_update(&s, a[i], b[i])
        if poison != 0 or bad:
            refuse(price=price, qty=qty, least=("qty",))
        self.s = s
        return out


@cython.final
cdef class TradeFlow:
    """Sign of the trades: EMA over *n* of side * quantity over that of quantity; in [-1, 1].

    Parameters
    ----------
    n : int
        Span in trades; both begin with the first trade.
    """
    cdef trade_flow_t s

    def __cinit__(self, n=16):
        trade_flow_init(&self.s, window_of("n", n))

    def update(self, int side, double qty):
        """Take one trade: side +1 when the buyer crossed, -1 the seller, 0 unknown."""
        if not -1 <= side <= 1:
            raise ValueError(f"side: wanted -1, 0 or 1, found {side}")
        return trade_flow_update(&self.s, side, positive(qty))

    def update_many(self, side, qty):
        """Take columns of trades; one column."""
        side = column("side", side)
        qty = column("qty", qty, len(side))
        out = numpy.empty(len(side))
        cdef const double *a = values_of(side)
        cdef const double *b = values_of(qty)
        cdef double *r = room_of(out)
        cdef double poison = 0
        cdef bint bad = False, wrong = False
        cdef Py_ssize_t i, n = len(side)
        cdef trade_flow_t s = self.s
        with nogil:
            for i in range(n):
                poison += (a[i] + b[i]) * 0.0
                bad |= b[i] <= 0
                wrong |= a[i] != 0 and a[i] != 1 and a[i] != -1
                r[i] = trade_flow_update(&s, a[i], b[i])
        if poison != 0 or bad:
            refuse(side=side, qty=qty, above=("qty",))
        if wrong:
            raise ValueError("side: wanted -1, 0 or 1, found others")
        self.s = s
        return out


def imbalance(bid_qty, ask_qty):
    """(bid - ask) / (bid + ask) of quantities, element by element; 0 when both are 0.

    Parameters
    ----------
    bid_qty, ask_qty : arrays of one shape
        (n,) for one level or a depth, (n, levels) for each level.

    Returns
    -------
    float64 array of that shape, in [-1, 1]
    """
    own = numpy.asarray(bid_qty, numpy.float64)
    other = numpy.asarray(ask_qty, numpy.float64)
    if own.shape != other.shape:
        raise ValueError(f"wanted arrays of one shape, found {own.shape} and {other.shape}")
    shape = own.shape
    own, other = column("bid_qty", own.ravel()), column("ask_qty", other.ravel())
    out = numpy.empty(len(own))
    cdef const double *a = values_of(own)
    cdef const double *b = values_of(other)
    cdef double *r = room_of(out)
    cdef double poison = 0
    cdef bint bad = False
    cdef Py_ssize_t i, n = len(own)
    with nogil:
        for i in range(n):
            poison += (a[i] + b[i]) * 0.0
            bad |= a[i] < 0
            bad |= b[i] < 0
            r[i] = balance(a[i], b[i])
    if poison != 0 or bad:
        refuse(bid_qty=own, ask_qty=other, least=("bid_qty", "ask_qty"))
    return out.reshape(shape)
