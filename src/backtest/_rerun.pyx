"""A run once more: recorded inputs, in the recorded order, through the same stages.

Every link is cut in two.  What a stage puts on its end goes into a queue, and from there to the
reader when the record of the run says that the reader took it (`_stage.pxd`, R5).  So no stage
waits for another's pace, and the order in which they run here does not matter: a stage goes on as
soon as its next turn has what it took.  What each one stores is compared with what it stored then.

Models cost most of the time, so the signal stage has a thread of its own.  In a round both threads
work on what was there when it began; what they have for each other is handed over when it ends.
"""
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from .._clock cimport clock_virtual
from .._control cimport Control
from .._order cimport order_find, order_new
from .._ring cimport (
    Ring, ring_claim, ring_flush, ring_peek, ring_publish, ring_release, ring_t)
from .._schema cimport (
    HP_METRIC_UNSETTLED, HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_PARTIAL_FILL, HP_REASON_HALTED,
    HP_REASON_STORE_FULL, HP_RECORD_RISK_EVENT, HP_RECORD_TURN, HP_RECORD_UPDATE, HP_RECORD_VERDICT,
    HP_RISK_EVENT_HALT_SEEN, HP_RISK_EVENT_RESUME_SEEN, HP_RISK_EVENT_STORE_FULL,
    HP_RISK_EVENT_STORE_OK, HP_TURN_ANSWER, HP_TURN_FILL, HP_TURN_FLAG_ARMED, HP_TURN_FLAG_INTENT,
    HP_TURN_FLAG_STORED, HP_TURN_FLAG_UNSETTLED, HP_TURN_FLAG_WAITED, HP_TURN_GATE, HP_TURN_MARKS,
    HP_TURN_ORDER, HP_TURN_UPDATE, hp_envelope_t, hp_order_event_t, hp_order_t, hp_risk_event_t,
    hp_update_t, hp_verdict_t)
from .._stage cimport Stage, turns_flush, turns_t
from .._stage_book cimport BookStage
from .._stage_gateway cimport GatewayStage
from .._stage_ledger cimport LedgerStage
from .._stage_risk cimport RiskStage
from .._stage_signal cimport INTENTS_MAX, SignalStage
from .._wire cimport Wire

from hftpipe.errors import DataError

cdef enum:
    WORDS = 40                  # of the widest slot
    AHEAD = 16384               # states of books that wait for the slowest reader
    ROUND = 8192                # of them that the signal stage takes in a round
    CHUNK = 1024                # records handed over at once
cdef int64_t NEVER = 0x7fffffffffffffff


cdef struct buffer_t:           # records in memory that grows
    char *memory
    uint64_t head, tail, capacity


cdef bint grown(buffer_t *b, uint64_t more, uint64_t size) noexcept nogil:
    """Make room for *more* records; False = no memory."""
    cdef char *memory
    cdef uint64_t capacity
    if b.tail + more <= b.capacity:
        return True
    if b.head and b.head >= b.capacity // 2:
        memmove(b.memory, b.memory + b.head * size, (b.tail - b.head) * size)
        b.tail -= b.head
        b.head = 0
        if b.tail + more <= b.capacity:
            return True
    capacity = 2 * b.capacity + more + CHUNK
    memory = <char *>realloc(b.memory, capacity * size)
    if memory == NULL:
        return False
    b.memory, b.capacity = memory, capacity
    return True


cdef class Queue:
    """One link, cut in two.

    Parameters
    ----------
    source : Ring or None
        Consumer end of what the writer's stage fills; None: all records are in *rows*.
    target : Ring
        Producer end of what the reader's stage empties.
    rows : (n, size) uint8 array, optional
        Records, C order.
    between : bool
        Writer and reader are in two threads: see :meth:`hand`.
    """
    cdef ring_t *source
    cdef ring_t *target
    cdef uint64_t size
    cdef buffer_t b             # for the reader; without source only head and tail
    cdef buffer_t fresh         # `between`: what the writer put there in this round
    cdef const unsigned char[:, ::1] rows
    cdef list keep
    cdef bint full              # no memory
    cdef bint between

    def __init__(self, Ring source, Ring target not None, rows=None, bint between=False):
        self.keep = [source, target]
        self.target = &target.c
        self.size = target.c.slot_size
        self.between = between
        if source is not None:
            self.source = &source.c
        if rows is not None and len(rows):
            if rows.shape[1] != <Py_ssize_t>self.size:
                raise ValueError(f"records must be {self.size} bytes, were {rows.shape[1]}")
            self.rows = rows
            self.b.tail = rows.shape[0]

    def __dealloc__(self):
        free(self.b.memory)
        free(self.fresh.memory)

    cdef uint64_t held(self) noexcept nogil:
        return self.b.tail - self.b.head

    cdef const char *at(self, uint64_t i) noexcept nogil:
        """The i-th record that waits."""
        if self.source == NULL:
            return <const char *>&self.rows[self.b.head + i, 0]
        return self.b.memory + (self.b.head + i) * self.size

    cdef void pull(self) noexcept nogil:
        """Take what the writer has put there."""
        cdef const void *slot
        cdef buffer_t *b = &self.fresh if self.between else &self.b
        if self.source == NULL:
            return
        while True:
            slot = ring_peek(self.source)
            if slot == NULL:
                break
            if not grown(b, 1, self.size):
                self.full = True
                return
            memcpy(b.memory + b.tail * self.size, slot, self.size)
            b.tail += 1
            ring_release(self.source)
        ring_flush(self.source)

    cdef void hand(self) noexcept nogil:
        """Between two rounds: let the reader have what the writer put there."""
        cdef uint64_t n = self.fresh.tail
        if n == 0:
            return
        if not grown(&self.b, n, self.size):
            self.full = True
            return
        memcpy(self.b.memory + self.b.tail * self.size, self.fresh.memory, n * self.size)
        self.b.tail += n
        self.fresh.tail = 0

    cdef void push(self, uint64_t count) noexcept nogil:
        """Give the reader the next *count*, which are there and have room."""
        cdef char *slot
        for _ in range(count):
            slot = <char *>ring_claim(self.target)
            memcpy(slot + 8, self.at(0) + 8, self.size - 8)
            ring_publish(self.target)
            self.b.head += 1

    cdef void skip(self, uint64_t count) noexcept nogil:
        self.b.head += count


cdef class Stored:
    """What one stage stored in the run, held against what it stores now.

    Parameters
    ----------
    rows : (n, size) uint8 array
        Slots of its store link as recorded, C order.
    ring : Ring
        Consumer end of the store link of now.
    masks : (256, WORDS) uint64 array
        By record: bits that must be the same.
    stage : Stage
    """
    cdef const unsigned char[:, ::1] rows
    cdef const uint64_t[:, ::1] masks
    cdef ring_t *ring
    cdef Stage stage
    cdef list keep
    cdef readonly uint64_t count, same      # recorded; found equal
    cdef readonly uint64_t beyond           # stored now behind the last recorded
    cdef readonly bint differs              # the one after `same` does
    cdef readonly bytes found               # as it is stored now
    cdef unsigned char other[WORDS * 8]

    def __init__(self, rows, Ring ring not None, masks, Stage stage not None):
        self.keep, self.ring, self.stage = [ring], &ring.c, stage
        self.masks = masks
        if len(rows):
            self.rows = rows
        self.count = len(rows)

    cdef const hp_envelope_t *next(self, uint64_t i) noexcept nogil:
        """The i-th recorded event from here on; NULL behind the last."""
        if self.same + i >= self.count:
            return NULL
        return <const hp_envelope_t *>&self.rows[self.same + i, 0]

    cdef bint compare(self) noexcept nogil:
        """Compare what is new; False at the first difference."""
        cdef const uint64_t *a
        cdef const uint64_t *b
        cdef const uint64_t *mask
        cdef uint64_t i, words
        while not self.differs:
            b = <const uint64_t *>ring_peek(self.ring)
            if b == NULL:
                break
            if self.same >= self.count:
                self.beyond += 1
                ring_release(self.ring)
                continue
            a = <const uint64_t *>&self.rows[self.same, 0]
            words = 8 + 8 * (<const hp_envelope_t *>a).lines
            mask = &self.masks[(<const hp_envelope_t *>a).record, 0]
            for i in range(1, min(words, self.ring.slot_size // 8)):
                if (a[i] ^ b[i]) & mask[i]:
                    self.differs = True
                    memcpy(self.other, b, self.ring.slot_size)
                    break
            else:
                self.same += 1
                ring_release(self.ring)
        ring_flush(self.ring)
        return not self.differs

    def shown(self):
        """The recorded slot and the one of now, at the first difference."""
        return (bytes(self.rows[self.same]),
                (<const char *>self.other)[:self.ring.slot_size] if self.differs else b"")


cdef class Turns:
    """The turns of one stage, in order: arrays of one length."""
    cdef const int64_t[::1] at
    cdef const uint32_t[::1] many
    cdef const uint8_t[:, ::1] took
    cdef const uint8_t[::1] kind
    cdef const uint8_t[::1] flags
    cdef const uint16_t[::1] rest
    cdef const uint8_t[::1] last            # whether it is the last one of its record
    cdef readonly uint64_t count, next

    def __init__(self, at, many, took, kind, flags, rest, last):
        self.count = len(at)
        if self.count:
            self.at, self.many, self.took = at, many, took
            self.kind, self.flags, self.rest, self.last = kind, flags, rest, last


cdef class Tape(Wire):
    """The wire of the run: says what that one said."""
    cdef int said
    cdef bint answers
    cdef hp_update_t answer

    def __init__(self):
        self.held = NEVER

    cdef int submit(self, const hp_order_t *order, int64_t now) noexcept nogil:
        return self.said

    cdef int cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now) noexcept nogil:
        return self.said

    cdef int poll(self, hp_update_t *out, int64_t now) noexcept nogil:
        if not self.answers:
            return 0
        self.answers = False
        out[0] = self.answer
        return 1


cdef class Rerun:
    """Drives the stages of a run once more.

    Parameters
    ----------
    stages : tuple of BookStage, SignalStage, RiskStage, GatewayStage, LedgerStage
    tape : Tape
        The gateway's wire.
    queues : mapping of str to Queue
        By link.
    stored : mapping of str to Stored
        By stage.
    turns : mapping of str to Turns
        Of risk, gateway and ledger.
    after, room : (n,) uint64 arrays
        Of the signal stage: states of books taken before each order event, and the room for
        intents then.
    reloads : sequence of (after, taken, strategy, member, prepared)
        As ``_replay.replay_intents`` wants them.
    gate, check, wire : Control
        Pages that the risk stage watches, that its checks read, and that the gateway reads.
    unsettled : int
        Block of *gate* whose HP_METRIC_UNSETTLED the risk stage reads.
    utc_offset : int, ns
    """
    cdef BookStage book
    cdef SignalStage signal
    cdef RiskStage risk
    cdef GatewayStage gateway
    cdef LedgerStage ledger
    cdef Tape tape
    cdef Queue market, books, marks_risk, marks_ledger, intents, orders, updates
    cdef Queue events_signal, events_risk, events_ledger, positions
    cdef Queue figures_analyst, figures_people
    cdef list all_queues
    cdef Stored s_book, s_signal, s_risk, s_gateway, s_ledger
    cdef Turns t_risk, t_gateway, t_ledger
    cdef const uint64_t[::1] after, room
    cdef uint64_t takes, take, taken        # order events recorded and taken; books taken
    cdef list reloads
    cdef uint64_t reload_after, reload_taken
    cdef Control gate, check, wire
    cdef int unsettled
    cdef int64_t utc_offset

    def __init__(self, stages, Tape tape not None, queues, stored, turns, after, room, reloads,
                 Control gate not None, Control check not None, Control wire not None,
                 int unsettled, int64_t utc_offset):
        self.book, self.signal, self.risk, self.gateway, self.ledger = stages
        self.tape = tape
        self.market, self.books = queues["feed.book"], queues["book.signal"]
        self.marks_risk, self.marks_ledger = queues["book.risk"], queues["book.ledger"]
        self.intents, self.orders = queues["signal.risk"], queues["risk.gateway"]
        self.updates, self.positions = queues["updates.gateway"], queues["ledger.risk"]
        self.events_signal, self.events_risk = queues["gateway.signal"], queues["gateway.risk"]
        self.events_ledger = queues["gateway.ledger"]
        self.figures_analyst = queues["analyst.risk"]
        self.figures_people = queues["supervisor.risk"]
        self.all_queues = list(queues.values())
        self.s_book, self.s_signal, self.s_risk = stored["book"], stored["signal"], stored["risk"]
        self.s_gateway, self.s_ledger = stored["gateway"], stored["ledger"]
        self.t_risk, self.t_gateway = turns["risk"], turns["gateway"]
        self.t_ledger = turns["ledger"]
        self.takes = len(after)
        if self.takes:
            self.after, self.room = after, room
        self.reloads = list(reloads)
        self._next_reload()
        self.gate, self.check, self.wire, self.unsettled = gate, check, wire, unsettled
        self.utc_offset = utc_offset

    def _next_reload(self):
        self.reload_after = self.reload_taken = <uint64_t>NEVER
        if self.reloads:
            self.reload_after, self.reload_taken = self.reloads[0][0], self.reloads[0][1]

    # ------------------------------------------------------------ one step of each

    cdef void _clock(self, int64_t now) noexcept nogil:
        clock_virtual.on = 1
        clock_virtual.monotonic = now
        clock_virtual.utc = now + self.utc_offset

    cdef void _compare(self, Stored stored, Turns t, turns_t *turns) noexcept nogil:
        """Compare what the turn before `t.next` stored, and itself.

        A record of turns that is not full was stored because nothing came: do so here.
        """
        cdef const hp_envelope_t *e
        stored.compare()
        if turns.count and t.last[t.next - 1]:
            e = stored.next(0)
            if e != NULL and e.record == HP_RECORD_TURN:
                turns_flush(turns, &stored.stage.store)
                stored.compare()

    cdef uint64_t _book(self) noexcept nogil:
        cdef uint64_t done = 0, n
        while self.market.held():
            if (self.books.held() + self.books.fresh.tail > AHEAD
                    and self.marks_risk.held() > AHEAD and self.marks_ledger.held() > AHEAD):
                break
            n = min(self.market.held(), <uint64_t>CHUNK)
            self.market.push(n)
            self.book.work(n)
            self.books.pull()
            self.marks_risk.pull()
            self.marks_ledger.pull()
            done += n
            if not self.s_book.compare() or self.book.failed:
                break
        return done

    cdef uint64_t _signal(self) noexcept nogil:
        cdef uint64_t done = 0, n
        cdef uint64_t until = self.taken + ROUND
        while not self.s_signal.differs and not self.signal.failed and self.taken < until:
            if self.reload_after == self.taken and self.reload_taken == self.take:
                break                           # run() does it
            if self.take < self.takes and self.after[self.take] == self.taken:
                if not self.events_signal.held():
                    break
                self.events_signal.push(1)
                self.signal.room_max = self.room[self.take]
                self.signal.work(1)
                self.signal.room_max = INTENTS_MAX
                self.take += 1
                n = 1
            else:
                n = min(self.books.held(), <uint64_t>64)
                if self.take < self.takes:
                    n = min(n, self.after[self.take] - self.taken)
                if self.reload_taken == self.take and self.reload_after > self.taken:
                    n = min(n, self.reload_after - self.taken)
                if n == 0:
                    break
                self.books.push(n)
                self.taken += n
                while n:                        # it stops where there is no room for intents
                    n -= self.signal.work(n)
                    self.intents.pull()
                    if not self.s_signal.compare() or self.signal.failed:
                        break
                n = 1
            self.intents.pull()
            self.s_signal.compare()
            done += n
        return done

    cdef void _seen(self, bint stored) noexcept nogil:
        """Set both pages to what the risk stage saw in its next turn, by what it stored then."""
        cdef const hp_envelope_t *e = self.s_risk.next(0) if stored else NULL
        cdef const hp_risk_event_t *event
        cdef const hp_verdict_t *v
        cdef uint64_t i = 0
        cdef int k
        if e != NULL and e.record == HP_RECORD_RISK_EVENT:
            event = <const hp_risk_event_t *>(<const char *>e + 64)
            if event.kind in (HP_RISK_EVENT_HALT_SEEN, HP_RISK_EVENT_RESUME_SEEN,
                              HP_RISK_EVENT_STORE_FULL, HP_RISK_EVENT_STORE_OK):
                self.gate.header.halt_epoch = event.halt_epoch
                self.gate.header.armed_epoch = event.armed_epoch
            if event.kind == HP_RISK_EVENT_STORE_FULL or event.kind == HP_RISK_EVENT_STORE_OK:
                self.gate.blocks[0].store_full = event.kind == HP_RISK_EVENT_STORE_FULL
        self.check.header.halt_epoch = self.gate.header.halt_epoch
        self.check.header.armed_epoch = self.gate.header.armed_epoch
        while e != NULL and e.record == HP_RECORD_RISK_EVENT:
            i += 1
            e = self.s_risk.next(i)
        if e == NULL or e.record != HP_RECORD_VERDICT:
            return
        v = <const hp_verdict_t *>(<const char *>e + 64)
        self.check.header.halt_epoch = v.halt_epoch
        if v.reason == HP_REASON_HALTED:
            self.check.header.halt_epoch = <uint64_t>v.value
            self.check.header.armed_epoch = <uint64_t>v.limit
        elif v.action == 1:
            self.check.header.armed_epoch = v.halt_epoch
        for k in range(<int>self.risk.risk.r.stages):
            self.check.blocks[k].store_full = v.reason == HP_REASON_STORE_FULL and v.value == k

    cdef uint64_t _risk(self, Turns t) noexcept nogil:
        cdef uint64_t done = 0, k, left
        cdef bint judged
        while t.next < t.count and not self.s_risk.differs and not self.risk.failed:
            k = t.next
            left = t.many[k]
            if (t.kind[k] != HP_TURN_GATE or self.events_risk.held() < t.took[k, 0]
                    or self.positions.held() < t.took[k, 1]
                    or self.figures_analyst.held() < t.took[k, 2]
                    or self.figures_people.held() < t.took[k, 3] or self.marks_risk.held() < left
                    or (t.flags[k] & HP_TURN_FLAG_INTENT and not self.intents.held())):
                break
            self._clock(t.at[k])
            self._seen(t.flags[k] & HP_TURN_FLAG_STORED)
            self.gate.blocks[self.unsettled].counters[HP_METRIC_UNSETTLED] = (
                t.flags[k] & HP_TURN_FLAG_UNSETTLED)
            self.events_risk.push(t.took[k, 0])
            self.positions.push(t.took[k, 1])
            self.figures_analyst.push(t.took[k, 2])
            self.figures_people.push(t.took[k, 3])
            if t.flags[k] & HP_TURN_FLAG_INTENT:
                self.intents.push(1)
            if not ((<const uint32_t *>&t.took[k, 0])[0] | t.rest[k]
                    | t.flags[k] & ~HP_TURN_FLAG_UNSETTLED):
                while left > CHUNK:             # marks alone, of many turns that became one
                    self.marks_risk.push(CHUNK)
                    self.risk.turn(0, &judged)
                    left -= CHUNK
            self.marks_risk.push(left)
            self.risk.turn(t.rest[k], &judged)
            t.next += 1
            done += 1
            self.orders.pull()
            self._compare(self.s_risk, t, &self.risk.turns)
        return done

    cdef uint64_t _gateway(self, Turns t) noexcept nogil:
        cdef uint64_t done = 0, k, version
        cdef const hp_order_t *o
        cdef const hp_envelope_t *e
        while t.next < t.count and not self.s_gateway.differs and not self.gateway.failed:
            k = t.next
            self._clock(t.at[k])
            if t.kind[k] == HP_TURN_ORDER:
                if not self.orders.held():
                    break
                version = (t.took[k, 0] | <uint64_t>t.took[k, 1] << 8
                           | <uint64_t>t.took[k, 2] << 16 | <uint64_t>t.took[k, 3] << 24)
                self.wire.header.halt_epoch = t.many[k]
                self.wire.header.armed_epoch = (t.many[k] if t.flags[k] & HP_TURN_FLAG_ARMED
                                                else 0)
                self.wire.header.limits_version = version
                self.tape.said = <int>t.rest[k] - 2
                o = <const hp_order_t *>self.orders.at(0)
                if t.flags[k] & HP_TURN_FLAG_WAITED and order_find(
                        &self.gateway.table.o, o.order) == NULL:
                    order_new(&self.gateway.table.o, o)
                self.orders.push(1)
            elif t.kind[k] == HP_TURN_ANSWER:
                e = self.s_gateway.next(0)
                if e == NULL or e.record != HP_RECORD_UPDATE:
                    break
                self.tape.answer = (<const hp_update_t *>(<const char *>e + 64))[0]
                self.tape.answers = True
            elif t.kind[k] == HP_TURN_UPDATE:
                if not self.updates.held():
                    break
                self.updates.push(1)
            else:
                break
            self.gateway.work(1)
            t.next += 1
            done += 1
            self.events_signal.pull()
            self.events_risk.pull()
            self.events_ledger.pull()
            self._compare(self.s_gateway, t, &self.gateway.turns)
        return done

    cdef uint64_t _ledger(self, Turns t) noexcept nogil:
        cdef uint64_t done = 0, k, left, n
        cdef const hp_order_event_t *e
        while t.next < t.count and not self.s_ledger.differs and not self.ledger.failed:
            k = t.next
            self._clock(t.at[k])
            if t.kind[k] == HP_TURN_FILL:
                while self.events_ledger.held():        # what is no execution changes nothing
                    e = <const hp_order_event_t *>self.events_ledger.at(0)
                    if ((e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL)
                            and e.instrument < self.ledger.instruments):
                        break
                    self.events_ledger.skip(1)
                if not self.events_ledger.held():
                    break
                self.events_ledger.push(1)
                self.ledger.work(1)
            elif t.kind[k] == HP_TURN_MARKS:
                left = t.many[k]
                if self.marks_ledger.held() < left:
                    break
                while left:
                    n = min(left, <uint64_t>CHUNK)
                    self.marks_ledger.push(n)
                    left -= n
                    while n:
                        n -= self.ledger.work(n)
                        self.positions.pull()
                        if not self.s_ledger.compare() or self.ledger.failed:
                            return done
            else:
                break
            t.next += 1
            done += 1
            self.positions.pull()
            self._compare(self.s_ledger, t, &self.ledger.turns)
        return done

    # ------------------------------------------------------------ all of them

    def think(self) -> int:
        """The signal stage's part of a round; what it did."""
        cdef uint64_t done
        with nogil:
            done = self._signal()
        return done

    def run(self, pool) -> bool:
        """One round; whether there may be more to do.

        Parameters
        ----------
        pool : concurrent.futures.Executor
            Where the signal stage runs meanwhile.

        Raises
        ------
        Exception
            What stopped a stage.
        DataError
            If there is no memory for what waits.
        """
        cdef uint64_t done = 0, more = 1
        cdef Stage stage
        cdef Queue queue
        thinks = pool.submit(self.think) if self.books.held() or self.events_signal.held() else None
        with nogil:
            while more:
                more = self._book()
                more += self._risk(self.t_risk)
                more += self._gateway(self.t_gateway)
                more += self._ledger(self.t_ledger)
                done += more
                if (self.s_book.differs or self.s_risk.differs or self.s_gateway.differs
                        or self.s_ledger.differs):
                    break
        if thinks is not None:
            done += thinks.result()
        for queue in self.all_queues:
            queue.hand()
            if queue.full:
                raise DataError("no memory for the records that wait")
        for stage in (self.book, self.signal, self.risk, self.gateway, self.ledger):
            stage.check()
        if self.differs():
            return False
        if self.reload_after == self.taken and self.reload_taken == self.take:
            self.signal.exchange(*self.reloads.pop(0)[2:])
            self.s_signal.compare()
            self._next_reload()
            return True
        return done != 0

    cdef bint differs(self) noexcept nogil:
        return (self.s_book.differs or self.s_signal.differs or self.s_risk.differs
                or self.s_gateway.differs or self.s_ledger.differs)

    def opened(self):
        """After the ledger's begin: what it told risk, and stored."""
        self.positions.pull()
        self.s_ledger.compare()

    def close(self):
        """Give the process its clock back."""
        clock_virtual.on = 0
