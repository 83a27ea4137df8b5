"""The feature vector of one instrument, incrementally.

What each feature means stands in ``schema.CATALOGUE``; this is the arithmetic of those that
follow the book, ``_study.pxd`` of those that are made from bars.
State and inputs are one plain struct and one BOOK record, so a replay gives the same
bits: time is the record's, never a clock.

The vector lives as long as the instrument: a state writes what follows the book, a complete bar
what follows bars.

Why no NaN and no infinity can leave (tested over the whole range of int64):

G1  A state is *usable* when none of STALE, CROSSED, EMPTY is set, 0 < bid <= ask, and no
    quantity or depth is negative.  Any other state changes nothing but `skipped`; only bars
    take its time, and its trade if it has one: a print is a print, whatever the book.
G2  Each logarithm's argument is a quotient of positive doubles between 1e-19 and 1e19: the
    mid is positive (G1) and an average of positive numbers is positive.
G3  Each other denominator is positive, or the feature is defined as 0.
G4  The largest value there can be, a last price of 2**63 over a mid of one nanoprice in
    basis points, is 1e23: far inside float32.  Those of bars are at most 1e22: prices and
    quantities of a bar are positive (B3 of _bars.pxd), so its quotients are those of integers.
G5  An average, or a quotient of two, that fades below 1e-30 is 0: denormals cost hundreds of
    cycles, here and in the model.
"""
from libc.stdint cimport int64_t, uint64_t

from ._schema cimport hp_book_t, hp_features_t
from ._study cimport study_t

cdef enum:
    FEATURE_WARM = 128          # usable states before a vector may be used: the slowest EMA's span

cdef struct feature_t:
    study_t *study              # NULL: no bars are kept, what comes from them is 0
    int64_t bid                 # of the previous usable state, as the next three
    int64_t ask
    int64_t bid_qty
    int64_t ask_qty
    int64_t ts                  # its ts_recv
    double mid                  # its mid, nanoprice
    double fast                 # EMA of the mid over 16 states
    double slow                 # over 128
    double variance             # EMA of squared mid returns over 64 states
    double flow                 # EMA of order-flow imbalance over 16 states, nanoqty
    double size                 # EMA of the mean top size over 16 states, nanoqty
    double signed_qty           # EMA of side * qty over 16 trades, nanoqty
    double traded_qty           # EMA of qty over 16 trades, nanoqty
    double trades               # EMA over 64 states of "caused by a trade"
    uint64_t count              # usable states seen
    uint64_t skipped            # states that were not usable


# *study*: memory for bars of *window* ns, or NULL for none.
cdef void feature_init(feature_t *f, study_t *study, int64_t window) noexcept nogil

# Advance by one state of the book.  *out* is the instrument's vector, zero before the first.
# 1: it is warm.  0: it is not to be used: too early, or the state was not usable.
cdef bint feature_update(feature_t *f, const hp_book_t *book, hp_features_t *out) noexcept nogil


cdef class Features:
    cdef feature_t f
    cdef study_t *study
    cdef hp_features_t *vector
    cdef readonly tuple names   # of the columns
    cdef readonly str bar       # window of the bars; "" when none of the names needs them
    cdef object columns         # where they stand in the vector
