"""What the rest of the program asks the database: counts, closing figures, one order's story."""
from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import dict_row

from hftpipe import schema
from hftpipe.store.layout import signed, table

Row = dict[str, Any]
PATIENCE = 60                   # s that a question of the analyst may take


def rows_stored(c: psycopg.Connection, run: int) -> dict[int, int]:
    """Rows of each stream of *run*, counted in the event tables."""
    union = " UNION ALL ".join(f"SELECT stream FROM {table(r)} WHERE run = %(run)s"
                               for r in schema.BODIES.values())
    return dict(c.execute(f"SELECT stream, count(*) FROM ({union}) e GROUP BY stream "
                          "ORDER BY stream".encode(), {"run": run}).fetchall())


def marks(c: psycopg.Connection, run: int) -> dict[int, tuple[int, int]]:
    """``(seq, checksum sum)`` of each stream of *run*."""
    return {stream: (seq, content & (1 << 64) - 1) for stream, seq, content in c.execute(
        "SELECT stream, seq, checksum FROM hftpipe.mark WHERE run = %s ORDER BY stream", (run,))}


def runs(c: psycopg.Connection, limit: int = 20) -> list[Row]:
    """The newest runs: id, start, end, profile, events stored."""
    return _rows(c, "SELECT r.run, r.started, r.ended, r.profile, r.version, r.host, "
                    "coalesce(sum(m.seq), 0)::bigint AS events FROM hftpipe.run r "
                    "LEFT JOIN hftpipe.mark m USING (run) GROUP BY r.run "
                    "ORDER BY r.run DESC LIMIT %s", limit)


def latency(c: psycopg.Connection, run: int) -> dict[str, Row]:
    """``hop -> {count, min, p50, p99, p999, max}`` in ns over the orders of *run*."""
    return {row.pop("hop"): row for row in _rows(
        c, "SELECT hop, count, min, p50, p99, p999, max FROM hftpipe.latency_by_hop "
           "WHERE run = %s", run)}


def summary(c: psycopg.Connection, run: int) -> Row:
    """Closing figures of *run*: orders by status, refusals by reason, fills and P&L."""
    statuses = _rows(c, "SELECT status, count(*) AS count FROM hftpipe.orders WHERE run = %s "
                        "GROUP BY status ORDER BY status", run)
    refusals = _rows(c, "SELECT reason, count(*) AS count FROM hftpipe.risk_events "
                        "WHERE run = %s AND event_type = 'order_denied' "
                        "GROUP BY reason ORDER BY count DESC, reason", run)
    exits = _rows(c, "SELECT exit, count(*) AS count FROM hftpipe.orders WHERE run = %s "
                     "AND exit IS NOT NULL AND filled_quantity > 0 GROUP BY exit ORDER BY count "
                     "DESC, exit", run)
    fills = c.execute("SELECT count(*) FROM hftpipe.trades WHERE run = %s", (run,)).fetchone()
    pnl = c.execute("SELECT coalesce(sum(realised_pnl), 0), coalesce(sum(unrealised_pnl), 0), "
                    "coalesce(sum(fees), 0) FROM hftpipe.positions WHERE run = %s",
                    (run,)).fetchone()
    assert fills is not None and pnl is not None
    realised, unrealised, fees = (Decimal(value) for value in pnl)
    return {"orders": sum(row["count"] for row in statuses),
            "orders_by_status": {row["status"]: row["count"] for row in statuses},
            "refusals": {row["reason"]: row["count"] for row in refusals},
            "exits": {row["exit"]: row["count"] for row in exits},
            "fills": fills[0], "realised": realised, "unrealised": unrealised, "fees": fees,
            "pnl": realised + unrealised - fees}


def story(c: psycopg.Connection, run: int, order_id: int) -> list[Row]:
    """Everything that happened to one order, oldest first."""
    return _rows(c, "SELECT * FROM hftpipe.order_audit_trail WHERE run = %s AND order_id = %s "
                    "ORDER BY ts, stream, seq", run, order_id)


def find_order(c: psycopg.Connection, client_order_id: str) -> tuple[int, int] | None:
    """``(run, order)`` that a client order id names, or ``None`` when it is not ours.

    An id carries its run and seq, so nothing is searched.
    """
    parts = client_order_id.split("-")
    try:
        prefix, run, seq = parts[0], int(parts[1], 16), int(parts[2], 16)
    except (IndexError, ValueError):
        return None
    order = schema.event_id(schema.STREAM.SIGNAL, seq)
    row = c.execute("SELECT 1 FROM hftpipe.intent WHERE run = %s AND stream = %s AND seq = %s",
                    (run, schema.STREAM.SIGNAL, seq)).fetchone()
    return (run, order) if prefix == "hp" and len(parts) == 3 and row is not None else None


def pnl_by_day(conninfo: str, run: int, account: str | None, before: dt.date,
               ) -> dict[dt.date, int]:
    """P&L of each New York day before *before* within a year, nanocash.

    Of the account whose id is *account*, a UUID; of *run* alone when it is None.  A run goes on
    with the day of the one before, so each day's last run has all of it.
    """
    high, low = (signed(n) for n in divmod(uuid.UUID(account).int if account else 0, 1 << 64))
    with psycopg.connect(conninfo, options=f"-c statement_timeout={PATIENCE}s") as c:
        rows = c.execute(
            "SELECT DISTINCT ON (d.trading_date) d.trading_date, d.total "
            "FROM hftpipe.daily_pnl d WHERE (d.run = %(run)s OR d.run IN ("
            "  SELECT a.run FROM hftpipe.account_event a WHERE a.account = %(high)s "
            "  AND a.account_low = %(low)s AND a.kind = %(begin)s AND %(high)s <> 0)) "
            "AND d.trading_date < %(before)s AND d.trading_date >= %(before)s - 366 "
            "ORDER BY d.trading_date, d.run DESC",
            {"run": run, "high": high, "low": low, "before": before,
             "begin": schema.ACCOUNT_KIND.BEGIN}).fetchall()
    return {day: int(total * 10**9) for day, total in rows}


def gate_state(conninfo: str, run: int, profile: str, *, day: bool) -> dict[str, Any]:
    """What runs of *profile* before *run* left of the gate, as ``Risk.restore`` takes it.

    The breaker as its last change left it, losing trades in a row since a winning one or since it
    was closed, and strategies disabled since a person enabled them.
    With *day* also what counts per trading day: orders, and those of each strategy; the day's P&L
    is the ledger's to go on with.
    Everything is read from what the gate itself recorded, after the rings of a killed run were
    stored.
    """
    kind, closed = schema.RISK_EVENT_KIND, schema.BREAKER.CLOSED
    want = {"run": run, "profile": profile, "stream": schema.STREAM.RISK, "breaker": kind.BREAKER,
            "latched": kind.LATCHED, "rearm": kind.REARM, "day": kind.DAY,
            "new": schema.ACTION.NEW}
    mine = ("JOIN hftpipe.run r USING (run) WHERE r.profile = %(profile)s AND run < %(run)s "
            "AND stream = %(stream)s")
    with psycopg.connect(conninfo, options=f"-c statement_timeout={PATIENCE}s") as c:
        breaker = c.execute(
            f"SELECT value, detail FROM hftpipe.risk_event {mine} AND kind = %(breaker)s "
            "ORDER BY run DESC, seq DESC LIMIT 1", want).fetchone() or (closed, 0)
        latched = [int(s) for s, last in c.execute(
            "SELECT detail, (array_agg(kind ORDER BY run DESC, seq DESC))[1] "
            f"FROM hftpipe.risk_event {mine} AND kind IN (%(latched)s, %(rearm)s) GROUP BY 1",
            want) if last == kind.LATCHED]
        out: dict[str, Any] = {"state": breaker[0], "cause": breaker[1],
                               "losses": _losing_trades(c, run, profile), "latched": latched}
        began = c.execute(
            "SELECT value, run, CASE \"limit\" WHEN 0 THEN 0 ELSE seq END "
            f"FROM hftpipe.risk_event {mine} AND kind = %(day)s "
            "ORDER BY run DESC, seq DESC LIMIT 1", want).fetchone() if day else None
        if began is not None:
            want |= {"from_run": began[1], "from_seq": began[2]}
            executions: dict[int, int] = dict(c.execute(
                "SELECT i.strategy, count(*) FROM hftpipe.verdict v "
                "JOIN hftpipe.run r USING (run) "
                'JOIN hftpipe.intent i ON i.run = v.run AND i.event = v."order" '
                "WHERE r.profile = %(profile)s AND v.run < %(run)s AND v.reason = 0 "
                "AND v.action = %(new)s AND (v.run, v.seq) > (%(from_run)s, %(from_seq)s) "
                "GROUP BY 1", want).fetchall())
            out |= {"day": began[0], "orders": sum(executions.values()), "executions": executions}
    return out


def _losing_trades(c: psycopg.Connection, before: int, profile: str) -> int:
    """Losing trades in a row at the end of the runs of *profile* before run *before*.

    As the gate counts them: a trade goes from flat to flat, a winning one or closing the breaker
    begins anew.  Of one that a restart cut in two, what it earned after it counts.
    """
    lost = 0
    runs = c.execute("SELECT run FROM hftpipe.run WHERE profile = %s AND run < %s "
                     "ORDER BY run DESC", (profile, before)).fetchall()
    for (run,) in runs:
        (closed,) = c.execute(
            "SELECT max(ts) FROM (SELECT ts FROM hftpipe.risk_event WHERE run = %(run)s "
            "AND kind = %(breaker)s AND value = %(closed)s UNION ALL "
            "SELECT ts FROM hftpipe.figure WHERE run = %(run)s AND kind = %(by_hand)s "
            "AND value = %(closed)s) t",
            {"run": run, "breaker": schema.RISK_EVENT_KIND.BREAKER,
             "by_hand": schema.FIGURE_KIND.BREAKER,
             "closed": schema.BREAKER.CLOSED}).fetchone() or (None,)
        trades = c.execute(
            "SELECT earned FROM (SELECT p.ts, p.seq, p.realised - coalesce(lag(p.realised) "
            "OVER (PARTITION BY p.instrument ORDER BY p.seq), o.realised, 0) AS earned "
            "FROM hftpipe.position_event p LEFT JOIN hftpipe.opening o ON o.run = p.run "
            "AND o.stream = p.stream AND o.instrument = p.instrument "
            "WHERE p.run = %s AND p.stream = %s AND p.qty = 0) t WHERE earned <> 0 AND ts > %s "
            "ORDER BY seq DESC", (run, schema.STREAM.LEDGER, closed or 0)).fetchall()
        for (earned,) in trades:
            if earned > 0:
                return lost
            lost += 1
        if closed is not None:
            break
    return lost


def daily_bars(conninfo: str, run: int, symbols: list[str], since: dt.date,
               ) -> dict[dt.date, dict[int, tuple[float, float, float, float]]]:
    """Close, high, low and volume of each New York day that other runs than *run* have stored
    trades of, by index into *symbols*.

    Trades that were taken back do not count, corrected ones do; what was asked for after a gap is
    never the close, for it was stored later than it happened.
    """
    out: dict[dt.date, dict[int, tuple[float, float, float, float]]] = {}
    with psycopg.connect(conninfo, options=f"-c statement_timeout={PATIENCE}s") as c:
        for symbol, day, *bar in c.execute(
                "SELECT s.symbol, hftpipe.trading_date(m.ts + r.utc_offset) AS day, "
                "(array_agg(m.price ORDER BY m.flags & %(late)s, m.run DESC, m.seq DESC))[1], "
                "max(m.price), "
                "min(m.price), sum(m.qty)::bigint "
                "FROM hftpipe.market_event m JOIN hftpipe.run r USING (run) "
                "JOIN hftpipe.instrument s ON s.run = m.run AND s.index = m.instrument "
                "WHERE m.kind IN (%(trade)s, %(fix)s) AND m.run <> %(run)s "
                "AND r.started >= %(since)s AND NOT EXISTS (SELECT FROM hftpipe.market_event x "
                "WHERE x.run = m.run AND x.kind = %(bust)s AND x.instrument = m.instrument "
                "AND x.ref = m.ref AND x.price = m.price AND x.qty = m.qty AND x.seq > m.seq) "
                "AND s.symbol = ANY(%(symbols)s) AND m.flags & %(silent)s = 0 GROUP BY 1, 2",
                {"trade": schema.MARKET_KIND.TRADE, "fix": schema.MARKET_KIND.FIX,
                 "bust": schema.MARKET_KIND.BUST, "late": schema.MARKET_FLAG.BACKFILLED,
                 "run": run, "since": since,
                 "symbols": symbols, "silent": schema.MARKET_FLAG.UNPRINTABLE}):
            out.setdefault(day, {})[symbols.index(symbol)] = tuple(v / 1e9 for v in bar)
    return out


def _rows(c: psycopg.Connection, query: str, *values: object) -> list[Row]:
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query.encode(), values).fetchall()
