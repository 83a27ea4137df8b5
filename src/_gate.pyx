"""The handle on the gate for Python: made from limits and instruments, asked one order at a time.

The stage drives the same struct without it; see ``_risk.pxd``.
"""
cimport cython
from libc.stdint cimport INT32_MIN, INT64_MIN, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from ._breaker cimport breaker_init, breaker_restore
from ._control cimport CONTROL_STAGES, Control
from ._figure cimport risk_figure, risk_limit, risk_position, risk_settle
from ._index cimport hp_index_free, hp_index_init
from ._margin cimport risk_margins
from ._memory cimport hp_lines
from ._risk cimport (
    RISK_FILLS, RISK_PAIRED, TRAIT_CENTS, TRAIT_SHORTABLE, approval_t, exposure_t, fill_t,
    hp_wide_ceil, reservation_t, risk_check, risk_mark, risk_order_event, risk_refresh,
    risk_token)
from ._schema cimport (
    HP_BOOK_FLAG_STALE, HP_LIMIT_MAX_ORDERS_PER_MINUTE, hp_book_t, hp_checks_t, hp_figure_t,
    hp_instrument_t, hp_intent_t, hp_order_event_t, hp_order_t, hp_position_t, hp_risk_event_t,
    hp_verdict_t)
from ._usage cimport usage_step

from collections import namedtuple

import numpy

from hftpipe import schema
from hftpipe.errors import ConfigError
from hftpipe.limits import BY_NAME, LIMITS, OFF, UNITS, parse_limits

cdef enum:
    NANO = 1000000000

Use = namedtuple("Use", "name unit limit use")


cdef int load(object data, void *to, size_t size) except -1:
    """Copy a record given as bytes, a buffer or a numpy record."""
    raw = data.tobytes() if hasattr(data, "tobytes") else bytes(data)
    if len(raw) != <Py_ssize_t>size:
        raise ValueError(f"record is {size} bytes, was {len(raw)}")
    memcpy(to, <const char *>raw, size)
    return 0


cdef record_of(record, const void *data):
    return numpy.frombuffer((<const char *>data)[:record.size], schema.dtype(record))[0]


def token(uint64_t key, order, uint64_t halt_epoch, uint64_t limits_version) -> int:
    """The token of an ORDER record, as the gateway computes it; see ``_token.pxd``."""
    cdef hp_order_t record
    load(order, &record, sizeof(record))
    return risk_token(key, &record, halt_epoch, limits_version)


@cython.final
cdef class Risk:
    """The gate of one run.

    Parameters
    ----------
    limits : Mapping[str, int | str | bool]
        As :func:`hftpipe.limits.parse_limits` wants it.
    instruments : (n,) array of INSTRUMENT
        Tick, lot, smallest quantity and flags, by index.
    control : Control or None
        The control page: halt epochs, token key, limits version, store_full words.
        None: always armed (unit tests, backtest).
    stage_count : int, default 0
        Stage blocks of the page whose store_full word closes the gate.
    capacity : int, default 4096
        Open orders at most, a power of two.

    Raises
    ------
    ConfigError
        If a limit or an instrument is not as it must be.
    """

    def __cinit__(self, limits, instruments, Control control=None, int64_t stage_count=0,
                  int64_t capacity=4096):
        cdef hp_instrument_t spec
        cdef exposure_t *x
        cdef int64_t i, size = 1024
        cdef uint64_t pairs
        number = parse_limits(limits)
        array = numpy.ascontiguousarray(instruments)
        if array.dtype != schema.dtype(schema.INSTRUMENT) or array.ndim != 1:
            raise ConfigError(f"instruments: wanted a vector of INSTRUMENT records, "
                              f"found {array.dtype} of shape {array.shape}")
        if not 1 <= len(array) <= 65536:
            raise ConfigError(f"instruments: wanted 1 to 65536, found {len(array)}")
        if not 0 <= stage_count <= CONTROL_STAGES:
            raise ValueError(f"stage_count must be 0 to {CONTROL_STAGES}, was {stage_count}")
        if capacity < 1 or capacity > 1 << 24 or capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two up to {1 << 24}, was {capacity}")
        if number["max_correlation"] != OFF and len(array) > RISK_PAIRED:
            raise ConfigError(f"max_correlation: wanted at most {RISK_PAIRED} instruments, found "
                              f'{len(array)}; set it to "off: <why>"')
        breaker_init(&self.r.breaker)
        for limit in LIMITS:
            i = limit.number
            self.r.low[i], self.r.high[i] = limit.low, limit.high
            self.r.idle[i] = INT64_MIN if limit.off is None else limit.off
            self.r.limit[i] = number[limit.name]
            if number[limit.name] == OFF:
                self.r.limit[i] = limit.off
                self.r.off |= 1ULL << i
        if control is not None:
            self._control = control
            self.r.header = control.header
            self.r.blocks = control.blocks
            self.r.stages = stage_count
            self.r.token_key = control.header.token_key
            self.r.limits_version = control.header.limits_version
        while size < self.r.limit[HP_LIMIT_MAX_ORDERS_PER_MINUTE]:
            size *= 2
        self.r.approval_mask = size - 1
        self.r.capacity = capacity
        self.r.mask = 2 * capacity - 1
        self.r.tail = 2 * capacity
        self.r.count = len(array)
        # Whole cache lines, so that one order and one instrument touch as few as they can.
        self.r.approvals = <approval_t *>hp_lines(size, sizeof(approval_t))
        self.r.ring = <uint32_t *>hp_lines(2 * capacity, sizeof(uint32_t))
        self.r.table = <exposure_t *>hp_lines(self.r.count, sizeof(exposure_t))
        self.r.orders = <reservation_t *>hp_lines(2 * capacity + 1, sizeof(reservation_t))
        self.r.fills = <fill_t *>hp_lines(RISK_FILLS, sizeof(fill_t))
        if self.r.orders != NULL:
            self.r.orders += 1                  # the first is for what has no neighbour
        if self.r.approvals == NULL or self.r.ring == NULL or self.r.table == NULL \
                or self.r.orders == NULL or self.r.fills == NULL:
            raise MemoryError(f"no memory for {self.r.count} instruments, {capacity} orders")
        if hp_index_init(&self.r.index, 2 * capacity) or hp_index_init(&self.r.recent, size):
            raise MemoryError(f"no memory for an index of {capacity} orders, {size} approvals")
        if self.r.count <= RISK_PAIRED:
            self.r.pairs.words = (self.r.count + 63) // 64
            pairs = self.r.count * (self.r.count - 1) // 2
            self.r.pairs.bad = <uint64_t *>hp_lines(self.r.count * self.r.pairs.words, 8)
            self.r.pairs.value = <int32_t *>hp_lines(pairs, sizeof(int32_t))
            self.r.pairs.expires = <int64_t *>hp_lines(pairs, sizeof(int64_t))
            self.r.pairs.until = <int64_t *>hp_lines(self.r.count, sizeof(int64_t))
            self.r.pairs.held = <uint64_t *>hp_lines(self.r.pairs.words, 8)
            if self.r.pairs.bad == NULL or self.r.pairs.value == NULL \
                    or self.r.pairs.expires == NULL or self.r.pairs.until == NULL \
                    or self.r.pairs.held == NULL:
                raise MemoryError(f"no memory for the correlations of {self.r.count} instruments")
            for i in range(<int64_t>pairs):
                self.r.pairs.value[i], self.r.pairs.expires[i] = INT32_MIN, INT64_MIN
        for i in range(2 * capacity):
            self.r.ring[i] = <uint32_t>i
        for i in range(16):
            self.r.expires[i] = INT64_MIN
        for i in range(<int64_t>self.r.count):
            load(array[i], &spec, sizeof(spec))
            if spec.tick <= 0 or spec.lot <= 0 or spec.min_qty < 0:
                raise ConfigError(
                    f"instrument {i}: wanted tick and lot above 0 and min_qty not below it, "
                    f"found {spec.tick}, {spec.lot}, {spec.min_qty}")
            x = &self.r.table[i]
            x.tick, x.lot, x.min_qty = spec.tick, spec.lot, spec.min_qty
            x.traits = spec.flags & (TRAIT_SHORTABLE | TRAIT_CENTS)
            x.best[0] = x.best[1] = INT64_MIN
            x.flags = HP_BOOK_FLAG_STALE        # until the first mark
            x.session_until = INT64_MIN
            x.unit_var[0] = x.unit_var[1] = NANO
            for k in range(8):
                x.expires[k] = INT64_MIN
        risk_settle(&self.r)

    def __dealloc__(self):
        free(self.r.approvals)
        free(self.r.ring)
        free(self.r.table)
        if self.r.orders != NULL:
            free(self.r.orders - 1)
        free(self.r.fills)
        free(self.r.pairs.bad)
        free(self.r.pairs.value)
        free(self.r.pairs.expires)
        free(self.r.pairs.until)
        free(self.r.pairs.held)
        hp_index_free(&self.r.index)
        hp_index_free(&self.r.recent)

    cdef exposure_t *exposure_at(self, int64_t instrument) except NULL:
        if not 0 <= instrument < <int64_t>self.r.count:
            raise IndexError(f"instrument must be below {self.r.count}, was {instrument}")
        return &self.r.table[instrument]

    def seed(self, int64_t instrument, int64_t qty, int64_t price):
        """Set a position held before the run, valued at *price* until the first mark."""
        cdef exposure_t *x = self.exposure_at(instrument)
        if x.held or price <= 0 or qty == INT64_MIN:
            raise ValueError(f"seed wants an instrument without position or orders and a price "
                             f"above 0, found qty {x.qty} -> {qty}, {x.open_orders} orders, "
                             f"price {price}")
        x.qty = qty
        if x.reference == 0:
            x.reference = price
        risk_refresh(&self.r, x)

    def restore(self, int64_t state, int64_t cause, int64_t losses, int64_t now, *,
                int64_t day=0, int64_t orders=0, int64_t pnl=0, latched=(), executions=None):
        """Go on where the run before stopped.

        Parameters
        ----------
        state, cause, losses : int
            Of the breaker: BREAKER_*, BREAKER_CAUSE_*, losing trades in a row.
        now : int, ns
        day, orders, pnl : int
            Trading day (days since 1970), orders approved on it, P&L of it in nanocash.
        latched : iterable of int
            Strategies that must be enabled by a person.
        executions : mapping of int to int, optional
            Orders of each strategy on that day.
        """
        breaker_restore(&self.r.breaker, state, cause, losses, now)
        self.r.day, self.r.day_orders, self.r.day_base = day, orders, pnl
        for strategy in latched:
            if not 0 <= strategy < 256:
                raise ValueError(f"strategy must be below 256, was {strategy}")
            self.r.latched[strategy >> 6] |= 1ULL << <uint64_t>(strategy & 63)
        for strategy, count in (executions or {}).items():
            if not 0 <= strategy < 256:
                raise ValueError(f"strategy must be below 256, was {strategy}")
            self.r.executions[<int>strategy] = count
        risk_settle(&self.r)

    def check(self, intent, int64_t now):
        """Judge an INTENT record at *now* ns; ``(reason, VERDICT, ORDER)``."""
        cdef hp_intent_t i
        cdef hp_verdict_t v
        cdef hp_order_t o
        load(intent, &i, sizeof(i))
        memset(&v, 0, sizeof(v))
        memset(&o, 0, sizeof(o))
        cdef int reason = risk_check(&self.r, &i, now, &v, &o)
        return reason, record_of(schema.VERDICT, &v), record_of(schema.ORDER, &o)

    def judge(self, intent, int64_t now):
        """The same without records: ``(reason, limit, value, detail, token)``."""
        cdef hp_intent_t i
        cdef hp_verdict_t v
        cdef hp_order_t o
        load(intent, &i, sizeof(i))
        memset(&o, 0, sizeof(o))
        cdef int reason = risk_check(&self.r, &i, now, &v, &o)
        return reason, v.limit, v.value, v.detail, o.token

    def margins(self, intent, verdict, int64_t now):
        """The CHECKS record of an INTENT right after its VERDICT at *now*; see ``_margin.pxd``."""
        cdef hp_intent_t i
        cdef hp_verdict_t v
        cdef hp_checks_t c
        load(intent, &i, sizeof(i))
        load(verdict, &v, sizeof(v))
        risk_margins(&self.r, &i, &v, now, &c)
        return record_of(schema.CHECKS, &c)

    def mark(self, book):
        """Take a BOOK record: reference price, touch, last trade, age and flags."""
        cdef hp_book_t record
        load(book, &record, sizeof(record))
        risk_mark(&self.r, &record)

    def order_event(self, event, int64_t now=0):
        """Take an ORDER_EVENT record: position and reservation move together."""
        cdef hp_order_event_t record
        load(event, &record, sizeof(record))
        risk_order_event(&self.r, &record, now)

    def position(self, position, int64_t now=0):
        """Take a POSITION record: the ledger's P&L of the day and of the instrument."""
        cdef hp_position_t record
        load(position, &record, sizeof(record))
        risk_position(&self.r, &record, now)

    def figure(self, figure, int64_t now=0):
        """Take a FIGURE record; the RISK_EVENT it makes, or None."""
        cdef hp_figure_t record
        cdef hp_risk_event_t event
        load(figure, &record, sizeof(record))
        if not risk_figure(&self.r, &record, now, &event):
            return None
        return record_of(schema.RISK_EVENT, &event)

    def exposure(self, int64_t instrument) -> dict[str, int]:
        """What one instrument holds: nanoqty, orders, and its worst-case nanocash, rounded up."""
        cdef exposure_t *x = self.exposure_at(instrument)
        return {"qty": x.qty, "open_buy": x.open_qty[0], "open_sell": x.open_qty[1],
                "open_orders": x.open_orders, "reference": x.reference,
                "best_buy": x.best[0] if x.first[0] else 0,
                "best_sell": -x.best[1] if x.first[1] else 0,
                "worst": hp_wide_ceil(x.worst, NANO), "moving": x.moving}

    def unsettle(self, bint unsettled):
        """Let only cancels pass, or everything again: whether the orders at the venue are known."""
        self.r.unsettled = unsettled

    def standing(self, int64_t instrument) -> int:
        """Bit set of an instrument: 1 = paused, 2 = on the restricted list."""
        return self.exposure_at(instrument).standing & 3

    def state(self) -> dict[str, object]:
        """Breaker, equity, day and strategies: what a run leaves to the next."""
        r = &self.r
        return {"breaker": r.breaker.state, "cause": r.breaker.cause, "losses": r.breaker.losses,
                "test": r.breaker.test, "day": r.day, "day_orders": r.day_orders,
                "day_pnl": r.day_pnl + r.day_base, "equity": r.equity, "peak": r.peak,
                "drawdown": r.drawdown, "level": r.level, "halting": bool(r.halting),
                "executions": {i: r.executions[i] for i in range(256) if r.executions[i]},
                "latched": [i for i in range(256) if r.latched[i >> 6] >> (i & 63) & 1]}

    def set_limit(self, str name, int64_t value):
        """Set a limit to the integer that is compared, OFF = switch it off; counts a version.

        Raises
        ------
        ConfigError
            If it is unknown, out of range, cannot be off, or there is no memory for it.
        """
        limit = BY_NAME.get(name)
        if limit is None:
            raise ConfigError(f"{name}: wanted a known limit")
        if not risk_limit(&self.r, <uint64_t>limit.number, value):
            raise ConfigError(f"{name}: wanted {UNITS[limit.unit][2]}, found "
                              f"{limit.show(value)}")

    def limits_use(self, int64_t now) -> list[object]:
        """Each limit and its present use, in the integers that are compared; -1 = per order.

        A limit that is off is INT64_MIN.  Of limits per instrument, the use is the largest of
        any instrument.
        """
        self.usage.at = 0
        usage_step(&self.usage, &self.r, now, self.r.count)
        return [Use(limit.name, limit.unit, self.usage.limit[<int>limit.number],
                    self.usage.use[<int>limit.number]) for limit in LIMITS]

    def counters(self) -> dict[str, int]:
        """Verdicts by reason (``none`` = approved, cancels included), and what else was seen."""
        out = {name.lower(): self.r.reasons[value] for name, value, _ in schema.REASON.members}
        out.update(cancels=self.r.cancels, orphans=self.r.orphans, unknown=self.r.unknown,
                   refused_figures=self.r.refused, live=self.r.live)
        return out

    def changes(self) -> list[tuple[str, str, str]]:
        """``(before, after, cause)`` of the breaker's last changes, oldest first."""
        cdef uint64_t i = self.r.breaker.changes - min(self.r.breaker.changes, <uint64_t>64)
        out = []
        while i < self.r.breaker.changes:
            c = self.r.breaker.log[i % 64]
            out.append((schema.BREAKER.label(c.before), schema.BREAKER.label(c.after),
                        schema.BREAKER_CAUSE.label(c.cause)))
            i += 1
        return out

    @property
    def limits_version(self) -> int:
        """Version of the limits in use; part of every token."""
        return self.r.limits_version

    def __len__(self):
        return self.r.live
