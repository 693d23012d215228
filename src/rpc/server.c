/* SPDX-License-Identifier: Apache-2.0 */
/* The loop: epoll over the listener, the workers' eventfd and the connections; time limits; the end. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "rpc/rpc_internal.h"

#define EVENTS_MAX 64
#define LOOK_MS_MAX 60000u
#define LISTEN_BACKLOG 64

static uint64_t now_ns(void)
{
    return clock_boottime_ns(clock_system());
}

/* What the workers have given back. */
static void take_done(struct rpc_server *server)
{
    uint64_t count;
    if (read(server->wake_fd, &count, sizeof count) < 0)
        return;
    pthread_mutex_lock(&server->mutex);
    struct task *task = take_ptr(server->done);
    pthread_mutex_unlock(&server->mutex);
    for (struct task *next; task; task = next) {
        struct stream *s = task->stream;
        next = task->next;
        server->task_count--;
        server->request_bytes -= task->request_bytes;
        if (s) {
            struct connection *c = s->connection;
            s->task = NULL;
            stream_answer(s, task->call.result < 0 ? rpc_code_of_errno(task->call.result) : RPC_OK,
                          task->call.err.message, task);
            connection_flush(c);
        }
        task_free(task);
    }
}

/* ---- time ---- */

static void at_most(uint64_t *next_ns, uint64_t ns)
{
    *next_ns = ns < *next_ns ? ns : *next_ns;
}

/* Deadlines of the connection's calls. */
static void look_at_streams(struct connection *c, uint64_t now, uint64_t *next_ns)
{
    bool changed = false;
    for (struct stream *s = c->streams; s; s = s->next) {
        uint64_t arrival_limit_ns = s->arrival_ns + RPC_REQUEST_MS * NS_PER_MS;
        if (s->answered) { /* flow control of the client's keeps it */
            uint64_t taken_ns = s->answered_ns + RPC_STALL_MS * NS_PER_MS;
            if (taken_ns <= now) {
                nghttp2_submit_rst_stream(c->session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_CANCEL);
                s->answered_ns = now;
                changed = true;
            }
            at_most(next_ns, s->answered_ns + RPC_STALL_MS * NS_PER_MS);
            continue;
        }
        if (s->deadline_ns <= now)
            stream_refuse(s, RPC_DEADLINE_EXCEEDED, "the deadline has passed; what was begun may still end");
        else if (!s->task && arrival_limit_ns <= now)
            stream_refuse(s, RPC_DEADLINE_EXCEEDED, "the request did not arrive within 30 s");
        changed |= s->answered;
        at_most(next_ns, s->deadline_ns);
        if (!s->task && !s->answered)
            at_most(next_ns, arrival_limit_ns);
    }
    if (changed)
        connection_flush(c);
}

static void look_at_connection(struct connection *c, uint64_t now, uint64_t *next_ns)
{
    uint64_t handshake_ns = c->accepted_ns + RPC_HANDSHAKE_MS * NS_PER_MS;
    uint64_t stall_ns = c->progress_ns + RPC_STALL_MS * NS_PER_MS;
    uint64_t linger_ns = c->progress_ns + RPC_LINGER_MS * NS_PER_MS;
    if (c->ended && linger_ns > now) {
        at_most(next_ns, linger_ns);
        return;
    }
    if (c->ended || (!c->settled && handshake_ns <= now) || (c->output_bytes && stall_ns <= now)) {
        connection_kill(c);
        return;
    }
    if (!c->settled)
        at_most(next_ns, handshake_ns);
    if (c->output_bytes)
        at_most(next_ns, stall_ns);
    look_at_streams(c, now, next_ns);
    if (c->dead || !c->server->stopping)
        return;
    uint64_t final_ns = c->server->stopping_ns + RPC_NOTICE_MS * NS_PER_MS;
    if (!c->noticed) {
        c->noticed = true;
        nghttp2_submit_shutdown_notice(c->session);
    } else if (!c->final && final_ns <= now) {
        c->final = true;
        nghttp2_submit_goaway(c->session, NGHTTP2_FLAG_NONE,
                              nghttp2_session_get_last_proc_stream_id(c->session), NGHTTP2_NO_ERROR, NULL, 0);
    }
    if (!c->final)
        at_most(next_ns, final_ns);
    connection_flush(c);
}

static uint64_t look_at_time(struct rpc_server *server)
{
    uint64_t now = now_ns(), next_ns = now + LOOK_MS_MAX * NS_PER_MS;
    for (struct connection *c = server->connections, *next; c; c = next) {
        next = c->next;
        look_at_connection(c, now, &next_ns);
    }
    if (server->stopping)
        at_most(&next_ns, server->stopping_ns + server->drain_ms * NS_PER_MS);
    return next_ns;
}

/* ---- the loop ---- */

static void begin_stop(struct rpc_server *server)
{
    if (server->stopping || !atomic_load(&server->stop_asked))
        return;
    server->stopping = true;
    server->stopping_ns = now_ns();
    unlink(server->path);
    epoll_ctl(server->epoll_fd, EPOLL_CTL_DEL, server->listen_fd, NULL);
    close(server->listen_fd);
    server->listen_fd = -1;
}

static void bury(struct rpc_server *server)
{
    for (struct connection *c; (c = server->dead);) {
        server->dead = c->next;
        free(c);
    }
}

static void *loop(void *context)
{
    struct rpc_server *server = context;
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        begin_stop(server);
        uint64_t next_ns = look_at_time(server), now = now_ns();
        bury(server);
        bool late = server->stopping && now >= server->stopping_ns + server->drain_ms * NS_PER_MS;
        if (server->stopping && (late || (!server->connection_count && !server->task_count)))
            break;
        int wait_ms = next_ns <= now ? 0 : (int)((next_ns - now) / NS_PER_MS + 1);
        int n = epoll_wait(server->epoll_fd, events, EVENTS_MAX, wait_ms);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].data.ptr == &server->listen_fd)
                connection_accept(server);
            else if (events[i].data.ptr == &server->wake_fd)
                take_done(server);
            else if (!c->dead && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                connection_readable(c);
            else if (!c->dead)
                connection_flush(c);
        }
    }
    server->stuck = server->task_count > 0;
    while (server->connections)
        connection_kill(server->connections);
    bury(server);
    return NULL;
}

/* ---- start and end ---- */

/* A client may dial between bind and listen: bound under another name, listening, then renamed; over a stale
 * socket as well. */
static int listen_at(struct rpc_server *server, const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *slash = strrchr(path, '/');
    int directory_bytes = slash ? (int)(slash - path + 1) : 0;
    int n = snprintf(address.sun_path, sizeof address.sun_path, "%.*s.%s", directory_bytes, path,
                     path + directory_bytes);
    struct stat st;
    if (n >= (int)sizeof address.sun_path)
        return error_set(err, -ENAMETOOLONG,
                         "cannot listen at %s: a socket's path has at most %zu bytes; choose a shorter one",
                         path, sizeof address.sun_path - 2);
    if (lstat(path, &st) == 0 && !S_ISSOCK(st.st_mode))
        return error_set(err, -EEXIST,
                         "cannot listen at %s: something else than a socket has that name; remove it, or "
                         "choose another path",
                         path);
    snprintf(server->path, sizeof server->path, "%s", path);
    if (unlink(address.sun_path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", address.sun_path);
    server->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The mode before bind is the file's mode. */
    if (server->listen_fd < 0 || fchmod(server->listen_fd, 0600) < 0 ||
        bind(server->listen_fd, (const struct sockaddr *)&address, sizeof address) < 0 ||
        listen(server->listen_fd, LISTEN_BACKLOG) < 0 || rename(address.sun_path, path) < 0)
        return error_errno(err, -errno, "cannot listen at %s", path);
    return 0;
}

static int watch(struct rpc_server *server, int *fd, struct error *err)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = fd};
    if (epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, *fd, &event) < 0)
        return error_errno(err, -errno, "cannot start the gRPC server");
    return 0;
}

static void server_free(struct rpc_server *server)
{
    if (server->epoll_fd >= 0)
        close(server->epoll_fd);
    if (server->wake_fd >= 0)
        close(server->wake_fd);
    if (server->listen_fd >= 0) {
        close(server->listen_fd);
        unlink(server->path);
    }
    nghttp2_option_del(server->option);
    nghttp2_session_callbacks_del(server->callbacks);
    pthread_mutex_destroy(&server->mutex);
    free(server);
}

static int open_all(struct rpc_server *server, const struct rpc_server_options *options, struct error *err)
{
    server->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    server->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (server->epoll_fd < 0 || server->wake_fd < 0)
        return error_errno(err, -errno, "cannot start the gRPC server");
    int r = connection_setup(server, err);
    if (r == 0)
        r = listen_at(server, options->socket_path, err);
    if (r == 0)
        r = watch(server, &server->listen_fd, err);
    return r == 0 ? watch(server, &server->wake_fd, err) : r;
}

int rpc_server_start(const struct rpc_server_options *options, struct rpc_server **ret_server,
                     struct error *err)
{
    struct rpc_server *server = calloc(1, sizeof *server);
    if (!server)
        return error_set(err, -ENOMEM, "out of memory");
    server->methods = options->methods;
    server->context = options->context;
    server->log = options->log;
    server->drain_ms = options->drain_ms ? options->drain_ms : RPC_DRAIN_MS_DEFAULT;
    server->epoll_fd = server->listen_fd = server->wake_fd = -1;
    pthread_mutex_init(&server->mutex, NULL);
    int r = open_all(server, options, err);
    if (r == 0)
        r = pool_start(&server->pool, options->workers ? options->workers : RPC_WORKERS_DEFAULT, err);
    if (r < 0) {
        server_free(server);
        return r;
    }
    r = thread_start(&server->loop, "rpc-loop", loop, server, err);
    if (r < 0) {
        pool_stop(&server->pool);
        server_free(server);
        return r;
    }
    *ret_server = server;
    return 0;
}

bool rpc_server_stop(struct rpc_server *server)
{
    uint64_t one = 1;
    if (!server)
        return true;
    atomic_store(&server->stop_asked, true);
    write(server->wake_fd, &one, sizeof one);
    pthread_join(server->loop, NULL);
    if (server->stuck) {
        log_warning(server->log, "gRPC: a call does not end within %u ms; left behind", server->drain_ms);
        return false;
    }
    pool_stop(&server->pool);
    server_free(server);
    return true;
}
