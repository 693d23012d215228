/* SPDX-License-Identifier: Apache-2.0 */
/* What a recovery will do (R2, R3, R6): the objects of the point, what stands against putting them there,
 * what differs. */
#include "app/order.h"
#include "app/references.h"
#include "app/transform.h"
#include "controller/recovery_internal.h"

static const char of_selector[] = "the control plane makes it from its Service";

static const char *const action_names[RECOVERY_ACTIONS] = {"create", "change", "recreate",
                                                           "delete", "same",   "skip"};

const char *recovery_action_name(enum recovery_action action)
{
    return action_names[action];
}

void recovery_free_entries(struct recovery_run *run)
{
    for (size_t i = 0; i < run->entry_count; i++) {
        free(run->entries[i].name);
        free(run->entries[i].reason);
        free(run->entries[i].uid);
        free(run->entries[i].by);
    }
    free(run->entries);
    run->entries = NULL;
    run->entry_count = 0;
    run->waves = 0;
}

int recovery_add_entry(struct recovery_run *run, enum recovery_action action, int wave, const char *name,
                       const char *reason, const char *uid, struct error *err)
{
    if ((run->entry_count & (run->entry_count - 1)) == 0) {
        struct recovery_entry *entries =
            reallocarray(run->entries, run->entry_count ? run->entry_count * 2 : 1, sizeof *entries);
        if (!entries)
            return error_set(err, -ENOMEM, "out of memory");
        run->entries = entries;
    }
    struct recovery_entry e = {.action = action,
                               .wave = wave,
                               .name = strdup(name),
                               .reason = reason ? strdup(reason) : NULL,
                               .uid = uid ? strdup(uid) : NULL,
                               .verdict = -1};
    run->entries[run->entry_count++] = e;
    if (wave > run->waves)
        run->waves = wave;
    if (!e.name || (reason && !e.reason) || (uid && !e.uid))
        return error_set(err, -ENOMEM, "out of memory");
    return 0;
}

/* ---- the objects of the point ---- */

/* A binding of the cluster is the original's; the clone gets one of its own name. */
static int rename_cluster_bindings(struct recovery_run *run, json_t *transforms)
{
    const char *name;
    json_t *object;
    json_object_foreach(run->wanted, name, object)
    {
        struct object_id id;
        struct error unused = ERROR_INIT;
        char fresh[600];
        if (object_id_parse(name, &id, &unused) < 0 || strcmp(id.kind, "ClusterRoleBinding") != 0 ||
            id.namespace[0])
            continue;
        snprintf(fresh, sizeof fresh, "%.200s-%s", id.name, run->target_namespace);
        json_t *one = json_pack("{s:{s:s, s:s}, s:{s:s, s:s}}", "target", "kind", id.kind, "name", id.name,
                                "rename", "from", id.name, "to", fresh);
        if (json_array_append_new(transforms, one) < 0)
            return -ENOMEM;
    }
    return 0;
}

static int get_wanted(void *context, const char *name, json_t **ret, struct error *err)
{
    return recovery_get_wanted(context, name, ret, err);
}

static int put_wanted(void *context, const char *name, json_t *object, struct error *err)
{
    return recovery_put_wanted(context, name, object, err);
}

static int transform_wanted(struct recovery_run *run, struct error *err)
{
    bool moved = strcmp(run->source_namespace, run->target_namespace) != 0;
    _cleanup_json_ json_t *transforms = json_array(), *names = NULL;
    json_t *asked = json_object_get(run->spec, "transforms");
    /* What the user wrote is about the application as she knows it; then it moves. */
    if (!transforms || (asked && json_array_extend(transforms, asked) < 0))
        return error_set(err, -ENOMEM, "out of memory");
    if (run->mode == RESTORE_CLONE && rename_cluster_bindings(run, transforms) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    if (moved && json_object_size(run->wanted) > 0 &&
        json_array_append_new(transforms, json_pack("{s:{s:s, s:s}}", "namespace", "from",
                                                    run->source_namespace, "to", run->target_namespace)) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    if (json_array_size(transforms) == 0)
        return 0;
    const struct transform_objects objects = {run->wanted, run, get_wanted, put_wanted};
    int r = transforms_apply(&objects, transforms, &names, err);
    return r < 0 ? r : recovery_rename_wanted(run, names, err);
}

/* A namespace that is gone is made again even when the journal has only what was in it; a clone's may be
 * isolated. */
static int complete_wanted(struct recovery_run *run, struct error *err)
{
    char name[OBJECT_NAME_BYTES];
    struct object_id id = {
        .group = "", .version = "v1", .kind = "Namespace", .namespace = "", .name = run->target_namespace};
    _cleanup_json_ json_t *added = json_object();
    json_t *object;
    const char *key;
    int r = object_journal_name(&id, name, err);
    if (r < 0)
        return r;
    if (run->mode != RESTORE_REWIND && !json_object_get(run->wanted, name)) {
        _cleanup_json_ json_t *made = json_pack("{s:s, s:s, s:{s:s}}", "apiVersion", "v1", "kind",
                                                "Namespace", "metadata", "name", run->target_namespace);
        r = objects_add(added, made, NULL, err);
    }
    if (r == 0 && json_is_true(json_object_get(run->spec, "isolated"))) {
        _cleanup_json_ json_t *policy = restore_isolation_policy(run->target_namespace);
        r = objects_add(added, policy, NULL, err);
    }
    json_object_foreach(added, key, object) r = r == 0 ? recovery_put_wanted(run, key, object, err) : r;
    return r;
}

/* A definition may have got other versions since the point. */
static int version_of_now(struct recovery_run *run, json_t *known, const struct object_id *id, const char **ret,
                          struct error *err)
{
    const struct recovery_cluster_ops *ops = run->c->cluster;
    char key[512];
    snprintf(key, sizeof key, "%s/%s/%s", id->group, id->version, id->kind);
    json_t *version = json_object_get(known, key);
    if (!version) {
        _cleanup_free_ char *served = NULL;
        struct error unused = ERROR_INIT;
        int r = ops->serves(run->c->cluster_context, id->group, id->version, id->kind, &served, err);
        if (r < 0 && r != -ENOENT)
            return r;
        if (r == -ENOENT) /* what lacks is told later, or made by the recovery itself */
            *err = unused;
        if (json_object_set_new(known, key, json_string(served ? served : id->version)) < 0)
            return error_set(err, -ENOMEM, "out of memory");
        version = json_object_get(known, key);
    }
    *ret = json_string_value(version);
    return 0;
}

static int move_to_version(struct recovery_run *run, const struct object_id *id, const char *name,
                           const char *version, struct error *err)
{
    struct object_id moved = *id;
    char fresh[OBJECT_NAME_BYTES];
    _cleanup_free_ char *api_version = NULL;
    _cleanup_json_ json_t *object = NULL;
    moved.group = id->group;
    moved.version = version;
    int r = object_journal_name(&moved, fresh, err);
    if (r == 0)
        r = recovery_get_wanted(run, name, &object, err);
    if (r < 0)
        return r;
    if (asprintf(&api_version, "%s%s%s", id->group, id->group[0] ? "/" : "", version) < 0 ||
        json_object_set_new(object, "apiVersion", json_string(api_version)) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    r = recovery_put_wanted(run, fresh, object, err);
    if (r == 0)
        json_object_del(run->wanted, name);
    return r;
}

static int translate_wanted(struct recovery_run *run, struct error *err)
{
    _cleanup_json_ json_t *known = json_object(), *as_was = json_copy(run->wanted);
    const char *name;
    json_t *unused;
    int r = known && as_was ? 0 : error_set(err, -ENOMEM, "out of memory");
    if (!run->c->cluster->serves)
        return r;
    json_object_foreach(as_was, name, unused)
    {
        struct object_id id;
        const char *version;
        if (r == 0)
            r = object_id_parse(name, &id, err);
        if (r == 0)
            r = version_of_now(run, known, &id, &version, err);
        if (r == 0 && strcmp(version, id.version) != 0)
            r = move_to_version(run, &id, name, version, err);
    }
    return r;
}

int recovery_read_wanted(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    struct recovery_point found;
    char point[RECOVERY_POINT_BYTES];
    int r = recovery_resolve_point(run, point, ret_reason, err);
    if (r == 0 && !(run->wanted = json_object()))
        r = error_set(err, -ENOMEM, "out of memory");
    if (r == 0)
        r = run->c->source->objects(run->c->source_context, run->source_namespace, run->application, point,
                                    put_wanted, run, &found, err);
    if (r == 0)
        r = recovery_note_point(run, &found, err);
    if (r < 0)
        return r;
    *ret_reason = "TransformFailed";
    r = transform_wanted(run, err);
    if (r == 0)
        r = complete_wanted(run, err);
    if (r < 0)
        return r;
    *ret_reason = NULL; /* of a failure to ask */
    r = translate_wanted(run, err);
    if (r < 0) {
        *ret_reason = r == -EOPNOTSUPP ? "VersionNotServed" : NULL;
        return r;
    }
    *ret_reason = "OrderFailed";
    r = recovery_keep_suspended(run, err);
    return r < 0 ? r : objects_order(run->wanted, &run->order, err);
}

/* ---- what stands against it ---- */

static int check_namespace(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    char name[128];
    _cleanup_json_ json_t *live = NULL;
    snprintf(name, sizeof name, "core/v1/Namespace/_/%s", run->target_namespace);
    int r = run->c->cluster->get(run->c->cluster_context, name, &live, err);
    if (r == -ENOENT && run->mode == RESTORE_REWIND) {
        *ret_reason = "NamespaceMissing";
        return error_set(err, -ENOENT, "namespace %s is not there; use mode restore", run->target_namespace);
    }
    run->target_missing = r == -ENOENT;
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    if (!json_object_get(json_object_get(live, "metadata"), "deletionTimestamp"))
        return 0;
    const json_t *conditions = json_object_get(json_object_get(live, "status"), "conditions");
    const char *why = "";
    size_t i;
    json_t *condition;
    json_array_foreach(conditions, i, condition)
    {
        const char *type = json_text(condition, "type");
        if (strcmp(json_text(condition, "status"), "True") == 0 &&
            (strcmp(type, "NamespaceFinalizersRemaining") == 0 ||
             strcmp(type, "NamespaceContentRemaining") == 0 || !why[0]))
            why = json_text(condition, "message");
    }
    *ret_reason = "NamespaceTerminating";
    return error_set(err, -EAGAIN,
                     "namespace %s is being deleted, and nothing can be made in it; the recovery begins when "
                     "it is gone. %.300s%sIf it stays, "
                     "look which finalizers keep it: kubectl get namespace %s -o yaml",
                     run->target_namespace, why, why[0] ? " " : "", run->target_namespace);
}

static int check_kinds(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    _cleanup_json_ json_t *seen = json_object(), *index = references_index(run->wanted);
    const char *name;
    json_t *object;
    json_object_foreach(run->wanted, name, object)
    {
        struct object_id id;
        char key[512];
        bool known = false;
        int r = object_id_parse(name, &id, err);
        if (r < 0)
            return r;
        snprintf(key, sizeof key, "%s/%s/%s", id.group, id.version, id.kind);
        struct reference definition = {.group = id.group, .kind = id.kind, .namespace = "*", .name = "*"};
        if (json_object_get(seen, key) || references_find(index, &definition))
            continue;
        json_object_set_new(seen, key, json_true());
        r = run->c->cluster->knows(run->c->cluster_context, id.group, id.version, id.kind, &known, err);
        if (r < 0)
            return r;
        if (!known) {
            *ret_reason = "DefinitionMissing";
            return error_set(err, -ENOENT,
                             "the cluster does not know the kind %s of %s/%s, which %s has; install its "
                             "CustomResourceDefinition (its operator) first",
                             id.kind, id.group[0] ? id.group : "v1", id.version, id.name);
        }
    }
    return 0;
}

struct checking {
    struct recovery_run *run;
    json_t *index, *seen;
    const char **ret_reason;
    const char *object;
    struct error *err;
};

/* What has to be in the cluster before: classes. Other things that lack now lacked at the point, too. */
static int check_class(void *context, const struct reference *r)
{
    struct checking *c = context;
    const char *version = strcmp(r->group, "storage.k8s.io") == 0      ? "storage.k8s.io/v1"
                          : strcmp(r->group, "scheduling.k8s.io") == 0 ? "scheduling.k8s.io/v1"
                                                                       : "node.k8s.io/v1";
    char name[OBJECT_NAME_BYTES];
    bool checked = strcmp(r->kind, "StorageClass") == 0 || strcmp(r->kind, "PriorityClass") == 0 ||
                   strcmp(r->kind, "RuntimeClass") == 0;
    if (!checked || r->optional || object_is_bootstrap(r->group, r->kind, r->name) ||
        references_find(c->index, r))
        return 0;
    snprintf(name, sizeof name, "%s/%s/_/%s", version, r->kind, r->name);
    if (json_object_get(c->seen, name))
        return 0;
    json_object_set_new(c->seen, name, json_true());
    _cleanup_json_ json_t *live = NULL;
    const struct recovery_cluster_ops *ops = c->run->c->cluster;
    int result = (ops->get_class ? ops->get_class : ops->get)(c->run->c->cluster_context, name, &live, c->err);
    if (result == -EACCES) { /* nobody can tell: what lacks shows in what needs it */
        *c->err = ERROR_INIT;
        return 0;
    }
    if (result != -ENOENT)
        return result;
    bool storage = strcmp(r->kind, "StorageClass") == 0;
    *c->ret_reason = storage ? "StorageClassMissing" : "ClassMissing";
    return error_set(c->err, -ENOENT,
                     "%s needs the %s '%s' (%s), which the cluster does not have; make it%s%s%s", c->object,
                     r->kind, r->name, r->path,
                     storage && c->run->mode != RESTORE_REWIND
                         ? ", or name another with the transform {storageClass: {from: "
                         : "",
                     storage && c->run->mode != RESTORE_REWIND ? r->name : "",
                     storage && c->run->mode != RESTORE_REWIND ? ", to: ...}}" : "");
}

static int check_classes(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    _cleanup_json_ json_t *index = references_index(run->wanted), *seen = json_object();
    struct checking c = {.run = run, .index = index, .seen = seen, .ret_reason = ret_reason, .err = err};
    const char *name;
    json_t *object;
    int r = 0;
    json_object_foreach(run->wanted, name, object)
    {
        c.object = name;
        if (r == 0 && strstr(name, "/_/") == NULL)
            r = references_visit(object, check_class, &c);
    }
    return r;
}

int recovery_check_target(struct recovery_run *run, const char **ret_reason, struct error *err)
{
    *ret_reason = NULL; /* of a failure to ask */
    int r = check_namespace(run, ret_reason, err);
    if (r == 0)
        r = check_kinds(run, ret_reason, err);
    return r == 0 ? check_classes(run, ret_reason, err) : r;
}

/* ---- what differs ---- */

/* {journal name: raw object} of what is worth keeping. */
static json_t *by_name(const json_t *array)
{
    json_t *raw = json_object(), *object;
    size_t i;
    json_array_foreach(array, i, object)
    {
        struct object_id id;
        struct error unused = ERROR_INIT;
        char name[OBJECT_NAME_BYTES];
        if (object_identify(object, &id, &unused) == 0 && !object_noise(object) &&
            object_journal_name(&id, name, &unused) == 0)
            json_object_set(raw, name, object);
    }
    return raw;
}

/* The journal name of the object of the same kind and name that is there, whatever version the list came in;
 * or NULL. */
static const char *live_name_of(const json_t *index, const char *name)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    if (object_id_parse(name, &id, &unused) < 0)
        return NULL;
    struct reference r = {.group = id.group, .kind = id.kind, .namespace = id.namespace, .name = id.name};
    return references_find(index, &r);
}

/* Endpoints of a Service that selects pods are the control plane's, although older ones do not say so: addresses of pods that are gone
 * must not come back. `set`: has the Service. */
static bool are_of_selector(const json_t *set, const struct object_id *id)
{
    struct object_id service = *id;
    char name[OBJECT_NAME_BYTES];
    struct error unused = ERROR_INIT;
    service.kind = "Service";
    if (id->group[0] || strcmp(id->kind, "Endpoints") != 0 || object_journal_name(&service, name, &unused) < 0)
        return false;
    return json_object_size(json_object_get(json_object_get(json_object_get(set, name), "spec"), "selector")) > 0;
}

/* Policies add up: what one of the application's own lets through, isolation does not stop. */
static bool opens_isolation(const struct recovery_run *run, const struct object_id *id)
{
    static const char *const kinds[] = {"networking.k8s.io/NetworkPolicy", "cilium.io/CiliumNetworkPolicy", "crd.projectcalico.org/NetworkPolicy",
                                        "projectcalico.org/NetworkPolicy", "crd.antrea.io/NetworkPolicy"};
    char text[512];
    if (!json_is_true(json_object_get(run->spec, "isolated")) || strcmp(id->name, RESTORE_ISOLATION_NAME) == 0)
        return false;
    snprintf(text, sizeof text, "%s/%s", id->group, id->kind);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(text, kinds[i]) == 0)
            return true;
    }
    return false;
}

bool recovery_runs_again(const struct recovery_run *run, const json_t *live, const json_t *wanted)
{
    return !json_is_true(json_object_get(run->spec, "objectsOnly")) && restore_has_ended(live) && !restore_has_ended(wanted);
}

/* A Job or a pod that had ended at the point, when a later one of its name is there: 1: it has its entry. */
static int plan_ended(struct recovery_run *run, int wave, const char *name, const json_t *live, const json_t *normal, const json_t *prepared,
                      const json_t *holders, struct error *err)
{
    static const char gone[] = "it had ended at the point, and is not run again; the later one of its name came after the point",
                      stays[] = "it had ended at the point, and is not run again; the later one of its name stays";
    char field[RESTORE_REASON_BYTES];
    if (!restore_has_ended(prepared) || (restore_has_ended(normal) && restore_way_of(normal, prepared, field) == RESTORE_UPDATE))
        return 0;
    bool goes = run->mode == RESTORE_REWIND && !json_object_get(holders, object_uid(live));
    int r = recovery_add_entry(run, goes ? ACTION_DELETE : ACTION_SKIP, goes ? 0 : wave, name, goes ? gone : stays, goes ? object_uid(live) : NULL, err);
    return r < 0 ? r : 1;
}

/* Of one that has to be compared with what is there, both whole. */
static int plan_compared(struct recovery_run *run, int wave, const char *name, const json_t *live,
                         const json_t *holders, struct error *err)
{
    char reason[RESTORE_REASON_BYTES], field[RESTORE_REASON_BYTES];
    _cleanup_json_ json_t *wanted = NULL, *prepared = NULL, *normal = NULL;
    int r = object_normalize(live, &normal, err);
    if (r == -EFBIG) { /* it has grown beyond what can be compared: to put it back is tried, and has a verdict */
        snprintf(reason, sizeof reason, "%.*s", (int)sizeof reason - 1, err->message);
        *err = ERROR_INIT;
        return recovery_add_entry(run, ACTION_CHANGE, wave, name, reason, NULL, err);
    }
    if (r == 0)
        r = recovery_get_wanted(run, name, &wanted, err);
    if (r == 0)
        r = restore_prepare(wanted, run->mode, true, &prepared, reason, err);
    if (r < 0)
        return r;
    const char *grown = restore_adopt_claim(prepared, normal) ? "a volume that has grown stays as large as it is: " : NULL;
    if (grown) {
        const json_t *requests = json_object_get(json_object_get(json_object_get(normal, "spec"), "resources"), "requests");
        snprintf(reason, sizeof reason, "%s%.60s", grown, json_text(requests, "storage"));
        grown = reason;
    }
    if ((r = plan_ended(run, wave, name, live, normal, prepared, holders, err)) != 0)
        return r < 0 ? r : 0;
    if (strcmp(json_text(live, "apiVersion"), json_text(prepared, "apiVersion")) != 0)
        return recovery_add_entry(run, ACTION_CHANGE, wave, name, NULL, NULL,
                                  err); /* compared in the version of the point then */
    if (json_equal(normal, prepared))
        return recovery_add_entry(run, ACTION_SAME, wave, name, grown, NULL, err);
    if (recovery_runs_again(run, normal, prepared))
        return recovery_add_entry(run, ACTION_RECREATE, wave, name, "it has ended since, and its work is undone", NULL, err);
    if (restore_way_of(normal, prepared, field) != RESTORE_RECREATE)
        return recovery_add_entry(run, ACTION_CHANGE, wave, name, grown, NULL, err);
    snprintf(reason, sizeof reason, "%.200s cannot be changed", field);
    return recovery_add_entry(run, ACTION_RECREATE, wave, name, reason, NULL, err);
}

/* `live`: outline of the one that is there, `live_name` in run->live; or NULL. */
static int plan_object(struct recovery_run *run, int wave, const char *name, const char *live_name,
                       const json_t *live, const json_t *holders, struct error *err)
{
    char reason[RESTORE_REASON_BYTES];
    _cleanup_json_ json_t *prepared = NULL, *whole = NULL;
    struct object_id id;
    bool leaves = json_object_get(json_object_get(live, "metadata"), "deletionTimestamp");
    int r = object_id_parse(name, &id, err);
    if (r == 0)
        r = restore_prepare(json_object_get(run->wanted, name), run->mode, live && !leaves, &prepared, reason,
                            err);
    if (r < 0)
        return r;
    if (prepared && opens_isolation(run, &id))
        return recovery_add_entry(run, ACTION_SKIP, wave, name,
                                  "the clone is isolated, and this would let through what that stops", NULL,
                                  err);
    if (prepared && are_of_selector(run->wanted, &id))
        return recovery_add_entry(run, ACTION_SKIP, wave, name, of_selector, NULL, err);
    if (!prepared)
        return recovery_add_entry(run, ACTION_SKIP, wave, name, reason, NULL, err);
    if (!live)
        return recovery_add_entry(run, ACTION_CREATE, wave, name, NULL, NULL, err);
    if (!id.namespace[0]) /* R6 */
        return recovery_add_entry(run, ACTION_SKIP, wave, name, "it is there, and others may use it", NULL,
                                  err);
    if (leaves)
        return recovery_add_entry(run, ACTION_RECREATE, wave, name, "it is being deleted", NULL, err);
    r = recovery_get_live(run, live_name, &whole, err);
    return r == 0 ? plan_compared(run, wave, name, whole, holders, err) : r;
}

/* {uid: claim} of what has claims, and of the owners of that: with it they would be deleted. A pod's ephemeral ones are
 * meant to. */
static json_t *claim_holders(const json_t *all)
{
    json_t *holders = json_object(), *object, *owner;
    size_t i, k;
    for (size_t before = SIZE_MAX; json_object_size(holders) != before;) {
        before = json_object_size(holders);
        json_array_foreach(all, i, object)
        {
            const json_t *metadata = json_object_get(object, "metadata");
            bool claim = strcmp(json_text(object, "kind"), "PersistentVolumeClaim") == 0;
            json_t *held = json_object_get(holders, object_uid(object));
            json_array_foreach(json_object_get(metadata, "ownerReferences"), k, owner)
            {
                const char *uid = json_text(owner, "uid");
                if (!*uid || (!claim && !held) || strcmp(json_text(owner, "kind"), "Pod") == 0 || json_object_get(holders, uid))
                    continue;
                json_object_set(holders, uid, claim ? json_object_get(metadata, "name") : held);
            }
        }
    }
    return holders;
}

/* Why an object that came after the point stays, or NULL. */
static const char *reason_to_stay(const json_t *object, const struct object_id *id)
{
    const json_t *owners = json_object_get(json_object_get(object, "metadata"), "ownerReferences");
    size_t i;
    json_t *owner;
    if (strcmp(id->kind, "PersistentVolumeClaim") == 0 && !id->group[0])
        return "it came after the point; claims are not deleted by a recovery";
    if (strcmp(id->kind, "VolumeSnapshot") == 0 && strcmp(id->group, "snapshot.storage.k8s.io") == 0)
        return "it came after the point; snapshots are not deleted by a recovery";
    if (strcmp(id->kind, "ServiceAccount") == 0 && strcmp(id->name, "default") == 0)
        return "every namespace has it";
    if (strcmp(json_text(object, "type"), "kubernetes.io/service-account-token") == 0)
        return "the control plane makes it";
    json_array_foreach(owners, i, owner)
    {
        if (json_is_true(json_object_get(owner, "controller")))
            return "its owner decides about it";
    }
    return NULL;
}

/* What was there before the point did not come after it, whatever the journal knows: it was not seen, or it did not belong to the
 * application. Clocks need not agree to the second, nor is a change journaled in the same. */
static bool is_older(const json_t *object, uint64_t point_ns)
{
    uint64_t made_ns;
    struct error unused = ERROR_INIT;
    const char *made = json_text(json_object_get(object, "metadata"), "creationTimestamp");
    return clock_parse_rfc3339(made, &made_ns, &unused) == 0 && made_ns + RECOVERY_OLDER_NS < point_ns;
}

static uint64_t point_time(struct recovery_run *run)
{
    uint64_t ns;
    struct error unused = ERROR_INIT;
    const char *text = json_text(json_object_get(recovery_status(run), "point"), "time");
    return clock_parse_rfc3339(text, &ns, &unused) == 0 ? ns : 0;
}

static int plan_deletions(struct recovery_run *run, const json_t *raw, const json_t *holders, struct error *err)
{
    const uint64_t point_ns = point_time(run);
    _cleanup_json_ json_t *index = references_index(run->wanted);
    const char *name;
    json_t *object;
    json_object_foreach((json_t *)(uintptr_t)raw, name, object)
    {
        struct object_id id;
        int r = object_id_parse(name, &id, err);
        if (r < 0)
            return r;
        struct reference wanted = {
            .group = id.group, .kind = id.kind, .namespace = id.namespace, .name = id.name};
        if (references_find(index, &wanted) ||
            json_object_get(json_object_get(object, "metadata"), "deletionTimestamp"))
            continue;
        const char *stays = reason_to_stay(object, &id);
        const char *claim = json_string_value(json_object_get(holders, object_uid(object)));
        char kept[RESTORE_REASON_BYTES];
        if (!stays && are_of_selector(raw, &id))
            stays = of_selector;
        if (!stays && is_older(object, point_ns))
            stays = "it was there before the point, and no part of the application's history then";
        if (!stays && claim) {
            snprintf(kept, sizeof kept, "it came after the point; the claim %.200s would go with it", claim);
            stays = kept;
        }
        r = recovery_add_entry(run, stays ? ACTION_SKIP : ACTION_DELETE, 0, name,
                               stays ? stays : "it came after the point", object_uid(object), err);
        if (r < 0)
            return r;
    }
    return 0;
}

static int note_plan(struct recovery_run *run, struct error *err)
{
    size_t counts[RECOVERY_ACTIONS] = {0};
    char config_map[300];
    for (size_t i = 0; i < run->entry_count; i++)
        counts[run->entries[i].action]++;
    snprintf(config_map, sizeof config_map, "tidemark-recovery-%s", run->name);
    json_t *plan = json_pack("{s:i, s:s}", "waves", run->waves, "configMap", config_map);
    for (int a = 0; a < RECOVERY_ACTIONS; a++)
        json_object_set_new(plan, recovery_action_name((enum recovery_action)a),
                            json_integer((json_int_t)counts[a]));
    return json_object_set_new(recovery_status(run), "plan", plan) < 0
               ? error_set(err, -ENOMEM, "out of memory")
               : 0;
}

/* {"group|kind|name": the index of its entry} of what will have another uid than now. */
static json_t *made_again(const struct recovery_run *run)
{
    json_t *names = json_object();
    for (size_t i = 0; i < run->entry_count; i++) {
        const struct recovery_entry *e = &run->entries[i];
        struct object_id id;
        struct error unused = ERROR_INIT;
        char key[OBJECT_NAME_BYTES];
        if ((e->action != ACTION_CREATE && e->action != ACTION_RECREATE) || object_id_parse(e->name, &id, &unused) < 0)
            continue;
        snprintf(key, sizeof key, "%s|%s|%s", id.group, id.kind, id.name);
        json_object_set_new(names, key, json_integer((json_int_t)i));
    }
    return names;
}

/* The index of its first owner that is made again, or -1. */
static json_int_t owner_made_again(const json_t *object, const json_t *names)
{
    size_t i;
    json_t *owner;
    json_array_foreach(json_object_get(json_object_get(object, "metadata"), "ownerReferences"), i, owner)
    {
        char group[256], key[OBJECT_NAME_BYTES];
        snprintf(key, sizeof key, "%s|%s|%s", object_group_of(json_text(owner, "apiVersion"), group, sizeof group), json_text(owner, "kind"),
                 json_text(owner, "name"));
        const json_t *found = json_object_get(names, key);
        if (found)
            return json_integer_value(found);
    }
    return -1;
}

/* Whether an owner of that name is there, and is another one than it names: the garbage collector is about to find out. */
static bool owner_was_made_again(const struct recovery_run *run, const json_t *index, const char *name)
{
    const json_t *live = name ? json_object_get(run->live, name) : NULL;
    size_t i;
    json_t *owner;
    json_array_foreach(json_object_get(json_object_get(live, "metadata"), "ownerReferences"), i, owner)
    {
        char group[256];
        object_group_of(json_text(owner, "apiVersion"), group, sizeof group);
        const struct reference r = {.group = group, .kind = json_text(owner, "kind"), .namespace = run->target_namespace, .name = json_text(owner, "name")};
        const char *found = references_find(index, &r);
        if (found && strcmp(object_uid(json_object_get(run->live, found)), json_text(owner, "uid")) != 0)
            return true;
    }
    return false;
}

static int change_owned(struct recovery_entry *e, const char *reason, struct error *err)
{
    e->action = ACTION_CHANGE;
    free(e->reason);
    e->reason = strdup(reason);
    return e->reason ? 0 : error_set(err, -ENOMEM, "out of memory");
}

int recovery_plan_owned(struct recovery_run *run, struct error *err)
{
    _cleanup_json_ json_t *names = made_again(run), *index = references_index(run->live);
    const char *name;
    json_t *object, *plan = json_object_get(recovery_status(run), "plan");
    size_t counts[RECOVERY_ACTIONS] = {0};
    int r = names && index ? 0 : error_set(err, -ENOMEM, "out of memory");
    /* What has something is marked by its uid: that must not go with it. */
    json_object_foreach(run->live, name, object)
    {
        json_int_t i = r == 0 ? owner_made_again(object, names) : -1;
        if (i < 0 || run->entries[i].action != ACTION_RECREATE || run->entries[i].uid)
            continue;
        const json_t *owner = json_object_get(run->live, run->entries[i].name);
        if (!(run->entries[i].uid = strdup(object_uid(owner))))
            r = error_set(err, -ENOMEM, "out of memory");
    }
    for (size_t i = 0; i < run->entry_count && r == 0; i++) {
        struct recovery_entry *e = &run->entries[i];
        if (e->action == ACTION_SAME && owner_made_again(json_object_get(run->wanted, e->name), names) >= 0)
            r = change_owned(e, "its owner is made again", err);
        else if (e->action == ACTION_SAME && owner_was_made_again(run, index, live_name_of(index, e->name)))
            r = change_owned(e, "its owner was made again", err);
        counts[e->action]++;
    }
    for (int a = 0; a < RECOVERY_ACTIONS && r == 0; a++)
        if (json_object_set_new(plan, recovery_action_name((enum recovery_action)a), json_integer((json_int_t)counts[a])) < 0)
            r = error_set(err, -ENOMEM, "out of memory");
    return r;
}

bool recovery_is_limit(const char *name)
{
    return strncmp(name, "core/v1/LimitRange/", 19) == 0 || strncmp(name, "core/v1/ResourceQuota/", 22) == 0;
}

/* What has an owner comes after it. */
static bool is_autoscaler_without_owner(const struct recovery_run *run, const char *name)
{
    const json_t *metadata = json_object_get(json_object_get(run->wanted, name), "metadata");
    return strstr(name, "/HorizontalPodAutoscaler/") && json_array_size(json_object_get(metadata, "ownerReferences")) == 0;
}

/* A limit that is there is in the way of all that is put back, whatever its place: what it was lets that in,
 * since it did so then. And an autoscaler that is there would set the replicas of the workload once more to
 * what it was told after the point. */
static void put_limits_first(struct recovery_run *run)
{
    struct recovery_entry *e = run->entry_count ? &run->entries[run->entry_count - 1] : NULL;
    if (e && (recovery_is_limit(e->name) || is_autoscaler_without_owner(run, e->name)) &&
        (e->action == ACTION_CHANGE || e->action == ACTION_RECREATE))
        e->wave = 1;
}

int recovery_make_plan(struct recovery_run *run, struct error *err)
{
    _cleanup_json_ json_t *array = json_array(), *own = NULL, *index = NULL, *holders = NULL;
    size_t i, k;
    json_t *wave, *name, *raw;
    recovery_free_entries(run);
    /* Whatever belongs to the application: an object of a wanted name may be there without the mark. In a namespace that is
     * not there is nothing, and to ask for each kind would be most requests of a small restore. */
    int r = run->target_missing ? 0 : recovery_list_live(run, array, err);
    if (r < 0)
        return r;
    raw = run->live = by_name(array);
    index = references_index(raw);
    holders = claim_holders(array); /* before others' are taken out */
    if (run->mode == RESTORE_REWIND) {
        r = run->c->source->select(run->c->source_context, run->source_namespace, run->application, array,
                                   err);
        own = by_name(array);
        if (r == 0)
            r = plan_deletions(run, own, holders, err);
    }
    json_array_foreach(json_object_get(run->order, "waves"), i, wave)
    {
        json_array_foreach(json_object_get(wave, "objects"), k, name)
        {
            const char *text = json_string_value(name);
            const char *live_name = live_name_of(index, text);
            const json_t *live = live_name ? json_object_get(raw, live_name) : NULL;
            _cleanup_json_ json_t *cluster_scoped = NULL;
            if (r == 0 && strstr(text, "/_/")) {
                r = run->c->cluster->get(run->c->cluster_context, text, &cluster_scoped, err);
                live = cluster_scoped;
                r = r == -ENOENT ? 0 : r;
            }
            if (r == 0)
                r = plan_object(run, (int)i + 1, text, live_name, live, holders, err);
            if (r == 0)
                put_limits_first(run);
        }
    }
    return r == 0 ? note_plan(run, err) : r;
}
