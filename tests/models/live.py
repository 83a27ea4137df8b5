"""Real runs for tests: ``hftpipe`` as a process, its page, its venue's log, its database."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from hftpipe import _control, schema, shm, topology
from hftpipe.rundir import RunDir
from hftpipe.store.layout import table
from hftpipe.store.postgres import Postgres

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE = 120                  # s; this machine may be busy with other things
MARKER = "HFTPIPE_TEST_RUN"     # in the environment of every process that a test starts
STREAMS = ("feed", "book", "signal", "risk", "gateway", "updates", "ledger", "analyst", "operator")


def environment(**extra):
    """Of this process without our own variables, with a marker that children inherit."""
    ours = ("HFTPIPE_", "ALPACA_", "APCA_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    return {**env, "PYTHONPATH": str(ROOT / "build/view"), MARKER: uuid.uuid4().hex, **extra}


def until(condition, what, alive=None):
    """Poll *condition* until it is true; at once wrong when the process *alive* has ended."""
    end = time.monotonic() + DEADLINE
    while not (found := condition()):
        if alive is not None and alive.poll() is not None:
            found = condition()
            assert found, f"ended with {alive.returncode} before: {what}\n{alive.stderr.read()}"
            return found
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)
    return found


def marked(env):
    """Processes that have the marker of *env*: {pid: command line}."""
    want = f"{MARKER}={env[MARKER]}".encode()
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if want in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    line = Path(f"/proc/{entry}/cmdline").read_bytes()
                    if shm.process_start(int(entry)) is not None:
                        found[int(entry)] = line.replace(b"\0", b" ").decode().strip()
            except OSError:
                pass                    # it has just ended
    return found


def comm(pid):
    """The kernel's name of a process; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def living(env, path):
    """Like :func:`marked`, and the backends of the database in *path*, which hide what they got."""
    found = marked(env)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/cwd").startswith(f"{path}/"):
                    found.setdefault(int(entry), comm(entry))
            except OSError:
                pass
    return found


def command(*args, env=None, cwd=None):
    """Run ``hftpipe`` to its end: (exit code, stdout, stderr)."""
    done = subprocess.run([sys.executable, "-m", "hftpipe", *map(str, args)],
                          env=env or environment(), capture_output=True, text=True,
                          timeout=DEADLINE, cwd=cwd)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


class Live:
    """One ``hftpipe start`` or ``demo`` with a run directory."""

    def __init__(self, path, *args, name="start", env=None, **extra):
        self.path = Path(path)
        self.directory = RunDir(path)
        self.env = env or environment(**extra)
        self.seen = self.last_run()
        self.document = None
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "hftpipe", "--run-dir", str(path), name, "-o", "json",
             "--set", "observe.prometheus=127.0.0.1:0", *map(str, args)],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def last_run(self):
        found = self.directory.read_run()
        return found.run if found else 0

    def up(self, *trading):
        """Wait until every stage runs, the streams are connected and trading is in one of these
        states, "armed" by default."""
        trading = trading or ("armed",)
        self.record = until(
            lambda: (r := self.directory.read_run()) and r.run != self.seen and r, "run.json",
            self.popen)
        self.run = self.record.run
        until(lambda: "control" in shm.runs().get(self.run, ()), "the control page", self.popen)
        self.control = until(self._page, "a formatted page", self.popen)
        until(lambda: all(b.state == _control.RUNNING for b in self.control.stages),
              "all stages run", self.popen)
        with self.telling():
            until(lambda: self.control.trading in trading, f"trading {' or '.join(trading)}",
                  self.popen)
        return self

    def _page(self):
        try:
            return shm.control(self.run)
        except Exception:               # still being made
            return None

    def counter(self, stage, name):
        """Of a stage, or of a stream by its name: the supervisor stores what operators ask."""
        stage = "supervisor" if stage == "operator" else stage
        return self.control.stage(topology.INDEX[stage]).counter(name)

    def pid(self, process):
        """Of a process of the plan, of "venue", or of "postgres"."""
        if process == "postgres":
            # The file is there before its first line is: no server yet.
            lines = (self.path / "pg/data/postmaster.pid").read_text().split()
            return int(lines[0]) if lines else None
        if process == "venue":
            return next(p for p, line in marked(self.env).items() if " hftpipe venue " in line)
        stages = next(p["stages"] for p in self.record.processes if p["name"] == process)
        return self.control.stage(topology.INDEX[stages[0]]).pid

    def trades(self, fills=1):
        """Wait until it has filled some orders, and return itself."""
        with self.telling():
            until(lambda: self.counter("gateway", "fills") >= fills, f"{fills} fills", self.popen)
        return self

    @contextmanager
    def telling(self):
        """What does not come is told with the state of trading, and why it is."""
        try:
            yield
        except AssertionError as e:
            e.add_note(f"found {self.control.trading}: {self.directory.latch()}")
            raise

    def hp(self, *args):
        """Another command on the same run directory: (exit code, stdout, stderr)."""
        return command("--run-dir", self.path, *args, env=self.env)

    def end(self):
        """The exit code, when it has ended; no process and, but for kept rings, nothing is left."""
        out, self.err = self.popen.communicate(timeout=DEADLINE)
        until(lambda: not living(self.env, self.path), "no process is left")
        assert "Traceback" not in self.err
        self.document = json.loads(out) if out.strip() else None
        return self.popen.returncode

    def recorded(self):
        """Events of each stage by its own count."""
        return {name: self.counter(name, "events_stored") for name in STREAMS}

    def log(self, name="supervisor"):
        text = (self.directory.logs / f"{name}.log").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def venue_log(self):
        """Lines of the venue's log."""
        return [json.loads(line) for log in sorted((self.path / "venue").glob("*/orders.jsonl"))
                for line in log.read_text().splitlines()]

    def close(self):
        """Whatever it is doing, it is over; nothing stays."""
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()
        self.popen.stdout.close()
        self.popen.stderr.close()
        for pid in living(self.env, self.path):         # a test failed in the middle
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not living(self.env, self.path), "no process is left")
        run = self.last_run()
        if run:
            shm.remove(run)


@contextmanager
def runs(path):
    """A function that starts runs in *path*; nothing of theirs is left afterwards."""
    started = []

    def go(*args, **options):
        started.append(Live(path, *args, **options))
        return started[-1]

    try:
        yield go
    finally:
        for one in started:
            one.close()


@contextmanager
def database(path):
    """A connection to the embedded database of the run directory *path*."""
    with Postgres(path) as conninfo, psycopg.connect(conninfo, autocommit=True) as c:
        yield c


def check_rows(c, run, recorded, exact=STREAMS):
    """Every stream is 1..n without a hole, n being what its stage counted.

    A stage that was killed may have published one event before it counted it: the streams that
    are not in *exact* may have one row more.  Returns the rows by stream name.
    """
    union = " UNION ALL ".join(f"SELECT stream, seq FROM {table(r)} WHERE run = %(run)s"
                               for r in schema.BODIES.values())
    found = {schema.STREAM.label(stream): row for stream, *row in c.execute(
        f"SELECT stream, min(seq), max(seq), count(*), count(DISTINCT seq) FROM ({union}) e "
        "GROUP BY stream", {"run": run})}
    for name in STREAMS:
        low, high, rows, different = found.get(name, (1, 0, 0, 0))
        assert low == 1 and high == rows == different, f"{name}: a hole or a double"
        more = rows - recorded[name]
        assert more == 0 or (name not in exact and more == 1), (
            f"{name}: {rows} rows, {recorded[name]} recorded")
    assert set(found) <= set(STREAMS)
    return {name: found[name][2] if name in found else 0 for name in STREAMS}


def check_venue(c, run, lines):
    """Every order that the venue knows of *run* has a stored intent; how many there are."""
    prefix = f"hp-{run:x}-"
    seqs = {int(line["client_order_id"].removeprefix(prefix), 16) for line in lines
            if line["kind"] == "order" and line["client_order_id"].startswith(prefix)}
    stored = {seq for (seq,) in c.execute(
        "SELECT seq FROM hftpipe.intent WHERE run = %s", (run,))}
    assert seqs <= stored, f"the venue has orders without an intent: {sorted(seqs - stored)}"
    return len(seqs)
