"""Strategies written in Python and compiled by numba (extra ``numba``): no GIL, no object.

::

    from hftpipe.strategies import jit

    @jit.strategy
    def fade(event, instrument, now, book, features, warm, order_event, holding, spec, intents,
             answer):
        if event == 1 and warm and holding.qty == 0 and features.imbalance_depth < -0.7:
            intents[0].side = 1
            intents[0].type, intents[0].tif, intents[0].action = 2, 3, 1
            intents[0].price, intents[0].qty = book.ask, spec.lot
            return 1
        return 0

In the configuration ``kind = "python"``, ``entry = "package.module:fade"``.  It is called for every
event of ``_strategy.pxd`` but idleness, returns how many of *intents* it filled (-1: trading shall
halt), and may write probabilities of down, flat and up to *answer*.  Global names are constants
of the time it was compiled.
"""
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy

from hftpipe import schema
from hftpipe.errors import ConfigError

HOLDING = numpy.dtype([(name, "<i8") for name in ("qty", "open_buy", "open_sell", "cost")])
ROOM = 16                       # intents that it may fill at one event, if the link has room


def strategy(function: Callable[..., int]) -> Any:
    """*function* as a C function for the pipeline; see the module's words.

    Raises
    ------
    ConfigError
        If numba is not installed, or cannot compile it.
    """
    try:
        numba: Any = importlib.import_module("numba")
    except ImportError as e:
        raise ConfigError(f"{function.__name__}: wanted numba (pip install hftpipe[numba]), "
                          f"found none: {e}") from None
    inner, carray, types = numba.njit(function), numba.carray, numba.types
    book_of, features_of, order_of, spec_of, intent_of = (schema.dtype(r) for r in (
        schema.BOOK, schema.FEATURES, schema.ORDER_EVENT, schema.INSTRUMENT, schema.INTENT))
    holding_of = HOLDING
    word, pointer = types.int64, types.voidptr
    signature = types.int32(word, word, word, pointer, pointer, word, pointer, pointer, pointer,
                            pointer, word, types.CPointer(types.float32))

    def outer(event, instrument, now, book, features, warm,     # type: ignore[no-untyped-def]
              order_event, holding, spec, intents, room, answer):
        return inner(event, instrument, now, carray(book, 1, book_of)[0],
                     carray(features, 1, features_of)[0], warm != 0,
                     carray(order_event, 1, order_of)[0], carray(holding, 1, holding_of)[0],
                     carray(spec, 1, spec_of)[0], carray(intents, room, intent_of),
                     carray(answer, 3))

    try:
        return numba.cfunc(signature)(outer)
    except Exception as e:      # numba's own, and KeyError for a field that is none
        words = f"{type(e).__name__}: " + " ".join(str(e).split())
        raise ConfigError(f"{function.__name__}: numba cannot compile it: {words[:300]}") from None
