"""Naive twin of the Alpaca decoder: a recursive MessagePack reader and the rules, slowly."""
from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal

TRADE, QUOTE, LEVEL, CLEAR, STATUS, GAP = 1, 2, 3, 4, 11, 12
BUST, FIX, BAND, BAR_OPEN, BAR_HIGH, BAR_LOW, BAR_CLOSE = range(14, 21)
LAST, SNAPSHOT = 1, 2
DEPTH = 15                      # containers with something in them, inside one value


class Malformed(Exception):
    pass


@dataclass
class Ext:
    code: int
    data: bytes


class Bin(bytes):
    """What a bin holds; a str is plain bytes here, so that bad UTF-8 is no matter."""


class Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise Malformed("truncated")
        self.at += size
        return self.data[self.at - size:self.at]

    def number(self, code: str):
        return struct.unpack(">" + code, self.take(struct.calcsize(code)))[0]

    def many(self, count: int, depth: int):
        if count and depth == 0:
            raise Malformed("too deep")
        if count > len(self.data) - self.at:        # each needs a byte; do not even start
            raise Malformed("truncated")
        return [self.value(depth - 1) for _ in range(count)]

    def pairs(self, count: int, depth: int) -> dict:
        flat = self.many(2 * count, depth)
        return {k if isinstance(k, bytes) and not isinstance(k, Bin) else None: v
                for k, v in zip(flat[::2], flat[1::2], strict=True)}

    def value(self, depth: int = DEPTH):
        b = self.number("B")
        if b < 0x80:
            return b
        if b < 0x90:
            return self.pairs(b & 15, depth)
        if b < 0xa0:
            return self.many(b & 15, depth)
        if b < 0xc0:
            return self.take(b & 31)
        if b >= 0xe0:
            return b - 256
        if b in (0xc0, 0xc2, 0xc3):
            return {0xc0: None, 0xc2: False, 0xc3: True}[b]
        if b == 0xc1:
            raise Malformed("0xc1")
        if b <= 0xc6:
            return Bin(self.take(self.number("BHI"[b - 0xc4])))
        if b <= 0xc9:
            size = self.number("BHI"[b - 0xc7])
            return Ext(self.number("b"), self.take(size))
        if b <= 0xcb:
            return self.number("fd"[b - 0xca])
        if b <= 0xd3:
            return self.number("BHIQbhiq"[b - 0xcc])
        if b <= 0xd8:
            return Ext(self.number("b"), self.take(1 << (b - 0xd4)))
        if b <= 0xdb:
            return self.take(self.number("BHI"[b - 0xd9]))
        if b <= 0xdd:
            return self.many(self.number("HI"[b - 0xdc]), depth)
        return self.pairs(self.number("HI"[b - 0xde]), depth)


def unpack(data: bytes) -> list:
    """A frame's messages: dicts by bytes keys; anything that is no map becomes None."""
    reader = Reader(data)
    b = reader.number("B")
    if b & 0xf0 == 0x90:
        count = b & 15
    elif b in (0xdc, 0xdd):
        count = reader.number("HI"[b - 0xdc])
    else:
        raise Malformed("no array")
    out = []
    for _ in range(count):
        start = reader.at
        b = reader.number("B")
        reader.at = start
        if b & 0xf0 == 0x80 or b in (0xde, 0xdf):
            reader.at += 1
            size = b & 15 if b < 0x90 else reader.number("HI"[b - 0xde])
            message = {}
            for _ in range(size):
                key = reader.value()
                message[key if isinstance(key, bytes) and type(key) is bytes else None] = \
                    reader.value()
            out.append(message)
        else:
            reader.value()
            out.append(None)
    if reader.at != len(data):
        raise Malformed("more behind it")
    return out


class Bad(Exception):
    pass


def nano(value) -> int:
    """The documented conversion, by decimal arithmetic."""
    if type(value) is int:
        if not 0 <= value <= 9223372035:
            raise Bad
        return value * 10**9
    if type(value) is not float or not math.isfinite(value) or not 0 <= value < 9223372036:
        raise Bad
    exact = Decimal(value) if value < 2**23 else Decimal(repr(value))
    return int((exact * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))


def moment(value) -> int:
    if value is None:
        return 0
    if type(value) is Ext and value.code == -1 and len(value.data) in (4, 8, 12):
        if len(value.data) == 4:
            seconds, nanos = struct.unpack(">I", value.data)[0], 0
        elif len(value.data) == 8:
            both = struct.unpack(">Q", value.data)[0]
            seconds, nanos = both & (1 << 34) - 1, both >> 34
        else:
            nanos, seconds = struct.unpack(">Iq", value.data)
        if nanos >= 10**9 or not 0 <= seconds <= 9223372035:
            raise Bad
        return seconds * 10**9 + nanos
    if type(value) is not bytes:
        raise Bad
    return rfc3339(value.decode("latin-1"))


def rfc3339(text: str) -> int:
    m = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?([Zz]|[+-]\d\d:\d\d)",
                     text, re.ASCII)
    if not m or not 1970 <= int(text[:4]) <= 2261:
        raise Bad
    zone = "+00:00" if m[4] in "Zz" else m[4]
    try:
        whole = datetime.fromisoformat(f"{m[1]}T{m[2]}{zone}")
    except ValueError:
        raise Bad from None
    seconds = (whole - datetime.fromisoformat("1970-01-01T00:00:00+00:00"))
    out = (seconds.days * 86400 + seconds.seconds) * 10**9 + int(((m[3] or "") + "0" * 9)[:9])
    if out < 0:
        raise Bad
    return out


@dataclass
class Twin:
    """Decoder of whole frames; ``feed`` gives (kind, side, price, qty, ref, instrument,
    flags, ts_venue) tuples, or raises Malformed."""

    symbols: list[str]
    stale: dict[int, bool] = field(default_factory=dict)
    depth: set[int] = field(default_factory=set)
    ignored: int = 0
    drops: int = 0
    errors: int = 0
    controls: int = 0
    control: int = 0

    def feed(self, data: bytes) -> list[tuple]:
        try:
            messages = unpack(data)
        except Malformed:
            self.errors += 1
            self.stale.clear()
            raise
        out = []
        for message in messages:
            try:
                out += self.message(message)
            except Bad:
                self.errors += 1
        return out

    def message(self, m: dict | None) -> list[tuple]:
        kind = m.get(b"T") if m is not None else None
        if type(kind) is not bytes or not kind:
            raise Bad
        if kind in (b"success", b"subscription", b"error"):
            self.controls += 1
            if kind == b"error" and type(m.get(b"code")) is int and m[b"code"] >= 0:
                self.control = m[b"code"] & 0x7fffffff
            return []
        if kind not in (b"t", b"q", b"o", b"s", b"l", b"c", b"x", b"b", b"u", b"d"):
            self.ignored += 1
            return []
        symbol = m.get(b"S")
        if type(symbol) is not bytes:
            raise Bad
        try:
            at = [s.encode() for s in self.symbols].index(symbol)
        except ValueError:
            self.drops += 1
            return []
        ts = moment(m.get(b"t"))
        rows = {b"t": self.trade, b"q": self.quote, b"o": self.book, b"s": self.status,
                b"l": self.bands, b"c": self.correction, b"x": self.cancel}.get(
                    kind, self.bar)(m, at)
        if rows is None:
            self.ignored += 1
            return []
        if rows:
            rows[-1][-1] |= LAST
        return [(*row[:5], at, row[5], ts) for row in rows]

    def trade(self, m, at):
        price, qty = nano(m.get(b"p")), nano(m.get(b"s"))
        ref = m.get(b"i", 0)
        tks = m.get(b"tks", b"")
        if price == 0 or type(ref) is not int or ref < 0 or type(tks) is not bytes:
            raise Bad
        return [[TRADE, {b"B": 1, b"S": -1}.get(tks, 0), price, qty, ref, 0]]

    def quote(self, m, at):
        sides = [(nano(m.get(p)), nano(m.get(s))) for p, s in ((b"bp", b"bs"), (b"ap", b"as"))]
        if at in self.depth:
            return None
        rows, flags = [], 0
        if self.stale.get(at, True):
            flags = SNAPSHOT
            rows.append([CLEAR, 0, 0, 0, 0, flags])
            self.stale[at] = False
        for side, (price, qty) in zip((1, -1), sides, strict=True):
            if not price or not qty:
                price = qty = 0
            rows.append([QUOTE, side, price, qty, 0, flags])
        return rows

    def book(self, m, at):
        reset = m.get(b"r")
        if reset not in (None, True, False) or type(reset) in (int, float):
            raise Bad
        flags = SNAPSHOT if reset else 0
        rows = [[CLEAR, 0, 0, 0, 0, flags]] if reset else []
        for key, side in ((b"b", 1), (b"a", -1)):
            if type(m.get(key)) is not list:
                raise Bad
            for entry in m[key]:
                if type(entry) is not dict:
                    raise Bad
                price, qty = nano(entry.get(b"p")), nano(entry.get(b"s"))
                if price == 0:
                    raise Bad
                rows.append([LEVEL, side, price, qty, 0, flags])
        self.depth.add(at)
        if reset:
            self.stale[at] = False
        return rows

    def status(self, m, at):
        if type(m.get(b"sc")) is not bytes:
            raise Bad
        if m[b"sc"] in (b"T", b"3"):
            return [[STATUS, 0, 0, 0, 1, 0]]
        if m[b"sc"] in (b"H", b"2", b"P", b"Q"):
            return [[STATUS, 0, 0, 0, 0, 0]]
        return None

    def bands(self, m, at):
        indicator = m.get(b"i", b"")
        upper, lower = nano(m.get(b"u")), nano(m.get(b"d"))
        if type(indicator) is not bytes or len(indicator) > 1:
            raise Bad
        if indicator in (b"D", b"F"):
            upper = lower = 0
        ref = indicator[0] if indicator else 0
        return [[BAND, 1, upper, 0, ref, 0], [BAND, -1, lower, 0, ref, 0]]

    def _void(self, m, ref, price, qty, kind):
        row = [kind, 0, nano(m.get(price)), nano(m.get(qty)), m.get(ref), 0]
        if not row[2] or not row[3] or type(row[4]) is not int or row[4] < 0:
            raise Bad
        return row

    def cancel(self, m, at):
        return [self._void(m, b"i", b"p", b"s", BUST)]

    def correction(self, m, at):
        return [self._void(m, b"oi", b"op", b"os", BUST), self._void(m, b"ci", b"cp", b"cs", FIX)]

    def bar(self, m, at):
        first, high, low, close, volume = (nano(m.get(k)) for k in (b"o", b"h", b"l", b"c", b"v"))
        trades = m.get(b"n", 0)
        average = nano(m[b"vw"]) if b"vw" in m else 0
        if type(trades) is not int or trades < 0:
            raise Bad
        if not first or not low or not close or high < low:
            raise Bad
        return [[BAR_OPEN, 0, first, volume, trades, 0], [BAR_HIGH, 0, high, 0, m[b"T"][0], 0],
                [BAR_LOW, 0, low, 0, 0, 0], [BAR_CLOSE, 0, close, 0, average, 0]]
