"""Every recording makes the book a naive Python book makes, and the one the venue recorded."""
import gzip
import json
import random
import struct
import zlib
from bisect import bisect_right
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe._book import Book
from hftpipe.backtest import readers
from hftpipe.backtest._itch import Parser
from hftpipe.backtest._rows import Rows, parse_nano
from hftpipe.backtest.readers import open_recording
from hftpipe.errors import DataError

from .data import DATA, recording
from .models import book as naive

K, F, B = schema.MARKET_KIND, schema.MARKET_FLAG, schema.BOOK_FLAG
MARKET = schema.dtype(schema.MARKET)
BID, ASK = 1, -1
ITCH = ("itch", "aapl_20200130_locate13_10k.itch50.bin")
BINANCE = ("binance", "binance_usdm_btcusdt_20240808.gz")
COINBASE = ("coinbase", "COINBASE.ws.28.0.gz")
KRAKEN = ("kraken", "KRAKEN.ws.50.0.gz")
LOBSTER = (("AAPL_2012-06-21_34200000_57600000_message_10_first1k.csv.gz", 10, 999),
           ("MSFT_2012-06-21_34200000_37800000_message_50_first.csv.gz", 50, 1000))


def messages(reader):
    """The rows of each venue message, as a list of dicts and as bytes."""
    rows, raw = [], b""
    for chunk in reader:
        data = chunk.tobytes()
        for i, row in enumerate(chunk.tolist()):
            m = dict(zip(MARKET.names, row, strict=True))
            rows.append(m)
            raw += data[64 * i:64 * i + 64]
            if m["flags"] & F.LAST:
                yield rows, raw
                rows, raw = [], b""
    assert not rows, "the last record of a recording must have LAST"


def check_envelope(reader):
    """Numbered without a hole, time never goes back, whole messages per chunk, known kinds."""
    seq, now = schema.event_id(schema.STREAM.FEED, 1), 0
    for chunk in reader:
        assert chunk.dtype == MARKET and len(chunk)
        assert (chunk["event"] == numpy.arange(seq, seq + len(chunk), dtype="u8")).all()
        assert (numpy.diff(chunk["ts_recv"], prepend=now) >= 0).all()
        assert (chunk["link_seq"] == 0).all() and (chunk["qty"] >= 0).all()
        assert (chunk["instrument"] < len(reader.instruments)).all()
        assert chunk["flags"][-1] & F.LAST
        seq, now = seq + len(chunk), int(chunk["ts_recv"][-1])


def replay(path, full_every=500, **options):
    """Book and naive book side by side over a whole recording."""
    reader = open_recording(path, **options)
    check_envelope(reader)
    books = [Book(int(row["tick"])) for row in reader.instruments]
    twins = [naive.Book(int(row["tick"])) for row in reader.instruments]
    count = 0
    for rows, raw in messages(reader):
        i = rows[0]["instrument"]
        book, twin = books[i], twins[i]
        for at, m in enumerate(rows):
            assert m["instrument"] == i
            assert book.apply(raw[64 * at:64 * at + 64]) is twin.apply(m)
        bid, ask, bid_qty, ask_qty = twin.top()
        view = book.view()
        assert (view["bid"], view["ask"], view["bid_qty"], view["ask_qty"], view["volume"],
                view["flags"]) == (bid, ask, bid_qty, ask_qty, twin.volume, twin.flags())
        count += 1
        if count % full_every == 0:
            same(book, twin)
    for book, twin in zip(books, twins, strict=True):
        same(book, twin)
        assert not book.counters["off_tick"] and not book.counters["invalid"]
        assert not book.counters["exhausted"] and not book.counters["clipped"]
    return reader, books, count


def same(book, twin):
    assert book.view() == twin.view() and book.counters == twin.counters
    for side in (BID, ASK):
        assert book.levels(side).tolist() == twin.side(side)


# -- ITCH

LENGTH = {"S": 12, "R": 39, "H": 25, "Y": 20, "L": 26, "V": 35, "W": 12, "K": 28, "J": 35,
          "h": 21, "A": 36, "F": 40, "E": 31, "C": 36, "X": 23, "D": 19, "U": 35, "P": 44,
          "Q": 40, "B": 19, "I": 50, "N": 20, "O": 48}


def naive_itch(data):
    """(kind, side, price, qty, ref, flags, ts) of each record, by struct."""
    at = 0
    while at < len(data):
        length, = struct.unpack_from(">H", data, at)
        m = data[at + 2:at + 2 + length]
        at += 2 + length
        kind, ts = chr(m[0]), int.from_bytes(m[5:11], "big")

        def row(kind, side=0, price=0, shares=0, ref=0, flags=F.LAST, ts=ts):
            return kind, side, price * 100_000, shares * 10**9, ref, flags, ts

        if kind in "AF":
            ref, side, shares, _, price = struct.unpack_from(">QcI8sI", m, 11)
            yield row(K.ADD, 1 if side == b"B" else -1, price, shares, ref)
        elif kind == "E":
            yield row(K.EXECUTE, 0, 0, *struct.unpack_from(">QI", m, 11)[::-1])
        elif kind == "C":
            ref, shares, _, printable, price = struct.unpack_from(">QIQcI", m, 11)
            yield row(K.EXECUTE, 0, price, shares, ref,
                      F.LAST | (F.UNPRINTABLE if printable == b"N" else 0))
        elif kind == "X":
            ref, shares = struct.unpack_from(">QI", m, 11)
            yield row(K.CANCEL, 0, 0, shares, ref)
        elif kind == "D":
            yield row(K.DELETE, ref=struct.unpack_from(">Q", m, 11)[0])
        elif kind == "U":
            old, new, shares, price = struct.unpack_from(">QQII", m, 11)
            yield row(K.REPLACE_FROM, ref=old, flags=0)
            yield row(K.REPLACE_TO, 0, price, shares, new)
        elif kind == "P":
            _, _, shares, _, price, match = struct.unpack_from(">QcI8sIQ", m, 11)
            yield row(K.TRADE, 0, price, shares, match, F.LAST | F.HIDDEN)
        elif kind == "Q":
            shares, _, price, match = struct.unpack_from(">Q8sIQ", m, 11)
            if shares:
                yield row(K.TRADE, 0, price, shares, match)
        elif kind == "H":
            yield row(K.STATUS, ref=int(m[19:20] == b"T"))
        elif kind == "h" and m[19:20] == b"Q":
            yield row(K.STATUS, ref=int(m[20:21] == b"T"))


def as_rows(chunks):
    return [(r["kind"], r["side"], r["price"], r["qty"], r["ref"], r["flags"], r["ts_recv"])
            for chunk in chunks for r in (dict(zip(MARKET.names, t, strict=True))
                                          for t in chunk.tolist())]


def test_itch_file():
    path = recording(*ITCH)
    reader, (book,), _ = replay(path, full_every=100)
    assert reader.format == "itch"
    assert reader.instruments["symbol"][0] == b"AAPL"
    assert reader.instruments["tick"][0] == 10_000_000          # a cent
    assert reader.instruments["flags"][0] == 6                  # shortable, in whole cents
    assert reader.counters["messages"] == 10_000 and not reader.counters["unknown"]
    assert book.orders == 215
    assert (book.best_bid(), book.best_ask()) == (320_140_000_000, 320_300_000_000)
    assert book.dropped == 0 and book.flags == 0
    assert as_rows(reader) == list(naive_itch(path.read_bytes()))
    first = next(iter(reader))[0]
    assert first["ts_venue"] - first["ts_recv"] == 1580360400 * 10**9       # 2020-01-30 05:00 UTC


def test_itch_is_never_crossed():
    book, crossed = Book(10_000_000), 0
    for chunk in open_recording(recording(*ITCH)):
        for row in chunk:
            book.apply(row)
            crossed += bool(book.flags & (B.CROSSED | B.LOCKED))
    assert crossed == 0


@pytest.mark.parametrize("chunk", [2, 3, 7, 10_000_000])
def test_itch_chunks_of_any_size(chunk, monkeypatch):
    path = recording(*ITCH)
    monkeypatch.setattr(readers, "BLOCK", 1000)         # messages cut by the block's end
    assert as_rows(open_recording(path, chunk=chunk)) == list(naive_itch(path.read_bytes()))


def test_itch_parse_and_apply_in_one_loop():
    data = recording(*ITCH).read_bytes()
    parser = Parser()
    assert parser.scan(data) == len(data)
    parser.choose()
    parser.reset()
    fused, apart = Book(10_000_000), Book(10_000_000)
    assert parser.replay(data, [fused]) == len(data)
    for chunk in open_recording(recording(*ITCH)):
        apart.apply_many(chunk)
    assert fused.view() == apart.view() and fused.counters == apart.counters
    for side in (BID, ASK):
        assert fused.levels(side).tolist() == apart.levels(side).tolist()
    with pytest.raises(ValueError, match="as many as instruments"):
        parser.replay(data, [])


def itch(kind, *fields, locate=1, ts=5, length=None):
    body = kind.encode() + struct.pack(">HH", locate, 0) + ts.to_bytes(6, "big") + b"".join(fields)
    return struct.pack(">H", len(body) if length is None else length) + body


def u32(n):
    return struct.pack(">I", n)


def u64(n):
    return struct.pack(">Q", n)


def add(ref, side=b"B", shares=100, price=1_000_000, locate=1, name=b"XYZ     ", kind="A", ts=5):
    tail = b"MPID" if kind == "F" else b""
    return itch(kind, u64(ref), side, u32(shares), name, u32(price), tail, locate=locate, ts=ts)


def read_itch(tmp_path, data, **options):
    path = tmp_path / "day.itch"
    path.write_bytes(data)
    return open_recording(path, **options)


def test_itch_every_type(tmp_path):
    """All types of the table, known lengths, one unknown type; only the book's become records."""
    data = add(1) + add(2, b"S", 50, 1_000_100, kind="F")
    for kind, length in LENGTH.items():
        if kind not in "AFECXDUPQHh":
            data += itch(kind, (b"XYZ     " + bytes(40))[:length - 11])
    data += itch("z", bytes(9))                             # unknown: skipped by its length
    data += itch("E", u64(1), u32(30), u64(77))
    data += itch("C", u64(1), u32(10), u64(78), b"N", u32(999_900))
    data += itch("C", u64(1), u32(10), u64(79), b"Y", u32(999_800))
    data += itch("X", u64(1), u32(5))
    data += itch("P", u64(0), b"B", u32(7), b"XYZ     ", u32(1_000_050), u64(80))
    data += itch("Q", u64(9), b"XYZ     ", u32(1_000_000), u64(81), b"O")
    data += itch("Q", u64(0), b"XYZ     ", u32(0), u64(82), b"C")
    data += itch("h", b"XYZ     ", b"B", b"H") + itch("h", b"XYZ     ", b"Q", b"H")
    data += itch("H", b"XYZ     ", b"T", b" ", b"    ")
    data += itch("U", u64(2), u64(3), u32(60), u32(1_000_200))
    data += itch("E", u64(1), u32(45), u64(83))             # the last share: no D follows
    reader = read_itch(tmp_path, data)
    assert as_rows(reader) == list(naive_itch(data))
    assert reader.counters["unknown"] == 1 and reader.counters["broken"] == 1
    book = Book(int(reader.instruments["tick"][0]))
    for chunk in reader:
        book.apply_many(chunk)
    assert book.levels(BID).tolist() == [] and book.dropped == 0
    assert book.order(3) == (ASK, 100_020_000_000, 60 * 10**9, 0)
    assert book.view()["volume"] == (30 + 10 + 7 + 9 + 45) * 10**9
    assert not book.flags & B.HALTED


def test_itch_many_stocks_and_a_choice_of_them(tmp_path):
    data = b"".join(add(i, locate=i, name=f"S{i}".ljust(8).encode(), price=10_000 + i)
                    for i in range(1, 40)) + add(99, locate=7, name=b"S7      ", price=20_007)
    reader = read_itch(tmp_path, data)
    assert [s.decode() for s in reader.instruments["symbol"]] == [f"S{i}" for i in range(1, 40)]
    assert reader.instruments["tick"][9] == 1_000_000       # 1.0010 is ten ten-thousandths
    chosen = read_itch(tmp_path, data, symbols=["S7", "S3"])
    rows = numpy.concatenate(list(chosen))
    assert rows["instrument"].tolist() == [1, 0, 0] and rows["ref"].tolist() == [3, 7, 99]
    with pytest.raises(DataError, match=r"wanted symbol NONE, found S1, S10, .*\.\.\."):
        read_itch(tmp_path, data, symbols=["NONE"])


def test_itch_time_never_goes_back(tmp_path):
    reader = read_itch(tmp_path, add(1, ts=9) + add(2, ts=4), day=date(2024, 7, 1))
    rows = numpy.concatenate(list(reader))
    assert rows["ts_recv"].tolist() == [9, 9]
    midnight = int(datetime(2024, 7, 1, 4, tzinfo=UTC).timestamp()) * 10**9
    assert rows["ts_venue"].tolist() == [midnight + 9, midnight + 4]


@pytest.mark.parametrize("data, words", [
    (add(1)[:-1], "byte 0: wanted a message of 38 bytes, found the end of the file after 37"),
    (add(1) + b"\0", "byte 38: wanted a message of 2 bytes, found the end of the file after 1"),
    (add(1) + add(2, locate=3)[:20], "byte 38: wanted a message of 38 bytes, found the end"),
    (add(1) + itch("D", u64(1), b"x"),
     "byte 38: wanted a message of type D of 19 bytes, found length 20"),
    (add(1) + itch("z"), None),
    (add(1) + itch("z", length=10), "type z of at least 11 bytes, found length 10"),
    (add(1) + b"\0\5\7abcdefgh", "type 0x07 of at least 11 bytes, found length 5"),
    (add(1) + add(2, side=b"X"), "byte 38: wanted side B or S in a message of type A, found b'X'"),
    (add(1) + b"\0\0", None)])
def test_itch_malformed(tmp_path, data, words):
    if words is None:
        assert sum(map(len, read_itch(tmp_path, data))) == 1
        return
    with pytest.raises(DataError) as caught:
        list(read_itch(tmp_path, data))
    assert words in str(caught.value) and "day.itch: byte" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_itch_cut_anywhere():
    """Every prefix of a real file either ends between two messages or is refused."""
    data = recording(*ITCH).read_bytes()[:3000]
    ends, at = {0}, 0
    while at < len(data):
        at += 2 + int.from_bytes(data[at:at + 2], "big")
        ends.add(at)
    for cut in range(1, len(data)):
        parser = Parser()
        used = parser.scan(data[:cut])
        assert used == max(e for e in ends if e <= cut)


# -- LOBSTER: the recorded orderbook is the judge

@pytest.mark.parametrize("name, depth, count", LOBSTER)
def test_lobster_equals_the_recorded_book(name, depth, count):
    path = recording("lobster", name)
    reader = open_recording(path, chunk=1)              # one array per row of the file
    tick = int(reader.instruments["tick"][0])
    book, hidden, revealed, never = Book(tick), 0, 0, 0
    rows = gzip.decompress(readers.lobster_pair(path)[1].read_bytes()).decode().split()
    before = None
    steps = list(reader)
    assert len(steps) == len(rows) == count
    for step, line in zip(steps, rows, strict=True):
        assert book.apply_many(step) == len(step)       # nothing is a no-op
        cells = [int(c) for c in line.split(",")]
        for side, at in ((ASK, 0), (BID, 2)):
            found = [(p, q) for p, q, _ in book.levels(side).tolist()]
            assert found == [(p * 100_000, q * 10**9) for p, q in
                             zip(cells[at::4], cells[at + 1::4], strict=True) if q]
            assert len(found) == depth
        # a level is taken from the orderbook only when it was not in the row before
        if before:
            for m in step[step["kind"] == K.LEVEL]:
                price, side = int(m["price"]), int(m["side"])
                at = 0 if side == ASK else 2
                if m["qty"] and price // 100_000 not in before[at::4]:
                    revealed += 1
                elif m["qty"] == 0 and price // 100_000 not in cells[at::4]:
                    hidden += 1
                else:
                    never += 1
        before = cells
        assert not book.flags & (B.STALE | B.CROSSED)
    assert not reader.counters["mismatches"]
    assert revealed == reader.counters["revealed"]
    assert hidden >= reader.counters["hidden"]          # and levels whose last order went
    assert never <= reader.counters["orders never added"]


@pytest.mark.parametrize("name, depth, count", LOBSTER)
def test_lobster_equals_the_naive_book(name, depth, count):
    replay(recording("lobster", name), full_every=10)


def lobster(tmp_path, messages, books, name="XYZ_2012-06-21_34200000_57600000_message_2.csv"):
    path = tmp_path / name
    path.write_text("\n".join(messages) + "\n" if messages else "")
    path.with_name(name.replace("message", "orderbook")).write_text("\n".join(books) + "\n")
    return path


ROWS = (["34200.1,1,7,100,1000000,1", "34200.2,3,7,100,1000000,1", "34200.3,4,5,20,1010000,-1"],
        ["1010000,50,1000000,100,1020000,9,990000,4", "1010000,50,990000,4,1020000,9,980000,6",
         "1010000,30,990000,4,1020000,9,980000,6"])


def test_lobster_by_hand(tmp_path):
    path = lobster(tmp_path, *ROWS)
    for given_path in readers.lobster_pair(path):       # either file names the pair
        reader = open_recording(given_path, chunk=1)
        steps = list(reader)
        assert reader.instruments["flags"][0] == 6      # shortable, in whole cents
    kinds = [[schema.MARKET_KIND.label(k) for k in s["kind"]] for s in steps]
    assert kinds == [["clear", "level", "level", "level", "add"], ["delete", "level"],
                     ["trade", "level"]]
    assert steps[2]["side"].tolist() == [BID, ASK]      # a buyer crossed; the ask's total
    assert steps[2]["qty"].tolist() == [20 * 10**9, 30 * 10**9]
    assert steps[0]["ts_recv"][0] == 34200_100_000_000
    assert dict(reader.counters) == {"revealed": 1, "orders never added": 1}
    assert reader.instruments["lot"][0] == 10**9


def test_lobster_row_that_no_message_explains(tmp_path):
    """The check can fail: a level that changes by itself is a hole in the recording."""
    messages, books = ROWS
    path = lobster(tmp_path, messages, [*books[:2], books[2].replace(",9,", ",8,")])
    reader = open_recording(path)
    rows = numpy.concatenate(list(reader))
    assert reader.counters["mismatches"] == 1
    assert K.GAP in rows["kind"]
    book = Book(int(reader.instruments["tick"][0]))
    book.apply_many(rows)
    assert book.levels(ASK)["qty"].tolist() == [30 * 10**9, 8 * 10**9]
    assert not book.flags & B.STALE


@pytest.mark.parametrize("at, message, book, words", [
    (1, "34200.2,3,7,100,1000000", None, "line 2: wanted six numbers, found 5"),
    (1, "34200.2,9,7,100,1000000,1", None, "line 2: wanted a type from 1 to 7"),
    (1, "34200.2,3,7,-100,1000000,1", None, "line 2: wanted a positive size and price, found -100"),
    (1, "34200.2,3,7,nan,1000000,1", None, "line 2: invalid literal"),
    (1, "nan,3,7,100,1000000,1", None, "line 2: wanted a decimal number"),
    (1, "34200.2,3,7,100,1000000,0", None, "line 2: wanted a type from 1 to 7 and direction"),
    (1, None, "1010000,50,990000,4,1020000,9,980000,-6", "line 2: wanted shares, found -6"),
    (1, None, "1010000,50,990000,4,1020000", "line 2: wanted four numbers per level, found 5"),
    (1, None, "1010000,50,990000,4,1020000,9,980000,x", "line 2: invalid literal")])
def test_lobster_malformed(tmp_path, at, message, book, words):
    messages, books = map(list, ROWS)
    messages[at], books[at] = message or messages[at], book or books[at]
    with pytest.raises(DataError) as caught:
        list(open_recording(lobster(tmp_path, messages, books)))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_lobster_files_of_different_length(tmp_path):
    with pytest.raises(DataError, match="line 3: wanted a row of the orderbook"):
        open_recording(lobster(tmp_path, ROWS[0], ROWS[1][:2]))
    with pytest.raises(DataError, match="line 3: wanted as many rows as messages"):
        open_recording(lobster(tmp_path, ROWS[0][:2], ROWS[1]))
    path = lobster(tmp_path, *ROWS)
    readers.lobster_pair(path)[1].unlink()
    with pytest.raises(DataError, match=r"wanted XYZ_.*_orderbook_2.csv beside it"):
        open_recording(path)


# -- Binance: the best prices that the venue sent beside the depth are the judge

def test_binance_equals_the_naive_book():
    reader, (book,), count = replay(recording(*BINANCE), full_every=2000)
    assert reader.instruments["tick"][0] == 100_000_000         # 0.1
    assert count == 1 + 6551 - 4 + 21_313           # four events are older than the snapshot
    # the snapshot may be applied in part before the first event: 13 to 31 % hit nothing
    assert book.counters["absent_level"] > 10_000
    assert not book.counters["gaps"] and not book.flags & B.STALE


def test_binance_book_equals_the_venues_best_prices():
    path = recording(*BINANCE)
    tickers, finals = [], []
    with gzip.open(path, "rt") as file:
        for line in file:
            data = json.loads(line.partition(" ")[2])
            if "lastUpdateId" in data:
                start = data["lastUpdateId"]
            elif data["data"]["e"] == "bookTicker":
                t = data["data"]
                tickers.append((t["u"], *(parse_nano(t[k]) for k in "baBA")))
            elif data["data"]["e"] == "depthUpdate":
                finals.append(data["data"]["u"])
    tickers.sort()
    ids = [t[0] for t in tickers]
    finals = [u for u in finals if u >= start]
    reader = open_recording(path)
    book = Book(int(reader.instruments["tick"][0]))
    compared = 0
    levels = (m for m in messages(reader) if m[0][0]["kind"] == K.LEVEL)
    first = next(m for m in messages(reader) if m[0][0]["kind"] == K.CLEAR)
    assert book.apply_many(numpy.frombuffer(first[1], MARKET)) == len(first[0])
    for final, (rows, raw) in zip(finals, levels, strict=True):
        book.apply_many(numpy.frombuffer(raw, MARKET))
        assert rows[-1]["flags"] & F.LAST
        view = book.view()
        assert tickers[bisect_right(ids, final) - 1][1:] == (
            view["bid"], view["ask"], view["bid_qty"], view["ask_qty"])
        compared += 1
    assert compared == 6547


def test_binance_quotes_instead_of_depth():
    path = recording(*BINANCE)
    _, (book,), count = replay(path, quotes=True)
    assert count == 66_089 + 21_313 and len(book) == 2
    assert book.flags & ~B.TRADE == 0


def line(data, ts=1723161255030314667, stream=True):
    body = {"stream": "x", "data": data} if stream else data
    return f"{ts} {json.dumps(body)}\n"


def depth(begin, last, previous=None, bids=(), asks=(), symbol="X"):
    data = {"e": "depthUpdate", "E": 3, "T": 2, "s": symbol, "U": begin, "u": last,
            "b": list(bids), "a": list(asks)}
    return line(data | ({"pu": previous} if previous is not None else {}))


def snapshot(last, bids=(), asks=()):
    return line({"lastUpdateId": last, "E": 3, "T": 2, "bids": list(bids), "asks": list(asks)},
                stream=False)


def trade(price="1.5", qty="2", maker=False, **more):
    return line({"e": "trade", "E": 3, "T": 2, "s": "X", "t": 9, "p": price, "q": qty,
                 "m": maker, **more})


def read_text(tmp_path, text, **options):
    path = tmp_path / "feed.txt"
    path.write_text(text)
    return open_recording(path, **options)


def final_book(reader):
    book = Book(int(reader.instruments["tick"][0]))
    for chunk in reader:
        book.apply_many(chunk)
    return book


ONE, TWO, GONE = ["1.0", "5"], ["2.0", "6"], ["1.0", "0"]


@pytest.mark.parametrize("futures", [True, False])
def test_binance_chain(tmp_path, futures):
    """Events older than the snapshot are left out, the one across it joins, a break is a gap."""
    def event(begin, last, previous, **sides):
        return depth(begin, last, previous if futures else None, **sides)

    whole = (event(1, 5, 0, bids=[["0.5", "1"]]) + event(6, 12, 5, bids=[ONE])
             + snapshot(10, [["0.9", "3"]], [TWO]) + event(13, 20, 12, asks=[["2.1", "4"]]))
    reader = read_text(tmp_path, whole)
    book = final_book(reader)
    assert not book.flags & B.STALE and not book.counters["gaps"]
    assert book.levels(BID)["price"].tolist() == [10**9, 9 * 10**8]
    assert book.levels(ASK)["price"].tolist() == [2 * 10**9, 21 * 10**8]

    broken = whole + event(22, 30, 21, bids=[GONE])
    book = final_book(read_text(tmp_path, broken))
    assert book.flags & B.STALE and book.counters["gaps"] == 1 and len(book) == 4

    healed = broken + snapshot(25, [["0.8", "1"]], [TWO]) + event(31, 33, 30, asks=[["2.2", "1"]])
    book = final_book(read_text(tmp_path, healed))
    assert not book.flags & B.STALE and book.counters["gaps"] == 1
    assert book.levels(BID)["price"].tolist() == [8 * 10**8]
    assert book.levels(ASK)["price"].tolist() == [2 * 10**9, 22 * 10**8]

    late = snapshot(10).replace('"E"', '"s": "X", "E"') + event(15, 16, 14, bids=[ONE])
    assert final_book(read_text(tmp_path, late)).flags & B.STALE    # the first does not reach back


def test_binance_trades(tmp_path):
    rows = numpy.concatenate(list(read_text(
        tmp_path, trade() + trade(maker=True) + trade(X="INSURANCE_FUND") + trade(qty="0"))))
    assert rows["side"].tolist() == [BID, ASK]          # the buyer is the maker: a seller crossed
    assert rows["price"].tolist() == [1_500_000_000] * 2 and rows["ref"].tolist() == [9, 9]


@pytest.mark.parametrize("text, words", [
    (trade("NaN"), "line 1: wanted a decimal number without sign, found 'NaN'"),
    (trade("-1"), "line 1: wanted a decimal number without sign, found '-1'"),
    (trade("1e5"), "found '1e5'"), (trade("1.0000000001"), "wanted at most nine decimals"),
    (trade("9223372037"), "wanted a number below 9223372036"),
    (trade(1.5), "wanted a decimal number as text, found 1.5"),
    (trade() + depth(1, 2, 0) + snapshot(2, [["1", "-5"]]), "line 3: wanted a decimal number"),
    (trade() + snapshot(2, [["0", "5"]]), "line 2: wanted a positive price, found '0'"),
    (trade() + snapshot(2, [["1"]]), "line 2: wanted a price and a quantity, found ['1']"),
    (trade() + snapshot(2, [1]), "line 2: "),
    (trade() + trade()[:-20], "line 2: wanted binance JSON, found"),
    (trade() + "17231612550303146x7 {}\n", "line 2: wanted '<local ns> <JSON>'"),
    (trade() + "1723161255030314667\n", "line 2: wanted binance JSON"),
    (trade() + line({"e": "trade", "s": "X", "T": 3, "p": "1", "q": "1", "t": 1}),
     "line 2: no field 'm'"),
    (trade() + line([1, 2], stream=False), "line 2: "),
    (line({"e": "other"}), "wanted market data, found none in the whole file"),
    (trade() + line({"e": "trade", "s": "Y", "T": 3, "p": "1", "q": "1", "t": 1, "m": True})
     + snapshot(2), "line 3: wanted a snapshot of one symbol, found 2 symbols"),
    (line({"e": "trade", "s": "Y" * 17, "T": 3, "p": "1", "q": "1", "t": 1, "m": True}),
     "wanted a symbol of at most 16 bytes")])
def test_binance_malformed(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        list(read_text(tmp_path, text))
    assert words in str(caught.value) and "feed.txt: " in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_symbols_are_chosen_and_numbered(tmp_path):
    text = trade() + line({"e": "trade", "s": "Y", "T": 3, "p": "1", "q": "1", "t": 1, "m": True})
    rows = numpy.concatenate(list(read_text(tmp_path, text, symbols=["Y"])))
    assert rows["instrument"].tolist() == [0] and rows["price"].tolist() == [10**9]
    with pytest.raises(DataError, match="wanted symbol Z, found X, Y"):
        read_text(tmp_path, text, symbols=["Z"])


# -- Coinbase, Kraken

def test_coinbase_equals_the_naive_book():
    reader, books, count = replay(recording(*COINBASE), full_every=50)
    assert len(reader.instruments) == len(books) == 10
    assert count == 10 + 9719 + 97
    assert all(not book.flags & B.STALE for book in books)


def coinbase(**fields):
    return f"1618677817.061845: {json.dumps(fields)}\n"


def test_coinbase_by_hand(tmp_path):
    head = "wss://ws-feed.pro.coinbase.com <-> 1618677816.8434298\n"
    text = (head + coinbase(type="snapshot", product_id="A-B", bids=[["1.00", "2"]],
                            asks=[["1.01", "3"]])
            + coinbase(type="l2update", product_id="A-B", time="2021-04-17T16:43:37.075687Z",
                       changes=[["buy", "1.00", "0.00"], ["sell", "1.02", "7"]])
            + coinbase(type="match", product_id="A-B", time="2021-04-17T16:43:37Z", side="sell",
                       price="1.01", size="1", trade_id=5))
    reader = read_text(tmp_path, text)
    rows = numpy.concatenate(list(reader))
    assert rows["kind"].tolist() == [K.CLEAR, *[K.LEVEL] * 4, K.TRADE]
    assert rows["ts_recv"][0] == 1618677817_061845000
    assert rows["ts_venue"][3] == 1618677817_075687000
    assert rows["side"][5] == BID               # side is the maker's: a buyer crossed
    assert not final_book(reader).flags & B.STALE
    again = read_text(tmp_path, text + head.replace("816", "916"))      # a second connection
    book = final_book(again)
    assert book.flags & B.STALE and book.counters["gaps"] == 1


def crc(book, decimals):
    """Kraken's checksum of the ten best levels, from the book's integers."""
    text = ""
    for side in (ASK, BID):
        for price, qty, _ in book.levels(side, 10).tolist():
            assert price % 10 ** (9 - decimals) == 0 and qty % 10 == 0
            text += f"{price // 10 ** (9 - decimals)}{qty // 10}"
    return zlib.crc32(text.encode())


def test_kraken_equals_the_naive_book():
    reader, books, count = replay(recording(*KRAKEN), full_every=50)
    assert len(books) == 10 and count == 10 + 2221 + 2047 + 1
    assert reader.counters["price out of range"] == 1       # an ask at 9,999,999,997 francs
    assert max(len(book.levels(side)) for book in books for side in (BID, ASK)) <= 1000


def test_kraken_book_has_the_venues_checksum():
    path = recording(*KRAKEN)
    reader = open_recording(path)
    numbers = {s.decode(): i for i, s in enumerate(reader.instruments["symbol"])}
    books = [Book(int(t)) for t in reader.instruments["tick"]]
    decimals, wanted = {}, []
    with gzip.open(path, "rt") as file:
        for text in file:
            body = text.partition(": ")[2]
            if body.startswith("["):
                message = json.loads(body)
                part = message[-3]
                if "as" in part:
                    decimals[message[-1]] = len(part["as"][0][0].partition(".")[2])
                wanted.append((message[-1], int(part["c"]) if "c" in part else None))
    checked = 0
    for (symbol, checksum), (rows, raw) in zip(wanted, messages(reader), strict=True):
        assert rows[0]["instrument"] == numbers[symbol]
        book = books[numbers[symbol]]
        book.apply_many(numpy.frombuffer(raw, MARKET))
        if checksum is not None:
            assert crc(book, decimals[symbol]) == checksum
            checked += 1
    assert checked == 4269


def kraken(*parts, channel="book-10", pair="A/B"):
    return f"1618678133.5: {json.dumps([1, *parts, channel, pair])}\n"


def test_kraken_forgets_what_the_venue_does_not_maintain(tmp_path):
    bids = [[f"{100 - i}.0", "1.00000000", "1618678133.0"] for i in range(10)]
    text = ("wss://ws.kraken.com <-> 1618678132.3858151\n"
            + kraken({"bs": bids, "as": []})
            + kraken({"b": [["101.0", "1.00000000", "1618678134.1"]], "c": "0"})
            + kraken([["5.5", "1.0", "1618678134.2", "s", "l", ""]], channel="trade"))
    book = final_book(read_text(tmp_path, text))
    assert book.levels(BID)["price"].tolist() == [(101 - i) * 10**9 for i in range(10)]
    assert book.view()["last_side"] == ASK and book.view()["last_price"] == 5_500_000_000


@pytest.mark.parametrize("text, words", [
    ("wss://ws.kraken.com <-> 1.5\n1618678133.5 [1]\n", "line 2: wanted '<unix s>: <JSON>'"),
    ("wss://ws.kraken.com <-> 1.5\n1618678133.5: [1]\n", "line 2: "),
    ("wss://ws.kraken.com <-> 1.5\n" + kraken({"b": [["1", "-1", "2"]]}), "line 2: wanted a deci"),
    ("wss://ws.kraken.com <-> 1.5\n" + '1.5: {"event":"x","status":"error"}\n', "venue's error"),
    (coinbase(type="error", message="coinbase"), "line 1: wanted market data, found the venue's"),
    (coinbase(type="l2update", product_id="coinbase", time="now", changes=[]), "wanted a UTC time"),
    (coinbase(type="l2update", product_id="coinbase", changes=[["bid", "1", "1"]]),
     "line 1: wanted side, price and quantity"),
    (coinbase(type="l2update", product_id="coinbase", changes=[["buy", "0", "1"]]),
     "line 1: wanted a positive price"),
    (coinbase(type="snapshot", product_id="coinbase"), "line 1: no field 'bids'")])
def test_socket_lines_malformed(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        list(read_text(tmp_path, text))
    assert words in str(caught.value) and "\n" not in str(caught.value)


# -- any file

@pytest.mark.parametrize("names", [ITCH, BINANCE, COINBASE, KRAKEN, ("lobster", LOBSTER[0][0])])
def test_truncated_gzip(tmp_path, names):
    path = recording(*names)
    data = path.read_bytes()
    if not data.startswith(b"\x1f\x8b"):
        data = gzip.compress(data)
    for cut in (5, 100, len(data) // 2, len(data) - 5):
        short = tmp_path / path.name
        short.write_bytes(data[:cut])
        if names[0] == "lobster":
            book = readers.lobster_pair(path)[1]
            (tmp_path / book.name).write_bytes(book.read_bytes())
        with pytest.raises(DataError) as caught:
            list(open_recording(short))
        assert "wanted a whole gzip stream" in str(caught.value)
        assert "line" in str(caught.value) or "byte" in str(caught.value)


def test_gzip_of_an_itch_file(tmp_path):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(add(1) + add(2)))
    assert sum(map(len, open_recording(path))) == 2


@pytest.mark.parametrize("data", [b"", b"\n", b"hello\n", b"time,price\n1,2\n", bytes(100),
                                  b"\x1f\x8b", b"PAR1", b"{}\n"])
def test_unknown_format(tmp_path, data):
    path = tmp_path / "what"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_recording(path)
    assert "wanted" in str(caught.value) and "found" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="wanted a readable file, found: No such file"):
        open_recording(tmp_path / "none")
    with pytest.raises(DataError, match="found a directory"):
        open_recording(tmp_path)


@settings(deadline=None, max_examples=150,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["itch", "binance", "coinbase", "kraken"]), st.integers(0, 2**32),
       st.integers(1, 6))
def test_damaged_files_are_refused_or_read(tmp_path, kind, seed, damage):
    """Whatever bytes are changed: records in order, or one DataError; never anything else."""
    text = {"itch": b"".join(add(i) for i in range(9)),
            "binance": (trade() + depth(1, 5, 0, [ONE]) + snapshot(4, [ONE], [TWO])
                        + depth(6, 9, 5, [GONE])).encode(),
            "coinbase": coinbase(type="l2update", product_id="coinbase",
                                 changes=[["buy", "1.5", "1"]]).encode() * 3,
            "kraken": b"wss://ws.kraken.com <-> 1.5\n" + kraken({"b": [["1", "1", "2"]]}).encode()
            * 3}[kind]
    data, rng = bytearray(text), random.Random(seed)
    for _ in range(damage):
        at = rng.randrange(len(data))
        change = rng.randrange(3)
        if change == 0:
            data[at] = rng.randrange(256)
        elif change == 1:
            del data[at:at + rng.randrange(1, 9)]
        else:
            data[at:at] = rng.choice([b"-", b"9" * 30, b"null", b"[", b"\0", b"\n", b"1e9", b'"'])
    path = tmp_path / "damaged"
    path.write_bytes(data)
    try:
        check_envelope(open_recording(path))
    except DataError as error:
        assert "\n" not in str(error) and str(error).startswith(str(path))


def test_a_new_format_can_be_added(tmp_path, monkeypatch):
    class Mine(readers.Reader):
        format = "mine"

        def __iter__(self):
            yield numpy.zeros(1, MARKET)

    monkeypatch.setitem(readers.FORMATS, "mine", readers.Format(
        lambda path, head: head.startswith(b"MINE"),
        lambda path, symbols, chunk, **options: Mine(path, symbols, chunk), "mine"))
    path = tmp_path / "x"
    path.write_bytes(b"MINE")
    assert open_recording(path).format == "mine"


# -- numbers and days

@given(st.integers(0, 2**63 - 2))
def test_decimals_are_exact(value):
    whole, part = divmod(value, 10**9)
    for text in (f"{whole}.{part:09d}", f"{whole}.{part:09d}000",
                 str(Decimal(value).scaleb(-9)) if value and "E" not in
                 str(Decimal(value).scaleb(-9)) else f"{whole}.{part:09d}"):
        assert parse_nano(text) == value


@given(st.text("0123456789.-+eE _nNaAiIfF\0é", max_size=12))
def test_anything_else_is_no_number(text):
    try:
        value = Decimal(text) if set(text) <= set("0123456789.") else None
        exact = value is not None and value * 10**9 == int(value * 10**9)
    except ArithmeticError:
        exact = False
    if exact and value * 10**9 < 2**63 - 1:
        assert parse_nano(text) == int(value * 10**9)
    else:
        with pytest.raises(ValueError, match="wanted"):
            parse_nano(text)


def test_rows_keep_their_numbers():
    rows = Rows(1)
    for i in range(100):
        rows.begin(1000 - i, 0, 3)
        rows.add(K.ADD, BID, 500 + 5 * i, 20, i)
        rows.end()
    first = rows.take()
    assert len(first) == 100 and set(first["ts_recv"]) == {1000} and len(rows) == 0
    rows.begin(2000, 0, 3)
    rows.add(K.TIMER)
    rows.end()
    assert rows.take()["event"][0] == first["event"][-1] + 1
    assert rows.increments(3) == (5, 20, 500)


def test_midnight_in_new_york():
    try:
        zone = ZoneInfo("America/New_York")
    except ZoneInfoNotFoundError:
        pytest.skip("no time zone database on this machine")
    for ordinal in range(date(2008, 1, 1).toordinal(), date(2031, 1, 1).toordinal()):
        day = date.fromordinal(ordinal)
        wanted = datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()
        assert readers.new_york_midnight(day) == int(wanted) * 10**9


def test_the_data_is_outside_of_the_repository():
    assert Path(__file__).resolve().parent.parent not in DATA.parents
