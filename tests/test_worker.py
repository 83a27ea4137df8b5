"""What a process does around its stages: where it cannot know what happened, trading stops."""
import asyncio
import mmap
from types import SimpleNamespace

import pytest

from hftpipe import _control, config, topology, worker
from hftpipe.errors import Exit
from tests.chain import table


class Client:
    """A stream of order updates that has just come back."""

    live, reconnects = True, 1
    reader = SimpleNamespace(errors=0, drops=0)

    def __init__(self, *args, on_reconnect=None):
        self.hook = on_reconnect

    async def run(self, stop):
        self.hook()
        await stop.wait()


@pytest.mark.parametrize("open_orders, trading", [(0, "armed"), (2, "halted")])
def test_updates_that_were_down_while_orders_were_open_halt(open_orders, trading):
    """Fills of that time are never sent again: the position was wrong, and trading went on."""
    memory = mmap.mmap(-1, _control.SIZE)
    _control.format(memory, run=7, stages=[s.name for s in topology.STAGES])
    control = _control.Control(memory)
    control.resume(control.halt_epoch)
    control.stage(topology.INDEX["gateway"]).set("orders_open", open_orders)
    control.request_stop(_control.DRAIN)
    said = []
    context = SimpleNamespace(
        private={"venue": {"updates_stream": "ws://h/s", "key": "k", "secret": "s"}},
        control=control, run=SimpleNamespace(run=7), table=table(), ended=lambda *stages: True,
        log=SimpleNamespace(error=lambda text, **more: said.append((text, more))))
    assert asyncio.run(worker._updates(context, None, Client)) == Exit.OK
    assert control.trading == trading
    assert [more["orders_open"] for _, more in said] == ([open_orders] if open_orders else [])


def test_what_a_recording_keeps_of_the_configuration_has_no_password():
    settings = config.loads("[store]\nurl = 'postgresql://bob:hunter2@db/x'\nrecord = 'a.rec'\n"
                            "[risk]\nmax_open_orders = 3", env={})
    text = worker.shared_config(settings)
    assert "hunter2" not in text
    again = config.loads(text, env={})
    assert again.risk == settings.risk and again.store.record == "a.rec"
