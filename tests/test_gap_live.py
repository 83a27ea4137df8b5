"""A run whose data stream breaks: what it missed is recorded with a mark and causes nothing."""
import pytest

from hftpipe import schema
from tests.models.live import Live, database, until

pytestmark = pytest.mark.db
LATE = schema.MARKET_FLAG.BACKFILLED
CHAOS = """
[disconnect]
every = "2s"
on = ["data"]
[halt]
every = "2s"
for = "500ms"
[correct]
every = "500ms"
"""


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_what_a_gap_cost_is_recorded_once_and_nothing_is_traded_on_it(tmp_path, encoding):
    (tmp_path / "chaos.toml").write_text(CHAOS)
    live = Live(tmp_path / "run", "--for", "10min", "--chaos", tmp_path / "chaos.toml", "--rate",
                "2000", "--set", f"venue.encoding={encoding}", name="demo")
    try:
        live.up()
        until(lambda: live.counter("feed", "backfilled") >= 20
              and live.counter("feed", "reconnects") >= 2, "gaps were filled", live.popen)
        assert live.counter("feed", "gaps") >= 2
        assert live.hp("stop")[0] == 0 and live.end() == 0
        with database(live.path) as c:
            late = c.execute(
                "SELECT event, kind, ref, instrument, price, qty, ts_venue "
                "FROM hftpipe.market_event WHERE flags & %s <> 0", (LATE,)).fetchall()
            heard = c.execute(
                "SELECT ref, instrument FROM hftpipe.market_event "
                "WHERE kind = %s AND flags & %s = 0", (schema.MARKET_KIND.TRADE, LATE)).fetchall()
            causes = {cause for cause, in c.execute("SELECT cause FROM hftpipe.intent")}
            kinds = {kind for kind, in c.execute("SELECT DISTINCT kind FROM hftpipe.market_event")}
        trades = [(ref, instrument) for _, kind, ref, instrument, *_ in late
                  if kind == schema.MARKET_KIND.TRADE]
        assert trades and len(set(trades)) == len(trades)
        assert not set(trades) & set(heard)
        assert not causes & {event for event, *_ in late}
        assert {schema.MARKET_KIND.STATUS, schema.MARKET_KIND.BUST} <= kinds
    finally:
        live.close()
