"""A supervisor over dummy stages.

python dummy_run.py RUN_DIR [NAME=BEHAVIOUR ...]

Prints ``{"run": ..., "pids": {...}}`` when all run, watches until told to stop, and exits as the
run did.  ``grace=SECONDS``, ``stale=``, ``hung=`` and ``vigil=`` go to the supervisor.
"""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from hftpipe import log
from hftpipe.errors import HftpipeError
from hftpipe.process import Child, Supervisor, create_run, find_leftovers, keep_house
from hftpipe.rundir import RunDir
from hftpipe.topology import Machine, plan

STAGE = str(Path(__file__).with_name("dummy_stage.py"))


def main() -> int:
    directory, *rest = sys.argv[1:]
    options = dict(item.split("=") for item in rest)
    timing = {k: float(options.pop(k)) for k in ("grace", "stale", "hung", "vigil") if k in options}
    run_dir = RunDir(directory)
    run_dir.prepare()
    run_dir.lock()
    left = find_leftovers(run_dir)
    if left is not None:
        print(json.dumps({"leftovers": left.links, "run": f"{left.run.run:x}"}), flush=True)
        return 0
    made = plan(Machine.of(2), [0, 1])
    # Smaller than real stages could work with: these only store.
    made = replace(made, links=tuple(replace(link, capacity=8) for link in made.links))
    if len(os.sched_getaffinity(0)) > 1:
        keep_house(made)
    run, control, segments = create_run(run_dir, made, profile="demo")
    logger = log.setup("supervisor", run=run.run, directory=run_dir.logs, stream=None)
    with Supervisor(run_dir, run, control, segments, logger, **timing) as supervisor:
        pids = {}
        for process in made.start_order:
            behaviour = options.get(process.name, "store" if process.name == "store" else "ok")
            argv = (sys.executable, STAGE, directory, process.name,
                    ",".join(map(str, process.indices)), behaviour)
            child = Child.of(process, argv)
            pids[process.name] = supervisor.spawn(child)
        supervisor.wait_running(10)
        if not control.trading == "halted":
            control.resume(run.halt_epoch)
        print(json.dumps({"run": f"{run.run:x}", "pids": pids}), flush=True)
        supervisor.watch(interval=0.02)
    return int(supervisor.code)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HftpipeError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(int(e.exit_code))
