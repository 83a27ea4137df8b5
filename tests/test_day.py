"""Trading days begin at the midnight that the zone's clocks show, twice a year changed included."""
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import build
from hftpipe._day import Days

NANO = 10**9
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ZONES = {name: (Days(build.zone(name)), ZoneInfo(name))
         for name in ("America/New_York", "UTC", "Asia/Tokyo", "Europe/London")}


def naive(zone, utc):
    """Day and bounds by the time zone database."""
    local = (EPOCH + timedelta(microseconds=utc // 1000)).astimezone(zone)
    first = datetime(local.year, local.month, local.day, tzinfo=zone)
    next_ = first.date() + timedelta(days=1)
    last = datetime(next_.year, next_.month, next_.day, tzinfo=zone)
    return ((local.date() - EPOCH.date()).days, *(
        round((t - EPOCH) / timedelta(microseconds=1)) * 1000 for t in (first, last)))


@given(st.sampled_from(sorted(ZONES)), st.integers(86_400, 4_102_000_000))
def test_agrees_with_the_time_zone_database(name, second):
    days, zone = ZONES[name]
    for utc in (second * NANO, second * NANO + NANO - 1):
        assert days.of(utc) == naive(zone, utc)


@pytest.mark.parametrize("name", sorted(ZONES))
def test_every_day_follows_the_one_before(name):
    days, _ = ZONES[name]
    day, _, until = days.of(20 * 365 * 86_400 * NANO)
    lengths = set()
    for _ in range(40 * 365):
        assert days.of(until - 1)[0] == day
        following, since, after = days.of(until)
        assert (following, since) == (day + 1, until)
        lengths.add((after - since) // (3600 * NANO))
        day, until = following, after
    assert lengths == {23, 24, 25} if name not in ("UTC", "Asia/Tokyo") else {24}


def test_by_hand():
    days, _ = ZONES["America/New_York"]
    # 2026-03-08, clocks go forward: the day is 23 hours long.
    start = datetime(2026, 3, 8, 5, tzinfo=UTC)
    day, since, until = days.of(int(start.timestamp()) * NANO)
    assert day == (start.date() - EPOCH.date()).days
    assert (since // NANO, (until - since) // NANO) == (int(start.timestamp()), 23 * 3600)
    assert days.of(since - 1)[0] == day - 1


def test_bad_steps_are_refused():
    for steps, words in (((), "at least one"), (((5, 0), (5, 1)), "ascend"),
                         (((0, 86_400 * NANO),), "less than a day")):
        with pytest.raises(ValueError, match=words):
            Days(steps)
