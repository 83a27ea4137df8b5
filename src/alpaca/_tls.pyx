"""TLS through OpenSSL without the GIL; the rules stand in ``_tls.pxd``."""
cimport cython
from libc.errno cimport EAGAIN, ECONNRESET, EMSGSIZE, EPROTO, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memmove

from .._clock cimport clock_now
from .._memory cimport hp_lines

import ipaddress
import os
import select
import ssl
import time

from hftpipe.errors import ConfigError, DeadlineError, TlsError

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

ctypedef int (*bio_read_t)(void *bio, char *data, int size) noexcept nogil
ctypedef int (*bio_write_t)(void *bio, const char *data, int size) noexcept nogil
ctypedef long (*bio_ctrl_t)(void *bio, int what, long value, void *more) noexcept nogil

cdef extern from "alpaca/_tls.h" nogil:
    enum:
        TLS_VERSION_1_2
        TLS_CTRL_HOSTNAME
        TLS_CTRL_MIN_VERSION
        TLS_OPTIONS
        TLS_VERIFY_PEER
        TLS_HOST_FLAGS
        TLS_WANT_READ
        TLS_ZERO_RETURN
        TLS_BIO_SOURCE_SINK
        TLS_BIO_FLUSH
        TLS_BIO_READ
        TLS_BIO_WRITE
        TLS_BIO_FLAGS
    void hp_tls_errno(int code) noexcept
    int hp_tls_load(char *why, size_t size) noexcept
    const void *TLS_client_method "hp_tls.TLS_client_method" () noexcept
    void *SSL_CTX_new "hp_tls.SSL_CTX_new" (const void *method) noexcept
    void SSL_CTX_free "hp_tls.SSL_CTX_free" (void *context) noexcept
    long SSL_CTX_ctrl "hp_tls.SSL_CTX_ctrl" (void *context, int what, long value,
                                             void *more) noexcept
    uint64_t SSL_CTX_set_options "hp_tls.SSL_CTX_set_options" (void *context,
                                                               uint64_t options) noexcept
    void SSL_CTX_set_verify "hp_tls.SSL_CTX_set_verify" (void *context, int mode,
                                                         void *callback) noexcept
    int SSL_CTX_load_verify_locations "hp_tls.SSL_CTX_load_verify_locations" (
        void *context, const char *file, const char *folder) noexcept
    int SSL_CTX_set_default_verify_paths "hp_tls.SSL_CTX_set_default_verify_paths" (
        void *context) noexcept
    void *SSL_new "hp_tls.SSL_new" (void *context) noexcept
    void SSL_free "hp_tls.SSL_free" (void *session) noexcept
    void SSL_set_bio "hp_tls.SSL_set_bio" (void *session, void *read, void *write) noexcept
    void SSL_set_connect_state "hp_tls.SSL_set_connect_state" (void *session) noexcept
    long SSL_ctrl "hp_tls.SSL_ctrl" (void *session, int what, long value, void *more) noexcept
    int SSL_set1_host "hp_tls.SSL_set1_host" (void *session, const char *name) noexcept
    void *SSL_get0_param "hp_tls.SSL_get0_param" (void *session) noexcept
    int X509_VERIFY_PARAM_set1_ip_asc "hp_tls.X509_VERIFY_PARAM_set1_ip_asc" (
        void *param, const char *address) noexcept
    void X509_VERIFY_PARAM_set_hostflags "hp_tls.X509_VERIFY_PARAM_set_hostflags" (
        void *param, unsigned flags) noexcept
    int SSL_do_handshake "hp_tls.SSL_do_handshake" (void *session) noexcept
    int SSL_read "hp_tls.SSL_read" (void *session, void *data, int size) noexcept
    int SSL_write "hp_tls.SSL_write" (void *session, const void *data, int size) noexcept
    int SSL_shutdown "hp_tls.SSL_shutdown" (void *session) noexcept
    int SSL_get_error "hp_tls.SSL_get_error" (const void *session, int result) noexcept
    long SSL_get_verify_result "hp_tls.SSL_get_verify_result" (const void *session) noexcept
    const char *X509_verify_cert_error_string "hp_tls.X509_verify_cert_error_string" (
        long code) noexcept
    const char *SSL_get_version "hp_tls.SSL_get_version" (const void *session) noexcept
    const void *SSL_get_current_cipher "hp_tls.SSL_get_current_cipher" (
        const void *session) noexcept
    const char *SSL_CIPHER_get_name "hp_tls.SSL_CIPHER_get_name" (const void *cipher) noexcept
    unsigned long ERR_get_error "hp_tls.ERR_get_error" () noexcept
    void ERR_clear_error "hp_tls.ERR_clear_error" () noexcept
    const char *ERR_reason_error_string "hp_tls.ERR_reason_error_string" (
        unsigned long code) noexcept
    int BIO_get_new_index "hp_tls.BIO_get_new_index" () noexcept
    void *BIO_meth_new "hp_tls.BIO_meth_new" (int type, const char *name) noexcept
    int BIO_meth_set_read "hp_tls.BIO_meth_set_read" (void *method, bio_read_t f) noexcept
    int BIO_meth_set_write "hp_tls.BIO_meth_set_write" (void *method, bio_write_t f) noexcept
    int BIO_meth_set_ctrl "hp_tls.BIO_meth_set_ctrl" (void *method, bio_ctrl_t f) noexcept
    void *BIO_new "hp_tls.BIO_new" (const void *method) noexcept
    void BIO_set_data "hp_tls.BIO_set_data" (void *bio, void *data) noexcept
    void *BIO_get_data "hp_tls.BIO_get_data" (void *bio) noexcept
    void BIO_set_init "hp_tls.BIO_set_init" (void *bio, int init) noexcept
    void BIO_set_flags "hp_tls.BIO_set_flags" (void *bio, int flags) noexcept
    void BIO_clear_flags "hp_tls.BIO_clear_flags" (void *bio, int flags) noexcept
    const char *OpenSSL_version "hp_tls.OpenSSL_version" (int what) noexcept


# ---------------------------------------------------------------- OpenSSL's view of the socket

cdef int _bio_read(void *bio, char *data, int size) noexcept nogil:
    cdef tls_t *t = <tls_t *>BIO_get_data(bio)
    cdef size_t here = t.in_tail - t.in_head
    BIO_clear_flags(bio, TLS_BIO_FLAGS)
    if size <= 0:
        return 0
    if here == 0:
        BIO_set_flags(bio, TLS_BIO_READ)
        return -1
    if here > <size_t>size:
        here = <size_t>size
    memcpy(data, t.cipher + t.in_head, here)
    t.in_head += here
    return <int>here


cdef int _bio_write(void *bio, const char *data, int size) noexcept nogil:
    cdef tls_t *t = <tls_t *>BIO_get_data(bio)
    BIO_clear_flags(bio, TLS_BIO_FLAGS)
    if size <= 0:
        return 0
    if <size_t>size > TLS_OUT_SIZE - t.out_size:
        BIO_set_flags(bio, TLS_BIO_WRITE)
        return -1
    memcpy(t.out + t.out_size, data, <size_t>size)
    t.out_size += <size_t>size
    return size


cdef long _bio_ctrl(void *bio, int what, long value, void *more) noexcept nogil:
    return what == TLS_BIO_FLUSH            # anything else it asks for, such as kTLS: no


cdef void *METHOD = NULL        # the same for all sessions, made once


cdef int _load() except -1:
    """Have OpenSSL; needs the GIL, so that it happens once."""
    global METHOD
    cdef char why[256]
    cdef void *made
    if METHOD != NULL:
        return 0
    if hp_tls_load(why, sizeof(why)) != 0:
        raise ConfigError("TLS inside the loop needs OpenSSL's library libssl.so.3, "
                          + why.decode())
    made = BIO_meth_new(BIO_get_new_index() | TLS_BIO_SOURCE_SINK, b"hftpipe")
    if made == NULL:
        raise MemoryError
    BIO_meth_set_read(made, _bio_read)
    BIO_meth_set_write(made, _bio_write)
    BIO_meth_set_ctrl(made, _bio_ctrl)
    METHOD = made
    return 0


cdef str _reason(unsigned long code):
    """Text of an error of OpenSSL's."""
    cdef const char *text = ERR_reason_error_string(code) if code else NULL
    return text.decode() if text != NULL else "no reason given"


def library() -> str:
    """Name and version of the OpenSSL in use.

    Raises
    ------
    ConfigError
        If there is none.
    """
    _load()
    return OpenSSL_version(0).decode()


# ---------------------------------------------------------------- without the GIL

cdef bint _flush(tls_t *t) noexcept nogil:
    """Send what waits (T4); 0 with errno when some is left."""
    cdef ssize_t sent
    if t.out_size == 0:
        return 1
    t.handed = clock_now()
    sent = send(t.fd, t.out, t.out_size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        return 0
    t.out_size -= <size_t>sent
    if t.out_size:
        memmove(t.out, t.out + sent, t.out_size)
        hp_tls_errno(EAGAIN)
        return 0
    return 1


cdef ssize_t _receive(tls_t *t) noexcept nogil:
    """One recv(), when all of the last one is used up: as recv(), but the end is a failure (T5)."""
    cdef ssize_t got
    if t.in_head == t.in_tail:
        t.in_head = t.in_tail = 0
    got = recv(t.fd, t.cipher + t.in_tail, TLS_IN_SIZE - t.in_tail, MSG_DONTWAIT)
    if got > 0:
        t.stamp = clock_now()
        t.in_tail += <size_t>got
        t.dry = 0
        return got
    if got == 0:
        hp_tls_errno(ECONNRESET)
        return -1
    return got


cdef ssize_t tls_read(void *context, void *data, size_t size, int64_t *ts) noexcept nogil:
    cdef tls_t *t = <tls_t *>context
    cdef bint tried = 0
    cdef int got
    if t.out_size:
        _flush(t)
    while not t.failed:
        if not t.dry:
            ERR_clear_error()
            got = SSL_read(t.ssl, data, <int>(size if size < 1 << 30 else 1 << 30))
            if got > 0:
                ts[0] = t.stamp
                return got
            got = SSL_get_error(t.ssl, got)
            if got != TLS_ZERO_RETURN and got != TLS_WANT_READ:
                t.failed, t.code = 1, ERR_get_error()
            if t.out_size:                  # an answer of the protocol's own, or an alert
                _flush(t)
            if got == TLS_ZERO_RETURN:
                return 0
            if t.failed:
                break
            t.dry = 1
        if tried:
            hp_tls_errno(EAGAIN)
            return -1
        tried = 1
        if _receive(t) < 0:
            return -1
    hp_tls_errno(EPROTO)
    return -1


cdef ssize_t tls_write(void *context, const void *data, size_t size) noexcept nogil:
    cdef tls_t *t = <tls_t *>context
    if t.failed:
        hp_tls_errno(EPROTO)
        return -1
    if size == 0:
        return 0
    if size > TLS_WRITE_MAX:
        hp_tls_errno(EMSGSIZE)
        return -1
    if not _flush(t):
        return -1
    ERR_clear_error()
    if SSL_write(t.ssl, data, <int>size) != <int>size:
        t.failed, t.code = 1, ERR_get_error()
        hp_tls_errno(EPROTO)
        return -1
    if not _flush(t) and errno != EAGAIN:
        return -1
    return <ssize_t>size


# ---------------------------------------------------------------- handles

@cython.final
cdef class Trust:
    """Whose certificates are believed: TLS 1.2 or newer, chain and host name verified.

    Parameters
    ----------
    file : path-like, optional
        Certificates in PEM; the default are the ones that Python's ssl module finds, of the
        system or as the environment's SSL_CERT_FILE and SSL_CERT_DIR say.

    Raises
    ------
    ConfigError
        If there is no OpenSSL, or the certificates cannot be read.
    """

    def __init__(self, file=None):
        cdef bytes one, two
        cdef const char *c_file = NULL
        cdef const char *c_folder = NULL
        cdef int good
        if self.context != NULL:
            raise RuntimeError("it is initialised once")
        _load()
        paths = ssl.get_default_verify_paths()
        name, folder = (file, None) if file is not None else (paths.cafile, paths.capath)
        self.context = SSL_CTX_new(TLS_client_method())
        if self.context == NULL:
            raise MemoryError
        if SSL_CTX_ctrl(self.context, TLS_CTRL_MIN_VERSION, TLS_VERSION_1_2, NULL) != 1:
            raise ConfigError(f"OpenSSL does not do TLS 1.2: {_reason(ERR_get_error())}")
        SSL_CTX_set_options(self.context, <uint64_t>TLS_OPTIONS)
        SSL_CTX_set_verify(self.context, TLS_VERIFY_PEER, NULL)
        if name is not None:
            one = os.fsencode(name)
            c_file = one
        if folder is not None:
            two = os.fsencode(folder)
            c_folder = two
        with nogil:
            ERR_clear_error()
            good = (SSL_CTX_load_verify_locations(self.context, c_file, c_folder)
                    if c_file != NULL or c_folder != NULL
                    else SSL_CTX_set_default_verify_paths(self.context))
        if good != 1:
            raise ConfigError(f"trusted certificates {name or folder or 'of the system'}: "
                              f"{_reason(ERR_get_error())}")

    def __dealloc__(self):
        if self.context != NULL:
            SSL_CTX_free(self.context)


@cython.final
cdef class Session:
    """The client's side of TLS on a connected socket.

    Parameters
    ----------
    trust : Trust
    fd : int
        The socket; it stays its owner's, and must live as long as this is used.
    host : str
        Name or address that the peer's certificate must be for.
    """

    def __init__(self, Trust trust not None, int fd, str host not None):
        cdef void *bio
        cdef void *param
        cdef bytes name
        cdef int good
        if self.t.ssl != NULL:
            raise RuntimeError("a session is initialised once")
        self._trust, self._name = trust, host
        try:
            name = ipaddress.ip_address(host).compressed.encode()
            numeric = True
        except ValueError:
            numeric = False
            try:
                name = host.encode("idna")
            except UnicodeError:
                name = b""
            if not name or b"\0" in name:
                raise ConfigError(f"wanted a host's name, was {host!r}") from None
        self.t.fd, self.t.dry = fd, 1
        self.t.cipher = <uint8_t *>hp_lines(1, TLS_IN_SIZE)
        self.t.out = <uint8_t *>hp_lines(1, TLS_OUT_SIZE)
        self.t.ssl = SSL_new(trust.context)
        bio = BIO_new(METHOD)
        if self.t.cipher == NULL or self.t.out == NULL or self.t.ssl == NULL or bio == NULL:
            raise MemoryError
        BIO_set_data(bio, &self.t)
        BIO_set_init(bio, 1)
        SSL_set_bio(self.t.ssl, bio, bio)       # owns it from here on
        SSL_set_connect_state(self.t.ssl)
        param = SSL_get0_param(self.t.ssl)
        X509_VERIFY_PARAM_set_hostflags(param, TLS_HOST_FLAGS)
        if numeric:
            good = X509_VERIFY_PARAM_set1_ip_asc(param, name)
        else:
            good = SSL_set1_host(self.t.ssl, name)
            if good == 1:
                good = <int>SSL_ctrl(self.t.ssl, TLS_CTRL_HOSTNAME, 0, <char *>name)
        if good != 1:
            raise ConfigError(f"wanted a host's name, was {host!r}: {_reason(ERR_get_error())}")

    def __dealloc__(self):
        if self.t.ssl != NULL:
            SSL_free(self.t.ssl)
        free(self.t.cipher)
        free(self.t.out)

    cdef object refused(self):
        """The error to raise when the handshake or the session failed."""
        cdef long code = SSL_get_verify_result(self.t.ssl)
        reason = _reason(self.t.code)
        if code:
            reason = ("certificate refused: "
                      + X509_verify_cert_error_string(code).decode().lower())
        return TlsError(f"TLS with {self._name}: {reason}")

    def step(self) -> bool:
        """Take the handshake on as far as it goes without waiting; True when it is done.

        Raises
        ------
        TlsError
            If the peer's certificate or protocol is not accepted.
        OSError
            If the connection is lost.
        """
        cdef int rc, why = 0, code
        cdef ssize_t got = 0
        cdef bint left
        while True:
            with nogil:
                ERR_clear_error()
                rc = SSL_do_handshake(self.t.ssl)
                if rc != 1:
                    why = SSL_get_error(self.t.ssl, rc)
                    if why != TLS_WANT_READ:
                        self.t.failed, self.t.code = 1, ERR_get_error()
                left = not _flush(&self.t)
                if left and errno != EAGAIN:
                    got = -1
                elif rc != 1 and not self.t.failed:
                    got = _receive(&self.t)
                code = errno
            if self.t.failed:
                raise self.refused()
            if got < 0 and code != EAGAIN:
                raise OSError(code, f"TLS with {self._name}: {os.strerror(code)}")
            if rc == 1:
                self.t.dry = 0
                return not left
            if got < 0:
                return False

    def _wait(self, int events, double deadline, str what):
        left = deadline - time.monotonic()
        poller = select.poll()
        poller.register(self.t.fd, events)
        if left <= 0 or not poller.poll(left * 1e3):
            raise DeadlineError(f"no {what} with {self._name} in time")

    def handshake(self, double deadline):
        """Do all of the handshake.

        Parameters
        ----------
        deadline : float, s
            As ``time.monotonic()`` counts.

        Raises
        ------
        DeadlineError
            If it is not done by then.
        TlsError, OSError
            As :meth:`step`.
        """
        while not self.step():
            self._wait(select.POLLOUT if self.t.out_size else select.POLLIN, deadline,
                       "TLS session")

    def send(self, data, double deadline):
        """Send all of *data*; raises as :meth:`handshake`."""
        cdef const unsigned char[::1] view = data
        cdef Py_ssize_t at = 0, size = view.shape[0], part
        cdef ssize_t sent
        while at < size:
            part = min(size - at, <Py_ssize_t>TLS_WRITE_MAX)
            sent = tls_write(&self.t, &view[at], <size_t>part)
            if sent > 0:
                at += part
            elif errno == EAGAIN:
                self._wait(select.POLLOUT, deadline, "room to send")
            else:
                self._fail()
        while not _flush(&self.t):
            if errno != EAGAIN:
                self._fail()
            self._wait(select.POLLOUT, deadline, "room to send")

    def receive(self, int size, double deadline) -> bytes:
        """1 to *size* bytes, or none at the end; raises as :meth:`handshake`."""
        cdef bytearray data = bytearray(size)
        cdef char *place = data
        cdef int64_t ts
        cdef ssize_t got
        while True:
            got = tls_read(&self.t, place, <size_t>size, &ts)
            if got >= 0:
                return bytes(data[:got])
            if errno != EAGAIN:
                self._fail()
            if self.t.dry:
                self._wait(select.POLLIN, deadline, "answer")

    def _fail(self):
        if self.t.failed:
            raise self.refused()
        raise OSError(errno, f"TLS with {self._name}: {os.strerror(errno)}")

    def close(self):
        """Say goodbye, if the socket takes it; its owner closes that."""
        with nogil:
            if not self.t.failed:
                self.t.failed = 1
                ERR_clear_error()
                SSL_shutdown(self.t.ssl)
                _flush(&self.t)

    @property
    def version(self) -> str:
        """Such as TLSv1.3."""
        return SSL_get_version(self.t.ssl).decode()

    @property
    def cipher(self) -> str:
        """Such as TLS_AES_256_GCM_SHA384; "" before the handshake."""
        cdef const void *cipher = SSL_get_current_cipher(self.t.ssl)
        return SSL_CIPHER_get_name(cipher).decode() if cipher != NULL else ""
