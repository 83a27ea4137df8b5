"""A strategy that is a C function; see ``_cfunc.pxd`` and ``jit.py``."""
cimport cython
from libc.math cimport NAN
from libc.stdlib cimport free

from .._memory cimport hp_lines
from .._strategy cimport (
    STRATEGY_HALT, STRATEGY_IDLE, STRATEGY_STOP, STRATEGY_VERSION, strategy_answer)

from hftpipe.errors import ConfigError


@cython.final
cdef class CFunc(Strategy):
    """Ask a C function at every event, without the GIL.

    Parameters
    ----------
    function
        Anything with an int `address`, as numba's ``cfunc`` has, of the type ``cfunc_t``.
    """

    def __cinit__(self, *args):
        self.version = STRATEGY_VERSION

    def __init__(self, function):
        address = getattr(function, "address", None)
        if not isinstance(address, int) or address <= 0:
            raise ConfigError(f"wanted a C function with an address, found {function!r}")
        if self.zeros != NULL:
            raise ValueError("it is made once")
        self.zeros = <hp_features_t *>hp_lines(1, sizeof(hp_features_t))
        if self.zeros == NULL:
            raise MemoryError
        self.keep, self.function = function, <cfunc_t><size_t>address

    def __dealloc__(self):
        free(self.zeros)

    cdef int on_event(self, const hp_context_t *c, hp_out_t *out) noexcept nogil:
        cdef float answer[3]
        cdef int32_t count
        if c.event == STRATEGY_IDLE:
            return 0
        answer[0] = answer[1] = answer[2] = NAN
        count = self.function(
            c.event, c.instrument, c.now, c.book,
            c.features if c.features != NULL else self.zeros, c.features != NULL,
            c.order_event if c.order_event != NULL else <const void *>self.zeros, c.holding, c.spec,
            out.intents, out.room, answer)
        if count > <int64_t>out.room:
            return self._refuse(count, out.room)
        if count > 0:
            out.count = <uint32_t>count
        if answer[0] == answer[0] and answer[1] == answer[1] and answer[2] == answer[2]:
            self.signal.model, self.signal.flags, self.signal.elapsed = 0, 0, 0
            strategy_answer(self, answer[0], answer[1], answer[2])
        return STRATEGY_HALT if count < 0 else 0

    cdef int _refuse(self, int32_t count, uint32_t room) noexcept nogil:
        with gil:
            self.error = ConfigError(f"a C function wanted {count} intents, there was room for "
                                     f"{room}")
        return STRATEGY_STOP
