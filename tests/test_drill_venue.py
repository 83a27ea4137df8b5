"""The drill of the venue's faults: its judges on made-up logs, and real runs."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from hftpipe.drill import ambiguous, venue
from hftpipe.drill.venue import Report, Round, Row, Truth
from hftpipe.errors import UsageError
from hftpipe.venue import chaos
from tests.models.live import DEADLINE, environment, living, until

NANO = 10**9


def order(i, name=None, symbol="ACME", side="buy", qty="10", **more):
    return {"kind": "order", "ts": 1, "id": i, "client_order_id": name or f"hp-1-{i}",
            "symbol": symbol, "side": side, "qty": qty, **more}


def event(i, what, qty=None, name=None):
    more = {"qty": qty, "price": "1", "cum_qty": qty} if qty else {}
    return {"kind": "event", "ts": 2, "id": i, "client_order_id": name or f"hp-1-{i}",
            "event": what, "execution_id": f"{i}{qty}", **more}


def truth(tmp_path, *log):
    path = tmp_path / "orders.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in log))
    out = Truth(path)
    out.read()
    out.close()
    return out


# ---------------------------------------------------------------- its judges

def test_two_orders_of_one_intent_or_one_of_none_are_found():
    log = [order("a"), order("b"), order("c", "chaos-1"), order("d", "guardian")]
    assert venue.one_order(log, {"hp-1-a", "hp-1-b"}) == []
    assert venue.one_order([*log, order("e", "hp-1-a")], {"hp-1-a", "hp-1-b"}) == [
        "2 orders of hp-1-a"]
    assert venue.one_order(log, {"hp-1-a"}) == [
        "order hp-1-b is at the venue, and the database knows of none that was sent"]


def test_the_worst_that_open_orders_can_come_to_is_the_exposure():
    both = [order("a", qty="6"), order("b", qty="5")]
    assert venue.exposure(both, 11, 2) == []
    assert len(venue.exposure(both, 10, 2)) == 1
    assert venue.exposure(both, 11, 1) == [
        "2 orders of ACME were open with hp-1-b, the limit is 1"]
    assert venue.exposure([order("a", qty="6"), order("b", side="sell", qty="5")], 6, 2) == []
    other = [order("a", qty="6"), order("b", symbol="BOLT", qty="6")]
    assert venue.exposure(other, 6, 1) == []
    filled = [order("a", qty="6"), event("a", "partial_fill", "2"), event("a", "fill", "4"),
              order("b", qty="5")]
    assert venue.exposure(filled, 11, 1) == []
    assert len(venue.exposure(filled, 10, 1)) == 1
    gone = [order("a", qty="6"), event("a", "partial_fill", "2"), event("a", "canceled"),
            order("b", qty="8")]
    assert venue.exposure(gone, 10, 1) == []
    assert len(venue.exposure([*gone, order("c", qty="1")], 10, 2)) == 1
    short = [order("a", side="sell", qty="6"), event("a", "fill", "6"),
             order("b", side="sell", qty="5")]
    assert len(venue.exposure(short, 10, 1)) == 1
    foreign = [order("a", "chaos-1", qty="60"), event("a", "fill", "60", "chaos-1")]
    assert venue.exposure(foreign, 10, 0) == []


def test_positions_and_fills_are_compared_order_by_order(tmp_path):
    said = truth(tmp_path, order("a"), event("a", "partial_fill", "4"), event("a", "canceled"),
                 order("b", side="sell"), event("b", "fill", "10"))
    right = [Row("hp-1-a", "ACME", "canceled", 4 * NANO, 1, 0),
             Row("hp-1-b", "ACME", "filled", 10 * NANO, 2, 0),
             Row("hp-1-c", "ACME", "denied", 0, 0, 0)]
    assert said.positions() == {"ACME": -6 * NANO} and said.open == []
    assert venue.position(right, {"ACME": -6 * NANO}, said, False) == []
    found = venue.position(right, {"ACME": -5 * NANO, "BOLT": NANO}, said, False)
    assert found == ["ACME: the ledger holds -5, the venue -6",
                     "BOLT: the ledger holds 1, the venue 0"]
    assert venue.position(right, {}, said, True) == []          # HALTED
    wrong = [Row("hp-1-a", "ACME", "canceled", 0, 1, 0), right[1]]
    assert venue.position(wrong, {"ACME": -6 * NANO}, said, False) == [
        "hp-1-a is canceled with 0, at the venue with 4"]


def test_what_a_foreigner_does_counts_for_the_position(tmp_path):
    said = truth(tmp_path, order("a", "chaos-1"), event("a", "fill", "10", "chaos-1"))
    assert len(venue.position([], {}, said, False)) == 1


def test_an_order_without_an_end_must_have_stopped_its_symbol():
    lost = Row("hp-1-a", "ACME", "unknown", 0, 10, 20)
    assert venue.ends([lost], False) == []
    assert venue.ends([lost, Row("hp-1-b", "BOLT", "filled", NANO, 30, 0),
                       Row("hp-1-c", "ACME", "filled", NANO, 15, 0)], False) == []
    went_on = [lost, Row("hp-1-b", "ACME", "filled", NANO, 30, 0)]
    assert venue.ends(went_on, False) == [
        "hp-1-a is unknown, and ACME is not frozen: 1 orders came after it"]
    assert venue.ends(went_on, True) == []
    for status in ("open", "partial", "sent", "pending_cancel", "created"):
        assert venue.ends([Row("hp-1-a", "ACME", status, 0, 10, 0)], False)
    for status in venue.ENDS:
        assert venue.ends([Row("hp-1-a", "ACME", status, 0, 10, 0)], False) == []


def test_what_was_sent_between_a_halt_and_its_end_is_found():
    rows = [Row("hp-1-a", "ACME", "filled", 0, 999_999, 0),
            Row("hp-1-b", "ACME", "filled", 0, 3_000_000, 0)]
    assert venue.after_halt(rows, [(1_000_000, 2_000_000)]) == []
    assert venue.after_halt(rows, [(1_000_000, 5_000_000)]) == [
        "hp-1-b was sent 2.0 ms after the gate had closed"]


def test_late_orders_are_waited_for(tmp_path):
    said = truth(tmp_path, {"kind": "chaos", "ts": 5 * NANO, "fault": "lost_late", "hit": "x",
                            "delay": 30.0}, order("a"), event("a", "partial_fill", "4"),
                 {"kind": "cancel", "ts": 3, "id": "a"})
    assert said.late == 35_200_000_000 and said.hits == {"lost_late": 1}
    assert said.open == ["hp-1-a"]


def test_a_report_with_anything_wrong_is_missed():
    good, bad = Round(1, ("mute",), 7), Round(2, ("drift",), 8)
    good.hits, bad.hits = {"mute": 3}, {"drift": 1, "mute": 1}
    bad.wrong = {"position": ["ACME: the ledger holds 1, the venue 2"], "one order": []}
    report = Report(7, [good, bad])
    said = report.document()
    assert said["missed"] == [
        "round 2 (seed 8, drift): position: ACME: the ledger holds 1, the venue 2"]
    assert [n for n, i in said["invariants"].items() if not i["holds"]] == ["position"]
    assert said["faults"] == {**dict.fromkeys(chaos.KINDS, 0), "mute": 4, "drift": 1}
    text = "\n".join(venue.lines(report))
    assert "position       BROKEN" in text and "WRONG" in text
    assert Report(7, [good]).missed == []


def test_all_kinds_have_their_turn_and_every_profile_is_one():
    assert {k for mix in venue.mixes(None) for k in mix} == set(chaos.KINDS)
    for name in (*chaos.PROFILES, *chaos.KINDS):
        for mix in venue.mixes(name):
            assert chaos.parse(name, mix).faults
    with pytest.raises(UsageError, match=r"--profile must be one of stream, .*was 'rain'"):
        venue.mixes("rain")


def test_a_profile_goes_through_its_file(tmp_path):
    path = tmp_path / "x.toml"
    for mix in venue.mixes(None):
        path.write_text(venue.toml({"chaos": {"begin": "order", "stop": "9.000s"}, **mix}))
        again = chaos.load(str(path))
        assert again.faults == chaos.parse("x", mix).faults
        assert (again.begin, again.stop) == ("order", 9.0)


# ---------------------------------------------------------------- lost answers

def intent(seq, end, filled=0):
    one = ambiguous.Intent(seq, None)
    one.end, one.filled = end, filled
    return one


@pytest.mark.parametrize(("end", "filled", "log", "wrong"), [
    ("never", 0, [], None), ("rejected", 0, [], None),
    ("filled", NANO, [order("a", "hp-1-1"), event("a", "fill", "1")], None),
    ("canceled", 0, [order("a", "hp-1-1"), event("a", "canceled")], None),
    ("never", 0, [order("a", "hp-1-1"), event("a", "fill", "1")], "we say never"),
    ("filled", NANO, [], "the venue never"),
    ("", 0, [], "we say unknown"),
    ("canceled", 0, [order("a", "hp-1-1"), event("a", "partial_fill", "1"),
                     event("a", "canceled")], "the venue canceled with 1"),
    ("filled", NANO, [order("a", "hp-1-1"), event("a", "fill", "1"), order("b", "hp-1-1"),
                      event("b", "fill", "1")], "2 orders of hp-1-1"),
    ("never", 0, [order("a", "hp-1-7")], "hp-1-7 was never sent")])
def test_what_we_believe_of_a_lost_answer_is_compared(end, filled, log, wrong):
    report = ambiguous.Report(1, 1)
    ambiguous.judge([intent(1, end, filled)], 1, log, report)
    if wrong is None:
        assert report.missed == []
    else:
        assert any(wrong in m for m in report.missed), report.missed


@pytest.mark.venue
def test_lost_answers_make_no_order_twice():
    """Every way of losing one, and the same id sent again too soon; the long run has 10,000."""
    done = subprocess.run(
        [sys.executable, "-m", "hftpipe", "drill", "venue", "--ambiguous", "400", "--within",
         "2s", "--seed", "3", "-o", "json"],
        env=environment(), capture_output=True, text=True, timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["missed"] == [] and said["ambiguous"] >= 400
    assert said["orders_per_client_order_id"] == 1 and said["sent_again"] > 20
    assert said["ends"]["filled"] > 100 and said["ends"]["never"] > 10
    assert not said["ends"].keys() - {"filled", "canceled", "never", "rejected"}
    assert all(said["faults"][k] > 0 for k in ("lost_now", "lost_late", "lost_never", "error_500",
                                               "error_502", "error_504", "reset"))


# ---------------------------------------------------------------- the real thing

@pytest.mark.venue
@pytest.mark.db
def test_what_the_venue_does_wrong_breaks_no_invariant(tmp_path):
    """A minute of the rounds that `hftpipe drill venue` has in turn."""
    env = environment(TMPDIR=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "hftpipe", "drill", "venue", "--for", "60s", "--round", "8s",
         "--seed", "20", "-o", "json"],
        env=env, capture_output=True, text=True, timeout=4 * DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout)
    assert said["missed"] == [] and said["rounds"] >= 1 and said["orders"] > 0
    assert all(i["holds"] for i in said["invariants"].values())
    assert sum(said["faults"].values()) > 0
    until(lambda: not living(env, tmp_path), "no process is left")
    assert os.listdir(tmp_path) == []


def test_a_profile_that_is_none_is_refused_in_one_line():
    done = subprocess.run([sys.executable, "-m", "hftpipe", "drill", "venue", "--profile", "rain"],
                          env=environment(), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 2 and done.stderr.startswith("error: --profile must be one of")
    assert done.stderr.count("\n") == 1
