/* SPDX-License-Identifier: Apache-2.0 */
/* The Controller service: volumes come and go as records; their files are made by the node at the first
 * stage.
 *
 * Threads: handlers run in the workers of the RPC server; controller.mutex is held over each change. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/thread.h"
#include "base/units.h"
#include "base/uuid.h"
#include "csi/csi_internal.h"

#define WORKERS 8u

int csi_controller_load(struct csi_controller *controller, const char *handle, struct csi_volume *ret,
                        struct error *err)
{
    struct csi_volume volume;
    int r = controller->options.records->load(controller->options.records_context, handle, &volume, err);
    if (r == 0 && volume.deleted_ns)
        return error_set(err, -ENOENT, "there is no volume %s: it was deleted", handle);
    if (r == 0)
        *ret = volume;
    return r;
}

/* ---- CreateVolume ---- */

static int take_parameter(const char *key, const char *value, struct csi_volume *v, struct error *err)
{
    const struct {
        const char *key;
        char *text;
        size_t size;
    } known[] = {{"backing", v->backing, sizeof v->backing},
                 {"backingClass", v->backing_class, sizeof v->backing_class},
                 {"ackMode", v->ack_mode, sizeof v->ack_mode},
                 {"csi.storage.k8s.io/pvc/namespace", v->claim_namespace, sizeof v->claim_namespace},
                 {"csi.storage.k8s.io/pvc/name", v->claim_name, sizeof v->claim_name}};
    if (strcmp(key, "journalSize") == 0) {
        int r = units_parse_bytes(value, &v->journal_bytes, err);
        return r < 0 ? error_context(err, "parameter journalSize of the StorageClass") : 0;
    }
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(key, known[i].key) == 0) {
            if (strlen(value) >= known[i].size)
                return error_set(err, -EINVAL, "parameter %s is too long: '%.60s'", key, value);
            memcpy(known[i].text, value, strlen(value) + 1);
            return 0;
        }
    if (strncmp(key, "csi.storage.k8s.io/", 19) == 0)
        return 0;
    return error_set(
        err, -EINVAL,
        "unknown parameter '%.100s' of the StorageClass; there are backing, backingClass, journalSize and ackMode", key);
}

static int take_parameters(const struct csi_controller *controller, const Csi__V1__CreateVolumeRequest *in, struct csi_volume *v,
                           struct error *err)
{
    snprintf(v->backing, sizeof v->backing, "host");
    for (size_t i = 0; i < in->n_parameters; i++) {
        int r = take_parameter(in->parameters[i]->key, in->parameters[i]->value, v, err);
        if (r < 0)
            return r;
    }
    if (strcmp(v->backing, "host") != 0 && !csi_is_class(v))
        return error_set(err, -EINVAL, "parameter backing of the StorageClass is '%s'; expected host or class", v->backing);
    if (*v->ack_mode && strcmp(v->ack_mode, "write") != 0 && strcmp(v->ack_mode, "flush") != 0)
        return error_set(err, -EINVAL,
                         "parameter ackMode of the StorageClass is '%s'; expected write or flush",
                         v->ack_mode);
    return csi_class_check(controller, v, err);
}

/* The node where the files shall be: the first that is preferred, else the first that is possible; "" when
 * the request does not say. */
static int choose_node(const Csi__V1__TopologyRequirement *asked, char ret[CSI_LABEL_BYTES],
                       struct error *err)
{
    const char *node = NULL;
    *ret = '\0';
    if (!asked)
        return 0;
    for (size_t i = 0; i < asked->n_preferred && !node; i++)
        node = CSI_MAP_GET(asked->preferred[i]->n_segments, asked->preferred[i]->segments, CSI_TOPOLOGY_KEY);
    for (size_t i = 0; i < asked->n_requisite && !node; i++)
        node = CSI_MAP_GET(asked->requisite[i]->n_segments, asked->requisite[i]->segments, CSI_TOPOLOGY_KEY);
    if (!node)
        return error_set(err, -ENOSPC,
                         "no topology of the request has the key " CSI_TOPOLOGY_KEY
                         ": the node agent (tidemark node) has to run on the node");
    if (strlen(node) >= CSI_LABEL_BYTES)
        return error_set(err, -EINVAL, "the node's name is too long");
    memcpy(ret, node, strlen(node) + 1);
    return 0;
}

static int reply_created(struct rpc_call *call, const struct csi_volume *v, struct error *err)
{
    Csi__V1__CreateVolumeResponse reply = CSI__V1__CREATE_VOLUME_RESPONSE__INIT;
    Csi__V1__Volume volume = CSI__V1__VOLUME__INIT;
    Csi__V1__Volume__VolumeContextEntry ack = CSI__V1__VOLUME__VOLUME_CONTEXT_ENTRY__INIT,
                                        *context[] = {&ack};
    Csi__V1__Topology topology = CSI__V1__TOPOLOGY__INIT, *topologies[] = {&topology};
    Csi__V1__Topology__SegmentsEntry segment = CSI__V1__TOPOLOGY__SEGMENTS_ENTRY__INIT,
                                     *segments[] = {&segment};
    char ack_key[] = "ackMode", node_key[] = CSI_TOPOLOGY_KEY;
    struct csi_volume copy = *v;
    volume.volume_id = copy.handle;
    volume.capacity_bytes = (int64_t)v->size_bytes;
    ack.key = ack_key;
    ack.value = copy.ack_mode;
    volume.volume_context = context;
    volume.n_volume_context = *v->ack_mode ? 1 : 0;
    segment.key = node_key;
    segment.value = copy.node;
    topology.segments = segments;
    topology.n_segments = 1;
    volume.accessible_topology = topologies;
    volume.n_accessible_topology = *v->node ? 1 : 0;
    reply.volume = &volume;
    return rpc_reply(call, &reply.base, err);
}

/* 1: the volume of that name (*ret); 0: none. Mutex held. */
static int find_by_name(struct csi_controller *controller, const char *name, struct csi_volume *ret,
                        struct error *err)
{
    _cleanup_free_ struct csi_volume *all = NULL;
    size_t count = 0;
    int r = controller->options.records->list(controller->options.records_context, &all, &count, err);
    for (size_t i = 0; i < count && r == 0; i++)
        if (!all[i].deleted_ns && strcmp(all[i].name, name) == 0) {
            *ret = all[i];
            r = 1;
        }
    return r;
}

/* The same name again: the same volume, if it is what is asked for now. */
static int check_same(const struct csi_volume *there, const struct csi_volume *asked,
                      const Csi__V1__CapacityRange *range, struct error *err)
{
    uint64_t required = range ? (uint64_t)range->required_bytes : 0,
             limit = range ? (uint64_t)range->limit_bytes : 0;
    char has[UNITS_TEXT_BYTES];
    if (there->size_bytes < required || (limit && there->size_bytes > limit))
        return error_set(err, -EEXIST,
                         "a volume named %s exists with another size (%s, %s): delete it first, or choose "
                         "another name",
                         there->name, there->handle, units_format_bytes(there->size_bytes, has));
    if (strcmp(there->backing, asked->backing) != 0 || strcmp(there->ack_mode, asked->ack_mode) != 0 ||
        strcmp(there->backing_class, asked->backing_class) != 0)
        return error_set(err, -EEXIST,
                         "a volume named %s exists with other parameters (%s): delete it first, or choose "
                         "another name",
                         there->name, there->handle);
    return 0;
}

static int new_handle(char ret[CSI_HANDLE_BYTES], struct error *err)
{
    struct uuid uuid;
    char text[UUID_TEXT_BYTES];
    int r = uuid_random(&uuid, err);
    if (r == 0)
        snprintf(ret, CSI_HANDLE_BYTES, "tm-%s", uuid_format(&uuid, text));
    return r;
}

static int check_create(const struct csi_controller *controller, const Csi__V1__CreateVolumeRequest *in, struct csi_volume *v, struct error *err)
{
    struct csi_use use;
    int r = csi_require(in->name, "name", err);
    if (r == 0 && strlen(in->name) >= sizeof v->name)
        r = error_set(err, -EINVAL, "name is longer than %zu bytes", sizeof v->name - 1);
    if (r == 0 && !in->n_volume_capabilities)
        r = error_set(err, -EINVAL, "volume_capabilities is missing");
    for (size_t i = 0; i < in->n_volume_capabilities && r == 0; i++)
        r = csi_use_of(in->volume_capabilities[i], &use, err);
    if (r == 0 && in->volume_content_source)
        r = error_set(
            err, -EINVAL,
            "volume_content_source is not served; open or restore a moment with a Recovery instead");
    if (r == 0)
        r = take_parameters(controller, in, v, err);
    if (r == 0)
        r = csi_size_of(in->capacity_range, CSI_VOLUME_BYTES_DEFAULT, &v->size_bytes, err);
    if (r == 0 && !csi_is_class(v)) /* what another class carries goes wherever that one goes */
        r = choose_node(in->accessibility_requirements, v->node, err);
    if (r == 0)
        memcpy(v->name, in->name, strlen(in->name) + 1);
    return r;
}

/* What carries it, beyond its record. */
static int provision(const struct csi_controller *controller, const struct csi_volume *v, struct error *err)
{
    const struct csi_class_ops *ops = controller->options.classes;
    return csi_is_class(v) ? ops->provision(controller->options.classes_context, v, err) : 0;
}

static int create(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_controller *controller = context;
    const Csi__V1__CreateVolumeRequest *in = (const Csi__V1__CreateVolumeRequest *)request;
    struct csi_volume asked = {0}, there;
    int r = check_create(controller, in, &asked, err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &controller->mutex);
    r = find_by_name(controller, in->name, &there, err);
    if (r > 0) {
        r = check_same(&there, &asked, in->capacity_range, err);
        if (r == 0)
            r = provision(controller, &there, err);
        return r < 0 ? r : reply_created(call, &there, err);
    }
    if (r == 0)
        r = new_handle(asked.handle, err);
    if (r == 0)
        r = controller->options.records->save(controller->options.records_context, &asked, err);
    if (r == 0)
        r = provision(controller, &asked, err);
    if (r < 0)
        return r;
    log_info(controller->options.log, "volume %s: created for %s", asked.handle, asked.name);
    return reply_created(call, &asked, err);
}

/* ---- DeleteVolume ---- */

/* The record stays as a tombstone: history is kept on the node. */
static int delete (void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_controller *controller = context;
    const Csi__V1__DeleteVolumeRequest *in = (const Csi__V1__DeleteVolumeRequest *)request;
    Csi__V1__DeleteVolumeResponse reply = CSI__V1__DELETE_VOLUME_RESPONSE__INIT;
    struct csi_volume volume;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r < 0)
        return r;
    MUTEX_GUARD(guard, &controller->mutex);
    r = csi_controller_load(controller, in->volume_id, &volume, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return rpc_reply(call, &reply.base, err);
    }
    if (r == 0 && *volume.published_node)
        r = error_set(
            err, -EBUSY,
            "volume %s is attached to node %s: it can be deleted once the pods that use it are gone",
            volume.handle, volume.published_node);
    if (r < 0)
        return r;
    volume.deleted_ns = clock_realtime_ns(clock_system());
    r = controller->options.records->save(controller->options.records_context, &volume, err);
    if (r < 0)
        return r;
    log_info(controller->options.log, "volume %s: deleted, its history is kept", volume.handle);
    return rpc_reply(call, &reply.base, err);
}

/* ---- ValidateVolumeCapabilities, ControllerGetCapabilities ---- */

static int validate(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    struct csi_controller *controller = context;
    const Csi__V1__ValidateVolumeCapabilitiesRequest *in =
        (const Csi__V1__ValidateVolumeCapabilitiesRequest *)request;
    Csi__V1__ValidateVolumeCapabilitiesResponse reply = CSI__V1__VALIDATE_VOLUME_CAPABILITIES_RESPONSE__INIT;
    Csi__V1__ValidateVolumeCapabilitiesResponse__Confirmed confirmed =
        CSI__V1__VALIDATE_VOLUME_CAPABILITIES_RESPONSE__CONFIRMED__INIT;
    struct csi_volume volume;
    struct csi_use use;
    struct error reason = ERROR_INIT;
    int r = csi_require(in->volume_id, "volume_id", err);
    if (r == 0 && !in->n_volume_capabilities)
        r = error_set(err, -EINVAL, "volume_capabilities is missing");
    if (r < 0)
        return r;
    {
        MUTEX_GUARD(guard, &controller->mutex);
        r = csi_controller_load(controller, in->volume_id, &volume, err);
    }
    if (r < 0)
        return r;
    for (size_t i = 0; i < in->n_volume_capabilities && r == 0; i++)
        r = csi_use_of(in->volume_capabilities[i], &use, &reason);
    if (r < 0)
        reply.message = reason.message;
    else {
        confirmed.n_volume_capabilities = in->n_volume_capabilities;
        confirmed.volume_capabilities = in->volume_capabilities;
        reply.confirmed = &confirmed;
    }
    return rpc_reply(call, &reply.base, err);
}

static int capabilities(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                        struct error *err)
{
    static const Csi__V1__ControllerServiceCapability__RPC__Type types[] = {
        CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__TYPE__CREATE_DELETE_VOLUME,
        CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__TYPE__PUBLISH_UNPUBLISH_VOLUME,
        CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__TYPE__LIST_VOLUMES,
        CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__TYPE__LIST_VOLUMES_PUBLISHED_NODES,
        CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__TYPE__EXPAND_VOLUME,
        CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__TYPE__SINGLE_NODE_MULTI_WRITER,
    };
    enum { COUNT = sizeof types / sizeof *types };
    Csi__V1__ControllerGetCapabilitiesResponse reply = CSI__V1__CONTROLLER_GET_CAPABILITIES_RESPONSE__INIT;
    Csi__V1__ControllerServiceCapability list[COUNT], *pointers[COUNT];
    Csi__V1__ControllerServiceCapability__RPC rpcs[COUNT];
    (void)context;
    (void)request;
    for (size_t i = 0; i < COUNT; i++) {
        list[i] = (Csi__V1__ControllerServiceCapability)CSI__V1__CONTROLLER_SERVICE_CAPABILITY__INIT;
        rpcs[i] =
            (Csi__V1__ControllerServiceCapability__RPC)CSI__V1__CONTROLLER_SERVICE_CAPABILITY__RPC__INIT;
        rpcs[i].type = types[i];
        list[i].type_case = CSI__V1__CONTROLLER_SERVICE_CAPABILITY__TYPE_RPC;
        list[i].rpc = &rpcs[i];
        pointers[i] = &list[i];
    }
    reply.n_capabilities = COUNT;
    reply.capabilities = pointers;
    return rpc_reply(call, &reply.base, err);
}

static const struct rpc_method methods[] = {
    {"/csi.v1.Controller/CreateVolume", &csi__v1__create_volume_request__descriptor, create},
    {"/csi.v1.Controller/DeleteVolume", &csi__v1__delete_volume_request__descriptor, delete},
    {"/csi.v1.Controller/ControllerPublishVolume", &csi__v1__controller_publish_volume_request__descriptor,
     csi_controller_publish},
    {"/csi.v1.Controller/ControllerUnpublishVolume",
     &csi__v1__controller_unpublish_volume_request__descriptor, csi_controller_unpublish},
    {"/csi.v1.Controller/ValidateVolumeCapabilities",
     &csi__v1__validate_volume_capabilities_request__descriptor, validate},
    {"/csi.v1.Controller/ListVolumes", &csi__v1__list_volumes_request__descriptor, csi_controller_list},
    {"/csi.v1.Controller/ControllerGetCapabilities",
     &csi__v1__controller_get_capabilities_request__descriptor, capabilities},
    {"/csi.v1.Controller/ControllerExpandVolume", &csi__v1__controller_expand_volume_request__descriptor,
     csi_controller_expand},
    {0},
};

int csi_controller_start(const struct csi_controller_options *options, struct csi_controller **ret,
                         struct error *err)
{
    struct csi_controller *controller = calloc(1, sizeof *controller);
    if (!controller)
        return error_set(err, -ENOMEM, "out of memory");
    controller->options = *options;
    pthread_mutex_init(&controller->mutex, NULL);
    thread_cond_init(&controller->changed);
    csi_methods(methods, controller->methods);
    const struct rpc_server_options server = {.socket_path = options->socket_path,
                                              .methods = controller->methods,
                                              .context = controller,
                                              .workers = WORKERS,
                                              .log = options->log};
    int r = rpc_server_start(&server, &controller->server, err);
    if (r < 0) {
        pthread_cond_destroy(&controller->changed);
        pthread_mutex_destroy(&controller->mutex);
        free(controller);
        return r;
    }
    *ret = controller;
    return 0;
}

bool csi_controller_stop(struct csi_controller *controller)
{
    if (!controller)
        return true;
    if (!rpc_server_stop(controller->server))
        return false;
    pthread_cond_destroy(&controller->changed);
    pthread_mutex_destroy(&controller->mutex);
    free(controller);
    return true;
}
