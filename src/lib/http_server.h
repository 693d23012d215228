/* SPDX-License-Identifier: Apache-2.0 */
/* HTTP/1.1 server over libmicrohttpd: JSON on a Unix socket, and optionally GET /metrics on a TCP address.
 *
 * Threads: the handler runs on one of `threads` pool threads, several at once; it may block, but a blocked
 * handler holds up the other connections of its thread. start, stop: one thread. Pool threads have all
 * signals blocked. */
#ifndef TIDEMARK_LIB_HTTP_SERVER_H
#define TIDEMARK_LIB_HTTP_SERVER_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"

#define HTTP_SERVER_BODY_LIMIT_BYTES (4u << 20)
#define HTTP_SERVER_CONNECTION_LIMIT 128u
/* From that many on, a new connection costs the one that has been without a whole request for the longest. */
#define HTTP_SERVER_CONNECTIONS_CROWDED 96u
#define HTTP_SERVER_THREADS_DEFAULT 4u
#define HTTP_SERVER_THREADS_MAX 16u
#define HTTP_SERVER_STACK_BYTES (256 * 1024)
#define HTTP_SERVER_ALLOW_BYTES 40u /* "GET, POST, DELETE" and the like */

struct http_server;

/* Valid during the handler's call. */
struct http_request {
    const char *method; /* "GET", "POST" ... */
    const char *path;   /* decoded, without the query */
    const char *body;   /* NUL-terminated, "" without one */
    size_t body_length_bytes;
    uid_t peer_uid;   /* of the Unix socket's peer; (uid_t)-1 over TCP */
    pid_t peer_pid;   /* at the time of connect(2); -1 over TCP */
    void *connection; /* the server's */
};

/* The decoded value of the query's parameter `name`: "" when it has no value, NULL when it is not there. */
const char *http_request_query(const struct http_request *request, const char *name);
/* -EINVAL with its name when the query has a parameter that is not among `names` (with spaces between them), or has one twice. */
int http_request_check_query(const struct http_request *request, const char *names, struct error *err) MUST_CHECK;
/* Parses the body: an empty one is {}. -EINVAL with the position, or when it is not an object. */
int http_request_json(const struct http_request *request, json_t **ret_object, struct error *err) MUST_CHECK;

/* Filled by the handler, which sets at most one of json and text; the server releases them. */
struct http_response {
    int status; /* 200 unless set */
    const char
        *content_type; /* static string; by default "application/json" for json, "text/plain..." for text */
    json_t *json;
    char *text; /* from malloc, NUL-terminated */
    char allow[HTTP_SERVER_ALLOW_BYTES]; /* see http_refuse_method */
};

/* Takes the reference. NULL (out of memory) becomes a 500. */
void http_response_json(struct http_response *response, int status, json_t *json);
/* Takes the text, which is from malloc; `content_type` is static. */
void http_response_text(struct http_response *response, int status, const char *content_type, char *text);
/* Path and query as they have to be encoded to ask another server for the same. The caller frees it. */
int http_request_target(const struct http_request *request, char **ret_target, struct error *err) MUST_CHECK;

/* There is the path, but not with that method: -EOPNOTSUPP, and the answer is a 405 with the header Allow, if the handler returns it.
 * `allowed`: "GET, POST". */
int http_refuse_method(const struct http_request *request, struct http_response *response, const char *allowed,
                       struct error *err) MUST_CHECK;
/* Adds a method to such a list, if it is not there. */
void http_allow_method(char allowed[HTTP_SERVER_ALLOW_BYTES], const char *method);

/* Body {"error": {"code", "message"}} with the status for err->code: EINVAL 400, EACCES and EPERM 403, ENOENT
 * 404, EEXIST and EBUSY 409, ERANGE 422, ENOSPC and EDQUOT 507, anything else 500. Replaces what was set before. */
void http_response_error(struct http_response *response, const struct error *err);
int http_status_of_errno(int code);

struct http_server_options {
    const char *socket_path; /* Unix socket, created with mode 0600; a stale one is replaced; NULL: none */
    const char
        *tcp_address; /* "host:port" or "[v6]:port" that serves GET /metrics only; port 0: any; NULL: none */
    /* "host:port" that serves the handler by HTTPS to clients with a certificate of `tls_ca` for client
     * authentication; others get a 403. With it the three files (PEM), which are read once. NULL: none. */
    const char *tls_address;
    const char *tls_certificate, *tls_key, *tls_ca;
    const char *tls_client; /* the name that a client's certificate has to be for; NULL: any of the CA's */
    /* The same for any client, whoever it is, with certificate and key as PEM texts instead of the three files;
     * both or none. */
    const char *tls_certificate_pem, *tls_key_pem;
    unsigned threads; /* of the pool; 0: HTTP_SERVER_THREADS_DEFAULT */
    bool thread_per_connection; /* of the Unix socket, in place of the pool: a slow handler keeps nobody else
                                   waiting */
    const struct log *log; /* borrowed, may be NULL */
    /* Answers the request: returns 0 with `response` filled, or a negative errno with `err` set, which
     * becomes the error answer. */
    int (*handler)(void *context, const struct http_request *request, struct http_response *response,
                   struct error *err);
    void *context;
};

/* Listens and answers until http_server_stop. -EADDRINUSE when another process listens at the socket. Strings
 * are copied. */
int http_server_start(const struct http_server_options *options, struct http_server **ret_server,
                      struct error *err) MUST_CHECK;
/* The port that the TCP address got, 0 without one. */
unsigned http_server_tls_port(const struct http_server *server);
unsigned http_server_tcp_port(const struct http_server *server);
/* Waits for the running handlers, closes all connections, removes the socket. Not from a handler. NULL is
 * allowed. */
void http_server_stop(struct http_server *server);

#endif
