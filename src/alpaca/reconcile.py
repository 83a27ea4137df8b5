"""Whether the venue's orders and positions are ours, and what to do where they are not.

The logic alone: :class:`Reconciler` says what to ask (:meth:`due`), is told the answers
(:meth:`answer`) and gives back UPDATE records for the gateway.  Who asks is in ``asker``.

* An order without an answer is asked for by our own id: at once, after 0.1, 0.5, 1, 2 and 5 s and
  then every 5 s.  What is found is compared field by field before it is adopted.  What the venue
  does not know after ``absent`` never got there: it ends as REJECTED with reason ABSENT, and is
  looked for 30 s longer.
* While the stream of updates is down, and until what happened meanwhile is known, :attr:`settled`
  is false and risk lets only cancels pass.
* Open orders and positions are compared at intervals, and at any doubt: a fill whose position or
  sum is not ours, an event that only REST explains.
* An execution that the stream never told of comes from the FILL activities.  Its record has
  UPDATE_FLAG_RECONCILED: the gateway takes it only if it goes on from what is filled so far.

A difference must be seen several times before it counts, because what is under way differs for a
moment.  What cannot be mended is a *break*: the instrument is paused, then trading halts.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from hftpipe import schema
from hftpipe._clock import now_ns
from hftpipe.alpaca import messages, session
from hftpipe.alpaca._codec import parse_time
from hftpipe.alpaca.mirror import Known, Mirror

KIND, STATE = schema.ORDER_EVENT_KIND, schema.ORDER_STATE
SECOND = 10**9
UNKNOWN_AT = (0, SECOND // 10, SECOND // 2, SECOND, 2 * SECOND, 5 * SECOND)
UNKNOWN_THEN = 5 * SECOND
WATCH = (10 * SECOND, 20 * SECOND, 30 * SECOND)     # after an order was given up
AGAIN = SECOND // 4             # between two looks at a difference
SURE = 2                        # looks before something is mended
DOUBT = 5                       # looks before it is a break and its instrument is paused
BROKEN = 8                      # looks before trading halts
MEND = 15 * SECOND              # a position may differ while executions are made up for
QUIET = SECOND // 2             # an order that moved in the last so long is not compared
BURST, PER_MINUTE = 20, 20      # requests; the gateway's own limit leaves as many
PROTECT = ("cancel", "pause")   # before everything else
RESERVE = 4                     # of the burst, for single orders and cancels
HOLD, HOLD_MAX = 2 * SECOND, 60 * SECOND            # after an error of the venue
PREFIX = "hp-"


@dataclass(frozen=True, slots=True)
class Task:
    """Something to ask of the venue (or of the desk: pause).

    Attributes
    ----------
    what : str
        order, orders, positions, fills, cancel or pause.
    name : str
        Client order id; venue's order id for cancel; symbol for pause; "all" or "open" for
        orders.
    began : int, ns
    why : str
        For the record.
    """

    what: str
    name: str = ""
    began: int = 0
    why: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a task; *error* has the reason when nothing did."""

    task: Task
    value: Any = None
    error: str = ""
    status: int = 0             # HTTP status of a refusal


class Reconciler:
    """Compares one run's orders and positions with the venue's.

    Parameters
    ----------
    run : int
    symbols : sequence of str
        By instrument.
    halt : callable(str)
        Stop trading, with a reason.
    say : callable(level, event, **fields)
        For the log: "info", "warning" or "error".
    absent, orders, positions : int, ns
        ``gateway.absent_after``, ``check_orders``, ``check_positions``.
    unlimited : bool
        The venue has no rate limit.
    start : int, UTC ns
        When the run began: nothing of ours is older.
    opening : sequence of int, nanoqty, optional
        Positions it began with, by instrument; default: what the venue has at the first look.

    Attributes
    ----------
    settled : bool
        Whether orders and positions were seen to be equal since the stream is live.
    after : str
        RFC 3339 time before which nothing of this run can be.
    looks, breaks, resolved : int
        Looks that found all equal; differences; orders without an answer that have one now.
    """

    def __init__(self, run: int, symbols: Sequence[str], halt: Callable[[str], object],
                 say: Callable[..., object], *, absent: int = 35 * SECOND,
                 orders: int = 30 * SECOND, positions: int = 60 * SECOND,
                 unlimited: bool = False, start: int = 0,
                 opening: Sequence[int] | None = None) -> None:
        self.run, self.symbols = run, list(symbols)
        self.mirror = Mirror(len(symbols))
        self.settled = False
        self.live = False               # the stream of updates is
        self.looks = self.breaks = self.resolved = 0
        self._index = {symbol: i for i, symbol in enumerate(symbols)}
        self._halt, self._say = halt, say
        self._absent, self._orders, self._positions = absent, orders, positions
        self._due: dict[Task, int] = {}
        self._busy: Task | None = None
        self._seen: Counter[str] = Counter()        # looks that found a difference
        self._behind: dict[int, int] = {}           # order -> looks that saw executions we lack
        self._since: dict[str, int] = {}            # ns of the first such look
        self._values: dict[str, object] = {}        # what the difference was
        self._told: set[str] = set()                # breaks that were said
        self._opening: list[int] | None = None if opening is None else list(opening)
        self._whole = 0                 # ns, begin of the last look at all orders that found none
        self._equal = 0                 # ns, the same of positions
        self._looked: dict[str, int] = {}           # what -> ns, begin of the last look at all
        self._live_since = 0
        self._given_up: dict[int, int] = {}         # order -> looks after it was given up
        self._asked: Counter[int] = Counter()       # looks for an order without an answer
        self._hold = 0                  # ns, nothing is asked before
        self._failures = 0
        self._level, self._filled = BURST * SECOND, 0
        self._limited = not unlimited
        self._clean = True              # no difference in the look under way
        self.after = session.rfc3339(start - 60 * SECOND)

    # ---------------------------------------------------------------- what happens

    @property
    def open_breaks(self) -> int:
        """Breaks that still stand."""
        return len(self._told)

    def went_live(self, now: int) -> None:
        """Updates flow, again or for the first time."""
        self.live, self._live_since = True, now
        self._want(Task("orders", "all"), now)
        self._want(Task("positions"), now)

    def went_down(self, now: int) -> None:
        """What the venue tells from here on is lost."""
        self.live = self.settled = False

    def events(self, events: Any, now: int) -> None:
        """ORDER_EVENT records of the gateway."""
        for known in self.mirror.take(events, now):
            if known.unknown and not self._asked[known.order]:
                self._asked[known.order] = 1
                self._want(self._task(known), now)
            elif not known.unknown:
                self._asked.pop(known.order, None)

    def heard(self, rows: Any, now: int) -> None:
        """UPDATE records of the stream, as they are handed to the gateway."""
        for known in self.mirror.heard(rows):
            # Perhaps only out of order: the missing one may be next.
            self._want(self._task(known), now + SECOND)
        for row in rows:
            said = int(row["position_qty"])
            if int(row["kind"]) in (KIND.FILL, KIND.PARTIAL_FILL) and said != self._expected(
                    int(row["instrument"]), row):
                self._want(Task("positions"), now + AGAIN)

    def doubt(self, now: int) -> None:
        """Something happened that only REST can explain."""
        self._want(Task("orders", "all"), now)
        self._want(Task("positions"), now)

    def _expected(self, instrument: int, row: Any) -> int:
        """Position after a fill that the mirror does not have yet, if nothing else is under way."""
        if self._opening is None or instrument >= len(self.symbols):
            return int(row["position_qty"])
        return (self._opening[instrument] + self.mirror.moved[instrument]
                + int(row["side"]) * int(row["qty"]))

    # ---------------------------------------------------------------- what to ask

    def _task(self, known: Known) -> Task:
        return Task("order", session.client_order_id(self.run, known.order & (1 << 56) - 1))

    def _want(self, task: Task, at: int) -> None:
        self._due[task] = min(self._due.get(task, at), at)

    def due(self, now: int) -> Task | None:
        """What to ask now; nothing while an answer is waited for."""
        if self._busy is not None or now < self._hold:
            return None
        if self.live:
            for task, every in ((Task("orders", "open"), self._orders),
                                (Task("positions"), self._positions)):
                if task not in self._due and task.what in self._looked:
                    self._due[task] = self._looked[task.what] + every
        ready = [task for task, at in self._due.items() if at <= now]
        if not ready:
            return None
        chosen = min(ready, key=lambda task: (task.what not in PROTECT, self._due[task]))
        if not self._allowed(now, 1 if chosen.what in (*PROTECT, "order") else RESERVE):
            return None
        del self._due[chosen]
        self._busy = Task(chosen.what, chosen.name, now, chosen.why)
        return self._busy

    def _allowed(self, now: int, least: int) -> bool:
        """Take a token of the rate limit, if there are at least *least*."""
        if not self._limited:
            return True
        cost = 60 * SECOND // PER_MINUTE
        self._level = min(self._level + (now - (self._filled or now)) * SECOND // cost,
                          BURST * SECOND)
        self._filled = now
        if self._level < least * SECOND:
            return False
        self._level -= SECOND
        return True

    # ---------------------------------------------------------------- what comes back

    def answer(self, answer: Answer, now: int) -> list[Any]:
        """Take an answer; UPDATE records for the gateway, arrays of one or more."""
        task, self._busy = answer.task, None
        if answer.error:
            self._failed(answer, now)
            return []
        self._failures = 0
        if task.what == "order":
            return self._order(task, answer.value, now)
        if task.what == "orders":
            return self._all(task, answer.value, now)
        if task.what == "fills":
            return self._fills(task, answer.value, now)
        if task.what == "positions":
            self._look(task, answer.value, now)
        elif task.what == "cancel":
            self._say("warning", "an order that is not ours to have was cancelled",
                      venue_id=task.name, was_open=answer.value, why=task.why)
        return []

    def _failed(self, answer: Answer, now: int) -> None:
        """Ask again, later each time; the guardian halts when the venue is out of reach."""
        self._failures += 1
        wait = min(HOLD << min(self._failures - 1, 6), HOLD_MAX)
        self._hold = now + (wait if answer.status == 429 or self._failures > 1 else AGAIN)
        task = answer.task
        self._want(task_of(task), now)
        if self._failures & (self._failures - 1) == 0:      # 1, 2, 4, ...
            self._say("warning", "the venue could not be asked", what=task.what,
                      error=answer.error, failures=self._failures)

    # ---- one order

    def _order(self, task: Task, found: messages.Order | None, now: int) -> list[Any]:
        order = session.order_of(task.name, self.run)
        known = self.mirror.orders.get(order)
        if known is None:
            return []
        if found is not None:
            return self._same(known, found, now)
        if known.unknown:
            asked = self._asked[order]
            if now - known.since >= self._absent and asked >= SURE:
                self._say("error", "the venue never had an order that was sent",
                          order=task.name, symbol=self.symbols[known.instrument])
                self._asked.pop(order, None)
                self._given_up[order] = 0
                self._want(task_of(task), now + WATCH[0])
                self.resolved += 1
                return [self._end(known, KIND.REJECTED, schema.REASON.ABSENT)]
            self._asked[order] = asked + 1
            at = known.since + UNKNOWN_AT[asked] if asked < len(UNKNOWN_AT) else now + UNKNOWN_THEN
            self._want(task_of(task), max(at, now + AGAIN // 4))
        elif order in self._given_up:
            self._given_up[order] += 1
            if self._given_up[order] < len(WATCH):
                self._want(task_of(task), now + WATCH[self._given_up[order]] - WATCH[
                    self._given_up[order] - 1])
            else:
                del self._given_up[order]       # the look at all open orders goes on
        elif not known.ended and known.state != STATE.SENT:
            if self._differs(f"gone {order:x}", 0, now, known.instrument,
                             f"the venue does not know order {task.name}"):
                self._want(task_of(task), now + AGAIN)
        return []

    def _same(self, known: Known, found: messages.Order, now: int) -> list[Any]:
        """Compare an order with the venue's; records that bring ours to where that is."""
        order, key = known.order, f"{known.order:x}"
        if self._foreign(known, found):
            return []
        self._values[f"id {key}"] = found.id
        rows: list[Any] = []
        filled = session.nano(found.filled_qty)
        kind = session.STATUS_KINDS.get(found.status, KIND.ACKED)
        ends = kind != KIND.ACKED or found.status == "filled"
        if known.reason == schema.REASON.ABSENT and f"late {key}" not in self._told:
            self._given_up.pop(order, None)
            self._cancel(found, "given up, and then it came")
            self._break(f"late {key}", known.instrument,
                        f"order {found.client_order_id} came after it was given up", True)
        if known.unknown:
            rows.append(self._row(found, known, KIND.ACKED))
            self.resolved += 1
            self._say("warning", "an order without an answer is at the venue",
                      order=found.client_order_id, status=found.status)
        if filled != known.cum:
            # With records of ours on their way it is too early to tell.
            what = f"filled {filled / 1e9:.9g} at the venue, {known.cum / 1e9:.9g} here"
            if self._differs(f"sum {key}", (filled, known.cum), now, known.instrument,
                             f"order {found.client_order_id}: {what}"):
                self._behind[order] = looks = self._behind.get(order, 0) + (filled > known.cum)
                self._want(Task("fills") if looks >= SURE else self._task(known), now + AGAIN)
            return rows
        self._behind.pop(order, None)
        self._agrees(f"sum {key}")
        self._agrees(f"gone {key}")
        if ends and not known.ended and found.status != "filled":
            rows.append(self._row(found, known, kind))
        elif not ends and known.ended:
            if self._differs(f"open {key}", 0, now, known.instrument,
                             f"order {found.client_order_id} is open at the venue, "
                             f"{STATE_NAMES[known.state]} here"):
                if self._seen[f"open {key}"] == SURE + 1:
                    self._cancel(found, "ended here")
                self._want(self._task(known), now + AGAIN)
        else:
            self._agrees(f"open {key}")
        return rows

    def _foreign(self, known: Known, found: messages.Order) -> bool:
        """Whether the venue's order of our name is another one than ours: nothing is adopted."""
        wrong = session.unlike(found, self.symbols[known.instrument], known.side, known.qty,
                               known.price)
        if wrong:
            self._break(f"foreign {known.order:x}", known.instrument,
                        f"order {found.client_order_id} at the venue has {', '.join(wrong)}", True)
        return bool(wrong)

    # ---- all orders

    def _all(self, task: Task, found: Sequence[messages.Order], now: int) -> list[Any]:
        rows: list[Any] = []
        there: set[int] = set()
        self._looked[task.what] = task.began
        self._clean = True
        for one in found:
            order = session.order_of(one.client_order_id, self.run)
            known = self.mirror.orders.get(order) if order else None
            is_open = session.STATUS_KINDS.get(one.status, KIND.ACKED) == KIND.ACKED \
                and one.status != "filled"
            if known is not None:
                there.add(order)
                if now - known.last >= QUIET or known.unknown:
                    rows += self._same(known, one, now)
                elif not self.settled:
                    self._clean = False             # it moves: too early to tell
            elif order and is_open:
                if self._differs(f"strange {one.client_order_id}", 0, now,
                                 self._index.get(one.symbol),
                                 f"order {one.client_order_id} is open and not known here"):
                    if self._seen[f"strange {one.client_order_id}"] == SURE + 1:
                        self._cancel(one, "not known here")
            elif is_open and one.client_order_id.startswith(PREFIX):
                if f"orphan {one.id}" not in self._values:
                    self._values[f"orphan {one.id}"] = 0
                    self.breaks += 1
                    self._say("error", "an order of another run is open", symbol=one.symbol,
                              order=one.client_order_id)
                    self._cancel(one, "of another run")
            elif is_open and f"manual {one.id}" not in self._values:
                self._manual(task, one, found, now)
        for known in list(self.mirror.live.values()):
            if known.order in there or known.unknown or known.state in (
                    STATE.CREATED, STATE.SENT) or known.last >= task.began - QUIET:
                continue
            self._want(self._task(known), now)      # ended, or gone: it tells
            self._clean = self._clean and self.settled
        if self._clean and not rows:
            self._whole = task.began
            self.looks += 1
            self._settle(now)
        else:
            self._want(Task("orders", "all"), now + AGAIN)
        return rows

    def _manual(self, task: Task, one: messages.Order, found: Sequence[messages.Order],
                now: int) -> None:
        """An open order of somebody else; in the place of one of ours it is a break.

        That one has ended here and gave back what it held, while what a person made of it can
        still fill: a symbol in two hands is paused.
        """
        origin = next((o for o in found if o.id == one.replaces), None)
        if one.replaces and origin is None and task.name != "all":
            self._want(Task("orders", "all"), now)      # the replaced one is not open any more
            return
        self._values[f"manual {one.id}"] = 0
        if origin is not None and origin.client_order_id.startswith(PREFIX):
            self._break(f"taken {one.id}", self._index.get(one.symbol),
                        f"somebody replaced order {origin.client_order_id} by "
                        f"{one.client_order_id}, which is open", False)
            return
        self._say("warning", "an order of somebody else is open", symbol=one.symbol,
                  order=one.client_order_id)

    # ---- executions

    def _fills(self, task: Task, found: Sequence[messages.Fill], now: int) -> list[Any]:
        """Executions that the stream never told of."""
        rows: list[Any] = []
        by_order: dict[str, list[messages.Fill]] = {}
        for one in found:
            by_order.setdefault(one.order_id, []).append(one)
        for key in [k for k in self._seen if k.startswith("sum ")]:
            known = self.mirror.orders.get(int(key[4:], 16))
            value = self._values.get(key)
            if known is None or not isinstance(value, tuple):
                continue
            filled = int(value[0])
            venue_id = str(self._values.get(f"id {known.order:x}"))
            fills = by_order.get(venue_id, [])
            if sum(session.nano(f.qty) for f in fills) == filled:
                rows += self._missing(known, venue_id, fills, filled - known.cum)
            self._want(self._task(known), now + AGAIN)
        return rows

    def _missing(self, known: Known, venue_id: str, fills: Sequence[messages.Fill],
                 wanted: int) -> list[Any]:
        """Records of the executions among *fills* that are not in the mirror, *wanted* in all."""
        names = {e[:2] for e in known.executions}
        left = [f for f in fills if session.execution_of(f) not in names]
        told = {session.execution_of(f) for f in fills}
        # what is left may be the same one by another name
        mine = ((e[2], e[3]) for e in known.executions if e[:2] not in told)
        rows, cum, new = [], known.cum, []
        for qty, price, one in session.not_among(mine, left):
            cum += qty
            row = numpy.zeros(1, session.UPDATE)
            row["order"], row["instrument"], row["side"] = (
                known.order, known.instrument, known.side)
            row["kind"] = KIND.FILL if cum == known.qty else KIND.PARTIAL_FILL
            row["qty"], row["price"], row["cum_qty"] = qty, price, cum
            row["execution"], row["execution_low"] = session.execution_of(one)
            row["venue_id"], row["venue_id_low"] = session.words(venue_id)
            row["ts_recv"] = now_ns()
            row["ts_venue"] = parse_time(one.transaction_time)
            row["flags"] = schema.UPDATE_FLAG.RECONCILED
            new.append((*session.execution_of(one), qty, price))
            rows.append(row)
        if cum - known.cum != wanted:
            return []                           # some are on their way to the gateway
        if rows:
            known.executions += new
            known.covered = cum
            self.breaks += 1
            self._say("error", "executions that were never sent to us", count=len(rows),
                      symbol=self.symbols[known.instrument],
                      order=session.client_order_id(self.run, known.order & (1 << 56) - 1))
        return rows

    # ---- positions

    def _look(self, task: Task, found: Sequence[messages.Position], now: int) -> None:
        there = [0] * len(self.symbols)
        self._looked[task.what] = task.began
        for one in found:
            at = self._index.get(one.symbol)
            if at is not None:
                there[at] = session.nano(one.qty)
            elif f"position {one.symbol}" not in self._values:
                self._values[f"position {one.symbol}"] = 0
                self._say("warning", "a position in what is not traded here", symbol=one.symbol,
                          qty=one.qty)
        if self._opening is None:
            if self.mirror.fills:
                # Too late to know what was there before: what is there now less what was done.
                self._opening = [a - b for a, b in zip(there, self.mirror.moved, strict=True)]
            else:
                self._opening = there
        silent = {known.instrument for known in self.mirror.unknown()}
        equal = True
        for i, symbol in enumerate(self.symbols):
            ours = self._opening[i] + self.mirror.moved[i]
            if i in silent or there[i] - self._opening[i] in self.mirror.moved_since(
                    i, task.began - SECOND):
                self._agrees(f"position {i}")
                continue
            equal = False
            self._want(Task("orders", "all"), now)      # which order was it?
            if now - self._since.setdefault(f"position {i}", now) < MEND and any(
                    self.mirror.orders[order].instrument == i for order in self._behind
                    if order in self.mirror.orders):
                continue                                # it is being mended
            self._differs(f"position {i}", None, now, i,
                          f"{symbol}: {there[i] / 1e9:.9g} at the venue, {ours / 1e9:.9g} here")
        if equal:
            self._equal = task.began
            self.looks += 1
            self._settle(now)
        else:
            self._want(Task("positions"), now + AGAIN)

    def _settle(self, now: int) -> None:
        """Open the gate when all was equal in looks that began after the stream was live."""
        if (self.live and not self.settled
                and min(self._whole, self._equal) > self._live_since):
            self.settled = True
            self._say("info", "orders and positions are the venue's")

    # ---- differences

    def _differs(self, key: str, value: object, now: int, instrument: int | None,
                 text: str) -> bool:
        """Count a look that found a difference; true while it is worth looking again."""
        self._clean = False
        if value is not None and self._values.get(key) != value:
            self._seen[key] = 0                 # another one: things move
        self._values[key] = value
        self._seen[key] += 1
        if self._seen[key] == DOUBT:
            self._break(key, instrument, text, False)
        elif self._seen[key] == BROKEN:
            self._halt(text)
        return self._seen[key] < BROKEN

    def _agrees(self, key: str) -> None:
        """A difference is gone."""
        self._since.pop(key, None)
        if self._seen.pop(key, 0):
            self._values.pop(key, None)
            if key in self._told:
                self._told.discard(key)
                self._say("warning", "a difference to the venue is gone; what was paused stays so",
                          what=key)

    def _break(self, key: str, instrument: int | None, text: str, halt: bool) -> None:
        if key in self._told:
            return
        self._told.add(key)
        self.breaks += 1
        self._say("error", "break", what=text)
        if halt:
            self._halt(text)
        elif instrument is not None:
            self._want(Task("pause", self.symbols[instrument], 0, text), 0)

    def _cancel(self, found: messages.Order, why: str) -> None:
        self._want(Task("cancel", found.id, 0, f"{found.client_order_id}: {why}"), 0)

    # ---- records

    def _row(self, found: messages.Order, known: Known, kind: int) -> Any:
        row = session.update_row(found, self.run, known.instrument, now_ns(),
                                 found.updated_at)
        row["kind"], row["flags"] = kind, schema.UPDATE_FLAG.RECONCILED
        return row

    def _end(self, known: Known, kind: int, reason: int) -> Any:
        row = numpy.zeros(1, session.UPDATE)
        row["order"], row["instrument"], row["side"] = known.order, known.instrument, known.side
        row["kind"], row["reason"], row["flags"] = kind, reason, schema.UPDATE_FLAG.RECONCILED
        row["ts_recv"], row["cum_qty"] = now_ns(), known.cum
        return row


STATE_NAMES: Mapping[int, str] = {value: name for name, value, _ in STATE.members}


def task_of(task: Task) -> Task:
    """*task* as it is wanted again."""
    return Task(task.what, task.name, 0, task.why)
