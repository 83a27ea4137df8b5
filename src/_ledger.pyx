"""Positions and P&L; what it keeps and promises is in ``_ledger.pxd``."""
cimport cython
from libc.stdint cimport INT64_MAX, INT64_MIN, UINT16_MAX
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._schema cimport HP_ORDER_EVENT_FILL, HP_ORDER_EVENT_PARTIAL_FILL

import numpy

from hftpipe import schema

FEES = ("per_order", "per_share", "rate", "sell_per_share", "sell_rate")


cdef inline hp_wide_t profit_of(const ledger_t *l) noexcept nogil:
    """Realised plus unrealised, less fees; attocash (L2)."""
    return hp_wide_sub(hp_wide_add(l.realised, l.unrealised), hp_wide_cash(l.paid))


cdef inline hp_wide_t equity_of(const ledger_t *l) noexcept nogil:
    return hp_wide_add(hp_wide_cash(l.opening), profit_of(l))


cdef inline bint within(hp_wide_t a) noexcept nogil:
    """Whether |a| fits nanocash in 63 bits (L4)."""
    return hp_wide_fits(hp_wide_abs(a))


cdef bint account_move(ledger_t *l, account_t *a, int64_t qty, int64_t price,
                       int64_t fee) noexcept nogil:
    """Trade the signed *qty* at *price*; 0 when it does not fit and nothing was changed."""
    cdef int64_t after, closed = 0, paid, all_paid
    cdef hp_wide_t spent = hp_wide_mul(price, qty)          # negative: received
    cdef hp_wide_t gain = hp_wide_of(0)
    cdef hp_wide_t part = hp_wide_of(0)
    cdef hp_wide_t cash, cost, realised, total
    cdef int64_t mark = a.mark if a.mark else price
    if hp_add_overflow(a.qty, qty, &after) or after == INT64_MIN or qty == INT64_MIN:
        return False
    if hp_add_overflow(a.paid, fee, &paid) or hp_add_overflow(l.paid, fee, &all_paid):
        return False
    if not within(spent):
        return False
    cash = hp_wide_sub(hp_wide_sub(l.cash, spent), hp_wide_cash(fee))
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
    realised = hp_wide_add(a.realised, gain)
    total = hp_wide_add(l.realised, gain)
    cost = hp_wide_add(hp_wide_sub(a.cost, part), hp_wide_mul(price, qty - closed))
    if not (within(cash) and within(realised) and within(total) and within(cost)
            and within(hp_wide_mul(mark, after))):
        return False                                        # L4
    l.cash = cash
    l.realised = total
    l.paid, a.paid, l.fee = all_paid, paid, fee
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
    l.peak = hp_wide_max(l.peak, equity_of(l))
    l.deepest = hp_wide_max(l.deepest, hp_wide_sub(l.peak, equity_of(l)))
    return changed


cdef bint fee_of(const fees_t *f, const hp_order_event_t *e, int64_t *fee) noexcept nogil:
    """What the fill *e* is charged, rounded up to nanocash; 0 when it does not fit."""
    cdef hp_wide_t value = hp_wide_mul(e.price, e.qty)
    cdef int64_t rate = f.rate, share = f.per_share
    cdef hp_wide_t shares, exact
    if e.side < 0:
        rate += f.sell_rate
        if hp_add_overflow(share, f.sell_per_share, &share):
            return False
    shares = hp_wide_mul(share, e.qty)
    if not (hp_wide_fits(value) and hp_wide_fits(shares)):
        return False
    # in 1e-27: both are below 2^93 * 2^31, so their sum fits 127 bits
    exact = hp_wide_add(hp_wide_times(value, rate), hp_wide_times(shares, HP_NANO))
    fee[0] = hp_wide_ceil(exact, HP_ATTO)
    if e.cum_qty == e.qty and hp_add_overflow(fee[0], f.per_order, fee):
        return False
    return fee[0] != INT64_MAX                              # saturated


cdef bint ledger_order_event(ledger_t *l, const hp_order_event_t *e) noexcept nogil:
    cdef account_t *a
    cdef int64_t fee = 0
    if e.event:
        if e.event <= l.last_event:
            l.duplicates += 1
            return False
        l.last_event = e.event
    if e.kind != HP_ORDER_EVENT_PARTIAL_FILL and e.kind != HP_ORDER_EVENT_FILL:
        return False
    if e.instrument >= l.count:
        l.unknown += 1
        return False
    a = &l.accounts[e.instrument]
    if e.qty <= 0 or e.price <= 0 or (e.side != 1 and e.side != -1) \
            or not fee_of(&l.fees, e, &fee) \
            or not account_move(l, a, e.qty * e.side, e.price, fee):
        l.broken += 1
        return False
    l.fills += 1
    a.fills += 1
    account_mark(l, a)
    return True


cdef bint ledger_mark(ledger_t *l, uint16_t instrument, int64_t price) noexcept nogil:
    cdef account_t *a
    if instrument >= l.count or price <= 0:
        return False
    a = &l.accounts[instrument]
    if a.mark == price:
        return False
    if not within(hp_wide_mul(price, a.qty)):               # L4
        l.broken += 1
        return False
    a.mark = price
    return a.qty != 0 and account_mark(l, a)


cdef void ledger_roll(ledger_t *l, uint32_t day) noexcept nogil:
    l.day = day
    l.profit_then, l.realised_then, l.paid_then = profit_of(l), l.realised, l.paid


cdef int64_t ledger_profit(const ledger_t *l) noexcept nogil:
    return hp_wide_even(profit_of(l), HP_NANO)


cdef int64_t ledger_day_pnl(const ledger_t *l) noexcept nogil:
    return hp_wide_even(hp_wide_sub(profit_of(l), l.profit_then), HP_NANO)


cdef int64_t ledger_realised(const ledger_t *l) noexcept nogil:
    return hp_wide_even(l.realised, HP_NANO)


cdef int64_t ledger_gross(const ledger_t *l) noexcept nogil:
    return hp_wide_even(l.gross, HP_NANO)


cdef int64_t ledger_equity(const ledger_t *l) noexcept nogil:
    return hp_wide_even(equity_of(l), HP_NANO)


cdef int64_t ledger_drawdown(const ledger_t *l) noexcept nogil:
    return hp_sub_saturate(hp_wide_even(l.peak, HP_NANO), ledger_equity(l))


cdef uint16_t drawdown_bps(int64_t peak, int64_t drawdown) noexcept nogil:
    """Rounded up; all of it and more when there was nothing to lose."""
    cdef int64_t bps
    if drawdown <= 0:
        return 0
    if peak <= 0:
        return UINT16_MAX
    bps = hp_wide_ceil(hp_wide_mul(drawdown, 10_000), peak)
    return <uint16_t>(bps if bps < UINT16_MAX else UINT16_MAX)


cdef void ledger_view(const ledger_t *l, uint16_t instrument, hp_position_t *out) noexcept nogil:
    cdef const account_t *a
    memset(out, 0, sizeof(hp_position_t))
    out.instrument, out.day = instrument, l.day
    out.day_pnl = ledger_day_pnl(l)
    out.day_realised = hp_wide_even(hp_wide_sub(l.realised, l.realised_then), HP_NANO)
    out.day_fees = l.paid - l.paid_then
    out.cash = hp_wide_even(hp_wide_add(hp_wide_cash(l.opening), l.cash), HP_NANO)
    out.equity = ledger_equity(l)
    out.peak = hp_wide_even(l.peak, HP_NANO)
    out.drawdown_bps = drawdown_bps(out.peak, hp_sub_saturate(out.peak, out.equity))
    if instrument >= l.count:
        return
    a = &l.accounts[instrument]
    out.qty, out.average, out.mark, out.fees = a.qty, a.average, a.mark, a.paid
    out.realised = hp_wide_even(a.realised, HP_NANO)
    out.unrealised = hp_wide_even(a.unrealised, HP_NANO)


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


cdef int narrow(object v, hp_wide_t *out) except -1:
    """Attocash of a Python integer."""
    cash, rest = divmod(v, 10**9)
    out[0] = hp_wide_add(hp_wide_cash(cash), hp_wide_of(rest))
    if not within(out[0]):
        raise OverflowError(f"{v} attocash do not fit")
    return 0


@cython.final
cdef class Ledger:
    """The books of one run.

    Parameters
    ----------
    count : int
        Instruments; their indices are below it.
    equity : int, nanocash
        What the account is worth before the first fill.
    fees : mapping, optional
        Of the names in `FEES`: nanocash per order and for 1e9 nanoqty, rates in 1e-9 of the value.
    """

    def __cinit__(self, int64_t count, int64_t equity=0, fees=None):
        cdef int64_t[5] values
        if not 1 <= count <= 65536:
            raise ValueError(f"count must be 1 to 65536, was {count}")
        if equity < 0:
            raise ValueError(f"equity must not be negative, was {equity}")
        unknown = sorted(set(fees or ()) - set(FEES))
        if unknown:
            raise ValueError(f"fees must be of {', '.join(FEES)}, was {unknown[0]}")
        for i, name in enumerate(FEES):
            values[i] = (fees or {}).get(name, 0)
            if values[i] < 0 or ("rate" in name and values[i] > FEE_RATE_MOST):
                raise ValueError(f"{name} must be 0 to "
                                 f"{FEE_RATE_MOST if 'rate' in name else INT64_MAX}, "
                                 f"was {values[i]}")
        self.l.fees = fees_t(values[0], values[1], values[2], values[3], values[4])
        self.l.opening = equity
        self.l.peak = hp_wide_cash(equity)
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

    def restore(self, int64_t instrument, *, int64_t qty, cost, realised, int64_t fees=0,
                int64_t mark=0, int64_t fills=0):
        """Go on with the books of an instrument exactly where :meth:`exact` left them.

        Raises
        ------
        ValueError
            If the instrument has books already, or these contradict themselves.
        OverflowError
            If they do not fit.
        """
        cdef account_t *a = self.account(instrument)
        if a.fills or a.qty or a.paid:
            raise ValueError(f"restore wants a fresh instrument, found {a.fills} fills, "
                             f"qty {a.qty}")
        if (qty > 0) != (cost > 0) or (qty < 0) != (cost < 0) or mark < 0 or qty == INT64_MIN:
            raise ValueError(f"restore wants a cost with the sign of qty and a mark not below 0, "
                             f"found qty {qty}, cost {cost}, mark {mark}")
        cdef hp_wide_t price, gained, total, cash
        cdef int64_t paid
        narrow(cost, &price)
        narrow(realised, &gained)
        total = hp_wide_add(self.l.realised, gained)
        cash = hp_wide_sub(hp_wide_add(self.l.cash, hp_wide_sub(gained, price)),
                           hp_wide_cash(fees))
        if not (within(total) and within(cash) and within(hp_wide_mul(mark, qty))) \
                or hp_add_overflow(self.l.paid, fees, &paid):
            raise OverflowError(f"a position of {qty} for {cost} does not fit")
        a.qty, a.cost, a.realised, a.paid, a.fills = qty, price, gained, fees, fills
        a.average = hp_wide_even(hp_wide_abs(price), qty if qty > 0 else -qty) if qty else 0
        a.mark = mark if mark else a.average        # one of them, unless it is flat
        self.l.realised, self.l.cash, self.l.paid = total, cash, paid
        account_mark(&self.l, a)

    def restore_account(self, *, int64_t peak, int64_t day=0, profit_then=0, realised_then=0,
                        int64_t fees_then=0, elsewhere=0, int64_t elsewhere_fees=0):
        """Go on with the account, after every instrument: what :meth:`account_state` gave, and
        what was earned and charged on instruments that are not in these books (attocash, nanocash).
        """
        cdef hp_wide_t gained
        narrow(elsewhere, &gained)
        self.l.realised = hp_wide_add(self.l.realised, gained)
        self.l.cash = hp_wide_sub(hp_wide_add(self.l.cash, gained), hp_wide_cash(elsewhere_fees))
        self.l.paid += elsewhere_fees
        narrow(profit_then, &self.l.profit_then)
        narrow(realised_then, &self.l.realised_then)
        self.l.paid_then, self.l.day = fees_then, <uint32_t>day
        self.l.peak = hp_wide_max(hp_wide_cash(peak), equity_of(&self.l))
        self.l.deepest = hp_wide_of(0)

    def account_state(self) -> dict[str, int]:
        """Account and day: peak (nanocash), day, and what stood when it began (attocash; fees
        nanocash)."""
        return {"peak": hp_wide_even(self.l.peak, HP_NANO), "day": self.l.day,
                "profit_then": wide(self.l.profit_then),
                "realised_then": wide(self.l.realised_then), "fees_then": self.l.paid_then}

    def trade(self, int64_t instrument, int64_t qty, int64_t price, int64_t fee) -> bool:
        """Book an execution whose fee (nanocash) is known; *qty* is signed."""
        cdef account_t *a = self.account(instrument)
        if qty == 0 or price <= 0 or not account_move(&self.l, a, qty, price, fee):
            self.l.broken += 1
            return False
        self.l.fills += 1
        a.fills += 1
        account_mark(&self.l, a)
        return True

    def order_event(self, event) -> bool:
        """Apply an ORDER_EVENT record; whether it moved the books."""
        cdef hp_order_event_t record
        load(event, &record, sizeof(record))
        return ledger_order_event(&self.l, &record)

    def mark(self, uint16_t instrument, int64_t price) -> bool:
        """Mark at *price* in nanoprice; whether the unrealised P&L changed."""
        return ledger_mark(&self.l, instrument, price)

    def roll(self, uint32_t day):
        """Begin the trading day *day*, counted from 1970: the day's P&L is 0 at these marks."""
        ledger_roll(&self.l, day)

    def view(self, uint16_t instrument):
        """The POSITION record of *instrument*, rounded."""
        cdef hp_position_t out
        self.account(instrument)
        ledger_view(&self.l, instrument, &out)
        return numpy.frombuffer((<const char *>&out)[:sizeof(out)],
                                schema.dtype(schema.POSITION))[0]

    def exact(self, uint16_t instrument) -> dict[str, int]:
        """Position of *instrument* without rounding: nanoqty, attocash (1e-18) and the mark."""
        cdef account_t *a = self.account(instrument)
        return {"qty": a.qty, "cost": wide(a.cost), "realised": wide(a.realised),
                "unrealised": wide(a.unrealised), "fees": wide(hp_wide_cash(a.paid)),
                "mark": a.mark, "fills": a.fills}

    def totals(self) -> dict[str, int]:
        """Attocash over all instruments."""
        return {"cash": wide(self.l.cash), "realised": wide(self.l.realised),
                "unrealised": wide(self.l.unrealised), "gross": wide(self.l.gross),
                "fees": wide(hp_wide_cash(self.l.paid)), "equity": wide(equity_of(&self.l)),
                "peak": wide(self.l.peak), "deepest": wide(self.l.deepest)}

    def counters(self) -> dict[str, int]:
        """Fills applied, and events that were not."""
        return {"fills": self.l.fills, "duplicates": self.l.duplicates,
                "unknown": self.l.unknown, "broken": self.l.broken}

    def __len__(self):
        return self.l.count
