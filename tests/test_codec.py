"""The Alpaca decoder equals its naive twin on good, bad and mutated frames."""
import itertools
import json
import math
import struct
from decimal import ROUND_HALF_EVEN, Decimal

import msgspec
import numpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hftpipe import schema
from hftpipe.alpaca._codec import Decoder, parse_nano, parse_time, to_nano
from hftpipe.errors import ConfigError, DataError
from tests.data import recording as recorded
from tests.models import alpaca as model

SYMBOLS = ["AAPL", "BTC/USD", "A", "LONGSYMBOLNAME16"]
FIELDS = ("kind", "side", "price", "qty", "ref", "instrument", "flags", "ts_venue")
WHEN = "2026-03-02T14:30:00.123456789Z"
WHEN_NS = 1772461800123456789
K = schema.MARKET_KIND
LAST, SNAPSHOT = schema.MARKET_FLAG.LAST, schema.MARKET_FLAG.SNAPSHOT
pack = msgspec.msgpack.encode


def ext(ns: int, form: int = 8) -> msgspec.msgpack.Ext:
    seconds, nanos = divmod(ns, 10**9)
    data = {4: lambda: struct.pack(">I", seconds),
            8: lambda: struct.pack(">Q", nanos << 34 | seconds),
            12: lambda: struct.pack(">Iq", nanos, seconds)}[form]()
    return msgspec.msgpack.Ext(-1, data)


def rows(records: numpy.ndarray) -> list[tuple]:
    return [tuple(int(v) for v in row) for row in records[list(FIELDS)].tolist()]


def trade(**more) -> dict:
    return {"T": "t", "S": "AAPL", "i": 71, "x": "V", "p": 10.03, "s": 100, "c": ["@", "I"],
            "z": "C", "t": ext(WHEN_NS), **more}


def quote(**more) -> dict:
    return {"T": "q", "S": "AAPL", "bx": "V", "bp": 10.01, "bs": 300, "ax": "V", "ap": 10.03,
            "as": 100, "c": ["R"], "z": "C", "t": ext(WHEN_NS), **more}


def book(bids, asks, **more) -> dict:
    return {"T": "o", "S": "BTC/USD", "t": ext(WHEN_NS), "b": [{"p": p, "s": s} for p, s in bids],
            "a": [{"p": p, "s": s} for p, s in asks], **more}


def bands(**more) -> dict:
    return {"T": "l", "S": "AAPL", "u": 3.24, "d": 2.65, "i": "B", "t": ext(WHEN_NS), "z": "C",
            **more}


def correction(**more) -> dict:
    return {"T": "c", "S": "AAPL", "x": "V", "oi": 71, "op": 10.03, "os": 100, "oc": ["@"],
            "ci": 72, "cp": 10.02, "cs": 90, "cc": ["@", "I"], "z": "C", "t": ext(WHEN_NS), **more}


def cancel(**more) -> dict:
    return {"T": "x", "S": "AAPL", "i": 71, "x": "V", "p": 10.03, "s": 100, "a": "C", "z": "C",
            "t": ext(WHEN_NS), **more}


def bar(kind="b", **more) -> dict:
    return {"T": kind, "S": "AAPL", "o": 10.0, "h": 10.5, "l": 9.5, "c": 10.25, "v": 1200, "n": 17,
            "vw": 10.123456789, "t": ext(WHEN_NS), **more}


def in_json(message: dict) -> dict:
    return {**message, "t": WHEN} if "t" in message else message


def both(messages: list[dict]) -> tuple[list[tuple], Decoder]:
    """Rows of a frame, after checking that both encodings and the twin agree."""
    binary, text, twin = Decoder(SYMBOLS), Decoder(SYMBOLS), model.Twin(SYMBOLS)
    found = binary.records(pack(messages), 7)
    other = text.records_json(json.dumps([in_json(m) for m in messages]).encode(), 7)
    assert found.tobytes() == other.tobytes()
    assert binary.counters() == text.counters()
    assert binary.control == text.control
    assert rows(found) == twin.feed(pack(messages))
    assert (found["ts_recv"] == 7).all() and not found["event"].any() and not found["hop"].any()
    return rows(found), binary


# ---------------------------------------------------------------- what each message becomes

def test_trade_keeps_price_quantity_id_and_nanoseconds():
    found, _ = both([trade(i=3_400_000_000_000_000_001)])
    assert found == [(K.TRADE, 0, 10_030_000_000, 100 * 10**9, 3_400_000_000_000_000_001, 0,
                      LAST, WHEN_NS)]


@pytest.mark.parametrize("taker, side", [("B", 1), ("S", -1), ("", 0), ("X", 0)])
def test_crypto_trade_has_its_taker_side_and_a_fractional_size(taker, side):
    found, _ = both([trade(S="BTC/USD", p=41516.08, s=0.00315427, tks=taker)])
    assert found == [(K.TRADE, side, 41_516_080_000_000, 3_154_270, 71, 1, LAST, WHEN_NS)]


def test_first_quote_is_a_snapshot_and_the_next_one_is_not():
    found, _ = both([quote(), quote(bp=10.02)])
    assert [(r[0], r[1], r[2], r[6]) for r in found] == [
        (K.CLEAR, 0, 0, SNAPSHOT),
        (K.QUOTE, 1, 10_010_000_000, SNAPSHOT), (K.QUOTE, -1, 10_030_000_000, SNAPSHOT | LAST),
        (K.QUOTE, 1, 10_020_000_000, 0), (K.QUOTE, -1, 10_030_000_000, LAST)]


@pytest.mark.parametrize("more", [{"bp": 0, "bs": 300}, {"bp": 10.0, "bs": 0}, {"bp": 0, "bs": 0}])
def test_quote_without_a_bid_empties_that_side(more):
    found, _ = both([quote(**more)])
    assert [r[:4] for r in found[1:]] == [(K.QUOTE, 1, 0, 0),
                                          (K.QUOTE, -1, 10_030_000_000, 100 * 10**9)]


def test_order_book_reset_then_changes():
    found, _ = both([book([(65128.1, 1.6542)], [(65129.0, 2)], r=True),
                     book([(65128.1, 0)], [(65130, 0.5)]), book([], []), book([], [], r=True)])
    assert [(r[0], r[1], r[2], r[3], r[6]) for r in found] == [
        (K.CLEAR, 0, 0, 0, SNAPSHOT),
        (K.LEVEL, 1, 65_128_100_000_000, 1_654_200_000, SNAPSHOT),
        (K.LEVEL, -1, 65_129_000_000_000, 2_000_000_000, SNAPSHOT | LAST),
        (K.LEVEL, 1, 65_128_100_000_000, 0, 0),
        (K.LEVEL, -1, 65_130_000_000_000, 500_000_000, LAST),
        (K.CLEAR, 0, 0, 0, SNAPSHOT | LAST)]


def test_quotes_are_ignored_where_an_order_book_is_sent():
    found, decoder = both([book([(1, 1)], [], r=True), quote(S="BTC/USD"), quote()])
    assert [r[0] for r in found] == [K.CLEAR, K.LEVEL, K.CLEAR, K.QUOTE, K.QUOTE]
    assert decoder.counters()["ignored"] == 1


@pytest.mark.parametrize("code, ref", [("H", 0), ("P", 0), ("Q", 0), ("2", 0), ("T", 1), ("3", 1)])
def test_status_says_whether_it_trades(code, ref):
    found, _ = both([{"T": "s", "S": "AAPL", "sc": code, "sm": "", "t": ext(WHEN_NS), "z": "C"}])
    assert found == [(K.STATUS, 0, 0, 0, ref, 0, LAST, WHEN_NS)]


@pytest.mark.parametrize("code", ["5", "E", "F", "", "HH"])
def test_status_that_changes_nothing_is_ignored(code):
    found, decoder = both([{"T": "s", "S": "AAPL", "sc": code, "t": ext(WHEN_NS)}])
    assert found == [] and decoder.counters()["ignored"] == 1


@pytest.mark.parametrize("indicator", ["A", "B", "C", "E", "G", " ", ""])
def test_price_bands_are_the_most_a_buyer_and_the_least_a_seller_may_pay(indicator):
    found, _ = both([bands(i=indicator)])
    ref = ord(indicator) if indicator else 0
    assert found == [(K.BAND, 1, 3_240_000_000, 0, ref, 0, 0, WHEN_NS),
                     (K.BAND, -1, 2_650_000_000, 0, ref, 0, LAST, WHEN_NS)]


@pytest.mark.parametrize("indicator", ["D", "F"])
def test_bands_that_do_not_bind_are_none(indicator):
    found, _ = both([bands(i=indicator)])
    assert [(r[0], r[1], r[2]) for r in found] == [(K.BAND, 1, 0), (K.BAND, -1, 0)]


def test_a_band_may_be_missing_on_one_side_and_the_indicator_at_all():
    message = bands(d=0)
    del message["i"]
    found, _ = both([message])
    assert [(r[2], r[4]) for r in found] == [(3_240_000_000, 0), (0, 0)]


@pytest.mark.parametrize("action", ["C", "E"])
def test_a_cancelled_trade_is_named_by_id_price_and_size(action):
    found, _ = both([cancel(a=action, i=2**63 + 5)])
    assert found == [(K.BUST, 0, 10_030_000_000, 100 * 10**9, 2**63 + 5, 0, LAST, WHEN_NS)]


def test_a_corrected_trade_is_taken_back_and_another_put_in_its_place():
    found, _ = both([correction()])
    assert found == [(K.BUST, 0, 10_030_000_000, 100 * 10**9, 71, 0, 0, WHEN_NS),
                     (K.FIX, 0, 10_020_000_000, 90 * 10**9, 72, 0, LAST, WHEN_NS)]


@pytest.mark.parametrize("kind", ["b", "u", "d"])
def test_a_bar_is_four_records(kind):
    found, _ = both([bar(kind)])
    assert found == [(K.BAR_OPEN, 0, 10 * 10**9, 1200 * 10**9, 17, 0, 0, WHEN_NS),
                     (K.BAR_HIGH, 0, 10_500_000_000, 0, ord(kind), 0, 0, WHEN_NS),
                     (K.BAR_LOW, 0, 9_500_000_000, 0, 0, 0, 0, WHEN_NS),
                     (K.BAR_CLOSE, 0, 10_250_000_000, 0, 10_123_456_789, 0, LAST, WHEN_NS)]


def test_a_crypto_bar_without_trades_has_mid_prices_and_no_average():
    message = bar(S="BTC/USD", v=0.0, n=0)
    del message["vw"]
    found, _ = both([message])
    assert [r[3:5] for r in found] == [(0, 0), (0, ord("b")), (0, 0), (0, 0)]


def test_the_smallest_messages_fit_what_is_claimed_for_them():
    """The bound that decides whether records are counted before any is written holds."""
    for message in ({"T": "b", "S": "A", "o": 1, "h": 1, "l": 1, "c": 1, "v": 1},
                    {"T": "o", "S": "A", "b": [{"p": 1, "s": 1}] * 14, "a": [], "r": True},
                    {"T": "l", "S": "A", "u": 1, "d": 1}):
        frame = pack([message] * 100)
        wanted = len(Decoder(SYMBOLS).records(frame))
        for room in (wanted - 1, wanted, wanted + 1):
            decoder = Decoder(SYMBOLS, room=room)
            if room < wanted:
                with pytest.raises(DataError, match=f"{wanted} records, room for {room}"):
                    decoder.records(frame)
            else:
                assert len(decoder.records(frame)) == wanted


@pytest.mark.parametrize("kind", ["i", "n", "p", "zz", "B", "X", "\x14"])
def test_other_types_are_counted_and_skipped_whatever_they_hold(kind):
    odd = {"T": kind, "S": ["no", {"string": [1, 2, [3]]}], "p": "text", "s": None, "a": "C",
           "b": 3.5, "r": 7, "sc": 1, "i": "x"}
    found, decoder = both([odd, trade()])
    assert len(found) == 1 and decoder.counters()["ignored"] == 1


def test_control_messages_are_counted_and_the_error_code_is_kept():
    _, decoder = both([{"T": "success", "msg": "connected"}, {"T": "subscription", "trades": []},
                       {"T": "error", "code": 407, "msg": "slow client"}])
    assert decoder.counters()["controls"] == 3 and decoder.control == 407


@pytest.mark.parametrize("symbol", ["AAP", "AAPLX", "", "LONGSYMBOLNAME17", "L" * 40, "AAPL\0"])
def test_foreign_symbol_is_a_drop(symbol):
    found, decoder = both([trade(S=symbol), trade(S="LONGSYMBOLNAME16"), trade(S="A")])
    assert [r[5] for r in found] == [3, 2] and decoder.counters()["drops"] == 1


BAD = [
    trade(p=-1.0), trade(p=0), trade(p=1e10), trade(s=-1), trade(p=True), trade(p="10.03"),
    trade(p=None), trade(i=-1), trade(i="71"), trade(i=1.5), trade(S=None), trade(S=5),
    trade(tks=1), quote(bp=-0.01), quote(bs=-1), quote(**{"as": -1}), quote(ap=1e300),
    book([(-1, 1)], []), book([(1, -1)], []), book([(0, 1)], []), book([(1, 1)], [], r=1),
    book([(1, 1)], [], r="yes"), {**book([], []), "b": None}, {**book([], []), "a": [1]},
    {**book([], []), "a": [{"p": 1}]}, {"T": "o", "S": "BTC/USD", "b": []},
    bands(u=-1), bands(d="x"), bands(i="AB"), bands(i=5), {"T": "l", "S": "AAPL", "u": 1},
    cancel(p=0), cancel(s=0), cancel(i=-1), cancel(i="71"), cancel(i=None), cancel(p=None),
    correction(op=0), correction(os=0), correction(cp=0), correction(cs=0), correction(oi=-1),
    correction(ci=1.5), correction(ci=None), correction(cp="x"), bar(o=0), bar(l=0), bar(c=0),
    bar(h=9.4), bar(v=-1), bar(n=-1), bar(n=1.5), bar(vw="x"), bar("u", c=["@"]), bar("d", c=None),
    {"T": "b", "S": "AAPL", "o": 1, "h": 1, "l": 1, "c": 1},
    {"T": "s", "S": "AAPL"}, {"T": "s", "S": "AAPL", "sc": 5}, {"T": ""}, {"T": 5}, {}, {"S": "A"},
    {k: v for k, v in trade().items() if k != "p"}, {k: v for k, v in quote().items() if k != "as"},
]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_bad_message_is_an_error_and_leaves_the_others(bad):
    found, decoder = both([trade(i=1), bad, trade(i=2)])
    assert [r[4] for r in found] == [1, 2]
    assert decoder.counters()["errors"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -5e-324])
def test_what_only_messagepack_can_say_is_an_error_too(value):
    decoder = Decoder(SYMBOLS)
    frame = pack([trade(p=value), quote(bs=value), book([(value, 1)], []), trade(), 7, None, [1]])
    assert rows(decoder.records(frame)) == model.Twin(SYMBOLS).feed(frame)
    assert decoder.counters()["errors"] == 6


def test_half_an_order_book_is_not_delivered():
    found, _ = both([book([(1, 1), (2, 2)], [(3, -1)], r=True), trade()])
    assert [r[0] for r in found] == [K.TRADE]


def test_keys_may_come_in_any_order_and_twice():
    frame = b"\x91\x86" + b"".join(
        pack(k) + pack(v) for k, v in
        [("p", 1.0), ("s", 5), ("S", "AAPL"), ("p", 2.0), ("i", 3), ("T", "t")])
    assert rows(Decoder(SYMBOLS).records(frame)) == [
        (K.TRADE, 0, 2 * 10**9, 5 * 10**9, 3, 0, LAST, 0)]


def test_gap_makes_every_book_stale_until_its_next_snapshot():
    decoder = Decoder(SYMBOLS)
    decoder.records(pack([quote()]))
    assert len(decoder.records(pack([quote()]))) == 2
    gap = decoder.gap(9)
    assert [(r["kind"], r["instrument"], r["flags"], r["ts_recv"]) for r in gap] == [
        (K.GAP, i, LAST, 9) for i in range(len(SYMBOLS))]
    assert rows(decoder.records(pack([quote()])))[0][0] == K.CLEAR


def test_messages_of_the_documentation():
    texts = json.loads(recorded("alpaca/websockets.json").read_text())
    frames = []
    for text in texts:
        source = text["ws_src"].replace("Timestamp.from_datetime(created_at)", "timestamp")
        frames.append(eval(source, {"timestamp": ext(WHEN_NS)}))  # literals of a fixture
    decoder = Decoder(["AAPL", "SPIP", "BTC/USD", "STRR", "DJT"])
    found = rows(decoder.records(pack(frames)))
    bars = (K.BAR_OPEN, K.BAR_HIGH, K.BAR_LOW, K.BAR_CLOSE)
    assert [r[0] for r in found if r[0] in bars] == list(bars) * 2 and len(found) == 16
    assert (found[0][2], found[1][2], found[2][2], found[3][2]) == (
        177_940_000_000, 178_005_000_000, 177_940_000_000, 178_005_000_000)
    found = [r for r in found if r[0] not in bars]
    assert [(r[0], r[2], r[3], r[4], r[5]) for r in found] == [
        (K.TRADE, 177_790_000_000, 90 * 10**9, 6142, 0),
        (K.CLEAR, 0, 0, 0, 1), (K.QUOTE, 25_410_000_000, 35 * 10**9, 0, 1),
        (K.QUOTE, 25_430_000_000, 35 * 10**9, 0, 1),
        (K.LEVEL, 65_128_100_000_000, 1_654_200_000, 0, 2),
        (K.LEVEL, 65_128_100_000_000, 1_654_200_000, 0, 2), (K.STATUS, 0, 0, 1, 3),
        (K.BUST, 36_180_000_000, 31_800 * 10**9, 4868, 4)]
    counters = decoder.counters()
    assert (counters["ignored"], counters["errors"], counters["drops"]) == (1, 0, 0)


def test_recorded_historical_rows_read_the_same_as_stream_messages():
    checked = 0
    for name, kinds in (("stock", {"trades": "t", "quotes": "q"}),
                        ("crypto", {"trades": "t", "quotes": "q", "orderbooks": "o"})):
        for text in json.loads(recorded(f"alpaca/historical_{name}_data.json").read_text()):
            body = text["body"]
            for channel, kind in kinds.items():
                data = body.get(channel, {}) if isinstance(body, dict) else {}
                for symbol, found in data.items() if isinstance(data, dict) else ():
                    for row in found if isinstance(found, list) else [found]:
                        message = {"T": kind, "S": symbol, **row}
                        a, b = Decoder([symbol]), Decoder([symbol])
                        one = a.records(pack([message]))
                        two = b.records_json(json.dumps([message]).encode())
                        assert one.tobytes() == two.tobytes() and len(one)
                        assert a.counters()["errors"] == 0
                        assert one["ts_venue"][0] == model.rfc3339(row["t"])
                        checked += 1
    assert checked > 5


# ---------------------------------------------------------------- numbers

@given(st.integers(0, 2**23 * 10**9 - 1))
@example(4_503_599_627_370_497)
@example(8_388_607_999_999_999)
def test_every_decimal_with_nine_digits_comes_back_below_2_23(n):
    assert to_nano(float(f"{n // 10**9}.{n % 10**9:09d}")) == n


@given(st.integers(0, 9223372035), st.integers(0, 9), st.data())
def test_every_decimal_of_up_to_15_digits_comes_back(whole, digits, data):
    digits = min(digits, 15 - len(str(whole)))
    fraction = data.draw(st.integers(0, 10**digits - 1))
    n = whole * 10**9 + fraction * 10**(9 - digits)
    assert to_nano(float(Decimal(n).scaleb(-9))) == n


@given(st.floats(0, 9223372035.9))
@example(2.0**23)
@example(2.0**24 - 2.0**-29)
@example(0.5e-9)
@example(1.5e-9)
@example(5e-324)
def test_nano_of_any_float_is_the_documented_one(value):
    assert to_nano(value) == model.nano(value)
    if -Decimal(repr(value)).as_tuple().exponent <= 9:
        assert Decimal(to_nano(value)).scaleb(-9) == Decimal(repr(value))


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, -math.inf, 9223372036.0, 1e308])
def test_nano_of_what_is_no_price_is_refused(value):
    with pytest.raises(ValueError, match="wanted a finite number"):
        to_nano(value)


@given(st.decimals(min_value=-9_223_372_036, max_value=9_223_372_036, places=12))
@example(Decimal("0.0000000005"))
@example(Decimal("0.0000000015"))
@example(Decimal("0.000000000500"))
@example(Decimal("0.000000000501"))
def test_decimal_text_rounds_half_to_even(value):
    exact = int((value * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))
    if abs(exact) < 2**63:
        assert parse_nano(f"{value:f}") == exact


@pytest.mark.parametrize("text", ["", "-", ".", "1e5", "+1", "1.2.3", " 1", "nan", "9223372037",
                                  "99999999999999999999", "1,5", "--1", "0x1"])
def test_what_is_no_decimal_is_refused(text):
    with pytest.raises(ValueError, match="wanted a decimal"):
        parse_nano(text)


@given(st.integers(0, 9_214_646_399_999_999_999), st.integers(0, 9), st.integers(-1439, 1439))
def test_times_to_the_nanosecond_with_any_zone(ns, digits, zone):
    ns -= ns % 10**(9 - digits)
    seconds, nanos = divmod(ns, 10**9)
    whole = numpy.datetime64(seconds + zone * 60, "s")
    fraction = f".{nanos:09d}"[:1 + digits] if digits else ""
    text = f"{whole}{fraction}{'+' if zone >= 0 else '-'}{abs(zone) // 60:02d}:{abs(zone) % 60:02d}"
    if 1970 <= int(text[:4]) <= 2261 and text[0] != "-":
        assert parse_time(text) == ns == model.rfc3339(text)


@pytest.mark.parametrize("text", [
    "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-01-00T00:00:00Z", "2026-04-31T00:00:00Z",
    "2026-01-01T24:00:00Z", "2026-01-01T00:60:00Z", "2026-01-01T00:00:60Z", "2026-01-01T00:00:00",
    "2026-01-01T00:00:00.Z", "2026-01-01T00:00:00Zx", "1969-12-31T23:59:59Z",
    "2262-01-01T00:00:00Z", "2026-1-01T00:00:00Z", "",
    "2026-01-01T00:00:00+0100", "1970-01-01T00:00:00+01:00"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match="wanted an RFC 3339"):
        parse_time(text)
    found, decoder = Decoder(SYMBOLS).records(pack([trade(t=text)])), Decoder(SYMBOLS)
    decoder.records_json(json.dumps([trade(t=text)]).encode())
    assert len(found) == 0 and decoder.counters()["errors"] == 1


@pytest.mark.parametrize("form, ns", [(4, 1772461800 * 10**9), (8, WHEN_NS), (12, WHEN_NS),
                                      (8, 0), (12, 9_223_372_035_999_999_999)])
def test_all_forms_of_the_timestamp_extension(form, ns):
    assert Decoder(SYMBOLS).records(pack([trade(t=ext(ns, form))]))["ts_venue"][0] == ns


@pytest.mark.parametrize("code, data", [
    (-1, struct.pack(">Iq", 10**9, 1)), (-1, struct.pack(">Iq", 0, -1)), (-1, b"\0" * 3),
    (-1, b"\xff" * 8), (5, b"\0" * 8), (-1, b"\0" * 16), (-1, struct.pack(">Iq", 0, 2**40))])
def test_bad_timestamps_are_errors(code, data):
    decoder = Decoder(SYMBOLS)
    frame = pack([trade(t=msgspec.msgpack.Ext(code, data)), trade()])
    assert len(decoder.records(frame)) == 1 and decoder.counters()["errors"] == 1


# ---------------------------------------------------------------- frames

@pytest.mark.parametrize("frame", [
    b"", b"\x80", b"\xc0", b"\x91", b"\xdc", b"\xdd\x00\x01\x00\x00", b"\x91\xdf\xff\xff\xff\xff",
    b"\x90\x00", b"\x91\xc1", b"\xdd\x00\x00\x00", b"\x91\x81\xa1", b"\x91\x81\xa1T",
    b"\x91\x81\xdb\xff\xff\xff\xff", b"\x91\x81\xc9\xff\xff\xff\xff\x00", b"\x91" * 200 + b"\xc0",
    b"\x91\x81\xa1T" + b"\x91" * 16 + b"\x01"], ids=range(16))
def test_frame_that_is_none_is_refused(frame):
    decoder = Decoder(SYMBOLS)
    with pytest.raises(DataError, match="not a whole MessagePack array"):
        decoder.records(frame)
    assert decoder.counters() == {**dict.fromkeys(decoder.counters(), 0), "errors": 1}


@pytest.mark.parametrize("frame", [b"", b"{}", b"[", b"[{]", b"null", b"[1,2", b'[{"T":"t"},]',
                                   b'[{"T":"t","p":NaN}]', b"\xff\xfe"])
def test_json_that_is_none_is_refused(frame):
    decoder = Decoder(SYMBOLS)
    with pytest.raises(DataError, match="not a JSON array"):
        decoder.records_json(frame)
    assert decoder.counters()["errors"] == 1


@pytest.mark.parametrize("message", [
    '{"T":"t","S":"AAPL","p":1e999,"s":1}', '{"T":"t","S":"AAPL","p":"1","s":1}', "5", "null",
    '{"T":"t","S":"AAPL","p":1,"s":1,"i":18446744073709551616}', '{"S":"AAPL"}'])
def test_one_bad_json_message_leaves_the_others(message):
    decoder = Decoder(SYMBOLS)
    found = decoder.records_json(f'[{{"T":"t","S":"A","p":2,"s":1}},{message}]'.encode())
    assert len(found) == 1 and decoder.counters()["errors"] == 1


def test_limits_of_frame_messages_and_room():
    small = Decoder(SYMBOLS, frame_max=100)
    with pytest.raises(DataError, match="larger than allowed"):
        small.records(pack([quote(), quote()]))
    with pytest.raises(DataError, match="larger"):
        small.records_json(json.dumps([in_json(quote())] * 3).encode())
    few = Decoder(SYMBOLS, messages_max=2)
    with pytest.raises(DataError, match="larger than allowed"):
        few.records(pack([trade()] * 3))
    with pytest.raises(DataError, match="3 messages"):
        few.records_json(json.dumps([in_json(trade())] * 3).encode())
    assert len(few.records(pack([trade()] * 2))) == 2
    tight = Decoder(SYMBOLS, room=4)
    with pytest.raises(DataError, match="5 records, room for 4"):
        tight.records(pack([trade()] * 5))
    with pytest.raises(DataError, match="more records than there is room"):
        tight.records_json(json.dumps([in_json(trade())] * 5).encode())
    assert len(tight.records(pack([trade()] * 4))) == 4
    with pytest.raises(DataError, match="4 records, room for 3"):
        Decoder(SYMBOLS, room=3).gap()


def test_records_go_into_a_given_array_and_leave_link_seq_alone():
    out = numpy.zeros(3, schema.dtype(schema.MARKET))
    out["link_seq"] = 99
    decoder = Decoder(SYMBOLS)
    assert decoder.records_into(pack([trade(i=5)]), out, 8) == 1
    assert rows(out[:1]) == both([trade(i=5)])[0] and out["link_seq"].tolist() == [99] * 3
    assert not out[1:]["kind"].any() and out["ts_recv"][0] == 8
    with pytest.raises(DataError, match="4 records, room for 3"):
        decoder.records_into(pack([trade()] * 4), out)
    with pytest.raises(TypeError, match="MARKET"):
        decoder.records_into(b"", numpy.zeros(3))


def test_a_refused_frame_does_not_lose_the_snapshot():
    frame = pack([quote()])
    for decode in (lambda d: d.records(frame[:-1]), lambda d: d.records(pack([quote()] * 9))):
        decoder = Decoder(SYMBOLS, room=4)
        with pytest.raises(DataError):
            decode(decoder)
        assert rows(decoder.records(frame))[0][0] == K.CLEAR


@pytest.mark.parametrize("symbols, text", [
    ([], "1 to 65536"), (["A", "A"], "twice"), ([""], "1 to 16"), (["X" * 17], "1 to 16")])
def test_bad_symbol_tables_are_refused(symbols, text):
    with pytest.raises(ConfigError, match=text):
        Decoder(symbols)


def test_every_symbol_of_a_large_table_is_found_and_no_other():
    names = [f"{a}{b}{c}" for a, b, c in itertools.product("ABCDEFGHIJ", repeat=3)]
    table = numpy.zeros(len(names), schema.dtype(schema.INSTRUMENT))
    table["symbol"] = names
    decoder = Decoder(table)
    found = decoder.records(pack([trade(S=n) for n in names] + [trade(S="ZZZ")]))
    assert found["instrument"].tolist() == list(range(len(names)))
    assert decoder.counters()["drops"] == 1


# ---------------------------------------------------------------- fuzz, against the twin

NUMBERS = st.one_of(st.integers(-5, 2**64 - 1), st.floats(), st.floats(0, 1e6), st.just(0),
                    st.decimals(0, 10**6, places=4).map(float))
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=20), st.binary(max_size=20),
              st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=20))),
    lambda inner: st.one_of(st.lists(inner, max_size=4),
                            st.dictionaries(st.text(max_size=4), inner, max_size=4)), max_leaves=8)
TIMES = st.one_of(st.builds(ext, st.integers(0, 2**34 * 10**9 - 1)), st.just(WHEN), st.none(),
                  st.builds(lambda s: ext(s, 12), st.integers(0, 9 * 10**18)), JUNK)
LEVELS = st.lists(st.one_of(st.fixed_dictionaries({"p": NUMBERS, "s": NUMBERS}),
                            st.dictionaries(st.sampled_from("pst"), NUMBERS)), max_size=4)
VALUES = {
    "T": st.one_of(st.sampled_from([*"tqosbudlicxn", "error", "success", "subscription"]), JUNK),
    "S": st.one_of(st.sampled_from([*SYMBOLS, "MSFT"]), JUNK),
    "t": TIMES, "p": NUMBERS, "s": NUMBERS, "i": st.integers(0, 2**64 - 1), "bp": NUMBERS,
    "bs": NUMBERS, "ap": NUMBERS, "as": NUMBERS, "b": LEVELS, "a": LEVELS,
    "r": st.one_of(st.booleans(), st.none()), "sc": st.sampled_from(["T", "H", "5", ""]),
    "tks": st.sampled_from(["B", "S", ""]), "code": st.integers(-5, 500), "c": JUNK, "zzzz": JUNK,
    "n": st.integers(0, 10**6), "oi": st.integers(-1, 2**64 - 1), "ci": st.integers(0, 2**64 - 1),
    **{k: NUMBERS for k in ("u", "d", "o", "h", "l", "v", "vw", "op", "os", "cp", "cs")},
}
NOISE = st.one_of(
    st.fixed_dictionaries({}, optional=VALUES),
    st.dictionaries(st.sampled_from(sorted(VALUES)), JUNK), JUNK,
    st.fixed_dictionaries({"T": st.sampled_from("tqo"), "S": st.sampled_from(SYMBOLS), **{
        k: VALUES[k] for k in ("t", "p", "s", "bp", "bs", "ap", "as", "b", "a")}}),
    st.fixed_dictionaries({"T": st.sampled_from("lcxbud"), "S": st.sampled_from(SYMBOLS), **{
        k: VALUES[k] for k in ("t", "p", "s", "i", "u", "d", "o", "h", "l", "v", "n", "vw", "oi",
                               "op", "os", "ci", "cp", "cs")}, "c": NUMBERS}))
GOOD = st.one_of(
    st.builds(lambda p, s: trade(p=p, s=s), st.floats(0.01, 1e6), st.integers(0, 10**6)),
    st.builds(lambda p, s: quote(bp=p, ap=p + s), st.floats(0.01, 1e6), st.floats(0, 1)),
    st.builds(lambda u, d, i: bands(u=u, d=d, i=i), st.floats(1, 9), st.floats(0, 1),
              st.sampled_from(["A", "B", "D", "F", ""])),
    st.builds(lambda p, n: correction(op=p, ci=n), st.floats(0.01, 1e6), st.integers(0, 2**64 - 1)),
    st.builds(lambda p, n: cancel(p=p, i=n), st.floats(0.01, 1e6), st.integers(0, 2**64 - 1)),
    st.builds(lambda k, p, v: bar(k, h=p, l=p, v=v), st.sampled_from("bud"), st.floats(0.01, 1e6),
              st.floats(0, 1e9)),
    st.builds(lambda r: book([(1.5, 2)], [(1.6, 0.1)], r=r), st.booleans()))
FRAMES = st.lists(st.one_of(NOISE, GOOD), max_size=6).map(pack)


def same(decoder: Decoder, twin: model.Twin, frame: bytes) -> None:
    try:
        wanted = twin.feed(frame)
    except model.Malformed:
        with pytest.raises(DataError):
            decoder.records(frame)
    else:
        assert rows(decoder.records(frame)) == wanted
    counters = decoder.counters()
    for name in ("ignored", "drops", "errors", "controls"):
        assert counters[name] == getattr(twin, name), name
    assert decoder.control == twin.control


def test_an_error_in_a_frame_that_is_cut_off_was_not_told():
    frame = msgspec.msgpack.encode([{"T": "error", "code": 407, "msg": "slow"}, {"T": "x"}])
    for cut in range(1, len(frame)):
        decoder = Decoder(SYMBOLS)
        with pytest.raises(DataError):
            decoder.records(frame[:cut])
        assert decoder.control == 0
    decoder.records(frame)
    assert decoder.control == 407


@given(st.lists(FRAMES, max_size=4))
@settings(max_examples=400)
def test_equals_the_twin_on_any_messages(frames):
    decoder, twin = Decoder(SYMBOLS), model.Twin(SYMBOLS)
    for frame in frames:
        same(decoder, twin, frame)


@given(FRAMES, st.data())
@settings(max_examples=400)
def test_equals_the_twin_on_mutated_and_truncated_bytes(frame, data):
    raw = bytearray(frame)
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    same(Decoder(SYMBOLS), model.Twin(SYMBOLS), bytes(raw))
    same(Decoder(SYMBOLS), model.Twin(SYMBOLS), bytes(raw[:cut]))


@given(st.binary(max_size=64))
def test_equals_the_twin_on_noise(noise):
    same(Decoder(SYMBOLS), model.Twin(SYMBOLS), noise)
    same(Decoder(SYMBOLS), model.Twin(SYMBOLS), b"\x91\x83\xa1T\xa1t\xa1S\xa4AAPL" + noise)


def test_no_truncation_of_a_frame_reads_beyond_it():
    frame = pack([quote(), trade(), book([(1, 1)], [(2, 2)], r=True), bands(), correction(),
                  cancel(), bar()])
    for size in range(len(frame)):
        exact = bytes(bytearray(frame[:size]))       # own block: a sanitizer sees each step over
        with pytest.raises(DataError):
            Decoder(SYMBOLS).records(exact)


JSON_NUMBERS = st.one_of(st.integers(0, 10**9), st.floats(0, 1e9), st.floats(-1, 1e10))


@given(st.lists(st.fixed_dictionaries(
    {"T": st.sampled_from([*"tqosblcxud"]), "S": st.sampled_from([*SYMBOLS, "MSFT"])},
    optional={k: JSON_NUMBERS if v is NUMBERS else v
              for k, v in VALUES.items() if k not in ("T", "S", "t", "b", "a", "c", "code",
                                                      "zzzz")} | {
        "c": JSON_NUMBERS,
        "t": st.just(WHEN),
        "b": st.lists(st.fixed_dictionaries({"p": JSON_NUMBERS, "s": JSON_NUMBERS}), max_size=3),
        "a": st.lists(st.fixed_dictionaries({"p": JSON_NUMBERS, "s": JSON_NUMBERS}), max_size=3)}),
    max_size=6))
@settings(max_examples=300)
def test_json_gives_the_same_records_as_messagepack(messages):
    binary, text = Decoder(SYMBOLS), Decoder(SYMBOLS)
    one = binary.records(pack(messages))
    two = text.records_json(json.dumps(messages).encode())
    assert one.tobytes() == two.tobytes()
    assert binary.counters() == text.counters()
