"""The chain a user would write today, for ``bench_pipe``: alpaca-py, TA-Lib, onnxruntime.

``R`` is taken as for ours: from the moment the event loop hands the bytes of a frame to the
WebSocket library to the moment the HTTP library hands the request to its socket.
"""
from __future__ import annotations

import http.client
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
import numpy  # noqa: E402
import onnxruntime  # noqa: E402
import talib  # noqa: E402
from alpaca.common.exceptions import APIError  # noqa: E402
from alpaca.data.live import StockDataStream  # noqa: E402
from alpaca.trading.client import TradingClient  # noqa: E402
from alpaca.trading.enums import OrderSide, TimeInForce  # noqa: E402
from alpaca.trading.requests import LimitOrderRequest  # noqa: E402
from websockets.legacy.protocol import WebSocketCommonProtocol  # noqa: E402

CORE, PORT, COUNT, WARM_UP = (int(a) for a in sys.argv[1:5])
WINDOW = 300
stamps: dict[str, Any] = {"read": 0, "took": []}


def main() -> None:
    import hftpipe.models
    model = Path(hftpipe.models.DEMO)
    read = WebSocketCommonProtocol.data_received
    send = http.client.HTTPConnection.send

    def data_received(self: Any, data: bytes) -> None:
        stamps["read"] = time.monotonic_ns()
        read(self, data)

    def sending(self: Any, data: Any) -> None:
        if stamps["read"]:
            stamps["took"].append(time.monotonic_ns() - stamps["read"])
            stamps["read"] = 0
        send(self, data)

    WebSocketCommonProtocol.data_received = data_received
    http.client.HTTPConnection.send = sending  # type: ignore[method-assign]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options)
    name = session.get_inputs()[0].name
    client = TradingClient("k", "s", url_override=f"http://127.0.0.1:{PORT}")
    stream = StockDataStream("k", "s", url_override=f"ws://127.0.0.1:{PORT}/v2/iex")
    prices = numpy.full(WINDOW, 100.0)

    async def on_quote(quote: Any) -> None:
        prices[:-1] = prices[1:]
        prices[-1] = mid = (quote.bid_price + quote.ask_price) / 2
        rsi = talib.RSI(prices, 14)[-1]
        macd, signal, histogram = (a[-1] for a in talib.MACD(prices))
        upper, middle, lower = (a[-1] for a in talib.BBANDS(prices, 20))
        total = quote.bid_size + quote.ask_size
        imbalance = (quote.bid_size - quote.ask_size) / total
        features = numpy.array([[
            rsi / 100, macd, signal, histogram, upper - mid, middle - mid, lower - mid, imbalance,
            imbalance, quote.ask_price - quote.bid_price, 0, 0, 0, 0, 0, 0]], numpy.float32)
        session.run(None, {name: features})
        try:
            client.submit_order(LimitOrderRequest(
                symbol=quote.symbol, qty=1, side=OrderSide.BUY,
                time_in_force=TimeInForce.IOC, limit_price=quote.ask_price))
        except APIError:
            pass                        # the sink refuses every order
        if len(stamps["took"]) >= COUNT:
            await stream.stop_ws()

    stream.subscribe_quotes(on_quote, "ACME")
    os.sched_setaffinity(0, {CORE})
    stream.run()
    took = sorted(stamps["took"][WARM_UP:])
    print(json.dumps({"sent": len(stamps["took"]), "hops": {"tick_to_order": {
        "count": len(took), "p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)],
        "p999": took[int(len(took) * 0.999)], "max": took[-1]}}}))


if __name__ == "__main__":
    main()
