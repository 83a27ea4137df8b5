"""The venue's REST: the broker's paths, bodies, errors and rate limit headers."""
from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from aiohttp import web

from hftpipe._clock import now_ns, utc_ns

from . import account
from .chaos import Chaos
from .exchange import Exchange, Refused
from .orders import invalid
from .session import FIRST, LAST, NEW_YORK, rows
from .state import NANO, Order, text
from .streams import Keys, header_pair

_json = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(float_hook=Decimal).decode
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(body: object, status: int = 200) -> web.Response:
    return web.Response(body=_json(body), status=status, content_type="application/json")


class Limiter:
    """So many requests in each minute; 0 = any number."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._minute, self._used = 0, 0

    def take(self) -> tuple[bool, dict[str, str]]:
        """Whether one more is allowed, and the headers of its answer."""
        if not self.limit:
            return True, {}
        minute = int(time.time()) // 60
        if minute != self._minute:
            self._minute, self._used = minute, 0
        allowed = self._used < self.limit
        self._used += allowed
        return allowed, {"X-RateLimit-Limit": str(self.limit),
                         "X-RateLimit-Remaining": str(self.limit - self._used),
                         "X-RateLimit-Reset": str((minute + 1) * 60)}


class Stamp(asyncio.Protocol):
    """aiohttp's protocol behind one that notes when the first byte of a request was read."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self.inner = inner
        self.current = 0                # of the request being handled
        self._first = 0                 # of the oldest byte no request was begun for
        self.gone = asyncio.Event()     # the connection ended
        self._data_received = inner.data_received

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._first:
            self._first = now_ns()
        self._data_received(data)

    def eof_received(self) -> bool | None:
        return self.inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        self.inner.resume_writing()

    def begin(self) -> None:
        """A request is handled now: the oldest byte was its first."""
        self.current, self._first = self._first or now_ns(), 0

    def end(self) -> None:
        """It is answered: whatever came meanwhile was its body."""
        self._first = 0


def stamp_of(request: web.Request) -> Stamp | None:
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, Stamp) else None


def received(request: web.Request) -> int:
    """Host-monotonic ns at which the first byte of *request* was read."""
    stamp = stamp_of(request)
    return stamp.current if stamp is not None else now_ns()


def flag(request: web.Request, name: str) -> bool:
    return request.query.get(name, "").lower() == "true"


class Rest:
    """Handlers of the REST endpoints.

    Parameters
    ----------
    exchange : Exchange
    keys : Keys
    limit : int
        Requests per minute; 0 = any number.
    sockets : set of str
        Paths that are WebSockets, which authenticate in their own way.
    fail : callable
        Told of an error that is none of the client's; the venue stops.
    """

    def __init__(self, exchange: Exchange, keys: Keys, limit: int, sockets: set[str],
                 fail: Callable[[BaseException], None]) -> None:
        self.exchange = exchange
        self.keys = keys
        self.sockets = sockets
        self.fail = fail
        self.limiter = Limiter(limit)
        self.data_limiter = Limiter(limit)      # the data service counts for itself
        self.requests = 0
        self.chaos: Chaos | None = None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v2/account", self.account),
            web.get("/v2/account/configurations", self.configurations),
            web.patch("/v2/account/configurations", self.configure),
            web.get("/v2/account/activities", self.activities),
            web.get("/v2/account/activities/{type}", self.activities),
            web.get("/v2/account/portfolio/history", self.portfolio),
            web.post("/v2/orders", self.new_order), web.get("/v2/orders", self.orders),
            web.delete("/v2/orders", self.cancel_all),
            web.get("/v2/orders:by_client_order_id", self.by_client),
            web.get("/v2/orders/{id}", self.order), web.patch("/v2/orders/{id}", self.replace),
            web.delete("/v2/orders/{id}", self.cancel),
            web.get("/v2/positions", self.positions),
            web.delete("/v2/positions", self.close_all),
            web.get("/v2/positions/{name:.+}", self.position),
            web.delete("/v2/positions/{name:.+}", self.close),
            web.get("/v2/assets", self.assets), web.get("/v2/assets/{name:.+}", self.asset),
            web.get("/v2/clock", self.clock), web.get("/v2/calendar", self.calendar)]

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authenticate, count, and turn refusals into the broker's bodies."""
        if request.path in self.sockets:
            return await handler(request)
        stamp = stamp_of(request)
        if stamp is not None:
            stamp.begin()
        self.requests += 1
        pair = header_pair(request.headers)
        headers: dict[str, str] = {}
        response: web.StreamResponse
        data = request.path.startswith(("/v2/stocks/", "/v1beta3/crypto/"))
        open_ = pair is None and request.path.startswith("/v1beta3/crypto/")
        if not open_ and (pair is None or not self.keys.match(*pair)):
            response = answer({"message": "unauthorized."}, 401)
        else:
            allowed, headers = (self.data_limiter if data else self.limiter).take()
            if not allowed:
                response = answer({"code": 42910000, "message": "rate limit exceeded."}, 429)
            else:
                try:
                    response = await (
                        handler(request) if self.chaos is None or data or stamp is None
                        else self.chaos.request(request, handler, stamp.current, stamp.gone))
                except Refused as error:
                    response = answer(error.body, error.status)
                except web.HTTPNotFound:
                    response = answer({"message": "endpoint not found."}, 404)
                except web.HTTPMethodNotAllowed:
                    response = answer({"message": "method not allowed."}, 405)
                except web.HTTPRequestEntityTooLarge:
                    response = answer({"message": "request body is too large."}, 413)
                except web.HTTPException:
                    raise
                except Exception as error:      # our log's disk, or a broken invariant
                    self.fail(error)
                    response = answer({"code": 50010000, "message": "internal server error"}, 500)
        response.headers.update(headers)
        if stamp is not None:
            stamp.end()
        return response

    # ------------------------------------------------------------ orders

    async def new_order(self, request: web.Request) -> web.Response:
        order, reply = self.place(await request.read(), received(request))
        self._later(self.exchange.execute, order)
        return reply

    def place(self, raw: bytes, recv: int) -> tuple[Order, web.Response]:
        """Accept the order that *raw* asks for; the answer shows it as it is now: pending_new.

        Raises
        ------
        Refused
            Written down already.
        """
        body: Any = None
        try:
            body = self._body(raw)
            fields = self.exchange.parse(body)
            self.exchange.check(fields)
        except Refused as error:
            asked = body if isinstance(body, dict) else {}
            client = asked.get("client_order_id")
            self.exchange.state.record(
                "refused", utc_ns(), recv=recv, status=error.status, **error.body,
                client_order_id=client if isinstance(client, str) else None)
            raise
        order = self.exchange.accept(fields, recv)
        return order, answer(self.exchange.nested(order))

    @staticmethod
    def _body(raw: bytes) -> Any:
        try:
            return _decode(raw)
        except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError):
            raise Refused(400, 40010000, "request body format is invalid") from None

    async def replace(self, request: web.Request) -> web.Response:
        recv = received(request)
        raw = await request.read()
        new = self.exchange.replace(self._order(request.match_info["id"]), self._body(raw), recv)
        reply = answer(new.view)
        self._later(self.exchange.finish_replace, new)
        return reply

    def _view(self, request: web.Request, order: Order) -> dict[str, Any]:
        return self.exchange.nested(order) if flag(request, "nested") else order.view

    def _later(self, action: Callable[[Order], None], order: Order) -> None:
        """After the reply was written: this task goes on before the loop's next round."""
        asyncio.get_running_loop().call_soon(self._guarded, action, order)

    def _guarded(self, action: Callable[[Order], None], order: Order) -> None:
        try:
            action(order)
        except Exception as error:
            self.fail(error)

    def _order(self, id_: str) -> Order:
        order = self.exchange.state.orders.get(id_)
        if order is None:
            raise Refused(404, 40410000, f"order not found for {id_}")
        return order

    async def order(self, request: web.Request) -> web.Response:
        return answer(self._view(request, self._order(request.match_info["id"])))

    async def by_client(self, request: web.Request) -> web.Response:
        client = request.query.get("client_order_id", "")
        order = self.exchange.state.by_client.get(client)
        if order is None:
            raise Refused(404, 40410000, f"order not found for {client}")
        return answer(order.view)

    async def orders(self, request: web.Request) -> web.Response:
        query = request.query
        status = query.get("status", "open")
        if status not in ("open", "closed", "all"):
            raise Refused(422, 40010001, "invalid status")
        try:
            limit = int(query.get("limit", "50"))
        except ValueError:
            limit = 0
        if not 1 <= limit <= 500:
            raise Refused(422, 40010001, "limit must be between 1 and 500")
        if query.get("direction", "desc") not in ("asc", "desc"):
            raise Refused(422, 40010001, "invalid direction")
        symbols = {self.exchange.find(s).symbol for s in query["symbols"].split(",")
                   } if query.get("symbols") else None
        after, until = (time_of(query.get(name), name) for name in ("after", "until"))
        first, last = (self._order(query[name]).number if query.get(name) else None
                       for name in ("after_order_id", "before_order_id"))
        side = {None: None, "buy": 1, "sell": -1}.get(query.get("side"), 0)
        class_, nested = query.get("asset_class"), flag(request, "nested")
        state = self.exchange.state
        found = list(state.live.values() if status == "open" else state.orders.values())
        found = [o for o in found
                 if (status != "closed" or not o.open)
                 and (symbols is None or o.symbol in symbols)
                 and (side is None or o.side == side)
                 and (after is None or o.ts > after)
                 and (until is None or o.ts < until)
                 and (first is None or o.number > first)
                 and (last is None or o.number < last)
                 and (class_ in (None, "", "all") or class_ == o.view["asset_class"])
                 and not (nested and o.parent)]
        found.sort(key=lambda o: o.number, reverse=query.get("direction", "desc") == "desc")
        return answer([self._view(request, o) for o in found[:limit]])

    def _cancel(self, order: Order, recv: int) -> None:
        self.exchange.cancel(order, recv)
        self._later(self.exchange.finish_cancel, order)

    async def cancel(self, request: web.Request) -> web.Response:
        self._cancel(self._order(request.match_info["id"]), received(request))
        return web.Response(status=204)

    async def cancel_all(self, request: web.Request) -> web.Response:
        rows = []
        for order in self.exchange.state.open_orders():
            try:
                self._cancel(order, received(request))
                rows.append({"id": order.id, "status": 200})
            except Refused as error:        # it is being replaced
                rows.append({"id": order.id, "status": 500, "body": error.body})
        return answer(rows, 207)

    # ------------------------------------------------------------ account, positions, assets

    async def account(self, request: web.Request) -> web.Response:
        return answer(account.account(self.exchange))

    async def configurations(self, request: web.Request) -> web.Response:
        return answer(self.exchange.state.configurations)

    async def configure(self, request: web.Request) -> web.Response:
        return answer(account.configure(self.exchange, self._body(await request.read())))

    async def activities(self, request: web.Request) -> web.Response:
        """FILL activities; of the others the venue has none."""
        query = request.query
        try:
            size = int(query.get("page_size", "100"))
        except ValueError:
            size = 0
        if not 1 <= size <= 100:
            raise invalid("page_size must be between 1 and 100")
        if query.get("direction", "desc") not in ("asc", "desc"):
            raise invalid("invalid direction")
        if query.get("category") not in (None, "", "trade_activity", "non_trade_activity"):
            raise invalid("invalid category")
        types = request.match_info.get("type") or query.get("activity_types")
        if query.get("category") and types:
            raise invalid("category and activity types cannot be given together")
        after, until = (time_of(query.get(name), name) for name in ("after", "until"))
        if query.get("date"):
            if after is not None or until is not None:
                raise invalid("date cannot be given together with after or until")
            day = _day(query["date"], "date")
            after, until = (int(datetime(d.year, d.month, d.day, tzinfo=NEW_YORK).timestamp())
                            * NANO for d in (day, day + timedelta(1)))
            after -= 1
        if (types and "FILL" not in types.upper().split(",")) or (
                query.get("category") == "non_trade_activity"):
            return answer([])
        return answer(account.fills(
            self.exchange, after=after, until=until, size=size,
            descending=query.get("direction", "desc") == "desc",
            token=query.get("page_token"), order=query.get("order_id")))

    async def portfolio(self, request: web.Request) -> web.Response:
        query = request.query
        if query.get("intraday_reporting", "market_hours") not in (
                "market_hours", "extended_hours", "continuous"):
            raise invalid("invalid intraday_reporting")
        end = query.get("end") or query.get("date_end")
        return answer(account.portfolio(
            self.exchange, period=query.get("period"), timeframe=query.get("timeframe"),
            start=time_of(query.get("start"), "start"), end=time_of(end, "end")))

    def _held(self) -> list[str]:
        return [s for s, p in self.exchange.state.positions.items() if p.qty]

    def _position(self, request: web.Request) -> str:
        instrument = self.exchange.names.get(request.match_info["name"])
        if instrument is None or not self.exchange.state.held(instrument.symbol):
            raise Refused(404, 40410000, "position does not exist")
        return instrument.symbol

    async def positions(self, request: web.Request) -> web.Response:
        return answer([account.position(self.exchange, s) for s in self._held()])

    async def position(self, request: web.Request) -> web.Response:
        return answer(account.position(self.exchange, self._position(request)))

    def _close(self, symbol: str, recv: int, qty: str | None = None) -> Order:
        """Accept a market order that takes the position (or *qty* of it) away."""
        held = self.exchange.state.held(symbol)
        instrument = self.exchange.names[symbol]
        fields = self.exchange.parse({
            "symbol": symbol, "side": "sell" if held > 0 else "buy", "type": "market",
            "time_in_force": "gtc" if instrument.crypto else "day",
            "qty": text(abs(held)) if qty is None else qty})
        self.exchange.check(fields)
        order = self.exchange.accept(fields, recv)
        self._later(self.exchange.execute, order)
        return order

    async def close(self, request: web.Request) -> web.Response:
        symbol = self._position(request)
        qty, share = request.query.get("qty"), request.query.get("percentage")
        if qty is not None and share is not None:
            raise invalid("only one of qty or percentage is accepted")
        if share is not None:
            qty = self._share(symbol, share)
        return answer(self._close(symbol, received(request), qty).view)

    def _share(self, symbol: str, percentage: str) -> str:
        """That part of a position; whole shares of a short one."""
        try:
            part = Decimal(percentage)
        except ArithmeticError:
            part = Decimal(0)
        if not part.is_finite() or not 0 < part <= 100:
            raise invalid("percentage must be > 0 and <= 100")
        held = self.exchange.state.held(symbol)
        qty = int(abs(held) * part / 100)
        return text(qty if held > 0 else qty // NANO * NANO)

    async def close_all(self, request: web.Request) -> web.Response:
        recv = received(request)
        if flag(request, "cancel_orders"):
            for order in self.exchange.state.open_orders():
                if order.open and order.status != "pending_replace":    # not gone with another
                    self.exchange.cancel(order, recv)
                    self.exchange.finish_cancel(order)
        rows: list[dict[str, Any]] = []
        for symbol in self._held():
            plain = self.exchange.names[symbol].plain
            try:
                rows.append({"symbol": plain, "status": 200,
                             "body": self._close(symbol, recv).view})
            except Refused as error:
                rows.append({"symbol": plain, "status": error.status, "body": error.body})
        return answer(rows, 207)

    async def assets(self, request: web.Request) -> web.Response:
        class_ = request.query.get("asset_class")
        rows = [account.asset(self.exchange, i) for i in self.exchange.instruments]
        if request.query.get("status", "active") == "inactive" or request.query.get("attributes"):
            rows = []                       # none is inactive, none has an attribute
        exchange = request.query.get("exchange")
        return answer([r for r in rows if class_ in (None, "", r["class"])
                       and exchange in (None, "", r["exchange"])])

    async def asset(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        instrument = self.exchange.names.get(name)
        if instrument is None:
            raise Refused(404, 40410000, f"asset not found for {name}")
        return answer(account.asset(self.exchange, instrument))

    async def clock(self, request: web.Request) -> web.Response:
        shift = self.chaos.told("GET /v2/clock") if self.chaos is not None else 0
        return answer(self.exchange.hours.clock(utc_ns() + shift))

    async def calendar(self, request: web.Request) -> web.Response:
        query = request.query
        first, last = (_day(query[name], name) if query.get(name) else default
                       for name, default in (("start", FIRST), ("end", LAST)))
        if first > last:
            raise invalid("start must not be after end")
        return answer(rows(first, last))


def _day(value: str, name: str) -> date:
    try:
        return date.fromisoformat(value[:10])
    except ValueError:
        raise invalid(f"invalid {name}") from None


def time_of(value: str | None, name: str) -> int | None:
    """UTC ns of an RFC 3339 time with up to nine digits."""
    if not value:
        return None
    head, dot, tail = value.replace(" ", "+").partition(".")
    digits = tail[:len(tail) - len(tail.lstrip("0123456789"))]
    try:
        when = datetime.fromisoformat(head + tail[len(digits):])
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        return int(when.timestamp()) * 10**9 + (int(digits[:9].ljust(9, "0")) if dot else 0)
    except ValueError:
        raise Refused(422, 40010001, f"invalid {name}") from None
