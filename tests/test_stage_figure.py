"""Figures are recorded before risk sees them, and a second process goes on counting exactly."""
import mmap
import os
import signal

import numpy
import pytest

from hftpipe import _control, _ring, schema, topology
from hftpipe._stage_figure import FigureStage
from hftpipe.store.verify import checksum, total

FIGURE, STORED = schema.dtype(schema.FIGURE), schema.dtype(schema.STORED)
INDEX = topology.INDEX["analyst"]
KIND = schema.FIGURE_KIND


class Links:
    """Both links and a control page in memory that a fork shares."""

    def __init__(self, capacity=64, store=256):
        self.page = mmap.mmap(-1, _control.SIZE)
        _control.format(self.page, run=7, stages=[s.name for s in topology.STAGES])
        self.control = _control.Control(self.page)
        self.block = self.control.stage(INDEX)
        self.memory = []
        for record, count in ((schema.FIGURE, capacity), (schema.STORED, store)):
            self.memory.append(mmap.mmap(-1, _ring.footprint(record, count)))
            _ring.format(self.memory[-1], record)
        self.risk = _ring.Ring(self.memory[0], schema.FIGURE, False)
        self.store = _ring.Ring(self.memory[1], schema.STORED, False)

    def stage(self):
        return FigureStage(
            "analyst", schema.STREAM.ANALYST, _ring.Ring(self.memory[0], schema.FIGURE, True),
            _ring.Ring(self.memory[1], schema.STORED, True), self.control, INDEX)

    def counters(self):
        return self.block.counter("events_stored"), self.block.counter("events_checksum") % 2**64


def figures(count, first=1):
    rows = numpy.zeros(count, FIGURE)
    rows["kind"], rows["value"] = KIND.VAR_95, numpy.arange(first, first + count)
    rows["ts_computed"], rows["until"] = 1000, 2000
    rows["instrument"], rows["other"] = 3, 4
    return rows


def take(ring, dtype):
    out = ring.peek(ring.capacity).copy()
    ring.release(len(out))
    ring.flush()
    return out


def test_a_figure_arrives_whole_and_is_stored_under_the_identity_it_arrives_with():
    links = Links()
    assert links.stage().put_many(figures(5)) == 5
    risk, store = take(links.risk, FIGURE), take(links.store, STORED)
    assert risk["value"].tolist() == [1, 2, 3, 4, 5]
    assert {(int(r["kind"]), int(r["ts_computed"]), int(r["until"]), int(r["instrument"]),
             int(r["other"])) for r in risk} == {(KIND.VAR_95, 1000, 2000, 3, 4)}
    assert risk["event"].tolist() == store["event"].tolist() == [
        schema.event_id(schema.STREAM.ANALYST, n) for n in range(1, 6)]
    for r, s in zip(risk, store, strict=True):
        assert r.tobytes()[8:] == s.tobytes()[64 + 8:]
    assert set(store["record"]) == {schema.RECORD.FIGURE}
    sums = checksum(numpy.stack([store[f"body{i}"] for i in range(8)], axis=1))
    assert sums.tolist() == store["checksum"].tolist()
    assert links.counters() == (5, total(sums))
    assert store["aux"].tolist() == [total(sums[:i]) for i in range(5)]
    assert links.stage().put_many(figures(0)) == 0


def test_a_full_risk_link_takes_fewer_and_stores_no_more_than_it_took():
    links = Links(capacity=4)
    stage = links.stage()
    assert stage.put_many(figures(10)) == 4
    assert stage.put_many(figures(10)) == 0
    assert links.counters()[0] == 4 and links.block.counter("credit_stalls") == 2
    assert not links.block.store_full
    take(links.risk, FIGURE)
    assert stage.put_many(figures(2, 5)) == 2
    assert take(links.risk, FIGURE)["value"].tolist() == [5, 6]
    assert take(links.store, STORED)["body4"].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_full_store_link_takes_nothing_and_says_so_to_risk():
    links = Links(capacity=64, store=128)
    stage = links.stage()
    took = 0
    while took < 500:
        done = stage.put_many(figures(1, took + 1))
        take(links.risk, FIGURE)
        if not done:
            break
        took += done
    assert 0 < took < 128 and links.block.store_full
    take(links.store, STORED)
    assert stage.put_many(figures(1)) == 1 and not links.block.store_full


def test_the_links_must_be_ends_of_figures():
    risk, _ = _ring.pair(schema.ORDER, 8)
    with pytest.raises(Exception, match="link must be the producer end of figure"):
        FigureStage("analyst", schema.STREAM.ANALYST, risk)


@pytest.mark.parametrize("forget", [(), ("events_checksum",), ("events_stored", "events_checksum")])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_a_successor_goes_on_where_the_store_link_ends_whatever_the_page_says(count, forget):
    """A killed process may not have written one of its counters, or neither."""
    links = Links()
    first = links.stage()
    for n in range(count):
        assert first.put_many(figures(1, n)) == 1
        take(links.risk, FIGURE)
        if n % 50 == 49:
            take(links.store, STORED)           # the ring has wrapped, its last slot is given back
    right = links.counters()
    del first
    for name in forget:
        links.block.set(name, 12345)
    second = links.stage()
    if count:
        assert links.counters() == right
    take(links.store, STORED)
    assert second.put_many(figures(3)) == 3
    stored = take(links.store, STORED)
    assert (stored["event"] & numpy.uint64(2**56 - 1)).tolist() == [count + 1, count + 2, count + 3]
    assert links.counters() == (count + 3, (right[1] * bool(count) + total(stored["checksum"]))
                                % 2**64)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_no_event_is_lost_doubled_or_miscounted(seed):
    links = Links(capacity=1024, store=1 << 15)
    begin = 0
    for _round in range(6):
        child = os.fork()
        if child == 0:
            try:
                stage = links.stage()
                n = 0
                while True:
                    n += stage.put_many(figures(100, n))
            finally:
                os._exit(1)
        while links.block.counter("events_stored") < begin + 50 + 37 * seed:
            take(links.risk, FIGURE)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        links.stage()                           # looks where the dead one stopped
        begin = links.counters()[0]
        take(links.risk, FIGURE)
    stored = take(links.store, STORED)
    assert (stored["event"] & numpy.uint64(2**56 - 1)).tolist() == list(range(1, begin + 1))
    assert links.counters() == (begin, total(stored["checksum"]))
