"""Client side of a WebSocket for the spinning loop: receive, take frames apart, answer pings.

The handshake, authentication and subscription are done before, slowly, by ``session.py`` on
the same socket; from then on a loop without the GIL calls ws_poll().

Bytes of `data`, while a message comes in fragments (else message_at = head, message_size = 0)::

    0      message_at   + message_size     head            tail        capacity
    | done |  payload so far  |  gone       |  unparsed     |  free     |

Invariants
    W1  message_at + message_size <= head <= tail <= capacity.
    W2  A payload handed out stays valid until the next ws_poll() or ws_send() of the receiver.
    W3  A message larger than message_max is refused on its header; capacity is message_max and
        64 KiB, so that what is allowed always fits after moving it to the front.
    W4  After a negative result the receiver is finished: it gives the same result for ever.

`ts_recv` of a message is the time right after the recv() that brought its first byte, and with
TLS the one that brought the record with that byte.

TLS: `read` and `write` are those of ``_tls.pxd``, which decrypts on this thread without the GIL;
NULL means recv() and send() on `fd`.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from ._tls cimport Session

cdef enum:                      # what ws_poll returns
    WS_MESSAGE = 1              # one whole message
    WS_NONE = 0                 # not now
    WS_CLOSED = -1              # the peer said goodbye, or only closed; see `close_code`
    WS_ERROR = -2               # the socket failed; see `error`
    WS_PROTOCOL = -3            # not what RFC 6455 allows a server to send
    WS_SIZE = -4                # a message larger than message_max

cdef enum:
    WS_TEXT = 1
    WS_BINARY = 2
    WS_CLOSE = 8
    WS_PING = 9
    WS_PONG = 10
    WS_OUT_SIZE = 16384         # bytes queued for sending at most
    WS_CLOSE_NONE = 1005        # RFC 6455 7.4.1: no code was given
    WS_CLOSE_LOST = 1006        # closed without a close frame

# Bytes moved, or -1 with errno (EAGAIN: not now), 0 from read: end of stream; read sets *ts to
# when they came.
ctypedef ssize_t (*ws_read_t)(void *context, void *data, size_t size, int64_t *ts) noexcept nogil
ctypedef ssize_t (*ws_write_t)(void *context, const void *data, size_t size) noexcept nogil

cdef struct ws_receiver_t:
    int fd
    int state                   # WS_NONE, or the negative result (W4)
    int error                   # errno of WS_ERROR
    int close_code              # of WS_CLOSED
    int opcode                  # WS_TEXT or WS_BINARY: of the message handed out
    int fragments               # of the message being put together; 0 = none
    ws_read_t read
    ws_write_t write
    void *context
    uint8_t *data
    size_t capacity
    size_t message_max
    size_t head
    size_t tail
    size_t message_at
    size_t message_size
    size_t mark                 # bytes before it arrived at ts_head, from it on at ts_tail
    int64_t ts_head
    int64_t ts_tail
    uint64_t random             # for masking keys; xorshift, seeded by the kernel
    uint64_t frames             # data frames read
    uint64_t pings              # pings answered
    uint64_t pongs              # pongs read
    uint32_t out_size           # bytes waiting in `out`
    uint8_t out[WS_OUT_SIZE]

# The next message, if it is whole; one recv() at most.
cdef int ws_poll(ws_receiver_t *r, const uint8_t **payload, size_t *size,
                 int64_t *ts_recv) noexcept nogil

# Queue a frame and send what the socket takes: 1, or 0 when there is no room for it.
cdef bint ws_send(ws_receiver_t *r, int opcode, const uint8_t *payload, size_t size) noexcept nogil


cdef class Receiver:
    cdef ws_receiver_t r
    cdef object _socket         # owns the descriptor
    cdef Session _tls           # None: plain
