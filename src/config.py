"""Configuration: TOML, environment and ``--set`` into frozen dataclasses; nobody else reads them.

Every key is declared once, here, with its kind, default and one sentence; ``conf/hftpipe.toml``
shows each with its paragraph and ``docs/operate/configuration.md`` lists them (a test keeps the
three equal).  Later wins: default < file < ``HFTPIPE__SECTION__KEY`` < ``--set section.key=value``;
:attr:`Config.origin` says for every key which of them spoke.

Values carry units (``"2s"``, ``"150/min"``, ``"5bp"``) and arrive as integers in the unit the
pipeline computes in: nanoseconds, per minute, basis points, 1e-9 of a price, quantity or amount.
Nothing is guessed: an unknown key, a missing unit or a tenth decimal is a :class:`ConfigError`
that names file and line, what was wanted and what was found.
"""
from __future__ import annotations

import dataclasses
import datetime
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import hftpipe
from hftpipe import limits, schema
from hftpipe.errors import ConfigError, GuardError
from hftpipe.secret import REFERENCE, Secret

NANO = 10**9
MAX = 2**63 - 1
PREFIX = "HFTPIPE__"

# ---------------------------------------------------------------- kinds of values


@dataclass(frozen=True)
class Kind:
    """How one kind of value is read and shown.  *read* raises ValueError without words."""

    wanted: str                             # "... must be <wanted>, was <found>"
    read: Callable[[Any], Any]
    show: Callable[[Any], str]              # a TOML literal that reads back as the same value
    from_text: Callable[[str], Any] = str   # environment and --set have only text


def quoted(value: str) -> str:
    """*value* as a TOML basic string."""
    out = "".join(
        {"\\": "\\\\", '"': '\\"'}.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}")
        for c in value)
    return f'"{out}"'


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError from None
    if not number.is_finite():
        raise ValueError
    return number


def _nano(number: Decimal | int) -> int:
    """Exactly *number* times 1e9."""
    number = Decimal(number)
    if not number.is_finite() or number.adjusted() > 12:
        raise ValueError
    scaled = number.scaleb(9)
    if scaled != scaled.to_integral_value():
        raise ValueError
    return int(scaled)


def _plain(nano: int) -> str:
    """A nano integer as a decimal literal."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    whole, part = divmod(nano, NANO)
    return f"{sign}{whole}" + (f".{part:09d}".rstrip("0") if part else "")


def text(*choices: str, pattern: str = "", wanted: str = "") -> Kind:
    """A string: one of *choices*, or one that matches *pattern*."""
    def read(value: Any) -> str:
        value = _text_of(value)
        if (choices and value not in choices) or not re.fullmatch(pattern or ".*", value, re.S):
            raise ValueError
        return cast(str, value)
    return Kind(wanted or ("one of " + ", ".join(map(quoted, choices)) if choices else "a string"),
                read, quoted)


def flag() -> Kind:
    """true or false."""
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def from_text(value: str) -> Any:
        return {"true": True, "false": False, "1": True, "0": False}.get(value.lower(), value)
    return Kind("true or false", read, lambda v: "true" if v else "false", from_text)


def _whole_text(value: str) -> Any:
    return int(value) if re.fullmatch(r"[+-]?\d{1,20}", value) else value


def whole(low: int, high: int, power_of_two: bool = False) -> Kind:
    """A whole number from *low* to *high*."""
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        if power_of_two and value & (value - 1):
            raise ValueError
        return value
    word = "a power of two" if power_of_two else "a whole number"
    return Kind(f"{word} from {low} to {high}", read, str, _whole_text)


def number(low: float, high: float) -> Kind:
    """A number from *low* to *high*; only what feeds a model may be a float."""
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise ValueError
        found = float(value)
        if not low <= found <= high:            # false for NaN too
            raise ValueError
        return found

    def from_text(value: str) -> Any:
        try:
            return _decimal(value)
        except ValueError:
            return value
    return Kind(f"a number from {low:g} to {high:g}", read, repr, from_text)


def amount(low: str, high: str = "9000000000") -> Kind:
    """A price, quantity or amount of money with up to nine decimals; becomes 1e-9 units."""
    floor, ceiling = _nano(Decimal(low)), _nano(Decimal(high))

    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
            raise ValueError
        found = _nano(_decimal(value.replace("_", "")) if isinstance(value, str) else value)
        if not floor <= found <= ceiling:
            raise ValueError
        return found
    return Kind(f"a number from {low} to {high} with at most nine decimals", read, _plain)


DURATIONS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": NANO, "min": 60 * NANO, "h": 3600 * NANO}


def _show_duration(ns: int) -> str:
    for unit in ("h", "min", "s", "ms", "us"):
        if ns and ns % DURATIONS[unit] == 0:
            return f'"{ns // DURATIONS[unit]}{unit}"'
    return f'"{ns}ns"'


def duration(low: str, high: str) -> Kind:
    """A time with its unit, such as "250ms"; becomes nanoseconds."""
    def parse(value: Any) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ns|us|ms|s|min|h)", _text_of(value))
        if not match:
            raise ValueError
        found = Decimal(match[1]) * DURATIONS[match[2]]
        if found != found.to_integral_value():
            raise ValueError
        return int(found)

    floor, ceiling = parse(low), parse(high)

    def read(value: Any) -> int:
        found = parse(value)
        if not floor <= found <= ceiling:
            raise ValueError
        return found
    return Kind(f'a time from "{low}" to "{high}" with its unit (ns us ms s min h)', read,
                _show_duration)


SIZES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def size(low: str, high: str) -> Kind:
    """A size with its unit, such as "64MiB"; becomes bytes."""
    def parse(value: Any) -> int:
        match = re.fullmatch(r"(\d{1,9}) ?(KiB|MiB|GiB)", _text_of(value))
        if not match:
            raise ValueError
        return int(match[1]) * SIZES[match[2]]

    floor, ceiling = parse(low), parse(high)

    def read(value: Any) -> int:
        found = parse(value)
        if not floor <= found <= ceiling:
            raise ValueError
        return found

    def show(count: int) -> str:
        unit = next(u for u in ("GiB", "MiB", "KiB") if count % SIZES[u] == 0)
        return f'"{count // SIZES[unit]}{unit}"'
    return Kind(f'a size from "{low}" to "{high}" with its unit (KiB MiB GiB)', read, show)


def rate(low: int, high: int) -> Kind:
    """So many per minute: "150/min", "3/s", or the number per minute."""
    def read(value: Any) -> int:
        if isinstance(value, str):
            match = re.fullmatch(r"(\d{1,12}) ?/ ?(s|min)", value)
            if not match:
                raise ValueError
            value = int(match[1]) * (60 if match[2] == "s" else 1)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value
    return Kind(f'a rate from "{low}/min" to "{high}/min"', read, lambda v: f'"{v}/min"',
                _whole_text)


def basis_points(low: int, high: int) -> Kind:
    """Hundredths of a percent: "5bp", "0.5%"; becomes whole basis points."""
    def read(value: Any) -> int:
        if isinstance(value, str):
            match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(bp|%)", value)
            if not match:
                raise ValueError
            found = Decimal(match[1]) * (100 if match[2] == "%" else 1)
            if found != found.to_integral_value():
                raise ValueError
            value = int(found)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError
        return value
    return Kind(f'a share from "{low}bp" to "{high}bp" in whole basis points', read,
                lambda v: f'"{v}bp"', _whole_text)


def exact_share(low: str, high: str) -> Kind:
    """A share with decimals: "0.278bp", "0.03%"; becomes 1e-9 of the whole."""
    def parse(value: Any) -> int:
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(bp|%)", _text_of(value))
        if not match:
            raise ValueError
        found = Decimal(match[1]) * (10**7 if match[2] == "%" else 10**5)
        if found != found.to_integral_value():
            raise ValueError
        return int(found)

    floor, ceiling = parse(low), parse(high)

    def read(value: Any) -> int:
        found = parse(value)
        if not floor <= found <= ceiling:
            raise ValueError
        return found

    def show(value: int) -> str:
        return f'"{format((Decimal(value) / 10**5).normalize(), "f")}bp"'
    return Kind(f'a share from "{low}" to "{high}", exact to 1e-9', read, show)


def split_address(value: str) -> tuple[str, int]:
    """``(host, port)`` of ``"host:port"``."""
    host, colon, port = value.rpartition(":")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise ValueError(f'address must be "host:port", was {value!r}')
    return host.strip("[]"), int(port)


def loopback() -> Kind:
    """host:port on this machine, or empty."""
    def read(value: Any) -> str:
        if _text_of(value):
            host, _ = split_address(value)
            if host not in ("localhost", "::1") and not re.fullmatch(r"127(\.\d{1,3}){3}", host):
                raise ValueError
        return cast(str, value)
    return Kind('"host:port" with a loopback host such as "127.0.0.1:9464", or "" for none', read,
                quoted)


def url(*schemes: str) -> Kind:
    """A URL of one of *schemes*, or empty."""
    def read(value: Any) -> str:
        if _text_of(value) and (
                not re.fullmatch(r"[a-z]+://[^/\s@]+(/\S*)?", value)
                or value.partition("://")[0] not in schemes):
            raise ValueError
        return cast(str, value)
    return Kind(f'a URL starting with {" or ".join(s + "://" for s in schemes)}, without user or '
                'password, or ""', read, quoted)


def _list_of(kind: Kind, plural: str) -> Kind:
    def read(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError
        return tuple(kind.read(v) for v in value)
    return Kind(f"a list of {plural}", read, lambda v: "[" + ", ".join(map(kind.show, v)) + "]",
                lambda s: [kind.from_text(p.strip()) for p in s.strip("[] ").split(",") if p])


def _features() -> Kind:
    """A set of features by its name, or a list of names; which exist is checked with the rest."""
    def read(value: Any) -> str | tuple[str, ...]:
        if isinstance(value, list | tuple):
            return tuple(_text_of(v) for v in value)
        return _text_of(value)
    names = _list_of(text(), "names")
    return Kind(f"one of {', '.join(map(quoted, schema.FEATURE_SETS))}, or a list of features",
                read, lambda v: quoted(v) if isinstance(v, str) else names.show(v),
                lambda s: names.from_text(s) if s.startswith("[") or "," in s else s)


def _wall_clock() -> Kind:
    """A time of day."""
    return text(pattern=r"([01]\d|2[0-3]):[0-5]\d", wanted='a time of day such as "09:30"')


def _wall_clock_span() -> Kind:
    """A span within a day."""
    one = r"([01]\d|2[0-3]):[0-5]\d"
    wanted = 'a span such as "09:30-09:45", its begin before its end'
    inner = text(pattern=f"{one}-{one}", wanted=wanted)

    def read(value: Any) -> str:
        found = cast(str, inner.read(value))
        if found[:5] >= found[6:]:
            raise ValueError
        return found
    return dataclasses.replace(inner, read=read)


def _date() -> Kind:
    """A day, ISO 8601."""
    def read(value: Any) -> str:
        return datetime.date.fromisoformat(
            str(value) if type(value) is datetime.date else _text_of(value)).isoformat()
    return Kind('a date such as "2028-12-31"', read, quoted)


# ---------------------------------------------------------------- secrets

def credential() -> Kind:
    """A reference to a credential; a literal is refused without being repeated."""
    def read(value: Any) -> Secret:
        if _text_of(value) and not REFERENCE.fullmatch(value):
            raise ValueError
        return Secret(value)

    def show(value: Secret) -> str:
        if value and not value.reference:
            raise ConfigError("a credential is never written; give a reference to it")
        return quoted(value.reference)
    return Kind('a reference such as "env:ALPACA_API_KEY", "file:/run/secrets/key", '
                '"keyring:SERVICE/USER" or "vault:PATH#FIELD" '
                "(the credential itself does not belong here)", read, show)


def database() -> Kind:
    """An address of PostgreSQL that holds no password."""
    def read(value: Any) -> str:
        value = _text_of(value)
        if not re.fullmatch(r"embedded|postgres(ql)?://\S+", value) or password_in(value):
            raise ValueError
        return cast(str, value)
    return Kind('"embedded" or "postgresql://..." without a password (that is store.password, a '
                "reference)", read, quoted)


def password_in(address: str) -> bool:
    """Whether a libpq URL holds a password: ``//user:password@`` or ``?password=``."""
    if "://" not in address:
        return False
    netloc, query = re.split(r"[/?#]", address.partition("://")[2], maxsplit=1)[0], \
        address.partition("?")[2]
    rest = address.partition("://")[2]
    user = (rest if "@" in rest and "@" not in netloc else netloc).rpartition("@")[0]
    names = [unquote(part.partition("=")[0]).strip().lower() for part in query.split("&")]
    return ":" in user or "password" in names or "sslpassword" in names


# ---------------------------------------------------------------- the keys

def option(kind: Kind, default: Any, doc: str) -> Any:
    """Declare a key; *default* as it would stand in the file."""
    return dataclasses.field(
        default=kind.read(default), metadata={"kind": kind, "doc": doc})


def free(doc: str) -> Any:
    """Declare a table whose keys somebody else knows."""
    return dataclasses.field(default_factory=dict, metadata={"kind": None, "doc": doc})


@dataclass(frozen=True)
class Venue:
    """Where data come from and orders go."""

    kind: str = option(text("local", "alpaca", ""), "",
                    'local or alpaca; "" means local for demo, alpaca otherwise.')
    rest: str = option(url("https", "http"), "",
                    'Base URL for orders; "" means the one of the profile.')
    data_stream: str = option(url("wss", "ws"), "",
                           'Market data WebSocket; "" means the one of the profile and feed.')
    updates_stream: str = option(url("wss", "ws"), "",
                              'Order updates WebSocket; "" means the one of the profile.')
    feed: str = option(text("iex", "sip", "delayed_sip", "test"), "iex",
                    "Which of the broker's stock feeds.")
    encoding: str = option(text("json", "msgpack"), "msgpack", "Of market data frames.")
    key: Secret = option(credential(), "", "Reference to the key id.")  # noqa: RUF009
    secret: Secret = option(credential(), "", "Reference to the secret key.")  # noqa: RUF009


@dataclass(frozen=True)
class Feed:
    """How market data are watched over."""

    silence_regular: int = option(
        duration("0s", "1h"), "5s", "Without stock data for so long in regular hours, the "
        "connection is given up and made anew; 0s = never.")
    silence_extended: int = option(
        duration("0s", "12h"), "1min", "The same before the open and after the close.")
    silence_closed: int = option(
        duration("0s", "24h"), "0s", "The same while the exchange is closed.")
    silence_crypto: int = option(
        duration("0s", "1h"), "30s", "The same of crypto and the test feed, at any hour.")
    ping: int = option(duration("100ms", "1min"), "10s",
                       "Without a byte for so long, the venue is asked for one; as long again "
                       "without an answer ends the connection.")
    reconnect_first: int = option(duration("10ms", "1s"), "250ms",
                                  "Longest wait before the first attempt to connect again.")
    reconnect_max: int = option(duration("1s", "5min"), "30s",
                                "The wait doubles up to this until data have come.")
    bars: bool = option(flag(), False, "Whether the venue's own bars are recorded, too: minutes, "
                        "minutes told again, and days.")
    backfill: tuple[str, ...] = option(
        _list_of(text("trades", "quotes", "bars"), "trades, quotes, bars"),
        ["trades", "quotes", "bars"], "What is asked for after a gap; empty = nothing.")
    backfill_longest: int = option(duration("1s", "24h"), "15min",
                                   "Of a longer gap only the end is asked for.")
    backfill_rows: int = option(whole(1, 1_000_000), 10_000,
                                "At most so many rows of each kind and gap.")
    backfill_rate: int = option(rate(1, 10_000), "60/min",
                                "Requests for it; the broker counts them apart from orders.")
    history: str = option(url("https", "http"), "",
                          'Base URL of the history service; "" means the one of the data stream.')


@dataclass(frozen=True)
class Instrument:
    """One tradable symbol."""

    symbol: str = option(text(pattern=r"[A-Z0-9][A-Z0-9./-]{0,14}",
                           wanted="1 to 15 capital letters, digits, '.', '/' or '-'"), "X",
                      "The venue's symbol.")
    tick: int = option(amount("0.000000001", "1000000"), "0.01", "Price increment.")
    lot: int = option(amount("0.000000001", "1000000"), 1, "Quantity increment.")
    min_qty: int = option(amount("0.000000001", "1000000"), 1, "Smallest order.")
    base_price: int = option(amount("0", "9000000"), 0,
                          "A typical price, a hint for the book's memory; 0 = unknown.")
    fractional: bool = option(flag(), False, "Whether the venue takes fractions of a lot.")
    shortable: bool = option(flag(), False, "Whether the venue lends it for short sales.")
    sector: str = option(text(pattern=r"[\w &/-]{0,40}",
                              wanted="at most 40 letters, digits, spaces, '&', '/' or '-'"), "",
                         "Sector it counts to; empty = unknown.")


@dataclass(frozen=True)
class Layout:
    """Which core runs what."""

    cores: str = option(text(), "auto", 'Cores to use, such as "0-7" or "1,3-5", or "auto".')
    spin: bool = option(flag(), True, "Whether hot stages spin; false = sleep when idle.")
    oversubscribe: bool = option(flag(), False,
                              "One process per stage on whatever cores, with yielding waits.")
    fuse_feed: str = option(text("auto", "yes", "no"), "auto",
                            "Whether market data are received inside the fused hot loop.")
    pin: Mapping[str, int] = free("Process or stage to core, over the planner's choice.")
    capacity: Mapping[str, int] = free("Records a link holds, by its name; a power of two.")


@dataclass(frozen=True)
class Strategy:
    """One decider."""

    name: str = option(text(pattern=r"[a-z][a-z0-9_]{0,30}",
                         wanted="1 to 31 of a-z, 0-9 and _, starting with a letter"),
                    "strategy", "Its name in logs and tables.")
    kind: str = option(text("imbalance", "onnx", "ensemble", "python", "native"), "imbalance",
                    "Which of ours, or whose.")
    entry: str = option(text(), "",
                     'python: "package.module:Class"; native: name of its entry point.')
    symbols: tuple[str, ...] = option(_list_of(text(), "symbols"), [],
                                   "Instruments it sees; empty = all.")
    members: tuple[str, ...] = option(
        _list_of(text(), "names"), [], "ensemble: names of the strategies it decides by; those do "
        "not trade on their own.")
    shadow: bool = option(flag(), False, "Whether it only watches: its answers and what it would "
                                         "have ordered are stored, nothing is sent.")
    params: Mapping[str, Any] = free("Its own parameters.")


@dataclass(frozen=True)
class Features:
    """What strategies and models look at."""

    bar: str = option(text(*schema.BARS), "1min", "Window of the bars that features are made "
                      "from; they begin at multiples of it, UTC.")
    set: str | tuple[str, ...] = option(
        _features(), "default", "Features that models may use: a set by its name, or a list of "
        "names. Without one that is made from bars, no bars are kept.")

    @property
    def names(self) -> tuple[str, ...]:
        """The features in their order."""
        return schema.feature_names(self.set)

    @property
    def window(self) -> str:
        """`bar`, or "" when no feature is made from bars."""
        return self.bar if any(schema.FEATURE_BY_NAME[n].bars for n in self.names) else ""


@dataclass(frozen=True)
class Gateway:
    """How orders leave."""

    connections: int = option(whole(1, 16), 4, "Warm connections for orders.")
    rate_per_minute: int = option(rate(1, 1_000_000), "180/min",
                               "Requests the gateway allows itself.")
    max_age: int = option(duration("1ms", "1h"), "1s",
                       "An order older than this is dropped, not sent.")
    timeout: int = option(duration("10ms", "10min"), "5s",
                       "Without an answer for so long, an order is unknown.")
    max_unknown: int = option(whole(1, 1000), 5,
                              "With more orders without an answer than this, trading halts.")
    absent_after: int = option(duration("1s", "10min"), "35s",
                               "An order without an answer that the venue still does not know "
                               "after so long never got there.")
    check_orders: int = option(duration("1s", "5min"), "30s",
                               "How often open orders are compared with the venue's.")
    check_positions: int = option(duration("1s", "5min"), "60s",
                                  "How often positions are compared with the venue's.")


@dataclass(frozen=True)
class Session:
    """When the exchange trades."""

    calendar: str = option(text("venue", "nyse", "always", ""), "",
                           'Who says when the exchange is open: the venue\'s own clock, the '
                           'calendar of the New York Stock Exchange, or nobody; "" means venue on '
                           "the local exchange, nyse otherwise.")
    premarket: str = option(_wall_clock(), "04:00",
                            "Begin of the session before the open, New York; 09:30 = none.")
    aftermarket: int = option(duration("0s", "8h"), "4h",
                              "Length of the session after the close.")
    blackouts: tuple[str, ...] = option(
        _list_of(_wall_clock_span(), "spans"), ["09:30-09:45", "15:45-16:00"],
        "Spans of regular hours without orders, New York; one that reaches the close moves with "
        "an early close.")
    known_until: str = option(_date(), "2028-12-31",
                              "Last day whose hours the exchange has announced; later ones count "
                              "as unknown.")


@dataclass(frozen=True)
class Analyst:
    """Figures that risk takes from outside."""

    interval: int = option(duration("100ms", "10min"), "1s", "How often figures are made.")
    history: str = option(text(), "",
                          "Daily bars: a CSV file (date, symbol, close; high, low, volume), "
                          '"database" for the trades that earlier runs stored, "" for none.')
    bar: int = option(duration("1s", "24h"), "24h",
                      "Period of one return: 24h = days of the history, less = bars of this run.")
    lookback: int = option(whole(2, 5000), 30, "Returns that figures are made from, at most.")
    least: int = option(whole(2, 5000), 20, "Returns below which there is no figure.")
    method: str = option(text("historical", "parametric", "cornish_fisher"), "historical",
                         "How value at risk is estimated.")


@dataclass(frozen=True)
class Halt:
    """What the guardian does."""

    on_halt: str = option(text("cancel", "hold"), "cancel",
                          "Open orders when trading halts: the guardian cancels them, or they "
                          "stay.")
    on_stop: str = option(text("cancel", "leave"), "cancel", "Open orders when the run ends.")
    hang: int = option(duration("100ms", "10min"), "3s",
                       "Without a heartbeat of a stage for so long, trading halts.")
    settle: int = option(duration("0s", "1min"), "1s",
                         "How long after the gate closed an order may still be under way.")
    unreachable: int = option(duration("1s", "1h"), "30s",
                              "Without an answer of the venue to the guardian for so long, "
                              "trading halts.")
    flatten: int = option(duration("1s", "1h"), "30s",
                          "How long closing orders may take before they are cancelled again.")
    daily_loss: int = option(basis_points(0, 10_000), "90%",
                             "Halt above this share of risk.max_daily_loss; 0 = never.")
    position: int = option(whole(0, 1_000_000), 10,
                           "Halt when positions are worth so many times the normal; 0 = never.")
    error_rate: int = option(basis_points(0, 10_000), "10%",
                             "Halt when more of the orders sent fail; 0 = never.")
    latency: int = option(duration("0ns", "1h"), "100ms",
                          "Halt when p99 of tick to order is above; 0s = never.")
    crossed: int = option(basis_points(0, 10_000), "50%",
                          "Halt when more of the books are crossed or locked; 0 = never.")
    stale: int = option(basis_points(0, 10_000), "50%",
                        "Halt when more of the books are stale; 0 = never.")
    jump: int = option(basis_points(0, 10_000), "10%",
                       "Halt when a price is further off its mean of a minute; 0 = never.")
    window: int = option(duration("1s", "1h"), "1min",
                         "Over which error_rate and latency look back.")
    confirm: int = option(whole(1, 3600), 3,
                          "So many looks in a row, a second apart, must say the same.")


@dataclass(frozen=True)
class Store:
    """Where events are kept."""

    url: str = option(database(), "embedded", "PostgreSQL: our own private one, or a server.")
    password: Secret = option(credential(), "",  # noqa: RUF009
                              "Reference to the password of the server; \"\" leaves it to "
                              "PGPASSFILE and the like.")
    record: str = option(text(), "", "File for a recording of the market data; empty = none.")


@dataclass(frozen=True)
class Journal:
    """Where events are before PostgreSQL has them."""

    durability: str = option(
        text("process", "host", ""), "",
        'What an order waits for: "process" = its intent is in shared memory, which survives every '
        'process; "host" = it is on disk; "" means host on a live account, process otherwise.')
    directory: str = option(text(), "", "Where the journals are; empty = journal in the run "
                                        "directory.")
    segment: int = option(size("1MiB", "4GiB"), "64MiB", "Size of one file, reserved beforehand.")
    spares: int = option(whole(2, 64), 2, "Files reserved ahead; trading halts when one is left.")
    retain: int = option(duration("0s", "87600h"), "1h",
                         "How long a file is kept that PostgreSQL has.")
    priority: int = option(whole(0, 99), 50,
                           "Real-time priority of its process, where permitted; 0 = none.")


@dataclass(frozen=True)
class Observe:
    """What others may see."""

    prometheus: str = option(loopback(), "127.0.0.1:9464",
                          "Address of /metrics, /health, /ready and /live.")
    alerts: tuple[str, ...] = option(
        _list_of(text(pattern=rf"log|webhook:({REFERENCE.pattern})",
                      wanted='"log" or "webhook:env:NAME"'), 'of "log" and "webhook:env:NAME"'),
        ["log"], "Who is told of a halt; a webhook's address comes by reference.")
    log_level: str = option(text("debug", "info", "warning", "error"), "info",
                            "Least level logged.")
    log_format: str = option(text("json", "text"), "json", "Form of a line on standard error.")


@dataclass(frozen=True)
class Account:
    """What the books begin with."""

    equity: int = option(amount("0.01"), 100_000,
                         "What the account is worth when the run starts.")
    day: str = option(text("new_york", "utc"), "new_york",
                      "Whose midnight ends the day of the P&L.")

    @property
    def zone(self) -> str:
        """Name of the day's time zone."""
        return {"new_york": "America/New_York", "utc": "UTC"}[self.day]


@dataclass(frozen=True)
class Fees:
    """What trading costs, as the ledger books it."""

    per_order: int = option(amount("0", "1000000"), 0, "Of an order, with its first fill.")
    per_share: int = option(amount("0", "1000000"), 0, "Of a whole unit bought or sold.")
    of_value: int = option(exact_share("0bp", "100%"), "0bp", "Of the value bought or sold.")
    sell_per_share: int = option(amount("0", "1000000"), 0, "Of a whole unit sold, on top.")
    sell_of_value: int = option(exact_share("0bp", "100%"), "0bp", "Of the value sold, on top.")

    @property
    def schedule(self) -> dict[str, int]:
        """As the ledger wants it."""
        return {"per_order": self.per_order, "per_share": self.per_share, "rate": self.of_value,
                "sell_per_share": self.sell_per_share, "sell_rate": self.sell_of_value}


@dataclass(frozen=True)
class Exits:
    """Stops and targets of every position."""

    enabled: bool = option(flag(), True, "Whether positions are closed by these rules.")
    stop: int = option(basis_points(0, 1000), "2%",
                       "Static stop, from the entry: 0.5% to 10%; 0 = none.")
    trailing: int = option(basis_points(0, 1000), "1.5%",
                           "Trailing stop, from the best price: 0.5% to 10%; 0 = none.")
    trailing_from: int = option(basis_points(0, 10_000), "2%",
                                "Gain from which on the trailing stop counts.")
    price: Mapping[str, int] = free("Symbol to an absolute stop price.")
    atr_times: int = option(amount("0", "100"), 0,
                            "Stop so many average true ranges from the entry; 0 = none.")
    atr_bars: int = option(whole(1, 500), 14, "Bars of the average true range.")
    atr_bar: int = option(duration("1s", "24h"), "1min", "Length of one of them.")
    hold: int = option(duration("0s", "8760h"), "24h", "Longest a position is held; 0s = any.")
    loss: int = option(amount("0"), 0, "Most cash a position may lose; 0 = any.")
    target: int = option(basis_points(0, 10_000), "5%", "Gain at which it is closed; 0 = none.")
    first: int = option(basis_points(0, 10_000), "3%", "Gain at which a part is closed; 0 = none.")
    first_share: int = option(basis_points(1, 10_000), "50%", "How large that part is.")
    break_even: bool = option(flag(), True,
                              "Whether the stop moves to the entry after the first target.")
    reward_risk: int = option(amount("0", "100"), 2,
                              "Least target over stop; less refuses to start.")
    order: str = option(text("market", "limit"), "market", "What closes it.")
    tolerance: int = option(basis_points(0, 1000), "0.5%",
                            "How far beyond the touch a limit order goes.")
    pause: int = option(duration("0s", "1h"), "1s",
                        "An exit that ended unfilled fires again after so long.")

    @property
    def params(self) -> dict[str, Any]:
        """As the strategy wants them."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)
               if f.name not in ("enabled", "reward_risk", "order")}
        return {**out, "price": dict(self.price), "market": self.order == "market"}


# Parameters of the strategies that ship: kind, default (None = absent unless given), meaning.  The
# others' are their authors' business.
COMMON = {
    "size": (text("fixed", "equity", "fraction", "kelly", "volatility", "equal"), "fixed",
             "How much an order is: qty, or a share of account.equity by this rule."),
    "size_share": (exact_share("0bp", "100%"), "2%",
                   "Of the equity: equity buys so much, fraction and volatility risk so much."),
    "size_stop": (exact_share("0bp", "100%"), "2%",
                  "Distance of the stop that fraction and volatility count with."),
    "size_win": (exact_share("0bp", "100%"), "50%", "kelly: how often a trade wins."),
    "size_payoff": (amount("0.000000001", "1000"), 2, "kelly: mean gain over mean loss."),
    "size_kelly": (exact_share("0bp", "100%"), "25%", "kelly: so much of what the formula says."),
    "size_cap": (exact_share("0bp", "100%"), "20%", "kelly: at most so much of the equity."),
    "size_base": (exact_share("0bp", "100%"), "2%",
                  "volatility: the value of the feature of that name at which nothing is scaled."),
    "qty": (amount("0.000000001", "1000000"), 1, "Quantity of one order."),
    "max_qty": (amount("0", "1000000"), 0, "Quantity of one instrument at most, open orders "
                "included; 0 = ten orders."),
    "cooldown": (duration("0s", "24h"), "500ms", "Least time between orders of one instrument."),
    "allow_short": (flag(), False, "Whether it may sell more than is held."),
}
PARAMS: dict[str, dict[str, tuple[Kind, Any, str]]] = {
    "imbalance": {
        "threshold": (number(0.0, 1.0), 0.6, "Imbalance of the book's best levels that decides."),
        "leave": (number(0.0, 1.0), 0.0, "Imbalance against what is held that closes it."),
        **COMMON},
    "ensemble": {
        "rule": (text("majority", "unanimous", "mean", "first"), "majority",
                 "How its members decide: docs/strategy.md."),
        "weights": (_list_of(number(1e-9, 1e9), "weights"), [],
                    "Of its members, in their order; empty = 1 each."),
        "threshold": (number(0.0, 1.0), 0.5, "mean: probability above which a direction wins."),
        "leave": (number(0.0, 1.0), 0.45, "Mean probability against what is held that closes it."),
        **COMMON},
    "onnx": {
        "model": (text(), "demo", "A packed model NAME or NAME@VERSION, a path (with a / or "
                  "ending in .onnx), or demo for the one that ships."),
        "sha256": (text(pattern="[0-9a-f]{64}", wanted="64 hexadecimal digits"), None,
                   "What the model file must be; without it any file is taken."),
        "threshold": (number(0.0, 1.0), 0.6, "Probability that decides."),
        "leave": (number(0.0, 1.0), 0.45, "Probability against what is held that closes it."),
        "budget": (duration("1us", "10s"), None, "What one inference may take; without it, what "
                   "the model's card says."),
        "on_miss": (text("skip", "stale", "halt"), "skip", "An inference over the budget: no "
                    "decision from it; one while its event is younger than stale_age; or stop "
                    "trading."),
        "stale_age": (duration("1us", "1h"), "5ms", "How old an event may be by then, for "
                      "on_miss stale."),
        "warn_accuracy": (number(0.0, 1.0), 0.52, "Accuracy of the last 100 predictions below "
                          "which the log is told; 0 = never."),
        "warn_shift": (number(0.0, 1.0), 0.25, "Distance of a feature from training above which "
                       "the log is told; 1 = never."),
        **COMMON},
}


@dataclass(frozen=True)
class RiskKey:
    """One limit of the risk gate as the configuration sees it."""

    name: str
    kind: Kind
    default: Any                # as it would stand in the file
    doc: str


def decimal_text(low: str, high: str = "9000000000") -> Kind:
    """An exact decimal that stays one: an int when whole, else its text."""
    inner = amount(low, high)

    def read(value: Any) -> int | str:
        shown = _plain(inner.read(value))
        return shown if "." in shown else int(shown)
    return Kind(inner.wanted, read, str)


def milliseconds(low: int, high: int) -> Kind:
    """A number of milliseconds, or a time with its unit that is one."""
    inner = duration(f"{low}ms", f"{high}ms")

    def read(value: Any) -> int:
        if isinstance(value, str):
            ns = cast(int, inner.read(value))
            if ns % 10**6:
                raise ValueError
            return ns // 10**6
        return cast(int, whole(low, high).read(value))
    return Kind(f'whole milliseconds from {low} to {high}, or a time such as "30s"', read, str,
                _whole_text)


def _risk_kind(limit: limits.Limit) -> Kind:
    """How a limit stands in a file: a value of its unit or, where it may be, "off: <why>"."""
    low, high = limit.low, limit.high
    if limit.unit == "orders" and limit.name.endswith("_per_minute"):
        kind = rate(low, high)
    elif limit.unit in limits.DECIMAL:
        kind = decimal_text(_plain(low), _plain(high) if high < MAX else "9000000000")
    else:
        kind = {"bps": basis_points, "ms": milliseconds}.get(limit.unit, whole)(low, high) \
            if limit.unit != "flag" else flag()
    wanted = kind.wanted
    if limit.off is not None:
        wanted = ("true" if limit.unit == "flag" else wanted) + ', or "off: <why>"'

    def read(value: Any) -> Any:
        if limit.off is not None and isinstance(value, str) and limits.off_reason(value):
            return f"off: {limits.off_reason(value)}"
        value = kind.read(value)
        if limit.unit == "flag" and value < low:
            raise ValueError
        return value
    return Kind(wanted, read, _limit_text, kind.from_text)


def _limit_text(value: int | str | bool) -> str:
    """Decimals and whole numbers as they are, flags in TOML, what is off as text."""
    text = str(value)
    return quoted(text) if limits.off_reason(text) else text.lower()


def risk_keys(profile: str = "") -> tuple[RiskKey, ...]:
    """The limits: name, how they are written, default (of *profile*) and meaning."""
    defaults = limits.default_limits(profile)
    return tuple(RiskKey(limit.name, _risk_kind(limit), defaults[limit.name], limit.doc)
                 for limit in limits.LIMITS)


INSTRUMENTS: tuple[dict[str, Any], ...] = (
    {"symbol": "AAPL"}, {"symbol": "MSFT"},
)
STRATEGIES: tuple[dict[str, Any], ...] = (
    {"name": "imbalance", "kind": "imbalance"},
    {"name": "model", "kind": "onnx"},
)


@dataclass(frozen=True)
class Config:
    """All of it, immutable.  Use :func:`load` to make one, ``dataclasses.replace`` to vary it."""

    version: int = option(whole(1, 1), 1, "Of this file's format.")
    profile: str = option(text("demo", "paper", "live"), "demo",
                       "demo = local exchange, paper = broker's paper account, live = money.")
    live: bool = option(flag(), False, "One of the consents that live trading needs.")
    models: str = option(text(), "", 'Directory of packed models (`hftpipe model`); "" = '
                                     "~/.local/share/hftpipe/models.")
    venue: Venue = Venue()
    feed: Feed = Feed()
    instruments: tuple[Instrument, ...] = ()
    layout: Layout = dataclasses.field(default_factory=Layout)
    strategy: tuple[Strategy, ...] = ()
    risk: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    features: Features = Features()
    session: Session = Session()
    analyst: Analyst = Analyst()
    gateway: Gateway = Gateway()
    halt: Halt = Halt()
    exits: Exits = dataclasses.field(default_factory=Exits)
    account: Account = Account()
    fees: Fees = Fees()
    store: Store = Store()
    journal: Journal = Journal()
    observe: Observe = Observe()
    path: Path | None = dataclasses.field(default=None, compare=False)
    origin: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    def where(self, name: str) -> str:
        """Prefix of an error about key *name*, or its table: ``"hftpipe.toml:12: "``."""
        while name:
            for other, origin in self.origin.items():
                if (other == name or other.startswith(name + ".")) and origin != "default":
                    return _prefix(origin)
            name = name.rpartition(".")[0]
        return ""

    def dump(self) -> str:
        """The whole configuration as TOML that reads back equal; credentials as references."""
        return "\n".join(_dump(self)) + "\n"

    @property
    def traders(self) -> tuple[Strategy, ...]:
        """The strategies that stand alone, by their number in a run: members of none."""
        inside = {name for item in self.strategy for name in item.members}
        return tuple(item for item in self.strategy if item.name not in inside)

    @property
    def feed_in_loop(self) -> bool:
        """Whether a loop of ours could receive the data stream itself: it decodes MessagePack."""
        return self.venue.encoding == "msgpack"

    @property
    def sectors(self) -> tuple[int, ...]:
        """Number of each instrument's sector, from 1 in order of their names; 0 = unknown."""
        names = sorted({item.sector for item in self.instruments if item.sector})
        return tuple(names.index(item.sector) + 1 if item.sector else 0
                     for item in self.instruments)

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that name this configuration."""
        import hashlib
        return hashlib.sha256(self.dump().encode()).hexdigest()[:12]


ARRAYS: dict[str, tuple[type, str, tuple[dict[str, Any], ...]]] = {
    "instruments": (Instrument, "symbol", INSTRUMENTS),
    "strategy": (Strategy, "name", STRATEGIES),
}
HIDDEN = ("path", "origin")


def _dump(config: Config) -> Iterator[str]:
    def keys(item: Any) -> Iterator[str]:
        for f in dataclasses.fields(item):
            if f.metadata.get("kind"):
                yield f"{f.name} = {f.metadata['kind'].show(getattr(item, f.name))}"

    yield from keys(config)
    for name in ("venue", "feed", "layout", "features", "session", "analyst", "exits", "gateway",
                 "halt", "account", "fees", "store", "journal", "observe"):
        yield f"\n[{name}]"
        yield from keys(getattr(config, name))
    for name in ("pin", "capacity"):
        table = getattr(config.layout, name)
        if table:
            yield f"\n[layout.{name}]"
            yield from (f"{_key_text(k.split('.'))} = {_literal(v)}" for k, v in table.items())
    if config.exits.price:
        yield "\n[exits.price]"
        yield from (f"{_key_text([k])} = {_plain(v)}" for k, v in config.exits.price.items())
    yield "\n[risk]"
    for risk_key in risk_keys():
        yield f"{risk_key.name} = {risk_key.kind.show(config.risk[risk_key.name])}"
    for name in ARRAYS:
        if not getattr(config, name):
            yield f"\n# no [[{name}]]"
        for item in getattr(config, name):
            yield f"\n[[{name}]]"
            yield from keys(item)
            if isinstance(item, Strategy) and item.params:
                known = PARAMS.get(item.kind, {})
                yield f"[{name}.params]"
                for k, v in item.params.items():
                    shown = known[k][0].show(v) if k in known else _literal(v)
                    yield f"{_key_text([k])} = {shown}"


def _key_text(parts: Iterable[str]) -> str:
    return ".".join(p if re.fullmatch(r"[A-Za-z0-9_-]+", p) else quoted(p) for p in parts)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key_text([k])} = {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return str(value) if isinstance(value, int | Decimal) else repr(value)


# ---------------------------------------------------------------- where each key stands

TomlPath = tuple[str | int, ...]


def locate(source: str) -> dict[TomlPath, int]:
    """Line of every key and table header in TOML text that :mod:`tomllib` has accepted.

    Inside an inline table or array the line is that of the whole value.
    """
    lines: dict[TomlPath, int] = {}
    counts: dict[TomlPath, int] = {}
    at, line = 0, 1
    table: TomlPath = ()

    def skip_string() -> None:
        nonlocal at, line
        quote = source[at]
        end = quote * 3 if source.startswith(quote * 3, at) else quote
        at += len(end)
        while not source.startswith(end, at):
            line += source[at] == "\n"
            at += 2 if source[at] == "\\" and quote == '"' and source[at + 1] != "\n" else 1
        at += len(end)
        while len(end) == 3 and at < len(source) and source[at] == quote:
            at += 1                             # up to two quotes may stand before the end

    def dotted(stop: str) -> tuple[str, ...]:
        nonlocal at
        parts, start = [], at
        while source[at] != stop:
            if source[at] in "\"'":
                start = at
                skip_string()
                parts.append(source[start + 1:at - 1])
                start = -1
            elif source[at] in ". \t":
                if start >= 0 and source[start:at].strip():
                    parts.append(source[start:at].strip())
                at += 1
                start = at
            else:
                if start < 0:
                    start = at
                at += 1
        if start >= 0 and source[start:at].strip():
            parts.append(source[start:at].strip())
        at += 1
        return tuple(parts)

    def resolved(parts: tuple[str, ...]) -> TomlPath:
        out: TomlPath = ()
        for part in parts:
            out += (part,)
            if out in counts:
                out += (counts[out],)
        return out

    while at < len(source):
        c = source[at]
        if c in " \t\r\n":
            line += c == "\n"
            at += 1
        elif c == "#":
            at = source.find("\n", at) if "\n" in source[at:] else len(source)
        elif source.startswith("[[", at):
            at += 2
            parts = dotted("]")
            at += 1
            array = (*resolved(parts[:-1]), parts[-1])
            counts[array] = counts.get(array, -1) + 1
            table = (*array, counts[array])
            lines.setdefault(array, line)
            lines[table] = line
        elif c == "[":
            at += 1
            table = resolved(dotted("]"))
            for i in range(1, len(table) + 1):
                lines.setdefault(table[:i], line)
        else:
            parts = dotted("=")
            for i in range(1, len(parts) + 1):
                lines.setdefault((*table, *parts[:i]), line)
            depth = 0
            while at < len(source) and (depth or source[at] != "\n"):
                if source[at] in "\"'":
                    skip_string()
                    continue
                if source[at] == "#":
                    at = source.find("\n", at) if "\n" in source[at:] else len(source)
                    continue
                depth += (source[at] in "[{") - (source[at] in "]}")
                line += source[at] == "\n"
                at += 1
    return lines


# ---------------------------------------------------------------- layers

@dataclass
class _Leaf:
    value: Any
    origin: str                     # "default", "FILE:LINE", "env NAME", "--set KEY"
    from_text: bool = False         # value came as text and has no TOML type yet


def _prefix(origin: str) -> str:
    return "" if origin == "default" else origin.removeprefix("env ") + ": "


# Where an address or a conninfo may hold a password: before the last @, in what is asked for
_PRIVATE = ((re.compile(r"://.*@", re.DOTALL), "://...@"),
            (re.compile(r"(://[^?]*\?).*", re.DOTALL), r"\1..."),
            (re.compile(r"(password\s*=\s*)\S+", re.IGNORECASE), r"\1..."))


def _found(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        return "a list" if len(value) > 4 else _literal(value)
    if isinstance(value, str):          # a password in an address is not repeated
        return _literal(_redact(value))
    return _literal(value)


def _redact(text: str) -> str:
    for pattern, shown in _PRIVATE:
        text = pattern.sub(shown, text)
    return text


def _near(word: str, words: Iterable[str]) -> str:
    import difflib
    close = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _tree(value: Any, path: TomlPath, origin: Callable[[TomlPath], str]) -> Any:
    """The layer with each leaf knowing where it came from."""
    if isinstance(value, dict):
        return {k: _tree(v, (*path, k), origin) for k, v in value.items()}
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [_tree(v, (*path, i), origin) for i, v in enumerate(value)]
    return _Leaf(value, origin(path))


def _merge(base: dict[str, Any], layer: dict[str, Any]) -> None:
    for name, value in layer.items():
        if isinstance(value, dict) and isinstance(base.get(name), dict):
            _merge(base[name], value)
        else:
            base[name] = value


def _set(tree: dict[str, Any], parts: list[str], leaf: _Leaf, shown: str) -> None:
    """Put *leaf* at the dotted key *parts*; an array's element goes by index, symbol or name."""
    node: Any = tree
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(node, list):
            identity = ARRAYS[parts[0]][1]
            names = [str(getattr(item.get(identity), "value", i)) for i, item in enumerate(node)]
            folded = [n.lower() for n in names]
            if part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif part.lower() in folded:
                node = node[folded.index(part.lower())]
            else:
                raise ConfigError(f"{_prefix(leaf.origin)}{shown}: {parts[0]} has "
                                  f"{', '.join(names) or 'no element'}, was {part}")
            if last:
                raise ConfigError(f"{_prefix(leaf.origin)}{shown} must name a key of one element")
        elif last:
            node[part] = leaf
        else:
            child = node.setdefault(part, {})
            if isinstance(child, _Leaf):
                raise ConfigError(f"{_prefix(leaf.origin)}{'.'.join(parts[:depth + 1])} "
                                  "is one value, not a table")
            node = child


class _Reader:
    """Turns the merged tree into dataclasses, noting each key's origin."""

    def __init__(self) -> None:
        self.origin: dict[str, str] = {}

    def value(self, kind: Kind, leaf: Any, name: str) -> Any:
        if not isinstance(leaf, _Leaf):
            raise ConfigError(f"{self.place(leaf)}{name} must be {kind.wanted}, was a table")
        value = leaf.value
        if leaf.from_text:
            value = kind.from_text(value)
        try:
            out = kind.read(value)
        except (ValueError, ArithmeticError):
            hidden = "credential" in kind.wanted or "webhook" in kind.wanted
            found = "" if hidden else f", was {_found(value)}"
            raise ConfigError(
                f"{_prefix(leaf.origin)}{name} must be {kind.wanted}{found}") from None
        self.origin[name] = leaf.origin
        return out

    def place(self, node: Any) -> str:
        """Prefix for the first leaf in *node*."""
        while not isinstance(node, _Leaf):
            items = list(node.values() if isinstance(node, dict) else node)
            if not items:
                return ""
            node = items[0]
        return _prefix(node.origin)

    def table(self, node: Any, name: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return node
        found = "a list of tables" if isinstance(node, list) else _found(node.value)
        raise ConfigError(f"{self.place(node)}{name} must be a table, was {found}")

    def known(self, node: dict[str, Any], names: Iterable[str], path: str) -> None:
        names = list(names)
        for name, child in node.items():
            if name not in names:
                dotted = f"{path}.{name}" if path else name
                raise ConfigError(f"{self.place(child)}unknown key {dotted}{_near(name, names)}")

    def section(self, cls: type, node: Any, path: str) -> Any:
        node = self.table(node, path)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in HIDDEN}
        self.known(node, fields, path)
        values: dict[str, Any] = {}
        for name, field in fields.items():
            dotted = f"{path}.{name}" if path else name
            kind = field.metadata.get("kind")
            if kind is not None:
                if name in node:
                    values[name] = self.value(kind, node[name], dotted)
                else:
                    self.origin[dotted] = "default"
        return cls(**values)

    def free(self, node: Any, path: str, kind: Kind | None = None) -> dict[str, Any]:
        """A flat table of nested keys, ``{"a.b": value}``; with *kind* every value is of it."""
        out: dict[str, Any] = {}
        for name, child in self.table(node, path).items():
            dotted = f"{path}.{name}"
            if isinstance(child, dict):
                out.update({f"{name}.{k}": v for k, v in self.free(child, dotted, kind).items()})
            elif kind is not None:
                out[name] = self.value(kind, child, dotted)
        return out

    def raw(self, node: Any, path: str) -> Any:
        """A table of somebody else's keys as plain values."""
        if isinstance(node, dict):
            return MappingProxyType({k: self.raw(v, f"{path}.{k}") for k, v in node.items()})
        if isinstance(node, list):
            return tuple(self.raw(v, f"{path}.{i}") for i, v in enumerate(node))
        self.origin[path] = node.origin
        value = node.value
        if node.from_text:
            try:
                value = tomllib.loads(f"v = {value}", parse_float=Decimal)["v"]
            except tomllib.TOMLDecodeError:
                pass                            # plain text, as typed
        return float(value) if isinstance(value, Decimal) else value


def _build(tree: dict[str, Any], path: Path | None) -> Config:
    reader = _Reader()
    fields = [f.name for f in dataclasses.fields(Config) if f.name not in HIDDEN]
    reader.known(tree, fields, "")
    scalars = [f.name for f in dataclasses.fields(Config) if "kind" in f.metadata]
    config = reader.section(Config, {k: tree[k] for k in scalars if k in tree}, "")
    values: dict[str, Any] = {}
    for name, cls in (("venue", Venue), ("feed", Feed), ("layout", Layout),
                      ("features", Features), ("session", Session), ("analyst", Analyst),
                      ("exits", Exits), ("gateway", Gateway), ("halt", Halt), ("account", Account),
                      ("fees", Fees), ("store", Store), ("journal", Journal), ("observe", Observe)):
        values[name] = reader.section(cls, tree.get(name, {}), name)
    layout = tree.get("layout", {})
    values["layout"] = dataclasses.replace(
        values["layout"],
        pin=MappingProxyType(reader.free(
            layout.get("pin", {}), "layout.pin", whole(0, 65535))),
        capacity=MappingProxyType(reader.free(
            layout.get("capacity", {}), "layout.capacity", whole(8, 2**24, power_of_two=True))))

    values["exits"] = dataclasses.replace(values["exits"], price=MappingProxyType(
        reader.free(tree.get("exits", {}).get("price", {}), "exits.price",
                    amount("0.000000001", "9000000"))))
    table = reader.table(tree.get("risk", {}), "risk")
    keys = risk_keys(config.profile)
    reader.known(table, [k.name for k in keys], "risk")
    profile = limits.PROFILES.get(config.profile, {})
    values["risk"] = MappingProxyType({
        k.name: reader.value(k.kind, table.get(k.name, _Leaf(
            k.default, f"profile {config.profile}" if k.name in profile else "default")),
            f"risk.{k.name}") for k in keys})

    for name, (element, identity, _) in ARRAYS.items():
        nodes = tree.get(name, [])
        if isinstance(nodes, _Leaf) and nodes.value == []:
            nodes = []
        if not isinstance(nodes, list):
            found = "a table" if isinstance(nodes, dict) else _found(nodes.value)
            raise ConfigError(f"{reader.place(nodes)}{name} must be tables [[{name}]], "
                              f"was {found}")
        items: list[Any] = []
        for i, node in enumerate(nodes):
            item = reader.section(element, node, f"{name}.{i}")
            if identity not in node:
                raise ConfigError(f"{reader.place(node)}{name}.{i} needs {identity}, found none")
            mark = getattr(item, identity)
            if mark in [getattr(other, identity) for other in items]:
                raise ConfigError(f"{_prefix(node[identity].origin)}{name}: {identity} "
                                  f"{quoted(mark)} stands twice")
            if isinstance(item, Strategy):
                item = dataclasses.replace(item, params=_params(
                    reader, item, node.get("params", {}), f"{name}.{i}.params"))
            items.append(item)
        values[name] = tuple(items)
    config = dataclasses.replace(config, path=path, origin=MappingProxyType(reader.origin),
                                 **values)
    return _check(_profile(config, reader))


def _params(reader: _Reader, item: Strategy, node: Any, path: str) -> Mapping[str, Any]:
    node = reader.table(node, path)
    known = PARAMS.get(item.kind)
    if known is None:
        return cast(Mapping[str, Any], reader.raw(node, path))
    reader.known(node, known, path)
    return MappingProxyType({
        name: reader.value(kind, node.get(name, _Leaf(default, "default")), f"{path}.{name}")
        for name, (kind, default, _) in known.items() if name in node or default is not None})


# Alpaca's hosts, docs.alpaca.markets, 2026-08
REST = {"paper": "https://paper-api.alpaca.markets", "live": "https://api.alpaca.markets"}
DATA = "wss://stream.data.alpaca.markets/v2/"
KEYS = ("env:ALPACA_API_KEY|env:APCA_API_KEY_ID", "env:ALPACA_SECRET_KEY|env:APCA_API_SECRET_KEY")


def _profile(config: Config, reader: _Reader) -> Config:
    """Fill what the profile decides; a live account's credentials are never assumed."""
    venue, profile = config.venue, config.profile
    found: dict[str, Any] = {}
    if not venue.kind:
        found["kind"] = "local" if profile == "demo" else "alpaca"
    if found.get("kind", venue.kind) == "alpaca":
        rest = REST["live" if profile == "live" else "paper"]
        wanted = {"rest": rest, "data_stream": DATA + venue.feed,
                  "updates_stream": "wss" + rest.removeprefix("https") + "/stream"}
        if profile != "live":
            wanted |= {"key": Secret(KEYS[0]), "secret": Secret(KEYS[1])}  # type: ignore[dict-item]
        found |= {k: v for k, v in wanted.items() if not getattr(venue, k)}
    reader.origin.update({f"venue.{name}": f"profile {profile}" for name in found})
    venue = dataclasses.replace(venue, **found)
    session, analyst = config.session, config.analyst
    if not session.calendar:
        session = dataclasses.replace(
            session, calendar="venue" if venue.kind == "local" else "nyse")
        reader.origin["session.calendar"] = f"profile {profile}"
    if analyst.history not in ("", "database") and config.path is not None:
        # The processes of a run are told the configuration, not where its file is.
        analyst = dataclasses.replace(
            analyst, history=str(config.path.parent / Path(analyst.history).expanduser()))
    journal = config.journal
    if not journal.durability:
        journal = dataclasses.replace(
            journal, durability="host" if profile == "live" else "process")
        reader.origin["journal.durability"] = f"profile {profile}"
    if journal.directory and config.path is not None:
        journal = dataclasses.replace(
            journal, directory=str(config.path.parent / Path(journal.directory).expanduser()))
    return dataclasses.replace(config, venue=venue, session=session, analyst=analyst,
                               journal=journal)


def _host(address: str) -> str:
    return (urlsplit(address).hostname or "").removesuffix(".")     # as the resolver takes it


def _check(config: Config) -> Config:
    """What concerns several keys at once."""
    def refuse(name: str, message: str) -> None:
        raise ConfigError(f"{config.where(name)}{name} {message}")

    venue = config.venue
    if config.profile == "live" and venue.kind != "alpaca":
        refuse("venue.kind", f'must be "alpaca" in profile live, was {quoted(venue.kind)}')
    if venue.kind == "alpaca":
        for name, scheme in (("rest", "https"), ("data_stream", "wss"), ("updates_stream", "wss")):
            address: str = getattr(venue, name)
            host = _host(address)
            local = host in ("localhost", "::1") or host.startswith("127.")
            if not address.startswith(scheme + "://") and (config.profile == "live" or not local):
                refuse(f"venue.{name}", f"must start with {scheme}://, was {quoted(address)}")
            if config.profile == "live" and not host.endswith(".alpaca.markets"):
                refuse(f"venue.{name}", f"must be a host of alpaca.markets in profile live, "
                                        f"was {quoted(host)}")
            if config.profile != "live" and host == _host(REST["live"]):
                refuse(f"venue.{name}", f"is the live account's host, profile is {config.profile}")
    if config.layout.fuse_feed == "yes" and not config.feed_in_loop:
        refuse("layout.fuse_feed", f"yes needs venue.encoding msgpack, was {venue.encoding}")
    if config.analyst.least > config.analyst.lookback:
        refuse("analyst.least", f"must be at most analyst.lookback {config.analyst.lookback}, "
                                f"was {config.analyst.least}")
    try:
        schema.feature_names(config.features.set)
    except ValueError as e:
        raise ConfigError(f"{config.where('features.set')}features.set: {e}") from None
    try:
        limits.parse_limits(config.risk)
    except ConfigError as e:
        name, _, words = str(e).partition(": ")
        raise ConfigError(f"{config.where('risk.' + name)}risk.{name}: {words}") from None
    symbols = [i.symbol for i in config.instruments]
    exits = config.exits
    for name in ("stop", "trailing"):
        if 0 < getattr(exits, name) < 50:
            refuse(f"exits.{name}", f'must be 0 or "50bp" to "1000bp", '
                                    f'was "{getattr(exits, name)}bp"')
    if exits.enabled and exits.stop and exits.target \
            and exits.target * NANO < exits.reward_risk * exits.stop:
        refuse("exits.target", f"must be at least reward_risk {_plain(exits.reward_risk)} times "
                               f'stop, was "{exits.target}bp" with a stop of "{exits.stop}bp"')
    if exits.first and exits.target and exits.first >= exits.target:
        refuse("exits.first", f'must be below target "{exits.target}bp", was "{exits.first}bp"')
    for symbol in exits.price:
        if symbol not in symbols:
            refuse(f"exits.price.{symbol}", f"names none of instruments {', '.join(symbols)}")
    for n, instrument in enumerate(config.instruments):
        if instrument.min_qty < instrument.lot:
            refuse(f"instruments.{n}.min_qty", f"must be at least lot {_plain(instrument.lot)}, "
                                               f"was {_plain(instrument.min_qty)}")
    by_name = {item.name: item for item in config.strategy}
    taken: dict[str, str] = {}

    def members(n: int, item: Strategy) -> None:
        key = f"strategy.{n}.members"
        if item.kind != "ensemble":
            if item.members:
                refuse(key, f"is for kind ensemble, was given for {item.kind}")
            return
        if len(item.members) < 2:
            refuse(key, f"must name two strategies or more, was {list(item.members)}")
        for name in item.members:
            other = by_name.get(name)
            if other is None or other.kind == "ensemble":
                refuse(key, f"must name strategies that are no ensembles, was {quoted(name)}")
            if name in taken:
                refuse(key, f"names {name}, which is in {taken[name]} already")
            if other is not None and (other.shadow or other.symbols):
                refuse(key, f"names {name}, which has shadow or symbols; the ensemble may")
            taken[name] = item.name

    for n, item in enumerate(config.strategy):
        for symbol in item.symbols:
            if symbol not in symbols:
                refuse(f"strategy.{n}.symbols", f"names {symbol}, which is none of instruments "
                                                f"{', '.join(symbols)}")
        members(n, item)
        if item.kind == "onnx" and not item.params["model"]:
            refuse(f"strategy.{n}.params.model", "must name a model file, was empty")
        if item.kind in ("python", "native") and not item.entry:
            refuse(f"strategy.{n}.entry", f"must be given for kind {item.kind}, was empty")
        if item.kind == "python" and not re.fullmatch(r"[\w.]+:\w+", item.entry):
            refuse(f"strategy.{n}.entry", f'must be "package.module:Class", '
                                          f"was {quoted(item.entry)}")
    if max(config.sectors, default=0) > 255:
        raise ConfigError(f"instruments: at most 255 sectors, were {max(config.sectors)}")
    if not config.instruments:
        raise ConfigError("instruments must hold at least one, found none")
    if not config.strategy:
        raise ConfigError("strategy must hold at least one, found none")
    return config


# ---------------------------------------------------------------- documentation

SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("", Config, "These stand before the first table."),
    ("venue", Venue, "Where data come from and orders go."),
    ("feed", Feed, "How market data are watched over."),
    ("instruments", Instrument, "One `[[instruments]]` table per symbol. The first one in a file "
                                "replaces the built-in AAPL and MSFT."),
    ("layout", Layout, "Which core runs what. `hftpipe start --dry-run` shows the result."),
    ("strategy", Strategy, "One `[[strategy]]` table per decider. The first one in a file replaces "
                           "the two that are built in."),
    ("features", Features, "What strategies and models look at. `docs/features.md` lists the "
                           "features."),
    ("session", Session, "When the exchange trades."),
    ("analyst", Analyst, "Figures that risk takes from outside, made by a process that may "
                           "be slow."),
    ("exits", Exits, "Stops and targets of every position, whichever strategy opened it."),
    ("gateway", Gateway, "How orders leave."),
    ("halt", Halt, "When trading stops by itself, and what becomes of open orders; see "
                   "[halting.md](halting.md)."),
    ("account", Account, "What the books begin with."),
    ("fees", Fees, "What trading costs, as the ledger books it: each fill exactly, rounded up to "
                   "1e-9 of the currency."),
    ("store", Store, "Where events are kept."),
    ("journal", Journal, "Where events are on disk before PostgreSQL has them; see "
                         "[journal.md](journal.md)."),
    ("observe", Observe, "What others may see."),
)


def declared() -> Iterator[tuple[str, list[tuple[str, str, str, str]], str]]:
    """Every section as ``(name, [(key, wanted, default, doc), ...], doc)``."""
    for section, cls, doc in SECTIONS:
        rows = []
        for f in dataclasses.fields(cls):
            if "doc" not in f.metadata:
                continue
            kind = f.metadata["kind"]
            required = section in ARRAYS and f.name == ARRAYS[section][1]
            rows.append((f"{section}.{f.name}".lstrip("."), kind.wanted if kind else "a table",
                         "" if required or not kind else kind.show(f.default),
                         f.metadata["doc"]))
        yield section, rows, doc
        if section == "strategy":
            rows = []
            for owner, params in PARAMS.items():
                rows += [(f"strategy.params.{name}", kind.wanted,
                          "" if default is None else kind.show(kind.read(default)),
                          f"{owner}: {doc}")
                         for name, (kind, default, doc) in params.items()]
            yield ("strategy.params", rows, "Of the strategies that ship. A `python` or `native` "
                                            "strategy defines its own.")
            yield ("risk", [(f"risk.{k.name}", k.kind.wanted, k.kind.show(k.kind.read(k.default)),
                             k.doc) for k in risk_keys()],
                   "Limits of the gate before every order. Exposure counts at its worst: held "
                   "plus everything open. `\"off: <why>\"` switches a check off and says why; "
                   "profile demo does so by itself for "
                   + ", ".join(f"`{name}`" for name, value in limits.PROFILES["demo"].items()
                               if limits.off_reason(value)) + ".")


def reference() -> str:
    """All keys as Markdown tables; ``docs/operate/configuration.md`` ends with it."""
    out = []
    for section, rows, doc in declared():
        out += [f"### {f'`{section}`' if section else 'Top level'}", "", doc, "",
                "| Key | Value | Default | Meaning |", "|---|---|---|---|"]
        out += [f"| `{name}` | {wanted} | {f'`{default}`' if default else ''} | {doc} |"
                for name, wanted, default, doc in rows]
        out.append("")
    return "\n".join(out)


# ---------------------------------------------------------------- public entry points

def loads(source: str, name: str = "<text>", *, env: Mapping[str, str] | None = None,
          sets: Iterable[str] = (), path: Path | None = None) -> Config:
    """Configuration of TOML text; *name* stands in error messages.

    Parameters
    ----------
    source : str
        TOML; may be empty.
    env : mapping, optional
        Environment; only names that start with ``HFTPIPE__`` are looked at.
    sets : iterable of str
        ``key=value`` as given to ``--set``.

    Raises
    ------
    ConfigError
        With file and line, what was wanted and what was found.
    """
    try:
        data = tomllib.loads(source, parse_float=Decimal)
    except tomllib.TOMLDecodeError as e:
        message = str(e)
        found = re.search(r" \(at line (\d+), column (\d+)\)$", message)
        where = f"{name}:{found[1]}" if found else f"{name}:{source.count(chr(10)) + 1}"
        raise ConfigError(f"{where}: not TOML: {message.partition(' (at ')[0]}") from None
    lines = locate(source)

    def line(at: TomlPath) -> str:
        while at and at not in lines:
            at = at[:-1]
        return f"{name}:{lines.get(at, 1)}"

    tree: dict[str, Any] = {
        k: [_tree(v, (), lambda _: "default") for v in d] for k, (_, _, d) in ARRAYS.items()}
    _merge(tree, _tree(data, (), line))
    for variable, value in sorted((env or {}).items()):
        if variable.startswith(PREFIX):
            parts = variable.removeprefix(PREFIX).lower().split("__")
            _set(tree, parts, _Leaf(value, f"env {variable}", True), ".".join(parts))
    for assignment in sets:
        dotted, equals, value = assignment.partition("=")
        parts = [p.strip() for p in dotted.split(".")]
        if not equals or not all(parts):
            raise ConfigError(f"--set must be key=value, was {quoted(assignment)}")
        _set(tree, parts, _Leaf(value.strip(), "--set", True), dotted.strip())
    return _build(tree, path)


def load(path: str | os.PathLike[str] | None = None, sets: Iterable[str] = ()) -> Config:
    """Configuration of this process: the file, then the environment, then *sets*.

    The file is *path*, else ``$HFTPIPE_CONFIG``, else ``./hftpipe.toml`` where there is one,
    else none (the demo profile on the local venue).
    """
    chosen = path or os.environ.get("HFTPIPE_CONFIG") or None
    if chosen is None and os.path.exists("hftpipe.toml"):
        chosen = "hftpipe.toml"
    if chosen is None:
        return loads("", env=os.environ, sets=sets)
    file = Path(chosen)
    try:
        source = file.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"configuration {file}: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"configuration {file}: not UTF-8 at byte {e.start}") from None
    return loads(source.replace("\r\n", "\n"), str(file), env=os.environ, sets=sets,
                 path=file.absolute())


def guard(config: Config, live: bool) -> None:
    """Refuse live trading without consents in three places; refuse a needless ``--live``.

    The fourth, the account's last digits, is compared with the broker's answer: :mod:`.consent`.

    Raises
    ------
    GuardError
        Exit code 10; nothing was started.
    """
    if config.profile != "live":
        if live:
            raise GuardError(f"--live needs profile live, was {config.profile}")
        return
    if not live:
        raise GuardError("profile live needs --live on the command line")
    if not config.live:
        raise GuardError("profile live needs `live = true` in the configuration, was false")
    if not (config.venue.key and config.venue.secret):
        raise GuardError("profile live needs venue.key and venue.secret, found none")


def resources(name: str) -> Path:
    """Directory of the data that ship: ``"sql"``, ``"conf"`` or ``"models"``.

    Inside an installed package they lie beside the modules, in a checkout beside ``src``.
    """
    package = Path(hftpipe.__file__).parent
    for place in (package / name, package.resolve().parent / name):
        if place.is_dir():
            return place
    raise ConfigError(f"{name}: no such data beside {package}; the installation is incomplete")


def model_path(name: str, base: Path | None = None) -> Path:
    """The model file *name*: relative to *base*, to the working directory, or one that ships."""
    wanted = Path(name).expanduser()
    places = [base / wanted] if base else []
    places.append(Path.cwd() / wanted)
    try:
        places.append(resources("models") / wanted.name)
    except ConfigError:
        pass                                    # no models ship: the other places still count
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"model {name}: no such file in "
                      + ", ".join(str(p.parent) for p in dict.fromkeys(places)))
