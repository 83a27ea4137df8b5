"""``hftpipe recover``: what the next start takes over, without starting."""
from __future__ import annotations

from typing import Any

import click

from hftpipe.cli._common import Settings, emit, shared
from hftpipe.errors import Exit

NANO = 10**9


@click.command(epilog="Example: hftpipe recover --dry-run -o json")
@click.option("--dry-run", is_flag=True, help="Store nothing: only look.")
@shared
@click.pass_obj
def command(settings: Settings, dry_run: bool) -> int:
    """Say what a start would take over: events left behind, books, orders, positions.

    Nothing is sent to the venue; of the local one a copy is asked.  Without --dry-run the events
    that a killed run left are stored first, as a start would.  Exit code 9 when books and venue
    differ: a start would come up HALTED.
    """
    import psycopg

    from hftpipe import takeover
    from hftpipe.store import migrate, queries
    from hftpipe.store.postgres import database
    config, run_dir = settings.load(), settings.directory()
    said: list[str] = []
    run_dir.prepare()
    run_dir.lock()
    try:
        with database(config.store.url, run_dir.path,
                      password=config.store.password) as conninfo:
            migrate.migrate(conninfo)

            def marks(run: int) -> dict[int, int]:
                with psycopg.connect(conninfo) as c:
                    return {stream: seq for stream, (seq, _) in queries.marks(c, run).items()}

            waiting = takeover.waiting(run_dir, config, marks)
            if not dry_run:
                takeover.store_leftovers(run_dir, conninfo, config, said.append)
            latch = run_dir.latch()
            with takeover.venue(run_dir, config) as venue:
                past, report = takeover.look(conninfo, config, venue)
    finally:
        run_dir.unlock()
    positions = {symbol: {"qty": row.qty / NANO, "cost": row.cost / NANO**2,
                          "realised": row.realised / NANO**2, "fees": row.fees / NANO,
                          "mark": row.mark / NANO}
                 for symbol, row in sorted(past.rows.items())}
    document: dict[str, Any] = {
        "from_run": f"{past.from_run:x}" if past.from_run else None, "account": past.account,
        "stored": not dry_run, "events": waiting, "halted": latch.halted, "halt": latch.halt,
        "positions": positions, "cancel": report.cancelled, "orphans": report.orphans,
        "resolve": report.resolved, "executions": report.recovered,
        "foreign_orders": report.foreign_orders, "foreign_positions": report.foreign,
        # Books that lack events say nothing about the venue.
        "differences": None if dry_run and waiting else report.differences}
    emit(settings, document, _lines(document, said))
    return int(Exit.MISMATCH if document["differences"] else Exit.OK)


def _lines(d: dict[str, Any], said: list[str]) -> list[str]:
    where = "would be stored first" if not d["stored"] else "were stored"
    out = list(said)
    for item in d["events"]:
        out.append(f"events    {item['events']:,} of {item['stream']} in the {item['where']} of "
                   f"run {item['run']} {where}")
    if d["differences"] is None:
        return [*out, "then books and venue are compared: `hftpipe recover` stores and compares, "
                      "and starts nothing"]
    out.append(f"books     of run {d['from_run']}" if d["from_run"]
               else "books     none yet for this account")
    for symbol, p in d["positions"].items():
        out.append(f"          {symbol:<8} {p['qty']:>14.9g}   cost {p['cost']:.2f}   "
                   f"realised {p['realised']:+.2f}   fees {p['fees']:.2f}")
    out += [f"cancel    {name}" + ("   (our books do not know it)" if name in d["orphans"] else "")
            for name in d["cancel"]]
    out += [f"resolve   {line}" for line in d["resolve"]]
    if d["executions"]:
        out.append(f"book      {d['executions']} executions that only the venue knows of")
    out += [f"foreign   {line}" for line in d["foreign_positions"]]
    if d["foreign_orders"]:
        out.append(f"foreign   {d['foreign_orders']} open orders")
    out += [f"DIFFERENT {line}" for line in d["differences"]]
    if d["differences"]:
        out.append("a start would come up HALTED")
    elif d["halted"]:
        out.append(f"a start would come up HALTED: {(d['halt'] or {}).get('reason', '')}")
    elif d["foreign_orders"] or d["foreign_positions"]:
        out.append("a start would not arm trading")
    else:
        out.append("books and venue agree: a start would arm trading")
    return out
