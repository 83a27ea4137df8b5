"""``audit.jsonl`` of a run directory into the table ``halt_log``: each line once."""
from __future__ import annotations

import json
import uuid
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

TIMEOUT = "2s"
INSERT = ("INSERT INTO hftpipe.halt_log (id, run, at, action, way, who, reason, epoch, line) "
          "VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING")


def rows(data: bytes) -> list[tuple[Any, ...]]:
    """Values of the table for every line that is whole; one that is no entry is left out."""
    out: list[tuple[Any, ...]] = []
    for line in data.splitlines():
        try:
            found = json.loads(line)
            run = int(found["run"], 16) if found.get("run") else None
            out.append((uuid.UUID(found["id"]), run, found["when"], found["action"],
                        found.get("way", ""), found.get("who", ""), found.get("reason", ""),
                        found.get("epoch"), Jsonb(found)))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue                    # torn by a full disk; the file itself keeps it
    return out


def copy(conninfo: str, data: bytes) -> int:
    """Store the lines of *data* that are not stored yet; how many it holds.

    Raises
    ------
    psycopg.Error
        If the database cannot be reached or refuses; nothing was stored then.
    """
    found = rows(data)
    if found:
        with psycopg.connect(conninfo, connect_timeout=2, application_name="hftpipe guardian",
                             options=f"-c statement_timeout={TIMEOUT}") as c:
            with c.cursor() as cursor:
                cursor.executemany(INSERT, found)
    return len(found)
