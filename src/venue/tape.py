"""What the tape of stocks says beside trades, quotes and bars: halts, price bands, corrections.

The simulated traders cause none of it; somebody does: a test, or the fault of that name.  It is
told, and that is all: the traders go on, and so does matching.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ._traders import TRADE
from .state import NANO

if TYPE_CHECKING:
    from .history import History
    from .streams import Feed
    from .traders import Instrument

# Status code of the UTP plan: text, then code and text of the usual reason.
STATUSES = {
    "H": ("Trading Halt", "T1", "Halt News Pending"),
    "P": ("Volatility Trading Pause", "LUDP", "Volatility Trading Pause"),
    "Q": ("Quotation Resumption", "R4", "Qualifications Issues Reviewed/Resolved"),
    "T": ("Trading Resumption", "C11", "Trade Halt Concluded By Other Regulatory Auth."),
}


class Tape:
    """The voice of the tape on the data streams of stocks.

    Parameters
    ----------
    instruments : sequence of Instrument
        All of the market's.
    feeds : sequence of Feed
    history : History
    """

    def __init__(self, instruments: tuple[Instrument, ...], feeds: Iterable[Feed],
                 history: History) -> None:
        self.stocks = [i for i, one in enumerate(instruments) if not one.crypto]
        self._instruments, self._feeds, self._history = instruments, tuple(feeds), history

    def _say(self, channel: str, kind: str, index: int, **fields: Any) -> None:
        for feed in self._feeds:
            feed.say(channel, kind, index, fields)

    def status(self, index: int, code: str) -> None:
        """A trading status, UTP's code: H halt, P pause, Q quotes again, T trading again."""
        words, reason, why = STATUSES[code]
        self._say("statuses", "s", index, sc=code, sm=words, rc=reason, rm=why)

    def bands(self, index: int, upper: int, lower: int, indicator: str = "B") -> None:
        """Price bands in nano; the indicator is SIP's, B = intra-day update."""
        self._say("lulds", "l", index, u=upper / NANO, d=lower / NANO, i=indicator)

    def trade(self, index: int) -> tuple[int, int, int] | None:
        """Id, price and quantity of the newest trade; None = none yet."""
        found = self._history.last(TRADE, index)
        return None if found is None else (found[1][7], found[1][3], found[1][4])

    def cancel(self, index: int, trade: tuple[int, int, int], action: str = "C") -> None:
        """A trade is void: C cancelled, E an error."""
        number, price, qty = trade
        self._history.void(index, number, "canceled" if action == "C" else "incorrect")
        self._say("cancelErrors", "x", index, i=number, x=None, p=price / NANO, s=qty // NANO,
                  a=action)

    def correct(self, index: int, trade: tuple[int, int, int], price: int, qty: int) -> None:
        """A trade was another one; it keeps its id."""
        number, was, size = trade
        self._history.void(index, number, "incorrect", (price, qty))
        self._say("corrections", "c", index, x=None, oi=number, op=was / NANO, os=size // NANO,
                  oc=["@"], ci=number, cp=price / NANO, cs=qty // NANO, cc=["@"])

    def late(self, index: int, price: int, qty: int) -> bool:
        """A trade of the minute before is reported late: its bar is told again, if it had one."""
        return all([feed.restate(index, price, qty) for feed in self._feeds])
