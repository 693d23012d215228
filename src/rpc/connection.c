/* SPDX-License-Identifier: Apache-2.0 */
/* A connection's HTTP/2 session and its streams. nghttp2's own checks of HTTP messages are off: old kubelets
 * send the socket's path as :authority, which they refuse. So what counts is checked here: POST,
 * content-type, one :path. https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "rpc/rpc_internal.h"

#define READ_ROUNDS 32u /* of one buffer, then the others have their turn */
#define READ_BYTES 16384u
#define WINDOW_BYTES (1 << 20)
#define STREAM_WINDOW_BYTES (256u << 10)

#define HEADER(header_name, header_value, length)                                                            \
    ((nghttp2_nv){(uint8_t *)(uintptr_t)(header_name), (uint8_t *)(uintptr_t)(header_value),                 \
                  sizeof(header_name) - 1, (length), NGHTTP2_NV_FLAG_NONE})

static uint64_t now_ns(void)
{
    return clock_boottime_ns(clock_system());
}

/* ---- streams ---- */

static void stream_free(struct stream *s)
{
    struct connection *c = s->connection;
    if (s->task) { /* R1 */
        atomic_store(&s->task->call.cancelled, true);
        s->task->stream = NULL;
    }
    if (s->request)
        c->server->request_bytes -= s->request_size;
    *(s->previous ? &s->previous->next : &c->streams) = s->next;
    if (s->next)
        s->next->previous = s->previous;
    free(s->request);
    free(s->reply);
    free(s);
}

static ssize_t read_reply(nghttp2_session *session, int32_t id, uint8_t *data, size_t size, uint32_t *flags,
                          nghttp2_data_source *source, void *context)
{
    struct stream *s = source->ptr;
    size_t n = s->reply_bytes - s->sent_bytes < size ? s->reply_bytes - s->sent_bytes : size;
    (void)context;
    memcpy(data, s->reply + s->sent_bytes, n);
    s->sent_bytes += n;
    if (s->sent_bytes == s->reply_bytes) {
        nghttp2_nv trailer[] = {HEADER("grpc-status", "0", 1)};
        *flags |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM;
        if (nghttp2_submit_trailer(session, id, trailer, 1))
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    }
    return (ssize_t)n;
}

void stream_answer(struct stream *s, enum rpc_code code, const char *message, struct task *task)
{
    nghttp2_session *session = s->connection->session;
    nghttp2_nv headers[5] = {HEADER(":status", "200", 3), HEADER("content-type", "application/grpc", 16)};
    int r;
    if (s->answered) /* R2 */
        return;
    s->answered = true;
    s->answered_ns = now_ns();
    if (code == RPC_OK) {
        s->reply = take_ptr(task->call.reply);
        s->reply_bytes = task->call.reply_bytes;
        nghttp2_data_provider provider = {.source.ptr = s, .read_callback = read_reply};
        r = nghttp2_submit_response(session, s->id, headers, 2, &provider);
    } else { /* only trailers */
        char number[12], text[RPC_STATUS_MESSAGE_BYTES];
        int n = snprintf(number, sizeof number, "%d", (int)code);
        headers[2] = HEADER("grpc-status", number, (size_t)n);
        headers[3] = HEADER("grpc-message", text, wire_percent_encode(message, text, sizeof text));
        headers[4] = HEADER("grpc-accept-encoding", "identity", 8);
        r = nghttp2_submit_response(session, s->id, headers, 5, NULL);
    }
    if (r)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_INTERNAL_ERROR);
}

void stream_refuse(struct stream *s, enum rpc_code code, const char *message)
{
    if (s->answered)
        return;
    stream_answer(s, code, message, NULL);
    s->early = true;
    if (s->request) {
        s->connection->server->request_bytes -= s->request_size;
        free(take_ptr(s->request));
    }
    if (s->task) { /* R1 */
        atomic_store(&s->task->call.cancelled, true);
        s->task->stream = NULL;
        s->task = NULL;
    }
}

/* The whole request is here. */
static void dispatch(struct stream *s)
{
    struct rpc_server *server = s->connection->server;
    if (s->prefix_bytes < RPC_PREFIX_BYTES || s->request_bytes != s->request_size) {
        stream_refuse(s, RPC_INTERNAL, "the request ends within a message");
        return;
    }
    struct task *task = server->task_count < RPC_TASKS_MAX ? calloc(1, sizeof *task) : NULL;
    if (!task) {
        stream_refuse(s, RPC_RESOURCE_EXHAUSTED, "too many calls are waiting; try again later");
        return;
    }
    task->server = server;
    task->method = s->method;
    task->request = take_ptr(s->request);
    task->request_bytes = s->request_size;
    task->stream = s;
    task->call.deadline_ns = s->deadline_ns;
    s->task = task;
    server->task_count++;
    pool_add(&server->pool, task);
}

/* The five bytes before a message: judged before anything is allocated. */
static void take_prefix(struct stream *s)
{
    struct rpc_server *server = s->connection->server;
    uint32_t size = 0;
    for (unsigned i = 1; i < RPC_PREFIX_BYTES; i++)
        size = size << 8 | s->prefix[i];
    if (s->prefix[0])
        stream_refuse(s, RPC_UNIMPLEMENTED,
                      "compressed messages are not supported: send them with encoding identity");
    else if (size > RPC_MESSAGE_BYTES_MAX)
        stream_refuse(s, RPC_RESOURCE_EXHAUSTED, "the message is larger than 4 MiB");
    else if (server->request_bytes + size > RPC_REQUESTS_BYTES_MAX || !(s->request = malloc(size ? size : 1)))
        stream_refuse(s, RPC_RESOURCE_EXHAUSTED, "too many requests at once; try again later");
    else {
        s->request_size = size;
        server->request_bytes += size;
    }
}

/* ---- nghttp2's callbacks ---- */

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *context)
{
    struct connection *c = context;
    if (frame->hd.type != NGHTTP2_HEADERS || frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0;
    struct stream *s = calloc(1, sizeof *s);
    if (!s)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
    s->id = frame->hd.stream_id;
    s->connection = c;
    s->deadline_ns = UINT64_MAX;
    s->arrival_ns = now_ns();
    s->next = c->streams;
    if (s->next)
        s->next->previous = s;
    c->streams = s;
    return nghttp2_session_set_stream_user_data(session, s->id, s);
}

static bool same(const uint8_t *text, size_t length, const char *word)
{
    return length == strlen(word) && memcmp(text, word, length) == 0;
}

static const struct rpc_method *find_method(const struct rpc_server *server, const uint8_t *path,
                                            size_t length)
{
    for (const struct rpc_method *m = server->methods; m->path; m++)
        if (same(path, length, m->path))
            return m;
    return NULL;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name,
                     size_t name_bytes, const uint8_t *value, size_t value_bytes, uint8_t flags,
                     void *context)
{
    struct connection *c = context;
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    (void)flags;
    if (!s || s->answered)
        return 0;
    s->header_bytes += name_bytes + value_bytes + 32; /* RFC 9113 6.5.2 */
    if (s->header_bytes > RPC_HEADER_BYTES_MAX)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* RST_STREAM */
    if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
        return 0; /* trailers of a request say nothing */
    if (same(name, name_bytes, ":method"))
        s->post = same(value, value_bytes, "POST");
    else if (same(name, name_bytes, ":path")) {
        if (s->has_path)
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
        s->has_path = true;
        s->method = find_method(c->server, value, value_bytes);
    } else if (same(name, name_bytes, "content-type"))
        s->grpc = value_bytes >= 16 && memcmp(value, "application/grpc", 16) == 0 &&
                  (value_bytes == 16 || value[16] == '+' || value[16] == ';');
    else if (same(name, name_bytes, "grpc-timeout")) {
        uint64_t timeout_ns;
        if (wire_parse_timeout((const char *)value, value_bytes, &timeout_ns))
            s->deadline_ns = now_ns() + timeout_ns;
        else
            s->problem = "grpc-timeout is malformed";
    }
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t length,
                   void *context)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    (void)flags;
    (void)context;
    while (s && !s->answered && length && s->prefix_bytes < RPC_PREFIX_BYTES) {
        s->prefix[s->prefix_bytes++] = *data++;
        length--;
        if (s->prefix_bytes == RPC_PREFIX_BYTES)
            take_prefix(s);
    }
    if (!s || s->answered)
        return 0;
    if (length > s->request_size - s->request_bytes) {
        stream_refuse(s, RPC_INTERNAL, "more than one message in a unary call");
        return 0;
    }
    if (length)
        memcpy(s->request + s->request_bytes, data, length);
    s->request_bytes += length;
    return 0;
}

static void headers_complete(struct stream *s)
{
    nghttp2_session *session = s->connection->session;
    if (!s->post || !s->grpc) {
        nghttp2_nv status[] = {HEADER(":status", s->post ? "415" : "405", 3)};
        s->answered = s->early = true;
        nghttp2_submit_response(session, s->id, status, 1, NULL);
    } else if (s->problem)
        stream_refuse(s, RPC_INTERNAL, s->problem);
    else if (!s->method)
        stream_refuse(s, RPC_UNIMPLEMENTED, "unknown service or method");
}

static int on_frame(nghttp2_session *session, const nghttp2_frame *frame, void *context)
{
    struct connection *c = context;
    c->settled |= frame->hd.type == NGHTTP2_SETTINGS;
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!s)
        return 0;
    bool headers = frame->hd.type == NGHTTP2_HEADERS;
    if (headers && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
        headers_complete(s);
    if ((headers || frame->hd.type == NGHTTP2_DATA) && frame->hd.flags & NGHTTP2_FLAG_END_STREAM &&
        !s->answered && !s->task)
        dispatch(s);
    return 0;
}

/* Answered before the request has ended: the client shall stop sending (RFC 9113 8.1). */
static int on_sent(nghttp2_session *session, const nghttp2_frame *frame, void *context)
{
    (void)context;
    if (frame->hd.type != NGHTTP2_HEADERS || !(frame->hd.flags & NGHTTP2_FLAG_END_STREAM))
        return 0;
    struct stream *s = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (s && s->early)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, s->id, NGHTTP2_NO_ERROR);
    return 0;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *context)
{
    struct stream *s = nghttp2_session_get_stream_user_data(session, id);
    (void)code;
    (void)context;
    if (s)
        stream_free(s);
    return 0;
}

int connection_setup(struct rpc_server *server, struct error *err)
{
    if (nghttp2_option_new(&server->option) || nghttp2_session_callbacks_new(&server->callbacks))
        return error_set(err, -ENOMEM, "out of memory");
    nghttp2_option_set_no_closed_streams(server->option, 1);
    nghttp2_option_set_no_http_messaging(server->option, 1);
    nghttp2_session_callbacks *b = server->callbacks;
    nghttp2_session_callbacks_set_on_begin_headers_callback(b, on_begin_headers);
    nghttp2_session_callbacks_set_on_header_callback(b, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(b, on_data);
    nghttp2_session_callbacks_set_on_frame_recv_callback(b, on_frame);
    nghttp2_session_callbacks_set_on_frame_send_callback(b, on_sent);
    nghttp2_session_callbacks_set_on_stream_close_callback(b, on_stream_close);
    return 0;
}

/* ---- connections ---- */

void connection_kill(struct connection *c)
{
    struct rpc_server *server = c->server;
    if (c->dead)
        return;
    c->dead = true;
    nghttp2_session_del(c->session); /* calls no on_stream_close */
    c->session = NULL;
    while (c->streams)
        stream_free(c->streams);
    if (c->fd >= 0)
        close(c->fd);
    *(c->previous ? &c->previous->next : &server->connections) = c->next;
    if (c->next)
        c->next->previous = c->previous;
    server->connection_count--;
    c->next = server->dead; /* R4 */
    server->dead = c;
}

static void watch_output(struct connection *c)
{
    bool wants = c->output_bytes > 0;
    if (c->wants_write == wants)
        return;
    struct epoll_event event = {.events = wants ? EPOLLOUT : EPOLLIN, .data.ptr = c}; /* R3 */
    c->wants_write = wants;
    if (epoll_ctl(c->server->epoll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0)
        connection_kill(c);
}

/* All is said; the client closes. Were it closed here, a client that is just writing (PING, WINDOW_UPDATE) would find that this fails, and
 * may pass over the answers that lie there for it. */
static void end_output(struct connection *c)
{
    c->ended = true;
    c->progress_ns = now_ns();
    shutdown(c->fd, SHUT_WR);
    watch_output(c);
}

void connection_flush(struct connection *c)
{
    if (c->ended)
        return;
    while (!c->dead) {
        if (!c->output_bytes) {
            ssize_t n = nghttp2_session_mem_send(c->session, &c->output);
            if (n < 0) {
                connection_kill(c);
                return;
            }
            c->output_bytes = (size_t)n;
            c->progress_ns = now_ns();
            if (!n)
                break;
        }
        ssize_t sent = send(c->fd, c->output, c->output_bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN)
            break;
        if (sent < 0) {
            connection_kill(c);
            return;
        }
        c->output += sent;
        c->output_bytes -= (size_t)sent;
        c->progress_ns = now_ns();
    }
    if (c->dead)
        return;
    if (!c->output_bytes && !nghttp2_session_want_read(c->session) && !nghttp2_session_want_write(c->session))
        end_output(c);
    else
        watch_output(c);
}

void connection_readable(struct connection *c)
{
    uint8_t data[READ_BYTES];
    for (unsigned i = 0; i < READ_ROUNDS && !c->dead; i++) {
        connection_flush(c);
        if (c->dead || c->output_bytes) /* R3 */
            return;
        ssize_t n = recv(c->fd, data, sizeof data, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            connection_kill(c);
            return;
        }
        if (!c->ended && nghttp2_session_mem_recv(c->session, data, (size_t)n) < 0) {
            connection_flush(c); /* the GOAWAY that tells why */
            connection_kill(c);
            return;
        }
    }
    connection_flush(c);
}

static bool is_welcome(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

void connection_accept(struct rpc_server *server)
{
    static const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, RPC_STREAMS_MAX},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, RPC_HEADER_BYTES_MAX}};
    _cleanup_close_ int fd = accept4(server->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 || server->connection_count >= RPC_CONNECTIONS_MAX || !is_welcome(fd))
        return;
    struct connection *c = calloc(1, sizeof *c);
    if (!c || nghttp2_session_server_new2(&c->session, server->callbacks, c, server->option)) {
        free(c);
        return;
    }
    c->server = server;
    c->fd = take_fd(fd);
    c->accepted_ns = c->progress_ns = now_ns();
    c->next = server->connections;
    if (c->next)
        c->next->previous = c;
    server->connections = c;
    server->connection_count++;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (nghttp2_submit_settings(c->session, NGHTTP2_FLAG_NONE, settings, 3) ||
        nghttp2_session_set_local_window_size(c->session, NGHTTP2_FLAG_NONE, 0, WINDOW_BYTES) ||
        epoll_ctl(server->epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
        connection_kill(c);
    else
        connection_flush(c);
}
