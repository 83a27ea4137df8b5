"""What operators ask, into PostgreSQL: at once where it must be there first, else when it can."""
from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from hftpipe.errors import HftpipeError
from hftpipe.store.writer import become_writer

PATIENCE = 3                    # s that a row which must be written first may take
PAUSE = 2.0                     # s between two tries of one that need not


@dataclass(frozen=True)
class Entry:
    """One row of ``operator_event``."""

    run: int
    who: str
    command: str
    reason: str
    outcome: str                # asked, done or refused
    event: int | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


class Audit:
    """Writes rows of ``operator_event`` through connections of its own.

    Parameters
    ----------
    conninfo : callable
        Gives the conninfo; a server that was started again may answer in another place.
    failed : callable
        Told once why rows have to wait.
    """

    def __init__(self, conninfo: Callable[[], str],
                 failed: Callable[[str], object] = lambda why: None) -> None:
        self._conninfo, self._failed = conninfo, failed
        self._waiting: queue.Queue[Entry | None] = queue.Queue()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def now(self, entry: Entry) -> None:
        """Write *entry* before this returns.

        Raises
        ------
        HftpipeError
            If the database does not take it in time: what it was to allow must not happen.
        """
        try:
            with psycopg.connect(
                    self._conninfo(), autocommit=True, connect_timeout=PATIENCE,
                    application_name="hftpipe audit",
                    options=f"-c statement_timeout={PATIENCE}s -c lock_timeout={PATIENCE}s") as c:
                become_writer(c)
                self._insert(c, entry)
        except psycopg.Error as e:
            raise HftpipeError("cannot be written down, so it is not done: "
                               + " ".join(str(e).split())) from None

    def later(self, entry: Entry) -> None:
        """Write *entry* when the database takes it; never waits."""
        self._waiting.put(entry)

    def close(self, timeout: float = 2.0) -> int:
        """Write what waits, for at most *timeout* seconds; how many rows could not be."""
        self._closed.set()
        self._waiting.put(None)
        self._thread.join(timeout)
        left = sum(entry is not None for entry in list(self._waiting.queue))
        return left + self._thread.is_alive()       # it has one in hand

    def _run(self) -> None:
        said = ""
        entry = self._waiting.get()
        while entry is not None:
            try:
                self.now(entry)
                said = ""
            except HftpipeError as e:
                if not said:
                    self._failed(str(e))
                said = str(e)
                if self._closed.is_set():
                    self._waiting.put(entry)    # counted by close()
                    return
                self._closed.wait(PAUSE)
                continue
            entry = self._waiting.get()

    @staticmethod
    def _insert(c: psycopg.Connection, entry: Entry) -> None:
        c.execute(
            "INSERT INTO hftpipe.operator_event (run, who, command, reason, outcome, event, "
            "detail) VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (entry.run, entry.who, entry.command, entry.reason, entry.outcome, entry.event,
             Jsonb(dict(entry.detail))))


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether *condition* came true within *seconds*."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(0.0005)
    return True
