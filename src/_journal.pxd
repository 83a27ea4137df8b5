"""Records of the journal: how they lie in a segment, and what damage of one means.

Bytes of a segment::

      0  header: src/journal/segment.py                                               once
   4096  record, record, ... , zeros to the end

    record   crc u32, size u16, pad u16, number u64, group u64, then slot[8:size]
             size is that of the store link's slot, whose first word is the ring's and stays
             out: 16 bytes more than the slot, so every record lies on a multiple of 16

Invariants
    J1  number counts all records of a run from 1 without a hole, over all its segments.
    J2  Records of one write have one group, the number of its first.  The next write begins
        after the one before is on disk.
    J3  crc is CRC32C of all that follows it, begun with a value made of the run: bytes of
        another run that a reused block still holds are no records.
    J4  So, where record n is not whole and not all after it is zero: a whole record of a group
        above n proves that n was on disk, and n is *corrupt*.  Otherwise nothing but the last
        write is damaged, which nobody was told is on disk, and it is *torn*.  Who knows how far
        the disk had it (durable_seq) says so, and anything up to there is corrupt.
    J5  A torn tail is overwritten with zeros, on disk, before anything is written after it:
        else its whole records could follow on a shorter write of the same group.
"""
from libc.stddef cimport size_t
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "_journal.h" nogil:
    void hp_crc_prepare() noexcept
    uint32_t hp_crc_soft(uint32_t crc, const unsigned char *p, size_t n) noexcept
    uint32_t hp_crc_hard(uint32_t crc, const unsigned char *p, size_t n) noexcept
    int hp_crc_has_hard() noexcept

cdef enum:
    JOURNAL_HEAD = 24           # bytes of a record before its body
    JOURNAL_EXTRA = 16          # bytes of a record beyond its slot's size
    JOURNAL_GRAIN = 16          # every record begins on a multiple of it

cdef struct journal_head_t:
    uint32_t crc
    uint16_t size               # of the slot: 128, 192 or 320
    uint16_t pad
    uint64_t number
    uint64_t group

cdef extern from *:
    """
    #if defined(__x86_64__)
    #define HP_CRC(hard, c, p, n) ((hard) ? hp_crc_hard(c, p, n) : hp_crc_soft(c, p, n))
    #else
    #define HP_CRC(hard, c, p, n) hp_crc_soft(c, p, n)
    #endif
    """
    uint32_t HP_CRC(int hard, uint32_t c, const unsigned char *p, size_t n) noexcept nogil


cdef inline bint journal_size(uint64_t size) noexcept nogil:
    """Whether a slot may have this size; src/schema.py SLOTS, checked at import."""
    return size == 128 or size == 192 or size == 320

cdef inline uint32_t journal_seed(uint64_t run) noexcept nogil:
    return <uint32_t>(run ^ (run >> 32))

cdef inline uint32_t journal_crc(int hard, uint64_t run, const unsigned char *record,
                                 uint64_t size) noexcept nogil:
    """Checksum of the record at *record*, whose slot has *size* bytes."""
    return HP_CRC(hard, journal_seed(run), record + 4, size + JOURNAL_EXTRA - 4)

cdef inline uint64_t journal_whole(int hard, uint64_t run, const unsigned char *record,
                                   uint64_t room) noexcept nogil:
    """Bytes of the whole record at *record*, of which *room* bytes are ours; 0 = there is none."""
    cdef const journal_head_t *h = <const journal_head_t *>record
    if room < JOURNAL_HEAD or not journal_size(h.size) or room < h.size + <uint64_t>JOURNAL_EXTRA:
        return 0
    if h.crc != journal_crc(hard, run, record, h.size):
        return 0
    return h.size + <uint64_t>JOURNAL_EXTRA
