"""The guardian: cancels every open order at the venue when the pipeline halts, hangs or dies.

A process of its own with a broker connection and a credentials handle of its own.  It reads the
control page and asks nobody, so it works when every stage is stopped or dead; it alone outlives a
run, until the venue shows no open order.  What it does

* **watches**: a halt on the page, the file ``HALT``, stages that do not beat, a supervisor that is
  gone, a venue that does not answer.  What nobody has halted yet it halts itself;
* **sweeps**: ``DELETE /v2/orders`` until ``GET`` shows none (*clear*), and looks again after the
  gateway has acknowledged the halt or ended, for an order may have been under way (*settled*);
* **flattens** when a halt asked for it: writes down what is held, then ``DELETE /v2/positions``;
* **judges**: the automatic triggers (``triggers``), once a second while orders may pass;
* **tells**: a halt and what became of it goes to log and webhooks (``alerts``);
* **writes down** what it did: log, ``audit.jsonl``, and a copy of that file in PostgreSQL.

Threads: the main one watches and beats, so a venue that hangs does not look like a dead guardian;
the *hand* talks to the venue, and is replaced when a request does not come back; the *copier* talks
to the database.  Shared between them are attributes with one writer each.

It cancels all orders of the account, whoever made them: a run has its account for itself.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hftpipe import _clock, _control, shm, topology
from hftpipe.alerts import Alerts, Webhook
from hftpipe.alpaca.rest import Rest
from hftpipe.errors import BusyError, ConfigError, Exit, HftpipeError
from hftpipe.rundir import Halted, Run, RunDir, entry, utc_text
from hftpipe.secret import Secret, scrub
from hftpipe.triggers import Limits, Triggers

SECOND = 10**9
TICK = 0.02                     # s between two looks at the page
PROBE = 10 * SECOND             # ns between two questions to a venue that has nothing to do
TIMEOUT = 2.0                   # s that the venue has for an answer
STUCK = 10 * SECOND             # ns after which a request is given up and the hand replaced
PATIENCE = (0.02, 2.0)          # s: first and longest pause between two sweeps of one halt
SUPERVISOR = 10 * SECOND        # ns without a beat: it may be waiting for a disk or a database
EXPLAIN = SECOND // 2           # ns that who halted has to write down why, before it is told
ENDED = (_control.VOID, _control.STOPPED, _control.FAILED)
NAME = "guardian"
GONE = "is gone"               # how a halt ends that says only that the supervisor was killed


@dataclass(frozen=True)
class Options:
    """Section ``[halt]`` of the configuration; times in ns."""

    on_halt: str = "cancel"         # or hold
    on_stop: str = "cancel"         # or leave
    hang: int = 3 * SECOND
    settle: int = SECOND
    unreachable: int = 30 * SECOND
    flatten: int = 30 * SECOND

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Options:
        """What the supervisor handed on."""
        return cls(**{k: found[k] for k in cls.__dataclass_fields__})


class Log:
    """Lines as ``log.setup`` writes them.  Its package takes longer to import than all of this."""

    def __init__(self, directory: str, run: int) -> None:
        self._fd = os.open(os.path.join(directory, f"{NAME}.log"),
                           os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._run = f"{run:x}"

    def write(self, level: str, event: str, **values: Any) -> None:
        """One line, one write."""
        line = json.dumps({**values, "process": NAME, "run": self._run, "event": event,
                           "level": level, "timestamp": utc_text()}, default=str)
        with contextlib.suppress(OSError):      # a full disk is no reason not to cancel
            os.write(self._fd, scrub(line).encode() + b"\n")

    def info(self, event: str, **values: Any) -> None:
        self.write("info", event, **values)

    def error(self, event: str, **values: Any) -> None:
        self.write("error", event, **values)


# ---------------------------------------------------------------- at the venue

State = tuple[int, int, int, bool, int, bool, bool]


@dataclass
class Sweep:
    """One halt (or stop) being carried out at the venue."""

    epoch: int                  # 0: no halt, the run stops
    began: int                  # ns
    asked: int = 0              # orders that the venue was told to cancel
    clear_at: int = 0           # ns; 0 = it has not been seen without an open order
    gates_at: int = 0           # ns when nothing could leave any more; 0 = it still can
    pause: float = PATIENCE[0]
    failures: int = 0


def sweep_now(rest: Rest, seconds: float) -> tuple[int, int]:
    """Cancel everything without a guardian: ``(orders asked, orders left)`` after at most so long.

    Raises
    ------
    HftpipeError
        If the venue does not answer in time.
    """
    end = _clock.now_ns() + int(seconds * SECOND)
    asked, pause = 0, PATIENCE[0]
    while True:
        asked += rest.cancel_all()
        left = len(rest.orders())
        if not left or _clock.now_ns() >= end:
            return asked, left
        time.sleep(pause)
        pause = min(2 * pause, PATIENCE[1])


def close_all(rest: Rest, write: Callable[..., None], on: Callable[[], bool],
              ask: Callable[[Callable[[], Any]], Any] = lambda what: what()) -> list[Any]:
    """Close every position with market orders of the venue's making; what is left open.

    What is held is written down before, what became of it after.  Goes on while *on* says so; what
    ends without closing its position is asked for again.
    """
    held = ask(rest.positions)
    write("flatten", f"closing {len(held)} positions",
          positions=[{"symbol": p.symbol, "qty": p.qty} for p in held])
    asked = False
    while held and on():
        if not asked:
            for row in ask(rest.close_all):
                write("closed" if row.status == 200 else "not closed", row.symbol,
                      status=row.status, order=_order_of(bytes(row.body)))
            asked = True
        time.sleep(0.05)
        held = ask(rest.positions)
        if held and not ask(rest.orders):
            asked = False
            time.sleep(0.5)
    left = ", ".join(f"{p.symbol} {p.qty}" for p in held)
    write("flattened", f"left open: {left}" if held else "no position is open")
    return list(held)


def close_now(rest: Rest, run_dir: RunDir, done: Halted, seconds: float) -> int:
    """Close every position without a guardian, after :func:`sweep_now`; how many are left."""
    end = _clock.now_ns() + int(seconds * SECOND)

    def write(action: str, words: str, **more: Any) -> None:
        run_dir.audit(action, {**done.why, "reason": words}, epoch=done.epoch, **more)

    held = close_all(rest, write, lambda: _clock.now_ns() < end)
    if held:
        sweep_now(rest, TIMEOUT)
    return len(held)


class Guardian:
    """The process's state.

    Parameters
    ----------
    run_dir, run, control
    options : Options
    rest : callable
        Makes a connection to the venue; called again when one hangs.
    venue : (pid, start) or None
        The local venue's process: when it has ended nothing can be open.
    log : Log
    triggers : Triggers
    hooks : sequence of Webhook
        Who is told of a halt.
    """

    def __init__(self, run_dir: RunDir, run: Run, control: _control.Control, options: Options,
                 rest: Callable[[], Rest], venue: tuple[int, int] | None, log: Log,
                 triggers: Triggers, hooks: Sequence[Webhook] = ()) -> None:
        self.run_dir, self.run, self.control = run_dir, run, control
        self.options, self.venue, self.log = options, venue, log
        self._rest = rest
        self.block = control.stage(topology.INDEX[NAME])
        self.gateway = control.stage(topology.INDEX["gateway"])
        self._watched = [
            (control.stage(topology.INDEX[stage]), options.hang)
            for process in run.processes for stage in process["stages"]
            if stage != "supervisor" and topology.STAGES[topology.INDEX[stage]].fatal]
        self._watched.append((control.stage(topology.INDEX["supervisor"]), SUPERVISOR))
        self._hanging: set[str] = set()
        # A run begins where its page was made: what was open then is the reconciliation's, unless
        # it began halted.  A guardian that was restarted goes on where the one before it was.
        fresh = control.armed_epoch == 0
        self.swept = max(self.block.counter("settled_epoch"), run.halt_epoch if fresh else 0)
        self._flattened = self.block.counter("flat_epoch")
        self._triggers, self._judge_at = triggers, 0
        self._told = max(self.block.ack_epoch, run.halt_epoch)     # halts that people know of
        self._tell_at = 0
        self.alerts = Alerts(hooks, log.write, lambda: self.block.count("alerts_sent"),
                             lambda: self.block.count("alerts_failed"))
        self._sweep: Sweep | None = None
        self._generation = 0
        self._asking = 0                # ns since when the venue is asked; 0 = it is not
        self._answered = _clock.now_ns()
        self._probe_at = 0
        self._satisfied: State | None = None    # of the page when nothing was left to do
        self._gone = False              # the local venue has ended
        self._alone = False             # the supervisor has ended
        self._dead = False              # without ending the run
        self._hand_wake = threading.Event()
        self.error: HftpipeError | None = None      # of the first question

    # ------------------------------------------------------------ what the page asks for

    def state(self) -> State:
        """What decides whether there is something to do; compared, never interpreted."""
        control = self.control
        return (control.halt_epoch, control.cancel_epoch, control.flatten_epoch, control.armed,
                control.stop, self._dead, self.over)

    @property
    def over(self) -> bool:
        """Whether the gateway can send nothing any more."""
        return self.gateway.state in ENDED or not shm.alive(self.gateway.pid, self.gateway.start)

    def need(self) -> int:
        """The halt epoch to sweep for; 0 = none."""
        control = self.control
        epoch = control.cancel_epoch
        if self.options.on_halt == "cancel":
            epoch = max(epoch, control.halt_epoch)
        return epoch if epoch > self.swept and not control.armed else 0

    def stopping(self) -> bool:
        """Whether the run ends, and with it what is open; not if it never was to send any."""
        return self.control.armed_epoch != 0 and (self._dead or (
            self.control.stop != _control.RUN and self.options.on_stop == "cancel"))

    # ------------------------------------------------------------ the hand

    def start(self) -> None:
        """Start (or replace) the thread that talks to the venue."""
        self._generation += 1
        self._asking = 0
        threading.Thread(target=self._hand, args=(self._generation,), daemon=True,
                         name=f"hand-{self._generation}").start()

    def _hand(self, generation: int) -> None:
        rest = self._rest()
        try:
            while generation == self._generation:
                pause = 0.05
                try:
                    pause = self._work(rest)
                except HftpipeError as error:
                    pause = self._failed(error)
                except Exception as error:      # whatever it is, the next try may do better
                    self.log.error("unexpected", error=f"{type(error).__name__}: {error}",
                                   trace=traceback.format_exc())
                    pause = self._failed(HftpipeError(str(error)))
                finally:
                    if generation == self._generation:
                        self._asking = 0
                self._hand_wake.wait(pause)
                self._hand_wake.clear()
        finally:
            rest.close()

    def _ask(self, what: Callable[[], Any]) -> Any:
        """One question to the venue, with its time on record."""
        self._asking = _clock.now_ns()
        found = what()
        self._asking = 0
        self._answered = _clock.now_ns()
        self.block.set("connected", 1)
        return found

    def _failed(self, error: HftpipeError) -> float:
        """The venue did not do as asked: when to ask again, s."""
        self.block.set("connected", 0)
        self.block.count("errors")
        if self.error is None:
            self.error = error
        if self.venue is not None and not shm.alive(*self.venue):
            self._gone = True
            if self._sweep is not None or self.need():
                self._settle(self._sweep or Sweep(self.need(), _clock.now_ns()),
                             "the local venue has ended")
            self._satisfied = self.state()
            return 0.1
        sweep = self._sweep
        if sweep is None:
            return 0.5
        sweep.failures += 1
        if sweep.failures & (sweep.failures - 1) == 0:      # 1, 2, 4, ...: not a line each time
            self.log.error("the venue does not cancel", error=str(error), tries=sweep.failures)
            if sweep.failures == 8:
                self._alert(f"the venue does not cancel, tried {sweep.failures} times: {error}",
                            sweep.epoch)
        return self._patience(sweep)

    def _patience(self, sweep: Sweep) -> float:
        """How long until the next try of *sweep*, s: each time longer, up to a bound."""
        pause, sweep.pause = sweep.pause, min(2 * sweep.pause, PATIENCE[1])
        return pause

    def _work(self, rest: Rest) -> float:
        """One step; how long to wait before the next, s."""
        state = self.state()
        need, now = self.need(), _clock.now_ns()
        if self._sweep is not None and not need and not self.stopping():
            self.log.info("resumed before the venue was clear", epoch=self._sweep.epoch)
            self._sweep = None
        flatten = self._flatten_wanted()
        if need or (self.stopping() and not flatten and self._satisfied != state):
            if self._sweep is None:
                self._sweep = Sweep(need, now)
            elif need > self._sweep.epoch:      # another halt: the gates must see that one too
                self._sweep.epoch, self._sweep.clear_at, self._sweep.gates_at = need, 0, 0
            return self._step(rest, self._sweep)
        if flatten:
            self._flatten(rest)
            return 0.0
        if self.block.ack_epoch < state[0]:
            self.block.ack_epoch = state[0]
        self._satisfied = state
        if now >= self._probe_at:
            self._probe_at = now + min(PROBE, self.options.unreachable // 4)
            self.block.set("venue_orders", len(self._ask(rest.orders)))
        return 0.5

    def _step(self, rest: Rest, sweep: Sweep) -> float:
        """Ask the venue to cancel, look what is left, decide whether that was all."""
        if not sweep.gates_at and self._gates_closed(sweep.epoch):
            sweep.gates_at, sweep.pause = _clock.now_ns(), PATIENCE[0]
        began = _clock.now_ns()
        if not sweep.clear_at:
            asked = self._ask(rest.cancel_all)
            self.block.count("sweeps")
            self.block.count("swept", asked)
            sweep.asked += asked
        left = self._ask(rest.orders)
        self.block.set("venue_orders", len(left))
        if left:
            if sweep.clear_at:
                self.log.error("orders arrived after the venue was clear", orders=len(left),
                               epoch=sweep.epoch)
                sweep.clear_at, sweep.pause = 0, PATIENCE[0]
                return 0.0
            return self._patience(sweep)
        if not sweep.clear_at:
            sweep.clear_at = _clock.now_ns()
            if sweep.epoch > self.block.counter("clear_epoch"):
                self.block.set("clear_epoch", sweep.epoch)
            self.log.info("clear", epoch=sweep.epoch, cancelled=sweep.asked,
                          elapsed_ns=sweep.clear_at - sweep.began)
        clean = (self.gateway.state == _control.STOPPED
                 and self.gateway.counter("orders_open") == 0)
        if sweep.gates_at and (clean or began - sweep.gates_at >= self.options.settle):
            self._settle(sweep, f"{sweep.asked} orders cancelled, none open")
            return 0.0
        # What is under way arrives within a round trip; a gate that is stopped may take longer.
        return self._patience(sweep)

    def _gates_closed(self, epoch: int) -> bool:
        """Whether nothing new can leave: the gateway has seen the halt, or is no more."""
        return self.over or (epoch > 0 and self.gateway.ack_epoch >= epoch)

    def _settle(self, sweep: Sweep, words: str) -> None:
        """The venue is without an open order and stays so."""
        self._sweep = None
        elapsed = _clock.now_ns() - sweep.began
        if sweep.epoch:
            self.swept = max(self.swept, sweep.epoch)
            self.block.set("settled_epoch", self.swept)
            if sweep.epoch > self.block.counter("clear_epoch"):
                self.block.set("clear_epoch", sweep.epoch)
            self._audit("swept", words, epoch=sweep.epoch, cancelled=sweep.asked)
            self._alert(f"halt {sweep.epoch}: {words}", sweep.epoch)
        elif sweep.asked:
            self._audit("swept", words + " at the stop", cancelled=sweep.asked)
        self.log.info("settled", epoch=sweep.epoch, cancelled=sweep.asked, words=words,
                      elapsed_ns=elapsed)
        self._satisfied = self.state() if not self.need() and not self._flatten_wanted() else None

    # ------------------------------------------------------------ closing positions

    def _flatten_wanted(self) -> bool:
        epoch = self.control.flatten_epoch
        return epoch > self._flattened and not self.control.armed and not self._gone

    def _flatten(self, rest: Rest) -> None:
        """Close every position with market orders of the venue's making, each written down.

        What has not filled after a while (the exchange is closed) is cancelled again: no open
        order is the stronger promise while trading is halted.
        """
        epoch = self.control.flatten_epoch
        end = _clock.now_ns() + self.options.flatten

        def write(action: str, words: str, **more: Any) -> None:
            self.log.info(action, epoch=epoch, words=words, **more)
            self._audit(action, words, epoch=epoch, **more)

        held = close_all(rest, write, lambda: _clock.now_ns() < end and not self.control.armed,
                         self._ask)
        self.block.set("venue_positions", len(held))
        self._flattened = epoch
        self._alert(f"halt {epoch}: {len(held)} positions are left open", epoch)
        if held:                        # their closing orders must not stay
            self.swept = min(self.swept, epoch - 1)
        self.block.set("flat_epoch", epoch)

    # ------------------------------------------------------------ the watch

    def serve(self) -> Exit:
        """Watch until the run is over and the venue has nothing open."""
        last, said = _clock.now_ns(), False
        rested = last                   # ages are counted from here after a gap of our own
        told = self.state()
        while True:
            now = _clock.now_ns()
            if now - last > min(self.options.hang, SECOND) // 2:
                rested = now
            last = now
            self.block.heartbeat = now
            self.watch(now, rested)
            self.judge(now)
            self.tell(now)
            if self._asking and now - self._asking > STUCK:
                self.log.error("a request to the venue does not come back: connecting anew")
                self.block.set("connected", 0)
                self.start()
            leaving = self.control.stop != _control.RUN or self._dead
            if leaving and self._satisfied == self.state() and (self.over or self._gone):
                return Exit.OK
            if leaving and not said:
                said = True
                self.log.info("the run ends", stop=self.control.stop, dead=self._dead)
            if told != (state := self.state()):
                told = state
                self._hand_wake.set()
            time.sleep(TICK)

    def watch(self, now: int, rested: int) -> None:
        """Halt what should be halted."""
        control = self.control
        if not self._alone and not shm.alive(*control.supervisor):
            self._alone = True
            self._died()
        if control.armed:
            held = self.run_dir.halt_file()
            if held is not None:
                self._halt(held[0], way="file", by=held[1])
        silent = {block.name: now - max(block.heartbeat, rested) for block, limit in self._watched
                  if block.state in (_control.RUNNING, _control.DRAINING) and block.heartbeat
                  and now - max(block.heartbeat, rested) > limit}
        for name in silent.keys() - self._hanging:
            self.log.error("silent", stage=name, age_ns=silent[name])
            self._cancel(f"{name} has not beaten for {silent[name] / SECOND:.1f} s")
        self._hanging = set(silent)
        quiet = now - max(self._answered, rested)
        if control.armed and quiet > self.options.unreachable:
            self._halt(f"the venue has not answered the guardian for {quiet / SECOND:.0f} s")

    def judge(self, now: int) -> None:
        """Halt when one of the automatic triggers says so, about once a second."""
        if not self.control.armed:
            self._triggers.forget()
        elif now >= self._judge_at:
            self._judge_at = now + SECOND
            reason = self._triggers.sample(now)
            if reason:
                self._halt(reason, way="trigger")

    def tell(self, now: int) -> None:
        """Tell people of a halt, once its maker had time to say why."""
        epoch = self.control.halt_epoch
        if epoch <= self._told or self.control.armed:
            self._told, self._tell_at = max(self._told, epoch), 0
        elif not self._tell_at:
            self._tell_at = now + EXPLAIN
        elif now >= self._tell_at:
            self._told, self._tell_at = epoch, 0
            latch = self.run_dir.latch()
            why = latch.halt if latch.halt_epoch >= epoch and latch.halt else {}
            reason = why.get("reason", "no reason is written down")
            self._alert(f"trading HALTED: {reason}", epoch, reason=reason,
                        who=why.get("who", ""), way=why.get("way", ""), when=why.get("when", ""))

    def _alert(self, text: str, epoch: int, **more: Any) -> None:
        self.alerts.send(f"hftpipe {os.uname().nodename} run {self.run.run:x} "
                         f"({self.run.profile or '-'}): {text}", epoch=epoch,
                         run=f"{self.run.run:x}", **more)

    def _died(self) -> None:
        """The supervisor is gone.  After a stop in good order there is nothing to say."""
        supervisor, _ = self.control.supervisor
        if self.gateway.state == _control.STOPPED and self.control.stop != _control.RUN:
            return
        self._dead = True
        self.log.error("the supervisor is gone", pid=supervisor)
        self._cancel(f"supervisor {supervisor} {GONE}")

    def _cancel(self, reason: str) -> None:
        """Halt with a sweep, whatever is configured; one that is halted already is swept."""
        control = self.control
        if control.armed:
            self._halt(reason, cancel=True)
        elif control.armed_epoch and control.cancel_epoch < control.halt_epoch:
            control.request_cancel(control.halt_epoch)
            self._audit("cancel", reason, epoch=control.halt_epoch)
        self._hand_wake.set()

    def _halt(self, reason: str, *, way: str = NAME, by: str = NAME, cancel: bool = False) -> None:
        done = self.run_dir.halt(self.control, reason, way=way, by=by, cancel=cancel)
        self.log.error("halted", epoch=done.epoch, **done.why)
        if done.trouble:
            self.log.error("not written down", epoch=done.epoch, error=str(done.trouble))
        self._hand_wake.set()

    def _audit(self, action: str, words: str, **more: Any) -> None:
        try:
            self.run_dir.audit(action, entry(words, NAME, NAME), run=self.run.run, **more)
        except HftpipeError as error:
            self.log.error("not written down", action=action, words=words, error=str(error))


def _order_of(body: bytes) -> str | None:
    """The venue's id of a closing order; None when the answer does not tell."""
    try:
        found = json.loads(body or b"null")
    except ValueError:
        return None
    return str(found["id"]) if isinstance(found, dict) and "id" in found else None


# ---------------------------------------------------------------- into the database

class Copier:
    """Copies ``audit.jsonl`` into PostgreSQL, while there is one."""

    def __init__(self, run_dir: RunDir, conninfo: Callable[[], str], log: Log) -> None:
        self._path = os.path.join(run_dir.name, "audit.jsonl")
        self._conninfo, self._log = conninfo, log
        self._done = 0                  # bytes that are stored
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)
        self._thread.start()

    def _pending(self) -> bytes:
        try:
            with open(self._path, "rb") as file:
                file.seek(self._done)
                data = file.read(1 << 20)
        except OSError:
            return b""
        return data[:data.rfind(b"\n") + 1]

    def _run(self) -> None:
        pause, failures = 0.5, 0
        while True:
            ending = self._ending.wait(pause)
            data = self._pending()
            if data:
                try:
                    from hftpipe.store import halt_log
                    halt_log.copy(self._conninfo(), data)
                    self._done += len(data)
                    pause, failures = 0.5, 0
                    continue
                except Exception as error:      # the database may be away; the file stays
                    failures += 1
                    if failures & (failures - 1) == 0:
                        self._log.error("database", error=" ".join(str(error).split()),
                                        tries=failures)
                    pause = min(0.5 * 2 ** failures, 30.0)
            if ending:
                return

    def close(self, seconds: float) -> None:
        """One more try, for at most so long."""
        self._ending.set()
        self._thread.join(seconds)


# ---------------------------------------------------------------- the process

LOCK = "guardian.lock"
GOODBYE = 5.0                   # s that waiting alerts have when everything is done


def take_lock(run_dir: RunDir, seconds: float) -> int:
    """Be the one guardian of the run directory; the file descriptor to keep.

    Raises
    ------
    BusyError
        If another one still has it after so long: that of the run before, perhaps.
    """
    path = os.path.join(run_dir.name, LOCK)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= end:
                pid = os.pread(fd, 32, 0).decode(errors="replace").strip()
                os.close(fd)
                raise BusyError(
                    f"the guardian of the run before, process {pid or '?'}, still cancels orders "
                    f"at the venue; {run_dir.name}/logs/guardian.log says what keeps it") from None
            time.sleep(0.02)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def run(directory: str | os.PathLike[str]) -> Exit:
    """Be the guardian of the run in *directory*."""
    # Only the page and SIGKILL end it: a service manager's or terminal's signals are for the
    # supervisor, and after those there may be orders to cancel.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    run_dir = RunDir(directory)
    record = run_dir.read_run()
    if record is None:
        raise ConfigError(f"{run_dir.name}: no run.json; the supervisor writes it")
    control = shm.control(record.run, writer=True)
    private = json.loads(_private(run_dir))
    log = Log(os.path.join(run_dir.name, "logs"), record.run)
    lock = take_lock(run_dir, 5.0)
    pid = os.getpid()
    block = control.stage(topology.INDEX[NAME])
    block.enter(pid, shm.process_start(pid) or 0, alive=shm.alive)
    block.heartbeat = _clock.now_ns()

    venue = private["venue"]
    refer = private[NAME]
    key = Secret.literal(venue["key"]) if "key" in venue else Secret(refer["key"])
    secret = Secret.literal(venue["secret"]) if "secret" in venue else Secret(refer["secret"])
    key.reveal(), secret.reveal()               # a missing one is told before anything trades
    hooks = [Webhook(Secret(reference).reveal(), reference) for reference in refer["alerts"]]
    guardian = Guardian(
        run_dir, record, control, Options.of(refer),
        lambda: Rest(venue["rest"], key, secret, TIMEOUT, urgent=True),
        tuple(venue["process"]) if venue.get("process") else None, log,
        Triggers(control, Limits.of(refer)), hooks)

    def conninfo() -> str:
        with contextlib.suppress(HftpipeError, ValueError):     # it goes when the run ends
            private["conninfo"] = json.loads(_private(run_dir))["conninfo"]
        from hftpipe.store.postgres import with_password  # heavy, and not needed before
        return with_password(private["conninfo"], Secret(private.get("password", "")))

    copier = Copier(run_dir, conninfo, log)
    try:
        guardian.start()
        _first_answer(guardian)
        block.state = _control.RUNNING
        log.info("running", epoch=control.halt_epoch, trading=control.trading)
        code = guardian.serve()
    except BaseException as error:
        block.state = _control.FAILED
        log.error("failed", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        raise
    copier.close(2.0)
    guardian.alerts.close(GOODBYE)
    log.info("ended")
    block.state = _control.STOPPED
    os.close(lock)
    return code


def _private(run_dir: RunDir) -> str:
    try:
        with open(os.path.join(run_dir.name, "private.json"), encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{run_dir.name}/private.json: {error.strerror}") from None


def _first_answer(guardian: Guardian, seconds: float = 20.0) -> None:
    """Wait until the venue has answered once: a guardian that cannot cancel is none.

    A restarted one does not wait: the run is there, and it goes on trying.
    """
    if guardian.control.armed_epoch:
        return
    end = time.monotonic() + seconds
    while not guardian.block.counter("connected"):
        guardian.block.heartbeat = _clock.now_ns()
        if time.monotonic() >= end:
            raise guardian.error or ConfigError("the venue has not answered the guardian")
        time.sleep(TICK)
