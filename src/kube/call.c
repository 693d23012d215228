/* SPDX-License-Identifier: Apache-2.0 */
/* One call: the request, its retries, and what the server's Status says as an error. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "kube/kube_internal.h"
#include "lib/json.h"

#define RETRY_MIN_MS 100u
#define RETRY_MAX_MS 5000u
#define RETRY_AFTER_MAX_S 60u

struct transfer {
    struct kube_buffer body;
    size_t limit_bytes;
    bool too_large, no_memory;
    long code;
    unsigned retry_after_s;
    char detail[CURL_ERROR_SIZE];
};

static void cleanup_headers(struct curl_slist **list)
{
    curl_slist_free_all(*list);
}

static size_t receive(char *data, size_t size, size_t count, void *context)
{
    struct transfer *t = context;
    if (size * count > t->limit_bytes - t->body.length_bytes) {
        t->too_large = true;
        return 0;
    }
    if (kube_buffer_add(&t->body, data, size * count) < 0) {
        t->no_memory = true;
        return 0;
    }
    return size * count;
}

int kube_errno(long code, const char *reason)
{
    switch (code) {
    case 400:
    case 422:
        return -EINVAL;
    case 401:
        return -EPERM;
    case 403:
        return -EACCES;
    case 404:
        return -ENOENT;
    case 405:
    case 406:
    case 415:
        return -EOPNOTSUPP;
    case 409:
        return strcmp(reason, "AlreadyExists") == 0 ? -EEXIST : -EBUSY;
    case 410:
        return -ESTALE;
    case 413:
        return -EFBIG;
    case 429:
    case 502: /* of what stands before the server */
    case 503:
    case 504:
        return -EAGAIN;
    default:
        return -EIO;
    }
}

int kube_status_error(long code, const json_t *body, const char *method, const char *path,
                      struct kube_status *status, struct error *err)
{
    const char *message = json_string_value(json_object_get(body, "message"));
    const char *reason = json_string_value(json_object_get(body, "reason"));
    json_t *details = json_object_get(body, "details");
    if (status) {
        status->code = code;
        snprintf(status->reason, sizeof status->reason, "%s", reason ? reason : "");
        json_int_t after = json_integer_value(json_object_get(details, "retryAfterSeconds"));
        if (!status->retry_after_s && after > 0)
            status->retry_after_s = after < 3600 ? (unsigned)after : 3600;
        json_decref(status->details);
        status->details = json_incref(details);
    }
    if (!message)
        return error_set(err, kube_errno(code, reason ? reason : ""), "%s %s: the API server answered %ld",
                         method, path, code);
    if (code == 401)
        return error_set(
            err, -EPERM,
            "%s %s: the API server refuses the credentials (%s): has the token or certificate expired?",
            method, path, message);
    return error_set(err, kube_errno(code, reason ? reason : ""), "%s (%s %s: %ld%s%s)", message, method,
                     path, code, reason ? " " : "", reason ? reason : "");
}

static int add_body(CURL *curl, const struct kube_request *q, const char *text, struct curl_slist **headers,
                    struct error *err)
{
    _cleanup_free_ char *type = NULL, *accept = NULL;
    if (asprintf(&type, "Content-Type: %s", q->content_type ? q->content_type : "application/json") < 0 ||
        asprintf(&accept, "Accept: %s", q->accept ? q->accept : "application/json") < 0)
        return error_errno(err, -ENOMEM, "%s %s", q->method, q->path);
    const char *lines[] = {"Expect:", accept, type};
    for (size_t i = 0; i < 3; i++) {
        struct curl_slist *longer = curl_slist_append(*headers, lines[i]);
        if (!longer)
            return error_errno(err, -ENOMEM, "%s %s", q->method, q->path);
        *headers = longer;
    }
    if (text || strcmp(q->method, "GET") != 0)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, text ? text : "");
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, q->method);
    return 0;
}

static int perform(struct kube_client *client, CURL *curl, const struct kube_request *q, const char *text,
                   unsigned timeout_ms, unsigned *generation, struct transfer *t, struct error *err)
{
    struct curl_slist *headers __attribute__((cleanup(cleanup_headers))) = NULL;
    struct kube_secrets_copy secrets __attribute__((cleanup(kube_secrets_release))) = {0};
    int r = kube_credentials_get(&client->config, &client->credentials, *generation, &secrets, err);
    if (r < 0)
        return r;
    *generation = secrets.generation;
    if ((r = kube_transfer_setup(client, curl, q->path, q->query, q->as, &secrets, &headers, err)) < 0 ||
        (r = add_body(curl, q, text, &headers, err)) < 0)
        return r;
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, t->detail);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    CURLcode code = curl_easy_perform(curl);
    if (t->too_large)
        return error_set(err, -EFBIG, "%s %s: the answer is larger than %zu bytes", q->method, q->path,
                         t->limit_bytes);
    if (t->no_memory)
        return error_errno(err, -ENOMEM, "%s %s", q->method, q->path);
    if (code != CURLE_OK)
        return kube_transfer_error(client, code, curl, q->method, q->path, timeout_ms, t->detail, err);
    curl_off_t after = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &t->code);
    curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &after);
    t->retry_after_s = after < 0 ? 0 : after > 3600 ? 3600 : (unsigned)after;
    return 0;
}

/* The answer as JSON; a Status of a failure as an error. */
static int judge(const struct kube_request *q, const struct transfer *t, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = NULL;
    struct error ignored = ERROR_INIT;
    int r = 0;
    if (q->status) {
        json_decref(q->status->details);
        *q->status = (struct kube_status){.code = t->code, .retry_after_s = t->retry_after_s};
    }
    if (t->code >= 400) {
        if (t->body.data &&
            json_parse_foreign("status", t->body.data, t->body.length_bytes, &body, &ignored) < 0)
            body = NULL;
        return kube_status_error(t->code, body, q->method, q->path, q->status, err);
    }
    if (!ret)
        return 0;
    r = (q->cuts ? json_parse_foreign_cut : json_parse_foreign)("answer", t->body.data ? t->body.data : "", t->body.length_bytes, &body, err);
    if (r < 0) {
        err->code = -EPROTO;
        return error_context(err, "%s %s: the answer is not JSON (is that an API server?)", q->method,
                             q->path);
    }
    *ret = take_ptr(body);
    return 0;
}

/* Whether a failed try may be made again: the server did not take it, or taking it twice does not matter. */
static bool may_repeat(const struct kube_request *q, const struct transfer *t, int r)
{
    if (q->once)
        return false;
    if (t->code == 429) /* an eviction that a disruption budget forbids is an answer, not a limit of rate */
        return t->retry_after_s > 0 || !strstr(q->path, "/eviction");
    if (t->code == 503 || t->code == 504 || t->code == 500)
        return t->retry_after_s > 0 || strcmp(q->method, "GET") == 0;
    if (t->code)
        return false;
    if (r == -ECONNREFUSED)
        return true;
    return strcmp(q->method, "GET") == 0 && (r == -ECONNRESET || r == -EIO);
}

int kube_call(struct kube_client *client, const struct kube_request *q, json_t **ret, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    uint64_t now = clock_boottime_ns(clock_system());
    const uint64_t deadline = now + (q->timeout_ms ? q->timeout_ms : KUBE_TIMEOUT_MS) * NS_PER_MS;
    unsigned generation = 0;
    bool renewed = false;
    if (q->body && !(text = json_to_text(q->body)))
        return error_errno(err, -ENOMEM, "%s %s", q->method, q->path);
    for (unsigned failures = 0;; failures++) {
        struct transfer t = {.limit_bytes = q->limit_bytes ? q->limit_bytes : KUBE_BODY_LIMIT_BYTES};
        CURL *curl = kube_take_handle(client);
        unsigned refused = renewed ? generation : 0;
        if (!curl)
            return error_errno(err, -ENOMEM, "%s %s", q->method, q->path);
        int r =
            perform(client, curl, q, text, (unsigned)((deadline - now) / NS_PER_MS) + 1, &refused, &t, err);
        generation = refused;
        kube_give_handle(client, curl);
        if (r == 0)
            r = judge(q, &t, ret, err);
        kube_buffer_release(&t.body);
        if (r == 0 || client->interrupted)
            return r;
        if (t.code == 401 && !renewed && (client->config.token_file || client->config.plugin.argv[0])) {
            renewed = true; /* the next try reads the credentials anew */
            continue;
        }
        unsigned wait_ms = kube_backoff_ms(failures, RETRY_MIN_MS, RETRY_MAX_MS);
        if (t.retry_after_s)
            wait_ms += (t.retry_after_s < RETRY_AFTER_MAX_S ? t.retry_after_s : RETRY_AFTER_MAX_S) * 1000;
        now = clock_boottime_ns(clock_system());
        if (!may_repeat(q, &t, r) || now + wait_ms * NS_PER_MS >= deadline)
            return r;
        struct error interrupted = ERROR_INIT;
        if (kube_sleep(client, wait_ms, &interrupted) < 0)
            return error_set(err, -ECANCELED, "%s %s: interrupted", q->method, q->path);
        now = clock_boottime_ns(clock_system());
        if (now >= deadline)
            return r;
    }
}
