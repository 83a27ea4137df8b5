"""Indicators as their definitions read: each value from the whole history, in fractions.

Nothing is carried from one row to the next and nothing is shared with ``src/_indicator.pxd``;
only roots and logarithms are floating point.  ``None`` stands before the first defined value.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction as F
from itertools import pairwise

Value = F | float | None
ZERO = F(0)


def over(count: int, f: Callable[[int], Value]) -> list[Value]:
    return [f(i) for i in range(count)]


def window(x: Sequence[F], i: int, n: int) -> Sequence[F] | None:
    return x[i - n + 1:i + 1] if i >= n - 1 else None


def mean(x: Sequence[F]) -> F:
    return sum(x, ZERO) / len(x)


def sma(x: Sequence[F], n: int) -> list[Value]:
    return over(len(x), lambda i: mean(w) if (w := window(x, i, n)) else None)


def smooth(x: Sequence[F], n: int, weight: F, start: int = 0) -> list[Value]:
    """The mean of x[start:start + n], from there on the weighed mean of old and new."""
    def at(i: int) -> Value:
        first = start + n - 1
        if i < first:
            return None
        keep = 1 - weight
        return keep ** (i - first) * mean(x[start:start + n]) + sum(
            (weight * keep ** (i - k) * x[k] for k in range(first + 1, i + 1)), ZERO)
    return over(len(x), at)


def ema(x: Sequence[F], n: int, start: int = 0) -> list[Value]:
    return smooth(x, n, F(2, n + 1), start)


def wma(x: Sequence[F], n: int) -> list[Value]:
    total = F(n * (n + 1), 2)
    return over(len(x), lambda i: sum((F(k + 1) * v for k, v in enumerate(w)), ZERO) / total
                if (w := window(x, i, n)) else None)


def rsi(x: Sequence[F], n: int) -> list[Value]:
    steps = [b - a for a, b in pairwise(x)]
    gains = smooth([max(s, ZERO) for s in steps], n, F(1, n))
    losses = smooth([max(-s, ZERO) for s in steps], n, F(1, n))
    return [None] * min(1, len(x)) + [
        None if g is None else 100 * g / (g + b) if g + b else ZERO
        for g, b in zip(gains, losses, strict=True)]


def macd(x: Sequence[F], fast: int, slow: int, signal: int) -> list[list[Value]]:
    quick, steady = ema(x, fast, slow - fast), ema(x, slow)
    line = [None if b is None else a - b for a, b in zip(quick, steady, strict=True)]
    mean_ = [None] * min(slow - 1, len(x)) + ema(line[slow - 1:], signal)
    out: list[list[Value]] = [[], [], []]
    for a, b in zip(line, mean_, strict=True):
        for column, value in zip(out, (None,) * 3 if b is None else (a, b, a - b), strict=True):
            column.append(value)
    return out


def bollinger(x: Sequence[F], n: int, width: F) -> list[list[Value]]:
    """Lower, middle, upper, %B, bandwidth."""
    out: list[list[Value]] = [[], [], [], [], []]
    for i, value in enumerate(x):
        w = window(x, i, n)
        row: tuple[Value, ...] = (None,) * 5
        if w:
            middle = mean(w)
            variance = mean([(v - middle) ** 2 for v in w])
            reach = width * F(math.sqrt(variance)) if variance else ZERO
            row = (middle - reach, middle, middle + reach,
                   (value - middle + reach) / (2 * reach) if reach else F(1, 2),
                   2 * reach / middle if middle else ZERO)
        for column, v in zip(out, row, strict=True):
            column.append(v)
    return out


def true_range(high: Sequence[F], low: Sequence[F], close: Sequence[F]) -> list[F]:
    return [max(h - low_, abs(h - c), abs(low_ - c))
            for h, low_, c in zip(high[1:], low[1:], close, strict=False)]


def atr(high: Sequence[F], low: Sequence[F], close: Sequence[F], n: int) -> list[Value]:
    return [None] * min(1, len(high)) + smooth(true_range(high, low, close), n, F(1, n))


def stochastic(high: Sequence[F], low: Sequence[F], close: Sequence[F], n: int, k: int,
               d: int) -> list[list[Value]]:
    raw = []
    for i in range(n - 1, len(close)):
        top, bottom = max(high[i - n + 1:i + 1]), min(low[i - n + 1:i + 1])
        raw.append(100 * (close[i] - bottom) / (top - bottom) if top > bottom else ZERO)
    slow = [v for v in sma(raw, k) if v is not None]
    signal = sma(slow, d)
    first = n + k - 2
    out: list[list[Value]] = [[], []]
    for i in range(len(close)):
        at = i - first
        known = at >= 0 and signal[at] is not None
        out[0].append(slow[at] if known else None)
        out[1].append(signal[at] if known else None)
    return out


def obv(close: Sequence[F], volume: Sequence[F]) -> list[Value]:
    sign = [1] + [(b > a) - (b < a) for a, b in pairwise(close)]
    return over(len(close), lambda i: sum(
        (s * v for s, v in zip(sign[:i + 1], volume, strict=False)), ZERO))


def vwap(price: Sequence[F], volume: Sequence[F]) -> list[Value]:
    def at(i: int) -> Value:
        traded = sum(volume[:i + 1], ZERO)
        return sum((p * v for p, v in zip(price[:i + 1], volume, strict=False)),
                   ZERO) / traded if traded else None
    return over(len(price), at)


def mfi(high: Sequence[F], low: Sequence[F], close: Sequence[F], volume: Sequence[F],
        n: int) -> list[Value]:
    typical = [(h + low_ + c) / 3 for h, low_, c in zip(high, low, close, strict=True)]

    def at(i: int) -> Value:
        if i < n:
            return None
        rows = range(i - n + 1, i + 1)
        up = sum((typical[j] * volume[j] for j in rows if typical[j] > typical[j - 1]), ZERO)
        down = sum((typical[j] * volume[j] for j in rows if typical[j] < typical[j - 1]), ZERO)
        return 100 * up / (up + down) if up + down else ZERO
    return over(len(close), at)


def momentum(x: Sequence[F], n: int) -> list[Value]:
    return over(len(x), lambda i: None if i < n else (
        (x[i] / x[i - n] - 1) * 100 if x[i - n] else ZERO))


def log_return(x: Sequence[F]) -> list[Value]:
    return over(len(x), lambda i: None if i < 1 else log(x[i] / x[i - 1]))


def log(ratio: F) -> float:
    near = float(ratio - 1)
    return math.log1p(near) if abs(near) < 0.5 else math.log(ratio)


def realised(x: Sequence[F], n: int) -> list[Value]:
    steps = log_return(x)
    return over(len(x), lambda i: None if i < n else math.sqrt(
        math.fsum(float(s or 0) ** 2 for s in steps[i - n + 1:i + 1]) / n))


def parkinson(high: Sequence[F], low: Sequence[F], n: int) -> list[Value]:
    squares = [log(h / low_) ** 2 for h, low_ in zip(high, low, strict=True)]
    return over(len(high), lambda i: None if i < n - 1 else math.sqrt(
        math.fsum(squares[i - n + 1:i + 1]) / (4 * n * math.log(2))))


def volume_ratio(volume: Sequence[F], n: int) -> list[Value]:
    return [None if m is None else v / m if m else ZERO
            for v, m in zip(volume, sma(volume, n), strict=True)]


def order_flow(bid: Sequence[F], bid_qty: Sequence[F], ask: Sequence[F],
               ask_qty: Sequence[F]) -> list[Value]:
    return over(len(bid), lambda i: ZERO if i == 0 else (
        bid_qty[i] * (bid[i] >= bid[i - 1]) - bid_qty[i - 1] * (bid[i] <= bid[i - 1])
        - ask_qty[i] * (ask[i] <= ask[i - 1]) + ask_qty[i - 1] * (ask[i] >= ask[i - 1])))


def queue_change(price: Sequence[F], qty: Sequence[F]) -> list[Value]:
    def at(i: int) -> Value:
        if i == 0 or price[i] != price[i - 1] or not max(qty[i], qty[i - 1]):
            return ZERO
        return (qty[i] - qty[i - 1]) / max(qty[i], qty[i - 1])
    return over(len(price), at)


def trade_flow(side: Sequence[F], qty: Sequence[F], n: int) -> list[Value]:
    signed = [s * q for s, q in zip(side, qty, strict=True)]
    weight = F(2, n + 1)
    return [a / b if a is not None and b else None for a, b in zip(
        smooth(signed, 1, weight), smooth(qty, 1, weight), strict=True)]
