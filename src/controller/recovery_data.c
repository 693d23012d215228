/* SPDX-License-Identifier: Apache-2.0 */
/* The volumes of a recovery: their point, their plan, the gates, the pods that use them, and putting them
 * back. All that is known of a stream stands in status.streams: {"stream", "node", "claims", "point",
 * "targetLsn", "targetTime", "changedBytes", "beforeLsn"}; whoever carries the recovery on reads it there
 * (R1, R2). */
#include "base/units.h"
#include "controller/recovery_internal.h"

enum { LOOK_MS = 50 };

json_t *recovery_streams(const struct recovery_run *run)
{
    return json_object_get(json_object_get(run->recovery, "status"), "streams");
}

static const char *point_of_streams(const struct recovery_run *run)
{
    return json_text(json_object_get(json_object_get(run->recovery, "status"), "point"), "streams");
}

bool recovery_has_data(const struct recovery_run *run)
{
    return run->c->data && json_array_size(recovery_streams(run)) > 0;
}

void recovery_note_ms(struct recovery_run *run, const char *key, uint64_t ms)
{
    json_t *status = recovery_status(run), *timings = json_object_get(status, "timings");
    if (!timings) {
        timings = json_object();
        json_object_set_new(status, "timings", timings);
    }
    json_object_set_new(timings, key,
                        json_integer(json_integer_value(json_object_get(timings, key)) + (json_int_t)ms));
}

/* ---- the point ---- */

static json_t *note_streams(struct recovery_run *run)
{
    json_t *status = recovery_status(run), *point = json_object_get(status, "point");
    if (!point) {
        point = json_object();
        json_object_set_new(status, "point", point);
    }
    return point;
}

/* "-90s" counts from when the Recovery was made, not from when somebody came to it. */
static int resolve_ago(struct recovery_run *run, const char *asked, char text[RECOVERY_POINT_BYTES],
                       struct error *err)
{
    uint64_t made_ns, ago_ns;
    struct error unused = ERROR_INIT;
    const char *made = json_text(json_object_get(run->recovery, "metadata"), "creationTimestamp");
    if (clock_parse_rfc3339(made, &made_ns, &unused) < 0)
        made_ns = clock_realtime_ns(run->clock);
    int r = units_parse_duration(asked + 1, &ago_ns, err);
    if (r < 0)
        return r;
    if (ago_ns > made_ns)
        return error_set(err, -ERANGE, "%s is before all times", asked);
    clock_format_rfc3339(made_ns - ago_ns, text);
    return 0;
}

/* What another recovery has noted: its objects' LSN, and run->before, its streams. */
static int read_before(struct recovery_run *run, const char *name, json_int_t *ret_lsn, struct error *err)
{
    _cleanup_json_ json_t *other = NULL;
    int r = run->c->store->read(run->c->store_context, run->namespace, name, &other, err);
    if (r == -ENOENT)
        return error_set(
            err, -ENOENT,
            "there is no Recovery %s in namespace %s any more: choose the time just before it instead", name,
            run->namespace);
    if (r < 0)
        return r;
    const json_t *status = json_object_get(other, "status"), *lsn = json_object_get(status, "beforeLsn");
    if (!recovery_is_about(other, run->namespace, run->source_namespace, run->application)) {
        const char *source = json_text(json_object_get(other, "spec"), "sourceNamespace");
        return error_set(err, -ENOENT, "the Recovery %s is about another application: %s/%s", name,
                         *source ? source : run->namespace, json_text(json_object_get(other, "spec"), "application"));
    }
    if (!json_is_integer(lsn))
        return error_set(err, -ENOENT, "the Recovery %s has changed nothing: there is nothing to take back",
                         name);
    if (!recovery_has_ended(other))
        return error_set(err, -EBUSY,
                         "the Recovery %s is under way: cancel it first, or wait until it has ended", name);
    *ret_lsn = json_integer_value(lsn);
    json_decref(run->before);
    run->before = json_incref(json_object_get(status, "streams"));
    return 0;
}

int recovery_resolve_point(struct recovery_run *run, char text[RECOVERY_POINT_BYTES], const char **ret_reason,
                           struct error *err)
{
    const char *asked = json_text(run->spec, "point");
    const json_t *point = json_object_get(json_object_get(run->recovery, "status"), "point");
    json_int_t lsn = 0;
    int r = 0;
    *ret_reason = "PointNotAvailable";
    if (json_is_integer(json_object_get(point, "objectsLsn"))) { /* R2 */
        snprintf(text, RECOVERY_POINT_BYTES, "lsn:%lld",
                 (long long)json_integer_value(json_object_get(point, "objectsLsn")));
        return 0;
    }
    snprintf(text, RECOVERY_POINT_BYTES, "%s", asked);
    if (asked[0] == '-')
        r = resolve_ago(run, asked, text, err);
    else if (strncmp(asked, "before:", 7) == 0)
        r = read_before(run, asked + 7, &lsn, err);
    if (r < 0)
        return r;
    if (lsn)
        snprintf(text, RECOVERY_POINT_BYTES, "lsn:%lld", (long long)lsn);
    const char *of_streams = strncmp(asked, "before:", 7) == 0 ? asked : text;
    json_object_set_new(note_streams(run), "streams", json_string(of_streams));
    return 0;
}

int recovery_note_point(struct recovery_run *run, const struct recovery_point *found, struct error *err)
{
    json_t *point = note_streams(run);
    char time[CLOCK_TEXT_BYTES];
    if (json_object_get(point, "objectsLsn"))
        return 0;
    clock_format_rfc3339(found->realtime_ns, time);
    /* The objects' record is the moment that lsn:N means. */
    if (strncmp(point_of_streams(run), "lsn:", 4) == 0)
        json_object_set_new(point, "streams", json_string(time));
    uint64_t asked_ns;
    struct error unused = ERROR_INIT;
    bool is_time = clock_parse_rfc3339(point_of_streams(run), &asked_ns, &unused) == 0;
    json_object_set_new(point, "time", json_string(is_time ? point_of_streams(run) : time));
    json_object_set_new(point, "note", json_string(found->note));
    return json_object_set_new(point, "objectsLsn", json_integer((json_int_t)found->lsn)) < 0
               ? error_set(err, -ENOMEM, "out of memory")
               : 0;
}

/* ---- the plan ---- */

int recovery_point_of(struct recovery_run *run, const json_t *stream, char text[RECOVERY_POINT_BYTES])
{
    const char *point = point_of_streams(run);
    size_t i;
    json_t *before;
    snprintf(text, RECOVERY_POINT_BYTES, "%s", point);
    if (strcmp(point, "latest") == 0)
        return 1;
    if (strncmp(point, "before:", 7) != 0)
        return 0;
    json_array_foreach(run->before, i, before)
    {
        const json_t *lsn = json_object_get(before, "beforeLsn");
        if (strcmp(json_text(before, "stream"), json_text(stream, "stream")) != 0 ||
            !json_is_integer(lsn))
            continue;
        snprintf(text, RECOVERY_POINT_BYTES, "lsn:%lld", (long long)json_integer_value(lsn));
        return 0;
    }
    return 1; /* that recovery has not touched it */
}

static void note_volumes(struct recovery_run *run, const json_t *stream, const json_t *plan)
{
    json_t *of_run = json_object_get(recovery_status(run), "plan"),
           *volumes = json_object_get(of_run, "volumes"), *handle, *volume;
    const char *claim;
    size_t i;
    if (!volumes) {
        volumes = json_array();
        json_object_set_new(of_run, "volumes", volumes);
    }
    json_object_foreach(json_object_get(stream, "handles"), claim, handle)
    {
        json_int_t bytes = 0;
        json_array_foreach(json_object_get(plan, "volumes"), i, volume)
        {
            if (strcmp(json_text(volume, "name"), json_string_value(handle)) == 0)
                bytes = json_integer_value(json_object_get(volume, "changed_bytes"));
        }
        if (json_array_size(volumes) < RECOVERY_STREAMS_MAX)
            json_array_append_new(volumes, json_pack("{s:s, s:s, s:I}", "claim", claim, "stream",
                                                     json_text(stream, "stream"), "changedBytes", bytes));
    }
}

static int plan_stream(struct recovery_run *run, const json_t *stream, json_t *list, struct error *err)
{
    char point[RECOVERY_POINT_BYTES];
    _cleanup_json_ json_t *plan = NULL;
    json_t *gone = json_object_get(stream, "gone");
    if (recovery_point_of(run, stream, point) > 0) {
        if (json_array_size(gone) == 0)
            return 0;
        snprintf(point, sizeof point, "latest");
    }
    int r = run->c->data->plan(run->c->data_context, stream, point, &plan, err);
    if (r < 0)
        return error_context(err, "stream %s", json_text(stream, "stream"));
    note_volumes(run, stream, plan);
    json_t *entry = json_pack(
        "{s:O, s:O, s:O, s:O*, s:s, s:O, s:O*, s:O}", "stream", json_object_get(stream, "stream"), "node",
        json_object_get(stream, "node"), "claims", json_object_get(stream, "claims"), "gone", gone, "point",
        point, "targetLsn", json_object_get(plan, "target_lsn"), "targetTime",
        json_object_get(plan, "target_time"), "changedBytes", json_object_get(plan, "changed_bytes"));
    return json_array_append_new(list, entry) < 0 ? error_set(err, -ENOMEM, "out of memory") : 0;
}

static bool has_claim(const json_t *claims, const char *name)
{
    size_t i;
    json_t *claim;
    json_array_foreach(claims, i, claim)
    {
        if (name && strcmp(json_string_value(claim), name) == 0)
            return true;
    }
    return false;
}

bool recovery_uses_streams(const struct recovery_run *run, const json_t *pod)
{
    size_t i, k;
    json_t *volume, *stream;
    const char *name = json_text(json_object_get(pod, "metadata"), "name");
    json_array_foreach(json_object_get(json_object_get(pod, "spec"), "volumes"), i, volume)
    {
        const char *claim =
            json_string_value(json_object_get(json_object_get(volume, "persistentVolumeClaim"), "claimName"));
        char ephemeral[520];
        if (json_object_get(volume, "ephemeral")) {
            snprintf(ephemeral, sizeof ephemeral, "%.250s-%.250s", name, json_text(volume, "name"));
            claim = ephemeral;
        }
        json_array_foreach(recovery_streams(run), k, stream)
        {
            if (has_claim(json_object_get(stream, "claims"), claim))
                return true;
        }
    }
    return false;
}

/* A pod without a controller does not come back by itself. */
static int plan_bare_pods(struct recovery_run *run, struct error *err)
{
    for (size_t i = 0; i < run->entry_count; i++) {
        struct recovery_entry *e = &run->entries[i];
        if (e->wave < 1 || strncmp(e->name, "core/v1/Pod/", 12) != 0 ||
            (e->action != ACTION_SAME && e->action != ACTION_CHANGE) ||
            !recovery_uses_streams(run, json_object_get(run->wanted, e->name)))
            continue;
        e->action = ACTION_RECREATE;
        free(e->reason);
        e->reason = strdup("its volumes are put back");
        if (!e->reason)
            return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

/* It goes as soon as no pod uses it, which is in the middle of what is to be done, and its volume with it. */
static int check_leaving(struct recovery_run *run, const json_t *stream, const char **ret_reason, struct error *err)
{
    size_t i;
    json_t *claim;
    json_array_foreach(json_object_get(stream, "claims"), i, claim)
    {
        char name[OBJECT_NAME_BYTES];
        const char *text = json_string_value(claim);
        snprintf(name, sizeof name, "core/v1/PersistentVolumeClaim/%s/%s", run->target_namespace, text);
        if (!json_object_get(json_object_get(json_object_get(run->live, name), "metadata"), "deletionTimestamp"))
            continue;
        *ret_reason = "ClaimTerminating";
        return error_set(err, -EEXIST,
                         "the claim %s is being deleted, and goes with its volume when no pod uses it any more: scale down what uses it, wait until it is "
                         "gone (kubectl -n %s get pvc %s), and make the recovery again, which gives it its volume back",
                         text, run->target_namespace, text);
    }
    return 0;
}

int recovery_read_before(struct recovery_run *run, struct error *err)
{
    json_int_t unused;
    const char *point = point_of_streams(run);
    return strncmp(point, "before:", 7) == 0 && !run->before ? read_before(run, point + 7, &unused, err) : 0;
}

/* Whether the claim gets what a stream has. A clone's may be called otherwise than the stream's. */
static bool has_data(const struct recovery_run *run, const char *claim)
{
    size_t i, k;
    json_t *stream, *volume;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        const json_t *copies = json_object_get(stream, "volumes");
        if (!copies && has_claim(json_object_get(stream, "claims"), claim))
            return true;
        json_array_foreach(copies, k, volume)
        {
            if (strcmp(json_text(volume, "claim"), claim) == 0)
                return true;
        }
    }
    return false;
}

/* Nobody should find out by looking for the data. */
static void note_empty_claims(struct recovery_run *run)
{
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        struct object_id id;
        struct error unused = ERROR_INIT;
        const json_t *spec = json_object_get(json_object_get(run->wanted, e->name), "spec");
        if (e->action == ACTION_CREATE && json_text(spec, "volumeName")[0] &&
            object_id_parse(e->name, &id, &unused) == 0 && strcmp(id.kind, "PersistentVolumeClaim") == 0 &&
            !has_data(run, id.name))
            recovery_note(
                run,
                json_sprintf(
                    "claim %.253s gets an empty volume: what its volume held is in no history of Tidemark",
                    id.name));
    }
}

static int plan_streams(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    _cleanup_json_ json_t *streams = NULL, *list = json_array();
    size_t i;
    json_t *stream;
    *ret_reason = "VolumesNotReachable";
    char owner[RECOVERY_OWNER_BYTES];
    recovery_owner(run, owner);
    int r = run->c->data->streams(run->c->data_context, owner, run->source_namespace, run->target_namespace,
                                  run->application, run->wanted, &streams, err);
    if (r == -EEXIST)
        *ret_reason = "VolumeInUse";
    else if (r == -ENOENT)
        *ret_reason = "VolumesNotAvailable";
    if (r == 0)
        r = recovery_read_before(run, err);
    if (r == 0 && json_array_size(streams) > RECOVERY_STREAMS_MAX)
        r = error_set(
            err, -E2BIG,
            "the application has %zu streams (pods that mount volumes), and a recovery puts back at most %u: "
            "make applications of its parts (label tidemark.io/application)",
            json_array_size(streams), RECOVERY_STREAMS_MAX);
    json_array_foreach(streams, i, stream)
    {
        if (r == 0)
            r = check_leaving(run, stream, ret_reason, err);
        if (r == 0)
            r = plan_stream(run, stream, list, err);
        if (r == -ERANGE || r == -ENOENT)
            *ret_reason = "PointNotAvailable";
    }
    if (r == 0 && json_array_size(list) && json_object_set(recovery_status(run), "streams", list) < 0)
        r = error_set(err, -ENOMEM, "out of memory");
    return r == 0 ? plan_bare_pods(run, err) : r;
}

int recovery_plan_data(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    if (!run->c->data || json_is_true(json_object_get(run->spec, "objectsOnly")))
        return 0;
    int r = run->mode == RESTORE_CLONE ? recovery_plan_copies(run, ret_reason, err)
                                       : plan_streams(run, ret_reason, err);
    if (r == 0)
        note_empty_claims(run);
    return r;
}

/* ---- gates, pods, streams ---- */

void recovery_owner(const struct recovery_run *run, char ret[RECOVERY_OWNER_BYTES])
{
    snprintf(ret, RECOVERY_OWNER_BYTES, "%s/%s", run->namespace, run->name);
}

int recovery_let_streams_go(struct recovery_run *run, struct error *err)
{
    size_t i;
    json_t *stream;
    int r = 0;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        struct error one = ERROR_INIT;
        int code = run->c->data->let_go(run->c->data_context, stream, &one);
        if (code < 0) {
            *err = one;
            r = code;
        }
    }
    return r;
}

int recovery_set_gates(struct recovery_run *run, bool closed, struct error *err)
{
    size_t i;
    json_t *stream;
    int r = 0;
    if (!run->c->data)
        return 0;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        struct error one = ERROR_INIT;
        _cleanup_json_ json_t *done = NULL;
        if (closed && r < 0)
            break;
        /* R5: that one cannot be opened now keeps none of the others closed. */
        int code = run->c->data->gate(run->c->data_context, stream, closed, object_uid(run->recovery), &done, &one);
        if (done) /* from then on `before:` this recovery is a point of the stream, however it ends */
            json_object_set(stream, "beforeLsn", json_object_get(done, "before_lsn"));
        if (code == 0 || (r < 0 && code != -EAGAIN))
            continue;
        *err = one;
        r = error_context(err, "stream %s", json_text(stream, "stream"));
    }
    return r;
}

/* Nobody makes it again but this recovery, which may end before it comes to that (R7). One that has ended is not run twice. */
static int note_bare_pod(struct recovery_run *run, const char *name, const json_t *pod, struct error *err)
{
    const char *phase = json_text(json_object_get(pod, "status"), "phase");
    _cleanup_json_ json_t *former = NULL;
    if (object_noise(pod) || json_object_get(json_object_get(pod, "metadata"), "deletionTimestamp") || strcmp(phase, "Succeeded") == 0 ||
        strcmp(phase, "Failed") == 0)
        return 0;
    int r = recovery_former_of(pod, &former, err);
    return r == 0 ? recovery_note_replaced(run, name, former, err) : r;
}

/* Their controllers make them again, and those wait at the gate. */
int recovery_stop_pods(struct recovery_run *run, struct error *err)
{
    _cleanup_json_ json_t *pods = NULL;
    size_t i;
    json_t *pod;
    int r = run->c->cluster->pods(run->c->cluster_context, run->target_namespace, &pods, err);
    json_array_foreach(pods, i, pod)
    {
        char name[OBJECT_NAME_BYTES];
        struct object_id id;
        if (r < 0 || !recovery_uses_streams(run, pod) || (r = object_identify(pod, &id, err)) < 0 ||
            (r = object_journal_name(&id, name, err)) < 0 || (r = note_bare_pod(run, name, pod, err)) < 0)
            continue;
        r = run->c->cluster->remove(run->c->cluster_context, name, object_uid(pod), NULL, err);
        r = r == -EBUSY ? 0 : r;
    }
    return r;
}

/* One look at each stream, or its beginning. Sets *ret_pending to what is awaited. */
static int look(struct recovery_run *run, bool *ret_pending, struct error *pending, struct error *err)
{
    size_t i;
    json_t *stream;
    *ret_pending = false;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        _cleanup_json_ json_t *done = NULL;
        struct error one = ERROR_INIT;
        if (json_object_get(stream, "rewoundMs")) /* beforeLsn alone: it was put back, and may have failed afterwards */
            continue;
        int r = run->c->data->rewind(run->c->data_context, stream,
                                     (uint64_t)json_integer_value(json_object_get(stream, "targetLsn")),
                                     object_uid(run->recovery), &done, &one);
        if (r == -EAGAIN) {
            *ret_pending = true;
            *pending = one;
            continue;
        }
        if (r < 0) {
            *err = one;
            return error_context(err, "stream %s", json_text(stream, "stream"));
        }
        json_object_set(stream, "beforeLsn", json_object_get(done, "before_lsn"));
        json_object_set(stream, "waitedMs", json_object_get(done, "waited_ms"));
        json_object_set(stream, "rewoundMs", json_object_get(done, "rewound_ms"));
    }
    return 0;
}

void recovery_note_longest(struct recovery_run *run, const char *field, const char *timing)
{
    json_int_t longest = 0;
    size_t i;
    json_t *stream;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        json_int_t ms = json_integer_value(json_object_get(stream, field));
        longest = ms > longest ? ms : longest;
    }
    json_object_del(json_object_get(recovery_status(run), "timings"), timing);
    recovery_note_ms(run, timing, (uint64_t)longest);
}

int recovery_rewind_data(struct recovery_run *run, struct error *err)
{
    struct error pending = ERROR_INIT;
    bool waits = true;
    for (unsigned waited = 0; waited < RECOVERY_TURN_MS; waited += LOOK_MS) {
        int r = look(run, &waits, &pending, err);
        if (r < 0)
            return r;
        if (!waits) {
            recovery_note_longest(run, "waitedMs", "stopMs");
            recovery_note_longest(run, "rewoundMs", "dataMs");
            return 0;
        }
        recovery_pause(run, LOOK_MS);
    }
    *err = pending;
    return -EAGAIN;
}

int recovery_bind_volumes(struct recovery_run *run, struct error *err)
{
    size_t i, k;
    json_t *stream, *name;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        json_array_foreach(json_object_get(stream, "gone"), k, name)
        {
            char journal_name[OBJECT_NAME_BYTES];
            struct object_id id = {.group = "",
                                   .version = "v1",
                                   .kind = "PersistentVolumeClaim",
                                   .namespace = run->target_namespace,
                                   .name = json_string_value(name)};
            int r = object_journal_name(&id, journal_name, err);
            if (r == 0)
                r = run->c->data->bind(run->c->data_context, run->target_namespace,
                                       json_object_get(run->wanted, journal_name), err);
            if (r < 0)
                return error_context(err, "claim %s", id.name);
        }
    }
    return 0;
}
