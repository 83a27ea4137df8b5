"""Logs of cold processes: one JSON object a line, to standard error and to the run directory.

Every line carries ``process`` and ``run``; what concerns one event also carries its
``correlation``, the name that the event has in PostgreSQL and, for orders, at the venue.
Credentials are taken out whatever key they stand under.  Hot stages do not log: they count.
"""
from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

from hftpipe import schema
from hftpipe.secret import scrub

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
HIDDEN = ("secret", "password", "passwd", "token", "authorization", "api_key", "key_id")
Logger = structlog.typing.FilteringBoundLogger


def correlation(run: int, event: int) -> str:
    """Name of *event* across logs, tables and, for orders, the venue (client_order_id)."""
    stream, seq = schema.split_event(event)
    if stream == schema.STREAM.SIGNAL:
        return f"hp-{run:x}-{seq:x}"
    return f"{run:x}/{schema.STREAM.label(stream)}/{seq}"


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: "<redacted>" if _hides(k) else _redact(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(v) for v in value]
    return scrub(value) if isinstance(value, str) else value


def _hides(key: Any) -> bool:
    return isinstance(key, str) and any(word in key.lower() for word in HIDDEN)


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Processor: take out what stands under a key that names a credential, and every credential
    that this process has read wherever it stands."""
    return cast(MutableMapping[str, Any], _redact(event))


class _Sink:
    """One ``write`` per line, so that processes may share a file."""

    def __init__(self, file: int | None, stream: TextIO | None, console: Any) -> None:
        self._file, self._stream, self._console = file, stream, console

    def msg(self, line: str) -> None:
        line = scrub(line)                      # once more, with what was no text before
        if self._file is not None:
            os.write(self._file, line.encode() + b"\n")
        if self._stream is not None:
            self._stream.write((self._console(line) if self._console else line) + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = fatal = log = msg


class Bridge(logging.Handler):
    """Lines of modules that log as any library does (``hftpipe.*``), beside all the others."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on one record; what cannot be formatted is told as it stands."""
        words = str(record.msg)
        with contextlib.suppress(TypeError, ValueError):
            words = record.getMessage()
        name = record.levelname.lower()
        level = name if name in LEVELS else "error"
        getattr(self._logger, level)(words, logger=record.name, exc_info=record.exc_info or None)


def _text(line: str) -> str:
    """A JSON line for people."""
    import json
    found = json.loads(line)
    head = f"{found.pop('timestamp')} {found.pop('level'):<7} {found.pop('event')}"
    found.pop("run", None)
    return " ".join([head, *(f"{k}={v}" for k, v in found.items())])


def setup(process: str, *, run: int = 0, directory: Path | None = None, level: str = "info",
          form: str = "json", stream: TextIO | None = sys.stderr) -> Logger:
    """Direct this process's logs, those of ``logging.getLogger("hftpipe...")`` too.

    Parameters
    ----------
    process : str
        Name of the process; also of its file.
    run : int
        The run, 0 for none.
    directory : Path, optional
        Where ``<process>.log`` is appended to; None for no file.
    level : str
        Least level, a key of :data:`LEVELS`.
    form : str
        "json" or "text", for *stream*; the file is always JSON.
    stream : text file, optional
        Where lines also go; None for nowhere.

    Returns
    -------
    Logger
        Bound to process and run.
    """
    file = None
    if directory is not None:
        file = os.open(directory / f"{process}.log",
                       os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact,
            structlog.processors.JSONRenderer(default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _Sink(file, stream, _text if form == "text" else None),
        cache_logger_on_first_use=False,
    )
    bound = {"process": process, **({"run": f"{run:x}"} if run else {})}
    out = cast(Logger, structlog.get_logger().bind(**bound))
    ours = logging.getLogger("hftpipe")
    for handler in [h for h in ours.handlers if isinstance(h, Bridge)]:
        ours.removeHandler(handler)
    ours.addHandler(Bridge(out))
    ours.setLevel(LEVELS[level])
    return out
