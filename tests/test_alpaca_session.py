"""Cold REST calls: every page is read, every refusal told, an unanswered order found again."""
import asyncio
import json
import uuid
from urllib.parse import parse_qs, urlsplit

import pytest

from hftpipe import schema
from hftpipe.alpaca import rest, session
from hftpipe.alpaca.rest import Rest, VenueError
from hftpipe.errors import ConfigError, DataError, DeadlineError
from tests.data import recording as recorded
from tests.wsserver import Client, Server

K = schema.ORDER_EVENT_KIND
RUN, SECRET, NANO = 0x18AF3C, "canary-3c55", 10**9
ID = "61e69015-8549-4bfd-b9c3-01e75843f47d"


def order(n=1, **more) -> dict:
    return {"id": str(uuid.UUID(int=n)), "client_order_id": f"hp-{RUN:x}-{n:x}", "symbol": "AAPL",
            "status": "new", "side": "buy", "qty": "100", "filled_qty": "0",
            "filled_avg_price": None, "submitted_at": f"2026-03-02T14:30:{n // 100:02d}Z",
            "updated_at": "2026-03-02T14:30:00.5Z", **more}


def answers(handler):
    """A script that answers each request with *handler(method, path, query)*."""
    async def script(c: Client) -> None:
        while True:
            await c.head()
            method, target, _ = c.request.split()
            assert c.headers["apca-api-key-id"] == "k"
            assert c.headers["apca-api-secret-key"] == SECRET
            parts = urlsplit(target)
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            found = handler(method, parts.path, query)
            if asyncio.iscoroutine(found):
                found = await found
            if found is None:
                c.reset()
                return
            status, body = found
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            await c.raw(f"HTTP/1.1 {status} X\r\nContent-Length: {len(raw)}\r\n"
                        "Location: /elsewhere\r\n\r\n".encode() + raw)
    return script


def ask(handler, call, timeout=5.0):
    """What *call(rest)* gives, and the requests that were made."""
    seen = []

    def note(method, path, query):
        seen.append((method, path, query))
        return handler(method, path, query)

    async def main():
        async with Server(answers(note)) as server:
            rest = Rest(f"{server.http}/", "k", SECRET, timeout)
            try:
                return await asyncio.to_thread(call, rest)
            finally:
                rest.close()
    return asyncio.run(main()), seen


def test_account_positions_and_clock_of_the_documentation():
    account = json.loads(recorded("alpaca/account_routes.json").read_text())[0]["body"]
    positions = json.loads(recorded("alpaca/position_routes.json").read_text())[0]["body"]
    clock = {"timestamp": "2026-03-02T09:30:00-05:00", "is_open": True, "next_open": "x"}
    bodies = {"/v2/account": account, "/v2/positions": positions, "/v2/clock": clock}
    (a, p, c), seen = ask(lambda m, path, q: (200, bodies[path]),
                          lambda r: (r.account(), r.positions(), r.clock()))
    assert a.status == "ACTIVE" and a.cash == "-23140.2" and c.is_open
    assert len(p) == len(positions) and p[0].qty == positions[0]["qty"]
    assert [s[0] for s in seen] == ["GET"] * 3


def test_all_pages_of_orders_are_read_although_times_repeat():
    rows = [order(n) for n in range(1, 1301)]           # a hundred of them share each second

    def handler(method, path, query):
        assert (path, query["limit"], query["direction"]) == ("/v2/orders", "500", "asc")
        after = session.parse_time(query["after"]) if "after" in query else 0
        later = [r for r in rows if session.parse_time(r["submitted_at"]) > after]
        return 200, later[:500]

    found, seen = ask(handler, lambda r: r.orders("all"))
    assert [o.id for o in found] == [r["id"] for r in rows]
    assert 3 <= len(seen) <= 5 and seen[0][2]["status"] == "all"


def test_all_pages_of_fills_are_read():
    rows = [{"id": f"2026::{n:03d}", "order_id": ID, "symbol": "AAPL", "side": "buy", "qty": "1",
             "price": "10", "transaction_time": "2026-03-02T14:30:00Z"} for n in range(250)]

    def handler(method, path, query):
        start = 0 if "page_token" not in query else int(query["page_token"][6:]) + 1
        return 200, rows[start:start + 100]

    found, seen = ask(handler, lambda r: r.fills("2026-03-02T00:00:00Z"))
    assert [f.id for f in found] == [r["id"] for r in rows] and len(seen) == 3
    assert seen[0][2]["after"] == "2026-03-02T00:00:00Z"


def test_orders_by_either_id_and_none():
    def handler(method, path, query):
        if path == "/v2/orders:by_client_order_id":
            return (200, order(5)) if query["client_order_id"].endswith("-5") else (404, {})
        return (200, order(6)) if path.endswith(ID) else (404, {"code": 40410000})

    found, _ = ask(handler, lambda r: (r.order_by_client_id("hp-1-5"), r.order_by_client_id("no"),
                                       r.order(ID), r.order("other")))
    assert found[0].id.endswith("5") and found[2].id.endswith("6")
    assert found[1] is None and found[3] is None


def test_cancels():
    def handler(method, path, query):
        assert method == "DELETE"
        return {"/v2/orders": (207, [{"id": ID, "status": 200}, {"id": ID, "status": 500}]),
                "/v2/orders/a": (204, b""), "/v2/orders/b": (422, {"code": 42210000}),
                "/v2/orders/c": (404, b""), "/v2/orders/d": (500, b"")}[path]

    found, _ = ask(handler, lambda r: (r.cancel_all(), r.cancel("a"), r.cancel("b"), r.cancel("c")))
    assert found == (2, True, False, False)
    with pytest.raises(VenueError, match="HTTP 500"):
        ask(handler, lambda r: r.cancel("d"))


@pytest.mark.parametrize("status, body, code, text", [
    (401, {"message": "unauthorized."}, None, "HTTP 401, unauthorized."),
    (403, {"code": 40310000, "message": "x"}, 40310000, "HTTP 403"),
    (429, {"code": 42910000, "message": "too many requests"}, 42910000, "HTTP 429"),
    (500, b"<html>down</html>", None, "HTTP 500, <html>down"), (302, b"", None, "HTTP 302"),
    (204, b"", None, "HTTP 204")])
def test_refusals_are_errors_with_status_and_code(status, body, code, text):
    with pytest.raises(VenueError, match=text) as failure:
        ask(lambda *_: (status, body), lambda r: r.account())
    assert (failure.value.status, failure.value.code) == (status, code)
    assert SECRET not in str(failure.value)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", {"id": 5}, b"\xff"])
def test_bodies_that_are_none_are_data_errors(body):
    with pytest.raises(DataError, match="GET /v2/account"):
        ask(lambda *_: (200, body), lambda r: r.account())


def test_a_kept_connection_that_died_is_opened_again_once():
    calls = 0

    def handler(method, path, query):
        nonlocal calls
        calls += 1
        return None if calls == 2 else (200, [])

    found, seen = ask(handler, lambda r: (r.positions(), r.positions()))
    assert found == ([], []) and len(seen) == 3


def test_a_venue_that_is_gone_is_an_error():
    with pytest.raises(VenueError, match="GET /v2/positions failed") as failure:
        ask(lambda *_: None, lambda r: r.positions())
    assert failure.value.status == 0


def test_silence_is_a_deadline():
    async def forever():
        await asyncio.Event().wait()

    with pytest.raises(DeadlineError, match=r"within 0\.05 s"):
        ask(lambda *_: forever(), lambda r: r.account(), timeout=0.05)


def test_bad_address_and_repr():
    with pytest.raises(ConfigError, match="http"):
        Rest("ws://x", "k", "s")
    assert repr(Rest("http://host:99/base/", "k", SECRET)) == "<Rest host:99/base>"


# ---------------------------------------------------------------- reconciliation

@pytest.mark.parametrize("text, wanted", [
    ("2026-03-02T14:30:00Z", "2026-03-02T14:29:59.999999999Z"),
    ("2026-03-02T14:30:00.123456Z", "2026-03-02T14:30:00.123455999Z"),
    ("2026-01-01T00:00:00-05:00", "2026-01-01T04:59:59.999999999Z")])
def test_one_nanosecond_earlier(text, wanted):
    assert rest.earlier(text) == wanted
