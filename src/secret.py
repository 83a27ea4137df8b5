"""References to credentials, and where they lead: environment, file, keyring, Vault.

A configuration names a place; the credential is read by the process that needs it, when it needs
it, and stands nowhere else.  ``env:NAME`` is an environment variable, ``file:PATH`` a file that
belongs to this user alone, ``keyring:SERVICE/USER`` an entry of the desktop's or host's keyring
(package ``keyring``), ``vault:PATH#FIELD`` a field of a secret in Vault.
"""
from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from hftpipe.errors import ConfigError

_ONE = r"(env:[A-Za-z_]\w*|file:[^|]+|keyring:[^|/]+/[^|]+|vault:[\w./-]+#[\w.-]+)"
REFERENCE = re.compile(rf"{_ONE}(\|{_ONE})*", re.ASCII)
TIMEOUT = 5.0                   # s for Vault to answer
LARGEST = 64 << 10              # bytes of a credential file or of Vault's answer


class Secret:
    """A reference to a credential; the credential itself is read when it is needed.

    Alternatives stand behind ``|``, the first that exists counts.  Never printed, logged, copied
    into a file or pickled.
    """

    __slots__ = ("_value", "reference")

    def __init__(self, reference: str, value: str = "") -> None:
        self.reference = reference
        self._value = value

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
        """The credential.  ConfigError, without its text, when there is none."""
        if self._value or not self.reference:
            return self._value
        for reference in self.reference.split("|"):
            scheme, _, name = reference.partition(":")
            found = _SOURCES[scheme](name)
            if found:
                if not found.isprintable():     # it goes into headers; do not let it split them
                    raise ConfigError(f"credential {reference} must be one line of printable "
                                      "text, is not")
                return found
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
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ConfigError(f"credential file {path} must be a file, is something else")
    with os.fdopen(fd, "rb") as file:
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigError(f"credential file {path} must belong to this user and be "
                              f"mode 0600, was uid {status.st_uid} mode "
                              f"{status.st_mode & 0o777:04o}")
        try:
            data = file.read(LARGEST + 1)
            if len(data) > LARGEST:
                raise ConfigError(f"credential file {path} must hold one credential, "
                                  f"was larger than {LARGEST} bytes")
            return data.decode().strip()
        except OSError as e:
            raise ConfigError(f"credential file {path}: {e.strerror}") from None
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
            # A redirect is not followed: it would take the token along.
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
