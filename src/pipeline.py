"""A whole run: database, venue, shared memory, processes, and what it came to in the end."""
from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hftpipe import (
    _clock,
    _control,
    _fault,
    build,
    consent,
    guardian,
    log,
    process,
    registry,
    schema,
    secret,
    shm,
    takeover,
    topology,
    worker,
)
from hftpipe._stage_figure import FigureStage
from hftpipe.desk import Desk, Request
from hftpipe.errors import (
    ConfigError,
    DeadlineError,
    Exit,
    HftpipeError,
    MismatchError,
)
from hftpipe.journal import runs
from hftpipe.limits import DECIMAL, LIMITS, OFF, parse_limits
from hftpipe.officer import Officer
from hftpipe.process import Child, Supervisor
from hftpipe.rundir import entry
from hftpipe.store.audit import Audit

if TYPE_CHECKING:
    from hftpipe._control import Control
    from hftpipe.config import Config
    from hftpipe.recovery.settle import Report
    from hftpipe.rundir import Run, RunDir
    from hftpipe.store.postgres import Postgres
    from hftpipe.topology import Plan

HOPS = tuple(m.name for m in schema.HISTOGRAMS)
REVIVE = 5.0                    # s that a dead database has to come back, and between two tries
LINGER = 10.0                   # s that the guardian of the run before may take to end
# s that market data and updates may take to come up; the broker keeps a data session that died
# with a run for about 90 s and refuses another one meanwhile (406)
CONNECT = 120.0


@dataclass
class Outcome:
    """How a run ended.

    Attributes
    ----------
    code : Exit
    cause : str
    summary : dict
        The closing figures, JSON-ready; empty when the run never was up.
    """

    code: Exit
    cause: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


def run(config: Config, plan: Plan, *, run_dir: RunDir, halted: bool = False, adopt: str = "",
        account: str = "", output: str = "table") -> Exit:
    """``hftpipe start``: run until told to stop, then print the closing figures."""
    out = execute(config, plan, run_dir=run_dir, halted=halted, adopt=adopt, account=account,
                  say=lambda text: print(text, file=sys.stderr, flush=True))
    if output == "json":
        print(json.dumps(out.summary))
    return out.code


def execute(config: Config, plan: Plan, *, run_dir: RunDir, halted: bool = False,
            account: str = "", seconds: float | None = None, record: str | None = None,
            seed: int | None = None, rate: float | None = None, chaos: str | None = None,
            adopt: str = "", rearm: bool = False,
            say: Callable[[str], None] = lambda text: None,
            live: Callable[[dict[str, Any]], None] | None = None) -> Outcome:
    """Run the pipeline.

    Parameters
    ----------
    config, plan
    run_dir : RunDir
        Not locked yet.
    halted : bool
        Leave arming to ``hftpipe resume``.
    account : str
        Last four digits of the broker's account: the last consent that live trading needs.
    seconds : float, optional
        End after so long.
    record : str, optional
        Also write every stored event into this new file.
    seed, rate : optional
        Of the local venue: its traders' seed, market data messages per second.
    chaos : str, optional
        Faults of the local venue, as `hftpipe venue --chaos`.
    adopt : str
        Why the venue's positions are to be taken over where the books have others; "" = they
        are not.
    rearm : bool
        A halt that says only that the run before was killed does not outlive it, if books and
        venue agree: for the demo.
    say : callable
        Told one line about every step.
    live : callable, optional
        Called about once a second with :func:`figures`.

    Raises
    ------
    HftpipeError
        When the run does not come up; nothing is left behind then.
    """
    from hftpipe.store import migrate
    from hftpipe.store.postgres import Postgres, database, embedded
    target = record or config.store.record
    path = str(worker.recording_path(target)) if target else ""
    table = build.instruments(config)
    digest, config = config.digest, registry.pin(config)
    consent.check(config, account)
    strategies = worker.strategies(config, table)       # a bad model is found before anything runs
    del strategies
    run_dir.prepare()
    run_dir.lock()
    before: set[int] | None = None
    try:
        # What the guardian of the run before still cancels must not be an order of this one.
        os.close(guardian.take_lock(run_dir, LINGER))
        logger = log.setup("supervisor", directory=run_dir.logs,
                           level=config.observe.log_level, stream=None)
        before = process.keep_house(plan)
        server = Postgres(run_dir.path) if embedded(config.store.url) else None
        with server or database(config.store.url, run_dir.path,
                                password=config.store.password) as conninfo:
            say("database  " + ("embedded PostgreSQL in the run directory" if server
                                else "PostgreSQL by URL"))
            applied = migrate.migrate(conninfo)
            if applied:
                say(f"migrate   {len(applied)} applied, up to {applied[-1].name}")
            takeover.store_leftovers(run_dir, conninfo, config, say)
            _fault.point("start.stored")
            return _execute(config, digest, plan, run_dir, conninfo, table, halted, seconds, path,
                            seed, rate, chaos, adopt, rearm, say, live, logger, server)
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
        run_dir.unlock()


def _execute(config: Config, digest: str, plan: Plan, run_dir: RunDir, conninfo: str, table: Any,
             halted: bool, seconds: float | None, record: str, seed: int | None,
             rate: float | None, chaos: str | None, adopt: str, rearm: bool,
             say: Callable[[str], None], live: Callable[[dict[str, Any]], None] | None,
             logger: Any, server: Postgres | None) -> Outcome:
    base = runs.base(config.journal.directory, run_dir.path)
    info = {"config": digest, "journal": str(base), "instruments": [
        [row["symbol"].decode(), int(row["tick"]), int(row["lot"])] for row in table]}
    run, control, segments = process.create_run(
        run_dir, plan, profile=config.profile, info=info, instruments=len(table),
        limits=[(limit.name, limit.unit, 10**9 if limit.unit in DECIMAL else 1)
                for limit in LIMITS])
    logger = log.setup("supervisor", run=run.run, directory=run_dir.logs,
                       level=config.observe.log_level, stream=None)
    supervisor = Supervisor(run_dir, run, control, segments, logger)
    supervisor.hidden |= _secrets(config, topology.INDEX)
    place = runs.place(base, run.run)
    opened = contextlib.ExitStack()
    try:
        with supervisor:
            venue = _venue(supervisor, config, plan, run_dir, seed, rate, chaos)
            say(f"venue     {venue['rest']}")
            past, report = takeover.books(run_dir, run.run, conninfo, config, venue, adopt, say)
            _fault.point("start.settled")
            if report.differences:
                # No stage runs yet.  A page that was never armed would say DISARMED, not HALTED.
                control.resume(run.halt_epoch)
                run_dir.halt(control, "books and venue differ: " + "; ".join(report.differences),
                             way="recovery", by="supervisor")
            left = takeover.gate(conninfo, run.run, config, bool(past.from_run), say)
            left["now"] = _clock.now_ns()
            place.describe(run_dir=str(run_dir.path), utc_offset=control.utc_offset,
                           profile=config.profile, table=table, toml=worker.shared_config(config),
                           begin={"books": past.dump(), "gate": left,
                                  "token_key": control.token_key,
                                  "limits_version": control.limits_version})
            private = {"conninfo": conninfo if server else config.store.url,
                       "password": "" if server else config.store.password.reference,
                       "venue": venue, "gate": left, "journal": str(base),
                       "books": past.dump(),
                       "config": worker.shared_config(config), "record": record,
                       guardian.NAME: {**dataclasses.asdict(config.halt),
                                       **{k: limit if limit != OFF else 0
                                          for k, limit in parse_limits(config.risk).items()
                                          if k in ("max_daily_loss", "max_order_notional")},
                                       "alerts": [a.removeprefix("webhook:")
                                                  for a in config.observe.alerts if a != "log"],
                                       "key": config.venue.key.reference,
                                       "secret": config.venue.secret.reference}}
            run_dir.write(worker.PRIVATE, json.dumps(private))
            _fault.point("start.told")
            for item in plan.start_order:
                given = _secrets(config, item.stages)
                supervisor.spawn(Child.of(item, process.stage_argv(run_dir, item.name,
                                                                   secrets=bool(given)),
                                          secrets=given))
            supervisor.wait_running()
            _connected(supervisor, control, agreed=not report.differences)
            officer = _officer(config, run_dir, run.run, control, table, private, logger, opened)
            supervisor.before_drain.append(officer.close)
            for word in officer.restore():
                say(f"risk      kept: {word}")
            say("stages    " + "  ".join(
                f"{p.name}{'' if p.core is None else f':{p.core}'}" for p in plan.processes))
            _on_record(supervisor, control)
            _fault.point("start.recorded")
            doubt = _doubt(report)
            if rearm and not report.differences and not doubt and not halted:
                _rearm(run_dir, run, control, say)
            if not halted and not doubt and control.trading == "disarmed":
                control.resume(run.halt_epoch)      # and not a halt that came since
            if doubt and control.trading != "halted":
                say(f"account   {doubt}: not armed; `hftpipe resume --reason ...` arms it all the "
                    "same")
            say(f"RUNNING   run {run.run:x}   trading {control.trading.upper()}"
                + ("   (latched; `hftpipe resume --reason ...` arms it)"
                   if control.trading == "halted" else ""))
            last = retry = 0.0

            def every() -> None:
                nonlocal last, retry
                if server is not None and not server.alive and time.monotonic() >= retry:
                    _revive(server, private, run_dir, logger)
                    retry = time.monotonic() + REVIVE
                if live is not None and time.monotonic() - last >= 1.0:
                    last = time.monotonic()
                    live(figures(control))

            supervisor.watch(seconds, every)
    finally:
        opened.close()
        with contextlib.suppress(FileNotFoundError):    # the venue's key dies with the run
            (run_dir.path / worker.PRIVATE).unlink()
    out = Outcome(supervisor.code, supervisor.cause)
    if supervisor.drained:
        place.mark_stored()
        runs.expire(base, config.journal.retain / 1e9, keep=run.run)
        out.summary = summary(control, worker.conninfo(private), run.run, config)
        if not out.summary["verified"]:
            raise MismatchError("stored rows differ from the events recorded: "
                                + "; ".join(out.summary["differences"]))
    return out


def _secrets(config: Config, stages: Collection[str]) -> frozenset[str]:
    """Variables of the environment that a process with *stages* needs to find its credentials."""
    found: set[str] = set()
    if {"feed", "gateway", "updates", "analyst", "guardian"}.intersection(stages):
        found |= secret.variables([config.venue.key.reference, config.venue.secret.reference])
    if {"store", "analyst", "guardian"}.intersection(stages):
        found |= {"PGPASSWORD", *secret.variables([config.store.password.reference])}
    if "guardian" in stages:
        found |= secret.variables(config.observe.alerts)
    return frozenset(found)


def _officer(config: Config, run_dir: RunDir, run: int, control: Control, table: Any,
             private: dict[str, Any], logger: Any, opened: contextlib.ExitStack) -> Officer:
    """Open the desk: from here on people can ask things of the run."""
    links = worker.ShmLinks(run)
    link = links.producer("supervisor.risk")
    assert link is not None
    stage = FigureStage("supervisor", schema.STREAM.OPERATOR, link,
                        links.producer("supervisor.store"), control,
                        topology.INDEX["supervisor"])
    audit = Audit(lambda: worker.conninfo(private),
                  lambda why: logger.error("audit has to wait", why=why))

    def ended() -> None:
        lost = audit.close()
        if lost:
            logger.error("not in operator_event, the database was away", rows=lost)

    opened.callback(ended)
    made = Officer(stage, link, run_dir, run, [row["symbol"].decode() for row in table],
                   config.risk, [item.name for item in config.traders], audit)
    desk = Desk(run_dir.name, {**made.handlers, "halt": _halt(run_dir, control)}, logger.info)
    opened.callback(desk.close)
    return made


def _halt(run_dir: RunDir, control: Control) -> Callable[[Request], Mapping[str, Any]]:
    """The desk's way to halt: ``reason``, and if wanted ``cancel`` and ``flatten``."""
    def handler(r: Request) -> Mapping[str, Any]:
        flags = {name: r.values.get(name, False) is True for name in ("cancel", "flatten")}
        done = run_dir.halt(control, r.text("reason"), way="socket", by=r.who, **flags)
        return {"epoch": done.epoch, "latched": done.trouble is None, **done.why}
    return handler


def _revive(server: Postgres, private: dict[str, Any], run_dir: RunDir, logger: Any) -> None:
    """Start the embedded database again that has died; what it lacks is in the store links."""
    logger.warning("restarting", child="postgres")
    try:
        server.stop()                                   # what the dead one left
        private["conninfo"] = server.start(REVIVE)
    except HftpipeError as error:
        logger.error("database", error=str(error))      # and again after a while
        return
    run_dir.write(worker.PRIVATE, json.dumps(private))  # its socket may have another name now


def _venue(supervisor: Supervisor, config: Config, plan: Plan, run_dir: RunDir,
           seed: int | None, rate: float | None, chaos: str | None = None) -> dict[str, Any]:
    """Where the venue is; the local one is started."""
    if config.venue.kind != "local":
        return {"rest": config.venue.rest, "data_stream": config.venue.data_stream,
                "updates_stream": config.venue.updates_stream}
    state = run_dir.path / "venue" / "account"      # one for all runs of the directory
    argv = [sys.executable, "-m", "hftpipe", "venue", "-o", "json", "--die-with-parent",
            "--symbols", ",".join(item.symbol for item in config.instruments),
            "--rate-limit", "0", "--state", str(state)]
    if seed is not None:
        argv += ["--seed", str(seed)]
    if rate is not None:
        argv += ["--rate", str(rate)]
    if chaos is not None:
        argv += ["--chaos", chaos]
    house = plan.process_of("store").affinity
    supervisor.spawn(Child("venue", tuple(argv), affinity=house, phase=process.SERVICE,
                           capture=True))
    line = supervisor.first_line("venue", 20.0)
    try:
        found = json.loads(line)
    except ValueError:
        raise ConfigError(f"the venue's first line must be JSON, was {line[:80]!r}") from None
    return {**{k: found[k] for k in ("rest", "data_stream", "updates_stream", "key", "secret")},
            "unlimited": True, "process": [found["pid"], shm.process_start(found["pid"]) or 0]}


def _doubt(report: Report) -> str:
    """Why the account at the venue is not wholly ours; empty = it is."""
    found = [*([f"{report.foreign_orders} open orders that are not ours"]
               if report.foreign_orders else []),
             *([f"positions in what is not traded here ({', '.join(report.foreign)})"]
               if report.foreign else [])]
    return "the venue holds " + " and ".join(found) if found else ""


def _on_record(supervisor: Supervisor, control: Control) -> None:
    """Wait until a journal has what the books begin with: nothing is armed before."""
    stream = topology.stream("ledger")
    wanted = control.stage(topology.INDEX["ledger"]).counter("events_stored")
    end = time.monotonic() + CONNECT
    while control.durable(stream) < wanted:
        if time.monotonic() >= end:
            raise DeadlineError(f"the books were not journaled within {CONNECT:g} s; see the logs "
                                "in the run directory")
        supervisor.wait_running()
        time.sleep(0.002)


def _rearm(run_dir: RunDir, run: Run, control: Control, say: Callable[[str], None]) -> None:
    """Lift a halt that only says that the run before was killed."""
    latch = run_dir.latch()
    why = latch.halt or {}
    if (control.trading != "halted" or latch.halt_epoch != run.halt_epoch
            or why.get("way") != guardian.NAME
            or not str(why.get("reason")).endswith(guardian.GONE)):
        return
    lifted = entry("the run before was killed; books and venue agree", "demo", "recovery")
    with run_dir.operator() as got:
        if not got or control.halt_epoch != run.halt_epoch:
            return
        run_dir.audit("resume", lifted, run=run.run, epoch=run.halt_epoch)  # before it is done
        if control.resume(run.halt_epoch):
            run_dir.record_resume(run.halt_epoch, lifted)
            say("resumed   the run before was killed, and books and venue agree")


def _connected(supervisor: Supervisor, control: Control, *, agreed: bool) -> None:
    """Wait until market data flow in, updates are heard and, if books and venue have *agreed*,
    are seen to agree once more."""
    end = time.monotonic() + CONNECT
    while True:
        missing = [name for name in ("feed", "updates")
                   if not control.stage(topology.INDEX[name]).counter("connected")]
        if not missing and agreed and control.stage(topology.INDEX["updates"]).counter("unsettled"):
            missing = ["updates, which wait for the venue's orders and positions"]
        if not missing:
            return
        if time.monotonic() >= end:
            raise DeadlineError(f"no connection of {' and '.join(missing)} within {CONNECT:g} s; "
                                f"see the logs in the run directory")
        supervisor.wait_running()           # notices a child that ended
        time.sleep(0.02)


# ---------------------------------------------------------------- figures

def figures(control: Control) -> dict[str, Any]:
    """The run so far, from the control page alone; money in the quote currency."""
    def of(stage: str, name: str) -> int:
        return control.stage(topology.INDEX[stage]).counter(name)

    order = control.histogram("tick_to_order")
    return {
        "trading": control.trading,
        "events": of("feed", "events_stored"),
        "orders": of("gateway", "orders_sent"), "fills": of("gateway", "fills"),
        "denied": of("risk", "denied"), "open": of("gateway", "orders_open"),
        "pnl": of("ledger", "day_pnl") / 1e9,
        "rows_stored": of("store", "rows_stored"), "lag": of("store", "store_lag"),
        "tick_to_order_ns": {"p50": order.percentile(50), "p99": order.percentile(99)}
        if order.count else None,
    }


def latencies(control: Control) -> Iterator[tuple[str, dict[str, int]]]:
    """``(hop, {count, p50, p99, p999, max})`` in ns, of every histogram that has values."""
    for name in HOPS:
        found = control.histogram(name)
        if found.count:
            yield name, {"count": found.count, "p50": found.percentile(50),
                         "p99": found.percentile(99), "p999": found.percentile(99.9),
                         "max": found.max}


def summary(control: Control, conninfo: str, run: int, config: Config) -> dict[str, Any]:
    """What the run came to: counted by the stages, and counted again by the database."""
    import psycopg

    from hftpipe.store import queries
    from hftpipe.store.verify import verify
    recorded: dict[int, tuple[int, int]] = {}
    counted: dict[str, int] = {}
    for name in topology.recorded():
        block = control.stage(topology.INDEX[name])
        stream = topology.stream(name)
        counted[name] = block.counter("events_stored")
        # A killed stage may have published one event more than it had counted.
        if block.state == _control.STOPPED:
            recorded[stream] = (counted[name], block.counter("events_checksum"))
    report = verify(conninfo, run, recorded)
    with psycopg.connect(conninfo) as c:
        sums = queries.summary(c, run)
        hops = queries.latency(c, run)
    now = figures(control)
    streams = {schema.STREAM.label(s.stream): {
        "rows": s.rows, "checksum": f"{s.stored_sum:016x}", "ok": s.ok} for s in report.streams}
    lost = [str(s) for s in report.streams if not s.ok]
    return {
        "run": f"{run:x}", "profile": config.profile, "trading": now["trading"],
        "symbols": [item.symbol for item in config.instruments],
        "events": now["events"], "orders": now["orders"], "fills": now["fills"],
        "denied": sums["refusals"], "exits": sums["exits"],
        "orders_by_status": sums["orders_by_status"],
        "pnl": float(sums["pnl"]), "realised": float(sums["realised"]),
        "unrealised": float(sums["unrealised"]), "fees": float(sums["fees"]),
        "events_recorded": sum(counted.values()) if len(recorded) == len(topology.recorded())
        else max(report.rows_stored, sum(counted.values())),
        "rows_stored": report.rows_stored, "streams": streams,
        "verified": report.ok, "differences": lost,
        "latency_ns": dict(latencies(control)), "latency_ns_stored": hops,
    }
