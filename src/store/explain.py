"""One order's whole story out of the event tables, for ``hftpipe why``."""
from __future__ import annotations

from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import dict_row

from hftpipe import schema
from hftpipe.errors import ConfigError
from hftpipe.store import queries

Row = dict[str, Any]
NEAR = 64                       # events before an intent among which its features are stored


def find(c: psycopg.Connection, order: str | None, run: int | None,
         kind: str = "any") -> tuple[int, int]:
    """``(run, order)`` that is meant.

    Parameters
    ----------
    order : str or None
        Client order id, or number in the run; None: the newest.
    run : int or None
        None: the newest run.
    kind : str
        ``"denied"``: the newest that risk refused.

    Raises
    ------
    ConfigError
        When there is none.
    """
    if order is not None and order.startswith("hp-"):
        found = queries.find_order(c, order)
        if found is None:
            raise ConfigError(f"order {order}: no order of that name is stored")
        return found
    if run is None:
        newest = c.execute("SELECT max(run) FROM hftpipe.run").fetchone()
        if newest is None or newest[0] is None:
            raise ConfigError("the database holds no run")
        run = int(newest[0])
    if order is not None:
        try:
            seq = int(order, 0)
        except ValueError:
            raise ConfigError(f"order must be hp-RUN-SEQ or a number, was {order!r}") from None
        if seq >> schema.SEQ_BITS:
            seq &= (1 << schema.SEQ_BITS) - 1
        row = _one(c, "SELECT event FROM hftpipe.intent WHERE run = %s AND stream = %s "
                      "AND seq = %s AND action = 1", run, schema.STREAM.SIGNAL, seq)
        if row is None:
            raise ConfigError(f"order {order}: run {run:x} has no order of that number stored")
    elif kind == "denied":
        row = _one(c, 'SELECT v."order" AS event FROM hftpipe.verdict v WHERE v.run = %s AND '
                      "v.reason <> 0 AND v.action = 1 ORDER BY v.seq DESC LIMIT 1", run)
    else:
        row = _one(c, "SELECT event FROM hftpipe.intent WHERE run = %s AND action = 1 "
                      "ORDER BY seq DESC LIMIT 1", run)
    if row is None:
        raise ConfigError(f"run {run:x} has no {'refused ' if kind == 'denied' else ''}order "
                          "stored")
    return run, int(row["event"])


# Checks that have no "nearly".
MET_OR_NOT = frozenset(
    "halted store_full unknown_instrument breaker paused restricted no_figure old_figure "
    "invalid_order duplicate duplicate_order crosses_zero short_not_allowed overflow correlation "
    "hours wash_trade".split())


def explain(c: psycopg.Connection, run: int, order: int) -> Row:
    """What is stored about an order, JSON-ready; money in 1e-9, times in ns.

    Returns
    -------
    dict
        ``intent``, ``market``, ``book``, ``execution``, ``features``, ``model``, ``verdict``,
        ``checks``, ``outcome``, ``events`` and ``hops``: each stage's word with the time since the
        market event was read.
    """
    seq = schema.split_event(order)[1]
    i = _one(c, "SELECT i.*, s.symbol FROM hftpipe.intent i LEFT JOIN hftpipe.instrument s "
                "ON s.run = i.run AND s.index = i.instrument "
                "WHERE i.run = %s AND i.stream = %s AND i.seq = %s",
             run, schema.STREAM.SIGNAL, seq)
    if i is None:
        raise ConfigError(f"order {order:#x}: run {run:x} has no such order stored")
    start = i["ts_recv"]
    near = (run, schema.STREAM.SIGNAL, max(seq - NEAR, 0), seq, i["cause"])
    feature = _one(c, "SELECT * FROM hftpipe.feature WHERE run = %s AND stream = %s AND seq > %s "
                      "AND seq < %s AND cause = %s ORDER BY seq DESC LIMIT 1", *near)
    signal = _one(c, "SELECT * FROM hftpipe.signal WHERE run = %s AND stream = %s AND seq > %s "
                     "AND seq < %s AND cause = %s AND strategy = %s ORDER BY seq DESC LIMIT 1",
                  *near, i["strategy"])
    stream, number = schema.split_event(i["cause"])
    market = _one(c, "SELECT * FROM hftpipe.market_event WHERE run = %s AND stream = %s "
                     "AND seq = %s", run, stream, number)
    verdict = _one(c, 'SELECT * FROM hftpipe.verdict WHERE run = %s AND "order" = %s '
                      "ORDER BY seq LIMIT 1", run, order)
    checks = _one(c, "SELECT * FROM hftpipe.checks WHERE run = %s AND cause = %s "
                     "ORDER BY seq LIMIT 1", run, order)
    events = _rows(c, 'SELECT * FROM hftpipe.order_event WHERE run = %s AND "order" = %s '
                      "ORDER BY seq", run, order)
    view = _one(c, "SELECT * FROM hftpipe.orders WHERE run = %s AND order_id = %s", run, order)
    fees = _one(c, "SELECT sum(p.fee) AS fees FROM hftpipe.position_event p "
                   "JOIN hftpipe.order_event e ON e.run = p.run AND e.event = p.cause "
                   'WHERE e.run = %s AND e."order" = %s', run, order)
    execution = _one(c, "SELECT * FROM hftpipe.best_execution WHERE run = %s AND order_id = %s",
                     run, order)
    assert view is not None
    out: Row = {
        "run": f"{run:x}", "order": order, "number": seq,
        "client_order_id": view["client_order_id"],
        "intent": {
            "symbol": i["symbol"], "side": schema.SIDE.label(i["side"]),
            "type": schema.ORDER_TYPE.label(i["type"]), "tif": schema.TIF.label(i["tif"]),
            "price_nano": i["price"], "qty_nano": i["qty"], "strategy": i["strategy"],
            "exit": schema.EXIT.label(i["tag"])},
        "market": None if market is None else {
            "event": i["cause"], "seq": number, "kind": schema.MARKET_KIND.label(market["kind"]),
            "side": schema.SIDE.label(market["side"]), "price_nano": market["price"],
            "qty_nano": market["qty"], "ts_venue_ns": market["ts_venue"] or None},
        "book": _book(i),
        "execution": _execution(execution),
        "features": {} if feature is None else {
            name: feature[name] for name in schema.columns(schema.FEATURES)
            if feature[name] == feature[name]},                 # NaN: not warm yet
        "model": None if signal is None else {
            "model": f"{signal['model'] & (1 << 64) - 1:016x}", "p_down": signal["p_down"],
            "p_flat": signal["p_flat"], "p_up": signal["p_up"],
            "decision": schema.SIDE.label(signal["decision"]), "elapsed_ns": signal["elapsed"]},
        "verdict": None if verdict is None else _verdict(verdict),
        "checks": [] if checks is None else [
            {"check": name, "used_permille": checks[name],
             "margin_permille": None if name in MET_OR_NOT else 1000 - checks[name]}
            for name in schema.columns(schema.CHECKS) if checks[name]],
        "outcome": {"status": view["status"], "reason": view["reason"],
                    "filled_nano": int(view["filled_quantity"] * 10**9),
                    "average": None if view["filled_avg_price"] is None
                    else f"{view['filled_avg_price'].normalize():f}"},
        "fees_nano": None if fees is None or fees["fees"] is None else int(fees["fees"]),
        "events": [{"kind": schema.ORDER_EVENT_KIND.label(e["kind"]), "ns": e["ts"] - start,
                    "state": schema.ORDER_STATE.label(e["state"]),
                    "reason": schema.REASON.label(e["reason"]), "price_nano": e["price"],
                    "qty_nano": e["qty"], "cum_qty_nano": e["cum_qty"]} for e in events],
    }
    out["hops"] = _hops(out, start, i, market, verdict, events)
    return out


def _verdict(v: Row) -> Row:
    reason = schema.REASON.label(v["reason"])
    meaning = next(d for _, value, d in schema.REASON.members if value == v["reason"])
    return {"reason": reason, "meaning": meaning, "limit": v["limit"], "value": v["value"],
            "reference_nano": v["reference"], "halt_epoch": v["halt_epoch"]}


def _book(i: Row) -> Row:
    """The quote that an order was decided on; {} when there was none."""
    if not i["quoted"]:
        return {}
    return {f"{name}_nano": i[name] for name in ("bid", "ask", "bid_qty", "ask_qty")}


def _execution(e: Row | None) -> Row | None:
    """How good it was; prices as text, exact."""
    if e is None:
        return None
    out: Row = {"quote_age_ns": e["quote_age_ns"], "touch_had_it": e["touch_had_it"],
                "sent_to_fill_ns": e["sent_to_fill_ns"]}
    for name in ("bid", "ask", "mid", "expected_price", "realised_price", "slippage_bps",
                 "to_mid_bps"):
        out[name] = None if e[name] is None else f"{e[name].normalize():f}"
    return out


def _plain(nano: int) -> str:
    return f"{(Decimal(nano).scaleb(-9)).normalize():f}"


def _hops(t: Row, start: int, i: Row, market: Row | None, verdict: Row | None,
          events: list[Row]) -> list[Row]:
    """Each stage's word about it and when, ns after the market event was read."""
    def hop(stage: str, ts: int | None, what: str) -> Row:
        return {"stage": stage, "ns": None if not ts else ts - start, "what": what}

    out = []
    if market is not None:
        m = t["market"]
        late = "" if not m["ts_venue_ns"] else "  (stamped by the venue)"
        out.append(hop("feed", market["ts"], f"{m['kind']} {m['side']} {_plain(m['price_nano'])} x "
                                             f"{_plain(m['qty_nano'])}, event {m['seq']}{late}"))
    b = t["book"]
    out.append(hop("book", i["aux"], f"bid {_plain(b['bid_nano'])} x {_plain(b['bid_qty_nano'])}  "
                                     f"ask {_plain(b['ask_nano'])} x {_plain(b['ask_qty_nano'])}"
                   if b else "its depth is not stored, only what changed it"))
    out.append(hop("signal", i["ts"], f"strategy {i['strategy']} wants it"))
    if verdict is not None:
        v = t["verdict"]
        out.append(hop("risk", verdict["ts"],
                       ("approved" if v["reason"] == "none" else f"refused: {v['reason']}")
                       + (f", reference {_plain(v['reference_nano'])}" if v["reference_nano"]
                          else "")))
    for e, row in zip(t["events"], events, strict=True):
        fill = e["kind"] in ("fill", "partial_fill")
        out.append(hop("gateway", row["ts"], e["kind"].replace("_", " ") + (
            f" {_plain(e['qty_nano'])} at {_plain(e['price_nano'])}" if fill else "") + (
            f": {e['reason']}" if e["reason"] != "none" else "")))
    return out


def _rows(c: psycopg.Connection, query: str, *values: object) -> list[Row]:
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), values).fetchall()


def _one(c: psycopg.Connection, query: str, *values: object) -> Row | None:
    rows = _rows(c, query, *values)
    return rows[0] if rows else None
