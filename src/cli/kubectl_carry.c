/* SPDX-License-Identifier: Apache-2.0 */
/* adopt and release without a copy: the volume of the other driver goes on to hold the data, as the raw device below one of Tidemark's (csi/adopted.h).
 *
 * Invariants: C1 the former volume has Retain, and says which volume it carries, before anything else is made, and until the claim has it again or all of that
 * is gone; C2 one of the two has the device attached at a time: the next is made, or may be used, when the attachments of the last are gone; C3 nothing is
 * written to the device before the claim's new volume is used: what looks at it reads; C4 the claim gets its former volume back only when no rewind is being
 * copied back, so that the device has what the volume had.
 *
 * Whether the driver gives the volume as a device is known when it was tried: a pod of the driver's namespace has it for a moment and tells what is on it. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/uuid.h"
#include "cli/kubectl_move_internal.h"
#include "csi/adopted.h"
#include "kube/exec.h"

#define FOUND "tidemark.io/found" /* of the raw device's volume: what the pod told that looked */
#define TRY_S 60u
#define DETACHED_S 180u
#define RECORD_LABEL "tidemark.io/volume-record"

static const char *name_of(const json_t *object)
{
    const char *name = kube_object_name(object);
    return name ? name : "";
}

static const char *handle_of(const json_t *former)
{
    const char *handle = kube_object_annotation(former, MOVE_CARRIES);
    return handle ? handle : "";
}

static bool is_carried(const json_t *volume)
{
    const json_t *csi = kubectl_at(volume, "spec", "csi");
    return strcmp(json_text(csi, "driver"), MOVE_DRIVER) == 0 && strcmp(json_text(json_object_get(csi, "volumeAttributes"), ADOPTED_ATTRIBUTE), "true") == 0;
}

static bool is_over(uint64_t begin_ns, unsigned limit_s)
{
    return clock_boottime_ns(clock_system()) - begin_ns > limit_s * NS_PER_SECOND;
}

/* C2 */
static int await_detached(struct move *m, const char *volume, struct error *err)
{
    uint64_t begin_ns = clock_boottime_ns(clock_system());
    for (;;) {
        _cleanup_json_ json_t *attachments = NULL;
        const char *node = NULL;
        size_t i;
        json_t *one;
        int r = kubectl_list(m->k, &kube_attachments, NULL, &attachments, err);
        if (r < 0)
            return r;
        json_array_foreach(attachments, i, one)
        {
            if (strcmp(move_text_at(json_object_get(one, "spec"), "source", "persistentVolumeName"), volume) == 0)
                node = move_text_at(one, "spec", "nodeName");
        }
        if (!node)
            return 0;
        if (is_over(begin_ns, DETACHED_S))
            return error_set(err, -EBUSY, "the volume %s is still attached to node %s after %u s: see what uses it there, and run the same command again", volume,
                             node, DETACHED_S);
        cli_progress_set(m->progress, "waiting until the volume is detached", 0, 0, "");
        move_pause();
    }
}

/* ---- which way ---- */

static void why_not(struct move_part *p, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void why_not(struct move_part *p, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(p->why, sizeof p->why, format, list);
    va_end(list);
    p->carry = false;
}

/* One whose journals go where the claims' volumes come from, if there is one. */
static int choose_carrier(struct move *m, struct error *err)
{
    _cleanup_json_ json_t *classes = NULL;
    const char *wanted = cli_options_value(m->k->cli, "storage-class", NULL), *like = "";
    size_t i;
    json_t *class;
    for (size_t k = m->count; k-- > 0;)
        if (m->parts[k].claim)
            like = move_text_at(m->parts[k].claim, "spec", "storageClassName");
    int r = kubectl_list(m->k, &kube_storage_classes, NULL, &classes, err);
    json_array_foreach(classes, i, class)
    {
        const json_t *parameters = json_object_get(class, "parameters");
        if (strcmp(json_text(class, "provisioner"), MOVE_DRIVER) != 0 || strcmp(json_text(parameters, "backing"), "class") != 0 ||
            (wanted && strcmp(wanted, name_of(class)) != 0))
            continue;
        if (m->carrier && strcmp(json_text(parameters, "backingClass"), like) != 0)
            continue;
        json_decref(m->carrier);
        m->carrier = json_incref(class);
        if (strcmp(json_text(parameters, "backingClass"), like) == 0)
            break;
    }
    return r;
}

static void plan_adopt(const struct move *m, struct move_part *p)
{
    struct error err = ERROR_INIT;
    const char *wanted = cli_options_value(m->k->cli, "storage-class", NULL);
    p->carry = true;
    if (!m->carrier && wanted)
        why_not(p, "the storage class %s does not have backing class", wanted);
    else if (!m->carrier)
        why_not(p, "there is no storage class of " MOVE_DRIVER " with backing class (the chart's value backingClasses makes one)");
    else if (adopted_check(p->old_volume, &err) < 0)
        why_not(p, "%s", err.message);
}

/* The record of the volume, if there is one. */
static int load_record(struct move *m, const char *handle, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *object = NULL;
    int r = move_get(m, &kube_configmaps, KUBECTL_SYSTEM_NAMESPACE, handle, &object, err);
    const char *text = json_text(json_object_get(object, "data"), "record");
    return r == 0 && object ? json_parse("the volume's record", text, strlen(text), ret, err) : r;
}

static bool is_part(const struct move *m, const char *handle)
{
    for (size_t i = 0; i < m->count; i++) {
        const struct move_part *p = &m->parts[i];
        if (p->carry && (strcmp(name_of(p->old_volume), handle) == 0 || strcmp(handle_of(p->new_volume), handle) == 0))
            return true;
    }
    return false;
}

/* A stream goes as a whole: its other volumes could not be opened without this one. */
static int check_stream(struct move *m, struct move_part *p, struct error *err)
{
    const struct kube_target target = move_target(m, &kube_configmaps, KUBECTL_SYSTEM_NAMESPACE, NULL);
    const struct kube_list_options options = {.label_selector = RECORD_LABEL "=true"};
    _cleanup_json_ json_t *records = NULL, *own = NULL;
    size_t i;
    json_t *one;
    int r = load_record(m, name_of(p->old_volume), &own, err);
    const char *stream = json_text(own, "stream");
    if (r < 0 || !*stream)
        return r;
    r = kube_list_all(m->k->client, &target, &options, &records, err);
    json_array_foreach(records, i, one)
    {
        const char *text = json_text(json_object_get(one, "data"), "record");
        _cleanup_json_ json_t *record = json_loads(text, 0, NULL);
        if (strcmp(json_text(record, "stream"), stream) == 0 && !is_part(m, name_of(one)))
            why_not(p, "its stream has another volume, %s (claim %s/%s%s): those of a stream go together", name_of(one), json_text(record, "claim_namespace"),
                    json_text(record, "claim_name"), json_integer_value(json_object_get(record, "deleted_ns")) ? ", which was deleted, and whose history is kept" : "");
    }
    return r;
}

static int plan_release(struct move *m, struct move_part *p, struct error *err)
{
    _cleanup_json_ json_t *former = NULL;
    const char *from = kube_object_annotation(p->old_volume, MOVE_FROM);
    if (!is_carried(p->old_volume) || !from)
        return 0; /* it was copied, or made by Tidemark: there is nothing to go back to */
    int r = move_get(m, &kube_volumes, NULL, from, &former, err);
    if (r < 0)
        return r;
    p->carry = true;
    if (!former || strcmp(handle_of(former), name_of(p->old_volume)) != 0)
        why_not(p, "its former volume, %s, is gone", from);
    else if (cli_options_value(m->k->cli, "storage-class", NULL))
        why_not(p, "a storage class was asked for");
    return 0;
}

int carry_plan(struct move *m, struct error *err)
{
    int r = m->adopt ? choose_carrier(m, err) : 0;
    for (size_t i = 0; i < m->count && r == 0; i++) {
        struct move_part *p = &m->parts[i];
        if (p->new_volume && (!move_is_to_do(p) || !m->adopt)) /* it is under way */
            p->carry = m->adopt ? is_carried(p->new_volume) : *handle_of(p->new_volume);
        else if (!move_is_to_do(p) || m->want_copy)
            continue;
        else if (p->new_volume)
            p->carry = is_carried(p->new_volume);
        else if (m->adopt)
            plan_adopt(m, p);
        else
            r = plan_release(m, p, err);
    }
    for (size_t i = 0; i < m->count && r == 0 && !m->adopt; i++)
        if (m->parts[i].carry && move_is_to_do(&m->parts[i]) && !m->parts[i].new_volume)
            r = check_stream(m, &m->parts[i], err);
    return r;
}

/* ---- adopting ---- */

/* C1 */
static int keep_former(struct move *m, struct move_part *p, struct error *err)
{
    char handle[CSI_HANDLE_BYTES], text[UUID_TEXT_BYTES];
    const char *name = name_of(p->old_volume), *policy = kube_object_annotation(p->old_volume, MOVE_POLICY);
    struct uuid uuid;
    json_t *kept = NULL;
    int r = uuid_random(&uuid, err);
    if (r < 0)
        return r;
    snprintf(handle, sizeof handle, "tm-%s", uuid_format(&uuid, text));
    r = move_patch_volume(m, name,
                          json_pack("{s:{s:{s:s, s:s}}, s:{s:s}}", "metadata", "annotations", MOVE_CARRIES,
                                    *handle_of(p->old_volume) ? handle_of(p->old_volume) : handle, MOVE_POLICY,
                                    policy ? policy : move_text_at(p->old_volume, "spec", "persistentVolumeReclaimPolicy"), "spec",
                                    "persistentVolumeReclaimPolicy", "Retain"),
                          &kept, err);
    if (r < 0)
        return r;
    json_decref(p->old_volume);
    p->old_volume = kept;
    return 0;
}

/* What the kubelet says of the pod. True: it is of no use to wait any longer. */
static bool look_at_events(struct move *m, const char *pod, char *ret_text, size_t size)
{
    char selector[CLASS_NAME_BYTES + 64];
    const struct kube_target target = move_target(m, &kube_events, KUBECTL_SYSTEM_NAMESPACE, NULL);
    snprintf(selector, sizeof selector, "involvedObject.kind=Pod,involvedObject.name=%s", pod);
    const struct kube_list_options options = {.field_selector = selector};
    _cleanup_json_ json_t *events = NULL;
    struct error ignored = ERROR_INIT;
    size_t i;
    json_t *one;
    if (kube_list_all(m->k->client, &target, &options, &events, &ignored) < 0)
        return false;
    json_array_foreach(events, i, one)
    {
        const char *message = json_text(one, "message");
        if (strcmp(json_text(one, "type"), "Warning") != 0)
            continue;
        const char *said = strstr(message, "desc = "); /* what the driver itself says */
        snprintf(ret_text, size, "%.400s", said ? said + strlen("desc = ") : message);
        if (adopted_is_refusal(message))
            return true;
    }
    return false;
}

static const json_t *end_of(const json_t *pod)
{
    return kubectl_at(json_array_get(kubectl_at(pod, "status", "containerStatuses"), 0), "state", "terminated");
}

/* 1: the pod has ended and *ret_text is what it told; 0: it will not, and that says why. */
static int run_look(struct move *m, const char *handle, char *ret_text, size_t size, struct error *err)
{
    char name[CLASS_NAME_BYTES], image[512], step[CLI_TEXT_BYTES];
    uint64_t begin_ns = clock_boottime_ns(clock_system());
    adopted_look_name(handle, name);
    int r = move_image(m, image, err);
    if (r == 0)
        r = move_delete(m, &kube_pods, KUBECTL_SYSTEM_NAMESPACE, name, NULL, err); /* of an earlier try */
    if (r == 0)
        r = move_make(m, &kube_pods, KUBECTL_SYSTEM_NAMESPACE, adopted_look_pod(handle, KUBECTL_SYSTEM_NAMESPACE, image), err);
    snprintf(ret_text, size, "it was not given as a block device within %u s", TRY_S);
    while (r == 0) {
        _cleanup_json_ json_t *pod = NULL;
        r = move_get(m, &kube_pods, KUBECTL_SYSTEM_NAMESPACE, name, &pod, err);
        const char *phase = move_text_at(pod, "status", "phase"), *message = json_text(end_of(pod), "message");
        if (r == 0 && !pod)
            return error_set(err, -EIO, "the pod %s that looks at the volume was deleted: run the same command again", name);
        if (r < 0)
            return r;
        if (strcmp(phase, "Succeeded") == 0) {
            snprintf(ret_text, size, "%.100s", message);
            return 1;
        }
        if (strcmp(phase, "Failed") == 0) {
            snprintf(ret_text, size, "the pod that looked at it failed: %.400s", message);
            return 0;
        }
        if (look_at_events(m, name, ret_text, size) || is_over(begin_ns, TRY_S))
            return 0;
        snprintf(step, sizeof step, "trying the volume as a block device (%s)", move_waits_for(pod));
        cli_progress_set(m->progress, step, 0, 0, "");
        move_pause();
    }
    return r;
}

/* 1: *ret_bytes and ret_type; 0: it cannot be, p->why. */
static int look(struct move *m, struct move_part *p, const char *handle, uint64_t *ret_bytes, char ret_type[ADOPTED_TYPE_BYTES], struct error *err)
{
    char backing[CLASS_NAME_BYTES], name[CLASS_NAME_BYTES], text[600];
    bool block = strcmp(move_text_at(p->claim, "spec", "volumeMode"), "Block") == 0;
    struct error reason = ERROR_INIT;
    _cleanup_json_ json_t *volume = NULL;
    adopted_backing_name(handle, backing);
    adopted_look_name(handle, name);
    int r = move_get(m, &kube_volumes, NULL, backing, &volume, err);
    if (r < 0)
        return r;
    const char *found = kube_object_annotation(volume, FOUND);
    snprintf(text, sizeof text, "%s", found ? found : "");
    r = found ? 1 : run_look(m, handle, text, sizeof text, err);
    if (r < 0)
        return r;
    if (r == 0)
        why_not(p, "its driver (%s) does not give it as a block device: %s", json_text(kubectl_at(p->old_volume, "spec", "csi"), "driver"), text);
    else if (adopted_read_look(text, block, ret_bytes, ret_type, &reason) < 0)
        why_not(p, "%s", reason.message);
    if (!p->carry)
        return 0;
    if (!found)
        r = move_patch_volume(m, backing, json_pack("{s:{s:{s:s}}}", "metadata", "annotations", FOUND, text), NULL, err);
    if (r >= 0)
        r = move_delete(m, &kube_pods, KUBECTL_SYSTEM_NAMESPACE, name, NULL, err);
    return r < 0 ? r : 1;
}

static int make_record(struct move *m, const struct move_part *p, const char *handle, uint64_t bytes, struct error *err)
{
    struct csi_volume v;
    int r = adopted_record(json_object_get(m->carrier, "parameters"), p->old_volume, handle, bytes, &v, err);
    if (r < 0)
        return r;
    _cleanup_json_ json_t *record = csi_volume_to_json(&v);
    _cleanup_free_ char *text = record ? json_to_text(record) : NULL;
    if (!text)
        return error_set(err, -ENOMEM, "out of memory");
    return move_make(m, &kube_configmaps, KUBECTL_SYSTEM_NAMESPACE,
                     json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s}}, s:{s:s}}", "apiVersion", "v1", "kind", "ConfigMap", "metadata", "name", handle, "namespace",
                               KUBECTL_SYSTEM_NAMESPACE, "labels", RECORD_LABEL, "true", "data", "record", text),
                     err);
}

/* With it the exchange has begun: from here on the command only goes on. */
static int make_volume(struct move *m, struct move_part *p, const char *handle, const char *type, struct error *err)
{
    char key[2 * MOVE_NAME_BYTES];
    const char *policy = kube_object_annotation(p->old_volume, MOVE_POLICY);
    _cleanup_free_ char *text = move_claim_text(p, handle, NULL);
    json_t *volume = adopted_volume(p->old_volume, handle, type, json_text(json_object_get(m->carrier, "parameters"), "ackMode"));
    json_t *annotations = kubectl_at(volume, "metadata", "annotations");
    snprintf(key, sizeof key, "%s/%s", m->namespace, p->name);
    json_object_set_new(annotations, MOVE_MOVING, json_string(key));
    json_object_set_new(annotations, MOVE_CLAIM, json_string(text ? text : ""));
    json_object_set_new(annotations, MOVE_POLICY, json_string(policy ? policy : "Retain"));
    json_object_set_new(annotations, MOVE_FROM, json_string(name_of(p->old_volume)));
    if (!text || !volume) {
        json_decref(volume);
        return error_set(err, -ENOMEM, "out of memory");
    }
    int r = move_make(m, &kube_volumes, NULL, volume, err);
    return r == 0 ? move_get(m, &kube_volumes, NULL, handle, &p->new_volume, err) : r;
}

int carry_adopt(struct move *m, struct move_part *p, struct error *err)
{
    char type[ADOPTED_TYPE_BYTES] = "";
    uint64_t bytes = 0;
    int r = keep_former(m, p, err);
    if (r == 0)
        r = await_detached(m, name_of(p->old_volume), err);
    if (r < 0)
        return r;
    const char *handle = handle_of(p->old_volume);
    r = move_make(m, &kube_volumes, NULL, adopted_backing_volume(p->old_volume, handle, KUBECTL_SYSTEM_NAMESPACE), err);
    if (r == 0)
        r = move_make(m, &kube_claims, KUBECTL_SYSTEM_NAMESPACE, adopted_backing_claim(p->old_volume, handle, KUBECTL_SYSTEM_NAMESPACE), err);
    if (r == 0)
        r = look(m, p, handle, &bytes, type, err);
    if (r < 0)
        return r;
    if (!p->carry)
        return carry_undo(m, p, err);
    r = make_record(m, p, handle, bytes, err);
    return r == 0 ? make_volume(m, p, handle, type, err) : r;
}

int carry_undo(struct move *m, const struct move_part *p, struct error *err)
{
    _cleanup_json_ json_t *former = NULL;
    char backing[CLASS_NAME_BYTES], name[CLASS_NAME_BYTES];
    int r = move_get(m, &kube_volumes, NULL, name_of(p->old_volume), &former, err);
    const char *handle = handle_of(former), *policy = kube_object_annotation(former, MOVE_POLICY);
    if (r < 0 || !*handle)
        return r;
    adopted_backing_name(handle, backing);
    adopted_look_name(handle, name);
    cli_progress_set(m->progress, "taking away what was made for the try", 0, 0, "");
    r = move_delete(m, &kube_volumes, NULL, handle, NULL, err);
    if (r == 0)
        r = move_delete(m, &kube_configmaps, KUBECTL_SYSTEM_NAMESPACE, handle, NULL, err);
    if (r == 0)
        r = move_delete(m, &kube_pods, KUBECTL_SYSTEM_NAMESPACE, name, NULL, err);
    if (r == 0)
        r = move_delete(m, &kube_claims, KUBECTL_SYSTEM_NAMESPACE, handle, NULL, err);
    if (r == 0) /* C2 */
        r = await_detached(m, backing, err);
    if (r == 0)
        r = move_delete(m, &kube_volumes, NULL, backing, NULL, err);
    if (r < 0)
        return r;
    return move_patch_volume(m, name_of(former),
                             json_pack("{s:{s:{s:n, s:n}}, s:{s:s}}", "metadata", "annotations", MOVE_CARRIES, MOVE_POLICY, "spec",
                                       "persistentVolumeReclaimPolicy", policy ? policy : "Retain"),
                             NULL, err);
}

/* ---- releasing ---- */

static bool is_to_return(const struct move_part *p)
{
    return p->carry && move_is_to_do(p);
}

/* Has the volumes opened, and nothing else. */
static json_t *holding_pod(struct move *m, const char *name, const char *image)
{
    json_t *volumes = json_array(), *mounts = json_array(), *devices = json_array();
    for (size_t i = 0; i < m->count; i++) {
        const struct move_part *p = &m->parts[i];
        char volume[32], path[48];
        if (!is_to_return(p))
            continue;
        snprintf(volume, sizeof volume, "volume-%zu", i);
        snprintf(path, sizeof path, "/volumes/%zu", i);
        json_array_append_new(volumes, json_pack("{s:s, s:{s:s}}", "name", volume, "persistentVolumeClaim", "claimName", p->name));
        if (strcmp(move_text_at(p->claim, "spec", "volumeMode"), "Block") == 0)
            json_array_append_new(devices, json_pack("{s:s, s:s}", "name", volume, "devicePath", path));
        else
            json_array_append_new(mounts, json_pack("{s:s, s:s}", "name", volume, "mountPath", path));
    }
    return json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s}}, s:{s:s, s:b, s:i, s:o, s:[{s:s, s:s, s:s, s:[s,s], s:o, s:o, s:{s:b, s:b, s:i, s:{s:[s]}, s:{s:s}}}]}}",
                     "apiVersion", "v1", "kind", "Pod", "metadata", "name", name, "namespace", m->namespace, "labels", "app.kubernetes.io/managed-by", "tidemark",
                     "spec", "restartPolicy", "Never", "automountServiceAccountToken", 0, "terminationGracePeriodSeconds", 1, "volumes", volumes, "containers",
                     "name", "hold", "image", image, "imagePullPolicy", "IfNotPresent", "command", "sleep", "infinity", "volumeMounts", mounts, "volumeDevices",
                     devices, "securityContext", "allowPrivilegeEscalation", 0, "runAsNonRoot", 1, "runAsUser", 65534, "capabilities", "drop", "ALL",
                     "seccompProfile", "type", "RuntimeDefault");
}

static int hold_volumes(struct move *m, const char *name, char ret_node[CSI_LABEL_BYTES], struct error *err)
{
    char image[512], step[CLI_TEXT_BYTES];
    int r = move_image(m, image, err);
    if (r == 0)
        r = move_delete(m, &kube_pods, NULL, name, NULL, err);
    if (r == 0)
        r = move_make(m, &kube_pods, NULL, holding_pod(m, name, image), err);
    while (r == 0) {
        _cleanup_json_ json_t *pod = NULL;
        r = move_get(m, &kube_pods, NULL, name, &pod, err);
        const char *phase = move_text_at(pod, "status", "phase");
        if (r == 0 && (!pod || strcmp(phase, "Failed") == 0))
            r = error_set(err, -EIO, "the pod %s that has the volumes opened was ended: nothing was changed; run the same command again", name);
        if (r < 0)
            return r;
        if (strcmp(phase, "Running") == 0) {
            snprintf(ret_node, CSI_LABEL_BYTES, "%s", move_text_at(pod, "spec", "nodeName"));
            return 0;
        }
        snprintf(step, sizeof step, "opening the volumes (%s)", move_waits_for(pod));
        cli_progress_set(m->progress, step, 0, 0, "");
        move_pause();
    }
    return r;
}

/* What the node's data plane says of the stream. */
static int ask_node(struct move *m, const char *node, const char *stream, json_t **ret, struct error *err)
{
    const struct kube_target target = move_target(m, &kube_pods, KUBECTL_SYSTEM_NAMESPACE, NULL);
    char selector[CSI_LABEL_BYTES + 32];
    snprintf(selector, sizeof selector, "spec.nodeName=%s", node);
    const struct kube_list_options options = {.label_selector = "app.kubernetes.io/component=data", .field_selector = selector};
    _cleanup_json_ json_t *pods = NULL, *answer = NULL;
    _cleanup_free_ char *output = NULL;
    size_t i;
    json_t *one;
    int status = 0;
    int r = kube_list_all(m->k->client, &target, &options, &pods, err);
    const json_t *pod = json_array_get(pods, 0), *container = json_array_get(kubectl_at(pod, "spec", "containers"), 0);
    const char *socket = "--socket=/run/tidemark/data.sock";
    json_array_foreach(json_object_get(container, "args"), i, one)
    {
        if (strncmp(json_string_value(one) ? json_string_value(one) : "", "--socket=", 9) == 0)
            socket = json_string_value(one);
    }
    if (r == 0 && !pod)
        r = error_set(err, -EAGAIN, "no data pod of Tidemark runs on node %s", node);
    if (r < 0)
        return r;
    const char *const argv[] = {"tidemark", "status", stream, "-o", "json", socket, NULL};
    const struct kube_exec exec = {.namespace = KUBECTL_SYSTEM_NAMESPACE, .pod = name_of(pod), .container = json_text(container, "name"), .argv = argv};
    r = kube_exec_collect(m->k->client, &exec, &status, &output, err);
    if (r == 0 && status != 0)
        r = error_set(err, -EIO, "the data plane of node %s does not tell how stream %s is: %.300s", node, stream, output);
    if (r == 0)
        r = json_parse("the status", output, strlen(output), &answer, err);
    *ret = r == 0 ? json_incref(json_array_get(json_object_get(answer, "applications"), 0)) : NULL;
    return r < 0 ? error_context(err, "whether a rewind is still being copied back") : 0;
}

/* C4 */
static int await_whole(struct move *m, const struct move_part *p, const char *pod_name, const char *node, struct error *err)
{
    _cleanup_json_ json_t *record = NULL;
    int r = load_record(m, name_of(p->old_volume), &record, err);
    const char *stream = json_text(record, "stream");
    if (r == 0 && !*stream)
        r = error_set(err, -EIO, "the record of volume %s is gone from namespace " KUBECTL_SYSTEM_NAMESPACE, name_of(p->old_volume));
    while (r == 0) {
        _cleanup_json_ json_t *status = NULL, *pod = NULL;
        r = move_get(m, &kube_pods, NULL, pod_name, &pod, err);
        if (r == 0 && strcmp(move_text_at(pod, "status", "phase"), "Running") != 0)
            r = error_set(err, -EIO, "the pod %s that has the volumes opened was ended: nothing was changed; run the same command again", pod_name);
        if (r == 0)
            r = ask_node(m, node, stream, &status, err);
        if (r < 0 || adopted_is_whole(status))
            return r;
        cli_progress_set(m->progress, "waiting until a rewind is copied back", 0, 0, "");
        move_pause();
    }
    return r;
}

/* Which there are; -EBUSY while one is under way. */
static int list_recoveries(struct move *m, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *recoveries = NULL;
    size_t i;
    json_t *one;
    int r = kubectl_list(m->k, &kubectl_recoveries, m->namespace, &recoveries, err);
    *ret = r == 0 ? json_array() : NULL;
    json_array_foreach(recoveries, i, one)
    {
        json_array_append_new(*ret, json_string(kube_object_uid(one)));
        if (r == 0 && !kubectl_recovery_has_ended(one))
            r = error_set(err, -EBUSY, "the Recovery %s is under way: run the same command again when it has ended", name_of(one));
    }
    return r;
}

int carry_settle(struct move *m, struct error *err)
{
    _cleanup_json_ json_t *before = NULL, *after = NULL;
    char pod[MOVE_NAME_BYTES + sizeof MOVE_SUFFIX] = "", node[CSI_LABEL_BYTES], backing[CLASS_NAME_BYTES];
    for (size_t i = m->count; i-- > 0;)
        if (is_to_return(&m->parts[i]))
            snprintf(pod, sizeof pod, "%s", m->parts[i].copy);
    if (!*pod)
        return 0;
    int r = list_recoveries(m, &before, err);
    if (r == 0)
        r = hold_volumes(m, pod, node, err);
    for (size_t i = 0; i < m->count && r == 0; i++)
        r = is_to_return(&m->parts[i]) ? await_whole(m, &m->parts[i], pod, node, err) : 0;
    struct error ignored = ERROR_INIT;
    int gone = move_delete(m, &kube_pods, NULL, pod, NULL, r == 0 ? err : &ignored);
    r = r == 0 ? gone : r;
    for (size_t i = 0; i < m->count && r == 0; i++) { /* C2 */
        if (!is_to_return(&m->parts[i]))
            continue;
        r = await_detached(m, name_of(m->parts[i].old_volume), err);
        adopted_backing_name(name_of(m->parts[i].old_volume), backing);
        if (r == 0)
            r = await_detached(m, backing, err);
    }
    if (r == 0)
        r = list_recoveries(m, &after, err);
    if (r == 0 && !json_equal(before, after))
        r = error_set(err, -EBUSY, "somebody has asked for a Recovery meanwhile: run the same command again");
    return r;
}

int carry_return(struct move *m, struct move_part *p, struct error *err)
{
    char key[2 * MOVE_NAME_BYTES], backing[CLASS_NAME_BYTES];
    const char *captured = name_of(p->old_volume), *from = kube_object_annotation(p->old_volume, MOVE_FROM);
    _cleanup_free_ char *text = move_claim_text(p, from ? from : "", NULL);
    _cleanup_json_ json_t *below = NULL;
    snprintf(key, sizeof key, "%s/%s", m->namespace, p->name);
    adopted_backing_name(captured, backing);
    int r = move_get(m, &kube_volumes, NULL, backing, &below, err);
    if (r == 0 && (!below || !from || !text))
        r = error_set(err, -EIO, "the volume %s below %s is gone", backing, captured);
    if (r < 0)
        return r;
    json_decref(p->new_volume);
    p->new_volume = NULL;
    /* It may have grown meanwhile. */
    r = move_patch_volume(m, from,
                          json_pack("{s:{s:{s:s, s:s}}, s:{s:O, s:s}}", "metadata", "annotations", MOVE_MOVING, key, MOVE_CLAIM, text, "spec", "capacity",
                                    kubectl_at(below, "spec", "capacity"), "persistentVolumeReclaimPolicy", "Retain"),
                          &p->new_volume, err);
    return r == 0 ? move_patch_volume(m, captured, json_pack("{s:{s:s}}", "spec", "persistentVolumeReclaimPolicy", "Retain"), NULL, err) : r;
}

int carry_forget(struct move *m, const struct move_part *p, struct error *err)
{
    _cleanup_json_ json_t *record = NULL;
    const char *handle = handle_of(p->new_volume);
    char backing[CLASS_NAME_BYTES], journal[CLASS_NAME_BYTES];
    int r = *handle ? load_record(m, handle, &record, err) : 0;
    const char *stream = json_text(record, "stream");
    if (r < 0 || !*handle)
        return r;
    adopted_backing_name(handle, backing);
    class_journal_name(stream, journal);
    r = move_delete(m, &kube_volumes, NULL, handle, NULL, err);
    if (r == 0)
        r = move_delete(m, &kube_claims, KUBECTL_SYSTEM_NAMESPACE, handle, NULL, err);
    if (r == 0)
        r = move_delete(m, &kube_volumes, NULL, backing, NULL, err);
    if (r == 0 && *stream)
        r = move_delete(m, &kube_claims, KUBECTL_SYSTEM_NAMESPACE, journal, NULL, err);
    return r == 0 ? move_delete(m, &kube_configmaps, KUBECTL_SYSTEM_NAMESPACE, handle, NULL, err) : r;
}
