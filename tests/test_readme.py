"""Every ``hftpipe`` command that README shows runs, in its order, as a new user would type it.

The lines are taken from README itself; what a reader must fill in (a file, a server) is given
here, and ``--for`` is cut to a few seconds.  A line that nobody has said how to judge fails.
"""
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from hftpipe.drill.halt import BOUNDS
from hftpipe.errors import Exit
from tests.models import database
from tests.models.live import command, environment, living, until

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = [block for block in (
    [shlex.split(line.split("#")[0])[1:] for line in text.splitlines()
     if line.startswith("hftpipe ")]
    for text in re.findall(r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
) if block]

pytestmark = [pytest.mark.venue, pytest.mark.db]


class Reader:
    """Somebody who types README's lines in an empty folder."""

    def __init__(self, path):
        self.path = path
        self.env = environment(HFTPIPE_RUN_DIR=str(path / "run"),
                               HFTPIPE__OBSERVE__PROMETHEUS="127.0.0.1:0")
        self.started = None

    def hp(self, *args, code=Exit.OK):
        got, out, err = command(*args, env=self.env, cwd=self.path)
        assert got == code, f"hftpipe {shlex.join(args)} ended with {got}\n{out}\n{err}"
        return out + err

    def type(self, args):
        args = [re.sub(r"^\d+s$", "3s", a) if before == "--for" else a
                for before, a in zip(["", *args], args, strict=False)]
        judge = getattr(self, args[0].replace("-", "_"), None)
        assert judge is not None, f"README shows hftpipe {args[0]}: say here how to judge it"
        judge(args)

    # ------------------------------------------------ a run and what is done to it

    def start(self, args):
        if "--dry-run" in args:
            cores = os.cpu_count() or 1
            out = self.hp(*args, code=Exit.OK if cores >= 8 else Exit.USAGE)
            assert "risk" in out if cores >= 8 else f"core {cores}" in out
            return
        self.started = subprocess.Popen([sys.executable, "-m", "hftpipe", *args], env=self.env,
                                        cwd=self.path, stderr=subprocess.PIPE, text=True)
        until(lambda: command("ready", env=self.env)[0] == Exit.OK, "ready", self.started)

    def status(self, args):
        assert "ARMED" in self.hp(*args)
        assert json.loads(self.hp(*args, "-o", "json"))["trading"] == "ARMED"

    def halt(self, args):
        assert "HALTED" in self.hp(*args)
        self.hp("status", code=Exit.HALTED)

    def resume(self, args):
        self.hp(*args)
        self.hp("status")

    def stop(self, args):
        self.hp(*args)
        assert self.started.wait(60) == Exit.OK
        self.started.stderr.close()
        until(lambda: not living(self.env, self.path / "run"), "no process is left")
        self.hp("status", code=Exit.NOT_RUNNING)

    # ------------------------------------------------ commands that end by themselves

    def why(self, args):
        until(lambda: command(*args, env=self.env)[0] == Exit.OK, "an order", self.started)
        assert "looked at, nearest to its limit first" in self.hp(*args)

    def recover(self, args):
        out = self.hp(*args)
        assert "books     of run " in out and "a start would " in out

    def drill(self, args):
        """What it measures depends on the machine; what it proves does not."""
        if args[1] == "crash":
            found = json.loads(self.hp(*args[:2], "--rounds", "1", "-o", "json"))
            assert found["rounds"] == 1 and found["missed"] == []
            return
        loose = [x for name in BOUNDS for x in ("--bound", f"{name}=1000")]
        found = json.loads(self.hp(*args, "--rounds", "1", *loose, "-o", "json"))
        assert found["rounds"] == 1 and found["missed"] == []

    def journal(self, args):
        assert "run" in self.hp(*args).lower()

    def demo(self, args):
        out = self.hp(*args)
        if "json" in args:
            found = json.loads(out[out.index("{"):out.rindex("}") + 1])
            assert found["orders"] and found["rows_stored"] == found["events_recorded"]

    def venue(self, args):
        with subprocess.Popen([sys.executable, "-m", "hftpipe", *args], env=self.env,
                              cwd=self.path, stdout=subprocess.PIPE, text=True) as process:
            found = json.loads(process.stdout.readline())
            assert {"rest", "data_stream", "updates_stream", "key", "secret",
                    "symbols"} <= found.keys()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == Exit.OK

    def backtest(self, args):
        if "FILE" in args:                      # any recording will do: one is made
            self.hp("record", "--out", "file.rec", "--for", "2s")
            args = ["file.rec" if a == "FILE" else a for a in args]
        out = self.hp(*args)
        assert "identical" in out.lower() if "--verify" in args else "events" in out

    def replay(self, args):
        assert "IDENTICAL" in self.hp(*args)

    def record(self, args):
        self.hp(*args)
        assert (self.path / args[args.index("--out") + 1]).stat().st_size > 0

    def db(self, args):
        with database.server() as server:
            url = f"postgresql:///?{'&'.join(self.parts(database.fresh(server, 'template1')))}"
            self.hp(*[url if a.startswith("postgresql://") else a for a in args])
            with psycopg.connect(url) as c:
                assert c.execute("SELECT count(*) FROM hftpipe.migration").fetchone()[0] >= 2

    @staticmethod
    def parts(conninfo):
        found = psycopg.conninfo.conninfo_to_dict(conninfo)
        return [f"{key}={value}" for key, value in found.items()]

    def close(self):
        if self.started is not None and self.started.poll() is None:
            self.started.terminate()
            self.started.wait(60)
            self.started.stderr.close()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b[0][0]}-{len(b)}")
def test_what_readme_shows_works(block, tmp_path):
    reader = Reader(tmp_path)
    try:
        for args in block:
            reader.type(args)
    finally:
        reader.close()
