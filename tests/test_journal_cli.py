"""``hftpipe journal``: what is there is listed, checked, printed, exported; damage has code 9."""
import json

import pytest

from hftpipe import cli, config, recording, worker
from hftpipe.journal import check, runs, segment
from tests.chain import table

from .test_journal_files import RUN, STREAMS, expected, filled


@pytest.fixture
def hp(capsys, tmp_path):
    """Run ``hftpipe`` in this process: (exit code, stdout, stderr)."""
    def go(*args):
        capsys.readouterr()
        code = cli.run(["--run-dir", str(tmp_path), "journal", *map(str, args)])
        return code, *capsys.readouterr()
    return go


@pytest.fixture
def made(tmp_path):
    """A journal of a run that has ended, and the events that are in it by stream."""
    place = runs.place(tmp_path / "journal", RUN)
    place.describe(run_dir=str(tmp_path), utc_offset=1000, profile="demo", table=table(2), toml="")
    feed, _, journal, _ = filled(place.directory, 60)
    journal.finish()
    return place, feed.count


def test_ls_shows_what_became_of_each(hp, made, tmp_path):
    place, count = made
    code, out, _ = hp("ls", "-o", "json")
    (found,) = json.loads(out)["journals"]
    assert code == 0 and found["run"] == f"{RUN:x}" and found["state"] == "ended"
    assert (found["segments"], found["first"], found["last"]) == (1, 1, sum(count.values()))
    place.mark_stored()
    assert " stored " in hp("ls")[1]
    (place.directory / "end.json").unlink()
    (place.directory / "stored").unlink()
    assert " killed " in hp("ls")[1]
    assert runs.expire(tmp_path / "journal", 0.0) == []
    place.mark_stored()
    assert runs.expire(tmp_path / "journal", 3600.0) == []
    assert runs.expire(tmp_path / "journal", 0.0, keep=RUN) == []
    assert runs.expire(tmp_path / "journal", 0.0) == [RUN]
    assert hp("ls")[:2] == (0, f"no journal in {tmp_path / 'journal'}\n")


def test_verify_says_what_it_read(hp, made):
    _, count = made
    code, out, err = hp("verify", f"{RUN:x}", "-o", "json")
    found = json.loads(out)
    assert (code, err) == (0, "") and found["ok"] and found["records"] == sum(count.values())
    assert {s["last"] for s in found["streams"].values()} == set(count.values())
    assert hp("verify")[0] == 0


@pytest.mark.parametrize("where", ["record", "body"])
def test_damage_has_code_9_and_one_line(hp, made, where):
    place, _ = made
    (path,) = segment.listing(place.directory)
    block = next(check.walk(place.directory, RUN))
    at = int(block.offsets[50])
    memory = bytearray(path.read_bytes())
    if where == "record":
        memory[at + 40] ^= 1
    else:                               # whole as a record, but not what its stage put into it
        from hftpipe import _journal
        slot = bytearray(block.slots([50], int(block.sizes[50])).tobytes())
        slot[80] ^= 1
        group = int.from_bytes(memory[at + 16:at + 24], "little")
        import numpy
        _journal.frame(numpy.frombuffer(slot, numpy.uint8).reshape(1, -1), RUN, 51, group,
                       memory, at)
    path.write_bytes(memory)
    code, out, err = hp("verify")
    assert (code, out) == (9, "") and err.count("\n") == 1
    assert err.startswith(f"error: journal {path} at {at}: ")
    assert ("wanted record 51" if where == "record" else "not what its envelope says") in err


def test_a_torn_tail_is_told_and_no_damage(hp, made):
    place, count = made
    (place.directory / "end.json").unlink()
    (path,) = segment.listing(place.directory)
    blocks = list(check.walk(place.directory, RUN))
    at = int(blocks[-1].offsets[-1])
    memory = bytearray(path.read_bytes())
    memory[at + 64:at + 500] = bytes(436)
    path.write_bytes(memory)
    code, out, _ = hp("verify", "-o", "json")
    found = json.loads(out)
    assert code == 0 and found["records"] == sum(count.values()) - 1
    assert found["torn_bytes"] > 0 and found["torn_at"] == f"{path} at {at}"


def test_dump_prints_every_field_in_order(hp, made):
    _, count = made
    code, out, _ = hp("dump", "--limit", 0, "-o", "json")
    events = json.loads(out)["events"]
    assert code == 0 and [e["number"] for e in events] == list(range(1, sum(count.values()) + 1))
    code, out, _ = hp("dump", "--stream", "risk", "--from", 20, "--limit", 5, "-o", "json")
    some = json.loads(out)["events"]
    assert some == [e for e in events if e["stream"].lower() == "risk"
                    and e["number"] >= 20][:5] and len(some) == 5
    assert hp("dump", "--limit", 3)[1].count("\n") == 3


def test_export_is_a_recording_of_the_same_events(hp, made, tmp_path):
    _, count = made
    out = tmp_path / "run.rec"
    code, said, _ = hp("export", "--out", out, "-o", "json")
    assert code == 0 and json.loads(said)["events"] == sum(count.values())
    found = {s: [] for s in STREAMS}
    for stream, slots in recording.Recording(out).blocks():
        found[stream] += [row.tobytes() for row in slots]
    assert found == {s: expected(s, count[s]) for s in STREAMS}
    code, _, err = hp("export", "--out", out)
    assert code == 4 and "wanted a new file, found one" in err


@pytest.mark.parametrize("args, code, words", [
    (("verify", "77"), 4, "wanted run 77, found none"),
    (("dump", "--stream", "nobody"), 2, "stream must be one of feed, book"),
    (("dump", "--from", "0"), 2, "--from"),
    (("nothing",), 2, "No such command"),
])
def test_what_is_wrong_is_one_line(hp, made, args, code, words):
    got, out, err = hp(*args)
    assert (got, out) == (code, "") and err.count("\n") == 1 and words.lower() in err.lower()


def test_other_layouts_are_refused(hp, made):
    place, _ = made
    meta = json.loads((place.directory / "run.json").read_text())
    meta["records"]["intent"] = "0" * 16
    (place.directory / "run.json").write_text(json.dumps(meta))
    code, out, err = hp("dump")
    assert (code, out) == (4, "") and "other layouts of intent" in err


def test_a_store_begins_where_both_database_and_recording_are():
    last = {1: 1 << 56 | 5, 2: 2 << 56 | 9}
    assert worker.behind({1: 7, 2: 7, 3: 7}, last) == {1: 5, 2: 7, 3: 0}


def test_sizes_and_durability_of_the_configuration():
    loads = config.loads
    assert loads("[journal]\nsegment = '2GiB'", env={}).journal.segment == 2 << 30
    assert loads("", env={}).journal.durability == "process"
    with pytest.raises(config.ConfigError, match='segment must be a size from "1MiB"'):
        loads("[journal]\nsegment = '64'", env={})
    with pytest.raises(config.ConfigError, match="durability must be"):
        loads("[journal]\ndurability = 'disk'", env={})
