"""The ledger stage: positions, P&L and marks."""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint64_t

from ._board cimport board_t
from ._day cimport Days
from ._ledger cimport Ledger
from ._ring cimport ring_t
from ._schema cimport hp_account_t
from ._stage cimport Stage, turns_t


cdef class LedgerStage(Stage):
    cdef ring_t *order_events
    cdef ring_t *marks
    cdef ring_t *risk
    cdef Ledger ledger
    cdef board_t *board         # for whoever looks; NULL = nobody
    cdef uint64_t broken        # refusals of the ledger seen
    cdef uint64_t instruments
    cdef int64_t *stored_at     # ts_recv of the newest stored snapshot, per instrument
    cdef int64_t interval       # ns between stored snapshots of a moving position
    cdef Days days
    cdef int64_t utc_offset     # UTC minus monotonic, ns
    cdef bint dated             # utc_offset is known
    cdef bint begun             # the books have an account: days are published
    cdef turns_t turns
    cdef hp_account_t *opened   # its record as of the last one published

    cdef void _marked(self, uint64_t seq, int64_t ts) noexcept nogil
    cdef int _begins(self, uint16_t record, uint16_t instrument, bytes raw) except -1
    cdef void _day(self, int64_t now, uint16_t instrument) noexcept nogil
    cdef void _account(self, uint8_t kind) noexcept nogil
    cdef void _publish(self, uint16_t instrument, uint64_t cause, int64_t ts_in, bint keep,
                       int64_t fee) noexcept nogil
