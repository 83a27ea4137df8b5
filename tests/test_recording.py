"""A recording is read back byte for byte, by later versions too, and damage never passes."""
import importlib.util
import json
import struct
from pathlib import Path

import numpy
import pytest

from hftpipe import _ring, recording, schema, worker
from hftpipe.errors import DataError
from tests.chain import table

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.rec"
    golden.make(path)
    return path


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.rec")), ids=lambda p: p.name)
def test_golden_file_of_each_version_is_read(path):
    """What a release wrote stays readable: fields it had keep their values, matched by name."""
    found = recording.Recording(path)
    assert [row["symbol"] for row in found.instruments] == [b"ACME", b"BOLT"]
    assert found.run == 1234
    expected = json.loads(path.with_suffix(".json").read_text())
    for number, rows in expected.items():
        record = schema.BY_NAME[rows["name"]]
        _, bodies = found.collect(record)
        for name, values in rows["fields"].items():
            assert bodies[name].tolist() == values, f"{record.name}.{name} ({number})"


def test_there_is_a_golden_file_of_this_format(file):
    """The newest golden file has exactly this version's descriptors; else write a new one."""
    newest = recording.Recording(sorted(GOLDEN.glob("*.rec"))[-1])
    assert newest.descriptors == {n: schema.descriptor(r) for n, r in schema.BODIES.items()}, (
        "records changed: add tests/golden/recording-<version>.rec with make.py")


def test_round_trip(file):
    found = recording.Recording(file)
    for number, record in schema.BODIES.items():
        envelopes, bodies = found.collect(record)
        assert bodies.tobytes() == golden.fill(record, 3, number).tobytes()
        assert (envelopes["record"] == number).all()


def test_an_existing_file_is_not_overwritten(file):
    with pytest.raises(DataError, match="File exists"):
        golden.make(file)


def test_cut_off_anywhere_is_an_error(file, tmp_path):
    data = file.read_bytes()
    cut = tmp_path / "cut.rec"
    for size in range(0, len(data), 97):
        cut.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"cut off|wanted"):
            list(recording.Recording(cut).events())
    cut.write_bytes(data[:-1])
    with pytest.raises(DataError, match="cut off"):
        list(recording.Recording(cut).events())


def test_every_flipped_byte_is_found(file, tmp_path):
    data = bytearray(file.read_bytes())
    bad = tmp_path / "bad.rec"
    rng = numpy.random.default_rng(5)
    for at in rng.integers(0, len(data), 150):
        data[at] ^= 0x41
        bad.write_bytes(data)
        data[at] ^= 0x41
        with pytest.raises(DataError):
            list(recording.Recording(bad).blocks())


def test_newer_format_is_refused(file, tmp_path):
    data = file.read_bytes()
    size = struct.unpack_from("<I", data, 8)[0]
    header = json.loads(data[16:16 + size])
    header["version"] = recording.VERSION + 1
    text = json.dumps(header).encode()
    import zlib
    newer = tmp_path / "newer.rec"
    newer.write_bytes(data[:8] + struct.pack("<II", len(text), zlib.crc32(text)) + text
                      + data[16 + size:])
    with pytest.raises(DataError, match="format 2, this build reads up to 1"):
        recording.Recording(newer)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        recording.Recording(tmp_path / "none.rec")
    other = tmp_path / "x.rec"
    other.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(DataError, match="wanted a recording"):
        recording.Recording(other)


def test_a_killed_writer_is_resumed_behind_its_last_whole_block(file, tmp_path):
    data = file.read_bytes()
    whole = [(s, b.tobytes()) for s, b in recording.Recording(file).blocks()]
    for cut in (len(data) - 1, len(data) - 30, len(data) - 700):
        torn = tmp_path / f"torn{cut}.rec"
        torn.write_bytes(data[:cut])
        with recording.Writer.resume(torn) as out:
            kept = out.events // 3
            assert sorted(out.last) == sorted({s for s, _ in whole[:kept]})
            for stream, block in whole[kept:]:
                out.write(stream, numpy.frombuffer(block, "u1").reshape(3, -1))
        assert [(s, b.tobytes()) for s, b in recording.Recording(torn).blocks()] == whole


def test_what_a_tap_gave_back_is_in_the_file_when_the_process_is_killed(tmp_path):
    """A buffer died with the store: its slots were gone, and the recording had a hole."""
    producer, consumer = _ring.pair(schema.STORED, 64)
    path = tmp_path / "a.rec"
    writer = recording.Writer(path, table(), 1, 0)
    assert recording.Recording(path).run == 1           # killed before the first event
    tap = worker.Tap(consumer, schema.STREAM.FEED, writer)
    for seq in range(1, 11):
        row = numpy.zeros(1, schema.dtype(schema.STORED))
        row["event"] = schema.event_id(schema.STREAM.FEED, seq)
        row["record"], row["lines"] = schema.RECORD.MARKET, 1
        assert producer.push(row.tobytes())
    tap.release(len(tap.peek(10)))
    kept = tmp_path / "killed.rec"
    kept.write_bytes(path.read_bytes())                 # what a kill -9 leaves
    again = recording.Writer.resume(kept)
    assert again.events == 10
    again.close()
    writer.close()
