"""A real PostgreSQL for a test module, and a fresh migrated database for each test."""
import contextlib
import itertools
import shutil
import tempfile
import time
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from hftpipe.store.migrate import migrate
from hftpipe.store.postgres import Postgres

QUICK = {"fsync": "off"}        # processes are killed here, not the host

_number = itertools.count(1)


def until(condition, seconds=20.0, what="condition"):
    """Wait for a condition; fail when it does not come true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.005)
    return found


@contextlib.contextmanager
def run_directory():
    """A private run directory as a user has it, gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="hp"))
    try:
        yield place / "run"
    finally:
        shutil.rmtree(place)


@contextlib.contextmanager
def server():
    """``(Postgres, conninfo of a migrated template)``."""
    with run_directory() as place:
        p = Postgres(place, QUICK)
        try:
            migrate(p.start())
            yield p
        finally:
            p.stop()


def fresh(p, template="hftpipe"):
    """Conninfo of a new copy of *template* (``template1`` = empty)."""
    name = f"t{next(_number)}"
    with psycopg.connect(make_conninfo(p.conninfo, dbname="postgres"), autocommit=True) as c:
        c.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    return make_conninfo(p.conninfo, dbname=name)
