/* SPDX-License-Identifier: Apache-2.0 */
/* Serves block devices by NBD on a Unix socket, one export name each (docs/adr/0011). A thread for each
 * device has all its connections and many requests under way; flushes are of the device, so clients may use
 * several connections. */
#ifndef TIDEMARK_EXPORT_NBD_H
#define TIDEMARK_EXPORT_NBD_H

#include "base/error.h"
#include "base/log.h"
#include "export/runtime.h"

#define NBD_CONNECTIONS_MAX 64u  /* of a server; more are closed at once */
#define NBD_CONNECTIONS_CALM 48u /* with no more of them it is said again that they are */
#define NBD_HANDSHAKE_MS 10000  /* a client that has not chosen an export by then is sent away */
#define NBD_STALL_MS 60000      /* so is one that neither goes on sending a request nor takes an answer */
#define NBD_GATE_MS 30000       /* requests that do not end by then keep the volumes from being rewound */
#define NBD_DEFAULT_SPIN_US 50u
#define NBD_MAX_EXPORTS 256u
#define NBD_BUFFERS_BYTES (16u << 20)       /* of a server, for the data of requests: its exports share it equally, */
#define NBD_BUFFERS_LEAST_BYTES (256u << 10) /* but each has so much */

struct nbd_server;

struct nbd_server_options {
    const char *socket_path; /* one that nobody serves any more is replaced */
    size_t count;
    struct block *const *blocks; /* not owned; outlive the server, as do the names */
    const char *const *names;
    const struct log *log; /* may be NULL; must outlive the server */
};

/* Clients can connect when it returns. -EADDRINUSE: another process serves the socket. */
int nbd_server_start(const struct nbd_server_options *options, struct nbd_server **ret,
                     struct error *err) MUST_CHECK;
/* Closed: the requests that were received are answered and all clients disconnected when it returns, and who
 * connects has to wait. -EBUSY when requests did not end within NBD_GATE_MS; it is open again then. One
 * thread at a time. */
int nbd_server_gate(struct nbd_server *s, bool closed, struct error *err) MUST_CHECK;
/* Answers what was received, disconnects the clients, removes the socket. NULL allowed. */
void nbd_server_free(struct nbd_server *s);

/* The body of a program: starts the runtime, serves its volumes, waits for SIGTERM or SIGINT. As
 * fuse_runtime_main, with the same exit statuses. `pid_path` (NULL: none) is written once clients can
 * connect. */
int nbd_runtime_main(const struct runtime_ops *ops, const char *config_path, const char *socket_path,
                     const char *pid_path, const struct log *log);

#endif
