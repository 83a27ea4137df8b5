"""Whether a run is well, from its control page; and the process that tells over HTTP.

:func:`survey` reads the page and nothing else, so it answers whatever hangs.  ``hftpipe status``,
``hftpipe ready`` and the monitor all use it: one judgement, three places.

``/metrics``  Prometheus text
``/health``   the survey as JSON; 200 while nothing is wrong, 503 otherwise
``/ready``    200 while every stage runs and orders may pass
``/live``     200 while the supervisor runs
``/halt``     POST only: stop trading; asks for the token of ``halt.token``
"""
from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hftpipe import _clock, _control, shm
from hftpipe.errors import BusyError, ConfigError, Exit
from hftpipe.rundir import Run, RunDir, acknowledged, who

if TYPE_CHECKING:
    from email.message import Message
    from http.server import ThreadingHTTPServer

    from hftpipe._control import Control, StageBlock

STALE = 2 * 10**9               # ns without a heartbeat
LAG = 50_000                    # events waiting in store links; the smallest holds 8,192
MUTE = 60 * 10**9               # ns without a data message from a connected feed
SUMS = ("gaps", "drops", "errors", "reconnects", "frames", "intents", "approved", "denied",
        "orders_sent", "orders_dropped", "orders_rejected", "fills", "orders_open",
        "orders_unknown", "events_stored", "rows_stored", "batches_stored", "store_lag")


def _number(stages: dict[str, StageBlock], stage: str, name: str) -> int:
    block = stages.get(stage)
    try:
        return block.counter(name) if block is not None else 0
    except KeyError:
        return 0                        # a page of another version does not count it


def survey(run: Run, control: Control) -> dict[str, Any]:
    """Everything the page says about a run, and what is wrong with it.

    ``state`` is one of RUNNING, STARTING, STOPPING, DEAD; ``trading`` one of ARMED, HALTED,
    DISARMED; ``problems`` says in words why health is not OK.
    """
    now = _clock.now_ns()
    supervisor, since = control.supervisor
    alive = shm.alive(supervisor, since)
    blocks = [b for b in control.stages if b.state != _control.VOID]
    stages = {b.name: b for b in blocks}
    trading = control.trading.upper()
    if trading == "DISARMED" and control.halt_epoch > run.halt_epoch:
        trading = "HALTED"              # halted before it was ever armed

    problems: list[str] = []
    if not alive:
        problems.append(f"supervisor {supervisor} is gone")
    expected = [s for p in run.processes for s in p["stages"]]
    absent = [name for name in expected if name not in stages]
    problems += [f"{name} has not started" for name in absent]
    for block in blocks:
        state = _control.STATES[block.state]
        age = now - block.heartbeat
        if block.state != _control.RUNNING:
            problems.append(f"{block.name} is {state}")
        elif age > STALE:
            problems.append(f"{block.name} has not beaten for {age / 1e9:.1f} s")
        if block.store_full:
            problems.append(f"{block.name}: store link is full")
    for name in ("feed", "updates"):
        if name in stages and not _number(stages, name, "connected"):
            problems.append(f"{name} is not connected")
    lost = _number(stages, "updates", "errors")
    if lost:                            # each may have been a fill
        problems.append(f"{lost} malformed order updates")
    last = _number(stages, "feed", "last_data")
    if last and now - last > MUTE:
        problems.append(f"no market data for {(now - last) / 1e9:.0f} s")
    total = {name: sum(_number(stages, s, name) for s in stages) for name in SUMS}
    if total["orders_unknown"]:
        problems.append(f"{total['orders_unknown']} orders without an answer")
    if total["store_lag"] > LAG:
        problems.append(f"store is {total['store_lag']} events behind")

    if not alive:
        state = "DEAD"
    elif control.stop != _control.RUN:
        state = "STOPPING"
    elif absent or any(b.state == _control.STARTING for b in blocks):
        state = "STARTING"
    else:
        state = "RUNNING"
    text = _text(control)
    latency = {name: control.histogram(name).summary() for name in control.histogram_names}
    return {
        "run": f"{control.run:x}", "state": state, "trading": trading,
        "health": "DEGRADED" if problems else "OK", "problems": problems,
        "profile": run.profile, "supervisor": supervisor,
        "started_utc_ns": control.started,
        "up_ns": max(now + control.utc_offset - control.started, 0),
        "halt_epoch": control.halt_epoch, "armed_epoch": control.armed_epoch,
        "halt": text.get("halt"), "resume": text.get("resume"),
        "totals": total,
        "data_age_ns": now - last if last else None,
        "day_pnl_nanocash": _number(stages, "ledger", "day_pnl"),
        "realised_pnl_nanocash": _number(stages, "ledger", "realised_pnl"),
        "gross_notional_nanocash": _number(stages, "ledger", "gross_notional"),
        "latency_ns": {name: s for name, s in latency.items() if s["count"]},
        "stages": [{
            "name": b.name, "pid": b.pid, "core": b.core, "state": _control.STATES[b.state],
            "heartbeat_age_ns": max(now - b.heartbeat, 0), "store_full": b.store_full,
            "ack_epoch": b.ack_epoch, "records_in": _number(stages, b.name, "records_in"),
            "records_out": _number(stages, b.name, "records_out"),
            "events_stored": _number(stages, b.name, "events_stored"),
            "errors": _number(stages, b.name, "errors"),
            "connected": bool(_number(stages, b.name, "connected")),
        } for b in blocks],
    }


def _text(control: Control) -> dict[str, Any]:
    """The page's JSON; empty when nobody wrote any."""
    try:
        found = json.loads(control.text or "{}")
    except ValueError:
        return {"halt": {"reason": "the page's text is damaged", "who": "", "when": ""}}
    return found if isinstance(found, dict) else {}


def ready(found: dict[str, Any]) -> bool:
    """Whether every stage runs and orders may pass."""
    return bool(found["state"] == "RUNNING" and found["trading"] == "ARMED"
                and all(s["state"] == "running" for s in found["stages"]))


def exit_code(found: dict[str, Any]) -> Exit:
    """What ``status`` returns: 3 dead, 6 not trading, 7 degraded, 0 well."""
    if found["state"] == "DEAD":
        return Exit.NOT_RUNNING
    if found["trading"] != "ARMED":
        return Exit.HALTED
    return Exit.DEGRADED if found["problems"] else Exit.OK


# ---------------------------------------------------------------- the monitor process

class Refusal(Exception):
    """A request to halt that is not one; carries the HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODY = 4096                     # bytes of a request to halt, at most


def check_halt(headers: Message, token: str) -> int:
    """Bytes of the body of a request that may halt.

    A browser cannot send it for somebody else: there is no cookie, it would have to know the
    token, ask first for leave to send JSON and a header of its own, and it says its Origin.

    Raises
    ------
    Refusal
    """
    import hmac
    given = headers.get("Authorization", "")
    kind, _, shown = given.partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(
            shown.strip().encode(), token.encode()):
        raise Refusal(401, "Authorization must be: Bearer, then the content of halt.token")
    host = headers.get("Host", "").rpartition(":")
    name = (host[0] if host[1] and host[2].isdigit() else headers.get("Host", "")).strip("[]")
    if name not in LOOPBACK and not name.startswith("127."):
        raise Refusal(403, "Host must be a loopback address")
    if "Origin" in headers:
        raise Refusal(403, "a web page may not halt")
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "Content-Type must be application/json")
    size = headers.get("Content-Length", "")
    if not size.isdigit() or "Transfer-Encoding" in headers:
        raise Refusal(411, "Content-Length must say how long the body is")
    if int(size) > BODY:
        raise Refusal(413, f"the body must be at most {BODY} bytes, was {size}")
    return int(size)


def read_halt(body: bytes) -> dict[str, Any]:
    """The body of a request to halt: ``reason``, and maybe ``cancel``, ``flatten``, ``epoch``.

    Raises
    ------
    Refusal
    """
    wanted = {"reason": str, "cancel": bool, "flatten": bool, "epoch": int}
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refusal(400, 'the body must be a JSON object such as {"reason": "news"}')
    for name, value in found.items():
        if name not in wanted or type(value) is not wanted[name]:
            raise Refusal(400, f"{name[:40]!r} must be one of reason (text), cancel, flatten "
                               "(true or false) and epoch (a whole number)")
    if not found.get("reason", "").strip():
        raise Refusal(400, "reason must say something, was empty")
    return found


def server(run_dir: RunDir, run: Run, control: Control, address: str,
           refused: Callable[[], None] = lambda: None) -> ThreadingHTTPServer:
    """The HTTP server, bound and not yet serving.

    *refused* is called when somebody asks for a halt in a way that is not allowed.

    Raises
    ------
    BusyError
        If somebody else has the port.
    ConfigError
        If *address* is not one of this machine.
    """
    import errno
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

    from hftpipe.config import split_address
    from hftpipe.metrics import registry

    page = registry(lambda: control)
    token = run_dir.token()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 5                     # seconds that a client may keep a connection mute

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(page), CONTENT_TYPE_LATEST)
                return
            if path not in ("/health", "/ready", "/live"):
                self._answer(404, b'{"error": "try /metrics, /health, /ready or /live"}\n')
                return
            found = survey(run, control)
            good = {"/health": not found["problems"], "/ready": ready(found),
                    "/live": found["state"] != "DEAD"}[path]
            body = found if path == "/health" else {
                "run": found["run"], path[1:]: good, "state": found["state"],
                "trading": found["trading"]}
            self._answer(200 if good else 503, json.dumps(body).encode() + b"\n")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            self.close_connection = True        # whatever is left of the body is not read
            try:
                if self.path.partition("?")[0] != "/halt":
                    raise Refusal(404, "try POST /halt")
                asked = read_halt(self.rfile.read(check_halt(self.headers, token)))
                if asked.get("epoch", control.halt_epoch) != control.halt_epoch:
                    raise Refusal(409, f"halt {control.halt_epoch} stands, not {asked['epoch']}")
            except Refusal as error:
                if error.status != 404:
                    refused()
                self._answer(error.status, json.dumps({"error": str(error)}).encode() + b"\n",
                             authenticate=error.status == 401)
                return
            began = _clock.now_ns()
            done = run_dir.halt(control, asked["reason"], way="http", by=f"{who()} by token",
                                cancel=asked.get("cancel", False),
                                flatten=asked.get("flatten", False))
            gates, elapsed = acknowledged(control, done.epoch, began, 1.0)
            self._answer(200, json.dumps({
                "halted": True, "run": f"{control.run:x}", "epoch": done.epoch,
                "latched": done.trouble is None, "gates": gates, "elapsed_ns": elapsed,
                **done.why}).encode() + b"\n")

        def _answer(self, status: int, body: bytes, kind: str = "application/json",
                    authenticate: bool = False) -> None:
            self.send_response(status)
            if authenticate:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Scrapes are no news."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False          # a mute client must not hold up the end of the run
        request_queue_size = 16

    host, port = split_address(address)
    if ":" in host:
        import socket
        Server.address_family = socket.AF_INET6
    try:
        return Server((host, port), Handler)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise BusyError(f"observe.prometheus: port {port} of {host} is in use; "
                            "set another one, or 0 for any") from None
        raise ConfigError(f"observe.prometheus: cannot listen on {address}: {e.strerror}") from None


def monitor_main(run_dir: RunDir, address: str) -> int:
    """The process ``monitor``: serve *address* until the run ends.

    The address in use, with its real port, is written to ``monitor.address`` in the run directory.
    An empty *address* serves nothing: the process only keeps its heartbeat.  ``errors`` counts the
    requests to halt that were refused.
    """
    run, control = run_dir.control()
    pid = os.getpid()
    index = next(b.index for b in control.stages if b.name == "monitor")
    block = control.stage(index)
    cores = os.sched_getaffinity(0)
    block.enter(pid, shm.process_start(pid) or 0, next(iter(cores)) if len(cores) == 1 else None,
                alive=shm.alive)
    block.heartbeat = _clock.now_ns()
    http = server(run_dir, run, control, address,
                  lambda: block.count("errors")) if address else None
    try:
        if http:
            http.timeout = 0.1
            host, port = http.server_address[:2]
            shown = f"[{host!s}]" if ":" in str(host) else str(host)
            run_dir.write("monitor.address", f"{shown}:{port}\n")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        block.state = _control.RUNNING
        while control.stop == _control.RUN or not _ended(control, index):
            block.heartbeat = _clock.now_ns()
            if http:
                http.handle_request()
            else:
                time.sleep(0.1)
    finally:
        if http:
            http.server_close()
        block.state = _control.STOPPED
    return 0


def _ended(control: Control, own: int) -> bool:
    """Whether every stage but the monitor and the supervisor has ended."""
    return all(b.state in (_control.VOID, _control.STOPPED, _control.FAILED)
               for b in control.stages if b.index != own and b.name != "supervisor")
