"""The index of ``_index.h`` as an object, for tests and for whoever wants to look into it.

Hot code cimports the functions; this class checks what they take for granted.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t


cdef class Index:
    """Slots by 32-bit tag, several under one tag.

    Parameters
    ----------
    slots : int
        Entries at most.

    Raises
    ------
    MemoryError
    """

    def __cinit__(self, uint64_t slots):
        self.slots = slots
        self.entries = set()
        if hp_index_init(&self.x, slots):
            raise MemoryError(f"no memory for an index of {slots} slots")

    def __dealloc__(self):
        hp_index_free(&self.x)

    def put(self, uint32_t tag, uint32_t slot):
        """Add an entry; ValueError when it is there or the index is full."""
        if (tag, slot) in self.entries or len(self.entries) >= self.slots:
            raise ValueError(f"wanted a new entry among at most {self.slots}, "
                             f"found {(tag, slot)} with {len(self.entries)}")
        self.entries.add((tag, slot))
        hp_index_put(&self.x, tag, slot)

    def remove(self, uint32_t tag, uint32_t slot):
        """Take an entry back; KeyError when it is not there."""
        self.entries.remove((tag, slot))
        hp_index_remove(&self.x, tag, slot)

    def find(self, uint32_t tag):
        """All slots under *tag*, as a list, in no order."""
        cdef hp_entries_t e = hp_index_walk(&self.x, tag)
        cdef int64_t slot = hp_index_next(&self.x, &e, tag)
        out = []
        while slot >= 0:
            out.append(slot)
            slot = hp_index_next(&self.x, &e, tag)
        return out


def tag(uint64_t key):
    """The tag of a key."""
    return hp_index_tag(key)
