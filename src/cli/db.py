"""``hftpipe db``: the database's migrations, state and address."""
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hftpipe.cli._common import Settings, database_of, emit, opened, shared

if TYPE_CHECKING:
    from hftpipe.store.backup import Backup

where = click.option("--url", metavar="URL",
                     help='Instead of store.url: "embedded" or "postgresql://...".')


@click.group("db", no_args_is_help=False, epilog="Example: hftpipe db migrate --url postgresql://user@host/trading",
             help="""The database: apply migrations, show its state, print its address.

Without --url it is the configuration's store.url. "embedded" is the private PostgreSQL of the
run directory; when no pipeline runs there it is started for the command and stopped after it.""")
@shared
def command() -> None:
    pass


@command.command("migrate", epilog="Example: hftpipe db migrate --url postgresql://user@host/trading",
                 help="Apply the migrations that are missing.")
@where
@shared
@click.pass_obj
def migrate(settings: Settings, url: str | None) -> None:
    from hftpipe.store import migrate as m
    with opened(settings, url) as conninfo:
        done = m.migrate(conninfo)
        state = m.status(conninfo)
    names = [f"{v.version:04}_{v.name}" for v in done]
    emit(settings, {"applied": names, "version": len(state.applied)},
         [*(f"applied {name}" for name in names),
          f"database is at version {len(state.applied)}" + ("" if done else ", nothing to do")])


@command.command("status", epilog="Example: hftpipe db status -o json",
                 help="Show server, version, pending migrations and the newest runs.")
@where
@shared
@click.pass_obj
def status(settings: Settings, url: str | None) -> None:
    from hftpipe.store import migrate as m
    from hftpipe.store import queries
    with opened(settings, url) as conninfo, m.connect(conninfo) as c:
        state = m.status(conninfo)
        row = c.execute("SELECT current_setting('server_version'), "
                        "pg_database_size(current_database())").fetchone()
        assert row is not None
        runs = queries.runs(c, 5) if state.applied else []
    document: dict[str, Any] = {
        "server": row[0], "bytes": row[1], "version": len(state.applied),
        "pending": [f"{v.version:04}_{v.name}" for v in state.pending],
        "runs": [{**r, "run": f"{r['run']:x}", "started": r["started"].isoformat(),
                  "ended": r["ended"] and r["ended"].isoformat()} for r in runs]}
    emit(settings, document, [
        f"PostgreSQL {row[0]}, {row[1] / 1e6:.1f} MB",
        f"version {document['version']}, "
        + (f"pending: {', '.join(document['pending'])}" if state.pending else "up to date"),
        *(f"run {r['run']}  {r['started']}  {r['profile']:<6} {r['events']:>12} events  "
          + ("ended" if r["ended"] else "not ended") for r in document["runs"])])


@command.command("url", help="""Print the address of the running database, for psql:

    psql "$(hftpipe db url)"

It names the password file of an embedded database, not the password.""")
@where
@shared
@click.pass_obj
def url(settings: Settings, url: str | None) -> None:
    from hftpipe.errors import NotRunningError
    from hftpipe.store.postgres import Postgres, embedded
    address, place, _ = database_of(settings, url)
    if embedded(address):
        found = Postgres(place).running()
        if found is None:
            raise NotRunningError(f"no database runs in {place / 'pg'}; it is started with the "
                                  "pipeline")
        address = found
    emit(settings, {"url": address}, [address])


@command.command("backup", epilog="Example: hftpipe db backup /mnt/backup/2026-11-27",
                 help="""Write everything the database holds to the new directory DIRECTORY.

The pipeline may run meanwhile: the backup is one snapshot. It appears when it is whole. Its
manifest has the heads of all chains: keep it apart from the database, as anchors.""")
@click.argument("directory", type=click.Path(path_type=Path))
@where
@shared
@click.pass_obj
def backup_(settings: Settings, directory: Path, url: str | None) -> None:
    from hftpipe.store import backup
    told = time.monotonic()

    def say(size: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 2.0:
            told = time.monotonic()
            print(f"backup    {size / 1e6:.1f} MB", file=sys.stderr, flush=True)

    with opened(settings, url) as conninfo:
        _show(settings, backup.backup(conninfo, directory, say), "written to")


@command.command("verify", epilog="Example: hftpipe db verify /mnt/backup/2026-11-27",
                 help="""Check that the backup in DIRECTORY is as it was written.

That its rows are those of the database it was made from, a restore proves; of a database,
`hftpipe audit verify`.""")
@click.argument("directory", type=click.Path(path_type=Path))
@shared
@click.pass_obj
def verify(settings: Settings, directory: Path) -> None:
    from hftpipe.store import backup
    _show(settings, backup.read(directory), "as they were written in")


@command.command("restore", epilog="Example: hftpipe --run-dir /srv/hftpipe db restore "
                                   "/mnt/backup/2026-11-27",
                 help="""Fill an empty database with the backup in DIRECTORY.

Afterwards every row is read and compared with the chains' heads in the manifest. Exit code 9:
something is not as it was backed up.""")
@click.argument("directory", type=click.Path(path_type=Path))
@where
@shared
@click.pass_obj
def restore(settings: Settings, directory: Path, url: str | None) -> None:
    from hftpipe.store import backup, chain
    run_dir = settings.directory()
    run_dir.prepare()
    run_dir.lock()                      # nobody starts a run on it meanwhile
    try:
        with opened(settings, url) as conninfo:
            found = backup.restore(
                conninfo, directory, lambda text: print(text, file=sys.stderr, flush=True))
            chain.Anchors(run_dir.path / chain.FILE).add(found.heads)   # for `audit verify`
            _show(settings, found, "restored from")
    finally:
        run_dir.unlock()


def _show(settings: Settings, b: Backup, what: str) -> None:
    emit(settings, {"backup": str(b.path), "made": b.made, "bytes": b.size,
                    "version": len(b.migrations), "runs": [f"{run:x}" for run in b.runs],
                    "events": b.events},
         [f"{len(b.runs)} runs, {b.events:,} events {what} {b.path}",
          f"{b.size / 1e6:.1f} MB   version {len(b.migrations)}   made {b.made}"])
