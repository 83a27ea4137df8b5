"""Positions and P&L; what it keeps and promises is in ``_ledger.pxd``."""
cimport cython
from libc.stdint cimport INT64_MIN
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._schema cimport HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_PARTIAL_FILL

import numpy

from hftpipe import schema

cdef enum:
    NANO = 1000000000


cdef bint account_move(ledger_t *l, account_t *a, int64_t qty, int64_t price) noexcept nogil:
    """Trade the signed *qty* at *price*; 0 when it does not fit and nothing was changed."""
    cdef int64_t after, closed = 0
    cdef hp_wide_t paid = hp_wide_mul(price, qty)           # negative: received
    cdef hp_wide_t cash = l.cash
    cdef hp_wide_t gain = hp_wide_of(0)
    cdef hp_wide_t part = hp_wide_of(0)
    cdef hp_wide_t realised = a.realised
    cdef hp_wide_t total = l.realised
    cdef hp_wide_t cost
    cdef int64_t mark = a.mark if a.mark else price
    if hp_add_overflow(a.qty, qty, &after) or after == INT64_MIN or qty == INT64_MIN:
        return False
    if hp_wide_add_overflow(&cash, hp_wide_sub(hp_wide_of(0), paid)):
        return False
    if a.qty > 0 > qty:                                     # how much of qty closes; its sign
        closed = max(qty, -a.qty)
    elif a.qty < 0 < qty:
        closed = min(qty, -a.qty)
    if closed:
        # what the closed part had cost; all of it when flat, so that nothing remains
        part = a.cost
        if closed != -a.qty:
            part = hp_wide_share(a.cost, closed if closed > 0 else -closed,
                                 a.qty if a.qty > 0 else -a.qty)
        gain = hp_wide_sub(hp_wide_sub(hp_wide_of(0), hp_wide_mul(price, closed)), part)
        if hp_wide_add_overflow(&total, gain) or hp_wide_add_overflow(&realised, gain):
            return False
    cost = hp_wide_add(hp_wide_sub(a.cost, part), hp_wide_mul(price, qty - closed))
    if not (hp_wide_fits(hp_wide_abs(cost))
            and hp_wide_fits(hp_wide_abs(hp_wide_mul(mark, after)))):
        return False                                        # L4
    l.cash = cash
    l.realised = total
    a.realised = realised
    a.cost = cost
    a.qty = after
    a.mark = mark
    a.average = 0
    if after:
        a.average = hp_wide_even(hp_wide_abs(a.cost), after if after > 0 else -after)
    return True


cdef bint account_mark(ledger_t *l, account_t *a) noexcept nogil:
    """Value at a.mark; O(1).  1 when the unrealised P&L changed."""
    cdef hp_wide_t value = hp_wide_mul(a.mark, a.qty)
    cdef hp_wide_t unrealised = hp_wide_sub(value, a.cost)
    cdef hp_wide_t gross = hp_wide_abs(value)
    cdef bint changed = not hp_wide_equal(unrealised, a.unrealised)
    l.unrealised = hp_wide_add(l.unrealised, hp_wide_sub(unrealised, a.unrealised))
    l.gross = hp_wide_add(l.gross, hp_wide_sub(gross, a.gross))
    a.unrealised = unrealised
    a.gross = gross
    return changed


cdef void ledger_order_event(ledger_t *l, const hp_order_event_t *e) noexcept nogil:
    cdef account_t *a
    if e.event:
        if e.event <= l.last_event:
            l.duplicates += 1
            return
        l.last_event = e.event
    if e.kind != HP_ORDER_EVENT_PARTIAL_FILL and e.kind != HP_ORDER_EVENT_FILL:
        return
    if e.instrument >= l.count:
        l.unknown += 1
        return
    a = &l.accounts[e.instrument]
    if e.qty <= 0 or e.price <= 0 or (e.side != 1 and e.side != -1) \
            or not account_move(l, a, e.qty * e.side, e.price):
        l.broken += 1
        return
    l.fills += 1
    a.fills += 1
    account_mark(l, a)


cdef bint ledger_mark(ledger_t *l, uint16_t instrument, int64_t price) noexcept nogil:
    cdef account_t *a
    if instrument >= l.count or price <= 0:
        return False
    a = &l.accounts[instrument]
    if a.mark == price:
        return False
    if not hp_wide_fits(hp_wide_abs(hp_wide_mul(price, a.qty))):    # L4
        l.broken += 1
        return False
    a.mark = price
    return a.qty != 0 and account_mark(l, a)


cdef int64_t ledger_day_pnl(const ledger_t *l) noexcept nogil:
    return hp_wide_even(hp_wide_add(l.realised, l.unrealised), NANO)


cdef int64_t ledger_realised(const ledger_t *l) noexcept nogil:
    return hp_wide_even(l.realised, NANO)


cdef int64_t ledger_gross(const ledger_t *l) noexcept nogil:
    return hp_wide_even(l.gross, NANO)


cdef void ledger_view(const ledger_t *l, uint16_t instrument, hp_position_t *out) noexcept nogil:
    cdef const account_t *a
    memset(out, 0, sizeof(hp_position_t))
    out.instrument = instrument
    out.day_pnl = ledger_day_pnl(l)
    if instrument >= l.count:
        return
    a = &l.accounts[instrument]
    out.qty, out.average = a.qty, a.average
    out.realised = hp_wide_even(a.realised, NANO)
    out.unrealised = hp_wide_even(a.unrealised, NANO)


# ---------------------------------------------------------------- Python

cdef int load(object data, void *to, size_t size) except -1:
    """Copy a record given as bytes, a buffer or a numpy record."""
    raw = data.tobytes() if hasattr(data, "tobytes") else bytes(data)
    if len(raw) != <Py_ssize_t>size:
        raise ValueError(f"record is {size} bytes, was {len(raw)}")
    memcpy(to, <const char *>raw, size)
    return 0


cdef object wide(hp_wide_t v):
    return (<object>hp_wide_high(v) << 64) | <object>hp_wide_low(v)


@cython.final
cdef class Ledger:
    """The books of one run.

    Parameters
    ----------
    count : int
        Instruments; their indices are below it.
    """

    def __cinit__(self, int64_t count):
        if not 1 <= count <= 65536:
            raise ValueError(f"count must be 1 to 65536, was {count}")
        self.l.accounts = <account_t *>calloc(count, sizeof(account_t))
        if self.l.accounts == NULL:
            raise MemoryError(f"no memory for {count} accounts")
        self.l.count = count

    def __dealloc__(self):
        free(self.l.accounts)

    cdef account_t *account(self, int64_t instrument) except NULL:
        if not 0 <= instrument < <int64_t>self.l.count:
            raise IndexError(f"instrument must be below {self.l.count}, was {instrument}")
        return &self.l.accounts[instrument]

    def seed(self, int64_t instrument, int64_t qty, int64_t average):
        """Open a position held before the run, as if bought or sold at *average* (nanoprice).

        Raises
        ------
        ValueError
            If the instrument has traded already, or the average is not positive.
        OverflowError
            If it does not fit.
        """
        cdef account_t *a = self.account(instrument)
        if a.fills or a.qty or average <= 0:
            raise ValueError(f"seed wants a fresh instrument and an average above 0, "
                             f"found {a.fills} fills, qty {a.qty}, average {average}")
        if not account_move(&self.l, a, qty, average):
            raise OverflowError(f"a position of {qty} at {average} does not fit")
        account_mark(&self.l, a)

    def order_event(self, event):
        """Apply an ORDER_EVENT record."""
        cdef hp_order_event_t record
        load(event, &record, sizeof(record))
        ledger_order_event(&self.l, &record)

    def mark(self, uint16_t instrument, int64_t price) -> bool:
        """Mark at *price* in nanoprice; whether the unrealised P&L changed."""
        return ledger_mark(&self.l, instrument, price)

    def view(self, uint16_t instrument):
        """The POSITION record of *instrument*, rounded."""
        cdef hp_position_t out
        self.account(instrument)
        ledger_view(&self.l, instrument, &out)
        return numpy.frombuffer((<const char *>&out)[:sizeof(out)],
                                schema.dtype(schema.POSITION))[0]

    def exact(self, uint16_t instrument) -> dict[str, int]:
        """Position of *instrument* without rounding: nanoqty, and attocash (1e-18)."""
        cdef account_t *a = self.account(instrument)
        return {"qty": a.qty, "cost": wide(a.cost), "realised": wide(a.realised),
                "unrealised": wide(a.unrealised)}

    def totals(self) -> dict[str, int]:
        """Attocash over all instruments: cash, realised, unrealised, gross."""
        return {"cash": wide(self.l.cash), "realised": wide(self.l.realised),
                "unrealised": wide(self.l.unrealised), "gross": wide(self.l.gross)}

    def counters(self) -> dict[str, int]:
        """Fills applied, and events that were not."""
        return {"fills": self.l.fills, "duplicates": self.l.duplicates,
                "unknown": self.l.unknown, "broken": self.l.broken}

    def __len__(self):
        return self.l.count
