"""Alpaca's trading REST interface for everything that may be slow, and the credentials and TLS
that all connections share.

Imports little: the guardian must be up again in a fraction of a second.  Nothing here follows a
redirect.
"""
from __future__ import annotations

import http.client
import ssl
import time
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from hftpipe import __version__
from hftpipe.alpaca import messages
from hftpipe.errors import ConfigError, DataError, DeadlineError, HftpipeError

T = TypeVar("T")
SPARE = 15                      # requests of the venue's minute that are left to orders and cancels
MINUTE = 60.0                   # s; the venue counts by the minute
USER_AGENT = f"hftpipe/{__version__}"


# ---------------------------------------------------------------- credentials and TLS

class Revealing(Protocol):
    """A credential whose text only ``reveal()`` gives, as ``secret.Secret``."""

    def reveal(self) -> str: ...


SecretLike = str | Revealing


def reveal(value: SecretLike) -> str:
    """The text of a credential."""
    return value if isinstance(value, str) else value.reveal()


def verified_context() -> ssl.SSLContext:
    """TLS 1.2 or newer, chain and host name verified."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


# ---------------------------------------------------------------- REST

class VenueError(HftpipeError):
    """The venue refused a request."""

    def __init__(self, text: str, status: int, code: int | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class Rest:
    """Alpaca's trading REST interface for start-up, reconciliation and resolving.

    Parameters
    ----------
    url : str
        ``http://`` or ``https://`` base address.
    key, secret : str or secret.Secret
    timeout : float, default 5
        Seconds for each request.
    context : ssl.SSLContext, optional
        Of https; the default verifies.
    urgent : bool
        Never wait for the rate limit: the guardian's, who must know what is open after a halt.

    Notes
    -----
    Blocking, one thread.  GET and DELETE are tried once more when the kept connection turns
    out to be closed; nothing else is ever repeated, and no order is ever posted from here.

    All senders of an account share the venue's rate limit.  When X-RateLimit-* say that no more
    than ``SPARE`` requests are left of its minute, or after a 429, a GET is refused here until the
    minute ends, as the venue would: VenueError with status 429.  A DELETE always goes: it takes
    risk away.
    """

    def __init__(self, url: str, key: SecretLike, secret: SecretLike, timeout: float = 5.0,
                 context: ssl.SSLContext | None = None, urgent: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"REST address must be http(s)://host[:port][/path], was {url!r}")
        self._host, self._port, self._base = parts.hostname, parts.port, parts.path.rstrip("/")
        self._context = (context or verified_context()) if parts.scheme == "https" else None
        self._key, self._secret, self._timeout = key, secret, timeout
        self._connection: http.client.HTTPConnection | None = None
        self._urgent = urgent
        self._held = 0.0                        # monotonic: no GET before

    def __repr__(self) -> str:
        return f"<Rest {self._host}:{self._port or ''}{self._base}>"

    def close(self) -> None:
        """Close the kept connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _once(self, method: str, path: str) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = (
                http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout,
                                            context=self._context)
                if self._context is not None else
                http.client.HTTPConnection(self._host, self._port, timeout=self._timeout))
        self._connection.request(method, self._base + path, headers={
            "APCA-API-KEY-ID": reveal(self._key), "APCA-API-SECRET-KEY": reveal(self._secret),
            "Accept": "application/json", "User-Agent": USER_AGENT})
        answer = self._connection.getresponse()
        self._allowance(answer)
        return answer.status, answer.read()

    def _allowance(self, answer: http.client.HTTPResponse) -> None:
        """Keep to what the venue says of its rate limit; what cannot be is not believed."""
        def number(name: str) -> int:
            text = answer.headers.get(name, "")
            return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else -1

        left = number("X-RateLimit-Remaining")
        wait = float(number("X-RateLimit-Reset") - int(time.time()))
        if answer.status == 429:
            wait = max(wait if wait <= MINUTE else 0.0, float(number("Retry-After")), 1.0)
        elif not 0 <= left <= SPARE or not 0 < wait <= MINUTE:
            return
        self._held = time.monotonic() + min(wait, MINUTE)

    def request(self, method: str, path: str) -> tuple[int, bytes]:
        """Status and body of one request.

        Raises
        ------
        DeadlineError
            If no answer came in time.
        VenueError
            If the connection failed twice (status 0), or the rate limit is used up (429).
        ConfigError
            If the venue's certificate is not believed.
        """
        if method not in ("GET", "DELETE"):
            raise ValueError(f"method must be GET or DELETE, was {method}")
        left = self._held - time.monotonic()
        if method == "GET" and left > 0 and not self._urgent:
            raise VenueError(f"GET {path.partition('?')[0]} waits for the venue's rate limit, "
                             f"{left:.0f} s more", 429)
        for last in (False, True):
            fresh = self._connection is None
            try:
                return self._once(method, path)
            except TimeoutError:
                self.close()
                raise DeadlineError(f"no answer to {method} {path.partition('?')[0]} within "
                                    f"{self._timeout:g} s") from None
            except ssl.SSLCertVerificationError as error:
                self.close()
                raise ConfigError(f"TLS with {self._host}: certificate refused: "
                                  f"{error.verify_message}") from None
            except (OSError, http.client.HTTPException) as error:
                self.close()
                if last or fresh:
                    raise VenueError(f"{method} {path.partition('?')[0]} failed: "
                                     f"{type(error).__name__}: {error}", 0) from None
        raise AssertionError("not reached")

    def _get(self, path: str, kind: type[T], absent: bool = False, **query: Any) -> T | None:
        wanted = {k: v for k, v in query.items() if v is not None}
        status, body = self.request("GET", path + (f"?{urlencode(wanted)}" if wanted else ""))
        if status == 404 and absent:
            return None
        if status != 200:
            self._refuse("GET", path, status, body)
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.DecodeError as error:
            raise DataError(f"answer to GET {path} is not what it should be: {error}") from None

    @staticmethod
    def _refuse(method: str, path: str, status: int, body: bytes) -> None:
        try:
            found = messages.ERROR.decode(body)
        except msgspec.DecodeError:
            found = messages.Error(body[:80].decode("latin-1"))
        raise VenueError(f"{method} {path} was refused: HTTP {status}, {found.message}", status,
                         found.code)

    def _must(self, path: str, kind: type[T], **query: Any) -> T:
        found = self._get(path, kind, **query)
        assert found is not None
        return found

    def account(self) -> messages.Account:
        """The account."""
        return self._must("/v2/account", messages.Account)

    def clock(self) -> messages.Clock:
        """The venue's session clock."""
        return self._must("/v2/clock", messages.Clock)

    def positions(self) -> list[messages.Position]:
        """All open positions."""
        return self._must("/v2/positions", list[messages.Position])

    def orders(self, status: str = "open", after: str | None = None) -> list[messages.Order]:
        """Orders, oldest first; *after* (RFC 3339, exclusive) is about their submission.

        Pages of 500 are walked by submission time; rows that share the last one's time are
        asked for again and dropped by id.
        """
        found: dict[str, messages.Order] = {}
        while True:
            page = self._must("/v2/orders", list[messages.Order], status=status, limit=500,
                              direction="asc", after=after)
            fresh = [o for o in page if o.id not in found]
            found.update((o.id, o) for o in fresh)
            if len(page) < 500 or not fresh or page[-1].submitted_at is None:
                return list(found.values())
            # exclusive: step back behind the last time, so that no row of that time is missed
            after = earlier(page[-1].submitted_at)

    def order(self, venue_id: str) -> messages.Order | None:
        """An order by the venue's id, or None."""
        return self._get(f"/v2/orders/{quote(venue_id, safe='')}", messages.Order, absent=True)

    def order_by_client_id(self, client_order_id: str) -> messages.Order | None:
        """An order by our own id, or None when the venue never had it."""
        return self._get("/v2/orders:by_client_order_id", messages.Order, absent=True,
                         client_order_id=client_order_id)

    def fills(self, after: str | None = None) -> list[messages.Fill]:
        """FILL activities, oldest first: the only REST view of single executions."""
        found: list[messages.Fill] = []
        token = None
        while True:
            page = self._must("/v2/account/activities/FILL", list[messages.Fill], direction="asc",
                              page_size=100, after=after, page_token=token)
            found += page
            if len(page) < 100:
                return found
            token = page[-1].id

    def cancel_all(self) -> int:
        """Ask for the cancel of every open order; how many were asked."""
        status, body = self.request("DELETE", "/v2/orders")
        if status not in (200, 207):
            self._refuse("DELETE", "/v2/orders", status, body)
        try:
            return len(msgspec.json.decode(body, type=list[Any])) if body else 0
        except msgspec.DecodeError as error:
            raise DataError("answer to DELETE /v2/orders is not what it should be: "
                            f"{error}") from None

    def close_all(self) -> list[messages.Closing]:
        """Ask for a market order that closes it, for every position; what became of each.

        Orders that are open hold quantity back: cancel them first.
        """
        status, body = self.request("DELETE", "/v2/positions")
        if status not in (200, 207):
            self._refuse("DELETE", "/v2/positions", status, body)
        try:
            return msgspec.json.decode(body or b"[]", type=list[messages.Closing])
        except msgspec.DecodeError as error:
            raise DataError("answer to DELETE /v2/positions is not what it should be: "
                            f"{error}") from None

    def close_position(self, symbol: str, *, qty: str | None = None,
                       percent: str | None = None) -> messages.Order:
        """Ask once for a market order that closes *symbol*, or a part of it; that order.

        Unlike the other requests it goes out on a new connection and is never repeated: a second
        one would close as much again.

        Parameters
        ----------
        symbol : str
            As positions write it.
        qty, percent : str, optional
            Decimal number of shares; share of the position, above 0 to 100.  At most one.

        Raises
        ------
        VenueError
            If the venue refused (404: no such position; 403: orders hold it), or the connection
            broke (0): then it may have been taken.
        DeadlineError
            If no answer came in time: it may have been taken.
        """
        if qty is not None and percent is not None:
            raise ValueError("wanted at most one of qty and percent, found both")
        query = {k: v for k, v in (("qty", qty), ("percentage", percent)) if v is not None}
        path = f"/v2/positions/{quote(symbol, safe='')}"
        self.close()                        # a kept connection that broke would be tried again
        status, body = self.request("DELETE", path + (f"?{urlencode(query)}" if query else ""))
        if status != 200:
            self._refuse("DELETE", path, status, body)
        try:
            return msgspec.json.decode(body, type=messages.Order)
        except msgspec.DecodeError as error:
            raise DataError(f"answer to DELETE {path} is not what it should be: {error}") from None

    def cancel(self, venue_id: str) -> bool:
        """Ask for the cancel of one order; False when it is not open or not known."""
        path = f"/v2/orders/{quote(venue_id, safe='')}"
        status, body = self.request("DELETE", path)
        if status in (404, 422):
            return False
        if status not in (200, 204):
            self._refuse("DELETE", path, status, body)
        return True


def earlier(text: str) -> str:
    """The RFC 3339 time one nanosecond before *text*, in UTC."""
    from hftpipe.alpaca._codec import parse_time
    seconds, nanos = divmod(parse_time(text) - 1, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanos:09d}Z"
