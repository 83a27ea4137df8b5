"""Named shared memory: the only opener of ``/dev/shm``.

A segment is ``/hftpipe.<run>.<link>``, *run* in lower-case hex: 0600, created exclusively,
every page allocated before anybody writes to it (a sparse mapping dies with SIGBUS when
``/dev/shm`` fills up), and refused at attach unless it is what we would have made.  Nothing
unlinks a segment but :meth:`Segment.unlink` and :func:`remove`: it must survive the death of
every process that uses it, so Python's resource tracker is kept away from it.

Imports of rings, the control page and posix_ipc happen in the functions that need them, so
that ``hftpipe halt`` stays quick.
"""
from __future__ import annotations

import errno
import mmap
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hftpipe.errors import AccessError, BusyError, HftpipeError, NotRunningError, SchemaError

if TYPE_CHECKING:
    from hftpipe._board import Board
    from hftpipe._control import Control
    from hftpipe._ring import Ring
    from hftpipe.schema import Record

DIRECTORY = "/dev/shm"
MODE = 0o600
LINK = re.compile(r"[a-z][a-z0-9_.]{0,63}")
NAME = re.compile(rf"hftpipe\.([0-9a-f]{{1,16}})\.({LINK.pattern})")


# ---------------------------------------------------------------- who is alive

def boot_id() -> int:
    """First 8 bytes of the kernel's boot id, little-endian."""
    with open("/proc/sys/kernel/random/boot_id") as f:
        text = f.read()
    return int.from_bytes(bytes.fromhex(text.strip().replace("-", ""))[:8], "little")


def process_start(pid: int) -> int | None:
    """When process *pid* started, clock ticks after boot; None when there is none.

    A zombie has ended: only its parent has not looked yet.
    """
    try:
        with open(f"/proc/{pid}/stat") as f:
            text = f.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2:].split()        # the name may hold anything
    return None if fields[0] in "ZX" else int(fields[19])


def alive(pid: int, start: int) -> bool:
    """Whether the process that had *pid* and *start* still runs."""
    return process_start(pid) == start


def own_holder() -> int:
    """This process as the word of a ring's end; see ``_ring.holder``."""
    from hftpipe import _ring
    pid = os.getpid()
    start = process_start(pid)
    assert start is not None, "a process that runs has a start"
    return _ring.holder(pid, start)


# ---------------------------------------------------------------- segments

def segment_name(run: int, link: str) -> str:
    """Name of the segment of *link* in *run*, leading slash included."""
    if not 0 < run < 1 << 64:
        raise ValueError(f"run must be in [1, 2**64), was {run}")
    if not LINK.fullmatch(link):
        raise ValueError(f"link must match {LINK.pattern}, was {link!r}")
    return f"/hftpipe.{run:x}.{link}"


@contextmanager
def _translated(name: str, doing: str) -> Iterator[None]:
    """Turn what posix_ipc and the kernel say about *name* into one of our errors."""
    import posix_ipc  # type: ignore[import-not-found]
    try:
        yield
    except posix_ipc.ExistentialError as e:
        if doing == "create":
            raise BusyError(f"shared memory {name} exists already and is not ours to reuse: "
                            f"another run, or a squatted name") from e
        raise NotRunningError(f"no shared memory {name}") from e
    except posix_ipc.PermissionsError as e:
        raise AccessError(f"cannot {doing} shared memory {name}: permission denied") from e
    except (OSError, ValueError, posix_ipc.Error) as e:
        # posix_ipc has no error of its own for the rest; ValueError is the C library's EINVAL,
        # its answer to a directory.
        code = errno.EISDIR if isinstance(e, ValueError) else getattr(e, "errno", None)
        if code == errno.ENOSPC:
            raise HftpipeError(f"/dev/shm is full: cannot {doing} {name}") from e
        if code in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise AccessError(f"shared memory {name} is not a regular file") from e
        raise HftpipeError(f"cannot {doing} shared memory {name}: {e}") from e


class Segment:
    """One named, mapped segment.  Make it with :meth:`create` or :meth:`attach`.

    Attributes
    ----------
    name : str
        With its leading slash.
    size : int
        Bytes.
    memory : mmap.mmap
        The mapping.  It can not be closed while a ring, a control page or an array uses it.
    """

    __slots__ = ("created", "memory", "name", "size")

    def __init__(self, name: str, size: int, memory: mmap.mmap, created: bool) -> None:
        self.name, self.size, self.memory, self.created = name, size, memory, created

    @classmethod
    def create(cls, name: str, size: int) -> Segment:
        """Make and map a new segment of zeros.

        Raises
        ------
        BusyError
            If the name exists, whoever made it.
        HftpipeError
            If ``/dev/shm`` has no room for all of it; nothing is left behind.
        """
        import posix_ipc
        if size <= 0:
            raise ValueError(f"size must be positive, was {size}")
        with _translated(name, "create"):
            handle = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, MODE)
            try:
                os.fchmod(handle.fd, MODE)              # whatever the umask took away
                os.ftruncate(handle.fd, size)
                os.posix_fallocate(handle.fd, 0, size)
                memory = _map(handle.fd, size)
            except BaseException:
                posix_ipc.unlink_shared_memory(name)
                raise
            finally:
                handle.close_fd()
        return cls(name, size, memory, True)

    @classmethod
    def attach(cls, name: str, size: int | None = None) -> Segment:
        """Map an existing segment, of exactly *size* bytes if given.

        Raises
        ------
        NotRunningError
            If there is none.
        AccessError
            If it is not a regular file of this user with mode 0600 and one name.
        SchemaError
            If it has another size, or has not been allocated.
        """
        import posix_ipc
        with _translated(name, "attach"):
            handle = posix_ipc.SharedMemory(name)
        try:
            found = os.fstat(handle.fd)
            if not stat.S_ISREG(found.st_mode):
                raise AccessError(f"shared memory {name} is not a regular file")
            if found.st_uid != os.geteuid():
                raise AccessError(f"shared memory {name} belongs to user {found.st_uid}, "
                                  f"this process is user {os.geteuid()}")
            if stat.S_IMODE(found.st_mode) != MODE:
                raise AccessError(f"shared memory {name} has mode "
                                  f"{stat.S_IMODE(found.st_mode):04o}, expected {MODE:04o}")
            if found.st_nlink > 1:
                raise AccessError(f"shared memory {name} has {found.st_nlink} names, expected 1")
            if found.st_size == 0 or (size is not None and found.st_size != size):
                raise SchemaError(f"shared memory {name} has {found.st_size} bytes, "
                                  f"expected {size or 'some'}")
            if found.st_blocks * 512 < found.st_size:
                raise SchemaError(f"shared memory {name} is sparse: "
                                  f"{found.st_blocks * 512} of {found.st_size} bytes are there")
            with _translated(name, "map"):
                memory = _map(handle.fd, found.st_size)
        finally:
            handle.close_fd()
        return cls(name, found.st_size, memory, False)

    def unlink(self) -> None:
        """Remove the name; what is mapped stays until it is unmapped.  Twice is no error."""
        unlink(self.name)

    def close(self) -> None:
        """Unmap.  BufferError while a ring, a control page or an array still uses it."""
        self.memory.close()


def _map(fd: int, size: int) -> mmap.mmap:
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE,
                     prot=mmap.PROT_READ | mmap.PROT_WRITE)


def unlink(name: str) -> bool:
    """Remove the segment *name*; whether there was one."""
    import posix_ipc
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    return True


def runs() -> dict[int, list[str]]:
    """Links of every run of this user that has something in ``/dev/shm``, sorted."""
    found: dict[int, list[str]] = {}
    with os.scandir(DIRECTORY) as entries:
        for entry in entries:
            match = NAME.fullmatch(entry.name)
            if not match:
                continue
            try:
                if entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                    continue
            except FileNotFoundError:
                continue                                # unlinked while we looked
            found.setdefault(int(match[1], 16), []).append(match[2])
    return {run: sorted(found[run]) for run in sorted(found)}


def remove(run: int) -> list[str]:
    """Unlink everything of *run*; which links there were."""
    return [link for link in runs().get(run, []) if unlink(segment_name(run, link))]


# ---------------------------------------------------------------- what lives in them

def create_ring(run: int, link: str, record: Record, capacity: int) -> Segment:
    """Make the ring of *link*, held by nobody yet.

    Raises what :meth:`Segment.create` and ``_ring.format`` raise; nothing is left behind.
    """
    from hftpipe import _ring
    if capacity <= 0 or capacity & (capacity - 1):
        raise ValueError(f"capacity must be a power of two, was {capacity}")
    segment = Segment.create(segment_name(run, link), _ring.footprint(record, capacity))
    try:
        _ring.format(segment.memory, record, run=run, boot=boot_id(), owner=own_holder())
    except BaseException:
        segment.unlink()
        raise
    return segment


def ring(run: int, link: str, record: Record, *, producer: bool,
         capacity: int | None = None) -> Ring:
    """Take one end of the ring of *link*.

    Parameters
    ----------
    capacity : int, optional
        What the ring must have; None accepts what is there.

    Raises
    ------
    NotRunningError, AccessError, SchemaError
        If there is none, or it is not ours, of another boot, run, record or capacity.
    BusyError
        If another living process holds this end.
    """
    from hftpipe import _ring
    size = None if capacity is None else _ring.footprint(record, capacity)
    segment = Segment.attach(segment_name(run, link), size)
    try:
        return _ring.Ring(segment.memory, record, producer, run=run, boot=boot_id(),
                          holder=own_holder(), alive=alive)
    except (SchemaError, BusyError) as e:
        raise type(e)(f"{segment.name}: {e}") from None


def create_control(run: int, *, stages: Sequence[str], started: int = 0, utc_offset: int = 0,
                   token_key: int = 0, limits_version: int = 0, halt_epoch: int = 1) -> Segment:
    """Make the control page of *run*, not armed; this process is its supervisor.

    Raises what :meth:`Segment.create` and ``_control.format`` raise; nothing is left behind.
    """
    from hftpipe import _control
    segment = Segment.create(segment_name(run, "control"), _control.SIZE)
    pid = os.getpid()
    try:
        _control.format(segment.memory, run=run, boot=boot_id(), pid=pid,
                        start=process_start(pid) or 0, stages=stages, started=started,
                        utc_offset=utc_offset, token_key=token_key,
                        limits_version=limits_version, halt_epoch=halt_epoch)
    except BaseException:
        segment.unlink()
        raise
    return segment


def create_board(run: int, instruments: int,
                 limits: Sequence[tuple[str, str, int]] = ()) -> Segment:
    """Make the board of *run*; *limits* are name, unit and scale of each.

    Raises what :meth:`Segment.create` and ``_board.format`` raise; nothing is left behind.
    """
    from hftpipe import _board
    segment = Segment.create(segment_name(run, "board"), _board.size(instruments))
    try:
        _board.format(segment.memory, run=run, boot=boot_id(), instruments=instruments,
                      limits=limits)
    except BaseException:
        segment.unlink()
        raise
    return segment


def board(run: int) -> Board:
    """Attach the board of *run*.

    Raises
    ------
    NotRunningError, AccessError, SchemaError
        If there is none, or it is not ours, or of another boot, run or version.
    """
    from hftpipe import _board
    segment = Segment.attach(segment_name(run, "board"))
    try:
        return _board.Board(segment.memory, run=run, boot=boot_id())
    except SchemaError as e:
        raise SchemaError(f"{segment.name}: {e}") from None


def control(run: int, *, writer: bool = False) -> Control:
    """Attach the control page of *run*.

    Parameters
    ----------
    writer : bool, default False
        Whether this process writes a stage block: then the page must have been made by this
        build's schema.  Who only reads, halts or resumes attaches a page of any schema.

    Raises
    ------
    NotRunningError, AccessError, SchemaError
        If there is none, or it is not ours, of another boot, run, version or schema.
    """
    from hftpipe import _control
    segment = Segment.attach(segment_name(run, "control"))
    try:
        return _control.Control(segment.memory, run=run, boot=boot_id(),
                                schema=_control.schema_id() if writer else None)
    except SchemaError as e:
        raise SchemaError(f"{segment.name}: {e}") from None
