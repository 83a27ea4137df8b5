"""How much to trade: an equity, a price and a rule give a quantity.

    fixed       qty
    equity      share * equity / price
    fraction    share * equity / (stop * price): lose `share` of the equity when the stop is hit
    kelly       kelly * (win - (1 - win) / payoff) * equity / price, the share capped at `cap`
    volatility  as fraction, times base / current volatility
    equal       equity / instruments / price

Integers throughout; every division rounds down, then the quantity is cut to whole lots and to
`most`.  0 is no order.  A price, equity or volatility that is not positive, or no number, gives 0
and is counted in `bad`.  The equity is what the configuration says the account began with: the
strategies stage does not hear of the ledger's.
"""
from libc.stdint cimport int64_t, uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    static inline int64_t hp_size_down(__int128 v) {
      return v > INT64_MAX ? INT64_MAX : (int64_t)v;
    }
    /* share (1e-9) of cash */
    static inline int64_t hp_size_share(int64_t cash, int64_t share) {
      return hp_size_down((__int128)cash * share / 1000000000);
    }
    /* what cash buys; price > 0 */
    static inline int64_t hp_size_bought(int64_t cash, int64_t price) {
      return hp_size_down((__int128)cash * 1000000000 / price);
    }
    /* what loses cash when the price moves by stop (1e-9 of it); both > 0: 123 over 93 bits */
    static inline int64_t hp_size_risked(int64_t cash, int64_t price, int64_t stop) {
      return hp_size_down((__int128)cash * 1000000000000000000 / ((__int128)price * stop));
    }
    static inline int64_t hp_size_scaled(int64_t qty, int64_t times, int64_t over) {
      return hp_size_down((__int128)qty * times / over);
    }
    """
    int64_t hp_size_share(int64_t cash, int64_t share) noexcept
    int64_t hp_size_bought(int64_t cash, int64_t price) noexcept
    int64_t hp_size_risked(int64_t cash, int64_t price, int64_t stop) noexcept
    int64_t hp_size_scaled(int64_t qty, int64_t times, int64_t over) noexcept

cdef enum:
    SIZE_FIXED = 0
    SIZE_EQUITY = 1
    SIZE_FRACTION = 2
    SIZE_KELLY = 3
    SIZE_VOLATILITY = 4
    SIZE_EQUAL = 5

cdef struct sizing_t:
    int64_t rule                # SIZE_*
    int64_t qty                 # nanoqty, of SIZE_FIXED
    int64_t equity              # nanocash
    int64_t share               # 1e-9 of the equity; of kelly and equal worked out beforehand
    int64_t stop                # 1e-9 of the price
    int64_t base                # volatility, 1e-9
    int64_t lot                 # nanoqty
    int64_t most                # nanoqty
    uint64_t bad                # times that the inputs were no good


cdef inline int64_t sizing_qty(sizing_t *s, int64_t price, double volatility) noexcept nogil:
    """Quantity of one order at *price*; *volatility* is for SIZE_VOLATILITY only."""
    cdef int64_t qty, now
    if s.rule == SIZE_FIXED:
        qty = s.qty
    elif price <= 0 or s.equity <= 0:
        s.bad += 1
        return 0
    elif s.rule == SIZE_FRACTION or s.rule == SIZE_VOLATILITY:
        if s.stop <= 0:
            s.bad += 1
            return 0
        qty = hp_size_risked(hp_size_share(s.equity, s.share), price, s.stop)
        if s.rule == SIZE_VOLATILITY:
            if not 0 < volatility < 1e9:        # nor when it is no number
                s.bad += 1
                return 0
            now = <int64_t>(volatility * 1e9)
            if now <= 0:
                s.bad += 1
                return 0
            qty = hp_size_scaled(qty, s.base, now)
    else:
        qty = hp_size_bought(hp_size_share(s.equity, s.share), price)
    if qty > s.most:
        qty = s.most
    return qty - qty % s.lot if qty > 0 else 0


cdef class Sizing:
    cdef sizing_t s
