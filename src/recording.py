"""Our own recording: the stored events of one run, with the descriptors they were written with.

Bytes::

    b"HFTREC1\\n"
    u32 size, u32 crc32      of the header that follows
    header                   JSON: version, run, utc_offset, profile, config, instruments,
                             records {number: descriptor}, envelope descriptor
    block ...                until the end of the file

    block:  u32 b"BLK1", u32 count, u16 slot_size, u8 stream, u8 0, u32 crc32 of the twelve
            bytes before and of the slots, then count slots of slot_size bytes: envelope and
            body as on a store link
    end:    the same with count 0 and b"END1"; a file without it was cut off

All integers little-endian.  A reader uses the file's own descriptors, so a later version
reads what this one wrote; a golden file of each version is tested.
"""
from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hftpipe import schema
from hftpipe.errors import DataError

if TYPE_CHECKING:
    import numpy

MAGIC = b"HFTREC1\n"
VERSION = 1
_BLOCK = struct.Struct("<4sIHBBI")
_MAX_BLOCK = 1 << 28            # bytes; a larger count is a damaged header


class Writer:
    """Append stored events to a new file.

    Parameters
    ----------
    path : path-like
        Must not exist.
    instruments : (n,) structured array, dtype of INSTRUMENT
    run : int
        Id of the run: UTC ns of its start.
    utc_offset : int, ns
        UTC minus the monotonic clock.
    profile : str
    config : dict, optional
        What the strategies were made from, so that a replay can make them again.

    Raises
    ------
    DataError
        If the file exists or cannot be made.
    """

    def __init__(self, path: str | Path, instruments: Any, run: int, utc_offset: int,
                 profile: str = "", config: dict[str, Any] | None = None) -> None:
        header = {
            "version": VERSION, "run": run, "utc_offset": utc_offset, "profile": profile,
            "config": config or {},
            "instruments": [
                {"symbol": row["symbol"].decode(), **{
                    f.name: int(row[f.name]) for f in schema.INSTRUMENT.fields
                    if f.type != "s16" and f.column is not None}} for row in instruments],
            "envelope": schema.descriptor(schema.ENVELOPE),
            "records": {str(n): schema.descriptor(r) for n, r in schema.BODIES.items()},
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        try:
            self._file: IO[bytes] = open(path, "xb")
        except OSError as error:
            raise DataError(f"cannot write recording {path}: {error.strerror}") from None
        self.path = Path(path)
        self.events = 0
        self.last: dict[int, int] = {}          # identity of the newest event of each stream
        self._file.write(MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text)
        self._file.flush()                      # resume() must find a whole header

    def write(self, stream: int, slots: Any) -> None:
        """Append *slots* of one stream: (n, slot_size) bytes, see :func:`raw`."""
        if not len(slots):
            return
        self._block(b"BLK1", len(slots), slots.shape[1], stream, slots.tobytes())
        self._note(stream, slots)

    def _block(self, kind: bytes, count: int, slot: int, stream: int, data: bytes) -> None:
        head = _BLOCK.pack(kind, count, slot, stream, 0, 0)[:-4]
        self._file.write(head + struct.pack("<I", zlib.crc32(data, zlib.crc32(head))) + data)

    @classmethod
    def resume(cls, path: str | Path) -> Writer:
        """Go on with a recording whose writer was killed; a torn block at its end is cut off.

        Raises
        ------
        DataError
            If *path* is no recording.
        """
        found = Recording(path)
        out = cls.__new__(cls)
        out.path, out.events, out.last = Path(path), 0, {}
        end = found._start
        try:
            for stream, slots in found.blocks():
                out._note(stream, slots)
                end = found.position
        except DataError:
            pass                                # cut off there
        out._file = open(path, "r+b")
        out._file.truncate(end)
        out._file.seek(end)
        return out

    def _note(self, stream: int, slots: Any) -> None:
        self.events += len(slots)
        self.last[stream] = int.from_bytes(slots[-1, 8:16].tobytes(), "little")

    def flush(self) -> None:
        """Hand everything to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Write the end mark and close; a second call does nothing."""
        if not self._file.closed:
            self._block(b"END1", 0, 0, 0, b"")
            self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def raw(slots: Any, slot: schema.Record) -> Any:
    """What a store link's ``peek`` gave, as (n, slot_size) bytes with the ring's word zero.

    Parameters
    ----------
    slots : (n,) structured array
        A view of ring memory that leaves out each slot's first word.
    slot : schema.Record
        one of schema.SLOTS.
    """
    import numpy
    out = numpy.zeros((len(slots), slot.size // 8), "<u8")
    if len(slots):
        first = slots[slot.fields[1].name]      # behind the ring's word
        out[:, 1:] = numpy.lib.stride_tricks.as_strided(
            first, (len(slots), slot.size // 8 - 1), (first.strides[0], 8), writeable=False)
    return out.view("u1")


class Recording:
    """A recording, read with its own descriptors.

    Attributes
    ----------
    run, utc_offset : int
    instruments : (n,) structured array, dtype of INSTRUMENT
    descriptors : dict
        Of the bodies, by the number in the envelope.

    Raises
    ------
    DataError
        If the file is missing, no recording, of a newer format, damaged or cut off.
    """

    def __init__(self, path: str | Path) -> None:
        import numpy

        self.path = Path(path)
        try:
            with open(path, "rb") as file:
                magic = file.read(len(MAGIC))
                if magic != MAGIC:
                    raise DataError(f"{path}: wanted a recording ({MAGIC[:7].decode()}), "
                                    f"found {magic!r}")
                size, crc = struct.unpack("<II", self._exactly(file, 8))
                text = self._exactly(file, size)
                self._start = file.tell()
        except OSError as error:
            raise DataError(f"cannot read recording {path}: {error.strerror}") from None
        if zlib.crc32(text) != crc:
            raise DataError(f"{path}: header checksum wanted {crc:#010x}, "
                            f"found {zlib.crc32(text):#010x}")
        header = json.loads(text)
        if header["version"] > VERSION:
            raise DataError(f"{path}: written by format {header['version']}, "
                            f"this build reads up to {VERSION}")
        self.run: int = header["run"]
        self.utc_offset: int = header["utc_offset"]
        self.profile: str = header["profile"]
        self.config: dict[str, Any] = header["config"]
        self.envelope: dict[str, Any] = header["envelope"]
        self.descriptors = {int(n): d for n, d in header["records"].items()}
        self.instruments = numpy.zeros(len(header["instruments"]),
                                       schema.dtype(schema.INSTRUMENT))
        for row, fields in zip(self.instruments, header["instruments"], strict=True):
            for name, value in fields.items():
                if name in schema.INSTRUMENT.offsets:
                    row[name] = value

    def _exactly(self, file: IO[bytes], size: int) -> bytes:
        at = file.tell()
        data = file.read(size)
        if len(data) != size:
            raise DataError(f"{self.path}: cut off at byte {at + len(data)}: wanted {size} bytes "
                            f"from {at}, found {len(data)}")
        return data

    def blocks(self) -> Iterator[tuple[int, numpy.ndarray[Any, Any]]]:
        """``(stream, slots)`` in the order written; slots as (n, slot_size) bytes."""
        import numpy

        with open(self.path, "rb") as file:
            file.seek(self._start)
            while True:
                at = file.tell()
                head = self._exactly(file, _BLOCK.size)
                kind, count, slot, stream, _, crc = _BLOCK.unpack(head)
                if kind not in (b"BLK1", b"END1") or count * slot > _MAX_BLOCK:
                    raise DataError(f"{self.path}: wanted a block at byte {at}, found {kind!r} "
                                    f"with {count} slots of {slot} bytes")
                data = self._exactly(file, count * slot)
                found = zlib.crc32(data, zlib.crc32(head[:-4]))
                if found != crc:
                    raise DataError(f"{self.path}: block at byte {at}: checksum wanted "
                                    f"{crc:#010x}, found {found:#010x}")
                self.position = file.tell()     # behind the newest whole block
                if kind == b"END1":
                    return
                yield stream, numpy.frombuffer(data, "u1").reshape(count, slot)

    def events(self, stream: int | None = None) -> Iterator[
            tuple[int, numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]]:
        """``(record, envelopes, bodies)`` of neighbours of one kind, in the order stored.

        Bodies have the file's own dtype; ``schema.BODIES[record].name`` is their name in a
        file of this version.
        """
        import numpy

        head = schema.dtype_of(self.envelope)
        for owner, slots in self.blocks():
            if stream is not None and owner != stream:
                continue
            envelopes = numpy.ascontiguousarray(slots[:, :head.itemsize]).view(head)[:, 0]
            kinds = envelopes["record"]
            edges = numpy.flatnonzero(numpy.diff(kinds)) + 1
            for low, high in zip([0, *edges], [*edges, len(kinds)], strict=True):
                kind = int(kinds[low])
                if kind not in self.descriptors:
                    raise DataError(f"{self.path}: record kind {kind} has no descriptor")
                dtype = schema.dtype_of(self.descriptors[kind])
                body = slots[low:high, head.itemsize:head.itemsize + dtype.itemsize]
                yield kind, envelopes[low:high], numpy.ascontiguousarray(body).view(dtype)[:, 0]

    def collect(self, record: schema.Record, stream: int | None = None) -> tuple[
            numpy.ndarray[Any, Any], numpy.ndarray[Any, Any]]:
        """All ``(envelopes, bodies)`` of one record of this version, fields matched by name."""
        import numpy

        heads, bodies = [], []
        want = schema.dtype(record)
        for kind, envelopes, found in self.events(stream):
            if self.descriptors[kind]["name"] != record.name:
                continue
            out = numpy.zeros(len(found), want)
            for name in want.names or ():
                if name in (found.dtype.names or ()):
                    out[name] = found[name]
            heads.append(envelopes)
            bodies.append(out)
        if not bodies:
            return numpy.zeros(0, schema.dtype_of(self.envelope)), numpy.zeros(0, want)
        return numpy.concatenate(heads), numpy.concatenate(bodies)
