/* SPDX-License-Identifier: Apache-2.0 */
/* What is deleted to be made again is noted before, as it was, in status.replacing (R7): [{"object": journal name, "was": its sealed
 * form}]. It stays there until the object has its verdict, so that whoever goes on after a kill can put back what was there. */
#include "controller/recovery_internal.h"
#include "controller/sealing.h"

/* Of a status that has a plan and conditions beside it, in an object of 1.5 MiB. */
#define NOTES_BYTES_MAX (512u << 10)

static json_t *notes_of(struct recovery_run *run)
{
    return json_object_get(recovery_status(run), "replacing");
}

int recovery_former_of(const json_t *live, json_t **ret, struct error *err)
{
    static const char *const kept[] = {"ownerReferences", "finalizers"};
    _cleanup_json_ json_t *former = NULL;
    int r = object_normalize(live, &former, err);
    if (r < 0)
        return r;
    json_object_del(former, "status");
    for (size_t i = 0; i < 2; i++) {
        json_t *value = json_object_get(json_object_get(live, "metadata"), kept[i]);
        if (value && json_object_set(json_object_get(former, "metadata"), kept[i], value) < 0)
            return error_set(err, -ENOMEM, "out of memory");
    }
    if (strcmp(json_text(live, "kind"), "Service") == 0 && strcmp(json_text(live, "apiVersion"), "v1") == 0 && /* with its addresses */
        json_object_set(former, "spec", json_object_get(live, "spec")) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    *ret = take_ptr(former);
    return 0;
}

void recovery_forget_replaced(struct recovery_run *run, const char *name)
{
    json_t *notes = notes_of(run);
    for (size_t i = json_array_size(notes); i-- > 0;)
        if (strcmp(json_text(json_array_get(notes, i), "object"), name) == 0)
            json_array_remove(notes, i);
    if (notes && json_array_size(notes) == 0)
        json_object_del(recovery_status(run), "replacing");
}

static size_t noted_bytes(struct recovery_run *run)
{
    size_t i, bytes = 0;
    json_t *note;
    json_array_foreach(notes_of(run), i, note)
        bytes += json_string_length(json_object_get(note, "was"));
    return bytes;
}

static int add_note(struct recovery_run *run, const char *name, const char *was, struct error *err)
{
    if (!notes_of(run) && json_object_set_new(recovery_status(run), "replacing", json_array()) < 0)
        return error_set(err, -ENOMEM, "out of memory");
    return json_array_append_new(notes_of(run), json_pack("{s:s, s:s}", "object", name, "was", was)) < 0 ? error_set(err, -ENOMEM, "out of memory") : 0;
}

int recovery_note_replaced(struct recovery_run *run, const char *name, const json_t *former, struct error *err)
{
    _cleanup_json_ json_t *sealed = NULL;
    int r = sealing_seal(run->c->sealing, name, former, &sealed, err);
    _cleanup_free_ char *was = r == 0 ? json_to_text(sealed) : NULL;
    if (r < 0 || !was)
        return r < 0 ? r : error_set(err, -ENOMEM, "out of memory");
    recovery_forget_replaced(run, name); /* of a try before */
    if (noted_bytes(run) + strlen(was) > NOTES_BYTES_MAX) {
        log_warning(run->c->log, "recovery %s/%s: %s is too large to be noted before it is made again", run->namespace, run->name, name);
        return 0;
    }
    r = add_note(run, name, was, err);
    if (r == 0 && (r = recovery_write(run, err)) < 0)
        recovery_forget_replaced(run, name);
    /* Somebody else carries it on, or it is not known who does: nothing more is done here. */
    if (r == -ESTALE || r == -EBUSY)
        return err->code = -ECANCELED;
    return r < 0 ? error_context(err, "noting what it was") : 0;
}

int recovery_find_replaced(struct recovery_run *run, const char *name, json_t **ret, struct error *err)
{
    size_t i;
    json_t *note;
    json_array_foreach(notes_of(run), i, note)
    {
        _cleanup_json_ json_t *stored = NULL;
        const char *was = json_text(note, "was");
        if (strcmp(json_text(note, "object"), name) != 0)
            continue;
        int r = json_parse("status.replacing", was, strlen(was), &stored, err);
        r = r == 0 ? sealing_open(run->c->sealing, name, stored, ret, err) : r;
        return r < 0 ? error_context(err, "what it was") : 0;
    }
    return error_set(err, -ENOENT, "%s was not deleted by this recovery", name);
}

/* ---- one that ends in between ---- */

static void note_lost(struct recovery_run *run, const char *name, const struct error *why)
{
    for (size_t i = 0; i < run->entry_count; i++) {
        struct recovery_entry *e = &run->entries[i];
        if (strcmp(e->name, name) != 0)
            continue;
        free(e->reason);
        e->verdict = VERDICT_FAILED;
        if (asprintf(&e->reason, "it was deleted to be made again, and cannot be made again as it was: %.700s", why->message) < 0)
            e->reason = NULL;
    }
    log_error(run->c->log, "recovery %s/%s: %s was deleted to be made again, and cannot be made again as it was: %s", run->namespace, run->name, name, why->message);
}

int recovery_put_replaced_back(struct recovery_run *run, struct error *err)
{
    _cleanup_json_ json_t *notes = json_deep_copy(notes_of(run));
    size_t i;
    json_t *note;
    json_array_foreach(notes, i, note)
    {
        const char *name = json_text(note, "object");
        _cleanup_json_ json_t *live = NULL, *former = NULL;
        struct error why = ERROR_INIT;
        int r = run->c->cluster->get(run->c->cluster_context, name, &live, &why);
        if (r == -ENOENT && (r = recovery_find_replaced(run, name, &former, &why)) == 0)
            r = run->c->cluster->create(run->c->cluster_context, former, &why);
        if (recovery_concerns_server(r)) {
            *err = why;
            return r;
        }
        if (r < 0 && r != -EEXIST)
            note_lost(run, name, &why);
        recovery_forget_replaced(run, name);
    }
    return json_array_size(notes) ? recovery_count(run, err) : 0;
}
