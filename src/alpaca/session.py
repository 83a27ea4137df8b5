"""Everything about Alpaca that may be slow: credentials, TLS, handshakes, cold REST calls.

The two streams and the order wire start here; what comes after start-up runs in
``_socket``, ``_codec`` and ``_http``.
"""
from __future__ import annotations

import base64
import hashlib
import http.client
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from hftpipe.errors import ConfigError, DataError, DeadlineError, HftpipeError


class _Revealing(Protocol):
    def reveal(self) -> str: ...


class Secret:
    """A string that no repr, format, log or pickle shows; :meth:`reveal` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself."""
        return self._value

    def __repr__(self) -> str:
        return "<redacted>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return "<redacted>"

    def __reduce__(self) -> Any:
        raise TypeError("a secret is not written anywhere")


SecretLike = str | Secret | _Revealing


def reveal(value: SecretLike) -> str:
    """The text of *value*, a plain string or anything that has ``reveal()``."""
    return value if isinstance(value, str) else value.reveal()


def verified_context() -> ssl.SSLContext:
    """TLS 1.2 or newer, chain and host name verified."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
