"""Alpaca's market data over WebSocket, handed on as raw frames for :class:`_codec.Decoder`.

What this process does not know it does not decide: it checks that the subscription is what
was asked for, passes every frame on the moment it arrives, says when there was a gap, and
comes back after each failure.
"""
from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any

from hftpipe._clock import now_ns
from hftpipe.alpaca import session
from hftpipe.alpaca.rest import SecretLike
from hftpipe.alpaca.stream import Stream, log
from hftpipe.errors import ConfigError

CHANNELS = ("trades", "quotes", "orderbooks", "bars", "updatedBars", "dailyBars", "statuses",
            "lulds", "imbalances")


class Feed(Stream):
    """A client of one data stream.

    Parameters
    ----------
    url : str
        Such as ``wss://stream.data.alpaca.markets/v2/iex``.
    key, secret : str or secret.Secret
    symbols : sequence of str
        All of them on all channels.
    sink : callable(payload, ts_recv)
        Called with each data frame, a memoryview that is valid during the call only, and the
        monotonic ns at which it was read.  What it raises ends :meth:`run`.
    gap : callable(ts_recv)
        Called when data were lost: the connection ended after it was live.
    channels : sequence of str, default trades and quotes
    encoding : {"msgpack", "json"}
    silence : callable, optional
        ``silence()`` is the longest time in s without a data frame that is normal now; None
        while none are due (:class:`hftpipe.alpaca.watch.Watch`).  A connection that is mute for
        longer is given up, pongs or not.
    ping, step_timeout, frame_max, first, longest, context
        As of :class:`Stream`.
    """

    name = "feed"
    settles = False                 # only data show that the stream is well

    def __init__(self, url: str, key: SecretLike, secret: SecretLike, symbols: Sequence[str],
                 sink: Callable[[memoryview, int], object], gap: Callable[[int], object], *,
                 channels: Sequence[str] = ("trades", "quotes"), encoding: str = "msgpack",
                 silence: Callable[[], float | None] | None = None,
                 ping: float = 10.0, step_timeout: float = 5.0, frame_max: int = 1 << 20,
                 first: float | None = None, longest: float | None = None,
                 context: ssl.SSLContext | None = None) -> None:
        super().__init__(url, ping=ping, step_timeout=step_timeout, frame_max=frame_max,
                         first=first, longest=longest, context=context)
        if encoding not in ("msgpack", "json"):
            raise ConfigError(f"encoding must be msgpack or json, was {encoding!r}")
        unknown = [c for c in channels if c not in CHANNELS]
        if unknown or not channels or not symbols:
            raise ConfigError(f"wanted symbols and channels of {', '.join(CHANNELS)}; found "
                              f"{len(symbols)} symbols, channels {', '.join(channels) or 'none'}")
        self._key, self._secret = key, secret
        self._symbols, self._channels, self._encoding = list(symbols), tuple(channels), encoding
        self._sink, self._gap = sink, gap
        self._silence = silence
        self._quiet = 0                 # since when no data came, or none were due
        self.headers = {"Content-Type": f"application/{encoding}"}
        self.gaps = 0
        self.reports = 0                # error messages of the venue that end nothing

    async def _begin(self) -> None:
        text = self._encoding == "json"
        session.check_success(await self._controls(), "connected")
        self.send(session.encode(self._encoding, session.auth_message(self._key, self._secret)),
                  text)
        session.check_success(await self._controls(), "authenticated")
        self.send(session.encode(self._encoding, session.subscribe_message(
            self._symbols, self._channels)), text)
        session.check_subscription(await self._controls(), self._symbols, self._channels)
        self._quiet = now_ns()

    async def _controls(self) -> list[dict[str, Any]]:
        return session.decode_controls(self._encoding, await self.receive())

    def _take(self, payload: memoryview, ts_recv: int) -> None:
        if session.is_control(payload):
            self._control(payload)
            return
        self.had_data()
        self._quiet = ts_recv
        self._sink(payload, ts_recv)

    def _control(self, payload: memoryview) -> None:
        for message in session.decode_controls(self._encoding, payload):
            if message.get("T") != "error":
                continue
            error = session.stream_error(message, starting=False)
            if session.CODES.get(error.code, session.BACKOFF) == session.REPORT:
                self.reports += 1
                log.error("feed: %s", error)
            else:
                raise error

    def _went_down(self) -> None:
        self.gaps += 1
        self._gap(now_ns())

    def _stale(self) -> str:
        allowed = self._silence() if self._silence is not None else None
        now = now_ns()
        if allowed is None:
            self._quiet = now           # the clock starts when the session does
            return ""
        age = (now - self._quiet) / 1e9
        return f"no data for {age:.1f} s" if age > allowed else ""
