"""``hftpipe stop``: end the run, as gently as asked."""
from __future__ import annotations

import os
import select
import signal

import click

from hftpipe import _clock, shm
from hftpipe.cli._common import SECONDS, Settings, emit, shared, span
from hftpipe.errors import AccessError, DeadlineError, Exit, NotRunningError


@click.command(epilog="Example: hftpipe stop fast --timeout 20s")
@click.argument("mode", type=click.Choice(["smart", "fast", "immediate"]), default="smart")
@click.option("--timeout", type=SECONDS, default=15.0, show_default="15s",
              help="How long to wait for the end; exit code 5 after it.")
@shared
@click.pass_obj
def command(settings: Settings, mode: str, timeout: float) -> int:
    """End the run.

    smart (default): the feed stops, what is under way is worked off, the store writes all of it.
    fast: trading is halted first (and stays halted), then the same.
    immediate: every process is killed; what is not stored stays in shared memory and the next
    start stores it.
    """
    run_dir = settings.directory()
    run = run_dir.read_run()
    if run is None or not run.alive:
        raise NotRunningError(f"no run in {run_dir.name}")
    try:
        fd = os.pidfd_open(run.pid)
    except ProcessLookupError:
        raise NotRunningError(f"run {run.run:x} has just ended") from None
    try:
        if not shm.alive(run.pid, run.start):           # the pid is another process's by now
            raise NotRunningError(f"run {run.run:x} has just ended")
        if mode == "fast":
            _, control = run_dir.control()
            done = run_dir.halt(control, "stop fast", way="cli")
            if done.trouble:
                raise done.trouble
        began = _clock.now_ns()
        try:
            signal.pidfd_send_signal(fd, signal.SIGQUIT if mode == "immediate" else signal.SIGTERM)
        except PermissionError:
            raise AccessError(f"supervisor {run.pid} belongs to another user") from None
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(int(timeout * 1000)):
            raise DeadlineError(f"run {run.run:x} has not ended within {timeout:g} s; "
                                "`hftpipe stop immediate` does not wait")
    finally:
        os.close(fd)
    elapsed = _clock.now_ns() - began
    after = run_dir.read_run()
    code = after.exit if after and after.run == run.run else None
    kept = run.run in shm.runs()
    emit(settings, {"stopped": True, "run": f"{run.run:x}", "mode": mode, "elapsed_ns": elapsed,
                    "exit": code, "rings_kept": kept},
         [f"stopped run {run.run:x} in {span(elapsed)}, exit code {code}"
          + ("; its rings stay and the next start stores what they hold" if kept else "")])
    return Exit.OK
