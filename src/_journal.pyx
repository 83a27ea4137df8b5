# cython: binding=False
"""Records of the journal in memory; the bytes and the invariants are in ``_journal.pxd``."""
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer, Py_buffer)
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy

from hftpipe import schema

cdef int hard                   # whether the processor computes CRC32C
hp_crc_prepare()
hard = hp_crc_has_hard()

HARDWARE = bool(hard)
EXTRA = JOURNAL_EXTRA
ZERO, WHOLE, TORN, CORRUPT = range(4)

if not all(journal_size(slot.size) for slot in schema.SLOTS):
    raise ImportError("a slot of schema.SLOTS has a size that the journal does not know")


def crc32c(data, uint32_t value=0, *, hardware=HARDWARE) -> int:
    """CRC32C of *data*, going on from *value*; without *hardware* by table."""
    cdef Py_buffer view
    cdef bint use = bool(hardware) and hard
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return HP_CRC(use, value, <const unsigned char *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def frame(slots, uint64_t run, uint64_t number, uint64_t group, out, uint64_t at=0) -> int:
    """Write records of *slots* into *out*; where they end.

    Parameters
    ----------
    slots : (n, size) uint8 array
        Slots of one store link, C order; the first word of each is left out.
    run : int
    number : int
        Of the first of them; J1.
    group : int
        Number of the write's first record; J2.
    out : writable buffer
    at : int
        Offset in *out* of the first record.

    Raises
    ------
    ValueError
        If *out* has no room, or the slots are of no store link.
    """
    cdef const uint8_t[:, ::1] rows = slots
    cdef uint64_t count = rows.shape[0], size = rows.shape[1], i
    cdef Py_buffer view
    cdef unsigned char *p
    cdef journal_head_t *h
    if not journal_size(size):
        raise ValueError(f"slots must be of a store link, were of {size} bytes")
    PyObject_GetBuffer(out, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if at > <uint64_t>view.len or (view.len - at) // (size + JOURNAL_EXTRA) < count:
            raise ValueError(f"{count} records of {size + JOURNAL_EXTRA} bytes do not fit into "
                             f"{view.len} bytes from {at}")
        for i in range(count):
            p = <unsigned char *>view.buf + at
            h = <journal_head_t *>p
            h.size, h.pad, h.number, h.group = <unsigned short>size, 0, number + i, group
            memcpy(p + JOURNAL_HEAD, &rows[i, 8], size - 8)
            h.crc = journal_crc(hard, run, p, size)
            at += size + JOURNAL_EXTRA
        return at
    finally:
        PyBuffer_Release(&view)


def scan(memory, uint64_t run, uint64_t number, uint64_t at=0, *, uint64_t most=1 << 62,
         uint64_t durable=0):
    """Read records from *at* on, to the first that is not whole.

    Parameters
    ----------
    memory : buffer
        Of a segment, from its first record on.
    run : int
    number : int
        Of the record that must stand at *at*.
    most : int
        Records to stop after.
    durable : int
        Records up to this number are known to have been on disk; J4.

    Returns
    -------
    offsets : (n,) uint64 array
        Where the whole records begin.
    end : int
        Where the next one would.
    state : int
        What is there: ZERO nothing at all up to the end, WHOLE for more than *most* were
        asked for or the memory ends here, TORN or CORRUPT by J4.
    """
    cdef Py_buffer view
    cdef const unsigned char *base
    cdef const journal_head_t *h
    cdef uint64_t length, size, found = 0, group = 0, end
    cdef uint64_t[::1] out
    cdef int state
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    try:
        base, length = <const unsigned char *>view.buf, view.len
        room = min(most, (length - min(at, length)) // (128 + JOURNAL_EXTRA) + 1)
        offsets = numpy.empty(room, numpy.uint64)
        out = offsets
        end, state = at, WHOLE
        with nogil:
            while found < most and end < length:
                size = journal_whole(hard, run, base + end, length - end)
                h = <const journal_head_t *>(base + end)
                # A write begins with the record it is named after (J2), and goes on in one piece.
                if size == 0 or h.number != number or (
                        h.group != number and (h.group > number or (found and h.group != group))):
                    state = -1
                    break
                group = h.group
                out[found] = end
                found += 1
                number += 1
                end += size
        if state < 0:
            state = _judge(base, length, end, run, number, durable)
        return offsets[:found], end, state
    finally:
        PyBuffer_Release(&view)


cdef int _judge(const unsigned char *base, uint64_t length, uint64_t at, uint64_t run,
                uint64_t number, uint64_t durable) noexcept:
    """What it means that record *number* is not whole at *at*: J4."""
    cdef const journal_head_t *h
    cdef uint64_t i
    cdef bint empty = True
    with nogil:
        i = at
        while i < length and empty:
            empty = base[i] == 0
            i += 1
        if not empty:
            i = at
            while i + JOURNAL_HEAD <= length:
                h = <const journal_head_t *>(base + i)
                if h.size and h.group > number and journal_whole(hard, run, base + i, length - i):
                    with gil:
                        return CORRUPT
                i += JOURNAL_GRAIN
    if number <= durable:
        return CORRUPT
    return ZERO if empty else TORN


def gather(memory, const uint64_t[::1] offsets, uint64_t size):
    """Slots of the records at *offsets*: (n, size) uint8 array, the first word of each zero.

    All of them are whole, and of that slot *size*: :func:`scan` said so.
    """
    cdef Py_buffer view
    cdef const unsigned char *p
    cdef uint64_t i, n = offsets.shape[0]
    out = numpy.zeros((n, size), numpy.uint8)
    cdef uint8_t[:, ::1] rows = out
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    try:
        for i in range(n):
            p = <const unsigned char *>view.buf + offsets[i]
            if (offsets[i] + size + JOURNAL_EXTRA > <uint64_t>view.len
                    or (<const journal_head_t *>p).size != size):
                raise ValueError(f"no record of a slot of {size} bytes at {offsets[i]}")
            memcpy(&rows[i, 8], p + JOURNAL_HEAD, size - 8)
        return out
    finally:
        PyBuffer_Release(&view)


def heads(memory, const uint64_t[::1] offsets):
    """Slot size and event of each record at *offsets*: two (n,) uint64 arrays."""
    cdef Py_buffer view
    cdef const unsigned char *p
    cdef uint64_t i, n = offsets.shape[0]
    sizes, events = numpy.empty(n, numpy.uint64), numpy.empty(n, numpy.uint64)
    cdef uint64_t[::1] s = sizes
    cdef uint64_t[::1] e = events
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE)
    try:
        for i in range(n):
            if offsets[i] + JOURNAL_HEAD + 8 > <uint64_t>view.len:
                raise ValueError(f"no record at {offsets[i]}")
            p = <const unsigned char *>view.buf + offsets[i]
            s[i] = (<const journal_head_t *>p).size
            memcpy(&e[i], p + JOURNAL_HEAD, 8)
        return sizes, events
    finally:
        PyBuffer_Release(&view)
