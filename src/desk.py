"""The desk: a Unix socket in the run directory where people ask things of a running pipeline.

One request a connection: a line with a JSON object, ``{"command": "...", ...}``, at most
:data:`LINE` bytes, answered by one line, ``{"ok": true, ...}`` or ``{"ok": false, "error": "...",
"exit": N}``; then the server closes.  The socket is 0600, and only this user is answered
(SO_PEERCRED); who asks is what the kernel says, not what the request says.

The server lives in threads of the supervisor, one for each connection, so neither a mute client
nor a slow handler holds up the supervisor or another client.  Commands are a table of handlers.
"""
from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hftpipe.errors import Exit, HftpipeError, NotRunningError

NAME = "control.sock"           # of the supervisor
LINE = 8192                     # bytes of a request and of an answer, the newline included
PATIENCE = 5.0                  # s that a client may take to send its line
GUESTS = 8                      # connections at once


class DeskError(HftpipeError):
    """What the server answered; carries its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = Exit(code) if code in Exit._value2member_map_ and code else Exit.ERROR


class MalformedError(HftpipeError):
    """A request that is none."""

    exit_code = Exit.USAGE


@dataclass(frozen=True)
class Request:
    """What was asked, and by whom."""

    command: str
    values: Mapping[str, Any]
    who: str                    # user@host (pid N), from the kernel

    def text(self, name: str, *, empty: bool = False, most: int = 300) -> str:
        """The text *name* of the request; MalformedError when it has none."""
        found = self.values.get(name, "" if empty else None)
        if not isinstance(found, str) or (not found.strip() and not empty) or len(found) > most:
            raise MalformedError(f"{self.command}: {name} must be a text of 1 to {most} characters")
        return " ".join("".join(c if c.isprintable() else " " for c in found).split())


Handler = Callable[[Request], Mapping[str, Any]]


@contextlib.contextmanager
def _short(directory: str) -> Iterator[str]:
    """A path of *directory* that fits a socket's name, however deep it lies."""
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# ---------------------------------------------------------------- the client

def ask(directory: str, command: str, timeout: float = 10.0,
        values: Mapping[str, Any] | None = None, at: str = NAME, **more: Any) -> dict[str, Any]:
    """Ask the run of *directory*, at its socket *at*; the answer.

    Raises
    ------
    NotRunningError
        If nobody listens.
    DeskError
        If the request was refused.
    """
    line = json.dumps({"command": command, **(values or {}), **more}).encode() + b"\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(timeout)
        try:
            with _short(directory) as short:
                s.connect(f"{short}/{at}")
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise NotRunningError(f"no run in {directory} listens") from None
        try:
            s.sendall(line)
            answer = _line(s, None)
        except OSError as e:            # a timeout too
            raise DeskError(f"no answer within {timeout:g} s: {e}", Exit.TIMEOUT) from None
    found = json.loads(answer)
    if not found.pop("ok"):
        raise DeskError(str(found.get("error")), int(found.get("exit", 1)))
    return dict(found)


def _line(s: socket.socket, most: int | None) -> bytes:
    """Bytes up to the first newline; MalformedError beyond *most*."""
    data = b""
    while b"\n" not in data:
        part = s.recv(4096)
        if not part:
            break
        data += part
        if most is not None and len(data) > most:
            raise MalformedError(f"a request must be a line of at most {most} bytes")
    return data.partition(b"\n")[0]


# ---------------------------------------------------------------- the server

class Desk:
    """Answers requests until it is closed.

    Parameters
    ----------
    directory : str
        Of the run; this process holds its lock, so a socket that lies there is a dead one's.
    handlers : mapping of command to callable
        Each gets a :class:`Request` and returns what is answered; an HftpipeError is a refusal
        with its exit code.  Called in threads, several at once.
    log : callable
        Told of every request, with who, command, outcome.
    uid : int, optional
        Who may ask; default this process's user.
    name : str
        Of the socket in the directory.
    """

    def __init__(self, directory: str, handlers: Mapping[str, Handler],
                 log: Callable[..., object] = lambda event, **values: None, *,
                 uid: int | None = None, name: str = NAME) -> None:
        self.name = name
        self.handlers = dict(handlers)
        self._log = log
        self._uid = os.geteuid() if uid is None else uid
        self._room = threading.BoundedSemaphore(GUESTS)
        self._directory = directory
        self._closed = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The mode that bind() gives the name is that of the socket, less the umask.
            os.fchmod(self._socket.fileno(), 0o600)
            with _short(directory) as short:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{short}/{name}")
                self._socket.bind(f"{short}/{name}")
                mode = os.lstat(f"{short}/{name}").st_mode
            if not stat.S_ISSOCK(mode) or mode & 0o077:
                raise HftpipeError(f"{directory}/{name} must be a socket of mode 0600, "
                                   f"was {mode & 0o777:04o}")
            self._socket.listen(16)
        except BaseException:
            self._socket.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="desk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more requests."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()
        with contextlib.suppress(OSError), _short(self._directory) as short:
            os.unlink(f"{short}/{self.name}")

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                guest, _ = self._socket.accept()
            except OSError:                     # closed; a client that left; no descriptors
                self._closed.wait(0.01)
                continue
            if not self._room.acquire(blocking=False):
                guest.close()                   # so many at once are a mistake or an attack
                continue
            threading.Thread(target=self._answer, args=(guest,), name="desk-guest",
                             daemon=True).start()

    def _answer(self, guest: socket.socket) -> None:
        try:
            with guest:
                guest.settimeout(PATIENCE)
                found = self._one(guest)
                data = json.dumps(found).encode()
                if len(data) >= LINE:
                    data = json.dumps({"ok": found["ok"], "cut": True}).encode()
                guest.sendall(data + b"\n")
        except OSError:
            pass                                # it left; what it asked for was done or not
        finally:
            self._room.release()

    def _one(self, guest: socket.socket) -> dict[str, Any]:
        who, command = "?", "?"
        try:
            pid, uid, _ = struct.unpack("3i", guest.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            who = f"{_name(uid)}@{os.uname().nodename} (pid {pid})"
            if uid != self._uid:
                raise DeskError(f"user {uid} may not ask, only user {self._uid}",
                                Exit.PERMISSION)
            request = self._read(guest, who)
            command = request.command
            answer = {"ok": True, **self.handlers[command](request)}
        except HftpipeError as e:
            self._log("refused", command=command, who=who, error=str(e))
            return {"ok": False, "error": str(e), "exit": int(e.exit_code)}
        except OSError as e:
            return {"ok": False, "error": f"no request within {PATIENCE:g} s: {e}",
                    "exit": int(Exit.TIMEOUT)}
        except Exception as e:                  # a handler must not take the desk with it
            self._log("failed", command=command, who=who, error=f"{type(e).__name__}: {e}")
            return {"ok": False, "error": f"{command} failed: {type(e).__name__}: {e}",
                    "exit": int(Exit.ERROR)}
        self._log("asked", command=command, who=who)
        return answer

    def _read(self, guest: socket.socket, who: str) -> Request:
        line = _line(guest, LINE)
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            raise MalformedError("a request must be one line with a JSON object") from None
        if not isinstance(found, dict):
            raise MalformedError("a request must be one line with a JSON object")
        command = found.pop("command", None)
        if not isinstance(command, str) or command not in self.handlers:
            raise MalformedError(f"command must be one of {', '.join(sorted(self.handlers))}, "
                                 f"was {str(command)[:40]!r}")
        return Request(command, found, who)


def _name(uid: int) -> str:
    import pwd
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
