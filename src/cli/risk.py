"""``hftpipe risk``: what the limits are and how much of each is used; tighten, loosen, pause.

``show`` reads the board alone.  The others ask the supervisor over the control socket.
"""
from __future__ import annotations

from typing import Any

import click

from hftpipe import _board, _clock, rundir, shm
from hftpipe.cli._common import Settings, columns, count, emit, money, paint, shared, span
from hftpipe.desk import ask
from hftpipe.errors import DeadlineError, Exit, NotRunningError

BREAKER = ("closed", "open", "half open")
CAUSES = ("", "a person", "daily loss", "losing trades in a row", "drawdown", "no answers",
          "refusals of the venue", "slow answers", "a failed test order", "damaged state")
STALE = 2 * 10**9               # ns after which what risk wrote is called old


@click.group(no_args_is_help=False)
@shared
def command() -> None:
    """Look at the risk gate and change it while it runs."""


def _shown(value: int, scale: int, unit: str) -> str:
    if value == _board.OFF:
        return "off"
    if unit == "flag":
        return "yes" if value else "no"
    if unit == "quote":
        return money(value)
    whole, part = divmod(abs(value), scale)
    text = count(whole) + (f".{part:09d}".rstrip("0") if part else "")
    return ("-" if value < 0 else "") + text


def _percent(limit: _board.Limit) -> float | None:
    if limit.use < 0 or limit.limit <= 0 or limit.unit == "flag":
        return None
    return round(100 * limit.use / limit.limit, 1)


@command.command(epilog="Example: hftpipe risk show -o json")
@shared
@click.pass_obj
def show(settings: Settings) -> int:
    """Print each limit, how much of it is used, and what is paused.

    Needs nobody's help: also when every process hangs or is dead. Exit code 0; 3: no run; 7: the
    gate has not written for two seconds.
    """
    run_dir = settings.directory()
    run = run_dir.read_run()
    if run is None:
        raise NotRunningError(f"no run in {run_dir.name}")
    board = shm.board(run.run)
    found = board.gate()
    if found is None:
        raise DeadlineError("the risk stage has not written yet")
    state, limits = found
    age = max(_clock.now_ns() - state["ts"], 0)
    symbols = [item[0] for item in run.info.get("instruments", ())]
    flagged: dict[str, list[str]] = {"paused": [], "restricted": []}
    for i, symbol in enumerate(symbols[:board.instruments]):
        flags = board.flags(i)
        flagged["paused"] += [symbol] if flags & _board.PAUSED else []
        flagged["restricted"] += [symbol] if flags & _board.RESTRICTED else []
    data: dict[str, Any] = {
        "run": f"{run.run:x}", "age_ns": age, **flagged,
        "breaker": BREAKER[state["breaker"]], "breaker_cause": CAUSES[state["cause"]],
        "losses_in_a_row": state["losses"], "day_orders": state["day_orders"],
        "day_pnl_nanocash": state["day_pnl"], "equity_nanocash": state["equity"],
        "peak_nanocash": state["peak"], "drawdown_bps": state["drawdown"],
        "disabled_strategies": state["latched"],
        "limits": [{"name": x.name, "unit": x.unit, "scale": x.scale,
                    "limit": None if x.limit == _board.OFF else x.limit,
                    "use": None if x.use < 0 else x.use, "percent": _percent(x)}
                   for x in limits]}

    def lines() -> list[str]:
        rows = []
        for x in limits:
            percent = _percent(x)
            rows.append((x.name, _shown(x.limit, x.scale, x.unit),
                         "-" if x.use < 0 else _shown(x.use, x.scale, x.unit),
                         "-" if percent is None else f"{percent:.1f} %", x.unit))
        out = columns(rows, ("limit", "value", "in use", "of it", "unit"))
        words = data["breaker"] + (f" ({data['breaker_cause']})" if data["breaker_cause"] else "")
        out += ["", f"breaker     {paint(settings, words, 'red') if state['breaker'] else words}",
                f"day         P&L {money(state['day_pnl'])}   orders {count(state['day_orders'])}"
                f"   drawdown {state['drawdown'] / 100:g} %"]
        out += [f"{name:<11} {', '.join(found)}" for name, found in flagged.items() if found]
        if state["latched"]:
            out.append("disabled    strategies number " + ", ".join(map(str, state["latched"])))
        if age > STALE:
            out.append(paint(settings, f"! written {span(age)} ago: risk does not run", "red"))
        return out

    emit(settings, data, lines())
    return Exit.DEGRADED if age > STALE else Exit.OK


def _ask(settings: Settings, what: str, words: str, reason: str, **values: str) -> int:
    found = ask(rundir.default(settings.run_dir), what, values={"reason": reason, **values})
    done = "in force" if found["applied"] else "sent, but the gate has not taken it yet"
    emit(settings, found, [f"{words}: {done}   by {found['who']}"
                           + (f'   reason "{found["reason"]}"' if found["reason"] else "")])
    return Exit.OK if found["applied"] else Exit.TIMEOUT


WHY = click.option("--reason", default="", help="Kept; what loosens the gate needs one.")


@command.command("set", epilog='Example: hftpipe risk set max_daily_loss=500 --reason "news"')
@click.argument("assignment", metavar="KEY=VALUE")
@WHY
@shared
@click.pass_obj
def set_(settings: Settings, assignment: str, reason: str) -> int:
    """Change a limit. Tightening is done at once; loosening needs --reason (else exit code 10)."""
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip() or not value.strip():
        raise click.UsageError(f"must be KEY=VALUE, was {assignment!r}")
    key = key.strip().removeprefix("risk.")
    return _ask(settings, "limit", f"{key} = {value.strip()}", reason, key=key,
                value=value.strip())


@command.command(epilog="Example: hftpipe risk pause AAPL")
@click.argument("symbol")
@WHY
@shared
@click.pass_obj
def pause(settings: Settings, symbol: str, reason: str) -> int:
    """Refuse orders of one symbol, across restarts, until it is resumed. Cancels still pass."""
    return _ask(settings, "pause", f"{symbol} paused", reason, symbol=symbol)


@command.command(epilog='Example: hftpipe risk resume AAPL --reason "halt lifted"')
@click.argument("symbol")
@WHY
@shared
@click.pass_obj
def resume(settings: Settings, symbol: str, reason: str) -> int:
    """Let orders of a paused symbol pass again."""
    return _ask(settings, "resume-symbol", f"{symbol} resumed", reason, symbol=symbol)


@command.command(epilog='Example: hftpipe risk restrict AAPL --reason "compliance"')
@click.argument("symbol")
@WHY
@shared
@click.pass_obj
def restrict(settings: Settings, symbol: str, reason: str) -> int:
    """Put a symbol on the restricted list, across restarts."""
    return _ask(settings, "restrict", f"{symbol} restricted", reason, symbol=symbol)


@command.command(epilog='Example: hftpipe risk unrestrict AAPL --reason "compliance agreed"')
@click.argument("symbol")
@WHY
@shared
@click.pass_obj
def unrestrict(settings: Settings, symbol: str, reason: str) -> int:
    """Take a symbol off the restricted list."""
    return _ask(settings, "unrestrict", f"{symbol} unrestricted", reason, symbol=symbol)


@command.command(epilog='Example: hftpipe risk rearm imbalance --reason "looked at its fills"')
@click.argument("strategy")
@WHY
@shared
@click.pass_obj
def rearm(settings: Settings, strategy: str, reason: str) -> int:
    """Let a strategy order again that was disabled because it ordered too often."""
    return _ask(settings, "rearm", f"{strategy} rearmed", reason, strategy=strategy)


@command.command(epilog='Example: hftpipe risk breaker close --reason "losses understood"')
@click.argument("state", type=click.Choice(["open", "close"]))
@WHY
@shared
@click.pass_obj
def breaker(settings: Settings, state: str, reason: str) -> int:
    """Open the circuit breaker (only reducing orders pass), or close it, by hand."""
    return _ask(settings, "breaker", f"breaker {state}", reason, state=state)
