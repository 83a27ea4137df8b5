"""Shared memory is private, whole, exclusive and ours, or it is refused with a clear error."""
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import posix_ipc
import pytest

from hftpipe import _control, _ring, schema, shm
from hftpipe.errors import AccessError, BusyError, HftpipeError, NotRunningError, SchemaError

DIRECTORY = Path(shm.DIRECTORY)


@pytest.fixture
def run():
    """A run that no other test has; nothing of it is left."""
    run = secrets.randbits(64) | 1
    yield run
    shm.remove(run)
    assert run not in shm.runs()


def path(name: str) -> Path:
    return DIRECTORY / name.lstrip("/")


def test_segment_is_private_whole_and_zero(run):
    old = os.umask(0o777)
    try:
        segment = shm.Segment.create(shm.segment_name(run, "a.b"), 100_000)
    finally:
        os.umask(old)
    found = path(segment.name).stat()
    assert (found.st_mode & 0o7777, found.st_size) == (0o600, 100_000)
    assert found.st_blocks * 512 >= 100_000, "sparse: a full /dev/shm would kill us with SIGBUS"
    assert segment.memory[:] == bytes(100_000) and segment.created


def test_what_one_writes_the_other_reads(run):
    name = shm.segment_name(run, "a.b")
    first = shm.Segment.create(name, 4096)
    second = shm.Segment.attach(name, 4096)
    first.memory[100:105] = b"hallo"
    assert second.memory[100:105] == b"hallo" and not second.created
    first.unlink()
    first.unlink()
    second.memory[0:1] = b"x"                       # mapped until it is unmapped
    assert first.memory[0:1] == b"x"
    first.close()
    second.close()
    with pytest.raises(NotRunningError, match=f"no shared memory {name}"):
        shm.Segment.attach(name)


def test_an_existing_name_is_never_reused(run):
    name = shm.segment_name(run, "a.b")
    segment = shm.Segment.create(name, 4096)
    segment.memory[:3] = b"old"
    with pytest.raises(BusyError, match=f"{name} exists already"):
        shm.Segment.create(name, 4096)
    assert segment.memory[:3] == b"old"


def test_a_squatted_name_is_refused(run, tmp_path):
    name = shm.segment_name(run, "a.b")
    target = tmp_path / "target"
    target.write_bytes(bytes(4096))
    target.chmod(0o600)
    path(name).symlink_to(target)
    try:
        with pytest.raises(BusyError, match="exists already"):
            shm.Segment.create(name, 4096)
        with pytest.raises(AccessError, match="is not a regular file"):
            shm.Segment.attach(name)
    finally:
        path(name).unlink()
    path(name).mkdir()
    try:
        with pytest.raises(BusyError, match="exists already"):
            shm.Segment.create(name, 4096)
        with pytest.raises(AccessError, match="is not a regular file"):
            shm.Segment.attach(name)
    finally:
        path(name).rmdir()


def test_a_pipe_in_the_place_of_a_segment_is_refused(run):
    name = shm.segment_name(run, "a.b")
    os.mkfifo(path(name), 0o600)
    try:
        with pytest.raises(AccessError, match="not a regular file"):
            shm.Segment.attach(name)
    finally:
        path(name).unlink()


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o400, 0o4600])
def test_open_modes_are_refused(run, mode):
    name = shm.segment_name(run, "a.b")
    shm.Segment.create(name, 4096)
    path(name).chmod(mode)
    with pytest.raises(AccessError, match=r"mode|permission denied"):
        shm.Segment.attach(name)


def test_another_users_segment_is_refused(run, monkeypatch):
    name = shm.segment_name(run, "a.b")
    shm.Segment.create(name, 4096)
    own = os.geteuid()
    with monkeypatch.context() as m:
        m.setattr(os, "geteuid", lambda: own + 1)
        with pytest.raises(AccessError, match=f"belongs to user {own}, this process is user"):
            shm.Segment.attach(name)
        assert run not in shm.runs()


def test_a_second_name_is_refused(run):
    name = shm.segment_name(run, "a.b")
    shm.Segment.create(name, 4096)
    other = path(name + "2")
    try:
        os.link(path(name), other)
    except OSError as e:
        pytest.skip(f"/dev/shm has no hard links: {e}")
    try:
        with pytest.raises(AccessError, match="2 names, expected 1"):
            shm.Segment.attach(name)
    finally:
        other.unlink()


def test_other_sizes_and_sparse_memory_are_refused(run):
    name = shm.segment_name(run, "a.b")
    shm.Segment.create(name, 8192)
    with pytest.raises(SchemaError, match="8192 bytes, expected 4096"):
        shm.Segment.attach(name, 4096)
    os.truncate(path(name), 1 << 20)
    with pytest.raises(SchemaError, match=f"is sparse: 8192 of {1 << 20} bytes"):
        shm.Segment.attach(name)
    os.truncate(path(name), 0)
    with pytest.raises(SchemaError, match="has 0 bytes"):
        shm.Segment.attach(name)


def test_a_full_filesystem_is_a_clear_error_and_leaves_nothing(run):
    room = os.statvfs(DIRECTORY)
    too_much = (room.f_blocks + 1) * room.f_frsize
    name = shm.segment_name(run, "a.b")
    with pytest.raises(HftpipeError, match=f"/dev/shm is full: cannot create {name}"):
        shm.Segment.create(name, too_much)
    assert not path(name).exists()


def test_nothing_unlinks_a_segment_but_unlink(run):
    # multiprocessing's resource tracker unlinks live segments when their creator ends.
    script = (f"from hftpipe import shm, schema; import os, signal\n"
              f"shm.create_ring({run}, 'feed.book', schema.MARKET, 8)\n"
              f"os.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", script], timeout=60, check=False,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -9
    assert shm.runs()[run] == ["feed.book"]
    ring = shm.ring(run, "feed.book", schema.MARKET, producer=True)     # its maker is dead
    assert ring.push(bytes(64))
    assert not shm.alive(*ring.owner)


@pytest.mark.parametrize("link", ["", "A", "feed/book", "../x", "feed book", "x" * 65, "1a", "ä"])
def test_names_are_checked(link):
    with pytest.raises(ValueError, match="link must match"):
        shm.segment_name(5, link)


@pytest.mark.parametrize("run", [0, -1, 1 << 64])
def test_runs_are_checked(run):
    with pytest.raises(ValueError, match="run must be in"):
        shm.segment_name(run, "a")


def test_name_is_the_run_in_hex_and_the_link():
    assert shm.segment_name(0x18E9, "feed.book") == "/hftpipe.18e9.feed.book"


def test_runs_lists_and_remove_removes_only_ours(run):
    names = [shm.segment_name(run, link) for link in ("feed.book", "control")]
    for name in names:
        shm.Segment.create(name, 64)
    stranger = DIRECTORY / f"hftpipe.{run:x}.UPPER"
    stranger.touch()
    try:
        assert shm.runs()[run] == ["control", "feed.book"]
        assert shm.remove(run) == ["control", "feed.book"]
        assert shm.remove(run) == []
        assert stranger.exists()
    finally:
        stranger.unlink()


# ---------------------------------------------------------------- who is alive

def test_alive_knows_a_process_by_its_start_and_a_zombie_as_dead():
    start = shm.process_start(os.getpid())
    assert start and shm.alive(os.getpid(), start)
    assert not shm.alive(os.getpid(), start + 1)            # the pid was reused
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = shm.process_start(child.pid)
    assert born and shm.alive(child.pid, born)
    child.kill()
    deadline = time.monotonic() + 30
    while shm.alive(child.pid, born):                       # a zombie: nobody has waited yet
        assert time.monotonic() < deadline
    child.communicate()
    assert shm.process_start(child.pid) is None


def test_boot_id_is_the_kernels():
    text = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert shm.boot_id().to_bytes(8, "little").hex() == text.replace("-", "")[:16]


# ---------------------------------------------------------------- rings and control pages

def test_ring_in_a_segment(run):
    segment = shm.create_ring(run, "feed.book", schema.MARKET, 16)
    assert segment.size == _ring.footprint(schema.MARKET, 16)
    producer = shm.ring(run, "feed.book", schema.MARKET, producer=True, capacity=16)
    consumer = shm.ring(run, "feed.book", schema.MARKET, producer=False)
    me = os.getpid(), shm.process_start(os.getpid())
    assert producer.owner == me and producer.holders == (me, me)
    assert (producer.run, producer.boot, producer.capacity) == (run, shm.boot_id(), 16)
    producer.push(b"\7" * 64)
    assert consumer.pop()[8:] == b"\7" * 56
    with pytest.raises(BufferError):
        segment_of = shm.Segment.attach(segment.name)
        ring = _ring.Ring(segment_of.memory, schema.MARKET, False)
        segment_of.close()
    del ring


@pytest.mark.parametrize("capacity", [0, 3, -8])
def test_capacity_is_checked_before_anything_is_made(run, capacity):
    with pytest.raises(ValueError, match=f"power of two, was {capacity}"):
        shm.create_ring(run, "a.b", schema.MARKET, capacity)
    assert run not in shm.runs()


def test_a_record_that_can_not_travel_leaves_nothing(run):
    with pytest.raises(ValueError, match="does not begin with link_seq"):
        shm.create_ring(run, "a.b", schema.INSTRUMENT, 8)
    assert run not in shm.runs()


def test_a_ring_of_another_run_boot_or_record_is_refused_by_name(run, monkeypatch):
    name = shm.segment_name(run, "a.b")
    shm.create_ring(run, "a.b", schema.MARKET, 8)
    with pytest.raises(SchemaError, match=rf"{name}: ring was made by schema .* intent"):
        shm.ring(run, "a.b", schema.INTENT, producer=True)
    with pytest.raises(SchemaError, match="bytes, expected"):
        shm.ring(run, "a.b", schema.MARKET, producer=True, capacity=16)
    boot = shm.boot_id()
    with monkeypatch.context() as m:
        m.setattr(shm, "boot_id", lambda: boot ^ 1)
        found = f"made in boot {boot:#x}, this is boot {boot ^ 1:#x}"
        with pytest.raises(SchemaError, match=found):
            shm.ring(run, "a.b", schema.MARKET, producer=True)
    other = run ^ 2
    os.rename(path(name), path(shm.segment_name(other, "a.b")))
    try:
        with pytest.raises(SchemaError, match=f"belongs to run {run:x}, wanted run {other:x}"):
            shm.ring(other, "a.b", schema.MARKET, producer=True)
    finally:
        shm.remove(other)


def test_two_living_producers_are_refused(run):
    shm.create_ring(run, "a.b", schema.MARKET, 8)
    script = (f"from hftpipe import shm, schema\n"
              f"ring = shm.ring({run}, 'a.b', schema.MARKET, producer=True)\n"
              f"print('ready', flush=True); input()")
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True,
                             stdout=subprocess.PIPE,
                             env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(BusyError, match=rf"a\.b: process {child.pid} is this ring's producer"):
        shm.ring(run, "a.b", schema.MARKET, producer=True)
    shm.ring(run, "a.b", schema.MARKET, producer=False)
    child.kill()
    child.communicate()
    assert shm.ring(run, "a.b", schema.MARKET, producer=True).push(bytes(64))


def test_control_page_in_a_segment(run):
    shm.create_control(run, stages=("feed", "book"), token_key=77, halt_epoch=5)
    page = shm.control(run, writer=True)
    assert (page.run, page.boot, page.token_key, page.halt_epoch) == (run, shm.boot_id(), 77, 5)
    assert page.supervisor == (os.getpid(), shm.process_start(os.getpid()))
    assert [s.name for s in page.stages] == ["feed", "book"]
    with pytest.raises(BusyError):
        shm.create_control(run, stages=())
    os.truncate(path(shm.segment_name(run, "control")), _control.SIZE - 4096)
    wanted = rf"\.control: control page has version .* {_control.SIZE} B"
    with pytest.raises(SchemaError, match=wanted):
        shm.control(run)


def test_a_bad_control_page_leaves_nothing(run):
    with pytest.raises(ValueError, match="at most 16 stages"):
        shm.create_control(run, stages=["x"] * 17)
    assert run not in shm.runs()
    with pytest.raises(NotRunningError, match=r"no shared memory /hftpipe\..*\.control"):
        shm.control(run)


def test_posix_ipc_sees_what_we_made(run):
    name = shm.segment_name(run, "a.b")
    shm.Segment.create(name, 4096)
    handle = posix_ipc.SharedMemory(name)
    assert handle.size == 4096
    handle.close_fd()
