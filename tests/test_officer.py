"""What is asked reaches the gate as a figure, tightening at once, loosening written down first."""
import json
from pathlib import Path

import pytest

from hftpipe import config, schema
from hftpipe.desk import Request
from hftpipe.errors import BusyError, ConfigError, GuardError, HftpipeError, UsageError
from hftpipe.officer import FILE, NUMBER, Officer, loosens
from hftpipe.rundir import RunDir

KIND = schema.FIGURE_KIND
SYMBOLS = ["AAPL", "MSFT"]
NANO = 10**9


class Gate:
    """The stage, its link, and a gate that takes what comes."""

    def __init__(self):
        self.rows, self.full, self.seen = [], False, True

    def put_many(self, rows):
        if self.full:
            return 0
        self.rows += [{n: int(r[n]) for n in r.dtype.names} for r in rows]
        return len(rows)

    @property
    def stored(self):
        return len(self.rows), 0

    @property
    def published(self):
        return len(self.rows)

    @property
    def taken(self):
        return len(self.rows) if self.seen else 0


class Book:
    """The audit; the database may be away."""

    def __init__(self):
        self.rows, self.away = [], False

    def now(self, entry):
        if self.away:
            raise HftpipeError("cannot be written down, so it is not done: away")
        self.rows.append(("now", entry))

    def later(self, entry):
        self.rows.append(("later", entry))


class Desk:
    def __init__(self, path, limits=None):
        self.gate, self.book, self.path = Gate(), Book(), path
        limits = limits or config.loads("").risk
        self.officer = Officer(self.gate, self.gate, RunDir(path), 7, SYMBOLS, limits,
                               ["imbalance", "model"], self.book)

    def ask(self, command, **values):
        return self.officer.handlers[command](Request(command, values, "ann@host (pid 5)"))

    def kept(self):
        return json.loads((Path(self.path) / FILE).read_text())

    @property
    def last(self):
        return self.gate.rows[-1]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


# ---------------------------------------------------------------- symbols

def test_a_pause_is_a_figure_at_once_whatever_the_database_does(desk):
    desk.book.away = True
    found = desk.ask("pause", symbol="MSFT")
    assert found["applied"] and not found["loosened"] and found["symbol"] == "MSFT"
    assert (desk.last["kind"], desk.last["instrument"], desk.last["value"]) == (KIND.PAUSE, 1, 1)
    assert found["event"] == schema.event_id(schema.STREAM.OPERATOR, 1)
    ((when, entry),) = desk.book.rows
    assert (when, entry.outcome, entry.who, entry.event) == (
        "later", "done", "ann@host (pid 5)", found["event"])
    assert list(desk.kept()["pause"]) == ["MSFT"]


def test_resuming_needs_a_reason_and_is_written_down_first(desk):
    desk.ask("pause", symbol="AAPL")
    with pytest.raises(GuardError, match="resume-symbol loosens the gate: --reason must say why"):
        desk.ask("resume-symbol", symbol="AAPL")
    desk.book.away = True
    with pytest.raises(HftpipeError, match="so it is not done"):
        desk.ask("resume-symbol", symbol="AAPL", reason="lifted")
    assert len(desk.gate.rows) == 1 and list(desk.kept()["pause"]) == ["AAPL"]
    desk.book.away = False
    found = desk.ask("resume-symbol", symbol="AAPL", reason="lifted")
    assert found["loosened"] and (desk.last["kind"], desk.last["value"]) == (KIND.PAUSE, 0)
    assert desk.kept()["pause"] == {}
    outcomes = [(when, entry.outcome) for when, entry in desk.book.rows]
    assert outcomes == [("later", "done"), ("later", "refused"), ("later", "refused"),
                        ("now", "asked"), ("later", "done")]


def test_the_restricted_list(desk):
    desk.ask("restrict", symbol="AAPL", reason="compliance")
    assert (desk.last["kind"], desk.last["value"]) == (KIND.RESTRICT, 1)
    desk.ask("unrestrict", symbol="AAPL", reason="compliance agreed")
    assert (desk.last["kind"], desk.last["value"]) == (KIND.RESTRICT, 0)
    with pytest.raises(UsageError, match="symbol must be one of AAPL, MSFT, was GOOG"):
        desk.ask("pause", symbol="GOOG")


# ---------------------------------------------------------------- limits

def test_a_lower_limit_is_in_force_at_once_and_a_higher_one_wants_a_reason(desk):
    found = desk.ask("limit", key="max_daily_loss", value="500.5")
    assert (found["old"], found["new"]) == (5000 * NANO, 500_500_000_000)
    assert (desk.last["kind"], desk.last["other"], desk.last["value"]) == (
        KIND.LIMIT, NUMBER["max_daily_loss"], 500_500_000_000)
    assert desk.kept()["limit"]["max_daily_loss"]["value"] == "500.5"
    with pytest.raises(GuardError):
        desk.ask("limit", key="max_daily_loss", value="600")
    assert desk.ask("limit", key="max_daily_loss", value="600", reason="calm again")["loosened"]
    assert desk.kept()["limit"]["max_daily_loss"]["value"] == "600"     # still below 5000
    desk.ask("limit", key="max_daily_loss", value="5_000", reason="as configured")
    assert desk.kept()["limit"] == {}


def test_flags_and_rates(desk):
    with pytest.raises(GuardError):
        desk.ask("limit", key="allow_short", value="true")
    assert desk.ask("limit", key="allow_short", value="false")["loosened"] is False
    desk.ask("limit", key="max_orders_per_minute", value="30/min")
    assert desk.last["value"] == 30


@pytest.mark.parametrize(("key", "value", "error", "message"), [
    ("max_dayly_loss", "5", UsageError, "unknown limit max_dayly_loss; nearest is max_daily_loss"),
    ("max_daily_loss", "-5", ConfigError, "max_daily_loss must be a number"),
    ("max_daily_loss", "much", ConfigError, "max_daily_loss must be a number"),
    ("max_daily_loss", "0.0000000001", ConfigError, "nine decimals"),
    ("max_position_shares", "1", ConfigError, "max_order_shares: wanted at most"),
])
def test_what_is_no_limit_is_refused_and_changes_nothing(desk, key, value, error, message):
    with pytest.raises(error, match=message):
        desk.ask("limit", key=key, value=value, reason="because")
    assert desk.gate.rows == []


def test_which_way_is_looser():
    assert loosens("max_daily_loss", 5, 6) and not loosens("max_daily_loss", 6, 5)
    assert loosens("allow_short", 0, 1) and not loosens("allow_short", 1, 1)


# ---------------------------------------------------------------- the others

def test_rearm_and_breaker(desk):
    desk.ask("rearm", strategy="model", reason="looked at")
    assert (desk.last["kind"], desk.last["other"]) == (KIND.REARM, 1)
    with pytest.raises(UsageError, match="strategy must be one of imbalance, model"):
        desk.ask("rearm", strategy="x", reason="looked at")
    desk.ask("breaker", state="open")
    assert (desk.last["kind"], desk.last["value"]) == (KIND.BREAKER, schema.BREAKER.OPEN)
    with pytest.raises(GuardError):
        desk.ask("breaker", state="close")
    desk.ask("breaker", state="close", reason="understood")
    assert desk.last["value"] == schema.BREAKER.CLOSED
    with pytest.raises(UsageError, match="state must be one of open, close"):
        desk.ask("breaker", state="half", reason="x")


def test_a_gate_that_takes_nothing_is_said(desk, monkeypatch):
    monkeypatch.setattr("hftpipe.officer.APPLIED", 0.01)
    desk.gate.seen = False
    assert desk.ask("pause", symbol="AAPL")["applied"] is False
    desk.gate.full = True
    with pytest.raises(BusyError, match="has not taken"):
        desk.ask("pause", symbol="AAPL")
    desk.officer.close()
    with pytest.raises(BusyError, match="the run is ending"):
        desk.ask("pause", symbol="AAPL")


# ---------------------------------------------------------------- the next run

def test_what_was_tightened_begins_the_next_run(desk, tmp_path):
    desk.ask("pause", symbol="MSFT", reason="news")
    desk.ask("restrict", symbol="AAPL")
    desk.ask("limit", key="max_daily_loss", value="500")
    desk.ask("limit", key="max_open_orders", value="50", reason="many markets")     # looser
    again = Desk(tmp_path)
    words = again.officer.restore()
    assert words == ["pause MSFT (ann@host (pid 5): news)",
                     "restrict AAPL (ann@host (pid 5): operator)",
                     "limit max_daily_loss = 500 (ann@host (pid 5): operator)"]
    assert [(r["kind"], r["instrument"], r["other"], r["value"]) for r in again.gate.rows] == [
        (KIND.PAUSE, 1, 0, 1), (KIND.RESTRICT, 0, 0, 1),
        (KIND.LIMIT, 0, NUMBER["max_daily_loss"], 500 * NANO)]
    # what is kept counts as the present value: 600 is looser than it
    with pytest.raises(GuardError):
        again.ask("limit", key="max_daily_loss", value="600")
    again.ask("resume-symbol", symbol="MSFT", reason="over")
    assert again.kept()["pause"] == {} and list(again.kept()["restrict"]) == ["AAPL"]


def test_a_configuration_that_became_tighter_wins(desk, tmp_path):
    desk.ask("limit", key="max_daily_loss", value="500")
    again = Desk(tmp_path, config.loads("[risk]\nmax_daily_loss = 400").risk)
    assert again.officer.restore() == [] and again.gate.rows == []


@pytest.mark.parametrize("text", ["{", "[]", '{"pause": []}', '{"pause": {"AAPL": 1}}',
                                  '{"limit": {"nothing": {"value": "5"}}}',
                                  '{"limit": {"max_daily_loss": {}}}',
                                  '{"limit": {"max_daily_loss": {"value": "x"}}}'])
def test_a_damaged_file_lets_nothing_start(desk, text):
    (Path(desk.path) / FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"risk\.json"):
        desk.officer.restore()
