"""A data stream received in a loop, its books and a gate behind them: for real sockets."""
import time

import numpy

from hftpipe import schema
from hftpipe._clock import now_ns
from hftpipe._ring import pair
from hftpipe._stage_book import BookStage
from hftpipe._stage_feed import FeedStage
from hftpipe.alpaca import session
from hftpipe.alpaca._codec import Decoder
from hftpipe.alpaca._source import SocketSource
from tests.test_risk import Desk, instruments

DEADLINE = 30.0
K, B = schema.MARKET_KIND, schema.BOOK_FLAG


class LiveFeed:
    """What `worker.pipeline` makes of a data stream, as far as the gate.

    Attributes
    ----------
    market, books : list of records
        All MARKET records published, and all BOOK states.
    """

    def __init__(self, url, key, secret, symbols, timeout=5.0, channels=None, **options):
        channels = channels or session.channels_of(url)
        self.decoder = Decoder(symbols)
        self.source = SocketSource(
            lambda: session.open_data_stream(url, key, secret, symbols, channels,
                                             timeout=timeout), self.decoder, **options)
        to_book, from_feed = pair(schema.MARKET, 16384)
        to_gate, self._from_book = pair(schema.BOOK, 16384)
        to_store, self._store = pair(schema.STORED, 16384)
        self.feed = FeedStage(to_book, to_store, source=self.source)
        self.book = BookStage(from_feed, [to_gate], instruments(len(symbols)))
        self.desk = Desk(count=len(symbols), marked=False, max_data_age_ms=60_000)
        self.symbols = symbols
        self.market, self.books, self.last = [], [], {}

    def open(self):
        self.source.open()
        return self

    def turn(self):
        """One turn of the loop."""
        self.feed.do_work()
        self.source.tend()
        self.book.do_work()
        while (raw := self._from_book.pop()) is not None:
            one = numpy.frombuffer(raw, schema.dtype(schema.BOOK))[0]
            self.desk.risk.mark(one)
            self.books.append(one)
            self.last[self.symbols[one["instrument"]]] = one
        self._from_book.flush()
        size = schema.MARKET.size
        while (raw := self._store.pop()) is not None:
            self.market.append(numpy.frombuffer(raw[64:64 + size],
                                                schema.dtype(schema.MARKET))[0])
        self._store.flush()

    def until(self, condition, what):
        """Turn until *condition(self)* holds; what it gave."""
        end = time.monotonic() + DEADLINE
        while not (found := condition(self)):
            assert time.monotonic() < end, f"never: {what}; kinds {self.kinds()[-20:]}"
            self.turn()
        return found

    def close(self):
        self.source.close()

    # ------------------------------------------------------------ questions

    def kinds(self):
        return [K.label(m["kind"]).upper() for m in self.market]

    def of(self, kind):
        """The market records of one kind."""
        return [m for m in self.market if m["kind"] == kind]

    def flags(self, symbol):
        """BOOK_FLAG_* of a symbol's newest state."""
        return int(self.last[symbol]["flags"]) if symbol in self.last else B.STALE

    def usable(self, symbol):
        return not self.flags(symbol) & (B.STALE | B.EMPTY | B.CROSSED)

    def ask(self, symbol, side=1):
        """Reason of an order for one share at the far touch, now."""
        last = self.last[symbol]
        price = last["ask"] if side > 0 else last["bid"]
        reason = self.desk.check(side, price=str(int(price) / 1e9), now=now_ns(),
                                 instrument=self.symbols.index(symbol))
        if reason == "NONE":            # it goes no further, and is in nobody's way
            self.desk.event(self.desk.seq, schema.ORDER_EVENT_KIND.CANCELED)
        return reason
