/* Memory of the hot path: whole cache lines, zeroed, and touched now.
 *
 * calloc() gives pages that the kernel has not backed yet; the first write to each would be a
 * page fault inside the hot loop, microseconds late and minutes into a run.
 */
#ifndef HFTPIPE_MEMORY_H
#define HFTPIPE_MEMORY_H
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

/* From this size on a table gets pages of 2 MiB where the kernel grants them ("madvise" or
 * "always" in transparent_hugepage/enabled): orders hit these tables at random, and a miss in the
 * page tables of a virtual machine costs more than the check itself. */
#define HP_HUGE_FROM ((size_t)256 << 10)
#define HP_HUGE ((size_t)2 << 20)

/* count elements of size bytes; NULL when there is no memory.  Give it back with free(). */
static inline void *hp_lines(size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count ? count : 1, size ? size : 1, &bytes) || bytes > SIZE_MAX - 63) return 0;
  size_t line = 64;
#ifdef MADV_HUGEPAGE
  if (bytes >= HP_HUGE_FROM && bytes <= SIZE_MAX - HP_HUGE) line = HP_HUGE;
#endif
  bytes = (bytes + line - 1) & ~(line - 1);
  void *p = aligned_alloc(line, bytes);
  if (!p) return 0;
#ifdef MADV_HUGEPAGE
  if (line == HP_HUGE) madvise(p, bytes, MADV_HUGEPAGE);      /* a hint: refused is no error */
#endif
  __builtin_memset(p, 0, bytes);
  return p;
}
#endif
