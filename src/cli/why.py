"""``hftpipe why``: everything that is stored about one order, or about one that was refused."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from hftpipe.cli._common import Settings, columns, emit, opened, shared, span


@click.command(epilog="Example: hftpipe why hp-18e9c2a7f3b1d00-2f, or hftpipe why --last-denied")
@click.argument("order", required=False)
@click.option("--last", is_flag=True, help="The newest order of the run.")
@click.option("--last-denied", is_flag=True, help="The newest one that risk refused.")
@click.option("--run", metavar="RUN", help="Of this run, as status prints it; default the newest.")
@click.option("--features", "whole", is_flag=True, help="Print every feature.")
@click.option("--url", metavar="URL", help='Instead of store.url: "embedded" or "postgresql://...".')
@shared
@click.pass_obj
def command(settings: Settings, order: str | None, last: bool, last_denied: bool, run: str | None,
            whole: bool, url: str | None) -> None:
    """Say why an order was sent or refused: the market event, the book, the features, what the
    model said, the checks, and when each stage passed it on.

    ORDER is the venue's client order id (hp-RUN-SEQ), or the order's number in the run.
    Everything is read from PostgreSQL; the newest events may be a moment behind.
    """
    if [order is not None, last, last_denied].count(True) != 1:
        raise click.UsageError("why wants one of ORDER, --last and --last-denied")
    import psycopg

    from hftpipe.errors import ConfigError
    from hftpipe.store import explain
    from hftpipe.store import migrate as m
    with opened(settings, url) as conninfo, m.connect(conninfo) as c:
        try:
            found = explain.find(c, order, _run(run), "denied" if last_denied else "any")
            told = explain.explain(c, *found)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn,
                psycopg.errors.InvalidSchemaName) as e:
            lacking = str(e).splitlines()[0]
            raise ConfigError(f"the database has no tables of this version ({lacking}); "
                              "`hftpipe db migrate` makes them") from None
    emit(settings, told, _lines(told, whole))


def _run(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(text, 16)
    except ValueError:
        raise click.UsageError(f"--run must be hexadecimal digits, was {text!r}") from None


def _number(nano: int | None) -> str:
    """A nano integer as a plain decimal."""
    if nano is None:
        return "-"
    sign, whole = "-" * (nano < 0), abs(nano)
    part = f"{whole % 10**9:09d}".rstrip("0")
    return f"{sign}{whole // 10**9}" + (f".{part}" if part else "")


def _execution(e: dict[str, Any]) -> str:
    """The quote it was decided on, and how the price compares with what was to be expected."""
    said = [f"bid {e['bid'] or '-'} ask {e['ask'] or '-'}"]
    if e["quote_age_ns"] is not None:
        said.append(f"{span(e['quote_age_ns'])} old when it left")
    if e["expected_price"]:
        said.append(f"expected {e['expected_price']}"
                    + ("" if e["touch_had_it"] else ", for less than was wanted"))
    if e["slippage_bps"]:
        bps = float(e["slippage_bps"])
        said.append(f"got {e['realised_price']}" + (
            f": {abs(bps):.2f} bps {'worse' if bps > 0 else 'better'}" if bps else ""))
    return "   ".join(said)


def _lines(t: dict[str, Any], whole: bool) -> Iterator[str]:
    i, end = t["intent"], t["outcome"]
    price = "" if not i["price_nano"] else " at " + _number(i["price_nano"])
    yield (f"order  {i['side'].upper()} {_number(i['qty_nano'])} {i['symbol']}{price} "
           f"{i['type']} {i['tif']}   {end['status'].upper()}"
           + (f" {_number(end['filled_nano'])} at {end['average']}" if end["filled_nano"] else "")
           + f"   {t['client_order_id']}")
    if i["exit"] != "none":
        yield f"       an exit: {i['exit'].replace('_', ' ')}"
    rows = []
    for hop in t["hops"]:
        rows.append((f"+{span(hop['ns'])}" if hop["ns"] is not None else "", hop["stage"],
                     hop["what"]))
    yield from (" " + line for line in columns(rows, ("after", "stage", ""))[1:])
    if t["execution"]:
        yield "quote     " + _execution(t["execution"])
    if t["features"]:
        names = sorted(t["features"], key=lambda n: -abs(t["features"][n] or 0))
        shown = sorted(t["features"]) if whole else names[:6]
        text = "  ".join(f"{n}={t['features'][n]:.4g}" for n in shown)
        rest = "" if whole or len(names) <= 6 else f"  ... of {len(names)}; --features prints all"
        yield f"features  {text}{rest}"
    if t["model"]:
        s = t["model"]
        yield (f"model     {s['model']}  down {s['p_down']:.3f}  flat {s['p_flat']:.3f}  "
               f"up {s['p_up']:.3f}  decided {s['decision']}  took {span(s['elapsed_ns'])}")
    verdict = t["verdict"]
    if verdict is None:
        yield "risk      no verdict is stored yet"
    elif verdict["reason"] != "none":
        yield (f"risk      REFUSED: {verdict['reason']} (limit {verdict['limit']}, found "
               f"{verdict['value']}): {verdict['meaning']}")
    else:
        yield "risk      approved"
    if t["checks"]:
        yield f"checks    {len(t['checks'])} looked at, nearest to its limit first"
        rows = [(f"{k['used_permille'] / 10:.1f} %", f"{k['margin_permille'] / 10:+.1f} %",
                 k["check"])
                for k in sorted(t["checks"], key=lambda k: -k["used_permille"])
                if k["margin_permille"] is not None]
        yield from ("  " + line for line in columns(rows, ("used", "margin", "of the limit")))
        flags = [k for k in t["checks"] if k["margin_permille"] is None]
        yield "  met       " + ", ".join(
            k["check"] for k in flags if k["used_permille"] <= 1000)
        yield from (f"  NOT MET   {k['check']}" for k in flags if k["used_permille"] > 1000)
    elif verdict is not None:
        yield "checks    how near each was to its limit is not recorded for this order"
    if t["fees_nano"] is not None:
        yield f"fees      {_number(t['fees_nano'])}"


