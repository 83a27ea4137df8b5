"""Runs of dummy stages for tests: real processes, real signals, real shared memory."""
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from hftpipe import shm
from hftpipe.errors import HftpipeError
from hftpipe.rundir import RunDir

ROOT = Path(__file__).resolve().parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": str(ROOT / "build/view")}
DEADLINE = 30


def until(condition, what):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.01)


class Driver:
    """tests/models/dummy_run.py as a process."""

    def __init__(self, directory, *options):
        self.directory = RunDir(directory)
        self.popen = subprocess.Popen(
            [sys.executable, str(ROOT / "tests/models/dummy_run.py"), str(directory), *options],
            env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.first = {}

    def up(self):
        line = self.popen.stdout.readline()
        assert line, self.popen.stderr.read()
        self.first = json.loads(line)
        return self

    @property
    def run(self):
        return int(self.first["run"], 16)

    @property
    def pids(self):
        return self.first.get("pids", {})

    def end(self):
        """(exit code, stderr); no process of the run is left."""
        _, err = self.popen.communicate(timeout=DEADLINE)
        until(lambda: not any(shm.process_start(p) for p in self.pids.values()),
              "all children ended")
        return self.popen.returncode, err

    def log(self):
        text = (self.directory.logs / "supervisor.log").read_text()
        return [json.loads(line) for line in text.splitlines()]


@contextmanager
def drivers(directory):
    """A function that starts drivers on *directory*; nothing of theirs is left afterwards."""
    started = []

    def go(*options):
        started.append(Driver(directory, *options))
        return started[-1]

    try:
        yield go
    finally:
        for driver in started:
            if driver.popen.poll() is None:
                driver.popen.kill()
            driver.popen.wait()
            driver.popen.stdout.close()
            driver.popen.stderr.close()
        for driver in started:
            if "run" in driver.first:
                shm.remove(driver.run)
        with suppress(HftpipeError):            # a test may have damaged it
            run = RunDir(directory).read_run()
            if run:
                shm.remove(run.run)
