/* SPDX-License-Identifier: Apache-2.0 */
/* What is deleted to be made again is noted before, as it was, in status.replacing (R7): [{"object": journal name, "was": its sealed
 * form}]. It stays there until the object has its verdict, so that whoever goes on after a kill, or ends it, can put back what was there. */
#include "controller/recovery_internal.h"
#include "controller/sealing.h"

/* Of a status that has a plan and conditions beside it, in an object of 1.5 MiB. */
#define NOTES_BYTES_MAX (512u << 10)
enum {
    NOTES_MAX = 64, /* as the definition says */
    AGAIN_MS = 1000 /* until what is being deleted is looked at again */
};

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
    if (strcmp(json_text(live, "kind"), "Pod") == 0) /* a pod cannot be made with them (kubectl debug) */
        json_object_del(json_object_get(former, "spec"), "ephemeralContainers");
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
    if (noted_bytes(run) + strlen(was) > NOTES_BYTES_MAX || json_array_size(notes_of(run)) >= NOTES_MAX) {
        log_warning(run->c->log, "recovery %s/%s: there is no room to note %s before it is made again", run->namespace, run->name, name);
        recovery_note(run, json_sprintf("%s: there was no room to note what it was before it was deleted: it is made again by this recovery, or by nobody", name));
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

static struct recovery_entry *entry_of(struct recovery_run *run, const char *name)
{
    for (size_t i = 0; i < run->entry_count; i++)
        if (strcmp(run->entries[i].name, name) == 0)
            return &run->entries[i];
    return NULL;
}

/* The first with its reason, of the others the names. */
static void add_lost(struct error *lost, const char *name, const char *why)
{
    struct object_id id = {0};
    struct error unused = ERROR_INIT;
    char before[ERROR_MESSAGE_BYTES];
    snprintf(before, sizeof before, "%.500s", lost->message);
    const char *kind = object_id_parse(name, &id, &unused) == 0 ? id.kind : "";
    error_set_at(lost, __FILE__, __LINE__, -ENOENT, "%s%s%s %.253s%s%.250s%s", before, *before ? ", " : "", kind, *kind ? id.name : name, *before || !*why ? "" : " (",
                 *before ? "" : why, *before || !*why ? "" : ")");
}

static void note_lost(struct recovery_run *run, const char *name, const struct error *why, struct error *lost)
{
    struct recovery_entry *e = entry_of(run, name);
    add_lost(lost, name, why->message);
    if (e) {
        free(e->reason);
        e->verdict = VERDICT_FAILED;
        if (asprintf(&e->reason, "it was deleted to be made again, and cannot be made again as it was: %.700s", why->message) < 0)
            e->reason = NULL;
    }
    log_error(run->c->log, "recovery %s/%s: %s was deleted to be made again, and cannot be made again as it was: %s", run->namespace, run->name, name, why->message);
}

/* The time of its deletion is when it is to be gone: a pod has its own time to end. */
static int await_end(const struct recovery_run *run, const char *name, const json_t *live, struct error *err)
{
    const json_t *metadata = json_object_get(live, "metadata");
    struct error unused = ERROR_INIT;
    uint64_t end_ns;
    if (clock_parse_rfc3339(json_text(metadata, "deletionTimestamp"), &end_ns, &unused) == 0 &&
        clock_realtime_ns(run->clock) < end_ns + RECOVERY_AWAIT_MS * NS_PER_MS)
        return error_set(err, -EAGAIN, "waiting until %.300s is gone, to make it again", name);
    return error_set(err, -EPERM, "it is being deleted and does not go");
}

static int put_one_back(struct recovery_run *run, const char *name, struct error *err)
{
    _cleanup_json_ json_t *live = NULL, *former = NULL;
    int r = run->c->cluster->get(run->c->cluster_context, name, &live, err);
    if (r == 0 && json_object_get(json_object_get(live, "metadata"), "deletionTimestamp"))
        return await_end(run, name, live, err);
    if (r == -ENOENT && (r = recovery_find_replaced(run, name, &former, err)) == 0)
        r = run->c->cluster->create(run->c->cluster_context, former, err);
    return r == -EEXIST ? 0 : r;
}

int recovery_put_replaced_back(struct recovery_run *run, struct error *ret_lost, struct error *err)
{
    _cleanup_json_ json_t *notes = json_deep_copy(notes_of(run));
    size_t i;
    json_t *note;
    int result = 0;
    *ret_lost = ERROR_INIT;
    json_array_foreach(notes, i, note)
    {
        const char *name = json_text(note, "object");
        const struct recovery_entry *e = entry_of(run, name);
        struct error why = ERROR_INIT;
        int r = e && e->verdict >= 0 ? 0 : put_one_back(run, name, &why);
        if (recovery_concerns_server(r) || (r == -EIO && !recovery_ends_late(run))) {
            *err = why;
            result = r;
            if (r != -EAGAIN && r != -EIO) /* the server is away, of all of them */
                return r;
        } else if (r < 0) {
            note_lost(run, name, &why, ret_lost); /* and it stays noted until the end is written: what is lost is told then */
        } else {
            recovery_forget_replaced(run, name);
        }
    }
    if (result == -EAGAIN)
        recovery_pause(run, AGAIN_MS);
    return result < 0 || json_array_size(notes) == 0 ? result : recovery_count(run, err);
}

void recovery_name_replaced(struct recovery_run *run, struct error *ret_lost)
{
    size_t i;
    json_t *note;
    *ret_lost = ERROR_INIT;
    json_array_foreach(notes_of(run), i, note) add_lost(ret_lost, json_text(note, "object"), "");
}
