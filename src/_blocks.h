/* Columns of indicators whose windows are cut into blocks: several blocks at once.
 *
 * One value after another, each sum waits for the one before it, four cycles a row.  Blocks do not wait
 * for one another, so four of them are taken side by side, in vectors; every sum is made of the same
 * values in the same order as one at a time, to the last bit.
 */
#ifndef HFTPIPE_BLOCKS_H
#define HFTPIPE_BLOCKS_H
#include <stdint.h>
#include <string.h>

typedef double hp_pair_t __attribute__((vector_size(16)));

static inline hp_pair_t hp_pair(double a, double b) { return (hp_pair_t){a, b}; }

/* 0 when all of them are finite, else NaN. */
static inline double hp_poison(const double *a, int64_t n) {
  hp_pair_t p0 = {0, 0}, p1 = {0, 0}, none = {0, 0};
  double rest = 0;
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    p0 += hp_pair(a[i], a[i + 1]) * none;
    p1 += hp_pair(a[i + 2], a[i + 3]) * none;
  }
  for (; i < n; i++) rest += a[i] * 0.0;
  return rest + p0[0] + p0[1] + p1[0] + p1[1];
}

static inline void hp_wma_blocks(const double *a, double *r, double *weighted, double *scratch,
                                 int64_t n, double length, double share) {
  const double *a1 = a + n, *a2 = a1 + n, *a3 = a2 + n;
  double *r1 = r + n, *r2 = r1 + n, *r3 = r2 + n, *next = scratch + 4 * n;
  hp_pair_t after0 = {0, 0}, after1 = {0, 0}, sum0 = {0, 0}, sum1 = {0, 0};
  /* What each block leaves to the one behind it, beside what the block before all four left. */
  for (int64_t i = n - 1; i >= 0; i--) {
    double *s = scratch + 4 * i;
    s[0] = weighted[i];
    memcpy(s + 1, &sum0, sizeof(sum0));
    s[3] = sum1[0];
    next[i] = sum1[1];
    after0 += hp_pair(a[i], a1[i]);
    after1 += hp_pair(a2[i], a3[i]);
    sum0 += after0;
    sum1 += after1;
  }
  hp_pair_t head0 = {0, 0}, head1 = {0, 0}, lead0 = {0, 0}, lead1 = {0, 0};
  const hp_pair_t by = {length, length}, parts = {share, share};
  for (int64_t i = 0; i < n; i++) {
    hp_pair_t x0 = hp_pair(a[i], a1[i]), x1 = hp_pair(a2[i], a3[i]), before0, before1;
    memcpy(&before0, scratch + 4 * i, sizeof(before0));
    memcpy(&before1, scratch + 4 * i + 2, sizeof(before1));
    lead0 += by * x0 - head0;
    lead1 += by * x1 - head1;
    head0 += x0;
    head1 += x1;
    before0 = (before0 + lead0) * parts;
    before1 = (before1 + lead1) * parts;
    r[i] = before0[0];
    r1[i] = before0[1];
    r2[i] = before1[0];
    r3[i] = before1[1];
  }
  memcpy(weighted, next, (size_t)n * sizeof(double));
}
#endif
