"""A backtest: the live pipeline's stages over a recording, in one thread, on event time."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from hftpipe import build, limits, recording, schema
from hftpipe.backtest._replay import Inline, replay_intents
from hftpipe.backtest._sim import SimWire
from hftpipe.backtest.readers import open_recording
from hftpipe.errors import DataError, MismatchError

if TYPE_CHECKING:
    from hftpipe._strategy import Strategy
    from hftpipe.config import Config

STAGES = ("feed", "book", "signal", "risk", "gateway", "ledger")
STORES = tuple(f"{name}.store" for name in STAGES)
DRAIN_AT = 0.5                  # of a store link's capacity
Strategies = Callable[[numpy.ndarray[Any, Any]], "list[Strategy]"]


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
    realised: int = 0           # before fees
    fees: int = 0
    pnl: int = 0                # realised and unrealised, less fees
    drawdown: int = 0           # largest fall of the equity from its highest
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

    # Nobody computes figures here, and the file may hold any part of any day.
    config = dataclasses.replace(config, risk=limits.without_figures(
        config.risk, "a backtest has no figures"))
    made: list[Any] = list(build.stages(
        STAGES, links, config, table, strategies=lambda: strategies(table), wire=wire))
    offset = int(getattr(reader, "utc_offset", 0))
    feed, book, signal, risk, gateway, ledger = made
    inline = Inline(feed, book, signal, risk, gateway, ledger, wires[0], offset)
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
            full = False
            while at < len(chunk):
                reached, taken = inline.now, inline.run(chunk[at:])
                at += taken
                if not taken and inline.now == reached and (full or writer is None):
                    raise DataError(f"{path}: a venue message at event {out.events + at} has more "
                                    f"records than the market link holds")
                full = not taken
                if writer is not None:
                    _drain(links, writer, 0.0 if full else DRAIN_AT)
            out.events += len(chunk)
            if progress is not None:
                progress(out.events, last)
        while not inline.finish():
            _drain(links, writer, 0.0)
        out.seconds = time.perf_counter() - began
        if writer is not None:
            _drain(links, writer, 0.0)
    finally:
        inline.close()
        if writer is not None:
            writer.close()
    out.span_ns = last - first
    out.messages_dropped = book.counters["drops"]
    out.intents = signal.counters["intents"]
    out.orders = gateway.counters["orders_sent"]
    out.fills = gateway.counters["fills"]
    out.denied = {k: v for k, v in risk.refusals.items() if v}
    totals = ledger.totals
    out.realised, out.fees, out.pnl = totals["realised"], totals["fees"], totals["pnl"]
    out.drawdown = totals["deepest"]
    for i, row in enumerate(table):
        view = ledger.position(i)
        if view["qty"] or view["realised"]:
            out.positions[row["symbol"].decode()] = view
    return out


def _drain(links: build.PrivateLinks, writer: recording.Writer | None, above: float) -> None:
    """Move stored events into the recording, from links filled beyond *above*."""
    if writer is None:
        return
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


def verify_intents(path: str | Path, strategies: Strategies, config: Config | None = None,
                   model: Callable[[int], Path] | None = None) -> Verification:
    """Drive a live run's recording, with its recorded venue answers, and compare the intents.

    Parameters
    ----------
    path : path-like
        A recording that a live run wrote.
    strategies : callable
        Makes the run's strategies again; see ``Recording.config``.
    config : Config, optional
        The run's: which features it made, and of which bars.  Default: what a run has without
        any configuration.
    model : callable, optional
        The file of a model by its id, for runs in which one was exchanged.

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
    _, signals = found.collect(schema.SIGNAL, schema.STREAM.SIGNAL)
    if not len(heads) or heads["event"][0] != schema.event_id(schema.STREAM.FEED, 1):
        raise DataError(f"{path}: wanted a run recorded from its first market event, found "
                        f"{'none' if not len(heads) else hex(int(heads['event'][0]))}")
    order = {int(e): i for i, e in enumerate(events["event"])}
    unknown = [int(t) for t in takes["taken"] if int(t) not in order]
    if unknown:
        raise DataError(f"{path}: the signal stage took order event {unknown[0]:#x}, which the "
                        f"recording does not hold")
    taken = events[[order[int(t)] for t in takes["taken"]]]
    made = strategies(found.instruments)
    tell_late(signals, made)
    _, reloads = found.collect(schema.RELOAD, schema.STREAM.SIGNAL)
    changes = exchanges(reloads, made, model, str(path))
    links = build.PrivateLinks({"feed.book": 16384}, store=False)
    from hftpipe.config import Config
    feed, book, signal = build.stages(
        ("feed", "book", "signal"), links, config or Config(), found.instruments,
        strategies=lambda: made)
    feeder, out = links.producer("gateway.signal"), links.consumer("signal.risk")
    assert feeder is not None and out is not None
    other = [links.consumer(n) for n in ("book.risk", "book.ledger")]
    dtype = schema.dtype(schema.INTENT)
    rows = iter(wanted)
    count = 0

    for data in replay_intents(feed, book, signal, feeder, out,  # type: ignore[arg-type]
                               markets, taken, takes, [r for r in other if r], changes):
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


def tell_late(signals: numpy.ndarray[Any, Any], strategies: Sequence[Strategy]) -> None:
    """Tell every strategy of a replay which of its answers, SIGNAL records, came too late."""
    late = signals[signals["flags"] & schema.SIGNAL_FLAG.LATE != 0]
    for k, strategy in enumerate(strategies):
        for n, part in enumerate(strategy.parts):
            mine = late[(late["strategy"] == k) & (late["member"] == n)]
            mine = mine[mine["event"].argsort(kind="stable")]
            part.replay(mine["event"].tolist(), mine["flags"].tolist())


def exchanges(reloads: numpy.ndarray[Any, Any], strategies: Sequence[Strategy],
              model: Callable[[int], Path] | None, where: str,
              ) -> list[tuple[int, int, int, int, Any]]:
    """The models that a run exchanged, RELOAD records, as ``replay_intents`` wants them.

    Raises
    ------
    DataError
        If there are some and *model*, the file of a model by its id, is None.
    """
    out = []
    for r in reloads:
        if model is None:
            raise DataError(f"{where}: the run exchanged models, and nobody says where they are")
        part = strategies[r["strategy"]].parts[r["member"]]
        out.append((int(r["after"]), int(r["taken"]), int(r["strategy"]), int(r["member"]),
                    part.prepare(str(model(int(r["model"]))))))
    return out
