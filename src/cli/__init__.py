"""The ``hftpipe`` command: a click group whose commands are imported only when they run.

``halt``, ``status`` and ``ready`` must answer at once, so this module and theirs import click,
the control page and little else.
"""
from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from hftpipe import __version__
from hftpipe.cli._common import Settings, shared
from hftpipe.errors import Exit, HftpipeError

# name -> one line of help.  Each is the object `command` of the module of that name.
COMMANDS = {
    "start": "Start the pipeline; without configuration, the demo on the local exchange.",
    "status": "Say how the run is: trading, health, orders, P&L, latency.",
    "ready": "Succeed when every stage runs and orders may pass.",
    "halt": "Stop trading at once, whatever hangs; it stays halted across restarts.",
    "resume": "Allow trading again after a halt.",
    "close": "Close one position at the venue while no run trades.",
    "risk": "Show limits and their use; tighten, loosen, pause.",
    "recover": "Say what a start would take over, or store what a killed run left.",
    "stop": "Drain the pipeline and end it.",
    "demo": "Run the whole pipeline for a while against the local exchange and sum up.",
    "why": "Say why an order was sent or refused.",
    "venue": "Run the built-in exchange alone.",
    "backtest": "Drive the same stages over a recording.",
    "replay": "Run a journaled run once more and compare every event.",
    "record": "Write a recording of a market data feed.",
    "data": "Download, convert, list and check historical data.",
    "drill": "Measure and prove what is promised about halting.",
    "journal": "List, verify, print and export what is on disk.",
    "model": "Pack, check, list and promote models.",
    "audit": "Prove that no stored row was altered, removed, added or moved.",
    "db": "Look after the PostgreSQL schema.",
}


class Lazy(click.Group):
    """A group that knows its commands' names and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        here = os.path.dirname(__file__)
        return [name for name in COMMANDS if os.path.exists(os.path.join(here, f"{name}.py"))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS or cmd_name not in self.list_commands(ctx):
            return None
        found = import_module(f"hftpipe.cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            import difflib
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"no such command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])


@click.group(cls=Lazy, no_args_is_help=False,
             context_settings={"help_option_names": ["-h", "--help"]},
             epilog="Example: hftpipe -C my.toml start --cores 0-3, then hftpipe status. "
                    "Exit codes are in docs/operate/exit-codes.md.")
@shared
@click.version_option(__version__, "-V", "--version", message="hftpipe %(version)s")
def group() -> None:
    """Market data in, orders out: a low-latency trading pipeline for one host."""


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code.  Errors become one line on standard error."""
    settings = Settings()
    try:
        code = group.main(list(sys.argv[1:] if argv is None else argv), "hftpipe",
                          standalone_mode=False, obj=settings)
        if sys.stdout is not None:              # None: the caller closed it
            sys.stdout.flush()
        return int(code or 0)
    except click.UsageError as e:
        if settings.debug:
            raise
        where = f"; see {e.ctx.command_path} --help" if e.ctx else ""
        message = e.format_message().rstrip(".")
        if message == "Missing command" and e.ctx:
            message = f"{e.ctx.command_path} wants a command ({_names(e.ctx)}), found none"
        return _fail(message + where, Exit.USAGE)
    except click.ClickException as e:
        return _fail(e.format_message(), Exit.ERROR)
    except HftpipeError as e:
        if settings.debug:
            raise
        return _fail(str(e), e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", Exit.INTERRUPTED)
    except BrokenPipeError:
        _let_go()                               # who read our output has seen enough
        return Exit.OK
    except Exception as e:
        if settings.debug:
            raise
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            if not e.filename:
                _let_go()
            return _fail(f"cannot write {e.filename or 'the output'}: {e.strerror}", Exit.ERROR)
        return _fail(f"unexpected {type(e).__name__}: {e} (--debug shows where)", Exit.ERROR)


def _let_go() -> None:
    """Keep the interpreter from flushing into standard output, where that fails, at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _names(ctx: click.Context) -> str:
    assert isinstance(ctx.command, click.Group)
    return ", ".join(ctx.command.list_commands(ctx))


def _fail(message: str, code: Exit) -> int:
    if secret := sys.modules.get("hftpipe.secret"):     # else no credential was read
        message = secret.scrub(message)
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return int(code)


def main() -> NoReturn:
    """Entry point of the installed command."""
    sys.exit(run())
