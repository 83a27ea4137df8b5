"""A disk that forgets what was not synced, for the simulation.

Real files in a scratch directory, under the journal's own code; beside them, what would come back
after the power was cut.  A write to a descriptor is on disk when it returns (O_DSYNC), in sectors;
a name is when its directory was synced.  :class:`Crash` may strike inside each operation.
"""
from __future__ import annotations

import contextlib
import errno
import os
import random
from pathlib import Path

from hftpipe.journal.segment import Disk

SECTOR = 512


class Crash(BaseException):
    """The process is gone, or the host; nothing in between may catch it."""


class SimDisk(Disk):
    """A :class:`Disk` whose unsynced writes can be dropped.

    Parameters
    ----------
    chance : random.Random
        Decides what of a write that was cut off is there.
    bug : str
        Planted mistake, see :mod:`hftpipe.drill.planted`.

    Attributes
    ----------
    crash_in : int
        Operations until :class:`Crash`; 0 = none is planned.
    power : bool
        The crash takes the host down: unsynced sectors and names may be lost.
    refuse_in : int
        Writes until one fails with EIO, its data thrown away; 0 = none.
    lost : int
        Sectors and names that power losses took.
    """

    def __init__(self, chance: random.Random, bug: str = "") -> None:
        self._chance, self._bug = chance, bug
        self.crash_in = self.refuse_in = self.lost = 0
        self.power = False
        self._old: dict[tuple[int, int], bytes] = {}        # (inode, sector) -> what is on disk
        self._names: list[tuple[Path, Path | None]] = []    # (name, what it was called before)

    def _passes(self) -> bool:
        """Count an operation; whether the crash comes in it."""
        if self.crash_in:
            self.crash_in -= 1
            return not self.crash_in
        return False

    def create(self, path: Path, size: int) -> None:
        crash = self._passes()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, 0 if crash else size)
        finally:
            os.close(fd)
        self._names.append((path, None))
        if crash:
            raise Crash

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, data: memoryview | bytes, at: int) -> None:
        inode = os.fstat(fd).st_ino
        first, last = at // SECTOR, (at + len(data) - 1) // SECTOR
        refused = False
        if self.refuse_in:
            self.refuse_in -= 1
            refused = not self.refuse_in
        crash = self._passes()
        if crash or refused or self._bug == "disk.no_sync":
            with contextlib.suppress(OSError):  # end.json is written by a descriptor for that alone
                for n in range(first, last + 1):
                    self._old.setdefault((inode, n), os.pread(fd, SECTOR, n * SECTOR))
        if crash and not self.power:            # killed inside the call: a part is there
            data = data[:self._chance.randint(0, len(data))]
        super().write(fd, data, at)
        if crash:
            raise Crash
        if refused and self._bug != "journal.retry":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if not refused and self._bug != "disk.no_sync":
            for n in range(first, last + 1):    # whole sectors go to the disk
                self._old.pop((inode, n), None)

    def rename(self, old: Path, new: Path) -> None:
        crash = self._passes()
        if crash and self._chance.random() < 0.5:
            raise Crash
        os.rename(old, new)
        self._names.append((new, old))
        if crash:
            raise Crash
        self.sync(new.parent)

    def sync(self, directory: Path) -> None:
        if self._bug != "disk.no_names":
            self._names = [n for n in self._names if n[0].parent != directory]

    def free(self, fd: int, at: int, size: int) -> None:
        """Nothing: the scratch directory goes as a whole."""

    def restart(self, directories: list[Path]) -> None:
        """Go on after a crash; when it took the power, without what had not reached the disk."""
        self.crash_in = self.refuse_in = 0
        if not self.power:
            return
        self.power = False
        if self._names:                         # a file system loses the newest ones first
            keep = self._chance.randint(0, len(self._names) - 1)
            for name, before in reversed(self._names[keep:]):
                if not name.exists():           # it had been removed since
                    continue
                self.lost += 1
                if before is not None:
                    os.rename(name, before)
                else:
                    name.unlink()
        self._names.clear()
        paths = {p.stat().st_ino: p for d in directories if d.is_dir() for p in d.iterdir()}
        for (inode, sector), data in self._old.items():
            if inode in paths and self._chance.random() < 0.7:
                self.lost += 1
                with paths[inode].open("r+b") as file:
                    file.seek(sector * SECTOR)
                    file.write(data)
        self._old.clear()
