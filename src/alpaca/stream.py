"""A WebSocket that is kept open: connect, begin, read, and again after each failure.

:class:`Stream` knows nothing of what is said on it; ``feed`` and ``updates`` do.
"""
from __future__ import annotations

import asyncio
import logging
import random
import ssl
from typing import Any, NoReturn

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    ws_connect,
)

from hftpipe._clock import now_ns
from hftpipe.alpaca.rest import USER_AGENT, verified_context
from hftpipe.alpaca.session import StreamError
from hftpipe.errors import ConfigError, DataError, DeadlineError

log = logging.getLogger("hftpipe.alpaca")

BACKOFF_FIRST, BACKOFF_MAX = 0.25, 30.0     # seconds
SETTLED_NS = 30_000_000_000     # a connection that lived this long was a good one, data or not


class _Listener(WSListener):
    """Hands whole messages of one connection to its stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.parts: bytearray | None = None
        self.lost: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        if not self.lost.done():
            self.lost.set_result(error)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        ts_recv = now_ns()
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            self.fail(ConnectionError(f"the venue closed the stream, code "
                                      f"{frame.get_close_code()}"))
            transport.send_close(frame.get_close_code())
            transport.disconnect()
            return
        if kind not in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION):
            return
        try:
            if (frame.rsv1 or frame.rsv2 or frame.rsv3
                    or (kind == WSMsgType.CONTINUATION) != (self.parts is not None)):
                raise DataError("the venue sent a frame that RFC 6455 does not allow")
            if frame.fin and self.parts is None:
                self.stream._payload(frame.get_payload_as_memoryview(), ts_recv)
                return
            if self.parts is None:
                self.parts = bytearray()
            self.parts += frame.get_payload_as_memoryview()
            if len(self.parts) > self.stream.frame_max:
                raise DataError(f"message is larger than {self.stream.frame_max} bytes")
            if frame.fin:
                whole, self.parts = bytes(self.parts), None
                self.stream._payload(memoryview(whole), ts_recv)
        except Exception as error:          # picows would only log it
            self.fail(error)
            transport.disconnect(graceful=False)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.fail(ConnectionError("the connection was lost"))


class Stream:
    """Base of the feed and the updates.

    Parameters
    ----------
    url : str
        ``ws://`` or ``wss://``.
    ping : float, default 10
        Seconds between pings; as many without an answer end the connection.
    step_timeout : float, default 5
        Seconds for connecting, and for each answer while beginning.
    frame_max : int, default 1 MiB
    first, longest : float, s, default 0.25 and 30
        Wait before connecting again; it doubles from one to the other, with jitter.
    context : ssl.SSLContext, optional
        Of wss; the default verifies.

    Attributes
    ----------
    live : bool
        Whether the stream is authorised and data may come.
    reconnects, frames, errors : int
        Connections begun after the first, messages read, failures of any kind.
    last_data : int
        Monotonic ns of the last message; 0 before the first.
    """

    name = "stream"

    def __init__(self, url: str, *, ping: float = 10.0, step_timeout: float = 5.0,
                 frame_max: int = 1 << 20, first: float | None = None,
                 longest: float | None = None,
                 context: ssl.SSLContext | None = None) -> None:
        if not url.startswith(("ws://", "wss://")):
            raise ConfigError(f"{self.name} address must start with ws:// or wss://, was {url!r}")
        self.url, self.ping, self.step_timeout, self.frame_max = url, ping, step_timeout, frame_max
        self.first = BACKOFF_FIRST if first is None else first
        self.longest = BACKOFF_MAX if longest is None else longest
        self.live = False
        self.reconnects = self.frames = self.errors = self.last_data = 0
        self.backoff = 0                # failures in a row, without data in between
        self.last_error: BaseException | None = None
        self._context = (context or verified_context()) if url.startswith("wss://") else None
        self._random = random.Random()
        self._waiting: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        self._transport: WSTransport | None = None
        self._listener: _Listener | None = None
        self._connections = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url} {'live' if self.live else 'down'}>"

    # -------------------------------------------------------- what the two streams add

    headers: dict[str, str] = {}        # noqa: RUF012
    settles = True      # a long life is as good as data: where hours without any are normal

    async def _begin(self) -> None:
        """Say what has to be said after connecting; StreamError when it is refused."""

    def _take(self, payload: memoryview, ts_recv: int) -> None:
        """One message; *payload* is valid during the call only."""

    def _went_live(self, again: bool) -> Any:
        """The stream is live, *again* or for the first time; may return an awaitable."""

    def _went_down(self) -> None:
        """The stream is not live any more."""

    def _stale(self) -> str:
        """Why the connection is dead although it is open; "" when it is not."""
        return ""

    # -------------------------------------------------------- used by them

    def send(self, payload: bytes, text: bool) -> None:
        """Send one message."""
        assert self._transport is not None
        self._transport.send(WSMsgType.TEXT if text else WSMsgType.BINARY, payload)

    async def receive(self) -> bytes:
        """The next message while beginning.

        Raises
        ------
        DeadlineError
            If none comes within `step_timeout`.
        """
        assert self._listener is not None
        getter = asyncio.ensure_future(self._waiting.get())
        first: set[asyncio.Future[Any]] = {getter, self._listener.lost}
        try:
            await asyncio.wait(first, timeout=self.step_timeout,
                               return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()[0]
            if self._listener.lost.done():
                raise self._listener.lost.result()
            raise DeadlineError(f"no answer from the venue within {self.step_timeout:g} s")
        finally:
            getter.cancel()

    def had_data(self) -> None:
        """Real data came: the next failure starts from the shortest wait again."""
        self.backoff = 0

    def drop(self, error: BaseException) -> None:
        """End this connection; the stream connects again (or stops, if *error* is final)."""
        if self._listener is not None:
            self._listener.fail(error)

    # -------------------------------------------------------- the life of it

    def _payload(self, payload: memoryview, ts_recv: int) -> None:
        self.frames += 1
        self.last_data = ts_recv
        if self.live:
            self._take(payload, ts_recv)
        else:
            self._waiting.put_nowait((bytes(payload), ts_recv))

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the stream open until *stop* is set.

        Raises
        ------
        ConfigError
            If the venue refuses for good: credentials, subscription, address.
        """
        while not stop.is_set():
            try:
                await self._until(stop)
            except (StreamError, WSError, OSError, DataError, DeadlineError) as error:
                self.errors += 1        # a TimeoutError is an OSError
                self.last_error = error
                self._check_final(error)
            if stop.is_set():
                return
            wait = min(self.first * 2 ** self.backoff, self.longest)
            wait *= self._random.uniform(0.5, 1.0)
            self.backoff = min(self.backoff + 1, 20)
            log.warning("%s: %s; trying again in %.2f s", self.name, self.last_error, wait)
            try:
                await asyncio.wait_for(stop.wait(), wait)
            except TimeoutError:
                pass

    async def _until(self, stop: asyncio.Event) -> None:
        """One connection; given up at once when *stop* is set before it is live."""
        task = asyncio.ensure_future(self._once(stop))
        stopping = asyncio.ensure_future(stop.wait())
        ends: set[asyncio.Future[Any]] = {task, stopping}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not task.done() and not self.live:
                task.cancel()
                await asyncio.wait({task})
                return
            await task
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    def _check_final(self, error: BaseException) -> None:
        status = None
        if isinstance(error, WSHandshakeError):
            response = getattr(error, "response", None)
            status = int(response.status) if response is not None else None
        if (isinstance(error, StreamError) and error.final) or status in (401, 403, 404):
            self._give_up(error)

    def _give_up(self, error: BaseException) -> NoReturn:
        raise ConfigError(f"{self.name} {self.url}: {error}") from None

    async def _once(self, stop: asyncio.Event) -> None:
        """One connection, from connecting to its end."""
        self._waiting = asyncio.Queue()
        listener = _Listener(self)
        async with asyncio.timeout(self.step_timeout):
            transport, _ = await ws_connect(
                lambda: listener, self.url, ssl_context=self._context, max_redirects=0,
                websocket_handshake_timeout=self.step_timeout, max_frame_size=self.frame_max,
                enable_auto_ping=True, auto_ping_idle_timeout=self.ping,
                auto_ping_reply_timeout=self.ping,
                extra_headers={"User-Agent": USER_AGENT, **self.headers})
        if transport.is_disconnected:       # picows does not tell: it was during the handshake
            raise ConnectionError("the connection was lost during the handshake")
        self._transport, self._listener = transport, listener
        graceful, begun = False, now_ns()
        try:
            self.reconnects += self._connections > 0
            self._connections += 1
            await self._begin()
            self.live, begun = True, now_ns()
            while not self._waiting.empty():        # data right behind the last answer
                payload, ts_recv = self._waiting.get_nowait()
                self._take(memoryview(payload), ts_recv)
            hook = self._went_live(self._connections > 1)
            if hook is not None:
                await hook
            graceful = await self._watch(stop, listener)
        finally:
            was_live, self.live = self.live, False
            self._transport = self._listener = None
            if was_live:
                if self.settles and now_ns() - begun > SETTLED_NS:
                    self.backoff = 0
                self._went_down()
            if graceful:
                transport.send_close(WSCloseCode.OK)
            transport.disconnect(graceful)
            try:
                async with asyncio.timeout(1.0):
                    await transport.wait_disconnected()
            except Exception:               # why it ended is known already
                transport.disconnect(graceful=False)

    async def _watch(self, stop: asyncio.Event, listener: _Listener) -> bool:
        """Until the end: True when *stop* is the reason, else it raises the reason."""
        stopping = asyncio.ensure_future(stop.wait())
        ends: set[asyncio.Future[Any]] = {stopping, listener.lost}
        try:
            while True:
                await asyncio.wait(ends, timeout=0.25, return_when=asyncio.FIRST_COMPLETED)
                if listener.lost.done():
                    raise listener.lost.result()
                if stopping.done():
                    return True
                why = self._stale()
                if why:
                    raise DeadlineError(why)
        finally:
            stopping.cancel()

