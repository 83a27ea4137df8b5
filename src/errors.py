"""Exceptions, one per thing a caller would do differently; each carries its exit code.

The exit codes are part of the operator interface and frozen:

0 ok, 1 error, 2 usage, 3 not running, 4 bad configuration, credentials or data
directory, 5 timeout, 6 halted, 7 degraded, 8 host check failed, 9 verification
mismatch, 10 refused by a guard, 75 try again, 77 permission, 130 interrupted.
"""
from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit status means; see ``docs/operate/exit-codes.md``."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_RUNNING = 3
    CONFIG = 4
    TIMEOUT = 5
    HALTED = 6
    DEGRADED = 7
    HOST = 8
    MISMATCH = 9
    REFUSED = 10
    TRY_AGAIN = 75
    PERMISSION = 77
    INTERRUPTED = 130


class HftpipeError(Exception):
    """Base of all errors a user may see; the message says what was wanted and what was found."""

    exit_code = Exit.ERROR


class UsageError(HftpipeError):
    """The command line asks for something that cannot be: a bad core list, a missing file."""

    exit_code = Exit.USAGE


class NotRunningError(HftpipeError):
    """No run answers in this run directory."""

    exit_code = Exit.NOT_RUNNING


class ConfigError(HftpipeError):
    """Configuration, credentials, model or data directory are not as they must be."""

    exit_code = Exit.CONFIG


class SchemaError(ConfigError):
    """Memory or a file was written with another layout than this build's."""


class DataError(ConfigError):
    """A recording or message is malformed or truncated."""


class DiskError(HftpipeError):
    """The disk refused what must not be lost; nobody may go on as if it had taken it."""


class TlsError(HftpipeError):
    """The peer's certificate is not believed, or it does not speak TLS as it must."""

    exit_code = Exit.CONFIG


class DeadlineError(HftpipeError):
    """Something did not happen in time."""

    exit_code = Exit.TIMEOUT


class MismatchError(HftpipeError):
    """Two things that must be equal are not."""

    exit_code = Exit.MISMATCH


class GuardError(HftpipeError):
    """A guard refused: live without --live, loosening without a reason."""

    exit_code = Exit.REFUSED


class BusyError(HftpipeError):
    """Somebody else holds it: run directory, port, database. Try again later."""

    exit_code = Exit.TRY_AGAIN


class AccessError(HftpipeError):
    """The operating system refuses."""

    exit_code = Exit.PERMISSION
