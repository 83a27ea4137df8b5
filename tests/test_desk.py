"""The desk answers its own user, one line for one line, and nothing that arrives there stops it."""
import json
import os
import random
import socket
import stat
import threading

import pytest

from hftpipe import desk
from hftpipe.desk import Desk, DeskError, ask
from hftpipe.errors import Exit, GuardError, NotRunningError

HANDLERS = {
    "echo": lambda r: {"values": dict(r.values), "who": r.who},
    "guard": lambda r: (_ for _ in ()).throw(GuardError("not so")),
    "bug": lambda r: {}["nothing"],
    "text": lambda r: {"text": r.text("name")},
    "large": lambda r: {"text": "x" * 20000},
}


@pytest.fixture
def directory(tmp_path):
    deep = tmp_path / ("d" * 100) / ("e" * 100)         # longer than a socket's name may be
    deep.mkdir(parents=True, mode=0o700)
    return str(deep)


@pytest.fixture
def lines():
    return []


@pytest.fixture
def server(directory, lines):
    made = Desk(directory, HANDLERS, lambda event, **values: lines.append((event, values)))
    yield made
    made.close()


def raw(directory, data, shut=True):
    """What the server answers to bytes; None when it closes without an answer."""
    with socket.socket(socket.AF_UNIX) as s, desk._short(directory) as short:
        s.settimeout(30)
        s.connect(f"{short}/{desk.NAME}")
        try:
            s.sendall(data)
            if shut:
                s.shutdown(socket.SHUT_WR)
        except OSError:
            pass                                # it has answered before we had said all
        out = b""
        try:
            while part := s.recv(65536):
                out += part
        except ConnectionResetError:
            return None                         # it closed with bytes of ours unread
    return json.loads(out) if out else None


def test_a_request_is_answered_and_who_asks_is_the_kernels_word(server, directory, lines):
    found = ask(directory, "echo", symbol="AAPL", who="the queen")
    assert found["values"] == {"symbol": "AAPL", "who": "the queen"}
    assert f"(pid {os.getpid()})" in found["who"] and "queen" not in found["who"]
    assert lines == [("asked", {"command": "echo", "who": found["who"]})]


def test_the_socket_is_this_users_alone(server, directory):
    found = os.lstat(f"{directory}/{desk.NAME}")
    assert stat.S_ISSOCK(found.st_mode) and found.st_mode & 0o777 == 0o600


def test_a_refusal_carries_words_and_exit_code(server, directory, lines):
    with pytest.raises(DeskError, match="not so") as e:
        ask(directory, "guard")
    assert e.value.exit_code == Exit.REFUSED and lines[0][0] == "refused"
    with pytest.raises(DeskError, match="command must be one of bug, echo, guard, large, text"):
        ask(directory, "sudo")
    with pytest.raises(DeskError, match="text: name must be a text of 1 to 300"):
        ask(directory, "text", name="x" * 301)
    with pytest.raises(DeskError, match="name must be a text"):
        ask(directory, "text", name=" ")
    assert ask(directory, "text", name="a\nb\x1b[2J  c")["text"] == "a b [2J c"


def test_a_handler_that_fails_is_an_answer_and_the_next_request_is_served(server, directory, lines):
    with pytest.raises(DeskError, match="bug failed: KeyError: 'nothing'"):
        ask(directory, "bug")
    assert lines[0][0] == "failed"
    assert ask(directory, "echo")["values"] == {}
    assert ask(directory, "large") == {"cut": True}


@pytest.mark.parametrize("data", [
    b"", b"\n", b"null\n", b"[]\n", b"12\n", b"{}\n", b'{"command": 5}\n', b'{"command": "echo"',
    b"\xff\xfe\n", b'{"command": ["echo"]}\n', b"[" * 5000 + b"\n", b"x" * 9000 + b"\n"])
def test_what_is_no_request_is_refused(server, directory, data):
    found = raw(directory, data)
    assert found is None or (found["ok"] is False and found["exit"] == Exit.USAGE)
    assert ask(directory, "echo")["values"] == {}


def test_noise_does_not_stop_it(server, directory):
    chance = random.Random(7)
    good = json.dumps({"command": "text", "name": "a"}).encode() + b"\n"
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        raw(directory, bytes(data[:chance.randrange(1, len(data) + 1)]))
    assert ask(directory, "text", name="still here") == {"text": "still here"}


def test_a_mute_client_holds_nobody_up_and_too_many_are_sent_away(server, directory):
    mute = []
    with desk._short(directory) as short:
        for _ in range(desk.GUESTS - 1):
            s = socket.socket(socket.AF_UNIX)
            s.connect(f"{short}/{desk.NAME}")
            mute.append(s)
        assert ask(directory, "echo")["values"] == {}
    for s in mute:
        s.close()


def test_a_slow_handler_holds_nobody_up(directory):
    gate = threading.Event()
    made = Desk(directory, {"slow": lambda r: {"done": gate.wait(60)}, **HANDLERS})
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(directory, "slow", 60)))
    thread.start()
    assert ask(directory, "echo")["values"] == {}
    gate.set()
    thread.join()
    made.close()
    assert found == [{"done": True}]


def test_another_user_is_refused(directory):
    made = Desk(directory, HANDLERS, uid=os.geteuid() + 1)
    try:
        with pytest.raises(DeskError, match=rf"user {os.geteuid()} may not ask") as e:
            ask(directory, "echo")
        assert e.value.exit_code == Exit.PERMISSION
    finally:
        made.close()


def test_without_a_server_nobody_is_running_and_a_dead_ones_socket_is_replaced(directory):
    with pytest.raises(NotRunningError, match="listens"):
        ask(directory, "echo")
    first = Desk(directory, HANDLERS)
    first._closed.set()                         # as if it had been killed: the name stays
    first._socket.shutdown(socket.SHUT_RDWR)
    first._thread.join()
    first._socket.close()
    assert os.path.exists(f"{directory}/{desk.NAME}")
    with pytest.raises(NotRunningError, match="listens"):
        ask(directory, "echo")
    second = Desk(directory, HANDLERS)
    assert ask(directory, "echo")["values"] == {}
    second.close()
    assert not os.path.exists(f"{directory}/{desk.NAME}")
