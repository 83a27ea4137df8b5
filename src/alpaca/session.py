"""Everything about Alpaca that may be slow: handshakes, reconciliation; REST is in ``rest``.

The two streams and the order wire start here; what comes after start-up runs in
``_socket``, ``_codec`` and ``_http``.  Nothing here follows a redirect.
"""
from __future__ import annotations

import base64
import hashlib
import os
import re
import socket
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy

from hftpipe import schema
from hftpipe.alpaca import messages
from hftpipe.alpaca._codec import parse_nano, parse_time
from hftpipe.alpaca._socket import Receiver
from hftpipe.alpaca._tls import Session, Trust
from hftpipe.alpaca.rest import USER_AGENT, SecretLike, reveal
from hftpipe.errors import ConfigError, DataError, DeadlineError, HftpipeError

UPDATE = schema.dtype(schema.UPDATE)
KIND = schema.ORDER_EVENT_KIND
TEXT, BINARY = 1, 2             # WebSocket opcodes


# ---------------------------------------------------------------- the data stream's errors

class StreamError(HftpipeError):
    """The venue refused something on a stream, for now or for good."""

    def __init__(self, text: str, code: int = 0, final: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.final = final              # trying again cannot help


# What to do about an error code of the data stream (reference 1.3).
STOP, BACKOFF, REPORT = "stop", "backoff", "report"
CODES = {
    400: REPORT,                # invalid syntax: ours
    401: REPORT,                # not authenticated
    402: STOP,                  # auth failed
    403: REPORT,                # already authenticated
    404: BACKOFF,               # auth timeout
    405: REPORT,                # symbol limit exceeded; subscriptions unchanged
    406: BACKOFF,               # connection limit: a dead session may live on for 90 s
    407: BACKOFF,               # slow client: closes
    408: STOP,                  # v2 not enabled
    409: STOP,                  # insufficient subscription
    410: REPORT,                # invalid subscribe action for this feed
    411: STOP,                  # insufficient scope
    412: STOP,                  # only MessagePack
    413: STOP,                  # * not allowed
    500: BACKOFF,               # internal error
}
MEANING = {                     # for who sees the code only
    400: "invalid syntax", 401: "not authenticated", 402: "auth failed",
    403: "already authenticated", 404: "auth timeout", 405: "symbol limit exceeded",
    406: "connection limit exceeded", 407: "slow client", 408: "v2 not enabled",
    409: "insufficient subscription", 410: "invalid subscribe action for this feed",
    411: "insufficient scope", 412: "only MsgPack supported",
    413: "* not allowed for option quotes", 500: "internal error",
}


def stream_error(message: Mapping[str, Any], starting: bool) -> StreamError:
    """What an ``error`` message means; what is only worth a report once data flow is final
    while *starting*, because then we do not have what was asked for."""
    code = message.get("code")
    code = code if isinstance(code, int) else 0
    action = CODES.get(code, BACKOFF)
    return StreamError(f"the venue answered error {code}: {message.get('msg', '')}", code,
                       action == STOP or (starting and action == REPORT))


# ---------------------------------------------------------------- the data stream's messages

_msgpack = msgspec.msgpack.Encoder()
_json = msgspec.json.Encoder()


def encode(encoding: str, message: Mapping[str, Any]) -> bytes:
    """A client's message in the encoding of the stream."""
    return (_msgpack if encoding == "msgpack" else _json).encode(message)


def decode_controls(encoding: str, payload: bytes | memoryview) -> list[dict[str, Any]]:
    """Messages of a frame that is expected to be a control frame.

    Raises
    ------
    DataError
        If it is no array of maps.
    """
    try:
        if encoding == "msgpack":
            return msgspec.msgpack.decode(payload, type=list[dict[str, Any]])
        return msgspec.json.decode(payload, type=list[dict[str, Any]])
    except msgspec.DecodeError as error:
        raise DataError(f"wanted a control message, found {bytes(payload[:64])!r}: "
                        f"{error}") from None


_CONTROL = re.compile(rb'\x91[\x81-\x8f]\xa1T[\xa2-\xbf]|\s*\[\s*{\s*"T"\s*:\s*"[^"]{2}', re.DOTALL)


def is_control(payload: bytes | memoryview) -> bool:
    """Whether a frame is a control message; those come alone, with ``T`` first.

    Only a look at the first bytes: data messages have types of one letter.
    """
    return _CONTROL.match(payload[:64]) is not None


BARS = ("bars", "updatedBars", "dailyBars")


def channels_of(url: str, bars: bool = False) -> tuple[str, ...]:
    """What a run subscribes to on a data stream, by its address, with *bars* or without.

    Halts and price bands come on channels of their own, and a crypto book comes whole only on
    its own; corrections and cancels come with trades.  The test feed has none of these, and of
    bars the minutes only.
    """
    path = urlsplit(url).path.rstrip("/")
    more = BARS if bars else ()
    if "/crypto/" in path:
        return ("trades", "quotes", "orderbooks", *more)
    if path.startswith("/v2/") and not path.endswith("/test"):
        return ("trades", "quotes", "statuses", "lulds", *more)
    return ("trades", "quotes", *more[:1])


def auth_message(key: SecretLike, secret: SecretLike) -> dict[str, str]:
    """First message of a client."""
    return {"action": "auth", "key": reveal(key), "secret": reveal(secret)}


def subscribe_message(symbols: Sequence[str], channels: Iterable[str]) -> dict[str, Any]:
    """Second message of a client."""
    return {"action": "subscribe", **{channel: list(symbols) for channel in channels}}


def check_success(found: list[dict[str, Any]], wanted: str) -> None:
    """Raise StreamError unless *found* is ``success`` with *wanted* (or 403, as good)."""
    message = found[0] if found else {}
    if message.get("T") == "error":
        if message.get("code") == 403 and wanted == "authenticated":
            return
        raise stream_error(message, starting=True)
    if message.get("T") != "success" or message.get("msg") != wanted:
        raise StreamError(f"wanted {wanted!r} from the venue, found {message.get('T')!r} "
                          f"{message.get('msg')!r}")


def check_subscription(found: list[dict[str, Any]], symbols: Sequence[str],
                       channels: Iterable[str]) -> None:
    """Raise StreamError unless every channel has every symbol; ``*`` is all of them."""
    message = found[0] if found else {}
    if message.get("T") == "error":
        raise stream_error(message, starting=True)
    if message.get("T") != "subscription":
        raise StreamError(f"wanted the subscription from the venue, found {message.get('T')!r}")
    for channel in channels:
        have = set(message.get(channel) or ())
        missing = [] if "*" in have else sorted(set(symbols) - have)
        if missing:
            raise StreamError(f"{channel} of {', '.join(missing[:5])} not subscribed: the venue "
                              f"gave {len(have)} of {len(symbols)} symbols", final=True)


# ---------------------------------------------------------------- a plain blocking WebSocket

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"     # RFC 6455 1.3


def open_websocket(url: str, headers: Mapping[str, str] | None = None, timeout: float = 5.0,
                   message_max: int = 1 << 20, trust: Trust | None = None) -> Receiver:
    """Connect and upgrade: a receiver for the spinning loop, which takes the socket over.

    Parameters
    ----------
    url : str
        ``ws://`` or ``wss://``.
    headers : mapping, optional
        Of the request, beside those of the handshake.
    timeout : float, s
        For all of it.
    message_max : int
        Bytes of a message.
    trust : Trust, optional
        Of wss; the default trusts what the system trusts.

    Raises
    ------
    ConfigError
        If *url* is no such address.
    StreamError
        If the venue does not upgrade; final for 401, 403 and 404.
    TlsError
        If its certificate is not accepted, or it does not speak TLS 1.2 or newer.
    DeadlineError, OSError
        If it does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname:
        raise ConfigError(f"a stream's address must be ws(s)://host[:port][/path], was {url!r}")
    deadline = time.monotonic() + timeout
    secure = parts.scheme == "wss"
    trust = (trust or Trust()) if secure else None
    key = base64.b64encode(os.urandom(16))
    lines = [f"GET {parts.path or '/'}{'?' + parts.query if parts.query else ''} HTTP/1.1",
             f"Host: {parts.netloc}", "Upgrade: websocket", "Connection: Upgrade",
             f"Sec-WebSocket-Key: {key.decode()}", "Sec-WebSocket-Version: 13",
             f"User-Agent: {USER_AGENT}", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    sock = socket.create_connection((parts.hostname, parts.port or (443 if secure else 80)),
                                    timeout)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = None
        request, raw = "\r\n".join([*lines, "", ""]).encode("ascii"), b""
        try:
            if trust is not None:
                tls = Session(trust, sock.fileno(), parts.hostname)
                tls.handshake(deadline)
                tls.send(request, deadline)
            else:
                sock.sendall(request)
        except (TimeoutError, DeadlineError):
            raise DeadlineError(f"no TLS session with {parts.netloc} within {timeout:g} s"
                                if secure else f"{parts.netloc} did not take the WebSocket "
                                f"handshake within {timeout:g} s") from None
        while b"\r\n\r\n" not in raw:
            try:
                if tls is not None:
                    more = tls.receive(4096, deadline)
                else:
                    sock.settimeout(max(deadline - time.monotonic(), 0.001))
                    more = sock.recv(4096)
            except (TimeoutError, DeadlineError):
                raise DeadlineError(f"no answer to the WebSocket handshake of {parts.netloc} "
                                    f"within {timeout:g} s") from None
            if not more or len(raw) > 65536:
                raise StreamError("wanted a WebSocket handshake, found the end of the stream"
                                  if not more else "the answer to the handshake is too long")
            raw += more
        head, _, leftover = raw.partition(b"\r\n\r\n")
        status, *rest = head.decode("latin-1").split("\r\n")
        found = re.match(r"HTTP/1\.1 (\d{3})", status)
        code = int(found[1]) if found else 0
        if code != 101:
            raise StreamError(f"wanted HTTP 101 from {parts.netloc}, found {status[:80]!r}", code,
                              code in (401, 403, 404))
        answer = {k.strip().lower(): v.strip() for k, _, v in (h.partition(":") for h in rest)}
        proof = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        if answer.get("sec-websocket-accept") != proof or "sec-websocket-extensions" in answer:
            raise StreamError("the venue's WebSocket handshake does not answer ours")
        return Receiver(sock, leftover, message_max, tls)
    except BaseException:
        sock.close()
        raise


def open_data_stream(url: str, key: SecretLike, secret: SecretLike, symbols: Sequence[str],
                     channels: Iterable[str] = ("trades", "quotes"), encoding: str = "msgpack",
                     timeout: float = 5.0, message_max: int = 1 << 20,
                     trust: Trust | None = None) -> Receiver:
    """A receiver on a stream that is authenticated and subscribed, ready for the loop.

    Raises
    ------
    StreamError
        If the venue refuses; ``final`` tells whether trying again can help.
    ConfigError, DataError, DeadlineError, TlsError, OSError
        As for :func:`open_websocket`, and for answers that are none.
    """
    channels = tuple(channels)
    opcode = BINARY if encoding == "msgpack" else TEXT
    receiver = open_websocket(url, {"Content-Type": f"application/{encoding}"}, timeout,
                              message_max, trust)
    try:
        check_success(decode_controls(encoding, receiver.receive(timeout)), "connected")
        receiver.send(opcode, encode(encoding, auth_message(key, secret)))
        check_success(decode_controls(encoding, receiver.receive(timeout)), "authenticated")
        receiver.send(opcode, encode(encoding, subscribe_message(symbols, channels)))
        check_subscription(decode_controls(encoding, receiver.receive(timeout)), symbols, channels)
    except BaseException:
        receiver.close()
        raise
    return receiver


# ---------------------------------------------------------------- orders to UPDATE records

def client_order_id(run: int, seq: int) -> str:
    """Our name of the order that came from intent *seq*, as the wire writes it."""
    return f"hp-{run:x}-{seq:x}"


def order_of(text: str, run: int) -> int:
    """Identity of the order that :func:`client_order_id` named; 0 when it is not of *run*."""
    found = re.fullmatch(r"hp-([0-9a-f]{1,16})-([0-9a-f]{1,14})", text)
    if not found or int(found[1], 16) != run or text != client_order_id(run, int(found[2], 16)):
        return 0
    seq = int(found[2], 16)
    return schema.event_id(schema.STREAM.SIGNAL, seq) if seq else 0


def words(text: str | None) -> tuple[int, int]:
    """First and last 8 bytes of a UUID, big end first; (0, 0) of None.

    Raises
    ------
    ValueError
        If it is no UUID.
    """
    if text is None:
        return 0, 0
    n = uuid.UUID(text).int
    return n >> 64, n & (1 << 64) - 1


def uuid_of(high: int, low: int) -> str:
    """The UUID of two words."""
    return str(uuid.UUID(int=high << 64 | low))


def execution_of(fill: messages.Fill) -> tuple[int, int]:
    """The UUID in a FILL activity's id, ``yyyymmddHHMMSSmmm::uuid``; (0, 0) when there is none."""
    try:
        return words(fill.id.partition("::")[2] or None)
    except ValueError:
        return 0, 0


def not_among(known: Iterable[tuple[int, int]], fills: Iterable[messages.Fill],
              ) -> list[tuple[int, int, messages.Fill]]:
    """Those of *fills*, with quantity and price in nanos, that *known* (qty, price) have not.

    Executions have no name that stream and activities share, so equal ones count as many times
    as they are known.
    """
    count = Counter(known)
    out = []
    for one in fills:
        this = nano(one.qty), nano(one.price)
        if count[this]:
            count[this] -= 1
        else:
            out.append((*this, one))
    return out


def unlike(found: messages.Order, symbol: str, side: int, qty: int, price: int) -> list[str]:
    """In what the venue's order of our name is another one than ours; nothing is adopted then.

    *qty* and *price* in nanos; a price of 0 is none.
    """
    wanted = [("symbol", symbol, found.symbol),
              ("side", "buy" if side > 0 else "sell", found.side)]
    wanted += [(name, f"{ours / 1e9:.9g}", str(theirs)) for name, ours, theirs in (
        ("qty", qty, found.qty), ("limit_price", price, found.limit_price if price else None))
        if theirs is not None and nano(theirs) != ours]
    return [f"{name} {theirs} and not {ours}" for name, ours, theirs in wanted if ours != theirs]


def rfc3339(utc: int) -> str:
    """The second in which *utc* (ns) lies, as the venue wants a time."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(utc, 0) // 10**9))


def nano(value: str | int | float | None) -> int:
    """Nanos of a decimal as the venue writes it; text is exact, None is 0."""
    return 0 if value is None else parse_nano(value if isinstance(value, str) else f"{value!r}")


SIDES = {"buy": 1, "sell": -1}
# Kind of a status that ends an order, or says that the venue has it.
STATUS_KINDS = {
    "new": KIND.ACKED, "accepted": KIND.ACKED, "pending_new": KIND.ACKED, "held": KIND.ACKED,
    "partially_filled": KIND.ACKED, "filled": KIND.ACKED, "pending_cancel": KIND.ACKED,
    "pending_replace": KIND.ACKED, "accepted_for_bidding": KIND.ACKED, "stopped": KIND.ACKED,
    "calculated": KIND.ACKED, "suspended": KIND.ACKED, "done_for_day": KIND.ACKED,
    "pending_review": KIND.ACKED,
    "canceled": KIND.CANCELED, "expired": KIND.EXPIRED, "rejected": KIND.REJECTED,
    "replaced": KIND.REPLACED,
}


def update_row(order: messages.Order, run: int, instrument: int, ts_recv: int,
               ts_venue: str | None) -> numpy.ndarray[Any, Any]:
    """One UPDATE record about *order*, its kind and execution still empty.

    Raises
    ------
    ValueError
        If an id, a number or the time is malformed.
    """
    row = numpy.zeros(1, UPDATE)
    row["order"], row["instrument"] = order_of(order.client_order_id, run), instrument
    row["side"] = SIDES.get(order.side, 0)
    row["venue_id"], row["venue_id_low"] = words(order.id)
    row["cum_qty"] = nano(order.filled_qty)
    row["ts_recv"] = ts_recv
    row["ts_venue"] = parse_time(ts_venue) if ts_venue else 0
    return row
