"""The broker's own SDK, unmodified, works against the local venue through its URL overrides."""
from __future__ import annotations

import asyncio
import threading
import time
import uuid
import warnings
from contextlib import contextmanager
from decimal import Decimal

import pytest

from hftpipe._clock import utc_ns
from hftpipe.venue import Config, spawn
from hftpipe.venue.state import NANO
from tests.test_venue import venue_test

with warnings.catch_warnings():         # its WebSocket library's old interface
    warnings.simplefilter("ignore", DeprecationWarning)
    pytest.importorskip("alpaca", reason="alpaca-py is not installed")
    from alpaca.common.exceptions import APIError
    from alpaca.data.historical import CryptoHistoricalDataClient, StockHistoricalDataClient
    from alpaca.data.live import CryptoDataStream, StockDataStream
    from alpaca.data.requests import (
        CryptoBarsRequest,
        CryptoLatestOrderbookRequest,
        CryptoLatestQuoteRequest,
        CryptoSnapshotRequest,
        CryptoTradesRequest,
        StockBarsRequest,
        StockLatestBarRequest,
        StockLatestQuoteRequest,
        StockLatestTradeRequest,
        StockQuotesRequest,
        StockSnapshotRequest,
        StockTradesRequest,
    )
    from alpaca.data.timeframe import TimeFrame, TimeFrameUnit
    from alpaca.trading.client import TradingClient
    from alpaca.trading.enums import (
        OrderClass,
        OrderSide,
        OrderStatus,
        QueryOrderStatus,
        TimeInForce,
    )
    from alpaca.trading.requests import (
        ClosePositionRequest,
        GetAssetsRequest,
        GetCalendarRequest,
        GetOrdersRequest,
        GetPortfolioHistoryRequest,
        LimitOrderRequest,
        MarketOrderRequest,
        ReplaceOrderRequest,
        StopLimitOrderRequest,
        StopLossRequest,
        StopOrderRequest,
        TakeProfitRequest,
        TrailingStopOrderRequest,
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


@pytest.mark.parametrize("tif", ["day", "gtc", "ioc", "fok", "opg", "cls"])
def test_every_time_in_force(client, tif):
    order = client.submit_order(limit(1.0, tif=TimeInForce(tif)))
    assert order.time_in_force == tif
    if tif in ("ioc", "fok"):
        assert ended(client, order).status == OrderStatus.CANCELED
    elif tif in ("opg", "cls"):
        assert order.status == OrderStatus.ACCEPTED


def test_every_order_type(client):
    ended(client, client.submit_order(market(qty=30)))
    sell = {"symbol": "ACME", "side": OrderSide.SELL, "time_in_force": TimeInForce.GTC, "qty": 5}
    made = [client.submit_order(request) for request in (
        LimitOrderRequest(limit_price=900, **sell), StopOrderRequest(stop_price=1, **sell),
        StopLimitOrderRequest(stop_price=2, limit_price=1, **sell),
        TrailingStopOrderRequest(trail_percent=50, **sell),
        TrailingStopOrderRequest(trail_price=20, **sell))]
    assert [o.type.value for o in made] == [
        "limit", "stop", "stop_limit", "trailing_stop", "trailing_stop"]
    assert all(Decimal(o.hwm) > Decimal(o.stop_price) for o in made[3:])
    assert made[3].trail_percent == "50" and made[4].trail_price == "20"
    for order in made:
        until(lambda order=order: client.get_order_by_id(order.id).status == OrderStatus.NEW)


def test_notional_and_fractional_orders(client):
    order = client.submit_order(MarketOrderRequest(
        symbol="ACME", notional=500.5, side=OrderSide.BUY, time_in_force=TimeInForce.DAY))
    assert order.qty is None and order.notional == "500.5"
    assert 0 < Decimal(ended(client, order).filled_qty)
    order = client.submit_order(market(symbol="BTC/USD", qty=0.25))
    assert Decimal(ended(client, order).filled_qty) == Decimal("0.25")
    assert client.get_open_position("BTCUSD").qty == "0.25"


def test_a_bracket_an_oco_and_an_oto(client):
    order = client.submit_order(market(
        order_class=OrderClass.BRACKET, take_profit=TakeProfitRequest(limit_price=900),
        stop_loss=StopLossRequest(stop_price=1)))
    assert [leg.status for leg in order.legs] == [OrderStatus.HELD, OrderStatus.HELD]
    ended(client, order)
    profit, stop = order.legs
    until(lambda: client.get_order_by_id(profit.id).status == OrderStatus.NEW)
    with pytest.raises(APIError) as refused:            # the take profit holds the shares
        client.close_position("ACME")
    assert (refused.value.status_code, refused.value.code) == (403, 40310000)
    nested = client.get_orders(GetOrdersRequest(status=QueryOrderStatus.ALL, nested=True, limit=1))
    assert [leg.id for leg in nested[0].legs] == [profit.id, stop.id]
    client.cancel_order_by_id(profit.id)
    assert ended(client, stop).status == OrderStatus.CANCELED
    oco = client.submit_order(limit(
        900, side=OrderSide.SELL, tif=TimeInForce.GTC, order_class=OrderClass.OCO,
        take_profit=TakeProfitRequest(limit_price=900), stop_loss=StopLossRequest(stop_price=1)))
    assert [leg.type.value for leg in oco.legs] == ["stop"]
    client.cancel_order_by_id(oco.id)
    assert ended(client, oco.legs[0]).status == OrderStatus.CANCELED
    oto = client.submit_order(market(
        symbol="BOLT", order_class=OrderClass.OTO, stop_loss=StopLossRequest(stop_price=1)))
    ended(client, oto)
    until(lambda: client.get_order_by_id(oto.legs[0].id).status == OrderStatus.NEW)


def test_an_order_is_replaced(client):
    old = client.submit_order(limit(1.0))
    until(lambda: client.get_order_by_id(old.id).status == OrderStatus.NEW)
    new = client.replace_order_by_id(old.id, ReplaceOrderRequest(qty=4, limit_price=1.01))
    assert new.replaces == old.id and new.id != old.id
    until(lambda: client.get_order_by_id(old.id).status == OrderStatus.REPLACED)
    now = until(lambda: (o := client.get_order_by_id(new.id)).status == OrderStatus.NEW and o)
    assert (now.qty, now.limit_price) == ("4", "1.01")
    assert client.get_order_by_id(old.id).replaced_by == new.id


def test_a_position_is_closed_in_parts(client):
    ended(client, client.submit_order(market()))
    part = client.close_position("ACME", ClosePositionRequest(percentage="50"))
    assert Decimal(ended(client, part).filled_qty) == 5
    part = client.close_position("ACME", ClosePositionRequest(qty="2"))
    ended(client, part)
    assert client.get_open_position("ACME").qty == "3"
    ended(client, client.submit_order(market(symbol="BOLT")))
    rows = client.close_all_positions(cancel_orders=True)
    assert {(r.symbol, r.status) for r in rows} == {("ACME", 200), ("BOLT", 200)}
    until(lambda: not client.get_all_positions())


def test_configurations_calendar_and_portfolio_history(client):
    before = client.get_account_configurations()
    changed = before.model_copy(update={"no_shorting": True})
    assert client.set_account_configurations(changed).no_shorting is True
    assert client.set_account_configurations(before) == before
    days = client.get_calendar(GetCalendarRequest(start="2026-11-25", end="2026-11-30"))
    assert [(d.date.day, d.close.hour) for d in days] == [(25, 16), (27, 13), (30, 16)]
    history = until(lambda: (h := client.get_portfolio_history(GetPortfolioHistoryRequest(
        period="1D", timeframe="1Min"))).equity and h)
    assert len(history.timestamp) == len(history.equity) and history.equity[-1] > 0
    fills = client.get("/account/activities/FILL", {"page_size": 5})
    assert fills and {"order_id", "qty", "price", "cum_qty", "leaves_qty"} <= set(fills[0])


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


def test_what_the_tape_says_reaches_the_sdk():
    """Statuses, corrections, cancels and bars told again; of price bands the SDK knows nothing,
    and what it does not know must not disturb it."""
    def drive(address, call, venue):
        stream = StockDataStream(address["key"], address["secret"],
                                 url_override=address["data_stream"])
        (statuses, on_status), (fixes, on_fix), (voids, on_void), (bars, on_bar), (
            trades, on_trade) = (collector() for _ in range(5))
        stream.subscribe_trading_statuses(on_status, "ACME")
        stream.subscribe_updated_bars(on_bar, "ACME")
        stream.subscribe_trades(on_trade, "ACME")
        stream.register_trade_corrections(on_fix)
        stream.register_trade_cancels(on_void)
        with running(stream):
            until(lambda: trades)
            trade = number, price, qty = call(venue.tape.trade, 0)
            call(venue.iex.close_minute, utc_ns() + 60 * NANO)
            call(venue.sip.close_minute, utc_ns() + 60 * NANO)
            call(venue.tape.status, 0, "P")
            call(venue.tape.bands, 0, 2 * price, price // 2)
            call(venue.tape.correct, 0, trade, price + 10_000_000, qty)
            call(venue.tape.cancel, 0, trade, "C")
            assert call(venue.tape.late, 0, price, qty)
            call(venue.tape.status, 0, "T")
            until(lambda: len(statuses) == 2 and fixes and voids and bars)
            seen = len(trades)
            until(lambda: len(trades) > seen)           # and on it goes
        assert [s.status_code for s in statuses] == ["P", "T"]
        assert (statuses[0].symbol, statuses[0].reason_code) == ("ACME", "LUDP")
        assert (fixes[0].original_id, fixes[0].corrected_id) == (number, number)
        assert fixes[0].original_price == price / NANO
        assert fixes[0].corrected_price == (price + 10_000_000) / NANO
        assert (voids[0].id, voids[0].price, voids[0].action) == (number, price / NANO, "C")
        assert bars[0].symbol == "ACME" and bars[0].low <= price / NANO <= bars[0].high

    async def test(venue, client):
        loop = asyncio.get_running_loop()

        def call(action, *args):
            async def do():
                return action(*args)
            return asyncio.run_coroutine_threadsafe(do(), loop).result(20)
        await asyncio.to_thread(drive, venue.address, call, venue)
    venue_test(test, Config(rate=1000.0, rate_limit=0, symbols=("ACME",)))


# ---------------------------------------------------------------- historical data

def test_historical_stock_data(address):
    data = StockHistoricalDataClient(address["key"], address["secret"],
                                     url_override=address["rest"])
    both = ["ACME", "BOLT"]
    until(lambda: len(data.get_stock_trades(StockTradesRequest(
        symbol_or_symbols=both, limit=100))["ACME"]) >= 20)
    trades = data.get_stock_trades(StockTradesRequest(symbol_or_symbols=both))
    assert set(trades.data) == set(both)
    times = [t.timestamp for t in trades["BOLT"]]
    assert times == sorted(times)
    quotes = data.get_stock_quotes(StockQuotesRequest(symbol_or_symbols="ACME", limit=7))
    assert len(quotes["ACME"]) == 7 and quotes["ACME"][0].ask_price > quotes["ACME"][0].bid_price
    bars = data.get_stock_bars(StockBarsRequest(
        symbol_or_symbols=both, timeframe=TimeFrame(5, TimeFrameUnit.Minute)))
    assert bars["ACME"][-1].high >= bars["ACME"][-1].low > 0
    assert len(bars.df) == sum(map(len, bars.data.values()))
    assert data.get_stock_latest_trade(StockLatestTradeRequest(
        symbol_or_symbols="ACME"))["ACME"].price > 0
    assert data.get_stock_latest_quote(StockLatestQuoteRequest(
        symbol_or_symbols=both))["BOLT"].bid_price > 0
    assert data.get_stock_latest_bar(StockLatestBarRequest(
        symbol_or_symbols="ACME"))["ACME"].trade_count > 0
    shot = data.get_stock_snapshot(StockSnapshotRequest(symbol_or_symbols=both))["ACME"]
    assert shot.latest_trade.price > 0 and shot.daily_bar.volume >= shot.minute_bar.volume > 0


def test_historical_crypto_data_needs_no_key(address):
    data = CryptoHistoricalDataClient(url_override=address["rest"])
    one = "BTC/USD"
    until(lambda: data.get_crypto_snapshot(CryptoSnapshotRequest(
        symbol_or_symbols=one))[one].minute_bar)
    assert data.get_crypto_trades(CryptoTradesRequest(symbol_or_symbols=one))[one][0].size > 0
    assert data.get_crypto_bars(CryptoBarsRequest(
        symbol_or_symbols=one, timeframe=TimeFrame.Minute))[one][-1].close > 0
    assert data.get_crypto_latest_quote(CryptoLatestQuoteRequest(
        symbol_or_symbols=one))[one].ask_price > 0
    book = data.get_crypto_latest_orderbook(CryptoLatestOrderbookRequest(
        symbol_or_symbols=one))[one]
    assert book.bids[0].price < book.asks[0].price
