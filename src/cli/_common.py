"""What commands share: global options in either place, output, small formats."""
from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pathlib import Path

    from hftpipe.config import Config
    from hftpipe.rundir import RunDir
    from hftpipe.secret import Secret

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """Global options; given before or after the command's name, the later one counts."""

    config: str | None = None
    sets: list[str] = field(default_factory=list)
    run_dir: str | None = None
    output: str = "table"
    color: bool = True
    debug: bool = False

    @property
    def json(self) -> bool:
        return self.output == "json"

    def directory(self) -> RunDir:
        """The run directory, not made yet."""
        from hftpipe import rundir
        return rundir.RunDir(rundir.default(self.run_dir))

    def load(self) -> Config:
        """The configuration these options ask for."""
        from hftpipe import config
        return config.load(self.config, self.sets)


def database_of(settings: Settings, url: str | None) -> tuple[str, Path, Secret]:
    """Which database is meant: its URL, the run directory of an embedded one, the password."""
    from hftpipe.config import password_in
    if url == "":                       # an unset variable of a script, not the embedded one
        raise click.UsageError('--url must be "embedded" or postgresql://..., was empty')
    if url is not None and password_in(url):        # everybody on this host reads command lines
        raise click.UsageError("--url must hold no password, found one; give it by store.password, "
                               "PGPASSFILE or PGPASSWORD")
    store = settings.load().store
    return url if url is not None else store.url, settings.directory().path, store.password


@contextlib.contextmanager
def opened(settings: Settings, url: str | None) -> Iterator[str]:
    """Conninfo of the database that is meant, which is started first when it is ours."""
    from hftpipe.store.postgres import database
    address, place, password = database_of(settings, url)
    with database(address, place, password=password) as conninfo:
        yield conninfo


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    settings = ctx.ensure_object(Settings)
    if param.name == "sets":
        settings.sets.extend(value)
    elif value is not None and value is not False:
        setattr(settings, str(param.name), value)


def _no_color(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Settings).color = False


def shared(command: F) -> F:
    """Give a command the global options; they arrive in the context's :class:`Settings`."""
    options: list[Callable[[F], F]] = [
        click.option("-C", "--config", metavar="FILE", callback=_keep, expose_value=False,
                     help="Configuration; default $HFTPIPE_CONFIG or ./hftpipe.toml."),
        click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, callback=_keep,
                     expose_value=False, help="Set one key over file and environment."),
        click.option("--run-dir", metavar="DIR", callback=_keep, expose_value=False,
                     help="Run directory; default $HFTPIPE_RUN_DIR or ~/.local/state/hftpipe."),
        click.option("-o", "--output", type=click.Choice(["table", "json"]), callback=_keep,
                     expose_value=False, help="Form of the output."),
        click.option("--no-color", is_flag=True, callback=_no_color, expose_value=False,
                     help="Plain text; so does NO_COLOR."),
        click.option("--debug", is_flag=True, callback=_keep, expose_value=False,
                     help="Show where an error comes from."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


if TYPE_CHECKING:
    Type = click.ParamType[float]
else:
    Type = click.ParamType              # generic only from click 8.4 on


class Seconds(Type):
    """A time with its unit, "250ms", "15s" or "2min", as seconds; a bare number is refused."""

    name = "time"
    units: Mapping[str, float] = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0,
                                 "h": 3600.0}
    most = 500 * 3600.0                 # poll(2) counts milliseconds in an int

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        unit = text.lstrip("0123456789.").strip()
        try:
            seconds = float(text[:len(text) - len(unit)]) * self.units[unit]
        except (KeyError, ValueError):
            self.fail(f'must be a time such as "15s" or "250ms", was {text!r}', param, ctx)
        if seconds > self.most:
            self.fail(f"must be at most {self.most / 3600:g}h, was {text!r}", param, ctx)
        return seconds


SECONDS = Seconds()


class Rate(Type):
    """Messages per second, from 0 to *most*; unlike click's range it refuses NaN."""

    name = "number"

    def __init__(self, most: float) -> None:
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None,
                ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0 <= number <= self.most:
            self.fail(f"must be a number from 0 to {self.most:.0f}, was {str(value)!r}", param,
                      ctx)
        return number


RATE = Rate(100_000)
SEED = click.IntRange(0, 2**64 - 1)


def emit(settings: Settings, data: Any, lines: Iterable[str]) -> None:
    """Print *data* as one JSON document, or *lines*, on standard output."""
    if settings.json:
        print(json.dumps(data, default=str))
    else:
        for line in lines:
            print(line)


def paint(settings: Settings, text: str, color: str) -> str:
    """*text* in *color* where a terminal shows it and nobody asked for none."""
    if settings.color and "NO_COLOR" not in os.environ and sys.stdout.isatty():
        return click.style(text, fg=color, bold=True)
    return text


def columns(rows: Iterable[Iterable[object]], head: Iterable[str]) -> list[str]:
    """Rows as left-aligned columns under *head*."""
    table = [list(head), *([str(cell) for cell in row] for row in rows)]
    width = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip()
            for row in table]


def money(nano: int) -> str:
    """An amount in 1e-9 to the cent, digits grouped, rounded half to even."""
    sign, cents = "-" if nano < 0 else "", divmod(abs(nano), 10**7)
    whole = cents[0] + (cents[1] * 2 > 10**7 or (cents[1] * 2 == 10**7 and cents[0] % 2))
    return f"{sign}{whole // 100:,}".replace(",", " ") + f".{whole % 100:02d}"


def count(number: int) -> str:
    """A whole number with its digits grouped."""
    return f"{number:,}".replace(",", " ")


def clock(ns: int) -> str:
    """A time span as hours, minutes and seconds."""
    seconds = ns // 10**9
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def span(ns: int) -> str:
    """A time span with three digits and the unit that suits it."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns} ns"

