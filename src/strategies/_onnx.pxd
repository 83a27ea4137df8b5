"""Follow an ONNX model: the class that is likeliest, when it is likely enough.

O1  An inference that took longer than `budget` is late.  Its answer is stored either way, with
    SIGNAL_FLAG_LATE; whether a decision comes of it is `on_miss`: never (skip), while the event
    it is about is younger than `stale_age` (stale), or never again without an operator (halt).
O2  Late is what the clock of a live run says.  In a backtest the clock stands still while a
    strategy thinks, so nothing is late; a replay is told which answers were (`replay`).
O3  A model is exchanged by the stage between two events (`exchange`).  Everything that takes time
    is in `prepare`, which any thread may call: it touches nothing that the stage uses.  What is
    counted about drift begins anew with the new model.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t

from .._drift cimport Drift
from .._model cimport Model
from .._strategy cimport Strategy, hp_context_t, hp_out_t
from ._taker cimport taker_t

cdef enum:
    MISS_SKIP = 0
    MISS_STALE = 1
    MISS_HALT = 2


cdef class Onnx(Strategy):
    cdef readonly Model model
    cdef readonly double threshold      # probability above which a class wins
    cdef readonly double leave          # probability of the other direction that ends a position
    cdef readonly dict params
    cdef readonly int64_t budget        # ns that one inference may take
    cdef readonly int64_t stale_age     # ns
    cdef int on_miss                    # MISS_*
    cdef int count                      # instruments
    cdef taker_t *takers
    cdef uint64_t complain              # late answers at which the log is told again
    cdef readonly Drift drift
    cdef uint64_t matured               # predictions of the models before this one
    cdef readonly double warn_accuracy  # below it the log is told
    cdef readonly double warn_shift     # above it likewise
    cdef bint wrong, moved              # whether either is so now
    cdef uint64_t bad[2]                # how often each began, and ...
    cdef uint64_t tell[2]               # ... at how many the log is told again
    cdef bint replayed                  # lateness is told, not measured
    cdef uint64_t *late_events          # ascending
    cdef uint8_t *late_flags
    cdef Py_ssize_t late_count

    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
    cdef uint8_t _late(self, const hp_context_t *context, int64_t elapsed) noexcept nogil
    cdef object maintain(self)
    cdef int _failed(self) noexcept nogil
