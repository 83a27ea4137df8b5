"""The risk officer: turns what people ask at the desk into figures for the gate, on record.

What tightens (pause, restrict, a lower limit, opening the breaker) is done at once and written
down afterwards; no database can hold it up.  What loosens (resume, a higher limit, rearm, closing
the breaker) needs a reason and is in PostgreSQL before it is done.

What was tightened outlives the run: it stands in ``risk.json`` and the next run begins with it,
until somebody loosens it.  What was loosened ends with the run: then the configuration counts.
"""
from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hftpipe import _clock, schema
from hftpipe.desk import Handler, Request
from hftpipe.errors import BusyError, ConfigError, GuardError, HftpipeError, UsageError
from hftpipe.limits import BY_NAME, LIMITS, parse_limits
from hftpipe.rundir import RunDir
from hftpipe.store.audit import Audit, Entry, wait

KIND = schema.FIGURE_KIND
FIGURE = schema.dtype(schema.FIGURE)
FILE = "risk.json"
APPLIED = 1.0                   # s to wait for the gate to take a figure
NUMBER = {limit.name: i for i, limit in enumerate(LIMITS)}


class Stage(Protocol):
    """The supervisor's FigureStage."""

    def put_many(self, figures: Any) -> int: ...
    @property
    def stored(self) -> tuple[int, int]: ...


class Link(Protocol):
    """The producer's end of its link to risk."""

    @property
    def published(self) -> int: ...
    @property
    def taken(self) -> int: ...


def loosens(name: str, old: int, new: int) -> bool:
    """Whether limit *name* lets more pass at *new* than at *old*."""
    return BY_NAME[name].loosens(old, new)


class Officer:
    """Handlers of the desk that concern the gate.

    Parameters
    ----------
    stage, link
        Where figures go.
    run_dir : RunDir
    run : int
    symbols : sequence of str
        By instrument.
    limits : mapping
        The configuration's ``[risk]``.
    strategies : sequence of str
        Names, by their number.
    audit : Audit
    say : callable
        Told one line about what is kept from an earlier run.
    """

    def __init__(self, stage: Stage, link: Link, run_dir: RunDir, run: int,
                 symbols: Sequence[str], limits: Mapping[str, Any], strategies: Sequence[str],
                 audit: Audit, say: Callable[[str], object] = lambda text: None) -> None:
        self._stage, self._link, self._audit, self._say = stage, link, audit, say
        self._run_dir, self._run, self._symbols = run_dir, run, list(symbols)
        self._strategies = list(strategies)
        self._configured = dict(limits)
        self._raw = dict(limits)                # as people wrote them, changes included
        self._lock = threading.Lock()           # one producer on the link
        self._closed = False
        self._kept: dict[str, dict[str, Any]] = {"pause": {}, "restrict": {}, "limit": {}}

    @property
    def handlers(self) -> dict[str, Handler]:
        """For the desk."""
        return {"pause": self.pause, "resume-symbol": self.resume, "restrict": self.restrict,
                "unrestrict": self.unrestrict, "limit": self.limit, "rearm": self.rearm,
                "breaker": self.breaker}

    def close(self) -> None:
        """From here on everything is refused: the run ends."""
        with self._lock:
            self._closed = True

    # ------------------------------------------------------------ what is asked

    def pause(self, r: Request) -> Mapping[str, Any]:
        """No orders of a symbol."""
        return self._standing(r, "pause", 1)

    def resume(self, r: Request) -> Mapping[str, Any]:
        """Orders of a symbol again."""
        return self._standing(r, "pause", 0)

    def restrict(self, r: Request) -> Mapping[str, Any]:
        """A symbol onto the restricted list."""
        return self._standing(r, "restrict", 1)

    def unrestrict(self, r: Request) -> Mapping[str, Any]:
        """A symbol off the restricted list."""
        return self._standing(r, "restrict", 0)

    def _standing(self, r: Request, what: str, value: int) -> Mapping[str, Any]:
        symbol = r.text("symbol", most=16)
        if symbol not in self._symbols:
            raise UsageError(f"symbol must be one of {', '.join(self._symbols)}, was {symbol}")
        return self._do(
            r, getattr(KIND, what.upper()), value, instrument=self._symbols.index(symbol),
            loose=not value, detail={"symbol": symbol},
            keep=lambda reason: self._keep(what, symbol, {
                "who": r.who, "reason": reason} if value else None))

    def limit(self, r: Request) -> Mapping[str, Any]:
        """Another value of a limit."""
        name, text = r.text("key", most=64), r.text("value", most=64)
        if name not in NUMBER:
            import difflib
            near = difflib.get_close_matches(name, NUMBER, 1, 0)
            raise UsageError(f"unknown limit {name}; nearest is {near[0]}")
        value = self._value(name, text)
        with self._lock:
            raw, old = dict(self._raw), parse_limits(self._raw)[name]
        new = parse_limits({**raw, name: value})[name]      # refuses what contradicts others

        def keep(reason: str) -> None:
            self._raw[name] = value
            tighter = loosens(name, new, parse_limits(self._configured)[name])
            self._keep("limit", name, {
                "value": text, "who": r.who, "reason": reason} if tighter else None)

        return self._do(r, KIND.LIMIT, new, other=NUMBER[name], loose=loosens(name, old, new),
                        detail={"key": name, "value": text, "old": old, "new": new}, keep=keep)

    @staticmethod
    def _value(name: str, text: str) -> Any:
        """*text* as a file would have it: a flag, a whole number, or the text itself."""
        from hftpipe.config import risk_keys
        key = next(k for k in risk_keys() if k.name == name)
        try:
            return key.kind.read(key.kind.from_text(text.replace("_", "")))
        except ValueError:
            raise ConfigError(f"{name} must be {key.kind.wanted}, was {text!r}") from None

    def rearm(self, r: Request) -> Mapping[str, Any]:
        """A strategy that executed too often may do so again."""
        name = r.text("strategy", most=64)
        if name not in self._strategies:
            raise UsageError(f"strategy must be one of {', '.join(self._strategies)}, was {name}")
        return self._do(r, KIND.REARM, 1, other=self._strategies.index(name), loose=True,
                        detail={"strategy": name})

    def breaker(self, r: Request) -> Mapping[str, Any]:
        """Open or close the circuit breaker by hand."""
        wanted = r.text("state", most=16)
        states = {"open": schema.BREAKER.OPEN, "close": schema.BREAKER.CLOSED}
        if wanted not in states:
            raise UsageError(f"state must be one of {', '.join(states)}, was {wanted}")
        return self._do(r, KIND.BREAKER, states[wanted], loose=wanted == "close",
                        detail={"state": wanted})

    # ------------------------------------------------------------ how it is done

    def _do(self, r: Request, kind: int, value: int, *, loose: bool, detail: Mapping[str, Any],
            instrument: int = 0, other: int = 0,
            keep: Callable[[str], object] = lambda reason: None) -> Mapping[str, Any]:
        reason = r.text("reason", empty=True)

        def entry(outcome: str, event: int | None = None, **more: Any) -> Entry:
            return Entry(self._run, r.who, r.command, reason, outcome, event, {**detail, **more})

        try:
            if loose and not reason:
                raise GuardError(f"{r.command} loosens the gate: --reason must say why")
            if loose:
                self._audit.now(entry("asked"))
            with self._lock:
                event, place = self._put(kind, value, instrument, other)
                keep(reason or "operator")
        except HftpipeError as e:
            self._audit.later(entry("refused", error=str(e)))
            raise
        self._audit.later(entry("done", event))
        applied = wait(lambda: self._link.taken >= place, APPLIED)
        return {"applied": applied, "loosened": loose, "event": event, "who": r.who,
                "reason": reason, **detail}

    def _put(self, kind: int, value: int, instrument: int, other: int) -> tuple[int, int]:
        """Send one figure; its identity, and its place on the link.  The caller has the lock."""
        if self._closed:
            raise BusyError("the run is ending")
        row = np.zeros(1, FIGURE)
        row["kind"], row["value"], row["ts_computed"] = kind, value, _clock.now_ns()
        row["instrument"], row["other"] = instrument, other
        if not self._stage.put_many(row):
            raise BusyError("the gate has not taken what was asked before; try again")
        return schema.event_id(schema.STREAM.OPERATOR, self._stage.stored[0]), self._link.published

    # ------------------------------------------------------------ across runs

    def _keep(self, what: str, key: str, value: Mapping[str, Any] | None) -> None:
        """Remember what is tightened, or that it is no longer."""
        if value is None:
            self._kept[what].pop(key, None)
        else:
            self._kept[what][key] = dict(value)
        self._run_dir.write(FILE, json.dumps(self._kept, indent=1) + "\n")

    def restore(self) -> list[str]:
        """Begin with what was tightened in earlier runs; what that is, in words.

        Raises
        ------
        ConfigError
            If ``risk.json`` is damaged: what it said is not known, so nothing may start.
        """
        words = []
        for what, key, entry in self._stored():
            try:
                if what == "limit":
                    value = self._value(key, str(entry["value"]))
                    old, new = (parse_limits(x)[key] for x in (
                        self._configured, {**self._raw, key: value}))
                    if not loosens(key, new, old):
                        continue                # the configuration is as tight by now
                    self._raw[key] = value
                    self._put(KIND.LIMIT, new, 0, NUMBER[key])
                elif key in self._symbols:
                    self._put(getattr(KIND, what.upper()), 1, self._symbols.index(key), 0)
                else:
                    words.append(f"{what} {key} is kept, but {key} is not traded")
                    self._kept[what][key] = dict(entry)
                    continue
            except (KeyError, StopIteration, ConfigError) as e:
                raise ConfigError(f"{FILE} in the run directory: {what} {key}: {e}") from None
            self._kept[what][key] = dict(entry)
            shown = f"{key} = {entry['value']}" if what == "limit" else key
            words.append(f"{what} {shown} ({entry.get('who')}: {entry.get('reason')})")
            self._audit.later(Entry(self._run, "supervisor", what, "kept from an earlier run",
                                    "done", None, {"key": key, **entry}))
        for word in words:
            self._say(word)
        return words

    def _stored(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        try:
            found = json.loads((self._run_dir.path / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as e:
            raise ConfigError(f"{FILE} in the run directory cannot be read: {e}") from None
        if not isinstance(found, dict):
            raise ConfigError(f"{FILE} in the run directory must hold a JSON object")
        for what in self._kept:
            entries = found.get(what, {})
            if not isinstance(entries, dict):
                raise ConfigError(f"{FILE} in the run directory: {what} must be an object")
            for key, entry in entries.items():
                if not isinstance(entry, dict):
                    raise ConfigError(f"{FILE} in the run directory: {what} {key} is no object")
                yield what, key, entry
