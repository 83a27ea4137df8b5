"""The feed hands on every frame, says when it missed some, and comes back or stops as it should."""
import asyncio
import logging
import socket
import struct

import msgspec
import pytest

from hftpipe import schema
from hftpipe.alpaca import session, stream
from hftpipe.alpaca._codec import Decoder
from hftpipe.alpaca.feed import Feed
from hftpipe.errors import ConfigError, DataError
from tests.wsserver import BINARY, CLOSE, PING, TEXT, Client, Server, eventually, frame

SYMBOLS = ["AAPL", "BTC/USD"]
SECRET = "canary-9e1b"
OK1, OK2 = [{"T": "success", "msg": "connected"}], [{"T": "success", "msg": "authenticated"}]
TRADE = {"T": "t", "S": "AAPL", "i": 1, "p": 10.5, "s": 3, "t": "2026-03-02T14:30:00Z"}


class Sink:
    def __init__(self):
        self.frames: list[tuple[bytes, int]] = []
        self.gaps: list[int] = []

    def take(self, payload: memoryview, ts_recv: int) -> None:
        self.frames.append((bytes(payload), ts_recv))

    @property
    def payloads(self) -> list[bytes]:
        return [p for p, _ in self.frames]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Reconnect at once, so that tests of reconnecting do not wait for it."""
    monkeypatch.setattr(stream, "BACKOFF_FIRST", 0.001)
    monkeypatch.setattr(stream, "BACKOFF_MAX", 0.01)


async def greet(c: Client) -> None:
    await c.upgrade()
    await c.send(OK1)
    assert await c.receive() == {"action": "auth", "key": "k", "secret": SECRET}
    await c.send(OK2)
    wanted = await c.receive()
    assert wanted == {"action": "subscribe", "trades": SYMBOLS, "quotes": SYMBOLS}
    await c.send([{"T": "subscription", "trades": SYMBOLS, "quotes": SYMBOLS}])


async def calm(c: Client) -> None:
    await greet(c)
    await c.until_closed()


def make(server: Server, sink: Sink, **more) -> Feed:
    return Feed(f"{server.ws}/v2/test", "k", SECRET, SYMBOLS, sink.take, sink.gaps.append,
                **{"step_timeout": 2.0, **more})


def drive(test, *scripts, **more):
    """Run *test(feed, sink, server)* while the feed runs against *scripts*."""
    async def main():
        async with Server(*scripts) as server:
            sink, stop = Sink(), asyncio.Event()
            feed = make(server, sink, **more)
            task = asyncio.ensure_future(feed.run(stop))
            try:
                await test(feed, sink, server)
            finally:
                stop.set()
                await task
            assert not feed.live
            return feed, sink, server
    return asyncio.run(main())


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_frames_come_as_they_are_and_decode(encoding):
    async def script(c):
        await greet(c)
        for i in range(5):
            await c.send([{**TRADE, "i": i}])
        await c.until_closed()

    async def test(feed, sink, server):
        await eventually(lambda: len(sink.frames) == 5)
        assert feed.live and feed.reconnects == 0 and feed.frames == 8
        assert server.clients[0].headers["content-type"] == f"application/{encoding}"

    _, sink, server = drive(test, script, encoding=encoding)
    decoder = Decoder(SYMBOLS)
    decode = decoder.records if encoding == "msgpack" else decoder.records_json
    assert [int(decode(p)["ref"][0]) for p in sink.payloads] == list(range(5))
    stamps = [ts for _, ts in sink.frames]
    assert stamps == sorted(stamps) and stamps[0] > 0
    assert server.clients[0].closed_with == 1000        # it said goodbye


def test_data_in_the_same_packet_as_the_subscription_are_not_lost():
    async def script(c):
        await c.upgrade()
        await c.send(OK1)
        await c.receive()
        await c.send(OK2)
        await c.receive()
        full = msgspec.msgpack.encode(
            [{"T": "subscription", "trades": SYMBOLS, "quotes": SYMBOLS}])
        await c.raw(frame(full) + frame(b"one") + frame(b"two"))
        await c.raw(frame(b"three"))
        await c.until_closed()

    async def test(feed, sink, server):
        await eventually(lambda: len(sink.frames) == 3)

    assert drive(test, script)[1].payloads == [b"one", b"two", b"three"]


def test_fragmented_messages_are_put_together():
    async def script(c):
        await greet(c)
        await c.raw(frame(b"ab", fin=False) + frame(b"", PING) + frame(b"cd", 0, fin=False)
                    + frame(b"", 0) + frame(b"next"))
        await c.until_closed()

    async def test(feed, sink, server):
        await eventually(lambda: len(sink.frames) == 2)

    assert drive(test, script)[1].payloads == [b"abcd", b"next"]


async def end_close(c):
    await c.raw(frame(struct.pack(">H", 1001), CLOSE))
    await c.until_closed()


async def end_reset(c):
    c.reset()


async def end_eof(c):
    c.writer.close()


async def end_slow(c):
    await c.send([{"T": "error", "code": 407, "msg": "slow client"}])
    await c.until_closed()


async def end_internal(c):
    await c.send([{"T": "error", "code": 500, "msg": "internal error"}])
    await c.until_closed()


async def end_protocol(c):
    await c.raw(frame(b"x", rsv=4))
    await c.until_closed()


async def end_no_start(c):
    await c.raw(frame(b"x", 0))
    await c.until_closed()


async def end_two_starts(c):
    await c.raw(frame(b"x", fin=False) + frame(b"y"))
    await c.until_closed()


async def end_oversized(c):
    await c.raw(frame(b"x" * 5000))
    await c.until_closed()


async def end_oversized_parts(c):
    for i in range(5):
        await c.raw(frame(b"x" * 900, 0 if i else BINARY, fin=False))
    await c.until_closed()


@pytest.mark.parametrize("end", [end_close, end_reset, end_eof, end_slow, end_internal,
                                 end_protocol, end_no_start, end_two_starts, end_oversized,
                                 end_oversized_parts])
def test_every_end_is_a_gap_and_a_reconnect(end):
    async def first(c):
        await greet(c)
        await c.send([TRADE])
        await end(c)

    async def second(c):
        await greet(c)
        await c.send([TRADE])
        await c.until_closed()

    async def test(feed, sink, server):
        await eventually(lambda: len(sink.frames) == 2 and feed.live)
        assert len(sink.gaps) == feed.gaps == 1
        assert sink.frames[0][1] < sink.gaps[0] < sink.frames[1][1]
        assert feed.reconnects == 1 and feed.errors >= 1

    _, sink, _ = drive(test, first, second, frame_max=4000)
    assert len(sink.gaps) == 2                          # the end of the run is one as well


@pytest.mark.parametrize("answers", [
    [[{"T": "error", "code": 406, "msg": "connection limit exceeded"}]],
    [OK1, [{"T": "error", "code": 404, "msg": "auth timeout"}]],
    [OK1, OK2, [{"T": "error", "code": 500, "msg": "internal"}]],
    [b"not msgpack at all"], [[]], [OK2]])
def test_what_may_pass_is_tried_again_without_a_gap(answers):
    async def refuse(c):
        await c.upgrade()
        for answer in answers:
            await c.send(answer)
            await c.receive()

    async def test(feed, sink, server):
        await eventually(lambda: feed.live)
        assert feed.reconnects == 3 and not sink.gaps and len(server.clients) == 4

    drive(test, refuse, refuse, refuse, calm)


def says(code):
    async def script(c):
        await greet(c)
        await c.send([TRADE])
        await c.send([{"T": "error", "code": code, "msg": session.MEANING.get(code, "?")}])
        await c.send([TRADE])
        await c.until_closed()
    return script


@pytest.mark.parametrize("code", [*session.CODES, 499])
def test_each_error_code_of_a_live_stream_stops_backs_off_or_is_reported(code):
    action = session.CODES.get(code, session.BACKOFF)
    if action == session.STOP:
        assert f"error {code}" in stopped(says(code))
        return

    async def test(feed, sink, server):
        if action == session.REPORT:
            await eventually(lambda: len(sink.frames) == 2)
            assert feed.reports == 1 and feed.live and len(server.clients) == 1
        else:
            await eventually(lambda: len(server.clients) == 2 and feed.live)
            assert len(sink.gaps) == 1 and f"error {code}" in str(feed.last_error)

    drive(test, says(code), calm)


@pytest.mark.parametrize("status", [429, 500, 502, 302])
def test_handshake_refusals_that_may_pass(status):
    async def refuse(c):
        await c.head()
        await c.raw(f"HTTP/1.1 {status} No\r\nLocation: ws://127.0.0.1:1/\r\n"
                    "Content-Length: 0\r\n\r\n".encode())

    async def test(feed, sink, server):
        await eventually(lambda: feed.live)

    drive(test, refuse, refuse, calm)


def stopped(*scripts, **more) -> str:
    """Message of the ConfigError that ends run() by itself."""
    async def main():
        async with Server(*scripts) as server:
            sink = Sink()
            feed = make(server, sink, **more)
            with pytest.raises(ConfigError) as failure:
                await asyncio.wait_for(feed.run(asyncio.Event()), 10)
            assert not feed.live
            assert len(server.clients) == len(scripts)
            return str(failure.value)
    return asyncio.run(main())


@pytest.mark.parametrize("answers, text", [
    ([OK1, [{"T": "error", "code": 402, "msg": "auth failed"}]], "error 402: auth failed"),
    ([OK1, [{"T": "error", "code": 409, "msg": "insufficient subscription"}]], "error 409"),
    ([OK1, [{"T": "error", "code": 411, "msg": "scope"}]], "error 411"),
    ([OK1, OK2, [{"T": "error", "code": 405, "msg": "symbol limit exceeded"}]], "error 405"),
    ([OK1, OK2, [{"T": "error", "code": 410, "msg": "invalid"}]], "error 410"),
    ([OK1, OK2, [{"T": "subscription", "trades": ["AAPL"], "quotes": SYMBOLS}]],
     "trades of BTC/USD not subscribed: the venue gave 1 of 2")])
def test_what_cannot_pass_stops_the_feed(answers, text):
    async def refuse(c):
        await c.upgrade()
        for answer in answers:
            await c.send(answer)
            await c.receive()

    message = stopped(refuse)
    assert text in message and SECRET not in message and "feed ws://" in message


@pytest.mark.parametrize("status", [401, 403, 404])
def test_handshake_refusals_that_cannot_pass(status):
    async def refuse(c):
        await c.head()
        await c.raw(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n".encode())

    assert str(status) in stopped(refuse)


def test_a_stop_in_the_middle_of_a_run_ends_it_too():
    async def script(c):
        await greet(c)
        await c.send([{"T": "error", "code": 402, "msg": "auth failed"}])
        await c.until_closed()

    assert "error 402" in stopped(script)


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_reports_are_counted_and_change_nothing(encoding, caplog):
    async def script(c):
        await greet(c)
        await c.send([{"T": "error", "code": 405, "msg": "symbol limit exceeded"}])
        await c.send([{"T": "success", "msg": "whatever"}])
        await c.send([TRADE])
        await c.until_closed()

    async def test(feed, sink, server):
        await eventually(lambda: sink.frames)
        assert feed.reports == 1 and feed.live and len(sink.frames) == 1

    with caplog.at_level(logging.ERROR, "hftpipe.alpaca"):
        drive(test, script, encoding=encoding)
    assert "error 405" in caplog.text


def test_a_mute_socket_is_left_when_data_are_due_and_only_then():
    due = False

    async def mute(c):                                  # answers pings, sends nothing
        await greet(c)
        await c.send([TRADE])
        await c.until_closed()

    async def test(feed, sink, server):
        nonlocal due
        await eventually(lambda: sink.frames)
        for _ in range(200):                            # many checks, none of them in session
            await asyncio.sleep(0)
        assert len(server.clients) == 1
        due = True
        await eventually(lambda: len(server.clients) == 2 and feed.live)
        assert "no data for" in str(feed.last_error) and len(sink.gaps) == 1

    drive(test, mute, silence=lambda: 0.05 if due else None)


def test_pings_go_out_and_a_peer_that_does_not_answer_is_left():
    async def deaf(c):
        await greet(c)
        opcode, _ = await c.frame()
        assert opcode == PING
        await c.reader.read()                           # takes everything, answers nothing

    async def test(feed, sink, server):
        await eventually(lambda: len(server.clients) == 2 and feed.live)
        assert len(sink.gaps) == 1

    drive(test, deaf, calm, ping=0.05)


def test_server_pings_are_answered():
    async def script(c):
        await greet(c)
        await c.raw(frame(b"are you there", PING))
        assert await c.frame() == (10, b"are you there")
        await c.send([TRADE])
        await c.until_closed()

    async def test(feed, sink, server):
        await eventually(lambda: sink.frames)

    drive(test, script)


def test_waits_grow_with_jitter_and_start_again_after_data(monkeypatch):
    monkeypatch.setattr(stream, "BACKOFF_FIRST", 0.25)
    monkeypatch.setattr(stream, "BACKOFF_MAX", 30.0)
    waits: list[float] = []
    real = asyncio.wait_for

    async def no_wait(awaitable, timeout):
        waits.append(timeout)
        return await real(awaitable, 0)

    monkeypatch.setattr(stream.asyncio, "wait_for", no_wait)
    calls = 0

    async def script(c):
        nonlocal calls
        calls += 1
        if calls == 12:
            await greet(c)
            await c.send([TRADE])
            await end_eof(c)
        elif calls == 13:
            await calm(c)
        else:
            await end_eof(c)

    async def test(feed, sink, server):
        await eventually(lambda: calls == 13 and feed.live)

    drive(test, script)
    for i, wait in enumerate(waits[:11]):
        top = min(0.25 * 2 ** i, 30.0)
        assert top / 2 <= wait <= top
    assert waits[11] <= 0.25
    assert len(set(waits)) == len(waits)


def test_stop_while_connecting_or_waiting_is_prompt():
    async def main():
        async def never(c):
            await c.head()
            await c.reader.read()

        async with Server(never) as server:
            stop = asyncio.Event()
            task = asyncio.ensure_future(make(server, Sink(), step_timeout=60.0).run(stop))
            await eventually(lambda: server.clients)
            stop.set()
            await asyncio.wait_for(task, 5)
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        listener.close()
        stop = asyncio.Event()
        feed = Feed(f"ws://127.0.0.1:{port}/", "k", "s", SYMBOLS, print, print)
        task = asyncio.ensure_future(feed.run(stop))
        await eventually(lambda: feed.errors >= 2)      # refused, tried again
        stop.set()
        await asyncio.wait_for(task, 5)
    asyncio.run(main())


def test_a_cancelled_run_leaves_nothing_behind():
    async def main():
        async with Server(calm) as server:
            sink = Sink()
            feed = make(server, sink)
            task = asyncio.ensure_future(feed.run(asyncio.Event()))
            await eventually(lambda: feed.live)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not feed.live and len(sink.gaps) == 1
    asyncio.run(main())


def test_what_the_sink_raises_ends_the_run():
    async def main():
        async def script(c):
            await greet(c)
            await c.send([TRADE])
            await c.until_closed()

        async with Server(script) as server:
            def broken(payload, ts_recv):
                raise RuntimeError("the ring is gone")

            feed = Feed(f"{server.ws}/", "k", SECRET, SYMBOLS, broken, print)
            with pytest.raises(RuntimeError, match="the ring is gone"):
                await asyncio.wait_for(feed.run(asyncio.Event()), 10)
    asyncio.run(main())


@pytest.mark.parametrize("more, text", [
    ({"url": "http://x/"}, "ws:// or wss://"), ({"encoding": "xml"}, "msgpack or json"),
    ({"channels": ["trade"]}, "channels trade"), ({"channels": []}, "channels none"),
    ({"symbols": []}, "0 symbols")])
def test_bad_settings_are_refused(more, text):
    settings = {"url": "ws://x/", "key": "k", "secret": SECRET, "symbols": ["A"], "sink": print,
                "gap": print, **more}
    with pytest.raises(ConfigError, match=text):
        Feed(**settings)


def test_the_secret_shows_in_no_log_nor_error(caplog):
    async def refuse(c):
        await c.upgrade()
        await c.send(OK1)
        await c.receive()
        await c.send([{"T": "error", "code": 404, "msg": "auth timeout"}])
        await c.until_closed()

    async def test(feed, sink, server):
        await eventually(lambda: feed.live)
        assert SECRET not in repr(feed) + str(feed.last_error)

    with caplog.at_level(logging.DEBUG):
        drive(test, refuse, calm)
    assert "trying again" in caplog.text and SECRET not in caplog.text


def test_gap_then_snapshot_in_records():
    """The whole of it: quotes, a lost connection, and the book is stale until the next quote."""
    quote = {"T": "q", "S": "AAPL", "bp": 1.0, "bs": 1, "ap": 1.5, "as": 1, "t": TRADE["t"]}

    async def script(c):
        await greet(c)
        await c.send([quote, quote])
        await end_eof(c)

    async def again(c):
        await greet(c)
        await c.send([quote])
        await c.until_closed()

    decoder, kinds = Decoder(SYMBOLS), []
    K = schema.MARKET_KIND

    async def main():
        async with Server(script, again) as server:
            stop = asyncio.Event()
            feed = Feed(f"{server.ws}/", "k", SECRET, SYMBOLS,
                        lambda p, ts: kinds.extend(decoder.records(p, ts)["kind"].tolist()),
                        lambda ts: kinds.extend(decoder.gap(ts)["kind"].tolist()))
            task = asyncio.ensure_future(feed.run(stop))
            await eventually(lambda: len(kinds) >= 10)
            stop.set()
            await task
    asyncio.run(main())
    quotes = [K.QUOTE, K.QUOTE]
    assert kinds[:10] == [K.CLEAR, *quotes, *quotes, K.GAP, K.GAP, K.CLEAR, *quotes]


def test_a_frame_the_decoder_refuses_reconnects():
    async def script(c):
        await greet(c)
        await c.raw(frame(b"\x91\xc1", BINARY) + frame(b"", TEXT))
        await c.until_closed()

    decoder = Decoder(SYMBOLS)

    async def main():
        async with Server(script, calm) as server:
            stop, gaps = asyncio.Event(), []
            feed = Feed(f"{server.ws}/", "k", SECRET, SYMBOLS,
                        lambda p, ts: decoder.records(p, ts), gaps.append)
            task = asyncio.ensure_future(feed.run(stop))
            await eventually(lambda: len(server.clients) == 2 and feed.live)
            assert len(gaps) == 1 and isinstance(feed.last_error, DataError)
            stop.set()
            await task
    asyncio.run(main())
