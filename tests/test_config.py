"""What a file says arrives exactly or not at all, and every refusal names its place."""
import dataclasses
import os
import pickle
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hftpipe import config, schema
from hftpipe.config import load, loads, locate
from hftpipe.errors import ConfigError, Exit, GuardError
from hftpipe.limits import parse_limits
from hftpipe.secret import Secret

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "conf/hftpipe.toml"


def refused(source, **options) -> str:
    with pytest.raises(ConfigError) as e:
        loads(source, "f.toml", **options)
    assert "\n" not in str(e.value)
    return str(e.value)


# ---------------------------------------------------------------- defaults and documents

def test_an_empty_file_and_the_shipped_one_are_the_same_configuration():
    assert loads(SHIPPED.read_text(), "conf/hftpipe.toml") == loads("")
    assert loads("").profile == "demo" and loads("").venue.kind == "local"


def test_the_shipped_file_has_every_key_under_a_paragraph():
    text = SHIPPED.read_text()
    table, seen, previous = "", set(), ""
    for line in text.splitlines():
        if header := re.match(r"\[+([\w.]+)\]+", line):
            seen.add(header[1])
            if not table or (header[1] != table and not header[1].startswith(table + ".")):
                assert header[1] == "instruments" or previous.startswith("#") or not previous
            table = header[1]
        elif key := re.match(r"(?:# )?([a-z0-9_]+) = ", line):
            name = f"{table}.{key[1]}".lstrip(".")
            if name not in seen:
                assert previous.startswith("#"), f"{name} has no paragraph"
            seen.add(name)
        previous = line
    assert {name for _, rows, _ in config.declared() for name, *_ in rows} - seen == set()


def test_the_document_ends_with_the_reference_of_all_keys():
    text = (ROOT / "docs/operate/configuration.md").read_text()
    _, mark, found = text.partition("## All keys\n\n")
    assert mark and found == config.reference(), "paste config.reference() after '## All keys'"


# ---------------------------------------------------------------- round trips

amounts = st.decimals("0.000000001", "1000000", places=9)
names = st.from_regex(r"[a-z][a-z0-9_]{0,30}", fullmatch=True)
symbols = st.from_regex(r"[A-Z0-9][A-Z0-9./-]{0,14}", fullmatch=True)
durations = st.integers(10**6, 3600 * 10**9)


def nano(d: Decimal) -> int:
    return int(d.scaleb(9))


@given(st.data())
def test_a_configuration_survives_being_written_and_read(data):
    draw = data.draw
    base = loads("")
    instruments = tuple(
        config.Instrument(symbol, nano(draw(amounts)), lot := nano(draw(amounts)), lot,
                          nano(draw(amounts)), draw(st.booleans()), draw(st.booleans()))
        for symbol in draw(st.lists(symbols, min_size=1, max_size=4, unique=True)))
    strategies = tuple(
        config.Strategy(name, "python", "a.b:C", params=draw(st.dictionaries(
            st.text(min_size=1), st.one_of(st.integers(-2**63, 2**63 - 1), st.booleans(), st.text(),
                                           st.floats(allow_nan=False, allow_infinity=False)),
            max_size=4)))
        for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)))
    made = dataclasses.replace(
        base, instruments=instruments, strategy=strategies,
        risk={**base.risk, "max_daily_loss": config.decimal_text("0").read(draw(amounts)),
              "max_data_age_ms": draw(st.integers(1, 86_400_000)),
              "price_collar_bps": draw(st.integers(1, 10_000))},
        gateway=config.Gateway(draw(st.integers(1, 16)), draw(st.integers(1, 10**6)),
                               draw(durations), draw(st.integers(10**7, 600 * 10**9))),
        layout=dataclasses.replace(base.layout, capacity={"feed.book": 2**draw(st.integers(3, 24))},
                                   pin={"risk": draw(st.integers(0, 9))}),
        venue=dataclasses.replace(base.venue, key=Secret("env:A|file:/b c")))
    again = loads(made.dump(), "dump")
    assert again == made
    assert again.digest == made.digest


@given(st.decimals("0.000000001", "9000000000", places=9))
def test_money_is_exact(value):
    text = f"{value:f}"
    for source in (f"[risk]\nmax_daily_loss = {text}", f"[risk]\nmax_daily_loss = '{text}'"):
        limits = loads(source).risk
        assert Decimal(limits["max_daily_loss"]) == value
        assert parse_limits(limits)["max_daily_loss"] == nano(value)


@pytest.mark.parametrize(("text", "ns"), [
    ("2s", 2 * 10**9), ("250ms", 25 * 10**7), ("1.5 s", 15 * 10**8), ("2min", 12 * 10**10),
    ("1h", 36 * 10**11), ("1000000ns", 10**6), ("1000us", 10**6)])
def test_times_carry_their_unit(text, ns):
    assert loads(f"[gateway]\nmax_age = '{text}'").gateway.max_age == ns


@pytest.mark.parametrize(("value", "per_minute"), [("'150/min'", 150), ("'3/s'", 180), ("7", 7)])
def test_rates_are_per_minute(value, per_minute):
    assert loads(f"[gateway]\nrate_per_minute = {value}").gateway.rate_per_minute == per_minute


@pytest.mark.parametrize(("value", "bp"), [("'5bp'", 5), ("'0.5%'", 50), ("12", 12)])
def test_shares_are_basis_points(value, bp):
    assert loads(f"[risk]\nprice_collar_bps = {value}").risk["price_collar_bps"] == bp


# ---------------------------------------------------------------- refusals

@pytest.mark.parametrize(("source", "message"), [
    ("\n[risk]\n# x\nmax_dayly_loss = 3",
     "f.toml:4: unknown key risk.max_dayly_loss; did you mean max_daily_loss?"),
    ("qwertz = 3", "f.toml:1: unknown key qwertz"),
    ("\n\nprofle = 'demo'", "f.toml:3: unknown key profle; did you mean profile?"),
    ("[rsk]\nx = 1", "f.toml:2: unknown key rsk; did you mean risk?"),
    ("[risk]\nmax_daily_loss = -5", "f.toml:2: risk.max_daily_loss must be a number from "
     '0.000000001 to 9000000000 with at most nine decimals, or "off: <why>", was -5'),
    ("[risk]\nmax_daily_loss = 0.0000000001",
     'with at most nine decimals, or "off: <why>", was 1E-10'),
    ("[risk]\nmax_daily_loss = nan", 'with at most nine decimals, or "off: <why>", was NaN'),
    ("[risk]\nmax_daily_loss = inf", "was Infinity"),
    ("[risk]\nmax_daily_loss = true", "was true"),
    ("[risk]\nmax_daily_loss = 1e400", "was 1E+400"),
    ("[risk]\nmax_data_age_ms = '1us'", "f.toml:2: risk.max_data_age_ms must be whole milliseconds "
     'from 1 to 86400000, or a time such as "30s", was "1us"'),
    ("[gateway]\ntimeout = 5", "f.toml:2: gateway.timeout must be a time from "
     '"10ms" to "10min" with its unit (ns us ms s min h), was 5'),
    ("[risk]\nmax_order_shares = 2000", "f.toml:2: risk.max_order_shares: wanted at most "
     "max_position_shares = 1000, found 2000"),
    ("[gateway]\nmax_age = '2 parsecs'", 'was "2 parsecs"'),
    ("[gateway]\nconnections = 0", "f.toml:2: gateway.connections must be a whole number from 1 "
     "to 16, was 0"),
    ("[gateway]\nconnections = 2.0", "was 2.0"),
    ("[gateway]\nconnections = true", "was true"),
    ("gateway = 3", "f.toml:1: gateway must be a table, was 3"),
    ("[gateway.connections]\na = 1", "f.toml:2: gateway.connections must be a whole number from 1 "
     "to 16, was a table"),
    ("profile = 'prod'", 'f.toml:1: profile must be one of "demo", "paper", "live", was "prod"'),
    ("version = 2", "f.toml:1: version must be a whole number from 1 to 1, was 2"),
    ("a =", "f.toml:1: not TOML: Invalid value"),
    ("x = 1\ny = 2\nx = 3", "f.toml:3: not TOML: Cannot overwrite a value"),
    ("[[instruments]]\nsymbol = 'A'\n[[instruments]]\nsymbol = 'A'",
     'f.toml:4: instruments: symbol "A" stands twice'),
    ("[[instruments]]\ntick = 1", "f.toml:2: instruments.0 needs symbol, found none"),
    ("[[instruments]]\nsymbol = 'abc'", 'f.toml:2: instruments.0.symbol must be 1 to 15 capital'),
    ("[[instruments]]\nsymbol = 'A'\n[[instruments]]\nsymbol = 'B'\nlot = 5",
     "f.toml:4: instruments.1.min_qty must be at least lot 5, was 1"),
    ("instruments = []", "instruments must hold at least one, found none"),
    ("instruments = 4", "f.toml:1: instruments must be tables [[instruments]], was 4"),
    ("[instruments]\nsymbol = 'A'", "f.toml:2: instruments must be tables [[instruments]], "
     "was a table"),
    ("[[strategy]]\nname = 'm'\nkind = 'onnx'\nparams = {model = ''}",
     "f.toml:4: strategy.0.params.model must name a model file, was empty"),
    ("[[strategy]]\nname = 'm'\nkind = 'imbalance'\n[strategy.params]\nthreshold = 1.5",
     "f.toml:5: strategy.0.params.threshold must be a number from 0 to 1, was 1.5"),
    ("[[strategy]]\nname = 'm'\n[strategy.params]\ntreshold = 0.5",
     "f.toml:4: unknown key strategy.0.params.treshold; did you mean threshold?"),
    ("[[strategy]]\nname = 'm'\nkind = 'python'\nentry = 'x'",
     'f.toml:4: strategy.0.entry must be "package.module:Class", was "x"'),
    ("[[strategy]]\nname = 'm'\nsymbols = ['TSLA']",
     "f.toml:3: strategy.0.symbols names TSLA, which is none of instruments AAPL, MSFT"),
    ("[layout.capacity]\nfeed.book = 100",
     "f.toml:2: layout.capacity.feed.book must be a power of two from 8 to 16777216, was 100"),
    ("[observe]\nprometheus = '0.0.0.0:1'", 'f.toml:2: observe.prometheus must be "host:port" with '
     "a loopback host"),
    ("[observe]\nprometheus = '127.0.0.1:99999'", 'was "127.0.0.1:99999"'),
    ("[venue]\nrest = 'ftp://a'", "f.toml:2: venue.rest must be a URL starting with https://"),
    ("[venue]\nrest = 'https://user:pw@a'", "without user or password"),
    ("profile = 'paper'\n[venue]\nrest = 'http://example.com'",
     'f.toml:3: venue.rest must start with https://, was "http://example.com"'),
    ("profile = 'paper'\n[venue]\nrest = 'https://api.alpaca.markets'",
     "f.toml:3: venue.rest is the live account's host, profile is paper"),
    ("profile = 'live'\n[venue]\nkind = 'local'", 'must be "alpaca" in profile live, was "local"'),
    ("profile = 'live'\n[venue]\ndata_stream = 'ws://127.0.0.1/x'",
     'venue.data_stream must start with wss://, was "ws://127.0.0.1/x"'),
    ("profile = 'live'\n[venue]\nrest = 'https://alpaca.markets.example.com'",
     "venue.rest must be a host of alpaca.markets in profile live"),
    ("[venue]\nrest = 'https://user:p@w/@a/b'", 'was "https://...@a/b"'),
    ("[store]\nurl = 'mysql://user:pw@x/db'", 'was "mysql://...@x/db"'),
    ("[store]\nurl = 'mysql://x'", 'store.url must be "embedded" or "postgresql://..."'),
])
def test_a_refusal_says_where_what_was_wanted_and_what_was_found(source, message):
    found = refused(source)
    assert message in found
    assert found.startswith("f.toml:") or message.startswith("instruments must")


def test_the_paper_account_may_be_a_venue_on_this_machine():
    c = loads("profile='paper'\n[venue]\nrest='http://127.0.0.1:8000'\n"
              "data_stream='ws://localhost:1/x'\nupdates_stream='ws://[::1]:1/x'")
    assert c.venue.kind == "alpaca"


keys = st.lists(st.from_regex(r"[a-z]{1,8}", fullmatch=True), min_size=1, max_size=30, unique=True)
values = st.sampled_from([
    "1", "'x'", '"a # b"', "[1, 2]", "[\n 1, # ]\n 2,\n]", '"""\nx\n"y" = 1\n"""', "{a = 1}",
    "'''\n[not]\n'''", '"\\""', "2024-01-01", "[{a = 'b]'}]"])


@given(keys, st.data())
def test_every_key_is_found_on_its_line(found, data):
    lines, expected = [], {}
    for name in found:
        lines += ["" if data.draw(st.booleans()) else "  # c = 1"] * data.draw(st.integers(0, 2))
        expected[(name,)] = "\n".join([*lines, ""]).count("\n") + 1
        lines.append(f"{name} = {data.draw(values)}  # {name}")
    source = "\n".join(lines)
    assert {k: v for k, v in locate(source).items() if len(k) == 1} == expected


def test_tables_and_arrays_of_tables_are_located():
    source = "[a.b]\nc = 1\n[[d]]\ne.f = 2\n[[d]]\n[d.g]\n'h i' = 3\n"
    lines = locate(source)
    assert lines[("a", "b", "c")] == 2
    assert lines[("d", 0, "e", "f")] == 4
    assert lines[("d", 1)] == 5
    assert lines[("d", 1, "g", "h i")] == 7


# ---------------------------------------------------------------- precedence

def test_later_wins_and_origin_says_who_spoke():
    source = "[risk]\nmax_daily_loss = 1\nmax_open_positions = 2\nmax_order_shares = 3\n"
    c = loads(source, "f.toml", env={"HFTPIPE__RISK__MAX_OPEN_POSITIONS": "4",
                                     "HFTPIPE__RISK__MAX_ORDER_SHARES": "5",
                                     "HFTPIPE_RUN_DIR": "/x"},
              sets=["risk.max_order_shares=6.5"])
    assert c.risk["max_daily_loss"] == 1
    assert c.risk["max_open_positions"] == 4
    assert c.risk["max_order_shares"] == "6.5"
    assert c.origin["risk.max_daily_loss"] == "f.toml:2"
    assert c.origin["risk.max_open_positions"] == "env HFTPIPE__RISK__MAX_OPEN_POSITIONS"
    assert c.origin["risk.max_order_shares"] == "--set"
    assert c.origin["risk.max_order_notional"] == "default"
    assert c.origin["venue.kind"] == "profile demo"


def test_the_environment_reaches_every_kind():
    c = loads("", env={
        "HFTPIPE__LIVE": "true", "HFTPIPE__LAYOUT__CORES": "0-1", "HFTPIPE__LAYOUT__SPIN": "false",
        "HFTPIPE__LAYOUT__CAPACITY__FEED__BOOK": "64", "HFTPIPE__GATEWAY__MAX_AGE": "2s",
        "HFTPIPE__RISK__PRICE_COLLAR_BPS": "7bp",
        "HFTPIPE__RISK__MAX_ORDERS_PER_MINUTE": "30",
        "HFTPIPE__STRATEGY__IMBALANCE__PARAMS__THRESHOLD": "0.25",
        "HFTPIPE__INSTRUMENTS__AAPL__TICK": "0.05", "HFTPIPE__INSTRUMENTS__1__LOT": "0.5"})
    assert c.live and not c.layout.spin and c.layout.cores == "0-1"
    assert c.layout.capacity == {"feed.book": 64}
    assert c.gateway.max_age == 2 * 10**9
    assert (c.risk["price_collar_bps"], c.risk["max_orders_per_minute"]) == (7, 30)
    assert c.strategy[0].params["threshold"] == 0.25
    assert [i.tick for i in c.instruments] == [5 * 10**7, 10**7]
    assert c.instruments[1].lot == 5 * 10**8


def test_an_authors_parameters_keep_their_types():
    c = loads("[[strategy]]\nname='m'\nkind='python'\nentry='a:B'\n"
              "params={x=1, y=0.5, z='s', w=[1, 2], v={u=true}}",
              sets=["strategy.m.params.x=7", "strategy.m.params.t=hello"])
    assert c.strategy[0].params == {"x": 7, "y": 0.5, "z": "s", "w": (1, 2), "v": {"u": True},
                                    "t": "hello"} or dict(c.strategy[0].params)["w"] == [1, 2]
    assert isinstance(c.strategy[0].params["y"], float)


@pytest.mark.parametrize(("options", "message"), [
    (dict(env={"HFTPIPE__RISK__FOO": "1"}), "HFTPIPE__RISK__FOO: unknown key risk.foo"),
    (dict(env={"HFTPIPE__GATEWAY__CONNECTIONS": "x"}), "HFTPIPE__GATEWAY__CONNECTIONS: "
     'gateway.connections must be a whole number from 1 to 16, was "x"'),
    (dict(sets=["risk"]), '--set must be key=value, was "risk"'),
    (dict(sets=["risk.max_daly_loss=1"]),
     "--set: unknown key risk.max_daly_loss; did you mean max_daily_loss?"),
    (dict(sets=["instruments.tsla.tick=1"]), "--set: instruments.tsla.tick: instruments has "
     "AAPL, MSFT, was tsla"),
    (dict(sets=["instruments.aapl=1"]), "must name a key of one element"),
    (dict(sets=["profile.x=1"]), "--set: profile must be one of"),
    (dict(sets=["risk=3"]), "--set: risk must be a table, was \"3\""),
])
def test_environment_and_set_are_as_strict_as_the_file(options, message):
    assert message in refused("", **options)


def test_the_file_is_found(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("HFTPIPE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    assert load().path is None
    (tmp_path / "hftpipe.toml").write_text("[gateway]\nconnections = 3\n")
    assert load().gateway.connections == 3
    (tmp_path / "b.toml").write_bytes(b"[gateway]\r\nconnections = 5\r\n")
    monkeypatch.setenv("HFTPIPE_CONFIG", str(tmp_path / "b.toml"))
    assert load().gateway.connections == 5
    assert load(tmp_path / "hftpipe.toml").path == tmp_path / "hftpipe.toml"
    with pytest.raises(ConfigError, match=r"configuration .*nope: No such file"):
        load(tmp_path / "nope")
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
        load(tmp_path / "bad.toml")


# ---------------------------------------------------------------- secrets

def test_a_literal_credential_is_refused_and_not_repeated():
    message = refused("[venue]\nkey = 'PKTOPSECRET'")
    assert "f.toml:2: venue.key must be a reference such as" in message
    assert "PKTOPSECRET" not in message
    assert "PKTOPSECRET" not in refused("", env={"HFTPIPE__VENUE__KEY": "PKTOPSECRET"})


def test_a_secret_shows_itself_nowhere():
    s = Secret.literal("canary")
    for shown in (repr(s), str(s), f"{s}", f"{s:>20}", repr(dataclasses.replace(
            config.Venue(), secret=s)), f"{s!s} {s!r}"):
        assert "canary" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(s)
    with pytest.raises(ConfigError) as e:
        dataclasses.replace(loads(""), venue=dataclasses.replace(config.Venue(), key=s)).dump()
    assert "canary" not in str(e.value)
    assert s.reveal() == "canary"


def test_references_are_read_when_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("HP_TEST_KEY", "one")
    assert Secret("env:HP_TEST_KEY").reveal() == "one"
    file = tmp_path / "key"
    assert Secret(f"file:{file}|env:HP_TEST_KEY").reveal() == "one"
    file.write_text("two\n")
    with pytest.raises(ConfigError, match="mode 0600, was uid"):
        file.chmod(0o644)
        Secret(f"file:{file}").reveal()
    file.chmod(0o600)
    assert Secret(f"file:{file}|env:HP_TEST_KEY").reveal() == "two"
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(ConfigError, match="credential file"):
        Secret(f"file:{tmp_path / 'link'}").reveal()
    with pytest.raises(ConfigError, match=r"env:NOPE_A and env:NOPE_B must hold one"):
        Secret("env:NOPE_A|env:NOPE_B").reveal()


# ---------------------------------------------------------------- profiles and the guard

LIVE = "profile='live'\nlive=true\n[venue]\nkey='env:K'\nsecret='env:S'\n"


def test_a_profile_fills_in_its_venue():
    paper = loads("profile = 'paper'").venue
    assert paper.rest == "https://paper-api.alpaca.markets"
    assert paper.updates_stream == "wss://paper-api.alpaca.markets/stream"
    assert paper.data_stream == "wss://stream.data.alpaca.markets/v2/iex"
    assert paper.key.reference == "env:ALPACA_API_KEY|env:APCA_API_KEY_ID"
    live = loads(LIVE).venue
    assert live.rest == "https://api.alpaca.markets"
    assert live.key.reference == "env:K"
    assert not loads("profile='live'").venue.key


def test_live_needs_three_consents():
    config.guard(loads(LIVE), live=True)
    config.guard(loads(""), live=False)
    for source, live, message in (
            (LIVE, False, "needs --live"),
            (LIVE.replace("live=true\n", ""), True, "needs `live = true`"),
            (LIVE.replace("key='env:K'\n", ""), True, "needs venue.key and venue.secret"),
            ("", True, "--live needs profile live, was demo")):
        with pytest.raises(GuardError, match=message) as e:
            config.guard(loads(source), live)
        assert e.value.exit_code is Exit.REFUSED


# ---------------------------------------------------------------- places

def test_resources_are_found_in_a_checkout():
    assert (config.resources("conf") / "hftpipe.toml").samefile(SHIPPED)
    assert config.resources("sql").is_dir()
    with pytest.raises(ConfigError, match="installation is incomplete"):
        config.resources("nonsense")


def test_a_model_is_looked_for_beside_the_configuration(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/m.onnx").write_bytes(b"x")
    assert config.model_path("m.onnx", tmp_path / "c") == tmp_path / "c/m.onnx"
    with pytest.raises(ConfigError, match=r"model no\.onnx: no such file in"):
        config.model_path("no.onnx")


# ---------------------------------------------------------------- features

@pytest.mark.parametrize(("text", "names"), [
    ("", schema.FEATURE_SETS["default"]), ('set = "book"', schema.FEATURE_SETS["book"]),
    ('set = ["rsi14", "arrival"]', ("rsi14", "arrival"))])
def test_a_feature_set_is_a_name_or_a_list(text, names):
    made = loads(f"[features]\n{text}\nbar = \"5min\"")
    assert made.features.names == names
    assert made.features.window == ("" if names == schema.FEATURE_SETS["book"] else "5min")
    assert loads(made.dump()).features == made.features
    assert loads("", sets=[f"features.set={','.join(names)}"]).features.names == names


@pytest.mark.parametrize(("text", "message"), [
    ('set = "defualt"', "a:2: features.set: wanted a set of features, found 'defualt': did you "
     "mean 'default'?"),
    ('set = ["rsi41"]', "a:2: features.set: wanted a feature, found 'rsi41': did you mean "
     "'rsi14'?"),
    ('set = ["mid", "mid"]', "a:2: features.set: wanted each feature once, found 'mid' twice"),
    ("set = []", "a:2: features.set: wanted at least one feature, found none"),
    ("set = 3", 'a:2: features.set must be one of "book", "classic", "default", "all", or a list '
     "of features, was 3"),
    ('bar = "2min"', 'a:2: features.bar must be one of "1s", "5s", "15s", "30s", "1min", "5min", '
     '"15min", "30min", "1h", "4h", "1d", was "2min"')])
def test_features_that_are_not_are_refused(text, message):
    with pytest.raises(ConfigError) as caught:
        loads(f"[features]\n{text}", "a")
    assert str(caught.value) == message
