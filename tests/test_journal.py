"""Records of the journal: every torn tail is cut, every other damage is found and named."""
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hftpipe import _journal, schema
from tests.models import journal as twin
from tests.models.store import random_slot

RUN = 0x1234_5678_9ABC_DEF0
STATES = {_journal.ZERO: "ZERO", _journal.WHOLE: "WHOLE", _journal.TORN: "TORN",
          _journal.CORRUPT: "CORRUPT"}


def rows(*slots):
    return numpy.frombuffer(b"".join(slots), numpy.uint8).reshape(len(slots), -1)


def segment(writes, space=4096, run=RUN):
    """Memory with one record for each stream of each write, the end and the offsets."""
    memory, at, number, offsets = bytearray(space), 0, 1, []
    for streams in writes:
        group = number
        for stream in streams:
            offsets.append(at)
            at = _journal.frame(rows(random_slot(stream, number)), run, number, group, memory, at)
            number += 1
    return memory, at, offsets


def scanned(memory, number=1, **options):
    offsets, end, state = _journal.scan(memory, RUN, number, **options)
    return offsets.tolist(), end, STATES[state]


WRITES = st.lists(st.lists(st.sampled_from(range(1, 9)), min_size=1, max_size=3), max_size=4)


def test_crc32c_is_the_one_of_rfc_3720():
    for data, want in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43),
                       (bytes(range(32)), 0x46DD794E), (b"123456789", 0xE3069283), (b"", 0)):
        assert _journal.crc32c(data) == _journal.crc32c(data, hardware=False) == want


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(0, 2**32 - 1))
def test_crc32c_by_table_by_processor_and_bit_by_bit(data, more, value):
    want = twin.crc32c(data, value)
    assert _journal.crc32c(data, value) == _journal.crc32c(data, value, hardware=False) == want
    assert _journal.crc32c(more, want) == twin.crc32c(data + more, value)


@given(WRITES)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read_and_is_as_the_twin_writes_it(writes):
    memory, end, offsets = segment(writes, 5000)
    assert scanned(memory) == (offsets, end, "ZERO") == twin.scan(bytes(memory), RUN, 1)
    number = 0
    for streams in writes:
        group = number + 1
        for stream in streams:
            number += 1
            slot, at = random_slot(stream, number), offsets[number - 1]
            assert memory[at:at + len(slot) + 16] == twin.record(slot, RUN, number, group)
            got = _journal.gather(memory, numpy.array([at], numpy.uint64), len(slot))
            assert got.tobytes()[8:] == slot[8:]
            sizes, events = _journal.heads(memory, numpy.array([at], numpy.uint64))
            assert (sizes[0], events[0]) == (len(slot), schema.event_id(stream, number))


def test_every_cut_of_the_last_write_leaves_a_tail_that_is_cut_where_the_twin_says():
    memory, end, offsets = segment([[1, 3], [4], [1, 6, 3]], 2048)
    for cut in range(end):
        torn = memory[:cut] + bytes(len(memory) - cut)
        got = scanned(torn)
        assert got == twin.scan(bytes(torn), RUN, 1)
        assert got[0] == [at for at, after in zip(offsets, [*offsets[1:], end], strict=True)
                          if not any(memory[max(cut, at):after])]
        # What is cut off is no corruption, unless the disk had it.
        assert got[2] in ("ZERO", "TORN")
        known = scanned(torn, durable=len(got[0]) + 1)
        assert known[2] == "CORRUPT"


def test_every_altered_byte_is_found_and_before_the_last_write_it_is_corruption():
    memory, end, offsets = segment([[1], [3, 6], [5]], 1500)
    last = offsets[3]
    for at in range(len(memory)):
        for flip in (1, 0x80):
            bad = bytearray(memory)
            bad[at] ^= flip
            got = scanned(bad)
            assert got[2] == ("CORRUPT" if at < last else "TORN"), at
            assert len(got[0]) == sum(o <= at for o in offsets[1:]) if at < end else 4
            assert scanned(bad, durable=4)[2] == ("CORRUPT" if at < end else "TORN")
    assert scanned(memory)[2] == "ZERO"


@given(WRITES, st.data())
@settings(max_examples=40, deadline=None)
def test_any_damage_is_judged_as_the_twin_judges_it(writes, data):
    memory, end, _ = segment(writes, 5000)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(end, 1)))
        part = data.draw(st.binary(min_size=1, max_size=64))
        memory[at:at + len(part)] = part
    memory = memory[:5000]
    durable = data.draw(st.integers(0, 3))
    assert scanned(memory, durable=durable) == twin.scan(bytes(memory), RUN, 1, durable)


def test_sectors_of_the_last_write_that_came_without_those_before_are_torn():
    """A write reaches the disk in any order: its second record without its first."""
    memory, _, offsets = segment([[1], [1, 1]], 1024)
    memory[offsets[1]:offsets[2]] = bytes(offsets[2] - offsets[1])
    assert scanned(memory) == ([0], offsets[1], "TORN")


def test_a_zeroed_record_before_another_write_is_corruption_and_not_the_end():
    memory, _, offsets = segment([[1], [1], [1]], 1024)
    memory[offsets[1]:offsets[2]] = bytes(offsets[2] - offsets[1])
    assert scanned(memory) == ([0], offsets[1], "CORRUPT")


def test_records_of_another_run_or_number_are_none():
    memory, _, offsets = segment([[1], [1]], 1024)
    assert _journal.scan(memory, RUN + 1, 1)[2] == _journal.TORN
    assert scanned(memory, 2)[0] == []
    assert scanned(memory, 2, at=offsets[1])[0] == offsets[1:]
    assert scanned(memory, most=1) == ([0], offsets[1], "WHOLE")


def test_memory_that_is_full_and_what_does_not_fit():
    memory, end, offsets = segment([[1], [3]], 144 + 336)
    assert scanned(memory) == (offsets, end, "WHOLE")
    with pytest.raises(ValueError, match="do not fit"):
        _journal.frame(rows(random_slot(1, 3)), RUN, 3, 3, memory, end - 100)
    with pytest.raises(ValueError, match="of a store link"):
        _journal.frame(numpy.zeros((1, 64), numpy.uint8), RUN, 1, 1, bytearray(4096))
    with pytest.raises(ValueError, match="no record of a slot"):
        _journal.gather(memory, numpy.array([144], numpy.uint64), 128)
