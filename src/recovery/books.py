"""The books of an account as the database has them, exact to 1e-18."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy
import psycopg
from psycopg.rows import dict_row

from hftpipe import _fault, schema
from hftpipe._ledger import Ledger
from hftpipe.alpaca.session import words
from hftpipe.store.layout import signed

NANO = 10**9
KIND, STATE, EXIT = schema.ORDER_EVENT_KIND, schema.ORDER_STATE, schema.EXIT
FILLS = (KIND.PARTIAL_FILL, KIND.FILL)
UNTIL_FLAT = tuple(value for _, value, _ in EXIT.members
                   if value not in (EXIT.NONE, EXIT.FIRST, EXIT.TARGET))
NOWHERE = 0xFFFF                # instrument of a RESOLVED record that this run does not trade
PATIENCE = 60                   # s that the database may take to answer


@dataclass
class Row:
    """One instrument.

    Attributes
    ----------
    qty : int, nanoqty
    cost, realised : int, 1e-18 of the quote currency
    fees : int, nanocash
    mark : int, nanoprice
        Price it was valued at last; 0 = none.
    fills : int
    since : int, UTC ns
        The position is held since; 0 when flat.
    best : int, nanoprice
        Best mark seen since then; 0 = none.
    first : bool
        Its first target was taken.
    closing : int
        EXIT_* that goes on until it is flat; 0 = none.
    """

    qty: int = 0
    cost: int = 0
    realised: int = 0
    fees: int = 0
    mark: int = 0
    fills: int = 0
    since: int = 0
    best: int = 0
    first: bool = False
    closing: int = 0

    def move(self, qty: int, at: int) -> None:
        """Note that the signed *qty* was traded at *at*, UTC ns: whether a new position began."""
        before, self.qty = self.qty, self.qty + qty
        if self.qty == 0 or before == 0 or (before < 0) != (self.qty < 0):
            self.since, self.best = at if self.qty else 0, 0
            self.first, self.closing = False, 0


@dataclass(frozen=True)
class Pending:
    """An order without a last word.

    Attributes
    ----------
    run, order : int
        Who sent it, and the identity of its intent.
    symbol : str
    side, type : int
    price, qty, cum : int
        Limit price, quantity and what we know was filled, in 1e-9.
    at : int, UTC ns
        When it was wanted.
    fills : tuple of (qty, price)
        Executions that are in the books.
    """

    run: int
    order: int
    symbol: str
    side: int
    type: int
    price: int
    qty: int
    cum: int
    at: int
    fills: tuple[tuple[int, int], ...] = ()


@dataclass
class Books:
    """What an account has, and what its last run left open.

    Attributes
    ----------
    account : str
        The venue's id of it.
    from_run : int
        The run whose books these are; 0 = the account has none yet.
    opening : int, nanocash
        Equity that they were opened with.
    peak : int, nanocash
    day : int
        Trading day, days since 1970; 0 = not known.
    profit_then, realised_then : int, 1e-18
        When the day began.
    fees_then : int, nanocash
    elsewhere, elsewhere_fees : int
        Realised (1e-18) and charged (nanocash) on what is not traded any more.
    rows : dict of str to Row
        By symbol.
    pending : list of Pending
    resolved : list of dict
        Fields of RESOLVED records, with ``symbol`` in place of the instrument.
    """

    account: str
    from_run: int = 0
    opening: int = 0
    peak: int = 0
    day: int = 0
    profit_then: int = 0
    realised_then: int = 0
    fees_then: int = 0
    elsewhere: int = 0
    elsewhere_fees: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    pending: list[Pending] = field(default_factory=list)
    resolved: list[dict[str, Any]] = field(default_factory=list)

    # ---------------------------------------------------------------- executions

    def ledger(self, symbols: Sequence[str], fees: Mapping[str, int]) -> Ledger:
        """A ledger with these books, of *symbols* alone."""
        out = Ledger(max(len(symbols), 1), self.opening, fees)
        for i, symbol in enumerate(symbols):
            row = self.rows.get(symbol)
            if row is not None:
                out.restore(i, qty=row.qty, cost=row.cost, realised=row.realised, fees=row.fees,
                            mark=row.mark, fills=row.fills)
        out.restore_account(
            peak=self.peak, day=self.day, profit_then=self.profit_then,
            realised_then=self.realised_then, fees_then=self.fees_then, elsewhere=self.elsewhere,
            elsewhere_fees=self.elsewhere_fees)
        return out

    def book(self, executions: Sequence[Mapping[str, Any]], fees: Mapping[str, int]) -> None:
        """Book executions, oldest first.

        Parameters
        ----------
        executions
            Mappings with symbol, side, qty, price, cum_qty, at (UTC ns) and fee (nanocash, or
            None: then *fees* says).
        fees : mapping
            As the ledger wants them.
        """
        symbols = sorted({str(e["symbol"]) for e in executions})
        index = {symbol: i for i, symbol in enumerate(symbols)}
        ledger = self.ledger(symbols, fees)
        event = numpy.zeros(1, schema.dtype(schema.ORDER_EVENT))
        for e in executions:
            symbol, side, qty = str(e["symbol"]), int(e["side"]), int(e["qty"])
            if e["fee"] is None:
                event["kind"], event["side"], event["instrument"] = KIND.FILL, side, index[symbol]
                event["price"], event["qty"], event["cum_qty"] = e["price"], qty, e["cum_qty"]
                ledger.order_event(event)
            else:
                ledger.trade(index[symbol], side * qty, int(e["price"]), int(e["fee"]))
            self.rows.setdefault(symbol, Row()).move(side * qty, int(e["at"]))
        for symbol, i in index.items():
            found, row = ledger.exact(i), self.rows[symbol]
            row.qty, row.cost, row.realised = found["qty"], found["cost"], found["realised"]
            row.fees, row.fills = found["fees"] // NANO, found["fills"]
            row.mark = row.mark or found["mark"]

    # ---------------------------------------------------------------- handing on

    def drop(self, symbols: Sequence[str]) -> None:
        """Forget positions in what is not in *symbols*; what was realised on it stays."""
        for symbol in set(self.rows) - set(symbols):
            self.rows[symbol].qty = self.rows[symbol].cost = 0

    def keep(self, symbols: Sequence[str]) -> None:
        """Have rows of *symbols* only: what was earned on others counts for the account.

        Raises
        ------
        ValueError
            Naming a position in something else.
        """
        for symbol in sorted(set(self.rows) - set(symbols)):
            row = self.rows[symbol]
            if row.qty:
                raise ValueError(f"the books hold {row.qty / NANO:.9g} {symbol}, which this run "
                                 "does not trade")
            self.elsewhere += row.realised
            self.elsewhere_fees += row.fees
            del self.rows[symbol]

    def dump(self) -> dict[str, Any]:
        """For JSON; :meth:`parse` takes it."""
        return asdict(self)

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> Books:
        """What :meth:`dump` gave, also by way of JSON."""
        out = cls(**{**found, "rows": {k: Row(**v) for k, v in found["rows"].items()},
                     "pending": [Pending(**{**p, "fills": tuple(map(tuple, p["fills"]))})
                                 for p in found["pending"]]})
        return out

    def holdings(self, symbols: Sequence[str], utc_offset: int) -> dict[int, dict[str, Any]]:
        """What strategies are told of, by instrument; *utc_offset* is UTC less monotonic ns."""
        return {i: {"qty": row.qty, "cost": row.cost, "fills": row.fills,
                    "since": row.since - utc_offset, "best": row.best, "first": row.first,
                    "closing": row.closing}
                for i, symbol in enumerate(symbols)
                if (row := self.rows.get(symbol)) is not None and row.qty}

    def records(self, symbols: Sequence[str]) -> tuple[Any, Any, Any]:
        """ACCOUNT (one), OPENING and RESOLVED records of a run that trades *symbols*."""
        index = {symbol: i for i, symbol in enumerate(symbols)}
        account = numpy.zeros(1, schema.dtype(schema.ACCOUNT))
        account["account"], account["account_low"] = words(self.account)
        for name in ("from_run", "opening", "peak", "day", "fees_then", "elsewhere_fees"):
            account[name] = getattr(self, name)
        for name, rest in (("profit_then", "profit_rest"), ("realised_then", "realised_rest"),
                           ("elsewhere", "elsewhere_rest")):
            account[name], account[rest] = divmod(getattr(self, name), NANO)
        account["resolved"] = len({(r["of_run"], r["order"]) for r in self.resolved})
        account["recovered"] = sum(r["kind"] in FILLS for r in self.resolved)
        held = [(index[s], row) for s, row in self.rows.items() if row.fills or row.qty]
        openings = numpy.zeros(len(held), schema.dtype(schema.OPENING))
        for record, (i, row) in zip(openings, sorted(held, key=lambda x: x[0]), strict=True):
            record["instrument"] = i
            for name in ("qty", "fees", "mark", "fills", "since", "best", "first", "closing"):
                record[name] = getattr(row, name)
            for name in ("cost", "realised"):
                record[name], record[f"{name}_rest"] = divmod(getattr(row, name), NANO)
        resolved = numpy.zeros(len(self.resolved), schema.dtype(schema.RESOLVED))
        for record, found in zip(resolved, self.resolved, strict=True):
            record["instrument"] = index.get(found["symbol"], NOWHERE)
            for name, value in found.items():
                if name != "symbol":
                    record[name] = value
        return account[0], openings, resolved


# ---------------------------------------------------------------- from the database

def load(conninfo: str, account: str, before: int, equity: int,
         fees: Mapping[str, int]) -> Books:
    """The books of *account* after every run before run *before*.

    Parameters
    ----------
    conninfo : str
        Of a database that has everything of those runs.
    account : str
        The venue's id of it, a UUID.
    before : int
    equity : int, nanocash
        What a new account begins with (``account.equity``).  Books that were opened with another
        one are moved by the difference, their peak too.
    fees : mapping
        The schedule, for executions that no ledger has booked.

    Raises
    ------
    psycopg.Error
    ValueError
        If *account* is no UUID.
    """
    high, low = words(account)
    with psycopg.connect(conninfo, options=f"-c statement_timeout={PATIENCE}s",
                         row_factory=dict_row) as c:
        began = c.execute(
            "SELECT run, stream, seq FROM hftpipe.account_event WHERE account = %s "
            "AND account_low = %s AND kind = %s AND run < %s ORDER BY run DESC LIMIT 1",
            (signed(high), signed(low), schema.ACCOUNT_KIND.BEGIN, before)).fetchone()
        if began is None:
            return Books(account, opening=equity, peak=equity)
        want = {"run": began["run"], "stream": began["stream"], "seq": began["seq"],
                "fills": list(FILLS)}
        out = _begun(c, account, want)
        executions = c.execute(
            'SELECT s.symbol, e.side, e.qty, e.price, e.cum_qty, e."order", '
            "e.ts + r.utc_offset AS at, (SELECT p.fee FROM hftpipe.position_event p "
            "  WHERE p.run = e.run AND p.cause = e.event ORDER BY p.seq LIMIT 1) AS fee "
            "FROM hftpipe.order_event e JOIN hftpipe.run r USING (run) "
            "JOIN hftpipe.instrument s ON s.run = e.run AND s.index = e.instrument "
            "WHERE e.run = %(run)s AND e.kind = ANY(%(fills)s) ORDER BY e.seq", want).fetchall()
        _marks(c, out, want)
        out.book(executions, fees)
        _stops(c, out, want)
        out.pending = _pending(c, want)
        if _fault.bug("books.no_realised"):
            for row in out.rows.values():
                row.realised = 0
    moved = equity - out.opening
    out.opening, out.peak = equity, out.peak + moved
    return out


def _begun(c: psycopg.Connection[Any], account: str, want: Mapping[str, Any]) -> Books:
    """The books as the run *want* names began, with the trading day that it was in last."""
    row = c.execute("SELECT * FROM hftpipe.account_event WHERE run = %(run)s "
                    "ORDER BY seq DESC LIMIT 1", want).fetchone()
    assert row is not None
    exact = {name: row[name] * NANO + row[rest] for name, rest in (
        ("profit_then", "profit_rest"), ("realised_then", "realised_rest"),
        ("elsewhere", "elsewhere_rest"))}
    out = Books(account, want["run"], **{name: row[name] for name in (
        "opening", "peak", "day", "fees_then", "elsewhere_fees")}, **exact)
    for row in c.execute(
            "SELECT s.symbol, o.* FROM hftpipe.opening o "
            "JOIN hftpipe.instrument s ON s.run = o.run AND s.index = o.instrument "
            "WHERE o.run = %(run)s AND o.stream = %(stream)s AND o.seq < %(seq)s", want):
        out.rows[row["symbol"]] = Row(
            **{name: row[name] for name in ("qty", "fees", "mark", "fills", "since", "best",
                                            "closing")},
            first=bool(row["first"]),
            **{name: row[name] * NANO + row[f"{name}_rest"] for name in ("cost", "realised")})
    return out


def _marks(c: psycopg.Connection[Any], out: Books, want: Mapping[str, Any]) -> None:
    """The last mark of each instrument, and the highest equity."""
    for row in c.execute(
            "SELECT s.symbol, p.mark FROM hftpipe.instrument s CROSS JOIN LATERAL ("
            "  SELECT mark FROM hftpipe.position_event p WHERE p.run = s.run "
            "  AND p.instrument = s.index ORDER BY p.seq DESC LIMIT 1) p "
            "WHERE s.run = %(run)s AND p.mark > 0", want):
        out.rows.setdefault(row["symbol"], Row()).mark = row["mark"]
    row = c.execute("SELECT max(peak) AS peak FROM hftpipe.position_event WHERE run = %(run)s",
                    want).fetchone()
    if row is not None and row["peak"] is not None:
        out.peak = max(out.peak, row["peak"])


def _stops(c: psycopg.Connection[Any], out: Books, want: Mapping[str, Any]) -> None:
    """What the exits knew of each position: best mark, first target, what was closing it."""
    for symbol, row in out.rows.items():
        if not row.qty:
            continue
        more = {**want, "symbol": symbol, "since": row.since, "first": EXIT.FIRST,
                "closing": list(UNTIL_FLAT)}
        seen = c.execute(
            "SELECT max(p.mark) AS high, min(p.mark) AS low FROM hftpipe.position_event p "
            "JOIN hftpipe.run r USING (run) JOIN hftpipe.instrument s ON s.run = p.run "
            "AND s.index = p.instrument WHERE p.run = %(run)s AND s.symbol = %(symbol)s "
            "AND p.mark > 0 AND p.ts + r.utc_offset >= %(since)s", more).fetchone()
        marks = [m for m in (row.best, seen and seen["high" if row.qty > 0 else "low"]) if m]
        row.best = (max if row.qty > 0 else min)(marks, default=0)
        tags = c.execute(
            "SELECT i.tag, i.seq, coalesce(bool_or(e.kind = ANY(%(fills)s)), false) AS filled "
            "FROM hftpipe.intent i JOIN hftpipe.run r USING (run) "
            "JOIN hftpipe.instrument s ON s.run = i.run AND s.index = i.instrument "
            'LEFT JOIN hftpipe.order_event e ON e.run = i.run AND e."order" = i.event '
            "WHERE i.run = %(run)s AND s.symbol = %(symbol)s AND i.tag <> 0 "
            "AND i.ts + r.utc_offset >= %(since)s GROUP BY i.seq, i.tag ORDER BY i.seq",
            more).fetchall()
        row.first = row.first or any(t["tag"] == EXIT.FIRST and t["filled"] for t in tags)
        fired = [t["tag"] for t in tags if t["tag"] in UNTIL_FLAT]
        row.closing = fired[0] if fired else row.closing


def _pending(c: psycopg.Connection[Any], want: Mapping[str, Any]) -> list[Pending]:
    """Orders that passed the gate and of which the gateway has said no last word."""
    return _orders(c, "coalesce(e.state, 0) < %(ended)s", {**want, "ended": STATE.FILLED})


def orders(conninfo: str, run: int, which: Sequence[int]) -> list[Pending]:
    """What is recorded of the orders *which* of *run*, ended or not."""
    with psycopg.connect(conninfo, options=f"-c statement_timeout={PATIENCE}s",
                         row_factory=dict_row) as c:
        return _orders(c, "i.event = ANY(%(which)s)",
                       {"run": run, "which": list(which), "fills": list(FILLS)})


def _orders(c: psycopg.Connection[Any], where: str, want: Mapping[str, Any]) -> list[Pending]:
    found = c.execute(
        'SELECT i.run, i.event AS "order", s.symbol, i.side, i.type, i.price, i.qty, '
        "coalesce(e.cum, 0) AS cum, i.ts + r.utc_offset AS at, coalesce(e.fills, '[]') AS fills "
        "FROM hftpipe.intent i JOIN hftpipe.run r USING (run) "
        "JOIN hftpipe.instrument s ON s.run = i.run AND s.index = i.instrument "
        'JOIN hftpipe.verdict v ON v.run = i.run AND v."order" = i.event AND v.reason = 0 '
        "AND v.action = i.action "
        "LEFT JOIN LATERAL (SELECT max(e.state) AS state, max(e.cum_qty) AS cum, "
        "  json_agg(json_build_array(e.qty, e.price) ORDER BY e.seq) "
        "    FILTER (WHERE e.kind = ANY(%(fills)s)) AS fills "
        '  FROM hftpipe.order_event e WHERE e.run = i.run AND e."order" = i.event) e ON true '
        f"WHERE i.run = %(run)s AND i.action = %(new)s AND {where} ORDER BY i.seq".encode(),
        {**want, "new": schema.ACTION.NEW}).fetchall()
    return [Pending(**{**row, "fills": tuple((int(q), int(p)) for q, p in row["fills"])})
            for row in found]
