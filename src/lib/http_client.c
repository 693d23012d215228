/* SPDX-License-Identifier: Apache-2.0 */
/* One easy handle a call: the calls are few (control plane), and so nothing is shared between threads. */
#include "lib/http_client.h"

#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "lib/json.h"

struct answer {
    char *data; /* NUL-terminated */
    size_t length_bytes;
    bool too_large;
    long status;
    char detail[CURL_ERROR_SIZE]; /* of a failure; "" */
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_initialized;

static void init_curl(void)
{
    curl_initialized = curl_global_init(CURL_GLOBAL_DEFAULT);
}

static void cleanup_easy(CURL **c)
{
    curl_easy_cleanup(*c);
}
static void cleanup_list(struct curl_slist **l)
{
    curl_slist_free_all(*l);
}
static void cleanup_answer(struct answer *a)
{
    free(a->data);
}

/* The server, in messages. */
static const char *place(const struct http_client_options *o)
{
    return o->socket_path ? o->socket_path : o->connect_to;
}

static size_t receive(char *data, size_t size, size_t count, void *context)
{
    struct answer *a = context;
    size_t n = size * count;
    if (n > HTTP_CLIENT_BODY_LIMIT_BYTES - a->length_bytes) {
        a->too_large = true;
        return 0;
    }
    char *larger = realloc(a->data, a->length_bytes + n + 1);
    if (!larger)
        return 0;
    a->data = larger;
    memcpy(a->data + a->length_bytes, data, n);
    a->length_bytes += n;
    a->data[a->length_bytes] = '\0';
    return n;
}

static int transfer_error(const struct http_client_options *o, const char *method, const char *path,
                          CURLcode code, CURL *curl, unsigned timeout_ms, const struct answer *answer,
                          struct error *err)
{
    long system_errno = 0;
    curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &system_errno);
    if (code == CURLE_COULDNT_CONNECT) {
        const char *hint = o->unreachable_hint;
        int reason = system_errno > 0 ? (int)system_errno : ECONNREFUSED;
        const char *why = strerrordesc_np(reason);
        return error_set(err, reason == EACCES || reason == EPERM ? -reason : -ECONNREFUSED,
                         "cannot connect to %s: %s%s%s%s", place(o), why ? why : "connection failed",
                         hint ? " (" : "", hint ? hint : "", hint ? ")" : "");
    }
    if (code == CURLE_OPERATION_TIMEDOUT)
        return error_set(err, -ETIMEDOUT, "%s %s at %s: no answer within %u ms", method, path, place(o),
                         timeout_ms);
    if (code == CURLE_ABORTED_BY_CALLBACK)
        return error_set(err, -ECANCELED, "%s %s at %s: given up without an answer", method, path, place(o));
    if (code == CURLE_OUT_OF_MEMORY || (code == CURLE_WRITE_ERROR && !answer->too_large))
        return error_errno(err, -ENOMEM, "%s %s at %s", method, path, place(o));
    if (code == CURLE_WRITE_ERROR)
        return error_set(err, -EFBIG, "%s %s at %s: the answer is larger than %u bytes", method, path,
                         place(o), HTTP_CLIENT_BODY_LIMIT_BYTES);
    if (code == CURLE_SSL_CONNECT_ERROR && http_client_was_cut(answer->detail))
        return error_set(err, -ECONNRESET, "%s %s at %s: the other side ended the connection: %s", method, path, place(o), answer->detail);
    if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE ||
        code == CURLE_SSL_CERTPROBLEM || code == CURLE_SSL_CONNECT_ERROR)
        return error_set(err, -EPROTO,
                         "%s %s at %s: %s; the certificate of the other side has to be for the name %s and signed "
                         "by the CA in %s",
                         method, path, place(o), curl_easy_strerror(code), o->server ? o->server : "", o->ca);
    return error_set(err, code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR ? -ECONNRESET : -EIO,
                     "%s %s at %s: %s", method, path, place(o), curl_easy_strerror(code));
}

static int ask(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    const struct http_client_options *o = context;
    (void)a, (void)b, (void)c, (void)d;
    return o->gives_up(o->context);
}

static int set_tls(const struct http_client_options *o, CURL *curl, struct curl_slist **route, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    if (asprintf(&text, "%s:%s", o->server, o->connect_to) < 0)
        return error_errno(err, -ENOMEM, "a call of %s", o->connect_to);
    *route = curl_slist_append(NULL, text);
    if (!*route)
        return error_errno(err, -ENOMEM, "a call of %s", o->connect_to);
    curl_easy_setopt(curl, CURLOPT_CONNECT_TO, *route);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)HTTP_CLIENT_CONNECT_TIMEOUT_MS);
    curl_easy_setopt(curl, CURLOPT_CAINFO, o->ca);
    curl_easy_setopt(curl, CURLOPT_SSLCERT, o->certificate);
    curl_easy_setopt(curl, CURLOPT_SSLKEY, o->key);
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    return 0;
}

static int perform(const struct http_client_options *o, const char *method, const char *path,
                   const char *body, unsigned timeout_ms, struct answer *answer, struct error *err)
{
    pthread_once(&curl_once, init_curl);
    CURL *curl __attribute__((cleanup(cleanup_easy))) =
        curl_initialized == CURLE_OK ? curl_easy_init() : NULL;
    struct curl_slist *headers __attribute__((cleanup(cleanup_list))) = NULL;
    _cleanup_free_ char *url = NULL;
    struct curl_slist *route __attribute__((cleanup(cleanup_list))) = NULL;
    if (o->socket_path && strlen(o->socket_path) >= sizeof((struct sockaddr_un *)0)->sun_path)
        return error_set(err, -ENAMETOOLONG, "cannot connect to %s: a socket's path has at most %zu bytes",
                         o->socket_path, sizeof((struct sockaddr_un *)0)->sun_path - 1);
    if (!curl ||
        asprintf(&url, "%s%s%s", o->socket_path ? "http://" : "https://", o->socket_path ? "localhost" : o->server,
                 path) < 0)
        return error_errno(err, -ENOMEM, "%s %s at %s", method, path, place(o));
    /* Without "Expect:" curl would wait for a 100-continue before larger bodies. */
    headers = curl_slist_append(NULL, "Expect:");
    char type[80];
    snprintf(type, sizeof type, "Content-Type: %s", o->content_type ? o->content_type : "application/json");
    struct curl_slist *both = headers ? curl_slist_append(headers, type) : NULL;
    if (!both)
        return error_errno(err, -ENOMEM, "%s %s at %s", method, path, place(o));
    answer->detail[0] = '\0';
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, answer->detail);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    int r = o->socket_path ? 0 : set_tls(o, curl, &route, err);
    if (r < 0)
        return r;
    if (o->socket_path)
        curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, o->socket_path);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, o->socket_path ? "http" : "https");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    if (o->gives_up) {
        curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, ask);
        curl_easy_setopt(curl, CURLOPT_XFERINFODATA, o);
        curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    }
    if (body || strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body ? body : "");
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    CURLcode code = curl_easy_perform(curl);
    if (code != CURLE_OK)
        return transfer_error(o, method, path, code, curl, timeout_ms, answer, err);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &answer->status);
    return 0;
}

static int errno_of_status(long status)
{
    switch (status) {
    case 400:
        return -EINVAL;
    case 401:
    case 403:
        return -EACCES;
    case 404:
        return -ENOENT;
    case 405:
        return -EOPNOTSUPP;
    case 409:
        return -EBUSY;
    case 413:
        return -EFBIG;
    case 422:
        return -ERANGE;
    case 507:
        return -ENOSPC;
    default:
        return -EIO;
    }
}

static int answer_error(const struct answer *answer, const char *method, const char *path, struct error *err)
{
    char fallback[256];
    struct error ignored = ERROR_INIT;
    _cleanup_json_ json_t *json = NULL;
    snprintf(fallback, sizeof fallback, "%s %.150s: the server answered with status %ld", method, path,
             answer->status);
    if (answer->length_bytes && json_parse("answer", answer->data, answer->length_bytes, &json, &ignored) < 0)
        json = NULL;
    return json_to_error(json, errno_of_status(answer->status), fallback, err);
}

static int call_text(const struct http_client_options *options, const char *method, const char *path,
                     const char *text, unsigned timeout_ms, json_t **ret_body, struct error *err)
{
    struct answer answer __attribute__((cleanup(cleanup_answer))) = {0};
    int r = perform(options, method, path, text, timeout_ms, &answer, err);
    if (r < 0)
        return r;
    if (answer.status >= 400)
        return answer_error(&answer, method, path, err);
    if (!ret_body)
        return 0;
    if (json_parse("the answer", answer.data ? answer.data : "", answer.length_bytes, ret_body, err) < 0) {
        error_context(err, "%s %s at %s", method, path, place(options));
        return err->code = -EPROTO;
    }
    return 0;
}

int http_client_call_with(const struct http_client_options *options, const char *method, const char *path,
                          const json_t *body, unsigned timeout_ms, json_t **ret_body, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    if (body) {
        text = json_to_text(body);
        if (!text)
            return error_errno(err, -ENOMEM, "%s %s at %s", method, path, place(options));
    }
    return call_text(options, method, path, text, timeout_ms, ret_body, err);
}

int http_client_post_text(const struct http_client_options *options, const char *path, const char *text,
                          unsigned timeout_ms, json_t **ret_body, struct error *err)
{
    return call_text(options, "POST", path, text, timeout_ms, ret_body, err);
}

int http_client_exchange(const struct http_client_options *options, const char *method, const char *path,
                         const char *body, unsigned timeout_ms, int *ret_status, char **ret_text,
                         struct error *err)
{
    struct answer answer __attribute__((cleanup(cleanup_answer))) = {0};
    int r = perform(options, method, path, body, timeout_ms, &answer, err);
    if (r < 0)
        return r;
    *ret_status = (int)answer.status;
    *ret_text = answer.data ? take_ptr(answer.data) : strdup("");
    return *ret_text ? 0 : error_errno(err, -ENOMEM, "%s %s at %s", method, path, place(options));
}

int http_client_call(const char *socket_path, const char *method, const char *path, const json_t *body,
                     unsigned timeout_ms, json_t **ret_body, struct error *err)
{
    const struct http_client_options options = {.socket_path = socket_path};
    return http_client_call_with(&options, method, path, body, timeout_ms, ret_body, err);
}

int http_client_get_text(const struct http_client_options *options, const char *path, unsigned timeout_ms,
                         char **ret_text, struct error *err)
{
    struct answer answer __attribute__((cleanup(cleanup_answer))) = {0};
    int r = perform(options, "GET", path, NULL, timeout_ms, &answer, err);
    if (r < 0)
        return r;
    if (answer.status >= 400)
        return answer_error(&answer, "GET", path, err);
    if (!answer.data && !(answer.data = strdup("")))
        return error_errno(err, -ENOMEM, "GET %s at %s", path, place(options));
    *ret_text = take_ptr(answer.data);
    return 0;
}

char *http_client_encode(const char *text)
{
    static const char hex[] = "0123456789ABCDEF";
    char *encoded = malloc(strlen(text) * 3 + 1), *at = encoded;
    if (!encoded)
        return NULL;
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        bool unreserved = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
                          strchr("-._~", *p);
        if (unreserved) {
            *at++ = (char)*p;
        } else {
            *at++ = '%';
            *at++ = hex[*p >> 4];
            *at++ = hex[*p & 15];
        }
    }
    *at = '\0';
    return encoded;
}
