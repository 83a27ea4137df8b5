"""What the database says of orders, trades, positions and days is the ledger's word, to the unit.

A random strategy trades two instruments over four New York days, one of them 23 hours long, with
fees, through the pipeline's own stages; everything stored goes through the writer into PostgreSQL,
and a Decimal twin is fed the same executions and marks.
"""
import random
from datetime import UTC, date, datetime
from decimal import Decimal as D
from zoneinfo import ZoneInfo

import numpy as np
import psycopg
import pytest
from psycopg.rows import dict_row

from hftpipe import _clock, recording, schema
from hftpipe.backtest._replay import Inline
from hftpipe.store import queries
from hftpipe.store.writer import Run, StoreWriter

from .chain import Chain, quote, table
from .models.database import fresh, server
from .models.ledger import NaiveLedger

pytestmark = pytest.mark.db
N = 10**9
START = int(datetime(2026, 3, 7, 14, tzinfo=UTC).timestamp()) * N   # the day before clocks change
OFFSET = START - 1000 * N
SYMBOLS = ("SYM0", "SYM1")
STEP = 1_700 * N                        # between quotes: every mark is old enough to be stored
SETTINGS = """
[account]
equity = 5000
[fees]
per_order = 0.35
per_share = 0.0035
of_value = "0.3bp"
sell_of_value = "0.278bp"
"""


def strategy(seed):
    rng = random.Random(seed)

    def on_event(c, add):
        if c.event != 1 or rng.random() < 0.4:
            return
        side = rng.choice((1, -1))
        if c.qty * side < 0:            # risk refuses an order that would cross zero
            qty = min(abs(c.qty), rng.randint(1, 9) * N)
        else:
            qty = rng.randint(1, 9) * N
        add(side=side, type=schema.ORDER_TYPE.LIMIT, tif=schema.TIF.IOC, action=1, qty=qty,
            price=int(c.book["ask" if side > 0 else "bid"]))
    return on_event


@pytest.fixture(scope="module", params=[1, 2])
def told(request):
    instruments = table(2)
    instruments["flags"] = 2            # shortable
    chain = Chain(strategy(request.param), capacity={"ledger.store": 65536},
                  instruments=instruments, settings=SETTINGS, limits={
                      "allow_short": True, "max_daily_loss": 100_000,
                      "max_orders_per_minute": 1_000_000})
    chain.inline = Inline(*chain.stages, chain.wire, OFFSET)
    rng, mid = random.Random(request.param), [10_000, 20_000]
    quotes = 180
    try:
        for i in range(quotes):
            which = rng.randrange(2)
            mid[which] += rng.randint(-40, 40)
            assert chain.inline.run(quote(1000 * N + i * STEP, mid[which], mid[which] + 1,
                                          bid_qty=3, ask_qty=4, instrument=which)) == 2
        assert chain.inline.finish()
    finally:
        chain.inline.close()
    streams = {getattr(schema.STREAM, s.name.upper()): s.name for s in chain.stages}
    with server() as p:
        conninfo = fresh(p)
        run = Run(START, OFFSET, "demo", tuple((s, N // 100, N) for s in SYMBOLS))
        fills, marks = [], []
        kept = {}
        for stream, name in streams.items():
            kept[stream] = chain.links.consumer(f"{name}.store")
        # Everything is read before the writer takes it: the twin's input.
        for name, out in (("gateway", fills), ("feed", marks)):
            ring = kept[getattr(schema.STREAM, name.upper())]
            out.extend(recording.raw(ring.peek(1 << 20), ring.record))
        with StoreWriter(kept, conninfo, run) as writer:
            writer.drain(30)
        with psycopg.connect(conninfo, autocommit=True) as c:
            yield chain, c, fills, marks
    _clock.unset_virtual()


def rows(c, query, *values):
    with c.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()


def body(slot, record):
    """Hop time and body of a slot's bytes."""
    raw = slot.tobytes()
    return (int(np.frombuffer(raw[:64], schema.dtype(schema.ENVELOPE))[0]["ts"]),
            np.frombuffer(raw[64:64 + record.size], schema.dtype(record))[0])


def twin(chain, fills, marks):
    """Books in Decimal, and what each day came to: [(date, realised, fees, total, ...)]."""
    ours = NaiveLedger(D(5000), {"per_order": D("0.35"), "per_share": D("0.0035"),
                                 "rate": D("0.00003"), "sell_rate": D("0.0000278")})
    executions = []
    for slot in fills:
        ts, e = body(slot, schema.ORDER_EVENT)
        if e["kind"] in (schema.ORDER_EVENT_KIND.FILL, schema.ORDER_EVENT_KIND.PARTIAL_FILL):
            executions.append((ts, 1, e))
    prices = []
    newest = [[0, 0], [0, 0]]
    for slot in marks:
        _, m = body(slot, schema.MARKET)
        newest[m["instrument"]][0 if m["side"] > 0 else 1] = int(m["price"])
        if m["flags"] & schema.MARKET_FLAG.LAST:
            bid, ask = newest[m["instrument"]]
            prices.append((int(m["ts_recv"]), 0, (int(m["instrument"]),
                                                  bid + (ask - bid) // 2)))
    days, current = [], None
    count = [0, 0, 0]                       # executions, with a gain, with a loss
    for ts, what, item in sorted(executions + prices, key=lambda x: x[:2]):
        day = datetime.fromtimestamp((ts + OFFSET) / N, ZoneInfo("America/New_York")).date()
        if day != current:
            if current is not None:
                days.append(closing(ours, current, count))
            ours.roll()
            current, count = day, [0, 0, 0]
        if what == 0:
            ours.mark(item[0], D(item[1]).scaleb(-9))
            continue
        i = int(item["instrument"])
        before = ours.realised.get(i, D(0))
        ours.fill(i, D(int(item["qty"]) * int(item["side"])).scaleb(-9),
                  D(int(item["price"])).scaleb(-9), item["cum_qty"] == item["qty"])
        gained = (ours.realised[i] - before).quantize(D("1e-9"))
        count = [count[0] + 1, count[1] + (gained > 0), count[2] + (gained < 0)]
    days.append(closing(ours, current, count))
    return ours, days


def closing(ours, day, count):
    equity, realised, paid = ours.then
    nano = D("1e-9")
    return {"trading_date": day, "total": (ours.equity - equity).quantize(nano),
            "realised": (sum(ours.realised.values(), D(0)) - realised).quantize(nano),
            "fees": ours.charged() - paid, "trade_count": count[0], "winning": count[1],
            "losing": count[2]}


def test_days_and_account(told):
    chain, c, fills, marks = told
    ours, days = twin(chain, fills, marks)
    found = rows(c, "SELECT * FROM hftpipe.daily_pnl ORDER BY trading_date")
    for row in found:
        assert row["realised"] + row["unrealised"] - row["fees"] == row["total"]
        del row["run"], row["unrealised"]
    assert found == days and [d["trading_date"] for d in days][:2] == [
        date(2026, 3, 7), date(2026, 3, 8)] and len(days) == 4
    assert sum(d["winning"] for d in days) > 5 and sum(d["losing"] for d in days) > 5
    last = rows(c, "SELECT * FROM hftpipe.account_snapshots ORDER BY seq DESC LIMIT 1")[0]
    nano = D("1e-9")
    assert last["equity"] == ours.equity.quantize(nano)
    assert last["cash"] == (ours.opening + ours.cash).quantize(nano)
    assert last["peak_equity"] == max(ours.equities).quantize(nano)
    totals = chain.ledger.totals
    assert (D(totals["pnl"]).scaleb(-9), D(totals["fees"]).scaleb(-9)) == (
        last["equity"] - 5000, ours.charged())


def test_positions_and_trades(told):
    chain, c, fills, marks = told
    ours, _ = twin(chain, fills, marks)
    trades = rows(c, "SELECT * FROM hftpipe.trades ORDER BY seq")
    assert len(trades) == len(ours.fills) > 50
    for trade, (i, signed, price), (_, fee) in zip(trades, ours.fills, ours.paid, strict=True):
        assert (trade["symbol"], trade["quantity"], trade["price"], trade["commission"]) == (
            SYMBOLS[i], abs(signed), price, fee)
        assert trade["side"] == ("buy" if signed > 0 else "sell")
    positions = {r["symbol"]: r for r in rows(c, "SELECT * FROM hftpipe.positions")}
    assert len(positions) == 2
    for i, symbol in enumerate(SYMBOLS):
        row, stage = positions[symbol], chain.ledger.position(i)
        assert row["quantity"] == ours.qty[i] == D(stage["qty"]).scaleb(-9)
        assert row["realised_pnl"] == ours.realised[i].quantize(D("1e-9"))
        assert row["unrealised_pnl"] == ours.unrealised(i).quantize(D("1e-9"))
        assert row["fees"] == ours.charged(i)
        assert row["mark_price"] == ours.marks[i]
        assert row["market_value"] == ours.marks[i] * ours.qty[i]
        assert row["average_price"] == ours.average[i].quantize(D("1e-9"))
        mine = [t for t in trades if t["symbol"] == symbol]
        assert row["quantity"] == sum(
            t["quantity"] * (1 if t["side"] == "buy" else -1) for t in mine)


def test_orders_add_up_to_their_trades(told):
    _, c, _, _ = told
    orders = rows(c, "SELECT * FROM hftpipe.orders")
    by_order = {}
    for t in rows(c, "SELECT * FROM hftpipe.trades"):
        by_order.setdefault(t["order_id"], []).append(t)
    assert len(orders) > 50
    for order in orders:
        parts = by_order.pop(order["order_id"], [])
        qty = sum(t["quantity"] for t in parts)
        assert order["filled_quantity"] == qty <= order["quantity"]
        assert (order["status"] == "filled") == (qty == order["quantity"])
        if parts:
            value = sum(t["trade_value"] for t in parts)
            assert order["filled_avg_price"] == (value / qty).quantize(D("1e-9"))
    assert not by_order
    sums = queries.summary(c, START)
    assert sums["pnl"] == sums["realised"] + sums["unrealised"] - sums["fees"]
