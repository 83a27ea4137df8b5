"""Risk figures from returns: value at risk, average true range, correlation, volumes.

Arithmetic of the cold path, in float64; what leaves is an integer in 1e-9, rounded away from zero,
so that a figure never understates.  ``None`` is a figure that cannot be made, and the gate refuses
what it would have needed it for.

Value at risk, one day, of the profit and loss that the scenarios (past returns applied to what is
held now) would give; never below 0:

historical
    the loss at rank ceil(n * confidence) of n, counted from the smallest: the smallest loss that
    at least that share of the scenarios does not exceed.
parametric
    z * s - m, with mean m and standard deviation s (n - 1) of the scenarios, z the normal quantile.
cornish_fisher
    w * s - m with population moments, w the fourth-moment expansion of the quantile by Cornish and
    Fisher.  The expansion is not monotone when skew or kurtosis are strong; the largest w up to the
    confidence counts, so a higher confidence never gives a smaller figure.

All three scale with the position.  The parametric one is sub-additive: value at risk of what is
held plus an order is at most that of what is held plus the order's value times its unit figure.
The others keep that bound only as an approximation, until the next figure is out.

References
----------
Jorion (2007), Value at Risk, 3rd ed., chapters 5 and 10.
Cornish, Fisher (1938), Rev. Int. Stat. Inst. 5:307.
Maillard (2012), A User's Guide to the Cornish Fisher Expansion, SSRN 1997178.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

NANO = 10**9
MAX = 2**63 - 1
CONFIDENCES = (Fraction(95, 100), Fraction(99, 100))
ATR_PERIOD = 14


def nano_up(value: float) -> int | None:
    """*value* in 1e-9, rounded away from zero; None unless it is finite and fits 64 bits."""
    if not math.isfinite(value):
        return None
    exact = Fraction(value) * NANO
    out = math.ceil(exact) if exact > 0 else math.floor(exact)
    return out if -MAX <= out <= MAX else None


# ---------------------------------------------------------------- value at risk

def historical(pnl: Array, confidence: Fraction) -> float:
    """Value at risk by historical simulation.

    Parameters
    ----------
    pnl : (n,) array
        Profit and loss of each scenario, n > 0.
    confidence : Fraction
        In (0, 1).
    """
    rank = math.ceil(len(pnl) * confidence)
    return max(float(np.sort(-pnl)[rank - 1]), 0.0)


def parametric(pnl: Array, confidence: Fraction) -> float:
    """Value at risk if the scenarios were drawn from a normal distribution."""
    z = NormalDist().inv_cdf(float(confidence))
    return max(z * float(np.std(pnl, ddof=1)) - float(np.mean(pnl)), 0.0)


def cornish_fisher(pnl: Array, confidence: Fraction) -> float:
    """Value at risk with the quantile corrected for skew and excess kurtosis."""
    mean = float(np.mean(pnl))
    rest = pnl - mean
    variance = float(np.mean(rest ** 2))
    if variance <= 0:
        return max(-mean, 0.0)
    scale = math.sqrt(variance)
    unit = rest / scale                 # first: the powers of small numbers lose themselves
    skew = float(np.mean(unit ** 3))
    excess = float(np.mean(unit ** 4)) - 3
    # Losses are the mirror image: their skew has the other sign.
    w = expansion_peak(NormalDist().inv_cdf(float(confidence)), -skew, excess)
    return max(w * scale - mean, 0.0)


def expansion(z: float, skew: float, excess: float) -> float:
    """The Cornish-Fisher expansion of the normal quantile *z*."""
    return (z + (z * z - 1) * skew / 6 + (z ** 3 - 3 * z) * excess / 24
            - (2 * z ** 3 - 5 * z) * skew * skew / 36)


def expansion_peak(z: float, skew: float, excess: float) -> float:
    """The largest value of the expansion on [0, *z*]; *z* >= 0."""
    a = excess / 24 - skew * skew / 18          # of z**3, z**2, z in the expansion
    b = skew / 6
    c = 1 - excess / 8 + skew * skew * 5 / 36
    turns: list[float] = []                     # where its derivative 3a z**2 + 2b z + c is 0
    if abs(a) > 1e-12:
        under = b * b - 3 * a * c
        if under >= 0:
            turns = [(-b - math.sqrt(under)) / (3 * a), (-b + math.sqrt(under)) / (3 * a)]
    elif b:
        turns = [-c / (2 * b)]
    return max(expansion(t, skew, excess) for t in (0.0, z, *(t for t in turns if 0 < t < z)))


METHODS: dict[str, Callable[[Array, Fraction], float]] = {
    "historical": historical, "parametric": parametric, "cornish_fisher": cornish_fisher}


def scenarios(value: Array, returns: Array) -> Array | None:
    """Profit and loss of holding *value* through each of the past returns.

    Parameters
    ----------
    value : (m,) array
        Signed value of each position in the quote currency.
    returns : (n, m) array
        Past simple returns; NaN where there is none.

    Returns
    -------
    (k,) array or None
        Only rows in which everything that is held has a return; None when nothing is held.
    """
    held = value != 0
    if not held.any():
        return None
    part = returns[:, held]
    rows: Array = part[~np.isnan(part).any(axis=1)] @ value[held]
    return rows


def value_at_risk(value: Array, returns: Array, method: str, least: int, scale: float = 1.0,
                  ) -> tuple[int | None, int | None]:
    """One-day value at risk of what is held, nanocash, at 95 and at 99 %.

    Parameters
    ----------
    value : (m,) array
        Signed value of each position in the quote currency.
    returns : (n, m) array
        Past simple returns of one period each; NaN where there is none.
    method : str
        Of :data:`METHODS`.
    least : int
        Scenarios below which there is no figure; at least 2.
    scale : float
        From one period of *returns* to one day: the square root of periods per day.
    """
    pnl = scenarios(value, returns)
    if pnl is None:
        return 0, 0
    if len(pnl) < max(least, 2):
        return None, None
    found = [nano_up(METHODS[method](pnl, c) * scale) for c in CONFIDENCES]
    return found[0], found[1]


def unit_value_at_risk(returns: Array, method: str, least: int, scale: float = 1.0,
                       ) -> list[tuple[int | None, int | None]]:
    """Of each instrument, per unit of its value and for the worse of its two sides, in 1e-9.

    Parameters as :func:`value_at_risk`.
    """
    out: list[tuple[int | None, int | None]] = []
    for column in returns.T:
        series = column[~np.isnan(column)]
        if len(series) < max(least, 2):
            out.append((None, None))
            continue
        made = METHODS[method]
        pair = [nano_up(max(made(series, c), made(-series, c)) * scale) for c in CONFIDENCES]
        out.append((pair[0], pair[1]))
    return out


# ---------------------------------------------------------------- the others

def correlations(returns: Array, least: int) -> dict[tuple[int, int], int]:
    """Correlation of each pair (i < j) in 1e-9 over the rows that both have.

    Absent where there are fewer than *least* rows, or one of the two never moves.
    """
    out: dict[tuple[int, int], int] = {}
    count = returns.shape[1]
    for i in range(count):
        for j in range(i + 1, count):
            rows = returns[:, (i, j)]
            rows = rows[~np.isnan(rows).any(axis=1)]
            if len(rows) < max(least, 2):
                continue
            a, b = rows[:, 0] - rows[:, 0].mean(), rows[:, 1] - rows[:, 1].mean()
            a, b = _normed(a), _normed(b)
            if a is None or b is None:
                continue
            found = nano_up(min(max(float(a @ b), -1.0), 1.0))
            if found is not None:
                out[i, j] = max(min(found, NANO), -NANO)
    return out


def _normed(deviation: Array) -> Array | None:
    """*deviation* at length 1; None when it is nothing but rounding."""
    largest = float(np.abs(deviation).max())
    if largest < 1e-14:
        return None
    deviation = deviation / largest             # squares of tiny numbers would vanish
    out: Array = deviation / math.sqrt(float(deviation @ deviation))
    return out


def atr(high: Array, low: Array, close: Array, period: int = ATR_PERIOD) -> float | None:
    """Average true range by Wilder, in the unit of the price; as TA-Lib's ATR.

    Parameters
    ----------
    high, low, close : (n,) arrays, oldest first
        Without NaN.

    Returns
    -------
    float or None
        None below *period* + 1 bars.
    """
    if len(close) < period + 1:
        return None
    before = close[:-1]
    ranges = np.maximum(high[1:], before) - np.minimum(low[1:], before)
    out = float(ranges[:period].mean())
    for true_range in ranges[period:]:
        out = (out * (period - 1) + float(true_range)) / period
    return out


def volatility(high: Array, low: Array, close: Array) -> int | None:
    """Average true range over the last close, in 1e-9; None when a bar or a range is missing."""
    whole = ~(np.isnan(high) | np.isnan(low) | np.isnan(close))
    found = atr(high[whole], low[whole], close[whole])
    if found is None:
        return None
    last = float(close[whole][-1])
    return nano_up(found / last) if last > 0 else None


def average_volume(volume: Array, least: int) -> int | None:
    """Mean of the daily volumes, nanoqty, rounded down: less liquidity is the safe side."""
    days = volume[~np.isnan(volume)]
    if len(days) < max(least, 1):
        return None
    mean = float(days.mean())
    return min(math.floor(Fraction(mean) * NANO), MAX) if math.isfinite(mean) else None


def volume_ratio(volume: Array, over: int = 20) -> int | None:
    """Volume of the last whole bar over the mean of the *over* bars before it, in 1e-9, rounded
    down; None when there are fewer, or they were empty."""
    bars = volume[~np.isnan(volume)]
    if len(bars) < over + 1:
        return None
    mean = float(bars[-over - 1:-1].mean())
    if mean <= 0:
        return None
    return min(math.floor(Fraction(float(bars[-1])) / Fraction(mean) * NANO), MAX)
