"""The supervisor: starts the processes of a run, watches them, stops them, cleans up.

What happens when

* a **fatal** child dies (every stage that makes events: feed to ledger and updates): trading halts,
  the others are told to drain, the store empties its rings, the run ends with a non-zero code.
  ``updates`` counts among them: without it nobody knows what became of our orders, and its events
  are numbered by the process that made them, so a second one could not go on where it stopped;
* the **journal** is killed: it is started again in place and goes on where it was; meanwhile the
  store links hold what comes.  One that ends by itself had a reason (the disk, damage) that a
  second one would only repeat: trading halts and the run ends.  One that hangs halts trading too;
* a **cold** child dies (store, monitor, analyst): it is started again in place, at most
  :attr:`Child.restarts` times; the store's rings hold what it has not written.  A store that keeps
  dying stops the run, a monitor or an analyst that does is left out: figures that are too old
  close the gate by themselves;
* the **guardian** dies or hangs: it is started again in place too, and trading halts when there
  has been none for :data:`GUARDLESS`.  One that keeps dying stops the run;
* a stage **hangs**: after ``stale`` seconds without a heartbeat trading halts, after ``hung`` the
  process is killed and counts as dead;
* SIGUSR1, or a file ``HALT`` in the run directory: trading halts, the run goes on;
* the first SIGTERM or SIGINT: drain, exit 0 within ``grace``; the second, or SIGQUIT: everything is
  killed;
* the supervisor itself is killed: every child but the guardian dies with it (PR_SET_PDEATHSIG), the
  rings stay, and the next start finds them (:func:`find_leftovers`).

The guardian ends by itself, when the gateway has ended and the venue shows no open order.  The
supervisor waits for that a while and then leaves it: it alone may outlive a run.

Shared memory is unlinked when the store has said, by exit code 0, that it has everything.  If it
could not, the segments stay for the next start: nothing is lost, whatever the exit code.

A child that has ended cannot speak for itself any more, so the supervisor sets the state of its
blocks on the control page (STOPPED or FAILED): the store reads there who will produce no more.
"""
from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from hftpipe import _clock, _control, errors, schema, secret, shm
from hftpipe.errors import DeadlineError, Exit, HftpipeError
from hftpipe.rundir import Latch, Run, RunDir, entry, utc_text, who
from hftpipe.topology import INDEX, STAGES, Plan, Process

if TYPE_CHECKING:
    from hftpipe._control import Control
    from hftpipe.log import Logger

SECOND = 10**9
MAKER = SECOND                  # ns that who halted has to write down why
GUARDLESS = SECOND              # ns without a guardian after which trading halts
FRESH = 600 * SECOND            # ns that a child must live for its restarts to be forgotten
# Child.phase: when it is stopped
PIPELINE, STORE, SERVICE, GUARD = range(4)

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when *parent* ends; end at once if it already has.

    Survives exec.  The parent is the thread that forked: the supervisor forks from its main one.
    """
    if _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
        os._exit(Exit.ERROR)


def own_core() -> int | None:
    """The core this process is pinned to; None when it floats."""
    cores = os.sched_getaffinity(0)
    return next(iter(cores)) if len(cores) == 1 else None


# ---------------------------------------------------------------- the run

def create_run(run_dir: RunDir, plan: Plan, *, profile: str = "", limits_version: int = 0,
               info: Mapping[str, Any] | None = None, instruments: int = 1,
               limits: Sequence[tuple[str, str, int]] = (),
               ) -> tuple[Run, Control, list[shm.Segment]]:
    """Make control page, board and all rings of a new run; the caller holds the lock.

    ``run.json`` is written first, so that a crash in between leaves names to clean up.  The page
    starts HALTED when the last run was halted and nobody resumed, else DISARMED.  The board
    is one for so many *instruments*; *limits* are name, unit and scale of each.

    Returns
    -------
    run, control, segments
        Keep *segments*: they hold the mappings.
    """
    latch = run_dir.latch()
    held = run_dir.halt_file()
    if held is not None and not latch.halted:
        run_dir.halt(None, held[0], way="file", by=held[1])
        latch = run_dir.latch()
    before = run_dir.read_run()
    # Later than the run before, whatever became of the clock: ids carry it.
    number, pid = max(_clock.utc_ns(), before.run + 1 if before else 0), os.getpid()
    names = ("control", "board", *(link.name for link in plan.links))
    run = Run(
        number, pid, shm.process_start(pid) or 0, shm.boot_id(), profile,
        max(latch.halt_epoch, 1), tuple(shm.segment_name(number, name) for name in names),
        tuple({"name": p.name, "stages": p.stages, "affinity": p.affinity, "wait": p.wait}
              for p in plan.processes), dict(info or {}))
    run_dir.write_run(run)
    # The page starts at the epoch before the latched halt and is then halted, so that it says
    # HALTED and not DISARMED; nobody else has it yet.
    page = shm.create_control(
        number, stages=[stage.name for stage in STAGES], started=number,
        utc_offset=_clock.utc_ns() - _clock.now_ns(),
        token_key=int.from_bytes(os.urandom(8), "little") | 1, limits_version=limits_version,
        halt_epoch=run.halt_epoch - 1 if latch.halted else run.halt_epoch)
    segments = [page]
    try:
        control = _control.Control(page.memory)
        if latch.halted:
            control.resume(run.halt_epoch - 1)
            control.raise_halt_epoch(run.halt_epoch)
            control.text = json.dumps({"halt": latch.halt})
        segments.append(shm.create_board(number, instruments, limits))
        segments += [shm.create_ring(number, link.name, schema.BY_NAME[link.record], link.capacity)
                     for link in plan.links]
    except BaseException:
        for segment in segments:
            segment.unlink()
        raise
    return run, control, segments


@dataclass(frozen=True)
class Leftovers:
    """What a run that was killed left in shared memory."""

    run: Run
    links: tuple[str, ...]          # parts of the run that are there, "control" included
    latch: Latch                    # highest epochs of its page and the file


def find_leftovers(run_dir: RunDir) -> Leftovers | None:
    """The stale run of this directory, or None.  The caller holds the lock.

    Its rings may hold events that PostgreSQL does not have: drain them, then
    :func:`discard` it.  A halt that only its page knows is latched here.
    """
    run = run_dir.read_run()
    if run is None:
        return None
    links = tuple(shm.runs().get(run.run, ()))
    if not links:
        return None
    if run.alive and run.pid != os.getpid():
        raise errors.BusyError(f"run {run.run:x} is alive: supervisor {run.pid}")
    if "control" in links:
        control = shm.control(run.run)
        if control.halt_epoch > run.halt_epoch or control.trading == "halted":
            run_dir.record_halt(control.halt_epoch, entry("halted in a run that was killed"),
                                seen=True)
    return Leftovers(run, links, run_dir.latch())


def discard(run_dir: RunDir, left: Leftovers) -> None:
    """Unlink what a stale run left, once its events are stored."""
    shm.remove(left.run.run)
    run_dir.write_run(replace(left.run, ended=left.run.ended or "killed"))


# ---------------------------------------------------------------- children

@dataclass(frozen=True)
class Child:
    """One process to run."""

    name: str
    argv: tuple[str, ...]
    stages: tuple[int, ...] = ()        # its blocks of the control page
    affinity: tuple[int, ...] = ()      # cores; empty = the supervisor's
    fatal: bool = True                  # its death stops the run
    needed: bool = True                 # the run stops when its restarts are used up
    restarts: int = 3                   # of a child that is not fatal
    final: bool = False                 # restarted only when killed: what it says itself stands
    # PIPELINE drains first, then STORE; GUARD ends by itself or is left, then SERVICE ends.
    phase: int = PIPELINE
    env: Mapping[str, str] = field(default_factory=dict)    # over the supervisor's
    capture: bool = False               # keep standard output for Supervisor.first_line
    secrets: frozenset[str] = frozenset()   # variables that it is given through its standard input

    @classmethod
    def of(cls, process: Process, argv: Sequence[str], **options: Any) -> Child:
        """The child for a planned process."""
        phase = (STORE if process.stages in (("store",), ("journal",)) else
                 SERVICE if process.stages == ("monitor",) else
                 GUARD if process.stages == ("guardian",) else PIPELINE)
        return cls(process.name, tuple(argv), process.indices, process.affinity, process.fatal,
                   needed=process.stages not in (("monitor",), ("analyst",)), phase=phase,
                   final=process.stages == ("journal",), **options)

    def again(self, code: int, restarts: int) -> bool:
        """Whether it is started again in place after it ended with *code* (0: never)."""
        return (not self.fatal and restarts < self.restarts
                and (code < 0 or not self.final))


def stage_argv(run_dir: RunDir, process: str, secrets: bool = False) -> tuple[str, ...]:
    """Command line of the process *process* of a run; with *secrets* it reads them first."""
    return (sys.executable, "-m", "hftpipe.cli.stage", "--run-dir", run_dir.name,
            "--process", process, *(("--secrets",) if secrets else ()))


class _Running:
    """A child that was started."""

    def __init__(self, child: Child, popen: subprocess.Popen[bytes], log: str) -> None:
        self.child, self.popen, self.log = child, popen, log
        self.pidfd = os.pidfd_open(popen.pid)
        self.restarts = 0
        self.since = _clock.now_ns()

    def close(self) -> None:
        os.close(self.pidfd)
        if self.popen.stdout:
            self.popen.stdout.close()

    def kill(self, number: int) -> None:
        """Signal the whole process group; one that has ended is no error."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, number)

    def ended(self) -> int | None:
        """Exit code, or minus the signal's number; None while it runs.

        What it left in its group is killed while its pid, the group's name, is still taken.
        """
        if self.popen.returncode is None:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.popen.pid, flags) is None:
                return None
            self.kill(signal.SIGKILL)
        return self.popen.poll()

    def wait(self, seconds: float) -> int | None:
        """The same, after at most *seconds*."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.poll(int(seconds * 1000))
        return self.ended()


def _cause(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def keep_house(plan: Plan) -> set[int]:
    """Move this process to the cores that keep house; what it had before.

    The supervisor does it before it starts anything: whatever has no cores of its own, PostgreSQL
    for instance, inherits them and stays off the cores where something spins.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, plan.process_of("supervisor").affinity)
    return before


class InterruptedStart(HftpipeError):
    """A signal came before the run was up."""

    exit_code = Exit.INTERRUPTED


class StartError(HftpipeError):
    """A child ended before the run was up; carries the child's exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = Exit(code) if code in Exit._value2member_map_ and code else Exit.ERROR


class Supervisor:
    """Owner of a run's processes.  Use as a context manager: leaving it leaves no process.

    Parameters
    ----------
    run_dir : RunDir
        Locked by this process.
    run : Run
        As :func:`create_run` made it.
    control : Control
    segments : sequence of Segment
        Unlinked at the end if everything was stored.
    log : Logger
    stale, hung : float
        Seconds without a heartbeat until trading halts, until the process is killed.
    grace : float
        Seconds that a drain may take, all of it.
    vigil : float
        Seconds after it that the guardian has until it is left alone.
    """

    def __init__(self, run_dir: RunDir, run: Run, control: Control,
                 segments: Sequence[shm.Segment], log: Logger, *, stale: float = 2.0,
                 hung: float = 10.0, grace: float = 9.0, vigil: float = 3.0) -> None:
        self.run_dir, self.run, self.control, self.log = run_dir, run, control, log
        self.stale, self.hung, self.grace = int(stale * SECOND), int(hung * SECOND), grace
        self.vigil = vigil
        self.code: Exit = Exit.OK
        self.cause = ""                     # why the run ends, in words
        self.before_drain: list[Callable[[], object]] = []  # called when the end begins
        self.drained = False                # whether everything that was made is stored
        self.hidden = secret.VARIABLES      # what no child inherits in its environment
        self._segments = list(segments)
        self._children: list[_Running] = []
        self._store_codes: dict[str, int] = {}      # of journal and store, as they ended last
        self._signals: list[int] = []
        self._usr1 = 0                      # SIGUSR1s that have not halted yet
        self._quiet: set[int] = set()       # stages whose missing heartbeat is known
        self._unguarded = False             # at the last look
        self._watched = _clock.now_ns()
        self._latched = run.halt_epoch
        self._unexplained: tuple[int, int, dict[str, str]] | None = None   # when, epoch, latched
        self._handlers: dict[int, Any] = {}
        self._wake: tuple[int, int] = (-1, -1)
        self._stopping = False

    # ------------------------------------------------------------ context

    def __enter__(self) -> Supervisor:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the supervisor runs in the main thread: children die with it")
        self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1):
            self._handlers[number] = signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        own = self.control.stage(INDEX["supervisor"])
        own.enter(self.run.pid, self.run.start, own_core(), alive=shm.alive)
        own.heartbeat = _clock.now_ns()
        own.state = _control.RUNNING
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            self._end(error)
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            for fd in self._wake:
                os.close(fd)

    def _end(self, error: BaseException | None) -> None:
        """Stop what is left, unlink what is stored, say how the run ended."""
        if error is not None and self._children and not self._stopping:
            self.stop(getattr(error, "exit_code", Exit.ERROR), str(error))
        if self._children:                      # left early, without watch or stop
            self.control.request_stop(_control.QUIT)
            self._kill([c for c in self._children if c.child.phase not in (SERVICE, GUARD)])
            self._leave_guard(0.0)
            self._terminate([c for c in self._children if c.child.phase == SERVICE])
        self._persist(last=True)
        nothing = all(b.counter("events_stored") == 0 for b in self.control.stages)
        if self.drained or (error is not None and nothing):
            for segment in self._segments:
                segment.unlink()
        else:
            self.log.error("rings are kept: the next start stores what they hold",
                           segments=len(self._segments))
        if error is not None:
            self.code = getattr(error, "exit_code", Exit.ERROR)
        own = self.control.stage(INDEX["supervisor"])
        own.state = _control.STOPPED if self.code == Exit.OK else _control.FAILED
        self.run_dir.write_run(replace(self.run, ended=utc_text(), exit=int(self.code)))
        self.log.info("ended", code=int(self.code), cause=self.cause)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self._usr1 += 1                     # _poll halts: a handler must not wait for a disk
        else:
            self._signals.append(number)

    # ------------------------------------------------------------ starting

    def spawn(self, child: Child) -> int:
        """Start one child; its pid."""
        running = self._spawn(child)
        self._children.append(running)
        return running.popen.pid

    def _spawn(self, child: Child) -> _Running:
        path = self.run_dir.logs / f"{child.name}.err"
        parent = os.getpid()
        cores = set(child.affinity)

        def in_child() -> None:                 # after fork: nothing but system calls
            if child.phase != GUARD:
                die_with_parent(parent)
            if cores:
                os.sched_setaffinity(0, cores)

        # Every process of this user can read an environment: credentials are in none.
        env = {k: v for k, v in os.environ.items() if k not in self.hidden} | dict(child.env)
        given = secret.give(child.secrets)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with warnings.catch_warnings():
                # 3.12 warns of forking beside threads; in_child takes no lock.
                warnings.simplefilter("ignore", DeprecationWarning)
                popen = subprocess.Popen(
                    child.argv, stdin=subprocess.DEVNULL if given is None else given, stderr=log,
                    stdout=subprocess.PIPE if child.capture else log, process_group=0,
                    preexec_fn=in_child, env=env)
        except OSError as e:
            raise HftpipeError(f"{child.name}: cannot start {child.argv[0]}: {e.strerror}") from e
        finally:
            os.close(log)
            if given is not None:
                os.close(given)
        self.log.debug("started", child=child.name, pid=popen.pid)
        return _Running(child, popen, str(path))

    def first_line(self, name: str, timeout: float) -> str:
        """The first line that child *name* (with ``capture``) writes to standard output.

        Raises
        ------
        StartError, DeadlineError
            If it ends, or says nothing in time.
        """
        child = self._child(name)
        out: IO[bytes] | None = child.popen.stdout
        assert out is not None, f"{name} was started without capture"
        os.set_blocking(out.fileno(), False)
        deadline = _clock.now_ns() + int(timeout * SECOND)
        line = b""
        while not line.endswith(b"\n"):
            left = deadline - _clock.now_ns()
            if left <= 0:
                raise DeadlineError(f"{name} said nothing within {timeout:g} s")
            poll = select.poll()
            poll.register(out.fileno(), select.POLLIN)
            poll.register(self._wake[0], select.POLLIN)
            ready = [fd for fd, _ in poll.poll(left // 1_000_000 + 1)]
            if self._wake[0] in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake[0], 4096)
            self._interrupted()
            self._told_to_halt()
            if out.fileno() not in ready:
                continue
            part = os.read(out.fileno(), 65536)
            if not part:
                while (code := child.wait(1.0)) is None:
                    self._interrupted()         # closed its output and lives on
                self._raise_start(child, code)
            line += part
        return line.partition(b"\n")[0].decode()

    def _child(self, name: str) -> _Running:
        for running in self._children:
            if running.child.name == name:
                return running
        raise KeyError(name)

    def _raise_start(self, running: _Running, code: int) -> None:
        self._drop(running, code)
        reason = _last_line(running.log)
        raise StartError(f"{running.child.name} did not start ({_cause(code)})"
                         + (f": {reason}" if reason else f"; see {running.log}"), code)

    def _interrupted(self) -> None:
        if self._signals:
            raise InterruptedStart(f"{signal.Signals(self._signals[0]).name} while starting")

    def wait_running(self, timeout: float = 30.0) -> None:
        """Wait until every stage that was started is RUNNING.

        Raises
        ------
        StartError
            If a child ends instead; with its exit code and its last words.
        DeadlineError
            Naming the stages that are not up.
        """
        deadline = _clock.now_ns() + int(timeout * SECOND)
        while True:
            blocks = [self.control.stage(i) for c in self._children for i in c.child.stages]
            late = [b for b in blocks if b.state != _control.RUNNING]
            for running, code in self._poll(0.01 if late else 0):
                self._raise_start(running, code)
            self._interrupted()
            if not late:
                return
            if _clock.now_ns() >= deadline:
                states = ", ".join(f"{b.name} {_control.STATES[b.state]}" for b in late)
                raise DeadlineError(f"not all stages run after {timeout:g} s: {states}")

    # ------------------------------------------------------------ watching

    def watch(self, seconds: float | None = None, every: Callable[[], None] | None = None,
              interval: float = 0.1) -> Exit:
        """Watch until a signal, a stop request, a fatal death or *seconds* have passed; then stop.

        *every* is called about each *interval*.  The exit code is also in :attr:`code`.
        """
        deadline = None if seconds is None else _clock.now_ns() + int(seconds * SECOND)
        while True:
            ended = self._poll(interval)
            if self._signals:
                return self.stop(Exit.OK, signal.Signals(self._signals[0]).name)
            if self.control.stop != _control.RUN:       # then who ended may have been told to
                return self.stop(Exit.OK, "stop was requested")
            for running, code in ended:
                self._on_exit(running, code)
            if self.cause:
                return self.stop(self.code, self.cause)
            self._heartbeats()
            self._guarded()
            self._persist()
            if every:
                every()
            if deadline is not None and _clock.now_ns() >= deadline:
                return self.stop(Exit.OK, "time is up")

    def _poll(self, timeout: float) -> list[tuple[_Running, int]]:
        """Wait for the first of: a child's end, a signal, *timeout*.  Children that ended."""
        poll = select.poll()
        for running in self._children:
            poll.register(running.pidfd, select.POLLIN)
        drains = {self._wake[0]}
        for running in self._children:
            if running.popen.stdout and not running.popen.stdout.closed:
                drains.add(running.popen.stdout.fileno())
        for fd in drains:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(int(timeout * 1000)):
            if fd in drains:        # a child's further output: a full pipe must not stop it
                with contextlib.suppress(BlockingIOError):
                    if not os.read(fd, 65536):
                        self._close_output(fd)
        self._told_to_halt()
        now = _clock.now_ns()
        self.control.stage(INDEX["supervisor"]).heartbeat = now
        return [(r, code) for r in self._children if (code := r.ended()) is not None]

    def _close_output(self, fd: int) -> None:
        for running in self._children:
            if running.popen.stdout and running.popen.stdout.fileno() == fd:
                running.popen.stdout.close()
                return

    def _drop(self, running: _Running, code: int, again: bool = False) -> None:
        """Forget a child that ended and speak for its stages; *again*: it will be back."""
        self._children.remove(running)
        running.close()
        if running.child.phase == STORE:
            self._store_codes[running.child.name] = code
        for index in running.child.stages:
            block = self.control.stage(index)
            if block.state == _control.STOPPED and code == -signal.SIGTERM:
                continue    # it had ended by itself; our signal met the interpreter on its way out
            if again:                           # nobody may think that nothing follows
                block.state = _control.STARTING
            elif block.state not in (_control.STOPPED, _control.FAILED) or code != 0:
                block.state = _control.STOPPED if code == 0 else _control.FAILED

    def _on_exit(self, running: _Running, code: int) -> None:
        child = running.child
        if _clock.now_ns() - running.since > FRESH:
            running.restarts = 0                # another time, another trouble
        again = child.again(code, running.restarts)
        self._drop(running, code, again)
        words = f"{child.name} died ({_cause(code)})"
        if again:
            self.log.warning("restarting", child=child.name, cause=_cause(code),
                             restarts=running.restarts + 1, last=_last_line(running.log))
            self._respawn(running)
            return
        if not child.fatal and not child.needed:
            self.log.error("left out", child=child.name, cause=_cause(code),
                           last=_last_line(running.log))
            return
        self.halt(words)
        self.log.error("died", child=child.name, cause=_cause(code), last=_last_line(running.log))
        self.code = self.code or Exit.ERROR
        self.cause = self.cause or words

    def _respawn(self, running: _Running) -> None:
        """Start a child again that ended."""
        made = self._spawn(running.child)
        made.restarts = running.restarts + 1
        self._children.append(made)

    def _heartbeats(self) -> None:
        now = _clock.now_ns()
        slept, self._watched = now - self._watched, now
        if slept > self.stale // 2:
            return                              # it was us who did not run
        for running in list(self._children):
            for index in running.child.stages:
                block = self.control.stage(index)
                age = now - max(block.heartbeat, running.since)
                if block.state not in (_control.RUNNING, _control.DRAINING) or age <= self.stale:
                    self._quiet.discard(index)
                    continue
                if index not in self._quiet:
                    self._quiet.add(index)
                    words = f"{block.name} has not beaten for {age / SECOND:.1f} s"
                    self.log.error("silent", stage=block.name, age_ns=age)
                    if running.child.fatal or running.child.final:
                        self.halt(words)
                if age > self.hung and (running.child.fatal or running.child.final
                                        or running.child.phase == GUARD):
                    self.log.error("hung", stage=block.name, age_ns=age)
                    running.kill(signal.SIGKILL)

    def _guarded(self) -> None:
        """Halt when nobody could cancel: no guardian has beaten for a while.

        Seen twice, so that a pause of our own is not taken for one of the guardian's.
        """
        if not self.control.armed or not any(c.child.phase == GUARD for c in self._children):
            self._unguarded = False
            return
        age = _clock.now_ns() - self.control.stage(INDEX["guardian"]).heartbeat
        if age <= GUARDLESS:
            self._unguarded = False
        elif not self._unguarded:
            self._unguarded = True
        else:
            self.halt(f"no guardian for {age / SECOND:.1f} s")

    def halt(self, reason: str, *, way: str = "supervisor", by: str = "supervisor") -> int:
        """Stop trading and latch it; the new halt epoch."""
        done = self.run_dir.halt(self.control, reason, way=way, by=by)
        self._latched = max(self._latched, done.epoch)
        self.log.error("halted", epoch=done.epoch, **done.why)
        if done.trouble:
            self.log.error("not written down", epoch=done.epoch, error=str(done.trouble))
        return done.epoch

    def _told_to_halt(self) -> None:
        """Halt when a signal or the file says so."""
        if self._usr1:
            self._usr1 = 0
            self.halt("SIGUSR1", way="signal", by=f"{who()} or root")
        if self.control.armed:                  # while it is there nothing trades
            held = self.run_dir.halt_file()
            if held is not None:
                self.halt(held[0], way="file", by=held[1])

    def _persist(self, last: bool = False) -> None:
        """Latch a halt that somebody else made on the page, a stage for instance.

        Its maker has :data:`MAKER` to say what it was; then it is written down as nobody's.
        """
        now, epoch = _clock.now_ns(), self.control.halt_epoch
        try:
            if epoch > self._latched:
                self._latched = epoch
                seen = entry("halted on the control page", "a stage", "page")
                latch = self.run_dir.record_halt(epoch, seen, seen=True)
                self._unexplained = (now + MAKER, epoch, seen)
                self.run_dir.note(self.control, "halt", {**(latch.halt or seen), "epoch": epoch})
            if self._unexplained and (last or now >= self._unexplained[0]):
                _, epoch, seen = self._unexplained
                self._unexplained = None
                latch = self.run_dir.latch()
                if latch.halt == seen:
                    self.run_dir.audit("halt", seen, run=self.run.run, epoch=epoch)
                elif latch.halt and latch.halt_epoch == epoch:
                    self.run_dir.note(self.control, "halt", {**latch.halt, "epoch": epoch})
        except HftpipeError as error:           # the gate is closed; the next start may not know
            self.log.error("not written down", epoch=epoch, error=str(error))

    # ------------------------------------------------------------ stopping

    def stop(self, code: Exit = Exit.OK, cause: str = "") -> Exit:
        """Drain and end every child, consumers last; the exit code of the run."""
        if self._stopping:
            return self.code
        self._stopping = True
        for close in self.before_drain:         # the store must not wait for what we still send
            close()
        self.code, self.cause = code, cause
        self.log.info("stopping", cause=cause, code=int(code))
        began = _clock.now_ns()
        end = began + int(self.grace * SECOND)
        started = {i for c in self._children for i in c.child.stages}
        for block in self.control.stages:       # who was never started will produce nothing
            if block.state == _control.VOID and block.index not in started:
                block.state = _control.STOPPED
        self.control.request_stop(_control.DRAIN)

        def of(*phases: int) -> list[_Running]:
            return [c for c in self._children if c.child.phase in phases]

        # The chain ends by itself from its sources on; what does not is ended by force.
        if signal.SIGQUIT in self._signals:
            return self._quit()
        if self._wait(lambda: not of(PIPELINE), began + int(self.grace * SECOND * 0.5)):
            return self._quit()
        stuck = of(PIPELINE)
        if stuck:
            self.halt("stages did not drain: " + ", ".join(c.child.name for c in stuck))
            self.code = self.code or Exit.TIMEOUT
            self._kill(stuck)
        if self._wait(lambda: not of(STORE), end):
            return self._quit()
        left = of(STORE)
        if left:
            self.log.error("journal or store did not finish in time", seconds=self.grace,
                           children=[c.child.name for c in left])
            self.code = self.code or Exit.TIMEOUT
            self._kill(left)
        else:
            self.drained = not any(self._store_codes.values())
            if not self.drained:
                self.code = self.code or Exit.ERROR
        if self._leave_guard(self.vigil):
            self.code = self.code or Exit.TIMEOUT
        self._terminate(of(SERVICE))
        return self.code

    def _leave_guard(self, seconds: float) -> bool:
        """Give the guardian so long to end by itself, then let it live on; whether it does."""
        end = _clock.now_ns() + int(seconds * SECOND)
        self._wait(lambda: not any(c.child.phase == GUARD for c in self._children), end)
        left = [c for c in self._children if c.child.phase == GUARD]
        for running in left:
            self.log.error("the guardian stays: the venue has not shown that no order is open",
                           pid=running.popen.pid)
            self._children.remove(running)
            running.close()
            running.popen.returncode = 0        # it is nobody's child from here on
        return bool(left)

    def _wait(self, done: Callable[[], bool], deadline: int) -> bool:
        """Wait for *done* until *deadline*; True when a second signal asks to quit."""
        seen = len(self._signals)
        while not done() and _clock.now_ns() < deadline:
            for running, code in self._poll(0.01):
                again = (running.child.phase in (STORE, GUARD) and code != 0
                         and running.child.again(code, running.restarts))
                self._drop(running, code, again)
                if again:
                    self.log.warning("restarting", child=running.child.name,
                                     cause=_cause(code), last=_last_line(running.log))
                    self._respawn(running)
                if code != 0 and running.child.fatal:
                    self.log.error("died while draining", child=running.child.name,
                                   cause=_cause(code), last=_last_line(running.log))
                    self.code = self.code or Exit.ERROR
            if len(self._signals) > max(seen, 1) or signal.SIGQUIT in self._signals:
                return True
        return False

    def _quit(self) -> Exit:
        """The second signal: no more waiting.  The rings stay."""
        self.control.request_stop(_control.QUIT)
        self.log.warning("stopped at once")
        self._kill([c for c in self._children if c.child.phase not in (SERVICE, GUARD)])
        self._leave_guard(0.0)
        self._terminate([c for c in self._children if c.child.phase == SERVICE])
        self.code = self.code or Exit.INTERRUPTED
        self.cause = "told to stop at once"
        return self.code

    def _kill(self, victims: Sequence[_Running]) -> None:
        for running in victims:
            running.kill(signal.SIGKILL)
        for running in victims:
            code = None
            while code is None:                 # SIGKILL cannot be refused
                code = running.wait(1.0)
            self._drop(running, code)

    def _terminate(self, victims: Sequence[_Running], seconds: float = 2.0) -> None:
        """End services, the last one started first, each asked before it is killed."""
        for running in reversed(victims):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.popen.pid, signal.SIGTERM)
            code = running.wait(seconds)
            if code is None:
                self.log.warning("killed", child=running.child.name, seconds=seconds)
                self._kill([running])
            else:
                self._drop(running, code)


def _last_line(path: str) -> str:
    """The last line that a child wrote to its standard error."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""                               # no log, no last words
    return lines[-1].removeprefix("error: ")[:500] if lines else ""
