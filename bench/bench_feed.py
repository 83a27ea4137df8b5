"""How much market data one core takes: socket, decode, feed ring, book, book ring.

Hot path: `SocketSource.read` (src/alpaca/_source.pyx), `FeedStage`, `BookStage`.  Input: stock
quotes and trades of a hundred symbols as MessagePack in WebSocket frames, which a thread has put
into a socket before the clock runs; each stage is called from Python once per frame, which costs
the figure something.  Counted is CPU time of the receiving thread, the kernel's part included, so
that a busy machine says the same as a quiet one.

    python -m pytest bench/bench_feed.py -s                       a few rounds
    HFTPIPE_BENCH=full python -m pytest bench/bench_feed.py -s    many rounds

That 100,000 messages per second fit one core is asserted in both.
"""
import socket
import statistics
import struct
import threading
import time

import msgspec
import numpy
import pytest

from bench import harness
from hftpipe import schema
from hftpipe._ring import pair
from hftpipe._stage_book import BookStage
from hftpipe._stage_feed import FeedStage
from hftpipe.alpaca._codec import Decoder
from hftpipe.alpaca._socket import Receiver
from hftpipe.alpaca._source import SocketSource

FULL = harness.FULL
WANTED = 100_000                # messages per second of one core
MESSAGES = 400_000 if FULL else 40_000
ROUNDS = 15 if FULL else 3
SYMBOLS = [f"SYM{i}" for i in range(100)]
NANO = 10**9


def message(i: int) -> dict:
    """Every fourth a trade, the others quotes that move by a tick or in size."""
    price = 100.0 + i % 50 / 100
    t = msgspec.msgpack.Ext(-1, struct.pack(">Q", i % NANO << 34 | 1772461800 + i // NANO))
    if i % 4 == 3:
        return {"T": "t", "S": SYMBOLS[i % 100], "i": i, "x": "V", "p": price, "s": 90,
                "c": ["@", "I"], "z": "C", "t": t}
    return {"T": "q", "S": SYMBOLS[i % 100], "bx": "V", "bp": price, "bs": 300 + i % 7, "ax": "V",
            "ap": price + 0.02, "as": 100, "c": ["R"], "z": "C", "t": t}


def frames(per_frame: int, count: int) -> list[bytes]:
    out = []
    for at in range(0, count, per_frame):
        payload = msgspec.msgpack.encode([message(at + i) for i in range(per_frame)])
        size = len(payload)
        head = (struct.pack(">BB", 0x82, size) if size < 126
                else struct.pack(">BBH", 0x82, 126, size))
        out.append(head + payload)
    return out


class Path:
    """The stages of one core behind a socket."""

    def __init__(self) -> None:
        table = numpy.zeros(len(SYMBOLS), schema.dtype(schema.INSTRUMENT))
        table["tick"], table["lot"] = NANO // 100, NANO
        self.near, far = socket.socketpair()
        self.decoder = Decoder(SYMBOLS)
        self.source = SocketSource(lambda: Receiver(far, b"", 1 << 20, None), self.decoder)
        to_book, from_feed = pair(schema.MARKET, 16384)
        to_next, self.end = pair(schema.BOOK, 16384)
        self.feed = FeedStage(to_book, source=self.source)
        self.book = BookStage(from_feed, [to_next], table, orders=0)
        self.out = numpy.zeros(4096, schema.dtype(schema.BOOK))
        self.source.open()

    def run(self, count: int) -> tuple[float, int]:
        """CPU seconds until *count* messages are decoded, and states of books that came out."""
        target = self.decoder.counters()["messages"] + count
        states = idle = 0
        begun = time.thread_time()
        while True:
            done = self.feed.do_work()
            self.book.do_work(4096)
            states += self.end.pop_many(self.out)
            self.end.flush()
            if not done:
                idle += 1
                if self.decoder.counters()["messages"] >= target and not len(self.end):
                    return time.thread_time() - begun, states
                assert idle < 10_000_000, self.source.closed

    def close(self) -> None:
        self.source.close()
        self.near.close()


@pytest.mark.parametrize("per_frame", [1, 10])
def test_one_core_takes_the_market_data(per_frame):
    path = Path()
    data = b"".join(frames(per_frame, MESSAGES))
    found = []
    try:
        for _ in range(ROUNDS):
            sender = threading.Thread(target=path.near.sendall, args=(data,))
            sender.start()
            seconds, states = path.run(MESSAGES)
            sender.join()
            assert states == MESSAGES                   # a state of a book for each message
            found.append(MESSAGES / seconds)
        counters = path.decoder.counters()
        assert counters["errors"] == counters["drops"] == counters["ignored"] == 0
    finally:
        path.close()
    middle = statistics.median(found)
    print(f"\n{harness.machine_line()}\n  frames of {per_frame}: {middle:,.0f} messages per second "
          f"of CPU (min {min(found):,.0f}, max {max(found):,.0f}), wanted {WANTED:,}")
    harness.save(f"feed-{per_frame}", {"per_frame": per_frame, "messages_per_cpu_second": {
        "min": min(found), "p50": middle, "max": max(found)}})
    assert middle > WANTED
