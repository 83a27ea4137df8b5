"""The board: what is held and how much of each limit is used, for whoever looks.

A segment of shared memory per run that the analyst, ``risk show`` and the monitor read without
anybody's help.  Nothing in it decides about an order.

Bytes::

       0  header: magic version run boot instruments limits               once, magic last
     256  books: basis                                                    the ledger
     384  gate: breaker, equity, day; behind a sequence word              risk
     512  limits[64]: name unit scale once; limit and use                 risk, the gate's sequence
    8704  flags[instruments], rounded up to lines                         risk
       .  rows[instruments], a line each: position, mark, volume          the ledger

Invariants
    B1  Each word has one writer.  The ledger writes `books` and `rows`, risk the others.
    B2  A row, and the gate with its limits, is whole when its sequence word is even and the same
        before and after: the writer makes it odd (relaxed, then a release fence), stores
        (relaxed), makes it even (release).  A reader gives up after a while: the writer was killed
        in between.
    B3  `basis` is the newest order event whose fill is in the rows, stored (release) after
        them: who reads it first and the rows then misses none of those fills.
    B4  Flags are single words, stored relaxed.
    B5  The page names its own limits and their scale: a tool of another version reads it.
"""
from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint64_t

from ._atomic cimport hp_fence_release, hp_store_relaxed, hp_store_release

cdef enum:
    BOARD_VERSION = 1
    BOARD_LIMITS = 64
    BOARD_GATE = 384                # offsets
    BOARD_LIMIT_ROWS = 512
    BOARD_FLAGS = 8704

cdef enum:                          # of an instrument, in its word of flags
    BOARD_PAUSED = 1
    BOARD_RESTRICTED = 2

cdef struct board_header_t:
    uint64_t magic
    uint64_t version
    uint64_t run
    uint64_t boot
    uint64_t instruments
    uint64_t limits
    uint64_t _pad0[26]
    uint64_t basis                  # B3; its line pair is the ledger's
    uint64_t _pad1[15]

cdef struct board_gate_t:           # B2; two lines
    uint64_t seq
    int64_t ts                      # ns, when it was written
    int64_t breaker                 # BREAKER_*
    int64_t cause                   # BREAKER_CAUSE_*
    int64_t losses                  # losing trades in a row
    int64_t day                     # trading day, days since 1970; 0 = none yet
    int64_t day_orders
    int64_t day_pnl                 # nanocash
    int64_t equity                  # nanocash
    int64_t peak                    # nanocash
    int64_t drawdown                # bps
    uint64_t latched[4]             # bit set of strategies that a person must enable again
    uint64_t _pad0

cdef struct board_limit_t:
    char name[64]
    char unit[16]
    int64_t scale                   # of limit and use: 1e9 for decimals, else 1
    int64_t limit                   # INT64_MIN = off
    int64_t use                     # -1 = nothing that lasts is used
    uint64_t _pad0[3]

cdef struct board_row_t:            # B2; one line
    uint64_t seq
    int64_t qty                     # nanoqty
    int64_t average                 # nanoprice
    int64_t mark                    # nanoprice; 0 = none yet
    int64_t pnl                     # nanocash, realised plus unrealised
    int64_t realised                # nanocash
    int64_t volume                  # nanoqty traded since the run began
    int64_t ts                      # ns, of the newest mark

cdef struct board_t:                # one process's view; never shared
    board_header_t *header
    board_gate_t *gate
    board_limit_t *limits
    uint64_t *flags
    board_row_t *rows


cdef inline void board_begin(uint64_t *seq) noexcept nogil:
    """Open a record for writing.  Its writer only."""
    hp_store_relaxed(seq, seq[0] + 1)
    hp_fence_release()

cdef inline void board_end(uint64_t *seq) noexcept nogil:
    """Close it again."""
    hp_store_release(seq, seq[0] + 1)

cdef inline void board_word(int64_t *to, int64_t value) noexcept nogil:
    hp_store_relaxed(<uint64_t *>to, <uint64_t>value)

cdef inline void board_mark(board_t *b, uint64_t instrument, int64_t price, int64_t volume,
                            int64_t ts) noexcept nogil:
    """The instrument's newest price and what was traded of it.  The ledger."""
    cdef board_row_t *row = &b.rows[instrument]
    board_begin(&row.seq)
    board_word(&row.mark, price)
    board_word(&row.volume, volume)
    board_word(&row.ts, ts)
    board_end(&row.seq)

cdef inline void board_position(board_t *b, uint64_t instrument, int64_t qty, int64_t average,
                                int64_t realised, int64_t unrealised) noexcept nogil:
    """What is held of the instrument.  The ledger."""
    cdef board_row_t *row = &b.rows[instrument]
    board_begin(&row.seq)
    board_word(&row.qty, qty)
    board_word(&row.average, average)
    board_word(&row.pnl, <int64_t>(<uint64_t>realised + <uint64_t>unrealised))
    board_word(&row.realised, realised)
    board_end(&row.seq)

cdef inline void board_basis(board_t *b, uint64_t event) noexcept nogil:
    """The rows know the fills of all order events up to *event*.  The ledger."""
    hp_store_release(&b.header.basis, event)


cdef class Board:
    cdef board_t b
    cdef object _memory             # keeps the mapping alive
    cdef Py_buffer _view            # held until dealloc: an exported mapping can not be closed

    cdef int _check(self, int64_t instrument) except -1
