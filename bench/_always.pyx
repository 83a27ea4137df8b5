# distutils: language = c
"""A strategy for the latency bench: asks its model at every quote and always sends one order."""
from hftpipe._clock cimport clock_now
from hftpipe._model cimport Model
from hftpipe._schema cimport (
    HP_ACTION_NEW, HP_BOOK_FLAG_EMPTY, HP_BOOK_FLAG_STALE, HP_ORDER_TYPE_LIMIT, HP_TIF_IOC,
    hp_intent_t)
from hftpipe._strategy cimport (
    STRATEGY_BOOK, STRATEGY_IDLE, STRATEGY_VERSION, Strategy, hp_context_t, hp_out_t,
    strategy_add, strategy_answer)


cdef class Always(Strategy):
    cdef Model model

    def __cinit__(self, *args):
        self.version = STRATEGY_VERSION

    def __init__(self, Model model not None):
        self.model = model

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        cdef hp_intent_t *intent
        cdef float p[3]
        cdef long began
        if c.event == STRATEGY_IDLE:
            self.model.touch(1)
            return 0
        if c.event != STRATEGY_BOOK or c.features == NULL or c.book.ask == 0:
            return 0
        if c.book.flags & (HP_BOOK_FLAG_STALE | HP_BOOK_FLAG_EMPTY):
            return 0
        began = clock_now()
        if self.model.infer(&c.features.mid_return, p) != 0:
            return 0
        self.signal.elapsed, self.signal.model = clock_now() - began, self.model.id
        strategy_answer(self, p[0], p[1], p[2])
        intent = strategy_add(out)
        if intent != NULL:
            intent.side = 1             # the model is asked; the order goes either way
            intent.type, intent.tif = HP_ORDER_TYPE_LIMIT, HP_TIF_IOC
            intent.action, intent.price, intent.qty = HP_ACTION_NEW, c.book.ask, c.spec.lot
        return 0
