"""Trading with money needs every one of its consents; without one, nothing is asked or started."""
import json
import os
import pty
import subprocess
import sys
import types
from contextlib import contextmanager

import pytest

from hftpipe import config, consent, shm
from hftpipe.errors import ConfigError, GuardError, UsageError
from tests.models import httpd
from tests.models.driver import DEADLINE, ENV
from tests.tls import Authority

HOST = "api.alpaca.markets"
# The broker's names lead to this machine, in every process of these tests.
HERE = """
import socket, sys
look_up = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: look_up(
    "127.0.0.1" if host.endswith("alpaca.markets") else host, *a, **k)
from hftpipe import cli
sys.exit(cli.run())
"""


@contextmanager
def broker(context, answer, status=200):
    """Says what it knows of the account, over TLS, and keeps what it was asked."""
    seen = []

    class Answer(httpd.Handler):
        def do_GET(self):
            seen.append(f"{self.command} {self.path} {self.headers['APCA-API-KEY-ID']}")
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_PATCH = do_GET

    with httpd.serving(Answer, context) as port:
        yield types.SimpleNamespace(port=port, seen=seen)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def live(tmp_path, authority, monkeypatch):
    """Makes a broker and the options that lead to it with everything but the digits."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    monkeypatch.setenv("MONEY_KEY", "money-key")
    monkeypatch.setenv("MONEY_SECRET", "money-secret")
    context = authority.server(authority.issue(f"DNS:{HOST}"))

    @contextmanager
    def make(number="123456789", status=200):
        answer = {"id": "a", "status": "ACTIVE", "account_number": number} if status == 200 else {
            "code": 40110000, "message": "request is not authorized"}
        with broker(context, answer, status) as found:
            found.sets = ["profile=live", "live=true", "venue.key=env:MONEY_KEY",
                          "venue.secret=env:MONEY_SECRET",
                          f"venue.rest=https://{HOST}:{found.port}",
                          # what comes after the guard: not reached, or the end of the test
                          "store.url=postgresql://nobody@127.0.0.1:1/none"]
            yield found
    return make


def start(place, found, *options, terminal=None, leave="", **env):
    """`hftpipe start` against *found*, typing *terminal*: (exit code, what it said)."""
    argv = [sys.executable, "-c", HERE, "--run-dir", str(place / "run"), "start", *options]
    for item in found.sets:
        if not (leave and item.startswith(leave)):
            argv += ["--set", item]
    env = {k: v for k, v in {**ENV, **os.environ}.items() if not k.startswith("HFTPIPE_")} | env
    before = shm.runs()
    if terminal is None:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=DEADLINE,
                              stdin=subprocess.DEVNULL, cwd=place)
        code, out, err = done.returncode, done.stdout, done.stderr
    else:
        ours, theirs = pty.openpty()
        try:
            with subprocess.Popen(argv, env=env, stdin=theirs, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, cwd=place) as process:
                os.write(ours, terminal.encode())
                out, err = process.communicate(timeout=DEADLINE)
                code = process.returncode
        finally:
            os.close(ours)
            os.close(theirs)
    assert out == "" and "Traceback" not in err and "money-" not in err
    assert shm.runs() == before, "nothing was started"
    return code, err


ASKED = ["GET /v2/account money-key"]
PASSED = (4, "cannot connect to the database")      # the first thing behind the guard


@pytest.mark.parametrize("way", ["option", "environment", "terminal"])
def test_with_every_consent_it_goes_on(tmp_path, live, way):
    with live() as found:
        code, err = start(
            tmp_path, found, "--live", *(["--confirm-account", "6789"] if way == "option" else []),
            terminal="6789\n" if way == "terminal" else None,
            **({"HFTPIPE_CONFIRM_ACCOUNT": "6789"} if way == "environment" else {}))
    assert (code, True) == (PASSED[0], PASSED[1] in err) and found.seen == ASKED
    assert ("Last four digits" in err) == (way == "terminal")


@pytest.mark.parametrize(("options", "leave", "code", "words"), [
    ((), "", 10, "needs --live on the command line"),
    (("--live",), "live=", 10, "needs `live = true`"),
    (("--live",), "venue.key", 10, "needs venue.key and venue.secret"),
    (("--live",), "venue.secret", 10, "needs venue.key and venue.secret"),
    (("--live",), "", 10, "needs the account's last four digits"),
    (("--live", "--confirm-account", "678"), "", 2, "was 3 characters"),
    (("--live", "--confirm-account", "6789", "--set", "venue.rest=http://api.alpaca.markets"), "",
     4, "venue.rest must start with https://"),
    (("--live", "--confirm-account", "6789", "--set",
      "venue.updates_stream=ws://api.alpaca.markets/stream"), "",
     4, "venue.updates_stream must start with wss://"),
    (("--live", "--confirm-account", "6789", "--set", "venue.data_stream=ws://127.0.0.1/x"), "",
     4, "venue.data_stream must start with wss://"),
    (("--live", "--confirm-account", "6789", "--set", "venue.rest=https://broker.example"), "",
     4, "must be a host of alpaca.markets"),
    (("--live", "--confirm-account", "6789", "--set", "profile=paper"), "profile",
     4, "is the live account's host"),
    (("--live", "--confirm-account", "6789", "--set", "profile=demo"), "profile",
     10, "--live needs profile live"),
])
def test_each_missing_consent_ends_it_before_the_broker_is_asked(tmp_path, live, options, leave,
                                                                 code, words):
    if words.startswith(("venue.rest must start", "must be a host")):
        leave = "venue.rest"
    with live() as found:
        got, err = start(tmp_path, found, *options, leave=leave)
    assert got == code and words in err and err.startswith("error: ") and err.count("\n") == 1
    assert not found.seen


def test_a_credential_that_is_not_there_ends_it_before_the_broker_is_asked(tmp_path, live,
                                                                          monkeypatch):
    monkeypatch.delenv("MONEY_SECRET")
    with live() as found:
        code, err = start(tmp_path, found, "--live", "--confirm-account", "6789")
    assert code == 4 and "env:MONEY_SECRET must hold one" in err and not found.seen


@pytest.mark.parametrize("number", ["123456780", "678", ""])
def test_another_account_ends_it_before_anything_is_sent(tmp_path, live, number):
    with live(number) as found:
        code, err = start(tmp_path, found, "--live", "--confirm-account", "6789")
    assert code == 10 and found.seen == ASKED
    assert "must end in 6789" in err if len(number) > 4 else "found none" in err
    assert "6780" not in err, "who asks must know them"


def test_credentials_that_the_broker_refuses_are_no_consent(tmp_path, live):
    with live(status=401) as found:
        code, err = start(tmp_path, found, "--live", "--confirm-account", "6789")
    assert code == 4 and "request is not authorized" in err and found.seen == ASKED


def test_the_pipeline_itself_asks_for_it(tmp_path):
    """Whoever calls it without the command gets no further."""
    from hftpipe import pipeline
    from hftpipe.cli.start import plan_of
    from hftpipe.rundir import RunDir
    loaded = config.loads("profile='live'\nlive=true\n[venue]\nkey='env:K'\nsecret='env:S'\n",
                          env={})
    with pytest.raises(GuardError, match="needs --live"):
        pipeline.execute(loaded, plan_of(loaded, oversubscribe=True), run_dir=RunDir(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_digits_are():
    assert consent.digits(" 7q2x ") == "7Q2X"
    for given in ("", "123", "12345", "12 4", "12-4", "١٢٣٤"):
        with pytest.raises(UsageError, match="last four digits"):
            consent.digits(given)


@pytest.mark.parametrize("host", [HOST, HOST + ".", HOST.upper()])
def test_no_other_profile_reaches_the_live_account(host):
    with pytest.raises(ConfigError, match="is the live account's host"):
        config.loads(f"profile='paper'\n[venue]\nrest='https://{host}'", env={})
