"""What a process does around its stages."""
from hftpipe import config, worker


def test_what_a_recording_keeps_of_the_configuration_has_no_password():
    settings = config.loads("[store]\nurl = 'postgresql://bob:hunter2@db/x'\nrecord = 'a.rec'\n"
                            "[risk]\nmax_open_orders = 3", env={})
    text = worker.shared_config(settings)
    assert "hunter2" not in text
    again = config.loads(text, env={})
    assert again.risk == settings.risk and again.store.record == "a.rec"
