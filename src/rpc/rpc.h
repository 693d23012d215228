/* SPDX-License-Identifier: Apache-2.0 */
/* A server of unary gRPC calls on a Unix socket: HTTP/2 by nghttp2, messages by protobuf-c.
 *
 * What it takes is bounded: connections, streams, headers, messages, all requests together, the time of a
 * handshake, of a request's arrival and of a reply's departure. Peers other than root and the server's own
 * user are turned away. Strings of a request are valid UTF-8 without NUL before a handler sees them.
 *
 * Threads: a loop thread owns connections; handlers run in a pool, several at once. */
#ifndef TIDEMARK_RPC_RPC_H
#define TIDEMARK_RPC_RPC_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"

#define RPC_WORKERS_DEFAULT 8u
#define RPC_WORKERS_MAX 64u
#define RPC_MESSAGE_BYTES_MAX (4u << 20)
#define RPC_METHODS_MAX 64u
#define RPC_DRAIN_MS_DEFAULT 20000u

/* https://grpc.github.io/grpc/core/md_doc_statuscodes.html */
enum rpc_code {
    RPC_OK = 0,
    RPC_CANCELLED = 1,
    RPC_UNKNOWN = 2,
    RPC_INVALID_ARGUMENT = 3,
    RPC_DEADLINE_EXCEEDED = 4,
    RPC_NOT_FOUND = 5,
    RPC_ALREADY_EXISTS = 6,
    RPC_PERMISSION_DENIED = 7,
    RPC_RESOURCE_EXHAUSTED = 8,
    RPC_FAILED_PRECONDITION = 9,
    RPC_ABORTED = 10,
    RPC_OUT_OF_RANGE = 11,
    RPC_UNIMPLEMENTED = 12,
    RPC_INTERNAL = 13,
    RPC_UNAVAILABLE = 14,
};

struct rpc_call;

/* Answers one call: returns 0 after rpc_reply, or a negative errno with `err` set, which becomes the call's
 * status (rpc_code_of_errno) and message. In a worker thread; may block. */
typedef int rpc_handler(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                        struct error *err);

struct rpc_method {
    const char *path; /* "/package.Service/Method"; NULL ends a list */
    const ProtobufCMessageDescriptor *request;
    rpc_handler *handler;
};

/* Packs the reply (borrowed). -ENOMEM, -EFBIG above RPC_MESSAGE_BYTES_MAX. */
int rpc_reply(struct rpc_call *call, const ProtobufCMessage *reply, struct error *err) MUST_CHECK;
/* The client has gone, has cancelled, or its deadline has passed: nobody hears the answer. */
bool rpc_call_cancelled(const struct rpc_call *call);
/* Boottime (base/clock.h) by which the client wants its answer; UINT64_MAX: whenever. */
uint64_t rpc_call_deadline_ns(const struct rpc_call *call);
/* EINVAL INVALID_ARGUMENT, ENOENT NOT_FOUND, EEXIST ALREADY_EXISTS, EACCES and EPERM PERMISSION_DENIED, EBUSY
 * FAILED_PRECONDITION, EAGAIN and ECONNREFUSED UNAVAILABLE, EALREADY ABORTED (the same is under way), ERANGE
 * OUT_OF_RANGE, ENOSPC, EDQUOT, ENOMEM and EFBIG RESOURCE_EXHAUSTED, EOPNOTSUPP UNIMPLEMENTED, ETIMEDOUT
 * DEADLINE_EXCEEDED, ECANCELED CANCELLED, anything else INTERNAL. */
enum rpc_code rpc_code_of_errno(int code);

struct rpc_server_options {
    const char *socket_path;          /* mode 0600; what has that name is replaced */
    const struct rpc_method *methods; /* borrowed; ends with a NULL path */
    void *context;                    /* of the handlers */
    unsigned workers;                 /* 0: RPC_WORKERS_DEFAULT */
    unsigned drain_ms;     /* how long rpc_server_stop waits for what is under way; 0: the default */
    const struct log *log; /* borrowed, may be NULL */
};

struct rpc_server;

/* Listens and answers until rpc_server_stop. The name of the socket appears only once it can be connected to.
 */
int rpc_server_start(const struct rpc_server_options *options, struct rpc_server **ret_server,
                     struct error *err) MUST_CHECK;
/* Takes no more calls, lets those under way end, frees the server. False: a handler is stuck (in mount(2),
 * say) after drain_ms; server and threads are left as they are, and the caller should end the process. Not
 * from a handler. NULL is allowed. */
bool rpc_server_stop(struct rpc_server *server);

#endif
