"""Each order that left is answered once and truly, whatever the venue or the network does."""
import json
import queue
import select
import socket
import ssl
import struct
import threading
import time
import traceback
import uuid

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._clock import now_ns
from hftpipe.alpaca._codec import parse_nano
from hftpipe.alpaca._http import AlpacaWire, format_nano
from hftpipe.alpaca._tls import Trust
from hftpipe.errors import ConfigError, DeadlineError, TlsError
from tests.tls import Authority

K = schema.ORDER_EVENT_KIND
RUN = 0x18AF3C
KEY, SECRET = "PKTESTKEY0000000", "canary-4f1c9a77e2"
SENT, BUSY, DOWN = 1, 0, -1
NANO = 10**9
VENUE_ID = uuid.UUID("61e69015-8549-4bfd-b9c3-01e75843f47d")
HIGH, LOW = VENUE_ID.int >> 64, VENUE_ID.int & (1 << 64) - 1


class Hidden:
    """A credential as config gives it: only reveal() shows it."""

    def __init__(self, text: str):
        self._text = text

    def reveal(self) -> str:
        return self._text


class Venue:
    """A listening socket that the test itself answers on; with an authority it speaks TLS, and
    only the handshakes run beside the test."""

    def __init__(self, authority=None):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.url = f"http{'s' * (authority is not None)}://127.0.0.1:{self.port}"
        self.trust = Trust(authority.file) if authority else None
        self.connections: list[socket.socket] = []
        self.buffer: dict[socket.socket, bytes] = {}
        if authority is not None:
            self.made: queue.Queue[socket.socket] = queue.Queue()
            self.thread = threading.Thread(target=self.shake, args=(authority.server(),))
            self.thread.start()

    def shake(self, context: ssl.SSLContext) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(5)
            try:
                self.made.put(context.wrap_socket(connection, server_side=True))
            except OSError:
                connection.close()

    def accept(self, count: int) -> None:
        for _ in range(count):
            if self.trust is not None:
                connection = self.made.get(timeout=5)
            else:
                self.listener.settimeout(5)
                connection, _ = self.listener.accept()
            connection.settimeout(5)
            self.connections.append(connection)
            self.buffer[connection] = b""

    def request(self) -> tuple[socket.socket, str, dict[str, str], bytes]:
        """The next whole request of any connection: it, request line, headers, body."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for connection in select.select(self.connections, [], [], 1)[0]:
                raw = self.buffer[connection] + connection.recv(65536)
                self.buffer[connection] = raw
                head, found, body = raw.partition(b"\r\n\r\n")
                if not found:
                    continue
                line, *rest = head.decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, v in (h.split(":", 1) for h in rest)}
                if len(body) == int(headers["content-length"]):
                    self.buffer[connection] = b""
                    return connection, line, headers, body
        raise AssertionError("no request came")

    def close(self) -> None:
        if self.trust is not None:
            self.listener.shutdown(socket.SHUT_RDWR)        # the thread is in accept()
            self.thread.join(5)
            while not self.made.empty():
                self.connections.append(self.made.get())
        for s in [self.listener, *self.connections]:
            s.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["http", "https"])
def venue(request):
    """Everything holds over TLS too."""
    v = Venue(request.getfixturevalue("authority") if request.param == "https" else None)
    yield v
    v.close()


@pytest.fixture
def wire(venue):
    w = make(venue)
    yield w
    w.close()


def make(venue, connections=2, rate_per_minute=0, **more) -> AlpacaWire:
    w = AlpacaWire(venue.url, Hidden(KEY), Hidden(SECRET), RUN, ["AAPL", "BTC/USD"],
                   connections=connections, rate_per_minute=rate_per_minute, trust=venue.trust,
                   **more)
    w.open(5)
    venue.accept(connections + 1)
    return w


def order(seq=1, price=10_030_000_000, qty=100 * NANO, side=1, instrument=0,
          type=schema.ORDER_TYPE.LIMIT, tif=schema.TIF.DAY, **more):
    row = numpy.zeros(1, schema.dtype(schema.ORDER))[0]
    row["order"] = schema.event_id(schema.STREAM.SIGNAL, seq)
    row["price"], row["qty"], row["side"], row["instrument"] = price, qty, side, instrument
    row["type"], row["tif"], row["action"] = type, tif, schema.ACTION.NEW
    for name, value in more.items():
        row[name] = value
    return row


def reply(body: dict | bytes = b"", status="200 OK", headers="") -> bytes:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
            f"Content-Length: {len(raw)}\r\n\r\n").encode() + raw


def accepted(body: bytes, **more) -> dict:
    sent = json.loads(body)
    return {"asset_id": "904837e3-3b76-47ec-b432-046db621571b", "id": str(VENUE_ID),
            "client_order_id": sent["client_order_id"], "symbol": sent["symbol"],
            "legs": [{"id": "not this", "client_order_id": "nor this"}],
            "filled_avg_price": None, "note": 'a "quoted\\" id"', "status": "pending_new", **more}


def wait(wire):
    """The next answer, polled for."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = wire.answer()
        if found is not None:
            return found
    raise AssertionError("no answer came")


def settle(wire) -> None:
    """Poll until no request is on the wire."""
    deadline = time.monotonic() + 5
    while wire.outstanding:
        assert wire.answer() is None
        assert time.monotonic() < deadline
    assert wire.answer() is None


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def drop(venue: Venue, connection: socket.socket) -> None:
    venue.connections.remove(connection)
    reset(connection)


def exchange(venue, wire, answer: bytes, seq=1):
    """Send an order, have it answered, return what poll says."""
    assert wire.send(order(seq)) == SENT
    connection, _, _, body = venue.request()
    connection.sendall(answer.replace(b"$NAME", json.loads(body)["client_order_id"].encode()))
    return wait(wire)


OK = {"id": str(VENUE_ID), "client_order_id": f"hp-{RUN:x}-1"}


# ---------------------------------------------------------------- what is written

def test_order_request_is_what_alpaca_wants(venue, wire):
    assert wire.send(order(0xabc)) == SENT
    _, line, headers, body = venue.request()
    assert line == "POST /v2/orders HTTP/1.1"
    assert headers == {"host": f"127.0.0.1:{venue.port}", "apca-api-key-id": KEY,
                       "apca-api-secret-key": SECRET, "accept": "application/json",
                       "content-type": "application/json", "content-length": str(len(body))}
    assert json.loads(body) == {
        "symbol": "AAPL", "side": "buy", "type": "limit", "time_in_force": "day",
        "client_order_id": f"hp-{RUN:x}-abc", "qty": "100", "limit_price": "10.03"}


@pytest.mark.parametrize("side, side_text", [(1, "buy"), (-1, "sell")])
@pytest.mark.parametrize("tif, tif_text", [(1, "day"), (2, "gtc"), (3, "ioc"), (4, "fok"),
                                           (5, "opg"), (6, "cls")])
@pytest.mark.parametrize("type, type_text, prices", [
    (1, "market", {}), (2, "limit", {"price": ("limit_price", 1, "0.000000001")}),
    (3, "stop", {"stop": ("stop_price", 12_500_000_000, "12.5")}),
    (4, "stop_limit", {"stop": ("stop_price", 12_500_000_000, "12.5"),
                       "price": ("limit_price", 13 * NANO, "13")}),
    (5, "trailing_stop", {"trail": ("trail_price", 70_000_000, "0.07")}),
    (5, "trailing_stop", {"trail_share": ("trail_percent", 15_000_000, "1.5")}),
    (5, "trailing_stop", {"trail_share": ("trail_percent", 1, "0.0000001")})])
def test_every_kind_of_order(venue, wire, side, side_text, type, type_text, prices, tif, tif_text):
    wire.send(order(side=side, type=type, tif=tif, instrument=1, qty=1, **{
        "price": 0, **{field: value for field, (_, value, _) in prices.items()}}))
    assert json.loads(venue.request()[3]) == {
        "symbol": "BTC/USD", "side": side_text, "type": type_text, "time_in_force": tif_text,
        "qty": "0.000000001", "client_order_id": f"hp-{RUN:x}-1",
        **{name: text for name, _, text in prices.values()}}


@given(st.integers(-2**63, 2**63 - 1))
def test_decimals_are_exact_and_short(value):
    text = format_nano(value)
    if value > -2**63 + 1:
        assert parse_nano(text) == value
    assert not (("." in text) and text.endswith("0")) and "e" not in text


@pytest.mark.parametrize("bad", [
    {"qty": 0}, {"qty": -1}, {"price": 0}, {"price": -5}, {"side": 0}, {"side": 2},
    {"instrument": 2}, {"type": 0}, {"type": 6}, {"tif": 0}, {"tif": 7}, {"type": 3},
    {"type": 1}, {"stop": 1}, {"trail": 1}, {"type": 3, "price": 0, "stop": -1},
    {"type": 3, "price": 0, "stop": 1, "trail": 1}, {"type": 4}, {"type": 4, "price": 0, "stop": 1},
    {"type": 5, "price": 0}, {"type": 5, "price": 0, "trail": 1, "trail_share": 1},
    {"type": 5, "price": 0, "trail": -1}, {"type": 5, "price": 0, "trail_share": NANO},
    {"type": 5, "price": 0, "trail": 1, "stop": 1}, {"type": 5, "trail": 1}])
def test_order_that_cannot_be_written_is_never_sent(venue, wire, bad):
    assert wire.send(order(**bad)) == DOWN
    assert wire.counters()["errors"] == 1 and wire.outstanding == 0
    assert wire.send(order()) == SENT           # the connection is as good as before
    assert json.loads(venue.request()[3])["qty"] == "100"


def test_largest_numbers_fit_the_request(venue):
    wire = AlpacaWire(f"{venue.url}/" + "p" * 1000, "k" * 100, "s" * 200, 2**64 - 1,
                      ["ABCDEFGHIJKLMNOP"], connections=1, rate_per_minute=0, trust=venue.trust)
    wire.open(5)
    venue.accept(2)
    wire.send(order(2**56 - 1, price=2**63 - 1, qty=2**63 - 1))
    body = json.loads(venue.request()[3])
    assert body["client_order_id"] == "hp-ffffffffffffffff-ffffffffffffff"
    assert len(body["client_order_id"]) <= 48
    assert body["qty"] == body["limit_price"] == "9223372036.854775807"
    wire.close()


# ---------------------------------------------------------------- what an answer means

def test_accepted_order_is_acked_with_the_venues_id(venue, wire):
    assert wire.send(order(7, side=-1, instrument=1)) == SENT
    assert wire.answer() is None                # not before the answer
    connection, _, _, body = venue.request()
    connection.sendall(reply(accepted(body)))
    found = wait(wire)
    assert found["kind"] == K.ACKED and found["order"] == schema.event_id(3, 7)
    assert (int(found["venue_id"]), int(found["venue_id_low"])) == (HIGH, LOW)
    assert (found["instrument"], found["side"], found["price"], found["qty"]) == (1, -1, 0, 0)
    assert found["event"] == 0 and found["ts_recv"] > 0
    assert wire.outstanding == 0 and wire.answer() is None


@pytest.mark.parametrize("status, body, kind", [
    ("200 OK", OK, K.ACKED), ("201 Created", OK, K.ACKED),
    ("200 OK", {**OK, "status": "rejected"}, K.REJECTED),
    ("200 OK", {**OK, "id": "order-7"}, K.UNKNOWN),
    ("200 OK", {**OK, "client_order_id": "hp-1-1"}, K.UNKNOWN),
    ("200 OK", {"id": str(VENUE_ID)}, K.UNKNOWN), ("200 OK", b"", K.UNKNOWN),
    ("200 OK", b"[]", K.UNKNOWN), ("200 OK", b'{"id":"' + b"x" * 99, K.UNKNOWN),
    ("200 OK", {"order": OK}, K.UNKNOWN),
    ("204 No Content", b"", K.UNKNOWN), ("301 Moved", b"", K.UNKNOWN),
    ("302 Found", b"", K.UNKNOWN), ("400 Bad", {"code": 40010000, "message": "x"}, K.REJECTED),
    ("403 Forbidden", {"code": 40310000, "message": "insufficient buying power"}, K.REJECTED),
    ("404 Not Found", {"code": 40410000}, K.REJECTED),
    ("408 Request Timeout", b"", K.UNKNOWN),
    ("422 Unprocessable", {"code": 42210000, "message": "sub-penny increment"}, K.REJECTED),
    ("422 Unprocessable", {"code": 40010001, "message": "client_order_id must be unique"},
     K.UNKNOWN),
    ("429 Too Many", {"code": 42910000, "message": "too many requests"}, K.REJECTED),
    ("500 Internal", {"code": 50010000}, K.UNKNOWN), ("502 Bad Gateway", b"<html>", K.UNKNOWN),
    ("503 Unavailable", b"", K.UNKNOWN), ("504 Timeout", b"", K.UNKNOWN)])
def test_status_and_body_decide(venue, wire, status, body, kind):
    found = exchange(venue, wire, reply(body, status))
    assert found["kind"] == kind and found["order"] == schema.event_id(3, 1)
    assert kind == K.REJECTED or not found["reason"]
    assert bool(found["venue_id"]) == (status[:2] == "20" and kind in (K.ACKED, K.REJECTED))
    settle(wire)


R = schema.REASON
REFUSALS = [
    (403, 40310000, "insufficient buying power", R.VENUE_FUNDS),
    (403, 40310000, "Insufficient balance for USD (requested: 10, available: 3)", R.VENUE_FUNDS),
    (403, 40310000, "insufficient day trading buying power", R.VENUE_FUNDS),
    (403, 40310000, "insufficient qty available for order (requested: 5, available: 0)",
     R.VENUE_QUANTITY),
    (403, 40310000, "potential wash trade detected. use complex orders", R.VENUE_WASH),
    (422, 42210000, "potential wash trade detected. use complex orders", R.VENUE_WASH),
    (403, 40310000, "cannot open a long buy while a short sell order is open", R.VENUE_WASH),
    (403, 40310000, "trade denied due to pattern day trading protection", R.VENUE_DAY_TRADES),
    (403, 40310000, "account is not allowed to short", R.VENUE_SHORT),
    (403, 40310000, "fractional orders cannot be sold short", R.VENUE_SHORT),
    (403, 40310000, "new orders are rejected by user request", R.VENUE_ACCOUNT),
    (403, 40310000, "Account is restricted to liquidation only", R.VENUE_ACCOUNT),
    (403, 40310000, "forbidden account", R.VENUE_ACCOUNT),
    (403, 40310000, r"asset \"AAPL\" is not fractionable", 0),
    (403, 40310000, "something that nobody wrote down", 0),
    (422, 42210000, "invalid limit_price 1.001. sub-penny increment does not fulfill minimum "
                    "pricing criteria", 0),
    (422, 40010001, "qty or notional is required", 0),
    (400, 40010000, "request body format is invalid", 0),
    (404, 40410000, "asset not found for AAPL", 0),
    (429, 42910000, "too many requests.", R.VENUE_RATE),
    (429, 42910000, "insufficient buying power", R.VENUE_RATE)]


@pytest.mark.parametrize("status, code, message, reason", REFUSALS)
def test_refusals_that_share_a_code_are_told_apart_by_their_text(venue, wire, status, code,
                                                                 message, reason):
    found = exchange(venue, wire, reply(
        f'{{"message":"{message}","code":{code},"buying_power":"1"}}'.encode(), f"{status} x"))
    assert (found["kind"], found["reason"]) == (K.REJECTED, reason)
    if status == 429:
        return
    assert wire.send(order(2)) == SENT, "the wire goes on"
    connection, _, _, body = venue.request()
    connection.sendall(reply(accepted(body)))
    found = wait(wire)
    assert (found["kind"], found["reason"]) == (K.ACKED, 0), "nothing stays of it"


@pytest.mark.parametrize("status, body", [
    ("401 Unauthorized", {"message": "unauthorized."}),
    ("403 Forbidden", {"message": "forbidden."})])
def test_refused_credentials_stop_the_wire(venue, wire, status, body):
    assert exchange(venue, wire, reply(body, status))["kind"] == K.REJECTED
    with pytest.raises(ConfigError, match="refused the credentials"):
        wire.answer()
    assert wire.send(order(2)) == DOWN and wire.send_cancel(1, HIGH, LOW) == DOWN
    assert isinstance(wire.error, ConfigError) and SECRET not in str(wire.error)


def test_answers_in_pieces_of_every_size(venue, wire):
    for size in (1, 2, 3, 7, 64):
        assert wire.send(order(size)) == SENT
        connection, _, _, body = venue.request()
        answer = reply(accepted(body))
        for at in range(0, len(answer) - size, size):
            connection.sendall(answer[at:at + size])
            assert wire.answer() is None
        connection.sendall(answer[at + size:])
        found = wait(wire)
        assert (found["kind"], found["order"]) == (K.ACKED, schema.event_id(3, size))


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[i:i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x;ext=1\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\nTrail: er\r\n\r\n"


@pytest.mark.parametrize("size", [1, 16, 1000])
def test_chunked_answers_in_pieces(venue, wire, size):
    for seq in (1, 2):                          # the connection stays usable
        assert wire.send(order(seq)) == SENT
        connection, _, _, body = venue.request()
        answer = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
                  + chunked(json.dumps(accepted(body)).encode(), size))
        for at in range(0, len(answer), 50):
            connection.sendall(answer[at:at + 50])
            if at + 50 < len(answer):
                assert wire.answer() is None
        assert wait(wire)["kind"] == K.ACKED
    assert wire.counters()["lost"] == 0


def test_informational_answers_are_skipped(venue, wire):
    early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    assert exchange(venue, wire, early + reply(OK))["kind"] == K.ACKED


@pytest.mark.parametrize("answer, kind", [
    (b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s", K.ACKED),
    (b"HTTP/1.1 200 OK\r\nConnection: keep-alive, Close\r\nContent-Length: %d\r\n\r\n%s", K.ACKED)])
def test_connection_close_is_followed_by_a_new_connection(venue, wire, answer, kind):
    raw = json.dumps(OK).encode()
    assert exchange(venue, wire, answer % (len(raw), raw))["kind"] == kind
    assert wire.connected == 2
    wire.open(5)
    venue.accept(1)
    assert wire.connected == 3 and wire.counters()["connects"] == 4


def test_body_without_a_length_ends_with_the_connection(venue, wire):
    assert wire.send(order()) == SENT
    connection, *_ = venue.request()
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(OK).encode())
    assert wire.answer() is None
    venue.connections.remove(connection)
    if venue.trust is not None:
        connection.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):       # said goodbye, heard none yet
            connection.unwrap()
    connection.close()
    assert wait(wire)["kind"] == K.ACKED


def test_a_connection_cut_over_tls_is_no_end_of_an_answer(authority):
    """Anybody on the way can end the stream; only the venue can say that this was all."""
    venue = Venue(authority)
    wire = make(venue)
    assert wire.send(order()) == SENT
    connection, *_ = venue.request()
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(OK).encode())
    venue.connections.remove(connection)
    connection.close()                          # without goodbye
    assert wait(wire)["kind"] == K.UNKNOWN
    wire.close()
    venue.close()


@pytest.mark.parametrize("answer", [
    b"garbage that is no HTTP at all\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n",
    b"HTTP/1.1 099 OK\r\n\r\n", b"x" * 2000, b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabXX",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"Header: x\r\n" * 7000], ids=range(13))
def test_answer_that_is_none_is_unknown_and_ends_the_connection(venue, wire, answer):
    found = exchange(venue, wire, answer)
    assert found["kind"] == K.UNKNOWN and wire.connected == 2
    assert wire.counters()["errors"] == 1
    settle(wire)


@pytest.mark.parametrize("how", ["reset", "close", "half", "head"])
def test_connection_lost_after_the_send_is_unknown(venue, wire, how):
    assert wire.send(order(5)) == SENT
    connection, *_ = venue.request()
    answer = reply(OK)
    if how == "half":
        connection.sendall(answer[:-5])
    elif how == "head":
        connection.sendall(answer[:20])
    venue.connections.remove(connection)
    reset(connection) if how == "reset" else connection.close()
    found = wait(wire)
    assert (found["kind"], found["order"]) == (K.UNKNOWN, schema.event_id(3, 5))
    assert wire.counters()["unknown"] == 1
    settle(wire)


def test_late_answer_is_unknown_and_never_meets_the_next_order(venue, wire):
    assert wire.send(order(1)) == SENT
    connection, *_ = venue.request()
    assert wire.answer(now_ns() + 1_900_000_000) is None
    found = wire.answer(now_ns() + 3_000_000_000)
    assert (found["kind"], found["order"]) == (K.UNKNOWN, schema.event_id(3, 1))
    assert wire.counters()["timeouts"] == 1
    assert wire.send(order(2)) == SENT
    other, _, _, body = venue.request()
    assert other is not connection
    try:
        connection.sendall(reply(OK))           # far too late: nobody is there
    except OSError:
        pass
    other.sendall(reply(accepted(body)))
    assert wait(wire)["order"] == schema.event_id(3, 2)
    settle(wire)


def test_bytes_nobody_asked_for_end_the_connection(venue, wire):
    venue.connections[0].sendall(reply(OK))
    deadline = time.monotonic() + 5
    while wire.connected == 3 and time.monotonic() < deadline:
        assert wire.answer() is None
    assert wire.connected == 2 and wire.counters()["unknown"] == 0
    wire.open(5)
    venue.accept(1)
    assert exchange(venue, wire, reply(OK) + b"HTTP/1.1 200 OK\r\n\r\n")["kind"] == K.ACKED
    assert wire.connected == 2                  # more than the answer: given up as well


def test_idle_connection_closed_by_the_venue_is_replaced_before_it_is_used(venue, wire):
    for connection in list(venue.connections[:2]):
        drop(venue, connection)
    deadline = time.monotonic() + 5
    while wire.connected > 1 and time.monotonic() < deadline:
        assert wire.answer() is None
    assert wire.connected == 1 and wire.send(order()) == DOWN
    wire.open(5)
    venue.accept(2)
    assert exchange(venue, wire, reply(OK))["kind"] == K.ACKED


def test_send_on_a_reset_connection_goes_to_the_next_one(venue, wire):
    for connection in list(venue.connections):
        if connection is not venue.connections[-1]:
            drop(venue, connection)
            break
    # no poll in between: the wire finds out by its own send or by the missing answer
    sent = [wire.send(order(1)), wire.send(order(2))]
    kinds = []
    connection, _, _, body = venue.request()
    connection.sendall(reply(accepted(body)))
    deadline = time.monotonic() + 5
    while wire.outstanding and time.monotonic() < deadline:
        found = wire.answer()
        if found is not None:
            kinds.append(int(found["kind"]))
    assert sorted(kinds) == sorted([K.ACKED] + [K.UNKNOWN] * (sent.count(SENT) - 1))


def test_busy_when_each_connection_has_an_order_and_no_order_takes_the_spare_one(venue, wire):
    assert [wire.send(order(i)) for i in (1, 2, 3)] == [SENT, SENT, BUSY]
    assert wire.send_cancel(99, HIGH, LOW) == SENT      # the connection kept for cancels
    assert wire.send_cancel(98, HIGH, LOW) == BUSY
    seen = {}
    for _ in range(3):
        connection, line, _, body = venue.request()
        seen[line.split()[0]] = seen.get(line.split()[0], 0) + 1
        connection.sendall(reply(accepted(body)) if body else reply(b"", "204 No Content"))
    assert seen == {"POST": 2, "DELETE": 1}
    assert {int(wait(wire)["order"]) for _ in range(2)} == {schema.event_id(3, i) for i in (1, 2)}
    settle(wire)
    assert wire.send(order(3)) == SENT


def test_no_connection_is_down_and_not_busy(venue, wire):
    wire.close()
    assert wire.send(order()) == DOWN and wire.send_cancel(1, HIGH, LOW) == DOWN
    assert wire.outstanding == 0


def test_close_leaves_no_order_without_an_answer(venue, wire):
    wire.send(order(1))
    wire.send(order(2))
    wire.close()
    assert {int(wait(wire)["kind"]) for _ in range(2)} == {K.UNKNOWN}
    settle(wire)


# ---------------------------------------------------------------- cancels

def test_cancel_request_and_silence_when_it_is_accepted(venue, wire):
    assert wire.send_cancel(schema.event_id(3, 4), HIGH, LOW) == SENT
    connection, line, headers, body = venue.request()
    assert line == f"DELETE /v2/orders/{VENUE_ID} HTTP/1.1" and body == b""
    assert headers["apca-api-secret-key"] == SECRET and headers["content-length"] == "0"
    connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
    settle(wire)
    assert wire.counters()["cancels"] == 1 and wire.counters()["cancels_rejected"] == 0


@pytest.mark.parametrize("status", ["404 Not Found", "422 Unprocessable", "500 Internal",
                                    "429 Too Many", "301 Moved"])
def test_cancel_that_was_not_accepted_is_rejected(venue, wire, status):
    wire.send_cancel(schema.event_id(3, 4), HIGH, LOW)
    connection, *_ = venue.request()
    connection.sendall(reply({"code": 42210000, "message": 'order is already in "filled" state'},
                             status))
    found = wait(wire)
    assert (found["kind"], found["order"]) == (K.CANCEL_REJECTED, schema.event_id(3, 4))
    assert (int(found["venue_id"]), int(found["venue_id_low"])) == (HIGH, LOW)
    settle(wire)


@pytest.mark.parametrize("how", ["reset", "timeout"])
def test_cancel_without_an_answer_may_be_asked_again(venue, wire, how):
    wire.send_cancel(schema.event_id(3, 4), HIGH, LOW)
    connection, *_ = venue.request()
    if how == "reset":
        drop(venue, connection)
        found = wait(wire)
    else:
        found = wire.answer(now_ns() + 3_000_000_000)
    assert found["kind"] == K.CANCEL_REJECTED
    assert wire.send_cancel(schema.event_id(3, 4), HIGH, LOW) == SENT   # an order connection


# ---------------------------------------------------------------- rate limit

def answer_all(venue, wire, count):
    for _ in range(count):
        connection, _, _, body = venue.request()
        connection.sendall(reply(accepted(body)) if body else reply(b"", "204 No Content"))
    while wire.outstanding:
        wire.answer()


def test_bucket_keeps_a_reserve_for_cancels_and_refills(venue):
    wire = make(venue, connections=10, rate_per_minute=60, burst=5, reserve=2)
    now = now_ns() + NANO
    assert [wire.send(order(i), now) for i in range(1, 6)] == [SENT] * 3 + [BUSY] * 2
    assert [wire.send_cancel(i, HIGH, LOW, now) for i in (1, 2, 3)] == [SENT, SENT, BUSY]
    assert wire.counters()["throttled"] == 3
    answer_all(venue, wire, 5)
    assert wire.send(order(6), now + 2_900_000_000) == BUSY     # 2.9 tokens: the reserve
    assert wire.send(order(6), now + 3_000_000_001) == SENT     # one above it
    assert wire.send(order(7), now + 3_000_000_001) == BUSY
    answer_all(venue, wire, 1)
    assert [wire.send(order(i), now + 60 * NANO) for i in range(8, 12)] == [SENT] * 3 + [BUSY]
    wire.close()


@given(st.lists(st.tuples(st.integers(0, 3 * NANO), st.booleans()), max_size=60))
def test_no_minute_has_more_requests_than_the_limit(steps):
    """The bucket alone, over simulated minutes: at most rate + burst of any 60 s."""
    venue = Venue()
    wire = make(venue, connections=1, rate_per_minute=30, burst=6, reserve=1)
    now, sent = now_ns() + NANO, []
    for gap, cancelling in steps:
        now += gap
        code = wire.send_cancel(1, HIGH, LOW, now) if cancelling else wire.send(order(), now)
        if code == SENT:
            sent.append(now)
            answer_all(venue, wire, 1)
        assert code in (SENT, BUSY)
    for start in sent:
        assert sum(start <= t < start + 60 * NANO for t in sent) <= 36
    wire.close()
    venue.close()


@pytest.mark.parametrize("headers, hold", [
    ("", 1.0), ("Retry-After: 7\r\n", 7.0), ("Retry-After: 86400\r\n", 60.0)])
def test_429_stops_sending_for_a_while(venue, wire, headers, hold):
    assert exchange(venue, wire, reply({"code": 42910000}, "429 Too Many", headers))["kind"] == \
        K.REJECTED
    now = now_ns()
    assert wire.send(order(2), now) == BUSY
    assert wire.send(order(2), now + int((hold - 0.5) * NANO)) == BUSY
    assert wire.send(order(2), now + int(hold * NANO)) == SENT
    assert wire.counters()["limited"] == 1


def test_second_429_in_a_row_waits_longer_and_the_reset_header_counts(venue, wire):
    now = now_ns()
    for seq, hold in ((1, 1), (2, 2), (3, 4)):
        now = max(now, now_ns()) + 10 * NANO
        assert wire.send(order(seq), now) == SENT
        connection, *_ = venue.request()
        connection.sendall(reply({"code": 1}, "429 Too Many"))
        assert wait(wire)["kind"] == K.REJECTED
        assert wire.send(order(9), now_ns() + int((hold - 0.5) * NANO)) == BUSY
    late = now_ns() + 10 * NANO
    assert wire.send(order(5), late) == SENT
    connection, *_ = venue.request()
    connection.sendall(reply(b"", "429 x", f"X-RateLimit-Reset: {int(time.time()) + 30}\r\n"))
    wait(wire)
    assert wire.send(order(6), now_ns() + 25 * NANO) == BUSY
    assert wire.send(order(6), now_ns() + 31 * NANO) == SENT


def answered(venue, wire, seq, headers, now=0, status="200 OK"):
    """One order, and its answer with *headers*."""
    assert wire.send(order(seq), now) == SENT
    connection, _, _, body = venue.request()
    connection.sendall(reply(accepted(body), status, headers))
    return wait(wire)


def test_cancels_go_on_while_a_429_holds_orders(venue):
    """By the reserve; a cancel that is refused for the rate waits a quarter of a second."""
    wire = make(venue, connections=4, rate_per_minute=60, burst=10, reserve=3)
    answered(venue, wire, 1, "Retry-After: 30\r\n", status="429 x")
    now = now_ns()
    assert wire.send(order(2), now) == BUSY
    assert [wire.send_cancel(i, HIGH, LOW, now) for i in range(4)] == [SENT] * 3 + [BUSY]
    answer_all(venue, wire, 3)
    assert wire.send_cancel(4, HIGH, LOW, now + 2 * NANO) == SENT, "the bucket fills for them"
    connection, *_ = venue.request()
    connection.sendall(reply(b"", "429 x"))
    assert wait(wire)["kind"] == K.CANCEL_REJECTED
    after = now_ns()
    later = max(after, now + 2 * NANO)
    assert wire.send_cancel(5, HIGH, LOW, after) == BUSY
    assert wire.send_cancel(5, HIGH, LOW, later + 2 * NANO) == SENT
    assert wire.send(order(6), later + 20 * NANO) == BUSY, "orders are held all the while"
    assert wire.counters()["limited"] == 2
    wire.close()


def test_a_lifted_rate_lets_cancels_through_a_429_too(venue, wire):
    answered(venue, wire, 1, "Retry-After: 30\r\n", status="429 x")
    assert wire.send(order(2)) == BUSY
    for seq in range(5):
        assert wire.send_cancel(seq, HIGH, LOW) == SENT
        answer_all(venue, wire, 1)


def reset_in(seconds):
    return f"X-RateLimit-Reset: {int(time.time()) + seconds}\r\n"


def test_what_the_venue_has_left_is_kept_to_until_its_minute_ends(venue):
    """Others send for the same account: our own bucket is full, the venue's is not."""
    wire = make(venue, connections=8, rate_per_minute=6000, burst=100, reserve=3)
    answered(venue, wire, 1, "X-RateLimit-Remaining: 5\r\n" + reset_in(30))
    now = now_ns()
    assert [wire.send(order(i), now) for i in (2, 3, 4)] == [SENT, SENT, BUSY]
    assert [wire.send_cancel(i, HIGH, LOW, now) for i in range(4)] == [SENT] * 4, \
        "even the one that the venue may refuse"
    answer_all(venue, wire, 6)
    assert wire.send(order(5), now + 25 * NANO) == BUSY
    assert wire.send(order(5), now + 31 * NANO) == SENT
    answer_all(venue, wire, 1)
    wire.close()


def test_what_is_on_the_wire_counts_against_what_the_venue_has_left(venue):
    wire = make(venue, connections=4, rate_per_minute=6000, burst=100, reserve=0)
    assert [wire.send(order(i)) for i in (1, 2)] == [SENT, SENT]
    first = venue.request()
    second = venue.request()
    first[0].sendall(reply(accepted(first[3]),
                           headers="X-RateLimit-Remaining: 2\r\n" + reset_in(30)))
    wait(wire)
    assert [wire.send(order(i)) for i in (3, 4)] == [SENT, BUSY]
    second[0].sendall(reply(accepted(second[3])))
    answer_all(venue, wire, 1)
    wire.close()


@pytest.mark.parametrize("when", [-3600, 0, 3600, 10**15, "garbage", ""])
def test_a_reset_that_cannot_be_holds_nothing_for_long(venue, when):
    """A wrong clock, theirs or ours: what is left counts, for as long as the bucket takes."""
    wire = make(venue, rate_per_minute=60, burst=10, reserve=0)
    header = reset_in(when) if isinstance(when, int) else f"X-RateLimit-Reset: {when}\r\n"
    answered(venue, wire, 1, "X-RateLimit-Remaining: 0\r\n" + header)
    now = now_ns()
    assert wire.send(order(2), now) == BUSY
    assert wire.send(order(2), now + 2 * NANO) == SENT
    answer_all(venue, wire, 1)
    wire.close()


def test_a_smaller_limit_of_the_venue_slows_the_bucket_and_a_larger_one_does_not_speed_it(venue):
    wire = make(venue, connections=8, rate_per_minute=180, burst=6, reserve=0)
    now = now_ns()
    answered(venue, wire, 1, "X-RateLimit-Limit: 20\r\n", now)        # 18 a minute for us
    now += 600 * NANO
    assert [wire.send(order(i), now) for i in range(10, 17)] == [SENT] * 6 + [BUSY]
    answer_all(venue, wire, 6)
    assert wire.send(order(17), now + 3_300_000_000) == BUSY
    answered(venue, wire, 18, "X-RateLimit-Limit: 10000\r\n", now + 3_400_000_000)
    now += 100 * NANO
    assert [wire.send(order(i), now) for i in range(20, 27)] == [SENT] * 6 + [BUSY]
    answer_all(venue, wire, 6)
    assert wire.send(order(27), now + 300_000_000) == BUSY, "no faster than configured"
    assert wire.send(order(27), now + 340_000_000) == SENT
    answer_all(venue, wire, 1)
    wire.close()


def test_remaining_of_the_venue_shrinks_the_bucket(venue):
    wire = make(venue, rate_per_minute=60, burst=10, reserve=0)
    now = now_ns()
    assert wire.send(order(1), now) == SENT
    connection, _, _, body = venue.request()
    connection.sendall(reply(accepted(body), headers="X-RateLimit-Remaining: 1\r\n"))
    wait(wire)
    assert [wire.send(order(i), now) for i in (2, 3)] == [SENT, BUSY]
    wire.close()


# ---------------------------------------------------------------- connecting and secrets

def test_no_venue_is_a_clear_error():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    listener.close()
    wire = AlpacaWire(f"http://127.0.0.1:{port}", KEY, SECRET, RUN, ["A"])
    with pytest.raises(DeadlineError, match=rf"5 connections to 127.0.0.1:{port} .* found 0"):
        wire.open(0.05)
    assert wire.send(order()) == DOWN
    wire.close()


@pytest.mark.parametrize("more, text", [
    ({"rest_url": "ftp://x"}, "rest_url"), ({"rest_url": "http://u:p@x"}, "rest_url"),
    ({"rest_url": "nothing"}, "rest_url"), ({"rest_url": "http://x?a=1"}, "rest_url"),
    ({"key": ""}, "key must"), ({"key": "a\r\nX: y"}, "key must"), ({"secret": "ü"}, "secret must"),
    ({"instruments": []}, "instruments"), ({"instruments": ['A"B']}, "symbol must"),
    ({"instruments": ["A B"]}, "symbol must"), ({"connections": 0}, "connections"),
    ({"connections": 32}, "connections"), ({"reserve": 20}, "reserve"),
    ({"timeout_ms": 0}, "timeout_ms"), ({"rate_per_minute": -1}, "rate_per_minute"),
    ({"secret": "s" * 2000}, "too long")])
def test_bad_settings_are_refused(more, text):
    settings = {"rest_url": "http://127.0.0.1:1", "key": KEY, "secret": SECRET, "run": RUN,
                "instruments": ["A"], **more}
    with pytest.raises(ConfigError, match=text) as failure:
        AlpacaWire(**settings)
    assert "X: y" not in str(failure.value) and "ü" not in str(failure.value)


def test_the_secret_shows_nowhere(venue, wire):
    for shown in (repr(wire), str(wire), repr(wire.counters()), repr(wire.error)):
        assert SECRET not in shown
    try:
        AlpacaWire("http://127.0.0.1:1", KEY, SECRET + "\n", RUN, ["A"])
    except ConfigError as error:
        assert SECRET not in "".join(traceback.format_exception(error, limit=0))
    else:
        raise AssertionError("a line end was taken for a part of the secret")


def test_a_thousand_orders_are_each_answered_once(venue, wire):
    """Round after round over all connections, with lost ones in between."""
    asked, answered, seq = [], [], 0
    deadline = time.monotonic() + 60
    while seq < 1000:
        assert time.monotonic() < deadline
        seq += 1
        code = wire.send(order(seq))
        if code == SENT:
            asked.append(seq)
            connection, _, _, body = venue.request()
            if seq % 97 == 0:
                drop(venue, connection)
            else:
                connection.sendall(reply(accepted(body), headers="Connection: close\r\n"
                                         if seq % 89 == 0 else ""))
            found = wait(wire)
            answered.append((int(found["order"]) & (1 << 56) - 1, int(found["kind"])))
        if wire.connected < 3:
            down = 3 - wire.connected
            wire.open(5)
            venue.accept(down)
    assert [a for a, _ in answered] == asked
    assert [k for _, k in answered].count(K.UNKNOWN) == 1000 // 97
    counters = wire.counters()
    assert counters["acked"] + counters["unknown"] == counters["sent"] == 1000


# ---------------------------------------------------------------- TLS

def refusing(authority, context, host="127.0.0.1", **more):
    """What a wire says of a venue with *context*, after it has tried."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                raw, _ = listener.accept()
                context.wrap_socket(raw, server_side=True).close()
            except ssl.SSLError:
                raw.close()
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    trust = more.pop("trust", None) or Trust(authority.file)
    wire = AlpacaWire(f"https://{host}:{listener.getsockname()[1]}", KEY, SECRET, RUN, ["AAPL"],
                      connections=1, trust=trust)
    try:
        with pytest.raises(TlsError) as failure:
            wire.open(10)
        assert wire.send(order()) == DOWN
        return str(failure.value)
    finally:
        wire.close()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_a_venue_that_is_not_who_it_should_be_gets_no_order(authority):
    for context, text in (
            (authority.server(authority.issue("DNS:localhost")), "ip address mismatch"),
            (authority.server(authority.issue(days=-1)), "certificate has expired")):
        said = refusing(authority, context)
        assert said == f"TLS with 127.0.0.1: certificate refused: {text}"
    assert refusing(authority, authority.server(authority.issue("DNS:other.example")),
                    "localhost") == "TLS with localhost: certificate refused: hostname mismatch"
    assert "unable to get local issuer" in refusing(authority, authority.server(), trust=Trust())


def test_an_answer_with_more_behind_it_in_one_piece_ends_the_connection(authority):
    """What was decrypted beyond an answer lay where epoll does not see it, and would have met
    the next order."""
    venue = Venue(authority)
    wire = make(venue)
    assert wire.send(order(1)) == SENT
    connection, _, _, body = venue.request()
    # One write of each, but in one segment: both records are here when the first one is read.
    raw = socket.socket(fileno=socket.dup(connection.fileno()))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    connection.sendall(reply(accepted(body)))
    connection.sendall(reply(OK))
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    raw.close()
    assert wait(wire)["kind"] == K.ACKED
    assert wire.connected == 2
    wire.close()
    venue.close()
