/* An index from 32-bit tags to slots, without branches that depend on the data.
 *
 * Buckets of one cache line: seven tags, seven slots, a bit for each cell in use and a count of the
 * entries that found it full and went on to the next.  A tag is compared with all seven at
 * once, so nothing in it is for the branch predictor to guess; a probe, cell by cell, of a table half
 * full costs two guesses wrong per operation.  Four slots or fewer share a bucket on average: one in
 * twenty spills over when the table is full, and all of it takes 16 bytes per slot or little more.
 *
 * (After the layout of F14 in folly, from its description; deletion by the same counts.)
 *
 * Promises
 *   N1  Put and removed in any order, a walk (hp_index_walk, _next) meets each entry until it is removed.
 *   N2  No entry moves.
 *   N3  At most `slots` entries (hp_index_init); then a free cell is always found.
 */
#ifndef HFTPIPE_INDEX_H
#define HFTPIPE_INDEX_H
#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif
#include "_memory.h"

#define HP_INDEX_CELLS 7
#define HP_INDEX_FULL ((1u << HP_INDEX_CELLS) - 1)

typedef struct {
  uint32_t tag[HP_INDEX_CELLS];
  uint32_t over;                    /* entries that wanted this bucket and lie behind it */
  uint32_t slot[HP_INDEX_CELLS];
  uint32_t used;                    /* bit per cell; tag and slot of the others say nothing */
} hp_bucket_t;
_Static_assert(sizeof(hp_bucket_t) == 64, "a bucket is a cache line");

typedef struct {
  hp_bucket_t *buckets;
  uint64_t mask;                    /* buckets - 1 */
  uint64_t shift;                   /* 32 - log2(buckets) */
} hp_index_t;

/* Where a walk over the entries of one tag stands. */
typedef struct {
  const hp_bucket_t *bucket;
  uint32_t left;                    /* cells of it not looked at */
} hp_entries_t;

/* Fibonacci hashing: consecutive identities spread evenly. */
static inline uint32_t hp_index_tag(uint64_t key) {
  return (uint32_t)(key * UINT64_C(0x9E3779B97F4A7C15) >> 32);
}

static inline hp_bucket_t *hp_index_home(const hp_index_t *x, uint32_t tag) {
  return &x->buckets[(uint64_t)tag >> x->shift];
}

/* 0, or -1 when there is no memory. */
static inline int hp_index_init(hp_index_t *x, uint64_t slots) {
  uint64_t buckets = 2, bits = 1;
  while (4 * buckets < slots) buckets *= 2, bits++;
  x->buckets = (hp_bucket_t *)hp_lines(buckets, sizeof(hp_bucket_t));
  x->mask = buckets - 1;
  x->shift = 32 - bits;
  return x->buckets ? 0 : -1;
}

static inline void hp_index_free(hp_index_t *x) {
  free(x->buckets);
  x->buckets = 0;
}

/* Cells of a bucket that hold *tag*. */
static inline uint32_t hp_bucket_match(const hp_bucket_t *b, uint32_t tag) {
#ifdef __SSE2__
  __m128i t = _mm_set1_epi32((int)tag);
  __m128i low = _mm_cmpeq_epi32(_mm_loadu_si128((const __m128i *)&b->tag[0]), t);
  __m128i high = _mm_cmpeq_epi32(_mm_loadu_si128((const __m128i *)&b->tag[4]), t);   /* and `over` */
  uint32_t m = (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(low))
               | (uint32_t)_mm_movemask_ps(_mm_castsi128_ps(high)) << 4;
#else
  uint32_t m = 0;
  for (int i = 0; i < HP_INDEX_CELLS; i++) m |= (uint32_t)(b->tag[i] == tag) << i;
#endif
  return m & b->used;
}

static inline hp_bucket_t *hp_index_after(const hp_index_t *x, const hp_bucket_t *b) {
  return &x->buckets[((uint64_t)(b - x->buckets) + 1) & x->mask];
}

static inline hp_entries_t hp_index_walk(const hp_index_t *x, uint32_t tag) {
  const hp_bucket_t *b = hp_index_home(x, tag);
  hp_entries_t e = {b, hp_bucket_match(b, tag)};
  return e;
}

/* The next slot that was put under *tag*; -1 = no more.  Keys may share a tag: compare them. */
static inline int64_t hp_index_next(const hp_index_t *x, hp_entries_t *e, uint32_t tag) {
  while (__builtin_expect(!e->left, 1)) {
    if (__builtin_expect(!e->bucket->over, 1)) return -1;
    e->bucket = hp_index_after(x, e->bucket);
    /* Entries that went on stay where they are when there is room again, so that in a small table
     * every bucket may have been passed by one: then the walk ends where it began. */
    if (e->bucket == hp_index_home(x, tag)) return -1;
    e->left = hp_bucket_match(e->bucket, tag);
  }
  int cell = __builtin_ctz(e->left);
  e->left &= e->left - 1;
  return e->bucket->slot[cell];
}

static inline void hp_index_put(hp_index_t *x, uint32_t tag, uint32_t slot) {
  hp_bucket_t *b = hp_index_home(x, tag);
  while (__builtin_expect(b->used == HP_INDEX_FULL, 0)) {
    b->over++;
    b = hp_index_after(x, b);
  }
  int cell = __builtin_ctz(~b->used);
  b->tag[cell] = tag;
  b->slot[cell] = slot;
  b->used |= 1u << cell;
}

/* Take back what was put. */
static inline void hp_index_remove(hp_index_t *x, uint32_t tag, uint32_t slot) {
  hp_bucket_t *b = hp_index_home(x, tag);
  for (;;) {
    for (uint32_t m = hp_bucket_match(b, tag); m; m &= m - 1) {
      int cell = __builtin_ctz(m);
      if (b->slot[cell] == slot) {
        b->used &= ~(1u << cell);
        return;
      }
    }
    b->over--;
    b = hp_index_after(x, b);
  }
}
#endif
