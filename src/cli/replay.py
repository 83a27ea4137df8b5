"""``hftpipe replay``: a journaled run once more, every event compared."""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from hftpipe.cli._common import Settings, clock, count, emit, shared
from hftpipe.cli.journal import Progress, base, durable
from hftpipe.errors import Exit

if TYPE_CHECKING:
    from hftpipe.backtest.rerun import Report


@click.command(epilog="Example: hftpipe replay 18ebf2daeca5e15f --verify")
@click.argument("run", required=False)
@click.option("--verify", is_flag=True, help="Exit with 9 when an event is not as it was.")
@shared
@click.pass_obj
def command(settings: Settings, run: str | None, verify: bool) -> int:
    """Run the stages of a run once more, from its journal, and compare every event they store.

    RUN is a run's name as `status` prints it, the newest by default.  What came from outside
    (market data, the venue's words, figures, people) is taken from the journal in the order in
    which each stage took it; books, signals, verdicts, orders and positions are made again and
    compared byte for byte, hop times aside.  Says the first difference.  Nothing is sent anywhere
    and no database is asked.
    """
    from hftpipe import registry, worker
    from hftpipe.backtest import rerun
    from hftpipe.journal import runs
    place = runs.find(base(settings), run.removeprefix("run-") if run else None)
    progress = Progress(settings)
    began = time.monotonic()
    try:
        found = rerun.load(place, durable(place), progress)
        loading = time.monotonic() - began
        out = rerun.replay(found, worker.strategies, worker.begun,
                           model=lambda number: registry.by_id(number, settings.load()),
                           progress=progress)
    finally:
        progress.end()
    out.loading = loading
    emit(settings, document(out), lines(out))
    return int(Exit.MISMATCH if verify and not out.identical else Exit.OK)


def document(r: Report) -> dict[str, Any]:
    """The report as plain data."""
    from hftpipe.backtest.rerun import dump
    return {
        "run": f"{r.run:x}", "ended": r.ended, "identical": r.identical, "events": r.events,
        "given": r.given, "made_again": r.same, "unfinished": r.unfinished, "orders": r.orders,
        "fills": r.fills, "sha256": r.sha256, "span_s": r.span_ns / 1e9,
        "seconds": round(r.seconds, 6), "reading_s": round(r.loading, 6),
        "events_per_second": round(r.events_per_second),
        "streams": {name: {"recorded": n, "made_again": same}
                    for name, (n, same) in r.streams.items()},
        "difference": None if r.difference is None else dump(r.difference)}


def lines(r: Report) -> list[str]:
    """The report for people."""
    state = "" if r.ended else "   (killed: the journal is all there is)"
    out = [f"run       {r.run:x}   {clock(r.span_ns)}{state}",
           f"given     {count(r.given)} events from outside: feed, updates, figures, people",
           "again     " + "   ".join(f"{name} {count(same)}"
                                     for name, (_, same) in r.streams.items())]
    if r.unfinished:
        out.append(f"          {count(r.unfinished)} of the last moment not compared: what led "
                   "to them was lost with the run")
    if r.difference is not None:
        out.append(f"DIFFERENT {r.difference}")
        for what, data in (("run", r.difference.recorded), ("replay", r.difference.replayed)):
            out += [f"{what if i == 0 else '':<9} {i:04x}  {data[i:i + 32].hex(' ', 8)}"
                    for i in range(0, len(data), 32)]
        return out
    faster = f"{r.span_ns / 1e9 / r.seconds:,.0f}x real time" if r.seconds else ""
    out.append(f"{count(r.events)} events, {count(r.orders)} orders, {count(r.fills)} fills: "
               f"IDENTICAL (sha {r.sha256[:16]})   {r.seconds:.2f} s, {faster}, "
               f"{count(round(r.events_per_second))} events/s; read in {r.loading:.2f} s")
    return out
