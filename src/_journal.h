/* CRC32C (Castagnoli, reflected polynomial 0x82F63B78; RFC 3720, appendix B.4).
 *
 * Hardware where the processor has it (SSE4.2, asked at run time: the build is for plain
 * x86-64), else a table of 8 x 256 words, filled once at import.  Both give the same.
 */
#ifndef HFTPIPE_JOURNAL_H
#define HFTPIPE_JOURNAL_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t hp_crc_table[8][256];

static inline void hp_crc_prepare(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int k = 0; k < 8; k++) c = (c >> 1) ^ (0x82F63B78u & (0u - (c & 1u)));
    hp_crc_table[0][i] = c;
  }
  for (uint32_t i = 0; i < 256; i++)
    for (int t = 1; t < 8; t++)
      hp_crc_table[t][i] = (hp_crc_table[t - 1][i] >> 8)
                           ^ hp_crc_table[0][hp_crc_table[t - 1][i] & 255];
}

static inline uint32_t hp_crc_soft(uint32_t crc, const unsigned char *p, size_t n) {
  uint64_t w;
  crc = ~crc;
  for (; n >= 8; n -= 8, p += 8) {
    memcpy(&w, p, 8);
    w ^= crc;
    crc = 0;
    for (int t = 0; t < 8; t++) crc ^= hp_crc_table[7 - t][(w >> (8 * t)) & 255];
  }
  for (; n; n--) crc = (crc >> 8) ^ hp_crc_table[0][(crc ^ *p++) & 255];
  return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2")))
static inline uint32_t hp_crc_hard(uint32_t crc, const unsigned char *p, size_t n) {
  uint64_t w, c = (uint32_t)~crc;
  for (; n >= 8; n -= 8, p += 8) {
    memcpy(&w, p, 8);
    c = __builtin_ia32_crc32di(c, w);
  }
  uint32_t s = (uint32_t)c;
  for (; n; n--) s = __builtin_ia32_crc32qi(s, *p++);
  return ~s;
}
static inline int hp_crc_has_hard(void) { return __builtin_cpu_supports("sse4.2") != 0; }
#else
static inline uint32_t hp_crc_hard(uint32_t crc, const unsigned char *p, size_t n) {
  return hp_crc_soft(crc, p, n);
}
static inline int hp_crc_has_hard(void) { return 0; }
#endif
#endif
