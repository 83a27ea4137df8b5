"""Our pipeline for ``bench_pipe``: all stages fused in one spinning loop, from recv to send."""
from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness

CORE, PORT, COUNT = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
WARM_UP, TLS = int(sys.argv[4]), "s" if "tls" in sys.argv[5:] else ""


def main() -> None:
    always = harness.compiled("_always")
    from hftpipe import _control, build, config, schema, shm, topology
    from hftpipe._host import WAIT_SPIN, Host
    from hftpipe._model import Model
    from hftpipe.alpaca import session
    from hftpipe.alpaca._codec import Decoder
    from hftpipe.alpaca._http import AlpacaWire
    from hftpipe.alpaca._source import SocketSource
    from hftpipe.limits import default_limits, without_figures
    from hftpipe.models import DEMO

    # The sink refuses each order and quotes repeat: what would stop on that is off, and so are
    # the checks that take figures from outside; what all of them cost is in bench_risk.
    why = "off: the sink of the bench refuses every order, and its quotes come without trades"
    risk = without_figures(default_limits("demo"), "no analyst in this bench") | {
        "max_orders_per_minute": 65_536, "duplicate_window_ms": why, "breaker_rejects": why,
        "last_collar_bps": why}
    cfg = config.loads("[[instruments]]\nsymbol = 'ACME'\n[risk]\n" + "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in risk.items()), env={})
    table = build.instruments(cfg)
    aligned = shm.create_control(1, stages=[s.name for s in topology.STAGES], started=1,
                                 token_key=99)
    control = _control.Control(aligned.memory)
    aligned.unlink()
    control.resume(control.halt_epoch)
    links = build.PrivateLinks({"feed.store": 1 << 18})
    decoder = Decoder(table)
    sources = []

    def source() -> SocketSource:
        made = SocketSource(lambda: session.open_data_stream(
            f"ws{TLS}://127.0.0.1:{PORT}/v2/iex", "k", "s", ["ACME"]), decoder)
        made.open()
        sources.append(made)
        return made

    def wire(_: object) -> AlpacaWire:
        made = AlpacaWire(f"http{TLS}://127.0.0.1:{PORT}", "k", "s", 1, table, connections=2,
                          rate_per_minute=0)
        made.open()
        return made

    names = ("feed", "book", "signal", "risk", "gateway", "ledger")
    made = build.stages(names, links, cfg, table, control=control, wire=wire, source=source,
                        strategies=lambda: [always.Always(Model(DEMO))])
    drains = [(links.consumer(f"{n}.store")) for n in names]
    gateway = control.stage(topology.INDEX["gateway"])
    os.sched_setaffinity(0, {CORE})
    gc.collect()
    gc.freeze()

    base: dict[str, object] = {}

    def housekeeping() -> None:
        """What the store process does in a real run: give the slots back."""
        for ring in drains:
            if ring is not None and ring.occupancy > 0.25:
                while n := len(ring.peek(1 << 20)):
                    ring.release(n)
                ring.flush()
        sent = gateway.counter("orders_sent")
        if not base and sent >= WARM_UP:
            base.update({m.name: control.histogram(m.name) for m in schema.HISTOGRAMS})
        if sent >= COUNT or not sources[0].connected:
            control.request_stop(1)

    Host(made, control, WAIT_SPIN, every=housekeeping).run()
    out = {}
    for m in schema.HISTOGRAMS:
        h = control.histogram(m.name)
        if m.name in base:
            h = h.since(base[m.name])
        if h.count:
            out[m.name] = {"count": h.count, "p50": h.percentile(50), "p99": h.percentile(99),
                           "p999": h.percentile(99.9), "max": h.max}
    print(json.dumps({"hops": out, "sent": gateway.counter("orders_sent"),
                      "denied": control.stage(topology.INDEX["risk"]).counter("denied")}))


if __name__ == "__main__":
    main()
