/* The control page's bytes.  Who writes what, and what holds, stands in _control.pxd.
 *
 * In C, because hftpipe-halt (halt.c) maps the page without Python: both halves of hftpipe see
 * this one layout, and whoever changes it counts CONTROL_VERSION up.
 */
#ifndef HFTPIPE_CONTROL_H
#define HFTPIPE_CONTROL_H
#include <stddef.h>
#include <stdint.h>

#define CONTROL_MAGIC UINT64_C(0x326c727463706668) /* b"hfpctrl2" */

enum {
  CONTROL_VERSION = 5,
  CONTROL_STAGES = 16,
  CONTROL_STREAMS = 16, /* words for durable sequences, by HP_STREAM_* */
  CONTROL_HEADER_SIZE = 12288,
  CONTROL_COUNTERS = 64, /* words kept for counters, of which HP_METRIC_COUNT are used */
  CONTROL_HISTOGRAMS = 12,
  CONTROL_STRATEGIES = 32,
  CONTROL_FIGURES = 28, /* words kept for a strategy's figures, of which HP_PER_COUNT are used */
  /* Buckets: values below 16 exactly, then 16 per power of two up to 2**40 ns (18 minutes). */
  HISTOGRAM_BUCKETS = 592,
  TEXT_SIZE = 3584, /* bytes of UTF-8 */
  NAMES_SIZE = 3584,
  NAME_SIZE = 32
};

enum { /* stage_block_t.state */
  STAGE_VOID = 0,
  STAGE_STARTING = 1,
  STAGE_RUNNING = 2,
  STAGE_DRAINING = 3,
  STAGE_STOPPED = 4,
  STAGE_FAILED = 5
};

enum { /* control_header_t.stop */
  CONTROL_RUN = 0,
  CONTROL_DRAIN = 1,
  CONTROL_QUIT = 2
};

typedef struct {
  uint64_t count;
  uint64_t sum; /* ns */
  uint64_t max; /* ns */
  uint64_t min; /* ns; 0 while count is 0 */
  uint64_t buckets[HISTOGRAM_BUCKETS];
} histogram_t;

typedef struct {
  uint64_t magic;
  uint64_t version;
  uint64_t run;              /* id of the run: UTC ns of its start */
  uint64_t boot;             /* first 8 bytes of the kernel's boot id */
  uint64_t supervisor_pid;
  uint64_t supervisor_start; /* clock ticks after boot */
  uint64_t schema;           /* fingerprint over all records' fingerprints */
  uint64_t stages;           /* stage blocks in use */
  uint64_t started;          /* UTC ns */
  uint64_t utc_offset;       /* UTC minus monotonic at start, ns */
  uint64_t token_key;        /* random: keys the verdicts' tokens */
  uint64_t limits_version;
  uint64_t _pad0[4];
  uint64_t halt_epoch;       /* on a line pair of its own: every gate reads it */
  uint64_t _pad1[15];
  uint64_t armed_epoch;
  uint64_t _pad2[15];
  uint64_t stop;
  uint64_t cancel_epoch;     /* the last halt that asked for every open order to be cancelled */
  uint64_t flatten_epoch;    /* the last halt that asked for every position to be closed */
  uint64_t _pad3[13];
  uint64_t durable[CONTROL_STREAMS]; /* on the next ones; [0]: records of all streams (C5) */
  uint64_t text_seq;         /* seqlock: texts written (C3) */
  uint64_t text_size[2];     /* bytes */
  uint64_t text[2][TEXT_SIZE / 8]; /* JSON: profile, symbols, last halt and resume with reason, who */
  /* Of the counters, an empty line, of the histograms, an empty line, of the figures (C4). */
  char names[NAMES_SIZE];
} control_header_t;

typedef struct {
  char name[NAME_SIZE];
  uint64_t pid;
  uint64_t core;       /* 1 + core it is pinned to; 0 = floats */
  uint64_t state;      /* STAGE_* */
  uint64_t heartbeat;  /* ns, monotonic */
  uint64_t store_full; /* 1 while its store link has no room: risk refuses */
  uint64_t ack_epoch;  /* highest halt epoch it acted on */
  uint64_t start;      /* of pid, clock ticks after boot */
  uint64_t _pad0[5];
  uint64_t counters[CONTROL_COUNTERS]; /* HP_METRIC_* */
  histogram_t histograms[CONTROL_HISTOGRAMS]; /* HP_HISTOGRAM_* */
} stage_block_t;

#define HP_UNKNOWN UINT64_C(0xffffffffffffffff) /* a figure that nobody knows yet */

typedef struct {
  char name[NAME_SIZE];              /* empty = unused */
  uint64_t figures[CONTROL_FIGURES]; /* HP_PER_*; HP_UNKNOWN */
} strategy_block_t;

_Static_assert(sizeof(control_header_t) <= CONTROL_HEADER_SIZE, "control header");
_Static_assert(offsetof(control_header_t, halt_epoch) == 128, "halt_epoch: on a line pair of its own");
_Static_assert(offsetof(control_header_t, armed_epoch) == 256, "armed_epoch: on the next one");
_Static_assert(offsetof(control_header_t, stop) == 384, "stop: on the next one");
_Static_assert(offsetof(control_header_t, durable) == 512, "durable: on the next one");
_Static_assert(sizeof(stage_block_t) % 64 == 0, "stage block: whole lines");
_Static_assert(sizeof(strategy_block_t) % 64 == 0, "strategy block: whole lines");

#define CONTROL_STRATEGIES_AT (CONTROL_HEADER_SIZE + CONTROL_STAGES * sizeof(stage_block_t))
#define CONTROL_SIZE (CONTROL_STRATEGIES_AT + CONTROL_STRATEGIES * sizeof(strategy_block_t))
#endif
