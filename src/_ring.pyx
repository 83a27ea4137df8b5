# cython: binding=False, always_allow_keywords=False
"""Python's handle on a shared-memory ring; the ring itself is ``_ring.pxd``.

The directives make the methods plain C method descriptors (METH_O, METH_NOARGS), which the
interpreter calls some 10 ns faster than Cython's own function objects.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE)
from libc.string cimport memcpy, memset

from ._atomic cimport hp_compare_swap, hp_load_relaxed

import mmap
import os

from hftpipe import schema
from hftpipe.errors import BusyError, SchemaError

cdef extern from *:
    """
    #include <pthread.h>
    /* Counts forks: an end of a ring taken before a fork is the parent's, not the child's. */
    static unsigned int hp_generation = 1;
    static void hp_forked(void) { hp_generation++; }
    static int hp_watch_forks(void) { return pthread_atfork(0, 0, hp_forked); }
    """
    unsigned int hp_generation
    int hp_watch_forks() noexcept

cdef uint64_t MAGIC = 0x33676e6972706668ULL     # b"hfpring3"
cdef enum:
    PID_BITS = 22                               # Linux: pid_max is at most 2**22

if sizeof(ring_shared_t) != RING_HEADER_SIZE:
    raise ImportError(f"ring header is {sizeof(ring_shared_t)} bytes, expected {RING_HEADER_SIZE}")
if hp_watch_forks() != 0:
    raise ImportError("pthread_atfork failed: out of memory")

HEADER_SIZE = RING_HEADER_SIZE


def footprint(record, uint64_t capacity) -> int:
    """Bytes of memory a ring of *capacity* records needs."""
    return RING_HEADER_SIZE + capacity * <uint64_t>record.size


def holder(pid: int, start: int) -> int:
    """The word that names a process: *pid*, and its *start* in clock ticks after boot."""
    return start << PID_BITS | pid


def format(memory, record, *, uint64_t run=0, uint64_t boot=0, uint64_t owner=0):
    """Make *memory* an empty ring of *record*.

    Parameters
    ----------
    memory : buffer
        Writable, aligned to 64 bytes, :func:`footprint` bytes; nobody else uses it yet.
    record : schema.Record
        What one slot holds; its first field is ``link_seq``.
    run, boot : int
        The run it belongs to and the boot it lives in; 0 for memory of one process.
    owner : int
        :func:`holder` of the process that makes it.

    Raises
    ------
    ValueError
        If the capacity that fits is not a power of two, the memory is not aligned, or
        the record can not travel on a ring.
    """
    cdef Py_buffer view
    cdef ring_shared_t *shared
    cdef uint64_t size = record.size, capacity
    if not record.linked:
        raise ValueError(f"{record.name} does not begin with link_seq: it can not be on a ring")
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if <size_t>view.buf % 64:
            raise ValueError("memory must be aligned to 64 bytes: take mmap, or _ring.pair()")
        capacity = (<uint64_t>view.len - RING_HEADER_SIZE) // size
        if view.len <= RING_HEADER_SIZE or capacity == 0 or capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two, was {capacity}")
        if RING_HEADER_SIZE + capacity * size != <uint64_t>view.len:
            raise ValueError(f"memory must be {RING_HEADER_SIZE + capacity * size} bytes "
                             f"for {capacity} slots, was {view.len}")
        shared = <ring_shared_t *>view.buf
        hp_store_release(&shared.magic, 0)      # nobody attaches while we write
        memset(<char *>view.buf + 8, 0, view.len - 8)
        shared.fingerprint = record.fingerprint
        shared.slot_size = size
        shared.capacity = capacity
        shared.run, shared.boot = run, boot
        shared.owner_pid = owner & ((1 << PID_BITS) - 1)
        shared.owner_start = owner >> PID_BITS
        hp_store_release(&shared.magic, MAGIC)
    finally:
        PyBuffer_Release(&view)


def pair(record, uint64_t capacity) -> tuple:
    """Both ends, producer first, of a new ring in memory of this process alone."""
    memory = mmap.mmap(-1, footprint(record, capacity))
    format(memory, record)
    return Ring(memory, record, True), Ring(memory, record, False)


cdef inline void put(char *slot, const char *data, uint64_t size) noexcept nogil:
    """Copy a record but for its first word; constant sizes so that it becomes vector moves."""
    if size == 64:
        memcpy(slot + 8, data + 8, 56)
    elif size == 128:
        memcpy(slot + 8, data + 8, 120)
    else:
        memcpy(slot + 8, data + 8, size - 8)


cdef inline void take(char *target, const char *slot, uint64_t size) noexcept nogil:
    """Copy a record with its first word."""
    if size == 64:
        memcpy(target, slot, 64)
    elif size == 128:
        memcpy(target, slot, 128)
    else:
        memcpy(target, slot, size)


@cython.final
cdef class Ring:
    """One end of a ring of fixed-size records.

    Parameters
    ----------
    memory : buffer
        Writable, aligned to 64 bytes, shared by both ends; :func:`format` has been there.
    record : schema.Record
        What one slot holds; its first field is ``link_seq``.
    producer : bool
        Which end this is.
    create : bool, default False
        Format *memory* first.  Exactly one process does this.
    run, boot : int, optional
        What the header must say; None accepts any.
    holder : int, default 0
        :func:`holder` of this process; 0 takes the end without a name and without asking.
    alive : callable, optional
        ``alive(pid, start) -> bool``, asked about another process that holds this end.

    Raises
    ------
    ValueError
        If the memory is not aligned; with *create* if its size does not fit.
    SchemaError
        If the memory is no ring, one of another run, boot, record, schema or size, or its
        cursors contradict one another.
    BusyError
        If a living process holds this end.

    Notes
    -----
    An end belongs to the process that made it: after a fork the child gets RuntimeError.
    One thread at a time may use it.
    """

    def __cinit__(self):
        self._generation = 0

    def __init__(self, memory, record, bint producer, bint create=False, *,
                 run=None, boot=None, uint64_t holder=0, alive=None):
        cdef ring_shared_t *shared
        cdef uint64_t size = record.size, capacity, head, read, credit
        if self.c.shared != NULL:
            raise RuntimeError("a ring handle is made once")
        if create:
            format(memory, record, run=run or 0, boot=boot or 0, owner=holder)
        PyObject_GetBuffer(memory, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if <size_t>self._view.buf % 64:
            raise ValueError("memory must be aligned to 64 bytes: take mmap, or _ring.pair()")
        shared = <ring_shared_t *>self._view.buf
        if self._view.len <= RING_HEADER_SIZE or hp_load_acquire(&shared.magic) != MAGIC:
            raise SchemaError("not a ring, or not formatted yet")
        if boot is not None and shared.boot != boot:
            raise SchemaError(f"ring is stale: it was made in boot {shared.boot:#x}, "
                              f"this is boot {<uint64_t>boot:#x}")
        if run is not None and shared.run != run:
            raise SchemaError(f"ring is stale: it belongs to run {shared.run:x}, "
                              f"wanted run {<uint64_t>run:x}")
        capacity = shared.capacity
        if (shared.fingerprint != <uint64_t>record.fingerprint or shared.slot_size != size
                or size % 64 or capacity == 0 or capacity & (capacity - 1)
                or capacity > (<uint64_t>self._view.len - RING_HEADER_SIZE) // size):
            raise SchemaError(
                f"ring was made by schema {shared.fingerprint:#018x} for {capacity} slots of "
                f"{shared.slot_size} B; this build's {record.name} is "
                f"{<uint64_t>record.fingerprint:#018x} of {size} B and the memory has "
                f"{self._view.len} B")
        self.c.shared = shared
        self.c.slots = <char *>shared + RING_HEADER_SIZE
        self.c.mask = capacity - 1
        self.c.slot_size = size
        self.c.lazy = max(capacity // 4, <uint64_t>1)
        self._memory, self._record, self._producer = memory, record, producer
        self._generation = hp_generation
        self._hold(&shared.producer if producer else &shared.consumer, holder, alive)
        # The order matters when the other side is alive: each word is at most the next (I2).
        credit = hp_load_acquire(&shared.credit)
        read = hp_load_acquire(&shared.read)
        head = self._published()
        if not (credit <= read <= head <= credit + capacity):
            raise SchemaError(f"ring's cursors contradict one another: credit {credit}, "
                              f"read {read}, head {head}, capacity {capacity}")
        if producer:                            # what a killed one published and did not count
            hp_store_release(&shared.head, head)
        self.c.own = head if producer else read
        self.c.other = credit

    def __dealloc__(self):
        PyBuffer_Release(&self._view)           # no-op if __init__ never got it

    cdef uint64_t _published(self) noexcept:
        """Records published: head, and whole slots beyond it (I5)."""
        cdef uint64_t head = hp_load_acquire(&self.c.shared.head), limit = head + self.c.mask + 1
        while head != limit and hp_load_acquire(<uint64_t *>ring_slot(&self.c, head)) == head + 1:
            head += 1
        return head

    cdef int _hold(self, uint64_t *word, uint64_t own, alive) except -1:
        cdef uint64_t other
        while own:
            other = hp_load_acquire(word)
            pid, start = other & ((1 << PID_BITS) - 1), other >> PID_BITS
            if other and other != own and (alive is None or alive(pid, start)):
                side = "producer" if self._producer else "consumer"
                raise BusyError(f"process {pid} is this ring's {side}; there can be only one")
            if hp_compare_swap(word, other, own):
                break
        return 0

    cdef int _guard(self, bint producer) except -1:
        """Explain why this call is refused."""
        if self.c.shared == NULL:
            raise RuntimeError("ring handle was never initialised")
        if self._generation != hp_generation:
            raise RuntimeError(f"this end of the ring belongs to the parent of process "
                               f"{os.getpid()}: attach after the fork")
        raise TypeError("this is the consumer's end: it can not publish" if producer else
                        "this is the producer's end: it can not take")

    cdef int _check(self) except -1:
        """Raise if the ring is broken."""
        if self.c.broken:
            raise SchemaError(
                f"ring of {self._record.name} is corrupt: slot {self.c.own & self.c.mask} holds "
                f"link_seq {(<uint64_t *>ring_slot(&self.c, self.c.own))[0]}, "
                f"expected {self.c.own + 1} (head {self.c.shared.head}) or an older one")
        return 0

    # ------------------------------------------------------------ records as bytes

    def push(self, data) -> bool:
        """Publish one record; ``False`` when the ring is full.

        *data* has exactly the bytes of one record; its first word is ignored.
        """
        cdef Py_buffer view
        cdef char *slot
        if not self._producer or self._generation != hp_generation:
            self._guard(True)
        if PyBytes_CheckExact(data):
            if <uint64_t>PyBytes_GET_SIZE(data) != self.c.slot_size:
                raise ValueError(f"record is {self.c.slot_size} bytes, was {len(data)}")
            slot = <char *>ring_claim(&self.c)
            if slot == NULL:
                return False
            put(slot, PyBytes_AS_STRING(data), self.c.slot_size)
            ring_publish(&self.c)
            return True
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if <uint64_t>view.len != self.c.slot_size:
            PyBuffer_Release(&view)
            raise ValueError(f"record is {self.c.slot_size} bytes, was {view.len}")
        slot = <char *>ring_claim(&self.c)
        if slot != NULL:
            put(slot, <char *>view.buf, self.c.slot_size)
            ring_publish(&self.c)
        PyBuffer_Release(&view)
        return slot != NULL

    def pop(self) -> bytes | None:
        """Take one record as bytes, its ``link_seq`` first; ``None`` when the ring is empty.

        Raises SchemaError when the memory is corrupt.
        """
        cdef const char *slot
        if self._producer or self._generation != hp_generation:
            self._guard(False)
        slot = <const char *>ring_peek(&self.c)
        if slot == NULL:
            if self.c.broken:
                self._check()
            return None
        data = PyBytes_FromStringAndSize(NULL, self.c.slot_size)
        take(PyBytes_AS_STRING(data), slot, self.c.slot_size)
        ring_release(&self.c)
        self._room = 0
        return data

    # ------------------------------------------------------------ records in bulk

    def push_many(self, data) -> int:
        """Publish records from a C-contiguous buffer; how many found room, oldest first.

        Parameters
        ----------
        data : (n,) structured array of ``schema.dtype(record)``, or bytes of n records
            The first word of each is ignored.

        Raises
        ------
        ValueError
            If the items have another size than the record.
        """
        cdef Py_buffer view
        cdef uint64_t count, i, size = self.c.slot_size
        cdef char *source
        if not self._producer or self._generation != hp_generation:
            self._guard(True)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        if <uint64_t>view.len % size or view.itemsize != 1 and <uint64_t>view.itemsize != size:
            PyBuffer_Release(&view)
            raise ValueError(f"items must be records of {size} bytes, "
                             f"were {view.len} bytes in items of {view.itemsize}")
        count = <uint64_t>view.len // size
        i = ring_credit(&self.c, count)
        if i < count:
            hp_store_relaxed(&self.c.shared.full, self.c.shared.full + 1)
            count = i
        source = <char *>view.buf
        for i in range(count):
            put(<char *>ring_claim_at(&self.c, i), source + i * size, size)
        ring_publish_many(&self.c, count)
        PyBuffer_Release(&view)
        return count

    def pop_many(self, out) -> int:
        """Take records into the beginning of a writable C-contiguous buffer; how many.

        Parameters
        ----------
        out : (n,) structured array of ``schema.dtype(record)``, or a bytearray of n records
            Items beyond the returned count are left as they were.

        Raises
        ------
        ValueError
            If the items have another size than the record.
        SchemaError
            If the memory is corrupt; records before the bad slot have been taken.
        """
        cdef Py_buffer view
        cdef uint64_t count, i = 0, size = self.c.slot_size
        cdef char *target
        cdef const void *slot
        if self._producer or self._generation != hp_generation:
            self._guard(False)
        PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if <uint64_t>view.len % size or view.itemsize != 1 and <uint64_t>view.itemsize != size:
            PyBuffer_Release(&view)
            raise ValueError(f"items must be records of {size} bytes, "
                             f"were {view.len} bytes in items of {view.itemsize}")
        target, count = <char *>view.buf, <uint64_t>view.len // size
        if count > self.c.mask + 1:
            count = self.c.mask + 1
        while i < count:
            slot = ring_peek_at(&self.c, i)
            if slot == NULL:
                break
            take(target + i * size, <const char *>slot, size)
            i += 1
        ring_release_many(&self.c, i)
        self._room = 0
        PyBuffer_Release(&view)
        if self.c.broken:
            self._check()
        return i

    # ------------------------------------------------------------ in place

    cdef object _slots(self, uint64_t count):
        """The next *count* slots as a view that can not reach their first words."""
        cdef uint64_t at = self.c.own & self.c.mask
        if self._array is None:
            import numpy
            whole = schema.dtype(self._record)
            names = [n for n in whole.names if n != "link_seq"]
            payload = numpy.dtype({
                "names": names, "formats": [whole.fields[n][0] for n in names],
                "offsets": [whole.fields[n][1] - 8 for n in names],
                "itemsize": self.c.slot_size - 8})
            self._array = numpy.ndarray(
                (self.c.mask + 1,), payload, self._memory, RING_HEADER_SIZE + 8,
                (self.c.slot_size,))
            self._array.flags.writeable = self._producer
        self._room = count
        return self._array[at:at + count]

    def claim(self, uint64_t count=1):
        """Free slots to write in place, as a structured array without ``link_seq``.

        Returns
        -------
        (n,) structured array
            n is at most *count*, the credit, and what is left to the end of the ring's
            memory; the slots keep what an older record left there.  Valid until
            :meth:`publish` hands them over.
        """
        cdef uint64_t room
        if not self._producer or self._generation != hp_generation:
            self._guard(True)
        room = ring_credit(&self.c, count)
        if room == 0 and count:
            hp_store_relaxed(&self.c.shared.full, self.c.shared.full + 1)
        room = min(room, count, self.c.mask + 1 - (self.c.own & self.c.mask))
        return self._slots(room)

    def publish(self, uint64_t count=1):
        """Hand over the first *count* claimed slots; the rest must be claimed again."""
        if not self._producer or self._generation != hp_generation:
            self._guard(True)
        if count > self._room:
            raise ValueError(f"{self._room} slots are claimed, can not publish {count}")
        self._room = 0
        ring_publish_many(&self.c, count)

    def peek(self, uint64_t count=1):
        """Unread records in place, as a read-only structured array without ``link_seq``.

        Returns
        -------
        (n,) structured array
            n is at most *count*, what is published, and what is left to the end of the
            ring's memory.  Valid until :meth:`release` gives the slots back.

        Raises
        ------
        SchemaError
            If the memory is corrupt.
        """
        cdef uint64_t ready = 0
        if self._producer or self._generation != hp_generation:
            self._guard(False)
        count = min(count, self.c.mask + 1 - (self.c.own & self.c.mask))
        while ready < count and ring_peek_at(&self.c, ready) != NULL:
            ready += 1
        if self.c.broken:
            self._check()
        return self._slots(ready)

    def release(self, uint64_t count=1):
        """Give the first *count* peeked slots back to the producer."""
        if self._producer or self._generation != hp_generation:
            self._guard(False)
        if count > self._room:
            raise ValueError(f"{self._room} slots are peeked, can not release {count}")
        self._room = 0
        ring_release_many(&self.c, count)

    def flush(self):
        """Return all credit to the producer: on going idle.  Consumer only.

        Raises SchemaError when the next slot is not what the cursors say it is.
        """
        if self._producer or self._generation != hp_generation:
            self._guard(False)
        ring_flush(&self.c)
        if not ring_check(&self.c):
            self._check()

    # ------------------------------------------------------------ what an observer may ask

    def count_gap(self, uint64_t count=1):
        """Count records that never reached this producer."""
        if not self._producer or self._generation != hp_generation:
            self._guard(True)
        ring_gap(&self.c, count)

    def count_drop(self, uint64_t count=1):
        """Count records that this producer gave up instead of publishing."""
        if not self._producer or self._generation != hp_generation:
            self._guard(True)
        ring_drop(&self.c, count)

    def __len__(self):
        cdef uint64_t read = hp_load_acquire(&self.c.shared.read)
        cdef uint64_t head = hp_load_acquire(&self.c.shared.head)
        # head may lag (I5) and may have gone on since `read`: bounded, not exact.
        return 0 if head < read else min(head - read, self.c.mask + 1)

    def __bool__(self):
        return True             # a handle; `len(ring)` asks for its records

    @property
    def capacity(self) -> int:
        """Slots."""
        return self.c.mask + 1

    @property
    def occupancy(self) -> float:
        """Unread records as a share of the capacity."""
        return len(self) / <double>(self.c.mask + 1)

    @property
    def room(self) -> int:
        """Slots free for writing as the producer would see it now."""
        cdef uint64_t head = hp_load_acquire(&self.c.shared.head)
        cdef uint64_t used = head - hp_load_acquire(&self.c.shared.credit)
        return 0 if used > self.c.mask + 1 else self.c.mask + 1 - used

    @property
    def published(self) -> int:
        """Records ever published."""
        return hp_load_acquire(&self.c.shared.head)

    @property
    def taken(self) -> int:
        """Records ever taken."""
        return hp_load_acquire(&self.c.shared.read)

    @property
    def full(self) -> int:
        """Claims refused because the ring was full."""
        return hp_load_relaxed(&self.c.shared.full)

    @property
    def gaps(self) -> int:
        """Records missing upstream, as the producer saw it."""
        return hp_load_relaxed(&self.c.shared.gaps)

    @property
    def drops(self) -> int:
        """Records the producer gave up instead of publishing."""
        return hp_load_relaxed(&self.c.shared.drops)

    @property
    def broken(self) -> bool:
        """Whether this end met memory that can not be."""
        return self.c.broken != 0

    @property
    def producer(self) -> bool:
        """Whether this is the producer's end."""
        return self._producer

    @property
    def record(self):
        """What one slot holds."""
        return self._record

    @property
    def run(self) -> int:
        """Run it belongs to."""
        return self.c.shared.run

    @property
    def boot(self) -> int:
        """Boot it was made in."""
        return self.c.shared.boot

    @property
    def owner(self) -> tuple:
        """``(pid, start)`` of the process that made it."""
        return self.c.shared.owner_pid, self.c.shared.owner_start

    @property
    def holders(self) -> tuple:
        """``(pid, start)`` of the producer and of the consumer; pid 0 = nobody yet."""
        cdef uint64_t p = hp_load_acquire(&self.c.shared.producer)
        cdef uint64_t c = hp_load_acquire(&self.c.shared.consumer)
        cdef uint64_t mask = (1 << PID_BITS) - 1
        return (p & mask, p >> PID_BITS), (c & mask, c >> PID_BITS)
