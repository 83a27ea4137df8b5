"""The venue's historical data over REST: stocks and crypto, latest values, snapshots, pages."""
from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

from aiohttp import web

from hftpipe._clock import utc_ns

from ._traders import QUOTE, TRADE
from .exchange import Exchange, Refused
from .history import MINUTE, History, quote_row, timeframe, trade_row
from .rest import answer, time_of
from .session import local
from .state import NANO, stamp
from .traders import Instrument

DELAY = 15 * MINUTE             # of consolidated data without the right to the recent ones
FEEDS = {"sip": "Q", "iex": "V", "delayed_sip": "Q", "otc": "Q", "boats": "Q", "overnight": "Q"}
CRYPTO = "/v1beta3/crypto/{loc:us|us-1|eu-1}"
EXCHANGES = {"A": "NYSE American (AMEX)", "B": "NASDAQ OMX BX", "C": "National Stock Exchange",
             "D": "FINRA ADF", "H": "MIAX", "J": "Cboe EDGA", "K": "Cboe EDGX", "L": "LTSE",
             "M": "NYSE Chicago", "N": "New York Stock Exchange", "P": "NYSE Arca", "Q": "NASDAQ",
             "U": "Members Exchange", "V": "IEX", "X": "NASDAQ PSX", "Y": "Cboe BYX",
             "Z": "Cboe BZX"}
CONDITIONS = {"trade": {"@": "Regular Sale", "I": "Odd Lot Trade"},
              "quote": {"R": "Regular Two Sided Open"}}
PLURAL = {"bars": "bar", "trades": "trade", "quotes": "quote", "orderbooks": "orderbook"}


def bad(message: str, status: int = 400) -> Refused:
    """An error of the data service: a message without a code."""
    error = Refused(status, 0, message)
    error.body = {"message": message}
    return error


class Data:
    """Handlers of the historical data.

    Parameters
    ----------
    exchange : Exchange
    history : History
    basic : bool
        The basic plan: consolidated data only when they are 15 minutes old.
    """

    def __init__(self, exchange: Exchange, history: History, basic: bool) -> None:
        self.exchange = exchange
        self.history = history
        self.basic = basic

    def routes(self) -> list[web.RouteDef]:
        out = [web.get("/v2/stocks/meta/exchanges", self.exchanges),
               web.get("/v2/stocks/meta/conditions/{kind:trade|quote}", self.conditions),
               web.get("/v2/stocks/snapshots", self.snapshots),
               web.get("/v2/stocks/{symbol}/snapshot", self.snapshots),
               web.get(CRYPTO + "/snapshots", self.snapshots),
               web.get(CRYPTO + "/latest/orderbooks", self.latest)]
        for kind in ("bars", "trades", "quotes"):
            out += [web.get(f"/v2/stocks/{kind}/latest", self.latest),
                    web.get(f"/v2/stocks/{{symbol}}/{kind}/latest", self.latest),
                    web.get(f"{CRYPTO}/latest/{kind}", self.latest),
                    web.get(f"/v2/stocks/{kind}", self.rows),
                    web.get(f"/v2/stocks/{{symbol}}/{kind}", self.rows),
                    web.get(f"{CRYPTO}/{kind}", self.rows)]
        return out

    # ------------------------------------------------------------ what is asked

    @staticmethod
    def _crypto(request: web.Request) -> bool:
        return "loc" in request.match_info

    @staticmethod
    def _kind(request: web.Request) -> str:
        return next(p for p in reversed(request.path.split("/")) if p in PLURAL)

    def _instruments(self, request: web.Request) -> list[Instrument]:
        """Those that are asked for and known here, by symbol."""
        crypto = self._crypto(request)
        single = request.match_info.get("symbol")
        names = [single] if single else [
            s for s in request.query.get("symbols", "").split(",") if s]
        if not names:
            raise bad("symbols is required")
        found = {i.symbol: i for i in map(self.exchange.names.get, names)
                 if i is not None and i.crypto is crypto}
        return [found[s] for s in sorted(found)]

    @staticmethod
    def _feed(request: web.Request) -> str:
        feed = request.query.get("feed", "sip")
        if feed not in FEEDS:
            raise bad(f"invalid feed: {feed}")
        return feed

    @staticmethod
    def _time(request: web.Request, name: str) -> int | None:
        try:
            return time_of(request.query.get(name), name)
        except Refused as error:
            raise bad(str(error)) from None

    def _span(self, request: web.Request) -> tuple[int, int]:
        """First and last ns that are asked for and may be seen."""
        now = utc_ns()
        start, end = self._time(request, "start"), self._time(request, "end")
        delayed = not self._crypto(request) and (
            self._feed(request) == "delayed_sip" or (self.basic and self._feed(request) == "sip"))
        if delayed and end is not None and end > now - DELAY:
            raise bad("subscription does not permit querying recent SIP data", 403)
        if end is None:
            end = now - DELAY if delayed else now
        if start is None:
            start = int(local(now).replace(hour=0, minute=0, second=0,
                                           microsecond=0).timestamp()) * NANO
        elif start > end and request.query.get("end"):
            raise bad("end should not be before start")
        return start, end

    # ------------------------------------------------------------ rows

    async def rows(self, request: web.Request) -> web.Response:
        """A page of bars, trades or quotes: by symbol, then by time."""
        kind, crypto = self._kind(request), self._crypto(request)
        instruments = self._instruments(request)
        start, end = self._span(request)
        try:
            limit = int(request.query.get("limit", "1000"))
        except ValueError:
            limit = 0
        if not 1 <= limit <= 10_000:
            raise bad("invalid limit: must be between 1 and 10000")
        sort = request.query.get("sort", "asc")
        if sort not in ("asc", "desc"):
            raise bad(f"invalid sort: {sort}")
        read = self._reader(request, kind, crypto, start, end)
        token = request.query.get("page_token")
        symbol, at = self._token(token) if token else ("", 0)
        out: dict[str, list[dict[str, Any]]] = {}
        left, more = limit, None
        last_symbol, last_time = "", 0
        for instrument in instruments:
            if instrument.symbol < symbol:
                continue
            found = read(instrument)
            if sort == "desc":
                found.reverse()
            if token and instrument.symbol == symbol:
                found = [(t, row) for t, row in found if (t > at if sort == "asc" else t < at)]
            if not found:
                continue
            if not left:
                more = token_of(last_symbol, last_time)
                break
            taken = found[:left]        # and what has the same time: a token could not split it
            while len(taken) < len(found) and found[len(taken)][0] == taken[-1][0]:
                taken.append(found[len(taken)])
            out[instrument.symbol] = [row() for _, row in taken]
            left = max(left - len(taken), 0)
            last_symbol, last_time = instrument.symbol, taken[-1][0]
            if len(taken) < len(found):
                more = token_of(last_symbol, last_time)
                break
        single = request.match_info.get("symbol")
        if single:
            return answer({kind: next(iter(out.values()), []), "symbol": single,
                           "next_page_token": more})
        return answer({kind: out, "next_page_token": more})

    @staticmethod
    def _token(token: str) -> tuple[str, int]:
        try:
            symbol, _, at = base64.b64decode(token, validate=True).decode().partition("|")
            return symbol, int(at)
        except (binascii.Error, UnicodeDecodeError, ValueError):
            raise bad("invalid page token") from None

    def _reader(self, request: web.Request, kind: str, crypto: bool, start: int, end: int
                ) -> Callable[[Instrument], list[tuple[int, Callable[[], dict[str, Any]]]]]:
        """``read(instrument)``: times and rows to be, oldest first."""
        if kind == "bars":
            frame = timeframe(request.query.get("timeframe", ""))
            if frame is None:
                raise bad("invalid timeframe: "
                          + repr(request.query.get("timeframe", "")).strip("'"))

            def bars(instrument: Instrument) -> list[tuple[int, Callable[[], dict[str, Any]]]]:
                n = self.exchange.index[instrument.symbol]
                return [(b.minute * MINUTE, lambda b=b: b.row(crypto))      # type: ignore[misc]
                        for b in self.history.bars(n, *frame)
                        if start <= b.minute * MINUTE <= end]
            return bars
        exchange = "" if crypto else FEEDS[self._feed(request)]
        if kind == "trades":
            def trades(instrument: Instrument) -> list[tuple[int, Callable[[], dict[str, Any]]]]:
                n = self.exchange.index[instrument.symbol]
                return [(t, lambda t=t, m=m, u=u: (             # type: ignore[misc]
                    trade_row(t, m, crypto, exchange) | ({"u": u} if u else {})))
                    for t, one in self.history.rows(TRADE, n, start, end)
                    for u, m in self.history.updates(one)]
            return trades

        def rows(instrument: Instrument) -> list[tuple[int, Callable[[], dict[str, Any]]]]:
            n = self.exchange.index[instrument.symbol]
            return [(t, lambda t=t, m=m: quote_row(t, m, crypto, exchange))     # type: ignore[misc]
                    for t, m in self.history.rows(QUOTE, n, start, end)]
        return rows

    # ------------------------------------------------------------ latest

    def _last(self, kind: str, instrument: Instrument, exchange: str) -> dict[str, Any] | None:
        n, crypto = self.exchange.index[instrument.symbol], instrument.crypto
        if kind == "bars":
            bars = self.history.bars(n, 1, "Min")
            return bars[-1].row(crypto) if bars else None
        if kind == "orderbooks":
            bids, asks = ([{"p": p / NANO, "s": q / NANO}
                           for p, q in self.exchange.traders.levels(n, side)] for side in (1, -1))
            return {"t": stamp(utc_ns()), "b": bids, "a": asks}
        found = self.history.last(TRADE if kind == "trades" else QUOTE, n)
        if found is None:
            return None
        return (trade_row if kind == "trades" else quote_row)(*found, crypto, exchange)

    def _code(self, request: web.Request) -> str:
        return "" if self._crypto(request) else FEEDS[self._feed(request)]

    async def latest(self, request: web.Request) -> web.Response:
        kind, code = self._kind(request), self._code(request)
        rows = {i.symbol: row for i in self._instruments(request)
                if (row := self._last(kind, i, code)) is not None}
        single = request.match_info.get("symbol")
        if single:
            if single not in rows:
                raise bad(f"no {PLURAL[kind]} found for {single}", 404)
            return answer({"symbol": single, PLURAL[kind]: rows[single]})
        return answer({kind: rows})

    async def snapshots(self, request: web.Request) -> web.Response:
        code = self._code(request)
        rows: dict[str, dict[str, Any]] = {}
        for i in self._instruments(request):
            days = self.history.bars(self.exchange.index[i.symbol], 1, "Day")[-2:]
            row = {"latestTrade": self._last("trades", i, code),
                   "latestQuote": self._last("quotes", i, code),
                   "minuteBar": self._last("bars", i, code),
                   "dailyBar": days[-1].row(i.crypto) if days else None,
                   "prevDailyBar": days[0].row(i.crypto) if len(days) == 2 else None}
            rows[i.symbol] = {k: v for k, v in row.items() if v is not None}
        single = request.match_info.get("symbol")
        if single:
            if single not in rows:
                raise bad(f"no snapshot found for {single}", 404)
            return answer({"symbol": single, **rows[single]})
        return answer({"snapshots": rows} if self._crypto(request) else rows)

    async def exchanges(self, request: web.Request) -> web.Response:
        return answer(EXCHANGES)

    async def conditions(self, request: web.Request) -> web.Response:
        return answer(CONDITIONS[request.match_info["kind"]])


def token_of(symbol: str, t: int) -> str:
    """Where the next page begins: after this row."""
    return base64.b64encode(f"{symbol}|{t}".encode()).decode()
