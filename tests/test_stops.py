"""Orders that wait for a trade: valued at their worst, sent as they are, and triggered."""
import json

import numpy
import pytest

from hftpipe import schema
from hftpipe.alpaca._http import AlpacaWire
from hftpipe.alpaca.rest import Rest
from hftpipe.alpaca.session import client_order_id, nano
from hftpipe.venue import server
from tests.chain import Chain, quote, table
from tests.models.live import until
from tests.test_checks import STOP, STOP_LIMIT, TRAILING, Gate

NANO = 10**9
T, E, DAY = schema.ORDER_TYPE, schema.ORDER_EVENT_KIND, schema.TIF.DAY
CENT = NANO // 100


# ---------------------------------------------------------------- risk

@pytest.mark.parametrize(("fields", "worth"), [
    # at the trigger, and what the broker lets a purchase slip
    ({"type": STOP, "stop": 102 * NANO}, 102 * 1.04),
    # a sale: at what it can bring now
    ({"type": STOP, "stop": 99 * NANO, "side": -1}, 100 * 1.02),
    ({"type": TRAILING, "trail": NANO}, (100.02 + 1) * 1.04),
    ({"type": TRAILING, "trail_share": NANO // 50}, (100.02 * 1.02) * 1.04),
    ({"type": TRAILING, "trail": NANO, "side": -1}, 100 * 1.02),
    ({"type": STOP_LIMIT, "stop": 102 * NANO, "price": 102.5}, 102.5),
    ({"type": STOP_LIMIT, "stop": 99 * NANO, "price": 98.5, "side": -1}, 100)])
def test_the_value_of_an_order_is_that_of_its_worst(fields, worth):
    worth = round(worth * NANO)
    for limit, outcome in ((worth, "none"), (worth - 1, "order_notional")):
        g = Gate(max_order_notional=f"{limit // NANO}.{limit % NANO:09d}", price_collar_bps=200)
        assert g.ask(**{"price": 0, "tif": DAY, **fields}) == outcome
    assert int(g.verdict["value"]) == worth


def test_a_stop_far_away_passes_and_a_limit_far_from_its_trigger_does_not():
    g = Gate(price_collar_bps=100)
    assert g.ask(type=STOP, stop=80 * NANO, side=-1, price=0, tif=DAY) == "none"
    g = Gate(price_collar_bps=100)
    assert g.ask(type=STOP_LIMIT, stop=80 * NANO, price=79, side=-1, tif=DAY) == "none"
    assert g.ask(type=STOP_LIMIT, stop=80 * NANO, price=78.98, side=-1, tif=DAY) == "price_collar"


def test_two_stops_at_different_prices_are_two_orders():
    g = Gate(duplicate_window_ms=1000)
    for stop in (101, 102):
        assert g.ask(type=STOP, stop=stop * NANO, price=0, tif=DAY) == "none"
    assert g.ask(type=STOP, stop=102 * NANO, price=0, tif=DAY) == "duplicate_order"


def test_a_resting_stop_is_met_by_nothing_of_ours():
    """As the broker sees it: it may become a market order at any time."""
    g = Gate()
    assert g.ask(type=STOP, stop=99 * NANO, side=-1, price=0, tif=DAY) == "none"
    assert g.ask(price=99) == "wash_trade"


# ---------------------------------------------------------------- a backtest

def trade(ts, price, qty=5):
    out = numpy.zeros(1, schema.dtype(schema.MARKET))
    out["ts_recv"] = out["ts_venue"] = ts
    out["kind"], out["price"], out["qty"] = schema.MARKET_KIND.TRADE, price * CENT, qty * NANO
    out["flags"] = schema.MARKET_FLAG.LAST
    return out


def play(order, *market):
    """Send *order* at the first quote; [(kind, price, qty)] of what became of it."""
    asked = []

    def strategy(context, add):
        if context.event == 1 and not asked:
            asked.append(1)
            add(**{"qty": 10 * NANO, "tif": DAY, "action": 1, **order})

    instruments = table()
    instruments["flags"] = 2                            # may be sold short
    chain = Chain(strategy, instruments=instruments, limits={"allow_short": True})
    chain.inline.run(numpy.concatenate(market))
    chain.inline.finish()
    return [(int(b["kind"]), int(b["price"]) // CENT, int(b["qty"]) // NANO)
            for b in chain.bodies("gateway", schema.ORDER_EVENT) if b["kind"] != E.SENT]


MS = 10**6


@pytest.mark.parametrize(("order", "prices", "wanted"), [
    # a sale once somebody trades at 9950: at the bid then
    ({"side": -1, "type": T.STOP, "stop": 9950 * CENT}, (9990, 9951, 9950), (9940, 3)),
    ({"side": -1, "type": T.STOP, "stop": 9950 * CENT}, (9990, 9951), None),
    ({"side": 1, "type": T.STOP, "stop": 10050 * CENT}, (10049, 10050), (10051, 2)),
    # a limit that the book does not meet rests
    ({"side": -1, "type": T.STOP_LIMIT, "stop": 9950 * CENT, "price": 9945 * CENT}, (9950,), ()),
    ({"side": -1, "type": T.STOP_LIMIT, "stop": 9950 * CENT, "price": 9930 * CENT}, (9950,),
     (9940, 1)),
    # 50 cents below the best trade since it arrived
    ({"side": -1, "type": T.TRAILING_STOP, "trail": 50 * CENT}, (10010, 10040, 9991, 9990),
     (9940, 4)),
    ({"side": -1, "type": T.TRAILING_STOP, "trail": 50 * CENT}, (10010, 10040, 9991), None),
    ({"side": 1, "type": T.TRAILING_STOP, "trail": 50 * CENT}, (9990, 9950, 9999, 10000),
     (10051, 4)),
    # 1 % of 10000 is 100, of 10100 it is 101
    ({"side": -1, "type": T.TRAILING_STOP, "trail_share": NANO // 100},
     (10000, 10100, 10000, 9999), (9940, 4))])
def test_a_stop_waits_for_its_trade(order, prices, wanted):
    market = [quote(MS, 10000, 10001, 50, 50)]
    for n, price in enumerate(prices, 1):
        bid, ask = (9940, 9960) if order["side"] < 0 else (10040, 10051)
        market += [quote(n * 10 * MS, bid, ask, 50, 50), trade(n * 10 * MS + MS, price)]
    found = play(order, *market)
    assert (E.ACKED, 0 if "price" not in order else order["price"] // CENT, 10) in found
    fills = [f for f in found if f[0] in (E.FILL, E.PARTIAL_FILL)]
    if wanted:
        assert fills == [(E.FILL, wanted[0], 10)]
    else:
        assert not fills
    assert not [f for f in found if f[0] in (E.CANCELED, E.REJECTED, E.DENIED, E.DROPPED)]


# ---------------------------------------------------------------- the local exchange

def test_the_exchange_takes_each_kind_as_it_is(tmp_path):
    with server.spawn("--symbols", "AAPL", "--rate-limit", "0", "--state", str(tmp_path)) as (
            _, venue):
        rest = Rest(venue["rest"], venue["key"], venue["secret"])
        wire = AlpacaWire(venue["rest"], venue["key"], venue["secret"], 7, ["AAPL"],
                          rate_per_minute=0)
        wire.open()
        kinds = [{"type": T.STOP, "stop": 900 * NANO},
                 {"type": T.STOP_LIMIT, "stop": 900 * NANO, "price": 901 * NANO},
                 {"type": T.TRAILING_STOP, "trail": 2 * NANO},
                 {"type": T.TRAILING_STOP, "trail_share": NANO // 80}]
        for seq, fields in enumerate(kinds, 1):
            row = numpy.zeros(1, schema.dtype(schema.ORDER))[0]
            for name, value in {"order": schema.event_id(schema.STREAM.SIGNAL, seq),
                                "side": 1, "qty": NANO, "tif": 1, "action": 1, **fields}.items():
                row[name] = value
            assert wire.send(row) == 1
            said = until(wire.answer, "an answer")
            assert said["kind"] == E.ACKED, fields
            found = rest.order_by_client_id(client_order_id(7, seq))
            status, body = rest.request("GET", f"/v2/orders/{found.id}")
            body = json.loads(body)
            assert (status, found.type) == (200, T.label(fields["type"]))
            assert nano(body["stop_price"]) == fields["stop"] if "stop" in fields else True
            assert nano(body["limit_price"]) == fields.get("price", 0)
            assert nano(body["trail_price"]) == fields.get("trail", 0)
            assert nano(body["trail_percent"]) == 100 * fields.get("trail_share", 0)
        assert {o.status for o in rest.orders()} == {"new"}
        wire.close()
        rest.close()


# ---------------------------------------------------------------- between two prices

@pytest.mark.parametrize("order", [
    {"type": T.LIMIT, "price": 9990 * CENT + CENT // 2},
    {"type": T.STOP, "stop": 10050 * CENT + CENT // 100},
    {"type": T.STOP_LIMIT, "stop": 10050 * CENT, "price": 10051 * CENT + CENT // 100},
    {"type": T.TRAILING_STOP, "trail": 150 * CENT + CENT // 100}], ids=str)
def test_a_price_in_fractions_of_a_cent_is_told_to_the_strategy_and_never_sent(order):
    """The instrument's own increment is a hundredth of a cent; the broker's rule is stricter."""
    told = []

    def strategy(context, add):
        if context.event == 1 and not told:
            told.append("asked")
            add(side=1, qty=10 * NANO, tif=DAY, action=1, **order)
        elif len(told) == 1 and context.order_event is not None:
            told.append((int(context.order_event["kind"]), int(context.order_event["reason"])))

    instruments = table()
    instruments["tick"], instruments["flags"] = CENT // 100, 4
    chain = Chain(strategy, instruments=instruments)
    chain.inline.run(numpy.concatenate([quote(n * MS, 10000, 10001, 50, 50) for n in range(1, 5)]))
    chain.inline.finish()
    assert told == ["asked", (E.DENIED, schema.REASON.INCREMENT)]
    events = chain.bodies("gateway", schema.ORDER_EVENT)
    assert [(int(e["kind"]), int(e["reason"])) for e in events] == [
        (E.DENIED, schema.REASON.INCREMENT)]
