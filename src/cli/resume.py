"""``hftpipe resume``: a compare-and-swap to the halt that the operator saw."""
from __future__ import annotations

import time

import click

from hftpipe import _clock, _control, rundir, shm
from hftpipe.cli._common import Settings, emit, paint, shared
from hftpipe.errors import BusyError, Exit, GuardError, NotRunningError

GUARDIAN = 3.0                  # s that the guardian may take to finish with the halt


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
    if control.flatten_epoch:
        raise GuardError(f"resume refused: the positions of run {run.run:x} were closed at the "
                         "venue, which its ledger does not know; end it and start a new one")
    with run_dir.operator() as got:
        if not got:
            raise BusyError("another operator's command is under way; try again")
        control.raise_halt_epoch(run_dir.latch().halt_epoch)    # of two copies the higher wins
        seen = control.halt_epoch if epoch is None else epoch
        _at_rest(control, seen)
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


def _at_rest(control: _control.Control, epoch: int) -> None:
    """Refuse while the guardian still cancels for a halt: it would meet orders that come after.

    Raises
    ------
    BusyError
    """
    guardian = next((b for b in control.stages if b.name == "guardian"), None)
    if guardian is None or guardian.state != _control.RUNNING or not shm.alive(
            guardian.pid, guardian.start):
        raise BusyError("there is no guardian: without one nothing is armed; try again")
    end = _clock.now_ns() + int(GUARDIAN * 1e9)
    while guardian.ack_epoch < epoch or guardian.counter("settled_epoch") < control.cancel_epoch:
        if _clock.now_ns() >= end:
            raise BusyError(f"the guardian has not finished with halt {epoch}: "
                            f"{guardian.counter('venue_orders')} orders were open at the venue "
                            "when it last looked; try again")
        time.sleep(0.01)
