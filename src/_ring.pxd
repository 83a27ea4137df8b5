"""Single-producer single-consumer ring in shared memory, sequence in slot.

Bytes of the segment (four 128-byte blocks, then the slots)::

      0  magic fingerprint slot_size capacity run boot owner_pid owner_start   once, magic last
    128  head  full  gaps                  producer's block; head: records published, relaxed
    256  credit read                       consumer's block; credit: slots given back, release;
                                           read: records taken, relaxed, for observers
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

128 bytes, not 64, because the adjacent-line prefetcher pulls pairs of lines.

The functions are inline and take a plain struct so that every module which
cimports them compiles its own copy: no call, no vtable, no GIL.
"""
from libc.stdint cimport uint64_t

from ._atomic cimport (
    hp_load_acquire, hp_prefetch_write, hp_store_relaxed, hp_store_release)

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
    uint64_t gaps               # records the producer had to give up upstream of the ring
    uint64_t _pad1[13]
    uint64_t credit
    uint64_t read
    uint64_t _pad2[14]
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
    hp_prefetch_write(ring_slot(r, r.own))
    hp_store_release(slot, r.own)
    hp_store_relaxed(&r.shared.head, r.own)

cdef inline void *ring_claim_at(ring_t *r, uint64_t i) noexcept nogil:
    """The i-th free slot from here; the caller has more than *i* credit.  Producer only."""
    return ring_slot(r, r.own + i)

cdef inline void ring_publish_many(ring_t *r, uint64_t count) noexcept nogil:
    """Hand over *count* claimed slots, oldest first.  Producer only."""
    cdef uint64_t i
    for i in range(count):
        hp_store_release(<uint64_t *>ring_slot(r, r.own + i), r.own + i + 1)
    r.own += count
    hp_store_relaxed(&r.shared.head, r.own)

cdef inline const void *ring_peek_at(ring_t *r, uint64_t i) noexcept nogil:
    """The i-th unread slot, or NULL when it is not published yet.  Consumer only."""
    cdef uint64_t *slot = <uint64_t *>ring_slot(r, r.own + i)
    cdef uint64_t seq = hp_load_acquire(slot)
    if seq == r.own + i + 1:
        return slot
    if seq > r.own + i + 1:
        r.broken = 1
    return NULL

cdef inline const void *ring_peek(ring_t *r) noexcept nogil:
    """The oldest unread slot, or NULL when empty.  Consumer only."""
    return ring_peek_at(r, 0)

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
