"""Orders that wait for a trade: valued at their worst, sent as they are, and triggered."""
import time

import numpy
import pytest

from hftpipe import schema
from hftpipe.alpaca._http import AlpacaWire
from hftpipe.alpaca.rest import Rest
from hftpipe.alpaca.session import client_order_id, nano
from hftpipe.venue import server
from tests.chain import Chain, quote
from tests.test_checks import DAY, STOP, STOP_LIMIT, TRAILING, Gate

NANO = 10**9
T, E = schema.ORDER_TYPE, schema.ORDER_EVENT_KIND
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
    worth = int(round(worth * NANO))
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

    def strategy(context, intents):
        if context.event == 1 and not asked:
            asked.append(1)
            intents.add(**{"qty": 10 * NANO, "tif": DAY, "action": 1, **order})

    chain = Chain(strategy, limits={"price_collar_bps": 10_000 - 1, "allow_short": True})
    chain.table["flags"] = 2
    chain.inline.run(numpy.concatenate(market))
    return [(int(b["kind"]), int(b["price"]) // CENT, int(b["qty"]) // NANO)
            for b in chain.bodies("gateway", schema.ORDER_EVENT) if b["kind"] != E.SENT]


MS = 10**6
