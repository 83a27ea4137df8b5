"""What the analyst knows reaches risk once, the newest first, and it never waits for anybody."""
import datetime as dt
import math
import threading
import time
from zoneinfo import ZoneInfo

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe.analyst.history import Bar
from hftpipe.analyst.run import GRACE, Analyst, Errands, Estimate, Outbox, Sources, VenueTime
from hftpipe.analyst.session import HOLD, SECOND, Always, VenueClock, Watch

KIND, SESSION = schema.FIGURE_KIND, schema.SESSION
NY = ZoneInfo("America/New_York")
NOON = round(dt.datetime(2026, 11, 25, 12, tzinfo=NY).timestamp()) * SECOND


class Link:
    """Where figures go: takes *room* of them."""

    def __init__(self, room=10**6):
        self.room, self.rows = room, []

    def put(self, rows):
        taken = rows[:self.room]
        self.room -= len(taken)
        self.rows += [{n: int(r[n]) for n in r.dtype.names} for r in taken]
        return len(taken)

    def of(self, kind):
        return [r for r in self.rows if r["kind"] == kind]


class Log:
    def __init__(self):
        self.lines = []

    def info(self, event, **values):
        self.lines.append((event, values))

    warning = info


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


# ---------------------------------------------------------------- the outbox

def test_the_newest_figure_replaces_one_that_waits_and_is_counted():
    link, dropped = Link(room=0), []
    out = Outbox(link.put, lambda: dropped.append(1))
    out.add(KIND.VAR_95, 1, 100)
    out.add(KIND.VAR_99, 2, 100)
    out.add(KIND.UNIT_VAR_95, 3, 100, instrument=1)
    assert out.send() == 0 and len(out) == 3
    out.add(KIND.VAR_95, 7, 200)                # after the others now: the oldest goes first
    out.add(KIND.UNIT_VAR_95, 4, 200, instrument=2)
    assert len(dropped) == 1 and len(out) == 4
    link.room = 3
    assert out.send() == 3
    link.room = 100
    assert out.send() == 1 and out.send() == 0
    assert [(r["kind"], r["instrument"], r["value"]) for r in link.rows] == [
        (KIND.VAR_99, 0, 2), (KIND.UNIT_VAR_95, 1, 3), (KIND.VAR_95, 0, 7),
        (KIND.UNIT_VAR_95, 2, 4)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 5))))
def test_every_figure_goes_or_gives_way_to_a_newer_one(steps):
    """The twin: the newest value of each key that was ever added is the newest that went."""
    link, dropped, newest, added = Link(room=0), [], {}, 0
    out = Outbox(link.put, lambda: dropped.append(1))
    for value, (kind, instrument, room) in enumerate(steps):
        out.add(kind, value, value, instrument=instrument)
        newest[kind, instrument] = value
        added += 1
        link.room = room if room < 4 else 0
        out.send()
    link.room = 10**6
    out.send()
    assert len(out) == 0 and added == len(link.rows) + len(dropped)
    last = {}
    for row in link.rows:
        key = row["kind"], row["instrument"]
        assert row["value"] > last.get(key, -1)
        last[key] = row["value"]
    assert last == newest


def test_figures_are_records_of_the_schema():
    seen = []
    out = Outbox(lambda rows: seen.append(rows) or len(rows), lambda: None)
    out.add(KIND.CORRELATION, -5, 11, until=22, instrument=3, other=4)
    out.send()
    assert seen[0].dtype == schema.dtype(schema.FIGURE)
    row = numpy.zeros(1, seen[0].dtype)
    row["kind"], row["value"], row["ts_computed"], row["until"] = KIND.CORRELATION, -5, 11, 22
    row["instrument"], row["other"] = 3, 4
    assert seen[0].tobytes() == row.tobytes()


# ---------------------------------------------------------------- errands

def test_errands_are_done_one_after_the_other_and_failures_are_answers():
    errands = Errands("test")
    gate = threading.Event()
    errands.ask("slow", lambda: gate.wait(60) and 1)
    errands.ask("slow", lambda: 99)             # under way: not asked twice
    errands.ask("bad", lambda: 1 // 0)
    assert list(errands.answers()) == []
    gate.set()
    found = []
    until(lambda: found.extend(errands.answers()) or len(found) == 2)
    assert found[0] == ("slow", 1, None)
    assert found[1][0] == "bad" and isinstance(found[1][2], ZeroDivisionError)
    errands.ask("slow", lambda: 5)
    until(lambda: found.extend(errands.answers()) or len(found) == 3)
    assert found[2] == ("slow", 5, None)
    errands.close()


# ---------------------------------------------------------------- the analyst

def make(sources, venue=None, calendar=None, **options):
    link, log = Link(), Log()
    calendar = calendar or Always()
    answer = venue.read if venue else lambda _, utc: calendar.at(utc)
    made = Analyst(Outbox(link.put, lambda: None), Watch(answer, NOON), sources, log,
                   venue=venue, gap=lambda: (venue or calendar).gap, **options)
    return made, link, log


def settle(made, now, condition):
    """Step at one instant until an errand's answer has arrived."""
    until(lambda: made.step(now, NOON + now) or condition())


def test_the_session_is_sent_again_each_interval_and_holds_longer_than_that():
    made, link, _ = make(Sources(), interval=SECOND)
    for now in range(0, 5 * SECOND, SECOND // 10):
        made.step(now, NOON + now)
    sessions = link.of(KIND.SESSION)
    assert [r["ts_computed"] for r in sessions] == [n * SECOND for n in range(5)]
    assert all(r["value"] == SESSION.OPEN and r["until"] == r["ts_computed"] + HOLD
               for r in sessions)


def test_equity_is_asked_when_a_day_begins_and_lapses_after_it():
    asked = []

    def equity():
        asked.append(1)
        return 10**14 + len(asked)

    made, link, log = make(Sources(equity=equity))
    settle(made, 0, lambda: link.of(KIND.EQUITY))
    midnight = round(dt.datetime(2026, 11, 26, tzinfo=NY).timestamp()) * SECOND - NOON
    (first,) = link.of(KIND.EQUITY)
    assert first["value"] == 10**14 + 1 and first["until"] == midnight + GRACE
    assert ("equity", {"nanocash": 10**14 + 1, "day": "2026-11-25"}) in log.lines
    made.step(midnight - 1, NOON + midnight - 1)
    assert len(asked) == 1
    settle(made, midnight, lambda: len(link.of(KIND.EQUITY)) == 2)
    assert link.of(KIND.EQUITY)[1]["value"] == 10**14 + 2
    assert link.of(KIND.EQUITY)[1]["until"] == midnight + 24 * 3600 * SECOND + GRACE


def test_an_errand_that_fails_is_tried_again_said_once_and_counted():
    tries = []

    def equity():
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("nobody there")
        return 5

    made, link, log = make(Sources(equity=equity))
    settle(made, 0, lambda: made.errors == 1)
    made.step(SECOND, NOON + SECOND)
    assert len(tries) == 1                      # not at once
    settle(made, 2 * SECOND, lambda: made.errors == 2)
    settle(made, 4 * SECOND, lambda: link.of(KIND.EQUITY))
    assert [v for e, v in log.lines if e == "no figure"] == [
        {"about": "equity", "why": "ConnectionError: nobody there"}]


def test_without_the_venues_clock_no_session_goes_and_it_is_said_when_it_lapses():
    answers = [VenueTime(True, None)]

    def clock():
        if not answers:
            raise TimeoutError("no answer")
        return answers.pop()

    venue = VenueClock()
    made, link, log = make(Sources(clock=clock), venue=venue)
    settle(made, 0, lambda: venue.gap == "" or venue.read(0, NOON) is not None)
    made.step(SECOND, NOON + SECOND)
    sent = len(link.of(KIND.SESSION))
    assert sent == 1
    settle(made, SECOND, lambda: made.errors == 1)
    made.step(2 * SECOND, NOON + 2 * SECOND)
    lapse = link.of(KIND.SESSION)[-1]["until"]
    assert lapse == HOLD                        # since the venue was heard, not since it was sent
    before = len(link.of(KIND.SESSION))
    for now in range(HOLD, HOLD + 5 * SECOND, SECOND):
        made.step(now, NOON + now)
    assert len(link.of(KIND.SESSION)) == before
    assert any("last heard" in str(v.get("why")) for _, v in log.lines)


def test_a_slow_venue_holds_nobody_up():
    gate = threading.Event()
    made, link, _ = make(Sources(equity=lambda: gate.wait(60) and 1))
    for now in range(0, 3 * SECOND, SECOND):
        made.step(now, NOON + now)
    assert len(link.of(KIND.SESSION)) == 3 and not link.of(KIND.EQUITY)
    gate.set()
    settle(made, 3 * SECOND, lambda: link.of(KIND.EQUITY))


def test_a_clock_that_jumps_silences_the_session():
    made, link, _ = make(Sources())
    made.step(0, NOON)
    made.step(SECOND, NOON + 5 * SECOND)
    made.step(2 * SECOND, NOON + 6 * SECOND)
    assert len(link.of(KIND.SESSION)) == 1
    assert link.of(KIND.SESSION)[0]["until"] == pytest.approx(HOLD)


# ---------------------------------------------------------------- figures of what is held

class Board:
    """A board in this process."""

    def __init__(self, *rows, basis=77):
        self.basis, self._rows = basis, [Row(*r) for r in rows]

    def rows(self):
        return self._rows


class Row:
    def __init__(self, qty=0.0, mark=0.0, volume=0.0):
        self.qty, self.mark, self.volume = (round(x * 10**9) for x in (qty, mark, volume))


TODAY = dt.date(2026, 11, 25)


def past(*columns):
    """Daily bars before today, one column of closes per instrument."""
    return {TODAY - dt.timedelta(days=len(columns[0]) - n): {
        i: Bar(c[n], c[n] * 1.01, c[n] * 0.99, 1000.0 + n) for i, c in enumerate(columns)}
        for n in range(len(columns[0]))}


def test_every_instrument_has_its_session_with_the_trading_day():
    made, link, _ = make(Sources(), instruments=3)
    made.step(0, NOON)
    rows = link.of(KIND.SESSION)
    assert [r["instrument"] for r in rows] == [0, 1, 2]
    assert {r["other"] for r in rows} == {(TODAY - dt.date(1970, 1, 1)).days}


def test_figures_from_a_history_of_days():
    closes = [100.0, 101, 99, 100, 98, 101, 102, 101, 100, 99, 101, 102, 100, 99, 98, 100, 101]
    history = past(closes, [2 * c for c in closes])
    made, link, _ = make(
        Sources(history=lambda day: history), instruments=2, board=Board((10, 100), (0, 200)),
        estimate=Estimate("historical", lookback=30, least=16), sectors=[2, 0])
    settle(made, 0, lambda: made._history is not None)
    made.step(20 * SECOND, NOON + 20 * SECOND)
    worst = min(b / a - 1 for a, b in zip(closes, closes[1:], strict=False))
    (var,) = [r for r in link.of(KIND.VAR_99) if r["ts_computed"] == 20 * SECOND]
    assert var["value"] == pytest.approx(-worst * 1000 * 1e9, rel=1e-9)
    assert var["basis"] == 77 and var["until"] == 0
    for kind, instruments in ((KIND.UNIT_VAR_95, 2), (KIND.UNIT_VAR_99, 2), (KIND.VOLATILITY, 2),
                              (KIND.VOLUME, 2), (KIND.CORRELATION, 1)):
        assert len(link.of(kind)) == instruments, kind
    (pair,) = link.of(KIND.CORRELATION)
    assert (pair["instrument"], pair["other"], pair["value"]) == (0, 1, 10**9)
    assert link.of(KIND.VOLUME)[0]["value"] == pytest.approx(1008.5e9)
    assert [(r["instrument"], r["value"]) for r in link.of(KIND.SECTOR)[-1:]] == [(0, 2)]


def test_without_enough_returns_or_a_price_there_is_no_value_at_risk():
    board = Board((10, 100))
    made, link, log = make(Sources(history=lambda day: past([100.0, 101, 99])), board=board,
                           estimate=Estimate(least=16))
    settle(made, 0, lambda: made._history is not None)
    made.step(SECOND, NOON + SECOND)
    assert not link.of(KIND.VAR_95)
    assert any("fewer than 16 common returns" in str(v.get("why")) for _, v in log.lines)
    board._rows = [Row(10, 0)]
    made.step(2 * SECOND, NOON + 2 * SECOND)
    assert any("without a price" in str(v.get("why")) for _, v in log.lines)
    board._rows = [Row(0, 0)]                   # flat is no risk, whatever is known
    made.step(3 * SECOND, NOON + 3 * SECOND)
    assert [r["value"] for r in link.of(KIND.VAR_95)] == [0]
    board._rows = [None]
    made.step(4 * SECOND, NOON + 4 * SECOND)
    assert len(link.of(KIND.VAR_95)) == 1


def test_figures_from_bars_of_this_run_are_brought_to_a_day():
    board = Board((10, 100))
    made, link, _ = make(Sources(), board=board,
                         estimate=Estimate("parametric", SECOND, lookback=30, least=5))
    for n in range(12):
        board._rows = [Row(10, 100 + n % 2)]
        made.step(n * SECOND, NOON + n * SECOND)
    (last,) = [r for r in link.of(KIND.VAR_95) if r["ts_computed"] == 11 * SECOND]
    # ten whole bars, nine returns of about one percent, 23 400 of them in a day
    assert last["value"] == pytest.approx(1.645 * 0.0105 * math.sqrt(23400) * 1010 * 1e9, rel=0.1)


def test_pnl_before_the_day_and_the_peak():
    record = {dt.date(2026, 11, 24): -5 * 10**9, dt.date(2026, 11, 23): 7 * 10**9,
              dt.date(2026, 11, 20): -100 * 10**9, dt.date(2026, 10, 30): 50 * 10**9,
              TODAY: 10**15}
    made, link, _ = make(Sources(equity=lambda: 1000 * 10**9, record=lambda day: record))
    settle(made, 0, lambda: link.of(KIND.PEAK))
    values = {kind: link.of(kind)[-1] for kind in (KIND.WEEK_PNL, KIND.MONTH_PNL, KIND.PEAK)}
    assert values[KIND.WEEK_PNL]["value"] == 2 * 10**9
    assert values[KIND.MONTH_PNL]["value"] == -98 * 10**9
    # 1000 this morning; 1005 the evening before; 998; 1098 before the bad Friday
    assert values[KIND.PEAK]["value"] == 1098 * 10**9
    assert values[KIND.PEAK]["until"] == link.of(KIND.EQUITY)[-1]["until"]


def test_an_answer_of_yesterday_is_asked_again():
    asked = []

    def record(day):
        asked.append(day)
        return {}

    gate = threading.Event()
    made, link, _ = make(Sources(record=lambda day: gate.wait(60) and record(day)))
    made.step(0, NOON)
    midnight = round(dt.datetime(2026, 11, 26, tzinfo=NY).timestamp()) * SECOND - NOON
    made.step(midnight, NOON + midnight)
    gate.set()
    settle(made, midnight + SECOND, lambda: link.of(KIND.WEEK_PNL))
    assert asked == [TODAY, dt.date(2026, 11, 26)]
