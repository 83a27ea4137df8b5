"""``hftpipe record``: market data into a recording of ours, from a feed or another recording."""
from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hftpipe.cli._common import RATE, SECONDS, SEED, Settings, count, shared
from hftpipe.errors import ConfigError, DeadlineError, HftpipeError, UsageError

if TYPE_CHECKING:
    import subprocess

    import numpy

    from hftpipe.config import Config
    from hftpipe.recording import Writer

QUIET = 2.0                     # s without a word about progress
BATCH = 2048                    # records of one block while a feed is recorded
TICK = 0.1                      # s between two looks at a live recording


@click.command(epilog="Example: hftpipe record --out day.rec --for 10s")
@click.option("--out", metavar="FILE", required=True, help="The new recording; must not exist.")
@click.option("--for", "seconds", type=SECONDS, metavar="TIME",
              help="How long to record a feed, e.g. 10s; default until ^C or SIGTERM.")
@click.option("--data", metavar="FILE",
              help="Convert this recording instead, of any format that backtest reads.")
@click.option("--symbols", metavar="A,B", help="Only these; default all.")
@click.option("--seed", type=SEED, default=7, show_default=True,
              help="Of the local exchange's simulated traders.")
@click.option("--rate", type=RATE, default=2000, show_default=True,
              help="Market data messages per second of the local exchange.")
@shared
@click.pass_obj
def command(settings: Settings, out: str, seconds: float | None, data: str | None,
            symbols: str | None, seed: int, rate: float) -> int:
    """Write a recording of market data, which `hftpipe backtest --data` reads.

    From the configured feed; with profile demo the local exchange is started for it. Nothing is
    traded. With --data another recording is converted: event for event the same, so a backtest
    of either gives the same result.
    """
    from hftpipe import worker
    if data is not None and seconds is not None:
        raise UsageError("--for belongs to a live feed, --data to a recording; wanted one of them")
    chosen = symbols.split(",") if symbols else None
    path = worker.recording_path(out)
    part = path.with_name(f".{path.name}.{os.getpid()}")        # becomes *path* when it is whole
    progress = Progress(settings)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)     # cleans up, like ^C
    try:
        if data is not None:
            found = convert(data, part, chosen, progress)
        else:
            found = live(settings.load(), part, seconds, chosen, seed, rate, progress)
        try:
            os.link(part, path)                                 # unlike rename, never overwrites
        except OSError as error:
            raise ConfigError(f"cannot write recording {path}: {error.strerror}") from None
    finally:
        signal.signal(signal.SIGTERM, before)
        progress.end()
        part.unlink(missing_ok=True)
    code = int(found.setdefault("exit", 0))
    found = {"out": str(path), **found, "bytes": path.stat().st_size}
    if settings.json:
        print(json.dumps(found))
    else:
        print(f"{path}   {found['source']}   {', '.join(found['symbols'][:8])}"
              f"{', ...' if len(found['symbols']) > 8 else ''}   {count(found['events'])} events "
              f"of {found['span_s']:,.1f} s   {count(found['bytes'])} bytes")
    if code:
        print(f"error: {found['error']}; what came before is recorded", file=sys.stderr)
    return code


class Progress:
    """One line about how far it is, on a terminal, from two seconds on."""

    def __init__(self, settings: Settings) -> None:
        self._wanted = sys.stderr.isatty() and not settings.json
        self._next = time.monotonic() + QUIET
        self._open = False

    def __call__(self, events: int) -> None:
        """Say that *events* are written."""
        if self._wanted and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.5
            self._open = True
            print(f"\r\x1b[2K{count(events)} events", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the line away."""
        if self._open:
            self._open = False
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------- as the feed stage stores it

class Market:
    """Gives market records the envelopes that a feed stage would, and writes them.

    Attributes
    ----------
    seq : int
        Of the newest event; the first is 1.
    first, last : int, ns
        ``ts_recv`` of the oldest and newest record.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.seq = self.first = self.last = 0

    def write(self, records: numpy.ndarray[Any, Any], ts: Any) -> None:
        """Append (n,) MARKET *records* of whole messages, stored at *ts* (ns, one or each)."""
        import numpy

        from hftpipe import schema
        from hftpipe.store.verify import checksum
        n = len(records)
        if not n:
            return
        self.first = self.first or int(records["ts_recv"][0])
        self.last = int(records["ts_recv"][-1])
        body = numpy.array(records, schema.dtype(schema.MARKET))
        body["link_seq"] = 0
        body["event"] = (numpy.arange(self.seq + 1, self.seq + n + 1, dtype="<u8")
                         | numpy.uint64(schema.STREAM.FEED << schema.SEQ_BITS))
        body["hop"] = numpy.clip(ts - body["ts_recv"], 0, 65535)
        head = numpy.zeros(n, schema.dtype(schema.ENVELOPE))
        for name in ("event", "instrument"):
            head[name] = body[name]
        head["ts"], head["ts_in"] = ts, body["ts_recv"]
        head["record"], head["lines"] = schema.RECORD.MARKET, 1
        head["checksum"] = checksum(body.view("<u8").reshape(n, 8))
        self._writer.write(schema.STREAM.FEED, numpy.concatenate(
            [part.view("u1").reshape(n, 64) for part in (head, body)], axis=1))
        self.seq += n


def summary(market: Market, source: str, table: Any, **more: Any) -> dict[str, Any]:
    """What was written, JSON-ready."""
    return {"source": source, "symbols": [row["symbol"].decode() for row in table],
            "events": market.seq, "span_s": (market.last - market.first) / 1e9, **more}


# ---------------------------------------------------------------- from a recording

def convert(data: str | Path, out: Path, symbols: list[str] | None,
            progress: Callable[[int], None]) -> dict[str, Any]:
    """Write the market data of recording *data* into the new file *out*.

    Raises
    ------
    DataError
        If *data* is unreadable, malformed or cut off, or *out* cannot be written.
    """
    from hftpipe import recording
    from hftpipe.backtest import readers
    reader = readers.open_recording(data, symbols=symbols)
    table = reader.instruments
    with recording.Writer(out, table, run=1, utc_offset=int(getattr(reader, "utc_offset", 0)),
                          profile="record", config={"source": reader.format}) as writer:
        market = Market(writer)
        for chunk in reader:
            market.write(chunk, chunk["ts_recv"] + chunk["hop"])
            progress(market.seq)
    return summary(market, reader.format, table)


# ---------------------------------------------------------------- from a feed

def live(config: Config, out: Path, seconds: float | None, symbols: list[str] | None, seed: int,
         rate: float, progress: Callable[[int], None]) -> dict[str, Any]:
    """Write what the configured feed sends into the new file *out*.

    What ends a recording before its time is in the summary as ``exit`` and ``error``; what came
    until then is kept.

    Raises
    ------
    ConfigError
        If the venue refuses credentials or subscription.
    DeadlineError
        If no market data came.
    HftpipeError
        If the local exchange ends before anything came.
    """
    from hftpipe import _clock, build, recording
    table = build.instruments(config)
    if symbols is not None:
        known = [row["symbol"].decode() for row in table]
        unknown = [s for s in symbols if s not in known]
        if unknown:
            raise UsageError(f"symbols must be instruments of the configuration "
                             f"({', '.join(known)}), was {unknown[0]!r}")
        table = table[[known.index(s) for s in symbols]]
    with ExitStack() as stack:
        process = None
        if config.venue.kind == "local":
            from hftpipe.secret import Secret
            from hftpipe.venue import server
            names = ",".join(row["symbol"].decode() for row in table)
            process, found = stack.enter_context(server.spawn(
                "--symbols", names, "--seed", str(seed), "--rate", str(rate)))
            url = found["data_stream"]
            key, secret = Secret.literal(found["key"]), Secret.literal(found["secret"])
        else:
            url, key, secret = config.venue.data_stream, config.venue.key, config.venue.secret
        writer = stack.enter_context(recording.Writer(
            out, table, run=_clock.utc_ns(), utc_offset=_clock.utc_ns() - _clock.now_ns(),
            profile=config.profile, config={"source": url}))
        market = Market(writer)
        counters: dict[str, Any] = {}
        try:
            counters = asyncio.run(_feed(config, url, key, secret, table, market, seconds,
                                         process, progress))
        except HftpipeError as error:
            if not market.seq:
                raise
            counters = {"exit": int(error.exit_code), "error": str(error)}
    if not market.seq:
        raise DeadlineError(f"no market data from {url}"
                            + (f" within {seconds:g} s" if seconds is not None else ""))
    return summary(market, url, table, **counters)


async def _feed(config: Config, url: str, key: Any, secret: Any, table: Any, market: Market,
                seconds: float | None, process: subprocess.Popen[str] | None,
                progress: Callable[[int], None]) -> dict[str, int]:
    from hftpipe import _clock
    from hftpipe.alpaca._codec import Decoder
    from hftpipe.alpaca.feed import Feed
    decoder = Decoder(table)
    stop = asyncio.Event()
    waiting: list[Any] = []
    held = 0
    binary = config.venue.encoding == "msgpack"

    def flush() -> None:
        nonlocal held
        import numpy
        if waiting:
            market.write(numpy.concatenate(waiting), _clock.now_ns())
            waiting.clear()
            held = 0

    def add(records: Any) -> None:
        nonlocal held
        if len(records):
            waiting.append(records)
            held += len(records)
            if held >= BATCH:
                flush()

    def on_frame(payload: memoryview, ts_recv: int) -> None:
        add(decoder.records(payload, ts_recv) if binary
            else decoder.records_json(bytes(payload), ts_recv))

    def on_gap(ts_recv: int) -> None:
        if not stop.is_set():           # our own end is no gap
            add(decoder.gap(ts_recv))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    client = Feed(url, key, secret, [row["symbol"].decode() for row in table], on_frame, on_gap,
                  encoding=config.venue.encoding)
    task = asyncio.create_task(client.run(stop))
    end = None
    try:
        while not stop.is_set() and not task.done():
            if client.live and end is None and seconds is not None:
                end = time.monotonic() + seconds        # connecting is not recording
            if end is not None and time.monotonic() >= end:
                break
            if process is not None and process.poll() is not None:
                raise HftpipeError(f"the local exchange ended with {process.returncode}")
            await asyncio.sleep(TICK)
            flush()
            progress(market.seq)
    finally:
        stop.set()
        await task
        flush()
    counters = decoder.counters()
    return {"frames": client.frames, "dropped": counters["drops"], "errors": counters["errors"],
            "gaps": client.gaps - 1 if client.gaps else 0, "reconnects": client.reconnects}
