/* SPDX-License-Identifier: Apache-2.0 */
/* The volumes of a clone: each stream of the original, at the point, is copied to a new stream on the same
 * node, and each new volume is there for the clone's claim before that is made. All that is known stands in
 * status.streams: {"stream", "node", "claims", "point", "targetLsn", "targetTime", "changedBytes",
 * "newStream", "volumes": [{"claim", "from", "handle", "sizeBytes"}], "atOnce", "copiedFirst" (why not), "operation",
 * "copiedMs", "filling"} (R1, R2). Of the original nothing is changed. */
#include "controller/recovery_internal.h"

enum { LOOK_MS = 50 };

static const json_t *volume_plan(const json_t *plan, const char *name)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(plan, "volumes"), i, volume)
    {
        if (strcmp(json_text(volume, "name"), name) == 0)
            return volume;
    }
    return NULL;
}

/* plan.volumes, and the sizes into the stream's volumes. */
static void note_volumes(struct recovery_run *run, const json_t *stream, const json_t *plan)
{
    json_t *of_run = json_object_get(recovery_status(run), "plan"),
           *volumes = json_object_get(of_run, "volumes"), *volume;
    size_t i;
    if (!volumes) {
        volumes = json_array();
        json_object_set_new(of_run, "volumes", volumes);
    }
    json_array_foreach(json_object_get(stream, "volumes"), i, volume)
    {
        const json_t *planned = volume_plan(plan, json_text(volume, "from"));
        json_object_set(volume, "sizeBytes", json_object_get(planned, "size_bytes"));
        if (json_array_size(volumes) < RECOVERY_STREAMS_MAX)
            json_array_append_new(volumes,
                                  json_pack("{s:O, s:O, s:I}", "claim", json_object_get(volume, "claim"),
                                            "stream", json_object_get(stream, "stream"), "changedBytes",
                                            json_integer_value(json_object_get(planned, "changed_bytes"))));
    }
}

/* A claim that is bound keeps its volume: there is no place for the copy. */
static int check_claims(struct recovery_run *run, const json_t *stream, const char **ret_reason,
                        struct error *err)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(stream, "volumes"), i, volume)
    {
        char name[OBJECT_NAME_BYTES];
        struct object_id id = {.group = "",
                               .version = "v1",
                               .kind = "PersistentVolumeClaim",
                               .namespace = run->target_namespace,
                               .name = json_text(volume, "claim")};
        _cleanup_json_ json_t *live = NULL;
        int r = object_journal_name(&id, name, err);
        if (r == 0)
            r = run->c->cluster->get(run->c->cluster_context, name, &live, err);
        if (r == -ENOENT) {
            *err = ERROR_INIT;
            continue;
        }
        if (r < 0)
            return r;
        if (!json_text(json_object_get(live, "spec"), "volumeName")[0])
            continue;
        *ret_reason = "ClaimExists";
        return error_set(err, -EEXIST,
                         "namespace %s has a claim %s with a volume of its own already: clone into another "
                         "namespace, or delete the claim",
                         run->target_namespace, id.name);
    }
    return 0;
}

/* The pod template of a workload, or a pod itself; NULL. */
static const json_t *pod_spec_of(const json_t *object)
{
    const json_t *spec = json_object_get(object, "spec"), *job = json_object_get(json_object_get(spec, "jobTemplate"), "spec");
    const json_t *template = json_object_get(job ? job : spec, "template");
    return template ? json_object_get(template, "spec") : strcmp(json_text(object, "kind"), "Pod") == 0 ? spec : NULL;
}

/* Workloads that ask for another node than the one where the clone's data is. */
static void note_other_nodes(struct recovery_run *run, const char *node)
{
    const char *name;
    json_t *object;
    json_object_foreach(run->wanted, name, object)
    {
        const json_t *spec = pod_spec_of(object);
        const char *named = json_text(spec, "nodeName"), *selected = json_text(json_object_get(spec, "nodeSelector"), "kubernetes.io/hostname");
        const char *other = *named ? named : selected;
        bool mounts = json_object_get(spec, "volumes") || json_object_get(json_object_get(object, "spec"), "volumeClaimTemplates");
        if (*other && strcmp(other, node) != 0 && mounts)
            recovery_note(run, json_sprintf("%.200s asks for the node %.200s, and the clone's volumes can be "
                                            "used on node %.200s alone, where the original's are: if "
                                            "it uses them its pods will not start; take the nodeName or "
                                            "nodeSelector away by a transform (patch)",
                                            name, other, node));
    }
}

/* The clone's pods run where its data is. What does not keep it from being made is told before it is. */
static void note_hindrances(struct recovery_run *run, const json_t *stream)
{
    char name[OBJECT_NAME_BYTES];
    _cleanup_json_ json_t *live = NULL;
    struct error ignored = ERROR_INIT;
    const char *id = json_text(stream, "stream"), *node = json_text(stream, "node"), *first = json_text(stream, "copiedFirst");
    const struct recovery_cluster_ops *ops = run->c->cluster;
    if (*first)
        recovery_note(run,
                      json_sprintf("stream %.63s is copied before the clone can be used: %.800s", id, first));
    snprintf(name, sizeof name, "core/v1/Node/_/%.250s", node);
    if ((ops->get_class ? ops->get_class : ops->get)(run->c->cluster_context, name, &live, &ignored) == 0 &&
        json_is_true(json_object_get(json_object_get(live, "spec"), "unschedulable")))
        recovery_note(run, json_sprintf("node %.250s takes no new pods, and the clone's volumes can be used "
                                        "there alone, where the original's are: its pods will "
                                        "wait until it does (kubectl uncordon %.250s)",
                                        node, node));
    note_other_nodes(run, node);
}

static int plan_stream(struct recovery_run *run, const json_t *stream, json_t *list, const char **ret_reason,
                       struct error *err)
{
    char point[RECOVERY_POINT_BYTES];
    _cleanup_json_ json_t *plan = NULL;
    if (recovery_point_of(run, stream, point) > 0)
        snprintf(point, sizeof point, "latest"); /* a copy of what is there */
    int r = check_claims(run, stream, ret_reason, err);
    if (r < 0)
        return r;
    r = run->c->data->plan_copy(run->c->data_context, stream, point, &plan, err);
    if (r == -ENOSPC)
        *ret_reason = "NoSpace";
    else if (r == -ERANGE || r == -ENOENT)
        *ret_reason = "PointNotAvailable";
    if (r < 0)
        return error_context(err, "stream %s", json_text(stream, "stream"));
    note_volumes(run, stream, plan);
    json_t *entry = json_pack(
        "{s:O, s:O, s:O, s:s, s:O, s:O*, s:O, s:O, s:O, s:b, s:O*}", "stream", json_object_get(stream, "stream"), "node",
        json_object_get(stream, "node"), "claims", json_object_get(stream, "claims"), "point", point,
        "targetLsn", json_object_get(plan, "target_lsn"), "targetTime", json_object_get(plan, "target_time"),
        "changedBytes", json_object_get(plan, "changed_bytes"), "newStream",
        json_object_get(stream, "newStream"), "volumes", json_object_get(stream, "volumes"), "atOnce",
        (int)json_is_true(json_object_get(plan, "at_once")), "copiedFirst", json_object_get(plan, "copied_first"));
    note_hindrances(run, entry);
    return json_array_append_new(list, entry) < 0 ? error_set(err, -ENOMEM, "out of memory") : 0;
}

int recovery_plan_copies(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    _cleanup_json_ json_t *streams = NULL, *list = json_array();
    size_t i;
    json_t *stream;
    *ret_reason = "VolumesNotReachable";
    char owner[RECOVERY_OWNER_BYTES];
    recovery_owner(run, owner);
    int r = run->c->data->originals(run->c->data_context, owner, run->source_namespace, run->application,
                                    run->wanted, &streams, err);
    if (r == -ENOENT || r == -EOPNOTSUPP)
        *ret_reason = "VolumesNotAvailable";
    if (r == 0)
        r = recovery_read_before(run, err);
    if (r == 0 && json_array_size(streams) > RECOVERY_STREAMS_MAX)
        r = error_set(err, -E2BIG,
                      "the application has %zu streams (pods that mount volumes), and a clone copies at most "
                      "%u: make applications of its "
                      "parts (label tidemark.io/application)",
                      json_array_size(streams), RECOVERY_STREAMS_MAX);
    json_array_foreach(streams, i, stream)
    {
        if (r == 0)
            r = plan_stream(run, stream, list, ret_reason, err);
    }
    if (r == 0 && json_array_size(list) && json_object_set(recovery_status(run), "streams", list) < 0)
        r = error_set(err, -ENOMEM, "out of memory");
    return r;
}

/* ---- the copies ---- */

/* One look at each stream, or its beginning. */
static int look(struct recovery_run *run, const char *owner, bool *ret_pending, struct error *pending,
                struct error *err)
{
    size_t i;
    json_t *stream;
    *ret_pending = false;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        _cleanup_json_ json_t *done = NULL;
        struct error one = ERROR_INIT;
        if (json_object_get(stream, "copiedMs"))
            continue;
        int r = run->c->data->copy(run->c->data_context, stream, owner, &done, &one);
        if (r == -EAGAIN || r == -EBUSY) {
            *ret_pending = true;
            *pending = one;
            continue;
        }
        if (r < 0) {
            *err = one;
            return error_context(err, "stream %s", json_text(stream, "stream"));
        }
        json_object_set(stream, "copiedMs", json_object_get(done, "copied_ms"));
        json_object_set_new(stream, "atOnce", json_boolean(json_is_true(json_object_get(done, "at_once"))));
        if (*json_text(done, "copied_first"))
            json_object_set(stream, "copiedFirst", json_object_get(done, "copied_first"));
    }
    return 0;
}

int recovery_copy_data(struct recovery_run *run, struct error *err)
{
    struct error pending = ERROR_INIT;
    char owner[RECOVERY_OWNER_BYTES];
    bool waits = true;
    recovery_owner(run, owner);
    for (unsigned waited = 0; waited < RECOVERY_TURN_MS; waited += LOOK_MS) {
        int r = look(run, owner, &waits, &pending, err);
        if (r == 0 && waits && waited == 0)
            r = recovery_write(run, err); /* which operations: whoever carries it on asks for them */
        if (r < 0)
            return r;
        if (!waits) {
            recovery_note_longest(run, "copiedMs", "dataMs");
            return recovery_begin_filling(run, err);
        }
        recovery_pause(run, LOOK_MS);
    }
    *err = pending;
    return -EAGAIN;
}

int recovery_bind_copies(struct recovery_run *run, struct error *err)
{
    size_t i, k;
    json_t *stream, *volume;
    json_array_foreach(recovery_streams(run), i, stream)
    {
        json_array_foreach(json_object_get(stream, "volumes"), k, volume)
        {
            char name[OBJECT_NAME_BYTES];
            struct object_id id = {.group = "",
                                   .version = "v1",
                                   .kind = "PersistentVolumeClaim",
                                   .namespace = run->target_namespace,
                                   .name = json_text(volume, "claim")};
            int r = object_journal_name(&id, name, err);
            if (r == 0)
                r = run->c->data->bind_copy(run->c->data_context, stream, volume, run->source_namespace,
                                            run->target_namespace, json_object_get(run->wanted, name), err);
            if (r < 0)
                return error_context(err, "claim %s", id.name);
        }
    }
    return 0;
}
