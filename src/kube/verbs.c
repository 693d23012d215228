/* SPDX-License-Identifier: Apache-2.0 */
/* Names, paths, and the verbs over kube_call. */
#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "kube/kube_internal.h"
#include "lib/json.h"

#define FIELD_MANAGER "tidemark"
#define WORKLOADS "apps", "v1"

const struct kube_resource kube_namespaces = {"", "v1", "namespaces", "Namespace", false, 0};
const struct kube_resource kube_pods = {"", "v1", "pods", "Pod", true, 0};
const struct kube_resource kube_secrets = {"", "v1", "secrets", "Secret", true, 0};
const struct kube_resource kube_configmaps = {"", "v1", "configmaps", "ConfigMap", true, 0};
const struct kube_resource kube_events = {"", "v1", "events", "Event", true, 0};
const struct kube_resource kube_services = {"", "v1", "services", "Service", true, 0};
const struct kube_resource kube_claims = {"",   "v1", "persistentvolumeclaims", "PersistentVolumeClaim",
                                          true, 0};
const struct kube_resource kube_volumes = {"", "v1", "persistentvolumes", "PersistentVolume", false, 0};
const struct kube_resource kube_nodes = {"", "v1", "nodes", "Node", false, 0};
const struct kube_resource kube_leases = {"coordination.k8s.io", "v1", "leases", "Lease", true, 0};
const struct kube_resource kube_storage_classes = {"storage.k8s.io", "v1",  "storageclasses",
                                                   "StorageClass",   false, 0};
const struct kube_resource kube_attachments = {"storage.k8s.io",   "v1",  "volumeattachments",
                                               "VolumeAttachment", false, 0};
const struct kube_resource kube_deployments = {WORKLOADS, "deployments", "Deployment", true, 0};
const struct kube_resource kube_statefulsets = {WORKLOADS, "statefulsets", "StatefulSet", true, 0};
const struct kube_resource kube_daemonsets = {WORKLOADS, "daemonsets", "DaemonSet", true, 0};
const struct kube_resource kube_replicasets = {WORKLOADS, "replicasets", "ReplicaSet", true, 0};
const struct kube_resource kube_crds = {"apiextensions.k8s.io",     "v1",  "customresourcedefinitions",
                                        "CustomResourceDefinition", false, 0};

/* ---- names ---- */
/* What the server itself forbids in a path segment, and what would change the path's meaning. */
static bool is_segment(const char *text)
{
    if (!*text || strcmp(text, ".") == 0 || strcmp(text, "..") == 0)
        return false;
    for (; *text; text++)
        if ((unsigned char)*text <= ' ' || strchr("/%?#\\\x7f", *text))
            return false;
    return true;
}

int kube_path(const struct kube_resource *resource, const char *namespace, const char *name,
              const char *subresource, char **ret, struct error *err)
{
    bool core = !*resource->group, within = resource->namespaced && namespace;
    const char *parts[] = {within ? namespace : NULL, name, subresource};
    for (size_t i = 0; i < 3; i++)
        if (parts[i] && !is_segment(parts[i]))
            return error_set(err, -EINVAL, "'%s' cannot be the name of a %s", parts[i],
                             i == 0 ? "Namespace" : resource->kind);
    if (asprintf(ret, "/%s%s%s/%s%s%s/%s%s%s%s%s", core ? "api" : "apis", core ? "" : "/", resource->group,
                 resource->version, within ? "/namespaces/" : "", within ? namespace : "", resource->plural,
                 name ? "/" : "", name ? name : "", subresource ? "/" : "",
                 subresource ? subresource : "") < 0)
        return error_errno(err, -ENOMEM, "%s", resource->plural);
    return 0;
}

char *kube_escape(const char *text)
{
    static const char digits[] = "0123456789ABCDEF";
    char *escaped = malloc(strlen(text) * 3 + 1), *to = escaped;
    for (; escaped && *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (isalnum(c) || strchr("-._~", c)) {
            *to++ = (char)c;
        } else {
            *to++ = '%';
            *to++ = digits[c >> 4];
            *to++ = digits[c & 15];
        }
    }
    if (escaped)
        *to = '\0';
    return escaped;
}

static const char *metadata_text(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(json_object_get(object, "metadata"), key));
}
const char *kube_object_name(const json_t *object)
{
    return metadata_text(object, "name");
}
const char *kube_object_namespace(const json_t *object)
{
    return metadata_text(object, "namespace");
}
const char *kube_object_uid(const json_t *object)
{
    return metadata_text(object, "uid");
}
const char *kube_object_version(const json_t *object)
{
    return metadata_text(object, "resourceVersion");
}
const char *kube_object_annotation(const json_t *object, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(json_object_get(object, "metadata"), "annotations"), key));
}
const char *kube_object_label(const json_t *object, const char *key)
{
    return json_string_value(
        json_object_get(json_object_get(json_object_get(object, "metadata"), "labels"), key));
}

/* ---- verbs ---- */
static int call_target(struct kube_client *client, const struct kube_target *t, const char *method,
                       bool with_name, const char *query, const char *content_type, const json_t *body,
                       json_t **ret, struct error *err)
{
    _cleanup_free_ char *path = NULL;
    if (with_name && !t->name)
        return error_set(err, -EINVAL, "%s of a %s without a name", method, t->resource->kind);
    int r = kube_path(t->resource, t->namespace, with_name ? t->name : NULL, t->subresource, &path, err);
    if (r < 0)
        return r;
    const struct kube_request request = {.method = method,
                                         .path = path,
                                         .query = query,
                                         .body = body,
                                         .content_type = content_type,
                                         .as = t->as,
                                         .timeout_ms = t->timeout_ms,
                                         .status = t->status};
    return kube_call(client, &request, ret, err);
}

static int write_target(struct kube_client *client, const struct kube_target *t, const char *method,
                        bool with_name, const char *content_type, bool force, const json_t *body,
                        json_t **ret, struct error *err)
{
    _cleanup_free_ char *manager = kube_escape(t->field_manager ? t->field_manager : FIELD_MANAGER),
                        *query = NULL;
    if (!manager || asprintf(&query, "fieldManager=%s%s%s", manager, t->dry_run ? "&dryRun=All" : "",
                             force ? "&force=true" : "") < 0)
        return error_errno(err, -ENOMEM, "%s of %s", method, t->resource->plural);
    return call_target(client, t, method, with_name, query, content_type, body, ret, err);
}

int kube_get(struct kube_client *client, const struct kube_target *target, json_t **ret, struct error *err)
{
    return call_target(client, target, "GET", true, NULL, NULL, NULL, ret, err);
}

int kube_create(struct kube_client *client, const struct kube_target *target, const json_t *object,
                json_t **ret, struct error *err)
{
    return write_target(client, target, "POST", target->subresource != NULL, NULL, false, object, ret, err);
}

int kube_update(struct kube_client *client, const struct kube_target *target, const json_t *object,
                json_t **ret, struct error *err)
{
    return write_target(client, target, "PUT", true, NULL, false, object, ret, err);
}

int kube_patch(struct kube_client *client, const struct kube_target *target, enum kube_patch_type type,
               const json_t *patch, json_t **ret, struct error *err)
{
    static const char *const types[] = {[KUBE_PATCH_MERGE] = "application/merge-patch+json",
                                        [KUBE_PATCH_JSON] = "application/json-patch+json",
                                        [KUBE_PATCH_STRATEGIC] = "application/strategic-merge-patch+json"};
    return write_target(client, target, "PATCH", true, types[type], false, patch, ret, err);
}

int kube_apply(struct kube_client *client, const struct kube_target *target, const json_t *object, bool force,
               json_t **ret, struct error *err)
{
    /* JSON is YAML. */
    return write_target(client, target, "PATCH", true, "application/apply-patch+yaml", force, object, ret,
                        err);
}

int kube_delete(struct kube_client *client, const struct kube_target *target,
                const struct kube_delete_options *options, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:s, s:s}", "kind", "DeleteOptions", "apiVersion", "v1");
    if (!body)
        return error_errno(err, -ENOMEM, "DELETE of %s", target->resource->plural);
    if (options && (options->uid || options->version))
        json_object_set_new(
            body, "preconditions",
            json_pack("{s:s*, s:s*}", "uid", options->uid, "resourceVersion", options->version));
    if (options && options->propagation)
        json_object_set_new(body, "propagationPolicy", json_string(options->propagation));
    if (options && options->with_grace_period)
        json_object_set_new(body, "gracePeriodSeconds", json_integer(options->grace_period_s));
    if (target->dry_run)
        json_object_set_new(body, "dryRun", json_pack("[s]", "All"));
    return call_target(client, target, "DELETE", true, NULL, NULL, body, NULL, err);
}
