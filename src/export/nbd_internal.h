/* SPDX-License-Identifier: Apache-2.0 */
/* Between the thread that greets clients (nbd_server.c) and those that serve them (nbd_loop.c). */
#ifndef TIDEMARK_EXPORT_NBD_INTERNAL_H
#define TIDEMARK_EXPORT_NBD_INTERNAL_H

#include <stdatomic.h>

#include "block/queue.h"
#include "export/nbd.h"
#include "export/nbd_protocol.h"

struct nbd_loop;

struct nbd_loop_options {
    struct block *block; /* all outlive the loop */
    const struct nbd_export *export;
    size_t buffer_bytes; /* for the data of requests; at least 2 units of nbd_buffers.h */
    uint64_t spin_ns;
    atomic_uint *connections; /* one less when the loop has closed one */
    const struct log *log;
};

/* Starts the thread of a volume. */
int nbd_loop_start(const struct nbd_loop_options *options, struct nbd_loop **ret,
                   struct error *err) MUST_CHECK;
/* Hands a connection over whose handshake is done; the descriptor is the loop's from then on. Any thread. */
void nbd_loop_add(struct nbd_loop *l, int fd, bool structured, bool allocation);
/* Nothing more is received; what was is answered, then the connections are closed. False: begins to serve
 * those that are added. */
void nbd_loop_close(struct nbd_loop *l, bool closed);
/* Whether a closed one has neither requests nor connections any more. */
bool nbd_loop_is_empty(struct nbd_loop *l);
/* Answers what was received, closes the connections, ends the threads. NULL allowed. */
void nbd_loop_free(struct nbd_loop *l);

#endif
