"""The limits of the risk gate: every one, declared once.

Names, numbers and meanings are :data:`hftpipe.schema.LIMIT`; here each gets its unit, default,
range, the reason it refuses with and the figures it needs.  The configuration file, its
documentation, ``hftpipe risk`` and the compiled gate all read this table.

A limit is written as a number of its unit, or as ``"off: <why>"``: a check is never off by
accident, and why it is off stands where it is switched off.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hftpipe import schema
from hftpipe.errors import ConfigError

NANO = 10**9
MAX = 2**63 - 1
OFF = -2**63                    # parsed: the check is off; in a LIMIT figure: switch it off

#: unit -> (smallest, largest, of the integer that is compared, in words)
UNITS: dict[str, tuple[int, int, str]] = {
    "shares": (1, MAX, "shares above 0 as an integer or a decimal string of at most nine "
                       "decimals"),
    "quote": (1, MAX, "quote above 0 as an integer or a decimal string of at most nine decimals"),
    "ratio": (1, 1000 * NANO, "a ratio above 0 as an integer or a decimal string of at most nine "
                              "decimals"),
    "bps": (1, 10_000, "an integer number of bps from 1 to 10000"),
    "orders": (1, 1_000_000, "an integer number of orders from 1 to 1000000"),
    "instruments": (1, 65_536, "an integer number of instruments from 1 to 65536"),
    "trades": (1, 1_000_000, "an integer number of trades from 1 to 1000000"),
    "marks": (1, 1000, "an integer number of marks from 1 to 1000"),
    "ms": (1, 86_400_000, "an integer number of ms from 1 to 86400000"),
    "flag": (0, 1, "true or false"),
}
DECIMAL = ("shares", "quote", "ratio")  # compared in 1e-9


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit.

    Attributes
    ----------
    name : str
        Key in ``[risk]``.
    number : int
        LIMIT_*; what a LIMIT figure names it by.
    unit : str
        Of UNITS.
    default : int, str or bool
        As it would stand in the file.
    doc : str
    reason : str
        Label of the REASON it refuses with; empty when it only shapes another check.
    tighter : str
        Which way it gets stricter: "down" or "up"; "" = neither is safer.
    off : int or None
        What the gate compares with while it is off; None = it cannot be switched off.
    needs : tuple of str
        FIGURE kinds without which the check cannot be evaluated.
    low, high : int
        Range of the compared integer.
    """

    name: str
    number: int
    unit: str
    default: int | str | bool
    doc: str
    reason: str = ""
    tighter: str = "down"
    off: int | None = MAX
    needs: tuple[str, ...] = ()
    low: int = 0
    high: int = MAX

    def parse(self, value: object) -> int:
        """*value* as the integer that is compared: 1e-9 for decimals, else the unit; or OFF.

        Raises
        ------
        ConfigError
            Naming the limit, what was wanted and what was found.
        """
        if isinstance(value, str) and re.match(r"off\b", value):
            if self.off is None:
                raise ConfigError(f"{self.name}: wanted {UNITS[self.unit][2]}, found {value!r}: "
                                  "this check cannot be switched off")
            if not off_reason(value):
                raise ConfigError(f'{self.name}: wanted "off: <why>", found {value!r}')
            return OFF
        wanted = f"{self.name}: wanted {UNITS[self.unit][2]}"
        if (self.low, self.high) != UNITS[self.unit][:2]:
            wanted += f" from {self.show(self.low)} to {self.show(self.high)}"
        if self.off is not None:
            wanted += ', or "off: <why>"'
        number = _number(self.unit, value)
        if number is None or not self.low <= number <= self.high:
            raise ConfigError(f"{wanted}, found {value!r}")
        return number

    def show(self, number: int) -> str:
        """The compared integer as people write it."""
        if number == OFF:
            return "off"
        if self.unit == "flag":
            return "true" if number else "false"
        if self.unit not in DECIMAL:
            return str(number)
        whole, part = divmod(number, NANO)
        return f"{whole}" + (f".{part:09d}".rstrip("0") if part else "")

    def loosens(self, old: int, new: int) -> bool:
        """Whether going from *old* to *new* (integers that are compared) lets more pass."""
        if new == old:
            return False
        if OFF in (old, new):
            return new == OFF
        if self.tighter == "down":
            return new > old
        return new < old or not self.tighter


def off_reason(value: object) -> str:
    """Why a check is off, from ``"off: why"``; empty when it is on or gives no reason."""
    match = re.fullmatch(r"off:\s*(\S.*)", value, re.S) if isinstance(value, str) else None
    return match[1].strip() if match else ""


def _number(unit: str, value: object) -> int | None:
    if unit == "flag":
        return int(value) if isinstance(value, bool) else None
    if unit in DECIMAL and isinstance(value, str):
        match = re.fullmatch(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?", value, re.ASCII)
        return int(match[1]) * NANO + int((match[2] or "").ljust(9, "0")) if match else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value * NANO if unit in DECIMAL else value


def _limit(name: str, unit: str, default: int | str | bool, reason: str = "", *,
           tighter: str = "down", off: int | None = MAX, needs: tuple[str, ...] = (),
           low: int | None = None, high: int | None = None) -> Limit:
    number, doc = next((v, d) for m, v, d in schema.LIMIT.members if m == name.upper())
    bottom, top, _ = UNITS[unit]
    return Limit(name, number, unit, default, doc, reason, tighter, off, needs,
                 bottom if low is None else low, top if high is None else high)


EQUITY, PEAK = ("equity",), ("equity", "peak")
LIMITS = [
    _limit("max_order_shares", "shares", 1000, "order_size"),
    _limit("max_order_notional", "quote", 10000, "order_notional"),
    _limit("max_position_shares", "shares", 1000, "position_size"),
    _limit("max_position_notional", "quote", 10000, "position_notional"),
    _limit("max_total_notional", "quote", 50000, "total_notional"),
    _limit("max_open_positions", "instruments", 5, "open_positions"),
    _limit("max_daily_loss", "quote", 5000, "daily_loss"),
    _limit("price_collar_bps", "bps", 50, "price_collar", off=None),
    _limit("max_orders_per_minute", "orders", 60, "order_rate", off=None),
    _limit("max_open_orders", "orders", 10, "pending"),
    _limit("max_data_age_ms", "ms", 30000, "stale_data", off=None),
    _limit("allow_short", "flag", False, "short_not_allowed", off=None),
    _limit("min_order_notional", "quote", 100, "order_small", tighter="up", off=0),
    _limit("min_price", "quote", "0.01", "price_range", tighter="up", off=0),
    _limit("max_price", "quote", 10000, "price_range"),
    _limit("last_collar_bps", "bps", 1000, "last_collar"),
    _limit("max_orders_per_day", "orders", 50, "orders_per_day"),
    _limit("max_strategy_orders", "orders", 500, "repeated"),
    _limit("duplicate_window_ms", "ms", 100, "duplicate_order", tighter="up", off=0, high=60_000),
    _limit("max_weekly_loss", "quote", 15000, "weekly_loss", needs=("week_pnl",)),
    _limit("max_monthly_loss", "quote", 50000, "monthly_loss", needs=("month_pnl",)),
    _limit("max_trade_loss", "quote", 500, "trade_loss"),
    _limit("stop_distance_bps", "bps", 200, tighter="up", off=None),
    _limit("max_symbol_share_bps", "bps", 2500, "concentration", needs=EQUITY),
    _limit("max_sector_share_bps", "bps", 3000, "sector", needs=(*EQUITY, "sector")),
    _limit("max_var_95", "quote", 5000, "var_95", needs=("var_95", "unit_var_95")),
    _limit("max_var_99", "quote", 10000, "var_99", needs=("var_99", "unit_var_99")),
    _limit("drawdown_warn_bps", "bps", 300),
    _limit("drawdown_act_bps", "bps", 500, "drawdown", needs=PEAK),
    _limit("drawdown_halt_bps", "bps", 1000, "halted", needs=PEAK),
    _limit("drawdown_confirm", "marks", 3, off=None),
    _limit("max_correlation", "ratio", "0.7", "correlation", needs=("correlation",), low=0,
           high=NANO),
    _limit("max_volatility_bps", "bps", 500, "volatility", needs=("volatility",)),
    _limit("base_volatility_bps", "bps", 200, needs=("volatility",)),
    _limit("max_leverage", "ratio", 1, "leverage", needs=EQUITY, high=100 * NANO),
    _limit("market_hours", "flag", True, "hours", tighter="up", off=0, needs=("session",), low=1),
    _limit("allow_premarket", "flag", False, "hours", off=None),
    _limit("allow_afterhours", "flag", False, "hours", off=None),
    _limit("max_order_volume_bps", "bps", 500, "order_volume", needs=("volume",)),
    _limit("max_position_volume_bps", "bps", 1000, "position_volume", needs=("volume",)),
    _limit("max_spread_bps", "bps", 200, "spread"),
    _limit("min_volume_ratio", "ratio", "off: it filters entries of one strategy, it limits no "
           "risk", "volume_ratio", tighter="up", off=0, needs=("volume_ratio",)),
    _limit("max_figure_age_ms", "ms", 60000, "old_figure", off=None),
    _limit("breaker_losses", "trades", 5, "breaker"),
    _limit("breaker_failures", "orders", 5, "breaker"),
    _limit("breaker_rejects", "orders", 5, "breaker"),
    _limit("breaker_latency_ms", "ms", 200, "breaker"),
    _limit("breaker_slow_ms", "ms", 30000, off=None),
    _limit("breaker_cooldown_ms", "ms", 3600000, tighter="up", off=None),
    _limit("breaker_quiet_ms", "ms", 60000, tighter="up", off=None),
    _limit("breaker_daily_loss", "quote", 5000, "breaker"),
    _limit("breaker_drawdown_bps", "bps", 500, "breaker", needs=PEAK),
]
BY_NAME = {limit.name: limit for limit in LIMITS}
if [limit.number for limit in LIMITS] != list(range(len(schema.LIMIT.members))):
    raise ValueError("limits.LIMITS must list schema.LIMIT, in its order")

#: Pairs of which the first may not exceed the second.
NOT_ABOVE = (
    ("max_order_shares", "max_position_shares"),
    ("max_order_notional", "max_position_notional"),
    ("max_position_notional", "max_total_notional"),
    ("min_order_notional", "max_order_notional"),
    ("min_price", "max_price"),
    ("max_daily_loss", "max_weekly_loss"),
    ("max_weekly_loss", "max_monthly_loss"),
    ("max_symbol_share_bps", "max_sector_share_bps"),
    ("max_var_95", "max_var_99"),
    ("drawdown_warn_bps", "drawdown_act_bps"),
    ("drawdown_act_bps", "drawdown_halt_bps"),
    ("base_volatility_bps", "max_volatility_bps"),
)

_ALONE = "off: the local exchange has no trading day and no history"
_TOYS = "off: the demo's strategies lose to the spread, and nobody is there to release it"
#: What a profile says instead of a default.  The local exchange trades around the clock with
#: made-up traders: it has no session, no past days, and a demo that stopped after fifty orders
#: or five losing trades would demonstrate little.
PROFILES: dict[str, dict[str, int | str | bool]] = {
    "demo": {
        "max_orders_per_day": _ALONE, "max_strategy_orders": _ALONE, "max_weekly_loss": _ALONE,
        "max_monthly_loss": _ALONE, "max_sector_share_bps": _ALONE, "max_var_95": _ALONE,
        "max_var_99": _ALONE, "max_correlation": _ALONE, "max_volatility_bps": _ALONE,
        "base_volatility_bps": _ALONE, "market_hours": _ALONE, "max_order_volume_bps": _ALONE,
        "max_position_volume_bps": _ALONE, "max_symbol_share_bps": _ALONE,
        "max_leverage": _ALONE, "drawdown_warn_bps": _ALONE, "drawdown_act_bps": _ALONE,
        "drawdown_halt_bps": _ALONE, "breaker_drawdown_bps": _ALONE,
        "breaker_losses": _TOYS,
        "min_order_notional": 10,           # they trade single shares of 100.00
    },
}


def default_limits(profile: str = "") -> dict[str, int | str | bool]:
    """A mapping with every limit at its default, or at the one of *profile*."""
    out = {limit.name: limit.default for limit in LIMITS}
    return out | PROFILES.get(profile, {})


def without_figures(limits: Mapping[str, object], why: str,
                    kinds: Iterable[str] | None = None) -> dict[str, object]:
    """*limits* with every check off that needs a figure (of *kinds*; default any), for *why*."""
    gone = None if kinds is None else set(kinds)
    return {name: f"off: {why}" if (
        BY_NAME[name].needs and (gone is None or gone & set(BY_NAME[name].needs))
        and not off_reason(value)) else value for name, value in limits.items()}


def parse_limits(mapping: Mapping[str, object]) -> dict[str, int]:
    """Check a mapping of all LIMITS and convert it, exactly.

    Parameters
    ----------
    mapping : Mapping[str, int | str | bool]
        Each name of LIMITS, nothing else.

    Returns
    -------
    dict of int
        Decimals in 1e-9, the others in their unit; OFF where a check is off.

    Raises
    ------
    ConfigError
        A key is unknown (the nearest is named) or missing, a value is of another type, out of
        range or finer than nine decimals, a check is off without a reason or cannot be, or two
        limits contradict.
    """
    for key in mapping:
        if key not in BY_NAME:
            near = difflib.get_close_matches(str(key), BY_NAME, 1, 0)
            raise ConfigError(f"{key}: wanted a known limit, found {key!r}; nearest is {near[0]}")
    out = {}
    for name, limit in BY_NAME.items():
        if name not in mapping:
            raise ConfigError(f"{name}: wanted a value, found none (default {limit.default!r})")
        out[name] = limit.parse(mapping[name])
    for small, large in NOT_ABOVE:
        if OFF not in (out[small], out[large]) and out[small] > out[large]:
            raise ConfigError(f"{small}: wanted at most {large} = {mapping[large]!r}, "
                              f"found {mapping[small]!r}")
    return out
