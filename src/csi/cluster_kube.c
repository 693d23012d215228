/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <string.h>

#include "csi/cluster.h"
#include "lib/json.h"

static int check_node(void *context, const char *node, struct error *err)
{
    struct csi_cluster *cluster = context;
    const struct kube_target target = {.resource = &kube_nodes, .name = node};
    struct error reason = ERROR_INIT;
    int r = kube_get(cluster->client, &target, NULL, &reason);
    if (r == -ENOENT || r == -EINVAL) /* -EINVAL: what no name can be */
        return error_set(err, -ENOENT, "there is no node '%.100s'", node);
    if (r < 0)
        *err = reason;
    return r;
}

/* The driver's persistent volumes: {"namespace/claim": handle}. */
static int load_claims(struct csi_cluster *cluster, json_t **ret, struct error *err)
{
    const struct kube_target target = {.resource = &kube_volumes};
    const struct kube_list_options options = {0};
    _cleanup_json_ json_t *items = NULL, *claims = json_object();
    size_t i;
    json_t *item;
    int r = kube_list_all(cluster->client, &target, &options, &items, err);
    if (r < 0)
        return r;
    json_array_foreach(items, i, item)
    {
        const json_t *spec = json_object_get(item, "spec"), *csi = json_object_get(spec, "csi");
        const json_t *claim = json_object_get(spec, "claimRef");
        char key[2 * CSI_LABEL_BYTES];
        if (strcmp(json_text(csi, "driver"), CSI_DRIVER_NAME) != 0 || !claim)
            continue;
        snprintf(key, sizeof key, "%s/%s", json_text(claim, "namespace"), json_text(claim, "name"));
        json_object_set(claims, key, json_object_get(csi, "volumeHandle"));
    }
    *ret = json_incref(claims);
    return 0;
}

/* The key of the claim that is bound to the volume. NULL: none. */
static const char *claim_of(json_t *claims, const char *handle)
{
    const char *key;
    json_t *value;
    json_object_foreach(claims, key, value) if (json_is_string(value) &&
                                                strcmp(json_string_value(value), handle) == 0) return key;
    return NULL;
}

/* The name of the claim behind a volume of a pod; "" for volumes of other kinds. */
static void claim_name(const json_t *pod, const json_t *volume, char ret[CSI_LABEL_BYTES])
{
    const json_t *claim = json_object_get(volume, "persistentVolumeClaim");
    const char *name = kube_object_name(pod);
    if (claim)
        snprintf(ret, CSI_LABEL_BYTES, "%s", json_text(claim, "claimName"));
    else if (json_object_get(volume, "ephemeral"))
        snprintf(ret, CSI_LABEL_BYTES, "%s-%s", name ? name : "", json_text(volume, "name"));
    else
        *ret = '\0';
}

/* The handles of what the pod mounts of this driver. True when `handle` is among them. */
static bool handles_of(const json_t *pod, const json_t *claims, const char *handle,
                       char (*ret)[CSI_HANDLE_BYTES], size_t *ret_count)
{
    size_t i;
    json_t *volume;
    bool found = false;
    const char *namespace = kube_object_namespace(pod);
    *ret_count = 0;
    json_array_foreach(json_object_get(json_object_get(pod, "spec"), "volumes"), i, volume)
    {
        char claim[CSI_LABEL_BYTES], key[2 * CSI_LABEL_BYTES];
        claim_name(pod, volume, claim);
        snprintf(key, sizeof key, "%s/%s", namespace ? namespace : "", claim);
        const char *mate = json_string_value(json_object_get(claims, key));
        if (!*claim || !mate || strlen(mate) >= CSI_HANDLE_BYTES || *ret_count == CSI_MEMBERS_MAX)
            continue;
        found |= strcmp(mate, handle) == 0;
        snprintf(ret[(*ret_count)++], CSI_HANDLE_BYTES, "%s", mate);
    }
    return found;
}

static bool has_ended(const json_t *pod)
{
    const char *phase = json_text(json_object_get(pod, "status"), "phase");
    return strcmp(phase, "Succeeded") == 0 || strcmp(phase, "Failed") == 0;
}

static int together(void *context, const struct csi_volume *volume, const char *node,
                    char (*ret_handles)[CSI_HANDLE_BYTES], size_t *ret_count, struct error *err)
{
    struct csi_cluster *cluster = context;
    char namespace[CSI_LABEL_BYTES], on_node[CSI_LABEL_BYTES + 16];
    _cleanup_json_ json_t *claims = NULL, *pods = NULL;
    size_t i;
    json_t *pod;
    *ret_count = 0;
    int r = load_claims(cluster, &claims, err);
    const char *claim = r == 0 ? claim_of(claims, volume->handle) : NULL;
    if (!claim)
        return r; /* alone */
    snprintf(namespace, sizeof namespace, "%.*s", (int)strcspn(claim, "/"), claim);
    snprintf(on_node, sizeof on_node, "spec.nodeName=%s", node);
    const struct kube_target target = {.resource = &kube_pods, .namespace = namespace};
    const struct kube_list_options options = {.field_selector = on_node};
    r = kube_list_all(cluster->client, &target, &options, &pods, err);
    if (r < 0)
        return r;
    json_array_foreach(pods, i, pod) if (!has_ended(pod) && handles_of(pod, claims, volume->handle,
                                                                       ret_handles, ret_count)) return 0;
    *ret_count = 0;
    return 0;
}

const struct csi_cluster_ops csi_cluster_kube = {.check_node = check_node, .together = together};
