"""Our pipeline for ``bench_pipe``: all stages fused in one spinning loop, from recv to send."""
from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from pathlib import Path

CORE, PORT, COUNT = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
WARM_UP = int(sys.argv[4])


def build_always() -> None:
    """Compile the bench's strategy as an author would, against the installed package."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    import hftpipe
    place = Path(tempfile.gettempdir()) / f"hftpipe-bench-{os.getuid()}-{sys.version_info[1]}"
    place.mkdir(mode=0o700, exist_ok=True)
    source = Path(__file__).with_name("_always.pyx")
    target = place / source.name
    target.write_bytes(source.read_bytes())
    package = Path(hftpipe.__file__).parent
    cwd = os.getcwd()
    os.chdir(place)
    try:
        stdout = os.dup(1)
        os.dup2(2, 1)
        dist = Distribution({"ext_modules": cythonize(
            [Extension("_always", ["_always.pyx"], include_dirs=[hftpipe.get_include()],
                       extra_compile_args=["-O3"])],
            include_path=[str(package.parent)], language_level=3, quiet=True)})
        command = dist.get_command_obj("build_ext")
        command.inplace = True
        command.ensure_finalized()
        command.run()
        os.dup2(stdout, 1)
    finally:
        os.chdir(cwd)
    sys.path.insert(0, str(place))


def main() -> None:
    build_always()
    import _always

    from hftpipe import _control, build, config, schema, shm, topology
    from hftpipe._host import WAIT_SPIN, Host
    from hftpipe._model import Model
    from hftpipe.alpaca import session
    from hftpipe.alpaca._codec import Decoder
    from hftpipe.alpaca._http import AlpacaWire
    from hftpipe.alpaca._source import SocketSource
    from hftpipe.models import DEMO

    cfg = config.loads(
        "[[instruments]]\nsymbol = 'ACME'\n[risk]\nmax_orders_per_minute = 1000000", env={})
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
            f"ws://127.0.0.1:{PORT}/v2/iex", "k", "s", ["ACME"]), decoder)
        made.open()
        sources.append(made)
        return made

    def wire(_: object) -> AlpacaWire:
        made = AlpacaWire(f"http://127.0.0.1:{PORT}", "k", "s", 1, table, connections=2,
                          rate_per_minute=0)
        made.open()
        return made

    names = ("feed", "book", "signal", "risk", "gateway", "ledger")
    made = build.stages(names, links, cfg, table, control=control, wire=wire, source=source,
                        strategies=lambda: [_always.Always(Model(DEMO))])
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
