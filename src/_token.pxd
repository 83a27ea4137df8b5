"""The token on an order: shows that the gateway holds exactly what risk approved.

A keyed hash over every field that decides what is sent, the halt epoch that risk read and
the version of the limits it used.  Risk writes it, the gateway computes it again before
each send; a difference is REASON_TOKEN.

It guards against bugs and stray writes: an order changed on its way, sent twice under
another identity, approved before a halt or under old limits.  It is no defence against an
attacker who can read the key, and 32 bits are not a signature.

A cancel is bound to neither epoch nor version (token_of counts both as 0): it must still pass
when somebody halts between risk and the gateway.
"""
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "_schema.h" nogil:
    enum:
        HP_ACTION_CANCEL

cdef extern from *:
    """
    #include <stdint.h>
    #ifndef HFTPIPE_TOKEN
    #define HFTPIPE_TOKEN
    /* Rounds and avalanche of xxHash64 (Collet, BSD): h -> (rotl(h + w * P2, 31)) * P1 is a
     * bijection of h for fixed w and of w for fixed h, so orders that differ in one word
     * always differ in 64 bits; only the fold to 32 can bring them together. */
    #define HP_TOKEN_P1 UINT64_C(0x9E3779B185EBCA87)
    #define HP_TOKEN_P2 UINT64_C(0xC2B2AE3D27D4EB4F)
    #define HP_TOKEN_P3 UINT64_C(0x165667B19E3779F9)
    static inline uint64_t hp_token_round(uint64_t h, uint64_t w) {
      h += w * HP_TOKEN_P2;
      return (h << 31 | h >> 33) * HP_TOKEN_P1;
    }
    static inline uint32_t hp_token(uint64_t key, uint64_t order, uint64_t price, uint64_t qty,
                                    uint64_t fields, uint64_t epoch, uint64_t version,
                                    uint64_t stop, uint64_t trail, uint64_t share) {
      /* two lanes: half the latency of one chain of all rounds */
      uint64_t a = hp_token_round(hp_token_round(hp_token_round(key, order), price), qty);
      uint64_t b = hp_token_round(hp_token_round(hp_token_round(key ^ HP_TOKEN_P3, fields),
                                                 epoch), version);
      if (stop | trail | share) {                    /* most orders wait for nothing */
        a = hp_token_round(hp_token_round(a, stop), trail);
        b = hp_token_round(b, share);
      }
      uint64_t h = hp_token_round(a ^ HP_TOKEN_P3, b);
      h ^= h >> 33; h *= HP_TOKEN_P2; h ^= h >> 29; h *= HP_TOKEN_P3;
      uint32_t t = (uint32_t)(h >> 32);
      return t ? t : 1;                            /* 0 says: no token */
    }
    #endif
    """
    uint32_t hp_token(uint64_t key, uint64_t order, uint64_t price, uint64_t qty,
                      uint64_t fields, uint64_t epoch, uint64_t version, uint64_t stop,
                      uint64_t trail, uint64_t share) noexcept nogil


cdef inline uint32_t token_of(
        uint64_t key, uint64_t order, int64_t price, int64_t qty, uint16_t instrument,
        int8_t side, uint8_t type, uint8_t tif, uint8_t action, uint64_t halt_epoch,
        uint64_t limits_version, int64_t stop, int64_t trail, int64_t share) noexcept nogil:
    """The token of these fields of an order; never 0."""
    if action == HP_ACTION_CANCEL:
        halt_epoch = 0
        limits_version = 0
    return hp_token(key, order, <uint64_t>price, <uint64_t>qty,
                    <uint64_t>instrument | <uint64_t><uint8_t>side << 16
                    | <uint64_t>type << 24 | <uint64_t>tif << 32 | <uint64_t>action << 40,
                    halt_epoch, limits_version, <uint64_t>stop, <uint64_t>trail, <uint64_t>share)
