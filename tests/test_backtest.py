"""A backtest is deterministic, conserves what it trades, and gives a live run's intents again."""
import json
import struct
import zlib

import numpy
import pytest

from hftpipe import cli, config, recording, schema, worker
from hftpipe._strategy import PyStrategy
from hftpipe.backtest import run as backtests
from hftpipe.backtest.readers import open_recording
from hftpipe.errors import DataError, MismatchError
from tests.chain import NANO, Chain, quote, table
from tests.data import recording as data
from tests.models.live import Live

RECORDINGS = {
    "itch": ("itch", "aapl_20200130_locate13_10k.itch50.bin"),
    "lobster-aapl": ("lobster",
                     "AAPL_2012-06-21_34200000_57600000_message_10_first1k.csv.gz"),
    "lobster-msft": ("lobster", "MSFT_2012-06-21_34200000_37800000_message_50_first.csv.gz"),
    "binance": ("binance", "binance_usdm_btcusdt_20240808.gz"),
    "coinbase": ("coinbase", "COINBASE.ws.28.0.gz"),
    "kraken": ("kraken", "KRAKEN.ws.50.0.gz"),
}
TIMES = ("seconds", "events_per_second")


@pytest.fixture
def hp(capsys):
    """Run ``hftpipe backtest`` in this process: (exit code, stdout, stderr)."""
    def go(*args):
        capsys.readouterr()
        code = cli.run(["backtest", *map(str, args)])
        return code, *capsys.readouterr()
    return go


@pytest.fixture
def run(hp):
    """The JSON document of a backtest, without what measures time."""
    def go(path, *options):
        code, out, err = hp("--data", path, "-o", "json", *options)
        assert (code, err) == (0, "")
        found = json.loads(out)
        assert found["events_per_second"] > 0
        return {k: v for k, v in found.items() if k not in TIMES}
    return go


@pytest.fixture
def refused(hp):
    """Check that arguments give one line on standard error and the documented exit code."""
    def go(code, message, *args):
        got, out, err = hp(*args)
        assert (got, out) == (code, ""), err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert message in err, err
    return go


# ---------------------------------------------------------------- real recordings

@pytest.mark.parametrize("name", RECORDINGS)
def test_twice_the_same_and_fills_add_up_to_positions(name, tmp_path, run):
    path = data(*RECORDINGS[name])
    first = run(path, "--record", tmp_path / "a.rec")
    assert first == run(path, "--record", tmp_path / "b.rec")
    assert (tmp_path / "a.rec").read_bytes() == (tmp_path / "b.rec").read_bytes()
    assert first["events"] == sum(len(chunk) for chunk in open_recording(path)) > 100
    assert first["orders"] + sum(first["denied"].values()) == first["intents"]
    conserved(tmp_path / "a.rec", first)


def conserved(path, result):
    """From the fills alone, in whole numbers: positions, cash, and P&L of *result*."""
    found = recording.Recording(path)
    symbols = [row["symbol"].decode() for row in found.instruments]
    _, events = found.collect(schema.ORDER_EVENT, schema.STREAM.GATEWAY)
    _, intents = found.collect(schema.INTENT, schema.STREAM.SIGNAL)
    _, markets = found.collect(schema.MARKET, schema.STREAM.FEED)
    every = [e for _, h, _ in found.events(schema.STREAM.GATEWAY) for e in h["event"].tolist()]
    assert every == [schema.event_id(schema.STREAM.GATEWAY, i + 1) for i in range(len(every))]
    kinds = schema.ORDER_EVENT_KIND
    fills = events[numpy.isin(events["kind"], (kinds.FILL, kinds.PARTIAL_FILL))]
    assert len(fills) == result["fills"]
    wanted = {int(i["event"]): i for i in intents}
    held, cash, filled = {}, {}, {}
    for f in fills:
        order = wanted[int(f["order"])]
        assert f["side"] == order["side"] and f["qty"] > 0
        # Never worse than the limit, never more than was asked for.
        assert order["price"] == 0 or (int(f["price"]) - int(order["price"])) * int(f["side"]) <= 0
        filled[int(f["order"])] = filled.get(int(f["order"]), 0) + int(f["qty"])
        assert filled[int(f["order"])] == f["cum_qty"] <= order["qty"]
        i = int(f["instrument"])
        held[i] = held.get(i, 0) + int(f["side"]) * int(f["qty"])
        cash[i] = cash.get(i, 0) - int(f["side"]) * int(f["qty"]) * int(f["price"])
    total = 0.0
    for i in held:
        at = result["positions"].get(symbols[i], {"qty": 0, "average": 0, "realised": 0})
        assert held[i] == round(at["qty"] * NANO)
        # cash = realised - what the open position cost, but for rounding of the average
        cost = held[i] * round(at["average"] * NANO)
        rounding = 1e-9 * (len(fills) + 1) * max(1, sum(
            int(f["qty"]) for f in fills if f["instrument"] == i) / NANO) + 1e-6
        assert cash[i] / NANO**2 == pytest.approx(
            at["realised"] - cost / NANO**2, abs=rounding)
        total += at["realised"]
    assert result["realised"] == pytest.approx(total, abs=1e-6)
    # Nothing is known before it happens: a cause is an event that had been read by then.
    seen = {int(e): int(t) for e, t in zip(markets["event"], markets["ts_recv"], strict=True)}
    for i in intents:
        assert seen[int(i["cause"])] == i["ts_recv"]


def test_a_strategy_of_the_configuration_can_be_chosen(run, hp):
    path = data(*RECORDINGS["itch"])
    both, one = run(path), run(path, "--strategy", "model")
    assert 0 < one["intents"] != both["intents"]
    code, _, err = hp("--data", path, "--strategy", "nope")
    assert code == 2 and "must be one of imbalance, model, was 'nope'" in err


def test_a_slower_way_to_the_venue_changes_fills_not_the_market(run):
    path = data(*RECORDINGS["itch"])
    near, far = run(path, "--latency", "1us"), run(path, "--latency", "500ms")
    assert near["events"] == far["events"]
    assert near["fills"] != far["fills"] or near["pnl"] != far["pnl"]


# ---------------------------------------------------------------- our own recording as data

def ours(path, quotes=400, instruments=2, blocks=(1, 2, 3, 5)):
    """A recording of quotes whose blocks end anywhere, also inside a message."""
    from hftpipe.cli.record import Market
    rng = numpy.random.default_rng(3)
    first = numpy.zeros(instruments, schema.dtype(schema.MARKET))     # risk wants to see a trade
    first["kind"], first["flags"] = schema.MARKET_KIND.TRADE, schema.MARKET_FLAG.LAST
    first["ts_recv"] = first["ts_venue"] = 10**9
    first["price"], first["qty"], first["instrument"] = 100 * NANO, NANO, range(instruments)
    rows = [first]
    for i in range(quotes):
        mid = 10_000 + int(rng.integers(-3, 4))
        rows.append(quote(10**9 + i * 50_000_000, mid, mid + 1, int(rng.integers(1, 500)),
                          int(rng.integers(1, 500)), i % instruments))
    rows = numpy.concatenate(rows)
    with recording.Writer(path, table(instruments), 1, 0) as out:
        market = Market(out)
        at = turn = 0
        while at < len(rows):
            size = blocks[turn % len(blocks)]
            market.write(rows[at:at + size], rows["ts_recv"][at:at + size])
            at, turn = at + size, turn + 1
    return path, rows


def test_messages_are_whole_wherever_the_blocks_of_a_recording_end(tmp_path, run):
    """A store link is written in batches of 4,096: one of them ended inside a quote, and a book
    with one new side and one old one was traded on."""
    path, rows = ours(tmp_path / "a.rec")
    reader = open_recording(path)
    chunks = list(reader)
    assert all(chunk["flags"][-1] & schema.MARKET_FLAG.LAST for chunk in chunks)
    assert numpy.concatenate(chunks)["price"].tolist() == rows["price"].tolist()
    whole, _ = ours(tmp_path / "b.rec", blocks=(1000,))
    same = [{k: v for k, v in run(p, "--strategy", "imbalance").items() if k != "data"}
            for p in (path, whole)]
    assert same[0] == same[1] and same[0]["orders"] > 0


def test_a_frame_larger_than_what_is_known_to_be_free_is_not_refused_for_ever():
    """The feed looked for 64 free slots of its store link, saw an old count that was enough for
    them, and refused a snapshot of more records for ever although the link was empty."""
    chain = Chain(lambda c, add: None, capacity={"feed.store": 256})
    for count, taken in ((100, 100), (80, 80), (100, 0)):
        rows = numpy.concatenate([quote(10**9, 10_000, 10_001)] * (count // 2))
        assert chain.feed.put_many(rows) == taken
    chain.stored("feed")
    assert chain.feed.put_many(rows) == 100


def test_symbols_choose_and_renumber_instruments_of_our_own_recording(tmp_path, run, hp):
    """They were only looked up: all instruments came out, whatever was asked for."""
    path, rows = ours(tmp_path / "a.rec")
    reader = open_recording(path, symbols=["SYM1"])
    got = numpy.concatenate(list(reader))
    assert [r["symbol"] for r in reader.instruments] == [b"SYM1"]
    want = rows[rows["instrument"] == 1]
    assert (got["instrument"] == 0).all()
    assert got["price"].tolist() == want["price"].tolist()
    reader = open_recording(path, symbols=["SYM1", "SYM0"])
    got = numpy.concatenate(list(reader))
    assert got["instrument"].tolist() == (1 - rows["instrument"]).tolist()
    assert run(path, "--symbols", "SYM1")["symbols"] == ["SYM1"]
    code, _, err = hp("--data", path, "--symbols", "NOPE")
    assert code == 4 and "wanted symbol NOPE, found SYM0, SYM1" in err


def test_a_recorded_backtest_of_a_busy_strategy_ends_and_is_the_same(tmp_path):
    """Store links filled up within one chunk: the venue's answers found no room, for ever."""
    path, _ = ours(tmp_path / "market.rec", quotes=4000, instruments=1, blocks=(8192,))
    cfg = config.loads("""[risk]
        max_orders_per_minute = 1000000
        duplicate_window_ms = "off: this strategy repeats itself"
        """, env={})

    def strategies(_):
        def on_event(c, add):
            if c.event == 1 and c.book["ask"]:
                for _ in range(8):
                    add(side=1 if c.qty <= 0 else -1, type=schema.ORDER_TYPE.MARKET,
                        tif=schema.TIF.IOC, action=schema.ACTION.NEW, qty=c.lot)
        return [PyStrategy(on_event)]

    plain = backtests.backtest(path, cfg, strategies)
    kept = backtests.backtest(path, cfg, strategies, record=tmp_path / "out.rec")
    for result in (plain, kept):
        result.seconds = 0.0
    assert plain == kept and plain.orders > 4000
    found = recording.Recording(tmp_path / "out.rec")
    heads, _ = found.collect(schema.ORDER_EVENT, schema.STREAM.GATEWAY)
    assert len(heads) > 32768                           # more than its link holds


# ---------------------------------------------------------------- a live run again

@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The recording of a demo run."""
    place = tmp_path_factory.mktemp("live")
    path = place / "demo.rec"
    live = Live(place / "run", "--for", "10min", "--record", path, name="demo")
    try:
        live.up().trades(8)
        live.popen.terminate()
        assert live.end() == 0
    finally:
        live.close()
    return path, live.document


def rewritten(source, target, change):
    """A copy of a recording, checksums right, with *change*(record, head, body) done to each."""
    found = recording.Recording(source)
    with open(source, "rb") as file:
        header = file.read(found._start)
    with open(target, "wb") as out:
        out.write(header)
        for stream, slots in found.blocks():
            slots = slots.copy()
            for row in slots:
                head = row[:64].view(schema.dtype(schema.ENVELOPE))[0]
                record = schema.BODIES[int(head["record"])]
                body = row[64:64 + record.size].view(schema.dtype(record))[0]
                change(record, head, body)
            block = struct.pack("<4sIHBB", b"BLK1", len(slots), slots.shape[1], stream, 0)
            raw = slots.tobytes()
            out.write(block + struct.pack("<I", zlib.crc32(raw, zlib.crc32(block))) + raw)
        end = struct.pack("<4sIHBB", b"END1", 0, 0, 0, 0)
        out.write(end + struct.pack("<I", zlib.crc32(end)))
    return target


@pytest.mark.venue
@pytest.mark.db
def test_a_live_runs_intents_come_out_again(demo, hp):
    path, document = demo
    code, out, err = hp("--data", path, "--verify", "-o", "json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["identical"] and found["intents"] >= document["orders"] > 0
    assert found["market_events"] == document["events"]
    assert "IDENTICAL" in hp("--data", path, "--verify")[1]


@pytest.mark.venue
@pytest.mark.db
@pytest.mark.parametrize("field", ["price", "qty", "side", "cause"])
def test_one_changed_field_of_one_intent_is_found(demo, tmp_path, field, hp):
    path, _ = demo
    count = 0

    def change(record, head, body):
        nonlocal count
        if record is schema.INTENT:
            count += 1
            if count == 5:
                body[field] = -body[field] if field == "side" else body[field] + 1

    code, out, err = hp("--verify", "--data",
                             rewritten(path, tmp_path / "bad.rec", change))
    assert code == 9 and out == ""
    assert err.startswith(f"error: intent 5: {field} was ") and err.count("\n") == 1


@pytest.mark.venue
@pytest.mark.db
def test_one_changed_price_of_the_market_is_found(demo, tmp_path):
    path, _ = demo
    made = config.loads(recording.Recording(path).config["toml"], "recording", env={})
    found = recording.Recording(path)
    _, intents = found.collect(schema.INTENT)
    _, markets = found.collect(schema.MARKET)
    by_event = {int(m["event"]): m for m in markets}
    # The quote an intent was made from: a tick further on the side that it takes from.
    wanted = next(
        int(m["event"]) for i in intents for e in (int(i["cause"]), int(i["cause"]) - 1)
        if (m := by_event.get(e)) is not None and m["kind"] == schema.MARKET_KIND.QUOTE
        and m["side"] == -i["side"] and m["price"] == i["price"])

    def change(record, head, body):
        if record is schema.MARKET and int(body["event"]) == wanted:
            body["price"] += made.instruments[0].tick

    other = rewritten(path, tmp_path / "bad.rec", change)
    with pytest.raises(MismatchError, match=r"intent \d+"):
        backtests.verify_intents(other, lambda table: worker.strategies(made, table))


@pytest.mark.venue
@pytest.mark.db
def test_a_live_runs_recording_is_data_too(demo, run):
    path, document = demo
    first = run(path)
    assert first == run(path)
    assert first["events"] == document["events"] and first["symbols"] == document["symbols"]


def greedy():
    """A strategy that asks for as much as it gets and prices it by what it was refused."""
    count = 0

    def on_event(c, add):
        nonlocal count
        for _ in range({1: 5, 3: 16}.get(c.event, 0)):
            count += 1
            if count > 6000 or not add(
                    side=1, type=schema.ORDER_TYPE.LIMIT, tif=schema.TIF.IOC,
                    action=schema.ACTION.NEW, price=c.tick * count, qty=c.lot):
                break
    return on_event


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """A recording of a run with a slow risk stage: its signal.risk link was often nearly full."""
    path = tmp_path_factory.mktemp("crowded") / "run.rec"
    rng = numpy.random.default_rng(11)
    chain = Chain(greedy(), capacity={"signal.risk": 64})
    with recording.Writer(path, chain.table, 1, 0) as out:
        i = moved = 0
        while i < 300 or moved:
            i += 1
            moved = 0
            mid = 10_000 + int(rng.integers(-3, 4))
            if i <= 300:
                chain.feed.put_many(quote(10**9 + i * 1_000_000, mid, mid + 1))
            for stage in chain.stages:
                moved += stage.do_work(int(rng.integers(1, 24 if stage is chain.risk else 64)))
                stage.flush()
            backtests._drain(chain.links, out, 0.0)
        chain.inline.close()
    return path


def test_an_order_event_taken_when_there_was_little_room_gives_the_same_intents(crowded):
    """The room a strategy had was recorded and not applied: in the replay it always had all of
    it, and a run that was right was called different."""
    found = recording.Recording(crowded)
    _, takes = found.collect(schema.TAKE)
    rooms = set(takes["room"].tolist())
    assert min(rooms) == 0 and max(rooms) == 16 and len(rooms) > 5
    report = backtests.verify_intents(crowded, lambda table: [PyStrategy(greedy())])
    assert report.order_events == len(takes) > 1000 and report.intents > 1000


@pytest.mark.parametrize("room, error, text", [
    (lambda n: 16, MismatchError, r"intent \d+"),
    (lambda n: max(n - 1, 0), MismatchError, r"intent \d+"),
    (lambda n: n + 17, DataError, "had room for [0-9]+ intents, allowed are 16")])
def test_another_room_than_the_one_recorded_is_found(crowded, tmp_path, room, error, text):
    def change(record, head, body):
        if record is schema.TAKE:
            body["room"] = room(int(body["room"]))

    other = rewritten(crowded, tmp_path / "other.rec", change)
    with pytest.raises(error, match=text):
        backtests.verify_intents(other, lambda table: [PyStrategy(greedy())])


# ---------------------------------------------------------------- bad input

def test_missing_foreign_and_cut_off_recordings(tmp_path, refused):
    refused(4, "No such file", "--data", tmp_path / "none.bin")
    (tmp_path / "x.bin").write_bytes(b"PK\x03\x04 this is something else")
    refused(4, "wanted a recording", "--data", tmp_path / "x.bin")
    refused(4, "found a directory", "--data", tmp_path)
    refused(2, "--data", "-o", "json")
    path, _ = ours(tmp_path / "a.rec")
    raw = path.read_bytes()
    (tmp_path / "cut.rec").write_bytes(raw[:len(raw) * 2 // 3])
    refused(4, "cut off", "--data", tmp_path / "cut.rec")
    (tmp_path / "end.rec").write_bytes(raw[:-1])
    refused(4, "cut off", "--data", tmp_path / "end.rec")
    refused(2, "no configuration", "--verify", "--data", path)
    refused(4, "File exists", "--data", path, "--record", path)


def test_a_recording_of_another_schema_version(tmp_path, refused):
    path, _ = ours(tmp_path / "a.rec")
    raw = path.read_bytes()
    size = struct.unpack_from("<I", raw, 8)[0]
    header = json.loads(raw[16:16 + size])
    header["version"] += 1
    text = json.dumps(header).encode()
    path.write_bytes(raw[:8] + struct.pack("<II", len(text), zlib.crc32(text)) + text
                     + raw[16 + size:])
    refused(4, "written by format 2, this build reads up to 1", "--data", path)


def test_nan_negative_and_truncated_messages(tmp_path, refused, hp):
    line = (b'1723075200000000000 {"stream":"btcusdt@trade","data":{"e":"trade",'
            b'"E":1723075200000,"T":1723075200000,"s":"BTCUSDT","t":1,"p":"100.1","q":"%s",'
            b'"m":false}}\n')
    path = tmp_path / "a.txt"
    path.write_bytes(line % b"1.5")
    assert hp("--data", path)[0] == 0
    for text in (b"NaN", b"-1", b"1e999", b"1.0000000001", b""):
        path.write_bytes(line % b"1.5" + line % text)
        refused(4, "line 2", "--data", path)
    path = data(*RECORDINGS["itch"])
    (tmp_path / "cut.bin").write_bytes(path.read_bytes()[:-7])
    refused(4, "found the end of the file", "--data", tmp_path / "cut.bin")
    packed = data(*RECORDINGS["binance"]).read_bytes()
    (tmp_path / "cut.gz").write_bytes(packed[:len(packed) // 2])
    refused(4, "gzip", "--data", tmp_path / "cut.gz")


def test_a_damaged_byte_never_passes(tmp_path):
    path, _ = ours(tmp_path / "a.rec", quotes=20)
    raw = bytearray(path.read_bytes())
    settings = config.loads("", env={})
    for at in range(200, len(raw), 997):
        raw[at] ^= 0x10
        path.write_bytes(raw)
        raw[at] ^= 0x10
        with pytest.raises(DataError):
            backtests.backtest(path, settings, lambda table: [])
