"""Risk figures in exact fractions, straight from their definitions; shares nothing with src."""
import math
from fractions import Fraction


def ordered(losses, confidence):
    """The smallest loss x with at least *confidence* of all losses <= x."""
    for x in sorted(losses):
        if Fraction(sum(1 for y in losses if y <= x), len(losses)) >= confidence:
            return max(x, Fraction(0))
    raise AssertionError("the largest loss covers all")


def scenarios(values, rows):
    """Profit and loss of each row in which all that is held has a return; exact."""
    held = [i for i, v in enumerate(values) if v]
    return [sum(Fraction(values[i]) * Fraction(row[i]) for i in held) for row in rows
            if all(not math.isnan(row[i]) for i in held)]


def moments(xs):
    """Mean, and central moments two to four (population), exact."""
    mean = Fraction(sum(xs), len(xs))
    return mean, *(sum((x - mean) ** k for x in xs) / len(xs) for k in (2, 3, 4))


def true_range_average(high, low, close, period=14):
    """Wilder's average by its recursion, exact."""
    ranges = [max(h - lo, abs(h - c), abs(lo - c))
              for h, lo, c in zip(high[1:], low[1:], close[:-1], strict=True)]
    if len(ranges) < period:
        return None
    out = Fraction(sum(ranges[:period]), period)
    for r in ranges[period:]:
        out = (out * (period - 1) + r) / period
    return out


def covariance(xs, ys):
    mx, my = Fraction(sum(xs), len(xs)), Fraction(sum(ys), len(ys))
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
