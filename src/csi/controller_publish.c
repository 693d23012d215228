/* SPDX-License-Identifier: Apache-2.0 */
/* The Controller service's second half: attaching, listing, growing. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "csi/csi_internal.h"

#define MEMBERS_BYTES (CSI_MEMBERS_MAX * (CSI_HANDLE_BYTES + 24))

static int save(struct csi_controller *controller, const struct csi_volume *volume, struct error *err)
{
    return controller->options.records->save(controller->options.records_context, volume, err);
}

/* ---- streams ---- */

/* The volumes that the pod mounts get one stream: the one that any of them has already, else a new one, named
 * after the first of them. Mutex held. */
static int decide_stream(struct csi_controller *controller, struct csi_volume *volume, const char *node,
                         struct error *err)
{
    char handles[CSI_MEMBERS_MAX][CSI_HANDLE_BYTES], stream[CSI_HANDLE_BYTES] = "";
    size_t count = 0;
    const struct csi_cluster_ops *cluster = controller->options.cluster;
    if (cluster) {
        int r = cluster->together(controller->options.cluster_context, volume, node, handles, &count, err);
        if (r < 0)
            return r;
    }
    _cleanup_free_ struct csi_volume *mates = calloc(count ? count : 1, sizeof *mates);
    if (!mates)
        return error_set(err, -ENOMEM, "out of memory");
    const char *first = volume->handle;
    for (size_t i = 0; i < count; i++) {
        struct error ignored = ERROR_INIT;
        if (csi_controller_load(controller, handles[i], &mates[i], &ignored) < 0)
            continue; /* of another driver, or deleted meanwhile */
        if (strcmp(mates[i].backing, volume->backing) != 0) {
            mates[i].handle[0] = '\0'; /* what stays on a node and what moves cannot be one stream */
            continue;
        }
        if (*mates[i].stream && !*stream)
            memcpy(stream, mates[i].stream, sizeof stream);
        if (strcmp(mates[i].handle, first) < 0)
            first = mates[i].handle;
    }
    if (!*stream)
        snprintf(stream, sizeof stream, "%s", first);
    for (size_t i = 0; i < count; i++) {
        if (!*mates[i].handle || *mates[i].stream || strcmp(mates[i].handle, volume->handle) == 0)
            continue;
        memcpy(mates[i].stream, stream, sizeof stream);
        int r = save(controller, &mates[i], err);
        if (r < 0)
            return r;
    }
    memcpy(volume->stream, stream, sizeof stream);
    return 0;
}

/* "handle=bytes,..." of all volumes of the stream. Mutex held. */
static int format_members(struct csi_controller *controller, const char *stream, char ret[MEMBERS_BYTES],
                          struct error *err)
{
    _cleanup_free_ struct csi_volume *all = NULL;
    size_t count = 0, used = 0, members = 0;
    *ret = '\0';
    int r = controller->options.records->list(controller->options.records_context, &all, &count, err);
    for (size_t i = 0; i < count && r == 0; i++) {
        if (all[i].deleted_ns || strcmp(all[i].stream, stream) != 0)
            continue;
        if (members++ == CSI_MEMBERS_MAX)
            return error_set(err, -ENOSPC,
                             "stream %s has more than %u volumes: mount fewer volumes in one pod", stream,
                             CSI_MEMBERS_MAX);
        used += (size_t)snprintf(ret + used, MEMBERS_BYTES - used, "%s%s=%" PRIu64, used ? "," : "",
                                 all[i].handle, all[i].size_bytes);
    }
    return r;
}

/* ---- ControllerPublishVolume ---- */

static int check_node(struct csi_controller *controller, const char *node, struct error *err)
{
    if (strlen(node) >= CSI_LABEL_BYTES)
        return error_set(err, -ENOENT, "there is no node '%.100s'", node);
    if (controller->options.cluster)
        return controller->options.cluster->check_node(controller->options.cluster_context, node, err);
    for (const char *const *n = controller->options.nodes; n && *n; n++)
        if (strcmp(*n, node) == 0)
            return 0;
    return controller->options.nodes ? error_set(err, -ENOENT, "there is no node '%s'", node) : 0;
}

static int reply_published(struct rpc_call *call, const struct csi_volume *volume, char *members,
                           struct csi_attachment *attachment, struct error *err)
{
    Csi__V1__ControllerPublishVolumeResponse reply = CSI__V1__CONTROLLER_PUBLISH_VOLUME_RESPONSE__INIT;
    Csi__V1__ControllerPublishVolumeResponse__PublishContextEntry entries[5], *pointers[5];
    char keys[5][12] = {"stream", "size", "members", "attachment", "devices"}, stream[CSI_HANDLE_BYTES], size[24];
    memcpy(stream, volume->stream, sizeof stream);
    snprintf(size, sizeof size, "%" PRIu64, volume->size_bytes);
    char *const values[5] = {stream, size, members, attachment->pod, attachment->devices};
    const size_t count = csi_is_class(volume) ? 5 : 3;
    for (size_t i = 0; i < count; i++) {
        entries[i] = (Csi__V1__ControllerPublishVolumeResponse__PublishContextEntry)
            CSI__V1__CONTROLLER_PUBLISH_VOLUME_RESPONSE__PUBLISH_CONTEXT_ENTRY__INIT;
        entries[i].key = keys[i];
        entries[i].value = values[i];
        pointers[i] = &entries[i];
    }
    reply.n_publish_context = count;
    reply.publish_context = pointers;
    return rpc_reply(call, &reply.base, err);
}

/* Whether the volume may be used on the node now. */
static int check_place(const struct csi_volume *v, const char *node, struct error *err)
{
    if (*v->published_node && strcmp(v->published_node, node) != 0)
        return error_set(
            err, -EBUSY,
            "volume %s is attached to node %s: it can be attached to %s once it is detached there", v->handle,
            v->published_node, node);
    if (!csi_is_class(v) && *v->node && strcmp(v->node, node) != 0)
        return error_set(err, -EBUSY,
                         "volume %s has its files on node %s (backing host) and cannot be attached to %s: "
                         "run the pod there, "
                         "or use a StorageClass with backing class",
                         v->handle, v->node, node);
    return 0;
}

/* The record says that it is published (K2); *ret and `members` are as they are then. */
static int note_published(struct csi_controller *controller, const char *handle, const char *node, struct csi_volume *ret,
                          char members[MEMBERS_BYTES], struct error *err)
{
    struct csi_volume volume;
    MUTEX_GUARD(guard, &controller->mutex);
    int r = csi_controller_load(controller, handle, &volume, err);
    if (r == 0)
        r = check_node(controller, node, err);
    if (r == 0)
        r = check_place(&volume, node, err);
    if (r < 0)
        return r;
    bool changed = !*volume.published_node || !*volume.stream || strcmp(volume.node, node) != 0;
    if (!*volume.stream)
        r = decide_stream(controller, &volume, node, err);
    memcpy(volume.published_node, node, strlen(node) + 1);
    memcpy(volume.node, node, strlen(node) + 1);
    if (r == 0 && changed)
        r = save(controller, &volume, err);
    if (r == 0)
        r = format_members(controller, volume.stream, members, err);
    if (r == 0 && changed)
        log_info(controller->options.log, "volume %s: attached to %s, stream %s", volume.handle, node, volume.stream);
    *ret = volume;
    return r;
}

int csi_controller_publish(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                           struct error *err)
{
    struct csi_controller *controller = context;
    const Csi__V1__ControllerPublishVolumeRequest *in =
        (const Csi__V1__ControllerPublishVolumeRequest *)request;
    char members[MEMBERS_BYTES];
    struct csi_volume volume;
    struct csi_use use;
    _cleanup_free_ struct csi_attachment *attachment = calloc(1, sizeof *attachment);
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = csi_require(in->node_id, "node_id", err);
    if (r == 0)
        r = csi_use_of(in->volume_capability, &use, err);
    if (r == 0 && in->readonly)
        r = error_set(err, -EINVAL,
                      "readonly is not served when attaching; mount the volume read-only in the pod");
    if (r == 0 && !attachment)
        r = error_set(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = note_published(controller, in->volume_id, in->node_id, &volume, members, err);
    if (r == 0 && csi_is_class(&volume))
        r = csi_class_attach(controller, &volume, call, attachment, err);
    return r < 0 ? r : reply_published(call, &volume, members, attachment, err);
}

/* 1: `volume` is published on the node that is meant; 0: there is nothing to detach. Of backing host that is all. */
static int note_unpublished(struct csi_controller *controller, const Csi__V1__ControllerUnpublishVolumeRequest *in,
                            struct csi_volume *volume, struct error *err)
{
    MUTEX_GUARD(guard, &controller->mutex);
    int r = csi_controller_load(controller, in->volume_id, volume, err);
    if (r == -ENOENT) { /* it is gone */
        *err = ERROR_INIT;
        return 0;
    }
    if (r < 0 || !*volume->published_node || (*in->node_id && strcmp(in->node_id, volume->published_node) != 0))
        return r;
    if (csi_is_class(volume))
        return 1;
    log_info(controller->options.log, "volume %s: detached from %s", volume->handle, volume->published_node);
    volume->published_node[0] = '\0';
    return save(controller, volume, err);
}

int csi_controller_unpublish(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                             struct error *err)
{
    struct csi_controller *controller = context;
    const Csi__V1__ControllerUnpublishVolumeRequest *in =
        (const Csi__V1__ControllerUnpublishVolumeRequest *)request;
    Csi__V1__ControllerUnpublishVolumeResponse reply = CSI__V1__CONTROLLER_UNPUBLISH_VOLUME_RESPONSE__INIT;
    struct csi_volume volume;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = note_unpublished(controller, in, &volume, err);
    if (r > 0)
        r = csi_class_detach(controller, &volume, call, err);
    return r < 0 ? r : rpc_reply(call, &reply.base, err);
}

/* ---- ControllerExpandVolume ---- */

/* What carries a volume of backing class grows first. */
static int load_and_carry(struct csi_controller *controller, const char *handle, uint64_t size_bytes, const struct rpc_call *call,
                          struct error *err)
{
    struct csi_volume volume;
    {
        MUTEX_GUARD(guard, &controller->mutex);
        int r = csi_controller_load(controller, handle, &volume, err);
        if (r < 0 || !csi_is_class(&volume) || size_bytes <= volume.size_bytes)
            return r;
    }
    return csi_class_expand(controller, &volume, size_bytes, call, err);
}

int csi_controller_expand(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                          struct error *err)
{
    struct csi_controller *controller = context;
    const Csi__V1__ControllerExpandVolumeRequest *in =
        (const Csi__V1__ControllerExpandVolumeRequest *)request;
    Csi__V1__ControllerExpandVolumeResponse reply = CSI__V1__CONTROLLER_EXPAND_VOLUME_RESPONSE__INIT;
    struct csi_volume volume;
    uint64_t size = 0;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0 && !in->capacity_range)
        r = error_set(err, -EINVAL, "capacity_range is missing");
    if (r == 0)
        r = csi_size_of(in->capacity_range, CSI_VOLUME_BYTES_DEFAULT, &size, err);
    if (r < 0)
        return r;
    r = load_and_carry(controller, in->volume_id, size, call, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &controller->mutex);
    r = csi_controller_load(controller, in->volume_id, &volume, err);
    if (r == 0 && in->capacity_range->limit_bytes &&
        volume.size_bytes > (uint64_t)in->capacity_range->limit_bytes)
        r = error_set(err, -ERANGE,
                      "volume %s has %" PRIu64 " bytes, more than the limit of %" PRId64
                      ": volumes do not shrink",
                      volume.handle, volume.size_bytes, in->capacity_range->limit_bytes);
    if (r == 0 && size > volume.size_bytes) {
        volume.size_bytes = size;
        r = save(controller, &volume, err);
    }
    if (r < 0)
        return r;
    reply.capacity_bytes = (int64_t)volume.size_bytes;
    reply.node_expansion_required = true;
    return rpc_reply(call, &reply.base, err);
}

/* ---- ListVolumes ---- */

struct listing {
    Csi__V1__ListVolumesResponse__Entry entry;
    Csi__V1__ListVolumesResponse__VolumeStatus status;
    Csi__V1__Volume volume;
    char *node;
};

static void fill(struct listing *l, struct csi_volume *v)
{
    l->entry = (Csi__V1__ListVolumesResponse__Entry)CSI__V1__LIST_VOLUMES_RESPONSE__ENTRY__INIT;
    l->status =
        (Csi__V1__ListVolumesResponse__VolumeStatus)CSI__V1__LIST_VOLUMES_RESPONSE__VOLUME_STATUS__INIT;
    l->volume = (Csi__V1__Volume)CSI__V1__VOLUME__INIT;
    l->volume.volume_id = v->handle;
    l->volume.capacity_bytes = (int64_t)v->size_bytes;
    l->node = v->published_node;
    l->status.n_published_node_ids = *v->published_node ? 1 : 0;
    l->status.published_node_ids = &l->node;
    l->entry.volume = &l->volume;
    l->entry.status = &l->status;
}

/* The token is the last handle of the page before: it stays good when that volume is deleted meanwhile. */
static int check_token(const char *token, struct error *err)
{
    if (!*token || (strncmp(token, "tm-", 3) == 0 && strlen(token) < CSI_HANDLE_BYTES))
        return 0;
    return error_set(err, -EALREADY,
                     "starting_token '%.60s' is none of this driver's: list from the beginning", token);
}

int csi_controller_list(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                        struct error *err)
{
    struct csi_controller *controller = context;
    const Csi__V1__ListVolumesRequest *in = (const Csi__V1__ListVolumesRequest *)request;
    Csi__V1__ListVolumesResponse reply = CSI__V1__LIST_VOLUMES_RESPONSE__INIT;
    _cleanup_free_ struct csi_volume *all = NULL;
    size_t count = 0, shown = 0, most = in->max_entries > 0 ? (size_t)in->max_entries : SIZE_MAX;
    int r = check_token(in->starting_token, err);
    if (r == 0 && in->max_entries < 0)
        r = error_set(err, -EINVAL, "max_entries is negative");
    if (r < 0)
        return r;
    {
        MUTEX_GUARD(guard, &controller->mutex);
        r = controller->options.records->list(controller->options.records_context, &all, &count, err);
    }
    if (r < 0)
        return r;
    _cleanup_free_ struct listing *listings = calloc(count ? count : 1, sizeof *listings);
    _cleanup_free_ Csi__V1__ListVolumesResponse__Entry **pointers =
        calloc(count ? count : 1, sizeof *pointers);
    if (!listings || !pointers)
        return error_set(err, -ENOMEM, "out of memory");
    for (size_t i = 0; i < count; i++) {
        if (all[i].deleted_ns || strcmp(all[i].handle, in->starting_token) <= 0)
            continue;
        if (shown == most) {
            reply.next_token = listings[shown - 1].volume.volume_id;
            break;
        }
        fill(&listings[shown], &all[i]);
        pointers[shown] = &listings[shown].entry;
        shown++;
    }
    reply.n_entries = shown;
    reply.entries = pointers;
    return rpc_reply(call, &reply.base, err);
}
