"""``hftpipe drill``: promises measured on real processes."""
from __future__ import annotations

import sys
from pathlib import Path

import click

from hftpipe.cli._common import SECONDS, Settings, emit, shared
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


@command.command("venue", epilog="Example: hftpipe drill venue --seed 1 --for 30m -o json")
@click.option("--for", "seconds", type=SECONDS, default="10min", show_default=True, metavar="TIME",
              help="Rounds are begun for so long.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=1, show_default=True,
              help="Of the faults and the market; round n has the seed + n - 1.")
@click.option("--round", "length", type=SECONDS, default="30s", show_default=True, metavar="TIME",
              help="How long each round's faults last.")
@click.option("--settle", type=SECONDS, default="75s", show_default=True, metavar="TIME",
              help="How long a run may then take to find out where it stands.")
@click.option("--profile", metavar="NAME",
              help="Only these faults: a group or a kind of `hftpipe venue --chaos`.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Keep the logs of rounds in which an invariant failed.")
@click.option("--ambiguous", type=click.IntRange(1, 10_000_000), metavar="N",
              help="Instead: lose N answers to orders, look them up, send some again; no doubles.")
@click.option("--within", type=SECONDS, default="30s", show_default=True, metavar="TIME",
              help="Of --ambiguous: how late an order may be accepted.")
@shared
@click.pass_obj
def venue(settings: Settings, seconds: float, seed: int, length: float, settle: float,
          profile: str | None, keep: Path | None, ambiguous: int | None, within: float) -> int:
    """Run the pipeline against a venue that does everything wrong, and check the invariants.

    Rounds with all kinds of faults in turn. Exit code 9: an invariant failed.
    """
    from hftpipe.drill import ambiguous as answers
    from hftpipe.drill import venue as drill
    shown = sys.stderr.isatty() and not settings.json

    def say(words: str) -> None:
        if shown:
            print(f"\r\x1b[2K{words}", end="", file=sys.stderr, flush=True)

    report: drill.Report | answers.Report
    if ambiguous is not None:
        report = lost = answers.run(ambiguous, seed, within, say)
        text = answers.lines(lost)
    else:
        report = rounds = drill.run(seconds, seed, length=length, patience=settle,
                                    profile=profile, keep=keep, say=say)
        text = drill.lines(rounds)
    if shown:
        print("\r\x1b[2K", end="", file=sys.stderr)
    emit(settings, report.document(), text)
    return Exit.MISMATCH if report.missed else Exit.OK


@command.command("crash", epilog="Example: hftpipe drill crash --rounds 100 --seed 1 -o json")
@click.option("--rounds", type=click.IntRange(1, 1_000_000), default=100, show_default=True,
              help="Faults, in turn; each run goes on with what the one before left.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=1, show_default=True,
              help="Of the order of faults; round n has the seed + n - 1.")
@click.option("--fault", "only", multiple=True, metavar="NAME",
              help='Only this fault, such as "gateway killed" or gateway.sent; several: in turn.')
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Keep the run directory here when an invariant failed.")
@shared
@click.pass_obj
def crash(settings: Settings, rounds: int, seed: int, only: tuple[str, ...],
          keep: Path | None) -> int:
    """Kill a trading run in every way there is, start it again, and look at what it lost.

    Exit code 9: an invariant failed. Fault points need a build that has them: `make faults`, then
    PYTHONPATH=build/faults python -m hftpipe drill crash.
    """
    from hftpipe.drill import crash as drill
    shown = sys.stderr.isatty() and not settings.json

    def say(words: str) -> None:
        if shown:
            print(f"\r\x1b[2K{words}", end="", file=sys.stderr, flush=True)

    report = drill.run(rounds, seed, only=only, keep=keep, say=say)
    if shown:
        print("\r\x1b[2K", end="", file=sys.stderr)
    emit(settings, report.document(), drill.lines(report))
    return Exit.MISMATCH if report.missed else Exit.OK


@command.command("sim", epilog="Example: hftpipe drill sim --seeds 1000 --seed 1 -o json")
@click.option("--seeds", type=click.IntRange(1, 100_000_000), default=100, show_default=True,
              help="How many; each is a world of its own, with two to four runs.")
@click.option("--seed", type=click.IntRange(0, 2**63), default=1, show_default=True,
              help="The first one.")
@click.option("--bug", metavar="NAME",
              help='Make this planted mistake, until a seed finds it; "all": each in turn.')
@shared
@click.pass_obj
def sim(settings: Settings, seeds: int, seed: int, bug: str | None) -> int:
    """Run the pipeline in one process in virtual time, strike it, and look at what it lost.

    Exit code 9: an invariant failed; the seed that is printed does it again. With --bug all: a
    mistake was not found.
    """
    from hftpipe.drill import sim as drill
    shown = sys.stderr.isatty() and not settings.json

    def say(words: str) -> None:
        if shown:
            print(f"\r\x1b[2K{words}", end="", file=sys.stderr, flush=True)

    if bug == "all":
        found = drill.bugs(seeds, seed, say=say)
        missed = [name for name, report in found.items() if not report.failing]
        document, text = drill.bugs_document(found), drill.bugs_lines(found)
    else:
        report = drill.run(seeds, seed, bug or "", say)
        missed, document, text = report.missed, report.document(), drill.lines(report)
    if shown:
        print("\r\x1b[2K", end="", file=sys.stderr)
    emit(settings, document, text)
    return Exit.MISMATCH if missed else Exit.OK
