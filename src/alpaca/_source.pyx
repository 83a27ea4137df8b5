"""Market data received and decoded inside the spinning loop."""
import threading

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from .._clock cimport clock_now
from .._schema cimport HP_MARKET_FLAG_LAST, hp_market_t
from .._stage_feed cimport Source
from ._codec cimport CODEC_ROOM, Decoder
from ._socket cimport (
    WS_MESSAGE, WS_NONE, WS_PING, Receiver, ws_poll, ws_receiver_t, ws_send)

import random

from hftpipe.alpaca import session
from hftpipe.errors import ConfigError, DataError, HftpipeError


cdef enum:
    FILL = 256                  # backfilled records that go on at once: live ones do not wait long


cdef bint _final(error):
    """Whether trying to connect again cannot help."""
    return getattr(error, "final", False) or (
        isinstance(error, ConfigError) and not isinstance(error, DataError))


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
        Pause before connecting again; it doubles up to *longest*, with jitter, and starts
        again from *first* only after data: a venue that takes every connection and drops it
        is not asked faster than one that refuses.
    ping : float, s
        After so long without a byte the venue is asked for one; after as long again without
        an answer the connection is given up.
    silence : callable, optional
        ``silence()`` is the longest time in s without data that is normal now; None while
        none are due.  A connection that is mute for longer is given up, pongs or not.

    backfill : callable, optional
        ``backfill(start, end)`` gives MARKET records, flagged BACKFILLED, of what happened between
        two venue times in UTC ns.  It is called in a thread of its own for each gap, once data
        flow again; the loop hands its records on while the socket has nothing.

    What the venue says about a connection that is open is classed by ``session.CODES``: it
    ends the stage, ends the connection, or is only reported (`reports`, `report`).
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
    cdef int64_t _quiet             # since when no data came, or none were due
    cdef bint _data                 # some came since the connection was made
    cdef object _silence
    cdef object _waited             # set to end a pause
    cdef double _pause              # before the next attempt
    cdef object _backfill
    cdef list _gaps                 # (start, end) to be asked for
    cdef object _fetching           # the thread that asks
    cdef object _fetched            # what it got, or an exception
    cdef object _filling            # records that `_fill` points into
    cdef const hp_market_t *_fill
    cdef int64_t _fill_left
    cdef int64_t _venue             # newest venue time, UTC ns
    cdef int64_t _since             # that of the last data before the gap; 0 = none
    cdef int64_t _until             # that of the first data after it; 0 = none yet
    cdef readonly object trouble    # why a gap could not be filled, the last one
    cdef readonly int connections
    cdef readonly object closed     # why the last connection ended
    cdef readonly int reports       # errors of the venue that end nothing ...
    cdef readonly object report     # ... and the last of them

    def __init__(self, connect, Decoder decoder not None, double first=0.25, double longest=30.0,
                 double ping=10.0, silence=None, backfill=None):
        self._ping = <int64_t>(ping * 1e9)
        self._silence, self._pause, self._waited = silence, first, threading.Event()
        self.connect, self.decoder = connect, decoder
        self._first, self._longest = first, longest
        self.socket = NULL
        self._backfill, self._gaps = backfill, []
        self._fill = NULL

    def open(self):
        """Connect now, in this thread.

        A refusal that may pass is left to :meth:`tend`: after a crash the venue keeps the dead
        session for a while (90 s), and answers 406 to who comes back.

        Raises
        ------
        HftpipeError
            What no retry can mend.
        """
        try:
            self._adopt(self.connect())
        except (HftpipeError, OSError) as error:
            if _final(error):
                raise
            self.closed = str(error)

    def _adopt(self, Receiver receiver not None):
        self.receiver = receiver
        self.connections += 1
        self.decoder.c.control = 0
        self._quiet, self._data = clock_now(), False
        self.socket = &receiver.r

    @property
    def connected(self):
        """Whether there is a connection."""
        return self.socket != NULL

    def figures(self):
        return {"connected": self.socket != NULL, "reconnects": max(self.connections - 1, 0),
                "drops": self.decoder.c.drops, "errors": self.decoder.c.errors,
                "ignored": self.decoder.c.ignored}

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
            return self._hand_on(out, room) if self._fill_left else 0
        if rc != WS_MESSAGE:
            self._lose()
            return 0
        n = self.decoder.decode(payload, size, ts_recv, out, room)
        if n > 0:
            self._quiet, self._data = ts_recv, True
            if self._since and not self._until:
                self._until = out[0].ts_venue
            if out[n - 1].ts_venue:
                self._venue = out[n - 1].ts_venue
        if n >= 0:
            return n
        self.gap = True
        if not self._since:
            self._since = self._venue
        if n == CODEC_ROOM:
            self.decoder.c.errors += 1  # more records than any frame of this stage may have
        else:
            self._lose()                # no MessagePack, or too large: do not trust the rest
        return 0

    cdef void _lose(self) noexcept nogil:
        """Give the connection up; maintain() makes a new one."""
        self.socket = NULL
        self.gap = True
        if not self._since:
            self._since = self._venue

    cdef int _hand_on(self, hp_market_t *out, int room) noexcept nogil:
        """Some of what was backfilled, whole messages of it, as read now."""
        cdef int i, whole = 0
        cdef int64_t now = clock_now()
        for i in range(<int>min(self._fill_left, <int64_t>min(room, FILL))):
            memcpy(&out[i], &self._fill[i], sizeof(hp_market_t))
            out[i].ts_recv = now
            if out[i].flags & HP_MARKET_FLAG_LAST:
                whole = i + 1
        self._fill += whole
        self._fill_left = self._fill_left - whole if whole else 0   # no whole one: not ours
        return whole

    cdef object _mend(self):
        """Ask for what a gap cost, now that it has an end; take what was answered."""
        cdef const uint8_t[::1] raw
        if self._until:
            if self._until > self._since and self._backfill is not None:
                self._gaps.append((self._since, self._until))
            self._since = self._until = 0
        if self._fetching is not None and not self._fetching.is_alive():
            self._fetching = None
            if isinstance(self._fetched, BaseException):
                self.trouble = str(self._fetched)
            elif len(self._fetched):
                self._filling = self._fetched
                raw = self._filling.view("u1")
                self._fill = <const hp_market_t *>&raw[0]
                self._fill_left = raw.shape[0] // sizeof(hp_market_t)
            self._fetched = None
        if self._gaps and self._fetching is None and not self._fill_left:
            self._fetching = threading.Thread(
                target=self._fetch, args=self._gaps.pop(0), name="feed-backfill", daemon=True)
            self._fetching.start()

    def _fetch(self, start, end):
        try:
            self._fetched = self._backfill(start, end)
        except (HftpipeError, OSError) as error:
            self._fetched = error

    cdef object maintain(self):
        cdef int64_t now
        cdef object why = None
        if self.error is not None:
            return None
        if self._data:                  # whatever became of the connection since
            self._pause, self._data = self._first, False
        if self._until or self._gaps or self._fetching is not None:
            self._mend()
        if self.decoder.c.control:
            why = self._told()
        if self.socket != NULL:
            now = clock_now()
            if why is None and self._silence is not None:
                why = self._mute(now)
            if why is not None:
                self._lose()
            elif now - self.socket.ts_tail > self._ping and self._asked < self.socket.ts_tail:
                ws_send(self.socket, WS_PING, NULL, 0)
                self._asked = now
            elif self._asked > self.socket.ts_tail and now - self._asked > self._ping:
                self._lose()            # and go on: `closed` is never older than the loss
            if self.socket != NULL:
                return None
        if self.error is not None:
            return None
        if self._thread is None:
            if self.receiver is not None:
                ended = self.receiver.ended
                self.closed = why or ("given up" if ended is None else str(ended))
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

    cdef object _told(self):
        """The venue said an error: why the connection ends, or None."""
        error = session.stream_error({"code": self.decoder.c.control, "msg": session.MEANING.get(
            self.decoder.c.control, "unknown")}, starting=False)
        action = session.CODES.get(error.code, session.BACKOFF)
        self.decoder.c.control = 0
        if action == session.REPORT:
            self.reports += 1
            self.report = str(error)
            return None
        if action == session.STOP:
            self.error = error
        return str(error)

    cdef object _mute(self, int64_t now):
        """Why the connection is dead although it is open; None when it is not."""
        allowed = self._silence()
        if allowed is None:
            self._quiet = now           # the clock starts when the session does
        elif now - self._quiet > <int64_t>(<double>allowed * 1e9):
            return f"no data for {(now - self._quiet) / 1e9:.1f} s"
        return None

    def _work(self):
        while not self._waited.wait(self._pause * random.uniform(0.5, 1.0)):
            self._pause = min(self._pause * 2, self._longest)
            try:
                self._next = self.connect()
                return
            except (HftpipeError, OSError) as error:
                if _final(error):
                    self._next = error
                    return
                self.closed = str(error)
        self._next = ConfigError("the feed was closed")

    def close(self):
        """Say goodbye."""
        self.socket = NULL
        self._waited.set()
        if self.receiver is not None:
            self.receiver.close()

    def tend(self):
        """What the loop's host does every few milliseconds of idleness."""
        self.maintain()
