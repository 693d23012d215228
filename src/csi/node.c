/* SPDX-License-Identifier: Apache-2.0 */
/* The Node service. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "control/mounts.h"
#include "csi/adopted.h"
#include "csi/node_internal.h"

#define NODE_VOLUMES_MAX 256 /* engines of one node: CONTROL_APPLICATIONS_MAX */

static void cleanup_volume(struct node_volume *volume)
{
    node_volume_release(volume);
}
#define _cleanup_volume_ __attribute__((cleanup(cleanup_volume), unused))

/* Ends what node_begin began. */
struct begun {
    struct csi_node *node;
    const char *handle;
};
static void cleanup_begun(struct begun *b)
{
    if (b->node)
        node_end(b->node, b->handle);
}
#define _cleanup_begun_ __attribute__((cleanup(cleanup_begun), unused))

/* ---- NodeStageVolume, NodeUnstageVolume ---- */

static int join_flags(const Csi__V1__VolumeCapability *capability, char ret[NODE_FLAGS_BYTES],
                      struct error *err)
{
    size_t used = 0;
    *ret = '\0';
    if (capability->access_type_case != CSI__V1__VOLUME_CAPABILITY__ACCESS_TYPE_MOUNT)
        return 0;
    for (size_t i = 0; i < capability->mount->n_mount_flags; i++) {
        int n = snprintf(ret + used, NODE_FLAGS_BYTES - used, "%s%s", used ? "," : "",
                         capability->mount->mount_flags[i]);
        if ((size_t)n >= NODE_FLAGS_BYTES - used)
            return error_set(err, -EINVAL, "mount_flags have more than 4 KiB");
        used += (size_t)n;
    }
    return 0;
}

/* Reads what is wanted; the strings are the request's. */
static int read_stage(const Csi__V1__NodeStageVolumeRequest *in, struct csi_member members[CSI_MEMBERS_MAX],
                      struct node_wanted *ret, struct error *err)
{
    const char *stream = CSI_MAP_GET(in->n_publish_context, in->publish_context, "stream");
    const char *size = CSI_MAP_GET(in->n_publish_context, in->publish_context, "size");
    const char *ack = CSI_MAP_GET(in->n_volume_context, in->volume_context, "ackMode");
    const char *told = CSI_MAP_GET(in->n_publish_context, in->publish_context, "members");
    struct node_wanted w = {
        .handle = in->volume_id, .stream = stream, .ack_mode = ack ? ack : "", .members = members};
    if (!stream || !size)
        return error_set(
            err, -EINVAL,
            "publish_context has no stream and size: the volume has to be attached by the controller "
            "(ControllerPublishVolume) first");
    int r = app_check_name(stream, err);
    if (r == 0)
        r = app_check_name(w.handle, err);
    if (r == 0 && *w.ack_mode && strcmp(w.ack_mode, "write") != 0 && strcmp(w.ack_mode, "flush") != 0)
        r = error_set(err, -EINVAL, "volume_context.ackMode is '%.40s'; expected write or flush", w.ack_mode);
    if (r == 0)
        r = units_parse_u64(size, APP_VOLUME_SIZE_BYTES_MAX, &w.size_bytes, err);
    if (r == 0 && told)
        r = csi_members_parse(told, members, err);
    if (r < 0)
        return r;
    w.member_count = (size_t)r;
    *ret = w;
    return 0;
}

/* What is staged already must be the same. */
static int check_staged(const struct node_volume *there, const struct node_volume *asked, struct error *err)
{
    if (strcmp(there->staging, asked->staging) != 0)
        return error_set(err, -EEXIST, "volume %s is staged at %s already; unstage it there first",
                         there->handle, there->staging);
    if (there->block != asked->block || strcmp(there->fs_type, asked->fs_type) != 0 ||
        strcmp(there->flags, asked->flags) != 0)
        return error_set(
            err, -EEXIST, "volume %s is staged with another capability (%s%s%s); unstage it first",
            there->handle, there->block ? "block" : there->fs_type, *there->flags ? " " : "", there->flags);
    return 0;
}

/* The volumes of another class that carry the stream; false: it has files of this node. */
static int read_attachment(const Csi__V1__NodeStageVolumeRequest *in, struct node_attachment *ret, bool *ret_on_devices, struct error *err)
{
    ret->pod = CSI_MAP_GET(in->n_publish_context, in->publish_context, "attachment");
    ret->devices = CSI_MAP_GET(in->n_publish_context, in->publish_context, "devices");
    *ret_on_devices = ret->pod != NULL;
    return ret->pod && !ret->devices ? error_set(err, -EINVAL, "publish_context has an attachment and no devices") : 0;
}

static int stage_it(struct csi_node *node, const struct node_wanted *wanted, const struct node_attachment *attachment,
                    const struct node_volume *volume, struct rpc_call *call, struct error *err)
{
    char device[NODE_DEVICE_BYTES];
    bool created = false;
    int r = wanted->on_devices ? node_store_open(node, wanted->stream, attachment, err) : 0;
    if (r == 0)
        r = node_stream_ensure(node, wanted, call, device, &created, err);
    if (r == 0)
        r = node_volume_save(node, volume, err); /* N1 */
    /* What is on somebody else's volume before its first use, nobody knows. */
    return r == 0 ? node_mount_stage(node, volume, device, created && !wanted->on_devices, err) : r;
}

static int stage(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_node *node = context;
    const Csi__V1__NodeStageVolumeRequest *in = (const Csi__V1__NodeStageVolumeRequest *)request;
    Csi__V1__NodeStageVolumeResponse reply = CSI__V1__NODE_STAGE_VOLUME_RESPONSE__INIT;
    struct csi_member members[CSI_MEMBERS_MAX];
    struct node_wanted wanted;
    struct csi_use use;
    struct error ignored = ERROR_INIT;
    _cleanup_volume_ struct node_volume volume = {0}, there = {0};
    struct node_attachment attachment;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = csi_require_path(in->staging_target_path, "staging_target_path", err);
    if (r == 0)
        r = csi_use_of(in->volume_capability, &use, err);
    if (r == 0)
        r = join_flags(in->volume_capability, volume.flags, err);
    if (r == 0)
        r = read_stage(in, members, &wanted, err);
    if (r == 0)
        r = read_attachment(in, &attachment, &wanted.on_devices, err);
    if (r == 0)
        r = node_begin_open(node, in->volume_id, wanted.stream, call, true, err);
    if (r < 0)
        return r;
    _cleanup_begun_ struct begun begun = {node, in->volume_id};
    snprintf(volume.handle, sizeof volume.handle, "%s", in->volume_id);
    snprintf(volume.stream, sizeof volume.stream, "%s", wanted.stream);
    snprintf(volume.staging, sizeof volume.staging, "%s", in->staging_target_path);
    snprintf(volume.fs_type, sizeof volume.fs_type, "%s", use.fs_type);
    volume.block = use.block;
    const char *adopted = CSI_MAP_GET(in->n_volume_context, in->volume_context, ADOPTED_ATTRIBUTE);
    volume.adopted = adopted && strcmp(adopted, "true") == 0;
    r = node_volume_load(node, in->volume_id, &there, &ignored);
    if (r == 0)
        r = check_staged(&there, &volume, err);
    else if (r != -ENOENT)
        *err = ignored;
    else
        r = 0;
    if (r == 0 && !(volume.targets = there.targets ? json_incref(there.targets) : json_object()))
        r = error_set(err, -ENOMEM, "out of memory");
    if (r == 0 && wanted.on_devices)
        r = node_store_begin(node, wanted.stream, err);
    if (r == 0) {
        r = stage_it(node, &wanted, &attachment, &volume, call, err);
        if (wanted.on_devices)
            node_store_end(node, wanted.stream);
    }
    return r < 0 ? r : rpc_reply(call, &reply.base, err);
}

static int unstage(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_node *node = context;
    const Csi__V1__NodeUnstageVolumeRequest *in = (const Csi__V1__NodeUnstageVolumeRequest *)request;
    Csi__V1__NodeUnstageVolumeResponse reply = CSI__V1__NODE_UNSTAGE_VOLUME_RESPONSE__INIT;
    _cleanup_volume_ struct node_volume volume = {0};
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = csi_require_path(in->staging_target_path, "staging_target_path", err);
    if (r == 0)
        r = node_begin(node, in->volume_id, "", err);
    if (r < 0)
        return r;
    _cleanup_begun_ struct begun begun = {node, in->volume_id};
    r = node_volume_load(node, in->volume_id, &volume, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return rpc_reply(call, &reply.base, err);
    }
    if (r == 0 && node_volume_published(&volume))
        r = error_set(err, -EBUSY, "volume %s is still mounted in %zu pods; unpublish it there first",
                      volume.handle, node_volume_published(&volume));
    if (r == 0)
        r = node_mount_unstage(&volume, err);
    if (r == 0)
        r = node_volume_remove(node, in->volume_id, err);
    if (r == 0)
        node_store_unstaged(node, volume.stream);
    return r < 0 ? r : rpc_reply(call, &reply.base, err);
}

/* ---- NodePublishVolume, NodeUnpublishVolume ---- */

static int check_publish(const struct node_volume *v, const Csi__V1__NodePublishVolumeRequest *in,
                         const struct csi_use *use, struct error *err)
{
    const char *path;
    json_t *target;
    char source[256];
    if (strcmp(v->staging, in->staging_target_path) != 0)
        return error_set(err, -EBUSY, "volume %s is staged at %s, not at %s; stage it there first", v->handle,
                         v->staging, in->staging_target_path);
    if (v->block != use->block)
        return error_set(err, -EINVAL, "volume %s is staged as %s, not as %s; unstage it first", v->handle,
                         v->block ? "block device" : "file system",
                         use->block ? "block device" : "file system");
    if (v->block && (in->readonly || use->read_only))
        return error_set(err, -EINVAL,
                         "volume %s: a raw block device cannot be given read-only to one pod; use volumeMode "
                         "Filesystem, or "
                         "leave readOnly out",
                         v->handle);
    json_object_foreach(v->targets, path, target)
    {
        bool single = use->single_writer || json_is_true(json_object_get(target, "single"));
        if (single && strcmp(path, in->target_path) != 0 && mounts_source(path, source, sizeof source) == 0)
            return error_set(err, -EBUSY,
                             "volume %s is for one pod only (ReadWriteOncePod) and mounted on %s; delete the "
                             "pod that uses it",
                             v->handle, path);
    }
    return 0;
}

static int publish_it(struct csi_node *node, struct node_volume *v,
                      const Csi__V1__NodePublishVolumeRequest *in, const struct csi_use *use,
                      struct error *err)
{
    char device[NODE_DEVICE_BYTES], source[256];
    bool read_only = in->readonly || use->read_only;
    int r = check_publish(v, in, use, err);
    if (r == 0)
        r = node_stream_device(node, v->stream, v->handle, device, err);
    if (r == 0 && !v->block &&
        (mounts_source(v->staging, source, sizeof source) < 0 || strcmp(source, device) != 0))
        r = error_set(err, -EBUSY, "volume %s is not mounted at %s (the node was restarted?); stage it again",
                      v->handle, v->staging);
    if (r == 0)
        json_object_set_new(v->targets, in->target_path,
                            json_pack("{s:b, s:b}", "read_only", read_only, "single", use->single_writer));
    if (r == 0)
        r = node_volume_save(node, v, err); /* N1 */
    return r == 0 ? node_mount_publish(v, device, in->target_path, read_only, err) : r;
}

static int publish(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_node *node = context;
    const Csi__V1__NodePublishVolumeRequest *in = (const Csi__V1__NodePublishVolumeRequest *)request;
    Csi__V1__NodePublishVolumeResponse reply = CSI__V1__NODE_PUBLISH_VOLUME_RESPONSE__INIT;
    _cleanup_volume_ struct node_volume volume = {0}, before = {0};
    struct csi_use use;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = csi_require_path(in->target_path, "target_path", err);
    if (r == 0)
        r = csi_use_of(in->volume_capability, &use, err);
    if (r == 0 && !*in->staging_target_path)
        r = error_set(err, -EBUSY, "staging_target_path is missing: the volume has to be staged first");
    if (r == 0)
        r = node_volume_load(node, in->volume_id, &before, err); /* its stream */
    /* While the pod before has it still, the kubelet does not unmount that one as long as this call runs; and the gate waits for just that. */
    if (r == 0)
        r = node_begin_open(node, in->volume_id, before.stream, call, !node_volume_published_elsewhere(&before, in->target_path), err);
    if (r < 0)
        return r;
    _cleanup_begun_ struct begun begun = {node, in->volume_id};
    r = node_volume_load(node, in->volume_id, &volume, err);
    if (r == 0)
        r = publish_it(node, &volume, in, &use, err);
    return r < 0 ? r : rpc_reply(call, &reply.base, err);
}

static int unpublish(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_node *node = context;
    const Csi__V1__NodeUnpublishVolumeRequest *in = (const Csi__V1__NodeUnpublishVolumeRequest *)request;
    Csi__V1__NodeUnpublishVolumeResponse reply = CSI__V1__NODE_UNPUBLISH_VOLUME_RESPONSE__INIT;
    _cleanup_volume_ struct node_volume volume = {0};
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = csi_require_path(in->target_path, "target_path", err);
    if (r == 0)
        r = node_begin(node, in->volume_id, "", err);
    if (r < 0)
        return r;
    _cleanup_begun_ struct begun begun = {node, in->volume_id};
    r = node_mount_unpublish(in->target_path, err);
    if (r < 0)
        return r;
    r = node_volume_load(node, in->volume_id, &volume, err);
    if (r == 0 && json_object_del(volume.targets, in->target_path) == 0)
        r = node_volume_save(node, &volume, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        r = 0;
    }
    return r < 0 ? r : rpc_reply(call, &reply.base, err);
}

/* ---- NodeGetVolumeStats, NodeExpandVolume ---- */

/* The path is where the volume is staged or published. */
static int check_path(const struct node_volume *v, const char *path, struct error *err)
{
    char source[256];
    if ((strcmp(path, v->staging) == 0 && v->block) ||
        ((strcmp(path, v->staging) == 0 || json_object_get(v->targets, path)) &&
         mounts_source(path, source, sizeof source) == 0))
        return 0;
    return error_set(err, -ENOENT, "volume %s is not mounted on %s", v->handle, path);
}

static int stats(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_node *node = context;
    const Csi__V1__NodeGetVolumeStatsRequest *in = (const Csi__V1__NodeGetVolumeStatsRequest *)request;
    Csi__V1__NodeGetVolumeStatsResponse reply = CSI__V1__NODE_GET_VOLUME_STATS_RESPONSE__INIT;
    Csi__V1__VolumeUsage bytes = CSI__V1__VOLUME_USAGE__INIT, inodes = CSI__V1__VOLUME_USAGE__INIT;
    Csi__V1__VolumeUsage *usage[] = {&bytes, &inodes};
    _cleanup_volume_ struct node_volume volume = {0};
    char device[NODE_DEVICE_BYTES];
    struct statvfs fs;
    uint64_t size = 0;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = csi_require(in->volume_path, "volume_path", err);
    if (r == 0)
        r = node_volume_load(node, in->volume_id, &volume, err);
    if (r == 0)
        r = check_path(&volume, in->volume_path, err);
    if (r < 0)
        return r;
    bytes.unit = CSI__V1__VOLUME_USAGE__UNIT__BYTES;
    inodes.unit = CSI__V1__VOLUME_USAGE__UNIT__INODES;
    reply.usage = usage;
    if (volume.block) {
        r = node_stream_device(node, volume.stream, volume.handle, device, err);
        if (r == 0)
            r = node_device_size(device, &size, err);
        bytes.total = (int64_t)size;
        reply.n_usage = 1;
        return r < 0 ? r : rpc_reply(call, &reply.base, err);
    }
    if (statvfs(in->volume_path, &fs) < 0)
        return error_errno(err, -EIO, "cannot tell how full %s is", in->volume_path);
    bytes.total = (int64_t)(fs.f_blocks * fs.f_frsize);
    bytes.available = (int64_t)(fs.f_bavail * fs.f_frsize);
    bytes.used = (int64_t)((fs.f_blocks - fs.f_bfree) * fs.f_frsize);
    inodes.total = (int64_t)fs.f_files;
    inodes.available = (int64_t)fs.f_ffree;
    inodes.used = (int64_t)(fs.f_files - fs.f_ffree);
    reply.n_usage = 2;
    return rpc_reply(call, &reply.base, err);
}

static int expand(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_node *node = context;
    const Csi__V1__NodeExpandVolumeRequest *in = (const Csi__V1__NodeExpandVolumeRequest *)request;
    Csi__V1__NodeExpandVolumeResponse reply = CSI__V1__NODE_EXPAND_VOLUME_RESPONSE__INIT;
    _cleanup_volume_ struct node_volume volume = {0};
    char device[NODE_DEVICE_BYTES];
    uint64_t size = 0;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0)
        r = csi_require(in->volume_path, "volume_path", err);
    if (r == 0)
        r = csi_size_of(in->capacity_range, APP_VOLUME_SIZE_BYTES_MIN, &size, err);
    if (r == 0)
        r = node_begin(node, in->volume_id, "", err);
    if (r < 0)
        return r;
    _cleanup_begun_ struct begun begun = {node, in->volume_id};
    r = node_volume_load(node, in->volume_id, &volume, err);
    if (r == 0)
        r = check_path(&volume, in->volume_path, err);
    if (r == 0)
        r = node_stream_grow(node, volume.stream, volume.handle, size, err);
    if (r == 0)
        r = node_stream_device(node, volume.stream, volume.handle, device, err);
    if (r == 0)
        r = node_mount_grow(&volume, device, err);
    if (r == 0)
        r = node_device_size(device, &size, err);
    reply.capacity_bytes = (int64_t)size;
    return r < 0 ? r : rpc_reply(call, &reply.base, err);
}

/* ---- NodeGetCapabilities, NodeGetInfo ---- */

static int capabilities(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                        struct error *err)
{
    static const Csi__V1__NodeServiceCapability__RPC__Type types[] = {
        CSI__V1__NODE_SERVICE_CAPABILITY__RPC__TYPE__STAGE_UNSTAGE_VOLUME,
        CSI__V1__NODE_SERVICE_CAPABILITY__RPC__TYPE__GET_VOLUME_STATS,
        CSI__V1__NODE_SERVICE_CAPABILITY__RPC__TYPE__EXPAND_VOLUME,
        CSI__V1__NODE_SERVICE_CAPABILITY__RPC__TYPE__SINGLE_NODE_MULTI_WRITER,
    };
    enum { COUNT = sizeof types / sizeof *types };
    Csi__V1__NodeGetCapabilitiesResponse reply = CSI__V1__NODE_GET_CAPABILITIES_RESPONSE__INIT;
    Csi__V1__NodeServiceCapability list[COUNT], *pointers[COUNT];
    Csi__V1__NodeServiceCapability__RPC rpcs[COUNT];
    (void)context;
    (void)request;
    for (size_t i = 0; i < COUNT; i++) {
        list[i] = (Csi__V1__NodeServiceCapability)CSI__V1__NODE_SERVICE_CAPABILITY__INIT;
        rpcs[i] = (Csi__V1__NodeServiceCapability__RPC)CSI__V1__NODE_SERVICE_CAPABILITY__RPC__INIT;
        rpcs[i].type = types[i];
        list[i].type_case = CSI__V1__NODE_SERVICE_CAPABILITY__TYPE_RPC;
        list[i].rpc = &rpcs[i];
        pointers[i] = &list[i];
    }
    reply.n_capabilities = COUNT;
    reply.capabilities = pointers;
    return rpc_reply(call, &reply.base, err);
}

static int info(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    const struct csi_node *node = context;
    Csi__V1__NodeGetInfoResponse reply = CSI__V1__NODE_GET_INFO_RESPONSE__INIT;
    Csi__V1__Topology topology = CSI__V1__TOPOLOGY__INIT;
    Csi__V1__Topology__SegmentsEntry segment = CSI__V1__TOPOLOGY__SEGMENTS_ENTRY__INIT,
                                     *segments[] = {&segment};
    char key[] = CSI_TOPOLOGY_KEY, name[CSI_LABEL_BYTES];
    (void)request;
    snprintf(name, sizeof name, "%s", node->options.node_name);
    segment.key = key;
    segment.value = name;
    topology.n_segments = 1;
    topology.segments = segments;
    reply.node_id = name;
    reply.max_volumes_per_node = NODE_VOLUMES_MAX;
    reply.accessible_topology = &topology;
    return rpc_reply(call, &reply.base, err);
}

const struct rpc_method csi_node_methods[] = {
    {"/csi.v1.Node/NodeStageVolume", &csi__v1__node_stage_volume_request__descriptor, stage},
    {"/csi.v1.Node/NodeUnstageVolume", &csi__v1__node_unstage_volume_request__descriptor, unstage},
    {"/csi.v1.Node/NodePublishVolume", &csi__v1__node_publish_volume_request__descriptor, publish},
    {"/csi.v1.Node/NodeUnpublishVolume", &csi__v1__node_unpublish_volume_request__descriptor, unpublish},
    {"/csi.v1.Node/NodeGetVolumeStats", &csi__v1__node_get_volume_stats_request__descriptor, stats},
    {"/csi.v1.Node/NodeExpandVolume", &csi__v1__node_expand_volume_request__descriptor, expand},
    {"/csi.v1.Node/NodeGetCapabilities", &csi__v1__node_get_capabilities_request__descriptor, capabilities},
    {"/csi.v1.Node/NodeGetInfo", &csi__v1__node_get_info_request__descriptor, info},
    {0},
};
