"""``hftpipe venue``: run the built-in exchange alone."""
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click

from hftpipe.cli._common import SECONDS, Settings, shared
from hftpipe.errors import HftpipeError


@click.command(epilog="Example: hftpipe venue --seed 7 --rate 5000 -o json")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=0, show_default=True, help="0 takes any free one.")
@click.option("--seed", default=7, show_default=True, help="Of the simulated traders.")
@click.option("--symbols", default="ACME,BOLT,CRUX,DYNE", show_default=True,
              help="A pair like BTC/USD is crypto.")
@click.option("--rate", default=2000.0, show_default=True,
              help="Market data messages per second over all symbols.")
@click.option("--state", type=click.Path(file_okay=False, path_type=Path), default=None,
              help="Directory that orders and positions survive in.")
@click.option("--stamps", is_flag=True, help="Note there when each market data frame was written.")
@click.option("--rate-limit", default=200, show_default=True,
              help="REST requests per minute; 0 lifts it.")
@click.option("--cash", default="100000", show_default=True, help="Of a new account.")
@click.option("--multiplier", type=click.IntRange(1, 4), default=4, show_default=True,
              help="1 cash account, 2 or 4 margin.")
@click.option("--hours", type=click.Choice(["always", "nyse"]), default="always",
              show_default=True, help="When stocks trade.")
@click.option("--now", default=None, metavar="TIME",
              help="Where the sessions' clock stands at the start, e.g. 2026-03-02T09:29:50-05:00.")
@click.option("--chaos", metavar="FILE|NAME", default=None,
              help="Inject faults by the seed: a TOML file, or stream, updates, answers, limits, "
                   "weather, drift, ambiguous, all.")
@click.option("--for", "seconds", type=SECONDS, metavar="TIME", help="Stop after, e.g. 30s.")
@click.option("--die-with-parent", is_flag=True, help="Stop when the parent process ends.")
@shared
@click.pass_obj
def command(settings: Settings, host: str, port: int, seed: int, symbols: str, rate: float,
            state: Path | None, stamps: bool, rate_limit: int, cash: str,
            multiplier: int, hours: str, now: str | None, chaos: str | None,
            seconds: float | None, die_with_parent: bool) -> None:
    """Run the built-in exchange alone.

    Simulated traders and a matching engine, behind Alpaca's REST and WebSocket protocols. Key and
    secret are made at random, or taken from HFTPIPE_VENUE_KEY and HFTPIPE_VENUE_SECRET. With -o
    json the first line is one object that names rest, data_stream, updates_stream, key, secret
    and symbols. Ends with exit code 0 on SIGTERM and SIGINT; 75: port or state directory in use.
    """
    from hftpipe.venue import chaos as faults
    from hftpipe.venue import server
    if die_with_parent:
        server.die_with_parent()
    config = server.Config(
        host=host, port=port, seed=seed, symbols=tuple(s for s in symbols.split(",") if s),
        rate=rate, state=state, stamps=stamps, rate_limit=rate_limit, cash=cash,
        multiplier=multiplier, hours=hours, now=now,
        chaos=faults.load(chaos) if chaos is not None else None)
    config = replace(config, key=os.environ.get(server.KEY_ENV) or config.key,
                     secret=os.environ.get(server.SECRET_ENV) or config.secret)
    try:
        server.run(config, seconds=seconds, as_json=settings.json)
    except OSError as error:                # the log's disk, mostly
        raise HftpipeError(f"the venue cannot go on: {error}") from error
