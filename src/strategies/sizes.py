"""Which instruments, how much and how often: the parameters every shipped strategy has.

As `hftpipe.config` gives them: quantities in nanoqty, times in ns.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftpipe import schema
from hftpipe.errors import ConfigError
from hftpipe.strategies.params import within

LARGEST = 2**61                 # nanoqty; sums of two stay inside int64

DEFAULTS: dict[str, Any] = {
    "symbols": (),              # instruments it sees; empty = all
    "qty": 10**9,               # nanoqty of one order; a multiple of the instrument's lot
    "max_qty": 0,               # nanoqty of one instrument at most, open orders included;
                                # 0 = ten orders
    "cooldown": 10**9,          # ns of event time between two orders of one instrument
    "allow_short": False,       # whether to hold less than nothing
}


def table(strategy: str, params: Mapping[str, Any], instruments: Any) -> list[dict[str, int]]:
    """One row of ``taker_t`` per instrument; size 0 for one that is not seen.

    Raises
    ------
    ConfigError
        A value out of range, an unknown symbol, an instrument without a lot, or a quantity that
        is no multiple of it.
    """
    if getattr(instruments, "dtype", None) != schema.dtype(schema.INSTRUMENT):
        raise ConfigError(f"strategy {strategy}: instruments must be an array of INSTRUMENT")
    within(strategy, "qty", params["qty"], 1, LARGEST // 10)
    most = params["max_qty"] or 10 * params["qty"]
    within(strategy, "max_qty", most, params["qty"], LARGEST)
    within(strategy, "cooldown", params["cooldown"], 0, 86_400 * 10**9)
    names = [row["symbol"].decode("ascii", "replace") for row in instruments]
    for symbol in params["symbols"]:
        if symbol not in names:
            raise ConfigError(f"strategy {strategy}: symbols names {symbol}, wanted some of "
                              f"{', '.join(names)}")
    rows = []
    for name, row in zip(names, instruments, strict=True):
        lot, seen = int(row["lot"]), not params["symbols"] or name in params["symbols"]
        if lot <= 0:
            raise ConfigError(f"strategy {strategy}: lot of {name} must be positive, was {lot}")
        if seen and params["qty"] % lot:
            raise ConfigError(f"strategy {strategy}: qty must be a multiple of the lot of {name}, "
                              f"{lot} nanoqty, was {params['qty']}")
        rows.append({"size": params["qty"] if seen else 0, "most": most, "lot": lot,
                     "minimum": int(row["min_qty"]), "quiet": params["cooldown"],
                     "next": -2**63, "short": params["allow_short"]})
    return rows
