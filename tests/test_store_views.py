"""The views tell the life of each order, in exact numbers, words and times."""
from datetime import UTC, date, datetime
from decimal import Decimal as D
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from hftpipe import schema
from hftpipe._ring import pair
from hftpipe.store import queries
from hftpipe.store.verify import verify
from hftpipe.store.writer import Run, StoreWriter

from .models import store as naive
from .models.database import fresh, server

pytestmark = pytest.mark.db
N = 10**9
START = 1_764_000_000 * N               # 2025-11-24 16:00 UTC, 11:00 in New York
OFFSET = START - 5 * N                  # the monotonic clock was at 5 s
RUN = Run(START, OFFSET, "demo", (("ACME", 10**7, N), ("BTC/USD", 1, 1)))
DAY = 86_400 * N
K, A, R = schema.ORDER_EVENT_KIND, schema.ACTION, schema.REASON


class Story:
    """Writes the events of a run by hand, each into its stream."""

    def __init__(self):
        self.slots = {s: [] for s in range(1, 8)}

    def add(self, stream, record, ts, aux=0, **values):
        seq = len(self.slots[stream]) + 1
        event = schema.event_id(stream, seq)
        rec = schema.BY_NAME[record]
        if record not in ("book_status", "signal") and "event" in rec.offsets:
            values["event"] = event
        number = next(n for n, r in schema.BODIES.items() if r is rec)
        self.slots[stream].append(naive.slot(
            number, stream, seq, naive.pack(rec, values), inside=naive.slot_record(stream), ts=ts,
            aux=aux, cause=values.get("cause", 0), instrument=values.get("instrument", 0)))
        return event

    def market(self, ts):
        return self.add(1, "market", ts + 400, ts_recv=ts, kind=2, price=100 * N)

    def intent(self, ts, cause, **more):
        return self.add(3, "intent", ts, aux=ts - 300, cause=cause, ts_recv=ts - 1500, **(
            {"price": 100 * N + 5, "qty": 10 * N, "side": 1, "type": 2, "tif": 1, "action": 1,
             "strategy": 3} | more))

    def verdict(self, ts, order, cause, **more):
        self.add(4, "verdict", ts, order=order, cause=cause, reference=100 * N, action=1, **more)

    def step(self, ts, order, kind, state, qty=10 * N, price=100 * N, **more):
        self.add(5, "order_event", ts, order=order, kind=kind, state=state, qty=qty, price=price,
                 side=1, type=2, strategy=3, **more)


@pytest.fixture(scope="module")
def told():
    s = Story()
    # A limit order, filled in two parts.
    m = s.market(5 * N)
    a = s.intent(5 * N + 1500, m, quoted=5 * N, bid=99_990_000_000, ask=100 * N, bid_qty=3 * N,
                 ask_qty=8 * N)
    s.verdict(5 * N + 1700, a, m)
    s.step(5 * N + 2600, a, K.SENT, 2, price=100 * N + 5)
    s.step(5 * N + 50_000, a, K.ACKED, 3, price=100 * N + 5)
    for n, (qty, price) in enumerate(((4 * N, 100 * N), (6 * N, 99_999_999_999))):
        s.add(6, "update", 5 * N + 90_000 + n, order=a, ts_recv=5 * N + 80_000, qty=qty,
              ts_venue=START + 70_000 + n * 1000, price=price, cum_qty=(4 + 6 * n) * N,
              execution=0x0123456789ABCDEF, execution_low=0xFEDCBA9876543210 + n,
              venue_id=1, venue_id_low=2, position_qty=(4 + 6 * n) * N, kind=5 + n, side=1)
        s.step(5 * N + 100_000 + n, a, 5 + n, 4 + 3 * n, qty, price, cum_qty=(4 + 6 * n) * N)
    # One that risk refused, one that was cancelled, one that never was judged.
    b = s.intent(6 * N, m, instrument=1, side=-1)
    s.verdict(6 * N + 100, b, m, reason=R.ORDER_SIZE, limit=5 * N, value=10 * N, instrument=1)
    s.step(6 * N + 200, b, K.DENIED, 0, reason=R.ORDER_SIZE)
    c = s.intent(7 * N, m, type=1, price=0)
    s.verdict(7 * N + 100, c, m)
    s.step(7 * N + 200, c, K.SENT, 2)
    x = s.intent(8 * N, m, action=2, target=c & (1 << 32) - 1)
    s.verdict(8 * N + 100, x, m)
    s.step(8 * N + 200, c, K.CANCEL_SENT, 5)
    s.step(8 * N + 900, c, K.CANCELED, 8)
    d = s.intent(9 * N, m)
    # The ledger: 10 bought, marked, half sold with a gain, next day the rest with a loss.
    bought = schema.event_id(5, 3)
    for ts, qty, real, unreal, day, day_pnl, day_real, cause in (
            (10 * N, 10, 0, 0, 0, 0, 0, bought), (11 * N, 10, 0, 7 * N, 0, 7 * N, 0, m),
            (12 * N, 5, 3 * N, 2, 0, 3 * N + 2, 3 * N, bought + 1),
            (12 * N + DAY, 5, 3 * N, -N, 1, -N - 2, 0, m),
            (13 * N + DAY, 0, 2 * N, 0, 1, -N - 2 - 11, -N, schema.event_id(5, 99))):
        fee = 11 if ts == 13 * N + DAY else 5 if cause == bought else 0
        s.add(7, "position", ts, qty=qty * N, average=100 * N if qty else 0, realised=real,
              unrealised=unreal, mark=100 * N + unreal // qty if qty else 0, day=20_416 + day,
              day_pnl=day_pnl, day_realised=day_real, day_fees=fee if day else 5, fee=fee,
              fees=16 if fee == 11 else 5, cash=1000 * N - qty, equity=1000 * N + real,
              peak=1003 * N, drawdown_bps=30, cause=cause)
    s.add(7, "position", 14 * N + DAY, qty=-3, average=200_000 * N, realised=0, unrealised=-11,
          mark=200_003_666_666_666, day=20_417, day_pnl=-N - 13, day_realised=-N, day_fees=11,
          instrument=1, cause=m)
    s.add(4, "risk_event", 15 * N, kind=1, reason=R.HALTED, halt_epoch=2, armed_epoch=1)
    with server() as p:
        conninfo, links, recorded = fresh(p), {}, {}
        for stream, raws in s.slots.items():
            producer, links[stream] = pair(naive.slot_record(stream), 64)
            for raw in raws:
                assert producer.push(raw)
            recorded[stream] = len(raws), sum(
                naive.checksum(naive.body_of(r)) for r in raws) % 2**64
        with StoreWriter(links, conninfo, RUN) as w:
            w.drain(10)
        assert verify(conninfo, RUN.run, recorded).ok
        with psycopg.connect(conninfo, autocommit=True) as k:
            k.execute("SET ROLE hftpipe_reader")
            k.execute("SET timezone = 'UTC'")
            yield k, {"a": a, "b": b, "c": c, "x": x, "d": d, "m": m}


def rows(told, query, *values):
    with told[0].cursor(row_factory=dict_row) as cursor:
        return cursor.execute(query, values).fetchall()


def at(ns):
    return datetime.fromtimestamp((OFFSET + ns) // N, UTC).replace(
        microsecond=(OFFSET + ns) % N // 1000)


def order(told, name):
    (row,) = rows(told, "SELECT * FROM hftpipe.orders WHERE order_id = %s", told[1][name])
    return row


def test_a_filled_order(told):
    assert order(told, "a") == {
        "run": START, "order_id": told[1]["a"], "client_order_id": f"hp-{START:x}-1",
        "symbol": "ACME", "side": "buy", "order_type": "limit", "time_in_force": "day",
        "quantity": D(10), "limit_price": D("100.000000005"), "status": "filled",
        "filled_quantity": D(10), "filled_avg_price": D("99.999999999"),
        "reason": None, "strategy": 3, "cause": told[1]["m"], "exit": None,
        "created_at": at(5 * N + 1500), "submitted_at": at(5 * N + 2600),
        "acked_at": at(5 * N + 50_000), "filled_at": at(5 * N + 100_001), "cancelled_at": None,
        "updated_at": at(5 * N + 100_001)}


def test_orders_that_came_to_nothing(told):
    b, c, d = (order(told, n) for n in "bcd")
    assert (b["status"], b["reason"], b["symbol"], b["side"], b["submitted_at"]) == (
        "denied", "order_size", "BTC/USD", "sell", None)
    assert (c["status"], c["order_type"], c["limit_price"], c["cancelled_at"]) == (
        "canceled", "market", None, at(8 * N + 900))
    assert (d["status"], d["filled_quantity"], d["filled_avg_price"]) == ("created", 0, None)
    assert len(rows(told, "SELECT FROM hftpipe.orders")) == 4, "a cancel is not an order"


def test_trades(told):
    first, second = rows(told, "SELECT * FROM hftpipe.trades ORDER BY seq")
    assert (first["quantity"], first["price"], first["trade_value"]) == (D(4), D(100), D(400))
    assert second["price"] == D("99.999999999")
    assert second["trade_value"] == D("599.999999994")
    assert (first["commission"], second["commission"]) == (D("0.000000005"), 0)
    assert first["execution_id"] == UUID("01234567-89ab-cdef-fedc-ba9876543210")
    assert second["execution_id"] == UUID("01234567-89ab-cdef-fedc-ba9876543211")
    assert first["venue_order_id"] == UUID(int=1 << 64 | 2)
    assert first["venue_at"] == at(5 * N + 70_000) and first["executed_at"] == at(5 * N + 100_000)
    assert first["trade_id"] == f"{START:x}-3" and first["client_order_id"] == f"hp-{START:x}-1"


def test_audit_trail(told):
    story = queries.story(told[0], START, told[1]["a"])
    assert [r["event_type"] for r in story] == [
        "intent.new", "risk.approved", "order.sent", "order.acked", "venue.partial_fill",
        "venue.fill", "order.partial_fill", "order.fill"]
    assert [r["correlation_id"] for r in story[:2]] == [told[1]["m"]] * 2
    assert {r["client_order_id"] for r in story} == {f"hp-{START:x}-1"}
    assert [r["status"] for r in story if r["event_type"].startswith("order")] == [
        "sent", "open", "partial", "filled"]
    assert story[4]["metadata"]["execution_id"] == "01234567-89ab-cdef-fedc-ba9876543210"
    assert story[1]["tif"] == story[7]["tif"] == "day"
    (denied,) = (r for r in queries.story(told[0], START, told[1]["b"])
                 if r["event_type"] == "risk.denied")
    assert denied["rejection_reason"] == "order_size"
    assert (denied["metadata"]["limit"], denied["metadata"]["value"]) == (5 * N, 10 * N)
    cancel = [r["event_type"] for r in queries.story(told[0], START, told[1]["c"])]
    assert cancel == ["intent.new", "risk.approved", "order.sent", "intent.cancel",
                      "risk.approved", "order.cancel_sent", "order.canceled"]


def test_latency(told):
    (row,) = rows(told, "SELECT * FROM hftpipe.order_latency WHERE order_id = %s", told[1]["a"])
    t = 5 * N
    assert {k: v for k, v in row.items() if k.startswith("ts_")} == {
        "ts_recv": t, "ts_feed": t + 400, "ts_book": t + 1200, "ts_signal": t + 1500,
        "ts_risk": t + 1700, "ts_sent": t + 2600, "ts_ack": t + 50_000, "ts_fill": t + 100_000}
    assert {k: v for k, v in row.items() if k.endswith("_ns")} == {
        "feed_ns": 400, "book_ns": 800, "signal_ns": 300, "risk_ns": 200, "gateway_ns": 900,
        "tick_to_order_ns": 2600, "order_to_ack_ns": 47_400, "order_to_fill_ns": 97_400}
    hops = queries.latency(told[0], START)
    assert list(hops) == ["feed", "book", "signal", "risk", "gateway", "tick_to_order",
                          "order_to_ack", "order_to_fill"]
    assert hops["risk"] == {"count": 3, "min": 100, "p50": 100, "p99": 200, "p999": 200,
                            "max": 200}


def test_best_execution(told):
    (row, other) = rows(told, "SELECT * FROM hftpipe.best_execution ORDER BY submitted_at")
    t = 5 * N
    assert {k: row[k] for k in row if k not in ("run", "order_id", "client_order_id")} == {
        "symbol": "ACME", "side": "buy", "order_type": "limit", "quantity": D(10),
        "limit_price": D("100.000000005"), "quoted_at": at(t), "quote_age_ns": 2600,
        "bid": D("99.99"), "bid_quantity": D(3), "ask": D(100), "ask_quantity": D(8),
        "mid": D("99.995"), "expected_price": D(100), "touch_had_it": False,
        "submitted_at": at(t + 2600), "status": "filled", "filled_quantity": D(10),
        "realised_price": D("99.999999999"), "slippage_bps": D("-0.0000"),
        "to_mid_bps": D("0.5000"), "sent_to_fill_ns": 97_400}
    # Without a quote nothing is expected, and nothing is said to be good or bad.
    assert (other["order_id"], other["quoted_at"], other["quote_age_ns"], other["bid"],
            other["expected_price"], other["slippage_bps"]) == (told[1]["c"], *[None] * 5)


@pytest.mark.parametrize("kind, side, price, stop, expected", [
    ("MARKET", 1, 0, 0, "100.02"), ("MARKET", -1, 0, 0, "100"),
    ("LIMIT", 1, 100 * N, 0, "100"), ("LIMIT", 1, 101 * N, 0, "100.02"),
    ("LIMIT", -1, 101 * N, 0, "101"), ("LIMIT", -1, 99 * N, 0, "100"),
    ("STOP", 1, 0, 105 * N, "105"), ("STOP_LIMIT", -1, 94 * N, 95 * N, "95"),
    ("TRAILING_STOP", -1, 0, 0, None)])
def test_the_price_to_be_expected(kind, side, price, stop, expected):
    s = Story()
    i = s.intent(6 * N, s.market(6 * N - 1500), side=side, price=price, stop=stop, quoted=5 * N,
                 type=getattr(schema.ORDER_TYPE, kind), bid=100 * N, ask=100 * N + N // 50,
                 bid_qty=10 * N, ask_qty=10 * N)
    s.verdict(6 * N + 10, i, 0)
    s.step(6 * N + 20, i, K.SENT, 2)
    s.step(6 * N + 30, i, K.FILL, 7, price=100 * N + N // 100, cum_qty=10 * N)
    with server() as p:
        conninfo, links = fresh(p), {}
        for stream, raws in s.slots.items():
            producer, links[stream] = pair(naive.slot_record(stream), 64)
            assert all(map(producer.push, raws))
        with StoreWriter(links, conninfo, RUN) as w:
            w.drain(10)
        with psycopg.connect(conninfo) as c:
            got, bps, whole, age = c.execute(
                "SELECT expected_price, slippage_bps, touch_had_it, quote_age_ns "
                "FROM hftpipe.best_execution").fetchone()
    assert got == (None if expected is None else D(expected))
    assert bps == (None if expected is None else round(
        side * (D("100.01") - D(expected)) / D(expected) * 10_000, 4))
    assert whole and age == N + 20


def test_positions(told):
    acme, btc = rows(told, "SELECT * FROM hftpipe.positions ORDER BY symbol")
    assert (acme["quantity"], acme["side"], acme["realised_pnl"], acme["market_value"]) == (
        0, "flat", D(2), 0)
    assert (acme["fees"], acme["mark_price"]) == (D("0.000000016"), None)
    assert (btc["symbol"], btc["side"], btc["quantity"]) == ("BTC/USD", "short", D("-0.000000003"))
    assert btc["market_value"] == D("-0.000600010999999998")    # at the mark, to the last digit
    assert btc["cost_basis"] == btc["market_value"] + D("0.000000011")
    history = rows(told, "SELECT * FROM hftpipe.position_snapshots WHERE symbol = 'ACME' "
                         "ORDER BY seq")
    assert [r["market_value"] for r in history] == [
        1000, 1007, 500, D("499"), 0]
    assert history[1]["cost_basis"] == 1000
    assert history[0]["snapshot_time"] == at(10 * N)


def test_account(told):
    first, *_, last = rows(told, "SELECT * FROM hftpipe.account_snapshots ORDER BY seq")
    assert first == {
        "run": START, "seq": 1, "snapshot_time": at(10 * N), "trading_date": date(2025, 11, 24),
        "cash": D("999.99999999"), "equity": D(1000), "peak_equity": D(1003), "drawdown": D(3),
        "drawdown_bps": 30, "day_pnl": 0, "day_realised": 0, "day_fees": D("0.000000005")}
    assert (last["trading_date"], last["day_pnl"]) == (date(2025, 11, 25), D("-1.000000013"))


def test_daily_pnl(told):
    first, second = rows(told, "SELECT * FROM hftpipe.daily_pnl ORDER BY trading_date")
    assert first == {"run": START, "trading_date": date(2025, 11, 24), "realised": D(3),
                     "unrealised": D("0.000000007"), "fees": D("0.000000005"),
                     "total": D("3.000000002"), "trade_count": 2, "winning": 1, "losing": 0}
    assert second == {"run": START, "trading_date": date(2025, 11, 25), "realised": D(-1),
                      "unrealised": D("-0.000000002"), "fees": D("0.000000011"),
                      "total": D("-1.000000013"), "trade_count": 1, "winning": 0, "losing": 1}


def test_risk_events(told):
    refused, halted = rows(told, "SELECT * FROM hftpipe.risk_events ORDER BY ts")
    assert (refused["event_type"], refused["severity"], refused["reason"]) == (
        "order_denied", "warning", "order_size")
    assert refused["client_order_id"] == f"hp-{START:x}-2" and refused["symbol"] == "BTC/USD"
    assert refused["message"] == "Quantity of one order above its limit."
    assert (halted["event_type"], halted["severity"], halted["message"], halted["order_id"]) == (
        "halt_seen", "critical", "halt epoch 2, armed epoch 1", None)
    assert halted["occurred_at"] == at(15 * N)


def test_summary_and_finding(told):
    assert queries.summary(told[0], START) == {
        "orders": 4, "orders_by_status": {"canceled": 1, "created": 1, "denied": 1, "filled": 1},
        "refusals": {"order_size": 1}, "exits": {}, "fills": 2, "realised": D(2),
        "unrealised": D("-0.000000011"), "fees": D("0.000000016"), "pnl": D("1.999999973")}
    assert queries.find_order(told[0], f"hp-{START:x}-1") == (START, told[1]["a"])
    for other in (f"hp-{START:x}-63", f"xx-{START:x}-1", "hp-1", "hp-g-1", f"hp-{START:x}-1-1"):
        assert queries.find_order(told[0], other) is None


def test_numbers_are_exact_at_the_ends(told):
    for value in (2**63 - 1, -2**63, 1, -1, 0):
        (row,) = rows(told, "SELECT hftpipe.nano(%s::bigint) AS v", value)
        assert row["v"] == D(value).scaleb(-9)
    (row,) = rows(told, "SELECT hftpipe.utc(%s) AS v", 4_102_444_799_999_999_999)
    assert row["v"] == datetime(2099, 12, 31, 23, 59, 59, 999_999, UTC)
    (row,) = rows(told, "SELECT hftpipe.label_of('side', 7::smallint) AS v")
    assert row["v"] == "side(7)"
