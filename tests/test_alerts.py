"""A halt reaches the webhook, once, after retries; its address is shown nowhere."""
import json
import threading

import pytest

from hftpipe import alerts
from hftpipe.alerts import Alerts, Webhook
from hftpipe.errors import ConfigError
from tests.models.receiver import receiver


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(alerts, "PAUSE", 0.01)


class Counts:
    def __init__(self, *hooks):
        self.lines, self.sent, self.failed = [], 0, 0
        self.alerts = Alerts(hooks, self.note, self.one_sent, self.one_failed)

    def note(self, level, event, **values):
        self.lines.append({"level": level, "event": event, **values})

    def one_sent(self):
        self.sent += 1

    def one_failed(self):
        self.failed += 1


def test_one_alert_is_one_post():
    with receiver() as (url, got):
        made = Counts(Webhook(url, "env:HOOK"))
        made.alerts.send("halted: news", epoch=3)
        made.alerts.close(30)
        assert got == [("/hook/s3cret?x=1", "application/json",
                        {"text": "halted: news", "epoch": 3})]
        assert (made.sent, made.failed) == (1, 0)
        assert made.lines == [{"level": "error", "event": "alert", "text": "halted: news",
                               "epoch": 3}]


def test_it_is_tried_again_and_a_redirect_is_not_followed(quick):
    with receiver(500, 302) as (url, got):
        made = Counts(Webhook(url, "env:HOOK"))
        made.alerts.send("x")
        made.alerts.close(30)
        assert [path for path, _, _ in got] == ["/hook/s3cret?x=1"] * 3
        assert (made.sent, made.failed) == (1, 0)


def test_it_is_given_up_and_the_address_not_told(quick):
    with receiver(*[503] * 5) as (url, got):
        made = Counts(Webhook(url, "env:HOOK"))
        made.alerts.send("x")
        made.alerts.send("y")
        made.alerts.close(30)
        assert len(got) == 6 and (made.sent, made.failed) == (1, 1)
    gone = Counts(Webhook(url, "env:HOOK"))
    gone.alerts.send("z")
    gone.alerts.close(30)
    assert gone.failed == 1
    shown = json.dumps(made.lines + gone.lines) + repr(Webhook(url, "env:HOOK"))
    assert "s3cret" not in shown and "env:HOOK" in shown and "HTTP 503" in shown


def test_without_receivers_there_is_the_log():
    made = Counts()
    made.alerts.send("x")
    made.alerts.close(30)
    assert [line["event"] for line in made.lines] == ["alert"] and made.sent == 0


def test_nobody_waits_for_a_receiver(monkeypatch):
    release = threading.Event()
    hook = Webhook("http://127.0.0.1:9/", "env:HOOK")
    monkeypatch.setattr(hook, "post", lambda body: "" if release.wait(60) else "late")
    made = Counts(hook)
    for number in range(alerts.WAITING + 10):
        made.alerts.send(str(number))
    assert 8 <= made.failed <= 10, "what does not fit is dropped and counted"
    release.set()


@pytest.mark.parametrize("url", ["", "ftp://x/", "http://example.com/hook", "https://", "x"])
def test_an_address_that_is_none_is_refused_without_being_shown(url):
    with pytest.raises(ConfigError, match=r"^observe.alerts: env:H must hold an https:// address$"):
        Webhook(url, "env:H")
