"""The venue's WebSockets: market data in the broker's two encodings, and ``trade_updates``.

A frame that goes to several clients is encoded once: a server's frames are not masked, so
their bytes are the same for everybody.  They are written straight to the transport behind
aiohttp's handshake and reader; a client whose unsent bytes pass the limit is told 407 and
dropped, so a slow reader costs a bounded amount of memory and nobody else's time.
"""
from __future__ import annotations

import asyncio
import hmac
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from hftpipe._clock import now_ns, utc_ns

from ._traders import LEVEL, QUOTE, TRADE
from .chaos import Chaos, Line
from .history import Bar, bucket
from .state import NANO, stamp
from .traders import Instrument

if TYPE_CHECKING:
    from .exchange import Message

STOCK_CHANNELS = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds",
                  "corrections", "cancelErrors")
CRYPTO_CHANNELS = ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars")
TEST_CHANNELS = ("trades", "quotes", "bars")
FOLLOWERS = ("corrections", "cancelErrors")     # come with trades, nobody subscribes to them
SYMBOL = re.compile(r"\*|[A-Za-z0-9./_-]{1,32}")
MESSAGES_MAX = 512              # of one frame
ERRORS = {400: "invalid syntax", 401: "not authenticated", 402: "auth failed",
          403: "already authenticated", 404: "auth timeout", 405: "symbol limit exceeded",
          406: "connection limit exceeded", 407: "slow client", 409: "insufficient subscription",
          410: "invalid subscribe action for this feed"}

_pack_time = struct.Struct(">Q").pack
_packed = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode
Ext = msgspec.msgpack.Ext


def packed_time(ns: int) -> Ext:
    """MessagePack timestamp, the 64-bit form: 30 bits of ns over 34 bits of seconds."""
    s, rest = divmod(ns, NANO)
    return Ext(-1, _pack_time(rest << 34 | s))


class Packed:
    """MessagePack in binary frames."""

    opcode = 2
    time: Callable[[int], object] = staticmethod(packed_time)
    encode = staticmethod(_packed)
    decode = staticmethod(msgspec.msgpack.Decoder().decode)

    @staticmethod
    def array(rows: list[bytes]) -> bytes:
        count = len(rows)
        head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
        return head + b"".join(rows)


class Text:
    """JSON in text frames."""

    opcode = 1
    time: Callable[[int], object] = staticmethod(stamp)
    encode = staticmethod(_json)
    decode = staticmethod(msgspec.json.Decoder().decode)

    @staticmethod
    def array(rows: list[bytes]) -> bytes:
        return b"[" + b",".join(rows) + b"]"


Codec = type[Packed] | type[Text]


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole, unmasked WebSocket frame."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack(">BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack(">BBQ", 0x80 | opcode, 127, size) + payload


class Keys:
    """The one pair of key and secret; compared in constant time."""

    def __init__(self, key: str, secret: str) -> None:
        self._pair = key.encode(), secret.encode()

    def match(self, key: object, secret: object) -> bool:
        if not isinstance(key, str) or not isinstance(secret, str):
            return False
        ours, theirs = self._pair, (key.encode(), secret.encode())
        return (hmac.compare_digest(ours[0], theirs[0])
                & hmac.compare_digest(ours[1], theirs[1]))


class Stamps:
    """When each market data frame was handed to the socket: ``frames.jsonl``, if asked for.

    A line holds ``t`` (the first and last message's venue time, UTC ns), ``n`` (messages) and
    ``at`` (host-monotonic ns before and after the write).  Venue times are unique, so a
    message is in the frame whose ``t`` span holds its own.
    """

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("ab") if path else None

    def add(self, path: str, first: int, last: int, count: int, before: int, after: int) -> None:
        if self._file is not None:
            self._file.write(_json({"path": path, "t": (first, last), "n": count,
                                    "at": (before, after)}) + b"\n")

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Session:
    """One client's connection to a WebSocket of ours."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, opcode: int,
                 buffer: int) -> None:
        if request.transport is None:
            raise ConnectionResetError("the client is gone")
        self.transport: asyncio.Transport = request.transport
        self.socket = socket
        self.opcode = opcode
        self.buffer = buffer
        self.authenticated = False
        self.dropped = False
        self.line: Line | None = None       # what faults its frames go through

    def send(self, payload: bytes) -> None:
        data = frame(self.opcode, payload)
        if self.line is None:
            self.write(data)
        else:
            self.line.control(data)

    def tell(self, data: bytes, about: str) -> None:
        """Send a frame of messages, which faults may hit."""
        if self.line is None:
            self.write(data)
        else:
            self.line.message(data, about)

    def write(self, data: bytes) -> None:
        if self.dropped or self.transport.is_closing():
            return
        self.transport.write(data)
        if self.transport.get_write_buffer_size() > self.buffer:
            self.slow()

    def slow(self) -> None:
        """The client does not read: forget it and what it did not take."""
        self.dropped = True
        self.transport.abort()


class DataSession(Session):
    """A client of a data stream: what it subscribed to, in which encoding."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, codec: Codec,
                 buffer: int, feed: Feed) -> None:
        super().__init__(request, socket, codec.opcode, buffer)
        self.codec = codec
        self.feed = feed
        self.channels: dict[str, set[str]] = {c: set() for c in feed.channels}

    def control(self, **body: Any) -> None:
        self.send(self.codec.array([self.codec.encode(body)]))

    def error(self, code: int) -> None:
        self.control(T="error", code=code, msg=ERRORS[code])

    def slow(self) -> None:
        self.dropped = True                     # the message goes behind what is stuck already
        self.transport.write(frame(self.opcode, self.codec.array(
            [self.codec.encode({"T": "error", "code": 407, "msg": ERRORS[407]})])))
        self.transport.write(frame(8, WSCloseCode.POLICY_VIOLATION.to_bytes(2, "big")))
        asyncio.get_running_loop().call_later(1.0, self.transport.abort)

    def wants(self, channel: str, symbol: str) -> bool:
        names = self.channels[channel]
        return symbol in names or "*" in names

    def subscription(self) -> None:
        """The full state, as the broker answers every subscribe and unsubscribe."""
        self.control(T="subscription", **{c: sorted(s) for c, s in self.channels.items()})

    def change(self, body: dict[str, Any], limit: int) -> int:
        """Subscribe or unsubscribe; 0, or the error's code with nothing changed."""
        asked: dict[str, set[str]] = {}
        for channel, names in body.items():
            if channel == "action":
                continue
            if channel not in self.feed.channels or channel in FOLLOWERS:
                return 410 if channel in STOCK_CHANNELS + CRYPTO_CHANNELS else 400
            if not isinstance(names, list) or not all(
                    isinstance(n, str) and SYMBOL.fullmatch(n) for n in names):
                return 400
            asked[channel] = set(names)
        if not asked:
            return 400
        after = {c: set(s) for c, s in self.channels.items()}
        for channel, wanted in asked.items():
            if body["action"] == "subscribe":
                after[channel] |= wanted
            else:
                after[channel] -= wanted
        counted = [n for c in ("trades", "quotes") for n in after.get(c, ())]
        if limit and (len(counted) > limit or "*" in counted):
            return 405
        for follower in FOLLOWERS:
            if follower in after:
                after[follower] = set(after["trades"])
        self.channels = after
        return 0


class Ticks:
    """Venue times: UTC ns, each given out once, ascending."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last = max(self._last + 1, utc_ns())
        return self._last

    def stamp(self, messages: list[Message]) -> list[tuple[int, Message]]:
        """Give each message its time; the levels of one change of a book share theirs."""
        out: list[tuple[int, Message]] = []
        t, group = 0, -1
        for m in messages:
            if m[0] != LEVEL or m[7] != group:
                t = self()
                group = m[7] if m[0] == LEVEL else -1
            out.append((t, m))
        return out


class Feed:
    """One data endpoint: its instruments and its clients.

    Parameters
    ----------
    path : str
    instruments : sequence of Instrument
        All of the market's, by the index that messages carry.
    channels : sequence of str
    exchange : str
        Exchange code of its quotes and trades.
    stamps : Stamps
    ticks : Ticks
        Shared by feeds that show the same events.
    levels : callable, optional
        ``levels(instrument, side)``, best first.  With it, it is a feed of the crypto
        instruments with their order books; without, of the others.
    """

    def __init__(self, path: str, instruments: tuple[Instrument, ...],
                 channels: tuple[str, ...], exchange: str, stamps: Stamps, ticks: Ticks,
                 levels: Callable[[int, int], list[tuple[int, int]]] | None = None) -> None:
        self.path = path
        self.instruments = instruments
        self.crypto = levels is not None
        self.channels = channels
        self.exchange = exchange
        self.stamps = stamps
        self.levels = levels
        self.sessions: list[DataSession] = []       # authenticated ones
        self.slots = 0                              # taken, with those that linger
        self.sent = 0                               # messages
        self.ticks = ticks
        self._bars: dict[int, Bar] = {}
        self._days: dict[int, Bar] = {}             # running day bars
        self._told: dict[int, Bar] = {}             # the minute bar of each that was told last

    # ------------------------------------------------------------ encoding

    def _body(self, m: Message, codec: Codec, t: int) -> dict[str, object]:
        """A quote or trade as the broker writes it, the type first."""
        kind, index, side, a, b, c, d, number, _, _ = m
        symbol = self.instruments[index].symbol
        if self.crypto:
            if kind == QUOTE:
                return {"T": "q", "S": symbol, "bp": a / NANO, "bs": b / NANO, "ap": c / NANO,
                        "as": d / NANO, "t": codec.time(t)}
            return {"T": "t", "S": symbol, "p": a / NANO, "s": b / NANO, "t": codec.time(t),
                    "i": number, "tks": "B" if side > 0 else "S"}
        if kind == QUOTE:
            return {"T": "q", "S": symbol, "bx": self.exchange, "bp": a / NANO, "bs": b // NANO,
                    "ax": self.exchange, "ap": c / NANO, "as": d // NANO, "c": ["R"], "z": "C",
                    "t": codec.time(t)}
        return {"T": "t", "S": symbol, "i": number, "x": self.exchange, "p": a / NANO,
                "s": b // NANO, "c": ["@"] if b % (100 * NANO) == 0 else ["@", "I"], "z": "C",
                "t": codec.time(t)}

    def _deltas(self, group: list[Message], codec: Codec, t: int) -> dict[str, object]:
        """One change of a book: its levels, each with its whole size, 0 = gone."""
        return {"T": "o", "S": self.instruments[group[0][1]].symbol, "t": codec.time(t),
                "b": [{"p": m[3] / NANO, "s": m[4] / NANO} for m in group if m[2] > 0],
                "a": [{"p": m[3] / NANO, "s": m[4] / NANO} for m in group if m[2] < 0]}

    def _snapshot(self, index: int, codec: Codec) -> dict[str, object]:
        bids, asks = ([{"p": p / NANO, "s": q / NANO} for p, q in self.levels(index, side)]
                      if self.levels else [] for side in (1, -1))
        return {"T": "o", "S": self.instruments[index].symbol, "t": codec.time(self.ticks()),
                "b": bids, "a": asks, "r": True}

    def _bar(self, kind: str, index: int, bar: Bar, codec: Codec) -> dict[str, object]:
        volume = bar.volume / NANO if self.crypto else bar.volume // NANO
        return {"T": kind, "S": self.instruments[index].symbol, "o": bar.open / NANO,
                "h": bar.high / NANO, "l": bar.low / NANO, "c": bar.close / NANO, "v": volume,
                "t": codec.time(bar.minute * 60 * NANO), "n": bar.count,
                "vw": bar.value / bar.volume / NANO}

    # ------------------------------------------------------------ publishing

    def publish(self, stamped: list[tuple[int, Message]]) -> None:
        """Send what happened to everybody who subscribed to it."""
        mine = [row for row in stamped if self.instruments[row[1][1]].crypto is self.crypto]
        if not self.sessions:                   # nobody listens; bars go on
            for t, m in mine:
                if m[0] == TRADE:
                    self._aggregate(m, t // (60 * NANO))
            return
        events: list[tuple[str, str, int, list[Message]]] = []
        for t, m in mine:
            kind, symbol = m[0], self.instruments[m[1]].symbol
            if kind == LEVEL:
                if events and events[-1][0] == "orderbooks" and events[-1][3][0][7] == m[7]:
                    events[-1][3].append(m)
                else:
                    events.append(("orderbooks", symbol, t, [m]))
            else:
                if kind == TRADE:
                    self._aggregate(m, t // (60 * NANO))
                events.append(("trades" if kind == TRADE else "quotes", symbol, t, [m]))
        self._spread(events, lambda event, codec: (
            self._deltas(event[3], codec, event[2]) if event[0] == "orderbooks"
            else self._body(event[3][0], codec, event[2])))

    def _aggregate(self, m: Message, minute: int) -> None:
        bar = self._bars.get(m[1])
        if bar is None or bar.minute != minute:
            if bar is not None:
                self._send_bars([(m[1], bar)])
            bar = self._bars[m[1]] = Bar(minute, m[3])
        bar.add(m[3], m[4])

    def close_minute(self, now: int) -> None:
        """Send the bars whose minute is over; no trade, no bar."""
        minute = now // (60 * NANO)
        done = [(i, b) for i, b in self._bars.items() if b.minute < minute]
        for i, _ in done:
            del self._bars[i]
        self._send_bars(done)

    def _send_bars(self, bars: list[tuple[int, Bar]]) -> None:
        """Send minutes that are over, each followed by its running day."""
        events: list[tuple[str, str, int, tuple[str, int, Bar]]] = []
        for i, bar in bars:
            symbol = self.instruments[i].symbol
            self._told[i] = bar
            first = bucket(bar.minute, 1, "Day")
            day = self._days.get(i)
            if day is None or day.minute != first:
                day = self._days[i] = bar.copy()
                day.minute = first
            else:
                day.join(bar)
            events += [("bars", symbol, self.ticks(), ("b", i, bar)),
                       ("dailyBars", symbol, self.ticks(), ("d", i, day))]
        if events:
            self._spread(events, lambda event, codec: self._bar(
                event[3][0], event[3][1], event[3][2], codec))

    def say(self, channel: str, kind: str, index: int, fields: dict[str, Any]) -> None:
        """Send one message that no book makes: *fields*, the exchange where they name ``x``."""
        symbol = self.instruments[index].symbol
        if "x" in fields:
            fields = {**fields, "x": self.exchange}
        self._spread([(channel, symbol, self.ticks(), fields)], lambda event, codec: {
            "T": kind, "S": symbol, **event[3], "t": codec.time(event[2]), "z": "C"})

    def restate(self, index: int, price: int, qty: int) -> bool:
        """Send the last minute bar again with one trade more; whether there is one."""
        bar = self._told.get(index)
        if bar is None:
            return False
        bar = self._told[index] = bar.copy()
        bar.add(price, qty)
        self._spread([("updatedBars", self.instruments[index].symbol, self.ticks(), bar)],
                     lambda event, codec: self._bar("u", index, event[3], codec))
        return True

    def _spread(self, events: list[Any], body: Callable[[Any, Codec], object]) -> None:
        if not self.sessions:
            return
        encoded: dict[Codec, list[bytes | None]] = {}
        joined: dict[Any, bytes] = {}
        for session in tuple(self.sessions):
            codec = session.codec
            cache = encoded.setdefault(codec, [None] * len(events))
            chosen = [i for i, e in enumerate(events) if session.wants(e[0], e[1])]
            for at in range(0, len(chosen), MESSAGES_MAX):
                part = tuple(chosen[at:at + MESSAGES_MAX])
                data = joined.get((codec, part))
                if data is None:
                    rows = []
                    for i in part:
                        row = cache[i]
                        if row is None:
                            row = cache[i] = codec.encode(body(events[i], codec))
                        rows.append(row)
                    data = joined[codec, part] = frame(codec.opcode, codec.array(rows))
                before = now_ns()
                session.tell(data, self.path)
                self.stamps.add(self.path, events[part[0]][2], events[part[-1]][2], len(part),
                                before, now_ns())
                self.sent += len(part)

    def snapshots(self, session: DataSession, before: dict[str, set[str]]) -> None:
        """Whole books for what *session* has newly subscribed to."""
        known, names = before.get("orderbooks", set()), session.channels.get("orderbooks", set())
        for i, instrument in enumerate(self.instruments):
            now = instrument.symbol in names or "*" in names
            then = instrument.symbol in known or "*" in known
            if instrument.crypto and self.crypto and now and not then:
                session.send(session.codec.array(
                    [session.codec.encode(self._snapshot(i, session.codec))]))


class Updates:
    """The ``/stream`` endpoint: trade_updates to everybody who listens."""

    def __init__(self) -> None:
        self.sessions: list[UpdateSession] = []
        self.chaos: Chaos | None = None

    def publish(self, data: dict[str, Any]) -> None:
        listening = [s for s in self.sessions if s.listening]
        if listening:
            if self.chaos is not None:
                data = self.chaos.update(data)
            body = {"stream": "trade_updates", "data": data}
            encoded = {o: frame(UpdateSession.opcode, o.encode(body))
                       for o in {s.codec for s in listening}}
            about = f"{data['event']} {data['order']['client_order_id']}"
            for session in listening:
                session.tell(encoded[session.codec], about)


class UpdateSession(Session):
    """A client of ``/stream``: replies are BINARY frames with JSON, or MessagePack if asked."""

    opcode = Packed.opcode

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, codec: Codec,
                 buffer: int) -> None:
        super().__init__(request, socket, Packed.opcode, buffer)
        self.codec = codec
        self.listening = False

    def reply(self, stream: str, **data: Any) -> None:
        self.send(self.codec.encode({"stream": stream, "data": data}))


def header_pair(headers: Any) -> tuple[str, str] | None:
    """Key and secret in a request's headers, if there are any."""
    key = headers.get("APCA-API-KEY-ID")
    if key is not None:
        return key, headers.get("APCA-API-SECRET-KEY", "")
    kind, _, rest = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "basic":
        import base64
        import binascii
        try:
            key, _, secret = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return key, secret
    return None


def codec_of(request: web.Request, default: Codec = Text) -> Codec:
    return Packed if "msgpack" in request.headers.get("Content-Type", "") else default


class Sockets:
    """Handlers of the WebSocket endpoints.

    Parameters
    ----------
    keys : Keys
    feeds : sequence of Feed
    updates : Updates
    auth_timeout, linger, ghost : float, s
        Time to authenticate in; how long a refused connection stays open; how long the slot
        of a connection that broke stays taken.
    buffer, message : int
        Largest unsent backlog, and largest message from a client, in bytes.
    symbols, updates_limit : int
        Most symbols over trades and quotes, most ``/stream`` connections; 0 = any number.
    """

    def __init__(self, keys: Keys, feeds: Iterable[Feed], updates: Updates, *,
                 auth_timeout: float, linger: float, ghost: float, buffer: int, message: int,
                 symbols: int, updates_limit: int) -> None:
        self.keys = keys
        self.feeds = {f.path: f for f in feeds}
        self.updates = updates
        self.auth_timeout, self.linger, self.ghost = auth_timeout, linger, ghost
        self.buffer, self.message = buffer, message
        self.symbols, self.updates_limit = symbols, updates_limit
        self.open: set[Session] = set()
        self.chaos: Chaos | None = None

    def routes(self) -> list[web.RouteDef]:
        return [*(web.get(path, self.data) for path in self.feeds),
                web.get("/stream", self.stream), web.get("/stream/", self.stream)]

    async def close(self) -> None:
        for session in tuple(self.open):
            if not session.transport.is_closing():
                session.transport.write(
                    frame(8, WSCloseCode.GOING_AWAY.to_bytes(2, "big")))
                session.transport.close()

    def _join(self, session: Session, stream: str, path: str) -> None:
        self.open.add(session)
        if self.chaos is not None:
            session.line = Line(self.chaos, stream, path, session, frame)
            self.chaos.lines.add(session.line)

    def _part(self, session: Session) -> None:
        self.open.discard(session)
        if self.chaos is not None and session.line is not None:
            self.chaos.lines.discard(session.line)

    @staticmethod
    def _too_many() -> web.Response:
        return web.json_response({"code": 42910000, "message": "too many connections"}, status=429)

    # ------------------------------------------------------------ market data

    async def data(self, request: web.Request) -> web.StreamResponse:
        feed = self.feeds[request.path]
        if self.chaos is not None and self.chaos.refuses("data", feed.path):
            return self._too_many()
        socket = web.WebSocketResponse(compress=False, max_msg_size=self.message)
        await socket.prepare(request)
        session = DataSession(request, socket, codec_of(request), self.buffer, feed)
        self._join(session, "data", feed.path)
        clean = False
        try:
            session.control(T="success", msg="connected")
            pair = header_pair(request.headers)
            ending = self._login(session, *pair) if pair else False
            deadline = asyncio.get_running_loop().time() + self.auth_timeout
            while not ending:
                try:
                    async with asyncio.timeout_at(None if session.authenticated else deadline):
                        message = await socket.receive()
                except TimeoutError:
                    session.error(404)
                    break
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    clean = message.type is WSMsgType.CLOSE
                    break
                ending = self._data_message(session, message.data)
            if ending and not socket.closed:    # refused: time to read why, then close
                await asyncio.sleep(self.linger)
        finally:
            self._part(session)
            if session in feed.sessions:
                feed.sessions.remove(session)
            if session.authenticated:
                if self.ghost and not clean:
                    asyncio.get_running_loop().call_later(self.ghost, self._leave, feed)
                else:
                    self._leave(feed)
        if not session.dropped:
            await socket.close(code=WSCloseCode.POLICY_VIOLATION if ending else WSCloseCode.OK)
        return socket

    @staticmethod
    def _leave(feed: Feed) -> None:
        feed.slots -= 1

    def _login(self, session: DataSession, key: object, secret: object) -> bool:
        """Authenticate; whether the connection is to end."""
        feed = session.feed
        if not self.keys.match(key, secret):
            session.error(402)
            return True
        if self.symbols and feed.path == "/v2/sip":
            session.error(409)
            return True
        if feed.slots or (self.chaos is not None and self.chaos.full(feed.path)):
            session.error(406)
            return True
        feed.slots += 1
        feed.sessions.append(session)
        session.authenticated = True
        session.control(T="success", msg="authenticated")
        return False

    def _data_message(self, session: DataSession, data: str | bytes) -> bool:
        """Handle one client message; whether the connection is to end."""
        try:
            body = session.codec.decode(data)   # type: ignore[arg-type]
        except (msgspec.DecodeError, UnicodeError, TypeError, RecursionError):
            body = None
        if not isinstance(body, dict):
            session.error(400)
            return False
        action = body.get("action")
        if action == "auth":
            if session.authenticated:
                session.error(403)
                return False
            return self._login(session, body.get("key"), body.get("secret"))
        if action not in ("subscribe", "unsubscribe"):
            session.error(400)
        elif not session.authenticated:
            session.error(401)
        else:
            before = session.channels
            code = session.change(body, 0 if session.feed.crypto else self.symbols)
            if code:
                session.error(code)
            else:
                session.subscription()
                session.feed.snapshots(session, before)
        return False

    # ------------------------------------------------------------ trade updates

    async def stream(self, request: web.Request) -> web.StreamResponse:
        if (self.updates_limit and len(self.updates.sessions) >= self.updates_limit) or (
                self.chaos is not None and self.chaos.refuses("updates", request.path)):
            return self._too_many()
        socket = web.WebSocketResponse(compress=False, max_msg_size=self.message)
        await socket.prepare(request)
        session = UpdateSession(request, socket, codec_of(request), self.buffer)
        self._join(session, "updates", "/stream")
        self.updates.sessions.append(session)
        try:
            deadline = asyncio.get_running_loop().time() + self.auth_timeout
            refused = False
            while not refused:
                try:
                    async with asyncio.timeout_at(None if session.authenticated else deadline):
                        message = await socket.receive()
                except TimeoutError:
                    break
                if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    break
                refused = self._stream_message(session, message.data)
            if refused and not socket.closed:
                await asyncio.sleep(self.linger)
        finally:
            self._part(session)
            self.updates.sessions.remove(session)
        if not session.dropped:
            await socket.close()
        return socket

    def _stream_message(self, session: UpdateSession, data: str | bytes) -> bool:
        """Handle one client message; whether the connection is to end."""
        try:
            body = session.codec.decode(data)   # type: ignore[arg-type]
        except (msgspec.DecodeError, UnicodeError, TypeError, RecursionError):
            body = None
        inner = body.get("data") if isinstance(body, dict) else None
        inner = inner if isinstance(inner, dict) else {}
        action = body.get("action") if isinstance(body, dict) else None
        if action in ("auth", "authenticate") and isinstance(body, dict):
            key, secret = ((body.get("key"), body.get("secret")) if action == "auth"
                           else (inner.get("key_id"), inner.get("secret_key")))
            session.authenticated = self.keys.match(key, secret)
            session.reply("authorization", action="authenticate",
                          status="authorized" if session.authenticated else "unauthorized")
            return not session.authenticated
        if action == "listen":
            if not session.authenticated:
                session.reply("authorization", action="listen", status="unauthorized")
                return True
            streams = inner.get("streams")
            wanted = streams if isinstance(streams, list) else []
            session.listening = "trade_updates" in wanted
            session.reply("listening", streams=["trade_updates"] if session.listening else [])
            return False
        session.send(session.codec.encode(
            {"action": "error", "data": {"error_message": "invalid message"}}))
        return True
