"""Train the demo model: features of an order book -> probabilities of down, flat and up.

    python research/train_demo.py                  writes src/models/demo.onnx and demo.json
    python research/train_demo.py --out DIRECTORY --seed 7 --states 4000 --epochs 2

1. Markets, all simulated, no recording: a third the local venue's traders seen through quotes,
   a third the same through price levels, both by way of hftpipe's own compiled book; a third
   zero-intelligence books whose flow leans to one side by a hidden pressure.  Price, sizes,
   speed and depth differ between the instruments, so the model learns what holds in all.
2. Features: hftpipe's own compiled ones, from BOOK records; the code that runs live.
3. Labels: the mid HORIZON states later, against now, in units of the spread now.
4. A 16-64-32-3 network, numpy only: Adam, cross-entropy, weight decay, early stopping on
   instruments that training never saw.
5. The file: clip -> Gemm, Relu -> Gemm, Relu -> Gemm -> Softmax.  Normalisation is folded into
   the first layer and the clip (mean +- 5 std) stands before it, so that nothing outside the
   file has to be remembered.  Everything `hftpipe.card` asks of a file is in its metadata.

The same seed gives the same bytes on the same machine: one thread of linear algebra, no
clock, no set or hash order.
"""
from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")          # before numpy: order of sums
ROOT = Path(__file__).resolve().parent.parent
try:
    import hftpipe  # noqa: F401
except ImportError:
    sys.path.insert(0, str(ROOT / "build" / "view"))        # a source tree built in place

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from hftpipe import card, schema  # noqa: E402
from hftpipe._book import Book  # noqa: E402
from hftpipe._feature import BOOK, Features  # noqa: E402
from hftpipe.venue._traders import QUOTE, TRADE, Traders  # noqa: E402
from hftpipe.venue.traders import Instrument  # noqa: E402

Array = NDArray[Any]
VERSION = "1.0.0"
TRAINED = "2026-11-20"          # date of the version above; a clock would change the bytes
CLASSES = card.CLASSES
KINDS = ("quotes", "levels", "zero")
SIZES = (64, 32)
HORIZON = 32                    # states
MOVE = 0.5                      # spreads, from which on the mid has moved
BUDGET = 50.0                   # us that one inference may take
CLIP = 5.0                      # standard deviations
NANO = 10**9


# ---------------------------------------------------------------- 1 markets

def venue_market(seed: int, states: int, deep: bool) -> Array:
    """BOOK records of one instrument of the local venue: its traders, our book.

    *deep*: from price levels, as crypto is published; else from quotes, as stocks are.
    """
    random = np.random.default_rng(seed)
    tick, price = NANO // 100, NANO * int(np.exp(random.uniform(math.log(20), math.log(600))))
    unit = int(random.choice([NANO // 100, NANO, 100 * NANO]))
    rate = float(np.exp(random.uniform(math.log(50), math.log(20_000))))
    now = 10**12
    traders = Traders([Instrument("DEMO", price, tick, unit, deep)], seed, rate, now)
    book = Book(tick, price)
    record = np.zeros(1, schema.dtype(schema.MARKET))
    last = schema.MARKET_FLAG.LAST
    kinds = schema.MARKET_KIND

    def apply(kind: int, side: int, price: int, qty: int, flags: int) -> None:
        record["kind"], record["side"], record["flags"] = kind, side, flags
        record["price"], record["qty"], record["ts_recv"] = price, qty, now
        book.apply(record.view(np.uint8).data)

    rows: list[tuple[int, ...]] = []

    def state() -> None:
        if len(rows) < states:
            rows.append((now, *book.view().values()))

    if deep:
        apply(kinds.CLEAR, 0, 0, 0, 0)
        levels = [(side, *level) for side in (1, -1) for level in traders.levels(0, side)]
        for i, (side, at, qty) in enumerate(levels):
            apply(kinds.LEVEL, side, at, qty, last * (i == len(levels) - 1))
    while len(rows) < states:
        now += max(1, int(1e9 / rate))
        traders.step(now)
        messages = [m for m in traders.take() if not (deep and m[0] == QUOTE)]
        for i, (kind, _, side, a, b, c, d, number, *_rest) in enumerate(messages):
            if kind == TRADE:
                apply(kinds.TRADE, side, a, b, last)
            elif kind == QUOTE:
                apply(kinds.QUOTE, 1, a, b, 0)
                apply(kinds.QUOTE, -1, c, d, last)
            else:
                more = i + 1 < len(messages) and messages[i + 1][0] == kind and (
                    messages[i + 1][7] == number)
                apply(kinds.LEVEL, side, a, b, last * (not more))
                if more:
                    continue
            state()
    out = np.zeros(states, BOOK)
    table = np.array(rows, np.int64)
    for i, name in enumerate(("ts_recv", *book.view())):
        out[name] = table[:, i]
    return out


def market(seed: int, states: int, kind: str) -> Array:
    """BOOK records of one instrument of one of the KINDS."""
    if kind == "zero":
        return zero_market(seed, states)
    return venue_market(seed, states, kind == "levels")


def zero_market(seed: int, states: int) -> Array:
    """BOOK records of one instrument: *states* states of a zero-intelligence book.

    Each event is a limit order, a cancel or a market order.  A hidden pressure in [-1, 1],
    an autoregression, tilts who sends them; everything else is uniform or geometric.
    """
    random = np.random.default_rng(seed)
    tick = NANO // 100
    lot = NANO * int(random.choice([1, 1, 10, 100]))
    centre = int(random.integers(2_000, 60_000))            # ticks
    pace = float(np.exp(random.uniform(math.log(2e5), math.log(2e8))))      # ns between events
    share = float(random.uniform(0.06, 0.20))               # market orders
    cancels = float(random.uniform(0.35, 0.45))
    reach = float(random.uniform(0.25, 0.55))               # geometric: how near the touch
    mean_lots = float(random.uniform(2, 8))
    memory = float(np.exp(-1 / random.uniform(30, 150)))    # of the pressure, per event
    lean = float(random.uniform(0.5, 1.0))
    uniform = iter(random.random(8 * states + 10_000).tolist())
    normal = iter(random.standard_normal(2 * states + 2_000).tolist())
    lots_log = math.log(1 - 1 / mean_lots)
    reach_log = math.log(1 - reach)

    book: tuple[dict[int, int], dict[int, int]] = ({}, {})  # bids, asks: tick -> lots
    for i in range(1, 30):
        book[0][centre - i] = 1 + int(next(uniform) * 2 * mean_lots)
        book[1][centre + i] = 1 + int(next(uniform) * 2 * mean_lots)
    best = [centre - 1, centre + 1]
    out = np.zeros(states, BOOK)
    rows = []
    now, pressure, volume = 10**12, 0.0, 0
    last = (0, 0, 0)

    def lots() -> int:
        return 1 + int(math.log(1 - next(uniform)) / lots_log)

    def settle(side: int) -> None:
        """The best price of *side* after its best level may have gone; never an empty side."""
        step, levels = (-1, 1)[side], book[side]
        if len(levels) < 8:                                 # far liquidity never runs out
            edge = (min if side == 0 else max)(levels, default=best[side])
            for i in range(1, 25):
                levels[edge + step * i] = lots()
        best[side] = (max if side == 0 else min)(levels)

    warm = 500
    for n in range(-warm, states):
        now += 1 + int(-pace * math.log(1 - next(uniform)))
        pressure = memory * pressure + math.sqrt(1 - memory * memory) * next(normal)
        tilt = 0.5 + 0.45 * lean * math.tanh(pressure)
        what, flags = next(uniform), 0
        if what < share:                                    # takes liquidity
            buyer = next(uniform) < tilt
            side = 1 if buyer else 0                        # the side that is hit
            price, wanted = best[side], lots()
            done = min(wanted, book[side][price])
            book[side][price] -= done
            if not book[side][price]:
                del book[side][price]
                settle(side)
            volume += done
            last, flags = (price, done, 1 if buyer else -1), schema.BOOK_FLAG.TRADE
        elif what < share + cancels:                        # withdraws
            side = 0 if next(uniform) > tilt else 1
            levels = book[side]
            step = (-1, 1)[side]
            price = best[side] + step * int(math.log(1 - next(uniform)) / reach_log)
            if price in levels:
                levels[price] -= min(lots(), levels[price])
                if not levels[price]:
                    del levels[price]
                    settle(side)
        else:                                               # adds
            side = 0 if next(uniform) < tilt else 1
            step = (-1, 1)[side]
            price = best[1 - side] + step * (1 + int(math.log(1 - next(uniform)) / reach_log))
            book[side][price] = book[side].get(price, 0) + lots()
            if (price > best[0]) if side == 0 else (price < best[1]):
                best[side] = price
        if n < 0:
            continue
        bid, ask = best
        depth = [sum(levels[p] for p in sorted(levels, reverse=not s)[:schema.DEPTH])
                 for s, levels in enumerate(book)]
        rows.append((now, bid, ask, book[0][bid], book[1][ask], *depth, *last, volume, flags))
        if n % 512 == 0:                                    # forget what the market left behind
            for s, levels in enumerate(book):
                for p in [p for p in levels if abs(p - best[s]) > 200]:
                    del levels[p]
    table = np.array(rows, np.int64)
    for i, (name, scale) in enumerate((
            ("ts_recv", 1), ("bid", tick), ("ask", tick), ("bid_qty", lot), ("ask_qty", lot),
            ("bid_depth", lot), ("ask_depth", lot), ("last_price", tick), ("last_qty", lot),
            ("last_side", 1), ("volume", lot), ("flags", 1))):
        out[name] = table[:, i] * scale
    return out


# ---------------------------------------------------------------- 2, 3 samples

def samples(seed: int, states: int, every: int, kind: str) -> tuple[Array, Array]:
    """Features (n, 16) float32 and classes (n,) of one instrument."""
    books = market(seed, states, kind)
    vectors, warm = Features().update_many(books)
    mid = (books["bid"] + books["ask"]) / 2
    spread = (books["ask"] - books["bid"]).astype(np.float64)
    move = np.full(states, np.nan)
    spread[spread <= 0] = np.nan                            # locked: no unit to measure in
    move[:-HORIZON] = (mid[HORIZON:] - mid[:-HORIZON]) / spread[:-HORIZON]
    pick = np.flatnonzero(warm & np.isfinite(move))[::every]
    label = 1 + (move[pick] >= MOVE).astype(np.int64) - (move[pick] <= -MOVE).astype(np.int64)
    return vectors[pick], label


# ---------------------------------------------------------------- 4 network

def forward(layers: list[Array], x: Array) -> tuple[list[Array], Array]:
    """Activations of each layer and the probabilities; *layers* are w, b, w, b, w, b."""
    seen = [x]
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        if i < len(layers) - 2:
            x = np.maximum(x, 0)
            seen.append(x)
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return seen, x / x.sum(axis=1, keepdims=True)


def cross_entropy(p: Array, y: Array) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-12)).mean())


def train(x: Array, y: Array, x_held: Array, y_held: Array, seed: int, epochs: int) -> list[Array]:
    """Fit by Adam; the weights of the epoch that was best on the held-out instruments."""
    random = np.random.default_rng(seed)
    widths = (x.shape[1], *SIZES, len(CLASSES))
    layers: list[Array] = []
    for a, b in itertools.pairwise(widths):
        layers += [random.standard_normal((a, b)) * math.sqrt(2 / a), np.zeros(b)]
    first = [np.zeros_like(w) for w in layers]
    second = [np.zeros_like(w) for w in layers]
    best, best_loss, step, batch = layers, math.inf, 0, 512
    for epoch in range(epochs):
        order = random.permutation(len(x))
        rate = 2e-3 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        for at in range(0, len(x) - batch + 1, batch):
            pick = order[at:at + batch]
            seen, p = forward(layers, x[pick])
            delta = p.copy()
            delta[np.arange(batch), y[pick]] -= 1
            delta /= batch
            gradients: list[Array] = []
            for i in range(len(layers) - 2, -1, -2):
                below = seen[i // 2]
                gradients[:0] = [below.T @ delta + 1e-4 * layers[i], delta.sum(axis=0)]
                if i:
                    delta = (delta @ layers[i].T) * (below > 0)
            step += 1
            for i, g in enumerate(gradients):
                first[i] = 0.9 * first[i] + 0.1 * g
                second[i] = 0.999 * second[i] + 0.001 * g * g
                layers[i] = layers[i] - rate * (first[i] / (1 - 0.9**step)) / (
                    np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
        loss = cross_entropy(forward(layers, x_held)[1], y_held)
        print(f"epoch {epoch + 1:2d}  held-out cross-entropy {loss:.4f}", file=sys.stderr)
        if loss < best_loss:
            best, best_loss = layers, loss
    return best


# ---------------------------------------------------------------- 5 the file

def graph(layers: list[Array], mean: Array, std: Array, name: str = "demo") -> Any:
    """The ONNX model of *layers* over ``clip((x - mean) / std)``; float32 throughout."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    w, b = layers[0] / std[:, None], layers[1] - (mean / std) @ layers[0]   # folded
    arrays = {"low": mean - CLIP * std, "high": mean + CLIP * std}
    nodes = [helper.make_node("Max", ["features", "low"], ["raised"]),
             helper.make_node("Min", ["raised", "high"], ["x0"])]
    last = len(layers) // 2 - 1
    for i in range(last + 1):
        arrays |= {f"w{i}": w if i == 0 else layers[2 * i],
                   f"b{i}": b if i == 0 else layers[2 * i + 1]}
        nodes.append(helper.make_node("Gemm", [f"x{i}", f"w{i}", f"b{i}"], [f"z{i}"]))
        if i < last:
            nodes.append(helper.make_node("Relu", [f"z{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("Softmax", [f"z{last}"], ["probabilities"], axis=-1))

    def end(name: str, width: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])

    model = helper.make_model(
        helper.make_graph(
            nodes, name, [end("features", len(mean))], [end("probabilities", len(CLASSES))],
            [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in arrays.items()]),
        producer_name="hftpipe", producer_version=VERSION, ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    return model


def describe(mean: Array, std: Array, training: dict[str, Any], inputs: Array, outputs: Array,
             features: Sequence[str] = schema.FEATURE_SETS["book"],
             **more: Any) -> dict[str, Any]:
    """What a model file must say about itself; see ``hftpipe.card``."""
    return card.make(
        features, inputs, outputs,
        data_sha256=training["data_sha256"], training=training,
        normalisation={"where": "graph", "clip": CLIP, "mean": mean.tolist(),
                       "scale": std.tolist()},
        p99_us=BUDGET, horizon={"states": HORIZON, "spreads": MOVE}, **more)


def normalise(x: Array, mean: Array, std: Array) -> Array:
    return np.clip((x.astype(np.float64) - mean) / std, -CLIP, CLIP)


def measure(p: Array, y: Array) -> dict[str, Any]:
    """How good the probabilities are, on instruments that training never saw."""
    told, shares = p.argmax(axis=1), np.bincount(y, minlength=3) / len(y)
    sure = (p.max(axis=1) > 0.6) & (told != 1)
    found = {
        "samples": len(y), "accuracy": (told == y).mean(), "cross_entropy": cross_entropy(p, y),
        "cross_entropy_of_the_shares": -(shares * np.log(np.maximum(shares, 1e-12))).sum(),
        "sure_of_up_or_down": sure.mean(),              # above 0.6
        "right_when_sure": (told == y)[sure].mean() if sure.any() else 0,
        "opposite_when_sure": (abs(told - y) == 2)[sure].mean() if sure.any() else 0,
    }
    return {k: round(float(v), 4) if k != "samples" else v for k, v in found.items()} | {
        "shares": [round(float(v), 4) for v in shares]}


def build(seed: int, instruments: int, states: int, epochs: int) -> tuple[bytes, dict[str, Any]]:
    """Train; the file's bytes and its card."""
    every, held = 5, max(len(KINDS), instruments // 4)
    sets = [samples(seed * 1_000 + i, states, every, KINDS[i % len(KINDS)])
            for i in range(instruments)]
    x = np.concatenate([s[0] for s in sets[held:]])
    y = np.concatenate([s[1] for s in sets[held:]])
    x_held = np.concatenate([s[0] for s in sets[:held]])
    y_held = np.concatenate([s[1] for s in sets[:held]])
    digest = hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
    std = np.maximum(x.std(axis=0, dtype=np.float64), 1e-9).astype(np.float32).astype(np.float64)
    layers = train(normalise(x, mean, std), y, normalise(x_held, mean, std), y_held, seed, epochs)
    layers = [w.astype(np.float32).astype(np.float64) for w in layers]
    p = forward(layers, normalise(x_held, mean, std))[1]
    market_of = np.concatenate([np.full(len(s[1]), i % len(KINDS)) for i, s in
                                enumerate(sets[:held])])
    quality = {name: measure(p[market_of == i], y_held[market_of == i])
               for i, name in enumerate(KINDS)}
    training = {"version": VERSION, "trained": TRAINED, "seed": seed,
                "instruments": instruments - held, "held_out_instruments": held,
                "samples": len(y), "data_sha256": digest,
                "data": "simulated books, research/train_demo.py",
                "quality": quality}
    pick = np.linspace(0, len(x_held) - 1, 16).astype(int)
    made = describe(mean, std, training, x_held[pick], p[pick], sample=x)
    model = graph(layers, mean, std)
    return card.stamp(model.SerializeToString(deterministic=True), made), made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "src" / "models")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--instruments", type=int, default=48)
    parser.add_argument("--states", type=int, default=16_000)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args(argv)
    data, made = build(args.seed, args.instruments, args.states, args.epochs)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "demo.onnx").write_bytes(data)
    sheet = {"file": "demo.onnx", "sha256": hashlib.sha256(data).hexdigest(),
             **{k: v for k, v in made.items() if k not in ("parity", "distribution")}}
    (args.out / "demo.json").write_text(json.dumps(sheet, indent=2) + "\n")
    print(json.dumps(made["training"], indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
