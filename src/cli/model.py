"""``hftpipe model``: pack models into the registry, check, list and promote them."""
from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hftpipe.cli._common import Settings, columns, emit, shared, span
from hftpipe.errors import Exit

if TYPE_CHECKING:
    from hftpipe._model import Model
    from hftpipe.registry import Registry, Version

MEASURED = 20_000               # inferences of a check

_registry = click.option("--registry", metavar="DIR", help="Instead of the configuration's models.")


def _open(settings: Settings, folder: str | None) -> Registry:
    from hftpipe import registry
    if folder is not None:
        return registry.Registry(registry.default(folder))
    loaded = settings.load()
    return registry.Registry(registry.default(
        loaded.models, loaded.path.parent if loaded.path else None))


def _file(path: str, what: str) -> bytes:
    from hftpipe.errors import UsageError
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise UsageError(f"{what} {path}: {e.strerror}") from None


def _document(path: str, what: str) -> Any:
    from hftpipe.errors import UsageError
    try:
        return json.loads(_file(path, what))
    except ValueError as e:
        raise UsageError(f"{what} {path} is not JSON: {e}") from None


def _arrays(path: str, what: str, *names: str) -> list[Any]:
    """Arrays *names* of an .npz, or lists of a JSON object."""
    import numpy

    from hftpipe.errors import UsageError
    if not path.endswith(".npz"):
        found = _document(path, what)
        if not isinstance(found, dict) or any(name not in found for name in names):
            raise UsageError(f"{what} {path} must hold {' and '.join(names)}")
        return [found[name] for name in names]
    _file(path, what)
    try:
        with numpy.load(path, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except (KeyError, ValueError, OSError, TypeError, AttributeError) as e:
        raise UsageError(f"{what} {path} must be an .npz with {' and '.join(names)}: {e}") from None


def _summary(model: Model) -> dict[str, Any]:
    """What a model is, JSON-ready."""
    card = model.card
    return {"sha256": model.sha256, "id": f"{model.id:016x}", "features": card["features"],
            "feature_hash": card["feature_hash"], "bar": card["bar"], "classes": card["classes"],
            "normalisation": card["normalisation"]["where"], "training": card["training"],
            "budget": card["budget"], "horizon": card["horizon"],
            "distribution": card["distribution"] is not None,
            "parity": {"vectors": len(card["parity"]["inputs"]), "error": model.deviation},
            "runtime": model.runtime, "backend": model.backend}


def _about(version: Version) -> dict[str, Any]:
    return {"name": version.name, "version": version.version, "reference": version.reference,
            "sha256": version.sha256, "packed": version.packed, "current": version.current,
            "path": str(version.path)}


@click.group("model", no_args_is_help=False,
             epilog="Example: hftpipe model check demo",
             help="""Models: pack an ONNX file with its card, check, list and promote versions.

A strategy takes one by `model = "NAME"` (the current version) or `"NAME@VERSION"`.
`reload` gives a running pipeline another one.""")
@shared
def command() -> None:
    pass


@command.command("pack", epilog="Example: hftpipe model pack mlp.onnx --features book "
                                "--parity parity.npz --data train.npz")
@click.argument("file")
@click.option("--name", metavar="NAME", help="In the registry; default the file's own.")
@click.option("--features", metavar="LIST",
              help="Names in the order of the input, comma-separated, a file with one a line, or "
                   "a set such as book.")
@click.option("--bar", metavar="WINDOW", help="Window of the bars that features are made from.")
@click.option("--normalisation", metavar="graph|FILE",
              help='"graph": the graph does it.  A JSON file with mean, scale and clip: we do.')
@click.option("--parity", metavar="FILE",
              help="inputs and outputs of the training program, .npz or JSON.")
@click.option("--data", metavar="FILE",
              help="Training data, an .npz with x (n, features): its hash and distribution.")
@click.option("--data-sha256", metavar="HEX", help="Only the hash of the training data.")
@click.option("--budget-us", type=click.FloatRange(0, 1e6, min_open=True),
              help="What one inference may take at the 99th percentile.  [default: 50]")
@click.option("--horizon", metavar="JSON",
              help='When the prediction is due: {"states": 32, "spreads": 0.5} or '
                   '{"ns": 1000000000, "bps": 1}.')
@click.option("--promote", is_flag=True, help="Make it the current version at once.")
@_registry
@shared
@click.pass_obj
def pack(settings: Settings, file: str, name: str | None, features: str | None, bar: str | None,
         normalisation: str | None, parity: str | None, data: str | None, data_sha256: str | None,
         budget_us: float | None, horizon: str | None, promote: bool, registry: str | None) -> None:
    """Write a card into an ONNX file and keep the result as the next version.

    What is not given is taken from the card that FILE has already.  The packed file is loaded and
    its parity vectors are asked before anything is kept.
    """
    import tempfile

    from hftpipe import card as cards
    from hftpipe import schema
    from hftpipe._model import Model
    from hftpipe.errors import ConfigError, UsageError
    raw = _file(file, "model")
    try:
        found = cards.metadata(raw)
        old = cards.parse(found) if cards.PREFIX + "format" in found else {}
    except ConfigError as e:
        raise ConfigError(f"model {file}: {e}") from None
    lacking = [option for option, given, key in (
        ("--features", features, "features"), ("--parity", parity, "parity"),
        ("--data or --data-sha256", data or data_sha256, "training"))
        if not given and key not in old]
    if lacking:
        raise UsageError(f"model {file} has no card: wanted {', '.join(lacking)}")
    names: list[str] = old.get("features", [])
    if features is not None:
        if features in schema.FEATURE_SETS:
            names = list(schema.FEATURE_SETS[features])
        else:
            text = (_file(features, "features").decode("utf-8", "replace")
                    if "/" in features or Path(features).is_file()
                    else features.replace(",", "\n"))
            names = [line.strip() for line in text.splitlines() if line.strip()]
    inputs, outputs = (_arrays(parity, "parity", "inputs", "outputs") if parity
                       else (old["parity"]["inputs"], old["parity"]["outputs"]))
    training, sample = dict(old.get("training", {})), None
    if data is not None:
        (sample,) = _arrays(data, "training data", "x")
        training["data_sha256"] = hashlib.sha256(_file(data, "training data")).hexdigest()
    elif data_sha256 is not None:
        training["data_sha256"] = data_sha256
    normal = old.get("normalisation")
    if normalisation is not None:
        normal = {"where": "graph"} if normalisation == "graph" else {
            "clip": None, **_document(normalisation, "normalisation"), "where": "input"}
    due = old.get("horizon")
    if horizon is not None:
        try:
            due = json.loads(horizon)
        except ValueError:
            raise UsageError(f"--horizon must be JSON, was {horizon!r}") from None
    try:
        made = cards.make(
            names, inputs, outputs, training=training,
            data_sha256=training.get("data_sha256", ""),
            bar=bar if bar is not None else old.get("bar", ""), normalisation=normal,
            p99_us=budget_us or old.get("budget", {}).get("p99_us", 50.0), horizon=due,
            sample=sample)
    except (ConfigError, ValueError, TypeError) as e:
        raise ConfigError(f"model {file}: {e}") from None
    if sample is None:
        made["distribution"] = old.get("distribution")
    packed = cards.stamp(raw, made)
    with tempfile.TemporaryDirectory(prefix="hftpipe-pack-") as folder:
        trial = Path(folder, Path(file).name)
        trial.write_bytes(packed)
        try:
            model = Model(trial)
        except ConfigError as e:
            raise ConfigError(str(e).replace(str(trial), file)) from None
    shelf = _open(settings, registry)
    version = shelf.add(name or Path(file).stem.lower(), packed)
    if promote:
        version = shelf.promote(version.name, version.version)
    emit(settings, {**_about(version), **_summary(model)}, [
        f"packed {version.reference}  sha256 {version.sha256[:16]}...  {model.count} features  "
        f"parity {len(made['parity']['inputs'])} vectors, off by {model.deviation:.1e} at most",
        version.path.as_posix() + ("   (current)" if version.current else
                                   f"\nmake it current: hftpipe model promote {version.name} "
                                   f"{version.version}")])


@command.command("check", epilog="Example: hftpipe model check demo")
@click.argument("model")
@click.option("--sha256", metavar="HEX", help="Refuse any other file.")
@click.option("--bar", metavar="WINDOW", help="Refuse a model made for bars of another window.")
@_registry
@shared
@click.pass_obj
def check(settings: Settings, model: str, sha256: str | None, bar: str | None,
          registry: str | None) -> int:
    """Load MODEL (a path, NAME, NAME@VERSION or demo) as a run would; card, parity, latency.

    Exit code 4: refused, saying what was wanted and what was found.  9: its p99 is over its budget
    on this machine, now.
    """
    import numpy

    from hftpipe import registry as shelves
    from hftpipe._model import Model
    found = shelves.resolve(model, sha256, str(_open(settings, registry).path))
    loaded = Model(found.path, found.sha256, bar=bar)
    loaded.warm(1_000)
    times = loaded.measure(MEASURED)
    p50, p99 = (int(v) for v in numpy.percentile(times, (50, 99)))
    budget = loaded.card["budget"]["p99_us"] * 1_000
    within = p99 <= budget
    card = loaded.card
    due, where = card["horizon"], card["normalisation"]["where"]
    summary = _summary(loaded)
    emit(settings, {
        "model": found.reference, "path": str(found.path), **summary,
        "latency_ns": {"count": MEASURED, "p50": p50, "p99": p99, "max": int(times.max())},
        "within_budget": within}, [
        f"model     {found.reference}   {found.path}",
        f"sha256    {loaded.sha256}",
        f"features  {loaded.count}   hash {card['feature_hash']}   bars {card['bar'] or 'none'}",
        *(f"          {i:>2} {name}" for i, name in enumerate(card["features"])),
        f"classes   {' '.join(card['classes'])}   normalised in the {where}",
        "training  " + "   ".join(f"{k} {v}" for k, v in card["training"].items()
                                  if not isinstance(v, dict)),
        f"horizon   {json.dumps(due) if due else 'unknown: no accuracy is kept'}   distribution "
        f"{'kept' if card['distribution'] else 'unknown: no drift is kept'}",
        f"parity    {summary['parity']['vectors']} vectors, off by {loaded.deviation:.1e} at most",
        f"latency   p50 {span(p50)}   p99 {span(p99)}   budget {span(round(budget))}"
        + ("" if within else "   OVER BUDGET")
        + f"   ONNX Runtime {loaded.runtime} ({loaded.backend})"])
    return Exit.OK if within else Exit.MISMATCH


@command.command("ls", epilog="Example: hftpipe model ls -o json")
@_registry
@shared
@click.pass_obj
def ls(settings: Settings, registry: str | None) -> None:
    """List what is packed; * marks the current version of each name."""
    shelf = _open(settings, registry)
    found = shelf.versions()
    emit(settings, {"registry": str(shelf.path), "models": [_about(v) for v in found]},
         columns([(v.name, v.version, "*" if v.current else "", v.sha256[:16], v.packed)
                  for v in found], ("name", "version", "", "sha256", "packed"))
         if found else [f"no models in {shelf.path}"])


@command.command("promote", epilog="Example: hftpipe model promote mlp 3")
@click.argument("name")
@click.argument("version", type=click.IntRange(1, 10**9))
@_registry
@shared
@click.pass_obj
def promote(settings: Settings, name: str, version: int, registry: str | None) -> None:
    """Make VERSION the one that NAME stands for from the next start on."""
    shelf = _open(settings, registry)
    found = shelf.promote(name, version)
    emit(settings, _about(found), [f"{found.name} is now {found.reference}  "
                                   f"sha256 {found.sha256[:16]}..."])


@command.command("reload", epilog="Example: hftpipe model reload mlp@3 --strategy trend")
@click.argument("model")
@click.option("--strategy", default="", metavar="NAME",
              help="Whose model; needed when several strategies have one.")
@click.option("--sha256", metavar="HEX", help="Refuse any other file.")
@_registry
@shared
@click.pass_obj
def reload_(settings: Settings, model: str, strategy: str, sha256: str | None,
            registry: str | None) -> None:
    """Give a strategy of the running pipeline MODEL (a path, NAME, NAME@VERSION or demo).

    It is loaded and checked beside the loop; the next event after that is the first it sees, and
    no event is lost.  Refused (exit code 4), the old one stays.  The next start takes what the
    configuration says again.
    """
    from hftpipe import registry as shelves
    from hftpipe import reloader, rundir
    from hftpipe.desk import ask
    found = shelves.resolve(model, sha256, str(_open(settings, registry).path))
    answer = ask(rundir.default(settings.run_dir), "reload", 60.0, at=reloader.SOCKET, values={
        "strategy": strategy, "path": str(found.path), "sha256": found.sha256 or ""})
    emit(settings, {"model": found.reference, **answer}, [
        f"{answer['strategy']}: {found.reference} since event {answer['event']:#x}   "
        f"sha256 {answer['sha256'][:16]}...   before {answer['before'][:16]}..."])
