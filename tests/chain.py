"""The whole pipeline inline over private rings, for tests: what goes in, what is stored."""
import numpy

from hftpipe import build, config, schema
from hftpipe._strategy import PyStrategy, Strategy
from hftpipe.backtest._replay import Inline
from hftpipe.backtest._sim import SimWire
from hftpipe.limits import LIMITS, default_limits, without_figures

NANO = 1_000_000_000
# The checks that are as old as the pipeline; a test says which others it wants.
BASIC = {name: value if LIMITS[i].off is None or i < 12 else "off: not in this test"
         for i, (name, value) in enumerate(
             without_figures(default_limits(), "no analyst in a chain").items())}


def table(count=1):
    out = numpy.zeros(count, schema.dtype(schema.INSTRUMENT))
    out["symbol"] = [f"SYM{i}".encode() for i in range(count)]
    out["tick"], out["lot"], out["min_qty"] = NANO // 100, NANO, NANO
    out["base_price"] = 100 * NANO
    return out


def quote(ts, bid, ask, bid_qty=100, ask_qty=100, instrument=0):
    """The two records of one quote; prices in cents."""
    out = numpy.zeros(2, schema.dtype(schema.MARKET))
    out["ts_recv"], out["ts_venue"], out["instrument"] = ts, ts, instrument
    out["kind"] = schema.MARKET_KIND.QUOTE
    out["side"] = [1, -1]
    out["price"] = [bid * NANO // 100, ask * NANO // 100]
    out["qty"] = [bid_qty * NANO, ask_qty * NANO]
    out["flags"] = [0, schema.MARKET_FLAG.LAST]
    return out


class Chain:
    """All stages of a backtest, with a Python strategy."""

    def __init__(self, on_event, capacity=None, instruments=None, limits=None, latency=1000,
                 settings="", board=None, control=None, durable=False):
        self.links = build.PrivateLinks(capacity)
        self.table = table() if instruments is None else instruments
        cfg = config.loads(settings, env={})
        object.__setattr__(cfg, "risk", {**BASIC, **(limits or {})})
        strategies = [f if isinstance(f, Strategy) else PyStrategy(f) for f in (
            on_event if isinstance(on_event, list) else [on_event])]

        def wire(made):
            self.wire = SimWire(made[1].handles, latency)
            return self.wire

        self.stages = build.stages(
            ("feed", "book", "signal", "risk", "gateway", "ledger"), self.links, cfg, self.table,
            strategies=lambda: strategies, wire=wire, board=board, control=control,
            durable=durable)
        self.feed, self.book, self.signal, self.risk, self.gateway, self.ledger = self.stages
        self.inline = Inline(*self.stages, self.wire)

    def stored(self, stage):
        """``[(envelope, body), ...]`` a stage has put on its store link since last asked."""
        ring = self.links.consumer(f"{stage}.store")
        out = []
        while (slot := ring.pop()) is not None:
            head = numpy.frombuffer(slot[:64], schema.dtype(schema.ENVELOPE))[0]
            record = schema.BODIES[int(head["record"])]
            body = numpy.frombuffer(slot[64:64 + record.size], schema.dtype(record))[0]
            out.append((head, body))
        ring.flush()
        return out

    def bodies(self, stage, record):
        """Bodies of one record kind among what :meth:`stored` gives."""
        number = next(n for n, r in schema.BODIES.items() if r is record)
        return [b for h, b in self.stored(stage) if h["record"] == number]
