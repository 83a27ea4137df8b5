"""What all stages share; rules R1 to R4 are in ``_stage.pxd``."""
from libc.stdint cimport uint64_t

from ._atomic cimport hp_fetch_add
from ._control cimport Control, control_count, stage_block_t
from ._ring cimport Ring, ring_t
from ._schema cimport HP_METRIC_ERRORS, HP_SEQ_BITS

import numpy

from hftpipe import schema
from hftpipe.errors import SchemaError


def checksum(body) -> int:
    """Checksum of one body (bytes, 64 or 128 of them) as the store links carry it."""
    words = numpy.frombuffer(body, "<u8").copy()
    cdef uint64_t[::1] view = words
    return hp_checksum(&view[0], <int>view.shape[0])


cdef ring_t *stage_end(list keep, ring, record, bint producer) except? NULL:
    """The C end of *ring*, which must carry *record*; keeps the handle alive."""
    if ring is None:
        return NULL
    cdef Ring handle = ring
    if handle._record is not record or handle._producer != producer:
        raise SchemaError(f"link must be the {'producer' if producer else 'consumer'} end of "
                          f"{record.name}, was {'producer' if handle._producer else 'consumer'} "
                          f"of {handle._record.name}")
    keep.append(handle)
    return &handle.c


cdef class Stage:
    """Base of all stages.

    Parameters
    ----------
    name : str
    control : Control or None
        The run's control page; without one the stage counts into memory of its own.
    index : int
        Which block of the control page is this stage's.
    store : Ring or None
        Producer end of the store link.
    stream : int
        STREAM_* of the events it stores.
    """

    def __cinit__(self, *args, **kwargs):
        self._keep = []
        self.error = None

    cdef int _setup(self, str name, Control control, int index, store, int stream,
                    record) except -1:
        self.name = name
        if control is None:
            self._own_block = bytearray(sizeof(stage_block_t) + 64)
            self.block = <stage_block_t *>(<uint64_t>(<char *>self._own_block) + 63 & ~63ULL)
        else:
            self.block, self.header = control.block(index), control.header
            self._keep.append(control)
        self.store.block = self.block
        self.store.ring = stage_end(self._keep, store, record, True)
        self.store.stream = <uint64_t>stream << HP_SEQ_BITS
        self.store.slot_size = record.size
        return 0

    cdef void _halt(self) noexcept nogil:
        control_count(self.block, HP_METRIC_ERRORS, 1)
        if self.header != NULL:
            hp_fetch_add(&self.header.halt_epoch, 1)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        return 0

    cdef void idle(self) noexcept nogil:
        pass

    cdef bint finish(self) noexcept nogil:
        return True

    cdef bint pending(self) noexcept nogil:
        return False

    cdef object maintain(self):
        return None

    def do_work(self, uint64_t limit=BATCH):
        """Do at most *limit* records' worth; how many were done (0 = idle).

        Raises
        ------
        Exception
            Whatever stopped the stage: a strategy's exception, a corrupt link.
        """
        cdef uint64_t done
        with nogil:
            done = self.work(limit)
        self.check()
        return done

    def flush(self):
        """Return all credit upstream, as a host does when the loop is idle."""
        self.idle()

    def check(self):
        """Raise what stopped the stage, if anything did."""
        if self.failed:
            if self.error is None:
                self.error = SchemaError(f"stage {self.name}: a link carries a sequence number "
                                         f"beyond the next one; its memory is corrupt")
            raise self.error

    @property
    def counters(self):
        """Counters of this stage by metric name."""
        return {m.name: self.block.counters[i] for i, m in enumerate(schema.METRICS)}

    @property
    def stored(self) :
        """Events stored so far and the sum of their checksums."""
        return self.store.seq, self.store.checksum
