"""The crash drill: its judges on made-up logs, real rounds, and mistakes that it must find."""
from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from hftpipe import _fault
from hftpipe.drill import crash
from hftpipe.drill.crash import Report, Round
from hftpipe.errors import UsageError
from tests.models.live import command, environment

NANO = 10**9
ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "build/faults"


def order(i, run=1, symbol="ACME", side="buy", qty="10"):
    return {"kind": "order", "ts": 1, "id": i, "client_order_id": f"hp-{run:x}-{i}",
            "symbol": symbol, "side": side, "qty": qty}


def fill(i, qty, price):
    return {"kind": "event", "ts": 2, "id": i, "event": "partial_fill", "qty": qty, "price": price}


def test_books_of_a_log_are_exact():
    log = [order("1"), fill("1", "3", "1"), fill("1", "3", "2"), order("2", side="sell"),
           fill("2", "2", "5"), {"kind": "event", "id": "2", "ts": 3, "event": "canceled"},
           order("3", side="sell"), fill("3", "6", "4"),
           {**order("x"), "client_order_id": "by-hand", "id": "x"}, fill("x", "9", "9")]
    qty, cost, realised = crash.books(log)["ACME"]
    # 6 for 9; 2 of them, which cost 3, brought 10; 4, which cost 6, brought 16, and 2 are short
    assert (qty, cost, realised) == (-2, -8, Fraction(17))
    assert crash.differ({"ACME": (qty, cost, realised)}, {"ACME": (qty, cost, realised)}) == []
    (found,) = crash.differ({"ACME": (qty, cost, realised)}, {})
    assert found.startswith("ACME: here -2 for -8.000000000, realised +17")
    assert crash.differ({"ACME": (qty, cost, realised + Fraction(1, 10**12))},
                        {"ACME": (qty, cost, realised)})


def test_orders_of_two_runs_at_a_time_are_found():
    assert crash.one_run([order("1", 1), order("2", 1), order("3", 2)]) == []
    assert crash.one_run([order("1", 1), order("3", 2), order("2", 1)]) == [
        "hp-1-2 came after an order of run 2"]


@pytest.mark.parametrize("points", [False, True])
def test_every_fault_comes_once_before_any_comes_again(points):
    wanted = crash.faults(points)
    assert len(set(wanted)) == len(wanted)
    turn = itertools.chain.from_iterable(crash.groups(5, (), points))
    for _ in range(3):
        assert sorted(itertools.islice(turn, len(wanted))) == sorted(wanted)
    for group in itertools.islice(crash.groups(7, (), points), 40):
        assert all(crash.chains(name) for name in group[:-1]) and not crash.chains(group[-1])
        assert all("." not in name for name in group) or len(group) == 1
    only = ["store killed", "feed stopped"]
    assert sorted(next(crash.groups(1, only, points))) in ([n] for n in only)


def test_every_point_is_in_the_source_and_nothing_else_is():
    text = "".join(p.read_text() for p in (ROOT / "src").rglob("*.py*")
                   if p.suffix in (".py", ".pyx") and p.name != "_fault.pyx")
    import re
    passed = set(re.findall(r'(?:hp_fault|_fault\.point)\("([\w.]+)"\)', text))
    assert passed == {name for names in _fault.POINTS.values() for name in names}
    assert set(re.findall(r'_fault\.bug\("([\w.]+)"\)', text)) == set(_fault.BUGS)


def test_a_release_has_no_fault_points():
    assert not _fault.BUILT and not _fault.bug("settle.no_fills")
    done = subprocess.run([sys.executable, "-c", "from hftpipe import _fault\n"
                           "_fault.point('store.begun'); print('alive')"],
                          env=environment(HFT_FP="store.begun:1", HFT_BUG="settle.no_fills"),
                          capture_output=True, text=True, check=True)
    assert done.stdout == "alive\n"


def test_a_fault_that_there_is_not_is_a_usage_error():
    with pytest.raises(UsageError, match="--fault must be one of feed killed"):
        crash.run(1, 1, only=["moon killed"])
    with pytest.raises(UsageError, match="not in this build"):
        crash.run(1, 1, only=["gateway.sent"])
    code, _, err = command("drill", "crash", "--fault", "moon killed")
    assert code == 2 and "moon killed" in err


def test_a_report_with_anything_wrong_is_missed():
    good, bad = Round(1, "store killed", 7, True), Round(2, "gateway.sent", 8, True)
    bad.say("I4", "ACME: here 1, at the venue 2")
    good.say("I4")
    good.states, bad.states = {"open": 2}, {"open": 1, "created": 1}
    report = Report(7, True, [good, bad])
    said = report.document()
    assert said["missed"] == ["round 2 (seed 8, gateway.sent): I4: ACME: here 1, at the venue 2"]
    assert [n for n, i in said["invariants"].items() if not i["holds"]] == ["I4"]
    assert said["faults"]["gateway.sent"] == 1 and "gateway killed" in said["never_hit"]
    assert said["order_states"]["open"] == 3
    text = "\n".join(crash.lines(report))
    assert "I4  BROKEN" in text and "never hit" in text and "WRONG" in text
    assert Report(7, False, [good]).missed == []


@pytest.mark.venue
@pytest.mark.db
def test_a_few_rounds(tmp_path):
    code, out, err = command("drill", "crash", "--rounds", "4", "--seed", "3", "--fault",
                             "gateway killed", "--fault", "everything killed", "--fault",
                             "store killed", "--fault", "supervisor killed", "-o", "json")
    said = json.loads(out)
    assert code == 0 and said["missed"] == [] and said["rounds"] == 4, (said, err)
    assert all(r["hit"] for r in said["detail"]) and said["orders"] > 4
    assert all(i["holds"] for i in said["invariants"].values())


# ---------------------------------------------------------------- a build with faults

@pytest.fixture
def built():
    if not any(FAULTS.glob("hftpipe/_fault.*.so")):
        pytest.skip("no build with fault points here; `make faults` makes one")

    def drill(*args, bug=""):
        env = {**environment(), "PYTHONPATH": str(FAULTS)}
        if bug:
            env["HFT_BUG"] = bug
        done = subprocess.run([sys.executable, "-m", "hftpipe", "drill", "crash", "-o", "json",
                               *args], env=env, capture_output=True, text=True, timeout=500,
                              cwd=os.sep, check=False)
        return done.returncode, json.loads(done.stdout)
    return drill


@pytest.mark.venue
@pytest.mark.db
@pytest.mark.parametrize(("bug", "broken", "faults"), [
    ("store.mark_first", "I3", ["store.copied", "store.marked"]),
    ("books.no_realised", "I4", ["SIGTERM", "supervisor killed"]),
    ("settle.no_fills", "I4", ["gateway.heard", "updates.recorded", "everything killed"]),
    ("settle.no_cancel", "I4", ["everything killed", "gateway.told"]),
])
def test_a_planted_mistake_is_found(built, bug, broken, faults):
    """The drill with the mistake fails in the invariant it breaks; without it, it does not."""
    args = [word for name in faults for word in ("--fault", name)]
    code, said = built("--rounds", "6", "--seed", "2", *args, bug=bug)
    assert code == 9 and not said["invariants"][broken]["holds"], said["missed"]
