"""Every line is one JSON object with its run, and no credential gets into any."""
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import log, schema
from hftpipe.secret import Secret


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_lines_carry_process_run_and_correlation(tmp_path):
    stream = io.StringIO()
    logger = log.setup("store", run=0x1f, directory=tmp_path, stream=stream)
    event = schema.event_id(schema.STREAM.SIGNAL, 255)
    logger.info("stored", rows=3, correlation=log.correlation(0x1f, event))
    logger.debug("too quiet")
    found = lines(stream)
    assert len(found) == 1
    assert found[0]["process"] == "store" and found[0]["run"] == "1f"
    assert found[0]["correlation"] == "hp-1f-ff" and found[0]["rows"] == 3
    assert (tmp_path / "store.log").read_text() == stream.getvalue()
    assert (tmp_path / "store.log").stat().st_mode & 0o777 == 0o600


def test_other_events_are_named_by_stream_and_sequence():
    assert log.correlation(0x1f, schema.event_id(schema.STREAM.FEED, 7)) == "1f/feed/7"


def test_an_exception_stays_on_its_line():
    stream = io.StringIO()
    logger = log.setup("x", stream=stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed")
    (found,) = lines(stream)
    assert found["level"] == "error" and "ValueError: two\nlines" in found["exception"]


@given(st.sampled_from(["secret", "api_key", "Password", "auth_token", "APCA-Authorization"]),
       st.integers(0, 3))
def test_what_stands_under_a_credentials_name_is_taken_out(name, depth):
    value = {name: "canary"}
    for _ in range(depth):
        value = {"inner": [value]}
    stream = io.StringIO()
    log.setup("x", stream=stream).info("event", **value)
    assert "canary" not in stream.getvalue() and "<redacted>" in stream.getvalue()


def test_a_secret_is_redacted_under_any_name():
    stream = io.StringIO()
    log.setup("x", stream=stream).info("event", anything=Secret.literal("canary"))
    assert "canary" not in stream.getvalue()


@pytest.mark.parametrize("level", log.LEVELS)
def test_less_than_the_level_is_not_logged(level):
    stream = io.StringIO()
    logger = log.setup("x", level=level, stream=stream)
    for name in log.LEVELS:
        getattr(logger, name)(name)
    assert [line["event"] for line in lines(stream)] == \
        [name for name, value in log.LEVELS.items() if value >= log.LEVELS[level]]


def test_text_is_for_people_and_the_file_stays_json(tmp_path):
    stream = io.StringIO()
    log.setup("x", directory=tmp_path, form="text", stream=stream).warning("slow", ms=5)
    assert stream.getvalue().rstrip().endswith("warning slow process=x ms=5")
    assert json.loads((tmp_path / "x.log").read_text())["ms"] == 5


def test_what_modules_log_as_libraries_do_stands_beside_it(tmp_path, monkeypatch):
    """Feeds and updates log so: they know neither run nor file."""
    import logging
    stream = io.StringIO()
    for run in (1, 2):                  # set up again, each line is still told once
        log.setup("feed", run=run, directory=tmp_path, level="info", stream=stream)
    module = logging.getLogger("hftpipe.alpaca")
    monkeypatch.setattr(logging.getLogger("hftpipe"), "propagate", False)
    module.warning("feed: %s; trying again in %.2f s", "mute", 0.25)
    module.debug("too quiet")
    module.error("%d of %d", "no number")           # a mistake there loses no line
    try:
        raise ValueError("two\nlines")
    except ValueError:
        module.exception("broken")
    found = lines(stream)
    assert [x["event"] for x in found] == [
        "feed: mute; trying again in 0.25 s", "%d of %d", "broken"]
    assert [x["level"] for x in found] == ["warning", "error", "error"]
    assert all(x["process"] == "feed" and x["run"] == "2" and x["logger"] == "hftpipe.alpaca"
               for x in found)
    assert "ValueError: two" in found[2]["exception"]
