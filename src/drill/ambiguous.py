"""``hftpipe drill venue --ambiguous N``: N answers to orders are lost, and no order is doubled.

The gateway's order path, ``alpaca._http`` and ``alpaca.session``, against a venue process whose
answers are lost at random: with the order accepted, accepted later, or never.  A lost answer is
looked up by the client order id; what is not there is now and then sent again with the same id,
too soon on purpose, and is believed to be gone only when it cannot be accepted any more.  The
venue's log then says how many orders there are of each id, and what became of them.
"""
from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy

from hftpipe import schema
from hftpipe.alpaca import session
from hftpipe.alpaca._http import AlpacaWire
from hftpipe.alpaca.rest import Rest, VenueError
from hftpipe.drill import halt
from hftpipe.drill.venue import toml
from hftpipe.errors import DeadlineError, HftpipeError
from hftpipe.venue import read_log, spawn
from hftpipe.venue.state import NANO, nano

KIND = schema.ORDER_EVENT_KIND
ORDER = schema.dtype(schema.ORDER)
SYMBOLS = ("ACME", "BOLT", "CRUX", "DYNE")
AGAIN = 0.3                     # share of the absent that is sent again too soon
TIMEOUT_MS = 100                # of an answer; for silence
MARGIN = 2.0                    # s that a late order may come after its time
ENDED = ("filled", "canceled", "expired", "rejected")
STUCK = 120.0                   # s without any progress


@dataclass
class Intent:
    """One order that we want, and what we believe of it."""

    seq: int
    record: Any
    sent: float = 0.0           # monotonic s of the last time
    times: int = 0
    end: str = ""
    filled: int = 0


@dataclass
class Report:
    """What the answers came to."""

    seed: int
    wanted: int
    ambiguous: int = 0
    again: int = 0
    lookups: int = 0
    orders: int = 0
    seconds: float = 0.0
    ends: Counter[str] = field(default_factory=Counter)
    hits: Counter[str] = field(default_factory=Counter)
    most: int = 0               # orders of one client order id
    missed: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """For ``-o json``."""
        return {"seed": self.seed, "ambiguous": self.ambiguous, "intents": sum(self.ends.values()),
                "sent_again": self.again, "lookups": self.lookups, "orders": self.orders,
                "orders_per_client_order_id": self.most, "ends": dict(self.ends),
                "faults": dict(self.hits), "seconds": round(self.seconds, 1),
                "missed": self.missed}


def faults(within: float) -> dict[str, dict[str, Any]]:
    """Most answers are lost, each way; lookups fail now and then as well."""
    return {"lost_now": {"share": 0.3}, "lost_never": {"share": 0.4},
            "lost_late": {"share": 0.4, "within": f"{within:.3f}s"},
            **{k: {"share": 0.05} for k in ("error_500", "error_502", "error_504", "reset")}}


class Driver:
    """Sends, looks up, sends again, until every end is known."""

    def __init__(self, address: Mapping[str, Any], report: Report, within: float,
                 say: Callable[[str], object]) -> None:
        self.report, self.say = report, say
        self.horizon = within + MARGIN
        self.chance = random.Random(report.seed)
        self.run = 0xD0 + report.seed
        self.rest = Rest(address["rest"], address["key"], address["secret"])
        self.wire = AlpacaWire(address["rest"], address["key"], address["secret"], self.run,
                               SYMBOLS, connections=8, rate_per_minute=0, timeout_ms=TIMEOUT_MS)
        self.intents: list[Intent] = []
        self.by_order: dict[int, Intent] = {}
        self.flying = 0
        self.due: list[tuple[float, int]] = []      # lookups, by time
        self._sending: list[Intent] = []

    def drive(self) -> None:
        """Until *wanted* answers were lost and every intent has an end.

        Raises
        ------
        DeadlineError
            If nothing happens any more.
        """
        self.wire.open()
        moved = told = time.monotonic()
        while True:
            now = time.monotonic()
            if now - told > 0.5:
                told = now
                self.say(f"{self.report.ambiguous} of {self.report.wanted} answers lost, "
                         f"{len(self.due)} to be looked up")
            progress = self._answers() + self._lookup(now)
            if self.wire.connected < 9:
                self.wire.maintain()
            progress += self._send(now)
            if progress:
                moved = now
            elif (self.report.ambiguous >= self.report.wanted and not self.flying
                  and not self.due and not self._sending):
                return
            elif now - moved > STUCK + self.horizon:
                raise DeadlineError(f"nothing happened for {now - moved:.0f} s")
            else:
                time.sleep(0.0005)

    def close(self) -> None:
        """Let go of the connections."""
        self.wire.close()
        self.rest.close()

    def _send(self, now: float) -> int:
        done = 0
        while True:
            if not self._sending:
                if self.report.ambiguous + self.flying >= self.report.wanted:
                    return done
                self._sending.append(self._new())
            one = self._sending[0]
            if self.wire.send(one.record) != 1:
                return done
            self._sending.pop(0)
            one.sent, one.times = now, one.times + 1
            self.flying += 1
            done += 1

    def _new(self) -> Intent:
        seq = len(self.intents) + 1
        row = numpy.zeros(1, ORDER)[0]
        row["order"] = schema.event_id(schema.STREAM.SIGNAL, seq)
        row["qty"], row["side"] = NANO, 1 if self.chance.random() < 0.5 else -1
        row["instrument"] = self.chance.randrange(len(SYMBOLS))
        row["type"], row["tif"] = schema.ORDER_TYPE.MARKET, schema.TIF.IOC
        row["action"] = schema.ACTION.NEW
        one = Intent(seq, row)
        self.intents.append(one)
        self.by_order[int(row["order"])] = one
        return one

    def _answers(self) -> int:
        done = 0
        while (found := self.wire.answer()) is not None:
            one = self.by_order[int(found["order"])]
            self.flying -= 1
            done += 1
            if found["kind"] == KIND.UNKNOWN:
                self.report.ambiguous += 1
                self._later(one, 0.0)
            elif found["kind"] == KIND.ACKED:
                self._later(one, 0.0)               # its end is asked for too
            elif one.times == 1:
                one.end = "rejected"
            else:                                   # of a repetition: says nothing of the first
                self._later(one, 0.0)
        return done

    def _later(self, one: Intent, delay: float) -> None:
        heapq.heappush(self.due, (time.monotonic() + delay, one.seq))

    def _lookup(self, now: float) -> int:
        """Ask for one order whose time has come."""
        if not self.due or self.due[0][0] > now:
            return 0
        one = self.intents[heapq.heappop(self.due)[1] - 1]
        self.report.lookups += 1
        began = time.monotonic()
        try:
            found = self.rest.order_by_client_id(session.client_order_id(self.run, one.seq))
        except (VenueError, DeadlineError):
            self._later(one, 0.02)
            return 1
        if found is None:
            left = one.sent + self.horizon - began
            if left <= 0:
                one.end = "never"
            elif one.times < 3 and self.chance.random() < AGAIN:
                self.report.again += 1
                self._sending.append(one)
            else:
                self._later(one, left + 0.001)
            return 1
        if found.status in ENDED:
            one.end, one.filled = found.status, session.nano(found.filled_qty)
        else:
            self._later(one, 0.05)
        return 1


def judge(intents: list[Intent], run: int, log: list[dict[str, Any]], report: Report) -> None:
    """Compare what we believe with the venue's log."""
    made: Counter[str] = Counter()
    names: dict[str, str] = {}
    status: dict[str, str] = {}
    filled: Counter[str] = Counter()
    for line in log:
        if line["kind"] == "order":
            made[line["client_order_id"]] += 1
            names[line["id"]] = line["client_order_id"]
            status[line["client_order_id"]] = "open"
        elif line["kind"] == "event":
            name = names[line["id"]]
            status[name] = {"fill": "filled"}.get(line["event"], line["event"])
            if "qty" in line:
                filled[name] += nano(line["qty"])
    report.orders, report.most = sum(made.values()), max(made.values(), default=0)
    report.missed += [f"{n} orders of {name}" for name, n in made.items() if n > 1]
    known = {session.client_order_id(run, one.seq): one for one in intents}
    report.missed += [f"{name} was never sent" for name in made.keys() - known.keys()]
    for name, one in known.items():
        report.ends[one.end or "unknown"] += 1
        truth = status.get(name, "never")
        if (one.end, one.filled) != (truth, filled[name]) and not (
                one.end == "rejected" and truth == "never"):
            report.missed.append(f"{name}: we say {one.end or 'unknown'} with "
                                 f"{one.filled / NANO:g}, the venue {truth} with "
                                 f"{filled[name] / NANO:g}")


def run(count: int, seed: int, within: float = 30.0,
        say: Callable[[str], object] = lambda words: None) -> Report:
    """Lose *count* answers; orders are accepted up to *within* seconds late."""
    report = Report(seed, count)
    began = time.monotonic()
    with halt.place() as at:
        profile, state = at / "chaos.toml", at / "venue"
        profile.write_text(toml(faults(within)))
        with spawn("--chaos", str(profile), "--state", str(state), "--seed", str(seed), "--rate",
                   "1000", "--rate-limit", "0", "--cash", "1000000000", "--symbols",
                   ",".join(SYMBOLS)) as (process, address):
            driver = Driver(address, report, within, say)
            try:
                driver.drive()
            finally:
                driver.close()
            if process.poll() is not None:
                raise HftpipeError(f"the venue ended with {process.returncode}")
        log = read_log(Path(state))
    from hftpipe.venue.chaos import hits
    report.hits = hits(log)
    judge(driver.intents, driver.run, log, report)
    report.seconds = time.monotonic() - began
    return report


def lines(report: Report) -> list[str]:
    """For people."""
    said = report.document()
    return [f"answers lost   {said['ambiguous']} of {said['intents']} intents, in "
            f"{said['seconds']} s", f"sent again     {said['sent_again']} with the same id, "
            f"{said['lookups']} lookups",
            f"orders         {said['orders']} at the venue, at most "
            f"{said['orders_per_client_order_id']} of one client order id",
            "ends           " + ", ".join(f"{n} {k}" for k, n in sorted(said["ends"].items())),
            "faults         " + ", ".join(f"{n} {k}" for k, n in sorted(said["faults"].items())),
            *[f"WRONG          {w}" for w in said["missed"]]]
