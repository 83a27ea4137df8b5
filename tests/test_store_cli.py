"""`hftpipe db` migrates, tells the state and the address, for our own server and for a URL."""
import json
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict

from hftpipe.cli._common import Settings
from hftpipe.cli.db import command
from hftpipe.errors import ConfigError, NotRunningError
from hftpipe.store.migrate import sql_files
from hftpipe.store.postgres import Postgres

from .models.database import QUICK, fresh, run_directory, server

pytestmark = pytest.mark.db
LAST = len(sql_files())


def run(*args):
    result = CliRunner().invoke(command, args, catch_exceptions=True, obj=Settings())
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_embedded_is_started_for_the_command_and_stopped_after_it():
    with run_directory() as place:
        where = ("--url", "embedded", "--run-dir", str(place))
        assert json.loads(run("-o", "json", "migrate", *where)) == {
            "applied": [f"{m.version:04}_{m.name}" for m in sql_files()], "version": LAST}
        assert run("migrate", *where) == f"database is at version {LAST}, nothing to do\n"
        assert not Postgres(place)._inhabitants()
        with pytest.raises(NotRunningError, match="no database runs in"):
            run("url", *where)
        with Postgres(place, QUICK) as conninfo:
            assert run("url", *where) == conninfo + "\n"
            assert json.loads(run("url", *where, "-o", "json")) == {"url": conninfo}
            state = json.loads(run("status", *where, "-o", "json"))
            assert state["version"] == LAST and state["pending"] == [] and state["runs"] == []
            assert f"version {LAST}, up to date" in run("status", *where)


def test_a_url(monkeypatch, tmp_path):
    with server() as p:
        conninfo = conninfo_to_dict(fresh(p, "template1"))
        secret = (p.home / "password").read_text().strip().rsplit(":", 1)[1]
        url = (f"postgresql://hftpipe:{secret}@/{conninfo['dbname']}"
               f"?host={quote(conninfo['host'], safe='')}")
        from hftpipe.cli.why import command as why
        result = CliRunner().invoke(why, ["--last", "--url", url], obj=Settings())
        assert isinstance(result.exception, ConfigError)
        assert "hftpipe db migrate" in str(result.exception)
        assert "\n" not in str(result.exception)
        state = run("status", "--url", url)
        assert "pending: 0001_init" in state
        assert run("migrate", "--url", url).startswith("applied 0001_init\n")
        assert run("url", "--url", url) == url + "\n"
    with pytest.raises(ConfigError, match="cannot connect to the database") as e:
        run("status", "--url", url)
    assert "\n" not in str(e.value) and secret not in str(e.value)
