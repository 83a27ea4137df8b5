"""What the page holds is what Prometheus and a browser see, and one judgement serves all."""
import http.client
import json
import mmap
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from hftpipe import _clock, _control, health, metrics, schema, shm
from hftpipe.errors import AccessError, BusyError, ConfigError, Exit
from hftpipe.rundir import Run, RunDir
from hftpipe.topology import STAGES
from tests.models.driver import DEADLINE, ENV, until


@pytest.fixture
def page():
    """A run that is well: its page, and this process as its supervisor and stages."""
    memory = mmap.mmap(-1, _control.SIZE)
    pid = os.getpid()
    start = shm.process_start(pid)
    now = _clock.now_ns()
    _control.format(memory, run=77, pid=pid, start=start, stages=[s.name for s in STAGES],
                    started=_clock.utc_ns(), utc_offset=_clock.utc_ns() - now)
    control = _control.Control(memory)
    for stage in control.stages:
        stage.enter(pid, start)
        stage.state = _control.RUNNING
        stage.heartbeat = now
        if stage.name in ("feed", "updates", "guardian"):
            stage.set("connected", 1)
    control.resume(1)
    return Run(77, pid, start, shm.boot_id(), "demo"), control


def test_a_run_that_is_well(page):
    found = health.survey(*page)
    assert found["problems"] == [] and found["health"] == "OK"
    assert (found["state"], found["trading"]) == ("RUNNING", "ARMED")
    assert health.ready(found) and health.exit_code(found) is Exit.OK
    json.dumps(found)


def silence(control):
    control.stage(1).heartbeat = _clock.now_ns() - 3 * 10**9


def fill(control):
    control.stage(4).store_full = True


def disconnect(control):
    control.stage(0).set("connected", 0)


def mute(control):
    control.stage(0).set("last_data", _clock.now_ns() - 90 * 10**9)


def lose(control):
    control.stage(4).set("orders_unknown", 2)


def lag(control):
    control.stage(7).set("store_lag", 10**6)


def fail(control):
    control.stage(6).state = _control.FAILED


def garble(control):
    control.stage(5).set("errors", 2)


@pytest.mark.parametrize(("harm", "words"), [
    (silence, "book has not beaten for 3.0 s"), (fill, "gateway: store link is full"),
    (garble, "2 malformed order updates"),
    (disconnect, "feed is not connected"), (mute, "no market data for 90 s"),
    (lose, "2 orders without an answer"), (lag, "store is 1000000 events behind"),
    (fail, "ledger is failed")])
def test_each_trouble_is_named_and_degrades(page, harm, words):
    harm(page[1])
    found = health.survey(*page)
    assert found["problems"] == [words]
    assert health.exit_code(found) is Exit.DEGRADED
    assert health.ready(found) is (harm is not fail)


def test_halted_outranks_degraded_and_dead_outranks_both(page):
    run, control = page
    lose(control)
    control.halt()
    assert health.exit_code(health.survey(run, control)) is Exit.HALTED
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=77, pid=2**22 + 1, start=1, stages=["feed"])
    found = health.survey(run, _control.Control(memory))
    assert found["state"] == "DEAD" and health.exit_code(found) is Exit.NOT_RUNNING


def test_a_halt_before_the_first_arming_is_a_halt():
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=77, pid=os.getpid(), start=shm.process_start(os.getpid()),
                    stages=["feed"])
    control = _control.Control(memory)
    run = Run(77, 1, 1, 1)
    assert health.survey(run, control)["trading"] == "DISARMED"
    control.halt()
    assert health.survey(run, control)["trading"] == "HALTED"


def test_a_stage_that_was_planned_and_never_came_is_starting(page):
    run, control = page
    control.stage(3).state = _control.VOID
    planned = Run(77, run.pid, run.start, run.boot,
                  processes=({"name": "hot", "stages": ["risk"]},))
    found = health.survey(planned, control)
    assert found["state"] == "STARTING" and "risk has not started" in found["problems"]


# ---------------------------------------------------------------- metrics

def scrape(control):
    from prometheus_client.exposition import generate_latest
    text = generate_latest(metrics.registry(lambda: control)).decode()
    return {(s.name, s.labels.get("stage"), s.labels.get("le")): s.value
            for family in text_string_to_metric_families(text) for s in family.samples}


def test_every_metric_of_the_schema_is_rendered_with_its_value(page):
    _, control = page
    for n, metric in enumerate(schema.METRICS):
        for stage in control.stages:
            stage.set(metric.name, 100 * stage.index + n)
    found = scrape(control)
    for n, metric in enumerate(schema.METRICS):
        for stage in control.stages:
            scale = {"ns": 1e9, "bps": 1e4}.get(metric.unit, 1)
            assert found[metric.prometheus, stage.name, None] == (100 * stage.index + n) / scale
    assert found["hftpipe_armed", None, None] == 1
    assert found["hftpipe_stage_up", "risk", None] == 1


def test_negative_money_stays_negative(page):
    page[1].stage(6).set("day_pnl", -5)
    assert scrape(page[1])["hftpipe_day_pnl_nanocash", "ledger", None] == -5


@given(st.lists(st.integers(0, 2**36), max_size=50))
def test_histogram_buckets_count_exactly_what_is_at_or_below_their_bound(values):
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=1, stages=["gateway"])
    control = _control.Control(memory)
    for value in values:
        control.stage(0).record("gateway", value)
    found = dict(metrics.buckets(control.stage(0).histogram("gateway")))
    for bound in metrics.BOUNDS:
        assert found[repr(bound / 1e9)] == sum(v <= bound for v in values)
    assert found["+Inf"] == len(values)


def test_histograms_have_sum_and_count(page):
    _, control = page
    for value in (100, 300, 5000):
        control.stage(4).record("tick_to_order", value)
    found = scrape(control)
    assert found["hftpipe_tick_to_order_seconds_sum", "gateway", None] == 5.4e-6
    assert found["hftpipe_tick_to_order_seconds_count", "gateway", None] == 3
    assert found["hftpipe_tick_to_order_seconds_bucket", "gateway", "5.11e-07"] == 2


def test_names_end_in_base_units_and_nothing_is_shown_that_is_not_declared(page):
    """The tables of docs/operate/metrics.md are made of the same declarations."""
    _, control = page
    for stage in control.stages:
        for metric in schema.HISTOGRAMS:
            stage.record(metric.name, 1)
    declared = {m.prometheus for group in (schema.METRICS, schema.HISTOGRAMS, schema.PAGE_METRICS,
                                           schema.STRATEGY_METRICS) for m in group}
    shown = {re.sub("_(bucket|sum|count)$", "", name) if "_seconds_" in name else name
             for name, _, _ in scrape(control)}
    assert shown <= declared
    assert {m.prometheus for m in schema.METRICS + schema.HISTOGRAMS + schema.PAGE_METRICS} <= shown
    assert not [n for n in declared if re.search("_(ns|ppb|bps|ms|us|percent)(_|$)", n)]
    assert "hftpipe_jump_ratio" in declared and "hftpipe_strategy_accuracy_ratio" in declared


# ---------------------------------------------------------------- over HTTP

@contextmanager
def monitor(directory, address="127.0.0.1:0"):
    """A run whose only other process is the real monitor; yields (control, port)."""
    run_dir = RunDir(directory)
    run_dir.prepare()
    number, pid = _clock.utc_ns(), os.getpid()
    start = shm.process_start(pid)
    run = Run(number, pid, start, shm.boot_id(), "demo", segments=("control",))
    run_dir.write_run(run)
    segment = shm.create_control(number, stages=[s.name for s in STAGES], started=number,
                                 utc_offset=_clock.utc_ns() - _clock.now_ns())
    control = _control.Control(segment.memory)
    for stage in control.stages:
        if stage.name != "monitor":
            stage.enter(pid, start)
            stage.state = _control.RUNNING
            stage.heartbeat = _clock.now_ns() + 3600 * 10**9
            stage.set("connected", 1)
    control.resume(1)
    program = (f"import sys\nfrom hftpipe.health import monitor_main\n"
               f"from hftpipe.rundir import RunDir\n"
               f"sys.exit(monitor_main(RunDir({str(directory)!r}), {address!r}))")
    process = subprocess.Popen([sys.executable, "-c", program], env=ENV, stderr=subprocess.PIPE,
                               text=True)
    try:
        until(lambda: control.stage(8).state == _control.RUNNING or process.poll() is not None,
              "monitor runs")
        yield control, process, directory / "monitor.address"
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE)
        segment.unlink()


def get(file, path, method="GET"):
    host, _, port = file.read_text().strip().rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


def test_the_monitor_answers(tmp_path):
    with monitor(tmp_path / "run") as (control, _, file):
        status, body = get(file, "/health")
        assert (status, json.loads(body)["problems"]) == (200, [])
        assert get(file, "/ready")[0] == 200 and get(file, "/live")[0] == 200
        control.stage(3).count("denied", 3)
        status, body = get(file, "/metrics")
        assert status == 200 and 'hftpipe_denied_total{stage="risk"} 3.0' in body
        assert get(file, "/metrics", "HEAD") == (200, "")
        assert get(file, "/nothing")[0] == 404
        control.halt()
        status, body = get(file, "/ready")
        assert status == 503 and json.loads(body)["trading"] == "HALTED"
        assert get(file, "/live")[0] == 200
        control.stage(0).set("connected", 0)
        status, body = get(file, "/health")
        assert status == 503 and "feed is not connected" in json.loads(body)["problems"]
        before = control.stage(8).heartbeat
        until(lambda: control.stage(8).heartbeat > before, "the monitor beats")


def test_a_mute_client_does_not_hold_up_the_others(tmp_path):
    with monitor(tmp_path / "run") as (control, _, file):
        host, _, port = file.read_text().strip().rpartition(":")
        with socket.create_connection((host, int(port))) as mute_client:
            mute_client.send(b"GET /me")
            assert get(file, "/live")[0] == 200
            before = control.stage(8).heartbeat
            until(lambda: control.stage(8).heartbeat > before, "the monitor beats")


def test_the_monitor_ends_with_the_run(tmp_path):
    with monitor(tmp_path / "run") as (control, process, _):
        control.request_stop()
        for stage in control.stages:
            if stage.name not in ("monitor", "supervisor"):
                stage.state = _control.STOPPED
        assert process.wait(DEADLINE) == 0
        assert control.stage(8).state == _control.STOPPED


def test_no_address_serves_nothing_and_lives(tmp_path):
    with monitor(tmp_path / "run", "") as (control, process, file):
        assert process.poll() is None and not file.exists()
        assert control.stage(8).state == _control.RUNNING


def test_a_port_in_use_is_told(page, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BusyError, match=f"observe.prometheus: port {port} of 127.0.0.1 is in"):
            health.server(RunDir(tmp_path), *page, f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:1"):
        health.server(RunDir(tmp_path), *page, "192.0.2.1:1")


# ---------------------------------------------------------------- a halt over HTTP

def post(file, body=b'{"reason": "news"}', path="/halt", **headers):
    host, _, port = file.read_text().strip().rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE)
    connection.putrequest("POST", path, skip_host=True, skip_accept_encoding=True)
    token = (file.parent / "halt.token").read_text().strip()
    wanted = {"Host": f"{host}:{port}", "Authorization": f"Bearer {token}",
              "Content-Type": "application/json", "Content-Length": str(len(body)),
              **{k.replace("_", "-"): v for k, v in headers.items()}}
    for name, value in wanted.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def test_a_post_with_the_token_halts_and_is_written_down(tmp_path):
    with monitor(tmp_path / "run") as (control, _, file):
        for stage in control.stages:
            stage.ack_epoch = 9
        assert (file.parent / "halt.token").stat().st_mode & 0o777 == 0o600
        status, found = post(file, b'{"reason": "news", "cancel": true}')
        assert status == 200 and found["halted"] and found["latched"] and found["epoch"] == 2
        assert found["gates"] == {"risk": "acknowledged", "gateway": "acknowledged"}
        assert control.trading == "halted" and control.cancel_epoch == 2
        assert control.flatten_epoch == 0
        latch = RunDir(file.parent).latch()
        assert latch.halted and latch.halt["reason"] == "news" and latch.halt["way"] == "http"
        line = json.loads((file.parent / "audit.jsonl").read_text())
        assert (line["action"], line["way"], line["epoch"]) == ("halt", "http", 2)
        assert line["who"].endswith("by token") and line["cancel"] and "flatten" not in line
        # what was seen names the halt: the same request a second time is refused
        assert post(file, b'{"reason": "again", "epoch": 1}')[0] == 409
        assert post(file, b'{"reason": "again", "epoch": 2}')[1]["epoch"] == 3


@pytest.mark.parametrize("status, change", [
    (401, {"Authorization": None}),
    (401, {"Authorization": "Bearer " + "0" * 64}),
    (401, {"Authorization": "Basic x"}),
    (401, {"Authorization": "Bearer \xe9"}),
    (403, {"Origin": "http://127.0.0.1:1"}),
    (403, {"Host": "evil.example:9464"}),
    (415, {"Content_Type": "text/plain"}),
    (415, {"Content_Type": "application/x-www-form-urlencoded"}),
    (411, {"Content_Length": None}),
    (413, {"Content_Length": "5000"}),
    (400, {"body": b"{"}), (400, {"body": b"[]"}), (400, {"body": b"{}"}),
    (400, {"body": b'{"reason": " "}'}), (400, {"body": b'{"reason": 1}'}),
    (400, {"body": b'{"reason": "x", "cancle": true}'}),
    (400, {"body": b'{"reason": "x", "epoch": true}'}),
    (400, {"body": b"[" * 4000}),
    (404, {"path": "/halted"}),
])
def test_any_other_post_changes_nothing(tmp_path, one_monitor, status, change):
    control, file = one_monitor
    errors = control.stage(8).counter("errors")
    found = post(file, **change)
    assert found[0] == status and found[1]["error"]
    assert control.trading == "armed" and control.halt_epoch == 1
    assert not (file.parent / "halt.json").exists() and not (file.parent / "audit.jsonl").exists()
    assert control.stage(8).counter("errors") == errors + (status != 404)
    assert get(file, "/halt")[0] == 404


@pytest.fixture(scope="module")
def one_monitor(tmp_path_factory):
    with monitor(tmp_path_factory.mktemp("one") / "run") as (control, _, file):
        yield control, file


def test_a_token_that_others_can_read_is_refused(page, tmp_path):
    directory = RunDir(tmp_path)
    token = directory.token()
    assert len(token) == 64 and directory.token() == token
    (tmp_path / "halt.token").chmod(0o644)
    with pytest.raises(AccessError, match=r"mode 0600, was uid .* mode 0644"):
        health.server(directory, *page, "127.0.0.1:0")
    (tmp_path / "halt.token").chmod(0o600)
    (tmp_path / "halt.token").write_text("short\n")
    with pytest.raises(AccessError, match="must hold at least 32 characters, held 5"):
        directory.token()
