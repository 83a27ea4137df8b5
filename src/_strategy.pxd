"""The socket a strategy plugs into; version 1, frozen.

A strategy is a cdef class deriving from :class:`Strategy` in *your* package::

    from hftpipe._schema cimport hp_intent_t
    from hftpipe._strategy cimport Strategy, hp_context_t, hp_out_t, strategy_add

    cdef class Momentum(Strategy):
        cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil:
            ...

The stage calls it through one C function pointer, without the GIL; it cannot
raise.  A strategy that must give up sets ``error`` (taking the GIL) and returns
STRATEGY_STOP: the stage stops, the group halts, nothing more is sent.  One that only wants
trading to stop returns STRATEGY_HALT: the halt epoch moves, the stage runs on.

What may change in version 2 and later: fields are only ever appended to the
three structs, `version` tells how many there are.  A strategy built for another
version is refused when it is loaded.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from ._schema cimport (
    hp_book_t, hp_features_t, hp_instrument_t, hp_intent_t, hp_order_event_t, hp_signal_t)

# A record inside a Python object: objects are 16-byte aligned, not 64 as a ring's slots are,
# and the compiler must not be told otherwise.
cdef extern from *:
    """
    typedef hp_signal_t hp_signal_held_t __attribute__((aligned(16)));
    """
    ctypedef hp_signal_t hp_signal_held_t

cdef enum:
    STRATEGY_VERSION = 1

cdef enum:                      # hp_context_t.event: why the strategy is called
    STRATEGY_BOOK = 1           # a new state of a book: book, features
    STRATEGY_TRADE = 2          # the same, caused by a trade: book.last_*
    STRATEGY_ORDER = 3          # a step of one of our orders: order_event
    STRATEGY_TIMER = 4          # time passed: now
    # Nothing happened: keep caches warm, change no state; room is 0.  Not an event: it is
    # neither recorded nor replayed.
    STRATEGY_IDLE = 5

cdef enum:                      # what on_event returns
    STRATEGY_OK = 0
    STRATEGY_HALT = 1           # stop trading; asked again at the next event
    STRATEGY_STOP = -1          # `error` says why

cdef struct hp_holding_t:       # what the strategy stage knows of one instrument
    int64_t qty                 # nanoqty, from fills; negative = short
    int64_t open_buy            # nanoqty of buy intents not yet filled nor ended
    int64_t open_sell           # nanoqty of sell intents not yet filled nor ended
    int64_t cost                # nanocash paid for qty; sign of qty

cdef struct hp_context_t:
    uint32_t version            # STRATEGY_VERSION of the stage
    uint8_t event               # STRATEGY_*
    uint8_t strategy            # this strategy's index
    uint16_t instrument
    int64_t now                 # ns, monotonic: when the event was received; never a clock
    const hp_book_t *book               # newest state of this instrument; never NULL
    const hp_features_t *features       # newest vector of this instrument; NULL before warm-up
    const hp_order_event_t *order_event  # STRATEGY_ORDER only, else NULL
    const hp_holding_t *holding         # this instrument's; never NULL
    const hp_instrument_t *spec         # tick, lot; never NULL

cdef struct hp_out_t:
    hp_intent_t *intents        # room of them, zeroed but for what belongs to the stage
    uint32_t room               # how many may be written; 0 when a link is full
    uint32_t count              # how many were


cdef inline hp_intent_t *strategy_add(hp_out_t *out) noexcept nogil:
    """The next intent to fill, or NULL when there is no room.

    Fill side, type, tif, action, price, qty (target for a cancel; stop, trail or trail_share for
    what waits for a trade).  Identity, cause,
    ts_recv, hop, instrument and strategy are the stage's; instrument may be changed.
    """
    if out.count >= out.room:
        return NULL
    out.count += 1
    return &out.intents[out.count - 1]


cdef class Strategy:
    cdef readonly object error  # None, or the exception that stopped the strategy
    cdef readonly int version   # STRATEGY_VERSION it was built for
    cdef public str name        # in the configuration; "" outside one
    cdef public bint shadow     # sees everything, trades nothing; the stage sees to it
    # A strategy that has an answer in this on_event sets `asked` and fills p_*, confidence,
    # model, elapsed, decision and flags; the rest is the stage's, which clears `asked` before
    # each call and stores the record.
    cdef bint asked
    cdef hp_signal_held_t signal
    cdef uint64_t figures[28]   # HP_PER_*, what the page tells of it
    cdef list notices           # [(level, text)] for the log; the host takes them

    # Look at *context*, add 0..n intents to *out*; STRATEGY_*.
    cdef int on_event(self, const hp_context_t *context, hp_out_t *out) noexcept nogil
    # The strategies inside that have answers of their own (an ensemble's members): the n-th,
    # NULL when there are no more.
    cdef void *member(self, int n) noexcept nogil
    # The strategy itself, or the one that it only wraps: whose figures and notices count.
    cdef void *core(self) noexcept nogil
    # Called with the GIL every few milliseconds: bring the figures up to date.
    cdef object maintain(self)


cdef inline void strategy_answer(Strategy s, float down, float flat, float up) noexcept nogil:
    """Fill the answer of this event: the likeliest decides, flat where none is alone."""
    s.signal.p_down, s.signal.p_flat, s.signal.p_up = down, flat, up
    s.signal.decision = 0
    if down > flat and down > up:
        s.signal.decision = -1
    elif up > flat and up > down:
        s.signal.decision = 1
    s.signal.confidence = max(down, flat, up)
    s.asked = True


cdef class PyStrategy(Strategy):
    cdef object _on_event
    cdef object _views          # numpy arrays of one record each, made once, and the intents
    cdef void *_book            # their memory; copied into and from, never used as structs:
    cdef void *_features        # numpy aligns less than they ask for
    cdef void *_order_event
    cdef char *_intents

    cdef int _call(self, const hp_context_t *context, hp_out_t *out) except -1
    cdef int _answer(self, said) except -1
