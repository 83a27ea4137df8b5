/* 128-bit money: products of two int64 in 1e-9 are exact in 1e-18 and need 127 bits.
 *
 * Cython has no 128-bit type; hp_wide_t is opaque to it and everything is done here.
 * "cash" below is a nanocash amount, 1e-9 of the quote currency, in int64.
 */
#ifndef HFTPIPE_WIDE_H
#define HFTPIPE_WIDE_H
#include <stdint.h>

typedef __int128 hp_wide_t;                       /* 1e-18 of the quote currency */

#define HP_NANO INT64_C(1000000000)
#define HP_ATTO INT64_C(1000000000000000000)
#define HP_WIDE_CASH_MAX ((hp_wide_t)INT64_MAX * HP_NANO)   /* the largest that nanocash holds */

static inline hp_wide_t hp_wide_of(int64_t v) { return v; }
static inline hp_wide_t hp_wide_mul(int64_t a, int64_t b) { return (hp_wide_t)a * b; }
static inline hp_wide_t hp_wide_cash(int64_t cash) { return (hp_wide_t)cash * HP_NANO; }
static inline hp_wide_t hp_wide_over(hp_wide_t a, int64_t b) { return a / b; }
static inline hp_wide_t hp_wide_add(hp_wide_t a, hp_wide_t b) { return a + b; }
static inline hp_wide_t hp_wide_sub(hp_wide_t a, hp_wide_t b) { return a - b; }
/* a * side without a branch; side is 1 or -1. */
static inline hp_wide_t hp_wide_side(hp_wide_t a, int side) {
  hp_wide_t m = side >> 31;
  return (a ^ m) - m;
}
static inline hp_wide_t hp_wide_max(hp_wide_t a, hp_wide_t b) { return a > b ? a : b; }
static inline hp_wide_t hp_wide_abs(hp_wide_t a) { return a < 0 ? -a : a; }
static inline int hp_wide_less(hp_wide_t a, hp_wide_t b) { return a < b; }
static inline int hp_wide_equal(hp_wide_t a, hp_wide_t b) { return a == b; }
static inline int hp_wide_fits(hp_wide_t a) { return a <= HP_WIDE_CASH_MAX; }
static inline hp_wide_t hp_wide_clamp(hp_wide_t a) { return a > HP_WIDE_CASH_MAX ? HP_WIDE_CASH_MAX + 1 : a; }
static inline int64_t hp_wide_high(hp_wide_t a) { return (int64_t)(a >> 64); }
static inline uint64_t hp_wide_low(hp_wide_t a) { return (uint64_t)a; }

/* *sum += a; 1 and *sum untouched when it does not fit. */
static inline int hp_wide_add_overflow(hp_wide_t *sum, hp_wide_t a) {
  hp_wide_t s;
  if (__builtin_add_overflow(*sum, a, &s)) return 1;
  *sum = s;
  return 0;
}
static inline int hp_add_overflow(int64_t a, int64_t b, int64_t *out) { return __builtin_add_overflow(a, b, out); }
static inline int64_t hp_add_saturate(int64_t a, int64_t b) {
  int64_t s;
  return __builtin_add_overflow(a, b, &s) ? (a < 0 ? INT64_MIN : INT64_MAX) : s;
}
static inline int64_t hp_sub_saturate(int64_t a, int64_t b) {
  int64_t s;
  return __builtin_sub_overflow(a, b, &s) ? (a < 0 ? INT64_MIN : INT64_MAX) : s;
}
static inline int64_t hp_wide_saturate(hp_wide_t a) {
  return a > INT64_MAX ? INT64_MAX : a < INT64_MIN ? INT64_MIN : (int64_t)a;
}

/* a / b rounded up, for a >= 0, b > 0; saturates. */
static inline int64_t hp_wide_ceil(hp_wide_t a, int64_t b) { return hp_wide_saturate(a / b + (a % b != 0)); }

/* a / b rounded up, for a >= 0, b > 0; saturates. */
static inline int64_t hp_wide_ratio(hp_wide_t a, hp_wide_t b) { return hp_wide_saturate(a / b + (a % b != 0)); }

/* a / b rounded down, b > 0; saturates. */
static inline int64_t hp_wide_floor(hp_wide_t a, int64_t b) { return hp_wide_saturate(a / b - (a % b < 0)); }
/* What hp_wide_floor(a, HP_NANO) leaves: 0 to 999,999,999. */
static inline uint32_t hp_wide_rest(hp_wide_t a) { int64_t r = (int64_t)(a % HP_NANO); return (uint32_t)(r < 0 ? r + HP_NANO : r); }

/* An amount in nanocash, rounded up, for 0 <= a; saturates.  One division of 128 by 64 bits where
 * the compiler would call a library twice. */
static inline int64_t hp_wide_nanocash(hp_wide_t a) {
  if (a > HP_WIDE_CASH_MAX) return INT64_MAX;
#ifdef __x86_64__
  uint64_t q, r;
  __asm__("divq %4" : "=a"(q), "=d"(r) : "0"((uint64_t)a), "1"((uint64_t)(a >> 64)), "r"((uint64_t)HP_NANO) : "cc");
  return (int64_t)(q + (r != 0));
#else
  return hp_wide_ceil(a, HP_NANO);
#endif
}

/* whole * part / count rounded down, for whole, part >= 0, count > 0; saturates. */
static inline int64_t hp_share_floor(int64_t whole, int64_t part, int64_t count) {
  return hp_wide_saturate((hp_wide_t)whole * part / count);
}

/* (ask - bid) / mid in basis points, rounded up, for 0 < bid + ask. */
static inline int64_t hp_spread_bps(int64_t bid, int64_t ask) {
  __int128 sum = (__int128)bid + ask, over = ((__int128)ask - bid) * 20000;
  return over <= 0 ? 0 : hp_wide_saturate((over + sum - 1) / sum);
}

/* price * bps / 10000 rounded up, for price >= 0, 0 <= bps <= 10000: no 128-bit division where
 * 64 bits hold the product. */
static inline int64_t hp_bps_ceil(int64_t price, int64_t bps) {
  if (price <= INT64_MAX / 10000 - 1) return (price * bps + 9999) / 10000;
  return hp_wide_ceil((hp_wide_t)price * bps, 10000);
}

/* a * b where the caller knows that it fits: |a| < 2^96, |b| < 2^31. */
static inline hp_wide_t hp_wide_times(hp_wide_t a, int64_t b) { return a * b; }

/* a / b rounded half to even, b > 0; saturates. */
static inline int64_t hp_wide_even(hp_wide_t a, int64_t b) {
  hp_wide_t q = a / b, r = a % b;                 /* truncated; r has the sign of a */
  hp_wide_t twice = 2 * (r < 0 ? -r : r);
  if (twice > b || (twice == b && (q & 1))) q += a < 0 ? -1 : 1;
  return hp_wide_saturate(q);
}

/* whole * part / count toward zero, exactly, for 0 <= part <= count: a product of 190 bits
 * is avoided by dividing first; |remainder| < count < 2^63, so its product fits. */
static inline hp_wide_t hp_wide_share(hp_wide_t whole, int64_t part, int64_t count) {
  return whole / count * part + whole % count * part / count;
}
#endif
