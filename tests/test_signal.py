"""What the signal stage makes of its strategies: budgets, shadows, figures."""
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import _clock, _control, build, config, schema, strategies
from hftpipe._host import WAIT_SLEEP, Host
from hftpipe._strategy import PyStrategy
from hftpipe.errors import ConfigError
from hftpipe.models import DEMO
from hftpipe.strategies._onnx import Onnx
from tests.chain import table

NANO = 10**9
N = 192                         # books: features are warm after 128
LATE, UNUSED, SHADOW = (schema.SIGNAL_FLAG.LATE, schema.SIGNAL_FLAG.UNUSED,
                        schema.SIGNAL_FLAG.SHADOW)


class Signals:
    """A signal stage alone: books in; intents, and what is stored, out."""

    def __init__(self, made, instruments=1, control=None):
        self.links = build.PrivateLinks()
        self.table = table(instruments)
        (self.stage,) = build.stages(("signal",), self.links, config.loads("", env={}), self.table,
                                     strategies=lambda: made, control=control)
        self.books = self.links.producer("book.signal")
        self.out = self.links.consumer("signal.risk")
        self.store = self.links.consumer("signal.store")
        self.signals = []

    def run(self, books):
        """Drive BOOK records one by one; the intents, as rows without identity and hop."""
        got = []
        for row in np.atleast_1d(books):
            assert self.books.push(row.tobytes())
            while self.stage.do_work(64):
                pass
            got += self.take()
        return got

    def take(self):
        got = []
        while (data := self.out.pop()) is not None:
            got.append(np.frombuffer(data, schema.dtype(schema.INTENT))[0])
        while (slot := self.store.pop()) is not None:
            head = np.frombuffer(slot[:64], schema.dtype(schema.ENVELOPE))[0]
            record = schema.BODIES[int(head["record"])]
            if record is schema.SIGNAL:
                self.signals.append(np.frombuffer(slot[64:128], schema.dtype(record))[0])
        self.out.flush()
        self.store.flush()
        return got

    def answers(self):
        """SIGNALs so far, as one array."""
        return np.array(self.signals, schema.dtype(schema.SIGNAL))


def same(intents, *also):
    """What of intents may be compared between runs that store other things."""
    skip = {"link_seq", "event", "hop", "strategy", *also}
    return [tuple(i[n] for n in i.dtype.names if n not in skip) for i in intents]


def walk(count, seed=1, instruments=1, now=None):
    """BOOK records of a random walk; *now*: received just now, else at made-up times."""
    random = np.random.default_rng(seed)
    out = np.zeros(count, schema.dtype(schema.BOOK))
    mid = np.cumsum(random.integers(-1, 2, count)) + 10_000
    tick = NANO // 100
    out["bid"], out["ask"] = (mid - 1) * tick, (mid + 1) * tick
    for side in ("bid", "ask"):
        out[f"{side}_qty"] = random.integers(1, 50, count) * NANO
        out[f"{side}_depth"] = out[f"{side}_qty"] * 3
    out["event"] = [schema.event_id(schema.STREAM.FEED, i + 1) for i in range(count)]
    out["instrument"] = np.arange(count) % instruments
    out["ts_recv"] = 10**12 + np.arange(count) * 10**7 if now is None else now
    return out


# ---------------------------------------------------------------- budgets

@pytest.fixture(scope="module")
def lively(tmp_path_factory):
    """A model of random weights: it never says flat for long."""
    pytest.importorskip("onnx", reason="writing model files needs onnx")
    from tests.models.network import Network
    return Network(2).write(tmp_path_factory.mktemp("lively") / "lively.onnx")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A model that is slow on purpose: a chain of large products before the real one."""
    pytest.importorskip("onnx", reason="writing model files needs onnx")
    from onnx import helper, numpy_helper

    from tests.models.network import Network
    network = Network(2)
    model = network.model()
    size = 600
    wide, square = np.zeros((16, size), np.float32), np.zeros((size, size), np.float32)
    nodes = [helper.make_node("MatMul", ["features", "wide"], ["s0"])]
    nodes += [helper.make_node("MatMul", [f"s{i}", "square"], [f"s{i + 1}"]) for i in range(4)]
    nodes += [helper.make_node("MatMul", ["s4", "back"], ["none"]),
              helper.make_node("Add", ["features", "none"], ["really"])]
    for node in model.graph.node:
        node.input[:] = ["really" if name == "features" else name for name in node.input]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    model.graph.initializer.extend([
        numpy_helper.from_array(wide, "wide"), numpy_helper.from_array(square, "square"),
        numpy_helper.from_array(np.zeros((size, 16), np.float32), "back")])
    return network.write(tmp_path_factory.mktemp("slow") / "slow.onnx", model)


def onnx(path=DEMO, **params):
    """With a budget that nothing exceeds, unless told another."""
    made = strategies.load("onnx", {"model": str(path), "threshold": 0.0, "leave": 0.0,
                                    "cooldown": 0, "allow_short": True, "budget": 10 * NANO,
                                    **params}, table())
    made.name = "m"
    return made


def now_walk(count):
    """Books that are received as they are driven; a generator, so that each is fresh."""
    for row in walk(count, now=0):
        row["ts_recv"] = _clock.now_ns()
        yield row


def page():
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, stages=("feed", "book", "signal"))
    return _control.Control(memory)


def maintain(stage, control=None):
    """Let a host run *stage* until it is drained, which maintains it on the way."""
    control = control or page()
    control.request_stop(_control.DRAIN)
    Host([stage], control, WAIT_SLEEP).run()


def drive(stage, count=N):
    return [i for row in now_walk(count) for i in stage.run(row)]


def test_skip_takes_no_decision_from_a_late_answer(slow):
    quick, late = Signals([onnx(slow)]), Signals([onnx(slow, budget=1_000)])
    assert drive(quick) and not drive(late)
    counts = late.stage.figures["m"]
    assert counts["strategy_late"] == counts["strategy_answers"] > 20
    said = late.answers()
    assert len(said) == counts["strategy_answers"]      # each is stored, for nothing else shows it
    assert (said["flags"] == LATE | UNUSED).all() and (said["decision"] == 0).all()
    assert (said["elapsed"] > 1_000).all() and (said["confidence"] > 0).all()
    assert quick.stage.figures["m"]["strategy_late"] == 0
    assert (quick.answers()["flags"] == 0).all()
    maintain(late.stage)
    ((name, level, text),) = late.stage.notices()
    assert (name, level) == ("m", "warning") and "answers took longer than 1 us: skip" in text
    maintain(late.stage)
    assert late.stage.notices() == []                   # until twice as many
    maintain(quick.stage)
    assert quick.stage.notices() == []


def test_stale_takes_a_late_answer_while_its_event_is_young(slow):
    young = Signals([onnx(slow, budget=1_000, on_miss="stale", stale_age=3600 * NANO)])
    old = Signals([onnx(slow, budget=1_000, on_miss="stale", stale_age=1)])
    assert drive(young) and not drive(old)
    assert (young.answers()["flags"] == LATE).all() and len(young.answers())
    assert (old.answers()["flags"] == LATE | UNUSED).all() and len(old.answers())


def test_halt_stops_trading_and_not_the_stage(slow):
    control = page()
    stage = Signals([onnx(slow, budget=1_000, on_miss="halt")], control=control)
    assert control.resume(control.halt_epoch) and control.armed
    assert not drive(stage)
    assert control.trading == "halted" and control.halt_epoch == 2      # once, however many late
    assert stage.stage.figures["m"]["strategy_halts"] > 20
    assert control.resume(2)                            # and again: it is still too slow
    assert not drive(stage)
    assert control.halt_epoch == 3
    stage.stage.check()                                 # nothing is broken


def test_without_a_budget_of_its_own_the_cards_counts():
    assert onnx(budget=0).budget == 50_000 and onnx(budget=7_000).budget == 7_000


@pytest.mark.parametrize(("params", "message"), [
    ({"on_miss": "stop"}, "on_miss must be one of skip, stale, halt, was 'stop'"),
    ({"budget": -1}, "budget must be between 0 and"),
    ({"stale_age": -1}, "stale_age must be between 0 and"),
    ({"budget": "50us"}, "budget must be int, was '50us'")])
def test_a_budget_that_makes_no_sense_is_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        onnx(**params)


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1), st.sampled_from(["skip", "stale", "halt"]), st.integers(0, 100))
def test_a_replay_decides_as_the_run_did_whatever_was_late(lively, share, on_miss, seed):
    """Lateness is the clock's; a replay is told it, and everything else follows."""
    times = onnx(lively).model.measure(400)
    budget = max(1, int(np.quantile(times, share)))
    run = Signals([onnx(lively, budget=budget, on_miss=on_miss, stale_age=300_000)])
    books = walk(N, seed, now=0)
    wanted = []
    for row in books:
        row["ts_recv"] = _clock.now_ns()
        wanted += run.run(row)
    said = run.answers()
    late = said[said["flags"] & LATE != 0]
    again = onnx(lively, budget=1)                          # as wrong as can be, if it were asked
    again.replay(late["event"].tolist(), late["flags"].tolist())
    replayed = Signals([again])
    assert same(replayed.run(books)) == same(wanted)
    names = [n for n in said.dtype.names if n not in ("link_seq", "elapsed")]
    assert replayed.answers()[names].tolist() == said[names].tolist()


def test_in_a_backtest_nothing_is_late(slow):
    _clock.set_virtual(10**12, 10**12)
    try:
        stage = Signals([onnx(slow, budget=1)])
        assert stage.run(walk(N))
    finally:
        _clock.unset_virtual()
    assert stage.stage.figures["m"]["strategy_late"] == 0


# ---------------------------------------------------------------- shadows

def momentum(side=1, answer=None):
    """Plain Python: an order at each third event, and perhaps an answer."""
    seen = 0

    def on_event(c, add):
        nonlocal seen
        seen += 1
        if seen % 3 == 0:
            add(side=side, type=2, tif=3, action=1, price=int(c.book["ask"]), qty=2 * c.lot)
            add(side=-side, type=2, tif=3, action=1, price=int(c.book["bid"]), qty=5 * c.lot)
        return answer
    made = PyStrategy(on_event)
    made.name = "py"
    return made


def shadow(strategy, name="s"):
    strategy.shadow, strategy.name = True, name
    return strategy


MAKE = {
    "onnx": lambda: strategies.load("onnx", {"threshold": 0.0, "cooldown": 0,
                                             "budget": 10 * NANO}, table(2)),
    "imbalance": lambda: strategies.load("imbalance", {"threshold": 0.1, "cooldown": 0}, table(2)),
    "python": momentum,
    "raises": lambda: PyStrategy(lambda c, add: 1 / 0),
    "greedy": lambda: PyStrategy(lambda c, add: [add(
        side=1, type=2, tif=3, action=1, price=int(c.book["ask"]), qty=c.lot)
        for _ in range(40)] and None),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["onnx", "imbalance", "python"]), min_size=1, max_size=3),
       st.lists(st.tuples(st.sampled_from(sorted(MAKE)), st.integers(0, 3)), min_size=1,
                max_size=4), st.integers(0, 1000))
def test_a_shadow_never_changes_the_stream_of_intents(traders, shadows, seed):
    books = walk(2 * N, seed, 2)
    plain = Signals([MAKE[name]() for name in traders], 2)
    wanted = plain.run(books)
    mixed = [MAKE[name]() for name in traders]
    order = list(range(len(traders)))                   # strategy index of each trader
    for name, at in shadows:
        at = min(at, len(mixed))
        mixed.insert(at, shadow(MAKE[name]()))
        order = [i + (i >= at) for i in order]
    stage = Signals(mixed, 2)
    got = stage.run(books)
    assert same(got) == same(wanted)
    assert [i["strategy"] for i in got] == [order[i["strategy"]] for i in wanted]
    mine = [s for s in stage.signals if not s["flags"] & SHADOW]
    assert [order[s["strategy"]] for s in plain.signals] == [s["strategy"] for s in mine]
    assert {s["strategy"] for s in stage.signals if s["flags"] & SHADOW}.isdisjoint(order)
    stage.stage.check()


def test_what_a_shadow_says_and_wants_is_stored(lively):
    books = walk(N)
    stage = Signals([onnx(lively, threshold=1.0, leave=1.0), shadow(onnx(lively), "model"),
                     shadow(momentum(-1), "py2"), shadow(momentum(1, (0.1, 0.2, 0.7)), "py3")])
    alone = Signals([onnx(lively, threshold=1.0, leave=1.0)])       # asked, never trading
    stage.run(books)
    alone.run(books)
    said = stage.answers()
    model = said[said["strategy"] == 1]
    assert len(model) == alone.stage.figures["m"]["strategy_answers"] > 20
    assert (model["flags"] & SHADOW != 0).all() and set(model["model"]) == {onnx(lively).model.id}
    assert (model["wanted"] != 0).any()
    wish = said[said["strategy"] == 2]                  # no model: told when it wants something
    assert len(wish) == N // 3 and (wish["wanted"] == 3 * NANO).all() and (wish["model"] == 0).all()
    both = said[said["strategy"] == 3]
    assert len(both) == N and (both["decision"] == 1).all()
    assert both["wanted"].tolist() == [0, 0, -3 * NANO] * (N // 3)
    np.testing.assert_array_equal(both["p_up"], np.float32(0.7))
    figures = stage.stage.figures
    assert figures["py2"]["strategy_orders"] == figures["py3"]["strategy_orders"] == 2 * N // 3
    assert figures["model"]["strategy_orders"] == np.count_nonzero(model["wanted"])
    assert stage.stage.counters["intents"] == 0 == stage.stage.holding(0)["open_buy"]


def test_a_shadow_that_gives_up_sleeps_and_says_so():
    calls = 0

    def breaks(c, add):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise ZeroDivisionError("mine")

    stage = Signals([momentum(), shadow(PyStrategy(breaks), "bad")])
    assert len(stage.run(walk(30))) == 20
    assert calls == 5 and stage.stage.figures["bad"]["strategy_failures"] == 1
    assert stage.stage.notices() == [("bad", "error", "shadow gave up: mine")]
    assert stage.stage.notices() == []
    stage.stage.check()


def test_a_shadow_that_wants_to_halt_does_not(slow):
    control = page()
    stage = Signals([shadow(onnx(slow, budget=1_000, on_miss="halt"))], control=control)
    assert control.resume(control.halt_epoch)
    drive(stage)
    assert control.armed and stage.stage.figures["s"]["strategy_halts"] > 20


def test_a_configuration_has_shadows():
    settings_ = config.loads('[[strategy]]\nname = "a"\nkind = "imbalance"\nsymbols = ["AAPL"]\n'
                             '[[strategy]]\nname = "b"\nkind = "onnx"\nshadow = true\n'
                             'symbols = ["AAPL"]\nparams = { budget = "20us", on_miss = "stale", '
                             'stale_age = "1ms" }\n', env={})
    a, b = strategies.make(settings_.strategy, build.instruments(settings_))
    assert (a.name, a.shadow, b.name, b.shadow) == ("a", False, "b", True)
    (core,) = b.parts
    assert isinstance(core, Onnx) and core.name == "b"
    assert (core.budget, core.stale_age, core.params["on_miss"]) == (20_000, 10**6, "stale")


# ---------------------------------------------------------------- figures

def test_the_page_tells_each_strategys_figures():
    control = page()
    stage = Signals([onnx(), shadow(momentum(1, (0.5, 0.2, 0.3)), "pyth")], control=control)
    assert control.strategies == {}
    stage.run(walk(N))
    maintain(stage.stage, control)
    assert list(control.strategies) == ["m", "pyth"]
    assert control.strategies == stage.stage.figures
    m = control.strategies["m"]
    assert m["strategy_model"] == onnx().model.id and m["strategy_answers"] > 10
    assert m["strategy_accuracy"] is None               # nobody knows yet
    from prometheus_client.exposition import generate_latest

    from hftpipe import metrics
    text = generate_latest(metrics.registry(lambda: control)).decode()
    assert f'hftpipe_strategy_answers_total{{strategy="m"}} {m["strategy_answers"]}.0' in text
    assert f'hftpipe_strategy_model{{model="{onnx().model.id:016x}",strategy="m"}} 1.0' in text
    assert "hftpipe_strategy_accuracy_ppb{" not in text


def test_a_python_strategy_answers_with_three_numbers():
    stage = Signals([momentum(1, (0.1, 0.6, 0.3))])
    stage.run(walk(6))
    said = stage.answers()
    assert [(s["decision"], s["confidence"]) for s in said] == [(0, np.float32(0.6))] * 2
    for wrong in ((0.1, 0.2), "abc", 7, (0.1, float("nan"), 0.2), (1, 2, None)):
        broken = Signals([momentum(1, wrong)])
        with pytest.raises(ValueError, match="must return None or the probabilities"):
            broken.run(walk(1))


def test_there_is_room_for_so_many_strategies():
    from hftpipe.errors import SchemaError
    Signals([momentum() for _ in range(32)]).run(walk(3))
    with pytest.raises(SchemaError, match="wanted at most 32 strategies and members, found 33"):
        Signals([momentum() for _ in range(33)])
