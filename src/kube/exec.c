/* SPDX-License-Identifier: Apache-2.0 */
/* exec over a connection that libcurl makes (TLS, certificates) and hands over: CURLOPT_CONNECT_ONLY. The
 * upgrade and the frames are ours. The first byte of each message names its channel: 0 input, 1 output, 2
 * errors, 3 the final Status; with v5, 255 closes the channel of the second byte. */
#include "kube/exec.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "kube/kube_internal.h"
#include "kube/websocket.h"
#include "lib/json.h"

#define CHUNK_BYTES (32u << 10)
#define ANSWER_LIMIT_BYTES (64u << 10)
#define STATUS_LIMIT_BYTES (64u << 10)
#define POLL_MS 500 /* how soon kube_interrupt is noticed */

struct session {
    struct kube_client *client;
    const struct kube_exec *exec;
    CURL *curl;
    uint64_t deadline_ns;
    unsigned timeout_ms;
    struct kube_buffer input;  /* received, not yet parsed */
    size_t parsed_bytes;       /* of it */
    struct kube_buffer status; /* channel 3 */
    int channel;               /* of the message whose parts are coming */
    bool closes_input;         /* v5 */
};

static int wait_socket(struct session *s, short events, struct error *err)
{
    curl_socket_t fd = CURL_SOCKET_BAD;
    curl_easy_getinfo(s->curl, CURLINFO_ACTIVESOCKET, &fd);
    for (;;) {
        uint64_t now = clock_boottime_ns(clock_system());
        struct pollfd p = {fd, events, 0};
        if (s->client->interrupted)
            return error_set(err, -ECANCELED, "interrupted");
        if (now >= s->deadline_ns)
            return error_set(err, -ETIMEDOUT, "it did not end within %u ms", s->timeout_ms);
        uint64_t left_ms = (s->deadline_ns - now) / NS_PER_MS + 1;
        if (poll(&p, 1, left_ms < POLL_MS ? (int)left_ms : POLL_MS) > 0)
            return 0;
    }
}

static int send_all(struct session *s, const void *data, size_t length_bytes, struct error *err)
{
    while (length_bytes) {
        size_t sent = 0;
        CURLcode code = curl_easy_send(s->curl, data, length_bytes, &sent);
        if (code == CURLE_AGAIN) {
            int r = wait_socket(s, POLLOUT, err);
            if (r < 0)
                return r;
        } else if (code != CURLE_OK) {
            return error_set(err, -ECONNRESET, "the connection broke: %s", curl_easy_strerror(code));
        }
        data = (const char *)data + sent;
        length_bytes -= sent;
    }
    return 0;
}

/* Waits for more input. *ret_end: the connection ended instead. */
static int receive_more(struct session *s, bool *ret_end, struct error *err)
{
    char chunk[CHUNK_BYTES];
    for (;;) {
        size_t n = 0;
        CURLcode code = curl_easy_recv(s->curl, chunk, sizeof chunk, &n);
        if (code == CURLE_AGAIN) {
            int r = wait_socket(s, POLLIN, err);
            if (r < 0)
                return r;
            continue;
        }
        *ret_end = code != CURLE_OK || n == 0;
        if (*ret_end)
            return 0;
        if (s->parsed_bytes) {
            s->input.length_bytes -= s->parsed_bytes;
            memmove(s->input.data, s->input.data + s->parsed_bytes, s->input.length_bytes);
            s->parsed_bytes = 0;
        }
        return kube_buffer_add(&s->input, chunk, n) < 0 ? error_errno(err, -ENOMEM, "exec") : 0;
    }
}

static int send_frame(struct session *s, enum websocket_op op, uint8_t *data, size_t length_bytes,
                      struct error *err)
{
    uint8_t header[WEBSOCKET_HEADER_BYTES], mask[4];
    if (getrandom(mask, sizeof mask, 0) != (ssize_t)sizeof mask)
        return error_errno(err, -errno, "random mask");
    size_t n = websocket_header(op, length_bytes, mask, header);
    websocket_mask(data, length_bytes, mask);
    int r = send_all(s, header, n, err);
    return r < 0 ? r : send_all(s, data, length_bytes, err);
}

/* ---- the upgrade ---- */
static int add_parameter(struct kube_buffer *b, const char *key, const char *value, struct error *err)
{
    _cleanup_free_ char *escaped = kube_escape(value), *text = NULL;
    if (!escaped || asprintf(&text, "&%s=%s", key, escaped) < 0 || kube_buffer_add(b, text, strlen(text)) < 0)
        return error_errno(err, -ENOMEM, "exec");
    return 0;
}

static int make_query(const struct kube_exec *e, struct kube_buffer *ret, struct error *err)
{
    const char *begin = e->input ? "stdin=1&stdout=1&stderr=1" : "stdout=1&stderr=1";
    int r = kube_buffer_add(ret, begin, strlen(begin));
    if (r < 0)
        return error_errno(err, r, "exec");
    if (e->container && (r = add_parameter(ret, "container", e->container, err)) < 0)
        return r;
    for (const char *const *p = e->argv; *p; p++)
        if ((r = add_parameter(ret, "command", *p, err)) < 0)
            return r;
    return 0;
}

/* The server's refusal is an ordinary answer with a Status. */
static int refused(struct session *s, const char *path, struct error *err)
{
    const char *end = strstr(s->input.data, "\r\n\r\n"), *space = strchr(s->input.data, ' ');
    const char *body = end ? strchr(end, '{') : NULL;
    _cleanup_json_ json_t *status = NULL;
    struct error ignored = ERROR_INIT;
    bool over = false;
    long code = space ? strtol(space, NULL, 10) : 0;
    while (!over && s->input.length_bytes < ANSWER_LIMIT_BYTES && code >= 400) {
        const char *last = body ? strrchr(body, '}') : NULL;
        if (last && json_parse("status", body, (size_t)(last + 1 - body), &status, &ignored) == 0)
            break;
        if (receive_more(s, &over, &ignored) < 0)
            break;
        end = strstr(s->input.data, "\r\n\r\n");
        body = end ? strchr(end, '{') : NULL;
    }
    int r = kube_status_error(code, status, "exec", path, NULL, err);
    /* What the kubelet says comes as plain text. */
    const char *text = end && !status ? end + 4 : "";
    size_t length = strcspn(text, "\r\n");
    return length ? error_set(err, r, "%.*s (%ld)", (int)(length < 500 ? length : 500), text, code) : r;
}

static int upgrade(struct session *s, const char *path, const char *query, const struct curl_slist *headers,
                   struct error *err)
{
    struct kube_buffer request = {0};
    char key[WEBSOCKET_KEY_BYTES], accept[WEBSOCKET_ACCEPT_BYTES], protocol[64];
    const char *host = strstr(s->client->config.server, "://") + 3;
    _cleanup_free_ char *begin = NULL;
    int r = websocket_key(key, accept, err);
    if (r < 0)
        return r;
    if (asprintf(&begin,
                 "GET %s?%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: "
                 "websocket\r\nSec-WebSocket-Version: 13\r\n"
                 "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Protocol: v5.channel.k8s.io, "
                 "v4.channel.k8s.io\r\nUser-Agent: %s\r\n",
                 path, query, host, key, s->client->user_agent) < 0)
        return error_errno(err, -ENOMEM, "exec");
    r = kube_buffer_add(&request, begin, strlen(begin));
    for (const struct curl_slist *h = headers; r == 0 && h; h = h->next)
        if ((r = kube_buffer_add(&request, h->data, strlen(h->data))) == 0)
            r = kube_buffer_add(&request, "\r\n", 2);
    r = r < 0 || kube_buffer_add(&request, "\r\n", 2) < 0
            ? error_errno(err, -ENOMEM, "exec")
            : send_all(s, request.data, request.length_bytes, err);
    if (request.data)
        explicit_bzero(request.data, request.length_bytes);
    kube_buffer_release(&request);
    char *end = NULL;
    while (r == 0 && !(end = s->input.data ? strstr(s->input.data, "\r\n\r\n") : NULL)) {
        bool over = false;
        if ((r = receive_more(s, &over, err)) == 0 && (over || s->input.length_bytes > ANSWER_LIMIT_BYTES))
            r = error_set(err, -EPROTO, "the server ended the connection instead of upgrading it");
    }
    if (r < 0)
        return r;
    if (strncmp(s->input.data, "HTTP/1.1 101", 12) != 0)
        return refused(s, path, err);
    *end = '\0';
    if ((r = websocket_check_upgrade(s->input.data, accept, protocol, sizeof protocol, err)) < 0)
        return r;
    s->closes_input = strcmp(protocol, "v5.channel.k8s.io") == 0;
    s->parsed_bytes = (size_t)(end + 4 - s->input.data);
    return 0;
}

/* ---- messages ---- */
static int take_data(struct session *s, const struct websocket_frame *f, struct error *err)
{
    const uint8_t *data = f->data;
    size_t length = f->length_bytes;
    if (f->op != WEBSOCKET_CONTINUATION) {
        if (length == 0)
            return 0;
        s->channel = *data++;
        length--;
    }
    if ((s->channel == 1 || s->channel == 2) && length && s->exec->output) {
        int r = s->exec->output(s->exec->context, s->channel, data, length);
        if (r != 0)
            return r < 0 ? error_errno(err, r, "taking the output") : r;
    }
    if (s->channel == 3) {
        if (s->status.length_bytes + length > STATUS_LIMIT_BYTES)
            return error_set(err, -EPROTO, "a status of more than %u bytes", STATUS_LIMIT_BYTES);
        if (kube_buffer_add(&s->status, data, length) < 0)
            return error_errno(err, -ENOMEM, "exec");
    }
    return 0;
}

static int send_input(struct session *s, struct error *err)
{
    _cleanup_free_ uint8_t *chunk = malloc(CHUNK_BYTES + 1);
    const struct kube_exec *e = s->exec;
    if (!chunk)
        return error_errno(err, -ENOMEM, "exec");
    for (size_t done = 0; done < e->input_bytes;) {
        size_t n = e->input_bytes - done < CHUNK_BYTES ? e->input_bytes - done : CHUNK_BYTES;
        chunk[0] = 0;
        memcpy(chunk + 1, (const char *)e->input + done, n);
        int r = send_frame(s, WEBSOCKET_BINARY, chunk, n + 1, err);
        if (r < 0)
            return r;
        done += n;
    }
    uint8_t end[2] = {255, 0};
    return s->closes_input ? send_frame(s, WEBSOCKET_BINARY, end, sizeof end, err) : 0;
}

static int run(struct session *s, struct error *err)
{
    int r = s->exec->input ? send_input(s, err) : 0;
    while (r == 0) {
        struct websocket_frame f;
        bool over = false;
        r = websocket_parse(s->input.data + s->parsed_bytes, s->input.length_bytes - s->parsed_bytes, &f,
                            err);
        if (r < 0)
            return r;
        if (r == 0) {
            if ((r = receive_more(s, &over, err)) < 0 || over)
                return r;
            continue;
        }
        s->parsed_bytes += f.total_bytes;
        r = 0;
        if (f.op == WEBSOCKET_CLOSE)
            return 0;
        if (f.op == WEBSOCKET_PING) {
            uint8_t copy[125];
            memcpy(copy, f.data, f.length_bytes);
            r = send_frame(s, WEBSOCKET_PONG, copy, f.length_bytes, err);
        } else if (f.op <= WEBSOCKET_BINARY) {
            r = take_data(s, &f, err);
        }
    }
    return r;
}

/* {"status":"Failure","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}
 */
static int exit_status(struct session *s, int *ret_status, struct error *err)
{
    _cleanup_json_ json_t *status = NULL;
    if (!s->status.length_bytes)
        return error_set(err, -ECONNRESET, "the connection ended before the command did");
    int r = json_parse("status", s->status.data, s->status.length_bytes, &status, err);
    if (r < 0)
        return r;
    const char *result = json_string_value(json_object_get(status, "status"));
    if (result && strcmp(result, "Success") == 0) {
        *ret_status = 0;
        return 0;
    }
    size_t i;
    json_t *cause;
    json_array_foreach(json_object_get(json_object_get(status, "details"), "causes"), i, cause)
    {
        const char *reason = json_string_value(json_object_get(cause, "reason"));
        const char *message = json_string_value(json_object_get(cause, "message"));
        if (reason && message && strcmp(reason, "ExitCode") == 0) {
            *ret_status = (int)strtol(message, NULL, 10);
            return 0;
        }
    }
    const char *message = json_string_value(json_object_get(status, "message"));
    return error_set(err, -EIO, "%s", message ? message : "the command failed for an unknown reason");
}

static void cleanup_headers(struct curl_slist **list)
{
    curl_slist_free_all(*list);
}

static int open_session(struct session *s, struct error *err)
{
    const struct kube_exec *e = s->exec;
    struct curl_slist *headers __attribute__((cleanup(cleanup_headers))) = NULL;
    struct kube_secrets_copy secrets __attribute__((cleanup(kube_secrets_release))) = {0};
    struct kube_buffer query = {0};
    _cleanup_free_ char *path = NULL;
    char detail[CURL_ERROR_SIZE] = "";
    int r = kube_path(&kube_pods, e->namespace, e->pod, "exec", &path, err);
    if (r < 0 ||
        (r = kube_credentials_get(&s->client->config, &s->client->credentials, 0, &secrets, err)) < 0 ||
        (r = kube_transfer_setup(s->client, s->curl, "/", NULL, e->as, &secrets, &headers, err)) < 0)
        return r;
    curl_easy_setopt(s->curl, CURLOPT_CONNECT_ONLY, 1L);
    curl_easy_setopt(s->curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(s->curl, CURLOPT_SSL_ENABLE_ALPN, 0L);
    curl_easy_setopt(s->curl, CURLOPT_TIMEOUT_MS, (long)s->timeout_ms);
    curl_easy_setopt(s->curl, CURLOPT_ERRORBUFFER, detail);
    CURLcode code = curl_easy_perform(s->curl);
    if (code != CURLE_OK)
        r = kube_transfer_error(s->client, code, s->curl, "exec", path, s->timeout_ms, detail, err);
    else if ((r = make_query(e, &query, err)) == 0)
        r = upgrade(s, path, query.data, headers, err);
    kube_buffer_release(&query);
    curl_easy_setopt(s->curl, CURLOPT_ERRORBUFFER, NULL);
    return r;
}

int kube_exec(struct kube_client *client, const struct kube_exec *exec, int *ret_status, struct error *err)
{
    unsigned timeout_ms = exec->timeout_ms ? exec->timeout_ms : KUBE_TIMEOUT_MS;
    /* A connection that was taken over cannot be used for calls: a handle of its own. */
    struct session s = {.client = client,
                        .exec = exec,
                        .curl = curl_easy_init(),
                        .timeout_ms = timeout_ms,
                        .deadline_ns = clock_boottime_ns(clock_system()) + timeout_ms * NS_PER_MS};
    if (!s.curl)
        return error_errno(err, -ENOMEM, "exec");
    int r = open_session(&s, err);
    if (r == 0)
        r = run(&s, err);
    if (r == 0)
        r = exit_status(&s, ret_status, err);
    if (r == 0) {
        struct error ignored = ERROR_INIT;
        int sent = send_frame(&s, WEBSOCKET_CLOSE, NULL, 0, &ignored); /* politeness: the command is over */
        (void)sent;
    }
    curl_easy_cleanup(s.curl);
    kube_buffer_release(&s.input);
    kube_buffer_release(&s.status);
    if (r < 0)
        return error_context(err, "exec of %s in %s/%s", exec->argv[0], exec->namespace, exec->pod);
    return r;
}

static int collect(void *context, int stream, const void *data, size_t length_bytes)
{
    struct kube_buffer *b = context;
    size_t room = KUBE_EXEC_COLLECT_BYTES - b->length_bytes;
    (void)stream;
    return kube_buffer_add(b, data, length_bytes < room ? length_bytes : room);
}

int kube_exec_collect(struct kube_client *client, const struct kube_exec *exec, int *ret_status,
                      char **ret_output, struct error *err)
{
    struct kube_buffer output = {0};
    struct kube_exec with_output = *exec;
    with_output.output = collect;
    with_output.context = &output;
    int r = kube_buffer_add(&output, "", 0) < 0 ? error_errno(err, -ENOMEM, "exec")
                                                : kube_exec(client, &with_output, ret_status, err);
    if (r == 0)
        *ret_output = take_ptr(output.data);
    kube_buffer_release(&output);
    return r;
}
