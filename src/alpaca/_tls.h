/* What is used of OpenSSL's libssl, loaded at run time.
 *
 * The library is the one that Python's own ssl module has loaded; where that has it built in,
 * the system's.  So nothing of OpenSSL is needed to build, and no second copy comes along.
 * Functions and constants are those that 1.1.1 and 3 have in common, and are part of its ABI.
 */
#ifndef HFTPIPE_TLS_H
#define HFTPIPE_TLS_H
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum {
  TLS_VERSION_1_2 = 0x0303,
  TLS_CTRL_HOSTNAME = 55,                 /* SSL_CTRL_SET_TLSEXT_HOSTNAME */
  TLS_CTRL_MIN_VERSION = 123,             /* SSL_CTRL_SET_MIN_PROTO_VERSION */
  TLS_OPTIONS = 1 << 30 | 1 << 17,        /* SSL_OP_NO_RENEGOTIATION, SSL_OP_NO_COMPRESSION */
  TLS_VERIFY_PEER = 1,
  TLS_HOST_FLAGS = 0x4 | 0x20,            /* X509_CHECK_FLAG_: no partial wildcards, no subject */
  TLS_WANT_READ = 2,                      /* SSL_ERROR_* */
  TLS_ZERO_RETURN = 6,
  TLS_BIO_SOURCE_SINK = 0x400,
  TLS_BIO_FLUSH = 11,
  TLS_BIO_READ = 0x1 | 0x8,               /* BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY */
  TLS_BIO_WRITE = 0x2 | 0x8,
  TLS_BIO_FLAGS = 0xf,
};

#define HP_TLS_FUNCTIONS(F)                                                  \
  F(const void *, TLS_client_method, (void))                                 \
  F(void *, SSL_CTX_new, (const void *))                                     \
  F(void, SSL_CTX_free, (void *))                                            \
  F(long, SSL_CTX_ctrl, (void *, int, long, void *))                         \
  F(uint64_t, SSL_CTX_set_options, (void *, uint64_t))                       \
  F(void, SSL_CTX_set_verify, (void *, int, void *))                         \
  F(int, SSL_CTX_load_verify_locations, (void *, const char *, const char *)) \
  F(int, SSL_CTX_set_default_verify_paths, (void *))                         \
  F(void *, SSL_new, (void *))                                               \
  F(void, SSL_free, (void *))                                                \
  F(void, SSL_set_bio, (void *, void *, void *))                             \
  F(void, SSL_set_connect_state, (void *))                                   \
  F(long, SSL_ctrl, (void *, int, long, void *))                             \
  F(int, SSL_set1_host, (void *, const char *))                              \
  F(void *, SSL_get0_param, (void *))                                        \
  F(int, X509_VERIFY_PARAM_set1_ip_asc, (void *, const char *))              \
  F(void, X509_VERIFY_PARAM_set_hostflags, (void *, unsigned))               \
  F(int, SSL_do_handshake, (void *))                                         \
  F(int, SSL_read, (void *, void *, int))                                    \
  F(int, SSL_write, (void *, const void *, int))                             \
  F(int, SSL_shutdown, (void *))                                             \
  F(int, SSL_get_error, (const void *, int))                                 \
  F(long, SSL_get_verify_result, (const void *))                             \
  F(const char *, X509_verify_cert_error_string, (long))                     \
  F(const char *, SSL_get_version, (const void *))                           \
  F(const void *, SSL_get_current_cipher, (const void *))                    \
  F(const char *, SSL_CIPHER_get_name, (const void *))                       \
  F(unsigned long, ERR_get_error, (void))                                    \
  F(void, ERR_clear_error, (void))                                           \
  F(const char *, ERR_reason_error_string, (unsigned long))                  \
  F(int, BIO_get_new_index, (void))                                          \
  F(void *, BIO_meth_new, (int, const char *))                               \
  F(int, BIO_meth_set_read, (void *, int (*)(void *, char *, int)))          \
  F(int, BIO_meth_set_write, (void *, int (*)(void *, const char *, int)))   \
  F(int, BIO_meth_set_ctrl, (void *, long (*)(void *, int, long, void *)))   \
  F(void *, BIO_new, (const void *))                                         \
  F(void, BIO_set_data, (void *, void *))                                    \
  F(void *, BIO_get_data, (void *))                                          \
  F(void, BIO_set_init, (void *, int))                                       \
  F(void, BIO_set_flags, (void *, int))                                      \
  F(void, BIO_clear_flags, (void *, int))                                    \
  F(const char *, OpenSSL_version, (int))

static struct {
#define F(result, name, arguments) result (*name) arguments;
  HP_TLS_FUNCTIONS(F)
#undef F
} hp_tls;

static inline void hp_tls_errno(int code) { errno = code; }

/* Fill hp_tls; 0, or why not in *why*. */
static int hp_tls_load(char *why, size_t size) {
  static const char *const names[] = {"libssl.so.3", "libssl.so.1.1", "libssl.so.4"};
  static const struct { const char *name; void **place; } wanted[] = {
#define F(result, name, arguments) {#name, (void **)&hp_tls.name},
    HP_TLS_FUNCTIONS(F)
#undef F
  };
  snprintf(why, size, "found no libssl.so.3");
  for (int i = 0; i < 6; i++) {           /* first what is loaded already, then what can be */
    void *handle = dlopen(names[i % 3], RTLD_NOW | RTLD_LOCAL | (i < 3 ? RTLD_NOLOAD : 0));
    size_t k = 0;
    if (!handle) continue;
    for (; k < sizeof wanted / sizeof *wanted; k++)
      if (!(*wanted[k].place = dlsym(handle, wanted[k].name))) break;
    if (k == sizeof wanted / sizeof *wanted) return 0;
    snprintf(why, size, "found %s without %s", names[i % 3], wanted[k].name);
    dlclose(handle);
  }
  return -1;
}
#endif
