"""Python's handle on a shared-memory ring; the ring itself is ``_ring.pxd``."""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy

from hftpipe.errors import SchemaError

cdef uint64_t MAGIC = 0x32676e6972706668        # b"hfpring2"

if sizeof(ring_shared_t) != RING_HEADER_SIZE:
    raise ImportError(f"ring header is {sizeof(ring_shared_t)} bytes, expected {RING_HEADER_SIZE}")


def footprint(record, capacity: int) -> int:
    """Bytes of memory a ring of *capacity* records needs."""
    return RING_HEADER_SIZE + capacity * record.size


@cython.final
cdef class Ring:
    """One end of a ring of fixed-size records.

    Parameters
    ----------
    memory : buffer
        Writable, at least :func:`footprint` bytes, shared by both ends.
    record : schema.Record
        What one slot holds; its first field is ``link_seq``.
    producer : bool
        Which end this is.
    create : bool, default False
        Format *memory* first.  Exactly one process does this.

    Raises
    ------
    ValueError
        If the capacity that fits is not a power of two.
    SchemaError
        If the memory is no ring, or one of another record, schema or size.
    """

    def __init__(self, memory, record, bint producer, bint create=False):
        cdef Py_buffer view
        PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        cdef ring_shared_t *shared = <ring_shared_t *>view.buf
        cdef uint64_t size = record.size
        cdef uint64_t capacity = (<uint64_t>view.len - RING_HEADER_SIZE) // size
        PyBuffer_Release(&view)         # self._memory keeps it mapped
        if capacity == 0 or capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two, was {capacity}")
        if create:
            shared.fingerprint = record.fingerprint
            shared.slot_size = size
            shared.capacity = capacity
            hp_store_release(&shared.magic, MAGIC)
        elif hp_load_acquire(&shared.magic) != MAGIC:
            raise SchemaError("not a ring, or not formatted yet")
        found = (shared.fingerprint, shared.slot_size, shared.capacity)
        if found != (record.fingerprint, size, capacity):
            raise SchemaError(
                f"ring was made by schema {found[0]:#018x} for {found[2]} slots of {found[1]} B; "
                f"this build's {record.name} is {record.fingerprint:#018x}, {capacity} of {size}")
        self._memory, self._record, self._producer = memory, record, producer
        self.c.shared = shared
        self.c.slots = <char *>shared + RING_HEADER_SIZE
        self.c.mask = capacity - 1
        self.c.slot_size = size
        self.c.lazy = max(capacity // 4, 1)
        self.c.own = shared.head if producer else shared.read
        self.c.other = shared.credit

    def push(self, const unsigned char[::1] data not None) -> bool:
        """Publish one record (its first word is ignored); ``False`` when the ring is full."""
        if <uint64_t>data.shape[0] != self.c.slot_size:
            raise ValueError(f"record is {self.c.slot_size} bytes, was {data.shape[0]}")
        cdef char *slot = <char *>ring_claim(&self.c)
        if slot == NULL:
            return False
        memcpy(slot + 8, &data[8], self.c.slot_size - 8)
        ring_publish(&self.c)
        return True

    def pop(self) -> bytes | None:
        """Take one record as bytes, link_seq included; ``None`` when the ring is empty."""
        cdef const char *slot = <const char *>ring_peek(&self.c)
        if slot == NULL:
            return None
        data = slot[:self.c.slot_size]
        ring_release(&self.c)
        return data

    def flush(self) -> None:
        """Return all credit to the producer.  Consumer only."""
        ring_flush(&self.c)

    def __len__(self):
        return hp_load_acquire(&self.c.shared.head) - hp_load_acquire(&self.c.shared.read)
