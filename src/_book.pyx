"""Python's handle on the order book; the book itself is ``_book.h``."""
cimport cython
from cpython.buffer cimport (
    PyBUF_CONTIG_RO, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from typing import NamedTuple

import numpy

from hftpipe import schema

from ._schema cimport HP_SIDE_BUY, HP_SIDE_SELL, hp_book_t, hp_market_t

cdef extern from *:
    """
    static inline uint64_t walk_high(const book_walk_t *w) { return (uint64_t)(w->cost >> 64); }
    static inline uint64_t walk_low(const book_walk_t *w) { return (uint64_t)w->cost; }
    """
    uint64_t walk_high(const book_walk_t *w) nogil
    uint64_t walk_low(const book_walk_t *w) nogil

cdef enum:
    POOL_LIMIT = 1 << 26            # 32-bit links, six bits of them for the level in a page

cdef object MARKET = schema.dtype(schema.MARKET)
LEVEL = numpy.dtype([("price", "<i8"), ("qty", "<i8"), ("orders", "<u8")])

if sizeof(book_level_t) != LEVEL.itemsize:
    raise ImportError(f"a level is {sizeof(book_level_t)} bytes, expected {LEVEL.itemsize}")


class Walk(NamedTuple):
    """What taking a quantity from a book would cost.

    Attributes
    ----------
    cost : int, 1e-18 of the quote currency
        Sum of price times quantity, exact.
    filled, unfilled : int, nanoqty
    worst : int, nanoprice
        Price of the last level taken; 0 when nothing is filled.
    """

    cost: int
    filled: int
    unfilled: int
    worst: int

    @property
    def average(self) -> int:
        """Average price in nanoprice, rounded half to even; 0 when nothing is filled."""
        if not self.filled:
            return 0
        whole, rest = divmod(self.cost, self.filled)
        return whole + (2 * rest > self.filled or (2 * rest == self.filled and whole & 1))


cdef uint32_t _side(object side) except? 2:
    if side == HP_SIDE_BUY:
        return 0
    if side == HP_SIDE_SELL:
        return 1
    raise ValueError(f"side is +1 or -1, was {side!r}")


@cython.final
cdef class Book:
    """L1, L2 and L3 order book of one instrument.

    Parameters
    ----------
    tick : int, nanoprice
        Price increment; a record whose price is no multiple of it is a counted no-op.
    base_price : int, nanoprice, default 0
        A typical price.  A hint: this structure needs none, every price costs the same.
    orders : int, default 65536
        Orders (L3) that fit at once; 0 for a feed without orders.
    pages : int, default 4096
        Pages of 64 ticks that fit at once, both sides together; at least 2.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    MemoryError
        If the pools cannot be had.

    Notes
    -----
    All memory is taken here: 48 to 64 bytes per order, 0.7 kB per page and 0.8 kB more of it
    when there are orders.  When a pool runs out, the record is counted under ``exhausted`` and
    the book is stale until a snapshot.
    """

    def __cinit__(self, tick, base_price=0, orders=65536, pages=4096):
        if not 0 < tick < 1 << 62:
            raise ValueError(f"tick must be positive and below 2**62 nanoprice, was {tick}")
        if base_price < 0:
            raise ValueError(f"base_price must not be negative, was {base_price}")
        if not 0 <= orders < POOL_LIMIT:
            raise ValueError(f"orders must be between 0 and {POOL_LIMIT - 1}, was {orders}")
        if not 2 <= pages < POOL_LIMIT:
            raise ValueError(f"pages must be between 2 and {POOL_LIMIT - 1}, was {pages}")
        self.b = book_new(tick, orders, pages)
        if self.b == NULL:
            raise MemoryError(f"no memory for a book of {orders} orders and {pages} pages")

    def __dealloc__(self):
        book_free(self.b)
        self.b = NULL

    def apply(self, record) -> bool:
        """Apply one MARKET record; ``False`` when it was a counted no-op.

        Parameters
        ----------
        record : bytes, or any buffer of 64 bytes (a numpy MARKET record)
        """
        cdef hp_market_t m
        cdef Py_buffer view
        if PyBytes_CheckExact(record):
            if PyBytes_GET_SIZE(record) != sizeof(hp_market_t):
                raise ValueError(f"a record is {sizeof(hp_market_t)} bytes, was {len(record)}")
            memcpy(&m, PyBytes_AS_STRING(record), sizeof(hp_market_t))
        else:
            PyObject_GetBuffer(record, &view, PyBUF_SIMPLE)
            if view.len != sizeof(hp_market_t):
                size = view.len
                PyBuffer_Release(&view)
                raise ValueError(f"a record is {sizeof(hp_market_t)} bytes, was {size}")
            memcpy(&m, view.buf, sizeof(hp_market_t))
            PyBuffer_Release(&view)
        return book_apply(self.b, &m) != 0

    def apply_many(self, records, instrument=None) -> int:
        """Apply an array of MARKET records without the GIL; how many had an effect.

        Parameters
        ----------
        records : (n,) MARKET array, contiguous
        instrument : int, optional
            Skip the records of every other instrument.

        Raises
        ------
        ValueError
            If *records* is of another dtype or shape.
        """
        if records.dtype is not MARKET and records.dtype != MARKET:
            raise ValueError(f"records must be MARKET records, was {records.dtype}")
        cdef Py_buffer view
        PyObject_GetBuffer(records, &view, PyBUF_CONTIG_RO)
        cdef const hp_market_t *m = <const hp_market_t *>view.buf
        cdef Py_ssize_t i, count = view.len // <Py_ssize_t>sizeof(hp_market_t)
        cdef int64_t only = -1 if instrument is None else instrument
        cdef uint64_t taken = 0
        cdef hp_market_t line
        with nogil:
            if <uintptr_t>m & 63:               # the records' own alignment, which numpy ignores
                for i in range(count):
                    memcpy(&line, <const char *>m + i * sizeof(hp_market_t), sizeof(hp_market_t))
                    if only < 0 or line.instrument == only:
                        taken += book_apply(self.b, &line)
            elif only < 0:
                for i in range(count):
                    taken += book_apply(self.b, &m[i])
            else:
                for i in range(count):
                    if m[i].instrument == only:
                        taken += book_apply(self.b, &m[i])
        PyBuffer_Release(&view)
        return taken

    def best_bid(self) -> int:
        """Highest bid in nanoprice; 0 when there is none."""
        return book_best_bid(self.b)

    def best_ask(self) -> int:
        """Lowest ask in nanoprice; 0 when there is none."""
        return book_best_ask(self.b)

    def mid2(self) -> int:
        """Twice the mid in nanoprice, thus exact; 0 when a side is empty."""
        return book_mid2(self.b)

    def spread(self) -> int:
        """Best ask minus best bid in nanoprice, negative when crossed; 0 when a side is empty."""
        return book_spread(self.b)

    def spread_bps(self) -> float:
        """Spread in 1e-4 of the mid; 0 when a side is empty."""
        return book_spread_bps(self.b)

    def imbalance(self, levels=schema.DEPTH) -> float:
        """``(bid - ask) / (bid + ask)`` of the quantities of the best *levels*; 0 when empty."""
        return book_imbalance(self.b, levels)

    def depth(self, levels=schema.DEPTH) -> tuple[int, int]:
        """Quantity of the best *levels* bid and ask levels in nanoqty; saturates."""
        return book_depth(self.b, 0, levels), book_depth(self.b, 1, levels)

    def levels(self, side, count=None):
        """The levels of a side, best first.

        Parameters
        ----------
        side : int
            +1 bid, -1 ask.
        count : int, optional
            At most so many; all of them without it.

        Returns
        -------
        (n,) array with the fields ``price`` (nanoprice), ``qty`` (nanoqty), ``orders``
        """
        cdef uint32_t s = _side(side)
        cdef int64_t found, room = self.b.side[s].levels
        if count is not None:
            if count < 0:
                raise ValueError(f"count must not be negative, was {count}")
            room = min(room, count)
        cdef book_level_t *out = <book_level_t *>malloc(max(room, 1) * sizeof(book_level_t))
        if out == NULL:
            raise MemoryError(f"no memory for {room} levels")
        with nogil:
            found = book_levels(self.b, s, out, room)
        data = (<const char *>out)[:found * <int64_t>sizeof(book_level_t)]
        free(out)
        return numpy.frombuffer(data, LEVEL)

    def walk(self, side, qty) -> Walk:
        """What an order for *qty* would cost right now.

        Parameters
        ----------
        side : int
            Of the taker: +1 buys from the asks, -1 sells to the bids.
        qty : int, nanoqty
        """
        cdef uint32_t s = 1 - _side(side)
        if not 0 <= qty < 1 << 63:
            raise ValueError(f"qty must be between 0 and 2**63 - 1 nanoqty, was {qty}")
        cdef book_walk_t w = book_walk(self.b, s, qty)
        return Walk(<object>walk_high(&w) << 64 | <object>walk_low(&w),
                    w.filled, w.unfilled, w.worst)

    def order(self, ref):
        """A live order as ``(side, price, qty, qty_ahead)``, or ``None``."""
        cdef const book_order_t *o = book_order(self.b, ref)
        if o == NULL:
            return None
        return (book_order_side(self.b, o), book_order_price(self.b, o), o.qty,
                book_order_ahead(self.b, o))

    def view(self) -> dict[str, int]:
        """The fields of a BOOK record that the book itself knows."""
        cdef hp_book_t v
        memset(&v, 0, sizeof(v))
        book_view(self.b, &v)
        return {"bid": v.bid, "ask": v.ask, "bid_qty": v.bid_qty, "ask_qty": v.ask_qty,
                "bid_depth": v.bid_depth, "ask_depth": v.ask_depth,
                "last_price": v.last_price, "last_qty": v.last_qty, "last_side": v.last_side,
                "volume": v.volume, "flags": v.flags}

    @property
    def flags(self) -> int:
        """Bit set of ``BOOK_FLAG``."""
        return book_flags(self.b)

    @property
    def counters(self) -> dict[str, int]:
        """Records taken (``applied``), no-ops by cause, and ``clipped``, ``gaps``."""
        return self.b.counters

    @property
    def dropped(self) -> int:
        """Records that were counted no-ops."""
        return book_dropped(self.b)

    @property
    def tick(self) -> int:
        """Price increment in nanoprice."""
        return self.b.tick

    @property
    def orders(self) -> int:
        """Live orders."""
        return self.b.order_live

    def __len__(self):
        return self.b.side[0].levels + self.b.side[1].levels
