"""Strategies that ship, and the door for those that do not.

An author's package names its class in the entry point group ``hftpipe.strategies``::

    [project.entry-points."hftpipe.strategies"]
    momentum = "momentum.strategy:Momentum"

The class derives from :class:`hftpipe._strategy.Strategy` and has a class method
``from_config(params, instruments)``, which raises :class:`ConfigError` for what it does not
like.  A compiled one sets ``self.version = STRATEGY_VERSION`` in its ``__cinit__``.

Without a package, ``"module:Class"`` names any importable class: such a Strategy, or a plain
Python class made as ``Class(params, instruments)`` with a method ``on_event(context, add)``,
as :class:`hftpipe._strategy.PyStrategy` wants it, or a C function: ``jit.py`` makes them with
numba.
"""
from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol, cast

from hftpipe._strategy import PyStrategy, Strategy
from hftpipe.errors import ConfigError

GROUP = "hftpipe.strategies"
BUILTIN = {"imbalance": "hftpipe.strategies._imbalance:Imbalance",
           "onnx": "hftpipe.strategies._onnx:Onnx"}
VERSION = 1                     # STRATEGY_VERSION of this build; a test compares them


class Item(Protocol):
    """One ``[[strategy]]`` of the configuration, as `hftpipe.config.Strategy` is."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def entry(self) -> str: ...
    @property
    def symbols(self) -> Sequence[str]: ...
    @property
    def members(self) -> Sequence[str]: ...
    @property
    def shadow(self) -> bool: ...
    @property
    def params(self) -> Mapping[str, Any]: ...


def found() -> dict[str, EntryPoint]:
    """Strategies of other packages by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Every name that :func:`load` knows."""
    return sorted({*BUILTIN, *found()})


def _target(name: str) -> Any:
    """What *name* stands for."""
    others = {} if name in BUILTIN else found()
    place = BUILTIN.get(name) or (name if ":" in name else "")
    if not place and name not in others:
        near = difflib.get_close_matches(name, names(), 1)
        hint = f", did you mean {near[0]}?" if near else f" (found {', '.join(names())})"
        raise ConfigError(f"unknown strategy {name!r}{hint}")
    module, _, attribute = place.partition(":")
    try:
        if place:
            return getattr(importlib.import_module(module), attribute)
        return others[name].load()
    except (ImportError, AttributeError, ValueError) as error:
        # ValueError: Cython, when a base class is larger than the one compiled against.
        raise ConfigError(f"strategy {name}{'' if place else f' ({others[name].value})'} cannot "
                          f"be loaded: {error}") from error


def load(name: str, params: Mapping[str, Any], instruments: Any) -> Strategy:
    """Make the strategy *name*.

    Parameters
    ----------
    name : str
        One of :func:`names`, or ``"module:Class"``.  A shipped one cannot be replaced by
        another package's.
    params : mapping
        Its section of the configuration.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``

    Raises
    ------
    ConfigError
        Unknown name (with the nearest one), a module that cannot be imported, a class that is
        no strategy, one built for another version of the interface, or bad parameters.
    """
    target = _target(name)
    strategy: Any = None
    if isinstance(target, type) and issubclass(target, Strategy):
        if callable(getattr(target, "from_config", None)):
            strategy = target.from_config(params, instruments)      # type: ignore[attr-defined]
            if not isinstance(strategy, Strategy):
                raise ConfigError(f"strategy {name}: from_config gave {strategy!r}, no Strategy")
    elif isinstance(target, type) and callable(getattr(target, "on_event", None)):
        strategy = PyStrategy(target(params, instruments).on_event)
    elif isinstance(getattr(target, "address", None), int):
        from hftpipe.strategies._cfunc import CFunc
        if params:
            raise ConfigError(f"strategy {name}: a C function takes no parameters, found "
                              f"{', '.join(params)}")
        strategy = CFunc(target)
    if strategy is None:
        raise ConfigError(f"strategy {name}: wanted a Strategy with from_config(params, "
                          f"instruments), or a class with on_event, found {target!r}")
    if strategy.version != VERSION:
        raise ConfigError(f"strategy {name}: built for interface version {strategy.version}, "
                          f"this is {VERSION}: rebuild it")
    return cast(Strategy, strategy)


def exits(params: Mapping[str, Any], instruments: Any) -> Strategy:
    """Stops and targets of every position, for the end of the list."""
    from hftpipe.strategies._exits import Exits
    return Exits.from_config(params, instruments)


def make(items: Iterable[Item], instruments: Any, *, names: Sequence[str] = (),
         in_lots: bool = False, equity: int | None = None,
         resolve: Callable[[str, str | None], tuple[Path, str | None]] | None = None,
         ) -> list[Strategy]:
    """The strategies of a configuration that trade or watch, in its order; members in theirs.

    Parameters
    ----------
    items : sequence
        ``config.strategy``.  Kinds ``python`` and ``native`` are made from their `entry`, others
        are names of shipped ones; one with `symbols` sees those instruments only.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``
    names : sequence of str
        Only these; default all.
    in_lots : bool
        *instruments* are a recording's, not the configuration's: quantities of the strategies
        that ship count lots, and everybody sees every instrument.
    equity : int, nanocash, optional
        What sizes of the shipped ones are shares of.
    resolve : callable, optional
        Path and sha256 of what a parameter `model` and its `sha256` stand for; by default a path
        is taken as it is.

    Raises
    ------
    ConfigError
        Everything that :func:`load` refuses, and symbols that are no instruments.
    """
    from hftpipe.strategies._ensemble import Ensemble
    from hftpipe.strategies._only import Only
    items = list(items)
    wanted = {*(names or [item.name for item in items])}
    inside = {name for item in items if item.name in wanted for name in item.members}
    made: dict[str, Strategy] = {}
    out: dict[int, Strategy] = {}
    # Members first: an ensemble is made of them.
    for place, item in sorted(enumerate(items), key=lambda pair: bool(pair[1].members)):
        if item.name not in wanted | inside:
            continue
        shipped = item.kind in BUILTIN or item.kind == "ensemble"
        params = dict(item.params)
        if item.kind == "onnx" and resolve is not None:
            path, sha256 = resolve(params.get("model", "demo"), params.get("sha256"))
            params |= {"model": str(path), **({"sha256": sha256} if sha256 else {})}
        if in_lots and shipped:
            params["in_lots"] = True
        if equity is not None and shipped:
            params["equity"] = equity
        strategy: Strategy
        if item.kind == "ensemble":
            strategy = Ensemble(params, instruments, [made[name] for name in item.members])
        else:
            strategy = load(item.kind if shipped else item.entry, params, instruments)
        strategy.name, strategy.shadow = item.name, item.shadow
        if item.symbols and not in_lots:
            try:
                strategy = Only(strategy, item.symbols, instruments)
            except ValueError as error:
                raise ConfigError(f"strategy {item.name}: {error}") from None
        made[item.name] = strategy
        if item.name not in inside:
            out[place] = strategy
    return [out[place] for place in sorted(out)]
