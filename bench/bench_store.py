"""Rows per second into PostgreSQL: what the cold path sustains, encoding alone and end to end.

Hot path   one pass of StoreWriter: peek, check, encode, COPY, mark, commit, release
Input      random market events and the mixture of the signal stage, in a ring, 4,096 per batch
Server     the embedded one, fsync on, in a temporary directory
Peers      the same rows through psycopg: write_row (binary), write_row (text), executemany

Small by default; HFTPIPE_BENCH=full for the figures in the documents.  The database holds,
after the measurement, exactly the rows that were pushed, or the bench fails.
"""
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hftpipe import schema
from hftpipe._ring import pair
from hftpipe.store import layout
from hftpipe.store.encode import body_words, encoder
from hftpipe.store.migrate import migrate
from hftpipe.store.postgres import Postgres
from hftpipe.store.verify import checksum, verify
from hftpipe.store.writer import Run, StoreWriter
from tests.models import store as naive

FULL = os.environ.get("HFTPIPE_BENCH") == "full"
BATCH = 4096
BATCHES = 100 if FULL else 8
PEER_BATCHES = 10 if FULL else 1
RUN = Run(1_700_000_000_000_000_000, 5, "bench")


@pytest.fixture(scope="module")
def conninfo():
    place = tempfile.mkdtemp(prefix="hpbench")
    server = Postgres(Path(place) / "run")
    try:
        migrate(server.start())
        yield server.conninfo
    finally:
        server.stop()
        shutil.rmtree(place)


def events(stream, count):
    return [naive.random_slot(stream, n, seed=9) for n in range(1, count + 1)]


def full_ring(stream=1, count=BATCH):
    producer, consumer = pair(schema.STORED if stream == 1 else schema.STORED_VECTOR, BATCH)
    for raw in events(stream, count):
        assert producer.push(raw)
    return consumer


def test_encode(benchmark):
    e, slots = encoder(schema.RECORD.MARKET, schema.STORED), full_ring().peek(BATCH)
    data = benchmark(e.encode, slots, RUN.run)
    assert len(data) % BATCH == 0
    benchmark.extra_info["rows_per_second"] = round(BATCH / benchmark.stats.stats.median)


def test_checksum(benchmark):
    words = body_words(full_ring().peek(BATCH), schema.STORED, 8)
    benchmark(checksum, words)
    benchmark.extra_info["rows_per_second"] = round(BATCH / benchmark.stats.stats.median)


@pytest.mark.parametrize("stream", [1, 3], ids=["market", "signal"])
def test_end_to_end(benchmark, conninfo, stream):
    """Each round stores one full batch; filling the ring is not part of it."""
    producer, consumer = pair(schema.STORED if stream == 1 else schema.STORED_VECTOR, BATCH)
    run = Run(RUN.run + stream, 5, "bench")
    made, recorded = 0, 0
    block = events(stream, BATCH * (BATCHES + 2))
    sums = [naive.checksum(naive.body_of(raw)) for raw in block]

    def fill():
        nonlocal made, recorded
        for raw in block[made:made + BATCH]:
            assert producer.push(raw)
        recorded = (recorded + sum(sums[made:made + BATCH])) % 2**64
        made += BATCH
    with StoreWriter({stream: consumer}, conninfo, run) as writer:
        fill()
        assert writer.step() == BATCH
        rows = benchmark.pedantic(writer.step, setup=fill, rounds=BATCHES, warmup_rounds=1)
        assert rows == BATCH
        assert writer.totals.errors == 0
    report = verify(conninfo, run.run, {stream: (made, recorded)})
    assert report.ok, str(report)
    times = benchmark.stats.stats.data
    benchmark.extra_info["rows_per_second"] = round(BATCH * len(times) / sum(times))
    benchmark.extra_info["p99_ms"] = round(sorted(times)[int(len(times) * 0.99)] * 1e3, 2)


def peer(conninfo, number, store):
    """Rows per second of *store* for the same market rows, a fresh run each time."""
    columns = layout.columns(schema.MARKET)
    raws = events(1, BATCH)
    slots = full_ring().peek(BATCH)
    values = []
    for raw, slot in zip(raws, slots, strict=True):
        row = []
        for c in columns[3:]:
            code = {"u64": "q"}.get(c.field.type, naive.CODES[c.field.type])
            row.append(int.from_bytes(raw[c.at:c.at + c.field.size], "little",
                                      signed=code.islower()))
        values.append((1, int(slot["event"]) & (1 << 56) - 1, *row))
    times = []
    with psycopg.connect(conninfo) as c:
        for n in range(PEER_BATCHES):
            rows = [(number * 1000 + n, *v) for v in values]
            began = time.perf_counter()
            store(c, rows)
            c.commit()
            times.append(time.perf_counter() - began)
    return BATCH / statistics.median(times)


def write_row(types):
    def store(c, rows):
        text = layout.copy_in(schema.MARKET)
        if not types:
            text = text.replace(b" (FORMAT BINARY)", b"")
        with c.cursor().copy(text) as copy:
            if types:
                copy.set_types([x.sql for x in layout.columns(schema.MARKET)])
            for row in rows:
                copy.write_row(row)
    return store


def executemany(c, rows):
    marks = ", ".join(["%s"] * len(rows[0]))
    c.cursor().executemany(f"INSERT INTO {layout.table(schema.MARKET)} "
                           f"({layout.column_list(schema.MARKET)}) VALUES ({marks})", rows)


@pytest.mark.parametrize("name, store", [
    ("write_row binary", write_row(True)), ("write_row text", write_row(False)),
    ("executemany", executemany)], ids=lambda v: v if isinstance(v, str) else "")
def test_peer(benchmark, conninfo, name, store):
    number = random.randrange(1, 1 << 30)
    rate = benchmark.pedantic(peer, (conninfo, number, store), rounds=1)
    benchmark.extra_info["rows_per_second"] = round(rate)
