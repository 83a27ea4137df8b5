"""Python's handle on the ITCH 5.0 parser; the parser itself is ``_itch.h``."""
cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

import numpy

from hftpipe import schema
from hftpipe.errors import DataError

from .._book cimport Book, book_t
from .._schema cimport HP_SEQ_BITS, HP_STREAM_FEED, hp_market_t

cdef object MARKET = schema.dtype(schema.MARKET)
cdef object INSTRUMENT = schema.dtype(schema.INSTRUMENT)


@cython.final
cdef class Parser:
    """Turns the bytes of an ITCH 5.0 file into MARKET records, piece by piece.

    First give every piece to :meth:`scan`, which finds symbols and price increments and checks
    the framing; then :meth:`choose` and :meth:`parse` the pieces again.  A piece may end in the
    middle of a message: both tell how many bytes they used, the rest goes before the next piece.

    Parameters
    ----------
    midnight : int, ns, default 0
        UTC of the day's midnight in New York; 0 leaves ``ts_venue`` at 0.
    """

    def __cinit__(self, midnight=0):
        self.t = <itch_t *>calloc(1, sizeof(itch_t))
        self.stocks = <itch_stock_t *>calloc(65536, sizeof(itch_stock_t))
        if self.t == NULL or self.stocks == NULL:
            raise MemoryError("no memory for an ITCH parser")
        self.t.midnight = midnight
        self.reset()
        memset(self.t.instrument, 0xff, sizeof(self.t.instrument))

    def __dealloc__(self):
        free(self.t)
        free(self.stocks)

    def reset(self):
        """Start again at the first byte; what was scanned and chosen stays."""
        self.offset = 0
        self.t.now = 0
        self.t.event = <uint64_t>HP_STREAM_FEED << HP_SEQ_BITS
        self.t.messages = self.t.unknown = self.t.broken = self.t.ignored = 0
        self.t.error = ITCH_OK

    cdef int _used(self, int64_t used) except -1:
        self.offset += used
        if self.t.error == ITCH_LENGTH:
            kind = chr(self.t.type) if 32 < self.t.type < 127 else f"0x{self.t.type:02x}"
            least = "" if self.t.wanted != 11 else "at least "
            raise DataError(f"byte {self.offset}: wanted a message of type {kind} of {least}"
                            f"{self.t.wanted} bytes, found length {self.t.found}")
        if self.t.error == ITCH_VALUE:
            raise DataError(f"byte {self.offset}: wanted side B or S in a message of type "
                            f"{chr(self.t.type)}, found {bytes([self.t.found])!r}")
        return 0

    def scan(self, const uint8_t[::1] data not None) -> int:
        """Read *data* for symbols and price increments; bytes used."""
        cdef int64_t used = 0, size = data.shape[0]
        if size:
            with nogil:
                used = itch_scan(self.t, &data[0], size, self.stocks)
        self._used(used)
        return used

    def choose(self, symbols=None):
        """Choose what to parse and number it.

        Parameters
        ----------
        symbols : collection of str, optional
            Without it, every stock that has an order.

        Returns
        -------
        (n,) INSTRUMENT array

        Raises
        ------
        DataError
            If a symbol is not in the file.
        """
        cdef itch_stock_t stock
        found = {}
        for locate in range(65536):
            name = self.stocks[locate].symbol[:8].rstrip(b" \0").decode("latin-1")
            if name and (symbols is not None or self.stocks[locate].first):
                found[name] = locate
        wanted = list(found) if symbols is None else list(symbols)
        missing = [name for name in wanted if name not in found]
        if missing:
            some = ", ".join(sorted(found)[:8]) + (", ..." if len(found) > 8 else "")
            raise DataError(f"wanted symbol {missing[0]}, found {some or 'none'}")
        if len(wanted) >= ITCH_NONE:
            raise DataError(f"wanted fewer than {ITCH_NONE} instruments, found {len(wanted)}")
        table = numpy.zeros(len(wanted), INSTRUMENT)
        memset(self.t.instrument, 0xff, sizeof(self.t.instrument))
        for i, name in enumerate(wanted):
            locate = found[name]
            stock = self.stocks[<int>locate]
            self.t.instrument[<int>locate] = i
            table[i]["symbol"] = name.encode("latin-1")
            table[i]["tick"] = <int64_t>(stock.tick or 100) * ITCH_PRICE
            table[i]["lot"] = table[i]["min_qty"] = ITCH_QTY
            table[i]["base_price"] = stock.first * <int64_t>ITCH_PRICE
            table[i]["flags"] = 2 | 4                   # shares: prices in whole cents
        return table

    def parse(self, const uint8_t[::1] data not None, out) -> tuple[int, int]:
        """Parse *data* into *out*, a MARKET array; ``(bytes used, records made)``.

        Stops early when *out* has no room for the two records a replacement makes.
        """
        if out.dtype != MARKET:
            raise ValueError(f"out must be an array of MARKET records, was {out.dtype}")
        cdef uint8_t[::1] raw = out.view("u1")
        cdef int64_t used = 0, count = 0, size = data.shape[0]
        cdef int64_t room = raw.shape[0] // <int64_t>sizeof(hp_market_t)
        if room < ITCH_MOST:
            raise ValueError(f"out must have room for {ITCH_MOST} records, was {room}")
        if size:
            with nogil:
                used = itch_parse(self.t, &data[0], size, <itch_row_t *>&raw[0], room, &count)
        self._used(used)
        return used, count

    def replay(self, const uint8_t[::1] data not None, books) -> int:
        """Parse *data* and apply each record to its book at once; bytes used.

        Parameters
        ----------
        books : sequence of Book
            By instrument, as many as were chosen.
        """
        cdef int64_t used = 0, size = data.shape[0], i, count = len(books)
        cdef book_t **all_books = <book_t **>malloc(max(count, 1) * sizeof(book_t *))
        cdef Book book
        if all_books == NULL:
            raise MemoryError("no memory for a table of books")
        try:
            for i in range(count):
                book = books[i]
                all_books[i] = book.b
            for i in range(65536):
                if self.t.instrument[i] != ITCH_NONE and self.t.instrument[i] >= count:
                    raise ValueError(f"books must be as many as instruments, was {count}")
            if size:
                with nogil:
                    used = itch_replay(self.t, &data[0], size, all_books)
        finally:
            free(all_books)
        self._used(used)
        return used

    @property
    def counters(self) -> dict[str, int]:
        """Messages seen, of unknown type, broken trades, and of types without a record."""
        return {"messages": self.t.messages, "unknown": self.t.unknown,
                "broken": self.t.broken, "ignored": self.t.ignored}
