"""A backtest: the live pipeline's stages over a recording, in one thread, on event time."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from hftpipe import build, recording, schema
from hftpipe.backtest._replay import Inline, replay_intents
from hftpipe.backtest._sim import SimWire
from hftpipe.backtest.readers import FORMATS, Format, Reader, open_recording
from hftpipe.errors import DataError, MismatchError

if TYPE_CHECKING:
    from hftpipe._strategy import Strategy
    from hftpipe.config import Config

STAGES = ("feed", "book", "signal", "risk", "gateway", "ledger")
STORES = tuple(f"{name}.store" for name in STAGES)
DRAIN_AT = 0.5                  # of a store link's capacity
Strategies = Callable[[numpy.ndarray[Any, Any]], "list[Strategy]"]


class OwnReader(Reader):
    """Market data of one of our own recordings."""

    def __init__(self, path: Path, symbols: Any = None, chunk: int = 8192) -> None:
        super().__init__(path, symbols, chunk)
        self.recording = recording.Recording(path)
        self.format = "hftpipe"
        self.instruments = self.recording.instruments
        self.utc_offset = self.recording.utc_offset
        self._index: dict[int, int] | None = None       # in the file -> in the table
        if symbols is not None:
            names = [row["symbol"].decode() for row in self.instruments]
            self._missing(names)
            chosen = [names.index(symbol) for symbol in symbols]
            self._index = {old: new for new, old in enumerate(chosen)}
            self.instruments = self.instruments[chosen]

    def __iter__(self) -> Iterator[numpy.ndarray[Any, Any]]:
        # A block of the file ends where the store's batch did, which may be inside a message.
        rest = numpy.zeros(0, schema.dtype(schema.MARKET))
        for found in self._records():
            if len(rest):
                found = numpy.concatenate([rest, found])
            ends = numpy.flatnonzero(found["flags"] & schema.MARKET_FLAG.LAST)
            whole = int(ends[-1]) + 1 if len(ends) else 0
            rest = found[whole:]
            if whole:
                yield self._chosen(found[:whole])
        if len(rest):
            yield self._chosen(rest)

    def _records(self) -> Iterator[numpy.ndarray[Any, Any]]:
        """MARKET records of this version as the file has them."""
        want = schema.dtype(schema.MARKET)
        for kind, _, found in self.recording.events(schema.STREAM.FEED):
            if self.recording.descriptors[kind]["name"] != schema.MARKET.name:
                continue
            out = numpy.zeros(len(found), want)
            for name in want.names or ():
                if name in (found.dtype.names or ()) and name != "link_seq":
                    out[name] = found[name]
            yield out

    def _chosen(self, found: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """Without instruments that were not asked for, the others renumbered."""
        if self._index is None:
            return found
        out = found[numpy.isin(found["instrument"], list(self._index))]
        if len(out):
            places = numpy.zeros(max(self._index) + 1, "<u2")
            places[list(self._index)] = list(self._index.values())
            out["instrument"] = places[out["instrument"]]
        return out


def _is_own(path: Path, head: bytes) -> bool:
    return head.startswith(recording.MAGIC)


FORMATS["hftpipe"] = Format(_is_own, OwnReader, "recording of a run of ours")


@dataclass
class Result:
    """What a backtest did; money in nanocash."""

    data: str
    format: str
    symbols: list[str]
    events: int = 0
    messages_dropped: int = 0
    span_ns: int = 0
    intents: int = 0
    denied: dict[str, int] = field(default_factory=dict)
    orders: int = 0
    fills: int = 0
    realised: int = 0
    pnl: int = 0
    positions: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds if self.seconds else 0.0


def backtest(path: str | Path, config: Config, strategies: Strategies, *,
             symbols: list[str] | None = None, latency: int = 100_000,
             record: str | Path | None = None,
             progress: Callable[[int, int], None] | None = None) -> Result:
    """Drive the pipeline over a recording.

    Parameters
    ----------
    path : path-like
        ITCH, LOBSTER, Binance, Coinbase, Kraken lines or a recording of ours.
    config : Config
        Risk limits and gateway; the instruments come from the recording.
    strategies : callable
        Makes the strategies for an instrument table.
    symbols : list of str, optional
        Only these.
    latency : int, ns
        One way to the simulated venue.
    record : path-like, optional
        Write every stored event there, as a live run would.
    progress : callable, optional
        Called now and then with (events so far, event time reached in ns).

    Raises
    ------
    DataError
        If the recording is unreadable, malformed or cut off; nothing after that point ran.
    """
    reader = open_recording(path, symbols=symbols)
    table = reader.instruments
    out = Result(str(path), reader.format, [row["symbol"].decode() for row in table])
    links = build.PrivateLinks(store=record is not None)
    wires: list[SimWire] = []

    def wire(made: list[Any]) -> SimWire:
        wires.append(SimWire(made[1].handles, latency))
        return wires[0]

    made = build.stages(STAGES, links, config, table, strategies=lambda: strategies(table),
                        wire=wire)
    offset = int(getattr(reader, "utc_offset", 0))
    inline: Any = Inline(*made, wires[0], offset)   # type: ignore[arg-type]
    writer = recording.Writer(record, table, run=1, utc_offset=offset, profile="backtest",
                              config={"latency_ns": latency}) if record else None
    first = last = 0
    began = time.perf_counter()
    try:
        for chunk in reader:
            if not len(chunk):
                continue
            first = first or int(chunk["ts_recv"][0])
            last = int(chunk["ts_recv"][-1])
            at = 0
            while at < len(chunk):
                taken = inline.run(chunk[at:])
                at += taken
                if writer is not None:
                    _drain(links, writer, 0.0 if not taken else DRAIN_AT)
                elif not taken:
                    raise DataError(f"{path}: a venue message at event {out.events + at} has more "
                                    f"records than the market link holds")
            out.events += len(chunk)
            if progress is not None:
                progress(out.events, last)
        inline.finish()
        out.seconds = time.perf_counter() - began
        if writer is not None:
            _drain(links, writer, 0.0)
    finally:
        inline.close()
        if writer is not None:
            writer.close()
    _, book, signal, risk, gateway, ledger = made
    out.span_ns = last - first
    out.messages_dropped = book.counters["drops"]
    out.intents = signal.counters["intents"]
    out.orders = gateway.counters["orders_sent"]
    out.fills = gateway.counters["fills"]
    out.denied = {k: v for k, v in risk.refusals.items() if v}
    totals = ledger.totals
    out.realised, out.pnl = totals["realised"], totals["day_pnl"]
    for i, row in enumerate(table):
        view = ledger.position(i)
        if view["qty"] or view["realised"]:
            out.positions[row["symbol"].decode()] = view
    return out


def _drain(links: build.PrivateLinks, writer: recording.Writer, above: float) -> None:
    """Move stored events into the recording, from links filled beyond *above*."""
    for name in STORES:
        ring = links.consumer(name)
        if ring is None or ring.occupancy <= above:
            continue
        stream = getattr(schema.STREAM, name.split(".")[0].upper())
        while len(slots := ring.peek(8192)):
            writer.write(stream, recording.raw(slots, ring.record))
            ring.release(len(slots))
        ring.flush()


@dataclass
class Verification:
    """Whether a live run's intents come out again."""

    market_events: int
    order_events: int
    intents: int
    first_difference: str = ""


def verify_intents(path: str | Path, strategies: Strategies) -> Verification:
    """Drive a live run's recording, with its recorded venue answers, and compare the intents.

    Parameters
    ----------
    path : path-like
        A recording that a live run wrote.
    strategies : callable
        Makes the run's strategies again; see ``Recording.config``.

    Raises
    ------
    MismatchError
        At the first intent that differs, is missing or is one too many.
    DataError
        If the recording is not one of a live run from its beginning.
    """
    found = recording.Recording(path)
    heads, markets = found.collect(schema.MARKET, schema.STREAM.FEED)
    _, events = found.collect(schema.ORDER_EVENT, schema.STREAM.GATEWAY)
    _, takes = found.collect(schema.TAKE, schema.STREAM.SIGNAL)
    _, wanted = found.collect(schema.INTENT, schema.STREAM.SIGNAL)
    if not len(heads) or heads["event"][0] != schema.event_id(schema.STREAM.FEED, 1):
        raise DataError(f"{path}: wanted a run recorded from its first market event, found "
                        f"{'none' if not len(heads) else hex(int(heads['event'][0]))}")
    order = {int(e): i for i, e in enumerate(events["event"])}
    unknown = [int(t) for t in takes["taken"] if int(t) not in order]
    if unknown:
        raise DataError(f"{path}: the signal stage took order event {unknown[0]:#x}, which the "
                        f"recording does not hold")
    taken = events[[order[int(t)] for t in takes["taken"]]]
    links = build.PrivateLinks({"feed.book": 16384}, store=False)
    from hftpipe.config import Config
    feed, book, signal = build.stages(
        ("feed", "book", "signal"), links, Config(), found.instruments,
        strategies=lambda: strategies(found.instruments))
    feeder, out = links.producer("gateway.signal"), links.consumer("signal.risk")
    assert feeder is not None and out is not None
    other = [links.consumer(n) for n in ("book.risk", "book.ledger")]
    dtype = schema.dtype(schema.INTENT)
    rows = iter(wanted)
    count = 0

    for data in replay_intents(feed, book, signal, feeder, out,  # type: ignore[arg-type]
                               markets, taken, takes, [r for r in other if r]):
        got = numpy.frombuffer(data, dtype)[0]
        want = next(rows, None)
        if want is None:
            raise MismatchError(f"intent {count + 1} of the replay was not in the run: {got}")
        for name in dtype.names or ():
            if name not in ("link_seq", "hop") and got[name] != want[name]:
                raise MismatchError(f"intent {count + 1}: {name} was {want[name]} in the run, "
                                    f"is {got[name]} in the replay")
        count += 1
    if next(rows, None) is not None:
        raise MismatchError(f"the run had {len(wanted)} intents, the replay {count}")
    return Verification(len(markets), len(taken), count)
