"""However a run ends, no process outlives it, and shared memory stays only if it holds events."""
import json
import os
import signal

import pytest

from hftpipe import _control, rundir, shm
from hftpipe.errors import AccessError, BusyError, NotRunningError
from hftpipe.process import find_leftovers
from hftpipe.rundir import Latch, Run, RunDir, entry
from tests.models.driver import DEADLINE, drivers, until


@pytest.fixture
def start(tmp_path):
    with drivers(tmp_path / "run") as go:
        yield go


# ---------------------------------------------------------------- ends well

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0_leaving_nothing(start, number):
    driver = start().up()
    assert set(driver.pids) == {"feed", "hot", "updates", "store", "monitor", "analyst",
                                "guardian", "journal"}
    assert shm.runs()[driver.run]
    driver.popen.send_signal(number)
    code, err = driver.end()
    assert (code, err) == (0, "")
    assert driver.run not in shm.runs()
    run = driver.directory.read_run()
    assert run.exit == 0 and run.ended and not run.alive
    assert not driver.directory.latch().halted
    assert driver.log()[-1]["event"] == "ended" and driver.log()[-1]["run"] == f"{driver.run:x}"


def test_a_stop_request_on_the_page_ends_the_run(start):
    driver = start().up()
    shm.control(driver.run).request_stop()
    assert driver.end()[0] == 0
    assert driver.run not in shm.runs()


def test_children_have_their_own_process_group_and_core(start):
    driver = start().up()
    groups = {os.getpgid(pid) for pid in driver.pids.values()}
    assert groups == set(driver.pids.values())
    if len(os.sched_getaffinity(0)) > 1:
        assert os.sched_getaffinity(driver.pids["hot"]) == {1}
        assert os.sched_getaffinity(driver.pids["store"]) == {0}
        assert os.sched_getaffinity(driver.popen.pid) == {0}, "the supervisor keeps house"
        assert shm.control(driver.run).stage(9).core == 0


# ---------------------------------------------------------------- a stage dies

@pytest.mark.parametrize("name", ["feed", "hot", "updates"])
def test_a_fatal_death_halts_drains_the_store_and_exits_non_zero(start, name):
    driver = start().up()
    control = shm.control(driver.run)
    assert control.trading == "armed"
    os.kill(driver.pids[name], signal.SIGKILL)
    code, _ = driver.end()
    assert code == 1
    assert control.trading == "halted"
    assert driver.run not in shm.runs(), "the store had everything: nothing stays"
    latch = driver.directory.latch()
    assert latch.halted and f"{name} died (signal SIGKILL)" in latch.halt["reason"]
    stage = "hot" if name == "hot" else name
    index = {"feed": 0, "hot": 1, "updates": 5}[stage]
    assert control.stage(index).state == _control.FAILED
    assert control.stage(7).state == _control.STOPPED


@pytest.mark.parametrize("name", ["store", "monitor", "analyst", "guardian", "journal"])
def test_a_cold_death_is_repaired_in_place(start, name):
    driver = start().up()
    control = shm.control(driver.run)
    index = {"store": 7, "monitor": 8, "analyst": 10, "guardian": 11,
             "journal": 12}[name]
    os.kill(driver.pids[name], signal.SIGKILL)
    until(lambda: control.stage(index).pid not in (0, driver.pids[name])
          and control.stage(index).state == _control.RUNNING, f"{name} runs again")
    assert control.trading == "armed"
    driver.popen.terminate()
    assert driver.end()[0] == 0
    assert driver.run not in shm.runs()


def test_a_store_that_keeps_dying_stops_the_run_and_its_rings_stay(start):
    driver = start("store=crash:3").up()
    code, _ = driver.end()
    assert code == 1
    assert "control" in shm.runs()[driver.run]
    assert driver.directory.latch().halted
    assert sum(line["event"] == "restarting" for line in driver.log()) >= 3


def test_a_store_that_cannot_finish_keeps_the_rings(start):
    driver = start("store=store:1").up()
    driver.popen.terminate()
    assert driver.end()[0] == 1
    assert "feed.store" in shm.runs()[driver.run]


def test_a_monitor_that_keeps_dying_is_left_out(start):
    driver = start("monitor=crash:3").up()
    until(lambda: any(line["event"] == "left out" for line in driver.log()), "left out")
    assert shm.control(driver.run).trading == "armed"
    driver.popen.terminate()
    assert driver.end()[0] == 0


def test_a_silent_stage_halts_trading_and_is_then_killed(start):
    driver = start("hot=silent", "stale=0.3", "hung=1.5").up()
    control = shm.control(driver.run)
    until(lambda: control.trading == "halted", "halted")
    code, _ = driver.end()
    assert code == 1
    assert "has not beaten for" in driver.directory.latch().halt["reason"] or \
        "died" in driver.directory.latch().halt["reason"]
    assert {"silent", "hung", "died"} <= {line["event"] for line in driver.log()}


def test_a_stage_that_does_not_drain_is_ended_by_force(start):
    driver = start("hot=deaf", "grace=2").up()
    driver.popen.terminate()
    assert driver.end()[0] == 5
    assert driver.run not in shm.runs()
    assert driver.directory.latch().halted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(start, number):
    driver = start("hot=deaf", "grace=1000").up()
    control = shm.control(driver.run)
    driver.popen.send_signal(number)
    until(lambda: control.stop == _control.DRAIN, "draining")
    driver.popen.send_signal(number)
    assert driver.end()[0] == 130
    assert driver.run in shm.runs(), "nothing was drained: the rings stay"


def test_sigquit_does_not_wait_at_all(start):
    driver = start("hot=deaf", "grace=1000").up()
    driver.popen.send_signal(signal.SIGQUIT)
    assert driver.end()[0] == 130


# ---------------------------------------------------------------- the guardian

def test_without_a_guardian_trading_halts(start):
    driver = start("guardian=mute").up()
    control = shm.control(driver.run)
    (driver.directory.path / "mute").touch()
    until(lambda: driver.directory.latch().halted, "halted and latched")
    latch = driver.directory.latch()
    assert control.trading == "halted"
    assert latch.halt["reason"].startswith("no guardian for ")
    (driver.directory.path / "mute").unlink()
    driver.popen.terminate()
    assert driver.end()[0] == 0


def test_a_guardian_that_hangs_is_killed_and_another_one_started(start):
    driver = start("guardian=mute", "hung=1.5").up()
    control = shm.control(driver.run)
    (driver.directory.path / "mute").touch()
    until(lambda: any(line["event"] == "hung" and line["stage"] == "guardian"
                      for line in driver.log()), "killed")
    (driver.directory.path / "mute").unlink()
    until(lambda: control.stage(11).pid != driver.pids["guardian"]
          and control.stage(11).state == _control.RUNNING, "another guardian runs")
    assert control.trading == "halted", "resuming is for people"
    driver.popen.terminate()
    assert driver.end()[0] == 0


def test_a_guardian_that_keeps_dying_stops_the_run(start):
    driver = start("guardian=crash:3").up()
    code, _ = driver.end()
    assert code == 1
    assert "guardian died (exit code 3)" in driver.directory.latch().halt["reason"] or \
        "no guardian" in driver.directory.latch().halt["reason"]
    assert driver.run not in shm.runs(), "and everything is stored all the same"


def test_the_guardian_is_left_when_the_venue_does_not_let_it_go(start):
    driver = start("guardian=deaf", "vigil=0.3").up()
    pid = driver.pids["guardian"]
    driver.popen.terminate()
    driver.popen.wait(DEADLINE)
    assert driver.popen.returncode == 5
    log = driver.log()
    assert any(line["event"].startswith("the guardian stays") and line["pid"] == pid
               for line in log) and log[-1]["event"] == "ended"
    driver.end()                        # a dummy goes when it sees that the supervisor has


# ---------------------------------------------------------------- it never came up

@pytest.mark.parametrize("store", ["store", "ok"])
def test_a_child_that_cannot_start_gives_its_own_words_and_code(start, store):
    driver = start("hot=die:4", f"store={store}")
    driver.popen.wait(DEADLINE)
    assert driver.popen.returncode == 4
    assert driver.popen.stderr.read() == \
        "error: hot did not start (exit code 4): hot cannot go on\n"
    run = driver.directory.read_run()
    assert run.exit == 4
    assert run.run not in shm.runs(), "what the others had made was stored first"


def test_a_store_that_cannot_start_leaves_nothing(start):
    driver = start("store=die:4")
    driver.popen.wait(DEADLINE)
    assert driver.popen.returncode == 4
    assert driver.directory.read_run().run not in shm.runs()


def test_a_signal_while_starting_drains_too(start):
    driver = start("hot=late")
    run = driver.directory
    until(lambda: (run.path / "run.json").exists()
          and "control" in shm.runs().get(run.read_run().run, ()), "the page is there")
    _, control = run.control()
    until(lambda: control.stage(7).state == _control.RUNNING, "the store runs")
    driver.popen.terminate()
    assert driver.end() == (130, "error: SIGTERM while starting\n")
    assert control.run not in shm.runs()


# ---------------------------------------------------------------- the supervisor dies

def test_kill_9_of_the_supervisor_takes_every_child_and_leaves_the_rings(start):
    driver = start().up()
    shm.control(driver.run).halt()
    driver.popen.kill()
    code, _ = driver.end()
    assert code == -signal.SIGKILL
    left = find_leftovers(driver.directory)
    assert left.run.run == driver.run
    assert {"control", "feed.store", "ledger.store"} <= set(left.links)
    assert left.latch.halted, "a halt that only the page knew is latched"
    again = start().up()
    assert again.first["leftovers"] == list(left.links)
    assert again.end()[0] == 0


def test_a_second_instance_is_refused_with_the_first_ones_pid(start):
    driver = start().up()
    second = start()
    second.popen.wait(DEADLINE)
    assert second.popen.returncode == 75
    assert f"supervisor {driver.popen.pid};" in second.popen.stderr.read()
    with pytest.raises(BusyError, match=str(driver.popen.pid)):
        driver.directory.lock()
    driver.popen.terminate()
    assert driver.end()[0] == 0
    driver.directory.lock()
    driver.directory.unlock()


def test_a_halt_is_latched_across_a_restart(start):
    driver = start().up()
    epoch = shm.control(driver.run).halt()
    until(lambda: driver.directory.latch().halt_epoch == epoch, "the supervisor latched it")
    driver.popen.terminate()
    assert driver.end()[0] == 0
    again = start().up()
    control = shm.control(again.run)
    assert control.trading == "halted"
    assert control.halt_epoch == epoch and control.armed_epoch == epoch - 1
    assert json.loads(control.text)["halt"] == driver.directory.latch().halt
    assert not control.resume(epoch - 1), "the epoch before the halt does not arm"
    assert control.resume(epoch)


# ---------------------------------------------------------------- the run directory

def test_the_run_directory_has_a_place(monkeypatch, tmp_path):
    monkeypatch.delenv("HFTPIPE_RUN_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert rundir.default() == str(tmp_path / "hftpipe")
    monkeypatch.setenv("HFTPIPE_RUN_DIR", str(tmp_path / "r"))
    assert rundir.default() == str(tmp_path / "r")
    assert rundir.default(tmp_path / "q") == str(tmp_path / "q")


def test_the_run_directory_is_private(tmp_path):
    private = RunDir(tmp_path / "a/b")
    private.prepare()
    assert private.path.stat().st_mode & 0o777 == 0o700
    private.path.chmod(0o750)
    with pytest.raises(AccessError, match=r"mode 0700, was uid .* mode 0750"):
        private.prepare()
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessError, match="not a directory"):
        RunDir(tmp_path / "file").prepare()
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(AccessError, match="not a directory"):
        RunDir(tmp_path / "link").prepare()


def test_run_json_round_trips_and_damage_is_told(tmp_path):
    directory = RunDir(tmp_path)
    assert directory.read_run() is None
    run = Run(0x18a, 7, 8, 9, "demo", 3, ("/a", "/b"), ({"name": "x"},), {"k": 1})
    directory.write_run(run)
    assert directory.read_run() == run
    assert not run.alive
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(Exception, match="is damaged"):
        directory.read_run()
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(Exception, match="is not JSON"):
        directory.control()
    with pytest.raises(NotRunningError):
        RunDir(tmp_path / "none").control()


def test_the_page_is_found_by_the_lock_when_run_json_is_damaged(start):
    driver = start().up()
    (driver.directory.path / "run.json").write_text("x")
    run, control = driver.directory.control()
    assert run.run == driver.run and control.trading == "armed"
    driver.popen.terminate()
    assert driver.end()[0] == 0


def test_of_two_halts_the_higher_wins_and_a_resume_undoes_only_its_own(tmp_path):
    directory = RunDir(tmp_path)
    assert directory.latch() == Latch()
    why = entry("x", "me")
    assert directory.record_halt(0, why).halted          # no run: the file's own epoch
    assert directory.latch().halt_epoch == 2
    assert directory.record_halt(7, why).halt_epoch == 7
    assert directory.record_halt(5, why).halt_epoch == 7
    for first, second in ((False, True), (True, False)):
        epoch = directory.latch().halt_epoch + 1
        for seen in (first, second):
            directory.record_halt(epoch, entry("seen" if seen else "made", "me"), seen=seen)
        assert directory.latch().halt["reason"] == "made"
    assert directory.latch().halt_epoch == 9
    with directory.operator() as got:
        assert got
        assert directory.record_resume(8, why).halted
        assert not directory.record_resume(9, why).halted
    assert directory.record_halt(0, why).halt_epoch == 10


def test_a_damaged_latch_counts_as_a_halt(tmp_path):
    (tmp_path / "halt.json").write_text("{")
    assert RunDir(tmp_path).latch().halted


def test_a_halt_does_not_wait_for_ever_for_the_operator_lock(tmp_path):
    directory = RunDir(tmp_path)
    with directory.operator() as got:
        assert got
        with directory.operator(timeout=0.05) as second:
            assert not second
