"""An inference: at most 5 us at p50 for an MLP 32-64-32-3, beside what Python offers.

Hot path: Model.infer (copy in, RunWithBinding through ONNX Runtime's C API, finite check, copy
out) without the GIL.  Peers in the same run, interleaved batch by batch: onnxruntime's
``session.run(dict)`` and its ``io_binding``, both with one thread and the same session options
as ours; the same answers are demanded of all.  The demo model (16-64-32-3 behind a clip) stands
beside it, hot and cold: cold is one inference after a walk over 16 MB, warmed or not.

    python -m pytest bench/bench_model.py --benchmark-only
    python bench/bench_model.py
"""
from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build/view"))
import harness as h
import numpy
import pytest

from hftpipe import card, schema
from hftpipe._model import Model
from hftpipe.models import DEMO

LIMIT = 5_000                   # ns at p50
WIDE = tuple(schema.Feature(f"f{i}", "") for i in range(32))


def trainer() -> Any:
    """``research/train_demo.py``: its writer makes the file."""
    spec = importlib.util.spec_from_file_location(
        "train_demo", h.ROOT / "research/train_demo.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wide_model(path: Path) -> None:
    """A bare MLP 32-64-32-3 with softmax: no clip, nothing to normalise."""
    t = trainer()
    random = numpy.random.default_rng(0)
    layers: list[Any] = []
    for a, b in ((32, 64), (64, 32), (32, 3)):
        layers += [(random.standard_normal((a, b)) * (2 / a) ** 0.5).astype(numpy.float32),
                   numpy.zeros(b, numpy.float32)]
    zero, one = numpy.zeros(32), numpy.ones(32)
    model = t.graph(layers, zero, one, "wide")
    clip, gemm = model.graph.node[:2], model.graph.node[2]
    gemm.input[0] = "features"
    for node in list(clip):
        model.graph.node.remove(node)
    for tensor in [i for i in model.graph.initializer if i.name in ("low", "high")]:
        model.graph.initializer.remove(tensor)
    inputs = random.standard_normal((4, 32)).astype(numpy.float32)
    outputs = t.forward(layers, inputs.astype(numpy.float64))[1]
    made = card.make([f.name for f in WIDE], inputs, outputs, data_sha256="0" * 64,
                     catalogue=WIDE)
    path.write_bytes(card.stamp(model.SerializeToString(), made))


def peers(path: Path, rows: Any) -> dict[str, Any]:
    """Functions ``(first, last) -> ns of each call`` over *rows*, and the answers they gave."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"])
    clock = time.perf_counter_ns
    answers = {"run": numpy.zeros((len(rows), 3), numpy.float32),
               "binding": numpy.zeros((len(rows), 3), numpy.float32)}

    def run(first: int, last: int) -> Any:
        out = answers["run"]
        times = numpy.zeros(last - first)
        for i in range(first, last):
            row = rows[i:i + 1]
            begin = clock()
            (p,) = session.run(None, {"features": row})
            times[i - first] = clock() - begin
            out[i] = p[0]
        return times

    x, y = numpy.zeros((1, 32), numpy.float32), numpy.zeros((1, 3), numpy.float32)
    binding = session.io_binding()
    binding.bind_input("features", "cpu", 0, numpy.float32, x.shape, x.ctypes.data)
    binding.bind_output("probabilities", "cpu", 0, numpy.float32, y.shape, y.ctypes.data)

    def bound(first: int, last: int) -> Any:
        out = answers["binding"]
        times = numpy.zeros(last - first)
        for i in range(first, last):
            begin = clock()
            x[0] = rows[i]
            session.run_with_iobinding(binding)
            times[i - first] = clock() - begin
            out[i] = y[0]
        return times

    return {"run(dict)": run, "io_binding": bound, "answers": answers}


def work(count: int, batch: int) -> dict[str, Any]:
    m = h.compiled("_signal_loop")
    random = numpy.random.default_rng(1)
    rows = random.standard_normal((count, 32)).astype(numpy.float32)
    with tempfile.TemporaryDirectory(prefix="hftpipe-bench-") as folder:
        path = Path(folder, "wide.onnx")
        wide_model(path)
        ours = Model(path, backend="c", catalogue=WIDE)
        theirs = peers(path, rows)
    answers = theirs.pop("answers")
    ours.warm(1_000)
    times: dict[str, list[Any]] = {"ours": [], "run(dict)": [], "io_binding": []}
    mine = numpy.zeros((count, 3), numpy.float32)
    for first in range(0, count, batch):
        last = min(first + batch, count)
        each, mine[first:last] = m.infer(ours, rows[first:last])
        times["ours"].append(each)
        for name, function in theirs.items():
            times[name].append(function(first, last))
    for found in answers.values():
        assert abs(found - mine).max() < 1e-6
    p50 = {name: [float(numpy.median(t)) for t in batches] for name, batches in times.items()}
    result: dict[str, Any] = {
        name: h.percentiles(numpy.concatenate(batches)) for name, batches in times.items()}
    result["ours p50, ns"] = h.target(result["ours"]["p50"], LIMIT)
    for name in theirs:
        result[f"{name} to ours, p50"] = 1 / h.median_ratio(p50["ours"], p50[name])

    demo = Model(DEMO, backend="c")
    inputs = numpy.array(demo.card["parity"]["inputs"], numpy.float32)
    vectors = numpy.zeros((len(inputs), demo.width), numpy.float32)
    vectors[:, schema.feature_index(demo.card["features"])] = inputs
    many = vectors[random.integers(0, len(inputs), count)]
    result["demo"] = h.percentiles(m.infer(demo, many)[0])
    walk = numpy.zeros(16 << 20, numpy.uint8)
    for name, warm in (("demo after 16 MB of other things", 0), ("the same, warmed once", 1)):
        cold = []
        for i in range(max(count // 200, 50)):
            walk += 1
            demo.warm(warm)
            cold.append(int(m.infer(demo, many[i:i + 1])[0][0]))
        result[name] = h.percentiles(cold)
    return result | {"runtime": ours.runtime, "clock": m.clock(100_000)}


def measure() -> dict[str, Any]:
    core = max(h.os.sched_getaffinity(0))
    size = (200_000, 2_000) if h.FULL else (10_000, 500)
    h.compiled("_signal_loop")
    result: dict[str, Any] = h.pinned([(core, work, size)])[0]
    return result


def test_model(benchmark: Any) -> None:
    pytest.importorskip("onnx", reason="writing the model needs onnx")
    result = benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info.update(result)
    h.save("model", result)
    if h.FULL:
        assert result["ours p50, ns"]["met"], result


if __name__ == "__main__":
    figures = measure()
    print(h.machine_line())
    print(h.save("model", figures))
    for key, value in figures.items():
        print(f"  {key:40}", value)
    if not figures["ours p50, ns"]["met"]:
        sys.exit("target missed")
