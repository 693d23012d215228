/* SPDX-License-Identifier: Apache-2.0 */
/* The volumes of recoveries (struct data_ops) over the node agents. The context is struct controller. */
#include "controller/recovery_streams.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/controller_internal.h"
#include "csi/csi.h"
#include "lib/json.h"

#define CLAIM_PREFIX "core/v1/PersistentVolumeClaim/"

/* ---- which streams ---- */

json_t *recovery_claims_of_set(const json_t *set)
{
    json_t *claims = json_object(), *object;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)set, key, object)
    {
        const char *name = kube_object_name(object);
        if (name && strncmp(key, CLAIM_PREFIX, strlen(CLAIM_PREFIX)) == 0)
            json_object_set(claims, name, object);
    }
    return claims;
}

struct search {
    const char *volume; /* name of a persistent volume */
    char user[600];     /* the claim that has it */
};

static bool find_user(void *context, json_t *claim)
{
    struct search *s = context;
    if (strcmp(json_text(json_object_get(claim, "spec"), "volumeName"), s->volume) != 0)
        return true;
    snprintf(s->user, sizeof s->user, "%.250s/%.250s", kube_object_namespace(claim), kube_object_name(claim));
    return false;
}

/* Whether the volume was a claim's of one of the namespaces. The name of a volume in a claim of the past is what its owner
 * wrote into it; the record has what the driver was told. */
static bool was_of(const struct csi_volume *v, const char *source, const char *target)
{
    return *v->claim_namespace && (strcmp(v->claim_namespace, source) == 0 || strcmp(v->claim_namespace, target) == 0);
}

/* The claims of which something is looked for. */
struct gone {
    struct controller *c;
    const char *source, *target; /* namespaces: of the history, and where it is put back */
    const struct csi_volume *all;
    size_t count;
    json_t *handles, *gone;
};

/* A claim that is not there any more: its volume by the name that it had, which is that of CreateVolume. */
static int find_gone(const struct gone *g, const json_t *claim, struct error *err)
{
    struct controller *c = g->c;
    const struct csi_volume *all = g->all;
    const char *name = kube_object_name(claim),
               *class = json_text(json_object_get(claim, "spec"), "storageClassName");
    struct search search = {.volume = json_text(json_object_get(claim, "spec"), "volumeName")};
    _cleanup_json_ json_t *of_class = *class ? kube_informer_get(c->classes, NULL, class) : NULL;
    if (!*search.volume)
        return 0; /* it had none at the point */
    for (size_t i = 0; i < g->count; i++) {
        if (strcmp(all[i].name, search.volume) != 0)
            continue;
        if (!was_of(&all[i], g->source, g->target))
            return error_set(err, -ENOENT,
                             "the claim %s names the volume %s, which was none of the namespace %s: it is not put back; "
                             "with objectsOnly: true the objects alone are, and the claim gets an empty volume",
                             name, search.volume, g->source);
        kube_informer_each(c->claims, NULL, find_user, &search);
        if (search.user[0])
            return error_set(
                err, -EEXIST,
                "the volume of claim %s is used by the claim %s: to have it beside that use mode clone", name,
                search.user);
        json_object_set_new(g->handles, name, json_string(all[i].handle));
        json_object_set_new(g->gone, name, json_true());
        return 0;
    }
    if (strcmp(json_text(of_class, "provisioner"), CSI_DRIVER) != 0)
        return 0; /* somebody else's: it is made new */
    return error_set(
        err, -ENOENT,
        "nothing is known of the volume %s of claim %s any more: its data cannot be put back; with "
        "objectsOnly: true the objects alone are, and the claim gets an empty volume",
        search.volume, name);
}

static int add_gone(struct gone *g, const json_t *at_point, json_t *live, struct error *err)
{
    const struct data_client_options *o = data_client_options(g->c->data);
    _cleanup_free_ struct csi_volume *all = NULL;
    const char *name;
    json_t *claim;
    int r = o->records->list(o->records_context, &all, &g->count, err);
    g->all = all;
    json_object_foreach((json_t *)(uintptr_t)at_point, name, claim)
    {
        if (r == 0 && !json_object_get(live, name))
            r = find_gone(g, claim, err);
    }
    return r;
}

static bool add_name(void *context, json_t *claim)
{
    json_object_set_new(context, kube_object_name(claim), json_true());
    return true;
}

/* Tells each stream which of its claims are gone. */
static void mark_gone(json_t *streams, json_t *gone)
{
    size_t i, k;
    json_t *stream, *claim;
    json_array_foreach(streams, i, stream)
    {
        json_t *list = json_array();
        json_array_foreach(json_object_get(stream, "claims"), k, claim)
        {
            if (json_object_get(gone, json_string_value(claim)))
                json_array_append(list, claim);
        }
        json_object_set_new(stream, "gone", list);
    }
}

/* What came after the point has no state there: it is left alone. An application that is a group does not
 * journal all its claims, so that of such a one all count. */
static int streams(void *context, const char *owner, const char *source, const char *namespace, const char *application,
                   const json_t *wanted, json_t **ret, struct error *err)
{
    struct controller *c = context;
    _cleanup_json_ json_t *papp = kube_informer_get(c->applications, namespace, application);
    _cleanup_json_ json_t *handles = NULL, *at_point = recovery_claims_of_set(wanted), *chosen = json_object(),
                          *live = json_object(), *gone = json_object();
    json_t *handle;
    const char *claim, *group = papp ? application_group(papp) : NULL;
    int r = volumes_handles(c, namespace, group, &handles, err);
    if (r < 0)
        return r;
    json_object_foreach(handles, claim, handle)
    {
        if (group || json_object_get(at_point, claim))
            json_object_set(chosen, claim, handle);
    }
    kube_informer_each(c->claims, namespace, add_name, live);
    struct gone g = {.c = c, .source = source, .target = namespace, .handles = chosen, .gone = gone};
    r = add_gone(&g, at_point, live, err);
    if (r == 0)
        r = data_client_streams(c->data, chosen, owner, ret, err);
    if (r == 0)
        mark_gone(*ret, gone);
    return r;
}

/* ---- volumes of claims that are gone ---- */

/* What is there under the name: 0 nothing, 1 it is as it should be. */
static int look_at_volume(struct controller *c, const struct kube_target *target, const char *namespace,
                          const char *claim, struct error *err)
{
    _cleanup_json_ json_t *there = NULL, *patch = NULL;
    int r = kube_get(c->client, target, &there, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        return 0;
    }
    if (r < 0)
        return r;
    const json_t *spec = json_object_get(there, "spec"), *of = json_object_get(spec, "claimRef");
    bool ours = strcmp(json_text(of, "namespace"), namespace) == 0 && strcmp(json_text(of, "name"), claim) == 0;
    const char *phase = json_text(json_object_get(there, "status"), "phase");
    if (json_object_get(json_object_get(there, "metadata"), "deletionTimestamp"))
        return error_set(err, -EAGAIN, "waiting until the persistent volume %s is gone", target->name);
    if (ours && strcmp(phase, "Released") != 0 && strcmp(phase, "Failed") != 0)
        return 1;
    if (strcmp(json_text(spec, "persistentVolumeReclaimPolicy"), "Retain") != 0)
        return error_set(err, -EAGAIN, "waiting until the persistent volume %s (%s) is gone", target->name,
                         phase);
    patch = json_pack("{s:{s:{s:s, s:s, s:n, s:n}}}", "spec", "claimRef", "namespace", namespace, "name",
                      claim, "uid", "resourceVersion");
    r = patch ? kube_patch(c->client, target, KUBE_PATCH_MERGE, patch, NULL, err)
              : error_set(err, -ENOMEM, "out of memory");
    return r < 0 ? r : 1;
}

json_t *recovery_volume_object(const char *name, const char *namespace, const char *claim_name, const json_t *claim,
                               const struct csi_volume *v, const json_t *class, const char *policy)
{
    const json_t *spec = json_object_get(claim, "spec");
    const char *fs_type = json_text(json_object_get(class, "parameters"), "csi.storage.k8s.io/fstype");
    const char *mode = json_text(spec, "volumeMode");
    policy = policy ? policy : json_text(class, "reclaimPolicy");
    json_t *attributes = *v->ack_mode ? json_pack("{s:s}", "ackMode", v->ack_mode) : json_object();
    json_t *csi = json_pack("{s:s, s:s, s:s, s:o}", "driver", CSI_DRIVER, "volumeHandle", v->handle, "fsType",
                            *fs_type ? fs_type : "ext4", "volumeAttributes", attributes);
    json_t *place = strcmp(v->backing, "class") == 0
                        ? NULL /* it goes wherever what carries it goes */
                        : json_pack("{s:{s:[{s:[{s:s, s:s, s:[s]}]}]}}", "required", "nodeSelectorTerms",
                                    "matchExpressions", "key", CSI_TOPOLOGY_KEY, "operator", "In", "values", v->node);
    json_t *of = json_pack("{s:s, s:s, s:s, s:s}", "apiVersion", "v1", "kind", "PersistentVolumeClaim",
                           "namespace", namespace, "name", claim_name);
    json_t *size = json_sprintf("%llu", (unsigned long long)v->size_bytes);
    return json_pack("{s:s, s:s, s:{s:s, s:{s:s}}, s:{s:{s:o}, s:O, s:s, s:s, s:s, s:o, s:o, s:o*}}",
                     "apiVersion", "v1", "kind", "PersistentVolume", "metadata", "name", name, "annotations",
                     "pv.kubernetes.io/provisioned-by", CSI_DRIVER, "spec", "capacity", "storage", size,
                     "accessModes", json_object_get(spec, "accessModes"), "storageClassName",
                     json_text(spec, "storageClassName"), "volumeMode", *mode ? mode : "Filesystem",
                     "persistentVolumeReclaimPolicy", *policy ? policy : "Delete", "claimRef", of, "csi", csi,
                     "nodeAffinity", place);
}

/* The record says that the volume is there, before anybody can attach it. */
static int revive(struct controller *c, const char *namespace, const char *claim, const char *name,
                  struct csi_volume *ret, struct error *err)
{
    const struct data_client_options *o = data_client_options(c->data);
    _cleanup_free_ struct csi_volume *all = NULL;
    size_t count = 0;
    int r = o->records->list(o->records_context, &all, &count, err);
    for (size_t i = 0; i < count && r == 0; i++) {
        if (strcmp(all[i].name, name) != 0)
            continue;
        *ret = all[i];
        ret->deleted_ns = 0;
        snprintf(ret->claim_namespace, sizeof ret->claim_namespace, "%s", namespace);
        snprintf(ret->claim_name, sizeof ret->claim_name, "%s", claim);
        return o->records->save(o->records_context, ret, err);
    }
    return r < 0 ? r : error_set(err, -ENOENT, "nothing is known of the volume %s any more", name);
}

static int bind_volume(void *context, const char *namespace, const json_t *claim, struct error *err)
{
    struct controller *c = context;
    struct csi_volume volume;
    _cleanup_json_ json_t *object = NULL, *class = NULL;
    const json_t *spec = json_object_get(claim, "spec");
    const char *name = json_text(spec, "volumeName"), *class_name = json_text(spec, "storageClassName");
    const struct kube_target target = {
        .resource = &kube_volumes, .name = name, .field_manager = FIELD_MANAGER};
    const struct kube_target of_class = {.resource = &kube_storage_classes, .name = class_name};
    int r = controller_check_leads(c, err);
    if (r == 0)
        r = look_at_volume(c, &target, namespace, kube_object_name(claim), err);
    if (r < 0)
        return r;
    bool there = r > 0;
    r = revive(c, namespace, kube_object_name(claim), name, &volume, err);
    if (r < 0 || there)
        return r;
    if (*class_name && (r = kube_get(c->client, &of_class, &class, err)) < 0)
        return r;
    object = recovery_volume_object(name, namespace, kube_object_name(claim), claim, &volume, class, NULL);
    const struct kube_target all = {.resource = &kube_volumes, .field_manager = FIELD_MANAGER};
    r = object ? kube_create(c->client, &all, object, NULL, err) : error_set(err, -ENOMEM, "out of memory");
    if (r == 0)
        log_info(c->log, "volume %s is there again, for the claim %s/%s", volume.handle, namespace,
                 kube_object_name(claim));
    return r == -EEXIST ? -EAGAIN : r;
}

/* ---- the nodes ---- */

static int call(struct controller *c, const json_t *stream, const char *method, const char *format,
                const json_t *body, json_t **ret, struct error *err)
{
    char path[160];
    int r = controller_check_leads(c, err);
    if (r < 0)
        return r;
    snprintf(path, sizeof path, format, json_text(stream, "stream"));
    return data_client_call(c->data, json_text(stream, "node"), method, path, body, DATA_TIMEOUT_MS, ret, err);
}

static int plan(void *context, const json_t *stream, const char *point, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *body = json_pack("{s:s, s:b}", "to", point, "dry_run", 1), *answer = NULL;
    int r = call(context, stream, "POST", "/v1/applications/%s/rewind", body, &answer, err);
    if (r < 0)
        return r;
    json_t *plan = json_object_get(answer, "plan");
    *ret = json_pack("{s:O, s:O, s:O, s:O}", "target_lsn", json_object_get(plan, "target_lsn"), "target_time",
                     json_object_get(plan, "target_time"), "changed_bytes",
                     json_object_get(plan, "changed_bytes"), "volumes", json_object_get(plan, "volumes"));
    return *ret ? 0
                : error_set(err, -EPROTO, "the plan of stream %s lacks fields", json_text(stream, "stream"));
}

/* Of a rewind that has put the volumes back, whatever became of it then; else NULL. */
static json_t *rewound(const json_t *rewind)
{
    uint64_t lsn = 0;
    struct error unused = ERROR_INIT;
    if (json_get_u64(json_object_get(rewind, "result"), "lsn", &lsn, &unused) < 0)
        return NULL;
    return json_pack("{s:I, s:O*, s:O*}", "before_lsn", (json_int_t)(lsn ? lsn - 1 : 0), "waited_ms", json_object_get(rewind, "waited_ms"),
                     "rewound_ms", json_object_get(rewind, "rewound_ms"));
}

static int gate(void *context, const json_t *stream, bool closed, const char *id, json_t **ret_rewound, struct error *err)
{
    struct controller *c = context;
    struct error unused = ERROR_INIT;
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_json_ json_t *body = json_pack("{s:b}", "closed", (int)closed);
    const struct kube_target node = {.resource = &kube_nodes, .name = json_text(stream, "node")};
    int r = call(c, stream, "POST", "/v1/streams/%s/gate", body, &answer, err);
    const json_t *rewind = json_object_get(answer, "rewind");
    *ret_rewound = r == 0 && !closed && strcmp(json_text(rewind, "id"), id) == 0 ? rewound(rewind) : NULL;
    if (closed || r != -EAGAIN || kube_get(c->client, &node, NULL, &unused) != -ENOENT)
        return r;
    *err = ERROR_INIT; /* a node that is no part of the cluster any more has no gate */
    return 0;
}

static int let_go(void *context, const json_t *stream, struct error *err)
{
    struct controller *c = context;
    int r = controller_check_leads(c, err);
    return r == 0 ? data_client_let_go(c->data, json_text(stream, "stream"), err) : r;
}

int recovery_judge_rewind(const json_t *stream, const json_t *rewind, json_t **ret, struct error *err)
{
    const char *state = json_text(rewind, "state"), *message = json_text(rewind, "message");
    if (strcmp(state, "failed") == 0)
        return error_set(err, -EIO, "%s", message);
    if (strcmp(state, "waiting") == 0)
        return error_set(err, -EAGAIN, "stream %s: waiting until the pods that use its volumes have ended", json_text(stream, "stream"));
    if (strcmp(state, "succeeded") != 0) /* its message: what is in the way */
        return error_set(err, -EAGAIN, "stream %s is being put back%s%s", json_text(stream, "stream"), *message ? "; it is tried again: " : "", message);
    *ret = rewound(rewind);
    return *ret ? 0 : error_set(err, -EPROTO, "stream %s: its node says that it was put back, and not where it was before", json_text(stream, "stream"));
}

static int rewind_stream(void *context, const json_t *stream, uint64_t lsn, const char *id, json_t **ret,
                         struct error *err)
{
    _cleanup_json_ json_t *answer = NULL;
    json_t *to = json_sprintf("lsn:%llu", (unsigned long long)lsn);
    _cleanup_json_ json_t *body = json_pack("{s:o, s:s, s:b}", "to", to, "id", id, "keep_closed", 1);
    int r = call(context, stream, "POST", "/v1/streams/%s/rewind", body, &answer, err);
    if (r < 0)
        return r;
    const json_t *rewind = json_object_get(answer, "rewind");
    if (strcmp(json_text(rewind, "id"), id) != 0)
        return error_set(err, -EBUSY, "stream %s is being put back to %s by another recovery (%s)",
                         json_text(stream, "stream"), json_text(rewind, "to"), json_text(rewind, "id"));
    return recovery_judge_rewind(stream, rewind, ret, err);
}

const struct data_ops recovery_streams_ops = {.streams = streams,
                                              .let_go = let_go,
                                              .plan = plan,
                                              .gate = gate,
                                              .rewind = rewind_stream,
                                              .bind = bind_volume,
                                              .originals = recovery_originals,
                                              .plan_copy = recovery_plan_copy,
                                              .copy = recovery_copy,
                                              .bind_copy = recovery_bind_copy,
                                              .filling = recovery_filling};
