/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of this module share.
 *
 * Invariants:
 *   R1  a task belongs to a worker from pool_add until it is in server.done, else to the loop; a stream that
 * ends before detaches it and sets call.cancelled R2  a stream answers once: a status of the loop (deadline,
 * bad framing) or the handler's, whichever is first R3  nothing is read from a connection whose output is not
 * taken R4  a connection is freed after the round of epoll that may still hold events for it
 *
 * Threads: everything but tasks is the loop thread's. Locks: server.mutex (done), pool.mutex; never both. */
#ifndef TIDEMARK_RPC_RPC_INTERNAL_H
#define TIDEMARK_RPC_RPC_INTERNAL_H

#include <nghttp2/nghttp2.h>
#include <pthread.h>
#include <stdatomic.h>

#include "rpc/rpc.h"

#define RPC_CONNECTIONS_MAX 64u
#define RPC_STREAMS_MAX 32u
#define RPC_HEADER_BYTES_MAX (16u << 10)
#define RPC_REQUESTS_BYTES_MAX (64u << 20) /* of all requests that are not yet answered */
#define RPC_TASKS_MAX 256u                 /* waiting for a worker or in one */
#define RPC_HANDSHAKE_MS 10000u            /* from accept to the client's SETTINGS */
#define RPC_REQUEST_MS 30000u              /* from a call's headers to the end of its message */
#define RPC_STALL_MS 30000u /* without progress of pending output; for a client to take its answer */
#define RPC_NOTICE_MS 100u  /* between the two GOAWAYs of a shutdown */
#define RPC_LINGER_MS 2000u /* for a client to close what the server has ended */
#define RPC_PREFIX_BYTES 5u /* of a message: flag and big-endian length */
#define RPC_STATUS_MESSAGE_BYTES (3 * ERROR_MESSAGE_BYTES)
#define RPC_NESTING_MAX 32u

struct rpc_call {
    atomic_bool cancelled;
    uint64_t deadline_ns;
    uint8_t *reply; /* RPC_PREFIX_BYTES of room, then the message */
    size_t reply_bytes;
    int result; /* 0 or -errno with err */
    struct error err;
};

struct stream;
struct task {
    struct task *next;
    struct rpc_server *server;
    struct stream *stream; /* NULL once detached */
    const struct rpc_method *method;
    uint8_t *request;
    size_t request_bytes;
    struct rpc_call call;
};

struct stream {
    struct stream *next, *previous;
    struct connection *connection;
    int32_t id;
    struct task *task;
    const struct rpc_method *method;
    bool post, grpc, has_path, answered, early;
    const char *problem; /* found in the headers: static */
    uint64_t deadline_ns, arrival_ns, answered_ns;
    size_t header_bytes;
    uint8_t prefix[RPC_PREFIX_BYTES];
    unsigned prefix_bytes;
    uint8_t *request;
    size_t request_bytes, request_size; /* here, and announced */
    uint8_t *reply;
    size_t reply_bytes, sent_bytes;
};

struct connection {
    struct connection *next, *previous;
    struct rpc_server *server;
    int fd;
    nghttp2_session *session;
    struct stream *streams;
    const uint8_t *output;
    size_t output_bytes;
    uint64_t accepted_ns, progress_ns;
    bool settled, wants_write, dead, noticed, final, ended;
};

struct pool {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct task *head, **tail;
    bool stopping;
    unsigned count;
    pthread_t threads[RPC_WORKERS_MAX];
};

struct rpc_server {
    char path[108];
    const struct rpc_method *methods;
    void *context;
    const struct log *log;
    unsigned drain_ms;
    int epoll_fd, listen_fd, wake_fd;
    pthread_t loop;
    struct pool pool;
    nghttp2_session_callbacks *callbacks;
    nghttp2_option *option;
    unsigned connection_count, task_count;
    size_t request_bytes; /* of all streams and tasks */
    struct connection *connections, *dead;
    atomic_bool stop_asked;
    bool stopping;
    uint64_t stopping_ns;
    bool stuck; /* the drain's limit passed with handlers running */
    pthread_mutex_t mutex;
    struct task *done; /* mutex */
};

/* pool.c */
int pool_start(struct pool *pool, unsigned count, struct error *err) MUST_CHECK;
void pool_add(struct pool *pool, struct task *task);
void pool_stop(struct pool *pool); /* joins */

/* call.c: runs a task in a worker and gives it back to the loop. */
void task_run(struct task *task);
void task_free(struct task *task);

/* wire.c: text of a request and of a status. */
/* Walks the encoded message: wire types as described, strings UTF-8 without NUL, nesting bounded. -EINVAL. */
int wire_check(const ProtobufCMessageDescriptor *descriptor, const uint8_t *data, size_t length_bytes,
               struct error *err) MUST_CHECK;
/* grpc-timeout: at most 8 digits and a unit of H M S m u n. False for anything else. */
bool wire_parse_timeout(const char *text, size_t length_bytes, uint64_t *ret_ns);
/* grpc-message: printable ASCII but '%' as it is, the rest as %XX. Returns the length. */
size_t wire_percent_encode(const char *text, char *ret, size_t size);

/* connection.c */
int connection_setup(struct rpc_server *server, struct error *err) MUST_CHECK;
void connection_accept(struct rpc_server *server);
void connection_readable(struct connection *connection);
/* Sends what there is to send; the connection may be dead afterwards. */
void connection_flush(struct connection *connection);
void connection_kill(struct connection *connection);
void stream_answer(struct stream *stream, enum rpc_code code, const char *message, struct task *task);
/* A final status before the handler's, or before the request has ended. */
void stream_refuse(struct stream *stream, enum rpc_code code, const char *message);

#endif
