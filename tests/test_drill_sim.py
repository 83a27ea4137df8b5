"""The simulation: a seed is a world that comes again; nothing is lost; mistakes are found."""
from __future__ import annotations

import json
import os
import random

import numpy
import psycopg
import pytest

from hftpipe import _ring, schema
from hftpipe.drill import sim
from hftpipe.drill._door import DoorWire
from hftpipe.drill.database import Session, SimDatabase
from hftpipe.drill.disk import SECTOR, Crash, SimDisk
from hftpipe.drill.exchange import SECOND, Exchange
from hftpipe.drill.planted import BUGS
from hftpipe.errors import SchemaError, UsageError
from tests.models.live import command

SEEDS = 100                     # in which every planted mistake is found
FEW = 12
QUICK = ("store.drop_row", "disk.no_names", "journal.release_early", "gateway.no_wait",
         "risk.release_first", "reconcile.absent", "settle.no_fills", "books.no_opening",
         "start.no_rings", "start.forgets_halt")


def disk(bug=""):
    return SimDisk(random.Random(1), bug)


def made(path, one, size=16 * SECTOR):
    one.create(path, size)
    one.sync(path.parent)
    return one.open(path)


# ---------------------------------------------------------------- what the simulation stands on

def test_a_write_that_returned_survives_the_power_and_one_that_was_cut_off_may_be_torn(tmp_path):
    path, one = tmp_path / "a", disk()
    fd = made(path, one)
    one.write(fd, b"x" * 8 * SECTOR, 0)
    one.crash_in, one.power = 1, True
    with pytest.raises(Crash):
        one.write(fd, b"y" * 8 * SECTOR, 0)
    os.close(fd)
    one.restart([tmp_path])
    found = path.read_bytes()[:8 * SECTOR]
    sectors = {found[i:i + SECTOR] for i in range(0, len(found), SECTOR)}
    assert sectors == {b"x" * SECTOR, b"y" * SECTOR}, "whole sectors, old and new ones"
    assert one.lost == found.count(b"x") // SECTOR


def test_a_process_that_is_killed_in_a_write_leaves_its_beginning(tmp_path):
    path, one = tmp_path / "a", disk()
    fd = made(path, one)
    one.crash_in = 1
    with pytest.raises(Crash):
        one.write(fd, b"y" * 1000, 0)
    os.close(fd)
    one.restart([tmp_path])
    found = path.read_bytes().rstrip(b"\0")
    assert found == b"y" * len(found) and len(found) < 1000 and not one.lost


def test_a_refused_write_is_not_there_after_the_power_was_cut(tmp_path):
    """The kernel shows it until then: that is why nobody may try again and believe it."""
    path, one = tmp_path / "a", disk()
    fd = made(path, one)
    one.refuse_in = 1
    with pytest.raises(OSError, match="Input/output"):
        one.write(fd, b"y" * 8 * SECTOR, 0)
    os.close(fd)
    assert path.read_bytes().startswith(b"y" * 8 * SECTOR)
    one.power = True
    one.restart([tmp_path])
    assert path.read_bytes().count(b"\0") > 8 * SECTOR and one.lost


def test_a_name_that_was_not_synced_is_lost_with_the_power(tmp_path):
    one = disk("disk.no_names")
    os.close(made(tmp_path / "a", one))
    one.rename(tmp_path / "a", tmp_path / "b")
    one.power = True
    one.restart([tmp_path])
    assert not (tmp_path / "b").exists() and one.lost
    sure = disk()
    os.close(made(tmp_path / "c", sure))
    sure.rename(tmp_path / "c", tmp_path / "d")
    sure.power = True
    sure.restart([tmp_path])
    assert (tmp_path / "d").exists() and not sure.lost


def test_a_transaction_is_there_whole_or_not_at_all():
    database = SimDatabase(random.Random(1))
    database.marks[1, 4] = 0, 0, b""
    move = ("WITH moved AS (UPDATE hftpipe.mark SET seq = %(new)s", {
        "run": 1, "stream": 4, "old": 0, "before": b"", "new": 7, "content": 5, "head": b"h"})
    session = Session(database)
    database.fail_in = 2                        # before the commit
    with pytest.raises(psycopg.OperationalError), session.transaction():
        session.execute(*move)
    assert database.marks[1, 4] == (0, 0, b"")
    database.fail_in = 3                        # after it: the answer is lost
    with pytest.raises(psycopg.OperationalError), session.transaction():
        session.execute(*move)
    assert database.marks[1, 4] == (7, 5, b"h")
    with session.transaction():                 # the mark has moved: nobody else's
        assert session.execute(*move).rowcount == 0
    with pytest.raises(ValueError, match="does not know: DELETE"):
        session.execute("DELETE FROM hftpipe.mark", ())


def test_the_door_stands_between_the_right_ends():
    orders, answers = _ring.pair(schema.ORDER, 2), _ring.pair(schema.UPDATE, 2)
    assert DoorWire(orders[0], answers[1]).error is None
    with pytest.raises(SchemaError, match="producer end of order"):
        DoorWire(orders[1], answers[1])


def test_the_venue_takes_a_name_once():
    venue = Exchange(random.Random(4), ["ACME"])
    order = numpy.zeros(1, schema.dtype(schema.ORDER))[0]
    order["order"], order["side"], order["qty"], order["price"] = (
        schema.event_id(schema.STREAM.SIGNAL, 3), 1, SECOND, 100 * SECOND)
    for _ in range(20):
        venue.send(order, 7)
    venue.advance(60 * SECOND)
    assert [line["client_order_id"] for line in venue.log if line["kind"] == "order"] == ["hp-7-3"]
    assert venue.hits["name known"] > 5
    assert venue.positions()[0].qty == "1" or venue.cancel(venue.orders()[0].id)


# ---------------------------------------------------------------- worlds

def test_a_seed_is_the_same_world_again_and_another_one_is_not():
    first, again, other = sim.one(3), sim.one(3), sim.one(4)
    assert first.digest() == again.digest() != other.digest()
    assert first.venue.log == again.venue.log and first.venue.log


def test_nothing_is_lost_in_any_of_some_worlds():
    report = sim.run(FEW, 1)
    assert report.missed == [], sim.lines(report)
    document = report.document()
    assert document["seeds"] == FEW and report.lives >= 2 * FEW
    assert report.orders > 5 * FEW and report.events > 100 * FEW
    assert all(found["holds"] for found in document["invariants"].values())
    assert document["network"]["order late"] and document["network"]["update lost"]


@pytest.mark.parametrize("seed", [86, 94, 1080])
def test_the_end_of_an_order_is_told_before_its_fills(seed):
    """These worlds once let the next order pass before the fills of a cancelled one came."""
    assert sim.run(1, seed).missed == []


@pytest.mark.parametrize("bug", [
    bug if bug in QUICK else pytest.param(bug, marks=pytest.mark.slow) for bug in BUGS])
def test_a_planted_mistake_is_found_and_its_seed_finds_it_again(bug):
    report = sim.run(SEEDS, 1, bug)
    assert report.failing, f"{bug}: {BUGS[bug]}: not found by {SEEDS} seeds"
    assert sim.lines(report)[-1].endswith(f"--bug {bug}")
    found = report.failing[0]
    assert sim.one(found["seed"], bug).wrong.keys() == found["wrong"].keys()


def test_there_are_mistakes_of_every_part():
    parts = {name.partition(".")[0] for name in BUGS}
    assert parts == {"store", "disk", "journal", "gateway", "risk", "updates", "reconcile",
                     "settle", "books", "start"}
    assert len(BUGS) >= 20


def test_a_mistake_that_is_none_is_refused():
    with pytest.raises(UsageError, match="must be one of store"):
        sim.one(1, "store.nothing")


def test_the_command_says_what_it_came_to(tmp_path):
    code, out, err = command("drill", "sim", "--seeds", "2", "-o", "json", cwd=tmp_path)
    assert code == 0, err
    assert json.loads(out)["seeds"] == 2
    code, out, err = command("drill", "sim", "--seeds", "3", "--bug", "start.no_rings",
                             cwd=tmp_path)
    assert code == 9, err
    assert "again with: hftpipe drill sim --seeds 1 --seed " in out
    code, _, err = command("drill", "sim", "--bug", "nothing", cwd=tmp_path)
    assert code == 2 and "planted bug must be one of" in err and "Traceback" not in err
