"""The shipped strategies decide as their rules read, within their limits; bad ones are refused."""
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import build, config, schema, strategies, worker
from hftpipe._feature import Features
from hftpipe._model import Model
from hftpipe._strategy import PyStrategy
from hftpipe.errors import ConfigError, HftpipeError
from hftpipe.models import DEMO
from hftpipe.strategies._exits import Exits
from hftpipe.strategies._imbalance import Imbalance
from hftpipe.strategies._only import Only
from hftpipe.strategies._onnx import Onnx
from hftpipe.strategies._probe import ORDER, TIMER, Probe

NANO = 10**9
NAMES = [f.name for f in schema.FEATURES.fields]
FLAG = schema.BOOK_FLAG


def instruments(*lots, minimum=0):
    table = np.zeros(len(lots), schema.dtype(schema.INSTRUMENT))
    for i, lot in enumerate(lots):
        table[i]["symbol"], table[i]["tick"] = f"S{i}".encode(), NANO // 100
        table[i]["lot"], table[i]["min_qty"] = lot, minimum
    return table


def book(now=0, flags=0, instrument=0, bid=100 * NANO, ask=100 * NANO + NANO // 100):
    row = np.zeros(1, schema.dtype(schema.BOOK))
    row["ts_recv"], row["flags"], row["instrument"], row["bid"], row["ask"] = (
        now, flags, instrument, bid, ask)
    return row


def vector(imbalance=0.0):
    out = np.zeros(16, np.float32)
    out[NAMES.index("imbalance_depth")] = imbalance
    return out


ONE = instruments(NANO)


def probe(name="imbalance", table=ONE, **params):
    if name == "onnx":                          # whatever else runs here, no answer is late
        params = {"budget": 10 * NANO, **params}
    return Probe(strategies.load(name, params, table), table)


# ---------------------------------------------------------------- order rules

def wanted_order(side, reduce_only, qty, open_buy, open_sell, params, lot, minimum):
    """Quantity of the order by the rules T1-T3 and T5, in plain words; 0 = none."""
    if (open_sell if side > 0 else open_buy) > 0:
        return 0
    mine = open_buy if side > 0 else open_sell
    size = params["qty"]
    if qty * side < 0:                      # leaving: what is not already being left
        size = min(size, abs(qty) - mine)
    elif reduce_only or (side < 0 and not params["allow_short"]):
        return 0
    else:
        size = min(size, params["max_qty"] - abs(qty) - mine)
    size = size // lot * lot
    return size if size > 0 and size >= minimum else 0


@settings(max_examples=400, deadline=None)
@given(st.fixed_dictionaries({
    "qty": st.integers(1, 5), "max_qty": st.integers(5, 12), "allow_short": st.booleans(),
    "threshold": st.sampled_from([0.3, 0.6]), "leave": st.sampled_from([0.0, 0.2])}),
    st.integers(1, 10), st.integers(0, 30), st.integers(-150, 150), st.integers(0, 60),
    st.integers(0, 60), st.floats(-1, 1, width=32))
def test_imbalance_orders_as_the_rules_read(params, lot, minimum, qty, open_buy, open_sell, value):
    table = instruments(lot, minimum=minimum)
    params |= {"qty": params["qty"] * lot, "max_qty": params["max_qty"] * lot + lot // 2}
    p = probe(table=table, **params)
    intents, signal = p.ask(book(now=7), vector(value), qty=qty, open_buy=open_buy,
                            open_sell=open_sell)
    value = float(np.float32(value))
    side, reduce_only = 0, False
    if abs(value) >= params["threshold"]:
        side = 1 if value > 0 else -1
    elif qty and value * (1 if qty > 0 else -1) < -params["leave"]:
        side, reduce_only = (-1 if qty > 0 else 1), True
    size = wanted_order(side, reduce_only, qty, open_buy, open_sell, params, lot,
                        minimum) if side else 0
    assert signal is None
    assert len(intents) == (size > 0)
    if size:
        (i,) = intents
        assert (i["side"], i["qty"]) == (side, size)
        assert i["price"] == book()["ask" if side > 0 else "bid"]
        assert i["type"] == schema.ORDER_TYPE.LIMIT and i["tif"] == schema.TIF.IOC
        assert i["action"] == schema.ACTION.NEW and i["target"] == i["instrument"] == 0


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([False, True]), st.integers(1, 4), st.lists(st.tuples(
    st.floats(-1, 1, width=32), st.integers(0, 4), st.booleans()), max_size=60))
def test_position_stays_within_its_limits_whatever_fills(short, lots, steps):
    """Orders stay open for a while, fill in part or end; nothing ever passes a limit."""
    p = probe(qty=lots * NANO, max_qty=5 * NANO, allow_short=short, cooldown=0)
    held, open_orders = 0, []
    for now, (value, done, resolve) in enumerate(steps):
        if resolve and open_orders:
            side, qty = open_orders.pop(0)
            held += side * min(done * NANO, qty)
        buys = sum(q for s, q in open_orders if s > 0)
        sells = sum(q for s, q in open_orders if s < 0)
        before = held
        intents, _ = p.ask(book(now=now), vector(value), qty=held, open_buy=buys, open_sell=sells)
        for i in intents:
            side, qty = int(i["side"]), int(i["qty"])
            assert 0 < qty <= lots * NANO and qty % NANO == 0
            assert not (sells if side > 0 else buys)            # never against ourselves
            open_orders.append((side, qty))
            worst = held + sum(s * q for s, q in open_orders if s == side)
            assert abs(worst) <= 5 * NANO
            assert worst * before >= 0                          # flat at the furthest
            assert short or worst >= 0


def test_cooldown_is_event_time_and_per_instrument():
    table = instruments(NANO, NANO)
    p = probe(table=table, cooldown=2_000_000)
    start = 5_000_000_000

    def orders(after, instrument=0):
        return len(p.ask(book(start + after, instrument=instrument), vector(0.9))[0])

    assert orders(0) == 1
    assert orders(1_999_999) == 0
    assert orders(1_999_999, 1) == 1            # the other instrument waits for itself only
    assert orders(2_000_000) == 1
    assert orders(2_500_000) == 0


@pytest.mark.parametrize("flag", ["STALE", "CROSSED", "EMPTY", "HALTED"])
@pytest.mark.parametrize("name", ["imbalance", "onnx"])
def test_no_order_on_a_book_that_cannot_be_traded(name, flag):
    p = probe(name, threshold=0.0)
    features = np.array(Model(DEMO).card["parity"]["inputs"][0], np.float32)
    features[NAMES.index("imbalance_depth")] = 0.9
    intents, signal = p.ask(book(1, getattr(FLAG, flag)), features, qty=NANO)
    assert not len(intents) and signal is None


@pytest.mark.parametrize("name", ["imbalance", "onnx"])
def test_no_order_before_features_are_warm_on_our_orders_or_without_room(name):
    p = probe(name, threshold=0.0)
    order = np.zeros(1, schema.dtype(schema.ORDER_EVENT))
    good = np.array(Model(DEMO).card["parity"]["inputs"][0], np.float32)
    good[NAMES.index("imbalance_depth")] = 0.9
    assert not len(p.ask(book(1))[0])
    assert not len(p.ask(book(1), good, event=ORDER, order_event=order)[0])
    assert not len(p.ask(book(1), good, event=TIMER)[0])
    assert not len(p.ask(book(1), good, room=0)[0])
    if name == "imbalance":                 # no room is no order: the cooldown has not begun
        assert len(p.ask(book(1), good)[0]) == 1


# ---------------------------------------------------------------- the model

def demo_inputs():
    return np.array(Model(DEMO).card["parity"]["inputs"], np.float32)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 15), st.sampled_from([0.2, 0.5, 0.6, 0.9]), st.sampled_from([0.1, 0.45]),
       st.sampled_from([-3, 0, 3]), st.booleans(), st.booleans())
def test_onnx_decides_as_the_rule_reads(row, threshold, leave, lots, short, trade):
    p = ONNX[threshold, leave, short]
    features = demo_inputs()[row]
    state = book(10**9 * next(CLOCK), FLAG.TRADE if trade else 0)
    intents, signal = p.ask(state, features, qty=lots * NANO)
    down, flat, up = (float(v) for v in p.strategy.model.predict(features))
    assert (signal["p_down"], signal["p_flat"], signal["p_up"]) == (
        np.float32(down), np.float32(flat), np.float32(up))
    top = max(down, flat, up)
    decision = 0 if top <= threshold or flat == top else (1 if up == top else -1)
    assert signal["decision"] == decision and signal["confidence"] == np.float32(top)
    assert signal["model"] == p.strategy.model.id and signal["elapsed"] > 0
    side, reduce_only = decision, False
    if not side and lots > 0 and down > leave:
        side, reduce_only = -1, True
    elif not side and lots < 0 and up > leave:
        side, reduce_only = 1, True
    params = {"qty": NANO, "max_qty": 10 * NANO, "allow_short": short}
    size = wanted_order(side, reduce_only, lots * NANO, 0, 0, params, NANO, 0) if side else 0
    assert [(int(i["side"]), int(i["qty"])) for i in intents] == ([(side, size)] if size else [])
    assert p.strategy.last["decision"] == decision


ONNX = {(threshold, leave, short): probe("onnx", threshold=threshold, leave=leave,
                                         allow_short=short)
        for threshold in (0.2, 0.5, 0.6, 0.9) for leave in (0.1, 0.45) for short in (False, True)}
CLOCK = iter(range(1, 10**6))


def run(strategy, books):
    """Every order on a stream of books, each filled whole at once; (index, side, qty)."""
    p, held, orders = Probe(strategy, ONE), 0, []
    vectors, warm = Features().update_many(books)
    for i in np.flatnonzero(warm):
        for intent in p.ask(books[i], vectors[i], qty=held)[0]:
            held += int(intent["side"]) * int(intent["qty"])
            orders.append((int(i), int(intent["side"]), int(intent["qty"])))
    return orders


@pytest.fixture(scope="module")
def stream():
    pytest.importorskip("onnx", reason="the trainer writes with onnx")
    from tests.models.network import trainer
    return trainer().market(77, 4_000, "quotes")


@pytest.mark.parametrize("name", ["imbalance", "onnx"])
def test_trades_both_ways_on_a_simulated_market(name, stream):
    params = {"cooldown": 0} | ({"budget": 10 * NANO} if name == "onnx" else {})
    orders = run(strategies.load(name, params, ONE), stream)
    sides = [side for _, side, _ in orders]
    assert sides.count(1) > 10 and sides.count(-1) > 10
    held = np.cumsum([side * qty for _, side, qty in orders])
    assert held.min() >= 0 and held.max() <= 10 * NANO
    assert orders == run(strategies.load(name, params, ONE), stream)


def test_a_permuted_model_changes_the_orders(stream, tmp_path):
    """Weights for features in another order, on a card that lies, trade otherwise; told
    truthfully, the file is refused."""
    import onnx
    from onnx import numpy_helper

    from hftpipe.card import stamp
    model = onnx.load(DEMO)
    order = np.arange(16)
    order[[4, 6]] = 6, 4                        # spread_bps and imbalance_depth
    for tensor in model.graph.initializer:
        if tensor.name in ("w0", "low", "high"):
            tensor.CopyFrom(numpy_helper.from_array(
                np.ascontiguousarray(numpy_helper.to_array(tensor)[order]), tensor.name))
    card = dict(Model(DEMO).card)
    card["parity"] = {"inputs": np.array(card["parity"]["inputs"])[:, order].tolist(),
                      "outputs": card["parity"]["outputs"]}
    lie = tmp_path / "permuted.onnx"
    lie.write_bytes(stamp(model.SerializeToString(), card))
    params = {"cooldown": 0, "budget": 10 * NANO}
    right = run(strategies.load("onnx", params, ONE), stream)
    wrong = run(strategies.load("onnx", params | {"model": str(lie)}, ONE), stream)
    assert right != wrong and right

    card["features"] = [NAMES[i] for i in order]
    lie.write_bytes(stamp(model.SerializeToString(), card))
    with pytest.raises(ConfigError, match="wanted feature 4 spread_bps, found imbalance_depth"):
        strategies.load("onnx", params | {"model": str(lie)}, ONE)


def test_a_model_that_fails_stops_the_strategy(tmp_path):
    pytest.importorskip("onnx", reason="writing model files needs onnx")
    from tests.models.network import Network
    n = Network()
    n.std, n.mean = np.full(16, 1e19), np.zeros(16)
    n.layers[0][:], n.layers[2][:] = 1e38, 1e3
    n.inputs = np.zeros((1, 16), np.float32)
    p = probe("onnx", model=str(n.write(tmp_path / "m.onnx")))
    with pytest.raises(HftpipeError, match=r"m\.onnx: its output is not finite"):
        p.ask(book(1), np.full(16, 4e19, np.float32))
    assert isinstance(p.strategy.error, HftpipeError)


# ---------------------------------------------------------------- configuration

@pytest.mark.parametrize(("name", "params", "message"), [
    ("imbalance", {"treshold": 0.5}, "unknown parameter 'treshold', did you mean threshold?"),
    ("imbalance", {"zzz": 1}, "unknown parameter 'zzz' (wanted threshold, leave, qty"),
    ("imbalance", {"sha256": "0"}, "unknown parameter 'sha256'"),
    ("imbalance", {"threshold": "0.5"}, "threshold must be float, was '0.5'"),
    ("imbalance", {"threshold": 1.5}, "threshold must be between 0 and 1, was 1.5"),
    ("imbalance", {"threshold": float("nan")}, "threshold must be between 0 and 1, was nan"),
    ("imbalance", {"threshold": True}, "threshold must be float, was True"),
    ("imbalance", {"leave": -0.1}, "leave must be between 0 and 1, was -0.1"),
    ("imbalance", {"qty": 0}, "qty must be between 1 and 2.30584e+17, was 0"),
    ("imbalance", {"qty": 1.0}, "qty must be int, was 1.0"),
    ("imbalance", {"qty": True}, "qty must be int, was True"),
    ("imbalance", {"qty": NANO + 1}, "qty must be a multiple of the lot of S0, 1000000000 nanoqty"),
    ("imbalance", {"max_qty": NANO - 1}, "max_qty must be between 1e+09 and 2.30584e+18"),
    ("imbalance", {"max_qty": -1}, "max_qty must be between 1e+09 and 2.30584e+18, was -1"),
    ("imbalance", {"max_qty": 2**62}, "max_qty must be between 1e+09 and 2.30584e+18"),
    ("imbalance", {"cooldown": -1}, "cooldown must be between 0 and 8.64e+13, was -1"),
    ("imbalance", {"cooldown": "1s"}, "cooldown must be int, was '1s'"),
    ("imbalance", {"allow_short": 1}, "allow_short must be bool, was 1"),
    ("onnx", {"modell": "x"}, "unknown parameter 'modell', did you mean model?"),
    ("onnx", {"model": ""}, "model must be \"demo\" or a path, was empty"),
    ("onnx", {"model": "/nonexistent.onnx"}, "model /nonexistent.onnx: no such file"),
    ("onnx", {"sha256": "ab"}, "wanted sha256 ab, found "),
    ("onnx", {"threshold": 2}, "threshold must be between 0 and 1, was 2"),
])
def test_bad_parameters_are_refused_in_one_line(name, params, message):
    with pytest.raises(ConfigError) as error:
        strategies.load(name, params, ONE)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_instruments_are_refused():
    with pytest.raises(ConfigError, match="lot of S1 must be positive, was 0"):
        Imbalance({}, instruments(1, 0))
    with pytest.raises(ConfigError, match="instruments must be an array of INSTRUMENT"):
        Imbalance({}, [("A", 1)])


def test_defaults_and_given_values_are_kept():
    p = Imbalance.from_config({"threshold": 1, "cooldown": 5}, ONE)
    assert p.threshold == 1.0 and p.leave == 0.0 and p.params["qty"] == NANO
    q = Onnx.from_config({"sha256": Model(DEMO).sha256}, ONE)
    assert (q.threshold, q.leave, q.model.sha256) == (0.6, 0.45, Model(DEMO).sha256)


# ---------------------------------------------------------------- other packages' strategies

class Point:
    """An entry point that gives *target*, or raises it."""

    value = "package.module:Class"

    def __init__(self, name, target):
        self.name, self.target = name, target

    def load(self):
        if isinstance(self.target, Exception):
            raise self.target
        return self.target


class Quiet(PyStrategy):
    @classmethod
    def from_config(cls, params, instruments):
        return cls(lambda context, add: None)


class Old(Quiet):
    version = 7


class Liar(Quiet):
    @classmethod
    def from_config(cls, params, instruments):
        return "strategy"


class NoDoor(PyStrategy):
    pass


class Plain:
    """Not a Strategy, only on_event."""

    def __init__(self, params, instruments):
        self.qty = params["qty"]

    def on_event(self, context, add):
        add(side=-1, qty=self.qty)


@pytest.fixture
def others(monkeypatch):
    def put(name, target):
        def entry_points(*, group):
            assert group == "hftpipe.strategies"
            return [Point(name, target)]
        monkeypatch.setattr(strategies, "entry_points", entry_points)
    return put


def test_a_strategy_of_another_package_is_found_by_its_entry_point(others):
    others("momentum", Quiet)
    assert strategies.names() == ["imbalance", "momentum", "onnx"]
    assert isinstance(strategies.load("momentum", {}, ONE), Quiet)


@pytest.mark.parametrize(("target", "message"), [
    (Old, "built for interface version 7, this is 1: rebuild it"),
    (NoDoor, "wanted a Strategy with from_config"),
    (dict, "wanted a Strategy with from_config"),
    (len, "wanted a Strategy with from_config"),
    (Liar, "from_config gave 'strategy', no Strategy"),
    (ImportError("no module named x"), "(package.module:Class) cannot be loaded: no module"),
    (ValueError("hftpipe._strategy.Strategy size changed"), "cannot be loaded: hftpipe._strategy"),
], ids=lambda v: getattr(v, "__name__", "error")[:20])
def test_a_strategy_that_does_not_fit_is_refused(others, target, message):
    others("momentum", target)
    with pytest.raises(ConfigError) as error:
        strategies.load("momentum", {}, ONE)
    assert message in str(error.value)


def test_a_plain_python_class_is_wrapped(others, monkeypatch):
    others("momentum", Plain)
    by_entry = strategies.load("momentum", {"qty": 7}, ONE)
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(Plain=Plain, Quiet=Quiet))
    by_path = strategies.load("mine:Plain", {"qty": 8}, ONE)
    assert isinstance(strategies.load("mine:Quiet", {}, ONE), Quiet)
    for strategy, qty in ((by_entry, 7), (by_path, 8)):
        assert isinstance(strategy, PyStrategy)
        assert Probe(strategy, ONE).ask(book(1))[0]["qty"].tolist() == [qty]
    for place, message in (("mine:None_", "has no attribute"), ("no.such:C", "No module named")):
        with pytest.raises(ConfigError, match=f"strategy {place} cannot be loaded: .*{message}"):
            strategies.load(place, {}, ONE)


def item(kind="imbalance", entry="", symbols=(), **params):
    return types.SimpleNamespace(name="mine", kind=kind, entry=entry, symbols=symbols,
                                 members=(), shadow=False, params=params)


def test_a_configuration_becomes_strategies_in_its_order(others, tmp_path):
    others("momentum", Plain)
    made = strategies.make(
        [item(threshold=0.3), item("native", "momentum", qty=3), item("onnx", model="demo")], ONE)
    assert isinstance(made[0], Imbalance) and made[0].threshold == 0.3
    assert isinstance(made[1], PyStrategy) and isinstance(made[2], Onnx)
    asked = []

    def find(name, sha256):
        asked.append((name, sha256))
        return DEMO, Model(DEMO).sha256

    (found,) = strategies.make([item("onnx", model="best")], ONE, resolve=find)
    assert asked == [("best", None)] and found.model.path == str(DEMO)
    with pytest.raises(ConfigError, match=r"wanted sha256 0{64}"):
        strategies.make([item("onnx")], ONE, resolve=lambda *_: (DEMO, "0" * 64))
    with pytest.raises(ConfigError, match=r"model best\.onnx: no such file"):
        strategies.make([item("onnx", model="best.onnx")], ONE)


def test_a_recordings_instruments_are_traded_in_lots_and_all_of_them():
    table = instruments(NANO // 100, NANO * 100)
    items = [item(symbols=["AAPL"], qty=2 * NANO), item("onnx", qty=NANO)]
    items[1].name = "other"
    made = strategies.make(items, table, in_lots=True)
    assert [type(s) for s in made] == [Imbalance, Onnx]
    p = Probe(made[0], table)
    assert p.ask(book(1), vector(0.9))[0]["qty"] == 2 * NANO // 100
    assert p.ask(book(1, instrument=1), vector(0.9))[0]["qty"] == 2 * NANO * 100
    (one,) = strategies.make(items, table, names=["other"], in_lots=True)
    assert isinstance(one, Onnx)


def test_a_configuration_that_names_symbols_starts(tmp_path):
    """It once was refused: the processes gave a shipped strategy a parameter it does not have."""
    settings = config.loads('[[strategy]]\nname = "s"\nkind = "imbalance"\n'
                            'symbols = ["MSFT"]\n', env={})
    made, exits = worker.strategies(settings, build.instruments(settings))
    assert isinstance(made, Only) and isinstance(exits, Exits)


def test_instruments_that_are_not_named_are_not_seen():
    table = instruments(NANO, NANO)
    imbalance, onnx = (Probe(s, table) for s in strategies.make(
        [item(symbols=["S1"]), item("onnx", symbols=("S1",), threshold=0.0)], table))
    sure = np.array(Model(DEMO).card["parity"]["inputs"][0], np.float32)
    assert not len(imbalance.ask(book(1), vector(0.9))[0])
    assert onnx.ask(book(1), sure)[1] is None
    assert len(imbalance.ask(book(1, instrument=1), vector(0.9))[0]) == 1
    signal = onnx.ask(book(1, instrument=1), sure)[1]
    assert signal["p_up"] == np.float32(onnx.strategy.inner.last["p_up"])
    assert onnx.ask(book(2), sure)[1] is None           # and the answer is not given twice
    with pytest.raises(ConfigError, match="strategy mine: S7 is none of the instruments S0, S1"):
        strategies.make([item(symbols=["S7"])], table)


def test_what_stops_a_hidden_strategy_is_passed_on(others):
    class Fails(Plain):
        def on_event(self, context, add):
            raise ZeroDivisionError("mine")

    others("momentum", Fails)
    (made,) = strategies.make([item("native", "momentum", ["S0"], qty=1)], ONE)
    with pytest.raises(ZeroDivisionError, match="mine"):
        Probe(made, ONE).ask(book(3))


def test_a_shipped_strategy_cannot_be_replaced(others):
    others("imbalance", Quiet)
    assert isinstance(strategies.load("imbalance", {}, ONE), Imbalance)


def test_unknown_names_are_refused_with_the_nearest(others):
    with pytest.raises(ConfigError, match="unknown strategy 'onxx', did you mean onnx"):
        strategies.load("onxx", {}, ONE)
    others("momentum", Quiet)
    with pytest.raises(ConfigError, match=r"unknown strategy 'zzz'.*imbalance, momentum, onnx"):
        strategies.load("zzz", {}, ONE)


def test_version_is_the_compiled_one():
    assert strategies.VERSION == strategies.load("imbalance", {}, ONE).version
    assert strategies.VERSION == PyStrategy(lambda context, add: None).version


def test_probe_drives_a_python_strategy_too():
    def buy(context, add):
        assert add(side=1, qty=context.lot, price=int(context.book["ask"]))

    p = Probe(PyStrategy(buy), ONE)
    intents, signal = p.ask(book(3))
    assert intents["side"].tolist() == [1] and intents["price"][0] == book()["ask"][0]
    assert signal is None

    def fail(context, add):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        Probe(PyStrategy(fail), ONE).ask(book(3))
    with pytest.raises(ValueError, match="wanted one book record"):
        p.ask(ONE)
    with pytest.raises(ValueError, match="room must be 0 to 64"):
        p.ask(book(3), room=65)
