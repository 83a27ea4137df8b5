"""The gate: the only place that can make an order sendable.

Each intent passes all checks or is refused with the first reason that applies, in this order.
Orders that reduce a position are let out of those marked (r)::

    HALTED  STORE_FULL  UNSETTLED  UNKNOWN_INSTRUMENT  BREAKER(r)  PAUSED  RESTRICTED
    UNRESOLVED  TRADING_HALT  PRICE_BAND  STALE_DATA  NO_FIGURE(r) OLD_FIGURE(r)
    INVALID_ORDER  INCREMENT  DUPLICATE  DUPLICATE_ORDER  PRICE_RANGE(r)
    ORDER_SIZE  ORDER_NOTIONAL  ORDER_SMALL(r)  ORDER_RATE  ORDERS_PER_DAY(r)  REPEATED(r)
    CROSSES_ZERO  SHORT_NOT_ALLOWED(r)
    POSITION_SIZE(r)  POSITION_NOTIONAL(r)  TOTAL_NOTIONAL(r)  OPEN_POSITIONS(r)  PENDING
    DAILY_LOSS(r)  WEEKLY_LOSS(r)  MONTHLY_LOSS(r)  TRADE_LOSS(r)  CONCENTRATION(r)  SECTOR(r)
    VAR_95(r)  VAR_99(r)  DRAWDOWN(r)  CORRELATION(r)  VOLATILITY(r)  LEVERAGE(r)
    HOURS  PRICE_COLLAR  LAST_COLLAR  ORDER_VOLUME(r)  POSITION_VOLUME(r)  SPREAD(r)
    VOLUME_RATIO(r)  WASH_TRADE  TABLE_FULL

and OVERFLOW from whichever of them would need more than nanocash or nanoqty can hold.  A limit
is inclusive; losses and the drawdown refuse when they reach it.  Products are compared in 128
bits without division; they are rounded up only to be reported.

Values
    reference   mid (floor), or the last trade when a side was never seen
    worth       price at which an order is valued: a limit buy at its price; a limit sell at its
                price or the bid, whichever is higher; a market order at the far touch plus the
                collar, rounded up.  Never less than what it can trade at within the collar.
                A stop limit as a limit; a stop or trailing stop as a market order, but a buy
                begins at its trigger, which may be as far away as it trails, plus 4 % if the
                collar is less.
    collar      distance of the limit price, or of a far touch, to reference; of a stop limit from
                its limit price to its trigger
    worst case  of an instrument, per side: position plus all that is open on that side and the
                order; in cash: position at reference, open orders at their worth.  The value of
                an instrument is the larger of its two sides, the total is their sum.
    reducing    an order against the position that cannot turn it around, whatever fills first
    equity      of the morning (figure) plus the P&L of the day
    at risk     the figure for what is held, plus unit value at risk times nanocash, rounded up
                per instrument, of every open order, of every fill newer than the figure's
                basis, and of the order.  Value at risk of a sum is no more than the sum, so
                whatever of them fills, the portfolio's is no more than this.

A cancel passes when its target is open here (NOT_OPEN otherwise), also while halted.

Reservations
    R1  risk_check returns 0 for a new order iff it has reserved it: quantity, worth, one order.
    R2  Every ORDER_EVENT is reduced to its cum_qty: what is above the highest seen so far moves
        the position, and the reservation by the same amount, in one call.  So events may come
        twice, or in any order.
    R3  A terminal event releases what is left; UNKNOWN releases nothing, and until the venue has
        told what became of the order no other one of its instrument passes.
    R4  Ended orders are remembered (at least `capacity` of them), so late fills and duplicates
        are told apart.  A fill of an order not remembered moves the position, if its event is
        newer than all before.
    R5  At most `capacity` orders are open.

What comes from outside
    F1  A check that is on and cannot be evaluated refuses.  A figure that never came, that is
        out of range or past its end counts as none.
    F2  What a figure or a limit means for an instrument is worked out when it comes; a check
        then only compares.  So all of `limit` changes through figure_limit alone.
    F3  limits_version grows with each change and stands in the control page before the first
        order approved under it is published: the gateway refuses what older limits approved.

One writer, one process; only the control page is shared.
"""
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._breaker cimport breaker_t
from ._control cimport control_header_t, stage_block_t
from ._index cimport hp_index_t
from ._schema cimport (
    HP_FIGURE_SECTOR, HP_FIGURE_UNIT_VAR_95, hp_book_t, hp_intent_t, hp_order_event_t, hp_order_t,
    hp_verdict_t)

cdef extern from "_wide.h" nogil:
    ctypedef struct hp_wide_t:              # __int128, 1e-18 of the quote currency
        pass
    hp_wide_t hp_wide_of(int64_t v) noexcept
    hp_wide_t hp_wide_cash(int64_t cash) noexcept
    hp_wide_t hp_wide_mul(int64_t a, int64_t b) noexcept
    hp_wide_t hp_wide_add(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_sub(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_side(hp_wide_t a, int side) noexcept
    hp_wide_t hp_wide_max(hp_wide_t a, hp_wide_t b) noexcept
    hp_wide_t hp_wide_abs(hp_wide_t a) noexcept
    hp_wide_t hp_wide_clamp(hp_wide_t a) noexcept
    hp_wide_t hp_wide_times(hp_wide_t a, int64_t b) noexcept
    hp_wide_t hp_wide_over(hp_wide_t a, int64_t b) noexcept
    bint hp_wide_less(hp_wide_t a, hp_wide_t b) noexcept
    bint hp_wide_fits(hp_wide_t a) noexcept
    int64_t hp_wide_ceil(hp_wide_t a, int64_t b) noexcept
    int64_t hp_wide_ratio(hp_wide_t a, hp_wide_t b) noexcept
    int64_t hp_wide_floor(hp_wide_t a, int64_t b) noexcept
    int64_t hp_wide_nanocash(hp_wide_t a) noexcept
    int64_t hp_bps_ceil(int64_t price, int64_t bps) noexcept
    int64_t hp_share_floor(int64_t whole, int64_t part, int64_t count) noexcept
    int64_t hp_spread_bps(int64_t bid, int64_t ask) noexcept
    bint hp_add_overflow(int64_t a, int64_t b, int64_t *out) noexcept
    int64_t hp_add_saturate(int64_t a, int64_t b) noexcept
    int64_t hp_sub_saturate(int64_t a, int64_t b) noexcept

cdef enum:
    RISK_REASONS = 64                       # counters; REASON_* are below it
    RISK_LIMITS = 64                        # LIMIT_* are below it
    RISK_KINDS = 16                         # figures that expire: FIGURE_* below it
    RISK_SECTORS = 256
    RISK_FILLS = 4096                       # newer than the value at risk; a power of two
    RISK_PAIRED = 2048                      # instruments at most for the correlation check

cdef enum:                                  # exposure_t.traits: INSTRUMENT.flags
    TRAIT_SHORTABLE = 2
    TRAIT_CENTS = 4                         # the sub-penny rule holds

cdef enum:                                  # exposure_t.standing: refused whatever the order is
    STANDING_PAUSED = 1
    STANDING_RESTRICTED = 2
    STANDING_TRADE_LOSS = 4
    STANDING_VOLATILITY = 8
    STANDING_SPREAD = 16
    STANDING_VOLUME_RATIO = 32
    STANDING_UNRESOLVED = 64

cdef struct exposure_t:                     # one instrument; six lines
    int64_t tick                            # nanoprice
    int64_t lot                             # nanoqty
    int64_t min_qty                         # nanoqty
    int64_t reference                       # nanoprice; 0 = never marked
    int64_t bid                             # nanoprice; 0 = none
    int64_t ask                             # beside bid: judge() picks by place
    int64_t mark_ts                         # ns, ts_recv of the newest state of the book
    uint8_t flags                           # BOOK_FLAG_* of it
    uint8_t traits                          # TRAIT_*
    uint8_t held                            # has a position or open orders
    uint8_t standing                        # STANDING_*
    uint8_t sector                          # 0 = unknown
    uint8_t session                         # SESSION_*
    uint16_t unresolved                     # open orders without an answer
    # Pairs are indexed by risk_way(side), and signed by side, so that the code has no branch on
    # it: orders to both sides alternate, and a branch guessed wrong costs as much as a check.
    int64_t qty                             # nanoqty, signed
    int64_t open_qty[2]                     # nanoqty reserved
    int64_t best[2]                         # highest side * price of what is open
    uint32_t first[2]                       # list of open orders: slot + 1; 0 = none
    int64_t open_orders
    int64_t last                            # nanoprice of the last trade; 0 = none yet
    hp_wide_t value                         # qty at reference, signed
    hp_wide_t open_value[2]                 # open orders at their worth
    hp_wide_t worst                         # this instrument's share of the total
    int64_t until                           # ns, all figures it needs are fresh until then
    int64_t session_until                   # ns
    int64_t position_qty                    # nanoqty, the limit, shrunk by its volatility
    int64_t position_notional               # nanocash, the same
    int64_t order_volume                    # nanoqty, limit of one order
    int64_t position_volume                 # nanoqty, limit of the position
    int64_t moving                          # nanocash at risk besides what is held (while on)
    int64_t unrealised                      # nanocash, of the position
    int64_t unit_var[2]                     # 1e-9 of the value; 95, 99 %; unknown: all of it
    hp_wide_t since                         # fills that the value at risk does not know
    int64_t volatility                      # 1e-9 of the price
    int64_t volume                          # nanoqty a day
    int64_t ratio                           # 1e-9
    int64_t earned                          # nanocash realised when it was last flat
    int64_t expires[8]                      # ns, by risk_kind_slot; INT64_MIN = none

cdef struct reservation_t:                  # one order; one line
    uint64_t order                          # 0 = slot never used
    int64_t qty                             # nanoqty
    int64_t cum_qty                         # highest seen; open: qty - cum_qty is reserved
    int64_t at                              # ns, approved
    int64_t price                           # side * price; a market buy INT64_MAX, sell 0
    int64_t worth                           # nanoprice
    uint32_t next                           # of the same instrument and side: slot + 1
    uint32_t previous
    uint16_t instrument
    int8_t side
    uint8_t type
    uint8_t open
    uint8_t answered                        # the venue has said something about it
    uint8_t reduces                         # it passed as one that reduces
    uint8_t unresolved                      # no answer came, so far

cdef struct approval_t:                     # of one order, for rate and duplicates
    int64_t at                              # ns
    int64_t price                           # as asked: 0 for a market order
    int64_t qty
    uint16_t instrument
    int8_t side
    uint8_t indexed                         # newest of its key
    uint32_t tag

cdef struct fill_t:                         # newer than the value at risk
    hp_wide_t value
    uint64_t event
    uint64_t instrument

cdef struct pairs_t:                        # correlation; NULLs beyond RISK_PAIRED instruments
    uint64_t words                          # of a row of bits
    uint64_t *bad                           # [instrument][words]: pairs that refuse
    int32_t *value                          # [low over high], 1e-9; INT32_MIN = unknown
    int64_t *expires                        # the same, ns
    int64_t *until                          # [instrument], ns: no pair that is good ends before
    uint64_t *held                          # [words]: instruments held

cdef struct risk_t:
    control_header_t *header                # NULL: always armed
    const stage_block_t *blocks
    int64_t stages                          # blocks whose store_full counts
    uint64_t token_key
    uint64_t limits_version
    exposure_t *table
    uint64_t count                          # instruments
    reservation_t *orders                   # [-1] is nobody's: what has no neighbour writes there
    uint32_t *ring                          # slots to use next: unused, then ended, oldest first
    uint64_t head
    uint64_t tail
    uint64_t mask                           # slots - 1; slots = 2 * capacity
    uint64_t capacity
    uint64_t live
    hp_index_t index
    approval_t *approvals                   # ring of what was approved
    uint64_t approved                       # ever
    uint64_t approval_mask
    hp_index_t recent                          # of the newest approval of each key
    int64_t until                           # ns, all global figures needed are fresh until then
    uint64_t sessions                       # bit set of 1 << SESSION_* that may trade
    uint8_t hours                           # whether sessions count
    uint8_t at_risk                         # a value at risk is limited
    uint8_t paired                          # the correlation is limited
    uint8_t unsettled                       # order updates are down: only cancels pass
    uint8_t pad[4]
    hp_wide_t total                         # sum of worst
    hp_wide_t gross_cap                     # equity times leverage
    hp_wide_t symbol_cap                    # share of the equity
    hp_wide_t sector_cap
    hp_wide_t trade_cap                     # value whose stop loses max_trade_loss
    hp_wide_t moving[2]                     # sum of moving * unit_var, 95 and 99 %
    hp_wide_t var_cap[2]                    # limit less figure
    int64_t held                            # instruments held
    int64_t day_loss                        # nanocash; losses are positive
    int64_t week_loss
    int64_t month_loss
    int64_t drawdown                        # bps below the peak; INT64_MAX - 1 = cannot be told
    int64_t day_orders                      # approved on this trading day
    int64_t limit[64]                       # by LIMIT_*; their values while off
    uint64_t latched[4]                     # bit per strategy: executed too often
    int64_t executions[256]                 # per strategy, on this trading day
    breaker_t breaker
    hp_wide_t sectors[256]                  # sum of worst per sector
    pairs_t pairs
    # what the above comes from
    int64_t figure[16]                      # by FIGURE_*, of those not of one instrument
    int64_t expires[16]                     # ns; INT64_MIN = none
    uint64_t needs                          # bit per FIGURE_*
    uint64_t off                            # bit per LIMIT_* that is switched off
    int64_t low[64]                         # range of each limit
    int64_t high[64]
    int64_t idle[64]                        # compared with while off; INT64_MIN = cannot be
    fill_t *fills                           # ring
    uint64_t fill_head
    uint64_t fill_tail
    uint64_t basis[2]                       # of the newest figures
    uint64_t basis_least                    # an older value at risk misses fills
    int64_t day                             # trading day, days since 1970; 0 = unknown
    int64_t day_base                        # nanocash, P&L of this day in runs before this one
    int64_t day_pnl                         # nanocash of the run, the ledger's word
    int64_t equity
    int64_t peak
    int64_t deep                            # marks in a row at the drawdown that halts
    uint8_t level                           # 1 warn, 2 act, 3 halt: deepest told
    uint8_t halting                         # a drawdown asks for a halt
    uint64_t last_event                     # newest ORDER_EVENT seen
    uint64_t orphans                        # fills of orders not remembered
    uint64_t unknown                        # records of instruments not in the table
    uint64_t refused                        # figures out of range
    uint64_t cancels                        # cancels passed (also in reasons[0])
    uint64_t reasons[64]                    # verdicts by REASON_*; [0] = approved
    uint64_t seen[256]                      # per stream: highest seq of an intent

cdef inline int risk_way(int8_t side) noexcept nogil:
    """Index of a side: 0 buy, 1 sell."""
    return side < 0

cdef inline int64_t risk_remaining(const reservation_t *t) noexcept nogil:
    """nanoqty still reserved of an open order."""
    return max(t.qty - t.cum_qty, 0)

cdef inline int risk_kind_slot(int kind) noexcept nogil:
    """Place of a figure of one instrument in exposure_t.expires."""
    return 3 if kind == HP_FIGURE_SECTOR else kind - HP_FIGURE_UNIT_VAR_95

cdef inline bint risk_spread_wide(const exposure_t *x, int64_t bps) noexcept nogil:
    """Whether the spread is above *bps* of the mid; both sides are there."""
    return hp_wide_less(hp_wide_add(hp_wide_mul(x.ask, bps), hp_wide_mul(x.bid, bps)),
                        hp_wide_mul(hp_sub_saturate(x.ask, x.bid), 20000))

cdef inline void risk_moved(risk_t *r, exposure_t *x, int64_t moving) noexcept nogil:
    """*moving* is what is at risk of the instrument now, besides what is held."""
    cdef int64_t more = moving - x.moving
    r.moving[0] = hp_wide_add(r.moving[0], hp_wide_mul(more, x.unit_var[0]))
    r.moving[1] = hp_wide_add(r.moving[1], hp_wide_mul(more, x.unit_var[1]))
    x.moving = moving

cdef inline void risk_move(risk_t *r, exposure_t *x) noexcept nogil:
    """After a change of open orders or of fills that the value at risk does not know."""
    risk_moved(r, x, hp_wide_nanocash(
        hp_wide_add(x.since, hp_wide_add(x.open_value[0], x.open_value[1]))))

cdef inline void risk_refresh(risk_t *r, exposure_t *x) noexcept nogil:
    """After any change of qty, reference or reservations: the instrument's share of the total."""
    cdef hp_wide_t worst, more
    cdef uint64_t i
    cdef uint8_t held = x.qty != 0 or x.open_orders != 0
    x.value = hp_wide_mul(x.qty, x.reference)
    # Clamped just above what nanocash holds: later checks see OVERFLOW, sums cannot wrap.
    worst = hp_wide_clamp(hp_wide_max(hp_wide_add(x.open_value[0], x.value),
                                      hp_wide_sub(x.open_value[1], x.value)))
    more = hp_wide_sub(worst, x.worst)
    r.total = hp_wide_add(r.total, more)
    r.sectors[x.sector] = hp_wide_add(r.sectors[x.sector], more)
    x.worst = worst
    if held != x.held:
        r.held += held - x.held
        x.held = held
        if r.pairs.held != NULL:
            i = <uint64_t>(x - r.table)
            r.pairs.held[i >> 6] ^= 1ULL << (i & 63)

# Judge one intent at *now* (ns, monotonic).  Returns REASON_*; fills the verdict but for
# link_seq, and the order, whose second line must be zero before and is left so for what waits for
# nothing: on 0 ready to send, token included, else action DENIED.  The order of a cancel is its
# target's identity; of a denied cancel its own, so that nobody ends the target.
cdef int risk_check(risk_t *r, const hp_intent_t *i, int64_t now, hp_verdict_t *v,
                    hp_order_t *o) noexcept nogil
cdef void risk_mark(risk_t *r, const hp_book_t *b) noexcept nogil
# *now*: when it is taken; what latencies are measured by.
cdef void risk_order_event(risk_t *r, const hp_order_event_t *e, int64_t now) noexcept nogil
# The token of an order; see _token.pxd.
cdef uint32_t risk_token(uint64_t key, const hp_order_t *o, uint64_t halt,
                         uint64_t version) noexcept nogil
# Write a CANCEL of an open order that nobody asked for; 0 when the slot holds none to cancel.
cdef int64_t risk_market_worth(const hp_intent_t *i, int64_t touch, int64_t collar) noexcept nogil

cdef bint risk_withdraw(risk_t *r, uint64_t slot, hp_order_t *o) noexcept nogil
