"""``hftpipe demo``: the whole pipeline for a while against the local exchange, then the sums."""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from hftpipe.cli._common import RATE, SECONDS, SEED, Settings, shared
from hftpipe.errors import (
    BusyError,
    ConfigError,
    Exit,
    HftpipeError,
    MismatchError,
    UsageError,
)


@click.command(epilog="Example: hftpipe demo --for 15s -o json")
@click.option("--for", "seconds", type=SECONDS, default="15s", show_default=True,
              help="How long to trade.")
@click.option("--cores", metavar="LIST", help="As of start.")
@click.option("--oversubscribe", is_flag=True, help="As of start.")
@click.option("--seed", type=SEED, default=7, show_default=True,
              help="Of the exchange's simulated traders.")
@click.option("--rate", type=RATE, default=2000, show_default=True,
              help="Market data messages per second.")
@click.option("--chaos", metavar="FILE|NAME", help="Faults of the exchange, as of venue.")
@click.option("--fresh", is_flag=True, help="Forget a demo that was killed instead of going on.")
@click.option("--record", metavar="FILE", help="Also write every event into this new recording.")
@shared
@click.pass_obj
def command(settings: Settings, seconds: float, cores: str | None, oversubscribe: bool,
            seed: int, rate: float, chaos: str | None, fresh: bool, record: str | None) -> int:
    """Run the whole pipeline against the local exchange and sum up.

    Market data over WebSocket, order book, features, an imbalance strategy and an ONNX model,
    risk, orders over HTTP, fills, positions, and every event in PostgreSQL: all in a run
    directory of its own, which is removed at the end; --run-dir names one that is kept.  A demo
    that was killed goes on where it was: same positions, same P&L.
    """
    from hftpipe import pipeline, rundir
    from hftpipe.cli.start import plan_of
    if chaos is not None:
        from hftpipe.venue.chaos import load
        load(chaos)                         # before anything runs
        if Path(chaos).is_file():
            chaos = str(Path(chaos).absolute())
    loaded = settings.load()
    if loaded.profile != "demo":
        raise ConfigError(f"demo runs profile demo, was {loaded.profile}; use hftpipe start")
    plan = plan_of(loaded, cores, oversubscribe)
    people = not settings.json
    line = Line(sys.stderr, people)

    def say(text: str) -> None:
        if people:
            line.end()
            print(text, file=sys.stderr, flush=True)

    def execute(path: Path) -> pipeline.Outcome:
        return pipeline.execute(
            loaded, plan, run_dir=rundir.RunDir(path), seconds=seconds, record=record, seed=seed,
            rate=rate, chaos=chaos, rearm=True, say=say, live=line.show if people else None)

    if settings.run_dir is not None:
        if fresh:
            raise UsageError("--fresh is for the demo's own run directory; remove "
                             f"{settings.run_dir} instead")
        out = execute(Path(settings.run_dir))
    else:
        place = own_directory()
        if fresh:
            discard(place)
        killed = place.exists()
        try:
            out = execute(place)
        except BusyError:
            raise
        except MismatchError as e:      # what is to be looked at stays
            e.args = (f"{e}; kept in {place}",)
            raise
        except HftpipeError as e:
            if killed:
                e.args = (f"{e}; `hftpipe demo --fresh` forgets the demo that was killed",)
            else:
                discard(place)
            raise
        if out.code != Exit.MISMATCH:
            discard(place)
        elif people:
            print(f"kept      {place}", file=sys.stderr)
    line.end()
    if settings.json:
        print(json.dumps({"exit": int(out.code), "cause": out.cause, **out.summary}))
    elif out.summary:
        for text in lines(out.summary):
            print(text)
    if out.code != Exit.OK and people:
        print(f"error: {out.cause}", file=sys.stderr)
    return int(out.code)


def own_directory() -> Path:
    """Where the demo of this working directory keeps its state while it runs."""
    from hftpipe import rundir
    name = f"hftpipe-demo-{hashlib.sha256(os.fsencode(os.getcwd())).hexdigest()[:12]}"
    state = Path(rundir.default(None)).parent
    with contextlib.suppress(OSError):          # asked in the next line: else a temporary place
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.access(state, os.W_OK | os.X_OK):
        return state / name
    return Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"   # no home to write into


def discard(place: Path) -> None:
    """Remove a demo's run directory and the shared memory of its last run; nobody may use it."""
    from hftpipe import process, rundir
    directory = rundir.RunDir(place)
    if not place.exists():
        return
    directory.lock()                    # or it is busy
    try:
        left = process.find_leftovers(directory)
        if left is not None:
            process.discard(directory, left)
    finally:
        directory.unlock()
    shutil.rmtree(place)


class Line:
    """One line on a terminal that is written over; plain lines elsewhere."""

    def __init__(self, stream: Any, wanted: bool) -> None:
        self._stream, self._wanted = stream, wanted
        self._tty = wanted and stream.isatty()
        self._open = False

    def show(self, f: dict[str, Any]) -> None:
        """Print the figures of now."""
        if not self._wanted:
            return
        speed = f["tick_to_order_ns"]
        text = (f"{f['trading'].upper():<8} {f['events']:>9,} events  {f['orders']:>5} orders  "
                f"{f['fills']:>5} fills  {f['denied']:>5} denied  P&L {f['pnl']:>+9.2f}  "
                + (f"tick to order p50 {us(speed['p50'])} p99 {us(speed['p99'])}  "
                   if speed else "")
                + f"stored {f['rows_stored']:,}")
        if self._tty:
            print("\r\x1b[2K" + text, end="", file=self._stream, flush=True)
            self._open = True
        else:
            print(text, file=self._stream, flush=True)

    def end(self) -> None:
        """Leave the line as it is."""
        if self._open:
            print(file=self._stream)
            self._open = False


def us(ns: int | float) -> str:
    """Nanoseconds for people."""
    if ns < 1000:
        return f"{ns:.0f} ns"
    if ns < 1e6:
        return f"{ns / 1e3:.1f} us"
    if ns < 1e9:
        return f"{ns / 1e6:.1f} ms"
    return f"{ns / 1e9:.2f} s"


def lines(s: dict[str, Any]) -> list[str]:
    """The closing summary for people."""
    out = ["", f"run {s['run']}   profile {s['profile']}   {', '.join(s['symbols'])}", ""]
    out.append(f"events     {s['events']:>10,} market events   {s['events_recorded']:,} recorded "
               f"by all stages")
    states = ", ".join(f"{n} {k}" for k, n in s["orders_by_status"].items())
    out.append(f"orders     {s['orders']:>10,} sent   {s['fills']:,} fills   ({states or 'none'})")
    out.append(f"refused    {sum(s['denied'].values()):>10,} by risk, for these reasons"
               if s["denied"] else f"refused    {0:>10,} by risk")
    for reason, count in s["denied"].items():
        out.append(f"           {count:>10,} {reason.replace('_', ' ')}")
    fired = ", ".join(f"{n} {k.replace('_', ' ')}" for k, n in s["exits"].items())
    out.append(f"exits      {sum(s['exits'].values()):>10,} filled   ({fired or 'none'})")
    out.append(f"P&L        {s['pnl']:>+10.2f}   realised {s['realised']:+.2f}   "
               f"unrealised {s['unrealised']:+.2f}   fees {s['fees']:.2f}")
    out += ["", f"{'latency':<16}{'count':>9}{'p50':>11}{'p99':>11}{'p99.9':>11}{'max':>11}"]
    for name, h in s["latency_ns"].items():
        out.append(f"{name.replace('_', ' '):<16}{h['count']:>9,}"
                   + "".join(f"{us(h[k]):>11}" for k in ("p50", "p99", "p999", "max")))
    out.append("")
    good = "equal to" if s["verified"] else "DIFFERENT FROM"
    out.append(f"PostgreSQL {s['rows_stored']:>10,} rows, {good} the events recorded "
               f"(count and checksum of contents per stream)")
    for name, stream in s["streams"].items():
        out.append(f"           {stream['rows']:>10,} {name:<9} checksum {stream['checksum']}"
                   f"{'' if stream['ok'] else '   DIFFERENT'}")
    return out
