"""Duty cycles: parts joined by rings.  A stage is ``work(limit) -> done``.

It takes records from its input rings, changes its own state, puts records on its output
rings, and knows nothing of processes, sockets or files.  The same compiled stage runs
pinned in its own process, fused with others in one loop, and inline in a backtest.
Here is what all of them share; each is in a module of its own, `_stage_feed` to
`_stage_ledger`, and `_host` is the loop.

Rules every stage keeps
    R1  A record is taken only with credit on every output it may need, the store link
        included; otherwise the stage returns and the pressure moves upstream.
    R2  An order event is taken with credit on the store link alone: what a strategy may
        add then is limited to the room there is.  Hence no cycle of links can lock up.
    R3  Time enters through records (ts_recv).  The clock is read for hop stamps, and in
        risk and gateway for ages; those readings are in the stored events.
    R4  What is not stored did not happen: the store link is written before the output.
    R5  What a stage with several inputs took, in which order and when, is on its store link too
        (TURN; signal: TAKE): with that and its inputs it can be run again, byte for byte.  The
        turns of a step are stored right behind what the step stored, else when three are there,
        or when the stage has nothing to do for a while, or ends.
"""
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from ._atomic cimport hp_store_release
from ._control cimport Control, control_header_t, control_set, stage_block_t
from ._ring cimport ring_claim, ring_credit, ring_publish, ring_t
from ._schema cimport (
    HP_METRIC_EVENTS_CHECKSUM, HP_METRIC_EVENTS_STORED, HP_RECORD_TURN, HP_SEQ_BITS,
    hp_envelope_t, hp_turn_t)

cdef extern from * nogil:
    """
    #include <stdint.h>
    /* Word by word: a wide load behind narrow stores would wait for them to leave the store
     * buffer, which costs more than the whole copy. */
    static inline void hp_copy_words(uint64_t *to, const uint64_t *from, int first, int count) {
      for (int i = first; i < count; i++) {
        uint64_t v;
    #if defined(__x86_64__)
        __asm__ __volatile__("mov %1, %0" : "=r"(v) : "m"(from[i]));
    #else
        v = *(const volatile uint64_t *)&from[i];
    #endif
        to[i] = v;
      }
    }
    static inline uint64_t hp_checksum(const uint64_t *word, int count) {
      uint64_t h = UINT64_C(0x9E3779B97F4A7C15);
      for (int i = 0; i < count; i++) {
        h = (h ^ word[i]) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
      }
      return h;
    }
    static inline uint32_t hp_saturate(int64_t v) {
      return v < 0 ? 0 : v > UINT32_MAX ? UINT32_MAX : (uint32_t)v;
    }
    """
    void hp_copy_words(uint64_t *to, const uint64_t *from_, int first, int count) noexcept
    uint64_t hp_checksum(const uint64_t *word, int count) noexcept
    uint32_t hp_saturate(int64_t v) noexcept

cdef enum:
    STAGE_OUTPUTS = 4
    BATCH = 64                  # records of one stage in one pass
    STORE_ROOM = 64             # credit on the store link without which nothing is taken

cdef struct store_t:            # a stage's own store link and the stream it makes
    ring_t *ring                # NULL in a run without a store (benches): seq still counts
    stage_block_t *block
    uint64_t stream             # STREAM_* << 56
    uint64_t seq                # of the newest event
    uint64_t checksum           # sum of the bodies' checksums, modulo 2**64
    uint64_t slot_size


cdef inline uint64_t store_credit(store_t *s) noexcept nogil:
    """Room on the store link; tells risk through the control page when there is too little."""
    if s.ring == NULL:
        return 1 << 30
    cdef uint64_t room = ring_credit(s.ring, STORE_ROOM)
    cdef uint64_t full = room < STORE_ROOM
    if full != s.block.store_full:
        hp_store_release(&s.block.store_full, full)
    return 0 if full else room

cdef inline uint64_t store_next(const store_t *s) noexcept nogil:
    """Identity the next stored event will have."""
    return s.stream | (s.seq + 1)

cdef inline uint64_t store_put(store_t *s, int record, const void *body, int lines, int first,
                               uint64_t cause, int64_t ts, int64_t ts_in, uint16_t instrument,
                               uint64_t aux) noexcept nogil:
    """Record one event; the caller has credit.  *first* = 1 leaves out the ring's own word."""
    s.seq += 1
    cdef uint64_t event = s.stream | s.seq
    if s.ring == NULL:
        return event
    cdef hp_envelope_t *e = <hp_envelope_t *>ring_claim(s.ring)
    if e == NULL:               # not reached with credit; the gap it leaves stops the writer
        return event
    cdef uint64_t *words = <uint64_t *>e + 8
    cdef uint64_t sum_
    e.event, e.cause, e.ts, e.ts_in = event, cause, ts, ts_in
    e.record, e.lines, e.instrument, e.pad0, e.aux = record, lines, instrument, 0, aux
    if first:
        words[0] = 0
    hp_copy_words(words, <const uint64_t *>body, first, lines * 8)
    if s.slot_size > 64 + <uint64_t>lines * 64:
        memset(<char *>words + lines * 64, 0, s.slot_size - 64 - lines * 64)
    sum_ = hp_checksum(words, lines * 8)
    e.checksum = sum_
    s.checksum += sum_
    ring_publish(s.ring)
    control_set(s.block, HP_METRIC_EVENTS_STORED, s.seq)
    control_set(s.block, HP_METRIC_EVENTS_CHECKSUM, s.checksum)
    return event


# ---- turns (R5)

cdef enum:
    TURNS = 3                   # in one record
    TURNS_NS = 100_000_000      # that turns wait for more of them, when there is nothing to do

cdef struct turn_t:             # as they lie in hp_turn_t, from its third word on
    uint32_t after
    uint32_t many
    uint8_t took[4]
    uint8_t kind
    uint8_t flags
    uint16_t rest

cdef struct turns_t:
    hp_turn_t record
    int64_t last                # ns, when the newest one was
    int count                   # turns in it

cdef inline turn_t *turn_at(turns_t *t, int k) noexcept nogil:
    return <turn_t *>(<char *>&t.record + 16) + k

cdef inline void turns_flush(turns_t *t, store_t *s) noexcept nogil:
    """Store the turns there are; the caller has credit."""
    if t.count:
        t.count = 0
        store_put(s, HP_RECORD_TURN, &t.record, 1, 1, 0, t.last, 0, 0, 0)

cdef inline void turns_rest(turns_t *t, store_t *s, int64_t now) noexcept nogil:
    """Store turns that have waited long, if there is room."""
    if t.count and now - t.record.began > TURNS_NS and store_credit(s):
        turns_flush(t, s)

cdef inline bint turns_end(turns_t *t, store_t *s) noexcept nogil:
    """Store what turns there are; False when there is no room now."""
    if t.count and store_credit(s) == 0:
        return False
    turns_flush(t, s)
    return True

cdef inline turn_t *turn_new(turns_t *t, store_t *s, uint8_t kind, int64_t now) noexcept nogil:
    """A turn at *now*, all zero but its kind; the caller has credit."""
    cdef turn_t *turn
    if t.count == TURNS or (t.count and <uint64_t>(now - t.record.began) > UINT32_MAX):
        turns_flush(t, s)
    if t.count == 0:
        memset(&t.record, 0, sizeof(t.record))
        t.record.began = now
    turn = turn_at(t, t.count)
    turn.after, turn.kind = <uint32_t>(now - t.record.began), kind
    t.count += 1
    t.last = now
    return turn


# The C end of *ring*, which must carry *record*, or NULL for None; *keep* keeps the handle alive.
cdef ring_t *stage_end(list keep, ring, record, bint producer) except? NULL


cdef class Stage:
    cdef stage_block_t *block   # this stage's in the control page; never NULL
    cdef control_header_t *header       # NULL without a control page
    cdef object _own_block      # keeps a private block alive when there is no control page
    cdef object _keep           # rings and memory that the pointers below point into
    cdef readonly str name
    cdef readonly object error  # None, or what stopped the stage
    cdef store_t store
    cdef int failed             # set without the GIL; `error` says why
    cdef bint draining          # set by the host: take in nothing new from outside

    cdef int _setup(self, str name, Control control, int index, store, int stream,
                    record) except -1
    # Stop trading: something is not as it must be, and orders would make it worse.
    cdef void _halt(self) noexcept nogil
    # Do at most *limit* records' worth; returns how many were done (0 = idle).
    cdef uint64_t work(self, uint64_t limit) noexcept nogil
    # Called when idle for a while: warm caches, return credit.
    cdef void idle(self) noexcept nogil
    # Called when nothing comes any more: store what is still to be stored; False = not yet.
    cdef bint finish(self) noexcept nogil
    # Whether something is still on its way that a drain should wait for.
    cdef bint pending(self) noexcept nogil
    # Called with the GIL every few milliseconds of idleness: reconnect, maintain.
    cdef object maintain(self)
