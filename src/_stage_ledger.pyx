"""The ledger stage: positions, P&L and marks."""
from libc.stdint cimport UINT32_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from ._board cimport Board, board_basis, board_mark, board_position
from ._clock cimport clock_now, clock_utc
from ._control cimport Control, control_count, control_set
from ._day cimport days_of
from ._fault cimport hp_fault
from ._ledger cimport (
    HP_NANO, hp_wide_even, hp_wide_floor, hp_wide_rest, ledger_day_pnl, ledger_drawdown,
    ledger_gross, ledger_mark, ledger_order_event, ledger_profit, ledger_realised, ledger_roll,
    ledger_t, ledger_view)
from ._memory cimport hp_lines
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._schema cimport (
    HP_ACCOUNT_BEGIN, HP_ACCOUNT_DAY, HP_METRIC_CREDIT_STALLS, HP_METRIC_DAY_PNL,
    HP_METRIC_DRAWDOWN, HP_METRIC_EQUITY, HP_METRIC_FEES, HP_METRIC_GROSS_NOTIONAL,
    HP_METRIC_REALISED_PNL, HP_METRIC_RECORDS_IN, HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_PARTIAL_FILL,
    HP_RECORD_ACCOUNT, HP_RECORD_OPENING, HP_RECORD_POSITION, HP_RECORD_RESOLVED, HP_TURN_FILL,
    HP_TURN_MARKS, hp_account_t, hp_book_t, hp_order_event_t, hp_position_t)
from ._stage cimport (
    hp_copy_words, stage_end, store_credit, store_next, store_put, turn_at, turn_new, turn_t,
    turns_end, turns_flush, turns_rest)

from hftpipe import schema


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
    days : Days, optional
        The trading days; UTC by default.
    board : Board, optional
        Where positions and marks are shown.
    """

    def __init__(self, order_events, marks, risk, Ledger ledger not None, int instruments,
                 store=None, Control control=None, int index=6, int64_t interval=1_000_000_000,
                 Days days=None, Board board=None):
        self._setup("ledger", control, index, store, schema.STREAM.LEDGER, schema.STORED_WIDE)
        self.order_events = stage_end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.marks = stage_end(self._keep, marks, schema.BOOK, False)
        self.risk = stage_end(self._keep, risk, schema.POSITION, True)
        self.ledger, self.instruments, self.interval = ledger, instruments, interval
        self.days = Days() if days is None else days
        if self.header != NULL:
            self.utc_offset, self.dated = <int64_t>self.header.utc_offset, True
        if board is not None:
            if board.instruments < instruments:
                raise ValueError(f"the board has {board.instruments} instruments, "
                                 f"expected {instruments}")
            self._keep.append(board)
            self.board = &board.b
        self.stored_at = <int64_t *>calloc(instruments or 1, sizeof(int64_t))
        self.opened = <hp_account_t *>hp_lines(1, sizeof(hp_account_t))
        if self.stored_at == NULL or self.opened == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.stored_at)
        free(self.opened)

    def begin(self, account, openings=None, resolved=None):
        """Publish what the run begins with; the ledger was given the same by ``restore``.

        Parameters
        ----------
        account : ACCOUNT record
            Account, the run these books are of, opening equity, what was earned elsewhere.
        openings : (n,) structured array, dtype of OPENING
        resolved : (m,) structured array, dtype of RESOLVED

        Returns
        -------
        iterator
            Yields whenever a link has no room; the caller tries again.
        """
        for record, rows in ((HP_RECORD_RESOLVED, resolved), (HP_RECORD_OPENING, openings)):
            for row in () if rows is None else rows:
                while store_credit(&self.store) == 0:
                    yield
                self._begins(record, row["instrument"], row.tobytes())
        while store_credit(&self.store) == 0:
            yield
        hp_fault("ledger.opening")
        raw = account.tobytes()
        memcpy(self.opened, <const char *>raw, sizeof(hp_account_t))
        self._account(HP_ACCOUNT_BEGIN)
        self.begun = True
        hp_fault("ledger.opened")
        for row in () if openings is None else openings:
            while store_credit(&self.store) == 0 or ring_credit(self.risk, 2) < 2:
                yield
            self._publish(row["instrument"], 0, 0, True, 0)

    cdef int _begins(self, uint16_t record, uint16_t instrument, bytes raw) except -1:
        """Store one record of two lines; its identity is given here."""
        cdef uint64_t body[16]
        memcpy(body, <const char *>raw, sizeof(body))
        body[1] = store_next(&self.store)
        store_put(&self.store, record, body, 2, 1, 0, clock_now(), 0, instrument, 0)

    @property
    def totals(self):
        """Over all instruments, nanocash; *pnl* is the run's, after fees."""
        total = self.ledger.totals()
        return {"realised": ledger_realised(&self.ledger.l), "fees": self.ledger.l.paid,
                "pnl": ledger_profit(&self.ledger.l), "day_pnl": ledger_day_pnl(&self.ledger.l),
                "gross": ledger_gross(&self.ledger.l),
                "drawdown": ledger_drawdown(&self.ledger.l),
                "deepest": total["deepest"] // 10**9}

    def position(self, int instrument):
        """Position and P&L of one instrument: the fields of POSITION."""
        cdef hp_position_t p
        if not 0 <= instrument < <int>self.instruments:
            raise IndexError(f"instrument must be below {self.instruments}, was {instrument}")
        ledger_view(&self.ledger.l, <uint16_t>instrument, &p)
        return {"qty": p.qty, "average": p.average, "realised": p.realised,
                "unrealised": p.unrealised, "fees": p.fees}

    cdef void _day(self, int64_t now, uint16_t instrument) noexcept nogil:
        """Begin a new day when *now* (monotonic) is in one; how the old one closed is published."""
        cdef uint32_t day
        if not self.dated:                      # no control page: a backtest, or a bench
            self.utc_offset, self.dated = clock_utc() - clock_now(), True
        day = days_of(&self.days.d, now + self.utc_offset)
        if day <= self.ledger.l.day:            # an event from just before midnight may come late
            return
        if self.ledger.l.day:
            self._publish(instrument, 0, 0, True, 0)
        ledger_roll(&self.ledger.l, day)
        if self.begun:
            self._account(HP_ACCOUNT_DAY)

    cdef void _account(self, uint8_t kind) noexcept nogil:
        """Publish where the account stands at the begin of the run or of a day."""
        cdef hp_account_t *a = self.opened
        cdef const ledger_t *books = &self.ledger.l
        a.kind, a.day = kind, books.day
        a.peak = hp_wide_even(books.peak, HP_NANO)
        a.profit_then = hp_wide_floor(books.profit_then, HP_NANO)
        a.profit_rest = hp_wide_rest(books.profit_then)
        a.realised_then = hp_wide_floor(books.realised_then, HP_NANO)
        a.realised_rest = hp_wide_rest(books.realised_then)
        a.fees_then = books.paid_then
        a.event = store_next(&self.store)
        store_put(&self.store, HP_RECORD_ACCOUNT, a, 2, 1, 0, clock_now(), 0, 0, 0)

    cdef void _publish(self, uint16_t instrument, uint64_t cause, int64_t ts_in, bint keep,
                       int64_t fee) noexcept nogil:
        cdef hp_position_t p
        cdef hp_position_t *slot
        ledger_view(&self.ledger.l, instrument, &p)
        p.fee = fee
        if self.board != NULL:
            board_position(self.board, instrument, p.qty, p.average, p.realised, p.unrealised)
        if keep:
            p.event = store_next(&self.store)
            store_put(&self.store, HP_RECORD_POSITION, &p, 2, 1, cause, clock_now(), ts_in,
                      instrument, 0)
        slot = <hp_position_t *>ring_claim(self.risk)
        hp_copy_words(<uint64_t *>slot, <const uint64_t *>&p, 1, 16)
        ring_publish(self.risk)
        control_set(self.block, HP_METRIC_DAY_PNL, <uint64_t>p.day_pnl)
        control_set(self.block, HP_METRIC_EQUITY, <uint64_t>p.equity)
        control_set(self.block, HP_METRIC_DRAWDOWN, <uint64_t>ledger_drawdown(&self.ledger.l))
        control_set(self.block, HP_METRIC_FEES, <uint64_t>self.ledger.l.paid)
        control_set(self.block, HP_METRIC_REALISED_PNL,
                    <uint64_t>ledger_realised(&self.ledger.l))
        control_set(self.block, HP_METRIC_GROSS_NOTIONAL,
                    <uint64_t>ledger_gross(&self.ledger.l))

    cdef void _marked(self, uint64_t seq, int64_t ts) noexcept nogil:
        """Note that a mark of *ts* was taken (R5); *seq* is what was stored before."""
        cdef bint stored = self.store.seq != seq
        cdef turn_t *turn = turn_at(&self.turns, max(self.turns.count, 1) - 1)
        if self.turns.count == 0 or turn.kind != HP_TURN_MARKS or turn.many == UINT32_MAX:
            turn = turn_new(&self.turns, &self.store, HP_TURN_MARKS, max(self.turns.last, ts))
        turn.many += 1
        if stored:
            turns_flush(&self.turns, &self.store)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0, seq
        cdef const hp_order_event_t *e
        cdef const hp_book_t *b
        cdef int64_t price, now
        cdef bint keep, stored
        while done < limit:
            e = <const hp_order_event_t *>ring_peek(self.order_events)
            if e == NULL:
                self.failed |= self.order_events.broken != 0
                break
            if store_credit(&self.store) == 0 or ring_credit(self.risk, 2) < 2:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            if ((e.kind == HP_ORDER_EVENT_FILL or e.kind == HP_ORDER_EVENT_PARTIAL_FILL)
                    and e.instrument < self.instruments):
                now, seq = clock_now(), self.store.seq
                self._day(now, e.instrument)
                if ledger_order_event(&self.ledger.l, e):
                    hp_fault("ledger.booked")
                    self._publish(e.instrument, e.event, 0, True, self.ledger.l.fee)
                    hp_fault("ledger.published")
                stored = self.store.seq != seq
                turn_new(&self.turns, &self.store, HP_TURN_FILL, now)
                if stored:
                    turns_flush(&self.turns, &self.store)
            if self.board != NULL:
                board_basis(self.board, e.event)
            ring_release(self.order_events)
            done += 1
        while done < limit:
            b = <const hp_book_t *>ring_peek(self.marks)
            if b == NULL:
                self.failed |= self.marks.broken != 0
                break
            if store_credit(&self.store) == 0 or ring_credit(self.risk, 2) < 2:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            seq = self.store.seq
            if b.instrument >= self.instruments:
                self._marked(seq, b.ts_recv)
                ring_release(self.marks)
                done += 1
                continue
            self._day(b.ts_recv, b.instrument)
            price = b.last_price
            if b.bid > 0 and b.ask > 0:
                price = b.bid + (b.ask - b.bid) // 2
            if price > 0 and self.board != NULL and b.instrument < self.instruments:
                board_mark(self.board, b.instrument, price, b.volume, b.ts_recv)
            if price > 0 and ledger_mark(&self.ledger.l, b.instrument, price):
                keep = b.ts_recv - self.stored_at[b.instrument] >= self.interval
                if keep:
                    self.stored_at[b.instrument] = b.ts_recv
                self._publish(b.instrument, b.event, b.ts, keep, 0)
            self._marked(seq, b.ts_recv)
            ring_release(self.marks)
            done += 1
        if self.ledger.l.broken > self.broken:
            self.broken = self.ledger.l.broken
            self._halt()
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.order_events)
        ring_flush(self.marks)
        turns_rest(&self.turns, &self.store, clock_now())

    cdef bint finish(self) noexcept nogil:
        return turns_end(&self.turns, &self.store)
