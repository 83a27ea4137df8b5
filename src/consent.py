"""The last consent to trading with money: the operator names the account that the broker has.

``--live``, ``live = true`` and credentials say that somebody wants to trade with money.  Which
account the credentials open, they do not say: so the last four digits of its number are given by
a person, or by who wrote the service's unit, and compared with the broker's answer before
anything is started.
"""
from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING

from hftpipe import config as settings
from hftpipe.errors import ConfigError, GuardError, UsageError

if TYPE_CHECKING:
    from hftpipe.config import Config

ENVIRONMENT = "HFTPIPE_CONFIRM_ACCOUNT"
OPTION = "--confirm-account"


def digits(given: str) -> str:
    """The last four digits as *given*; letters count, as account numbers may have some.

    Raises
    ------
    UsageError
    """
    found = given.strip().upper()
    if not re.fullmatch(r"[0-9A-Z]{4}", found, re.ASCII):
        raise UsageError(f"{OPTION} must be the last four digits of the account number, "
                         f"was {len(found)} characters")
    return found


def check(config: Config, account: str) -> None:
    """Refuse a live account that nobody named; compare the one that was named with the broker's.

    Parameters
    ----------
    config : Config
    account : str
        Last four digits, which imply ``--live``; empty = none were given.  On a paper account
        they may be given, and must be right then.

    Raises
    ------
    GuardError
        Exit code 10.  The broker's digits are not told: who asks must know them.
    ConfigError
        If the broker does not take the credentials.
    HftpipeError
        If it cannot be asked.
    """
    if config.profile == "live":
        settings.guard(config, live=bool(account))
    if not account or config.venue.kind == "local":
        return
    from hftpipe.alpaca.rest import Rest, VenueError
    rest = Rest(config.venue.rest, config.venue.key, config.venue.secret)
    try:
        number = rest.account().account_number
    except VenueError as error:
        if error.status not in (401, 403):
            raise
        raise ConfigError(f"venue.key and venue.secret: {error}") from None
    finally:
        rest.close()
    if len(number) < 4:
        raise GuardError(f"{rest!r} must tell the account's number, found none")
    if not hmac.compare_digest(number[-4:].upper().encode(), digits(account).encode()):
        raise GuardError(f"the account that venue.key opens must end in {account}, as was given; "
                         "it does not")
