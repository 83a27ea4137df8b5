"""Past bars come in exactly or with the line named, and no return spans a gap."""
import datetime as dt
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe.analyst.history import Bar, Panel, Sampler, daily, read_csv
from hftpipe.errors import ConfigError

D = dt.date
FIRST = D(2026, 11, 2)
SYMBOLS = ["AAPL", "MSFT"]
SECOND = 10**9


def csv(path, text):
    path = path / "bars.csv"
    path.write_text(text)
    return path


# ---------------------------------------------------------------- the file

def test_a_file_of_daily_bars(tmp_path):
    found = read_csv(csv(tmp_path, (
        "Symbol, date ,close,volume,high,low\n"
        "AAPL,2026-11-24,190.5,1000,191,189.25\n"
        "GOOG,not a date,of,somebody,else,\n"
        "\n"
        "MSFT,2026-11-24,400,,,\n"
        " AAPL ,2026-11-23,188,0,188,188\n")), SYMBOLS)
    assert set(found) == {D(2026, 11, 23), D(2026, 11, 24)}
    assert found[D(2026, 11, 24)][0] == Bar(190.5, 191.0, 189.25, 1000.0)
    lone = found[D(2026, 11, 24)][1]
    assert lone.close == 400 and all(map(math.isnan, (lone.high, lone.low, lone.volume)))
    assert found[D(2026, 11, 23)][0].volume == 0


@pytest.mark.parametrize(("text", "message"), [
    ("", ":1: must name the columns date, symbol, close .* found nothing"),
    ("date,symbol\n", ":1: must name the columns .* found date, symbol"),
    ("date,symbol,close,close\n", ":1: must name the columns .* once each"),
    ("date,symbol,close\n2026-11-24,AAPL\n", ":2: must have as many fields"),
    ("date,symbol,close\n24.11.2026,AAPL,1\n", ":2: date must be YYYY-MM-DD, was '24.11.2026'"),
    ("date,symbol,close\n2026-11-24,AAPL,0\n", ":2: close must be a number above 0, was '0'"),
    ("date,symbol,close\n2026-11-24,AAPL,nan\n", ":2: close must be a number above 0, was 'nan'"),
    ("date,symbol,close\n2026-11-24,AAPL,\n", ":2: close must be a number above 0, was ''"),
    ("date,symbol,close\n2026-11-24,AAPL,1e13\n", ":2: close must be"),
    ("date,symbol,close,volume\n2026-11-24,AAPL,1,-5\n", ":2: volume must be a number from 0"),
    ("date,symbol,close,high,low\n2026-11-24,AAPL,5,4,3\n", "wanted low <= close <= high"),
    ("date,symbol,close,high,low\n2026-11-24,AAPL,5,6,5.5\n", "wanted low <= close <= high"),
    ("date,symbol,close\n2026-11-24,AAPL,1\n2026-11-24,AAPL,1\n",
     ":3: AAPL has a second bar of 2026-11-24"),
])
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_csv(csv(tmp_path, text), SYMBOLS)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.csv: No such file"):
        read_csv(tmp_path / "none.csv", SYMBOLS)
    (tmp_path / "bad.csv").write_bytes(b"date,symbol,close\n\xff\xfe\n")
    with pytest.raises(ConfigError, match="not a CSV file in UTF-8"):
        read_csv(tmp_path / "bad.csv", SYMBOLS)


# ---------------------------------------------------------------- panels

def days(*closes, start=FIRST):
    return {start + dt.timedelta(days=n): {i: Bar(c) for i, c in enumerate(row) if c}
            for n, row in enumerate(closes)}


def test_returns_are_between_neighbouring_days_that_both_have():
    panel = Panel.of(days((100, 50), (110, 0), (99, 60), (99, 66)), 2)
    found = panel.returns()
    assert found[:, 0] == pytest.approx([0.1, -0.1, 0.0])
    assert np.isnan(found[:2, 1]).all() and found[2, 1] == pytest.approx(0.1)
    assert Panel.of({}, 2).returns().shape == (0, 2)
    assert Panel.of(days((1, 2)), 2).returns().shape == (0, 2)


def test_only_recent_days_before_today_count():
    rows = days(*[(100 + n,) for n in range(60)], start=D(2026, 9, 1))
    today = D(2026, 10, 20)
    panel = daily(rows, 1, today, 10)
    assert panel.at[-1] == D(2026, 10, 19) and len(panel.returns()) == 10
    stale = daily(rows, 1, D(2027, 10, 20), 10)
    assert len(stale.returns()) == 0
    edge = daily(days((1,), (2,), start=D(2026, 10, 1)), 1, D(2026, 11, 1), 10)
    assert edge.at == (D(2026, 10, 2),)         # 30 days before today, not 31


@settings(deadline=None)
@given(st.integers(0, 12), st.integers(0, 12))
def test_the_tail_of_a_panel(count, wanted):
    panel = Panel.of(days(*[(n + 1,) for n in range(count)]), 1)
    found = panel.tail(wanted)
    assert len(found.at) == len(found.close) == min(count, wanted)
    assert found.close[:, 0].tolist() == list(range(1, count + 1))[count - len(found.at):]


# ---------------------------------------------------------------- bars of this run

def test_samples_become_bars_of_whole_periods():
    made = Sampler(1, 10 * SECOND, 100)
    for second, price, volume in [
            (3, 90, 5), (9, 91, 6),                     # not whole: it began before us
            (10, 100, 7), (14, 120, 8), (17, 95, 11), (19, 105, 12),
            (20, 106, 12), (29, 104, 20), (30, 1, 21)]:
        made.add(second * SECOND, [price], [volume])
    panel = made.panel()
    assert panel.at == (1, 2)
    assert panel.high[:, 0].tolist() == [120, 106] and panel.low[:, 0].tolist() == [95, 104]
    assert panel.close[:, 0].tolist() == [105, 104]
    assert panel.volume[:, 0].tolist() == [6, 8]
    assert panel.returns()[:, 0] == pytest.approx([104 / 105 - 1])


def test_a_gap_makes_neither_a_return_nor_a_volume():
    made = Sampler(1, SECOND, 100)
    for second in (0, 1, 2, 5, 6, 7):
        made.add(second * SECOND, [100.0 + second], [float(second)])
    panel = made.panel()
    assert panel.at == (1, 2, 3, 4, 5, 6)
    assert np.isnan(panel.close[2:4, 0]).all()
    assert np.isnan(panel.returns()[1:4, 0]).all()
    assert np.isnan(panel.volume[4, 0]) and panel.volume[5, 0] == 1


def test_an_instrument_without_a_price_has_no_bar_until_it_has_one():
    made = Sampler(2, SECOND, 100)
    for second in range(4):
        made.add(second * SECOND, [100, 50 if second >= 2 else 0], [0, 0])
    assert np.isnan(made.panel().close[:, 1]).tolist() == [True, False]


def test_a_clock_that_is_set_back_begins_anew_and_old_bars_are_forgotten():
    made = Sampler(1, SECOND, 5)
    for second in range(20):
        made.add(second * SECOND, [100.0], [0.0])
    assert made.panel().at == (14, 15, 16, 17, 18)
    made.add(7 * SECOND, [100.0], [0.0])
    assert made.panel().at == ()
    made.add(8 * SECOND, [100.0], [0.0])
    made.add(9 * SECOND, [100.0], [0.0])
    assert made.panel().at == (8,)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 1000), st.integers(0, 9)),
                max_size=80), st.integers(1, 5))
def test_bars_against_a_twin_that_keeps_every_sample(steps, period):
    made, samples, now, volume = Sampler(1, period, 1000), [], 0, 0
    for ahead, price, traded in steps:
        now, volume = now + ahead, volume + traded
        samples.append((now, price, volume))
        made.add(now, [float(price)], [float(volume)])
    panel = made.panel()
    whole = sorted({t // period for t, _, _ in samples})[1:-1]      # not the first, not the last
    assert [n for n, c in zip(panel.at, panel.close[:, 0], strict=True)
            if not math.isnan(c)] == whole
    for row, number in enumerate(panel.at):
        inside = [(p, v) for t, p, v in samples if t // period == number]
        if not inside:
            continue
        prices = [p for p, _ in inside]
        assert panel.close[row, 0] == prices[-1]
        assert (panel.high[row, 0], panel.low[row, 0]) == (max(prices), min(prices))
        before = [v for t, _, v in samples if t // period == number - 1]
        if before:
            assert panel.volume[row, 0] == inside[-1][1] - before[-1]
        else:
            assert math.isnan(panel.volume[row, 0])
