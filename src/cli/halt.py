"""``hftpipe halt``: one atomic addition on the control page, then the latch, then the proof."""
from __future__ import annotations

import click

from hftpipe import _clock, rundir
from hftpipe.cli._common import SECONDS, Settings, emit, paint, shared, span
from hftpipe.errors import Exit, HftpipeError, NotRunningError


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
    began = _clock.now_ns()
    unreachable: HftpipeError | None = None
    try:
        run, control = run_dir.control()
    except NotRunningError:
        run, control = None, None
    except HftpipeError as e:
        run, control, unreachable = None, None, e       # latch first, complain afterwards
    done = run_dir.halt(control, reason, way="cli")
    epoch, why = done.epoch, done.why
    if done.trouble:
        if control is None:
            raise done.trouble
        raise type(done.trouble)(
            f"run {control.run:x} is halted (epoch {epoch}), but the halt is not latched "
            f"for the next start: {done.trouble}") from None
    if unreachable:
        raise type(unreachable)("halted for the next start only, the page is out of reach: "
                                f"{unreachable}")

    gates: dict[str, str] = {}
    elapsed = 0
    if control:
        gates, elapsed = rundir.acknowledged(control, epoch, began, timeout)
    late = [name for name, state in gates.items() if state == "silent"]
    data = {"halted": True, "run": f"{run.run:x}" if run else None, "epoch": epoch,
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

