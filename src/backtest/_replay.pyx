"""The whole pipeline inline: recorded market data in, event time for the clock."""
from libc.stdint cimport int64_t, uint64_t

from .._clock cimport clock_virtual
from .._ring cimport Ring, ring_credit, ring_t
from .._schema cimport HP_MARKET_FLAG_LAST, hp_market_t
from .._stage cimport Stage
from .._stage_book cimport BookStage
from .._stage_feed cimport FeedStage
from .._stage_gateway cimport GatewayStage
from .._stage_ledger cimport LedgerStage
from .._stage_risk cimport RiskStage
from .._stage_signal cimport INTENTS_MAX, SignalStage
from ._sim cimport SimWire

from hftpipe.errors import DataError, HftpipeError

cdef enum:
    ROUNDS_MAX = 100_000        # passes over all stages at one instant of event time
cdef int64_t NEVER = 0x7fffffffffffffff


cdef inline bint _half_free(ring_t *store) noexcept nogil:
    return store == NULL or 2 * ring_credit(store, (store.mask + 1) // 2) > store.mask


cdef class Inline:
    """Drives stages in one thread until nothing is left to do after each message.

    Parameters
    ----------
    feed, book, signal, risk, gateway, ledger : stages, joined by rings of this process
    wire : SimWire
        The venue behind *gateway*.
    utc_offset : int, ns
        UTC minus the recording's monotonic clock.
    """
    cdef FeedStage feed
    cdef BookStage book
    cdef SignalStage signal
    cdef RiskStage risk
    cdef GatewayStage gateway
    cdef LedgerStage ledger
    cdef SimWire wire
    cdef int64_t utc_offset
    cdef bint endless
    cdef readonly int64_t now               # event time reached, ns monotonic

    def __init__(self, FeedStage feed not None, BookStage book not None,
                 SignalStage signal not None, RiskStage risk not None,
                 GatewayStage gateway not None, LedgerStage ledger not None,
                 SimWire wire not None, int64_t utc_offset=0):
        self.feed, self.book, self.signal, self.risk = feed, book, signal, risk
        self.gateway, self.ledger, self.wire = gateway, ledger, wire
        self.utc_offset = utc_offset

    cdef void _clock(self, int64_t now) noexcept nogil:
        if now > self.now:
            self.now = now
        clock_virtual.on = 1
        clock_virtual.monotonic = self.now
        clock_virtual.utc = self.now + self.utc_offset

    cdef bint _settle(self) noexcept nogil:
        """Run every stage until none has work; False when one failed."""
        cdef uint64_t done = 1, rounds = 0
        while done:
            rounds += 1
            if rounds > ROUNDS_MAX:
                self.endless = True
                return False
            done = self.book.work(64) + self.signal.work(64)
            done += self.risk.work(64) + self.gateway.work(64) + self.ledger.work(64)
            if (self.feed.failed | self.book.failed | self.signal.failed | self.risk.failed
                    | self.gateway.failed | self.ledger.failed):
                return False
        return True

    cdef bint _room(self) noexcept nogil:
        """Whether every store link is at most half full: then nothing stalls on the way."""
        return (_half_free(self.feed.store.ring) and _half_free(self.book.store.ring)
                and _half_free(self.signal.store.ring) and _half_free(self.risk.store.ring)
                and _half_free(self.gateway.store.ring) and _half_free(self.ledger.store.ring))

    cdef bint _until(self, int64_t now) noexcept nogil:
        """Let the venue do what is due before *now*; stops early where there is no room."""
        cdef int64_t due
        while True:
            due = self.wire.next_due()
            if due > now or not self._room():
                return True
            self._clock(due)
            self.wire.advance(due)
            if not self._settle():
                return False

    def run(self, records) -> int:
        """Drive *records*, a contiguous (n,) array of MARKET; how many were taken.

        Fewer than all are taken when a store link has to be drained first: drain it and
        call again with the rest.

        Raises
        ------
        Exception
            What stopped a stage.
        """
        if not len(records):
            return 0
        cdef const unsigned char[::1] raw = records.view("u1")
        cdef uint64_t n = raw.shape[0] // sizeof(hp_market_t), i = 0, first = 0
        cdef const hp_market_t *m = <const hp_market_t *>&raw[0]
        cdef bint good = True
        with nogil:
            while i < n:
                if not m[i].flags & HP_MARKET_FLAG_LAST and i + 1 < n and i - first < 2000:
                    i += 1
                    continue
                # [first, i] is one venue message
                good = self._until(m[first].ts_recv)
                if not good or not self._room() or self.feed.room() < i - first + 1:
                    break
                self._clock(m[first].ts_recv)
                self.feed.put(m + first, i - first + 1)
                good = self._settle()
                if not good:
                    break
                while first <= i:
                    self.wire.on_market(m + first)
                    first += 1
                good = self._settle()
                if not good:
                    break
                i += 1
        if not good:
            self.check()
        return first

    def finish(self) -> bool:
        """Let everything that is still on its way arrive.

        Returns
        -------
        bool
            False when a store link has to be drained first: drain it and call again.
        """
        cdef bint good = True
        with nogil:
            while good and self.wire.next_due() != NEVER and self._room():
                good = self._until(self.wire.next_due())
        if not good:
            self.check()
        return self.wire.next_due() == NEVER

    def check(self):
        """Raise what stopped a stage, if anything did."""
        cdef Stage stage
        if self.endless:
            raise HftpipeError("a strategy answers its own order events without end: nothing "
                               f"settled in {ROUNDS_MAX} rounds at one instant")
        for stage in (self.feed, self.book, self.signal, self.risk, self.gateway, self.ledger):
            stage.check()

    def close(self):
        """Give the process its clock back."""
        clock_virtual.on = 0


def replay_intents(FeedStage feed not None, BookStage book not None, SignalStage signal not None,
                   Ring order_events not None, Ring intents not None, markets, events, takes,
                   others=(), reloads=()):
    """Drive recorded inputs through book and signal in the order they were taken.

    Parameters
    ----------
    feed, book, signal : stages
    order_events : Ring
        Producer end of the link the signal stage hears order events on.
    intents : Ring
        Consumer end of the signal stage's output.
    markets : (n,) MARKET array
    events : (m,) ORDER_EVENT array
        In the order the signal stage took them.
    takes : (m,) TAKE array
        Where among the books it took them, and for how many intents there was room.
    others : sequence of Ring
        Consumer ends that the book fills too; emptied unread.
    reloads : sequence of (after, taken, strategy, member, prepared)
        Models that the run exchanged, in order: what it had taken by then, books and order events,
        and what :meth:`SignalStage.exchange` takes.

    Yields
    ------
    bytes
        Each intent, link_seq zero.

    Raises
    ------
    DataError
        If events and takes do not belong together, or a take is not one.
    """
    if len(events) != len(takes) or (events["event"] != takes["taken"]).any():
        raise DataError("order events and takes of the recording do not belong together")
    if len(takes) and takes["room"].max() > INTENTS_MAX:
        raise DataError(f"a take of the recording had room for {takes['room'].max()} intents, "
                        f"allowed are {INTENTS_MAX}")
    after, rooms = takes["after"].tolist(), takes["room"].tolist()
    rows = events.view("u1").reshape(len(events), -1)
    sent = 0
    flags = markets["flags"]
    total = len(markets)
    first = 0
    books = 0
    changes = list(reloads)
    _exchanged(signal, changes, 0, 0)
    while True:
        while sent < len(after) and after[sent] == books:
            yield from _taken(signal, order_events, intents, rows[sent], rooms[sent])
            sent += 1
            _exchanged(signal, changes, books, sent)
        if first >= total:
            if changes:
                raise DataError(f"the recording exchanged a model after {changes[0][0]} books, "
                                f"the replay made {books}")
            break
        last = first
        while not flags[last] & HP_MARKET_FLAG_LAST and last + 1 < total:
            last += 1
        if not feed.put_many(markets[first:last + 1]):
            raise DataError("a message is larger than the market link")
        # One record at a time: a message may make several states of books.
        for _ in range(last - first + 1):
            book.do_work(1)
            while signal.do_work(1):
                books += 1
                yield from _popped(intents)
                _exchanged(signal, changes, books, sent)
                while sent < len(after) and after[sent] == books:
                    yield from _taken(signal, order_events, intents, rows[sent], rooms[sent])
                    sent += 1
                    _exchanged(signal, changes, books, sent)
        first = last + 1
        for ring in others:
            ring.release(len(ring.peek(1 << 20)))
            ring.flush()


def _exchanged(SignalStage signal, changes, books, sent):
    """Exchange the models that the run exchanged here, the first of *changes*."""
    while changes and changes[0][0] == books and changes[0][1] == sent:
        signal.exchange(*changes.pop(0)[2:])


def _taken(SignalStage signal, Ring order_events, Ring intents, row, uint64_t room):
    """One order event, with the room there was for intents when the run took it."""
    if not order_events.push(row.tobytes()):
        raise HftpipeError("order event link is full")
    signal.room_max = room
    try:
        signal.do_work(1)
    finally:
        signal.room_max = INTENTS_MAX
    yield from _popped(intents)


def _popped(Ring intents):
    """What the signal stage has put there: then there is always room for a full answer."""
    while True:
        data = intents.pop()
        if data is None:
            break
        yield bytes(8) + data[8:]
    intents.flush()
