"""``hftpipe journal``: what is on disk before PostgreSQL has it, looked at without either."""
from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hftpipe.cli._common import Settings, columns, count, emit, shared
from hftpipe.errors import DataError, MismatchError, UsageError

if TYPE_CHECKING:
    from hftpipe._control import Control
    from hftpipe.journal.check import Block
    from hftpipe.journal.runs import Place

QUIET = 2.0                     # s without a word about progress

_run = click.argument("run", required=False)
_stream = click.option("--stream", "streams", metavar="NAME", multiple=True,
                       help="Only events of this stream, such as signal; may be repeated.")


@click.group("journal", no_args_is_help=False, epilog="Example: hftpipe journal verify",
             help="""The journal: list, verify, print and export what is on disk.

Works during a run and after it, with PostgreSQL or without. RUN is a run's name as `status` prints
it, the newest by default. A live run's journal is read as far as it is known to be on disk.""")
@shared
def command() -> None:
    pass


# ---------------------------------------------------------------- finding it

def base(settings: Settings) -> Path:
    """Where the journals are."""
    from hftpipe.journal import runs
    return runs.base(settings.load().journal.directory, settings.directory().path)


def page(place: Place) -> Control | None:
    """The control page of a run that has not ended in good order, while there is one."""
    from hftpipe import shm
    from hftpipe.errors import HftpipeError
    if place.end() is not None or place.run not in shm.runs():
        return None
    try:
        return shm.control(place.run)
    except HftpipeError:                        # another version's, or just gone
        return None


def durable(place: Place) -> int | None:
    """Records that are known to be on disk, of a run that goes on or was killed; else None."""
    control = page(place)
    return None if control is None else control.durable()


class Progress:
    """One line about how far it is, on a terminal, from two seconds on."""

    def __init__(self, settings: Settings) -> None:
        self._wanted = sys.stderr.isatty() and not settings.json
        self._next = time.monotonic() + QUIET
        self._open = False

    def __call__(self, records: int) -> None:
        if self._wanted and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.5
            self._open = True
            print(f"\r\x1b[2K{count(records)} records", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if self._open:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def chosen(streams: tuple[str, ...]) -> set[int] | None:
    """Numbers of the streams named; None for all."""
    from hftpipe import schema
    known = {name.lower(): number for name, number, _ in schema.STREAM.members if number}
    for name in streams:
        if name.lower() not in known:
            raise UsageError(f"stream must be one of {', '.join(known)}, was {name!r}")
    return {known[name.lower()] for name in streams} or None


# ---------------------------------------------------------------- ls

@command.command("ls", epilog="Example: hftpipe journal ls -o json",
                 help="List the journals: run, state, segments, records, size.")
@shared
@click.pass_obj
def ls(settings: Settings) -> None:
    from hftpipe import shm
    from hftpipe.journal import runs, segment
    found: list[dict[str, Any]] = []
    where = base(settings)
    for place in runs.places(where):
        paths = segment.listing(place.directory)
        end, control = place.end(), page(place)
        state = ("stored" if place.stored else "ended" if end is not None
                 else "running" if control is not None and shm.alive(*control.supervisor)
                 else "killed")
        first = segment.number_of(paths[0]) if paths else 1
        last = end[0] if end is not None else None if control is None else control.durable()
        found.append({
            "run": f"{place.run:x}", "state": state, "segments": len(paths), "first": first,
            "last": last, "started_ns": place.run,
            "bytes": sum(os.stat(p).st_blocks * 512 for p in place.directory.iterdir()),
            "directory": str(place.directory)})
    rows = [(f["run"], f["state"], f["segments"], count(f["first"]),
             "?" if f["last"] is None else count(f["last"]), count(f["bytes"]),
             time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(f["started_ns"] / 1e9)))
            for f in found]
    emit(settings, {"directory": str(where), "journals": found},
         columns(rows, ("run", "state", "segments", "first", "last", "bytes", "started"))
         if rows else [f"no journal in {where}"])


# ---------------------------------------------------------------- verify

@command.command("verify", epilog="Example: hftpipe journal verify 18e9c2a7f3b1d00 -o json",
                 help="""Read every record of a journal and check all that can be checked.

Exit code 0: whole; a torn write at the end of a run that the host went down with is reported and no
damage, nobody was told that it is on disk. 9: damaged; file, offset and what was found are named.
4: no such journal.""")
@_run
@shared
@click.pass_obj
def verify(settings: Settings, run: str | None) -> None:
    from hftpipe import schema
    from hftpipe.journal import check, runs
    place = runs.find(base(settings), run)
    live = durable(place)
    seen, progress = check.Walk(), Progress(settings)
    began = time.monotonic()
    try:
        for block in check.walk(place.directory, place.run, seen, durable=live):
            bodies(block)
            progress(seen.records)
    finally:
        progress.end()
    took = time.monotonic() - began
    streams = {schema.STREAM.label(s): {"first": seen.base[s] + 1, "last": n}
               for s, n in seen.seqs.items()}
    data: dict[str, Any] = {
        "run": f"{place.run:x}", "ok": True, "records": seen.records, "first": seen.first,
        "last": seen.last, "bytes": seen.bytes, "segments": seen.segments,
        "torn_bytes": seen.torn, "torn_at": seen.torn_at, "streams": streams,
        "ended": place.end() is not None, "seconds": round(took, 3)}
    lines = [f"run {place.run:x}   {count(seen.records)} records, {seen.first} to {seen.last}, in "
             f"{seen.segments} segments, {count(seen.bytes)} bytes: whole",
             *columns([(name, count(s["first"]), count(s["last"]))
                       for name, s in streams.items()], ("stream", "first", "last"))]
    if seen.torn:
        lines.append(f"a write of {count(seen.torn)} bytes was cut off at {seen.torn_at}; the next "
                     "start takes it away")
    emit(settings, data, lines)


def bodies(block: Block) -> None:
    """Check every body against its envelope's checksum and its record's size."""
    import numpy

    from hftpipe import schema
    from hftpipe.store.verify import checksum
    for size in numpy.unique(block.sizes):
        mine = numpy.flatnonzero(block.sizes == size)
        slots = block.slots(mine, int(size))
        heads = slots[:, :schema.ENVELOPE.size].copy().view(schema.dtype(schema.ENVELOPE))[:, 0]
        for kind in numpy.unique(heads["record"]):
            which = numpy.flatnonzero(heads["record"] == kind)
            at = f"journal {block.path} at {int(block.offsets[mine[which[0]]])}"
            record = schema.BODIES.get(int(kind))
            if record is None or (heads["lines"][which] != record.size // 64).any():
                raise MismatchError(f"{at}: wanted the body of a stored record, found record "
                                    f"{int(kind)} of {int(heads['lines'][which[0]])} lines")
            words = slots[which, 64:64 + record.size].copy().view("<u8")
            wrong = numpy.flatnonzero(checksum(words) != heads["checksum"][which])
            if len(wrong):
                i = mine[which[wrong[0]]]
                raise MismatchError(
                    f"journal {block.path} at {int(block.offsets[i])}: body of event "
                    f"{int(heads['event'][which[wrong[0]]]):#x} is not what its envelope says")


# ---------------------------------------------------------------- dump

@command.command("dump", epilog="Example: hftpipe journal dump --stream gateway --limit 20",
                 help="Print events with every field, in the order in which they came to the disk.")
@_run
@_stream
@click.option("--from", "start", metavar="N", type=click.IntRange(1), default=1, show_default=True,
              help="Number of the first record.")
@click.option("--limit", metavar="N", type=click.IntRange(0), default=100, show_default=True,
              help="At most so many; 0 = all.")
@shared
@click.pass_obj
def dump(settings: Settings, run: str | None, streams: tuple[str, ...], start: int,
         limit: int) -> None:
    from hftpipe.journal import runs
    wanted = chosen(streams)
    place = runs.find(base(settings), run)
    offset = int(place.meta()["utc_offset"])
    left = limit or -1
    first = True
    if settings.json:
        print(f'{{"run": "{place.run:x}", "events": [', end="")
    for event in events(place, wanted, start, offset):
        if not left:
            break
        left -= 1
        if settings.json:
            print(("" if first else ",\n") + json.dumps(event), end="")
        else:
            print(line(event))
        first = False
    if settings.json:
        print("]}")


def events(place: Place, streams: set[int] | None, start: int, offset: int,
           ) -> Iterator[dict[str, Any]]:
    """Every event from record *start* on as a JSON-ready document; *offset* makes times UTC."""
    import numpy

    from hftpipe import schema
    from hftpipe.journal import check
    for block in check.walk(place.directory, place.run, durable=durable(place)):
        if block.number + len(block.offsets) <= start:
            continue
        for i in range(max(0, start - block.number), len(block.offsets)):
            stream = int(block.streams[i])
            if streams is not None and stream not in streams:
                continue
            raw = block.slots(numpy.array([i]), int(block.sizes[i])).tobytes()
            head = numpy.frombuffer(raw[:64], schema.dtype(schema.ENVELOPE))[0]
            record = schema.BODIES.get(int(head["record"]))
            if record is None:
                raise DataError(f"journal {block.path} at {int(block.offsets[i])}: wanted a known "
                                f"record, found {int(head['record'])}")
            body = numpy.frombuffer(raw[64:64 + record.size], schema.dtype(record))[0]
            yield {"number": block.number + i, "stream": schema.STREAM.label(stream),
                   "seq": int(block.seqs[i]), "record": record.name,
                   "time_ns": int(head["ts"]) + offset,
                   "cause": f"{int(head['cause']):#x}" if head["cause"] else None,
                   "body": {f.name: _value(body[f.name]) for f in record.fields
                            if f.column is not None}}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("ascii", "replace")
    plain = value.item()
    return plain if not isinstance(plain, float) or math.isfinite(plain) else None


def line(event: dict[str, Any]) -> str:
    """One event for people."""
    from hftpipe.rundir import utc_text
    body = "  ".join(f"{k}={v}" for k, v in event["body"].items() if v)
    return (f"{event['number']:>10}  {utc_text(event['time_ns'])}  "
            f"{event['stream']}:{event['seq']}  {event['record']}  {body}")


# ---------------------------------------------------------------- export

@command.command("export", epilog="Example: hftpipe journal export --out run.rec",
                 help="""Write a journal's events into a recording for `hftpipe backtest --data`.

A journal whose first segments were removed, because PostgreSQL has them, gives the rest.""")
@_run
@_stream
@click.option("--out", metavar="FILE", required=True, help="The new recording; must not exist.")
@shared
@click.pass_obj
def export(settings: Settings, run: str | None, streams: tuple[str, ...], out: str) -> None:
    import numpy

    from hftpipe import recording, worker
    from hftpipe.journal import check, runs
    wanted = chosen(streams)
    place = runs.find(base(settings), run)
    meta = place.meta()
    path = worker.recording_path(out)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    seen, progress, written = check.Walk(), Progress(settings), 0
    try:
        with recording.Writer(part, place.table(meta), place.run, int(meta["utc_offset"]),
                              str(meta["profile"]), {"toml": meta["toml"]}) as writer:
            for block in check.walk(place.directory, place.run, seen, durable=durable(place)):
                # Runs of one stream, so that the order of the journal stays.
                bounds = numpy.flatnonzero(numpy.diff(block.streams)) + 1
                for piece in numpy.split(numpy.arange(len(block.offsets)), bounds):
                    stream = int(block.streams[piece[0]])
                    if wanted is None or stream in wanted:
                        writer.write(stream, block.slots(piece, int(block.sizes[piece[0]])))
                        written += len(piece)
                progress(seen.records)
        try:
            os.link(part, path)                 # unlike rename, never overwrites
        except OSError as error:
            raise DataError(f"cannot write recording {path}: {error.strerror}") from None
    finally:
        progress.end()
        part.unlink(missing_ok=True)
    data: dict[str, Any] = {
        "run": f"{place.run:x}", "out": str(path), "events": written,
        "bytes": path.stat().st_size, "first": seen.first,
        "last": seen.last}
    left = f"   records before {seen.first} were removed" if seen.first > 1 else ""
    emit(settings, data, [f"{path}   run {place.run:x}   {count(written)} events   "
                          f"{count(data['bytes'])} bytes{left}"])

