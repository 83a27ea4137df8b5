"""What a model file says about itself: the card, as metadata inside the ONNX file.

One file holds graph and card, so neither can be changed or copied without the other, and one
sha256 names both.  Each entry is JSON under ``hftpipe.<key>`` in ``metadata_props``:

==============  ======================================================================
format          version of this list
features        names of the inputs in their order, each from ``schema.CATALOGUE``
feature_hash    ``schema.feature_hash(features, bar)``, as 0x and 16 digits
bar             window of the bars that the features are made from; "" when none is
classes         names of the outputs in their order
normalisation   ``{"where": "graph"}`` when the graph does it; ``{"where": "input", "mean",
                "scale", "clip"}`` when we do: (x - mean) / scale, then cut at +-clip
training        ``data_sha256`` of what it was trained on, and whatever else is worth keeping
parity          inputs, as they are before normalisation, and the outputs that the training
                program computed for them
budget          ``{"p99_us": number}``: what one inference may take
horizon         ``{"states" or "ns": n, "spreads" or "bps": x}``: when the prediction is due,
                and the move of the mid that counts as up or down; null when unknown
distribution    ``{"edges": [[9], ...], "counts": [[10], ...]}``: deciles of each feature in
                training and how many values fell between them; null when unknown
==============  ======================================================================

Nothing here needs the ``onnx`` package: a card is read from and written into the bytes of the
file, and the rest of the file stays as it is.
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hftpipe import schema
from hftpipe.errors import ConfigError

FORMAT = "2"
CLASSES = ("down", "flat", "up")
TOLERANCE = 1e-5                # of a parity output
PREFIX = "hftpipe."
KEYS = ("format", "features", "feature_hash", "bar", "classes", "normalisation", "training",
        "parity", "budget", "horizon", "distribution")
DECILES = 10

Card = dict[str, Any]


# ---------------------------------------------------------------- reading and judging

def parse(metadata: Mapping[str, str]) -> Card:
    """The card in a file's metadata.

    Raises
    ------
    ConfigError
        If an entry is missing or no JSON.
    """
    missing = [key for key in KEYS if PREFIX + key not in metadata]
    if "format" not in missing:             # said first: another format has other keys
        _demand("format", FORMAT, _json(metadata, "format"))
    if missing:
        raise ConfigError(f"wanted metadata {', '.join(PREFIX + key for key in KEYS)}, found no "
                          f"{PREFIX}{missing[0]}: not packed? (hftpipe model pack)")
    return {key: _json(metadata, key) for key in KEYS}


def _json(metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata[PREFIX + key])
    except ValueError:
        raise ConfigError(f"wanted JSON in {PREFIX}{key}, "
                          f"found {metadata[PREFIX + key][:40]!r}") from None


def _demand(what: str, wanted: object, found: object) -> None:
    if wanted != found:
        raise ConfigError(f"wanted {what} {wanted}, found {found}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check(card: Card, bar: str | None = None,
          catalogue: Sequence[schema.Feature] | None = None) -> None:
    """Refuse a card that this build cannot serve.

    Parameters
    ----------
    card : dict
        As :func:`parse` gives it.
    bar : str, optional
        Window of bars that the features here are made from; None: any.
    catalogue : sequence of schema.Feature
        What the model may ask for.

    Raises
    ------
    ConfigError
        One line with what was wanted and what was found.
    """
    _demand("format", FORMAT, card["format"])
    _features(card, bar, schema.CATALOGUE if catalogue is None else catalogue)
    _demand("classes", list(CLASSES), card["classes"])
    count = len(card["features"])
    _normalisation(card["normalisation"], card["features"])
    training = card["training"]
    digest = training.get("data_sha256") if isinstance(training, dict) else training
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ConfigError(f"wanted 64 hexadecimal digits in training.data_sha256, found {digest!r}")
    budget = card["budget"]
    if not isinstance(budget, dict) or not _number(budget.get("p99_us")) or budget["p99_us"] <= 0:
        raise ConfigError(f'wanted a budget such as {{"p99_us": 50}}, found {budget!r}')
    horizon(card)
    _distribution(card["distribution"], count)


def _features(card: Card, bar: str | None, catalogue: Sequence[schema.Feature]) -> None:
    names, window = card["features"], card["bar"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"wanted a list of features, found {names!r}")
    if not isinstance(window, str):
        raise ConfigError(f"wanted a window of bars, found {window!r}")
    try:
        wanted = schema.feature_hash(names, window, catalogue)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    found = card["feature_hash"]
    if found != f"0x{wanted:016x}":
        # The commonest lie is an order: say which name stands in whose place.
        for right in ([f.name for f in catalogue if f.name in names],
                      *map(list, schema.FEATURE_SETS.values())):
            if (sorted(right) == sorted(names) and right != names
                    and f"0x{schema.feature_hash(right, window, catalogue):016x}" == found):
                i = next(i for i, name in enumerate(right) if name != names[i])
                raise ConfigError(f"wanted feature {i} {right[i]}, found {names[i]}")
        raise ConfigError(f"wanted feature hash 0x{wanted:016x}, found {found}: made for other "
                          "features, or for other definitions of them")
    made = any(f.bars for f in catalogue if f.name in names)
    if made and bar is not None:
        _demand("bars of", bar, window)


def _normalisation(found: Any, names: Sequence[str]) -> None:
    where = found.get("where") if isinstance(found, dict) else found
    if where not in ("graph", "input"):
        raise ConfigError(f'wanted normalisation "graph" or "input", found {where!r}')
    for key in ("mean", "scale") if where == "input" else [k for k in ("mean", "scale")
                                                           if k in found]:
        values = found.get(key)
        if not isinstance(values, list) or len(values) != len(names):
            raise ConfigError(f"wanted normalisation.{key} of {len(names)} numbers, found "
                              f"{len(values) if isinstance(values, list) else repr(values)}")
        for name, value in zip(names, values, strict=True):
            if not _number(value) or (key == "scale" and value <= 0):
                raise ConfigError(f"wanted normalisation.{key} of {name} "
                                  f"{'positive' if key == 'scale' else 'finite'}, found {value!r}")
    clip = found.get("clip")
    if clip is not None and (not _number(clip) or clip <= 0):
        raise ConfigError(f"wanted normalisation.clip positive or null, found {clip!r}")


def horizon(card: Card) -> tuple[str, int, str, float] | None:
    """``("states" or "ns", n, "spreads" or "bps", x)``; None when the card tells none.

    Raises
    ------
    ConfigError
        If it tells something else.
    """
    found = card["horizon"]
    if found is None:
        return None
    if isinstance(found, dict) and len(found) == 2:
        when = [k for k in ("states", "ns") if k in found]
        move = [k for k in ("spreads", "bps") if k in found]
        if len(when) == len(move) == 1:
            n, x = found[when[0]], found[move[0]]
            if type(n) is int and 0 < n < 2**62 and _number(x) and x > 0:
                return when[0], n, move[0], float(x)
    raise ConfigError('wanted a horizon such as {"states": 32, "spreads": 0.5}, '
                      f"{{\"ns\": 1000000000, \"bps\": 1}} or null, found {found!r}")


def _distribution(found: Any, count: int) -> None:
    if found is None:
        return
    for key, width in (("edges", DECILES - 1), ("counts", DECILES)):
        rows = found.get(key) if isinstance(found, dict) else None
        if not isinstance(rows, list) or len(rows) != count or not all(
                isinstance(row, list) and len(row) == width and all(map(_number, row))
                for row in rows):
            raise ConfigError(f"wanted distribution.{key} of {count} rows of {width} numbers, or "
                              "null, found something else")
        for i, row in enumerate(rows):
            if key == "edges" and row != sorted(row):
                raise ConfigError(f"wanted ascending distribution.edges, found {row} of feature "
                                  f"{i}")
            if key == "counts" and (min(row) < 0 or sum(row) <= 0):
                raise ConfigError(f"wanted distribution.counts with values, found {row} of "
                                  f"feature {i}")


# ---------------------------------------------------------------- making

def make(features: Sequence[str], inputs: Any, outputs: Any, *, data_sha256: str, bar: str = "",
         normalisation: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None,
         p99_us: float = 50.0, horizon: Mapping[str, Any] | None = None, sample: Any = None,
         catalogue: Sequence[schema.Feature] | None = None) -> Card:
    """A card.

    Parameters
    ----------
    features : sequence of str
        In the order of the input.
    inputs, outputs : (n, features), (n, 3) array-like
        Parity vectors: raw inputs, and what the training program computed for them.
    data_sha256 : str
        Of the training data.
    bar : str
        Window of bars, when a feature is made from them.
    normalisation : mapping, optional
        Default ``{"where": "graph"}``.
    training : mapping, optional
        More about the training.
    p99_us : float
        What one inference may take.
    horizon : mapping, optional
    sample : (n, features) array, optional
        Training inputs, for the distribution.

    Raises
    ------
    ConfigError
        As :func:`check`.
    """
    import numpy
    try:
        digest = schema.feature_hash(features, bar, catalogue)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    made: Card = {
        "format": FORMAT, "features": list(features), "feature_hash": f"0x{digest:016x}",
        "bar": bar if any(f.bars for f in catalogue or schema.CATALOGUE
                          if f.name in features) else "",
        "classes": list(CLASSES),
        "normalisation": dict(normalisation or {"where": "graph"}),
        "training": {**(training or {}), "data_sha256": data_sha256},
        "parity": {"inputs": numpy.asarray(inputs, numpy.float32).tolist(),
                   "outputs": numpy.asarray(outputs, numpy.float64).tolist()},
        "budget": {"p99_us": p99_us}, "horizon": horizon,
        "distribution": None if sample is None else distribution(sample),
    }
    check(made, None, catalogue)
    return made


def distribution(sample: Any) -> dict[str, Any]:
    """Deciles of each column of *sample*, (n, features), and the values between them.

    A value belongs to the bin whose number is how many edges are at or below it.
    """
    import numpy
    rows = numpy.asarray(sample, numpy.float32)
    edges = numpy.quantile(rows, numpy.arange(1, DECILES) / DECILES, axis=0).T.astype(numpy.float32)
    counts = [numpy.bincount(numpy.searchsorted(e, column, side="right"), minlength=DECILES)
              for e, column in zip(edges, rows.T, strict=True)]
    return {"edges": edges.tolist(), "counts": [c.tolist() for c in counts]}


# ---------------------------------------------------------------- the bytes of the file

METADATA_PROPS = 14             # field of ModelProto; onnx/onnx.proto


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


def _fields(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Fields of a protobuf message: number, where it begins and ends, content when it has length.

    Raises
    ------
    ConfigError
        If the bytes are no such message.
    """
    at = 0
    try:
        while at < len(data):
            start = at
            tag, at = _varint(data, at)
            content, kind = b"", tag & 7
            if kind == 2:
                size, at = _varint(data, at)
                content = data[at:at + size]
                if len(content) != size:
                    raise IndexError
                at += size
            elif kind == 0:
                _, at = _varint(data, at)
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
                if at > len(data):
                    raise IndexError
            else:
                raise IndexError
            if tag >> 3 == 0:
                raise IndexError
            yield tag >> 3, start, at, content
    except IndexError:
        raise ConfigError("wanted an ONNX model, found another or a broken file") from None


def _entry(content: bytes) -> tuple[str, str]:
    parts = {number: text for number, _, _, text in _fields(content)}
    return (parts.get(1, b"").decode("utf-8", "replace"),
            parts.get(2, b"").decode("utf-8", "replace"))


def metadata(data: bytes) -> dict[str, str]:
    """The ``metadata_props`` of an ONNX file's bytes.

    Raises
    ------
    ConfigError
        If they are no ONNX model.
    """
    return dict(_entry(content) for number, _, _, content in _fields(data)
                if number == METADATA_PROPS)


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes((*out, size))


def _text(number: int, text: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _length(len(text)) + text


def stamp(data: bytes, card: Mapping[str, Any]) -> bytes:
    """An ONNX file's bytes with *card* in place of whatever card they had."""
    kept = [data[start:end] for number, start, end, content in _fields(data)
            if number != METADATA_PROPS or not _entry(content)[0].startswith(PREFIX)]
    for key, value in card.items():
        kept.append(_text(METADATA_PROPS, _text(1, f"{PREFIX}{key}".encode())
                          + _text(2, json.dumps(value).encode())))
    return b"".join(kept)
