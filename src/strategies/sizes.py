"""How much and how often: the parameters every shipped strategy has."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hftpipe import schema
from hftpipe.errors import ConfigError
from hftpipe.strategies.params import within

DEFAULTS: dict[str, Any] = {
    "lots": 1,                  # lots of one order
    "max_lots": 10,             # lots held at most of one instrument, open orders included
    "cooldown_ms": 100.0,       # event time between two orders of one instrument
    "allow_short": False,       # whether to hold less than nothing
}


def table(strategy: str, params: Mapping[str, Any], instruments: Any) -> list[dict[str, int]]:
    """One row of ``taker_t`` per instrument.

    Raises
    ------
    ConfigError
        A value out of range, an instrument without a lot, or quantities beyond 64 bits.
    """
    if getattr(instruments, "dtype", None) != schema.dtype(schema.INSTRUMENT):
        raise ConfigError(f"strategy {strategy}: instruments must be an array of INSTRUMENT")
    within(strategy, "lots", params["lots"], 1, 10**9)
    within(strategy, "max_lots", params["max_lots"], params["lots"], 10**9)
    within(strategy, "cooldown_ms", params["cooldown_ms"], 0, 86_400_000)
    rows = []
    for row in instruments:
        lot, name = int(row["lot"]), row["symbol"].decode("ascii", "replace")
        if lot <= 0:
            raise ConfigError(f"strategy {strategy}: lot of {name} must be positive, was {lot}")
        most = params["max_lots"] * lot
        if most > 2**61:
            raise ConfigError(f"strategy {strategy}: max_lots {params['max_lots']} of {name} "
                              f"is {most} nanoqty: does not fit")
        rows.append({"size": params["lots"] * lot, "most": most, "lot": lot,
                     "minimum": int(row["min_qty"]), "quiet": round(params["cooldown_ms"] * 1e6),
                     "next": -2**63, "short": params["allow_short"]})
    return rows
