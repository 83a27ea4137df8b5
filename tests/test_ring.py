"""The ring against a deque in every form it has; every kind of foreign memory is refused."""
import mmap
import os
import struct
import subprocess
import sys
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import _ring, schema
from hftpipe._ring import Ring, footprint, pair
from hftpipe.errors import BusyError, SchemaError

R = schema.MARKET

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


# ---------------------------------------------------------------- the first word is the ring's

def test_first_word_is_ignored_when_pushed_and_is_the_sequence_when_popped():
    producer, consumer = pair(R, 4)
    for seq in (1, 2, 3):
        assert producer.push(struct.pack("<Q", 2**64 - seq) + record(seq)[8:])
        assert consumer.pop() == record(seq)


def test_a_view_can_not_reach_the_first_word():
    # Forwarding whole records between rings would publish slots that are not written yet:
    # a copied link_seq may be just the one that the reader waits for.
    producer, consumer = pair(R, 4)
    view = producer.claim(4)
    assert "link_seq" not in view.dtype.names and view.itemsize == R.size - 8
    view[:] = np.frombuffer(struct.pack("<Q", 1) * 7 * 4, view.dtype)
    assert consumer.pop() is None
    producer.publish(1)
    assert consumer.peek(4)["event"].tolist() == [1]


def test_peeked_records_are_read_only_and_in_place():
    producer, consumer = pair(R, 4)
    producer.push(record(1))
    view = consumer.peek(1)
    with pytest.raises(ValueError, match="read-only"):
        view["event"] = 5
    assert not view.flags.owndata


def test_views_keep_the_memory_mapped():
    producer, consumer = pair(R, 4)
    producer.push(record(7))
    view = consumer.peek(1)
    del producer, consumer
    assert view["event"].tolist() == [7]


def test_only_what_was_claimed_or_peeked_can_be_handed_over():
    producer, consumer = pair(R, 4)
    with pytest.raises(ValueError, match="0 slots are claimed, can not publish 1"):
        producer.publish()
    assert len(producer.claim(3)) == 3
    with pytest.raises(ValueError, match="3 slots are claimed, can not publish 4"):
        producer.publish(4)
    producer.publish(2)
    with pytest.raises(ValueError, match="0 slots are claimed"):
        producer.publish()
    assert len(consumer.peek(9)) == 2
    with pytest.raises(ValueError, match="2 slots are peeked, can not release 3"):
        consumer.release(3)
    consumer.release(1)
    with pytest.raises(ValueError, match="0 slots are peeked"):
        consumer.release(1)


def test_wrong_sizes_are_refused_and_publish_nothing():
    producer, consumer = pair(R, 4)
    for data in (b"", bytes(63), bytearray(65), memoryview(bytes(128))):
        with pytest.raises(ValueError, match=rf"record is 64 bytes, was {len(data)}"):
            producer.push(data)
    for data in (bytes(65), np.zeros(4, schema.dtype(schema.BOOK)), np.zeros(8, "<u8")):
        with pytest.raises(ValueError, match="items must be records of 64 bytes"):
            producer.push_many(data)
        with pytest.raises(ValueError, match="items must be records of 64 bytes"):
            consumer.pop_many(bytearray(data) if isinstance(data, bytes) else data)
    with pytest.raises(ValueError, match="contiguous"):
        producer.push_many(batch(1, 8)[::2])
    with pytest.raises((ValueError, BufferError)):
        consumer.pop_many(bytes(64))
    assert len(producer) == 0 and consumer.pop() is None


def test_bytes_bytearray_and_record_are_the_same_to_push():
    producer, consumer = pair(R, 4)
    assert producer.push(record(1)) and producer.push(bytearray(record(2)))
    assert producer.push(batch(3, 1)) and producer.push(memoryview(record(4)))
    assert [consumer.pop() for _ in range(4)] == [record(i) for i in (1, 2, 3, 4)]


def test_the_other_ends_verbs_are_refused():
    producer, consumer = pair(R, 4)
    for call in (producer.pop, producer.flush, producer.peek, producer.release,
                 lambda: producer.pop_many(bytearray(64))):
        with pytest.raises(TypeError, match="this is the producer's end"):
            call()
    for call in (lambda: consumer.push(record(1)), consumer.claim, consumer.publish,
                 consumer.count_gap, consumer.count_drop, lambda: consumer.push_many(b"")):
        with pytest.raises(TypeError, match="this is the consumer's end"):
            call()


# ---------------------------------------------------------------- credit and counters

@pytest.mark.parametrize("capacity", [1, 2, 4, 8, 64])
def test_credit_comes_back_every_quarter_or_when_flushed(capacity):
    producer, consumer = pair(R, capacity)
    quarter = max(capacity // 4, 1)
    for i in range(capacity):
        assert producer.push(record(i))
    for taken in range(1, capacity + 1):
        consumer.pop()
        assert producer.room == taken // quarter * quarter
    if quarter > 1:
        assert producer.push_many(batch(1, capacity)) == capacity
        consumer.pop()
        assert producer.room == 0
        consumer.flush()
        assert producer.room == 1


def test_refused_claims_gaps_and_drops_are_counted():
    producer, consumer = pair(R, 2)
    assert [producer.push(record(i)) for i in range(4)] == [True, True, False, False]
    assert producer.push_many(batch(1, 3)) == 0 and len(producer.claim()) == 0
    producer.count_gap(3)
    producer.count_drop()
    assert (consumer.full, consumer.gaps, consumer.drops) == (4, 3, 1)
    assert consumer.occupancy == 1.0


# ---------------------------------------------------------------- memory that is not ours

def test_capacity_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="power of two, was 3"):
        Ring(region(3), R, producer=True, create=True)
    with pytest.raises(ValueError, match="power of two, was 0"):
        _ring.format(mmap.mmap(-1, 512), R)
    with pytest.raises(ValueError, match=r"must be 1024 bytes for 8 slots, was 1030"):
        _ring.format(mmap.mmap(-1, footprint(R, 8) + 6), R)


def test_record_without_link_seq_can_not_be_on_a_ring():
    with pytest.raises(ValueError, match="instrument does not begin with link_seq"):
        _ring.format(region(8, schema.INSTRUMENT), schema.INSTRUMENT)


def test_unaligned_memory_is_refused():
    # Compiled readers use vector moves that fault on it.
    memory = memoryview(region(16))
    for view in (memory[8:8 + footprint(R, 8)],):
        with pytest.raises(ValueError, match="aligned to 64 bytes"):
            _ring.format(view, R)
        with pytest.raises(ValueError, match="aligned to 64 bytes"):
            Ring(view, R, producer=True)


def test_memory_that_is_no_ring_is_refused():
    with pytest.raises(SchemaError, match="not a ring, or not formatted yet"):
        Ring(region(8), R, producer=False)
    with pytest.raises(SchemaError, match="not a ring"):
        Ring(mmap.mmap(-1, 64), R, producer=False)


@pytest.mark.parametrize("word, value, message", [
    (MAGIC, 0, "not a ring"),
    (MAGIC, 0x32676E6972706668, "not a ring"),                  # the layout before this one
    (FINGERPRINT, 1, "made by schema 0x0000000000000001"),
    (SLOT_SIZE, 128, "slots of 128 B; this build's market is"),
    (SLOT_SIZE, 0, "slots of 0 B"),
    (CAPACITY, 0, "for 0 slots"),
    (CAPACITY, 7, "for 7 slots"),
    (CAPACITY, 16, "for 16 slots"),                             # more than the memory holds
    (CAPACITY, 2**63, "slots of 64 B"),
    (RUN, 6, "stale: it belongs to run 6, wanted run 5"),
    (BOOT, 0xA, "stale: it was made in boot 0xa, this is boot 0xb"),
    (HEAD, 9, "cursors contradict one another: credit 0, read 0, head 9"),
    (READ, 1, "credit 0, read 1, head 0"),
    (CREDIT, 1, "credit 1, read 0, head 0"),
])
@pytest.mark.parametrize("producer", [True, False])
def test_header_that_does_not_fit_is_refused(word, value, message, producer):
    memory = region(8)
    _ring.format(memory, R, run=5, boot=0xB)
    Ring(memory, R, producer, run=5, boot=0xB)
    poke(memory, word, value)
    with pytest.raises(SchemaError, match=message):
        Ring(memory, R, producer, run=5, boot=0xB)


def test_ring_of_another_record_is_refused():
    memory = region(8)
    _ring.format(memory, R)
    with pytest.raises(SchemaError, match=r"made by schema.*this build's intent"):
        Ring(memory, schema.INTENT, producer=False)


def test_a_fresh_ring_forgets_what_was_in_its_memory():
    memory = region(4)
    first = Ring(memory, R, producer=True, create=True)
    first.push_many(batch(1, 4))
    del first
    _ring.format(memory, R, run=9, boot=8, owner=_ring.holder(123, 456))
    ring = Ring(memory, R, producer=False)
    assert (ring.run, ring.boot, ring.owner, len(ring), ring.pop()) == (9, 8, (123, 456), 0, None)


def test_memory_can_not_be_unmapped_under_a_ring():
    memory = region(4)
    ring = Ring(memory, R, producer=True, create=True)
    with pytest.raises(BufferError):
        memory.close()
    assert ring.push(record(1))
    del ring
    memory.close()


def test_a_handle_is_made_once():
    memory = region(4)
    ring = Ring(memory, R, producer=True, create=True)
    with pytest.raises(RuntimeError, match="made once"):
        ring.__init__(memory, R, True)
    bare = Ring.__new__(Ring)
    with pytest.raises(RuntimeError, match="never initialised"):
        bare.pop()


# ---------------------------------------------------------------- one producer, one consumer

def test_an_end_has_one_living_holder():
    memory = region(4)
    _ring.format(memory, R)
    me, other = _ring.holder(100, 5), _ring.holder(200, 7)
    asked = []

    def alive(answer):
        return lambda pid, start: asked.append((pid, start)) or answer

    Ring(memory, R, True, holder=me, alive=alive(True))
    Ring(memory, R, True, holder=me, alive=alive(True))         # the same process again
    Ring(memory, R, False, holder=other, alive=alive(True))     # the other end
    assert asked == []
    with pytest.raises(BusyError, match="process 100 is this ring's producer"):
        Ring(memory, R, True, holder=other, alive=alive(True))
    ring = Ring(memory, R, True, holder=other, alive=alive(False))
    assert asked == [(100, 5)] * 2
    assert ring.holders == ((200, 7), (200, 7))


def test_an_end_taken_before_a_fork_is_refused_in_the_child(tmp_path):
    # In a process of its own: the parent must have one thread.
    script = tmp_path / "forks.py"
    script.write_text("""
import os, sys
from hftpipe import _ring, schema
producer, consumer = _ring.pair(schema.MARKET, 8)
producer.push(bytes(64))
pid = os.fork()
if pid == 0:
    refused = 0
    for call in (lambda: producer.push(bytes(64)), consumer.pop, consumer.flush, producer.claim):
        try:
            call()
        except RuntimeError as e:
            refused += "belongs to the parent" in str(e)
    del producer, consumer          # must not unmap the parent's memory
    os._exit(10 + refused)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 14
assert consumer.pop()[8:] == bytes(56) and producer.push(bytes(64))
""")
    done = subprocess.run([sys.executable, "-W", "ignore", script], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- after a crash, and corruption

@pytest.mark.parametrize("lost", [1, 3, 8])
def test_records_published_before_the_head_moved_are_neither_lost_nor_overwritten(lost):
    # A producer killed between the last link_seq and the head leaves the head short.
    memory = region(8)
    producer = Ring(memory, R, True, create=True)
    producer.push_many(batch(1, 8))
    poke(memory, HEAD, 8 - lost)
    again = Ring(memory, R, True)
    assert again.published == 8 and again.room == 0             # where it goes on
    assert again.push(record(9)) is False                       # full, as it truly is
    consumer = Ring(memory, R, False)
    assert [consumer.pop() for _ in range(9)] == [*map(record, range(1, 9)), None]


def test_a_consumer_may_be_ahead_of_a_head_that_stayed_behind():
    memory = region(8)
    producer = Ring(memory, R, True, create=True)
    consumer = Ring(memory, R, False)
    producer.push_many(batch(1, 5))
    assert consumer.pop_many(bytearray(64 * 5)) == 5
    poke(memory, HEAD, 2)
    assert len(consumer) == 0
    consumer.flush()
    again = Ring(memory, R, True)
    assert again.published == 5 and again.room == 8
    assert again.push(record(6))
    assert Ring(memory, R, False).pop() == record(6)


def test_a_consumer_continues_where_the_last_one_stopped():
    memory = region(8)
    producer = Ring(memory, R, True, create=True)
    producer.push_many(batch(1, 6))
    first = Ring(memory, R, False)
    assert first.pop() == record(1) and len(first.peek(3)) == 3     # peeked, not released
    second = Ring(memory, R, False)
    assert second.pop() == record(2)


SLOT0 = 512 // 8                            # word of slot 0's link_seq


@pytest.mark.parametrize("value", [3, 10, 11, 2**64 - 1])
def test_a_sequence_beyond_the_next_one_is_corruption(value):
    memory = region(8)
    producer, consumer = Ring(memory, R, True, create=True), Ring(memory, R, False)
    producer.push_many(batch(1, 4))
    assert consumer.pop() == record(1)
    poke(memory, SLOT0 + 8, value)
    for call in (consumer.pop, consumer.peek, lambda: consumer.pop_many(bytearray(64))):
        with pytest.raises(SchemaError, match=rf"slot 1 holds link_seq {value}, expected 2"):
            call()
        assert consumer.broken
    assert consumer.taken == 1


def test_records_before_the_bad_slot_are_not_lost_to_pop_many():
    memory = region(8)
    producer, consumer = Ring(memory, R, True, create=True), Ring(memory, R, False)
    producer.push_many(batch(1, 4))
    poke(memory, SLOT0 + 16, 99)
    out = bytearray(64 * 4)
    with pytest.raises(SchemaError, match="slot 2 holds link_seq 99, expected 3"):
        consumer.pop_many(out)
    assert bytes(out[:128]) == record(1) + record(2) and consumer.taken == 2


def test_a_sequence_that_was_wiped_out_is_found_when_idle():
    # A waiting reader sees an older number and waits for ever; the head says otherwise.
    memory = region(8)
    producer, consumer = Ring(memory, R, True, create=True), Ring(memory, R, False)
    producer.push_many(batch(1, 2))
    assert consumer.pop() == record(1)
    consumer.flush()
    poke(memory, SLOT0 + 8, 0)
    assert consumer.pop() is None
    with pytest.raises(SchemaError, match="slot 1 holds link_seq 0, expected 2"):
        consumer.flush()
    assert consumer.broken and not producer.broken


def test_a_head_beyond_all_slots_is_found_when_idle():
    memory = region(8)
    Ring(memory, R, True, create=True)
    consumer = Ring(memory, R, False)
    poke(memory, HEAD, 100)
    with pytest.raises(SchemaError, match="corrupt"):
        consumer.flush()
