"""``hftpipe drill sim``: the whole pipeline in one process under one seed, struck again and again.

The stages, the journal, the drainer, the reconciliation and the start are the real ones.  What they
stand on is simulated: time (the virtual clock), the disk (:mod:`hftpipe.drill.disk`), the database
(:mod:`hftpipe.drill.database`), venue and network (:mod:`hftpipe.drill.exchange`).  A seed decides
who does something next, what is lost on the way and when the crash comes, so that it comes again.

A *world* has several lives, each a run that takes over what the one before left.  After each, the
invariants are checked from the venue's log, the journal and the database.
"""
from __future__ import annotations

import contextlib
import hashlib
import mmap
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy

from hftpipe import _clock, _control, _ring, build, config, limits, schema, topology
from hftpipe._strategy import PyStrategy
from hftpipe.alpaca import session
from hftpipe.alpaca.reconcile import Answer, Reconciler, Task
from hftpipe.drill import crash
from hftpipe.drill import venue as judges
from hftpipe.drill._door import DoorWire
from hftpipe.drill.database import SimDatabase, SimWriter, load, orders
from hftpipe.drill.disk import Crash, SimDisk
from hftpipe.drill.exchange import MS, SECOND, Exchange
from hftpipe.drill.planted import BUGS
from hftpipe.drill.strategy import Mixed
from hftpipe.drill.venue import CONFIG, ORDERS, POSITION
from hftpipe.errors import DiskError, HftpipeError, UsageError
from hftpipe.journal import check, segment
from hftpipe.journal.drain import Drain
from hftpipe.journal.read import Reader
from hftpipe.journal.write import Journal
from hftpipe.recovery import settle as start
from hftpipe.recovery.books import Books, Row
from hftpipe.store.writer import Run

SYMBOLS = ["ACME", "BOLT"]
UTC = 1_796_000_000 * SECOND    # of the world's beginning
ACCOUNT = "00000000-0000-4000-8000-00000000a11c"
EQUITY = 1_000_000 * SECOND
ABSENT = 6 * SECOND             # an order is under way for 4 s at most, after 1 s at most here
QUIET = 60 * SECOND             # in which everything has come to its end, or trading is halted
TURNS = 200                     # tries of a database that breaks before it is said to be stuck
HOT = ("feed", "book", "signal", "risk", "gateway", "updates", "ledger")
#: Who does something next, and how often.
ACTORS = {"market": 5, "book": 4, "signal": 4, "risk": 4, "gateway": 5, "ledger": 2, "updates": 3,
          "journal": 4, "store": 1}
FAULTS = ("all killed", "killed in a stage", "killed in a write", "host down",
          "host down in a write", "store killed", "store killed in a transaction",
          "journal killed", "database breaks", "disk refuses", "stopped in order", "halt",
          "updates down", "drift")
SMALL = {link.name: 2048 if link.consumer == "store" else 512 for link in topology.LINKS} | {
    "feed.book": 8192, "feed.store": 8192}


ENVELOPE_TYPE, MARKET_TYPE, ORDER_TYPE, ORDER_EVENT_TYPE, INSTRUMENT_TYPE = map(schema.dtype, (
    schema.ENVELOPE, schema.MARKET, schema.ORDER, schema.ORDER_EVENT, schema.INSTRUMENT))


@contextlib.contextmanager
def _replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


class _Links:
    """Rings of one life; what the gateway tells risk goes by way of a person in the middle."""

    def __init__(self) -> None:
        self.ends = {link.name: _ring.pair(schema.BY_NAME[link.record], link.capacity)
                     for link in topology.links(SMALL)}
        self.relay = _ring.pair(schema.ORDER_EVENT, 512)        # to risk
        self.door = _ring.pair(schema.ORDER, 256)
        self.answers = _ring.pair(schema.UPDATE, 256)

    def producer(self, name: str) -> _ring.Ring | None:
        return self.ends[name][0] if name in self.ends else None

    def consumer(self, name: str) -> _ring.Ring | None:
        if name == "gateway.risk":
            return self.relay[1]
        return self.ends[name][1] if name in self.ends else None

    def stores(self) -> dict[int, _ring.Ring]:
        """Consumer end of each store link, by stream."""
        return {topology.stream(link.producer): self.ends[link.name][1]
                for link in topology.LINKS if link.consumer == "store"}


class _Cut:
    """A store link as a crash left it: what its producer had not got to is not there."""

    def __init__(self, ring: _ring.Ring, less: int = 0, early: bool = False) -> None:
        self.record, self._ring, self._early = ring.record, ring, early
        self.end = ring.taken + len(ring) - less if less or not early else 1 << 62

    def __len__(self) -> int:
        return min(len(self._ring), max(0, self.end - self._ring.taken))

    def peek(self, count: int = 1) -> Any:
        found = self._ring.peek(min(count, len(self)))
        if not self._early:
            return found
        found = found.copy()                    # the mistake: given back before it is written
        self._ring.release(len(found))
        return found

    def release(self, count: int = 1) -> None:
        if not self._early:
            self._ring.release(count)

    def flush(self) -> None:
        self._ring.flush()


def differ(books: Books, there: crash.Books) -> list[str]:
    """Symbols in which quantity, or what was paid for it less what was earned, is not the venue's.

    Not cost and P&L each: executions that are told in another order than they were done give the
    same sum, parted differently.
    """
    wrong = []
    for symbol in SYMBOLS:
        row, (qty, cost, realised) = books.rows.get(symbol, Row()), there.get(
            symbol, (Fraction(), Fraction(), Fraction()))
        ours, theirs = Fraction(row.cost - row.realised, 10**18), cost - realised
        if Fraction(row.qty, 10**9) != qty or abs(ours - theirs) > Fraction(1, 10**13):
            wrong.append(f"{symbol}: here {row.qty / 10**9:g} for {float(ours):.9f}, at the venue "
                         f"{float(qty):g} for {float(theirs):.9f}, less what was earned")
    return wrong


@dataclass
class Left:
    """What a run left in shared memory."""

    control: _control.Control
    links: dict[int, _Cut]
    made: dict[int, int]        # events of each stream that were in its link, or out of it


class World:
    """Everything that outlives a run, and the judges.

    Parameters
    ----------
    seed : int
    place : Path
        Scratch directory.
    bug : str
        Of :data:`planted.BUGS`; empty = none.

    Attributes
    ----------
    wrong : dict of invariant to list of str
    hits : Counter
        Faults that struck.
    """

    def __init__(self, seed: int, place: Path, bug: str = "") -> None:
        self.seed, self.place, self.bug = seed, place, bug
        self.chance = random.Random(seed)
        self.now = 10 * SECOND
        self.disk = SimDisk(random.Random(self.chance.random()), bug)
        self.database = SimDatabase(random.Random(self.chance.random()), bug)
        self.venue = Exchange(random.Random(self.chance.random()), SYMBOLS)
        self.venue.rough = self.chance.random() < 0.3
        self.halted = ""                # why, by the copies that outlive a run
        self.drifted = False
        self.wrong: dict[str, list[str]] = {}
        self.hits: Counter[str] = Counter()
        self.runs: list[int] = []
        self.left: Left | None = None
        self.starts = 0
        self.tick(0)

    def say(self, invariant: str, *words: str) -> None:
        for word in words:
            found = self.wrong.setdefault(invariant, [])
            if word not in found:
                found.append(word)

    def tick(self, ns: int) -> None:
        """Let time pass, and what travels arrive."""
        self.now += ns
        _clock.set_virtual(self.now, self.now + UTC)
        self.venue.advance(self.now)

    def pause(self, seconds: float) -> None:
        self.tick(max(int(seconds * SECOND), 1))

    def directory(self, run: int) -> Path:
        return self.place / f"{run:x}"

    # ---------------------------------------------------------------- a run, and its end

    def live(self) -> None:
        """One start and one run, to its end."""
        made = self._start()
        if made is None:
            return
        life = Life(self, *made)
        try:
            life.trade()
        except Crash:
            pass
        finally:
            self.left = life.end()

    def _start(self) -> tuple[int, Books, bool] | None:
        """What a start does before anything trades; it may be killed, and is tried again."""
        for _ in range(3):
            try:
                return self._take_over()
            except Crash:
                self.hits["killed in a start"] += 1
                if self.disk.power:
                    self.left = None
                self.disk.restart([self.directory(r) for r in self.runs])
                self.database.crash_in = self.database.fail_in = 0
                self.tick(self.chance.randint(MS, SECOND))
            except HftpipeError as e:
                self.say("I8", f"a start does not come up: {e}")
                return None
        self.say("I8", "three starts in a row were killed")
        return None

    def _take_over(self) -> tuple[int, Books, bool]:
        power = self.disk.power
        self.disk.restart([self.directory(r) for r in self.runs])
        self.database.crash_in = self.database.fail_in = 0
        if power:
            self.left = None
        if self.starts < 2 and self.chance.random() < 0.1:      # this start is struck too
            self.starts += 1
            if self.chance.random() < 0.5:
                self.disk.crash_in = self.chance.randint(1, 8)
                self.disk.power = self.chance.random() < 0.3
            else:
                self.database.crash_in = self.chance.randint(1, 30)
        if self.runs:
            self._store()
        self.disk.crash_in = self.database.crash_in = 0
        self.disk.power = False
        run = self.now + UTC
        if self.bug == "start.same_run" and self.runs:
            run = self.runs[-1]
        books = load(self.database, ACCOUNT, run + 1, EQUITY, {}, SYMBOLS)
        report = start.settle(
            books, self.venue, SYMBOLS, {}, absent=0 if self.bug == "settle.absent" else ABSENT,
            lookup=lambda of, which: [p for p, _ in orders(self.database, of, SYMBOLS)
                                      if p.order in which],
            now=lambda: self.now + UTC, pause=self.pause)
        books.pending = []
        different = bool(report.differences)
        if different and not self.drifted:
            self.say("I8", f"a start that nothing but the network stood against comes up halted: "
                           f"{report.differences[0]}")
        halted = bool(self.halted) or different
        if different and self.bug == "start.different":
            halted = bool(self.halted)
        if self.halted and self.bug == "start.forgets_halt":
            halted = different
        if self.halted and not halted:
            self.say("I6", f"a start trades although trading was halted before: {self.halted}")
        if self.halted and not different and self.chance.random() < 0.7:
            self.halted, halted = "", False     # a person looked, and lets it go on
        self.judge(books, halted)
        if self.bug != "start.same_run":
            run = self.now + UTC
        self.runs.append(run)
        return run, books, halted

    def _store(self) -> None:
        """The leftovers of the last run: links into the journal, the journal into the database."""
        run, left = self.runs[-1], self.left
        place = self.directory(run)
        if left is not None and self.bug != "start.no_rings":
            journal = Journal(place, run, size=segment.LEAST, spares=0,
                              durable=left.control.durable(), disk=self.disk)
            drain = Drain(journal, left.links, left.control)
            while drain.lag:
                drain.step()
        else:
            journal = Journal(place, run, size=segment.LEAST, spares=0, disk=self.disk)
        journal.finish()
        last = list(journal.last)
        number = journal.number
        if left is not None:
            for stream, made in left.made.items():
                if last[stream] != made:
                    self.say("I3", f"the journal of run {run:x} has {last[stream]} events of "
                                   f"{schema.STREAM.label(stream)}, {made} were made")
        reader = Reader(place, run, topology.stored(),
                        lambda stream: last[stream] if stream else number,
                        lambda: writer.totals.by_stream)
        writer = SimWriter(reader.links, self.database, Run(run, UTC, "sim"))
        try:
            self.drain(writer)
        finally:
            reader.close()
        self.left = None

    def drain(self, writer: SimWriter) -> None:
        """Store everything that the journal has."""
        idle = 0
        while number := (writer.step() or writer.totals.lag or not writer.totals.connected):
            idle = 0 if writer.totals.connected and number and not writer.totals.errors else (
                idle + 1)
            if idle > TURNS:
                raise HftpipeError(f"the database does not get on: {writer.totals.last_error}")

    # ---------------------------------------------------------------- the judges

    def judge(self, books: Books, halted: bool) -> None:
        """Everything that can be said once a start has looked at everything."""
        log = self.venue.log
        sent = {session.client_order_id(p.run, p.order & (1 << 56) - 1)
                for run in self.runs for p, _ in orders(self.database, run, SYMBOLS)}
        made = Counter(line["client_order_id"] for line in log if line["kind"] == "order")
        self.say("I1", *(f"order {name} is at the venue, and nothing of it is on record"
                         for name in made if name not in sent))
        self.say("I2", *(w for w in judges.one_order(log, set(made))))
        self.say("I2", *(f"order {name} was given up as one that never got there, and is there"
                         for run in self.runs for name in self._absent(run) if name in made))
        self.say("I5", *judges.exposure(log, POSITION, ORDERS))
        self.say("I7", *crash.one_run(log))
        for run in self.runs:
            self._stored(run)
        if not self.drifted:
            self.say("I4", *differ(books, crash.books(log)))
        elif not halted:
            self.say("I4", *(f"{s}: {books.rows[s].qty if s in books.rows else 0} here, "
                             f"{self.venue.held[s]} at the venue, and trading goes on"
                             for s in SYMBOLS if self.venue.held[s] != (
                                 books.rows[s].qty if s in books.rows else 0)))

    def _absent(self, run: int) -> Iterator[str]:
        """Orders whose last word is that the venue never had them."""
        for record, of in ((schema.ORDER_EVENT, None), (schema.RESOLVED, "of_run")):
            for row in self.database.events(run, record):
                f = row.fields
                if f["reason"] == schema.REASON.ABSENT:
                    yield session.client_order_id(int(f[of]) if of else run,
                                                  int(f["order"]) & (1 << 56) - 1)

    def _stored(self, run: int) -> None:
        """The database has every event of the journal, once, as it was recorded."""
        there: dict[int, dict[int, tuple[int, bytes]]] = {}
        for block in check.walk(self.directory(run), run):
            for size in numpy.unique(block.sizes):
                mask = block.sizes == size
                slots = block.slots(mask, int(size))
                heads = numpy.ascontiguousarray(slots[:, :schema.ENVELOPE.size]).view(
                    ENVELOPE_TYPE).reshape(-1)
                for stream, seq, head, slot in zip(block.streams[mask], block.seqs[mask], heads,
                                                   slots, strict=True):
                    record = schema.BODIES[int(head["record"])]
                    body = slot[64:64 + record.size].tobytes()
                    there.setdefault(int(stream), {})[int(seq)] = (int(head["checksum"]), body)
        for stream in topology.stored():
            wanted, found = there.get(stream, {}), self.database.rows.get((run, stream), {})
            name = schema.STREAM.label(stream)
            if len(wanted) != len(found):
                self.say("I3", f"run {run:x}: {len(wanted)} events of {name} are in the journal, "
                               f"{len(found)} in the database")
            for seq, row in found.items():
                if wanted.get(seq, (None,))[0] != row.checksum:
                    self.say("I3", f"run {run:x}: event {seq} of {name} is another one than in "
                                   "the journal")
                    break
            mark = self.database.marks.get((run, stream), (0, 0, b""))
            total = sum(row.checksum for row in found.values()) & (1 << 64) - 1
            if mark[:2] != (len(found), total):
                self.say("I3", f"run {run:x}: the mark of {name} is {mark[0]}, "
                               f"{len(found)} rows are there")

    def digest(self) -> str:
        """Of everything that happened: the same seed gives the same."""
        made = hashlib.sha256(repr((self.venue.log, self.now, sorted(self.wrong.items()))).encode())
        for key in sorted(self.database.rows):
            rows = self.database.rows[key]
            made.update(repr((key, [rows[s].checksum for s in sorted(rows)])).encode())
        return made.hexdigest()


class _Early(Drain):
    """The mistake: events are said to be on disk when they are only about to be."""

    _told = False

    def step(self) -> int:
        self._told = not self._told
        if not self._told:
            return super().step()
        assert self._page is not None
        for stream, link in self.links.items():
            self._page.set_durable(stream, self.journal.last[stream] + len(link))
        return 0


@cache
def _config() -> config.Config:
    """The drill's limits; read once."""
    made = config.loads(CONFIG.format(gap=4, seconds=0.0, position=POSITION, orders=ORDERS), env={})
    object.__setattr__(made, "risk", limits.without_figures(
        made.risk, "nobody computes figures in the simulation"))
    return made


class Life:
    """One run.

    Parameters
    ----------
    world : World
    run : int
    books : Books
        What it takes over.
    halted : bool
    """

    def __init__(self, world: World, run: int, books: Books, halted: bool) -> None:
        self.world, self.run, self.chance, self.bug = world, run, world.chance, world.bug
        self.links = _Links()
        memory = mmap.mmap(-1, _control.SIZE)
        _control.format(memory, run=run, stages=[s.name for s in topology.STAGES],
                        utc_offset=UTC, token_key=world.seed | 1)
        self.control = _control.Control(memory)
        self.cut: dict[int, int] = {}           # stream -> events its producer had not got to
        self.closed = halted                    # trading is halted, whatever the page says
        table = numpy.zeros(len(SYMBOLS), INSTRUMENT_TYPE)
        table["symbol"] = [s.encode() for s in SYMBOLS]
        table["tick"], table["lot"], table["min_qty"] = SECOND // 100, SECOND, SECOND
        table["base_price"], table["flags"] = 100 * SECOND, 2
        self.mixed = Mixed({"gap_ms": 4, "long": 300}, table)
        stages = build.stages(
            HOT, self.links, _config(), table, control=self.control,
            strategies=lambda: [PyStrategy(self.mixed.on_event)],
            wire=lambda made: DoorWire(self.links.door[0], self.links.answers[1]),
            durable=self.bug != "gateway.no_wait", past=books)
        self.stages: dict[str, Any] = dict(zip(HOT, stages, strict=True))
        self.page = self.control.stage(topology.INDEX["updates"])
        self.page.set("unsettled", 1)
        self.mirror = Reconciler(
            run, SYMBOLS, self.halt, lambda level, event, **more: None,
            absent=0 if self.bug == "reconcile.absent" else ABSENT, orders=SECOND // 5,
            positions=SECOND // 4, unlimited=True, start=world.now + UTC,
            opening=[books.rows[s].qty if s in books.rows else 0 for s in SYMBOLS])
        self.heard: list[Any] = []              # UPDATE records of the stream
        self.told: list[Answer] = []            # what REST answered
        self.rows: list[Any] = []               # what follows from it, for the gateway
        self.prices = [100 * SECOND] * len(SYMBOLS)
        self._resent: set[int] = set()
        self.journal: Journal | None = None
        self.reader: Reader | None = None
        self._open_journal(None)
        self._open_store()
        for _ in self.stages["ledger"].begin(*books.records(SYMBOLS)):
            self._journal()
        world.venue.tell = self._tell
        if not halted:
            self.control.resume(self.control.halt_epoch)

    # ---------------------------------------------------------------- cold processes

    def _open_journal(self, durable: int | None) -> None:
        if self.journal is not None:
            self.journal.close()
        self.journal = Journal(self.world.directory(self.run), self.run, size=segment.LEAST,
                               spares=1, durable=durable, disk=self.world.disk)
        early = self.bug == "journal.release_early"
        links = {s: _Cut(ring, early=True) if early else ring
                 for s, ring in self.links.stores().items()}
        self.drain = (_Early if self.bug == "journal.durable_early" else Drain)(
            self.journal, links, self.control)

    def _open_store(self) -> None:
        if self.reader is not None:
            self.reader.close()
        self.reader = Reader(self.world.directory(self.run), self.run, topology.stored(),
                             self.control.durable, lambda: self.writer.totals.by_stream)
        self.writer = SimWriter(self.reader.links, self.world.database,
                                Run(self.run, UTC, "sim"))

    def halt(self, reason: str) -> None:
        """Stop trading; what says so outlives the run."""
        self.closed = True
        self.world.halted = self.world.halted or reason
        if self.bug != "gateway.blind":
            self.control.halt()

    # ---------------------------------------------------------------- turns

    def turn(self, name: str, limit: int = 64) -> None:
        """Let one of the actors do something."""
        if name == "market":
            self._market()
        elif name == "journal":
            self._journal()
        elif name == "store":
            self.writer.step()
        elif name == "updates":
            self._updates()
        elif name == "gateway":
            self._gateway(limit)
        else:
            if name == "risk":
                self._relay()
            self._stage(name, limit)

    def _stage(self, name: str, limit: int) -> None:
        stage = self.stages[name]
        stage.do_work(limit)
        stage.flush()
        stage.check()

    def _market(self) -> None:
        world, i = self.world, self.chance.randrange(len(SYMBOLS))
        world.tick(self.chance.randint(MS // 5, 3 * MS if self.chance.random() < 0.9 else 30 * MS))
        tick = SECOND // 100
        self.prices[i] = max(self.prices[i] + self.chance.randint(-2, 2) * tick, SECOND)
        rows = numpy.zeros(3, MARKET_TYPE)              # a trade, and the quote after it
        rows["ts_recv"], rows["ts_venue"], rows["instrument"] = world.now, world.now + UTC, i
        rows["kind"], rows["side"] = (schema.MARKET_KIND.TRADE, *[schema.MARKET_KIND.QUOTE] * 2), [
            0, 1, -1]
        rows["price"], rows["qty"] = [self.prices[i], self.prices[i], self.prices[i] + tick], (
            500 * SECOND)
        rows["flags"] = [schema.MARKET_FLAG.LAST, 0, schema.MARKET_FLAG.LAST]
        self.stages["feed"].put_many(rows)
        self._stage("feed", 64)

    def _journal(self) -> None:
        try:
            self.drain.step()
        except DiskError as e:
            self.world.hits["disk refused"] += 1
            self.halt(str(e))
            raise Crash from None       # the journal is gone, and with it the run

    def _gateway(self, limit: int) -> None:
        closed = self.closed or not self.control.armed
        self._stage("gateway", limit)
        if not self.control.armed and not self.closed:
            self.halt("the gateway has halted")         # too many orders without an answer
        record = self.links.door[1]
        while (data := record.pop()) is not None:
            order = numpy.frombuffer(data, ORDER_TYPE)[0]
            name = session.client_order_id(self.run, int(order["order"]) & (1 << 56) - 1)
            if order["action"] == schema.ACTION.NEW:
                assert self.journal is not None
                seq = int(order["order"]) & (1 << schema.SEQ_BITS) - 1
                if self.journal.last[schema.STREAM.SIGNAL] < seq:
                    self.world.say("I1", f"order {name} was sent before its intent was on disk")
                if closed:
                    self.world.say("I6", f"order {name} was sent after a halt")
                if self.bug == "gateway.resend":
                    self.world.venue.later(SECOND // 2, self._resend, order)
            self.world.venue.send(order, self.run)
        record.flush()

    def _resend(self, order: Any) -> None:
        """The mistake: the same order again, under another name."""
        name = session.client_order_id(self.run, int(order["order"]) & (1 << 56) - 1)
        if name not in self.world.venue.orders_by_name:
            again = order.copy()
            again["order"] += 1 << 30
            self.world.venue.send(again, self.run)

    def _relay(self) -> None:
        """What the gateway tells risk; some mistakes are made here."""
        source, target = self.links.ends["gateway.risk"][1], self.links.relay[0]
        kinds, states = schema.ORDER_EVENT_KIND, schema.ORDER_STATE
        while target.room and (data := source.pop()) is not None:
            event = numpy.frombuffer(bytearray(data), ORDER_EVENT_TYPE)
            kind = int(event["kind"][0])
            ends = {"risk.cancel_sent": kind == kinds.CANCEL_SENT,
                    "risk.unknown_gone": kind == kinds.UNKNOWN,
                    "risk.release_first": kind == kinds.SENT,
                    "risk.partial_ends": False}.get(self.bug, False)
            if ends:
                event["kind"], event["state"] = kinds.CANCELED, states.CANCELED
            target.push(event.tobytes())
            if self.bug == "risk.partial_ends" and kind == kinds.PARTIAL_FILL:
                event["kind"], event["state"] = kinds.CANCELED, states.CANCELED
                target.push(event.tobytes())
        source.flush()

    # ---- what the venue tells

    def _tell(self, row: Any, stream: bool) -> None:
        row = row.copy()
        row["ts_recv"] = self.world.now
        if not stream:
            self.links.answers[0].push(row.tobytes())
            return
        if self.bug == "gateway.double" and row["execution"][0]:
            # Every telling gets a name of its own, and nothing says what was filled before.
            row["execution_low"], row["cum_qty"] = self.chance.getrandbits(60), 0
        self.heard.append(row)

    def _updates(self) -> None:
        now, stage, mirror = self.world.now, self.stages["updates"], self.mirror
        while len(events := stage.take()):
            mirror.events(events, now)
        rows, self.heard = self.heard, []
        for row in rows:
            stage.put_many(row)
            mirror.heard(row, now)
        if self.bug == "updates.no_look":
            self.page.set("unsettled", 0)
            self._stage("updates", 64)
            return
        told, self.told = self.told, []
        for answer in told:
            self.rows += mirror.answer(answer, now)
        rows, self.rows = self.rows, []
        for row in rows:
            stage.put_many(row)
        task = mirror.due(now)
        if task is not None:
            self.world.venue.later(self.chance.randint(MS, 10 * MS), self._ask, task, here=True)
        self.page.set("unsettled", int(not mirror.settled))
        self._stage("updates", 64)

    def _ask(self, task: Task) -> None:
        """The question arrives; the answer takes as long again."""
        venue = self.world.venue
        asked: dict[str, Callable[[], Any]] = {
            "order": lambda: venue.order_by_client_id(task.name),
            "orders": lambda: venue.orders(task.name), "positions": venue.positions,
            "fills": venue.fills, "cancel": lambda: venue.cancel(task.name),
            "pause": lambda: None}
        venue.later(self.chance.randint(MS, 10 * MS), self._answered,
                    Answer(task, asked[task.what]()), here=True)

    def _answered(self, answer: Answer) -> None:
        self.told.append(answer)

    def stream(self, up: bool) -> None:
        """The stream of updates comes up or goes down."""
        self.world.venue.up = up
        if up:
            self.mirror.went_live(self.world.now)
        else:
            self.page.set("unsettled", 1)
            self.mirror.went_down(self.world.now)

    # ---------------------------------------------------------------- a run

    def trade(self) -> None:
        """Trade until a fault ends it.

        Raises
        ------
        Crash
            That was the fault.
        """
        chance, world = self.chance, self.world
        names, weights = list(ACTORS), list(ACTORS.values())
        self.stream(True)
        for name in [*ACTORS] * 100:            # nothing is approved before that
            if self.mirror.settled:
                break
            self.turn(name)
        for _ in range(2):
            fault = chance.choice(FAULTS)
            steps = chance.randint(80, 420)
            for name in chance.choices(names, weights, k=steps):
                self.turn(name)
            self._strike(fault)
        world.hits["stopped in order"] += 1
        self._stop()

    def _strike(self, fault: str) -> None:
        chance, world = self.chance, self.world
        names, weights = list(ACTORS), list(ACTORS.values())
        world.hits[fault] += 1
        if fault == "drift" and chance.random() < 0.6:
            fault = "all killed"                # it blinds some judges: not too often
        if fault == "all killed":
            raise Crash
        if fault == "killed in a stage":
            name = chance.choice([n for n in HOT if n not in ("feed", "updates")])
            for other in chance.choices(names, weights, k=40):
                self.turn(other)
            ring = self.links.ends[f"{name}.store"][1]
            before = ring.taken + len(ring)
            self.turn(name, 1)
            made = ring.taken + len(ring) - before
            self.cut[topology.stream(name)] = chance.randint(0, made)
            raise Crash
        if fault in ("killed in a write", "host down in a write", "disk refuses"):
            if fault == "disk refuses":
                world.disk.refuse_in = chance.randint(1, 3)
            else:
                world.disk.power = fault.startswith("host")
                world.disk.crash_in = chance.randint(1, 5)
            for other in chance.choices(names, weights, k=120):
                self.turn(other)
            world.disk.power |= fault == "disk refuses" and chance.random() < 0.5
            raise Crash
        if fault == "host down":
            world.disk.power = True
            raise Crash
        if fault == "store killed":
            self._open_store()
        elif fault == "store killed in a transaction":
            world.database.crash_in = chance.randint(1, 30)
            try:
                for _ in range(30):
                    for other in chance.choices(names, weights, k=3):
                        self.turn(other)
                    self.writer.step()
            except Crash:
                self._open_store()
            world.database.crash_in = 0
        elif fault == "journal killed":
            self._open_journal(self.control.durable())
        elif fault == "database breaks":
            for _ in range(4):
                world.database.fail_in = chance.randint(1, 25)
                for other in chance.choices(names, weights, k=30):
                    self.turn(other)
                self.writer.step()
            world.database.fail_in = 0
        elif fault == "stopped in order":
            self._stop()
            raise Crash
        elif fault == "halt":
            self.halt("a person")
        elif fault == "updates down":
            self.stream(False)
            for other in chance.choices(names, weights, k=100):
                self.turn(other)
            self.stream(True)
        elif fault == "drift":
            world.drifted = True
            world.venue.drift()

    def _stop(self) -> None:
        """In good order: what is open is cancelled, everything comes to its end and is stored."""
        world = self.world
        self.mixed._life = 1
        end, quiet = world.now + QUIET, 0
        while world.now < end:
            self._market()
            world.tick(40 * MS)
            for name in ("book", "signal", "risk", "gateway", "updates", "gateway", "ledger",
                         "risk", "journal"):
                self.turn(name)
            if world.now > end - QUIET + 5 * SECOND:    # as the guardian does: nothing stays open
                for order in world.venue.orders("open"):
                    world.venue.cancel(order.id)
            if (self.closed or not self.control.armed) and world.now > end - QUIET + 8 * SECOND:
                break
            over = (not self.mirror.mirror.live and self.mirror.settled
                    and not self.mirror._seen and len(world.venue._ways) < 2)
            quiet = quiet + 1 if over else 0
            if quiet > 15:                      # two looks at the positions found nothing
                break
        if not self.closed and self.control.armed:
            for i, symbol in enumerate(SYMBOLS):
                ours = self.stages["ledger"].position(i)["qty"]
                if ours != world.venue.held[symbol] and not world.drifted:
                    world.say("I4", f"{symbol}: {ours / 1e9:g} here and "
                                    f"{world.venue.held[symbol] / 1e9:g} at the venue, "
                                    f"{QUIET // SECOND} s after trading ended, and not halted")
            if self.mirror.mirror.live and not world.drifted:
                world.say("I4", "orders come to no end: " + ", ".join(
                    f"{k.order:x}" for k in self.mirror.mirror.live.values()))
        while self.drain.lag:
            self._journal()
        world.drain(self.writer)

    def end(self) -> Left:
        """The processes are gone; what is left of them."""
        self.world.venue.cut()
        if self.journal is not None:
            self.journal.close()
        if self.reader is not None:
            self.reader.close()
        links = {s: _Cut(ring, self.cut.get(s, 0)) for s, ring in self.links.stores().items()}
        return Left(self.control, links, {s: link.end for s, link in links.items()})


# ---------------------------------------------------------------- many seeds

@dataclass
class Report:
    """What all seeds came to."""

    seed: int
    bug: str
    seeds: int = 0
    lives: int = 0
    orders: int = 0
    events: int = 0
    lost: int = 0
    seconds: float = 0.0
    hits: Counter[str] = field(default_factory=Counter)
    network: Counter[str] = field(default_factory=Counter)
    failing: list[dict[str, Any]] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """What was not as it must be."""
        return [f"seed {f['seed']}: {name}: {w}" for f in self.failing
                for name, words in f["wrong"].items() for w in words]

    def document(self) -> dict[str, Any]:
        """For ``-o json``."""
        return {
            "seed": self.seed, "seeds": self.seeds, "bug": self.bug,
            "runs": self.lives,
            "orders": self.orders, "events": self.events, "lost_on_disk": self.lost,
            "seconds": round(self.seconds, 1),
            "invariants": {name: {"what": what, "holds": not any(
                name in f["wrong"] for f in self.failing)} for name, what in
                crash.INVARIANTS.items()},
            "faults": dict(sorted(self.hits.items())),
            "never_hit": [name for name in FAULTS if not self.hits[name]],
            "network": dict(sorted(self.network.items())),
            "failing_seeds": [f["seed"] for f in self.failing], "missed": self.missed}


def one(seed: int, bug: str = "") -> World:
    """One world, to its end.

    Parameters
    ----------
    seed : int
    bug : str
        Mistake of :data:`planted.BUGS` that is made; empty = none.

    Raises
    ------
    UsageError
        If there is no such mistake.
    """
    if bug and bug not in BUGS:
        raise UsageError(f"a planted bug must be one of {', '.join(BUGS)}, was {bug!r}")
    place = Path(tempfile.mkdtemp(prefix="hftpipe-sim-"))
    try:
        with contextlib.ExitStack() as stack:
            if bug == "settle.no_cancel":
                stack.enter_context(_replaced(start, "_cancel", lambda *a: None))
                stack.enter_context(_replaced(
                    start, "_end", lambda venue, order, pause: venue.order(order.id)))
            if bug == "settle.no_fills":
                stack.enter_context(_replaced(start, "_missing", lambda *a: True))
            world = World(seed, place, bug)
            try:
                for _ in range(world.chance.randint(2, 4)):
                    world.live()
                    world.tick(world.chance.randint(MS, SECOND))
                    if "I8" in world.wrong:
                        break
                else:
                    world._start()
            except Exception as e:      # whatever stops a run is what the drill is looking for
                world.say("I8", f"a run stopped: {type(e).__name__}: {e}")
            return world
    finally:
        _clock.unset_virtual()
        shutil.rmtree(place)


def run(seeds: int, seed: int, bug: str = "", say: Callable[[str], None] = lambda words: None,
        ) -> Report:
    """Seeds *seed*, *seed* + 1, ...; with a planted *bug* only until one fails."""
    out, began = Report(seed, bug), time.monotonic()
    for number in range(seed, seed + seeds):
        world = one(number, bug)
        out.seeds += 1
        out.lives += len(world.runs)
        out.orders += sum(line["kind"] == "order" for line in world.venue.log)
        out.events += sum(map(len, world.database.rows.values()))
        out.lost += world.disk.lost
        out.hits.update(world.hits)
        out.network.update(world.venue.hits)
        if world.wrong:
            out.failing.append({"seed": number, "wrong": world.wrong})
            if bug:
                break
        out.seconds = time.monotonic() - began
        say(f"seed {number}: {out.seeds} of {seeds}, {len(out.failing)} failed")
    out.seconds = time.monotonic() - began
    return out


def bugs(seeds: int, seed: int, names: Sequence[str] = (),
         say: Callable[[str], None] = lambda words: None) -> Mapping[str, Report]:
    """Each planted mistake, until a seed finds it, at most *seeds* of them."""
    out = {}
    for name in names or BUGS:
        out[name] = run(seeds, seed, name)
        say(f"{name}: {'found' if out[name].failing else 'NOT FOUND'}")
    return out


def lines(report: Report) -> list[str]:
    """For people."""
    found = report.document()
    text = [f"{found['seeds']} seeds from {report.seed}, {report.lives} runs, {report.orders} "
            f"orders, {report.events} events, {report.seconds:.1f} s"
            + (f"; planted: {report.bug}, {BUGS[report.bug]}" if report.bug else "")]
    text += [f"{name}  {'holds ' if one_['holds'] else 'FAILED'}  {one_['what']}"
             for name, one_ in found["invariants"].items()]
    text.append("faults    " + ", ".join(f"{k} {v}" for k, v in found["faults"].items()))
    text.append("network   " + ", ".join(f"{k} {v}" for k, v in found["network"].items()))
    text += report.missed[:20]
    text += [f"again with: hftpipe drill sim --seeds 1 --seed {f['seed']}"
             + (f" --bug {report.bug}" if report.bug else "")
             for f in report.failing[:5]]
    return text


def bugs_document(found: Mapping[str, Report]) -> dict[str, Any]:
    """For ``-o json``: every planted mistake and what found it."""
    return {"bugs": len(found), "found": sum(bool(r.failing) for r in found.values()),
            "not_found": [name for name, r in found.items() if not r.failing],
            "detail": [{"bug": name, "what": BUGS[name], "seeds": r.seeds,
                        "found_by": r.failing[0]["seed"] if r.failing else None,
                        "invariants": sorted(r.failing[0]["wrong"]) if r.failing else []}
                       for name, r in found.items()]}


def bugs_lines(found: Mapping[str, Report]) -> list[str]:
    """For people."""
    document = bugs_document(found)
    text = [f"{d['bug']:22} " + (f"seed {d['found_by']} ({', '.join(d['invariants'])})"
                                 if d["found_by"] is not None else "NOT FOUND") + f"  {d['what']}"
            for d in document["detail"]]
    return [*text, f"{document['found']} of {document['bugs']} were found"]
