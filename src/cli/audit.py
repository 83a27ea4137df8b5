"""``hftpipe audit``: what is stored is what was written, row by row, and can be proved."""
from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import click

from hftpipe.cli._common import Settings, columns, count, emit, opened, shared
from hftpipe.cli.db import where


@click.group("audit", no_args_is_help=False, epilog="Example: hftpipe audit verify",
             help="""Prove that no stored row was altered, removed, added or moved.

Each batch of a stream that is stored adds a link to a SHA-256 chain over its rows. The run
directory keeps the chain's heads outside of the database, in anchors.jsonl; copy it to where
whoever can change the database has no access.""")
@shared
def command() -> None:
    pass


@command.command("verify", epilog="Example: hftpipe audit verify 18e9c2a7f3b1d00 -o json",
                 help="""Read every row of a run and compare with the chain and its anchors.

RUN is a run's name as `status` prints it, the newest by default. Exit code 0: all is as it was
written. 9: it is not; of each stream the first row that was altered, missing, added or reordered is
named. 4: no such run, or no anchors.""")
@click.argument("run", required=False)
@click.option("--all", "every", is_flag=True, help="Every run of the database.")
@click.option("--anchors", "places", metavar="FILE", multiple=True,
              type=click.Path(path_type=Path),
              help="Compare with this copy instead of the run directory's; may be repeated.")
@click.option("--no-anchors", is_flag=True,
              help="The chain alone; it cannot tell who rewrote rows and chain together.")
@where
@shared
@click.pass_obj
def verify(settings: Settings, run: str | None, every: bool, places: tuple[Path, ...],
           no_anchors: bool, url: str | None) -> int:
    if run is not None and every:
        raise click.UsageError("verify wants RUN or --all, not both")
    if places and no_anchors:
        raise click.UsageError("verify wants --anchors or --no-anchors, not both")
    wanted = _run(run)
    from hftpipe.store import chain
    from hftpipe.store import migrate as m
    sources = [] if no_anchors else list(places) or [settings.directory().path / chain.FILE]
    # before the rows: what is anchored is in the database already
    anchors = [a for source in sources for a in chain.read(source)]
    with opened(settings, url) as conninfo:
        with m.connect(conninfo) as c:
            runs = chain.runs(c, wanted, every=every)
        found = [chain.audit(conninfo, r, anchors) for r in runs]
    ok = not any(a.fault for a in found)
    emit(settings, {"ok": ok, "anchors": [str(s) for s in sources], "runs": [
        _document(a) for a in found]}, _lines(found))
    if not ok:
        from hftpipe.errors import Exit
        return int(Exit.MISMATCH)
    return 0


def _run(text: str | None) -> int | None:
    try:
        return None if text is None else int(text, 16)
    except ValueError:
        raise click.UsageError(f"RUN must be hexadecimal digits, was {text!r}") from None


def _document(a: Any) -> dict[str, Any]:
    from hftpipe import schema
    return {"run": f"{a.run:x}", "ok": a.fault is None, "streams": [
        {"stream": schema.STREAM.label(s.stream), "ok": s.fault is None, "rows": s.rows,
         "links": s.links, "anchored": s.anchored, "head": s.head.hex(),
         "fault": s.fault and {"kind": s.fault.kind, "table": s.fault.table, "seq": s.fault.seq,
                               "what": s.fault.what}} for s in a.streams]}


def _lines(found: list[Any]) -> list[str]:
    from hftpipe import schema
    out = []
    for a in found:
        began = dt.datetime.fromtimestamp(a.run // 10**9, dt.UTC)
        out.append(f"run {a.run:x}   begun {began:%Y-%m-%d %H:%M:%SZ}: "
                   + ("as it was written" if a.fault is None else "NOT as it was written"))
        out += columns([(schema.STREAM.label(s.stream), count(s.rows), count(s.links),
                         count(s.anchored), s.head.hex()[:16],
                         f"FIRST FAULT {s.fault}" if s.fault else "ok") for s in a.streams],
                       ("stream", "rows", "links", "anchored", "head", ""))
    return out
