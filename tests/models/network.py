"""Model files for tests: any weights, any lie on the card; and the same network in numpy.

Uses the writer of ``research/train_demo.py``; `forward` below is on its own, in float64.
"""
from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hftpipe import card, schema

ROOT = Path(__file__).resolve().parent.parent.parent


def trainer() -> Any:
    """The module ``research/train_demo.py``."""
    name = "train_demo"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / "research/train_demo.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def forward(layers, x, mean, std, clip=5.0):
    """Probabilities (n, 3) of clip((x - mean) / std) through the layers."""
    x = np.clip((np.asarray(x, np.float64) - mean) / std, -clip, clip)
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        if i < len(layers) - 2:
            x = np.where(x > 0, x, 0)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


BOOK = schema.FEATURE_SETS["book"]


class Network:
    """Random weights for *features*; edit its parts, then `write`."""

    def __init__(self, seed=0, features=BOOK, widths=(64, 32), catalogue=schema.CATALOGUE):
        random = np.random.default_rng(seed)
        count = len(features)
        sizes = (count, *widths, 3)
        self.features, self.catalogue = tuple(features), catalogue
        self.layers = []
        for a, b in itertools.pairwise(sizes):
            self.layers += [(random.standard_normal((a, b)) * (2 / a) ** 0.5).astype(np.float32)
                            .astype(np.float64), random.standard_normal(b) * 0.1]
        self.mean = random.standard_normal(count) * 0.1
        self.std = random.uniform(0.5, 2, count)
        self.inputs = (random.standard_normal((8, count)) * 2).astype(np.float32)

    def __call__(self, x):
        return forward(self.layers, x, self.mean, self.std)

    def permuted(self, i, j):
        """The same network fed with features *i* and *j* exchanged."""
        other = Network(0, self.features)
        order = np.arange(len(self.mean))
        order[[i, j]] = j, i
        other.layers = [self.layers[0][order], *self.layers[1:]]
        other.mean, other.std, other.inputs = self.mean[order], self.std[order], self.inputs
        return other

    def card(self):
        return trainer().describe(self.mean, self.std, {"version": "test", "data_sha256": "0" * 64},
                                  self.inputs, self(self.inputs), self.features,
                                  catalogue=self.catalogue)

    def model(self):
        return trainer().graph(self.layers, self.mean, self.std, "test")

    def bare(self):
        """The graph without its normalisation, and the card's entry that leaves it to us."""
        zero, one = np.zeros(len(self.mean)), np.ones(len(self.mean))
        model = trainer().graph(self.layers, zero, one, "bare")
        model.graph.node[2].input[0] = "features"
        del model.graph.node[:2]
        return model, {"where": "input", "mean": self.mean.tolist(), "scale": self.std.tolist(),
                       "clip": 5.0}

    def write(self, path: Path, model=None, raw=None, **changes) -> Path:
        """*changes* replace entries of the card; None leaves one out; *raw* is not encoded."""
        made = {k: v for k, v in (self.card() | changes).items() if v is not None or k in NULLABLE}
        model = model or self.model()
        data = card.stamp(model.SerializeToString(), made)
        if raw:
            import onnx
            model = onnx.load_from_string(data)
            for entry in model.metadata_props:
                entry.value = raw.get(entry.key.removeprefix("hftpipe."), entry.value)
            data = model.SerializeToString()
        path.write_bytes(data)
        return path


NULLABLE = ("horizon", "distribution")


def demo_card() -> dict[str, Any]:
    return json.loads((ROOT / "src/models/demo.json").read_text())
