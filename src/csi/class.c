/* SPDX-License-Identifier: Apache-2.0 */
#include "csi/class.h"

#include <stdio.h>
#include <string.h>

#include "base/units.h"
#include "csi/csi.h"
#include "kube/kube.h"
#include "lib/json.h"

#define OUT_OF_SERVICE "node.kubernetes.io/out-of-service"

void class_journal_name(const char *stream, char ret[CLASS_NAME_BYTES])
{
    snprintf(ret, CLASS_NAME_BYTES, "%s-journal", stream);
}

void class_pod_name(const char *stream, char ret[CLASS_NAME_BYTES])
{
    snprintf(ret, CLASS_NAME_BYTES, "%s-attachment", stream);
}

uint64_t class_journal_bytes(const struct class_stream *stream)
{
    uint64_t volumes = 0, asked = 0;
    for (size_t i = 0; i < stream->count; i++) {
        volumes += stream->volumes[i].size_bytes;
        if (stream->volumes[i].journal_bytes > asked)
            asked = stream->volumes[i].journal_bytes;
    }
    if (!asked)
        asked = volumes > CLASS_JOURNAL_BYTES_MIN ? volumes : CLASS_JOURNAL_BYTES_MIN;
    return (volumes + asked + CSI_VOLUME_UNIT_BYTES - 1) / CSI_VOLUME_UNIT_BYTES * CSI_VOLUME_UNIT_BYTES;
}

/* ---- claims ---- */

static json_t *claim(const char *namespace, const char *name, const char *class_name, uint64_t bytes,
                     const char *label, const char *value)
{
    return json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s, s:s}}, s:{s:s, s:s, s:[s], s:{s:{s:o}}}}", "apiVersion",
                     "v1", "kind", "PersistentVolumeClaim", "metadata", "name", name, "namespace", namespace,
                     "labels", "app.kubernetes.io/name", "tidemark", label, value, "spec", "storageClassName",
                     class_name, "volumeMode", "Block", "accessModes", "ReadWriteOnce", "resources",
                     "requests", "storage", json_sprintf("%llu", (unsigned long long)bytes));
}

json_t *class_volume_claim(const char *namespace, const struct csi_volume *v)
{
    json_t *object =
        claim(namespace, v->handle, v->backing_class, v->size_bytes, "tidemark.io/volume", v->handle);
    if (object && *v->claim_name)
        json_object_set_new(json_object_get(object, "metadata"), "annotations",
                            json_pack("{s:o}", "tidemark.io/claim",
                                      json_sprintf("%s/%s", v->claim_namespace, v->claim_name)));
    return object;
}

json_t *class_journal_claim(const struct class_stream *stream)
{
    char name[CLASS_NAME_BYTES];
    class_journal_name(stream->name, name);
    return claim(stream->namespace, name, stream->volumes[0].backing_class, class_journal_bytes(stream),
                 CLASS_STREAM_LABEL, stream->name);
}

uint64_t class_claim_asked(const json_t *object)
{
    const json_t *requests =
        json_object_get(json_object_get(json_object_get(object, "spec"), "resources"), "requests");
    uint64_t bytes = 0;
    struct error ignored = ERROR_INIT;
    return units_parse_bytes(json_text(requests, "storage"), &bytes, &ignored) == 0 ? bytes : 0;
}

uint64_t class_claim_has(const json_t *object)
{
    const json_t *capacity = json_object_get(json_object_get(object, "status"), "capacity");
    uint64_t bytes = 0;
    struct error ignored = ERROR_INIT;
    return units_parse_bytes(json_text(capacity, "storage"), &bytes, &ignored) == 0 ? bytes : 0;
}

/* ---- the pod ---- */

static void add_device(json_t *devices, json_t *volumes, const char *name, const char *claim_name)
{
    json_array_append_new(
        devices, json_pack("{s:s, s:o}", "name", name, "devicePath", json_sprintf("/dev/tidemark/%s", name)));
    json_array_append_new(
        volumes, json_pack("{s:s, s:{s:s}}", "name", name, "persistentVolumeClaim", "claimName", claim_name));
}

/* Node affinity, not nodeName: the scheduler binds claims that wait for their first consumer. */
static json_t *affinity(const char *node)
{
    json_t *term = node ? json_pack("{s:[{s:s, s:s, s:[s]}]}", "matchFields", "key", "metadata.name",
                                    "operator", "In", "values", node)
                        : json_pack("{s:[{s:s, s:s}]}", "matchExpressions", "key", CSI_TOPOLOGY_KEY,
                                    "operator", "Exists");
    return json_pack("{s:{s:{s:[o]}}}", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution",
                     "nodeSelectorTerms", term);
}

static json_t *container(const struct class_stream *stream, json_t *devices)
{
    return json_pack(
        "{s:s, s:s, s:s, s:[s, s], s:o, s:{s:{s:s, s:s}}, s:{s:b, s:b, s:i, s:b, s:{s:[s]}, s:{s:s}}}",
        "name", "hold", "image", stream->image, "imagePullPolicy", "IfNotPresent", "command", "sleep",
        "infinity", "volumeDevices", devices, "resources", "requests", "cpu", "1m", "memory", "4Mi",
        "securityContext", "allowPrivilegeEscalation", 0, "runAsNonRoot", 1, "runAsUser", 65534,
        "readOnlyRootFilesystem", 1, "capabilities", "drop", "ALL", "seccompProfile", "type",
        "RuntimeDefault");
}

/* Where an application's pod is, its volumes follow, whatever taints the node has; a recovery takes a node
 * that is well. */
static json_t *make_pod(const struct class_stream *stream, const char *node, json_t *owners,
                        json_t *annotations)
{
    char name[CLASS_NAME_BYTES], journal[CLASS_NAME_BYTES];
    json_t *devices = json_array(), *volumes = json_array();
    class_pod_name(stream->name, name);
    class_journal_name(stream->name, journal);
    add_device(devices, volumes, "journal", journal);
    for (size_t i = 0; i < stream->count; i++)
        add_device(devices, volumes, stream->volumes[i].handle, stream->volumes[i].handle);
    json_t *tolerations = node ? json_pack("[{s:s}]", "operator", "Exists") : NULL;
    return json_pack(
        "{s:s, s:s, s:{s:s, s:s, s:{s:s, s:s, s:s}, s:o, s:o*}, s:{s:b, s:s, s:s, s:i, s:o*, s:o, "
        "s:[o], s:o}}",
        "apiVersion", "v1", "kind", "Pod", "metadata", "name", name, "namespace", stream->namespace, "labels",
        "app.kubernetes.io/name", "tidemark", "app.kubernetes.io/component", "attachment", CLASS_STREAM_LABEL,
        stream->name, "annotations", annotations, "ownerReferences", owners, "spec",
        "automountServiceAccountToken", 0, "priorityClassName", "system-node-critical", "restartPolicy",
        "Always", "terminationGracePeriodSeconds", 1, "tolerations", tolerations, "affinity", affinity(node),
        "containers", container(stream, devices), "volumes", volumes);
}

json_t *class_pod_owners(const char *node, const char *node_uid)
{
    return json_pack("[{s:s, s:s, s:s, s:s, s:b}]", "apiVersion", "v1", "kind", "Node", "name", node, "uid",
                     node_uid, "controller", 1);
}

json_t *class_pod(const struct class_stream *stream, const char *node, const char *node_uid)
{
    return make_pod(stream, node, node_uid ? class_pod_owners(node, node_uid) : NULL,
                    json_pack("{s:s}", CLASS_NODE_ANNOTATION, node));
}

json_t *class_pod_held(const struct class_stream *stream, const char *holder)
{
    return make_pod(stream, NULL, NULL, json_pack("{s:s}", CLASS_HOLDER_ANNOTATION, holder));
}

static bool holds(const json_t *pod, const char *claim_name)
{
    size_t i;
    json_t *volume;
    json_array_foreach(json_object_get(json_object_get(pod, "spec"), "volumes"), i, volume)
    {
        if (strcmp(json_text(json_object_get(volume, "persistentVolumeClaim"), "claimName"), claim_name) == 0)
            return true;
    }
    return false;
}

void class_waits_for(const json_t *pod, char *text, size_t size)
{
    const json_t *status = json_object_get(pod, "status");
    size_t i;
    json_t *one;
    snprintf(text, size, "the kubelet has not mapped its devices yet");
    json_array_foreach(json_object_get(status, "conditions"), i, one)
    {
        if (strcmp(json_text(one, "type"), "PodScheduled") == 0 &&
            strcmp(json_text(one, "status"), "False") == 0)
            snprintf(text, size, "%.300s", json_text(one, "message"));
    }
    json_array_foreach(json_object_get(status, "containerStatuses"), i, one)
    {
        const json_t *waiting = json_object_get(json_object_get(one, "state"), "waiting");
        if (waiting && strcmp(json_text(waiting, "reason"), "ContainerCreating") != 0)
            snprintf(text, size, "%.60s: %.240s", json_text(waiting, "reason"),
                     json_text(waiting, "message"));
    }
}

static bool all_ready(const json_t *status)
{
    size_t i;
    json_t *one;
    bool ready = json_array_size(json_object_get(status, "containerStatuses")) > 0;
    json_array_foreach(json_object_get(status, "containerStatuses"), i, one) ready &=
        json_is_true(json_object_get(one, "ready"));
    return ready && strcmp(json_text(status, "phase"), "Running") == 0;
}

enum class_pod_state class_look_at_pod(const json_t *pod, const struct class_stream *stream, const char *node,
                                       char *text, size_t size)
{
    const json_t *status = json_object_get(pod, "status");
    const char *on = kube_object_annotation(pod, CLASS_NODE_ANNOTATION), *phase = json_text(status, "phase");
    snprintf(text, size, "%s", on ? on : "?");
    if (!on || strcmp(on, node) != 0)
        return CLASS_POD_ELSEWHERE;
    if (json_object_get(json_object_get(pod, "metadata"), "deletionTimestamp") ||
        kube_object_annotation(pod, CLASS_LEAVING_ANNOTATION))
        return CLASS_POD_ENDING;
    if (strcmp(phase, "Failed") == 0 || strcmp(phase, "Succeeded") == 0)
        return CLASS_POD_ENDED;
    for (size_t i = 0; i < stream->count; i++)
        if (!holds(pod, stream->volumes[i].handle)) {
            snprintf(text, size, "%s", stream->volumes[i].handle);
            return CLASS_POD_LACKS;
        }
    if (all_ready(status))
        return CLASS_POD_READY;
    class_waits_for(pod, text, size);
    return CLASS_POD_PENDING;
}

/* ---- nodes ---- */

enum class_node_state class_look_at_node(const json_t *node)
{
    size_t i;
    json_t *one;
    bool ready = false, given_up = false;
    json_array_foreach(json_object_get(json_object_get(node, "status"), "conditions"), i, one)
    {
        ready |=
            strcmp(json_text(one, "type"), "Ready") == 0 && strcmp(json_text(one, "status"), "True") == 0;
    }
    json_array_foreach(json_object_get(json_object_get(node, "spec"), "taints"), i, one)
    {
        given_up |= strcmp(json_text(one, "key"), OUT_OF_SERVICE) == 0;
    }
    return given_up && !ready ? CLASS_NODE_GIVEN_UP : CLASS_NODE_THERE;
}
