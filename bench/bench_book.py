"""Order book: L2 updates, L3 parse and apply, best prices; against std::map and nautilus_trader.

Hot path: `book_apply` of src/_book.h.  Input: the Binance and ITCH recordings beside the checkout
(HFTPIPE_DATA), else a seeded random walk of the same shape.  Peers do the same updates on the
same records, rounds interleaved, results compared while timing.

    python -m pytest bench/bench_book.py -s                       a few rounds, no thresholds
    HFTPIPE_BENCH=full python -m pytest bench/bench_book.py -s    many rounds, ratios asserted
"""
import ctypes
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

from hftpipe import get_include, schema
from hftpipe._book import Book
from hftpipe.backtest._itch import Parser
from hftpipe.backtest.readers import open_recording

FULL = os.environ.get("HFTPIPE_BENCH") == "full"
ROUNDS = 41 if FULL else 3
ROOT = Path(__file__).resolve().parent.parent
K, F = schema.MARKET_KIND, schema.MARKET_FLAG
MARKET = schema.dtype(schema.MARKET)


def data(*names):
    """A recording, or None when there is none here."""
    named = os.environ.get("HFTPIPE_DATA")
    roots = [Path(named)] if named else [p / "shared/data" for p in ROOT.parents]
    return next((r.joinpath(*names) for r in roots if r.joinpath(*names).exists()), None)


OURS = r"""
#include "_book.h"
book_t *make(int64_t tick) { return book_new(tick, 0, 4096); }
void drop(book_t *b) { book_free(b); }
void apply(book_t *b, const hp_market_t *m, int64_t n) {
  for (int64_t i = 0; i < n; i++) book_apply(b, &m[i]);
}
void best(book_t *b, int64_t *out) {
  out[0] = book_best_bid(b); out[1] = book_best_ask(b);
  out[2] = b->side[0].levels + b->side[1].levels;
}
int64_t read_best(book_t **books, int64_t count, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = 0; i < n; i++) {
    const book_t *b = books[i & (count - 1)];
    __asm__ __volatile__("" : : : "memory");            /* every read is a load */
    sum += book_best_bid(b) ^ book_best_ask(b);
  }
  return sum;
}
int64_t read_none(book_t **books, int64_t count, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = 0; i < n; i++) {
    sum += (int64_t)books[i & (count - 1)];
    __asm__ __volatile__("" : : : "memory");
  }
  return sum;
}
"""

REFERENCE = r"""
#include <cstdint>
#include <functional>
#include <map>
struct row { uint64_t link, event; int64_t recv, venue, price, qty; uint64_t ref;
             uint16_t instrument; uint8_t kind; int8_t side; uint8_t flags, pad; uint16_t hop; };
static_assert(sizeof(row) == 64, "MARKET is one line");
struct book { std::map<int64_t, int64_t, std::greater<int64_t>> bid; std::map<int64_t, int64_t> ask;
              uint64_t absent = 0; };
template <class M> static void level(M &m, const row &r, uint64_t &absent) {
  if (r.qty) m[r.price] = r.qty;
  else absent += !m.erase(r.price);
}
extern "C" {
book *make(int64_t) { return new book; }
void drop(book *b) { delete b; }
void apply(book *b, const row *m, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    if (m[i].kind == LEVEL) {
      if (m[i].side > 0) level(b->bid, m[i], b->absent);
      else level(b->ask, m[i], b->absent);
    } else if (m[i].kind == CLEAR) { b->bid.clear(); b->ask.clear(); }
  }
}
void best(book *b, int64_t *out) {
  out[0] = b->bid.empty() ? 0 : b->bid.begin()->first;
  out[1] = b->ask.empty() ? 0 : b->ask.begin()->first;
  out[2] = (int64_t)(b->bid.size() + b->ask.size());
}
}
"""


def compiled(folder, name, source, compiler, *options):
    """A shared library of *source*, made here and now."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} to compile the {name} with")
    path, library = folder / name, folder / (name + ".so")
    path.write_text(source)
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", *options, str(path), "-o", str(library)],
                   check=True)
    lib = ctypes.CDLL(str(library))
    lib.make.restype, lib.make.argtypes = ctypes.c_void_p, [ctypes.c_int64]
    lib.drop.argtypes = [ctypes.c_void_p]
    lib.apply.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    lib.best.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    return lib


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    return {"ours": compiled(folder, "ours.c", OURS, "cc", "-I", get_include()),
            "std::map": compiled(folder, "reference.cpp", REFERENCE, "c++", "-std=c++17",
                                 f"-DLEVEL={K.LEVEL}", f"-DCLEAR={K.CLEAR}")}


def random_walk(count, tick):
    """Level updates around a wandering mid, one in thirty far away, a third of them deletes."""
    rng = numpy.random.default_rng(1)
    rows = numpy.zeros(count, MARKET)
    mid = 600_000 + numpy.cumsum(rng.integers(-1, 2, count))
    away = rng.geometric(0.01, count)
    away = numpy.where(rng.random(count) < 1 / 30, away * 1000, away) % 590_000
    rows["kind"], rows["flags"] = K.LEVEL, F.LAST
    rows["side"] = rng.choice([1, -1], count)
    rows["price"] = (mid - rows["side"] * away) * tick
    rows["qty"] = rng.integers(1, 1000, count) * 10**6 * (rng.random(count) > 1 / 3)
    return rows


@pytest.fixture(scope="module")
def stream():
    """``(name, tick, level updates, aligned as on a ring)``."""
    path = data("binance", "binance_usdm_btcusdt_20240808.gz")
    if path:
        name, reader = "Binance BTCUSDT", open_recording(path)
        rows, tick = numpy.concatenate(list(reader)), int(reader.instruments["tick"][0])
        rows = rows[(rows["kind"] == K.LEVEL) | (rows["kind"] == K.CLEAR)]
    else:
        name, tick = "random walk", 10**8
        rows = random_walk(400_000, tick)
    raw = numpy.empty(rows.nbytes + 64, "u1")
    at = -raw.ctypes.data % 64
    aligned = raw[at:at + rows.nbytes].view(MARKET)
    aligned[:] = rows
    return name, tick, aligned


def interleaved(rounds, **functions):
    """ns of each call, *rounds* times in turn, by name; a function returns its own time."""
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(function())
    return times


def report(title, times, count, benchmark, unit="update"):
    """Print and keep min, p50, p99, max per unit; medians by name."""
    medians = {}
    print(f"\n{title}, {count} {unit}s, {len(next(iter(times.values())))} rounds, ns per {unit}")
    for name, values in times.items():
        ns = numpy.array(values) / count
        medians[name] = float(numpy.median(ns))
        figures = {"min": float(ns.min()), "p50": medians[name],
                   "p99": float(numpy.percentile(ns, 99)), "max": float(ns.max())}
        print(f"  {name:<24}" + "".join(f"{k} {v:8.2f}  " for k, v in figures.items()))
        benchmark.extra_info[name] = figures
    return medians


def clocked(function, *arguments):
    begin = time.perf_counter_ns()
    function(*arguments)
    return time.perf_counter_ns() - begin


def test_l2_update_in_c(benchmark, libraries, stream):
    name, tick, rows = stream
    found = {}

    def run(which):
        lib = libraries[which]
        book = lib.make(tick)
        elapsed = clocked(lib.apply, book, rows.ctypes.data, len(rows))
        out = (ctypes.c_int64 * 3)()
        lib.best(book, out)
        lib.drop(book)
        assert found.setdefault("best", list(out)) == list(out)
        return elapsed

    times = interleaved(ROUNDS, **{name: lambda name=name: run(name)
                                   for name in ("ours", "std::map")})
    median = report(f"L2 update in C, {name}", times, len(rows), benchmark)
    ratio = median["ours"] / median["std::map"]
    print(f"  ratio {ratio:.3f}, wanted at most 0.25")
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(run, args=("ours",), rounds=ROUNDS)
    assert not FULL or ratio <= 0.25


def test_l2_update_from_python(benchmark, stream):
    """One call per update, and all updates in one call."""
    name, tick, rows = stream
    rows = rows[:100_000 if FULL else 20_000]
    one = [rows[i].tobytes() for i in range(len(rows))]
    want = Book(tick, orders=0)
    want.apply_many(rows)

    def call():
        book = Book(tick, orders=0)
        apply = book.apply
        begin = time.perf_counter_ns()
        for record in one:
            apply(record)
        elapsed = time.perf_counter_ns() - begin
        assert (book.best_bid(), book.best_ask()) == (want.best_bid(), want.best_ask())
        return elapsed

    def bulk():
        book = Book(tick, orders=0)
        return clocked(book.apply_many, rows)

    functions = {"apply": call, "apply_many": bulk}
    try:
        functions["nautilus apply_delta"] = nautilus(rows, want)
    except ImportError as error:
        print(f"\nnautilus_trader is not installed ({error}): no ratio to it")
    times = interleaved(max(ROUNDS // 4, 3), **functions)
    median = report(f"L2 update from Python, {name}", times, len(rows), benchmark)
    benchmark.pedantic(call, rounds=3)
    peer = median.get("nautilus apply_delta")
    if peer:
        one_ratio, bulk_ratio = median["apply"] / peer, median["apply_many"] / peer
        print(f"  ratio {one_ratio:.3f} per call, wanted at most 0.33; "
              f"{bulk_ratio:.3f} in bulk, wanted at most 0.1")
        benchmark.extra_info.update(ratio=one_ratio, bulk_ratio=bulk_ratio)
        assert not FULL or (one_ratio <= 0.33 and bulk_ratio <= 0.1)


def nautilus(rows, want):
    """The same updates through nautilus_trader's book, deltas made beforehand."""
    from nautilus_trader.model.book import OrderBook
    from nautilus_trader.model.data import BookOrder, OrderBookDelta
    from nautilus_trader.model.enums import BookAction, BookType, OrderSide
    from nautilus_trader.model.identifiers import InstrumentId
    from nautilus_trader.model.objects import Price, Quantity

    instrument = InstrumentId.from_str("BTCUSDT.BINANCE")
    deltas = []
    for i, row in enumerate(rows.tolist()):
        m = dict(zip(MARKET.names, row, strict=True))
        if m["kind"] == K.CLEAR:
            deltas.append(OrderBookDelta.clear(instrument, i, 0, 0))
            continue
        side = OrderSide.BUY if m["side"] > 0 else OrderSide.SELL
        order = BookOrder(side, Price(m["price"] / 1e9, 1), Quantity(m["qty"] / 1e9, 3), 0)
        action = BookAction.UPDATE if m["qty"] else BookAction.DELETE
        deltas.append(OrderBookDelta(instrument, action, order, 0, i, 0, 0))

    def run():
        book = OrderBook(instrument, BookType.L2_MBP)
        apply = book.apply_delta
        begin = time.perf_counter_ns()
        for delta in deltas:
            apply(delta)
        elapsed = time.perf_counter_ns() - begin
        assert round(float(book.best_bid_price()) * 10) * 10**8 == want.best_bid()
        assert round(float(book.best_ask_price()) * 10) * 10**8 == want.best_ask()
        return elapsed

    return run


def itch_day():
    """``(name, bytes)``: the recording, or adds and deletes of about 300 live orders."""
    path = data("itch", "aapl_20200130_locate13_10k.itch50.bin")
    if path:
        return "ITCH AAPL", path.read_bytes()
    rng, live, out = numpy.random.default_rng(2), [], []
    for ref in range(1, 10_001):
        head = bytes([0, 1, 0, 0]) + ref.to_bytes(6, "big")
        if len(live) > 300 or (live and rng.random() < 0.45):
            gone = live.pop(int(rng.integers(len(live))))
            body = b"D" + head + gone.to_bytes(8, "big")
        else:
            side = int(rng.integers(2))
            price = 3_200_000 + (2 * side - 1) * 100 * int(rng.geometric(0.05))
            body = (b"A" + head + ref.to_bytes(8, "big") + b"BS"[side:side + 1]
                    + (100).to_bytes(4, "big") + b"XYZ     " + price.to_bytes(4, "big"))
            live.append(ref)
        out.append(len(body).to_bytes(2, "big") + body)
    return "random orders", b"".join(out)


def test_l3_parse_and_apply(benchmark):
    name, messages = itch_day()
    parser = Parser()
    parser.scan(messages)
    tick = int(parser.choose()["tick"][0])
    found = {}

    def fused():
        book = Book(tick)
        parser.reset()
        elapsed = clocked(parser.replay, messages, [book])
        view = (book.best_bid(), book.best_ask(), book.orders, len(book))
        assert found.setdefault("view", view) == view and not book.dropped
        return elapsed

    out = numpy.empty(1 << 15, MARKET)

    def apart():
        book = Book(tick)
        parser.reset()
        begin = time.perf_counter_ns()
        _, count = parser.parse(messages, out)
        book.apply_many(out[:count])
        elapsed = time.perf_counter_ns() - begin
        assert found["view"][:2] == (book.best_bid(), book.best_ask())
        return elapsed

    fused()
    count = parser.counters["messages"]
    times = interleaved(3 * ROUNDS, **{"parse and apply": fused, "parse, then apply": apart})
    median = report(f"L3, {name}", times, count, benchmark, "message")
    print("  wanted at most 60")
    benchmark.pedantic(fused, rounds=ROUNDS)
    assert not FULL or median["parse and apply"] <= 60


def test_best_prices_read(benchmark, libraries, stream):
    """Both best prices of 64 books in turn; the empty loop beside it."""
    _, tick, rows = stream
    lib, count, reads = libraries["ours"], 64, 1_000_000
    for f in (lib.read_best, lib.read_none):
        f.restype = ctypes.c_int64
        f.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    books = (ctypes.c_void_p * count)(*[lib.make(tick) for _ in range(count)])
    for book in books:
        lib.apply(book, rows.ctypes.data, 2000)
    times = interleaved(ROUNDS, both=lambda: clocked(lib.read_best, books, count, reads),
                        loop=lambda: clocked(lib.read_none, books, count, reads))
    median = report("best bid and ask", times, reads, benchmark, "read")
    print("  wanted below 5")
    benchmark.pedantic(lib.read_best, args=(books, count, reads), rounds=3)
    for book in books:
        lib.drop(book)
    assert not FULL or median["both"] < 5


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", *sys.argv[1:]]))
