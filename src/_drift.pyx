"""Drift of a model: accuracy of what it said, distance of what it sees; see ``_drift.pxd``."""
cimport cython
from libc.math cimport log
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

import numpy

from hftpipe import schema
from hftpipe.card import DECILES, horizon

cdef double FLOOR = 1e-4        # a share that is empty counts as this: the index stays finite

if DECILES != DRIFT_BINS:
    raise ImportError(f"a card has {DECILES} bins, this counts {DRIFT_BINS}")


@cython.final
cdef class Drift:
    """What is counted about one model.

    Parameters
    ----------
    card : dict
        Of the model; without `horizon` no accuracy is kept, without `distribution` no shift.
    instruments : int
    catalogue : sequence of schema.Feature, default ``schema.CATALOGUE``
        What the vectors hold, in its order.

    Attributes
    ----------
    matured : int
        Predictions whose horizon has passed.
    skipped : int
        Answers that were not followed for want of room.
    known : bool
        Whether `distances` and `indices` can be told.
    """

    def __init__(self, card, int instruments, catalogue=None):
        if self.pending != NULL:
            raise ValueError("it is made once")
        self.instruments = instruments
        self.pending = <pending_t *>calloc(instruments or 1, sizeof(pending_t))
        if self.pending == NULL:
            raise MemoryError
        due = horizon(card)
        if due is not None:
            when, n, move, x = due
            if when == "states":
                self.states = n
            else:
                self.ns = n
            if move == "spreads":
                self.spreads = 2 * x            # of bid + ask, which is twice the mid
            else:
                self.share = x * 1e-4
        found = card["distribution"]
        if found is None:
            return
        cdef int k, b, n_features = len(card["features"])
        order = schema.feature_index(card["features"],
                                     schema.CATALOGUE if catalogue is None else catalogue)
        self.columns = <int *>calloc(n_features, sizeof(int))
        self.edges = <float *>calloc(n_features * (DRIFT_BINS - 1), sizeof(float))
        self.wanted = <double *>calloc(n_features * DRIFT_BINS, sizeof(double))
        self.bins = <uint32_t *>calloc(2 * n_features * DRIFT_BINS, sizeof(uint32_t))
        self.distance = <double *>calloc(n_features, sizeof(double))
        self.index = <double *>calloc(n_features, sizeof(double))
        if (self.columns == NULL or self.edges == NULL or self.wanted == NULL
                or self.bins == NULL or self.distance == NULL or self.index == NULL):
            raise MemoryError
        for k in range(n_features):
            self.columns[k] = order[k]
            for b in range(DRIFT_BINS - 1):
                self.edges[k * (DRIFT_BINS - 1) + b] = found["edges"][k][b]
            total = sum(found["counts"][k])
            for b in range(DRIFT_BINS):
                self.wanted[k * DRIFT_BINS + b] = found["counts"][k][b] / total
        self.features = n_features

    def __dealloc__(self):
        free(self.pending)
        free(self.columns)
        free(self.edges)
        free(self.wanted)
        free(self.bins)
        free(self.distance)
        free(self.index)

    cdef void state(self, uint64_t i, const hp_book_t *book) noexcept nogil:
        cdef pending_t *p = &self.pending[i]
        cdef prediction_t *made
        cdef uint64_t mid2 = <uint64_t>book.bid + <uint64_t>book.ask
        cdef double change
        cdef int came, slot
        p.state += 1
        while p.count:
            made = &p.at[p.first]
            if self.states:
                if p.state - made.state < self.states:
                    break
            elif book.ts_recv - made.ts < self.ns:
                break
            change = (<double>(mid2 - made.mid2) if mid2 >= made.mid2
                      else -<double>(made.mid2 - mid2))
            came = made.said == (change >= made.move) - (change <= -made.move)
            slot = <int>(self.matured % DRIFT_ROLL)
            self.hits += came - self.came[slot]
            self.came[slot] = came
            self.matured += 1
            p.first = (p.first + 1) % DRIFT_PENDING
            p.count -= 1

    cdef void answer(self, uint64_t i, const hp_book_t *book, const float *vector,
                     const float *p) noexcept nogil:
        cdef pending_t *at = &self.pending[i]
        cdef prediction_t *made
        cdef double spread = <double>(book.ask - book.bid)
        cdef float top = p[1]
        if self.features:
            self._count(vector)
        if not self.states and not self.ns:
            return
        if self.spreads and spread <= 0:        # locked: no unit to measure in
            return
        if at.count == DRIFT_PENDING:                                           # D3
            self.skipped += 1
            return
        made = &at.at[(at.first + at.count) % DRIFT_PENDING]
        at.count += 1
        made.state, made.ts, made.said = at.state, book.ts_recv, 0
        made.mid2 = <uint64_t>book.bid + <uint64_t>book.ask
        made.move = (self.spreads * spread if self.spreads
                     else self.share * <double>made.mid2)
        if p[0] > top:
            made.said, top = -1, p[0]
        if p[2] > top:
            made.said = 1

    cdef void _count(self, const float *vector) noexcept nogil:
        cdef int k, b, bin
        cdef const float *edges = self.edges
        cdef uint32_t *bins = self.bins + self.block * self.features * DRIFT_BINS
        cdef float x
        for k in range(self.features):
            x = vector[self.columns[k]]
            bin = 0
            for b in range(DRIFT_BINS - 1):
                bin += edges[b] <= x
            bins[bin] += 1
            bins += DRIFT_BINS
            edges += DRIFT_BINS - 1
        self.filled += 1
        if self.filled == DRIFT_BLOCK:                                          # D4
            self.block, self.filled, self.full = 1 - self.block, 0, True
            memset(self.bins + self.block * self.features * DRIFT_BINS, 0,
                   self.features * DRIFT_BINS * sizeof(uint32_t))

    cdef void _look(self, int k) noexcept nogil:
        cdef double total = self.filled + (DRIFT_BLOCK if self.full else 0)
        cdef double ours = 0, theirs = 0, worst = 0, index = 0, p, q, gap
        cdef const uint32_t *one = self.bins + k * DRIFT_BINS
        cdef const uint32_t *two = one + self.features * DRIFT_BINS
        cdef const double *wanted = self.wanted + k * DRIFT_BINS
        cdef int b
        for b in range(DRIFT_BINS):
            p, q = (<double>one[b] + <double>two[b]) / total, wanted[b]
            ours += p
            theirs += q
            gap = ours - theirs if ours > theirs else theirs - ours
            worst = gap if gap > worst else worst
            p = p if p > FLOOR else FLOOR
            q = q if q > FLOOR else FLOOR
            index += (p - q) * log(p / q)
        self.distance[k], self.index[k] = worst, index

    cdef void step(self) noexcept nogil:
        cdef int _i
        if self.filled + (DRIFT_BLOCK if self.full else 0) < DRIFT_LEAST:
            return
        for _i in range(min(DRIFT_STEP, self.features)):
            self._look(self.next)
            self.next += 1
            if self.next == self.features:
                self.next, self.known = 0, True

    @property
    def accuracy(self):
        """Share of the last 100 predictions that came true; None before there are so many."""
        return <double>self.hits / DRIFT_ROLL if self.matured >= DRIFT_ROLL else None

    @property
    def vectors(self):
        """How many vectors the statistics are over."""
        return self.filled + (DRIFT_BLOCK if self.full else 0)

    @property
    def shift(self):
        """``(distance, its feature, largest stability index)``; None while not known.

        Of each feature when it was looked at last: the Kolmogorov-Smirnov distance from
        training over the deciles, and the population stability index, where an empty bin counts
        as 1e-4.
        """
        if not self.known:
            return None
        cdef int k, worst = 0
        cdef double index = 0
        for k in range(self.features):
            worst = k if self.distance[k] > self.distance[worst] else worst
            index = max(index, self.index[k])
        return self.distance[worst], worst, index

    # ------------------------------------------------------------ for research and tests

    def feed(self, books, vectors, probabilities, asked=None):
        """Tell it *n* usable states and what the model said, as a stage would.

        Parameters
        ----------
        books : (n,) array, dtype ``schema.dtype(schema.BOOK)``
        vectors : (n, len(catalogue)) array, taken as float32
        probabilities : (n, 3) array, taken as float32
        asked : (n,) bool array, optional
            Whether the model was asked at all; default always.
        """
        cdef const float[:, ::1] x = numpy.ascontiguousarray(vectors, numpy.float32)
        cdef const float[:, ::1] p = numpy.ascontiguousarray(probabilities, numpy.float32)
        rows = numpy.ascontiguousarray(books)
        if rows.dtype != schema.dtype(schema.BOOK) or not (
                len(rows) == x.shape[0] == p.shape[0] and p.shape[1] == 3):
            raise ValueError("wanted as many BOOK records as vectors and probabilities")
        if len(rows) and rows["instrument"].max() >= self.instruments:
            raise ValueError(f"instrument must be below {self.instruments}")
        ask = numpy.ones(len(rows), bool) if asked is None else numpy.asarray(asked, bool)
        cdef hp_book_t book
        cdef unsigned char[::1] raw = bytearray(rows.tobytes())
        cdef Py_ssize_t i
        for i in range(len(rows)):
            memcpy(&book, &raw[i * sizeof(hp_book_t)], sizeof(hp_book_t))
            self.state(book.instrument, &book)
            if ask[i]:
                self.answer(book.instrument, &book, &x[i, 0], &p[i, 0])

    def settle(self):
        """Look at every feature now."""
        cdef int _i
        for _i in range(self.features // DRIFT_STEP + 1):
            self.step()
        return self.shift
