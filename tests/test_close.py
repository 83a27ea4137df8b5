"""`hftpipe close` closes what it was asked to, once, and never beside a run."""
import http.server
import json
import threading
import urllib.request

import click
import pytest
from click.testing import CliRunner

from hftpipe.alpaca.rest import Rest, VenueError
from hftpipe.cli._common import Settings
from hftpipe.cli.close import command
from hftpipe.errors import BusyError, DeadlineError, GuardError
from hftpipe.rundir import RunDir
from hftpipe.venue import server
from tests.models.live import DEADLINE, until

pytestmark = pytest.mark.venue


def post_order(venue, **fields):
    """An order by somebody else than us."""
    request = urllib.request.Request(
        venue["rest"] + "/v2/orders", json.dumps(fields).encode(), method="POST", headers={
            "APCA-API-KEY-ID": venue["key"], "APCA-API-SECRET-KEY": venue["secret"],
            "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def returning(ctx, args):
    """The command as ``hftpipe`` calls it: what it returns is the exit code."""
    ctx.exit(command.main(list(args), prog_name="close", standalone_mode=False, obj=ctx.obj))


class Desk:
    """The local exchange as a paper account, and a run directory that no run has."""

    def __init__(self, venue, path, monkeypatch):
        self.venue, self.directory = venue, RunDir(path)
        self.directory.prepare()
        monkeypatch.setenv("ALPACA_API_KEY", venue["key"])
        monkeypatch.setenv("ALPACA_SECRET_KEY", venue["secret"])
        self.rest = Rest(venue["rest"], venue["key"], venue["secret"])

    def hold(self, symbol, qty):
        post_order(self.venue, symbol=symbol, qty=qty, side="buy", type="market",
                   time_in_force="gtc" if "/" in symbol else "day")
        until(lambda: self.held(symbol) == qty, "it is held")

    def held(self, symbol):
        return next((p.qty for p in self.rest.positions()
                     if p.symbol == symbol.replace("/", "")), "0")

    def close(self, *args, code=0):
        done = CliRunner().invoke(returning, [
            *args, "--set", "profile=paper", "--set", f"venue.rest={self.venue['rest']}",
            "--run-dir", str(self.directory.path), "-o", "json"], obj=Settings())
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code
        return json.loads(done.stdout)

    def audit(self):
        return [json.loads(line) for line in
                (self.directory.path / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    with server.spawn("--symbols", "AAPL,BTC/USD", "--rate-limit", "0",
                      "--state", str(tmp_path / "venue")) as (_, venue):
        found = Desk(venue, tmp_path / "run", monkeypatch)
        yield found
        found.rest.close()


def test_a_position_is_closed_in_parts_and_written_down(desk):
    desk.hold("AAPL", "10")
    desk.hold("BTC/USD", "0.5")
    found = desk.close("AAPL", "--qty", "4", "--reason", "too much")
    assert (found["held"], found["filled"], found["left"], found["status"]) == (
        "10", "4", "6", "filled")
    assert desk.close("AAPL", "--percent", "50")["left"] == "3" == desk.held("AAPL")
    assert desk.close("AAPL")["left"] == "0" == desk.held("AAPL")
    assert desk.held("BTC/USD") == "0.5"
    assert desk.close("BTC/USD", "--qty", "0.123456789")["left"] == "0.376543211"
    lines = desk.audit()
    assert [line["action"] for line in lines] == ["close", "closed"] * 4
    assert lines[0]["reason"] == "4 of 10 AAPL: too much" and lines[0]["way"] == "cli"
    assert lines[1]["reason"] == "AAPL: 4 traded, 6 held" and lines[1]["order"]
    assert not desk.rest.orders()


def test_what_is_not_held_or_more_than_is_held_is_refused(desk):
    with pytest.raises(GuardError, match="wanted a position in AAPL, found none"):
        desk.close("AAPL")
    desk.hold("AAPL", "5")
    with pytest.raises(GuardError, match="HTTP 403"):
        desk.close("AAPL", "--qty", "6")
    # a resting order holds the shares back
    post_order(desk.venue, symbol="AAPL", qty="5", side="sell", type="limit",
               limit_price="9999", time_in_force="day")
    with pytest.raises(GuardError, match="HTTP 403"):
        desk.close("AAPL")
    assert desk.held("AAPL") == "5" and len(desk.rest.orders()) == 1
    assert [line["action"] for line in desk.audit()] == ["close", "not closed"] * 2


def test_what_does_not_fill_in_time_is_cancelled(tmp_path, monkeypatch):
    state = ("--symbols", "AAPL", "--rate-limit", "0", "--state", str(tmp_path / "venue"))
    with server.spawn(*state) as (_, venue):
        desk = Desk(venue, tmp_path / "run", monkeypatch)
        desk.hold("AAPL", "5")
        desk.rest.close()
    # a Saturday: the order waits for Monday's open
    with server.spawn(*state, "--hours", "nyse", "--now", "2030-01-05T15:00:00Z") as (_, venue):
        desk = Desk(venue, tmp_path / "run", monkeypatch)
        found = desk.close("AAPL", "--timeout", "100ms", code=5)
        assert (found["status"], found["filled"], found["left"]) == ("canceled", "0", "5")
        assert not desk.rest.orders() and desk.held("AAPL") == "5"
        desk.rest.close()
    assert [line["action"] for line in desk.audit()] == ["close", "not closed"]


@pytest.mark.parametrize("how", ["ends", "silent"])
def test_a_request_without_an_answer_is_never_repeated(how):
    """A second one would close as much again; other requests of ours are tried twice."""
    asked = []

    class Venue(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append("GET")
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def do_DELETE(self):
            asked.append(f"DELETE {self.path}")
            if how == "silent":
                done.wait(DEADLINE)
            self.close_connection = True

        def log_message(self, *words):
            pass

    done = threading.Event()
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Venue)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    try:
        rest = Rest(f"http://127.0.0.1:{listener.server_port}", "k", "s", timeout=0.3)
        assert rest.positions() == []               # so that there is a connection to be reused
        with pytest.raises(DeadlineError if how == "silent" else VenueError):
            rest.close_position("AAPL", percent="50")
        assert asked == ["GET", "DELETE /v2/positions/AAPL?percentage=50"]
        rest.close()
    finally:
        done.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


def test_beside_a_run_it_does_nothing(desk):
    desk.hold("AAPL", "5")
    desk.directory.lock()                               # as a supervisor has it
    with pytest.raises(BusyError, match="has a run already"):
        desk.close("AAPL")
    desk.directory.unlock()
    assert desk.held("AAPL") == "5"


@pytest.mark.parametrize(("args", "words"), [
    (("--qty", "0"), "above 0"), (("--qty", "-1"), "above 0"), (("--qty", "nan"), "above 0"),
    (("--qty", "0.1234567891"), "nine decimals"), (("--percent", "100.01"), "at most 100"),
    (("--qty", "1", "--percent", "1"), "only one of")])
def test_amounts_that_are_none(args, words):
    done = CliRunner().invoke(command, ["AAPL", *args], obj=Settings())
    assert done.exit_code == 2 and words in " ".join(done.output.split())


def test_the_local_exchange_has_nothing_to_close():
    done = CliRunner().invoke(command, ["AAPL"], obj=Settings())
    assert done.exit_code == 2 and "profile paper or live, found demo" in " ".join(
        done.output.split())
