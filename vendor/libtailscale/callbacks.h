// Copyright (c) tailway contributors. SPDX-License-Identifier: BSD-3-Clause
//
// What the Go side needs of C: calls through function pointers, which Go cannot
// make itself, and the error text of a thread.

#ifndef TAILWAY_CALLBACKS_H
#define TAILWAY_CALLBACKS_H

#include <errno.h>
#include <stdlib.h>

#include "tailscale.h"

// cgo writes the types of exported functions without `const`; these names keep
// the generated prototypes equal to those of tailscale.h.
typedef const char *const_chars;
typedef const void *const_bytes;

void tw_set_error(const char *text, size_t len);

void tw_call_log(tailscale_log_fn fn, void *user, tailscale sd, int level,
                 const char *line, size_t len);
void tw_call_done(tailscale_done_fn fn, void *user, int status,
                  const char *text, size_t len);
int tw_call_decide(tailscale_decide_fn fn, void *user,
                   const tailscale_flow *flow);
void tw_call_accept(tailscale_accept_fn fn, void *user, tailscale_conn conn,
                    const tailscale_flow *flow);
void tw_call_dialed(tailscale_dialed_fn fn, void *user, int status,
                    tailscale_conn conn, const tailscale_flow *flow,
                    const char *text, size_t len);
void tw_call_spliced(tailscale_spliced_fn fn, void *user,
                     const tailscale_conn_stats *stats);
int tw_call_store_read(tailscale_store_read_fn fn, void *user, const char *key,
                       char **value, size_t *len);
int tw_call_store_write(tailscale_store_write_fn fn, void *user,
                        const char *key, const char *value, size_t len);

#endif
