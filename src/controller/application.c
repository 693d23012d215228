/* SPDX-License-Identifier: Apache-2.0 */
/* A ProtectedApplication: its objects are captured, and its status says what is protected and what not. */
#include <errno.h>
#include <string.h>

#include "app/findings.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "controller/controller_internal.h"
#include "controller/object_shelf.h"
#include "lib/json.h"

struct application {
    struct controller *c;
    const json_t *papp;
    const char *namespace, *name, *group;
    json_t *conditions, *volumes, *findings;
    size_t captured, pods, objects, left_out;
    bool paused, leaves; /* with its namespace */
};

static const json_t *old_condition(const struct application *a, const char *type)
{
    size_t i;
    json_t *condition;
    json_array_foreach(json_object_get(json_object_get(a->papp, "status"), "conditions"), i, condition)
    {
        const char *text = json_string_value(json_object_get(condition, "type"));
        if (text && strcmp(text, type) == 0)
            return condition;
    }
    return NULL;
}

/* The time stays while the status does; a change is an event. */
static void set_condition(struct application *a, const char *type, bool is, const char *reason,
                          const char *format, ...) __attribute__((format(printf, 5, 6)));
static void set_condition(struct application *a, const char *type, bool is, const char *reason,
                          const char *format, ...)
{
    char message[900], now[CLOCK_TEXT_BYTES];
    const json_t *old = old_condition(a, type);
    const char *old_status = json_string_value(json_object_get(old, "status"));
    const char *old_time = json_string_value(json_object_get(old, "lastTransitionTime")),
               *status = is ? "True" : "False";
    bool same = old_status && old_time && strcmp(old_status, status) == 0;
    va_list list;
    va_start(list, format);
    vsnprintf(message, sizeof message, format, list);
    va_end(list);
    clock_format_rfc3339(clock_realtime_ns(clock_system()), now);
    memcpy(now + 19, "Z", 2); /* metav1.Time has whole seconds */
    json_array_append_new(a->conditions,
                          json_pack("{s:s, s:s, s:s, s:o, s:s, s:O?}", "type", type, "status", status,
                                    "reason", reason, "message", json_string_lossy(message), "lastTransitionTime",
                                    same ? old_time : now, "observedGeneration",
                                    json_object_get(json_object_get(a->papp, "metadata"), "generation")));
    if (!same && !a->leaves) /* nothing can be made there any more */
        event_record(a->c, a->papp, is ? "Normal" : "Warning", reason, message);
}

/* What is in the way of the first stream that is not journaled; NULL. A new reference. */
static json_t *find_suspended(const struct application *a)
{
    size_t i;
    json_t *volume, *found = NULL;
    json_array_foreach(a->volumes, i, volume)
    {
        const char *stream = json_text(volume, "stream");
        if (!found && *stream)
            found = streams_suspended(a->c, stream);
    }
    return found;
}

static void judge_volumes(struct application *a)
{
    char names[500] = "";
    _cleanup_json_ json_t *suspended = NULL;
    size_t i, length = 0, total = json_array_size(a->volumes);
    json_t *volume;
    json_array_foreach(a->volumes, i, volume)
    {
        if (json_is_true(json_object_get(volume, "captured"))) {
            a->captured++;
        } else if (length < sizeof names) {
            length += (size_t)snprintf(names + length, sizeof names - length, "%s%s (%s)", length ? ", " : "",
                                       json_string_value(json_object_get(volume, "claim")),
                                       json_string_value(json_object_get(volume, "reason")));
        }
    }
    if (total == 0)
        set_condition(a, "Protected", true, "NoVolumes", "it has no volumes; its objects are journaled");
    else if (a->captured == total && (suspended = find_suspended(a)))
        set_condition(a, "Protected", false, "JournalingSuspended", "nothing that is written is journaled now: %.800s", json_string_value(suspended));
    else if (a->captured == total)
        set_condition(a, "Protected", true, "AllVolumesCaptured",
                      "every write to its %zu volumes is journaled", total);
    else
        set_condition(a, "Protected", false, "VolumesNotCaptured",
                      "%zu of %zu volumes are not captured: %s; status.volumes says why and what to do",
                      total - a->captured, total, names);
    if (a->pods > 1 && a->captured > 1)
        set_condition(a, "Ordered", false, "SpansStreams",
                      "%zu pods write to its volumes: writes are in one order in each pod, not across them",
                      a->pods);
    else
        set_condition(a, "Ordered", true, "OneStream", "all its writes are in one order");
}

static bool collect_others(void *context, json_t *papp)
{
    json_array_append(context, papp);
    return true;
}

/* Two applications must not both own a volume. Writes which into `text`. */
static int find_conflict(struct application *a, char *text, size_t size, struct error *err)
{
    _cleanup_json_ json_t *papps = json_array();
    size_t i, j, k;
    json_t *other, *theirs, *ours;
    text[0] = '\0';
    kube_informer_each(a->c->applications, a->namespace, collect_others, papps);
    json_array_foreach(papps, i, other)
    {
        _cleanup_json_ json_t *volumes = NULL;
        size_t pods;
        if (strcmp(kube_object_name(other), a->name) == 0)
            continue;
        int r = volumes_of(a->c, a->namespace, application_group(other), &volumes, &pods, err);
        if (r < 0)
            return r;
        json_array_foreach(volumes, j, theirs)
            json_array_foreach(a->volumes, k, ours) if (!*text && json_equal(json_object_get(theirs, "claim"),
                                                                             json_object_get(ours, "claim")))
                snprintf(text, size,
                         "the volume %s belongs to %s too: give it to one of them by the label or "
                         "annotation " ANNOTATION_APPLICATION ", or delete one",
                         json_string_value(json_object_get(ours, "claim")), kube_object_name(other));
    }
    return 0;
}

/* Older API servers leave it to the webhook, which lets by what comes while it is away, to refuse what no policy covers. */
static int find_weak_door(const struct application *a, json_t *findings, struct error *err)
{
    if (a->c->release.major > 1 || a->c->release.minor >= POLICY_IN_SERVER_MINOR)
        return 0;
    _cleanup_json_ json_t *namespace = kube_informer_get(a->c->namespaces, NULL, a->namespace);
    const char *required = kube_object_label(namespace, LABEL_REQUIRE_POLICY);
    if (!required || strcmp(required, "true") != 0)
        return 0;
    _cleanup_json_ json_t *finding = json_pack(
        "{s:s, s:o, s:o}", "type", "require-policy", "object", json_sprintf("core/v1/Namespace/_/%s", a->namespace),
        "message",
        json_sprintf("this Kubernetes (%s) has no ValidatingAdmissionPolicy: what no policy covers is refused by Tidemark's "
                     "webhook, and let in while that is away; from 1.%u on the API server does it by itself",
                     a->c->release.text, POLICY_IN_SERVER_MINOR));
    return !finding || json_array_insert(findings, 0, finding) < 0 ? error_errno(err, -ENOMEM, "%s/%s", a->namespace, a->name)
                                                                  : 0;
}

/* Its objects, which are not held in memory together. */
struct shelved {
    json_t *names;
    struct object_shelf *shelf;
};

static int shelve(void *context, const char *name, json_t *object, struct error *err)
{
    struct shelved *s = context;
    return json_object_set_new(s->names, name, json_true()) < 0
               ? error_errno(err, -ENOMEM, "%s", name)
               : object_shelf_put(s->shelf, name, object, err);
}

static int load_shelved(void *context, const char *name, json_t **ret, struct error *err)
{
    struct shelved *s = context;
    return object_shelf_get(s->shelf, name, ret, err);
}

static int look_outside(struct application *a, json_t **ret, struct error *err)
{
    struct shelved s = {.names = json_object()};
    const struct point latest = {.kind = POINT_LATEST};
    int r = s.names ? object_shelf_new(object_store_directory(a->c->store), &s.shelf, err)
                    : error_errno(err, -ENOMEM, "%s/%s", a->namespace, a->name);
    if (r == 0)
        r = object_store_visit(a->c->store, a->namespace, a->name, &latest, shelve, &s, NULL, err);
    if (r == 0)
        r = findings_of(s.names, load_shelved, &s, ret, err);
    if (r == 0)
        a->objects = json_object_size(s.names);
    object_shelf_free(s.shelf);
    json_decref(s.names);
    return r;
}

/* State outside the cluster that its objects point to. */
static int find_outside(struct application *a, struct error *err)
{
    _cleanup_json_ json_t *found = NULL;
    int r = look_outside(a, &found, err);
    if (r < 0)
        return r;
    json_t *findings = json_object_get(found, "findings");
    if ((r = find_weak_door(a, findings, err)) < 0 ||
        (r = capture_left_out(a->c->capture, a->namespace, a->group, findings, &a->left_out, err)) < 0)
        return r;
    while (json_array_size(findings) > FINDINGS_MAX)
        json_array_remove(findings, FINDINGS_MAX);
    a->findings = json_incref(findings);
    return 0;
}

int application_apply_status(struct controller *c, const char *namespace, const char *name, const char *manager, json_t *status,
                             struct error *err)
{
    _cleanup_json_ json_t *papp =
        json_pack("{s:s, s:s, s:{s:s, s:s}, s:O}", "apiVersion", API_VERSION, "kind", "ProtectedApplication",
                  "metadata", "name", name, "namespace", namespace, "status", status);
    const struct kube_target target = {.resource = &controller_applications,
                                       .namespace = namespace,
                                       .name = name,
                                       .subresource = "status",
                                       .field_manager = manager};
    return papp ? kube_apply(c->client, &target, papp, true, NULL, err) : error_errno(err, -ENOMEM, "%s/%s", namespace, name);
}

/* `old`: as the watch keeps it. */
static bool is_told(const struct application *a, const json_t *old, const json_t *status)
{
    _cleanup_json_ json_t *rest = json_copy((json_t *)(uintptr_t)status);
    json_object_del(rest, "objects");
    return old && rest && json_equal(old, rest) && capture_has_told(a->c->capture, a->namespace, a->name, a->objects);
}

static int write_status(struct application *a, struct error *err)
{
    const json_t *old = json_object_get(a->papp, "status");
    _cleanup_json_ json_t *status =
        json_pack("{s:O?, s:O, s:{s:I}, s:O, s:I, s:I, s:O?}", "observedGeneration",
                  json_object_get(json_object_get(a->papp, "metadata"), "generation"), "conditions",
                  a->conditions, "objects", "count", (json_int_t)a->objects, "volumes", a->volumes,
                  "volumesTotal", (json_int_t)json_array_size(a->volumes), "volumesCaptured",
                  (json_int_t)a->captured, "findings", a->findings);
    if (!status)
        return error_errno(err, -ENOMEM, "%s/%s", a->namespace, a->name);
    if (!a->findings) { /* not known now: as it was */
        json_t *before = json_object_get(old, "findings");
        json_object_del(status, "findings");
        if (before)
            json_object_set(status, "findings", before);
    }
    if (is_told(a, old, status))
        return 0;
    int r = application_apply_status(a->c, a->namespace, a->name, FIELD_MANAGER, status, err);
    if (r == 0)
        capture_tell(a->c->capture, a->namespace, a->name, a->objects);
    return r == -ENOENT ? 0 : r; /* deleted meanwhile */
}

static void judge_ready(struct application *a, const struct error *capture_error, const char *conflict)
{
    const char *policy = json_string_value(
        json_object_get(json_object_get(json_object_get(a->papp, "spec"), "policyRef"), "name"));
    policy = policy ? policy : "default";
    _cleanup_json_ json_t *found = kube_informer_get(a->c->policies, NULL, policy);
    if (a->paused)
        set_condition(a, "ObjectsCaptured", false, "Paused",
                      "spec.paused is true: changes of its objects are not journaled");
    else if (a->leaves)
        set_condition(a, "ObjectsCaptured", false, "NamespaceTerminating",
                      "its namespace is being deleted: the history of its objects ends with what was there before, which a restore to the latest point has");
    else if (capture_error->code)
        set_condition(a, "ObjectsCaptured", false, "JournalFailed", "its objects cannot be journaled: %s",
                      capture_error->message);
    else if (a->left_out)
        set_condition(a, "ObjectsCaptured", true, "Journaled",
                      "every change of its objects is journaled, but for %zu that cannot be: status.findings tells which and why",
                      a->left_out);
    else
        set_condition(a, "ObjectsCaptured", true, "Journaled", "every change of its objects is journaled");
    if (!found)
        set_condition(a, "Ready", false, "PolicyNotFound",
                      "there is no ProtectionPolicy %s: kubectl get protectionpolicies lists those there are",
                      policy);
    else if (*conflict)
        set_condition(a, "Ready", false, "VolumeClaimedTwice", "%s", conflict);
    else if (capture_error->code)
        set_condition(a, "Ready", false, "JournalFailed", "%s", capture_error->message);
    else
        set_condition(a, "Ready", true, "Reconciled", "the policy %s is in force", policy);
}

int application_reconcile(struct controller *c, const char *namespace, const char *name, struct error *err)
{
    _cleanup_json_ json_t *papp = kube_informer_get(c->applications, namespace, name);
    _cleanup_json_ json_t *conditions = json_array(), *volumes = NULL, *findings = NULL;
    struct error capture_error = ERROR_INIT;
    char conflict[500];
    int r;
    if (!papp || json_object_get(json_object_get(papp, "metadata"), "deletionTimestamp")) {
        capture_remove(c->capture, namespace, name);
        return 0;
    }
    json_object_del(json_object_get(papp, "status"), "checkpoints"); /* the schedule's own */
    struct application a = {.c = c,
                            .papp = papp,
                            .namespace = namespace,
                            .name = name,
                            .group = application_group(papp),
                            .conditions = conditions};
    if (!conditions)
        return error_errno(err, -ENOMEM, "%s/%s", namespace, name);
    a.paused = json_is_true(json_object_get(json_object_get(papp, "spec"), "paused"));
    _cleanup_json_ json_t *home = kube_informer_get(c->namespaces, NULL, namespace);
    a.leaves = json_object_get(json_object_get(home, "metadata"), "deletionTimestamp");
    if (a.paused)
        capture_remove(c->capture, namespace, name);
    r = a.paused || a.leaves ? 0 : capture_add(c->capture, namespace, name, a.group, &capture_error);
    if (r == 0)
        r = find_outside(&a, &capture_error);
    findings = a.findings;
    if (r == -ECANCELED)
        return error_set(err, r, "%s", capture_error.message);
    if ((r = volumes_of(c, namespace, a.group, &volumes, &a.pods, err)) < 0)
        return r;
    a.volumes = volumes;
    if ((r = find_conflict(&a, conflict, sizeof conflict, err)) < 0)
        return r;
    judge_ready(&a, &capture_error, conflict);
    judge_volumes(&a);
    r = write_status(&a, err);
    if (r == 0 && capture_error.code) /* said in the status; and tried again */
        return error_set(err, capture_error.code, "%s", capture_error.message);
    return r;
}
