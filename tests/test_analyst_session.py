"""The session is right on every day of 27 years, and unknown whenever it cannot be known."""
import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe.analyst import session
from hftpipe.analyst.session import SECOND, Always, NewYork, VenueClock, Watch, clock_time, spans
from hftpipe.schema import SESSION

NY = ZoneInfo("America/New_York")
BLACKOUTS = spans(["09:30-09:45", "15:45-16:00"])
CALENDAR = NewYork(BLACKOUTS)


def ns(text):
    """UTC ns of a wall-clock time in New York."""
    return round(dt.datetime.fromisoformat(text).replace(tzinfo=NY).timestamp()) * SECOND


def state(text, calendar=CALENDAR):
    found = calendar.at(ns(text))
    return None if found is None else SESSION.label(found[0])


# ---------------------------------------------------------------- against another library

def test_every_day_and_every_close_are_those_of_another_library():
    exchange_calendars = pytest.importorskip("exchange_calendars")
    other = exchange_calendars.get_calendar("XNYS", start="2000-01-03", end="2027-10-29")
    opens = {s.date(): o for s, o in other.schedule["open"].items()}
    closes = {s.date(): c for s, c in other.schedule["close"].items()}
    bare = NewYork()
    day, last, seen, early = dt.date(2000, 1, 3), max(closes), 0, 0
    while day <= last:
        found = {}
        for at, value in bare.day(day).edges:
            found.setdefault(value, at)
        assert (SESSION.OPEN in found) == (day in closes), day
        if day in closes:
            seen += 1
            early += found[SESSION.AFTER].astimezone(NY).hour == 13
            assert found[SESSION.OPEN].timestamp() == opens[day].timestamp(), day
            assert found[SESSION.AFTER].timestamp() == closes[day].timestamp(), day
        day += dt.timedelta(days=1)
    assert seen == len(closes) and early > 50


# ---------------------------------------------------------------- by hand

@pytest.mark.parametrize(("text", "expected"), [
    # Wednesday 25 November 2026, an ordinary day, through all of its edges
    ("2026-11-25 00:00:00", "closed"), ("2026-11-25 03:59:59", "closed"),
    ("2026-11-25 04:00:00", "pre"), ("2026-11-25 09:29:59", "pre"),
    ("2026-11-25 09:30:00", "blackout"), ("2026-11-25 09:44:59", "blackout"),
    ("2026-11-25 09:45:00", "open"), ("2026-11-25 15:44:59", "open"),
    ("2026-11-25 15:45:00", "blackout"), ("2026-11-25 15:59:59", "blackout"),
    ("2026-11-25 16:00:00", "after"), ("2026-11-25 19:59:59", "after"),
    ("2026-11-25 20:00:00", "closed"), ("2026-11-25 23:59:59", "closed"),
    # Thanksgiving, and the half day after it: the last blackout and the evening move with the close
    ("2026-11-26 11:00:00", "closed"), ("2026-11-27 11:00:00", "open"),
    ("2026-11-27 12:44:59", "open"), ("2026-11-27 12:45:00", "blackout"),
    ("2026-11-27 13:00:00", "after"), ("2026-11-27 15:50:00", "after"),
    ("2026-11-27 16:59:59", "after"), ("2026-11-27 17:00:00", "closed"),
    # a weekend; Christmas Eve and Christmas; the third of July
    ("2026-11-28 11:00:00", "closed"), ("2026-12-24 12:00:00", "open"),
    ("2026-12-24 13:30:00", "after"), ("2026-12-25 12:00:00", "closed"),
    ("2023-07-03 13:00:00", "after"), ("2023-07-04 12:00:00", "closed"),
    # a holiday on a Saturday is kept on Friday, but New Year's Day is not
    ("2026-07-03 12:00:00", "closed"), ("2021-12-31 12:00:00", "open"),
    # Good Friday is no federal holiday, Columbus Day no exchange holiday
    ("2026-04-03 12:00:00", "closed"), ("2026-10-12 12:00:00", "open"),
    # closed by decree
    ("2001-09-13 12:00:00", "closed"), ("2012-10-29 12:00:00", "closed"),
    ("2025-01-09 12:00:00", "closed"),
])
def test_a_day_by_hand(text, expected):
    assert state(text) == expected


@pytest.mark.parametrize(("day", "utc_open"), [
    ("2026-03-06", 14.5), ("2026-03-09", 13.5),         # clocks went forward on 8 March
    ("2026-10-30", 13.5), ("2026-11-02", 14.5),         # and back on 1 November
])
def test_the_open_keeps_the_wall_clock_when_the_clocks_change(day, utc_open):
    at = dt.datetime.fromisoformat(f"{day}T00:00+00:00").timestamp() + utc_open * 3600
    assert NewYork().at(round(at) * SECOND - SECOND)[0] == SESSION.PRE
    assert NewYork().at(round(at) * SECOND)[0] == SESSION.OPEN


@pytest.mark.parametrize("day", ["2026-03-08", "2026-11-01"])
def test_the_hours_of_a_sunday_on_which_clocks_change_are_all_closed(day):
    at = ns(f"{day} 00:00:00")
    for hour in range(25 if day == "2026-11-01" else 23):
        assert CALENDAR.at(at + hour * 3600 * SECOND)[0] == SESSION.CLOSED


def test_beyond_what_was_announced_nothing_is_said_and_it_says_why():
    calendar = NewYork(known_until=dt.date(2026, 12, 31))
    assert calendar.at(ns("2026-12-31 15:00:00")) == (
        SESSION.OPEN, ns("2026-12-31 16:00:00"))
    assert calendar.at(ns("2026-12-31 23:59:59"))[1] == ns("2027-01-01 00:00:00")
    assert calendar.at(ns("2027-01-01 00:00:00")) is None
    assert "2026-12-31" in calendar.gap and "2027-01-01" in calendar.gap
    assert calendar.at(ns("1999-12-31 23:59:59")) is None
    assert state("2026-12-31 11:00:00", calendar) == "open" and calendar.gap == ""


def test_other_hours_are_configured():
    calendar = NewYork(spans(["10:00-10:30", "10:15-10:20", "12:55-13:05"]),
                       premarket=dt.time(9, 30), aftermarket=dt.timedelta())
    assert state("2026-11-25 09:29:59", calendar) == "closed"
    assert state("2026-11-25 09:30:00", calendar) == "open"
    assert state("2026-11-25 10:17:00", calendar) == state("2026-11-25 10:25:00", calendar)
    assert state("2026-11-25 10:25:00", calendar) == "blackout"
    assert state("2026-11-25 10:30:00", calendar) == "open"
    assert state("2026-11-25 13:04:00", calendar) == "blackout"
    assert state("2026-11-25 16:00:00", calendar) == "closed"
    # half day: what would lie behind the close is not there
    assert state("2026-11-27 12:57:00", calendar) == "blackout"
    assert state("2026-11-27 13:01:00", calendar) == "closed"


def test_times_that_are_none_are_refused():
    for text in ("9:30", "25:00", "09:60", "0930", ""):
        with pytest.raises(ValueError):
            clock_time(text)
    for text in ("09:45-09:30", "09:30-09:30", "09:30"):
        with pytest.raises(ValueError):
            spans([text])


@settings(deadline=None)
@given(st.integers(ns("2000-01-03 00:00:00"), ns("2028-12-31 23:59:59")))
def test_the_answer_holds_until_it_says_and_changes_or_is_renewed_then(utc):
    """The twin reads the wall clock; the session is constant from now to `until`."""
    value, until = CALENDAR.at(utc)
    assert utc < until <= utc + 25 * 3600 * SECOND
    assert CALENDAR.at(until - 1) == (value, until)
    wall = dt.datetime.fromtimestamp(utc // SECOND, dt.UTC).astimezone(NY)
    minute = wall.hour * 60 + wall.minute
    if not CALENDAR.trades_on(wall.date()):
        assert value == SESSION.CLOSED
        return
    close = 13 * 60 if CALENDAR.closes(wall.date()) == dt.time(13) else 16 * 60
    expected = (
        SESSION.CLOSED if minute < 240 or minute >= close + 240 else
        SESSION.PRE if minute < 570 else SESSION.AFTER if minute >= close else
        SESSION.BLACKOUT if minute < 585 or minute >= close - 15 else SESSION.OPEN)
    assert value == expected


# ---------------------------------------------------------------- the venue's clock

def test_the_venues_clock_counts_for_a_while_and_never_past_its_next_change():
    clock = VenueClock(hold=3 * SECOND)
    assert clock.read(0, 0) is None and "not heard" in clock.gap
    clock.heard(10 * SECOND, True, None)
    assert clock.read(10 * SECOND, 500) == (SESSION.OPEN, 500 + 3 * SECOND)
    assert clock.read(12 * SECOND, 500) == (SESSION.OPEN, 500 + SECOND)
    assert clock.read(13 * SECOND, 500) is None and "last heard 3 s ago" in clock.gap
    clock.heard(20 * SECOND, False, 10**15)
    assert clock.read(20 * SECOND, 10**15 - 7) == (SESSION.CLOSED, 10**15)
    assert clock.read(20 * SECOND, 10**15) is None and "just changed" in clock.gap


# ---------------------------------------------------------------- the figure

def at(calendar):
    return lambda _, utc: calendar.at(utc)


def test_a_figure_holds_for_a_few_seconds_and_not_beyond_the_session():
    watch = Watch(at(Always()), 0)
    assert watch.figure(100, 100) == (SESSION.OPEN, 100 + session.HOLD)
    close = ns("2026-11-25 16:00:00")
    mono = 5 * 3600 * SECOND
    watch = Watch(at(NewYork()), close - SECOND - mono)
    assert watch.figure(mono, close - SECOND) == (SESSION.OPEN, mono + SECOND)
    assert watch.figure(mono + SECOND, close) == (SESSION.AFTER, mono + SECOND + session.HOLD)


@pytest.mark.parametrize("step", [-3600 * SECOND, -SECOND, SECOND, 3600 * SECOND])
def test_after_a_jump_of_the_clock_nothing_is_said_until_it_has_settled(step):
    watch = Watch(at(Always()), 1000)
    assert watch.figure(0, 1000) is not None
    utc = 1000 + step
    assert watch.figure(SECOND, utc + SECOND) is None and watch.jumps == 1
    assert watch.figure(SECOND + session.SETTLE - 1, utc + SECOND + session.SETTLE - 1) is None
    assert watch.figure(SECOND + session.SETTLE, utc + SECOND + session.SETTLE) is not None
    assert watch.jumps == 1


def test_slow_drift_is_followed_and_a_second_jump_starts_over():
    watch = Watch(at(Always()), 0)
    for n in range(1, 200):                     # 0.1 s each second: absurd, and still no jump
        assert watch.figure(n * SECOND, n * SECOND + n * SECOND // 10) is not None
    watch = Watch(at(Always()), 0)
    assert watch.figure(0, 2 * SECOND) is None
    assert watch.figure(5 * SECOND, 20 * SECOND) is None and watch.jumps == 2
    assert watch.figure(10 * SECOND, 25 * SECOND) is None       # the first would have settled
    assert watch.figure(15 * SECOND, 30 * SECOND) is not None
