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
from hftpipe._breaker import Breaker
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


def test_why_tells_an_order_s_whole_story(told):
    _, c, _, _ = told
    from hftpipe.cli import why
    from hftpipe.store import explain
    orders = rows(c, "SELECT * FROM hftpipe.orders ORDER BY order_id")
    filled = next(o for o in orders if o["status"] == "filled")
    run, number = explain.find(c, filled["client_order_id"], None)
    assert (run, number) == (START, filled["order_id"])
    assert explain.find(c, str(schema.split_event(number)[1]), START) == (run, number)
    t = explain.explain(c, run, number)
    assert t["client_order_id"] == filled["client_order_id"]
    assert t["intent"]["symbol"] == filled["symbol"] and t["intent"]["side"] == filled["side"]
    assert t["outcome"]["status"] == "filled" and t["verdict"]["reason"] == "none"
    assert D(t["outcome"]["filled_nano"]).scaleb(-9) == filled["quantity"]
    # An immediate limit at the touch: the book that is told is the one it was sent at.
    side = "ask" if filled["side"] == "buy" else "bid"
    assert t["book"][f"{side}_nano"] == t["intent"]["price_nano"]
    assert t["market"]["kind"] == "quote"
    fees = sum(x["commission"] for x in rows(
        c, "SELECT * FROM hftpipe.trades WHERE order_id = %s", number))
    assert D(t["fees_nano"]).scaleb(-9) == fees
    assert [h["stage"] for h in t["hops"]][:5] == ["feed", "book", "signal", "risk", "gateway"]
    times = [h["ns"] for h in t["hops"] if h["ns"] is not None]
    assert times == sorted(times) and times[0] >= 0
    text = "\n".join(why._lines(t, True))
    assert filled["client_order_id"] in text and "FILLED" in text and "approved" in text
    if t["features"]:
        assert all(name in text for name in t["features"])


def test_why_tells_what_refused(told):
    _, c, _, _ = told
    from hftpipe.cli import why
    from hftpipe.errors import ConfigError
    from hftpipe.store import explain
    denied = [o for o in rows(c, "SELECT * FROM hftpipe.orders ORDER BY order_id")
              if o["status"] == "denied"]
    if denied:
        found = explain.find(c, None, None, "denied")
        assert found == (START, denied[-1]["order_id"])
        t = explain.explain(c, *found)
        assert t["verdict"]["reason"] == denied[-1]["reason"] == t["outcome"]["reason"]
        text = "\n".join(why._lines(t, False))
        assert f"REFUSED: {denied[-1]['reason']}" in text and t["verdict"]["meaning"] in text
    for order, run, words in (("hp-1-1", None, "no order of that name"),
                              ("99999999", None, "has no order of that number"),
                              ("soon", None, "must be hp-RUN-SEQ or a number, was 'soon'"),
                              (None, 5, "run 5 has no order stored")):
        with pytest.raises(ConfigError, match=words):
            explain.find(c, order, run)


def insert(c, name, **values):
    """One row of *name*; every column that is not given is 0."""
    columns = [n for (n,) in c.execute(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'hftpipe' "
        "AND table_name = %s", (name,)).fetchall()]
    assert set(values) <= set(columns)
    listed = ", ".join(f'"{n}"' for n in columns)
    c.execute(f"INSERT INTO hftpipe.{name} ({listed}) VALUES "
              f"({', '.join(['%s'] * len(columns))})", [values.get(n, 0) for n in columns])


@pytest.mark.parametrize("seed", range(6))
def test_losing_trades_in_a_row_go_on_over_runs_as_the_breaker_counts_them(told, seed):
    """Runs of two profiles, trades of three instruments, the breaker closed now and then."""
    _, c, _, _ = told
    rng, twin, profile = random.Random(seed), Breaker(), f"losses{seed}"
    first = START + (seed + 1) * 1000 * N
    for run in range(first, first + 3):
        for other, name in ((run, profile), (run + 100, "another")):
            c.execute("INSERT INTO hftpipe.run VALUES (%s, now(), NULL, %s, 0, 'h', 'v')",
                      (other, name))
            earned, mixed = [0, 0, 0], other != run
            for seq in range(1, 25):
                what, i = rng.random(), rng.randrange(3)
                if what < 0.06:
                    stream = schema.STREAM.OPERATOR if what < 0.03 else schema.STREAM.RISK
                    kind = {"figure": schema.FIGURE_KIND.BREAKER,
                            "risk_event": schema.RISK_EVENT_KIND.BREAKER}
                    name = "figure" if what < 0.03 else "risk_event"
                    insert(c, name, run=other, stream=stream, seq=seq, ts=seq * 10 + 5,
                           kind=kind[name], value=schema.BREAKER.CLOSED)
                    if not mixed:
                        twin.set(schema.BREAKER.CLOSED, seq)
                    continue
                flat = what < 0.6
                change = rng.choice((-5, -5, -5, -1, 0, 3)) if flat else rng.choice((-9, 9))
                insert(c, "position_event", run=other, stream=schema.STREAM.LEDGER, seq=seq,
                       ts=seq * 10, instrument=i, qty=0 if flat else 7,
                       realised=earned[i] + change)
                if flat:
                    earned[i] += change
                    if not mixed:
                        twin.trade(change, seq)
        left = queries.gate_state(c.info.dsn, run + 1, profile, day=False)
        assert left["losses"] == twin.losses


def test_losing_trades_in_a_row_of_a_run_are_the_gates_own_count(told):
    chain, c, _, _ = told
    gate = next(s for s in chain.stages if s.name == "risk").risk.state()
    assert queries.gate_state(c.info.dsn, START + 1, "demo", day=False)["losses"] == gate["losses"]
