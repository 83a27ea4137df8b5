"""``hftpipe db``: the database's migrations, state and address."""
from __future__ import annotations

from typing import Any

import click

from hftpipe.cli._common import Settings, database_of, emit, shared

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
    from hftpipe.store.postgres import database
    address, place, password = database_of(settings, url)
    with database(address, place, password=password) as conninfo:
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
    from hftpipe.store.postgres import database
    address, place, password = database_of(settings, url)
    with database(address, place, password=password) as conninfo, m.connect(conninfo) as c:
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
