"""The in-loop WebSocket receiver gives every message once, whole, and never more than allowed."""
import asyncio
import socket
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe._clock import now_ns
from hftpipe.alpaca import session
from hftpipe.alpaca._socket import Receiver
from hftpipe.alpaca.session import StreamError
from hftpipe.errors import ConfigError, DataError, DeadlineError
from tests.wsserver import BINARY, CLOSE, PING, PONG, TEXT, Client, Server, frame


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    receivers = []

    def make(**more):
        receivers.append(Receiver(ours, **more))
        return receivers[0]

    yield make, theirs
    ours.close()
    theirs.close()


def unmask(raw: bytes) -> list[tuple[int, bytes]]:
    """Frames a client sent, after checking that they are masked."""
    out = []
    while raw:
        assert raw[1] & 0x80
        size, at = raw[1] & 0x7f, 2
        if size == 126:
            size, at = struct.unpack(">H", raw[2:4])[0], 4
        key, data = raw[at:at + 4], raw[at + 4:at + 4 + size]
        out.append((raw[0], bytes(c ^ key[i & 3] for i, c in enumerate(data))))
        raw = raw[at + 4 + size:]
    return out


def drain(receiver) -> list[tuple[int, bytes]]:
    found = []
    while (one := receiver.poll()) is not None:
        found.append(one[:2])
    return found


def test_messages_of_all_length_forms(pair):
    make, theirs = pair
    receiver = make()
    assert receiver.poll() is None
    sizes = [0, 1, 125, 126, 127, 65535, 65536, 100_000]
    for n in sizes:
        before = now_ns()
        theirs.sendall(frame(bytes(n)))
        found = None
        while found is None:
            found = receiver.poll()
        opcode, payload, ts = found
        assert (opcode, len(payload)) == (BINARY, n) and before <= ts <= now_ns()
    theirs.sendall(frame(b"a", width=2) + frame(b"b", width=8) + frame(b"c", TEXT))
    assert drain(receiver) == [(BINARY, b"a"), (BINARY, b"b"), (TEXT, b"c")]
    assert receiver.counters["frames"] == len(sizes) + 3


PARTS = st.lists(st.tuples(
    st.lists(st.binary(max_size=300), min_size=1, max_size=4),      # fragments of one message
    st.sampled_from([TEXT, BINARY]), st.booleans()), max_size=8)


@given(PARTS, st.integers(1, 200), st.integers(300, 2000))
@settings(max_examples=150)
def test_any_fragments_in_any_pieces_with_pings_in_between(parts, piece, limit):
    ours, theirs = socket.socketpair()
    receiver = Receiver(ours, message_max=limit)
    raw, wanted, pings = b"", [], []
    for fragments, opcode, ping in parts:
        fragments = fragments if sum(map(len, fragments)) <= limit else fragments[:1]
        for i, fragment in enumerate(fragments):
            raw += frame(fragment, 0 if i else opcode, fin=i == len(fragments) - 1)
            if ping:
                pings.append(bytes([len(pings)]) * 5)
                raw += frame(pings[-1], PING) + frame(b"", PONG)
        wanted.append((opcode, b"".join(fragments)))
    found = []
    for at in range(0, len(raw), piece):
        theirs.sendall(raw[at:at + piece])
        found += drain(receiver)
    assert found == wanted
    theirs.setblocking(False)
    sent = unmask(theirs.recv(1 << 20)) if pings else []
    assert sent == [(0x80 | PONG, p) for p in pings]
    assert receiver.counters["pings"] == len(pings)
    ours.close()
    theirs.close()


def test_time_is_that_of_the_first_byte(pair):
    make, theirs = pair
    receiver = make()
    whole, split = frame(b"first"), frame(b"second" * 10)
    theirs.sendall(whole + split[:5])
    _, _, first = receiver.poll()
    assert receiver.poll() is None
    between = now_ns()
    theirs.sendall(split[5:] + frame(b"third")[:1])
    _, payload, second = receiver.poll()
    assert payload == b"second" * 10 and second == first < between
    assert receiver.poll() is None
    theirs.sendall(frame(b"third")[1:])
    _, payload, third = receiver.poll()
    assert payload == b"third" and third > between


def test_many_messages_through_a_small_buffer(pair):
    make, theirs = pair
    receiver = make(message_max=1000)
    wanted = [bytes([i & 255]) * (i * 7 % 1000) for i in range(3000)]
    found = []
    for i in range(0, 3000, 20):
        theirs.sendall(b"".join(frame(w) for w in wanted[i:i + 20]))
        found += [payload for _, payload in drain(receiver)]
    assert found == wanted


def test_bytes_behind_the_handshake_come_first(pair):
    make, theirs = pair
    raw = frame(b"behind") + frame(b"more")
    receiver = make(leftover=raw[:-2])
    assert receiver.poll()[1] == b"behind" and receiver.poll() is None
    theirs.sendall(raw[-2:])
    assert receiver.poll()[1] == b"more"
    with pytest.raises(DataError, match="behind the handshake"):
        Receiver(theirs, b"x" * 200_000, 1000)


@pytest.mark.parametrize("raw, text", [
    (frame(b"x" * 1001), "larger than 1000"), (frame(b"x" * 1001, width=8), "larger than 1000"),
    (b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "larger than 1000"),
    (frame(b"x" * 600, fin=False) + frame(b"x" * 401, 0), "larger than 1000"),
    (frame(b"x", masked=True), "RFC 6455"), (frame(b"x", rsv=4), "RFC 6455"),
    (frame(b"x", 3), "RFC 6455"), (frame(b"x", 11), "RFC 6455"), (frame(b"x", 0), "RFC 6455"),
    (frame(b"x", fin=False) + frame(b"y"), "RFC 6455"),
    (frame(b"x", PING, fin=False), "RFC 6455"), (frame(b"x" * 126, PING), "RFC 6455"),
    (frame(b"x", CLOSE), "RFC 6455")], ids=range(13))
def test_what_a_server_may_not_send_ends_it_for_good(pair, raw, text):
    make, theirs = pair
    receiver = make(message_max=1000)
    theirs.sendall(frame(b"good") + raw + frame(b"never seen"))
    assert receiver.poll()[1] == b"good"
    for _ in range(3):
        with pytest.raises(DataError, match=text):
            receiver.poll()


@pytest.mark.parametrize("payload, code", [(struct.pack(">H", 1001) + b"bye", 1001), (b"", 1005)])
def test_close_is_answered_and_final(pair, payload, code):
    make, theirs = pair
    receiver = make()
    theirs.sendall(frame(payload, CLOSE) + frame(b"never seen"))
    for _ in range(2):
        with pytest.raises(ConnectionError, match=f"code {code}"):
            receiver.poll()
    assert receiver.close_code == code
    assert unmask(theirs.recv(100)) == [(0x80 | CLOSE, payload[:2])]


def test_end_of_stream_and_reset_are_different_errors():
    ours, theirs = socket.socketpair()
    receiver = Receiver(ours)
    theirs.close()
    with pytest.raises(ConnectionError, match="code 1006"):
        receiver.poll()
    ours.close()
    listener = socket.create_server(("127.0.0.1", 0))
    ours = socket.create_connection(listener.getsockname())
    theirs, _ = listener.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    receiver = Receiver(ours)
    theirs.close()
    with pytest.raises(ConnectionError, match="reset by peer"):
        receiver.receive(5)
    ours.close()
    listener.close()


def test_sending_masks_and_says_when_there_is_no_room(pair):
    make, theirs = pair
    receiver = make()
    for size in (0, 1, 125, 126, 5000):
        receiver.send(BINARY, b"\xaa" * size)
        raw = b""
        while len(raw) < size + 6:
            raw += theirs.recv(65536)
        assert unmask(raw) == [(0x82, b"\xaa" * size)]
    with pytest.raises(ConnectionError, match="no room to send 17000"):
        receiver.send(BINARY, bytes(17000))
    with pytest.raises(ConnectionError, match="no room"):
        for _ in range(1000):                   # the peer reads nothing
            receiver.send(BINARY, bytes(10000))
    for _ in range(50):                         # and pings are dropped, not queued without end
        theirs.sendall(frame(b"p" * 125, PING))
        assert receiver.poll() is None
    assert receiver.counters["pings"] == 50


def test_receive_has_a_deadline(pair):
    make, _ = pair
    with pytest.raises(DeadlineError, match=r"within 0\.01 s"):
        make().receive(0.01)


# ---------------------------------------------------------------- with its handshake

SYMBOLS = ["AAPL", "MSFT"]


async def greet(c: Client, behind: bytes = b"") -> None:
    await c.upgrade()
    await c.send([{"T": "success", "msg": "connected"}])
    auth = await c.receive()
    assert auth == {"action": "auth", "key": "k", "secret": "s"}
    await c.send([{"T": "success", "msg": "authenticated"}])
    wanted = await c.receive()
    assert wanted.pop("action") == "subscribe"
    binary = c.headers["content-type"] == "application/msgpack"
    full = {"T": "subscription", **wanted, "bars": [], "corrections": []}
    raw = (msgspec.msgpack if binary else msgspec.json).encode([full])
    await c.raw(frame(raw, BINARY if binary else TEXT) + behind)


def connect(server, **more):
    return asyncio.to_thread(session.open_data_stream, f"{server.ws}/v2/test?a=1", "k", "s",
                             SYMBOLS, **{"timeout": 2.0, **more})


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_data_stream_is_ready_for_the_loop(encoding):
    async def main():
        async def script(c):
            await greet(c, frame(b"data at once"))
            await c.until_closed()

        async with Server(script) as server:
            receiver = await connect(server, encoding=encoding)
            assert await asyncio.to_thread(receiver.receive, 2) == b"data at once"
            assert server.clients[0].request == "GET /v2/test?a=1 HTTP/1.1"
            assert server.clients[0].headers["content-type"] == f"application/{encoding}"
            receiver.close()
    asyncio.run(main())


async def say(c, *answers):
    await c.upgrade()
    for answer in answers:
        await c.send(answer)
        await c.receive()
    await c.until_closed()


OK1, OK2 = [{"T": "success", "msg": "connected"}], [{"T": "success", "msg": "authenticated"}]


def error(code):
    return [{"T": "error", "code": code, "msg": f"e{code}"}]


@pytest.mark.parametrize("answers, text, final", [
    ([error(406)], "error 406", False), ([OK1, error(402)], "error 402: e402", True),
    ([OK1, error(404)], "error 404", False), ([OK1, error(409)], "error 409", True),
    ([OK1, OK2, error(405)], "error 405", True), ([OK1, OK2, error(500)], "error 500", False),
    ([OK1, OK2, error(777)], "error 777", False), ([OK2], "wanted 'connected'", False),
    ([OK1, OK2, OK2], "wanted the subscription", False), ([[]], "wanted 'connected'", False),
    ([OK1, OK2, [{"T": "subscription", "trades": ["AAPL"], "quotes": SYMBOLS}]],
     "trades of MSFT not subscribed", True),
    ([OK1, OK2, [{"T": "subscription", "quotes": SYMBOLS}]], "trades of AAPL, MSFT", True)])
def test_refusals_tell_whether_trying_again_can_help(answers, text, final):
    async def main():
        async with Server(lambda c: say(c, *answers)) as server:
            with pytest.raises(StreamError, match=text) as failure:
                await connect(server)
            assert failure.value.final is final
    asyncio.run(main())


def test_already_authenticated_and_the_star_are_as_good():
    async def main():
        async def script(c):
            await say(c, OK1, error(403), [{"T": "subscription", "trades": ["*"], "quotes": ["*"]}])

        async with Server(script) as server:
            (await connect(server)).close()
    asyncio.run(main())


@pytest.mark.parametrize("answer, kind, text, final", [
    (b"HTTP/1.1 429 Too Many\r\n\r\n", StreamError, "found 'HTTP/1.1 429", False),
    (b"HTTP/1.1 401 No\r\n\r\n", StreamError, "found 'HTTP/1.1 401", True),
    (b"HTTP/1.1 302 Found\r\nLocation: ws://x/\r\n\r\n", StreamError, "302", False),
    (b"HTTP/1.1 101 OK\r\nSec-WebSocket-Accept: wrong\r\n\r\n", StreamError, "not answer ours",
     False),
    (b"", StreamError, "end of the stream", False), (b"junk\r\n\r\n", StreamError, "junk", False),
    (b"x" * 70000, StreamError, "too long", False)])
def test_bad_handshakes(answer, kind, text, final):
    async def main():
        async def script(c):
            await c.head()
            await c.raw(answer)

        async with Server(script) as server:
            with pytest.raises(kind, match=text) as failure:
                await connect(server)
            assert failure.value.final is final
    asyncio.run(main())


def test_silence_of_the_venue_is_a_deadline():
    async def main():
        async def mute(c):
            await c.head()
            await c.until_closed()

        async def half(c):
            await c.upgrade()
            await c.until_closed()

        async with Server(mute, half) as server:
            for _ in range(2):
                with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
                    await connect(server, timeout=0.05)
    asyncio.run(main())


@pytest.mark.parametrize("url", ["x", "http://x/", "ws://", "wss:///path"])
def test_only_websockets_are_streams(url):
    with pytest.raises(ConfigError, match=r"must be ws\(s\)://host"):
        session.open_websocket(url)
