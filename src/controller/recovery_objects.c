/* SPDX-License-Identifier: Apache-2.0 */
/* The objects of a recovery: what is held of them all is their outlines (app/outline.h), whole ones wait on a
 * shelf. What an application has is bounded by nothing but the cluster, and the controller's memory is. */
#include "app/outline.h"
#include "controller/object_shelf.h"
#include "controller/recovery_internal.h"

static int put_away(struct recovery_run *run, struct object_shelf **shelf, const char *name, json_t *object,
                    json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *outline = NULL;
    int r = object_outline(object, &outline, err);
    if (r == 0 && !*shelf)
        r = object_shelf_new(run->c->directory, shelf, err);
    if (r == 0 && outline != object)
        r = object_shelf_put(*shelf, name, object, err);
    else if (r == 0)
        object_shelf_drop(*shelf, name);
    if (r == 0)
        *ret = take_ptr(outline);
    return r;
}

static int get_whole(struct object_shelf *shelf, const json_t *set, const char *name, json_t **ret,
                     struct error *err)
{
    json_t *outline = json_object_get(set, name);
    struct error why = ERROR_INIT;
    if (!outline)
        return error_set(err, -ENOENT, "%s is not among the objects", name);
    int r = shelf ? object_shelf_get(shelf, name, ret, &why) : -ENOENT;
    if (r == -ENOENT) { /* nothing was left out */
        *ret = json_incref(outline);
        return 0;
    }
    if (r < 0)
        *err = why;
    return r;
}

int recovery_put_wanted(struct recovery_run *run, const char *name, json_t *object, struct error *err)
{
    _cleanup_json_ json_t *outline = NULL;
    int r = put_away(run, &run->wanted_whole, name, object, &outline, err);
    if (r == 0 && json_object_set(run->wanted, name, outline) < 0)
        r = error_set(err, -ENOMEM, "out of memory");
    return r;
}

int recovery_get_wanted(const struct recovery_run *run, const char *name, json_t **ret, struct error *err)
{
    return get_whole(run->wanted_whole, run->wanted, name, ret, err);
}

int recovery_rename_wanted(struct recovery_run *run, const json_t *names, struct error *err)
{
    _cleanup_json_ json_t *renamed = json_object();
    const char *name;
    json_t *outline;
    int r = 0;
    json_object_foreach(run->wanted, name, outline)
    {
        const char *now = json_string_value(json_object_get(names, name));
        if (json_object_set(renamed, now ? now : name, outline) < 0)
            r = -ENOMEM;
    }
    if (r == 0 && run->wanted_whole)
        r = object_shelf_rename(run->wanted_whole, names);
    if (r < 0)
        return error_set(err, r, "out of memory");
    json_decref(run->wanted);
    run->wanted = take_ptr(renamed);
    return 0;
}

static int put_live_away(void *context, json_t *object, json_t **ret, struct error *err)
{
    struct recovery_run *run = context;
    struct object_id id;
    struct error unused = ERROR_INIT;
    char name[OBJECT_NAME_BYTES];
    if (object_identify(object, &id, &unused) < 0 || object_noise(object) ||
        object_journal_name(&id, name, &unused) < 0)
        return object_outline(object, ret, err); /* it is never compared */
    return put_away(run, &run->live_whole, name, object, ret, err);
}

int recovery_list_live(struct recovery_run *run, json_t *array, struct error *err)
{
    recovery_forget_live(run);
    return run->c->cluster->list(run->c->cluster_context, run->target_namespace, put_live_away, run, array,
                                 err);
}

int recovery_get_live(const struct recovery_run *run, const char *name, json_t **ret, struct error *err)
{
    return get_whole(run->live_whole, run->live, name, ret, err);
}

void recovery_forget_live(struct recovery_run *run)
{
    json_decref(take_ptr(run->live));
    object_shelf_free(take_ptr(run->live_whole));
}
