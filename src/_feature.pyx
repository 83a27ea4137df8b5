"""Order-book features, one instrument at a time; see ``_feature.pxd`` and ``schema.py``."""
cimport cython
from libc.math cimport log, log1p, sqrt
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

import numpy

from ._flow cimport balance, order_flow, queue_change
from ._memory cimport hp_lines
from ._schema cimport (
    HP_BOOK_FLAG_CROSSED, HP_BOOK_FLAG_EMPTY, HP_BOOK_FLAG_STALE, HP_BOOK_FLAG_TRADE,
    HP_FEATURE_COUNT)
from ._study cimport study_before, study_book, study_init

from hftpipe import schema

cdef enum:
    UNUSABLE = HP_BOOK_FLAG_STALE | HP_BOOK_FLAG_CROSSED | HP_BOOK_FLAG_EMPTY

# Weight of the newest value in an EMA over n: 2 / (n + 1).
cdef double A16 = 2.0 / 17.0
cdef double A64 = 2.0 / 65.0
cdef double A128 = 2.0 / 129.0
cdef double FADED = 1e-30
cdef double HOUR_MS = 3_600_000.0
cdef double NANO = 1e-9

if sizeof(hp_features_t) != HP_FEATURE_COUNT * sizeof(float):
    raise ImportError(f"FEATURES is {sizeof(hp_features_t)} bytes, wanted {HP_FEATURE_COUNT} f32")


cdef inline double _faded(double value) noexcept nogil:
    return 0.0 if -FADED < value < FADED else value


cdef inline int _move(int64_t before, int64_t after) noexcept nogil:
    return (after > before) - (after < before)


cdef void feature_init(feature_t *f, study_t *study, int64_t window) noexcept nogil:
    memset(f, 0, sizeof(feature_t))
    f.study = study
    if study != NULL:
        study_init(study, window)


cdef bint feature_update(feature_t *f, const hp_book_t *book, hp_features_t *out) noexcept nogil:
    if f.study != NULL:
        study_book(f.study, book, out)
    if (book.flags & UNUSABLE or book.bid <= 0 or book.ask < book.bid
            or (book.bid_qty | book.ask_qty | book.bid_depth | book.ask_depth) < 0):
        f.skipped += 1                                                          # G1
        return 0
    cdef double bid_qty = <double>book.bid_qty, ask_qty = <double>book.ask_qty
    cdef double spread = <double>(book.ask - book.bid)
    cdef double mid = <double>book.bid + 0.5 * spread       # bid + ask may not fit 64 bits
    cdef double size = 0.5 * (bid_qty + ask_qty)
    cdef double imbalance = balance(bid_qty, ask_qty)
    cdef double bps = 1e4 / mid
    cdef double change = 0, flow = 0, waited = 0, bid_change = 0, ask_change = 0, qty
    cdef bint traded = book.flags & HP_BOOK_FLAG_TRADE != 0
    if f.count == 0:
        f.fast = f.slow = mid
        f.size = size
    else:
        if mid != f.mid:
            change = log(mid / f.mid)
        if book.ts_recv > f.ts:
            waited = <double>(<uint64_t>book.ts_recv - <uint64_t>f.ts) * 1e-6
            if waited > HOUR_MS:
                waited = HOUR_MS
        flow = order_flow(_move(f.bid, book.bid), <double>f.bid_qty, bid_qty,
                          _move(f.ask, book.ask), <double>f.ask_qty, ask_qty)
        if book.bid == f.bid:
            bid_change = queue_change(<double>f.bid_qty, bid_qty)
        if book.ask == f.ask:
            ask_change = queue_change(<double>f.ask_qty, ask_qty)
        f.fast += A16 * (mid - f.fast)
        f.slow += A128 * (mid - f.slow)
        f.variance = _faded(f.variance + A64 * (change * change - f.variance))  # G5
        f.flow = _faded(f.flow + A16 * (flow - f.flow))
        f.size = _faded(f.size + A16 * (size - f.size))
    f.trades = _faded(f.trades + A64 * ((1.0 if traded else 0.0) - f.trades))
    if traded and book.last_qty > 0:
        qty = <double>book.last_qty
        if f.traded_qty == 0:
            f.traded_qty = qty
            f.signed_qty = qty * book.last_side
        else:
            f.traded_qty += A16 * (qty - f.traded_qty)
            f.signed_qty += A16 * (qty * book.last_side - f.signed_qty)

    out.mid_return = <float>change
    out.mid_momentum_fast = <float>log(mid / f.fast)                            # G2
    out.mid_momentum_slow = <float>log(mid / f.slow)
    out.volatility = <float>sqrt(f.variance)
    out.spread_bps = <float>(spread * bps)
    out.imbalance_top = <float>imbalance
    out.imbalance_depth = <float>balance(<double>book.bid_depth, <double>book.ask_depth)
    out.microprice_bps = <float>(0.5 * spread * imbalance * bps)
    out.order_flow = <float>_faded(f.flow / f.size) if f.size > 0 else 0.0      # G3
    out.trade_flow = <float>(f.signed_qty / f.traded_qty) if f.traded_qty > 0 else 0.0
    out.last_offset_bps = (                                                     # G4
        <float>((<double>book.last_price - mid) * bps) if book.last_price > 0 else 0.0)
    out.bid_queue_change = <float>bid_change
    out.ask_queue_change = <float>ask_change
    out.depth_ratio = <float>log((1 + <double>book.bid_depth * 1e-9)
                                 / (1 + <double>book.ask_depth * 1e-9))
    out.trade_rate = <float>f.trades
    out.arrival = <float>log1p(waited)
    out.best_bid, out.best_ask = <float>(<double>book.bid * NANO), <float>(<double>book.ask * NANO)
    out.mid, out.spread = <float>(mid * NANO), <float>(spread * NANO)
    out.bid_depth = <float>(<double>book.bid_depth * NANO)
    out.ask_depth = <float>(<double>book.ask_depth * NANO)
    if f.study != NULL and f.study.bars.closed == 0:
        study_before(out, mid * NANO)

    f.bid, f.ask, f.bid_qty, f.ask_qty = book.bid, book.ask, book.bid_qty, book.ask_qty
    f.ts, f.mid = book.ts_recv, mid
    f.count += 1
    return f.count >= FEATURE_WARM


BOOK = schema.dtype(schema.BOOK)
WARM = FEATURE_WARM


@cython.final
cdef class Features:
    """Features of one instrument, for research: the code that runs live.

    Parameters
    ----------
    features : str or sequence of str, default "book"
        A set in ``schema.FEATURE_SETS``, or names of ``schema.CATALOGUE`` in any order.
    bar : str, default "1min"
        Window of the bars, one of ``schema.BARS``.

    Attributes
    ----------
    names : tuple of str
        Of the columns.
    bar : str
        The window; empty when no feature is made from bars.
    hash : int
        ``schema.feature_hash`` of both: what a model made from these vectors carries.
    count : int
        Usable states seen.
    skipped : int
        States that were stale, empty, crossed or malformed, and changed nothing.
    bars, late : int
        Bars completed, and trades that came too late for theirs.
    warm : bool
        Whether the newest vector may be used: ``count >= WARM``.
    """

    def __cinit__(self, features="book", bar="1min"):
        cdef int64_t window = 0
        self.names = schema.feature_names(features)
        needed = any(schema.FEATURE_BY_NAME[name].bars for name in self.names)
        schema.feature_hash(self.names, bar)                    # refuses an unknown window
        self.bar = bar if needed else ""
        self.columns = numpy.array(schema.feature_index(self.names))
        self.vector = <hp_features_t *>hp_lines(1, sizeof(hp_features_t))
        if self.vector == NULL:
            raise MemoryError
        if needed:
            window = schema.BARS[bar]
            self.study = <study_t *>hp_lines(1, sizeof(study_t))
            if self.study == NULL:
                raise MemoryError
        feature_init(&self.f, self.study, window)

    def __dealloc__(self):
        free(self.vector)
        free(self.study)

    @property
    def hash(self):
        return schema.feature_hash(self.names, self.bar)

    @property
    def count(self):
        return self.f.count

    @property
    def skipped(self):
        return self.f.skipped

    @property
    def bars(self):
        return self.study.bars.closed if self.study != NULL else 0

    @property
    def late(self):
        return self.study.bars.late if self.study != NULL else 0

    @property
    def warm(self):
        return self.f.count >= FEATURE_WARM

    def update(self, book):
        """Advance by one state of the book.

        Parameters
        ----------
        book : numpy record or array of one, dtype ``schema.dtype(schema.BOOK)``

        Returns
        -------
        (len(names),) float32 array in the order of `names`, or None while not warm or when
        the state is not usable.
        """
        vectors, warm = self.update_many(numpy.atleast_1d(numpy.asarray(book)))
        if len(warm) != 1:
            raise ValueError(f"wanted one state of the book, found {len(warm)}")
        return vectors[0] if warm[0] else None

    def update_many(self, books):
        """Advance by *n* states of one instrument's book.

        Parameters
        ----------
        books : (n,) array, dtype ``schema.dtype(schema.BOOK)``, in order of arrival

        Returns
        -------
        vectors : (n, len(names)) float32 array
            In the order of `names`; a row of zeros where the state was not usable.
        warm : (n,) bool array
            Which rows may be used.

        Raises
        ------
        ValueError
            If the dtype is another, or the states are of several instruments.
        """
        books = numpy.asarray(books)
        if books.dtype != BOOK or books.ndim != 1:
            raise ValueError(f"wanted a row of BOOK records, found {books.ndim} axes of "
                             f"{books.dtype.itemsize} B ({len(books.dtype.names or ())} fields)")
        cdef Py_ssize_t n = len(books), width = len(self.names), i, k
        if n and (books["instrument"] != books["instrument"][0]).any():
            raise ValueError("wanted the states of one instrument, found several: split them")
        vectors = numpy.zeros((n, width), numpy.float32)
        warm = numpy.zeros(n, numpy.bool_)
        if n == 0:
            return vectors, warm
        cdef const unsigned char[::1] source = (
            numpy.ascontiguousarray(books).view(numpy.uint8))
        cdef float[:, ::1] target = vectors
        cdef unsigned char[::1] mark = warm.view(numpy.uint8)
        cdef const int64_t[::1] columns = self.columns
        cdef const float *values = <const float *>self.vector
        cdef hp_book_t book             # records are 64-byte aligned, arrays need not be
        cdef uint64_t skipped
        with nogil:
            for i in range(n):
                memcpy(&book, &source[i * sizeof(hp_book_t)], sizeof(hp_book_t))
                skipped = self.f.skipped
                mark[i] = feature_update(&self.f, &book, self.vector)
                if self.f.skipped == skipped:
                    for k in range(width):
                        target[i, k] = values[columns[k]]
        return vectors, warm
