/* SPDX-License-Identifier: Apache-2.0 */
/* What the node agent remembers, and who is about what. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/thread.h"
#include "control/mounts.h"
#include "csi/node_internal.h"

#define SUFFIX ".json"
#define VOLUMES_MAX 4096u

int node_state_init(struct csi_node *node, struct error *err)
{
    static const char *const below[] = {"volumes", "gates", "stores"};
    char path[PATH_MAX];
    pthread_mutex_init(&node->mutex, NULL);
    thread_cond_init(&node->changed);
    int r = 0;
    if (snprintf(node->directory, sizeof node->directory, "%s/node", node->options.state_directory) >=
        PATH_MAX - 128)
        return error_set(err, -ENAMETOOLONG, "%s: path too long", node->options.state_directory);
    for (size_t i = 0; i < sizeof below / sizeof *below && r == 0; i++) {
        snprintf(path, sizeof path, "%.*s/%s", PATH_MAX - 128, node->directory, below[i]);
        r = io_mkdirs(path, 0700, err);
    }
    return r;
}

/* "<directory>/<kind>/<name>.json". A name that is no DNS label is nobody's: -ENOENT. */
static int path_of(const struct csi_node *node, const char *kind, const char *name, char ret[PATH_MAX],
                   struct error *err)
{
    struct error ignored = ERROR_INIT;
    if (app_check_name(name, &ignored) < 0)
        return error_set(err, -ENOENT, "there is no '%.100s' here", name);
    snprintf(ret, PATH_MAX, "%.*s/%s/%s" SUFFIX, PATH_MAX - 128, node->directory, kind, name);
    return 0;
}

static int save_json(const char *path, const json_t *json, struct error *err)
{
    _cleanup_free_ char *text = json ? json_to_pretty_text(json) : NULL;
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    return io_replace_file(path, text, strlen(text), 0600, err);
}

/* ---- volumes ---- */

void node_volume_release(struct node_volume *volume)
{
    json_decref(volume->targets);
    volume->targets = NULL;
}

void node_volumes_free(struct node_volume *volumes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        node_volume_release(&volumes[i]);
    free(volumes);
}

static int parse_volume(const json_t *json, struct node_volume *v, struct error *err)
{
    const char *stream = "", *staging = "", *type = "", *flags = "";
    json_t *targets = NULL;
    int r = json_get_string(json, "stream", &stream, err);
    if (r == 0)
        r = json_get_string(json, "staging", &staging, err);
    if (r == 0)
        r = json_get_string(json, "fs_type", &type, err);
    if (r == 0)
        r = json_get_string(json, "flags", &flags, err);
    if (r == 0)
        r = json_get_bool(json, "block", &v->block, err);
    if (r == 0)
        r = json_get_object(json, "targets", &targets, err);
    if (r == 0 && json_object_get(json, "adopted")) /* files of before have none */
        r = json_get_bool(json, "adopted", &v->adopted, err);
    if (r < 0)
        return r;
    if (strlen(stream) >= sizeof v->stream || strlen(staging) >= sizeof v->staging ||
        strlen(type) >= sizeof v->fs_type || strlen(flags) >= sizeof v->flags)
        return error_set(err, -EINVAL, "a field is too long");
    memcpy(v->stream, stream, strlen(stream) + 1);
    memcpy(v->staging, staging, strlen(staging) + 1);
    memcpy(v->fs_type, type, strlen(type) + 1);
    memcpy(v->flags, flags, strlen(flags) + 1);
    v->targets = json_incref(targets);
    return 0;
}

int node_volume_load(struct csi_node *node, const char *handle, struct node_volume *ret, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_json_ json_t *json = NULL;
    struct node_volume v = {0};
    int r = path_of(node, "volumes", handle, path, err);
    if (r < 0 || (access(path, F_OK) < 0 && errno == ENOENT))
        return error_set(err, -ENOENT, "volume %.100s is not staged on node %s", handle,
                         node->options.node_name);
    r = json_parse_file(path, &json, err);
    if (r == 0)
        r = parse_volume(json, &v, err);
    if (r < 0) {
        error_context(err,
                      "what is known of volume %s cannot be read from %s (move the file away, delete the "
                      "pod, and let it "
                      "be mounted anew)",
                      handle, path);
        return err->code = -EIO;
    }
    snprintf(v.handle, sizeof v.handle, "%s", handle);
    *ret = v;
    return 0;
}

int node_volume_save(struct csi_node *node, const struct node_volume *v, struct error *err)
{
    char path[PATH_MAX];
    int r = path_of(node, "volumes", v->handle, path, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *json =
        json_pack("{s:s, s:s, s:b, s:b, s:s, s:s, s:O}", "stream", v->stream, "staging", v->staging, "block",
                  v->block, "adopted", v->adopted, "fs_type", v->fs_type, "flags", v->flags, "targets", v->targets);
    return save_json(path, json, err);
}

int node_volume_remove(struct csi_node *node, const char *handle, struct error *err)
{
    char path[PATH_MAX];
    int r = path_of(node, "volumes", handle, path, err);
    if (r < 0)
        return r;
    if (unlink(path) < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot remove %s", path);
    return 0;
}

int node_volumes_list(struct csi_node *node, const char *stream, struct node_volume **ret, size_t *ret_count,
                      struct error *err)
{
    char path[PATH_MAX], handle[CSI_HANDLE_BYTES];
    size_t count = 0, suffix = strlen(SUFFIX);
    struct node_volume *volumes = NULL;
    snprintf(path, sizeof path, "%.*s/volumes", PATH_MAX - 128, node->directory);
    _cleanup_closedir_ DIR *dir = opendir(path);
    if (!dir)
        return error_errno(err, -errno, "cannot read %s", path);
    int r = 0;
    for (const struct dirent *entry; r == 0 && count < VOLUMES_MAX && (entry = readdir(dir));) {
        size_t length = strlen(entry->d_name);
        struct node_volume v;
        if (entry->d_name[0] == '.' || length <= suffix || length - suffix >= sizeof handle ||
            strcmp(entry->d_name + length - suffix, SUFFIX) != 0)
            continue;
        snprintf(handle, sizeof handle, "%.*s", (int)(length - suffix), entry->d_name);
        r = node_volume_load(node, handle, &v, err);
        if (r == -ENOENT) { /* unstaged meanwhile */
            *err = ERROR_INIT;
            r = 0;
            continue;
        }
        if (r < 0 || (stream && strcmp(v.stream, stream) != 0)) {
            if (r == 0)
                node_volume_release(&v);
            continue;
        }
        struct node_volume *larger = realloc(volumes, (count + 1) * sizeof *volumes);
        if (!larger) {
            node_volume_release(&v);
            r = error_set(err, -ENOMEM, "out of memory");
            continue;
        }
        volumes = larger;
        volumes[count++] = v;
    }
    if (r < 0) {
        node_volumes_free(volumes, count);
        return r;
    }
    *ret = volumes;
    *ret_count = count;
    return 0;
}

/* On how many paths it is mounted, `except` left out. */
static size_t count_published(const struct node_volume *volume, const char *except)
{
    const char *path;
    json_t *unused;
    size_t count = 0;
    char source[256];
    json_object_foreach(volume->targets, path, unused)
    {
        (void)unused;
        count += (!except || strcmp(path, except) != 0) && mounts_source(path, source, sizeof source) == 0;
    }
    return count;
}

size_t node_volume_published(const struct node_volume *volume)
{
    return count_published(volume, NULL);
}

bool node_volume_published_elsewhere(const struct node_volume *volume, const char *target)
{
    return count_published(volume, target) > 0;
}

/* ---- one call at a time about a volume ---- */

/* Mutex held. */
static int take_busy(struct csi_node *node, const char *handle, const char *stream, struct error *err)
{
    struct busy *room = NULL;
    for (size_t i = 0; i < NODE_BUSY_MAX; i++) {
        if (strcmp(node->busy[i].handle, handle) == 0)
            return error_set(err, -EALREADY,
                             "another call about volume %s is under way; it is safe to try again", handle);
        if (!room && !*node->busy[i].handle)
            room = &node->busy[i];
    }
    if (!room)
        return error_set(err, -EAGAIN, "too many calls at once; try again");
    snprintf(room->handle, sizeof room->handle, "%s", handle);
    snprintf(room->stream, sizeof room->stream, "%s", stream);
    return 0;
}

static int check_handle(const char *handle, struct error *err)
{
    return strlen(handle) < CSI_HANDLE_BYTES
               ? 0
               : error_set(err, -ENOENT, "there is no volume '%.100s': its handle is too long", handle);
}

int node_begin(struct csi_node *node, const char *handle, const char *stream, struct error *err)
{
    int r = check_handle(handle, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &node->mutex);
    return take_busy(node, handle, stream, err);
}

void node_end(struct csi_node *node, const char *handle)
{
    MUTEX_GUARD(guard, &node->mutex);
    for (size_t i = 0; i < NODE_BUSY_MAX; i++)
        if (strcmp(node->busy[i].handle, handle) == 0)
            node->busy[i] = (struct busy){0};
    pthread_cond_broadcast(&node->changed);
}

bool node_stream_busy(const struct csi_node *node, const char *stream)
{
    for (size_t i = 0; i < NODE_BUSY_MAX; i++)
        if (*node->busy[i].handle && strcmp(node->busy[i].stream, stream) == 0)
            return true;
    return false;
}

/* ---- gates ---- */

int node_gate_load(struct csi_node *node, const char *stream, json_t **ret, struct error *err)
{
    char path[PATH_MAX];
    int r = path_of(node, "gates", stream, path, err);
    if (r < 0)
        return r;
    if (access(path, F_OK) < 0 && errno == ENOENT) {
        *ret = json_pack("{s:b, s:n}", "closed", 0, "rewind");
        return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
    }
    return json_parse_file(path, ret, err);
}

int node_gate_save(struct csi_node *node, const char *stream, const json_t *gate, struct error *err)
{
    char path[PATH_MAX];
    int r = path_of(node, "gates", stream, path, err);
    return r == 0 ? save_json(path, gate, err) : r;
}

int node_gate_remove(struct csi_node *node, const char *stream, struct error *err)
{
    char path[PATH_MAX];
    int r = path_of(node, "gates", stream, path, err);
    if (r == 0 && unlink(path) < 0 && errno != ENOENT)
        r = error_errno(err, -errno, "cannot remove %s", path);
    return r;
}

static int gate_closed(struct csi_node *node, const char *stream, bool *ret, struct error *err)
{
    _cleanup_json_ json_t *gate = NULL;
    int r = node_gate_load(node, stream, &gate, err);
    if (r == 0)
        *ret = json_is_true(json_object_get(gate, "closed"));
    return r;
}

/* Mutex held. */
static void wait_for_change(struct csi_node *node)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec++;
    pthread_cond_timedwait(&node->changed, &node->mutex, &until);
}

static int begin_wait(struct csi_node *node, const char *handle, const char *stream, bool closing, struct error *err)
{
    bool closed = false;
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + NODE_GATE_WAIT_MS * NS_PER_MS;
    MUTEX_GUARD(guard, &node->mutex);
    for (;;) {
        int r = closing ? gate_closed(node, stream, &closed, err) : 0;
        if (r == 0 && closed)
            r = error_set(err, -EBUSY, "the gate of stream %s is closed: a recovery is putting it back, and it stays on node %s until then",
                          stream, node->options.node_name);
        if (r == 0)
            r = take_busy(node, handle, stream, err);
        if (r != -EALREADY || clock_boottime_ns(clock_system()) >= limit_ns || atomic_load(&node->stopping))
            return r;
        *err = ERROR_INIT;
        wait_for_change(node);
    }
}

int node_begin_wait(struct csi_node *node, const char *handle, const char *stream, struct error *err)
{
    return begin_wait(node, handle, stream, false, err);
}

int node_begin_closing(struct csi_node *node, const char *handle, const char *stream, struct error *err)
{
    return begin_wait(node, handle, stream, true, err);
}

int node_begin_open(struct csi_node *node, const char *handle, const char *stream, const struct rpc_call *call, bool may_wait,
                    struct error *err)
{
    bool closed = true;
    uint64_t now_ns = clock_boottime_ns(clock_system()), limit_ns = now_ns + NODE_GATE_WAIT_MS * NS_PER_MS;
    uint64_t deadline_ns = rpc_call_deadline_ns(call);
    limit_ns = deadline_ns < limit_ns ? deadline_ns : limit_ns;
    int r = check_handle(handle, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &node->mutex);
    for (;;) {
        struct timespec until;
        r = gate_closed(node, stream, &closed, err);
        if (r < 0 || !closed)
            return r < 0 ? r : take_busy(node, handle, stream, err);
        now_ns = clock_boottime_ns(clock_system());
        if (!may_wait || now_ns >= limit_ns || node->gate_waiters >= NODE_GATE_WAITERS_MAX || rpc_call_cancelled(call) ||
            atomic_load(&node->stopping))
            return error_set(err, -EAGAIN,
                             "volume %s waits: the gate of stream %s is closed while it is put back to "
                             "another point; it is "
                             "mounted when that has ended",
                             handle, stream);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec++;
        node->gate_waiters++;
        pthread_cond_timedwait(&node->changed, &node->mutex, &until);
        node->gate_waiters--;
    }
}
