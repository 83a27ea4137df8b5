"""Between two real processes nothing is lost, torn, repeated or reordered, whoever is killed."""
import os
import random
import secrets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hftpipe import schema, shm

R = schema.MARKET
END = Path(__file__).with_name("end.py")
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
FOREVER = 1 << 40


@pytest.fixture
def run():
    run = secrets.randbits(63) | 1
    yield run
    shm.remove(run)


class End:
    """A process that holds one end; killed when the test is over, however it ends."""

    def __init__(self, role: str, run: int, how: str, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, END, role, str(run), "a.b", how, str(count)], text=True, env=ENV,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self) -> "End":
        assert self.process.stdout.readline() == "ready\n", self.process.stderr.read()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def result(self) -> str:
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, err
        return out


def drain(consumer, words_taken: int, limit: int = FOREVER) -> int:
    """Take and check what is there; the last sequence number."""
    out = np.empty(64, schema.dtype(R))
    while words_taken < limit:
        n = consumer.pop_many(out[:min(64, limit - words_taken)])
        if n == 0:
            break
        words = out[:n].view("<u8").reshape(-1, 8)
        assert (words == np.arange(words_taken + 1, words_taken + n + 1)[:, None]).all()
        words_taken += n
    return words_taken


@pytest.mark.parametrize("producer, consumer, capacity", [
    ("one", "one", 64), ("many", "many", 64), ("claim", "peek", 64),
    ("one", "many", 1024), ("many", "one", 1), ("many", "peek", 2)])
def test_every_record_arrives_whole_and_in_order(run, producer, consumer, capacity):
    # Capacities of 1 and 2 need a turn of the scheduler for each record where cores are shared.
    count = 50_000 if capacity >= 64 else 2_000
    shm.create_ring(run, "a.b", R, capacity)
    with End("consume", run, consumer, count) as c, End("produce", run, producer, count) as p:
        p.result()
        assert c.result() == f"{count}\n"


@pytest.mark.parametrize("how", ["one", "many"])
def test_a_killed_producer_loses_and_repeats_nothing_that_it_published(run, how):
    shm.create_ring(run, "a.b", R, 256)
    consumer = shm.ring(run, "a.b", R, producer=False)
    seq, chance = 0, random.Random(7)
    for _ in range(6):
        with End("produce", run, how, FOREVER) as p:
            goal = seq + chance.randrange(300, 6_000)
            deadline = time.monotonic() + 60
            while seq < goal:
                seq = drain(consumer, seq, goal)
                os.sched_yield()
                assert time.monotonic() < deadline and p.process.poll() is None
            p.process.kill()
            p.process.wait()
        # What it published before it died is still there, and the next one goes on after it.
        seq = drain(consumer, seq)
        assert len(consumer) == 0 and not consumer.broken
    consumer.flush()


@pytest.mark.parametrize("how", ["one", "many"])
def test_a_killed_consumer_leaves_the_rest_to_the_next(run, how):
    shm.create_ring(run, "a.b", R, 256)
    producer = shm.ring(run, "a.b", R, producer=True)
    seq, chance = 0, random.Random(8)
    words = np.empty((64, 8), "<u8")

    def feed(goal: int, c: End) -> None:
        nonlocal seq
        deadline = time.monotonic() + 60
        while seq < goal:
            words[:] = np.arange(seq + 1, seq + 65)[:, None]
            seq += producer.push_many(words.reshape(-1).view(schema.dtype(R)))
            os.sched_yield()
            assert time.monotonic() < deadline
            assert c.process.poll() is None, c.process.stderr.read()

    for _ in range(6):
        # end.py asserts that its first record is the one after the last that was taken.
        with End("consume", run, how, FOREVER) as c:
            feed(seq + chance.randrange(300, 6_000), c)
            c.process.kill()
            c.process.wait()
        assert producer.taken <= producer.published == seq
        assert len(producer) <= producer.capacity
    last = shm.ring(run, "a.b", R, producer=False)
    assert drain(last, last.taken) == seq


def test_the_ring_outlives_both_ends(run):
    shm.create_ring(run, "a.b", R, 256)
    with End("produce", run, "many", 200) as p:
        p.result()
    consumer = shm.ring(run, "a.b", R, producer=False)
    assert drain(consumer, 0) == 200
