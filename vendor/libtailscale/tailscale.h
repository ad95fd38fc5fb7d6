// Copyright (c) tailway contributors. SPDX-License-Identifier: BSD-3-Clause
//
// tailscale.h: tailnet nodes inside a process that is not written in Go.
//
// Names, handles and return codes follow the published libtailscale where the
// meaning is the same; what a gateway needs beyond it is added here.
//
// RETURN CODES   0 is success. -1 is a failure whose text tailscale_errmsg
//                gives. EBADF: not a handle, or closed. EINVAL: a required
//                pointer is NULL or a value is out of range. ERANGE: the buffer
//                is too small. Codes are returned, errno is left alone.
// BLOCKING       No function here blocks for network or disk. What takes time
//                is an operation: it returns at once, and its callback runs
//                exactly once at its end (a watch: its last call is the end).
//                `op` may be NULL for one that nobody will cancel.
//                A function that returns other than 0 never calls back.
// CALLBACKS      Run on threads of the Go runtime, several at a time. They must
//                return quickly, must not unwind, and may call only functions
//                marked [callback-safe]. Pointers passed to a callback are
//                valid until it returns. `user` is passed through untouched and
//                is no longer used once the final call returned.
// THREADS        Every function may be called from any thread at any time.
// MEMORY         A buffer handed out through `char **out` is freed with
//                tailscale_free. Strings passed in are copied.
// FDS            Every fd handed out is owned by the caller, nonblocking and
//                close-on-exec. An fd passed in belongs to the library from the
//                call on, also when the call fails.
// PANICS         A Go panic never crosses: it is logged and reported as -1.
// SIGNALS        The Go runtime needs SA_ONSTACK on every signal handler of the
//                process: call tailscale_signals_onstack after registering one.

#ifndef TAILSCALE_H
#define TAILSCALE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// A node. Never 0, never reused within a process.
typedef int tailscale;

// A TCP connection of a node, accepted or dialled. Never 0, never reused.
// It lives until tailscale_conn_release, whatever became of the bytes.
typedef uint64_t tailscale_conn;

// A running operation, for tailscale_cancel. Never 0, never reused.
typedef uint64_t tailscale_op;

// ---- Process ---------------------------------------------------------------

// Levels of tailscale_log_fn.
#define TAILSCALE_LOG_DEBUG 0
#define TAILSCALE_LOG_INFO 1
#define TAILSCALE_LOG_WARN 2

// A log line without a final newline. `sd` is 0 for lines of no single node.
typedef void (*tailscale_log_fn)(void *user, tailscale sd, int level,
                                 const char *line, size_t len);

// Sends all log lines, those of Go's `log` package included, to `fn`; NULL
// discards them (the default: nothing is ever written to stderr). The previous
// function may still be running while this returns.
extern int tailscale_set_log(tailscale_log_fn fn, void *user);

// Sets an environment variable for Go code, TS_* knobs included. Go copies the
// environment when the process starts, so a later setenv(3) is not seen. Before
// the first node is started: knobs that a node reads are not guarded. -1 when a
// knob cannot parse the value.
extern int tailscale_setenv(const char *name, const char *value);

// Bounds the Go heap. `limit_bytes` <= 0 leaves the soft memory limit as it is
// (GOMEMLIMIT), `gc_percent` < 0 leaves GOGC as it is.
extern int tailscale_set_memory(int64_t limit_bytes, int gc_percent);

// ORs SA_ONSTACK into every handler that is installed now. Idempotent.
extern int tailscale_signals_onstack(void);

// Version of tailscale.com that is linked in, such as "1.102.5". Static.
extern const char *tailscale_version(void);

// Text of the last failure on the calling thread, NUL-terminated. `sd` is
// unused and kept for libtailscale's callers. ERANGE when cut.
extern int tailscale_errmsg(tailscale sd, char *buf, size_t buflen);

extern void tailscale_free(void *memory);

// What is alive, for tests and metrics. [callback-safe]
typedef struct tailscale_counts {
  uint64_t connections; // not yet ended
  uint64_t handles;     // tailscale_conn not yet released
  uint64_t operations;
  uint64_t goroutines;
  uint64_t heap_bytes;  // Go heap in use
  uint64_t pooled_bytes; // copy buffers that are taken right now
} tailscale_counts;
extern int tailscale_count(tailscale_counts *out);

// ---- Node: options, all before tailscale_start ------------------------------

// A new node that is not started. Fails never.
extern tailscale tailscale_new(void);

// Directory for state and certificates, created with mode 0700 and locked
// (flock on `<dir>/lock`) from start to close. Start fails when another process
// holds it or it cannot be written. Without a directory, a store callback or
// tailscale_set_memory_store, start fails.
extern int tailscale_set_dir(tailscale sd, const char *dir);

// Keeps all state in memory: the node is a new one at each start.
extern int tailscale_set_memory_store(tailscale sd);

// A store of the caller. `read` returns 0 and a malloc(3)ed value that the
// library frees, ENOENT when there is no such key, else an error. `write`
// returns 0 when the value is durable. Both may block. Certificates and the
// ACME account go through it too, as "<domain>.crt", "<domain>.key" and
// "acme-account.key.pem".
typedef int (*tailscale_store_read_fn)(void *user, const char *key,
                                       char **value, size_t *len);
typedef int (*tailscale_store_write_fn)(void *user, const char *key,
                                        const char *value, size_t len);
extern int tailscale_set_store(tailscale sd, tailscale_store_read_fn read,
                               tailscale_store_write_fn write, void *user);

extern int tailscale_set_hostname(tailscale sd, const char *hostname);
extern int tailscale_set_authkey(tailscale sd, const char *key);
// OAuth client secret ("tskey-client-…"); needs tags. A node that has joined
// before does not use it. "?baseURL=URL" at its end names another API than
// Tailscale's.
extern int tailscale_set_client_secret(tailscale sd, const char *secret);
// Comma-separated, each "tag:name".
extern int tailscale_set_tags(tailscale sd, const char *tags);
extern int tailscale_set_ephemeral(tailscale sd, int ephemeral);
// A control server other than Tailscale's. A loopback URL also turns off what
// only hinders there: socket marks, port mapping, log upload, and the wait for
// a network interface other than lo (process-wide settings).
extern int tailscale_set_control_url(tailscale sd, const char *url);
// UDP port of WireGuard; 0 lets the system choose.
extern int tailscale_set_port(tailscale sd, uint16_t port);
// Upper bounds of TCP buffers per connection in bytes, 0 for the default.
extern int tailscale_set_tcp_buffers(tailscale sd, uint32_t receive_max,
                                     uint32_t send_max);

// ---- Node: life -------------------------------------------------------------

// End of an operation. `status` 0: `text` is the result that the function
// names. -1: `text` is the error. ECANCELED: cancelled or the node was closed.
typedef void (*tailscale_done_fn)(void *user, int status, const char *text,
                                  size_t len);

// Starts the node; returns when its parts run, before any login. May take some
// 100 ms of local work, which makes it the one function that may block.
extern int tailscale_start(tailscale sd);

// Waits until the node is usable; starts it first if need be. The result is
// tailscale_status's document. Fails at once when the control server refuses
// the key. Without a key it goes on waiting: the watch tells the login URL.
// `timeout_ms` 0: no limit.
extern int tailscale_up(tailscale sd, uint64_t timeout_ms,
                        tailscale_done_fn done, void *user, tailscale_op *op);

// Ends an operation early; its callback still runs. Cancelling one that has
// ended is no error. [callback-safe]
extern int tailscale_cancel(tailscale_op op);

// Ends the node: listeners, connections (reset), packet sockets, operations,
// then the engine. The handle is invalid from the call on. -1 in `done` when
// the engine did not end within `timeout_ms`; the process should then exit.
// Closing a node that was never started is fine. `done` may be NULL.
// `timeout_ms` 0: 10 s.
extern int tailscale_close(tailscale sd, uint64_t timeout_ms,
                           tailscale_done_fn done, void *user);

// The node's state as JSON, in *out:
//   state         NoState | NeedsLogin | NeedsMachineAuth | Stopped | Starting |
//                 Running
//   auth_url      where to log in, "" when not needed
//   hostname      as asked for;  dns_name: as the tailnet named it, no final dot
//   ips           tailnet addresses, v4 first
//   domain        MagicDNS suffix;  magic_dns_off: its peers cannot ask for its name
//   cert_domains  names it may have certificates for
//   node_id, user (login name), tags
//   key_expiry    RFC 3339 or "" when it never expires;  key_expired
//   control_error last error of the control connection, "" when fine;
//                 login_refused: it is the server's word on the key or the login
//   health        warnings, sorted
//   peers         {"total","direct","relayed"} of those with recent traffic
extern int tailscale_status(tailscale sd, char **out, size_t *len);

// Calls `fn` with status 0 and tailscale_status's document now and whenever it
// changes (at most some 10 times a second), until cancelled or closed; the last
// call has another status.
extern int tailscale_watch(tailscale sd, tailscale_done_fn fn, void *user,
                           tailscale_op *op);

// ---- TCP --------------------------------------------------------------------

// Addresses are in network order; an IPv4 one stands in the first four bytes.
typedef struct tailscale_flow {
  uint8_t family; // 4 or 6
  uint8_t src_ip[16];
  uint8_t dst_ip[16];
  uint16_t src_port; // host order
  uint16_t dst_port;
  // Key of the peer's identity: the same (node, epoch) has the same
  // tailscale_whois answer. node is 0 when the peer is unknown.
  uint64_t node;
  uint64_t epoch;
} tailscale_flow;

// Whether to accept a connection whose handshake has not been answered yet;
// 0 refuses it with RST. node and epoch of the flow are 0 here.
typedef int (*tailscale_decide_fn)(void *user, const tailscale_flow *flow);

// A connection whose handshake is complete. The callee owns `conn` and must
// give it to one of tailscale_conn_fd, _splice or _abort, then release it.
typedef void (*tailscale_accept_fn)(void *user, tailscale_conn conn,
                                    const tailscale_flow *flow);

// Accepts on every TCP port and address of the node. One per node; stays until
// tailscale_unlisten or close, with accept(user, 0, NULL) as its last call.
extern int tailscale_listen(tailscale sd, tailscale_decide_fn decide,
                            tailscale_accept_fn accept, void *user);
extern int tailscale_unlisten(tailscale sd);

// End of a dial: status 0 and a connection, or an error text.
typedef void (*tailscale_dialed_fn)(void *user, int status, tailscale_conn conn,
                                    const tailscale_flow *flow,
                                    const char *text, size_t len);

// Connects to "host:port" in the tailnet and nowhere else: host is an address
// that a peer (or this node) has, or a name in the network map.
extern int tailscale_dial(tailscale sd, const char *address, uint64_t timeout_ms,
                          tailscale_dialed_fn done, void *user, tailscale_op *op);

// Why a connection ended. Names are from the tailnet peer's point of view.
#define TAILSCALE_END_OPEN 0          // it has not
#define TAILSCALE_END_EOF 1           // both sides finished
#define TAILSCALE_END_PEER_RESET 2    // the tailnet peer reset or timed out
#define TAILSCALE_END_LOCAL_RESET 3   // the local side (fd or spliced socket) did
#define TAILSCALE_END_ABORTED 4       // tailscale_conn_abort
#define TAILSCALE_END_IDLE 5          // idle timeout
#define TAILSCALE_END_CLOSED 6        // the node was closed

typedef struct tailscale_conn_stats {
  uint64_t received; // bytes from the tailnet peer, delivered to the local side
  uint64_t sent;     // bytes from the local side, accepted by the tailnet's TCP
  int end;           // TAILSCALE_END_*
} tailscale_conn_stats;

// Opens the connection as a stream socket. EOF and shutdown(2) carry half-close
// both ways. EOF on the fd is also what a reset by the peer looks like: its
// tailscale_conn_stat then says PEER_RESET, before the fd shows it.
// Closing the fd with unread bytes resets the peer.
extern int tailscale_conn_fd(tailscale_conn conn, int *fd);

typedef void (*tailscale_spliced_fn)(void *user,
                                     const tailscale_conn_stats *stats);

// Copies between the connection and a connected stream socket until both ended,
// carrying half-close and resets both ways. `prefix` is written to the socket
// first and is not counted. `idle_timeout_ms` 0: none.
extern int tailscale_conn_splice(tailscale_conn conn, int fd, const void *prefix,
                                 size_t prefix_len, uint64_t idle_timeout_ms,
                                 tailscale_spliced_fn done, void *user);

// Resets the connection, whatever its state. [callback-safe]
extern int tailscale_conn_abort(tailscale_conn conn);

// [callback-safe]
extern int tailscale_conn_stat(tailscale_conn conn, tailscale_conn_stats *out);

// Gives the handle back; aborts a connection that was neither opened nor
// spliced. A running stream goes on. [callback-safe]
extern int tailscale_conn_release(tailscale_conn conn);

// ---- UDP --------------------------------------------------------------------

// Each message on a packet socket starts with this header: whom it came from,
// or whom it goes to.
typedef struct tailscale_packet_header {
  uint8_t family; // 4 or 6
  uint8_t reserved;
  uint16_t port; // host order
  uint8_t ip[16];
} tailscale_packet_header;

// Largest payload that tailscale_listen_packet carries.
#define TAILSCALE_PACKET_MAX 65507

// Binds "ip:port" with a tailnet address of this node, port 0 for any, and
// gives a SOCK_SEQPACKET socket: one message, one datagram. Closing it unbinds.
// A datagram that finds the socket full is dropped, as UDP does. `port` tells
// the bound port and may be NULL.
extern int tailscale_listen_packet(tailscale sd, const char *address, int *fd,
                                   uint16_t *port);

// ---- Identity, certificates, metrics ---------------------------------------------

// Who has the tailnet address "ip" or "ip:port", as JSON in *out: node (name
// without final dot), node_id, login, display_name, profile_pic_url (all "" for
// tagged nodes), tags, capabilities {name: [values]}. -1 when nobody has it.
extern int tailscale_whois(tailscale sd, const char *address, char **out,
                           size_t *len);

// Address of a node of the tailnet, by name (full, or its first label) or IP
// address, or of a Service ("svc:name"). -1 when the tailnet has none.
extern int tailscale_look_up(tailscale sd, const char *host, char **out,
                             size_t *len);

// Certificate and key for `domain`, PEM: private key first, then the chain.
// From the store while it is valid for `min_validity_s` more seconds (0: until
// its renewal is due by ARI, which then starts in the background), else by ACME.
// The text of a failure is JSON: {"error", "retry_after_s"} (0: not known).
// `timeout_ms` must not be 0: a rate-limited ACME server can hold it for hours.
extern int tailscale_cert_pair(tailscale sd, const char *domain,
                               uint64_t min_validity_s, uint64_t timeout_ms,
                               tailscale_done_fn done, void *user,
                               tailscale_op *op);

// Tailscale's own client metrics, Prometheus text format.
extern int tailscale_metrics(tailscale sd, char **out, size_t *len);

#ifdef __cplusplus
}
#endif

#endif
