"""``hftpipe resume``: a compare-and-swap to the halt that the operator saw."""
from __future__ import annotations

import click

from hftpipe import rundir
from hftpipe.cli._common import Settings, emit, paint, shared
from hftpipe.errors import BusyError, Exit, GuardError, NotRunningError


@click.command(epilog='Example: hftpipe resume --epoch 7 --reason "feed is back, checked by Ann"')
@click.option("--reason", required=True, help="Why trading may go on; kept.")
@click.option("--epoch", type=click.IntRange(min=1), metavar="N",
              help="The halt you saw (status shows it); default the one that stands now.")
@shared
@click.pass_obj
def command(settings: Settings, reason: str, epoch: int | None) -> int:
    """Allow trading again.

    Names one halt: if another came after it, the resume is refused (exit code 10) and the later
    halt stands.
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something, was empty")
    run_dir = settings.directory()
    run, control = run_dir.control()
    if not run.alive:
        raise NotRunningError(f"run {run.run:x} is dead: nothing to resume; its halt stays "
                              "latched for the next start")
    why = rundir.entry(reason, way="cli")
    held = run_dir.halt_file()
    if held is not None:
        raise GuardError(f"resume refused: {run_dir.name}/HALT is there, made by {held[1]}; "
                         "remove it first")
    with run_dir.operator() as got:
        if not got:
            raise BusyError("another operator's command is under way; try again")
        control.raise_halt_epoch(run_dir.latch().halt_epoch)    # of two copies the higher wins
        seen = control.halt_epoch if epoch is None else epoch
        if control.halt_epoch == seen:
            run_dir.audit("resume", why, run=run.run, epoch=seen)   # nobody resumes unrecorded
        if not control.resume(seen):
            raise GuardError(f"resume of halt {seen} refused: halt {control.halt_epoch} stands; "
                             "look at `hftpipe status` first")
        latch = run_dir.record_resume(seen, why)
    run_dir.note(control, "resume", {**why, "epoch": seen})
    emit(settings, {"trading": control.trading.upper(), "run": f"{run.run:x}", "epoch": seen,
                    "latched": latch.halted, **why},
         [f"{paint(settings, control.trading.upper(), 'green')} (epoch {seen})   "
          f'reason "{why["reason"]}"   by {why["who"]}'])
    return Exit.OK if control.armed else Exit.HALTED
