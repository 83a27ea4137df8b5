"""Group commit of the journal: records a second, and the time of one write to the disk.

python bench/bench_journal.py [DIRECTORY]

DIRECTORY (default: a temporary one here) is on the disk that is measured.  Groups of 1 to 1024
events of one stream go through Drain, from a ring to the disk; with real-time priority where it
is permitted.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy

from hftpipe import _clock, schema
from hftpipe._ring import pair
from hftpipe.journal.drain import Drain
from hftpipe.journal.run import realtime
from hftpipe.journal.write import Journal

ROUNDS = 400


def measure(directory: Path, group: int) -> dict[str, float]:
    """Records a second and percentiles of the write, in us, of groups of so many events."""
    record = schema.STORED
    producer, consumer = pair(record, 2048)
    journal = Journal(directory, 1, spares=2)
    drain = Drain(journal, {schema.STREAM.FEED: consumer})
    slots = numpy.zeros(group, schema.dtype(record))
    times, seq, busy = [], 0, 0
    for _ in range(ROUNDS):
        slots["event"] = numpy.arange(seq + 1, seq + group + 1, dtype="<u8") | numpy.uint64(
            schema.STREAM.FEED << schema.SEQ_BITS)
        seq += producer.push_many(slots)
        began = _clock.now_ns()
        while drain.lag:
            drain.step()
            times.append(drain.took)
        busy += _clock.now_ns() - began
        journal.replenish()
    journal.finish()
    low, high, far = numpy.percentile(times, [50, 99, 99.9]) / 1e3
    return {"group": group, "records_per_s": round(journal.number * 1e9 / busy),
            "p50_us": round(low, 1), "p99_us": round(high, 1), "p999_us": round(far, 1),
            "max_us": round(max(times) / 1e3, 1)}


def main() -> None:
    why = realtime(50)
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as base:
        for group in (1, 16, 64, 256, 1024):
            print(json.dumps({**measure(Path(base) / str(group), group),
                              "realtime": why or "SCHED_FIFO 50"}))


if __name__ == "__main__":
    main()
