# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Loops of bench_codec.py as a stage runs them: no Python between two calls."""
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memset

from hftpipe._clock cimport clock_now
from hftpipe._schema cimport (
    HP_ORDER_EVENT_ACKED, HP_ORDER_TYPE_LIMIT, HP_SIDE_BUY, HP_TIF_DAY, hp_market_t, hp_order_t,
    hp_update_t)
from hftpipe.alpaca._codec cimport Decoder
from hftpipe.alpaca._http cimport AlpacaWire

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long count, int timeout)
    int POLLIN

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL


def decode(Decoder decoder, const unsigned char[::1] data, int loops):
    """ns per frame, and records of the last one."""
    cdef hp_market_t out[1024]
    cdef int64_t begun = clock_now()
    cdef int i, count = 0
    with nogil:
        for i in range(loops):
            count = decoder.decode(&data[0], <size_t>data.shape[0], begun, out, 1024)
    return (clock_now() - begun) / loops, count


def orders(AlpacaWire wire, int count):
    """Send *count* orders, each after the answer to the one before; how many were ACKED."""
    cdef hp_order_t order
    cdef hp_update_t update
    cdef pollfd wait
    cdef int i, found, acked = 0
    memset(&order, 0, sizeof(order))
    order.price, order.qty = 10030000000, 100000000000
    order.side, order.type, order.tif = HP_SIDE_BUY, HP_ORDER_TYPE_LIMIT, HP_TIF_DAY
    # its one order connection, so that it waits as the bare socket does
    wait.fd, wait.events, wait.revents = wire._connection[0].fd, <short>POLLIN, 0
    with nogil:
        for i in range(count):
            order.order = <uint64_t>i + 1
            if wire.submit(&order, clock_now()) != 1:
                break
            found = 0
            while found == 0 and poll(&wait, 1, 1000) > 0:
                found = wire.poll(&update, clock_now())
            acked += found == 1 and update.kind == HP_ORDER_EVENT_ACKED
    return acked


def bare(int fd, const unsigned char[::1] request, int count):
    """The same with a request that is ready and an answer that nobody reads; how many."""
    cdef uint8_t answer[65536]
    cdef pollfd wait
    cdef int i, done = 0
    wait.fd, wait.events, wait.revents = fd, <short>POLLIN, 0
    with nogil:
        for i in range(count):
            if send(fd, &request[0], <size_t>request.shape[0], MSG_NOSIGNAL) <= 0:
                break
            if poll(&wait, 1, 1000) <= 0:
                break
            done += recv(fd, answer, sizeof(answer), MSG_DONTWAIT) > 0
    return done
