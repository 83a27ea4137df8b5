"""Whatever halts, hangs or dies, the guardian leaves the venue without an open order."""
import http.client
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from hftpipe import _clock, _control, guardian, shm
from hftpipe.errors import BusyError
from hftpipe.rundir import Run, RunDir
from hftpipe.store import halt_log, migrate
from hftpipe.store.postgres import Postgres
from hftpipe.topology import INDEX, STAGES
from hftpipe.venue.server import spawn
from hftpipe.venue.state import read_log
from tests.models.broker import broker
from tests.models.driver import DEADLINE, ENV, until
from tests.models.receiver import receiver

OPTIONS = {"on_halt": "cancel", "on_stop": "cancel", "hang": 10**9, "settle": 200_000_000,
           "unreachable": 60 * 10**9, "flatten": 30 * 10**9,
           "daily_loss": 9000, "position": 10, "error_rate": 1000, "latency": 10**8,
           "crossed": 5000, "stale": 5000, "jump": 1000, "window": 60 * 10**9, "confirm": 2,
           "max_daily_loss": 5000 * 10**9, "max_order_notional": 10**13, "alerts": [],
           "key": "env:GUARDIAN_KEY", "secret": "env:GUARDIAN_SECRET"}
RAN = ("feed", "book", "signal", "risk", "gateway", "updates", "ledger")


class Scene:
    """A run of which only the guardian is real: its page, its directory, and who supervises it."""

    def __init__(self, path, venue, conninfo="", armed=True, **options):
        self.directory = RunDir(path)
        self.directory.prepare()
        self.supervisor = subprocess.Popen(["sleep", "600"])
        pid = self.supervisor.pid
        start = shm.process_start(pid)
        self.number = _clock.utc_ns()
        self.run = Run(self.number, pid, start, shm.boot_id(), "demo", processes=(
            {"name": "hot", "stages": RAN, "affinity": (), "wait": "sleep"},
            {"name": "guardian", "stages": ("guardian",), "affinity": (), "wait": "sleep"}))
        self.directory.write_run(self.run)
        self.segment = shm.Segment.create(shm.segment_name(self.number, "control"), _control.SIZE)
        _control.format(self.segment.memory, run=self.number, boot=shm.boot_id(), pid=pid,
                        start=start, stages=[s.name for s in STAGES])
        self.control = _control.Control(self.segment.memory)
        for name in (*RAN, "supervisor"):
            block = self.control.stage(INDEX[name])
            block.enter(os.getpid(), shm.process_start(os.getpid()))
            block.state = _control.RUNNING
        self.gateway = self.control.stage(INDEX["gateway"])
        self.block = self.control.stage(INDEX["guardian"])
        self.beat(3600)
        self.directory.write("private.json", json.dumps(
            {"venue": venue, "conninfo": conninfo or "host=/nonexistent connect_timeout=1",
             "guardian": {**OPTIONS, **options}}))
        self.armed = armed
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hftpipe.cli.stage", "--run-dir", self.directory.name,
             "--process", "guardian"],
            env={**os.environ, **ENV, "GUARDIAN_KEY": "k", "GUARDIAN_SECRET": "canary-5c1f"},
            stderr=subprocess.PIPE, text=True)
        return self

    def up(self):
        until(lambda: self.block.state == _control.RUNNING or self.process.poll() is not None,
              "the guardian runs")
        assert self.process.poll() is None, self.process.stderr.read()
        if self.armed and self.control.armed_epoch == 0:
            assert self.control.resume(1)
        return self

    def beat(self, ahead=0):
        for name in (*RAN, "supervisor"):
            self.control.stage(INDEX[name]).heartbeat = _clock.now_ns() + ahead * 10**9

    def acknowledge(self):
        self.gateway.ack_epoch = self.control.halt_epoch

    def settled(self, epoch=None):
        epoch = epoch or self.control.halt_epoch
        until(lambda: self.block.counter("settled_epoch") >= epoch
              and self.block.ack_epoch >= epoch, f"halt {epoch} is settled")

    def audit(self, *actions):
        path = self.directory.path / "audit.jsonl"
        lines = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
        return [x for x in lines if not actions or x["action"] in actions]

    def log(self, event=None):
        lines = [json.loads(x) for x in
                 (self.directory.logs / "guardian.log").read_text().splitlines()]
        return [x for x in lines if event in (None, x["event"])]

    def end(self):
        """Its exit code; the page's block says the same."""
        code = self.process.wait(DEADLINE)
        return code, self.process.stderr.read()

    def close(self):
        for process in (self.process, self.supervisor):
            if process.poll() is None:
                process.kill()
            process.wait()
        self.process.stderr.close()
        self.segment.unlink()


@pytest.fixture
def scene(tmp_path):
    made = []

    def go(venue, **options):
        made.append(Scene(tmp_path / "run", venue, **options))
        return made[-1]

    yield go
    for one in made:
        one.close()


@pytest.fixture
def fake():
    with broker() as made:
        yield made


@contextmanager
def exchange(tmp_path, *more):
    """The local venue as a process: its address and the lines of its log."""
    with spawn("--state", str(tmp_path / "venue"), "--symbols", "ACME,BOLT", "--rate", "200",
               "--rate-limit", "0", *more) as (process, address):
        yield process, address, lambda: read_log(tmp_path / "venue")


def order(address, side="buy", price="1.00", qty="1", **more):
    """Place an order that rests, for it is far from the market."""
    where = urlsplit(address["rest"])
    body = {"symbol": "ACME", "side": side, "type": "limit", "time_in_force": "gtc", "qty": qty,
            "limit_price": price, **more}
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=DEADLINE)
    connection.request("POST", "/v2/orders", json.dumps(body), {
        "APCA-API-KEY-ID": address["key"], "APCA-API-SECRET-KEY": address["secret"]})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == 200, text
    return json.loads(text)["id"]


def venue_of(address):
    return {k: address[k] for k in ("rest", "key", "secret")}


def ends(lines):
    """Order id -> its last event in the venue's log."""
    return {line["id"]: line["event"] for line in lines if line["kind"] == "event"}


# ---------------------------------------------------------------- a halt, at the real exchange

@pytest.mark.venue
def test_a_halt_cancels_everything_and_is_written_down(scene, tmp_path):
    with exchange(tmp_path) as (_, address, lines):
        run = scene(venue_of(address)).up()
        ids = [order(address, price=f"{p}.00") for p in range(1, 6)]
        run.directory.halt(run.control, "spread", way="cli", by="ann")
        until(lambda: run.block.counter("clear_epoch") == 2, "the venue is clear")
        assert {i: ends(lines())[i] for i in ids} == dict.fromkeys(ids, "canceled")
        assert run.block.counter("settled_epoch") < 2, "the gateway has not acknowledged"
        run.acknowledge()
        run.settled(2)
        (line,) = run.audit("swept")
        assert line["epoch"] == 2 and line["cancelled"] == 5 and line["who"] == "guardian"
        assert run.log("clear")[0]["cancelled"] == 5 and run.log("settled")[0]["epoch"] == 2
        assert (run.block.counter("venue_orders"), run.block.counter("swept")) == (0, 5)
        # resumed, it leaves new orders alone
        assert run.control.resume(2)
        kept = order(address)
        until(lambda: run.block.counter("venue_orders") == 1, "it looks now and then")
        assert ends(lines())[kept] == "new"
        run.directory.halt(run.control, "again", way="cli")
        run.acknowledge()
        run.settled(3)
        assert ends(lines())[kept] == "canceled"
        assert not any(kind["kind"] == "order" for kind in lines()[-1:])


@pytest.mark.venue
def test_flatten_closes_positions_with_orders_that_are_written_down(scene, tmp_path):
    with exchange(tmp_path) as (_, address, lines):
        run = scene(venue_of(address)).up()
        order(address, price="100000.00", qty="3")          # takes what is offered
        order(address, price="100000.00", qty="2", symbol="BOLT")
        until(lambda: sum(x.get("event") == "fill" for x in lines()) == 2, "both are filled")
        order(address)
        run.directory.halt(run.control, "out", way="cli", flatten=True)
        run.acknowledge()
        until(lambda: run.block.counter("flat_epoch") == 2, "flat")
        assert run.block.counter("venue_positions") == 0
        (before,) = run.audit("flatten")
        assert sorted((p["symbol"], p["qty"]) for p in before["positions"]) == [
            ("ACME", "3"), ("BOLT", "2")]
        closed = run.audit("closed")
        assert {c["order"] for c in closed} <= {x["id"] for x in lines() if x["kind"] == "order"}
        assert len(closed) == 2 and run.audit("flattened")[0]["reason"] == "no position is open"
        positions = {}
        for x in lines():
            if x.get("event") in ("fill", "partial_fill"):
                positions[x["id"]] = x["position_qty"]
        assert sorted(positions.values())[:2] == ["0", "0"]


@pytest.mark.venue
def test_when_the_local_venue_has_ended_nothing_can_be_open(scene, tmp_path):
    with exchange(tmp_path) as (process, address, _):
        venue = {**venue_of(address), "process": [process.pid, shm.process_start(process.pid)]}
        run = scene(venue).up()
        process.kill()
        process.wait()
        run.supervisor.kill()
        run.supervisor.wait()
        assert run.end() == (0, "")
        assert run.audit("swept")[0]["reason"] == "the local venue has ended"
        assert run.directory.latch().halted


# ---------------------------------------------------------------- what makes it act

def test_hold_leaves_orders_unless_somebody_asks(scene, fake):
    run = scene({"rest": fake.url}, on_halt="hold").up()
    fake.add(2)
    run.directory.halt(run.control, "wait and see", way="cli")
    run.acknowledge()
    until(lambda: run.block.ack_epoch == 2, "seen")
    assert fake.did("DELETE /v2/orders") == 0 and len(fake.orders) == 2
    run.directory.halt(run.control, "enough", way="cli", cancel=True)
    run.acknowledge()
    run.settled(3)
    assert not fake.orders
    assert run.control.resume(3)
    fake.add(1)
    run.directory.halt(run.control, "hold again", way="cli")
    until(lambda: run.block.ack_epoch == 4, "seen")
    assert len(fake.orders) == 1


def test_an_order_that_was_under_way_is_cancelled_too(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.add()
    run.directory.halt(run.control, "x", way="cli")
    until(lambda: run.block.counter("clear_epoch") == 2, "clear")
    fake.add()                                      # it had left before the gate closed
    until(lambda: not fake.orders, "the late one is cancelled too")
    assert run.log("orders arrived after the venue was clear")
    run.acknowledge()
    run.settled(2)
    assert run.audit("swept")[0]["cancelled"] == 2


def test_a_gateway_that_is_dead_need_not_acknowledge(scene, fake):
    run = scene({"rest": fake.url}).up()
    run.gateway.state = _control.FAILED
    fake.add()
    run.control.halt()                              # as a stage does: the page alone
    run.settled(2)
    assert not fake.orders


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_supervisor_that_is_gone_halts_cancels_and_ends_it(scene, fake, number):
    run = scene({"rest": fake.url}, on_halt="hold", on_stop="leave").up()
    fake.add(3)
    run.gateway.state = _control.FAILED
    run.supervisor.send_signal(number)
    run.supervisor.wait()
    assert run.end() == (0, "")
    assert not fake.orders and run.control.trading == "halted"
    latch = run.directory.latch()
    assert latch.halted and latch.halt["way"] == "guardian"
    assert latch.halt["reason"] == f"supervisor {run.supervisor.pid} is gone"
    assert run.block.state == _control.STOPPED
    assert [a["action"] for a in run.audit()] == ["halt", "swept"]


def test_stages_that_hang_are_halted_and_their_orders_cancelled(scene, fake):
    run = scene({"rest": fake.url}, on_halt="hold").up()
    fake.add()
    run.gateway.heartbeat = _clock.now_ns()
    until(lambda: run.control.trading == "halted", "halted")
    until(lambda: run.directory.latch().halted, "latched")      # the latch comes after the gate
    told = run.directory.latch().halt["reason"]
    assert told.startswith("gateway has not beaten for ") and 1.0 <= float(told.split()[5]) < 2.0
    until(lambda: not fake.orders, "cancelled")
    assert run.block.counter("settled_epoch") < 2, "it may still wake up and send"
    fake.add()                                      # which it does
    until(lambda: not fake.orders, "cancelled again")
    run.acknowledge()
    run.settled(2)


def test_a_run_that_is_halted_already_and_then_hangs_is_cancelled_all_the_same(scene, fake):
    run = scene({"rest": fake.url}, on_halt="hold").up()
    fake.add()
    run.directory.halt(run.control, "x", way="cli")
    run.acknowledge()
    until(lambda: run.block.ack_epoch == 2, "seen and held")
    run.control.stage(INDEX["risk"]).heartbeat = _clock.now_ns()
    until(lambda: not fake.orders, "cancelled")
    run.settled(2)
    assert run.control.halt_epoch == 2 and run.audit("cancel")[0]["epoch"] == 2


def test_the_file_halts_without_the_supervisor(scene, fake):
    run = scene({"rest": fake.url}).up()
    (run.directory.path / "HALT").write_text("from the file")
    until(lambda: run.control.trading == "halted", "halted")
    until(lambda: run.directory.latch().halted, "latched")
    assert run.directory.latch().halt["reason"] == "from the file"
    assert run.control.halt_epoch == 2


# ---------------------------------------------------------------- the end of a run

def test_a_stop_cancels_what_rests_until_the_gateway_has_ended(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.add(2)
    run.control.request_stop()
    until(lambda: not fake.orders, "cancelled while it drains")
    fake.add()                                      # a last one
    until(lambda: not fake.orders, "cancelled too")
    assert run.process.poll() is None
    run.gateway.state = _control.STOPPED
    assert run.end() == (0, "")
    assert run.audit("swept")[0]["cancelled"] == 3 and run.control.trading == "armed"


def test_leave_leaves(scene, fake):
    run = scene({"rest": fake.url}, on_stop="leave").up()
    fake.add(2)
    run.control.request_stop()
    run.gateway.state = _control.STOPPED
    assert run.end() == (0, "")
    assert len(fake.orders) == 2 and fake.did("DELETE /v2/orders") == 0


def test_a_run_that_was_never_armed_cancels_nothing(scene, fake):
    fake.add(2)
    run = scene({"rest": fake.url}, armed=False).up()
    run.control.request_stop()
    run.gateway.state = _control.STOPPED
    assert run.end() == (0, "")
    assert fake.did("DELETE /v2/orders") == 0, "they are somebody else's"


def test_it_outlives_the_run_until_the_venue_lets_go(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.add()
    fake.stubborn = 10**9
    run.control.request_stop()
    run.gateway.state = _control.STOPPED
    until(lambda: fake.did("DELETE /v2/orders") >= 3, "it goes on asking")
    run.supervisor.kill()
    run.supervisor.wait()
    asked = fake.did("DELETE /v2/orders")
    until(lambda: fake.did("DELETE /v2/orders") > asked, "alone too")
    with pytest.raises(BusyError, match=f"the guardian of the run before, process "
                                        f"{run.process.pid}, still cancels"):
        guardian.take_lock(run.directory, 0.1)
    fake.stubborn = 0
    assert run.end() == (0, "")
    os.close(guardian.take_lock(run.directory, 0.1))
    assert not run.directory.latch().halted, "it was a stop in good order"


# ---------------------------------------------------------------- a venue that does not do as asked

def test_errors_are_tried_again_and_not_shouted_each_time(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.add(2)
    fake.status = 500
    run.directory.halt(run.control, "x", way="cli")
    run.acknowledge()
    until(lambda: run.block.counter("errors") >= 5, "it goes on")
    assert run.block.counter("connected") == 0
    fake.status, fake.stubborn = 0, 2
    run.settled(2)
    assert not fake.orders and run.block.counter("connected") == 1
    failed = run.log("the venue does not cancel")
    assert failed and len(failed) <= 1 + run.block.counter("errors").bit_length()
    assert "HTTP 500" in failed[0]["error"]


def test_a_venue_that_does_not_answer_does_not_stop_the_guardian_from_beating(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.add()
    fake.hang = 5.0                                 # longer than it has
    run.directory.halt(run.control, "x", way="cli")
    run.acknowledge()
    until(lambda: run.block.counter("errors") >= 1, "no answer in time")
    before = run.block.heartbeat
    until(lambda: run.block.heartbeat > before, "it beats")
    fake.hang = 0.0
    run.settled(2)
    assert not fake.orders


def test_a_venue_out_of_reach_halts(scene, fake):
    run = scene({"rest": fake.url}, unreachable=2 * 10**9).up()
    asked = len(fake.asked)
    until(lambda: len(fake.asked) >= asked + 6, "it asks now and then")
    assert run.control.trading == "armed"
    fake.status = 503
    until(lambda: run.directory.latch().halted, "halted")
    assert run.control.trading == "halted"
    assert "the venue has not answered the guardian for" in run.directory.latch().halt["reason"]


def test_positions_that_cannot_be_closed_are_told_and_leave_no_order(scene, fake):
    run = scene({"rest": fake.url}, flatten=10**9).up()
    fake.positions, fake.closes = {"ACME": "100"}, False
    run.directory.halt(run.control, "out", way="cli", flatten=True)
    run.acknowledge()
    until(lambda: run.block.counter("flat_epoch") == 2, "given up")
    assert run.audit("flattened")[0]["reason"] == "left open: ACME 100"
    assert run.block.counter("venue_positions") == 1
    until(lambda: not fake.orders, "no order may stay while it is halted")


def test_what_ended_without_closing_is_asked_for_again(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.positions, fake.closes = {"ACME": "100"}, False
    run.directory.halt(run.control, "out", way="cli", flatten=True)
    run.acknowledge()
    until(lambda: run.audit("closed"), "asked for")
    fake.positions = {"ACME": "40"}
    fake.closes = True
    fake.orders.clear()                             # it ended without filling all of it
    until(lambda: run.block.counter("flat_epoch") == 2, "asked for again")
    assert fake.did("DELETE /v2/positions") == 2 and not fake.positions


# ---------------------------------------------------------------- its own death, and its start

def test_another_guardian_goes_on_where_the_first_was_killed(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.add()
    fake.stubborn = 10**9
    run.directory.halt(run.control, "x", way="cli")
    run.acknowledge()
    until(lambda: fake.did("DELETE /v2/orders") >= 2, "it tries")
    run.process.kill()
    run.process.wait()
    run.process.stderr.close()
    fake.stubborn = 0
    run.start()
    run.settled(2)
    assert not fake.orders
    # what is settled is not swept once more by the next one
    asked = fake.did("DELETE /v2/orders")
    run.process.kill()
    run.process.wait()
    run.process.stderr.close()
    pid = run.block.pid
    run.start()
    until(lambda: run.block.pid != pid and run.block.counter("connected")
          and run.block.state == _control.RUNNING, "the third runs")
    assert fake.did("DELETE /v2/orders") == asked


def test_without_credentials_nothing_starts(scene, fake):
    run = scene({"rest": fake.url}, key="env:NOT_THERE_AT_ALL")
    code, err = run.end()
    assert code == 4
    assert err == ("error: guardian: no credential: env:NOT_THERE_AT_ALL must hold one, "
                   "found nothing\n")


def test_a_venue_that_refuses_from_the_start_is_told(scene, fake, monkeypatch):
    fake.status = 401
    monkeypatch.setattr(guardian, "TIMEOUT", 0.1)
    run = scene({"rest": fake.url})
    code, err = run.end()
    assert code == 1 and "GET /v2/orders was refused: HTTP 401, not now" in err
    assert err.count("\n") == 1


def test_signals_that_are_meant_for_the_supervisor_do_not_end_it(scene, fake):
    run = scene({"rest": fake.url}).up()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        run.process.send_signal(number)
    fake.add()
    run.directory.halt(run.control, "x", way="cli")
    run.acknowledge()
    run.settled(2)


def test_the_secret_is_nowhere(scene, fake):
    run = scene({"rest": fake.url}).up()
    fake.status = 403
    run.directory.halt(run.control, "x", way="cli")
    until(lambda: run.block.counter("errors") >= 2, "refused")
    for path in run.directory.path.rglob("*"):
        if path.is_file():
            assert b"canary-5c1f" not in path.read_bytes(), path
    assert "canary-5c1f" not in Path(f"/proc/{run.process.pid}/cmdline").read_text()


# ---------------------------------------------------------------- the copy in the database

@pytest.mark.db
def test_each_line_of_the_audit_is_stored_once(scene, fake, tmp_path):
    with Postgres(tmp_path / "db") as conninfo:
        migrate.migrate(conninfo)
        run = scene({"rest": fake.url}, conninfo=conninfo).up()
        run.directory.halt(run.control, 'the "reason"', way="cli", by="ann@desk", cancel=True)
        run.acknowledge()
        run.settled(2)
        with psycopg.connect(conninfo, autocommit=True) as c:
            def rows():
                return c.execute("SELECT action, way, who, reason, epoch, run FROM "
                                 "hftpipe.halt_log ORDER BY at").fetchall()

            until(lambda: len(rows()) == 2, "both lines are there")
            assert rows()[0] == ("halt", "cli", "ann@desk", 'the "reason"', 2, run.number)
            assert rows()[1][:3] == ("swept", "guardian", "guardian")
            data = (run.directory.path / "audit.jsonl").read_bytes()
            assert halt_log.copy(conninfo, data) == 2, "a second copier"
            assert halt_log.copy(conninfo, data + b'{"id": "torn') == 2
            assert len(rows()) == 2
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
                c.execute("DELETE FROM hftpipe.halt_log")
            run.control.request_stop()
            run.gateway.state = _control.STOPPED
            assert run.end() == (0, "")
            assert c.execute("SELECT line->>'cancel' FROM hftpipe.halt_log WHERE action = 'halt'"
                             ).fetchone() == ("true",)


# ---------------------------------------------------------------- triggers and alerts

def test_a_trigger_halts_with_its_reason_and_the_webhook_is_told(scene, fake):
    with receiver(500) as (url, got):
        os.environ["GUARDIAN_HOOK"] = url
        try:
            run = scene({"rest": fake.url}, alerts=["env:GUARDIAN_HOOK"]).up()
        finally:
            del os.environ["GUARDIAN_HOOK"]
        fake.add(2)
        run.control.stage(INDEX["ledger"]).set("day_pnl", -4600 * 10**9)
        until(lambda: run.directory.latch().halted, "halted")
        latch = run.directory.latch()
        assert latch.halt["way"] == "trigger"
        assert latch.halt["reason"] == "daily loss 4,600.00 is above 90 % of the limit 5,000.00"
        run.acknowledge()
        run.settled(2)
        assert not fake.orders
        until(lambda: run.block.counter("alerts_sent") == 2, "both are delivered")
        texts = sorted(body["text"].partition("): ")[2] for _, _, body in got)
        assert texts[0] == texts[1] or len(got) == 3, "the first was tried again"
        assert set(texts) == {"halt 2: 2 orders cancelled, none open",
                              f"trading HALTED: {latch.halt['reason']}"}
        for path in run.directory.path.rglob("*"):
            if path.is_file():
                assert b"s3cret" not in path.read_bytes(), path


def test_a_webhook_without_an_address_stops_the_start(scene, fake):
    run = scene({"rest": fake.url}, alerts=["env:NO_HOOK_HERE"])
    code, err = run.end()
    assert code == 4 and "env:NO_HOOK_HERE must hold one" in err
