"""``hftpipe ready``: for scripts and service managers."""
from __future__ import annotations

import time

import click

from hftpipe import _clock, health
from hftpipe.cli._common import SECONDS, Settings, emit, shared
from hftpipe.errors import Exit, NotRunningError


@click.command(epilog="Example: hftpipe ready --timeout 30s && echo trading")
@click.option("--timeout", type=SECONDS, metavar="TIME",
              help="Wait so long for it; exit code 5 when it does not come.")
@shared
@click.pass_obj
def command(settings: Settings, timeout: float | None) -> int:
    """Succeed when every stage runs and orders may pass.

    Exit code 0: ready. 3: not running. 6: running, not trading. 7: a stage is not well. 75: still
    starting. With --timeout: 5 when not ready in time.
    """
    deadline = _clock.now_ns() + int((timeout or 0) * 1e9)
    while True:
        code, words = _look(settings)
        if code == Exit.OK or timeout is None:
            break
        if _clock.now_ns() >= deadline:
            code = Exit.TIMEOUT
            break
        time.sleep(0.05)
    if code == Exit.NOT_RUNNING:
        raise NotRunningError(words)
    emit(settings, {"ready": code == Exit.OK, "exit": int(code), "reason": words}, [words])
    return int(code)


def _look(settings: Settings) -> tuple[Exit, str]:
    try:
        run, control = settings.directory().control()
    except NotRunningError as e:
        return Exit.NOT_RUNNING, str(e)
    found = health.survey(run, control)
    if health.ready(found):
        return Exit.OK, f"run {found['run']} is ready"
    if found["state"] == "DEAD":
        return Exit.NOT_RUNNING, f"run {found['run']} is dead: {found['problems'][0]}"
    if found["state"] in ("STARTING", "STOPPING"):
        return Exit.TRY_AGAIN, f"run {found['run']} is {found['state'].lower()}"
    down = [s["name"] for s in found["stages"] if s["state"] != "running"]
    if down:
        return Exit.DEGRADED, f"not running: {', '.join(down)}"
    return Exit.HALTED, f"trading is {found['trading']}"
