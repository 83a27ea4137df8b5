# cython: binding=False
"""Python's handle on the control page; the layout is ``_control.pxd``.

``halt``, ``status`` and ``ready`` import this and little else: no numpy, no schema (the page
names its own counters), no posix_ipc.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy, memset

from ._atomic cimport hp_compare_swap, hp_fetch_add, hp_raise

from hftpipe.errors import BusyError, SchemaError

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char *s, size_t limit) noexcept

if (<int>HP_METRIC_COUNT > <int>CONTROL_COUNTERS
        or <int>HP_HISTOGRAM_COUNT > <int>CONTROL_HISTOGRAMS
        or <int>HP_PER_COUNT > <int>CONTROL_FIGURES):
    raise ImportError(f"{HP_METRIC_COUNT} counters, {HP_HISTOGRAM_COUNT} histograms and "
                      f"{HP_PER_COUNT} figures of a strategy do not fit {CONTROL_COUNTERS}, "
                      f"{CONTROL_HISTOGRAMS} and {CONTROL_FIGURES}")

SIZE = CONTROL_SIZE
STAGES = CONTROL_STAGES
STREAMS = CONTROL_STREAMS
STRATEGIES = CONTROL_STRATEGIES
TEXT_BYTES = TEXT_SIZE
BUCKETS = HISTOGRAM_BUCKETS
STATES = ("void", "starting", "running", "draining", "stopped", "failed")
VOID, STARTING, RUNNING, DRAINING, STOPPED, FAILED = range(6)
RUN, DRAIN, QUIT = range(3)


def schema_id() -> int:
    """Fingerprint of this build's records, counters and histograms, in their order."""
    import hashlib

    from hftpipe import schema
    text = repr(([r.fingerprint for r in schema.RECORDS], schema.METRICS, schema.HISTOGRAMS,
                 schema.STRATEGY_METRICS))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def format(memory, *, uint64_t run, uint64_t boot=0, uint64_t pid=0, uint64_t start=0,
           stages=(), uint64_t started=0, int64_t utc_offset=0, uint64_t token_key=0,
           uint64_t limits_version=0, uint64_t halt_epoch=1):
    """Make *memory* the control page of a run that is not armed.

    Parameters
    ----------
    memory : buffer
        Writable, aligned to 64 bytes, ``SIZE`` bytes; nobody else uses it yet.
    run, boot : int
        The run it belongs to (UTC ns of its start) and the boot it lives in.
    pid, start : int
        The supervisor, and when it started, clock ticks after boot.
    stages : sequence of str
        Names of the stage blocks.
    started : int
        UTC ns.
    utc_offset : int
        UTC minus monotonic, ns.
    token_key : int
        Keys the verdicts' tokens.
    halt_epoch : int, default 1
        At least 1; the highest ever seen, when an earlier run was halted.

    Raises
    ------
    ValueError
        If the size or alignment is wrong, a name is too long, or there are too many.
    """
    cdef Py_buffer view
    cdef control_header_t *h
    cdef stage_block_t *blocks
    cdef int i
    from hftpipe import schema
    names = "".join(f"{'-' if m.unit == 'nanocash' else ''}{m.name}\n" for m in schema.METRICS)
    names += "\n" + "".join(f"{m.name}\n" for m in schema.HISTOGRAMS)
    names += "\n" + "".join(f"{m.name}\n" for m in schema.STRATEGY_METRICS)
    cdef bytes encoded = names.encode()
    cdef list labels = [name.encode() for name in stages]
    if len(encoded) >= NAMES_SIZE:
        raise ValueError(f"names take {len(encoded)} bytes, {NAMES_SIZE - 1} fit")
    if len(labels) > CONTROL_STAGES or any(len(n) >= NAME_SIZE for n in labels):
        raise ValueError(f"at most {CONTROL_STAGES} stages with names below "
                         f"{NAME_SIZE} bytes, were {stages!r}")
    if halt_epoch == 0 or run == 0:
        raise ValueError(f"run and halt_epoch must be at least 1, were {run} and {halt_epoch}")
    PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        if <uint64_t>view.len != SIZE or <size_t>view.buf % 64:
            raise ValueError(f"memory must be {SIZE} bytes aligned to 64, was {view.len}")
        h = <control_header_t *>view.buf
        hp_store_release(&h.magic, 0)           # nobody attaches while we write
        memset(<char *>view.buf + 8, 0, view.len - 8)
        h.version, h.run, h.boot = CONTROL_VERSION, run, boot
        h.supervisor_pid, h.supervisor_start = pid, start
        h.schema, h.stages, h.started = schema_id(), <uint64_t>len(labels), started
        h.utc_offset, h.token_key = <uint64_t>utc_offset, token_key
        h.limits_version = limits_version
        h.halt_epoch = halt_epoch
        memcpy(h.names, <char *>encoded, len(encoded))
        blocks = <stage_block_t *>(<char *>view.buf + CONTROL_HEADER_SIZE)
        for i in range(len(labels)):
            memcpy(blocks[i].name, <char *>(<bytes>labels[i]), len(labels[i]))
        hp_store_release(&h.magic, CONTROL_MAGIC)
    finally:
        PyBuffer_Release(&view)


cdef class Control:
    """The control page of one run.

    Parameters
    ----------
    memory : buffer
        Writable, aligned to 64 bytes; :func:`format` has been there.
    run, boot, schema : int, optional
        What the header must say; None accepts any.  Who writes a stage block must ask for
        :func:`schema_id`; who only reads, halts or resumes need not.

    Raises
    ------
    SchemaError
        If the memory is no control page, or one of another version, run, boot or schema.
    """

    def __init__(self, memory, *, run=None, boot=None, schema=None):
        cdef control_header_t *h
        if self.header != NULL:
            raise RuntimeError("a control handle is made once")
        PyObject_GetBuffer(memory, &self._view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if <size_t>self._view.buf % 64:
            raise ValueError("memory must be aligned to 64 bytes")
        h = <control_header_t *>self._view.buf
        if self._view.len < 16 or hp_load_acquire(&h.magic) != CONTROL_MAGIC:
            raise SchemaError("not a control page, or not formatted yet")
        if h.version != CONTROL_VERSION or <uint64_t>self._view.len != SIZE:
            raise SchemaError(f"control page has version {h.version} and {self._view.len} B, "
                              f"this build's has {CONTROL_VERSION} and {SIZE} B")
        if boot is not None and h.boot != boot:
            raise SchemaError(f"control page is stale: it was made in boot {h.boot:#x}, "
                              f"this is boot {<uint64_t>boot:#x}")
        if run is not None and h.run != run:
            raise SchemaError(f"control page is stale: it belongs to run {h.run:x}, "
                              f"wanted run {<uint64_t>run:x}")
        if schema is not None and h.schema != schema:
            raise SchemaError(f"control page was made by schema {h.schema:#018x}, "
                              f"this build's is {<uint64_t>schema:#018x}")
        if h.stages > CONTROL_STAGES or h.text_size[0] > TEXT_SIZE or h.text_size[1] > TEXT_SIZE:
            raise SchemaError(f"control page is corrupt: {h.stages} stages, texts of "
                              f"{h.text_size[0]} and {h.text_size[1]} B")
        counters, _, rest = h.names[:strnlen(h.names, NAMES_SIZE)].decode().partition("\n\n")
        histograms, _, figures = rest.partition("\n\n")
        self.counter_names = tuple(n.lstrip("-") for n in counters.split("\n"))
        self.histogram_names = tuple(histograms.split())
        self.figure_names = tuple(figures.split())
        if len(self.counter_names) > CONTROL_COUNTERS:
            raise SchemaError(f"control page is corrupt: {len(self.counter_names)} counters")
        if len(self.histogram_names) > CONTROL_HISTOGRAMS:
            raise SchemaError(f"control page is corrupt: {len(self.histogram_names)} histograms")
        if len(self.figure_names) > CONTROL_FIGURES:
            raise SchemaError(f"control page is corrupt: {len(self.figure_names)} figures")
        self._counters = {n.lstrip("-"): (i, n.startswith("-"))
                          for i, n in enumerate(counters.split("\n"))}
        self._histograms = {n: i for i, n in enumerate(self.histogram_names)}
        self._memory = memory
        self.header = h
        self.blocks = <stage_block_t *>(<char *>h + CONTROL_HEADER_SIZE)
        self._strategies = <strategy_block_t *>(<char *>h + CONTROL_STRATEGIES_AT)

    def __dealloc__(self):
        PyBuffer_Release(&self._view)           # no-op if __init__ never got it

    cdef stage_block_t *block(self, int index) except NULL:
        if self.header == NULL:
            raise RuntimeError("control handle was never initialised")
        if not 0 <= index < CONTROL_STAGES:
            raise IndexError(f"stage index must be below {CONTROL_STAGES}, was {index}")
        return &self.blocks[index]

    cdef strategy_block_t *strategy(self, int index) except NULL:
        if self.header == NULL:
            raise RuntimeError("control handle was never initialised")
        if not 0 <= index < CONTROL_STRATEGIES:
            raise IndexError(f"strategy index must be below {CONTROL_STRATEGIES}, was {index}")
        return &self._strategies[index]

    # ------------------------------------------------------------ identity

    @property
    def run(self) -> int:
        """Id of the run: UTC ns of its start."""
        return self.header.run

    @property
    def boot(self) -> int:
        """Boot it was made in."""
        return self.header.boot

    @property
    def supervisor(self) -> tuple:
        """``(pid, start)``; *start* in clock ticks after boot."""
        return self.header.supervisor_pid, self.header.supervisor_start

    @property
    def schema(self) -> int:
        """:func:`schema_id` of the build that made it."""
        return self.header.schema

    @property
    def started(self) -> int:
        """UTC ns."""
        return self.header.started

    @property
    def utc_offset(self) -> int:
        """UTC minus monotonic at start, ns."""
        return <int64_t>self.header.utc_offset

    @property
    def token_key(self) -> int:
        """Keys the verdicts' tokens."""
        return self.header.token_key

    @property
    def limits_version(self) -> int:
        """Version of the limits that risk decides by."""
        return hp_load_acquire(&self.header.limits_version)

    @limits_version.setter
    def limits_version(self, uint64_t value):
        hp_store_release(&self.header.limits_version, value)

    # ------------------------------------------------------------ may orders pass

    @property
    def halt_epoch(self) -> int:
        """Halts so far; only grows."""
        return hp_load_acquire(&self.header.halt_epoch)

    @property
    def armed_epoch(self) -> int:
        """The halt epoch that the last resume named; 0 = never armed."""
        return hp_load_acquire(&self.header.armed_epoch)

    @property
    def armed(self) -> bool:
        """Whether orders may pass."""
        return control_armed(self.header)

    @property
    def trading(self) -> str:
        """``disarmed``, ``armed`` or ``halted``."""
        if control_armed(self.header):
            return "armed"
        return "halted" if hp_load_acquire(&self.header.armed_epoch) else "disarmed"

    def halt(self) -> int:
        """Stop trading now, whoever asks and whatever hangs; the new halt epoch."""
        return hp_fetch_add(&self.header.halt_epoch, 1) + 1

    def raise_halt_epoch(self, uint64_t epoch) -> int:
        """Bring ``halt_epoch`` up to at least *epoch*, as a latched copy says; what it is now."""
        return hp_raise(&self.header.halt_epoch, epoch)

    @property
    def cancel_epoch(self) -> int:
        """The last halt whose maker also wants every open order cancelled; 0 = none."""
        return hp_load_acquire(&self.header.cancel_epoch)

    @property
    def flatten_epoch(self) -> int:
        """The last halt whose maker also wants every position closed; 0 = none."""
        return hp_load_acquire(&self.header.flatten_epoch)

    def request_cancel(self, uint64_t epoch) -> int:
        """Have the guardian cancel every open order because of halt *epoch*."""
        return hp_raise(&self.header.cancel_epoch, epoch)

    def request_flatten(self, uint64_t epoch) -> int:
        """Have the guardian close every position because of halt *epoch*; cancels first."""
        hp_raise(&self.header.cancel_epoch, epoch)
        return hp_raise(&self.header.flatten_epoch, epoch)

    def resume(self, uint64_t seen_epoch) -> bool:
        """Allow trading, if *seen_epoch* is still the halt epoch; whether it was.

        A halt that comes at the same time wins: the epochs differ afterwards.
        """
        cdef uint64_t armed = hp_load_acquire(&self.header.armed_epoch)
        if seen_epoch == 0 or hp_load_acquire(&self.header.halt_epoch) != seen_epoch:
            return False
        return (armed == seen_epoch
                or hp_compare_swap(&self.header.armed_epoch, armed, seen_epoch)
                or hp_load_acquire(&self.header.armed_epoch) == seen_epoch)

    @property
    def stop(self) -> int:
        """RUN, DRAIN (finish what is in the rings, then end) or QUIT (end at once)."""
        return hp_load_acquire(&self.header.stop)

    def request_stop(self, uint64_t level=CONTROL_DRAIN):
        """Ask every stage to end; never takes a stronger request back."""
        cdef uint64_t now = hp_load_acquire(&self.header.stop)
        if not CONTROL_RUN <= level <= CONTROL_QUIT:
            raise ValueError(f"stop must be 0, 1 or 2, was {level}")
        while now < level and not hp_compare_swap(&self.header.stop, now, level):
            now = hp_load_acquire(&self.header.stop)

    # ------------------------------------------------------------ what is on disk

    def durable(self, int stream=0) -> int:
        """Sequence number up to which the events of *stream* are on disk; 0: records of all."""
        if not 0 <= stream < CONTROL_STREAMS:
            raise IndexError(f"stream must be below {CONTROL_STREAMS}, was {stream}")
        return hp_load_acquire(&self.header.durable[stream])

    def set_durable(self, int stream, uint64_t seq):
        """Say so; the journal alone does."""
        if not 0 <= stream < CONTROL_STREAMS:
            raise IndexError(f"stream must be below {CONTROL_STREAMS}, was {stream}")
        hp_store_release(&self.header.durable[stream], seq)

    # ------------------------------------------------------------ text

    @property
    def text(self) -> str:
        """The last whole text, also when its writer was killed while writing the next."""
        cdef uint64_t words[448]
        cdef uint64_t seq, size
        cdef int i
        while True:
            seq = hp_load_acquire(&self.header.text_seq)
            size = hp_load_acquire(&self.header.text_size[seq & 1])
            for i in range(448):                # acquire: before text_seq is read again
                words[i] = hp_load_acquire(&self.header.text[seq & 1][i])
            if hp_load_acquire(&self.header.text_seq) == seq:
                break
        if size > TEXT_SIZE:
            raise SchemaError(f"control page is corrupt: text of {size} B, at most {TEXT_SIZE}")
        return (<char *>words)[:size].decode()

    @text.setter
    def text(self, str value not None):
        """Replace the text; the caller holds the operator lock."""
        cdef uint64_t words[448]
        cdef uint64_t seq
        cdef bytes data = value.encode()
        cdef int i
        if len(data) > TEXT_SIZE:
            raise ValueError(f"text must be at most {TEXT_SIZE} bytes, was {len(data)}")
        memset(words, 0, sizeof(words))
        memcpy(words, <char *>data, len(data))
        seq = hp_load_acquire(&self.header.text_seq) + 1
        hp_store_release(&self.header.text_size[seq & 1], <uint64_t>len(data))
        for i in range(448):                    # release: not before the last text_seq
            hp_store_release(&self.header.text[seq & 1][i], words[i])
        hp_store_release(&self.header.text_seq, seq)

    # ------------------------------------------------------------ stages

    def stage(self, int index) -> StageBlock:
        """Block *index*."""
        cdef StageBlock block = StageBlock.__new__(StageBlock)
        block.b = self.block(index)
        block._control, block.index = self, index
        return block

    @property
    def stages(self) -> list:
        """The blocks in use, in order."""
        return [self.stage(i) for i in range(self.header.stages)]

    @property
    def strategies(self) -> dict:
        """Figures of every strategy by its name, in order; None: not known yet."""
        cdef strategy_block_t *b
        cdef uint64_t value
        out = {}
        for i in range(CONTROL_STRATEGIES):
            b = self.strategy(i)
            name = b.name[:strnlen(b.name, NAME_SIZE)].decode("utf-8", "replace")
            if name:
                out[name] = figures = {}
                for k, figure in enumerate(self.figure_names):
                    value = hp_load_relaxed(&b.figures[k])
                    figures[figure] = None if value == HP_UNKNOWN else value
        return out

    def histogram(self, name) -> Histogram:
        """Snapshot of histogram *name* over all stages."""
        cdef Histogram total = Histogram()
        for block in self.stages:
            total.merge(block.histogram(name))
        return total


cdef class StageBlock:
    """One stage's part of the page: anybody reads, that stage alone writes.

    Made by :meth:`Control.stage`.
    """

    def __init__(self, *args, **kwargs):
        raise TypeError("take Control.stage(index)")

    cdef int _counter(self, name) except -1:
        try:
            return self._control._counters[name][0]
        except KeyError:
            raise KeyError(f"no counter {name!r} on this page") from None

    cdef int _histogram(self, name) except -1:
        try:
            return self._control._histograms[name]
        except KeyError:
            raise KeyError(f"no histogram {name!r} on this page") from None

    # ------------------------------------------------------------ reading

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.b.name[:strnlen(self.b.name, NAME_SIZE)].decode()

    @property
    def pid(self) -> int:
        """Its process, 0 = none yet."""
        return hp_load_acquire(&self.b.pid)

    @property
    def start(self) -> int:
        """When that process started, clock ticks after boot."""
        return hp_load_acquire(&self.b.start)

    @property
    def core(self) -> int | None:
        """Core it is pinned to; None = it floats."""
        cdef uint64_t core = hp_load_acquire(&self.b.core)
        return core - 1 if core else None

    @property
    def state(self) -> int:
        """VOID, STARTING, RUNNING, DRAINING, STOPPED or FAILED; ``STATES`` names them."""
        return hp_load_acquire(&self.b.state)

    @property
    def heartbeat(self) -> int:
        """When it last beat, monotonic ns."""
        return hp_load_acquire(&self.b.heartbeat)

    @property
    def store_full(self) -> bool:
        """Whether its store link has no room."""
        return hp_load_acquire(&self.b.store_full) != 0

    @property
    def ack_epoch(self) -> int:
        """Highest halt epoch it acted on."""
        return hp_load_acquire(&self.b.ack_epoch)

    def counter(self, name) -> int:
        """Value of one counter or gauge; amounts of money may be negative."""
        cdef uint64_t value = hp_load_relaxed(&self.b.counters[self._counter(name)])
        return <int64_t>value if self._control._counters[name][1] else value

    @property
    def counters(self) -> dict:
        """Value of every counter and gauge by name."""
        return {name: self.counter(name) for name in self._control.counter_names}

    def histogram(self, name) -> Histogram:
        """Snapshot of one latency histogram."""
        cdef Histogram h = Histogram()
        cdef histogram_t *source = &self.b.histograms[self._histogram(name)]
        cdef int i
        # The writer goes on meanwhile: buckets first, then min and max, which it wrote before.
        for i in range(HISTOGRAM_BUCKETS):
            h._buckets[i] = hp_load_acquire(&source.buckets[i])
            h._count += h._buckets[i]
        h._sum = hp_load_relaxed(&source.sum)
        h._max = hp_load_relaxed(&source.max)
        h._min = hp_load_relaxed(&source.min)
        return h

    # ------------------------------------------------------------ writing

    def enter(self, uint64_t pid, uint64_t start, core=None, alive=None):
        """Take the block for this process, in state STARTING; counters go on where they are.

        Parameters
        ----------
        pid, start : int
            This process, and when it started, clock ticks after boot.
        core : int, optional
            The core it is pinned to.
        alive : callable, optional
            ``alive(pid, start) -> bool``, asked about another process that holds the block
            and has not said it ended.

        Raises
        ------
        BusyError
            If another living process holds the block.
        """
        cdef uint64_t other = self.pid, since = self.start
        if (other and (other, since) != (pid, start) and self.state in (STARTING, RUNNING, DRAINING)
                and (alive is None or alive(other, since))):
            raise BusyError(f"process {other} is stage {self.name}; there can be only one")
        hp_store_release(&self.b.state, STAGE_STARTING)
        hp_store_release(&self.b.start, start)
        hp_store_release(&self.b.core, 0 if core is None else <uint64_t>(core + 1))
        hp_store_release(&self.b.pid, pid)

    @state.setter
    def state(self, uint64_t value):
        if value > STAGE_FAILED:
            raise ValueError(f"state must be at most {STAGE_FAILED}, was {value}")
        hp_store_release(&self.b.state, value)

    @heartbeat.setter
    def heartbeat(self, uint64_t now):
        hp_store_release(&self.b.heartbeat, now)

    @store_full.setter
    def store_full(self, bint value):
        hp_store_release(&self.b.store_full, value)

    @ack_epoch.setter
    def ack_epoch(self, uint64_t value):
        hp_store_release(&self.b.ack_epoch, value)

    def count(self, name, uint64_t n=1):
        """Add *n* to a counter."""
        control_count(self.b, self._counter(name), n)

    def set(self, name, value):
        """Set a gauge; money may be negative."""
        control_set(self.b, self._counter(name), <uint64_t>(value & 0xffffffffffffffff))

    def record(self, name, int64_t ns):
        """Count one latency."""
        histogram_record(&self.b.histograms[self._histogram(name)], ns)


cdef class Histogram:
    """A snapshot of a latency histogram, in nanoseconds.

    Values below 16 are exact; above, a bucket is 1/16 of a power of two wide and every
    statistic taken from buckets is its upper bound: at most 1/16 above the value, never
    below it.  Values of 2**40 ns (18 minutes) and more share the last bucket, whose bound
    is the largest value seen.  ``min``, ``max`` and ``sum`` are exact.
    """

    @property
    def count(self) -> int:
        """Values counted."""
        return self._count

    @property
    def sum(self) -> int:
        """Their sum."""
        return self._sum

    @property
    def min(self) -> int:
        """The smallest, 0 when there is none."""
        return self._min

    @property
    def max(self) -> int:
        """The largest, 0 when there is none."""
        return self._max

    @property
    def mean(self) -> float:
        """Arithmetic mean, 0 when there is none."""
        return <double>self._sum / <double>self._count if self._count else 0.0

    def percentile(self, double p) -> int:
        """The value below or at which *p* percent lie (inverted CDF), 0 when there is none.

        Exact below 16 ns and at 0 and 100, else at most 1/16 too high.
        """
        cdef uint64_t rank, seen = 0
        cdef int i
        if not 0 <= p <= 100:
            raise ValueError(f"p must be in [0, 100], was {p}")
        if self._count == 0:
            return 0
        # In whole millionths, rounded up: 99.9 % of 1,000 is the 999th.
        rank = (<uint64_t>(p * 10_000 + 0.5) * self._count + 999_999) // 1_000_000
        if rank <= 1:
            return self._min
        for i in range(HISTOGRAM_BUCKETS - 1):
            seen += self._buckets[i]
            if seen >= rank:
                return min(histogram_bound(i), self._max)
        return self._max

    def merge(self, Histogram other not None) -> Histogram:
        """Add *other*'s values to this snapshot; this snapshot."""
        cdef int i
        for i in range(HISTOGRAM_BUCKETS):
            self._buckets[i] += other._buckets[i]
        if other._count:
            self._min = other._min if not self._count else min(self._min, other._min)
            self._max = max(self._max, other._max)
        self._count += other._count
        self._sum += other._sum
        return self

    def since(self, Histogram before not None) -> Histogram:
        """What was counted after the snapshot *before* of the same histogram.

        Here ``min`` and ``max`` are bounds of buckets, as the percentiles are.
        """
        cdef Histogram out = Histogram()
        cdef int i
        for i in range(HISTOGRAM_BUCKETS):
            if self._buckets[i] < before._buckets[i]:
                raise ValueError("the earlier snapshot counts more: not of the same histogram")
            out._buckets[i] = self._buckets[i] - before._buckets[i]
            if out._buckets[i]:
                if out._count == 0:
                    out._min = min(max(histogram_bound(i), self._min), self._max)
                out._max = min(histogram_bound(i), self._max)
                out._count += out._buckets[i]
        if out._buckets[HISTOGRAM_BUCKETS - 1]:
            out._max = self._max
        out._sum = self._sum - before._sum
        return out

    def buckets(self) -> list:
        """``(upper bound, count)`` of every bucket that is not empty."""
        return [(self._max if i == HISTOGRAM_BUCKETS - 1 else histogram_bound(i), self._buckets[i])
                for i in range(HISTOGRAM_BUCKETS) if self._buckets[i]]

    def summary(self) -> dict:
        """count, mean, min, p50, p99, p999 and max."""
        return {"count": self.count, "mean": self.mean, "min": self.min,
                "p50": self.percentile(50), "p99": self.percentile(99),
                "p999": self.percentile(99.9), "max": self.max}
