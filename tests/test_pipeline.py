"""The whole pipeline as processes: every event stored, every order explained, nothing left over."""
import json
import os
import re
import signal
from contextlib import contextmanager
from decimal import Decimal as D
from urllib.parse import urlsplit

import psycopg
import pytest

from hftpipe import _control, config, limits, recording, schema, shm, worker
from hftpipe.backtest.run import verify_intents
from hftpipe.errors import MismatchError
from hftpipe.limits import PROFILES
from hftpipe.store.postgres import Postgres
from hftpipe.store.verify import verify
from hftpipe.venue import server
from tests.models.live import (
    STREAMS,
    Live,
    check_rows,
    check_venue,
    command,
    database,
    environment,
    living,
    marked,
    runs,
    until,
)
from tests.tls import Authority, Front

pytestmark = [pytest.mark.venue, pytest.mark.db]
HOPS = ("feed", "book", "signal", "model", "risk", "gateway", "tick_to_order", "order_to_ack",
        "order_to_fill")


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


def orders(live):
    return live.counter("gateway", "orders_sent")


# ---------------------------------------------------------------- one demo, looked at closely

class Demo:
    """A demo that was ended after some fills, and what was seen of it while it ran."""

    def __init__(self, path):
        self.path = path
        self.recording = path / "demo.rec"
        self.live = Live(path / "run", "--for", "10min", "--record", self.recording, name="demo")
        try:
            self.watch(self.live.up().trades(10))
        except BaseException:
            self.live.close()
            raise

    def watch(self, live):
        self.private = json.loads((live.path / worker.PRIVATE).read_text())
        self.secrets = [self.private["venue"][name].encode() for name in ("key", "secret")]
        self.processes = {}
        self.exposed = []
        for pid, line in living(live.env, live.path).items():
            self.processes[pid] = line
            for name in ("cmdline", "environ"):
                self.look(f"/proc/{pid}/{name}")
        for name in os.listdir("/dev/shm"):
            if f"{live.run:x}" in name:
                self.look(f"/dev/shm/{name}")
        self.mode = (live.path / worker.PRIVATE).stat().st_mode & 0o777
        live.popen.terminate()
        self.code = live.end()
        self.out = live.document
        for folder, _, names in os.walk(self.path):
            for name in names:
                self.look(os.path.join(folder, name))

    def look(self, path):
        """Note *path* when it holds a secret."""
        try:
            with open(path, "rb") as file:
                data = file.read()
        except (FileNotFoundError, ProcessLookupError, PermissionError, OSError):
            return                      # a process that has ended, a socket
        if any(secret in data for secret in self.secrets):
            self.exposed.append(path)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    found = Demo(tmp_path_factory.mktemp("demo"))
    yield found
    found.live.close()


@pytest.fixture(scope="module")
def db(demo):
    """A connection to the demo's database."""
    with database(demo.live.path) as c:
        yield c


def test_demo_prints_one_document_with_what_was_promised(demo):
    assert demo.code == 0 and demo.live.err == ""
    out = demo.out
    assert out["exit"] == 0 and out["profile"] == "demo"
    assert out["events"] > 0 and out["orders"] > 0 and out["fills"] > 0
    assert out["rows_stored"] == out["events_recorded"] > out["events"]
    assert out["verified"] is True and out["differences"] == []
    assert set(out["streams"]) == set(STREAMS)
    assert out["rows_stored"] == sum(s["rows"] for s in out["streams"].values())
    for name in HOPS:
        hop = out["latency_ns"][name]
        assert hop["count"] > 0
        assert 0 < hop["p50"] <= hop["p99"] <= hop["p999"]
        # A percentile is the upper edge of a bucket: the maximum is exact.
        assert hop["max"] > 0
    assert out["pnl"] == pytest.approx(out["realised"] + out["unrealised"])


def test_demo_leaves_no_process_and_no_shared_memory(demo):
    assert demo.live.run not in shm.runs()
    assert not [n for n in os.listdir("/dev/shm") if f"{demo.live.run:x}" in n]
    names = " ".join(demo.processes.values())
    planned = {p["name"] for p in demo.live.record.processes} - {"supervisor"}
    assert {"hot", "updates", "store", "monitor"} <= planned
    for part in (*(f"--process {name}" for name in planned), " hftpipe venue ", "postgres"):
        assert part in names, f"the search for processes found no {part}"
    assert not (demo.live.path / worker.PRIVATE).exists()


def test_the_summary_is_what_the_stages_counted_and_the_database_holds(demo, db):
    recorded = demo.live.recorded()
    rows = check_rows(db, demo.live.run, recorded)
    assert rows == recorded == {n: s["rows"] for n, s in demo.out["streams"].items()}
    assert demo.out["orders"] == demo.live.counter("gateway", "orders_sent")
    assert demo.out["fills"] == demo.live.counter("gateway", "fills") == db.execute(
        "SELECT count(*) FROM hftpipe.trades WHERE run = %s", (demo.live.run,)).fetchone()[0]
    report = verify(db.info.dsn + " password=" + db.info.password, demo.live.run, {
        getattr(schema.STREAM, n.upper()): (
            recorded[n], demo.live.counter(n, "events_checksum")) for n in STREAMS})
    assert report.ok, str(report)


def test_the_recording_holds_the_same_events_as_the_database(demo):
    found = recording.Recording(demo.recording)
    count = dict.fromkeys(STREAMS, 0)
    for stream, slots in found.blocks():
        count[schema.STREAM.label(stream)] += len(slots)
    assert count == demo.live.recorded()
    assert found.run == demo.live.run


def test_every_order_names_its_market_event_and_its_hops_are_complete_and_in_order(demo, db):
    rows = db.execute(
        "SELECT l.ts_recv, l.ts_feed, l.ts_book, l.ts_signal, l.ts_risk, l.ts_sent, l.ts_ack, "
        "l.ts_fill, i.cause, m.ts_recv, m.instrument, i.instrument "
        "FROM hftpipe.order_latency l "
        "JOIN hftpipe.intent i ON i.run = l.run AND i.event = l.order_id "
        "LEFT JOIN hftpipe.market_event m ON m.run = i.run "
        "AND m.stream = hftpipe.event_stream(i.cause) AND m.seq = hftpipe.event_seq(i.cause) "
        "WHERE l.run = %s AND l.ts_sent IS NOT NULL", (demo.live.run,)).fetchall()
    assert len(rows) == demo.out["orders"]
    fills = 0
    for recv, feed, book, signal_, risk, sent, ack, fill, cause, market, instrument, own in rows:
        assert schema.split_event(cause)[0] == schema.STREAM.FEED
        assert market == recv and instrument == own
        hops = [recv, feed, book, signal_, risk, sent, ack]
        assert None not in hops, "a hop is missing"
        assert hops == sorted(hops), f"a hop goes back in time: {hops}"
        if fill is not None:
            assert fill >= sent
            fills += 1
    assert 0 < fills <= demo.out["fills"]


def test_best_execution_is_what_the_market_and_the_venue_say(demo, db):
    """The quotes from the market data alone, the prices from the venue's own log."""
    found = recording.Recording(demo.recording)
    _, markets = found.collect(schema.MARKET, schema.STREAM.FEED)
    index = {row["symbol"].decode(): i for i, row in enumerate(found.instruments)}
    filled, names = {}, {}
    for line in demo.live.venue_log():
        if line.get("event") in ("fill", "partial_fill"):
            value, qty = filled.get(line["id"], (0, 0))
            filled[line["id"]] = (value + D(line["qty"]) * D(line["price"]), qty + D(line["qty"]))
        elif line["kind"] == "order":
            names[line["id"]] = line["client_order_id"]
    prices = {names[order]: value / qty for order, (value, qty) in filled.items()}
    rows = db.execute(
        "SELECT b.client_order_id, b.symbol, b.bid, b.bid_quantity, b.ask, b.ask_quantity, "
        "b.realised_price, b.slippage_bps, b.expected_price, b.side, b.quote_age_ns, i.cause "
        "FROM hftpipe.best_execution b JOIN hftpipe.intent i ON i.run = b.run "
        "AND i.event = b.order_id WHERE b.run = %s", (demo.live.run,)).fetchall()
    assert len(rows) == demo.out["orders"]
    for name, symbol, bid, bids, ask, asks, price, bps, expected, side, age, cause in rows:
        before = markets[:schema.split_event(cause)[1]]
        before = before[before["instrument"] == index[symbol]]
        quotes = before[before["kind"] == schema.MARKET_KIND.QUOTE]
        for mine, best, many in ((1, bid, bids), (-1, ask, asks)):
            last = quotes[quotes["side"] == mine][-1]
            assert (int(last["price"]), int(last["qty"])) == (best * 10**9, many * 10**9)
        assert age > 0
        if name in prices:
            assert abs(price - prices[name]) < D("1e-8")
            sign = 1 if side == "buy" else -1
            assert abs(bps - sign * (price - expected) / expected * 10_000) < D("0.001")
    assert any(name in prices for name, *_ in rows)


def test_latency_of_the_page_agrees_with_the_rows(demo, db):
    """The histograms and the database are two independent ways to the same figures."""
    for name, column in (("tick_to_order", "tick_to_order_ns"), ("order_to_ack", "order_to_ack_ns"),
                         ("risk", "risk_ns")):
        (values,) = db.execute(
            f"SELECT array_agg({column} ORDER BY {column}) FROM hftpipe.order_latency "
            f"WHERE run = %s AND {column} IS NOT NULL", (demo.live.run,)).fetchone()
        page = demo.out["latency_ns"][name]
        assert page["count"] == len(values), name
        # The clock is read once for the row and once for the histogram.
        slack = 0.25 * values[-1] + 200_000
        assert abs(page["max"] - values[-1]) <= slack, name


def test_venue_and_database_tell_the_same_story(demo, db):
    lines = demo.live.venue_log()
    assert check_venue(db, demo.live.run, lines) == demo.out["orders"]
    venue = {}
    for line in lines:
        if line["kind"] == "event" and line["event"] in ("fill", "partial_fill"):
            venue[line["execution_id"]] = (line["qty"], line["price"])
    ours = {str(e): (q, p) for e, q, p in db.execute(
        "SELECT execution_id, quantity, price FROM hftpipe.trades WHERE run = %s",
        (demo.live.run,))}
    assert set(ours) == set(venue) and len(ours) == demo.out["fills"]
    for execution, (qty, price) in ours.items():
        assert (float(qty), float(price)) == tuple(map(float, venue[execution]))
    held = {}
    for line in lines:
        if line["kind"] == "event" and line.get("position_qty") is not None \
                and line["event"] in ("fill", "partial_fill"):
            held[line["symbol"] if "symbol" in line else line["id"]] = line["position_qty"]
    for symbol, qty in db.execute(
            "SELECT symbol, quantity FROM hftpipe.positions WHERE run = %s", (demo.live.run,)):
        if symbol in held:
            assert float(held[symbol]) == float(qty)


def test_credentials_are_nowhere_but_in_the_private_file(demo):
    assert demo.mode == 0o600
    assert len(demo.secrets[1]) >= 40
    assert demo.exposed == []


def test_a_live_runs_recording_gives_its_intents_again_and_another_model_does_not(demo, tmp_path):
    """The file is real: exchange two features' weights and other orders come out."""
    made = config.loads(recording.Recording(demo.recording).config["toml"], "recording", env={})
    same = verify_intents(demo.recording, lambda table: worker.strategies(made, table))
    intents = demo.live.counter("signal", "intents")
    assert same.intents == intents > 0

    def with_model(path):
        import dataclasses
        strategy = tuple(
            dataclasses.replace(s, params={k: v for k, v in (s.params | {
                "model": str(path)}).items() if k != "sha256"})
            if s.kind == "onnx" else s for s in made.strategy)
        other = dataclasses.replace(made, strategy=strategy)
        return verify_intents(demo.recording, lambda table: worker.strategies(other, table))

    assert with_model(exchanged(tmp_path / "same.onnx", 0, 0)).intents == intents
    names = [f.name for f in schema.FEATURES.fields]
    with pytest.raises(MismatchError, match="intent"):
        with_model(exchanged(tmp_path / "other.onnx", names.index("imbalance_top"),
                             names.index("trade_flow")))


def exchanged(path, i, j):
    """The demo model with the weights of features *i* and *j* exchanged, its card in order."""
    import numpy
    import onnx
    from onnx import numpy_helper

    from hftpipe.card import metadata, parse, stamp
    from hftpipe.models import DEMO
    model = onnx.load(DEMO)
    card = parse(metadata(DEMO.read_bytes()))

    def swap(array):
        """Entries i and j of the first axis."""
        out = numpy.array(array)
        out[[i, j]] = out[[j, i]]
        return out

    for tensor in model.graph.initializer:
        if tensor.name in ("low", "high", "w0"):
            tensor.CopyFrom(numpy_helper.from_array(
                swap(numpy_helper.to_array(tensor)), tensor.name))
    for name in ("mean", "scale"):
        card["normalisation"][name] = swap(card["normalisation"][name]).tolist()
    card["parity"]["inputs"] = swap(numpy.transpose(card["parity"]["inputs"])).T.tolist()
    path.write_bytes(stamp(model.SerializeToString(), card))
    return path


# ---------------------------------------------------------------- other plans of processes

def test_eight_processes_on_two_cores_do_the_same(tmp_path):
    cores = sorted(os.sched_getaffinity(0))[:2]
    with runs(tmp_path / "run") as go:
        live = go("--for", "10min", "--oversubscribe", "--cores", ",".join(map(str, cores)),
                  name="demo").up().trades()
        pids = {s: live.control.stage(i).pid for i, s in enumerate(
            b.name for b in live.control.stages) if s != "supervisor"}
        hot = ("feed", "book", "signal", "risk", "gateway", "ledger", "updates", "store")
        assert len({pids[name] for name in hot}) == 8, "each stage has a process of its own"
        for name in hot:
            assert os.sched_getaffinity(pids[name]) <= set(cores)
        waits = {p["name"]: p["wait"] for p in live.record.processes}
        assert {waits[n] for n in hot[:6]} == {"yield"}
        assert not sleeps(pids["feed"]) and sleeps(pids["updates"])
        live.popen.terminate()
        assert live.end() == 0
        assert live.document["verified"] and live.document["fills"] > 0
        assert live.document["rows_stored"] == sum(live.recorded().values())
        with database(live.path) as c:
            check_rows(c, live.run, live.recorded())


def sleeps(pid):
    """Whether a process waits for its sockets in the kernel: it has an event loop."""
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert any(link.startswith("socket:") for link in links)
    return "anon_inode:[eventpoll]" in links


def test_a_feed_in_json_has_a_process_that_sleeps(run):
    live = run("--oversubscribe", "--set", "venue.encoding=json").up().trades()
    waits = {p["name"]: p["wait"] for p in live.record.processes}
    assert (waits["feed"], waits["book"]) == ("sleep", "yield") and sleeps(live.pid("feed"))
    live.popen.terminate()
    assert live.end() == 0 and live.document["verified"]


def test_on_one_core_nothing_spins_and_a_demo_ends_by_itself(tmp_path):
    core = min(os.sched_getaffinity(0))
    with runs(tmp_path / "run") as go:
        live = go("--for", "4s", "--cores", core, name="demo").up()
        assert all(p["wait"] != "spin" for p in live.record.processes)
        pids = {b.pid for b in live.control.stages} - {live.popen.pid}
        assert {tuple(os.sched_getaffinity(p)) for p in pids} == {(core,)}
        assert live.end() == 0
        assert live.document["verified"] and live.document["cause"] == "time is up"
        assert live.document["rows_stored"] == sum(live.recorded().values()) > 0


# ---------------------------------------------------------------- the operator

def test_sigterm_drains_and_exits_0(run):
    live = run().up().trades()
    live.popen.send_signal(signal.SIGTERM)
    assert live.end() == 0
    assert {_control.STATES[b.state] for b in live.control.stages} == {"stopped"}, [
        (b.name, _control.STATES[b.state]) for b in live.control.stages]
    assert live.document["verified"]
    assert live.document["rows_stored"] == sum(live.recorded().values())
    assert live.run not in shm.runs()
    after = live.directory.read_run()
    assert after.exit == 0 and after.ended and not live.directory.latch().halted


def test_halt_resume_and_stop_of_a_run(run):
    live = run().up().trades()
    code, out, _ = live.hp("ready", "--timeout", "60s", "-o", "json")
    assert code == 0 and json.loads(out)["ready"]
    code, out, _ = live.hp("status", "-o", "json")
    status = json.loads(out)
    assert status["trading"] == "ARMED" and status["state"] == "RUNNING"
    assert status["totals"]["orders_sent"] > 0 and code in (0, 7)   # 7: behind, on a busy machine

    code, out, _ = live.hp("halt", "--reason", "a test", "--timeout", "60s", "-o", "json")
    first = json.loads(out)
    assert code == 0 and set(first["gates"].values()) == {"acknowledged"}
    sent, denied = orders(live), live.counter("risk", "denied")
    until(lambda: live.counter("risk", "denied") >= denied + 3, "intents are refused", live.popen)
    assert orders(live) == sent, "an order left after the gateway had acknowledged the halt"
    assert live.hp("status")[0] in (6, 7) and live.hp("ready")[0] in (6, 7)

    assert live.hp("stop")[0] == 0
    assert live.end() == 0
    halted = live.document
    assert halted["trading"] == "halted" and halted["denied"]["halted"] >= 3

    # The halt outlives the run: the next one starts with it.
    again = run().up("halted")
    denied = again.counter("risk", "denied")
    until(lambda: again.counter("risk", "denied") > denied, "intents are refused", again.popen)
    assert orders(again) == 0
    code, _, err = again.hp("resume", "--reason", "too old", "--epoch", first["epoch"] - 1)
    assert code == 10 and "refused" in err and again.control.trading == "halted"
    later = json.loads(again.hp("halt", "--reason", "another", "--timeout", "60s",
                                "-o", "json")[1])["epoch"]
    assert later == first["epoch"] + 1
    code, _, err = again.hp("resume", "--reason", "the first", "--epoch", first["epoch"])
    assert code == 10 and again.control.trading == "halted", "a resume erased a later halt"
    assert again.hp("resume", "--reason", "checked", "--epoch", later)[0] == 0
    until(lambda: orders(again) > 0, "it trades again", again.popen)

    # A halt needs nobody's help: not even when every stage hangs.
    stages = [b.pid for b in again.control.stages if b.name in (
        "feed", "book", "signal", "risk", "gateway", "ledger", "updates")]
    for pid in stages:
        os.kill(pid, signal.SIGSTOP)
    try:
        code, out, _ = again.hp("halt", "--reason", "all hang", "--timeout", "10ms", "-o", "json")
        assert again.control.trading == "halted" and again.directory.latch().halted
        assert code == 5 and json.loads(out)["gates"] == {"risk": "silent", "gateway": "silent"}
        epoch = again.control.halt_epoch
        sent = orders(again)
    finally:
        for pid in stages:
            os.kill(pid, signal.SIGCONT)
    until(lambda: all(again.control.stage(i).ack_epoch >= epoch for i in (3, 4)),
          "the gates acknowledge when they wake up", again.popen)
    assert orders(again) == sent
    again.popen.terminate()
    assert again.end() == 0
    with database(again.path) as c:
        for one in (live, again):
            check_rows(c, one.run, one.recorded())
        reasons = dict(c.execute(
            "SELECT reason, count(*) FROM hftpipe.risk_events WHERE run = %s "
            "AND event_type = 'order_denied' GROUP BY reason", (live.run,)))
        assert reasons["halted"] == halted["denied"]["halted"]


# ---------------------------------------------------------------- a venue and a database elsewhere

def test_a_venue_by_address_and_its_own_stamps_of_each_order(tmp_path, run):
    """Generator and order sink stamp with the same clock, outside of what is measured."""
    state = tmp_path / "venue"
    with server.spawn("--symbols", "AAPL,MSFT", "--rate-limit", "0", "--state", str(state),
                      "--stamps") as (_, venue):
        live = run("--set", "profile=paper", "--set", f"venue.rest={venue['rest']}",
                   "--set", f"venue.data_stream={venue['data_stream']}",
                   "--set", f"venue.updates_stream={venue['updates_stream']}",
                   # it has no history either
                   *(part for name, value in PROFILES["demo"].items()
                     for part in ("--set", f"risk.{name}={value}")),
                   ALPACA_API_KEY=venue["key"], ALPACA_SECRET_KEY=venue["secret"])
        live.up().trades(5)
        live.popen.terminate()
        assert live.end() == 0
    frames = [json.loads(line) for line in (state / "frames.jsonl").read_text().splitlines()]
    received = {line["client_order_id"]: line["recv"] for line in map(
        json.loads, (state / "orders.jsonl").read_text().splitlines()) if line["kind"] == "order"}
    with database(live.path) as c:
        check_rows(c, live.run, live.recorded())
        rows = c.execute(
            "SELECT l.client_order_id, m.ts_venue, l.ts_recv, l.ts_sent, l.ts_ack "
            "FROM hftpipe.order_latency l "
            "JOIN hftpipe.intent i ON i.run = l.run AND i.event = l.order_id "
            "JOIN hftpipe.market_event m ON m.run = i.run "
            "AND m.stream = hftpipe.event_stream(i.cause) AND m.seq = hftpipe.event_seq(i.cause) "
            "WHERE l.run = %s AND l.ts_sent IS NOT NULL", (live.run,)).fetchall()
    assert len(rows) == orders(live) > 0
    inner = outer = 0
    for name, ts_venue, recv, sent, ack in rows:
        written = [f["at"] for f in frames if f["t"][0] <= ts_venue <= f["t"][1]
                   and f["path"].endswith("/iex")]
        assert len(written) == 1, "a market event is in exactly one frame"
        # frame written <= read by us <= request written <= read by the venue <= acknowledged
        assert written[0][0] <= recv <= sent
        assert sent <= received[name] + 1_000_000, "the venue read it before we wrote it"
        assert received[name] <= ack
        inner += sent - recv
        outer += received[name] - written[0][0]
    assert 0 < inner <= outer


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@contextmanager
def secure_venue(authority, tmp_path):
    """A venue that only speaks TLS: the options that lead a run there, and its environment."""
    with server.spawn("--symbols", "AAPL,MSFT", "--rate-limit", "0",
                      "--state", str(tmp_path / "venue")) as (_, venue):
        addresses = {name: urlsplit(venue[name]) for name in
                     ("rest", "data_stream", "updates_stream")}
        with Front(authority.server(), addresses["rest"].port) as front:
            assert {a.port for a in addresses.values()} == {addresses["rest"].port}
            options = ["--set", "profile=paper"]
            # The exchange that is built in has neither New York's hours nor a history.
            for name, value in limits.PROFILES["demo"].items():
                options += ["--set", f"risk.{name}={value}"]
            for name, found in addresses.items():
                options += ["--set", f"venue.{name}={found.scheme}s://localhost:{front.port}"
                                     f"{found.path}"]
            yield options, {"ALPACA_API_KEY": venue["key"], "ALPACA_SECRET_KEY": venue["secret"]}


@pytest.mark.parametrize("layout", [("--set", "layout.fuse_feed=yes"), ("--oversubscribe",)],
                         ids=["fused", "processes"])
def test_everything_over_tls(tmp_path, run, authority, layout):
    """Market data and orders are decrypted and encrypted inside the loops that need them."""
    with secure_venue(authority, tmp_path) as (options, keys):
        live = run(*options, *layout, SSL_CERT_FILE=str(authority.file), **keys)
        live.up().trades(5)
        live.popen.terminate()
        assert live.end() == 0 and live.document["verified"]
    for stage in ("feed", "gateway"):
        (hot,) = [p for p in live.record.processes if stage in p["stages"]]
        assert hot["wait"] != "sleep" and ("risk" in hot["stages"]) == ("--set" in layout)
    with database(live.path) as c:
        check_rows(c, live.run, live.recorded())


def test_a_venue_whose_certificate_is_not_believed_is_one_line(tmp_path, authority):
    with secure_venue(authority, tmp_path) as (options, keys):
        code, out, err = command("--run-dir", tmp_path / "run", "start", *options,
                                 env=environment(**keys))
    assert (code, out) == (4, "") and err.splitlines()[-1].startswith("error: ")
    assert "TLS with localhost: certificate refused: " in err


@pytest.mark.slow
def test_another_postgresql_by_url(tmp_path, run):
    with Postgres(tmp_path / "elsewhere") as conninfo:
        found = psycopg.conninfo.conninfo_to_dict(conninfo)
        host = found["host"].replace("/", "%2F")
        live = run("--set", f"store.url=postgresql://{found['user']}@{host}:{found['port']}"
                            f"/{found['dbname']}", PGPASSFILE=found["passfile"])
        live.up().trades()
        assert not (live.path / "pg").exists(), "no database of its own was started"
        live.popen.terminate()
        assert live.end() == 0 and live.document["verified"]
        with psycopg.connect(conninfo) as c:
            check_rows(c, live.run, live.recorded())


# ---------------------------------------------------------------- it cannot start

@pytest.mark.parametrize(("options", "code", "message"), [
    (["--cores", "4095"], 2, "core"),
    (["--set", "risk.max_order_size=1"], 4, "max_order_shares"),
    (["--set", "store.url=mysql://x/y"], 4, "postgresql://"),
    (["--set", "store.url=postgresql://nobody@127.0.0.1:1/none"], 4, "cannot connect"),
    (["--set", "observe.prometheus=0.0.0.0:1"], 4, "loopback"),
])
def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, options, code, message):
    env = environment()
    before = shm.runs()
    got, out, err = command("--run-dir", tmp_path / "run", "start", *options, env=env)
    assert got == code and out == ""
    assert re.search(r"(^|\n)error: [^\n]+\n$", err) and message in err
    assert err.count("error") == 1 and len(err.splitlines()) <= 2
    assert not marked(env) and shm.runs().keys() <= before.keys()


def test_a_model_that_is_not_there_is_one_line_and_leaves_nothing(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('version = 1\n[[strategy]]\nname = "m"\nkind = "onnx"\n'
                    '[strategy.params]\nmodel = "absent.onnx"\n')
    env = environment()
    code, out, err = command("--run-dir", tmp_path / "run", "-C", file, "start", env=env)
    assert code == 4 and out == "" and "absent.onnx" in err
    assert re.fullmatch(r"error: [^\n]+\n", err)
    assert not marked(env)
