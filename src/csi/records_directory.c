/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "csi/records.h"
#include "lib/json.h"

#define SUFFIX ".json"

json_t *csi_volume_to_json(const struct csi_volume *v)
{
    return json_pack("{s:s, s:s, s:o, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:s*, s:o*}", "handle", v->handle,
                     "name", v->name, "size_bytes", json_u64(v->size_bytes), "backing", v->backing,
                     "backing_class", v->backing_class, "ack_mode", v->ack_mode, "claim_namespace",
                     v->claim_namespace, "claim_name", v->claim_name, "node", v->node, "published_node",
                     v->published_node, "stream", v->stream, "deleted_ns", json_u64(v->deleted_ns),
                     "recovery", *v->recovery ? v->recovery : NULL, "journal_bytes",
                     v->journal_bytes ? json_u64(v->journal_bytes) : NULL);
}

static int take_text(const json_t *json, const char *key, char *ret, size_t size, struct error *err)
{
    const char *text = NULL;
    int r = json_get_string(json, key, &text, err);
    if (r < 0)
        return r;
    if (strlen(text) >= size)
        return error_set(err, -EINVAL, "%s is longer than %zu bytes", key, size - 1);
    memcpy(ret, text, strlen(text) + 1);
    return 0;
}

int csi_volume_of_json(const json_t *json, struct csi_volume *ret, struct error *err)
{
    struct csi_volume v = {0};
    const struct {
        const char *key;
        char *text;
        size_t size;
    } texts[] = {{"handle", v.handle, sizeof v.handle},
                 {"name", v.name, sizeof v.name},
                 {"backing", v.backing, sizeof v.backing},
                 {"backing_class", v.backing_class, sizeof v.backing_class},
                 {"ack_mode", v.ack_mode, sizeof v.ack_mode},
                 {"claim_namespace", v.claim_namespace, sizeof v.claim_namespace},
                 {"claim_name", v.claim_name, sizeof v.claim_name},
                 {"node", v.node, sizeof v.node},
                 {"published_node", v.published_node, sizeof v.published_node},
                 {"stream", v.stream, sizeof v.stream}};
    int r = json_get_u64(json, "size_bytes", &v.size_bytes, err);
    if (r == 0)
        r = json_get_u64(json, "deleted_ns", &v.deleted_ns, err);
    for (size_t i = 0; i < sizeof texts / sizeof *texts && r == 0; i++)
        r = take_text(json, texts[i].key, texts[i].text, texts[i].size, err);
    if (r == 0 && json_object_get(json, "recovery")) /* records of before have none */
        r = take_text(json, "recovery", v.recovery, sizeof v.recovery, err);
    if (r == 0 && json_object_get(json, "journal_bytes"))
        r = json_get_u64(json, "journal_bytes", &v.journal_bytes, err);
    if (r == 0)
        *ret = v;
    return r;
}

static int path_of(const char *directory, const char *handle, char ret[PATH_MAX], struct error *err)
{
    if (snprintf(ret, PATH_MAX, "%s/%s" SUFFIX, directory, handle) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", directory);
    return 0;
}

static int load(void *context, const char *handle, struct csi_volume *ret, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *json = NULL;
    /* A handle comes from outside: it must not leave the directory. */
    if (!*handle || strchr(handle, '/') || *handle == '.' || strlen(handle) >= CSI_HANDLE_BYTES)
        return error_set(err, -ENOENT, "there is no volume '%.100s'", handle);
    int r = path_of(context, handle, path, err);
    if (r == 0 && access(path, F_OK) < 0 && errno == ENOENT)
        return error_set(err, -ENOENT, "there is no volume %s", handle);
    if (r == 0)
        r = json_parse_file(path, &json, err);
    if (r == 0)
        r = csi_volume_of_json(json, ret, err);
    if (r == 0)
        return 0;
    error_context(err, "the record of volume %s cannot be read (restore %s from a backup)", handle, path);
    return err->code = -EIO;
}

static int save(void *context, const struct csi_volume *volume, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *json = csi_volume_to_json(volume);
    _cleanup_free_ char *text = json ? json_to_pretty_text(json) : NULL;
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    int r = io_mkdirs(context, 0700, err);
    if (r == 0)
        r = path_of(context, volume->handle, path, err);
    return r == 0 ? io_replace_file(path, text, strlen(text), 0600, err) : r;
}

static int by_handle(const void *a, const void *b)
{
    return strcmp(((const struct csi_volume *)a)->handle, ((const struct csi_volume *)b)->handle);
}

static int list(void *context, struct csi_volume **ret, size_t *ret_count, struct error *err)
{
    _cleanup_closedir_ DIR *dir = opendir(context);
    _cleanup_free_ struct csi_volume *volumes = NULL;
    size_t count = 0, capacity = 0;
    if (!dir && errno != ENOENT)
        return error_errno(err, -errno, "cannot read %s", (const char *)context);
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        char handle[CSI_HANDLE_BYTES];
        size_t length = strlen(entry->d_name), suffix = strlen(SUFFIX);
        if (entry->d_name[0] == '.' || length <= suffix || length - suffix >= sizeof handle ||
            strcmp(entry->d_name + length - suffix, SUFFIX) != 0)
            continue;
        snprintf(handle, sizeof handle, "%.*s", (int)(length - suffix), entry->d_name);
        if (count == capacity) {
            capacity = capacity ? capacity * 2 : 16;
            struct csi_volume *larger = realloc(volumes, capacity * sizeof *volumes);
            if (!larger)
                return error_set(err, -ENOMEM, "out of memory");
            volumes = larger;
        }
        int r = load(context, handle, &volumes[count], err);
        if (r < 0)
            return r;
        count++;
    }
    if (count)
        qsort(volumes, count, sizeof *volumes, by_handle);
    *ret = take_ptr(volumes);
    *ret_count = count;
    return 0;
}

static int forget(void *context, const char *handle, struct error *err)
{
    char path[PATH_MAX];
    int r = path_of(context, handle, path, err);
    if (r < 0)
        return r;
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", path);
    return io_sync_directory(context, err);
}

const struct csi_records_ops csi_records_directory = {
    .load = load, .save = save, .list = list, .remove = forget};
