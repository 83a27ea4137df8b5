"""What ``hftpipe record`` writes is data like its source: same events, same backtest."""
import json
import os
import signal
import subprocess
import sys

import numpy
import pytest

from hftpipe import cli, recording, schema
from hftpipe._stage import checksum
from hftpipe.backtest.readers import open_recording
from tests.data import recording as data
from tests.models.live import DEADLINE, environment, marked, until

ITCH = ("itch", "aapl_20200130_locate13_10k.itch50.bin")
KRAKEN = ("kraken", "KRAKEN.ws.50.0.gz")


@pytest.fixture
def hp(capsys):
    """Run ``hftpipe`` in this process: (exit code, stdout, stderr)."""
    def go(*args):
        capsys.readouterr()
        code = cli.run([str(a) for a in args])
        return code, *capsys.readouterr()
    return go


def backtest(hp, path):
    """A backtest's document without file and time."""
    code, out, err = hp("backtest", "--data", path, "-o", "json")
    assert (code, err) == (0, "")
    return {k: v for k, v in json.loads(out).items()
            if k not in ("data", "format", "seconds", "events_per_second")}


def fails(hp, code, message, *args):
    got, out, err = hp("record", *args)
    assert (got, out) == (code, ""), err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def envelopes_are_right(path):
    """Numbered from 1 without holes, checksums as the stages make them; how many there are."""
    found = recording.Recording(path)
    count = 0
    for stream, slots in found.blocks():
        assert stream == schema.STREAM.FEED
        heads = slots[:, :64].copy().view(schema.dtype(schema.ENVELOPE))[:, 0]
        bodies = slots[:, 64:].copy().view(schema.dtype(schema.MARKET))[:, 0]
        want = numpy.arange(count + 1, count + len(slots) + 1, dtype="<u8")
        assert ((heads["event"] & ((1 << schema.SEQ_BITS) - 1)) == want).all()
        assert ((heads["event"] >> schema.SEQ_BITS) == schema.STREAM.FEED).all()
        assert (heads["event"] == bodies["event"]).all()
        assert (heads["record"] == schema.RECORD.MARKET).all() and (heads["lines"] == 1).all()
        assert (heads["ts"] >= bodies["ts_recv"]).all()
        assert (slots[:, :8] == 0).all() and (slots[:, 64:72] == 0).all()   # the ring's words
        for i in range(0, len(slots), 97):
            assert checksum(slots[i, 64:].tobytes()) == int(heads["checksum"][i])
        count += len(slots)
    return count


# ---------------------------------------------------------------- another recording

@pytest.mark.parametrize("name", [ITCH, KRAKEN], ids=lambda n: n[0])
def test_a_conversion_gives_the_same_backtest_as_its_source(hp, tmp_path, name):
    source, target = data(*name), tmp_path / "own.rec"
    code, out, err = hp("record", "--data", source, "--out", target, "-o", "json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["source"] == name[0] and said["bytes"] == target.stat().st_size
    assert said["events"] == envelopes_are_right(target) > 0
    first = backtest(hp, source)
    assert backtest(hp, target) == first
    assert said["events"] == first["events"] and said["symbols"] == first["symbols"]

    # Field for field, but for identity and what the ring and the clock own.
    a = numpy.concatenate(list(open_recording(source)))
    b = numpy.concatenate(list(open_recording(target)))
    for field in ("ts_recv", "ts_venue", "price", "qty", "ref", "instrument", "kind", "side",
                  "flags"):
        assert (a[field] == b[field]).all(), field
    # And a conversion of the conversion is the same file but for what it says it came from.
    again = tmp_path / "again.rec"
    assert hp("record", "--data", target, "--out", again)[0] == 0
    assert [s.tobytes() for _, s in recording.Recording(again).blocks()] == [
        s.tobytes() for _, s in recording.Recording(target).blocks()]


def test_the_same_conversion_is_the_same_file(hp, tmp_path):
    source = data(*ITCH)
    for name in ("a", "b"):
        assert hp("record", "--data", source, "--out", tmp_path / name)[0] == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_conversion_that_fails_leaves_no_file(hp, tmp_path):
    cut = tmp_path / "cut.bin"
    cut.write_bytes(data(*ITCH).read_bytes()[:-5])
    fails(hp, 4, "found the end of the file", "--data", cut, "--out", tmp_path / "a.rec")
    fails(hp, 4, "No such file", "--data", tmp_path / "none", "--out", tmp_path / "a.rec")
    fails(hp, 4, "wanted symbol X", "--data", data(*ITCH), "--symbols", "X",
          "--out", tmp_path / "a.rec")
    assert [p.name for p in tmp_path.iterdir()] == ["cut.bin"]


def test_an_existing_file_and_a_wrong_use_are_refused(hp, tmp_path):
    there = tmp_path / "there.rec"
    there.write_bytes(b"x")
    fails(hp, 4, "wanted a new file", "--out", there, "--for", "1s")
    fails(hp, 4, "no directory", "--out", tmp_path / "none/a.rec", "--for", "1s")
    fails(hp, 2, "wanted one of them", "--out", tmp_path / "a", "--data", there, "--for", "1s")
    fails(hp, 2, "--out", "--for", "1s")
    fails(hp, 2, "must be a time", "--out", tmp_path / "a", "--for", "10")
    fails(hp, 2, "was 'NOPE'", "--out", tmp_path / "a", "--for", "1s", "--symbols", "NOPE")
    assert there.read_bytes() == b"x"


# ---------------------------------------------------------------- a feed

def record(path, *args, env=None):
    env = env or environment()
    return env, subprocess.Popen(
        [sys.executable, "-m", "hftpipe", "record", "--out", str(path), "-o", "json", *args],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.venue
def test_a_feed_is_recorded_and_is_data(hp, tmp_path):
    path = tmp_path / "live.rec"
    env, process = record(path, "--for", "1500ms")
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, "")
    said = json.loads(out)
    assert said["events"] == envelopes_are_right(path) > 100
    assert said["gaps"] == said["errors"] == said["dropped"] == said["reconnects"] == 0
    assert said["frames"] > 0 and said["symbols"] == ["AAPL", "MSFT"]
    assert not marked(env)
    first = backtest(hp, path)
    assert first == backtest(hp, path) and first["events"] == said["events"]
    found = recording.Recording(path)
    _, markets = found.collect(schema.MARKET)
    assert not (markets["kind"] == schema.MARKET_KIND.GAP).any()
    assert (numpy.diff(markets["ts_recv"]) >= 0).all()


@pytest.mark.venue
def test_a_signal_ends_a_recording_well(tmp_path):
    path = tmp_path / "live.rec"
    _, process = record(path, "--symbols", "MSFT")
    parts = lambda: [p for p in tmp_path.iterdir() if p.stat().st_size > 80_000]    # noqa: E731
    until(parts, "something is recorded", process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["events"] == envelopes_are_right(path) > 0
    assert [p.name for p in tmp_path.iterdir()] == ["live.rec"]
    assert recording.Recording(path).instruments["symbol"].tolist() == [b"MSFT"]


@pytest.mark.venue
def test_a_venue_that_dies_is_told_and_what_came_before_is_kept(tmp_path):
    path = tmp_path / "live.rec"
    env, process = record(path)
    until(lambda: [p for p in tmp_path.iterdir() if p.stat().st_size > 80_000],
          "something is recorded", process)
    venue = next(p for p, line in marked(env).items() if " hftpipe venue " in line)
    os.kill(venue, signal.SIGKILL)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1
    assert err.splitlines()[-1] == \
        "error: the local exchange ended with -9; what came before is recorded"
    said = json.loads(out)
    assert said["exit"] == 1 and said["events"] == envelopes_are_right(path) > 0
    assert [p.name for p in tmp_path.iterdir()] == ["live.rec"]


@pytest.mark.venue
def test_no_data_and_wrong_credentials_are_told(tmp_path):
    _, process = record(tmp_path / "a.rec", "--for", "500ms", "--rate", "0")
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (5, "") and "no market data from ws://" in err
    from hftpipe.venue import server
    with server.spawn("--symbols", "AAPL,MSFT") as (_, venue):
        _, process = record(
            tmp_path / "a.rec", "--for", "1s", "--set", "profile=paper",
            "--set", f"venue.rest={venue['rest']}",
            "--set", f"venue.data_stream={venue['data_stream']}",
            "--set", f"venue.updates_stream={venue['updates_stream']}",
            env=environment(ALPACA_API_KEY="wrong", ALPACA_SECRET_KEY="wrong"))
        out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (4, "") and err.startswith("error: feed ws://")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
