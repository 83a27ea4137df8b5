"""A feed received in the loop gives every record, and a GAP the moment anything was lost."""
import asyncio
import threading
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


def drive_with(until, *scripts, ping=10.0, authority=None, context=None, first=0.001,
               longest=0.01, silence=None):
    """Kinds of the records that came until *until(kinds, source)*, from a loop in a thread."""
    trust = Trust(authority.file) if authority else None

    async def main():
        async with Server(*scripts, context=context) as server:
            source = SocketSource(
                lambda: session.open_data_stream(f"{server.ws}/", "k", "s", SYMBOLS, timeout=2.0,
                                                 trust=trust),
                Decoder(SYMBOLS), first=first, longest=longest, ping=ping, silence=silence)

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


def says(code):
    async def script(c):
        await greet(c)
        await c.send([QUOTE])
        await c.send([{"T": "error", "code": code, "msg": session.MEANING.get(code, "?")}])
        await c.send([QUOTE])
        await c.until_closed()
    return script


def test_every_error_code_of_the_reference_has_a_class_and_a_meaning():
    assert set(session.CODES) == set(session.MEANING) == {*range(400, 414), 500}


CLASSES = {action: [c for c, a in session.CODES.items() if a == action]
           for action in (session.STOP, session.BACKOFF, session.REPORT)}


@pytest.mark.parametrize("code", [*CLASSES[session.BACKOFF], 499])
def test_a_code_to_back_off_from_ends_the_connection(drive, code):
    def until(kinds, source):
        return source.connections == 2 and kinds[-3:] == FRESH

    kinds, source = drive(until, says(code), quote_then_calm)
    assert f"error {code}" in source.closed and source.error is None
    assert GAPS == [k for k in kinds if k == K.GAP]


@pytest.mark.parametrize("code", CLASSES[session.STOP])
def test_a_code_to_stop_at_ends_the_stage(drive, code):
    _, source = drive(lambda kinds, source: source.error is not None, says(code))
    assert source.error.final and f"error {code}" in str(source.error)
    assert not source.connected and source.connections == 1


@pytest.mark.parametrize("code", CLASSES[session.REPORT])
def test_a_code_to_report_changes_nothing(drive, code):
    kinds, source = drive(lambda kinds, source: len(kinds) == 5 and source.reports == 1, says(code))
    assert kinds == FRESH + NEXT and f"error {code}" in source.report
    assert source.closed is None and source.connections == 1 and source.error is None


def test_a_mute_connection_is_left_when_data_are_due_and_only_then(drive):
    due, asked = False, 0

    def silence():
        nonlocal asked
        asked += 1
        return 0.05 if due else None

    def until(kinds, source):
        nonlocal due
        due = due or asked > 500                # many looks, none of them in session
        return source.connections == 2 and kinds[-3:] == FRESH

    kinds, source = drive(until, quote_then_calm, quote_then_calm, silence=silence)
    assert kinds == FRESH + GAPS + FRESH and source.closed.startswith("no data for")


def test_waits_double_to_their_longest_and_start_again_only_after_data(drive, monkeypatch):
    waits = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            if timeout is not None and threading.current_thread().name == "feed-connect":
                waits.append(timeout)
                return super().wait(0)
            return super().wait(timeout)

    monkeypatch.setattr(threading, "Event", Event)

    async def taken_and_dropped(c):             # a handshake is no data
        await greet(c)
        c.writer.close()

    async def data_then_end(c):
        await greet(c)
        await c.send([QUOTE])
        c.writer.close()

    drive(lambda kinds, source: source.connections == 12 and kinds[-3:] == FRESH,
          *[taken_and_dropped] * 10, data_then_end, quote_then_calm, first=0.25, longest=30.0)
    assert len(waits) == 11
    for i, wait in enumerate(waits[:10]):
        top = min(0.25 * 2 ** i, 30.0)
        assert top / 2 <= wait <= top
    assert 0.125 <= waits[10] <= 0.25           # far below the two seconds of a first reconnect


@pytest.mark.parametrize("url, wanted", [
    ("wss://stream.data.alpaca.markets/v2/iex", ("trades", "quotes", "statuses", "lulds")),
    ("wss://stream.data.alpaca.markets/v2/sip/", ("trades", "quotes", "statuses", "lulds")),
    ("ws://127.0.0.1:1/v2/test", ("trades", "quotes")),
    ("ws://127.0.0.1:1/v1beta3/crypto/us", ("trades", "quotes", "orderbooks")),
    ("ws://127.0.0.1:1/", ("trades", "quotes"))])
def test_a_run_subscribes_to_all_that_its_stream_has(url, wanted):
    assert session.channels_of(url) == wanted


@pytest.mark.parametrize("refusals", [1, 9])
def test_a_ghost_of_the_session_before_is_waited_for(drive, refusals):
    """406 until the venue has forgotten the dead one: at the start, and after a loss."""
    async def ghost(c):
        await c.upgrade()
        await c.send([{"T": "success", "msg": "connected"}])
        await c.receive()
        await c.send([{"T": "error", "code": 406, "msg": "connection limit exceeded"}])
        await c.until_closed()

    async def drop(c):
        await greet(c)
        await c.send([QUOTE])
        c.writer.close()

    kinds, source = drive(lambda kinds, source: len(kinds) == 8, *[ghost] * refusals, drop,
                          *[ghost] * refusals, quote_then_calm)
    assert kinds == FRESH + GAPS + FRESH
    assert source.connections == 2 and source.error is None

