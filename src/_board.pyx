# cython: binding=False
"""Python's handle on the board; layout and invariants are in ``_board.pxd``.

``risk show`` imports this and little else: no numpy, no schema, no posix_ipc.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MIN
from libc.string cimport memcpy, memset

from ._atomic cimport hp_fence_acquire, hp_load_acquire, hp_load_relaxed, hp_pause

from collections import namedtuple

from hftpipe.errors import SchemaError

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *s, size_t limit) noexcept

cdef uint64_t MAGIC = 0x31647262706668ULL       # b"hfpbrd1"
cdef enum:
    SPINS = 1000                    # looks at a record that is being written ...
    NAPS = 5000                     # ... and then as many, with a pause each: 0.3 s or more

cdef extern from * nogil:
    """
    #include <time.h>
    static inline void hp_nap(void) { struct timespec t = {0, 50000}; nanosleep(&t, 0); }
    """
    void hp_nap() noexcept


cdef inline void wait(int i) noexcept nogil:
    """Before look number *i* + 1: its writer may just not be running."""
    if i < SPINS:
        hp_pause()
    else:
        hp_nap()


if (sizeof(board_header_t) != BOARD_GATE
        or BOARD_GATE + sizeof(board_gate_t) != BOARD_LIMIT_ROWS
        or BOARD_LIMIT_ROWS + BOARD_LIMITS * sizeof(board_limit_t) != BOARD_FLAGS
        or sizeof(board_row_t) != 64):
    raise ImportError(f"board: header {sizeof(board_header_t)}, gate {sizeof(board_gate_t)}, limit "
                      f"{sizeof(board_limit_t)}, row {sizeof(board_row_t)} bytes do not fit")

LIMITS = BOARD_LIMITS
OFF = INT64_MIN
PAUSED = BOARD_PAUSED
RESTRICTED = BOARD_RESTRICTED

Row = namedtuple("Row", "qty average mark pnl realised volume ts")
Limit = namedtuple("Limit", "name unit scale limit use")


cdef uint64_t rows_at(uint64_t instruments) noexcept:
    return BOARD_FLAGS + (instruments * 8 + 63) // 64 * 64


def size(int instruments) -> int:
    """Bytes of a board for so many instruments."""
    if not 0 < instruments <= 65536:
        raise ValueError(f"instruments must be in [1, 65536], was {instruments}")
    return rows_at(instruments) + instruments * sizeof(board_row_t)


cdef int _put_text(char *to, size_t room, text) except -1:
    data = text.encode()
    if <size_t>len(data) >= room:
        raise ValueError(f"must be shorter than {room} bytes, was {text!r}")
    memset(to, 0, room)
    memcpy(to, <const char *>data, len(data))
    return 0


cdef str _text(const char *of, size_t room):
    return of[:strnlen(of, room)].decode(errors="replace")


def format(memory, *, uint64_t run, uint64_t boot=0, int instruments, limits=()):
    """Make *memory* the board of a run: nothing held, nothing used.

    Parameters
    ----------
    memory : buffer
        Writable, aligned to 64 bytes, zero, ``size(instruments)`` bytes; nobody else uses it yet.
    run, boot : int
        The run it belongs to and the boot it lives in.
    instruments : int
    limits : sequence of (str, str, int)
        Name, unit and scale of each limit, by its number; at most LIMITS.
    """
    cdef Py_buffer view
    cdef board_header_t *h
    cdef board_limit_t *row
    if len(limits) > BOARD_LIMITS:
        raise ValueError(f"at most {BOARD_LIMITS} limits, were {len(limits)}")
    wanted = size(instruments)
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if view.len < wanted or <uint64_t>view.buf % 64:
            raise ValueError(f"memory must be {wanted} bytes aligned to 64, was {view.len}")
        memset(view.buf, 0, wanted)
        h = <board_header_t *>view.buf
        h.version, h.run, h.boot = BOARD_VERSION, run, boot
        h.instruments, h.limits = instruments, len(limits)
        for i, (name, unit, scale) in enumerate(limits):
            row = <board_limit_t *>(<char *>view.buf + BOARD_LIMIT_ROWS) + <int>i
            _put_text(row.name, sizeof(row.name), name)
            _put_text(row.unit, sizeof(row.unit), unit)
            row.scale, row.limit, row.use = scale, INT64_MIN, -1
        hp_store_release(&h.magic, MAGIC)
    finally:
        PyBuffer_Release(&view)


@cython.final
cdef class Board:
    """A view of the board of a run.

    Parameters
    ----------
    memory : buffer
        As :func:`format` made it.
    run, boot : int, optional
        What it must belong to.

    Raises
    ------
    SchemaError
        If it is no board, of another version, run or boot.
    """

    def __cinit__(self, memory, *, run=None, boot=None):
        cdef board_header_t *h
        cdef char *base
        PyObject_GetBuffer(memory, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self._memory = memory
        base = <char *>self._view.buf
        h = <board_header_t *>base
        if self._view.len < BOARD_FLAGS or hp_load_acquire(&h.magic) != MAGIC:
            raise SchemaError("is no board")
        if h.version != BOARD_VERSION:
            raise SchemaError(f"was made by version {h.version} of the board, "
                              f"this is {BOARD_VERSION}")
        if not 0 < h.instruments <= 65536 or h.limits > BOARD_LIMITS \
                or self._view.len < <Py_ssize_t>(rows_at(h.instruments) + h.instruments * 64):
            raise SchemaError(f"board of {h.instruments} instruments and {h.limits} limits does "
                              f"not fit {self._view.len} bytes")
        if run is not None and h.run != run:
            raise SchemaError(f"belongs to run {h.run:x}, expected {run:x}")
        if boot is not None and h.boot != boot:
            raise SchemaError(f"was made in another boot, {h.boot:x}")
        self.b.header = h
        self.b.gate = <board_gate_t *>(base + BOARD_GATE)
        self.b.limits = <board_limit_t *>(base + BOARD_LIMIT_ROWS)
        self.b.flags = <uint64_t *>(base + BOARD_FLAGS)
        self.b.rows = <board_row_t *>(base + rows_at(h.instruments))

    def __dealloc__(self):
        if self._view.buf != NULL:
            PyBuffer_Release(&self._view)

    cdef int _check(self, int64_t instrument) except -1:
        if not 0 <= instrument < <int64_t>self.b.header.instruments:
            raise IndexError(f"instrument must be below {self.b.header.instruments}, "
                             f"was {instrument}")
        return 0

    @property
    def run(self) -> int:
        return self.b.header.run

    @property
    def instruments(self) -> int:
        return self.b.header.instruments

    # ------------------------------------------------------------ reading

    @property
    def basis(self) -> int:
        """Newest order event whose fill is in the rows; read it before them."""
        return hp_load_acquire(&self.b.header.basis)

    def row(self, int64_t instrument):
        """The instrument's :class:`Row`; None when its writer was killed while writing it."""
        cdef board_row_t *row
        cdef int64_t found[7]
        cdef uint64_t seq
        cdef int i, k
        self._check(instrument)
        row = &self.b.rows[instrument]
        for i in range(SPINS + NAPS):
            seq = hp_load_acquire(&row.seq)
            if not seq & 1:
                for k in range(7):
                    found[k] = <int64_t>hp_load_relaxed(<uint64_t *>row + 1 + k)
                hp_fence_acquire()
                if hp_load_relaxed(&row.seq) == seq:
                    return Row(found[0], found[1], found[2], found[3], found[4], found[5],
                               found[6])
            wait(i)
        return None

    def rows(self) -> list:
        """:meth:`row` of every instrument."""
        return [self.row(i) for i in range(self.b.header.instruments)]

    def flags(self, int64_t instrument) -> int:
        """PAUSED and RESTRICTED, as the gate has them."""
        self._check(instrument)
        return hp_load_relaxed(&self.b.flags[instrument])

    def gate(self):
        """State of the gate by name, and each limit with its use; None until risk wrote it.

        None too when risk was killed while writing.
        """
        cdef board_gate_t found
        cdef board_gate_t *gate = self.b.gate
        cdef board_limit_t *row
        cdef uint64_t seq
        cdef int i, k, count = <int>self.b.header.limits
        cdef int64_t pairs[128]
        for i in range(SPINS + NAPS):
            seq = hp_load_acquire(&gate.seq)
            if seq == 0:
                return None
            if not seq & 1:
                for k in range(<int>(sizeof(board_gate_t) // 8)):
                    (<uint64_t *>&found)[k] = hp_load_relaxed(<uint64_t *>gate + k)
                for k in range(count):
                    pairs[2 * k] = <int64_t>hp_load_relaxed(<uint64_t *>&self.b.limits[k].limit)
                    pairs[2 * k + 1] = <int64_t>hp_load_relaxed(<uint64_t *>&self.b.limits[k].use)
                hp_fence_acquire()
                if hp_load_relaxed(&gate.seq) == seq:
                    break
            wait(i)
        else:
            return None
        state = {"ts": found.ts, "breaker": found.breaker, "cause": found.cause,
                 "losses": found.losses, "day": found.day, "day_orders": found.day_orders,
                 "day_pnl": found.day_pnl, "equity": found.equity, "peak": found.peak,
                 "drawdown": found.drawdown,
                 "latched": [i for i in range(256) if found.latched[i >> 6] >> (i & 63) & 1]}
        limits = []
        for k in range(count):
            row = &self.b.limits[k]
            limits.append(Limit(_text(row.name, sizeof(row.name)),
                                _text(row.unit, sizeof(row.unit)), row.scale,
                                pairs[2 * k], pairs[2 * k + 1]))
        return state, limits

    # ------------------------------------------------------------ writing, for tests and shells

    def put_mark(self, int64_t instrument, int64_t price, int64_t volume, int64_t ts):
        """As ``board_mark``."""
        self._check(instrument)
        board_mark(&self.b, instrument, price, volume, ts)

    def put_position(self, int64_t instrument, int64_t qty, int64_t average, int64_t realised,
                     int64_t unrealised):
        """As ``board_position``."""
        self._check(instrument)
        board_position(&self.b, instrument, qty, average, realised, unrealised)

    def put_basis(self, uint64_t event):
        """As ``board_basis``."""
        board_basis(&self.b, event)

    def put_flags(self, int64_t instrument, uint64_t flags):
        """Set PAUSED and RESTRICTED."""
        self._check(instrument)
        hp_store_relaxed(&self.b.flags[instrument], flags)

    def put_gate(self, int64_t ts, limits, *, int64_t breaker=0, int64_t cause=0,
                 int64_t losses=0, int64_t day=0, int64_t day_orders=0, int64_t day_pnl=0,
                 int64_t equity=0, int64_t peak=0, int64_t drawdown=0, latched=()):
        """Write the state of the gate, and limit and use of each limit by its number."""
        cdef board_gate_t *gate = self.b.gate
        cdef int64_t pairs[128]
        cdef uint64_t bits[4]
        cdef int k, count = len(limits)
        if count > <int>self.b.header.limits:
            raise ValueError(f"at most {self.b.header.limits} limits, were {count}")
        for k in range(count):
            pairs[2 * k], pairs[2 * k + 1] = limits[k]
        memset(bits, 0, sizeof(bits))
        for strategy in latched:
            if not 0 <= strategy < 256:
                raise ValueError(f"strategy must be below 256, was {strategy}")
            bits[<int>strategy >> 6] |= 1ULL << <uint64_t>(strategy & 63)
        board_begin(&gate.seq)
        board_word(&gate.ts, ts)
        board_word(&gate.breaker, breaker)
        board_word(&gate.cause, cause)
        board_word(&gate.losses, losses)
        board_word(&gate.day, day)
        board_word(&gate.day_orders, day_orders)
        board_word(&gate.day_pnl, day_pnl)
        board_word(&gate.equity, equity)
        board_word(&gate.peak, peak)
        board_word(&gate.drawdown, drawdown)
        for k in range(4):
            board_word(<int64_t *>&gate.latched[k], <int64_t>bits[k])
        for k in range(count):
            board_word(&self.b.limits[k].limit, pairs[2 * k])
            board_word(&self.b.limits[k].use, pairs[2 * k + 1])
        board_end(&gate.seq)
