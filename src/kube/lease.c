/* SPDX-License-Identifier: Apache-2.0 */
#include "kube/lease.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "kube/kube_internal.h"
#include "lib/json.h"

#define DEFAULT_DURATION_S 15u
#define DEFAULT_RETRY_MS 2000u
#define RELEASED_S 1 /* duration of a lease that was given back */
#define STATE_BYTES 512

struct kube_lease {
    struct kube_client *client;
    char *namespace, *name, *identity;
    unsigned duration_s, renew_deadline_ms, retry_ms;
    void (*acquired)(void *context);
    void (*lost)(void *context);
    void *context;
    const struct log *log;
    pthread_t thread;
    pthread_mutex_t mutex; /* over what follows */
    pthread_cond_t changed;
    bool stopping, held;
    uint64_t valid_until_ns; /* boottime: the last renewal was begun renew_deadline before */
    /* The thread's own: the lease as this holder wrote it last (NULL: it has to be read), */
    json_t *written;
    /* and what was seen of another holder's lease, and when that was new. */
    char seen[STATE_BYTES];
    uint64_t seen_ns;
};

static uint64_t now_ns(void)
{
    return clock_boottime_ns(clock_system());
}

static json_t *micro_time(void)
{
    char text[CLOCK_TEXT_BYTES];
    return json_string(clock_format_rfc3339(clock_realtime_ns(clock_system()), text));
}

/* Whether the lease may be taken: nobody holds it, or no renewal was seen for its duration. */
static bool is_free(struct kube_lease *l, const json_t *spec)
{
    const char *holder = json_string_value(json_object_get(spec, "holderIdentity"));
    const char *renewed = json_string_value(json_object_get(spec, "renewTime"));
    json_int_t duration = json_integer_value(json_object_get(spec, "leaseDurationSeconds"));
    char state[STATE_BYTES];
    if (!holder || !*holder || strcmp(holder, l->identity) == 0)
        return true;
    snprintf(state, sizeof state, "%s %s %lld", holder, renewed ? renewed : "", (long long)duration);
    if (strcmp(state, l->seen) != 0) {
        memcpy(l->seen, state, sizeof state);
        l->seen_ns = now_ns();
    }
    return now_ns() >= l->seen_ns + (uint64_t)(duration > 0 ? duration : DEFAULT_DURATION_S) * NS_PER_SECOND;
}

static int create(struct kube_lease *l, const struct kube_target *target, struct error *err)
{
    _cleanup_json_ json_t *lease = json_pack(
        "{s:s, s:s, s:{s:s, s:s}, s:{s:s, s:i, s:o, s:o, s:i}}", "apiVersion", "coordination.k8s.io/v1",
        "kind", "Lease", "metadata", "name", l->name, "namespace", l->namespace, "spec", "holderIdentity",
        l->identity, "leaseDurationSeconds", (int)l->duration_s, "acquireTime", micro_time(), "renewTime",
        micro_time(), "leaseTransitions", 0);
    return lease ? kube_create(l->client, target, lease, NULL, err)
                 : error_errno(err, -ENOMEM, "lease %s", l->name);
}

/* One try to take or renew it. -EBUSY: another holds it. The resourceVersion makes it atomic, also of what
 * was not read again: one call renews it as long as nobody else has written it. */
static int take(struct kube_lease *l, struct error *err)
{
    _cleanup_json_ json_t *lease = take_ptr(l->written);
    const bool remembered = lease;
    json_t *spec = NULL;
    const struct kube_target target = {.resource = &kube_leases,
                                       .namespace = l->namespace,
                                       .name = l->name,
                                       .timeout_ms = l->renew_deadline_ms / 2};
    int r = remembered ? 0 : kube_get(l->client, &target, &lease, err);
    if (r == -ENOENT)
        return create(l, &target, err);
    if (r < 0 || (r = json_get_object(lease, "spec", &spec, err)) < 0)
        return r;
    const char *holder = json_string_value(json_object_get(spec, "holderIdentity"));
    if (!is_free(l, spec))
        return error_set(err, -EBUSY, "lease %s/%s is held by %s", l->namespace, l->name, holder);
    if (!holder || strcmp(holder, l->identity) != 0) {
        json_int_t transitions = json_integer_value(json_object_get(spec, "leaseTransitions"));
        json_object_set_new(spec, "acquireTime", micro_time());
        json_object_set_new(spec, "leaseTransitions", json_integer(transitions + 1));
    }
    json_object_set_new(spec, "holderIdentity", json_string(l->identity));
    json_object_set_new(spec, "leaseDurationSeconds", json_integer(l->duration_s));
    json_object_set_new(spec, "renewTime", micro_time());
    r = kube_update(l->client, &target, lease, &l->written, err);
    if (remembered && (r == -EBUSY || r == -ENOENT)) {
        *err = ERROR_INIT;
        return take(l, err); /* as it is now */
    }
    return r == -EBUSY ? error_set(err, -EAGAIN, "lease %s/%s was changed meanwhile", l->namespace, l->name)
                       : r;
}

static void give_back(struct kube_lease *l)
{
    _cleanup_json_ json_t *lease = NULL;
    json_t *spec = NULL;
    struct error err = ERROR_INIT;
    const struct kube_target target = {.resource = &kube_leases,
                                       .namespace = l->namespace,
                                       .name = l->name,
                                       .timeout_ms = l->renew_deadline_ms / 2};
    if (kube_get(l->client, &target, &lease, &err) < 0 || json_get_object(lease, "spec", &spec, &err) < 0)
        return;
    const char *holder = json_string_value(json_object_get(spec, "holderIdentity"));
    if (!holder || strcmp(holder, l->identity) != 0)
        return;
    json_object_set_new(spec, "holderIdentity", json_string(""));
    json_object_set_new(spec, "leaseDurationSeconds", json_integer(RELEASED_S));
    if (kube_update(l->client, &target, lease, NULL, &err) < 0)
        log_warning(l->log, "the lease %s could not be given back: %s", l->name, err.message);
}

/* Waits for `ms` or the stop; true: stop. The mutex is held. */
static bool wait_locked(struct kube_lease *l, unsigned ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + ms * NS_PER_MS;
    until.tv_sec += (time_t)(ns / NS_PER_SECOND);
    until.tv_nsec = (long)(ns % NS_PER_SECOND);
    while (!l->stopping)
        if (pthread_cond_timedwait(&l->changed, &l->mutex, &until) == ETIMEDOUT)
            break;
    return l->stopping;
}

/* One round: tries, and tells what changed. */
static void round_of(struct kube_lease *l)
{
    struct error err = ERROR_INIT;
    uint64_t begun = now_ns(); /* before the call: the server's renewTime is not earlier */
    int r = take(l, &err);
    bool was, is;
    {
        MUTEX_GUARD(guard, &l->mutex);
        was = l->held;
        if (r == 0)
            l->valid_until_ns = begun + l->renew_deadline_ms * NS_PER_MS;
        /* Another one's name in it is certain; any other failure may pass until the deadline (L1). */
        is = r == 0 || (was && r != -EBUSY && now_ns() < l->valid_until_ns);
        l->held = is;
    }
    if (!was && is) {
        log_info(l->log, "%s holds the lease %s/%s", l->identity, l->namespace, l->name);
        l->acquired(l->context);
    } else if (was && !is) {
        log_warning(l->log, "%s lost the lease %s/%s: %s", l->identity, l->namespace, l->name, err.message);
        l->lost(l->context);
    } else if (r < 0 && r != -EBUSY) {
        log_warning(l->log, "lease %s/%s: %s", l->namespace, l->name, err.message);
    }
}

static void *lease_main(void *context)
{
    struct kube_lease *l = context;
    for (;;) {
        round_of(l);
        MUTEX_GUARD(guard, &l->mutex);
        /* While it is held the rhythm is exact; those who wait for it come at different times. */
        if (wait_locked(l, l->held ? l->retry_ms : l->retry_ms + kube_random(l->retry_ms / 5 + 1)))
            break;
    }
    if (l->held)
        give_back(l);
    return NULL;
}

static void lease_free(struct kube_lease *l)
{
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->mutex);
    json_decref(l->written);
    free(l->namespace);
    free(l->name);
    free(l->identity);
    free(l);
}

int kube_lease_start(struct kube_client *client, const struct kube_lease_options *o, struct kube_lease **ret,
                     struct error *err)
{
    struct kube_lease *l = calloc(1, sizeof *l);
    if (!l)
        return error_errno(err, -ENOMEM, "lease %s", o->name);
    thread_cond_init(&l->changed);
    pthread_mutex_init(&l->mutex, NULL);
    l->client = client;
    l->namespace = strdup(o->namespace);
    l->name = strdup(o->name);
    l->identity = strdup(o->identity);
    l->duration_s = o->duration_s ? o->duration_s : DEFAULT_DURATION_S;
    l->renew_deadline_ms = o->renew_deadline_ms ? o->renew_deadline_ms : l->duration_s * 1000 * 2 / 3;
    l->retry_ms = o->retry_ms ? o->retry_ms : DEFAULT_RETRY_MS;
    l->acquired = o->acquired;
    l->lost = o->lost;
    l->context = o->context;
    l->log = o->log;
    int r = 0;
    if (!l->namespace || !l->name || !l->identity)
        r = error_errno(err, -ENOMEM, "lease %s", o->name);
    else if (l->renew_deadline_ms >= l->duration_s * 1000 || l->retry_ms >= l->renew_deadline_ms)
        r = error_set(
            err, -EINVAL,
            "lease %s: the retry time must be below the renew deadline, and that below the duration",
            o->name);
    else
        r = thread_start(&l->thread, "kube-lease", lease_main, l, err);
    if (r < 0) {
        lease_free(l);
        return r;
    }
    *ret = l;
    return 0;
}

void kube_lease_stop(struct kube_lease *l)
{
    if (!l)
        return;
    {
        MUTEX_GUARD(guard, &l->mutex);
        l->stopping = true;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_join(l->thread, NULL);
    lease_free(l);
}

bool kube_lease_held(struct kube_lease *l)
{
    MUTEX_GUARD(guard, &l->mutex);
    return l->held && now_ns() < l->valid_until_ns;
}
