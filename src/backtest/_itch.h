/* NASDAQ TotalView-ITCH 5.0 (file form: u16 big-endian length, message) to MARKET records.
 *
 * Offsets count from the message's type byte; every integer is big-endian; prices have four
 * decimals.  E and C that take the last share end the order without a D, which the book does
 * by itself.  P, Q and B never touch the displayed book.  Side, stock and attribution of a U's
 * new order are the old one's. */
#ifndef HFTPIPE_ITCH_H
#define HFTPIPE_ITCH_H
#include "../_book.h"

#define ITCH_NONE 0xFFFFu           /* no instrument */
#define ITCH_PRICE 100000           /* 1e-4 in nanoprice */
#define ITCH_QTY 1000000000         /* one share in nanoqty */
#define ITCH_MOST 2                 /* records one message can make */

enum { ITCH_OK, ITCH_LENGTH, ITCH_VALUE };

typedef struct {
  uint16_t instrument[65536];       /* of a stock locate; ITCH_NONE = not wanted */
  int64_t midnight;                 /* UTC ns of the day's midnight in New York; 0 = not known */
  int64_t now;                      /* newest timestamp: a step back is not passed on */
  uint64_t event;                   /* identity of the last record made */
  uint64_t messages, unknown, broken, ignored;
  int error, wanted, found, type;   /* of the message that stopped it */
} itch_t;

typedef hp_market_t itch_row_t __attribute__((aligned(8)));     /* numpy aligns to 16 bytes only */

typedef struct {                    /* what a first reading tells about one locate */
  char symbol[8];
  uint32_t tick, first;             /* in 1e-4: common divisor of 0.01 and all prices; first price */
} itch_stock_t;

static inline uint16_t itch_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return __builtin_bswap16(v); }
static inline uint32_t itch_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }
static inline uint64_t itch_u64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v); }
static inline int64_t itch_u48(const uint8_t *p) { return (int64_t)(itch_u64(p - 2) & 0xFFFFFFFFFFFFull); }

static const uint8_t ITCH_LENGTHS[256] = {
  ['S'] = 12, ['R'] = 39, ['H'] = 25, ['Y'] = 20, ['L'] = 26, ['V'] = 35, ['W'] = 12, ['K'] = 28,
  ['J'] = 35, ['h'] = 21, ['A'] = 36, ['F'] = 40, ['E'] = 31, ['C'] = 36, ['X'] = 23, ['D'] = 19,
  ['U'] = 35, ['P'] = 44, ['Q'] = 40, ['B'] = 19, ['I'] = 50, ['N'] = 20, ['O'] = 48};

/* Bytes of the whole frame at p, 0 when the data ends within it, -1 when its length is wrong. */
static inline int64_t itch_frame(itch_t *t, const uint8_t *p, int64_t left) {
  if (left < 3) return 0;
  int length = itch_u16(p), wanted = ITCH_LENGTHS[p[2]];
  if (__builtin_expect(length != wanted && (wanted || length < 11), 0)) {
    t->error = ITCH_LENGTH;
    t->type = p[2];
    t->wanted = wanted ? wanted : 11;
    t->found = length;
    return -1;
  }
  return left < length + 2 ? 0 : length + 2;
}

/* Records of one message of a wanted instrument: 0, 1 or 2 of them, written to m. */
static inline int itch_message(itch_t *t, const uint8_t *p, uint16_t instrument, itch_row_t *m) {
  int64_t ts = itch_u48(p + 5);
  if (ts > t->now) t->now = ts;
  m->link_seq = 0;
  m->ts_recv = t->now;
  m->ts_venue = t->midnight ? t->midnight + ts : 0;
  m->instrument = instrument;
  m->side = 0;
  m->flags = HP_MARKET_FLAG_LAST;
  m->pad0 = 0;
  m->hop = 0;
  m->price = m->qty = 0;
  m->ref = itch_u64(p + 11);
  switch (p[0]) {
  case 'A': case 'F':
    m->kind = HP_MARKET_ADD;
    m->side = p[19] == 'B' ? HP_SIDE_BUY : HP_SIDE_SELL;
    m->qty = (int64_t)itch_u32(p + 20) * ITCH_QTY;
    m->price = (int64_t)itch_u32(p + 32) * ITCH_PRICE;
    if (__builtin_expect(p[19] != 'B' && p[19] != 'S', 0)) {
      t->error = ITCH_VALUE;
      t->type = p[0];
      t->found = p[19];
      return -1;
    }
    break;
  case 'C':
    m->price = (int64_t)itch_u32(p + 32) * ITCH_PRICE;
    if (p[31] != 'Y') m->flags |= HP_MARKET_FLAG_UNPRINTABLE;
    /* fall through */
  case 'E':
    m->kind = HP_MARKET_EXECUTE;
    m->qty = (int64_t)itch_u32(p + 19) * ITCH_QTY;
    break;
  case 'X':
    m->kind = HP_MARKET_CANCEL;
    m->qty = (int64_t)itch_u32(p + 19) * ITCH_QTY;
    break;
  case 'D':
    m->kind = HP_MARKET_DELETE;
    break;
  case 'U':
    m->kind = HP_MARKET_REPLACE_FROM;
    m->flags = 0;
    m->event = ++t->event;
    m[1] = m[0];
    m[1].kind = HP_MARKET_REPLACE_TO;
    m[1].flags = HP_MARKET_FLAG_LAST;
    m[1].ref = itch_u64(p + 19);
    m[1].qty = (int64_t)itch_u32(p + 27) * ITCH_QTY;
    m[1].price = (int64_t)itch_u32(p + 31) * ITCH_PRICE;
    m[1].event = ++t->event;
    return 2;
  case 'P':                         /* side is the resting order's, always B since 2014: unknown */
    m->kind = HP_MARKET_TRADE;
    m->flags |= HP_MARKET_FLAG_HIDDEN;
    m->qty = (int64_t)itch_u32(p + 20) * ITCH_QTY;
    m->price = (int64_t)itch_u32(p + 32) * ITCH_PRICE;
    m->ref = itch_u64(p + 36);
    break;
  case 'Q': {                       /* shares may be 0: a cross that did not happen */
    uint64_t shares = itch_u64(p + 11);
    if (shares == 0 || shares > INT64_MAX / ITCH_QTY) { t->ignored++; return 0; }
    m->kind = HP_MARKET_TRADE;
    m->qty = (int64_t)shares * ITCH_QTY;
    m->price = (int64_t)itch_u32(p + 27) * ITCH_PRICE;
    m->ref = itch_u64(p + 31);
    break;
  }
  case 'H':                         /* H halted, P paused, Q quotation only, T trading */
    m->kind = HP_MARKET_STATUS;
    m->ref = p[19] == 'T';
    break;
  case 'h':                         /* operational halt of one market: ours is Q */
    if (p[19] != 'Q') { t->ignored++; return 0; }
    m->kind = HP_MARKET_STATUS;
    m->ref = p[20] == 'T';
    break;
  case 'B':                         /* the shares are not put back in the book */
    t->broken++;
    return 0;
  default:
    if (!ITCH_LENGTHS[p[0]]) t->unknown++;
    else t->ignored++;
    return 0;
  }
  m->event = ++t->event;
  return 1;
}

/* Turn whole messages into at most room records (room >= ITCH_MOST); bytes used.  Stops at the
 * end of the data, at the last room, or at an error. */
static inline int64_t itch_parse(itch_t *t, const uint8_t *data, int64_t size, itch_row_t *out,
                                 int64_t room, int64_t *count) {
  int64_t at = 0, n = 0, frame;
  while (n + ITCH_MOST <= room && (frame = itch_frame(t, data + at, size - at)) > 0) {
    uint16_t instrument = t->instrument[itch_u16(data + at + 3)];
    if (instrument != ITCH_NONE) {
      int made = itch_message(t, data + at + 2, instrument, &out[n]);
      if (made < 0) break;
      n += made;
    }
    t->messages++;
    at += frame;
  }
  *count = n;
  return at;
}

/* Parse and apply in one loop, nothing in between; bytes used.  books[] by instrument. */
static inline int64_t itch_replay(itch_t *t, const uint8_t *data, int64_t size, book_t **books) {
  int64_t at = 0, frame;
  hp_market_t m[ITCH_MOST];
  while ((frame = itch_frame(t, data + at, size - at)) > 0) {
    uint16_t instrument = t->instrument[itch_u16(data + at + 3)];
    if (instrument != ITCH_NONE) {
      int made = itch_message(t, data + at + 2, instrument, (itch_row_t *)m);
      if (made < 0) break;
      if (made) book_apply(books[instrument], &m[0]);
      if (made > 1) book_apply(books[instrument], &m[1]);
    }
    t->messages++;
    at += frame;
  }
  return at;
}

static inline uint32_t itch_divisor(uint32_t a, uint32_t b) {
  while (b) { uint32_t r = a % b; a = b; b = r; }
  return a;
}

/* First reading: symbols, price increments.  stocks[65536] by locate; bytes used. */
static inline int64_t itch_scan(itch_t *t, const uint8_t *data, int64_t size, itch_stock_t *stocks) {
  int64_t at = 0, frame;
  while ((frame = itch_frame(t, data + at, size - at)) > 0) {
    const uint8_t *p = data + at + 2;
    itch_stock_t *s = &stocks[itch_u16(p + 1)];
    if (p[0] == 'R' && p[11] > ' ') {
      memcpy(s->symbol, p + 11, 8);
    } else if (p[0] == 'A' || p[0] == 'F' || p[0] == 'U') {
      uint32_t price = itch_u32(p + (p[0] == 'U' ? 31 : 32));
      if (p[0] != 'U' && !s->symbol[0]) memcpy(s->symbol, p + 24, 8);
      if (!s->first) s->first = price;
      if (!s->tick) s->tick = 100;
      if (price % s->tick) s->tick = itch_divisor(s->tick, price);
    }
    at += frame;
  }
  return at;
}
#endif
