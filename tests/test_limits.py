"""Every limit is declared once, is exact, and says what is wrong with it."""
import pytest

from hftpipe import limits, schema
from hftpipe.config import loads, risk_keys
from hftpipe.errors import ConfigError
from hftpipe.limits import BY_NAME, LIMITS, OFF, default_limits, off_reason, parse_limits

NANO = 10**9


def test_defaults_are_valid_and_exact():
    number = parse_limits(default_limits())
    assert number["max_daily_loss"] == 5000 * NANO and number["price_collar_bps"] == 50
    assert list(number) == [limit.name for limit in LIMITS]
    assert number["max_correlation"] == 7 * 10**8 and number["max_leverage"] == NANO
    number = parse_limits({**default_limits(), "max_order_notional": "150.1",
                           "max_order_shares": "999.000000001"})
    assert (number["max_order_notional"], number["max_order_shares"]) == (
        150 * NANO + 10**8, 999 * NANO + 1)


def test_the_table_is_the_enumeration():
    assert [(x.name.upper(), x.number, x.doc) for x in LIMITS] == list(schema.LIMIT.members)
    reasons = {name.lower() for name, _, _ in schema.REASON.members}
    kinds = {name.lower() for name, _, _ in schema.FIGURE_KIND.members}
    for limit in LIMITS:
        assert limit.doc.endswith(".") and limit.unit in limits.UNITS
        assert not limit.reason or limit.reason in reasons
        assert set(limit.needs) <= kinds
        assert limit.tighter in ("down", "up") and limit.low <= limit.high
    for small, large in limits.NOT_ABOVE:
        assert BY_NAME[small].unit == BY_NAME[large].unit


#: As the requirements have them (recommended values; a contradiction's reading wins).
REQUIRED = {
    "max_order_shares": 1000, "max_order_notional": 10000, "min_price": "0.01",
    "max_price": 10000, "max_position_shares": 1000, "max_position_notional": 10000,
    "max_total_notional": 50000, "max_open_positions": 5, "max_daily_loss": 5000,
    "max_trade_loss": 500, "max_weekly_loss": 15000, "max_monthly_loss": 50000,
    "max_var_99": 10000, "max_var_95": 5000, "max_sector_share_bps": 3000,
    "max_symbol_share_bps": 2500, "drawdown_warn_bps": 300, "drawdown_act_bps": 500,
    "drawdown_halt_bps": 1000, "max_correlation": "0.7", "max_volatility_bps": 500,
    "base_volatility_bps": 200, "max_leverage": 1, "market_hours": True,
    "allow_premarket": False, "allow_afterhours": False, "max_orders_per_minute": 60,
    "max_orders_per_day": 50, "last_collar_bps": 1000, "price_collar_bps": 50,
    "max_order_volume_bps": 500, "max_spread_bps": 200, "min_order_notional": 100,
    "breaker_losses": 5, "breaker_failures": 5, "breaker_latency_ms": 200,
    "breaker_slow_ms": 30000, "breaker_cooldown_ms": 3600000, "breaker_daily_loss": 5000,
    "max_data_age_ms": 30000,
}


def test_the_defaults_are_those_of_the_requirements():
    assert {name: default_limits()[name] for name in REQUIRED} == REQUIRED


def test_only_what_says_why_is_off_and_by_default_hardly_anything():
    off = {name: off_reason(value) for name, value in default_limits().items()
           if off_reason(value)}
    assert list(off) == ["min_volume_ratio"]
    demo = default_limits("demo")
    for name, value in demo.items():
        assert value == default_limits()[name] or off_reason(value) \
            or (name, value) == ("min_order_notional", 10)
    assert not off_reason(demo["max_daily_loss"])


@pytest.mark.parametrize(("change", "message"), [
    ({"max_order_share": 5}, r"max_order_share: wanted a known limit.*nearest is max_order_shares"),
    ({"max_order_shares": None}, r"max_order_shares: wanted shares above 0 .*found None"),
    ({"max_order_shares": 1.5}, r"max_order_shares: .*decimal string.*found 1\.5"),
    ({"max_order_shares": True}, r"max_order_shares: .*found True"),
    ({"max_order_shares": -1}, r"max_order_shares: .*above 0.*found -1"),
    ({"max_order_shares": 0}, r"max_order_shares: .*found 0"),
    ({"max_daily_loss": "-5"}, r"max_daily_loss: .*found '-5'"),
    ({"max_daily_loss": "1e3"}, r"max_daily_loss: .*found '1e3'"),
    ({"max_daily_loss": "nan"}, r"max_daily_loss: .*found 'nan'"),
    ({"max_daily_loss": "0.0000000001"}, r"max_daily_loss: .*nine decimals.*found '0\.0000000001'"),
    ({"max_daily_loss": "9223372036.854775808"}, r"max_daily_loss: .*found '9223372036"),
    ({"max_daily_loss": " 5"}, r"max_daily_loss: .*found ' 5'"),
    ({"max_daily_loss": "5\n"}, r"max_daily_loss: .*found '5\\n'"),
    ({"max_daily_loss": "\u0665"}, r"max_daily_loss: "),
    ({"max_open_positions": "5"}, r"max_open_positions: wanted an integer.*found '5'"),
    ({"max_open_positions": 65537}, r"max_open_positions: .*from 1 to 65536.*found 65537"),
    ({"max_orders_per_minute": 1000001}, r"from 1 to 1000000, found 1000001"),
    ({"price_collar_bps": 10001}, r"price_collar_bps: .*from 1 to 10000, found 10001"),
    ({"price_collar_bps": 0}, r"price_collar_bps: .*found 0"),
    ({"allow_short": 1}, r"allow_short: wanted true or false, found 1"),
    ({"market_hours": False}, r"market_hours: wanted true or false.*or \"off: <why>\", found Fa"),
    ({"max_correlation": "1.1"}, r"max_correlation: .*from 0 to 1, or .*found '1\.1'"),
    ({"duplicate_window_ms": 60001}, r"duplicate_window_ms: .*from 1 to 60000.*found 60001"),
    ({"max_order_shares": 1001}, r"max_order_shares: wanted at most max_position_shares = 1000,"),
    ({"max_order_notional": "10000.01"}, r"max_order_notional: wanted at most max_position_notion"),
    ({"max_position_notional": 50001}, r"max_position_notional: wanted at most max_total_notional"),
    ({"max_daily_loss": 15001}, r"max_daily_loss: wanted at most max_weekly_loss = 15000"),
    ({"max_weekly_loss": 50001}, r"max_weekly_loss: wanted at most max_monthly_loss = 50000"),
    ({"min_price": 10001}, r"min_price: wanted at most max_price = 10000"),
    ({"min_order_notional": 10001}, r"min_order_notional: wanted at most max_order_notional"),
    ({"max_symbol_share_bps": 3001}, r"max_symbol_share_bps: wanted at most max_sector_share_bps"),
    ({"max_var_95": 10001}, r"max_var_95: wanted at most max_var_99 = 10000"),
    ({"drawdown_act_bps": 299}, r"drawdown_warn_bps: wanted at most drawdown_act_bps = 299"),
    ({"drawdown_act_bps": 1001}, r"drawdown_act_bps: wanted at most drawdown_halt_bps = 1000"),
    ({"base_volatility_bps": 501}, r"base_volatility_bps: wanted at most max_volatility_bps = 500"),
    ({"max_var_95": "off"}, r'max_var_95: wanted "off: <why>", found \'off\''),
    ({"max_var_95": "off: "}, r'max_var_95: wanted "off: <why>"'),
    ({"max_var_95": "offer: x"}, r"max_var_95: wanted quote above 0"),
    ({"price_collar_bps": "off: no"}, r"price_collar_bps: .*cannot be switched off"),
    ({"max_data_age_ms": "off: no"}, r"max_data_age_ms: .*cannot be switched off"),
], ids=str)
def test_bad_limits_name_key_wanted_and_found(change, message):
    with pytest.raises(ConfigError, match=message):
        parse_limits({**default_limits(), **change})


@pytest.mark.parametrize("name", [limit.name for limit in LIMITS])
def test_every_limit_must_be_there(name):
    given = default_limits()
    del given[name]
    with pytest.raises(ConfigError, match=f"{name}: wanted a value, found none"):
        parse_limits(given)


def test_what_contradicts_nothing_is_taken():
    """A limit that is off contradicts none."""
    number = parse_limits({**default_limits(), "max_weekly_loss": "off: other books",
                           "max_daily_loss": 60000})
    assert number["max_weekly_loss"] == OFF and number["max_daily_loss"] == 60000 * NANO


def test_which_way_a_change_loosens():
    down, up, flag = BY_NAME["max_daily_loss"], BY_NAME["min_price"], BY_NAME["allow_short"]
    assert down.loosens(5, 6) and not down.loosens(6, 5) and not down.loosens(5, 5)
    assert up.loosens(6, 5) and not up.loosens(5, 6)
    assert flag.loosens(0, 1) and not flag.loosens(1, 0)
    assert down.loosens(5, OFF) and not down.loosens(OFF, 5) and up.loosens(5, OFF)
    assert BY_NAME["market_hours"].loosens(1, OFF)


def test_a_number_is_shown_as_people_write_it():
    shown = {name: BY_NAME[name].show(number) for name, number in (
        ("max_daily_loss", 5 * NANO), ("min_price", 10**7), ("max_open_positions", 3),
        ("allow_short", 1), ("max_var_95", OFF))}
    assert shown == {"max_daily_loss": "5", "min_price": "0.01", "max_open_positions": "3",
                     "allow_short": "true", "max_var_95": "off"}
    for limit in LIMITS:
        number = limit.parse(limit.default)
        if number != OFF and limit.unit != "flag":
            text = limit.show(number)
            assert limit.parse(text if limit.unit in limits.DECIMAL else int(text)) == number


def test_checks_that_need_figures_can_be_let_go_for_a_reason():
    gone = limits.without_figures(default_limits(), "no analyst here")
    number = parse_limits(gone)
    for limit in LIMITS:
        assert (number[limit.name] == OFF) == bool(limit.needs or off_reason(limit.default))
        if limit.needs and not off_reason(limit.default):
            assert gone[limit.name] == "off: no analyst here"
    some = limits.without_figures(default_limits(), "no volume", {"volume"})
    assert [n for n in some if some[n] != default_limits()[n]] == [
        "max_order_volume_bps", "max_position_volume_bps"]


# ---------------------------------------------------------------- in the file

@pytest.mark.parametrize("key", [k.name for k in risk_keys()])
def test_a_neighbour_of_each_key_names_file_line_and_key(key):
    wrong = key[0] + "x" + key[1:]
    with pytest.raises(ConfigError) as caught:
        loads(f'profile = "paper"\n[risk]\n# here\n{wrong} = 1\n', "my.toml")
    message = str(caught.value)
    assert message.startswith(f"my.toml:4: unknown key risk.{wrong}; did you mean ")
    assert message.endswith(f"{key}?")


@pytest.mark.parametrize("key", [k.name for k in risk_keys()])
@pytest.mark.parametrize("value", ["-1", "[]", '"x"', "{}", "1979-05-27"])
def test_a_value_of_another_kind_names_file_line_and_what_was_wanted(key, value):
    with pytest.raises(ConfigError) as caught:
        loads(f"[risk]\n\n{key} = {value}\n", "my.toml")
    message = str(caught.value)
    assert f"risk.{key} must be " in message and "\n" not in message
    # an empty table has no line of its own
    assert message.startswith("my.toml:3: ") or value == "{}"


@pytest.mark.parametrize("limit", LIMITS, ids=lambda x: x.name)
def test_one_beyond_the_range_is_refused_and_the_ends_are_taken(limit):
    kind = next(k.kind for k in risk_keys() if k.name == limit.name)
    if limit.unit == "flag":
        return
    for number in (limit.low, limit.high):
        if number < 2**62:
            text = limit.show(number)
            value = kind.read(text if limit.unit in limits.DECIMAL else int(text))
            assert limit.parse(value) == number
    for number in (limit.low - 1, limit.high + 1):
        if 0 <= number < 2**62 and limit.unit not in limits.DECIMAL:
            with pytest.raises(ValueError):
                kind.read(number)
            with pytest.raises(ConfigError):
                limit.parse(number)


def test_off_needs_a_reason_in_the_file_too():
    found = loads('[risk]\nmax_var_95 = "off:  no history yet "', "f.toml").risk["max_var_95"]
    assert found == "off: no history yet"
    assert loads("", sets=["risk.max_order_shares=off: a test"]).risk[
        "max_order_shares"] == "off: a test"
    for wrong in ('"off"', '"off:"', "false"):
        with pytest.raises(ConfigError, match=r'f\.toml:2: risk\.max_var_95 must be .*"off: <why'):
            loads(f"[risk]\nmax_var_95 = {wrong}", "f.toml")
    with pytest.raises(ConfigError, match=r"f\.toml:2: risk\.max_data_age_ms must be whole milli"):
        loads('[risk]\nmax_data_age_ms = "off: fast"', "f.toml")


def test_contradictions_name_the_line():
    with pytest.raises(ConfigError, match=r"f\.toml:3: risk\.max_order_shares: wanted at most "
                                          r"max_position_shares = 10, found 20"):
        loads("[risk]\nmax_position_shares = 10\nmax_order_shares = 20", "f.toml")


def test_profiles_differ_in_what_they_leave_off():
    paper = loads('profile = "paper"').risk
    demo = loads("").risk
    assert paper["max_var_95"] == 5000 and off_reason(demo["max_var_95"])
    assert loads("").origin["risk.max_var_95"] == "profile demo"
    assert loads("[risk]\nmax_var_95 = 7").risk["max_var_95"] == 7
    for name, value in demo.items():
        assert (value == paper[name]) == (name not in limits.PROFILES["demo"])
