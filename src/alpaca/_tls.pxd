"""TLS on a socket that a loop without the GIL reads and writes.

OpenSSL does it; ``_tls.h`` says which.  Bytes between the socket and the caller::

    recv() --> cipher[in_head, in_tail) --SSL_read--> caller
    send() <-- out[0, out_size) <--SSL_write--

Invariants
    T1  Nothing passes before chain and host name are verified, with TLS 1.2 or newer; there is
        no way to turn that off.  No renegotiation, no compression.
    T2  One thread at a time uses a session; which one may change.
    T3  tls_read makes at most one recv(); `stamp` is the time right after the recv() that
        brought the bytes, however much later they are decrypted.
    T4  tls_write takes all or nothing.  What of it the socket did not take waits in `out`, and
        leaves before anything else.
    T5  An end without the peer's close_notify is a failure, not an end: somebody may have cut it.
    T6  After the handshake nothing here allocates or takes the GIL.
"""
from libc.stdint cimport int64_t, uint8_t

cdef enum:
    TLS_IN_SIZE = 65536         # bytes of one recv() at most
    TLS_OUT_SIZE = 20480        # a record of 16 KiB, and what the protocol adds
    TLS_WRITE_MAX = 16384       # bytes of one tls_write

cdef struct tls_t:
    void *ssl
    int fd
    bint dry                    # nothing is left to decrypt: the next read begins with recv()
    bint failed                 # for good
    unsigned long code          # OpenSSL's, of the failure; 0 = it gave none
    size_t in_head
    size_t in_tail
    size_t out_size
    int64_t stamp               # T3
    int64_t handed              # ns, monotonic: right before the newest send()
    uint8_t *cipher             # [TLS_IN_SIZE]
    uint8_t *out                # [TLS_OUT_SIZE]

# As recv(): bytes, 0 at the end, -1 with errno (EAGAIN: not now); *ts is set with the bytes.
cdef ssize_t tls_read(void *context, void *data, size_t size, int64_t *ts) noexcept nogil

# *size*, or -1 with errno; EAGAIN: nothing was taken.
cdef ssize_t tls_write(void *context, const void *data, size_t size) noexcept nogil


cdef class Trust:
    cdef void *context          # SSL_CTX


cdef class Session:
    cdef tls_t t
    cdef Trust _trust
    cdef object _name           # of the peer, for messages

    cdef object refused(self)
