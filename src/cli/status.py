"""``hftpipe status``: the control page in a few lines."""
from __future__ import annotations

from typing import Any

import click

from hftpipe import health
from hftpipe.cli._common import (
    Settings,
    clock,
    columns,
    count,
    emit,
    money,
    paint,
    shared,
    span,
)


@click.command(epilog="Example: hftpipe status -o json | jq .latency_ns.tick_to_order")
@click.option("--stages", is_flag=True, help="Also list the stages, one a line.")
@shared
@click.pass_obj
def command(settings: Settings, stages: bool) -> int:
    """Say how the run is, from its control page alone: also when everything hangs or is dead.

    Exit code 0: trading and well. 3: not running. 6: not trading. 7: degraded.
    """
    run_dir = settings.directory()
    run, control = run_dir.control()
    found = health.survey(run, control)
    if (found["halt"] or {}).get("epoch") != found["halt_epoch"]:
        latch = run_dir.latch()         # whoever halted had no time for the page, or no Python
        if latch.halted and latch.halt_epoch == found["halt_epoch"]:
            found["halt"] = latch.halt
    emit(settings, found, _lines(settings, found, stages))
    return int(health.exit_code(found))


def _lines(settings: Settings, found: dict[str, Any], stages: bool) -> list[str]:
    total = found["totals"]
    trading = paint(settings, found["trading"],
                    "green" if found["trading"] == "ARMED" else "red")
    well = paint(settings, found["health"], "green" if found["health"] == "OK" else "yellow")
    out = [f"run {found['run']}  {found['state']}  up {clock(found['up_ns'])}  "
           f"{found['profile'] or '-'}  TRADING={trading}  health {well}"]
    if found["trading"] != "ARMED":
        last = found["halt"] if found["trading"] == "HALTED" else None
        why = (f'"{last["reason"]}" by {last["who"]} at {last["when"]}' if last else
               "never armed" if found["trading"] == "DISARMED" else "no reason on the page")
        out.append(f"halt   epoch {found['halt_epoch']}  {why}")
    by_name = {s["name"]: s for s in found["stages"]}
    connected = {n: "connected" if by_name.get(n, {}).get("connected") else "not connected"
                 for n in ("feed", "updates")}
    seconds = max(found["up_ns"] / 1e9, 1e-9)
    age = span(found["data_age_ns"]) if found["data_age_ns"] is not None else "-"
    out += [
        f"feed   {connected['feed']}  {count(round(total['frames'] / seconds))} frames/s on average"
        f"  age {age}  gaps {total['gaps']}  reconnects {total['reconnects']}"
        f"     order stream {connected['updates']}",
        f"orders open {total['orders_open']}  sent {count(total['orders_sent'])}"
        f"  fills {count(total['fills'])}  rejected {total['orders_rejected']}"
        f"  denied {count(total['denied'])}  dropped {total['orders_dropped']}"
        f"  unknown {total['orders_unknown']}",
        f"risk   gross {money(found['gross_notional_nanocash'])}"
        f"  day P&L {money(found['day_pnl_nanocash'])}"
        f"  realised {money(found['realised_pnl_nanocash'])}"
        f"  intents {count(total['intents'])}  approved {count(total['approved'])}",
        "lat    " + _latency(found["latency_ns"]),
        f"store  behind {count(total['store_lag'])} events"
        f"  rows {count(total['rows_stored'])}  of {count(total['events_stored'])} events",
    ]
    if stages:
        out += ["", *columns(
            ([s["name"], s["pid"], "-" if s["core"] is None else s["core"], s["state"],
              span(s["heartbeat_age_ns"]), count(s["records_in"]), count(s["records_out"]),
              count(s["events_stored"]), s["errors"]] for s in found["stages"]),
            ("stage", "pid", "core", "state", "beat", "in", "out", "stored", "errors"))]
    return out + [f"! {problem}" for problem in found["problems"]]


def _latency(latency: dict[str, dict[str, Any]]) -> str:
    parts = []
    for name, words in (("tick_to_order", "tick->order"), ("order_to_ack", "order->ack")):
        if name in latency:
            s = latency[name]
            parts.append(f"{words} p50 {span(s['p50'])}  p99 {span(s['p99'])}"
                         f"  p99.9 {span(s['p999'])}  max {span(s['max'])}")
    return "       ".join(parts) or "no order yet"
