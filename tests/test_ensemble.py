"""Several strategies, one decision: the rules against naive ones, through the compiled stage."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import config, strategies, worker
from hftpipe._strategy import PyStrategy
from hftpipe.errors import ConfigError
from hftpipe.strategies._ensemble import RULES, Ensemble
from tests.chain import table
from tests.models.live import check_rows, database, runs
from tests.test_signal import N, Signals, onnx, same, walk

ALWAYS = {"qty": 10**9, "max_qty": 10**15, "cooldown": 0, "allow_short": True}


class Speaker:
    """Says what a list says, book by book; None is silence.  What it orders is for nothing."""

    def __init__(self, answers):
        self.answers, self.n, self.heard = answers, -1, []

    def on_event(self, context, add):
        self.heard.append(context.event)
        if context.event != 1:
            return None
        self.n += 1
        add(side=1, type=2, tif=3, action=1, price=10**9, qty=10**9)
        return self.answers[self.n % len(self.answers)]


def ensemble(answers, **params):
    speakers = [Speaker(a) for a in answers]
    made = Ensemble({**ALWAYS, **params}, table(), [PyStrategy(s.on_event) for s in speakers])
    made.name = "e"
    return made, speakers


def said(p):
    if p is None:
        return None
    down, flat, up = p
    return -1 if down > flat and down > up else 1 if up > flat and up > down else 0


def naive(rule, weights, threshold, answers):
    """The decision by E2, of probabilities or None."""
    weights = weights or [1] * len(answers)
    told = [(w, np.float32(p), said(p)) for w, p in zip(weights, answers, strict=True)
            if p is not None]
    if rule == "first":
        return next((s for _, _, s in told if s), 0)
    if rule in ("majority", "unanimous"):
        for side in (1, -1):
            votes = sum(w for w, _, s in told if s == side)
            if votes > sum(weights) / 2 and (rule == "majority" or votes == sum(weights)):
                return side
        return 0
    if not told:
        return 0
    mean = sum(w * p.astype(float) for w, p, _ in told) / sum(w for w, *_ in told)
    side = said(mean)
    return side if side and mean[side + 1] > threshold else 0


probabilities = st.one_of(st.none(), st.sampled_from([
    (0.7, 0.2, 0.1), (0.1, 0.2, 0.7), (0.2, 0.6, 0.2), (0.45, 0.1, 0.45), (0.4, 0.35, 0.25),
    (0.25, 0.35, 0.4), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]))


@settings(max_examples=80)
@given(st.sampled_from(RULES), st.integers(2, 5), st.data())
def test_each_rule_decides_as_it_says(rule, size, data):
    columns = [data.draw(st.lists(probabilities, min_size=8, max_size=8)) for _ in range(size)]
    weights = data.draw(st.one_of(st.just([]), st.lists(
        st.sampled_from([0.5, 1.0, 2.0]), min_size=size, max_size=size)))
    threshold = data.draw(st.sampled_from([0.0, 0.4, 0.6]))
    made, speakers = ensemble(columns, rule=rule, weights=weights, threshold=threshold, leave=1.0)
    stage = Signals([made])
    books = walk(8)
    for k in range(8):
        at = [c[k] for c in columns]
        intents = stage.run(books[k])
        wanted = naive(rule, weights, threshold, at)
        # The first order of each side is open from then on and holds back the other side (T3).
        if intents:
            assert [int(i["side"]) for i in intents] == [wanted]
        signals = [s for s in stage.signals if s["event"] == books[k]["event"]]
        if intents:
            first = signals[0]
            assert (first["member"], first["decision"], first["model"]) == (0, wanted, 0)
            assert [int(s["member"]) for s in signals[1:]] == [
                n + 1 for n, p in enumerate(at) if p is not None]
        elif wanted:
            held = stage.stage.holding(0)
            assert held["open_sell" if wanted > 0 else "open_buy"] > 0
    assert all(s.heard == [1] * 8 for s in speakers)


def test_two_models_in_one_and_what_is_late_abstains(tmp_path):
    """Of three with budgets that one never meets: the other two decide, as they do alone."""
    pytest.importorskip("onnx", reason="writing model files needs onnx")
    from tests.models.network import Network
    path = Network(2).write(tmp_path / "m.onnx")
    books = walk(N)
    alone = Signals([onnx(path, cooldown=0)])
    wanted = same(alone.run(books))
    members = [onnx(path), onnx(path), onnx(path, budget=1)]
    made = Ensemble({**ALWAYS, "qty": members[0].params["qty"], "max_qty": members[0].params[
        "max_qty"], "rule": "majority"}, table(), members)
    made.name = "e"
    both = Signals([made])
    got = same(both.run(books))
    assert got == wanted and len(wanted) > 0
    assert {int(s["member"]) for s in both.signals} == {0, 1, 2, 3}
    figures = both.stage.figures
    assert figures["e"]["strategy_answers"] == figures["m"]["strategy_answers"] > 0


def test_a_member_that_fails_fails_it():
    def broken(context, add):
        raise ZeroDivisionError("broken")
    made = Ensemble(ALWAYS, table(), [PyStrategy(broken), PyStrategy(lambda c, a: None)])
    stage = Signals([made])
    stage.books.push(walk(1)[0].tobytes())
    with pytest.raises(ZeroDivisionError, match="broken"):
        stage.stage.do_work(64)


@pytest.mark.parametrize(("params", "members", "words"), [
    ({"rule": "loudest"}, 2, "rule must be one of majority, unanimous, mean, first"),
    ({"weights": [1.0]}, 2, "wanted 2 weights"), ({"weights": [1.0, -1.0]}, 2, "above 0"),
    ({"weights": [1.0, float("nan")]}, 2, "above 0"), ({}, 1, "two or more members"),
    ({"threshold": 2.0}, 2, "threshold must be between"), ({"treshold": 0.5}, 2, "threshold")])
def test_what_makes_no_ensemble_is_refused(params, members, words):
    with pytest.raises(ConfigError, match=words):
        Ensemble(params, table(), [PyStrategy(lambda c, a: None) for _ in range(members)])


# ---------------------------------------------------------------- the configuration

TWO = """
[[strategy]]
name = "a"
kind = "onnx"
[[strategy]]
name = "both"
kind = "ensemble"
members = ["a", "b"]
params = { rule = "mean", weights = [2.0, 1.0], threshold = 0.34 }
[[strategy]]
name = "b"
kind = "onnx"
[[strategy]]
name = "imbalance"
"""


def test_a_configuration_has_ensembles():
    made = config.loads(TWO, env={})
    assert [s.name for s in made.traders] == ["both", "imbalance"]
    assert config.loads(made.dump(), env={}).strategy == made.strategy
    both, other = worker.strategies(made, table())[:2]
    assert [p.name for p in both.parts] == ["both", "a", "b"] and other.name == "imbalance"
    assert [s.name for s in strategies.make(made.strategy, table(), names=["both"])] == ["both"]


@pytest.mark.parametrize(("change", "words"), [
    (('members = ["a", "b"]', 'members = ["a"]'), "two strategies or more"),
    (('members = ["a", "b"]', 'members = ["a", "c"]'), 'no ensembles, was "c"'),
    (('members = ["a", "b"]', 'members = ["a", "both"]'), 'no ensembles, was "both"'),
    (('members = ["a", "b"]', 'members = ["a", "a"]'), "is in both already"),
    (('name = "b"', 'name = "b"\nshadow = true'), "has shadow or symbols"),
    (('name = "imbalance"', 'name = "imbalance"\nmembers = ["a", "b"]'), "is for kind ensemble"),
    (('rule = "mean"', 'rule = "loudest"'), "rule")])
def test_members_that_make_no_sense_are_refused(change, words):
    assert change[0] in TWO
    with pytest.raises(ConfigError, match=words):
        config.loads(TWO.replace(*change), env={})


@pytest.mark.venue
@pytest.mark.db
def test_a_run_trades_by_an_ensemble_and_its_recording_gives_the_same_intents(tmp_path):
    path, rec = tmp_path / "two.toml", tmp_path / "run.rec"
    path.write_text(TWO.replace("threshold = 0.34", "threshold = 0.34, cooldown = '50ms'"))
    with runs(tmp_path / "run") as go:
        live = go("-C", path, "--for", "10min", "--record", rec, name="demo").up().trades(3)
        live.popen.terminate()
        assert live.end() == 0 and live.document["verified"]
        with database(live.path) as c:
            check_rows(c, live.run, live.recorded())
            members = {m for m, in c.execute(
                "SELECT DISTINCT member FROM hftpipe.signal WHERE run = %s AND strategy = 0",
                (live.run,))}
        assert members == {0, 1, 2}
        code, _, err = live.hp("backtest", "--data", rec, "--verify")
        assert code == 0, err


def test_every_rule_is_documented():
    from pathlib import Path
    text = (Path(__file__).resolve().parent.parent / "docs/strategy.md").read_text()
    assert all(f"| `{rule}` |" in text for rule in RULES)
