"""``hftpipe close``: one position, wholly or in part, while no run trades."""
from __future__ import annotations

import time
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import click

from hftpipe import _clock
from hftpipe.cli._common import SECONDS, Settings, emit, shared
from hftpipe.errors import DeadlineError, Exit, GuardError, HftpipeError

if TYPE_CHECKING:
    from hftpipe.alpaca.messages import Order
    from hftpipe.alpaca.rest import Rest

    Type = click.ParamType[str]
else:
    Type = click.ParamType              # generic only from click 8.4 on

POLL = 0.05                     # s between two looks at the closing order
ENDED = {"filled", "canceled", "expired", "rejected", "replaced", "done_for_day"}
CANCELLING = 10.0               # s for what did not fill in time to end


class Amount(Type):
    """A positive decimal with at most nine places, *most* at most; as text, which is exact."""

    name = "number"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> str:
        text = str(value).strip()
        try:
            found = Decimal(text)
        except InvalidOperation:
            found = Decimal(0)
        exponent = found.as_tuple().exponent
        if not found.is_finite() or not 0 < found <= self.most or (
                isinstance(exponent, int) and exponent < -9):
            self.fail(f"must be above 0, at most {self.most}, with at most nine decimals, "
                      f"was {text!r}", param, ctx)
        return f"{found:f}"


@click.command(epilog="Example: hftpipe close AAPL --percent 50 --set profile=paper")
@click.argument("symbol")
@click.option("--qty", type=Amount(10**9), help="So many shares or coins; default: all of it.")
@click.option("--percent", type=Amount(100), help="So much of the position.")
@click.option("--reason", default="operator", show_default=True, help="Kept with it.")
@click.option("--timeout", type=SECONDS, default="30s", show_default=True, metavar="TIME",
              help="What has not filled by then is cancelled.")
@shared
@click.pass_obj
def command(settings: Settings, symbol: str, qty: str | None, percent: str | None, reason: str,
            timeout: float) -> int:
    """Close a position at the venue, or a part of it, by a market order of the venue's making.

    For what a run left behind: while one is up its own orders are the way, or `halt --flatten`.
    The books do not know of it: the next start comes up HALTED unless it is told to --adopt.
    Asked once, never repeated: when no answer comes, look before you ask again. Exit code 5: it
    has not filled in time. 10: there is no such position, or the venue refused.
    """
    from hftpipe import rundir
    from hftpipe.alpaca.rest import Rest, VenueError
    symbol = symbol.replace("/", "")            # as positions write a pair
    if qty is not None and percent is not None:
        raise click.UsageError("only one of --qty and --percent is accepted")
    config, run_dir = settings.load(), settings.directory()
    if config.venue.kind == "local":
        raise click.UsageError("the local exchange ends with its run, and no position outlives it: "
                               "wanted profile paper or live, found " + config.profile)
    run_dir.prepare()
    run_dir.lock()                              # so that no run trades, or begins to
    try:
        rest = Rest(config.venue.rest, config.venue.key, config.venue.secret)
        try:
            held = next((p for p in rest.positions() if p.symbol == symbol), None)
            if held is None:
                raise GuardError(f"wanted a position in {symbol}, found none at the venue")
            part = qty or (f"{percent} %" if percent else "all")
            words = rundir.entry(reason, way="cli")
            run_dir.audit("close", {**words, "reason": f"{part} of {held.qty} {symbol}: "
                                    + words["reason"]})
            try:
                order = rest.close_position(symbol, qty=qty, percent=percent)
            except VenueError as error:
                run_dir.audit("not closed", {**words, "reason": f"{symbol}: {error}"})
                if not 400 <= error.status <= 499:      # it may have been taken
                    raise
                raise GuardError(str(error)) from None
            except DeadlineError as error:
                run_dir.audit("not closed", {**words, "reason": f"{symbol}: {error}"})
                raise DeadlineError(f"{error}: it may have been taken; look at the position before "
                                    "you ask again") from None
            order = _end(rest, order, timeout)
            left = next((p.qty for p in rest.positions() if p.symbol == symbol), "0")
            done = order.status == "filled"
            run_dir.audit("closed" if done else "not closed", {**words, "reason": (
                f"{symbol}: {order.filled_qty} traded, {left} held")}, order=order.id)
        finally:
            rest.close()
    finally:
        run_dir.unlock()
    document = {"symbol": symbol, "held": held.qty, "order": order.id, "status": order.status,
                "filled": order.filled_qty, "price": order.filled_avg_price, "left": left}
    price = f" at {order.filled_avg_price}" if order.filled_avg_price else ""
    emit(settings, document, [
        f"{order.status.upper()}    {order.side} {order.filled_qty} {symbol}{price}   "
        f"held {held.qty}, now {left}",
        'the books do not know of it: start with --adopt "..."'])
    return int(Exit.OK if done else Exit.TIMEOUT)


def _end(rest: Rest, order: Order, timeout: float) -> Order:
    """The order when it has ended; cancelled when it does not in time."""
    deadline = _clock.now_ns() + int(timeout * 1e9)
    cancelled = False
    while order.status not in ENDED:
        if _clock.now_ns() >= deadline:
            if cancelled:
                raise DeadlineError(f"closing order {order.id} has not ended "
                                    f"{CANCELLING:.0f} s after its cancel: it is {order.status}")
            rest.cancel(order.id)               # False: it ended meanwhile, which is seen next
            cancelled, deadline = True, _clock.now_ns() + int(CANCELLING * 1e9)
        time.sleep(POLL)
        found = rest.order(order.id)
        if found is None:
            raise HftpipeError(f"the venue does not know its own closing order {order.id}")
        order = found
    return order
