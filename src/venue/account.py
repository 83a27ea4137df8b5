"""What the account shows: its objects in the protocol, its activities, its equity over time."""
from __future__ import annotations

from decimal import ROUND_DOWN, Decimal
from typing import TYPE_CHECKING, Any

from hftpipe._clock import utc_ns

from . import rules
from .orders import Refused, invalid
from .session import local
from .state import CONFIGURATIONS, NANO, State, nano, stamp, text
from .traders import Instrument

if TYPE_CHECKING:
    from .exchange import Exchange

MINUTE = 60 * NANO
TIMEFRAMES = {"1Min": 1, "5Min": 5, "15Min": 15, "1H": 60, "1D": 1440}      # minutes
PERIODS = {"D": 1, "W": 7, "M": 30, "A": 365}                               # days


def last_equity(state: State) -> int:
    """Equity at the end of the last day before today (UTC), nano."""
    today = utc_ns() // (1440 * MINUTE)
    before = [day for day in state.days if day < today]
    return state.days[max(before)] if before else state.start_cash // NANO


def account(exchange: Exchange) -> dict[str, Any]:
    """The account object."""
    state = exchange.state
    long = sum(exchange.mark(s) * p.qty // NANO
               for s, p in state.positions.items() if p.qty > 0)
    short = sum(exchange.mark(s) * p.qty // NANO
                for s, p in state.positions.items() if p.qty < 0)
    equity, power = text(rules.equity(exchange)), text(rules.buying_power(exchange))
    margin = text((long - short) // 2)
    start, times = last_equity(state), rules.multiplier(exchange)
    free = max(0, state.cash // NANO - rules.reserved(exchange))
    return {
        "id": state.account, "admin_configurations": {},
        "user_configurations": state.configurations,
        "account_number": "PA" + state.account[:8].upper(), "status": "ACTIVE",
        "crypto_status": "ACTIVE", "options_approved_level": 0, "options_trading_level": 0,
        "currency": "USD", "buying_power": power, "regt_buying_power": text(
            rules.buying_power(exchange, times=min(2, times))),
        "effective_buying_power": power, "options_buying_power": "0",
        "non_marginable_buying_power": text(free),
        "cash": text(state.cash // NANO), "accrued_fees": "0",
        "pending_transfer_in": "0", "pending_transfer_out": "0", "portfolio_value": equity,
        "trading_blocked": False, "transfers_blocked": False, "account_blocked": False,
        "created_at": stamp(state.created),
        "trade_suspended_by_user": state.configurations["suspend_trade"],
        "multiplier": str(times),
        "shorting_enabled": times > 1 and not state.configurations["no_shorting"],
        "equity": equity, "last_equity": text(start), "long_market_value": text(long),
        "short_market_value": text(short), "position_market_value": text(long - short),
        "initial_margin": margin, "maintenance_margin": text(rules.maintenance(exchange)),
        "last_maintenance_margin": "0", "sma": "0", "intraday_adjustments": "0",
        "pending_reg_taf_fees": "0", "crypto_tier": 0,
        "balance_asof": stamp(utc_ns())[:10]}


def position(exchange: Exchange, symbol: str) -> dict[str, Any]:
    """The position in *symbol*, which is not flat."""
    instrument, position = exchange.names[symbol], exchange.state.positions[symbol]
    price, cost = exchange.mark(symbol), position.cost // NANO
    value = price * position.qty // NANO
    gain = value - cost
    held = sum(o.left for o in exchange.state.open_orders(symbol)
               if o.side * position.qty < 0 and o.status != "held")
    share = str((Decimal(gain) / abs(cost)).quantize(Decimal("1e-9"), ROUND_DOWN)
                if cost else 0)
    return {
        "asset_id": instrument.asset_id, "symbol": instrument.plain,
        "exchange": "CRYPTO" if instrument.crypto else "NASDAQ",
        "asset_class": "crypto" if instrument.crypto else "us_equity",
        "asset_marginable": not instrument.crypto, "qty": text(position.qty),
        "qty_available": text(max(0, abs(position.qty) - held)
                              * (1 if position.qty > 0 else -1)),
        "avg_entry_price": text(position.average),
        "side": "long" if position.qty > 0 else "short", "market_value": text(value),
        "cost_basis": text(cost), "unrealized_pl": text(gain), "unrealized_plpc": share,
        "unrealized_intraday_pl": text(gain), "unrealized_intraday_plpc": share,
        "current_price": text(price), "lastday_price": text(instrument.price),
        "change_today": str((Decimal(price - instrument.price) / instrument.price)
                            .quantize(Decimal("1e-9"), ROUND_DOWN))}


def asset(exchange: Exchange, instrument: Instrument) -> dict[str, Any]:
    crypto = instrument.crypto
    view: dict[str, Any] = {
        "id": instrument.asset_id, "class": "crypto" if crypto else "us_equity",
        "exchange": "CRYPTO" if crypto else "NASDAQ", "symbol": instrument.symbol,
        "name": f"{instrument.symbol} (simulated)", "cusip": None, "status": "active",
        "tradable": True, "marginable": not crypto,
        "shortable": not crypto and rules.multiplier(exchange) > 1, "fractionable": True,
        "easy_to_borrow": not crypto,
        "borrow_status": "not_borrowable" if crypto else "easy_to_borrow",
        "margin_requirement_long": "100" if crypto else "30",
        "margin_requirement_short": "100" if crypto else "30",
        "maintenance_margin_requirement": 100 if crypto else 30, "attributes": []}
    if crypto:
        view |= {"min_order_size": "0.000000001", "min_trade_increment": "0.000000001",
                 "price_increment": text(instrument.tick)}
    return view


# ---------------------------------------------------------------- configurations

def configure(exchange: Exchange, body: Any) -> dict[str, Any]:
    """Change account configurations; the whole of them.

    Raises
    ------
    Refused
        400 or 422; nothing has changed.
    """
    if not isinstance(body, dict):
        raise Refused(400, 40010000, "request body format is invalid")
    values: dict[str, Any] = {}
    for name, value in body.items():
        if name in ("dtbp_check", "pdt_check"):         # of the rule that was abolished in 2026
            continue
        if name not in CONFIGURATIONS:
            raise invalid(f"unknown configuration {name}")
        allowed: tuple[Any, ...] = {
            "max_margin_multiplier": ("1", "2", "4"), "trade_confirm_email": ("all", "none"),
            "max_options_trading_level": (0, 1, 2, 3)}.get(name, (True, False))
        if name == "max_margin_multiplier":
            value = str(value)
        if value is None:
            continue
        if type(value) is not type(CONFIGURATIONS[name]) or value not in allowed:
            raise invalid(f"invalid {name}")
        values[name] = value
    if values:
        exchange.state.record("config", utc_ns(), values=values)
    return exchange.state.configurations


# ---------------------------------------------------------------- activities

def activity_id(ts: int, execution: str) -> str:
    at = local(ts)
    return f"{at:%Y%m%d%H%M%S}{at.microsecond // 1000:03}::{execution}"


def fills(exchange: Exchange, *, after: int | None, until: int | None, descending: bool,
          token: str | None, size: int, order: str | None) -> list[dict[str, Any]]:
    """FILL activities, one for each execution; *after* and *until* (UTC ns) are excluded."""
    state = exchange.state
    rows = [f for f in state.fills if (after is None or f[0] > after)
            and (until is None or f[0] < until) and (order is None or f[1] == order)]
    if descending:
        rows.reverse()
    if token:
        ids = [activity_id(f[0], f[2]) for f in rows]
        if token not in ids:
            raise invalid("invalid page_token")
        rows = rows[ids.index(token) + 1:]
    out = []
    for ts, id_, execution, price, qty, cum in rows[:size]:
        made = state.orders[id_]
        view = made.view
        whole = nano(cum) == made.qty
        out.append({
            "id": activity_id(ts, execution), "activity_type": "FILL",
            "transaction_time": stamp(ts), "type": "fill" if whole else "partial_fill",
            "price": text(price), "qty": text(qty), "side": view["side"],
            "symbol": made.symbol, "leaves_qty": text(made.qty - nano(cum)), "order_id": id_,
            "cum_qty": cum, "order_status": "filled" if whole else "partially_filled"})
    return out


# ---------------------------------------------------------------- portfolio history

def portfolio(exchange: Exchange, *, period: str | None, timeframe: str | None,
              start: int | None, end: int | None) -> dict[str, Any]:
    """Equity at the end of each window that the account lived in.

    Raises
    ------
    Refused
        422, if the request contradicts itself.
    """
    if period and start is not None and end is not None:
        raise invalid("only two of period, start and end may be specified")
    days = _days(period or "1M")
    end = utc_ns() if end is None else end
    if start is None:
        start = end - days * 1440 * MINUTE
    elif period:
        end = min(end, start + days * 1440 * MINUTE)
    span = (end - start) / (1440 * MINUTE)
    if timeframe is None:
        timeframe = "1Min" if span < 7 else "15Min" if span < 30 else "1D"
    if timeframe not in TIMEFRAMES:
        raise invalid("invalid timeframe")
    if span > 30.5 and timeframe != "1D":
        raise invalid("only timeframe 1D is supported for more than 30 days")
    if start > end:
        raise invalid("start must be before end")
    state, width = exchange.state, TIMEFRAMES[timeframe]
    points: dict[int, int] = {}
    source = ({day * 1440: value for day, value in state.days.items()} if width == 1440
              else state.equity)
    for minute, value in source.items():
        if start // MINUTE // width * width <= minute <= end // MINUTE:
            points[minute // width * width] = value
    before = [minute for minute in source if minute < min(points, default=0)]
    base = source[max(before)] if before else state.start_cash // NANO
    return {
        "timestamp": [minute * 60 for minute in points],
        "equity": [value / NANO for value in points.values()],
        "profit_loss": [(value - base) / NANO for value in points.values()],
        "profit_loss_pct": [(value - base) / base if base else None
                            for value in points.values()],
        "base_value": base / NANO, "base_value_asof": stamp(start)[:10],
        "timeframe": timeframe, "cashflow": {}}


def _days(period: str) -> int:
    count, unit = period[:-1], period[-1:]
    if not count.isascii() or not count.isdigit() or unit not in PERIODS or not 0 < int(
            count) <= 3650:
        raise invalid("invalid period")
    return int(count) * PERIODS[unit]
