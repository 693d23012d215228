/* SPDX-License-Identifier: Apache-2.0 */
/* What of an object is kept (O1..O3 in objects.h), and which objects are not.
 *
 * Status is dropped: by the API's conventions it can be observed again, and an object whose status alone
 * changed is not a change of the application. The one exception is that a Job or a bare pod has ended
 * (keep_end). */
#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"

/* ---- noise ---- */

static const json_t *controller_of(const json_t *object)
{
    const json_t *owners = objects_at(object, "metadata/ownerReferences");
    size_t i;
    json_t *owner;
    json_array_foreach(owners, i, owner)
    {
        if (json_is_true(json_object_get(owner, "controller")))
            return owner;
    }
    return NULL;
}

/* What is left are those that a person, or another program, wrote for a Service without a selector. */
static const char *noise_of_endpoints(const json_t *object, const struct object_id *id)
{
    const json_t *labels = objects_at(object, "metadata/labels");
    const json_t *annotations = objects_at(object, "metadata/annotations");
    if (strcmp(id->namespace, "default") == 0 && strcmp(id->name, "kubernetes") == 0)
        return "the API server makes it";
    if (controller_of(object))
        return "its owner makes it again";
    if (strcmp(id->kind, "EndpointSlice") == 0) {
        const char *by = objects_text(labels, "endpointslice.kubernetes.io/managed-by");
        return objects_has_suffix(by, ".k8s.io") ? "the control plane makes it from a Service" : NULL;
    }
    /* The second is Patroni's. */
    if (json_object_get(annotations, "control-plane.alpha.kubernetes.io/leader") || json_object_get(annotations, "renewTime"))
        return "leader election";
    if (json_object_get(annotations, "endpoints.kubernetes.io/last-change-trigger-time") ||
        json_object_get(labels, "endpoints.kubernetes.io/managed-by") ||
        json_object_get(labels, "service.kubernetes.io/headless"))
        return "the control plane makes it from a Service";
    return json_array_size(json_object_get(object, "subsets")) == 0 && json_object_size(annotations) == 0 ? "it has no addresses" : NULL;
}

static const char *noise_of_owned(const struct object_id *id, const json_t *owner)
{
    if (!owner)
        return NULL;
    if (strcmp(id->kind, "Pod") == 0 || strcmp(id->kind, "ReplicaSet") == 0 ||
        strcmp(id->kind, "ControllerRevision") == 0)
        return "its controller makes it again";
    if (strcmp(id->kind, "Job") == 0 && strcmp(objects_text(owner, "kind"), "CronJob") == 0)
        return "a run of a CronJob";
    /* An ephemeral volume: its pod gets a new one, with the name of the new pod. */
    if (strcmp(id->kind, "PersistentVolumeClaim") == 0 && strcmp(objects_text(owner, "kind"), "Pod") == 0)
        return "its pod makes it again";
    if ((strcmp(id->group, "cert-manager.io") == 0 && strcmp(id->kind, "CertificateRequest") == 0) ||
        strcmp(id->group, "acme.cert-manager.io") == 0)
        return "its controller makes it again";
    return NULL;
}

const char *object_noise(const json_t *object)
{
    static const char *const never[] = {"/Event",
                                        "events.k8s.io/Event",
                                        "coordination.k8s.io/Lease",
                                        "/Binding",
                                        "/ComponentStatus",
                                        "/Node",
                                        "storage.k8s.io/VolumeAttachment",
                                        "storage.k8s.io/CSINode",
                                        "storage.k8s.io/CSIStorageCapacity",
                                        "coordination.k8s.io/LeaseCandidate",
                                        "networking.k8s.io/IPAddress"};
    struct object_id id;
    struct error unused = ERROR_INIT;
    char text[OBJECT_PATH_BYTES];
    if (object_identify(object, &id, &unused) < 0)
        return "not an object";
    snprintf(text, sizeof text, "%s/%s", id.group, id.kind);
    for (size_t i = 0; i < sizeof never / sizeof *never; i++) {
        if (strcmp(text, never[i]) == 0)
            return "says what happens, not what is wanted";
    }
    if (objects_has_suffix(id.group, "metrics.k8s.io"))
        return "a measurement";
    if (strcmp(id.group, "tidemark.io") == 0)
        return "Tidemark's own";
    if (strcmp(text, "/ConfigMap") == 0 &&
        json_object_get(objects_at(object, "metadata/labels"), "tidemark.io/recovery-plan"))
        return "Tidemark's own";
    if (strcmp(text, "/ConfigMap") == 0 &&
        (strcmp(id.name, "kube-root-ca.crt") == 0 || strcmp(id.name, "openshift-service-ca.crt") == 0))
        return "the control plane makes it in every namespace";
    if (strcmp(text, "/ConfigMap") == 0 && json_object_get(objects_at(object, "metadata/annotations"),
                                                           "control-plane.alpha.kubernetes.io/leader"))
        return "leader election";
    if (strcmp(text, "/Endpoints") == 0 || strcmp(text, "discovery.k8s.io/EndpointSlice") == 0)
        return noise_of_endpoints(object, &id);
    return noise_of_owned(&id, controller_of(object));
}

/* ---- normalization ---- */

bool objects_too_deep(const json_t *at, unsigned depth)
{
    const char *key;
    json_t *value;
    size_t i;
    if (depth > OBJECT_DEPTH_MAX)
        return true;
    json_object_foreach((json_t *)(uintptr_t)at, key, value)
    {
        if (objects_too_deep(value, depth + 1))
            return true;
    }
    json_array_foreach(at, i, value)
    {
        if (objects_too_deep(value, depth + 1))
            return true;
    }
    return false;
}

/* Deletes an object or array that has become empty. */
static void delete_if_empty(json_t *holder, const char *key)
{
    const json_t *value = json_object_get(holder, key);
    if (value && json_object_size(value) == 0 && json_array_size(value) == 0 && !json_is_string(value) &&
        (json_is_object(value) || json_is_array(value)))
        json_object_del(holder, key);
}

static bool generated_annotation(const char *key)
{
    static const char *const exact[] = {"kubectl.kubernetes.io/last-applied-configuration",
                                        "deployment.kubernetes.io/revision",
                                        "deprecated.daemonset.template.generation",
                                        "control-plane.alpha.kubernetes.io/leader",
                                        "endpoints.kubernetes.io/last-change-trigger-time",
                                        "volume.kubernetes.io/storage-provisioner",
                                        "volume.beta.kubernetes.io/storage-provisioner",
                                        "volume.kubernetes.io/selected-node",
                                        "volume.kubernetes.io/storage-resizer",
                                        "kubernetes.io/service-account.uid",
                                        "batch.kubernetes.io/job-tracking",
                                        "tidemark.io/recovery"};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        if (strcmp(key, exact[i]) == 0)
            return true;
    }
    return objects_has_prefix(key, "pv.kubernetes.io/") ||
           objects_has_prefix(key, "autoscaling.alpha.kubernetes.io/");
}

static bool system_finalizer(const char *name)
{
    static const char *const exact[] = {"kubernetes.io/pvc-protection",
                                        "kubernetes.io/pv-protection",
                                        "foregroundDeletion",
                                        "orphan",
                                        "service.kubernetes.io/load-balancer-cleanup",
                                        "batch.kubernetes.io/job-tracking",
                                        "kubernetes",
                                        "customresourcecleanup.apiextensions.k8s.io"};
    for (size_t i = 0; i < sizeof exact / sizeof *exact; i++) {
        if (strcmp(name, exact[i]) == 0)
            return true;
    }
    return objects_has_prefix(name, "external-attacher/") || objects_has_prefix(name, "tidemark.io/");
}

static void normalize_metadata(json_t *metadata)
{
    static const char *const dropped[] = {"managedFields",
                                          "resourceVersion",
                                          "uid",
                                          "generation",
                                          "creationTimestamp",
                                          "selfLink",
                                          "deletionTimestamp",
                                          "deletionGracePeriodSeconds",
                                          "generateName"};
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        json_object_del(metadata, dropped[i]);
    const char *key;
    json_t *value, *annotations = json_object_get(metadata, "annotations");
    void *next;
    json_object_foreach_safe(annotations, next, key, value)
    {
        if (generated_annotation(key))
            json_object_del(annotations, key);
    }
    json_t *finalizers = json_object_get(metadata, "finalizers");
    for (size_t i = json_array_size(finalizers); i-- > 0;) {
        const char *name = json_string_value(json_array_get(finalizers, i));
        if (name && system_finalizer(name))
            json_array_remove(finalizers, i);
    }
    size_t i;
    json_t *owner;
    json_array_foreach(json_object_get(metadata, "ownerReferences"), i, owner) json_object_del(owner, "uid");
    delete_if_empty(metadata, "annotations");
    delete_if_empty(metadata, "labels");
    delete_if_empty(metadata, "finalizers");
    delete_if_empty(metadata, "ownerReferences");
}

/* Whether somebody asked for the field: the API server puts down what came with a request, not what it
 * allocates. `port` is NULL, or the key of an element of spec.ports. Without managed fields (as after
 * normalizing) it counts as asked for. */
static bool asked_for(const json_t *object, const char *port, const char *field)
{
    const json_t *entries = objects_at(object, "metadata/managedFields");
    char key[128];
    size_t i;
    json_t *entry;
    if (json_array_size(entries) == 0)
        return true;
    snprintf(key, sizeof key, "f:%s", field);
    json_array_foreach(entries, i, entry)
    {
        const json_t *spec = objects_at(entry, "fieldsV1/f:spec");
        const json_t *at = port ? json_object_get(json_object_get(spec, "f:ports"), port) : spec;
        if (json_object_get(at, key) && !objects_text(entry, "subresource")[0])
            return true;
    }
    return false;
}

static void normalize_service(const json_t *object, json_t *spec)
{
    if (strcmp(objects_text(spec, "clusterIP"), "None") != 0 && !asked_for(object, NULL, "clusterIP")) {
        json_object_del(spec, "clusterIP");
        json_object_del(spec, "clusterIPs");
    }
    if (!asked_for(object, NULL, "healthCheckNodePort"))
        json_object_del(spec, "healthCheckNodePort");
    /* What is stored may have one, and a watch tells it; who gets or lists the Service is not told (kube-apiserver, service/storage). */
    if (strcmp(objects_text(spec, "type"), "ExternalName") == 0)
        json_object_del(spec, "internalTrafficPolicy");
    size_t i;
    json_t *port;
    json_array_foreach(json_object_get(spec, "ports"), i, port)
    {
        char key[96];
        const char *protocol = objects_text(port, "protocol");
        snprintf(key, sizeof key, "k:{\"port\":%lld,\"protocol\":\"%.16s\"}",
                 (long long)json_integer_value(json_object_get(port, "port")),
                 protocol[0] ? protocol : "TCP");
        if (!asked_for(object, key, "nodePort"))
            json_object_del(port, "nodePort");
    }
}

/* The volume and mounts by which the service account's token comes into a bare pod. */
static void normalize_pod(json_t *spec)
{
    static const char *const lists[] = {"containers", "initContainers", "ephemeralContainers"};
    json_t *volumes = json_object_get(spec, "volumes");
    json_object_del(spec, "nodeName");
    for (size_t i = json_array_size(volumes); i-- > 0;) {
        if (objects_has_prefix(objects_text(json_array_get(volumes, i), "name"), "kube-api-access-"))
            json_array_remove(volumes, i);
    }
    delete_if_empty(spec, "volumes");
    for (size_t l = 0; l < 3; l++) {
        size_t i;
        json_t *container;
        json_array_foreach(json_object_get(spec, lists[l]), i, container)
        {
            json_t *mounts = json_object_get(container, "volumeMounts");
            for (size_t k = json_array_size(mounts); k-- > 0;) {
                if (objects_has_prefix(objects_text(json_array_get(mounts, k), "name"), "kube-api-access-"))
                    json_array_remove(mounts, k);
            }
            delete_if_empty(container, "volumeMounts");
        }
    }
}

static void normalize_job(json_t *spec)
{
    static const char *const generated[] = {
        "controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"};
    if (json_is_true(json_object_get(spec, "manualSelector")))
        return;
    json_object_del(spec, "selector");
    json_t *metadata = objects_at(spec, "template/metadata");
    for (size_t i = 0; i < 4; i++)
        json_object_del(json_object_get(metadata, "labels"), generated[i]);
    delete_if_empty(metadata, "labels");
    delete_if_empty(json_object_get(spec, "template"), "metadata");
}

/* Token secrets are filled in by the control plane, and are of no use to another service account. */
static void normalize_secret(json_t *object)
{
    if (strcmp(objects_text(object, "type"), "kubernetes.io/service-account-token") == 0)
        json_object_del(object, "data");
}

static void normalize_service_account(json_t *object)
{
    char prefix[300];
    json_t *secrets = json_object_get(object, "secrets");
    snprintf(prefix, sizeof prefix, "%s-token-", objects_text_at(object, "metadata/name"));
    for (size_t i = json_array_size(secrets); i-- > 0;) {
        if (objects_has_prefix(objects_text(json_array_get(secrets, i), "name"), prefix))
            json_array_remove(secrets, i);
    }
    delete_if_empty(object, "secrets");
}

static int drop_ca_bundle(void *unused, json_t *client_config, const char *path)
{
    (void)unused, (void)path;
    json_object_del(client_config, "caBundle");
    return 0;
}

/* A CA that a controller puts in is that controller's, and another one in another cluster. */
static void normalize_injected(json_t *object)
{
    const json_t *annotations = objects_at(object, "metadata/annotations");
    if (!json_object_get(annotations, "cert-manager.io/inject-ca-from") &&
        !json_object_get(annotations, "cert-manager.io/inject-ca-from-secret") &&
        !json_object_get(annotations, "service.beta.openshift.io/inject-cabundle"))
        return;
    (void)objects_walk(object, "webhooks[]/clientConfig", drop_ca_bundle, NULL);
    (void)objects_walk(object, "spec/conversion/webhook/clientConfig", drop_ca_bundle, NULL);
    if (strcmp(objects_text(object, "kind"), "APIService") == 0)
        objects_delete_at(object, "spec/caBundle");
}

static void drop_null_timestamp(json_t *object, const char *path)
{
    json_t *metadata = objects_at(object, path);
    if (json_is_null(json_object_get(metadata, "creationTimestamp")))
        json_object_del(metadata, "creationTimestamp");
}

static int normalize_claim_template(void *unused, json_t *claim, const char *path)
{
    (void)unused, (void)path;
    json_object_del(claim, "status");
    drop_null_timestamp(claim, "metadata");
    return 0;
}

static void normalize_kind(const json_t *object, json_t *out)
{
    const char *kind = objects_text(out, "kind"), *api_version = objects_text(out, "apiVersion");
    json_t *spec = json_object_get(out, "spec");
    if (strcmp(api_version, "v1") == 0) {
        if (strcmp(kind, "Service") == 0)
            normalize_service(object, spec);
        else if (strcmp(kind, "Pod") == 0)
            normalize_pod(spec);
        else if (strcmp(kind, "Secret") == 0)
            normalize_secret(out);
        else if (strcmp(kind, "ServiceAccount") == 0)
            normalize_service_account(out);
        else if (strcmp(kind, "Namespace") == 0)
            json_object_del(out, "spec");
        else if (strcmp(kind, "PersistentVolume") == 0) {
            objects_delete_at(spec, "claimRef/uid");
            objects_delete_at(spec, "claimRef/resourceVersion");
        }
    } else if (strcmp(kind, "Job") == 0 && objects_has_prefix(api_version, "batch/")) {
        normalize_job(spec);
    }
    drop_null_timestamp(out, "spec/template/metadata");
    drop_null_timestamp(out, "spec/jobTemplate/metadata");
    drop_null_timestamp(out, "spec/jobTemplate/spec/template/metadata");
    (void)objects_walk(out, "spec/volumeClaimTemplates[]", normalize_claim_template, NULL);
    normalize_injected(out);
}

/* That a Job or a bare pod has ended is not only observed: nobody can find out again, and it must not run
 * twice. */
static int keep_end(const json_t *object, json_t *out, const struct object_id *id)
{
    const json_t *status = json_object_get(object, "status");
    const char *phase = objects_text(status, "phase");
    size_t i;
    json_t *condition;
    if (strcmp(id->kind, "Pod") == 0 && !id->group[0] &&
        (strcmp(phase, "Succeeded") == 0 || strcmp(phase, "Failed") == 0))
        return json_object_set_new(out, "status", json_pack("{s:s}", "phase", phase));
    if (strcmp(id->kind, "Job") != 0 || strcmp(id->group, "batch") != 0)
        return 0;
    json_array_foreach(json_object_get(status, "conditions"), i, condition)
    {
        const char *type = objects_text(condition, "type");
        if ((strcmp(type, "Complete") == 0 || strcmp(type, "Failed") == 0) &&
            strcmp(objects_text(condition, "status"), "True") == 0)
            return json_object_set_new(
                out, "status", json_pack("{s:[{s:s, s:s}]}", "conditions", "type", type, "status", "True"));
    }
    return 0;
}

int object_normalize(const json_t *object, json_t **ret, struct error *err)
{
    struct object_id id;
    int r = object_identify(object, &id, err);
    if (r < 0)
        return r;
    if (objects_too_deep(object, 0))
        return error_set(err, -EFBIG, "%s '%s' is nested deeper than %u levels", id.kind, id.name,
                         OBJECT_DEPTH_MAX);
    _cleanup_json_ json_t *out = json_deep_copy(object);
    if (!out)
        return objects_no_memory(err);
    json_object_del(out, "status");
    if (keep_end(object, out, &id) < 0)
        return objects_no_memory(err);
    normalize_metadata(json_object_get(out, "metadata"));
    normalize_kind(object, out);
    _cleanup_free_ char *text = object_canonical(out);
    if (!text)
        return objects_no_memory(err);
    if (strlen(text) > OBJECT_BYTES_MAX)
        return error_set(err, -EFBIG, "%s '%s' has %zu bytes, more than the %u that an object may have",
                         id.kind, id.name, strlen(text), OBJECT_BYTES_MAX);
    *ret = take_ptr(out);
    return 0;
}
