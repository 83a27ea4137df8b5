"""Orders and cancels as prepared HTTP/1.1 requests on warm connections.

Each connection carries one request at a time (HTTP/1.1 has no way to tell two answers
apart but their order), so there are several for orders and one kept for cancels.  The head
of both requests, credentials included, lies ready in the connection's own buffers: an order
costs writing its body behind it and one send().

State of a connection::

    DOWN --maintain()--> CONNECTING --maintain()--> IDLE <--> BUSY --lost--> DOWN

Invariants
    H1  A request leaves whole or the connection is given up: what is not known to have been
        refused is answered UNKNOWN, never repeated.
    H2  Every submit() that returned WIRE_SENT is answered by poll() exactly once: ACKED,
        REJECTED or UNKNOWN.  A cancel is answered CANCEL_REJECTED or not at all; when its
        answer is lost it is CANCEL_REJECTED as well: it may be asked again, and if the venue
        did take it, the update says so.
    H3  Bytes belong to the request that is BUSY: an answer after its deadline, or bytes that
        nobody asked for, end the connection, so that no answer meets a later order.
    H4  submit, cancel and poll neither allocate nor take the GIL, except on the first refusal
        of the credentials; with https no less (`_tls`).

How an answer to an order is read (Alpaca's, reference in docs/venues.md):

    200 201     ACKED, or REJECTED when its status says so; UNKNOWN when id or
                client_order_id are not what they must be
    401, 403 without a code     REJECTED, and the wire is broken: the credentials are refused
    422 "client_order_id must be unique"    UNKNOWN: the venue has that order already
    408, 3xx, 5xx, no answer, an answer that is none    UNKNOWN
    429         REJECTED (VENUE_RATE), and no order is sent for a while
    other 4xx   REJECTED; 403 and 422 share their codes, so the text tells the reason (REFUSALS)

Rate limiter: a bucket of our own, and what X-RateLimit-* say of the venue's, which all senders of
the account fill.  Both keep a reserve that only cancels may use.  A 429 to an order holds orders,
for longer each time; cancels go on by the reserve.  A 429 to a cancel holds cancels as well, for
CANCEL_HOLD_NS: what takes risk away is asked for again soon.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .._schema cimport hp_order_t, hp_update_t
from .._wire cimport Wire
from ._tls cimport Trust, tls_t

cdef enum:
    HTTP_DOWN = 0
    HTTP_CONNECTING = 1
    HTTP_IDLE = 2
    HTTP_BUSY = 3
    HTTP_CONNECTIONS = 32       # at most
    HTTP_REQUEST_SIZE = 2048    # bytes of the largest request
    HTTP_ANSWER_SIZE = 65536    # bytes of the largest answer

cdef struct http_connection_t:
    int fd                      # -1 while DOWN
    tls_t *tls                  # NULL: plain, or not up
    int state                   # HTTP_*
    int answer                  # ORDER_EVENT_* ready for poll(), or 0
    uint8_t reason              # of a refusal: REASON_*, or 0
    bint cancelling             # the request is a cancel
    bint spare                  # for cancels only
    int8_t side
    uint16_t instrument
    uint64_t order
    uint64_t venue_id
    uint64_t venue_id_low
    int64_t deadline            # of the answer, or of connecting
    int64_t retry               # not before
    uint32_t failures           # in a row
    uint32_t index
    uint32_t name_at            # client order id in `order_text`
    uint32_t name_size
    uint32_t text_size          # of the request on the wire
    uint32_t text_sent
    uint32_t answer_size        # bytes read of the answer
    char *text                  # the request on the wire: order_text or cancel_text
    char *order_text
    char *cancel_text
    char *answer_text

cdef struct http_bucket_t:      # rate limiter; time is the token: `cost` ns each
    int64_t cost                # 0 = lifted
    int64_t cost_min            # as configured; the venue may allow less
    int64_t burst               # tokens
    int64_t spare               # tokens that only cancels may use
    int64_t level               # ns saved up
    int64_t level_max
    int64_t reserve             # ns that only cancels may use
    int64_t last                # monotonic
    int64_t hold                # no order is sent before; after a 429
    int64_t hold_next           # length of the next one
    int64_t hold_cancels        # no cancel is sent before
    int64_t left                # requests that the venue still takes; -1 = not known
    int64_t window              # until then, monotonic

cdef struct http_counters_t:
    uint64_t sent
    uint64_t cancels
    uint64_t acked
    uint64_t rejected
    uint64_t cancels_rejected
    uint64_t unknown
    uint64_t timeouts
    uint64_t throttled          # submits and cancels that found no token
    uint64_t limited            # answers 429
    uint64_t errors             # answers that are none, orders that cannot be written
    uint64_t lost               # connections
    uint64_t connects


cdef class AlpacaWire(Wire):
    cdef http_connection_t _connection[HTTP_CONNECTIONS]
    cdef uint32_t _count
    cdef uint32_t _next         # round robin
    cdef uint32_t _busy
    cdef uint32_t _pending      # answers ready
    cdef uint32_t _up           # order connections IDLE or BUSY
    cdef uint32_t _head_size    # of an order request, up to its length
    cdef uint32_t _cancel_at    # venue id in a cancel request
    cdef uint32_t _cancel_size
    cdef int _poller            # epoll
    cdef int64_t _timeout
    cdef int64_t _probe         # when idle connections are looked at next
    cdef http_bucket_t _bucket
    cdef http_counters_t _counters
    cdef bint dirty             # maintain() has something to do
    cdef bint denied            # credentials refused
    cdef bint secure
    cdef uint32_t _instruments
    cdef uint32_t _symbol_room  # bytes of one entry of _symbols
    cdef char *_symbols         # `{"symbol":"...",` of each instrument, size in its first byte
    cdef char *_kinds           # 16 x KIND_SIZE: side, type and tif; size in the first byte
    cdef object _address
    cdef list _tls              # of each connection: None, or its Session
    cdef list _opening          # of each connection while CONNECTING: its socket
    cdef object _resolved
    cdef object _trouble        # the last error of connecting
    cdef Trust _trust           # None: http
    cdef object _host
    cdef object _jitter

    cdef int submit(self, const hp_order_t *order, int64_t now) noexcept nogil
    cdef int cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now) noexcept nogil
    cdef int poll(self, hp_update_t *out, int64_t now) noexcept nogil

    cdef http_connection_t *_idle(self, bint cancelling) noexcept nogil
    cdef bint _take(self, int64_t now, bint cancelling) noexcept nogil
    cdef int _send(self, http_connection_t *k, uint32_t size, int64_t now) noexcept nogil
    cdef void _lost(self, http_connection_t *k) noexcept nogil
    cdef void _ready(self, http_connection_t *k) noexcept nogil
    cdef bint _answered(self, http_connection_t *k, bint ended) noexcept nogil
    cdef void _give_back(self) noexcept nogil
    cdef void _settle(self, http_connection_t *k, int kind) noexcept nogil
    cdef void _judge(self, http_connection_t *k, int status, const char *body,
                     uint32_t size) noexcept nogil
    cdef void _limited(self, http_connection_t *k, int64_t wait) noexcept nogil
    cdef void _allowance(self, int64_t limit, int64_t left, int64_t seconds) noexcept nogil
    cdef void _deny(self, int status) noexcept nogil
    # Bytes moved; 0 = end of stream; -1 = not now; -2 = failed.
    cdef ssize_t _read(self, http_connection_t *k) noexcept nogil
    cdef ssize_t _write(self, http_connection_t *k, const char *text,
                        uint32_t size) noexcept nogil
    cdef bint _connect(self, http_connection_t *k, int64_t now) except -1
    cdef void _failed(self, http_connection_t *k, int64_t now, error)
