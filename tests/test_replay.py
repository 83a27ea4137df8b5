"""Runs from their journals once more: every event again, or the first that is not named."""
import json
import os
import signal

import pytest

from hftpipe import schema
from hftpipe.journal import runs as journals
from tests.models.live import DEADLINE, Live, marked, runs, until

pytestmark = [pytest.mark.venue, pytest.mark.db]


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


def again(live, run=None, **options):
    """The document of a replay; *options* are what it must come to."""
    code, out, err = live.hp("replay", f"{run or live.run:x}", "--verify", "-o", "json")
    assert err == ""
    told = json.loads(out)
    assert code == (0 if told["identical"] else 9), told["difference"]
    for name, value in {"identical": True, **options}.items():
        assert told[name] == value, told["difference"]
    return told


def end(live):
    live.popen.terminate()
    assert live.end() == 0


def test_a_run_in_which_people_took_part(run):
    live = run().up().trades(3)
    for words in (("risk", "pause", "AAPL", "--reason", "test"),
                  ("risk", "resume", "AAPL", "--reason", "test"),
                  ("risk", "set", "max_daily_loss=900", "--reason", "test"),
                  ("halt", "--reason", "test")):
        code, _, err = live.hp(*words)
        assert code == 0, (words, err)
    until(lambda: live.control.trading == "halted", "halted")
    refused = live.counter("risk", "denied")
    until(lambda: live.counter("risk", "denied") > refused, "an order is refused")
    code, _, err = live.hp("resume", "--reason", "test")
    assert code == 0, err
    live.trades(live.counter("gateway", "fills") + 2)
    end(live)
    told = again(live, ended=True, unfinished=0)
    assert told["orders"] == live.document["orders"] and told["fills"] == live.document["fills"]
    assert told["events"] == live.document["events_recorded"]
    assert all(s["recorded"] == s["made_again"] for s in told["streams"].values())

    # The next run goes on with positions, counts and limits; it comes out again, too.
    second = run().up().trades(2)
    end(second)
    again(second, ended=True)
    code, out, err = second.hp("replay", f"run-{live.run:x}")
    assert code == 0 and "IDENTICAL" in out, err


@pytest.mark.parametrize("everybody", [False, True])
def test_a_run_that_was_killed(run, everybody):
    live = run().up().trades(4)
    victims = sorted(marked(live.env)) if everybody else [live.pid("hot")]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in victims:
            os.kill(pid, number)
    live.popen.wait()
    until(lambda: not marked(live.env), "everything is dead")
    code, _, err = live.hp("recover")               # what the rings hold goes into the journal
    assert code in (0, 9), err
    told = again(live)
    # At most the step that was under way in each stage.
    assert told["unfinished"] <= 3 * 64 and told["made_again"] > 100


def test_a_run_against_a_venue_that_misbehaves(tmp_path):
    live = Live(tmp_path / "run", "--for", "10min", "--chaos", "all", name="demo")
    try:
        live.up("armed", "halted").trades(5)
        until(lambda: live.counter("gateway", "orders_rejected")
              + live.counter("gateway", "orders_unknown") + live.counter("feed", "gaps") > 0,
              "something is wrong", live.popen)
        live.popen.terminate()
        live.popen.communicate(timeout=DEADLINE)
        again(live, ended=True)
    finally:
        live.close()


def test_what_is_not_as_it_was_is_named(run, tmp_path):
    live = run().up().trades(3)
    end(live)
    place = journals.find(live.path / "journal", f"{live.run:x}")
    meta = json.loads((place.directory / "run.json").read_text())
    changed = meta | {"begin": meta["begin"] | {"token_key": 4711}}
    (place.directory / "run.json").write_text(json.dumps(changed))
    told = again(live, identical=False)
    found = told["difference"]
    assert (found["stream"], found["record"], found["field"]) == ("risk", "verdict", "token")
    slot = schema.BY_NAME["stored_wide"].size
    assert len(found["recorded"]) == len(found["replayed"]) == 2 * slot
    code, out, _ = live.hp("replay")                # without --verify it is only told
    assert code == 0 and "DIFFERENT risk event" in out and "token was" in out

    meta.pop("begin")
    (place.directory / "run.json").write_text(json.dumps(meta))
    code, _, err = live.hp("replay")
    assert code == 4 and "what the stages began with" in err and "Traceback" not in err
    code, _, err = live.hp("replay", "4711")
    assert code == 4 and "wanted run 4711, found none" in err
