"""Send orders to Alpaca; the rules stand in ``_http.pxd``."""
cimport cython
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

from .._clock cimport clock_now, clock_utc
from .._schema cimport *
from .._wire cimport WIRE_BUSY, WIRE_DOWN, WIRE_SENT, Wire
from ._tls cimport Session, Trust, tls_read, tls_write

import errno as errors
import random
import select
import socket
import time
from urllib.parse import urlsplit

import numpy

from hftpipe import schema
from hftpipe.alpaca.rest import reveal
from hftpipe.errors import ConfigError, DeadlineError, TlsError

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int poller, int what, int fd, epoll_event *event)
    int epoll_wait(int poller, epoll_event *events, int count, int timeout)
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLLIN
    int EPOLLRDHUP

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include "_schema.h"

    /* 1e-9 units as a decimal without trailing zeros; bytes written, at most 21. */
    static inline uint32_t hp_write_nano(char *out, int64_t value) {
      char *p = out;
      uint64_t n = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
      uint64_t whole = n / 1000000000u;
      uint32_t fraction = (uint32_t)(n % 1000000000u), size = 0;
      char digits[20];
      if (value < 0) *p++ = '-';
      do digits[size++] = (char)('0' + whole % 10); while (whole /= 10);
      while (size) *p++ = digits[--size];
      if (fraction) {
        *p++ = '.';
        for (uint32_t unit = 100000000; fraction; unit /= 10) {
          *p++ = (char)('0' + fraction / unit);
          fraction %= unit;
        }
      }
      return (uint32_t)(p - out);
    }
    static inline uint32_t hp_write_hex(char *out, uint64_t n) {
      uint32_t size = n ? (67 - (uint32_t)__builtin_clzll(n)) / 4 : 1;
      for (uint32_t i = size; i--; n >>= 4) out[i] = "0123456789abcdef"[n & 15];
      return size;
    }
    /* 8-4-4-4-12, as RFC 9562 writes it; big end first. */
    static inline void hp_write_uuid(char *out, uint64_t high, uint64_t low) {
      for (int i = 0; i < 36; i++) {
        if (i == 8 || i == 13 || i == 18 || i == 23) { *out++ = '-'; continue; }
        *out++ = "0123456789abcdef"[high >> 60];
        high = high << 4 | low >> 60;
        low <<= 4;
      }
    }
    static inline int hp_read_uuid(const char *text, uint32_t size, uint64_t *high, uint64_t *low) {
      uint64_t h = 0, l = 0;
      if (size != 36) return 0;
      for (int i = 0; i < 36; i++) {
        int c = text[i], digit;
        if (i == 8 || i == 13 || i == 18 || i == 23) { if (c != '-') return 0; continue; }
        if (c >= '0' && c <= '9') digit = c - '0';
        else if ((c | 32) >= 'a' && (c | 32) <= 'f') digit = (c | 32) - 'a' + 10;
        else return 0;
        h = h << 4 | l >> 60;
        l = l << 4 | (uint64_t)digit;
      }
      *high = h; *low = l;
      return 1;
    }
    static inline int hp_lower(char c) { return c >= 'A' && c <= 'Z' ? c | 32 : c; }
    /* Is the header line at *line (up to `end`) called `name` (lower case)?  Its value, or NULL. */
    static inline const char *hp_header(const char *line, const char *end, const char *name) {
      for (; *name; line++, name++)
        if (line >= end || hp_lower(*line) != *name) return NULL;
      if (line >= end || *line != ':') return NULL;
      for (line++; line < end && (*line == ' ' || *line == '\\t'); ) line++;
      return line;
    }
    static int hp_has_token(const char *text, const char *end, const char *token);
    /* What the broker's texts mean, the first that fits: docs/venues.md.  Lower case. */
    static const struct { const char *words; int reason; } HP_REFUSALS[] = {
      {"insufficient qty", HP_REASON_VENUE_QUANTITY},
      {"insufficient buying power", HP_REASON_VENUE_FUNDS},
      {"insufficient balance", HP_REASON_VENUE_FUNDS},
      {"insufficient day trading buying power", HP_REASON_VENUE_FUNDS},
      {"wash trade", HP_REASON_VENUE_WASH},
      {"opposite side", HP_REASON_VENUE_WASH},
      {"cannot open a long buy while", HP_REASON_VENUE_WASH},
      {"cannot open a short sell while", HP_REASON_VENUE_WASH},
      {"pattern day trad", HP_REASON_VENUE_DAY_TRADES},
      {"not allowed to short", HP_REASON_VENUE_SHORT},
      {"cannot be sold short", HP_REASON_VENUE_SHORT},
      {"by user request", HP_REASON_VENUE_ACCOUNT},
      {"account is not allowed to trade", HP_REASON_VENUE_ACCOUNT},
      {"account is restricted", HP_REASON_VENUE_ACCOUNT},
      {"account is blocked", HP_REASON_VENUE_ACCOUNT},
      {"account is not active", HP_REASON_VENUE_ACCOUNT},
      {"account is not authorized to trade", HP_REASON_VENUE_ACCOUNT},
      {"trading is blocked", HP_REASON_VENUE_ACCOUNT},
      {"forbidden account", HP_REASON_VENUE_ACCOUNT},
    };
    static inline int hp_refusal(const char *text, uint32_t size) {
      for (size_t i = 0; text && i < sizeof(HP_REFUSALS) / sizeof(HP_REFUSALS[0]); i++)
        if (hp_has_token(text, text + size, HP_REFUSALS[i].words)) return HP_REFUSALS[i].reason;
      return 0;
    }
    static inline int hp_has_token(const char *text, const char *end, const char *token) {
      size_t size = strlen(token);
      for (; text + size <= end; text++) {
        size_t i = 0;
        while (i < size && hp_lower(text[i]) == token[i]) i++;
        if (i == size) return 1;
      }
      return 0;
    }
    """
    uint32_t hp_write_nano(char *out, int64_t value) noexcept nogil
    uint32_t hp_write_hex(char *out, uint64_t n) noexcept nogil
    void hp_write_uuid(char *out, uint64_t high, uint64_t low) noexcept nogil
    bint hp_read_uuid(const char *text, uint32_t size, uint64_t *high, uint64_t *low) noexcept nogil
    const char *hp_header(const char *line, const char *end, const char *name) noexcept nogil
    bint hp_has_token(const char *text, const char *end, const char *token) noexcept nogil
    int hp_refusal(const char *text, uint32_t size) noexcept nogil

cdef enum:
    ORDER_TYPES = HP_ORDER_TYPE_TRAILING_STOP
    KINDS = 2 * ORDER_TYPES * HP_TIF_CLS
    KIND_SIZE = 160             # bytes of one entry of _kinds
    LENGTH_SIZE = 4             # digits of Content-Length, padded by spaces in front
    DIRECT_MAX = 2              # requests on the wire that are read without asking epoll
    TAIL_SIZE = 256             # bytes a request grows behind its symbol, at most

cdef int64_t PROBE_NS = 1000000             # how often idle connections are looked at
cdef int64_t CONNECT_NS = 3000000000
cdef int64_t HOLD_NS = 1000000000           # after the first 429 in a row; doubles
cdef int64_t HOLD_MAX_NS = 60000000000
cdef int64_t CANCEL_HOLD_NS = 250000000     # after a 429 to a cancel; does not grow
cdef int64_t MINUTE_NS = 60000000000
cdef int64_t WINDOW_MAX = 60                 # s; Alpaca counts by the minute, docs 2026-05

cdef struct field_t:            # a string of a JSON object, escapes left as they are
    const char *text
    uint32_t size

cdef struct body_t:             # what is read of an answer's body
    field_t id
    field_t name
    field_t status
    field_t message
    bint code


# ---------------------------------------------------------------- reading an answer

cdef int64_t _decimal(const char *text, const char *end) noexcept nogil:
    """The number at *text*, or -1; at most 18 digits."""
    cdef int64_t n = 0
    cdef int digits = 0
    while text < end and c"0" <= text[0] <= c"9":
        n = n * 10 + (text[0] - c"0")
        digits += 1
        text += 1
        if digits > 18:
            return -1
    return n if digits else -1


cdef bint _escaped(const char *start, const char *p) noexcept nogil:
    """Whether the quote at *p* belongs to the string: behind an odd number of backslashes."""
    cdef int count = 0
    while p > start and p[-1] == c"\\":
        p -= 1
        count += 1
    return count & 1


cdef void _body(const char *p, const char *end, body_t *out) noexcept nogil:
    """The top-level strings of the JSON object at *p* that we want; absent ones stay NULL."""
    cdef int depth = 0
    cdef const char *start
    cdef const char *key = NULL
    cdef uint32_t size, key_size = 0
    cdef field_t *place
    memset(out, 0, sizeof(body_t))
    while p < end:
        if p[0] == c'"':
            start = p + 1
            p = <const char *>memchr(start, c'"', <size_t>(end - start))
            while p != NULL and p[-1] == c"\\" and _escaped(start, p):
                p = <const char *>memchr(p + 1, c'"', <size_t>(end - p - 1))
            if p == NULL:
                return
            size = <uint32_t>(p - start)
            p += 1
            if depth != 1:
                continue
            if key == NULL:
                while p < end and (p[0] == c" " or p[0] == c"\n" or p[0] == c"\r"
                                   or p[0] == c"\t"):
                    p += 1
                if p < end and p[0] == c":":
                    key, key_size = start, size
                    p += 1
                    if key_size == 4 and memcmp(key, b"code", 4) == 0:
                        out.code = 1
                continue
            place = NULL
            if key_size == 2 and memcmp(key, b"id", 2) == 0:
                place = &out.id
            elif key_size == 15 and memcmp(key, b"client_order_id", 15) == 0:
                place = &out.name
            elif key_size == 6 and memcmp(key, b"status", 6) == 0:
                place = &out.status
            elif key_size == 7 and memcmp(key, b"message", 7) == 0:
                place = &out.message
            if place != NULL:
                place.text, place.size = start, size
            continue
        if p[0] == c"{" or p[0] == c"[":
            depth += 1
        elif p[0] == c"}" or p[0] == c"]":
            depth -= 1
            key = key if depth > 1 else NULL
        elif p[0] == c"," and depth == 1:
            key = NULL
        p += 1


cdef int64_t _unchunk(char *body, uint32_t size, bint move) noexcept nogil:
    """Bytes of a chunked body, moved together when *move*; -1 not all here, -2 malformed."""
    cdef char *p = body
    cdef char *end = body + size
    cdef char *out = body
    cdef char *line
    cdef uint64_t chunk
    cdef int digits, c
    while True:
        line = <char *>memchr(p, c"\n", <size_t>(end - p))
        if line == NULL:
            return -2 if end - p > 1024 else -1
        chunk, digits = 0, 0
        while p < line:
            c = p[0]
            if c"0" <= c <= c"9":
                c -= c"0"
            elif c"a" <= (c | 32) <= c"f":
                c = (c | 32) - c"a" + 10
            else:
                break
            chunk = chunk << 4 | <uint64_t>c
            digits += 1
            p += 1
            if digits > 8:
                return -2
        if digits == 0:
            return -2
        p = line + 1
        if chunk == 0:                          # trailers, up to an empty line
            while True:
                line = <char *>memchr(p, c"\n", <size_t>(end - p))
                if line == NULL:
                    return -1
                if line == p or (line == p + 1 and p[0] == c"\r"):
                    return out - body if line + 1 == end else -2
                p = line + 1
        if chunk > HTTP_ANSWER_SIZE:
            return -2
        if chunk + 2 > <uint64_t>(end - p):
            return -1
        if p[chunk] != c"\r" or p[chunk + 1] != c"\n":
            return -2
        if move:
            memmove(out, p, chunk)
        out += chunk
        p += chunk + 2


cdef inline bint _priced(const hp_order_t *o) noexcept nogil:
    """Whether an order has just the prices that its type asks for."""
    cdef bint limit = o.type == HP_ORDER_TYPE_LIMIT or o.type == HP_ORDER_TYPE_STOP_LIMIT
    cdef bint stop = o.type == HP_ORDER_TYPE_STOP or o.type == HP_ORDER_TYPE_STOP_LIMIT
    if (o.price > 0) != limit or o.price < 0 or (o.stop > 0) != stop or o.stop < 0:
        return 0
    if o.type != HP_ORDER_TYPE_TRAILING_STOP:
        return o.trail == 0 and o.trail_share == 0
    return (o.trail > 0) != (o.trail_share > 0) and o.trail >= 0 and 0 <= o.trail_share < 1000000000


# ---------------------------------------------------------------- Python helpers

def format_nano(int64_t value) -> str:
    """Decimal text of a number of nanos, without trailing zeros."""
    cdef char text[24]
    return text[:hp_write_nano(text, value)].decode("ascii")


cdef bytes _plain(name, text):
    """*text* as bytes that can stand in a request; nothing of it is in the error."""
    raw = text.encode() if isinstance(text, str) else bytes(text)
    if not raw or any(not 32 < c < 127 or c in b'"\\' for c in raw):
        raise ConfigError(f"{name} must be printable ASCII without spaces or quotes")
    return raw


cdef int IN_PROGRESS = errors.EINPROGRESS
cdef object UPDATE = schema.dtype(schema.UPDATE)
cdef object ORDER = schema.dtype(schema.ORDER)
cdef tuple TYPES = (b"market", b"limit", b"stop", b"stop_limit", b"trailing_stop")
cdef tuple TIFS = (b"day", b"gtc", b"ioc", b"fok", b"opg", b"cls")
# As the enumerations number them, from 1; of each type a sale and a purchase.
assert [schema.ORDER_TYPE.label(n + 1).encode() for n in range(len(TYPES))] == list(TYPES)
assert [schema.TIF.label(n + 1).encode() for n in range(len(TIFS))] == list(TIFS)


@cython.final
cdef class AlpacaWire(Wire):
    """The gateway's door to Alpaca's trading REST interface.

    Parameters
    ----------
    rest_url : str
        ``http://`` or ``https://`` host, port and path prefix.
    key, secret : str or Secret
        Sent with each request; shown nowhere.
    run : int
        Id of the run; part of every client order id, ``hp-<run>-<intent>`` in hex.
    instruments : array of schema.INSTRUMENT, or sequence of str
        Venue's symbols by index.
    connections : int, default 4
        For orders; one more is kept for cancels.
    rate_per_minute : int, default 180
        Requests; 0 lifts the limit.  Alpaca: 200 per minute and account, docs 2026-05.
    burst : int, default 20
        Requests that may be sent at once; with the rate no more than the venue's limit.
    reserve : int, default 4
        Of those, only for cancels.
    timeout_ms : int, default 2000
        An order without an answer by then is UNKNOWN.
    trust : Trust, optional
        Of https; the default trusts what the system trusts.

    Raises
    ------
    ConfigError
        If the address, a symbol or a credential cannot stand in a request.
    """

    def __cinit__(self):
        self._poller = -1
        for i in range(HTTP_CONNECTIONS):
            self._connection[i].fd = -1
            self._connection[i].index = i

    def __init__(self, rest_url, key, secret, uint64_t run, instruments, int connections=4,
                 int64_t rate_per_minute=180, int64_t burst=20, int64_t reserve=4,
                 int64_t timeout_ms=2000, Trust trust=None):
        cdef bytes head, tail, text, raw
        cdef char *entry
        cdef http_connection_t *k
        cdef int i
        if self._poller >= 0:
            raise RuntimeError("a wire is initialised once")
        if not 1 <= connections < HTTP_CONNECTIONS:
            raise ConfigError(f"connections must be 1 to {HTTP_CONNECTIONS - 1}, was {connections}")
        if rate_per_minute < 0 or timeout_ms <= 0 or not 0 <= reserve < burst:
            raise ConfigError(
                f"wanted rate_per_minute >= 0, timeout_ms > 0, 0 <= reserve < burst; found "
                f"{rate_per_minute}, {timeout_ms}, {reserve}, {burst}")
        url = urlsplit(rest_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.username:
            raise ConfigError(f"rest_url must be http(s)://host[:port][/path], was {rest_url!r}")
        self.secure = url.scheme == "https"
        self._trust = (trust or Trust()) if self.secure else None
        self._host = url.hostname
        self._address = (url.hostname, url.port or (443 if self.secure else 80))
        self._tls = [None] * HTTP_CONNECTIONS
        self._opening = [None] * HTTP_CONNECTIONS
        self._jitter = random.Random()
        self._count = <uint32_t>connections + 1
        self._timeout = timeout_ms * 1000000
        self._bucket.cost = 60000000000 // rate_per_minute if rate_per_minute else 0
        self._bucket.cost_min = self._bucket.cost
        self._bucket.burst, self._bucket.spare, self._bucket.left = burst, reserve, -1
        self._bucket.level = self._bucket.level_max = burst * self._bucket.cost
        self._bucket.reserve = reserve * self._bucket.cost
        self._bucket.hold_next = HOLD_NS
        self._bucket.last = clock_now()

        base = _plain("rest_url", url.path.rstrip("/") + "/v2/orders")
        tail = (b" HTTP/1.1\r\nHost: " + _plain("rest_url", url.netloc)
                + b"\r\nAPCA-API-KEY-ID: " + _plain("key", reveal(key))
                + b"\r\nAPCA-API-SECRET-KEY: " + _plain("secret", reveal(secret))
                + b"\r\nAccept: application/json\r\n")
        head = b"POST " + base + tail + b"Content-Type: application/json\r\nContent-Length: "
        self._head_size = len(head)
        text = b"DELETE " + base + b"/" + b"0" * 36 + tail + b"Content-Length: 0\r\n\r\n"
        self._cancel_at, self._cancel_size = len(base) + 8, len(text)

        names = (instruments["symbol"].tolist() if hasattr(instruments, "dtype")
                 else list(instruments))
        symbols = [b'{"symbol":"' + _plain("symbol", n) + b'",' for n in names]
        if not symbols or len(symbols) > 65536 or max(map(len, symbols)) > 64:
            raise ConfigError("wanted 1 to 65536 instruments with symbols of up to 16 bytes")
        if len(head) + LENGTH_SIZE + 4 + 64 + KIND_SIZE + TAIL_SIZE > HTTP_REQUEST_SIZE:
            raise ConfigError("address and credentials are too long for a request")
        self._instruments, self._symbol_room = len(symbols), 65
        self._symbols = <char *>calloc(len(symbols), 65)
        self._kinds = <char *>calloc(KINDS, KIND_SIZE)
        if self._symbols == NULL or self._kinds == NULL:
            raise MemoryError
        for i, raw in enumerate(symbols):
            entry = self._symbols + i * 65
            entry[0] = <char>len(raw)
            memcpy(entry + 1, <char *>raw, len(raw))
        for i in range(KINDS):
            raw = (b'"side":"%s","type":"%s","time_in_force":"%s","client_order_id":"hp-%x-' % (
                b"buy" if i & 1 else b"sell", TYPES[(i >> 1) % ORDER_TYPES],
                TIFS[(i >> 1) // ORDER_TYPES], run))
            if len(raw) > 127:
                raise ConfigError(f"run must be below 2**64, was {run}")
            entry = self._kinds + i * KIND_SIZE
            entry[0] = <char>len(raw)
            memcpy(entry + 1, <char *>raw, len(raw))
        for i in range(connections + 1):
            k = &self._connection[i]
            k.spare = i == connections
            k.order_text = <char *>calloc(HTTP_REQUEST_SIZE, 1)
            k.cancel_text = <char *>calloc(HTTP_REQUEST_SIZE, 1)
            k.answer_text = <char *>calloc(HTTP_ANSWER_SIZE, 1)
            if k.order_text == NULL or k.cancel_text == NULL or k.answer_text == NULL:
                raise MemoryError
            memcpy(k.order_text, <char *>head, len(head))
            memcpy(k.cancel_text, <char *>text, len(text))
        self._poller = epoll_create1(EPOLL_CLOEXEC)
        if self._poller < 0:
            raise OSError(errno, "epoll_create1 failed")
        self.dirty = 1

    def __dealloc__(self):
        cdef int i
        for i in range(HTTP_CONNECTIONS):
            if self._connection[i].fd >= 0:
                close(self._connection[i].fd)
            if self._connection[i].order_text != NULL:
                memset(self._connection[i].order_text, 0, HTTP_REQUEST_SIZE)    # credentials
            if self._connection[i].cancel_text != NULL:
                memset(self._connection[i].cancel_text, 0, HTTP_REQUEST_SIZE)
            free(self._connection[i].order_text)
            free(self._connection[i].cancel_text)
            free(self._connection[i].answer_text)
        if self._poller >= 0:
            close(self._poller)
        free(self._symbols)
        free(self._kinds)

    # ------------------------------------------------------------ sending

    cdef http_connection_t *_idle(self, bint cancelling) noexcept nogil:
        """A connection to send on; NULL when all are busy or down."""
        cdef uint32_t _
        cdef http_connection_t *k = &self._connection[self._count - 1]
        if cancelling and k.state == HTTP_IDLE and k.answer == 0:
            return k
        for _ in range(self._count - 1):
            self._next = self._next + 1 if self._next + 2 < self._count else 0
            k = &self._connection[self._next]
            if k.state == HTTP_IDLE and k.answer == 0:
                return k
        return NULL

    cdef bint _take(self, int64_t now, bint cancelling) noexcept nogil:
        """A token of the rate limiter, if there is one."""
        cdef http_bucket_t *b = &self._bucket
        if now < (b.hold_cancels if cancelling else b.hold):
            if not cancelling:
                self.held = b.hold
            self._counters.throttled += 1
            return 0
        if b.left >= 0 and now >= b.window:
            b.left = -1                         # a new minute of the venue
        # A cancel goes even when the venue said that nothing is left: trying costs nothing.
        if not cancelling and 0 <= b.left <= b.spare:
            self.held = b.window
            self._counters.throttled += 1
            return 0
        if b.cost:
            if now > b.last:
                b.level = min(b.level + (now - b.last), b.level_max)
                b.last = now
            if b.level < b.cost + (0 if cancelling else b.reserve):
                self.held = 0                   # soon
                self._counters.throttled += 1
                return 0
            b.level -= b.cost
        if b.left > 0:
            b.left -= 1
        return 1

    cdef void _give_back(self) noexcept nogil:
        """Nothing was sent with the token."""
        self._bucket.level += self._bucket.cost
        if self._bucket.left >= 0:
            self._bucket.left += 1

    cdef int _send(self, http_connection_t *k, uint32_t size, int64_t now) noexcept nogil:
        """Hand a request to the socket: WIRE_SENT, WIRE_BUSY, or WIRE_DOWN: nothing was sent."""
        cdef ssize_t sent = self._write(k, k.text, size)
        if sent == -1:
            return WIRE_BUSY
        if sent < 0:
            self._lost(k)
            return WIRE_DOWN
        k.text_size, k.text_sent = size, <uint32_t>sent
        k.answer_size = 0
        k.deadline = now + self._timeout
        k.state = HTTP_BUSY
        self._busy += 1
        return WIRE_SENT

    cdef int submit(self, const hp_order_t *order, int64_t now) noexcept nogil:
        cdef http_connection_t *k = NULL
        cdef char *p
        cdef char *body
        cdef const char *part
        cdef uint32_t i, size
        cdef uint32_t _
        cdef int outcome
        if self.denied or self._up == 0:
            return WIRE_DOWN
        if (order.instrument >= self._instruments or order.qty <= 0
                or (order.side != HP_SIDE_BUY and order.side != HP_SIDE_SELL)
                or order.type < HP_ORDER_TYPE_MARKET or order.type > HP_ORDER_TYPE_TRAILING_STOP
                or order.tif < HP_TIF_DAY or order.tif > HP_TIF_CLS
                or not _priced(order)):
            self._counters.errors += 1
            return WIRE_DOWN
        if self._idle(0) == NULL:
            self.held = 0
            return WIRE_BUSY
        if not self._take(now, 0):
            return WIRE_BUSY
        for _ in range(self._count):
            k = self._idle(0)
            if k == NULL:
                break
            p = k.order_text + self._head_size + LENGTH_SIZE
            memcpy(p, b"\r\n\r\n", 4)
            body = p = p + 4
            part = self._symbols + order.instrument * self._symbol_room
            memcpy(p, part + 1, <size_t>part[0])
            p += part[0]
            i = ((order.side == HP_SIDE_BUY) + 2 * (order.type - HP_ORDER_TYPE_MARKET)
                 + 2 * ORDER_TYPES * (order.tif - HP_TIF_DAY))
            part = self._kinds + i * KIND_SIZE
            memcpy(p, part + 1, <size_t>part[0])
            p += part[0]
            p += hp_write_hex(p, order.order & 0xffffffffffffffULL)
            # the client order id began after the last `:"` of the kind
            k.name_size = <uint32_t>(p - k.order_text)
            k.name_at = k.name_size
            while k.order_text[k.name_at - 1] != c'"':
                k.name_at -= 1
            k.name_size -= k.name_at
            memcpy(p, b'","qty":"', 9)
            p += 9
            p += hp_write_nano(p, order.qty)
            if order.price:
                memcpy(p, b'","limit_price":"', 17)
                p += 17
                p += hp_write_nano(p, order.price)
            if order.stop:
                memcpy(p, b'","stop_price":"', 16)
                p += 16
                p += hp_write_nano(p, order.stop)
            elif order.trail:
                memcpy(p, b'","trail_price":"', 17)
                p += 17
                p += hp_write_nano(p, order.trail)
            elif order.trail_share:
                memcpy(p, b'","trail_percent":"', 19)
                p += 19
                p += hp_write_nano(p, order.trail_share * 100)
            memcpy(p, b'"}', 2)
            p += 2
            size = <uint32_t>(p - body)
            part = k.order_text + self._head_size
            for i in range(<uint32_t>LENGTH_SIZE):      # right-aligned behind blanks
                k.order_text[self._head_size + LENGTH_SIZE - 1 - i] = (
                    <char>(c"0" + size % 10) if size else c" ")
                size //= 10
            k.text = k.order_text
            k.cancelling = 0
            k.order, k.instrument, k.side = order.order, order.instrument, order.side
            k.venue_id = k.venue_id_low = 0
            k.reason = 0
            self.handed = clock_now()
            outcome = self._send(k, <uint32_t>(p - k.order_text), now)
            if outcome == WIRE_SENT:
                if k.tls != NULL:
                    self.handed = k.tls.handed      # encrypted by then
                self._counters.sent += 1
                return WIRE_SENT
            if outcome == WIRE_BUSY:
                break
        self._give_back()
        self.held = 0
        return WIRE_BUSY if self._up else WIRE_DOWN

    cdef int cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now) noexcept nogil:
        cdef http_connection_t *k
        cdef uint32_t _
        cdef int outcome
        if self.denied:
            return WIRE_DOWN
        k = self._idle(1)
        if k == NULL:
            return WIRE_BUSY if self._busy else WIRE_DOWN
        if not self._take(now, 1):
            return WIRE_BUSY
        for _ in range(self._count):
            hp_write_uuid(k.cancel_text + self._cancel_at, venue_id, venue_id_low)
            k.text = k.cancel_text
            k.cancelling = 1
            k.order, k.instrument, k.side = order, 0, 0
            k.venue_id, k.venue_id_low = venue_id, venue_id_low
            outcome = self._send(k, self._cancel_size, now)
            if outcome == WIRE_SENT:
                self._counters.cancels += 1
                return WIRE_SENT
            if outcome == WIRE_BUSY:
                break
            k = self._idle(1)
            if k == NULL:
                break
        self._give_back()
        return WIRE_BUSY if self._busy else WIRE_DOWN

    cdef ssize_t _write(self, http_connection_t *k, const char *text,
                        uint32_t size) noexcept nogil:
        cdef ssize_t sent
        if k.tls != NULL:
            sent = tls_write(k.tls, text, size)
            if sent >= 0 and k.tls.out_size:    # a part of a record cannot be taken back (H1)
                return -2
        else:
            sent = send(k.fd, text, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent >= 0:
            return sent
        return -1 if errno == EAGAIN or errno == EINTR else -2

    # ------------------------------------------------------------ answers

    cdef ssize_t _read(self, http_connection_t *k) noexcept nogil:
        cdef ssize_t got
        cdef int64_t ts
        if k.tls != NULL:
            got = tls_read(k.tls, k.answer_text + k.answer_size, HTTP_ANSWER_SIZE - k.answer_size,
                           &ts)
        else:
            got = recv(k.fd, k.answer_text + k.answer_size, HTTP_ANSWER_SIZE - k.answer_size,
                       MSG_DONTWAIT)
        if got >= 0:
            return got
        return -1 if errno == EAGAIN or errno == EINTR else -2

    cdef void _settle(self, http_connection_t *k, int kind) noexcept nogil:
        """Have *kind* ready for poll()."""
        k.answer = kind
        self._pending += 1
        if kind == HP_ORDER_EVENT_ACKED:
            self._counters.acked += 1
        elif kind == HP_ORDER_EVENT_REJECTED:
            self._counters.rejected += 1
        elif kind == HP_ORDER_EVENT_CANCEL_REJECTED:
            self._counters.cancels_rejected += 1
        else:
            self._counters.unknown += 1

    cdef void _lost(self, http_connection_t *k) noexcept nogil:
        """Give a connection up; a request on it has no answer (H1, H2)."""
        if k.fd >= 0:
            close(k.fd)
            k.fd, k.tls = -1, NULL
        if not k.spare and (k.state == HTTP_IDLE or k.state == HTTP_BUSY):
            self._up -= 1
        if k.state == HTTP_BUSY:
            self._busy -= 1
            self._settle(k, HP_ORDER_EVENT_CANCEL_REJECTED if k.cancelling
                         else HP_ORDER_EVENT_UNKNOWN)
        k.state = HTTP_DOWN
        k.failures += 1
        self._counters.lost += 1
        self.dirty = 1

    cdef void _limited(self, http_connection_t *k, int64_t wait) noexcept nogil:
        """The venue counts more requests than we do: no order for *wait* ns, or longer."""
        cdef http_bucket_t *b = &self._bucket
        cdef int64_t now = clock_now()
        self._counters.limited += 1
        b.level = min(b.level, b.reserve)
        if k.cancelling:
            b.hold_cancels = now + CANCEL_HOLD_NS
        b.hold = max(b.hold, now + max(wait, b.hold_next))
        b.hold_next = min(2 * b.hold_next, HOLD_MAX_NS)

    cdef void _allowance(self, int64_t limit, int64_t left, int64_t seconds) noexcept nogil:
        """What the venue says of its own counter; -1 = nothing.  *seconds* until it begins anew."""
        cdef http_bucket_t *b = &self._bucket
        cdef int64_t cost
        if limit > 0 and b.cost_min:            # a tenth stays for what is no order or cancel
            cost = max(b.cost_min, MINUTE_NS // min(limit, 100000000) * 10 // 9)
            if cost != b.cost:                  # as many tokens as before
                b.level = b.level // b.cost * cost
                b.cost = cost
                b.level_max, b.reserve = b.burst * cost, b.spare * cost
        if left < 0:
            return
        left = max(left - <int64_t>self._busy, 0)   # those on the wire are not counted yet
        if 0 < seconds <= WINDOW_MAX:
            b.left, b.window = left, clock_now() + seconds * 1000000000
        elif b.cost:                            # no time that can be: ours or theirs is wrong
            b.level = min(b.level, left * b.cost)

    cdef void _deny(self, int status) noexcept nogil:
        self.denied = 1
        with gil:
            try:
                self.error = ConfigError(f"the venue refused the credentials: HTTP {status}")
            except BaseException as error:      # noexcept: nothing may escape from here
                self.error = error

    cdef void _judge(self, http_connection_t *k, int status, const char *body,
                     uint32_t size) noexcept nogil:
        """What an answer means; the table stands in ``_http.pxd``."""
        cdef body_t b
        _body(body, body + size, &b)
        if status == 401 or (status == 403 and not b.code):
            self._deny(status)
        if 200 <= status <= 299:
            self._bucket.hold_next = HOLD_NS
        if k.cancelling:
            if not 200 <= status <= 299:
                self._settle(k, HP_ORDER_EVENT_CANCEL_REJECTED)
            return
        if status == 200 or status == 201:
            if (b.name.size == k.name_size and b.name.text != NULL
                    and memcmp(b.name.text, k.order_text + k.name_at, k.name_size) == 0
                    and hp_read_uuid(b.id.text, b.id.size, &k.venue_id, &k.venue_id_low)):
                if b.status.size == 8 and memcmp(b.status.text, b"rejected", 8) == 0:
                    self._settle(k, HP_ORDER_EVENT_REJECTED)
                else:
                    self._settle(k, HP_ORDER_EVENT_ACKED)
            else:
                self._counters.errors += 1
                self._settle(k, HP_ORDER_EVENT_UNKNOWN)
        elif status == 422 and b.message.text != NULL and hp_has_token(
                b.message.text, b.message.text + b.message.size,
                b"client_order_id must be unique"):
            self._settle(k, HP_ORDER_EVENT_UNKNOWN)
        elif 400 <= status <= 499 and status != 408:
            k.reason = <uint8_t>(HP_REASON_VENUE_RATE if status == 429
                                 else hp_refusal(b.message.text, b.message.size))
            self._settle(k, HP_ORDER_EVENT_REJECTED)
        else:
            self._settle(k, HP_ORDER_EVENT_UNKNOWN)

    cdef bint _answered(self, http_connection_t *k, bint ended) noexcept nogil:
        """Read what is here of an answer; 1 when the connection has no request any more."""
        cdef char *text = k.answer_text
        cdef char *end
        cdef char *line
        cdef char *next
        cdef const char *value
        cdef int64_t length, body_size, remaining, reset, limit
        cdef int64_t wait
        cdef int status
        cdef bint chunked, closing, broken
        while True:                             # once, and once more for each 1xx
            end = text + k.answer_size
            length = remaining = reset = wait = limit = -1
            chunked = broken = 0
            line = <char *>memchr(text, c"\n", k.answer_size)
            if line == NULL:
                if k.answer_size > 1024:
                    self._counters.errors += 1
                    self._lost(k)
                    return 1
                return 0
            if line - text < 12 or memcmp(text, b"HTTP/1.", 7) != 0 or text[8] != c" ":
                self._counters.errors += 1
                self._lost(k)
                return 1
            status = <int>_decimal(text + 9, text + 12)
            closing = text[7] == c"0"
            while True:                         # headers, up to an empty line
                line += 1
                next = <char *>memchr(line, c"\n", <size_t>(end - line))
                if next == NULL:
                    return 0
                if next == line or (next == line + 1 and line[0] == c"\r"):
                    break
                value = hp_header(line, next, b"content-length")
                if value != NULL:
                    length = _decimal(value, next)
                    broken |= length < 0
                value = hp_header(line, next, b"transfer-encoding")
                if value != NULL:
                    chunked = hp_has_token(value, next, b"chunked")
                    broken |= not chunked
                value = hp_header(line, next, b"connection")
                if value != NULL and hp_has_token(value, next, b"close"):
                    closing = 1
                value = hp_header(line, next, b"x-ratelimit-limit")
                if value != NULL:
                    limit = _decimal(value, next)
                value = hp_header(line, next, b"x-ratelimit-remaining")
                if value != NULL:
                    remaining = _decimal(value, next)
                value = hp_header(line, next, b"x-ratelimit-reset")
                if value != NULL:
                    reset = _decimal(value, next)
                value = hp_header(line, next, b"retry-after")
                if value != NULL:
                    wait = _decimal(value, next)
                line = next
            line = next + 1                     # the body
            if 100 <= status <= 199:
                k.answer_size = <uint32_t>(end - line)
                memmove(text, line, k.answer_size)
                continue
            break
        body_size = end - line
        if status < 200 or status > 599 or broken or length > HTTP_ANSWER_SIZE:
            self._counters.errors += 1
            self._lost(k)
            return 1
        if status == 204 or status == 304:
            length = 0
        elif chunked:
            length = _unchunk(line, <uint32_t>body_size, 0)
            if length == -1:
                return 0
            if length < 0:
                self._counters.errors += 1
                self._lost(k)
                return 1
            length = _unchunk(line, <uint32_t>body_size, 1)
            body_size = length
        elif length < 0:                        # the end of the stream is the end of the body
            if not ended:
                return 0
            length, closing = body_size, 1
        if body_size < length:
            return 0
        if body_size > length:                  # H3: more than the answer
            self._counters.errors += 1
            closing = 1
        self._judge(k, status, line, <uint32_t>length)
        k.state = HTTP_IDLE
        k.failures = 0
        self._busy -= 1
        if reset > 0:
            reset -= clock_utc() // 1000000000
        if status == 429:
            wait = max(wait, reset)
            self._limited(k, min(max(wait, 0) * 1000000000, HOLD_MAX_NS))
        else:
            self._allowance(limit, remaining, reset)
        if closing:
            self._lost(k)
            k.failures = 0
        return 1

    cdef void _ready(self, http_connection_t *k) noexcept nogil:
        """Read all that a connection has."""
        cdef ssize_t got
        while True:
            if k.answer_size == HTTP_ANSWER_SIZE:
                self._counters.errors += 1
                self._lost(k)
                return
            got = self._read(k)
            if got == -1:
                return
            if got > 0 and k.state == HTTP_BUSY:
                k.answer_size += <uint32_t>got
                if not self._answered(k, 0):
                    continue
                if k.tls == NULL or k.tls.in_head == k.tls.in_tail:
                    return
                # Bytes behind the answer are in our memory, where epoll does not see them.
                k.answer_size = 0
                if k.state == HTTP_IDLE:
                    continue
                return
            # the end, a failure, or bytes that nobody asked for
            if got == 0 and k.state == HTTP_BUSY and k.answer_size and self._answered(k, 1):
                return
            self._lost(k)
            return

    cdef int poll(self, hp_update_t *out, int64_t now) noexcept nogil:
        cdef epoll_event events[HTTP_CONNECTIONS]
        cdef http_connection_t *k
        cdef ssize_t sent
        cdef int i, count
        if self._pending == 0:
            if self._busy == 0 and now < self._probe:
                return -1 if self.denied else 0
            if self._busy > DIRECT_MAX or now >= self._probe:
                self._probe = now + PROBE_NS
                count = epoll_wait(self._poller, events, HTTP_CONNECTIONS, 0)
                for i in range(count):
                    k = &self._connection[events[i].data.u32]
                    if k.state >= HTTP_IDLE:
                        self._ready(k)
            else:                               # few: reading them costs less than asking which
                for i in range(<int>self._count):
                    if self._connection[i].state == HTTP_BUSY:
                        self._ready(&self._connection[i])
            if self._busy:
                for i in range(<int>self._count):
                    k = &self._connection[i]
                    if k.state != HTTP_BUSY:
                        continue
                    if k.text_sent < k.text_size:
                        sent = self._write(k, k.text + k.text_sent, k.text_size - k.text_sent)
                        if sent == -2:
                            self._lost(k)
                            continue
                        if sent > 0:
                            k.text_sent += <uint32_t>sent
                    if now > k.deadline:
                        self._counters.timeouts += 1
                        self._lost(k)
        if self._pending:
            for i in range(<int>self._count):
                k = &self._connection[i]
                if k.answer == 0:
                    continue
                memset(out, 0, sizeof(hp_update_t))
                out.order, out.ts_recv, out.kind = k.order, now, <uint8_t>k.answer
                out.instrument, out.side = k.instrument, k.side
                out.reason = k.reason if k.answer == HP_ORDER_EVENT_REJECTED else 0
                out.venue_id, out.venue_id_low = k.venue_id, k.venue_id_low
                k.answer = 0
                self._pending -= 1
                return 1
        return -1 if self.denied and self._busy == 0 else 0

    # ------------------------------------------------------------ connecting, cold

    cdef void _failed(self, http_connection_t *k, int64_t now, error):
        """A connection did not come up: try again later, and later each time."""
        opening = self._opening[k.index]
        self._opening[k.index] = self._tls[k.index] = None
        if opening is not None:
            opening.close()
        self._trouble = error
        k.state = HTTP_DOWN
        k.failures += 1
        if k.failures % 4 == 0:
            self._resolved = None
        wait = min(0.25 * 2 ** min(k.failures, 10), 30.0) * self._jitter.uniform(0.5, 1.0)
        k.retry = now + <int64_t>(wait * 1e9)

    cdef bint _connect(self, http_connection_t *k, int64_t now) except -1:
        """Take a connection one step on; 1 when it is up."""
        cdef epoll_event event
        cdef Session session
        try:
            if k.state == HTTP_DOWN:
                self._tls[k.index] = None
                if self._resolved is None:
                    self._resolved = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)[0]
                family, kind, protocol, _, address = self._resolved
                opening = socket.socket(family, kind, protocol)
                self._opening[k.index] = opening
                opening.setblocking(False)
                opening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                k.state, k.deadline = HTTP_CONNECTING, now + CONNECT_NS
                failed = opening.connect_ex(address)
                if failed not in (0, IN_PROGRESS):
                    raise OSError(failed, "connect")
            opening = self._opening[k.index]
            if self._tls[k.index] is None:
                poller = select.poll()
                poller.register(opening, select.POLLOUT)
                if not poller.poll(0):
                    if now > k.deadline:
                        raise DeadlineError("no connection within 3 s")
                    return 0
                failed = opening.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    raise OSError(failed, "connect")
                if self.secure:
                    self._tls[k.index] = Session(self._trust, opening.fileno(), self._host)
            if self.secure:
                session = self._tls[k.index]
                if not session.step():
                    if now > k.deadline:
                        raise DeadlineError("no TLS session within 3 s")
                    return 0
        except (OSError, DeadlineError, TlsError) as error:
            self._failed(k, now, error)
            return 0
        self._opening[k.index] = None
        k.fd = opening.detach()
        event.events = <uint32_t>(EPOLLIN | EPOLLRDHUP)
        event.data.u32 = k.index
        if epoll_ctl(self._poller, EPOLL_CTL_ADD, k.fd, &event) != 0:
            raise OSError(errno, "epoll_ctl failed")
        if self.secure:
            k.tls = &session.t
        k.state, k.answer_size = HTTP_IDLE, 0
        if not k.spare:
            self._up += 1
        self._counters.connects += 1
        return 1

    def maintain(self) -> bool:
        """Take connections that are down one step on; True when all are up.

        Never blocks, but for resolving the venue's name.  Call it, with the GIL, while the
        loop is idle and ``dirty`` is set.
        """
        cdef http_connection_t *k
        cdef int64_t now = clock_now()
        cdef uint32_t i
        cdef bint whole = 1
        for i in range(self._count):
            k = &self._connection[i]
            if k.state >= HTTP_IDLE:
                continue
            if k.state == HTTP_DOWN and now < k.retry:
                whole = 0
            elif not self._connect(k, now):
                whole = 0
        self.dirty = not whole
        return whole

    def open(self, double timeout=3.0):
        """Connect all connections.

        Raises
        ------
        TlsError
            If the venue's certificate is not accepted, or it does not speak TLS 1.2 or newer.
        DeadlineError
            If they are not all up within *timeout* seconds; the message says why.
        """
        deadline = time.monotonic() + timeout
        while not self.maintain():
            if isinstance(self._trouble, TlsError):
                raise self._trouble         # trying again would not help
            if time.monotonic() > deadline:
                host, port = self._address
                raise DeadlineError(f"wanted {self._count} connections to {host}:{port} within "
                                    f"{timeout:g} s, found {self.connected}: {self._trouble}")
            time.sleep(0.001)

    def close(self):
        """Close all connections; an order without an answer becomes UNKNOWN."""
        cdef http_connection_t *k
        cdef uint32_t i
        for i in range(self._count):
            k = &self._connection[i]
            if self._opening[i] is not None:
                self._opening[i].close()
                self._opening[i] = None
                k.state = HTTP_DOWN
            if k.state >= HTTP_IDLE:
                if self._tls[i] is not None:
                    self._tls[i].close()
                self._lost(k)
            self._tls[i] = None

    # ------------------------------------------------------------ for tests and cold callers

    def send(self, order, int64_t now=0) -> int:
        """Submit one schema.ORDER record: 1 sent, 0 try again, -1 cannot be sent."""
        cdef hp_order_t c
        cdef bytes raw = numpy.asarray(order, ORDER).tobytes()
        memcpy(&c, <char *>raw, sizeof(c))
        return self.submit(&c, now or clock_now())

    def send_cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now=0) -> int:
        """Ask for a cancel: 1 sent, 0 try again, -1 cannot be sent."""
        return self.cancel(order, venue_id, venue_id_low, now or clock_now())

    def answer(self, int64_t now=0):
        """One schema.UPDATE record, or None when there is no answer now.

        Raises
        ------
        ConfigError
            When the venue refused the credentials.
        """
        cdef hp_update_t c
        cdef int found = self.poll(&c, now or clock_now())
        if found < 0:
            raise self.error
        if not found:
            return None
        return numpy.frombuffer(bytearray((<char *>&c)[:sizeof(c)]), UPDATE)[0]

    def fileno(self) -> int:
        """Descriptor that is readable when an answer may be: for hosts that sleep."""
        return self._poller

    def counters(self) -> dict[str, int]:
        """What happened so far."""
        return self._counters

    @property
    def connected(self) -> int:
        """Connections that are up."""
        return sum(self._connection[i].state >= HTTP_IDLE for i in range(self._count))

    @property
    def outstanding(self) -> int:
        """Requests on the wire, and answers not yet polled."""
        return self._busy + self._pending
