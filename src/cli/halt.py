"""``hftpipe halt``: one atomic addition on the control page, then the latch, then the proof."""
from __future__ import annotations

import time

import click

from hftpipe import _clock, _control, rundir, shm
from hftpipe.cli._common import SECONDS, Settings, emit, note, paint, shared, span
from hftpipe.errors import Exit, HftpipeError, NotRunningError

GATES = ("risk", "gateway")             # who must act on a halt


@click.command(epilog='Example: hftpipe halt --reason "spread looks wrong"')
@click.option("--reason", default="operator", show_default=True, help="Kept with the halt.")
@click.option("--timeout", type=SECONDS, default=1.0, show_default="1s",
              help="How long to wait for the gates' acknowledgement.")
@shared
@click.pass_obj
def command(settings: Settings, reason: str, timeout: float) -> int:
    """Stop trading at once.

    Works when every stage hangs or is dead, and without a run: then the next one starts halted.
    Exit code 0: the gates acknowledged, or are not alive. 5: halted, but a living gate has not
    acknowledged in time.
    """
    run_dir = settings.directory()
    why = rundir.entry(reason)
    began = _clock.now_ns()
    trouble: HftpipeError | None = None
    try:
        run, control = run_dir.control()
    except NotRunningError:
        run, control = None, None
    except HftpipeError as e:
        run, control, trouble = None, None, e       # latch first, complain afterwards
    epoch = control.halt() if control else 0
    try:
        run_dir.prepare()
        latch = run_dir.record_halt(epoch, why)
    except HftpipeError as e:
        if control is None:
            raise
        raise type(e)(f"run {control.run:x} is halted (epoch {epoch}), but the halt is not latched "
                      f"for the next start: {e}") from None
    if trouble:
        raise type(trouble)(f"halted for the next start only, the page is out of reach: {trouble}")

    gates: dict[str, str] = {}
    elapsed = 0
    if control:
        gates, elapsed = _acknowledged(control, epoch, began, timeout)
        note(control, run_dir, "halt", why)
    late = [name for name, state in gates.items() if state == "silent"]
    data = {"halted": True, "run": f"{run.run:x}" if run else None, "epoch": latch.halt_epoch,
            "elapsed_ns": elapsed, "gates": gates, "latched": True, **why}

    def lines() -> list[str]:
        by = f'reason "{why["reason"]}"   by {why["who"]}'
        head = paint(settings, "HALTED", "red")
        if run is None:
            return [f"{head}: no run; the next one starts halted   {by}"]
        told = ", ".join(f"{name} {state}" for name, state in gates.items())
        return [f"{head} in {span(elapsed)} (epoch {epoch}; {told})   {by}",
                f'resume with: hftpipe resume --epoch {epoch} --reason "..."']

    emit(settings, data, lines())
    return Exit.TIMEOUT if late else Exit.OK


def _acknowledged(control: _control.Control, epoch: int, began: int,
                  timeout: float) -> tuple[dict[str, str], int]:
    """What each gate says: acknowledged, dead, or silent after *timeout*; and after how long."""
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
