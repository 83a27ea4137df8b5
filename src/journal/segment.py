"""Segments of the journal as files: their header, their names, and the disk's promises.

A segment begins with one block::

    magic u64, version u32, crc u32, run u64, index u64, first u64, size u64, base u64[16], zeros

``first`` is the number of its first record, ``base`` the sequence number of each stream before
it: a segment is read and checked without those before it, which may be gone.  ``crc`` is CRC32C
of all that follows it in the block.  Records follow as ``_journal.pxd`` has them.
"""
from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hftpipe import _journal, schema
from hftpipe.errors import DataError, DiskError, MismatchError

BLOCK = 4096                    # bytes before the first record
STREAMS = 16
VERSION = 1
MAGIC = 0x316C6E6A70636668      # b"hfcpjnl1"
LEAST = 1 << 20                 # bytes of the smallest segment
LARGEST = max(slot.size for slot in schema.SLOTS) + _journal.EXTRA      # bytes of a record
_HEAD = struct.Struct(f"<QIIQQQQ{STREAMS}Q")
_NAME = re.compile(r"\d{20}\.seg")
_SPARE = re.compile(r"spare-\d+(\.new)?")
_PUNCH = 3                      # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@dataclass(frozen=True, slots=True)
class Head:
    """What a segment says of itself."""

    run: int
    index: int                  # 0, 1, ... within the run
    first: int                  # number of its first record
    size: int                   # bytes of the file
    base: tuple[int, ...]       # sequence number of each stream before it

    def pack(self) -> bytes:
        """The block."""
        rest = _HEAD.pack(0, 0, 0, self.run, self.index, self.first, self.size, *self.base)[16:]
        rest = rest.ljust(BLOCK - 16, b"\0")
        return struct.pack("<QII", MAGIC, VERSION, _journal.crc32c(rest)) + rest


def name(first: int) -> str:
    """File name of the segment that begins with record *first*."""
    return f"{first:020d}.seg"


def listing(directory: Path) -> list[Path]:
    """The segments of *directory*, oldest first.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        return sorted(p for p in directory.iterdir() if _NAME.fullmatch(p.name))
    except OSError as e:
        raise DataError(f"journal {directory}: {e.strerror}") from None


def spares(directory: Path) -> list[Path]:
    """Segments made ahead, whole or not."""
    return sorted(p for p in directory.iterdir() if _SPARE.fullmatch(p.name))


def number_of(path: Path) -> int:
    """Number of the first record of the segment *path*, by its name."""
    return int(path.name.partition(".")[0])


def read_head(path: Path, run: int | None = None) -> Head:
    """The header of the segment *path*.

    Raises
    ------
    DataError
        If it cannot be read.
    MismatchError
        If it is no header, damaged, of another run, or contradicts the file's name or size.
    """
    try:
        with path.open("rb") as file:
            block, size = file.read(BLOCK), os.fstat(file.fileno()).st_size
    except OSError as e:
        raise DataError(f"journal {path}: {e.strerror}") from None
    if len(block) < BLOCK:
        raise MismatchError(f"journal {path} at 0: wanted a header of {BLOCK} bytes, found "
                            f"{len(block)}")
    magic, version, crc, number, index, first, length, *base = _HEAD.unpack_from(block)
    if magic != MAGIC:
        raise MismatchError(f"journal {path} at 0: wanted {MAGIC:#018x}, found {magic:#018x}")
    if version != VERSION:
        raise MismatchError(f"journal {path} at 8: wanted version {VERSION}, found {version}")
    if crc != _journal.crc32c(block[16:]):
        raise MismatchError(f"journal {path} at 12: the header's checksum must be "
                            f"{_journal.crc32c(block[16:]):#010x}, found {crc:#010x}")
    if run is not None and number != run:
        raise MismatchError(f"journal {path} at 16: wanted run {run:x}, found {number:x}")
    if path.name != name(first):
        raise MismatchError(f"journal {path} at 32: its first record must be "
                            f"{number_of(path)}, as its name says, found {first}")
    if size != length:
        raise MismatchError(f"journal {path}: wanted {length} bytes, found {size}")
    return Head(number, index, first, length, tuple(base))


class Disk:
    """What the journal asks of the operating system; tests put a worse one in its place.

    Everything that returns is on disk.  Raises OSError.
    """

    def create(self, path: Path, size: int) -> None:
        """Make *path* a file of *size* zeros whose space is reserved."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            os.fsync(fd)
        finally:
            os.close(fd)

    def open(self, path: Path) -> int:
        """A descriptor to write *path* with."""
        return os.open(path, os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC)

    def write(self, fd: int, data: memoryview | bytes, at: int) -> None:
        """Write all of *data* at *at*."""
        done = 0
        while done < len(data):
            wrote = os.pwrite(fd, data[done:], at + done)
            if not wrote:
                raise OSError(errno.EIO, "nothing was written")
            done += wrote

    def rename(self, old: Path, new: Path) -> None:
        os.rename(old, new)
        self.sync(new.parent)

    def unlink(self, path: Path) -> None:
        os.unlink(path)

    def sync(self, directory: Path) -> None:
        """Have the names in *directory* on disk."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def free(self, fd: int, at: int, size: int) -> None:
        """Give the space of a range back, which then reads as zeros; not every disk can."""
        if _libc.fallocate(fd, _PUNCH, at, size) != 0:
            number = ctypes.get_errno()
            if number not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise OSError(number, os.strerror(number))


def write_file(disk: Disk, path: Path, text: str) -> None:
    """Make *path* hold *text*, wholly or not at all.

    Raises
    ------
    DiskError
        If the disk refuses.
    """
    part = path.with_name(path.name + ".new")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            disk.write(fd, text.encode(), 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        disk.rename(part, path)
    except OSError as e:
        raise DiskError(f"journal {path}: {e.strerror}") from None


def base_of(last: Sequence[int]) -> tuple[int, ...]:
    """*last*, by stream, as a header keeps it."""
    return tuple(last) + (0,) * (STREAMS - len(last))
