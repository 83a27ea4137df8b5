/* Fault points: where a drill kills or stops the process, in builds that have them.
 *
 * HFTPIPE_BUILD=faults defines HP_FAULTS; in every other build hp_fault() is nothing at all.
 *
 *   HFT_FP=name:n          SIGKILL when the point `name` is passed for the n-th time
 *   HFT_FP=name:n:stop     SIGSTOP instead
 *   HFT_FP_LOG=path        this file is written first; while it exists no point does anything, so
 *                          that one fault is one fault, also when the process is started again
 *
 * Each compiled module counts for itself: a name belongs to one place in one module.
 */
#pragma once
#ifdef HP_FAULTS
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char hp_fault_name[64];
static long hp_fault_left = -1;                 /* -1 = the environment was not read yet */
static int hp_fault_signal = SIGKILL;

static void hp_fault_read(void) {
  const char *text = getenv("HFT_FP"), *log = getenv("HFT_FP_LOG");
  const char *colon = text ? strchr(text, ':') : NULL;
  hp_fault_left = 0;
  if (!colon || (size_t)(colon - text) >= sizeof hp_fault_name || (log && !access(log, F_OK)))
    return;
  memcpy(hp_fault_name, text, (size_t)(colon - text));
  hp_fault_left = strtol(colon + 1, NULL, 10);
  if (strstr(colon, ":stop"))
    hp_fault_signal = SIGSTOP;
}

static inline void hp_fault(const char *name) {
  if (hp_fault_left < 0)
    hp_fault_read();
  if (hp_fault_left == 0 || strcmp(name, hp_fault_name) != 0 || --hp_fault_left != 0)
    return;
  const char *log = getenv("HFT_FP_LOG");
  if (log) {
    int fd = open(log, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
      return;                                   /* another one was there first */
    dprintf(fd, "%s %ld\n", name, (long)getpid());
    close(fd);
  }
  raise(hp_fault_signal);
}
#else
#define hp_fault(name) ((void)0)
#endif
