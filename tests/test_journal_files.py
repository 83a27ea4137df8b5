"""The journal on disk: what was acknowledged is there, whatever is killed, cut, full or broken."""
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

from hftpipe import _control, recording, topology
from hftpipe._ring import Ring, footprint, pair
from hftpipe.errors import DiskError, MismatchError
from hftpipe.journal import check, segment
from hftpipe.journal.drain import Drain
from hftpipe.journal.read import Reader
from hftpipe.journal.segment import BLOCK, LEAST, Disk
from hftpipe.journal.write import Journal
from tests.models.disk import small_disk

from .models import store as naive

ROOT = Path(__file__).resolve().parent.parent
RUN = 1_700_000_000_123_456_789
STREAMS = range(1, 9)
RECORDS = {s: naive.slot_record(s) for s in STREAMS}


class Feed:
    """The stages' side: rings, and what was pushed into them."""

    def __init__(self, capacity=64, memory=None):
        self.producers, self.links, self.count = {}, {}, dict.fromkeys(STREAMS, 0)
        for s in STREAMS:
            if memory is None:
                self.producers[s], self.links[s] = pair(RECORDS[s], capacity)
            else:
                self.producers[s] = Ring(memory[s], RECORDS[s], producer=True, create=True)

    def push(self, stream, count=1):
        for _ in range(count):
            if not self.producers[stream].push(naive.random_slot(stream, self.count[stream] + 1)):
                return
            self.count[stream] += 1


class Page:
    """Durable sequences, as the control page keeps them."""

    def __init__(self):
        self.words = [0] * 16

    def set_durable(self, stream, seq):
        assert seq >= self.words[stream]
        self.words[stream] = seq

    def durable(self, stream=0):
        return self.words[stream]


def contents(directory, durable=None):
    """Slots by stream, in order, with the first word zero."""
    found = {s: [] for s in STREAMS}
    for block in check.walk(directory, RUN, durable=durable):
        for stream in numpy.unique(block.streams):
            rows = block.slots(block.streams == stream, RECORDS[int(stream)].size)
            found[int(stream)] += [row.tobytes() for row in rows]
    return found


def expected(stream, count):
    return [bytes(8) + naive.random_slot(stream, n)[8:] for n in range(1, count + 1)]


def proved(directory, count, durable=None):
    found = contents(directory, durable)
    for stream in STREAMS:
        assert found[stream] == expected(stream, count[stream]), stream


def filled(directory, rounds=30, seed=1, **options):
    """A journal with events of every stream, in many groups."""
    feed, page, rng = Feed(), Page(), random.Random(seed)
    journal = Journal(directory, RUN, size=LEAST, **options)
    drain = Drain(journal, feed.links, page)
    for _ in range(rounds):
        for s in STREAMS:
            feed.push(s, rng.randrange(8))
        drain.step()
    return feed, page, journal, drain


# ------------------------------------------------------------ in good order

def test_what_the_links_had_is_in_the_journal_and_the_slots_are_free(tmp_path):
    feed, page, journal, drain = filled(tmp_path / "j")
    assert all(ring.room == 64 for ring in feed.producers.values())
    assert page.words[1:9] == [feed.count[s] for s in STREAMS]
    assert page.words[0] == sum(feed.count.values()) == journal.number
    assert drain.lag == drain.skipped == 0 and drain.step() == 0
    journal.finish()
    proved(tmp_path / "j", feed.count)
    names = sorted(p.name for p in (tmp_path / "j").iterdir())
    assert names == ["00000000000000000001.seg", "end.json"], "spares are given back"


def test_segments_follow_one_another_and_their_space_is_reserved(tmp_path):
    feed, _, journal, _ = filled(tmp_path / "j", 400)
    paths = segment.listing(tmp_path / "j")
    assert len(paths) == journal.segments == 3 and journal.spares == 0, "made by who has time"
    for path in paths:
        assert path.stat().st_size == LEAST and path.stat().st_blocks * 512 >= LEAST
        assert path.stat().st_mode & 0o777 == 0o600
    assert journal.replenish() and journal.replenish() and journal.spares == 2
    proved(tmp_path / "j", feed.count)
    journal.finish()
    assert paths[-1].stat().st_blocks * 512 < LEAST, "what the last one does not use is given back"
    proved(tmp_path / "j", feed.count)
    with pytest.raises(AssertionError):
        proved(tmp_path / "j", {**feed.count, 3: feed.count[3] + 1})


def test_nothing_is_given_back_before_it_is_on_disk(tmp_path):
    """Whoever looks into the link while the disk works finds every event still there."""
    seen = []

    class Looking(Disk):
        def write(self, fd, data, at):
            if len(data) != BLOCK:              # a header
                seen.append((len(feed.links[1]), page.words[1]))
            super().write(fd, data, at)

    feed, page = Feed(), Page()
    drain = Drain(Journal(tmp_path / "j", RUN, size=LEAST, disk=Looking()), feed.links, page)
    for n in range(1, 4):
        feed.push(1, 5)
        drain.step()
        assert seen[-1] == (5, 5 * (n - 1)) and page.words[1] == 5 * n
    assert len(seen) == 3


def test_a_reader_follows_and_says_how_far_everything_was_taken(tmp_path):
    feed, page, rng = Feed(), Page(), random.Random(2)
    drain = Drain(Journal(tmp_path / "j", RUN, size=LEAST), feed.links, page)
    reader = Reader(tmp_path / "j", RUN, RECORDS, page.durable, dict)
    got = {s: [] for s in STREAMS}
    for n in range(500):
        for s in STREAMS:
            feed.push(s, rng.randrange(8))
        drain.step()
        for s, link in reader.links.items():
            if rng.random() < 0.3 or n == 499:
                while len(link):
                    slots = link.peek(rng.randrange(1, 200))
                    again = link.peek(len(slots))
                    assert (again["event"] == slots["event"]).all()
                    got[s] += [row.tobytes() for row in recording.raw(slots, link.record)]
                    link.release(len(slots))
                    if n < 499:
                        break
        assert reader.stored <= drain.journal.number
    assert drain.journal.segments > 2
    for s in STREAMS:
        assert got[s] == expected(s, feed.count[s])
    assert reader.stored == drain.journal.number


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_reader_begins_behind_what_is_stored(tmp_path, share):
    feed, page, journal, _ = filled(tmp_path / "j", 400)
    start = {s: int(n * share) for s, n in feed.count.items()}
    start[4] = 0 if share < 1 else start[4]             # one stream is far behind the others
    reader = Reader(tmp_path / "j", RUN, RECORDS, page.durable, lambda: start)
    for s, link in reader.links.items():
        got = []
        while len(slots := link.peek(1000)):
            got += [row.tobytes() for row in recording.raw(slots, link.record)]
            link.release(len(slots))
        assert got == expected(s, feed.count[s])[start[s]:]
        assert len(link) == 0
    assert reader.stored == journal.number


def test_segments_are_removed_when_they_are_stored_and_old(tmp_path):
    feed, page, journal, _ = filled(tmp_path / "j", 600)
    paths = segment.listing(tmp_path / "j")
    assert len(paths) >= 4
    assert journal.remove(journal.number, 3600.0) == 0, "not old enough"
    third = segment.number_of(paths[2])
    assert journal.remove(third - 2, 0.0) == 1, "the second has an event that is not stored"
    assert journal.remove(third - 1, 0.0) == 1
    assert journal.remove(journal.number, 0.0) == len(paths) - 3, "the last one is written to"
    walk = check.Walk()
    rest = sum(len(b.offsets) for b in check.walk(tmp_path / "j", RUN, walk))
    assert rest == walk.records and walk.last == journal.number
    assert walk.seqs == {s: n for s, n in feed.count.items() if n}
    lost = Reader(tmp_path / "j", RUN, RECORDS, page.durable, dict)
    with pytest.raises(MismatchError, match="must be stored or in the journal, and are in neither"):
        lost.links[1].peek()


# ------------------------------------------------------------ killed

def test_a_restart_goes_on_where_the_page_says(tmp_path):
    """Killed between the write and its word: the records are whole, and written again."""
    feed, page, journal, drain = filled(tmp_path / "j")
    before = dict(feed.count)
    told = journal.number
    for s in STREAMS:
        feed.push(s, 4)
    drain._publish = None                               # dies there, with the slots in the links
    with pytest.raises(TypeError):
        drain.step()
    journal.close()
    again = Journal(tmp_path / "j", RUN, size=LEAST, durable=told)
    assert again.number == told and again.cut > 0
    assert again.last[1:9] == [before[s] for s in STREAMS]
    drain = Drain(again, feed.links, page)
    assert drain.step() == 32 and drain.skipped == 0
    proved(tmp_path / "j", feed.count)


def test_killed_between_the_word_and_the_release(tmp_path):
    feed, page, journal, drain = filled(tmp_path / "j")
    number = journal.number
    feed.push(3, 7)

    class Dies:
        record = RECORDS[3]
        peek = staticmethod(feed.links[3].peek)

        def release(self, count):
            raise KeyboardInterrupt

    drain.links[3] = Dies()
    with pytest.raises(KeyboardInterrupt):
        drain.step()
    journal.close()
    again = Journal(tmp_path / "j", RUN, size=LEAST, durable=page.durable())
    drain = Drain(again, feed.links, page)
    feed.push(3, 2)
    assert drain.step() == 2 and drain.skipped == 7
    assert drain.journal.number == number + 9
    proved(tmp_path / "j", feed.count)


def test_every_cut_of_the_last_write_is_found_and_cut(tmp_path):
    """The host went down in the middle of a write: no page, any part of it is on disk."""
    feed, _, journal, drain = filled(tmp_path / "j", 3)
    before, number, at = dict(feed.count), journal.number, journal._at
    for s in STREAMS:
        feed.push(s, 1)
    drain.step()
    journal.close()
    end, after = journal._at, dict(feed.count)
    (path,) = segment.listing(tmp_path / "j")
    whole = path.read_bytes()
    ends, order = [], []
    for block in check.walk(tmp_path / "j", RUN):
        ends = [int(o) for o in block.offsets if o > at] + [end]
        order = [int(s) for s in block.streams[number:]]
    assert len(ends) == 8
    for cut in sorted({*range(at, end, 7), *range(ends[-2], end + 1)}):
        path.write_bytes(whole[:cut] + bytes(len(whole) - cut))
        again = Journal(tmp_path / "j", RUN, size=LEAST)
        kept = sum(not any(whole[cut:e]) for e in ends if e > cut) + sum(e <= cut for e in ends)
        assert again.number == number + kept, cut
        whole_end = ([at, *ends])[kept]
        assert (again.cut > 0) == any(whole[whole_end:cut])
        again.close()
        memory = path.read_bytes()
        assert memory[:whole_end] == whole[:whole_end] and not any(memory[whole_end:])
        if cut % 97 == 0:
            want = {s: before[s] + (s in order[:kept]) for s in STREAMS}
            proved(tmp_path / "j", want)
    assert after == feed.count


def test_sectors_of_the_last_write_in_any_order(tmp_path):
    """A write reaches the disk in any order; what is whole behind a hole is cut with it."""
    feed, _, journal, drain = filled(tmp_path / "j", 3)
    number, at = journal.number, journal._at
    for s in STREAMS:
        feed.push(s, 6)
    drain.step()
    journal.close()
    (path,) = segment.listing(tmp_path / "j")
    whole = path.read_bytes()
    rng = random.Random(3)
    sectors = range(at // 512, journal._at // 512 + 1)
    for _ in range(200):
        memory = bytearray(whole)
        for sector in sectors:
            if rng.random() < 0.4:
                low, high = max(sector * 512, at), (sector + 1) * 512
                memory[low:high] = bytes(high - low)
        path.write_bytes(memory)
        again = Journal(tmp_path / "j", RUN, size=LEAST)
        assert number <= again.number <= number + 48
        again.close()
        check_end = list(check.walk(tmp_path / "j", RUN))
        assert sum(len(b.offsets) for b in check_end) == again.number


@pytest.mark.parametrize("where", ["header", "first", "middle", "last but one"])
def test_a_damaged_byte_before_the_last_write_stops_and_is_named(tmp_path, where):
    _, page, journal, _ = filled(tmp_path / "j", 400)
    journal.close()
    paths = segment.listing(tmp_path / "j")
    path = paths[1] if where in ("first", "middle") else paths[-1]
    blocks = [b for b in check.walk(tmp_path / "j", RUN) if b.path == path]
    offsets = numpy.concatenate([b.offsets for b in blocks])
    first = segment.number_of(path)
    i = {"header": 0, "first": 0, "middle": len(offsets) // 2,
         "last but one": len(offsets) - 60}[where]
    at = 40 if where == "header" else int(offsets[i]) + 30
    memory = bytearray(path.read_bytes())
    memory[at] ^= 0x10
    path.write_bytes(memory)
    if where == "header":
        said = f"{path} at 12: the header's checksum must be"
    else:
        said = f"{path} at {int(offsets[i])}: wanted record {first + i}, found bytes that are none"
    with pytest.raises(MismatchError) as e:
        list(check.walk(tmp_path / "j", RUN))
    assert said in str(e.value)
    reader = Reader(tmp_path / "j", RUN, RECORDS, page.durable, dict)
    with pytest.raises(MismatchError) as e:
        for _ in range(100):
            for link in reader.links.values():
                link.release(len(link.peek(5000)))
    assert said in str(e.value)
    if path == paths[-1]:
        for durable in (None, page.durable()):
            with pytest.raises(MismatchError) as e:
                Journal(tmp_path / "j", RUN, size=LEAST, durable=durable)
            assert said in str(e.value)
    assert path.read_bytes() == memory, "nobody repaired it"


def test_missing_and_exchanged_segments_are_named(tmp_path):
    feed, page, journal, _ = filled(tmp_path / "j", 400)
    journal.close()
    paths = segment.listing(tmp_path / "j")
    kept = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(MismatchError, match=r"wanted record \d+, found"):
        list(check.walk(tmp_path / "j", RUN, durable=page.durable()))
    paths[1].write_bytes(kept[:-4096])
    with pytest.raises(MismatchError, match=f"wanted {LEAST} bytes, found {LEAST - 4096}"):
        list(check.walk(tmp_path / "j", RUN))
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(MismatchError, match="as its name says"):
        list(check.walk(tmp_path / "j", RUN))
    paths[1].write_bytes(kept)
    with pytest.raises(MismatchError, match=f"wanted run {RUN + 1:x}, found {RUN:x}"):
        list(check.walk(tmp_path / "j", RUN + 1))
    proved(tmp_path / "j", feed.count)
    paths[-1].unlink()
    with pytest.raises(MismatchError, match="wanted record"):
        Journal(tmp_path / "j", RUN, size=LEAST, durable=page.durable())


def test_a_journal_that_lost_its_end_is_seen_once_it_has_one(tmp_path):
    feed, page, journal, drain = filled(tmp_path / "j", 3)
    at = journal._at
    feed.push(1, 1)
    drain.step()
    journal.finish()
    (path,) = segment.listing(tmp_path / "j")
    memory = bytearray(path.read_bytes())
    memory[at:] = bytes(len(memory) - at)
    path.write_bytes(memory)
    with pytest.raises(MismatchError, match=f"at {at}: wanted record {page.words[0]}, found zeros"):
        list(check.walk(tmp_path / "j", RUN))


NURSERY = """
# Forks a journal for each line it reads, so that a life costs no start of an interpreter.
import mmap, os, sys
from pathlib import Path
from hftpipe import _control, schema
from hftpipe._ring import Ring
from hftpipe.journal.drain import Drain
from hftpipe.journal.segment import LEAST
from hftpipe.journal.write import Journal
path, run, sizes = sys.argv[1], int(sys.argv[2]), [int(n) for n in sys.argv[3].split(",")]
def shared(name):
    with open(f"{path}/{name}", "r+b") as f:
        return mmap.mmap(f.fileno(), 0)
os.write(1, b"ready\\n")
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            page = _control.Control(shared("page"))
            slots = {r.size: r for r in schema.SLOTS}
            links = {s: Ring(shared(s), slots[n], producer=False) for s, n in enumerate(sizes, 1)}
            journal = Journal(Path(path) / "j", run, size=LEAST, durable=page.durable())
            drain = Drain(journal, links, page)
            os.write(1, b"up\\n")
            while True:
                drain.step()
                journal.replenish()
        except BaseException as e:
            os.write(1, f"{type(e).__name__}: {e}\\n".encode())
        os._exit(1)
    os.write(1, b"%d\\n" % pid)
    os.waitpid(pid, 0)
    os.write(1, b"gone\\n")
"""


def kill_at_random(path, rounds, seed):
    rng = random.Random(seed)
    memory = {}
    for name, size in [("page", _control.SIZE),
                       *((s, footprint(RECORDS[s], 256)) for s in STREAMS)]:
        with open(path / str(name), "w+b") as f:
            f.truncate(size)
            memory[name] = mmap.mmap(f.fileno(), 0)
    _control.format(memory["page"], run=RUN, stages=[s.name for s in topology.STAGES])
    page = _control.Control(memory["page"])
    feed = Feed(memory=memory)
    sizes = ",".join(str(RECORDS[s].size) for s in STREAMS)
    advanced = 0
    with subprocess.Popen(
            [sys.executable, "-c", NURSERY, str(path), str(RUN), sizes], text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "build/view")}, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE) as nursery:
        try:
            assert nursery.stdout.readline() == "ready\n"
            for _ in range(rounds):
                before = page.durable()
                print("go", file=nursery.stdin, flush=True)
                said = {nursery.stdout.readline().strip(), nursery.stdout.readline().strip()}
                assert "up" in said, said
                (pid,) = (int(line) for line in said - {"up"})
                groups, last, end = rng.randrange(6), before, time.monotonic() + 20
                while groups and time.monotonic() < end:
                    feed.push(rng.randrange(1, 9), rng.randrange(1, 30))
                    groups -= page.durable() > last
                    last = page.durable()
                for _ in range(rng.randrange(40)):                  # the stages never pause
                    feed.push(rng.randrange(1, 9), rng.randrange(1, 30))
                os.kill(pid, signal.SIGKILL)
                assert nursery.stdout.readline() == "gone\n"
                # Nobody ever knows more than there is.
                for s in STREAMS:
                    assert feed.producers[s].taken <= page.durable(s)
                advanced += page.durable() > before
        finally:
            os.killpg(nursery.pid, signal.SIGKILL)
    links = {s: Ring(memory[s], RECORDS[s], producer=False) for s in STREAMS}
    journal = Journal(path / "j", RUN, size=LEAST, durable=page.durable())
    drain = Drain(journal, links, page)
    while drain.lag:
        assert drain.step() or drain.skipped
    journal.finish()
    proved(path / "j", feed.count)
    assert sum(feed.count.values()) == journal.number > 0
    return advanced


def test_killed_at_random_moments(tmp_path):
    assert kill_at_random(tmp_path, 40, 5) >= 20, "the kills must hit journals at work"


@pytest.mark.slow
def test_killed_a_thousand_times(tmp_path):
    assert kill_at_random(tmp_path, 1000, 6) >= 500


# ------------------------------------------------------------ a disk that fails

class Failing(Disk):
    """Fails at the write number *at* of records, after having done it or half of it."""

    def __init__(self, at, how, number=errno.EIO):
        self.left, self.how, self.number = at, how, number

    def write(self, fd, data, at):
        self.left -= 1
        if self.left:
            return super().write(fd, data, at)
        if self.how == "half":
            super().write(fd, data[:len(data) // 2], at)
        elif self.how == "whole":               # in the cache, marked clean, not on the disk
            super().write(fd, data, at)
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("how", ["none", "half", "whole"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_failed_write_is_not_tried_again_and_nothing_is_released(tmp_path, how, number):
    feed, page = Feed(), Page()
    disk = Failing(4, how, number)              # after the header and two groups
    journal = Journal(tmp_path / "j", RUN, size=LEAST, disk=disk)
    drain = Drain(journal, feed.links, page)
    for _ in range(2):
        feed.push(1, 5)
        feed.push(2, 3)
        assert drain.step() == 8
    feed.push(1, 5)
    for _ in range(3):                          # and it stays so
        with pytest.raises(DiskError, match=os.strerror(number)):
            drain.step()
    assert disk.left == 0, "one try"
    assert len(feed.links[1]) == 5 and page.words[:3] == [16, 10, 6] and journal.number == 16
    with pytest.raises(DiskError):
        journal.finish()
    journal.close()
    # Whoever begins again believes what the page says, not what the file shows.
    again = Journal(tmp_path / "j", RUN, size=LEAST, durable=page.durable())
    assert again.number == 16 and (again.cut > 0) == (how != "none")
    assert Drain(again, feed.links, page).step() == 5
    proved(tmp_path / "j", feed.count)


def test_a_segment_that_cannot_be_begun_is_an_error(tmp_path):
    with pytest.raises(DiskError, match="Input/output error"):
        Journal(tmp_path / "j", RUN, size=LEAST, disk=Failing(1, "half"))
    Journal(tmp_path / "j", RUN, size=LEAST).finish()


def fill_up(feed, drain, journal):
    """Push until there is no segment to write to."""
    while not drain.full:
        for s in STREAMS:
            feed.push(s, 32)
        drain.step()
        journal.replenish()


def test_a_full_disk_keeps_what_it_has_and_goes_on_when_there_is_room(tmp_path):
    with small_disk(tmp_path / "disk", 4) as disk:
        feed, page = Feed(), Page()
        journal = Journal(disk / "j", RUN, size=LEAST)
        drain = Drain(journal, feed.links, page)
        assert journal.spares == 2 and not journal.trouble
        (disk / "other").write_bytes(bytes(512 << 10))      # somebody else takes the rest
        fill_up(feed, drain, journal)
        assert "No space left on device" in journal.trouble and journal.spares == 0
        assert not [p for p in segment.spares(disk / "j")], "no half of one is left"
        waiting = drain.lag
        assert waiting and drain.step() == 0 and drain.lag == waiting
        number = journal.number
        assert page.durable() == number and journal.segments == 3
        (disk / "other").unlink()
        assert drain.step() > 0 and not drain.full
        while drain.lag:
            drain.step()
        assert journal.number == sum(feed.count.values()) > number
        proved(disk / "j", feed.count)
        journal.close()


def test_the_last_but_one_spare_is_there_when_the_disk_is_found_full(tmp_path):
    """So whoever halts trading at one spare halts before the last is used."""
    with small_disk(tmp_path / "disk", 4) as disk:
        feed, page = Feed(), Page()
        journal = Journal(disk / "j", RUN, size=LEAST)
        drain = Drain(journal, feed.links, page)
        (disk / "other").write_bytes(bytes(512 << 10))
        seen = []
        while not drain.full:
            for s in STREAMS:
                feed.push(s, 32)
            drain.step()
            if not journal.replenish():
                seen.append((journal.spares, journal.segments))
        assert seen[0] == (1, 2), "told while a whole segment is still unused"
        journal.close()


def test_a_limit_of_file_sizes_is_no_death_by_signal(tmp_path):
    """RLIMIT_FSIZE: fallocate fails, in a process that ignores SIGXFSZ as Python does."""
    code = f"""
import resource, sys
from pathlib import Path
from hftpipe.errors import DiskError
from hftpipe.journal.write import Journal
resource.setrlimit(resource.RLIMIT_FSIZE, ({LEAST // 2}, {LEAST // 2}))
try:
    Journal(Path({str(tmp_path / "j")!r}), 7, size={LEAST})
except DiskError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT / "build/view")})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("spare-0: ")[1] == "File too large\n"
    assert list((tmp_path / "j").iterdir()) == []
