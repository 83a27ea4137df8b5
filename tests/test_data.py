"""Historical data: what is on disk is what the broker has, once, through any end of the process."""
import datetime
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hftpipe import schema
from hftpipe.alpaca.rest import Rest
from hftpipe.backtest.readers import open_recording
from hftpipe.data import convert, tables
from hftpipe.data.dataset import MANIFEST, Dataset, find
from hftpipe.data.download import Client, download
from hftpipe.errors import BusyError, ConfigError, DataError, DeadlineError
from hftpipe.venue import server
from tests.data import DATA, needs_data
from tests.models.live import until

NANO = 10**9
ROOT = Path(__file__).resolve().parent.parent


def hp(*args, env=None):
    done = subprocess.run([sys.executable, "-m", "hftpipe", *map(str, args)], text=True,
                          capture_output=True, env={**os.environ, **(env or {})}, timeout=120)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def rows_of(data):
    out = []
    for part in data.parts:
        out += tables.read(data.path / part.file)[1].to_pylist()
    return out


# ---------------------------------------------------------------- a broker of trades

class Broker:
    """Pages of made-up trades over HTTP; `fail` may answer a request in its own way."""

    def __init__(self, count=35, page=10):
        self.rows = [{"t": f"2026-01-05T14:30:{n:02}.{n:09}Z", "p": f"{100 + n}.{n:02}", "s": n + 1,
                      "i": 1000 + n, "x": "V", "c": ["@", "I"], "z": "C"} for n in range(count)]
        self.page, self.asked, self.fail = page, [], lambda number: None
        broker = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                broker.asked.append((self.path, dict(self.headers)))
                answer = broker.fail(len(broker.asked))
                if answer is None:
                    answer = 200, {}, broker.body(self.path)
                if answer == "drop":
                    self.close_connection = True
                    return
                status, headers, body = answer
                self.send_response(status)
                for name, value in {**headers, "Content-Length": len(body)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def body(self, path):
        from urllib.parse import parse_qs, urlsplit
        query = parse_qs(urlsplit(path).query)
        symbol, at = query["symbols"][0], int(query.get("page_token", ["0"])[0])
        rows = json.dumps(self.rows[at:at + self.page])
        for row in self.rows:               # numbers as the broker writes them, not as text
            rows = rows.replace(f'"p": "{row["p"]}"', f'"p": {row["p"]}')
        more = at + self.page < len(self.rows)
        token = f'"{at + self.page}"' if more else "null"
        return f'{{"trades":{{"{symbol}":{rows}}},"next_page_token":{token}}}'.encode()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def broker():
    b = Broker()
    yield b
    b.close()


REQUEST = {"symbols": ["ACME", "BTC/USD"], "start": "2026-01-05", "end": "2026-01-06",
           "feed": "iex", "timeframe": "", "adjustment": ""}


def filled(path, broker, **more):
    waits = []
    client = Client(broker.url, "key", "secret", per_minute=0, sleep=waits.append, **more)
    with Dataset(path, "trades", REQUEST).held() as data:
        try:
            download(data, client)
        finally:
            client.close()
    return data, waits


def check(data, broker):
    assert data.complete
    found = rows_of(data)
    for n, symbol in enumerate(REQUEST["symbols"]):
        part = found[n * len(broker.rows):(n + 1) * len(broker.rows)]
        assert [r["id"] for r in part] == [str(r["i"]) for r in broker.rows]
        assert {r["symbol"] for r in part} == {symbol}
        assert part[3]["price"] == 103_030_000_000 and part[3]["qty"] == 4 * NANO
        assert part[3]["ts"] == 1_767_623_403_000_000_003
        assert part[3]["conditions"] == "@,I" and part[3]["exchange"] == "V"
    assert len(found) == 2 * len(broker.rows)
    assert data.verify() == ([], [])


def test_pages_are_whole_exact_and_once(tmp_path, broker):
    data, _ = filled(tmp_path / "d", broker)
    check(data, broker)
    assert [p.rows for p in data.parts] == [10, 10, 10, 5] * 2
    assert broker.asked[0][0].startswith("/v2/stocks/trades?symbols=ACME&")
    assert broker.asked[4][0].startswith("/v1beta3/crypto/us/trades?symbols=BTC%2FUSD&")
    assert "feed=iex" in broker.asked[0][0] and "feed" not in broker.asked[4][0]
    assert broker.asked[0][1]["APCA-API-SECRET-KEY"] == "secret"
    asked = len(broker.asked)
    check(filled(tmp_path / "d", broker)[0], broker)            # and again: nothing is asked
    assert len(broker.asked) == asked


def test_refusals_that_pass_are_tried_again(tmp_path, broker):
    faults = {2: (429, {"Retry-After": "7"}, b'{"message":"too many requests."}'),
              3: (500, {}, b"oops"), 5: "drop", 6: (504, {}, b"")}
    broker.fail = faults.get
    data, waits = filled(tmp_path / "d", broker)
    check(data, broker)
    assert waits[0] == 7.0 and len(waits) == 4 and all(0 < w <= 7 for w in waits)


def test_the_reset_of_the_rate_limit_is_waited_for(tmp_path, broker):
    until = int(time.time()) + 30
    broker.fail = {1: (429, {"X-RateLimit-Reset": str(until)}, b"")}.get
    assert 25 <= filled(tmp_path / "d", broker)[1][0] <= 30


@pytest.mark.parametrize(("fault", "error", "text"), [
    ((403, {}, b'{"message":"subscription does not permit"}'), ConfigError, "does not permit"),
    ((401, {}, b""), ConfigError, "HTTP 401"),
    ((200, {}, b"[]"), DataError, "not what it should be"),
    ((200, {}, b'{"trades":{"ACME":[{"t":"yesterday"}]}}'), DataError, "not what it should be"),
    ((200, {}, b'{"trades":{"ACME":[{"t":"2026-01-05T14:30:00Z","p":1.0000000001,"s":1}]}}'),
     DataError, "nine decimals"),
    ((503, {}, b""), DeadlineError, "no page of /v2/stocks/trades in 8 tries: HTTP 503"),
    ("drop", DeadlineError, "in 8 tries")])
def test_what_does_not_pass_is_one_error_and_what_was_there_stays(tmp_path, broker, fault, error,
                                                                  text):
    broker.fail = lambda number: fault if number > 2 else None
    with pytest.raises(error, match=text) as caught:
        filled(tmp_path / "d", broker)
    assert "secret" not in str(caught.value)
    assert Dataset.load(tmp_path / "d").rows == 20
    broker.fail = lambda number: None
    check(filled(tmp_path / "d", broker)[0], broker)


def test_a_rate_of_requests_is_kept(broker):
    waits = []
    client = Client(broker.url, "k", "s", per_minute=60, sleep=waits.append)
    for _ in range(3):
        client.page("/v2/stocks/trades", {"symbols": "A"})
    client.close()
    assert len(waits) == 2 and 0.5 < waits[0] <= 1 and 1 < waits[1] <= 2


@pytest.mark.parametrize("url", ["http://data.example.com", "ftp://x", "data", ""])
def test_credentials_go_nowhere_in_the_clear(url):
    with pytest.raises(ConfigError, match="https"):
        Client(url, "k", "s")


# ---------------------------------------------------------------- the local exchange, a process

@pytest.fixture(scope="module")
def venue(tmp_path_factory):
    with server.spawn("--symbols", "AAPL,MSFT", "--rate-limit", "0", "--rate", "2000",
                      "--state", str(tmp_path_factory.mktemp("venue"))) as (_, found):
        rest = Rest(found["rest"], found["key"], found["secret"])
        query = "/v2/stocks/trades?symbols=AAPL,MSFT&start=2020-01-01&limit=10000"
        until(lambda: len(rest.request("GET", query)[1]) > 200_000, "enough trades")
        rest.close()
        yield found


def arguments(venue, out, kind="trades", *more):
    return ("data", "download", kind, "--symbols", "AAPL,MSFT", "--start", "2020-01-01",
            "--end", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "--url", venue["rest"],
            "--per-minute", "0", "--out", out, "--set", "profile=paper", *more)


def environment(venue):
    return {"ALPACA_API_KEY": venue["key"], "ALPACA_SECRET_KEY": venue["secret"]}


@pytest.mark.parametrize("kind", ["bars", "trades", "quotes"])
def test_the_local_exchange(tmp_path, venue, kind):
    code, out, err = hp(*arguments(venue, tmp_path, kind, "-o", "json"), env=environment(venue))
    assert code == 0, err
    said = json.loads(out)
    assert said["complete"] and said["kind"] == kind and said["rows"] > 0
    (data,) = find(tmp_path)
    found = rows_of(data)
    assert len(found) == said["rows"] and {r["symbol"] for r in found} <= {"AAPL", "MSFT"}
    assert data.verify()[0] == []
    prices = {"bars": ("open", "high", "low", "close"), "trades": ("price",),
              "quotes": ("bid", "ask")}[kind]
    assert all(isinstance(r[p], int) and r[p] % 10**7 == 0 for r in found for p in prices)
    assert hp("data", "verify", "--out", tmp_path)[0] == 0


def test_killed_at_any_moment_it_goes_on(tmp_path, venue):
    """Not a row is lost or doubled, whenever the process ended."""
    argv = [sys.executable, "-m", "hftpipe", *map(str, arguments(venue, tmp_path, "quotes"))]
    env = {**os.environ, **environment(venue)}
    kills = 0
    for n in range(40):
        process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        before = len(list(tmp_path.glob("*/part-*")))
        while process.poll() is None and len(list(tmp_path.glob("*/part-*"))) <= before + n % 2:
            assert time.monotonic() < end
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
    assert kills >= 1
    (data,) = find(tmp_path)
    assert data.complete and data.verify()[0] == []
    again = tmp_path / "again"
    once = [again if a == str(tmp_path) else a for a in argv[3:]]
    assert hp(*once, env=environment(venue))[0] == 0
    (whole,) = find(again)
    assert rows_of(data) == rows_of(whole)


# ---------------------------------------------------------------- datasets

def columns(times, ids):
    n = len(times)
    return {"symbol": ["A"] * n, "ts": list(times), "price": [NANO] * n, "qty": [NANO] * n,
            "id": list(ids), "exchange": [""] * n, "conditions": [""] * n, "update": [""] * n}


def trades(path, times=(10, 20, 30), ids=("a", "b", "c")):
    data = Dataset(path, "trades", {"symbols": ["A"]})
    with data.held():
        data.add("A", columns(times, ids))
        data.complete = True
        data.commit()
    return data


def test_what_is_wrong_with_a_dataset_is_found(tmp_path):
    good = trades(tmp_path / "good")
    assert good.verify() == ([], [])
    back = trades(tmp_path / "back", times=(10, 30, 20))
    assert "row 3: A goes back in time, 20 after 30" in back.verify()[0][0]
    twice = trades(tmp_path / "twice", times=(10, 20, 20), ids=("a", "b", "b"))
    assert "row 3: trade b of A stands there twice" in twice.verify()[0][0]
    with Dataset(tmp_path / "again", "trades", {"symbols": ["A"]}).held() as again:
        for times, ids in (((10, 20), ("a", "b")), ((20, 30), ("b", "c"))):     # a page, once more
            again.add("A", columns(times, ids))
        again.complete = True
        again.commit()
    assert "part-000002.parquet row 1: trade b of A stands there twice" in again.verify()[0][0]
    changed = trades(tmp_path / "changed")
    (changed.path / changed.parts[0].file).write_bytes(b"x")
    assert "SHA-256" in changed.verify()[0][0]
    gone = trades(tmp_path / "gone")
    (gone.path / gone.parts[0].file).unlink()
    assert "is missing" in gone.verify()[0][0]
    code, out, _ = hp("data", "verify", "--out", tmp_path, "-o", "json")
    assert code == 9
    assert {d["name"]: bool(d["wrong"]) for d in json.loads(out)} == {
        "good": False, "back": True, "twice": True, "again": True, "changed": True,
        "gone": True}
    code, out, _ = hp("data", "ls", "--out", tmp_path)
    assert code == 0 and len(out.splitlines()) == 6


def test_minute_bars_say_where_they_have_gaps(tmp_path):
    data = Dataset(tmp_path / "d", "bars", {"symbols": ["A"], "timeframe": "1Min"})
    minute = 60 * NANO
    with data.held():
        times = [0, minute, 3 * minute, 300 * minute]
        data.add("A", {"symbol": ["A"] * 4, "ts": times, **{
            name: [1] * 4 for name in tables.COLUMNS["bars"] if name not in ("symbol", "ts")}})
        data.commit()
    wrong, notes = data.verify()
    assert not wrong and "not complete" in notes[0] and "1 gaps" in notes[1]


def test_two_writers_another_request_and_strangers_are_refused(tmp_path):
    data = trades(tmp_path / "d")
    with data.held(), pytest.raises(BusyError, match="another process"):
        with Dataset(data.path, "trades", data.request).held():
            pass
    with pytest.raises(ConfigError, match="another request"):
        with Dataset(data.path, "trades", {"symbols": ["B"]}).held():
            pass
    (data.path / "part-000009.parquet").write_bytes(b"left by a killed process")
    with Dataset(data.path, "trades", data.request).held():
        assert not (data.path / "part-000009.parquet").exists()
    (data.path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"found thesis\.txt"):
        with Dataset(data.path, "trades", data.request).held():
            pass
    assert (data.path / "thesis.txt").exists()
    (data.path / MANIFEST).write_text("{")
    with pytest.raises(ConfigError, match="wanted a manifest"):
        Dataset.load(data.path)


# ---------------------------------------------------------------- files of other people

@needs_data
@pytest.mark.parametrize("folder", ["itch", "lobster", "binance", "coinbase", "kraken"])
def test_whatever_the_backtest_reads(tmp_path, folder):
    path = next(p for p in sorted((DATA / folder).rglob("*")) if p.is_file() and reads(p))
    data = convert.convert([path], tmp_path / "d", convert.recordings, {})
    wanted = sum(len(records) for records in open_recording(path))
    assert data.rows == wanted > 0 and data.kind == "market"
    first = next(iter(open_recording(path)))[0]
    row = tables.read(data.path / data.parts[0].file)[1].slice(0, 1).to_pylist()[0]
    assert {k: row[k] for k in ("price", "qty", "kind", "ts_recv")} == {
        k: int(first[k]) for k in ("price", "qty", "kind", "ts_recv")}


def reads(path):
    try:
        open_recording(path)
        return path.stat().st_size < 30_000_000
    except DataError:
        return False


def test_a_recording_of_ours(tmp_path):
    path = sorted((ROOT / "tests/golden").glob("*.rec"))[-1]
    code, out, err = hp("data", "import", "recording", path, "--out", tmp_path, "-o", "json")
    if code == 0:
        assert json.loads(out)["kind"] == "market"
    else:                               # a golden file is no market: one line says so
        assert code == 4 and err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []


CSV = "when,px,size,sym\n2026-01-05T14:30:00.000000001Z,10.25,3,ACME\n" \
      "2026-01-05T14:30:01Z,10.26,0.5,ACME\n"
OPTIONS = ("--table", "trades", "--time", "iso", "--column", "ts=when", "--column", "price=px",
           "--column", "qty=size", "--column", "symbol=sym")


def test_csv(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text(CSV)
    code, out, err = hp("data", "import", "csv", file, *OPTIONS, "--out", tmp_path / "out",
                        "--name", "mine", "-o", "json")
    assert code == 0, err
    assert json.loads(out)["name"] == "mine"
    found = rows_of(Dataset.load(tmp_path / "out/mine"))
    assert [(r["ts"], r["price"], r["qty"], r["symbol"], r["id"]) for r in found] == [
        (1_767_623_400_000_000_001, 10_250_000_000, 3 * NANO, "ACME", ""),
        (1_767_623_401_000_000_000, 10_260_000_000, NANO // 2, "ACME", "")]
    code, _, err = hp("data", "import", "csv", file, *OPTIONS, "--out", tmp_path / "out",
                      "--name", "mine")
    assert code == 4 and "wanted a new dataset" in err


@pytest.mark.parametrize(("change", "text"), [
    (("10.26", "ten"), "line 3: px must be a number, was 'ten'"),
    (("10.26", "1.0000000001"), "line 3: px must be a number"),
    (("10.26", "NaN"), "line 3: px must be a number"), (("10.26", "inf"), "px must be a number"),
    (("10.26", "99999999999"), "px must be a number"),
    (("14:30:01Z", "half past"), "line 3: when must be a time"),
    ((",0.5,ACME", ""), "line 3: wanted 4 cells, found fewer"),
    (("px", "paid"), "line 1: wanted a column for price"),
    (("ACME", "AC\udce9ME"), "wanted CSV in UTF-8")])
def test_a_malformed_row_is_named_and_leaves_nothing(tmp_path, change, text):
    file = tmp_path / "a.csv"
    file.write_bytes(CSV.replace(*change).encode("utf-8", "surrogateescape"))
    out = tmp_path / "out"
    code, _, err = hp("data", "import", "csv", file, *OPTIONS, "--out", out)
    assert code == 4 and text in err and err.count("\n") == 1
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(("arguments", "code", "text"), [
    (("import", "csv", "x.csv"), 2, "--table"),
    (("import", "csv", "x.csv", "--table", "trades", "--column", "ts"), 2, "OURS=THEIRS"),
    (("import", "csv", "x.csv", "--table", "trades", "--column", "when=ts"), 2, "column must be"),
    (("import", "dbn", "x.dbn", "--table", "trades"), 2, "are of csv"),
    (("import", "dbn", "absent.dbn"), 4, "absent.dbn: wanted a readable file"),
    (("import", "recording", "absent.bin"), 4, "absent.bin"),
    (("import", "csv", "absent.csv", "--table", "bars"), 4, "absent.csv: wanted a readable file"),
    (("ls", "--out", "absent"), 4, "wanted a directory of datasets"),
    (("verify", "nothing"), 4, "wanted a dataset"),
    (("download", "bars", "--symbols", "A,A", "--start", "2026-01-01", "--end", "2026-01-02"), 2,
     "different names"),
    (("download", "bars", "--symbols", "A", "--start", "2026-01-03", "--end", "2026-01-02"), 2,
     "must not be before"),
    (("download", "bars", "--symbols", "A", "--start", "soon", "--end", "2026-01-02"), 2,
     "--start must be a date"),
    (("download", "bars", "--symbols", "A", "--start", "2026-01-01", "--end", "2026-01-02",
      "--url", "http://example.com"), 4, "https")])
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    found, _, err = hp("data", *arguments, env={"ALPACA_API_KEY": "k", "ALPACA_SECRET_KEY": "s",
                                                "PYTHONPATH": str(ROOT / "build/view")})
    assert found == code and text in err and err.count("\n") <= 3


def test_databento(tmp_path):
    import databento_dbn as db
    ts = 1_767_623_400_000_000_001
    day = datetime.date(2026, 1, 5)
    mapping = SimpleNamespace(raw_symbol="ACME", intervals=[SimpleNamespace(
        start_date=day, end_date=day + datetime.timedelta(1), symbol="7")])
    meta = db.Metadata("XNAS.ITCH", ts, db.SType.RAW_SYMBOL, db.SType.INSTRUMENT_ID,
                       db.Schema.TRADES, ["ACME"], [], [], [mapping], ts + 10)
    trade = db.TradeMsg(2, 7, ts, 10_250_000_000, 3, db.Action.TRADE, db.Side.ASK, 0, ts + 1)
    path = tmp_path / "a.dbn"
    path.write_bytes(bytes(meta.encode()) + bytes(trade))
    data = convert.convert([path], tmp_path / "d", convert.dbn, {})
    (row,) = rows_of(data)
    assert (row["ts"], row["price"], row["qty"], row["symbol"]) == (
        ts, 10_250_000_000, 3 * NANO, "ACME")
    path.write_bytes(b"not DBN at all, whatever its name says")
    with pytest.raises(DataError, match=r"a\.dbn: wanted DBN"):
        convert.convert([path], tmp_path / "e", convert.dbn, {})


def test_market_columns_are_those_of_the_record():
    fields = {f.name for f in schema.MARKET.fields}
    assert set(tables.COLUMNS["market"]) - {"symbol"} <= fields
