"""The ring against a deque in every form of its interface, and every kind of foreign memory refused."""
import mmap
import struct
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._ring import footprint, pair

R = schema.MARKET
WORDS = struct.Struct("<8Q")

# Words of the header, as _ring.pxd draws them.
MAGIC, FINGERPRINT, SLOT_SIZE, CAPACITY, RUN, BOOT, OWNER_PID, OWNER_START = range(8)
HEAD, FULL, GAPS, DROPS, PRODUCER = range(16, 21)
CREDIT, READ, CONSUMER = range(32, 35)


def record(seq: int, size: int = 64) -> bytes:
    """Every word is *seq*, so that a torn slot shows."""
    return struct.pack("<Q", seq) * (size // 8)


def batch(first: int, count: int) -> np.ndarray:
    """*count* records as an array; record i holds first + i in every word."""
    words = np.repeat(np.arange(first, first + count, dtype="<u8"), 8)
    return words.view(schema.dtype(R))


def region(capacity: int, r: schema.Record = R) -> mmap.mmap:
    return mmap.mmap(-1, footprint(r, capacity))


def poke(memory: mmap.mmap, word: int, value: int) -> None:
    struct.pack_into("<Q", memory, word * 8, value)


def peek(memory: mmap.mmap, word: int) -> int:
    return struct.unpack_from("<Q", memory, word * 8)[0]


# ---------------------------------------------------------------- against a deque

class Model:
    """What one producer and one consumer may see: records, and credit that comes back late."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.queue = capacity, deque()
        self.head = self.read = self.credit = 0

    @property
    def room(self) -> int:
        return self.capacity - (self.head - self.credit)

    def push(self, values: list[int]) -> int:
        taken = values[:self.room]
        self.queue.extend(taken)
        self.head += len(taken)
        return len(taken)

    def pop(self, count: int) -> list[int]:
        out = [self.queue.popleft() for _ in range(min(count, len(self.queue)))]
        if out:
            self.read += len(out)
            if self.read - self.credit >= max(self.capacity // 4, 1):
                self.credit = self.read
        return out

    def flush(self) -> None:
        self.credit = self.read


STEPS = st.lists(st.tuples(
    st.sampled_from(["push", "push_many", "claim", "pop", "pop_many", "peek", "flush"]),
    st.integers(0, 20)), max_size=120)


@given(st.integers(0, 4), STEPS)
def test_behaves_like_a_bounded_deque(log2, steps):
    capacity = 1 << log2
    producer, consumer = pair(R, capacity)
    model, value, popped = Model(capacity), 0, 0
    for verb, count in steps:
        values = list(range(value + 1, value + count + 1))
        if verb == "push":
            assert producer.push(record(value + 1)) is (model.push([value + 1]) == 1)
        elif verb == "push_many":
            assert producer.push_many(batch(value + 1, count)) == model.push(values)
        elif verb == "claim":
            view = producer.claim(count)
            to_end = capacity - model.head % capacity
            assert len(view) == min(count, model.room, to_end)
            for name in view.dtype.names:
                view[name] = batch(value + 1, len(view))[name]
            producer.publish(len(view))
            assert model.push(values[:len(view)]) == len(view)
        elif verb == "pop":
            expected = model.pop(1)
            got = consumer.pop()
            assert got == (None if not expected else
                           struct.pack("<Q", popped + 1) + record(expected[0])[8:])
            popped += len(expected)
        elif verb == "pop_many":
            out = np.zeros(count, schema.dtype(R))
            got = consumer.pop_many(out)
            expected = model.pop(count)
            assert got == len(expected)
            assert out["link_seq"][:got].tolist() == list(range(popped + 1, popped + got + 1))
            for i, v in enumerate(expected):
                assert out[i].tobytes()[8:] == record(v)[8:]
            assert not out["event"][got:].any()
            popped += got
        elif verb == "peek":
            view = consumer.peek(count)
            to_end = capacity - model.read % capacity
            assert len(view) == min(count, len(model.queue), to_end)
            seen = view["event"].tolist()
            consumer.release(len(view))
            assert seen == model.pop(len(seen))
            popped += len(seen)
        else:
            consumer.flush()
            model.flush()
        value = model.head
        assert len(producer) == len(consumer) == len(model.queue)
        assert producer.room == model.room
        assert (consumer.taken, producer.published) == (model.read, model.head)
        assert producer.occupancy == len(model.queue) / capacity
    assert not consumer.broken


@pytest.mark.parametrize("r", [schema.MARKET, schema.BOOK, schema.STORED, schema.STORED_WIDE],
                         ids=lambda r: r.name)
def test_records_of_every_size_come_out_whole_across_the_wrap(r):
    producer, consumer = pair(r, 8)
    seq = 0
    for _ in range(5):
        for _ in range(5):
            seq += 1
            assert producer.push(record(seq, r.size))
        out = bytearray(r.size * 5)
        assert consumer.pop_many(out) == 5
        assert bytes(out) == b"".join(record(s, r.size) for s in range(seq - 4, seq + 1))
        assert producer.push_many(b"".join(record(seq + i, r.size) for i in (1, 2, 3))) == 3
        for i in (1, 2, 3):
            assert consumer.pop() == record(seq + i, r.size)
        seq += 3
