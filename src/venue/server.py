"""The local venue as one server on one port: traders, books, account, REST and WebSockets."""
from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import secrets
import signal
import socket
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from hftpipe._clock import utc_ns
from hftpipe.errors import BusyError, ConfigError, DeadlineError, HftpipeError, UsageError
from hftpipe.secret import VARIABLES

from ._traders import Traders
from .chaos import Chaos, Profile
from .data import Data
from .exchange import Exchange, Refused
from .history import Bar, History
from .rest import Rest, Stamp, time_of
from .session import Hours
from .state import NANO, State, nano
from .streams import (
    CRYPTO_CHANNELS,
    STOCK_CHANNELS,
    TEST_CHANNELS,
    Feed,
    Keys,
    Sockets,
    Stamps,
    Ticks,
    Updates,
)
from .tape import Tape
from .traders import instruments

KEY_ENV, SECRET_ENV = "HFTPIPE_VENUE_KEY", "HFTPIPE_VENUE_SECRET"
CATCH_UP = NANO // 10           # older events are skipped, not sent in a burst
PR_SET_PDEATHSIG = 1


def _random(prefix: str, size: int) -> str:
    letters = string.ascii_uppercase + string.digits
    return prefix + "".join(secrets.choice(letters) for _ in range(size - len(prefix)))


@dataclass(frozen=True)
class Config:
    """How a venue is set up.

    Attributes
    ----------
    rate : float
        Market data messages per second over all symbols; 0 keeps the books still.
    tick : float, s
        Time between two batches of market data.
    state : Path or None
        Directory of the log that the account survives in; ``None`` keeps it in memory.
    stamps : bool
        Also note there when each market data frame was written.
    rate_limit : int
        REST requests per minute; 0 = any number.
    cash : str
        Of a new account.
    multiplier : int
        1 cash account, 2 or 4 margin.
    symbol_limit : int
        Most symbols over trades and quotes on stock feeds, 0 = any number; above 0 the feed
        ``sip`` is refused, as on the broker's basic plan.
    updates_limit : int
        Most ``/stream`` connections; 0 = any number.
    auth_timeout, linger, ghost : float, s
        See :class:`hftpipe.venue.streams.Sockets`.
    session : float, s
        Day orders expire each time so much has passed; 0 = the session never ends.
    hours : str
        ``always``, or ``nyse``: stocks trade in the hours of the New York Stock Exchange.
    now : str or None
        Where the clock of the sessions stands at the start, RFC 3339; the host's by default.
    buffer, message : int
        Largest unsent backlog of a client, largest message from one, in bytes.
    chaos : Profile or None
        Faults to inject, by the seed.
    """

    host: str = "127.0.0.1"
    port: int = 0
    seed: int = 7
    symbols: tuple[str, ...] = ("ACME", "BOLT", "CRUX", "DYNE")
    rate: float = 2000.0
    tick: float = 0.002
    state: Path | None = None
    stamps: bool = False
    key: str = field(default_factory=lambda: _random("PK", 20))
    secret: str = field(default_factory=lambda: _random("", 40), repr=False)
    rate_limit: int = 200
    cash: str = "100000"
    multiplier: int = 4
    symbol_limit: int = 0
    updates_limit: int = 0
    auth_timeout: float = 10.0
    linger: float = 1.0
    ghost: float = 0.0
    session: float = 0.0
    hours: str = "always"
    now: str | None = None
    buffer: int = 4 << 20
    message: int = 1 << 20
    chaos: Profile | None = None

    def __post_init__(self) -> None:
        for name, good, wanted in (
                ("port", 0 <= self.port <= 65535, "0 to 65535"),
                ("seed", 0 <= self.seed < 1 << 64, "0 to 2**64 - 1"),
                ("rate", 0 <= self.rate <= 1e6, "0 to 1000000 messages per second"),
                ("tick", 0.0001 <= self.tick <= 1, "0.0001 to 1 seconds"),
                ("hours", self.hours in ("always", "nyse"), "always or nyse"),
                ("multiplier", self.multiplier in (1, 2, 4), "1, 2 or 4"),
                ("rate_limit", self.rate_limit >= 0, "0 or more"),
                ("buffer", self.buffer >= 4096, "at least 4096 bytes"),
                ("stamps", not self.stamps or self.state is not None, "used with a state")):
            if not good:
                raise UsageError(f"{name} must be {wanted}, was {getattr(self, name)}")
        if self.now is not None:
            try:
                time_of(self.now, "now")
            except Refused:
                raise UsageError("now must be a time like 2026-03-02T09:29:50-05:00, was "
                                 f"{self.now!r}") from None
        if not self.key or not self.secret:
            raise ConfigError("key and secret must not be empty")


class Venue:
    """The venue, running inside this event loop: ``async with Venue(config) as venue``.

    Attributes
    ----------
    address : dict
        What a client must know: ``rest``, ``data_stream``, ``data_stream_crypto``,
        ``updates_stream``, ``key``, ``secret``, ``symbols``, ``pid``, ``seed``.

    Raises
    ------
    BusyError
        If the port or the state directory is taken.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.address: dict[str, Any] = {}
        self.skipped = 0                # ns of the traders' time that were left out
        self.error: BaseException | None = None
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Venue:
        config = self.config
        try:
            cash = nano(config.cash) * NANO
        except ValueError as error:
            raise UsageError(f"cash must be a decimal: {error}") from None
        if cash < 0:
            raise UsageError(f"cash must be 0 or more, was {config.cash}")
        self.state = State(config.state, cash)
        try:
            await self._start()
        except BaseException:
            self.state.close()
            raise
        return self

    async def _start(self) -> None:
        config, state = self.config, self.state
        now = utc_ns()
        table = instruments(config.symbols, state.prices)
        first_trade = max(state.runs << 40, state.trade)
        traders = Traders(table, config.seed + state.runs, config.rate, now, first_trade)
        try:
            shift = (time_of(config.now, "now") or 0) - now if config.now else 0
            self.exchange = Exchange(table, traders, state, config.multiplier,
                                     Hours(config.hours == "always", shift))
        except LookupError as error:
            raise ConfigError(str(error)) from None
        keys = Keys(config.key, config.secret)
        self.stamps = Stamps(
            config.state / "frames.jsonl" if config.state and config.stamps else None)
        self.history = History(table, state.bars, self._record_bar)
        state.bars = {}
        self._ticks = Ticks()
        fake = instruments(("FAKEPACA",), {})
        self._fake = Traders(fake, config.seed, 5.0, now)
        self.iex = Feed("/v2/iex", table, STOCK_CHANNELS, "V", self.stamps, self._ticks)
        self.sip = Feed("/v2/sip", table, STOCK_CHANNELS, "Q", self.stamps, self._ticks)
        self.test = Feed("/v2/test", fake, TEST_CHANNELS, "V", self.stamps, self._ticks)
        self.crypto = Feed("/v1beta3/crypto/us", table, CRYPTO_CHANNELS, "", self.stamps,
                           self._ticks, traders.levels)
        self.updates = Updates()
        self.sockets = Sockets(
            keys, (self.iex, self.sip, self.test, self.crypto), self.updates,
            auth_timeout=config.auth_timeout, linger=config.linger, ghost=config.ghost,
            buffer=config.buffer, message=config.message, symbols=config.symbol_limit,
            updates_limit=config.updates_limit)
        paths = {*self.sockets.feeds, "/stream", "/stream/"}
        self.rest = Rest(self.exchange, keys, config.rate_limit, paths, self._fail)
        self.tape = Tape(table, (self.iex, self.sip), self.history)
        self.chaos: Chaos | None = None
        if config.chaos is not None:
            self.chaos = Chaos(config.chaos, f"{config.seed}/{state.runs}", state, self.exchange,
                               self.rest.place, self._fail, self.tape)
            self.rest.chaos = self.sockets.chaos = self.updates.chaos = self.chaos
        self.exchange.on_update = self.updates.publish
        self.exchange.on_messages = self._publish

        app = web.Application(middlewares=[self.rest.guard], client_max_size=1 << 20)
        data = Data(self.exchange, self.history, config.symbol_limit > 0)
        app.add_routes([*self.sockets.routes(), *self.rest.routes(), *data.routes()])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False,
                                     shutdown_timeout=0.5)
        await self._runner.setup()
        inner = self._runner.server
        if inner is None:
            raise RuntimeError("the runner was set up and has no server")
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Stamp(inner()), config.host, config.port, reuse_address=True)
        except OSError as error:
            await self._runner.cleanup()
            self.stamps.close()
            if isinstance(error, socket.gaierror):
                raise UsageError(f"host must be an address of this machine, was "
                                 f"{config.host!r}: {error.strerror}") from None
            raise BusyError(f"cannot listen on {config.host}:{config.port}: "
                            f"{os.strerror(error.errno) if error.errno else error}") from None
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.address = {
            "rest": f"http://{host}:{port}", "data_stream": f"ws://{host}:{port}/v2/iex",
            "data_stream_crypto": f"ws://{host}:{port}/v1beta3/crypto/us",
            "updates_stream": f"ws://{host}:{port}/stream", "key": config.key,
            "secret": config.secret, "symbols": list(config.symbols), "pid": os.getpid(),
            "seed": config.seed, **({"chaos": config.chaos.name} if config.chaos else {})}
        self.state.record("start", now, run=state.runs + 1, pid=os.getpid(), seed=config.seed,
                          rate=config.rate, symbols=list(config.symbols), account=state.account)
        self.exchange.resume()
        self._task = asyncio.create_task(self._run(), name="venue")

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self._server.close()
        await self._task
        await self.sockets.close()
        await self._runner.cleanup()
        self.exchange.write_mark()
        if self.chaos is not None:
            self.chaos.flush()
        self.stamps.close()
        self.state.close()
        if self.error is not None:
            raise self.error

    async def wait(self, seconds: float | None = None) -> None:
        """Serve until :meth:`stop`, an error, or *seconds* have passed."""
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            pass

    def stop(self) -> None:
        self._stop.set()

    def _publish(self, messages: list[Any]) -> None:
        stamped = self._ticks.stamp(messages)
        self.history.add(stamped)
        if self.chaos is not None:
            shift = self.chaos.told("data", len(messages))
            if shift:
                stamped = [(t + shift, m) for t, m in stamped]
        self.iex.publish(stamped)
        self.sip.publish(stamped)
        self.crypto.publish(stamped)

    def _record_bar(self, symbol: str, bar: Bar) -> None:
        self.state.record("bar", utc_ns(), symbol=symbol, t=bar.minute, o=bar.open, h=bar.high,
                          l=bar.low, c=bar.close, v=bar.volume, n=bar.count, value=str(bar.value))

    async def _run(self) -> None:
        """The venue's clock: let the traders act, send what they did, keep the marks."""
        try:
            loop = asyncio.get_running_loop()
            due = loop.time()
            second = 0
            session = loop.time()
            while not self._stop.is_set():
                now = market = utc_ns()
                if self.chaos is not None:
                    self.chaos.tick()
                    market = self.chaos.market(now)
                if self.config.rate:
                    self.skipped += self.exchange.traders.skip(market - CATCH_UP)
                self.exchange.step(market)
                if self.test.sessions:
                    self._fake.step(now)
                    self.test.publish(self._ticks.stamp(self._fake.take()))
                else:
                    self._fake.skip(now)
                if now // NANO != second:
                    second = now // NANO
                    self.exchange.write_mark()
                    self.stamps.flush()
                    self.exchange.tick(now)
                    self.history.close_minute(now)
                    for feed in (self.iex, self.sip, self.crypto):
                        feed.close_minute(now)
                if self.config.session and loop.time() - session >= self.config.session:
                    session = loop.time()
                    self.exchange.end_session()
                due = max(due + self.config.tick, loop.time())
                await asyncio.sleep(due - loop.time())
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A broken invariant, or the log cannot be written: stop serving, say why."""
        self.error = self.error or error
        self._stop.set()


# ---------------------------------------------------------------- as a process

def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent process ends."""
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:              # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def run(config: Config, *, seconds: float | None = None, as_json: bool = False) -> None:
    """Serve until SIGTERM, SIGINT or *seconds* have passed; the first line says where."""
    asyncio.run(_serve(config, seconds, as_json))


async def _serve(config: Config, seconds: float | None, as_json: bool) -> None:
    loop = asyncio.get_running_loop()
    async with Venue(config) as venue:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, venue.stop)
        if as_json:
            print(json.dumps(venue.address), flush=True)
        else:
            for name, value in venue.address.items():
                shown = ",".join(value) if isinstance(value, list) else value
                print(f"{name:<19} {shown}", flush=True)
        gc.collect()
        gc.freeze()
        await venue.wait(seconds)


@contextmanager
def spawn(*arguments: str, key: str | None = None, secret: str | None = None,
          timeout: float = 20.0) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Run ``hftpipe venue -o json`` with *arguments* as a process that dies with this one.

    Yields the process and its first line; sends SIGTERM on leaving, unless it ended before.

    Raises
    ------
    DeadlineError
        If nothing is said for *timeout* seconds.
    HftpipeError
        If it ends instead.
    """
    import select
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES}      # the broker's keys
    if key is not None and secret is not None:
        env |= {KEY_ENV: key, SECRET_ENV: secret}
    command = [sys.executable, "-m", "hftpipe", "venue", "-o", "json", "--die-with-parent",
               *arguments]
    # The package may be importable only because this process's path says so.
    env["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    said = tempfile.TemporaryFile("w+")     # not a pipe: nobody would read it
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=env)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        if not ready:
            raise DeadlineError(f"the venue said nothing for {timeout} s")
        line = process.stdout.readline()
        if not line:
            status = process.wait(timeout)
            said.seek(0)
            raise HftpipeError(f"the venue ended with {status}: {said.read().strip()}")
        yield process, json.loads(line)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()
        said.close()
