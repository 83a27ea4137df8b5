"""Packed models by name and version: a directory that only ever grows, and which one is current.

::

    index.json              every version with its sha256, and the current one of each name
    lock                    flock held while index.json is replaced
    NAME/VERSION/model.onnx the file, 0444; never written again

A version is what the index says it is: a file whose sha256 is another one is refused.  The file
stands before the index names it, and the index is replaced whole, so a process that is killed in
the middle leaves at most a file that nobody names; the next pack of that version replaces it.
"""
from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hftpipe import config as configuration
from hftpipe import rundir
from hftpipe.errors import AccessError, ConfigError
from hftpipe.models import DEMO

FORMAT = 1
NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
REFERENCE = re.compile(rf"({NAME.pattern})(?:@(\d{{1,9}}))?")
FILE = "model.onnx"


def default(path: str = "", base: Path | None = None) -> Path:
    """The registry's directory: *path* from *base*, or ``hftpipe/models`` in the user's data."""
    if path:
        return (base or Path.cwd()) / Path(path).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(os.path.abspath(data)) / "hftpipe" / "models"


@dataclass(frozen=True)
class Version:
    """One packed model."""

    name: str
    version: int
    sha256: str
    packed: str                 # UTC
    current: bool
    path: Path

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def id(self) -> int:
        """SIGNAL.model of what it says."""
        return int.from_bytes(bytes.fromhex(self.sha256)[:8], "little")


class Registry:
    """The registry in directory *path*, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ------------------------------------------------------------ reading

    def _index(self) -> dict[str, Any]:
        index = self.path / "index.json"
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as e:
            raise AccessError(f"{index}: {e.strerror}") from None
        except ValueError as e:
            raise ConfigError(f"{index} is not JSON: {e}") from None
        try:
            if found["format"] != FORMAT:
                raise ConfigError(f"{index}: wanted format {FORMAT}, found {found['format']}")
            models: dict[str, Any] = found["models"]
            for item in models.values():
                int(item["current"])
                for number, entry in item["versions"].items():
                    int(number), bytes.fromhex(entry["sha256"]), str(entry["packed"])
        except (AttributeError, KeyError, TypeError, ValueError) as e:
            raise ConfigError(f"{index} is damaged: {e!r}") from None
        return models

    def versions(self) -> list[Version]:
        """Everything packed, by name, then version."""
        return [Version(name, int(number), entry["sha256"], entry["packed"],
                        int(number) == item["current"],
                        self.path / name / number / FILE)
                for name, item in sorted(self._index().items())
                for number, entry in sorted(item["versions"].items(), key=lambda v: int(v[0]))]

    def find(self, reference: str) -> Version:
        """What ``NAME`` (its current version) or ``NAME@VERSION`` stands for.

        Raises
        ------
        ConfigError
            Naming what there is.
        """
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise ConfigError(f"model must be NAME or NAME@VERSION, was {reference!r}")
        name, number = match[1], match[2]
        known = self.versions()
        mine = [v for v in known if v.name == name]
        if not mine:
            names = ", ".join(dict.fromkeys(v.name for v in known)) or "none"
            raise ConfigError(f"model {reference}: wanted a name in registry {self.path}, found "
                              f"{names}")
        for v in mine:
            if v.current if number is None else v.version == int(number):
                return v
        packed = ", ".join(str(v.version) for v in mine)
        if number is None:
            raise ConfigError(f"model {name}: no version is current in registry {self.path} "
                              f"(found {packed}); hftpipe model promote")
        raise ConfigError(f"model {reference}: wanted a version in registry {self.path}, found "
                          f"{packed}")

    def by_id(self, model: int) -> Version | None:
        """The version whose SIGNAL.model is *model*."""
        return next((v for v in self.versions() if v.id == model), None)

    # ------------------------------------------------------------ writing

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise AccessError(f"model registry {self.path}: {e.strerror}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _write(self, models: dict[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, "models": models}, indent=1, sort_keys=True) + "\n"
        _replace(self.path / "index.json", text.encode(), 0o644)

    def add(self, name: str, data: bytes) -> Version:
        """Keep *data* as the next version of *name*; the same bytes are the same version.

        Raises
        ------
        ConfigError
            If *name* is none.
        AccessError
            If it cannot be written.
        """
        if not NAME.fullmatch(name) or name == "demo":
            raise ConfigError("model name must be 1 to 41 of a-z, 0-9, _ and -, starting with a "
                              f"letter, and not demo, was {name!r}")
        digest = hashlib.sha256(data).hexdigest()
        with self._locked():
            models = self._index()
            item = models.setdefault(name, {"current": 0, "versions": {}})
            same = [n for n, entry in item["versions"].items() if entry["sha256"] == digest]
            if not same:
                number = str(max(map(int, item["versions"]), default=0) + 1)
                folder = self.path / name / number
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as e:
                    raise AccessError(f"{folder}: {e.strerror}") from None
                _replace(folder / FILE, data, 0o444)
                item["versions"][number] = {"sha256": digest, "packed": rundir.utc_text()}
                self._write(models)
                same = [number]
        return self.find(f"{name}@{same[0]}")

    def promote(self, name: str, version: int) -> Version:
        """Make *version* the current one of *name*.

        Raises
        ------
        ConfigError
            If there is no such version, or its file is no longer the one that was packed.
        """
        with self._locked():
            found = self.find(f"{name}@{version}")
            self.verify(found)
            models = self._index()
            models[name]["current"] = version
            self._write(models)
        return dataclasses.replace(found, current=True)

    @staticmethod
    def verify(version: Version) -> None:
        """Refuse a file that is not the one that was packed."""
        try:
            digest = hashlib.sha256(version.path.read_bytes()).hexdigest()
        except OSError as e:
            raise ConfigError(f"model {version.reference}: {version.path}: {e.strerror}") from None
        if digest != version.sha256:
            raise ConfigError(f"model {version.reference}: wanted sha256 {version.sha256}, found "
                              f"{digest} in {version.path}")


def _replace(target: Path, data: bytes, mode: int) -> None:
    """Write *data* to *target*, whole or not at all; on disk when this returns."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = data
            while left:
                left = left[os.write(fd, left):]
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        raise AccessError(f"{target}: {e.strerror}") from None


# ---------------------------------------------------------------- what a configuration means

@dataclass(frozen=True)
class Found:
    """What a model's name in a configuration stands for now."""

    path: Path
    sha256: str | None          # what the registry or the configuration says it must be
    reference: str              # NAME@VERSION of a registered one, else the path, or demo


def resolve(model: str, sha256: str | None = None, registry: str = "",
            base: Path | None = None) -> Found:
    """Find a model by what a configuration calls it.

    Parameters
    ----------
    model : str
        "demo", a registered NAME or NAME@VERSION, or a path: anything with a slash or ending in
        ".onnx".
    sha256 : str, optional
        What the configuration wants.
    registry : str
        Directory of the registry; "" for the default one.
    base : Path, optional
        Where relative paths begin; the configuration's directory.

    Raises
    ------
    ConfigError
        If there is none, or the registry's is not the one that *sha256* names.
    """
    if model == "demo":
        return Found(DEMO, sha256, "demo")
    if "/" in model or model.endswith(".onnx"):
        path = configuration.model_path(model, base).absolute()
        return Found(path, sha256, str(path))
    version = Registry(default(registry, base)).find(model)
    if sha256 is not None and sha256.lower() != version.sha256:
        raise ConfigError(f"model {model}: wanted sha256 {sha256}, found {version.sha256} in "
                          "the registry")
    return Found(version.path, version.sha256, version.reference)


def by_id(number: int, settings: configuration.Config) -> Path:
    """The file of the model whose SIGNAL.model is *number*.

    The demo, one that the configuration names, or any version of the registry.

    Raises
    ------
    ConfigError
        If there is none.
    """
    base = settings.path.parent if settings.path else None
    folder = default(settings.models, base)
    wanted = number.to_bytes(8, "little").hex()
    paths = [DEMO, *(resolve(item.params["model"], None, str(folder), base).path
                     for item in settings.strategy if item.kind == "onnx")]
    for path in paths:
        with contextlib.suppress(OSError):
            if hashlib.sha256(path.read_bytes()).hexdigest().startswith(wanted):
                return path
    for version in Registry(folder).versions():
        if version.sha256.startswith(wanted):
            return version.path
    raise ConfigError(f"model with sha256 {wanted}...: wanted in the registry {folder}, found none")


def pin(settings: configuration.Config) -> configuration.Config:
    """*settings* with every model named for good: absolute path or version, and sha256.

    So all processes of a run load the same bytes, wherever they run and whatever is promoted
    meanwhile, and a recording says which they were.
    """
    base = settings.path.parent if settings.path else None
    folder = default(settings.models, base)
    items = []
    for item in settings.strategy:
        if item.kind == "onnx":
            params = dict(item.params)
            found = resolve(params["model"], params.get("sha256"), str(folder), base)
            try:
                digest = hashlib.sha256(found.path.read_bytes()).hexdigest()
            except OSError as e:
                raise ConfigError(f"model {found.path}: {e.strerror}") from None
            if found.sha256 is not None and found.sha256.lower() != digest:
                raise ConfigError(f"model {found.path}: wanted sha256 {found.sha256}, found "
                                  f"{digest}")
            params |= {"model": found.reference, "sha256": digest}
            item = dataclasses.replace(item, params=params)
        items.append(item)
    return dataclasses.replace(settings, strategy=tuple(items), models=str(folder))
