"""Alpaca's ``trade_updates``: what the venue says about our orders, as UPDATE records."""
from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy

from hftpipe import schema
from hftpipe.alpaca import messages, session
from hftpipe.alpaca.rest import SecretLike, reveal
from hftpipe.alpaca.session import StreamError
from hftpipe.alpaca.stream import Stream, log
from hftpipe.errors import DataError

KIND = schema.ORDER_EVENT_KIND

KINDS = {
    "new": KIND.ACKED, "accepted": KIND.ACKED, "pending_new": KIND.ACKED, "held": KIND.ACKED,
    "partial_fill": KIND.PARTIAL_FILL, "fill": KIND.FILL, "canceled": KIND.CANCELED,
    "expired": KIND.EXPIRED, "rejected": KIND.REJECTED, "replaced": KIND.REPLACED,
    "order_cancel_rejected": KIND.CANCEL_REJECTED,
}
# Steps that move nothing we keep.
QUIET = {"pending_cancel", "pending_replace", "order_replace_rejected", "stopped", "calculated",
         "suspended", "done_for_day"}


class Reader:
    """Turns messages of the stream into records.

    Parameters
    ----------
    run : int
        Orders of other runs get order 0.
    instruments : mapping of str to int
        Index of each symbol; updates of other symbols are dropped and counted.

    Attributes
    ----------
    updates, ignored, drops, doubts, errors : int
        Records made; events that change nothing; foreign symbols; events that only REST can
        explain (trade_bust and the like, and any we do not know); malformed messages.
    """

    def __init__(self, run: int, instruments: Mapping[str, int]) -> None:
        self.run, self.instruments = run, dict(instruments)
        self.updates = self.ignored = self.drops = self.doubts = self.errors = 0

    def records(self, payload: bytes | memoryview, ts_recv: int) -> numpy.ndarray[Any, Any] | None:
        """The UPDATE record of one message, as an array of one; None when it makes none.

        Raises
        ------
        StreamError
            If it is the venue's own error message.
        """
        try:
            envelope = messages.ENVELOPE.decode(payload)
            if envelope.action == "error":
                data = messages.AUTHORIZATION.decode(envelope.data)
                raise StreamError(f"the venue answered: {data.error_message}")
            if envelope.stream != "trade_updates" or bytes(envelope.data) == b"null":
                self.ignored += 1                   # data: null was seen, Alpaca-API#110
                return None
            update = messages.UPDATE.decode(envelope.data)
        except msgspec.DecodeError as error:
            self.errors += 1
            log.error("updates: malformed message: %s", error)
            return None
        kind = KINDS.get(update.event)
        if kind is None:
            if update.event in QUIET:
                self.ignored += 1
            else:
                self.doubts += 1
                log.warning("updates: event %r of order %s: ask by REST", update.event,
                            update.order.client_order_id)
            return None
        instrument = self.instruments.get(update.order.symbol)
        if instrument is None:
            self.drops += 1
            return None
        try:
            row = session.update_row(update.order, self.run, instrument, ts_recv,
                                     update.timestamp or update.at)
            row["kind"] = kind
            row["execution"], row["execution_low"] = session.words(update.execution_id)
            if kind in (KIND.FILL, KIND.PARTIAL_FILL):
                row["price"], row["qty"] = session.nano(update.price), session.nano(update.qty)
                row["position_qty"] = session.nano(update.position_qty)
                if row["price"] <= 0 or row["qty"] <= 0:
                    raise ValueError(f"fill of {update.qty} at {update.price}")
        except (ValueError, OverflowError) as error:
            self.errors += 1
            log.error("updates: malformed %s: %s", update.event, error)
            return None
        self.updates += 1
        return row


class Updates(Stream):
    """A client of ``/stream``.

    Parameters
    ----------
    url : str
        Such as ``wss://paper-api.alpaca.markets/stream``.
    key, secret : str or secret.Secret
    run : int
    instruments : mapping of str to int
    sink : callable(records)
        Called with an array of one UPDATE record for each; `event` is still 0.
    on_live, on_down : callable(), optional
        Called when updates begin to flow, for the first time or again, and when they end: what
        happens in between is not sent and has to be fetched by REST.
    ping, step_timeout, frame_max, context
        As of :class:`Stream`.
    """

    name = "updates"

    def __init__(self, url: str, key: SecretLike, secret: SecretLike, run: int,
                 instruments: Mapping[str, int],
                 sink: Callable[[numpy.ndarray[Any, Any]], object], *,
                 on_live: Callable[[], object] | None = None,
                 on_down: Callable[[], object] | None = None,
                 ping: float = 10.0, step_timeout: float = 5.0, frame_max: int = 1 << 20,
                 context: ssl.SSLContext | None = None) -> None:
        super().__init__(url, ping=ping, step_timeout=step_timeout, frame_max=frame_max,
                         context=context)
        self.reader = Reader(run, instruments)
        self._key, self._secret = key, secret
        self._sink, self._on_live, self._on_down = sink, on_live, on_down

    async def _begin(self) -> None:
        self.send(msgspec.json.encode({"action": "authenticate", "data": {
            "key_id": reveal(self._key), "secret_key": reveal(self._secret)}}),
            text=True)
        found = await self._answer("authorization")
        if found.status != "authorized":
            raise StreamError(f"the venue refused the credentials: {found.status}", 401, final=True)
        self.send(msgspec.json.encode({"action": "listen", "data": {
            "streams": ["trade_updates"]}}), text=True)
        found = await self._answer("listening")
        if "trade_updates" not in (found.streams or ()):
            raise StreamError(f"wanted to listen to trade_updates, found {found.streams}",
                              final=found.streams is not None)

    async def _answer(self, stream: str) -> messages.Authorization:
        """Data of the next message of *stream*; StreamError when there is another one."""
        payload = await self.receive()
        try:
            envelope = messages.ENVELOPE.decode(payload)
            found = messages.AUTHORIZATION.decode(envelope.data)
        except msgspec.DecodeError as error:
            raise DataError(f"wanted {stream}, found {payload[:64]!r}: {error}") from None
        if envelope.action == "error":
            raise StreamError(f"the venue answered: {found.error_message}")
        if envelope.stream == "authorization" and found.status == "unauthorized":
            raise StreamError(f"the venue refused to {found.action or 'authenticate'}", 401,
                              final=True)
        if envelope.stream != stream:
            raise StreamError(f"wanted {stream} from the venue, found {envelope.stream}")
        return found

    def _take(self, payload: memoryview, ts_recv: int) -> None:
        self.had_data()
        found = self.reader.records(payload, ts_recv)
        if found is not None:
            self._sink(found)

    def _went_live(self, again: bool) -> None:
        if self._on_live is not None:
            self._on_live()

    def _went_down(self) -> None:
        if self._on_down is not None:
            self._on_down()
