"""The book stage: market records in, the state of a book out."""
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ._book cimport BOOK_BARS, BOOK_WORDS, Book, book_apply, book_mid2, book_view
from ._clock cimport clock_now
from ._control cimport Control, control_count, control_set, histogram_record
from ._fault cimport hp_fault
from ._ring cimport ring_claim, ring_credit, ring_flush, ring_peek, ring_publish, ring_release
from ._schema cimport (
    HP_BOOK_FLAG_CROSSED, HP_BOOK_FLAG_LOCKED, HP_BOOK_FLAG_STALE, HP_BOOK_FLAG_TRADE,
    HP_HISTOGRAM_BOOK, HP_MARKET_FLAG_BACKFILLED, HP_MARKET_FLAG_LAST, HP_MARKET_GAP,
    HP_METRIC_BOOKS, HP_METRIC_BOOKS_CROSSED, HP_METRIC_BOOKS_STALE, HP_METRIC_CREDIT_STALLS,
    HP_METRIC_DROPS, HP_METRIC_GAPS, HP_METRIC_JUMP_BPS, HP_METRIC_RECORDS_IN,
    HP_METRIC_RECORDS_OUT, HP_RECORD_BOOK_STATUS, hp_book_status_t, hp_book_t, hp_market_t)
from ._stage cimport hp_copy_words, stage_end, store_credit, store_put

from hftpipe import schema

cdef enum:
    SURVEY_NS = 250_000_000         # how often the books are looked over for the page
cdef double MEAN_NS = 60e9          # over which a mid's mean reaches back


cdef class BookStage(Stage):
    """Applies market records to books and publishes each consistent state.

    A state is as old as the newest record that showed the market: a halt, a price band or a trade
    taken back makes a new state and no fresh one.  Bars of the venue and what was backfilled make
    none.

    Parameters
    ----------
    market : Ring
        Consumer end, MARKET.
    outputs : sequence of Ring
        Producer ends, BOOK; one per reader (signal, risk, ledger).
    instruments : (n,) structured array, dtype of INSTRUMENT
    orders : int
        Orders an L3 book can hold.
    """

    def __init__(self, market, outputs, instruments, store=None, Control control=None,
                 int index=1, int orders=65536):
        cdef Book book
        self._setup("book", control, index, store, schema.STREAM.BOOK, schema.STORED)
        self.market = stage_end(self._keep, market, schema.MARKET, False)
        if len(outputs) > STAGE_OUTPUTS:
            raise ValueError(f"at most {STAGE_OUTPUTS} readers of the book, were {len(outputs)}")
        self.output_count = len(outputs)
        for i, ring in enumerate(outputs):
            self.outputs[i] = stage_end(self._keep, ring, schema.BOOK, True)
        self.instruments = len(instruments)
        self.tables = <book_t **>calloc(self.instruments or 1, sizeof(book_t *))
        self.flags = <uint8_t *>calloc(self.instruments or 1, 1)
        self.means = <double *>calloc(self.instruments or 1, sizeof(double))
        self.seen = <int64_t *>calloc(self.instruments or 1, sizeof(int64_t))
        if (self.tables == NULL or self.flags == NULL or self.means == NULL
                or self.seen == NULL):
            raise MemoryError
        self.books = []
        for i, row in enumerate(instruments):
            book = Book(int(row["tick"]), int(row["base_price"]), orders)
            self.books.append(book)
            self.tables[i] = book.b
            self.flags[i] = HP_BOOK_FLAG_STALE

    def __dealloc__(self):
        free(self.tables)
        free(self.flags)
        free(self.means)
        free(self.seen)

    @property
    def handles(self) -> list:
        """The books, by instrument; look, do not change."""
        return list(self.books)

    cdef uint64_t work(self, uint64_t limit) noexcept nogil:
        cdef uint64_t done = 0
        cdef const hp_market_t *m
        cdef hp_book_t *out
        cdef hp_book_t *first
        cdef book_t *book
        cdef hp_book_status_t status
        cdef int i
        cdef int64_t now
        cdef uint8_t flags
        while done < limit:
            m = <const hp_market_t *>ring_peek(self.market)
            if m == NULL:
                self.failed |= self.market.broken != 0
                break
            if store_credit(&self.store) == 0:
                control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                break
            for i in range(self.output_count):
                if ring_credit(self.outputs[i], 1) == 0:
                    control_count(self.block, HP_METRIC_CREDIT_STALLS, 1)
                    break
            else:
                i = -1
            if i >= 0 and self.output_count:
                break
            done += 1
            if m.instrument >= self.instruments:
                control_count(self.block, HP_METRIC_DROPS, 1)
                ring_release(self.market)
                continue
            book = self.tables[m.instrument]
            if not book_apply(book, m):
                control_count(self.block, HP_METRIC_DROPS, 1)
            if m.kind == HP_MARKET_GAP:
                control_count(self.block, HP_METRIC_GAPS, 1)
            if m.flags & HP_MARKET_FLAG_BACKFILLED:
                ring_release(self.market)
                continue
            if not BOOK_WORDS >> (m.kind & 63) & 1:
                self.seen[m.instrument] = m.ts_recv
            if m.flags & HP_MARKET_FLAG_LAST and not BOOK_BARS >> (m.kind & 63) & 1:
                now = clock_now()
                first = NULL
                flags = 0
                for i in range(self.output_count):
                    out = <hp_book_t *>ring_claim(self.outputs[i])
                    if first == NULL:
                        first = out
                        book_view(book, out)
                        out.event, out.ts_recv, out.ts = m.event, self.seen[m.instrument], now
                        out.ts_venue, out.instrument = m.ts_venue, m.instrument
                        out.pad0 = 0
                        out.pad1 = 0
                        flags = out.flags & ~HP_BOOK_FLAG_TRADE
                    else:
                        hp_copy_words(<uint64_t *>out, <const uint64_t *>first, 1, 16)
                if first != NULL and flags != self.flags[m.instrument]:
                    memset(&status, 0, sizeof(status))
                    status.event, status.ts_venue = m.event, m.ts_venue
                    status.bid, status.ask = first.bid, first.ask
                    status.dropped = self.block.counters[HP_METRIC_DROPS]
                    status.instrument = m.instrument
                    status.before, status.after = self.flags[m.instrument], flags
                    self.flags[m.instrument] = flags
                    store_put(&self.store, HP_RECORD_BOOK_STATUS, &status, 1, 1, m.event, now,
                              m.ts_recv, m.instrument, 0)
                for i in range(self.output_count):
                    ring_publish(self.outputs[i])
                    hp_fault("book.passed")
                histogram_record(&self.block.histograms[HP_HISTOGRAM_BOOK],
                                 now - m.ts_recv - m.hop)
                control_count(self.block, HP_METRIC_RECORDS_OUT, self.output_count)
            ring_release(self.market)
        if done:
            control_count(self.block, HP_METRIC_RECORDS_IN, done)
        return done

    cdef void idle(self) noexcept nogil:
        ring_flush(self.market)

    cdef void survey(self, int64_t now) noexcept nogil:
        """Say on the page how the market looks, for who watches it: see ``triggers``.

        A mid's mean moves towards the mid as time passes, not with each event, so that it means
        the same for a busy and for a quiet instrument.
        """
        cdef uint64_t i, books = 0, stale = 0, crossed = 0
        cdef double mid, off, jump = 0.0, share
        share = <double>(now - self.surveyed) / MEAN_NS
        self.surveyed = now
        if share > 1.0:
            share = 1.0
        for i in range(self.instruments):
            if self.flags[i] & HP_BOOK_FLAG_STALE:
                if self.means[i] > 0.0:
                    books += 1
                    stale += 1
                continue
            mid = 0.5 * <double>book_mid2(self.tables[i])
            if mid <= 0.0:                          # a side is empty
                books += self.means[i] > 0.0
                continue
            books += 1
            if self.flags[i] & (HP_BOOK_FLAG_CROSSED | HP_BOOK_FLAG_LOCKED):
                crossed += 1
                continue                            # its mid means nothing
            if self.means[i] <= 0.0:
                self.means[i] = mid
            off = mid / self.means[i] - 1.0
            if off < 0.0:
                off = -off
            if off > jump:
                jump = off
            self.means[i] += (mid - self.means[i]) * share
        control_set(self.block, HP_METRIC_BOOKS, books)
        control_set(self.block, HP_METRIC_BOOKS_STALE, stale)
        control_set(self.block, HP_METRIC_BOOKS_CROSSED, crossed)
        control_set(self.block, HP_METRIC_JUMP_BPS, <uint64_t>(jump * 1e4) if jump < 1e9 else 0)

    cdef object maintain(self):
        cdef int64_t now = clock_now()
        if now - self.surveyed >= SURVEY_NS:
            self.survey(now)
