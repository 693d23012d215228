/* SPDX-License-Identifier: Apache-2.0 */
#include "app/restore.h"

#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"
#include "app/references.h"

const char *restore_mode_name(enum restore_mode mode)
{
    return mode == RESTORE_REWIND ? "rewind" : mode == RESTORE_CLONE ? "clone" : "restore";
}

int restore_mode_parse(const char *text, enum restore_mode *ret, struct error *err)
{
    for (int mode = RESTORE_REWIND; mode <= RESTORE_RESTORE; mode++) {
        if (strcmp(text, restore_mode_name((enum restore_mode)mode)) == 0) {
            *ret = (enum restore_mode)mode;
            return 0;
        }
    }
    return error_set(err, -EINVAL, "mode '%.100s' is not rewind, clone or restore", text);
}

const char *verdict_name(enum verdict verdict)
{
    static const char *const names[VERDICTS] = {"created", "changed", "same", "deleted", "skipped", "failed"};
    return names[verdict];
}

static bool is_kind(const struct object_id *id, const char *group, const char *kind)
{
    return strcmp(id->group, group) == 0 && strcmp(id->kind, kind) == 0;
}

/* ---- preparing ---- */

/* Why it is not created, or NULL. */
static const char *reason_to_skip(const json_t *object, const struct object_id *id, enum restore_mode mode,
                                  bool exists)
{
    if (is_kind(id, "", "PersistentVolume"))
        return "volumes are made with their claims";
    if (!exists && restore_has_ended(object))
        return "it had ended, and is not run again";
    if (object_is_bootstrap(id->group, id->kind, id->name) && !id->namespace[0])
        return "every cluster has it of itself";
    if (mode != RESTORE_CLONE)
        return NULL;
    if (strcmp(id->group, "admissionregistration.k8s.io") == 0)
        return "a clone must not check the objects of others";
    if (is_kind(id, "apiregistration.k8s.io", "APIService"))
        return "a clone must not answer for the original's API";
    if (is_kind(id, "", "Secret") && strcmp(objects_text(object, "type"), "helm.sh/release.v1") == 0)
        return "Helm's record of the release names the other namespace";
    return NULL;
}

static void prepare_service(json_t *spec, enum restore_mode mode)
{
    size_t i;
    json_t *port;
    if (mode != RESTORE_CLONE)
        return;
    if (strcmp(objects_text(spec, "clusterIP"), "None") != 0) {
        json_object_del(spec, "clusterIP");
        json_object_del(spec, "clusterIPs");
    }
    json_object_del(spec, "healthCheckNodePort");
    json_object_del(spec, "loadBalancerIP");
    const char *type = objects_text(spec, "type");
    if (json_object_del(spec, "externalIPs") == 0 && strcmp(type, "NodePort") != 0 && strcmp(type, "LoadBalancer") != 0)
        json_object_del(spec, "externalTrafficPolicy"); /* which nothing else takes */
    json_array_foreach(json_object_get(spec, "ports"), i, port) json_object_del(port, "nodePort");
}

/* Addresses and names of the network that belong to one object alone. */
static void prepare_annotations(json_t *annotations)
{
    static const char *const prefixes[] = {"external-dns.alpha.kubernetes.io/",
                                           "metallb.io/",
                                           "metallb.universe.tf/",
                                           "lbipam.cilium.io/",
                                           "io.cilium/lb-ipam-",
                                           "kube-vip.io/loadbalancerIPs",
                                           "networking.gke.io/load-balancer-ip-addresses",
                                           "service.beta.kubernetes.io/aws-load-balancer-eip-allocations",
                                           "service.beta.kubernetes.io/azure-load-balancer-ipv",
                                           "service.beta.kubernetes.io/azure-pip-name"};
    const char *key;
    json_t *value;
    void *next;
    json_object_foreach_safe(annotations, next, key, value)
    {
        for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
            if (!objects_has_prefix(key, prefixes[i]))
                continue;
            json_object_del(annotations, key);
            break;
        }
    }
}

/* The data comes by Tidemark: a claim that is made again is bound to nothing, and filled from nothing. */
static void prepare_claim(json_t *spec)
{
    json_object_del(spec, "volumeName");
    json_object_del(spec, "dataSource");
    json_object_del(spec, "dataSourceRef");
    json_object_del(spec, "selector");
}

int restore_prepare(const json_t *normalized, enum restore_mode mode, bool exists, json_t **ret,
                    char reason[RESTORE_REASON_BYTES], struct error *err)
{
    struct object_id id;
    int r = object_identify(normalized, &id, err);
    if (r < 0)
        return r;
    const char *why = reason_to_skip(normalized, &id, mode, exists);
    if (why) {
        snprintf(reason, RESTORE_REASON_BYTES, "%s", why);
        *ret = NULL;
        return 0;
    }
    _cleanup_json_ json_t *object = json_deep_copy(normalized);
    json_t *spec = json_object_get(object, "spec");
    if (!object)
        return objects_no_memory(err);
    reason[0] = '\0';
    if (is_kind(&id, "", "Service"))
        prepare_service(spec, mode);
    else if (is_kind(&id, "", "PersistentVolumeClaim") && !exists)
        prepare_claim(spec);
    /* The controllers that own the finalizers know nothing of a clone, which is thrown away some day. */
    if (mode == RESTORE_CLONE) {
        json_t *annotations = objects_at(object, "metadata/annotations");
        objects_delete_at(object, "metadata/finalizers");
        prepare_annotations(annotations);
        if (annotations && json_object_size(annotations) == 0)
            objects_delete_at(object, "metadata/annotations");
    }
    if (!exists)
        json_object_del(object, "status");
    *ret = take_ptr(object);
    return 0;
}

bool restore_has_ended(const json_t *normalized)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    return object_identify(normalized, &id, &unused) == 0 && (is_kind(&id, "batch", "Job") || is_kind(&id, "", "Pod")) &&
           (json_array_size(objects_at(normalized, "status/conditions")) > 0 || objects_text_at(normalized, "status/phase")[0]);
}

static bool keep_size(json_t *wanted, const json_t *live)
{
    json_t *there = objects_at(live, "spec/resources/requests/storage"), *requests = objects_at(wanted, "spec/resources/requests");
    if (!requests || object_quantity(there) <= object_quantity(json_object_get(requests, "storage")))
        return false;
    return json_object_set(requests, "storage", there) == 0;
}

bool restore_adopt_claim(json_t *wanted, const json_t *live)
{
    static const char *const fields[] = {"volumeName", "dataSource", "dataSourceRef", "selector"};
    json_t *spec = json_object_get(wanted, "spec"), *there = json_object_get(live, "spec");
    if (strcmp(objects_text(wanted, "kind"), "PersistentVolumeClaim") != 0 ||
        strcmp(objects_text(wanted, "apiVersion"), "v1") != 0)
        return false;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        json_t *value = json_object_get(there, fields[i]);
        if (value)
            json_object_set(spec, fields[i], value);
        else
            json_object_del(spec, fields[i]);
    }
    return keep_size(wanted, live);
}

bool restore_drop_allocated(json_t *object)
{
    json_t *spec = json_object_get(object, "spec"), *port;
    bool dropped = false;
    size_t i;
    if (strcmp(objects_text(object, "kind"), "Service") != 0)
        return false;
    if (strcmp(objects_text(spec, "clusterIP"), "None") != 0) {
        dropped = json_object_del(spec, "clusterIP") == 0;
        json_object_del(spec, "clusterIPs");
    }
    dropped |= json_object_del(spec, "healthCheckNodePort") == 0;
    json_array_foreach(json_object_get(spec, "ports"), i, port) dropped |=
        json_object_del(port, "nodePort") == 0;
    return dropped;
}

/* ---- merging: live + (wanted - normalized live) ---- */

static json_t *merge(json_t *raw, json_t *normal, json_t *wanted);

static json_t *merge_objects(json_t *raw, json_t *normal, json_t *wanted)
{
    _cleanup_json_ json_t *out = json_object();
    const char *key;
    json_t *value;
    /* What normalizing left out stays. */
    json_object_foreach(raw, key, value)
    {
        json_t *known = json_object_get(normal, key);
        if (!known && json_object_set(out, key, value) < 0)
            return NULL;
        if (!known || json_object_get(wanted, key) || !(json_is_object(value) || json_is_array(value)))
            continue;
        /* Nobody wants it any more, but for what was left out inside. */
        _cleanup_json_ json_t *nothing = json_is_object(value) ? json_object() : json_array();
        _cleanup_json_ json_t *rest = merge(value, known, nothing);
        if (!rest ||
            ((json_object_size(rest) || json_array_size(rest)) && json_object_set(out, key, rest) < 0))
            return NULL;
    }
    json_object_foreach(wanted, key, value)
    {
        json_t *merged = merge(json_object_get(raw, key), json_object_get(normal, key), value);
        if (!merged || json_object_set_new(out, key, merged) < 0)
            return NULL;
    }
    return take_ptr(out);
}

static bool holds(const json_t *list, const json_t *value)
{
    size_t i;
    json_t *one;
    json_array_foreach(list, i, one)
    {
        if (json_equal(one, value))
            return true;
    }
    return false;
}

static bool all_objects(const json_t *list)
{
    size_t i;
    json_t *element;
    json_array_foreach(list, i, element)
    {
        if (!json_is_object(element))
            return false;
    }
    return true;
}

/* Lists are the wanted one, with what normalizing left out of elements, and with elements that it left out as
 * a whole. */
static json_t *merge_lists(json_t *raw, json_t *normal, json_t *wanted)
{
    _cleanup_json_ json_t *out = json_array();
    const char *key = all_objects(raw) && all_objects(wanted) ? objects_list_key(raw, wanted) : NULL;
    size_t i;
    json_t *value;
    json_array_foreach(wanted, i, value)
    {
        const json_t *name = key ? json_object_get(value, key) : NULL;
        json_t *merged =
            name ? merge(objects_list_find(raw, key, name), objects_list_find(normal, key, name), value)
                 : json_deep_copy(value);
        if (!merged || json_array_append_new(out, merged) < 0)
            return NULL;
    }
    json_array_foreach(raw, i, value)
    {
        bool kept =
            key ? !objects_list_find(normal, key, json_object_get(value, key)) : !holds(normal, value);
        bool wanted_already =
            key ? objects_list_find(wanted, key, json_object_get(value, key)) != NULL : holds(wanted, value);
        /* Without a key an element of objects cannot be known again: what differs in it is what was wanted.
         */
        if (kept && !wanted_already && (key || !json_is_object(value)) && json_array_append(out, value) < 0)
            return NULL;
    }
    return take_ptr(out);
}

static json_t *merge(json_t *raw, json_t *normal, json_t *wanted)
{
    if (raw && normal && json_equal(normal, wanted))
        return json_deep_copy(raw);
    if (json_is_object(raw) && json_is_object(wanted))
        return merge_objects(raw, normal, wanted);
    if (json_is_array(raw) && json_is_array(wanted))
        return merge_lists(raw, normal, wanted);
    return json_deep_copy(wanted);
}

/* What was allocated for a Service goes when the type that it goes back to has none of it: the API server takes it away only from those whose
 * ports did not change. */
static void fit_service(json_t *merged, const json_t *wanted)
{
    json_t *spec = json_object_get(merged, "spec"), *asked = json_object_get(wanted, "spec"), *port;
    const char *type = objects_text(spec, "type");
    bool balancer = strcmp(type, "LoadBalancer") == 0, none = strcmp(type, "ExternalName") == 0;
    bool allocates = strcmp(type, "NodePort") == 0 || (balancer && !json_is_false(json_object_get(spec, "allocateLoadBalancerNodePorts")));
    size_t i;
    if (none && !json_object_get(asked, "clusterIP")) {
        json_object_del(spec, "clusterIP");
        json_object_del(spec, "clusterIPs");
    }
    if ((!balancer || strcmp(objects_text(spec, "externalTrafficPolicy"), "Local") != 0) && !json_object_get(asked, "healthCheckNodePort"))
        json_object_del(spec, "healthCheckNodePort");
    json_array_foreach(json_object_get(spec, "ports"), i, port)
    {
        if (!allocates && !json_object_get(json_array_get(json_object_get(asked, "ports"), i), "nodePort"))
            json_object_del(port, "nodePort");
    }
}

int restore_merge(const json_t *live, const json_t *wanted, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *normal = NULL;
    int r = object_normalize(live, &normal, err);
    if (r < 0)
        return r;
    /* The annotations' and finalizers' generated ones may be all there is: then normalizing took the whole
     * map away, and it stays. */
    _cleanup_json_ json_t *merged = merge((json_t *)(uintptr_t)live, normal, (json_t *)(uintptr_t)wanted);
    if (!merged)
        return objects_no_memory(err);
    if (strcmp(objects_text(wanted, "kind"), "Service") == 0 && strcmp(objects_text(wanted, "apiVersion"), "v1") == 0)
        fit_service(merged, wanted);
    json_t *status = json_object_get(live, "status");
    if (status && json_object_set(merged, "status", status) < 0)
        return objects_no_memory(err);
    *ret = take_ptr(merged);
    return 0;
}

/* ---- what cannot be changed ---- */

/* "group/Kind", and either the fields that cannot be changed, or (with a leading !) those below spec that
 * alone can. */
static const struct {
    const char *kind;
    const char *const fields[14];
} immutable[] = {
    {"apps/Deployment", {"spec/selector"}},
    {"apps/DaemonSet", {"spec/selector"}},
    {"apps/ReplicaSet", {"spec/selector"}},
    {"apps/StatefulSet",
     {"!", "replicas", "ordinals", "template", "updateStrategy", "revisionHistoryLimit",
      "persistentVolumeClaimRetentionPolicy", "minReadySeconds"}},
    {"batch/Job",
     {"!", "parallelism", "suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimit"}},
    {"/Pod", {"!", "activeDeadlineSeconds", "terminationGracePeriodSeconds"}},
    {"/PersistentVolumeClaim", {"!", "resources", "volumeAttributesClassName"}},
    {"rbac.authorization.k8s.io/RoleBinding", {"roleRef"}},
    {"rbac.authorization.k8s.io/ClusterRoleBinding", {"roleRef"}},
    {"/Secret", {"type"}},
    {"/Service", {"spec/clusterIP"}},
    {"storage.k8s.io/StorageClass", {"provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"}},
    {"scheduling.k8s.io/PriorityClass", {"value", "preemptionPolicy"}},
    {"networking.k8s.io/IngressClass", {"spec/controller"}},
    {"node.k8s.io/RuntimeClass", {"handler"}},
    {"apiextensions.k8s.io/CustomResourceDefinition",
     {"spec/group", "spec/scope", "spec/names/plural", "spec/names/kind"}},
    {"discovery.k8s.io/EndpointSlice", {"addressType"}},
    {"snapshot.storage.k8s.io/VolumeSnapshot", {"spec/source"}},
    {"policy/PodDisruptionBudget", {NULL}},
};

static bool same(const json_t *a, const json_t *b)
{
    return (!a && !b) || (a && b && json_equal(a, b));
}

/* The first key of either spec that differs and is not among the changeable ones. */
static const char *changed_beyond(const json_t *live, const json_t *wanted, const char *const *changeable)
{
    const json_t *specs[2] = {json_object_get(live, "spec"), json_object_get(wanted, "spec")};
    for (int side = 0; side < 2; side++) {
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)specs[side], key, value)
        {
            bool allowed = same(value, json_object_get(specs[!side], key));
            for (const char *const *one = changeable; *one && !allowed; one++)
                allowed = strcmp(*one, key) == 0;
            if (!allowed)
                return key;
        }
    }
    return NULL;
}

/* Of Services: the API server leaves a headless one so, unless it is to have no addresses at all. */
static bool was_headless(const json_t *live, const json_t *wanted)
{
    return strcmp(objects_text_at(live, "spec/clusterIP"), "None") == 0 && strcmp(objects_text_at(wanted, "spec/type"), "ExternalName") != 0;
}

static bool find_immutable(const json_t *live, const json_t *wanted, const char *kind,
                           char field[RESTORE_REASON_BYTES])
{
    for (size_t i = 0; i < sizeof immutable / sizeof *immutable; i++) {
        const char *const *fields = immutable[i].fields;
        if (strcmp(immutable[i].kind, kind) != 0)
            continue;
        if (fields[0] && strcmp(fields[0], "!") == 0) {
            const char *key = changed_beyond(live, wanted, fields + 1);
            if (key)
                snprintf(field, RESTORE_REASON_BYTES, "spec.%s", key);
            return key != NULL;
        }
        for (; *fields; fields++) {
            if (same(objects_at(live, *fields), objects_at(wanted, *fields)))
                continue;
            /* An address that nobody asked for is none of the wanted. */
            if (strcmp(*fields, "spec/clusterIP") == 0 && !was_headless(live, wanted) && !objects_at(wanted, *fields))
                continue;
            snprintf(field, RESTORE_REASON_BYTES, "%s", *fields);
            for (char *c = field; *c; c++)
                *c = *c == '/' ? '.' : *c;
            return true;
        }
    }
    return false;
}

/* A pod's image may change, its other fields not. */
static bool pod_changed(const json_t *live, const json_t *wanted)
{
    _cleanup_json_ json_t *a = json_deep_copy(json_object_get(live, "spec")),
                          *b = json_deep_copy(json_object_get(wanted, "spec"));
    json_t *both[2] = {a, b};
    for (int side = 0; side < 2; side++) {
        size_t i;
        json_t *container;
        json_array_foreach(json_object_get(both[side], "containers"), i, container)
            json_object_del(container, "image");
        json_object_del(both[side], "activeDeadlineSeconds");
        json_object_del(both[side], "terminationGracePeriodSeconds");
    }
    return !same(a, b);
}

enum restore_way restore_way_of(const json_t *live, const json_t *wanted, char field[RESTORE_REASON_BYTES])
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    char kind[OBJECT_PATH_BYTES];
    field[0] = '\0';
    if (object_identify(wanted, &id, &unused) < 0)
        return RESTORE_UPDATE;
    snprintf(kind, sizeof kind, "%s/%s", id.group, id.kind);
    bool frozen = json_is_true(json_object_get(live, "immutable")) &&
                  (is_kind(&id, "", "ConfigMap") || is_kind(&id, "", "Secret")) &&
                  (!same(json_object_get(live, "data"), json_object_get(wanted, "data")) ||
                   !same(json_object_get(live, "binaryData"), json_object_get(wanted, "binaryData")) ||
                   !json_is_true(json_object_get(wanted, "immutable")));
    if (frozen)
        snprintf(field, RESTORE_REASON_BYTES, "immutable");
    else if (is_kind(&id, "", "Pod") ? !pod_changed(live, wanted)
                                     : !find_immutable(live, wanted, kind, field))
        return RESTORE_UPDATE;
    if (is_kind(&id, "", "Pod"))
        snprintf(field, RESTORE_REASON_BYTES, "spec");
    bool precious = is_kind(&id, "", "PersistentVolumeClaim") || is_kind(&id, "", "Namespace") ||
                    is_kind(&id, "snapshot.storage.k8s.io", "VolumeSnapshot") || /* its data may go with it */
                    is_kind(&id, "apiextensions.k8s.io", "CustomResourceDefinition");
    return precious ? RESTORE_KEEP : RESTORE_RECREATE;
}

const char *restore_recreate_propagation(const json_t *wanted)
{
    return strcmp(objects_text(wanted, "kind"), "StatefulSet") == 0 ? "Orphan" : "Background";
}

/* ---- owners ---- */

int restore_owners(json_t *object, restore_uid_of uid_of, void *context, size_t *ret_dropped,
                   struct error *err)
{
    json_t *metadata = json_object_get(object, "metadata"),
           *owners = json_object_get(metadata, "ownerReferences");
    const char *namespace = objects_text(metadata, "namespace");
    *ret_dropped = 0;
    for (size_t i = json_array_size(owners); i-- > 0;) {
        char group[128];
        json_t *owner = json_array_get(owners, i);
        object_group_of(objects_text(owner, "apiVersion"), group, sizeof group);
        const char *uid =
            uid_of(context, group, objects_text(owner, "kind"), namespace, objects_text(owner, "name"));
        if (!uid || !uid[0]) {
            json_array_remove(owners, i);
            ++*ret_dropped;
        } else if (json_object_set_new(owner, "uid", json_string(uid)) < 0) {
            return objects_no_memory(err);
        }
    }
    if (owners && json_array_size(owners) == 0)
        json_object_del(metadata, "ownerReferences");
    return 0;
}

json_t *restore_isolation_policy(const char *namespace)
{
    return json_pack(
        "{s:s, s:s, s:{s:s, s:s, s:{s:s}}, s:{s:{}, s:[s, s], s:[{s:[{s:{}}]}], s:[{s:[{s:{}}]}, "
        "{s:[{s:s, s:i}, {s:s, s:i}]}]}}",
        "apiVersion", "networking.k8s.io/v1", "kind", "NetworkPolicy", "metadata", "name",
        RESTORE_ISOLATION_NAME, "namespace", namespace, "labels", "app.kubernetes.io/managed-by", "tidemark",
        "spec", "podSelector", "policyTypes", "Ingress", "Egress", "ingress", "from", "podSelector", "egress",
        "to", "podSelector", "ports", "protocol", "UDP", "port", 53, "protocol", "TCP", "port", 53);
}
