"""What a process does around its stages."""
from hftpipe import config, worker


def test_what_a_recording_keeps_of_the_configuration_does_not_lead_to_the_database():
    settings = config.loads("[store]\nurl = 'postgresql://bob@db/x'\npassword = 'env:BOBS'\n"
                            "record = 'a.rec'\n[risk]\nmax_open_orders = 3", env={})
    text = worker.shared_config(settings)
    assert "bob" not in text.lower()
    again = config.loads(text, env={})
    assert again.risk == settings.risk and again.store.record == "a.rec"
