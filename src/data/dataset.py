"""A directory of parts with its manifest; every step is whole on disk or not there at all."""
from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hftpipe.data import tables
from hftpipe.errors import BusyError, ConfigError

MANIFEST = "manifest.json"
VERSION = 1
MINUTE = 60 * 10**9


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file: times are UTC ns of its first and last row."""

    file: str
    symbol: str                 # "" = several
    rows: int
    first: int
    last: int
    sha256: str


class Dataset:
    """One dataset.

    Parameters
    ----------
    path : Path
    kind : str
        Of :data:`tables.COLUMNS`.
    request : dict
        What it was made from; another request for the same directory is refused.
    """

    def __init__(self, path: Path, kind: str, request: dict[str, Any]) -> None:
        self.path, self.kind, self.request = path, kind, request
        self.parts: list[Part] = []
        self.state: dict[str, Any] = {}         # of whoever fills it
        self.complete = False

    # ---------------------------------------------------------------- opening

    @classmethod
    def load(cls, path: Path) -> Dataset:
        """What is there.

        Raises
        ------
        ConfigError
            If there is no manifest, or it cannot be read.
        """
        try:
            found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            if found["version"] != VERSION:
                raise ConfigError(f"{path}: this build reads datasets of version {VERSION}, "
                                  f"found {found['version']}")
            out = cls(path, found["kind"], found["request"])
            out.parts = [Part(**part) for part in found["parts"]]
            out.state, out.complete = found["state"], found["complete"]
            return out
        except FileNotFoundError:
            raise ConfigError(f"{path}: wanted a dataset, found no {MANIFEST}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path / MANIFEST}: wanted a manifest, found: {error}") from None

    @contextlib.contextmanager
    def held(self) -> Iterator[Dataset]:
        """Alone with it; parts that the manifest does not name are removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BusyError(f"{self.path}: another process is writing there") from None
            if (self.path / MANIFEST).exists():
                there = self.load(self.path)
                if (there.kind, there.request) != (self.kind, self.request):
                    raise ConfigError(f"{self.path}: holds another request: {there.request}")
                self.parts, self.state, self.complete = there.parts, there.state, there.complete
            known = {part.file for part in self.parts} | {MANIFEST}
            for found in self.path.iterdir():
                if found.name not in known:     # written, and killed before it counted
                    if found.suffix not in (".parquet", ".tmp"):
                        raise ConfigError(f"{self.path}: wanted a directory of its own, found "
                                          f"{found.name}")
                    found.unlink()
            yield self
        finally:
            os.close(fd)

    # ---------------------------------------------------------------- writing

    def add(self, symbol: str, columns: Mapping[str, Sequence[Any]]) -> Part | None:
        """Write a part; it counts from the next :meth:`commit` on."""
        times = columns[tables.TIME[self.kind]]
        if not len(times):
            return None
        name = f"part-{len(self.parts) + 1:06}.parquet"
        temporary = self.path / f"{name}.tmp"
        tables.write(temporary, self.kind, columns)
        _sync(temporary)
        part = Part(name, symbol, len(times), int(min(times)), int(max(times)), _sha256(temporary))
        os.replace(temporary, self.path / name)
        self.parts.append(part)
        return part

    def commit(self) -> None:
        """What was added, and the state, are on disk when this returns."""
        temporary = self.path / f"{MANIFEST}.tmp"
        temporary.write_text(json.dumps({
            "version": VERSION, "kind": self.kind, "request": self.request,
            "complete": self.complete, "state": self.state,
            "parts": [asdict(part) for part in self.parts]}, indent=1) + "\n", encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, self.path / MANIFEST)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # ---------------------------------------------------------------- looking

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of its parts."""
        return sum((self.path / part.file).stat().st_size for part in self.parts
                   if (self.path / part.file).exists())

    @property
    def symbols(self) -> list[str]:
        return sorted({part.symbol for part in self.parts if part.symbol}
                      | set(self.request.get("symbols", ())))

    def verify(self) -> tuple[list[str], list[str]]:
        """What is wrong, and what is worth knowing; a line each."""
        wrong, notes = [], []
        seen: dict[str, int] = {}
        ids: dict[str, set[str]] = {}           # of the trades at the newest time of each symbol
        minutes = self.request.get("timeframe") == "1Min"
        if not self.complete:
            notes.append("not complete: the same command again goes on")
        for part in self.parts:
            path = self.path / part.file
            if not path.exists():
                wrong.append(f"{part.file} is missing")
                continue
            if _sha256(path) != part.sha256:
                wrong.append(f"{part.file} was changed: its SHA-256 is another one")
                continue
            kind, table = tables.read(path)
            times = table[tables.TIME[kind]].to_pylist()
            names = table["symbol"].to_pylist()
            names_of = table["id"].to_pylist() if kind == "trades" else None
            if len(times) != part.rows:
                wrong.append(f"{part.file}: {part.rows} rows wanted, {len(times)} found")
            gaps = 0
            for row, (symbol, ts) in enumerate(zip(names, times, strict=True)):
                before = seen.get(symbol)
                if before is not None and ts < before:
                    wrong.append(f"{part.file} row {row + 1}: {symbol} goes back in time, "
                                 f"{ts} after {before}")
                    break
                if kind == "bars" and before is not None:
                    if ts == before:
                        wrong.append(f"{part.file} row {row + 1}: {symbol} has two bars at {ts}")
                        break
                    gaps += minutes and MINUTE < ts - before < 60 * MINUTE
                if names_of is not None and (name := names_of[row]):
                    # In order of time, so the same trade has the same time: parts included.
                    there = ids.setdefault(symbol, set())
                    if ts != before:
                        there.clear()
                    if name in there:
                        wrong.append(f"{part.file} row {row + 1}: trade {name} of {symbol} "
                                     "stands there twice")
                        break
                    there.add(name)
                seen[symbol] = ts
            if gaps:
                notes.append(f"{part.file}: {gaps} gaps of less than an hour between minute bars")
        return wrong, notes


def find(root: Path) -> list[Dataset]:
    """The datasets in *root*, by name."""
    if not root.is_dir():
        raise ConfigError(f"{root}: wanted a directory of datasets, found none")
    return [Dataset.load(path.parent) for path in sorted(root.glob(f"*/{MANIFEST}"))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
