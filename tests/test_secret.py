"""Where references to credentials lead: environment, file, keyring, Vault; and what is refused."""
import copy
import json
import os
import pickle
import subprocess
import sys
import traceback
import types
from contextlib import contextmanager

import pytest

from hftpipe import config
from hftpipe.errors import ConfigError
from hftpipe.secret import LARGEST, REFERENCE, Secret, give, scrub, variables
from tests.models import httpd
from tests.tls import Authority

CANARY = "canary-7f3a"
TOKEN = "hvs.token-9c1e"


def refused(reference):
    """The one line that *reference* is refused with."""
    with pytest.raises(ConfigError) as e:
        Secret(reference).reveal()
    message = str(e.value)
    assert "\n" not in message and CANARY not in message and TOKEN not in message
    assert e.value.__suppress_context__ or e.value.__context__ is None
    return message


@pytest.mark.parametrize("good", [
    "env:A", "file:/run/x y", "keyring:hftpipe/alpaca key", "vault:secret/data/alpaca#key",
    "env:A|vault:kv/a#b|keyring:s/u"])
def test_what_a_reference_looks_like(good):
    assert REFERENCE.fullmatch(good)
    assert config.loads("", sets=[f"venue.key={good}"]).venue.key.reference == good


@pytest.mark.parametrize("bad", [
    "PK" + CANARY, "env:", "env:1A", "file:", "keyring:only", "keyring:/u", "vault:kv/a",
    "vault:#f", "vault:kv/a?x=y#f", "env:A|", "aws:x"])
def test_what_is_no_reference_is_refused_and_not_repeated(bad):
    for key in ("venue.key", "venue.secret", "store.password"):
        with pytest.raises(ConfigError) as e:
            config.loads("", sets=[f"{key}={bad}"])
        assert f"{key} must be a reference" in str(e.value)
        assert CANARY not in str(e.value)


# ---------------------------------------------------------------- files

def private(path, data):
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def test_files_that_are_no_credential_are_one_line(tmp_path):
    def of(name, data):
        return f"file:{private(tmp_path / name, data)}"

    assert Secret(of("good", b" " + CANARY.encode() + b"\n")).reveal() == CANARY
    assert "not UTF-8 at byte 0" in refused(of("latin", b"\xff\xfe"))
    assert "larger than" in refused(of("large", CANARY.encode() * LARGEST))
    assert "one line" in refused(of("two", CANARY.encode() + b"\nX: y"))
    assert "found nothing" in refused(of("empty", b""))
    assert "found nothing" in refused(f"file:{tmp_path / 'absent'}")
    os.mkfifo(tmp_path / "pipe", 0o600)         # nobody writes: it must not hang
    assert "found nothing" in refused(f"file:{tmp_path / 'pipe'}")
    (tmp_path / "folder").mkdir(mode=0o700)
    assert "credential file" in refused(f"file:{tmp_path / 'folder'}")
    for mode in (0o640, 0o604, 0o660):
        (tmp_path / "good").chmod(mode)
        assert f"was uid {os.geteuid()} mode 0{mode:o}" in refused(f"file:{tmp_path / 'good'}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path):
    file = private(tmp_path / "key", CANARY.encode())
    os.chown(file, 65534, 65534)
    assert "must belong to this user" in refused(f"file:{file}")


# ---------------------------------------------------------------- keyring

def test_a_keyring_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)
    assert "needs the package keyring" in refused("keyring:hftpipe/key")


def test_keyring_entries():
    keyring = pytest.importorskip("keyring")
    from keyring.backend import KeyringBackend

    class Memory(KeyringBackend):
        priority = 1

        def get_password(self, service, username):
            if service == "broken":
                raise RuntimeError(CANARY)
            return {("hftpipe", "alpaca/key"): CANARY}.get((service, username))

        set_password = delete_password = None

    before = keyring.get_keyring()
    keyring.set_keyring(Memory())
    try:
        assert Secret("keyring:hftpipe/alpaca/key").reveal() == CANARY
        assert "found nothing" in refused("keyring:hftpipe/other")
        assert "RuntimeError of the keyring" in refused("keyring:broken/x")
    finally:
        keyring.set_keyring(before)


# ---------------------------------------------------------------- Vault

SECRETS = {
    "/v1/kv/alpaca": {"data": {"key": CANARY, "n": 5}},
    "/v1/secret/data/alpaca": {"data": {"data": {"key": CANARY}, "metadata": {"version": 1}}},
    "/v1/kv/odd": ["no secret"],
}


@contextmanager
def vault(context=None):
    """A server that answers as Vault does; its port and the requests it saw."""
    seen = []

    class Answer(httpd.Handler):
        def do_GET(self):
            seen.append((self.path, self.headers.get("X-Vault-Token")))
            status, body = 404, {"errors": []}
            if self.headers.get("X-Vault-Token") != TOKEN:
                status, body = 403, {"errors": ["permission denied"]}
            elif self.path == "/v1/kv/moved":
                status = 307
            elif self.path in SECRETS:
                status, body = 200, SECRETS[self.path]
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "/v1/kv/alpaca")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

    with httpd.serving(Answer, context) as port:
        yield types.SimpleNamespace(port=port, seen=seen)


@pytest.fixture
def clean(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("VAULT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_vault_gives_fields_of_both_engines(clean, tmp_path):
    with vault() as server:
        clean.setenv("VAULT_ADDR", f"http://127.0.0.1:{server.port}")
        assert "found none" in refused("vault:kv/alpaca#key") and not server.seen
        clean.setenv("VAULT_TOKEN", TOKEN)
        assert Secret("vault:kv/alpaca#key").reveal() == CANARY
        assert Secret("vault:secret/data/alpaca#key").reveal() == CANARY
        assert server.seen == [("/v1/kv/alpaca", TOKEN), ("/v1/secret/data/alpaca", TOKEN)]
        assert "found nothing" in refused("vault:kv/absent#key")
        assert "found nothing" in refused("vault:kv/alpaca#absent")
        assert "must be text, was int" in refused("vault:kv/alpaca#n")
        assert "is no secret" in refused("vault:kv/odd#key")
        seen = len(server.seen)
        assert "answered HTTP 307" in refused("vault:kv/moved#key")
        assert len(server.seen) == seen + 1, "a redirect is not followed"
        clean.setenv("VAULT_TOKEN", "wrong")
        assert "answered HTTP 403" in refused("vault:kv/alpaca#key")
        clean.setenv("VAULT_TOKEN", "a\r\nX-Evil: b")
        assert "printable ASCII" in refused("vault:kv/alpaca#key")
        clean.delenv("VAULT_TOKEN")
        private(tmp_path / ".vault-token", TOKEN.encode() + b"\n")
        assert Secret("vault:kv/alpaca#key").reveal() == CANARY
        (tmp_path / ".vault-token").chmod(0o644)
        assert "mode 0600" in refused("vault:kv/alpaca#key")
    clean.setenv("VAULT_TOKEN", TOKEN)
    assert "no answer of 127.0.0.1: Connection refused" in refused("vault:kv/alpaca#key")


@pytest.mark.parametrize(("address", "words"), [
    ("", "found none"), ("vault.example", "another form"), ("ftp://h", "another form"),
    (f"https://u:{CANARY}@h", "another form"), ("http://h:x", "another form"),
    ("http://vault.example:8200", "must be https://"), ("http://127.evil.example", "must be https"),
])
def test_vault_is_asked_over_https_only(clean, address, words):
    clean.setenv("VAULT_TOKEN", TOKEN)
    clean.setenv("VAULT_ADDR", address)
    assert words in refused("vault:kv/alpaca#key")


def test_vault_must_have_a_certificate_that_is_believed(clean, tmp_path):
    authority = Authority(tmp_path)
    with vault(authority.server()) as server:
        clean.setenv("VAULT_TOKEN", TOKEN)
        clean.setenv("VAULT_ADDR", f"https://localhost:{server.port}")
        assert "no answer of localhost" in refused("vault:kv/alpaca#key") and not server.seen
        clean.setenv("VAULT_CACERT", str(authority.file))
        assert Secret("vault:kv/alpaca#key").reveal() == CANARY


# ---------------------------------------------------------------- the database's password

@pytest.mark.parametrize("url", [
    f"postgresql://a:{CANARY}@h/d", f"postgresql://a@h/d?password={CANARY}",
    f"postgresql://h/d?PASSWORD={CANARY}", f"postgresql://h/d?p%61ssword={CANARY}",
    f"postgres://a:{CANARY}/x@h/d", f"postgresql://h/d?x=1&sslpassword={CANARY}"])
def test_an_address_with_a_password_is_refused_and_the_password_not_repeated(url):
    with pytest.raises(ConfigError) as e:
        config.loads("", sets=[f"store.url={url}"])
    assert "without a password" in str(e.value) and CANARY not in str(e.value)


@pytest.mark.parametrize("url", ["postgresql://u@h:5432/d?sslmode=require", "postgresql://h/d",
                                 "postgresql://u@%2Ftmp%2Fx:5432/d", "embedded"])
def test_an_address_without_one_is_taken(url):
    assert config.loads("", sets=[f"store.url={url}"]).store.url == url


# ---------------------------------------------------------------- not printed, not handed on

def test_a_secret_cannot_be_printed_formatted_copied_or_pickled():
    secret = Secret.literal(CANARY)
    assert secret.reveal() == CANARY and bool(secret) and not Secret("")
    for text in (str(secret), repr(secret), f"{secret}", f"{secret!r}", f"{secret:>20}",
                 "%s %r" % (secret, secret),  # noqa: UP031
                 repr([secret]), repr({"key": secret}),
                 json.dumps({"key": secret}, default=str)):
        assert CANARY not in text and "<redacted>" in text
    for copy_of in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="a secret is not pickled"):
            copy_of(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)
    with pytest.raises(TypeError):
        vars(secret)
    try:
        raise RuntimeError(secret)
    except RuntimeError:
        assert CANARY not in traceback.format_exc()


def test_what_was_read_is_taken_out_of_texts(monkeypatch):
    monkeypatch.setenv("SCRUBBED", "scrub-me-41d7")
    assert scrub("it is scrub-me-41d7") == "it is scrub-me-41d7", "not read yet"
    assert Secret("env:SCRUBBED").reveal() == "scrub-me-41d7"
    assert scrub("it is scrub-me-41d7, scrub-me-41d7!") == "it is <redacted>, <redacted>!"
    monkeypatch.setenv("SCRUBBED", "abc")
    assert Secret("env:SCRUBBED").reveal() == "abc" and scrub("abc") == "abc", "too short to tell"


def test_a_keyring_or_vault_is_asked_once(clean):
    """Who must cancel orders does so when Vault has gone."""
    clean.setenv("VAULT_TOKEN", TOKEN)
    with vault() as server:
        clean.setenv("VAULT_ADDR", f"http://127.0.0.1:{server.port}")
        secret = Secret("vault:kv/alpaca#key")
        assert secret.reveal() == CANARY
    assert secret.reveal() == CANARY and len(server.seen) == 1


def test_variables_that_references_name():
    assert variables(["env:A|file:/x", "vault:kv/a#b", "webhook:env:HOOK", "", "log",
                      "keyring:s/u"]) == {"A", "HOOK", "VAULT_TOKEN"}


def test_variables_go_through_a_pipe_and_show_nowhere(monkeypatch):
    monkeypatch.setenv("GIVEN_A", CANARY)
    monkeypatch.delenv("GIVEN_B", raising=False)
    assert give({"GIVEN_B"}) is None
    end = give({"GIVEN_A", "GIVEN_B"})
    code = ("import os; from hftpipe import secret; secret.take(0); "
            "print(os.environ['GIVEN_A'], 'GIVEN_B' in os.environ, "
            "os.environ['GIVEN_A'].encode() in open('/proc/self/environ', 'rb').read())")
    env = {k: v for k, v in os.environ.items() if k != "GIVEN_A"}
    try:
        done = subprocess.run([sys.executable, "-c", code], stdin=end, env=env, check=True,
                              capture_output=True, text=True)
    finally:
        os.close(end)
    assert done.stdout.split() == [CANARY, "False", "False"]
    monkeypatch.setenv("GIVEN_A", "x" * (4 << 20))
    open_before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match="GIVEN_A must fit into a pipe"):
        give({"GIVEN_A"})
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_who_has_read_a_credential_leaves_no_core():
    code = ("import resource; from hftpipe.secret import Secret; "
            "resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(4)[1],) * 2); "
            "Secret.literal('canary'); print(resource.getrlimit(resource.RLIMIT_CORE)[0])")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) in (0, 1)
