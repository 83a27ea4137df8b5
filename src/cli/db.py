"""``hftpipe db``: the database's migrations, state and address."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def _where(f: Callable[..., None]) -> Callable[..., None]:
    """Options that say which database is meant."""
    f = click.option("--run-dir", type=click.Path(file_okay=False, path_type=Path),
                     help="Run directory of an embedded database.")(f)
    return click.option("--url", metavar="URL", help='Instead of store.url: "embedded" or '
                                                     "postgresql://...")(f)


_output = click.option("-o", "--output", type=click.Choice(("text", "json")), default="text",
                       help="How to print it.")


def _settings(url: str | None, run_dir: Path | None) -> tuple[str, Path]:
    from hftpipe import config, rundir
    return url or config.load().store.url, Path(rundir.default(run_dir))


@click.group("db", help="""The database: apply migrations, show its state, print its address.

Without --url it is the configuration's store.url. "embedded" is the private PostgreSQL of the
run directory; when no pipeline runs there it is started for the command and stopped after it.""")
def command() -> None:
    pass


@command.command("migrate", help="Apply the migrations that are missing.")
@_where
@_output
def migrate(url: str | None, run_dir: Path | None, output: str) -> None:
    from hftpipe.store import migrate as m
    from hftpipe.store.postgres import database
    with database(*_settings(url, run_dir)) as conninfo:
        done = m.migrate(conninfo)
        state = m.status(conninfo)
    if output == "json":
        click.echo(json.dumps({"applied": [f"{v.version:04}_{v.name}" for v in done],
                               "version": len(state.applied)}))
        return
    for v in done:
        click.echo(f"applied {v.version:04}_{v.name}")
    click.echo(f"database is at version {len(state.applied)}"
               + ("" if done else ", nothing to do"))


@command.command("status", help="Show server, version, pending migrations and the newest runs.")
@_where
@_output
def status(url: str | None, run_dir: Path | None, output: str) -> None:
    from hftpipe.store import migrate as m
    from hftpipe.store import queries
    from hftpipe.store.postgres import database
    with database(*_settings(url, run_dir)) as conninfo, m.connect(conninfo) as c:
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
    if output == "json":
        click.echo(json.dumps(document))
        return
    click.echo(f"PostgreSQL {row[0]}, {row[1] / 1e6:.1f} MB")
    click.echo(f"version {document['version']}, "
               + (f"pending: {', '.join(document['pending'])}" if state.pending else "up to date"))
    for r in document["runs"]:
        click.echo(f"run {r['run']}  {r['started']}  {r['profile']:<6} {r['events']:>12} events  "
                   + ("ended" if r["ended"] else "not ended"))


@command.command("url", help="""Print the address of the running database, for psql:

    psql "$(hftpipe db url)"

It names the password file of an embedded database, not the password.""")
@_where
def url(url: str | None, run_dir: Path | None) -> None:
    from hftpipe.errors import NotRunningError
    from hftpipe.store.postgres import Postgres, embedded
    address, place = _settings(url, run_dir)
    if embedded(address):
        found = Postgres(place).running()
        if found is None:
            raise NotRunningError(f"no database runs in {place / 'pg'}; it is started with the "
                                  "pipeline")
        address = found
    click.echo(address)
