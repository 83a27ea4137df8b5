"""What the venue knows and must not forget: orders, positions, cash, and the log they come from.

Everything that happens is one line of ``orders.jsonl``; the state is what :meth:`State.apply`
makes of the lines, live and on reload alike.  Each line is one ``write`` of an unbuffered
file, so whatever was said survives the death of the process.

Lines (``ts`` is UTC ns; ``recv`` is host-monotonic ns of the request's first byte)::

    start   run pid seed rate symbols        one per start of the venue
    order   an order was accepted: id client_order_id number symbol side type ... recv
    event   a step of it, as sent on the stream: event execution_id price qty position_qty ...
    cancel  a cancel was accepted: id recv
    refused a request was answered with an error: client_order_id status code message recv
    mark    last prices, so that a restarted market goes on where it was
"""
from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import msgspec

from hftpipe._clock import utc_ns
from hftpipe.errors import AccessError, BusyError, ConfigError, DataError

NANO = 1_000_000_000
LIVE = frozenset(("accepted", "pending_new", "new", "partially_filled", "pending_cancel",
                  "pending_replace", "held"))
AFTER = {"pending_new": "pending_new", "new": "new", "partial_fill": "partially_filled",
         "fill": "filled", "canceled": "canceled", "expired": "expired", "rejected": "rejected"}
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
QTY_MAX = 10**9 * NANO          # of one order; what 64 bits of nano can carry, with room

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def nano(value: object) -> int:
    """*value* (str, int or Decimal) in 1e-9, exactly.

    Raises
    ------
    ValueError
        If it is no finite decimal, or has more than nine places.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, Decimal)):
        raise ValueError(f"not a decimal: {value!r}")
    try:
        number = Decimal(value)
        if not number.is_finite() or abs(number) > 10**15:
            raise ValueError(f"out of range: {value!r}")
        scaled = number * NANO
        if scaled != int(scaled):
            raise ValueError(f"more than nine decimals: {value!r}")
    except InvalidOperation:
        raise ValueError(f"not a decimal: {value!r}") from None
    return int(scaled)


def text(value: int, places: int = 9) -> str:
    """*value* in 10**-places as a decimal string without needless zeros."""
    sign, value = ("-", -value) if value < 0 else ("", value)
    whole, rest = divmod(value, 10**places)
    return f"{sign}{whole}.{rest:0{places}}".rstrip("0") if rest else f"{sign}{whole}"


def divide(a: int, b: int) -> int:
    """a / b rounded half to even; b > 0."""
    q, r = divmod(a, b)
    return q + (2 * r > b or (2 * r == b and q & 1))


_second: tuple[int, str] = (-1, "")


def stamp(ns: int) -> str:
    """RFC 3339 UTC with up to nine digits, trailing zeros cut, as the broker writes it."""
    global _second
    s, rest = divmod(ns, NANO)
    known, head = _second
    if s != known:
        head = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(s))
        _second = s, head
    return f"{head}.{rest:09}".rstrip("0") + "Z" if rest else head + "Z"


class Order:
    """One order as the broker keeps it; quantities and prices in nano."""

    __slots__ = ("_packed", "_view", "client_order_id", "cost", "filled", "id", "limit", "number",
                 "qty", "side", "status", "symbol", "tif", "ts", "type")

    def __init__(self, body: dict[str, Any]) -> None:
        self.ts: int = body["ts"]
        self.id: str = body["id"]
        self.client_order_id: str = body["client_order_id"]
        self.number: int = body["number"]           # order of arrival, and id in the book
        self.symbol: str = body["symbol"]
        self.side = 1 if body["side"] == "buy" else -1
        self.type: str = body["type"]
        self.tif: str = body["time_in_force"]
        self.qty = nano(body["qty"])
        self.limit = nano(body["limit_price"]) if body["limit_price"] is not None else 0
        self.status = "accepted"
        self.filled = 0
        self.cost = 0                               # sum of price * qty, 1e-18
        created = stamp(body["ts"])
        self._packed: bytes | None = None
        self._view: dict[str, Any] = {
            "id": self.id, "client_order_id": self.client_order_id, "created_at": created,
            "updated_at": created, "submitted_at": created, "filled_at": None,
            "expired_at": None, "canceled_at": None, "failed_at": None, "replaced_at": None,
            "replaced_by": None, "replaces": None, "asset_id": body["asset_id"],
            "symbol": self.symbol, "asset_class": body["asset_class"],
            "notional": body["notional"], "qty": body["qty"], "filled_qty": "0",
            "filled_avg_price": None, "order_class": body["order_class"],
            "order_type": self.type, "type": self.type, "side": body["side"],
            "position_intent": body["position_intent"], "time_in_force": self.tif,
            "limit_price": body["limit_price"], "stop_price": None, "status": self.status,
            "extended_hours": body["extended_hours"], "legs": None, "trail_percent": None,
            "trail_price": None, "hwm": None, "subtag": None, "source": None,
            "expires_at": None}

    @property
    def view(self) -> dict[str, Any]:
        """The order object of the protocol."""
        return self._view if self._packed is None else _decode(self._packed)

    def pack(self) -> None:
        """Keep an ended order small: its id stays taken for ever."""
        if self._packed is None:
            self._packed, self._view = _encode(self._view), {}

    @property
    def open(self) -> bool:
        return self.status in LIVE

    @property
    def left(self) -> int:
        return self.qty - self.filled

    def move(self, status: str, ts: int) -> None:
        at = stamp(ts)
        self.status = self._view["status"] = status
        self._view["updated_at"] = at
        column = {"filled": "filled_at", "canceled": "canceled_at", "expired": "expired_at",
                  "rejected": "failed_at"}.get(status)
        if column:
            self._view[column] = at

    def fill(self, price: int, qty: int) -> None:
        self.filled += qty
        self.cost += price * qty
        self._view["filled_qty"] = text(self.filled)
        self._view["filled_avg_price"] = text(divide(self.cost, self.filled))


class Position:
    """Held quantity (nano, negative = short) and what was paid for it (1e-18)."""

    __slots__ = ("cost", "qty")

    def __init__(self) -> None:
        self.qty = 0
        self.cost = 0

    @property
    def average(self) -> int:
        return divide(abs(self.cost), abs(self.qty)) if self.qty else 0

    def fill(self, side: int, price: int, qty: int) -> None:
        """Move by *qty* on *side*; what closes leaves at the average price."""
        before = self.qty
        self.qty += side * qty
        if before * side >= 0:
            self.cost += side * price * qty
        elif before * self.qty > 0:
            self.cost = self.cost * self.qty // before
        else:
            self.cost = price * self.qty


class State:
    """Orders, positions and cash of the one account, with the log that is their truth.

    Parameters
    ----------
    directory : Path or None
        Where ``orders.jsonl`` is; ``None`` keeps everything in memory only.
    cash : int
        Of a new account, 1e-18.

    Raises
    ------
    BusyError
        If another venue uses the directory.
    AccessError, ConfigError
        If the directory cannot be used.
    DataError
        If a line of the log, other than a torn last one, is not as written.
    """

    def __init__(self, directory: Path | None, cash: int) -> None:
        self.cash = self.start_cash = cash
        self.orders: dict[str, Order] = {}
        self.by_client: dict[str, Order] = {}
        self.by_number: dict[int, Order] = {}       # open orders only
        self.positions: dict[str, Position] = {}
        self.prices: dict[str, int] = {}            # of the last mark
        self.runs = 0                               # starts so far
        self.trade = 0                              # last trade id that an order saw
        self.created = utc_ns()
        self.account = str(uuid.uuid4())
        self._event = 0                             # of the last event_id, 128 bits
        self._file: int | None = None
        self._lock: int | None = None
        if directory is not None:
            self._open(directory)

    # ------------------------------------------------------------ log

    def _open(self, directory: Path) -> None:
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise AccessError(f"cannot keep the venue's state in {directory}: {error}") from None
        except OSError as error:
            raise ConfigError(f"cannot keep the venue's state in {directory}: {error}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise BusyError(f"{directory}: another venue keeps its state there") from None
        path = directory / "orders.jsonl"
        size = 0
        try:
            for line, body in _lines(path):
                self.apply(body)
                size += len(line)
            for order in self.orders.values():
                if not order.open:
                    order.pack()
        except DataError:
            self.close()
            raise
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size > size:     # torn by a kill in the middle of a line
            os.ftruncate(self._file, size)

    def close(self) -> None:
        for fd in (self._file, self._lock):
            if fd is not None:
                os.close(fd)
        self._file = self._lock = None

    def record(self, kind: str, ts: int, **fields: Any) -> dict[str, Any]:
        """Write one line, then let it happen."""
        body = {"kind": kind, "ts": ts, **fields}
        if self._file is not None:
            line = _encode(body) + b"\n"
            if os.write(self._file, line) != len(line):
                raise OSError("the log's disk is full")
        self.apply(body)
        return body

    # ------------------------------------------------------------ what a line does

    def apply(self, body: dict[str, Any]) -> None:
        kind = body["kind"]
        if kind == "event":
            self._apply_event(body)
        elif kind == "order":
            order = Order(body)
            self.orders[order.id] = self.by_client[order.client_order_id] = order
            self.by_number[order.number] = order
        elif kind == "cancel":
            self.orders[body["id"]].move("pending_cancel", body["ts"])
        elif kind == "mark":
            self.prices.update((s, nano(p)) for s, p in body["prices"].items())
        elif kind == "start":
            self.runs += 1
            if self.runs == 1:
                self.created, self.account = body["ts"], body["account"]

    def _apply_event(self, body: dict[str, Any]) -> None:
        order = self.orders[body["id"]]
        event = body["event"]
        if event in ("partial_fill", "fill"):
            price, qty = nano(body["price"]), nano(body["qty"])
            order.fill(price, qty)
            self.cash -= order.side * price * qty
            self.positions.setdefault(order.symbol, Position()).fill(order.side, price, qty)
            self.trade = max(self.trade, body["trade"])
        if event == "partial_fill" and order.status == "pending_cancel":
            order.move("pending_cancel", body["ts"])        # a fill does not undo the request
        else:
            order.move(AFTER[event], body["ts"])
        if not order.open:
            self.by_number.pop(order.number, None)

    # ------------------------------------------------------------ questions

    def held(self, symbol: str) -> int:
        """Position, nano; negative = short."""
        position = self.positions.get(symbol)
        return position.qty if position else 0

    def open_orders(self, symbol: str | None = None) -> list[Order]:
        return [o for o in self.by_number.values() if symbol in (None, o.symbol)]

    def event_id(self, ts: int) -> str:
        """A ULID that sorts after every earlier one of this state."""
        self._event = max(self._event + 1, (ts // 1_000_000 << 80)
                          | int.from_bytes(os.urandom(9), "big"))
        return "".join(CROCKFORD[self._event >> shift & 31] for shift in range(125, -1, -5))


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Whole lines of a log with what they say; a torn last line is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                body = _decode(line)
            except msgspec.DecodeError as error:
                raise DataError(f"{path}:{number}: not a line of this log: {error}") from None
            if "kind" not in body or "ts" not in body:
                raise DataError(f"{path}:{number}: a line needs kind and ts")
            yield line, body


def read_log(directory: Path) -> list[dict[str, Any]]:
    """All lines of a venue's log, oldest first: what really happened, for tests and drills."""
    return [body for _, body in _lines(directory / "orders.jsonl")]
