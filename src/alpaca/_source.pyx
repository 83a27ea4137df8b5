"""Market data received and decoded inside the spinning loop."""
import threading
import time

from libc.stdint cimport int64_t, uint8_t, uint64_t

from .._clock cimport clock_now
from .._schema cimport hp_market_t
from .._stage cimport Source
from ._codec cimport Decoder
from ._socket cimport WS_MESSAGE, WS_NONE, Receiver, ws_poll, ws_receiver_t

import random

from hftpipe.errors import ConfigError, HftpipeError


cdef class SocketSource(Source):
    """A data stream on a socket that the loop itself reads.

    Connecting, authenticating and subscribing are slow and happen in a thread of their own,
    at the start and after every loss; the loop meanwhile goes on without market data, and the
    first thing it gets from the new connection is a GAP for every instrument.

    Parameters
    ----------
    connect : callable
        Returns a :class:`Receiver` that is authenticated and subscribed.  Raises ConfigError
        for what no retry can mend, anything else to be tried again.
    decoder : Decoder
    first, longest : float, s
        Pause before the second attempt; it doubles up to *longest*, with jitter.
    """
    cdef object connect
    cdef Decoder decoder
    cdef Receiver receiver
    cdef ws_receiver_t *socket      # NULL while there is no connection
    cdef bint gap                   # the next records are the GAPs
    cdef object _next               # a Receiver from the thread, or an exception
    cdef object _thread
    cdef double _first, _longest
    cdef readonly int connections
    cdef readonly object closed     # why the last connection ended

    def __init__(self, connect, Decoder decoder not None, double first=0.25, double longest=30.0):
        self.connect, self.decoder = connect, decoder
        self._first, self._longest = first, longest
        self.socket = NULL

    def open(self):
        """Connect now, in this thread; raises what *connect* raises."""
        self._adopt(self.connect())

    def _adopt(self, Receiver receiver not None):
        self.receiver = receiver
        self.gap = self.connections > 0
        self.connections += 1
        self.socket = &receiver.r

    @property
    def connected(self):
        """Whether there is a connection."""
        return self.socket != NULL

    cdef int read(self, hp_market_t *out, int room) noexcept nogil:
        cdef const uint8_t *payload
        cdef size_t size
        cdef int64_t ts_recv
        cdef int rc, n
        if self.socket == NULL:
            return -1 if self.error is not None else 0
        if self.gap:
            self.gap = False
            return self.decoder.gap_at(clock_now(), out, 0, ~<uint64_t>0, room)
        rc = ws_poll(self.socket, &payload, &size, &ts_recv)
        if rc == WS_NONE:
            return 0
        if rc != WS_MESSAGE:
            self.socket = NULL          # maintain() connects again
            return 0
        n = self.decoder.decode(payload, size, ts_recv, out, room)
        return n if n > 0 else 0        # what could not be decoded is in the decoder's counters

    cdef object maintain(self):
        if self.socket != NULL or self.error is not None:
            return None
        if self._thread is None:
            if self.receiver is not None:
                self.closed = f"connection ended with code {self.receiver.close_code}"
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
            except ConfigError as error:
                self._next = error
                return
            except (HftpipeError, OSError) as error:
                if getattr(error, "final", False):
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
