"""How long a data stream may be silent: by what it carries and which session it is.

A socket can be open, answer pings and carry nothing for hours.  Stocks are due in regular hours,
now and then before and after them, and not at night; crypto and the test feed at any hour.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from hftpipe._clock import utc_ns
from hftpipe.schema import SESSION

Answer = tuple[int, int]            # SESSION_*, and UTC ns at which it may change
UNKNOWN_NS = 1_000_000_000          # how long it is not asked again what nobody knew


class Calendar(Protocol):
    """Who knows the sessions of the stock exchange."""

    def at(self, utc: int) -> Answer | None:
        """The session at *utc* ns and when it may change; None when that is not known."""


@dataclass(frozen=True)
class Limits:
    """Longest silence that is normal, in s; 0 = any."""

    regular: float = 5.0
    extended: float = 60.0
    closed: float = 0.0
    crypto: float = 30.0


def round_the_clock(url: str) -> bool:
    """Whether what a data stream carries trades at any hour, by the stream's address."""
    path = urlsplit(url).path.rstrip("/")
    return "/crypto/" in path or path.endswith("/test")


class Watch:
    """Longest silence of a data stream that is normal now, in s; None = any.

    Parameters
    ----------
    limits : Limits
    calendar : Calendar, optional
        Of what the stream carries; None = it trades round the clock, as `limits.crypto` says.
    utc : callable, ns
        What time it is.

    Notes
    -----
    An unknown session (a day beyond the calendar) counts as extended hours: orders are refused
    then anyway, so nothing is gained by being strict, and a dead socket is still left some day.
    """

    def __init__(self, limits: Limits, calendar: Calendar | None,
                 utc: Callable[[], int] = utc_ns) -> None:
        self._calendar, self._utc = calendar, utc
        self._seconds = {
            SESSION.OPEN: limits.regular, SESSION.BLACKOUT: limits.regular,
            SESSION.PRE: limits.extended, SESSION.AFTER: limits.extended,
            SESSION.CLOSED: limits.closed}
        self._crypto = limits.crypto or None
        self._unknown = limits.extended or None
        self._allowed: float | None = None
        self._since = self._until = 0       # UTC ns: what was found out holds in between

    def __call__(self) -> float | None:
        if self._calendar is None:
            return self._crypto
        utc = self._utc()
        if not self._since <= utc < self._until:        # a clock set back is asked again too
            found = self._calendar.at(utc)
            self._since = utc
            if found is None:
                self._allowed, self._until = self._unknown, utc + UNKNOWN_NS
            else:
                self._allowed, self._until = self._seconds[found[0]] or None, found[1]
        return self._allowed
