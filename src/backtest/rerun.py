"""A journaled run once more: every event that its stages stored must come out again.

What came from outside (market data, the venue's words, figures, people) is taken from the
journal; books, signals, verdicts, the life of each order and the positions are made again, by
the same stages, and compared with the journal byte for byte.  Hop times aside: they are readings
of a clock that nothing depends on (`VOLATILE`).
"""
from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from hftpipe import _control, _ring, build, config, schema, topology
from hftpipe.backtest import _rerun
from hftpipe.backtest.run import exchanges, tell_late
from hftpipe.errors import DataError, HftpipeError
from hftpipe.journal import check

if TYPE_CHECKING:
    from hftpipe._ring import Ring
    from hftpipe._strategy import Strategy
    from hftpipe.journal.runs import Place

Array = numpy.ndarray[Any, Any]
STAGES = ("book", "signal", "risk", "gateway", "ledger")
CAPACITY = 8192                 # of each ring
# Readings of the clock that decide nothing, by record; what is not named must be the same.
VOLATILE = {"market": ("hop",), "intent": ("hop",), "signal": ("elapsed",)}
VOLATILE_ENVELOPE = ("link_seq", "ts", "ts_in", "checksum")     # the last is that of such a body
LOST = 2_000_000_000            # ns before the end of a killed run that need not come again
TURN = schema.RECORD.TURN
BODY = schema.ENVELOPE.size


@dataclass
class Difference:
    """The first event that is not as it was."""

    stream: str
    seq: int
    record: str
    field: str                  # first that differs; "" = one of both is not there
    was: str                    # its value in the run
    now: str
    recorded: bytes = b""       # whole slots
    replayed: bytes = b""

    def __str__(self) -> str:
        what = f"{self.stream} event {self.seq:,}"
        if not self.field:
            return f"{what}: wanted {self.was}, found {self.now}"
        return f"{what} ({self.record}): {self.field} was {self.was} in the run, is {self.now} now"


@dataclass
class Report:
    """What a replay came to."""

    run: int
    ended: bool                 # the run ended in good order: its journal has all of it
    events: int = 0             # of the run
    given: int = 0              # of them from outside: taken, not made again
    same: int = 0               # made again, and equal
    unfinished: int = 0         # the last ones of a killed run: what led to them was lost
    orders: int = 0
    fills: int = 0
    span_ns: int = 0            # of the run
    seconds: float = 0.0        # of the replay
    loading: float = 0.0        # of reading the journal
    sha256: str = ""            # of what was compared, hop times zero
    difference: Difference | None = None
    streams: dict[str, tuple[int, int]] = field(default_factory=dict)   # recorded, made again

    @property
    def identical(self) -> bool:
        return self.difference is None

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds if self.seconds else 0.0


@dataclass
class Journaled:
    """The events of a run by stream: (n, slot) uint8, C order."""

    run: int
    meta: Mapping[str, Any]
    ended: bool                 # every stage in good order
    rows: dict[int, Array]

    def bodies(self, stream: int, record: schema.Record) -> Array:
        """Those of one record, in order."""
        rows = self.rows[stream]
        number = getattr(schema.RECORD, record.name.upper())
        mine = rows[self.kinds(stream) == number][:, BODY:BODY + record.size]
        return numpy.ascontiguousarray(mine).view(schema.dtype(record))[:, 0]

    def kinds(self, stream: int) -> Array:
        """The record of each event of a stream."""
        return self.rows[stream][:, schema.ENVELOPE.offsets["record"]]

    def stamps(self, stream: int) -> Array:
        """When each was stored."""
        at = schema.ENVELOPE.offsets["ts"]
        return numpy.ascontiguousarray(self.rows[stream][:, at:at + 8]).view("<i8")[:, 0]


def load(place: Place, durable: int | None = None,
         progress: Callable[[int], None] | None = None) -> Journaled:
    """Read all of a run's journal.

    Parameters
    ----------
    place : Place
    durable : int, optional
        Records to read of a run that goes on.
    progress : callable, optional
        Called now and then with the records read.

    Raises
    ------
    DataError
        If the journal cannot be read, or does not say what its run began with.
    MismatchError
        If it is damaged, or does not begin with the run's first events.
    """
    meta = place.meta()
    if not isinstance(meta.get("begin"), dict):
        raise DataError(f"journal {place.directory}: wanted what the stages began with, found "
                        "none: an earlier version wrote it")
    sizes = {topology.stream(link.producer): schema.BY_NAME[link.record].size
             for link in topology.LINKS if link.consumer == "store"}
    parts: dict[int, list[Array]] = {stream: [] for stream in sizes}
    seen = check.Walk()
    for block in check.walk(place.directory, place.run, seen, durable=durable):
        for number in numpy.unique(block.streams):
            stream = int(number)
            mine = block.streams == number
            if stream not in sizes or (block.sizes[mine] != sizes[stream]).any():
                raise DataError(f"journal {block.path}: wanted slots of this version, found "
                                f"others of {schema.STREAM.label(stream)}")
            parts[stream].append(block.slots(mine, sizes[stream]))
        if progress is not None:
            progress(seen.records)
    if seen.first != 1:
        raise DataError(f"journal {place.directory}: wanted all of the run, found it from record "
                        f"{seen.first:,} on: what PostgreSQL has was removed")
    rows = {stream: numpy.concatenate(found) if found
            else numpy.zeros((0, sizes[stream]), numpy.uint8) for stream, found in parts.items()}
    return Journaled(place.run, meta, place.orderly, rows)


def masks() -> Array:
    """(256, 40) uint64: which bits of each word of a slot must be the same, by record."""
    out = numpy.zeros((256, 40 * 8), numpy.uint8)
    out[:] = 0xff

    def clear(number: int, record: schema.Record, names: tuple[str, ...], at: int) -> None:
        for f in record.fields:
            if f.name in names:
                begin = at + record.offsets[f.name]
                out[number, begin:begin + f.size] = 0

    for number, record in schema.BODIES.items():
        clear(number, schema.ENVELOPE, VOLATILE_ENVELOPE
              + (("aux",) if record.name == "intent" else ()), 0)
        clear(number, record, VOLATILE.get(record.name, ()), BODY)
        if record.linked:
            out[number, BODY:BODY + 8] = 0
    return out.view("<u8")


class Links(build.PrivateLinks):
    """Rings of this process, each link cut in two; see ``_rerun``."""

    def __init__(self, given: Mapping[str, Array]) -> None:
        self._ends: dict[str, tuple[Ring, Ring]] = {}
        self.stores: dict[str, Ring] = {}
        self.queues: dict[str, _rerun.Queue] = {}
        for link in topology.LINKS:
            record = schema.BY_NAME[link.record]
            if link.consumer == "store":
                if link.producer in STAGES:
                    self._ends[link.name] = ends = _ring.pair(record, CAPACITY)
                    self.stores[link.producer] = ends[1]
            elif link.consumer in STAGES:
                source = None
                into, out = _ring.pair(record, CAPACITY)
                writer: Ring = into             # of who does not run here: nobody's
                if link.name not in given:
                    writer, source = _ring.pair(record, CAPACITY)
                self._ends[link.name] = (writer, out)
                self.queues[link.name] = _rerun.Queue(
                    source, into, given.get(link.name),
                    source is not None and (link.consumer == "signal") != (
                        link.producer == "signal"))


def page(meta: Mapping[str, Any]) -> _control.Control:
    """A control page of one's own, as the run's was when it began."""
    begin = meta["begin"]
    memory = mmap.mmap(-1, _control.SIZE)           # aligned
    _control.format(memory, run=1, stages=[s.name for s in topology.STAGES],
                    utc_offset=int(meta["utc_offset"]), token_key=int(begin["token_key"]),
                    limits_version=int(begin["limits_version"]))
    return _control.Control(memory)


def turns(rows: Array, kinds: Array) -> _rerun.Turns:
    """The turns of a stream, in order."""
    record = schema.TURN
    found = numpy.ascontiguousarray(rows[kinds == TURN][:, BODY:BODY + record.size]).view(
        schema.dtype(record))[:, 0]
    n = len(found)

    def all_of(name: str, dtype: str) -> Array:
        out = numpy.empty((n, 3), dtype)
        for k in range(3):
            out[:, k] = found[f"{name}_{k + 1}"]
        return out.reshape(-1)

    kind = all_of("kind", "u1")
    there = kind != 0
    last = there.reshape(n, 3).copy()               # of its record
    last[:, :2] &= ~last[:, 1:]
    at = (numpy.repeat(found["began"], 3) + all_of("after", "<i8"))[there]
    took = numpy.stack([all_of(name, "u1")[there] for name in
                        ("first", "second", "third", "fourth")], axis=1)
    return _rerun.Turns(at, all_of("many", "<u4")[there], numpy.ascontiguousarray(took),
                        kind[there], all_of("flags", "u1")[there], all_of("rest", "<u2")[there],
                        last.reshape(-1)[there].view("u1"))


def replay(found: Journaled, strategies: Callable[[config.Config, Array], list[Strategy]],
           begun: Callable[[Mapping[str, Any]], tuple[Any, dict[str, Any] | None]], *,
           model: Callable[[int], Path] | None = None,
           progress: Callable[[int], None] | None = None) -> Report:
    """Run *found* once more and compare.

    Parameters
    ----------
    found : Journaled
    strategies : callable
        Makes the strategies of a configuration for an instrument table.
    begun : callable
        ``worker.begun``: books and gate that the run began with, of what its journal says.
    model : callable, optional
        The file of a model by its id, for runs in which one was exchanged.
    progress : callable, optional
        Called now and then with the events made again.

    Returns
    -------
    Report

    Raises
    ------
    DataError
        If the journal lacks what a replay needs.
    HftpipeError
        If a stage or a strategy gives up.
    """
    stream = {name: topology.stream(name) for name in topology.recorded()}
    meta, begin = found.meta, found.meta["begin"]
    made = config.loads(meta["toml"], "the run's configuration", env={})
    table = build.instruments(made)
    out = Report(found.run, found.ended)
    out.events = sum(map(len, found.rows.values()))
    out.given = sum(len(found.rows[s]) for n, s in stream.items() if n not in STAGES)
    out.orders = int((found.bodies(stream["gateway"], schema.ORDER_EVENT)["kind"]
                      == schema.ORDER_EVENT_KIND.SENT).sum())
    out.fills = int(numpy.isin(
        found.bodies(stream["gateway"], schema.ORDER_EVENT)["kind"],
        (schema.ORDER_EVENT_KIND.FILL, schema.ORDER_EVENT_KIND.PARTIAL_FILL)).sum())
    stamps = [s for n in stream.values() if len(s := found.stamps(n)) and (s := s[s > 0]).size]
    if stamps:
        out.span_ns = int(max(s.max() for s in stamps) - min(s.min() for s in stamps))

    def given(source: str, record: schema.Record) -> Array:
        return found.rows[stream[source]][:, BODY:BODY + record.size]

    links = Links({
        "feed.book": numpy.ascontiguousarray(given("feed", schema.MARKET)),
        "updates.gateway": numpy.ascontiguousarray(given("updates", schema.UPDATE)),
        "analyst.risk": numpy.ascontiguousarray(given("analyst", schema.FIGURE)),
        "supervisor.risk": numpy.ascontiguousarray(given("supervisor", schema.FIGURE))})
    past, gate = begun(begin)
    pages = [page(meta) for _ in range(4)]
    tape = _rerun.Tape()
    parts = strategies(made, table)
    tell_late(found.bodies(stream["signal"], schema.SIGNAL), parts)
    common: dict[str, Any] = {"gate": gate, "past": past}
    stages = [build.stages((name,), links, made, table, control=pages[k],
                           strategies=lambda: parts, wire=lambda _: tape, **common)[0]
              for name, k in zip(STAGES, (3, 3, 0, 2, 3), strict=True)]
    takes = found.bodies(stream["signal"], schema.TAKE)
    changes = exchanges(found.bodies(stream["signal"], schema.RELOAD), parts, model,
                        f"run {found.run:x}")
    same = masks()
    stored = {name: _rerun.Stored(found.rows[stream[name]], links.stores[name], same, stage)
              for name, stage in zip(STAGES, stages, strict=True)}
    began = time.perf_counter()
    run = _rerun.Rerun(
        tuple(stages), tape, links.queues, stored,
        {name: turns(found.rows[stream[name]], found.kinds(stream[name]))
         for name in ("risk", "gateway", "ledger")},
        numpy.ascontiguousarray(takes["after"]), numpy.ascontiguousarray(takes["room"]), changes,
        pages[0], pages[1], pages[2], topology.INDEX["updates"], int(meta["utc_offset"]))
    try:
        if past is not None:
            ledger: Any = stages[STAGES.index("ledger")]
            for _ in ledger.begin(*past.records([row["symbol"].decode() for row in table])):
                raise HftpipeError("the books have more records than a ring holds")
        run.opened()
        with ThreadPoolExecutor(1, "signal") as pool:
            while run.run(pool):
                if progress is not None:
                    progress(sum(s.same for s in stored.values()))
    finally:
        run.close()
    out.seconds = time.perf_counter() - began
    for name, item in stored.items():
        out.streams[name] = (item.count, item.same)
        out.same += item.same
    out.difference = _first(found, stored, stream)
    if out.difference is None:
        out.unfinished = sum(item.count - item.same for item in stored.values())
        out.sha256 = _digest(found, stream, same)
    return out


def _first(found: Journaled, stored: Mapping[str, _rerun.Stored], stream: Mapping[str, int],
           ) -> Difference | None:
    """The first difference of any stream, if there is one.

    A run that was killed lost what its stages were about to store: the turns of the last moment,
    and so what others took from them.  There a replay may end early, by `LOST`.
    """
    for name, item in stored.items():
        if item.differs:
            return _difference(name, item)
    least = max((int(s.max()) for n in stream.values() if len(s := found.stamps(n))),
                default=0) - LOST
    for name, item in stored.items():
        rest = found.kinds(stream[name])[item.same:]
        stamps = found.stamps(stream[name])[item.same:]
        if len(rest) and (found.ended or ((stamps > 0) & (stamps < least)).any()):
            record = schema.BODIES[int(rest[0])].name
            return Difference(name, item.same + 1, record, "", f"a {record}, as in the run",
                              "no more", item.shown()[0])
        if found.ended and item.beyond:
            return Difference(name, item.count + 1, "", "", "the end of the stream, as in the run",
                              f"{item.beyond:,} more events")
    return None


def _difference(name: str, item: _rerun.Stored) -> Difference:
    """Name the first field in which two slots differ."""
    was, now = item.shown()
    heads = [numpy.frombuffer(s[:BODY], schema.dtype(schema.ENVELOPE))[0] for s in (was, now)]
    record = schema.BODIES[int(heads[0]["record"])]
    out = Difference(name, item.same + 1, record.name, "", "", "", was, now)
    pairs = [(n, heads) for n in heads[0].dtype.names or ()
             if n not in VOLATILE_ENVELOPE and not (n == "aux" and record.name == "intent")]
    if heads[0]["record"] == heads[1]["record"]:
        bodies = [numpy.frombuffer(s[BODY:BODY + record.size], schema.dtype(record))[0]
                  for s in (was, now)]
        pairs += [(n, bodies) for n in bodies[0].dtype.names or ()
                  if n not in ("link_seq", *VOLATILE.get(record.name, ()))]
    for field_name, (a, b) in pairs:
        if a[field_name].tobytes() != b[field_name].tobytes():
            out.field, out.was, out.now = field_name, str(a[field_name]), str(b[field_name])
            break
    return out


def _digest(found: Journaled, stream: Mapping[str, int], same: Array) -> str:
    """SHA-256 of all events, stream by stream, hop times zero."""
    digest = hashlib.sha256()
    for name in topology.recorded():
        rows = found.rows[stream[name]]
        kinds = found.kinds(stream[name])
        words = rows.shape[1] // 8
        for low in range(0, len(rows), 65536):
            part = rows[low:low + 65536].view("<u8")
            digest.update((part & same[kinds[low:low + 65536], :words]).tobytes())
    return digest.hexdigest()


def dump(d: Difference) -> dict[str, Any]:
    """A difference as plain data."""
    return {"stream": d.stream, "seq": d.seq, "record": d.record, "field": d.field, "was": d.was,
            "now": d.now, "recorded": d.recorded.hex(), "replayed": d.replayed.hex()}
