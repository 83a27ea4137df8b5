"""A process that keeps blocks of the control page alive and does nothing else.

python dummy_stage.py RUN_DIR NAME STAGE,STAGE BEHAVIOUR

ok         beat; on DRAIN end with 0, the sources first and the store last
die:N      end with code N before it is up
crash:N    be up until trading is armed, then end with code N, every time
deaf       ignore DRAIN
late       never be up
silent     stop beating once up
mute       stop beating when the file "mute" is in the run directory
store:N    one event is counted as stored; on DRAIN wait for all others, then end with N
"""
import os
import sys
import time

from hftpipe import _clock, _control, shm
from hftpipe.rundir import RunDir

ENDED = (_control.STOPPED, _control.FAILED)


def main() -> int:
    directory, name, stages, behaviour = sys.argv[1:]
    what, _, number = behaviour.partition(":")
    if what == "die":
        print(f"error: {name} cannot go on", file=sys.stderr)
        return int(number)
    _, control = RunDir(directory).control()
    blocks = [control.stage(int(i)) for i in stages.split(",")]
    pid = os.getpid()
    start = shm.process_start(pid) or 0
    for block in blocks:
        block.enter(pid, start, alive=shm.alive)
        block.heartbeat = _clock.now_ns()
        if what != "late":
            block.state = _control.RUNNING
        if what == "store":
            block.count("events_stored")
    others = [b for b in control.stages if b.name not in ("supervisor", "monitor", name)]
    while True:
        time.sleep(0.005)
        for block in blocks:
            if what != "silent" and not (what == "mute" and os.path.exists(f"{directory}/mute")):
                block.heartbeat = _clock.now_ns()
            block.ack_epoch = control.halt_epoch
        if name == "guardian":
            blocks[0].set("connected", 1)
            blocks[0].set("settled_epoch", control.halt_epoch)
            if not shm.alive(*control.supervisor):
                return 0                # nothing kills it with its parent
        if what == "crash" and control.armed_epoch:
            return int(number)
        if control.stop == _control.RUN or what == "deaf":
            continue
        if what == "store" and any(
                b.state not in (_control.VOID, *ENDED) for b in others):
            continue
        for block in blocks:
            block.state = _control.STOPPED
        return int(number or 0)




if __name__ == "__main__":
    sys.exit(main())
