/* SPDX-License-Identifier: Apache-2.0 */
/* What reconciling looks at, cut down to what it needs: namespaces, annotated workloads, claims, pods that
 * mount, volumes, storage classes, policies, and the applications themselves. Each change enqueues whom it
 * concerns. */
#include <string.h>

#include "base/cleanup.h"
#include "controller/controller_internal.h"
#include "lib/json.h"

#define SETTLE_MS 50u /* a chart's many objects are one reconciliation */

const struct kube_resource controller_applications = {
    "tidemark.io", "v1alpha1", "protectedapplications", "ProtectedApplication", true, 0};
const struct kube_resource controller_policies = {"tidemark.io",      "v1alpha1", "protectionpolicies",
                                                  "ProtectionPolicy", false,      0};

static bool is_kind(const struct kube_resource *r, const struct kube_resource *other)
{
    return strcmp(r->kind, other->kind) == 0;
}

/* Keeps `keys` of the object (a list that ends with NULL). */
static void keep_only(json_t *object, const char *const *keys)
{
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(object, next, key, value)
    {
        bool wanted = false;
        for (const char *const *k = keys; *k; k++)
            wanted |= strcmp(*k, key) == 0;
        if (!wanted)
            json_object_del(object, key);
    }
}

static void cut_metadata(json_t *object)
{
    static const char *const keys[] = {"name", "namespace",         "labels",     "annotations",
                                       "uid",  "deletionTimestamp", "generation", "ownerReferences",
                                       NULL};
    json_t *metadata = json_object_get(object, "metadata");
    keep_only(metadata, keys);
    json_object_del(json_object_get(metadata, "annotations"),
                    "kubectl.kubernetes.io/last-applied-configuration");
}

/* Of a pod: its volumes that are claims or paths of the node. */
static bool cut_pod(json_t *pod)
{
    static const char *const keys[] = {"volumes", NULL};
    json_t *spec = json_object_get(pod, "spec"), *volumes = json_object_get(spec, "volumes"), *volume;
    for (size_t i = json_array_size(volumes); i-- > 0;) {
        volume = json_array_get(volumes, i);
        if (!json_object_get(volume, "persistentVolumeClaim") && !json_object_get(volume, "hostPath") &&
            !json_object_get(volume, "ephemeral"))
            json_array_remove(volumes, i);
    }
    keep_only(spec, keys);
    return json_array_size(volumes) > 0;
}

/* Of what schedule_kube.c writes, only which schedule it has. */
static void cut_schedule(json_t *status)
{
    static const char *const keys[] = {"schedule", NULL};
    json_t *conditions = json_object_get(status, "conditions");
    if (json_object_get(status, "checkpoints"))
        keep_only(json_object_get(status, "checkpoints"), keys);
    for (size_t i = json_array_size(conditions); i-- > 0;)
        if (strcmp(json_text(json_array_get(conditions, i), "type"), SCHEDULE_CONDITION) == 0)
            json_array_remove(conditions, i);
}

static bool reduce(void *context, const struct kube_resource *resource, json_t *object)
{
    static const char *const application_keys[] = {"apiVersion", "kind", "metadata", "spec", "status", NULL};
    static const char *const other_keys[] = {"apiVersion", "kind", "metadata", "spec", "provisioner", NULL};
    static const char *const bare_keys[] = {"apiVersion", "kind", "metadata", NULL};
    static const char *const counted[] = {"streams", "rpoMs", "oldestTime", "objects"};
    static const char *const volume_keys[] = {"csi", "accessModes", "storageClassName", "claimRef", NULL};
    static const char *const claim_keys[] = {"namespace", "name", "uid", NULL};
    (void)context;
    cut_metadata(object);
    if (is_kind(resource, &controller_applications)) {
        keep_only(object, application_keys);
        /* What streams.c writes again and again is no change; nor is how many objects there are: while they are made, each count that
         * was written would be a reason to read and count all of them once more. */
        for (size_t i = 0; i < sizeof counted / sizeof *counted; i++)
            json_object_del(json_object_get(object, "status"), counted[i]);
        cut_schedule(json_object_get(object, "status"));
        return true;
    }
    /* Of a Recovery only that it is there, its annotations and, for the metrics, its phase count: its status is our own. */
    if (is_kind(resource, &controller_recoveries)) {
        static const char *const phase_keys[] = {"phase", NULL}, *const keys[] = {"apiVersion", "kind", "metadata", "status", NULL};
        keep_only(json_object_get(object, "status"), phase_keys);
        keep_only(object, keys);
        return true;
    }
    if (is_kind(resource, &kube_namespaces) || is_kind(resource, &controller_checkpoints)) {
        keep_only(object, bare_keys);
        return true;
    }
    keep_only(object, other_keys);
    if (is_kind(resource, &controller_policies))
        return true;
    if (is_kind(resource, &kube_pods))
        return cut_pod(object);
    if (is_kind(resource, &kube_volumes)) {
        keep_only(json_object_get(object, "spec"), volume_keys);
        keep_only(json_object_get(json_object_get(object, "spec"), "claimRef"), claim_keys);
    }
    if (is_kind(resource, &kube_claims) || is_kind(resource, &kube_volumes) ||
        is_kind(resource, &kube_storage_classes))
        return true;
    keep_only(object, bare_keys); /* workloads count when they are annotated */
    return kube_object_annotation(object, ANNOTATION_POLICY) != NULL;
}

static bool enqueue_application(void *context, json_t *papp)
{
    controller_enqueue(context, kube_object_namespace(papp), kube_object_name(papp), SETTLE_MS);
    return true;
}

static bool enqueue_schedule(void *context, json_t *papp)
{
    schedule_enqueue(context, kube_object_namespace(papp), kube_object_name(papp), SETTLE_MS);
    return true;
}

static void on_event(void *context, const struct kube_resource *resource, enum kube_event event,
                     const char *namespace, const char *name, uint64_t version, json_t *object)
{
    struct controller *c = context;
    (void)version, (void)object;
    if (event == KUBE_DELETED && c->data && (is_kind(resource, &kube_volumes) || is_kind(resource, &controller_recoveries)))
        controller_enqueue(c, STREAMS_KEY, NULL, STREAMS_SOON_MS); /* a clone may have been thrown away */
    bool checkpoint = is_kind(resource, &controller_checkpoints);
    if (checkpoint || is_kind(resource, &controller_recoveries)) {
        char key[300];
        snprintf(key, sizeof key, "%s%s", checkpoint ? CHECKPOINT_KEY : RECOVERY_KEY, namespace);
        controller_enqueue(c, key, name, 0);
    } else if (is_kind(resource, &controller_applications)) {
        controller_enqueue(c, namespace, name, SETTLE_MS);
        controller_enqueue(c, namespace, NULL, SETTLE_MS);
        schedule_enqueue(c, namespace, name, SETTLE_MS);
    } else if (is_kind(resource, &kube_namespaces)) {
        controller_enqueue(c, name, NULL, SETTLE_MS);
        kube_informer_each(c->applications, name, enqueue_application, c); /* what it requires is a finding of theirs */
    } else if (!*namespace) { /* a policy, a class or a volume may concern all */
        kube_informer_each(c->applications, NULL, enqueue_application, c);
        if (is_kind(resource, &controller_policies))
            kube_informer_each(c->applications, NULL, enqueue_schedule, c);
    } else {
        controller_enqueue(c, namespace, NULL, SETTLE_MS);
        kube_informer_each(c->applications, namespace, enqueue_application, c);
    }
}

static void on_failed(void *context, const struct kube_resource *resource, const struct error *error)
{
    log_warning(((struct controller *)context)->log, "watching %s: %s", resource->plural, error->message);
}

int watch_start(struct controller *c, struct error *err)
{
    /* The applications first: the other events ask for them. */
    const struct {
        const struct kube_resource *resource;
        struct kube_informer **informer;
    } watched[] = {{&controller_applications, &c->applications},
                   {&controller_policies, &c->policies},
                   {&kube_namespaces, &c->namespaces},
                   {&kube_claims, &c->claims},
                   {&kube_deployments, &c->workloads[0]},
                   {&kube_statefulsets, &c->workloads[1]},
                   {&kube_daemonsets, &c->workloads[2]},
                   {&kube_pods, &c->pods},
                   {&kube_volumes, &c->volumes},
                   {&kube_storage_classes, &c->classes},
                   {&controller_recoveries, &c->recoveries},
                   {&controller_checkpoints, &c->checkpoints}};
    for (size_t i = 0; i < sizeof watched / sizeof *watched; i++) {
        const struct kube_informer_options options = {.resource = watched[i].resource,
                                                      .keep = KUBE_KEEP_TEXT,
                                                      .ops = {reduce, on_event, NULL, NULL, on_failed, c}};
        int r = kube_informers_add(c->informers, &options, watched[i].informer, err);
        if (r < 0)
            return r;
    }
    return 0;
}

bool watch_is_synced(struct controller *c)
{
    struct kube_informer *all[] = {c->applications, c->policies,     c->namespaces,   c->claims,
                                   c->workloads[0], c->workloads[1], c->workloads[2], c->pods,
                                   c->volumes,      c->classes,      c->recoveries};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (!kube_informer_synced(all[i]))
            return false;
    return true;
}
