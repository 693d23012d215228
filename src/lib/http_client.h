/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/1.1 client over libcurl for the project's Unix sockets, and by HTTPS with certificates on both sides: one
 * call, one answer.
 *
 * Threads: thread-safe; each call has its own connection and blocks until the answer or the timeout. */
#ifndef TIDEMARK_LIB_HTTP_CLIENT_H
#define TIDEMARK_LIB_HTTP_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "base/error.h"

#define HTTP_CLIENT_BODY_LIMIT_BYTES (64u << 20)
#define HTTP_CLIENT_CONNECT_TIMEOUT_MS 5000u /* by HTTPS */

struct http_client_options {
    const char *socket_path; /* NULL: by HTTPS */
    const char *server;      /* "NAME:PORT": the server's certificate is for NAME */
    const char *connect_to;  /* "ADDRESS:PORT" (an IPv6 address in brackets): where it is reached */
    const char *certificate, *key, *ca; /* files (PEM), read at each call */
    /* What to tell the user when nobody listens there, e.g. "is `tidemark up` running?"; NULL: nothing. */
    const char *unreachable_hint;
    const char *content_type; /* of the body; NULL: application/json */
    /* Asked about once a second, and now and then besides, while no answer is there: true ends the call with -ECANCELED. NULL: none. */
    bool (*gives_up)(void *context);
    void *context;
};

/* Sends `method` to `path` (begins with '/', query encoded by the caller) with `body` as JSON (NULL: none;
 * borrowed) and gives the answer's JSON (owned by the caller; `ret_body` may be NULL). An answer with a
 * status of 400 or more is an error with the server's code and message. When nobody listens there (no socket,
 * refused): -ECONNREFUSED naming the socket with the hint; -ETIMEDOUT after `timeout_ms` (0: none); -EPROTO
 * for an answer that is not JSON. */
int http_client_call_with(const struct http_client_options *options, const char *method, const char *path,
                          const json_t *body, unsigned timeout_ms, json_t **ret_body,
                          struct error *err) MUST_CHECK;
/* The same without a hint. */
int http_client_call(const char *socket_path, const char *method, const char *path, const json_t *body,
                     unsigned timeout_ms, json_t **ret_body, struct error *err) MUST_CHECK;
/* GET with the answer as it is (NUL-terminated, the caller frees it), for /metrics. */
int http_client_get_text(const struct http_client_options *options, const char *path, unsigned timeout_ms,
                         char **ret_text, struct error *err) MUST_CHECK;
/* POST of `text` as it is (YAML, say); otherwise as http_client_call_with. */
int http_client_post_text(const struct http_client_options *options, const char *path, const char *text,
                          unsigned timeout_ms, json_t **ret_body, struct error *err) MUST_CHECK;
/* Hands a request on: `body` (NULL: none) as it is, and the answer as it is whatever its status; *ret_text is
 * NUL-terminated, the caller frees it. */
int http_client_exchange(const struct http_client_options *options, const char *method, const char *path,
                         const char *body, unsigned timeout_ms, int *ret_status, char **ret_text,
                         struct error *err) MUST_CHECK;
/* Whether curl's own words on a handshake of TLS that failed tell of a connection that was ended (a process that was killed, say), not of a
 * certificate or protocol that does not fit: trying again is of use. curl with OpenSSL. */
static inline bool http_client_was_cut(const char *detail)
{
    return strstr(detail, " SSL_connect: ") || strstr(detail, "Recv failure: ") || strstr(detail, "Send failure: ");
}
/* `text` percent-encoded for a path segment or a query value (RFC 3986 unreserved characters stay). The
 * caller frees it. NULL when out of memory. */
char *http_client_encode(const char *text);

#endif
