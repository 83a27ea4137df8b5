"""Each command does what it says, says it in one line when it cannot, and exits as documented."""
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from hftpipe import _control, cli, shm
from hftpipe.cli import COMMANDS, _common
from hftpipe.errors import Exit
from hftpipe.rundir import RunDir, entry
from tests.models.driver import DEADLINE, ENV, ROOT, drivers, until

HEAVY = ("numpy", "psycopg", "onnxruntime", "prometheus_client", "structlog", "aiohttp", "rich",
         "pathlib", "hftpipe.schema", "hftpipe.config")


@pytest.fixture
def start(tmp_path):
    with drivers(tmp_path / "run") as go:
        yield go


@pytest.fixture
def hp(tmp_path):
    """Run hftpipe with this test's run directory: (exit code, stdout, stderr)."""
    env = {k: v for k, v in ENV.items() if not k.startswith("HFTPIPE_")}

    def go(*args, **extra):
        done = subprocess.run(
            [sys.executable, "-m", "hftpipe", "--run-dir", str(tmp_path / "run"), *args],
            env={**env, **extra}, capture_output=True, text=True, timeout=DEADLINE, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return go


def fails(found, code, message):
    assert found[0] == code
    assert found[2].startswith("error: ") and found[2].count("\n") == 1
    assert message in found[2]


# ---------------------------------------------------------------- the group

def test_every_command_has_help_with_an_example(hp):
    code, out, _ = hp("--help")
    assert code == 0 and "Example:" in out
    for name in COMMANDS:
        if (ROOT / f"src/cli/{name}.py").exists() and name in (
                "start", "status", "ready", "halt", "resume", "stop"):
            assert re.search(rf"^  {name} ", out, re.M)
            code, text, _ = hp(name, "-h")
            assert code == 0 and f"Example: hftpipe {name}" in " ".join(text.split())


def test_the_exit_codes_are_documented():
    text = (ROOT / "docs/operate/exit-codes.md").read_text()
    for code in Exit:
        assert re.search(rf"^\| {int(code)} \|", text, re.M), code


def test_the_commands_are_documented():
    text = (ROOT / "docs/operate/commands.md").read_text()
    for name in ("start", "status", "ready", "halt", "resume", "stop"):
        command = cli.group.get_command(None, name)
        part = text.partition(f"## hftpipe {name}")[2].partition("\n## ")[0]
        assert part, name
        for option in command.params:
            flags = [o for o in option.opts if o.startswith("--")]
            if option.expose_value and flags:
                assert f"`{flags[0]}" in part, f"{name} {flags[0]}"


def test_unknown_commands_and_options_are_usage_errors(hp):
    fails(hp("strat"), 2, "no such command 'strat'; did you mean start?")
    fails(hp("status", "--nope"), 2, "--nope")
    fails(hp("stop", "gently"), 2, "'gently' is not one of")
    fails(hp("ready", "--timeout", "5"), 2, 'must be a time such as "15s" or "250ms", was \'5\'')
    fails(hp("resume"), 2, "--reason")


def test_a_group_without_a_command_says_what_it_has(hp):
    fails(hp(), 2, "hftpipe wants a command (start, status,")
    fails(hp("db"), 2, "hftpipe db wants a command (backup, migrate, restore, status, url, "
                       "verify), found none")


def test_numbers_that_no_clock_or_exchange_takes_are_usage_errors(hp):
    huge = "9" * 400 + "h"
    fails(hp("ready", "--timeout", huge), 2, "must be at most 500h")
    fails(hp("halt", "--timeout", "501h"), 2, "must be at most 500h")
    for name in ("demo", "record"):
        more = ("--out", "x") if name == "record" else ()
        fails(hp(name, *more, "--rate", "nan"), 2, "must be a number from 0 to 100000, was 'nan'")
        fails(hp(name, *more, "--seed", "-1"), 2, "-1 is not in the range")


def test_the_options_of_every_command_hold_for_db_too(hp):
    fails(hp("db", "status", "--set", "store.uri=x"), 4, "unknown key store.uri")
    fails(hp("-C", "none.toml", "db", "migrate"), 4, "configuration none.toml: No such file")
    fails(hp("db", "migrate", "--url", ""), 2, "--url must be")
    code, text, _ = hp("db", "migrate", "-h")
    assert code == 0 and "Example: hftpipe db migrate" in " ".join(text.split())


def test_an_unexpected_error_is_one_line_and_a_traceback_on_request(monkeypatch, capsys):
    def broken(*_):
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(_common.Settings, "directory", broken)
    assert cli.run(["status"]) == 1
    assert capsys.readouterr().err == \
        "error: unexpected ZeroDivisionError: two lines (--debug shows where)\n"
    with pytest.raises(ZeroDivisionError):
        cli.run(["--debug", "status"])


@pytest.mark.parametrize("name", ["halt", "status", "ready", "risk show"])
def test_what_must_be_quick_imports_little(name, tmp_path):
    # An editable installation's own finder imports some before anything of ours runs.
    program = (f"import sys\nbefore = set(sys.modules)\nfrom hftpipe.cli import run\n"
               f"run(['--run-dir', {str(tmp_path / 'r')!r}, *{name.split()!r}])\n"
               f"print([m for m in {HEAVY} if m in sys.modules and m not in before], "
               f"file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", program], env=ENV, capture_output=True, text=True,
                          timeout=DEADLINE)
    assert done.stderr.splitlines()[-1] == "[]"


# ---------------------------------------------------------------- start

def test_dry_run_prints_the_plan(hp):
    core = str(min(os.sched_getaffinity(0)))
    code, out, _ = hp("start", "--cores", core, "--dry-run")
    assert code == 0
    assert re.search(rf"^hot +book signal risk gateway ledger +{core} +sleep", out, re.M)
    assert "MiB of shared memory" in out
    code, out, _ = hp("start", "--cores", core, "--dry-run", "--oversubscribe", "-o", "json")
    plan = json.loads(out)
    assert {p["name"] for p in plan["processes"] if p["wait"] == "yield"} == {
        "feed", "book", "signal", "risk", "gateway", "ledger"}
    assert plan["memory_bytes"] == sum(plan["memory"].values())
    assert plan["profile"] == "demo" and plan["start_order"][-1] == "feed"


def test_bad_core_lists_are_usage_errors(hp):
    fails(hp("start", "--dry-run", "--cores", "1-"), 2, "cores must be a list such as")
    fails(hp("start", "--dry-run", "--cores", "4095"), 2, "core 4095 does not exist; this machine")
    fails(hp("--set", "layout.cores=x", "start", "--dry-run"), 4, "layout.cores: cores must be")


def test_bad_configuration_exits_4_with_its_place(hp, tmp_path):
    (tmp_path / "hftpipe.toml").write_text("[risk]\nmax_dayly_loss = 1\n")
    fails(hp("start", "--dry-run"), 4, "error: hftpipe.toml:2: unknown key risk.max_dayly_loss; "
          "did you mean max_daily_loss?")
    (tmp_path / "b.toml").write_text("[layout.capacity]\nfeed.bok = 64\n")
    fails(hp("-C", "b.toml", "start", "--dry-run"), 4,
          "b.toml:2: unknown key layout.capacity.feed.bok; links are feed.book")
    fails(hp("start", "--dry-run", "-C", "none.toml"), 4, "configuration none.toml: No such file")
    (tmp_path / "hftpipe.toml").unlink()
    fails(hp("start", "--dry-run", HFTPIPE__RISK__X="1"), 4, "HFTPIPE__RISK__X: unknown key risk.x")


def test_live_is_guarded(hp, tmp_path):
    fails(hp("start", "--dry-run", "--live"), 10, "--live needs profile live, was demo")
    live = ["--set", "profile=live", "start", "--dry-run"]
    fails(hp(*live), 10, "profile live needs --live on the command line")
    fails(hp(*live, "--live"), 10, "needs `live = true`")
    fails(hp(*live, "--live", "--set", "live=true"), 10, "needs venue.key and venue.secret")
    keys = ["--set", "venue.key=env:K", "--set", "venue.secret=env:S", "--set", "live=true"]
    assert hp(*live, "--live", *keys)[0] == 0


# ---------------------------------------------------------------- without a run

@pytest.mark.parametrize("name", ["status", "ready", "stop"])
def test_no_run_exits_3(hp, name):
    fails(hp(name), 3, "no run in")


def test_resume_without_a_run_exits_3(hp):
    fails(hp("resume", "--reason", "x"), 3, "no run in")


def test_halt_without_a_run_latches_the_next_start(hp, tmp_path):
    code, out, _ = hp("halt", "--reason", "maintenance")
    assert code == 0
    assert out.startswith("HALTED: no run; the next one starts halted") and "maintenance" in out
    latch = RunDir(tmp_path / "run").latch()
    assert latch.halted and latch.halt["reason"] == "maintenance"
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_a_run_directory_that_others_can_enter_is_refused(hp, tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)
    fails(hp("halt"), 77, "mode 0700, was uid")


# ---------------------------------------------------------------- with a run

def test_status_of_a_run_that_is_well_but_for_its_feed(hp, start):
    driver = start().up()
    control = shm.control(driver.run)
    control.stage(0).set("connected", 1)
    control.stage(0).count("frames", 1234)
    control.stage(3).count("denied", 4)
    control.stage(6).set("day_pnl", -212_405_000_000)
    control.stage(4).record("tick_to_order", 6900)
    code, out, _ = hp("status", "--stages")
    assert code == 7, out
    assert "TRADING=ARMED  health DEGRADED" in out
    assert "! updates is not connected" in out
    assert "day P&L -212.40" in out and "denied 4" in out
    assert re.search(r"tick->order p50 6\.9\d? us", out)
    assert re.search(rf"^hot|^book +{driver.pids['hot']} ", out, re.M)
    control.stage(5).set("connected", 1)
    code, out, _ = hp("status", "-o", "json")
    found = json.loads(out)
    assert code == 0, found["problems"]
    assert found["run"] == driver.first["run"] and found["state"] == "RUNNING"
    assert found["trading"] == "ARMED" and found["health"] == "OK"
    assert found["day_pnl_nanocash"] == -212_405_000_000
    assert found["latency_ns"]["tick_to_order"]["count"] == 1
    assert {s["name"] for s in found["stages"]} == {
        "feed", "book", "signal", "risk", "gateway", "updates", "ledger", "store", "monitor",
        "supervisor", "analyst", "guardian", "journal"}
    assert found["totals"]["frames"] == 1234
    assert hp("ready")[0] == 0


def test_halt_and_resume(hp, start):
    driver = start().up()
    control = shm.control(driver.run)
    for index in (0, 5):
        control.stage(index).set("connected", 1)
    code, out, _ = hp("halt", "--reason", "spread", "-o", "json")
    found = json.loads(out)
    assert code == 0
    assert found["gates"] == {"risk": "acknowledged", "gateway": "acknowledged"}
    assert found["epoch"] == control.halt_epoch == 2 and control.trading == "halted"
    assert found["who"] and found["when"].endswith("Z")

    code, out, _ = hp("status")
    assert code == 6 and "TRADING=HALTED" in out and '"spread" by ' in out
    assert json.loads(control.text)["halt"]["reason"] == "spread"
    code, out, _ = hp("ready")
    assert code == 6 and "trading is HALTED" in out

    fails(hp("resume", "--reason", "  "), 2, "--reason must say something")
    fails(hp("resume", "--epoch", "1", "--reason", "x"), 10, "halt 2 stands")
    control.halt()                                      # somebody else, later
    fails(hp("resume", "--epoch", "2", "--reason", "seen it"), 10,
          "resume of halt 2 refused: halt 3 stands")
    assert control.trading == "halted"
    code, out, _ = hp("resume", "--epoch", "3", "--reason", "seen both", "-o", "json")
    assert code == 0 and json.loads(out)["trading"] == "ARMED"
    assert control.trading == "armed"
    assert not driver.directory.latch().halted
    until(lambda: json.loads(control.text)["halt"]["epoch"] == 3, "the halt nobody explained")
    text = json.loads(control.text)
    assert text["halt"]["who"] == "a stage" and text["resume"]["reason"] == "seen both"
    assert hp("status")[0] == 0


def test_a_halt_in_the_file_alone_is_not_forgotten_by_a_resume(hp, start):
    driver = start().up()
    driver.directory.record_halt(9, entry("told while the page was out of reach"))
    fails(hp("resume", "--epoch", "1", "--reason", "x"), 10, "halt 9 stands")
    assert shm.control(driver.run).trading == "halted"


def test_halt_works_when_every_stage_hangs(hp, start):
    driver = start().up()
    control = shm.control(driver.run)
    for pid in (*driver.pids.values(), driver.popen.pid):
        os.kill(pid, signal.SIGSTOP)
    code, out, _ = hp("halt", "--timeout", "100ms")
    assert code == 5 and "risk silent" in out
    assert control.trading == "halted" and driver.directory.latch().halted
    for pid in (*driver.pids.values(), driver.popen.pid):
        os.kill(pid, signal.SIGCONT)


def test_halt_and_status_work_when_everybody_is_dead(hp, start):
    driver = start().up()
    control = shm.control(driver.run)
    driver.popen.kill()
    driver.end()
    code, out, _ = hp("status")
    assert code == 3 and " DEAD " in out and f"! supervisor {driver.popen.pid} is gone" in out
    code, out, _ = hp("halt")
    assert code == 0 and "risk not running" in out
    assert control.trading == "halted" and driver.directory.latch().halted
    assert hp("ready")[0] == 3
    fails(hp("resume", "--reason", "x"), 3, "is dead")
    fails(hp("stop"), 3, "no run in")


def test_halt_works_when_run_json_is_damaged(hp, start):
    driver = start().up()
    (driver.directory.path / "run.json").write_text("{")
    code, out, _ = hp("halt")
    assert code == 0 and "acknowledged" in out
    assert shm.control(driver.run).trading == "halted"


def test_halt_of_a_damaged_page_latches_and_says_so(hp, start):
    driver = start().up()
    segment = shm.Segment.attach(shm.segment_name(driver.run, "control"))
    magic = segment.memory[:8]
    segment.memory[:8] = bytes(8)
    found = hp("halt")
    segment.memory[:8] = magic
    fails(found, 4, "halted for the next start only, the page is out of reach")
    assert driver.directory.latch().halted


# ---------------------------------------------------------------- stop

def test_stop_drains(hp, start):
    driver = start().up()
    code, out, _ = hp("stop")
    assert code == 0 and re.match(rf"stopped run {driver.run:x} in .*, exit code 0\n$", out)
    assert driver.end()[0] == 0
    assert not driver.directory.latch().halted
    fails(hp("status"), 3, f"the last one, {driver.run:x}, ended ")
    assert driver.run not in shm.runs()


def test_stop_fast_halts_first(hp, start):
    driver = start().up()
    assert hp("stop", "fast")[0] == 0
    assert driver.end()[0] == 0
    assert driver.directory.latch().halt["reason"] == "stop fast"


def test_stop_immediate_does_not_wait_and_keeps_the_rings(hp, start):
    driver = start("hot=deaf", "grace=1000").up()
    code, out, _ = hp("stop", "immediate", "-o", "json")
    found = json.loads(out)
    assert code == 0 and found["exit"] == 130 and found["rings_kept"]
    assert driver.end()[0] == 130


def test_stop_that_takes_too_long_says_so(hp, start):
    driver = start("hot=deaf", "grace=1000").up()
    fails(hp("stop", "--timeout", "100ms"), 5, "has not ended within 0.1 s")
    assert shm.control(driver.run).stop == _control.DRAIN
    driver.popen.send_signal(signal.SIGQUIT)
    driver.end()


def test_ready_waits(hp, start):
    code, _, _ = hp("ready", "--timeout", "50ms")
    assert code == 5
    driver = start().up()
    assert hp("ready", "--timeout", "10s")[0] == 0
    driver.popen.terminate()
    driver.end()


# ---------------------------------------------------------------- small formats

@pytest.mark.parametrize(("nano", "text"), [
    (0, "0.00"), (-5_000_000, "0.00"), (-15_000_000, "-0.02"), (212_405_000_000, "212.40"),
    (212_415_000_000, "212.42"), (1_234_567_890_000_000, "1 234 567.89"), (999_999_999, "1.00")])
def test_money_is_rounded_half_to_even(nano, text):
    assert _common.money(nano).replace("-0.00", "0.00") == text


@pytest.mark.parametrize(("ns", "text"), [
    (0, "0 ns"), (999, "999 ns"), (6900, "6.9 us"), (12_345_678, "12.3 ms"), (10**9, "1 s")])
def test_spans_have_three_digits(ns, text):
    assert _common.span(ns) == text


def test_output_that_nobody_reads_is_no_error(tmp_path):
    program = f"{sys.executable} -m hftpipe start --dry-run | true"
    done = subprocess.run(["sh", "-c", program], env=ENV, capture_output=True, text=True,
                          timeout=DEADLINE, cwd=tmp_path)
    assert done.stderr == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_line(tmp_path, unbuffered):
    for device, code, message in (("/dev/full", 1, "cannot write the output: No space left"),
                                  ("&-", 0, "")):
        done = subprocess.run(
            ["sh", "-c", f"{sys.executable} -m hftpipe start --dry-run >{device}"],
            env={**ENV, "PYTHONUNBUFFERED": unbuffered}, cwd=tmp_path, capture_output=True,
            text=True, timeout=DEADLINE)
        assert done.returncode == code and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == (1 if message else 0)


def test_a_reason_is_one_line_that_a_terminal_can_show():
    assert entry("a\nb\x1b[31m \u202e\udcff c")["reason"] == "a b [31m c"
    assert entry("\u2603 " * 400)["reason"].startswith("\u2603 \u2603")


def test_a_halt_that_cannot_be_latched_says_that_the_run_is_halted(start, hp, tmp_path):
    driver = start().up()
    (tmp_path / "run").chmod(0o755)
    fails(hp("halt"), 77, "is halted (epoch 2), but the halt is not latched for the next start")
    (tmp_path / "run").chmod(0o700)
    assert shm.control(driver.run).trading == "halted"
