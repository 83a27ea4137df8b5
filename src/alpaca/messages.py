"""What Alpaca's JSON looks like, as msgspec types: data messages, trade updates, REST bodies.

Only fields that are used are declared; msgspec skips the others.  :class:`Message` stands
for all data messages at once, which is fast; where a field has another type than there (the
same key means other things in other messages), :data:`ONE` has a narrow type for each kind.
"""
from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType, field
from msgspec.json import Decoder

Number = float | UnsetType
Text = str | UnsetType


class Level(Struct):
    """A price level of an order book."""

    p: float
    s: float


class Message(Struct):
    """Any message of a data stream; ``_codec.pxd`` says what becomes of it."""

    T: str
    S: Text = UNSET
    t: str | None = None
    p: Number = UNSET
    s: Number = UNSET
    i: int | str | UnsetType = UNSET
    bp: Number = UNSET
    bs: Number = UNSET
    ap: Number = UNSET
    as_: Number = field(name="as", default=UNSET)
    b: Raw = Raw()
    a: Raw = Raw()
    c: Raw = Raw()
    r: bool | str | None = None
    u: Number = UNSET
    d: Number = UNSET
    o: Number = UNSET
    h: Number = UNSET
    l: Number = UNSET                                           # noqa: E741
    v: Number = UNSET
    n: int | UnsetType = UNSET
    vw: Number = UNSET
    oi: int | UnsetType = UNSET
    op: Number = UNSET
    os: Number = UNSET
    ci: int | UnsetType = UNSET
    cp: Number = UNSET
    cs: Number = UNSET
    sc: Text = UNSET
    tks: Text = UNSET
    code: int | UnsetType = UNSET
    msg: Text = UNSET


class Kind(Struct):
    """Only the type of a message."""

    T: str


class Trade(Struct):
    """``t``; ``tks`` for crypto only."""

    T: str
    S: str
    p: float
    s: float
    t: str | None = None
    i: int | UnsetType = UNSET
    tks: Text = UNSET


class Quote(Struct):
    """``q``."""

    T: str
    S: str
    bp: float
    bs: float
    ap: float
    as_: float = field(name="as")
    t: str | None = None


class Orderbook(Struct):
    """``o``."""

    T: str
    S: str
    b: Raw
    a: Raw
    t: str | None = None
    r: bool | None = None


class Status(Struct):
    """``s``."""

    T: str
    S: str
    sc: str
    t: str | None = None


class Bands(Struct):
    """``l``."""

    T: str
    S: str
    u: float
    d: float
    t: str | None = None
    i: Text = UNSET


class Correction(Struct):
    """``c``."""

    T: str
    S: str
    oi: int
    op: float
    os: float
    ci: int
    cp: float
    cs: float
    t: str | None = None


class Cancel(Struct):
    """``x``."""

    T: str
    S: str
    i: int
    p: float
    s: float
    t: str | None = None


class Bar(Struct):
    """``b``, ``u`` and ``d``."""

    T: str
    S: str
    o: float
    h: float
    l: float                                                    # noqa: E741
    c: Raw
    v: float
    t: str | None = None
    n: int | UnsetType = UNSET
    vw: Number = UNSET


class Control(Struct):
    """``success``, ``error`` and ``subscription``."""

    T: str
    code: int | UnsetType = UNSET
    msg: Text = UNSET


MESSAGES = Decoder(list[Message])
RAW = Decoder(list[Raw])
KIND = Decoder(Kind)
LEVELS = Decoder(list[Level])
NUMBER = Decoder(float)
ONE: dict[str, Decoder[Trade | Quote | Orderbook | Status | Bands | Correction | Cancel | Bar
                       | Control]] = {
    "t": Decoder(Trade), "q": Decoder(Quote), "o": Decoder(Orderbook), "s": Decoder(Status),
    "l": Decoder(Bands), "c": Decoder(Correction), "x": Decoder(Cancel),
    "b": Decoder(Bar), "u": Decoder(Bar), "d": Decoder(Bar),
    "success": Decoder(Control), "error": Decoder(Control), "subscription": Decoder(Control),
}


KNOWN = frozenset(ONE) - {"success", "error", "subscription"}   # kinds there are records for


class Order(Struct):
    """An order as REST and ``trade_updates`` show it; decimals stay text."""

    id: str
    client_order_id: str
    symbol: str
    status: str
    side: str = ""
    type: str | None = None
    time_in_force: str | None = None
    qty: str | int | float | None = None
    filled_qty: str | int | float | None = None
    filled_avg_price: str | int | float | None = None
    limit_price: str | int | float | None = None
    submitted_at: str | None = None
    updated_at: str | None = None
    replaced_by: str | None = None
    replaces: str | None = None


class TradeUpdate(Struct):
    """``data`` of a ``trade_updates`` message."""

    event: str
    order: Order
    timestamp: str | None = None
    at: str | None = None
    execution_id: str | None = None
    price: str | int | float | None = None
    qty: str | int | float | None = None
    position_qty: str | int | float | None = None


class Authorization(Struct):
    """``data`` of the answer to authenticating and listening; all of it optional."""

    status: str | None = None
    action: str | None = None
    streams: list[str] | None = None
    error_message: str | None = None


class Envelope(Struct):
    """What every message of ``/stream`` looks like."""

    stream: str | None = None
    action: str | None = None
    data: Raw = Raw(b"null")


class Position(Struct):
    """An open position; ``qty`` is negative when short."""

    symbol: str
    qty: str
    side: str = ""
    avg_entry_price: str | None = None
    current_price: str | None = None
    asset_class: str | None = None


class Closing(Struct):
    """What became of one position that all were asked to be closed; *body* is its order."""

    symbol: str
    status: int
    body: Raw = Raw()


class Account(Struct):
    """What a start needs to know of the account."""

    id: str
    status: str
    account_number: str = ""
    cash: str | None = None
    equity: str | None = None
    last_equity: str | None = None
    buying_power: str | None = None
    trading_blocked: bool = False
    account_blocked: bool = False
    trade_suspended_by_user: bool = False
    shorting_enabled: bool | None = None


class Fill(Struct):
    """One FILL activity."""

    id: str
    order_id: str
    symbol: str
    side: str
    qty: str
    price: str
    transaction_time: str
    cum_qty: str | None = None
    leaves_qty: str | None = None
    type: str | None = None


class Clock(Struct):
    """The session, by the venue's own clock."""

    timestamp: str
    is_open: bool
    next_open: str = ""
    next_close: str = ""


class Error(Struct):
    """Body of a refused request."""

    message: str = ""
    code: int | None = None


ENVELOPE = Decoder(Envelope)
UPDATE = Decoder(TradeUpdate)
AUTHORIZATION = Decoder(Authorization)
ERROR = Decoder(Error)
