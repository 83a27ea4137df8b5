"""Another model for a strategy of a running pipeline, between two events.

The process of the signal stage answers at a socket of its own in the run directory.  A thread
loads and checks the model as a start would (sha256, card, features, shape, parity), beside the loop
and off its core; the loop then exchanges one pointer between two passes.  What is refused changes
nothing.  The next start takes what the configuration says again: a reload is not kept.
"""
from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hftpipe.desk import Desk, Request
from hftpipe.errors import BusyError, UsageError

SOCKET = "signal.sock"
PATIENCE = 5.0                  # s for the loop to find room for the record
SWITCH = 0.0005                 # s that a thread which loads may hold the loop up


class Stage(Protocol):
    """The signal stage."""

    def exchange(self, strategy: int, member: int, prepared: Any) -> int: ...


@dataclass
class _Order:
    strategy: int
    member: int
    prepared: Any
    event: int = 0
    taken_back: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Reloader:
    """Answers ``reload`` requests; the loop calls :meth:`turn`.

    Parameters
    ----------
    directory : str
        Of the run.
    stage : SignalStage
    strategies : sequence of Strategy
        The stage's.
    check : callable
        Told the path; raises ConfigError for a model that this run cannot feed.
    bar : str
        Window of the bars that this run's features are made from.
    core : int or None
        The loop's own; models are loaded on others.
    log : callable
        Told of requests.
    """

    def __init__(self, directory: str, stage: Stage, strategies: Sequence[Any],
                 check: Callable[[Path], object], bar: str, core: int | None,
                 log: Callable[..., object]) -> None:
        self._stage, self._check, self._bar, self._core = stage, check, bar, core
        self._orders: queue.SimpleQueue[_Order] = queue.SimpleQueue()
        self._first: _Order | None = None
        self._one = threading.Lock()            # one model is loaded at a time
        self._parts = {part.name or f"strategy {k}": (k, n, part)
                       for k, strategy in enumerate(strategies)
                       for n, part in enumerate(strategy.parts) if hasattr(part, "prepare")}
        sys.setswitchinterval(SWITCH)
        self._desk = Desk(directory, {"reload": self._reload}, log, name=SOCKET)

    def close(self) -> None:
        """Take no more requests."""
        self._desk.close()

    def turn(self) -> None:
        """Exchange what is ready; called by the loop's thread between two passes."""
        if self._first is None:
            with contextlib.suppress(queue.Empty):
                self._first = self._orders.get_nowait()
        order = self._first
        if order is None:
            return
        if not order.taken_back:
            order.event = self._stage.exchange(order.strategy, order.member, order.prepared)
            if not order.event:
                return                          # no room for its record: at the next turn
        self._first = None
        order.done.set()

    def _part(self, name: str) -> tuple[int, int, Any]:
        if not self._parts:
            raise UsageError("no strategy of this run has a model that can be exchanged")
        if not name and len(self._parts) > 1:
            raise UsageError(f"--strategy must be one of {', '.join(self._parts)}")
        if name and name not in self._parts:
            raise UsageError(f"strategy must be one of {', '.join(self._parts)}, was {name}")
        return self._parts[name or next(iter(self._parts))]

    def _reload(self, request: Request) -> Mapping[str, Any]:
        k, n, part = self._part(request.text("strategy", empty=True, most=64))
        path = Path(request.text("path", most=4096))
        sha256 = request.text("sha256", empty=True, most=64)
        if not self._one.acquire(timeout=PATIENCE):
            raise BusyError("another model is being loaded")
        try:
            if self._core is not None:          # of this thread alone
                others = set(range(os.cpu_count() or 1)) - {self._core}
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(0, others)
            self._check(path)
            before = part.model
            order = _Order(k, n, part.prepare(str(path), sha256 or None, self._bar or None))
            self._orders.put(order)
            if not order.done.wait(PATIENCE):
                order.taken_back = True         # unless it is being done right now
                order.done.wait(PATIENCE)
            if not order.event:
                raise BusyError(f"the signal stage had no turn, or no room for the record, within "
                                f"{PATIENCE:g} s: the old model stays")
            after = part.model
        finally:
            self._one.release()
        return {"strategy": part.name, "event": order.event, "path": str(path),
                "sha256": after.sha256, "before": before.sha256, "who": request.who}
