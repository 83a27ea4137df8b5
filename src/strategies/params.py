"""A strategy's parameters: every key known, every value in range, or one line saying why."""
from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from hftpipe.errors import ConfigError


def read(strategy: str, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """*defaults* overlaid by *params*; a value must be of its default's type.

    Parameters
    ----------
    strategy : str
        Name for messages.
    params : mapping
        As the configuration has them.
    defaults : mapping
        Every key there is.  A default of None accepts a string.

    Raises
    ------
    ConfigError
        Unknown key (with the nearest one) or wrong type.
    """
    out = dict(defaults)
    for key, value in params.items():
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, 1)
            hint = f", did you mean {near[0]}?" if near else f" (wanted {', '.join(defaults)})"
            raise ConfigError(f"strategy {strategy}: unknown parameter {key!r}{hint}")
        wanted = str if defaults[key] is None else type(defaults[key])
        number = wanted is float and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not wanted and not number:
            raise ConfigError(f"strategy {strategy}: {key} must be {wanted.__name__}, "
                              f"was {value!r}")
        out[key] = wanted(value)
    return out


def within(strategy: str, key: str, value: float, low: float, high: float) -> None:
    """Refuse a *value* that is not between *low* and *high*, both allowed; NaN never is."""
    if not low <= value <= high:
        raise ConfigError(f"strategy {strategy}: {key} must be between {low:g} and {high:g}, "
                          f"was {value!r}")
