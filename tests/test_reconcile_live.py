"""A real run whose venue is heard badly ends with the venue's orders and positions."""
import json
import random
import re
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from hftpipe.limits import PROFILES
from hftpipe.venue import server
from tests.models.live import check_rows, database, runs, until
from tests.models.proxy import Proxy


@pytest.fixture
def run(tmp_path):
    with runs(tmp_path / "run") as go:
        yield go


class Scene:
    """A local venue with a proxy before one of its addresses."""

    def __init__(self, tmp_path, through, lose=lambda head: False):
        self.log = tmp_path / "venue/orders.jsonl"
        self.stack = ExitStack()
        _, found = self.stack.enter_context(server.spawn(
            "--symbols", "AAPL,MSFT", "--rate-limit", "0", "--state", str(self.log.parent)))
        urls = {name: found[name] for name in ("rest", "data_stream", "updates_stream")}
        self.proxy = self.stack.enter_context(
            Proxy("127.0.0.1", urlsplit(urls[through]).port, lose))
        urls[through] = re.sub(r":\d+", f":{self.proxy.port}", urls[through], count=1)
        self.options = [part for setting in (
            "profile=paper", *(f"venue.{name}={url}" for name, url in urls.items()),
            "gateway.rate_per_minute=1000000/min", "gateway.timeout=1s",
            "gateway.max_unknown=1000", "risk.breaker_failures=1000000",
            *(f"risk.{name}={value}" for name, value in PROFILES["demo"].items()))
            for part in ("--set", setting)]
        self.env = {"ALPACA_API_KEY": found["key"], "ALPACA_SECRET_KEY": found["secret"]}

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.stack.close()

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def truth(lines):
    """Per symbol what the venue's log says is held, and the client order ids it accepted."""
    held, ids, symbol_of = {}, [], {}
    for line in lines:
        if line["kind"] == "order":
            ids.append(line["client_order_id"])
            symbol_of[line["id"]] = line["symbol"]
        elif line["kind"] == "event" and line["event"] in ("fill", "partial_fill"):
            held[symbol_of[line["id"]]] = float(line["position_qty"])
    return held, ids


def ended(live, scene):
    """The run drains; the venue's positions are the database's, and no order was sent twice."""
    live.popen.terminate()
    assert live.end() == 0, live.err
    held, ids = truth(scene.lines())
    assert len(ids) == len(set(ids))
    with database(live.path) as c:
        check_rows(c, live.run, live.recorded())
        ours = {symbol: float(qty) for symbol, qty in c.execute(
            "SELECT symbol, quantity FROM hftpipe.positions WHERE run = %s", (live.run,))}
    assert {s: q for s, q in held.items() if q} == {s: q for s, q in ours.items() if q}
    return ids


def test_updates_that_were_down_are_made_up_for_before_the_gate_opens(tmp_path, run):
    with Scene(tmp_path, "updates_stream") as scene:
        proxy = scene.proxy
        live = run(*scene.options, **scene.env).up().trades(3)
        for _ in range(3):
            fills = live.counter("gateway", "fills")
            proxy.cut()
            until(lambda: live.counter("updates", "unsettled"), "the gate closes", live.popen)
            sent = live.counter("gateway", "orders_sent")
            until(lambda: live.counter("risk", "denied") > 0, "refusals", live.popen)
            proxy.heal()
            until(lambda: not live.counter("updates", "unsettled"), "it opens", live.popen)
            until(lambda: live.counter("gateway", "fills") > fills, "trading", live.popen)  # noqa: B023
            assert live.counter("gateway", "orders_sent") >= sent
        assert live.control.trading == "armed"
        assert live.counter("updates", "reconnects") >= 3
        ended(live, scene)


@pytest.mark.parametrize("seed", [1, 2])
def test_orders_whose_answers_are_lost_are_found_and_none_is_sent_twice(tmp_path, run, seed):
    rng = random.Random(seed)
    with Scene(tmp_path, "rest", lambda head: head.startswith(b"POST") and rng.random() < 0.3
               ) as scene:
        proxy = scene.proxy
        live = run(*scene.options, **scene.env).up().trades(3)
        until(lambda: proxy.lost >= 10 and live.counter("gateway", "fills") >= 10, "losses",
              live.popen)
        until(lambda: not live.counter("gateway", "orders_unknown"), "all are known", live.popen)
        assert live.control.trading == "armed"
        ids = ended(live, scene)
        assert len(ids) >= proxy.lost
