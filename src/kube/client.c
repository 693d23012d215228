/* SPDX-License-Identifier: Apache-2.0 */
/* The client: its configuration, its idle connections (one a handle), and what every transfer has in common.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "kube/kube_internal.h"
#include "lib/http_client.h"

#define CONNECT_TIMEOUT_MS 10000L
#define DEAD_PEER_MS 30000u

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_initialized;

static void init_curl(void)
{
    curl_initialized = curl_global_init(CURL_GLOBAL_DEFAULT);
}

/* ":6443" or NULL. */
static const char *server_port(const struct kube_config *c)
{
    const char *host = strstr(c->server, "://") + 3;
    const char *port = strrchr(host, ':');
    return port && !strchr(port, ']') ? port : NULL;
}

/* With tls-server-name: connects to the server's address whatever the URL's host. */
static int make_connect_to(struct kube_client *client, struct error *err)
{
    const struct kube_config *c = &client->config;
    if (!c->tls_name)
        return 0;
    const char *host = strstr(c->server, "://") + 3, *port = server_port(c);
    _cleanup_free_ char *to = NULL;
    if (asprintf(&to, "::%.*s%s", (int)(port ? (size_t)(port - host) : strlen(host)), host,
                 port ? port : ":443") < 0 ||
        !(client->connect_to = curl_slist_append(NULL, to)))
        return error_errno(err, -ENOMEM, "kubernetes client");
    return 0;
}

int kube_open(const struct kube_options *options, struct kube_client **ret, struct error *err)
{
    pthread_once(&curl_once, init_curl);
    struct kube_client *client = curl_initialized == CURLE_OK ? calloc(1, sizeof *client) : NULL;
    if (!client)
        return error_errno(err, -ENOMEM, "kubernetes client");
    int r = kube_config_load(options, &client->config, err);
    if (r == 0)
        r = make_connect_to(client, err);
    client->user_agent = strdup(options->user_agent ? options->user_agent : "tidemark/" TIDEMARK_VERSION);
    if (r == 0 && !client->user_agent)
        r = error_errno(err, -ENOMEM, "kubernetes client");
    if (r < 0) {
        kube_config_release(&client->config);
        free(client->user_agent);
        free(client);
        return r;
    }
    thread_cond_init(&client->changed);
    pthread_mutex_init(&client->mutex, NULL);
    pthread_mutex_init(&client->credentials.mutex, NULL);
    client->log = options->log;
    *ret = client;
    return 0;
}

void kube_close(struct kube_client *client)
{
    if (!client)
        return;
    for (size_t i = 0; i < client->idle_count; i++)
        curl_easy_cleanup(client->idle[i]);
    kube_credentials_release(&client->credentials);
    kube_config_release(&client->config);
    curl_slist_free_all(client->connect_to);
    pthread_cond_destroy(&client->changed);
    pthread_mutex_destroy(&client->mutex);
    free(client->user_agent);
    free(client);
}

void kube_interrupt(struct kube_client *client, bool interrupted)
{
    MUTEX_GUARD(guard, &client->mutex);
    client->interrupted = interrupted;
    pthread_cond_broadcast(&client->changed);
}

int kube_sleep(struct kube_client *client, unsigned ms, struct error *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += (long)(ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    MUTEX_GUARD(guard, &client->mutex);
    while (!client->interrupted)
        if (pthread_cond_timedwait(&client->changed, &client->mutex, &until) == ETIMEDOUT)
            return 0;
    return error_set(err, -ECANCELED, "interrupted");
}

const char *kube_server(const struct kube_client *client)
{
    return client->config.server;
}

const char *kube_namespace(const struct kube_client *client)
{
    return client->config.namespace;
}

CURL *kube_take_handle(struct kube_client *client)
{
    {
        MUTEX_GUARD(guard, &client->mutex);
        if (client->idle_count)
            return client->idle[--client->idle_count];
    }
    return curl_easy_init();
}

void kube_give_handle(struct kube_client *client, CURL *curl)
{
    if (!curl)
        return;
    curl_easy_reset(curl); /* its connection stays */
    {
        MUTEX_GUARD(guard, &client->mutex);
        if (client->idle_count < CLIENT_IDLE_HANDLES) {
            client->idle[client->idle_count++] = curl;
            return;
        }
    }
    curl_easy_cleanup(curl);
}

/* ---- headers ---- */
static int add_header(struct curl_slist **list, struct error *err, const char *name, const char *value)
{
    _cleanup_free_ char *line = NULL;
    for (const char *p = value; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            return error_set(err, -EINVAL, "header %s: the value has a control character", name);
    struct curl_slist *longer =
        asprintf(&line, "%s: %s", name, value) < 0 ? NULL : curl_slist_append(*list, line);
    if (!longer)
        return error_errno(err, -ENOMEM, "header %s", name);
    if (line)
        explicit_bzero(line, strlen(line));
    *list = longer;
    return 0;
}

int kube_user_headers(const struct kube_user *as, struct curl_slist **headers, struct error *err)
{
    if (!as)
        return 0;
    if (!as->name || !*as->name)
        return error_set(err, -EINVAL, "cannot act for a user without a name");
    if (as->group_count > KUBE_MAX_GROUPS || as->extra_count > KUBE_MAX_EXTRA)
        return error_set(err, -E2BIG, "cannot act for %s: more than %u groups or extra values", as->name,
                         KUBE_MAX_GROUPS);
    int r = add_header(headers, err, "Impersonate-User", as->name);
    if (r == 0 && as->uid && *as->uid)
        r = add_header(headers, err, "Impersonate-Uid", as->uid);
    for (size_t i = 0; r == 0 && i < as->group_count; i++)
        r = add_header(headers, err, "Impersonate-Group", as->groups[i]);
    for (size_t i = 0; r == 0 && i < as->extra_count; i++) {
        _cleanup_free_ char *key = kube_escape(as->extra[i].key), *name = NULL;
        if (!key || asprintf(&name, "Impersonate-Extra-%s", key) < 0)
            return error_errno(err, -ENOMEM, "impersonation");
        r = add_header(headers, err, name, as->extra[i].value);
    }
    return r;
}

/* ---- transfers ---- */
static int watch_peer(void *context, curl_socket_t fd, curlsocktype purpose)
{
    (void)context;
    (void)purpose;
    unsigned ms =
        DEAD_PEER_MS; /* a peer that is gone without a word: unacknowledged data ends the connection */
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
    return CURL_SOCKOPT_OK;
}

static int check_interrupt(void *context, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)a, (void)b, (void)c, (void)d;
    return ((struct kube_client *)context)->interrupted;
}

static void set_blob(CURL *curl, CURLoption option, const struct kube_blob *blob)
{
    struct curl_blob b = {blob->data, blob->length_bytes, CURL_BLOB_COPY};
    curl_easy_setopt(curl, option, &b);
}

static void setup_tls(const struct kube_config *c, CURL *curl, const struct kube_secrets_copy *secrets)
{
    if (c->ca.data)
        set_blob(curl, CURLOPT_CAINFO_BLOB, &c->ca);
    else if (c->ca_file)
        curl_easy_setopt(curl, CURLOPT_CAINFO, c->ca_file);
    if (c->insecure) {
        curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 0L);
        curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 0L);
    }
    curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    const struct kube_blob *certificate = secrets->certificate.data ? &secrets->certificate : &c->certificate;
    const struct kube_blob *key = secrets->key.data ? &secrets->key : &c->key;
    if (certificate->data)
        set_blob(curl, CURLOPT_SSLCERT_BLOB, certificate);
    else if (c->certificate_file)
        curl_easy_setopt(curl, CURLOPT_SSLCERT, c->certificate_file);
    if (key->data)
        set_blob(curl, CURLOPT_SSLKEY_BLOB, key);
    else if (c->key_file)
        curl_easy_setopt(curl, CURLOPT_SSLKEY, c->key_file);
}

/* With tls-server-name the URL has that name, and the connection still goes to the server's address. */
static int setup_address(const struct kube_client *client, CURL *curl, const char *path, const char *query,
                         struct error *err)
{
    const struct kube_config *c = &client->config;
    _cleanup_free_ char *url = NULL;
    const char *port = server_port(c);
    int length = c->tls_name
                     ? asprintf(&url, "https://%s%s%s%s%s", c->tls_name, port ? port : ":443", path,
                                query ? "?" : "", query ? query : "")
                     : asprintf(&url, "%s%s%s%s", c->server, path, query ? "?" : "", query ? query : "");
    if (length < 0)
        return error_errno(err, -ENOMEM, "%s", path);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    if (!c->tls_name)
        return 0;
    curl_easy_setopt(curl, CURLOPT_CONNECT_TO, client->connect_to);
    return 0;
}

int kube_transfer_setup(struct kube_client *client, CURL *curl, const char *path, const char *query,
                        const struct kube_user *as, struct kube_secrets_copy *secrets,
                        struct curl_slist **headers, struct error *err)
{
    const struct kube_config *c = &client->config;
    const struct kube_user self = {.name = c->as};
    int r = setup_address(client, curl, path, query, err);
    if (r < 0)
        return r;
    setup_tls(c, curl, secrets);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, client->user_agent);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_TIMEOUT_MS);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPIDLE, 15L);
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPINTVL, 5L);
    curl_easy_setopt(curl, CURLOPT_SOCKOPTFUNCTION, watch_peer);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, check_interrupt);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, client);
    if (c->proxy)
        curl_easy_setopt(curl, CURLOPT_PROXY, c->proxy);
    if (secrets->token) {
        _cleanup_free_ char *bearer = NULL;
        if (asprintf(&bearer, "Bearer %s", secrets->token) < 0)
            return error_errno(err, -ENOMEM, "%s", path);
        r = add_header(headers, err, "Authorization", bearer);
        explicit_bzero(bearer, strlen(bearer));
    } else if (c->username) {
        curl_easy_setopt(curl, CURLOPT_USERNAME, c->username);
        curl_easy_setopt(curl, CURLOPT_PASSWORD, c->password ? c->password : "");
    }
    return r < 0 ? r : kube_user_headers(as ? as : c->as ? &self : NULL, headers, err);
}

int kube_transfer_error(struct kube_client *client, CURLcode code, CURL *curl, const char *method,
                        const char *path, unsigned timeout_ms, const char *detail, struct error *err)
{
    const char *server = client->config.server;
    long system_errno = 0;
    curl_easy_getinfo(curl, CURLINFO_OS_ERRNO, &system_errno);
    switch (code) {
    case CURLE_ABORTED_BY_CALLBACK:
        return error_set(err, -ECANCELED, "%s %s: interrupted", method, path);
    case CURLE_COULDNT_RESOLVE_HOST:
        return error_set(err, -EHOSTUNREACH, "%s %s: the name of the API server %s does not resolve", method,
                         path, server);
    case CURLE_COULDNT_CONNECT:
        return error_errno(
            err, system_errno > 0 && system_errno != EINPROGRESS ? -(int)system_errno : -ECONNREFUSED,
            "cannot connect to the API server %s", server);
    case CURLE_OPERATION_TIMEDOUT:
        return error_set(err, -ETIMEDOUT, "%s %s: no answer of the API server %s within %u ms", method, path,
                         server, timeout_ms);
    case CURLE_OUT_OF_MEMORY:
        return error_errno(err, -ENOMEM, "%s %s", method, path);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CONNECT_ERROR:
        return error_set(err, detail && http_client_was_cut(detail) ? -ECONNRESET : -EPROTO, "%s %s: TLS with the API server %s: %s", method, path, server,
                         detail && *detail ? detail : curl_easy_strerror(code));
    default:
        return error_set(
            err,
            code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR ||
                    code == CURLE_PARTIAL_FILE || code == CURLE_HTTP2 || code == CURLE_HTTP2_STREAM
                ? -ECONNRESET
                : -EIO,
            "%s %s at %s: %s", method, path, server, detail && *detail ? detail : curl_easy_strerror(code));
    }
}
