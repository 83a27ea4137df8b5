"""How much and how often: the parameters every shipped strategy has.

As `hftpipe.config` gives them: quantities in nanoqty, times in ns.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftpipe import schema
from hftpipe.errors import ConfigError
from hftpipe.strategies import _sizing
from hftpipe.strategies.params import within

LARGEST = 2**61                 # nanoqty; sums of two stay inside int64

DEFAULTS: dict[str, Any] = {
    "qty": 10**9,               # nanoqty of one order; a multiple of the instrument's lot
    "max_qty": 0,               # nanoqty of one instrument at most, open orders included;
                                # 0 = ten orders
    "cooldown": 10**9,          # ns of event time between two orders of one instrument
    "allow_short": False,       # whether to hold less than nothing
    "size": "fixed",            # the rule; `_sizing.pxd` has them and what the next ones mean
    "equity": 100_000 * 10**9,  # nanocash that the rules but fixed take shares of
    "size_share": 2 * 10**7, "size_stop": 2 * 10**7, "size_win": 5 * 10**8,
    "size_payoff": 2 * 10**9, "size_kelly": 25 * 10**7, "size_cap": 2 * 10**8,
    "size_base": 2 * 10**7,     # 1e-9
    "in_lots": False,           # quantities count 1e-9 lots of each instrument instead of units
}


def table(strategy: str, params: Mapping[str, Any], instruments: Any) -> list[dict[str, int]]:
    """One row of ``taker_t`` per instrument.

    Raises
    ------
    ConfigError
        A value out of range, an instrument without a lot, or a quantity that is no multiple of
        it.
    """
    if getattr(instruments, "dtype", None) != schema.dtype(schema.INSTRUMENT):
        raise ConfigError(f"strategy {strategy}: instruments must be an array of INSTRUMENT")
    within(strategy, "qty", params["qty"], 1, LARGEST // 10)
    most = params["max_qty"] or 10 * params["qty"]
    within(strategy, "max_qty", most, params["qty"], LARGEST)
    within(strategy, "cooldown", params["cooldown"], 0, 86_400 * 10**9)
    rows = []
    for row in instruments:
        lot, name = int(row["lot"]), row["symbol"].decode("ascii", "replace")
        if lot <= 0:
            raise ConfigError(f"strategy {strategy}: lot of {name} must be positive, was {lot}")
        if params["in_lots"]:
            qty, most_here = params["qty"] * lot // 10**9, most * lot // 10**9
        else:
            qty, most_here = params["qty"], most
        if qty % lot or qty <= 0:
            raise ConfigError(f"strategy {strategy}: qty must be a multiple of the lot of {name}, "
                              f"{lot} nanoqty, was {qty}")
        try:
            size = _sizing.row(params, qty, most_here, lot, len(instruments))
        except ConfigError as error:
            raise ConfigError(f"strategy {strategy}: {error}") from None
        rows.append({"size": size, "most": most_here, "lot": lot,
                     "minimum": int(row["min_qty"]), "quiet": params["cooldown"],
                     "next": -2**63, "short": params["allow_short"]})
    return rows
