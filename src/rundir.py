"""The run directory: one run at a time, what the run is, and the halt that outlives it.

Files, all of them 0600 in a directory 0700 that belongs to this user::

    lock            flock held by the supervisor; its pid and start time
    run.json        the run that is or was: id, supervisor, segments, processes, how it ended
    halt.json       the last halt and resume; a halt outlives the run, the page and the host
    HALT            made by whoever wants it halted: while it is there, nothing trades
    audit.jsonl     who halted, resumed, cancelled, flattened: why, when and in which way
    anchors.jsonl   heads of the chains over what PostgreSQL holds (store/chain.py)
    halt.token      what a halt over HTTP must show; made when there is none
    operator.lock   flock held while halt.json or the page's text is written
    logs/           one file per process

What decides whether orders pass is the control page (``halt_epoch`` against ``armed_epoch``);
``halt.json`` is its copy for the next run.  Of two copies the higher epoch wins.  Every way to
halt ends in :meth:`RunDir.halt`, but for a stage's own, which adds to the epoch alone, and for
``hftpipe-halt`` (halt.c), which writes the same files without Python.

``halt``, ``status`` and ``ready`` import this, so it imports little; pathlib, as long as the whole
of click, only for who asks for a Path.
"""
from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hftpipe import _clock, shm
from hftpipe.errors import (
    AccessError,
    BusyError,
    ConfigError,
    HftpipeError,
    NotRunningError,
    SchemaError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from hftpipe._control import Control

REASON = 300                    # characters of a reason that are kept
FORMATTING = 200_000_000        # ns between a page's name and its contents, at most


def default(path: str | os.PathLike[str] | None = None) -> str:
    """The run directory: *path*, ``$HFTPIPE_RUN_DIR``, or ``hftpipe`` in the user's state."""
    chosen = path or os.environ.get("HFTPIPE_RUN_DIR")
    if chosen:
        return os.path.abspath(chosen)
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(os.path.abspath(state), "hftpipe")


def who(uid: int | None = None) -> str:
    """``user@host`` of this process, or of user *uid*."""
    import pwd
    uid = os.getuid() if uid is None else uid
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)                 # a container's user without a name
    return f"{user}@{os.uname().nodename}"


def utc_text(ns: int | None = None) -> str:
    """UTC time in ISO 8601 with microseconds; now, or *ns* since 1970."""
    seconds, rest = divmod(_clock.utc_ns() if ns is None else ns, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"


# ---------------------------------------------------------------- the run

@dataclass(frozen=True)
class Run:
    """What ``run.json`` says."""

    run: int                    # UTC ns of its start; names its segments
    pid: int                    # of the supervisor
    start: int                  # when that process started, clock ticks after boot
    boot: int
    profile: str = ""
    halt_epoch: int = 1         # of the page when it was made
    segments: tuple[str, ...] = ()          # names in shared memory, the control page included
    processes: tuple[Mapping[str, Any], ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    ended: str = ""             # UTC; empty while it runs, or when it was killed
    exit: int | None = None

    @property
    def alive(self) -> bool:
        """Whether its supervisor still runs."""
        return not self.ended and self.boot == shm.boot_id() and shm.alive(self.pid, self.start)


# ---------------------------------------------------------------- the halt

@dataclass(frozen=True)
class Latch:
    """The halt that outlives a run.  *halt* and *resume* say who, why and when."""

    halt_epoch: int = 0
    armed_epoch: int = 0
    halt: Mapping[str, Any] | None = None
    resume: Mapping[str, Any] | None = None

    @property
    def halted(self) -> bool:
        """Whether the next run starts HALTED."""
        return self.halt_epoch > self.armed_epoch


def entry(reason: str, by: str = "", way: str = "") -> dict[str, str]:
    """A halt or resume as it is written down; *way* is how it came: cli, file, signal, ..."""
    shown = "".join(c if c.isprintable() else " " for c in reason)      # it ends on terminals
    return {"reason": " ".join(shown.split())[:REASON], "who": by or who(), "when": utc_text(),
            **({"way": way} if way else {})}


GATES = ("risk", "gateway")             # who must act on a halt


def acknowledged(control: Control, epoch: int, began: int, timeout: float,
                 ) -> tuple[dict[str, str], int]:
    """What each gate says of halt *epoch*, and how many ns after *began* it was all said.

    "acknowledged", "not running", or "silent" when *timeout* seconds were not enough.
    """
    from hftpipe import _control
    deadline = began + int(timeout * 1e9)
    blocks = {b.name: b for b in control.stages if b.name in GATES}
    while True:
        state = {
            name: "acknowledged" if block.ack_epoch >= epoch
            else "silent" if shm.alive(block.pid, block.start) and block.state in (
                _control.STARTING, _control.RUNNING, _control.DRAINING)
            else "not running"
            for name, block in blocks.items()}
        now = _clock.now_ns()
        if "silent" not in state.values() or now >= deadline:
            return state, now - began
        time.sleep(0.0002)


@dataclass(frozen=True)
class Halted:
    """What :meth:`RunDir.halt` did."""

    epoch: int                          # of the page, or of the next start without one
    why: Mapping[str, str]
    trouble: HftpipeError | None        # why it is not written down; the gate is closed anyway


# ---------------------------------------------------------------- the directory

def _read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


class RunDir:
    """Handle on a run directory; :meth:`prepare` makes it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._lock: int | None = None

    @property
    def path(self) -> Path:
        from pathlib import Path
        return Path(self.name)

    def _at(self, file: str) -> str:
        return os.path.join(self.name, file)

    def prepare(self) -> None:
        """Make the directory, or refuse one that others could reach into.

        Raises
        ------
        AccessError
            If it cannot be made, is no directory, or is not this user's alone.
        """
        try:
            os.makedirs(self.name, 0o700, exist_ok=True)
            found = os.lstat(self.name)
            if not stat.S_ISDIR(found.st_mode):
                raise AccessError(f"run directory {self.name} is not a directory")
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise AccessError(
                    f"run directory {self.name} must be this user's and mode 0700, was uid "
                    f"{found.st_uid} mode {found.st_mode & 0o777:04o}")
            os.makedirs(self._at("logs"), 0o700, exist_ok=True)
        except FileExistsError:
            raise AccessError(f"run directory {self.name} is not a directory") from None
        except OSError as e:
            raise AccessError(f"run directory {self.name}: {e.strerror}") from None

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    # ------------------------------------------------------------ one run at a time

    def lock(self) -> None:
        """Be the one supervisor of this directory until :meth:`unlock` or the process ends.

        Raises
        ------
        BusyError
            Naming the process that is.
        """
        fd = self._open("lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            pid, _ = self._lock_holder()
            raise BusyError(f"{self.name} has a run already: supervisor "
                            f"{pid or '(starting)'}; stop it with `hftpipe stop` or take "
                            "another --run-dir") from None
        pid = os.getpid()
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{pid} {shm.process_start(pid)}\n".encode(), 0)
        self._lock = fd

    def unlock(self) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def _lock_holder(self) -> tuple[int, int]:
        """``(pid, start)`` that the lock file names; zeros when it names none."""
        try:
            pid, start = _read(self._at("lock")).split()
            return int(pid), int(start)
        except (OSError, ValueError):
            return 0, 0

    def _open(self, name: str) -> int:
        try:
            return os.open(self._at(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                           0o600)
        except FileNotFoundError:
            raise NotRunningError(f"no run directory {self.name}") from None
        except OSError as e:
            raise AccessError(f"{self._at(name)}: {e.strerror}") from None

    # ------------------------------------------------------------ files

    def write(self, name: str, text: str) -> None:
        """Replace file *name* by *text*: whole or not at all, on disk when this returns."""
        target, temporary = self._at(name), self._at(f".{name}.{os.getpid()}")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                data = text.encode()
                while data:
                    data = data[os.write(fd, data):]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, target)
            directory = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as e:
            raise AccessError(f"{target}: {e.strerror}") from None

    def _json(self, name: str) -> dict[str, Any] | None:
        """Content of a JSON file; None when there is none."""
        try:
            found = json.loads(_read(self._at(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise AccessError(f"{self._at(name)}: {e.strerror}") from None
        except ValueError as e:
            raise ConfigError(f"{self._at(name)} is not JSON: {e}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"{self._at(name)} must hold a JSON object")
        return found

    def write_run(self, run: Run) -> None:
        """Write ``run.json``."""
        self.write("run.json", json.dumps({
            "run": f"{run.run:x}", "pid": run.pid, "start": run.start, "boot": f"{run.boot:x}",
            "profile": run.profile, "halt_epoch": run.halt_epoch, "segments": run.segments,
            "processes": [dict(p) for p in run.processes], "info": dict(run.info),
            "ended": run.ended, "exit": run.exit}, indent=1) + "\n")

    def read_run(self) -> Run | None:
        """The run that is or was; None when there never was one.

        Raises
        ------
        ConfigError
            If ``run.json`` is not what :meth:`write_run` writes.
        """
        found = self._json("run.json")
        if found is None:
            return None
        try:
            return Run(int(found["run"], 16), int(found["pid"]), int(found["start"]),
                       int(found["boot"], 16), found["profile"], int(found["halt_epoch"]),
                       tuple(found["segments"]), tuple(found["processes"]), found["info"],
                       found["ended"], found["exit"])
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(f"{self._at('run.json')} is damaged: {e!r}") from None

    # ------------------------------------------------------------ the control page

    def control(self) -> tuple[Run, Control]:
        """The run and its control page, also when everybody who used it is dead.

        Without a readable ``run.json`` the page is found by the supervisor that the lock names.

        Raises
        ------
        NotRunningError
            If there is no page.
        """
        try:
            run = self.read_run()
        except ConfigError:
            run = self._by_lock()
            if run is None:
                raise
        if run is None:
            raise NotRunningError(f"no run in {self.name}")
        deadline = _clock.now_ns() + FORMATTING
        try:
            while True:
                try:
                    return run, shm.control(run.run)
                except SchemaError:
                    if _clock.now_ns() >= deadline or not run.alive:
                        raise
                    time.sleep(0.005)           # it is just being made
        except NotRunningError:
            how = (f"ended {run.ended} with exit code {run.exit}" if run.ended
                   else "left nothing behind")
            raise NotRunningError(f"no run in {self.name}; the last one, {run.run:x}, "
                                  f"{how}") from None

    def _by_lock(self) -> Run | None:
        holder = self._lock_holder()
        for run, parts in shm.runs().items():
            if "control" in parts and holder[0] and shm.control(run).supervisor == holder:
                return Run(run, *holder, shm.boot_id())
        return None

    # ------------------------------------------------------------ the halt latch

    @contextmanager
    def operator(self, timeout: float = 2.0) -> Iterator[bool]:
        """The operator lock, for at most *timeout* seconds; whether it was got.

        A halt goes on without it; anything else should not.
        """
        fd = self._open("operator.lock")
        deadline = _clock.now_ns() + int(timeout * 1e9)
        got = False
        try:
            while not got:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    got = True
                except OSError as e:
                    if e.errno not in (errno.EAGAIN, errno.EACCES):
                        raise
                    if _clock.now_ns() >= deadline:
                        break
                    time.sleep(0.005)
            yield got
        finally:
            os.close(fd)

    def latch(self) -> Latch:
        """What ``halt.json`` says.  An unreadable one counts as a halt: fail closed."""
        try:
            found = self._json("halt.json")
            if found is None:
                return Latch()
            return Latch(int(found["halt_epoch"]), int(found["armed_epoch"]), found.get("halt"),
                         found.get("resume"))
        except (ConfigError, KeyError, TypeError, ValueError):
            return Latch(2, 1, {"reason": "halt.json is damaged", "who": "", "when": ""})

    def _write_latch(self, latch: Latch) -> None:
        self.write("halt.json", json.dumps({
            "halted": latch.halted, "halt_epoch": latch.halt_epoch,
            "armed_epoch": latch.armed_epoch, "halt": latch.halt, "resume": latch.resume},
            indent=1) + "\n")

    def record_halt(self, epoch: int, why: Mapping[str, Any], *, seen: bool = False) -> Latch:
        """Latch the halt *epoch*; 0 = one more than the file's.  The higher one wins.

        *seen*: the caller only saw the halt.  What its maker says about it counts more,
        whichever of the two comes first.
        """
        with self.operator():                   # got or not: a halt is written
            old = self.latch()
            epoch = epoch or max(old.halt_epoch, 1) + 1
            if old.halt_epoch > epoch or (seen and old.halt_epoch == epoch):
                return old                      # a later halt, or this one's maker, stands there
            armed = min(max(old.armed_epoch, 1), epoch - 1)
            new = Latch(epoch, armed, dict(why), old.resume)
            self._write_latch(new)
            return new

    def record_resume(self, epoch: int, why: Mapping[str, Any]) -> Latch:
        """Note that trading was resumed from halt *epoch*; a later halt stays.

        The caller holds the operator lock.
        """
        old = self.latch()
        if old.halt_epoch > epoch:
            return old
        new = Latch(epoch, epoch, old.halt, dict(why))
        self._write_latch(new)
        return new

    # ------------------------------------------------------------ halting

    def halt(self, control: Control | None, reason: str, *, way: str, by: str = "",
             cancel: bool = False, flatten: bool = False) -> Halted:
        """Close the gate, then write down who did it and why.

        The addition on the page comes first and needs nobody; whatever goes wrong after it is
        returned, not raised.  Without a page the next run starts halted.

        Parameters
        ----------
        way : str
            How the halt came: cli, file, signal, socket, http, helper, supervisor, guardian,
            trigger, reconcile or drill.
        cancel, flatten : bool
            Whether the guardian is to cancel every open order, to close every position.
        """
        epoch = control.halt() if control is not None else 0
        if control is not None and flatten:
            control.request_flatten(epoch)
        elif control is not None and cancel:
            control.request_cancel(epoch)
        why = entry(reason, by, way)
        trouble = None
        try:
            self.prepare()
            latch = self.record_halt(epoch, why)
            epoch = epoch or latch.halt_epoch
        except HftpipeError as error:
            trouble = error
        try:
            self.audit("halt", why, run=control.run if control is not None else 0, epoch=epoch,
                       cancel=cancel, flatten=flatten)
        except HftpipeError as error:
            trouble = trouble or error
        if control is not None:
            self.note(control, "halt", {**why, "epoch": epoch})
        return Halted(epoch, why, trouble)

    def halt_file(self) -> tuple[str, str] | None:
        """Reason and owner of the file ``HALT``; None when there is none.

        Whatever has that name counts, also what cannot be read: fail closed.
        """
        path = self._at("HALT")
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            return None
        except OSError as e:
            return f"file HALT: {e.strerror}", who()
        text = ""
        if stat.S_ISREG(found.st_mode):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    text = os.read(fd, 4 * REASON).decode(errors="replace").strip()
                finally:
                    os.close(fd)
            except OSError:
                text = ""               # it halts without words
        return text or "file HALT", who(found.st_uid)

    def token(self) -> str:
        """The secret of ``halt.token``, made when there is none.

        Raises
        ------
        AccessError
            If the file is not this user's alone.
        """
        path = self._at("halt.token")
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self.write("halt.token", os.urandom(32).hex() + "\n")
            return self.token()
        except OSError as e:
            raise AccessError(f"{path}: {e.strerror}") from None
        try:
            found = os.fstat(fd)
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise AccessError(f"{path} must be this user's and mode 0600, was uid "
                                  f"{found.st_uid} mode {found.st_mode & 0o777:04o}")
            token = os.read(fd, 1024).decode("ascii", "replace").strip()
        finally:
            os.close(fd)
        if len(token) < 32:
            raise AccessError(f"{path} must hold at least 32 characters, held {len(token)}")
        return token

    def note(self, control: Control, kind: str, what: Mapping[str, Any]) -> None:
        """Write the last halt or resume into the page's text, for whoever looks at the page.

        The text explains; the epochs decide.  So a page without room, a directory out of reach,
        or a lock held by somebody who hangs, is not worth failing a halt for.
        """
        try:
            with self.operator(0.5) as got:
                if not got:
                    return
                try:
                    text = json.loads(control.text or "{}")
                except ValueError:
                    text = {}
                text[kind] = dict(what)
                try:
                    control.text = json.dumps(text)
                except ValueError:
                    control.text = json.dumps({kind: dict(what)})
        except HftpipeError:
            return

    def audit(self, action: str, what: Mapping[str, Any], **more: Any) -> str:
        """Append one line to ``audit.jsonl``, on disk when this returns; its id.

        One ``write``, so lines of several processes do not mix; never rewritten.
        """
        line = {"id": os.urandom(16).hex(), "action": action, **what,
                **{k: f"{v:x}" if k == "run" else v for k, v in more.items() if v}}
        path = self._at("audit.jsonl")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                         | os.O_NOFOLLOW, 0o600)
            try:
                data = json.dumps(line).encode() + b"\n"
                if os.write(fd, data) != len(data):
                    raise AccessError(f"{path}: no room for a line")
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as e:
            raise AccessError(f"{path}: {e.strerror}") from None
        return str(line["id"])
