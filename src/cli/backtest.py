"""``hftpipe backtest``: the live pipeline's stages over a recording, in one process."""
from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from hftpipe.cli._common import SECONDS, Settings, shared

if TYPE_CHECKING:
    from hftpipe.backtest.run import Result


@click.command(epilog="Example: hftpipe backtest --data AAPL.itch50.bin --strategy imbalance")
@click.option("--data", metavar="FILE", required=True,
              help="ITCH, a LOBSTER pair, Binance, Coinbase or Kraken lines, or our recording.")
@click.option("--symbols", metavar="A,B", help="Only these; default all.")
@click.option("--latency", type=SECONDS, default="100us", show_default=True,
              help="One way to the simulated venue.")
@click.option("--strategy", "names", multiple=True, metavar="NAME",
              help="Only these of the configured strategies; may be repeated.")
@click.option("--record", metavar="FILE", help="Write every event into this new recording.")
@click.option("--verify", is_flag=True,
              help="Instead: a live run's recording must give its intents again, byte for byte.")
@shared
@click.pass_obj
def command(settings: Settings, data: str, symbols: str | None, latency: float,
            names: tuple[str, ...], record: str | None, verify: bool) -> int:
    """Drive the same compiled stages over a recording, against a simulated venue.

    Strategies trade whole lots of the recording's own instruments: quantities of the
    configuration are lots here.  Risk limits are those of the configuration.
    """
    from hftpipe import config, registry, worker
    from hftpipe.backtest.run import backtest, verify_intents
    from hftpipe.errors import UsageError
    if verify:
        from hftpipe.recording import Recording
        text = Recording(data).config.get("toml")
        if not text:
            raise UsageError(f"--verify wants the recording of a live run, {data} has no "
                             f"configuration")
        made = config.loads(text, "recording", env={})
        began = time.perf_counter()
        found = verify_intents(data, lambda table: worker.strategies(made, table), made,
                               lambda number: registry.by_id(number, settings.load()))
        seconds = time.perf_counter() - began
        if settings.json:
            print(json.dumps({
                "market_events": found.market_events, "order_events": found.order_events,
                "intents": found.intents, "identical": True, "seconds": round(seconds, 3)}))
        else:
            print(f"{found.market_events:,} market events, {found.order_events:,} order events, "
                  f"{found.intents:,} intents: IDENTICAL   {seconds:.2f} s")
        return 0
    loaded = settings.load()
    known = [item.name for item in loaded.strategy]
    for name in names:
        if name not in known:
            raise UsageError(f"strategy must be one of {', '.join(known)}, was {name!r}")

    def strategies(table: Any) -> list[Any]:
        return worker.strategies(loaded, table, names, in_lots=True)

    shown = 0.0

    def progress(events: int, now: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.5 and sys.stderr.isatty() and not settings.json:
            shown = time.monotonic()
            print(f"\r\x1b[2K{events:,} events", end="", file=sys.stderr, flush=True)

    out = backtest(data, loaded, strategies, symbols=symbols.split(",") if symbols else None,
                   latency=round(latency * 1e9), record=record, progress=progress)
    if shown:
        print("\r\x1b[2K", end="", file=sys.stderr)
    if settings.json:
        print(json.dumps(document(out)))
    else:
        for line in lines(out):
            print(line)
    return 0


def document(r: Result) -> dict[str, Any]:
    """The result as plain data; money in the quote currency."""
    return {
        "data": r.data, "format": r.format, "symbols": r.symbols, "events": r.events,
        "dropped": r.messages_dropped, "span_s": r.span_ns / 1e9, "intents": r.intents,
        "denied": r.denied, "orders": r.orders, "fills": r.fills, "pnl": r.pnl / 1e9,
        "realised": r.realised / 1e9, "fees": r.fees / 1e9, "drawdown": r.drawdown / 1e9,
        "seconds": round(r.seconds, 6),
        "events_per_second": round(r.events_per_second),
        "positions": {symbol: {"qty": p["qty"] / 1e9, "average": p["average"] / 1e9,
                               "realised": p["realised"] / 1e9,
                               "unrealised": p["unrealised"] / 1e9}
                      for symbol, p in r.positions.items()},
    }


def lines(r: Result) -> list[str]:
    """The result for people."""
    refused = ", ".join(f"{n} {k}" for k, n in r.denied.items())
    out = [f"data       {r.data}   {r.format}   {len(r.symbols)} symbols   "
           f"{r.span_ns / 1e9:,.1f} s of market time",
           f"events     {r.events:>12,}   {r.messages_dropped:,} without effect   "
           f"{r.events_per_second:,.0f} events/s in {r.seconds:.2f} s",
           f"orders     {r.orders:>12,}   {r.fills:,} fills   of {r.intents:,} intents",
           f"refused    {sum(r.denied.values()):>12,}   ({refused or 'none'})",
           f"P&L        {r.pnl / 1e9:>+12,.4f}   realised {r.realised / 1e9:+,.4f}   "
           f"fees {r.fees / 1e9:,.4f}   largest drawdown {r.drawdown / 1e9:,.4f}"]
    for symbol, p in r.positions.items():
        out.append(f"  {symbol:<10} {p['qty'] / 1e9:>+14.9g} @ {p['average'] / 1e9:<12.9g} "
                   f"realised {p['realised'] / 1e9:+,.4f}   "
                   f"unrealised {p['unrealised'] / 1e9:+,.4f}")
    return out
