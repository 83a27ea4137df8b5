"""Bars from trades; what they are and promise is in ``_bars.pxd``."""
cimport cython
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

from ._schema cimport hp_bar_t

import numpy

from hftpipe import schema

BAR = schema.dtype(schema.BAR)


def window_ns(window) -> int:
    """Nanoseconds of one of ``schema.BARS``; ValueError, naming the nearest, for others."""
    if window not in schema.BARS:
        raise schema.nearest("a window of bars", str(window), list(schema.BARS))
    return schema.BARS[window]


cdef _row(const hp_bar_t *bar):
    out = numpy.zeros(1, BAR)
    cdef unsigned char[::1] view = out.view(numpy.uint8)
    memcpy(&view[0], bar, sizeof(hp_bar_t))
    return out[0]


@cython.final
cdef class Bars:
    """Bars of one instrument, a trade at a time or a column at a time.

    Parameters
    ----------
    window : str
        One of ``schema.BARS``: "1s" "5s" "15s" "30s" "1min" "5min" "15min" "30min" "1h" "4h" "1d".

    Attributes
    ----------
    closed, late, skipped : int
        Bars completed; trades that came after their bar was complete; trades that do not count
        (UNPRINTABLE, no positive price or quantity, before 1970, too large for the sums).
    """

    def __cinit__(self, window="1min"):
        bars_init(&self.b, window_ns(window))

    @property
    def closed(self):
        return self.b.closed

    @property
    def late(self):
        return self.b.late

    @property
    def skipped(self):
        return self.b.skipped

    @property
    def running(self):
        """The bar that is not complete, a ``schema.BAR`` record, or None."""
        cdef hp_bar_t bar
        if self.b.count == 0:
            return None
        bars_view(&self.b, &bar)
        return _row(&bar)

    def trade(self, int64_t ts, int64_t price, int64_t qty, uint8_t flags=0):
        """Take one trade.

        Parameters
        ----------
        ts : int
            UTC, ns since 1970.
        price, qty : int
            nanoprice, nanoqty.
        flags : int
            ``schema.MARKET_FLAG``.

        Returns
        -------
        The bar that is complete because of it, a ``schema.BAR`` record, or None.
        """
        cdef hp_bar_t bar
        return _row(&bar) if bars_trade(&self.b, ts, price, qty, flags, &bar) else None

    def time(self, int64_t ts):
        """It is *ts*: the bar that is complete because of it, or None."""
        cdef hp_bar_t bar
        return _row(&bar) if bars_time(&self.b, ts, &bar) else None

    def flush(self):
        """Complete the running bar and return it, or None when there is none."""
        cdef hp_bar_t bar
        if self.b.count == 0:
            return None
        bars_flush(&self.b, &bar)
        return _row(&bar)

    def trade_many(self, ts, price, qty, flags=None):
        """Take columns of trades in order of arrival.

        Parameters
        ----------
        ts, price, qty : (n,) arrays of whole numbers
            UTC ns, nanoprice, nanoqty.
        flags : (n,) array, optional
            ``schema.MARKET_FLAG``; none of them without it.

        Returns
        -------
        (m,) array of ``schema.BAR``: the bars that are complete; the last one is running still.

        Raises
        ------
        ValueError
            If the columns are not whole numbers of one length.
        """
        columns = []
        for name, values in (("ts", ts), ("price", price), ("qty", qty)):
            values = numpy.asarray(values)
            if values.ndim != 1 or (len(values) and values.dtype.kind not in "iu") or (
                    columns and len(values) != len(columns[0])):
                raise ValueError(f"{name}: wanted one column of whole numbers"
                                 + (f", {len(columns[0])} of them" if columns else "")
                                 + f", found {values.dtype} of shape {values.shape}")
            columns.append(numpy.ascontiguousarray(values, numpy.int64))
        cdef Py_ssize_t i, done = 0, n = len(columns[0])
        marks = numpy.zeros(n, numpy.uint8) if flags is None else numpy.ascontiguousarray(
            flags, numpy.uint8)
        if marks.shape != (n,):
            raise ValueError(f"flags: wanted {n} of them, found shape {marks.shape}")
        out = numpy.zeros(n, BAR)
        if n == 0:
            return out
        cdef const int64_t[::1] t = columns[0]
        cdef const int64_t[::1] p = columns[1]
        cdef const int64_t[::1] q = columns[2]
        cdef const uint8_t[::1] f = marks
        cdef unsigned char[::1] target = out.view(numpy.uint8)
        cdef hp_bar_t bar
        with nogil:
            for i in range(n):
                if bars_trade(&self.b, t[i], p[i], q[i], f[i], &bar):
                    memcpy(&target[done * sizeof(hp_bar_t)], &bar, sizeof(hp_bar_t))
                    done += 1
        return out[:done].copy()
