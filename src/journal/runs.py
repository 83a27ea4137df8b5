"""The journals of all runs below one directory: what they are of, and what became of them."""
from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from hftpipe import schema
from hftpipe.errors import DataError, SchemaError
from hftpipe.journal import check, segment
from hftpipe.journal.segment import Disk

STORED = "stored"
META = "run.json"


@dataclass(frozen=True)
class Place:
    """The journal of one run."""

    directory: Path
    run: int

    @property
    def stored(self) -> bool:
        """Whether PostgreSQL is known to have all of it."""
        return (self.directory / STORED).exists()

    def mark_stored(self) -> None:
        """Say that PostgreSQL has all of it."""
        segment.write_file(Disk(), self.directory / STORED, json.dumps({"at": time.time()}))

    @property
    def begun(self) -> bool:
        """Whether it has a segment."""
        return bool(segment.listing(self.directory))

    def describe(self, *, run_dir: str, utc_offset: int, profile: str, table: Any, toml: str,
                 begin: Mapping[str, Any] | None = None) -> None:
        """Make the directory and write down what reading it needs.

        Parameters
        ----------
        run_dir : str
            Whose run it is: nobody else stores it.
        utc_offset : int, ns
            UTC minus the monotonic clock.
        profile : str
        table : (n,) structured array, dtype of INSTRUMENT
        toml : str
            The configuration, without credentials.
        begin : mapping, optional
            What the stages began with, so that they can be run again: books, gate, token_key.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = list(table.dtype.names)
        segment.write_file(Disk(), self.directory / META, json.dumps({
            "run": f"{self.run:x}", "run_dir": run_dir, "utc_offset": utc_offset,
            "profile": profile, "toml": toml, "records": layouts(), "begin": begin,
            "instruments": [{n: row[n].decode() if isinstance(row[n], bytes) else int(row[n])
                             for n in names} for row in table]}))

    def meta(self) -> dict[str, Any]:
        """What :meth:`describe` wrote.

        Raises
        ------
        DataError
            If it is not there or cannot be understood.
        SchemaError
            If the records are laid out otherwise than in this build.
        """
        path = self.directory / META
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["run"] != f"{self.run:x}" or not isinstance(found["records"], dict):
                raise ValueError
        except OSError as e:
            raise DataError(f"journal {path}: {e.strerror}") from None
        except (ValueError, KeyError, TypeError):
            raise DataError(f"journal {path}: wanted what run {self.run:x} was, found something "
                            "else") from None
        mine = layouts()
        other = sorted(n for n, form in found["records"].items() if n in mine and mine[n] != form)
        if other:
            raise SchemaError(f"journal {path}: written with other layouts of {', '.join(other)} "
                              "than this build's; read it with the version that wrote it")
        return dict(found)

    def table(self, meta: Mapping[str, Any]) -> Any:
        """The instruments as (n,) structured array, dtype of INSTRUMENT."""
        rows = meta["instruments"]
        out = numpy.zeros(len(rows), schema.dtype(schema.INSTRUMENT))
        for row, item in zip(out, rows, strict=True):
            for name, value in item.items():
                row[name] = value.encode() if isinstance(value, str) else value
        return out

    def end(self) -> tuple[int, dict[int, int]] | None:
        """Records and last sequence number by stream, if it was ended in good order."""
        found = check.end_of(self.directory)
        if found is None:
            return None
        return int(found["records"]), {int(s): int(n) for s, n in found["streams"].items()}

    @property
    def orderly(self) -> bool:
        """Whether every stage of the run ended in good order, so that nothing of it was lost."""
        found = check.end_of(self.directory)
        return bool(found and found.get("orderly"))


def layouts() -> dict[str, Any]:
    """Fingerprint of everything that a journal holds."""
    return {r.name: f"{r.fingerprint:016x}"
            for r in (schema.ENVELOPE, *schema.SLOTS, *schema.BODIES.values())}


def base(directory: str, run_dir: str | os.PathLike[str]) -> Path:
    """Below which each run has its journal: the configured *directory* or one in *run_dir*."""
    return Path(directory or os.path.join(run_dir, "journal"))


def place(base: Path, run: int) -> Place:
    """The journal of *run* below *base*."""
    return Place(base / f"{run:x}", run)


def places(base: Path) -> list[Place]:
    """All journals below *base*, oldest first."""
    if not base.is_dir():
        return []
    try:
        names = [p.name for p in base.iterdir() if re.fullmatch("[0-9a-f]{1,16}", p.name)]
    except OSError as e:
        raise DataError(f"journal {base}: {e.strerror}") from None
    return sorted((place(base, int(n, 16)) for n in names), key=lambda p: p.run)


def find(base: Path, run: str | None) -> Place:
    """The journal of *run*, as text, or the newest.

    Raises
    ------
    DataError
        If there is none.
    """
    found = places(base)
    if run is not None:
        found = [p for p in found if f"{p.run:x}" == run.lower()]
    if not found:
        raise DataError(f"journal {base}: wanted "
                        + (f"run {run}" if run else "the journal of a run") + ", found none")
    return found[-1]


def expire(base: Path, retain: float, keep: int | None = None) -> list[int]:
    """Remove journals that PostgreSQL has had for *retain* seconds, but run *keep*'s; which."""
    gone = []
    for one in places(base):
        mark = one.directory / STORED
        if one.run == keep or not mark.exists() or mark.stat().st_mtime > time.time() - retain:
            continue
        try:
            shutil.rmtree(one.directory)
        except OSError as e:
            raise DataError(f"journal {one.directory}: cannot be removed: {e.strerror}") from None
        gone.append(one.run)
    return gone
