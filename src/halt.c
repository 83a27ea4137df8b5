/* hftpipe-halt: close the gate without Python, in well under a millisecond of work.
 *
 *     hftpipe-halt [--run-dir DIR] [--cancel] [--flatten] [--reason TEXT]
 *
 * The same three steps as `hftpipe halt` (RunDir.halt in rundir.py), in the same order:
 *   1. add one to halt_epoch on the control page of the run: from here on nothing is sent;
 *   2. latch it in halt.json, so that the next start begins HALTED;
 *   3. append a line to audit.jsonl.
 * It does not wait for the gates' acknowledgement; `hftpipe status` shows it.  Without a run, or
 * when the page is out of reach, steps 2 and 3 are still done.  It trusts nothing it maps or reads:
 * a page of another user, mode, size, version or run is left alone.
 *
 * Exit codes as everywhere: 0 done, 2 usage, 4 the page is not what it should be (latched all the
 * same), 77 permission.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "_atomic.h"
#include "_control.h"

enum { OK = 0, USAGE = 2, CONFIG = 4, PERMISSION = 77 };
enum { REASON = 300, FILE_MAX = 1 << 20, PATH_SIZE = 4096 };

static const char *const USAGE_TEXT =
    "usage: hftpipe-halt [--run-dir DIR] [--cancel] [--flatten] [--reason TEXT]\n"
    "Stop trading at once; it stays halted across restarts.  --cancel has the guardian cancel every\n"
    "open order, --flatten close every position too.  Run directory: --run-dir, $HFTPIPE_RUN_DIR,\n"
    "or hftpipe in $XDG_STATE_HOME or ~/.local/state.\n";

static int fail(int code, const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("error: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  return code;
}

/* ---------------------------------------------------------------- text */

/* A growing piece of text; `cut` once it did not fit. */
typedef struct {
  char data[16384];
  size_t size;
  int cut;
} text_t;

static void put(text_t *t, const char *format, ...) {
  va_list args;
  va_start(args, format);
  int n = vsnprintf(t->data + t->size, sizeof t->data - t->size, format, args);
  va_end(args);
  if (n < 0 || (size_t)n >= sizeof t->data - t->size) t->cut = 1;
  else t->size += (size_t)n;
}

/* Bytes of the well-formed UTF-8 sequence at s, 0 when it is none (then one byte is replaced). */
static size_t sequence(const unsigned char *s) {
  unsigned long c;
  size_t n = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : s[0] >> 3 == 30 ? 4 : 0;
  if (n <= 1) return n;
  c = s[0] & (0xffu >> (n + 1));
  for (size_t i = 1; i < n; i++) {
    if (s[i] >> 6 != 2) return 0;
    c = c << 6 | (s[i] & 0x3f);
  }
  static const unsigned long least[] = {0, 0, 0x80, 0x800, 0x10000};
  if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) return 0;
  /* C1 controls, and what turns the direction of a terminal's text */
  if (c < 0xa0 || (c >= 0x200b && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
      (c >= 0x2060 && c <= 0x206f) || c == 0xfeff)
    return 0;
  return n;
}

/* *s as the inside of a JSON string: one line, at most REASON characters, single spaces. */
static void put_line(text_t *t, const char *s) {
  int count = 0, space = 0;
  while (*s && count < REASON) {
    size_t n = sequence((const unsigned char *)s);
    if (n == 0 || (n == 1 && ((unsigned char)*s <= ' ' || *s == 0x7f))) {
      space = count > 0;
      s++;
      if (n == 0)
        while (((unsigned char)*s >> 6) == 2) s++;
      continue;
    }
    if (space) {
      put(t, " ");
      space = 0;
      if (++count == REASON) break;
    }
    if (n == 1 && (*s == '"' || *s == '\\')) put(t, "\\");
    put(t, "%.*s", (int)n, s);
    s += n;
    count++;
  }
}

/* UTC in ISO 8601 with microseconds. */
static void put_now(text_t *t) {
  struct timespec now;
  struct tm utc;
  char shown[40];
  clock_gettime(CLOCK_REALTIME, &now);
  gmtime_r(&now.tv_sec, &utc);
  strftime(shown, sizeof shown, "%Y-%m-%dT%H:%M:%S", &utc);
  put(t, "%s.%06ldZ", shown, now.tv_nsec / 1000);
}

/* user@host of this process. */
static void put_who(text_t *t) {
  struct passwd *user = getpwuid(getuid());
  struct utsname name;
  char plain[32];
  snprintf(plain, sizeof plain, "%u", (unsigned)getuid());
  put_line(t, user ? user->pw_name : plain);
  put(t, "@");
  put_line(t, uname(&name) == 0 ? name.nodename : "");
}

/* ---------------------------------------------------------------- a little JSON */

static const char *blank(const char *s) {
  while (*s == ' ' || *s == '\t' || *s == '\n' || *s == '\r') s++;
  return s;
}

/* End of the string, number, word, array or object at s; NULL when it does not end. */
static const char *skip(const char *s) {
  int depth = 0;
  do {
    if (*s == '"') {
      for (s++; *s != '"'; s++) {
        if (*s == '\\') s++;
        if (!*s) return NULL;
      }
      s++;
    } else if (*s == '{' || *s == '[') {
      depth++;
      s++;
    } else if (*s == '}' || *s == ']') {
      depth--;
      s++;
    } else if (!*s) {
      return NULL;
    } else if (depth) {
      s++;
    } else {
      s += strcspn(s, ",}] \t\r\n");
    }
  } while (depth > 0);
  return s;
}

/* The value of *key* in the object *json*, *end behind it; NULL when there is none. */
static const char *member(const char *json, const char *key, const char **end) {
  const char *s = blank(json);
  size_t size = strlen(key);
  if (*s++ != '{') return NULL;
  for (;;) {
    const char *name = blank(s);
    if (*name != '"' || !(s = skip(name))) return NULL;
    int found = (size_t)(s - name) == size + 2 && memcmp(name + 1, key, size) == 0;
    s = blank(s);
    if (*s++ != ':') return NULL;
    const char *value = blank(s);
    if (!(s = skip(value)) || s == value) return NULL;
    if (found) {
      *end = s;
      return value;
    }
    s = blank(s);
    if (*s++ != ',') return NULL;
  }
}

static int number(const char *json, const char *key, uint64_t *out) {
  const char *end, *value = member(json, key, &end);
  char *after;
  if (!value || !isdigit((unsigned char)*value)) return 0;
  errno = 0;
  *out = strtoull(value, &after, 10);
  return errno == 0 && after == end;
}

/* ---------------------------------------------------------------- files */

static char directory[PATH_SIZE - 64];

static char *at(const char *name, char *path) {
  snprintf(path, PATH_SIZE, "%s/%s", directory, name);
  return path;
}

/* Content of a file of the run directory; NULL when it cannot be read. */
static char *content(const char *name) {
  char path[PATH_SIZE];
  int fd = open(at(name, path), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return NULL;
  char *data = malloc(FILE_MAX + 1);
  size_t size = 0;
  ssize_t n = 0;
  while (data && size < FILE_MAX && (n = read(fd, data + size, FILE_MAX - size)) > 0)
    size += (size_t)n;
  close(fd);
  if (!data || n < 0) {
    free(data);
    return NULL;
  }
  data[size] = 0;
  return data;
}

static int sync_directory(void) {
  int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -1;
  int rc = fsync(fd);
  close(fd);
  return rc;
}

static int write_all(int fd, const text_t *t) {
  return write(fd, t->data, t->size) == (ssize_t)t->size ? 0 : -1;
}

/* Make the run directory like RunDir.prepare, or refuse one that others could reach into. */
static int prepare(void) {
  char path[PATH_SIZE];
  struct stat found;
  for (char *s = directory + 1; *s; s++) {
    if (*s != '/') continue;
    *s = 0;
    mkdir(directory, 0700);     /* each one above; those that are there stay as they are */
    *s = '/';
  }
  if (mkdir(directory, 0700) != 0 && errno != EEXIST)
    return fail(PERMISSION, "run directory %s: %s", directory, strerror(errno));
  if (lstat(directory, &found) != 0 || !S_ISDIR(found.st_mode))
    return fail(PERMISSION, "run directory %s is not a directory", directory);
  if (found.st_uid != geteuid() || found.st_mode & 077)
    return fail(PERMISSION,
                "run directory %s must be this user's and mode 0700, was uid %u mode %04o",
                directory, (unsigned)found.st_uid, (unsigned)found.st_mode & 0777);
  mkdir(at("logs", path), 0700);
  return OK;
}

/* ---------------------------------------------------------------- the page */

/* The page of *run*, or NULL and *why. */
static control_header_t *map_page(uint64_t run, const char **why) {
  char path[128];
  struct stat found;
  snprintf(path, sizeof path, "/dev/shm/hftpipe.%llx.control", (unsigned long long)run);
  int fd = open(path, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    *why = errno == ENOENT ? NULL : "cannot be opened";
    return NULL;
  }
  void *memory = MAP_FAILED;
  if (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode) || found.st_uid != geteuid() ||
      (found.st_mode & 07777) != 0600 || found.st_nlink > 1)
    *why = "is not a file of this user alone";
  else if ((size_t)found.st_size != CONTROL_SIZE)
    *why = "has another size than this version's";
  else if ((memory = mmap(NULL, CONTROL_HEADER_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) ==
           MAP_FAILED)
    *why = "cannot be mapped";
  close(fd);
  if (memory == MAP_FAILED) return NULL;
  control_header_t *page = memory;
  if (hp_load_acquire(&page->magic) != CONTROL_MAGIC || page->version != CONTROL_VERSION ||
      page->run != run) {
    *why = "is not a control page of this version and run";
    munmap(memory, CONTROL_HEADER_SIZE);
    return NULL;
  }
  return page;
}

/* The run that run.json names; failing that, the page of the supervisor that the lock names. */
static control_header_t *find_page(uint64_t *run, const char **why) {
  char *text = content("run.json");
  const char *end, *value = text ? member(text, "run", &end) : NULL;
  char *after;
  control_header_t *page = NULL;
  if (value && *value == '"' && (*run = strtoull(value + 1, &after, 16)) != 0 && after == end - 1) {
    free(text);
    return map_page(*run, why);
  }
  free(text);
  unsigned long long pid, start;
  text = content("lock");
  if (text && sscanf(text, "%llu %llu", &pid, &start) == 2) {
    DIR *list = opendir("/dev/shm");
    struct dirent *item;
    while (list && !page && (item = readdir(list))) {
      unsigned long long number = 0;
      int used = 0;
      if (sscanf(item->d_name, "hftpipe.%llx.control%n", &number, &used) != 1 || !used ||
          item->d_name[used])
        continue;
      const char *other;
      control_header_t *one = map_page(number, &other);
      if (!one) continue;
      if (one->supervisor_pid == pid && one->supervisor_start == start) {
        page = one;
        *run = number;
      } else {
        munmap(one, CONTROL_HEADER_SIZE);
      }
    }
    if (list) closedir(list);
  }
  free(text);
  return page;
}

/* ---------------------------------------------------------------- latch and audit */

/* Like RunDir.record_halt: the higher epoch wins; 0 = one more than the file's. */
static int latch(uint64_t *epoch, const text_t *why) {
  static text_t out;
  char path[PATH_SIZE], temporary[PATH_SIZE], name[64];
  int lock = open(at("operator.lock", path), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (lock < 0) return -1;
  for (int i = 0; i < 400 && flock(lock, LOCK_EX | LOCK_NB) != 0; i++) usleep(5000);
  /* locked or not: a halt is written */
  char *text = content("halt.json");
  uint64_t old = 0, armed = 0;
  const char *end = NULL, *resume = NULL;
  if (text) {
    if (!number(text, "halt_epoch", &old) || !number(text, "armed_epoch", &armed)) {
      old = 2, armed = 1;       /* damaged counts as a halt */
    } else {
      resume = member(text, "resume", &end);
    }
  }
  int rc = 0;
  if (*epoch == 0) *epoch = (old > 1 ? old : 1) + 1;
  if (old <= *epoch) {
    armed = armed > 1 ? armed : 1;
    if (armed > *epoch - 1) armed = *epoch - 1;
    out.size = 0;
    put(&out, "{\n \"halted\": true,\n \"halt_epoch\": %llu,\n \"armed_epoch\": %llu,\n \"halt\": {",
        (unsigned long long)*epoch, (unsigned long long)armed);
    put(&out, "%s},\n \"resume\": %.*s\n}\n", why->data, resume ? (int)(end - resume) : 4,
        resume ? resume : "null");
    snprintf(name, sizeof name, ".halt.json.%d", (int)getpid());
    int fd = open(at(name, temporary), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    rc = fd < 0 || out.cut || write_all(fd, &out) || fsync(fd) ? -1 : 0;
    if (fd >= 0) close(fd);
    if (rc == 0) rc = rename(temporary, at("halt.json", path)) || sync_directory() ? -1 : 0;
    if (rc != 0 && fd >= 0) {
      int kept = errno;
      unlink(temporary);
      errno = kept;
    }
  }
  free(text);
  close(lock);
  return rc;
}

static int audit(uint64_t run, uint64_t epoch, const text_t *why, int cancel, int flatten) {
  static text_t out;
  char path[PATH_SIZE];
  unsigned char id[16];
  if (getrandom(id, sizeof id, 0) != sizeof id) return -1;
  put(&out, "{\"id\": \"");
  for (size_t i = 0; i < sizeof id; i++) put(&out, "%02x", id[i]);
  put(&out, "\", \"action\": \"halt\", %s", why->data);
  if (run) put(&out, ", \"run\": \"%llx\"", (unsigned long long)run);
  put(&out, ", \"epoch\": %llu%s%s}\n", (unsigned long long)epoch, cancel ? ", \"cancel\": true" : "",
      flatten ? ", \"flatten\": true" : "");
  int fd = open(at("audit.jsonl", path), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW,
                0600);
  if (fd < 0) return -1;
  int rc = out.cut || write_all(fd, &out) || fdatasync(fd) ? -1 : 0;
  close(fd);
  return rc;
}

/* ---------------------------------------------------------------- the command */

static int locate(const char *given) {
  const char *chosen = given ? given : getenv("HFTPIPE_RUN_DIR");
  const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
  const char *base, *tail = "/hftpipe";
  if (chosen && *chosen) {
    base = chosen;
    tail = "";
  } else if (state && *state) {
    base = state;
  } else {
    struct passwd *user = getpwuid(getuid());
    base = home && *home ? home : user ? user->pw_dir : "";
    tail = "/.local/state/hftpipe";
  }
  char here[PATH_SIZE / 2] = "";
  if (base[0] != '/' && !getcwd(here, sizeof here)) return -1;
  int n = snprintf(directory, sizeof directory, "%s%s%s%s", here, *here ? "/" : "", base, tail);
  while (n > 1 && n < (int)sizeof directory && directory[n - 1] == '/') directory[--n] = 0;
  return n > 0 && n < (int)sizeof directory ? 0 : -1;
}

int main(int argc, char **argv) {
  const char *given = NULL, *reason = "operator", *trouble = NULL;
  int cancel = 0, flatten = 0;
  for (int i = 1; i < argc; i++) {
    const char *arg = argv[i], *value = NULL;
    int takes = strncmp(arg, "--run-dir", 9) == 0 ? 9 : strncmp(arg, "--reason", 8) == 0 ? 8 : 0;
    if (takes && arg[takes] == '=') value = arg + takes + 1;
    else if (takes && !arg[takes] && i + 1 < argc) value = argv[++i];
    if (value) {
      if (takes == 9) given = value;
      else reason = value;
    } else if (strcmp(arg, "--cancel") == 0) {
      cancel = 1;
    } else if (strcmp(arg, "--flatten") == 0) {
      flatten = 1;
    } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
      fputs(USAGE_TEXT, stdout);
      return OK;
    } else if (strcmp(arg, "--version") == 0) {
      printf("hftpipe-halt, control page version %d\n", CONTROL_VERSION);
      return OK;
    } else {
      return fail(USAGE, "no such option or no value for it: %s; see hftpipe-halt --help", arg);
    }
  }
  if (locate(given) != 0) return fail(USAGE, "the run directory's name is too long");

  uint64_t run = 0, epoch = 0;
  control_header_t *page = find_page(&run, &trouble);
  if (page) {
    epoch = hp_fetch_add(&page->halt_epoch, 1) + 1;     /* the gate is closed */
    if (cancel || flatten) hp_raise(&page->cancel_epoch, epoch);
    if (flatten) hp_raise(&page->flatten_epoch, epoch);
  }

  static text_t why;
  put(&why, "\"reason\": \"");
  put_line(&why, reason);
  put(&why, "\", \"who\": \"");
  put_who(&why);
  put(&why, "\", \"when\": \"");
  put_now(&why);
  put(&why, "\", \"way\": \"helper\"");
  int rc = prepare();
  if (rc == OK && (latch(&epoch, &why) != 0 || audit(page ? run : 0, epoch, &why, cancel, flatten)))
    rc = fail(PERMISSION, "%s: %s", directory, strerror(errno));
  if (rc != OK) {
    if (page)
      fail(rc, "run %llx is halted (epoch %llu), but the halt is not written down",
           (unsigned long long)run, (unsigned long long)epoch);
    return rc;
  }
  if (trouble)
    return fail(CONFIG, "halted for the next start only: the control page of run %llx %s",
                (unsigned long long)run, trouble);
  if (page)
    printf("HALTED run %llx (epoch %llu)\n", (unsigned long long)run, (unsigned long long)epoch);
  else
    printf("HALTED: no run in %s; the next one starts halted\n", directory);
  return OK;
}
