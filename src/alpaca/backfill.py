"""What was missed in a gap of the data stream, asked for by REST afterwards.

Records of it carry BACKFILLED: they are recorded and counted, and nobody trades on them, for they
tell of a time in which nobody listened.  All of this is slow and runs in a thread of its own.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy

from hftpipe import schema
from hftpipe.alpaca._codec import parse_time, to_nano
from hftpipe.errors import ConfigError, DataError

MARKET = schema.dtype(schema.MARKET)
K, F = schema.MARKET_KIND, schema.MARKET_FLAG
KINDS = ("trades", "quotes", "bars")
MINUTE = 60 * 10**9
PAGE = 500                      # rows: one is decoded in about a millisecond, holding the GIL
VOID = ("canceled", "incorrect")        # trades that do not stand; a corrected one does


class Trade(msgspec.Struct):
    """A trade of history; ``tks`` for crypto only."""

    t: str
    p: float
    s: float
    i: int | str = 0
    u: str = ""
    tks: str = ""


class Quote(msgspec.Struct):
    """A quote of history."""

    t: str
    bp: float
    bs: float
    ap: float
    asks: float = msgspec.field(name="as")


class Bar(msgspec.Struct):
    """A minute of history."""

    t: str
    o: float
    h: float
    l: float                                                    # noqa: E741
    c: float
    v: float
    n: int = 0
    vw: float = 0.0


class Page(msgspec.Struct):
    """One page of any of them."""

    trades: dict[str, list[Trade]] | None = None
    quotes: dict[str, list[Quote]] | None = None
    bars: dict[str, list[Bar]] | None = None
    next_page_token: str | None = None


_pages = msgspec.json.Decoder(Page)


def source_of(stream: str) -> tuple[str, str] | None:
    """Path of the history of what a data stream carries, and its feed; None = there is none."""
    path = urlsplit(stream).path.rstrip("/")
    if "/crypto/" in path:
        return path, ""                     # /v1beta3/crypto/us
    feed = path.removeprefix("/v2/")
    return ("/v2/stocks", feed) if feed in ("iex", "sip") else None


def rest_of(stream: str) -> str:
    """Address of the history service, by that of the data stream: another host at the broker,
    the same one at a local venue."""
    parts = urlsplit(stream)
    if parts.scheme == "wss":
        return f"https://{parts.netloc.removeprefix('stream.')}"
    return f"http://{parts.netloc}"


def stamp(ns: int) -> str:
    """RFC 3339 of UTC ns, to the nanosecond."""
    return f"{numpy.datetime64(ns, 'ns')}Z"


class Backfill:
    """Fetches what was missed.

    Parameters
    ----------
    page : callable
        ``page(path, query)`` gives the body of one page; ConfigError when it is refused for good.
    stream : str
        Address of the data stream.
    symbols : sequence of str
        By the index that records carry.
    kinds : sequence of str
        Of trades, quotes and bars.
    rows : int
        At most, of each kind and gap, over all symbols; the oldest are kept.
    longest : int, ns
        Of a longer gap only the end is asked for.

    Attributes
    ----------
    gaps, records, cut : int
        Gaps asked for, records made, kinds of a gap that had more rows than allowed.
    refused : dict
        Why a kind is not asked for any more: a plan without the right to recent data, say.
    """

    def __init__(self, page: Callable[[str, dict[str, Any]], bytes], stream: str,
                 symbols: Sequence[str], kinds: Sequence[str] = KINDS, rows: int = 10_000,
                 longest: int = 15 * MINUTE) -> None:
        unknown = [k for k in kinds if k not in KINDS]
        if unknown:
            raise ConfigError(f"backfill knows {', '.join(KINDS)}, was {unknown[0]!r}")
        self._page, self._source, self._kinds = page, source_of(stream), tuple(kinds)
        self._index = {symbol: i for i, symbol in enumerate(symbols)}
        self._rows, self._longest = rows, longest
        self.gaps = self.records = self.cut = 0
        self.refused: dict[str, str] = {}

    @property
    def useful(self) -> bool:
        """Whether there is anything to ask for."""
        return self._source is not None and any(k not in self.refused for k in self._kinds)

    def fetch(self, start: int, end: int) -> numpy.ndarray[Any, Any]:
        """MARKET records of what happened between two venue times, both excluded, UTC ns.

        Raises
        ------
        HftpipeError
            If the service does not answer, or with something else than rows.
        """
        found: list[tuple[int, list[tuple[int, ...]]]] = []
        if self.useful and end - start > 1:
            self.gaps += 1
            start = max(start, end - self._longest)
            for kind in self._kinds:
                if kind in self.refused:
                    continue
                try:
                    found += self._kind(kind, start, end)
                except DataError:           # a ConfigError, too, and none that lasts
                    raise
                except ConfigError as error:
                    self.refused[kind] = str(error)
        found.sort(key=lambda message: message[0])
        out = numpy.zeros(sum(len(m) for _, m in found), MARKET)
        at = 0
        for ts, message in found:
            for instrument, record, side, price, qty, ref in message:
                row = out[at]
                row["ts_venue"], row["instrument"], row["kind"] = ts, instrument, record
                row["side"], row["price"], row["qty"], row["ref"] = side, price, qty, ref
                row["flags"] = F.BACKFILLED
                at += 1
            out[at - 1]["flags"] |= F.LAST
        self.records += len(out)
        return out

    def _kind(self, kind: str, start: int, end: int) -> list[tuple[int, list[tuple[int, ...]]]]:
        assert self._source is not None
        path, feed = self._source
        query: dict[str, Any] = {
            "symbols": ",".join(self._index), "end": stamp(end - 1), "limit": PAGE, "feed": feed,
            "start": stamp(start // MINUTE * MINUTE if kind == "bars" else start + 1)}
        if kind == "bars":
            query["timeframe"] = "1Min"
        found: list[tuple[int, list[tuple[int, ...]]]] = []
        count = 0
        while True:
            body = self._page(f"{path}/{kind}", query)
            try:
                page = _pages.decode(body)
                for symbol, rows in (getattr(page, kind) or {}).items():
                    if symbol not in self._index:
                        continue
                    for row in rows:
                        count += 1
                        message = self._message(kind, self._index[symbol], row, end)
                        if message is not None:
                            found.append(message)
            except (msgspec.DecodeError, ValueError) as error:
                raise DataError(f"wanted a page of {kind}, found {body[:80]!r}: {error}") from None
            if not page.next_page_token:
                return found
            if count >= self._rows:
                self.cut += 1
                return found
            query["page_token"] = page.next_page_token

    @staticmethod
    def _message(kind: str, i: int, row: Any, end: int,
                 ) -> tuple[int, list[tuple[int, ...]]] | None:
        """Time and records of one row; None when it is none of the gap's."""
        ts = parse_time(row.t)
        if kind == "trades":
            if row.u in VOID or not row.p or not row.s:
                return None
            side = {"B": 1, "S": -1}.get(row.tks, 0)
            return ts, [(i, K.TRADE, side, to_nano(row.p), to_nano(row.s),
                         row.i if isinstance(row.i, int) else 0)]
        if kind == "quotes":
            sides = [(side, to_nano(p), to_nano(s)) if p and s else (side, 0, 0)
                     for side, p, s in ((1, row.bp, row.bs), (-1, row.ap, row.asks))]
            return ts, [(i, K.QUOTE, side, price, qty, 0) for side, price, qty in sides]
        if ts + MINUTE > end:               # not over when data came again: the stream tells it
            return None
        return ts, [(i, K.BAR_OPEN, 0, to_nano(row.o), to_nano(row.v), row.n),
                    (i, K.BAR_HIGH, 0, to_nano(row.h), 0, ord("b")),
                    (i, K.BAR_LOW, 0, to_nano(row.l), 0, 0),
                    (i, K.BAR_CLOSE, 0, to_nano(row.c), 0, to_nano(row.vw))]


class Missed:
    """Which time of the venue nobody listened to: from the last data before a loss to the first
    ones after it."""

    def __init__(self) -> None:
        self._last = self._since = 0        # venue times, UTC ns

    def lost(self) -> None:
        """Data were lost now."""
        self._since = self._since or self._last

    def data(self, first: int, last: int) -> tuple[int, int] | None:
        """Data came, of these venue times; the interval that was missed before them, if any."""
        since, self._since = self._since, 0
        self._last = last or self._last
        return (since, first) if since and first > since else None


__all__ = ["KINDS", "Backfill", "Missed", "rest_of", "source_of", "stamp"]
