"""Whether a model still sees what it was trained on, and is still right.

D1  The caller tells every usable state of each instrument (`drift_state`) and each answer
    (`drift_answer`); nothing of that allocates or reads a clock.
D2  A prediction is the likeliest class.  It is due at the first state of its instrument that is
    `horizon` states, or ns of ts_recv, later; it came true when the mid had by then moved down,
    up or neither, by at least `move` (half a spread, say) in the units of when it was made.
    That is how the demo was labelled, and what a card's `horizon` means.
D3  Of each instrument at most DRIFT_PENDING predictions are followed at once; an answer that
    finds no room is not followed.  So one state does at most so many steps.
D4  A vector is counted into the bins of training's deciles.  The statistics are over the block
    that is being filled and the full one before it: the newest 8,192 to 16,384 vectors.
D5  `drift_state` and `drift_answer` are the stage's.  The statistics are worked out by its
    maintain(), some features a time, in the same thread.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ._schema cimport hp_book_t

cdef enum:
    DRIFT_BINS = 10             # between deciles
    DRIFT_BLOCK = 8192          # vectors of a block
    DRIFT_LEAST = 1000          # vectors before which nobody knows
    DRIFT_PENDING = 256         # predictions of one instrument that are followed at once
    DRIFT_ROLL = 100            # predictions that the accuracy is over
    DRIFT_STEP = 16             # features of one maintain()

cdef struct prediction_t:
    uint64_t state              # number of the state it was made at
    int64_t ts                  # ts_recv of it
    uint64_t mid2               # bid + ask of it, nanoprice
    double move                 # change of bid + ask that counts, nanoprice
    int said                    # -1, 0 or 1

cdef struct pending_t:          # of one instrument
    uint64_t state              # usable states seen
    uint32_t first              # oldest prediction followed
    uint32_t count              # predictions followed
    prediction_t at[256]


cdef class Drift:
    cdef readonly int features  # 0: the card has no distribution
    cdef readonly int instruments
    cdef uint64_t states        # horizon: so many states, or ...
    cdef int64_t ns             # ... so long; both 0: the card has none
    cdef double spreads         # the move that counts: of the spread, or ...
    cdef double share           # ... of bid + ask
    cdef readonly uint64_t matured      # predictions whose horizon has passed
    cdef readonly uint64_t skipped      # answers that found no room (D3)
    cdef int hits               # of the last DRIFT_ROLL matured
    cdef uint8_t came[100]      # whether each of them came true; a ring
    cdef pending_t *pending
    cdef int *columns           # where in the vector each feature stands
    cdef float *edges           # features x 9, ascending
    cdef double *wanted         # features x DRIFT_BINS: share of training in each bin
    cdef uint32_t *bins         # 2 blocks x features x DRIFT_BINS
    cdef int block              # the one that is being filled
    cdef uint32_t filled        # vectors in it
    cdef bint full              # the other one is full
    cdef double *distance       # of each feature, by statistics
    cdef double *index          # population stability, likewise
    cdef int next               # feature that maintain() looks at next
    cdef readonly bint known    # all of them have been looked at with vectors enough

    # A usable state of instrument i, before it is asked about.
    cdef void state(self, uint64_t i, const hp_book_t *book) noexcept nogil
    # The model was asked about that state and said p.
    cdef void answer(self, uint64_t i, const hp_book_t *book, const float *vector,
                     const float *p) noexcept nogil
    cdef void _count(self, const float *vector) noexcept nogil
    cdef void _look(self, int feature) noexcept nogil
    # Work out the statistics of some features.
    cdef void step(self) noexcept nogil
