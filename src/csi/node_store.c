/* SPDX-License-Identifier: Apache-2.0 */
/* Streams of backing class on this node. The controller has an attachment pod here, to which the kubelet maps
 * the block volumes of another class: one for the stream's journal, one for each of its volumes. The agent
 * finds their devices below the kubelet's directory and makes device nodes of its own for them, with names
 * that are the same on every node:
 *
 *   /dev/tidemark/<stream>/journal, /dev/tidemark/<stream>/<handle>
 *
 * which is what the stream's configuration, on its journal, says as well. /dev is a devtmpfs: a reboot
 * forgets them, and so nothing is opened by a number that has become another device.
 *
 * stores/<stream>.json is there from before the store is opened until it is closed. Calls about a store
 * exclude each other as those about a volume do (N4), under the name store-<stream>. */
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "control/mounts.h"
#include "csi/node_internal.h"

#define JOURNAL "journal"

static int device_path(const char *stream, const char *name, char ret[PATH_MAX], struct error *err)
{
    if (snprintf(ret, PATH_MAX, NODE_DEVICE_DIRECTORY "/%s/%s", stream, name) >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the device of %s: path too long", name);
    return 0;
}

/* ---- what the kubelet has mapped ---- */

/* A name of one path component. */
static int check_component(const char *text, const char *what, struct error *err)
{
    if (!*text || strlen(text) >= CSI_LABEL_BYTES || strchr(text, '/') || *text == '.')
        return error_set(err, -EINVAL, "publish_context.%s: '%.100s' is no name", what, text);
    return 0;
}

/* pods/<uid>/volumeDevices/<plugin>/<volume>: a link to, or a bind mount of, the device. */
static int find_device(const struct csi_node *node, const char *pod, const char *volume, dev_t *ret,
                       struct error *err)
{
    char path[PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/pods/%s/volumeDevices", node->options.kubelet_directory, pod) >=
        (int)sizeof path)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", node->options.kubelet_directory);
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));) {
        char below[PATH_MAX];
        if (entry->d_name[0] == '.' ||
            snprintf(below, sizeof below, "%s/%s/%s", path, entry->d_name, volume) >= (int)sizeof below)
            continue;
        if (stat(below, &st) == 0 && S_ISBLK(st.st_mode)) {
            *ret = st.st_rdev;
            return 0;
        }
    }
    return error_set(err, -EAGAIN,
                     "the kubelet has mapped no device of volume %s for the attachment pod (looked below "
                     "%s); it is tried again",
                     volume, path);
}

static int make_node(const char *stream, const char *name, dev_t device, struct error *err)
{
    char path[PATH_MAX], new[PATH_MAX + 8];
    struct stat st;
    int r = device_path(stream, name, path, err);
    if (r < 0)
        return r;
    if (lstat(path, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == device)
        return 0;
    snprintf(new, sizeof new, "%s.new", path);
    unlink(new);
    if (mknod(new, S_IFBLK | 0600, device) < 0 || rename(new, path) < 0)
        return error_errno(err, -errno, "cannot make the device node %s (%u:%u)", path, major(device),
                           minor(device));
    return 0;
}

static void remove_nodes(const char *stream)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    if (device_path(stream, "", path, &ignored) < 0)
        return;
    _cleanup_closedir_ DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));)
        if (device_path(stream, entry->d_name, path, &ignored) == 0)
            unlink(path);
    if (device_path(stream, "", path, &ignored) == 0)
        rmdir(path);
    rmdir(NODE_DEVICE_DIRECTORY); /* when it was the last */
}

/* "name=volume,...": the journal and the volumes of the stream. */
static int make_nodes(const struct csi_node *node, const char *stream, const char *pod, const char *devices,
                      struct error *err)
{
    char directory[PATH_MAX];
    bool journal = false;
    int r = device_path(stream, "", directory, err);
    if (r == 0)
        r = io_mkdirs(directory, 0700, err);
    for (const char *at = devices; *at && r == 0;) {
        char name[CSI_HANDLE_BYTES], volume[CSI_LABEL_BYTES];
        size_t first = strcspn(at, "=,"), second = at[first] == '=' ? strcspn(at + first + 1, ",") : 0;
        dev_t device = 0;
        if (!first || !second || first >= sizeof name || second >= sizeof volume)
            return error_set(err, -EINVAL, "publish_context.devices is malformed at '%.60s'", at);
        snprintf(name, sizeof name, "%.*s", (int)first, at);
        snprintf(volume, sizeof volume, "%.*s", (int)second, at + first + 1);
        at += first + 1 + second;
        at += *at == ',';
        journal |= strcmp(name, JOURNAL) == 0;
        r = app_check_name(name, err);
        if (r == 0)
            r = check_component(volume, "devices", err);
        if (r == 0)
            r = find_device(node, pod, volume, &device, err);
        if (r == 0)
            r = make_node(stream, name, device, err);
    }
    if (r == 0 && !journal)
        r = error_set(err, -EINVAL, "publish_context.devices names no journal");
    return r;
}

/* ---- open and close ---- */

static int record_path(const struct csi_node *node, const char *stream, char ret[PATH_MAX], struct error *err)
{
    int r = app_check_name(stream, err);
    if (r == 0 && snprintf(ret, PATH_MAX, "%s/stores/%s.json", node->directory, stream) >= PATH_MAX)
        r = error_set(err, -ENAMETOOLONG, "%s: path too long", node->directory);
    return r;
}

bool node_store_known(const struct csi_node *node, const char *stream)
{
    char path[PATH_MAX];
    struct error ignored = ERROR_INIT;
    return record_path(node, stream, path, &ignored) == 0 && access(path, F_OK) == 0;
}

static int save_record(const struct csi_node *node, const struct node_attachment *a, const char *stream,
                       struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *record = json_pack("{s:s, s:s}", "pod", a->pod, "devices", a->devices);
    _cleanup_free_ char *text = record ? json_to_pretty_text(record) : NULL;
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    int r = record_path(node, stream, path, err);
    return r == 0 ? io_replace_file(path, text, strlen(text), 0600, err) : r;
}

static void store_name(const char *stream, char ret[CSI_HANDLE_BYTES + 8])
{
    snprintf(ret, CSI_HANDLE_BYTES + 8, "store-%s", stream);
}

int node_store_begin(struct csi_node *node, const char *stream, struct error *err)
{
    char name[CSI_HANDLE_BYTES + 8];
    store_name(stream, name);
    return node_begin_wait(node, name, stream, err);
}

void node_store_end(struct csi_node *node, const char *stream)
{
    char name[CSI_HANDLE_BYTES + 8];
    store_name(stream, name);
    node_end(node, name);
}

/* Its devices are mapped, and the data plane opens it. */
static int open_it(struct csi_node *node, const char *stream, const struct node_attachment *a, bool again, struct error *err)
{
    char journal[PATH_MAX], path[64 + CSI_HANDLE_BYTES];
    int r = check_component(a->pod, "attachment", err);
    if (r == 0)
        r = make_nodes(node, stream, a->pod, a->devices, err);
    if (r == 0)
        r = device_path(stream, JOURNAL, journal, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *body = again ? json_pack("{s:s, s:b}", "device", journal, "again", 1) : json_pack("{s:s}", "device", journal);
    snprintf(path, sizeof path, "/v1/applications/%s/store", stream);
    r = node_data_call(node, "POST", path, body, NULL, err);
    if (r == -EBUSY) /* open on another node, or being closed here */
        err->code = r = -EAGAIN;
    return r < 0 ? error_context(err, "stream %s", stream) : 0;
}

int node_store_open(struct csi_node *node, const char *stream, const struct node_attachment *a, struct error *err)
{
    int r = save_record(node, a, stream, err); /* N1 */
    return r == 0 ? open_it(node, stream, a, false, err) : r;
}

static int reopen(struct csi_node *node, const char *stream, struct error *err)
{
    char path[PATH_MAX];
    struct node_attachment a;
    _cleanup_json_ json_t *record = NULL;
    int r = record_path(node, stream, path, err);
    if (r == 0)
        r = json_parse_file(path, &record, err);
    if (r == 0)
        r = json_get_string(record, "pod", &a.pod, err);
    if (r == 0)
        r = json_get_string(record, "devices", &a.devices, err);
    return r == 0 ? open_it(node, stream, &a, true, err) : r;
}

int node_store_reopen(struct csi_node *node, const char *stream, struct error *err)
{
    int r = node_store_begin(node, stream, err);
    if (r < 0)
        return r;
    r = reopen(node, stream, err);
    node_store_end(node, stream);
    return r;
}

static int close_it(struct csi_node *node, const char *stream, struct error *err)
{
    char path[64 + CSI_HANDLE_BYTES], record[PATH_MAX];
    snprintf(path, sizeof path, "/v1/applications/%s/store", stream);
    int r = node_data_call(node, "DELETE", path, NULL, NULL, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        r = 0;
    }
    if (r < 0)
        return error_context(err, "stream %s", stream);
    remove_nodes(stream);
    r = record_path(node, stream, record, err);
    if (r == 0 && unlink(record) < 0 && errno != ENOENT)
        r = error_errno(err, -errno, "cannot remove %s", record);
    return r;
}

/* Whether it is in use: mounted where it was staged, or, a raw device, given to a pod. */
static bool in_use(const struct node_volume *v)
{
    char source[256];
    return node_volume_published(v) > 0 ||
           (!v->block && mounts_source(v->staging, source, sizeof source) == 0);
}

/* Those that are remembered, but not in use, are forgotten (`forget`), or count as in use. */
static int check_unused(struct csi_node *node, const char *stream, bool forget, struct error *err)
{
    struct node_volume *staged = NULL;
    size_t count = 0;
    int r = node_volumes_list(node, stream, &staged, &count, err);
    for (size_t i = 0; i < count && r == 0; i++) {
        if (!forget || in_use(&staged[i]))
            r = error_set(err, -EBUSY, "volume %s of stream %s is still staged on node %s", staged[i].handle,
                          stream, node->options.node_name);
        else
            r = node_volume_remove(node, staged[i].handle, err);
    }
    node_volumes_free(staged, count);
    return r;
}

static int close_unused(struct csi_node *node, const char *stream, bool forget, struct error *err)
{
    char name[CSI_HANDLE_BYTES + 8];
    store_name(stream, name);
    int r = node_begin_closing(node, name, stream, err);
    if (r < 0)
        return r;
    r = check_unused(node, stream, forget, err);
    if (r == 0)
        r = close_it(node, stream, err);
    node_end(node, name);
    return r;
}

int node_store_release(struct csi_node *node, const char *stream, struct error *err)
{
    return node_store_known(node, stream) ? close_unused(node, stream, true, err) : 0;
}

void node_store_unstaged(struct csi_node *node, const char *stream)
{
    struct error err = ERROR_INIT;
    if (node_store_known(node, stream) && close_unused(node, stream, false, &err) < 0)
        log_info(node->options.log, "stream %s stays open: %s", stream, err.message);
}
