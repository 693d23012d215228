/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_KUBE_KUBE_INTERNAL_H
#define TIDEMARK_KUBE_KUBE_INTERNAL_H

#include <curl/curl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "kube/kube.h"

/* ---- config.c: what kubeconfig or the service account says ---- */
#define CONFIG_MAX_ARGUMENTS 64u
#define CONFIG_FILE_LIMIT_BYTES (4u << 20)
struct kube_blob {
    char *data; /* PEM, NUL-terminated */
    size_t length_bytes;
};
struct kube_config {
    char *server;    /* without a slash at the end */
    char *namespace; /* "default" */
    char *tls_name;  /* NULL: the server's host */
    char *proxy;
    bool insecure;
    char *ca_file;
    struct kube_blob ca;
    char *certificate_file, *key_file;
    struct kube_blob certificate, key;
    char *token, *token_file;
    char *username, *password;
    char *as;
    struct { /* exec plugin */
        char *api_version;
        char *argv[CONFIG_MAX_ARGUMENTS + 2];        /* argv[0] NULL: none */
        char *environment[CONFIG_MAX_ARGUMENTS + 1]; /* "NAME=value" */
        bool wants_cluster;
        char *hint;
    } plugin;
};
int kube_config_load(const struct kube_options *options, struct kube_config *ret,
                     struct error *err) MUST_CHECK;
/* `path`: what relative paths in the text are relative to, and messages name. */
int kube_config_parse(const char *path, const char *text, size_t length_bytes, const char *context,
                      struct kube_config *ret, struct error *err) MUST_CHECK;
void kube_config_release(struct kube_config *config);
int kube_base64_decode(const char *name, const char *text, struct kube_blob *ret,
                       struct error *err) MUST_CHECK;

/* ---- credentials.c: what changes while the process lives ---- */
struct kube_credentials {
    pthread_mutex_t mutex; /* over all below; held while a plugin runs, so that it runs once */
    char *token;
    struct kube_blob certificate, key; /* of the plugin */
    uint64_t valid_until_ns;           /* boottime; 0: not read yet */
    unsigned generation;               /* counts the readings */
};
/* Copies of what a call sends; release them. */
struct kube_secrets_copy {
    char *token;
    struct kube_blob certificate, key;
    unsigned generation;
};
/* Reads or renews them when it is time, or when `refused_generation` (0: none) is the one at hand. */
int kube_credentials_get(const struct kube_config *config, struct kube_credentials *credentials,
                         unsigned refused_generation, struct kube_secrets_copy *ret,
                         struct error *err) MUST_CHECK;
void kube_secrets_release(struct kube_secrets_copy *copy);
void kube_credentials_release(struct kube_credentials *credentials);
/* Parses an ExecCredential. *ret_expiry_ns: realtime, UINT64_MAX without one. */
int kube_credentials_parse(const char *command, const char *text, size_t length_bytes,
                           struct kube_secrets_copy *ret, uint64_t *ret_expiry_ns,
                           struct error *err) MUST_CHECK;

/* ---- client.c ---- */
#define CLIENT_IDLE_HANDLES                                                                                  \
    32u /* reconcilers, a recovery or two, the Lease: each that is given up is a handshake later */
struct kube_client {
    struct kube_config config;
    struct kube_credentials credentials;
    const struct log *log;
    char *user_agent;
    struct curl_slist *connect_to; /* with tls-server-name */
    _Atomic bool interrupted;
    pthread_mutex_t mutex; /* over the idle handles and the condition; taken last */
    pthread_cond_t changed;
    CURL *idle[CLIENT_IDLE_HANDLES];
    size_t idle_count;
};
/* Sets address, TLS, credentials and common headers of a transfer. `*headers` is the caller's to free after
 * it, the secrets too; both must live as long as the transfer. */
int kube_transfer_setup(struct kube_client *client, CURL *curl, const char *path, const char *query,
                        const struct kube_user *as, struct kube_secrets_copy *secrets,
                        struct curl_slist **headers, struct error *err) MUST_CHECK;
/* "Authorization: ..." and impersonation, appended to the list. */
int kube_user_headers(const struct kube_user *as, struct curl_slist **headers, struct error *err) MUST_CHECK;
CURL *kube_take_handle(struct kube_client *client);
void kube_give_handle(struct kube_client *client, CURL *curl);
/* What went wrong on the way. */
int kube_transfer_error(struct kube_client *client, CURLcode code, CURL *curl, const char *method,
                        const char *path, unsigned timeout_ms, const char *detail, struct error *err);
/* What a Status with the HTTP code says; `body` may be NULL or anything. Fills *status when it is not NULL.
 */
int kube_status_error(long code, const json_t *body, const char *method, const char *path,
                      struct kube_status *status, struct error *err);
/* The error's code of an HTTP status. */
int kube_errno(long code, const char *reason);
/* Waits, at most until kube_interrupt: -ECANCELED. */
int kube_sleep(struct kube_client *client, unsigned ms, struct error *err) MUST_CHECK;

/* ---- backoff.c ---- */
/* Doubles from `min_ms` with each failure (the first: 0) up to `max_ms`, and takes between a half and the
 * whole of it. */
unsigned kube_backoff_ms(unsigned failures, unsigned min_ms, unsigned max_ms);
/* A number below `limit` (> 0). */
uint32_t kube_random(uint32_t limit);

struct kube_buffer {
    char *data; /* NUL-terminated when not NULL */
    size_t length_bytes, capacity_bytes;
};
int kube_buffer_add(struct kube_buffer *buffer, const void *data, size_t length_bytes);
static inline void kube_buffer_release(struct kube_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct kube_buffer){0};
}

#endif
