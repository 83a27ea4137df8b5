/* The only memory-ordering primitives hftpipe uses, each as a C function.
 *
 * Everything shared between processes is a naturally aligned 64-bit word with
 * exactly one writer (the halt epochs aside), so two orders are enough:
 *
 *   writer: fill the slot, then hp_store_release(&link_seq, n)
 *   reader: n = hp_load_acquire(&link_seq), then read the slot
 *
 * The release makes every earlier store visible to whoever acquires the new
 * value.  On x86-64 both compile to a plain MOV; the builtins stop the compiler
 * from reordering, and are right on arm64 too.  The halt epochs have many
 * writers and use the sequentially consistent read-modify-writes below.
 */
#ifndef HFTPIPE_ATOMIC_H
#define HFTPIPE_ATOMIC_H
#include <stdint.h>

static inline uint64_t hp_load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t hp_load_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void hp_store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void hp_store_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
/* For a record of several words behind a sequence word (_board.pxd): the writer's stores stay
 * behind the odd number, the reader's loads before its second look.  No instruction on x86-64. */
static inline void hp_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void hp_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static inline uint64_t hp_fetch_add(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
static inline int hp_compare_swap(uint64_t *p, uint64_t expected, uint64_t desired) {
  return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
/* Bring *p up to at least v, whoever else does the same; what it is then. */
static inline uint64_t hp_raise(uint64_t *p, uint64_t v) {
  uint64_t now = hp_load_acquire(p);
  while (now < v && !__atomic_compare_exchange_n(p, &now, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {}
  return now < v ? v : now;
}

/* Own the line before it is written.  __builtin_prefetch(p, 1) is a read prefetch on
 * generic x86-64 (PREFETCHW is not in the baseline), which costs tenfold on a shared line. */
#if defined(__x86_64__)
static inline void hp_pause(void) { __builtin_ia32_pause(); }
static inline void hp_prefetch_write(const void *p) { __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)p)); }
#else
static inline void hp_pause(void) { __asm__ __volatile__("yield"); }
static inline void hp_prefetch_write(const void *p) { __builtin_prefetch(p, 1); }
#endif
#endif
