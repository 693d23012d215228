/* SPDX-License-Identifier: Apache-2.0 */
#include "app/transform.h"

#include <errno.h>
#include <stdio.h>

#include "app/json_patch.h"
#include "app/references.h"
#include "app/transform_internal.h"

static const char *const actions[] = {"namespace", "rename", "host",        "storageClass", "image",
                                      "replicas",  "labels", "annotations", "patch"};
enum { ACTIONS = sizeof actions / sizeof *actions };

/* ---- form ---- */

/* The one action of a transform, or NULL with err set. */
static const char *action_of(const json_t *transform, size_t place, struct error *err)
{
    const char *found = NULL, *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)transform, key, value)
    {
        bool known = strcmp(key, "target") == 0;
        for (size_t i = 0; i < ACTIONS; i++) {
            if (strcmp(key, actions[i]) != 0)
                continue;
            if (found) {
                error_set(err, -EINVAL, "transform %zu has both '%s' and '%s'; make two of it", place, found,
                          key);
                return NULL;
            }
            known = true;
            found = key;
        }
        if (!known) {
            error_set(err, -EINVAL, "transform %zu: unknown field '%.100s'", place, key);
            return NULL;
        }
    }
    if (!found)
        error_set(err, -EINVAL,
                  "transform %zu says nothing to do; one of namespace, rename, host, storageClass, image, "
                  "replicas, labels, annotations, patch",
                  place);
    return found;
}

static int check_target(const json_t *target, const char *action, size_t place, struct error *err)
{
    static const char *const fields[] = {"group", "kind", "name", "namespace"};
    const char *key;
    json_t *value;
    if (target && !json_is_object(target))
        return error_set(err, -EINVAL, "transform %zu: target must be an object", place);
    json_object_foreach((json_t *)(uintptr_t)target, key, value)
    {
        bool good = strcmp(key, "labels") == 0 && json_is_object(value);
        for (size_t i = 0; i < 4; i++)
            good = good || (strcmp(key, fields[i]) == 0 && json_is_string(value));
        if (!good)
            return error_set(err, -EINVAL, "transform %zu: target.%.100s is not known, or not a text", place,
                             key);
    }
    if (strcmp(action, "rename") == 0 && !objects_text(target, "kind")[0])
        return error_set(err, -EINVAL, "transform %zu: rename needs target.kind", place);
    if (strcmp(action, "patch") == 0 && !objects_text(target, "kind")[0] && !objects_text(target, "name")[0])
        return error_set(err, -EINVAL, "transform %zu: patch needs target.kind or target.name", place);
    if (strcmp(action, "namespace") == 0 && target)
        return error_set(err, -EINVAL, "transform %zu: namespace is of all objects and takes no target",
                         place);
    return 0;
}

static int check_pair(const json_t *pair, const char *action, size_t place, struct error *err)
{
    const char *from = objects_text(pair, "from"), *to = objects_text(pair, "to");
    if (!from[0] || !to[0] || json_object_size(pair) != 2)
        return error_set(err, -EINVAL, "transform %zu: %s needs from and to", place, action);
    if (strcmp(from, to) == 0)
        return error_set(err, -EINVAL, "transform %zu: %s from '%s' to itself", place, action, from);
    if (strlen(from) > 253 || strlen(to) > 253)
        return error_set(err, -EINVAL, "transform %zu: %s is longer than 253 characters", place, action);
    if (strcmp(action, "namespace") == 0 &&
        (strlen(to) > 63 || strspn(to, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(to)))
        return error_set(err, -EINVAL, "transform %zu: '%s' is no name of a namespace", place, to);
    if (strcmp(action, "rename") == 0 && strspn(to, "abcdefghijklmnopqrstuvwxyz0123456789-.") != strlen(to))
        return error_set(err, -EINVAL, "transform %zu: '%s' is no name of an object", place, to);
    return 0;
}

static int check_map_change(const json_t *change, const char *action, size_t place, struct error *err)
{
    const json_t *set = json_object_get(change, "set"), *remove = json_object_get(change, "remove");
    const char *key;
    json_t *value;
    size_t i;
    bool good = json_is_object(change) && (set || remove) && (!set || json_is_object(set)) &&
                (!remove || json_is_array(remove)) &&
                json_object_size(change) == (size_t) !!set + (size_t) !!remove;
    json_object_foreach((json_t *)(uintptr_t)set, key, value) good = good && json_is_string(value);
    json_array_foreach(remove, i, value) good = good && json_is_string(value);
    return good ? 0
                : error_set(err, -EINVAL,
                            "transform %zu: %s has set (a map of texts), remove (a list of keys), or both",
                            place, action);
}

static int check_one(const json_t *transform, size_t place, struct error *err)
{
    const char *action = json_is_object(transform) ? action_of(transform, place, err) : NULL;
    if (!json_is_object(transform))
        return error_set(err, -EINVAL, "transform %zu is not an object", place);
    if (!action)
        return err->code;
    const json_t *value = json_object_get(transform, action);
    int r = check_target(json_object_get(transform, "target"), action, place, err);
    if (r < 0)
        return r;
    if (strcmp(action, "replicas") == 0)
        return json_is_integer(value) && json_integer_value(value) >= 0 && json_integer_value(value) <= 10000
                   ? 0
                   : error_set(err, -EINVAL, "transform %zu: replicas must be a number from 0 to 10000",
                               place);
    if (strcmp(action, "labels") == 0 || strcmp(action, "annotations") == 0)
        return check_map_change(value, action, place, err);
    if (strcmp(action, "patch") == 0) {
        r = json_patch_check(value, err);
        return r < 0 ? (error_context(err, "transform %zu", place), r) : 0;
    }
    return check_pair(value, action, place, err);
}

int transforms_check(const json_t *transforms, struct error *err)
{
    size_t i;
    json_t *transform;
    if (!transforms)
        return 0;
    if (!json_is_array(transforms))
        return error_set(err, -EINVAL, "transforms must be a list");
    if (json_array_size(transforms) > TRANSFORMS_MAX)
        return error_set(err, -EINVAL, "more than %u transforms", TRANSFORMS_MAX);
    json_array_foreach(transforms, i, transform)
    {
        int r = check_one(transform, i, err);
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- what they do ---- */

static bool is_target(const json_t *target, const json_t *object)
{
    struct object_id id;
    struct error unused = ERROR_INIT;
    const char *key;
    json_t *value;
    if (!target)
        return true;
    if (object_identify(object, &id, &unused) < 0)
        return false;
    const json_t *group = json_object_get(target, "group");
    if (group && strcmp(json_string_value(group), id.group) != 0)
        return false;
    if (objects_text(target, "kind")[0] && strcmp(objects_text(target, "kind"), id.kind) != 0)
        return false;
    if (objects_text(target, "name")[0] && strcmp(objects_text(target, "name"), id.name) != 0)
        return false;
    if (objects_text(target, "namespace")[0] && strcmp(objects_text(target, "namespace"), id.namespace) != 0)
        return false;
    json_object_foreach(json_object_get(target, "labels"), key, value)
    {
        if (!json_equal(value, json_object_get(objects_at(object, "metadata/labels"), key)))
            return false;
    }
    return true;
}

struct pair {
    const char *from, *to;
    long count;
};

static int replace_class(void *context, const struct reference *r)
{
    struct pair *p = context;
    if (!r->key || strcmp(r->kind, "StorageClass") != 0 || strcmp(r->name, p->from) != 0)
        return 0;
    p->count++;
    return json_object_set_new(r->holder, r->key, json_string(p->to)) < 0 ? -ENOMEM : 0;
}

static int replace_image(void *context, json_t *container, const char *path)
{
    struct pair *p = context;
    const char *image = objects_text(container, "image");
    size_t n = strlen(p->from);
    (void)path;
    if (strncmp(image, p->from, n) != 0 ||
        !(strchr("/:@", p->from[n - 1]) || !image[n] || strchr("/:@", image[n])))
        return 0;
    _cleanup_free_ char *fresh = NULL;
    if (asprintf(&fresh, "%s%s", p->to, image + n) < 0)
        return -ENOMEM;
    p->count++;
    return json_object_set_new(container, "image", json_string(fresh)) < 0 ? -ENOMEM : 0;
}

static long apply_image(json_t *object, struct pair *p)
{
    static const char *const lists[] = {"containers[]", "initContainers[]", "ephemeralContainers[]"};
    json_t *pod = objects_pod_spec(object);
    int r = 0;
    for (size_t i = 0; pod && i < 3 && r == 0; i++)
        r = objects_walk(pod, lists[i], replace_image, p);
    return r;
}

static long apply_replicas(json_t *object, const json_t *value)
{
    static const char *const kinds[] = {"Deployment", "StatefulSet", "ReplicaSet", "ReplicationController"};
    json_t *spec = json_object_get(object, "spec");
    bool scales = json_is_integer(json_object_get(spec, "replicas"));
    for (size_t i = 0; i < 4; i++)
        scales = scales || (json_is_object(spec) && strcmp(objects_text(object, "kind"), kinds[i]) == 0);
    if (!scales)
        return 0;
    return json_object_set(spec, "replicas", (json_t *)(uintptr_t)value) < 0 ? -ENOMEM : 1;
}

static long apply_map_change(json_t *object, const char *which, const json_t *change)
{
    json_t *metadata = json_object_get(object, "metadata"), *map = json_object_get(metadata, which), *value;
    long count = 0;
    const char *key;
    size_t i;
    if (!json_is_object(map)) {
        map = json_object();
        if (json_object_set_new(metadata, which, map) < 0)
            return -ENOMEM;
    }
    json_object_foreach(json_object_get(change, "set"), key, value)
    {
        if (json_object_set(map, key, value) < 0)
            return -ENOMEM;
        count++;
    }
    json_array_foreach(json_object_get(change, "remove"), i, value) count +=
        json_object_del(map, json_string_value(value)) == 0;
    if (json_object_size(map) == 0)
        json_object_del(metadata, which);
    return count;
}

static long apply_patch(json_t **object, const char *name, const json_t *patch, struct error *err)
{
    json_t *patched = NULL;
    struct object_id before, after;
    int r = object_identify(*object, &before, err);
    if (r == 0)
        r = json_patch_apply(*object, patch, &patched, err);
    if (r == 0) {
        r = object_identify(patched, &after, err);
        if (r == 0 &&
            (strcmp(before.name, after.name) != 0 || strcmp(before.namespace, after.namespace) != 0 ||
             strcmp(before.kind, after.kind) != 0 || strcmp(before.group, after.group) != 0))
            r = error_set(err, -EINVAL,
                          "a patch may not change kind, name or namespace; use rename or namespace");
    }
    if (r < 0) {
        json_decref(patched);
        error_context(err, "object %.300s", name);
        return r;
    }
    json_decref(*object);
    *object = patched;
    return 1;
}

/* One transform, with what it has to know of all objects. */
struct change {
    const json_t *target, *value;
    const char *action;
    json_t *names;    /* of the objects, in order */
    json_t *services; /* of namespace */
    json_t *renames;  /* of rename */
};

static void cleanup_change(struct change *c)
{
    json_decref(c->names);
    json_decref(c->services);
    json_decref(c->renames);
}

#define _cleanup_change_ __attribute__((cleanup(cleanup_change)))

static bool is_action(const struct change *c, const char *action)
{
    return strcmp(c->action, action) == 0;
}

static int plan_renames(struct change *c, const json_t *outlines)
{
    const char *from = objects_text(c->value, "from"), *to = objects_text(c->value, "to");
    json_t *name;
    size_t i;
    int r = 0;
    json_array_foreach(c->names, i, name)
    {
        const json_t *outline = json_object_get(outlines, json_string_value(name));
        if (r == 0 && is_target(c->target, outline) &&
            strcmp(objects_text_at(outline, "metadata/name"), from) == 0)
            r = transform_plan_rename(outlines, outline, to, c->renames);
    }
    return r;
}

static int plan_change(struct change *c, const json_t *outlines)
{
    c->names = objects_sorted_names(outlines);
    c->services = transform_services(outlines, objects_text(c->value, "from"));
    c->renames = json_array();
    if (!c->names || !c->services || !c->renames)
        return -ENOMEM;
    return is_action(c, "rename") ? plan_renames(c, outlines) : 0;
}

/* What config maps and secrets hold names nothing but Services (transform_rename): their outlines say whether
 * another rename changes them, and large ones need not be read for it. */
static bool is_spared(const struct change *c, const json_t *outline)
{
    size_t i;
    json_t *rename;
    if (!is_action(c, "rename") || !objects_is_config(outline))
        return false;
    json_array_foreach(c->renames, i, rename)
    {
        if (strcmp(objects_text(rename, "kind"), "Service") == 0)
            return false;
    }
    _cleanup_json_ json_t *copy = json_deep_copy(outline);
    return copy && transform_rename(copy, c->renames) == 0;
}

static long change_object(json_t **object, const char *name, const struct change *c, struct error *err)
{
    struct pair pair = {objects_text(c->value, "from"), objects_text(c->value, "to"), 0};
    long r = 0;
    if (is_action(c, "namespace"))
        return transform_namespace(*object, pair.from, pair.to, c->services);
    if (is_action(c, "rename"))
        return transform_rename(*object, c->renames);
    if (is_action(c, "host"))
        return transform_host(*object, pair.from, pair.to);
    if (is_action(c, "replicas"))
        return apply_replicas(*object, c->value);
    if (is_action(c, "patch"))
        return apply_patch(object, name, c->value, err);
    if (is_action(c, "storageClass"))
        r = references_visit(*object, replace_class, &pair);
    else if (is_action(c, "image"))
        r = apply_image(*object, &pair);
    else
        return apply_map_change(*object, c->action, c->value);
    return r < 0 ? r : pair.count;
}

static long apply_one(const struct transform_objects *objects, const json_t *transform, const char *action,
                      struct error *err)
{
    _cleanup_change_ struct change c = {.target = json_object_get(transform, "target"),
                                        .value = json_object_get(transform, action),
                                        .action = action};
    long count = plan_change(&c, objects->outlines);
    size_t i;
    json_t *each;
    json_array_foreach(c.names, i, each)
    {
        const char *name = json_string_value(each);
        const json_t *outline = json_object_get(objects->outlines, name);
        _cleanup_json_ json_t *object = NULL;
        /* What refers to the target of a rename is changed, too. */
        if (count < 0 || (!is_action(&c, "rename") && !is_target(c.target, outline)) || is_spared(&c, outline))
            continue;
        long n = objects->get(objects->context, name, &object, err);
        if (n == 0)
            n = change_object(&object, name, &c, err);
        if (n > 0) {
            int r = objects->put(objects->context, name, object, err);
            n = r < 0 ? r : n;
        }
        count = n < 0 ? n : count + n;
    }
    return count;
}

/* The names that the objects have now. */
static int collect(const json_t *outlines, json_t **ret_names, struct error *err)
{
    _cleanup_json_ json_t *taken = json_object(), *names = json_object();
    const char *before;
    json_t *outline;
    if (!taken || !names)
        return objects_no_memory(err);
    json_object_foreach((json_t *)(uintptr_t)outlines, before, outline)
    {
        struct object_id id;
        char name[OBJECT_NAME_BYTES];
        int r = object_identify(outline, &id, err);
        if (r == 0)
            r = object_journal_name(&id, name, err);
        if (r < 0) {
            error_context(err, "after the transforms, %.300s", before);
            return r;
        }
        if (json_object_get(taken, name))
            return error_set(err, -EEXIST, "after the transforms two objects are called %s", name);
        if (json_object_set_new(taken, name, json_true()) < 0 ||
            json_object_set_new(names, before, json_string(name)) < 0)
            return objects_no_memory(err);
    }
    *ret_names = take_ptr(names);
    return 0;
}

int transforms_apply(const struct transform_objects *objects, const json_t *transforms, json_t **ret_names,
                     struct error *err)
{
    size_t i;
    json_t *transform;
    int r = transforms_check(transforms, err);
    if (r < 0)
        return r;
    json_array_foreach(transforms, i, transform)
    {
        const char *action = action_of(transform, i, err);
        if (!action)
            return err->code;
        *err = ERROR_INIT;
        long n = apply_one(objects, transform, action, err);
        if (n < 0) {
            if (!err->code)
                return error_set(err, (int)n, "transform %zu (%s): %s", i, action, strerror((int)-n));
            error_context(err, "transform %zu (%s)", i, action);
            return (int)n;
        }
        _cleanup_free_ char *text = n == 0 ? json_dumps(transform, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
        if (n == 0)
            return error_set(err, -ENOENT,
                             "transform %zu matches nothing in the application at this point: %.300s; "
                             "correct it or leave it out",
                             i, text ? text : action);
    }
    return collect(objects->outlines, ret_names, err);
}
