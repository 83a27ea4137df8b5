"""``hftpipe drill crash``: the pipeline is killed in every way there is, and started again.

In rounds on one run directory, so that each start takes over what the round before left: one fault,
then, when the next run is up, the judgement.  The venue's own log, the journal and the database are
the judges.

A fault is a process killed with -9, stopped and let go on, a fault point (``src/_fault.h``; in a
build that has them, ``make faults``), the database killed or stopped or locked, or all at once, as
when the host goes down.
"""
from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftpipe import _control, _fault, schema, shm, topology
from hftpipe.drill import halt
from hftpipe.drill.again import again
from hftpipe.drill.halt import until
from hftpipe.drill.venue import CONFIG, ORDERS, POSITION, database, exposure, ours
from hftpipe.errors import Exit, HftpipeError, UsageError
from hftpipe.rundir import RunDir
from hftpipe.venue import read_log
from hftpipe.venue.state import NANO, nano

if TYPE_CHECKING:
    import psycopg

    from hftpipe._control import Control

RATE = 1000                     # market data messages per second
GAP_MS = 25                     # between two orders of the strategy
REACH = 12.0                    # s that a fault point has to be passed
FATAL = ("feed", "book", "signal", "risk", "gateway", "updates", "ledger")
COLD = ("journal", "store", "monitor", "analyst", "guardian")
DATABASE = ("postgres killed", "postgres stopped at once", "store's session ended",
            "tables locked")
HOST = ("supervisor killed", "everything killed", "SIGTERM", "a second start")
ONCE = {"start.stored", "start.settled", "start.told", "start.recorded", "ledger.opening",
        "ledger.opened"}
#: How often a point is passed before the fault: the lower ones while it starts; others 1 to 15.
OFTEN = {"feed.recorded": (500, 9000), "feed.passed": (500, 9000), "book.passed": (500, 9000),
         "signal.recorded": (10, 90), "signal.passed": (10, 90), "risk.reserved": (10, 90),
         "risk.recorded": (10, 90), "risk.passed": (10, 90), "journal.writing": (200, 2500),
         "journal.written": (200, 2500), "journal.durable": (200, 2500), "store.begun": (5, 90),
         "store.marked": (5, 90), "store.copied": (5, 90), "store.committed": (5, 90),
         "ledger.booked": (1, 8), "ledger.published": (1, 8), "gateway.heard": (1, 30),
         "gateway.applied": (1, 30), "gateway.told": (1, 30)}
STATES = ("created", "sent", "open", "partial", "pending_cancel", "filled", "canceled")
SLACK = 50_000_000              # ns from a halt that risk saw to the last stamp of an order
INVARIANTS = {
    "I1": "no order at the venue without an intent that risk approved, on record",
    "I2": "at most one order at the venue for each intent",
    "I3": "the database has every event of the journal, once, as it was recorded",
    "I4": "positions and realised P&L are the venue's after each start, exactly, or HALTED",
    "I5": f"never more than {POSITION} shares possible, nor {ORDERS} open orders of a symbol",
    "I6": "no order is sent after a halt",
    "I7": "orders of one run at a time: none of an earlier one after a later one's",
    "I8": "every start comes up, and every end in good order exits 0 with all rows stored",
    "I9": "from what its stages took, a run comes again, event by event (`hftpipe replay`)",
}


# ---------------------------------------------------------------- what the venue's log says

Books = dict[str, tuple[Fraction, Fraction, Fraction]]


def books(log: Iterable[Mapping[str, Any]]) -> Books:
    """Quantity, cost and realised P&L by symbol, in fractions: every execution of ours."""
    orders: dict[str, Mapping[str, Any]] = {}
    out: dict[str, list[Fraction]] = {}
    for line in log:
        if line["kind"] == "order" and ours(line["client_order_id"]):
            orders[line["id"]] = line
        elif line["kind"] == "event" and "qty" in line and line["id"] in orders:
            order = orders[line["id"]]
            book = out.setdefault(order["symbol"], [Fraction()] * 3)
            side = 1 if order["side"] == "buy" else -1
            qty, price = Fraction(nano(line["qty"]), NANO), Fraction(nano(line["price"]), NANO)
            closed = min(qty, abs(book[0])) if book[0] * side < 0 else Fraction()
            if closed:
                part = book[1] * closed / abs(book[0])
                book[2] += -side * price * closed - part
                book[1] -= part
            book[1] += side * price * (qty - closed)
            book[0] += side * qty
    return {symbol: (b[0], b[1], b[2]) for symbol, b in out.items()}


def run_of(name: str) -> int:
    """The run that a client order id of ours names."""
    return int(name.split("-")[1], 16)


def one_run(log: Iterable[Mapping[str, Any]]) -> list[str]:
    """Orders that came after one of a later run."""
    newest, wrong = 0, []
    for line in log:
        if line["kind"] == "order" and ours(line["client_order_id"]):
            run = run_of(line["client_order_id"])
            if run < newest:
                wrong.append(f"{line['client_order_id']} came after an order of run {newest:x}")
            newest = max(newest, run)
    return wrong


def differ(ours_: Books, theirs: Books) -> list[str]:
    """Symbols whose books are not the same; a reduction may cost less than 1e-18."""
    wrong = []
    zero = (Fraction(), Fraction(), Fraction())
    for symbol in sorted(ours_.keys() | theirs.keys()):
        a, b = ours_.get(symbol, zero), theirs.get(symbol, zero)
        if a[0] != b[0] or any(abs(x - y) > Fraction(1, 10**13) for x, y in zip(a, b, strict=True)):
            wrong.append(f"{symbol}: here {float(a[0]):g} for {float(a[1]):.9f}, realised "
                         f"{float(a[2]):+.9f}; at the venue {float(b[0]):g} for "
                         f"{float(b[1]):.9f}, realised {float(b[2]):+.9f}")
    return wrong


# ---------------------------------------------------------------- rounds

@dataclass
class Round:
    """One fault and what came of it."""

    number: int
    fault: str
    seed: int
    hit: bool = False
    run: int = 0                # the run it struck; 0 = none was made
    orders: int = 0             # of that run at the venue
    states: dict[str, int] = field(default_factory=dict)
    end: str = ""
    halted: str = ""            # why the next run came up halted
    seconds: float = 0.0
    wrong: dict[str, list[str]] = field(default_factory=dict)

    def say(self, invariant: str, *words: str) -> None:
        if words:
            self.wrong.setdefault(invariant, []).extend(words)


@dataclass
class Report:
    """All rounds."""

    seed: int
    points: bool
    rounds: list[Round] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """What was not as it must be."""
        return [f"round {r.number} (seed {r.seed}, {r.fault}): {name}: {w}"
                for r in self.rounds for name, found in r.wrong.items() for w in found]

    def document(self) -> dict[str, Any]:
        """For ``-o json``."""
        hits = Counter(r.fault for r in self.rounds if r.hit)
        states: Counter[str] = Counter()
        for r in self.rounds:
            states.update(r.states)
        wanted = faults(self.points)
        return {
            "seed": self.seed, "rounds": len(self.rounds), "fault_points": self.points,
            "orders": sum(r.orders for r in self.rounds),
            "seconds": round(sum(r.seconds for r in self.rounds), 1),
            "invariants": {name: {"what": what, "holds": not any(
                r.wrong.get(name) for r in self.rounds)} for name, what in INVARIANTS.items()},
            "faults": {name: hits.get(name, 0) for name in wanted},
            "never_hit": [name for name in wanted if not hits.get(name)],
            "order_states": {name: states.get(name, 0) for name in STATES},
            "ends": dict(Counter(r.end for r in self.rounds)), "missed": self.missed,
            "detail": [{"round": r.number, "seed": r.seed, "fault": r.fault, "hit": r.hit,
                        "run": f"{r.run:x}", "orders": r.orders, "states": r.states, "end": r.end,
                        "halted": r.halted, "seconds": round(r.seconds, 1)}
                       for r in self.rounds]}


def faults(points: bool = _fault.BUILT) -> tuple[str, ...]:
    """Every fault there is; fault points only where the build has them."""
    return (*(f"{name} killed" for name in (*FATAL, *COLD)),
            *(f"{name} stopped" for name in (*FATAL, *COLD)), *DATABASE, *HOST,
            *(name for names in _fault.POINTS.values() for name in names if points))


class Life:
    """One run of the drill, from its start to its end."""

    def __init__(self, place: Path, seed: int, point: str = "", count: int = 1,
                 split: bool = False) -> None:
        self.directory, self._place = RunDir(place / "run"), place
        self.mark = place / "fault"
        self.mark.unlink(missing_ok=True)
        self.before = self._last()
        env = {k: v for k, v in os.environ.items() if not k.startswith("HFT_FP")}
        if point:
            env |= {"HFT_FP": f"{point}:{count}", "HFT_FP_LOG": str(self.mark)}
        self._out, self._err = (place / "run.out").open("w+"), (place / "run.err").open("w+")
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "hftpipe", "-C", str(place / "drill.toml"), "--run-dir",
             str(self.directory.path), "demo", "--for", "3600s", "--seed", str(seed), "--rate",
             str(RATE), *(["--oversubscribe"] if split else []), "-o", "json"],
            stdout=self._out, stderr=self._err, text=True, env=env)
        self.run = 0
        self.control: Control | None = None

    def _last(self) -> int:
        found = self.directory.read_run()
        return found.run if found else 0

    def page(self) -> Control | None:
        """The control page of this run, once there is one."""
        found = self.directory.read_run()
        if found is None or found.run == self.before:
            return None
        self.run = found.run
        self.record = found
        with contextlib.suppress(HftpipeError):         # it is still being made
            self.control = shm.control(found.run)
        return self.control

    def up(self) -> Control:
        """Wait until it trades; a halt that says why is lifted, as a person would."""
        control: Control = until(self.page, "the control page", self.popen)
        until(lambda: all(b.state == _control.RUNNING for b in control.stages),
              "every stage runs", self.popen)
        until(lambda: control.trading != "disarmed" and self.directory.path.joinpath(
            "control.sock").exists(), "it is armed or halted", self.popen)
        return control

    def resume(self) -> None:
        """Lift a halt."""
        assert self.control is not None
        end = time.monotonic() + halt.PATIENCE
        while not self.control.armed:
            done = subprocess.run(
                [sys.executable, "-m", "hftpipe", "--run-dir", str(self.directory.path), "resume",
                 "--reason", "drill: books and venue agree"], capture_output=True, text=True,
                timeout=halt.PATIENCE, check=False)
            if done.returncode and time.monotonic() > end:
                raise HftpipeError(f"resume: {done.stderr.strip()}")

    def pid(self, name: str) -> int:
        """Of the process that runs the stage *name*."""
        assert self.control is not None
        return int(self.control.stage(topology.INDEX[name]).pid)

    def counter(self, stage: str, name: str) -> int:
        """Of the control page."""
        assert self.control is not None
        return self.control.stage(topology.INDEX[stage]).counter(name)

    @property
    def struck(self) -> int:
        """The process that its fault point has killed; 0 = not yet."""
        try:
            said = self.mark.read_text()
        except FileNotFoundError:
            return 0
        return int(said.split()[1]) if said.endswith("\n") else 0      # else it is being written

    def database(self) -> psycopg.Connection:
        """The run's database while it runs."""
        return database(self.directory)

    def postmaster(self) -> int:
        """The database's first process."""
        path = self.directory.path / "pg/data/postmaster.pid"
        return int(path.read_text().split()[0])

    def family(self) -> list[int]:
        """Every process of the run, the database's among them."""
        pids = {self.popen.pid}
        if self.control is not None:
            pids |= {b.pid for b in self.control.stages if b.pid}
        # no server yet, or it is writing its file
        with contextlib.suppress(OSError, ValueError, IndexError):
            pids.add(self.postmaster())
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, ValueError):      # it has ended meanwhile
                    words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                    if os.fsencode(str(self.directory.path)) in b" ".join(words):
                        pids.add(int(entry))
        return [pid for pid in pids if pid != os.getpid()]

    def finish(self) -> tuple[int, dict[str, Any]]:
        """Stop it in good order; exit code and what it said."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        code = self.popen.wait(2 * halt.PATIENCE)
        self._out.seek(0)
        said = self._out.read().strip().splitlines()
        return code, json.loads(said[-1]) if said else {}

    def why(self) -> str:
        """The last words on standard error."""
        self._err.seek(0)
        said = self._err.read().strip().splitlines()
        return said[-1] if said else "it said nothing"

    def close(self) -> None:
        """Over, whatever it does."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self._out.close()
        self._err.close()


# ---------------------------------------------------------------- faults

def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        if pid > 1:
            os.kill(pid, number)


def strike(life: Life, out: Round, chance: random.Random) -> None:
    """Do what the round is about to a run that trades; it may be over then."""
    name, _, what = out.fault.rpartition(" ")
    wanted = chance.randint(1, 12)
    sent = life.counter("gateway", "orders_sent")
    until(lambda: life.counter("gateway", "orders_sent") >= sent + wanted, "orders are sent",
          life.popen)
    time.sleep(chance.random() * 0.03)          # anywhere between two orders
    out.hit = True
    if out.fault == "everything killed":
        for pid in life.family():
            kill(pid)
    elif out.fault == "supervisor killed":
        kill(life.popen.pid)
    elif out.fault == "SIGTERM":
        kill(life.popen.pid, signal.SIGTERM)
    elif out.fault == "a second start":
        _second(life, out)
    elif out.fault in DATABASE:
        _database(life, out, chance)
    elif what == "killed":
        pid = life.pid(name)
        kill(pid)
        if name in COLD:
            _again(life, name, pid)
    else:
        _stop(life, life.pid(name), chance)


def _again(life: Life, name: str, pid: int) -> None:
    """Wait for the process that takes the place of one that was killed."""
    assert life.control is not None
    block = life.control.stage(topology.INDEX[name])
    until(lambda: block.pid != pid and block.state == _control.RUNNING, f"another {name} runs",
          life.popen)


def _stop(life: Life, pid: int, chance: random.Random) -> None:
    """Stop a process for a moment, or for long enough that trading halts."""
    kill(pid, signal.SIGSTOP)
    time.sleep(chance.choice((0.05, 0.4, 2.6)))
    kill(pid, signal.SIGCONT)


def _second(life: Life, out: Round) -> None:
    """Start another one in the same directory: it must be refused."""
    done = subprocess.run(
        [sys.executable, "-m", "hftpipe", "--run-dir", str(life.directory.path), "demo", "--for",
         "1s"], capture_output=True, text=True, timeout=halt.PATIENCE, check=False)
    if done.returncode != Exit.TRY_AGAIN:
        out.say("I7", f"a second start ended with {done.returncode}, not {int(Exit.TRY_AGAIN)}")


def _database(life: Life, out: Round, chance: random.Random) -> None:
    """Something happens to PostgreSQL; trading goes on, and nothing is missing afterwards."""
    import psycopg
    rows = life.counter("store", "rows_stored")
    if out.fault == "postgres killed":
        kill(life.postmaster())
    elif out.fault == "postgres stopped at once":
        kill(life.postmaster(), signal.SIGQUIT)
    elif out.fault == "store's session ended":
        with life.database() as c:
            c.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                      "WHERE pid <> pg_backend_pid() AND datname = current_database()")
    else:
        # that it ends with the server, or gets no lock in 5 s, is a fault like the others
        with contextlib.suppress(psycopg.Error), life.database() as c, c.transaction():
            c.execute("SET LOCAL lock_timeout = '5s'")
            c.execute("LOCK TABLE hftpipe.mark IN ACCESS EXCLUSIVE MODE")
            time.sleep(0.5 + chance.random())
    until(lambda: life.counter("store", "rows_stored") > rows + RATE, "rows are stored again",
          life.popen)


# ---------------------------------------------------------------- the judgement

def judge(life: Life, pasts: Sequence[Round], log: Sequence[Mapping[str, Any]]) -> None:
    """What the start of *life* says of the rounds since the last one that came up; *log* is the
    venue's."""
    if not pasts:
        return
    assert life.control is not None
    past = pasts[-1]
    before = [line for line in log if not str(line.get("client_order_id", "")).startswith(
        f"hp-{life.run:x}-")]
    past.say("I5", *exposure(before, POSITION, ORDERS))
    past.say("I7", *one_run(before))
    names = Counter(line["client_order_id"] for line in before if line["kind"] == "order")
    past.say("I2", *(f"{n} orders of {name}" for name, n in names.items() if n > 1))
    with life.database() as c:
        until(lambda: c.execute("SELECT count(*) FROM hftpipe.account_event WHERE run = %s",
                                (life.run,)).fetchone() != (0,), "the books are stored",
              life.popen)
        found = {symbol: (Fraction(qty, NANO), Fraction(cost * NANO + r, NANO**2),
                          Fraction(gain * NANO + g, NANO**2))
                 for symbol, qty, cost, r, gain, g in c.execute(
                     "SELECT s.symbol, o.qty, o.cost, o.cost_rest, o.realised, o.realised_rest "
                     "FROM hftpipe.opening o JOIN hftpipe.instrument s ON s.run = o.run "
                     "AND s.index = o.instrument WHERE o.run = %s", (life.run,))}
        past.say("I4", *differ(found, books(before)))
        for one in {past.run: past for past in pasts if past.run}.values():
            _recorded(c, life, one, [name for name in names if ours(name)
                                     and run_of(name) == one.run])


def _recorded(c: psycopg.Connection, life: Life, past: Round, names: Sequence[str]) -> None:
    """What database and journal have of the run that was struck."""
    from hftpipe.journal import check, runs
    from hftpipe.store.verify import verify
    past.orders = len(names)
    approved = {name for (name,) in c.execute(
        "SELECT o.client_order_id FROM hftpipe.orders o JOIN hftpipe.verdict v ON v.run = o.run "
        'AND v."order" = o.order_id AND v.reason = 0 WHERE o.run = %s', (past.run,))}
    past.say("I1", *(f"{name} is at the venue, and no approved intent of it on record"
                     for name in names if name not in approved))
    past.say("I6", *(f"order {order:x} was sent {late / 1e6:.1f} ms after risk saw a halt"
                     for order, late in c.execute(
        'SELECT e."order", e.ts - h.ts FROM hftpipe.order_event e JOIN LATERAL ('
        "  SELECT k.ts, k.kind FROM hftpipe.risk_event k WHERE k.run = e.run AND k.ts < e.ts "
        "  AND k.kind IN (%(halt)s, %(resume)s) ORDER BY k.ts DESC LIMIT 1) h ON true "
        "WHERE e.run = %(run)s AND e.kind = %(sent)s AND h.kind = %(halt)s "
        "AND e.ts - h.ts > %(slack)s",
        {"run": past.run, "halt": schema.RISK_EVENT_KIND.HALT_SEEN, "slack": SLACK,
         "resume": schema.RISK_EVENT_KIND.RESUME_SEEN, "sent": schema.ORDER_EVENT_KIND.SENT})))
    past.states = dict(Counter(schema.ORDER_STATE.label(state or schema.ORDER_STATE.CREATED)
                               for (state,) in c.execute(
        "SELECT (SELECT e.state FROM hftpipe.order_event e WHERE e.run = v.run "
        '  AND e."order" = v."order" ORDER BY e.seq DESC LIMIT 1) '
        "FROM hftpipe.verdict v WHERE v.run = %s AND v.reason = 0 AND v.action = %s",
        (past.run, schema.ACTION.NEW))))
    place = runs.place(runs.base("", life.directory.path), past.run)
    seen = check.Walk()
    if place.directory.is_dir() and place.begun:    # else it died before there was a journal
        for _ in check.walk(place.directory, past.run, seen):
            pass
    report = verify(c.info.dsn + f" password={c.info.password}" if c.info.password
                    else c.info.dsn, past.run)
    past.say("I3", *(str(s) for s in report.streams if not s.ok))
    rows = {s.stream: s.rows for s in report.streams}
    past.say("I3", *(f"{schema.STREAM.label(stream)}: {rows.get(stream, 0)} rows of {last} events "
                     "in the journal" for stream, last in seen.seqs.items()
                     if last and rows.get(stream, 0) != last))


# ---------------------------------------------------------------- the drill

def play(place: Path, out: Round, pasts: list[Round], life: Life | None = None, *,
         split: bool = False, goes_on: bool = False) -> Life | None:
    """One round: start, judge the rounds before and forget them, strike, and end.

    Parameters
    ----------
    life : Life, optional
        A run that goes on since the round before; else one is started.
    split : bool
        A process for each stage, so that one of them can be struck; else as many as the machine
        likes.
    goes_on : bool
        Whether the next round may have the run, if this one leaves it alive.

    Returns
    -------
    Life or None
        The run that goes on.
    """
    import psycopg
    began = time.monotonic()
    chance = random.Random(out.seed)
    point = out.fault if "." in out.fault else ""
    count = 1 if point in ONCE else chance.randint(*OFTEN.get(point, (1, 15)))
    fresh = life is None
    if life is None:
        life = Life(place, out.seed, point, count, split)
    try:
        if point in ONCE:
            _early(life, out)
            return None
        if fresh:
            life.up()
            log = next((life.directory.path / "venue").glob("*/orders.jsonl"))
            judge(life, pasts, read_log(log.parent))
        _lift(life, pasts if fresh else [out])
        if fresh:
            pasts.clear()
        out.run = life.run
        if out.fault == "none":
            out.hit = True
        elif point:
            _pass(life, out)
        else:
            strike(life, out, chance)
        if goes_on and chains(out.fault) and life.popen.poll() is None:
            out.end = "went on"
            return life
        _end(life, out)
    except (HftpipeError, psycopg.Error) as e:
        if out.hit:
            _end(life, out)                     # it died of what was done to it
        elif point and life.struck:
            out.hit, out.end = True, "killed while it started"
            life.popen.wait(2 * halt.PATIENCE)
        else:
            out.end = "not begun"
            out.say("I8", f"{str(e).splitlines()[0]}: {life.why()}")
    finally:
        if life.run == 0:
            life.page()
        out.run = out.run or life.run
        if out.end != "went on":
            life.close()
        out.seconds = time.monotonic() - began
    return None


def chains(fault: str) -> bool:
    """Whether a run goes on after it, and whether it may strike a run that went on."""
    name, _, what = fault.rpartition(" ")
    return (fault in (*DATABASE, "a second start") or what == "stopped"
            or (name in COLD and what == "killed"))


def _lift(life: Life, told: Sequence[Round]) -> None:
    """Resume, as a person would who has looked; a difference is told to the last of *told*."""
    assert life.control is not None
    if life.control.trading != "halted":
        return
    why = str((life.directory.latch().halt or {}).get("reason", ""))
    for past in told[-1:]:
        past.halted = why
        if "differ" in why:
            past.say("I4", f"came up HALTED: {why}")
    life.resume()


def _early(life: Life, out: Round) -> None:
    """A point that is passed while it starts."""
    end = time.monotonic() + halt.PATIENCE
    while not life.struck and life.popen.poll() is None:
        if time.monotonic() > end:
            break
        time.sleep(0.005)
    out.hit = bool(life.struck)
    if not out.hit:
        out.say("I8", f"{out.fault} was not passed: {life.why()}")
    life.popen.wait(2 * halt.PATIENCE)
    life.page()
    out.run = life.run
    out.end = "killed while it started"


def _pass(life: Life, out: Round) -> None:
    """Wait until the point is passed, and until its process is gone."""
    end = time.monotonic() + REACH
    while not life.struck and life.popen.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    out.hit = bool(life.struck)
    if out.hit:
        pid = life.struck
        name = out.fault.partition(".")[0]
        until(lambda: not shm.process_start(pid) or life.popen.poll() is not None,
              "the process is dead")
        if name in COLD:
            _again(life, name, pid)


def _end(life: Life, out: Round) -> None:
    """How the run ended, and whether it should have."""
    name, _, what = out.fault.rpartition(" ")
    fatal = out.hit and ((name in FATAL and what == "killed")
                         or out.fault.partition(".")[0] in FATAL)
    if out.hit and out.fault in ("supervisor killed", "everything killed"):
        life.popen.wait(2 * halt.PATIENCE)
        out.end = "killed"
        return
    if fatal:
        code = life.popen.wait(2 * halt.PATIENCE)
        out.end = f"ended with {code}"
        if code not in (1, 5):
            out.say("I8", f"exit code {code} after {out.fault}: {life.why()}")
        return
    code, said = life.finish()
    out.end = f"stopped with {code}"
    # Stopped for long enough, a stage is killed as one that hangs: that is a death that matters.
    if code != 0 and not (what == "stopped" and code in (1, 5)):
        out.say("I8", f"exit code {code}: {said.get('cause') or life.why()}")
    elif code == 0 and not said.get("verified"):
        out.say("I8", f"stored rows differ: {said.get('differences')}")


def replayed(directory: RunDir, rounds: Sequence[Round], done: set[int]) -> None:
    """Replay the journals that are whole by now and were not yet; *done* is kept up to date."""
    from hftpipe.journal import runs
    last = {one.run: one for one in rounds if one.run}
    for place in runs.places(runs.base("", directory.path)):
        if place.run in last and place.run not in done and place.end() is not None:
            done.add(place.run)
            last[place.run].say("I9", *again(place))


def groups(seed: int, only: Sequence[str], points: bool) -> Iterator[list[str]]:
    """Faults that strike one run after another, the last of which ends it; every fault once, then
    again in another order.  Without end."""
    chance, wanted = random.Random(seed), list(only or faults(points))
    while True:
        chance.shuffle(wanted)
        survived = [name for name in wanted if chains(name)]
        ends = [name for name in wanted if not chains(name)]
        together = [name for name in ends if "." not in name]     # a point is told at the start
        out = [[name] for name in ends]
        hosts = [one for one in out if one[0] in together] or [[] for _ in survived]
        for n, name in enumerate(survived):
            hosts[n % len(hosts)].insert(0, name)
        if not together:
            out += [one for one in hosts if one]
        chance.shuffle(out)
        yield from out


def run(rounds: int, seed: int, *, only: Sequence[str] = (), keep: Path | None = None,
        say: Callable[[str], object] = lambda words: None) -> Report:
    """So many rounds.

    Parameters
    ----------
    rounds, seed : int
        Round n has the seed ``seed + n - 1``: of the market, and of when the fault comes.
    only : sequence of str
        These faults alone.
    keep : Path, optional
        Where the run directory is kept when an invariant failed.

    Raises
    ------
    UsageError
        If *only* names a fault that there is not.
    """
    for name in only:
        if name not in faults(True):
            raise UsageError(f"--fault must be one of {', '.join(faults(True))}, was {name!r}")
        if name not in faults():
            raise UsageError(f"fault point {name} is not in this build; `make faults` makes one")
    report = Report(seed, _fault.BUILT)
    with halt.place() as place:
        (place / "drill.toml").write_text(CONFIG.format(
            gap=GAP_MS, seconds=3600.0, position=POSITION, orders=ORDERS))
        pasts: list[Round] = []                 # not judged yet
        directory, done = RunDir(place / "run"), set[int]()
        life: Life | None = None
        number = 0
        for group in groups(seed, only, _fault.BUILT):
            split = any(name.rpartition(" ")[0] in FATAL for name in group)
            for place_of, fault in enumerate(group, 1):
                number += 1
                out = Round(number, fault, seed + number - 1)
                report.rounds.append(out)
                say(f"round {number} of {rounds}: {fault}; {len(report.missed)} wrong")
                if life is None:                # nothing runs that a look could make late
                    replayed(directory, report.rounds, done)
                life = play(place, out, pasts, life, split=split,
                            goes_on=place_of < len(group) and number < rounds)
                pasts.append(out)
                if number == rounds:
                    break
            if number == rounds:
                break
        closing = Round(number + 1, "none", seed + number)      # judges the last one
        say("the last start")
        play(place, closing, pasts)
        report.rounds[-1].say("I8", *closing.wrong.get("I8", []))
        replayed(directory, report.rounds, done)
        if keep is not None and report.missed:
            import shutil
            shutil.copytree(place, keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns(
                "*.sock", ".s.*"))
        with contextlib.suppress(HftpipeError):         # no run was made
            left = directory.read_run()
            if left is not None:
                shm.remove(left.run)
    return report


def lines(report: Report) -> list[str]:
    """For people."""
    said = report.document()
    out = [f"{name}  {'holds ' if i['holds'] else 'BROKEN'}   {i['what']}"
           for name, i in said["invariants"].items()]
    out += ["", f"rounds         {said['rounds']} in {said['seconds']:.0f} s, "
            f"{said['orders']} orders at the venue",
            "order states   " + ", ".join(f"{n} {name}" for name, n in
                                          said["order_states"].items())]
    out += [f"hits           {n:>4} {name}" for name, n in said["faults"].items()]
    if not said["fault_points"]:
        out.append("no fault points in this build; `make faults` makes one")
    if said["never_hit"]:
        out.append(f"never hit      {', '.join(said['never_hit'])}")
    return out + [f"WRONG          {w}" for w in said["missed"]]
