"""Every way to halt ends the same: the gate closed, latched, written down with who, why and how."""
import json
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import _control, shm
from hftpipe.rundir import Latch, RunDir, entry
from tests.models.driver import DEADLINE, ENV, ROOT, drivers, until

HELPER = ROOT / "build/bin/hftpipe-halt"


@pytest.fixture
def start(tmp_path):
    with drivers(tmp_path / "run") as go:
        yield go


def command(*args):
    """Run a command to its end: (exit code, stdout, stderr)."""
    env = {k: v for k, v in ENV.items() if not k.startswith("HFTPIPE_")}
    done = subprocess.run([str(a) for a in args], env=env, capture_output=True, text=True,
                          timeout=DEADLINE)
    return done.returncode, done.stdout, done.stderr


def helper(*args):
    return command(HELPER, *args)


def audit(directory):
    return [json.loads(line) for line in (directory / "audit.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------- five ways, one end

def by_helper(driver):
    code, out, _ = helper("--run-dir", driver.directory.name, "--reason", "why not")
    assert (code, out) == (0, f"HALTED run {driver.run:x} (epoch 2)\n")


def by_file(driver):
    (driver.directory.path / "HALT").write_text("why not\n")


def by_signal(driver):
    driver.popen.send_signal(signal.SIGUSR1)


@pytest.mark.parametrize("do, way, reason", [
    (by_helper, "helper", "why not"), (by_file, "file", "why not"),
    (by_signal, "signal", "SIGUSR1")])
def test_the_gate_closes_and_everything_is_written_down(start, do, way, reason):
    driver = start().up()
    control = shm.control(driver.run)
    assert control.trading == "armed"
    do(driver)
    until(lambda: control.trading == "halted", "halted")
    assert control.halt_epoch == 2
    until(lambda: driver.directory.latch().halted, "latched")
    until(lambda: "halt" in json.loads(control.text or "{}"), "on the page for status")
    latch = driver.directory.latch()
    assert latch.halt_epoch == 2 and latch.armed_epoch == 1
    assert latch.halt["way"] == way and latch.halt["reason"] == reason and latch.halt["who"]
    assert json.loads(control.text)["halt"] == {**latch.halt, "epoch": 2}
    (line,) = audit(driver.directory.path)
    assert line["action"] == "halt" and line["run"] == f"{driver.run:x}" and line["epoch"] == 2
    assert {k: line[k] for k in latch.halt} == latch.halt and len(line["id"]) == 32
    assert stat.S_IMODE((driver.directory.path / "audit.jsonl").stat().st_mode) == 0o600
    assert driver.popen.poll() is None, "halted is not stopped"
    driver.popen.terminate()
    assert driver.end()[0] == 0
    assert driver.directory.latch().halted, "the next start is halted too"


def test_while_the_file_is_there_nothing_trades(start, tmp_path):
    directory = RunDir(tmp_path / "run")
    directory.prepare()
    (directory.path / "HALT").touch()
    driver = start().up()
    control = shm.control(driver.run)
    assert control.trading == "halted" and directory.latch().halt["reason"] == "file HALT"
    cli = (sys.executable, "-m", "hftpipe", "--run-dir", directory.name)
    code, _, err = command(*cli, "resume", "--reason", "x")
    assert code == 10 and f"{directory.name}/HALT is there" in err
    assert control.trading == "halted"
    # armed behind its back, it halts again
    assert control.resume(control.halt_epoch)
    until(lambda: control.trading == "halted", "halted again")
    (directory.path / "HALT").unlink()
    code, _, err = command(*cli, "resume", "--reason", "it is gone")
    assert code == 0, err
    assert control.trading == "armed"
    last = audit(directory.path)[-1]
    assert (last["action"], last["reason"], last["way"]) == ("resume", "it is gone", "cli")


@pytest.mark.parametrize("kind", ["directory", "dangling", "pipe", "unreadable"])
def test_whatever_is_called_halt_counts(tmp_path, kind):
    path = tmp_path / "HALT"
    assert RunDir(tmp_path).halt_file() is None
    if kind == "directory":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\xff\xfe")
        path.chmod(0)
    reason, who = RunDir(tmp_path).halt_file()
    assert reason and "@" in who


def test_a_halt_before_the_run_is_armed_is_not_overtaken_by_arming_it():
    memory = bytearray(_control.SIZE + 64)
    at = -(id_of := shm_address(memory)) % 64
    view = memoryview(memory)[at:at + _control.SIZE]
    _control.format(view, run=7, halt_epoch=5)
    control = _control.Control(view)
    assert id_of and control.halt() == 6
    assert not control.resume(5), "what the pipeline does when all stages are up"
    assert control.trading != "armed"


def shm_address(memory):
    import ctypes
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def test_flags_reach_the_page_and_only_grow(start):
    driver = start().up()
    control = shm.control(driver.run)
    assert (control.cancel_epoch, control.flatten_epoch) == (0, 0)
    assert helper("--run-dir", driver.directory.name)[0] == 0
    assert (control.halt_epoch, control.cancel_epoch, control.flatten_epoch) == (2, 0, 0)
    assert helper("--run-dir", driver.directory.name, "--cancel")[0] == 0
    assert (control.halt_epoch, control.cancel_epoch, control.flatten_epoch) == (3, 3, 0)
    assert helper("--run-dir", driver.directory.name, "--flatten")[0] == 0
    assert (control.halt_epoch, control.cancel_epoch, control.flatten_epoch) == (4, 4, 4)
    control.request_cancel(2)
    control.request_flatten(3)
    assert (control.cancel_epoch, control.flatten_epoch) == (4, 4)
    assert [(a.get("cancel"), a.get("flatten")) for a in audit(driver.directory.path)] == [
        (None, None), (True, None), (None, True)]


def test_many_at_once_count_each_halt_once(start):
    driver = start().up()
    control = shm.control(driver.run)
    threads = [threading.Thread(target=helper, args=("--run-dir", driver.directory.name))
               for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert control.halt_epoch == 9
    assert driver.directory.latch().halt_epoch == 9
    lines = audit(driver.directory.path)
    assert sorted(line["epoch"] for line in lines) == list(range(2, 10))
    assert len({line["id"] for line in lines}) == 8


# ---------------------------------------------------------------- the helper on its own

def test_without_a_run_the_next_one_starts_halted(tmp_path):
    run = tmp_path / "a/b/run"
    code, out, _ = helper("--run-dir", run, "--reason=maintenance")
    assert code == 0 and out == f"HALTED: no run in {run}; the next one starts halted\n"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    latch = RunDir(run).latch()
    assert latch.halted and (latch.halt_epoch, latch.armed_epoch) == (2, 1)
    assert latch.halt["reason"] == "maintenance" and latch.halt["way"] == "helper"
    (line,) = audit(run)
    assert "run" not in line and line["epoch"] == 2


def test_its_run_directory_is_found_as_everywhere(tmp_path):
    env = {"HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
    for extra, place in (({}, "home/.local/state/hftpipe"),
                         ({"XDG_STATE_HOME": str(tmp_path / "x")}, "x/hftpipe"),
                         ({"HFTPIPE_RUN_DIR": str(tmp_path / "y/z/")}, "y/z"),
                         ({"HFTPIPE_RUN_DIR": "relative"}, "relative")):
        done = subprocess.run([HELPER], env={**env, **extra}, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / place / "halt.json").exists(), place


def test_it_is_told_what_is_wrong_in_one_line(tmp_path):
    for args in (("--nope",), ("--reason",), ("x",), ("--run-dir",)):
        code, _, err = helper(*args)
        assert code == 2 and err.startswith("error: no such option") and err.count("\n") == 1
    code, _, err = helper("--run-dir", "/x" * 3000)
    assert code == 2 and "too long" in err
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    code, _, err = helper("--run-dir", open_to_all)
    assert code == 77 and "mode 0700, was uid" in err
    (tmp_path / "file").write_text("")
    assert helper("--run-dir", tmp_path / "file")[0] == 77
    assert helper("--help")[1].startswith("usage: hftpipe-halt")


def test_it_halts_when_the_run_cannot_be_written_down(start, tmp_path):
    driver = start().up()
    driver.directory.path.chmod(0o755)
    code, _, err = helper("--run-dir", driver.directory.name)
    driver.directory.path.chmod(0o700)
    assert code == 77 and "is halted (epoch 2), but the halt is not written down" in err
    assert shm.control(driver.run).trading == "halted"


def test_it_finds_the_page_by_the_lock_when_run_json_is_damaged(start):
    driver = start().up()
    (driver.directory.path / "run.json").write_text("{")
    code, out, _ = helper("--run-dir", driver.directory.name)
    assert (code, out) == (0, f"HALTED run {driver.run:x} (epoch 2)\n")


@pytest.mark.parametrize("damage, message", [
    (lambda s: s.memory.__setitem__(slice(0, 8), bytes(8)), "is not a control page of this"),
    (lambda s: s.memory.__setitem__(slice(8, 16), b"\x63" + bytes(7)), "is not a control page"),
    (lambda s: s.memory.__setitem__(slice(16, 24), b"\x63" + bytes(7)), "is not a control page"),
    (lambda s: os.chmod(f"/dev/shm{s.name}", 0o644), "is not a file of this user alone"),
    (lambda s: os.truncate(f"/dev/shm{s.name}", 4096), "has another size than"),
], ids=["magic", "version", "run", "mode", "size"])
def test_a_page_that_is_not_ours_is_left_alone_and_the_halt_latched(tmp_path, damage, message):
    directory = RunDir(tmp_path / "run")
    directory.prepare()
    run = int.from_bytes(os.urandom(7), "little") | 1
    (tmp_path / "run/run.json").write_text(json.dumps({"x": "}\\\"{", "run": f"{run:x}"}))
    segment = shm.create_control(run, stages=("feed",))
    try:
        before = bytes(segment.memory[128:136])
        damage(segment)
        code, _, err = helper("--run-dir", directory.name)
        assert code == 4 and message in err and "halted for the next start only" in err
        if "size" not in message:
            assert bytes(segment.memory[128:136]) == before
        assert directory.latch().halted
    finally:
        segment.unlink()


texts = st.text(st.characters(codec="utf-8"), max_size=400)
words = st.recursive(st.none() | st.booleans() | st.integers(-2**63, 2**63) | texts
                     | st.floats(allow_nan=False, allow_infinity=False),
                     lambda inner: st.lists(inner, max_size=3)
                     | st.dictionaries(texts, inner, max_size=3), max_leaves=8)


@given(st.integers(1, 2**40), st.integers(0, 2**40), st.dictionaries(texts, words, max_size=4),
       st.booleans())
def test_it_writes_the_latch_that_python_would(tmp_path_factory, halt, armed, resume, indent):
    """Whatever stood in halt.json, the C code and RunDir make the same of it."""
    path = tmp_path_factory.mktemp("latch")
    path.chmod(0o700)
    resume.pop("halt_epoch", None)
    text = json.dumps({**resume, "halted": True, "halt_epoch": halt, "armed_epoch": armed,
                       "halt": resume, "resume": resume}, indent=1 if indent else None,
                      ensure_ascii=indent)
    (path / "halt.json").write_text(text)
    assert helper("--run-dir", path, "--reason", "x")[0] == 0
    found = RunDir(path).latch()
    assert found == Latch(max(halt, 1) + 1, min(max(armed, 1), max(halt, 1)), found.halt, resume)
    assert found.halt["reason"] == "x"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"halt_epoch": "x"}', '{"halt_epoch": 5',
                                  '{"halt_epoch": 7, "armed_epoch": 7, "resume": "}'])
def test_a_damaged_latch_counts_as_a_halt_for_the_helper_too(tmp_path, text):
    tmp_path.chmod(0o700)
    (tmp_path / "halt.json").write_text(text)
    assert helper("--run-dir", tmp_path)[0] == 0
    latch = RunDir(tmp_path).latch()
    assert latch.halted and latch.halt["way"] == "helper" and latch.armed_epoch >= 1


@given(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=700))
def test_a_reason_is_what_python_makes_of_it_or_plainer(tmp_path_factory, reason):
    path = tmp_path_factory.mktemp("reason")
    path.chmod(0o700)
    assert helper("--run-dir", path, "--reason", reason)[0] == 0
    found = RunDir(path).latch().halt["reason"]
    assert found == audit(path)[0]["reason"]
    assert len(found) <= 300 and "\n" not in found and "\x1b" not in found
    if reason.isascii():
        assert found == entry(reason)["reason"]


def test_bytes_that_are_no_text_do_not_break_the_files(tmp_path):
    tmp_path.chmod(0o700)
    done = subprocess.run([HELPER, "--run-dir", tmp_path, b"--reason=a\xff\xc0\xaf\xed\xa0\x80b"],
                          capture_output=True, timeout=DEADLINE)
    assert done.returncode == 0
    assert RunDir(tmp_path).latch().halt["reason"] == "a b"
