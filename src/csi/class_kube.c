/* SPDX-License-Identifier: Apache-2.0 */
/* struct csi_class_ops over a Kubernetes API server. Each call looks once, does the next thing that is to be
 * done, and says -EAGAIN with what is waited for; so it can be repeated, and a controller that is killed goes
 * on with the next call. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "csi/class.h"
#include "csi/cluster.h"
#include "lib/json.h"

static struct kube_target target(const struct csi_cluster *cluster, const struct kube_resource *resource,
                                 const char *name)
{
    return (struct kube_target){.resource = resource,
                                .namespace = resource->namespaced ? cluster->namespace : NULL,
                                .name = name,
                                .field_manager = "tidemark-csi"};
}

/* 1: there; 0: not. */
static int find(const struct csi_cluster *cluster, const struct kube_resource *resource, const char *name,
                json_t **ret, struct error *err)
{
    const struct kube_target t = target(cluster, resource, name);
    int r = kube_get(cluster->client, &t, ret, err);
    if (r != -ENOENT)
        return r < 0 ? error_context(err, "%s %s", resource->kind, name) : 1;
    *err = ERROR_INIT;
    return 0;
}

/* Takes `object`. One that is there already is taken as it is. */
static int make(const struct csi_cluster *cluster, const struct kube_resource *resource, json_t *object,
                struct error *err)
{
    _cleanup_json_ json_t *o = object;
    const struct kube_target t = target(cluster, resource, NULL);
    const char *name = o ? kube_object_name(o) : NULL;
    if (!name)
        return error_set(err, -ENOMEM, "out of memory");
    int r = kube_create(cluster->client, &t, o, NULL, err);
    if (r == -EEXIST) {
        *err = ERROR_INIT;
        return 0;
    }
    return r < 0 ? error_context(err, "%s %s", resource->kind, name) : 0;
}

static int destroy(const struct csi_cluster *cluster, const struct kube_resource *resource, const char *name,
                   struct error *err)
{
    const struct kube_target t = target(cluster, resource, name);
    int r = kube_delete(cluster->client, &t, NULL, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    return r < 0 ? error_context(err, "%s %s", resource->kind, name) : 0;
}

/* ---- claims ---- */

static int check_class(const struct csi_cluster *cluster, const char *name, struct error *err)
{
    _cleanup_json_ json_t *object = NULL;
    int r = find(cluster, &kube_storage_classes, name, &object, err);
    if (r == 0)
        return error_set(err, -EINVAL, "backingClass: there is no StorageClass %s; make it, or name another",
                         name);
    if (r > 0 && strcmp(json_text(object, "provisioner"), CSI_DRIVER_NAME) == 0)
        return error_set(err, -EINVAL,
                         "backingClass: the StorageClass %s is Tidemark's own; name one of another storage",
                         name);
    return r < 0 ? r : 0;
}

static int provision(void *context, const struct csi_volume *v, struct error *err)
{
    struct csi_cluster *cluster = context;
    int r = check_class(cluster, v->backing_class, err);
    return r == 0 ? make(cluster, &kube_claims, class_volume_claim(cluster->namespace, v), err) : r;
}

/* Asks for more, if it asks for less. What a class refuses is an error. */
static int ask_for(const struct csi_cluster *cluster, const json_t *claim, uint64_t bytes, struct error *err)
{
    const char *name = kube_object_name(claim);
    if (class_claim_asked(claim) >= bytes)
        return 0;
    const struct kube_target t = target(cluster, &kube_claims, name);
    _cleanup_json_ json_t *patch = json_pack("{s:{s:{s:{s:o}}}}", "spec", "resources", "requests", "storage",
                                             json_sprintf("%" PRIu64, bytes));
    int r = patch ? kube_patch(cluster->client, &t, KUBE_PATCH_MERGE, patch, NULL, err)
                  : error_set(err, -ENOMEM, "out of memory");
    return r < 0 ? error_context(err, "the claim %s cannot grow", name) : 0;
}

static int expand(void *context, const struct csi_volume *v, uint64_t size_bytes, struct error *err)
{
    struct csi_cluster *cluster = context;
    char wanted[UNITS_TEXT_BYTES];
    _cleanup_json_ json_t *claim = NULL, *volume = NULL;
    int r = find(cluster, &kube_claims, v->handle, &claim, err);
    if (r == 0)
        return error_set(err, -EIO, "volume %s: its claim %s is gone from namespace %s", v->handle, v->handle,
                         cluster->namespace);
    if (r > 0)
        r = ask_for(cluster, claim, size_bytes, err);
    if (r < 0)
        return r;
    if (class_claim_has(claim) >= size_bytes)
        return 0;
    /* What is attached nowhere grows on its node when it is attached the next time. */
    const char *bound = json_text(json_object_get(claim, "spec"), "volumeName");
    if (!*v->published_node && *bound && find(cluster, &kube_volumes, bound, &volume, err) > 0) {
        uint64_t bytes = 0;
        struct error ignored = ERROR_INIT;
        const char *has = json_text(json_object_get(json_object_get(volume, "spec"), "capacity"), "storage");
        if (units_parse_bytes(has, &bytes, &ignored) == 0 && bytes >= size_bytes)
            return 0;
    }
    return error_set(
        err, -EAGAIN, "volume %s: its claim %s in namespace %s (class %s) is not expanded to %s yet",
        v->handle, v->handle, cluster->namespace, v->backing_class, units_format_bytes(size_bytes, wanted));
}

/* ---- attaching ---- */

static struct class_stream stream_of(const struct csi_cluster *cluster, const char *name,
                                     const struct csi_volume *members, size_t count)
{
    return (struct class_stream){.name = name,
                                 .namespace = cluster->namespace,
                                 .image = cluster->attachment_image,
                                 .volumes = members,
                                 .count = count};
}

static int make_pod(const struct csi_cluster *cluster, const struct class_stream *stream, const char *node,
                    struct error *err)
{
    char name[CLASS_NAME_BYTES];
    _cleanup_json_ json_t *journal = NULL;
    class_journal_name(stream->name, name);
    int r = find(cluster, &kube_claims, name, &journal, err);
    if (r == 0)
        r = make(cluster, &kube_claims, class_journal_claim(stream), err);
    else if (r > 0) {
        struct error refused = ERROR_INIT; /* a class that cannot grow: it goes on with what there is */
        if (ask_for(cluster, journal, class_journal_bytes(stream), &refused) < 0 && cluster->log)
            log_warning(cluster->log, "stream %s: its journal stays as it is: %s", stream->name,
                        refused.message);
        r = 0;
    }
    _cleanup_json_ json_t *object = NULL;
    if (r == 0)
        r = find(cluster, &kube_nodes, node, &object, err);
    return r < 0 ? r
                 : make(cluster, &kube_pods, class_pod(stream, node, object ? kube_object_uid(object) : NULL),
                        err);
}

/* "journal=PV,handle=PV,..." */
static int name_devices(const struct csi_cluster *cluster, const struct class_stream *stream,
                        char ret[CLASS_DEVICES_BYTES], struct error *err)
{
    size_t used = 0;
    for (size_t i = 0; i <= stream->count; i++) {
        char journal[CLASS_NAME_BYTES];
        _cleanup_json_ json_t *claim = NULL;
        class_journal_name(stream->name, journal);
        const char *name = i ? stream->volumes[i - 1].handle : journal;
        int r = find(cluster, &kube_claims, name, &claim, err);
        if (r < 0)
            return r;
        const char *bound = json_text(json_object_get(claim, "spec"), "volumeName");
        if (!*bound || strlen(bound) >= CSI_LABEL_BYTES)
            return error_set(err, -EAGAIN, "stream %s: the claim %s in namespace %s is not bound",
                             stream->name, name, cluster->namespace);
        used += (size_t)snprintf(ret + used, CLASS_DEVICES_BYTES - used, "%s%s=%s", used ? "," : "",
                                 i ? name : "journal", bound);
    }
    return 0;
}

static int again(const struct class_stream *stream, const char *node, const char *what, struct error *err)
{
    char name[CLASS_NAME_BYTES];
    class_pod_name(stream->name, name);
    return error_set(err, -EAGAIN, "stream %s is being attached to node %s: pod %s in namespace %s: %s",
                     stream->name, node, name, stream->namespace, what);
}

static int attach(void *context, const char *name, const struct csi_volume *members, size_t count,
                  const char *node, bool in_use, struct csi_attachment *ret, struct error *err)
{
    struct csi_cluster *cluster = context;
    const struct class_stream stream = stream_of(cluster, name, members, count);
    char pod_name[CLASS_NAME_BYTES], text[400];
    _cleanup_json_ json_t *pod = NULL;
    class_pod_name(name, pod_name);
    int r = find(cluster, &kube_pods, pod_name, &pod, err);
    if (r == 0)
        r = make_pod(cluster, &stream, node, err);
    if (r < 0)
        return r;
    if (!pod)
        return again(&stream, node, "it was just made", err);
    const char *holder = kube_object_annotation(pod, CLASS_HOLDER_ANNOTATION),
               *held_on = kube_object_annotation(pod, CLASS_NODE_ANNOTATION);
    if (holder && (!held_on || strcmp(held_on, node) != 0))
        return error_set(err, -EAGAIN,
                         "stream %s is attached to node %s for the Recovery %s: it comes to node %s when "
                         "that is done with it",
                         name, held_on ? held_on : "(none yet)", holder, node);
    switch (class_look_at_pod(pod, &stream, node, text, sizeof text)) {
    case CLASS_POD_READY:
        snprintf(ret->pod, sizeof ret->pod, "%s", kube_object_uid(pod));
        return name_devices(cluster, &stream, ret->devices, err);
    case CLASS_POD_PENDING:
        return again(&stream, node, text, err);
    case CLASS_POD_ENDING:
        return again(&stream, node, "the one of before is still being deleted", err);
    case CLASS_POD_ELSEWHERE:
        return error_set(
            err, -EAGAIN,
            "stream %s is still attached to node %s (pod %s in namespace %s): it is opened on node %s only "
            "when that pod is gone, "
            "which it is once the volumes are detached there; if that node is lost for good, taint it with "
            "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or delete the Node",
            name, text, pod_name, cluster->namespace, node);
    case CLASS_POD_LACKS:
        if (in_use)
            return error_set(err, -EBUSY,
                             "RegroupPending: volume %s joins stream %s, which is attached to node %s "
                             "without it: delete the pods that use the "
                             "stream's other volumes, and they are attached together",
                             text, name, node);
        break;
    case CLASS_POD_ENDED:
        break;
    }
    if (holder) /* the journal may be open there: whoever holds it closes it first */
        return error_set(err, -EAGAIN,
                         "stream %s is attached to node %s for the Recovery %s, which is waited for", name,
                         node, holder);
    r = destroy(cluster, &kube_pods, pod_name, err);
    return r < 0 ? r : again(&stream, node, "it is made anew", err);
}

/* ---- detaching ---- */

/* The node does not answer: 0 when it cannot write any more, as far as the cluster's administrator knows. */
static int check_given_up(const struct csi_cluster *cluster, const char *stream, const char *node,
                          struct error *err)
{
    char why[300];
    struct error second = ERROR_INIT;
    _cleanup_json_ json_t *object = NULL;
    int r = find(cluster, &kube_nodes, node, &object, &second);
    if (r == 0 || (r > 0 && class_look_at_node(object) == CLASS_NODE_GIVEN_UP)) {
        *err = ERROR_INIT;
        return 0;
    }
    snprintf(why, sizeof why, "%s", err->message);
    return error_set(err, -EAGAIN,
                     "stream %s: node %s does not say that it has let go of it (%s): it may still be written "
                     "there, and is opened nowhere else. "
                     "If the node is lost for good, taint it with "
                     "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or delete the Node",
                     stream, node, why);
}

/* `pod`: what there is of it; NULL: nothing. */
static int close_there(const struct csi_cluster *cluster, const char *stream, const char *node,
                       const json_t *pod, struct error *err)
{
    char pod_name[CLASS_NAME_BYTES];
    class_pod_name(stream, pod_name);
    int r =
        cluster->release
            ? cluster->release(cluster->release_context, node, stream, err)
            : error_set(err, -EAGAIN, "the controller has no certificate for the node agents (--agent-cert)");
    if (r == -EAGAIN)
        r = check_given_up(cluster, stream, node, err);
    if (r < 0 || !pod)
        return r;
    if (!json_object_get(json_object_get(pod, "metadata"), "deletionTimestamp"))
        r = destroy(cluster, &kube_pods, pod_name, err);
    return r < 0 ? r
                 : error_set(err, -EAGAIN, "stream %s: the pod %s on node %s is being deleted", stream,
                             pod_name, node);
}

static int detach(void *context, const char *stream, const char *node, struct error *err)
{
    struct csi_cluster *cluster = context;
    char pod_name[CLASS_NAME_BYTES];
    _cleanup_json_ json_t *pod = NULL;
    class_pod_name(stream, pod_name);
    int r = find(cluster, &kube_pods, pod_name, &pod, err);
    if (r < 0)
        return r;
    if (r > 0 && kube_object_annotation(pod, CLASS_HOLDER_ANNOTATION))
        return 0; /* a recovery's by now, which closes it */
    const char *on = r > 0 ? kube_object_annotation(pod, CLASS_NODE_ANNOTATION) : NULL;
    bool later = on && strcmp(on, node) != 0; /* a later attachment's */
    return close_there(cluster, stream, node, later ? NULL : pod, err);
}

/* ---- for a recovery ----
 * The pod says for which. What attaches for a pod of the application writes its record first, then looks at
 * the pod; what lets go marks the pod first, then looks at the records: so one of them sees the other, and
 * nothing is closed under a pod that mounts it. */

static int patch_pod(const struct csi_cluster *cluster, const json_t *pod, json_t *metadata,
                     struct error *err)
{
    const struct kube_target t = target(cluster, &kube_pods, kube_object_name(pod));
    /* No other pod of that name. */
    if (metadata && json_object_set_new(metadata, "uid", json_string(kube_object_uid(pod))) < 0) {
        json_decref(metadata);
        metadata = NULL;
    }
    _cleanup_json_ json_t *patch = metadata ? json_pack("{s:o}", "metadata", metadata) : NULL;
    int r = patch ? kube_patch(cluster->client, &t, KUBE_PATCH_MERGE, patch, NULL, err)
                  : error_set(err, -ENOMEM, "out of memory");
    return r < 0 ? error_context(err, "pod %s", kube_object_name(pod)) : 0;
}

/* The scheduler has chosen: from now on it is like any that was made for a node. */
static int note_node(const struct csi_cluster *cluster, const json_t *pod, const char *node,
                     struct error *err)
{
    _cleanup_json_ json_t *object = NULL;
    int r = find(cluster, &kube_nodes, node, &object, err);
    if (r < 0)
        return r;
    return patch_pod(cluster, pod,
                     json_pack("{s:{s:s}, s:o*}", "annotations", CLASS_NODE_ANNOTATION, node,
                               "ownerReferences",
                               object ? class_pod_owners(node, kube_object_uid(object)) : NULL),
                     err);
}

static int held_again(const struct class_stream *stream, const char *what, struct error *err)
{
    char name[CLASS_NAME_BYTES];
    class_pod_name(stream->name, name);
    return error_set(
        err, -EAGAIN,
        "stream %s is attached nowhere, and is being attached for this: pod %s in namespace %s: %s",
        stream->name, name, stream->namespace, what);
}

static int make_held(const struct csi_cluster *cluster, const struct class_stream *stream, const char *holder,
                     struct error *err)
{
    char journal[CLASS_NAME_BYTES];
    _cleanup_json_ json_t *claim = NULL;
    class_journal_name(stream->name, journal);
    int r = find(cluster, &kube_claims, journal, &claim, err);
    if (r == 0)
        return error_set(err, -ENOENT,
                         "stream %s has no journal (claim %s in namespace %s): it was never used, or its "
                         "history is purged",
                         stream->name, journal, stream->namespace);
    if (r > 0)
        r = make(cluster, &kube_pods, class_pod_held(stream, holder), err);
    return r < 0 ? r : held_again(stream, "it was just made", err);
}

static int look_at_held(const struct csi_cluster *cluster, const struct class_stream *stream,
                        const json_t *pod, char ret_node[CSI_LABEL_BYTES], struct csi_attachment *ret,
                        struct error *err)
{
    const char *node = kube_object_annotation(pod, CLASS_NODE_ANNOTATION),
               *chosen = json_text(json_object_get(pod, "spec"), "nodeName");
    char text[400];
    if (!node && !*chosen) {
        class_waits_for(pod, text, sizeof text);
        return held_again(stream, text, err);
    }
    if (!node) {
        int r = note_node(cluster, pod, chosen, err);
        return r < 0 ? r : held_again(stream, "it has just got its node", err);
    }
    switch (class_look_at_pod(pod, stream, node, text, sizeof text)) {
    case CLASS_POD_READY:
        snprintf(ret_node, CSI_LABEL_BYTES, "%s", node);
        snprintf(ret->pod, sizeof ret->pod, "%s", kube_object_uid(pod));
        return name_devices(cluster, stream, ret->devices, err);
    case CLASS_POD_PENDING:
        return held_again(stream, text, err);
    case CLASS_POD_ENDING:
        return held_again(stream, "the one of before is still being deleted", err);
    case CLASS_POD_ELSEWHERE:
    case CLASS_POD_LACKS:
    case CLASS_POD_ENDED:
        break;
    }
    int r = destroy(cluster, &kube_pods, kube_object_name(pod), err);
    return r < 0 ? r : held_again(stream, "it is made anew", err);
}

static int hold(void *context, const char *name, const struct csi_volume *members, size_t count,
                const char *holder, char ret_node[CSI_LABEL_BYTES], struct csi_attachment *ret,
                struct error *err)
{
    struct csi_cluster *cluster = context;
    const struct class_stream stream = stream_of(cluster, name, members, count);
    char pod_name[CLASS_NAME_BYTES];
    _cleanup_json_ json_t *pod = NULL;
    class_pod_name(name, pod_name);
    int r = find(cluster, &kube_pods, pod_name, &pod, err);
    if (r <= 0)
        return r < 0 ? r : make_held(cluster, &stream, holder, err);
    const char *whose = kube_object_annotation(pod, CLASS_HOLDER_ANNOTATION);
    if (!whose)
        return error_set(err, -EAGAIN,
                         "stream %s is being attached, or detached, for a pod that uses its volumes", name);
    if (strcmp(whose, holder) != 0)
        return error_set(err, -EAGAIN, "stream %s is used by the Recovery %s: it is waited for", name, whose);
    return look_at_held(cluster, &stream, pod, ret_node, ret, err);
}

/* Whether a volume of the stream is to be used on the node. */
static int is_published(struct csi_cluster *cluster, const char *stream, const char *node, struct error *err)
{
    _cleanup_free_ struct csi_volume *all = NULL;
    size_t count = 0;
    int r = csi_records_kube.list(cluster, &all, &count, err);
    for (size_t i = 0; i < count && r == 0; i++)
        r = strcmp(all[i].stream, stream) == 0 && strcmp(all[i].published_node, node) == 0;
    return r;
}

static int let_go(void *context, const char *stream, struct error *err)
{
    struct csi_cluster *cluster = context;
    char pod_name[CLASS_NAME_BYTES];
    _cleanup_json_ json_t *pod = NULL;
    class_pod_name(stream, pod_name);
    int r = find(cluster, &kube_pods, pod_name, &pod, err);
    if (r <= 0 || !kube_object_annotation(pod, CLASS_HOLDER_ANNOTATION))
        return r < 0 ? r : 0;
    const char *node = kube_object_annotation(pod, CLASS_NODE_ANNOTATION);
    if (!node) /* nothing was opened yet */
        return destroy(cluster, &kube_pods, pod_name, err);
    if (!kube_object_annotation(pod, CLASS_LEAVING_ANNOTATION))
        r = patch_pod(cluster, pod, json_pack("{s:{s:s}}", "annotations", CLASS_LEAVING_ANNOTATION, "true"),
                      err);
    else
        r = 0;
    bool deleted = json_object_get(json_object_get(pod, "metadata"), "deletionTimestamp");
    if (r == 0 && !deleted)
        r = is_published(cluster, stream, node, err);
    if (r > 0) /* it is that pod's from now on */
        return patch_pod(
            cluster, pod,
            json_pack("{s:{s:n, s:n}}", "annotations", CLASS_HOLDER_ANNOTATION, CLASS_LEAVING_ANNOTATION),
            err);
    return r < 0 ? r : close_there(cluster, stream, node, pod, err);
}

const struct csi_class_ops csi_class_kube = {.provision = provision,
                                             .expand = expand,
                                             .attach = attach,
                                             .detach = detach,
                                             .hold = hold,
                                             .let_go = let_go};

int csi_class_forget(struct csi_cluster *cluster, const char *handle, struct error *err)
{
    char journal[CLASS_NAME_BYTES];
    class_journal_name(handle, journal); /* a stream is named after one of its volumes */
    int r = destroy(cluster, &kube_claims, handle, err);
    return r == 0 ? destroy(cluster, &kube_claims, journal, err) : r;
}
