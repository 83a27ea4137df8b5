"""A feed received in the loop gives every record, and a GAP the moment anything was lost."""
import asyncio
from functools import partial

import msgspec
import pytest

from hftpipe import schema
from hftpipe._ring import pair
from hftpipe._stage_feed import FeedStage
from hftpipe.alpaca import session
from hftpipe.alpaca._codec import Decoder
from hftpipe.alpaca._source import SocketSource
from hftpipe.alpaca._tls import Trust
from hftpipe.errors import ConfigError
from tests.tls import Authority
from tests.wsserver import PING, Server, frame

K = schema.MARKET_KIND
SYMBOLS = ["AAPL", "MSFT"]
QUOTE = {"T": "q", "S": "AAPL", "bp": 1.0, "bs": 1, "ap": 1.5, "as": 1}
GAPS = [K.GAP, K.GAP]
FRESH, NEXT = [K.CLEAR, K.QUOTE, K.QUOTE], [K.QUOTE, K.QUOTE]


async def greet(c):
    await c.upgrade()
    await c.send([{"T": "success", "msg": "connected"}])
    await c.receive()
    await c.send([{"T": "success", "msg": "authenticated"}])
    wanted = await c.receive()
    await c.send([{"T": "subscription", **{k: v for k, v in wanted.items() if k != "action"}}])


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["ws", "wss"])
def drive(request):
    """Everything holds over TLS too."""
    if request.param == "ws":
        return drive_with
    ca = request.getfixturevalue("authority")
    return partial(drive_with, authority=ca, context=ca.server())


def drive_with(until, *scripts, ping=10.0, authority=None, context=None):
    """Kinds of the records that came until *until(kinds, source)*, from a loop in a thread."""
    trust = Trust(authority.file) if authority else None

    async def main():
        async with Server(*scripts, context=context) as server:
            source = SocketSource(
                lambda: session.open_data_stream(f"{server.ws}/", "k", "s", SYMBOLS, timeout=2.0,
                                                 trust=trust),
                Decoder(SYMBOLS), first=0.001, longest=0.01, ping=ping)

            def loop():
                producer, consumer = pair(schema.MARKET, 4096)
                stage = FeedStage(producer, source=source)
                source.open()
                kinds = []
                for _ in range(10_000_000):
                    stage.do_work()
                    source.tend()
                    while (raw := consumer.pop()) is not None:
                        kinds.append(raw[schema.MARKET.offsets["kind"]])
                    consumer.flush()
                    if until(kinds, source):
                        return kinds
                raise AssertionError(f"it never came: {kinds}")

            try:
                return await asyncio.wait_for(asyncio.to_thread(loop), 30), source
            finally:
                source.close()
    return asyncio.run(main())


async def quote_then_calm(c):
    await greet(c)
    await c.send([QUOTE])
    await c.until_closed()


def test_a_lost_connection_is_a_gap_at_once_and_a_snapshot_after(drive):
    seen_down = []

    async def drop(c):
        await greet(c)
        await c.send([QUOTE, QUOTE])
        c.writer.close()

    def until(kinds, source):
        if kinds[-2:] == GAPS and not source.connected:
            seen_down.append(1)                 # the GAP came before the new connection
        return len(kinds) >= 10

    kinds, source = drive(until, drop, quote_then_calm)
    assert kinds == FRESH + NEXT + GAPS + FRESH and seen_down
    assert source.connections == 2


@pytest.mark.parametrize("bad", [b"\x91\xc1", b"\x80", b"\x90\x00", bytes(2_000_000)],
                         ids=["format", "no array", "trailing", "too large"])
def test_a_frame_that_is_none_is_a_gap_and_a_new_connection(drive, bad):
    async def script(c):
        await greet(c)
        await c.send([QUOTE])
        await c.raw(frame(bad))
        await c.until_closed()

    kinds, source = drive(lambda kinds, _: len(kinds) >= 8, script, quote_then_calm)
    assert kinds == FRESH + GAPS + FRESH and source.connections == 2


def test_a_frame_with_too_many_records_is_a_gap_and_the_connection_stays(drive):
    async def script(c):
        await greet(c)
        await c.send([QUOTE])
        await c.raw(frame(msgspec.msgpack.encode([QUOTE] * 3000)))
        await c.send([QUOTE])
        await c.until_closed()

    kinds, source = drive(lambda kinds, _: len(kinds) >= 8, script)
    assert kinds == FRESH + GAPS + FRESH and source.connections == 1


def test_a_peer_that_answers_no_ping_is_left(drive):
    async def deaf(c):
        await greet(c)
        await c.send([QUOTE])
        assert (await c.frame())[0] == PING
        await c.reader.read()

    kinds, source = drive(lambda kinds, _: len(kinds) >= 8, deaf, quote_then_calm, ping=0.05)
    assert kinds == FRESH + GAPS + FRESH and source.connections == 2


def test_a_mute_peer_that_answers_pings_is_kept(drive):
    pings = 0

    async def mute(c):
        nonlocal pings
        await greet(c)
        await c.send([QUOTE])
        while True:
            opcode, data = await c.frame()
            if opcode != PING:              # goodbye: the test is over
                return
            pings += 1
            await c.raw(frame(data, 10))

    _, source = drive(lambda kinds, _: pings >= 3, mute, ping=0.2)
    assert source.connections == 1


def test_what_may_pass_is_tried_again_and_what_cannot_stops_the_stage(drive):
    async def drop(c):
        await greet(c)
        await c.send([QUOTE])
        c.writer.close()

    async def garbage(c):
        await c.upgrade()
        await c.raw(frame(b"not msgpack"))
        await c.until_closed()

    async def refuse(c):
        await c.upgrade()
        await c.send([{"T": "error", "code": 402, "msg": "auth failed"}])
        await c.until_closed()

    with pytest.raises((session.StreamError, ConfigError), match="error 402"):
        drive(lambda kinds, source: bool(source.error) and raise_it(source.error),
              drop, garbage, garbage, refuse)


def raise_it(error):
    raise error
