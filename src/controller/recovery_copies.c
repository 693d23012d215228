/* SPDX-License-Identifier: Apache-2.0 */
/* The copies of volumes that a clone makes (struct data_ops), over the node agents: a new stream beside the
 * one that is copied. The record of a new volume is there before anything of it is made, as one of a deleted
 * volume that names its Recovery: what becomes of it when that ends before its persistent volume is made,
 * purge.c finds. The context is struct controller. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/units.h"
#include "base/uuid.h"
#include "controller/controller_internal.h"
#include "controller/recovery_streams.h"
#include "lib/json.h"

#define WHY_BYTES 512

/* ---- which volumes ---- */

/* A copy can only be of a class of ours. */
static int check_class(struct controller *c, const json_t *claim, struct error *err)
{
    const char *class = json_text(json_object_get(claim, "spec"), "storageClassName");
    _cleanup_json_ json_t *of_class = *class ? kube_informer_get(c->classes, NULL, class) : NULL;
    if (!of_class || strcmp(json_text(of_class, "provisioner"), CSI_DRIVER) == 0)
        return 0;
    return error_set(err, -EOPNOTSUPP,
                     "the claim %s would be of class %s, whose volumes %s makes: the data cannot be put "
                     "there; leave the class as it is, or, "
                     "for empty volumes, objectsOnly: true",
                     kube_object_name(claim), class, json_text(of_class, "provisioner"));
}

/* Whose a volume is, the volume itself says, or what the driver was told when it was made; a claim may name any. */
static bool is_of_namespace(const json_t *volume, const struct csi_volume *v, const char *namespace)
{
    const json_t *of = json_object_get(json_object_get(volume, "spec"), "claimRef");
    return strcmp(of ? json_text(of, "namespace") : v->claim_namespace, namespace) == 0;
}

/* The volume that a claim of the point had; "": none of ours. */
static int find_original(struct controller *c, const char *namespace, const json_t *claim,
                         const struct csi_volume *all, size_t count, char ret[CSI_HANDLE_BYTES], struct error *err)
{
    const json_t *spec = json_object_get(claim, "spec");
    const char *name = json_text(spec, "volumeName"), *class = json_text(spec, "storageClassName");
    *ret = '\0';
    if (!*name)
        return 0;
    _cleanup_json_ json_t *volume = kube_informer_get(c->volumes, NULL, name), *of_class = NULL;
    const json_t *csi = json_object_get(json_object_get(volume, "spec"), "csi");
    const char *handle = strcmp(json_text(csi, "driver"), CSI_DRIVER) == 0 ? json_text(csi, "volumeHandle") : "";
    for (size_t i = 0; i < count; i++)
        if (strcmp(all[i].name, name) == 0 || strcmp(all[i].handle, handle) == 0) {
            if (!is_of_namespace(volume, &all[i], namespace))
                return error_set(err, -ENOENT,
                                 "the claim %s names the volume %s, which is none of the namespace %s: it is not copied; with "
                                 "objectsOnly: true the objects alone are, and the claim gets an empty volume",
                                 kube_object_name(claim), name, namespace);
            snprintf(ret, CSI_HANDLE_BYTES, "%s",
                     *all[i].stream ? all[i].handle : ""); /* never attached: empty */
            return *ret ? check_class(c, claim, err) : 0;
        }
    of_class = *class ? kube_informer_get(c->classes, NULL, class) : NULL;
    if (volume || strcmp(json_text(of_class, "provisioner"), CSI_DRIVER) != 0)
        return 0; /* somebody else's: it is made new */
    return error_set(err, -ENOENT,
                     "nothing is known of the volume %s of claim %s any more: its data cannot be cloned; "
                     "with objectsOnly: true the "
                     "objects alone are, and the claim gets an empty volume",
                     name, kube_object_name(claim));
}

/* An application that is a group does not journal all its claims: those that are there count. */
static int add_of_group(struct controller *c, const char *namespace, const char *application, json_t *chosen,
                        struct error *err)
{
    _cleanup_json_ json_t *papp = kube_informer_get(c->applications, namespace, application), *handles = NULL;
    const char *claim, *known, *group = papp ? application_group(papp) : NULL;
    json_t *handle, *other;
    int r = group ? volumes_handles(c, namespace, group, &handles, err) : 0;
    json_object_foreach(handles, claim, handle)
    {
        bool there = json_object_get(chosen, claim);
        json_object_foreach(chosen, known, other) there |= json_equal(handle, other);
        if (!there)
            json_object_set(chosen, claim, handle);
    }
    return r;
}

/* Names of what is to be made. */
static int name_copies(json_t *stream, struct error *err)
{
    const char *claim, *first = NULL;
    json_t *handle, *volumes = json_array();
    json_object_set_new(stream, "volumes", volumes);
    json_object_foreach(json_object_get(stream, "handles"), claim, handle)
    {
        struct uuid uuid;
        char text[UUID_TEXT_BYTES];
        int r = uuid_random(&uuid, err);
        if (r < 0)
            return r;
        json_t *one = json_pack("{s:s, s:O, s:o}", "claim", claim, "from", handle, "handle",
                                json_sprintf("tm-%s", uuid_format(&uuid, text)));
        if (json_array_append_new(volumes, one) < 0)
            return error_set(err, -ENOMEM, "out of memory");
        first = first ? first : json_text(one, "handle");
    }
    json_object_set_new(stream, "newStream", json_string(first ? first : ""));
    return 0;
}

int recovery_originals(void *context, const char *owner, const char *namespace, const char *application, const json_t *wanted,
                       json_t **ret, struct error *err)
{
    struct controller *c = context;
    const struct data_client_options *o = data_client_options(c->data);
    _cleanup_json_ json_t *claims = recovery_claims_of_set(wanted), *chosen = json_object(), *streams = NULL;
    _cleanup_free_ struct csi_volume *all = NULL;
    size_t count = 0, i;
    const char *name;
    json_t *claim, *stream;
    int r = o->records->list(o->records_context, &all, &count, err);
    json_object_foreach(claims, name, claim)
    {
        char handle[CSI_HANDLE_BYTES] = "";
        if (r == 0)
            r = find_original(c, namespace, claim, all, count, handle, err);
        if (r == 0 && *handle)
            json_object_set_new(chosen, name, json_string(handle));
    }
    if (r == 0)
        r = add_of_group(c, namespace, application, chosen, err);
    if (r == 0)
        r = data_client_streams(c->data, chosen, owner, &streams, err);
    json_array_foreach(streams, i, stream)
    {
        if (r == 0)
            r = name_copies(stream, err);
    }
    if (r == 0)
        *ret = json_incref(streams);
    return r;
}

/* ---- the copy ---- */

static int call(struct controller *c, const json_t *stream, const char *method, const char *path,
                const json_t *body, json_t **ret, struct error *err)
{
    int r = controller_check_leads(c, err);
    return r < 0 ? r
                 : data_client_call(c->data, json_text(stream, "node"), method, path, body, DATA_TIMEOUT_MS, ret, err);
}

static json_t *request_of(const json_t *stream, const char *point, bool at_once, bool dry_run)
{
    json_t *names = json_object(), *volume;
    size_t i;
    json_array_foreach(json_object_get(stream, "volumes"), i, volume)
        json_object_set(names, json_text(volume, "from"), json_object_get(volume, "handle"));
    json_t *body = json_pack("{s:O, s:s, s:o, s:b}", "name", json_object_get(stream, "newStream"), "point", point,
                             "volumes", names, "dry_run", (int)dry_run);
    if (body && at_once)
        json_object_set_new(body, "at_once", json_true());
    return body;
}

static int post_once(struct controller *c, const json_t *stream, const char *point, bool at_once, bool dry_run, json_t **ret, struct error *err)
{
    char path[CSI_HANDLE_BYTES + 40];
    _cleanup_json_ json_t *body = request_of(stream, point, at_once, dry_run);
    snprintf(path, sizeof path, "/v1/applications/%s/clone", json_text(stream, "stream"));
    return body ? call(c, stream, "POST", path, body, ret, err) : error_set(err, -ENOMEM, "out of memory");
}

/* A copy of volumes of backing class does not move with its pods as they do. */
static void add_place(struct controller *c, const json_t *stream, char why[WHY_BYTES])
{
    const struct data_client_options *o = data_client_options(c->data);
    struct csi_volume from;
    struct error ignored = ERROR_INIT;
    const char *handle = json_text(json_array_get(json_object_get(stream, "volumes"), 0), "from");
    size_t used = strlen(why);
    if (o->records->load(o->records_context, handle, &from, &ignored) == 0 && strcmp(from.backing, "class") == 0)
        snprintf(why + used, WHY_BYTES - used, "; the clone's own volumes are files of node %.100s, and its pods run there alone", json_text(stream, "node"));
}

/* What a data plane from before `at_once` says to it. */
static bool is_unknown(const struct error *err)
{
    return err->code == -EINVAL && strstr(err->message, "unknown field 'at_once'");
}

/* A node's data plane is replaced when nothing there is mounted: one of before stays while the controller is new. Then the copy is waited
 * for: *at_once is false, and `why` says it; else `why` is as it was. */
static int post_clone(struct controller *c, const json_t *stream, const char *point, bool *at_once, char why[WHY_BYTES], bool dry_run,
                      json_t **ret, struct error *err)
{
    int r = post_once(c, stream, point, *at_once, dry_run, ret, err);
    if (r == 0 || !*at_once || !is_unknown(err))
        return r;
    *err = ERROR_INIT;
    *at_once = false;
    snprintf(why, WHY_BYTES,
             "the data plane of node %.200s is of an older release, which has to copy first: drain the node and delete its pod of the DaemonSet "
             "tidemark-data, and the new one comes",
             json_text(stream, "node"));
    return post_once(c, stream, point, false, dry_run, ret, err);
}

int recovery_plan_copy(void *context, const json_t *stream, const char *point, json_t **ret,
                       struct error *err)
{
    _cleanup_json_ json_t *answer = NULL, *volumes = json_array();
    json_t *volume;
    size_t i;
    char why[WHY_BYTES] = "";
    bool at_once = true;
    int r = post_clone(context, stream, point, &at_once, why, true, &answer, err);
    if (r < 0)
        return r;
    const json_t *plan = json_object_get(answer, "plan");
    if (at_once && !json_is_true(json_object_get(plan, "at_once"))) {
        at_once = false;
        snprintf(why, sizeof why, "%.280s", json_text(plan, "copied_first"));
        add_place(context, stream, why);
    }
    json_array_foreach(json_object_get(plan, "volumes"), i, volume)
        json_array_append_new(volumes, json_pack("{s:O, s:O, s:O}", "name", json_object_get(volume, "from"),
                                                 "changed_bytes", json_object_get(volume, "bytes"),
                                                 "size_bytes", json_object_get(volume, "size_bytes")));
    *ret = json_pack("{s:O, s:O, s:O, s:O, s:b, s:o*}", "target_lsn", json_object_get(plan, "lsn"), "target_time",
                     json_object_get(plan, "time"), "changed_bytes", json_object_get(plan, "bytes"),
                     "volumes", volumes, "at_once", (int)at_once, "copied_first", *why ? json_string_lossy(why) : NULL);
    return *ret ? 0
                : error_set(err, -EPROTO, "the plan of stream %s lacks fields", json_text(stream, "stream"));
}

/* R1 of the copies: known before they are made. */
static int note_records(struct controller *c, const json_t *stream, const char *owner, struct error *err)
{
    const struct data_client_options *o = data_client_options(c->data);
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(stream, "volumes"), i, volume)
    {
        struct csi_volume v, from;
        struct error absent = ERROR_INIT;
        const char *handle = json_text(volume, "handle");
        int r = o->records->load(o->records_context, handle, &v, &absent);
        if (r == 0)
            continue;
        if (r != -ENOENT) {
            *err = absent;
            return r;
        }
        r = o->records->load(o->records_context, json_text(volume, "from"), &from, err);
        if (r < 0)
            return error_context(err, "the volume of the original");
        v = (struct csi_volume){.size_bytes =
                                    (uint64_t)json_integer_value(json_object_get(volume, "sizeBytes")),
                                .deleted_ns = clock_realtime_ns(clock_system())};
        snprintf(v.backing, sizeof v.backing, "host"); /* files beside the original's engine, whatever carries that */
        memcpy(v.ack_mode, from.ack_mode, sizeof v.ack_mode);
        snprintf(v.handle, sizeof v.handle, "%s", handle);
        snprintf(v.name, sizeof v.name, "%s", handle);
        snprintf(v.node, sizeof v.node, "%s", json_text(stream, "node"));
        snprintf(v.stream, sizeof v.stream, "%s", json_text(stream, "newStream"));
        snprintf(v.recovery, sizeof v.recovery, "%s", owner);
        r = o->records->save(o->records_context, &v, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* What became of the operation: 0 done, -EAGAIN under way. */
static int judge(json_t *stream, const json_t *operation, json_t **ret, struct error *err)
{
    const char *state = json_text(operation, "state");
    if (strcmp(state, "failed") == 0) {
        json_object_del(stream, "operation"); /* what passes by itself is tried anew */
        struct error why = ERROR_INIT;
        int r = json_to_error(operation, -EIO, "the copy has failed", &why);
        *err = why;
        return r;
    }
    if (strcmp(state, "succeeded") == 0) {
        json_object_del(stream, "operation");
        const json_t *result = json_object_get(operation, "result");
        double ms = json_number_value(json_object_get(result, "clone_ms"));
        *ret = json_pack("{s:I, s:b, s:O*}", "copied_ms", (json_int_t)ms, "at_once", (int)json_is_true(json_object_get(result, "at_once")),
                         "copied_first", json_object_get(result, "copied_first"));
        return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
    }
    const json_t *progress = json_object_get(operation, "progress");
    json_int_t done = json_integer_value(json_object_get(progress, "done")),
               total = json_integer_value(json_object_get(progress, "total"));
    char text[UNITS_TEXT_BYTES];
    json_object_set(stream, "operation", json_object_get(operation, "id"));
    if (total <= 0)
        return error_set(err, -EAGAIN, "stream %s is being copied", json_text(stream, "stream"));
    return error_set(err, -EAGAIN, "stream %s is being copied: %d %% of %s", json_text(stream, "stream"),
                     (int)(100 * done / total), units_format_bytes((uint64_t)total, text));
}

/* It is there already: made by an operation whose end nobody saw. */
static int check_made(struct controller *c, const json_t *stream, json_t **ret, struct error *err)
{
    char path[CSI_HANDLE_BYTES + 32], from[2 * CSI_HANDLE_BYTES + 32];
    _cleanup_json_ json_t *answer = NULL;
    snprintf(path, sizeof path, "/v1/status?app=%s", json_text(stream, "newStream"));
    int r = call(c, stream, "GET", path, NULL, &answer, err);
    if (r < 0)
        return r;
    const json_t *application = json_array_get(json_object_get(answer, "applications"), 0);
    const char *has = json_text(json_array_get(json_object_get(application, "volumes"), 0), "from");
    snprintf(from, sizeof from, "%s/", json_text(stream, "stream"));
    if (strncmp(has, from, strlen(from)) != 0)
        return error_set(err, -EEXIST, "node %s has a stream %s that is no copy of %s",
                         json_text(stream, "node"), json_text(stream, "newStream"), json_text(stream, "stream"));
    *ret = json_pack("{s:i, s:b}", "copied_ms", 0, "at_once", (int)json_is_string(json_object_get(application, "copied_from")));
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int recovery_copy(void *context, json_t *stream, const char *owner, json_t **ret, struct error *err)
{
    struct controller *c = context;
    char path[64], point[32];
    const char *id = json_text(stream, "operation");
    char why[WHY_BYTES] = "";
    bool at_once = json_is_true(json_object_get(stream, "atOnce"));
    _cleanup_json_ json_t *answer = NULL;
    int r;
    if (*id && strlen(id) < 32 && !strchr(id, '/')) {
        snprintf(path, sizeof path, "/v1/operations/%s", id);
        r = call(c, stream, "GET", path, NULL, &answer, err);
        if (r == 0)
            return judge(stream, json_object_get(answer, "operation"), ret, err);
        if (r != -ENOENT)
            return r;
        *err = ERROR_INIT; /* the data plane was started again: the copy is gone, or whole */
        json_object_del(stream, "operation");
    }
    snprintf(point, sizeof point, "lsn:%lld",
             (long long)json_integer_value(json_object_get(stream, "targetLsn")));
    r = note_records(c, stream, owner, err);
    if (r == 0)
        r = post_clone(c, stream, point, &at_once, why, false, &answer, err);
    if (*why)
        json_object_set_new(stream, "copiedFirst", json_string_lossy(why));
    if (r == -EEXIST) {
        *err = ERROR_INIT;
        return check_made(c, stream, ret, err);
    }
    return r < 0 ? r : judge(stream, json_object_get(answer, "operation"), ret, err);
}

/* ---- how far a copy is that is used meanwhile ---- */

/* What of its alarms keeps the copy from going on, or may; "". */
static const char *alarm_of(const json_t *application, bool of_original)
{
    static const char *const own[] = {"copying what the volumes began with", NULL},
                      *const original[] = {"journaling is suspended", "the journal is over its quota", NULL};
    size_t i;
    json_t *alarm;
    json_array_foreach(json_object_get(application, "alarms"), i, alarm)
    {
        for (const char *const *begin = of_original ? original : own; *begin; begin++)
            if (strncmp(json_string_value(alarm), *begin, strlen(*begin)) == 0)
                return json_string_value(alarm);
    }
    return "";
}

static int status_of(struct controller *c, const json_t *stream, const char *which, json_t **ret, struct error *err)
{
    char path[CSI_HANDLE_BYTES + 32];
    _cleanup_json_ json_t *answer = NULL;
    snprintf(path, sizeof path, "/v1/status?app=%s", json_text(stream, which));
    int r = controller_check_leads(c, err);
    if (r == 0)
        r = data_client_call(c->data, json_text(stream, "node"), "GET", path, NULL, DATA_STATUS_TIMEOUT_MS, &answer, err);
    if (r < 0)
        return r;
    *ret = json_incref(json_array_get(json_object_get(answer, "applications"), 0));
    return *ret ? 0 : error_set(err, -EPROTO, "the status of stream %s is empty", json_text(stream, which));
}

int recovery_filling(void *context, const json_t *stream, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *copy = NULL, *original = NULL;
    struct error ignored = ERROR_INIT;
    char alarm[1000];
    int r = status_of(context, stream, "newStream", &copy, err);
    if (r < 0)
        return r;
    const json_t *filling = json_object_get(copy, "filling");
    const char *own = alarm_of(copy, false), *message = json_text(copy, "message");
    bool done = json_is_null(json_object_get(copy, "copied_from"));
    if (!done && status_of(context, stream, "stream", &original, &ignored) < 0)
        original = NULL;
    const char *theirs = alarm_of(original, true);
    bool failed = strcmp(json_text(copy, "state"), "failed") == 0 || strcmp(json_text(copy, "state"), "crash-looping") == 0;
    own = *own ? own : failed ? message : "";
    snprintf(alarm, sizeof alarm, "%.450s%s%s%.450s", own, *own && *theirs ? "; " : "", *theirs ? "the original: " : "", theirs);
    *ret = json_pack("{s:b, s:O*, s:O*, s:o}", "done", (int)done, "done_bytes", json_object_get(filling, "done_bytes"), "total_bytes",
                     json_object_get(filling, "total_bytes"), "alarm", json_string_lossy(alarm));
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* ---- the persistent volume ---- */

int recovery_bind_copy(void *context, const json_t *stream, const json_t *volume,
                       const char *source_namespace, const char *namespace, const json_t *claim,
                       struct error *err)
{
    struct controller *c = context;
    const struct data_client_options *o = data_client_options(c->data);
    const char *handle = json_text(volume, "handle"), *claim_name = json_text(volume, "claim");
    _cleanup_json_ json_t *live = claim ? NULL : kube_informer_get(c->claims, source_namespace, claim_name),
                          *class = NULL;
    struct csi_volume v;
    (void)stream;
    claim = claim ? claim : live;
    if (!claim)
        return error_set(err, -ENOENT, "the claim %s/%s is not there any more", source_namespace, claim_name);
    const char *class_name = json_text(json_object_get(claim, "spec"), "storageClassName");
    const struct kube_target of_class = {.resource = &kube_storage_classes, .name = class_name};
    int r = *class_name ? kube_get(c->client, &of_class, &class, err) : 0;
    if (r == 0)
        r = o->records->load(o->records_context, handle, &v, err);
    if (r < 0)
        return r;
    v.deleted_ns = 0;
    snprintf(v.claim_namespace, sizeof v.claim_namespace, "%s", namespace);
    snprintf(v.claim_name, sizeof v.claim_name, "%s", claim_name);
    r = o->records->save(o->records_context, &v, err);
    if (r < 0)
        return r;
    /* Thrown away with its namespace, whatever the class says of the original's. */
    _cleanup_json_ json_t *object =
        recovery_volume_object(handle, namespace, claim_name, claim, &v, class, "Delete");
    const struct kube_target all = {.resource = &kube_volumes, .field_manager = FIELD_MANAGER};
    r = object ? kube_create(c->client, &all, object, NULL, err) : error_set(err, -ENOMEM, "out of memory");
    if (r == -EEXIST) {
        *err = ERROR_INIT;
        return 0;
    }
    if (r == 0)
        log_info(c->log, "volume %s: a copy of %s, for the claim %s/%s", handle, json_text(volume, "from"),
                 namespace, claim_name);
    return r;
}
