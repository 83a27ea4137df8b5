"""The feature vector as its definitions in ``schema.CATALOGUE`` read: naive, exact, slow.

Integers stay integers and averages are recomputed from all values ever seen, with
fractions where a quotient is exact; nothing here is shared with ``src/_feature.pyx``.
Bars are those of the naive twin, and the indicators over them the columns of
`hftpipe.indicators`, whose own oracles are in ``tests/test_indicator.py``.
"""
from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy

from hftpipe import indicators as I
from hftpipe import schema
from tests.models.bars import Event
from tests.models.bars import Twin as BarsTwin

STALE, CROSSED, TRADE, EMPTY = 1, 2, 16, 32


def ema(values: list[float], span: int, start: float) -> float:
    """EMA over *span* of *values*, beginning at *start*, by its closed form."""
    weight = 2 / (span + 1)
    n = len(values)
    return math.fsum([start * (1 - weight) ** n,
                      *(weight * (1 - weight) ** (n - 1 - i) * v for i, v in enumerate(values))])


def ratio(a: int, b: int) -> float:
    return float(Fraction(a, b)) if b else 0.0


def usable(book) -> bool:
    quantities = ("bid_qty", "ask_qty", "bid_depth", "ask_depth")
    return (not int(book["flags"]) & (STALE | CROSSED | EMPTY)
            and 0 < int(book["bid"]) <= int(book["ask"])
            and all(int(book[q]) >= 0 for q in quantities))


DAY = 86_400 * 10**9


def from_bars(bars, mid: float) -> dict[str, float]:
    """What *bars* (dicts in integers, all complete ones) tell; *mid* is the price before them."""
    high, low, close, open_, price, volume = (
        numpy.array([b[k] for b in bars], float) * 1e-9
        for k in ("high", "low", "close", "open", "vwap", "volume"))
    last = close[-1] if bars else mid

    def newest(column, neutral: float) -> float:
        return float(column[-1]) if bars and not math.isnan(column[-1]) else neutral

    macd, bands, width = I.macd(close), I.bollinger(close), I.bollinger_width(close)
    stochastic, atr = I.stochastic(high, low, close, 14), I.atr(high, low, close)
    ema9, ema21 = newest(I.ema(close, 9), last), newest(I.ema(close, 21), last)
    sma50 = newest(I.sma(close, 50), last)
    today = [i for i, b in enumerate(bars) if b["start"] // DAY == bars[-1]["start"] // DAY]
    vwap = newest(I.vwap(price[today], volume[today]), mid)
    return {
        "close": last, "open": newest(open_, mid), "high": newest(high, mid),
        "low": newest(low, mid), "rsi14": newest(I.rsi(close, 14), 50),
        "macd_line": newest(macd.line, 0), "macd_signal": newest(macd.signal, 0),
        "macd_histogram": newest(macd.histogram, 0), "ema9": ema9, "ema21": ema21,
        "ema_difference": ema9 - ema21, "sma50": sma50,
        "sma50_distance": (last / sma50 - 1) * 100 if len(bars) >= 50 else 0,
        "sma200": newest(I.sma(close, 200), last), "bollinger_lower": newest(bands.lower, last),
        "bollinger_middle": newest(bands.middle, last),
        "bollinger_upper": newest(bands.upper, last),
        "bollinger_b": newest(width.percent_b, 0.5), "volume": newest(volume, 0),
        "volume_change": volume[-1] / volume[-2] - 1 if len(bars) > 1 else 0,
        "log_return": newest(I.log_return(close), 0),
        "momentum10": newest(I.momentum(close, 10), 0), "ema12": newest(I.ema(close, 12), last),
        "ema26": newest(I.ema(close, 26), last), "wma20": newest(I.wma(close, 20), last),
        "rsi28": newest(I.rsi(close, 28), 50), "bollinger_width": newest(width.bandwidth, 0),
        "atr14": newest(atr, 0), "atr14_percent": newest(atr / close * 100, 0),
        "stochastic_k": newest(stochastic.k, 50), "stochastic_d": newest(stochastic.d, 50),
        "obv": newest(I.obv(close, volume), 0),
        "mfi14": newest(I.mfi(high, low, close, volume, 14), 50), "vwap": vwap,
        "vwap_distance": (last / vwap - 1) * 100 if bars else 0,
        "realised20": newest(I.realised_volatility(close, 20), 0),
        "parkinson20": newest(I.parkinson(high, low, 20), 0),
        "volume_ratio20": newest(I.volume_ratio(volume, 20), 1),
        "bar_range": newest((high - low) / close * 100, 0), "bar_vwap": newest(price, mid),
        "bar_trades": bars[-1]["count"] if bars else 0, "bars": min(len(bars), 200),
    }


class Twin:
    def __init__(self, bar: str = "1min") -> None:
        self.window = schema.BARS[bar]
        self.states: list[dict[str, int]] = []
        self.flows: list[int] = []
        self.events: list[Event] = []
        self.offset: int = 0                    # of the venue's clock
        self.traded: int | None = None          # BOOK.volume of the state before

    def see(self, book) -> None:
        """Take the time and the trade of a state for the bars."""
        ts = int(book["ts_venue"])
        if ts > 0:
            self.offset = ts - int(book["ts_recv"])
        else:
            ts = int(book["ts_recv"]) + self.offset
        ts = (ts + 2**63) % 2**64 - 2**63
        volume, qty = int(book["volume"]), int(book["last_qty"])
        if self.traded is not None and self.traded >= 0 and volume > self.traded:
            qty = volume - self.traded
        self.traded = volume
        trade = bool(int(book["flags"]) & TRADE)
        self.events.append(Event(ts, int(book["last_price"]), qty, 0, trade))

    def update(self, book) -> dict[str, float] | None:
        """The vector by name, or None when the state is not usable."""
        self.see(book)
        if not usable(book):
            return None
        s = {name: int(book[name]) for name in (
            "ts_recv", "bid", "ask", "bid_qty", "ask_qty", "bid_depth", "ask_depth",
            "last_price", "last_qty", "last_side", "flags")}
        s["mid2"] = s["bid"] + s["ask"]                  # twice the mid: an integer
        before = self.states[-1] if self.states else None
        self.states.append(s)
        if before:
            self.flows.append(
                s["bid_qty"] * (s["bid"] >= before["bid"])
                - before["bid_qty"] * (s["bid"] <= before["bid"])
                - s["ask_qty"] * (s["ask"] <= before["ask"])
                + before["ask_qty"] * (s["ask"] >= before["ask"]))

        mid2 = s["mid2"]
        mids = [t["mid2"] / 2 for t in self.states]
        sizes = [(t["bid_qty"] + t["ask_qty"]) / 2 for t in self.states]
        returns = [math.log(Fraction(b["mid2"], a["mid2"]))
                   for a, b in pairwise(self.states)]
        trades = [t for t in self.states if t["flags"] & TRADE and t["last_qty"] > 0]
        size = ema(sizes[1:], 16, sizes[0])
        traded = signed = 0.0
        if trades:
            quantities = [t["last_qty"] for t in trades]
            signs = [t["last_qty"] * t["last_side"] for t in trades]
            traded = ema(quantities[1:], 16, quantities[0])
            signed = ema(signs[1:], 16, signs[0])
        top = s["bid_qty"] + s["ask_qty"]
        micro2 = (Fraction(2 * (s["bid"] * s["ask_qty"] + s["ask"] * s["bid_qty"]), top)
                  if top else Fraction(mid2))

        def change(side: str) -> float:
            if not before or before[side] != s[side]:
                return 0.0
            a, b = before[f"{side}_qty"], s[f"{side}_qty"]
            return ratio(b - a, max(a, b))

        waited = max(0, s["ts_recv"] - before["ts_recv"]) if before else 0
        return {
            "mid_return": returns[-1] if returns else 0.0,
            "mid_momentum_fast": math.log(mids[-1] / ema(mids[1:], 16, mids[0])),
            "mid_momentum_slow": math.log(mids[-1] / ema(mids[1:], 128, mids[0])),
            "volatility": math.sqrt(ema([r * r for r in returns], 64, 0)),
            "spread_bps": float(Fraction(20_000 * (s["ask"] - s["bid"]), mid2)),
            "imbalance_top": ratio(s["bid_qty"] - s["ask_qty"], top),
            "imbalance_depth": ratio(s["bid_depth"] - s["ask_depth"],
                                     s["bid_depth"] + s["ask_depth"]),
            "microprice_bps": float((micro2 - mid2) / mid2 * 10_000),
            "order_flow": ema(self.flows, 16, 0) / size if size > 0 else 0.0,
            "trade_flow": signed / traded if traded else 0.0,
            "last_offset_bps": (float(Fraction(10_000 * (2 * s["last_price"] - mid2), mid2))
                                if s["last_price"] > 0 else 0.0),
            "bid_queue_change": change("bid"),
            "ask_queue_change": change("ask"),
            "depth_ratio": math.log((1 + s["bid_depth"] / 1e9) / (1 + s["ask_depth"] / 1e9)),
            "trade_rate": ema([float(t["flags"] & TRADE != 0) for t in self.states], 64, 0),
            "arrival": math.log1p(min(waited / 1e6, 3_600_000)),
            "best_bid": s["bid"] * 1e-9, "best_ask": s["ask"] * 1e-9, "mid": mid2 / 2 * 1e-9,
            "spread": (s["ask"] - s["bid"]) * 1e-9, "bid_depth": s["bid_depth"] * 1e-9,
            "ask_depth": s["ask_depth"] * 1e-9,
            **from_bars(BarsTwin(self.window, self.events).complete, mid2 / 2 * 1e-9),
        }
