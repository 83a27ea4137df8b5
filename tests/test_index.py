"""The index of slots: whatever is put and removed, what lies in it is found, and nothing else."""
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe._index import Index, tag

# Few tags, most of them of one bucket: buckets fill and spill over, in the last one around the end.
TAGS = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


class Naive:
    """A set of pairs."""

    def __init__(self):
        self.entries = set()

    def find(self, tag):
        return sorted(slot for t, slot in self.entries if t == tag)


@given(st.integers(1, 40), st.lists(st.tuples(st.sampled_from(TAGS), st.integers(0, 60),
                                              st.booleans()), max_size=300))
def test_as_a_set_of_pairs(slots, steps):
    index, naive = Index(slots), Naive()
    for key, slot, add in steps:
        entry = (key, slot)
        if add and entry not in naive.entries and len(naive.entries) < slots:
            index.put(*entry)
            naive.entries.add(entry)
        elif not add and entry in naive.entries:
            index.remove(*entry)
            naive.entries.remove(entry)
        assert sorted(index.find(key)) == naive.find(key)
    for key in TAGS:
        assert sorted(index.find(key)) == naive.find(key)


@pytest.mark.parametrize("slots", [1, 2, 7, 8, 1024, 65_536])
def test_full_of_identities_and_turned_over(slots):
    """As the gate uses it: full, the oldest leaves, the next comes."""
    index, first = Index(slots), 5 << 56
    for n in range(slots):
        index.put(tag(first + n), n)
    for n in range(slots, 3 * slots):
        index.remove(tag(first + n - slots), n % slots)
        index.put(tag(first + n), n % slots)
    for n in range(2 * slots, 3 * slots):
        assert n % slots in index.find(tag(first + n))
    assert sum(len(index.find(tag(first + n))) for n in range(slots)) < 2 + slots // 100


def test_nothing_stays_of_what_spilled_over():
    """After a bucket overflowed and emptied, a look for its tag ends at once and finds nothing."""
    index, entries = Index(64), [(9, slot) for slot in range(64)]
    for _ in range(3):
        random.Random(1).shuffle(entries)
        for entry in entries:
            index.put(*entry)
        assert sorted(index.find(9)) == list(range(64))
        random.Random(2).shuffle(entries)
        for entry in entries:
            index.remove(*entry)
        assert index.find(9) == index.find(0) == []


def test_a_look_ends_though_every_bucket_was_once_passed_by():
    """An entry of each of two buckets lies in the other: nothing says where a walk may stop."""
    index = Index(8)
    for slot in range(8):
        index.put(0, slot)                          # seven, and one that went on
    home = [slot for slot in range(7)]
    for slot in home:
        index.remove(0, slot)
    for slot in range(8, 15):
        index.put(0x80000000, slot)                 # six beside that one, and one that went on
    assert index.find(1) == index.find(0x80000001) == []
    assert index.find(0) == [7] and sorted(index.find(0x80000000)) == list(range(8, 15))
    index.remove(0, 7)
    assert index.find(0) == index.find(1) == []


def test_what_the_object_refuses():
    index = Index(1)
    index.put(3, 0)
    with pytest.raises(ValueError, match="wanted a new entry among at most 1"):
        index.put(4, 1)
    with pytest.raises(KeyError):
        index.remove(3, 1)
    with pytest.raises(MemoryError, match="no memory for an index of"):
        Index(1 << 62)
