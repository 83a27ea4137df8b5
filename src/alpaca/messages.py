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
    r: bool | str | None = None
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


class Control(Struct):
    """``success``, ``error`` and ``subscription``."""

    T: str
    code: int | UnsetType = UNSET
    msg: Text = UNSET


MESSAGES = Decoder(list[Message])
RAW = Decoder(list[Raw])
KIND = Decoder(Kind)
LEVELS = Decoder(list[Level])
ONE: dict[str, Decoder[Trade | Quote | Orderbook | Status | Control]] = {
    "t": Decoder(Trade), "q": Decoder(Quote), "o": Decoder(Orderbook), "s": Decoder(Status),
    "success": Decoder(Control), "error": Decoder(Control), "subscription": Decoder(Control),
}
