"""References to credentials, and where they lead: environment, file, keyring, Vault.

A configuration names a place; the credential is read by the process that needs it, when it needs
it, and stands nowhere else.  ``env:NAME`` is an environment variable, ``file:PATH`` a file that
belongs to this user alone, ``keyring:SERVICE/USER`` an entry of the desktop's or host's keyring
(package ``keyring``), ``vault:PATH#FIELD`` a field of a secret in Vault.

What was read is known to :func:`scrub`, which every line of a log and every error message goes
through, and a process that has read one leaves no core.  Processes of a run do not inherit
credentials in their environment, where all of this user's processes could read them: they are given
theirs through a pipe (:func:`give`, :func:`take`).
"""
from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from hftpipe.errors import ConfigError

_ONE = r"(env:[A-Za-z_]\w*|file:[^|]+|keyring:[^|/]+/[^|]+|vault:[\w./-]+#[\w.-]+)"
REFERENCE = re.compile(rf"{_ONE}(\|{_ONE})*", re.ASCII)
TIMEOUT = 5.0                   # s for Vault to answer
LARGEST = 64 << 10              # bytes of a credential file or of Vault's answer
SHORTEST = 4                    # characters; what is shorter is not looked for in texts
REDACTED = "<redacted>"
# Variables that hold credentials whatever a configuration refers to: the broker's, libpq's, Vault's
VARIABLES = frozenset({"ALPACA_API_KEY", "ALPACA_SECRET_KEY", "APCA_API_KEY_ID",
                       "APCA_API_SECRET_KEY", "PGPASSWORD", "VAULT_TOKEN"})
_read: set[str] = set()         # credentials that this process has read


def _learn(value: str) -> str:
    """Keep *value* out of texts and cores from now on."""
    if len(value) >= SHORTEST and value not in _read:
        _read.add(value)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        # 1, not 0: that also stops cores which are piped to a program, core(5)
        most = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
        resource.setrlimit(resource.RLIMIT_CORE, (most, hard))
    return value


def scrub(text: str) -> str:
    """*text* without any credential that this process has read."""
    for value in _read:
        if value in text:
            text = text.replace(value, REDACTED)
    return text


def variables(references: Iterable[str]) -> frozenset[str]:
    """Environment variables that hold what *references* lead to, or open the place."""
    found = set()
    for reference in "|".join(references).split("|"):
        scheme, _, name = reference.removeprefix("webhook:").partition(":")
        if scheme == "env":
            found.add(name)
        elif scheme == "vault":
            found.add("VAULT_TOKEN")
    return frozenset(found)


def give(names: Collection[str]) -> int | None:
    """A pipe's end to read the variables *names* from, for :func:`take`; None when none is set.

    Raises
    ------
    ConfigError
        If they do not fit into a pipe.
    """
    given = {name: os.environ[name] for name in sorted(names) if name in os.environ}
    if not given:
        return None
    end, ours = os.pipe()
    try:
        os.set_blocking(ours, False)            # nobody reads yet
        data = json.dumps(given).encode()
        try:
            written = os.write(ours, data)
        except BlockingIOError:
            written = 0
        if written < len(data):
            raise ConfigError(f"credentials in {', '.join(given)} must fit into a pipe, "
                              f"were {len(data)} bytes")
    except BaseException:       # whatever it is goes on; nobody would close the end
        os.close(end)
        raise
    finally:
        os.close(ours)
    return end


def take(fd: int) -> None:
    """Set the variables that :func:`give` was asked for; /proc shows none of them."""
    data = b""
    while part := os.read(fd, LARGEST):
        data += part
    if data:
        os.environ.update(json.loads(data))


class Secret:
    """A reference to a credential; the credential itself is read when it is needed.

    Alternatives stand behind ``|``, the first that exists counts.  Never printed, logged, copied
    into a file or pickled.
    """

    __slots__ = ("_kept", "_value", "reference")

    def __init__(self, reference: str, value: str = "") -> None:
        self.reference = reference
        self._value = _learn(value)
        self._kept = ""                         # what a keyring or Vault has said

    @classmethod
    def literal(cls, value: str) -> Secret:
        """A credential that this program made itself (the local venue's)."""
        return cls("", value)

    def __bool__(self) -> bool:
        return bool(self.reference or self._value)

    def __repr__(self) -> str:
        return f"Secret({self.reference!r})" if self.reference else "Secret(<redacted>)"

    def __str__(self) -> str:
        return "<redacted>"

    def __format__(self, spec: str) -> str:
        return format("<redacted>", spec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self.reference, self._value) == (other.reference, other._value)

    def __hash__(self) -> int:
        return hash(self.reference)

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not pickled; pass its reference")

    def reveal(self) -> str:
        """The credential.  ConfigError, without its text, when there is none.

        A file or variable is read again each time; a keyring or Vault is asked once, because
        orders must be cancelled when it does not answer.
        """
        if self._value or not self.reference:
            return self._value
        if self._kept:
            return self._kept
        for reference in self.reference.split("|"):
            scheme, _, name = reference.partition(":")
            found = _SOURCES[scheme](name)
            if found:
                if not found.isprintable():     # it goes into headers; do not let it split them
                    raise ConfigError(f"credential {reference} must be one line of printable "
                                      "text, is not")
                if scheme in ("keyring", "vault"):
                    self._kept = found
                return _learn(found)
        raise ConfigError(f"no credential: {self.reference.replace('|', ' and ')} "
                          "must hold one, found nothing")


def _environment(name: str) -> str:
    return os.environ.get(name, "").strip()


def _file(name: str) -> str:
    """Content of a file that this user alone can read; empty when there is none."""
    path = Path(name).expanduser()
    try:
        # Not to hang on a pipe that nobody writes to
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError as e:
        raise ConfigError(f"credential file {path}: {e.strerror}") from None
    try:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigError(f"credential file {path} must belong to this user and be "
                              f"mode 0600, was uid {status.st_uid} mode "
                              f"{status.st_mode & 0o777:04o}")
        data = b""
        while len(data) <= LARGEST and (part := os.read(fd, LARGEST + 1 - len(data))):
            data += part
    except OSError as e:                        # a directory, a disk
        raise ConfigError(f"credential file {path}: {e.strerror}") from None
    finally:
        os.close(fd)
    if len(data) > LARGEST:
        raise ConfigError(f"credential file {path} must hold one credential, "
                          f"was larger than {LARGEST} bytes")
    try:
        return data.decode().strip()
    except UnicodeDecodeError as e:
        raise ConfigError(f"credential file {path}: not UTF-8 at byte {e.start}") from None


def _keyring(name: str) -> str:
    service, _, user = name.partition("/")
    try:
        import keyring
    except ImportError:
        raise ConfigError(f"credential keyring:{name} needs the package keyring, which is not "
                          "installed: pip install 'hftpipe[keyring]'") from None
    try:
        return (keyring.get_password(service, user) or "").strip()
    except Exception as e:                      # a backend's own, whatever it is
        raise ConfigError(f"credential keyring:{name}: {type(e).__name__} of the keyring") from None


def _vault_token() -> str:
    """VAULT_TOKEN, else the file that Vault's own command keeps it in."""
    token = _environment("VAULT_TOKEN") or _file(
        os.environ.get("VAULT_TOKEN_FILE") or "~/.vault-token")
    if not token:
        raise ConfigError("Vault wants a token in VAULT_TOKEN, VAULT_TOKEN_FILE or "
                          "~/.vault-token, found none")
    if not token.isprintable() or not token.isascii():
        raise ConfigError("Vault's token must be printable ASCII, is not")
    return token


def _vault(name: str) -> str:
    """A field of a secret, of either version of the key-value engine; empty when there is none."""
    import http.client
    import ssl
    path, _, field = name.partition("#")
    address = os.environ.get("VAULT_ADDR", "")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if parts.scheme not in ("https", "http") or not host or "@" in parts.netloc:
        raise ConfigError("credential vault: wants the server's https:// address in VAULT_ADDR, "
                          "without user or password, found "
                          + ("none" if not address else "another form"))
    local = host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host)
    if parts.scheme == "http" and not local:
        raise ConfigError(f"VAULT_ADDR must be https:// unless it is this machine's, was http "
                          f"to {host}")
    headers = {"X-Vault-Token": _vault_token(), "X-Vault-Request": "true"}
    if namespace := os.environ.get("VAULT_NAMESPACE"):
        headers["X-Vault-Namespace"] = namespace
    connection: http.client.HTTPConnection
    try:
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=os.environ.get("VAULT_CACERT") or None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
        else:
            connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        try:
            connection.request("GET", f"{parts.path.rstrip('/')}/v1/{quote(path)}",
                               headers=headers)
            # A redirect is not followed: it would take the token elsewhere
            with connection.getresponse() as answer:
                status, body = answer.status, answer.read(LARGEST + 1)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as e:
        words = e.strerror if isinstance(e, OSError) and e.strerror else type(e).__name__
        raise ConfigError(f"credential vault:{name}: no answer of {host}: {words}") from None
    if status == 404:
        return ""
    if status != 200:
        raise ConfigError(f"credential vault:{name}: {host} answered HTTP {status}")
    try:
        data = json.loads(body)["data"]
        if isinstance(data.get("data"), dict) and "metadata" in data:   # version 2 of the engine
            data = data["data"]
        found = data.get(field, "")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"credential vault:{name}: the answer of {host} is no secret") from None
    if not isinstance(found, str):
        raise ConfigError(f"credential vault:{name} must be text, was {type(found).__name__}")
    return found.strip()


_SOURCES = {"env": _environment, "file": _file, "keyring": _keyring, "vault": _vault}
