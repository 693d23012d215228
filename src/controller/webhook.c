/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/webhook.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "controller/admission.h"
#include "controller/certificates.h"
#include "kube/informer.h"
#include "lib/http_server.h"
#include "lib/json.h"

#define MANAGER "tidemark-webhook"
#define LOOK_AGAIN_S 3600u /* certificates age without an event */
#define RETRY_S 2u
#define CONFLICTS_MAX 5u
#define VOUCH_MARGIN_NS (2 * NS_PER_SECOND) /* until all API servers have seen a new configuration */
#define PEM_BYTES_MAX (64u << 10)
#define TOKEN_BYTES 65u /* 32 random bytes in hexadecimal digits */
#define TOKEN_FIELD "token"

const struct kube_resource webhook_mutating = {
    "admissionregistration.k8s.io", "v1",  "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration", false, 0};
const struct kube_resource webhook_validating = {
    "admissionregistration.k8s.io",   "v1",  "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration", false, 0};

struct webhook {
    struct kube_client *client;
    const struct log *log;
    char *listen, *namespace;
    char service[300], service_domain[320];
    const char *names[CERTIFICATES_NAMES_MAX];
    struct admission admission;
    struct kube_informers *informers;
    struct http_server *server;
    char *served; /* the certificate that the server shows */
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    bool dirty, stop;
    char token[TOKEN_BYTES]; /* in the path that the API server asks for answers; "": not known yet */
    uint64_t token_ns;       /* boottime: when this process made one; 0: not yet. The thread's own */
    pthread_t thread;
    bool running;
};

/* ---- the server ---- */

/* Who asks for an answer about a history is known from the review alone, and anybody in the cluster can send one: it
 * counts when it came by the path that stands in the webhook's configuration, which users cannot read. Should an API
 * server tell it in an error message, it is another one soon. */
static bool is_of_api_server(struct webhook *w, const char *token)
{
    MUTEX_GUARD(guard, &w->mutex);
    return *w->token && strlen(token) == strlen(w->token) && CRYPTO_memcmp(token, w->token, strlen(token)) == 0;
}

static int handle(void *context, const struct http_request *request, struct http_response *response,
                  struct error *err)
{
    struct webhook *w = context;
    _cleanup_json_ json_t *review = NULL;
    json_t *answer = NULL;
    enum admission_phase phase = ADMISSION_VALIDATE;
    if (strcmp(request->path, "/healthz") == 0) {
        http_response_json(response, 200, json_pack("{s:b}", "ok", 1));
        return 0;
    }
    struct admission admission = w->admission;
    bool trusted = strncmp(request->path, WEBHOOK_MUTATE "/", strlen(WEBHOOK_MUTATE "/")) == 0 &&
                   is_of_api_server(w, request->path + strlen(WEBHOOK_MUTATE "/"));
    admission.untrusted = !trusted;
    if (strncmp(request->path, WEBHOOK_MUTATE, strlen(WEBHOOK_MUTATE)) == 0 &&
        (!request->path[strlen(WEBHOOK_MUTATE)] || request->path[strlen(WEBHOOK_MUTATE)] == '/'))
        phase = ADMISSION_MUTATE;
    else if (strcmp(request->path, "/validate") != 0)
        return error_set(err, -ENOENT, "there is no %s", request->path);
    if (strcmp(request->method, "POST") != 0)
        return http_refuse_method(request, response, "POST", err);
    int r = http_request_json(request, &review, err);
    if (r == 0)
        r = admission_review(&admission, phase, review, &answer, err);
    if (r == 0)
        http_response_json(response, 200, answer);
    return r;
}

/* A new certificate is a new server: they are rare, and the API server connects again. */
static int serve(struct webhook *w, const struct certificates *c, struct error *err)
{
    if (w->served && strcmp(w->served, c->certificate) == 0)
        return 0;
    http_server_stop(w->server);
    w->server = NULL;
    free(w->served);
    w->served = NULL;
    const struct http_server_options options = {.tls_address = w->listen,
                                                .tls_certificate_pem = c->certificate,
                                                .tls_key_pem = c->key,
                                                .log = w->log,
                                                .handler = handle,
                                                .context = w};
    int r = http_server_start(&options, &w->server, err);
    if (r < 0)
        return r;
    log_info(w->log, "the admission webhook answers on %s", w->listen);
    w->served = strdup(c->certificate);
    return w->served ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* ---- the certificates' Secret ---- */

static char *encode(const char *text)
{
    size_t length = strlen(text);
    char *encoded = malloc(length / 3 * 4 + 8);
    if (encoded)
        EVP_EncodeBlock((unsigned char *)encoded, (const unsigned char *)text, (int)length);
    return encoded;
}

/* NULL when it is none. */
static char *decode(const char *text)
{
    size_t length = text ? strlen(text) : 0;
    char *out = length && length % 4 == 0 && length <= PEM_BYTES_MAX ? malloc(length) : NULL;
    int n = out ? EVP_DecodeBlock((unsigned char *)out, (const unsigned char *)text, (int)length) : -1;
    if (n < 0) {
        free(out);
        return NULL;
    }
    out[n - (text[length - 1] == '=') - (text[length - 2] == '=')] = '\0';
    return out;
}

static void read_secret(const json_t *secret, struct certificates *ret)
{
    const json_t *data = json_object_get(secret, "data");
    *ret = (struct certificates){.ca = decode(json_string_value(json_object_get(data, "ca.crt"))),
                                 .ca_key = decode(json_string_value(json_object_get(data, "ca.key"))),
                                 .certificate = decode(json_string_value(json_object_get(data, "tls.crt"))),
                                 .key = decode(json_string_value(json_object_get(data, "tls.key")))};
}

/* A new one at each start, which is when API servers have told the old one, and from time to time. */
static int take_token(struct webhook *w, const json_t *secret, char **ret, bool *ret_fresh, struct error *err)
{
    static const char digits[] = "0123456789abcdef";
    uint64_t now = clock_boottime_ns(clock_system());
    uint8_t random[(TOKEN_BYTES - 1) / 2];
    *ret_fresh = false;
    *ret = decode(json_string_value(json_object_get(json_object_get(secret, "data"), TOKEN_FIELD)));
    if (*ret && strlen(*ret) == TOKEN_BYTES - 1 && w->token_ns && now - w->token_ns < LOOK_AGAIN_S * NS_PER_SECOND)
        return 0;
    free(*ret);
    if (!(*ret = calloc(1, TOKEN_BYTES)) || getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return error_set(err, -ENOMEM, "no memory, or no random bytes, for the webhook's path");
    for (size_t i = 0; i < TOKEN_BYTES - 1; i++)
        (*ret)[i] = digits[i % 2 ? random[i / 2] & 15 : random[i / 2] >> 4];
    *ret_fresh = true;
    return 0;
}

static json_t *make_secret(const struct webhook *w, const struct certificates *c, const char *token,
                           const char *version)
{
    _cleanup_free_ char *ca = encode(c->ca), *ca_key = encode(c->ca_key),
                        *certificate = encode(c->certificate), *key = encode(c->key), *path = encode(token);
    return json_pack("{s:s, s:s, s:s, s:{s:s, s:s, s:s*, s:{s:s}}, s:{s:s, s:s, s:s, s:s, s:s}}", "apiVersion",
                     "v1", "kind", "Secret", "type", "kubernetes.io/tls", "metadata", "name", WEBHOOK_SECRET,
                     "namespace", w->namespace, "resourceVersion", version, "labels",
                     "app.kubernetes.io/name", "tidemark", "data", "ca.crt", ca, "ca.key", ca_key, "tls.crt",
                     certificate, "tls.key", key, TOKEN_FIELD, path);
}

static void set_token(struct webhook *w, const char *token, bool fresh)
{
    MUTEX_GUARD(guard, &w->mutex);
    snprintf(w->token, sizeof w->token, "%s", token);
    if (fresh)
        w->token_ns = clock_boottime_ns(clock_system());
}

/* What the Secret holds, made or renewed when it is due. Release *ret. */
static int take_certificates(struct webhook *w, struct certificates *ret, struct error *err)
{
    const struct kube_target target = {.resource = &kube_secrets,
                                       .namespace = w->namespace,
                                       .name = WEBHOOK_SECRET,
                                       .field_manager = MANAGER};
    uint64_t now = clock_realtime_ns(clock_system());
    for (unsigned i = 0; i < CONFLICTS_MAX; i++) {
        _cleanup_json_ json_t *secret = NULL, *fresh = NULL;
        _cleanup_free_ char *token = NULL;
        struct certificates old = {0}, made = {0};
        bool new_token;
        int r = kube_get(w->client, &target, &secret, err);
        if (r < 0 && r != -ENOENT)
            return r;
        read_secret(secret, &old);
        bool due = certificates_are_due(&old, w->names, now);
        r = take_token(w, secret, &token, &new_token, err);
        if (r == 0 && !due && !new_token) {
            set_token(w, token, false);
            *ret = old;
            return 0;
        }
        if (r == 0 && due)
            r = certificates_renew(&old, w->names, now, &made, err);
        if (r == 0 && !due) {
            made = old;
            old = (struct certificates){0};
        }
        certificates_release(&old);
        if (r < 0)
            return r;
        fresh = make_secret(w, &made, token, kube_object_version(secret));
        r = !fresh   ? error_set(err, -ENOMEM, "out of memory")
            : secret ? kube_update(w->client, &target, fresh, NULL, err)
                     : kube_create(w->client, &target, fresh, NULL, err);
        if (r == 0) {
            if (due)
                log_info(w->log, "made a certificate for the admission webhook, good for %u days",
                         CERTIFICATES_DAYS);
            set_token(w, token, new_token);
            *ret = made;
            return 0;
        }
        certificates_release(&made);
        if (r != -EEXIST && r != -EBUSY && r != -ENOENT) /* else another replica was quicker */
            return error_context(err, "Secret %s/%s", w->namespace, WEBHOOK_SECRET);
    }
    return error_set(err, -EBUSY, "the Secret %s/%s changes all the time", w->namespace, WEBHOOK_SECRET);
}

/* ---- the configurations ---- */

static bool asks_for_history(const json_t *hook)
{
    size_t i, k;
    json_t *rule, *resource;
    json_array_foreach(json_object_get(hook, "rules"), i, rule)
    {
        json_array_foreach(json_object_get(rule, "resources"), k, resource)
        {
            if (json_is_string(resource) && strcmp(json_string_value(resource), "historyreviews") == 0)
                return true;
        }
    }
    return false;
}

/* The operations that give the hook number `i` the path with the token, if it has another one. */
static void patch_path(struct webhook *w, const json_t *hook, size_t i, json_t *patch)
{
    const json_t *client = json_object_get(hook, "clientConfig");
    const char *url = json_string_value(json_object_get(client, "url")),
               *path = json_string_value(json_object_get(json_object_get(client, "service"), "path"));
    const char *is = url ? url : path ? path : "", *at = strstr(is, WEBHOOK_MUTATE);
    char name[64], pointer[96];
    MUTEX_GUARD(guard, &w->mutex);
    if (!asks_for_history(hook) || (url && !at))
        return;
    _cleanup_json_ json_t *wanted =
        json_sprintf("%.*s" WEBHOOK_MUTATE "/%s", url ? (int)(at - url) : 0, url ? url : "", w->token);
    if (wanted && strcmp(json_string_value(wanted), is) == 0)
        return;
    snprintf(name, sizeof name, "/webhooks/%zu/name", i);
    snprintf(pointer, sizeof pointer, "/webhooks/%zu/clientConfig/%s", i, url ? "url" : "service/path");
    json_array_append_new(patch, json_pack("{s:s, s:s, s:O}", "op", "test", "path", name, "value",
                                           json_object_get(hook, "name")));
    json_array_append_new(patch, json_pack("{s:s, s:s, s:O}", "op", "add", "path", pointer, "value", wanted));
}

static int tell_ca(struct webhook *w, const struct kube_resource *resource, const char *ca, struct error *err)
{
    const struct kube_target target = {
        .resource = resource, .name = WEBHOOK_CONFIGURATION, .field_manager = MANAGER};
    _cleanup_json_ json_t *configuration = NULL, *patch = json_array();
    _cleanup_free_ char *encoded = encode(ca);
    size_t i;
    json_t *hook;
    if (!patch || !encoded)
        return error_set(err, -ENOMEM, "out of memory");
    int r = kube_get(w->client, &target, &configuration, err);
    if (r == -ENOENT) {
        log_warning(w->log,
                    "there is no %s %s: nobody asks the admission webhook, and no Recovery is carried out",
                    resource->kind, WEBHOOK_CONFIGURATION);
        return 0; /* once it is there, an event comes */
    }
    json_array_foreach(json_object_get(configuration, "webhooks"), i, hook)
    {
        const char *is =
            json_string_value(json_object_get(json_object_get(hook, "clientConfig"), "caBundle"));
        char name[64], path[96];
        patch_path(w, hook, i, patch);
        if (is && strcmp(is, encoded) == 0)
            continue;
        snprintf(name, sizeof name, "/webhooks/%zu/name", i);
        snprintf(path, sizeof path, "/webhooks/%zu/clientConfig/caBundle", i);
        json_array_append_new(patch, json_pack("{s:s, s:s, s:O}", "op", "test", "path", name, "value",
                                               json_object_get(hook, "name")));
        json_array_append_new(patch,
                              json_pack("{s:s, s:s, s:s}", "op", "add", "path", path, "value", encoded));
    }
    if (r < 0 || json_array_size(patch) == 0)
        return r;
    r = kube_patch(w->client, &target, KUBE_PATCH_JSON, patch, NULL, err);
    if (r == 0)
        log_info(w->log, "%s %s: knows the webhook's CA and path now", resource->kind, WEBHOOK_CONFIGURATION);
    return r == -ENOENT ? 0 : r;
}

static int reconcile(struct webhook *w, struct error *err)
{
    struct certificates c = {0};
    int r = take_certificates(w, &c, err);
    if (r == 0 && (r = tell_ca(w, &webhook_mutating, c.ca, err)) == 0 &&
        (r = tell_ca(w, &webhook_validating, c.ca, err)) == 0)
        r = serve(w, &c, err);
    certificates_release(&c);
    return r;
}

static void *webhook_main(void *context)
{
    struct webhook *w = context;
    pthread_mutex_lock(&w->mutex);
    while (!w->stop) {
        struct error err = ERROR_INIT;
        struct timespec until;
        w->dirty = false;
        pthread_mutex_unlock(&w->mutex);
        int r = reconcile(w, &err);
        if (r < 0 && r != -ECANCELED)
            log_warning(w->log, "admission webhook: %s", err.message);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += r < 0 ? RETRY_S : LOOK_AGAIN_S;
        pthread_mutex_lock(&w->mutex);
        while (!w->stop && !w->dirty && pthread_cond_timedwait(&w->changed, &w->mutex, &until) == 0)
            ;
    }
    pthread_mutex_unlock(&w->mutex);
    return NULL;
}

/* ---- begin and end ---- */

static void on_event(void *context, const struct kube_resource *resource, enum kube_event event,
                     const char *namespace, const char *name, uint64_t version, json_t *object)
{
    struct webhook *w = context;
    (void)resource, (void)event, (void)namespace, (void)name, (void)version, (void)object;
    MUTEX_GUARD(guard, &w->mutex);
    w->dirty = true;
    pthread_cond_signal(&w->changed);
}

static void on_failed(void *context, const struct kube_resource *resource, const struct error *error)
{
    log_warning(((struct webhook *)context)->log, "watching %s: %s", resource->plural, error->message);
}

static int watch(struct webhook *w, const struct kube_resource *resource, const char *namespace,
                 const char *selector, struct error *err)
{
    struct kube_informer *unused;
    const struct kube_informer_options options = {.resource = resource,
                                                  .namespace = namespace,
                                                  .field_selector = selector,
                                                  .keep = KUBE_KEEP_HASH,
                                                  .ops = {NULL, on_event, NULL, NULL, on_failed, w}};
    return kube_informers_add(w->informers, &options, &unused, err);
}

int webhook_start(const struct webhook_options *options, struct webhook **ret, struct error *err)
{
    struct webhook *w = calloc(1, sizeof *w);
    if (!w)
        return error_set(err, -ENOMEM, "out of memory");
    pthread_mutex_init(&w->mutex, NULL);
    thread_cond_init(&w->changed);
    w->client = options->client;
    w->log = options->log;
    w->listen = strdup(options->listen);
    w->namespace = strdup(options->namespace);
    w->admission = (struct admission){
        .ops = &admission_kube, .context = options->client, .home = w->namespace, .history = options->history};
    snprintf(w->service, sizeof w->service, "%s.%s.svc", WEBHOOK_SERVICE, options->namespace);
    snprintf(w->service_domain, sizeof w->service_domain, "%s.cluster.local", w->service);
    w->names[0] = w->service;
    w->names[1] = w->service_domain;
    w->names[2] = "127.0.0.1"; /* of an API server on the same machine */
    int r = w->listen && w->namespace ? kube_informers_new(w->client, w->log, &w->informers, err)
                                      : error_set(err, -ENOMEM, "out of memory");
    if (r == 0 && (r = watch(w, &kube_secrets, w->namespace, "metadata.name=" WEBHOOK_SECRET, err)) == 0 &&
        (r = watch(w, &webhook_mutating, NULL, "metadata.name=" WEBHOOK_CONFIGURATION, err)) == 0 &&
        (r = watch(w, &webhook_validating, NULL, "metadata.name=" WEBHOOK_CONFIGURATION, err)) == 0)
        r = thread_start(&w->thread, "webhook", webhook_main, w, err);
    w->running = r == 0;
    if (r < 0) {
        webhook_stop(w);
        return r;
    }
    *ret = w;
    return 0;
}

void webhook_stop(struct webhook *w)
{
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->stop = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->mutex);
    kube_interrupt(w->client, true);
    if (w->running)
        pthread_join(w->thread, NULL);
    kube_informers_free(w->informers);
    http_server_stop(w->server);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->mutex);
    free(w->served);
    free(w->listen);
    free(w->namespace);
    free(w);
}

/* ---- whether it was asked ---- */

static bool covers_recoveries(const json_t *hook)
{
    const char *failure = json_string_value(json_object_get(hook, "failurePolicy"));
    size_t i, k;
    json_t *rule, *resource;
    if (!failure || strcmp(failure, "Fail") != 0)
        return false;
    json_array_foreach(json_object_get(hook, "rules"), i, rule)
    {
        json_array_foreach(json_object_get(rule, "resources"), k, resource)
        {
            if (strcmp(json_string_value(resource), "recoveries") == 0)
                return json_object_size(json_object_get(hook, "namespaceSelector")) == 0 &&
                       json_object_size(json_object_get(hook, "objectSelector")) == 0 &&
                       json_array_size(json_object_get(hook, "matchConditions")) == 0;
        }
    }
    return false;
}

static uint64_t created_ns(const json_t *object)
{
    const char *text =
        json_string_value(json_object_get(json_object_get(object, "metadata"), "creationTimestamp"));
    struct error unused = ERROR_INIT;
    uint64_t ns = 0;
    return text && clock_parse_rfc3339(text, &ns, &unused) == 0 ? ns : 0;
}

int webhook_vouches(struct kube_client *client, const json_t *recovery, struct error *err)
{
    const struct kube_target target = {.resource = &webhook_mutating, .name = WEBHOOK_CONFIGURATION};
    _cleanup_json_ json_t *configuration = NULL;
    size_t i;
    json_t *hook;
    bool covered = false;
    int r = kube_get(client, &target, &configuration, err);
    if (r < 0 && r != -ENOENT)
        return r;
    json_array_foreach(json_object_get(configuration, "webhooks"), i, hook) covered |=
        covers_recoveries(hook);
    if (!covered)
        return error_set(
            err, -EPERM,
            "nobody vouches for who asked for it: there is no MutatingWebhookConfiguration %s that "
            "covers recoveries with failurePolicy Fail; install the chart anew, and make the recovery "
            "again",
            WEBHOOK_CONFIGURATION);
    if (created_ns(recovery) < created_ns(configuration) + VOUCH_MARGIN_NS)
        return error_set(
            err, -EPERM,
            "nobody vouches for who asked for it: it was made before the MutatingWebhookConfiguration "
            "%s; make the recovery again",
            WEBHOOK_CONFIGURATION);
    return 0;
}
