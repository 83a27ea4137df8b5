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
        host = quote(conninfo["host"], safe="")
        url = f"postgresql://hftpipe@/{conninfo['dbname']}?host={host}"
        monkeypatch.setenv("TRADING_DB", secret)
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
        where = ("--set", "store.password=env:TRADING_DB", "--url", url)
        from hftpipe.cli.why import command as why
        result = CliRunner().invoke(why, ["--last", *where], obj=Settings())
        assert isinstance(result.exception, ConfigError)
        assert "hftpipe db migrate" in str(result.exception)
        assert "\n" not in str(result.exception)
        assert "pending: 0001_init" in run("status", *where)
        assert run("migrate", *where).startswith("applied 0001_init\n")
        assert run("url", *where) == url + "\n"
        with pytest.raises(ConfigError, match="cannot connect to the database"):
            run("status", "--url", url)                 # the server wants one
        monkeypatch.setenv("TRADING_DB", "wrong-0b5e")
        with pytest.raises(ConfigError, match="password authentication failed") as e:
            run("status", *where)
        assert "wrong-0b5e" not in str(e.value)
        monkeypatch.delenv("TRADING_DB")
        with pytest.raises(ConfigError, match="no credential: env:TRADING_DB must hold one"):
            run("status", *where)
        monkeypatch.setenv("TRADING_DB", secret)
    with pytest.raises(ConfigError, match="cannot connect to the database") as e:
        run("status", *where)
    assert "\n" not in str(e.value) and secret not in str(e.value)


@pytest.mark.parametrize("url", ["postgresql://bob:hunter2@h/d", "postgresql://h/d?password=hunter2"])
@pytest.mark.parametrize("name", ["status", "migrate", "url"])
def test_a_password_on_the_command_line_is_refused(name, url):
    """Everybody on the host can read it there; it is not repeated either."""
    result = CliRunner().invoke(command, [name, "--url", url], obj=Settings())
    assert result.exit_code == 2 and "--url must hold no password" in result.output
    assert "hunter2" not in result.output
