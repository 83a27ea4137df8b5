"""TLS inside the loop: verified or nothing, every byte once and in order, no Python needed."""
import asyncio
import os
import select
import socket
import ssl
import subprocess
import threading
import time
import warnings
from contextlib import closing
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe._clock import now_ns
from hftpipe.alpaca import _tls, session
from hftpipe.alpaca._socket import Receiver
from hftpipe.alpaca._tls import Session, Trust
from hftpipe.errors import ConfigError, DeadlineError, TlsError
from tests.tls import Authority
from tests.wsserver import Server, frame

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def context(authority):
    return authority.server()


class Peer:
    """The server's end, by Python's ssl: what the wire carries is the test's to cut."""

    def __init__(self, context):
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def take(self) -> None:
        """Whatever the client has sent."""
        try:
            while raw := self.theirs.recv(65536):
                self.incoming.write(raw)
        except BlockingIOError:
            pass

    def give(self) -> bytes:
        """Ciphertext for the client."""
        return self.outgoing.read()

    def shake(self, client) -> None:
        done = False
        while not done:
            done = client.step()
            self.take()
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            self.theirs.sendall(self.give())

    def read(self) -> bytes:
        out = b""
        self.take()
        try:
            while data := self.tls.read(65536):
                out += data
        except ssl.SSLWantReadError:
            pass
        return out

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture(params=VERSIONS, ids=["1.2", "1.3"])
def linked(request, authority):
    """``(peer, client)`` after their handshake."""
    context = authority.server()
    context.minimum_version = context.maximum_version = request.param
    peer = Peer(context)
    client = Session(Trust(authority.file), peer.ours.fileno(), "localhost")
    peer.shake(client)
    assert client.version == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[request.param.name]
    assert "GCM" in client.cipher or "POLY1305" in client.cipher
    yield peer, client
    peer.close()


def soon() -> float:
    return time.monotonic() + 5


def receiver(linked) -> Receiver:
    peer, client = linked
    return Receiver(peer.ours, tls=client)


# ---------------------------------------------------------------- bytes

@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=6),
       st.lists(st.integers(1, 30_000), min_size=1, max_size=8), st.integers(0, 2 ** 32 - 1))
def test_any_messages_in_any_pieces_in_both_directions(authority, context, sizes, cuts, seed):
    # A generator of its own: hypothesis would draw, and keep, every byte of every message.
    random = Random(seed)
    messages = [random.randbytes(n) for n in sizes]
    with closing(Peer(context)) as peer:
        exchange(peer, Session(Trust(authority.file), peer.ours.fileno(), "127.0.0.1"), messages,
                 cuts, random)


def exchange(peer, client, messages, cuts, random):
    peer.shake(client)
    ours = Receiver(peer.ours, tls=client)
    for message in messages:
        peer.tls.write(frame(message))
    raw = peer.give()
    got, at = [], 0
    while at < len(raw) or len(got) < len(messages):
        size = random.choice(cuts)
        at += peer.theirs.send(raw[at:at + size]) if at < len(raw) else 0
        while (one := ours.poll()) is not None:
            got.append(one[1])
    assert got == messages
    for message in messages:
        if len(message) <= 10_000:
            ours.send(2, message)
            peer.take()
    ours.poll()                                 # what the socket did not take goes out later
    told = peer.read()
    sizes = [len(m) + (6 if len(m) < 126 else 8) for m in messages if len(m) <= 10_000]
    assert len(told) == sum(sizes)


def test_what_the_socket_does_not_take_leaves_later_and_in_order(linked):
    peer, _ = linked
    peer.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours = receiver(linked)
    sent, told = [], b""
    for i in range(400):
        payload = bytes([i & 255]) * 1000
        try:
            ours.send(2, payload)
            sent.append(payload)
        except ConnectionError:                 # no room: nothing of it was taken
            break
    assert 5 < len(sent) < 400
    while len(told) < len(sent) * 1008:
        told += peer.read()
        ours.poll()
    for i, payload in enumerate(sent):
        one = told[i * 1008:(i + 1) * 1008]
        key = one[4:8]
        assert bytes(c ^ key[k & 3] for k, c in enumerate(one[8:])) == payload


def test_two_messages_of_one_segment_came_at_the_same_time_however_late_they_are_read(linked):
    peer, _ = linked
    ours = receiver(linked)
    peer.tls.write(frame(b"one"))
    peer.tls.write(frame(b"two"))
    before = now_ns()
    peer.theirs.sendall(peer.give())
    _, first, came = ours.poll()
    after = now_ns()
    _, second, also = ours.poll()
    assert (first, second) == (b"one", b"two") and before <= came <= after and also == came


def test_receive_does_not_sleep_on_what_is_already_here(linked):
    """Three records in one segment; the socket is empty after the first read."""
    peer, _ = linked
    ours = receiver(linked)
    whole = frame(b"x" * 3000)
    for at in range(0, len(whole), 1100):
        peer.tls.write(whole[at:at + 1100])
    peer.theirs.sendall(peer.give())
    assert ours.receive(5) == b"x" * 3000
    with pytest.raises(DeadlineError):
        ours.receive(0.01)


def test_goodbye_is_an_end_and_silence_is_not(linked):
    peer, client = linked
    peer.tls.write(b"last")
    with pytest.raises(ssl.SSLWantReadError):
        peer.tls.unwrap()
    peer.theirs.sendall(peer.give())
    peer.theirs.shutdown(socket.SHUT_WR)
    assert client.receive(100, soon()) == b"last"
    assert client.receive(100, soon()) == b""


def test_a_stream_cut_off_is_a_failure(linked):
    peer, client = linked
    peer.tls.write(b"last")
    peer.theirs.sendall(peer.give())
    peer.theirs.shutdown(socket.SHUT_WR)
    assert client.receive(100, soon()) == b"last"
    with pytest.raises(ConnectionResetError, match="TLS with localhost"):
        client.receive(100, soon())


@pytest.mark.parametrize("at", [0, 7, -1])
def test_a_changed_byte_is_found_and_ends_it_for_good(linked, at):
    peer, _ = linked
    ours = receiver(linked)
    peer.tls.write(frame(b"a price"))
    raw = bytearray(peer.give())
    raw[at] ^= 1
    peer.theirs.sendall(raw)
    for _ in range(2):
        with pytest.raises(TlsError, match=r"^TLS with localhost: [a-z0-9 ]+$"):
            ours.poll()
    with pytest.raises(TlsError):
        raise ours.ended


def test_goodbye_of_ours_is_heard(linked):
    peer, _ = linked
    ours = receiver(linked)
    assert ours.poll() is None                  # closing on tickets unread would be a reset
    ours.close()
    peer.take()
    data = peer.tls.read(100)
    assert data[:2] == b"\x88\x82"              # the WebSocket's own, then the session's
    assert peer.tls.read(100) == b""            # it would want more if there were no goodbye


def test_a_session_is_of_one_socket(linked):
    peer, client = linked
    with pytest.raises(ValueError, match="another socket"):
        Receiver(peer.theirs, tls=client)


def test_new_keys_in_the_middle_change_nothing(authority):
    """The peer of a long session changes its keys and asks for ours to be changed."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    server = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-naccept", "1", "-tls1_3",
         "-num_tickets", "0", "-cert", authority.issue()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while b"ACCEPT" not in server.stdout.readline():
            pass
        with socket.create_connection(("127.0.0.1", port)) as ours:
            client = Session(Trust(authority.file), ours.fileno(), "localhost")
            client.handshake(soon())
            for i, command in enumerate(b"kKkK"):
                client.send(b"question %d\n" % i, soon())
                while b"question %d" % i not in server.stdout.readline():
                    pass
                server.stdin.write(b"%c\n" % command)
                server.stdin.flush()
                assert select.select([ours], [], [], 5)[0]      # it told of its new keys
                server.stdin.write(b"answer %d\n" % i)
                server.stdin.flush()
                got = b""
                while b"\n" not in got:
                    got += client.receive(100, soon())
                assert got == b"answer %d\n" % i
    finally:
        server.kill()
        server.communicate()


# ---------------------------------------------------------------- who is refused

def refused(context, authority, host="127.0.0.1", trust=None):
    """What opening a stream at a server with *context* says."""
    async def main():
        async with Server(lambda c: c.upgrade(), context=context) as server:
            with pytest.raises(TlsError) as failure:
                await asyncio.to_thread(
                    session.open_websocket, server.ws.replace("127.0.0.1", host), timeout=5.0,
                    trust=trust or Trust(authority.file))
            assert not server.clients           # nothing was said, no key, no request
            return str(failure.value)
    said = asyncio.run(main())
    assert "\n" not in said and said.startswith(f"TLS with {host}: ")
    return said


def test_the_wrong_host_is_refused(authority):
    named = authority.server(authority.issue("DNS:localhost"))
    assert refused(named, authority).endswith("certificate refused: ip address mismatch")
    other = authority.server(authority.issue("DNS:venue.example,IP:127.0.0.1"))
    assert refused(other, authority, "localhost").endswith("refused: hostname mismatch")
    # A name in the subject alone counts for nothing, nor does half a wildcard.
    assert "mismatch" in refused(authority.server(authority.issue("DNS:local*")), authority,
                                 "localhost")


def test_an_expired_certificate_is_refused(authority):
    late = authority.server(authority.issue(days=-1))
    assert refused(late, authority).endswith("certificate refused: certificate has expired")


def test_an_authority_nobody_knows_is_refused(authority, tmp_path):
    assert "unable to get local issuer" in refused(authority.server(), authority, trust=Trust())
    stranger = Authority(tmp_path)
    assert "certificate refused" in refused(stranger.server(), authority)


def answered(authority, serve):
    """What opening a stream says at a server that does *serve(connection)*."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def once():
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                serve(connection)

        thread = threading.Thread(target=once)
        thread.start()
        with pytest.raises(TlsError) as failure:
            session.open_websocket(f"wss://127.0.0.1:{listener.getsockname()[1]}/", timeout=5.0,
                                   trust=Trust(authority.file))
        thread.join(5)
    return str(failure.value)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_a_venue_that_speaks_only_old_protocols_is_refused(authority, version):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # Python too says: too old
        context = authority.server(newest=version)

    def serve(connection):
        with pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_side=True)

    assert answered(authority, serve) == "TLS with 127.0.0.1: tlsv1 alert protocol version"


@pytest.mark.parametrize("version", [b"\3\1", b"\3\2"])
def test_a_downgrade_is_refused(authority, version):
    """We offer 1.2 and 1.3, and are answered as if we had offered something older."""
    def serve(connection):
        assert connection.recv(5)[:1] == b"\x16"
        hello = version + os.urandom(32) + b"\0" + b"\xc0\x13" + b"\0"
        hello = b"\2" + len(hello).to_bytes(3, "big") + hello
        connection.sendall(b"\x16" + version + len(hello).to_bytes(2, "big") + hello)
        while connection.recv(4096):            # the rest of ours, and the alert
            pass

    assert answered(authority, serve) == "TLS with 127.0.0.1: unsupported protocol"


def test_a_server_without_tls_is_refused(authority):
    def serve(connection):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        while connection.recv(4096):
            pass

    assert answered(authority, serve) == "TLS with 127.0.0.1: wrong version number"


def test_a_peer_that_says_nothing_is_a_deadline(authority):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        with pytest.raises(DeadlineError, match=rf"no TLS session with 127.0.0.1:{port} within"):
            session.open_websocket(f"wss://127.0.0.1:{port}/", timeout=0.05,
                                   trust=Trust(authority.file))


def test_a_connection_lost_in_the_handshake_is_said(authority):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=lambda: server.accept()[0].close())
        thread.start()
        with pytest.raises(ConnectionError, match=r"TLS with 127\.0\.0\.1: Connection reset"):
            session.open_websocket(f"wss://127.0.0.1:{port}/", timeout=5.0,
                                   trust=Trust(authority.file))
        thread.join(5)


def test_what_is_trusted_must_be_readable(tmp_path, authority):
    (tmp_path / "no.pem").write_text("no certificate")
    for path in (tmp_path / "no.pem", tmp_path / "none.pem"):
        with pytest.raises(ConfigError, match=f"trusted certificates {path}: "):
            Trust(path)
    for host in ("", "a\0b", "x" * 300):
        with pytest.raises(ConfigError, match="wanted a host's name"):
            Session(Trust(authority.file), 0, host)


def test_the_environment_says_whom_to_trust(authority, monkeypatch):
    """As for everything else that verifies through OpenSSL."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))

    async def main():
        async with Server(lambda c: c.upgrade(), context=authority.server()) as server:
            found = await asyncio.to_thread(session.open_websocket, server.ws, timeout=5.0)
            found.close()
    asyncio.run(main())


def test_the_library_is_the_one_python_uses():
    assert _tls.library() == ssl.OPENSSL_VERSION


def test_a_thousand_sessions_leave_no_memory_and_no_descriptor_behind(authority):
    peer, trust = Peer(authority.server()), Trust(authority.file)
    descriptors = len(os.listdir("/proc/self/fd"))

    def resident():
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for i in range(1000):
        client = Session(trust, peer.ours.fileno(), "localhost")
        client.step()
        peer.take()
        peer.incoming.read()
        if i == 200:
            warm = resident()
    assert resident() - warm < 8 << 20          # each has 84 KiB of buffers
    assert len(os.listdir("/proc/self/fd")) == descriptors
    peer.close()
