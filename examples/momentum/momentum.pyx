"""Buy what has risen lately, one lot, on trades."""
from hftpipe._schema cimport HP_ACTION_NEW, HP_ORDER_TYPE_LIMIT, HP_TIF_IOC, hp_intent_t
from hftpipe._strategy cimport (
    STRATEGY_TRADE, STRATEGY_VERSION, Strategy, hp_context_t, hp_out_t, strategy_add)

cdef class Momentum(Strategy):
    def __cinit__(self, *args):
        self.version = STRATEGY_VERSION

    @classmethod
    def from_config(cls, params, instruments):
        return cls()

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        cdef hp_intent_t *intent
        if c.event != STRATEGY_TRADE or c.features == NULL or c.holding.qty + c.holding.open_buy > 0:
            return 0
        if c.features.mid_momentum_fast > 0 and c.book.ask > 0:
            intent = strategy_add(out)
            if intent != NULL:
                intent.side, intent.action = 1, HP_ACTION_NEW
                intent.type, intent.tif = HP_ORDER_TYPE_LIMIT, HP_TIF_IOC
                intent.price, intent.qty = c.book.ask, c.spec.lot
        return 0
