"""Recordings of other people's feeds as MARKET records.

:func:`open_recording` looks at a file, not at its name alone, and returns a :class:`Reader`:

======== ==============================================================================
hftpipe  a recording of ours, see :mod:`hftpipe.recording`
itch     NASDAQ TotalView-ITCH 5.0, ``u16 length, message``; may be gzip-packed
lobster  a LOBSTER message file, its orderbook file beside it
binance  ``<local ns> <raw WebSocket JSON>`` lines: depth, trades, best prices, REST snapshot
coinbase ``<unix s>: <raw WebSocket JSON>`` lines of the level2 and matches channels
kraken   the same of Kraken's book and trade channels (WebSocket version 1)
======== ==============================================================================

Further formats are added to :data:`FORMATS`.  A recording is read twice: first for its
instruments and whether it is well-formed as far as that can be told, then for its records.
Whatever is malformed ends the reading with one :class:`DataError` that says where.
"""
from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy
from numpy.typing import NDArray

from hftpipe import recording, schema
from hftpipe.errors import DataError

from ._itch import Parser
from ._rows import Rows, parse_nano

K, F = schema.MARKET_KIND, schema.MARKET_FLAG
BUY, SELL = schema.SIDE.BUY, schema.SIDE.SELL
SECOND = 10**9
HEAD = 1 << 16                  # bytes a format is recognised by
BLOCK = 1 << 20                 # bytes read at once


def new_york_midnight(day: date) -> int:
    """UTC nanoseconds of midnight in New York; daylight saving by the rule of 2007."""
    march, november = date(day.year, 3, 1), date(day.year, 11, 1)
    begin = march + timedelta((6 - march.weekday()) % 7 + 7)        # second Sunday
    end = november + timedelta((6 - november.weekday()) % 7)        # first Sunday
    hours = 4 if begin < day <= end else 5                          # changes at two o'clock
    return (day - date(1970, 1, 1)).days * 86_400 * SECOND + hours * 3_600 * SECOND


def _day_in(name: str) -> date | None:
    for year, month, number in re.findall(r"(?<!\d)(20\d\d)-?(\d\d)-?(\d\d)(?!\d)", name):
        try:
            return date(int(year), int(month), int(number))
        except ValueError:
            continue
    return None


def _open(path: Path) -> IO[bytes]:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(path, "rb") if packed else path.open("rb")     # type: ignore[return-value]
    except OSError as error:
        raise DataError(f"{path}: wanted a readable file, found: {error.strerror}") from None


_UNPACK = (EOFError, gzip.BadGzipFile, zlib.error)


def _blocks(path: Path) -> Iterator[bytes]:
    """The unpacked bytes of a file."""
    at = 0
    with _open(path) as file:
        while True:
            try:
                block = file.read(BLOCK)
            except _UNPACK as error:
                raise DataError(
                    f"{path}: byte {at}: wanted a whole gzip stream, found: {error}") from None
            if not block:
                return
            at += len(block)
            yield block


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """``(number, line)`` of a file, empty lines left out."""
    number = 0
    with _open(path) as file:
        while True:
            try:
                line = file.readline()
            except _UNPACK as error:
                raise DataError(
                    f"{path}: line {number + 1}: wanted a whole gzip stream, found: {error}"
                ) from None
            if not line:
                return
            number += 1
            line = line.strip()
            if line:
                yield number, line


def _excerpt(data: object) -> str:
    text = data.decode("latin-1") if isinstance(data, bytes) else str(data)
    return repr(text if len(text) <= 60 else text[:57] + "...")


class Reader:
    """One recording.  Iterating yields MARKET arrays that end with a whole venue message.

    Attributes
    ----------
    path : Path
    format : str
        Key of :data:`FORMATS`.
    instruments : (n,) INSTRUMENT array
        ``tick`` and ``lot`` are the greatest that all prices and quantities are multiples of,
        ``base_price`` is the first price.
    counters : Counter
        What was left out while reading, by kind.
    """

    format = ""

    def __init__(self, path: Path, symbols: Collection[str] | None, chunk: int) -> None:
        self.path, self.symbols, self.chunk = path, symbols, chunk
        self.counters: Counter[str] = Counter()
        self.instruments = numpy.zeros(0, schema.dtype(schema.INSTRUMENT))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        raise NotImplementedError

    def _missing(self, found: Collection[str]) -> None:
        for symbol in self.symbols or ():
            if symbol not in found:
                some = ", ".join(sorted(found)[:8]) + (", ..." if len(found) > 8 else "")
                raise DataError(f"{self.path}: wanted symbol {symbol}, found {some or 'none'}")


# ---------------------------------------------------------------- ITCH

class ItchReader(Reader):
    """``ts_recv`` is nanoseconds since midnight in New York, ``ts_venue`` needs *day*."""

    format = "itch"

    def __init__(self, path: Path, symbols: Collection[str] | None = None, chunk: int = 8192,
                 *, day: date | None = None, **_: Any) -> None:
        super().__init__(path, symbols, chunk)
        day = day or _day_in(path.name)
        self._parser = Parser(new_york_midnight(day) if day else 0)
        self._left, self._at, self._used = b"", 0, 0
        for piece, last in self._pieces():
            self._finish(piece, self._guard(self._parser.scan, piece), last)
            self._left = piece[self._used:]
        try:
            self.instruments = self._parser.choose(symbols)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def _guard(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            return call(*args)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None

    def _pieces(self) -> Iterator[tuple[bytes, bool]]:
        """The file in blocks, each behind what the last one left over."""
        self._parser.reset()
        self._left, self._at, self._used = b"", 0, 0
        for block in _blocks(self.path):
            yield self._left + block, False
        if self._left:
            yield self._left, True

    def _finish(self, piece: bytes, used: int, last: bool) -> None:
        self._used = used
        self._at += used
        if last and used < len(piece):
            wanted = int.from_bytes(piece[used:used + 2], "big") + 2
            if wanted == 2 and len(piece) - used == 2:          # length 0 marks the end
                self._used = len(piece)
                return
            raise DataError(f"{self.path}: byte {self._at}: wanted a message of {wanted} bytes, "
                            f"found the end of the file after {len(piece) - used}")

    def __iter__(self) -> Iterator[NDArray[Any]]:
        dtype = schema.dtype(schema.MARKET)
        for piece, last in self._pieces():
            at, view = 0, memoryview(piece)
            while True:
                out = numpy.empty(max(self.chunk, 2), dtype)
                used, count = self._guard(self._parser.parse, view[at:], out)
                at += used
                if count:
                    yield out[:count]
                if not used or at == len(piece):
                    break
            self._finish(piece, at, last)
            self._left = piece[at:]
        self.counters = Counter(self._parser.counters)


# ---------------------------------------------------------------- text

class TextReader(Reader):
    """What readers of lines share: numbering of instruments, chunks, and errors with a line."""

    fractional = 1              # INSTRUMENT.flags

    def __init__(self, path: Path, symbols: Collection[str] | None = None, chunk: int = 8192,
                 *, quotes: bool = False, **_: Any) -> None:
        super().__init__(path, symbols, chunk)
        self.quotes = quotes
        self._index: dict[str, int] = {s: i for i, s in enumerate(symbols or ())}
        rows = Rows(chunk)
        self._prepare()
        found: set[str] = set()
        self._found = found
        for _step in self._messages(rows):
            if len(rows) >= chunk:
                rows.drop()
        self._missing(found)
        if not self._index:
            raise DataError(f"{path}: wanted market data, found none in the whole file")
        self.instruments = numpy.zeros(len(self._index), schema.dtype(schema.INSTRUMENT))
        for symbol, i in self._index.items():
            tick, lot, base = rows.increments(i)
            name = symbol.encode()
            if len(name) > 16:
                raise DataError(f"{path}: wanted a symbol of at most 16 bytes, found {symbol}")
            self.instruments[i] = (name, tick or 1, lot or 1, lot or 1, base, self.fractional, 0)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        rows = Rows(self.chunk)
        self._prepare()
        for _ in self._messages(rows):
            if len(rows) >= self.chunk:
                yield rows.take()
        if rows.out_of_range:
            self.counters["price out of range"] = rows.out_of_range
        if len(rows):
            yield rows.take()

    def _prepare(self) -> None:
        """Forget everything that a reading from the first line learns again."""
        self.counters.clear()
        self._line = 0

    def _messages(self, rows: Rows) -> Iterator[None]:
        """Put the records of the whole file into *rows*, stopping after each venue message."""
        line = b""
        try:
            for number, line in _lines(self.path):
                self._line = number
                self._message(line, rows)
                rows.end()
                yield
        except msgspec.DecodeError as error:
            raise DataError(f"{self.path}: line {self._line}: wanted {self.format} JSON, "
                            f"found {_excerpt(line)}: {error}") from None
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{self.path}: line {self._line}: {what} "
                            f"in {_excerpt(line)}") from None

    def _message(self, line: bytes, rows: Rows) -> None:
        raise NotImplementedError

    def _instrument(self, symbol: str) -> int:
        """Number of a symbol; -1 when it is not wanted."""
        self._found.add(symbol)
        index = self._index.get(symbol, -1)
        if index < 0 and self.symbols is None:
            index = self._index[symbol] = len(self._index)
        return index


_json = msgspec.json.Decoder()


def _seconds(text: bytes) -> int:
    return parse_nano(text.decode("latin-1"))


class _Chain:
    """Where a Binance depth stream stands: synchronised to a snapshot, and the last ``u``."""

    def __init__(self) -> None:
        self.synced = False
        self.first = False          # the next event is the first after the snapshot
        self.last = 0
        self.waiting: deque[dict[str, Any]] = deque(maxlen=4096)


class BinanceReader(TextReader):
    """Depth, trades and snapshot; or, with ``quotes=True``, best prices and trades.

    The two do not mix: a quote replaces a whole side of the book.  Depth events are kept until
    the snapshot and joined to it as Binance says: the first one has ``U <= lastUpdateId <= u``
    (spot: ``+ 1``), each later one follows its predecessor by ``pu`` (spot: ``U``).  A break in
    the chain is a GAP, and nothing of the depth passes until the next snapshot.
    """

    format = "binance"
    fractional = 3

    def _prepare(self) -> None:
        super()._prepare()
        self._chains: dict[int, _Chain] = {}

    def _message(self, line: bytes, rows: Rows) -> None:
        stamp, _, body = line.partition(b" ")
        if not stamp.isdigit():
            raise ValueError(f"wanted '<local ns> <JSON>', found {_excerpt(stamp)}")
        now = int(stamp)
        message = _json.decode(body)
        if "lastUpdateId" in message and "stream" not in message:
            self._snapshot(message, now, rows)
            return
        data = message.get("data", message)
        kind = data.get("e")
        if kind not in ("depthUpdate", "trade", "aggTrade", "bookTicker"):
            self.counters[str(kind)] += 1
            return
        instrument = self._instrument(data["s"])
        if instrument < 0:
            return
        if kind == "depthUpdate":
            if not self.quotes:
                self._depth(data, now, instrument, rows)
        elif kind == "bookTicker":
            if self.quotes:
                rows.begin(now, data.get("T", data.get("E", 0)) * 1_000_000, instrument)
                rows.add(K.QUOTE, BUY, parse_nano(data["b"]), parse_nano(data["B"]))
                rows.add(K.QUOTE, SELL, parse_nano(data["a"]), parse_nano(data["A"]))
            else:
                self.counters["bookTicker"] += 1
        else:
            price, qty = parse_nano(data["p"]), parse_nano(data["q"])
            if not price or not qty or data.get("X", "MARKET") != "MARKET":
                self.counters["trade"] += 1         # liquidation and insurance-fund entries
                return
            rows.begin(now, data["T"] * 1_000_000, instrument)
            rows.add(K.TRADE, SELL if data["m"] else BUY, price, qty,
                     data["t"] if kind == "trade" else data["a"])

    def _snapshot(self, data: dict[str, Any], now: int, rows: Rows) -> None:
        if self.quotes:
            return
        symbol = data.get("symbol", data.get("s"))
        if symbol is None:
            if len(self._found) != 1:
                raise ValueError(f"wanted a snapshot of one symbol, found {len(self._found)} "
                                 "symbols before it and no name in it")
            symbol = next(iter(self._found))
        instrument = self._instrument(symbol)
        if instrument < 0:
            return
        chain = self._chains.setdefault(instrument, _Chain())
        rows.begin(now, data.get("T", 0) * 1_000_000, instrument)
        rows.add(K.CLEAR, flags=F.SNAPSHOT)
        rows.levels(data["bids"], BUY, F.SNAPSHOT)
        rows.levels(data["asks"], SELL, F.SNAPSHOT)
        rows.end()
        chain.synced = chain.first = True
        chain.last = data["lastUpdateId"]
        waiting, chain.waiting = chain.waiting, deque(maxlen=4096)
        for event in waiting:
            self._depth(event, now, instrument, rows)

    def _depth(self, data: dict[str, Any], now: int, instrument: int, rows: Rows) -> None:
        chain = self._chains.setdefault(instrument, _Chain())
        if not chain.synced:
            chain.waiting.append(data)
            self.counters["depth before snapshot"] += 1
            return
        futures = "pu" in data
        begin, last = data["U"], data["u"]
        if chain.first:
            if last < chain.last + (not futures):
                self.counters["depth before snapshot"] += 1
                return
            joined = begin <= chain.last + (not futures)
        else:
            joined = data["pu"] == chain.last if futures else begin == chain.last + 1
        rows.begin(now, data.get("T", data["E"]) * 1_000_000, instrument)
        if not joined:
            rows.add(K.GAP)
            rows.end()
            self.counters["gaps"] += 1
            chain.synced = False
            chain.waiting.append(data)
            return
        chain.first, chain.last = False, last
        rows.levels(data["b"], BUY)
        rows.levels(data["a"], SELL)
        rows.end()


class _SocketReader(TextReader):
    """``<unix s>: <JSON>`` lines; a line about the connection starts with ``wss://``."""

    def _message(self, line: bytes, rows: Rows) -> None:
        if line.startswith(b"wss://"):
            if b" <-> " in line:
                self._connected(_seconds(line.rpartition(b" ")[2]), rows)
            return
        stamp, colon, body = line.partition(b": ")
        if not colon:
            raise ValueError("wanted '<unix s>: <JSON>'")
        self._body(_json.decode(body), _seconds(stamp), rows)

    def _connected(self, now: int, rows: Rows) -> None:
        """A connection after the first: whatever was said between the two is lost."""
        if self._line > 1:
            for instrument in self._index.values():
                rows.begin(now, 0, instrument)
                rows.add(K.GAP)
                rows.end()
            self.counters["gaps"] += 1

    def _body(self, message: Any, now: int, rows: Rows) -> None:
        raise NotImplementedError


def _utc(text: str) -> int:
    """UTC nanoseconds of ``2021-04-17T16:43:30.244075Z``, exact to the nanosecond."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?Z", text)
    if not match:
        raise ValueError(f"wanted a UTC time, found {text!r}")
    whole = int(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp())
    return whole * SECOND + parse_nano("0" + (match[2] or ".0"))


class CoinbaseReader(_SocketReader):
    """level2 and matches.  The feed numbers no level2 message: only a reconnect shows a gap."""

    format = "coinbase"

    def _body(self, message: Any, now: int, rows: Rows) -> None:
        kind = message["type"]
        if kind == "error":
            raise ValueError(f"wanted market data, found the venue's error {message!r}")
        if kind not in ("snapshot", "l2update", "match"):
            self.counters[kind] += 1
            return
        instrument = self._instrument(message["product_id"])
        if instrument < 0:
            return
        rows.begin(now, _utc(message["time"]) if "time" in message else 0, instrument)
        if kind == "snapshot":
            rows.add(K.CLEAR, flags=F.SNAPSHOT)
            rows.levels(message["bids"], BUY, F.SNAPSHOT)
            rows.levels(message["asks"], SELL, F.SNAPSHOT)
        elif kind == "l2update":
            rows.changes(message["changes"])
        else:                                   # side is the maker's
            rows.add(K.TRADE, SELL if message["side"] == "buy" else BUY,
                     parse_nano(message["price"]), parse_nano(message["size"]),
                     message["trade_id"])


class KrakenReader(_SocketReader):
    """book and trade of WebSocket version 1.

    The venue maintains the best *depth* levels of a side and leaves it to the reader to forget
    the others, so each level pushed out of a side is deleted here.
    """

    format = "kraken"

    def _prepare(self) -> None:
        super()._prepare()
        self._sides: dict[tuple[int, int], dict[str, Decimal]] = {}

    def _body(self, message: Any, now: int, rows: Rows) -> None:
        if isinstance(message, dict):
            self.counters[str(message.get("event"))] += 1
            if message.get("status") == "error":
                raise ValueError(f"wanted market data, found the venue's error {message!r}")
            return
        channel, symbol = message[-2], message[-1]
        name, _, depth = channel.partition("-")
        if name not in ("book", "trade"):
            self.counters[name] += 1
            return
        instrument = self._instrument(symbol)
        if instrument < 0:
            return
        if name == "trade":
            for price, qty, time, side, *_ in message[1]:
                rows.begin(now, parse_nano(time), instrument)
                rows.add(K.TRADE, BUY if side == "b" else SELL, parse_nano(price),
                         parse_nano(qty))
                rows.end()
            return
        parts = message[1:-2]
        newest = max((parse_nano(level[2]) for part in parts for pairs in part.values()
                      if isinstance(pairs, list) for level in pairs), default=0)
        rows.begin(now, newest, instrument)
        if "as" in parts[0] or "bs" in parts[0]:
            rows.add(K.CLEAR, flags=F.SNAPSHOT)
            rows.levels(parts[0].get("bs", ()), BUY, F.SNAPSHOT)
            rows.levels(parts[0].get("as", ()), SELL, F.SNAPSHOT)
            for key, side in (("bs", BUY), ("as", SELL)):
                self._sides[instrument, side] = {p[0]: Decimal(p[0]) for p in parts[0].get(key, ())}
            return
        for part in parts:
            for key, side in (("b", BUY), ("a", SELL)):
                pairs = part.get(key, ())
                rows.levels(pairs, side)
                self._limit(pairs, instrument, side, int(depth), rows)

    def _limit(self, pairs: Collection[list[str]], instrument: int, side: int, depth: int,
               rows: Rows) -> None:
        held = self._sides.setdefault((instrument, side), {})
        for price, qty, *_ in pairs:
            if parse_nano(qty):
                held[price] = Decimal(price)
            else:
                held.pop(price, None)
        while len(held) > depth:
            worst = (min if side == BUY else max)(held, key=held.__getitem__)
            rows.levels([[worst, "0"]], side)
            del held[worst]


# ---------------------------------------------------------------- LOBSTER

class LobsterReader(TextReader):
    """A LOBSTER pair: the message file makes the records, the orderbook file says what it can not.

    The files hold the best N levels only.  Which orders stood in the book before the first row,
    and what happened to levels while they were out of view, is in no message.  Therefore

    * the first row of the orderbook is the snapshot (its levels without their orders);
    * a message about an order that was never added becomes the new total of its level, and a
      TRADE when it is an execution;
    * a level that comes into view at the far end is taken from the orderbook (``revealed``), one
      that goes out of view there is deleted (``hidden``): the book holds N levels, as the file.

    Everything else must follow from the messages.  Where the orderbook says otherwise
    (``mismatches``), a GAP and a snapshot of the row follow: the recording has a hole there.

    ``ts_recv`` is nanoseconds since midnight in New York.
    """

    format = "lobster"
    fractional = 2 | 4          # shares of Nasdaq: prices in whole cents

    def __init__(self, path: Path, symbols: Collection[str] | None = None, chunk: int = 8192,
                 **options: Any) -> None:
        path, self._book_path = lobster_pair(path)
        self._symbol = path.name.partition("_")[0]
        day = _day_in(path.name)
        self._midnight = new_york_midnight(day) if day else 0
        super().__init__(path, symbols, chunk, **options)
        lot = SECOND                            # sizes are shares
        self.instruments["lot"] = self.instruments["min_qty"] = lot

    def _prepare(self) -> None:
        super()._prepare()
        self._levels: dict[int, dict[int, int]] = {BUY: {}, SELL: {}}
        self._orders: dict[int, list[int]] = {}         # ref -> [side, price, shares]
        self._books: Iterator[tuple[int, bytes]] = _lines(self._book_path)
        self._started = False

    def _messages(self, rows: Rows) -> Iterator[None]:
        yield from super()._messages(rows)
        extra = next(self._books, None)
        if extra:
            raise DataError(f"{self._book_path}: line {extra[0]}: wanted as many rows as messages, "
                            f"found one more than {self._line}")

    def _row(self) -> dict[int, dict[int, int]]:
        """The next row of the orderbook: price -> shares by side."""
        number, line = next(self._books, (0, b""))
        if not number:
            raise ValueError("wanted a row of the orderbook file for it, found the end of the file")
        cells = [int(cell) for cell in line.split(b",")]
        if len(cells) % 4:
            raise DataError(f"{self._book_path}: line {number}: wanted four numbers per level, "
                            f"found {len(cells)}")
        row: dict[int, dict[int, int]] = {BUY: {}, SELL: {}}
        for side, at in ((SELL, 0), (BUY, 2)):
            for price, shares in zip(cells[at::4], cells[at + 1::4], strict=True):
                if shares < 0:
                    raise DataError(f"{self._book_path}: line {number}: wanted shares, "
                                    f"found {shares}")
                if shares and 0 < price < 9_999_999_999:    # else: no such level
                    row[side][price] = shares
        self._depth = len(cells) // 4
        return row

    def _message(self, line: bytes, rows: Rows) -> None:
        cells = line.split(b",")
        if len(cells) != 6:
            raise ValueError(f"wanted six numbers, found {len(cells)}")
        ts = _seconds(cells[0])
        kind, ref, shares, price, side = (int(cell) for cell in cells[1:])
        if kind not in (1, 2, 3, 4, 5, 6, 7) or side not in (BUY, SELL):
            raise ValueError(f"wanted a type from 1 to 7 and direction 1 or -1, "
                             f"found {kind} and {side}")
        if kind != 7 and (shares <= 0 or price <= 0):
            raise ValueError(f"wanted a positive size and price, found {shares} and {price}")
        row = self._row()
        instrument = self._instrument(self._symbol)
        if instrument < 0:
            return
        rows.begin(ts, self._midnight + ts if self._midnight else 0, instrument)
        if not self._started:
            self._started = True
            before = {s: dict(levels) for s, levels in row.items()}
            if kind == 1:                       # its own order is added below, as an order
                left = before[side].pop(price, 0) - shares
                if left > 0:
                    before[side][price] = left
            self._snapshot(before, rows)
            if kind != 1:                       # already in the row
                self._print(kind, ref, shares, price, side, rows)
                return
        self._apply(kind, ref, shares, price, side, rows)
        self._compare(row, rows)

    def _snapshot(self, row: dict[int, dict[int, int]], rows: Rows) -> None:
        rows.add(K.CLEAR, flags=F.SNAPSHOT)
        for side in (BUY, SELL):
            for price, shares in row[side].items():
                rows.add(K.LEVEL, side, price * 100_000, shares * SECOND, 0, F.SNAPSHOT)
        rows.end()
        self._levels, self._orders = row, {}

    def _print(self, kind: int, ref: int, shares: int, price: int, side: int, rows: Rows) -> None:
        """What a message says beside the book: a trade or a status."""
        if kind in (4, 5, 6):
            rows.add(K.TRADE, -side if kind != 6 else 0, price * 100_000, shares * SECOND,
                     max(ref, 0), F.HIDDEN if kind == 5 else 0)
        elif kind == 7:                         # price: -1 halt, 0 quoting, 1 trading
            rows.add(K.STATUS, ref=int(price == 1))

    def _apply(self, kind: int, ref: int, shares: int, price: int, side: int, rows: Rows) -> None:
        if kind > 4:
            self._print(kind, ref, shares, price, side, rows)
            return
        levels = self._levels[side]
        at, qty = price * 100_000, shares * SECOND
        if kind == 1:
            levels[price] = levels.get(price, 0) + shares
            self._orders[ref] = [side, price, shares]
            rows.add(K.ADD, side, at, qty, ref)
            return
        order = self._orders.get(ref)
        if order:
            rows.add((0, 0, K.CANCEL, K.DELETE, K.EXECUTE)[kind], side, at, qty, ref)
            if kind == 3:
                shares = order[2]
            order[2] -= shares
            if order[2] <= 0:
                del self._orders[ref]
        else:
            self.counters["orders never added"] += 1
            self._print(kind, ref, shares, price, side, rows)
        left = levels.get(price, 0) - shares
        if not order and price in levels:
            rows.add(K.LEVEL, side, at, max(left, 0) * SECOND)
        if left > 0:
            levels[price] = left
        elif levels.pop(price, None) is not None:
            self._forget(side, price)

    def _forget(self, side: int, price: int) -> None:
        for ref in [r for r, o in self._orders.items() if o[0] == side and o[1] == price]:
            del self._orders[ref]

    def _compare(self, row: dict[int, dict[int, int]], rows: Rows) -> None:
        """Bring levels at the far end in and out of view; anything else is a mismatch."""
        for side in (BUY, SELL):
            own, seen = self._levels[side], row[side]
            if own == seen:
                continue
            both = [price for price in own if price in seen]
            far = (min if side == BUY else max)(both, default=None)
            new = [p for p in seen if p not in own]
            gone = [p for p in own if p not in seen]
            if (any(own[p] != seen[p] for p in both)
                    or (far is not None and any((p - far) * side > 0 for p in new + gone))
                    or (gone and len(seen) < self._depth)):
                self.counters["mismatches"] += 1
                rows.add(K.GAP)
                rows.end()
                self._snapshot({s: dict(levels) for s, levels in row.items()}, rows)
                return
            for price in gone:
                rows.add(K.LEVEL, side, price * 100_000, 0)
                del own[price]
                self._forget(side, price)
                self.counters["hidden"] += 1
            for price in new:
                rows.add(K.LEVEL, side, price * 100_000, seen[price] * SECOND)
                own[price] = seen[price]
                self.counters["revealed"] += 1


def lobster_pair(path: Path) -> tuple[Path, Path]:
    """Message and orderbook file of a LOBSTER pair, given either."""
    name = path.name
    pair = [path.with_name(name.replace(a, b)) for a, b in
            (("_orderbook_", "_message_"), ("_message_", "_orderbook_"))]
    for part in pair:
        if not part.exists():
            raise DataError(f"{path}: wanted {part.name} beside it, found no such file")
    return pair[0], pair[1]


# ---------------------------------------------------------------- our own

class OwnReader(Reader):
    """Market data of one of our own recordings."""

    def __init__(self, path: Path, symbols: Any = None, chunk: int = 8192) -> None:
        super().__init__(path, symbols, chunk)
        self.recording = recording.Recording(path)
        self.format = "hftpipe"
        self.instruments = self.recording.instruments
        self.utc_offset = self.recording.utc_offset
        self._index: dict[int, int] | None = None       # in the file -> in the table
        if symbols is not None:
            names = [row["symbol"].decode() for row in self.instruments]
            self._missing(names)
            chosen = [names.index(symbol) for symbol in symbols]
            self._index = {old: new for new, old in enumerate(chosen)}
            self.instruments = self.instruments[chosen]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        # A block of the file ends where the store's batch did, which may be inside a message.
        rest = numpy.zeros(0, schema.dtype(schema.MARKET))
        for found in self._records():
            if len(rest):
                found = numpy.concatenate([rest, found])
            ends = numpy.flatnonzero(found["flags"] & schema.MARKET_FLAG.LAST)
            whole = int(ends[-1]) + 1 if len(ends) else 0
            rest = found[whole:]
            if whole:
                yield self._chosen(found[:whole])
        if len(rest):
            yield self._chosen(rest)

    def _records(self) -> Iterator[NDArray[Any]]:
        """MARKET records of this version as the file has them."""
        want = schema.dtype(schema.MARKET)
        for kind, _, found in self.recording.events(schema.STREAM.FEED):
            if self.recording.descriptors[kind]["name"] != schema.MARKET.name:
                continue
            out = numpy.zeros(len(found), want)
            for name in want.names or ():
                if name in (found.dtype.names or ()) and name != "link_seq":
                    out[name] = found[name]
            yield out

    def _chosen(self, found: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
        """Without instruments that were not asked for, the others renumbered."""
        if self._index is None:
            return found
        out = found[numpy.isin(found["instrument"], list(self._index))]
        if len(out):
            places = numpy.zeros(max(self._index) + 1, "<u2")
            places[list(self._index)] = list(self._index.values())
            out["instrument"] = places[out["instrument"]]
        return out


# ---------------------------------------------------------------- which is it

@dataclass(frozen=True, slots=True)
class Format:
    """A kind of recording: *detect* sees the path and its first unpacked bytes."""

    detect: Callable[[Path, bytes], bool]
    reader: Callable[..., Reader]
    doc: str


def _is_itch(path: Path, head: bytes) -> bool:
    lengths = {"S": 12, "R": 39, "A": 36, "F": 40, "H": 25, "L": 26, "Y": 20, "V": 35, "D": 19,
               "E": 31, "P": 44, "X": 23, "U": 35, "C": 36, "I": 50, "Q": 40}
    return len(head) >= 3 and lengths.get(chr(head[2])) == int.from_bytes(head[:2], "big")


def _is_lobster(path: Path, head: bytes) -> bool:
    return bool(re.search(r"_(message|orderbook)_\d+", path.name)
                and re.match(rb"-?[\d.]+(,-?\d+){3,}\s", head))


def _is_socket(word: bytes) -> Callable[[Path, bytes], bool]:
    def detect(path: Path, head: bytes) -> bool:
        return bool(re.match(rb"wss://|\d{9,11}(\.\d+)?: ", head)) and word in head.lower()
    return detect


FORMATS: dict[str, Format] = {
    "hftpipe": Format(lambda path, head: head.startswith(recording.MAGIC), OwnReader,
                      "recording of a run of ours"),
    "itch": Format(_is_itch, ItchReader, "NASDAQ TotalView-ITCH 5.0"),
    "lobster": Format(_is_lobster, LobsterReader, "LOBSTER message and orderbook pair"),
    "binance": Format(lambda path, head: bool(re.match(rb"\d{16,19} \{", head)), BinanceReader,
                      "Binance lines '<local ns> <JSON>'"),
    "coinbase": Format(_is_socket(b"coinbase"), CoinbaseReader,
                       "Coinbase lines '<unix s>: <JSON>'"),
    "kraken": Format(_is_socket(b"kraken"), KrakenReader, "Kraken lines '<unix s>: <JSON>'"),
}


def open_recording(path: str | Path, *, symbols: Collection[str] | None = None,
                   chunk: int = 8192, **options: Any) -> Reader:
    """Open a recording of any known format.

    Parameters
    ----------
    path : path
        May be gzip-packed.  Of a LOBSTER pair, either file.
    symbols : collection of str, optional
        Read these instruments only, numbered in this order.
    chunk : int, default 8192
        About how many records one array has; a venue message is never divided.
    **options
        Of the reader: ``day`` (ITCH: date of the session, else taken from the file's name),
        ``quotes`` (Binance: best prices instead of depth).

    Raises
    ------
    DataError
        If the file is none of :data:`FORMATS`, malformed or truncated, or lacks a symbol.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: wanted a recording, found a directory")
    head, broken = b"", None
    with _open(path) as file:
        try:
            while len(head) < HEAD and (byte := file.read(64)):
                head += byte
        except _UNPACK as error:                # the reader will say where, if one knows the rest
            broken = error
    for known in FORMATS.values():
        if known.detect(path, head):
            return known.reader(path, symbols, chunk, **options)
    if broken:
        raise DataError(f"{path}: byte {len(head)}: wanted a whole gzip stream, found: {broken}")
    wanted = ", ".join(f.doc for f in FORMATS.values())
    raise DataError(f"{path}: wanted a recording ({wanted}), found {_excerpt(head[:40])}")
