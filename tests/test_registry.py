"""Packed models: versions never change, the index is whole, a configuration names exact bytes."""
import hashlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest

from hftpipe import card, cli, config, registry, schema, worker
from hftpipe._model import Model
from hftpipe.build import instruments
from hftpipe.errors import ConfigError
from hftpipe.models import DEMO
from hftpipe.registry import Registry

BOOK = schema.FEATURE_SETS["book"]


@pytest.fixture
def shelf(tmp_path):
    return Registry(tmp_path / "models")


def variant(number: int) -> bytes:
    """The demo model with another entry on its card: other bytes, the same answers."""
    data = DEMO.read_bytes()
    made = card.parse(card.metadata(data))
    made["training"]["variant"] = number
    return card.stamp(data, made)


# ---------------------------------------------------------------- the directory

def test_versions_count_up_and_the_same_bytes_are_the_same_version(shelf):
    assert shelf.versions() == []
    first, second = shelf.add("mlp", variant(1)), shelf.add("mlp", variant(2))
    assert (first.reference, second.reference) == ("mlp@1", "mlp@2")
    assert shelf.add("mlp", variant(1)) == first
    assert [v.version for v in shelf.versions()] == [1, 2]
    for v in (first, second):
        assert not v.current and v.sha256 == hashlib.sha256(v.path.read_bytes()).hexdigest()
        assert stat.S_IMODE(v.path.stat().st_mode) == 0o444
        assert Model(v.path, v.sha256).id == v.id and shelf.by_id(v.id) == v
    assert shelf.by_id(1) is None
    assert shelf.add("other", variant(1)).reference == "other@1"


def test_a_name_is_its_current_version_and_that_moves_by_hand_only(shelf):
    shelf.add("mlp", variant(1))
    with pytest.raises(ConfigError, match=r"no version is current .*\(found 1\); hftpipe model p"):
        shelf.find("mlp")
    assert shelf.promote("mlp", 1).current
    shelf.add("mlp", variant(2))
    assert shelf.find("mlp").reference == "mlp@1"
    shelf.promote("mlp", 2)
    assert shelf.find("mlp").reference == "mlp@2" and shelf.find("mlp@1").version == 1
    shelf.promote("mlp", 1)                         # and back
    assert shelf.find("mlp").reference == "mlp@1"


@pytest.mark.parametrize(("ask", "message"), [
    (lambda s: s.find("nlp"), "wanted a name in registry .* found mlp"),
    (lambda s: s.find("mlp@7"), "wanted a version in registry .* found 1"),
    (lambda s: s.find("mlp@x"), "model must be NAME or NAME@VERSION, was 'mlp@x'"),
    (lambda s: s.find("mlp@1@2"), "model must be NAME or NAME@VERSION"),
    (lambda s: s.promote("mlp", 2), "wanted a version in registry .* found 1"),
    (lambda s: s.add("Mlp", b"x"), "model name must be 1 to 41 of a-z"),
    (lambda s: s.add("../up", b"x"), "model name must be 1 to 41 of a-z"),
    (lambda s: s.add("demo", b"x"), "and not demo, was 'demo'"),
])
def test_what_is_not_there_is_refused_in_one_line(shelf, ask, message):
    shelf.add("mlp", variant(1))
    with pytest.raises(ConfigError, match=message) as error:
        ask(shelf)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [
    "{", "[]", "{}", '{"format": 2, "models": {}}', '{"format": 1, "models": []}',
    '{"format": 1, "models": {"a": {"current": 1, "versions": {"x": {}}}}}',
    '{"format": 1, "models": {"a": {"current": 1, "versions": {"1": {"sha256": "zz"}}}}}'])
def test_a_damaged_index_is_refused_and_left_alone(shelf, text):
    shelf.add("mlp", variant(1))
    index = shelf.path / "index.json"
    index.write_text(text)
    for ask in (shelf.versions, lambda: shelf.add("mlp", variant(2)),
                lambda: shelf.promote("mlp", 1)):
        with pytest.raises(ConfigError, match=r"index\.json"):
            ask()
    assert index.read_text() == text


def test_a_file_that_changed_after_packing_is_refused(shelf):
    v = shelf.add("mlp", variant(1))
    v.path.chmod(0o644)
    v.path.write_bytes(variant(9))
    with pytest.raises(ConfigError, match=f"wanted sha256 {v.sha256}, found [0-9a-f]{{64}} in"):
        shelf.promote("mlp", 1)
    found = registry.resolve("mlp@1", registry=str(shelf.path))
    with pytest.raises(ConfigError, match=f"wanted sha256 {v.sha256}, found"):
        Model(found.path, found.sha256)
    v.path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        shelf.promote("mlp", 1)


def pack_many(folder, numbers):
    for n in numbers:
        Registry(folder).add("mlp", variant(n))


def test_processes_that_pack_at_once_lose_nothing(shelf):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=pack_many, args=(shelf.path, range(k * 10, k * 10 + 8)))
               for k in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert w.exitcode == 0
    found = shelf.versions()
    assert [v.version for v in found] == list(range(1, 33))
    assert len({v.sha256 for v in found}) == 32
    for v in found:
        shelf.verify(v)


KILLED = """
import sys
from pathlib import Path
from hftpipe.registry import Registry
from tests.test_registry import variant
shelf, n = Registry(Path(sys.argv[1])), int(sys.argv[2])
while True:
    n += 1
    v = shelf.add("mlp", variant(n))
    shelf.promote("mlp", v.version)
    print(v.version, flush=True)
"""


def test_a_kill_in_the_middle_leaves_a_whole_index(shelf):
    """SIGKILL after a random number of bytes of progress; what was promised is there."""
    random = np.random.default_rng(3)
    for round_ in range(6):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(shelf.path),
                                  str(1000 * round_)], stdout=subprocess.PIPE, env=env)
        for _ in range(int(random.integers(1, 6))):
            promised = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = shelf.versions()
        assert [v.version for v in found] == list(range(1, len(found) + 1))
        assert promised <= len(found) and shelf.find("mlp").version >= promised
        for v in found:
            shelf.verify(v)
        assert shelf.add("mlp", variant(-1 - round_)).version == len(found) + 1


# ---------------------------------------------------------------- what a configuration means

def test_a_configuration_is_pinned_to_bytes(shelf, tmp_path):
    one, two = shelf.add("mlp", variant(1)), shelf.add("mlp", variant(2))
    shelf.promote("mlp", 1)
    (tmp_path / "near.onnx").write_bytes(variant(3))
    text = 'models = "models"\n' + "".join(
        f'[[strategy]]\nname = "s{i}"\nkind = "onnx"\nparams = {{ model = "{model}" }}\n'
        for i, model in enumerate(("mlp", "mlp@2", "near.onnx", "demo")))
    (tmp_path / "c.toml").write_text(text)
    settings = config.load(str(tmp_path / "c.toml"))
    pinned = registry.pin(settings)
    near = hashlib.sha256(variant(3)).hexdigest()
    assert [(s.params["model"], s.params["sha256"]) for s in pinned.strategy] == [
        ("mlp@1", one.sha256), ("mlp@2", two.sha256), (str(tmp_path / "near.onnx"), near),
        ("demo", hashlib.sha256(DEMO.read_bytes()).hexdigest())]
    shelf.promote("mlp", 2)                         # what runs, runs
    again = config.loads(pinned.dump(), "run", env={})      # as the processes of a run read it
    made = worker.strategies(again, instruments(again))
    assert [s.model.sha256 for s in made[:4]] == [
        s.params["sha256"] for s in pinned.strategy]
    (tmp_path / "near.onnx").write_bytes(variant(4))
    with pytest.raises(ConfigError, match=f"wanted sha256 {near}, found"):
        worker.strategies(again, instruments(again))


@pytest.mark.parametrize(("model", "sha256", "message"), [
    ("mlp", "0" * 64, "model mlp: wanted sha256 0000"),
    ("demo", "0" * 64, "wanted sha256 0000"),
    ("nothing", None, "wanted a name in registry .*, found mlp"),
    ("nothing.onnx", None, r"model nothing\.onnx: no such file in"),
])
def test_a_model_that_is_not_the_wanted_one_stops_the_start(shelf, model, sha256, message):
    shelf.promote(shelf.add("mlp", variant(1)).name, 1)
    params = f'model = "{model}"' + (f', sha256 = "{sha256}"' if sha256 else "")
    settings = config.loads(f'models = "{shelf.path}"\n[[strategy]]\nname = "s"\nkind = "onnx"\n'
                            f"params = {{ {params} }}\n", env={})
    with pytest.raises(ConfigError, match=message):
        registry.pin(settings)


# ---------------------------------------------------------------- the command

def run(capsys, *args):
    code = cli.run(["model", *map(str, args)])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out.startswith("{") else out, err


@pytest.fixture
def bare(tmp_path):
    """An ONNX file without a card, and beside it what its training program knows."""
    pytest.importorskip("onnx", reason="writing model files needs onnx")
    from tests.models.network import Network
    network = Network(4)
    model, normalisation = network.bare()
    (tmp_path / "bare.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "normal.json").write_text(json.dumps(normalisation))
    np.savez(tmp_path / "parity.npz", inputs=network.inputs, outputs=network(network.inputs))
    rows = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=rows)
    (tmp_path / "names.txt").write_text("\n".join(BOOK) + "\n")
    network.folder = tmp_path
    return network


def test_pack_check_ls_promote(bare, shelf, capsys):
    at = bare.folder
    options = ("--registry", shelf.path, "-o", "json")
    code, packed, _ = run(
        capsys, "pack", at / "bare.onnx", "--name", "mlp", "--features", at / "names.txt",
        "--normalisation", at / "normal.json", "--parity", at / "parity.npz", "--data",
        at / "train.npz", "--budget-us", "80", "--horizon", '{"states": 5, "spreads": 0.5}',
        *options)
    assert code == 0 and packed["reference"] == "mlp@1" and not packed["current"]
    assert packed["features"] == list(BOOK) and packed["normalisation"] == "input"
    assert packed["training"]["data_sha256"] == hashlib.sha256(
        (at / "train.npz").read_bytes()).hexdigest()
    model = Model(packed["path"], packed["sha256"])
    rows = np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)
    np.testing.assert_allclose(model.predict(rows), bare(rows), atol=1e-5)
    sample = np.load(at / "train.npz")["x"]
    counts = np.array(model.card["distribution"]["counts"])
    assert counts.shape == (16, 10) and (counts.sum(axis=1) == len(sample)).all()
    assert counts.min() >= 45 and counts.max() <= 55        # deciles

    code, checked, _ = run(capsys, "check", "mlp@1", *options)
    assert code in (0, 9) and checked["within_budget"] == (code == 0)
    assert checked["sha256"] == packed["sha256"] and checked["budget"] == {"p99_us": 80}
    assert checked["latency_ns"]["count"] == 20_000 and 0 < checked["latency_ns"]["p50"] \
        <= checked["latency_ns"]["p99"] <= checked["latency_ns"]["max"]
    assert checked["parity"]["vectors"] == 8 and checked["parity"]["error"] < 1e-5

    code, promoted, _ = run(capsys, "promote", "mlp", 1, *options)
    assert code == 0 and promoted["current"]
    code, listed, _ = run(capsys, "ls", *options)
    assert code == 0 and [(m["reference"], m["current"]) for m in listed["models"]] == [
        ("mlp@1", True)]
    # Its own card is enough: another budget makes another version.
    code, again, _ = run(capsys, "pack", packed["path"], "--name", "mlp", "--budget-us", "90",
                         "--promote", *options)
    assert code == 0 and again["reference"] == "mlp@2" and again["current"]
    assert {k: v for k, v in Model(again["path"]).card.items() if k != "budget"} == {
        k: v for k, v in model.card.items() if k != "budget"}
    code, text, _ = run(capsys, "ls", "--registry", shelf.path)
    assert code == 0 and [line.split()[:3] for line in text.splitlines()[1:]] == [
        ["mlp", "1", packed["sha256"][:16]], ["mlp", "2", "*"]]


def test_what_does_not_fit_is_not_packed(bare, shelf, capsys):
    at = bare.folder
    good = {"--features": "book", "--normalisation": at / "normal.json",
            "--parity": at / "parity.npz", "--data-sha256": "a" * 64}

    def pack(file=at / "bare.onnx", **changes):
        options = good | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
        flat = [part for k, v in options.items() if v is not None for part in (k, v)]
        return run(capsys, "pack", file, *flat, "--registry", shelf.path)

    swapped = ",".join((BOOK[1], BOOK[0], *BOOK[2:]))
    (at / "swapped.npz").write_bytes(b"PK")
    for code, message, kwargs in (
            (4, "parity vector", {"normalisation": "graph"}),
            (4, "wanted a feature, found 'mid_retrn': did you mean 'mid_return'?",
             {"features": "mid_retrn"}),
            (4, "wanted one input f32[1 or ?, 15], found f32[?, 16]",
             {"features": ",".join(BOOK[:15]), "parity": bare15(at), "normalisation": "graph"}),
            (4, "in training.data_sha256, found 'abc'", {"data_sha256": "abc"}),
            (2, "has no card: wanted --parity", {"parity": None}),
            (2, "has no card: wanted --data or --data-sha256", {"data_sha256": None}),
            (2, "no.npz: No such file", {"parity": at / "no.npz"}),
            (2, "must be an .npz with inputs and outputs", {"parity": at / "swapped.npz"}),
            (2, "--horizon must be JSON", {"horizon": "soon"}),
            (4, "wanted a horizon such as", {"horizon": "[1]"}),
            (2, "model", {"file": at / "none.onnx"}),
            (4, "wanted an ONNX model", {"file": at / "names.txt"})):
        found, _, err = pack(**kwargs)
        assert (found, err.count("\n")) == (code, 1) and message in err, (kwargs, err)
    assert shelf.versions() == []
    assert pack(features=swapped)[0] == 0       # another model: its inputs are in that order
    assert pack(data=at / "train.npz", data_sha256=None)[0] == 0


def bare15(at):
    np.savez(at / "p15.npz", inputs=np.zeros((1, 15)), outputs=np.full((1, 3), 1 / 3))
    return at / "p15.npz"


def test_check_says_why_a_model_is_refused(tmp_path, capsys):
    assert run(capsys, "check", "demo", "--sha256", "0" * 64)[0] == 4
    code, out, err = run(capsys, "check", tmp_path / "none.onnx")
    assert code == 4 and not out and err.startswith("error: model ") and err.count("\n") == 1
    code, out, _ = run(capsys, "check", "demo")
    assert code in (0, 9) and f"sha256    {Model(DEMO).sha256}" in out
    assert "budget 50 us" in out and " 5 imbalance_top" in out
    assert run(capsys, "promote", "mlp", "1", "--registry", tmp_path)[0] == 4
    assert run(capsys, "promote", "mlp", "one")[0] == 2
    assert run(capsys, "ls", "--registry", tmp_path / "none")[1].startswith("no models in ")


def test_a_network_of_scikit_learn_is_packed_as_it_comes(tmp_path, shelf, capsys):
    """MLPClassifier behind a StandardScaler through skl2onnx: label and probabilities."""
    skl2onnx = pytest.importorskip("skl2onnx")
    pytest.importorskip("sklearn")
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    random = np.random.default_rng(0)
    x = random.standard_normal((400, 4)).astype(np.float32)
    y = np.digitize(x[:, 0] + x[:, 1], (-0.6, 0.6))
    fitted = make_pipeline(StandardScaler(), MLPClassifier((16,), solver="lbfgs", max_iter=200,
                                                           random_state=0))
    fitted.fit(x, y)
    made = skl2onnx.convert_sklearn(
        fitted, initial_types=[("features", FloatTensorType([None, 4]))], target_opset=17,
        options={id(fitted): {"zipmap": False}})
    (tmp_path / "skl.onnx").write_bytes(made.SerializeToString())
    np.savez(tmp_path / "p.npz", inputs=x[:20], outputs=fitted.predict_proba(x[:20]))
    np.savez(tmp_path / "t.npz", x=x, y=y)
    names = "imbalance_depth,order_flow,volatility,spread_bps"
    code, packed, err = run(
        capsys, "pack", tmp_path / "skl.onnx", "--features", names, "--normalisation", "graph",
        "--parity", tmp_path / "p.npz", "--data", tmp_path / "t.npz", "--registry", shelf.path,
        "-o", "json")
    assert code == 0, err
    model = Model(packed["path"])
    np.testing.assert_allclose(model.predict(x), fitted.predict_proba(x), atol=1e-5)
    vector = np.zeros(len(schema.CATALOGUE), np.float32)
    for name, value in zip(names.split(","), x[7], strict=True):
        vector[[f.name for f in schema.CATALOGUE].index(name)] = value
    np.testing.assert_allclose(model.ask(vector), fitted.predict_proba(x[7:8])[0], atol=1e-5)
