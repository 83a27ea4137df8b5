"""A credential stands nowhere: recognisable ones are looked for in all that runs leave or show."""
import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from hftpipe import limits, topology, worker
from hftpipe.errors import Exit
from hftpipe.store.postgres import Postgres
from hftpipe.venue import server
from tests.models.live import DEADLINE, ROOT, living, runs, until

pytestmark = [pytest.mark.venue, pytest.mark.db, pytest.mark.slow]
KEY, SECRET, PASSWORD = "PKCANARYKEY7f3a91", "canarySecret5b0c77e2", "canaryPassword9d41aa"
NEEDLES = [form for text in (KEY, SECRET, PASSWORD) for form in (
    text.encode(), base64.b64encode(text.encode()).rstrip(b"=")[:-2], text.encode().hex().encode())]
# Put in front of every process of a run: the process HFTPIPE_TEST_BREAK of it says, in an exception
# that nobody expects, what it has just read.
BREAK = """
import os, sys
if os.environ.get("HFTPIPE_TEST_BREAK", "") in sys.orig_argv:
    from hftpipe.secret import Secret
    read = Secret.reveal
    def reveal(self):
        raise RuntimeError("no session for " + read(self))
    Secret.reveal = reveal
"""


def holds(data):
    return any(needle in data for needle in NEEDLES)


def in_files(*places):
    """Files below *places* that hold a credential, and how many were searched."""
    found, searched = [], 0
    for place in places:
        for folder, _, names in os.walk(place):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.isfile(path):        # no socket, no pipe
                    with contextlib.suppress(FileNotFoundError):     # it has just gone
                        searched += 1
                        if holds(Path(path).read_bytes()):
                            found.append(path)
    return found, searched


def in_processes(live):
    """What /proc shows of the run's processes: places that hold a credential, processes seen.

    The environment of the supervisor is what the operator gave it, and not ours to change.
    """
    found, seen = [], living(live.env, live.path)
    for pid in seen:
        for name in ("cmdline", "environ"):
            if name == "environ" and pid == live.popen.pid:
                continue
            try:
                if holds(Path(f"/proc/{pid}/{name}").read_bytes()):
                    found.append(f"{seen[pid]}: {name}")
            except (FileNotFoundError, ProcessLookupError):
                pass                            # it has just ended
    return found, seen


def in_memory(live):
    """Segments of the run in shared memory that hold a credential, and how many were searched."""
    names = [n for n in os.listdir("/dev/shm") if f"{live.run:x}" in n]
    return [n for n in names if holds(Path("/dev/shm", n).read_bytes())], len(names)


def in_database(conninfo):
    """Tables with a row that holds a credential, and how many rows were searched."""
    found, rows = [], 0
    with psycopg.connect(conninfo) as c:
        for schema, table in c.execute(
                "SELECT schemaname, tablename FROM pg_tables WHERE schemaname <> 'pg_catalog' "
                "AND schemaname <> 'information_schema'").fetchall():
            name = psycopg.sql.Identifier(schema, table)
            for (row,) in c.execute(psycopg.sql.SQL("SELECT t::text FROM {} t").format(name)):
                rows += 1
                if holds(row.encode()):
                    found.append(table)
    return found, rows


class Place:
    """A broker, a database of its own, and what leads a run to them."""

    def __init__(self, path, venue, conninfo):
        self.path, self.conninfo = path, conninfo
        at = conninfo_to_dict(conninfo)
        secret = path / "secret"                # the operator's: not searched
        secret.write_text(SECRET + "\n")
        secret.chmod(0o600)
        (path / "broken").mkdir()
        (path / "broken" / "sitecustomize.py").write_text(BREAK)
        self.options = ["--set", "profile=paper", "--set", f"venue.secret=file:{secret}", "--set",
                        f"store.url=postgresql://trader@{at['host'].replace('/', '%2F')}"
                        f":{at['port']}/{at['dbname']}", "--set", "store.password=env:TRADERS"]
        for name, value in limits.PROFILES["demo"].items():
            self.options += ["--set", f"risk.{name}={value}"]
        for name in ("rest", "data_stream", "updates_stream"):
            self.options += ["--set", f"venue.{name}={venue[name]}"]
        self.env = {"ALPACA_API_KEY": KEY, "TRADERS": PASSWORD,
                    "PGPASSFILE": str(path / "none")}

    def broken(self, process):
        return {**self.env, "HFTPIPE_TEST_BREAK": process,
                "PYTHONPATH": f"{self.path / 'broken'}:{ROOT / 'build/view'}"}

    def clean(self, *places):
        """Nothing on disk holds one: of the runs, of the database, its log among it."""
        with psycopg.connect(self.conninfo, autocommit=True) as c:
            c.execute("CHECKPOINT")
        found, searched = in_files(*places, self.path / "elsewhere")
        assert not found
        return searched


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("canary")
    with Postgres(path / "elsewhere") as conninfo, server.spawn(
            "--symbols", "AAPL,MSFT", "--rate-limit", "0", "--state", str(path / "venue"),
            key=KEY, secret=SECRET) as (_, venue):
        with psycopg.connect(conninfo, autocommit=True) as c:
            # as a client should: the server never sees the password itself
            stored = c.pgconn.encrypt_password(PASSWORD.encode(), b"trader", b"scram-sha-256")
            c.execute(psycopg.sql.SQL("CREATE ROLE trader LOGIN SUPERUSER PASSWORD {}").format(
                psycopg.sql.Literal(stored.decode())))
        yield Place(path, venue, conninfo)


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "a").write_text(f"x {KEY} y")
    (tmp_path / "b").write_bytes(base64.b64encode(SECRET.encode()))
    (tmp_path / "c").write_text("nothing")
    found, searched = in_files(tmp_path)
    assert sorted(os.path.basename(f) for f in found) == ["a", "b"] and searched == 3


def test_a_run_that_trades_and_is_killed_shows_none(tmp_path, run, place):
    record = tmp_path / "run.rec"
    live = run(*place.options, "--set", "observe.log_level=debug", "--set",
               f"store.record={record}", **place.env).up().trades(5)
    assert not (live.path / "pg").exists(), "the database is the one with the password"
    said = []
    for args in (["status"], ["ready"], ["risk", "show"], ["journal", "ls"], ["halt", "--cancel"],
                 ["resume", "--reason", "canary"],
                 *(["db", what, *place.options] for what in ("status", "url")),
                 ["why", "--last", *place.options]):
        code, out, err = live.hp(*args, "-o", "json")
        assert code in (Exit.OK, Exit.HALTED, Exit.DEGRADED), (args, err)
        said += [out, err]
    address = (live.path / "monitor.address").read_text().strip()
    for page in ("metrics", "health", "ready", "live"):
        with contextlib.suppress(urllib.error.HTTPError), urllib.request.urlopen(
                f"http://{address}/{page}", timeout=DEADLINE) as answer:
            said.append(answer.read().decode())
    assert len(said) >= 19 and not holds("".join(said).encode())
    shown, processes = in_processes(live)
    assert not shown
    planned = {p["name"] for p in live.record.processes} - {"supervisor"}
    for name in planned:
        assert any(f"--process {name}" in line for line in processes.values())
        limit = Path(f"/proc/{live.pid(name)}/limits").read_text()
        size = next(line for line in limit.splitlines() if line.startswith("Max core file size"))
        if name not in ("monitor", "journal"):          # they have read no credential
            assert size.split()[4] in ("0", "1"), f"{name} may leave a core"
    assert (live.path / worker.PRIVATE).exists()
    held, segments = in_memory(live)
    assert not held and segments > len(topology.LINKS) / 2
    assert not in_files(live.path)[0]
    os.kill(live.pid(next(p["name"] for p in live.record.processes if "gateway" in p["stages"])),
            signal.SIGABRT)
    out, err = live.popen.communicate(timeout=DEADLINE)
    assert live.popen.returncode != 0 and not holds((out + err).encode())
    until(lambda: not living(live.env, live.path), "no process is left")
    assert not in_memory(live)[0]
    assert place.clean(tmp_path) > 30
    found, rows = in_database(place.conninfo)
    assert not found and rows > 100


@pytest.mark.parametrize("process", ["updates", "store", "guardian"])
def test_an_exception_that_nobody_expects_is_told_without_them(tmp_path, run, place, process):
    """Each of these says what it has read in its message, and has it in its traceback."""
    live = run(*place.options, **place.broken(process))
    errors = live.path / "logs" / f"{process}.err"
    told = "RuntimeError: no session for <redacted>"
    until(lambda: live.popen.poll() is not None or (
        errors.exists() and told in errors.read_text()), "it has failed")
    if live.popen.poll() is None:
        live.popen.send_signal(signal.SIGTERM)
    out, err = live.popen.communicate(timeout=DEADLINE)
    until(lambda: not living(live.env, live.path), "no process is left")
    assert "Traceback" in errors.read_text() and told in errors.read_text()
    assert not holds((out + err).encode())
    assert not in_files(tmp_path)[0]


@pytest.mark.parametrize("wrong", ["key", "password", "absent"])
def test_credentials_that_are_refused_are_not_repeated(tmp_path, place, wrong):
    """What is wrong is as secret as what is right: it is often the one of another account."""
    env = dict(place.env)
    options = list(place.options)
    if wrong == "key":
        env["ALPACA_API_KEY"] = KEY + "x"
    elif wrong == "password":
        env["TRADERS"] = PASSWORD + "x"
    else:
        del env["TRADERS"]
    before = set(os.listdir("/dev/shm"))
    done = subprocess.run(
        [sys.executable, "-m", "hftpipe", "--run-dir", str(tmp_path / "run"), "start",
         "--set", "observe.prometheus=127.0.0.1:0", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "build/view"), **env},
        capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode in (Exit.CONFIG, Exit.ERROR), done.stderr
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    words = {"key": r"refused the credentials|refused to authenticate|HTTP 401|402",
             "password": "password authentication failed",
             "absent": "env:TRADERS must hold one"}[wrong]
    assert re.search(words, done.stderr)
    assert not holds((done.stdout + done.stderr).encode())
    assert set(os.listdir("/dev/shm")) <= before, "nothing is left behind"
    place.clean(tmp_path)


@pytest.mark.parametrize("item", [
    f"venue.key={KEY}", f"venue.secret={SECRET}", f"store.password={PASSWORD}",
    f"store.url=postgresql://a:{PASSWORD}@h/d", f"store.url=postgresql://h/d?password={PASSWORD}",
    f"observe.alerts=[\"webhook:https://hooks.example/{SECRET}\"]"])
@pytest.mark.parametrize("way", ["--set", "file", "environment"])
def test_a_literal_is_refused_wherever_it_stands(tmp_path, item, way):
    name, _, value = item.partition("=")
    section, _, key = name.partition(".")
    args, env = [], {k: v for k, v in os.environ.items() if not k.startswith("HFTPIPE_")}
    if way == "--set":
        args = ["--set", item]
    elif way == "environment":
        env[f"HFTPIPE__{section.upper()}__{key.upper()}"] = value
    else:
        text = value if value.startswith("[") else f'"{value}"'
        (tmp_path / "hftpipe.toml").write_text(f"[{section}]\n{key} = {text}\n")
    done = subprocess.run(
        [sys.executable, "-m", "hftpipe", "start", "--dry-run", *args], cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT / "build/view")}, capture_output=True, text=True,
        timeout=DEADLINE)
    assert done.returncode == Exit.CONFIG and f"{name} must be" in done.stderr
    assert not holds((done.stdout + done.stderr).encode())
