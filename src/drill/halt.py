"""``hftpipe drill halt``: what is promised about halting, measured and proved.

A run of its own on the local exchange, with a strategy whose orders come to every state, is halted
again and again: right after an order was decided, approved, sent, accepted, filled, and with every
stage stopped.  The venue's log is the judge: as many orders reached it as the gateway had sent when
its gate closed, and none is open.
"""
from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftpipe import _clock, _control, shm, topology
from hftpipe.errors import DeadlineError, HftpipeError, UsageError
from hftpipe.rundir import RunDir

if TYPE_CHECKING:
    from hftpipe._control import Control
    from hftpipe.rundir import Run

PATIENCE = 60.0                 # s for anything to happen
FLAG_ROUNDS = 20_000
#: What each bound is of; `--bound name=value` replaces one.
BOUNDS: dict[str, tuple[float, str, str]] = {
    "flag_p99": (1e-6, "s", "halt word to last gate pass, p99, two pinned cores"),
    "command_ratio": (1.5, "", "`hftpipe halt` to closed gate over `python -c 'import click'`"),
    "helper": (5e-3, "s", "`hftpipe-halt` to closed gate, median"),
    "cancel": (1.0, "s", "halt to no open order at the venue, slowest"),
}
#: After which step of an order the halt comes: (its name, stage, counter that counts it).
STEPS = (("decided", "signal", "intents"), ("approved", "risk", "approved"),
         ("sent", "gateway", "orders_sent"), ("accepted", "venue", "new"),
         ("part filled", "venue", "partially_filled"), ("filled", "gateway", "fills"),
         ("cancelling", "venue", "pending_cancel"), ("any", "", ""))
ENDED = {"filled", "canceled", "expired", "rejected", "replaced", "done_for_day"}
CONFIG = """
[[strategy]]
name = "mixed"
kind = "python"
entry = "hftpipe.drill.strategy:Mixed"
[risk]
max_open_orders = 50
max_order_shares = 1000
max_order_notional = 100000
max_position_shares = 1000
max_position_notional = 200000
max_total_notional = 1000000
max_orders_per_minute = 1000
duplicate_window_ms = "off: the drill orders the same again and again"
breaker_rejects = "off: the drill is about the halt"
breaker_failures = "off: the drill is about the halt"
breaker_latency_ms = "off: the drill is about the halt"
breaker_daily_loss = "off: the drill is about the halt"
[exits]
enabled = false
[observe]
prometheus = "127.0.0.1:0"
"""


@dataclass
class Round:
    """One halt and what the venue says about it."""

    step: str
    states: dict[str, int]      # of the venue's orders at the halt
    under_way: int              # sent by us, not yet in the venue's log at the halt
    clear: float                # s to no open order
    dropped: int = 0            # orders the gate did not let pass
    wrong: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Figures with their bounds, and the rounds."""

    seed: int
    figures: dict[str, float | None] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """Names of bounds that were exceeded or could not be measured, and what went wrong."""
        out = [name for name, bound in self.bounds.items()
               if (value := self.figures.get(name)) is None or value > bound]
        return out + [f"round {n} ({r.step}): {w}" for n, r in enumerate(self.rounds, 1)
                      for w in r.wrong]

    def document(self) -> dict[str, Any]:
        """For ``-o json``."""
        states: Counter[str] = Counter()
        for r in self.rounds:
            states.update(r.states)
            states["under way"] += r.under_way
            states["dropped at the gate"] += r.dropped
        return {
            "seed": self.seed, "rounds": len(self.rounds), "missed": self.missed,
            "bounds": {name: {"value": self.figures.get(name), "bound": bound,
                              "unit": BOUNDS[name][1] or None, "what": BOUNDS[name][2],
                              "met": (v := self.figures.get(name)) is not None and v <= bound}
                       for name, bound in self.bounds.items()},
            "steps": dict(Counter(r.step for r in self.rounds)),
            "states": {name: n for name, n in states.items() if n}, "orders_after_the_gate": sum(
                1 for r in self.rounds for w in r.wrong if "after the gate" in w),
            **self.detail}


def parse_bounds(items: Sequence[str]) -> dict[str, float]:
    """``name=value`` of the command line over the promised ones."""
    out = {name: bound for name, (bound, *_) in BOUNDS.items()}
    for item in items:
        name, equals, value = item.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in out or not equals or not number >= 0:
            raise UsageError(f"--bound must be NAME=NUMBER with one of {', '.join(out)}, "
                             f"was {item!r}")
        out[name] = number
    return out


def until(condition: Callable[[], Any], what: str, alive: subprocess.Popen[str] | None = None,
          pause: float = 0.002) -> Any:
    """What *condition* gives once it is true; DeadlineError when it never is."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if alive is not None and alive.poll() is not None:
            raise HftpipeError(f"the drill's run ended with {alive.returncode} before: {what}")
        if time.monotonic() > end:
            raise DeadlineError(f"not within {PATIENCE:g} s: {what}")
        if pause:
            time.sleep(pause)
    return found


# ---------------------------------------------------------------- the word alone

def end(popen: subprocess.Popen[Any]) -> None:
    """End a run, whatever it does."""
    if popen.poll() is None:
        popen.terminate()
        try:
            popen.wait(30)
        except subprocess.TimeoutExpired:
            popen.kill()
    popen.wait()


def flag(rounds: int, cores: Sequence[int]) -> tuple[Any, list[int]]:
    """ns from raising the halt word to the last pass, sorted, and the cores; empty on one core."""
    import numpy

    from hftpipe.drill._flag import Flag
    if len(cores) < 2:
        return numpy.zeros(0, numpy.int64), list(cores)
    pair = [cores[-1], cores[-2]]
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=1, stages=("gate",))
    both = Flag(_control.Control(memory))
    out = numpy.zeros(rounds, numpy.int64)

    def gate() -> None:
        os.sched_setaffinity(0, {pair[0]})
        both.gate(rounds)

    def halter() -> None:
        os.sched_setaffinity(0, {pair[1]})
        both.halter(rounds, out, 5_000)

    threads = [threading.Thread(target=f, daemon=True) for f in (gate, halter)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(PATIENCE)
        if t.is_alive():
            raise DeadlineError(f"{rounds} rounds of the halt word took more than {PATIENCE:g} s")
    return numpy.sort(out), pair


# ---------------------------------------------------------------- a run of its own

class Scene:
    """A run on the local exchange that is halted and resumed."""

    def __init__(self, place: Path) -> None:
        self.directory = RunDir(place / "run")
        config = place / "drill.toml"
        config.write_text(CONFIG)
        self._config = config
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "hftpipe", "-C", str(config), "--run-dir",
             str(self.directory.path), "start", "--oversubscribe", "-o", "json"],
            stdout=subprocess.DEVNULL, stderr=(place / "start.err").open("w"), text=True)
        self._err = place / "start.err"
        self.run: Run = self._until(self.directory.read_run, "run.json")
        self.control: Control = self._until(self._page, "the control page")
        self._until(lambda: self.control.armed, "trading is armed")
        self.guardian = next(b for b in self.control.stages if b.name == "guardian")
        self.gateway = self.control.stage(topology.INDEX["gateway"])
        self.log = Tail(self._until(
            lambda: next((self.directory.path / "venue").glob("*/orders.jsonl"), None),
            "the venue's log"))

    def _until(self, condition: Callable[[], Any], what: str) -> Any:
        try:
            return until(condition, what, self.popen)
        except HftpipeError as e:
            said = self._err.read_text().strip().splitlines()
            raise type(e)(f"{e}{': ' + said[-1] if said else ''}") from None

    def _page(self) -> Control | None:
        try:
            return shm.control(self.run.run)
        except HftpipeError:
            return None

    def counter(self, stage: str, name: str) -> int:
        """A stage's counter; of "venue" the orders it has come to call *name*."""
        if stage == "venue":
            self.log.read()
            return self.log.counts[name]
        return self.control.stage(topology.INDEX[stage]).counter(name)

    def command(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Another command about this run."""
        return subprocess.run(
            [*hftpipe(), "-C", str(self._config), "--run-dir", str(self.directory.path), *args],
            capture_output=True, text=True, timeout=PATIENCE, check=False)

    def resume(self) -> None:
        """Arm again; the command waits for the guardian."""
        end = time.monotonic() + PATIENCE
        while (done := self.command("resume", "--reason", "drill")).returncode:
            if time.monotonic() > end:
                raise HftpipeError(f"the drill's run cannot be resumed: {done.stderr.strip()}")
        until(lambda: self.control.armed, "trading is armed", self.popen)

    def pids(self) -> list[int]:
        """Processes of the stages, without those that watch over them."""
        mine = {"supervisor", "guardian", "monitor"}
        return sorted({b.pid for b in self.control.stages if b.name not in mine and b.pid})

    def settled(self, epoch: int) -> None:
        """Wait until the guardian has seen the venue empty, and once more after the gate closed."""
        until(lambda: self.gateway.ack_epoch >= epoch
              and self.guardian.counter("settled_epoch") >= epoch, "the guardian has settled",
              self.popen)

    def close(self) -> None:
        """End it, whatever it does."""
        end(self.popen)


class Tail:
    """The venue's log as it grows: states of its orders."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self.states: dict[str, str] = {}        # by the venue's id
        self._history: list[tuple[int, str, str]] = []      # (UTC ns, id, state)
        self.counts: Counter[str] = Counter()   # how often orders came to be so
        self.orders = 0

    def read(self) -> None:
        """Take what has been written since."""
        lines = (self._rest + self._file.read()).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            said = json.loads(line)
            kind = said["kind"]
            if kind == "order":
                self.orders += 1
                self._now(said, "pending_new")
            elif kind == "cancel":
                self._now(said, "pending_cancel")
            elif kind == "event" and said["event"] != "pending_new":
                event = said["event"]
                self._now(said, {"partial_fill": "partially_filled", "fill": "filled"}.get(
                    event, event))

    def _now(self, said: Mapping[str, Any], state: str) -> None:
        self.states[said["id"]] = state
        self.counts[state] += 1
        self._history.append((said["ts"], said["id"], state))

    def at(self, ts: int) -> tuple[dict[str, int], int]:
        """Orders that were open at *ts* (UTC ns) by state, and how many came only after it."""
        then: dict[str, str] = {}
        known = {i for when, i, _ in self._history if when <= ts}
        for when, i, state in self._history:
            if when <= ts:
                then[i] = state
        return (dict(Counter(s for s in then.values() if s not in ENDED)),
                len({i for _, i, _ in self._history} - known))

    @property
    def open(self) -> dict[str, int]:
        """Orders that can still trade, by state."""
        return dict(Counter(s for s in self.states.values() if s not in ENDED))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def hftpipe() -> list[str]:
    """How a user starts it: the command beside this Python if there is one."""
    beside = Path(sys.executable).with_name("hftpipe")
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "hftpipe"]


def helper() -> str | None:
    """``hftpipe-halt``, beside this Python, on the path, or where it was built."""
    beside = Path(sys.executable).with_name("hftpipe-halt")
    built = Path(_control.__file__).resolve().parent.parent / "build/bin/hftpipe-halt"
    for place in (beside, built):
        if place.exists():
            return str(place)
    return shutil.which("hftpipe-halt")


# ---------------------------------------------------------------- what is asked of it

def one(scene: Scene, step: str, stage: str, counter: str, chance: random.Random) -> Round:
    """Halt right after *step* of the next order; what the venue says then."""
    scene.resume()
    orders, before_dropped = scene.log.orders, scene.gateway.counter("orders_dropped")
    if counter:
        before = scene.counter(stage, counter)
        until(lambda: scene.counter(stage, counter) > before, f"an order is {step}", scene.popen,
              pause=0)
    else:
        time.sleep(chance.random() * 0.4)
    utc, began = _clock.utc_ns(), _clock.now_ns()
    done = scene.directory.halt(scene.control, f"drill: {step}", way="drill")
    until(lambda: scene.gateway.ack_epoch >= done.epoch, "the gate has closed", scene.popen,
          pause=0)
    sent = scene.gateway.counter("orders_sent")
    found = Round(step, {}, 0, 0.0)
    until(lambda: scene.guardian.counter("clear_epoch") >= done.epoch, "no order is open",
          scene.popen, pause=0.0005)
    found.clear = (_clock.now_ns() - began) / 1e9
    scene.settled(done.epoch)
    judge(scene, sent, found)
    found.states, found.under_way = scene.log.at(utc)
    found.dropped = scene.gateway.counter("orders_dropped") - before_dropped
    if counter == "orders_sent" and scene.log.orders == orders:
        found.wrong.append("an order was sent and the venue's log has none")
    return found


def judge(scene: Scene, sent: int, found: Round) -> None:
    """The venue's log against what the gateway had sent when its gate closed."""
    scene.log.read()
    if scene.log.orders > sent:
        found.wrong.append(f"{scene.log.orders - sent} orders reached the venue after the gate "
                           "had closed")
    if scene.log.orders < sent:
        found.wrong.append(f"{sent - scene.log.orders} orders that were sent are not in the "
                           "venue's log")
    later = scene.gateway.counter("orders_sent")
    if later != sent:
        found.wrong.append(f"the gateway sent {later - sent} orders after the gate had closed")
    if scene.log.open:
        found.wrong.append(f"open at the venue after the guardian settled: {scene.log.open}")


def stopped(scene: Scene) -> Round:
    """Halt with every stage under SIGSTOP: the guardian alone cancels; awake, nobody sends."""
    scene.resume()
    before = scene.counter("signal", "intents")
    until(lambda: scene.counter("signal", "intents") > before, "an order is decided", scene.popen,
          pause=0)
    pids = scene.pids()
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        utc, began = _clock.utc_ns(), _clock.now_ns()
        done = scene.directory.halt(scene.control, "drill: stopped", way="drill")
        found = Round("stopped", {}, 0, 0.0)
        until(lambda: scene.guardian.counter("clear_epoch") >= done.epoch, "no order is open",
              scene.popen, pause=0.0005)
        found.clear = (_clock.now_ns() - began) / 1e9
        scene.log.read()
        reached = scene.log.orders
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    scene.settled(done.epoch)
    # What was in the socket when they were stopped counts as sent once they are awake.
    judge(scene, max(scene.gateway.counter("orders_sent"), reached), found)
    found.states, found.under_way = scene.log.at(utc)
    if scene.log.orders != reached:
        found.wrong.append(f"{scene.log.orders - reached} orders reached the venue after the gate "
                           "had closed, when the stages woke up")
    return found


def closing(scene: Scene, argv: Sequence[str]) -> float:
    """s from starting *argv* to the closed gate."""
    began = _clock.now_ns()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: not scene.control.armed or process.poll() is not None, "the gate has closed",
          pause=0)
    taken = (_clock.now_ns() - began) / 1e9
    _, err = process.communicate(timeout=PATIENCE)
    if process.returncode or scene.control.armed:
        raise HftpipeError(f"{argv[0]} did not halt: {err.strip()}")
    return taken


def commands(scene: Scene, times: int, say: Callable[[str], object]) -> dict[str, Any]:
    """Seconds of `import click`, of the command and of the helper, interleaved; medians."""
    quick = helper()
    taken: dict[str, list[float]] = {"import click": [], "hftpipe halt": [], "hftpipe-halt": []}
    at = ["--run-dir", str(scene.directory.path)]
    for n in range(times):
        say(f"commands {n + 1} of {times}")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import click"], check=True)
        taken["import click"].append(time.perf_counter() - began)
        for name, argv in (("hftpipe halt", [*hftpipe(), *at, "halt", "--reason", "drill"]),
                           ("hftpipe-halt", [quick or "", *at, "--reason", "drill"])):
            if argv[0]:
                scene.resume()
                taken[name].append(closing(scene, argv))
                scene.settled(scene.control.halt_epoch)
    return {name: statistics.median(t) if t else None for name, t in taken.items()}


# ---------------------------------------------------------------- the drill

@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="hftpipe-drill-") as path:
        yield Path(path)


def run(rounds: int, seed: int, bounds: Mapping[str, float],
        say: Callable[[str], object] = lambda words: None) -> Report:
    """The whole drill: *rounds* halts, in turn after each step and with the stages stopped."""
    report = Report(seed, bounds=dict(bounds))
    chance = random.Random(seed)
    cores = sorted(os.sched_getaffinity(0))
    say("the halt word alone")
    times, pair = flag(FLAG_ROUNDS, cores)
    machine = topology.Machine.read()
    isolated = {i for i in machine.usable if machine.core(i).isolated}
    report.detail["flag_ns"] = {
        "cores": pair, "isolated": len(pair) > 1 and set(pair) <= isolated,
        **({q: int(times[min(int(len(times) * p), len(times) - 1)]) for q, p in (
            ("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))} if len(times) else {})}
    if len(times):
        report.figures["flag_p99"] = report.detail["flag_ns"]["p99"] / 1e9
    with place() as at:
        scene = Scene(at)
        try:
            for n in range(rounds):
                step = (*STEPS, ("stopped", "", ""))[n % (len(STEPS) + 1)]
                say(f"halt {n + 1} of {rounds}: {step[0]}")
                report.rounds.append(stopped(scene) if step[0] == "stopped"
                                     else one(scene, *step, chance))
            report.detail["seconds"] = found = commands(scene, max(rounds // 3, 3), say)
        finally:
            scene.close()
            scene.log.close()
    if found["hftpipe halt"] is not None:
        report.figures["command_ratio"] = found["hftpipe halt"] / found["import click"]
    report.figures["helper"] = found["hftpipe-halt"]
    report.figures["cancel"] = max((r.clear for r in report.rounds), default=None)
    return report


def lines(report: Report) -> list[str]:
    """For people."""
    said = report.document()
    out = []
    for name, bound in said["bounds"].items():
        value = bound["value"]
        shown = "not measured" if value is None else (
            f"{value:.2f}" if bound["unit"] is None else
            f"{value * 1e9:,.0f} ns" if value < 1e-5 else f"{value * 1e3:,.2f} ms")
        limit = f"{bound['bound']:g}" + (" s" if bound["unit"] else "")
        out.append(f"{name:<14} {shown:>14}   at most {limit:<8} "
                   f"{'met   ' if bound['met'] else 'MISSED'}   {bound['what']}")
    where = said["flag_ns"]
    out += [f"cores          {', '.join(map(str, where['cores']))}, "
            f"{'isolated' if where['isolated'] else 'not isolated: other work lands on them'}",
            f"halts          {said['rounds']}: " + ", ".join(
                f"{n} {step}" for step, n in said["steps"].items()),
            "orders then    " + (", ".join(f"{n} {state}" for state, n in sorted(
                said["states"].items()) if n) or "none"),
            f"after the gate {said['orders_after_the_gate']} orders"]
    return out + [f"WRONG          {w}" for w in said["missed"]]


def steps() -> tuple[str, ...]:
    """Names of what a halt comes after."""
    return (*(name for name, *_ in STEPS), "stopped")


