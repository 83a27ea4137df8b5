"""What the gate takes from outside: figures, limits, people's words, the ledger's P&L.

Each value is worked out when it comes, into what a check compares (F2 in ``_risk.pxd``).

Figures
    G1  A figure counts until its `until`; without one, for max_figure_age_ms from when it was
        computed (as that limit is when the figure comes).
    G2  A value out of range says that it is not known: what it told before is forgotten, the
        checks that need it refuse, and that is recorded.  Unit values at risk are the exception
        that proves the rule: orders of others still count with the last one known, 100 % at
        first, while new orders of this instrument are refused.
    G3  A value at risk whose basis is older than a fill that is no longer remembered is no value.
    G4  A trading day begins with the first session of a later day: what counts per day is zero
        again, except that a strategy that was disabled stays so.
"""
from libc.stdint cimport int64_t, uint64_t

from ._risk cimport risk_t
from ._schema cimport hp_figure_t, hp_position_t, hp_risk_event_t

# Take one figure; 1 when *e* says something that is to be recorded (all but its identity).
cdef bint risk_figure(risk_t *r, const hp_figure_t *f, int64_t now,
                      hp_risk_event_t *e) noexcept nogil
# The ledger's word: P&L of the day, and what a position earned when it is flat again.
cdef void risk_position(risk_t *r, const hp_position_t *p, int64_t now) noexcept nogil
# Set limit *number* to what is compared, INT64_MIN = off; 0 and nothing changed when it may not
# be.  Counts a new version.
cdef bint risk_limit(risk_t *r, uint64_t number, int64_t value) noexcept nogil
# Work out everything that depends on limits; once at the start, after `limit`, `low`, `high`,
# `idle`, `off` and the table were filled.
cdef void risk_settle(risk_t *r) noexcept nogil
# The same for what depends on the P&L and the global figures.
cdef void risk_equity(risk_t *r) noexcept nogil
