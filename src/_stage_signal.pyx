"""The signal stage: features, strategies, intents."""
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._atomic cimport hp_store_relaxed
from ._clock cimport clock_now
from ._control cimport (
    CONTROL_STRATEGIES, Control, control_armed, control_count, histogram_record, strategy_block_t)
from ._fault cimport hp_fault
from ._feature cimport feature_init, feature_update
from ._memory cimport hp_lines
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._schema cimport (
    HP_ACTION_NEW, HP_BOOK_FLAG_STALE, HP_BOOK_FLAG_TRADE, HP_HISTOGRAM_MODEL, HP_HISTOGRAM_SIGNAL,
    HP_METRIC_CREDIT_STALLS, HP_METRIC_INTENTS, HP_METRIC_RECORDS_IN, HP_ORDER_EVENT_CANCELED,
    HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_FILL,
    HP_ORDER_EVENT_PARTIAL_FILL, HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_REPLACED,
    HP_ORDER_STATE_FILLED, HP_PER_COUNT, HP_PER_STRATEGY_ANSWERS, HP_PER_STRATEGY_FAILURES,
    HP_PER_STRATEGY_HALTS, HP_PER_STRATEGY_LATE, HP_PER_STRATEGY_ORDERS,
    HP_PER_STRATEGY_RELOADS, HP_RECORD_FEATURES, HP_RECORD_INTENT, HP_RECORD_RELOAD,
    HP_RECORD_SIGNAL, HP_RECORD_TAKE, HP_SIGNAL_FLAG_LATE,
    HP_SIGNAL_FLAG_SHADOW, hp_reload_t, hp_signal_t, hp_take_t)
from ._stage cimport hp_copy_words, hp_saturate, stage_end, store_credit, store_next, store_put
from ._strategy cimport (
    STRATEGY_BOOK, STRATEGY_HALT, STRATEGY_IDLE, STRATEGY_ORDER, STRATEGY_TRADE, STRATEGY_VERSION,
    Strategy, hp_context_t, hp_out_t, hp_signal_held_t)

import numpy

from hftpipe import schema
from hftpipe.errors import SchemaError

cdef extern from "_wide.h" nogil:
    int64_t hp_add_saturate(int64_t a, int64_t b) noexcept

cdef enum:
    OVERRUN = 2                 # Stage.failed: a strategy said it wrote more than it may


cdef void _hold(hp_holding_t *h, const hp_order_event_t *e) noexcept nogil:
    """Move what a strategy knows of its position by one order event."""
    cdef int64_t left = 0
    cdef bint fill = e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL
    if fill:
        h.qty += e.qty * e.side
        # A fill behind the cancel: what was open has been taken back already.
        if e.kind == HP_ORDER_EVENT_FILL or e.state < HP_ORDER_STATE_FILLED:
            left = e.qty
    elif e.kind in (HP_ORDER_EVENT_DENIED, HP_ORDER_EVENT_DROPPED, HP_ORDER_EVENT_CANCELED,
                    HP_ORDER_EVENT_REJECTED, HP_ORDER_EVENT_EXPIRED, HP_ORDER_EVENT_REPLACED):
        left = e.qty - e.cum_qty
    if e.side > 0:
        h.open_buy -= left if left < h.open_buy else h.open_buy
    else:
        h.open_sell -= left if left < h.open_sell else h.open_sell


cdef class SignalStage(Stage):
    """Features, then every strategy, then their intents.

    Parameters
    ----------
    books, order_events : Ring
        Consumer ends, BOOK and ORDER_EVENT (None: strategies hear of no orders).
    intents : Ring
        Producer end, INTENT.
    strategies : sequence of Strategy
        Those with `shadow` are asked last, and what they want is stored, not sent.  With the
        members of ensembles at most CONTROL_STRATEGIES.
    instruments : (n,) structured array, dtype of INSTRUMENT
    bar : str
        Window of the bars that features are made from, one of ``schema.BARS``; "" keeps none,
        and what is made from bars stays 0.
    """

    def __init__(self, books, order_events, intents, strategies, instruments, store=None,
                 Control control=None, int index=2, str bar="1min"):
        cdef Strategy strategy
        cdef uint64_t i
        cdef int64_t window = schema.BARS[bar] if bar else 0
        self._setup("signal", control, index, store, schema.STREAM.SIGNAL, schema.STORED_VECTOR)
        self.books = stage_end(self._keep, books, schema.BOOK, False)
        self.order_events = stage_end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.intents = stage_end(self._keep, intents, schema.INTENT, True)
        self.strategies, self.parts, self.page = list(strategies), [], control
        self.room_max = INTENTS_MAX
        self.strategy_count = len(self.strategies)
        n = self.instruments = len(instruments)
        self.strategy_pointers = <void **>calloc(self.strategy_count or 1, sizeof(void *))
        self.cores = <void **>calloc(self.strategy_count or 1, sizeof(void *))
        self.role = <uint8_t *>calloc(self.strategy_count or 1, 1)
        self.members = <int *>calloc(self.strategy_count or 1, sizeof(int))
        self.specs = <hp_instrument_t *>hp_lines(n, sizeof(hp_instrument_t))
        self.features = <feature_t *>hp_lines(n, sizeof(feature_t))
        if bar:
            self.studies = <study_t *>hp_lines(n, sizeof(study_t))
            if self.studies == NULL:
                raise MemoryError
        self.vectors = <hp_features_t *>hp_lines(n, sizeof(hp_features_t))
        self.newest = <hp_book_t *>hp_lines(n, sizeof(hp_book_t))
        self.holdings = <hp_holding_t *>hp_lines(n, sizeof(hp_holding_t))
        self.warm = <uint8_t *>calloc(n or 1, 1)
        self.scratch = <hp_intent_t *>hp_lines(INTENTS_MAX, sizeof(hp_intent_t))
        if (self.strategy_pointers == NULL or self.cores == NULL or self.role == NULL
                or self.members == NULL or self.specs == NULL or self.features == NULL
                or self.vectors == NULL or self.newest == NULL or self.holdings == NULL
                or self.warm == NULL or self.scratch == NULL):
            raise MemoryError
        for k, strategy in enumerate(self.strategies):
            if strategy.version != STRATEGY_VERSION:
                raise SchemaError(f"strategy {type(strategy).__name__} was built for interface "
                                  f"version {strategy.version}, this is {STRATEGY_VERSION}")
            self.strategy_pointers[k] = <void *>strategy
            self.cores[k] = strategy.core()
            self.role[k] = ROLE_SHADOW if strategy.shadow else ROLE_TRADES
            self.shadows |= strategy.shadow
            found = strategy.parts
            self.members[k] = len(found) - 1
            self.parts += [(part.name or f"strategy {k}{f' member {n}' if n else ''}", part)
                           for n, part in enumerate(found)]
        if len(self.parts) > CONTROL_STRATEGIES:
            raise SchemaError(f"wanted at most {CONTROL_STRATEGIES} strategies and members, found "
                              f"{len(self.parts)}")
        raw = numpy.ascontiguousarray(instruments).view("u1")
        cdef const unsigned char[::1] bytes_ = raw
        for i in range(self.instruments):
            # numpy aligns less than the struct asks for: not an assignment of one.
            memcpy(&self.specs[i], &bytes_[i * sizeof(hp_instrument_t)], sizeof(hp_instrument_t))
            feature_init(&self.features[i], &self.studies[i] if bar else NULL, window)
            self.newest[i].instrument = <uint16_t>i
            self.newest[i].flags = HP_BOOK_FLAG_STALE

    def __dealloc__(self):
        free(self.strategy_pointers)
        free(self.cores)
        free(self.role)
        free(self.members)
        free(self.specs)
        free(self.features)
        free(self.studies)
        free(self.vectors)
        free(self.newest)
        free(self.holdings)
        free(self.warm)
        free(self.scratch)

    def restore(self, holdings):
        """Go on with positions of an earlier run, before the first event.

        Parameters
        ----------
        holdings : mapping of int to mapping
            By instrument; what ``Strategy.restore`` wants.
        """
        cdef hp_holding_t *h
        for instrument, held in holdings.items():
            if not 0 <= instrument < <int>self.instruments:
                raise IndexError(f"instrument must be below {self.instruments}, "
                                 f"was {instrument}")
            h = &self.holdings[<int>instrument]
            h.qty = held["qty"]
            for strategy in self.strategies:
                strategy.restore(instrument, held)

    def holding(self, instrument: int):
        """What the strategies know of one instrument's position, nanoqty."""
        if not 0 <= instrument < self.instruments:
            raise IndexError(f"instrument must be below {self.instruments}, was {instrument}")
        cdef const hp_holding_t *h = &self.holdings[instrument]
        return {"qty": h.qty, "open_buy": h.open_buy, "open_sell": h.open_sell, "cost": h.cost}

    cdef int _call(self, int k, hp_context_t *context, hp_out_t *out,
                   uint32_t room) noexcept nogil:
        """Ask strategy *k* and count what it says; what its on_event returned."""
        cdef void *strategy = self.strategy_pointers[k]
        cdef uint64_t *figures = (<Strategy>self.cores[k]).figures
        cdef int code, n
        context.strategy = k
        out.intents, out.room, out.count = self.scratch, room, 0
        (<Strategy>strategy).asked = False
        code = (<Strategy>strategy).on_event(context, out)
        if code < 0:
            figures[HP_PER_STRATEGY_FAILURES] += 1
            return code
        if code == STRATEGY_HALT:
            figures[HP_PER_STRATEGY_HALTS] += 1
        figures[HP_PER_STRATEGY_ORDERS] += out.count
        if (<Strategy>strategy).asked:
            self._count(&(<Strategy>strategy).signal, figures, self.members[k] == 0)
            for n in range(self.members[k]):
                self._member((<Strategy>strategy).member(n))
        return code

    cdef void _member(self, void *part) noexcept nogil:
        if (<Strategy>part).asked:
            self._count(&(<Strategy>part).signal, (<Strategy>part).figures, True)

    cdef void _count(self, const hp_signal_held_t *said, uint64_t *figures,
                     bint measured) noexcept nogil:
        figures[HP_PER_STRATEGY_ANSWERS] += 1
        if said.flags & HP_SIGNAL_FLAG_LATE:
            figures[HP_PER_STRATEGY_LATE] += 1
        if measured and said.model:             # else there was no inference, or its members had it
            histogram_record(&self.block.histograms[HP_HISTOGRAM_MODEL], said.elapsed)

    cdef bint _any_late(self, int k) noexcept nogil:
        """Whether an answer of strategy *k*, or of a member, is late."""
        cdef void *strategy = self.strategy_pointers[k]
        cdef void *part
        cdef int n
        if not (<Strategy>strategy).asked:
            return False
        for n in range(-1, self.members[k]):
            part = strategy if n < 0 else (<Strategy>strategy).member(n)
            if (<Strategy>part).asked and (<Strategy>part).signal.flags & HP_SIGNAL_FLAG_LATE:
                return True
        return False

    cdef void _signals(self, int k, int flags, int64_t wanted, uint64_t cause, int64_t now,
                       int64_t ts_in, uint16_t instrument) noexcept nogil:
        """Store the answer of strategy *k*, and those of its members."""
        cdef void *strategy = self.strategy_pointers[k]
        cdef void *part
        cdef hp_signal_t *said
        cdef int n
        for n in range(-1, self.members[k]):
            part = strategy if n < 0 else (<Strategy>strategy).member(n)
            if not (<Strategy>part).asked:
                continue
            said = <hp_signal_t *>&(<Strategy>part).signal
            said.event, said.strategy, said.instrument = cause, k, instrument
            said.member, said.pad0 = n + 1, 0
            said.flags = (said.flags & ~HP_SIGNAL_FLAG_SHADOW) | flags
            said.wanted = wanted if n < 0 else 0
            store_put(&self.store, HP_RECORD_SIGNAL, said, 1, 1, cause, now, ts_in, instrument, 0)

    cdef void _shadow(self, int k, hp_context_t *context, uint64_t cause,
                      int64_t ts_in) noexcept nogil:
        """Ask shadow *k*: what it wants goes into its SIGNAL, and nowhere else."""
        cdef hp_out_t out
        cdef void *strategy = self.strategy_pointers[k]
        cdef int64_t wanted = 0
        cdef uint32_t i
        if self._call(k, context, &out, INTENTS_MAX) < 0:
            self.role[k] = ROLE_ASLEEP
            return
        if out.count > out.room:                # it wrote where it must not: nobody is safe
            self.failed = OVERRUN
            return
        for i in range(out.count):
            if self.scratch[i].action == HP_ACTION_NEW:
                wanted = hp_add_saturate(
                    wanted, self.scratch[i].qty if self.scratch[i].side > 0
                    else -self.scratch[i].qty)
            memset(&self.scratch[i], 0, sizeof(hp_intent_t))
        if wanted and not (<Strategy>strategy).asked:   # without a model, its wish is all there is
            memset(&(<Strategy>strategy).signal, 0, sizeof(hp_signal_t))
            (<Strategy>strategy).asked = True
        if (<Strategy>strategy).asked:
            self._signals(k, HP_SIGNAL_FLAG_SHADOW, wanted, cause, clock_now(), ts_in,
                          context.instrument)

    cdef int _ask(self, int event, uint16_t instrument, const hp_order_event_t *order_event,
                  uint64_t cause, int64_t ts_recv, int64_t ts_in, uint32_t room) noexcept nogil:
        """Ask every strategy; publish what they want.  -1 when one gave up."""
        cdef hp_context_t context
        cdef hp_out_t out
        cdef hp_intent_t *intent
        cdef hp_intent_t *slot
        cdef const hp_book_t *quote
        cdef void *strategy
        cdef int k, code
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
            if self.role[k] != ROLE_TRADES:
                continue
            strategy = self.strategy_pointers[k]
            code = self._call(k, &context, &out,
                              room - total if room - total < INTENTS_MAX else INTENTS_MAX)
            if code < 0:
                self.failed = 1
                return -1
            if out.count > out.room:            # it wrote behind its memory, or would have us read
                self.failed = OVERRUN
                return -1
            if code == STRATEGY_HALT and self.header != NULL and control_armed(self.header):
                self._halt()
            # A late answer is stored whatever came of it: a replay must know.
            if out.count == 0 and not self._any_late(k):
                continue
            now = clock_now()
            if out.count and context.features != NULL and not vector_stored:
                store_put(&self.store, HP_RECORD_FEATURES, context.features, 4, 0, cause, now,
                          ts_in, instrument, 0)
                vector_stored = True
            if (<Strategy>strategy).asked:
                self._signals(k, 0, 0, cause, now, ts_in, instrument)
            if out.count == 0:
                continue
            for i in range(out.count):
                intent = &self.scratch[i]
                intent.event, intent.cause = store_next(&self.store), cause
                intent.ts_recv, intent.strategy = ts_recv, k
                # A strategy does not say what it saw: that is what the stage showed it.
                intent.quoted = intent.bid = intent.ask = intent.bid_qty = intent.ask_qty = 0
                if intent.instrument < self.instruments:
                    quote = &self.newest[intent.instrument]
                    intent.quoted, intent.bid, intent.ask = quote.ts_recv, quote.bid, quote.ask
                    intent.bid_qty, intent.ask_qty = quote.bid_qty, quote.ask_qty
                intent.hop = hp_saturate(now - ts_recv)
                store_put(&self.store, HP_RECORD_INTENT, intent, 2, 1, cause, now, ts_in,
                          intent.instrument, <uint64_t>ts_in)
                # An instrument that is not in the table is risk's to refuse, not ours to guess.
                if intent.action == HP_ACTION_NEW and intent.instrument < self.instruments:
                    if intent.side > 0:
                        self.holdings[intent.instrument].open_buy += intent.qty
                    else:
                        self.holdings[intent.instrument].open_sell += intent.qty
                slot = <hp_intent_t *>ring_claim(self.intents)
                hp_copy_words(<uint64_t *>slot, <const uint64_t *>intent, 1, 16)
                hp_fault("signal.recorded")
                ring_publish(self.intents)
                hp_fault("signal.passed")
                memset(intent, 0, sizeof(hp_intent_t))
            if ts_in:
                histogram_record(&self.block.histograms[HP_HISTOGRAM_SIGNAL], now - ts_in)
            control_count(self.block, HP_METRIC_INTENTS, out.count)
            total += out.count
        if self.shadows:                        # when everything that matters is on its way
            for k in range(self.strategy_count):
                if self.role[k] == ROLE_SHADOW:
                    self._shadow(k, &context, cause, ts_in)
            if self.failed:
                return -1
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
            if room > self.room_max:
                room = self.room_max
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
            self.orders_taken += 1
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
        for k, strategy in enumerate(self.strategies):
            if strategy.error is not None and self.role[k] == ROLE_TRADES:
                self.failed = 1
                self.error = strategy.error
        if self.failed == OVERRUN and self.error is None:
            self.error = SchemaError("a strategy counted more intents than it had room for")
        Stage.check(self)

    cdef void idle(self) noexcept nogil:
        cdef hp_context_t context
        cdef hp_out_t out
        cdef uint64_t *figures
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
            if self.role[k] == ROLE_ASLEEP:
                continue
            if (<Strategy>self.strategy_pointers[k]).on_event(&context, &out) < 0:
                figures = (<Strategy>self.cores[k]).figures
                figures[HP_PER_STRATEGY_FAILURES] += 1
                if self.role[k] == ROLE_SHADOW:
                    self.role[k] = ROLE_ASLEEP
                else:
                    self.failed = 1

    cdef object maintain(self):
        """Bring the strategies' figures on the page up to date."""
        cdef Strategy part
        cdef strategy_block_t *b
        cdef int i, k
        for i in range(len(self.parts)):
            name, part = self.parts[i]
            part.maintain()
            if self.page is None:
                continue
            b = self.page.strategy(i)
            for k in range(HP_PER_COUNT):
                hp_store_relaxed(&b.figures[k], part.figures[k])
            if not self.named:                  # last: a block with a name has its figures
                encoded = name.encode()[:sizeof(b.name) - 1]
                memcpy(b.name, <char *><bytes>encoded, len(encoded))
        self.named = True

    def exchange(self, int strategy, int member, prepared):
        """Give a strategy another model, from the next event on.

        Only between two calls of ``work``, in their thread: nothing is lost, nothing waits.

        Parameters
        ----------
        strategy, member : int
            Which of ``strategies``, and which of its parts: 0 is itself.
        prepared
            What its ``prepare`` returned.

        Returns
        -------
        event : int
            Identity of the RELOAD record; 0 when there was no room for it and nothing was done.
        """
        cdef hp_reload_t record
        cdef Strategy part = self.strategies[strategy].parts[member]
        if store_credit(&self.store) == 0:
            return 0
        memset(&record, 0, sizeof(record))
        record.event, record.before = store_next(&self.store), part.model.id
        record.after, record.taken = self.taken, self.orders_taken
        record.strategy, record.member = <uint8_t>strategy, <uint8_t>member
        part.exchange(prepared)
        record.model = part.model.id
        part.figures[HP_PER_STRATEGY_RELOADS] += 1
        return store_put(&self.store, HP_RECORD_RELOAD, &record, 1, 1, 0, clock_now(), 0, 0, 0)

    def notices(self):
        """What there is for the log: ``[(strategy, level, text)]``; each is told once."""
        cdef Strategy part, strategy
        out = []
        for name, part in self.parts:
            out += [(name, level, text) for level, text in part.notices]
            part.notices.clear()
        for k, strategy in enumerate(self.strategies):
            if self.role[k] == ROLE_ASLEEP and strategy.error is not None:
                out.append((strategy.name, "error", f"shadow gave up: {strategy.error}"))
                strategy.error = None
        return out

    @property
    def figures(self):
        """Figures of each strategy and member by name; see ``schema.STRATEGY_METRICS``."""
        return {name: part.counts for name, part in self.parts}
