"""The last judge of a drill: does the run come again, from what its stages took?"""
from __future__ import annotations

from typing import TYPE_CHECKING

from hftpipe import worker
from hftpipe.backtest import rerun
from hftpipe.errors import HftpipeError

if TYPE_CHECKING:
    from hftpipe.journal.runs import Place


def again(place: Place) -> list[str]:
    """The first event of a journaled run that does not come again; nothing when all do."""
    try:
        found = rerun.replay(rerun.load(place), worker.strategies, worker.begun)
    except HftpipeError as e:
        return [f"{place.run:x}: no replay: {e}"]
    return [] if found.difference is None else [f"{place.run:x}: {found.difference}"]
