# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, binding=False
"""Two sides of each ring measurement, as loops without the GIL; ``bench_ring.py`` runs them.

The baseline is what the cache-coherency protocol allows: one bare line bounced, and 64-byte
slots streamed by hand-written C whose cursors live in registers.
"""
from libc.stdint cimport uint64_t

from hftpipe._atomic cimport hp_pause
from hftpipe._ring cimport (
    Ring, ring_claim, ring_claim_at, ring_credit, ring_peek_at, ring_publish, ring_publish_many,
    ring_release, ring_release_many, ring_t, ring_wait)

cdef extern from *:
    """
    #include <stdint.h>
    #include <x86intrin.h>
    #define RELEASE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define ACQUIRE(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    static inline void own_line(const void *p) {
      __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)p));
    }
    static inline void pauses(int n) { while (n-- > 0) _mm_pause(); }
    static inline uint64_t tsc_begin(void) {
      unsigned x; uint64_t t = __rdtscp(&x); _mm_lfence(); return t;
    }
    static inline uint64_t tsc_end(void) { unsigned x; return __rdtscp(&x); }
    static inline void fill(uint64_t *d, uint64_t v) { for (int i = 1; i < 8; i++) d[i] = v; }
    static inline uint64_t sum(const uint64_t *d) {
      uint64_t s = 0; for (int i = 1; i < 8; i++) s += d[i]; return s;
    }

    /* Line i of one direction, of the other 128 bytes on; `apart` lines are taken in turn, each
       for `stay` bounces: how far a line's home is from the two cores differs from line to line. */
    static inline uint64_t *line(uint64_t *m, uint64_t i, uint64_t stay, uint64_t apart) {
      return m + 32 * (i / stay % apart);
    }
    static void bare_ping(uint64_t *m, int both, int own, int pause, uint64_t stay, uint64_t apart,
                          uint64_t n, uint64_t *out) {
      for (uint64_t i = 0; i < n; i++) {
        uint64_t *a = line(m, i, stay, apart), *b = both ? a + 16 : a;
        uint64_t t = tsc_begin();
        if (own) own_line(a);
        RELEASE(a, 2 * i + 1);
        while (ACQUIRE(b) != 2 * i + 2) pauses(pause);
        out[i] = tsc_end() - t;
      }
    }
    static void bare_pong(uint64_t *m, int both, int own, int pause, uint64_t stay, uint64_t apart,
                          uint64_t n) {
      for (uint64_t i = 0; i < n; i++) {
        uint64_t *a = line(m, i, stay, apart), *b = both ? a + 16 : a;
        while (ACQUIRE(a) != 2 * i + 1) pauses(pause);
        if (own) own_line(b);
        RELEASE(b, 2 * i + 2);
      }
    }
    /* slots[capacity] of 64 bytes, word 0 the sequence; credit on a line of its own. */
    static void bare_produce(uint64_t *slots, uint64_t *credit, uint64_t capacity, uint64_t n) {
      uint64_t room = capacity;
      for (uint64_t i = 1; i <= n; i++) {
        uint64_t *d = slots + 8 * ((i - 1) & (capacity - 1));
        while (i > room) { room = ACQUIRE(credit) + capacity; if (i > room) _mm_pause(); }
        fill(d, i);
        own_line(slots + 8 * (i & (capacity - 1)));
        RELEASE(d, i);
      }
    }
    static uint64_t bare_consume(uint64_t *slots, uint64_t *credit, uint64_t capacity, uint64_t n,
                                 int behind, int pause) {
      uint64_t s = 0, quarter = capacity / 4, gate = behind ? capacity / 8 : 0;
      for (uint64_t i = 1; i <= n; i++) {
        uint64_t *d = slots + 8 * ((i - 1) & (capacity - 1));
        if (gate && (i & (gate - 1)) == 1 && i + capacity / 2 <= n) {
          uint64_t j = i + capacity / 2;
          while (ACQUIRE(slots + 8 * ((j - 1) & (capacity - 1))) != j) _mm_pause();
        }
        while (ACQUIRE(d) != i) pauses(pause);
        s += sum(d);
        if ((i & (quarter - 1)) == 0) RELEASE(credit, i);
      }
      return s;
    }
    """
    uint64_t tsc_begin() noexcept nogil
    uint64_t tsc_end() noexcept nogil
    void fill(uint64_t *d, uint64_t v) noexcept nogil
    uint64_t sum(const uint64_t *d) noexcept nogil
    void c_bare_ping "bare_ping"(uint64_t *m, int both, int own, int pause, uint64_t stay,
                                 uint64_t apart, uint64_t n, uint64_t *out) noexcept nogil
    void c_bare_pong "bare_pong"(uint64_t *m, int both, int own, int pause, uint64_t stay,
                                 uint64_t apart, uint64_t n) noexcept nogil
    void c_bare_produce "bare_produce"(uint64_t *slots, uint64_t *credit, uint64_t capacity,
                                       uint64_t n) noexcept nogil
    uint64_t c_bare_consume "bare_consume"(uint64_t *slots, uint64_t *credit, uint64_t capacity,
                                           uint64_t n, int behind, int pause) noexcept nogil


cdef class Nop:
    """What a method call costs when it does nothing: the unit of push() and pop()."""

    def none(self):
        return None

    def one(self, value):
        return value


# ---------------------------------------------------------------- one bare line

def bare_ping(uint64_t[::1] memory, int both, int own, int pause, uint64_t stay, uint64_t apart,
              uint64_t[::1] out):
    cdef uint64_t t = tsc_begin()
    with nogil:
        c_bare_ping(&memory[0], both, own, pause, stay, apart, <uint64_t>out.shape[0], &out[0])
    return tsc_end() - t


def bare_pong(uint64_t[::1] memory, int both, int own, int pause, uint64_t stay, uint64_t apart,
              uint64_t count):
    with nogil:
        c_bare_pong(&memory[0], both, own, pause, stay, apart, count)


def bare_produce(uint64_t[::1] memory, uint64_t capacity, uint64_t count):
    with nogil:
        c_bare_produce(&memory[32], &memory[0], capacity, count)


def bare_consume(uint64_t[::1] memory, uint64_t capacity, uint64_t count, bint behind, int pause):
    cdef uint64_t s, t = tsc_begin()
    with nogil:
        s = c_bare_consume(&memory[32], &memory[0], capacity, count, behind, pause)
    return tsc_end() - t, s


# ---------------------------------------------------------------- our ring

cdef inline uint64_t *take(ring_t *r, int pause) noexcept nogil:
    return <uint64_t *>ring_wait(r, <uint64_t>1 << 62, pause)


def ping(Ring there, Ring back, uint64_t[::1] out, int pause):
    cdef ring_t *a = &there.c
    cdef ring_t *b = &back.c
    cdef uint64_t i, s = 0, t, begin = tsc_begin(), count = <uint64_t>out.shape[0]
    cdef uint64_t *d
    with nogil:
        for i in range(count):
            t = tsc_begin()
            d = <uint64_t *>ring_claim(a)
            while d == NULL:
                hp_pause()
                d = <uint64_t *>ring_claim(a)
            fill(d, i)
            ring_publish(a)
            s += sum(take(b, pause))
            ring_release(b)
            out[i] = tsc_end() - t
    return tsc_end() - begin, s


def pong(Ring there, Ring back, uint64_t count, int pause):
    cdef ring_t *a = &there.c
    cdef ring_t *b = &back.c
    cdef uint64_t _i, v
    cdef uint64_t *d
    with nogil:
        for _i in range(count):
            v = take(a, pause)[7]
            ring_release(a)
            d = <uint64_t *>ring_claim(b)
            while d == NULL:
                hp_pause()
                d = <uint64_t *>ring_claim(b)
            fill(d, v)
            ring_publish(b)


def produce(Ring ring, uint64_t count, uint64_t burst):
    cdef ring_t *r = &ring.c
    cdef uint64_t i = 0, j
    cdef uint64_t *d
    with nogil:
        if burst == 1:
            while i < count:
                d = <uint64_t *>ring_claim(r)
                if d == NULL:
                    hp_pause()
                    continue
                i += 1
                fill(d, i)
                ring_publish(r)
        else:
            while i < count:
                while ring_credit(r, burst) < burst:
                    hp_pause()
                for j in range(burst):
                    fill(<uint64_t *>ring_claim_at(r, j), i + j + 1)
                ring_publish_many(r, burst)
                i += burst


def consume(Ring ring, uint64_t count, uint64_t burst, bint behind, int pause):
    cdef ring_t *r = &ring.c
    cdef uint64_t i = 0, j, s = 0, half = (r.mask + 1) // 2, gate = (r.mask + 1) // 8
    cdef uint64_t *d
    cdef uint64_t t = tsc_begin()
    with nogil:
        while i < count:
            if behind and (i & (gate - 1)) == 0 and i + half < count:
                while ring_peek_at(r, half) == NULL:
                    hp_pause()
            if burst == 1:
                s += sum(take(r, pause))
                ring_release(r)
                i += 1
            else:
                s += sum(take(r, pause))
                j = 1
                while j < burst:
                    d = <uint64_t *>ring_peek_at(r, j)
                    if d == NULL:
                        break
                    s += sum(d)
                    j += 1
                ring_release_many(r, j)
                i += j
    return tsc_end() - t, s
