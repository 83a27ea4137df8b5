"""Inside one process of a run: attach to its rings, make its stages, loop until told to stop."""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import gc
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftpipe import _clock, _control, build, config, log, recording, schema, shm, topology
from hftpipe.errors import ConfigError, DeadlineError, Exit, HftpipeError
from hftpipe.rundir import RunDir
from hftpipe.secret import Secret

if TYPE_CHECKING:
    import numpy

    from hftpipe._board import Board
    from hftpipe._control import Control
    from hftpipe._ring import Ring
    from hftpipe._stage import Stage
    from hftpipe._stage_feed import FeedStage
    from hftpipe._stage_signal import SignalStage
    from hftpipe._stage_updates import UpdatesStage
    from hftpipe._strategy import Strategy
    from hftpipe._wire import Wire
    from hftpipe.alpaca._source import SocketSource
    from hftpipe.alpaca.backfill import Backfill
    from hftpipe.log import Logger
    from hftpipe.recovery.books import Books
    from hftpipe.rundir import Run

PRIVATE = "private.json"        # in the run directory, 0600: what must not be in run.json

# A stage has nothing more to come once these have ended; the order is the tick's way.
DRAIN_AFTER = {
    "book": ("feed",), "signal": ("book",), "risk": ("signal",), "gateway": ("risk",),
    "updates": ("gateway",), "ledger": ("gateway", "book"),
    "journal": ("feed", "book", "signal", "risk", "gateway", "updates", "ledger", "analyst"),
    "store": ("journal",),
}
BACKLOG = 4096                  # frames a feed keeps for links without credit
OPENING = 30.0                  # s that the records of the books may wait for room
TICK = 0.02                     # s between two looks at the stop word of an asyncio process
ENDED = (_control.STOPPED, _control.FAILED)


class ShmLinks:
    """The rings of a run in shared memory."""

    def __init__(self, run: int) -> None:
        self._run = run
        self._records = {link.name: schema.BY_NAME[link.record] for link in topology.LINKS}

    def producer(self, name: str) -> Ring | None:
        return shm.ring(self._run, name, self._records[name], producer=True)

    def consumer(self, name: str) -> Ring | None:
        return shm.ring(self._run, name, self._records[name], producer=False)


class Context:
    """What every process of a run needs to know."""

    def __init__(self, run_dir: str | os.PathLike[str], process: str) -> None:
        self.run_dir = RunDir(run_dir)
        found = self.run_dir.read_run()
        if found is None:
            raise ConfigError(f"{self.run_dir.path}: no run.json; the supervisor writes it")
        self.run: Run = found
        spec = next((p for p in self.run.processes if p["name"] == process), None)
        if spec is None:
            names = ", ".join(p["name"] for p in self.run.processes)
            raise ConfigError(f"process must be one of {names}, was {process!r}")
        self.name = process
        self.stages: tuple[str, ...] = tuple(spec["stages"])
        self.wait: str = spec["wait"]
        affinity = spec["affinity"]
        self.core: int | None = affinity[0] if len(affinity) == 1 else None
        self.private = self.read_private()
        self.config = config.loads(self.private["config"], "run configuration", env={})
        self.control: Control = shm.control(self.run.run, writer=True)
        self.board: Board = shm.board(self.run.run)
        self.links = ShmLinks(self.run.run)
        self.table: numpy.ndarray[Any, Any] = build.instruments(self.config)
        self.log = log.setup(process, run=self.run.run, directory=self.run_dir.logs,
                             level=self.config.observe.log_level,
                             form=self.config.observe.log_format, stream=None)

    def read_private(self) -> dict[str, Any]:
        """What the supervisor tells its processes, and nobody else."""
        found: dict[str, Any] = json.loads(
            (self.run_dir.path / PRIVATE).read_text(encoding="utf-8"))
        return found

    def enter(self) -> None:
        """Sign this process's blocks of the control page."""
        pid = os.getpid()
        start = shm.process_start(pid) or 0
        for name in self.stages:
            self.control.stage(topology.INDEX[name]).enter(pid, start, self.core, shm.alive)

    def ended(self, *stages: str) -> bool:
        """Whether all of *stages* have ended."""
        return all(self.control.stage(topology.INDEX[s]).state in ENDED for s in stages)


def run(run_dir: str | os.PathLike[str], process: str) -> Exit:
    """Be the process *process* of the run in *run_dir*."""
    for number in (signal.SIGINT, signal.SIGTERM):      # the supervisor tells us to stop
        signal.signal(number, signal.SIG_IGN)
    context = Context(run_dir, process)
    if context.stages == ("monitor",):
        from hftpipe import health
        context.enter()
        return Exit(health.monitor_main(context.run_dir, context.config.observe.prometheus))
    context.enter()
    try:
        if context.stages == ("journal",):
            return journal(context)
        if context.stages == ("store",):
            return store(context)
        if context.stages == ("feed",) and (
                context.wait == topology.SLEEP or not context.config.feed_in_loop):
            return feed(context)
        if context.stages == ("updates",):
            return updates(context)
        if context.stages == ("analyst",):
            return analyst(context)
        return pipeline(context)
    except BaseException as error:
        for name in context.stages:
            context.control.stage(topology.INDEX[name]).state = _control.FAILED
        context.log.error("failed", error=f"{type(error).__name__}: {error}",
                          exc_info=not isinstance(error, HftpipeError))
        raise


# ---------------------------------------------------------------- the spinning processes

def strategies(settings: config.Config, table: numpy.ndarray[Any, Any],
               names: Sequence[str] = (), in_lots: bool = False) -> list[Strategy]:
    """The strategies a configuration asks for, made for an instrument table.

    Parameters
    ----------
    names : sequence of str
        Only these; default all.
    in_lots : bool
        The table is a recording's; see :func:`hftpipe.strategies.make`.
    """
    from hftpipe import registry
    from hftpipe import strategies as factory
    base = settings.path.parent if settings.path else None

    def resolve(model: str, sha256: str | None) -> tuple[Path, str | None]:
        found = registry.resolve(model, sha256, settings.models, base)
        offered(found.path, settings.features)
        return found.path, found.sha256

    out = factory.make(settings.strategy, table, names=names, in_lots=in_lots, resolve=resolve,
                       equity=settings.account.equity)
    if settings.exits.enabled:          # the last: it sees what the others were told
        params = settings.exits.params
        if in_lots:                     # a recording has instruments of its own
            params["price"] = {}
        out.append(factory.exits(params, table))
    return out


def offered(path: Path, features: config.Features) -> None:
    """Refuse a model that wants features, or bars, which this run does not make.

    A file that cannot be read, or is no packed model, is refused when it is loaded.
    """
    from hftpipe import card
    try:
        said = card.parse(card.metadata(path.read_bytes()))
        card.check(said, features.bar)
    except OSError:
        return
    except ConfigError as error:
        raise ConfigError(f"model {path}: {error}") from None
    outside = [name for name in said["features"] if name not in features.names]
    if outside:
        raise ConfigError(f"model {path}: wanted features of features.set, found {outside[0]}, "
                          "which is not in it")


def alpaca_wire(context: Context) -> Wire:
    """Warm connections for orders, opened now."""
    from hftpipe.alpaca._http import AlpacaWire
    venue, gateway = context.private["venue"], context.config.gateway
    key, secret = credentials(context)
    wire = AlpacaWire(venue["rest"], key, secret, context.run.run, context.table,
                      connections=gateway.connections,
                      rate_per_minute=0 if venue.get("unlimited") else gateway.rate_per_minute,
                      timeout_ms=gateway.timeout // 1_000_000)
    wire.open()
    return wire


def credentials(context: Context) -> tuple[Any, Any]:
    """Key and secret of the venue."""
    return credentials_of(context.private["venue"], context.config)


def credentials_of(venue: Mapping[str, Any], settings: config.Config) -> tuple[Any, Any]:
    """Key and secret of *venue*: what the local one said itself, else by reference."""
    if "key" in venue:
        return Secret.literal(venue["key"]), Secret.literal(venue["secret"])
    return settings.venue.key, settings.venue.secret


def exchange_hours(settings: config.Config) -> Any:
    """The calendar of the New York Stock Exchange, as `session` sets it."""
    from hftpipe.analyst.session import NewYork, clock_time
    from hftpipe.analyst.session import spans as spans_of
    return NewYork(
        spans_of(settings.session.blackouts),
        premarket=clock_time(settings.session.premarket),
        aftermarket=datetime.timedelta(seconds=settings.session.aftermarket // 10**9),
        known_until=datetime.date.fromisoformat(settings.session.known_until))


def feed_watch(settings: config.Config, url: str) -> Any:
    """How long the data stream at *url* may be silent.

    The local exchange trades stocks round the clock in a run; everywhere else they have the hours
    of New York, also where risk asks the venue's clock: a feed must know them without asking.
    """
    from hftpipe.alpaca.watch import Limits, Watch, round_the_clock
    limits = Limits(**{name: getattr(settings.feed, f"silence_{name}") / 1e9
                       for name in ("regular", "extended", "closed", "crypto")})
    if round_the_clock(url):
        return Watch(limits, None)
    if settings.session.calendar == "always" or settings.venue.kind == "local":
        from hftpipe.analyst.session import Always
        return Watch(limits, Always())
    return Watch(limits, exchange_hours(settings))


def feed_backfill(context: Context) -> Backfill | None:
    """Who asks for what a gap of the data stream cost; None = nobody."""
    from hftpipe.alpaca.backfill import Backfill, rest_of, source_of
    from hftpipe.data.download import Client
    settings, stream = context.config.feed, context.private["venue"]["data_stream"]
    if not settings.backfill or source_of(stream) is None:
        return None
    client = Client(settings.history or rest_of(stream), *credentials(context),
                    per_minute=settings.backfill_rate)
    return Backfill(client.page, stream, [row["symbol"].decode() for row in context.table],
                    settings.backfill, settings.backfill_rows, settings.backfill_longest)


def backfill_news(backfill: Backfill | None, log: Logger) -> Callable[[str | None], None]:
    """What tells the log what became of gaps; called with why one could not be filled."""
    gaps = cut = 0
    told: set[str] = set()
    before: str | None = None

    def tell(trouble: str | None) -> None:
        nonlocal gaps, cut, before
        if backfill is None:
            return
        if trouble != before:
            before = trouble
            log.warning("a gap could not be filled", cause=trouble)
        for kind in backfill.refused.keys() - told:
            told.add(kind)
            log.warning("gaps are not filled any more", kind=kind, cause=backfill.refused[kind])
        if backfill.gaps > gaps:
            gaps = backfill.gaps
            log.info("a gap was asked for", gaps=gaps)
        if backfill.cut > cut:
            cut = backfill.cut
            log.warning("a gap had more rows than feed.backfill_rows", times=cut)

    return tell


def source_news(source: SocketSource, log: Logger,
                backfill: Backfill | None = None) -> Callable[[], None]:
    """What a loop calls now and then so that the log tells what becomes of its market data."""
    down, said, complain, reports = False, None, 1, 0
    filled = backfill_news(backfill, log)

    def tell() -> None:
        nonlocal down, said, complain, reports
        filled(source.trouble)
        if source.reports > reports:
            reports = source.reports
            log.error("the market data stream reports", cause=source.report)
        errors = source.figures()["errors"]
        if errors >= complain:      # at 1, 2, 4, ...: a flood does not fill the disk
            log.warning("malformed market data", messages=errors)
            complain = 2 * errors
        if source.connected:
            if down:
                log.info("market data are back", reconnects=source.connections - 1)
            down = False
        elif not down or source.closed != said:
            said = source.closed
            log.warning("no connection for market data" if down else "market data lost",
                        cause=said)
            down = True

    return tell


def conninfo(private: Mapping[str, Any]) -> str:
    """Where the database is, with the password that its reference leads this process to."""
    from hftpipe.store.postgres import with_password
    return with_password(private["conninfo"], Secret(private.get("password", "")))


def gate_state(private: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the supervisor found that earlier runs left of the gate."""
    found = private.get("gate")
    if found is None:
        return None
    return {**found, "executions": {int(k): v for k, v in found.get("executions", {}).items()}}


def books(private: Mapping[str, Any]) -> Books | None:
    """What the supervisor found that the runs before left to this one."""
    from hftpipe.recovery.books import Books
    found = private.get("books")
    return None if found is None else Books.parse(found)


def begun(begin: Mapping[str, Any]) -> tuple[Books | None, dict[str, Any] | None]:
    """Books and gate that a run began with, as its journal has them."""
    return books(begin), gate_state(begin)


def open_books(context: Context, made: Sequence[Stage]) -> None:
    """Have the ledger, if it is among *made*, begin its stream with what it takes over."""
    from hftpipe._stage_ledger import LedgerStage
    from hftpipe._stage_risk import RiskStage
    past = books(context.private)
    for stage in made:
        if past is None or not isinstance(stage, LedgerStage):
            continue
        deadline = time.monotonic() + OPENING
        for _ in stage.begin(*past.records([row["symbol"].decode() for row in context.table])):
            for other in made:
                if isinstance(other, RiskStage):    # whose link may be what is full
                    other.do_work()
            if context.control.stop or time.monotonic() >= deadline:
                raise DeadlineError("the books could not be opened: nobody takes their records")
            time.sleep(0.001)


def strategy_news(stage: SignalStage, log: Logger) -> Callable[[], None]:
    """The same for what strategies have to tell."""
    def tell() -> None:
        for name, level, words in stage.notices():
            getattr(log, level)(words, strategy=name)

    return tell


def pipeline(context: Context) -> Exit:
    """Compiled stages in one loop."""
    from hftpipe import reloader
    from hftpipe._host import WAIT_SLEEP, WAIT_SPIN, WAIT_YIELD, Host
    from hftpipe._stage_signal import SignalStage
    sources: list[tuple[SocketSource, Backfill | None]] = []

    def source() -> SocketSource:
        from hftpipe.alpaca import session
        from hftpipe.alpaca._codec import Decoder
        from hftpipe.alpaca._source import SocketSource
        venue = context.private["venue"]
        key, secret = credentials(context)
        symbols = [row["symbol"].decode() for row in context.table]
        channels = session.channels_of(venue["data_stream"], context.config.feed.bars)
        backfill = feed_backfill(context)
        made = SocketSource(
            lambda: session.open_data_stream(venue["data_stream"], key, secret, symbols, channels),
            Decoder(context.table), first=context.config.feed.reconnect_first / 1e9,
            longest=context.config.feed.reconnect_max / 1e9,
            ping=context.config.feed.ping / 1e9,
            silence=feed_watch(context.config, venue["data_stream"]),
            backfill=backfill.fetch if backfill is not None else None)
        made.open()
        sources.append((made, backfill))
        return made

    asked: list[Strategy] = []

    def all_strategies() -> list[Strategy]:
        asked.extend(strategies(context.config, context.table))
        return asked

    made = build.stages(
        context.stages, context.links, context.config, context.table, control=context.control,
        strategies=all_strategies,
        wire=lambda _: alpaca_wire(context), source=source if "feed" in context.stages else None,
        board=context.board, gate=gate_state(context.private),
        durable=context.config.journal.durability == "host", past=books(context.private))
    waits = {topology.SPIN: WAIT_SPIN, topology.YIELD: WAIT_YIELD, topology.SLEEP: WAIT_SLEEP}
    after = sorted({topology.INDEX[before] for stage in context.stages
                    for before in DRAIN_AFTER.get(stage, ()) if before not in context.stages})
    gc.collect()
    gc.freeze()                 # a collection with large libraries loaded costs milliseconds
    open_books(context, made)
    context.log.info("running", stages=list(context.stages), core=context.core)
    turns: list[Callable[[], object]] = [
        source_news(one, context.log, backfill) for one, backfill in sources]
    desk = None
    for stage in made:
        if isinstance(stage, SignalStage):
            desk = reloader.Reloader(
                str(context.run_dir.path), stage, asked,
                lambda path: offered(path, context.config.features),
                context.config.features.window, context.core, context.log.info)
            turns += [strategy_news(stage, context.log), desk.turn]

    def every() -> None:
        for turn in turns:
            turn()

    try:
        Host(made, context.control, waits[context.wait], after, every if turns else None).run()
    finally:
        if desk is not None:
            desk.close()
        for one, _ in sources:
            one.close()
    return Exit.OK


# ---------------------------------------------------------------- the sleeping processes

def _settle(context: Context, name: str, state: int) -> None:
    context.control.stage(topology.INDEX[name]).state = state


async def _beat(context: Context, name: str, done: Callable[[], bool],
                work: Callable[[], object] | None = None) -> None:
    """Heartbeat until *done*; *work* is called every time."""
    block = context.control.stage(topology.INDEX[name])
    while not done():
        block.heartbeat = _clock.now_ns()
        if work is not None:
            work()
        await asyncio.sleep(TICK)


def feed(context: Context) -> Exit:
    """Market data through picows, in a process that sleeps between frames.

    For plans where the feed has no core of its own, and for JSON, which no loop decodes.
    """
    from hftpipe.alpaca._codec import Decoder
    from hftpipe.alpaca.feed import Feed
    (stage,) = build.stages(("feed",), context.links, context.config, context.table,
                            control=context.control)
    return asyncio.run(_feed(context, stage, Feed, Decoder(context.table)))  # type: ignore[arg-type]


async def _aside(call: Callable[..., Any], *args: Any) -> Any:
    """What *call* gives, from a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = call(*args)
        except BaseException as found:
            error = found
        with contextlib.suppress(RuntimeError):     # the loop is closed: nobody wants it any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="feed-backfill", daemon=True).start()
    return await done


async def _feed(context: Context, stage: FeedStage, feed_type: Any, decoder: Any) -> Exit:
    import numpy

    from hftpipe.alpaca import session
    from hftpipe.alpaca.backfill import Missed
    venue = context.private["venue"]
    key, secret = credentials(context)
    block = context.control.stage(topology.INDEX["feed"])
    backfill, missed = feed_backfill(context), Missed()
    filled = backfill_news(backfill, context.log)
    filling: set[asyncio.Task[None]] = set()
    trouble: str | None = None
    waiting: deque[Any] = deque()       # records that found no credit, oldest first
    lost = False
    complain = 1

    def push(records: Any) -> None:
        nonlocal lost
        if not len(records):
            return
        if lost or (not waiting and stage.put_many(records)):
            return
        waiting.append(records)
        if len(waiting) > BACKLOG:      # a gap is honest, late prices are not
            waiting.clear()
            lost = True
            missed.lost()
            context.log.error("links are full: market data dropped, books stale until resync")

    def retry() -> None:
        nonlocal lost, complain
        if lost and stage.put_many(decoder.gap(_clock.now_ns())):
            lost = False
        while waiting and stage.put_many(waiting[0]):
            waiting.popleft()
        counters = decoder.counters()
        filled(trouble)
        block.set("drops", counters["drops"])
        block.set("ignored", counters["ignored"])
        block.set("errors", counters["errors"])
        if counters["errors"] >= complain:      # at 1, 2, 4, ...: a flood does not fill the disk
            context.log.warning("malformed market data", messages=counters["errors"])
            complain = 2 * counters["errors"]
        block.set("reconnects", client.reconnects)
        block.set("connected", int(client.live))

    def on_frame(payload: Any, ts_recv: int) -> None:
        block.count("frames")
        records = (decoder.records(payload, ts_recv) if binary
                   else decoder.records_json(bytes(payload), ts_recv))
        push(records)
        if len(records) and backfill is not None:
            gap = missed.data(int(records[0]["ts_venue"]), int(records[-1]["ts_venue"]))
            if gap is not None:
                task = asyncio.create_task(fill(*gap))
                filling.add(task)
                task.add_done_callback(filling.discard)

    async def fill(start: int, end: int) -> None:
        nonlocal trouble
        assert backfill is not None
        try:
            async with one_gap:
                records = await _aside(backfill.fetch, start, end)
        except (HftpipeError, OSError) as error:
            trouble = str(error)
            return
        records["ts_recv"] = _clock.now_ns()
        last = numpy.flatnonzero(records["flags"] & schema.MARKET_FLAG.LAST) + 1
        for at in range(0, len(last), 64):          # whole messages, a few at a time
            push(records[last[at - 1] if at else 0:last[min(at + 64, len(last)) - 1]])

    def on_gap(ts_recv: int) -> None:
        missed.lost()
        push(decoder.gap(ts_recv))

    one_gap = asyncio.Lock()
    binary = context.config.venue.encoding == "msgpack"
    client = feed_type(
        venue["data_stream"], key, secret, [row["symbol"].decode() for row in context.table],
        on_frame, on_gap,
        channels=session.channels_of(venue["data_stream"], context.config.feed.bars),
        encoding=context.config.venue.encoding, ping=context.config.feed.ping / 1e9,
        first=context.config.feed.reconnect_first / 1e9,
        longest=context.config.feed.reconnect_max / 1e9,
        silence=feed_watch(context.config, venue["data_stream"]))
    stop = asyncio.Event()
    task = asyncio.create_task(client.run(stop))
    _settle(context, "feed", _control.RUNNING)
    await _beat(context, "feed",
                lambda: bool(context.control.stop) or task.done(), retry)
    stop.set()
    for one in tuple(filling):
        one.cancel()
    await task                  # raises what ended it
    retry()
    _settle(context, "feed", _control.STOPPED)
    return Exit.OK


def updates(context: Context) -> Exit:
    """``trade_updates`` through picows."""
    from hftpipe.alpaca.updates import Updates
    (stage,) = build.stages(("updates",), context.links, context.config, context.table,
                            control=context.control)
    return asyncio.run(_updates(context, stage, Updates))  # type: ignore[arg-type]


async def _updates(context: Context, stage: UpdatesStage, updates_type: Any) -> Exit:
    from hftpipe.alpaca.asker import Asker
    from hftpipe.alpaca.reconcile import Reconciler
    from hftpipe.alpaca.rest import Rest
    from hftpipe.desk import ask
    venue = context.private["venue"]
    key, secret = credentials(context)
    block = context.control.stage(topology.INDEX["updates"])
    waiting: list[Any] = []
    malformed = doubts = 0

    def retry() -> None:
        nonlocal malformed
        while waiting:
            taken = stage.put_many(waiting[0])
            if taken < len(waiting[0]):
                waiting[0] = waiting[0][taken:]
                break
            waiting.pop(0)
        if client.reader.errors > malformed:    # perhaps a fill: nobody else will tell of it
            malformed = client.reader.errors
            context.log.error("malformed order updates", messages=malformed)
        block.set("errors", malformed)
        block.set("drops", client.reader.drops)
        block.set("reconnects", client.reconnects)
        block.set("connected", int(client.live))

    def on_updates(rows: Any) -> None:
        waiting.append(rows)
        retry()
        reconciler.heard(rows, _clock.now_ns())

    def turn() -> None:
        nonlocal doubts
        now = _clock.now_ns()
        while len(events := stage.take()):
            reconciler.events(events, now)
        answer = asker.poll()
        if answer is not None:
            waiting.extend(reconciler.answer(answer, now))
        retry()
        if client.reader.doubts + client.reader.errors > doubts:
            doubts = client.reader.doubts + client.reader.errors
            reconciler.doubt(now)
        task = reconciler.due(now)
        if task is not None:
            asker.submit(task)
        block.set("unsettled", int(not reconciler.settled))
        block.set("reconciliations", reconciler.looks)
        block.set("breaks", reconciler.breaks)
        block.set("breaks_open", reconciler.open_breaks)
        block.set("orders_resolved", reconciler.resolved)

    def halt(reason: str) -> None:
        if context.control.trading == "armed":
            context.run_dir.halt(context.control, reason, way="reconcile", by="updates")

    symbols = [row["symbol"].decode() for row in context.table]
    gateway = context.config.gateway
    past = books(context.private)
    opening = [past.rows[s].qty if s in past.rows else 0 for s in symbols] if past else None
    reconciler = Reconciler(
        context.run.run, symbols, halt,
        lambda level, event, **more: getattr(context.log, level)(event, **more),
        absent=gateway.absent_after, orders=gateway.check_orders,
        positions=gateway.check_positions, unlimited=bool(venue.get("unlimited")),
        start=_clock.utc_ns(), opening=opening)
    asker = Asker(lambda: Rest(venue["rest"], key, secret),
                  lambda symbol, reason: ask(str(context.run_dir.path), "pause",
                                             symbol=symbol, reason=reason), reconciler.after)
    block.set("unsettled", 1)

    def down() -> None:
        block.set("unsettled", 1)       # at once: nothing is approved from here on
        reconciler.went_down(_clock.now_ns())

    client = updates_type(
        venue["updates_stream"], key, secret, context.run.run,
        {symbol: i for i, symbol in enumerate(symbols)}, on_updates,
        on_live=lambda: reconciler.went_live(_clock.now_ns()), on_down=down)
    stop = asyncio.Event()
    task = asyncio.create_task(client.run(stop))
    _settle(context, "updates", _control.RUNNING)

    def done() -> bool:
        if task.done():
            return True
        drained = context.ended(*DRAIN_AFTER["updates"]) and not waiting
        return context.control.stop == _control.QUIT or bool(context.control.stop and drained)

    await _beat(context, "updates", done, turn)
    stop.set()
    await task
    retry()                     # what came while the stream was closing
    asker.close(1.0)            # daemonic: it may hang in a request
    _settle(context, "updates", _control.STOPPED)
    return Exit.OK


# ---------------------------------------------------------------- the analyst

def analyst(context: Context) -> Exit:
    """Figures for risk until the run ends."""
    from hftpipe.analyst.history import Bar, read_csv
    from hftpipe.analyst.run import Analyst, Estimate, Outbox, Sources, VenueTime
    from hftpipe.analyst.session import Always, Calendar, VenueClock, Watch
    settings, control = context.config, context.control
    (stage,) = build.stages(("analyst",), context.links, settings, context.table, control=control)
    block = control.stage(topology.INDEX["analyst"])
    rest: list[Any] = []                # one connection for the venue's thread, made there

    def ask() -> Any:
        from hftpipe.alpaca.rest import Rest
        if not rest:
            rest.append(Rest(context.private["venue"]["rest"], *credentials(context)))
        return rest[0]

    def clock() -> VenueTime:
        from hftpipe.alpaca._codec import parse_time
        found = ask().clock()
        change = found.next_close if found.is_open else found.next_open
        return VenueTime(found.is_open, parse_time(change) if change else None)

    def equity() -> int:
        from hftpipe.alpaca.session import nano
        found = ask().account()
        return nano(found.last_equity or found.equity)

    symbols = [row["symbol"].decode() for row in context.table]
    how = settings.analyst

    def record(day: datetime.date) -> dict[datetime.date, int]:
        from hftpipe.store import queries
        past = books(context.private)
        return queries.pnl_by_day(conninfo(context.read_private()), context.run.run,
                                  past.account if past else None, day)

    def history(day: datetime.date) -> dict[datetime.date, dict[int, Bar]]:
        if how.history != "database":
            return read_csv(Path(how.history), symbols)
        from hftpipe.store import queries
        found = queries.daily_bars(conninfo(context.read_private()), context.run.run, symbols,
                                   day - datetime.timedelta(days=2 * how.lookback + 10))
        return {at: {i: Bar(*bar) for i, bar in bars.items()} for at, bars in found.items()}

    venue = VenueClock() if settings.session.calendar == "venue" else None
    calendar: Calendar = Always()
    if settings.session.calendar == "nyse":
        calendar = exchange_hours(settings)
    outbox = Outbox(stage.put_many, lambda: block.count("drops"))   # type: ignore[attr-defined]
    one = Analyst(
        outbox, Watch(venue.read if venue else lambda _, utc: calendar.at(utc),
                      control.utc_offset),
        Sources(clock if venue else None, equity, record, history if how.history else None),
        context.log, interval=how.interval, venue=venue,
        gap=lambda: venue.gap if venue else calendar.gap, instruments=len(symbols),
        board=context.board, estimate=Estimate(how.method, how.bar, how.lookback, how.least),
        sectors=settings.sectors)
    block.state = _control.RUNNING
    context.log.info("running", calendar=settings.session.calendar)
    while not control.stop:
        now = _clock.now_ns()
        block.heartbeat = now
        one.step(now, _clock.utc_ns())
        block.set("errors", one.errors)
        time.sleep(TICK)
    one.close()
    block.state = _control.STOPPED
    return Exit.OK


# ---------------------------------------------------------------- journal and store

def journal_directory(context: Context) -> Path:
    """Where this run's journal is."""
    return Path(context.private["journal"]) / f"{context.run.run:x}"


def journal(context: Context) -> Exit:
    """Store links onto the disk until everybody else has ended and nothing is left."""
    from hftpipe.journal import run as keeper
    from hftpipe.journal.write import Journal
    settings, control = context.config.journal, context.control
    block = control.stage(topology.INDEX["journal"])
    links = store_links(context.links)
    order = ("signal", "risk", "gateway", *topology.recorded())     # orders wait for the first two
    why = keeper.realtime(settings.priority)
    block.set("realtime", int(not why))
    made = Journal(journal_directory(context), context.run.run, size=settings.segment,
                   spares=settings.spares, durable=control.durable())
    context.log.info("running", durability=settings.durability, records=made.number,
                     cut_bytes=made.cut, spares=made.spares, realtime=why or settings.priority)

    def halt(reason: str) -> None:
        done = context.run_dir.halt(control, reason, way="journal", by="journal")
        context.log.error("halted", epoch=done.epoch, reason=reason)

    store_block = control.stage(topology.INDEX["store"])
    keeper.serve(
        made, {topology.stream(s): links[topology.stream(s)] for s in dict.fromkeys(order)},
        control, block, stored=lambda: store_block.counter("journal_stored"), halt=halt,
        log=context.log, retain=settings.retain / 1e9,
    ).serve(lambda: bool(control.stop) and context.ended(*DRAIN_AFTER["journal"]),
            keeper.PAUSE[settings.durability])
    return Exit.OK


def store_run(run: Run, control: Control | None, table: Any) -> Any:
    """What the database should know of *run*."""
    from hftpipe.store.writer import Run as StoreRun
    offset = control.utc_offset if control is not None else int(run.info.get("utc_offset", 0))
    return StoreRun(run.run, offset, run.profile, tuple(
        (row["symbol"].decode(), int(row["tick"]), int(row["lot"])) for row in table))


def store_links(links: Any) -> dict[int, Any]:
    """Consumer ends of all store links by stream."""
    return {topology.stream(link.producer): links.consumer(link.name)
            for link in topology.LINKS if link.consumer == "store"}


class Tap:
    """A link that also writes what is released from it into a recording."""

    def __init__(self, link: Any, stream: int, writer: Any) -> None:
        self._link, self._stream, self._writer = link, stream, writer
        self.record = link.record

    def peek(self, count: int = 1) -> Any:
        return self._link.peek(count)

    def release(self, count: int = 1) -> None:
        done = 0
        while done < count:     # a peek ends at the end of the ring's memory
            slots = self._link.peek(count - done)
            # A store that was killed may have recorded some of these, and not released them.
            old = int((slots["event"] <= self._writer.last.get(self._stream, 0)).sum())
            self._writer.write(self._stream, recording.raw(slots[old:], self.record))
            self._writer.flush()    # a killed process loses its buffers, and the slots are gone
            self._link.release(len(slots))
            done += len(slots)

    def flush(self) -> None:
        self._link.flush()

    def __len__(self) -> int:
        return len(self._link)


def behind(marks: Mapping[int, int], last: Mapping[int, int]) -> dict[int, int]:
    """Sequence number of each stream up to which both PostgreSQL and a recording have it.

    *last* has identities.  A store that was killed between a commit and the recording left the
    recording behind.
    """
    return {s: min(n, schema.split_event(last.get(s, 0))[1]) for s, n in marks.items()}


def store(context: Context) -> Exit:
    """The journal into PostgreSQL until it has ended and nothing is left."""
    from hftpipe.journal.read import Reader
    from hftpipe.store import chain
    from hftpipe.store.writer import StoreWriter, Totals

    def start() -> dict[int, int]:
        return out.totals.by_stream if writer is None else behind(out.totals.by_stream, writer.last)

    reader = Reader(journal_directory(context), context.run.run, topology.stored(),
                    context.control.durable, start)
    links: dict[int, Any] = dict(reader.links)
    path = context.private.get("record")
    writer = None
    if path:
        writer = recording.Writer.resume(path) if Path(path).exists() else recording.Writer(
            path, context.table, context.run.run, context.control.utc_offset, context.run.profile,
            {"toml": context.private["config"]})
        links = {stream: Tap(link, stream, writer) for stream, link in links.items()}
    block = context.control.stage(topology.INDEX["store"])
    said, failed = "", 0

    def observe(totals: Totals) -> None:
        nonlocal said, failed
        block.heartbeat = _clock.now_ns()
        block.set("rows_stored", totals.rows)
        block.set("batches_stored", totals.batches)
        block.set("store_lag", totals.lag)
        block.set("errors", totals.errors)
        block.set("connected", int(totals.connected))
        block.set("journal_stored", reader.stored)
        if totals.last_error != said:
            said = totals.last_error
            if said:
                context.log.warning("database", error=said)
        if totals.errors != failed:
            failed = totals.errors
            # A server that was started again may answer in another place.
            out.conninfo = conninfo(context.read_private())

    def idle(seconds: float) -> None:
        block.heartbeat = _clock.now_ns()
        time.sleep(seconds)

    out = StoreWriter(links, conninfo(context.private),
                      store_run(context.run, context.control, context.table), observe,
                      anchors=chain.Anchors(context.run_dir.path / chain.FILE))
    block.state = _control.RUNNING
    try:
        out.serve(lambda: context.control.stop == _control.QUIT
                  or bool(context.control.stop and context.ended(*DRAIN_AFTER["store"])), idle)
        block.state = _control.DRAINING
        out.drain(5.0)
        out.finish()
        if writer is not None:
            writer.close()      # with its end mark: the recording is whole
    finally:
        out.close()
    block.state = _control.STOPPED
    return Exit.OK


def shared_config(settings: config.Config) -> str:
    """What the stages need of a configuration.  Recordings keep it, and they are handed on: where
    the database is and where its password stands is not in it."""
    plain = dataclasses.replace(settings.store, url="embedded", password=Secret(""))
    return dataclasses.replace(settings, store=plain).dump()


def recording_path(path: str) -> Path:
    """*path*, which must not exist and whose directory must."""
    out = Path(path).absolute()
    if out.exists():
        raise ConfigError(f"recording {path}: wanted a new file, found one")
    if not out.parent.is_dir():
        raise ConfigError(f"recording {path}: no directory {out.parent}")
    return out
