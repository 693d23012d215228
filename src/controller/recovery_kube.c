/* SPDX-License-Identifier: Apache-2.0 */
/* Recoveries and the API server: objects with the rights of whoever asked (R4), the Recovery and its plan
 * with our own. */
#include "controller/recovery_kube.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "app/objects.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "controller/admission.h"
#include "lib/json.h"

#define MANAGER "tidemark-recovery"
enum {
    KINDS_AGAIN_MS = 300,     /* between two discoveries */
    OTHERS_TIMEOUT_MS = 8000, /* for a list of somebody else's kind */
    LIST_OBJECTS = 100        /* at a time: of each only an outline is kept */
};

const struct kube_resource controller_recoveries = {"tidemark.io", "v1alpha1", "recoveries",
                                                    "Recovery",    true,       0};

static int check_leads(const struct recovery_kube *k, struct error *err)
{
    return !k->leads || k->leads(k->leads_context)
               ? 0
               : error_set(err, -ECANCELED, "this controller is not the leader any more");
}

/* ---- who asked ---- */

static int read_requester(struct recovery_kube *k, const char *text, struct error *err)
{
    const char *key;
    json_t *groups, *extra, *values, *value;
    size_t i;
    int r = json_parse(RECOVERY_REQUESTER_ANNOTATION, text, strlen(text), &k->requester, err);
    if (r == 0)
        r = json_get_string(k->requester, "username", &k->user.name, err);
    if (r < 0)
        return r;
    k->user.uid = json_string_value(json_object_get(k->requester, "uid"));
    groups = json_object_get(k->requester, "groups");
    extra = json_object_get(k->requester, "extra");
    json_array_foreach(groups, i, value)
    {
        if (k->user.group_count == KUBE_MAX_GROUPS || !json_is_string(value))
            return error_set(err, -EPERM, "whoever asked for the recovery has more than %u groups",
                             KUBE_MAX_GROUPS);
        k->groups[k->user.group_count++] = json_string_value(value);
    }
    json_object_foreach(extra, key, values)
    {
        json_array_foreach(values, i, value)
        {
            if (k->user.extra_count == KUBE_MAX_EXTRA || !json_is_string(value))
                return error_set(err, -EPERM, "whoever asked for the recovery has more than %u extra fields",
                                 KUBE_MAX_EXTRA);
            k->extra[k->user.extra_count++] = (struct kube_extra){key, json_string_value(value)};
        }
    }
    k->user.groups = k->groups;
    k->user.extra = k->extra;
    return 0;
}

int recovery_kube_init(struct recovery_kube *k, struct kube_client *client, const json_t *recovery,
                       const struct log *log, struct error *err)
{
    const char *text = kube_object_annotation(recovery, RECOVERY_REQUESTER_ANNOTATION);
    *k = (struct recovery_kube){.client = client, .log = log, .mutex = PTHREAD_MUTEX_INITIALIZER};
    if (!text)
        return error_set(
            err, -EPERM,
            "nobody is recorded as having asked for it (annotation " RECOVERY_REQUESTER_ANNOTATION
            "): the admission webhook was not there; see to it, and make the recovery again");
    int r = read_requester(k, text, err);
    return r < 0 ? error_context(err, "annotation " RECOVERY_REQUESTER_ANNOTATION) : 0;
}

void recovery_kube_release(struct recovery_kube *k)
{
    kube_kinds_release(&k->kinds);
    json_decref(k->texts);
    json_decref(k->requester);
    *k = (struct recovery_kube){0};
}

/* ---- kinds ---- */

/* With the mutex held. */
static int discover(struct recovery_kube *k, struct error *err)
{
    struct kube_kinds found = {0};
    uint64_t now_ns = clock_boottime_ns(clock_system());
    if (k->kinds_ns && now_ns - k->kinds_ns < KINDS_AGAIN_MS * NS_PER_MS)
        return 0; /* asked just now */
    int r = kube_discover(k->client, &found, err);
    if (r < 0)
        return r;
    kube_kinds_release(&k->kinds);
    k->kinds = found;
    k->kinds_ns = now_ns;
    return 0;
}

/* A text that stays when kinds are asked for again. With the mutex held; NULL: out of memory. */
static const char *keep_text(struct recovery_kube *k, const char *text)
{
    if (!k->texts)
        k->texts = json_object();
    json_t *kept = json_object_get(k->texts, text);
    if (!kept && json_object_set_new(k->texts, text, json_string(text)) == 0)
        kept = json_object_get(k->texts, text);
    return json_string_value(kept);
}

static int find_kind(struct recovery_kube *k, const char *group, const char *version, const char *kind,
                     struct kube_resource *ret, struct error *err)
{
    char api_version[320];
    const struct kube_resource *found = NULL;
    int r = 0;
    MUTEX_GUARD(guard, &k->mutex);
    snprintf(api_version, sizeof api_version, "%s%s%s", group, group[0] ? "/" : "", version);
    for (int tries = 0; tries < 2 && r == 0 && !found; tries++) {
        if (!k->kinds_ns || tries)
            r = discover(k, err);
        found = r == 0 ? kube_kinds_find(&k->kinds, api_version, kind) : NULL;
    }
    if (r < 0)
        return r;
    if (!found)
        return error_set(err, -ENOENT, "the cluster does not know the kind %s of %s", kind, api_version);
    *ret = (struct kube_resource){.group = keep_text(k, found->group),
                                  .version = keep_text(k, found->version),
                                  .plural = keep_text(k, found->plural),
                                  .kind = keep_text(k, found->kind),
                                  .namespaced = found->namespaced,
                                  .verbs = found->verbs};
    return ret->group && ret->version && ret->plural && ret->kind ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* The resource in the version of the object, or in the preferred one when that is not served. */
static int target_of(struct recovery_kube *k, const struct object_id *id, struct kube_resource *resource,
                     struct kube_target *ret, struct error *err)
{
    int r = find_kind(k, id->group, id->version, id->kind, resource, err);
    if (r < 0)
        return r;
    *ret = (struct kube_target){.resource = resource,
                                .namespace = id->namespace[0] ? id->namespace : NULL,
                                .name = id->name,
                                .as = &k->user,
                                .field_manager = MANAGER};
    return 0;
}

static int knows(void *context, const char *group, const char *version, const char *kind, bool *ret,
                 struct error *err)
{
    struct kube_resource found;
    int r = find_kind(context, group, version, kind, &found, err);
    *ret = r == 0;
    return r == -ENOENT ? 0 : r;
}

/* Whether the kind's definition says that its versions differ in nothing but apiVersion. With the controller's own rights:
 * definitions are everybody's. */
static int converts_by_name(struct recovery_kube *k, const struct kube_resource *resource, bool *ret, struct error *err)
{
    _cleanup_free_ char *name = NULL;
    _cleanup_json_ json_t *definition = NULL;
    if (asprintf(&name, "%s.%s", resource->plural, resource->group) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    const struct kube_target target = {.resource = &kube_crds, .name = name};
    int r = kube_get(k->client, &target, &definition, err);
    const json_t *conversion = json_object_get(json_object_get(definition, "spec"), "conversion");
    *ret = r == 0 && strcmp(json_text(conversion, "strategy"), "None") == 0;
    return r == -ENOENT ? 0 : r;
}

static int serves(void *context, const char *group, const char *version, const char *kind, char **ret,
                  struct error *err)
{
    struct recovery_kube *k = context;
    struct kube_resource found;
    bool same_form = true;
    int r = find_kind(k, group, version, kind, &found, err);
    if (r == 0 && strcmp(found.version, version) != 0)
        r = converts_by_name(k, &found, &same_form, err);
    if (r < 0)
        return r;
    if (!same_form)
        return error_set(err, -EOPNOTSUPP,
                         "the cluster serves the kind %s of %s as %s, and not as %s any more, which is what it was at the point; "
                         "have its CustomResourceDefinition serve %s again, or take a point after the change",
                         kind, group, found.version, version, version);
    *ret = strdup(found.version);
    return *ret ? 0 : error_set(err, -ENOMEM, "out of memory");
}

/* ---- objects ---- */

/* Whether somebody else's kind is not answered while the server answers: its conversion webhook says nothing at all, say. */
static bool hangs(struct recovery_kube *k, const struct kube_resource *resource, const char *namespace, int code)
{
    struct error unused = ERROR_INIT;
    const struct kube_target target = {.resource = &kube_namespaces, .name = namespace};
    if (code != -ETIMEDOUT || object_group_is_builtin(resource->group) || !namespace)
        return false;
    int r = kube_get(k->client, &target, NULL, &unused);
    return r == 0 || r == -ENOENT || r == -EACCES;
}

/* What a call for one object came to: -ETIMEDOUT of a server that is away is waited for, that of a kind that hangs is the object's own. */
static int of_object(struct recovery_kube *k, const struct kube_target *target, int code, struct error *err)
{
    if (!hangs(k, target->resource, target->namespace, code))
        return code;
    const struct error was = *err;
    return error_set(err, -EIO, "%s; the API server answers, and not for this kind: see to its conversion webhook", was.message);
}

/* With the rights of whoever asked, or the controller's own. */
static int get_by(struct recovery_kube *k, bool own_rights, const char *name, json_t **ret, struct error *err)
{
    struct object_id id;
    struct kube_resource resource;
    struct kube_target target;
    int r = object_id_parse(name, &id, err);
    if (r == 0)
        r = target_of(k, &id, &resource, &target, err);
    if (r < 0)
        return r;
    if (own_rights)
        target.as = NULL;
    return of_object(k, &target, kube_get(k->client, &target, ret, err), err);
}

static int get(void *context, const char *name, json_t **ret, struct error *err)
{
    return get_by(context, false, name, ret, err);
}

static int get_class(void *context, const char *name, json_t **ret, struct error *err)
{
    return get_by(context, true, name, ret, err);
}

static int may(void *context, const char *verb, const char *name, bool *ret, struct error *err)
{
    struct recovery_kube *k = context;
    struct object_id id;
    struct kube_resource resource = {0};
    int r = object_id_parse(name, &id, err);
    if (r == 0)
        r = find_kind(k, id.group, id.version, id.kind, &resource, err);
    const struct admission_right right = {.verb = verb, .group = resource.group, .resource = resource.plural, .namespace = id.namespace};
    return r < 0 ? r : admission_kube.may(k->client, k->requester, &right, ret, err);
}

enum put_how { PUT_CREATE, PUT_TRY, PUT_REPLACE };

static int put(struct recovery_kube *k, const json_t *object, enum put_how how, struct error *err)
{
    struct object_id id;
    struct kube_resource resource;
    struct kube_target target;
    int r = object_identify(object, &id, err);
    if (r == 0)
        r = target_of(k, &id, &resource, &target, err);
    if (r == 0)
        r = check_leads(k, err);
    if (r < 0)
        return r;
    if (how == PUT_REPLACE)
        return of_object(k, &target, kube_update(k->client, &target, object, NULL, err), err);
    target.name = NULL;
    target.dry_run = how == PUT_TRY;
    return of_object(k, &target, kube_create(k->client, &target, object, NULL, err), err);
}
static int create(void *context, const json_t *object, struct error *err)
{
    return put(context, object, PUT_CREATE, err);
}
static int try_create(void *context, const json_t *object, struct error *err)
{
    return put(context, object, PUT_TRY, err);
}
static int replace(void *context, const json_t *object, struct error *err)
{
    return put(context, object, PUT_REPLACE, err);
}

static int remove_object(void *context, const char *name, const char *uid, const char *propagation,
                         struct error *err)
{
    struct recovery_kube *k = context;
    struct object_id id;
    struct kube_resource resource;
    struct kube_target target;
    const struct kube_delete_options options = {.uid = uid, .propagation = propagation, .grace_period_s = -1};
    int r = object_id_parse(name, &id, err);
    if (r == 0)
        r = target_of(k, &id, &resource, &target, err);
    if (r == 0)
        r = check_leads(k, err);
    if (r == 0)
        r = of_object(k, &target, kube_delete(k->client, &target, &options, err), err);
    return r == -ENOENT ? 0 : r;
}

struct listing {
    json_t *kept; /* of one kind */
    recovery_keep keep;
    void *keep_context;
};

static int keep_items(void *context, json_t *items, bool first, struct error *err)
{
    const struct listing *l = context;
    size_t i;
    json_t *item;
    if (first)
        json_array_clear(l->kept);
    json_array_foreach(items, i, item)
    {
        json_t *kept = l->keep ? NULL : json_incref(item);
        int r = l->keep ? l->keep(l->keep_context, item, &kept, err) : 0;
        if (r < 0)
            return r;
        if (json_array_append_new(l->kept, kept) < 0)
            return error_set(err, -ENOMEM, "out of memory");
    }
    return 0;
}

/* Somebody else's kind whose server or conversion webhook is broken, by a bad release say, must not keep all the rest from being put
 * back. */
static bool is_broken(const struct kube_resource *resource, int code, long http_code)
{
    return code < 0 && !object_group_is_builtin(resource->group) && (http_code >= 500 || code == -EPROTO || code == -EOPNOTSUPP);
}

/* The kinds as they are known now: others may ask for them again meanwhile. The caller frees them. */
static int copy_kinds(struct recovery_kube *k, struct kube_resource **ret, size_t *ret_count, struct error *err)
{
    MUTEX_GUARD(guard, &k->mutex);
    int r = k->kinds_ns ? 0 : discover(k, err);
    if (r < 0)
        return r;
    struct kube_resource *copy = calloc(k->kinds.count + 1, sizeof *copy);
    bool kept = copy;
    for (size_t i = 0; kept && i < k->kinds.count; i++) {
        const struct kube_resource *is = &k->kinds.resources[i];
        copy[i] = *is;
        kept = (copy[i].group = keep_text(k, is->group)) && (copy[i].version = keep_text(k, is->version)) &&
               (copy[i].plural = keep_text(k, is->plural)) && (copy[i].kind = keep_text(k, is->kind));
    }
    if (!kept) {
        free(copy);
        return error_set(err, -ENOMEM, "out of memory");
    }
    *ret = copy;
    *ret_count = k->kinds.count;
    return 0;
}

/* What somebody may not list she may not put back either: it is passed over, and each such object fails by
 * itself. */
static int list(void *context, const char *namespace, recovery_keep keep, void *keep_context, json_t *array,
                struct error *err)
{
    struct recovery_kube *k = context;
    _cleanup_free_ struct kube_resource *kinds = NULL;
    size_t count = 0;
    int copied = copy_kinds(k, &kinds, &count, err);
    if (copied < 0)
        return copied;
    for (size_t i = 0; i < count; i++) {
        const struct kube_resource *resource = &kinds[i];
        struct kube_status status = {0};
        const struct kube_target target = {.resource = resource, .namespace = namespace, .as = &k->user, .status = &status};
        const struct kube_list_options options = {
            .limit = LIST_OBJECTS,
            .timeout_ms = object_group_is_builtin(resource->group) ? 0 : OTHERS_TIMEOUT_MS};
        _cleanup_json_ json_t *chunk = json_array();
        struct listing listing = {chunk, keep, keep_context};
        if (!resource->namespaced || !(resource->verbs & KUBE_VERB_LIST) ||
            !(resource->verbs & KUBE_VERB_DELETE) || (strcmp(resource->kind, "Event") == 0))
            continue;
        int r = kube_list(k->client, &target, &options, keep_items, &listing, NULL, err);
        json_decref(status.details);
        bool again = hangs(k, resource, namespace, r); /* or the connection did, or the list is long: once more */
        if (again) {
            status = (struct kube_status){0};
            json_array_clear(chunk);
            r = kube_list(k->client, &target, &options, keep_items, &listing, NULL, err);
            json_decref(status.details);
        }
        bool broken = is_broken(resource, r, status.code) || (again && r == -ETIMEDOUT);
        if (broken)
            log_warning(k->log, "recovery into %s: objects of %s.%s cannot be listed and are passed over: %s", namespace, resource->plural,
                        resource->group, err->message);
        if (r == -EACCES || r == -ENOENT || broken) {
            *err = ERROR_INIT;
            continue;
        }
        if (r < 0)
            return r;
        json_array_extend(array, chunk);
    }
    return 0;
}

static int pods(void *context, const char *namespace, json_t **ret, struct error *err)
{
    struct recovery_kube *k = context;
    const struct kube_target target = {.resource = &kube_pods, .namespace = namespace, .as = &k->user};
    return kube_list_all(k->client, &target, NULL, ret, err);
}

const struct recovery_cluster_ops recovery_kube_cluster = {.get = get,
                                                           .create = create,
                                                           .try_create = try_create,
                                                           .replace = replace,
                                                           .remove = remove_object,
                                                           .list = list,
                                                           .pods = pods,
                                                           .knows = knows,
                                                           .serves = serves,
                                                           .get_class = get_class,
                                                           .may = may};

/* ---- the Recovery ---- */

/* 500 of what is the recovery's own: an API server or etcd in trouble (a change of etcd's leader, say), which passes. */
static int of_server(int r)
{
    return r == -EIO ? -EAGAIN : r;
}

static int read_recovery(void *context, const char *namespace, const char *name, json_t **ret,
                         struct error *err)
{
    const struct recovery_kube *k = context;
    const struct kube_target target = {
        .resource = &controller_recoveries, .namespace = namespace, .name = name};
    return of_server(kube_get(k->client, &target, ret, err));
}

static int write_status(void *context, const json_t *recovery, json_t **ret, struct error *err)
{
    const struct recovery_kube *k = context;
    const struct kube_target target = {.resource = &controller_recoveries,
                                       .namespace = kube_object_namespace(recovery),
                                       .name = kube_object_name(recovery),
                                       .subresource = "status",
                                       .field_manager = MANAGER};
    int r = check_leads(k, err);
    return r < 0 ? r : of_server(kube_update(k->client, &target, recovery, ret, err));
}

static void plan_name(const json_t *recovery, size_t number, char *name, size_t size)
{
    if (number)
        snprintf(name, size, "tidemark-recovery-%.200s-%zu", kube_object_name(recovery), number);
    else
        snprintf(name, size, "tidemark-recovery-%.200s", kube_object_name(recovery));
}

static int write_plan(void *context, const json_t *recovery, size_t number, const char *text,
                      struct error *err)
{
    const struct recovery_kube *k = context;
    char name[256];
    plan_name(recovery, number, name, sizeof name);
    _cleanup_json_ json_t *object =
        json_pack("{s:s, s:s, s:{s:s, s:s, s:{s:s}, s:[{s:s, s:s, s:s, s:s}]}, s:{s:s}}", "apiVersion", "v1",
                  "kind", "ConfigMap", "metadata", "name", name, "namespace", kube_object_namespace(recovery),
                  "labels", "tidemark.io/recovery-plan", kube_object_uid(recovery) /* a name may be too long for a label */,
                  "ownerReferences",
                  "apiVersion", "tidemark.io/v1alpha1", "kind", "Recovery", "name",
                  kube_object_name(recovery), "uid", kube_object_uid(recovery), "data", "objects", text);
    const struct kube_target target = {.resource = &kube_configmaps,
                                       .namespace = kube_object_namespace(recovery),
                                       .name = name,
                                       .field_manager = MANAGER};
    int r = check_leads(k, err);
    if (r < 0)
        return r;
    return object ? kube_apply(k->client, &target, object, true, NULL, err)
                  : error_set(err, -ENOMEM, "out of memory");
}

static int read_plan(void *context, const json_t *recovery, size_t number, char **ret, struct error *err)
{
    const struct recovery_kube *k = context;
    char name[256];
    _cleanup_json_ json_t *object = NULL;
    plan_name(recovery, number, name, sizeof name);
    const struct kube_target target = {
        .resource = &kube_configmaps, .namespace = kube_object_namespace(recovery), .name = name};
    int r = kube_get(k->client, &target, &object, err);
    if (r < 0)
        return r;
    const char *text = json_string_value(json_object_get(json_object_get(object, "data"), "objects"));
    *ret = text ? strdup(text) : NULL;
    return *ret ? 0 : error_set(err, -EINVAL, "the ConfigMap %s has no field objects", name);
}

const struct recovery_store_ops recovery_kube_store = {read_recovery, write_status, write_plan, read_plan};
