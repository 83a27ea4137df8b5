"""Market data received and decoded inside the spinning loop."""
import threading
import time

from libc.stdint cimport int64_t, uint8_t, uint64_t

from .._clock cimport clock_now
from .._schema cimport hp_market_t
from .._stage_feed cimport Source
from ._codec cimport CODEC_ROOM, Decoder
from ._socket cimport (
    WS_MESSAGE, WS_NONE, WS_PING, Receiver, ws_poll, ws_receiver_t, ws_send)

import random

from hftpipe.errors import ConfigError, DataError, HftpipeError


cdef class SocketSource(Source):
    """A data stream on a socket that the loop itself reads.

    Connecting, authenticating and subscribing are slow and happen in a thread of their own,
    at the start and after every loss; the loop meanwhile goes on without market data.  The
    first thing it gets after anything was lost, at once, is a GAP for every instrument: when
    the connection ended, and when a frame could not be decoded or has more records than the
    stage has room for.

    Parameters
    ----------
    connect : callable
        Returns a :class:`Receiver` that is authenticated and subscribed.  Raises ConfigError
        for what no retry can mend, anything else to be tried again.
    decoder : Decoder
    first, longest : float, s
        Pause before the second attempt; it doubles up to *longest*, with jitter.
    ping : float, s
        After so long without a byte the venue is asked for one; after as long again without
        an answer the connection is given up.
    """
    cdef object connect
    cdef Decoder decoder
    cdef Receiver receiver
    cdef ws_receiver_t *socket      # NULL while there is no connection
    cdef bint gap                   # something was lost: the next records are the GAPs
    cdef int64_t _ping              # ns
    cdef int64_t _asked             # when the last ping went out
    cdef object _next               # a Receiver from the thread, or an exception
    cdef object _thread
    cdef double _first, _longest
    cdef readonly int connections
    cdef readonly object closed     # why the last connection ended

    def __init__(self, connect, Decoder decoder not None, double first=0.25, double longest=30.0,
                 double ping=10.0):
        self._ping = <int64_t>(ping * 1e9)
        self.connect, self.decoder = connect, decoder
        self._first, self._longest = first, longest
        self.socket = NULL

    def open(self):
        """Connect now, in this thread; raises what *connect* raises."""
        self._adopt(self.connect())

    def _adopt(self, Receiver receiver not None):
        self.receiver = receiver
        self.connections += 1
        self.socket = &receiver.r

    @property
    def connected(self):
        """Whether there is a connection."""
        return self.socket != NULL

    def figures(self):
        return {"connected": self.socket != NULL, "reconnects": max(self.connections - 1, 0),
                "drops": self.decoder.c.drops, "errors": self.decoder.c.errors}

    cdef int read(self, hp_market_t *out, int room) noexcept nogil:
        cdef const uint8_t *payload
        cdef size_t size
        cdef int64_t ts_recv
        cdef int rc, n
        if self.gap:
            n = self.decoder.gap_at(clock_now(), out, 0, ~<uint64_t>0, room)
            self.gap = n < 0
            return n
        if self.socket == NULL:
            return -1 if self.error is not None else 0
        rc = ws_poll(self.socket, &payload, &size, &ts_recv)
        if rc == WS_NONE:
            return 0
        if rc != WS_MESSAGE:
            self._lose()
            return 0
        n = self.decoder.decode(payload, size, ts_recv, out, room)
        if n >= 0:
            return n
        self.gap = True
        if n == CODEC_ROOM:
            self.decoder.c.errors += 1  # more records than any frame of this stage may have
        else:
            self._lose()                # no MessagePack, or too large: do not trust the rest
        return 0

    cdef void _lose(self) noexcept nogil:
        """Give the connection up; maintain() makes a new one."""
        self.socket = NULL
        self.gap = True

    cdef object maintain(self):
        cdef int64_t now
        if self.error is not None:
            return None
        if self.socket != NULL:
            now = clock_now()
            if now - self.socket.ts_tail > self._ping and self._asked < self.socket.ts_tail:
                ws_send(self.socket, WS_PING, NULL, 0)
                self._asked = now
            elif self._asked > self.socket.ts_tail and now - self._asked > self._ping:
                self._lose()            # and go on: `closed` is never older than the loss
            if self.socket != NULL:
                return None
        if self._thread is None:
            if self.receiver is not None:
                ended = self.receiver.ended
                self.closed = "given up" if ended is None else str(ended)
                self.receiver.close()
                self.receiver = None
            self._next = None
            self._thread = threading.Thread(target=self._work, name="feed-connect", daemon=True)
            self._thread.start()
        elif not self._thread.is_alive():
            self._thread = None
            if isinstance(self._next, BaseException):
                self.error = self._next
            else:
                self._adopt(self._next)
            self._next = None

    def _work(self):
        pause = self._first
        while True:
            try:
                self._next = self.connect()
                return
            except (HftpipeError, OSError) as error:
                if getattr(error, "final", False) or (
                        isinstance(error, ConfigError) and not isinstance(error, DataError)):
                    self._next = error
                    return
                self.closed = str(error)
            time.sleep(pause * random.uniform(0.85, 1.15))
            pause = min(pause * 2, self._longest)

    def close(self):
        """Say goodbye."""
        self.socket = NULL
        if self.receiver is not None:
            self.receiver.close()

    def tend(self):
        """What the loop's host does every few milliseconds of idleness."""
        self.maintain()
