/* SPDX-License-Identifier: Apache-2.0 */
/* The Identity service, the same in both processes. */
#include "csi/csi_internal.h"

static int plugin_info(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                       struct error *err)
{
    Csi__V1__GetPluginInfoResponse reply = CSI__V1__GET_PLUGIN_INFO_RESPONSE__INIT;
    char name[] = CSI_DRIVER_NAME, version[] = TIDEMARK_VERSION;
    (void)context;
    (void)request;
    reply.name = name;
    reply.vendor_version = version;
    return rpc_reply(call, &reply.base, err);
}

static int capabilities(void *context, struct rpc_call *call, const ProtobufCMessage *request,
                        struct error *err)
{
    Csi__V1__GetPluginCapabilitiesResponse reply = CSI__V1__GET_PLUGIN_CAPABILITIES_RESPONSE__INIT;
    Csi__V1__PluginCapability__Service services[2] = {CSI__V1__PLUGIN_CAPABILITY__SERVICE__INIT,
                                                      CSI__V1__PLUGIN_CAPABILITY__SERVICE__INIT};
    Csi__V1__PluginCapability__VolumeExpansion expansion = CSI__V1__PLUGIN_CAPABILITY__VOLUME_EXPANSION__INIT;
    Csi__V1__PluginCapability list[3] = {CSI__V1__PLUGIN_CAPABILITY__INIT, CSI__V1__PLUGIN_CAPABILITY__INIT,
                                         CSI__V1__PLUGIN_CAPABILITY__INIT};
    Csi__V1__PluginCapability *pointers[3] = {&list[0], &list[1], &list[2]};
    (void)context;
    (void)request;
    services[0].type = CSI__V1__PLUGIN_CAPABILITY__SERVICE__TYPE__CONTROLLER_SERVICE;
    services[1].type = CSI__V1__PLUGIN_CAPABILITY__SERVICE__TYPE__VOLUME_ACCESSIBILITY_CONSTRAINTS;
    for (size_t i = 0; i < 2; i++) {
        list[i].type_case = CSI__V1__PLUGIN_CAPABILITY__TYPE_SERVICE;
        list[i].service = &services[i];
    }
    expansion.type = CSI__V1__PLUGIN_CAPABILITY__VOLUME_EXPANSION__TYPE__ONLINE;
    list[2].type_case = CSI__V1__PLUGIN_CAPABILITY__TYPE_VOLUME_EXPANSION;
    list[2].volume_expansion = &expansion;
    reply.n_capabilities = 3;
    reply.capabilities = pointers;
    return rpc_reply(call, &reply.base, err);
}

static int probe(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    Csi__V1__ProbeResponse reply = CSI__V1__PROBE_RESPONSE__INIT;
    Csi__V1__BoolValue ready = CSI__V1__BOOL_VALUE__INIT;
    (void)context;
    (void)request;
    ready.value = true;
    reply.ready = &ready;
    return rpc_reply(call, &reply.base, err);
}

void csi_methods(const struct rpc_method *more, struct rpc_method ret[CSI_METHODS_MAX])
{
    size_t count = 0;
    ret[count++] = (struct rpc_method){"/csi.v1.Identity/GetPluginInfo",
                                       &csi__v1__get_plugin_info_request__descriptor, plugin_info};
    ret[count++] = (struct rpc_method){"/csi.v1.Identity/GetPluginCapabilities",
                                       &csi__v1__get_plugin_capabilities_request__descriptor, capabilities};
    ret[count++] = (struct rpc_method){"/csi.v1.Identity/Probe", &csi__v1__probe_request__descriptor, probe};
    while (more->path && count + 1 < CSI_METHODS_MAX)
        ret[count++] = *more++;
    ret[count] = (struct rpc_method){0};
}
