"""What the venue knows and must not forget: orders, positions, cash, and the log they come from.

Everything that happens is one line of ``orders.jsonl``; the state is what :meth:`State.apply`
makes of the lines, live and on reload alike.  Each line is one ``write`` of an unbuffered
file, so whatever was said survives the death of the process.

Lines (``ts`` is UTC ns; ``recv`` is host-monotonic ns of the request's first byte)::

    start   run pid seed rate symbols        one per start of the venue
    order   an order was accepted: id client_order_id number symbol side type ... recv
    event   a step of it, as sent on the stream: event execution_id price qty position_qty ...
    cancel  a cancel was accepted: id recv
    replace a replacement was accepted: id (of the old order) recv
    arm     a stop was triggered: id
    trail   the best price a trailing stop saw, and its stop: id hwm stop_price
    resize  an exit shrank with the partial fill of its twin: id qty
    config  account configurations that were changed
    refused a request was answered with an error: client_order_id status code message recv
    mark    last prices, so that a restarted market goes on where it was, and the equity
    bar     a whole minute of a symbol: t (minute) o h l c v n value
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
         "fill": "filled", "canceled": "canceled", "expired": "expired", "rejected": "rejected",
         "accepted": "accepted", "replaced": "replaced"}
CONFIGURATIONS: dict[str, Any] = {
    "suspend_trade": False, "no_shorting": False, "fractional_trading": True,
    "max_margin_multiplier": "4", "trade_confirm_email": "all",
    "ptp_no_exception_entry": False, "max_options_trading_level": 0,
    "disable_overnight_trading": False}
EQUITY_MINUTES = 31 * 24 * 60       # kept by the minute; older ones by the day
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

    __slots__ = ("_packed", "_view", "armed", "book", "client_order_id", "cost", "expires",
                 "extended", "filled", "group", "hwm", "id", "limit", "number", "parent",
                 "percent", "qty", "role", "side", "status", "stop", "symbol", "tif", "trail",
                 "ts", "type")

    def __init__(self, body: dict[str, Any]) -> None:
        def price(name: str) -> int:
            value = body.get(name)
            return nano(value) if value is not None else 0

        self.ts: int = body["ts"]
        self.id: str = body["id"]
        self.client_order_id: str = body["client_order_id"]
        self.number: int = body["number"]           # order of arrival
        self.book: int = body.get("book", self.number)      # its id in the book
        self.symbol: str = body["symbol"]
        self.side = 1 if body["side"] == "buy" else -1
        self.type: str = body["type"]
        self.tif: str = body["time_in_force"]
        self.qty = nano(body["qty"])
        self.limit, self.stop = price("limit_price"), price("stop_price")
        self.trail, self.percent = price("trail_price"), price("trail_percent")
        self.hwm = price("hwm")
        self.extended: bool = body["extended_hours"]
        self.group: str = body["order_class"]
        self.parent: str | None = body.get("parent")        # of a leg
        self.role: str | None = body.get("role")            # take_profit or stop_loss
        self.armed = False                          # its stop was triggered
        self.status: str = body.get("status", "accepted")
        self.filled = nano(body.get("filled_qty", "0"))
        self.cost: int = body.get("cost", 0)        # sum of price * qty, 1e-18
        self.expires = (body["ts"] + 90 * 86_400 * NANO
                        if self.tif == "gtc" and body["asset_class"] == "us_equity" else 0)
        created = stamp(body["ts"])
        self._packed: bytes | None = None
        self._view: dict[str, Any] = {
            "id": self.id, "client_order_id": self.client_order_id, "created_at": created,
            "updated_at": created, "submitted_at": created, "filled_at": None,
            "expired_at": None, "canceled_at": None, "failed_at": None, "replaced_at": None,
            "replaced_by": None, "replaces": body.get("replaces"),
            "asset_id": body["asset_id"],
            "symbol": self.symbol, "asset_class": body["asset_class"],
            "notional": body["notional"],
            "qty": None if body["notional"] is not None else body["qty"],
            "filled_qty": text(self.filled),
            "filled_avg_price": text(divide(self.cost, self.filled)) if self.filled else None,
            "order_class": body["order_class"],
            "order_type": self.type, "type": self.type, "side": body["side"],
            "position_intent": body["position_intent"], "time_in_force": self.tif,
            "limit_price": body["limit_price"], "stop_price": body.get("stop_price"),
            "status": self.status,
            "extended_hours": body["extended_hours"], "legs": None,
            "trail_percent": body.get("trail_percent"), "trail_price": body.get("trail_price"),
            "hwm": body.get("hwm"), "subtag": None, "source": None,
            "expires_at": stamp(self.expires) if self.expires else None}

    @property
    def complex(self) -> bool:
        """Part of a bracket, oco or oto: exempt from the wash-trade guard, as trailing stops."""
        return self.group not in ("", "simple") or self.type == "trailing_stop"

    @property
    def waits(self) -> bool:
        """A stop that nothing has triggered yet."""
        return self.stop > 0 and not self.armed

    def resize(self, qty: int) -> None:
        self.qty = qty
        if self._view["qty"] is not None:
            self._view["qty"] = text(qty)

    def follow(self, hwm: int, stop: int) -> None:
        self.hwm, self.stop = hwm, stop
        self._view["hwm"], self._view["stop_price"] = text(hwm), text(stop)

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
                  "rejected": "failed_at", "replaced": "replaced_at"}.get(status)
        if column:
            self._view[column] = at

    def carry(self, old: Order) -> None:
        """Quantities of a replacement count from the first order on."""
        for name in ("filled_qty", "filled_avg_price"):
            self._view[name] = old.view[name]

    def replaced_by(self, other: str) -> None:
        self._view["replaced_by"] = other

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
        self.live: dict[str, Order] = {}            # open orders, oldest first
        self.by_number: dict[int, Order] = {}       # open orders by their id in the book
        self.legs: dict[str, list[Order]] = {}      # by the id of what they belong to
        self.fills: list[tuple[int, str, str, int, int, str]] = []  # see apply
        self.configurations = dict(CONFIGURATIONS)
        self.equity: dict[int, int] = {}            # by minute, nano; the last ones
        self.days: dict[int, int] = {}              # the last equity of each UTC day
        self.bars: dict[str, list[tuple[int, ...]]] = {}    # as the log had them, for history
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
            self.live[order.id] = order
            self.by_number.setdefault(order.book, order)    # a replacement takes it over later
            if order.parent is not None:
                self.legs.setdefault(order.parent, []).append(order)
        elif kind in ("cancel", "replace"):
            self.orders[body["id"]].move(f"pending_{kind}", body["ts"])
        elif kind == "arm":
            self.orders[body["id"]].armed = True
        elif kind == "trail":
            self.orders[body["id"]].follow(nano(body["hwm"]), nano(body["stop_price"]))
        elif kind == "resize":
            self.orders[body["id"]].resize(nano(body["qty"]))
        elif kind == "config":
            self.configurations |= body["values"]
        elif kind == "mark":
            self.prices.update((s, nano(p)) for s, p in body["prices"].items())
            if "equity" in body:
                self._note_equity(body["ts"], nano(body["equity"]))
        elif kind == "bar":
            self.bars.setdefault(body["symbol"], []).append(
                tuple(int(body[k]) for k in ("t", "o", "h", "l", "c", "v", "n", "value")))
        elif kind == "start":
            self.runs += 1
            if self.runs == 1:
                self.created, self.account = body["ts"], body["account"]

    def _note_equity(self, ts: int, equity: int) -> None:
        minute = ts // (60 * NANO)
        self.equity[minute] = equity
        self.days[minute // 1440] = equity
        while len(self.equity) > EQUITY_MINUTES:
            del self.equity[next(iter(self.equity))]

    def _apply_event(self, body: dict[str, Any]) -> None:
        order = self.orders[body["id"]]
        event = body["event"]
        if event in ("partial_fill", "fill"):
            price, qty = nano(body["price"]), nano(body["qty"])
            order.fill(price, qty)
            self.cash -= order.side * price * qty
            self.positions.setdefault(order.symbol, Position()).fill(order.side, price, qty)
            self.trade = max(self.trade, body["trade"])
            self.fills.append((body["ts"], order.id, body["execution_id"], price, qty,
                               text(order.filled)))
        if event == "order_replace_rejected":
            order.move("partially_filled" if order.filled else "new", body["ts"])
        elif event == "partial_fill" and order.status in ("pending_cancel", "pending_replace"):
            order.move(order.status, body["ts"])            # a fill does not undo the request
        else:
            order.move(AFTER[event], body["ts"])
        if event == "replaced":
            self._take_over(order, self.orders[body["replaced_by"]])
        if not order.open:
            self.live.pop(order.id, None)
            if self.by_number.get(order.book) is order:
                del self.by_number[order.book]

    def _take_over(self, old: Order, new: Order) -> None:
        """The replacement is the one in the book now, and what the legs belong to."""
        old.replaced_by(new.id)
        self.by_number[new.book] = new
        new.filled, new.cost, new.hwm = old.filled, old.cost, old.hwm or new.hwm
        new.armed = old.armed and new.stop == old.stop
        if old.filled:
            new.carry(old)
        for leg in self.legs.pop(old.id, []):
            leg.parent = new.id
            self.legs.setdefault(new.id, []).append(leg)
            want = new.qty - new.filled if new.group == "oco" else new.qty
            if leg.open and not leg.filled and leg.qty != want:
                leg.resize(want)

    # ------------------------------------------------------------ questions

    def held(self, symbol: str) -> int:
        """Position, nano; negative = short."""
        position = self.positions.get(symbol)
        return position.qty if position else 0

    def open_orders(self, symbol: str | None = None) -> list[Order]:
        return [o for o in self.live.values() if symbol in (None, o.symbol)]

    def twin(self, order: Order) -> Order | None:
        """The other exit of a pair of which one cancels the other."""
        if order.parent is not None:
            parent = self.orders[order.parent]
            if parent.group == "oco":
                return parent
            others = [o for o in self.legs[order.parent] if o.role != order.role]
        else:
            others = self.legs.get(order.id, []) if order.group == "oco" else []
        return next((o for o in others if o.open), others[-1] if others else None)

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
