"""The ring against a deque, and foreign memory refused."""
import struct
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._ring import Ring, footprint
from hftpipe.errors import SchemaError

R = schema.MARKET


def record(seq: int) -> bytes:
    return struct.pack("<Q", seq) * 8        # every word is seq, so a torn slot shows


def pair(capacity: int):
    memory = bytearray(footprint(R, capacity))
    return Ring(memory, R, producer=True, create=True), Ring(memory, R, producer=False)


@given(st.integers(0, 4), st.lists(st.booleans(), max_size=200))
def test_behaves_like_a_bounded_deque(log2, steps):
    capacity = 1 << log2
    producer, consumer = pair(capacity)
    model: deque[bytes] = deque()
    seq = 0
    for push in steps:
        if push:
            seq += 1
            if not producer.push(record(seq)):
                consumer.flush()
                assert producer.push(record(seq)) is (len(model) < capacity)
            if len(model) < capacity:
                model.append(record(seq))
            else:
                seq -= 1
        else:
            assert consumer.pop() == (model.popleft() if model else None)
        assert len(producer) == len(consumer) == len(model)


def test_capacity_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="power of two, was 3"):
        Ring(bytearray(footprint(R, 3)), R, producer=True, create=True)


def test_ring_of_another_record_is_refused():
    memory = bytearray(footprint(R, 8))
    Ring(memory, R, producer=True, create=True)
    with pytest.raises(SchemaError, match="made by schema"):
        Ring(memory, schema.INTENT, producer=False)
