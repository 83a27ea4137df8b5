"""The gateway's door to a venue: what a GatewayStage asks for, what a venue's package gives.

`alpaca/_http.pyx` writes prepared requests on warm sockets; `backtest` puts the simulated
venue behind the same calls.  Nothing here blocks, allocates or raises.
"""
from libc.stdint cimport int64_t, uint64_t

from ._schema cimport hp_order_t, hp_update_t

cdef enum:                      # what submit and cancel return
    WIRE_SENT = 1               # handed to the socket, whole
    WIRE_BUSY = 0               # no free connection or no rate-limit token now: try again
    WIRE_DOWN = -1              # no connection: drop it

cdef class Wire:
    cdef readonly object error  # None, or the exception that stopped the wire
    # ns, monotonic: when the newest order was handed to the socket, read right before that
    # call; 0 = this wire does not say
    cdef int64_t handed
    # ns, monotonic: no order is taken before, though cancels may be; 0 = this wire does not say
    cdef int64_t held

    # Hand a new order to the venue.  *order*.order is its identity; the client order id
    # is made of the run and that.  *now* is monotonic ns.
    cdef int submit(self, const hp_order_t *order, int64_t now) noexcept nogil

    # Ask for the cancel of *order*, which the venue calls (venue_id, venue_id_low).
    cdef int cancel(self, uint64_t order, uint64_t venue_id, uint64_t venue_id_low,
                    int64_t now) noexcept nogil

    # One answer, if any came: 1 and *out* filled (kind ACKED, REJECTED, CANCEL_REJECTED or
    # UNKNOWN, order, venue_id, price 0), else 0; -1 when the wire is broken for good.
    cdef int poll(self, hp_update_t *out, int64_t now) noexcept nogil
