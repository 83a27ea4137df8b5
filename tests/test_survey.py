"""The book stage says on the page how the market looks: stale, crossed, and what jumped."""
import mmap
import threading

import pytest

from hftpipe import _control, _ring, schema
from hftpipe._host import WAIT_SLEEP, Host
from hftpipe._stage_book import BookStage
from tests.chain import quote, table
from tests.models.driver import until


@pytest.fixture
def market():
    """A book stage that runs: ``(put, page)``; *page* gives a counter of it."""
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, stages=("feed", "book"))
    control = _control.Control(memory)
    into, taken = _ring.pair(schema.MARKET, 64)
    out, read = _ring.pair(schema.BOOK, 256)
    stage = BookStage(taken, [out], table(4), control=control)
    thread = threading.Thread(target=Host([stage], control, WAIT_SLEEP).run)
    thread.start()
    yield into.push_many, control.stage(1).counter
    control.request_stop(_control.QUIT)
    thread.join()
    del read


def gap(instrument):
    out = quote(1, 1, 2, instrument=instrument)[:1]
    out["kind"], out["flags"] = schema.MARKET_KIND.GAP, schema.MARKET_FLAG.LAST
    return out


def test_what_is_wrong_with_the_books_is_counted(market):
    put, page = market
    put(quote(1, 10000, 10001))
    until(lambda: page("books") == 1, "one instrument has a book")
    put(quote(2, 10000, 10001, instrument=1))
    put(quote(3, 10002, 10001, instrument=2))
    put(quote(4, 10001, 10001, instrument=3))
    until(lambda: page("books") == 4 and page("books_crossed") == 2, "crossed and locked")
    assert page("books_stale") == 0
    put(gap(0))
    until(lambda: page("books_stale") == 1, "stale")
    assert page("books") == 4
    put(quote(5, 10000, 10001, instrument=2))
    until(lambda: page("books_crossed") == 1, "one is right again")


def test_a_price_that_jumps_is_seen_and_a_crossed_one_is_not_a_jump(market):
    put, page = market
    put(quote(1, 10000, 10002))
    until(lambda: page("books") == 1, "a book")
    assert page("jump_bps") == 0
    put(quote(2, 30000, 10002))
    until(lambda: page("books_crossed") == 1, "crossed")
    assert page("jump_bps") == 0
    put(quote(3, 12000, 12002))
    until(lambda: 1900 <= page("jump_bps") <= 2000, "a fifth above its mean")
    put(quote(4, 10000, 10002))
    until(lambda: page("jump_bps") < 100, "back")
