"""Strategies that ship, and the door for those that do not.

An author's package names its class in the entry point group ``hftpipe.strategies``::

    [project.entry-points."hftpipe.strategies"]
    momentum = "momentum.strategy:Momentum"

The class derives from :class:`hftpipe._strategy.Strategy` and has a class method
``from_config(params, instruments)``, which raises :class:`ConfigError` for what it does not
like.  A compiled one sets ``self.version = STRATEGY_VERSION`` in its ``__cinit__``.
"""
from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hftpipe.errors import ConfigError

GROUP = "hftpipe.strategies"
BUILTIN = {"imbalance": "hftpipe.strategies._imbalance:Imbalance",
           "onnx": "hftpipe.strategies._onnx:Onnx"}
VERSION = 1                     # STRATEGY_VERSION of this build; a test compares them


def found() -> dict[str, EntryPoint]:
    """Strategies of other packages by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def names() -> list[str]:
    """Every name that :func:`load` knows."""
    return sorted({*BUILTIN, *found()})


def load(name: str, params: Mapping[str, Any], instruments: Any) -> Any:
    """Make the strategy *name*.

    Parameters
    ----------
    name : str
        One of :func:`names`.  A shipped one cannot be replaced by another package's.
    params : mapping
        Its section of the configuration.
    instruments : (n,) array, dtype ``schema.dtype(schema.INSTRUMENT)``

    Returns
    -------
    hftpipe._strategy.Strategy

    Raises
    ------
    ConfigError
        Unknown name (with the nearest one), a package that cannot be imported, a class that is
        no strategy, one built for another version of the interface, or bad parameters.
    """
    from hftpipe._strategy import Strategy
    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        target = getattr(importlib.import_module(module), attribute)
    else:
        others = found()
        if name not in others:
            near = difflib.get_close_matches(name, names(), 1)
            hint = f", did you mean {near[0]}?" if near else f" (found {', '.join(names())})"
            raise ConfigError(f"unknown strategy {name!r}{hint}")
        try:
            target = others[name].load()
        except (ImportError, AttributeError, ValueError) as error:
            # ValueError: Cython, when a base class is larger than the one compiled against.
            raise ConfigError(f"strategy {name} ({others[name].value}) cannot be loaded: "
                              f"{error}") from error
    if not isinstance(target, type) or not issubclass(target, Strategy) or not callable(
            getattr(target, "from_config", None)):
        raise ConfigError(f"strategy {name}: wanted a Strategy with from_config(params, "
                          f"instruments), found {target!r}")
    strategy = target.from_config(params, instruments)
    if not isinstance(strategy, Strategy):
        raise ConfigError(f"strategy {name}: from_config gave {strategy!r}, no Strategy")
    if strategy.version != VERSION:
        raise ConfigError(f"strategy {name}: built for interface version {strategy.version}, "
                          f"this is {VERSION}: rebuild it")
    return strategy
