"""``hftpipe halt``: one atomic addition on the control page, then the latch, then the proof."""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from hftpipe import _clock, rundir
from hftpipe.cli._common import SECONDS, Settings, emit, paint, shared, span
from hftpipe.errors import Exit, HftpipeError, NotRunningError

if TYPE_CHECKING:
    from hftpipe._control import Control
    from hftpipe.rundir import Halted, RunDir

GATES, CANCEL, FLATTEN = 1.0, 10.0, 45.0        # s that each has by default


@click.command(epilog='Example: hftpipe halt --cancel --reason "spread looks wrong"')
@click.option("--reason", default="operator", show_default=True, help="Kept with the halt.")
@click.option("--cancel", is_flag=True, help="Have every open order cancelled, and wait for it.")
@click.option("--flatten", is_flag=True, help="Have every position closed too, and wait for it.")
@click.option("--timeout", type=SECONDS, metavar="TIME",
              help="How long to wait for the gates' acknowledgement (default 1s), for the venue "
                   "with --cancel (10s) and --flatten (45s).")
@shared
@click.pass_obj
def command(settings: Settings, reason: str, cancel: bool, flatten: bool,
            timeout: float | None) -> int:
    """Stop trading at once.

    Works when every stage hangs or is dead, and without a run: then the next one starts halted.
    Exit code 0: the gates acknowledged, or are not alive, and the venue did what was asked. 5:
    halted, but a living gate has not acknowledged in time, or the venue has not.
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
    done = run_dir.halt(control, reason, way="cli", cancel=cancel, flatten=flatten)
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
        gates, elapsed = rundir.acknowledged(control, epoch, began,
                                             GATES if timeout is None else timeout)
    venue: dict[str, Any] | None = None
    if cancel or flatten:
        limit = (FLATTEN if flatten else CANCEL) if timeout is None else timeout
        venue = _at_the_venue(settings, run_dir, control, done, began, flatten, limit)
    late = "silent" in gates.values() or (venue is not None and not venue["done"])
    data = {"halted": True, "run": f"{run.run:x}" if run else None, "epoch": epoch,
            "elapsed_ns": elapsed, "gates": gates, "latched": True, "venue": venue, **why}

    def lines() -> list[str]:
        by = f'reason "{why["reason"]}"   by {why["who"]}'
        head = paint(settings, "HALTED", "red")
        if run is None:
            out = [f"{head}: no run; the next one starts halted   {by}"]
        else:
            told = ", ".join(f"{name} {state}" for name, state in gates.items())
            out = [f"{head} in {span(elapsed)} (epoch {epoch}; {told})   {by}"]
        if venue is not None:
            out += _lines(venue)
        if run is not None:
            out.append(f'resume with: hftpipe resume --epoch {epoch} --reason "..."')
        return out

    emit(settings, data, lines())
    return Exit.TIMEOUT if late else Exit.OK


def _lines(venue: dict[str, Any]) -> list[str]:
    if venue["open"] is None:
        out = ["cancel    not confirmed: the venue has not shown that no order is open; the "
               "guardian goes on trying"]
    elif venue["open"]:
        out = [f"cancel    {venue['open']} orders are still open at the venue"]
    else:
        out = [f"cancel    {venue['cancelled']} orders cancelled, none open at the venue after "
               f"{span(venue['elapsed_ns'])}"]
    if venue["positions"] is not None:
        out.append(f"flatten   {venue['positions'] or 'no'} positions are open")
    return out


def _at_the_venue(settings: Settings, run_dir: RunDir, control: Control | None, done: Halted,
                  began: int, flatten: bool, limit: float) -> dict[str, Any]:
    """What became of orders and positions: by the guardian, or by us when there is none."""
    from hftpipe import _control, shm
    guardian = next((b for b in control.stages if b.name == "guardian"), None) if control else None

    def living() -> bool:
        return guardian is not None and guardian.state in (
            _control.STARTING, _control.RUNNING) and shm.alive(guardian.pid, guardian.start)

    def answer(**found: Any) -> dict[str, Any]:
        return {"elapsed_ns": _clock.now_ns() - began, "positions": None, **found}

    deadline = _clock.now_ns() + int(limit * 1e9)
    while guardian is not None and living() and _clock.now_ns() < deadline:
        clear = guardian.counter("clear_epoch") >= done.epoch
        if clear and (not flatten or guardian.counter("flat_epoch") >= done.epoch):
            held = guardian.counter("venue_positions") if flatten else None
            return answer(by="guardian", open=guardian.counter("venue_orders"), positions=held,
                          cancelled=guardian.counter("swept"), done=not held)
        time.sleep(0.002)
    if living():
        return answer(by="guardian", open=None, cancelled=None, done=False)
    return answer(**_ourselves(settings, run_dir, done, flatten, limit))


def _ourselves(settings: Settings, run_dir: RunDir, done: Halted, flatten: bool,
               limit: float) -> dict[str, Any]:
    """Nobody else is there: ask the venue of the configuration."""
    from hftpipe import guardian
    from hftpipe.alpaca.rest import Rest
    try:
        config = settings.load()
        if config.venue.kind == "local":        # it ends with its run, and its orders with it
            return {"by": "command", "open": 0, "cancelled": 0, "done": True}
        rest = Rest(config.venue.rest, config.venue.key, config.venue.secret)
        try:
            asked, left = guardian.sweep_now(rest, limit)
            run_dir.audit("swept", {**done.why, "reason": f"{asked} orders cancelled, {left} open; "
                                    "there was no guardian"}, epoch=done.epoch)
            held = guardian.close_now(rest, run_dir, done, limit) if flatten and not left else None
        finally:
            rest.close()
    except HftpipeError as e:
        raise type(e)(f"halted (epoch {done.epoch}), but there is no guardian and the venue cannot "
                      f"be asked: {e}") from None
    return {"by": "command", "open": left, "cancelled": asked, "positions": held,
            "done": not left and not held}
