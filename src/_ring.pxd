"""Single-producer single-consumer ring in shared memory, sequence in slot.

Bytes of the segment (four 128-byte blocks, then the slots)::

      0  magic fingerprint slot_size capacity run boot owner_pid owner_start   once, magic last
    128  head  full gaps drops producer    producer's block; head: records published, release
    256  credit  read  consumer            consumer's block; credit: slots given back, release;
                                           read: records taken, relaxed
    384  reserved
    512  slot[0] .. slot[capacity - 1]     slot_size bytes, a multiple of 64; word 0 is link_seq

Invariants
    I1  The record with sequence n (from 1) lies in slot (n - 1) mod capacity, and is
        whole once its link_seq reads n: the producer stores link_seq last, with release.
    I2  credit <= read <= head <= credit + capacity: the producer never writes a slot that
        was not given back, so a consumer finds n (ready) or an older number (empty) in the
        slot it waits for.  Anything beyond n is corruption: `broken` is set, nothing is read.
    I3  One process writes the producer's block and the slots, one the consumer's block.
    I4  Credit is returned every capacity / 4 records and on ring_flush(): the two sides
        share one line per message and nothing else.
    I5  head follows the link_seq it counts, so a producer killed between the two stores
        leaves head short by the records of one publish.  Whoever attaches walks on from
        head over slots that are whole (I1): nothing published is written twice or lost.
        The next producer also mends head, so that `published` is where it goes on.
    I6  `producer` and `consumer` name the process that holds an end (start << 22 | pid);
        a second living process is refused at attach.

128 bytes, not 64, because the adjacent-line prefetcher pulls pairs of lines.

The functions are inline and take a plain struct so that every module which
cimports them compiles its own copy: no call, no vtable, no GIL.
"""
from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint64_t

from ._atomic cimport (
    hp_load_acquire, hp_pause, hp_prefetch_write, hp_store_relaxed, hp_store_release)

cdef extern from *:
    """
    /* The sequence number a slot must show, in a form the compiler knows nothing about.
     *
     * After `if (seq == own + 1)` gcc keeps the loaded seq where the next cursor is wanted: the
     * two are equal.  But then the address of the next slot depends on a load from a line that
     * is still on its way from the other core, and the reader takes one miss after another
     * instead of several at once: 43 ns per record instead of 12. */
    static inline uint64_t hp_expected(uint64_t seq) { __asm__("" : "+r"(seq)); return seq; }
    """
    uint64_t hp_expected(uint64_t seq) noexcept nogil

cdef enum:
    RING_HEADER_SIZE = 512

cdef struct ring_shared_t:
    uint64_t magic
    uint64_t fingerprint        # of the record in the slots
    uint64_t slot_size          # bytes
    uint64_t capacity           # slots, a power of two
    uint64_t run                # id of the run that made it
    uint64_t boot               # first 8 bytes of the kernel's boot id
    uint64_t owner_pid          # who made it
    uint64_t owner_start        # and when that process started, clock ticks after boot
    uint64_t _pad0[8]
    uint64_t head
    uint64_t full               # claims refused
    uint64_t gaps               # records missing upstream of the ring, as the producer saw
    uint64_t drops              # records the producer gave up instead of publishing
    uint64_t producer           # who holds this end, 0 = nobody yet
    uint64_t _pad1[11]
    uint64_t credit
    uint64_t read
    uint64_t consumer           # who holds this end, 0 = nobody yet
    uint64_t _pad2[13]
    uint64_t _pad3[16]

cdef struct ring_t:             # one process's end of a ring; never shared
    ring_shared_t *shared
    char *slots
    uint64_t mask               # capacity - 1
    uint64_t slot_size          # bytes
    uint64_t own                # my cursor: records published, or records taken
    uint64_t other              # producer: last credit read; consumer: last credit returned
    uint64_t lazy               # capacity / 4, at least 1
    uint64_t broken             # consumer: a link_seq that can not be was seen


cdef inline void *ring_slot(ring_t *r, uint64_t index) noexcept nogil:
    return r.slots + (index & r.mask) * r.slot_size

cdef inline uint64_t ring_credit(ring_t *r, uint64_t want) noexcept nogil:
    """Slots free for writing; looks at the consumer only when fewer than *want*."""
    cdef uint64_t free = r.mask + 1 - (r.own - r.other)
    if free < want:
        r.other = hp_load_acquire(&r.shared.credit)
        free = r.mask + 1 - (r.own - r.other)
    return free

cdef inline void *ring_claim(ring_t *r) noexcept nogil:
    """The next free slot, or NULL when full.  Write all but its first word.  Producer only."""
    if r.own - r.other > r.mask:
        r.other = hp_load_acquire(&r.shared.credit)
        if r.own - r.other > r.mask:
            hp_store_relaxed(&r.shared.full, r.shared.full + 1)
            return NULL
    return ring_slot(r, r.own)

cdef inline void ring_publish(ring_t *r) noexcept nogil:
    """Hand the claimed slot to the consumer.  Producer only."""
    cdef uint64_t *slot = <uint64_t *>ring_slot(r, r.own)
    r.own += 1
    # Two ahead: the slot right after this one is the one the consumer polls already.
    hp_prefetch_write(ring_slot(r, r.own + 1))
    hp_store_release(slot, r.own)
    hp_store_release(&r.shared.head, r.own)         # after its link_seq: I5, ring_check()

cdef inline void *ring_claim_at(ring_t *r, uint64_t i) noexcept nogil:
    """The i-th free slot from here; the caller has more than *i* credit.  Producer only."""
    return ring_slot(r, r.own + i)

cdef inline void ring_publish_many(ring_t *r, uint64_t count) noexcept nogil:
    """Hand over *count* claimed slots, oldest first.  Producer only."""
    cdef uint64_t i
    for i in range(count):
        hp_store_release(<uint64_t *>ring_slot(r, r.own + i), r.own + i + 1)
    r.own += count
    hp_store_release(&r.shared.head, r.own)

cdef inline void ring_gap(ring_t *r, uint64_t count) noexcept nogil:
    """Count records that never reached this stage.  Producer only."""
    hp_store_relaxed(&r.shared.gaps, r.shared.gaps + count)

cdef inline void ring_drop(ring_t *r, uint64_t count) noexcept nogil:
    """Count records given up instead of published.  Producer only."""
    hp_store_relaxed(&r.shared.drops, r.shared.drops + count)

cdef inline const void *ring_peek_at(ring_t *r, uint64_t i) noexcept nogil:
    """The i-th unread slot, or NULL when it is not published yet.  Consumer only."""
    cdef uint64_t *slot = <uint64_t *>ring_slot(r, r.own + i)
    cdef uint64_t seq = hp_load_acquire(slot), expected = hp_expected(r.own + i + 1)
    if seq == expected:
        return slot
    if seq > expected:
        r.broken = 1
    return NULL

cdef inline const void *ring_peek(ring_t *r) noexcept nogil:
    """The oldest unread slot, or NULL when empty.  Consumer only."""
    return ring_peek_at(r, 0)

cdef inline const void *ring_wait(ring_t *r, uint64_t polls, int pauses) noexcept nogil:
    """Poll for the oldest unread slot up to *polls* times, *pauses* PAUSE apart; NULL: none.

    Two to four PAUSE is best between two cores: each poll that misses pulls the line out of
    the producer's hands while it is writing.
    """
    cdef uint64_t *slot = <uint64_t *>ring_slot(r, r.own)
    cdef uint64_t seq, expected = hp_expected(r.own + 1)
    cdef int _k
    for _ in range(polls):
        seq = hp_load_acquire(slot)
        if seq == expected:
            return slot
        if seq > expected:
            r.broken = 1
            return NULL
        for _k in range(pauses):
            hp_pause()
    return NULL

cdef inline bint ring_check(ring_t *r) noexcept nogil:
    """Whether the next slot is what the cursors say it is; sets `broken`.  Consumer only.

    Finds what a waiting reader can not see: a link_seq that was wiped out.  Reads the
    producer's line, so call it when idle, not per record.
    """
    cdef uint64_t head = hp_load_acquire(&r.shared.head)
    cdef uint64_t ahead = head - r.own, behind = r.own - head
    if 0 < ahead <= r.mask + 1:
        if ring_peek(r) == NULL:
            r.broken = 1
    elif behind > r.mask + 1:                   # a head somewhat short is I5
        r.broken = 1
    return not r.broken

cdef inline void ring_flush(ring_t *r) noexcept nogil:
    """Return all credit now: on going idle, and before anybody trusts `credit`.  Consumer only."""
    r.other = r.own
    hp_store_release(&r.shared.credit, r.own)

cdef inline void ring_release_many(ring_t *r, uint64_t count) noexcept nogil:
    """Give *count* peeked slots back to the producer.  Consumer only."""
    r.own += count
    hp_store_relaxed(&r.shared.read, r.own)
    if r.own - r.other >= r.lazy:
        ring_flush(r)

cdef inline void ring_release(ring_t *r) noexcept nogil:
    """Give the peeked slot back to the producer.  Consumer only."""
    ring_release_many(r, 1)


cdef class Ring:
    cdef ring_t c
    cdef object _memory         # keeps the mapping alive
    cdef object _record
    cdef bint _producer
    cdef Py_buffer _view        # held until dealloc: an exported mapping can not be closed
    cdef unsigned int _generation       # of the process it was made in; changes in a fork
    cdef uint64_t _room         # slots claimed, or peeked, through a view
    cdef object _array          # all slots but their first words, writable or not by end

    cdef int _guard(self, bint producer) except -1
    cdef int _check(self) except -1
    cdef int _hold(self, uint64_t *word, uint64_t own, alive) except -1
    cdef uint64_t _published(self) noexcept
    cdef object _slots(self, uint64_t count)
