// Copyright (c) tailway contributors. SPDX-License-Identifier: BSD-3-Clause

#define _GNU_SOURCE
#include "callbacks.h"

#include <signal.h>
#include <string.h>

// Per thread and in C, so that a text belongs to the call that failed however
// many threads call at once.
static _Thread_local char error_text[4096];

void tw_set_error(const char *text, size_t len) {
  if (len >= sizeof error_text) {
    len = sizeof error_text - 1;
  }
  memcpy(error_text, text, len);
  error_text[len] = '\0';
}

int tailscale_errmsg(tailscale sd, char *buf, size_t buflen) {
  (void)sd;
  if (buf == NULL || buflen == 0) {
    return EINVAL;
  }
  size_t len = strlen(error_text);
  size_t copied = len < buflen ? len : buflen - 1;
  memcpy(buf, error_text, copied);
  buf[copied] = '\0';
  return copied < len ? ERANGE : 0;
}

void tailscale_free(void *memory) { free(memory); }

int tailscale_signals_onstack(void) {
  int kept_errno = errno;
  for (int number = 1; number < NSIG; number++) {
    struct sigaction action;
    // The numbers that the C library keeps for itself fail with EINVAL.
    if (sigaction(number, NULL, &action) != 0) {
      continue;
    }
    if (action.sa_flags & SA_ONSTACK) {
      continue;
    }
    if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
      continue;
    }
    action.sa_flags |= SA_ONSTACK;
    if (sigaction(number, &action, NULL) != 0) {
      static const char text[] = "sigaction refused SA_ONSTACK";
      tw_set_error(text, sizeof text - 1);
      errno = kept_errno;
      return -1;
    }
  }
  errno = kept_errno;
  return 0;
}

void tw_call_log(tailscale_log_fn fn, void *user, tailscale sd, int level,
                 const char *line, size_t len) {
  fn(user, sd, level, line, len);
}

void tw_call_done(tailscale_done_fn fn, void *user, int status,
                  const char *text, size_t len) {
  fn(user, status, text, len);
}

int tw_call_decide(tailscale_decide_fn fn, void *user,
                   const tailscale_flow *flow) {
  return fn(user, flow);
}

void tw_call_accept(tailscale_accept_fn fn, void *user, tailscale_conn conn,
                    const tailscale_flow *flow) {
  fn(user, conn, flow);
}

void tw_call_dialed(tailscale_dialed_fn fn, void *user, int status,
                    tailscale_conn conn, const tailscale_flow *flow,
                    const char *text, size_t len) {
  fn(user, status, conn, flow, text, len);
}

void tw_call_spliced(tailscale_spliced_fn fn, void *user,
                     const tailscale_conn_stats *stats) {
  fn(user, stats);
}

int tw_call_store_read(tailscale_store_read_fn fn, void *user, const char *key,
                       char **value, size_t *len) {
  return fn(user, key, value, len);
}

int tw_call_store_write(tailscale_store_write_fn fn, void *user,
                        const char *key, const char *value, size_t len) {
  return fn(user, key, value, len);
}
