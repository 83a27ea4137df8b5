"""Indicators on numpy columns: the pipeline's own code, for research.

    >>> from hftpipe import indicators
    >>> indicators.rsi(close, 14)                       # one column, NaN before the first value
    >>> rsi = indicators.RSI(14)                        # the same, one price at a time
    >>> rsi.update(100.25)

Each function makes the streaming object of the same name and feeds it the whole column, so both
give the same bits.  Columns are float64 (or become it), finite, of one length; anything else is
a ValueError that names column and row.  The first defined value stands at the index where
TA-Lib's stands, NaN before it.  0 / 0 is 0.
"""
from __future__ import annotations

from typing import Any

import numpy
from numpy.typing import ArrayLike, NDArray

from hftpipe._bars import Bars
from hftpipe._flow import MFI, OBV, VWAP, OrderFlow, QueueChange, TradeFlow, VolumeRatio, imbalance
from hftpipe._indicator import (
    ATR,
    EMA,
    MACD,
    RSI,
    SMA,
    WMA,
    Bands,
    Bollinger,
    LogReturn,
    Macd,
    Momentum,
    Parkinson,
    Realised,
    Stoch,
    Stochastic,
    Width,
)

__all__ = [
    "ATR", "EMA", "MACD", "MFI", "OBV", "RSI", "SMA", "VWAP", "WMA", "Bands", "Bars",
    "Bollinger", "LogReturn", "Macd", "Momentum", "OrderFlow", "Parkinson", "QueueChange",
    "Realised", "Stoch", "Stochastic", "TradeFlow", "VolumeRatio", "Width", "atr", "bars",
    "bollinger", "bollinger_width", "depth", "ema", "imbalance", "log_return", "macd", "mfi",
    "microprice", "momentum", "obv", "order_flow", "parkinson", "queue_change",
    "realised_volatility", "rsi", "sma", "spread", "spread_bps", "stochastic", "trade_flow",
    "volume_ratio", "vwap", "wma"]

Column = NDArray[numpy.float64]


def bars(ts: ArrayLike, price: ArrayLike, qty: ArrayLike, window: str = "1min",
         flags: ArrayLike | None = None, flush: bool = True) -> NDArray[Any]:
    """Bars of one instrument from its trades, in integers.

    Parameters
    ----------
    ts, price, qty : (n,) arrays of whole numbers
        UTC ns, nanoprice, nanoqty, in order of arrival.
    window : str
        One of ``schema.BARS``; bars begin at multiples of it since 1970, days at UTC midnight.
    flags : (n,) array, optional
        ``schema.MARKET_FLAG``: an UNPRINTABLE trade does not count.
    flush : bool
        Whether the last bar, which no later trade has completed, belongs to the result.

    Returns
    -------
    (m,) array of ``schema.BAR``; ``bars["close"] * 1e-9`` is a column for the indicators.
    """
    made = Bars(window)
    done = made.trade_many(ts, price, qty, flags)
    last = made.flush() if flush else None
    return done if last is None else numpy.append(done, last)


def sma(x: ArrayLike, n: int = 20) -> Column:
    """Mean of the newest *n* values."""
    return SMA(n).update_many(x)


def ema(x: ArrayLike, n: int = 9) -> Column:
    """Exponential mean with weight 2 / (n + 1), seeded with the mean of the first *n*."""
    return EMA(n).update_many(x)


def wma(x: ArrayLike, n: int = 20) -> Column:
    """Mean of the newest *n* values, the newest weighed n, the oldest 1."""
    return WMA(n).update_many(x)


def rsi(x: ArrayLike, n: int = 14) -> Column:
    """Wilder's relative strength index, percent; 0 when the price never moved."""
    return RSI(n).update_many(x)


def macd(x: ArrayLike, fast: int = 12, slow: int = 26, signal: int = 9) -> Macd:
    """Line, signal and histogram."""
    return MACD(fast, slow, signal).update_many(x)


def bollinger(x: ArrayLike, n: int = 20, width: float = 2.0) -> Bands:
    """Lower, middle and upper band; population standard deviation."""
    return Bollinger(n, width).update_many(x)


def bollinger_width(x: ArrayLike, n: int = 20, width: float = 2.0) -> Width:
    """%B, 0.5 when the bands meet, and bandwidth, (upper - lower) / middle."""
    return Bollinger(n, width).width_many(x)


def atr(high: ArrayLike, low: ArrayLike, close: ArrayLike, n: int = 14) -> Column:
    """Wilder's mean of the true range."""
    return ATR(n).update_many(high, low, close)


def stochastic(high: ArrayLike, low: ArrayLike, close: ArrayLike, n: int = 5, k: int = 3,
               d: int = 3) -> Stoch:
    """%K (the close's place in the range of *n* bars, meaned over *k*) and %D (meaned over *d*)."""
    return Stochastic(n, k, d).update_many(high, low, close)


def obv(close: ArrayLike, volume: ArrayLike) -> Column:
    """On-balance volume; begins with the first volume."""
    return OBV().update_many(close, volume)


def vwap(price: ArrayLike, volume: ArrayLike) -> Column:
    """Mean price weighed by volume since the first row; NaN while that is 0."""
    return VWAP().update_many(price, volume)


def mfi(high: ArrayLike, low: ArrayLike, close: ArrayLike, volume: ArrayLike,
        n: int = 14) -> Column:
    """Money flow index, percent."""
    return MFI(n).update_many(high, low, close, volume)


def momentum(x: ArrayLike, n: int = 10) -> Column:
    """Change against the value *n* before, in percent."""
    return Momentum(n).update_many(x)


def log_return(x: ArrayLike) -> Column:
    """log(price / the price before)."""
    return LogReturn().update_many(x)


def realised_volatility(x: ArrayLike, n: int = 20) -> Column:
    """Root mean square of the newest *n* log returns, per bar."""
    return Realised(n).update_many(x)


def parkinson(high: ArrayLike, low: ArrayLike, n: int = 20) -> Column:
    """Volatility per bar from the ranges of the newest *n* bars."""
    return Parkinson(n).update_many(high, low)


def volume_ratio(volume: ArrayLike, n: int = 20) -> Column:
    """Volume over its mean of the newest *n* bars, this one included."""
    return VolumeRatio(n).update_many(volume)


# ---------------------------------------------------------------- books

def _columns(**columns: ArrayLike) -> list[Column]:
    """Finite float64 arrays of one shape."""
    out: list[Column] = []
    for name, values in columns.items():
        array = numpy.asarray(values, numpy.float64)
        if out and array.shape != out[0].shape:
            raise ValueError(f"{name}: wanted shape {out[0].shape}, found {array.shape}")
        if not numpy.isfinite(array).all():
            raise ValueError(f"{name}: wanted finite numbers")
        out.append(array)
    return out


def spread(bid: ArrayLike, ask: ArrayLike) -> Column:
    """ask - bid."""
    low, high = _columns(bid=bid, ask=ask)
    return high - low


def spread_bps(bid: ArrayLike, ask: ArrayLike) -> Column:
    """(ask - bid) over the mid, in basis points; prices above 0."""
    low, high = _columns(bid=bid, ask=ask)
    if not (low > 0).all():
        raise ValueError("bid: wanted numbers above 0")
    return (high - low) / (low + 0.5 * (high - low)) * 1e4


def microprice(bid: ArrayLike, ask: ArrayLike, bid_qty: ArrayLike, ask_qty: ArrayLike) -> Column:
    """Each price weighed by the other side's quantity; the mid when both are 0."""
    low, high, own, other = _columns(bid=bid, ask=ask, bid_qty=bid_qty, ask_qty=ask_qty)
    half = 0.5 * (high - low)
    return low + half + half * imbalance(own, other)


def depth(qty: ArrayLike, levels: int = 5) -> Column:
    """Quantity of the best *levels* of a side; *qty* is (n, levels of the recording)."""
    (table,) = _columns(qty=qty)
    if table.ndim != 2 or not 1 <= levels <= table.shape[1]:
        raise ValueError(f"qty: wanted (n, at least {levels}), found shape {table.shape}")
    return numpy.asarray(table[:, :levels].sum(axis=1))


def order_flow(bid: ArrayLike, bid_qty: ArrayLike, ask: ArrayLike, ask_qty: ArrayLike) -> Column:
    """Quantity that came to the bid less what came to the ask, state by state (Cont et al.)."""
    return OrderFlow().update_many(bid, bid_qty, ask, ask_qty)


def queue_change(price: ArrayLike, qty: ArrayLike) -> Column:
    """Change of the quantity at a side's best price; 0 when the price moved."""
    return QueueChange().update_many(price, qty)


def trade_flow(side: ArrayLike, qty: ArrayLike, n: int = 16) -> Column:
    """EMA over *n* trades of side * quantity over that of quantity."""
    return TradeFlow(n).update_many(side, qty)
