/* SPDX-License-Identifier: Apache-2.0 */
/* The node agent as a client of the data plane's API. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "control/mounts.h"
#include "csi/node_internal.h"
#include "lib/http_client.h"
#include "lib/json.h"

#define POLL_MS 50

static void pause_ms(unsigned ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000L}, NULL);
}

static struct http_client_options data_plane(const struct csi_node *node)
{
    return (struct http_client_options){.socket_path = node->options.data_socket,
                                        .unreachable_hint =
                                            "is the data plane, `tidemark data`, running on this node?"};
}

/* Nobody there: it comes back, the caller tries again. */
static int soften(int r, struct error *err)
{
    return r == -ECONNREFUSED || r == -ECONNRESET || r == -ETIMEDOUT ? (err->code = -EAGAIN) : r;
}

int node_data_call(struct csi_node *node, const char *method, const char *path, const json_t *body,
                   json_t **ret, struct error *err)
{
    const struct http_client_options options = data_plane(node);
    return soften(http_client_call_with(&options, method, path, body, NODE_DATA_TIMEOUT_MS, ret, err), err);
}

/* ---- what there is ---- */

/* The stream's entry of the status; -ENOENT. */
static int load_status(struct csi_node *node, const char *stream, json_t **ret, struct error *err)
{
    char path[64 + CSI_HANDLE_BYTES];
    _cleanup_json_ json_t *answer = NULL;
    snprintf(path, sizeof path, "/v1/status?app=%s", stream);
    int r = node_data_call(node, "GET", path, NULL, &answer, err);
    if (r < 0)
        return r;
    *ret = json_incref(json_array_get(json_object_get(answer, "applications"), 0));
    return *ret ? 0 : error_set(err, -EPROTO, "the data plane's status of stream %s is empty", stream);
}

static const json_t *find_volume(const json_t *status, const char *handle)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(status, "volumes"), i, volume)
    {
        const char *name = json_string_value(json_object_get(volume, "name"));
        if (name && strcmp(name, handle) == 0)
            return volume;
    }
    return NULL;
}

/* 1: *ret_device; 0: not yet. */
static int device_of(const json_t *status, const json_t *volume, char ret_device[NODE_DEVICE_BYTES],
                     struct error *err)
{
    const char *state = json_text(status, "state"), *device = json_text(volume, "device"),
               *why = json_text(status, "message");
    if (strcmp(state, "failed") == 0)
        return error_set(err, -EAGAIN, "stream %s has failed and is started again: %s",
                         json_text(status, "name"), why);
    if (strcmp(state, "starting") == 0 || strcmp(state, "stopped") == 0 || !*device)
        return 0;
    snprintf(ret_device, NODE_DEVICE_BYTES, "%s", device);
    return 1;
}

int node_stream_device(struct csi_node *node, const char *stream, const char *handle,
                       char ret_device[NODE_DEVICE_BYTES], struct error *err)
{
    _cleanup_json_ json_t *status = NULL;
    int r = load_status(node, stream, &status, err);
    if (r < 0)
        return r;
    const json_t *volume = find_volume(status, handle);
    if (!volume)
        return error_set(err, -ENOENT, "stream %s has no volume %s on node %s", stream, handle,
                         node->options.node_name);
    r = device_of(status, volume, ret_device, err);
    return r > 0   ? 0
           : r < 0 ? r
                   : error_set(err, -EAGAIN, "the device of volume %s is not there yet; try again", handle);
}

/* ---- changes ---- */

/* JSON is YAML. */
static int write_policy(FILE *out, const char *name, const json_t *spec)
{
    _cleanup_json_ json_t *policy = json_pack("{s:s, s:s, s:{s:s}, s:O}", "apiVersion", APP_API_VERSION, "kind", "ProtectionPolicy", "metadata",
                                              "name", name, "spec", spec);
    int r = policy ? json_dumpf(policy, out, JSON_COMPACT) : -1;
    fputs("\n---\n", out);
    return r;
}

/* One volume. `size_bytes` 0: that of its device. */
static void write_volume(FILE *out, const struct node_wanted *w, const char *handle, uint64_t size_bytes)
{
    fprintf(out, "  - {name: %s", handle);
    if (w->on_devices)
        fprintf(out, ", source: " NODE_DEVICE_DIRECTORY "/%s/%s", w->stream, handle);
    if (size_bytes)
        fprintf(out, ", size: %" PRIu64, size_bytes);
    fputs("}\n", out);
}

/* The stream as YAML: the volumes of `status` (may be NULL), then members that it lacks. `handle` gets
 * `size_bytes` if that is more. */
static char *format_stream(const struct node_wanted *w, const json_t *status)
{
    char *text = NULL;
    size_t size = 0, i;
    json_t *volume;
    FILE *out = open_memstream(&text, &size);
    const char *policy = w->policy ? w->stream : status ? json_text(status, "policy") : *w->ack_mode ? w->ack_mode : "default";
    bool own_policy = !w->policy && !status && *w->ack_mode, failed = false;
    if (!out)
        return NULL;
    if (w->policy)
        failed = write_policy(out, w->stream, w->policy) < 0;
    if (own_policy)
        fprintf(out,
                "apiVersion: " APP_API_VERSION
                "\nkind: ProtectionPolicy\nmetadata: {name: ack-%s}\nspec: {ackMode: %s}\n---\n",
                w->ack_mode, w->ack_mode);
    fprintf(out,
            "apiVersion: " APP_API_VERSION "\nkind: ProtectedApplication\nmetadata: {name: %s}\nspec:\n"
            "  policyRef: {name: %s%s}\n  export: fuse\n  volumes:\n",
            w->stream, own_policy ? "ack-" : "", policy);
    json_array_foreach(json_object_get(status, "volumes"), i, volume)
    {
        uint64_t has = (uint64_t)json_integer_value(json_object_get(volume, "size_bytes"));
        bool this = strcmp(json_text(volume, "name"), w->handle) == 0;
        write_volume(out, w, json_text(volume, "name"), this && w->size_bytes > has ? w->size_bytes : has);
    }
    bool told = find_volume(status, w->handle);
    for (size_t k = 0; k < w->member_count; k++)
        if (!find_volume(status, w->members[k].handle)) {
            told |= strcmp(w->members[k].handle, w->handle) == 0;
            write_volume(out, w, w->members[k].handle, w->on_devices ? 0 : w->members[k].size_bytes);
        }
    if (!told)
        write_volume(out, w, w->handle, w->on_devices ? 0 : w->size_bytes);
    failed |= ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(text);
        return NULL;
    }
    return text;
}

static int apply(struct csi_node *node, const struct node_wanted *w, const json_t *status, struct error *err)
{
    const struct http_client_options options = data_plane(node);
    _cleanup_free_ char *text = format_stream(w, status);
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    int r = http_client_post_text(&options, "/v1/apply?file=stream", text, NODE_DATA_TIMEOUT_MS, NULL, err);
    if (r == -EBUSY) /* a rewind or a restart of it: over soon */
        err->code = r = -EAGAIN;
    if (r < 0)
        error_context(err, "stream %s", w->stream);
    return soften(r, err);
}

int node_stream_set_policy(struct csi_node *node, const char *stream, const json_t *spec, struct error *err)
{
    _cleanup_json_ json_t *status = NULL;
    int r = load_status(node, stream, &status, err);
    if (r < 0)
        return r;
    const char *first = json_text(json_array_get(json_object_get(status, "volumes"), 0), "name");
    const struct node_wanted w = {.stream = stream, .handle = first, .ack_mode = "", .policy = spec,
                                  .on_devices = node_store_known(node, stream)};
    return apply(node, &w, status, err);
}

/* The stream runs and lacks the volume: it is stopped and started for that, so nothing of it may be
 * published, and what is staged is unmounted meanwhile. */
static int join(struct csi_node *node, const struct node_wanted *w, const json_t *status, struct error *err)
{
    struct node_volume *staged = NULL;
    size_t count = 0, begun = 0;
    int r = node_volumes_list(node, w->stream, &staged, &count, err);
    for (; begun < count && r == 0; begun++) {
        if (strcmp(staged[begun].handle, w->handle) == 0)
            continue;
        r = node_begin(node, staged[begun].handle, w->stream, err);
        if (r < 0)
            break;
        if (node_volume_published(&staged[begun])) {
            r = error_set(err, -EBUSY,
                          "volume %s joins stream %s, which restarts it, but volume %s of that is in use: "
                          "delete the pods that "
                          "use it, and both are mounted together",
                          w->handle, w->stream, staged[begun].handle);
            begun++;
            break;
        }
    }
    for (size_t i = 0; i < count && r == 0; i++)
        r = node_mount_unstage(&staged[i], err);
    if (r == 0)
        r = apply(node, w, status, err);
    for (size_t i = 0; i < count; i++) {
        struct error second = ERROR_INIT;
        char device[NODE_DEVICE_BYTES];
        if (!staged[i].block && strcmp(staged[i].handle, w->handle) != 0 && i < begun &&
            (node_stream_device(node, w->stream, staged[i].handle, device, &second) < 0 ||
             node_mount_stage(node, &staged[i], device, false, &second) < 0))
            log_error(node->options.log, "volume %s: %s", staged[i].handle, second.message);
    }
    for (size_t i = 0; i < begun; i++)
        if (strcmp(staged[i].handle, w->handle) != 0)
            node_end(node, staged[i].handle);
    node_volumes_free(staged, count);
    return r;
}

/* One look: 1 when the device is there, 0 to look again. */
static int ensure_once(struct csi_node *node, const struct node_wanted *w, char ret_device[NODE_DEVICE_BYTES],
                       bool *ret_created, struct error *err)
{
    _cleanup_json_ json_t *status = NULL;
    int r = load_status(node, w->stream, &status, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        r = apply(node, w, NULL, err);
        *ret_created = r == 0;
        return r;
    }
    if (r < 0)
        return r;
    const json_t *volume = find_volume(status, w->handle);
    if (volume)
        return device_of(status, volume, ret_device, err);
    r = join(node, w, status, err);
    *ret_created = r == 0;
    return r;
}

int node_stream_ensure(struct csi_node *node, const struct node_wanted *wanted, const struct rpc_call *call,
                       char ret_device[NODE_DEVICE_BYTES], bool *ret_created, struct error *err)
{
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + NODE_DEVICE_WAIT_MS * NS_PER_MS;
    bool created = false;
    *ret_created = false;
    for (;;) {
        int r = ensure_once(node, wanted, ret_device, &created, err);
        *ret_created |= created;
        if (r != 0)
            return r > 0 ? 0 : r;
        if (rpc_call_cancelled(call) || clock_boottime_ns(clock_system()) > limit_ns)
            return error_set(err, -EAGAIN, "the device of volume %s has not appeared within %u s; try again",
                             wanted->handle, NODE_DEVICE_WAIT_MS / 1000);
        pause_ms(POLL_MS);
    }
}

int node_stream_grow(struct csi_node *node, const char *stream, const char *handle, uint64_t size_bytes,
                     struct error *err)
{
    const struct node_wanted w = {
        .stream = stream, .handle = handle, .ack_mode = "", .size_bytes = size_bytes,
        .on_devices = node_store_known(node, stream)};
    uint64_t limit_ns = clock_boottime_ns(clock_system()) + NODE_DEVICE_WAIT_MS * NS_PER_MS, has = 0;
    char device[NODE_DEVICE_BYTES];
    _cleanup_json_ json_t *status = NULL;
    int r = load_status(node, stream, &status, err);
    const json_t *volume = r == 0 ? find_volume(status, handle) : NULL;
    if (r == 0 && !volume)
        r = error_set(err, -ENOENT, "stream %s has no volume %s on node %s", stream, handle,
                      node->options.node_name);
    if (r == 0 && (uint64_t)json_integer_value(json_object_get(volume, "size_bytes")) < size_bytes)
        r = apply(node, &w, status, err);
    for (; r == 0; pause_ms(POLL_MS)) {
        r = node_stream_device(node, stream, handle, device, err);
        if (r == 0)
            r = node_device_size(device, &has, err);
        if (r < 0 || has >= size_bytes)
            return r;
        if (clock_boottime_ns(clock_system()) > limit_ns)
            return error_set(err, -EAGAIN,
                             "the device of volume %s has not grown to %" PRIu64
                             " bytes within %u s; try again",
                             handle, size_bytes, NODE_DEVICE_WAIT_MS / 1000);
    }
    return r;
}
