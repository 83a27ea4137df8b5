"""What every test leaves behind: the real clock, whatever event time it ran on."""
from hftpipe import _clock


def pytest_runtest_teardown():
    _clock.unset_virtual()
