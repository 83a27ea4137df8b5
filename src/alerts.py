"""Telling people that trading halted: one line in the log, a POST to a webhook.

Sent by the guardian from a thread of its own, so neither the gate nor a cancel waits for it.  The
address of a webhook is a credential: it comes by reference and stands in no log and no file.
"""
from __future__ import annotations

import http.client
import json
import queue
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from hftpipe import __version__
from hftpipe.errors import ConfigError

TIMEOUT = 3.0                   # s that the receiver has for one answer
TRIES = 5                       # of one alert; pauses between them double from PAUSE on
PAUSE = 0.5                     # s
WAITING = 64                    # alerts that wait at most; beyond them the newest is dropped
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Webhook:
    """A receiver of JSON over HTTPS; plain HTTP only on this machine.

    Parameters
    ----------
    url : str
        Never shown; errors name *reference*.
    reference : str
        Where it came from, such as ``env:SLACK_URL``.

    Raises
    ------
    ConfigError
        If it is no such address.
    """

    def __init__(self, url: str, reference: str) -> None:
        parts = urlsplit(url)
        good = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)
        if not good or not parts.hostname:
            raise ConfigError(f"observe.alerts: {reference} must hold an https:// address")
        self.reference = reference
        self._host, self._port = parts.hostname, parts.port
        self._context = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def __repr__(self) -> str:
        return f"<Webhook {self.reference}>"

    def post(self, body: Mapping[str, Any]) -> str:
        """Send once; why it failed, empty when it did not.  A redirect is a failure."""
        connection: http.client.HTTPConnection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT,
                                        context=self._context)
            if self._context is not None else
            http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT))
        try:
            connection.request("POST", self._path, json.dumps(body), {
                "Content-Type": "application/json", "User-Agent": f"hftpipe/{__version__}"})
            status = connection.getresponse().status
            return "" if 200 <= status < 300 else f"HTTP {status}"
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__         # its text may name the address
        finally:
            connection.close()


class Alerts:
    """A queue in front of the receivers, emptied by a thread.

    Parameters
    ----------
    hooks : sequence of Webhook
    note : callable
        ``note(level, event, **values)`` writes one line of the log.
    sent, failed : callable
        Count one alert delivered to a receiver, one given up.
    """

    def __init__(self, hooks: Sequence[Webhook], note: Callable[..., None],
                 sent: Callable[[], None] = lambda: None,
                 failed: Callable[[], None] = lambda: None) -> None:
        self._hooks, self._note, self._sent, self._failed = tuple(hooks), note, sent, failed
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)
        self._thread.start()

    def send(self, text: str, **values: Any) -> None:
        """Queue one alert; never waits."""
        self._note("error", "alert", text=text, **values)
        if not self._hooks:
            return
        try:
            self._queue.put_nowait({"text": text, **values})
        except queue.Full:
            self._failed()
            self._note("error", "alert dropped: too many wait", text=text)

    def _run(self) -> None:
        while (body := self._queue.get()) is not None:
            for hook in self._hooks:
                self._deliver(hook, body)

    def _deliver(self, hook: Webhook, body: Mapping[str, Any]) -> None:
        pause = PAUSE
        for number in range(1, TRIES + 1):
            trouble = hook.post(body)
            if not trouble:
                self._sent()
                return
            if number < TRIES:
                time.sleep(pause)
                pause *= 2
        self._failed()
        self._note("error", "alert not delivered", to=hook.reference, error=trouble, tries=TRIES)

    def close(self, seconds: float) -> None:
        """Deliver what waits, for at most so long."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(seconds)
