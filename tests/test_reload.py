"""Another model for a strategy that runs: no event is lost, what is refused changes nothing."""
import json

import pytest

from hftpipe import card, desk, reloader, schema
from hftpipe.errors import BusyError, ConfigError, UsageError
from hftpipe.models import DEMO
from tests.models.live import check_rows, command, database, runs, until
from tests.test_signal import NANO, Signals, onnx, same, walk

pytest.importorskip("onnx", reason="writing model files needs onnx")
from tests.models.network import Network


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two models that disagree."""
    place = tmp_path_factory.mktemp("two")
    return [Network(seed).write(place / f"{seed}.onnx") for seed in (2, 5)]


# ---------------------------------------------------------------- the stage

@pytest.mark.parametrize("at", [0, 1, 128, 200, 399])
def test_each_event_is_decided_by_the_model_of_its_time(two, at):
    """As if there had been two runs: before the exchange the first's answers, then the other's."""
    books = walk(400)

    def late(path):             # what is late is stored, whatever came of it: so every answer is
        return onnx(path, budget=1)

    def answers(path):
        alone = Signals([late(path)])
        alone.run(books)
        return {int(s["event"]): (s["p_down"], s["p_up"]) for s in alone.signals}

    one, other = answers(two[0]), answers(two[1])
    strategy = late(two[0])
    changed = Signals([strategy])
    changed.run(books[:at])
    prepared = strategy.prepare(str(two[1]))
    before, after = strategy.model.id, prepared[0].id
    event = changed.stage.exchange(0, 0, prepared)
    assert event and strategy.model.id == after != before
    changed.run(books[at:])
    edge = int(books["event"][at])
    for signal in changed.signals:
        cause = int(signal["event"])
        assert signal["model"] == (before if cause < edge else after)
        assert (signal["p_down"], signal["p_up"]) == (one if cause < edge else other)[cause]
    assert len(changed.signals) == len(one) == len(other) > 200
    assert one != other
    assert changed.stage.figures["m"]["strategy_reloads"] == 1


def test_what_was_there_before_goes_on(two):
    """The position and the cooldown are the strategy's, not the model's."""
    strategy, kept = onnx(two[0], cooldown=NANO), onnx(two[0], cooldown=NANO)
    a, b, books = Signals([strategy]), Signals([kept]), walk(400)
    first = same(a.run(books[:250])), same(b.run(books[:250]))
    assert first[0] == first[1]
    a.stage.exchange(0, 0, strategy.prepare(str(two[0])))
    assert same(a.run(books[250:]), "model") == same(b.run(books[250:]), "model")


# ---------------------------------------------------------------- the request

class FullStage:
    """A stage whose store link has no room for a while."""

    def __init__(self, refusals):
        self.refusals, self.exchanged = refusals, []

    def exchange(self, strategy, member, prepared):
        if self.refusals:
            self.refusals -= 1
            return 0
        self.exchanged.append((strategy, member))
        return 77


@pytest.fixture
def serve(tmp_path):
    """Reloaders in a directory of their own, closed at the end."""
    made = []

    def go(stage, strategies, check=lambda path: None):
        one = reloader.Reloader(str(tmp_path), stage, strategies, check, "", None,
                                lambda *a, **k: None)
        made.append(one)
        return one

    yield go
    for one in made:
        one.close()


def ask(tmp_path, one, **values):
    """Ask in a thread, and be the loop meanwhile."""
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(desk.ask, str(tmp_path), "reload", 30.0, at=reloader.SOCKET,
                             values={"strategy": "", "sha256": "", **values})
        until(lambda: one.turn() or future.done(), "an answer")
        return future.result()


def test_it_waits_for_room_for_its_record(tmp_path, serve, two):
    stage = FullStage(5)
    one = serve(stage, [onnx(two[0])])
    assert ask(tmp_path, one, path=str(two[0]))["event"] == 77
    assert stage.exchanged == [(0, 0)] and stage.refusals == 0


def test_without_room_nothing_is_exchanged(tmp_path, serve, two, monkeypatch):
    monkeypatch.setattr(reloader, "PATIENCE", 0.05)
    stage = FullStage(10**9)
    one = serve(stage, [onnx(two[0])])
    with pytest.raises(desk.DeskError, match="the old model stays") as refused:
        ask(tmp_path, one, path=str(two[0]))
    assert refused.value.exit_code == BusyError.exit_code
    stage.refusals = 0
    one.turn()
    assert stage.exchanged == []
    assert ask(tmp_path, one, path=str(two[0]))["event"] == 77     # and the next one is served


def test_which_strategy_is_meant_must_be_clear(tmp_path, serve, two):
    several = [onnx(two[0]), onnx(two[0])]
    several[0].name, several[1].name = "a", "b"
    stage = FullStage(0)
    one = serve(stage, several)
    for values, message in (({}, "--strategy must be one of a, b"),
                            ({"strategy": "c"}, "strategy must be one of a, b, was c")):
        with pytest.raises(desk.DeskError, match=message) as refused:
            ask(tmp_path, one, path=str(two[0]), **values)
        assert refused.value.exit_code == UsageError.exit_code
    assert ask(tmp_path, one, path=str(two[1]), strategy="b")["strategy"] == "b"
    assert stage.exchanged == [(1, 0)]


def test_a_run_without_models_says_so(tmp_path, serve, two):
    with pytest.raises(desk.DeskError, match="no strategy of this run has a model"):
        ask(tmp_path, serve(FullStage(0), []), path=str(two[0]))


def swapped(path, to):
    """The file with the names of two features exchanged on its card."""
    raw = path.read_bytes()
    said = card.parse(card.metadata(raw))
    names = said["features"]
    names[0], names[1] = names[1], names[0]
    to.write_bytes(card.stamp(raw, said))
    return to


def test_a_bad_model_is_refused_and_the_old_one_stays(tmp_path, serve, two):
    strategy, stage = onnx(two[0]), FullStage(0)
    one = serve(stage, [strategy])
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(two[1].read_bytes()[:-200])
    cut = [("path", str(junk), "junk.onnx"), ("path", str(tmp_path / "none.onnx"), "none.onnx"),
           ("path", str(swapped(two[1], tmp_path / "swapped.onnx")), "wanted feature 0 mid_return"),
           ("sha256", "0" * 64, "wanted sha256")]
    for key, value, words in cut:
        with pytest.raises(desk.DeskError, match=words) as refused:
            ask(tmp_path, one, **{"path": str(two[1]), key: value})
        assert refused.value.exit_code == ConfigError.exit_code
    assert stage.exchanged == []


# ---------------------------------------------------------------- a real run

@pytest.mark.venue
@pytest.mark.db
def test_a_run_takes_another_model_and_its_recording_gives_the_same_intents(tmp_path, two):
    """Refused first, then exchanged under load; every event is stored; the replay changes too."""
    rec = tmp_path / "run.rec"
    shelf = tmp_path / "models"
    raw = DEMO.read_bytes()
    said = card.parse(card.metadata(raw))
    other = Network(7, said["features"])
    path = other.write(tmp_path / "other.onnx", budget={"p99_us": 10_000.0})
    with runs(tmp_path / "run") as go:
        live = go("--for", "10min", "--record", rec, "--set", f"models={shelf}", name="demo")
        live.up().trades(2)
        code, _, err = live.hp("model", "reload", swapped(path, tmp_path / "swapped.onnx"))
        assert code == 4 and "wanted feature 0" in err, err
        code, out, err = live.hp("model", "pack", path, "--name", "other", "--registry", shelf)
        assert code == 0, err
        code, out, err = live.hp("model", "reload", "other@1", "--registry", shelf, "-o", "json")
        assert code == 0, err
        told = json.loads(out)
        intents = live.counter("signal", "intents")
        until(lambda: live.counter("signal", "intents") > intents + 5, "intents", live.popen)
        live.popen.terminate()
        assert live.end() == 0 and live.document["verified"]
        with database(live.path) as c:
            check_rows(c, live.run, live.recorded())
            rows = c.execute("SELECT stream, seq, model, before, member FROM hftpipe.model_reload "
                             "WHERE run = %s", (live.run,)).fetchall()
        ids = [int.from_bytes(bytes.fromhex(told[k])[:8], "little", signed=True)
               for k in ("sha256", "before")]
        assert [(schema.event_id(s, q), m, b, n) for s, q, m, b, n in rows] == [
            (told["event"], *ids, 0)]
        code, out, err = live.hp("--set", f"models={shelf}", "backtest", "--data", rec, "--verify",
                                 "-o", "json")
        assert code == 0, err
        assert json.loads(out)["intents"] == live.counter("signal", "intents")
        # Where nobody has the other model, the replay says so instead of going on without it.
        code, _, err = live.hp("--set", f"models={tmp_path / 'none'}", "backtest", "--data", rec,
                               "--verify")
        assert code == 4 and "wanted in the registry" in err


@pytest.mark.venue
def test_without_a_run_there_is_nobody_to_ask(tmp_path):
    code, _, err = command("--run-dir", tmp_path, "model", "reload", "demo")
    assert code == 3 and err.count("\n") == 1, err
