"""What a stream sends that nobody can read is counted on the page and said in the log."""
import asyncio
import json
from types import SimpleNamespace

import numpy

from hftpipe import _control, config, schema, worker
from hftpipe.alpaca.updates import Reader


class Page(dict):
    """A stage's block, and the control page around it."""

    def __init__(self, beats):
        super().__init__()
        self.state, self.left = 0, beats

    def set(self, name, value):
        self[name] = value

    def count(self, name):
        self[name] = self.get(name, 0) + 1

    def stage(self, index):
        return self

    @property
    def stop(self):
        self.left -= 1
        return _control.QUIT if self.left < 0 else _control.RUN


def context(page):
    said = []
    log = SimpleNamespace(info=lambda event, **more: said.append((event, more)),
                          warning=lambda event, **more: said.append((event, more)),
                          error=lambda event, **more: said.append((event, more)))
    table = numpy.zeros(1, schema.dtype(schema.INSTRUMENT))
    table["symbol"] = b"AAPL"
    return said, SimpleNamespace(
        private={"venue": {"data_stream": "", "updates_stream": "", "key": "k", "secret": "s"}},
        control=page, table=table, log=log, config=config.loads(""),
        run=SimpleNamespace(run=1), ended=lambda *_: True)


def test_malformed_order_updates():
    class Updates:
        live, reconnects = True, 0

        def __init__(self, url, key, secret, run, instruments, sink, **more):
            self.reader = Reader(run, instruments)

        async def run(self, stop):
            for bad in (b"\xff{{", json.dumps({"stream": "trade_updates", "data": {}}).encode()):
                assert self.reader.records(bad, 1) is None
            await stop.wait()

    page = Page(3)
    said, made = context(page)
    stage = SimpleNamespace(put_many=len, take=lambda: [])
    asyncio.run(worker._updates(made, stage, Updates))
    assert page["errors"] == 2
    assert said == [("malformed order updates", {"messages": 2})]


def test_malformed_market_data_is_said_at_1_2_4_and_so_on():
    class Decoder:
        errors = 0

        def counters(self):
            self.errors += 1
            return {"drops": 0, "ignored": 0, "errors": self.errors}

    class Feed:
        live, reconnects = True, 0

        def __init__(self, *_, **__):
            pass

        async def run(self, stop):
            await stop.wait()

    page = Page(8)
    said, made = context(page)
    asyncio.run(worker._feed(made, SimpleNamespace(put_many=lambda r: True), Feed, Decoder()))
    assert page["errors"] == 9
    assert [more["messages"] for event, more in said] == [1, 2, 4, 8]
    assert {event for event, _ in said} == {"malformed market data"}


def test_what_becomes_of_a_feed_in_the_loop_is_said_once_each():
    said, made = context(Page(0))
    source = SimpleNamespace(connected=True, closed=None, connections=1, errors=0, reports=0,
                             report=None, trouble=None)
    source.figures = lambda: {"errors": source.errors}
    tell = worker.source_news(source, made.log)
    for change in ({}, {"connected": False, "closed": "lost"}, {}, {"closed": "refused"},
                   {"connected": True, "connections": 2}, {}, {"errors": 1}, {"errors": 3}, {},
                   {"reports": 1, "report": "the venue answered error 405"}, {}):
        vars(source).update(change)
        tell()
    assert said == [
        ("market data lost", {"cause": "lost"}),
        ("no connection for market data", {"cause": "refused"}),
        ("market data are back", {"reconnects": 1}),
        ("malformed market data", {"messages": 1}), ("malformed market data", {"messages": 3}),
        ("the market data stream reports", {"cause": "the venue answered error 405"})]


def test_what_becomes_of_gaps_is_said_once_each():
    said, made = context(Page(0))
    backfill = SimpleNamespace(gaps=0, cut=0, refused={})
    tell = worker.backfill_news(backfill, made.log)
    for change, trouble in (({}, None), ({"gaps": 1}, None), ({}, None), ({"gaps": 2}, "no page"),
                            ({}, "no page"), ({"cut": 1}, "no page"),
                            ({"refused": {"trades": "HTTP 403"}}, "no page"), ({}, "no page")):
        vars(backfill).update(change)
        tell(trouble)
    assert said == [
        ("a gap was asked for", {"gaps": 1}), ("a gap could not be filled", {"cause": "no page"}),
        ("a gap was asked for", {"gaps": 2}),
        ("a gap had more rows than feed.backfill_rows", {"times": 1}),
        ("gaps are not filled any more", {"kind": "trades", "cause": "HTTP 403"})]
    worker.backfill_news(None, made.log)("nobody asks")


def test_a_stream_without_history_is_not_asked_for():
    _, made = context(Page(0))
    for stream, wanted in (("", False), ("ws://127.0.0.1:1/v2/test", False),
                           ("ws://127.0.0.1:1/v2/iex", True)):
        made.private["venue"]["data_stream"] = stream
        assert (worker.feed_backfill(made) is not None) is wanted
    made.config = config.loads("[feed]\nbackfill = []")
    assert worker.feed_backfill(made) is None
