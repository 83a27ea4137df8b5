"""``hftpipe drill``: promises measured on real processes."""
from __future__ import annotations

import sys

import click

from hftpipe.cli._common import Settings, emit, shared
from hftpipe.errors import Exit


@click.group("drill", no_args_is_help=False)
@shared
def command() -> None:
    """Measure and prove what is promised, in a run of its own on the local exchange."""


@command.command("halt", epilog="Example: hftpipe drill halt --rounds 70 -o json")
@click.option("--rounds", type=click.IntRange(1, 100_000), default=27, show_default=True,
              help="Halts, in turn after each step of an order and with every stage stopped.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True,
              help="Of when halts come that follow no step.")
@click.option("--bound", "bounds", multiple=True, metavar="NAME=NUMBER",
              help="Another bound: flag_p99, helper, cancel (seconds), command_ratio.")
@shared
@click.pass_obj
def halt(settings: Settings, rounds: int, seed: int, bounds: tuple[str, ...]) -> int:
    """Halt a run again and again; how fast, and whether anything was sent afterwards.

    Exit code 9: a bound was missed, or an order came after the gate. Needs two cores for the halt
    word alone.
    """
    from hftpipe.drill import halt as drill
    wanted = drill.parse_bounds(bounds)
    shown = sys.stderr.isatty() and not settings.json

    def say(words: str) -> None:
        if shown:
            print(f"\r\x1b[2K{words}", end="", file=sys.stderr, flush=True)

    report = drill.run(rounds, seed, wanted, say)
    if shown:
        print("\r\x1b[2K", end="", file=sys.stderr)
    emit(settings, report.document(), drill.lines(report))
    return Exit.MISMATCH if report.missed else Exit.OK
