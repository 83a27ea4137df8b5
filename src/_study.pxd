"""What bars tell: the features of one instrument that are made from its bars.

The definitions stand in ``schema.CATALOGUE``; this feeds bars from states of the book and the
indicators from bars.  A state costs one comparison of times, a trade one bar update; only a
complete bar costs more.

Time is UTC: the venue's where it sends one; else the time of receipt, moved by the offset
between the two when both were last known.  Without any venue time it stays monotonic: bars then
begin at multiples of the window since the host started.
"""
from libc.stdint cimport int64_t, uint64_t

from ._bars cimport bars_t
from ._flow cimport mfi_t, obv_t, vwap_t
from ._indicator cimport (
    atr_t, bollinger_t, change_t, ema_t, macd_t, momentum_t, parkinson_t, rsi_t, sma_t,
    stochastic_t, wma_t)
from ._schema cimport hp_bar_t, hp_book_t, hp_features_t

cdef enum:
    STUDY_BARS = 200            # what the feature `bars` counts to: the longest window
    STUDY_MEMORY = 512          # doubles of all windows together

cdef struct study_t:
    bars_t bars
    int64_t offset              # ts_venue - ts_recv, modulo 2**64; 0 until both were seen
    int64_t day                 # of the newest bar, days since 1970; -1 = none yet
    int64_t quantity            # BOOK.volume of the state before
    bint begun                  # a state was seen
    double volume               # of the newest bar, whole units
    ema_t ema9, ema12, ema21, ema26
    macd_t macd
    rsi_t rsi14, rsi28
    atr_t atr
    obv_t obv
    vwap_t vwap
    sma_t sma50, sma200, ratio
    wma_t wma
    bollinger_t bollinger
    stochastic_t stochastic
    mfi_t mfi
    change_t change
    parkinson_t parkinson
    momentum_t momentum
    double memory[STUDY_MEMORY]


# *s* may not be moved afterwards: its windows point into it.
cdef void study_init(study_t *s, int64_t window) noexcept nogil

# Take one state of the book, usable or not; the features of a bar it completes go to *out*.
cdef void study_book(study_t *s, const hp_book_t *book, hp_features_t *out) noexcept nogil

# Take one complete bar.
cdef void study_bar(study_t *s, const hp_bar_t *bar, hp_features_t *out) noexcept nogil

# What stands before the first bar: prices are *mid*.
cdef void study_before(hp_features_t *out, double mid) noexcept nogil
