"""Asks the venue what the reconciliation wants to know, in a thread of its own: REST blocks."""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from hftpipe.alpaca.reconcile import Answer, Task
from hftpipe.alpaca.rest import Rest, VenueError
from hftpipe.errors import HftpipeError


class Asker:
    """One task at a time.

    Parameters
    ----------
    rest : callable() -> Rest
        Called in the thread, once.
    pause : callable(symbol, reason)
        Stops new orders of a symbol; an HftpipeError when that could not be asked for.
    after : str
        RFC 3339 time before which orders and fills are of no interest.
    """

    def __init__(self, rest: Callable[[], Rest], pause: Callable[[str, str], object],
                 after: str) -> None:
        self._make, self._pause, self._after = rest, pause, after
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="asker", daemon=True)
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Begin with *task*."""
        self._tasks.put(task)

    def poll(self) -> Answer | None:
        """An answer, or None when there is none yet."""
        try:
            return self._answers.get_nowait()
        except queue.Empty:
            return None

    def close(self, timeout: float = 6.0) -> None:
        """End the thread, after what it does now."""
        self._tasks.put(None)
        self._thread.join(timeout)

    def _serve(self) -> None:
        rest: Rest | None = None
        while (task := self._tasks.get()) is not None:
            try:
                rest = rest or self._make()
                answer = Answer(task, self._one(rest, task))
            except (HftpipeError, OSError, ValueError) as error:
                status = error.status if isinstance(error, VenueError) else 0
                answer = Answer(task, None, f"{type(error).__name__}: {error}", status)
            self._answers.put(answer)
        if rest is not None:
            rest.close()

    def _one(self, rest: Rest, task: Task) -> Any:
        if task.what == "order":
            return rest.order_by_client_id(task.name)
        if task.what == "orders":
            return rest.orders(task.name, None if task.name == "open" else self._after)
        if task.what == "positions":
            return rest.positions()
        if task.what == "fills":
            return rest.fills(self._after)
        if task.what == "cancel":
            return rest.cancel(task.name)
        if task.what == "pause":
            return self._pause(task.name, task.why)
        raise ValueError(f"task must be one of order, orders, positions, fills, cancel, pause, "
                         f"was {task.what}")
