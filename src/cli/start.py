"""``hftpipe start``: configuration and machine into a plan, the plan into processes."""
from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from hftpipe.cli._common import Settings, columns, emit, shared
from hftpipe.errors import ConfigError, GuardError, UsageError

if TYPE_CHECKING:
    from hftpipe.config import Config
    from hftpipe.topology import Plan


@click.command(epilog="Example: hftpipe start --cores 0-7 --dry-run")
@click.option("--cores", metavar="LIST",
              help='Cores to use, such as "0-7", "1,3-5" or "auto"; the first keep house.')
@click.option("--oversubscribe", is_flag=True,
              help="One process per stage on whatever cores, with yielding waits.")
@click.option("--dry-run", is_flag=True, help="Print what would run, and where; start nothing.")
@click.option("--halted", is_flag=True, help="Do not arm trading; `hftpipe resume` does.")
@click.option("--adopt", metavar="REASON", default="",
              help="Take over the venue's positions where the books have others; recorded.")
@click.option("--live", is_flag=True, help="Consent to trading with money; see configuration.md.")
@click.option("--confirm-account", "account", metavar="DIGITS", envvar="HFTPIPE_CONFIRM_ACCOUNT",
              help="Last four digits of the account; without it, --live asks on the terminal.")
@shared
@click.pass_obj
def command(settings: Settings, cores: str | None, oversubscribe: bool, dry_run: bool,
            halted: bool, adopt: str, live: bool, account: str | None) -> int:
    """Start the pipeline in the foreground; ^C or `hftpipe stop` ends it.

    Without configuration: the demo profile, the local exchange, an embedded PostgreSQL.
    """
    from hftpipe import config
    loaded = settings.load()
    config.guard(loaded, live)
    account = _account(account, live and not dry_run)
    made = plan_of(loaded, cores, oversubscribe)
    if dry_run:
        emit(settings, describe(loaded, made), table(loaded, made))
        return 0
    pipeline = import_module("hftpipe.pipeline")        # heavy: everything that runs
    return int(pipeline.run(loaded, made, run_dir=settings.directory(), halted=halted,
                            adopt=adopt, account=account, output=settings.output))


def _account(given: str | None, needed: bool) -> str:
    """The account's last four digits: as *given*, else asked for where there is somebody."""
    from hftpipe import consent
    if given:
        return consent.digits(given)
    if not needed:
        return ""
    if not sys.stdin.isatty():
        raise GuardError("profile live needs the account's last four digits: by "
                         f"{consent.OPTION}, by {consent.ENVIRONMENT} or on a terminal, found none")
    return consent.digits(click.prompt("Last four digits of the account to trade with", err=True))


def plan_of(loaded: Config, cores: str | None = None, oversubscribe: bool = False) -> Plan:
    """The plan for this machine; *cores* and *oversubscribe* over the configuration's."""
    from hftpipe.topology import Machine, parse_cores, plan
    machine = Machine.read()
    layout = loaded.layout
    if cores is not None:
        chosen = parse_cores(cores, machine)
    else:
        try:
            chosen = parse_cores(layout.cores, machine)
        except UsageError as e:
            raise ConfigError(f"{loaded.where('layout.cores')}layout.cores: {e}") from None
    fuse = layout.fuse_feed == "yes" or (
        layout.fuse_feed == "auto" and len(chosen) == 2 and loaded.feed_in_loop
        and "feed" not in layout.pin)
    return plan(machine, chosen, oversubscribe=oversubscribe or layout.oversubscribe,
                spin=layout.spin, fuse_feed=fuse, feed_in_loop=loaded.feed_in_loop,
                pin=layout.pin, capacity=layout.capacity, where=loaded.where)


def describe(loaded: Config, made: Plan) -> dict[str, Any]:
    """The plan as plain data."""
    memory = made.memory()
    return {
        "profile": loaded.profile, "config": str(loaded.path) if loaded.path else None,
        "digest": loaded.digest, "cores": list(made.cores),
        "oversubscribed": made.oversubscribed,
        "processes": [{"name": p.name, "stages": list(p.stages), "core": p.core,
                       "affinity": list(p.affinity), "wait": p.wait, "hot": p.hot,
                       "fatal": p.fatal} for p in made.processes],
        "start_order": [p.name for p in made.start_order],
        "links": [{"name": k.name, "record": k.record, "capacity": k.capacity,
                   "bytes": memory[k.name]} for k in made.links],
        "memory": memory, "memory_bytes": sum(memory.values()), "shm_free_bytes": _free(),
        "warnings": list(made.warnings),
    }


def _free() -> int:
    found = os.statvfs("/dev/shm")
    return found.f_bavail * found.f_frsize


def table(loaded: Config, made: Plan) -> list[str]:
    """The plan for people."""
    from hftpipe.topology import format_list
    memory = made.memory()
    total, free = sum(memory.values()), _free()
    mib = 1 << 20
    largest = sorted(memory.items(), key=lambda item: -item[1])[:3]
    out = [f"config    {loaded.path or 'none: defaults'}   profile {loaded.profile}   "
           f"digest {loaded.digest}",
           f"cores     {format_list(made.cores)}"
           + ("   oversubscribed" if made.oversubscribed else ""), ""]
    out += columns(((p.name, " ".join(p.stages), format_list(p.affinity), p.wait,
                     "stops the run" if p.fatal else "is restarted") for p in made.processes),
                   ("process", "stages", "cores", "waits by", "its death"))
    out += ["", "start     " + ", ".join(p.name for p in made.start_order),
            f"memory    {total / mib:.1f} MiB of shared memory in {len(memory)} segments ("
            + ", ".join(f"{name} {size / mib:.1f}" for name, size in largest)
            + f", ...); {free / mib:.0f} MiB are free"]
    if free < total:
        out.append("warning   /dev/shm has not enough room: make it larger or set smaller "
                   "layout.capacity")
    return out + [f"warning   {text}" for text in made.warnings]
