"""How much to trade; the rules are in ``_sizing.pxd``."""
cimport cython

from hftpipe.errors import ConfigError

RULES = ("fixed", "equity", "fraction", "kelly", "volatility", "equal")
WHOLE = 10**9                   # of a share


def row(params, qty, most, lot, instruments):
    """The fields of ``sizing_t`` for one instrument.

    Parameters
    ----------
    params : mapping
        ``size`` (one of `RULES`), ``equity`` (nanocash) and, in 1e-9, ``size_share``,
        ``size_stop``, ``size_win``, ``size_payoff``, ``size_kelly``, ``size_cap`` and
        ``size_base``.
    qty, most, lot : int, nanoqty
        Of a fixed size; at most; increment.
    instruments : int
        How many there are, for ``equal``.

    Raises
    ------
    ConfigError
        A rule that is none, or a value out of range.
    """
    rule = params["size"]
    if rule not in RULES:
        raise ConfigError(f"size must be one of {', '.join(RULES)}, was {rule!r}")
    for name in ("size_share", "size_stop", "size_win", "size_kelly", "size_cap"):
        if not 0 <= params[name] <= WHOLE:
            raise ConfigError(f"{name} must be 0 to 100 %, was {params[name] / WHOLE:g}")
    if rule in ("fraction", "volatility") and not params["size_stop"]:
        raise ConfigError(f"size {rule} needs size_stop, was 0")
    if rule == "kelly" and params["size_payoff"] <= 0:
        raise ConfigError(f"size kelly needs size_payoff above 0, was {params['size_payoff']}")
    share = params["size_share"]
    if rule == "kelly":
        win, payoff = params["size_win"], params["size_payoff"]
        edge = win * payoff - (WHOLE - win) * WHOLE             # 1e-18, times payoff
        share = min(max(params["size_kelly"] * edge // (payoff * WHOLE), 0), params["size_cap"])
    elif rule == "equal":
        share = WHOLE // max(instruments, 1)
    return {"rule": RULES.index(rule), "qty": qty, "equity": params["equity"], "share": share,
            "stop": params["size_stop"], "base": params["size_base"], "lot": lot, "most": most,
            "bad": 0}


@cython.final
cdef class Sizing:
    """One instrument's size, for research: the very function that the strategies call."""

    def __cinit__(self, params, qty, most, lot, instruments=1):
        self.s = row(params, qty, most, lot, instruments)

    def qty(self, int64_t price, double volatility=0.0) -> int:
        """Quantity at *price*, nanoqty: whole lots, 0 = no order."""
        return sizing_qty(&self.s, price, volatility)

    @property
    def bad(self) -> int:
        """Times that price, equity or volatility were no good."""
        return self.s.bad
