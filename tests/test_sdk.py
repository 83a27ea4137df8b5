"""The broker's own SDK, unmodified, works against the local venue through its URL overrides."""
from __future__ import annotations

import threading
import time
import uuid
import warnings
from contextlib import contextmanager
from decimal import Decimal

import pytest

from hftpipe.venue import spawn

with warnings.catch_warnings():         # its WebSocket library's old interface
    warnings.simplefilter("ignore", DeprecationWarning)
    pytest.importorskip("alpaca", reason="alpaca-py is not installed")
    from alpaca.common.exceptions import APIError
    from alpaca.data.live import CryptoDataStream, StockDataStream
    from alpaca.trading.client import TradingClient
    from alpaca.trading.enums import OrderSide, OrderStatus, QueryOrderStatus, TimeInForce
    from alpaca.trading.requests import (
        GetAssetsRequest,
        GetOrdersRequest,
        LimitOrderRequest,
        MarketOrderRequest,
    )
    from alpaca.trading.stream import TradingStream

pytestmark = [pytest.mark.venue, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def address():
    with spawn("--rate", "500", "--rate-limit", "0", "--symbols", "ACME,BOLT,CRUX,BTC/USD",
               "--cash", "1000000") as (_, address):
        yield address


@pytest.fixture(scope="module")
def client(address):
    return TradingClient(address["key"], address["secret"], url_override=address["rest"])


@pytest.fixture(autouse=True)
def flat(request):
    """Every test begins without orders and positions."""
    if "client" in request.fixturenames:
        client = request.getfixturevalue("client")
        client.close_all_positions(cancel_orders=True)
        until(lambda: not client.get_orders() and not client.get_all_positions())


def until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.01)
    return found


def ended(client, order):
    """The order once it is at rest for good."""
    return until(lambda: (o := client.get_order_by_id(order.id)).status in (
        OrderStatus.FILLED, OrderStatus.CANCELED, OrderStatus.EXPIRED, OrderStatus.REJECTED)
        and o)


def market(symbol="ACME", qty=10, side=OrderSide.BUY, **more):
    tif = TimeInForce.GTC if "/" in symbol else TimeInForce.DAY
    return MarketOrderRequest(symbol=symbol, qty=qty, side=side, time_in_force=tif, **more)


def limit(price, symbol="ACME", qty=10, side=OrderSide.BUY, tif=TimeInForce.DAY, **more):
    return LimitOrderRequest(symbol=symbol, qty=qty, side=side, limit_price=price,
                             time_in_force=tif, **more)


@contextmanager
def running(stream):
    """*stream* on a thread of its own, stopped on the way out."""
    thread = threading.Thread(target=stream.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stream.stop()
        thread.join(20)
        assert not thread.is_alive()


def collector():
    """A list and the handler that fills it."""
    seen = []

    async def handler(message):
        seen.append(message)
    return seen, handler


# ---------------------------------------------------------------- trading

def test_account_clock_and_assets(client):
    account = client.get_account()
    assert account.status == "ACTIVE" and Decimal(account.equity) > 0
    assert account.multiplier == "4" and account.shorting_enabled is True
    clock = client.get_clock()
    assert clock.timestamp < clock.next_open and clock.timestamp < clock.next_close
    names = {a.symbol for a in client.get_all_assets(GetAssetsRequest(status="active"))}
    assert names == {"ACME", "BOLT", "CRUX", "BTC/USD"}
    assert client.get_asset("BTC/USD").asset_class == "crypto"
    with pytest.raises(APIError) as refused:
        client.get_asset("NOPE")
    assert (refused.value.status_code, refused.value.code) == (404, 40410000)


def test_an_order_from_submit_to_position(client):
    name = f"sdk-{uuid.uuid4()}"
    order = client.submit_order(market(client_order_id=name))
    assert order.status == OrderStatus.PENDING_NEW and order.client_order_id == name
    done = ended(client, order)
    assert done.status == OrderStatus.FILLED and Decimal(done.filled_qty) == 10
    assert client.get_order_by_client_id(name).id == order.id
    position = client.get_open_position("ACME")
    assert (position.qty, position.side) == ("10", "long")
    assert position.avg_entry_price == done.filled_avg_price
    with pytest.raises(APIError) as refused:
        client.submit_order(market(client_order_id=name))
    assert (refused.value.status_code, refused.value.code) == (422, 40010001)
    closing = client.close_position("ACME")
    assert closing.side == OrderSide.SELL
    assert ended(client, closing).status == OrderStatus.FILLED
    with pytest.raises(APIError) as refused:
        client.get_open_position("ACME")
    assert (refused.value.status_code, refused.value.message) == (404, "position does not exist")


def test_orders_are_listed_and_cancelled(client):
    made = [client.submit_order(limit(1.0, symbol=s)) for s in ("ACME", "BOLT", "CRUX")]
    found = client.get_orders(GetOrdersRequest(
        status=QueryOrderStatus.OPEN, symbols=["ACME", "CRUX"], nested=True, limit=500))
    assert [o.id for o in found] == [made[2].id, made[0].id]
    client.cancel_order_by_id(made[0].id)
    assert ended(client, made[0]).status == OrderStatus.CANCELED
    rows = client.cancel_orders()
    assert {(r.id, r.status) for r in rows} == {(m.id, 200) for m in made[1:]}
    until(lambda: not client.get_orders())


def test_wrong_keys_are_told(address):
    client = TradingClient("PKNOT", "wrong", url_override=address["rest"])
    with pytest.raises(APIError) as refused:
        client.get_account()
    assert refused.value.status_code == 401


# ---------------------------------------------------------------- streams

def test_trading_stream_tells_each_step_of_an_order(address, client):
    stream = TradingStream(address["key"], address["secret"],
                           url_override=address["updates_stream"])
    seen, handler = collector()
    stream.subscribe_trade_updates(handler)
    with running(stream):
        # The SDK does not say when it listens: the first update of a probe does.
        def probed():
            order = client.submit_order(limit(1.0, symbol="CRUX"))
            client.cancel_order_by_id(order.id)
            ended(client, order)
            return seen
        until(probed)
        order = client.submit_order(market())
        until(lambda: any(u.event == "fill" and u.order.id == order.id for u in seen))
    mine = [u for u in seen if u.order.id == order.id]
    events = [str(getattr(u.event, "value", u.event)) for u in mine]
    assert events[:2] == ["pending_new", "new"] and events[-1] == "fill"
    assert set(events[2:-1]) <= {"partial_fill"}
    assert sum(u.qty for u in mine if u.qty) == 10 and mine[-1].position_qty == 10
    assert mine[-1].order.status == OrderStatus.FILLED


def test_stock_data_stream(address, client):
    stream = StockDataStream(address["key"], address["secret"],
                             url_override=address["data_stream"])
    (quotes, on_quote), (trades, on_trade) = collector(), collector()
    stream.subscribe_quotes(on_quote, "ACME", "BOLT")
    stream.subscribe_trades(on_trade, "*")
    with running(stream):
        until(lambda: len(quotes) > 50 and len(trades) > 10)
    assert {q.symbol for q in quotes} <= {"ACME", "BOLT"}
    assert all(0 < q.bid_price < q.ask_price and q.bid_size > 0 for q in quotes)
    assert {t.symbol for t in trades} <= {"ACME", "BOLT", "CRUX"}
    assert all(t.exchange == "V" and t.price > 0 and t.timestamp.tzinfo for t in trades)


def test_the_test_feed(address):
    stream = StockDataStream(address["key"], address["secret"],
                             url_override=address["data_stream"].replace("iex", "test"))
    seen, handler = collector()
    stream.subscribe_quotes(handler, "FAKEPACA")
    with running(stream):
        until(lambda: seen)
    assert seen[0].symbol == "FAKEPACA"


def test_crypto_data_stream_with_order_books(address):
    stream = CryptoDataStream(address["key"], address["secret"],
                              url_override=address["data_stream_crypto"])
    (quotes, on_quote), (books, on_book) = collector(), collector()
    stream.subscribe_quotes(on_quote, "BTC/USD")
    stream.subscribe_orderbooks(on_book, "BTC/USD")
    with running(stream):
        until(lambda: quotes and len(books) > 20)
    assert books[0].reset is True and books[0].bids and books[0].asks
    assert not any(b.reset for b in books[1:])
    book = {}
    for update in books:
        for level in update.bids:
            book[level.price] = level.size
    assert max(p for p, size in book.items() if size) > 0
