"""Faults that the local venue injects by seed: what users of the broker have met, on demand.

A profile (a TOML file or one of :data:`PROFILES`) has a table for each fault::

    [chaos]
    begin = "order"         # with the first order; "start" is the default
    after = "2s"            # and so long after it
    stop = "40s"            # no fault begins later than this after the begin

    [lost_late]
    share = 0.05            # of the order requests
    within = "30s"

    [mute]
    every = "20s"           # on average
    for = "5s"
    on = ["updates"]

Each fault has a chance of its own that follows from the seed: the n-th request, update or moment
is hit or not whatever the other faults do.  Each hit is a line ``chaos`` of the venue's log
(``fault``, ``hit``, and ``n`` where many are told at once); orders and executions in that log stay
exact, whatever the client was told.
"""
from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import tomllib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from aiohttp import web

from hftpipe._clock import utc_ns
from hftpipe.errors import ConfigError, UsageError

from .orders import Refused
from .state import NANO, Order, stamp

if TYPE_CHECKING:
    from .exchange import Exchange
    from .state import State
    from .tape import Tape

STREAMS = ("data", "updates")
HOW = ("close", "silence", "reset")
RTO = 0.2                       # s after which TCP sends a lost segment again; doubles
SWAP = 0.5                      # s that an update waits for one to be swapped with
SILENCE = 60.0                  # s that a connection stays open without an answer
UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# ---------------------------------------------------------------- what can be asked for

def seconds(value: object) -> float:
    """A time with its unit, "250ms", "-1h"; ValueError when it is none."""
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?) ?(ms|s|min|h)", value) if isinstance(
        value, str) else None
    if found is None:
        raise ValueError
    return float(found[1]) * UNITS[found[2]]


def span(value: object) -> float:
    found = seconds(value)
    if not 0 < found <= 86_400:
        raise ValueError
    return found


def number(low: float, high: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
                low <= value <= high):
            raise ValueError
        return float(value)
    return read


def some_of(*names: str) -> Callable[[object], tuple[str, ...]]:
    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not set(value) <= set(names):
            raise ValueError
        return tuple(n for n in names if n in value)
    return read


#: Name of an option: how it is read, and what is wanted.
OPTIONS: dict[str, tuple[Callable[[object], Any], str]] = {
    "share": (number(0, 1), "a number from 0 to 1"),
    "every": (span, 'a time such as "20s"'),
    "for": (span, 'a time such as "5s"'),
    "within": (span, 'a time such as "30s"'),
    "delay": (span, 'a time such as "100ms"'),
    "offset": (seconds, 'a time such as "-1h"'),
    "on": (some_of(*STREAMS), 'a list of "data" and "updates"'),
    "how": (some_of(*HOW), 'a list of "close", "silence" and "reset"'),
    "size": (number(1024, 1 << 26), "bytes from 1024 to 67108864"),
    "factor": (number(1, 100), "a number from 1 to 100"),
    "qty": (number(1, 1e6), "shares from 1 to 1000000"),
}


@dataclass(frozen=True)
class Kind:
    """A kind of fault: what it hits, and its options with their defaults."""

    words: str
    options: Mapping[str, Any]


_ORDER = {"share": 0.05}
_MOMENT = {"every": 15.0, "on": STREAMS}
_UPDATE = {"share": 0.1, "on": ("updates",)}
KINDS: dict[str, Kind] = {
    # connections, at moments
    "mute": Kind("open streams say nothing more, and answer pings",
                 {**_MOMENT, "for": 5.0}),
    "disconnect": Kind("connections of streams break without a close", _MOMENT),
    "refuse_406": Kind("data streams break; who comes back is told 406",
                       {"every": 20.0, "for": 3.0}),
    "refuse_429": Kind("streams break; who comes back gets HTTP 429 at the handshake",
                       {**_MOMENT, "every": 20.0, "for": 3.0}),
    "slow_client": Kind("data streams are told 407 and closed", {"every": 20.0}),
    "malformed": Kind("the next frame of each stream is cut or noise", _MOMENT),
    "oversized": Kind("a frame too large to be taken", {**_MOMENT, "size": float(2 << 20)}),
    # messages of streams
    "duplicate": Kind("a message comes twice", _UPDATE),
    "late": Kind("a message comes later than those after it", {**_UPDATE, "within": 2.0}),
    "missing": Kind("a message never comes", _UPDATE),
    "reorder": Kind("two messages come the wrong way round", _UPDATE),
    # answers to orders
    "fill_first": Kind("everything about an order comes before the answer to it",
                       {"share": 0.2, "delay": 0.05}),
    "lost_now": Kind("an order is accepted and its answer lost", {**_ORDER, "how": HOW}),
    "lost_late": Kind("the answer is lost, and the order accepted only later",
                      {**_ORDER, "how": HOW, "within": 30.0}),
    "lost_never": Kind("the request is lost: no answer and no order", {**_ORDER, "how": HOW}),
    # answers to any request; an order may have been accepted all the same
    "error_500": Kind("500 with the broker's body", _ORDER),
    "error_502": Kind("502 of a gateway in front", _ORDER),
    "error_504": Kind("504 of a gateway in front", _ORDER),
    "reset": Kind("the connection is reset instead of an answer", _ORDER),
    "storm_429": Kind("every request is refused with 429 and Retry-After",
                      {"every": 20.0, "for": 2.0}),
    # conditions, for a while
    "latency": Kind("everything is late by the same time",
                    {"every": 20.0, "for": 10.0, "delay": 0.1}),
    "loss": Kind("segments are lost: what is in them comes after TCP sent it again",
                 {"every": 20.0, "for": 10.0, "share": 0.1}),
    "load": Kind("the market moves so many times as fast",
                 {"every": 20.0, "for": 10.0, "factor": 2.0}),
    "clock": Kind("times of market data, updates and the clock are wrong",
                  {"every": 20.0, "for": 10.0, "offset": 3600.0}),
    # what the tape says of stocks
    "halt": Kind("an instrument is halted, and trades again",
                 {"every": 20.0, "for": 3.0}),
    "band": Kind("the best bid of an instrument is at its upper price band",
                 {"every": 20.0, "for": 3.0}),
    "correct": Kind("the newest trade of an instrument is corrected, or cancelled",
                    {"every": 10.0}),
    "restate": Kind("the last minute bar of an instrument is told again with a trade more",
                    {"every": 20.0}),
    "drift": Kind("somebody else trades in the account, and the stream does not tell",
                  {"every": 20.0, "qty": 7.0}),
}
ORDERS = ("fill_first", "lost_now", "lost_late", "lost_never")
ERRORS = ("error_500", "error_502", "error_504", "reset")
GROUPS: dict[str, tuple[str, ...]] = {
    "stream": ("mute", "disconnect", "refuse_406", "refuse_429", "slow_client", "malformed",
               "oversized"),
    "updates": ("duplicate", "late", "missing", "reorder", "fill_first"),
    "answers": ("lost_now", "lost_late", "lost_never", *ERRORS),
    "limits": ("storm_429",),
    "weather": ("latency", "loss", "load", "clock"),
    "tape": ("halt", "band", "correct", "restate"),
    "drift": ("drift",),
}
#: What `--chaos NAME` knows: the groups, `ambiguous` (every answer to an order is lost), and `all`.
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    **{name: {kind: {} for kind in kinds} for name, kinds in GROUPS.items()},
    "ambiguous": {"lost_now": {"share": 0.34}, "lost_late": {"share": 0.5},
                  "lost_never": {"share": 1.0}},
    "all": {kind: {k: "60s" for k in ("every",) if k in KINDS[kind].options}
            | {k: 0.02 for k in ("share",) if k in KINDS[kind].options and kind != "loss"}
            for kinds in GROUPS.values() for kind in kinds},
}


@dataclass(frozen=True)
class Profile:
    """Faults with their options, and when they come."""

    name: str
    faults: Mapping[str, Mapping[str, Any]]
    begin: str = "start"
    after: float = 0.0
    stop: float = float("inf")


def load(text: str) -> Profile:
    """The profile that ``--chaos`` names: one of ours, or a file.

    Raises
    ------
    UsageError
        If it is neither.
    ConfigError
        If the file cannot be read, or holds what there is not.
    """
    if text in PROFILES:
        return parse(text, PROFILES[text])
    path = Path(text)
    if not path.is_file():
        raise UsageError(f"--chaos must be a file or one of {', '.join(PROFILES)}, was {text!r}")
    try:
        return parse(text, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{text}: not a chaos profile: {error}") from None


def parse(name: str, tables: Mapping[str, Any]) -> Profile:
    """The profile that *tables* describe; ConfigError names what is wrong."""
    when: dict[str, Any] = {}
    faults: dict[str, dict[str, Any]] = {}
    for kind, table in tables.items():
        if kind != "chaos" and kind not in KINDS:
            raise ConfigError(f"{name}: faults are {', '.join(KINDS)}; was {kind!r}")
        if not isinstance(table, dict):
            raise ConfigError(f"{name}: {kind} must be a table")
        known = ("begin", "after", "stop") if kind == "chaos" else tuple(KINDS[kind].options)
        out = dict(KINDS[kind].options) if kind in KINDS else when
        for key, value in table.items():
            if key not in known:
                raise ConfigError(f"{name}: keys of [{kind}] are {', '.join(known)}; was {key!r}")
            if key == "begin":
                if value not in ("start", "order"):
                    raise ConfigError(f'{name}: begin must be "start" or "order", was {value!r}')
                out[key] = value
                continue
            read, wanted = OPTIONS["for" if key in ("after", "stop") else key]
            try:
                out[key] = read(value)
            except ValueError:
                raise ConfigError(f"{name}: {key} of [{kind}] must be {wanted}, was "
                                  f"{value!r}") from None
        if kind in KINDS:
            faults[kind] = out
    if not faults:
        raise ConfigError(f"{name}: no fault in it")
    return Profile(name, faults, **when)


# ---------------------------------------------------------------- frames

def split(data: bytes) -> tuple[int, bytes]:
    """Opcode and payload of a whole unmasked frame."""
    size = data[1] & 127
    at = {126: 4, 127: 10}.get(size, 2)
    return data[0] & 15, data[at:]


class Client(Protocol):
    """What is needed of a session of a stream."""

    transport: asyncio.Transport

    def write(self, data: bytes) -> None: ...
    def slow(self) -> None: ...


class Line:
    """What the frames of one session go through on their way to the client."""

    def __init__(self, chaos: Chaos, stream: str, path: str, client: Client,
                 frame: Callable[[int, bytes], bytes]) -> None:
        self.chaos, self.stream, self.path, self.client = chaos, stream, path, client
        self.frame = frame
        self.mute_until = 0.0
        self.spoil = False
        self._held: deque[tuple[float, bytes]] = deque()    # (when it may go, frame)
        self._swap: tuple[bytes, asyncio.TimerHandle] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def control(self, data: bytes) -> None:
        """A frame that is no message of the market or an order: only its time is changed."""
        self._push(data)

    def message(self, data: bytes, about: str) -> None:
        """A frame of market data, or one update."""
        chaos, stream = self.chaos, self.stream
        if chaos.now() < self.mute_until:
            chaos.count("mute", self.path)
            return
        if self.spoil:
            self.spoil = False
            form, data = chaos.spoiled(data, self.frame)
            chaos.note("malformed", self.path, form=form, about=about)
        drawn = [k for k in ("missing", "late", "reorder", "duplicate")
                 if chaos.on(k, stream) and chaos.draw(k)]
        if not drawn:
            self._push(data)
            self._swapped()
            return
        kind = drawn[0]
        if kind == "late":
            delay = chaos.between(kind, 0.05, chaos.option(kind, "within"))
            chaos.note(kind, self.path, about=about, delay=round(delay, 3))
            chaos.later(delay, lambda: self._push(data))
            return
        if kind == "reorder":
            if self._swap is None:          # told when another one has passed it
                self._swap = data, chaos.later(SWAP, self._unswapped)
            else:
                self._push(data)
                self._swapped()
            return
        chaos.note(kind, self.path, about=about)
        if kind == "duplicate":
            self._push(data)
            self._push(data)
            self._swapped()

    def _swapped(self) -> None:
        """A later frame has gone out: the one that was kept back follows it."""
        if self._swap is not None:
            (data, timer), self._swap = self._swap, None
            timer.cancel()
            self.chaos.note("reorder", self.path)
            self._push(data)

    def _unswapped(self) -> None:
        """Nobody came to be swapped with."""
        if self._swap is not None:
            (data, _), self._swap = self._swap, None
            self._push(data)

    def _push(self, data: bytes) -> None:
        """Send it after the network's delay, behind everything before it."""
        delay = self.chaos.delay(self.path)
        if not delay and not self._held:
            self.client.write(data)
            return
        due = self.chaos.now() + delay
        if self._held:
            due = max(due, self._held[-1][0])
        self._held.append((due, data))
        if self._timer is None:
            self._timer = self.chaos.later(due - self.chaos.now(), self._flush)

    def _flush(self) -> None:
        self._timer = None
        while self._held and self._held[0][0] <= self.chaos.now():
            self.client.write(self._held.popleft()[1])
        if self._held:
            self._timer = self.chaos.later(
                max(0.0, self._held[0][0] - self.chaos.now()), self._flush)


# ---------------------------------------------------------------- the faults

@dataclass
class Moments:
    """When a fault comes next, seconds after the begin; the times follow from the seed alone."""

    every: float
    chance: random.Random
    next: float = field(init=False)

    def __post_init__(self) -> None:
        self.next = self.every * self.chance.uniform(0.1, 0.9)

    def due(self, now: float) -> float | None:
        """The planned time of a moment that has come."""
        if now < self.next:
            return None
        planned = self.next
        self.next = max(planned, now - self.every) + self.every * self.chance.uniform(0.5, 1.5)
        return planned


class Chaos:
    """The faults of one venue.

    Parameters
    ----------
    profile : Profile
    seed : str
        What every chance begins from.
    state : State
        Its log is told of each hit.
    exchange : Exchange
    place : callable
        ``place(raw, recv)`` accepts the order that a request's body asks for.
    fail : callable
        Told of an error that is nobody's fault but ours.
    tape : Tape
    """

    def __init__(self, profile: Profile, seed: str, state: State, exchange: Exchange,
                 place: Callable[[bytes, int], tuple[Order, web.Response]],
                 fail: Callable[[BaseException], None], tape: Tape) -> None:
        self.tape = tape
        self.profile, self.state, self.exchange = profile, state, exchange
        self.place, self.fail = place, fail
        self.now = asyncio.get_running_loop().time
        self.lines: set[Line] = set()
        self.counts: Counter[str] = Counter()       # hits by kind
        self.began: float | None = None
        self.shift = 0                              # ns that told times are wrong by
        self._ahead, self._looked = 0, 0            # ns: the market's time before the real one
        self._many: Counter[tuple[str, str]] = Counter()    # hits not written yet
        self._until: dict[str, float] = {}          # windows that are open
        self._after: dict[str, Callable[[], None]] = {}     # what ends them
        self._chance = {k: random.Random(f"{seed}/{k}") for k in KINDS}
        self._moments = {k: Moments(o["every"], random.Random(f"{seed}/{k}/moments"))
                         for k, o in profile.faults.items() if "every" in o}
        self._second = 0.0
        self._made = 0
        if profile.begin == "start":
            self.began = self.now() + profile.after

    # ------------------------------------------------------------ chance and time

    @property
    def active(self) -> bool:
        """Whether faults come now."""
        if self.began is None:
            return False
        return 0 <= self.now() - self.began < self.profile.stop

    def option(self, kind: str, name: str) -> Any:
        return self.profile.faults[kind][name]

    def on(self, kind: str, stream: str) -> bool:
        """Whether *kind* is of this profile and hits *stream*."""
        found = self.profile.faults.get(kind)
        return found is not None and stream in found.get("on", STREAMS)

    def draw(self, kind: str) -> bool:
        """Whether the next thing that *kind* can hit is hit."""
        found = self.profile.faults.get(kind)
        return (found is not None and self.active
                and self._chance[kind].random() < found["share"])

    def between(self, kind: str, low: float, high: float) -> float:
        return self._chance[kind].uniform(min(low, high), high)

    def window(self, kind: str) -> bool:
        """Whether *kind*, which lasts for a while, is on."""
        return self.now() < self._until.get(kind, 0.0)

    def later(self, delay: float, action: Callable[[], object]) -> asyncio.TimerHandle:
        def run() -> None:
            try:
                action()
            except Exception as error:
                self.fail(error)
        return asyncio.get_running_loop().call_later(delay, run)

    # ------------------------------------------------------------ the log

    def note(self, kind: str, hit: str, **more: Any) -> None:
        """One hit, written down."""
        self.counts[kind] += 1
        self.state.record("chaos", utc_ns(), fault=kind, hit=hit, **more)

    def count(self, kind: str, hit: str) -> None:
        """One of many hits, written down by the second."""
        self.counts[kind] += 1
        self._many[kind, hit] += 1

    def flush(self) -> None:
        """Write down what was counted."""
        for (kind, hit), n in self._many.items():
            self.state.record("chaos", utc_ns(), fault=kind, hit=hit, n=n)
        self._many.clear()

    # ------------------------------------------------------------ the venue's clock

    def tick(self) -> None:
        """Let the moments come that are due."""
        now = self.now()
        if now - self._second >= 1.0:
            self._second = now
            self.flush()
        if self.window("clock"):
            self.shift = int(self.option("clock", "offset") * NANO)
        else:
            self.shift = 0
        for kind in [k for k in self._after if not self.window(k)]:
            self._after.pop(kind)()
        if not self.active or self.began is None:
            return
        for kind, moments in self._moments.items():
            planned = moments.due(now - self.began)
            if planned is not None:
                self._fire(kind, now, planned)

    def ordered(self) -> None:
        """An order came."""
        if self.began is None:
            self.began = self.now() + self.profile.after

    def market(self, now: int) -> int:
        """The time up to which the traders act at *now*, UTC ns."""
        if self._looked and self.window("load"):
            self._ahead += int((now - self._looked) * (self.option("load", "factor") - 1))
        self._looked = now
        return now + self._ahead

    def told(self, hit: str, n: int = 1) -> int:
        """ns to add to the time of something that is told now; what conditions did to it."""
        if self.window("load"):
            self.counts["load"] += n
            self._many["load", hit] += n
        if self.shift:
            self.counts["clock"] += n
            self._many["clock", hit] += n
        return self.shift

    def delay(self, hit: str) -> float:
        """Seconds that something needs more on its way."""
        out = 0.0
        if self.window("latency"):
            self.count("latency", hit)
            out = float(self.option("latency", "delay"))
        if self.window("loss"):
            chance, share, wait = self._chance["loss"], self.option("loss", "share"), RTO
            while chance.random() < share and wait < 30:
                self.count("loss", hit)
                out += wait
                wait *= 2
        return out

    def _lines(self, kind: str, *streams: str) -> list[Line]:
        wanted = self.profile.faults[kind].get("on", streams or STREAMS)
        found = [line for line in self.lines
                 if line.stream in wanted and not line.client.transport.is_closing()]
        return sorted(found, key=lambda line: line.path)

    def _fire(self, kind: str, now: float, planned: float) -> None:
        options = self.profile.faults[kind]
        at = round(planned, 3)
        if "for" in options:
            self._until[kind] = now + options["for"]
        if kind in GROUPS["tape"]:
            if self.tape.stocks:
                self._tape(kind, at)
        elif kind == "drift":
            self._drift(at)
        elif kind == "mute":
            for line in self._lines(kind):
                line.mute_until = now + options["for"]
                self.note(kind, line.path, at=at)
        elif kind == "malformed":
            for line in self._lines(kind):
                line.spoil = True
        elif kind == "oversized":
            for line in self._lines(kind):
                self.note(kind, line.path, at=at, size=int(options["size"]))
                line.control(self._large(line, int(options["size"])))
        elif kind == "slow_client":
            for line in self._lines(kind, "data"):
                self.note(kind, line.path, at=at)
                line.client.slow()
        elif kind in ("disconnect", "refuse_406", "refuse_429"):
            for line in self._lines(kind, *(("data",) if kind == "refuse_406" else ())):
                if kind == "disconnect":
                    self.note(kind, line.path, at=at)
                line.client.transport.abort()

    @staticmethod
    def _large(line: Line, size: int) -> bytes:
        """A frame that is right but for its size."""
        if line.stream == "data":
            return line.frame(2, msgspec.msgpack.encode(
                [{"T": "n", "id": 1, "headline": "x" * size}]))
        return line.frame(2, msgspec.json.encode({"stream": "news", "data": "x" * size}))

    def spoiled(self, data: bytes, frame: Callable[[int, bytes], bytes]) -> tuple[str, bytes]:
        """A frame whose payload cannot be read: cut short, or noise."""
        chance = self._chance["malformed"]
        opcode, payload = split(data)
        if chance.random() < 0.5 and len(payload) > 1:
            return "cut", frame(opcode, payload[:chance.randrange(1, len(payload))])
        # 0xc1 begins nothing in MessagePack, and is no UTF-8.
        return "noise", frame(2, b"\xc1" + chance.randbytes(max(len(payload) - 1, 8)))

    def _tape(self, kind: str, at: float) -> None:
        """Let the tape say something of an instrument; of a trade only if there was one."""
        tape, chance = self.tape, self._chance[kind]
        index = chance.choice(tape.stocks)
        instrument = self.exchange.instruments[index]
        if kind in self._after:             # the one before is not over
            return
        if kind == "halt":
            tape.status(index, chance.choice("HP"))
            self._after[kind] = lambda: tape.status(index, "T")
        elif kind == "band":
            bid, _, ask, _, _ = self.exchange.traders.top(index)
            if not bid or not ask:
                return
            tape.bands(index, max(bid - 50 * instrument.tick, instrument.tick), bid // 2)
            self._after[kind] = lambda: tape.bands(index, 2 * bid, bid // 2)
        elif kind == "correct":
            trade = tape.trade(index)
            if trade is None:
                return
            if chance.random() < 0.5:
                tape.cancel(index, trade, chance.choice("CE"))
            else:
                tape.correct(index, trade, trade[1] + instrument.tick, trade[2])
        elif not tape.late(index, self.exchange.last[index], instrument.unit):
            return
        self.note(kind, instrument.symbol, at=at)

    def _drift(self, at: float) -> None:
        """Somebody else buys or sells; an order like any other, but nobody is told."""
        chance = self._chance["drift"]
        instrument = chance.choice([i for i in self.exchange.instruments if not i.crypto]
                                   or list(self.exchange.instruments))
        side, qty = chance.choice(("buy", "sell")), int(self.option("drift", "qty"))
        price = self.exchange.far(instrument, 1 if side == "buy" else -1)
        self._made += 1
        body = {"symbol": instrument.symbol, "side": side, "qty": str(qty), "type": "market",
                "time_in_force": "ioc", "client_order_id": f"chaos-{at:g}-{self._made}"}
        tell, self.exchange.on_update = self.exchange.on_update, lambda data: None
        try:
            fields = self.exchange.parse(body)
            self.exchange.check(fields)
            order = self.exchange.accept(fields, 0)
            # What the market does to others' orders meanwhile is told as ever.
            self.exchange.on_update = lambda data: (
                None if data["order"]["id"] == order.id else tell(data))
            self.exchange.execute(order)
        except Refused:
            return                          # and the next moment tries again
        finally:
            self.exchange.on_update = tell
        if order.filled:
            self.note("drift", instrument.symbol, side=side, at=at, id=order.id,
                      price=price / NANO)

    # ------------------------------------------------------------ handshakes

    def refuses(self, stream: str, path: str) -> bool:
        """Whether a new connection of *stream* gets 429 instead of an upgrade."""
        if self.window("refuse_429") and self.on("refuse_429", stream):
            self.note("refuse_429", path)
            return True
        return False

    def full(self, path: str) -> bool:
        """Whether a login on a data stream is told 406."""
        if self.window("refuse_406"):
            self.note("refuse_406", path)
            return True
        return False

    def update(self, data: dict[str, Any]) -> dict[str, Any]:
        """One update as it is told."""
        shift = self.told("/stream")
        if not shift:
            return data
        at = stamp(utc_ns() + shift)
        return {**data, "at": at, "timestamp": at}

    # ------------------------------------------------------------ requests

    async def request(self, request: web.Request, handler: Handler, recv: int,
                      gone: asyncio.Event) -> web.StreamResponse:
        """Answer a request, or do not."""
        ordering = request.method == "POST" and request.path == "/v2/orders"
        if ordering:
            self.ordered()
        if not self.active:
            return await handler(request)
        about = f"{request.method} {request.path}"
        if self.window("storm_429"):
            self.note("storm_429", about)
            wait = max(1, round(self._until["storm_429"] - self.now() + 0.5))
            return web.Response(
                body=msgspec.json.encode({"code": 42910000, "message": "too many requests."}),
                status=429, content_type="application/json", headers={"Retry-After": str(wait)})
        delay = self.delay(about)
        if delay:
            await asyncio.sleep(delay / 2)      # half of it on the way here
        response = await self._answer(request, handler, recv, gone, about, ordering)
        if delay:
            await asyncio.sleep(delay / 2)
        return response

    async def _answer(self, request: web.Request, handler: Handler, recv: int,
                      gone: asyncio.Event, about: str, ordering: bool) -> web.StreamResponse:
        drawn = [k for k in (*(ORDERS if ordering else ()), *ERRORS) if self.draw(k)]
        if not drawn:
            return await handler(request)
        kind = drawn[0]
        raw = await request.read()
        if ordering:
            about = client_id(raw) or about
        if kind == "fill_first":
            order, reply = self.place(raw, recv)
            self.exchange.execute(order)
            self.note(kind, about, status=order.status)
            await asyncio.sleep(self.option(kind, "delay"))
            return reply
        if kind == "lost_late":
            delay = self.between(kind, 0.05, self.option(kind, "within"))
            self.note(kind, about, delay=round(delay, 3))
            self.later(delay, lambda: self._accept(raw, recv))
            return await self._vanish(request, kind, gone)
        accepted = kind == "lost_now" or (
            kind in ERRORS and request.method != "GET" and self._chance[kind].random() < 0.5)
        if accepted and ordering:
            accepted = self._accept(raw, recv)
        elif accepted:
            try:
                await handler(request)          # done, and not told
            except Refused:
                accepted = False
        self.note(kind, about, accepted=accepted)
        if kind in ("lost_now", "lost_never"):
            return await self._vanish(request, kind, gone)
        if kind == "reset":
            return self._break(request, True)
        if kind == "error_500":
            return web.Response(
                body=msgspec.json.encode({"code": 50010000, "message": "internal server error"}),
                status=500, content_type="application/json")
        words = "502 Bad Gateway" if kind == "error_502" else "504 Gateway Time-out"
        return web.Response(
            text=f"<html><head><title>{words}</title></head><body>{words}</body></html>",
            status=int(words[:3]), content_type="text/html")

    def _accept(self, raw: bytes, recv: int) -> bool:
        """Accept an order whose answer nobody will see; whether the rules let it."""
        try:
            order, _ = self.place(raw, recv)
        except Refused:
            return False
        self.exchange.execute(order)
        return True

    async def _vanish(self, request: web.Request, kind: str,
                      gone: asyncio.Event) -> web.StreamResponse:
        """No answer: the connection closes, is reset, or is silent until the client leaves."""
        how = self._chance[kind].choice(self.option(kind, "how"))
        if how == "silence":
            try:
                async with asyncio.timeout(SILENCE):
                    await gone.wait()
            except TimeoutError:
                pass
        return self._break(request, how == "reset")

    @staticmethod
    def _break(request: web.Request, reset: bool) -> web.StreamResponse:
        transport = request.transport
        if transport is not None:
            sock = transport.get_extra_info("socket")
            if reset and sock is not None and not transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        return web.Response(status=500)     # which finds the connection closed


def client_id(raw: bytes) -> str | None:
    """The client order id that an order's body gives."""
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    found = body.get("client_order_id") if isinstance(body, dict) else None
    return found if isinstance(found, str) else None


def hits(log: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Hits by kind of fault, from the lines of a venue's log."""
    out: Counter[str] = Counter()
    for line in log:
        if line["kind"] == "chaos":
            out[line["fault"]] += line.get("n", 1)
    return out
