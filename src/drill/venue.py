"""``hftpipe drill venue``: the whole pipeline against a venue that does everything wrong.

In rounds: each is a run of its own on the local exchange with some faults of
``hftpipe.venue.chaos``.  When a round's faults are over, the run has to come to where the venue is,
or to be HALTED.  The venue's own log, which is exact, and the database are the judges.
"""
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftpipe import _clock, shm, topology
from hftpipe.drill import halt
from hftpipe.drill.again import again
from hftpipe.drill.halt import PATIENCE, end, until
from hftpipe.errors import HftpipeError, UsageError
from hftpipe.journal import runs
from hftpipe.rundir import RunDir
from hftpipe.venue import chaos, read_log
from hftpipe.venue.state import LIVE, NANO, nano

if TYPE_CHECKING:
    import psycopg

    from hftpipe._control import Control

GAP_MS = 60                     # between two orders of the strategy
RATE = 1000                     # market data messages per second
POSITION = 400                  # shares; the strategy wants more
ORDERS = 6                      # of one symbol that may be open
FOREVER = 1 << 62              # an end that has not come, monotonic ns
LEAST = 3.0                     # s of trading below which no round is begun
INVARIANTS = {
    "one order": "at most one broker order per intent, and none without an intent that was sent",
    "position": "position equal to the venue's, order by order, or HALTED",
    "exposure": f"never above {POSITION} shares, nor {ORDERS} open orders of a symbol",
    "after a halt": "nothing sent after a halt",
    "known end": "every intent filled, cancelled, rejected or refused, or its symbol frozen, or "
                 "HALTED",
    "whole": "the run ends in order, and the database has every event of it",
    "again": "from what its stages took, the run comes again, event by event (`hftpipe replay`)",
}
CONFIG = """
[[strategy]]
name = "mixed"
kind = "python"
entry = "hftpipe.drill.strategy:Mixed"
params = {{ gap_ms = {gap}, seconds = {seconds:.3f}, long = 300 }}
[risk]
max_open_orders = {orders}
max_order_shares = {position}
max_order_notional = 200000
max_position_shares = {position}
max_position_notional = 400000
max_total_notional = 1000000
max_orders_per_minute = 10000
max_daily_loss = 1000000
max_trade_loss = 1000000
duplicate_window_ms = "off: the drill orders the same again and again"
breaker_rejects = "off: the drill goes on"
breaker_failures = "off: the drill goes on"
breaker_latency_ms = "off: the drill goes on"
breaker_daily_loss = "off: the drill goes on"
[exits]
enabled = false
[halt]
error_rate = 0
latency = "0s"
position = 0
[gateway]
timeout = "1s"
check_orders = "10s"
check_positions = "15s"
[observe]
prometheus = "127.0.0.1:0"
"""
_OFTEN: dict[str, dict[str, Any]] = {
    **{k: {"every": "4s", "for": "2s"} for k in ("mute", "latency", "loss", "load", "clock")},
    **{k: {"every": "6s", "for": "1s"} for k in ("refuse_406", "refuse_429", "storm_429")},
    **{k: {"every": "6s"} for k in ("disconnect", "slow_client", "malformed", "oversized",
                                    "drift", "correct", "restate")},
    **{k: {"every": "5s", "for": "2s"} for k in ("halt", "band")},
    **{k: {"share": 0.05} for k in ("duplicate", "late", "missing", "reorder", "fill_first",
                                    "lost_now", "lost_never", "error_500", "error_502",
                                    "error_504", "reset")},
    "lost_late": {"share": 0.1},
}
_DATA = ("mute", "disconnect", "refuse_406", "refuse_429", "slow_client", "malformed", "oversized")
_UPDATES = ("mute", "disconnect", "refuse_429", "malformed", "oversized")
#: What the rounds have in turn; what loses an update or moves a position may end a round early.
MIXES: tuple[dict[str, dict[str, Any]], ...] = (
    {k: _OFTEN[k] for k in ("lost_now", "lost_never", "error_500", "error_502", "error_504",
                            "reset")},
    {k: _OFTEN[k] for k in ("duplicate", "late", "reorder", "fill_first")},
    {k: _OFTEN[k] | ({"on": ["data"]} if k in _UPDATES else {}) for k in _DATA},
    {k: _OFTEN[k] for k in ("storm_429", "latency", "loss", "load", "clock")},
    {"lost_late": _OFTEN["lost_late"]},
    {k: {**_OFTEN[k], "on": ["updates"]} for k in _UPDATES},
    {"missing": _OFTEN["missing"]},
    {"drift": _OFTEN["drift"]},
    {k: _OFTEN[k] for k in chaos.GROUPS["tape"]},
)
ENDS = ("denied", "dropped", "filled", "canceled", "rejected", "expired")


# ---------------------------------------------------------------- the venue's own log

def ours(name: str) -> bool:
    """Whether a client order id is of a run, and not of somebody else in the account."""
    return name.startswith("hp-")


def one_order(log: Iterable[Mapping[str, Any]], sent: set[str]) -> list[str]:
    """Client order ids with several orders, or with one that was not sent."""
    made = Counter(line["client_order_id"] for line in log if line["kind"] == "order")
    return ([f"{n} orders of {name}" for name, n in made.items() if n > 1]
            + [f"order {name} is at the venue, and the database knows of none that was sent"
               for name in made if ours(name) and name not in sent])


def exposure(log: Iterable[Mapping[str, Any]], shares: int, orders: int) -> list[str]:
    """Moments at which our orders and executions could come to more than *shares* or *orders*."""
    held: Counter[str] = Counter()
    left: dict[str, tuple[str, int, int]] = {}      # open ones: symbol, side, quantity
    wrong = []
    for line in log:
        if line["kind"] == "order" and ours(line["client_order_id"]):
            left[line["id"]] = (line["symbol"], 1 if line["side"] == "buy" else -1,
                                nano(line["qty"]))
        elif line["kind"] == "event" and line["id"] in left:
            symbol, side, qty = left[line["id"]]
            if "qty" in line:
                held[symbol] += side * nano(line["qty"])
                left[line["id"]] = symbol, side, qty - nano(line["qty"])
            if line["event"] in ("fill", "canceled", "expired", "rejected", "replaced"):
                del left[line["id"]]
        else:
            continue
        symbol = line.get("symbol") or symbol
        for side in (1, -1):
            could = side * held[symbol] + sum(q for s, d, q in left.values()
                                              if s == symbol and d == side)
            if could > shares * NANO:
                wrong.append(f"{symbol} could come to {side * could // NANO} shares with "
                             f"{line['client_order_id']}, the limit is {shares}")
        here = sum(s == symbol for s, _, _ in left.values())
        if here > orders:
            wrong.append(f"{here} orders of {symbol} were open with {line['client_order_id']}, "
                         f"the limit is {orders}")
    return wrong


class Truth:
    """The venue's log as it grows: positions, open orders, hits."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self.held: Counter[str] = Counter()     # nano
        self.orders: dict[str, dict[str, Any]] = {}     # by the venue's id
        self.hits: Counter[str] = Counter()
        self.late = 0                           # UTC ns at which the last late order is accepted

    def read(self) -> None:
        """Take what has been written since."""
        lines = (self._rest + self._file.read()).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self.take(json.loads(line))

    def take(self, line: Mapping[str, Any]) -> None:
        """One line."""
        kind = line["kind"]
        if kind == "order":
            self.orders[line["id"]] = {
                "name": line["client_order_id"], "symbol": line["symbol"], "status": "accepted",
                "side": 1 if line["side"] == "buy" else -1, "filled": 0}
        elif kind == "event":
            order = self.orders[line["id"]]
            order["status"] = line["event"]
            if "qty" in line:
                order["filled"] += nano(line["qty"])
                self.held[order["symbol"]] += order["side"] * nano(line["qty"])
        elif kind == "chaos":
            self.hits[line["fault"]] += line.get("n", 1)
            if line["fault"] == "lost_late":
                self.late = max(self.late, line["ts"] + int((line["delay"] + 0.2) * 1e9))

    @property
    def open(self) -> list[str]:
        """Client order ids of what can still trade."""
        return [o["name"] for o in self.orders.values()
                if o["status"] in LIVE or o["status"] == "partial_fill"]

    def positions(self) -> dict[str, int]:
        """Held quantities in nano, without the flat ones."""
        return {s: q for s, q in self.held.items() if q}

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


# ---------------------------------------------------------------- what the database says

@dataclass
class Row:
    """One order of the run, as the database has it."""

    name: str
    symbol: str
    status: str
    filled: int                 # nano
    sent: int                   # monotonic ns; 0 = never
    unknown: int                # monotonic ns at which it last became UNKNOWN; 0 = never


def rows_of(c: psycopg.Connection, run: int) -> list[Row]:
    """Every order that the strategy wanted."""
    found = c.execute(
        """SELECT o.client_order_id, o.symbol, o.status, o.filled_quantity,
                  coalesce(e.sent, 0), coalesce(e.unknown, 0)
           FROM hftpipe.orders o LEFT JOIN (
               SELECT "order", min(ts) FILTER (WHERE kind = 3) AS sent,
                      max(ts) FILTER (WHERE kind = 12) AS unknown
               FROM hftpipe.order_event WHERE run = %(run)s GROUP BY "order") e
           ON e."order" = o.order_id WHERE o.run = %(run)s ORDER BY o.order_id""", {"run": run})
    return [Row(n, s, status, nano(filled), sent, unknown)
            for n, s, status, filled, sent, unknown in found]


def positions_of(c: psycopg.Connection, run: int) -> dict[str, int]:
    """Positions of the run in nano, without the flat ones."""
    return {s: nano(q) for s, q in c.execute(
        "SELECT symbol, quantity FROM hftpipe.positions WHERE run = %s", (run,)) if q}


def ends(rows: Sequence[Row], halted: bool) -> list[str]:
    """Orders whose end nobody knows, where trading went on with the symbol."""
    if halted:
        return []
    wrong = []
    for row in rows:
        if row.status not in ENDS:
            later = [r.name for r in rows if r.symbol == row.symbol and r.sent > row.unknown > 0]
            if later or not row.unknown:
                wrong.append(f"{row.name} is {row.status}, and {row.symbol} is not frozen"
                             + (f": {len(later)} orders came after it" if later else ""))
    return wrong


def position(rows: Sequence[Row], held: Mapping[str, int], truth: Truth,
             halted: bool) -> list[str]:
    """Where we and the venue differ without a halt."""
    if halted:
        return []
    both = {s: (held.get(s, 0), truth.held[s]) for s in held.keys() | truth.positions().keys()}
    wrong = [f"{s}: the ledger holds {a / NANO:g}, the venue {b / NANO:g}"
             for s, (a, b) in sorted(both.items()) if a != b]
    filled = {o["name"]: o["filled"] for o in truth.orders.values()}
    return wrong + [f"{r.name} is {r.status} with {r.filled / NANO:g}, at the venue with "
                    f"{filled.get(r.name, 0) / NANO:g}"
                    for r in rows if r.filled != filled.get(r.name, 0)]


def after_halt(rows: Sequence[Row], spans: Iterable[tuple[int, int]]) -> list[str]:
    """Orders sent while trading was halted; spans are of closed gates, monotonic ns."""
    return [f"{row.name} was sent {(row.sent - begin) / 1e6:.1f} ms after the gate had closed"
            for begin, end in spans for row in rows if begin < row.sent < end]


# ---------------------------------------------------------------- rounds

@dataclass
class Round:
    """One run and what it came to."""

    number: int
    faults: tuple[str, ...]
    seed: int
    hits: dict[str, int] = field(default_factory=dict)
    orders: int = 0
    halts: int = 0
    halted: bool = False        # by itself, at the end
    end: str = ""               # settled, halted, or not settled
    seconds: float = 0.0
    wrong: dict[str, list[str]] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """All rounds."""

    seed: int
    rounds: list[Round] = field(default_factory=list)

    @property
    def hits(self) -> Counter[str]:
        out: Counter[str] = Counter()
        for r in self.rounds:
            out.update(r.hits)
        return out

    @property
    def missed(self) -> list[str]:
        """What was not as it must be."""
        return [f"round {r.number} (seed {r.seed}, {', '.join(r.faults)}): {name}: {w}"
                for r in self.rounds for name, found in r.wrong.items() for w in found]

    def document(self) -> dict[str, Any]:
        """For ``-o json``."""
        hits, statuses = self.hits, Counter[str]()
        for r in self.rounds:
            statuses.update(r.statuses)
        return {
            "seed": self.seed, "rounds": len(self.rounds),
            "orders": sum(r.orders for r in self.rounds),
            "halts": sum(r.halts for r in self.rounds),
            "ends": dict(Counter(r.end for r in self.rounds)), "statuses": dict(statuses),
            "invariants": {name: {"what": what, "holds": not any(
                r.wrong.get(name) for r in self.rounds)} for name, what in INVARIANTS.items()},
            "faults": {k: hits.get(k, 0) for k in chaos.KINDS}, "missed": self.missed,
            "detail": [{"round": r.number, "seed": r.seed, "faults": list(r.faults),
                        "hits": r.hits, "orders": r.orders, "halts": r.halts, "end": r.end,
                        "seconds": round(r.seconds, 1)} for r in self.rounds]}


def toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """A chaos profile as a file."""
    return "".join(f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items())
                   for name, table in tables.items())


def database(directory: RunDir) -> psycopg.Connection:
    """The database of the run in *directory*, while it runs."""
    import psycopg

    from hftpipe import worker
    private = json.loads((directory.path / worker.PRIVATE).read_text(encoding="utf-8"))
    return psycopg.connect(worker.conninfo(private), autocommit=True, connect_timeout=10)


class Scene:
    """One run on the local exchange with faults."""

    def __init__(self, place: Path, faults: Mapping[str, Mapping[str, Any]], seed: int,
                 seconds: float, most: float) -> None:
        self.directory = RunDir(place / "run")
        config, profile = place / "drill.toml", place / "chaos.toml"
        config.write_text(CONFIG.format(gap=GAP_MS, seconds=seconds, position=POSITION,
                                        orders=ORDERS))
        profile.write_text(toml({"chaos": {"begin": "order", "stop": f"{seconds:.3f}s"},
                                 **faults}))
        self._config, self._err = config, place / "run.err"
        self._out = (place / "run.out").open("w+")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "hftpipe", "-C", str(config), "--run-dir",
             str(self.directory.path), "demo", "--oversubscribe", "--for", f"{most:.0f}s",
             "--seed", str(seed), "--rate", str(RATE), "--chaos", str(profile), "-o", "json"],
            stdout=self._out, stderr=self._err.open("w"), text=True)
        self.run = self._until(self.directory.read_run, "run.json")
        self.control: Control = self._until(self._page, "the control page")
        self._until(lambda: self.control.armed, "trading is armed")
        self.guardian = next(b for b in self.control.stages if b.name == "guardian")
        self.gateway = self.control.stage(topology.INDEX["gateway"])
        self.log = self._until(
            lambda: next((self.directory.path / "venue").glob("*/orders.jsonl"), None),
            "the venue's log")
        self.truth = Truth(self.log)

    def _until(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            return until(condition, what, self.popen)
        except HftpipeError as e:
            self.close()
            said = self._err.read_text().strip().splitlines()
            raise type(e)(f"{e}{': ' + said[-1] if said else ''}") from None

    def _page(self) -> Control | None:
        try:
            return shm.control(self.run.run)
        except HftpipeError:
            return None

    @property
    def halted(self) -> bool:
        return self.control.trading == "halted"

    def closed(self) -> int:
        """Wait until the gate has seen the halt; its epoch."""
        epoch = self.control.halt_epoch
        until(lambda: self.gateway.ack_epoch >= epoch, "the gate has closed", self.popen, pause=0)
        return epoch

    def resume(self) -> bool:
        """Ask for it as an operator would; whether it was granted."""
        done = subprocess.run(
            [*halt.hftpipe(), "-C", str(self._config), "--run-dir", str(self.directory.path),
             "resume", "--reason", "drill: checked against the venue"],
            capture_output=True, text=True, timeout=PATIENCE, check=False)
        return done.returncode == 0

    def database(self) -> psycopg.Connection:
        """The run's database while it runs."""
        return database(self.directory)

    def agree(self, c: psycopg.Connection) -> bool:
        """Whether nothing is open, here or there, and the positions are the same."""
        self.truth.read()
        return (not self.truth.open and _clock.utc_ns() > self.truth.late
                and not self.gateway.counter("orders_open")
                and positions_of(c, self.run.run) == self.truth.positions())

    def finish(self) -> tuple[int, dict[str, Any]]:
        """Stop the run; its exit code and what it said at its end."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        code = self.popen.wait(2 * PATIENCE)
        self._out.seek(0)
        said = self._out.read().strip().splitlines()
        return code, json.loads(said[-1]) if said else {}

    def why(self) -> str:
        """The last words on standard error."""
        said = self._err.read_text().strip().splitlines()
        return said[-1] if said else "it said nothing"

    def close(self) -> None:
        """End it, whatever it does."""
        end(self.popen)
        self._out.close()


def play(place: Path, out: Round, faults: Mapping[str, Mapping[str, Any]], seconds: float,
         patience: float, say: Callable[[str], object]) -> None:
    """One round: *seconds* of trading under *faults*, and at most *patience* to settle."""
    import psycopg
    began = time.monotonic()
    spans: list[tuple[int, int]] = []
    wrong = out.wrong["whole"] = []
    try:
        scene = Scene(place, faults, out.seed, seconds, 2 * (seconds + patience) + 60)
    except HftpipeError as e:
        out.end = "not begun"
        wrong.append(str(e))
        return
    try:
        try:
            with scene.database() as c:
                end = _active(scene, c, out, spans, wrong, seconds, patience, say)
                out.end = _settle(scene, c, out, spans, end + patience, say)
        except (HftpipeError, psycopg.Error) as e:      # the run ended, or hangs
            out.end = "ended"
            wrong.append(str(e).splitlines()[0])
        out.halted = scene.halted
        code, said = scene.finish()
        if out.halted and spans:
            spans[-1] = spans[-1][0], FOREVER
        if code or not said.get("verified"):
            wrong.append(f"the run ended with {code}: {said.get('cause') or scene.why()}")
        out.wrong["again"] = again(runs.place(
            runs.base("", scene.directory.path), scene.run.run))
        scene.truth.read()
        out.hits, out.orders = dict(scene.truth.hits), len(scene.truth.orders)
        _judge(scene, out, spans)
    finally:
        scene.close()
        scene.truth.close()
        out.seconds = time.monotonic() - began


def _active(scene: Scene, c: psycopg.Connection, out: Round, spans: list[tuple[int, int]],
            wrong: list[str], seconds: float, patience: float,
            say: Callable[[str], object]) -> float:
    """While faults come; monotonic s of its end."""
    def first() -> bool:
        scene.truth.read()
        return bool(scene.truth.orders or scene.truth.hits)

    until(first, "the first order is at the venue", scene.popen)
    begin = time.monotonic()
    told = 0.0
    while (now := time.monotonic()) < begin + seconds:
        if scene.popen.poll() is not None:
            break
        scene.truth.read()
        if now - told > 0.5:
            told = now
            say(f"round {out.number}  {', '.join(out.faults)}  {now - begin:.0f} of "
                f"{seconds:.0f} s  {len(scene.truth.orders)} orders  "
                f"{sum(scene.truth.hits.values())} faults  {out.halts} halts")
        if scene.halted and not _halted(scene, c, out, spans, wrong, patience):
            break
        time.sleep(0.02)
    return time.monotonic()


def _halted(scene: Scene, c: psycopg.Connection, out: Round, spans: list[tuple[int, int]],
            wrong: list[str], patience: float) -> bool:
    """Look at a halt, and resume if we and the venue agree; whether trading goes on."""
    out.halts += 1
    epoch = scene.closed()
    begin, sent = _clock.now_ns(), scene.gateway.counter("orders_sent")
    spans.append((begin, FOREVER))
    until(lambda: scene.guardian.counter("settled_epoch") >= epoch, "the guardian has settled",
          scene.popen)
    end = time.monotonic() + min(5.0, patience)
    while not scene.agree(c):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    later = scene.gateway.counter("orders_sent") - sent
    if later:
        wrong.append(f"the gateway sent {later} orders after the gate had closed")
    spans[-1] = begin, _clock.now_ns()
    if scene.resume():
        return True
    spans[-1] = begin, FOREVER
    return False


def _settle(scene: Scene, c: psycopg.Connection, out: Round, spans: list[tuple[int, int]],
            deadline: float, say: Callable[[str], object]) -> str:
    """Give the run time to find out where it stands."""
    while scene.popen.poll() is None:
        if scene.halted:
            if not spans or spans[-1][1] != FOREVER:
                out.halts += 1
                scene.closed()
                spans.append((_clock.now_ns(), FOREVER))
            return "halted"
        if scene.agree(c):
            return "settled"
        now = time.monotonic()
        if now > deadline and _clock.utc_ns() > scene.truth.late:
            out.wrong["known end"] = [
                f"not settled in time: {len(scene.truth.open)} orders open at the venue, "
                f"{scene.gateway.counter('orders_open')} here, positions "
                f"{positions_of(c, scene.run.run)} here, {scene.truth.positions()} there"]
            return "not settled"
        say(f"round {out.number}  {', '.join(out.faults)}  settling, at most "
            f"{max(deadline - now, 0):.0f} s: {len(scene.truth.open)} orders open at the venue, "
            f"{scene.gateway.counter('orders_open')} here")
        time.sleep(0.1)
    return "ended"


def _judge(scene: Scene, out: Round, spans: Sequence[tuple[int, int]]) -> None:
    """What the venue's log and the database say about the invariants."""
    import psycopg

    from hftpipe.store.postgres import Postgres
    log, run = read_log(scene.log.parent), scene.run.run
    with Postgres(scene.directory.path) as conninfo, psycopg.connect(conninfo) as c:
        rows, held = rows_of(c, run), positions_of(c, run)
    out.statuses = dict(Counter(row.status for row in rows))
    out.wrong |= {
        "one order": one_order(log, {row.name for row in rows if row.sent}),
        "position": position(rows, held, scene.truth, out.halted),
        "exposure": exposure(log, POSITION, ORDERS),
        "after a halt": after_halt(rows, spans),
        "known end": out.wrong.get("known end", []) + ends(rows, out.halted)}


# ---------------------------------------------------------------- the drill

def mixes(profile: str | None) -> Sequence[Mapping[str, Mapping[str, Any]]]:
    """Faults of the rounds, in turn; UsageError when there is no such profile."""
    if profile is None:
        return MIXES
    if profile in chaos.GROUPS:
        return [{k: _OFTEN[k] for k in chaos.GROUPS[profile]}]
    if profile in chaos.PROFILES:
        return [chaos.PROFILES[profile]]
    if profile in chaos.KINDS:
        return [{profile: _OFTEN[profile]}]
    raise UsageError(f"--profile must be one of {', '.join([*chaos.PROFILES, *chaos.KINDS])}, "
                     f"was {profile!r}")


def run(seconds: float, seed: int, *, length: float = 30.0, patience: float = 75.0,
        profile: str | None = None, keep: Path | None = None,
        say: Callable[[str], object] = lambda words: None) -> Report:
    """Rounds of *length* seconds of trading each, until *seconds* have passed.

    Parameters
    ----------
    seconds : float
    seed : int
        Of everything: round n has the seed ``seed + n``.
    length : float, s
        Of the faults in one round.
    patience : float, s
        That a run has to find out where it stands once they are over.
    profile : str, optional
        Faults of every round; by default all kinds in turn.
    keep : Path, optional
        Directory that rounds in which an invariant failed are kept in.
    say : callable
        Told how far it is.
    """
    faults = mixes(profile)
    report = Report(seed)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) >= LEAST or not report.rounds:
        n = len(report.rounds)
        mix = faults[n % len(faults)]
        out = Round(n + 1, tuple(mix), seed + n)
        report.rounds.append(out)
        with halt.place() as at:
            play(at, out, mix, max(LEAST, min(length, left)), patience, say)
            if keep is not None and any(out.wrong.values()):
                _keep(at, keep / f"round-{out.number}")
    return report


def _keep(at: Path, place: Path) -> None:
    """Copy what is needed to see what happened."""
    import shutil
    place.mkdir(parents=True, exist_ok=True)
    for path in (*at.glob("*.toml"), *at.glob("run.*"), *at.glob("run/venue/*/orders.jsonl"),
                 *at.glob("run/logs/*")):
        shutil.copy(path, place / path.name)


def lines(report: Report) -> list[str]:
    """For people."""
    said = report.document()
    out = [f"{name:<14} {'holds ' if i['holds'] else 'BROKEN'}   {i['what']}"
           for name, i in said["invariants"].items()]
    out += ["", f"rounds         {said['rounds']}: "
            + ", ".join(f"{n} {name}" for name, n in said["ends"].items()),
            f"orders         {said['orders']} at the venue; of those wanted "
            + ", ".join(f"{n} {name}" for name, n in sorted(said["statuses"].items())),
            f"halts          {said['halts']}", "faults         "
            + ", ".join(f"{n} {name}" for name, n in said["faults"].items())]
    return out + [f"WRONG          {w}" for w in said["missed"]]
