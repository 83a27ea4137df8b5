"""Each automatic trigger halts at its bound and not below it, and never from one bad look."""
import mmap

import pytest

from hftpipe import _control
from hftpipe.topology import INDEX, STAGES
from hftpipe.triggers import SECOND, Limits, Triggers

LIMITS = {"max_daily_loss": 5000 * 10**9, "max_order_notional": 10_000 * 10**9}


class Page:
    """A control page that the test drives, and a clock."""

    def __init__(self, **limits):
        memory = mmap.mmap(-1, _control.SIZE)
        _control.format(memory, run=7, stages=[s.name for s in STAGES])
        self.control = _control.Control(memory)
        self.triggers = Triggers(self.control, Limits(**{**LIMITS, **limits}))
        self.now = SECOND

    def set(self, stage, name, value):
        self.control.stage(INDEX[stage]).set(name, value)

    def orders(self, sent=0, rejected=0):
        block = self.control.stage(INDEX["gateway"])
        block.count("orders_sent", sent)
        block.count("orders_rejected", rejected)

    def latency(self, ns, count):
        for _ in range(count):
            self.control.stage(INDEX["gateway"]).record("tick_to_order", ns)

    def look(self, seconds=1):
        """Samples a second apart; the last answer."""
        found = ""
        for _ in range(seconds):
            found = self.triggers.sample(self.now)
            self.now += SECOND
        return found


def test_a_quiet_page_never_halts():
    assert Page().look(200) == ""


@pytest.mark.parametrize("confirm", [1, 3, 5])
def test_what_does_not_last_does_not_halt(confirm):
    page = Page(confirm=confirm)
    for _ in range(20):
        page.set("ledger", "day_pnl", -4600 * 10**9)
        assert page.look(confirm - 1) == ""
        page.set("ledger", "day_pnl", -4400 * 10**9)
        assert page.look(1) == ""
    page.set("ledger", "day_pnl", -4600 * 10**9)
    assert page.look(confirm) == "daily loss 4,600.00 is above 90 % of the limit 5,000.00"


@pytest.mark.parametrize("stage, name, at, beyond, words", [
    ("ledger", "day_pnl", -4500 * 10**9, -4500 * 10**9 - 1, "daily loss 4,500.00 is above 90 %"),
    ("ledger", "gross_notional", 100_000 * 10**9, 100_000 * 10**9 + 1,
     "positions of 100,000.00 are above 10 times the normal 10,000.00"),
    ("book", "jump_bps", 1000, 1001, "a price is 10.01 % off its mean of a minute, above 10 %"),
])
def test_each_passes_at_its_bound_and_halts_one_unit_beyond(stage, name, at, beyond, words):
    page = Page()
    page.set(stage, name, at)
    assert page.look(10) == ""
    page.set(stage, name, beyond)
    assert page.look(2) == "" and page.look(1).startswith(words)


@pytest.mark.parametrize("name, words", [
    ("books_crossed", "6 of 10 books are crossed or locked, above 50 %"),
    ("books_stale", "6 of 10 books are stale, above 50 %")])
def test_a_market_that_is_not_right(name, words):
    page = Page()
    page.set("book", name, 5)
    assert page.look(5) == "", "no book was ever fresh"
    page.set("book", "books", 10)
    assert page.look(10) == ""
    page.set("book", name, 6)
    assert page.look(3) == words


def test_errors_are_a_share_of_what_was_sent_within_the_window():
    page = Page()
    page.look()
    page.orders(sent=9, rejected=9)
    assert page.look(5) == "", "nine orders are too few to judge"
    page.orders(sent=81)
    assert page.look(5) == "", "9 of 90 is at the bound"
    page.orders(sent=1, rejected=1)
    assert page.look(3) == "10 of 91 orders failed, above 10 %"
    assert page.look(70) == "", "the window has passed"
    page.set("gateway", "orders_unknown", 3)
    page.orders(sent=20)
    assert page.look(3) == "3 of 20 orders failed, above 10 %"


def test_latency_is_the_windows_and_not_the_runs():
    page = Page()
    page.look()
    page.latency(500_000_000, 99)
    assert page.look(5) == "", "99 are too few for a 99th percentile"
    page.latency(1_000, 9_900)
    assert page.look(5) == "", "99 of 9,999 are within one percent"
    page.look(70)
    page.latency(90_000_000, 200)
    assert page.look(5) == ""
    page.latency(150_000_000, 10)
    assert page.look(3).startswith("tick to order p99 1")


def test_what_is_usual_becomes_normal_and_what_is_not_does_not():
    page = Page(max_order_notional=10**9)
    page.set("ledger", "gross_notional", 8 * 10**9)
    assert page.look(8 * 3600) == ""
    page.set("ledger", "gross_notional", 75 * 10**9)
    assert page.look(1) == "", "ten times eight"
    page.set("ledger", "gross_notional", 90 * 10**9)
    assert page.look(3).startswith("positions of 90.00 are above 10 times the normal 8")
    page.look(8 * 3600)
    assert page.look(1), "it did not get used to it"


@pytest.mark.parametrize("name", ["daily_loss", "position", "error_rate", "latency", "crossed",
                                  "stale", "jump"])
def test_zero_switches_one_off(name):
    page = Page(**{name: 0})
    page.look()
    page.set("ledger", "day_pnl", -(10**15) if name == "daily_loss" else 0)
    page.set("ledger", "gross_notional", 10**17 if name == "position" else 0)
    page.set("book", "books", 1)
    page.set("book", "books_crossed", int(name == "crossed"))
    page.set("book", "books_stale", int(name == "stale"))
    page.set("book", "jump_bps", 9999 if name == "jump" else 0)
    page.orders(sent=100, rejected=100 if name == "error_rate" else 0)
    page.latency(10**9 if name == "latency" else 1000, 200)
    assert page.look(5) == ""


def test_after_a_resume_it_begins_anew():
    page = Page()
    page.look()
    page.orders(sent=20, rejected=20)
    assert page.look(3)
    page.triggers.forget()
    assert page.look(10) == ""


def test_a_limit_that_is_off_is_no_bound():
    """No loss is too large; without the value of an order, what is normal takes an hour."""
    page = Page(max_daily_loss=0)
    page.set("ledger", "day_pnl", -10**18)
    assert page.look(20) == ""
    page = Page(max_order_notional=0)
    for seconds, gross, halts in ((10, 10**9, False), (10, 10**12, False), (3700, 10**9, False),
                                  (10, 5 * 10**9, False), (10, 10**12, True)):
        page.set("ledger", "gross_notional", gross)
        assert bool(page.look(seconds)) == halts, (seconds, gross)
