"""What operators ask is on record, first where it must be, and the analyst reads days exactly."""
import datetime as dt
import uuid

import psycopg
import pytest

from hftpipe import schema
from hftpipe._ring import pair
from hftpipe.errors import HftpipeError
from hftpipe.store import queries
from hftpipe.store.audit import Audit, Entry
from hftpipe.store.writer import Run, StoreWriter
from tests.models import store as naive
from tests.models.database import fresh, server, until

pytestmark = pytest.mark.db
N = 10**9
DAY = 86_400 * N


@pytest.fixture(scope="module")
def pg():
    with server() as p:
        yield p


@pytest.fixture
def db(pg):
    return fresh(pg)


def rows(conninfo):
    with psycopg.connect(conninfo) as c:
        return c.execute("SELECT run, who, command, reason, outcome, event, detail "
                         "FROM hftpipe.operator_event ORDER BY id").fetchall()


def entry(command, outcome="done", event=None):
    return Entry(7, "ann@host", command, "because", outcome, event, {"symbol": "AAPL"})


def test_entries_are_written_in_order_and_only_grow(db):
    audit = Audit(lambda: db)
    audit.now(entry("pause", "asked"))
    assert rows(db) == [(7, "ann@host", "pause", "because", "asked", None, {"symbol": "AAPL"})]
    audit.later(entry("pause", event=2**63 - 1))
    audit.later(entry("restrict", "refused"))
    assert audit.close(30) == 0
    assert [(r[2], r[4], r[5]) for r in rows(db)[1:]] == [
        ("pause", "done", 2**63 - 1), ("restrict", "refused", None)]
    with psycopg.connect(db, autocommit=True) as c:
        for query in ("DELETE FROM hftpipe.operator_event",
                      "UPDATE hftpipe.operator_event SET who = 'nobody'",
                      "TRUNCATE hftpipe.operator_event"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                c.execute(query)


def test_without_a_database_what_must_be_first_fails_and_the_rest_waits(db):
    where, failed = ["host=/nowhere dbname=x"], []
    audit = Audit(lambda: where[0], failed.append)
    with pytest.raises(HftpipeError, match="cannot be written down, so it is not done"):
        audit.now(entry("resume"))
    audit.later(entry("pause"))
    audit.later(entry("restrict"))
    until(lambda: failed, what="it is said")
    assert len(failed) == 1
    where[0] = db
    until(lambda: len(rows(db)) == 2, what="rows after the database came back")
    audit.close(30)
    assert [r[2] for r in rows(db)] == ["pause", "restrict"]


def test_what_could_not_be_written_is_counted_at_the_end():
    audit = Audit(lambda: "host=/nowhere dbname=x")
    for _ in range(3):
        audit.later(entry("pause"))
    assert audit.close(30) == 3


# ---------------------------------------------------------------- what the analyst asks

def store(conninfo, run, stream, record, bodies):
    """Write a run with these events: (monotonic ts, values), of *record* or of what values name."""
    slots = []
    for seq, (ts, values) in enumerate(bodies, 1):
        name = values.get("record", record)
        number = next(n for n, r in schema.BODIES.items() if r.name == name)
        values = {k: v for k, v in values.items() if k != "record"}
        values = {"event": schema.event_id(stream, seq), **values}
        slots.append(naive.slot(number, stream, seq, naive.pack(schema.BY_NAME[name], values),
                                inside=naive.slot_record(stream), ts=ts,
                                instrument=values.get("instrument", 0)))
    producer, consumer = pair(naive.slot_record(stream), 256)
    for slot in slots:
        assert producer.push(slot)
    with StoreWriter({stream: consumer}, conninfo, run) as writer:
        writer.drain(30)


def utc(text):
    return round(dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC).timestamp()) * N


def test_daily_bars_of_earlier_runs(db):
    first = utc("2026-11-23T15:00:00")          # 10:00 in New York
    trade = {"kind": schema.MARKET_KIND.TRADE}

    def at(text):
        return utc(text) - first + 10**12

    old = Run(first, first - 10**12, "demo", (("ACME", 10**7, N), ("OTHER", 10**7, N)))
    store(db, old, schema.STREAM.FEED, "market", [
        (at("2026-11-23T15:00:01"), {**trade, "price": 100 * N, "qty": 5 * N}),
        (at("2026-11-23T15:00:02"), {**trade, "price": 120 * N, "qty": 2 * N}),
        (at("2026-11-23T15:00:03"), {"kind": schema.MARKET_KIND.QUOTE, "price": 999 * N,
                                     "qty": N}),
        (at("2026-11-23T15:00:04"), {**trade, "price": 500 * N, "qty": N,
                                     "flags": schema.MARKET_FLAG.UNPRINTABLE}),
        (at("2026-11-24T04:59:59"), {**trade, "price": 90 * N, "qty": N}),      # 23:59 there
        (at("2026-11-24T05:00:00"), {**trade, "price": 110 * N, "qty": 3 * N}),
        (at("2026-11-24T05:00:01"), {**trade, "price": 7 * N, "qty": N, "instrument": 1}),
    ])
    found = queries.daily_bars(db, 1, ["ACME"], dt.date(2026, 11, 1))
    assert found == {dt.date(2026, 11, 23): {0: (90.0, 120.0, 90.0, 8.0)},
                     dt.date(2026, 11, 24): {0: (110.0, 110.0, 110.0, 3.0)}}
    store(db, Run(first + 1, first - 10**12, "demo", (("LATE", 10**7, N),)), schema.STREAM.FEED,
          "market", [
        (at("2026-11-23T15:00:01"), {**trade, "price": 100 * N, "qty": 5 * N, "ref": 1}),
        (at("2026-11-23T15:00:02"), {**trade, "price": 900 * N, "qty": 2 * N, "ref": 2}),
        (at("2026-11-23T15:00:03"), {**trade, "price": 1 * N, "qty": 3 * N, "ref": 3}),
        (at("2026-11-23T15:00:04"), {"kind": schema.MARKET_KIND.BUST, "price": 900 * N,
                                     "qty": 2 * N, "ref": 2}),                  # cancelled
        (at("2026-11-23T15:00:05"), {"kind": schema.MARKET_KIND.BUST, "price": 1 * N,
                                     "qty": 3 * N, "ref": 3}),                  # corrected
        (at("2026-11-23T15:00:05"), {"kind": schema.MARKET_KIND.FIX, "price": 101 * N,
                                     "qty": 4 * N, "ref": 3}),
        (at("2026-11-23T15:00:06"), {**trade, "price": 99 * N, "qty": 1 * N, "ref": 9,
                                     "flags": schema.MARKET_FLAG.BACKFILLED}),
    ])
    assert queries.daily_bars(db, 1, ["LATE"], dt.date(2026, 11, 1)) == {
        dt.date(2026, 11, 23): {0: (101.0, 101.0, 99.0, 10.0)}}
    assert queries.daily_bars(db, first, ["ACME"], dt.date(2026, 11, 1)) == {}
    assert queries.daily_bars(db, 1, ["ACME"], dt.date(2026, 11, 24)) == {}


def test_pnl_by_day_of_this_run_or_of_an_account(db):
    """Each day's last run has the whole day: a run goes on with that of the one before."""
    mine = "5f0c2a1e-8f3b-4c0d-9e1a-b2c3d4e5f607"
    first = utc("2026-11-23T15:00:00")
    run = Run(first, first - 10**12, "paper", (("ACME", 10**7, N),))
    days = (dt.date(2026, 11, 23) - dt.date(1970, 1, 1)).days
    again = Run(first + DAY, first - 10**12, "paper", (("ACME", 10**7, N),))
    high, low = divmod(uuid.UUID(mine).int, 1 << 64)
    begin = {"record": "account", "account": high, "account_low": low,
             "kind": schema.ACCOUNT_KIND.BEGIN}
    store(db, run, schema.STREAM.LEDGER, "position", [
        (10**12 - N, begin), (10**12, {"day": days, "day_pnl": 9 * N}),
        (10**12 + N, {"day": days, "day_pnl": 2 * N}),
        (10**12 + DAY, {"day": days + 1, "day_pnl": 5 * N})])
    store(db, again, schema.STREAM.LEDGER, "position", [
        (10**12 + 2 * DAY, begin), (10**12 + 2 * DAY, {"day": days + 1, "day_pnl": 7 * N})])
    both = {dt.date(2026, 11, 23): 2 * N, dt.date(2026, 11, 24): 5 * N}
    before = dt.date(2026, 11, 25)
    assert queries.pnl_by_day(db, first, None, before) == both
    assert queries.pnl_by_day(db, 1, mine, before) == {**both, dt.date(2026, 11, 24): 7 * N}
    other = str(uuid.UUID(int=1))
    assert queries.pnl_by_day(db, 1, None, before) == queries.pnl_by_day(db, 1, other, before) == {}
    assert queries.pnl_by_day(db, 1, mine, dt.date(2026, 11, 24)) == {
        dt.date(2026, 11, 23): 2 * N}
    assert queries.pnl_by_day(db, 1, mine, dt.date(2028, 1, 1)) == {}
