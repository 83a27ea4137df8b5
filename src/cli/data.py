"""``hftpipe data``: historical data, downloaded, converted, listed and checked."""
from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from hftpipe.cli._common import Settings, emit, shared

_root = click.option("--out", "root", metavar="DIR", default="data", show_default=True,
                     help="Directory of the datasets.")


class _Bar:
    """A line on a terminal, at most twice a second."""

    def __init__(self, settings: Settings) -> None:
        self._quiet = settings.json or not sys.stderr.isatty()
        self._shown = 0.0

    def say(self, text: str) -> None:
        if not self._quiet and time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._shown:
            print("\r\x1b[2K", end="", file=sys.stderr)


@click.group("data", no_args_is_help=False, epilog="Example: hftpipe data ls --out data",
             help="""Historical data: download, convert, list and check.

A dataset is a directory of Parquet files with a manifest; prices and sizes are whole numbers in
1e-9, times UTC nanoseconds.  Needs the extra: pip install 'hftpipe[data]'.""")
@shared
def command() -> None:
    pass


@command.command("download", epilog="Example: hftpipe data download bars --symbols AAPL "
                 "--start 2026-01-05 --end 2026-01-06 --timeframe 1Min")
@click.argument("kind", type=click.Choice(["bars", "trades", "quotes"]))
@click.option("--symbols", required=True, metavar="A,B", help="One with a slash is crypto.")
@click.option("--start", required=True, metavar="TIME", help="A date or RFC 3339, inclusive.")
@click.option("--end", required=True, metavar="TIME", help="The same, inclusive.")
@click.option("--timeframe", default="1Min", show_default=True, help="Of bars.")
@click.option("--feed", type=click.Choice(["iex", "sip", "otc", "boats"]), default="iex",
              show_default=True, help="Of stocks.")
@click.option("--adjustment", type=click.Choice(["raw", "split", "dividend", "all"]),
              default="raw", show_default=True, help="Of bars of stocks.")
@click.option("--url", default="https://data.alpaca.markets", show_default=True,
              help="The historical data service.")
@click.option("--per-minute", type=click.IntRange(0, 100_000), default=180, show_default=True,
              help="Requests; 0 = no limit.")
@_root
@shared
@click.pass_obj
def download(settings: Settings, kind: str, symbols: str, start: str, end: str, timeframe: str,
             feed: str, adjustment: str, url: str, per_minute: int, root: str) -> None:
    """Download from the broker, page by page; the same command again goes on where it stopped.

    Credentials are those of the configuration (venue.key, venue.secret).
    """
    from hftpipe.data import tables
    from hftpipe.data.dataset import Dataset
    from hftpipe.data.download import Client
    from hftpipe.data.download import download as fill
    from hftpipe.errors import UsageError
    tables.arrow()
    names = [s for s in symbols.split(",") if s]
    if not names or len(set(names)) != len(names):
        raise UsageError(f"--symbols must be different names, was {symbols!r}")
    first, last = _time("--start", start), _time("--end", end)
    if first > last:
        raise UsageError(f"--end must not be before --start, was {end}")
    loaded = settings.load()
    key, secret = loaded.venue.key, loaded.venue.secret
    request: dict[str, Any] = {"symbols": names, "start": start, "end": end, "feed": feed,
               "timeframe": timeframe if kind == "bars" else "",
               "adjustment": adjustment if kind == "bars" else ""}
    label = "-".join(p for p in (kind, request["timeframe"], feed, start, end, *names) if p)
    path = Path(root) / _name(label)
    client, bar = Client(url, key, secret, per_minute), _Bar(settings)
    began = time.monotonic()

    def tell(symbol: str, rows: int, ts: int) -> None:
        share = (ts - first) / max(last - first, 1) if ts else 1.0
        bar.say(f"{symbol:<10} {_strip(min(max(share, 0.0), 1.0))} {rows:,} rows   "
                f"{client.requests} requests   {time.monotonic() - began:.0f} s")

    try:
        with Dataset(path, kind, request).held() as data:
            fill(data, client, tell)
    finally:
        bar.close()
        client.close()
    emit(settings, {**_document(data), "requests": client.requests, "retries": client.retries},
         [f"{data.rows:,} {kind} in {len(data.parts)} parts, {data.size / 1e6:,.1f} MB, "
          f"{client.requests} requests ({client.retries} repeated)   {path}"])


@command.command("import", epilog="Example: hftpipe data import recording AAPL.itch50.bin")
@click.argument("kind", type=click.Choice(["recording", "dbn", "csv"]))
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--name", help="Of the dataset; default that of the first file.")
@click.option("--table", "table", type=click.Choice(["bars", "trades", "quotes"]),
              help="csv: what the rows are.")
@click.option("--column", "columns", multiple=True, metavar="OURS=THEIRS",
              help="csv: where a column of ours stands, if it has another name; may be repeated.")
@click.option("--symbol", default="", help="csv: of all rows, without a column for it.")
@click.option("--time", "unit", type=click.Choice(["s", "ms", "us", "ns", "iso"]), default="ns",
              show_default=True, help="csv: unit of times since 1970, or RFC 3339.")
@_root
@shared
@click.pass_obj
def import_(settings: Settings, kind: str, files: tuple[str, ...], name: str | None,
            table: str | None, columns: tuple[str, ...], symbol: str, unit: str,
            root: str) -> None:
    """Convert files: whatever `backtest` reads (ITCH, LOBSTER, Binance, Coinbase, Kraken, ours),
    Databento's DBN, or CSV with a header.

    A malformed row ends it, by file and line, and leaves nothing behind.
    """
    from hftpipe.data import convert, tables
    from hftpipe.errors import UsageError
    tables.arrow()
    if kind == "csv":
        if table is None:
            raise UsageError("csv needs --table bars, trades or quotes")
        pairs = [c.partition("=") for c in columns]
        if any(not (a and b and c) for a, b, c in pairs):
            raise UsageError(f"--column must be OURS=THEIRS, was {' '.join(columns)}")
        batches = convert.table(table, {a: c for a, _, c in pairs}, unit, symbol)
    elif table or columns or symbol:
        raise UsageError(f"--table, --column and --symbol are of csv, not of {kind}")
    else:
        batches = convert.dbn if kind == "dbn" else convert.recordings
    paths = [Path(f) for f in files]
    target = Path(root) / _name(name or paths[0].name)
    target.parent.mkdir(parents=True, exist_ok=True)
    bar = _Bar(settings)
    try:
        data = convert.convert(paths, target, batches,
                               {"import": kind, "files": [p.name for p in paths]},
                               lambda rows: bar.say(f"{rows:,} rows"))
    finally:
        bar.close()
    emit(settings, _document(data), [f"{data.rows:,} rows of {data.kind} in {len(data.parts)} "
                                     f"parts, {data.size / 1e6:,.1f} MB   {target}"])


@command.command("ls", epilog="Example: hftpipe data ls --out data -o json")
@_root
@shared
@click.pass_obj
def ls(settings: Settings, root: str) -> None:
    """List the datasets."""
    from hftpipe.data.dataset import find
    found = find(Path(root))
    emit(settings, [_document(data) for data in found], [
        f"{data.path.name:<50} {data.kind:<7} {data.rows:>12,} rows {data.size / 1e6:>9,.1f} MB"
        f"{'' if data.complete else '   not complete'}" for data in found])


@command.command("verify", epilog="Example: hftpipe data verify --out data")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@_root
@shared
@click.pass_obj
def verify(settings: Settings, names: tuple[str, ...], root: str) -> int:
    """Check files against the manifest, and rows for order and doubles; 9 when something is wrong.

    Without names, all datasets.
    """
    from hftpipe.data.dataset import Dataset, find
    from hftpipe.errors import Exit
    found = [Dataset.load(Path(root) / n) for n in names] if names else find(Path(root))
    out: list[dict[str, Any]] = []
    lines = []
    for data in found:
        wrong, notes = data.verify()
        out.append({**_document(data), "wrong": wrong, "notes": notes})
        lines.append(f"{data.path.name}   {data.rows:,} rows   {'WRONG' if wrong else 'ok'}")
        lines += [f"  {text}" for text in [*wrong, *notes]]
    emit(settings, out, lines)
    return int(Exit.MISMATCH if any(d["wrong"] for d in out) else Exit.OK)


def _document(data: Any) -> dict[str, Any]:
    return {"name": data.path.name, "path": str(data.path), "kind": data.kind, "rows": data.rows,
            "parts": len(data.parts), "bytes": data.size, "symbols": data.symbols,
            "complete": data.complete,
            "first": min((p.first for p in data.parts), default=None),
            "last": max((p.last for p in data.parts), default=None)}


def _name(text: str) -> str:
    out = "".join(c if c.isalnum() or c in "-._" else "_" for c in text).lstrip(".")
    return out[:120] or "data"


def _time(option: str, text: str) -> int:
    from hftpipe.alpaca._codec import parse_time
    from hftpipe.errors import UsageError
    try:
        return parse_time(text if "T" in text else f"{text}T00:00:00Z")
    except ValueError:
        raise UsageError(f"{option} must be a date or RFC 3339, was {text!r}") from None


def _strip(share: float, width: int = 24) -> str:
    full = round(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] {share:4.0%}"
