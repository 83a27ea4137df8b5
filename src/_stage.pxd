"""Duty cycles: parts joined by rings.  A stage is ``work(limit) -> done``.

It takes records from its input rings, changes its own state, puts records on its output
rings, and knows nothing of processes, sockets or files.  The same compiled stage runs
pinned in its own process, fused with others in one loop, and inline in a backtest.

Rules every stage keeps
    R1  A record is taken only with credit on every output it may need, the store link
        included; otherwise the stage returns and the pressure moves upstream.
    R2  An order event is taken with credit on the store link alone: what a strategy may
        add then is limited to the room there is.  Hence no cycle of links can lock up.
    R3  Time enters through records (ts_recv).  The clock is read for hop stamps, and in
        risk and gateway for ages; those readings are in the stored events.
    R4  What is not stored did not happen: the store link is written before the output.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._book cimport book_t
from ._control cimport Control, control_header_t, stage_block_t
from ._feature cimport feature_t
from ._ledger cimport Ledger
from ._order cimport Orders
from ._ring cimport Ring, ring_t
from ._risk cimport Risk
from ._schema cimport (
    hp_book_t, hp_features_t, hp_instrument_t, hp_intent_t, hp_market_t, hp_order_event_t,
    hp_order_t, hp_update_t)
from ._strategy cimport Strategy, hp_holding_t
from ._wire cimport Wire

cdef enum:
    STAGE_OUTPUTS = 4
    INTENTS_MAX = 16            # of one strategy at one event

cdef struct store_t:            # a stage's own store link and the stream it makes
    ring_t *ring                # NULL in a run without a store (benches): seq still counts
    stage_block_t *block
    uint64_t stream             # STREAM_* << 56
    uint64_t seq                # of the newest event
    uint64_t checksum           # sum of the bodies' checksums, modulo 2**64
    uint64_t slot_size


cdef class Stage:
    cdef stage_block_t *block   # this stage's in the control page; never NULL
    cdef control_header_t *header       # NULL without a control page
    cdef object _own_block      # keeps a private block alive when there is no control page
    cdef object _keep           # rings and memory that the pointers below point into
    cdef readonly str name
    cdef readonly object error  # None, or what stopped the stage
    cdef store_t store
    cdef int failed             # set without the GIL; `error` says why
    cdef bint draining          # set by the host: take in nothing new from outside

    cdef int _setup(self, str name, Control control, int index, store, int stream,
                    record) except -1
    # Stop trading: something is not as it must be, and orders would make it worse.
    cdef void _halt(self) noexcept nogil
    # Do at most *limit* records' worth; returns how many were done (0 = idle).
    cdef uint64_t work(self, uint64_t limit) noexcept nogil
    # Called when idle for a while: warm caches, return credit.
    cdef void idle(self) noexcept nogil
    # Whether something is still on its way that a drain should wait for.
    cdef bint pending(self) noexcept nogil
    # Called with the GIL every few milliseconds of idleness: reconnect, maintain.
    cdef object maintain(self)


cdef class Source:
    """Where a feed's records come from when the feed is received in the loop."""
    cdef readonly object error
    # Fill at most *room* records of whole venue messages; how many, 0 = none, -1 = broken.
    cdef int read(self, hp_market_t *out, int room) noexcept nogil
    cdef object maintain(self)


cdef class FeedStage(Stage):
    cdef ring_t *book
    cdef Source source
    cdef hp_market_t *scratch
    cdef uint64_t scratch_size

    cdef uint64_t room(self) noexcept nogil
    cdef void put(self, const hp_market_t *records, uint64_t count) noexcept nogil


cdef class BookStage(Stage):
    cdef ring_t *market
    cdef ring_t *outputs[STAGE_OUTPUTS]
    cdef int output_count
    cdef list books             # the Book handles, one per instrument
    cdef book_t **tables        # and their structs
    cdef uint8_t *flags         # BOOK_FLAG_* last published, per instrument
    cdef uint64_t instruments


cdef class SignalStage(Stage):
    cdef ring_t *books
    cdef ring_t *order_events
    cdef ring_t *intents
    cdef list strategies
    cdef void **strategy_pointers
    cdef int strategy_count
    cdef uint64_t instruments
    cdef hp_instrument_t *specs
    cdef feature_t *features
    cdef hp_features_t *vectors
    cdef uint8_t *warm
    cdef hp_book_t *newest
    cdef hp_holding_t *holdings
    cdef hp_intent_t *scratch
    cdef uint64_t taken         # book records taken

    cdef int _ask(self, int event, uint16_t instrument, const hp_order_event_t *order_event,
                  uint64_t cause, int64_t ts_recv, int64_t ts_in, uint32_t room) noexcept nogil


cdef class RiskStage(Stage):
    cdef ring_t *intents
    cdef ring_t *marks
    cdef ring_t *order_events
    cdef ring_t *positions
    cdef ring_t *orders
    cdef Risk risk
    cdef stage_block_t *blocks
    cdef uint64_t halt_seen
    cdef bint armed_seen
    cdef bint store_full_seen

    cdef bint _watch(self) noexcept nogil


cdef class GatewayStage(Stage):
    cdef ring_t *orders
    cdef ring_t *updates
    cdef ring_t *outputs[STAGE_OUTPUTS]
    cdef int output_count
    cdef Orders table
    cdef Wire wire
    cdef int64_t max_age        # ns from ts_recv to the send

    cdef uint64_t _credit(self) noexcept nogil
    cdef void _emit(self, hp_order_event_t *e, int64_t ts, int64_t ts_in) noexcept nogil
    cdef void _answer(self, const hp_update_t *u) noexcept nogil
    cdef int _order(self, const hp_order_t *o) noexcept nogil
    cdef void _refuse(self, const hp_order_t *o, uint8_t kind, uint8_t reason) noexcept nogil


cdef class UpdatesStage(Stage):
    cdef ring_t *gateway


cdef class LedgerStage(Stage):
    cdef ring_t *order_events
    cdef ring_t *marks
    cdef ring_t *risk
    cdef Ledger ledger
    cdef uint64_t broken        # refusals of the ledger seen
    cdef uint64_t instruments
    cdef int64_t *stored_at     # ts_recv of the newest stored snapshot, per instrument
    cdef int64_t interval       # ns between stored snapshots of a moving position

    cdef void _publish(self, uint16_t instrument, uint64_t cause, int64_t ts_in,
                       bint keep) noexcept nogil


cdef class Host:
    cdef list stages
    cdef control_header_t *header
    cdef object _control
    cdef int wait               # WAIT_*
    cdef stage_block_t *after[16]       # stages that must have ended before a drain is done
    cdef int after_count
    cdef object every           # called with the GIL every few milliseconds, or None
    cdef readonly uint64_t passes
