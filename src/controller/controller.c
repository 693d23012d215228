/* SPDX-License-Identifier: Apache-2.0 */
/* The process's part: the Lease, the key of Secrets, and a term as leader from its beginning to its end. */
#include "controller/controller.h"

#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/thread.h"
#include "base/uuid.h"
#include "controller/controller_internal.h"
#include "kube/lease.h"
#include "lib/json.h"

#define KEY_SECRET "tidemark-object-key"
#define WORKERS 6u
#define POLL_MS 200u
#define TERM_RETRY_MS 3000u
#define RELEASE_TIMEOUT_MS 3000u

struct term {
    struct controller c;
    pthread_t workers[WORKERS];
    size_t worker_count;
};

bool controller_leads(const struct controller *c)
{
    return !c->lease || kube_lease_held(c->lease); /* L1 */
}

int controller_check_leads(const struct controller *c, struct error *err)
{
    return controller_leads(c) ? 0 : error_set(err, -ECANCELED, "this controller is not the leader any more");
}

void controller_enqueue(struct controller *c, const char *namespace, const char *name, unsigned delay_ms)
{
    char key[KUBE_QUEUE_KEY_BYTES];
    struct error err = ERROR_INIT;
    snprintf(key, sizeof key, "%s%s%s", namespace, name ? "/" : "", name ? name : "");
    if (kube_queue_add(c->queue, key, delay_ms, &err) < 0)
        log_error(c->log, "%s: %s", key, err.message);
}

/* ---- the key of Secrets ---- */
static int take_key(struct controller *c, const json_t *secret, struct error *err)
{
    const char *text = json_string_value(json_object_get(json_object_get(secret, "data"), "key"));
    unsigned char key[64];
    int n = text && strlen(text) == 44 ? EVP_DecodeBlock(key, (const unsigned char *)text, 44) : -1;
    if (n != 33) /* 32 bytes and one of padding */
        return error_set(err, -EINVAL,
                         "the Secret %s/%s has no field key with %u bytes: restore it, or delete it and lose "
                         "the journaled Secrets",
                         c->namespace, KEY_SECRET, SEALING_KEY_BYTES);
    int r = sealing_init(&c->sealing, key, err);
    explicit_bzero(key, sizeof key);
    return r;
}

static int load_key(struct controller *c, struct error *err)
{
    _cleanup_json_ json_t *secret = NULL;
    unsigned char key[SEALING_KEY_BYTES], text[48];
    const struct kube_target target = {.resource = &kube_secrets,
                                       .namespace = c->namespace,
                                       .name = KEY_SECRET,
                                       .field_manager = FIELD_MANAGER};
    int r = kube_get(c->client, &target, &secret, err);
    if (r == -ENOENT) {
        if (getrandom(key, sizeof key, 0) != (ssize_t)sizeof key)
            return error_errno(err, -EIO, "no random bytes for the key of Secrets");
        EVP_EncodeBlock(text, key, sizeof key);
        _cleanup_json_ json_t *fresh =
            json_pack("{s:s, s:s, s:{s:s, s:s}, s:s, s:b, s:{s:s}}", "apiVersion", "v1", "kind", "Secret",
                      "metadata", "name", KEY_SECRET, "namespace", c->namespace, "type", CONTROLLER_KEY_TYPE,
                      "immutable", 1, "data", "key", text);
        explicit_bzero(key, sizeof key);
        explicit_bzero(text, sizeof text);
        r = fresh ? kube_create(c->client, &target, fresh, &secret, err)
                  : error_errno(err, -ENOMEM, "key of Secrets");
        if (r == -EEXIST) /* another was quicker */
            r = kube_get(c->client, &target, &secret, err);
        else if (r == 0)
            log_info(c->log,
                     "made the Secret %s/%s: keep a copy of it elsewhere, without it no journaled Secret can "
                     "be read",
                     c->namespace, KEY_SECRET);
    }
    return r < 0 ? error_context(err, "key of Secrets") : take_key(c, secret, err);
}

/* ---- workers ---- */
static int reconcile(struct controller *c, const char *key, struct error *err)
{
    char namespace[KUBE_QUEUE_KEY_BYTES];
    const char *slash = strchr(key, '/');
    if (strcmp(key, KINDS_KEY) == 0)
        return capture_update_kinds(c->capture, err);
    if (strcmp(key, STREAMS_KEY) == 0 && watch_is_synced(c))
        return streams_reconcile(c, err);
    if (!watch_is_synced(c)) { /* judging by half a view would undo what is right */
        controller_enqueue(c, key, NULL, POLL_MS);
        return 0;
    }
    if (!slash)
        return protect_reconcile(c, key, err);
    bool recovery = strncmp(key, RECOVERY_KEY, strlen(RECOVERY_KEY)) == 0,
         checkpoint = strncmp(key, CHECKPOINT_KEY, strlen(CHECKPOINT_KEY)) == 0,
         schedule = strncmp(key, SCHEDULE_KEY, strlen(SCHEDULE_KEY)) == 0;
    if (recovery || checkpoint || schedule)
        key++;
    snprintf(namespace, sizeof namespace, "%.*s", (int)(slash - key), key);
    if (recovery)
        return recovery_reconcile(c, namespace, slash + 1, err);
    if (checkpoint)
        return checkpoint_reconcile(c, namespace, slash + 1, err);
    if (schedule)
        return schedule_reconcile(c, namespace, slash + 1, err);
    return application_reconcile(c, namespace, slash + 1, err);
}

static void *worker_main(void *context)
{
    struct term *t = context;
    char key[KUBE_QUEUE_KEY_BYTES];
    while (kube_queue_get(t->c.queue, key)) {
        struct error err = ERROR_INIT;
        int r = 0;
        /* L1: what is done without the Lease may be done by another too. It may have lapsed, and be renewed next: nothing would add the key again then. When it is
         * lost the queue is closed. */
        if (controller_leads(&t->c))
            r = reconcile(&t->c, key, &err);
        else
            controller_enqueue(&t->c, key, NULL, POLL_MS);
        if (r < 0 && r != -ECANCELED)
            log_warning(t->c.log, "%s: %s", key, err.message);
        kube_queue_done(t->c.queue, key, r < 0 ? KUBE_QUEUE_RETRY : KUBE_QUEUE_OK);
    }
    return NULL;
}

/* ---- a term ---- */
static int term_begin(struct term *t, const struct controller_options *o, const char *directory,
                      struct error *err)
{
    struct controller *c = &t->c;
    int r;
    const struct data_client_options data = {.client = o->client,
                                             .namespace = c->namespace,
                                             .records = o->records,
                                             .records_context = o->records_context,
                                             .classes = o->classes,
                                             .classes_context = o->classes_context,
                                             .certificate = o->agent_certificate,
                                             .key = o->agent_key,
                                             .ca = o->agent_ca,
                                             .log = o->log};
    if ((r = kube_get_release(c->client, 0, &c->release, err)) < 0 ||
        (r = kube_check_release(c->client, &c->release, err)) < 0 || (r = load_key(c, err)) < 0 ||
        (r = o->agent_certificate ? data_client_new(&data, &c->data, err) : 0) < 0 ||
        (r = object_store_new(directory, &c->sealing, o->log, 0, &c->store, err)) < 0 ||
        (r = kube_queue_new(NULL, &c->queue, err)) < 0 ||
        (r = kube_informers_new(o->client, o->log, &c->informers, err)) < 0 ||
        (r = capture_start(c, &c->capture, err)) < 0 || (r = watch_start(c, err)) < 0)
        return r;
    if (c->data)
        controller_enqueue(c, STREAMS_KEY, NULL, STREAMS_SOON_MS);
    for (; t->worker_count < WORKERS && r == 0; t->worker_count += r == 0)
        r = thread_start(&t->workers[t->worker_count], "reconciler", worker_main, t, err);
    return r;
}

static void term_end(struct term *t, const struct controller_options *o)
{
    struct controller *c = &t->c;
    controller_metrics_end(o->metrics);
    if (c->queue)
        kube_queue_close(c->queue);
    kube_interrupt(c->client, true);
    object_store_interrupt(c->store); /* on a full disk nothing is written any more, and all would wait for that */
    for (size_t i = 0; i < t->worker_count; i++)
        pthread_join(t->workers[i], NULL);
    history_end(o->history);
    kube_informers_free(c->informers); /* its callbacks use all the rest */
    kube_interrupt(c->client, false);
    capture_free(c->capture);
    kube_queue_free(c->queue);
    object_store_free(c->store);
    data_client_free(c->data);
    json_decref(c->placements.volumes);
    json_decref(c->placements.told);
    json_decref(c->placements.policies);
    json_decref(c->placements.suspended);
    pthread_mutex_destroy(&c->placements.mutex);
    json_decref(c->held.applications);
    pthread_mutex_destroy(&c->held.mutex);
    json_decref(c->told.messages);
    pthread_mutex_destroy(&c->told.mutex);
    sealing_release(&c->sealing);
}

struct election {
    atomic_bool held;
};
static void on_acquired(void *context)
{
    atomic_store(&((struct election *)context)->held, true);
}
static void on_lost(void *context)
{
    atomic_store(&((struct election *)context)->held, false);
}

static void pause_ms(unsigned ms)
{
    nanosleep(&(struct timespec){ms / 1000, (long)(ms % 1000) * 1000000}, NULL);
}

/* 0, or what makes another term useless. */
static int serve_term(const struct controller_options *o, struct kube_lease *lease, struct election *election,
                      const char *identity, const char *directory, struct error *err)
{
    struct term t = {.c = {.client = o->client,
                           .lease = lease,
                           .log = o->log,
                           .namespace = o->namespace ? o->namespace : CONTROLLER_NAMESPACE,
                           .identity = identity,
                           .placements.mutex = PTHREAD_MUTEX_INITIALIZER,
                           .held.mutex = PTHREAD_MUTEX_INITIALIZER,
                           .told.mutex = PTHREAD_MUTEX_INITIALIZER,
                           .trust_requester = o->trust_requester}};
    int r = term_begin(&t, o, directory, err);
    if (r < 0)
        log_error(o->log, "cannot begin: %s", err->message);
    else {
        history_begin(o->history, &t.c);
        controller_metrics_begin(o->metrics, &t.c);
    }
    while (r == 0 && election->held && !*o->stop)
        pause_ms(POLL_MS);
    term_end(&t, o);
    if (r == -EPROTONOSUPPORT)
        return r;
    for (unsigned waited = 0; r < 0 && waited < TERM_RETRY_MS && !*o->stop; waited += POLL_MS)
        pause_ms(POLL_MS);
    *err = ERROR_INIT;
    return 0;
}

static int make_identity(const struct controller_options *o, char identity[128], struct error *err)
{
    char host[64] = "tidemark", text[UUID_TEXT_BYTES];
    struct uuid uuid;
    int r = uuid_random(&uuid, err);
    if (r < 0)
        return r;
    gethostname(host, sizeof host - 1);
    if (o->identity)
        snprintf(identity, 128, "%s", o->identity);
    else
        snprintf(identity, 128, "%s_%.8s", host, uuid_format(&uuid, text));
    return 0;
}

int controller_run(const struct controller_options *o, struct error *err)
{
    char identity[128];
    _cleanup_free_ char *directory = NULL;
    struct election election = {false};
    struct kube_lease *lease;
    if (asprintf(&directory, "%s/objects", o->state) < 0)
        return error_errno(err, -ENOMEM, "controller");
    const struct kube_lease_options options = {.namespace =
                                                   o->namespace ? o->namespace : CONTROLLER_NAMESPACE,
                                               .name = CONTROLLER_LEASE,
                                               .identity = identity,
                                               .acquired = on_acquired,
                                               .lost = on_lost,
                                               .context = &election,
                                               .log = o->log};
    struct kube_release release;
    struct error away = ERROR_INIT; /* it may come: a term asks again */
    int r = kube_get_release(o->client, RELEASE_TIMEOUT_MS, &release, &away) == 0
                ? kube_check_release(o->client, &release, err)
                : 0;
    if (r < 0 || (r = make_identity(o, identity, err)) < 0 || (r = io_mkdirs(directory, 0700, err)) < 0 ||
        (r = kube_lease_start(o->client, &options, &lease, err)) < 0)
        return r;
    while (r == 0 && !*o->stop) {
        if (election.held)
            r = serve_term(o, lease, &election, identity, directory, err);
        else
            pause_ms(POLL_MS);
    }
    kube_lease_stop(lease);
    return r;
}
