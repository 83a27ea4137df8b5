"""A model answers as its weights say, by either backend; a file that does not fit is refused."""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hftpipe import card, schema
from hftpipe._model import Model, library, runtime
from hftpipe.card import CLASSES, KEYS
from hftpipe.errors import ConfigError, HftpipeError
from hftpipe.models import DEMO
from tests.models.network import BOOK, ROOT, Network, demo_card, trainer

pytest.importorskip("onnx", reason="writing model files needs onnx")
NAMES = list(BOOK)


@pytest.fixture(scope="module")
def network():
    return Network()


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    return network.write(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module", params=["c", "python"])
def model(path, request):
    loaded = Model(path, backend=request.param)
    assert (loaded.backend, loaded.fallback) == (request.param, "")
    return loaded


# ---------------------------------------------------------------- answers

ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(16)),
                  elements=st.floats(-1e6, 1e6, width=32))


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_answers_as_its_weights_say(network, model, rows):
    found = model.predict(rows)
    np.testing.assert_allclose(found, network(rows), atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    for row, wanted in zip(rows, found, strict=True):
        assert model.predict(row).tobytes() == wanted.tobytes()


def test_both_backends_give_the_same_bits(path):
    rows = np.random.default_rng(1).standard_normal((500, 16)).astype(np.float32)
    c, python = Model(path, backend="c"), Model(path, backend="python")
    assert c.predict(rows).tobytes() == python.predict(rows).tobytes()
    assert c.runtime == python.runtime == runtime()


def test_warming_changes_no_answer(model):
    row = np.linspace(-1, 1, 16, dtype=np.float32)
    before = model.predict(row)
    assert model.warm(50) is None and model.warm(0) is None
    assert model.predict(row).tobytes() == before.tobytes()


def test_identity_is_the_sha256_of_the_file(path, model):
    digest = hashlib.sha256(path.read_bytes())
    assert model.sha256 == digest.hexdigest()
    assert model.id == int.from_bytes(digest.digest()[:8], "little")
    assert model.count == 16 and model.path == str(path)
    assert set(model.card) == set(KEYS)
    assert Model(path, sha256=model.sha256.upper()).id == model.id


def test_shape_is_checked_on_each_question(model):
    for wrong in (np.zeros(15), np.zeros((2, 17)), np.zeros((1, 1, 16)), np.float32(1)):
        with pytest.raises(ValueError, match=r"wanted \(n, 16\) features, found"):
            model.predict(wrong)
    assert model.predict(np.zeros((0, 16))).shape == (0, 3)


@pytest.mark.parametrize("backend", ["c", "python"])
def test_an_output_that_is_not_finite_is_an_error(tmp_path, backend):
    """Weights that overflow for large inputs: Softmax of two infinities is NaN."""
    n = Network()
    n.std = np.full(16, 1e19)
    n.layers[0][:] = 1e38
    n.layers[2][:] = 1e3
    n.inputs = np.zeros((2, 16), np.float32)
    n.mean[:] = 0
    loaded = Model(n.write(tmp_path / "m.onnx"), backend=backend)
    with pytest.raises(HftpipeError, match="not finite"):
        loaded.predict(np.full(16, 4e19))
    assert np.isfinite(loaded.predict(np.zeros(16))).all()         # and goes on


def test_features_are_gathered_by_name_out_of_a_larger_vector(tmp_path):
    """Any features in any order; what stands elsewhere in the vector is nobody's input."""
    catalogue = tuple(schema.Feature(f"f{i}", f"the {i}th") for i in range(48))
    names = [f"f{i}" for i in np.random.default_rng(7).permutation(48)[:32]]
    network = Network(3, names, catalogue=catalogue)
    wide = Model(network.write(tmp_path / "wide.onnx"), catalogue=catalogue)
    rows = np.random.default_rng(2).standard_normal((4, 48)).astype(np.float32)
    inputs = rows[:, [int(name[1:]) for name in names]]
    np.testing.assert_allclose(wide.predict(inputs), network(inputs), atol=1e-5)
    for row, wanted in zip(rows, wide.predict(inputs), strict=True):
        assert wide.ask(row).tobytes() == wanted.tobytes()
    with pytest.raises(ConfigError, match="wanted a feature, found 'f"):
        Model(tmp_path / "wide.onnx")
    with pytest.raises(ValueError, match=r"wanted a vector of 48, found \(32,\)"):
        wide.ask(inputs[0])


@pytest.mark.parametrize("backend", ["c", "python"])
def test_normalisation_outside_the_graph_gives_the_same_answers(network, tmp_path, backend):
    model, normalisation = network.bare()
    path = network.write(tmp_path / "bare.onnx", model, normalisation=normalisation)
    ours = Model(path, backend=backend)
    rows = (np.random.default_rng(5).standard_normal((200, 16)) * 8).astype(np.float32)
    np.testing.assert_allclose(ours.predict(rows), network(rows), atol=1e-5)
    for row in rows[:20]:
        vector = np.pad(row, (0, ours.width - len(row)))
        assert ours.ask(vector).tobytes() == ours.predict(row).tobytes()
    lied = network.write(tmp_path / "lie.onnx", model, normalisation={"where": "graph"})
    with pytest.raises(ConfigError, match="parity vector"):     # forgotten: found at once
        Model(lied, backend=backend)
    with pytest.raises(HftpipeError, match="not finite"):       # NaN is never clipped to a number
        ours.predict(np.full(16, np.nan))


def test_the_likely_one_of_several_outputs_is_taken(network, tmp_path):
    """skl2onnx and others put a label beside the probabilities."""
    from onnx import TensorProto, helper
    model = network.model()
    model.graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1,
                                             keepdims=0))
    model.graph.output.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    path = network.write(tmp_path / "m.onnx", model)
    rows = np.random.default_rng(5).standard_normal((9, 16)).astype(np.float32)
    for backend in ("c", "python"):
        np.testing.assert_allclose(Model(path, backend=backend).predict(rows), network(rows),
                                   atol=1e-5)


def test_inferences_are_timed_one_by_one(model):
    times = model.measure(50)
    assert times.shape == (50,) and times.min() > 0


# ---------------------------------------------------------------- the permuted model

def test_two_features_exchanged_change_the_answer(network, path, tmp_path):
    """The same weights, two columns swapped: fed the wrong way it answers otherwise."""
    i, j = NAMES.index("imbalance_top"), NAMES.index("volatility")
    swapped = network.permuted(i, j)
    rows = np.random.default_rng(4).standard_normal((64, 16)).astype(np.float32)
    right = Model(path).predict(rows)
    wrong = Model(swapped.write(tmp_path / "permuted.onnx")).predict(rows)
    assert abs(right - wrong).max() > 0.05
    back = rows.copy()
    back[:, [i, j]] = rows[:, [j, i]]
    np.testing.assert_allclose(
        Model(tmp_path / "permuted.onnx").predict(back), right, atol=1e-5)


def test_a_file_with_exchanged_names_is_refused(network, tmp_path):
    names = NAMES.copy()
    names[5], names[6] = names[6], names[5]
    with pytest.raises(ConfigError) as error:
        Model(network.write(tmp_path / "m.onnx", features=names))
    assert str(error.value).endswith(
        "wanted feature 5 imbalance_top, found imbalance_depth")


# ---------------------------------------------------------------- refusals

def with_ends(name, source, result, element="FLOAT"):
    """A model of one MatMul with the given shapes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    kind = getattr(TensorProto, element)
    dtype = np.float32 if element == "FLOAT" else np.float64
    weights = numpy_helper.from_array(np.zeros((source[-1], result[-1]), dtype), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], name,
        [helper.make_tensor_value_info("x", kind, source)],
        [helper.make_tensor_value_info("y", kind, result)], [weights])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return model


NAN = float("nan")
HASH = f"0x{schema.feature_hash(BOOK):016x}"

BAD = [
    ({"features": NAMES[:15]}, "found " + HASH + ": made for other features"),
    ({"features": [*NAMES, "more"]}, "wanted a feature, found 'more': did you mean"),
    ({"features": [*NAMES, NAMES[3]]}, "wanted each feature once, found 'volatility' twice"),
    ({"features": []}, "wanted at least one feature, found none"),
    ({"features": "all"}, "wanted a list of features, found 'all'"),
    ({"features": [1]}, "wanted a list of features, found [1]"),
    ({"features": None}, "found no hftpipe.features: not packed?"),
    ({"feature_hash": "0x0123456789abcdef"}, "wanted feature hash " + HASH
     + ", found 0x0123456789abcdef"),
    ({"bar": 60}, "wanted a window of bars, found 60"),
    ({"classes": ["up", "flat", "down"]}, "wanted classes ['down', 'flat', 'up'], found ['up'"),
    ({"classes": ["down", "up"]}, "wanted classes ['down', 'flat', 'up'], found ['down', 'up']"),
    ({"format": "1"}, "wanted format 2, found 1"),
    ({"training": None}, "found no hftpipe.training"),
    ({"training": {}}, "wanted 64 hexadecimal digits in training.data_sha256, found None"),
    ({"training": {"data_sha256": "12"}}, "in training.data_sha256, found '12'"),
    ({"normalisation": {}}, 'wanted normalisation "graph" or "input", found None'),
    ({"normalisation": {"where": "input", "mean": [0] * 16}},
     "wanted normalisation.scale of 16 numbers, found None"),
    ({"normalisation": {"where": "input", "mean": [0] * 15, "scale": [1] * 16}},
     "wanted normalisation.mean of 16 numbers, found 15"),
    ({"normalisation": {"where": "input", "mean": [0] * 3 + [NAN] + [0] * 12, "scale": [1] * 16}},
     "wanted normalisation.mean of volatility finite, found nan"),
    ({"normalisation": {"where": "graph", "scale": [1] * 3 + [NAN] + [1] * 12}},
     "wanted normalisation.scale of volatility positive, found nan"),
    ({"normalisation": {"where": "input", "mean": [0] * 16, "scale": [1] * 15 + [0]}},
     "wanted normalisation.scale of arrival positive, found 0"),
    ({"normalisation": {"where": "input", "mean": [0] * 16, "scale": [1] * 15 + [1e-60]}},
     "wanted normalisation.scale of arrival within f32, found 1e-60"),
    ({"normalisation": {"where": "input", "mean": [0] * 16, "scale": [1] * 16, "clip": -1}},
     "wanted normalisation.clip positive or null, found -1"),
    ({"budget": {}}, 'wanted a budget such as {"p99_us": 50}, found {}'),
    ({"budget": {"p99_us": 0}}, "wanted a budget such as"),
    ({"horizon": {"states": 0, "spreads": 0.5}}, "wanted a horizon such as"),
    ({"horizon": {"states": 5, "ns": 5}}, "wanted a horizon such as"),
    ({"horizon": [32]}, "wanted a horizon such as"),
    ({"distribution": {"edges": [[0] * 9] * 16}}, "wanted distribution.counts of 16 rows of 10"),
    ({"distribution": {"edges": [[0] * 9] * 15, "counts": [[1] * 10] * 16}},
     "wanted distribution.edges of 16 rows of 9"),
    ({"distribution": {"edges": [[*range(8, -1, -1)]] * 16, "counts": [[1] * 10] * 16}},
     "wanted ascending distribution.edges"),
    ({"distribution": {"edges": [[0] * 9] * 16, "counts": [[0] * 10] * 16}},
     "wanted distribution.counts with values"),
    ({"parity": {"inputs": [], "outputs": []}}, "wanted parity vectors of 16 inputs"),
    ({"parity": {"inputs": [[1, 2]], "outputs": [[1, 0, 0]]}}, "wanted parity vectors of 16"),
    ({"parity": {"inputs": "x"}}, "wanted parity vectors of 16 inputs"),
    ({"parity": [1]}, "wanted parity vectors of 16 inputs"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("backend", ["c", "python"])
def test_a_card_that_does_not_fit_is_refused_in_one_line(network, tmp_path, backend, changes,
                                                         message):
    path = network.write(tmp_path / "m.onnx", **changes)
    with pytest.raises(ConfigError) as error:
        Model(path, backend=backend)
    text = str(error.value)
    assert message in text
    assert text.startswith(f"model {path}: ") and "\n" not in text


def test_metadata_that_is_no_json_is_refused(network, tmp_path):
    path = network.write(tmp_path / "m.onnx", raw={"parity": "{"})
    with pytest.raises(ConfigError, match=r"wanted JSON in hftpipe\.parity, found '\{'"):
        Model(path)


SHAPES = [
    (with_ends, ([1, 7], [1, 3]), "wanted one input f32[1 or ?, 16], found f32[1, 7]"),
    (with_ends, ([2, 16], [2, 3]), "wanted one input f32[1 or ?, 16], found f32[2, 16]"),
    (with_ends, ([16], [3]), "wanted one input f32[1 or ?, 16], found f32[16]"),
    (with_ends, ([1, 16], [1, 2]),
     "wanted one output f32[1 or ?, 3] (down, flat, up), found f32[1, 2]"),
    (with_ends, ([1, 16], [1, 3], "DOUBLE"), "wanted one input f32[1 or ?, 16], found "),
]


@pytest.mark.parametrize(("make", "args", "message"), SHAPES, ids=lambda v: str(v)[:30])
@pytest.mark.parametrize("backend", ["c", "python"])
def test_shapes_and_types_that_do_not_fit_are_refused(network, tmp_path, backend, make, args,
                                                      message):
    path = network.write(tmp_path / "m.onnx", make("bad", *args))
    with pytest.raises(ConfigError) as error:
        Model(path, backend=backend)
    assert message in str(error.value)


@pytest.mark.parametrize("backend", ["c", "python"])
def test_two_inputs_are_refused(network, tmp_path, backend):
    from onnx import TensorProto, helper
    model = network.model()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(ConfigError, match=r"wanted one input .*, found 2"):
        Model(network.write(tmp_path / "m.onnx", model), backend=backend)


@pytest.mark.parametrize("backend", ["c", "python"])
@pytest.mark.parametrize(("data", "message"), [
    (b"", "found an empty file"), (b"GIF89a" * 50, "wanted an ONNX model, found another or"),
    ("cut", "wanted an ONNX model, found another or"), ("card", "wanted an ONNX model, found: ")])
def test_a_file_that_is_no_model_is_refused(network, path, tmp_path, capfd, backend, data,
                                            message):
    bad = tmp_path / "bad.onnx"
    if data == "cut":
        data = path.read_bytes()[:3_000]
    elif data == "card":                            # all card and no graph
        data = card.stamp(b"", network.card())
    bad.write_bytes(data)
    with pytest.raises(ConfigError) as error:
        Model(bad, backend=backend)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")           # the runtime keeps quiet: we say it


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"model .*none\.onnx: no such file"):
        Model(tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match="Is a directory"):
        Model(tmp_path)


def test_another_file_than_the_pinned_one_is_refused(path):
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=f"wanted sha256 {'0' * 64}, found {found}"):
        Model(path, sha256="0" * 64)


@pytest.mark.parametrize(("off", "fits"), [(4e-6, True), (3e-5, False), (float("nan"), False)])
def test_parity_is_checked_to_1e_5(network, tmp_path, off, fits):
    parity = network.card()["parity"]
    parity["outputs"][3][1] += off
    path = network.write(tmp_path / "m.onnx", parity=parity)
    if fits:
        Model(path)
    else:
        with pytest.raises(ConfigError, match="parity vector 3: wanted"):
            Model(path)


def test_weights_that_changed_after_training_are_refused(network, tmp_path):
    other = Network(8)
    with pytest.raises(ConfigError, match="parity vector"):
        Model(network.write(tmp_path / "m.onnx", other.model()))


# ---------------------------------------------------------------- the bytes of the card

@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=300), max_size=4), st.booleans())
def test_a_card_is_written_as_onnx_would_and_leaves_the_rest_alone(network, others, twice):
    import onnx
    model = network.model()
    for key, value in others.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    data = card.stamp(model.SerializeToString(), network.card())
    if twice:
        data = card.stamp(data, network.card() | {"bar": "1min"})
    found = onnx.load_from_string(data)
    wanted = dict(others) | {f"hftpipe.{k}": json.dumps(v) for k, v in network.card().items()}
    if twice:
        wanted["hftpipe.bar"] = '"1min"'
    assert {e.key: e.value for e in found.metadata_props} == wanted == card.metadata(data)
    assert len(found.metadata_props) == len(wanted)
    assert found.graph == model.graph and found.opset_import == model.opset_import


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.binary(max_size=6))
def test_a_damaged_file_is_refused_or_read_and_never_more(path, at, put):
    data = bytearray(path.read_bytes())
    at %= len(data)
    data[at:at + len(put)] = put
    for damaged in (bytes(data), bytes(data[:at])):
        try:
            card.check(card.parse(card.metadata(damaged)))
        except ConfigError as error:
            assert "\n" not in str(error)


# ---------------------------------------------------------------- the runtime's library

def python(code: str) -> dict:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "build/view",
                                                                         ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                          text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


REPORT = """
import json, sys
from pathlib import Path
import hftpipe._model as m
{}
model = m.Model({!r})
print(json.dumps([model.backend, model.fallback, model.predict([0.5] * 16).tolist(),
                  "onnxruntime" in sys.modules]))
"""


def test_without_the_library_the_python_package_answers_the_same(path):
    direct = python(REPORT.format("", str(path)))
    assert direct[:2] == ["c", ""] and not direct[3]       # 100 ms of imports are not needed
    assert library().name.startswith("libonnxruntime.so")
    bogus = python(REPORT.format("m.library = lambda: Path('/nonexistent/lib.so')", str(path)))
    assert bogus[0] == "python" and "/nonexistent/lib.so" in bogus[1] and bogus[3]
    assert bogus[2] == direct[2]
    other = python(REPORT.format("import posix_ipc; m.library = lambda: Path(posix_ipc.__file__)",
                                 str(path)))
    assert other[0] == "python" and "does not export OrtGetApiBase" in other[1]


def test_asking_for_the_c_api_never_falls_back(path):
    code = ("import json, hftpipe._model as m\nfrom pathlib import Path\n"
            "m.library = lambda: Path('/nonexistent/lib.so')\n"
            f"try: m.Model({str(path)!r}, backend='c')\n"
            "except Exception as e: print(json.dumps([type(e).__name__, str(e)]))")
    name, text = python(code)
    assert name == "ConfigError" and text.startswith("ONNX Runtime's C API: ")


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_model_that_is_dropped_frees_everything(path):
    def load(times):
        for _ in range(times):
            Model(path, backend="c").warm(2)
    load(60)
    before = resident()
    load(240)                       # a session holds about 0.3 MB: a leak would be 70 MB
    assert resident() - before < 24e6


# ---------------------------------------------------------------- the demo model

def test_the_card_beside_the_demo_model_is_of_that_file():
    card, model = demo_card(), Model(DEMO)
    assert card["sha256"] == model.sha256 and card["file"] == DEMO.name
    for key in KEYS:
        if key not in ("parity", "distribution"):
            assert card[key] == model.card[key], key
    assert model.card["classes"] == list(CLASSES)
    assert len(model.card["parity"]["inputs"]) >= 8


def test_the_demo_model_knows_something_about_markets_it_never_saw():
    """Better than the shares of the classes, and mostly right where it is sure."""
    train = trainer()
    sets = [train.samples(987_000 + i, 8_000, 5, kind) for i, kind in enumerate(train.KINDS * 2)]
    x, y = (np.concatenate([s[k] for s in sets]) for k in (0, 1))
    p = Model(DEMO).predict(x).astype(np.float64)
    shares = np.bincount(y, minlength=3) / len(y)
    assert train.cross_entropy(p, y) < 0.9 * -(shares * np.log(shares)).sum()
    told = p.argmax(axis=1)
    sure = (p.max(axis=1) > 0.6) & (told != 1)
    assert sure.mean() > 0.01
    right, opposite = (told == y)[sure].mean(), (abs(told - y) == 2)[sure].mean()
    assert right > 0.6 and opposite < 0.1


def run_trainer(out: Path, *args: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "research/train_demo.py"), "--out", str(out), *args],
                   check=True, capture_output=True, timeout=300)


def test_training_gives_the_same_bytes_for_the_same_seed(tmp_path):
    small = ("--states", "1500", "--epochs", "2", "--instruments", "6")
    run_trainer(tmp_path / "a", *small, "--seed", "5")
    run_trainer(tmp_path / "b", *small, "--seed", "5")
    run_trainer(tmp_path / "c", *small, "--seed", "6")
    a, b, c = ((tmp_path / d / "demo.onnx").read_bytes() for d in "abc")
    assert a == b != c
    Model(tmp_path / "a" / "demo.onnx")


@pytest.mark.slow
def test_the_script_makes_the_model_that_ships(tmp_path):
    """Same bytes on the machine that made it; elsewhere linear algebra may differ in last bits."""
    run_trainer(tmp_path)
    made = tmp_path / "demo.onnx"
    if made.read_bytes() == DEMO.read_bytes():
        return
    rows = trainer().samples(31, 4_000, 3, "quotes")[0]
    np.testing.assert_allclose(Model(made).predict(rows), Model(DEMO).predict(rows), atol=0.02)
