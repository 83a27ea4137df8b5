"""What the venue says about our orders becomes exact records, however it says it."""
import asyncio
import json
import logging
import uuid

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe.alpaca import session, stream
from hftpipe.alpaca.session import StreamError
from hftpipe.alpaca.updates import KINDS, QUIET, Reader, Updates
from hftpipe.errors import ConfigError
from tests.data import recording as recorded
from tests.wsserver import BINARY, TEXT, Client, Server, eventually

K = schema.ORDER_EVENT_KIND
RUN = 0x18AF3C
SYMBOLS = {"AAPL": 0, "BTC/USD": 1}
SECRET = "canary-77d0"
NANO = 10**9
ORDER_ID, EXECUTION = str(uuid.UUID(int=7 << 64 | 9)), "7d0b5c1e-1111-4222-8333-444455556666"
AUTHORIZED = {"stream": "authorization",
              "data": {"status": "authorized", "action": "authenticate"}}
LISTENING = {"stream": "listening", "data": {"streams": ["trade_updates"]}}


def update(event="fill", seq=17, **more) -> dict:
    order = {"id": ORDER_ID, "client_order_id": f"hp-{RUN:x}-{seq:x}", "symbol": "AAPL",
             "status": "filled", "side": "buy", "qty": "100", "filled_qty": "40",
             "filled_avg_price": "10.0333333333", "legs": None, "extended_hours": False,
             **more.pop("order", {})}
    return {"stream": "trade_updates", "data": {
        "event": event, "event_id": "01K8Z0000000000000000000AA", "execution_id": EXECUTION,
        "at": "2026-03-02T14:30:00.1234Z", "timestamp": "2026-03-02T14:30:00.123456789Z",
        "price": "10.03", "qty": "40", "position_qty": "-140", "order": order, **more}}


def read(message, reader=None) -> numpy.ndarray | None:
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    return (reader or Reader(RUN, SYMBOLS)).records(raw, 5)


# ---------------------------------------------------------------- one message

def test_fill_is_exact_in_every_field():
    row = read(update())[0]
    assert row["order"] == schema.event_id(schema.STREAM.SIGNAL, 17)
    assert (row["kind"], row["side"], row["instrument"]) == (K.FILL, 1, 0)
    assert (row["price"], row["qty"], row["cum_qty"]) == (10_030_000_000, 40 * NANO, 40 * NANO)
    assert row["position_qty"] == -140 * NANO
    assert (row["venue_id"], row["venue_id_low"]) == (7, 9)
    assert (row["execution"], row["execution_low"]) == (0x7d0b5c1e11114222, 0x8333444455556666)
    assert (row["ts_recv"], row["ts_venue"], row["event"]) == (5, 1772461800123456789, 0)


@pytest.mark.parametrize("event", sorted(KINDS))
def test_events_that_move_something(event):
    reader = Reader(RUN, SYMBOLS)
    fill = event in ("fill", "partial_fill")
    more = {} if fill else {"price": None, "qty": None, "position_qty": None, "execution_id": None}
    row = read(update(event, order={"side": "sell"}, **more), reader)[0]
    assert (row["kind"], row["side"], row["cum_qty"]) == (KINDS[event], -1, 40 * NANO)
    assert (row["price"] > 0) == (row["qty"] > 0) == (row["execution"] > 0) == fill
    assert (reader.updates, reader.errors, reader.doubts, reader.ignored) == (1, 0, 0, 0)


@pytest.mark.parametrize("event, kind", [
    ("new", K.ACKED), ("pending_new", K.ACKED), ("accepted", K.ACKED), ("fill", K.FILL),
    ("partial_fill", K.PARTIAL_FILL), ("canceled", K.CANCELED), ("expired", K.EXPIRED),
    ("rejected", K.REJECTED), ("replaced", K.REPLACED),
    ("order_cancel_rejected", K.CANCEL_REJECTED)])
def test_kinds(event, kind):
    assert read(update(event))["kind"][0] == kind


@pytest.mark.parametrize("event", sorted(QUIET))
def test_events_that_change_nothing(event):
    reader = Reader(RUN, SYMBOLS)
    assert read(update(event), reader) is None and reader.ignored == 1


@pytest.mark.parametrize("event", ["trade_bust", "trade_correct", "restated", "something_new", ""])
def test_events_that_only_rest_can_explain(event):
    reader = Reader(RUN, SYMBOLS)
    assert read(update(event), reader) is None and reader.doubts == 1


@pytest.mark.parametrize("name", [
    "hp-18af3d-11", "HP-18af3c-11", "hp-18AF3C-11", "hp-18af3c-", "hp-18af3c-0", "hp-18af3c-011",
    "hp-018af3c-11", "hp-18af3c-11x", "x", "", "hp-18af3c-111111111111111", str(uuid.uuid4())])
def test_orders_that_are_not_of_this_run_have_order_0(name):
    row = read(update(order={"client_order_id": name}))[0]
    assert row["order"] == 0 and row["kind"] == K.FILL and row["venue_id"] == 7


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**56 - 1))
def test_client_order_ids_come_back(run, seq):
    text = session.client_order_id(run, seq)
    assert len(text) <= 48
    assert session.order_of(text, run) == schema.event_id(schema.STREAM.SIGNAL, seq)
    assert session.order_of(text, run ^ 1) == 0


@given(st.integers(-2**62, 2**62))
def test_decimal_strings_are_exact(n):
    sign, n = "-" if n < 0 else "", abs(n)
    text = f"{sign}{n // NANO}.{n % NANO:09d}"
    row = read(update(position_qty=text))[0]
    assert row["position_qty"] == (-n if sign else n)


@given(st.integers(0, 2**128 - 1))
def test_ids_come_back(n):
    text = str(uuid.UUID(int=n))
    assert session.uuid_of(*session.words(text)) == text


@pytest.mark.parametrize("bad", [
    {"price": None}, {"price": "0"}, {"price": "-1"}, {"qty": "0"}, {"qty": "x"}, {"price": "1e3"},
    {"qty": "99999999999"}, {"execution_id": "no uuid"}, {"timestamp": "yesterday"},
    {"order": {"id": "17"}}, {"order": {"filled_qty": "many"}}, {"order": None}, {"event": None},
    {"order": {"symbol": 5}}, {"order": {"client_order_id": None}}])
def test_malformed_updates_are_counted_and_give_no_record(bad):
    message = update()
    order = bad.pop("order", {})
    message["data"].update(bad)
    if order is None:
        message["data"]["order"] = None
    else:
        message["data"]["order"].update(order)
    reader = Reader(RUN, SYMBOLS)
    assert read(message, reader) is None and reader.errors == 1
    assert read(update(), reader) is not None           # and the next one is read


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b'"text"',
                                 b'{"stream":5}', b'{"stream":"trade_updates","data":[]}'])
def test_what_is_no_message_is_an_error(raw):
    reader = Reader(RUN, SYMBOLS)
    assert read(raw, reader) is None and reader.errors == 1


@pytest.mark.parametrize("message", [
    {"stream": "trade_updates", "data": None}, {"stream": "trade_updates"}, {"stream": "other"},
    {"stream": "account_updates", "data": {"x": 1}}, LISTENING, {}])
def test_other_messages_are_ignored(message):
    reader = Reader(RUN, SYMBOLS)
    assert read(message, reader) is None and (reader.ignored, reader.errors) == (1, 0)


def test_foreign_symbols_are_dropped():
    reader = Reader(RUN, SYMBOLS)
    assert read(update(order={"symbol": "MSFT"}), reader) is None and reader.drops == 1


def test_error_of_the_venue_is_raised():
    with pytest.raises(StreamError, match="internal server error") as failure:
        read({"action": "error", "data": {"error_message": "internal server error"}})
    assert not failure.value.final


def test_orders_of_the_documentation_can_be_read():
    checked = 0
    for text in json.loads(recorded("alpaca/order_routes.json").read_text()):
        bodies = text["body"] if isinstance(text["body"], list) else [text["body"]]
        for body in bodies:
            if isinstance(body, dict) and "client_order_id" in body:
                message = update("new", order=body)
                reader = Reader(RUN, {body["symbol"]: 3})
                row = read(message, reader)[0]
                assert row["instrument"] == 3 and row["order"] == 0
                assert session.uuid_of(int(row["venue_id"]), int(row["venue_id_low"])) == body["id"]
                checked += 1
    assert checked > 3


# ---------------------------------------------------------------- the stream

@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stream, "BACKOFF_FIRST", 0.001)
    monkeypatch.setattr(stream, "BACKOFF_MAX", 0.01)


async def greet(c: Client, opcode: int = BINARY) -> None:
    await c.upgrade()
    assert c.request == "GET /stream HTTP/1.1" and "content-type" not in c.headers
    assert await c.receive() == {"action": "authenticate",
                                 "data": {"key_id": "k", "secret_key": SECRET}}
    await c.send(AUTHORIZED, opcode)
    assert await c.receive() == {"action": "listen", "data": {"streams": ["trade_updates"]}}
    await c.send(LISTENING, opcode)


async def calm(c: Client) -> None:
    await greet(c)
    await c.until_closed()


def drive(test, *scripts, **more):
    async def main():
        async with Server(*scripts) as server:
            rows, stop = [], asyncio.Event()
            updates = Updates(f"{server.ws}/stream", "k", SECRET, RUN, SYMBOLS, rows.append,
                              **{"step_timeout": 2.0, **more})
            task = asyncio.ensure_future(updates.run(stop))
            try:
                await test(updates, rows, server)
            finally:
                stop.set()
                await task
            assert not updates.live
    asyncio.run(main())


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_text_and_binary_frames_are_the_same(opcode):
    """Paper sends JSON in binary frames, live in text frames."""
    async def script(c):
        await greet(c, opcode)
        for seq in (1, 2, 3):
            await c.send(json.dumps(update(seq=seq)).encode(), opcode)
        await c.until_closed()

    async def test(updates, rows, server):
        await eventually(lambda: len(rows) == 3)
        assert [int(r["order"][0]) & 255 for r in rows] == [1, 2, 3]
        assert updates.live and updates.reader.updates == 3 and updates.last_data > 0

    drive(test, script)


def test_says_each_time_when_it_is_live_and_when_it_is_down():
    hooks, downs = [], []

    async def first(c):
        await greet(c)
        await c.send(json.dumps(update()).encode())
        c.reset()

    async def drop(c):
        await greet(c)
        await eventually(lambda: len(hooks) == 3)       # live long enough to be called
        c.reset()

    async def broken(c):
        await greet(c)
        await eventually(lambda: len(hooks) == 2)
        await c.send({"action": "error", "data": {"error_message": "internal server error"}})
        await c.until_closed()

    async def test(updates, rows, server):
        await eventually(lambda: len(server.clients) == 4 and updates.live and len(hooks) == 4)
        assert updates.reconnects == 3 and len(downs) == 3

    drive(test, first, broken, drop, calm, on_live=lambda: hooks.append(1),
          on_down=lambda: downs.append(1))
    assert len(downs) == 4


@pytest.mark.parametrize("answers", [
    [{"action": "error", "data": {"error_message": "internal server error"}}],
    [AUTHORIZED, {"stream": "listening", "data": None}], [LISTENING], [b"\xff"],
    [AUTHORIZED, AUTHORIZED]])
def test_what_may_pass_is_tried_again(answers):
    async def refuse(c):
        await c.upgrade()
        for answer in answers:
            await c.receive()
            await c.send(answer)
        await c.until_closed()

    async def test(updates, rows, server):
        await eventually(lambda: updates.live)
        assert len(server.clients) == 3

    drive(test, refuse, refuse, calm)


def test_too_many_connections_is_tried_again():
    async def refuse(c):
        await c.head()
        await c.raw(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")

    async def test(updates, rows, server):
        await eventually(lambda: updates.live)

    drive(test, refuse, refuse, refuse, calm)


@pytest.mark.parametrize("answers, text", [
    ([{"stream": "authorization", "data": {"status": "unauthorized", "action": "authenticate",
                                           "message": "access key verification failed"}}],
     "refused to authenticate"),
    ([AUTHORIZED, {"stream": "authorization", "data": {"status": "unauthorized",
                                                       "action": "listen"}}], "refused to listen"),
    ([AUTHORIZED, {"stream": "listening", "data": {"streams": []}}], "found \\[\\]"),
    ([{"stream": "authorization", "data": {"status": "strange"}}], "strange")])
def test_what_cannot_pass_stops(answers, text):
    async def refuse(c):
        await c.upgrade()
        for answer in answers:
            await c.receive()
            await c.send(answer)
        await c.until_closed()

    async def main():
        async with Server(refuse) as server:
            updates = Updates(f"{server.ws}/stream", "k", SECRET, RUN, SYMBOLS, print)
            with pytest.raises(ConfigError, match=text) as failure:
                await asyncio.wait_for(updates.run(asyncio.Event()), 10)
            assert SECRET not in str(failure.value) and len(server.clients) == 1
    asyncio.run(main())


def test_the_secret_shows_in_no_log(caplog):
    async def drop(c):
        await greet(c)
        await c.send({"stream": "trade_updates", "data": {"event": SECRET[:3]}})
        c.reset()

    async def test(updates, rows, server):
        await eventually(lambda: len(server.clients) == 2 and updates.live)

    with caplog.at_level(logging.DEBUG):
        drive(test, drop, calm)
    assert "trying again" in caplog.text and SECRET not in caplog.text
