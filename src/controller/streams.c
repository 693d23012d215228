/* SPDX-License-Identifier: Apache-2.0 */
/* The streams of volumes, looked at every STREAMS_EVERY_MS: nobody tells when they change. One list of the
 * volumes' records and one question a node serve all applications; each gets streams, rpoMs and oldestTime in
 * its status (a field manager of its own), its streams get what the policy says of the journal (stream_policy.h), and its volumes remember how long their history is to be kept once
 * they are deleted. Then what is due is removed (purge.h). */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/units.h"
#include "controller/controller_internal.h"
#include "controller/purge.h"
#include "controller/recovery.h"
#include "controller/stream_policy.h"
#include "lib/json.h"

#define STREAMS_EVERY_MS 30000u
#define STREAMS_SHOWN 100u
#define STREAMS_MANAGER "tidemark-streams"
#define STREAM_MESSAGE_MAX 400u
#define STREAM_ALARMS_BYTES 1000u

struct round {
    struct controller *c;
    struct csi_volume *all;
    size_t count;
    json_t *nodes; /* {node: {stream: status}}; null: it does not answer */
    json_t *keeps; /* {policy: seconds} */
    json_t *told;  /* {"NAMESPACE/NAME": status}, of those that are there */
    json_t *policies; /* {stream: what its node has taken} */
};

json_t *streams_placement(struct controller *c, const char *handle)
{
    MUTEX_GUARD(guard, &c->placements.mutex);
    return json_deep_copy(json_object_get(c->placements.volumes, handle));
}

json_t *streams_suspended(struct controller *c, const char *stream)
{
    MUTEX_GUARD(guard, &c->placements.mutex);
    return json_incref(json_object_get(c->placements.suspended, stream));
}

/* Whether that is news. What a node that does not answer said last, holds. */
static bool note_suspended(struct controller *c, const json_t *entry)
{
    const char *stream = json_text(entry, "stream"), *state = json_text(entry, "state"), *why = json_text(entry, "message");
    if (strcmp(state, "unreachable") == 0)
        return false;
    MUTEX_GUARD(guard, &c->placements.mutex);
    if (!c->placements.suspended)
        c->placements.suspended = json_object();
    bool was = json_object_get(c->placements.suspended, stream), is = strcmp(state, "suspended") == 0;
    if (is && !was)
        json_object_set_new(c->placements.suspended, stream, json_string_lossy(why));
    else if (!is)
        json_object_del(c->placements.suspended, stream);
    return is != was;
}

/* application.c puts it into the applications' status.volumes. */
static void note_placements(struct round *round)
{
    json_t *volumes = json_object();
    for (size_t i = 0; i < round->count; i++) {
        const struct csi_volume *v = &round->all[i];
        if (*v->stream && !v->deleted_ns)
            json_object_set_new(volumes, v->handle,
                                json_pack("{s:s, s:s}", "stream", v->stream, "node", v->node));
    }
    MUTEX_GUARD(guard, &round->c->placements.mutex);
    json_decref(round->c->placements.volumes);
    round->c->placements.volumes = volumes;
}

/* ---- what a node says ---- */

static const json_t *status_of_stream(struct round *round, const char *node, const char *stream)
{
    json_t *of_node = json_object_get(round->nodes, node), *application;
    _cleanup_json_ json_t *answer = NULL;
    struct error err = ERROR_INIT;
    size_t i;
    if (!of_node) {
        int r = data_client_call(round->c->data, node, "GET", "/v1/status", NULL, DATA_STATUS_TIMEOUT_MS,
                                 &answer, &err);
        if (r < 0)
            log_info(round->c->log, "streams of node %s: %s", node, err.message);
        of_node = r < 0 ? json_null() : json_object();
        json_array_foreach(json_object_get(answer, "applications"), i, application)
            json_object_set(of_node, json_text(application, "name"), application);
        json_object_set_new(round->nodes, node, of_node);
    }
    return json_is_null(of_node) ? NULL : json_object_get(of_node, stream);
}

static void copy_time(json_t *to, const char *key, const json_t *from, const char *name)
{
    if (json_is_string(json_object_get(from, name)))
        json_object_set(to, key, json_object_get(from, name));
}

/* A clone's that is used before it is copied. */
static void add_filling(json_t *entry, const json_t *status)
{
    const json_t *from = json_object_get(status, "copied_from"), *filling = json_object_get(status, "filling");
    if (!json_is_string(from))
        return;
    json_t *told = json_pack("{s:O}", "from", from);
    json_int_t total = json_integer_value(json_object_get(filling, "total_bytes"));
    if (total) {
        json_object_set_new(told, "totalBytes", json_integer(total));
        json_object_set_new(told, "leftBytes", json_integer(total - json_integer_value(json_object_get(filling, "done_bytes"))));
    }
    json_object_set_new(entry, "filling", told);
}

/* Of one that does not stay its message says why, and what to do. */
static void add_alarms(json_t *entry, const json_t *status, const char *state)
{
    char text[STREAM_ALARMS_BYTES] = "";
    size_t i, used = 0;
    json_t *alarm;
    if (strcmp(state, "crash-looping") == 0)
        used += (size_t)snprintf(text, sizeof text, "%s", json_text(status, "message"));
    json_array_foreach(json_object_get(status, "alarms"), i, alarm)
        if (strcmp(state, "crash-looping") != 0 && used < sizeof text)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%s", used ? "; " : "", json_string_value(alarm));
    if (used)
        json_object_set_new(entry, "message", json_string_lossy(text));
}

static json_t *stream_entry(struct round *round, const struct csi_volume *v)
{
    const json_t *status = status_of_stream(round, v->node, v->stream);
    bool answers = !json_is_null(json_object_get(round->nodes, v->node));
    const char *state = status ? json_text(status, "state") : answers ? "starting" : "unreachable";
    json_t *entry = json_pack("{s:s, s:s, s:s}", "stream", v->stream, "node", v->node, "state", state);
    if (json_is_number(json_object_get(status, "rpo_ms")))
        json_object_set_new(
            entry, "rpoMs",
            json_integer((json_int_t)(json_number_value(json_object_get(status, "rpo_ms")) + 0.999)));
    copy_time(entry, "oldestTime", status, "oldest_time");
    copy_time(entry, "latestTime", status, "latest_time");
    add_filling(entry, status);
    add_alarms(entry, status, state);
    return entry;
}

/* ---- the policy of a stream ---- */

static const char *policy_of(const json_t *papp)
{
    const char *name = json_text(json_object_get(json_object_get(papp, "spec"), "policyRef"), "name");
    return *name ? name : "default";
}

static json_t *policy_named(void *context, const char *name)
{
    struct round *round = context;
    return kube_informer_get(round->c->policies, NULL, name);
}

/* The node is told when the policy says something else than what it took, or when the stream has another. */
static void tell_policy(struct round *round, const json_t *papp, const struct csi_volume *v, json_t *entry)
{
    char path[CSI_HANDLE_BYTES + 32], message[ERROR_MESSAGE_BYTES + 300];
    struct error err = ERROR_INIT;
    const json_t *wanted = json_object_get(papp, "spec"), *status = status_of_stream(round, v->node, v->stream);
    const char *policy = policy_of(papp), *history = json_string_value(json_object_get(json_object_get(wanted, "overrides"), "history"));
    _cleanup_json_ json_t *spec = status ? stream_policy(policy_named, round, policy, v->ack_mode, history) : NULL;
    if (!spec)
        return;
    const json_t *taken = json_object_get(round->c->placements.policies, v->stream);
    bool same = taken && json_equal(taken, spec) && strcmp(json_text(status, "policy"), v->stream) == 0;
    _cleanup_json_ json_t *body = json_pack("{s:O}", "spec", spec);
    snprintf(path, sizeof path, "/v1/streams/%s/policy", v->stream);
    int r = same ? 0 : data_client_call(round->c->data, v->node, "POST", path, body, DATA_STATUS_TIMEOUT_MS, NULL, &err);
    if (r == 0) {
        json_object_set(round->policies, v->stream, spec);
        return;
    }
    snprintf(message, sizeof message, "it has not taken the policy '%s' yet: %s", policy, err.message);
    log_warning(round->c->log, "stream %s: %s", v->stream, message);
    message[STREAM_MESSAGE_MAX] = '\0';
    json_object_set_new(entry, "message", json_string_lossy(message));
}

/* ---- how long history is kept ---- */

/* onDelete.keep of the policy, or of the nearest that it extends which says it. */
static uint64_t keep_of_policy(struct round *round, const char *policy)
{
    const json_t *known = json_object_get(round->keeps, policy);
    char name[256];
    uint64_t keep_s = PURGE_KEEP_DEFAULT_S, ns;
    if (known)
        return (uint64_t)json_integer_value(known);
    snprintf(name, sizeof name, "%s", policy);
    for (unsigned i = 0; i < STREAM_POLICY_CHAIN_MAX && *name; i++) {
        struct error ignored = ERROR_INIT;
        _cleanup_json_ json_t *object = kube_informer_get(round->c->policies, NULL, name);
        const json_t *spec = json_object_get(object, "spec");
        const char *keep = json_text(json_object_get(spec, "onDelete"), "keep");
        if (*keep && units_parse_duration(keep, &ns, &ignored) == 0) {
            keep_s = ns / NS_PER_SECOND;
            break;
        }
        snprintf(name, sizeof name, "%s", json_text(spec, "extends"));
    }
    json_object_set_new(round->keeps, policy, json_integer((json_int_t)keep_s));
    return keep_s;
}

/* A clone's own time is none, whatever the policy of the namespace that it is in says. */
static void note_keep(struct round *round, struct csi_volume *v, uint64_t keep_s)
{
    const struct data_client_options *o = data_client_options(round->c->data);
    struct error err = ERROR_INIT;
    if (*v->recovery || !o->records->keep || (v->keep_known && v->keep_s == keep_s))
        return;
    if (o->records->keep(o->records_context, v->handle, keep_s, &err) < 0)
        log_warning(round->c->log, "%s", err.message);
    else {
        v->keep_known = true;
        v->keep_s = keep_s;
    }
}

/* ---- an application ---- */

static struct csi_volume *find_volume(struct round *round, const char *handle)
{
    for (size_t i = 0; i < round->count; i++)
        if (strcmp(round->all[i].handle, handle) == 0 && !round->all[i].deleted_ns)
            return &round->all[i];
    return NULL;
}

static bool has_stream(const json_t *entries, const char *stream)
{
    size_t i;
    json_t *entry;
    json_array_foreach(entries, i, entry)
    {
        if (strcmp(json_text(entry, "stream"), stream) == 0)
            return true;
    }
    return false;
}

/* {"streams", "rpoMs", "oldestTime"}. */
static json_t *sum_up(json_t *entries)
{
    json_t *sum = json_pack("{s:O}", "streams", entries), *entry;
    const char *oldest = "";
    bool rpo_known = json_array_size(entries) > 0;
    json_int_t rpo = 0;
    size_t i;
    json_array_foreach(entries, i, entry)
    {
        const json_t *one = json_object_get(entry, "rpoMs");
        const char *time = json_text(entry, "oldestTime");
        rpo_known = rpo_known && json_is_integer(one);
        rpo = json_integer_value(one) > rpo ? json_integer_value(one) : rpo;
        oldest = strcmp(time, oldest) > 0 ? time : oldest; /* RFC 3339 of one form */
    }
    if (rpo_known)
        json_object_set_new(sum, "rpoMs", json_integer(rpo));
    if (*oldest)
        json_object_set_new(sum, "oldestTime", json_string(oldest));
    return sum;
}

static int write_status(struct round *round, const json_t *papp, json_t *status, struct error *err)
{
    const char *namespace = kube_object_namespace(papp), *name = kube_object_name(papp);
    char key[600];
    snprintf(key, sizeof key, "%s/%s", namespace, name);
    const json_t *told = json_object_get(round->c->placements.told, key);
    if (told && json_equal(told, status)) {
        json_object_set(round->told, key, status);
        return 0;
    }
    int r = application_apply_status(round->c, namespace, name, STREAMS_MANAGER, status, err);
    if (r == 0)
        json_object_set(round->told, key, status);
    return r == -ENOENT ? 0 : r; /* deleted meanwhile */
}

/* Whether its status says of the volume where it is. */
static bool says_place(const json_t *papp, const char *claim, const struct csi_volume *v)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(json_object_get(papp, "status"), "volumes"), i, volume)
    {
        if (strcmp(json_text(volume, "claim"), claim) == 0 && json_is_true(json_object_get(volume, "captured")))
            return strcmp(json_text(volume, "stream"), v->stream) == 0 &&
                   strcmp(json_text(volume, "node"), v->node) == 0;
    }
    return true; /* one of those that are not told */
}

static int look_at_application(struct round *round, const json_t *papp, struct error *err)
{
    _cleanup_json_ json_t *handles = NULL, *entries = json_array();
    const char *claim;
    json_t *handle;
    bool told = true;
    if (json_object_get(json_object_get(papp, "metadata"), "deletionTimestamp"))
        return 0;
    int r = volumes_handles(round->c, kube_object_namespace(papp), application_group(papp), &handles, err);
    uint64_t keep_s = keep_of_policy(round, policy_of(papp));
    json_object_foreach(handles, claim, handle)
    {
        struct csi_volume *v = find_volume(round, json_string_value(handle));
        if (!v)
            continue;
        note_keep(round, v, keep_s);
        told = told && (!*v->stream || says_place(papp, claim, v));
        if (!*v->stream || !*v->node || has_stream(entries, v->stream))
            continue;
        json_t *entry = stream_entry(round, v);
        told = !note_suspended(round->c, entry) && told;
        tell_policy(round, papp, v, entry);
        if (json_array_size(entries) < STREAMS_SHOWN)
            json_array_append(entries, entry);
        json_decref(entry);
    }
    if (!told)
        controller_enqueue(round->c, kube_object_namespace(papp), kube_object_name(papp), 0);
    _cleanup_json_ json_t *status = r == 0 ? sum_up(entries) : NULL;
    return r < 0    ? r
           : status ? write_status(round, papp, status, err)
                    : error_set(err, -ENOMEM, "out of memory");
}

/* ---- what is left of volumes that are gone ---- */

static int goes_on(void *context, const char *recovery, bool *ret, struct error *err)
{
    struct controller *c = context;
    char namespace[CSI_RECOVERY_BYTES];
    _cleanup_json_ json_t *object = NULL;
    const char *slash = strchr(recovery, '/');
    *ret = false;
    if (!slash)
        return 0;
    snprintf(namespace, sizeof namespace, "%.*s", (int)(slash - recovery), recovery);
    const struct kube_target target = {
        .resource = &controller_recoveries, .namespace = namespace, .name = slash + 1};
    int r = kube_get(c->client, &target, &object, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    if (r == 0)
        *ret = !recovery_has_ended(object);
    return r;
}

static int abandoned(void *context, const struct csi_volume *v, bool *ret, struct error *err)
{
    struct controller *c = context;
    const struct kube_target target = {.resource = &kube_volumes, .name = v->name},
                             of_claim = {.resource = &kube_claims,
                                         .namespace = v->claim_namespace,
                                         .name = v->claim_name};
    _cleanup_json_ json_t *known = kube_informer_get(c->claims, v->claim_namespace, v->claim_name),
                          *volume = NULL;
    *ret = false;
    if (known)
        return 0;
    int r = kube_get(c->client, &target, &volume, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        *ret = true;
        return 0;
    }
    /* Others are deleted by whoever deletes such, and come here again then. */
    if (r < 0 || strcmp(json_text(json_object_get(volume, "status"), "phase"), "Available") != 0)
        return r;
    r = kube_get(c->client, &of_claim, NULL, err);
    if (r != -ENOENT)
        return r;
    *err = ERROR_INIT;
    r = kube_delete(c->client, &target, NULL, err);
    if (r == 0)
        log_info(c->log, "volume %s: its clone was not finished; it is deleted", v->handle);
    *ret = r == 0;
    return r;
}

/* What was listed when the round began may be old: a recovery may have brought a volume of it back. */
static int check_unused(struct controller *c, const char *stream, struct error *err)
{
    const struct data_client_options *o = data_client_options(c->data);
    _cleanup_free_ struct csi_volume *all = NULL;
    size_t count = 0;
    int r = o->records->list(o->records_context, &all, &count, err);
    for (size_t i = 0; i < count && r == 0; i++)
        if (strcmp(all[i].stream, stream) == 0 && (!all[i].deleted_ns || *all[i].published_node))
            r = error_set(err, -EBUSY, "volume %s of it is in use again", all[i].handle);
    return r;
}

struct held {
    const char *stream; /* NULL: any */
    json_t *found;      /* pods */
};

/* Attachment pods that were made for recoveries. */
static bool add_held(void *context, json_t *pod)
{
    struct held *h = context;
    const char *stream = kube_object_label(pod, CLASS_STREAM_LABEL);
    if (stream && kube_object_annotation(pod, CLASS_HOLDER_ANNOTATION) && (!h->stream || strcmp(h->stream, stream) == 0))
        json_array_append(h->found, pod);
    return true;
}

static json_t *find_held(struct controller *c, const char *stream)
{
    struct held h = {stream, json_array()};
    kube_informer_each(c->pods, c->namespace, add_held, &h);
    return h.found;
}

static int destroy(void *context, const char *node, const char *stream, struct error *err)
{
    struct controller *c = context;
    int unused = controller_check_leads(c, err);
    if (unused == 0)
        unused = check_unused(c, stream, err);
    _cleanup_json_ json_t *held = unused == 0 ? find_held(c, stream) : NULL;
    if (json_array_size(held))
        unused = error_set(err, -EBUSY, "it is used by the Recovery %s",
                           kube_object_annotation(json_array_get(held, 0), CLASS_HOLDER_ANNOTATION));
    if (unused < 0 || !*node)
        return unused;
    char path[CSI_HANDLE_BYTES + 48];
    struct error gone = ERROR_INIT;
    snprintf(path, sizeof path, "/v1/applications/%s?purge=true", stream);
    int r = data_client_call(c->data, node, "DELETE", path, NULL, DATA_TIMEOUT_MS, NULL, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    /* A node that is no part of the cluster any more, and its disk with it. */
    const struct kube_target target = {.resource = &kube_nodes, .name = node};
    if (r == -EAGAIN && kube_get(c->client, &target, NULL, &gone) == -ENOENT) {
        log_warning(c->log, "stream %s: node %s is gone from the cluster; what it has of it is not removed",
                    stream, node);
        *err = ERROR_INIT;
        return 0;
    }
    return r;
}

static int save_record(void *context, const struct csi_volume *v, struct error *err)
{
    const struct data_client_options *o = data_client_options(((struct controller *)context)->data);
    return o->records->save(o->records_context, v, err);
}

static int forget_record(void *context, const char *handle, struct error *err)
{
    const struct data_client_options *o = data_client_options(((struct controller *)context)->data);
    return o->records->remove(o->records_context, handle, err);
}

/* What recoveries that have ended have left attached. */
static void let_go(struct controller *c)
{
    _cleanup_json_ json_t *pods = find_held(c, NULL);
    size_t i;
    json_t *pod;
    json_array_foreach(pods, i, pod)
    {
        struct error err = ERROR_INIT;
        bool used = true;
        const char *stream = kube_object_label(pod, CLASS_STREAM_LABEL);
        int r = goes_on(c, kube_object_annotation(pod, CLASS_HOLDER_ANNOTATION), &used, &err);
        if (r == 0 && !used)
            r = controller_check_leads(c, &err);
        if (r == 0 && !used)
            r = data_client_let_go(c->data, stream, &err);
        if (r == -EAGAIN)
            controller_enqueue(c, STREAMS_KEY, NULL, STREAMS_SOON_MS);
        else if (r < 0)
            log_warning(c->log, "stream %s stays attached: %s", stream, err.message);
    }
}

/* Its namespace, application and Recovery may be gone: the record is what there is to tell it by. */
static void tell_kept(void *context, const struct csi_volume *v, const char *why)
{
    struct controller *c = context;
    const struct data_client_options *o = data_client_options(c->data);
    char text[CSI_KEPT_BYTES];
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *record = NULL;
    snprintf(text, sizeof text, "%s", why);
    if (!o->records->note_kept || strcmp(v->kept, text) == 0)
        return;
    if (o->records->note_kept(o->records_context, v->handle, text, &record, &err) < 0)
        log_warning(c->log, "%s", err.message);
    else if (record)
        event_record(c, record, "Warning", "HistoryKept", text);
}

static const struct purge_ops purge_ops = {goes_on, abandoned, destroy, save_record, forget_record, tell_kept};

static bool collect(void *context, json_t *papp)
{
    json_array_append(context, papp);
    return true;
}

int streams_reconcile(struct controller *c, struct error *err)
{
    const struct data_client_options *o = data_client_options(c->data);
    _cleanup_json_ json_t *papps = json_array(), *nodes = json_object(), *keeps = json_object();
    json_t *papp;
    _cleanup_free_ struct csi_volume *all = NULL;
    struct round round = {.c = c, .nodes = nodes, .keeps = keeps, .told = json_object(), .policies = json_object()};
    uint64_t next_ns = 0, now_ns = clock_realtime_ns(clock_system());
    size_t i;
    controller_enqueue(c, STREAMS_KEY, NULL, STREAMS_EVERY_MS);
    int r = o->records->list(o->records_context, &all, &round.count, err);
    if (r < 0) {
        json_decref(round.told);
        json_decref(round.policies);
        return r;
    }
    round.all = all;
    note_placements(&round);
    kube_informer_each(c->applications, NULL, collect, papps);
    json_array_foreach(papps, i, papp)
    {
        struct error one = ERROR_INIT;
        if (look_at_application(&round, papp, &one) < 0)
            log_warning(c->log, "streams of %s/%s: %s", kube_object_namespace(papp), kube_object_name(papp),
                        one.message);
    }
    json_t *told = c->placements.told;
    pthread_mutex_lock(&c->placements.mutex); /* controller_metrics.c looks at it */
    c->placements.told = round.told;
    pthread_mutex_unlock(&c->placements.mutex);
    json_decref(told);
    json_decref(c->placements.policies);
    c->placements.policies = round.policies;
    let_go(c);
    purge_run(&purge_ops, c, c->log, all, round.count, now_ns, &next_ns);
    if (next_ns && next_ns > now_ns && next_ns - now_ns < STREAMS_EVERY_MS * NS_PER_MS)
        controller_enqueue(c, STREAMS_KEY, NULL, (unsigned)((next_ns - now_ns) / NS_PER_MS) + 1);
    return 0;
}
