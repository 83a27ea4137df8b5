"""What a start takes over: events that were not stored, the books of the account, the gate."""
from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftpipe import _clock, process, schema, shm, topology, worker
from hftpipe.errors import ConfigError, DataError, DiskError, HftpipeError
from hftpipe.journal import runs
from hftpipe.journal.drain import Drain
from hftpipe.rundir import entry, who

if TYPE_CHECKING:
    from hftpipe.alpaca.rest import Rest
    from hftpipe.config import Config
    from hftpipe.recovery.books import Books
    from hftpipe.recovery.settle import Report
    from hftpipe.rundir import RunDir


def store_leftovers(run_dir: RunDir, conninfo: str, config: Config,
                    say: Callable[[str], None]) -> None:
    """Store what runs left that were killed: what is in their rings, then in their journals.

    The rings are emptied into the journal first, so that it holds everything of its run.
    """
    from hftpipe.journal.write import Journal
    left = process.find_leftovers(run_dir)
    base = runs.base(config.journal.directory, run_dir.path)
    if left is not None:
        names = set(left.links)
        control = shm.control(left.run.run) if "control" in names else None
        links = {
            topology.stream(link.producer):
                shm.ring(left.run.run, link.name, schema.BY_NAME[link.record], producer=False)
            for link in topology.LINKS if link.consumer == "store" and link.name in names}
        place = runs.place(Path(left.run.info.get("journal", base)), left.run.run)
        if links and (place.directory.exists() or any(map(len, links.values()))):
            drain = Drain(Journal(place.directory, left.run.run, size=config.journal.segment,
                                  spares=0,
                                  durable=None if control is None else control.durable()),
                          {s: link for s, link in links.items() if link is not None}, control)
            while drain.lag:
                if not drain.step() and drain.full:
                    raise DiskError(f"journal {place.directory}: no room for what run "
                                    f"{left.run.run:x} left: {drain.journal.trouble}")
            drain.journal.finish()
            _store(place, conninfo, say)
        del links, control
        process.discard(run_dir, left)
    for place in runs.places(base):             # of a run that the host went down with
        if not place.stored and place.begun and place.meta()["run_dir"] == str(run_dir.path):
            _store(place, conninfo, say)
    runs.expire(base, config.journal.retain / 1e9)


def _store(place: runs.Place, conninfo: str, say: Callable[[str], None]) -> None:
    """Have PostgreSQL get what it lacks of a journal whose run has ended; all that is damaged
    stops it."""
    from hftpipe.journal.read import Reader
    from hftpipe.journal.write import Journal
    from hftpipe.store import chain, writer
    meta = place.meta()
    end = place.end()
    if end is None:                             # the host went down with it
        journal = Journal(place.directory, place.run, spares=0)
        journal.finish()
        end = journal.number, dict(enumerate(journal.last))
    number, last = end
    if number:
        totals: list[writer.Totals] = []
        reader = Reader(place.directory, place.run, topology.stored(),
                        lambda stream: last.get(stream, 0) if stream else number,
                        lambda: totals[0].by_stream)
        found = writer.recover(reader.links, conninfo, writer.Run(
            place.run, int(meta["utc_offset"]), str(meta["profile"]),
            tuple((row["symbol"], int(row["tick"]), int(row["lot"]))
                  for row in meta["instruments"])), begun=totals.append,
            anchors=chain.Anchors(Path(meta["run_dir"]) / chain.FILE))
        reader.close()
        say(f"recover   run {place.run:x} was killed: {found.rows} events stored from its rings "
            "and journal")
    place.mark_stored()


def books(run_dir: RunDir, run: int, conninfo: str, config: Config, venue: Mapping[str, Any],
          adopt: str, say: Callable[[str], None]) -> tuple[Books, Report]:
    """Books of the account before run *run*, brought together with what the venue says of them.

    Raises
    ------
    HftpipeError
        If database or venue cannot be asked, or the books hold what this run does not trade.
    """
    begin = time.monotonic()
    past, report, taken = _settled(run, conninfo, config, venue, bool(adopt), True,
                                   lambda text: say(f"recover   {text}"))
    symbols = [item.symbol for item in config.instruments]
    past.pending = []
    if adopt:
        run_dir.audit("adopt", entry(adopt, who(), "cli"), run=run, positions=report.adopted)
    try:
        if adopt:
            past.drop(symbols)
        past.keep(symbols)
    except ValueError as e:
        raise ConfigError(f"{e}; add it to the instruments, or take the venue's positions with "
                          "`hftpipe start --adopt REASON`") from None
    if past.from_run:
        say(f"recover   books of run {past.from_run:x}: {report.positions} positions, "
            f"{len(report.resolved)} orders resolved, {report.recovered} executions found, "
            f"{len(report.cancelled)} orders cancelled; {taken * 1e3:.0f} ms and the venue's "
            f"{(time.monotonic() - begin - taken) * 1e3:.0f} ms")
    for line in report.adopted:
        say(f"adopted   {line}")
    for line in report.differences:
        say(f"DIFFERENT {line}")
    return past, report


def _settled(run: int, conninfo: str, config: Config, venue: Mapping[str, Any], adopt: bool,
             act: bool, say: Callable[[str], None]) -> tuple[Books, Report, float]:
    """Books before *run*, what the venue says of them, and seconds that the former took."""
    import psycopg

    from hftpipe.recovery import books as recorded
    from hftpipe.recovery.settle import settle
    begin = time.monotonic()
    rest = venue_rest(config, venue)
    fees = config.fees.schedule
    try:
        account = rest.account()
        try:
            past = recorded.load(conninfo, account.id, run, config.account.equity, fees)
        except ValueError:
            raise DataError(f"the venue's account id must be a UUID, was {account.id!r}"
                            ) from None
        taken = time.monotonic() - begin
        return past, settle(
            past, rest, [item.symbol for item in config.instruments], fees,
            absent=config.gateway.absent_after, act=act, adopt=adopt, say=say,
            alone=config.venue.kind == "local",
            lookup=lambda of, which: recorded.orders(conninfo, of, which)), taken
    except psycopg.Error as e:
        raise HftpipeError("the books of the account cannot be read: "
                           f"{str(e).splitlines()[0]}") from None
    finally:
        rest.close()


def venue_rest(config: Config, venue: Mapping[str, Any]) -> Rest:
    """The venue's REST interface, by the credentials of *venue* or the configuration."""
    from hftpipe.alpaca.rest import Rest
    key, secret = worker.credentials_of(venue, config)
    return Rest(venue["rest"], key, secret)


def gate(conninfo: str, run: int, config: Config, known: bool,
         say: Callable[[str], None]) -> dict[str, Any]:
    """What earlier runs left of the gate; not known is no start.

    With an account of the local exchange that is not *known*, what counts per day begins anew.
    """
    import psycopg

    from hftpipe.store import queries
    try:
        left = queries.gate_state(conninfo, run, config.profile,
                                  day=known or config.venue.kind != "local")
    except psycopg.Error as e:
        raise HftpipeError("what earlier runs left of the gate (breaker, disabled strategies, the "
                           f"day's orders) cannot be read: {str(e).splitlines()[0]}") from None
    if left["state"] != schema.BREAKER.CLOSED:
        say(f"breaker   OPEN since an earlier run ({schema.BREAKER_CAUSE.label(left['cause'])}); "
            "`hftpipe risk breaker close --reason ...` closes it")
    for number in left["latched"]:
        name = config.traders[number].name if number < len(config.traders) else f"{number}"
        say(f"strategy  {name} is disabled since an earlier run; `hftpipe risk rearm {name}`")
    return left


# ---------------------------------------------------------------- looking only

def waiting(run_dir: RunDir, config: Config, marks: Callable[[int], Mapping[int, int]],
            ) -> list[dict[str, Any]]:
    """Events of earlier runs that PostgreSQL does not have yet.

    Parameters
    ----------
    marks : callable(run)
        Newest stored number of each stream.

    Returns
    -------
    list of dict
        run, stream, events and where: rings or journal.
    """
    from hftpipe.journal import check
    out = []
    left = process.find_leftovers(run_dir)
    base = runs.base(config.journal.directory, run_dir.path)
    if left is not None:
        for link in topology.LINKS:
            if link.consumer != "store" or link.name not in left.links:
                continue
            ring = shm.ring(left.run.run, link.name, schema.BY_NAME[link.record], producer=False)
            if ring is not None and len(ring):
                out.append({"run": f"{left.run.run:x}", "where": "rings", "events": len(ring),
                            "stream": link.producer})
    names = {topology.stream(name): name for name in topology.recorded()}
    for place in runs.places(base):
        if place.stored or not place.begun or place.meta()["run_dir"] != str(run_dir.path):
            continue
        known, seen = marks(place.run), check.Walk()
        for _ in check.walk(place.directory, place.run, seen):
            pass
        out += [{"run": f"{place.run:x}", "where": "journal",
                 "events": last - known.get(stream, 0), "stream": names.get(stream, str(stream))}
                for stream, last in seen.seqs.items() if last > known.get(stream, 0)]
    return out


@contextlib.contextmanager
def copied_venue(run_dir: RunDir, config: Config) -> Iterator[dict[str, Any]]:
    """The local venue as the next start will find it, on a copy of its state.

    Raises
    ------
    HftpipeError
        If it does not come up.
    """
    from hftpipe.venue import server
    state = run_dir.path / "venue" / "account"
    with tempfile.TemporaryDirectory(prefix="hftpipe-recover-") as place:
        copy = Path(place) / "venue"
        copy.mkdir(mode=0o700)
        if (state / "orders.jsonl").exists():
            shutil.copyfile(state / "orders.jsonl", copy / "orders.jsonl")
        with server.spawn("--symbols", ",".join(item.symbol for item in config.instruments),
                          "--rate-limit", "0", "--rate", "1", "--state", str(copy)) as (_, told):
            yield told


@contextlib.contextmanager
def venue(run_dir: RunDir, config: Config) -> Iterator[dict[str, Any]]:
    """Where to ask: the broker, or a copy of the local venue."""
    if config.venue.kind != "local":
        yield {"rest": config.venue.rest}
        return
    with copied_venue(run_dir, config) as found:
        yield found


def look(conninfo: str, config: Config, venue: Mapping[str, Any]) -> tuple[Books, Report]:
    """What :func:`books` would find, changing nothing at the venue.

    Raises
    ------
    HftpipeError
        If database or venue cannot be asked.
    """
    past, report, _ = _settled(_clock.utc_ns(), conninfo, config, venue, False, False,
                               lambda text: None)
    return past, report
