/* SPDX-License-Identifier: Apache-2.0 */
/* One libmicrohttpd daemon a listener: the Unix socket's with a pool of threads, the TCP one with a single
 * thread.
 *
 * H1. A request's state is made at its first callback and freed in request_completed(), which libmicrohttpd
 * calls exactly once for it, however the connection ends. `active` counts the states. H2. http_server_stop()
 * first stops accepting, then waits until `active` is 0 (at most DRAIN_MS after the handlers are done), so
 * that the answer to a request for shutdown still reaches its sender. H3. While a handler runs its connection
 * has no time limit: libmicrohttpd would count the handler's time as the client's and drop the answer. H4.
 * Clients that connect and send nothing, or too slowly, shut nobody out: when it gets crowded the one that
 * has waited for the longest is disconnected. Its descriptor is libmicrohttpd's, so it is shut down only,
 * under the mutex under which it leaves the table. */
#include "lib/http_server.h"

#include <ctype.h>
#include <errno.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "lib/json.h"

#define IDLE_TIMEOUT_S 30u
#define TLS_IDLE_TIMEOUT_S 120u /* longer than clients of Go keep a connection (90 s), the API server among them: one that ends as it is used fails the call */
#define DRAIN_MS 2000u
#define CROWD_GOING 8u /* so many may be on their way out */
#define LISTEN_BACKLOG 1024 /* who comes while all threads wait shall wait too, not be refused */
#define TLS_FILE_BYTES_MAX (1u << 20)
#define TLS_PRIORITIES "SECURE128:+SECURE192:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"

struct client {
    int fd;            /* -1: free */
    uint64_t since;    /* a count: when it came, or its last request was answered */
    unsigned handlers; /* it has a request that is being answered */
};

struct listener {
    pthread_mutex_t mutex; /* guards the clients */
    struct client clients[HTTP_SERVER_CONNECTION_LIMIT];
    unsigned client_count;
    uint64_t events;
    struct http_server *server;
    struct MHD_Daemon *daemon; /* NULL: not there */
    bool metrics_only;
    bool tls;
    bool any_client; /* with TLS: no certificate is asked for */
};

struct http_server {
    struct http_server_options options; /* strings: see below */
    char *socket_path;
    dev_t socket_device; /* of the socket's file, so that stop removes this server's own only */
    ino_t socket_inode;
    unsigned tcp_port, tls_port;
    struct listener unix_listener;
    struct listener tcp_listener;
    struct listener tls_listener;
    char *tls_files[3]; /* certificate, key, CA */
    char *tls_client;   /* or NULL */
    atomic_uint active;
};

struct request_state {
    char *body;
    size_t length_bytes;
    size_t capacity_bytes;
    size_t received_bytes; /* with what was thrown away */
    bool no_memory;
};

/* --- requests and responses --- */

const char *http_request_query(const struct http_request *request, const char *name)
{
    const char *value = NULL;
    if (!request->connection || MHD_lookup_connection_value_n(request->connection, MHD_GET_ARGUMENT_KIND,
                                                              name, strlen(name), &value, NULL) != MHD_YES)
        return NULL;
    return value ? value : "";
}

struct query_check {
    const char *names;
    uint64_t seen; /* by place in `names` */
    struct error *err;
};

static enum MHD_Result check_parameter(void *data, enum MHD_ValueKind kind, const char *name, const char *value)
{
    struct query_check *check = data;
    size_t length = strlen(name);
    (void)kind;
    (void)value;
    for (const char *at = check->names; *at; at += strspn(at, " ")) {
        size_t word = strcspn(at, " ");
        uint64_t bit = 1ull << (at - check->names);
        if (word == length && memcmp(at, name, length) == 0 && !(check->seen & bit)) {
            check->seen |= bit;
            return MHD_YES;
        }
        at += word;
    }
    error_set(check->err, -EINVAL, "query: the parameter '%.60s' is not expected here, or is there twice; expected %s%s", name,
              *check->names ? "at most: " : "none", check->names);
    return MHD_NO;
}

int http_request_check_query(const struct http_request *request, const char *names, struct error *err)
{
    struct query_check check = {.names = names, .err = err};
    err->code = 0;
    if (request->connection)
        MHD_get_connection_values(request->connection, MHD_GET_ARGUMENT_KIND, check_parameter, &check);
    return err->code;
}

int http_request_json(const struct http_request *request, json_t **ret_object, struct error *err)
{
    _cleanup_json_ json_t *json = NULL;
    if (request->body_length_bytes == 0) {
        json = json_object();
        if (!json)
            return error_errno(err, -ENOMEM, "cannot read the request");
    } else {
        int r = json_parse("request body", request->body, request->body_length_bytes, &json, err);
        if (r < 0)
            return r;
    }
    if (!json_is_object(json))
        return error_set(err, -EINVAL, "request body: expected a JSON object");
    *ret_object = take_ptr(json);
    return 0;
}

static void release_content(struct http_response *response)
{
    json_decref(response->json);
    free(response->text);
    response->json = NULL;
    response->text = NULL;
    response->content_type = NULL;
}

void http_response_json(struct http_response *response, int status, json_t *json)
{
    release_content(response);
    response->status = json ? status : 500;
    response->json = json;
}

void http_response_text(struct http_response *response, int status, const char *content_type, char *text)
{
    release_content(response);
    response->status = text ? status : 500;
    response->content_type = content_type;
    response->text = text;
}

int http_status_of_errno(int code)
{
    switch (code < 0 ? -code : code) {
    case EINVAL:
    case EFBIG:
    case E2BIG:
    case ENAMETOOLONG: /* of what was asked for: a body that is too large is 413 */
    case ENOTDIR:      /* of a path that was asked for, as the next two */
    case EISDIR:
    case ELOOP:
        return 400;
    case EACCES:
    case EPERM:
        return 403;
    case ENOENT:
        return 404;
    case EEXIST:
    case EBUSY:
    case ENOTEMPTY:
    case ESHUTDOWN: /* journaling is suspended */
        return 409;
    case ERANGE:
        return 422;
    case ENOSPC:
    case EDQUOT:
        return 507;
    default:
        return 500;
    }
}

int http_refuse_method(const struct http_request *request, struct http_response *response, const char *allowed, struct error *err)
{
    snprintf(response->allow, sizeof response->allow, "%s", allowed);
    return error_set(err, -EOPNOTSUPP, "%.200s takes %s, not %.40s", request->path, allowed, request->method);
}

void http_allow_method(char allowed[HTTP_SERVER_ALLOW_BYTES], const char *method)
{
    size_t length = strlen(allowed);
    if (!strstr(allowed, method))
        snprintf(allowed + length, HTTP_SERVER_ALLOW_BYTES - length, "%s%s", length ? ", " : "", method);
}

static bool is_plain(unsigned char c, const char *also)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || (c && strchr(also, c));
}

static void encode(FILE *out, const char *text, const char *also)
{
    for (; *text; text++)
        if (is_plain((unsigned char)*text, also))
            fputc(*text, out);
        else
            fprintf(out, "%%%02X", (unsigned char)*text);
}

struct target {
    FILE *out;
    bool any;
};

static enum MHD_Result encode_argument(void *context, enum MHD_ValueKind kind, const char *key, const char *value)
{
    struct target *target = context;
    (void)kind;
    fputc(target->any ? '&' : '?', target->out);
    target->any = true;
    encode(target->out, key, "-._~");
    if (value) {
        fputc('=', target->out);
        encode(target->out, value, "-._~");
    }
    return MHD_YES;
}

int http_request_target(const struct http_request *request, char **ret_target, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    size_t size = 0;
    struct target target = {.out = open_memstream(&text, &size)};
    if (!target.out)
        return error_errno(err, -ENOMEM, "cannot hand on the request");
    encode(target.out, request->path, "-._~/");
    if (request->connection)
        MHD_get_connection_values(request->connection, MHD_GET_ARGUMENT_KIND, encode_argument, &target);
    bool failed = ferror(target.out);
    if (fclose(target.out) != 0 || failed)
        return error_errno(err, -ENOMEM, "cannot hand on the request");
    *ret_target = take_ptr(text);
    return 0;
}

void http_response_error(struct http_response *response, const struct error *err)
{
    http_response_json(response, http_status_of_errno(err->code), json_of_error(err));
}

/* --- who is connected --- */

static int fd_of(struct MHD_Connection *connection)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    return info ? info->connect_fd : -1;
}

/* Mutex held. `fd` -1: a free place. */
static struct client *find_client(struct listener *listener, int fd)
{
    for (size_t i = 0; i < HTTP_SERVER_CONNECTION_LIMIT; i++)
        if (listener->clients[i].fd == fd)
            return &listener->clients[i];
    return NULL;
}

/* Mutex held. */
static void make_room(struct listener *listener)
{
    struct client *oldest = NULL;
    for (size_t i = 0; i < HTTP_SERVER_CONNECTION_LIMIT; i++) {
        struct client *c = &listener->clients[i];
        if (c->fd >= 0 && !c->handlers && (!oldest || c->since < oldest->since))
            oldest = c;
    }
    if (!oldest)
        return;
    shutdown(oldest->fd, SHUT_RDWR);
    oldest->since = ++listener->events; /* another one is next, until this one has gone */
}

/* How many there are more than without a crowd, this one among them. */
static unsigned add_client(struct listener *listener, int fd)
{
    MUTEX_GUARD(guard, &listener->mutex);
    struct client *c = find_client(listener, -1);
    if (!c || fd < 0)
        return 0;
    bool crowded = ++listener->client_count > HTTP_SERVER_CONNECTIONS_CROWDED;
    if (crowded)
        make_room(listener);
    *c = (struct client){.fd = fd, .since = ++listener->events};
    return crowded ? listener->client_count - HTTP_SERVER_CONNECTIONS_CROWDED : 0;
}

static void remove_client(struct listener *listener, int fd)
{
    MUTEX_GUARD(guard, &listener->mutex);
    struct client *c = find_client(listener, fd);
    if (!c || fd < 0)
        return;
    c->fd = -1;
    listener->client_count--;
}

/* In the thread that accepts. Those that are sent away need a processor to go: at its limit libmicrohttpd would close whoever comes. */
static void on_connection(void *context, struct MHD_Connection *connection, void **unused,
                          enum MHD_ConnectionNotificationCode what)
{
    struct listener *listener = context;
    int fd = fd_of(connection);
    (void)unused;
    if (what != MHD_CONNECTION_NOTIFY_STARTED) {
        remove_client(listener, fd);
        return;
    }
    unsigned over = add_client(listener, fd);
    if (over > CROWD_GOING)
        nanosleep(&(struct timespec){.tv_nsec = (long)over * over * 100000}, NULL); /* 6 ms, up to 0.1 s for the last */
}

static void note_handler(struct listener *listener, struct MHD_Connection *connection, bool begins)
{
    MUTEX_GUARD(guard, &listener->mutex);
    struct client *c = find_client(listener, fd_of(connection));
    if (!c)
        return;
    c->handlers = begins;
    c->since = ++listener->events;
}

/* --- libmicrohttpd's callbacks --- */

static int send_text(struct MHD_Connection *connection, int status, const char *content_type, const char *allow, char *text)
{
    static char no_memory[] = "{\"error\": {\"code\": \"ENOMEM\", \"message\": \"out of memory\"}}";
    struct MHD_Response *out =
        text ? MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE)
             : MHD_create_response_from_buffer(strlen(no_memory), no_memory, MHD_RESPMEM_PERSISTENT);
    if (!out) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(out, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    if (*allow)
        MHD_add_response_header(out, MHD_HTTP_HEADER_ALLOW, allow);
    enum MHD_Result r = MHD_queue_response(connection, (unsigned)status, out);
    MHD_destroy_response(out);
    return r;
}

static int send_response(struct MHD_Connection *connection, struct http_response *response)
{
    const char *type = response->content_type;
    char *text = take_ptr(response->text);
    if (!type)
        type = text ? "text/plain; charset=utf-8" : "application/json";
    if (!text && response->json)
        text = json_to_text(response->json);
    int status = response->status ? response->status : 200;
    int r = send_text(connection, text ? status : 500, type, response->allow, text);
    release_content(response);
    return r;
}

static void read_peer(struct MHD_Connection *connection, struct http_request *request)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    request->peer_uid = (uid_t)-1;
    request->peer_pid = -1;
    if (info && getsockopt(info->connect_fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid > 0) {
        request->peer_uid = peer.uid;
        request->peer_pid = peer.pid;
    }
}

/* A certificate of the CA's, for client authentication. */
static int check_client(const struct http_server *server, struct MHD_Connection *connection, struct error *err)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
    gnutls_session_t session = info ? info->tls_session : NULL;
    char purpose[] = GNUTLS_KP_TLS_WWW_CLIENT;
    gnutls_typed_vdata_st data[2] = {{.type = GNUTLS_DT_KEY_PURPOSE_OID, .data = (unsigned char *)purpose, .size = sizeof purpose - 1},
                                     {.type = GNUTLS_DT_DNS_HOSTNAME, .data = (unsigned char *)server->tls_client}};
    unsigned status = 0, count = 0;
    if (!session || !gnutls_certificate_get_peers(session, &count) || !count)
        return error_set(err, -EACCES, "a client certificate is required here");
    if (gnutls_certificate_verify_peers(session, data, server->tls_client ? 2 : 1, &status) < 0 || status)
        return error_set(err, -EACCES, "the client certificate is not accepted: it has to be signed by this server's CA, be "
                         "valid now, and be for client authentication%s%s",
                         server->tls_client ? " and the name " : "", server->tls_client ? server->tls_client : "");
    return 0;
}

static int answer(struct listener *listener, struct MHD_Connection *connection, const char *path,
                  const char *method, const struct request_state *state)
{
    const struct http_server_options *o = &listener->server->options;
    struct http_request request = {.method = method,
                                   .path = path,
                                   .body = state->body ? state->body : "",
                                   .body_length_bytes = state->length_bytes,
                                   .connection = connection};
    struct http_response response = {0};
    struct error err = ERROR_INIT;
    int r;
    read_peer(connection, &request);
    if (listener->tls && !listener->any_client && check_client(listener->server, connection, &err) < 0)
        r = err.code;
    else if (state->no_memory)
        r = error_errno(&err, -ENOMEM, "cannot take the request's body");
    else if (state->received_bytes > HTTP_SERVER_BODY_LIMIT_BYTES)
        r = error_set(&err, -EFBIG, "the request's body is larger than %u bytes",
                      HTTP_SERVER_BODY_LIMIT_BYTES);
    else if (listener->metrics_only && strcmp(path, "/metrics") != 0)
        r = error_set(&err, -ENOENT, "only /metrics is served here");
    else if (listener->metrics_only && strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0)
        r = http_refuse_method(&request, &response, "GET, HEAD", &err);
    else
        r = o->handler(o->context, &request, &response, &err);
    if (r < 0) {
        if (!err.code)
            error_errno(&err, r, "%s %s", method, path);
        http_response_error(&response, &err);
        if (*response.allow)
            response.status = 405;
        if (r == -EFBIG && state->received_bytes > HTTP_SERVER_BODY_LIMIT_BYTES)
            response.status = 413;
        if (response.status >= 500)
            log_warning(o->log, "%s %s: %s", method, path, err.message);
    }
    return send_response(connection, &response);
}

static void take_body(struct request_state *state, const char *data, size_t length_bytes)
{
    state->received_bytes += length_bytes;
    if (state->no_memory || state->received_bytes > HTTP_SERVER_BODY_LIMIT_BYTES)
        return;
    if (state->capacity_bytes - state->length_bytes <= length_bytes) {
        size_t capacity = state->capacity_bytes ? state->capacity_bytes * 2 : 4096;
        while (capacity - state->length_bytes <= length_bytes)
            capacity *= 2;
        char *larger = realloc(state->body, capacity);
        if (!larger) {
            state->no_memory = true;
            return;
        }
        state->body = larger;
        state->capacity_bytes = capacity;
    }
    memcpy(state->body + state->length_bytes, data, length_bytes);
    state->length_bytes += length_bytes;
    state->body[state->length_bytes] = '\0';
}

static unsigned idle_timeout_s(const struct listener *listener)
{
    return listener->tls ? TLS_IDLE_TIMEOUT_S : IDLE_TIMEOUT_S;
}

static enum MHD_Result on_access(void *context, struct MHD_Connection *connection, const char *path,
                                 const char *method, const char *version, const char *data,
                                 size_t *data_bytes, void **request_context)
{
    struct listener *listener = context;
    struct request_state *state = *request_context;
    struct error ignored = ERROR_INIT;
    (void)version;
    if (!state) {
        state = calloc(1, sizeof *state);
        if (!state)
            return MHD_NO;
        atomic_fetch_add(&listener->server->active, 1);
        *request_context = state;
        return MHD_YES;
    }
    if (*data_bytes) {
        if (!listener->tls || listener->any_client || check_client(listener->server, connection, &ignored) == 0)
            take_body(state, data, *data_bytes);
        *data_bytes = 0;
        /* Somewhat too large is read to its end, so that the sender sees the 413; without end is not. */
        return state->received_bytes > 4 * (size_t)HTTP_SERVER_BODY_LIMIT_BYTES ? MHD_NO : MHD_YES;
    }
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, 0u);
    note_handler(listener, connection, true);
    int r = answer(listener, connection, path, method, state);
    note_handler(listener, connection, false);
    MHD_set_connection_option(connection, MHD_CONNECTION_OPTION_TIMEOUT, idle_timeout_s(listener));
    return r;
}

static void request_completed(void *context, struct MHD_Connection *connection, void **request_context,
                              enum MHD_RequestTerminationCode reason)
{
    struct listener *listener = context;
    struct request_state *state = *request_context;
    (void)connection;
    (void)reason;
    if (!state)
        return;
    free(state->body);
    free(state);
    *request_context = NULL;
    atomic_fetch_sub(&listener->server->active, 1);
}

static void __attribute__((format(printf, 2, 0))) on_log(void *context, const char *format, va_list args)
{
    const struct http_server *server = context;
    char line[512];
    vsnprintf(line, sizeof line, format, args);
    log_debug(server->options.log, "http: %s", line);
}

/* --- listening --- */

static int start_daemon(struct listener *listener, int listen_fd, unsigned threads, struct error *err)
{
    sigset_t all, old;
    bool pool = threads > 1 && !(listener->server->options.thread_per_connection &&
                                 listener == &listener->server->unix_listener);
    unsigned flags = MHD_USE_AUTO | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_ITC | MHD_USE_ERROR_LOG;
#ifdef TIDEMARK_SANITIZED
    size_t stack_bytes = 0;
#else
    size_t stack_bytes = HTTP_SERVER_STACK_BYTES;
#endif
    struct MHD_OptionItem tls[] = {{MHD_OPTION_HTTPS_MEM_CERT, 0, listener->server->tls_files[0]},
                                   {MHD_OPTION_HTTPS_MEM_KEY, 0, listener->server->tls_files[1]},
                                   {MHD_OPTION_HTTPS_PRIORITIES, 0, TLS_PRIORITIES},
                                   {MHD_OPTION_HTTPS_MEM_TRUST, 0, listener->server->tls_files[2]},
                                   {MHD_OPTION_END, 0, NULL}};
    if (listener->any_client)
        tls[3] = tls[4];
    if (listener->tls)
        flags |= MHD_USE_TLS;
    if (threads > 1 && !pool)
        flags |= MHD_USE_THREAD_PER_CONNECTION;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    listener->daemon = MHD_start_daemon(
        flags, 0, NULL, NULL, on_access, listener, MHD_OPTION_EXTERNAL_LOGGER, on_log, listener->server,
        MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_THREAD_POOL_SIZE, pool ? threads : 0,
        MHD_OPTION_THREAD_STACK_SIZE, stack_bytes, MHD_OPTION_CONNECTION_LIMIT, HTTP_SERVER_CONNECTION_LIMIT,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, listener, MHD_OPTION_CONNECTION_TIMEOUT, idle_timeout_s(listener),
        MHD_OPTION_NOTIFY_COMPLETED, request_completed, listener, MHD_OPTION_ARRAY,
        listener->tls ? tls : tls + 4, MHD_OPTION_END);
    int r = listener->daemon ? 0 : -(errno ? errno : EIO);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return r < 0 ? error_errno(err, r, "cannot start the HTTP server") : 0;
}

/* Removes a socket that nobody listens at. */
static int remove_stale(const char *path, const struct sockaddr_un *address, struct error *err)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : error_errno(err, -errno, "cannot look at %s", path);
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, -EEXIST, "cannot listen at %s: something else than a socket has that name",
                         path);
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(err, -errno, "cannot make a socket");
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 || errno == EAGAIN)
        return error_set(err, -EADDRINUSE, "cannot listen at %s: another process does already", path);
    if (errno != ECONNREFUSED && errno != ENOENT)
        return error_errno(err, -errno, "cannot listen at %s", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove the stale socket %s", path);
    return 0;
}

static int listen_unix(struct http_server *server, const char *path, struct error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = path ? strlen(path) : 0;
    if (!length)
        return error_set(err, -EINVAL, "cannot listen: the socket's path is empty");
    if (length >= sizeof address.sun_path)
        return error_set(
            err, -ENAMETOOLONG,
            "cannot listen at %s: a socket's path has at most %zu bytes; choose a shorter directory", path,
            sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, length + 1);
    int r = remove_stale(path, &address, err);
    if (r < 0)
        return r;
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* The mode before bind is the file's mode: no moment at which others could connect, and no umask(2). */
    if (fd < 0 || fchmod(fd, 0600) < 0 || bind(fd, (const struct sockaddr *)&address, sizeof address) < 0)
        return error_errno(err, -errno, "cannot listen at %s", path);
    struct stat st;
    if (listen(fd, LISTEN_BACKLOG) < 0 || lstat(path, &st) < 0) {
        r = error_errno(err, -errno, "cannot listen at %s", path);
        unlink(path);
        return r;
    }
    server->socket_device = st.st_dev;
    server->socket_inode = st.st_ino;
    unsigned threads = server->options.threads ? server->options.threads : HTTP_SERVER_THREADS_DEFAULT;
    if (threads > HTTP_SERVER_THREADS_MAX)
        threads = HTTP_SERVER_THREADS_MAX;
    r = start_daemon(&server->unix_listener, fd, threads, err);
    if (r < 0) {
        unlink(path);
        return error_context(err, "cannot listen at %s", path);
    }
    take_fd(fd);
    return 0;
}

/* "host:port" or "[v6]:port" to its parts. */
static int split_address(const char *text, char *host, size_t host_bytes, const char **ret_port,
                         struct error *err)
{
    const char *colon = strrchr(text, ':');
    const char *start = text;
    size_t length = colon ? (size_t)(colon - text) : 0;
    if (length >= 2 && text[0] == '[' && text[length - 1] == ']') {
        start++;
        length -= 2;
    } else if (colon && memchr(text, ':', length)) {
        colon = NULL; /* a bare IPv6 address */
    }
    /* getaddrinfo takes a number that is too large modulo 2^16. */
    unsigned long port = colon && isdigit((unsigned char)colon[1]) ? strtoul(colon + 1, NULL, 10) : 0;
    if (!colon || !colon[1] || port > UINT16_MAX || length >= host_bytes)
        return error_set(err, -EINVAL, "'%s' is not an address: expected host:port, such as 127.0.0.1:9464",
                         text);
    memcpy(host, start, length);
    host[length] = '\0';
    *ret_port = colon + 1;
    return 0;
}

static int bind_tcp(const struct addrinfo *at, int *ret_fd)
{
    int one = 1;
    _cleanup_close_ int fd =
        socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol);
    if (fd < 0)
        return -errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, at->ai_addr, at->ai_addrlen) < 0 || listen(fd, LISTEN_BACKLOG) < 0)
        return -errno;
    *ret_fd = take_fd(fd);
    return 0;
}

static unsigned bound_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage room;
    } address = {0};
    socklen_t length = sizeof address;
    if (getsockname(fd, &address.any, &length) < 0)
        return 0;
    return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

static int listen_tcp(struct listener *listener, const char *text, unsigned threads, unsigned *ret_port, struct error *err)
{
    char host[256];
    const char *port = NULL;
    int r = split_address(text, host, sizeof host, &port, err);
    if (r < 0)
        return r;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *found = NULL;
    int failed = getaddrinfo(host[0] ? host : NULL, port, &hints, &found);
    if (failed)
        return error_set(err, -EINVAL, "cannot listen at %s: %s", text, gai_strerror(failed));
    _cleanup_close_ int fd = -1;
    r = -EADDRNOTAVAIL;
    for (const struct addrinfo *at = found; at && r < 0; at = at->ai_next)
        r = bind_tcp(at, &fd);
    freeaddrinfo(found);
    if (r < 0)
        return error_errno(err, r, "cannot listen at %s", text);
    *ret_port = bound_port(fd);
    r = start_daemon(listener, fd, threads, err);
    if (r < 0)
        return error_context(err, "cannot listen at %s", text);
    take_fd(fd);
    return 0;
}

static int listen_tls(struct http_server *server, const struct http_server_options *options, struct error *err)
{
    const char *const paths[] = {options->tls_certificate, options->tls_key, options->tls_ca};
    const char *const texts[] = {options->tls_certificate_pem, options->tls_key_pem};
    size_t length;
    server->tls_listener.any_client = texts[0] != NULL;
    if (options->tls_client && !(server->tls_client = strdup(options->tls_client)))
        return error_errno(err, -ENOMEM, "cannot serve HTTPS at %s", options->tls_address);
    for (size_t i = 0; texts[0] && i < 2; i++)
        if (!(server->tls_files[i] = strdup(texts[i])))
            return error_errno(err, -ENOMEM, "cannot serve HTTPS at %s", options->tls_address);
    for (size_t i = 0; !texts[0] && i < 3; i++) {
        int r = io_read_file(paths[i], TLS_FILE_BYTES_MAX, &server->tls_files[i], &length, err);
        if (r < 0)
            return error_context(err, "cannot serve HTTPS at %s", options->tls_address);
    }
    int r = listen_tcp(&server->tls_listener, options->tls_address, options->threads ? options->threads : HTTP_SERVER_THREADS_DEFAULT,
                       &server->tls_port, err);
    return r < 0 && paths[0] ? error_context(err, "HTTPS with the certificate %s and the key %s", paths[0], paths[1]) : r;
}

static void init_listener(struct listener *listener)
{
    pthread_mutex_init(&listener->mutex, NULL);
    for (size_t i = 0; i < HTTP_SERVER_CONNECTION_LIMIT; i++)
        listener->clients[i].fd = -1;
}

int http_server_start(const struct http_server_options *options, struct http_server **ret_server,
                      struct error *err)
{
    struct http_server *server = calloc(1, sizeof *server);
    if (!server)
        return error_errno(err, -ENOMEM, "cannot start the HTTP server");
    server->options = *options;
    server->options.socket_path = server->options.tcp_address = NULL;
    server->options.tls_address = server->options.tls_certificate = server->options.tls_key = server->options.tls_ca = NULL;
    server->options.tls_client = NULL;
    server->options.tls_certificate_pem = server->options.tls_key_pem = NULL;
    server->unix_listener.server = server->tcp_listener.server = server->tls_listener.server = server;
    init_listener(&server->unix_listener);
    init_listener(&server->tcp_listener);
    init_listener(&server->tls_listener);
    server->tcp_listener.metrics_only = true;
    server->tls_listener.tls = true;
    int r = 0;
    if (options->socket_path) {
        server->socket_path = strdup(options->socket_path);
        r = server->socket_path ? listen_unix(server, options->socket_path, err)
                                : error_errno(err, -ENOMEM, "cannot listen at %s", options->socket_path);
    }
    if (r == 0 && options->tcp_address)
        r = listen_tcp(&server->tcp_listener, options->tcp_address, 1, &server->tcp_port, err);
    if (r == 0 && options->tls_address)
        r = listen_tls(server, options, err);
    if (r < 0) {
        http_server_stop(server);
        return r;
    }
    *ret_server = server;
    return 0;
}

unsigned http_server_tcp_port(const struct http_server *server)
{
    return server->tcp_port;
}

unsigned http_server_tls_port(const struct http_server *server)
{
    return server->tls_port;
}

void http_server_stop(struct http_server *server)
{
    if (!server)
        return;
    struct MHD_Daemon *unix_daemon = server->unix_listener.daemon, *tcp_daemon = server->tcp_listener.daemon,
                      *tls_daemon = server->tls_listener.daemon;
    _cleanup_close_ int unix_fd = unix_daemon ? MHD_quiesce_daemon(unix_daemon) : -1;
    _cleanup_close_ int tcp_fd = tcp_daemon ? MHD_quiesce_daemon(tcp_daemon) : -1;
    _cleanup_close_ int tls_fd = tls_daemon ? MHD_quiesce_daemon(tls_daemon) : -1;
    struct stat st;
    /* The name goes away now: whoever comes later shall be told that nobody is here. */
    if (unix_daemon && server->socket_path && lstat(server->socket_path, &st) == 0 &&
        st.st_dev == server->socket_device && st.st_ino == server->socket_inode)
        unlink(server->socket_path);
    for (unsigned waited_ms = 0; waited_ms < DRAIN_MS && atomic_load(&server->active) > 0; waited_ms += 5)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    if (unix_daemon)
        MHD_stop_daemon(unix_daemon);
    if (tcp_daemon)
        MHD_stop_daemon(tcp_daemon);
    if (tls_daemon)
        MHD_stop_daemon(tls_daemon);
    for (size_t i = 0; i < 3; i++)
        free(server->tls_files[i]);
    free(server->tls_client);
    free(server->socket_path);
    free(server);
}
