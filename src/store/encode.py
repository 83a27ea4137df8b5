"""Slots of a store link to PostgreSQL's ``COPY BINARY`` and back, whole blocks at a time.

A row of an event table has a fixed width, because no column is NULL and all but ``text`` have
a fixed size: a block of rows is one big-endian numpy structured array whose counts and lengths
are filled in once, and encoding is one strided, byte-swapping copy per column.

https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format"
"""
from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from hftpipe import schema
from hftpipe.errors import MismatchError
from hftpipe.store.layout import columns

Array = np.ndarray[Any, np.dtype[Any]]

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)       # signature, no flags, no extension
TRAILER = b"\xff\xff"
IDENTITY = 32                                   # bytes of a row: count of columns, run, stream, seq
SEQ_MASK = (1 << schema.SEQ_BITS) - 1
TEXT = 16                                       # bytes of an s16 field, zero-padded

# Value on the wire by schema type; u64 keeps its bits, f32 and f64 are moved as bits.
WIRE = {"u8": ">i2", "i8": ">i2", "u16": ">i4", "u32": ">i8", "i64": ">u8", "u64": ">u8",
        "f32": ">u4", "f64": ">u8", "s16": f"V{TEXT}"}
# How the field is read from the slot, where that is not its own dtype.
READ = {"i64": "<u8", "f32": "<u4", "f64": "<u8", "s16": f"V{TEXT}"}


class Encoder:
    """Rows of one record's table from and to slots of *slot*, one of ``schema.SLOTS``.

    Parameters
    ----------
    record : schema.Record
        What the bodies are.
    slot : schema.Record
        What the slots are.
    """

    def __init__(self, record: schema.Record, slot: schema.Record) -> None:
        if schema.ENVELOPE.size + record.size > slot.size:
            raise ValueError(f"{record.name} of {record.size} B does not fit into {slot.name}")
        self.record, self.slot = record, slot
        cols = columns(record)
        self._fields = [(f"v{i}", c.at, np.dtype(READ.get(c.field.type,
                                                          schema.TYPES[c.field.type][2])))
                        for i, c in enumerate(cols) if c.field is not None]
        wire = [WIRE[c.field.type] if c.field is not None else
                {"bigint": ">i8", "smallint": ">i2"}[c.sql] for c in cols]
        self._row = np.dtype([("count", ">i2")] + [
            part for i, w in enumerate(wire) for part in ((f"n{i}", ">i4"), (f"v{i}", w))])
        self._text = [i for i, c in enumerate(cols) if c.field is not None
                      and c.field.type == "s16"]
        self._count = len(cols)
        self._buffer = self._template(0)
        self._views: dict[int, np.dtype[Any]] = {}

    def _template(self, n: int) -> Array:
        """Rows with everything but the values."""
        rows = np.zeros(n, self._row)
        rows["count"] = self._count
        for i in range(self._count):
            rows[f"n{i}"] = self._row[f"v{i}"].itemsize
        return rows

    def encode(self, slots: Array, run: int) -> memoryview | bytes:
        """``COPY BINARY`` rows of *slots*, without header and trailer.

        Parameters
        ----------
        slots : (n,) array of slots
            As they lie in the ring, any strides, with or without ``link_seq`` in front.
        run : int
            Run id, the first column.

        Returns
        -------
        bytes-like
            Valid until the next call.

        Raises
        ------
        MismatchError
            If a text field is not zero-padded ASCII.
        """
        n = len(slots)
        if len(self._buffer) < n:
            self._buffer = self._template(max(n, 4096))
        rows, event = self._buffer[:n], slots["event"]
        rows["v0"] = run
        rows["v1"] = event >> np.uint64(schema.SEQ_BITS)
        rows["v2"] = event & np.uint64(SEQ_MASK)
        view = slots.view(self._view(slots.dtype.itemsize))
        for name, _, _ in self._fields:
            rows[name] = view[name]
        if self._text:
            return self._shorten(rows)
        return rows.view(np.uint8).reshape(-1).data if n else b""

    def _view(self, size: int) -> np.dtype[Any]:
        """Every column's field, for slots of *size* bytes: whole, or without link_seq."""
        if size not in self._views:
            less = self.slot.size - size
            self._views[size] = np.dtype({
                "names": [name for name, _, _ in self._fields],
                "formats": [kind for _, _, kind in self._fields],
                "offsets": [at - less for _, at, _ in self._fields], "itemsize": size})
        return self._views[size]

    def _shorten(self, rows: Array) -> bytes:
        """Cut the padding of text columns out of *rows*."""
        rows = rows.copy()
        data = rows.view(np.uint8).reshape(len(rows), self._row.itemsize)
        keep = np.ones_like(data, bool)
        for i in self._text:
            fields = self._row.fields
            assert fields is not None
            at = fields[f"v{i}"][1]
            text = data[:, at:at + TEXT]
            length = (text != 0).cumprod(axis=1).sum(axis=1)
            used = np.arange(TEXT) < length[:, None]
            if (text[~used] != 0).any() or (text > 127).any():
                raise MismatchError(f"{self.record.name}: text must be zero-padded ASCII")
            keep[:, at:at + TEXT] = used
            rows[f"n{i}"] = length
        kept: Array = data[keep]
        return kept.tobytes()

    @property
    def width(self) -> int:
        """Bytes of an encoded row; no event has text, whose rows differ in it."""
        self._fixed()
        return self._row.itemsize

    def _fixed(self) -> None:
        if self._text:
            raise TypeError(f"rows of {self.record.name} have text: they are only written")

    def decode(self, data: bytes) -> Array:
        """Slots from the output of ``COPY ... TO STDOUT (FORMAT BINARY)``.

        Returns
        -------
        (n,) array
            Fields ``event_stream``, ``event_seq``, ``checksum`` and the slot's bytes; what no
            column holds (link_seq, padding, the rest of the envelope) is zero.
        """
        self._fixed()
        if not data.startswith(HEADER) or not data.endswith(TRAILER):
            raise MismatchError("not a complete COPY BINARY stream")
        body = memoryview(data)[len(HEADER):len(data) - len(TRAILER)]
        if len(body) % self._row.itemsize:
            raise MismatchError(f"{self.record.name}: COPY returned {len(body)} bytes, "
                                f"expected rows of {self._row.itemsize}")
        rows = np.frombuffer(body, self._row)
        check = self._template(1)[0]
        for name in ("count", *(f"n{i}" for i in range(self._count))):
            if (rows[name] != check[name]).any():
                raise MismatchError(f"{self.record.name}: a row is not of the expected shape")
        out = np.zeros(len(rows), np.dtype({
            "names": ["event_stream", "event_seq", "checksum", "slot"],
            "formats": ["<u8", "<u8", "<u8", (np.uint8, (self.slot.size,))],
            "offsets": [0, 8, 16, 64], "itemsize": 64 + self.slot.size}))
        out["event_stream"], out["event_seq"] = rows["v1"], rows["v2"]
        slot = out["slot"]
        for name, at, read in self._fields:
            value = rows[name].astype(read)
            size = value.itemsize
            slot[:, at:at + size] = value.view(np.uint8).reshape(len(rows), size)
        event = (out["event_stream"] << np.uint64(schema.SEQ_BITS)) | out["event_seq"]
        at = schema.ENVELOPE.offsets["event"]
        slot[:, at:at + 8] = event.view(np.uint8).reshape(-1, 8)
        at = schema.ENVELOPE.offsets["checksum"]
        out["checksum"] = np.ascontiguousarray(slot[:, at:at + 8]).view("<u8").reshape(-1)
        return out

    def words(self, slots: Array) -> Array:
        """The words of each body of :meth:`decode`'s result, ready for ``checksum``."""
        start = schema.ENVELOPE.size
        body = np.ascontiguousarray(slots["slot"][:, start:start + self.record.size])
        return body.view("<u8").reshape(len(slots), self.record.size // 8)


def body_words(slots: Array, slot: schema.Record, words: int) -> Array:
    """(n, words) view of the bodies of *slots*, ready for ``checksum``."""
    size = slots.dtype.itemsize
    at = schema.ENVELOPE.size - (slot.size - size)
    view: Array = slots.view(np.dtype({"names": ["w"], "formats": [("<u8", (words,))],
                                       "offsets": [at], "itemsize": size}))["w"]
    return view


@cache
def encoder(number: int, slot: schema.Record) -> Encoder:
    """The encoder of ``RECORD_*`` *number*.

    Raises
    ------
    MismatchError
        If there is no such record, or it does not fit the slot.
    """
    if number not in schema.BODIES:
        raise MismatchError(f"envelope names record {number}, known are 1 to "
                            f"{max(schema.BODIES)}")
    try:
        return Encoder(schema.BODIES[number], slot)
    except ValueError as e:
        raise MismatchError(str(e)) from None
