"""The loop that hosts stages: spinning, yielding or sleeping when idle."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free

from ._atomic cimport hp_load_acquire, hp_pause, hp_store_release
from ._clock cimport clock_now
from ._control cimport (
    CONTROL_QUIT, STAGE_DRAINING, STAGE_FAILED, STAGE_RUNNING, STAGE_STOPPED, Control)
from ._stage cimport BATCH, Stage

cdef extern from * nogil:
    """
    #include <sched.h>
    #include <time.h>
    static inline void hp_sleep_ns(long ns) { struct timespec t = {0, ns}; nanosleep(&t, 0); }
    """
    void hp_sleep_ns(long ns) noexcept
    int sched_yield() noexcept

WAIT_SPIN, WAIT_YIELD, WAIT_SLEEP = range(3)
cdef enum:
    SPIN = 0
    YIELD = 1
    SLEEP = 2
    MAINTAIN_NS = 20_000_000    # how often maintain() runs: with the GIL, some 10 us each time
    DRAINED_NS = 100_000_000    # idle this long while draining means there is nothing left
    PENDING_NS = 2_000_000_000  # a drain waits this long for orders without an end
    ROOM_TRIES = 1000           # a ms apart, for what a stage has to store when it ends
    HEARTBEAT_PASSES = 512
    FLUSH_PASSES = 64           # idle passes after which credit is returned ...
    WARM_PASSES = 256           # ... and again, with the models kept warm, every so many


cdef class Host:
    """One loop over one or more stages: spinning, yielding or sleeping when idle.

    Parameters
    ----------
    stages : sequence of Stage
        Run in this order in every pass; upstream first.
    control : Control
        Heartbeats go there; the stop word comes from there.
    wait : int
        WAIT_SPIN, WAIT_YIELD or WAIT_SLEEP.
    after : sequence of int
        Blocks of stages elsewhere that must have ended before a drain here is done.
    every : callable, optional
        Called every few milliseconds, with the GIL, in this thread.
    """

    def __init__(self, stages, Control control not None, int wait=SPIN, after=(), every=None):
        self.stages = list(stages)
        for item in self.stages:
            if not isinstance(item, Stage):
                raise TypeError(f"stages must be of type Stage, one was {type(item).__name__}")
        if len(after) > 16:
            raise ValueError(f"at most 16 stages to wait for, were {len(after)}")
        for i, index in enumerate(after):
            self.after[i] = control.block(index)
        self.after_count = len(after)
        self.every = every
        self._control, self.header, self.wait = control, control.header, wait

    def run(self):
        """Loop until the control page says stop and nothing is left, or a stage fails.

        Raises
        ------
        Exception
            What stopped a stage.  KeyboardInterrupt and whatever signal handlers raise.
        """
        cdef Stage stage
        cdef int count = len(self.stages), i
        cdef void **pointers = <void **>calloc(count or 1, sizeof(void *))
        cdef stage_block_t *block
        if pointers == NULL:
            raise MemoryError
        for i, stage in enumerate(self.stages):
            pointers[i] = <void *>stage
            stage.block.state = STAGE_RUNNING
        cdef uint64_t done, idle = 0, beat = 0, stop
        cdef int64_t now = clock_now(), maintained = now, worked = now
        cdef bint failed = False, ended = False, waiting, stopping = False, settled = False
        try:
            while not ended:
                with nogil:
                    while True:
                        done = 0
                        for i in range(count):
                            done += (<Stage>pointers[i]).work(BATCH)
                            failed |= (<Stage>pointers[i]).failed
                        self.passes += 1
                        beat += 1
                        stop = hp_load_acquire(&self.header.stop)
                        if done:
                            idle = 0
                            settled = False
                        else:
                            idle += 1
                        if beat >= HEARTBEAT_PASSES or (idle and self.wait != SPIN) or stop:
                            beat = 0
                            now = clock_now()
                            for i in range(count):
                                block = (<Stage>pointers[i]).block
                                hp_store_release(&block.heartbeat, <uint64_t>now)
                            if done or (stop and not stopping):
                                worked = now            # a drain counts from when it began
                                stopping = stop != 0
                        if failed:
                            break
                        if idle:
                            if idle % WARM_PASSES == FLUSH_PASSES:
                                for i in range(count):
                                    (<Stage>pointers[i]).idle()
                            if stop and now - worked > DRAINED_NS:
                                waiting = 0
                                for i in range(self.after_count):
                                    if self.after[i].state != STAGE_STOPPED \
                                            and self.after[i].state != STAGE_FAILED:
                                        waiting = 1
                                for i in range(count):
                                    if (<Stage>pointers[i]).pending() \
                                            and now - worked < PENDING_NS:
                                        waiting = 1
                                # What ended may have published right before: look once more.
                                if stop == CONTROL_QUIT or (settled and not waiting):
                                    ended = True
                                    break
                                settled = not waiting
                            if self.wait == SPIN:
                                hp_pause()
                            elif self.wait == YIELD:
                                if idle < 32:
                                    sched_yield()
                                else:
                                    hp_sleep_ns(50_000)
                            else:
                                hp_sleep_ns(500_000)
                        if now - maintained > MAINTAIN_NS:
                            break
                maintained = now
                for stage in self.stages:
                    if stop:
                        stage.block.state, stage.draining = STAGE_DRAINING, True
                    stage.maintain()
                if self.every is not None:
                    self.every()
                PyErr_CheckSignals()
                if failed:
                    for stage in self.stages:
                        stage.check()
        except BaseException:
            for stage in self.stages:
                stage.block.state = STAGE_FAILED
            raise
        else:
            for stage in self.stages:
                stage.idle()
                for _ in range(ROOM_TRIES):         # the journal ends after us: it makes room
                    if stage.finish():
                        break
                    hp_sleep_ns(1_000_000)
                stage.block.state = STAGE_STOPPED
        finally:
            free(pointers)
