/* L1, L2 and L3 order book of one instrument: a ladder of 64-tick pages under 64-ary bitmaps.
 *
 * A price is an integer number of ticks t, 1 <= t < 2^63.  Six bits of t choose a level in a
 * page, six more a bit in the page's parent, and so on to a root that covers the highest price
 * seen:
 *
 *     t  =  ... | child of level 2 | child of level 1 (a page) | level in the page
 *                    6 bits                 6 bits                   6 bits
 *
 * Pages and bitmaps are found by one hash table (open addressing, Fibonacci hashing) keyed by
 * (index, level, side), not by arrays of pointers: a price ten thousand times the usual one
 * costs the same probe as its neighbour, and no window has to follow the market.  The table's
 * slot of a bitmap is the bitmap itself; the slot of a page names it in the page pool.
 *
 *     nodes[]    key -> page number | bitmap of children
 *     pages[]    bitmap of levels, quantity of 64 levels
 *     queues[]   per level of a page: first and last order, their count      (L3)
 *     orders[]   32 bytes: reference, quantity, links of 32 bits             (L3)
 *     index[]    hash of a reference -> order                                (L3)
 *
 * Invariants
 *   I1  bit of a level set  <=>  its quantity is positive.  Quantities are never negative.
 *   I2  bit of a child set in a bitmap  <=>  that page or bitmap has a bit set; a bitmap
 *       without bits is not in nodes[].
 *   I3  A page without bits is on the idle list and may be given to another price: everything
 *       in it is zero, so nothing has to be cleared.
 *   I4  An order is listed at a level whose bit is set.  A level that goes takes its orders along.
 *   I5  side.best, best_price and page name the best level whenever side.levels > 0;
 *       best_price is 0 otherwise.
 *   I6  All memory is taken in book_new() and touched there; when a pool runs out the record
 *       is counted, has no effect, and the book is stale: never an allocation, never a crash.
 *
 * What makes a book fresh.  A side is known once a QUOTE replaced it, or a CLEAR and its snapshot
 * up to LAST went by, or when the first record that touches a new book is an ADD (a full order
 * feed from the start of its day; whoever joins one later says GAP first).  GAP and a pool that
 * ran out make both sides unknown.  The book is fresh while both sides are known.
 *
 * Mixed feeds.  QUOTE replaces its whole side, orders included.  LEVEL states the total of its
 * price: orders listed there stay, later EXECUTE, CANCEL and DELETE take from the new total, and
 * it never falls below zero.  A crossed or locked book is flagged and left as it is.
 *
 * Trades taken back.  The newest BOOK_TRADES prints are remembered.  BUST takes one of them back,
 * named by reference, price and quantity (references are unique per exchange only): the volume
 * loses it, and the last trade is the newest one that stands.  FIX puts another in its place.  One
 * that is older or was never seen changes nothing.
 *
 * Halts and bands.  After a GAP nobody knows whether a halt still stands: it does, until a STATUS
 * or a print says otherwise.  Bands are forgotten with a GAP; the venue repeats them.  A fresh
 * book is limited while its bid is at the upper band or its ask at the lower.
 *
 * What is BACKFILLED happened while nobody listened: a print adds to the volume, unless it is
 * remembered; nothing else has an effect.
 */
#ifndef HFTPIPE_BOOK_H
#define HFTPIPE_BOOK_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_schema.h"

#define BOOK_NONE UINT32_MAX
#define BOOK_HINTS 256u             /* remembered pages of a side; a power of two */
#define BOOK_ROOT 10u              /* highest level a price below 2^63 can need */
#define BOOK_TRADES 64u             /* prints that can be taken back; a power of two */
#define BOOK_GOLDEN 0x9E3779B97F4A7C15ull

/* Kinds that say nothing of the sides, and those that say nothing new of the market at all. */
#define BOOK_BARS (1ull << HP_MARKET_BAR_OPEN | 1ull << HP_MARKET_BAR_HIGH \
                   | 1ull << HP_MARKET_BAR_LOW | 1ull << HP_MARKET_BAR_CLOSE)
#define BOOK_WORDS (1ull << HP_MARKET_STATUS | 1ull << HP_MARKET_BUST | 1ull << HP_MARKET_FIX \
                    | 1ull << HP_MARKET_BAND | BOOK_BARS)
#define BOOK_ASIDE (1ull << HP_MARKET_TRADE | 1ull << HP_MARKET_TIMER | BOOK_WORDS)

typedef struct {                    /* 64 levels, and where they stand */
  uint64_t bits;                    /* I1 */
  uint64_t key;                     /* 0 = never used */
  uint32_t prev, next;              /* idle list; meaningful while bits == 0 */
  uint64_t reserved[5];
  int64_t qty[64];                  /* nanoqty */
} __attribute__((aligned(64))) book_page_t;

typedef struct { uint64_t key, value; } book_node_t;        /* key 0 = free */

typedef struct { uint32_t head, tail, count; } book_queue_t;

typedef struct {
  uint64_t ref;
  int64_t qty;                      /* nanoqty left */
  uint32_t next, prev;              /* in its level, oldest first; 0 = none */
  uint32_t level;                   /* page << 6 | level in the page */
  uint32_t reserved;
} book_order_t;
_Static_assert(sizeof(book_order_t) == 32, "an order is half a line");
_Static_assert(sizeof(book_page_t) == 576, "a page is nine lines");

typedef struct {
  int64_t best_price;               /* nanoprice; 0 = no level */
  int64_t best;                     /* tick of it */
  uint32_t page;                    /* page of it */
  uint32_t levels;
  uint32_t top;                     /* level of the root bitmap, at least 1 */
  uint32_t reserved;
  uint32_t hint[BOOK_HINTS];        /* page used last, by the low bits of its index */
} book_side_t;

typedef struct { int64_t price, qty; uint64_t orders; } book_level_t;

typedef struct {
  uint64_t ref;
  int64_t price, qty;               /* qty 0 = taken back, or never used */
  int8_t side;
} book_print_t;

typedef struct {                    /* records without effect, by cause; and what was lost */
  uint64_t applied;
  uint64_t unknown_order;           /* EXECUTE, CANCEL, DELETE, REPLACE of an order not listed */
  uint64_t absent_level;            /* LEVEL with quantity 0 at a price that has none */
  uint64_t off_tick;                /* price that is no positive multiple of the tick */
  uint64_t invalid;                 /* negative or zero quantity, zero reference, side, kind */
  uint64_t duplicate;               /* ADD of a live reference */
  uint64_t exhausted;               /* no free order or page: the book is stale since */
  uint64_t clipped;                 /* applied, but took more than was there */
  uint64_t gaps;
  uint64_t unknown_trade;           /* BUST or FIX of a print not remembered; BACKFILLED and known */
} book_counters_t;

typedef struct book_t {
  book_side_t side[2];              /* 0 bid, 1 ask */
  int64_t tick;                     /* nanoprice */
  uint64_t inverse;                 /* ceil(2^64 / tick); 0 when tick == 1 */
  book_page_t *pages;
  book_node_t *nodes;
  uint64_t node_mask;
  uint32_t node_shift, index_shift;
  uint64_t node_count, node_limit;
  book_queue_t *queues;
  book_order_t *orders;
  uint64_t *index;                  /* high half: of the hash; low half: order, 0 = free */
  uint64_t index_mask;
  uint32_t page_count, page_fresh;  /* pages in the pool; first one never used */
  uint32_t order_count, order_fresh, order_free, order_live;
  int64_t last_price, last_qty, volume;
  book_counters_t counters;
  int8_t last_side;
  uint8_t known;                    /* bit 0 bid, bit 1 ask */
  uint8_t loading;                  /* CLEAR seen, LAST not yet */
  uint8_t touched;                  /* anything but trades and status was ever applied */
  uint8_t halted;                   /* 2 = before a gap */
  uint8_t traded;                   /* in this venue message */
  uint8_t ended;                    /* the previous record was the last of its message */
  int8_t replacing;                 /* side of the order REPLACE_FROM removed; 0 = none */
  int64_t band[2];                  /* nanoprice: upper, lower; 0 = none */
  uint64_t prints;                  /* ever remembered */
  uint64_t fixing;                  /* 1 + the print that the BUST before took back; 0 = none */
  book_print_t print[BOOK_TRADES];  /* by number modulo BOOK_TRADES */
} book_t;

/* ---------------------------------------------------------------- construction */

static inline uint64_t book_power2(uint64_t n) {
  uint64_t p = 16;
  while (p < n) p <<= 1;
  return p;
}

static inline void *book_memory(size_t size) {
  void *p = aligned_alloc(64, (size + 63) & ~(size_t)63);
  if (p) memset(p, 0, (size + 63) & ~(size_t)63);       /* touched now, not in the hot path: I6 */
  return p;
}

static inline void book_free(book_t *b) {
  if (!b) return;
  free(b->pages); free(b->nodes); free(b->queues); free(b->orders); free(b->index); free(b);
}

/* A new book, or NULL when there is no memory.  tick > 0; orders and pages < 2^26. */
static inline book_t *book_new(int64_t tick, uint32_t orders, uint32_t pages) {
  book_t *b = (book_t *)book_memory(sizeof(book_t));
  if (!b) return NULL;
  uint64_t nodes = book_power2(4ull * pages + 64), index = book_power2(2ull * orders + 1);
  b->tick = tick;
  b->inverse = tick == 1 ? 0 : UINT64_MAX / (uint64_t)tick + 1;
  b->page_count = pages + 1;        /* page 0 and order 0 mean none */
  b->order_count = orders + 1;
  b->page_fresh = b->order_fresh = 1;
  b->node_mask = nodes - 1;
  b->node_shift = 64u - (uint32_t)__builtin_ctzll(nodes);
  b->node_limit = nodes / 4 * 3;
  b->index_mask = index - 1;
  b->index_shift = 32u - (uint32_t)__builtin_ctzll(index);
  b->side[0].top = b->side[1].top = 1;
  b->ended = 1;
  b->pages = (book_page_t *)book_memory(sizeof(book_page_t) * b->page_count);
  b->nodes = (book_node_t *)book_memory(sizeof(book_node_t) * nodes);
  b->queues = (book_queue_t *)book_memory(sizeof(book_queue_t) * 64 * (orders ? b->page_count : 1));
  b->orders = (book_order_t *)book_memory(sizeof(book_order_t) * b->order_count);
  b->index = (uint64_t *)book_memory(sizeof(uint64_t) * index);
  if (!b->pages || !b->nodes || !b->queues || !b->orders || !b->index) { book_free(b); return NULL; }
  return b;
}

/* ---------------------------------------------------------------- hash of pages and bitmaps */

static inline uint64_t book_key(uint32_t side, uint32_t level, uint64_t index) {
  return 1ull << 63 | index << 5 | level << 1 | side;
}

static inline uint64_t book_above(uint64_t t, uint32_t level) {     /* t >> 6 * level, level <= 11 */
  return level > 10 ? 0 : t >> (6 * level);
}

static inline uint64_t book_home(const book_t *b, uint64_t key) {
  return key * BOOK_GOLDEN >> b->node_shift;
}

static inline uint32_t book_find(const book_t *b, uint64_t key) {
  uint64_t i = book_home(b, key);
  for (; b->nodes[i].key; i = (i + 1) & b->node_mask)
    if (b->nodes[i].key == key) return (uint32_t)i;
  return BOOK_NONE;
}

static inline void book_insert(book_t *b, uint64_t key, uint64_t value) {
  uint64_t i = book_home(b, key);
  while (b->nodes[i].key) i = (i + 1) & b->node_mask;
  b->nodes[i].key = key;
  b->nodes[i].value = value;
  b->node_count++;
}

static inline void book_erase(book_t *b, uint64_t i) {  /* backward shift: no tombstones, ever */
  uint64_t j = i, mask = b->node_mask;
  for (;;) {
    j = (j + 1) & mask;
    if (!b->nodes[j].key) break;
    if (((j - book_home(b, b->nodes[j].key)) & mask) >= ((j - i) & mask)) {
      b->nodes[i] = b->nodes[j];
      i = j;
    }
  }
  b->nodes[i].key = 0;
  b->node_count--;
}

/* ---------------------------------------------------------------- pages */

static inline void book_exhaust(book_t *b) {
  b->counters.exhausted++;
  b->known = b->loading = 0;
}

static inline void book_idle_add(book_t *b, uint32_t page) {        /* at the end of the list */
  book_page_t *p = &b->pages[page], *nil = &b->pages[0];
  p->prev = nil->prev;
  p->next = 0;
  b->pages[nil->prev].next = page;
  nil->prev = page;
}

static inline void book_idle_remove(book_t *b, uint32_t page) {
  book_page_t *p = &b->pages[page];
  b->pages[p->prev].next = p->next;
  b->pages[p->next].prev = p->prev;
}

/* The page of tick t, or 0 when no page holds it. */
static inline uint32_t book_page(book_t *b, uint32_t s, int64_t t) {
  uint64_t index = (uint64_t)t >> 6, key = book_key(s, 0, index);
  uint32_t *hint = &b->side[s].hint[index & (BOOK_HINTS - 1)];
  if (__builtin_expect(b->pages[*hint].key == key, 1)) return *hint;
  uint32_t i = book_find(b, key);
  if (i == BOOK_NONE) return 0;
  return *hint = (uint32_t)b->nodes[i].value;
}

/* The same, taking a page from the pool; 0 when the pool is empty. */
static inline uint32_t book_page_take(book_t *b, uint32_t s, int64_t t) {
  uint32_t page = book_page(b, s, t);
  if (__builtin_expect(page != 0, 1)) return page;
  if (b->node_count + 2 * BOOK_ROOT + 4 > b->node_limit) return 0;
  if (b->page_fresh < b->page_count) {
    page = b->page_fresh++;
  } else {
    page = b->pages[0].next;        /* empty for the longest time: I3 */
    if (!page) return 0;
    book_idle_remove(b, page);
    book_erase(b, book_find(b, b->pages[page].key));
  }
  b->pages[page].key = book_key(s, 0, (uint64_t)t >> 6);
  book_insert(b, b->pages[page].key, page);
  book_idle_add(b, page);
  b->side[s].hint[((uint64_t)t >> 6) & (BOOK_HINTS - 1)] = page;
  return page;
}

/* Tell the bitmaps above that the page of t has levels now; 0 when they have no room. */
static inline int book_rise(book_t *b, uint32_t s, int64_t t) {
  book_side_t *side = &b->side[s];
  if (b->node_count + 2 * BOOK_ROOT + 4 > b->node_limit) return 0;
  while (book_above((uint64_t)t, side->top + 1)) {
    if (side->levels) book_insert(b, book_key(s, side->top + 1, 0), 1);
    side->top++;
  }
  for (uint32_t level = 1; level <= side->top; level++) {
    uint64_t key = book_key(s, level, book_above((uint64_t)t, level + 1));
    uint64_t bit = 1ull << (book_above((uint64_t)t, level) & 63);
    uint32_t i = book_find(b, key);
    if (i != BOOK_NONE) { b->nodes[i].value |= bit; return 1; }
    book_insert(b, key, bit);
  }
  return 1;
}

/* Tell the bitmaps above that the page of t has no level any more. */
static inline void book_fall(book_t *b, uint32_t s, int64_t t) {
  for (uint32_t level = 1; level <= b->side[s].top; level++) {
    uint32_t i = book_find(b, book_key(s, level, book_above((uint64_t)t, level + 1)));
    b->nodes[i].value &= ~(1ull << (book_above((uint64_t)t, level) & 63));
    if (b->nodes[i].value) return;
    book_erase(b, i);
  }
}

/* The first page with levels strictly behind the page of t, away from the market; 0 = none. */
static inline uint32_t book_page_behind(const book_t *b, uint32_t s, int64_t t) {
  for (uint32_t level = 1; level <= b->side[s].top; level++) {
    uint64_t index = book_above((uint64_t)t, level + 1), at = book_above((uint64_t)t, level) & 63;
    uint32_t i = book_find(b, book_key(s, level, index));
    if (i == BOOK_NONE) continue;
    uint64_t bits = b->nodes[i].value & (s ? ~1ull << at : ~(~0ull << at));
    if (!bits) continue;
    for (;;) {
      index = index << 6 | (uint64_t)(s ? __builtin_ctzll(bits) : 63 - __builtin_clzll(bits));
      level--;
      i = book_find(b, book_key(s, level, index));
      if (level == 0) return (uint32_t)b->nodes[i].value;
      bits = b->nodes[i].value;
    }
  }
  return 0;
}

static inline int64_t book_page_tick(const book_t *b, uint32_t page) {  /* of its level 0 */
  return (int64_t)((b->pages[page].key & ~(1ull << 63)) >> 5 << 6);
}

static inline int64_t book_page_best(const book_t *b, uint32_t s, uint32_t page) {
  uint64_t bits = b->pages[page].bits;
  return book_page_tick(b, page) + (s ? __builtin_ctzll(bits) : 63 - __builtin_clzll(bits));
}

static inline void book_best_find(book_t *b, uint32_t s, uint32_t page, int64_t t) {
  book_side_t *side = &b->side[s];
  if (!b->pages[page].bits) page = side->levels ? book_page_behind(b, s, t) : 0;
  side->page = page;
  side->best = page ? book_page_best(b, s, page) : 0;
  side->best_price = side->best * b->tick;
}

/* ---------------------------------------------------------------- levels */

/* Set an absent level; 0 when the bitmaps have no room.  qty > 0. */
static inline int book_level_new(book_t *b, uint32_t s, int64_t t, uint32_t page, int64_t qty) {
  book_side_t *side = &b->side[s];
  book_page_t *p = &b->pages[page];
  if (!p->bits) {
    if (!book_rise(b, s, t)) return 0;
    book_idle_remove(b, page);
  }
  p->bits |= 1ull << (t & 63);
  p->qty[t & 63] = qty;
  if (!side->levels++ || (s ? t < side->best : t > side->best)) {
    side->best = t;
    side->page = page;
    side->best_price = t * b->tick;
  }
  return 1;
}

static inline void book_forget(book_t *b, uint32_t level);

static inline void book_level_gone(book_t *b, uint32_t s, int64_t t, uint32_t page) {
  book_page_t *p = &b->pages[page];
  if (b->order_live) book_forget(b, page << 6 | (uint32_t)(t & 63));       /* I4 */
  p->bits &= ~(1ull << (t & 63));
  p->qty[t & 63] = 0;
  b->side[s].levels--;
  if (!p->bits) {
    book_fall(b, s, t);
    book_idle_add(b, page);
  }
  if (t == b->side[s].best) book_best_find(b, s, page, t);
}

static inline void book_side_clear(book_t *b, uint32_t s) {
  while (b->side[s].levels) book_level_gone(b, s, b->side[s].best, b->side[s].page);
}

/* Ticks of a price, or 0 when it is no positive multiple of the tick.  The multiplication is
 * exact for multiples below 2^63, and the product shows whether it was one. */
static inline int64_t book_ticks(const book_t *b, int64_t price) {
  if (price <= 0) return 0;
  if (!b->inverse) return price;
  int64_t t = (int64_t)((unsigned __int128)(uint64_t)price * b->inverse >> 64);
  return (uint64_t)t * (uint64_t)b->tick == (uint64_t)price ? t : 0;
}

/* ---------------------------------------------------------------- orders */

static inline uint32_t book_hash(uint64_t ref) { return (uint32_t)(ref * BOOK_GOLDEN >> 32); }

static inline uint64_t book_index_find(const book_t *b, uint64_t ref) {     /* slot, or UINT64_MAX */
  uint32_t hash = book_hash(ref);
  for (uint64_t i = hash >> b->index_shift; b->index[i]; i = (i + 1) & b->index_mask)
    if (b->index[i] >> 32 == hash && b->orders[(uint32_t)b->index[i]].ref == ref) return i;
  return UINT64_MAX;
}

static inline void book_index_erase(book_t *b, uint64_t i) {
  uint64_t j = i, mask = b->index_mask;
  for (;;) {
    j = (j + 1) & mask;
    if (!b->index[j]) break;
    uint64_t home = (uint32_t)(b->index[j] >> 32) >> b->index_shift;
    if (((j - home) & mask) >= ((j - i) & mask)) {
      b->index[i] = b->index[j];
      i = j;
    }
  }
  b->index[i] = 0;
}

static inline void book_order_free(book_t *b, uint32_t order) {     /* LIFO: the line is warm */
  b->orders[order].ref = 0;
  b->orders[order].next = b->order_free;
  b->order_free = order;
  b->order_live--;
}

static inline void book_forget(book_t *b, uint32_t level) {
  book_queue_t *q = &b->queues[level];
  for (uint32_t order = q->head; order;) {
    uint32_t next = b->orders[order].next;
    book_index_erase(b, book_index_find(b, b->orders[order].ref));
    book_order_free(b, order);
    order = next;
  }
  q->head = q->tail = q->count = 0;
}

/* List an order; 1 done, 0 refused and counted. */
static inline int book_order_add(book_t *b, uint32_t s, uint64_t ref, int64_t price, int64_t qty) {
  int64_t t = book_ticks(b, price), total;
  if (!t) { b->counters.off_tick++; return 0; }
  if (qty <= 0 || !ref) { b->counters.invalid++; return 0; }
  uint32_t hash = book_hash(ref);
  uint64_t slot = hash >> b->index_shift;
  for (; b->index[slot]; slot = (slot + 1) & b->index_mask)
    if (b->index[slot] >> 32 == hash && b->orders[(uint32_t)b->index[slot]].ref == ref) {
      b->counters.duplicate++;
      return 0;
    }
  uint32_t order = b->order_free;
  if (!order && b->order_fresh == b->order_count) { book_exhaust(b); return 0; }
  uint32_t page = book_page_take(b, s, t), at = (uint32_t)(t & 63);
  if (!page) { book_exhaust(b); return 0; }
  if (b->pages[page].bits >> at & 1) {
    if (__builtin_add_overflow(b->pages[page].qty[at], qty, &total)) {
      b->counters.invalid++;
      return 0;
    }
    b->pages[page].qty[at] = total;
  } else if (!book_level_new(b, s, t, page, qty)) {
    book_exhaust(b);
    return 0;
  }
  if (order) b->order_free = b->orders[order].next;
  else order = b->order_fresh++;
  b->order_live++;
  b->index[slot] = (uint64_t)hash << 32 | order;
  book_queue_t *q = &b->queues[page << 6 | at];
  book_order_t *o = &b->orders[order];
  o->ref = ref;
  o->qty = qty;
  o->level = page << 6 | at;
  o->next = 0;
  o->prev = q->tail;
  if (q->tail) b->orders[q->tail].next = order;
  else q->head = order;
  q->tail = order;
  q->count++;
  return 1;
}

/* Take qty from the order in an index slot, everything when qty < 0. */
static inline void book_order_take(book_t *b, uint64_t slot, int64_t qty) {
  uint32_t order = (uint32_t)b->index[slot];
  book_order_t *o = &b->orders[order];
  uint32_t level = o->level, page = level >> 6, at = level & 63;
  book_page_t *p = &b->pages[page];
  if (qty > o->qty) b->counters.clipped++;
  if (qty < 0 || qty > o->qty) qty = o->qty;
  int64_t left = p->qty[at] - qty;
  if (left < 0) b->counters.clipped++;      /* a LEVEL said less than its orders add up to */
  o->qty -= qty;
  if (!o->qty) {
    book_queue_t *q = &b->queues[level];
    if (o->prev) b->orders[o->prev].next = o->next;
    else q->head = o->next;
    if (o->next) b->orders[o->next].prev = o->prev;
    else q->tail = o->prev;
    q->count--;
    book_index_erase(b, slot);
    book_order_free(b, order);
  }
  if (left > 0) p->qty[at] = left;
  else book_level_gone(b, (uint32_t)(p->key & 1), book_page_tick(b, page) + at, page);
}

static inline int64_t book_order_price(const book_t *b, const book_order_t *o) {
  return (book_page_tick(b, o->level >> 6) + (o->level & 63)) * b->tick;
}

static inline int8_t book_order_side(const book_t *b, const book_order_t *o) {
  return b->pages[o->level >> 6].key & 1 ? HP_SIDE_SELL : HP_SIDE_BUY;
}

/* A live order by its reference, or NULL. */
static inline const book_order_t *book_order(const book_t *b, uint64_t ref) {
  uint64_t slot = ref ? book_index_find(b, ref) : UINT64_MAX;
  return slot == UINT64_MAX ? NULL : &b->orders[(uint32_t)b->index[slot]];
}

/* Quantity of the orders before it in its level; walks the queue. */
static inline int64_t book_order_ahead(const book_t *b, const book_order_t *o) {
  int64_t ahead = 0;
  for (uint32_t i = o->prev; i; i = b->orders[i].prev) ahead += b->orders[i].qty;
  return ahead;
}

/* ---------------------------------------------------------------- one record */

static inline int64_t book_sum(int64_t a, int64_t b) {              /* saturates; a, b >= 0 */
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? INT64_MAX : sum;
}

static inline void book_trade(book_t *b, uint64_t ref, int64_t price, int64_t qty, int8_t side,
                              uint8_t flags) {
  if (flags & HP_MARKET_FLAG_UNPRINTABLE) return;
  b->last_price = price;
  b->last_qty = qty;
  b->last_side = side;
  b->volume = book_sum(b->volume, qty);
  b->traded = 1;
  if (__builtin_expect(b->halted == 2, 0)) b->halted = 0;
  b->print[b->prints++ & (BOOK_TRADES - 1)] = (book_print_t){ref, price, qty, side};
}

/* 1 + the number of a remembered print; 0 = none. */
static inline uint64_t book_print_find(const book_t *b, const hp_market_t *m) {
  uint64_t first = b->prints > BOOK_TRADES ? b->prints - BOOK_TRADES : 0;
  for (uint64_t n = b->prints; n > first; n--) {
    const book_print_t *p = &b->print[(n - 1) & (BOOK_TRADES - 1)];
    if (p->qty && p->ref == m->ref && p->price == m->price && p->qty == m->qty) return n;
  }
  return 0;
}

/* The last trade is the newest print that stands; none = not known. */
static inline void book_print_last(book_t *b) {
  uint64_t first = b->prints > BOOK_TRADES ? b->prints - BOOK_TRADES : 0;
  b->last_price = b->last_qty = b->last_side = 0;
  for (uint64_t n = b->prints; n > first; n--) {
    const book_print_t *p = &b->print[(n - 1) & (BOOK_TRADES - 1)];
    if (!p->qty) continue;
    b->last_price = p->price;
    b->last_qty = p->qty;
    b->last_side = p->side;
    return;
  }
}

static inline int book_quote(book_t *b, uint32_t s, const hp_market_t *m) {
  book_side_t *side = &b->side[s];
  if (m->qty == 0) {
    book_side_clear(b, s);
  } else {
    int64_t t = book_ticks(b, m->price), old = side->best;
    if (!t) { b->counters.off_tick++; return 0; }
    if (side->levels > 1 || b->order_live) book_side_clear(b, s);
    if (side->levels && old == t) {
      b->pages[side->page].qty[t & 63] = m->qty;
    } else {
      uint32_t page = book_page_take(b, s, t);
      if (!page && side->levels) {          /* its own old level may be what fills the pool */
        book_side_clear(b, s);
        page = book_page_take(b, s, t);
      }
      if (!page || !book_level_new(b, s, t, page, m->qty)) { book_exhaust(b); return 0; }
      if (side->levels > 1) {               /* the new one first: the bitmaps never run empty */
        uint32_t i = book_find(b, book_key(s, 0, (uint64_t)old >> 6));
        book_level_gone(b, s, old, (uint32_t)b->nodes[i].value);
      }
    }
  }
  b->known |= (uint8_t)(1u << s);
  return 1;
}

static inline int book_level(book_t *b, uint32_t s, const hp_market_t *m) {
  int64_t t = book_ticks(b, m->price);
  if (!t) { b->counters.off_tick++; return 0; }
  uint32_t at = (uint32_t)(t & 63), page;
  if (m->qty == 0) {
    page = book_page(b, s, t);
    if (!(b->pages[page].bits >> at & 1)) { b->counters.absent_level++; return 0; }
    book_level_gone(b, s, t, page);
    return 1;
  }
  page = book_page_take(b, s, t);
  if (page && b->pages[page].bits >> at & 1) b->pages[page].qty[at] = m->qty;
  else if (!page || !book_level_new(b, s, t, page, m->qty)) { book_exhaust(b); return 0; }
  return 1;
}

static inline int book_change(book_t *b, const hp_market_t *m) {
  uint32_t s = m->side < 0;
  uint64_t slot, fixing = b->fixing;
  int8_t side, replacing = b->replacing;
  b->replacing = 0;
  b->fixing = 0;
  if (__builtin_expect(m->qty < 0, 0)) { b->counters.invalid++; return 0; }
  if (__builtin_expect(m->flags & HP_MARKET_FLAG_BACKFILLED, 0)) {
    if (m->kind != HP_MARKET_TRADE) return 1;
    if (m->price <= 0 || m->qty == 0) { b->counters.invalid++; return 0; }
    if (book_print_find(b, m)) { b->counters.unknown_trade++; return 0; }
    b->volume = book_sum(b->volume, m->qty);
    return 1;
  }
  switch (m->kind) {
  case HP_MARKET_LEVEL:
  case HP_MARKET_QUOTE:
    b->touched = 1;
    if (m->side != 1 && m->side != -1) { b->counters.invalid++; return 0; }
    return m->kind == HP_MARKET_LEVEL ? book_level(b, s, m) : book_quote(b, s, m);
  case HP_MARKET_ADD:
    if (m->side != 1 && m->side != -1) { b->counters.invalid++; return 0; }
    if (!book_order_add(b, s, m->ref, m->price, m->qty)) return 0;
    if (!b->touched) { b->touched = 1; b->known = 3; }
    return 1;
  case HP_MARKET_EXECUTE:
  case HP_MARKET_CANCEL:
  case HP_MARKET_DELETE:
  case HP_MARKET_REPLACE_FROM:
    b->touched = 1;
    if (!m->ref || (m->qty == 0 && m->kind < HP_MARKET_DELETE)) { b->counters.invalid++; return 0; }
    slot = book_index_find(b, m->ref);
    if (slot == UINT64_MAX) { b->counters.unknown_order++; return 0; }
    const book_order_t *o = &b->orders[(uint32_t)b->index[slot]];
    side = book_order_side(b, o);
    if (m->kind == HP_MARKET_EXECUTE)
      book_trade(b, m->ref, m->price > 0 ? m->price : book_order_price(b, o), m->qty,
                 (int8_t)-side, m->flags);
    if (m->kind == HP_MARKET_REPLACE_FROM) b->replacing = side;
    book_order_take(b, slot, m->kind < HP_MARKET_DELETE ? m->qty : -1);
    return 1;
  case HP_MARKET_REPLACE_TO:
    b->touched = 1;
    if (!replacing) { b->counters.unknown_order++; return 0; }
    return book_order_add(b, replacing < 0, m->ref, m->price, m->qty);
  case HP_MARKET_CLEAR:
    b->touched = 1;
    book_side_clear(b, 0);
    book_side_clear(b, 1);
    b->known = 0;
    b->loading = 1;
    return 1;
  case HP_MARKET_GAP:
    b->touched = 1;
    b->known = b->loading = 0;
    b->band[0] = b->band[1] = 0;
    if (b->halted) b->halted = 2;
    b->counters.gaps++;
    return 1;
  case HP_MARKET_TRADE:
    if (m->price <= 0 || m->qty == 0) { b->counters.invalid++; return 0; }
    book_trade(b, m->ref, m->price, m->qty, m->side, m->flags);
    return 1;
  case HP_MARKET_BUST:
    slot = book_print_find(b, m);
    if (!m->qty || !slot) { b->counters.unknown_trade++; return 0; }
    b->print[(slot - 1) & (BOOK_TRADES - 1)].qty = 0;
    b->volume = b->volume > m->qty ? b->volume - m->qty : 0;
    b->fixing = slot;
    book_print_last(b);
    return 1;
  case HP_MARKET_FIX:
    if (m->price <= 0 || m->qty == 0) { b->counters.invalid++; return 0; }
    if (!fixing) { b->counters.unknown_trade++; return 0; }
    book_print_t *fixed = &b->print[(fixing - 1) & (BOOK_TRADES - 1)];
    fixed->ref = m->ref;
    fixed->price = m->price;
    fixed->qty = m->qty;
    b->volume = book_sum(b->volume, m->qty);
    book_print_last(b);
    return 1;
  case HP_MARKET_BAND:
    if ((m->side != 1 && m->side != -1) || m->price < 0) { b->counters.invalid++; return 0; }
    b->band[s] = m->price;
    return 1;
  case HP_MARKET_BAR_OPEN:
  case HP_MARKET_BAR_HIGH:
  case HP_MARKET_BAR_LOW:
  case HP_MARKET_BAR_CLOSE:
    return 1;
  case HP_MARKET_STATUS:
    b->halted = m->ref == 0;
    return 1;
  case HP_MARKET_TIMER:
    return 1;
  default:
    b->counters.invalid++;
    return 0;
  }
}

/* Apply one record of this book's instrument: 1 it was taken, 0 it was a counted no-op. */
static inline int book_apply(book_t *b, const hp_market_t *m) {
  if (b->ended) b->traded = 0;
  b->ended = m->flags & HP_MARKET_FLAG_LAST;
  int effect = book_change(b, m);
  b->counters.applied += (uint64_t)effect;
  if (__builtin_expect(b->loading && b->ended, 0) && !(BOOK_ASIDE >> (m->kind & 63) & 1)
      && !(m->flags & HP_MARKET_FLAG_BACKFILLED)) {
    b->loading = 0;
    b->known = 3;
  }
  return effect;
}

/* ---------------------------------------------------------------- questions */

static inline int64_t book_best_bid(const book_t *b) { return b->side[0].best_price; }
static inline int64_t book_best_ask(const book_t *b) { return b->side[1].best_price; }

static inline int64_t book_best_qty(const book_t *b, uint32_t s) {  /* page 0 holds zeros only */
  return b->pages[b->side[s].page].qty[b->side[s].best & 63];
}

/* Twice the mid, so that it is exact; 0 when a side is empty.  Prices stay below 2^62. */
static inline int64_t book_mid2(const book_t *b) {
  int64_t bid = b->side[0].best_price, ask = b->side[1].best_price;
  return bid && ask ? book_sum(bid, ask) : 0;
}

/* ask - bid, negative when crossed; 0 when a side is empty. */
static inline int64_t book_spread(const book_t *b) {
  int64_t bid = b->side[0].best_price, ask = b->side[1].best_price;
  return bid && ask ? ask - bid : 0;
}

static inline double book_spread_bps(const book_t *b) {
  int64_t mid2 = book_mid2(b);
  return mid2 ? 2e4 * (double)book_spread(b) / (double)mid2 : 0.0;
}

typedef struct { uint64_t bits; int64_t tick; uint32_t side, page; } book_cursor_t;

static inline book_cursor_t book_cursor(const book_t *b, uint32_t s) {      /* before the best */
  book_cursor_t c = {b->pages[b->side[s].page].bits, 0, s, b->side[s].page};
  return c;
}

/* Go to the next level away from the market: its quantity, or 0 at the end.  c->tick is its tick. */
static inline int64_t book_step(const book_t *b, book_cursor_t *c) {
  if (!c->bits) {
    if (!c->page) return 0;
    c->page = book_page_behind(b, c->side, book_page_tick(b, c->page));
    c->bits = b->pages[c->page].bits;
    if (!c->bits) return 0;
  }
  uint32_t at = (uint32_t)(c->side ? __builtin_ctzll(c->bits) : 63 - __builtin_clzll(c->bits));
  c->bits &= ~(1ull << at);
  c->tick = book_page_tick(b, c->page) + at;
  return b->pages[c->page].qty[at];
}

/* The best *count* levels of a side (0 bid, 1 ask) into out; how many there were. */
static inline int64_t book_levels(const book_t *b, uint32_t s, book_level_t *out, int64_t count) {
  book_cursor_t c = book_cursor(b, s);
  int64_t n = 0, qty;
  while (n < count && (qty = book_step(b, &c)) > 0) {
    uint32_t level = c.page << 6 | (uint32_t)(c.tick & 63);
    out[n].price = c.tick * b->tick;
    out[n].qty = qty;
    out[n++].orders = b->order_count > 1 ? b->queues[level].count : 0;
  }
  return n;
}

/* Quantity of the best *count* levels of a side; saturates. */
static inline int64_t book_depth(const book_t *b, uint32_t s, int64_t count) {
  book_cursor_t c = book_cursor(b, s);
  int64_t sum = 0, qty;
  while (count-- > 0 && (qty = book_step(b, &c)) > 0) sum = book_sum(sum, qty);
  return sum;
}

/* (bid - ask) / (bid + ask) over the best *count* levels, in [-1, 1]; 0 when both are empty. */
static inline double book_imbalance(const book_t *b, int64_t count) {
  double bid = (double)book_depth(b, 0, count), ask = (double)book_depth(b, 1, count);
  return bid + ask > 0 ? (bid - ask) / (bid + ask) : 0.0;
}

/* What taking qty from side s (0 bid, 1 ask) costs: price times quantity in 1e-18, exact. */
typedef struct { unsigned __int128 cost; int64_t filled, unfilled, worst; } book_walk_t;

static inline book_walk_t book_walk(const book_t *b, uint32_t s, int64_t qty) {
  book_walk_t w = {0, 0, qty > 0 ? qty : 0, 0};
  book_cursor_t c = book_cursor(b, s);
  int64_t have;
  while (w.unfilled && (have = book_step(b, &c)) > 0) {
    int64_t take = have < w.unfilled ? have : w.unfilled;
    w.worst = c.tick * b->tick;
    w.cost += (unsigned __int128)w.worst * (uint64_t)take;
    w.filled += take;
    w.unfilled -= take;
  }
  return w;
}

static inline uint8_t book_flags(const book_t *b) {
  int64_t bid = b->side[0].best_price, ask = b->side[1].best_price;
  uint8_t flags = b->known == 3 ? 0 : HP_BOOK_FLAG_STALE;
  if (!bid || !ask) flags |= HP_BOOK_FLAG_EMPTY;
  else if (bid > ask) flags |= HP_BOOK_FLAG_CROSSED;
  else if (bid == ask) flags |= HP_BOOK_FLAG_LOCKED;
  if (b->halted) flags |= HP_BOOK_FLAG_HALTED;
  if (!(flags & HP_BOOK_FLAG_STALE)
      && ((b->band[0] && bid >= b->band[0]) || (b->band[1] && ask && ask <= b->band[1])))
    flags |= HP_BOOK_FLAG_LIMITED;
  if (b->traded) flags |= HP_BOOK_FLAG_TRADE;
  return flags;
}

static inline void book_view(const book_t *b, hp_book_t *out) {
  out->bid = b->side[0].best_price;
  out->ask = b->side[1].best_price;
  out->bid_qty = book_best_qty(b, 0);
  out->ask_qty = book_best_qty(b, 1);
  out->bid_depth = book_depth(b, 0, HP_DEPTH);
  out->ask_depth = book_depth(b, 1, HP_DEPTH);
  out->last_price = b->last_price;
  out->last_qty = b->last_qty;
  out->volume = b->volume;
  out->last_side = b->last_side;
  out->flags = book_flags(b);
}

/* Records without effect so far; what BOOK_STATUS.dropped says. */
static inline uint64_t book_dropped(const book_t *b) {
  const book_counters_t *c = &b->counters;
  return c->unknown_order + c->absent_level + c->off_tick + c->invalid + c->duplicate
       + c->exhausted + c->unknown_trade;
}
#endif
