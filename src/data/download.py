"""Historical bars, trades and quotes from the broker, page by page into a dataset.

A page is asked for, written as a part and committed with the token of the next one; a process that
is killed goes on behind the last page that counted.  Numbers are read as the decimals they are.
"""
from __future__ import annotations

import http.client
import random
import ssl
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from hftpipe.alpaca._codec import parse_time
from hftpipe.alpaca.rest import USER_AGENT, SecretLike, reveal, verified_context
from hftpipe.data.dataset import Dataset
from hftpipe.errors import ConfigError, DataError, DeadlineError

PAGE = 10_000                   # rows: the most that the broker gives
TRIES = 8                       # in a row, for one page
WAIT_MAX = 60.0                 # s


class Bar(msgspec.Struct):
    """A bar as the broker writes it."""

    t: str
    o: Decimal
    h: Decimal
    l: Decimal                                                  # noqa: E741
    c: Decimal
    v: Decimal
    n: int = 0
    vw: Decimal = Decimal(0)


class Trade(msgspec.Struct):
    """A trade; crypto has a taker side and no exchange."""

    t: str
    p: Decimal
    s: Decimal
    i: int | str = ""
    x: str = ""
    c: str | list[str] = ""
    u: str = ""
    tks: str = ""


class Quote(msgspec.Struct):
    """The best prices; no exchanges for crypto."""

    t: str
    bp: Decimal
    bs: Decimal
    ap: Decimal
    asks: Decimal = msgspec.field(name="as")
    bx: str = ""
    ax: str = ""
    c: str | list[str] = ""


class Bars(msgspec.Struct):
    bars: dict[str, list[Bar]] | None = None
    next_page_token: str | None = None


class Trades(msgspec.Struct):
    trades: dict[str, list[Trade]] | None = None
    next_page_token: str | None = None


class Quotes(msgspec.Struct):
    quotes: dict[str, list[Quote]] | None = None
    next_page_token: str | None = None


PAGES: dict[str, type[Bars | Trades | Quotes]] = {
    "bars": Bars, "trades": Trades, "quotes": Quotes}


def nano(value: Decimal) -> int:
    """1e-9 units of a decimal.

    Raises
    ------
    DataError
        If it has more than nine decimals, or does not fit 64 bits.
    """
    scaled = value.scaleb(9)
    out = int(scaled)
    if out != scaled or not -2**63 <= out < 2**63:
        raise DataError(f"wanted a number of at most nine decimals, found {value}")
    return out


def _round(value: Decimal) -> int:
    return int(value.scaleb(9).to_integral_value())             # an average has any decimals


def columns(kind: str, symbol: str, rows: Sequence[Any]) -> dict[str, list[Any]]:
    """The columns of :data:`tables.COLUMNS` of a page's rows."""
    def text(value: object) -> str:
        return ",".join(value) if isinstance(value, list) else str(value)

    out: dict[str, list[Any]] = {"symbol": [symbol] * len(rows),
                                 "ts": [parse_time(r.t) for r in rows]}
    if kind == "bars":
        for name, field in (("open", "o"), ("high", "h"), ("low", "l"), ("close", "c"),
                            ("volume", "v")):
            out[name] = [nano(getattr(r, field)) for r in rows]
        return out | {"trades": [r.n for r in rows], "vwap": [_round(r.vw) for r in rows]}
    conditions = [text(r.c) for r in rows]
    if kind == "trades":
        return out | {"price": [nano(r.p) for r in rows], "qty": [nano(r.s) for r in rows],
                      "id": [str(r.i) for r in rows], "exchange": [r.x or r.tks for r in rows],
                      "conditions": conditions, "update": [r.u for r in rows]}
    return out | {"bid": [nano(r.bp) for r in rows], "bid_qty": [nano(r.bs) for r in rows],
                  "ask": [nano(r.ap) for r in rows], "ask_qty": [nano(r.asks) for r in rows],
                  "bid_exchange": [r.bx for r in rows], "ask_exchange": [r.ax for r in rows],
                  "conditions": conditions}


class Client:
    """The historical data service.

    Parameters
    ----------
    url : str
        ``https://`` host; ``http://`` on this machine only.
    key, secret : str or Secret
    per_minute : int
        Requests; 0 = no limit.
    sleep : callable(seconds)
    timeout : float, s
    """

    def __init__(self, url: str, key: SecretLike, secret: SecretLike, per_minute: int = 180,
                 sleep: Callable[[float], object] = time.sleep, timeout: float = 30.0,
                 context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(url)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if not parts.hostname or (parts.scheme != "https" and not (
                parts.scheme == "http" and local)):
            raise ConfigError(f"data address must be https://host, was {url!r}")
        self._host, self._port = parts.hostname, parts.port
        self._context = (context or verified_context()) if parts.scheme == "https" else None
        self._key, self._secret, self._timeout = key, secret, timeout
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._sleep = sleep
        self._connection: http.client.HTTPConnection | None = None
        self.requests = self.retries = 0

    def close(self) -> None:
        """Close the kept connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def page(self, path: str, query: dict[str, Any]) -> bytes:
        """One page; refusals that may pass are tried again, later each time.

        Raises
        ------
        ConfigError
            If the broker refuses the credentials or the request.
        DeadlineError
            If it did not answer often enough.
        """
        target = f"{path}?{urlencode({k: v for k, v in query.items() if v not in (None, '')})}"
        why = ""
        for attempt in range(TRIES):
            now = time.monotonic()
            if now < self._next:
                self._sleep(self._next - now)
            self._next = max(now, self._next) + self._gap
            try:
                status, headers, body = self._once(target)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                status, headers, body, why = 0, {}, b"", f"{type(error).__name__}: {error}"
            if status == 200:
                return body
            if status and status != 429 and status < 500:
                raise ConfigError(f"the broker refused {path}: HTTP {status}, "
                                  f"{_message(body)}")
            why = f"HTTP {status}, {_message(body)}" if status else why
            self.retries += 1
            self._sleep(self._wait(attempt, headers if status == 429 else {}))
        raise DeadlineError(f"no page of {path} in {TRIES} tries: {why}")

    @staticmethod
    def _wait(attempt: int, headers: dict[str, str]) -> float:
        wait = min(0.25 * 2.0**attempt, 30.0) * random.uniform(0.5, 1.0)
        for name, of in (("retry-after", 0.0), ("x-ratelimit-reset", time.time())):
            text = headers.get(name, "")
            if text.isdigit():
                wait = max(wait, float(text) - of)
        return float(min(wait, WAIT_MAX))

    def _once(self, target: str) -> tuple[int, dict[str, str], bytes]:
        if self._connection is None:
            self._connection = (
                http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout,
                                            context=self._context)
                if self._context is not None else
                http.client.HTTPConnection(self._host, self._port, timeout=self._timeout))
        self.requests += 1
        self._connection.request("GET", target, headers={
            "APCA-API-KEY-ID": reveal(self._key), "APCA-API-SECRET-KEY": reveal(self._secret),
            "Accept": "application/json", "User-Agent": USER_AGENT})
        found = self._connection.getresponse()
        return found.status, {k.lower(): v for k, v in found.getheaders()}, found.read()


def _message(body: bytes) -> str:
    try:
        return str(msgspec.json.decode(body, type=dict[str, Any]).get("message", ""))[:200]
    except msgspec.DecodeError:
        return body[:80].decode("latin-1")


def download(data: Dataset, client: Client,
             tell: Callable[[str, int, int], object] = lambda symbol, rows, last: None) -> None:
    """Fill *data* with what its request asks for; goes on where it stopped.

    Parameters
    ----------
    tell : callable(symbol, rows, last)
        After each page: rows of all so far, time of the newest.

    Raises
    ------
    DataError
        If a page is not what it should be.
    """
    request = data.request
    for symbol in request["symbols"]:
        state = data.state.setdefault(symbol, {"token": None, "done": False})
        crypto = "/" in symbol
        path = f"/v1beta3/crypto/us/{data.kind}" if crypto else f"/v2/stocks/{data.kind}"
        while not state["done"]:
            body = client.page(path, {
                "symbols": symbol, "start": request["start"], "end": request["end"],
                "limit": PAGE, "sort": "asc", "page_token": state["token"],
                "timeframe": request["timeframe"],
                "feed": "" if crypto else request["feed"],
                "adjustment": request["adjustment"] if data.kind == "bars" and not crypto else ""})
            try:
                page = msgspec.json.decode(body, type=PAGES[data.kind])
                rows = (getattr(page, data.kind) or {}).get(symbol, [])
                made = columns(data.kind, symbol, rows)
            except (msgspec.DecodeError, ValueError, TypeError) as error:
                raise DataError(f"{path} of {symbol}: a page is not what it should be: "
                                f"{error}") from None
            data.add(symbol, made)
            state["token"], state["done"] = page.next_page_token, page.next_page_token is None
            data.complete = all(s["done"] for s in data.state.values()) and len(
                data.state) == len(request["symbols"])
            data.commit()
            tell(symbol, data.rows, made["ts"][-1] if rows else 0)

