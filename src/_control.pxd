"""The control page: one small segment per run that every tool reads without anybody's help.

Bytes (``_control.h``)::

        0  header block (12288): identity, trading state, halt words, names, text behind a seqlock
    12288  stage block [0]   (one per stage)
           ...
           stage block [CONTROL_STAGES - 1]
           strategy block [0 .. CONTROL_STRATEGIES - 1]

Who writes what
    header.magic .. schema      the supervisor, once, magic last
    header.halt_epoch           everybody: fetch_add 1 halts (seq_cst)
    header.armed_epoch          resume: compare-and-swap to the halt epoch its operator saw
    header.stop                 everybody: CONTROL_*, only ever upwards
    header.cancel_epoch         everybody: raised to the halt whose maker also wants every open
    header.flatten_epoch        order cancelled, every position closed; the guardian reads them
    header.durable              the journal
    header.text                 the supervisor and the CLI under the operator lock, seqlock
    stage block                 that stage only; counters and buckets relaxed, heartbeat release
    strategy block              the signal stage, every few milliseconds, relaxed; its name last

Invariants
    C1  Trading is allowed while halt_epoch == armed_epoch and armed_epoch > 0.  A fresh run
        has halt_epoch >= 1 and armed_epoch 0 (DISARMED); arming it is the first resume.
    C2  halt_epoch only grows; armed_epoch <= halt_epoch: a resume names the halt epoch that
        its operator saw, so it can not undo a halt that came later, and no halt can ever
        make the two equal.
    C3  text_seq counts the texts; text[text_seq & 1] is whole.  A writer fills the other
        half, then counts: killed in the middle, it leaves the last text readable.
    C4  The page names its own counters, histograms and strategies' figures: a tool of another
        version reads it.
    C5  durable[s] is the sequence number up to which the journal has the events of stream s on
        disk, durable[0] the number of records of all streams that are.  They only grow, and
        durable[0] is written before the others: a journal that is started again finds there
        at least what anybody was told.
"""
from cpython.buffer cimport Py_buffer
from libc.stdint cimport int64_t, uint64_t

from ._atomic cimport hp_load_acquire, hp_load_relaxed, hp_store_relaxed, hp_store_release
from ._schema cimport HP_HISTOGRAM_COUNT, HP_METRIC_COUNT, HP_PER_COUNT

cdef extern from "_control.h" nogil:
    enum:
        CONTROL_VERSION
        CONTROL_STAGES
        CONTROL_STREAMS
        CONTROL_HEADER_SIZE
        CONTROL_COUNTERS
        CONTROL_HISTOGRAMS
        CONTROL_STRATEGIES
        CONTROL_FIGURES
        HISTOGRAM_BUCKETS
        TEXT_SIZE
        NAMES_SIZE
        NAME_SIZE

    enum:                           # stage_block_t.state
        STAGE_VOID
        STAGE_STARTING
        STAGE_RUNNING
        STAGE_DRAINING
        STAGE_STOPPED
        STAGE_FAILED

    enum:                           # control_header_t.stop
        CONTROL_RUN
        CONTROL_DRAIN
        CONTROL_QUIT

    const uint64_t CONTROL_MAGIC
    const uint64_t HP_UNKNOWN       # a figure that nobody knows yet
    const uint64_t CONTROL_STRATEGIES_AT
    const uint64_t CONTROL_SIZE

    ctypedef struct histogram_t:
        uint64_t count
        uint64_t sum
        uint64_t max
        uint64_t min
        uint64_t buckets[592]

    ctypedef struct control_header_t:
        uint64_t magic
        uint64_t version
        uint64_t run
        uint64_t boot
        uint64_t supervisor_pid
        uint64_t supervisor_start
        uint64_t schema
        uint64_t stages
        uint64_t started
        uint64_t utc_offset
        uint64_t token_key
        uint64_t limits_version
        uint64_t halt_epoch
        uint64_t armed_epoch
        uint64_t stop
        uint64_t cancel_epoch
        uint64_t flatten_epoch
        uint64_t durable[16]
        uint64_t text_seq
        uint64_t text_size[2]
        uint64_t text[2][448]
        char names[3584]

    ctypedef struct stage_block_t:
        char name[32]
        uint64_t pid
        uint64_t core
        uint64_t state
        uint64_t heartbeat
        uint64_t store_full
        uint64_t ack_epoch
        uint64_t start
        uint64_t counters[64]
        histogram_t histograms[12]

    ctypedef struct strategy_block_t:
        char name[32]
        uint64_t figures[28]


cdef inline void control_count(stage_block_t *b, int metric, uint64_t n) noexcept nogil:
    hp_store_relaxed(&b.counters[metric], b.counters[metric] + n)

cdef inline void control_set(stage_block_t *b, int metric, uint64_t value) noexcept nogil:
    hp_store_relaxed(&b.counters[metric], value)

cdef inline bint control_armed(const control_header_t *h) noexcept nogil:
    """Whether orders may pass.  Armed is read first: a halt between the loads is seen."""
    cdef uint64_t armed = hp_load_acquire(&h.armed_epoch)
    return armed != 0 and armed == hp_load_acquire(&h.halt_epoch)

cdef extern from *:
    """
    static inline int hp_log2(unsigned long long v) { return 63 - __builtin_clzll(v); }
    """
    int hp_log2(uint64_t v) noexcept nogil

cdef inline int histogram_bucket(uint64_t ns) noexcept nogil:
    """Bucket of a value: exact below 16, then 16 per power of two; error at most 1/16."""
    cdef int top
    if ns < 16:
        return <int>ns
    top = hp_log2(ns)
    if top >= 40:
        return HISTOGRAM_BUCKETS - 1
    return (top - 3) * 16 + <int>((ns >> (top - 4)) & 15)

cdef inline uint64_t histogram_bound(int bucket) noexcept nogil:
    """The largest value that falls into *bucket*."""
    if bucket < 16:
        return <uint64_t>bucket
    return (<uint64_t>(17 + (bucket & 15)) << (bucket // 16 - 1)) - 1

cdef inline void histogram_record(histogram_t *h, int64_t ns) noexcept nogil:
    """Count one latency; negative values count as 0.  One writer."""
    cdef uint64_t v = <uint64_t>ns if ns > 0 else 0
    cdef int i = histogram_bucket(v)
    if v > h.max:
        hp_store_relaxed(&h.max, v)
    if h.count == 0 or v < h.min:
        hp_store_relaxed(&h.min, v)
    hp_store_relaxed(&h.sum, h.sum + v)
    hp_store_release(&h.buckets[i], h.buckets[i] + 1)       # last: min and max bound what counts
    hp_store_relaxed(&h.count, h.count + 1)


cdef class Control:
    cdef control_header_t *header
    cdef stage_block_t *blocks
    cdef strategy_block_t *_strategies
    cdef object _memory             # keeps the mapping alive
    cdef Py_buffer _view            # held until dealloc: an exported mapping can not be closed
    cdef readonly tuple counter_names       # as the page says
    cdef readonly tuple histogram_names
    cdef readonly tuple figure_names
    cdef dict _counters             # name -> (index, signed)
    cdef dict _histograms           # name -> index

    cdef stage_block_t *block(self, int index) except NULL
    cdef strategy_block_t *strategy(self, int index) except NULL


cdef class StageBlock:
    cdef stage_block_t *b
    cdef Control _control           # keeps the page alive
    cdef readonly int index

    cdef int _counter(self, name) except -1
    cdef int _histogram(self, name) except -1


cdef class Histogram:
    cdef uint64_t _sum, _min, _max, _count
    cdef uint64_t _buckets[592]
