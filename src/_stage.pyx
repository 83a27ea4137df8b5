"""The stages and the loop that hosts them; rules R1 to R4 are in ``_stage.pxd``."""
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._atomic cimport (
    hp_fetch_add, hp_load_acquire, hp_load_relaxed, hp_pause, hp_store_release)
from ._book cimport Book, book_apply, book_view
from ._clock cimport clock_now
from ._control cimport (
    CONTROL_QUIT, CONTROL_STAGES, STAGE_DRAINING, STAGE_FAILED, STAGE_RUNNING, STAGE_STOPPED,
    Control, control_armed, control_count, control_set, histogram_record)
from ._feature cimport feature_init, feature_update
from ._ledger cimport (
    ledger_day_pnl, ledger_gross, ledger_mark, ledger_order_event, ledger_realised, ledger_view)
from ._memory cimport hp_lines
from ._order cimport order_apply, order_find, order_new, order_step, order_t
from ._ring cimport (
    ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release)
from ._risk cimport risk_check, risk_mark, risk_order_event, risk_position
from ._schema cimport *
from ._strategy cimport (
    STRATEGY_BOOK, STRATEGY_IDLE, STRATEGY_ORDER, STRATEGY_TRADE, STRATEGY_VERSION, hp_context_t,
    hp_out_t)
from ._token cimport token_of
from ._wire cimport WIRE_BUSY, WIRE_SENT

import numpy

from hftpipe import schema
from hftpipe.errors import SchemaError

cdef extern from * nogil:
    """
    #include <sched.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <time.h>
    /* Word by word: a wide load behind narrow stores would wait for them to leave the store
     * buffer, which costs more than the whole copy. */
    static inline void hp_copy_words(uint64_t *to, const uint64_t *from, int first, int count) {
      for (int i = first; i < count; i++) {
        uint64_t v;
    #if defined(__x86_64__)
        __asm__ __volatile__("mov %1, %0" : "=r"(v) : "m"(from[i]));
    #else
        v = *(const volatile uint64_t *)&from[i];
    #endif
        to[i] = v;
      }
    }
    static inline uint64_t hp_checksum(const uint64_t *word, int count) {
      uint64_t h = UINT64_C(0x9E3779B97F4A7C15);
      for (int i = 0; i < count; i++) {
        h = (h ^ word[i]) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
      }
      return h;
    }
    static inline uint32_t hp_saturate(int64_t v) {
      return v < 0 ? 0 : v > UINT32_MAX ? UINT32_MAX : (uint32_t)v;
    }
    static inline void hp_sleep_ns(long ns) { struct timespec t = {0, ns}; nanosleep(&t, 0); }
    """
    void hp_copy_words(uint64_t *to, const uint64_t *from_, int first, int count) noexcept
    uint64_t hp_checksum(const uint64_t *word, int count) noexcept
    uint32_t hp_saturate(int64_t v) noexcept
    void hp_sleep_ns(long ns) noexcept
    int sched_yield() noexcept

WAIT_SPIN, WAIT_YIELD, WAIT_SLEEP = range(3)
cdef enum:
    SPIN = 0
    YIELD = 1
    SLEEP = 2
    BATCH = 64                  # records of one stage in one pass
    STORE_ROOM = 64             # credit on the store link without which nothing is taken
    MAINTAIN_NS = 20_000_000    # how often maintain() runs: with the GIL, some 10 us each time
    DRAINED_NS = 100_000_000    # idle this long while draining means there is nothing left
    PENDING_NS = 2_000_000_000  # a drain waits this long for orders without an end
    OVERRUN = 2                 # Stage.failed: a strategy said it wrote more than it may
    HEARTBEAT_PASSES = 512
    FLUSH_PASSES = 64           # idle passes after which credit is returned ...
    WARM_PASSES = 256           # ... and again, with the models kept warm, every so many


_METRIC = {m.name: i for i, m in enumerate(schema.METRICS)}


def checksum(body) -> int:
    """Checksum of one body (bytes, 64 or 128 of them) as the store links carry it."""
    words = numpy.frombuffer(body, "<u8").copy()
    cdef uint64_t[::1] view = words
    return hp_checksum(&view[0], <int>view.shape[0])


# ---------------------------------------------------------------- the store link

cdef inline uint64_t store_credit(store_t *s) noexcept nogil:
    """Room on the store link; tells risk through the control page when there is too little."""
    if s.ring == NULL:
        return 1 << 30
    cdef uint64_t room = ring_credit(s.ring, STORE_ROOM)
    cdef uint64_t full = room < STORE_ROOM
    if full != s.block.store_full:
        hp_store_release(&s.block.store_full, full)
    return 0 if full else room


cdef inline uint64_t store_next(const store_t *s) noexcept nogil:
    """Identity the next stored event will have."""
    return s.stream | (s.seq + 1)


cdef inline uint64_t store_put(store_t *s, int record, const void *body, int lines, int first,
                               uint64_t cause, int64_t ts, int64_t ts_in, uint16_t instrument,
                               uint64_t aux) noexcept nogil:
    """Record one event; the caller has credit.  *first* = 1 leaves out the ring's own word."""
    s.seq += 1
    cdef uint64_t event = s.stream | s.seq
    if s.ring == NULL:
        return event
    cdef hp_envelope_t *e = <hp_envelope_t *>ring_claim(s.ring)
    if e == NULL:               # not reached with credit; the gap it leaves stops the writer
        return event
    cdef uint64_t *words = <uint64_t *>e + 8
    cdef uint64_t sum_
    e.event, e.cause, e.ts, e.ts_in = event, cause, ts, ts_in
    e.record, e.lines, e.instrument, e.pad0, e.aux = record, lines, instrument, 0, aux
    if first:
        words[0] = 0
    hp_copy_words(words, <const uint64_t *>body, first, lines * 8)
    if s.slot_size > 64 + <uint64_t>lines * 64:
        memset(<char *>words + lines * 64, 0, s.slot_size - 64 - lines * 64)
    sum_ = hp_checksum(words, lines * 8)
    e.checksum = sum_
    s.checksum += sum_
    ring_publish(s.ring)
    control_set(s.block, HP_METRIC_EVENTS_STORED, s.seq)
    control_set(s.block, HP_METRIC_EVENTS_CHECKSUM, s.checksum)
    return event


cdef ring_t *_end(list keep, ring, record, bint producer) except? NULL:
    """The C end of *ring*, which must carry *record*; keeps the handle alive."""
    if ring is None:
        return NULL
    cdef Ring handle = ring
    if handle._record is not record or handle._producer != producer:
        raise SchemaError(f"link must be the {'producer' if producer else 'consumer'} end of "
                          f"{record.name}, was {'producer' if handle._producer else 'consumer'} "
                          f"of {handle._record.name}")
    keep.append(handle)
    return &handle.c


cdef class Stage:
    """Base of all stages.

    Parameters
    ----------
    name : str
    control : Control or None
        The run's control page; without one the stage counts into memory of its own.
    index : int
        Which block of the control page is this stage's.
    store : Ring or None
        Producer end of the store link.
    stream : int
        STREAM_* of the events it stores.
    """

    def __cinit__(self, *args, **kwargs):
        self._keep = []
        self.error = None

    cdef int _setup(self, str name, Control control, int index, store, int stream,
                    record) except -1:
        self.name = name
        if control is None:
            self._own_block = bytearray(sizeof(stage_block_t) + 64)
            self.block = <stage_block_t *>(<uint64_t>(<char *>self._own_block) + 63 & ~63ULL)
        else:
            self.block, self.header = control.block(index), control.header
            self._keep.append(control)
        self.store.block = self.block
        self.store.ring = _end(self._keep, store, record, True)
        self.store.stream = <uint64_t>stream << HP_SEQ_BITS
        self.store.slot_size = record.size
        return 0

    cdef void _halt(self) noexcept nogil:
        control_count(self.block, HP_METRIC_ERRORS, 1)
        if self.header != NULL:
            hp_fetch_add(&self.header.halt_epoch, 1)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        return 0

    cdef void idle(self) noexcept nogil:
        pass

    cdef bint pending(self) noexcept nogil:
        return False

    cdef object maintain(self):
        return None

    def do_work(self, uint64_t limit=BATCH):
        """Do at most *limit* records' worth; how many were done (0 = idle).

        Raises
        ------
        Exception
            Whatever stopped the stage: a strategy's exception, a corrupt link.
        """
        cdef uint64_t done
        with nogil:
            done = self.work(limit)
        self.check()
        return done

    def flush(self):
        """Return all credit upstream, as a host does when the loop is idle."""
        self.idle()

    def check(self):
        """Raise what stopped the stage, if anything did."""
        if self.failed:
            if self.error is None:
                self.error = SchemaError(f"stage {self.name}: a link carries a sequence number "
                                         f"beyond the next one; its memory is corrupt")
            raise self.error

    @property
    def counters(self):
        """Counters of this stage by metric name."""
        return {m.name: self.block.counters[i] for i, m in enumerate(schema.METRICS)}

    @property
    def stored(self) :
        """Events stored so far and the sum of their checksums."""
        return self.store.seq, self.store.checksum


# ---------------------------------------------------------------- feed

cdef class Source:
    """Where records come from when a feed is received in the loop; derive from it."""

    cdef int read(self, hp_market_t *out, int room) noexcept nogil:
        return 0

    cdef object maintain(self):
        return None

    def figures(self):
        """Values of metrics of the feed stage by name, read every few milliseconds."""
        return {}


cdef class FeedStage(Stage):
    """Gives market records their identity and puts them on the book's and the store link."""

    def __init__(self, book, store=None, Control control=None, int index=0, Source source=None):
        self._setup("feed", control, index, store, schema.STREAM.FEED, schema.STORED)
        self.book = _end(self._keep, book, schema.MARKET, True)
        self.source = source
        self.scratch_size = 2048
        self.scratch = <hp_market_t *>hp_lines(self.scratch_size, sizeof(hp_market_t))
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)

    cdef uint64_t room(self) noexcept nogil:
        """Records there is credit for; a frame's worth is looked for before it is denied."""
        cdef uint64_t store = store_credit(&self.store)
        cdef uint64_t book = ring_credit(self.book, self.scratch_size)
        if store and self.store.ring != NULL:
            store = ring_credit(self.store.ring, self.scratch_size)
        return store if store < book else book

    cdef void put(self, const hp_market_t *records, uint64_t count) noexcept nogil:
        """Publish *count* records of whole messages; the caller has room for them."""
        cdef uint64_t i
        cdef hp_market_t *slot
        cdef int64_t now = clock_now()
        cdef uint32_t hop
        for i in range(count):
            slot = <hp_market_t *>ring_claim(self.book)
            if slot == NULL:
                self.failed = 1
                return
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>&records[i], 2, 8)
            hop = hp_saturate(now - slot.ts_recv)
            slot.event = store_next(&self.store)
            slot.hop = <uint16_t>(hop if hop < 65535 else 65535)
            store_put(&self.store, HP_RECORD_MARKET, slot, 1, 1, 0, now, slot.ts_recv,
                      slot.instrument, 0)
            ring_publish(self.book)
            if slot.kind == HP_MARKET_GAP:
                control_count(self.block, HP_METRIC_GAPS, 1)
        if count:
            histogram_record(&self.block.histograms[HP_HISTOGRAM_FEED],
                             now - records[0].ts_recv)
            control_count(self.block, HP_METRIC_RECORDS_OUT, count)
            control_set(self.block, HP_METRIC_LAST_DATA, <uint64_t>now)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        if self.source is None or self.draining:
            return 0
        cdef uint64_t room = self.room()
        if room < self.scratch_size:            # R1: a frame may need all of it
            control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
            return 0
        cdef int n = self.source.read(self.scratch, <int>self.scratch_size)
        if n < 0:
            self.failed = 1
            return 0
        if n:
            control_count(self.block, HP_METRIC_FRAMES, 1)
            self.put(self.scratch, n)
        return n

    cdef object maintain(self):
        if self.source is not None:
            self.source.maintain()
            for name, value in self.source.figures().items():
                control_set(self.block, _METRIC[name], value)
            if self.failed and self.source.error is not None:
                self.error = self.source.error

    def put_many(self, records) -> int:
        """Publish records of whole messages.

        Parameters
        ----------
        records : (n,) structured array, dtype of MARKET, contiguous

        Returns
        -------
        int
            How many were taken: all, or 0 when there is no credit for all of them.
        """
        cdef const unsigned char[::1] raw
        if not len(records):
            return 0
        raw = records.view("u1")
        cdef uint64_t count = raw.shape[0] // sizeof(hp_market_t)
        if self.room() < count:
            control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
            return 0
        with nogil:
            self.put(<const hp_market_t *>&raw[0], count)
        self.check()
        return count


# ---------------------------------------------------------------- book

cdef class BookStage(Stage):
    """Applies market records to books and publishes each consistent state.

    Parameters
    ----------
    market : Ring
        Consumer end, MARKET.
    outputs : sequence of Ring
        Producer ends, BOOK; one per reader (signal, risk, ledger).
    instruments : (n,) structured array, dtype of INSTRUMENT
    orders : int
        Orders an L3 book can hold.
    """

    def __init__(self, market, outputs, instruments, store=None, Control control=None,
                 int index=1, int orders=65536):
        cdef Book book
        self._setup("book", control, index, store, schema.STREAM.BOOK, schema.STORED)
        self.market = _end(self._keep, market, schema.MARKET, False)
        if len(outputs) > STAGE_OUTPUTS:
            raise ValueError(f"at most {STAGE_OUTPUTS} readers of the book, were {len(outputs)}")
        self.output_count = len(outputs)
        for i, ring in enumerate(outputs):
            self.outputs[i] = _end(self._keep, ring, schema.BOOK, True)
        self.instruments = len(instruments)
        self.tables = <book_t **>calloc(self.instruments or 1, sizeof(book_t *))
        self.flags = <uint8_t *>calloc(self.instruments or 1, 1)
        if self.tables == NULL or self.flags == NULL:
            raise MemoryError
        self.books = []
        for i, row in enumerate(instruments):
            book = Book(int(row["tick"]), int(row["base_price"]), orders)
            self.books.append(book)
            self.tables[i] = book.b
            self.flags[i] = HP_BOOK_FLAG_STALE

    def __dealloc__(self):
        free(self.tables)
        free(self.flags)

    @property
    def handles(self) -> list:
        """The books, by instrument; look, do not change."""
        return list(self.books)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0
        cdef const hp_market_t *m
        cdef hp_book_t *out
        cdef hp_book_t *first
        cdef book_t *book
        cdef hp_book_status_t status
        cdef int i
        cdef int64_t now
        cdef uint8_t flags
        while done < limit:
            m = <const hp_market_t *>ring_peek(self.market)
            if m == NULL:
                self.failed |= self.market.broken != 0
                break
            if store_credit(&self.store) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            for i in range(self.output_count):
                if ring_credit(self.outputs[i], 1) == 0:
                    control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                    break
            else:
                i = -1
            if i >= 0 and self.output_count:
                break
            done += 1
            if m.instrument >= self.instruments:
                control_count(self.block, HP_METRIC_DROPS, 1)
                ring_release(self.market)
                continue
            book = self.tables[m.instrument]
            if not book_apply(book, m):
                control_count(self.block, HP_METRIC_DROPS, 1)
            if m.kind == HP_MARKET_GAP:
                control_count(self.block, HP_METRIC_GAPS, 1)
            if m.flags & HP_MARKET_FLAG_LAST:
                now = clock_now()
                first = NULL
                flags = 0
                for i in range(self.output_count):
                    out = <hp_book_t *>ring_claim(self.outputs[i])
                    if first == NULL:
                        first = out
                        book_view(book, out)
                        out.event, out.ts_recv, out.ts = m.event, m.ts_recv, now
                        out.ts_venue, out.instrument = m.ts_venue, m.instrument
                        out.pad0 = 0
                        out.pad1 = 0
                        if m.kind == HP_MARKET_TRADE or m.kind == HP_MARKET_EXECUTE:
                            out.flags |= HP_BOOK_FLAG_TRADE
                        else:
                            out.flags &= ~HP_BOOK_FLAG_TRADE
                        flags = out.flags & ~HP_BOOK_FLAG_TRADE
                    else:
                        hp_copy_words(<uint64_t *>out, <const uint64_t *>first, 1, 16)
                if first != NULL and flags != self.flags[m.instrument]:
                    memset(&status, 0, sizeof(status))
                    status.event, status.ts_venue = m.event, m.ts_venue
                    status.bid, status.ask = first.bid, first.ask
                    status.dropped = self.block.counters[HP_METRIC_DROPS]
                    status.instrument = m.instrument
                    status.before, status.after = self.flags[m.instrument], flags
                    self.flags[m.instrument] = flags
                    store_put(&self.store, HP_RECORD_BOOK_STATUS, &status, 1, 1, m.event, now,
                              m.ts_recv, m.instrument, 0)
                for i in range(self.output_count):
                    ring_publish(self.outputs[i])
                histogram_record(&self.block.histograms[HP_HISTOGRAM_BOOK],
                                 now - m.ts_recv - m.hop)
                control_count(self.block, HP_METRIC_RECORDS_OUT, self.output_count)
            ring_release(self.market)
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.market)


# ---------------------------------------------------------------- signal

cdef class SignalStage(Stage):
    """Features, then every strategy, then their intents.

    Parameters
    ----------
    books, order_events : Ring
        Consumer ends, BOOK and ORDER_EVENT (None: strategies hear of no orders).
    intents : Ring
        Producer end, INTENT.
    strategies : sequence of Strategy
    instruments : (n,) structured array, dtype of INSTRUMENT
    """

    def __init__(self, books, order_events, intents, strategies, instruments, store=None,
                 Control control=None, int index=2):
        cdef Strategy strategy
        cdef uint64_t i
        self._setup("signal", control, index, store, schema.STREAM.SIGNAL, schema.STORED)
        self.books = _end(self._keep, books, schema.BOOK, False)
        self.order_events = _end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.intents = _end(self._keep, intents, schema.INTENT, True)
        self.strategies = list(strategies)
        self.strategy_count = len(self.strategies)
        n = self.instruments = len(instruments)
        self.strategy_pointers = <void **>calloc(self.strategy_count or 1, sizeof(void *))
        self.specs = <hp_instrument_t *>hp_lines(n, sizeof(hp_instrument_t))
        self.features = <feature_t *>hp_lines(n, sizeof(feature_t))
        self.vectors = <hp_features_t *>hp_lines(n, sizeof(hp_features_t))
        self.newest = <hp_book_t *>hp_lines(n, sizeof(hp_book_t))
        self.holdings = <hp_holding_t *>hp_lines(n, sizeof(hp_holding_t))
        self.warm = <uint8_t *>calloc(n or 1, 1)
        self.scratch = <hp_intent_t *>hp_lines(INTENTS_MAX, sizeof(hp_intent_t))
        if (self.strategy_pointers == NULL or self.specs == NULL or self.features == NULL
                or self.vectors == NULL or self.newest == NULL or self.holdings == NULL
                or self.warm == NULL or self.scratch == NULL):
            raise MemoryError
        for k, strategy in enumerate(self.strategies):
            if strategy.version != STRATEGY_VERSION:
                raise SchemaError(f"strategy {type(strategy).__name__} was built for interface "
                                  f"version {strategy.version}, this is {STRATEGY_VERSION}")
            self.strategy_pointers[k] = <void *>strategy
        raw = numpy.ascontiguousarray(instruments).view("u1")
        cdef const unsigned char[::1] bytes_ = raw
        for i in range(self.instruments):
            # numpy aligns less than the struct asks for: not an assignment of one.
            memcpy(&self.specs[i], &bytes_[i * sizeof(hp_instrument_t)], sizeof(hp_instrument_t))
            feature_init(&self.features[i])
            self.newest[i].instrument = <uint16_t>i
            self.newest[i].flags = HP_BOOK_FLAG_STALE

    def __dealloc__(self):
        free(self.strategy_pointers)
        free(self.specs)
        free(self.features)
        free(self.vectors)
        free(self.newest)
        free(self.holdings)
        free(self.warm)
        free(self.scratch)

    def holding(self, instrument: int):
        """What the strategies know of one instrument's position, nanoqty."""
        if not 0 <= instrument < self.instruments:
            raise IndexError(f"instrument must be below {self.instruments}, was {instrument}")
        cdef const hp_holding_t *h = &self.holdings[instrument]
        return {"qty": h.qty, "open_buy": h.open_buy, "open_sell": h.open_sell, "cost": h.cost}

    cdef int _ask(self, int event, uint16_t instrument, const hp_order_event_t *order_event,
                  uint64_t cause, int64_t ts_recv, int64_t ts_in, uint32_t room) noexcept nogil:
        """Ask every strategy; publish what they want.  -1 when one gave up."""
        cdef hp_context_t context
        cdef hp_out_t out
        cdef hp_intent_t *intent
        cdef hp_intent_t *slot
        cdef hp_signal_t *said = NULL
        cdef int k
        cdef uint32_t i, total = 0
        cdef int64_t now
        cdef bint vector_stored = False
        context.version, context.event, context.instrument = STRATEGY_VERSION, event, instrument
        context.now = ts_recv
        context.book = &self.newest[instrument]
        context.features = &self.vectors[instrument] if self.warm[instrument] else NULL
        context.order_event = order_event
        context.holding = &self.holdings[instrument]
        context.spec = &self.specs[instrument]
        for k in range(self.strategy_count):
            context.strategy = k
            out.intents, out.count = self.scratch, 0
            out.room = room - total if room - total < INTENTS_MAX else INTENTS_MAX
            (<Strategy>self.strategy_pointers[k]).asked = False
            if (<Strategy>self.strategy_pointers[k]).on_event(&context, &out) < 0:
                self.failed = 1
                return -1
            if out.count > out.room:            # it wrote behind its memory, or would have us read
                self.failed = OVERRUN
                return -1
            if (<Strategy>self.strategy_pointers[k]).asked:
                said = &(<Strategy>self.strategy_pointers[k]).signal
                histogram_record(&self.block.histograms[HP_HISTOGRAM_MODEL], said.elapsed)
            if out.count == 0:
                continue
            now = clock_now()
            if context.features != NULL and not vector_stored:
                store_put(&self.store, HP_RECORD_FEATURES, context.features, 1, 0, cause, now,
                          ts_in, instrument, 0)
                vector_stored = True
            if (<Strategy>self.strategy_pointers[k]).asked:
                said.event, said.strategy, said.instrument = cause, k, instrument
                store_put(&self.store, HP_RECORD_SIGNAL, said, 1, 1, cause, now,
                          ts_in, instrument, 0)
            for i in range(out.count):
                intent = &self.scratch[i]
                intent.event, intent.cause = store_next(&self.store), cause
                intent.ts_recv, intent.strategy = ts_recv, k
                intent.hop = hp_saturate(now - ts_recv)
                intent.pad0 = 0
                store_put(&self.store, HP_RECORD_INTENT, intent, 1, 1, cause, now, ts_in,
                          intent.instrument, <uint64_t>ts_in)
                # An instrument that is not in the table is risk's to refuse, not ours to guess.
                if intent.action == HP_ACTION_NEW and intent.instrument < self.instruments:
                    if intent.side > 0:
                        self.holdings[intent.instrument].open_buy += intent.qty
                    else:
                        self.holdings[intent.instrument].open_sell += intent.qty
                slot = <hp_intent_t *>ring_claim(self.intents)
                hp_copy_words(<uint64_t *>slot, <const uint64_t *>intent, 1, 8)
                ring_publish(self.intents)
                memset(intent, 0, sizeof(hp_intent_t))
            if ts_in:
                histogram_record(&self.block.histograms[HP_HISTOGRAM_SIGNAL], now - ts_in)
            control_count(self.block, HP_METRIC_INTENTS, out.count)
            total += out.count
        return 0

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0, room
        cdef const hp_order_event_t *e
        cdef const hp_book_t *b
        cdef hp_holding_t *h
        cdef hp_take_t take
        cdef uint16_t i
        cdef int event
        while done < limit and self.order_events != NULL:
            e = <const hp_order_event_t *>ring_peek(self.order_events)
            if e == NULL:
                self.failed |= self.order_events.broken != 0
                break
            if store_credit(&self.store) == 0:                      # R2
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            room = ring_credit(self.intents, INTENTS_MAX)
            if room > INTENTS_MAX:
                room = INTENTS_MAX
            memset(&take, 0, sizeof(take))
            take.taken, take.after, take.room = e.event, self.taken, room
            store_put(&self.store, HP_RECORD_TAKE, &take, 1, 1, e.event, 0, 0, e.instrument, 0)
            if e.instrument < self.instruments:
                h = &self.holdings[e.instrument]
                _hold(h, e)
                if self._ask(STRATEGY_ORDER, e.instrument, e, e.cause,
                             self.newest[e.instrument].ts_recv, 0, <uint32_t>room) < 0:
                    break
            ring_release(self.order_events)
            done += 1
        while done < limit and not self.failed:
            b = <const hp_book_t *>ring_peek(self.books)
            if b == NULL:
                self.failed |= self.books.broken != 0
                break
            room = ring_credit(self.intents, INTENTS_MAX)
            if store_credit(&self.store) == 0 or room < INTENTS_MAX:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            i = b.instrument
            hp_copy_words(<uint64_t *>&self.newest[i], <const uint64_t *>b, 1, 16)
            self.warm[i] = feature_update(&self.features[i], b, &self.vectors[i])
            self.taken += 1
            event = STRATEGY_TRADE if b.flags & HP_BOOK_FLAG_TRADE else STRATEGY_BOOK
            if self._ask(event, i, NULL, b.event, b.ts_recv, b.ts, INTENTS_MAX) < 0:
                break
            ring_release(self.books)
            done += 1
            # An order event overtakes the next book: it is rarer and older news.
            if self.order_events != NULL and ring_peek(self.order_events) != NULL:
                break
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    def check(self):
        cdef Strategy strategy
        for strategy in self.strategies:
            if strategy.error is not None:
                self.failed = 1
                self.error = strategy.error
        if self.failed == OVERRUN and self.error is None:
            self.error = SchemaError("a strategy counted more intents than it had room for")
        Stage.check(self)

    cdef void idle(self) noexcept nogil:
        cdef hp_context_t context
        cdef hp_out_t out
        cdef int k
        ring_flush(self.books)
        if self.order_events != NULL:
            ring_flush(self.order_events)
        if self.instruments == 0:
            return
        memset(&context, 0, sizeof(context))
        context.version, context.event = STRATEGY_VERSION, STRATEGY_IDLE
        context.book, context.holding = &self.newest[0], &self.holdings[0]
        context.spec = &self.specs[0]
        out.intents, out.room, out.count = self.scratch, 0, 0
        for k in range(self.strategy_count):
            if (<Strategy>self.strategy_pointers[k]).on_event(&context, &out) < 0:
                self.failed = 1


cdef bint _terminal(uint8_t state) noexcept nogil:
    return state >= HP_ORDER_STATE_FILLED


cdef void _hold(hp_holding_t *h, const hp_order_event_t *e) noexcept nogil:
    """Move what a strategy knows of its position by one order event."""
    cdef int64_t left = 0
    cdef bint fill = e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL
    if fill:
        h.qty += e.qty * e.side
        # A fill behind the cancel: what was open has been taken back already.
        if e.kind == HP_ORDER_EVENT_FILL or not _terminal(e.state):
            left = e.qty
    elif e.kind in (HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_CANCELED,
                    HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_REPLACED):
        left = e.qty - e.cum_qty
    if e.side > 0:
        h.open_buy -= left if left < h.open_buy else h.open_buy
    else:
        h.open_sell -= left if left < h.open_sell else h.open_sell


# ---------------------------------------------------------------- risk

cdef class RiskStage(Stage):
    """Every check on every intent; the only place that can make an order sendable.

    Parameters
    ----------
    intents, marks, order_events, positions : Ring
        Consumer ends, INTENT, BOOK, ORDER_EVENT, POSITION.
    orders : Ring
        Producer end, ORDER.
    risk : Risk
    """

    def __init__(self, intents, marks, order_events, positions, orders, Risk risk not None,
                 store=None, Control control=None, int index=3):
        self._setup("risk", control, index, store, schema.STREAM.RISK, schema.STORED)
        self.intents = _end(self._keep, intents, schema.INTENT, False)
        self.marks = _end(self._keep, marks, schema.BOOK, False)
        self.order_events = _end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.positions = _end(self._keep, positions, schema.POSITION, False)
        self.orders = _end(self._keep, orders, schema.ORDER, True)
        self.risk = risk
        if control is not None:
            self.blocks = control.blocks

    @property
    def refusals(self):
        """Refused intents by reason."""
        counted = self.risk.counters()
        return {name.lower(): counted[name.lower()] for name, value, _ in schema.REASON.members
                if value}

    cdef bint _watch(self) noexcept nogil:
        """Acknowledge the halt epoch and record changes of the gate."""
        cdef uint64_t halt, armed
        cdef int i
        cdef hp_risk_event_t e
        cdef bint full = False
        cdef bint is_armed
        if self.header == NULL:
            return False
        armed = hp_load_acquire(&self.header.armed_epoch)
        halt = hp_load_acquire(&self.header.halt_epoch)
        is_armed = armed != 0 and armed == halt
        for i in range(CONTROL_STAGES):
            full |= hp_load_relaxed(&self.blocks[i].store_full) != 0
        if halt != self.block.ack_epoch:
            hp_store_release(&self.block.ack_epoch, halt)
            control_set(self.block, HP_METRIC_ACK_EPOCH, halt)
        if halt == self.halt_seen and is_armed == self.armed_seen and full == self.store_full_seen:
            return False
        if store_credit(&self.store) == 0:
            return False
        memset(&e, 0, sizeof(e))
        e.halt_epoch, e.armed_epoch = halt, armed
        if full != self.store_full_seen:
            e.kind = HP_RISK_EVENT_STORE_FULL if full else HP_RISK_EVENT_STORE_OK
            e.reason = HP_REASON_STORE_FULL if full else HP_REASON_NONE
            self.store_full_seen = full
        else:
            e.kind = HP_RISK_EVENT_RESUME_SEEN if is_armed else HP_RISK_EVENT_HALT_SEEN
            e.reason = HP_REASON_NONE if is_armed else HP_REASON_HALTED
            self.halt_seen, self.armed_seen = halt, is_armed
        e.event = store_next(&self.store)
        store_put(&self.store, HP_RECORD_RISK_EVENT, &e, 1, 1, 0, clock_now(), 0, 0, 0)
        return True

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0
        cdef const hp_order_event_t *e
        cdef const hp_position_t *p
        cdef const hp_book_t *b
        cdef const hp_intent_t *i
        cdef hp_order_t order
        cdef hp_verdict_t verdict
        cdef hp_order_t *slot
        cdef int64_t now
        cdef int reason
        self._watch()
        while True:                             # these need no credit: drain them first
            e = <const hp_order_event_t *>ring_peek(self.order_events)
            if e == NULL:
                break
            risk_order_event(&self.risk.r, e)
            ring_release(self.order_events)
            done += 1
        while True:
            p = <const hp_position_t *>ring_peek(self.positions)
            if p == NULL:
                break
            risk_position(&self.risk.r, p)
            ring_release(self.positions)
            done += 1
        while True:
            b = <const hp_book_t *>ring_peek(self.marks)
            if b == NULL:
                break
            risk_mark(&self.risk.r, b)
            ring_release(self.marks)
            done += 1
        self.failed |= (self.order_events.broken | self.positions.broken | self.marks.broken
                        | self.intents.broken) != 0
        while done < limit and not self.failed:
            i = <const hp_intent_t *>ring_peek(self.intents)
            if i == NULL:
                break
            if store_credit(&self.store) == 0 or ring_credit(self.orders, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            now = clock_now()
            memset(&verdict, 0, sizeof(verdict))
            memset(&order, 0, sizeof(order))
            reason = risk_check(&self.risk.r, i, now, &verdict, &order)
            now = clock_now()
            order.hop = hp_saturate(now - i.ts_recv)
            store_put(&self.store, HP_RECORD_VERDICT, &verdict, 1, 1, i.event, now,
                      i.ts_recv + i.hop, i.instrument, 0)
            slot = <hp_order_t *>ring_claim(self.orders)
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>&order, 1, 8)
            ring_publish(self.orders)
            histogram_record(&self.block.histograms[HP_HISTOGRAM_RISK],
                             now - i.ts_recv - i.hop)
            control_count(self.block, HP_METRIC_DENIED if reason else HP_METRIC_APPROVED, 1)
            ring_release(self.intents)
            done += 1
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.intents)
        ring_flush(self.marks)
        ring_flush(self.order_events)
        ring_flush(self.positions)


# ---------------------------------------------------------------- gateway

cdef class GatewayStage(Stage):
    """Sole owner of order state; tells signal, risk and ledger every step.

    Parameters
    ----------
    orders, updates : Ring
        Consumer ends, ORDER and UPDATE.
    outputs : sequence of Ring
        Producer ends, ORDER_EVENT.
    table : Orders
    wire : Wire
        The venue.
    max_age : int, ns
        An order older than this, counted from its tick, is dropped.
    """

    def __init__(self, orders, updates, outputs, Orders table not None, Wire wire not None,
                 store=None, Control control=None, int index=4, int64_t max_age=1_000_000_000):
        self._setup("gateway", control, index, store, schema.STREAM.GATEWAY, schema.STORED)
        self.orders = _end(self._keep, orders, schema.ORDER, False)
        self.updates = _end(self._keep, updates, schema.UPDATE, False)
        if len(outputs) > STAGE_OUTPUTS:
            raise ValueError(f"at most {STAGE_OUTPUTS} readers, were {len(outputs)}")
        self.output_count = len(outputs)
        for i, ring in enumerate(outputs):
            self.outputs[i] = _end(self._keep, ring, schema.ORDER_EVENT, True)
        self.table, self.wire, self.max_age = table, wire, max_age

    cdef uint64_t _credit(self) noexcept nogil:
        """Order events there is room for on every output."""
        cdef uint64_t least = store_credit(&self.store), room
        cdef int i
        for i in range(self.output_count):
            room = ring_credit(self.outputs[i], 4)
            if room < least:
                least = room
        return least

    cdef void _emit(self, hp_order_event_t *e, int64_t ts, int64_t ts_in) noexcept nogil:
        """Record one step and tell everybody."""
        cdef int i
        cdef hp_order_event_t *slot
        e.event = store_next(&self.store)
        store_put(&self.store, HP_RECORD_ORDER_EVENT, e, 1, 1, e.order, ts, ts_in,
                  e.instrument, 0)
        for i in range(self.output_count):
            slot = <hp_order_event_t *>ring_claim(self.outputs[i])
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>e, 1, 8)
            ring_publish(self.outputs[i])
        if e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL:
            control_count(self.block, HP_METRIC_FILLS, 1)
        elif e.kind == HP_ORDER_EVENT_REJECTED:
            control_count(self.block, HP_METRIC_ORDERS_REJECTED, 1)
        elif e.kind == HP_ORDER_EVENT_DROPPED:
            control_count(self.block, HP_METRIC_ORDERS_DROPPED, 1)
        elif e.kind == HP_ORDER_EVENT_SENT:
            control_count(self.block, HP_METRIC_ORDERS_SENT, 1)
        control_set(self.block, HP_METRIC_ORDERS_OPEN, self.table.o.live)
        control_set(self.block, HP_METRIC_ORDERS_UNKNOWN, self.table.o.unknown)

    cdef void _answer(self, const hp_update_t *u) noexcept nogil:
        """One word of the venue about an order; the caller has credit."""
        cdef hp_order_event_t e
        cdef order_t *order = order_find(&self.table.o, u.order)
        cdef int64_t now
        cdef uint8_t before
        cdef uint64_t over = self.table.o.overfills, orphans = self.table.o.orphan_fills
        before = order.state if order != NULL else <uint8_t>HP_ORDER_STATE_FREE
        memset(&e, 0, sizeof(e))
        if not order_apply(&self.table.o, u, &e):
            # Fills of orders that are not this run's (order 0) are the reconciliation's; one of
            # an order of ours that we do not know, or beyond its quantity, is a broken position.
            if order == NULL:
                control_count(self.block, HP_METRIC_DROPS, 1)
            if self.table.o.overfills > over or (
                    u.order and self.table.o.orphan_fills > orphans):
                self._halt()
            return
        now = clock_now()
        if before == HP_ORDER_STATE_SENT and order.ts_sent:
            histogram_record(&self.block.histograms[HP_HISTOGRAM_ORDER_TO_ACK],
                             now - order.ts_sent)
        if ((e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL)
                and e.cum_qty == e.qty and order.ts_sent):
            histogram_record(&self.block.histograms[HP_HISTOGRAM_ORDER_TO_FILL],
                             now - order.ts_sent)
        self._emit(&e, now, u.ts_recv)

    cdef void _refuse(self, const hp_order_t *o, uint8_t kind, uint8_t reason) noexcept nogil:
        """Tell everybody that *o* does not leave; it never was in the table."""
        cdef hp_order_event_t e
        memset(&e, 0, sizeof(e))
        e.order, e.cause, e.price, e.qty = o.order, o.cause, o.price, o.qty
        e.instrument, e.side, e.strategy, e.type = o.instrument, o.side, o.strategy, o.type
        e.kind, e.reason, e.state = kind, reason, HP_ORDER_STATE_DROPPED
        self._emit(&e, clock_now(), o.ts_recv + o.hop)

    cdef int _order(self, const hp_order_t *o) noexcept nogil:
        """Send or refuse one order; 0 = not now."""
        cdef order_t *order
        cdef hp_order_event_t e
        cdef int64_t now = clock_now(), after
        cdef int rc
        cdef uint8_t reason = HP_REASON_NONE
        cdef uint8_t kind
        cdef uint64_t halt
        if o.action == HP_ACTION_DENIED:
            self._refuse(o, HP_ORDER_EVENT_DENIED, o.reason)
            return 1
        if self.header != NULL:
            halt = hp_load_acquire(&self.header.halt_epoch)
            if o.action == HP_ACTION_NEW and not control_armed(self.header):
                reason = HP_REASON_HALTED
            elif o.token != token_of(
                    self.header.token_key, o.order, o.price, o.qty, o.instrument, o.side, o.type,
                    o.tif, o.action, halt, self.header.limits_version):
                # A halt and its resume between verdict and send change the epoch: refused too.
                reason = HP_REASON_TOKEN
        if now - o.ts_recv > self.max_age and o.action == HP_ACTION_NEW:
            reason = HP_REASON_EXPIRED if reason == HP_REASON_NONE else reason
        memset(&e, 0, sizeof(e))
        order = order_find(&self.table.o, o.order)
        if o.action == HP_ACTION_CANCEL:
            if order == NULL or _terminal(order.state):
                return 1
            if reason == HP_REASON_TOKEN:
                if order_step(&self.table.o, o.order, HP_ORDER_EVENT_CANCEL_REJECTED, reason, &e):
                    self._emit(&e, clock_now(), o.ts_recv + o.hop)
                return 1
            rc = self.wire.cancel(o.order, order.venue_id, order.venue_id_low, now)
            if rc == WIRE_BUSY and now - o.ts_recv <= self.max_age:
                return 0
            kind = (HP_ORDER_EVENT_CANCEL_SENT if rc == WIRE_SENT
                    else HP_ORDER_EVENT_CANCEL_REJECTED)
            if order_step(&self.table.o, o.order, kind, HP_REASON_NONE, &e):
                self._emit(&e, clock_now(), o.ts_recv + o.hop)
            return 1
        if order == NULL:
            if reason == HP_REASON_NONE:
                order = order_new(&self.table.o, o)
                if order == NULL:
                    reason = HP_REASON_TABLE_FULL
            if order == NULL:
                self._refuse(o, HP_ORDER_EVENT_DROPPED, reason)
                return 1
        elif order.state != HP_ORDER_STATE_CREATED:     # a second time: it has left already
            control_count(self.block, HP_METRIC_DROPS, 1)
            return 1
        if reason == HP_REASON_NONE:
            rc = self.wire.submit(o, now)
            if rc == WIRE_SENT:
                after = clock_now()
                now = self.wire.handed if self.wire.handed else after
                order.ts_sent = now
                if order_step(&self.table.o, o.order, HP_ORDER_EVENT_SENT, 0, &e):
                    self._emit(&e, now, o.ts_recv + o.hop)
                histogram_record(&self.block.histograms[HP_HISTOGRAM_GATEWAY],
                                 now - o.ts_recv - o.hop)
                histogram_record(&self.block.histograms[HP_HISTOGRAM_TICK_TO_ORDER],
                                 now - o.ts_recv)
                histogram_record(&self.block.histograms[HP_HISTOGRAM_SEND], after - now)
                return 1
            if rc == WIRE_BUSY:
                return 0
            reason = HP_REASON_DISCONNECTED
        elif reason == HP_REASON_EXPIRED:
            reason = HP_REASON_BUSY if order.state == HP_ORDER_STATE_CREATED else reason
        if order_step(&self.table.o, o.order, HP_ORDER_EVENT_DROPPED, reason, &e):
            self._emit(&e, clock_now(), o.ts_recv + o.hop)
        return 1

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0, halt
        cdef const hp_update_t *u
        cdef const hp_order_t *o
        cdef hp_update_t answer
        cdef int rc
        if self.header != NULL:
            halt = hp_load_acquire(&self.header.halt_epoch)
            if halt != self.block.ack_epoch:
                hp_store_release(&self.block.ack_epoch, halt)
                control_set(self.block, HP_METRIC_ACK_EPOCH, halt)
        while done < limit:                     # orders first: they are what is waited for
            o = <const hp_order_t *>ring_peek(self.orders)
            if o == NULL:
                self.failed |= self.orders.broken != 0
                break
            if self._credit() < 2:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            if not self._order(o):
                break
            ring_release(self.orders)
            done += 1
        while done < limit and self._credit() >= 2:
            rc = self.wire.poll(&answer, clock_now())
            if rc < 0:
                self.failed = 1
            if rc <= 0:
                break
            self._answer(&answer)
            done += 1
        while done < limit:
            u = <const hp_update_t *>ring_peek(self.updates)
            if u == NULL:
                self.failed |= self.updates.broken != 0
                break
            if self._credit() < 2:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            self._answer(u)
            ring_release(self.updates)
            done += 1
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.orders)
        ring_flush(self.updates)

    cdef bint pending(self) noexcept nogil:
        return self.table.o.live > self.table.o.unknown

    cdef object maintain(self):
        maintain = getattr(self.wire, "maintain", None)
        if maintain is not None:
            maintain()
        if self.failed and self.wire.error is not None:
            self.error = self.wire.error


# ---------------------------------------------------------------- updates

cdef class UpdatesStage(Stage):
    """Puts what the venue says about orders on the gateway's and the store link."""

    def __init__(self, gateway, store=None, Control control=None, int index=5):
        self._setup("updates", control, index, store, schema.STREAM.UPDATES, schema.STORED_WIDE)
        self.gateway = _end(self._keep, gateway, schema.UPDATE, True)

    def put_many(self, updates) -> int:
        """Publish updates; how many were taken (fewer when a link is full).

        Parameters
        ----------
        updates : (n,) structured array, dtype of UPDATE, contiguous
        """
        if not len(updates):
            return 0
        cdef const unsigned char[::1] raw = updates.view("u1")
        cdef uint64_t count = raw.shape[0] // sizeof(hp_update_t), i
        cdef const hp_update_t *u = <const hp_update_t *>&raw[0]
        cdef hp_update_t *slot
        cdef int64_t now
        for i in range(count):
            if store_credit(&self.store) == 0 or ring_credit(self.gateway, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                return i
            now = clock_now()
            slot = <hp_update_t *>ring_claim(self.gateway)
            hp_copy_words(<uint64_t *>slot, <const uint64_t *>&u[i], 2, 16)
            slot.event = store_next(&self.store)
            store_put(&self.store, HP_RECORD_UPDATE, slot, 2, 1, slot.order, now, slot.ts_recv,
                      slot.instrument, 0)
            ring_publish(self.gateway)
            control_count(self.block, HP_METRIC_RECORDS_OUT, 1)
            control_set(self.block, HP_METRIC_LAST_DATA, <uint64_t>now)
        return count


# ---------------------------------------------------------------- ledger

cdef class LedgerStage(Stage):
    """Positions and P&L for people and for risk; marked at every state of a book.

    Parameters
    ----------
    order_events, marks : Ring
        Consumer ends, ORDER_EVENT and BOOK.
    risk : Ring
        Producer end, POSITION.
    ledger : Ledger
    instruments : int
    interval : int, ns
        A moving position is stored at most this often between fills.
    """

    def __init__(self, order_events, marks, risk, Ledger ledger not None, int instruments,
                 store=None, Control control=None, int index=6, int64_t interval=1_000_000_000):
        self._setup("ledger", control, index, store, schema.STREAM.LEDGER, schema.STORED)
        self.order_events = _end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.marks = _end(self._keep, marks, schema.BOOK, False)
        self.risk = _end(self._keep, risk, schema.POSITION, True)
        self.ledger, self.instruments, self.interval = ledger, instruments, interval
        self.stored_at = <int64_t *>calloc(instruments or 1, sizeof(int64_t))
        if self.stored_at == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.stored_at)

    @property
    def totals(self):
        """Realised, day P&L and gross value over all instruments, nanocash."""
        return {"realised": ledger_realised(&self.ledger.l),
                "day_pnl": ledger_day_pnl(&self.ledger.l), "gross": ledger_gross(&self.ledger.l)}

    def position(self, int instrument):
        """Position and P&L of one instrument: the fields of POSITION."""
        cdef hp_position_t p
        if not 0 <= instrument < <int>self.instruments:
            raise IndexError(f"instrument must be below {self.instruments}, was {instrument}")
        memset(&p, 0, sizeof(p))
        ledger_view(&self.ledger.l, <uint16_t>instrument, &p)
        return {"qty": p.qty, "average": p.average, "realised": p.realised,
                "unrealised": p.unrealised}

    cdef void _publish(self, uint16_t instrument, uint64_t cause, int64_t ts_in,
                       bint keep) noexcept nogil:
        cdef hp_position_t p
        cdef hp_position_t *slot
        memset(&p, 0, sizeof(p))
        ledger_view(&self.ledger.l, instrument, &p)
        p.instrument = instrument
        if keep:
            p.event = store_next(&self.store)
            store_put(&self.store, HP_RECORD_POSITION, &p, 1, 1, cause, clock_now(), ts_in,
                      instrument, 0)
        slot = <hp_position_t *>ring_claim(self.risk)
        hp_copy_words(<uint64_t *>slot, <const uint64_t *>&p, 1, 8)
        ring_publish(self.risk)
        control_set(self.block, HP_METRIC_DAY_PNL, <uint64_t>p.day_pnl)
        control_set(self.block, HP_METRIC_REALISED_PNL,
                    <uint64_t>ledger_realised(&self.ledger.l))
        control_set(self.block, HP_METRIC_GROSS_NOTIONAL,
                    <uint64_t>ledger_gross(&self.ledger.l))

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0
        cdef const hp_order_event_t *e
        cdef const hp_book_t *b
        cdef int64_t price
        cdef bint keep
        while done < limit:
            e = <const hp_order_event_t *>ring_peek(self.order_events)
            if e == NULL:
                self.failed |= self.order_events.broken != 0
                break
            if store_credit(&self.store) == 0 or ring_credit(self.risk, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            if ((e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL)
                    and e.instrument < self.instruments):
                ledger_order_event(&self.ledger.l, e)
                if self.ledger.l.broken > self.broken:
                    self.broken = self.ledger.l.broken
                    self._halt()
                self._publish(e.instrument, e.event, 0, True)
            ring_release(self.order_events)
            done += 1
        while done < limit:
            b = <const hp_book_t *>ring_peek(self.marks)
            if b == NULL:
                self.failed |= self.marks.broken != 0
                break
            if store_credit(&self.store) == 0 or ring_credit(self.risk, 1) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            price = b.last_price
            if b.bid > 0 and b.ask > 0:
                price = b.bid + (b.ask - b.bid) // 2
            if price > 0 and ledger_mark(&self.ledger.l, b.instrument, price):
                keep = b.ts_recv - self.stored_at[b.instrument] >= self.interval
                if keep:
                    self.stored_at[b.instrument] = b.ts_recv
                self._publish(b.instrument, b.event, b.ts, keep)
            ring_release(self.marks)
            done += 1
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.order_events)
        ring_flush(self.marks)


# ---------------------------------------------------------------- the loop

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
                stage.block.state = STAGE_STOPPED
        finally:
            free(pointers)
