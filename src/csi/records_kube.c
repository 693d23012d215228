/* SPDX-License-Identifier: Apache-2.0 */
/* Records as ConfigMaps: one a volume, named after its handle, with the label tidemark.io/volume-record and
 * the record as JSON in data.record; in data.keep, which has a field manager of its own, the seconds for which its history is
 * kept once it is deleted, and in data.kept, which has that too, why it is kept longer. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "csi/cluster.h"
#include "lib/json.h"

#define LABEL "tidemark.io/volume-record"
#define FIELD_MANAGER "tidemark-csi"
#define KEEP_MANAGER "tidemark-keep"
#define KEEP_S_MAX (UINT64_C(100) * 366 * 86400)

static struct kube_target target_of(const struct csi_cluster *cluster, const char *handle)
{
    return (struct kube_target){.resource = &kube_configmaps,
                                .namespace = cluster->namespace,
                                .name = handle,
                                .field_manager = FIELD_MANAGER};
}

static int of_object(const json_t *object, struct csi_volume *ret, struct error *err)
{
    _cleanup_json_ json_t *json = NULL;
    const char *name = kube_object_name(object), *text = NULL;
    int r = json_get_string(json_object_get(object, "data"), "record", &text, err);
    if (r == 0)
        r = json_parse("data.record", text, strlen(text), &json, err);
    if (r == 0)
        r = csi_volume_of_json(json, ret, err);
    const char *keep = json_string_value(json_object_get(json_object_get(object, "data"), "keep"));
    if (r == 0 && keep) {
        r = units_parse_u64(keep, KEEP_S_MAX, &ret->keep_s, err);
        ret->keep_known = r == 0;
    }
    const char *version = kube_object_version(object);
    snprintf(ret->version, sizeof ret->version, "%s", version && strlen(version) < sizeof ret->version ? version : "");
    const char *kept = json_string_value(json_object_get(json_object_get(object, "data"), "kept"));
    snprintf(ret->kept, sizeof ret->kept, "%s", r == 0 && kept ? kept : "");
    if (r == 0)
        return 0;
    error_context(err, "the ConfigMap %s is no record of a volume (restore it from a backup)",
                  name ? name : "");
    return err->code = -EIO;
}

static int load(void *context, const char *handle, struct csi_volume *ret, struct error *err)
{
    struct csi_cluster *cluster = context;
    struct kube_target target = target_of(cluster, handle);
    _cleanup_json_ json_t *object = NULL;
    /* Handles are DNS labels; what cannot be a name is nobody's. */
    if (strncmp(handle, "tm-", 3) != 0 ||
        strspn(handle, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(handle) ||
        strlen(handle) >= CSI_HANDLE_BYTES)
        return error_set(err, -ENOENT, "there is no volume '%.100s'", handle);
    int r = kube_get(cluster->client, &target, &object, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return error_set(err, -ENOENT, "there is no volume %s", handle);
    }
    return r < 0 ? error_context(err, "the record of volume %s", handle) : of_object(object, ret, err);
}

static int save(void *context, const struct csi_volume *volume, struct error *err)
{
    struct csi_cluster *cluster = context;
    struct kube_target target = target_of(cluster, volume->handle);
    _cleanup_json_ json_t *record = csi_volume_to_json(volume);
    _cleanup_free_ char *text = record ? json_to_text(record) : NULL;
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    _cleanup_json_ json_t *object =
        json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s}}, s:{s:s}}", "apiVersion", "v1", "kind", "ConfigMap",
                  "metadata", "name", volume->handle, "namespace", cluster->namespace, "labels", LABEL,
                  "true", "data", "record", text);
    if (!object)
        return error_set(err, -ENOMEM, "out of memory");
    if (*volume->version)
        json_object_set_new(json_object_get(object, "metadata"), "resourceVersion", json_string(volume->version));
    int r = kube_apply(cluster->client, &target, object, true, NULL, err);
    if (r == -EBUSY)
        return error_set(err, -EAGAIN, "the record of volume %s was changed by somebody else just now; it is safe to try again", volume->handle);
    return r < 0 ? error_context(err, "the record of volume %s", volume->handle) : 0;
}

static int by_handle(const void *a, const void *b)
{
    return strcmp(((const struct csi_volume *)a)->handle, ((const struct csi_volume *)b)->handle);
}

static int list(void *context, struct csi_volume **ret, size_t *ret_count, struct error *err)
{
    struct csi_cluster *cluster = context;
    const struct kube_target target = {.resource = &kube_configmaps, .namespace = cluster->namespace};
    const struct kube_list_options options = {.label_selector = LABEL "=true"};
    _cleanup_json_ json_t *items = NULL;
    size_t i, count = 0;
    json_t *item;
    int r = kube_list_all(cluster->client, &target, &options, &items, err);
    if (r < 0)
        return error_context(err, "the records of the volumes");
    _cleanup_free_ struct csi_volume *volumes = calloc(json_array_size(items) + 1, sizeof *volumes);
    if (!volumes)
        return error_set(err, -ENOMEM, "out of memory");
    json_array_foreach(items, i, item)
    {
        r = of_object(item, &volumes[count], err);
        if (r < 0)
            return r;
        count++;
    }
    qsort(volumes, count, sizeof *volumes, by_handle);
    *ret = take_ptr(volumes);
    *ret_count = count;
    return 0;
}

static int forget(void *context, const char *handle, struct error *err)
{
    struct csi_cluster *cluster = context;
    struct kube_target target = target_of(cluster, handle);
    int r = csi_class_forget(cluster, handle, err);
    if (r == 0)
        r = kube_delete(cluster->client, &target, NULL, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    return r;
}

static int keep(void *context, const char *handle, uint64_t keep_s, struct error *err)
{
    struct csi_cluster *cluster = context;
    struct kube_target target = target_of(cluster, handle);
    target.field_manager = KEEP_MANAGER;
    _cleanup_json_ json_t *patch = json_pack("{s:{s:o}}", "data", "keep", json_sprintf("%llu", (unsigned long long)keep_s));
    int r = patch ? kube_patch(cluster->client, &target, KUBE_PATCH_MERGE, patch, NULL, err)
                  : error_set(err, -ENOMEM, "out of memory");
    return r < 0 ? error_context(err, "the record of volume %s", handle) : 0;
}

static int note_kept(void *context, const char *handle, const char *why, json_t **ret, struct error *err)
{
    struct csi_cluster *cluster = context;
    struct kube_target target = target_of(cluster, handle);
    target.field_manager = KEEP_MANAGER;
    _cleanup_json_ json_t *patch = json_pack("{s:{s:o}}", "data", "kept", json_string_lossy(why));
    int r = patch ? kube_patch(cluster->client, &target, KUBE_PATCH_MERGE, patch, ret, err)
                  : error_set(err, -ENOMEM, "out of memory");
    return r < 0 ? error_context(err, "the record of volume %s", handle) : 0;
}

const struct csi_records_ops csi_records_kube = {
    .load = load, .save = save, .list = list, .remove = forget, .keep = keep, .note_kept = note_kept};
