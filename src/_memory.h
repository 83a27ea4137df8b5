/* Memory of the hot path: whole cache lines, zeroed, and touched now.
 *
 * calloc() gives pages that the kernel has not backed yet; the first write to each would be a
 * page fault inside the hot loop, microseconds late and minutes into a run.
 */
#ifndef HFTPIPE_MEMORY_H
#define HFTPIPE_MEMORY_H
#include <stdint.h>
#include <stdlib.h>

/* count elements of size bytes; NULL when there is no memory.  Give it back with free(). */
static inline void *hp_lines(size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count ? count : 1, size ? size : 1, &bytes) || bytes > SIZE_MAX - 63) return 0;
  bytes = (bytes + 63) & ~(size_t)63;
  void *p = aligned_alloc(64, bytes);
  if (p) __builtin_memset(p, 0, bytes);
  return p;
}
#endif
