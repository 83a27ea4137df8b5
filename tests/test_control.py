"""The control page: no resume erases a later halt, one writer per block, readable after a crash."""
import math
import mmap
import os
import secrets
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import _control, schema, shm
from hftpipe._control import Control, Histogram
from hftpipe.errors import BusyError, SchemaError

STAGES = ("feed", "book", "signal")
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def page(**settings) -> Control:
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, **{"run": 7, "stages": STAGES, **settings})
    return Control(memory)


@pytest.fixture
def run():
    run = secrets.randbits(63) | 1
    shm.create_control(run, stages=STAGES)
    yield run
    shm.remove(run)


# ---------------------------------------------------------------- identity and foreign memory

def test_identity_is_what_it_was_made_with():
    p = page(run=9, boot=8, pid=7, start=6, started=5, utc_offset=-4, token_key=2**64 - 1,
             limits_version=2, halt_epoch=3)
    assert (p.run, p.boot, p.supervisor, p.started, p.utc_offset) == (9, 8, (7, 6), 5, -4)
    assert (p.token_key, p.limits_version, p.halt_epoch, p.armed_epoch) == (2**64 - 1, 2, 3, 0)
    assert p.schema == _control.schema_id()
    p.limits_version = 44
    assert p.limits_version == 44


def test_the_page_names_its_own_counters():
    p = page()
    assert p.counter_names == tuple(m.name for m in schema.METRICS)
    assert p.histogram_names == tuple(m.name for m in schema.HISTOGRAMS)
    assert [s.name for s in p.stages] == list(STAGES) and [s.index for s in p.stages] == [0, 1, 2]


@pytest.mark.parametrize("word, value, message", [
    (0, 0, "not a control page, or not formatted yet"),
    (1, 1, "version 1 and"),
    (2, 8, "stale: it belongs to run 8, wanted run 7"),
    (3, 8, "stale: it was made in boot 0x8, this is boot 0x5"),
    (6, 1, "made by schema 0x0000000000000001, this build's is"),
    (7, 17, "corrupt: 17 stages"),
    (81, 9999, "corrupt: 3 stages, texts of 9999"),
])
def test_page_that_does_not_fit_is_refused(word, value, message):
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, boot=5, stages=STAGES)
    Control(memory, run=7, boot=5, schema=_control.schema_id())
    struct.pack_into("<Q", memory, word * 8, value)
    with pytest.raises(SchemaError, match=message):
        Control(memory, run=7, boot=5, schema=_control.schema_id())


def test_who_only_halts_needs_no_matching_schema():
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7)
    struct.pack_into("<Q", memory, 6 * 8, 1)
    assert Control(memory, run=7).halt() == 2


@pytest.mark.parametrize("settings, message", [
    ({"run": 0}, "at least 1"), ({"halt_epoch": 0}, "at least 1"),
    ({"stages": ["x" * 32]}, "below 32 bytes"), ({"stages": ["x"] * 17}, "at most 16 stages"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        page(**settings)


def test_wrong_memory_is_refused():
    with pytest.raises(ValueError, match=rf"must be {_control.SIZE} bytes"):
        _control.format(mmap.mmap(-1, 4096), run=1)
    with pytest.raises(SchemaError, match="not a control page"):
        Control(mmap.mmap(-1, 4096))
    with pytest.raises(ValueError, match="aligned"):
        Control(memoryview(mmap.mmap(-1, 4096))[8:])
    with pytest.raises(RuntimeError, match="made once"):
        p = page()
        p.__init__(mmap.mmap(-1, 4096))
    with pytest.raises(TypeError, match=r"Control\.stage"):
        _control.StageBlock()
    with pytest.raises(IndexError, match="below 16, was 16"):
        page().stage(16)


def test_memory_can_not_be_unmapped_under_the_page():
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, stages=STAGES)
    block = Control(memory).stage(0)
    with pytest.raises(BufferError):
        memory.close()
    assert block.name == "feed"


# ---------------------------------------------------------------- epochs

def test_disarmed_armed_halted():
    p = page()
    assert (p.trading, p.armed, p.halt_epoch, p.armed_epoch) == ("disarmed", False, 1, 0)
    assert p.resume(1) and p.resume(1)
    assert (p.trading, p.armed) == ("armed", True)
    assert p.halt() == 2 and p.halt() == 3
    assert (p.trading, p.armed) == ("halted", False)
    assert not p.resume(1) and not p.resume(2) and not p.armed
    assert p.resume(3) and p.armed


def test_no_resume_can_arm_a_halt_that_is_still_to_come():
    p = page()
    assert not p.resume(2) and not p.resume(0) and p.armed_epoch == 0
    p.halt()
    assert not p.armed


def test_a_latched_epoch_only_raises():
    p = page()
    assert p.resume(1)
    assert p.raise_halt_epoch(5) == 5 and not p.armed
    assert p.raise_halt_epoch(3) == 5 and p.halt_epoch == 5
    assert not p.resume(3) and p.resume(5) and p.armed


@given(st.lists(st.one_of(st.just("halt"), st.integers(0, 8)), max_size=40))
def test_trading_is_allowed_only_by_a_resume_that_saw_the_last_halt(steps):
    p, halts, allowed = page(), 1, False
    for step in steps:
        if step == "halt":
            halts, allowed = halts + 1, False
            assert p.halt() == halts
        else:
            assert p.resume(step) is (step == halts)
            allowed |= step == halts
        assert p.armed is allowed and p.armed_epoch <= p.halt_epoch == halts


HALTER = """
import sys
from hftpipe import shm
page = shm.control(int(sys.argv[1]))
input()
print(max(page.halt() for _ in range(5_000)))
"""
RESUMER = """
import sys
from hftpipe import shm
page = shm.control(int(sys.argv[1]))
input()
wrong = resumed = 0
for _ in range(10_000):
    seen = page.halt_epoch
    if page.resume(seen):
        resumed += 1
        # Whatever was halted meanwhile must hold: armed means armed for the epoch of now.
        if page.armed and page.halt_epoch < seen:
            wrong += 1
print(wrong, resumed, page.halt_epoch)
"""


def test_a_resume_never_erases_a_later_halt_by_any_of_many_processes(run):
    jobs = [subprocess.Popen([sys.executable, "-c", text, str(run)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, env=ENV)
            for text in (HALTER, HALTER, RESUMER, RESUMER)]
    for job in jobs:
        job.stdin.write("\n")
        job.stdin.flush()
    p, seen_last = shm.control(run), 0
    while any(job.poll() is None for job in jobs):
        armed = p.armed_epoch
        halt = p.halt_epoch
        assert seen_last <= armed <= halt
        seen_last = armed
    out = [job.communicate()[0].split() for job in jobs]
    assert all(job.returncode == 0 for job in jobs)
    assert p.halt_epoch == 10_001, "a halt was lost"
    assert max(int(out[0][0]), int(out[1][0])) == 10_001
    assert [o[0] for o in out[2:]] == ["0", "0"] and int(out[2][1]) + int(out[3][1]) > 0
    # Whoever resumes now must have seen the very last halt.
    assert not p.resume(10_000) and (p.armed or p.resume(10_001))


def test_durable_sequences_are_kept_by_stream():
    p = page()
    for stream in range(_control.STREAMS):
        assert p.durable(stream) == 0
        p.set_durable(stream, 10**15 + stream)
    assert [p.durable(s) for s in range(_control.STREAMS)] == [
        10**15 + s for s in range(_control.STREAMS)]
    assert p.durable() == 10**15 and p.text == "" and p.stop == 0
    for stream in (-1, _control.STREAMS):
        with pytest.raises(IndexError, match="stream must be below 16"):
            p.durable(stream)
        with pytest.raises(IndexError, match="stream must be below 16"):
            p.set_durable(stream, 1)


def test_a_stop_request_is_never_taken_back():
    p = page()
    assert p.stop == _control.RUN
    p.request_stop()
    assert p.stop == _control.DRAIN
    p.request_stop(_control.QUIT)
    p.request_stop(_control.DRAIN)
    assert p.stop == _control.QUIT
    with pytest.raises(ValueError, match="0, 1 or 2, was 3"):
        p.request_stop(3)


# ---------------------------------------------------------------- text

@given(st.lists(st.text(max_size=300), max_size=8))
def test_text_is_the_last_one_written(texts):
    p = page()
    assert p.text == ""
    for text in texts:
        p.text = text
        assert p.text == text


def test_text_has_a_limit_in_bytes():
    p = page()
    p.text = "é" * (_control.TEXT_BYTES // 2)
    assert len(p.text) == _control.TEXT_BYTES // 2
    with pytest.raises(ValueError, match=rf"at most {_control.TEXT_BYTES} bytes"):
        p.text = "x" * (_control.TEXT_BYTES + 1)
    assert p.text[0] == "é"


WRITER = """
import os, sys
from hftpipe import shm
page = shm.control(int(sys.argv[1]))
parent = os.getppid()
print("ready", flush=True)
i = 0
while os.getppid() == parent:       # never outlives a test that was killed
    i += 1
    page.text = chr(97 + i % 26) * (i * 7 % 3584)
"""


def test_text_is_whole_while_it_is_written_and_after_its_writer_was_killed(run):
    p = shm.control(run)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(run)], text=True,
                              stdout=subprocess.PIPE, env=ENV) as writer:
            try:
                assert writer.stdout.readline() == "ready\n"
                seen = set()
                deadline = time.monotonic() + 30
                while len(seen) < 200 and time.monotonic() < deadline:
                    text = p.text
                    assert len(set(text)) <= 1, "torn"
                    seen.add(text)
                assert len(seen) > 1, "the writer never wrote"
            finally:
                writer.kill()
        assert len(set(p.text)) <= 1
        p.text = "zzz"
        assert p.text == "zzz"


# ---------------------------------------------------------------- stage blocks

def test_a_block_says_what_its_stage_wrote():
    p = page()
    b = p.stage(1)
    assert (b.pid, b.core, b.state, b.heartbeat, b.store_full, b.ack_epoch) == (0, None, 0, 0, 0, 0)
    b.enter(123, 456, core=0)
    b.state, b.heartbeat, b.store_full, b.ack_epoch = _control.RUNNING, 99, True, 4
    b.count("records_in")
    b.count("records_in", 4)
    b.set("day_pnl", -5_000_000_000)
    b.set("events_checksum", 2**64 - 1)
    other = p.stage(1)
    assert (other.pid, other.start, other.core, other.heartbeat) == (123, 456, 0, 99)
    assert other.state == _control.RUNNING and _control.STATES[other.state] == "running"
    assert other.store_full is True and other.ack_epoch == 4
    assert {k: v for k, v in other.counters.items() if v} == {
        "records_in": 5, "day_pnl": -5_000_000_000, "events_checksum": 2**64 - 1}
    assert not any(p.stage(i).counters["records_in"] for i in (0, 2))


def test_unknown_names_and_states_are_refused():
    b = page().stage(0)
    for call in (lambda: b.count("nope"), lambda: b.counter("nope"), lambda: b.set("nope", 1)):
        with pytest.raises(KeyError, match="no counter 'nope'"):
            call()
    for call in (lambda: b.record("nope", 1), lambda: b.histogram("nope")):
        with pytest.raises(KeyError, match="no histogram 'nope'"):
            call()
    with pytest.raises(ValueError, match="at most 5, was 6"):
        b.state = 6


def test_a_block_has_one_living_writer():
    b = page().stage(0)
    b.enter(100, 1)
    b.count("frames", 3)
    with pytest.raises(BusyError, match="process 100 is stage feed"):
        b.enter(200, 1, alive=lambda pid, start: (pid, start) == (100, 1))
    with pytest.raises(BusyError):
        b.enter(200, 1)                                     # nobody to ask: assume the worst
    b.enter(100, 1)                                         # itself
    b.enter(200, 1, alive=lambda pid, start: False)         # restarted after a crash
    assert (b.pid, b.counter("frames")) == (200, 3)
    b.state = _control.STOPPED
    b.enter(300, 1)                                         # after a clean end
    assert b.pid == 300 and b.state == _control.STARTING


def test_everything_is_readable_after_the_writer_was_killed(run):
    script = (f"import os, signal\nfrom hftpipe import shm\n"
              f"b = shm.control({run}, writer=True).stage(1)\n"
              f"b.enter(os.getpid(), shm.process_start(os.getpid()), 0)\nb.state = 2\n"
              f"b.count('frames', 41)\nb.record('book', 100)\nos.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", script], env=ENV, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    b = shm.control(run).stage(1)
    assert (b.state, b.counter("frames"), b.histogram("book").count) == (2, 41, 1)
    assert not shm.alive(b.pid, b.start)
    b.enter(os.getpid(), 1, alive=shm.alive)


# ---------------------------------------------------------------- histograms

def recorded(values) -> Histogram:
    b = page().stage(0)
    for v in values:
        b.record("feed", v)
    return b.histogram("feed")


def exact(values, p) -> int:
    """The inverted CDF: the smallest value that p percent do not exceed."""
    ordered = sorted(values)
    rank = math.ceil(round(p * 10_000) * len(ordered) / 1_000_000)
    return ordered[max(rank, 1) - 1]


VALUES = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 10**6), st.integers(0, 2**40 - 1)),
                  min_size=1, max_size=80)


@given(VALUES, st.lists(st.sampled_from([0, 1, 10, 50, 90, 99, 99.9, 99.99, 100]), max_size=5))
def test_percentiles_are_at_most_a_sixteenth_too_high_and_never_too_low(values, ps):
    h = recorded(values)
    assert (h.count, h.sum, h.min, h.max) == (len(values), sum(values), min(values), max(values))
    assert h.mean == sum(values) / len(values)
    for p in ps:
        true, got = exact(values, p), h.percentile(p)
        assert true <= got <= true + true // 16, (p, true, got)
        if true < 16 or p in (0, 100):
            assert got == true


def test_percentiles_against_numpy():
    rng = np.random.default_rng(5)
    # 50,001: numpy takes 99.9 % of 50,000 in floats and finds the 49,951st.
    values = rng.lognormal(8, 2, 50_001).astype("i8")
    h = recorded(values.tolist())
    for p in (0, 1, 25, 50, 75, 90, 99, 99.9, 99.99, 100):
        true = int(np.percentile(values, p, method="inverted_cdf"))
        assert true <= h.percentile(p) <= true + true // 16


def test_every_bucket_ends_where_the_next_begins():
    bounds = [b for b, _ in recorded(range(0, 4096)).buckets()]
    assert bounds[:18] == [*range(16), 16, 17]
    for low in [v for k in range(0, 40) for v in (2**k - 1, 2**k, 2**k + 1)]:
        h = recorded([low, 2**40 - 1])
        bound, count = h.buckets()[0]
        assert low <= bound <= low + low // 16
        assert count == (2 if low == 2**40 - 1 else 1)


def test_values_out_of_range_count_at_the_ends():
    h = recorded([-5, 2**62, 2**40])
    assert (h.min, h.max, h.percentile(0), h.percentile(99)) == (0, 2**62, 0, 2**62)
    assert h.buckets() == [(0, 1), (2**62, 2)]


def test_an_empty_histogram_is_all_zero():
    h = recorded([])
    assert h.summary() == {"count": 0, "mean": 0.0, "min": 0, "p50": 0, "p99": 0, "p999": 0,
                           "max": 0}
    assert h.buckets() == []
    with pytest.raises(ValueError, match=r"in \[0, 100\], was 100\.1"):
        h.percentile(100.1)


@given(VALUES, VALUES)
def test_merged_is_as_if_counted_together(a, b):
    whole, merged = recorded(a + b), recorded(a).merge(recorded(b))
    assert merged.summary() == whole.summary() and merged.buckets() == whole.buckets()
    empty = recorded([]).merge(recorded(a))
    assert empty.summary() == recorded(a).summary()


@given(VALUES, VALUES)
def test_since_is_what_was_counted_in_between(a, b):
    block = page().stage(0)
    for v in a:
        block.record("feed", v)
    before = block.histogram("feed")
    for v in b:
        block.record("feed", v)
    between = block.histogram("feed").since(before)
    assert (between.count, between.sum) == (len(b), sum(b))
    assert [c for _, c in between.buckets()] == [c for _, c in recorded(b).buckets()]
    assert max(b) <= between.max <= max(b) + max(b) // 16
    assert min(b) <= between.min <= min(b) + min(b) // 16
    with pytest.raises(ValueError, match="counts more"):
        before.since(block.histogram("feed"))


def test_a_page_sums_a_histogram_over_its_stages():
    p = page()
    for i, v in enumerate((5, 100, 7)):
        p.stage(i).record("risk", v)
    assert (p.histogram("risk").count, p.histogram("risk").max) == (3, 100)


# ---------------------------------------------------------------- stays light

def test_halt_and_status_import_neither_numpy_nor_schema_nor_posix_ipc():
    script = ("import sys, hftpipe._control, hftpipe.shm\n"
              "heavy = {'numpy', 'hftpipe.schema', 'posix_ipc', 'hftpipe._ring', 'logging',"
              " 'asyncio', 'hashlib', 'dataclasses'} & set(sys.modules)\n"
              "assert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", script], env=ENV, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr
