"""The ledger stage: positions, P&L and marks."""
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._board cimport Board, board_basis, board_mark, board_position
from ._clock cimport clock_now
from ._control cimport Control, control_count, control_set
from ._ledger cimport (
    ledger_day_pnl, ledger_gross, ledger_mark, ledger_order_event, ledger_realised, ledger_view)
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._schema cimport (
    HP_METRIC_CREDIT_STALLS, HP_METRIC_DAY_PNL, HP_METRIC_GROSS_NOTIONAL, HP_METRIC_REALISED_PNL,
    HP_METRIC_RECORDS_IN, HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_PARTIAL_FILL, HP_RECORD_POSITION,
    hp_book_t, hp_order_event_t, hp_position_t)
from ._stage cimport hp_copy_words, stage_end, store_credit, store_next, store_put

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
    board : Board, optional
        Where positions and marks are shown.
    """

    def __init__(self, order_events, marks, risk, Ledger ledger not None, int instruments,
                 store=None, Control control=None, int index=6, int64_t interval=1_000_000_000,
                 Board board=None):
        self._setup("ledger", control, index, store, schema.STREAM.LEDGER, schema.STORED)
        self.order_events = stage_end(self._keep, order_events, schema.ORDER_EVENT, False)
        self.marks = stage_end(self._keep, marks, schema.BOOK, False)
        self.risk = stage_end(self._keep, risk, schema.POSITION, True)
        self.ledger, self.instruments, self.interval = ledger, instruments, interval
        if board is not None:
            if board.instruments < instruments:
                raise ValueError(f"the board has {board.instruments} instruments, "
                                 f"expected {instruments}")
            self._keep.append(board)
            self.board = &board.b
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
        if self.board != NULL:
            board_position(self.board, instrument, p.qty, p.average, p.realised, p.unrealised)
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
            if self.board != NULL:
                board_basis(self.board, e.event)
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
            if price > 0 and self.board != NULL and b.instrument < self.instruments:
                board_mark(self.board, b.instrument, price, b.volume, b.ts_recv)
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
