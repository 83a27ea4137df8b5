"""How near an order came to every limit: CHECKS records, made after the verdict is on its way.

M1  It only reads, and is called after risk_check for the same intent, with nothing in between.
M2  A cell is the use of its limit in 1/1000, rounded up: at most 1000 for a check that passed,
    1001 or more for the one that refused, 0 for those after it and those that do not apply.
M3  Checks are looked at in the order of _risk.pxd.  A check that is met or not is 1 or 1001.
"""
from libc.stdint cimport int64_t

from ._risk cimport risk_t
from ._schema cimport hp_checks_t, hp_intent_t, hp_verdict_t


cdef void risk_margins(const risk_t *r, const hp_intent_t *i, const hp_verdict_t *v, int64_t now,
                       hp_checks_t *out) noexcept nogil
