"""A strategy as a C function: numba's through the compiled stage, against the same in Python."""
import ctypes
import types

import pytest

from hftpipe import strategies
from hftpipe._strategy import PyStrategy
from hftpipe.errors import ConfigError
from hftpipe.strategies._cfunc import CFunc
from tests.chain import table
from tests.test_signal import Signals, same, walk

SIGNATURE = ctypes.CFUNCTYPE(
    ctypes.c_int32, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 2, ctypes.c_int64,
    *[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.POINTER(ctypes.c_float))


def native(function):
    """A Python function behind a C address, for what only the address matters to."""
    made = SIGNATURE(function)
    return types.SimpleNamespace(address=ctypes.cast(made, ctypes.c_void_p).value, keep=made)


@pytest.fixture(scope="module")
def fade():
    pytest.importorskip("numba", reason="the compiler of these strategies is not installed")
    from hftpipe.strategies import jit

    @jit.strategy
    def made(event, instrument, now, book, features, warm, order_event, holding, spec, intents,
             answer):
        if event != 1 or not warm:
            return 0
        answer[0], answer[1], answer[2] = 0.25, 0.25, 0.5
        if features.imbalance_depth < -0.5 and len(intents) > 0:
            intents[0].side = 1
            intents[0].type, intents[0].tif, intents[0].action = 2, 3, 1
            intents[0].price, intents[0].qty = book.ask, 2 * spec.lot + holding.qty
            return 1
        return 0
    return made


class Fade:
    def on_event(self, context, add):
        if context.event != 1 or context.features is None:
            return None
        if context.features["imbalance_depth"] < -0.5:
            add(side=1, type=2, tif=3, action=1, price=int(context.book["ask"]),
                qty=2 * context.lot + context.qty)
        return 0.25, 0.25, 0.5


def test_it_does_what_the_same_in_python_does(fade):
    books = walk(400)
    one, other = Signals([CFunc(fade)]), Signals([PyStrategy(Fade().on_event)])
    got, wanted = same(one.run(books)), same(other.run(books))
    assert got == wanted and len(got) > 20
    a, b = one.answers(), other.answers()
    for name in ("event", "p_down", "p_flat", "p_up", "decision", "confidence"):
        assert (a[name] == b[name]).all()
    assert len(a) == len(got)


def test_a_configuration_names_it(fade, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(fade=fade))
    made = strategies.load("mine:fade", {}, table())
    assert isinstance(made, CFunc) and made.version == strategies.VERSION
    with pytest.raises(ConfigError, match="takes no parameters, found qty"):
        strategies.load("mine:fade", {"qty": 1}, table())


def test_minus_one_halts_and_too_many_stops():
    stage = Signals([CFunc(native(lambda *a: -1))])
    stage.run(walk(1))
    assert next(iter(stage.stage.figures.values()))["strategy_halts"] == 1
    stage = Signals([CFunc(native(lambda *a: 1000))])
    stage.books.push(walk(1)[0].tobytes())
    with pytest.raises(ConfigError, match="wanted 1000 intents, there was room for 16"):
        stage.stage.do_work(64)


def test_before_the_features_are_warm_they_are_zeros_and_it_is_told():
    seen = []

    def look(event, instrument, now, book, features, warm, order, holding, spec, intents, room, a):
        seen.append((event, warm, bool(features), bool(order), room))
        return 0
    Signals([CFunc(native(look))]).run(walk(130))
    assert seen[0] == (1, 0, True, True, 16) and seen[-1] == (1, 1, True, True, 16)


@pytest.mark.parametrize("function", [None, 7, types.SimpleNamespace(address=0),
                                      types.SimpleNamespace(address="x")])
def test_what_has_no_address_is_refused(function):
    with pytest.raises(ConfigError, match="wanted a C function with an address"):
        CFunc(function)


def test_what_numba_cannot_compile_is_one_line():
    pytest.importorskip("numba", reason="the compiler of these strategies is not installed")
    from hftpipe.strategies import jit
    with pytest.raises(ConfigError, match="bad: numba cannot compile it") as error:
        @jit.strategy
        def bad(event, instrument, now, book, features, warm, order_event, holding, spec, intents,
                answer):
            return book.no_such_field
    assert "\n" not in str(error.value)
