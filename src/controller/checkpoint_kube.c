/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints in the controller: pods by exec, tags in the objects' journal and in each stream. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/checkpoint.h"
#include "controller/controller_internal.h"
#include "controller/data_client.h"
#include "controller/hooks.h"
#include "kube/exec.h"
#include "lib/json.h"

#define EXTENDS_MAX 16u
#define TURN_MS 500u /* between two looks at whether another one is done */

const struct kube_resource controller_checkpoints = {"tidemark.io", "v1alpha1", "checkpoints",
                                                     "Checkpoint",  true,       0};

static const char *application_of(const json_t *checkpoint)
{
    const char *name = json_string_value(json_object_get(json_object_get(checkpoint, "spec"), "application"));
    return name ? name : "";
}

static int write_status(void *context, const json_t *checkpoint, struct error *err)
{
    struct controller *c = context;
    _cleanup_json_ json_t *patch = json_pack("{s:O}", "status", json_object_get(checkpoint, "status"));
    const struct kube_target target = {.resource = &controller_checkpoints,
                                       .namespace = kube_object_namespace(checkpoint),
                                       .name = kube_object_name(checkpoint),
                                       .subresource = "status",
                                       .field_manager = FIELD_MANAGER};
    return patch ? kube_patch(c->client, &target, KUBE_PATCH_MERGE, patch, NULL, err)
                 : error_set(err, -ENOMEM, "out of memory");
}

static int get_application(struct controller *c, const json_t *checkpoint, json_t **ret, struct error *err)
{
    const struct kube_target target = {.resource = &controller_applications,
                                       .namespace = kube_object_namespace(checkpoint),
                                       .name = application_of(checkpoint)};
    int r = kube_get(c->client, &target, ret, err);
    return r == -ENOENT
               ? error_set(
                     err, -EINVAL,
                     "there is no ProtectedApplication %s in the namespace %s: kubectl -n %s get papp lists "
                     "those there are",
                     application_of(checkpoint), kube_object_namespace(checkpoint),
                     kube_object_namespace(checkpoint))
               : r;
}

/* The hooks of the policy, or of the nearest that it extends which has some. *ret may stay NULL. */
static int get_hooks(struct controller *c, const json_t *papp, char policy[256], json_t **ret,
                     struct error *err)
{
    const char *name = json_string_value(
        json_object_get(json_object_get(json_object_get(papp, "spec"), "policyRef"), "name"));
    snprintf(policy, 256, "%s", name ? name : "default");
    for (unsigned i = 0; i < EXTENDS_MAX; i++) {
        const struct kube_target target = {.resource = &controller_policies, .name = policy};
        _cleanup_json_ json_t *object = NULL;
        int r = kube_get(c->client, &target, &object, err);
        if (r < 0)
            return r == -ENOENT ? error_set(err, -EINVAL, "there is no ProtectionPolicy %s", policy) : r;
        json_t *hooks = json_object_get(json_object_get(object, "spec"), "hooks");
        const char *parent = json_string_value(json_object_get(json_object_get(object, "spec"), "extends"));
        if (json_array_size(hooks) > 0) {
            *ret = json_incref(hooks);
            return 0;
        }
        if (!parent)
            return 0;
        snprintf(policy, 256, "%s", parent);
    }
    return 0;
}

static int targets(void *context, const json_t *checkpoint, json_t **ret, struct error *err)
{
    struct controller *c = context;
    _cleanup_json_ json_t *papp = NULL, *hooks = NULL, *blueprints = NULL, *pods = NULL;
    char policy[256];
    const struct kube_target configs = {.resource = &kube_configmaps, .namespace = c->namespace},
                             all = {.resource = &kube_pods, .namespace = kube_object_namespace(checkpoint)};
    const struct kube_list_options labelled = {.label_selector = HOOKS_BLUEPRINT_LABEL};
    int r;
    if ((r = get_application(c, checkpoint, &papp, err)) < 0 ||
        (r = get_hooks(c, papp, policy, &hooks, err)) < 0 ||
        (r = kube_list_all(c->client, &configs, &labelled, &blueprints, err)) < 0 ||
        (r = kube_list_all(c->client, &all, NULL, &pods, err)) < 0)
        return r;
    return hooks_targets(policy, hooks, blueprints, pods, application_group(papp), ret, err);
}

static int run(void *context, const json_t *checkpoint, const json_t *target, const char *script,
               unsigned timeout_ms, int *ret_status, char **ret_output, struct error *err)
{
    struct controller *c = context;
    const char *const argv[] = {"/bin/sh", "-c", script, NULL};
    const struct kube_exec exec = {.namespace = kube_object_namespace(checkpoint),
                                   .pod = json_string_value(json_object_get(target, "pod")),
                                   .container = json_string_value(json_object_get(target, "container")),
                                   .argv = argv,
                                   .timeout_ms = timeout_ms};
    return kube_exec_collect(c->client, &exec, ret_status, ret_output, err);
}

/* The streams of the application's volumes get the tag first: an objects' tag without them would be no point.
 */
static int tag_streams(struct controller *c, const json_t *checkpoint, json_t *list, struct error *err)
{
    _cleanup_json_ json_t *papp = NULL, *handles = NULL, *streams = NULL;
    size_t i;
    json_t *stream;
    int r = get_application(c, checkpoint, &papp, err);
    if (r == 0)
        r = volumes_handles(c, kube_object_namespace(checkpoint), application_group(papp), &handles, err);
    if (r < 0 || json_object_size(handles) == 0)
        return r;
    if (!c->data)
        return error_set(
            err, -EINVAL,
            "the application's volumes cannot be tagged: the controller has no certificates for the node "
            "agents (--agent-cert)");
    r = data_client_streams(c->data, handles, NULL, &streams, err);
    json_array_foreach(streams, i, stream)
    {
        _cleanup_json_ json_t *point = NULL;
        const char *name = json_string_value(json_object_get(stream, "stream"));
        if (r == 0)
            r = data_client_tag(c->data, stream, kube_object_name(checkpoint), NULL, &point, err);
        if (r < 0)
            return error_context(err, "stream %s", name);
        json_array_append_new(list,
                              json_pack("{s:s, s:O?}", "stream", name, "lsn", json_object_get(point, "lsn")));
    }
    return r;
}

static int tag(void *context, const json_t *checkpoint, json_t **ret, struct error *err)
{
    struct controller *c = context;
    _cleanup_json_ json_t *streams = json_array();
    struct journal_point point;
    char time[CLOCK_TEXT_BYTES];
    int r = streams ? tag_streams(c, checkpoint, streams, err) : error_set(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = object_store_tag(c->store, kube_object_namespace(checkpoint), application_of(checkpoint),
                             kube_object_name(checkpoint), &point, err);
    if (r == -EEXIST)
        return error_set(err, r, "another moment of the history has the name %s: choose another",
                         kube_object_name(checkpoint));
    if (r < 0)
        return r;
    clock_format_rfc3339(point.realtime_ns, time);
    *ret =
        json_pack("{s:s, s:I, s:O}", "time", time, "objectsLsn", (json_int_t)point.lsn.n, "streams", streams);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

static const struct checkpoint_ops ops = {write_status, targets, run, tag};

/* ---- one at a time ---- */

/* C5, in this process. The key is taken until let_go. */
static bool hold(struct controller *c, const char *key, const char *name)
{
    MUTEX_GUARD(guard, &c->held.mutex);
    if (!c->held.applications)
        c->held.applications = json_object();
    if (json_object_get(c->held.applications, key))
        return false;
    return json_object_set_new(c->held.applications, key, json_string(name)) == 0;
}

static void let_go(struct controller *c, const char *key)
{
    MUTEX_GUARD(guard, &c->held.mutex);
    json_object_del(c->held.applications, key);
}

/* C5, of one before this: what it held has to be thawed first. */
static int another_holds(struct controller *c, const json_t *checkpoint, bool *ret, struct error *err)
{
    _cleanup_json_ json_t *all = NULL;
    const struct kube_target target = {.resource = &controller_checkpoints,
                                       .namespace = kube_object_namespace(checkpoint)};
    size_t i;
    json_t *one;
    int r = kube_list_all(c->client, &target, NULL, &all, err);
    *ret = false;
    json_array_foreach(all, i, one)
    {
        const char *phase = json_text(json_object_get(one, "status"), "phase");
        *ret = *ret || (*phase && !checkpoint_has_ended(one) && strcmp(application_of(one), application_of(checkpoint)) == 0 &&
                        strcmp(kube_object_name(one), kube_object_name(checkpoint)) != 0);
    }
    return r;
}

static int advance(struct controller *c, json_t *checkpoint, struct error *err)
{
    char key[KUBE_QUEUE_KEY_BYTES];
    bool begins = !*json_text(json_object_get(checkpoint, "status"), "phase"), busy = false;
    if (!json_is_true(json_object_get(json_object_get(checkpoint, "spec"), "consistent")))
        return checkpoint_advance(&ops, c, clock_system(), checkpoint, err);
    snprintf(key, sizeof key, "%s/%s", kube_object_namespace(checkpoint), application_of(checkpoint));
    if (!hold(c, key, kube_object_name(checkpoint)))
        return 1;
    int r = begins ? another_holds(c, checkpoint, &busy, err) : 0;
    if (r == 0)
        r = busy ? 1 : checkpoint_advance(&ops, c, clock_system(), checkpoint, err);
    let_go(c, key);
    return r;
}

int checkpoint_reconcile(struct controller *c, const char *namespace, const char *name, struct error *err)
{
    const struct kube_target target = {
        .resource = &controller_checkpoints, .namespace = namespace, .name = name};
    _cleanup_json_ json_t *checkpoint = NULL;
    int r = kube_get(c->client, &target, &checkpoint, err);
    if (r == -ENOENT) /* one less to wait for */
        schedule_enqueue(c, namespace, NULL, 0);
    if (r == -ENOENT ||
        (r == 0 && (checkpoint_has_ended(checkpoint) ||
                    json_object_get(json_object_get(checkpoint, "metadata"), "deletionTimestamp"))))
        return 0;
    if (r < 0 || (r = advance(c, checkpoint, err)) < 0)
        return r;
    if (r > 0) { /* the one before it takes as long as its hooks do */
        char key[KUBE_QUEUE_KEY_BYTES];
        snprintf(key, sizeof key, "%s%s", CHECKPOINT_KEY, namespace);
        controller_enqueue(c, key, name, TURN_MS);
        return 0;
    }
    schedule_enqueue(c, namespace, application_of(checkpoint), 0);
    const json_t *status = json_object_get(checkpoint, "status"), *condition = NULL;
    const char *phase = json_string_value(json_object_get(status, "phase"));
    size_t i;
    json_t *one;
    json_array_foreach(json_object_get(status, "conditions"), i, one)
    {
        const char *type = json_string_value(json_object_get(one, "type"));
        if (type && strcmp(type, "Ready") == 0)
            condition = one;
    }
    if (phase && condition)
        event_record(c, checkpoint, strcmp(phase, "Ready") == 0 ? "Normal" : "Warning",
                     json_string_value(json_object_get(condition, "reason")),
                     json_string_value(json_object_get(condition, "message")));
    return 0;
}
