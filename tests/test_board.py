"""The board shows what its writers wrote, whole, also while they write or when they are killed."""
import gc
import mmap
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import _board, schema, shm
from hftpipe._board import OFF, Board, Limit, Row
from hftpipe.errors import AccessError, BusyError, NotRunningError, SchemaError
from tests.chain import NANO, Chain, quote, table
from tests.test_stage import buy_at_ask, once

NAMES = [("max_total_notional", "quote", NANO), ("max_open_orders", "orders", 1)]
words = st.integers(-2**63, 2**63 - 1)


def board(count=3, limits=NAMES, run=7, boot=5):
    memory = mmap.mmap(-1, _board.size(count))
    _board.format(memory, run=run, boot=boot, instruments=count, limits=limits)
    return Board(memory)


# ---------------------------------------------------------------- what it holds

def test_a_new_board_is_empty():
    b = board()
    assert (b.run, b.instruments, b.basis) == (7, 3, 0)
    assert b.rows() == [Row(0, 0, 0, 0, 0, 0, 0)] * 3
    assert b.gate() is None and b.flags(2) == 0


@settings(deadline=None)
@given(st.lists(st.one_of(
    st.tuples(st.just("mark"), st.integers(0, 2), words, words, words),
    st.tuples(st.just("position"), st.integers(0, 2), words, words,
              st.integers(-2**62, 2**62 - 1), st.integers(-2**62, 2**62 - 1)),
    st.tuples(st.just("flags"), st.integers(0, 2), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("basis"), st.integers(0, 2**64 - 1)))))
def test_every_word_is_the_last_one_written(steps):
    b, rows, flags, basis = board(), [[0] * 7 for _ in range(3)], [0] * 3, 0
    for what, *values in steps:
        getattr(b, f"put_{what}")(*values)
        if what == "mark":
            i, price, volume, ts = values
            rows[i][2], rows[i][5], rows[i][6] = price, volume, ts
        elif what == "position":
            i, qty, average, realised, unrealised = values
            rows[i][0], rows[i][1], rows[i][3], rows[i][4] = (
                qty, average, realised + unrealised, realised)
        elif what == "flags":
            flags[values[0]] = values[1]
        else:
            basis = values[0]
    assert b.rows() == [Row(*r) for r in rows]
    assert [b.flags(i) for i in range(3)] == flags and b.basis == basis


def test_the_gate_and_its_limits():
    b = board()
    b.put_gate(99, [(50_000 * NANO, -5), (OFF, -1)], breaker=1, cause=2, losses=3, day=20782,
               day_orders=4, day_pnl=-5, equity=6, peak=7, drawdown=8, latched=[0, 63, 64, 255])
    state, limits = b.gate()
    assert state == {"ts": 99, "breaker": 1, "cause": 2, "losses": 3, "day": 20782,
                     "day_orders": 4, "day_pnl": -5, "equity": 6, "peak": 7, "drawdown": 8,
                     "latched": [0, 63, 64, 255]}
    assert limits == [Limit("max_total_notional", "quote", NANO, 50_000 * NANO, -5),
                      Limit("max_open_orders", "orders", 1, OFF, -1)]


def test_what_is_outside_is_refused():
    b = board()
    for i in (-1, 3):
        for call in (lambda i=i: b.row(i), lambda i=i: b.flags(i),
                     lambda i=i: b.put_mark(i, 1, 1, 1), lambda i=i: b.put_flags(i, 1)):
            with pytest.raises(IndexError, match="instrument must be below 3"):
                call()
    with pytest.raises(ValueError, match="at most 2 limits, were 3"):
        b.put_gate(1, [(1, 1)] * 3)
    with pytest.raises(ValueError, match="strategy must be below 256"):
        b.put_gate(1, [], latched=[256])
    for count in (0, 65537):
        with pytest.raises(ValueError, match="instruments must be in"):
            _board.size(count)
    with pytest.raises(ValueError, match="at most 64 limits"):
        board(limits=[("a", "b", 1)] * 65)
    with pytest.raises(ValueError, match="shorter than 64 bytes"):
        board(limits=[("a" * 64, "b", 1)])
    with pytest.raises(ValueError, match="memory must be"):
        _board.format(bytearray(100), run=1, instruments=1)


def test_it_has_room_for_the_largest_table_and_all_limits():
    b = board(65536, [(f"limit{i}", "unit", 1) for i in range(64)])
    b.put_mark(65535, 1, 2, 3)
    b.put_gate(1, [(i, -i) for i in range(64)])
    assert b.row(65535).ts == 3 and b.row(0).ts == 0
    assert [(x.name, x.limit, x.use) for x in b.gate()[1]] == [
        (f"limit{i}", i, -i) for i in range(64)]


# ---------------------------------------------------------------- whole, or not at all

PROGRAM = """
import mmap, os, sys
from hftpipe._board import Board
fd, what = int(sys.argv[1]), sys.argv[2]
b = Board(mmap.mmap(fd, 0))
n = 0
while True:
    n += 1
    if what == "row":
        b.put_position(1, n, n, n, 0)
        b.put_basis(n)
    else:
        b.put_gate(n, [(n, n)] * 64, breaker=n, cause=n, losses=n, day=n, day_orders=n,
                   day_pnl=n, equity=n, peak=n, drawdown=n)
"""


@pytest.fixture(params=["row", "gate"])
def writer(request):
    fd = os.memfd_create("board")
    os.ftruncate(fd, _board.size(3))
    memory = mmap.mmap(fd, 0)
    _board.format(memory, run=7, instruments=3, limits=[(f"l{i}", "u", 1) for i in range(64)])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    popen = subprocess.Popen([sys.executable, "-c", PROGRAM, str(fd), request.param],
                             pass_fds=[fd], env=env)
    yield Board(memory), request.param, popen
    popen.kill()
    popen.wait()
    os.close(fd)


def test_a_reader_never_sees_half_of_what_is_being_written(writer):
    b, what, popen = writer
    seen, end = set(), time.monotonic() + 60
    while len(seen) < 2000:
        assert time.monotonic() < end and popen.poll() is None
        if what == "row":
            basis = b.basis
            row = b.row(1)
            assert row.qty == row.average == row.pnl == row.realised
            assert row.qty >= basis, "a fill that the basis names is not in the row"
            seen.add(row.qty)
        elif (found := b.gate()) is not None:
            state, limits = found
            values = {v for k, v in state.items() if k != "latched"}
            values |= {x.limit for x in limits} | {x.use for x in limits}
            assert len(values) == 1
            seen |= values


def test_a_writer_killed_in_the_middle_gives_no_answer_instead_of_a_wrong_one():
    b = board()
    b.put_mark(1, 5, 6, 7)
    raw = memoryview(b_memory(b))
    at = 8704 + 64 + 64                         # row 1: its sequence word is 2
    assert int.from_bytes(raw[at:at + 8], "little") == 2
    raw[at:at + 8] = (3).to_bytes(8, "little")
    assert b.row(1) is None and b.row(0) == Row(0, 0, 0, 0, 0, 0, 0)
    assert b.rows()[1] is None
    b.put_gate(1, [(1, 1), (2, 2)])
    raw[384:392] = (5).to_bytes(8, "little")
    assert b.gate() is None


def b_memory(b):
    """The memory of a board made by :func:`board`."""
    return next(o for o in gc.get_referents(b) if isinstance(o, mmap.mmap))


# ---------------------------------------------------------------- as a segment

@pytest.fixture
def run():
    number = time.time_ns()
    yield number
    shm.remove(number)


def test_a_board_in_shared_memory(run):
    segment = shm.create_board(run, 2, NAMES)
    assert segment.name == f"/hftpipe.{run:x}.board"
    assert os.stat(f"/dev/shm/hftpipe.{run:x}.board").st_mode & 0o777 == 0o600
    shm.board(run).put_mark(1, 10, 20, 30)
    assert shm.board(run).row(1).mark == 10
    with pytest.raises(BusyError):
        shm.create_board(run, 2)
    with pytest.raises(NotRunningError):
        shm.board(run + 1)
    os.chmod(f"/dev/shm/hftpipe.{run:x}.board", 0o644)
    with pytest.raises(AccessError, match="mode 0644"):
        shm.board(run)


@pytest.mark.parametrize(("at", "value", "message"), [
    (0, 1, "is no board"), (8, 99, "version 99"), (16, 1, "belongs to run 1"),
    (24, 1, "another boot"), (32, 0, "does not fit"), (32, 10**6, "does not fit"),
    (32, 50, "board of 50 instruments and 2 limits does not fit"), (40, 65, "does not fit")])
def test_a_foreign_board_is_refused(run, at, value, message):
    segment = shm.create_board(run, 2, NAMES)
    segment.memory[at:at + 8] = value.to_bytes(8, "little")
    with pytest.raises(SchemaError, match=message):
        shm.board(run)


def test_memory_that_is_too_small_is_refused():
    with pytest.raises(SchemaError, match="is no board"):
        Board(bytearray(1000))


# ---------------------------------------------------------------- the ledger writes it

def test_the_ledger_shows_positions_marks_and_what_it_knows():
    b = board(1)
    chain = Chain(once(buy_at_ask()), board=b)
    chain.inline.run(quote(1000, 10000, 10001))
    assert b.row(0).mark == 100_005_000_000 and b.row(0).ts == 1000
    chain.inline.run(quote(10**6, 10100, 10101))
    chain.inline.finish()
    fill = chain.bodies("gateway", schema.ORDER_EVENT)[-1]
    position = chain.bodies("ledger", schema.POSITION)[-1]
    assert b.basis == int(fill["event"])
    row = b.row(0)
    assert row.mark == 101_005_000_000 and row.ts == 10**6
    assert row.qty == int(position["qty"]) == 10 * NANO
    assert row.average == 100_010_000_000
    assert row.pnl == 10 * 995_000_000 and row.realised == 0


def test_a_board_that_is_too_small_for_the_ledger_is_refused():
    with pytest.raises(ValueError, match="the board has 1 instruments, expected 2"):
        Chain(lambda c, add: None, instruments=table(2), board=board(1))


def test_volume_is_what_the_book_counted():
    b = board(1)
    chain = Chain(lambda c, add: None, board=b)
    chain.inline.run(quote(1000, 10000, 10001))
    trade = quote(2000, 10000, 10001)[:1]
    trade["kind"], trade["flags"] = schema.MARKET_KIND.TRADE, schema.MARKET_FLAG.LAST
    trade["qty"] = 7 * NANO
    chain.inline.run(trade)
    chain.inline.run(trade)
    assert b.row(0).volume == 14 * NANO
