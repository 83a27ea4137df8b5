"""The drill of the halt: its proof on a real run, its judge on made-up logs, its bounds."""
import json
import os
import subprocess
import sys

import pytest

from hftpipe.drill import halt
from hftpipe.errors import UsageError
from tests.models.live import DEADLINE, environment, living, until

# ---------------------------------------------------------------- the real thing


@pytest.mark.venue
@pytest.mark.db
def test_a_halt_after_each_step_lets_nothing_through(tmp_path):
    """One round of each kind; what times they take is for the bench, so its bounds are loose."""
    env = environment(TMPDIR=str(tmp_path))
    rounds = len(halt.steps())
    done = subprocess.run(
        [sys.executable, "-m", "hftpipe", "drill", "halt", "--rounds", str(rounds), "-o", "json",
         *(x for name in halt.BOUNDS for x in ("--bound", f"{name}=1000"))],
        env=env, capture_output=True, text=True, timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["missed"] == [] and found["orders_after_the_gate"] == 0
    assert found["steps"] == dict.fromkeys(halt.steps(), 1) and found["rounds"] == rounds
    assert sum(found["states"].values()) >= 1
    for name, bound in found["bounds"].items():
        assert bound["met"] and bound["value"] >= 0 and bound["bound"] == 1000, name
    assert found["flag_ns"]["p50"] <= found["flag_ns"]["p99"] <= found["flag_ns"]["max"]
    until(lambda: not living(env, tmp_path), "no process is left")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- its judge

class Stage:
    def __init__(self, **counters):
        self.counters = counters

    def counter(self, name):
        return self.counters[name]


class Scene:
    """A gateway that says it has sent *later*, and a venue's log."""

    def __init__(self, path, later):
        self.gateway = Stage(orders_sent=later)
        self.log = halt.Tail(path)


def order(i, ts=1):
    return {"kind": "order", "ts": ts, "id": i}


def event(i, name, ts=2):
    return {"kind": "event", "ts": ts, "id": i, "event": name}


@pytest.mark.parametrize(("lines", "sent", "later", "wrong"), [
    ([], 0, 0, None),
    ([order("a"), event("a", "fill")], 1, 1, None),
    ([order("a"), event("a", "new"), event("a", "canceled")], 1, 1, None),
    ([order("a"), event("a", "fill")], 0, 0, "1 orders reached the venue after the gate"),
    ([order("a"), event("a", "fill"), order("b"), event("b", "rejected")], 1, 2,
     "the gateway sent 1 orders after the gate"),
    ([order("a"), event("a", "new")], 1, 1, "open at the venue"),
    ([order("a"), event("a", "partial_fill")], 1, 1, "open at the venue"),
    ([order("a"), event("a", "new"), {"kind": "cancel", "ts": 3, "id": "a"}], 1, 1,
     "open at the venue"),
    ([], 1, 1, "1 orders that were sent are not in the venue's log")])
def test_the_venues_log_is_the_judge(tmp_path, lines, sent, later, wrong):
    log = tmp_path / "orders.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = halt.Round("any", {}, 0, 0.0)
    scene = Scene(log, later)
    halt.judge(scene, sent, found)
    scene.log.close()
    assert (found.wrong == []) if wrong is None else any(wrong in w for w in found.wrong)
    report = halt.Report(1, rounds=[found], detail={})
    assert bool(report.missed) == (wrong is not None)
    assert report.document()["orders_after_the_gate"] == sum(
        "after the gate" in w for w in found.wrong)


def test_a_log_is_read_as_it_grows_and_torn_lines_wait(tmp_path):
    path = tmp_path / "orders.jsonl"
    path.write_text(json.dumps(order("a", 10)) + "\n" + json.dumps(event("a", "new", 20))[:9])
    log = halt.Tail(path)
    log.read()
    assert log.open == {"pending_new": 1}
    with path.open("a") as file:
        file.write(json.dumps(event("a", "new", 20))[9:] + "\n" + json.dumps(order("b", 30)) + "\n")
    log.read()
    log.close()
    assert log.open == {"new": 1, "pending_new": 1} and log.orders == 2
    assert [log.at(t) for t in (5, 10, 25, 30)] == [
        ({}, 2), ({"pending_new": 1}, 1), ({"new": 1}, 1), ({"new": 1, "pending_new": 1}, 0)]


# ---------------------------------------------------------------- its bounds

def test_a_figure_beyond_its_bound_or_without_one_is_a_miss():
    bounds = halt.parse_bounds(["cancel=0.5"])
    assert bounds["cancel"] == 0.5 and bounds["helper"] == halt.BOUNDS["helper"][0]
    report = halt.Report(1, {"flag_p99": 1e-7, "command_ratio": 1.6, "cancel": 0.5}, bounds,
                         {"flag_ns": {"cores": [0], "isolated": False}})
    assert report.missed == ["command_ratio", "helper"]
    text = "\n".join(halt.lines(report))
    assert text.count("MISSED") == 2 and "not measured" in text and "100 ns" in text


@pytest.mark.parametrize("bad", ["cancel", "cancel=", "cancel=fast", "cancel=-1", "speed=1",
                                 "cancel=nan"])
def test_a_bound_must_be_one_of_them(bad):
    with pytest.raises(UsageError, match="--bound must be NAME=NUMBER with one of flag_p99"):
        halt.parse_bounds([bad])


def test_the_word_is_seen_by_the_other_core():
    cores = sorted(os.sched_getaffinity(0))
    times, pair = halt.flag(200, cores)
    if len(cores) < 2:
        assert len(times) == 0
    else:
        assert len(times) == 200 and len(set(pair)) == 2 and times[0] >= 0


def test_on_one_core_the_word_is_not_measured():
    times, pair = halt.flag(200, [0])
    assert len(times) == 0 and pair == [0]
