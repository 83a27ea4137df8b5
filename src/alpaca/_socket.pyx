"""Receive WebSocket messages without the GIL; the layout and the rules stand in ``_socket.pxd``."""
cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint16_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove

from .._clock cimport clock_now
from ._tls cimport Session, tls_read, tls_write

import os
import select

from hftpipe.errors import DataError, DeadlineError

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from *:
    """
    static inline uint16_t hp_ws_be16(const uint8_t *p) {
      return (uint16_t)(p[0] << 8 | p[1]);
    }
    static inline uint64_t hp_ws_be64(const uint8_t *p) {
      uint64_t v;
      memcpy(&v, p, 8);
      return __builtin_bswap64(v);
    }
    """
    uint16_t hp_ws_be16(const uint8_t *p) noexcept nogil
    uint64_t hp_ws_be64(const uint8_t *p) noexcept nogil

cdef enum:
    SLACK = 65536               # W3
    NEED_MORE = 2               # of _frame: not all of it is here
    AGAIN = 3                   # of _frame: took one that is no whole message


cdef int _finish(ws_receiver_t *r, int state) noexcept nogil:
    r.state = state
    return state


cdef void _flush(ws_receiver_t *r) noexcept nogil:
    """Send what waits; what the socket does not take now stays."""
    cdef ssize_t sent
    while r.out_size:
        if r.write != NULL:
            sent = r.write(r.context, r.out, r.out_size)
        else:
            sent = send(r.fd, r.out, r.out_size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent <= 0:
            return              # a broken connection shows on the next read
        r.out_size -= <uint32_t>sent
        memmove(r.out, r.out + sent, r.out_size)


cdef bint ws_send(ws_receiver_t *r, int opcode, const uint8_t *payload,
                  size_t size) noexcept nogil:
    cdef uint8_t key[4]
    cdef uint8_t *p = r.out + r.out_size
    cdef size_t i, head = 6 if size < 126 else 8
    if size > 65535 or head + size > WS_OUT_SIZE - r.out_size:
        return 0
    r.random ^= r.random << 13
    r.random ^= r.random >> 7
    r.random ^= r.random << 17
    memcpy(key, &r.random, 4)
    p[0] = <uint8_t>(0x80 | opcode)
    if size < 126:
        p[1] = <uint8_t>(0x80 | size)
    else:
        p[1] = 0x80 | 126
        p[2], p[3] = <uint8_t>(size >> 8), <uint8_t>size
    memcpy(p + head - 4, key, 4)
    for i in range(size):
        p[head + i] = payload[i] ^ key[i & 3]
    r.out_size += <uint32_t>(head + size)
    _flush(r)
    return 1


cdef int _control(ws_receiver_t *r, int opcode, const uint8_t *payload,
                  size_t size) noexcept nogil:
    if opcode == WS_PING:
        r.pings += 1
        ws_send(r, WS_PONG, payload, size)      # no room: the peer reads nothing, and will see
        return AGAIN
    if opcode == WS_PONG:
        r.pongs += 1
        return AGAIN
    if size == 1:
        return _finish(r, WS_PROTOCOL)
    r.close_code = hp_ws_be16(payload) if size else WS_CLOSE_NONE
    if size > 2:
        size = 2                                # answer with the code only
    ws_send(r, WS_CLOSE, payload, size)
    return _finish(r, WS_CLOSED)


cdef int _frame(ws_receiver_t *r) noexcept nogil:
    """Take one frame off [head, tail): WS_MESSAGE, AGAIN, NEED_MORE, or finished."""
    cdef const uint8_t *p = r.data + r.head
    cdef size_t here = r.tail - r.head, head = 2, at
    cdef uint64_t size
    cdef int opcode
    cdef bint final
    if here < 2:
        return NEED_MORE
    opcode, final = p[0] & 15, p[0] >> 7
    if p[0] & 0x70 or p[1] & 0x80:              # an extension we did not ask for; masked
        return _finish(r, WS_PROTOCOL)
    size = p[1] & 0x7f
    if opcode >= WS_CLOSE:
        if opcode > WS_PONG or not final or size > 125:
            return _finish(r, WS_PROTOCOL)
    elif opcode > WS_BINARY or (opcode == 0) != (r.fragments > 0):
        return _finish(r, WS_PROTOCOL)
    if size == 126:
        head = 4
        if here < head:
            return NEED_MORE
        size = hp_ws_be16(p + 2)
    elif size == 127:
        head = 10
        if here < head:
            return NEED_MORE
        size = hp_ws_be64(p + 2)
    if opcode < WS_CLOSE and size > r.message_max - r.message_size:
        return _finish(r, WS_SIZE)
    if here < head + size:
        return NEED_MORE
    at = r.head + head
    if opcode >= WS_CLOSE:
        r.head = at + size
        if not r.fragments:
            r.message_at = r.head
        return _control(r, opcode, p + head, size)
    r.frames += 1
    if opcode:
        r.opcode, r.message_at, r.message_size = opcode, at, size
    else:
        memmove(r.data + r.message_at + r.message_size, r.data + at, size)
        r.message_size += size
    r.head = at + size
    if final:
        r.fragments = 0
        return WS_MESSAGE
    r.fragments += 1
    return AGAIN


cdef void _make_room(ws_receiver_t *r) noexcept nogil:
    """Move what is needed to the front when the end is near."""
    cdef size_t rest = r.tail - r.head
    if rest == 0 and not r.fragments:
        r.head = r.tail = r.message_at = r.mark = 0
        return
    if r.capacity - r.tail >= SLACK // 2:
        return
    if not r.fragments:
        r.message_at, r.message_size = r.head, 0
    r.mark = r.mark - r.head if r.mark > r.head else 0
    memmove(r.data, r.data + r.message_at, r.message_size)
    memmove(r.data + r.message_size, r.data + r.head, rest)
    r.message_at, r.head = 0, r.message_size
    r.tail = r.head + rest
    r.mark += r.head


cdef int ws_poll(ws_receiver_t *r, const uint8_t **payload, size_t *size,
                 int64_t *ts_recv) noexcept nogil:
    cdef ssize_t got
    cdef int64_t now = 0
    cdef int outcome, code
    cdef bint tried = 0
    if r.state < 0:
        return r.state
    if r.out_size:
        _flush(r)
    while True:
        if not r.fragments:
            r.message_size = 0
            r.message_at = r.head
            if r.head >= r.mark:
                r.ts_head = r.ts_tail           # the next message begins in the newer part
        outcome = _frame(r)
        if outcome == WS_MESSAGE:
            payload[0] = r.data + r.message_at
            size[0] = r.message_size
            ts_recv[0] = r.ts_head
            return WS_MESSAGE
        if outcome < 0:
            return outcome
        if outcome == AGAIN:
            continue
        if tried:
            return WS_NONE
        tried = 1
        _make_room(r)
        if r.read != NULL:
            got = r.read(r.context, r.data + r.tail, r.capacity - r.tail, &now)
        else:
            got = recv(r.fd, r.data + r.tail, r.capacity - r.tail, MSG_DONTWAIT)
            now = clock_now() if got > 0 else 0
        if got > 0:
            r.ts_tail = now
            r.mark = r.tail
            r.tail += <size_t>got
            continue
        if got == 0:
            r.close_code = WS_CLOSE_LOST
            return _finish(r, WS_CLOSED)
        code = errno
        if code == EAGAIN or code == EINTR:
            return WS_NONE
        r.error = code
        return _finish(r, WS_ERROR)


@cython.final
cdef class Receiver:
    """A WebSocket after its handshake.

    Parameters
    ----------
    sock : socket.socket
        Connected and upgraded.  It is made non-blocking and belongs to the receiver.
    leftover : bytes
        What came behind the response of the handshake.
    message_max : int, default 1 MiB
        Bytes; a larger message ends the connection.
    tls : Session, optional
        Of that socket, after its handshake; the default is plain.
    """

    def __init__(self, sock, leftover=b"", size_t message_max=1 << 20, Session tls=None):
        cdef const unsigned char[::1] first = leftover
        if self.r.data != NULL:
            raise RuntimeError("a receiver is initialised once")
        if <size_t>first.shape[0] > message_max + SLACK:
            raise DataError(f"{len(leftover)} bytes behind the handshake, allowed are "
                            f"{message_max + SLACK}")
        self.r.capacity, self.r.message_max = message_max + SLACK, message_max
        self.r.data = <uint8_t *>malloc(self.r.capacity)
        if self.r.data == NULL:
            raise MemoryError
        sock.setblocking(False)
        self._socket = sock
        self.r.fd = sock.fileno()
        if tls is not None:
            if tls.t.fd != self.r.fd:
                raise ValueError("the TLS session is of another socket")
            self._tls = tls
            self.r.read, self.r.write, self.r.context = tls_read, tls_write, &tls.t
        self.r.random = int.from_bytes(os.urandom(8), "little") | 1
        if first.shape[0]:
            memcpy(self.r.data, &first[0], <size_t>first.shape[0])
            self.r.tail = <size_t>first.shape[0]
        self.r.ts_head = self.r.ts_tail = clock_now()

    def __dealloc__(self):
        free(self.r.data)

    def poll(self):
        """``(opcode, payload, ts_recv)`` of the next whole message, or None when there is none now.

        Raises
        ------
        ConnectionError
            If the connection is closed or failed.
        DataError
            If the peer breaks the protocol or sends a message larger than `message_max`.
        TlsError
            If what it sends is not what it encrypted.
        """
        cdef const uint8_t *payload = NULL
        cdef size_t size = 0
        cdef int64_t ts_recv = 0
        cdef int outcome
        with nogil:
            outcome = ws_poll(&self.r, &payload, &size, &ts_recv)
        if outcome == WS_MESSAGE:
            return self.r.opcode, (<const char *>payload)[:size], ts_recv
        if outcome == WS_NONE:
            return None
        raise self.ended

    @property
    def ended(self) -> Exception | None:
        """The error that :meth:`poll` raises for ever once the receiver is finished, else None."""
        if self.r.state >= 0:
            return None
        if self.r.state == WS_CLOSED:
            return ConnectionError(f"the venue closed the stream, code {self.r.close_code}")
        if self.r.state == WS_ERROR:
            if self._tls is not None and self._tls.t.failed:
                return self._tls.refused()
            return ConnectionError(self.r.error, os.strerror(self.r.error))
        if self.r.state == WS_SIZE:
            return DataError(f"message is larger than {self.r.message_max} bytes")
        return DataError("the venue sent a frame that RFC 6455 does not allow")

    def receive(self, double timeout) -> bytes:
        """Payload of the next message; sleeps until it is there.

        Raises
        ------
        DeadlineError
            If none came within *timeout* seconds.
        ConnectionError, DataError, TlsError
            As for :meth:`poll`.
        """
        cdef int64_t deadline = clock_now() + <int64_t>(timeout * 1e9)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        while True:
            found = self.poll()
            if found is not None:
                return found[1]
            left = deadline - clock_now()
            if left <= 0:
                raise DeadlineError(f"wanted an answer within {timeout:g} s, found none")
            if self._tls is None or self._tls.t.dry:        # else there is more to decrypt
                poller.poll(left / 1e6)

    def send(self, int opcode, payload):
        """Send one frame (1 text, 2 binary, 9 ping).

        Raises
        ------
        ConnectionError
            If it does not fit what is still waiting to be sent.
        """
        cdef const unsigned char[::1] view = payload
        cdef size_t size = <size_t>view.shape[0]
        if not ws_send(&self.r, opcode, &view[0] if size else NULL, size):
            raise ConnectionError(f"no room to send {size} bytes, {self.r.out_size} are waiting")

    def close(self, int code=1000):
        """Say goodbye and close the socket."""
        cdef uint8_t raw[2]
        raw[0], raw[1] = <uint8_t>(code >> 8), <uint8_t>code
        if self.r.state >= 0:
            ws_send(&self.r, WS_CLOSE, raw, 2)
            self.r.close_code = code
            self.r.state = WS_CLOSED
        if self._tls is not None:
            self._tls.close()
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self.r.fd

    @property
    def close_code(self) -> int:
        """Why it was closed, RFC 6455 7.4.1; 0 while it is open."""
        return self.r.close_code

    @property
    def counters(self) -> dict[str, int]:
        """Data frames read, pings answered, pongs read."""
        return {"frames": self.r.frames, "pings": self.r.pings, "pongs": self.r.pongs}
