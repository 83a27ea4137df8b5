"""The feature vector as its definitions in ``schema.CATALOGUE`` read: naive, exact, slow.

Integers stay integers and averages are recomputed from all values ever seen, with
fractions where a quotient is exact; nothing here is shared with ``src/_feature.pyx``.
"""
from __future__ import annotations

import math
from fractions import Fraction

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


class Twin:
    def __init__(self) -> None:
        self.states: list[dict[str, int]] = []
        self.flows: list[int] = []

    def update(self, book) -> dict[str, float] | None:
        """The vector by name, or None when the state is not usable."""
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
                   for a, b in zip(self.states, self.states[1:], strict=False)]
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
        }
